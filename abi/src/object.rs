//! Object types, their sizes, and the kernel's interface limits.

macro_rules! object_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// An object type as Untyped_Retype takes it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u64)]
        pub enum ObjectType { $($(#[$doc])* $name = $number,)* }

        impl ObjectType {
            /// Finds the type behind a number.
            #[must_use]
            pub const fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

object_types! {
    /// Memory without a type, of a size chosen by the user.
    Untyped = 0,
    /// Thread.
    Tcb = 1,
    /// Synchronous message port.
    Endpoint = 2,
    /// Word of signals.
    Notification = 3,
    /// Table of capabilities, 2^size slots.
    CNode = 4,
    /// Scheduling context, of a size chosen by the user.
    SchedContext = 5,
    /// Place for one caller.
    Reply = 6,
    /// Page-directory-pointer table.
    Pdpt = 7,
    /// Root of a virtual address space.
    Pml4 = 8,
    /// Frame of 1 GiB.
    HugePage = 9,
    /// Frame of 4 KiB.
    Page4K = 10,
    /// Frame of 2 MiB.
    LargePage = 11,
    /// Page table.
    PageTable = 12,
    /// Page directory.
    PageDirectory = 13,
    /// Virtual CPU (extension).
    Vcpu = 32,
    /// Root of a nested address space (extension).
    NptPml4 = 33,
    /// Nested page-directory-pointer table (extension).
    NptPdpt = 34,
    /// Nested page directory (extension).
    NptPd = 35,
    /// Nested page table (extension).
    NptPt = 36,
    /// Timer that signals a notification (extension).
    Timer = 37,
}

/// Size of a TCB, power of two.
pub const TCB_BITS: u32 = 11;
/// Size of an endpoint, power of two.
pub const ENDPOINT_BITS: u32 = 4;
/// Size of a notification, power of two.
pub const NOTIFICATION_BITS: u32 = 6;
/// Size of one capability slot, power of two.
pub const SLOT_BITS: u32 = 5;
/// Size of a reply object, power of two.
pub const REPLY_BITS: u32 = 5;
/// Smallest scheduling context, power of two.
pub const MIN_SCHED_CONTEXT_BITS: u32 = 7;
/// Bytes of a scheduling context before its extra refills.
pub const SCHED_CONTEXT_CORE_BYTES: u64 = 128;
/// Bytes of one refill.
pub const REFILL_BYTES: u64 = 16;
/// Smallest untyped, power of two.
pub const MIN_UNTYPED_BITS: u32 = 4;
/// Largest untyped, power of two.
pub const MAX_UNTYPED_BITS: u32 = 47;
/// Size of a paging structure and of a 4 KiB frame, power of two.
pub const PAGE_BITS: u32 = 12;
/// Size of a large frame, power of two.
pub const LARGE_PAGE_BITS: u32 = 21;
/// Size of a huge frame, power of two.
pub const HUGE_PAGE_BITS: u32 = 30;
/// Size of an ASID pool, power of two.
pub const ASID_POOL_BITS: u32 = 12;
/// Size of a virtual CPU, power of two: VMCB 4 KiB, MSR map 8 KiB, I/O map 12 KiB, registers and FPU state 8 KiB.
pub const VCPU_BITS: u32 = 15;
/// Size of a timer, power of two.
pub const TIMER_BITS: u32 = 6;

/// Most objects one Untyped_Retype makes.
pub const RETYPE_FAN_OUT_LIMIT: u64 = 256;
/// First user address that cannot be mapped.
pub const USER_TOP: u64 = 0x0000_7fff_ffff_f000;
/// Number of priorities.
pub const PRIORITIES: u64 = 256;
/// Highest vector IRQControl_GetIOAPIC and GetMSI take.
pub const MAX_USER_VECTOR: u64 = 107;

/// TCB flag: the thread uses no FPU.
pub const TCB_FLAG_FPU_DISABLED: u64 = 1;
/// SchedControl flag: sporadic server instead of constant bandwidth.
pub const SCHED_FLAG_SPORADIC: u64 = 1;

/// Memory types of a mapping (x86 VM attributes).
pub mod vm_attribute {
    /// Write-back, the default.
    pub const WRITE_BACK: u64 = 0;
    /// Write-through.
    pub const WRITE_THROUGH: u64 = 1;
    /// Cache disabled.
    pub const CACHE_DISABLED: u64 = 2;
    /// Uncacheable.
    pub const UNCACHEABLE: u64 = 3;
    /// Write-combining, through the page attribute table.
    pub const WRITE_COMBINING: u64 = 4;
}

impl ObjectType {
    /// Returns the size of an object as a power of two in bytes; `user_bits` counts where the type has no size of its own.
    #[must_use]
    pub const fn size_bits(self, user_bits: u64) -> u64 {
        (match self {
            Self::Untyped | Self::SchedContext => return user_bits,
            Self::CNode => return user_bits.saturating_add(SLOT_BITS as u64),
            Self::Tcb => TCB_BITS,
            Self::Endpoint => ENDPOINT_BITS,
            Self::Notification => NOTIFICATION_BITS,
            Self::Reply => REPLY_BITS,
            Self::HugePage => HUGE_PAGE_BITS,
            Self::LargePage => LARGE_PAGE_BITS,
            Self::Vcpu => VCPU_BITS,
            Self::Timer => TIMER_BITS,
            Self::Pdpt
            | Self::Pml4
            | Self::Page4K
            | Self::PageTable
            | Self::PageDirectory
            | Self::NptPml4
            | Self::NptPdpt
            | Self::NptPd
            | Self::NptPt => PAGE_BITS,
        }) as u64
    }
}
