//! Book-keeping of the root-task's own CSpace: which slots are free.

/// Most slots kept track of: an initial CNode of 2^16, enough beside an image of 200 MiB.
const SLOTS_MAX: usize = 1 << 16;
const WORDS: usize = SLOTS_MAX / 64;

/// A run of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First slot.
    pub start: u64,
    /// Number of slots.
    pub count: u64,
}

/// One bit per slot: set while it is in use.
#[derive(Debug)]
pub struct Slots {
    used: [u64; WORDS],
    first: u64,
    end: u64,
    rover: u64,
    free: u64,
}

impl Slots {
    /// No slot at all; [`Slots::manage`] says which there are.
    pub const fn new() -> Self {
        Self { used: [0; WORDS], first: 0, end: 0, rover: 0, free: 0 }
    }

    /// Takes over the empty slots `first..end`, all free.
    pub const fn manage(&mut self, first: u64, end: u64) {
        self.end = if end > SLOTS_MAX as u64 { SLOTS_MAX as u64 } else { end };
        self.first = if first > self.end { self.end } else { first };
        self.rover = self.first;
        self.free = self.end - self.first;
    }

    /// Free slots.
    pub const fn free_count(&self) -> u64 {
        self.free
    }

    fn is_used(&self, slot: u64) -> bool {
        let word = usize::try_from(slot / 64).ok().and_then(|index| self.used.get(index));
        word.is_none_or(|word| word >> (slot % 64) & 1 == 1)
    }

    fn mark(&mut self, run: Run, is_used: bool) {
        for slot in run.start..run.start + run.count {
            let index = usize::try_from(slot / 64).ok();
            if let Some(word) = index.and_then(|index| self.used.get_mut(index)) {
                let bit = 1 << (slot % 64);
                *word = if is_used { *word | bit } else { *word & !bit };
            }
        }
    }

    fn search(&self, from: u64, to: u64, count: u64) -> Option<u64> {
        let mut start = from;
        let mut length = 0;
        for slot in from..to {
            if self.is_used(slot) {
                length = 0;
                start = slot + 1;
                continue;
            }
            length += 1;
            if length == count {
                return Some(start);
            }
        }
        None
    }

    /// Takes `count` neighbouring slots; `None` if there is no such run.
    pub fn alloc(&mut self, count: u64) -> Option<Run> {
        if count == 0 {
            return None;
        }
        let start = self
            .search(self.rover, self.end, count)
            .or_else(|| self.search(self.first, self.end, count))?;
        let run = Run { start, count };
        self.mark(run, true);
        self.rover = start + count;
        self.free -= count;
        Some(run)
    }

    /// Gives a run back; its slots are empty.
    ///
    /// # Panics
    ///
    /// If a slot of it was not taken: the caller's accounts are wrong.
    pub fn free(&mut self, run: Run) {
        for slot in run.start..run.start + run.count {
            assert!(slot >= self.first && self.is_used(slot), "slot given back twice");
        }
        self.mark(run, false);
        self.free += run.count;
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_disjoint_and_come_back() {
        let mut slots = Slots::new();
        slots.manage(100, 300);
        let a = slots.alloc(64).unwrap();
        let b = slots.alloc(100).unwrap();
        assert!(a.start >= 100 && a.start + a.count <= b.start);
        assert_eq!(slots.alloc(37), None);
        slots.free(a);
        let c = slots.alloc(64).unwrap();
        assert_eq!(c, a);
        slots.free(b);
        slots.free(c);
        assert_eq!(slots.free_count(), 200);
        assert!(slots.alloc(200).is_some());
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_run_given_back_twice_is_noticed() {
        let mut slots = Slots::new();
        slots.manage(0, 64);
        let run = slots.alloc(2).unwrap();
        slots.free(run);
        slots.free(run);
    }
}
