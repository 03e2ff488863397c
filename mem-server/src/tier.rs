//! Where pages go that are not in memory as they are: the compressed pool and the swap area.

use crate::page::{FRAME_BYTES, Frame};

/// Bytes of a quarter of a frame: the unit the pool hands out.
const QUARTER: usize = FRAME_BYTES / 4;
/// Length in front of each compressed page.
const HEADER: usize = 2;
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
}

impl PoolFrame {
    /// No frame.
    pub const NONE: Self = Self { frame: 0, used: 0, long: 0 };
}

/// What freeing a compressed page leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// Its frame holds others.
    Part,
    /// Its frame is empty and out of the pool.
    Frame(Frame),
}

/// Handles of compressed pages: entry of the pool times four plus first quarter.
pub struct Pool<'a> {
    frames: &'a mut [PoolFrame],
    hand: usize,
    count: u32,
    pages: u32,
}

impl<'a> Pool<'a> {
    /// An empty pool of at most so many frames as there are entries.
    pub fn new(frames: &'a mut [PoolFrame]) -> Self {
        frames.fill(PoolFrame::NONE);
        Self { frames, hand: 0, count: 0, pages: 0 }
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
        let at = self.hand;
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
        let at = (0..length)
            .map(|step| (self.hand + step) % length)
            .find(|at| self.frames[*at].used == 0)?;
        self.frames[at].frame = frame.0;
        self.count += 1;
        self.hand = at;
        Some(self.mark(at, 0, quarters))
    }

    fn mark(&mut self, at: usize, first: usize, quarters: usize) -> u32 {
        let entry = &mut self.frames[at];
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
            self.hand = at;
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

/// Writes a compressed page into its place in a frame's bytes.
pub fn pack(frame: &mut [u8; FRAME_BYTES], offset: usize, bytes: &[u8]) {
    frame[offset..offset + HEADER].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
    frame[offset + HEADER..offset + HEADER + bytes.len()].copy_from_slice(bytes);
}

/// Restores a page from its place in a frame's bytes; false if it is damaged.
pub fn unpack(frame: &[u8; FRAME_BYTES], offset: usize, page: &mut [u8; FRAME_BYTES]) -> bool {
    let length = usize::from(u16::from_le_bytes([frame[offset], frame[offset + 1]]));
    let start = offset + HEADER;
    let Some(bytes) = frame.get(start..start + length) else { return false };
    // A short result would leave bytes of whatever was in the buffer before.
    lz4_flex::block::decompress_into(bytes, page).is_ok_and(|length| length == FRAME_BYTES)
}

/// Bad slots the swap map can remember. A disk with more of them serves nobody for long.
const BAD_SLOTS: usize = 64;

/// Slots of the swap area.
pub struct SwapMap<'a> {
    /// One bit per slot, set if used.
    bits: &'a mut [u64],
    slots: u32,
    used: u32,
    hand: u32,
    /// Slots the disk could not read: they stay used.
    bad: heapless::Vec<u32, BAD_SLOTS>,
}

impl<'a> SwapMap<'a> {
    /// `slots` free slots, at most as many as there are bits.
    pub fn new(bits: &'a mut [u64], slots: u32) -> Self {
        bits.fill(0);
        let slots = slots.min(bits.len() as u32 * 64);
        Self { bits, slots, used: 0, hand: 0, bad: heapless::Vec::new() }
    }

    /// The area has `slots` slots, at most as many as there are bits; what was taken stays taken.
    pub fn resize(&mut self, slots: u32) {
        self.slots = slots.min(self.bits.len() as u32 * 64);
        self.hand = 0;
    }

    /// Slots there are.
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Slots in use, with those that turned out to be bad.
    pub const fn used(&self) -> u32 {
        self.used
    }

    fn is_used(&self, slot: u32) -> bool {
        self.bits[slot as usize / 64] & 1 << (slot % 64) != 0
    }

    /// A free slot, following the last one given so that writes of a row lie beside each other.
    pub fn take(&mut self) -> Option<u32> {
        if self.used == self.slots {
            return None;
        }
        let slot = (0..self.slots)
            .map(|step| (self.hand + step) % self.slots)
            .find(|slot| !self.is_used(*slot))?;
        self.bits[slot as usize / 64] |= 1 << (slot % 64);
        self.used += 1;
        self.hand = (slot + 1) % self.slots;
        Some(slot)
    }

    /// The disk failed at a slot in use: nobody gets it again, whoever gives it back. Past [`BAD_SLOTS`] it is forgotten.
    pub fn condemn(&mut self, slot: u32) {
        if !self.bad.contains(&slot) {
            let _ = self.bad.push(slot);
        }
    }

    /// Gives a slot back.
    pub fn free(&mut self, slot: u32) {
        if slot < self.slots && self.is_used(slot) && !self.bad.contains(&slot) {
            self.bits[slot as usize / 64] &= !(1 << (slot % 64));
            self.used -= 1;
        }
    }
}

/// Transfers on their way at once.
pub const TRANSFERS: usize = 256;

/// A page on its way to or from the swap area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The page, unless it was forgotten or taken back meanwhile.
    pub page: Option<(u8, u32)>,
    /// The frame the device works on, if it is the transfer's to free.
    pub frame: Option<Frame>,
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
            pack(&mut frame, QUARTER, &packed[..length]);
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
        pack(&mut frame, 0, &packed[..length]);
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

    #[test]
    fn swap_slots_run_in_rows_and_come_back() {
        let mut bits = [0; 2];
        let mut map = SwapMap::new(&mut bits, 100);
        let row: Vec<u32> = (0..100).map(|_| map.take().unwrap()).collect();
        assert_eq!(row, (0..100).collect::<Vec<_>>());
        assert_eq!(map.take(), None);
        map.free(7);
        map.free(7);
        assert_eq!((map.used(), map.take(), map.take()), (99, Some(7), None));
    }

    #[test]
    fn a_bad_slot_is_not_given_again() {
        let mut bits = [0; 1];
        let mut map = SwapMap::new(&mut bits, 4);
        for slot in 0..4 {
            assert_eq!(map.take(), Some(slot));
        }
        // Still somebody's when it turns out to be bad, and told twice.
        map.condemn(2);
        map.condemn(2);
        for slot in 0..4 {
            map.free(slot);
        }
        let given: Vec<_> = core::iter::from_fn(|| map.take()).collect();
        assert_eq!((given.len(), given.contains(&2), map.used()), (3, false, 4));
    }

    #[test]
    fn however_many_slots_are_bad_the_others_are_given() {
        let slots = BAD_SLOTS as u32 + 10;
        let mut bits = [0; 3];
        let mut map = SwapMap::new(&mut bits, slots);
        while let Some(slot) = map.take() {
            map.condemn(slot);
        }
        // Those it has no room to remember are given again.
        (0..slots).for_each(|slot| map.free(slot));
        assert_eq!(core::iter::from_fn(|| map.take()).count(), 10);
    }
}
