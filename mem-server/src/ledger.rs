//! The frame ledger: who owns each machine frame, in 2 MiB blocks that split and heal.
//!
//! A block is wholly free, **reserved** for one 2 MiB region of one VM (page `n` of the region gets
//! frame `n` of the block, so that a fully populated region can be mapped as one large page without
//! copying), **open** (its free frames go to anybody), or held whole by the server itself. When no
//! free block is left reservations are broken, oldest first.

use crate::page::{FRAMES_PER_BLOCK, Frame};

/// End of a list, or no block.
pub const NONE: u32 = u32::MAX;
const WORDS: usize = FRAMES_PER_BLOCK as usize / 64;

/// Which list a block is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Wholly free.
    Empty,
    /// Reserved, with free frames.
    Reserved,
    /// Reserved, all frames used.
    ReservedFull,
    /// Open, with free frames.
    Open,
    /// Open, all frames used.
    OpenFull,
    /// Held by the server.
    Held,
    /// Its frames in use are being moved elsewhere; its free ones are nobody's.
    Leaving,
}

/// One 2 MiB block.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// One bit per frame, set if free.
    free: [u64; WORDS],
    count: u32,
    place: Place,
    /// Region it is reserved for: VM in the upper byte.
    owner: u32,
    previous: u32,
    next: u32,
}

impl Block {
    /// A wholly free block; the ledger links it.
    pub const EMPTY: Self = Self {
        free: [u64::MAX; WORDS],
        count: FRAMES_PER_BLOCK,
        place: Place::Empty,
        owner: NONE,
        previous: NONE,
        next: NONE,
    };
}

/// A region of a VM, as the owner of a reservation.
const fn owner(vm: u8, region: u32) -> u32 {
    (vm as u32) << 24 | region
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    length: u32,
}

impl List {
    const NEW: Self = Self { head: NONE, tail: NONE, length: 0 };
}

/// All machine frames.
pub struct Ledger<'a> {
    blocks: &'a mut [Block],
    empty: List,
    reserved: List,
    open: List,
    free: u32,
    held: u32,
}

impl<'a> Ledger<'a> {
    /// A ledger of wholly free blocks.
    pub fn new(blocks: &'a mut [Block]) -> Self {
        let mut ledger = Self {
            blocks,
            empty: List::NEW,
            reserved: List::NEW,
            open: List::NEW,
            free: 0,
            held: 0,
        };
        for index in 0..ledger.blocks.len() {
            ledger.blocks[index] = Block::EMPTY;
            ledger.push(index as u32, Place::Empty);
            ledger.free += FRAMES_PER_BLOCK;
        }
        ledger
    }

    /// All frames.
    pub fn total(&self) -> u32 {
        self.blocks.len() as u32 * FRAMES_PER_BLOCK
    }

    /// Free frames.
    #[inline]
    pub const fn free(&self) -> u32 {
        self.free
    }

    /// Frames in blocks the server holds.
    pub const fn held(&self) -> u32 {
        self.held * FRAMES_PER_BLOCK
    }

    /// Wholly free blocks.
    pub const fn empty_blocks(&self) -> u32 {
        self.empty.length
    }

    fn list(&mut self, place: Place) -> Option<&mut List> {
        match place {
            Place::Empty => Some(&mut self.empty),
            Place::Reserved => Some(&mut self.reserved),
            Place::Open => Some(&mut self.open),
            Place::ReservedFull | Place::OpenFull | Place::Held | Place::Leaving => None,
        }
    }

    fn push(&mut self, index: u32, place: Place) {
        self.blocks[index as usize].place = place;
        self.blocks[index as usize].next = NONE;
        let Some(list) = self.list(place) else { return };
        let tail = list.tail;
        list.tail = index;
        list.length += 1;
        if tail == NONE {
            list.head = index;
        } else {
            self.blocks[tail as usize].next = index;
        }
        self.blocks[index as usize].previous = tail;
    }

    fn unlink(&mut self, index: u32) {
        let Block { place, previous, next, .. } = self.blocks[index as usize];
        let Some(list) = self.list(place) else { return };
        list.length -= 1;
        if list.head == index {
            list.head = next;
        }
        if list.tail == index {
            list.tail = previous;
        }
        if previous != NONE {
            self.blocks[previous as usize].next = next;
        }
        if next != NONE {
            self.blocks[next as usize].previous = previous;
        }
    }

    fn take_bit(&mut self, index: u32, offset: u32) -> Frame {
        let block = &mut self.blocks[index as usize];
        block.free[offset as usize / 64] &= !(1 << (offset % 64));
        block.count -= 1;
        self.free -= 1;
        if block.count == 0 {
            let full =
                if block.place == Place::Reserved { Place::ReservedFull } else { Place::OpenFull };
            self.unlink(index);
            self.push(index, full);
        }
        Frame(index * FRAMES_PER_BLOCK + offset)
    }

    fn take_any(&mut self, index: u32) -> Frame {
        let block = &self.blocks[index as usize];
        let word = block.free.iter().position(|word| *word != 0).unwrap_or(0);
        let offset = word as u32 * 64 + block.free[word].trailing_zeros();
        self.take_bit(index, offset)
    }

    /// A frame for page `offset` of `region` of `vm`. `hint` is the block last answered for the region. Answers the
    /// frame, and the region's block if a reservation stands or was made.
    #[inline]
    pub fn allocate(
        &mut self,
        vm: u8,
        region: u32,
        offset: u32,
        hint: u32,
    ) -> Option<(Frame, u32)> {
        if let Some(block) = self.blocks.get(hint as usize)
            && block.place == Place::Reserved
            && block.owner == owner(vm, region)
            && block.free[offset as usize / 64] & 1 << (offset % 64) != 0
        {
            return Some((self.take_bit(hint, offset), hint));
        }
        self.allocate_slow(vm, region, offset, hint)
    }

    fn allocate_slow(
        &mut self,
        vm: u8,
        region: u32,
        offset: u32,
        hint: u32,
    ) -> Option<(Frame, u32)> {
        let stands = self.blocks.get(hint as usize).is_some_and(|block| {
            block.owner == owner(vm, region)
                && matches!(block.place, Place::Reserved | Place::ReservedFull)
        });
        if !stands && self.empty.head != NONE {
            let index = self.empty.head;
            self.unlink(index);
            self.blocks[index as usize].owner = owner(vm, region);
            self.push(index, Place::Reserved);
            return Some((self.take_bit(index, offset), index));
        }
        let kept = if stands { hint } else { NONE };
        self.allocate_any().map(|frame| (frame, kept))
    }

    /// Any frame: from open blocks, then a free block, then the oldest reservation.
    pub fn allocate_any(&mut self) -> Option<Frame> {
        if self.open.head != NONE {
            return Some(self.take_any(self.open.head));
        }
        let index = if self.empty.head != NONE { self.empty.head } else { self.reserved.head };
        if index == NONE {
            return None;
        }
        self.unlink(index);
        self.blocks[index as usize].owner = NONE;
        self.push(index, Place::Open);
        Some(self.take_any(index))
    }

    /// A frame below block `limit`, for devices that reach no further; reservations there are broken.
    pub fn allocate_below(&mut self, limit: u32) -> Option<Frame> {
        let end = limit.min(self.blocks.len() as u32);
        let index = (0..end).find(|index| {
            let block = &self.blocks[*index as usize];
            block.count > 0 && block.place != Place::Held
        })?;
        if self.blocks[index as usize].place != Place::Open {
            self.unlink(index);
            self.blocks[index as usize].owner = NONE;
            self.push(index, Place::Open);
        }
        Some(self.take_any(index))
    }

    /// Gives a frame back. False, and nothing changed, if it was not in use.
    pub fn free_frame(&mut self, frame: Frame) -> bool {
        let (index, offset) = (frame.block(), frame.offset());
        let Some(block) = self.blocks.get_mut(index as usize) else { return false };
        let bit = 1 << (offset % 64);
        if block.place == Place::Held || block.free[offset as usize / 64] & bit != 0 {
            return false;
        }
        block.free[offset as usize / 64] |= bit;
        block.count += 1;
        if block.place == Place::Leaving {
            return true;
        }
        self.free += 1;
        let place = if block.count == FRAMES_PER_BLOCK {
            Place::Empty
        } else {
            match block.place {
                Place::ReservedFull => Place::Reserved,
                Place::OpenFull => Place::Open,
                same => same,
            }
        };
        if place != self.blocks[index as usize].place {
            self.unlink(index);
            if place == Place::Empty {
                self.blocks[index as usize].owner = NONE;
            }
            self.push(index, place);
        }
        true
    }

    /// Takes a whole free block for the server itself.
    pub fn hold_block(&mut self) -> Option<u32> {
        let index = self.empty.tail;
        if index == NONE {
            return None;
        }
        self.unlink(index);
        self.push(index, Place::Held);
        self.held += 1;
        self.free -= FRAMES_PER_BLOCK;
        Some(index)
    }

    /// Gives a held block back. False, and nothing changed, if it was not held.
    pub fn release_block(&mut self, index: u32) -> bool {
        match self.blocks.get_mut(index as usize) {
            Some(block) if block.place == Place::Held => block.place = Place::Empty,
            _ => return false,
        }
        self.push(index, Place::Empty);
        self.held -= 1;
        self.free += FRAMES_PER_BLOCK;
        true
    }

    /// The block with the most free frames among those that are not wholly free and that `may` be emptied.
    pub fn emptiest(&self, may: impl Fn(u32) -> bool) -> Option<u32> {
        let partly = |index: &u32| {
            let block = &self.blocks[*index as usize];
            !matches!(block.place, Place::Empty | Place::Held | Place::Leaving) && may(*index)
        };
        let all = (0..self.blocks.len() as u32).filter(partly);
        all.max_by_key(|index| self.blocks[*index as usize].count)
    }

    /// Begins to empty a block: its free frames are given to nobody, and what is in use comes by [`Self::free_frame`].
    /// [`Self::end_leaving`] must follow.
    pub fn begin_leaving(&mut self, index: u32) {
        let Block { place, count, .. } = self.blocks[index as usize];
        if matches!(place, Place::Held | Place::Leaving) {
            return;
        }
        self.unlink(index);
        self.free -= count;
        self.blocks[index as usize].owner = NONE;
        self.push(index, Place::Leaving);
    }

    /// The block is wholly free now, or stays in use: false.
    pub fn end_leaving(&mut self, index: u32) -> bool {
        let Block { place, count, .. } = self.blocks[index as usize];
        if place != Place::Leaving {
            return false;
        }
        self.free += count;
        let place = match count {
            FRAMES_PER_BLOCK => Place::Empty,
            0 => Place::OpenFull,
            _ => Place::Open,
        };
        self.push(index, place);
        place == Place::Empty
    }

    /// Whether the block is the region's and all of its frames are in use: it can be mapped as one large page.
    pub fn is_whole(&self, vm: u8, region: u32, hint: u32) -> bool {
        self.blocks.get(hint as usize).is_some_and(|block| {
            block.place == Place::ReservedFull && block.owner == owner(vm, region)
        })
    }

    /// Free frames of the region's block, if the reservation stands.
    pub fn missing(&self, vm: u8, region: u32, hint: u32) -> Option<u32> {
        let block = self.blocks.get(hint as usize)?;
        let stands = matches!(block.place, Place::Reserved | Place::ReservedFull);
        (stands && block.owner == owner(vm, region)).then_some(block.count)
    }

    /// Whether a frame is free.
    pub fn is_free(&self, frame: Frame) -> bool {
        self.blocks.get(frame.block() as usize).is_some_and(|block| {
            block.place != Place::Held
                && block.free[frame.offset() as usize / 64] & 1 << (frame.offset() % 64) != 0
        })
    }

    /// Checks every count and list against the bitmaps.
    ///
    /// # Errors
    ///
    /// What does not agree.
    pub fn check(&self) -> Result<(), &'static str> {
        let mut free = 0;
        let mut held = 0;
        for block in self.blocks.iter() {
            let bits: u32 = block.free.iter().map(|word| word.count_ones()).sum();
            if bits != block.count {
                return Err("a block's count is not its bitmap's");
            }
            let fits = match block.place {
                Place::Empty => bits == FRAMES_PER_BLOCK && block.owner == NONE,
                Place::Reserved => bits > 0 && bits < FRAMES_PER_BLOCK && block.owner != NONE,
                Place::ReservedFull => bits == 0 && block.owner != NONE,
                Place::Open => bits > 0 && bits < FRAMES_PER_BLOCK && block.owner == NONE,
                Place::OpenFull => bits == 0 && block.owner == NONE,
                Place::Held => bits == FRAMES_PER_BLOCK,
                Place::Leaving => false,
            };
            if !fits {
                return Err("a block is on the wrong list");
            }
            if block.place == Place::Held {
                held += 1;
            } else {
                free += bits;
            }
        }
        if free != self.free || held != self.held {
            return Err("the ledger's sums are not its blocks'");
        }
        for (list, place) in
            [(self.empty, Place::Empty), (self.reserved, Place::Reserved), (self.open, Place::Open)]
        {
            let on = self.blocks.iter().filter(|block| block.place == place).count();
            let (mut at, mut previous, mut length) = (list.head, NONE, 0);
            while at != NONE {
                let block = &self.blocks[at as usize];
                if block.place != place || block.previous != previous || length > on {
                    return Err("a list is broken");
                }
                (previous, at, length) = (at, block.next, length + 1);
            }
            if length != on || list.length as usize != on || list.tail != previous {
                return Err("a list has lost a block");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_region_gets_its_block_in_place() {
        let mut blocks = [Block::EMPTY; 3];
        let mut ledger = Ledger::new(&mut blocks);
        let (first, hint) = ledger.allocate(1, 7, 100, NONE).unwrap();
        assert_eq!(first.offset(), 100);
        for offset in (0..512).filter(|offset| *offset != 100) {
            let (frame, block) = ledger.allocate(1, 7, offset, hint).unwrap();
            assert_eq!((frame.block(), frame.offset(), block), (first.block(), offset, hint));
        }
        assert!(ledger.is_whole(1, 7, hint));
        assert!(!ledger.is_whole(1, 8, hint));
        ledger.check().unwrap();
    }

    #[test]
    fn reservations_break_before_memory_is_called_short() {
        let mut blocks = [Block::EMPTY; 2];
        let mut ledger = Ledger::new(&mut blocks);
        let (_, a) = ledger.allocate(0, 0, 0, NONE).unwrap();
        let (_, b) = ledger.allocate(0, 1, 0, NONE).unwrap();
        for region in 2..1024 {
            let (_, hint) = ledger.allocate(0, region, 0, NONE).unwrap();
            assert_eq!(hint, NONE);
            ledger.check().unwrap();
        }
        assert_eq!(ledger.free(), 0);
        assert_eq!(ledger.allocate(0, 0, 1, a), None);
        assert_eq!(ledger.allocate(0, 1, 1, b), None);
    }

    #[test]
    fn low_frames_come_from_low_blocks_only() {
        let mut blocks = [Block::EMPTY; 3];
        let mut ledger = Ledger::new(&mut blocks);
        ledger.allocate(0, 0, 7, NONE).unwrap();
        for _ in 0..511 {
            assert_eq!(ledger.allocate_below(1).unwrap().block(), 0);
            ledger.check().unwrap();
        }
        assert_eq!(ledger.allocate_below(1), None);
    }

    proptest! {
        #[test]
        fn no_frame_is_given_twice_and_all_come_back(
            steps in prop::collection::vec((0u8..6, 0u8..2, 0u32..3, 0u32..512), 1..400),
        ) {
            let mut blocks = [Block::EMPTY; 4];
            let mut ledger = Ledger::new(&mut blocks);
            let mut used = Vec::new();
            let mut hints = [[NONE; 3]; 2];
            let mut held = Vec::new();
            for (op, vm, region, offset) in steps {
                match op {
                    0..=1 => {
                        let hint = hints[vm as usize][region as usize];
                        if let Some((frame, hint)) = ledger.allocate(vm, region, offset, hint) {
                            prop_assert!(!used.contains(&frame));
                            used.push(frame);
                            hints[vm as usize][region as usize] = hint;
                        }
                    }
                    2 => if !used.is_empty() {
                        let frame = used.swap_remove(offset as usize % used.len());
                        prop_assert!(ledger.free_frame(frame));
                        prop_assert!(!ledger.free_frame(frame));
                    },
                    3 => match held.pop() {
                        Some(block) => prop_assert!(ledger.release_block(block)),
                        None => held.extend(ledger.hold_block()),
                    },
                    4 => if let Some(frame) = ledger.allocate_below(region + 1) {
                        prop_assert!(frame.block() <= region && !used.contains(&frame));
                        used.push(frame);
                    },
                    _ => if let Some(block) = ledger.emptiest(|block| block != region) {
                        ledger.begin_leaving(block);
                        let moves = used.iter_mut().filter(|frame| frame.block() == block);
                        // The last move may be missing: the block stays then.
                        for frame in moves.skip(offset as usize % 2) {
                            let Some(to) = ledger.allocate_any() else { break };
                            prop_assert_ne!(to.block(), block);
                            prop_assert!(ledger.free_frame(*frame));
                            *frame = to;
                        }
                        let left = used.iter().any(|frame| frame.block() == block);
                        prop_assert_eq!(ledger.end_leaving(block), !left);
                    },
                }
                prop_assert_eq!(ledger.check(), Ok(()));
                let sum = ledger.free() + ledger.held() + used.len() as u32;
                prop_assert_eq!(sum, ledger.total());
            }
            for frame in used {
                prop_assert!(ledger.free_frame(frame));
            }
            for block in held {
                prop_assert!(ledger.release_block(block));
            }
            prop_assert_eq!(ledger.empty_blocks(), 4);
            prop_assert_eq!(ledger.check(), Ok(()));
        }
    }
}
