//! Untyped memory as a buddy system: blocks of 2^n bytes, split and merged by retype and revoke.
//!
//! A block in use belongs to one owner. Giving it back revokes it, which deletes everything ever made of it, wherever the
//! capabilities went; so a server's memory returns whole however the server ended.

use crate::slots::{Run, Slots};
use heapless::Vec;

/// Most blocks, split ones included: each split adds two.
pub const BLOCKS_MAX: usize = 512;
/// Smallest block handed out: 4 KiB.
pub const BLOCK_BITS_MIN: u8 = 12;

/// What the buddy system asks of the kernel.
pub trait Kernel {
    /// Makes two untypeds of 2^`bits` bytes from untyped `parent` in slots `first` and `first + 1`.
    fn split(&mut self, parent: u64, bits: u8, first: u64) -> bool;
    /// Deletes everything derived from untyped `slot`.
    fn revoke(&mut self, slot: u64);
}

/// Index of a block.
pub type BlockId = u16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unused,
    Free,
    Taken,
    Split { low: BlockId, high: BlockId },
}

#[derive(Clone, Copy, Debug)]
struct Node {
    slot: u64,
    paddr: u64,
    bits: u8,
    state: State,
    parent: Option<BlockId>,
}

/// A block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its index.
    pub id: BlockId,
    /// Slot of its untyped capability.
    pub slot: u64,
    /// First physical address.
    pub paddr: u64,
    /// log2 of its bytes.
    pub bits: u8,
}

/// All blocks.
#[derive(Debug)]
pub struct Untypeds {
    nodes: Vec<Node, BLOCKS_MAX>,
}

impl Untypeds {
    /// No memory yet.
    pub const fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// Takes over a whole untyped. `false` if the table is full or the untyped too small to be of use.
    pub fn add(&mut self, slot: u64, paddr: u64, bits: u8) -> bool {
        if bits < BLOCK_BITS_MIN {
            return false;
        }
        self.insert(Node { slot, paddr, bits, state: State::Free, parent: None }).is_some()
    }

    fn insert(&mut self, node: Node) -> Option<BlockId> {
        let unused = self.nodes.iter().position(|node| node.state == State::Unused);
        let index = match unused {
            Some(index) => {
                *self.nodes.get_mut(index)? = node;
                index
            }
            None => {
                self.nodes.push(node).ok()?;
                self.nodes.len() - 1
            }
        };
        BlockId::try_from(index).ok()
    }

    fn node(&self, id: BlockId) -> &Node {
        &self.nodes[usize::from(id)]
    }

    fn node_mut(&mut self, id: BlockId) -> &mut Node {
        &mut self.nodes[usize::from(id)]
    }

    /// Free bytes.
    pub fn free_bytes(&self) -> u64 {
        self.nodes
            .iter()
            .filter(|node| node.state == State::Free)
            .map(|node| 1u64 << node.bits)
            .sum()
    }

    /// The free block of at least 2^`bits` bytes that wastes least; of those the highest, so that low memory stays whole.
    fn best_fit(&self, bits: u8) -> Option<BlockId> {
        let fits = |node: &&Node| node.state == State::Free && node.bits >= bits;
        let best = self.nodes.iter().filter(fits).min_by_key(|node| (node.bits, !node.paddr))?;
        let index = self.nodes.iter().position(|node| core::ptr::eq(node, best))?;
        BlockId::try_from(index).ok()
    }

    fn block(&self, id: BlockId) -> Block {
        let node = self.node(id);
        Block { id, slot: node.slot, paddr: node.paddr, bits: node.bits }
    }

    fn split(&mut self, id: BlockId, slots: &mut Slots, kernel: &mut impl Kernel) -> Option<()> {
        let node = *self.node(id);
        let bits = node.bits - 1;
        let run = slots.alloc(2)?;
        if !kernel.split(node.slot, bits, run.start) {
            slots.free(run);
            return None;
        }
        let half = |slot, paddr| Node { slot, paddr, bits, state: State::Free, parent: Some(id) };
        let low = self.insert(half(run.start, node.paddr));
        let high = self.insert(half(run.start + 1, node.paddr + (1 << bits)));
        match (low, high) {
            (Some(low), Some(high)) => self.node_mut(id).state = State::Split { low, high },
            (low, _) => {
                // The table is full: undo.
                if let Some(low) = low {
                    self.node_mut(low).state = State::Unused;
                }
                kernel.revoke(node.slot);
                slots.free(run);
                return None;
            }
        }
        Some(())
    }

    /// Takes a block of exactly 2^`bits` bytes, at least [`BLOCK_BITS_MIN`].
    pub fn alloc(
        &mut self,
        bits: u8,
        slots: &mut Slots,
        kernel: &mut impl Kernel,
    ) -> Option<Block> {
        let bits = bits.max(BLOCK_BITS_MIN);
        let mut id = self.best_fit(bits)?;
        while self.node(id).bits > bits {
            self.split(id, slots, kernel)?;
            let State::Split { high, .. } = self.node(id).state else { return None };
            id = high;
        }
        self.node_mut(id).state = State::Taken;
        Some(self.block(id))
    }

    /// Gives a block back: revokes it, and merges it with its other half if that is free too.
    ///
    /// # Panics
    ///
    /// If the block is not in use.
    pub fn free(&mut self, block: Block, slots: &mut Slots, kernel: &mut impl Kernel) {
        assert!(self.node(block.id).state == State::Taken, "block given back twice");
        kernel.revoke(block.slot);
        self.node_mut(block.id).state = State::Free;
        let mut id = block.id;
        while let Some(parent) = self.node(id).parent {
            let State::Split { low, high } = self.node(parent).state else { return };
            let is_free = |id: BlockId| self.node(id).state == State::Free;
            if !is_free(low) || !is_free(high) {
                return;
            }
            let parent_slot = self.node(parent).slot;
            kernel.revoke(parent_slot);
            slots.free(Run { start: self.node(low).slot, count: 1 });
            slots.free(Run { start: self.node(high).slot, count: 1 });
            self.node_mut(low).state = State::Unused;
            self.node_mut(high).state = State::Unused;
            self.node_mut(parent).state = State::Free;
            id = parent;
        }
    }

    /// Takes blocks of at least 2^`bits_min` bytes, largest first, until only about `keep` bytes are left free.
    pub fn take_surplus<const N: usize>(
        &mut self,
        keep: u64,
        bits_min: u8,
        slots: &mut Slots,
        kernel: &mut impl Kernel,
    ) -> Vec<Block, N> {
        let mut taken = Vec::new();
        let mut surplus = self.free_bytes().saturating_sub(keep);
        while surplus >= 1 << bits_min && !taken.is_full() {
            let largest = self
                .nodes
                .iter()
                .enumerate()
                .filter(|(_, node)| node.state == State::Free && node.bits >= bits_min)
                .max_by_key(|(_, node)| node.bits);
            let Some((index, node)) = largest else { break };
            let Ok(id) = BlockId::try_from(index) else { break };
            if 1u64 << node.bits > surplus {
                if node.bits == bits_min || self.split(id, slots, kernel).is_none() {
                    break;
                }
                continue;
            }
            surplus -= 1u64 << node.bits;
            self.node_mut(id).state = State::Taken;
            let _ = taken.push(self.block(id));
        }
        taken
    }
}

impl Default for Untypeds {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Model {
        splits: usize,
        revoked: std::vec::Vec<u64>,
    }

    impl Kernel for Model {
        fn split(&mut self, _: u64, _: u8, _: u64) -> bool {
            self.splits += 1;
            true
        }
        fn revoke(&mut self, slot: u64) {
            self.revoked.push(slot);
        }
    }

    fn machine() -> (Untypeds, Slots, Model) {
        let mut untypeds = Untypeds::new();
        let mut slots = Slots::new();
        slots.manage(100, 4000);
        assert!(untypeds.add(10, 0x100_0000, 24));
        assert!(untypeds.add(11, 0x200_0000, 20));
        (untypeds, slots, Model::default())
    }

    #[test]
    fn blocks_are_disjoint_and_merge_again() {
        let (mut untypeds, mut slots, mut kernel) = machine();
        let (total, free_slots) = (untypeds.free_bytes(), slots.free_count());
        let mut blocks = std::vec::Vec::new();
        for bits in [12, 13, 20, 14, 12, 21, 19, 16] {
            blocks.push(untypeds.alloc(bits, &mut slots, &mut kernel).unwrap());
        }
        for (index, a) in blocks.iter().enumerate() {
            for b in &blocks[..index] {
                let apart =
                    a.paddr + (1 << a.bits) <= b.paddr || b.paddr + (1 << b.bits) <= a.paddr;
                assert!(apart && a.slot != b.slot);
            }
            assert_eq!(a.paddr % (1 << a.bits), 0);
        }
        for block in blocks {
            untypeds.free(block, &mut slots, &mut kernel);
        }
        assert_eq!(untypeds.free_bytes(), total);
        assert_eq!(slots.free_count(), free_slots);
        assert!(untypeds.alloc(24, &mut slots, &mut kernel).is_some());
    }

    #[test]
    fn surplus_leaves_what_is_to_be_kept() {
        let (mut untypeds, mut slots, mut kernel) = machine();
        let keep = 5 << 20;
        let taken: Vec<Block, 64> = untypeds.take_surplus(keep, 21, &mut slots, &mut kernel);
        assert!(taken.iter().all(|block| block.bits >= 21));
        let left = untypeds.free_bytes();
        assert!(left >= keep && left < keep + (2 << 21), "{left:#x} left");
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let (mut untypeds, mut slots, mut kernel) = machine();
        assert_eq!(untypeds.alloc(25, &mut slots, &mut kernel), None);
    }
}
