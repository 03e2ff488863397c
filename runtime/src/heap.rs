//! A bump allocator over the heap of the start-up page, for libraries that insist on `alloc`.
//!
//! Memory is given back only if it was the last given out. Ballast's own code allocates nothing.
// UNSAFETY: implements GlobalAlloc over a fixed address range.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicU64, Ordering};

use protocol::startup::HEAP_VADDR;

static NEXT: AtomicU64 = AtomicU64::new(HEAP_VADDR);
static END: AtomicU64 = AtomicU64::new(HEAP_VADDR);

/// Sets the size of the heap; the entry code does this before `main`.
pub(crate) fn set_size(bytes: u64) {
    END.store(HEAP_VADDR + bytes, Ordering::Relaxed);
}

/// Bytes given out.
pub fn used() -> u64 {
    NEXT.load(Ordering::Relaxed) - HEAP_VADDR
}

/// The allocator.
#[derive(Debug)]
pub struct Bump;

// SAFETY: blocks are disjoint, since NEXT only grows past each one (and shrinks only over the last), aligned, and inside
// the range that the root-task mapped for the life of the server; a server is one thread.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = NEXT.load(Ordering::Relaxed).next_multiple_of(layout.align() as u64);
        let end = start + layout.size() as u64;
        if end > END.load(Ordering::Relaxed) {
            return core::ptr::null_mut();
        }
        NEXT.store(end, Ordering::Relaxed);
        core::ptr::with_exposed_provenance_mut(start as usize)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let start = block.addr() as u64;
        if start + layout.size() as u64 == NEXT.load(Ordering::Relaxed) {
            NEXT.store(start, Ordering::Relaxed);
        }
    }
}

#[cfg(target_os = "none")]
#[global_allocator]
static ALLOCATOR: Bump = Bump;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_disjoint_and_bounded() {
        set_size(4096);
        let layout = Layout::from_size_align(100, 64).unwrap();
        // SAFETY: the layout has a size; nothing is read or written through the pointers.
        let (a, b) = unsafe { (Bump.alloc(layout), Bump.alloc(layout)) };
        assert_eq!(a.addr() % 64, 0);
        assert_eq!(b.addr() - a.addr(), 128);
        // SAFETY: as above; `b` came from this allocator with this layout.
        unsafe { Bump.dealloc(b, layout) };
        assert_eq!(used(), 128);
        let huge = Layout::from_size_align(5000, 8).unwrap();
        // SAFETY: as above.
        assert!(unsafe { Bump.alloc(huge) }.is_null());
    }
}
