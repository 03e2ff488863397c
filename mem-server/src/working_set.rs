//! The working set estimates' two sources: what each does to a VM's pages at the end of a sampling period.

use protocol::mem::PressureState;
use protocol::units::{MAX_VMS, VmId};

use crate::mechanism::{Mechanism, Page};
use crate::page::{Entry, FRAMES_PER_BLOCK, PageState};
use crate::policy::estimator::{SAMPLES, Source};
use crate::policy::harvest::{Estimate, Finding, Guesses, Subscriber};
use crate::policy::large::Demotion;
use crate::server::{Samples, Server};

/// Pages of one harvest call.
const HARVEST_PAGES: u32 = 2048;
/// Most regions taken apart for the samples of one period.
const APART_MAX: usize = 16;
/// Part of a VM's regions that may be.
const APART_PART: u32 = 8;
/// Draws for each region to watch.
const DRAWS: usize = 16;

/// Large regions taken apart for the samples of one VM in one period. They are few: samples that fall into further large
/// regions are moved into these, so that sampling leaves a small VM its large pages.
struct Apart {
    regions: heapless::Vec<u32, APART_MAX>,
    most: usize,
}

impl Apart {
    /// For a VM of so many pages.
    fn new(size: u32) -> Self {
        Self { regions: heapless::Vec::new(), most: Self::most(size) }
    }

    /// Large regions of a VM of so many pages that may be taken apart in one period.
    fn most(size: u32) -> usize {
        ((size / FRAMES_PER_BLOCK / APART_PART) as usize).clamp(1, APART_MAX)
    }
}

impl Server<'_> {
    /// Ends the sampling period of every VM and begins the next. A paused VM's goes on until it runs again, and a period with a
    /// pause in it teaches nothing: who cannot run is not idle.
    pub(crate) fn sample(&mut self, mechanism: &mut impl Mechanism) {
        for vm in (0..MAX_VMS as u16).map(VmId) {
            if self.vm(vm).is_none_or(|record| record.is_paused) {
                continue;
            }
            match self.policy.source {
                Source::Sampling => self.sample_by_faults(vm, mechanism),
                Source::Harvest => self.sample_by_bits(vm, mechanism),
            }
        }
    }

    fn sample_by_faults(&mut self, vm: VmId, mechanism: &mut impl Mechanism) {
        let Some(record) = &mut self.vms[vm.0 as usize] else { return };
        if core::mem::take(&mut record.has_rested) {
            record.averages.begin(0);
        }
        record.averages.end();
        let (base, size) = (record.base, record.memory.size.0 as u32);
        // Pages that were not touched are mapped again, so that a period never causes more faults than it has samples.
        let samples = core::mem::take(&mut record.samples);
        let memory = record.memory;
        for index in samples {
            let entry = self.entries[(base + index) as usize];
            if !entry.is_sampled() {
                continue;
            }
            self.entries[(base + index) as usize] = entry.unmapped_plain();
            let page = Page { vm, index, gfn: memory.gfn_of(index) };
            let writable = entry.state() == PageState::Private;
            if mechanism.map(page, self.frame_of(entry), writable).is_ok() {
                let entry = &mut self.entries[(base + index) as usize];
                *entry = entry.mapped(writable);
            }
        }
        self.end_samples(vm, mechanism);
        let resident = self.vm(vm).map_or(0, |record| record.granted());
        if resident == 0 {
            return;
        }
        let mut taken = 0;
        let mut apart = Apart::new(size);
        for _ in 0..SAMPLES * 16 {
            if taken == SAMPLES {
                break;
            }
            let drawn = self.random.below(size);
            let index = self.sample_in(base, drawn, &mut apart);
            let entry = self.entries[(base + index) as usize];
            let resident =
                matches!(entry.state(), PageState::Private | PageState::Shared | PageState::Zero);
            if !resident || entry.is_sampled() {
                continue;
            }
            self.unmap(vm, index, Demotion::Sampling, mechanism);
            let entry: &mut Entry = &mut self.entries[(base + index) as usize];
            *entry = entry.sampled();
            if let Some(record) = &mut self.vms[vm.0 as usize]
                && record.samples.push(index).is_err()
            {
                break;
            }
            taken += 1;
        }
        if let Some(record) = &mut self.vms[vm.0 as usize] {
            record.averages.begin(taken);
        }
    }

    fn sample_by_bits(&mut self, vm: VmId, mechanism: &mut impl Mechanism) {
        let Some(record) = &mut self.vms[vm.0 as usize] else { return };
        let watched = core::mem::take(&mut record.samples);
        let has_rested = core::mem::take(&mut record.has_rested);
        let mut found = (Estimate::default(), Guesses);
        let is_read = self.harvest(vm, &watched, &mut found, mechanism);
        if is_read
            && !has_rested
            && let Some(record) = &mut self.vms[vm.0 as usize]
        {
            let (estimate, Guesses) = found;
            record.averages.begin(record.granted() as u32);
            record.averages.touch(estimate.touched());
            record.averages.end();
        }
        self.end_samples(vm, mechanism);
        self.watch(vm, mechanism);
    }

    /// Reads and clears the accessed bits of a VM and tells `to` what it finds; of the regions that begin at the pages `watched`
    /// they are a sample. Nobody else may read them. False if the machine cannot; `to` may have heard of some regions then.
    pub(crate) fn harvest(
        &mut self,
        vm: VmId,
        watched: &[u32],
        to: &mut impl Subscriber,
        mechanism: &mut impl Mechanism,
    ) -> bool {
        let Some(record) = self.vm(vm) else { return false };
        let (base, memory) = (record.base, record.memory);
        let (size, low) = (memory.size.0 as u32, memory.low.0 as u32);
        let mut accessed = [0; 32];
        let mut first = 0;
        while first < size {
            // One call must not reach over the device hole.
            let end = if first < low { low } else { size };
            let pages = HARVEST_PAGES.min(end - first);
            let page = Page { vm, index: first, gfn: memory.gfn_of(first) };
            if !mechanism.harvest(page, pages, &mut accessed) {
                return false;
            }
            let regions = (first..first + pages).step_by(FRAMES_PER_BLOCK as usize);
            for (first, accessed) in regions.zip(accessed.as_chunks().0) {
                let region = &mut self.regions[((base + first) / FRAMES_PER_BLOCK) as usize];
                let is_watched = watched.contains(&first);
                to.region(region, &Finding { first, accessed, is_watched });
            }
            first += pages;
        }
        true
    }

    /// Draws large regions and takes them apart, so that the pages touched in them until the next harvest can be counted.
    fn watch(&mut self, vm: VmId, mechanism: &mut impl Mechanism) {
        let Some(record) = self.vm(vm) else { return };
        let (base, size, large) = (record.base, record.memory.size.0 as u32, record.large);
        let most = Apart::most(size).min(large as usize);
        let mut watched = Samples::new();
        // Each draw finds one of those that are left alike; where few regions are large it may find none.
        for _ in 0..most * DRAWS {
            if watched.len() == most {
                break;
            }
            let region = self.random.below(size / FRAMES_PER_BLOCK);
            let first = region * FRAMES_PER_BLOCK;
            let known = &self.regions[(base / FRAMES_PER_BLOCK + region) as usize];
            if known.is_large() && watched.push(first).is_ok() {
                self.demote(vm, first, Demotion::Sampling, mechanism);
            }
        }
        if let Some(record) = &mut self.vms[vm.0 as usize] {
            record.samples = watched;
        }
    }

    /// Where a sample drawn at page `index` is taken: there, or at the same place of another large region.
    fn sample_in(&mut self, base: u32, index: u32, apart: &mut Apart) -> u32 {
        let region = index / FRAMES_PER_BLOCK;
        if !self.regions[(base / FRAMES_PER_BLOCK + region) as usize].is_large() {
            return index;
        }
        if apart.regions.len() < apart.most && apart.regions.push(region).is_ok() {
            return index;
        }
        let other = self.random.below(apart.regions.len() as u32);
        let other = apart.regions.get(other as usize).copied().unwrap_or(region);
        other * FRAMES_PER_BLOCK + index % FRAMES_PER_BLOCK
    }

    /// The samples of a period are taken: regions that are small for them alone can be large again.
    fn end_samples(&mut self, vm: VmId, mechanism: &mut impl Mechanism) {
        let Some(record) = self.vm(vm) else { return };
        let (first, size) = (record.base / FRAMES_PER_BLOCK, record.memory.size.0 as u32);
        if !self.policy.large_pages || self.pressure.state() != PressureState::High {
            return;
        }
        for region in 0..size / FRAMES_PER_BLOCK {
            if self.regions[(first + region) as usize].reason() == Some(Demotion::Sampling) {
                self.promote(vm, region, mechanism);
            }
        }
    }
}

#[cfg(test)]
#[path = "working_set_tests.rs"]
mod tests;
