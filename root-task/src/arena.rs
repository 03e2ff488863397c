//! Memory and slots of one owner, given back together.
//!
//! An arena holds blocks and places objects in them as the kernel does: each untyped has a watermark that only grows,
//! rounded up to the object's size. It also remembers which slots of the root-task's CSpace the owner's capabilities use.

use crate::slots::{Run, Slots};
use crate::untyped::{BLOCK_BITS_MIN, Block, Kernel, Untypeds};
use heapless::Vec;

/// Most blocks of one arena.
pub const ARENA_BLOCKS_MAX: usize = 12;
/// Most runs of slots of one arena.
pub const ARENA_RUNS_MAX: usize = 48;
/// Size of the block an arena grows by when an object does not fit: 64 KiB.
const GROWTH_BITS: u8 = 16;

#[derive(Clone, Copy, Debug)]
struct Part {
    block: Block,
    used: u64,
}

/// Memory and slots of one owner.
#[derive(Debug, Default)]
pub struct Arena {
    parts: Vec<Part, ARENA_BLOCKS_MAX>,
    runs: Vec<Run, ARENA_RUNS_MAX>,
}

/// Where an object goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Slot of the untyped to retype.
    pub untyped: u64,
    /// Physical address of the first object.
    pub paddr: u64,
}

/// Why an arena could not give what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Untyped memory for kernel objects and servers.
    Memory {
        /// Bytes asked for, in one piece.
        asked: u64,
        /// Bytes free, in whatever pieces.
        free: u64,
    },
    /// Slots of the root-task's CSpace.
    Slots {
        /// Neighbouring slots asked for.
        asked: u64,
        /// Slots free, wherever they are.
        free: u64,
    },
}

impl Arena {
    /// An empty arena.
    pub const fn new() -> Self {
        Self { parts: Vec::new(), runs: Vec::new() }
    }

    /// Bytes of the blocks held.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| 1u64 << part.block.bits).sum()
    }

    /// Takes blocks for at least `bytes`: the powers of two that add up to it, largest first.
    ///
    /// # Errors
    ///
    /// [`Shortage`]; what was taken stays and goes with [`Arena::release`].
    pub fn reserve(
        &mut self,
        bytes: u64,
        untypeds: &mut Untypeds,
        slots: &mut Slots,
        kernel: &mut impl Kernel,
    ) -> Result<(), Shortage> {
        let mut left = bytes.next_multiple_of(1 << GROWTH_BITS);
        while left > 0 {
            let bits = left.ilog2();
            self.grow(bits as u8, untypeds, slots, kernel)?;
            left -= 1 << bits;
        }
        Ok(())
    }

    fn grow(
        &mut self,
        bits: u8,
        untypeds: &mut Untypeds,
        slots: &mut Slots,
        kernel: &mut impl Kernel,
    ) -> Result<(), Shortage> {
        let short = Shortage::Memory { asked: 1 << bits, free: untypeds.free_bytes() };
        if self.parts.is_full() {
            return Err(short);
        }
        let block = untypeds.alloc(bits, slots, kernel).ok_or(short)?;
        let _ = self.parts.push(Part { block, used: 0 });
        Ok(())
    }

    /// Place for `count` objects of 2^`bits` bytes each, next to each other; grows if need be.
    ///
    /// # Errors
    ///
    /// [`Shortage`] of memory.
    pub fn place(
        &mut self,
        bits: u8,
        count: u64,
        untypeds: &mut Untypeds,
        slots: &mut Slots,
        kernel: &mut impl Kernel,
    ) -> Result<Place, Shortage> {
        if let Some(place) = self.try_place(bits, count) {
            return Ok(place);
        }
        let bytes = count << bits;
        let needed = bytes.next_power_of_two().ilog2() as u8;
        self.grow(needed.max(GROWTH_BITS).max(BLOCK_BITS_MIN), untypeds, slots, kernel)?;
        self.try_place(bits, count)
            .ok_or(Shortage::Memory { asked: bytes, free: untypeds.free_bytes() })
    }

    fn try_place(&mut self, bits: u8, count: u64) -> Option<Place> {
        self.parts.iter_mut().find_map(|part| {
            let start = part.used.next_multiple_of(1 << bits);
            let end = start + (count << bits);
            if end > 1 << part.block.bits {
                return None;
            }
            part.used = end;
            Some(Place { untyped: part.block.slot, paddr: part.block.paddr + start })
        })
    }

    /// Takes `count` neighbouring slots that go with this arena.
    ///
    /// # Errors
    ///
    /// [`Shortage`] of slots.
    pub fn slots(&mut self, count: u64, slots: &mut Slots) -> Result<Run, Shortage> {
        let short = Shortage::Slots { asked: count, free: slots.free_count() };
        let run = slots.alloc(count).ok_or(short)?;
        match self.runs.last_mut() {
            Some(last) if last.start + last.count == run.start => last.count += run.count,
            _ => {
                if self.runs.push(run).is_err() {
                    slots.free(run);
                    return Err(short);
                }
            }
        }
        Ok(run)
    }

    /// The runs of slots taken so far.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Gives everything back. Capabilities that were not made of the arena's memory (copies, minted badges) must have been
    /// deleted from its slots before.
    pub fn release(
        &mut self,
        untypeds: &mut Untypeds,
        slots: &mut Slots,
        kernel: &mut impl Kernel,
    ) {
        while let Some(part) = self.parts.pop() {
            untypeds.free(part.block, slots, kernel);
        }
        while let Some(run) = self.runs.pop() {
            slots.free(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Model;
    impl Kernel for Model {
        fn split(&mut self, _: u64, _: u8, _: u64) -> bool {
            true
        }
        fn revoke(&mut self, _: u64) {}
    }

    #[test]
    fn objects_are_aligned_disjoint_and_all_comes_back() {
        let mut untypeds = Untypeds::new();
        let mut slots = Slots::new();
        slots.manage(0, 1000);
        untypeds.add(0, 1 << 24, 24);
        let free = untypeds.free_bytes();
        let mut arena = Arena::new();
        arena.reserve(300 << 10, &mut untypeds, &mut slots, &mut Model).unwrap();
        assert_eq!(arena.bytes(), 320 << 10);
        let mut end = std::collections::BTreeMap::new();
        for (bits, count) in [(15, 1), (4, 3), (11, 1), (12, 40), (6, 2), (12, 30)] {
            let place = arena.place(bits, count, &mut untypeds, &mut slots, &mut Model).unwrap();
            assert_eq!(place.paddr % (1 << bits), 0);
            let watermark = end.entry(place.untyped).or_insert(0);
            assert!(place.paddr >= *watermark, "behind the untyped's watermark");
            *watermark = place.paddr + (count << bits);
        }
        let run = arena.slots(10, &mut slots).unwrap();
        assert_eq!(arena.slots(5, &mut slots).unwrap().start, run.start + 10);
        arena.release(&mut untypeds, &mut slots, &mut Model);
        assert_eq!((untypeds.free_bytes(), slots.free_count()), (free, 1000));
    }

    #[test]
    fn an_arena_grows_for_a_late_object() {
        let mut untypeds = Untypeds::new();
        let mut slots = Slots::new();
        slots.manage(0, 1000);
        untypeds.add(0, 1 << 24, 22);
        let mut arena = Arena::new();
        assert!(arena.place(12, 1, &mut untypeds, &mut slots, &mut Model).is_ok());
        assert!(arena.place(12, 256, &mut untypeds, &mut slots, &mut Model).is_ok());
        let too_much = arena.place(12, 4096, &mut untypeds, &mut slots, &mut Model);
        let free = untypeds.free_bytes();
        assert_eq!(too_much, Err(Shortage::Memory { asked: 16 << 20, free }));
    }
}
