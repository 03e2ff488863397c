//! Physical addresses.

/// Address of a byte of physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// Returns the address `bytes` further on.
    #[inline]
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// Tells whether the address is a multiple of 2^`bits`.
    #[inline]
    #[must_use]
    pub const fn is_aligned(self, bits: u32) -> bool {
        self.0 & ((1 << bits) - 1) == 0
    }
}
