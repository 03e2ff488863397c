//! Large pages: a region whose pages are all its VM's own is mapped by one 2 MiB page, until something changes one of them.
//!
//! Promotion is background work while memory is plentiful; mostly every page lies in place in the region's block already, what does
//! not is copied there. Demotion is part of taking a page from the guest
//! ([`Server::unmap`]), which everything does before it frees, copies or protects a page: nobody can forget it.

use protocol::mem::PressureState;
use protocol::units::{Gfn, MAX_VMS, Nanos, VmId};

use crate::mechanism::{Mechanism, Page};
use crate::page::{FRAMES_PER_BLOCK, Frame, PageOp, PageState, REGION_WORDS};
use crate::policy::large::Demotion;
use crate::server::Server;

/// Regions looked at in one tick.
const LOOKS: u32 = 16;
/// Regions promoted in one tick at most: each costs some 20,000 instructions.
const PROMOTIONS: u32 = 4;
/// Pages a region may lack that are filled so that it can be large: an eighth.
const HOLES_MAX: u32 = FRAMES_PER_BLOCK / 8;

/// Where the background work is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hand {
    vm: u16,
    region: u32,
    /// Time of the last tick.
    pub(crate) now: Nanos,
}

/// Pages mapped again together.
const AROUND: u32 = 16;
/// Part of all blocks that stay free of regions put together anew: starting VMs need whole blocks.
const SPARE_PART: u32 = 16;

impl Server<'_> {
    /// Maps regions large that can be, some of them in each tick.
    pub(crate) fn promote_regions(&mut self, mechanism: &mut impl Mechanism) {
        if !self.policy.large_pages {
            return;
        }
        let mut promoted = 0;
        for _ in 0..LOOKS {
            let Some((vm, region)) = self.next_region() else { return };
            // Filling holes can end the plenty.
            if self.pressure.state() != PressureState::High || promoted == PROMOTIONS {
                return;
            }
            // What is small to be watched stays so until the period ends.
            let known = self.vm(vm).map(|record| record.base / FRAMES_PER_BLOCK + region);
            let watched = known.is_some_and(|region| {
                self.regions[region as usize].reason() == Some(Demotion::Sampling)
            });
            promoted += u32::from(!watched && self.promote(vm, region, mechanism));
        }
    }

    /// The next region of the next VM in turn.
    fn next_region(&mut self) -> Option<(VmId, u32)> {
        for _ in 0..=MAX_VMS {
            let Hand { vm, region, .. } = self.background.large;
            let regions = self.vm(VmId(vm)).map_or(0, |record| {
                if record.open { record.memory.size.0 as u32 / FRAMES_PER_BLOCK } else { 0 }
            });
            if region < regions {
                self.background.large.region = region + 1;
                return Some((VmId(vm), region));
            }
            self.background.large.vm = (vm + 1) % MAX_VMS as u16;
            self.background.large.region = 0;
        }
        None
    }

    /// Maps a region large if all of its pages are its VM's own and not watched; a few may be missing, and what lies elsewhere is
    /// brought into place first. False if it stays small, or the VM has no such region.
    pub(crate) fn promote(
        &mut self,
        vm: VmId,
        region: u32,
        mechanism: &mut impl Mechanism,
    ) -> bool {
        let Some(record) = self.vm(vm) else { return false };
        let (base, memory) = (record.base, record.memory);
        if u64::from(region) >= memory.size.0 / u64::from(FRAMES_PER_BLOCK) {
            return false;
        }
        let (at, first) = ((base / FRAMES_PER_BLOCK + region) as usize, region * FRAMES_PER_BLOCK);
        let known = self.regions[at];
        if known.is_large() || !known.is_rested(self.background.large.now) {
            return false;
        }
        let Some(holes) = self.holes(base + first) else { return false };
        if holes > HOLES_MAX || holes > 0 && self.charge(record) + u64::from(holes) > record.target
        {
            return false;
        }
        if !self.gather(vm, region, mechanism) {
            return false;
        }
        let block = self.regions[at].block;
        let Some(present) = self.present_in_place(base + first, block) else { return false };
        let page = Page { vm, index: first, gfn: memory.gfn_of(first) };
        let done = mechanism.promote(page, block, &present).is_ok();
        for entry in &mut self.entries[(base + first) as usize..][..FRAMES_PER_BLOCK as usize] {
            *entry = if done { entry.mapped(true) } else { entry.unmapped() };
        }
        if done {
            self.regions[at].promote();
            self.counters.promotions += 1;
            if let Some(record) = &mut self.vms[vm.0 as usize] {
                record.large += 1;
            }
        }
        done
    }

    /// Absent pages of a region whose other pages are all private and not watched; `first` is an entry's number.
    fn holes(&self, first: u32) -> Option<u32> {
        let mut holes = 0;
        for entry in &self.entries[first as usize..][..FRAMES_PER_BLOCK as usize] {
            match entry.state() {
                PageState::Private if !entry.is_sampled() => {}
                PageState::Absent => holes += 1,
                _ => return None,
            }
        }
        Some(holes)
    }

    /// Brings the pages of a region into place in its block, a new one if it has none any more, and fills what is missing.
    /// False if a place is taken or no block can be spared.
    fn gather(&mut self, vm: VmId, region: u32, mechanism: &mut impl Mechanism) -> bool {
        let Some(base) = self.vm(vm).map(|record| record.base) else { return false };
        let hint = self.regions[(base / FRAMES_PER_BLOCK + region) as usize].block;
        let free = self.ledger.missing(vm.0 as u8, region, hint);
        let spare = self.total() as u32 / FRAMES_PER_BLOCK / SPARE_PART;
        if free.is_none() && self.ledger.empty_blocks() <= spare {
            return false;
        }
        // What moves away makes room for what belongs there, so a second pass can end what the first began.
        (0..2).any(|_| {
            let pages = region * FRAMES_PER_BLOCK..(region + 1) * FRAMES_PER_BLOCK;
            let in_place = pages.filter(|page| self.put_in_place(vm, base, *page, mechanism));
            in_place.count() == FRAMES_PER_BLOCK as usize
        })
    }

    /// Puts a private page where it belongs in its region's block, an absent one as zeros. False if something else is there.
    fn put_in_place(
        &mut self,
        vm: VmId,
        base: u32,
        index: u32,
        mechanism: &mut impl Mechanism,
    ) -> bool {
        let (region, offset) = (index / FRAMES_PER_BLOCK, index % FRAMES_PER_BLOCK);
        let hint = self.regions[(base / FRAMES_PER_BLOCK + region) as usize].block;
        let entry = self.entries[(base + index) as usize];
        let place = Frame(hint.wrapping_mul(FRAMES_PER_BLOCK).wrapping_add(offset));
        let is_private = entry.state() == PageState::Private;
        let stands = self.ledger.missing(vm.0 as u8, region, hint).is_some();
        if stands && is_private && entry.value() == place.0 {
            return true;
        }
        if stands && !self.ledger.is_free(place) {
            return false;
        }
        let Some(frame) = self.allocate(vm, base, index) else { return false };
        if is_private {
            // Nobody may write between copy and switch.
            self.unmap(vm, index, Demotion::Moving, mechanism);
            mechanism.copy(Frame(entry.value()), frame);
            self.ledger.free_frame(Frame(entry.value()));
            let entry = &mut self.entries[(base + index) as usize];
            *entry = entry.at(frame.0);
            self.counters.gathered += 1;
        } else {
            mechanism.zero(frame);
            self.change(vm, index, PageOp::Fill, frame.0);
        }
        frame.offset() == offset
    }

    /// Which of a region's pages have a capability, if all of them are private and in place.
    fn present_in_place(&self, first: u32, block: u32) -> Option<[u64; REGION_WORDS]> {
        let mut present = [0; REGION_WORDS];
        let entries = &self.entries[first as usize..][..FRAMES_PER_BLOCK as usize];
        for (page, entry) in entries.iter().enumerate() {
            let place = block * FRAMES_PER_BLOCK + page as u32;
            if entry.state() != PageState::Private || entry.value() != place {
                return None;
            }
            present[page / 64] |= u64::from(entry.has_capability()) << (page % 64);
        }
        Some(present)
    }

    /// Takes a page's region apart if it is large: none of its pages is mapped then.
    #[inline]
    pub(crate) fn demote(
        &mut self,
        vm: VmId,
        index: u32,
        reason: Demotion,
        mechanism: &mut impl Mechanism,
    ) {
        let Some(record) = self.vm(vm) else { return };
        let region = (record.base + index) / FRAMES_PER_BLOCK;
        if self.regions[region as usize].is_large() {
            self.demote_region(vm, region, reason, mechanism);
        }
    }

    /// The region is by number among those of all VMs.
    #[cold]
    fn demote_region(
        &mut self,
        vm: VmId,
        region: u32,
        reason: Demotion,
        mechanism: &mut impl Mechanism,
    ) {
        let Some(record) = &mut self.vms[vm.0 as usize] else { return };
        record.large -= 1;
        let index = region * FRAMES_PER_BLOCK - record.base;
        mechanism.demote(Page { vm, index, gfn: record.memory.gfn_of(index) });
        let first = (region * FRAMES_PER_BLOCK) as usize;
        for entry in &mut self.entries[first..][..FRAMES_PER_BLOCK as usize] {
            *entry = entry.held();
        }
        // The large page's capability was in the place of this one's.
        self.entries[first] = self.entries[first].unmapped();
        self.regions[region as usize].demote(reason, self.background.large.now);
        self.counters.demotions[reason as usize] += 1;
    }

    /// Maps the pages around a page again that kept their capabilities when their large page was taken away: touches come in
    /// clusters, and mapping one costs a third of a fault.
    #[cold]
    pub(crate) fn map_around(&mut self, page: Page, base: u32, mechanism: &mut impl Mechanism) {
        let first = page.index - page.index % AROUND;
        for index in first..first + AROUND {
            let entry = self.entries[(base + index) as usize];
            if !entry.has_capability() || entry.is_mapped() {
                continue;
            }
            // In the same region, so in one piece of the guest's memory.
            let gfn = Gfn(page.gfn.0 - u64::from(page.index) + u64::from(index));
            if mechanism.protect(Page { vm: page.vm, index, gfn }, true).is_ok() {
                self.entries[(base + index) as usize] = entry.mapped(true);
            }
        }
    }

    /// Regions of a VM that are small because something took them apart, by reason.
    pub fn taken_apart(&self, vm: VmId) -> [u32; Demotion::ALL.len()] {
        let mut counts = [0; Demotion::ALL.len()];
        let Some(record) = self.vm(vm) else { return counts };
        let (first, size) = (record.base / FRAMES_PER_BLOCK, record.memory.size.0 as u32);
        for region in &self.regions[first as usize..][..(size / FRAMES_PER_BLOCK) as usize] {
            if let Some(reason) = region.reason() {
                counts[reason as usize] += 1;
            }
        }
        counts
    }

    /// Checks that large regions are exactly whole.
    ///
    /// # Errors
    ///
    /// What does not agree.
    pub(crate) fn check_large(&self) -> Result<(), &'static str> {
        for (vm, record) in self.vms.iter().enumerate() {
            let Some(record) = record else { continue };
            let mut large = 0;
            for region in 0..record.memory.size.0 as u32 / FRAMES_PER_BLOCK {
                let known = self.regions[(record.base / FRAMES_PER_BLOCK + region) as usize];
                if !known.is_large() {
                    continue;
                }
                large += 1;
                if !self.ledger.is_whole(vm as u8, region, known.block) {
                    return Err("a large page's block is not its region's");
                }
                let in_place = |page: u32| {
                    let at = record.base + region * FRAMES_PER_BLOCK + page;
                    let entry = self.entries[at as usize];
                    let frame = known.block * FRAMES_PER_BLOCK + page;
                    (entry.state(), entry.value()) == (PageState::Private, frame)
                        && entry.is_writable()
                        && !entry.is_sampled()
                };
                if !(0..FRAMES_PER_BLOCK).all(in_place) {
                    return Err("a page of a large page is not in place");
                }
            }
            if large != record.large {
                return Err("a VM's large pages are miscounted");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "large_tests.rs"]
mod tests;
