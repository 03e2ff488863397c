//! The server's own view of machine memory: all frames by 2 MiB pages, and the tables at start.
// UNSAFETY: turns fixed addresses of the server's own address space into memory.
#![expect(unsafe_code, reason = "frames are named by address")]

use core::sync::atomic::{AtomicU64, Ordering};

use mem_server::hash::{self, Key, PAGE_WORDS};
use mem_server::page::{FRAME_BYTES, FRAMES_PER_BLOCK, Frame};
use protocol::startup::MEM_FREE_VADDR;
use protocol::units::LARGE_PAGE_SIZE;

/// Where block 0 is seen.
const VIEW: u64 = MEM_FREE_VADDR;
/// Where the tables lie: above the view of the most blocks there can be (128 GiB).
const TABLES: u64 = MEM_FREE_VADDR + (128 << 30);

/// Words looked at between two decisions to go on.
const LINE: usize = 8;

/// Address at which a block is seen.
pub const fn block_vaddr(block: u32) -> u64 {
    VIEW + block as u64 * LARGE_PAGE_SIZE
}

/// Address of the tables' 2 MiB page `index`.
pub const fn table_vaddr(index: u64) -> u64 {
    TABLES + index * LARGE_PAGE_SIZE
}

/// Access to frames. Bytes may change under it while a guest runs on another core; whoever needs them
/// still takes the guest's right to write first.
pub struct View {
    blocks: u32,
}

impl View {
    /// The view of `blocks` blocks.
    ///
    /// # Safety
    ///
    /// 1. Each block in use is mapped read-write at [`block_vaddr`], for good.
    /// 2. No Rust object lies there, and there is one `View`.
    pub const unsafe fn new(blocks: u32) -> Self {
        Self { blocks }
    }

    #[inline(always)]
    fn start(&self, frame: Frame) -> *mut u64 {
        assert!(frame.0 < self.blocks * FRAMES_PER_BLOCK, "frame beyond the machine");
        core::ptr::with_exposed_provenance_mut((VIEW + (u64::from(frame.0) << 12)) as usize)
    }

    /// Fills a frame with zeros.
    #[inline]
    pub fn zero(&mut self, frame: Frame) {
        // SAFETY: a whole frame inside the view (checked by `start`), mapped by `new` 1; no object there by 2.
        unsafe { core::ptr::write_bytes(self.start(frame).cast::<u8>(), 0, FRAME_BYTES) }
    }

    /// Copies a frame onto another.
    pub fn copy(&mut self, from: Frame, to: Frame) {
        // SAFETY: as in `zero`; frames overlap only if they are the same, which `copy` allows.
        unsafe {
            core::ptr::copy(self.start(from).cast::<u8>(), self.start(to).cast(), FRAME_BYTES)
        }
    }

    #[inline(always)]
    fn words(&self, frame: Frame) -> impl Fn(usize) -> u64 {
        let start = self.start(frame);
        move |index| {
            assert!(index < PAGE_WORDS);
            // SAFETY: inside the frame, which is mapped; volatile because a guest may write it meanwhile.
            unsafe { start.add(index).read_volatile() }
        }
    }

    /// Whether a frame holds only zeros.
    pub fn is_zero(&self, frame: Frame) -> bool {
        let word = self.words(frame);
        (0..PAGE_WORDS)
            .step_by(LINE)
            .all(|line| (line..line + LINE).fold(0, |bits, index| bits | word(index)) == 0)
    }

    /// Keyed hash of a frame.
    pub fn hash(&self, frame: Frame, key: u64) -> u64 {
        hash::page(self.words(frame), &Key::new(key))
    }

    /// Whether two frames hold the same bytes.
    pub fn equal(&self, a: Frame, b: Frame) -> bool {
        let (a, b) = (self.words(a), self.words(b));
        let same = |index: usize| a(index) == b(index);
        (0..PAGE_WORDS)
            .step_by(4)
            .all(|at| same(at) && same(at + 1) && same(at + 2) && same(at + 3))
    }

    /// Reads a frame.
    pub fn load(&self, frame: Frame, bytes: &mut [u8; FRAME_BYTES]) {
        let word = self.words(frame);
        for (index, place) in bytes.chunks_exact_mut(8).enumerate() {
            place.copy_from_slice(&word(index).to_le_bytes());
        }
    }

    /// Copies a frame into shared memory of a page's size.
    pub fn copy_out(&self, frame: Frame, to: &[AtomicU64]) {
        let word = self.words(frame);
        for (index, place) in to.iter().enumerate().take(PAGE_WORDS) {
            place.store(word(index), Ordering::Relaxed);
        }
    }

    /// Copies a page into shared memory of its size.
    pub fn copy_bytes_out(bytes: &[u8; FRAME_BYTES], to: &[AtomicU64]) {
        for (word, place) in bytes.as_chunks().0.iter().zip(to) {
            place.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    /// Fills a frame from shared memory of a page's size.
    pub fn copy_in(&mut self, frame: Frame, from: &[AtomicU64]) {
        let start = self.start(frame);
        for (index, word) in from.iter().enumerate().take(PAGE_WORDS) {
            // SAFETY: inside the frame, as in `words`; no object lies there.
            unsafe { start.add(index).write_volatile(word.load(Ordering::Relaxed)) }
        }
    }

    /// Writes a frame.
    pub fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]) {
        // SAFETY: as in `zero`; `bytes` is a Rust object and so lies outside the view.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start(frame).cast(), FRAME_BYTES);
        }
    }
}

/// Hands out the tables' memory once, from its start on.
pub struct TableMemory {
    next: u64,
    end: u64,
}

impl TableMemory {
    /// Over `pages` 2 MiB pages.
    ///
    /// # Safety
    ///
    /// The pages are mapped read-write at [`table_vaddr`] for good, and this is the only `TableMemory`.
    pub const unsafe fn new(pages: u64) -> Self {
        Self { next: TABLES, end: table_vaddr(pages) }
    }

    /// `count` values, each made by `make`; `None` if there is no room.
    pub fn take<T>(&mut self, count: usize, make: impl Fn() -> T) -> Option<&'static mut [T]> {
        let start = self.next.next_multiple_of(align_of::<T>() as u64);
        let bytes = (size_of::<T>() as u64).checked_mul(count as u64)?;
        let end = start.checked_add(bytes).filter(|end| *end <= self.end)?;
        self.next = end;
        let first = core::ptr::with_exposed_provenance_mut::<T>(start as usize);
        for index in 0..count {
            // SAFETY: inside memory that is mapped and, `next` having passed it, nobody else's; aligned above.
            unsafe { first.add(index).write(make()) }
        }
        // SAFETY: `count` values were just written there; the memory is never handed out again.
        Some(unsafe { core::slice::from_raw_parts_mut(first, count) })
    }
}
