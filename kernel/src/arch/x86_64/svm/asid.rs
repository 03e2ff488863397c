//! Address space identifiers of guests: which tag a virtual CPU runs under, and when a core's TLB must be emptied.
//!
//! Rule: within one generation of a core an ASID is given out once, and a new generation starts with a flush of
//! everything. So whoever gets an ASID finds no translations under it, and flushing a guest is giving it a new ASID at its next entry.
//! (ASID 0 is the host's. Works without the flush-by-ASID feature, which TCG lacks.)

use core::cell::Cell;

use super::vmcb::tlb_control;

/// The ASIDs of one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsidPool {
    limit: u32,
    next: u32,
    generation: u64,
    /// Debug builds: the epoch each ASID has run under since the last flush, 0 = none. Two of them under one ASID would mean
    /// that a guest can use translations that are not its own, or no longer.
    #[cfg(debug_assertions)]
    epochs: [u64; CHECKED],
}

/// ASIDs that debug builds watch; TCG has 16.
#[cfg(debug_assertions)]
const CHECKED: usize = 64;

/// What a virtual CPU remembers of its last entry. Epochs are never used twice, so an epoch also names the nested root.
#[derive(Debug, Default)]
#[repr(C)]
pub struct AsidTag {
    /// Generation of the core's pool; 0 before the first entry.
    pub generation: Cell<u64>,
    /// Epoch of the nested root.
    pub epoch: Cell<u64>,
    /// Core.
    pub core: Cell<u32>,
    /// ASID.
    pub asid: Cell<u32>,
}

impl AsidPool {
    /// A core with ASIDs 1..`limit` (CPUID 8000_000Ah EBX); below 2 it has none.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        // The first assignment opens generation 2 and flushes what firmware may have left; generation 0 is no core's.
        Self {
            limit,
            next: limit,
            generation: 1,
            #[cfg(debug_assertions)]
            epochs: [0; CHECKED],
        }
    }

    /// Tells whether the core has no ASIDs.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.limit < 2
    }

    /// Tells whether the ASID in `tag` is clean for `epoch` on `core`.
    #[inline(always)]
    #[must_use]
    pub fn is_current(&self, tag: &AsidTag, core: u32, epoch: u64) -> bool {
        let is_current = tag.epoch.get() == epoch
            && tag.generation.get() == self.generation
            && tag.core.get() == core;
        #[cfg(debug_assertions)]
        if is_current && let Some(known) = self.epochs.get(tag.asid.get() as usize) {
            assert_eq!(*known, epoch, "ASID {} holds another epoch's translations", tag.asid.get());
        }
        is_current
    }

    /// Gives `tag` a new ASID; returns the TLB control value its first VMRUN needs, `None` if the core has no ASIDs.
    pub fn renew(&mut self, tag: &AsidTag, core: u32, epoch: u64) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        let mut control = tlb_control::NOTHING;
        if self.next >= self.limit {
            self.generation += 1;
            self.next = 1;
            control = tlb_control::FLUSH_ALL;
            #[cfg(debug_assertions)]
            self.epochs.fill(0);
        }
        #[cfg(debug_assertions)]
        if let Some(known) = self.epochs.get_mut(self.next as usize) {
            assert_eq!(*known, 0, "ASID {} is given out twice without a flush", self.next);
            *known = epoch;
        }
        tag.generation.set(self.generation);
        tag.epoch.set(epoch);
        tag.core.set(core);
        tag.asid.set(self.next);
        self.next += 1;
        Some(control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(pool: &mut AsidPool, tag: &AsidTag, core: u32, epoch: u64) -> u8 {
        if pool.is_current(tag, core, epoch) {
            return tlb_control::NOTHING;
        }
        pool.renew(tag, core, epoch).unwrap()
    }

    #[test]
    fn first_entry_flushes_and_second_keeps() {
        let mut pool = AsidPool::new(16);
        let tag = AsidTag::default();
        assert_eq!(assign(&mut pool, &tag, 0, 1), tlb_control::FLUSH_ALL);
        assert_eq!(tag.asid.get(), 1);
        assert_eq!(assign(&mut pool, &tag, 0, 1), tlb_control::NOTHING);
        assert_eq!(tag.asid.get(), 1);
    }

    #[test]
    fn no_asid_is_used_twice_without_a_flush() {
        let mut pool = AsidPool::new(16);
        let tags: Vec<AsidTag> = (0..40).map(|_| AsidTag::default()).collect();
        let mut used = std::collections::HashMap::new();
        for round in 0..1000usize {
            let who = round * 7 % tags.len();
            let epoch = (round / 5 * 100 + who) as u64;
            if assign(&mut pool, &tags[who], 0, epoch) == tlb_control::FLUSH_ALL {
                used.clear();
            }
            let asid = tags[who].asid.get();
            assert!((1..16).contains(&asid));
            let owner = used.entry(asid).or_insert((who, epoch));
            assert_eq!(*owner, (who, epoch), "ASID {asid} reused in round {round}");
        }
    }

    #[test]
    fn a_new_epoch_or_core_gets_a_new_asid() {
        let mut pool = AsidPool::new(16);
        let tag = AsidTag::default();
        assign(&mut pool, &tag, 0, 1);
        for (core, epoch) in [(0, 2), (1, 2), (1, 3)] {
            let before = tag.asid.get();
            assign(&mut pool, &tag, core, epoch);
            assert_ne!(tag.asid.get(), before);
        }
    }

    #[test]
    fn a_core_without_asids_refuses() {
        assert_eq!(AsidPool::new(0).renew(&AsidTag::default(), 0, 1), None);
    }
}
