//! The root-task's own windows on memory: a scratch page, views of servers' pages, the boot archive.
// UNSAFETY: memory mapped here by capability is named by address.
#![expect(unsafe_code, reason = "mapped pages are reached by address")]

use core::sync::atomic::AtomicU64;

use protocol::units::PAGE_SIZE;

/// Where one frame at a time is mapped to be filled.
pub const SCRATCH_VADDR: u64 = 0x30_0000_0000;
/// Where a ring is mapped to be formatted.
pub const RING_VADDR: u64 = 0x30_0020_0000;
/// Views of servers' shared, log and console pages.
pub const VIEW_VADDR: u64 = 0x31_0000_0000;
/// Address space of one server's view.
pub const VIEW_STRIDE: u64 = 0x4000;

unsafe extern "C" {
    /// End of this image, page aligned; the boot archive starts here.
    static __image_end: u8;
}

/// Address behind this image.
pub fn image_end() -> u64 {
    (&raw const __image_end).addr() as u64
}

/// `length` bytes behind this image.
///
/// # Safety
///
/// The kernel mapped that many bytes there: the caller compared with the image frames of BootInfo.
pub unsafe fn behind_image(length: usize) -> &'static [u8] {
    // SAFETY: mapped by the contract, for good, and never written by anyone: no code of the root-task has an address of it.
    unsafe { core::slice::from_raw_parts(&raw const __image_end, length) }
}

/// Writes `bytes` at `offset` of the frame mapped at [`SCRATCH_VADDR`].
///
/// # Panics
///
/// If that is outside the page.
pub fn fill_scratch(offset: usize, bytes: &[u8]) {
    assert!(offset + bytes.len() <= PAGE_SIZE as usize, "outside the scratch page");
    let start = core::ptr::with_exposed_provenance_mut::<u8>(SCRATCH_VADDR as usize + offset);
    // SAFETY: inside one page by the assertion; nothing but frames being filled is ever mapped there (otherwise the write
    // faults), and no reference into it exists.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
}

/// Writes four words of 32 bits to the registers at `offset` of the page mapped at [`SCRATCH_VADDR`], in their order.
///
/// # Panics
///
/// If that is outside the page, or not aligned to words.
pub fn write_registers(offset: usize, words: [u32; 4]) {
    assert!(offset + size_of_val(&words) <= PAGE_SIZE as usize && offset.is_multiple_of(4));
    for (index, word) in words.into_iter().enumerate() {
        let at = SCRATCH_VADDR as usize + offset + index * size_of::<u32>();
        let register = core::ptr::with_exposed_provenance_mut::<u32>(at);
        // SAFETY: aligned and inside one page by the assertion; the page is registers mapped for this (otherwise the write
        // faults), to which no reference exists.
        unsafe { register.write_volatile(word) };
    }
}

/// The ring mapped at [`RING_VADDR`].
pub fn ring() -> &'static [AtomicU64] {
    // SAFETY: called between mapping and unmapping a whole ring there; the slice is used in between only; no other object.
    unsafe { runtime::shared::words(RING_VADDR, protocol::ring::BLK_RING_BYTES as u64) }
}

/// Which page of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewPage {
    /// The page of counters and flags.
    Shared,
    /// The log page.
    Log,
    /// The console page.
    Console,
}

/// Address of a page of server `index`'s view.
pub const fn view_vaddr(index: usize, page: ViewPage) -> u64 {
    VIEW_VADDR + VIEW_STRIDE * index as u64 + page as u64 * PAGE_SIZE
}

/// A page of the view of a server that exists. A use faults if it does not.
pub fn view(index: usize, page: ViewPage) -> &'static [AtomicU64] {
    // SAFETY: pages of servers are mapped there from their making to their end and nothing else ever is; the event loop asks
    // only for servers it holds; atomics, so that the server may write meanwhile.
    unsafe { runtime::shared::words(view_vaddr(index, page), PAGE_SIZE) }
}

/// The log page of the root-task itself.
pub fn own_log() -> &'static [AtomicU64] {
    static PAGE: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];
    &PAGE
}
