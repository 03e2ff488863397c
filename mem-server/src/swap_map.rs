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
