//! Where things are in the kernel's half of every address space.

/// Start of the kernel image area: physical 0 appears here for the top 2 GiB.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Start of the physical memory window: physical address `p` appears at `WINDOW_BASE + p`.
pub const WINDOW_BASE: u64 = 0xffff_8000_0000_0000;
/// Bytes the window can cover: one PML4 slot.
pub const WINDOW_SIZE: u64 = 1 << 39;
/// Bytes of a small page.
pub const PAGE: u64 = 4096;
