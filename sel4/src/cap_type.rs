//! Marker types of capabilities, and their aliases in [`cap`].

/// What a capability points to; a marker without values.
pub trait CapType: Copy + core::fmt::Debug {
    /// Name for debug output.
    const NAME: &'static str;
}

/// A capability whose type has an object that can be mapped as a frame.
pub trait CapTypeForFrameObject: CapType {
    /// The object.
    const FRAME_OBJECT_TYPE: crate::FrameObjectType;
}

/// A capability to a paging structure below the root.
pub trait CapTypeForTranslationTable: CapType {
    /// The object.
    const TABLE_OBJECT_TYPE: crate::TranslationTableObjectType;
}

macro_rules! cap_types {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $name {}

            impl CapType for $name {
                const NAME: &'static str = stringify!($name);
            }
        )*

        /// Capability types by name: `cap::Endpoint` is `Cap<cap_type::Endpoint>`.
        pub mod cap {
            use crate::cptr::Cap;
            $(
                $(#[$doc])*
                pub type $name = Cap<super::$name>;
            )*
            /// Root of a virtual address space.
            pub type VSpace = PML4;
            /// Smallest frame.
            pub type Granule = _4k;
        }
    };
}

cap_types! {
    /// Nothing.
    Null,
    /// Memory without a type.
    Untyped,
    /// Synchronous message port.
    Endpoint,
    /// Word of signals.
    Notification,
    /// Thread.
    Tcb,
    /// Table of capabilities.
    CNode,
    /// Place for one caller.
    Reply,
    /// Scheduling context.
    SchedContext,
    /// Right to configure scheduling contexts of one core.
    SchedControl,
    /// Makes interrupt handlers.
    IrqControl,
    /// One interrupt.
    IrqHandler,
    /// Makes ASID pools.
    AsidControl,
    /// Gives address spaces an identifier.
    AsidPool,
    /// Domain authority.
    DomainSet,
    /// Makes port ranges.
    IOPortControl,
    /// A range of I/O ports.
    IOPort,
    /// Frame of 4 KiB.
    _4k,
    /// Frame of 2 MiB.
    LargePage,
    /// Frame of 1 GiB.
    HugePage,
    /// Root of a virtual address space.
    PML4,
    /// Page-directory-pointer table.
    PDPT,
    /// Page directory.
    PageDirectory,
    /// Page table.
    PageTable,
    /// Virtual CPU.
    VCpu,
    /// Root of a nested address space.
    NptPml4,
    /// Nested page-directory-pointer table.
    NptPdpt,
    /// Nested page directory.
    NptPd,
    /// Nested page table.
    NptPt,
    /// Timer that signals a notification.
    Timer,
    /// Type not known statically.
    Unspecified,
    /// Frame of a size not known statically.
    UnspecifiedPage,
    /// Paging structure of a level not known statically.
    UnspecifiedIntermediateTranslationTable,
}

/// Root of a virtual address space.
pub type VSpace = PML4;
/// Smallest frame.
pub type Granule = _4k;

impl CapTypeForFrameObject for _4k {
    const FRAME_OBJECT_TYPE: crate::FrameObjectType = crate::FrameObjectType::_4k;
}
impl CapTypeForFrameObject for LargePage {
    const FRAME_OBJECT_TYPE: crate::FrameObjectType = crate::FrameObjectType::LargePage;
}
impl CapTypeForFrameObject for HugePage {
    const FRAME_OBJECT_TYPE: crate::FrameObjectType = crate::FrameObjectType::HugePage;
}
impl CapTypeForTranslationTable for PDPT {
    const TABLE_OBJECT_TYPE: crate::TranslationTableObjectType =
        crate::TranslationTableObjectType::PDPT;
}
impl CapTypeForTranslationTable for PageDirectory {
    const TABLE_OBJECT_TYPE: crate::TranslationTableObjectType =
        crate::TranslationTableObjectType::PageDirectory;
}
impl CapTypeForTranslationTable for PageTable {
    const TABLE_OBJECT_TYPE: crate::TranslationTableObjectType =
        crate::TranslationTableObjectType::PageTable;
}
