//! Which objects can be made from untyped memory, and their sizes.

use abi::ObjectType;

/// An object to be made by `untyped_retype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectBlueprint {
    /// Smaller untyped memory.
    Untyped {
        /// log2 of its size in bytes.
        size_bits: u64,
    },
    /// Synchronous message port.
    Endpoint,
    /// Word of signals.
    Notification,
    /// Table of capabilities.
    CNode {
        /// log2 of its slots.
        size_bits: u64,
    },
    /// Thread.
    Tcb,
    /// Scheduling context.
    SchedContext {
        /// log2 of its size in bytes, at least 7.
        size_bits: u64,
    },
    /// Place for one caller.
    Reply,
    /// x86's own.
    Arch(ObjectBlueprintX86),
    /// Ballast's extensions.
    Ballast(ObjectBlueprintBallast),
}

/// x86 objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectBlueprintX86 {
    /// Frame of 4 KiB.
    _4k,
    /// Frame of 2 MiB.
    LargePage,
    /// Page table.
    PageTable,
    /// Page directory.
    PageDirectory,
    /// 64-bit only.
    SeL4Arch(ObjectBlueprintX64),
}

/// 64-bit x86 objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectBlueprintX64 {
    /// Frame of 1 GiB.
    HugePage,
    /// Page-directory-pointer table.
    PDPT,
    /// Root of a virtual address space.
    PML4,
}

/// Objects of Ballast's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectBlueprintBallast {
    /// Virtual CPU.
    Vcpu,
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
}

impl From<ObjectBlueprintX86> for ObjectBlueprint {
    fn from(blueprint: ObjectBlueprintX86) -> Self {
        Self::Arch(blueprint)
    }
}

impl From<ObjectBlueprintX64> for ObjectBlueprint {
    fn from(blueprint: ObjectBlueprintX64) -> Self {
        Self::Arch(ObjectBlueprintX86::SeL4Arch(blueprint))
    }
}

impl From<ObjectBlueprintBallast> for ObjectBlueprint {
    fn from(blueprint: ObjectBlueprintBallast) -> Self {
        Self::Ballast(blueprint)
    }
}

impl ObjectBlueprint {
    /// The type number.
    #[inline]
    pub const fn ty(self) -> ObjectType {
        match self {
            Self::Untyped { .. } => ObjectType::Untyped,
            Self::Endpoint => ObjectType::Endpoint,
            Self::Notification => ObjectType::Notification,
            Self::CNode { .. } => ObjectType::CNode,
            Self::Tcb => ObjectType::Tcb,
            Self::SchedContext { .. } => ObjectType::SchedContext,
            Self::Reply => ObjectType::Reply,
            Self::Arch(ObjectBlueprintX86::_4k) => ObjectType::Page4K,
            Self::Arch(ObjectBlueprintX86::LargePage) => ObjectType::LargePage,
            Self::Arch(ObjectBlueprintX86::PageTable) => ObjectType::PageTable,
            Self::Arch(ObjectBlueprintX86::PageDirectory) => ObjectType::PageDirectory,
            Self::Arch(ObjectBlueprintX86::SeL4Arch(ObjectBlueprintX64::HugePage)) => {
                ObjectType::HugePage
            }
            Self::Arch(ObjectBlueprintX86::SeL4Arch(ObjectBlueprintX64::PDPT)) => ObjectType::Pdpt,
            Self::Arch(ObjectBlueprintX86::SeL4Arch(ObjectBlueprintX64::PML4)) => ObjectType::Pml4,
            Self::Ballast(ObjectBlueprintBallast::Vcpu) => ObjectType::Vcpu,
            Self::Ballast(ObjectBlueprintBallast::NptPml4) => ObjectType::NptPml4,
            Self::Ballast(ObjectBlueprintBallast::NptPdpt) => ObjectType::NptPdpt,
            Self::Ballast(ObjectBlueprintBallast::NptPd) => ObjectType::NptPd,
            Self::Ballast(ObjectBlueprintBallast::NptPt) => ObjectType::NptPt,
            Self::Ballast(ObjectBlueprintBallast::Timer) => ObjectType::Timer,
        }
    }

    /// The size argument of retype; zero where the type decides.
    #[inline]
    pub const fn api_size_bits(self) -> u64 {
        match self {
            Self::Untyped { size_bits }
            | Self::CNode { size_bits }
            | Self::SchedContext { size_bits } => size_bits,
            _ => 0,
        }
    }

    /// log2 of the bytes one object takes.
    #[inline]
    pub const fn physical_size_bits(self) -> u64 {
        self.ty().size_bits(self.api_size_bits())
    }

    /// The untyped an ASID pool is made of.
    pub const fn asid_pool() -> Self {
        Self::Untyped { size_bits: abi::object::ASID_POOL_BITS as u64 }
    }
}

/// Size of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameObjectType {
    /// 4 KiB.
    _4k,
    /// 2 MiB.
    LargePage,
    /// 1 GiB.
    HugePage,
}

impl FrameObjectType {
    /// The smallest.
    pub const GRANULE: Self = Self::_4k;

    /// How to make one.
    pub const fn blueprint(self) -> ObjectBlueprint {
        ObjectBlueprint::Arch(match self {
            Self::_4k => ObjectBlueprintX86::_4k,
            Self::LargePage => ObjectBlueprintX86::LargePage,
            Self::HugePage => ObjectBlueprintX86::SeL4Arch(ObjectBlueprintX64::HugePage),
        })
    }

    /// log2 of its bytes.
    pub const fn bits(self) -> u64 {
        self.blueprint().physical_size_bits()
    }

    /// Its bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.bits()
    }
}

/// Level of a paging structure below the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslationTableObjectType {
    /// Page-directory-pointer table.
    PDPT,
    /// Page directory.
    PageDirectory,
    /// Page table.
    PageTable,
}

impl TranslationTableObjectType {
    /// How to make one.
    pub const fn blueprint(self) -> ObjectBlueprint {
        ObjectBlueprint::Arch(match self {
            Self::PDPT => ObjectBlueprintX86::SeL4Arch(ObjectBlueprintX64::PDPT),
            Self::PageDirectory => ObjectBlueprintX86::PageDirectory,
            Self::PageTable => ObjectBlueprintX86::PageTable,
        })
    }

    /// log2 of the bytes one table of this level covers.
    pub const fn span_bits(self) -> u64 {
        match self {
            Self::PDPT => 39,
            Self::PageDirectory => 30,
            Self::PageTable => 21,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blueprints_have_the_interface_sizes() {
        assert_eq!(ObjectBlueprint::CNode { size_bits: 8 }.physical_size_bits(), 13);
        assert_eq!(ObjectBlueprint::Tcb.physical_size_bits(), 11);
        assert_eq!(FrameObjectType::LargePage.bytes(), 2 << 20);
        assert_eq!(ObjectBlueprint::Reply.ty() as u64, 6);
    }
}
