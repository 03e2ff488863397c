//! A checking model of TLB contents and ASID use.
//!
//! QEMU's TCG empties its TLB at every world switch and so can never show a missing flush. This model is the opposite extreme: the moment
//! a core enters an address space it caches *every* translation of it, and keeps each until the kernel flushes it. Then each
//! check is: what the cache holds for the space a core runs in must be what the tables say now (a cached entry may only lack
//! accessed or dirty bits, never grant more), and a frame or table given back to the untyped memory must be in no cache at all.
//!
//! It is the strictest reading of the manuals (a processor may cache any translation at any time), so a kernel that passes is
//! correct on every processor. Host tests drive it through `Hw`; it is generic over the walker, so ordinary and nested spaces share it.

use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

/// One translation as a TLB would hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the frame.
    pub frame: u64,
    /// Address bits the translation spans.
    pub bits: u32,
    /// Writes allowed.
    pub write: bool,
    /// Execution allowed.
    pub execute: bool,
}

/// Tag of cached translations: the host's untagged ones, or a guest's ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// The running address space of the host (no PCID): emptied when CR3 is written.
    Host,
    /// A guest's ASID.
    Guest(u32),
}

type Translations = BTreeMap<u64, Translation>;

/// The TLBs of all cores.
#[derive(Clone, Debug, Default)]
pub struct TlbModel {
    cached: BTreeMap<(usize, Tag), Translations>,
    running: BTreeMap<usize, (Tag, u64)>,
}

impl TlbModel {
    /// A core starts to run in a space whose current translations are `tables`. `flush_all` empties the core first; a guest's VMRUN
    /// with its TLB control, or a CR3 write with [`TlbModel::write_cr3`].
    ///
    /// # Errors
    /// The first stale translation, in words.
    pub fn enter(
        &mut self,
        core: usize,
        tag: Tag,
        root: u64,
        flush_all: bool,
        tables: &Translations,
    ) -> Result<(), String> {
        if flush_all {
            self.cached.retain(|&(at, _), _| at != core);
        }
        self.running.insert(core, (tag, root));
        self.check(core, tables)?;
        self.cached.entry((core, tag)).or_default().extend(tables.iter().map(|(&a, &t)| (a, t)));
        Ok(())
    }

    /// A core writes CR3: its untagged translations go.
    pub fn write_cr3(&mut self, core: usize) {
        self.cached.remove(&(core, Tag::Host));
    }

    /// A core invalidates one page of its running space.
    pub fn invalidate_page(&mut self, core: usize, address: u64) {
        if let Some(cache) = self.cached.get_mut(&(core, Tag::Host)) {
            cache.retain(|&start, t| address < start || address >= start + (1 << t.bits));
        }
    }

    /// A core leaves the guest or the user: what it cached stays.
    pub fn leave(&mut self, core: usize) {
        self.running.remove(&core);
    }

    /// Tells the roots that cores run in right now.
    #[must_use]
    pub fn running(&self) -> Vec<(usize, Tag, u64)> {
        self.running.iter().map(|(&core, &(tag, root))| (core, tag, root)).collect()
    }

    /// Compares what `core` may use right now with the tables.
    ///
    /// # Errors
    /// The first stale translation, in words.
    pub fn check(&self, core: usize, tables: &Translations) -> Result<(), String> {
        let Some(&(tag, root)) = self.running.get(&core) else { return Ok(()) };
        let Some(cache) = self.cached.get(&(core, tag)) else { return Ok(()) };
        for (address, cached) in cache {
            let now = tables.get(address);
            let allowed = now.is_some_and(|now| {
                now.frame == cached.frame
                    && now.bits == cached.bits
                    && (now.write || !cached.write)
                    && (now.execute || !cached.execute)
            });
            if !allowed {
                return Err(std::format!(
                    "core {core} {tag:?} root {root:#x}: {address:#x} is cached as {cached:x?}, tables say {now:x?}"
                ));
            }
        }
        Ok(())
    }
}

/// Lists the translations of a nested root.
#[must_use]
pub fn nested_translations(root: crate::mem::PhysAddr) -> Translations {
    use super::npt::{ADDRESS, LARGE, NX, PRESENT, WRITE};
    use crate::mem::PhysAddr;
    use crate::mem::window::Words;
    fn list(
        table: PhysAddr,
        bits: u32,
        base: u64,
        write: bool,
        execute: bool,
        out: &mut Translations,
    ) {
        let count = if bits == 39 { 256 } else { 512 };
        for index in 0..count {
            let entry = Words(table).get(index);
            if entry & PRESENT == 0 {
                continue;
            }
            let address = base + ((index as u64) << bits);
            let write = write && entry & WRITE != 0;
            let execute = execute && entry & NX == 0;
            if bits == 12 || (bits < 39 && entry & LARGE != 0) {
                let frame = entry & ADDRESS & !((1 << bits) - 1);
                out.insert(address, Translation { frame, bits, write, execute });
            } else {
                list(PhysAddr(entry & ADDRESS), bits - 9, address, write, execute, out);
            }
        }
    }
    let mut out = Translations::new();
    list(root, 39, 0, true, true, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::super::asid::{AsidPool, AsidTag};
    use super::super::vmcb::tlb_control;
    use super::*;

    fn page(frame: u64) -> Translation {
        Translation { frame, bits: 12, write: true, execute: true }
    }

    fn enter(
        tlb: &mut TlbModel,
        pool: &mut AsidPool,
        tag: &AsidTag,
        root: u64,
        epoch: u64,
        tables: &Translations,
    ) -> Result<(), String> {
        let flush = !pool.is_current(tag, 0, epoch)
            && pool.renew(tag, 0, epoch).unwrap() == tlb_control::FLUSH_ALL;
        let result = tlb.enter(0, Tag::Guest(tag.asid.get()), root, flush, tables);
        tlb.leave(0);
        result
    }

    #[test]
    fn unmapping_without_a_new_epoch_is_caught_and_with_one_is_fine() {
        for bump in [false, true] {
            let (mut tlb, mut pool) = (TlbModel::default(), AsidPool::new(16));
            let tag = AsidTag::default();
            let mut tables = Translations::from([(0x1000, page(0x8000)), (0x2000, page(0x9000))]);
            enter(&mut tlb, &mut pool, &tag, 0x100, 1, &tables).unwrap();
            tables.remove(&0x1000);
            let result = enter(&mut tlb, &mut pool, &tag, 0x100, 1 + u64::from(bump), &tables);
            assert_eq!(result.is_ok(), bump, "{result:?}");
        }
    }

    #[test]
    fn two_guests_under_one_asid_are_caught() {
        let mut tlb = TlbModel::default();
        let one = Translations::from([(0x1000, page(0x8000))]);
        let two = Translations::from([(0x1000, page(0x9000))]);
        tlb.enter(0, Tag::Guest(1), 0x100, true, &one).unwrap();
        tlb.leave(0);
        assert!(tlb.enter(0, Tag::Guest(1), 0x200, false, &two).is_err());
        assert!(tlb.enter(0, Tag::Guest(1), 0x200, true, &two).is_ok());
    }

    #[test]
    fn taking_rights_away_needs_a_flush_and_adding_needs_none() {
        let mut tlb = TlbModel::default();
        let read_only = Translation { write: false, ..page(0x8000) };
        tlb.enter(0, Tag::Guest(1), 0x100, true, &Translations::from([(0, read_only)])).unwrap();
        assert!(tlb.check(0, &Translations::from([(0, page(0x8000))])).is_ok());
        tlb.enter(0, Tag::Guest(1), 0x100, false, &Translations::from([(0, page(0x8000))]))
            .unwrap();
        assert!(tlb.check(0, &Translations::from([(0, read_only)])).is_err());
    }

    #[test]
    fn a_core_inside_the_guest_is_caught_using_an_unmapped_page() {
        let mut tlb = TlbModel::default();
        let tables = Translations::from([(0x1000, page(0x8000))]);
        tlb.enter(1, Tag::Guest(3), 0x100, true, &tables).unwrap();
        assert!(tlb.check(1, &Translations::new()).is_err());
        tlb.leave(1);
        assert!(tlb.check(1, &Translations::new()).is_ok());
    }

    #[test]
    fn host_pages_go_by_invlpg_or_cr3() {
        let mut tlb = TlbModel::default();
        let tables = Translations::from([(0x1000, page(0x8000)), (0x2000, page(0x9000))]);
        tlb.enter(0, Tag::Host, 0x100, false, &tables).unwrap();
        let fewer = Translations::from([(0x2000, page(0x9000))]);
        assert!(tlb.check(0, &fewer).is_err());
        tlb.invalidate_page(0, 0x1234);
        assert!(tlb.check(0, &fewer).is_ok());
        tlb.write_cr3(0);
        assert!(tlb.check(0, &Translations::new()).is_ok());
    }

    #[test]
    fn many_guests_with_few_asids_never_see_each_other() {
        let (mut tlb, mut pool) = (TlbModel::default(), AsidPool::new(4));
        let tags: [AsidTag; 9] = std::array::from_fn(|_| AsidTag::default());
        let mut epochs: [u64; 9] = std::array::from_fn(|who| who as u64);
        let mut frames = [0x8000u64; 9];
        for round in 0..2000usize {
            let who = round * 31 % 9;
            if round % 3 == 0 {
                // The guest's page moves to another frame.
                frames[who] += 0x1000;
                epochs[who] += 9;
            }
            let tables = Translations::from([(0x1000, page(frames[who] + ((who as u64) << 32)))]);
            let root = 0x1000 * (who as u64 + 1);
            enter(&mut tlb, &mut pool, &tags[who], root, epochs[who], &tables).unwrap();
        }
    }
}
