//! Where pages go that are not in memory as they are: the compressed pool, and transfers to and from the swap area.

use crate::page::{FRAME_BYTES, Frame};

/// Bytes of a quarter of a frame: the unit the pool hands out.
const QUARTER: usize = FRAME_BYTES / 4;
/// What is in front of each compressed page: its length in 2 bytes, whose it is in 4.
const HEADER: usize = 6;
/// Bits of the page's number among the latter.
const INDEX_BITS: u32 = 24;
/// A page that compresses to more is not worth keeping compressed.
pub const COMPRESSED_MAX: usize = 2 * QUARTER - HEADER;

/// One frame of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolFrame {
    frame: u32,
    /// One bit per quarter in use; 0 means that the entry holds no frame.
    used: u8,
    /// One bit per quarter that starts a page of two quarters.
    long: u8,
    /// Given a page, or looked at, since the hand was here.
    fresh: bool,
}

const _: () = assert!(size_of::<PoolFrame>() == 8);

impl PoolFrame {
    /// No frame.
    pub const NONE: Self = Self { frame: 0, used: 0, long: 0, fresh: false };
}

/// What freeing a compressed page leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// Its frame holds others.
    Part,
    /// Its frame is empty and out of the pool.
    Frame(Frame),
}

/// Below this part of its frames free the pool is nearly full,
const LOW_PART: usize = 16;
/// and stays so until this part is.
const HIGH_PART: usize = 8;
/// Frames the clock hand passes in one call at most.
const HAND_STEPS: usize = 4096;

/// Handles of compressed pages: entry of the pool times four plus first quarter.
pub struct Pool<'a> {
    frames: &'a mut [PoolFrame],
    /// Where there may be room.
    gap: usize,
    /// The clock hand: what it comes by twice without a new page between is old.
    hand: usize,
    is_draining: bool,
    count: u32,
    pages: u32,
}

impl<'a> Pool<'a> {
    /// An empty pool of at most so many frames as there are entries.
    pub fn new(frames: &'a mut [PoolFrame]) -> Self {
        frames.fill(PoolFrame::NONE);
        Self { frames, gap: 0, hand: 0, is_draining: false, count: 0, pages: 0 }
    }

    /// Frames it holds.
    pub const fn frames(&self) -> u32 {
        self.count
    }

    /// Pages in it.
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// A place for a page of `length` compressed bytes in a frame the pool has.
    pub fn place(&mut self, length: usize) -> Option<u32> {
        if self.count == 0 || length > COMPRESSED_MAX {
            return None;
        }
        let quarters = (length + HEADER).div_ceil(QUARTER);
        // The last frame is where there is most likely room; a full search would cost more than a new frame.
        let at = self.gap;
        let used = self.frames[at].used;
        if used == 0 {
            return None;
        }
        let first = (0..=4 - quarters).find(|first| used >> first & ((1 << quarters) - 1) == 0)?;
        Some(self.mark(at, first, quarters))
    }

    /// Takes a new frame into the pool and a place in it. `None`, and the frame is not taken, if the pool is full.
    pub fn place_in_new(&mut self, length: usize, frame: Frame) -> Option<u32> {
        let quarters = (length + HEADER).div_ceil(QUARTER);
        let length = self.frames.len();
        if self.count as usize == length {
            return None;
        }
        let at = (0..length)
            .map(|step| (self.gap + step) % length)
            .find(|at| self.frames[*at].used == 0)?;
        self.frames[at].frame = frame.0;
        self.count += 1;
        self.gap = at;
        Some(self.mark(at, 0, quarters))
    }

    fn mark(&mut self, at: usize, first: usize, quarters: usize) -> u32 {
        let entry = &mut self.frames[at];
        entry.fresh = true;
        entry.used |= ((1 << quarters) - 1) << first;
        if quarters == 2 {
            entry.long |= 1 << first;
        }
        self.pages += 1;
        (at * 4 + first) as u32
    }

    /// Frame and byte offset of a page.
    pub fn locate(&self, handle: u32) -> (Frame, usize) {
        let entry = self.frames[handle as usize / 4];
        (Frame(entry.frame), handle as usize % 4 * QUARTER)
    }

    /// Entries there are.
    pub const fn entries(&self) -> usize {
        self.frames.len()
    }

    /// Frame of entry `at`, if it holds one.
    pub fn frame(&self, at: usize) -> Option<Frame> {
        self.frames.get(at).filter(|entry| entry.used != 0).map(|entry| Frame(entry.frame))
    }

    /// The pages of entry `at` are in another frame now.
    pub fn set_frame(&mut self, at: usize, frame: Frame) {
        if let Some(entry) = self.frames.get_mut(at) {
            entry.frame = frame.0;
        }
    }

    /// Whether old pages should make room: from a sixteenth of the frames free until an eighth is.
    pub const fn is_nearly_full(&mut self) -> bool {
        let all = self.frames.len();
        let free = all - self.count as usize;
        self.is_draining =
            free < all.div_ceil(LOW_PART) || self.is_draining && free < all.div_ceil(HIGH_PART);
        self.is_draining
    }

    /// The next entry that got no page while the hand went round. It is old again only after another round, whatever the
    /// caller does with it. `None` if there is none within [`HAND_STEPS`]; the next call goes on from there.
    pub fn next_old(&mut self) -> Option<usize> {
        for _ in 0..HAND_STEPS.min(2 * self.frames.len()) {
            let at = self.hand;
            self.hand = (at + 1) % self.frames.len();
            let entry = &mut self.frames[at];
            if entry.used != 0 {
                entry.fresh = !entry.fresh;
                if entry.fresh {
                    return Some(at);
                }
            }
        }
        None
    }

    /// Handles of the pages in entry `at`.
    pub fn handles(&self, at: usize) -> heapless::Vec<u32, 4> {
        let entry = self.frames[at];
        let (mut handles, mut first) = (heapless::Vec::new(), 0);
        while first < 4 {
            if entry.used >> first & 1 != 0 && handles.push((at * 4 + first) as u32).is_err() {
                break;
            }
            first += if entry.long >> first & 1 != 0 { 2 } else { 1 };
        }
        handles
    }

    /// Forgets a page.
    pub fn free(&mut self, handle: u32) -> Freed {
        let (at, first) = (handle as usize / 4, handle as usize % 4);
        let entry = &mut self.frames[at];
        let bits = if entry.long & 1 << first != 0 { 3 } else { 1 };
        entry.used &= !(bits << first);
        entry.long &= !(1 << first);
        self.pages -= 1;
        if entry.used != 0 {
            // The next page may fill the gap.
            self.gap = at;
            return Freed::Part;
        }
        self.count -= 1;
        Freed::Frame(Frame(entry.frame))
    }
}

/// Room the compressor wants for its output whatever the page: more than a page, should it not compress.
pub const SCRATCH: usize = 4608;

const _: () = assert!(SCRATCH >= lz4_flex::block::get_maximum_output_size(FRAME_BYTES));

/// Compresses a page; `None` if it needs more than [`COMPRESSED_MAX`].
pub fn compress(page: &[u8; FRAME_BYTES], out: &mut [u8; SCRATCH]) -> Option<usize> {
    let length = lz4_flex::block::compress_into(page, out).ok()?;
    (length <= COMPRESSED_MAX).then_some(length)
}

/// Whose a page is: VM, and the page's number in it.
pub type Owner = (u8, u32);

/// Writes a compressed page into its place in a frame's bytes.
pub fn pack(frame: &mut [u8; FRAME_BYTES], offset: usize, (vm, index): Owner, bytes: &[u8]) {
    let owner = u32::from(vm) << INDEX_BITS | index;
    frame[offset..offset + 2].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
    frame[offset + 2..offset + HEADER].copy_from_slice(&owner.to_le_bytes());
    frame[offset + HEADER..offset + HEADER + bytes.len()].copy_from_slice(bytes);
}

/// Whose page lies at a place in a frame's bytes.
pub fn owner(frame: &[u8; FRAME_BYTES], offset: usize) -> Owner {
    let mut word = [0; 4];
    word.copy_from_slice(&frame[offset + 2..offset + HEADER]);
    let word = u32::from_le_bytes(word);
    ((word >> INDEX_BITS) as u8, word & ((1 << INDEX_BITS) - 1))
}

/// Restores a page from its place in a frame's bytes; false if it is damaged.
pub fn unpack(frame: &[u8; FRAME_BYTES], offset: usize, page: &mut [u8; FRAME_BYTES]) -> bool {
    let length = usize::from(u16::from_le_bytes([frame[offset], frame[offset + 1]]));
    let start = offset + HEADER;
    let Some(bytes) = frame.get(start..start + length) else { return false };
    // A short result would leave bytes of whatever was in the buffer before.
    lz4_flex::block::decompress_into(bytes, page).is_ok_and(|length| length == FRAME_BYTES)
}

/// Transfers on their way at once.
pub const TRANSFERS: usize = 256;

/// A page on its way to or from the swap area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The page, unless it was forgotten or taken back meanwhile.
    pub page: Option<Owner>,
    /// The frame the device works on, if it is the transfer's to free.
    pub frame: Option<Frame>,
    /// The place in the compressed pool that the page keeps until it is written.
    pub packed: Option<u32>,
    /// The slot.
    pub slot: u32,
    /// To the swap area, not from it.
    pub out: bool,
    /// Somebody waits for the page.
    pub awaited: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{INCOMPRESSIBLE, bytes_of};
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn pages_survive_the_pool_bit_by_bit() {
        let mut frame = [0xaa; FRAME_BYTES];
        let mut packed = [0; SCRATCH];
        for tag in [0, 1, 0x1234_5678_9abc_def0 >> 1] {
            let page = bytes_of(tag);
            let length = compress(&page, &mut packed).unwrap();
            let whose = (15, (1 << INDEX_BITS) - 2);
            pack(&mut frame, QUARTER, whose, &packed[..length]);
            assert_eq!(owner(&frame, QUARTER), whose);
            let mut back = [0x55; FRAME_BYTES];
            assert!(unpack(&frame, QUARTER, &mut back));
            assert!(back == page);
        }
        assert_eq!(compress(&bytes_of(INCOMPRESSIBLE | 7), &mut packed), None);
    }

    #[test]
    fn damage_is_noticed_and_shows_no_old_bytes() {
        let mut frame = [0xff; FRAME_BYTES];
        let mut page = [0; FRAME_BYTES];
        assert!(!unpack(&frame, 0, &mut page));
        let mut packed = [0; SCRATCH];
        let length = compress(&bytes_of(3), &mut packed).unwrap();
        pack(&mut frame, 0, (1, 2), &packed[..length]);
        frame[0] -= 1;
        assert!(!unpack(&frame, 0, &mut page));
    }

    proptest! {
        #[test]
        fn the_pool_gives_no_byte_twice(
            steps in prop::collection::vec((any::<bool>(), 1usize..COMPRESSED_MAX), 1..200),
        ) {
            let mut entries = [PoolFrame::NONE; 4];
            let mut pool = Pool::new(&mut entries);
            let mut next = 100;
            let mut held: HashMap<u32, (Frame, usize, usize)> = HashMap::new();
            for (free, length) in steps {
                if free {
                    if let Some(handle) = held.keys().copied().min() {
                        let (frame, ..) = held.remove(&handle).unwrap();
                        let last = held.values().all(|(other, ..)| *other != frame);
                        let freed = pool.free(handle);
                        prop_assert_eq!(freed, if last { Freed::Frame(frame) } else { Freed::Part });
                    }
                } else {
                    let handle = pool.place(length).or_else(|| {
                        next += 1;
                        pool.place_in_new(length, Frame(next))
                    });
                    if let Some(handle) = handle {
                        let (frame, offset) = pool.locate(handle);
                        let end = offset + length + HEADER;
                        prop_assert!(end <= FRAME_BYTES);
                        for (other, first, last) in held.values() {
                            prop_assert!(*other != frame || end <= *first || *last <= offset);
                        }
                        prop_assert!(held.insert(handle, (frame, offset, end)).is_none());
                    }
                }
                prop_assert_eq!(pool.pages() as usize, held.len());
                let mut frames: Vec<_> = held.values().map(|(frame, ..)| frame.0).collect();
                frames.sort_unstable();
                frames.dedup();
                prop_assert_eq!(pool.frames() as usize, frames.len());
            }
        }
    }
}
