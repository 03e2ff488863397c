//! Quantities that must not be mixed up: page counts, frame numbers, time, identities.

use serde::{Deserialize, Serialize};

/// Bytes in one small page (4 KiB).
pub const PAGE_SIZE: u64 = 1 << Gfn::SHIFT;
/// Bytes in one large page (2 MiB).
pub const LARGE_PAGE_SIZE: u64 = 1 << 21;

/// Guest frame number: a guest-physical address shifted right by 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gfn(pub u64);

impl Gfn {
    /// log2 of the page size.
    pub const SHIFT: u32 = 12;

    /// The frame that holds guest-physical address `gpa`.
    pub const fn containing(gpa: u64) -> Self {
        Self(gpa >> Self::SHIFT)
    }

    /// First guest-physical address of the frame.
    pub const fn gpa(self) -> u64 {
        self.0 << Self::SHIFT
    }
}

/// A number of 4 KiB pages.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Pages(pub u64);

impl Pages {
    /// Pages needed to hold `bytes`, rounded up.
    pub const fn holding(bytes: u64) -> Self {
        Self(bytes.div_ceil(PAGE_SIZE))
    }

    /// Size in bytes; saturates.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE)
    }
}

/// A time or a duration on the machine's clock, in nanoseconds since boot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Nanos(pub u64);

impl Nanos {
    /// `seconds` in nanoseconds; saturates.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// `millis` in nanoseconds; saturates.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }
}

/// Identity of a virtual machine: its index in the running system, 0..`MAX_VMS`. Also its badge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmId(pub u16);

/// Most virtual machines at once.
pub const MAX_VMS: usize = 16;

/// A disk of the machine: its place among them, 0..`MACHINE_DISKS_MAX`. Each has an io-sched-server of its own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct DiskId(pub u8);

impl DiskId {
    /// Every disk a machine may have.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..MACHINE_DISKS_MAX as u8).map(Self)
    }

    /// Its place in a table of disks.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Most disks of a machine.
pub const MACHINE_DISKS_MAX: usize = 4;
