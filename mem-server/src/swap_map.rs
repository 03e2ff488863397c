//! Which slots of the swap area are in use, and which the disk fails at.

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
    /// Slots whose last write failed.
    suspects: heapless::Vec<u32, BAD_SLOTS>,
    /// Slots whose last two writes failed: they stay used and are nobody's.
    retired: u32,
}

impl<'a> SwapMap<'a> {
    /// `slots` free slots, at most as many as there are bits.
    pub fn new(bits: &'a mut [u64], slots: u32) -> Self {
        bits.fill(0);
        let slots = slots.min(bits.len() as u32 * 64);
        Self {
            bits,
            slots,
            used: 0,
            hand: 0,
            bad: heapless::Vec::new(),
            suspects: heapless::Vec::new(),
            retired: 0,
        }
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

    /// Slots that nobody gets again.
    pub fn bad(&self) -> u32 {
        self.bad.len() as u32 + self.retired
    }

    /// A slot in use was written.
    pub fn written(&mut self, slot: u32) {
        if let Some(at) = self.suspects.iter().position(|suspect| *suspect == slot) {
            self.suspects.swap_remove(at);
        }
    }

    /// A slot in use was not written, and its page is elsewhere. It is free again and its turn comes after all others; if that write
    /// fails too nobody gets it any more. So a disk that fails for a while costs no slots, and a bad sector costs two writes. With more
    /// than [`BAD_SLOTS`] in doubt at once it is the disk that fails, and no more are noted.
    pub fn write_failed(&mut self, slot: u32) {
        if let Some(at) = self.suspects.iter().position(|suspect| *suspect == slot) {
            self.suspects.swap_remove(at);
            self.retired += 1;
            return;
        }
        let _ = self.suspects.push(slot);
        self.free(slot);
    }

    /// The disk could not read a slot in use: nobody gets it again, whoever gives it back. Past [`BAD_SLOTS`] it is forgotten.
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_slot_is_retired_when_it_is_not_written_twice() {
        let mut bits = [0; 1];
        let mut map = SwapMap::new(&mut bits, 4);
        let write = |map: &mut SwapMap<'_>, bad: u32| {
            let slot = map.take().unwrap();
            if slot == bad {
                map.write_failed(slot)
            } else {
                map.written(slot)
            }
            if slot != bad {
                map.free(slot);
            }
            slot
        };
        // Its turn comes when all others have had theirs.
        let given: Vec<u32> = (0..12).map(|_| write(&mut map, 2)).collect();
        assert_eq!(given, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 3, 0]);
        assert_eq!((map.used(), map.bad()), (1, 1));
    }

    #[test]
    fn a_disk_that_failed_for_a_while_has_all_its_slots() {
        let slots = 2 * BAD_SLOTS as u32;
        let mut bits = [0; 2];
        let mut map = SwapMap::new(&mut bits, slots);
        for _ in 0..slots {
            let slot = map.take().unwrap();
            map.write_failed(slot);
        }
        assert_eq!((map.used(), map.bad()), (0, 0));
        for _ in 0..2 {
            for expected in 0..slots {
                let slot = map.take().unwrap();
                assert_eq!(slot, expected);
                map.written(slot);
                map.free(slot);
            }
        }
        // What failed before and was written since is in doubt no more.
        let slot = map.take().unwrap();
        map.write_failed(slot);
        assert_eq!((map.used(), map.bad()), (0, 0));
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
