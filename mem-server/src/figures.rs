//! The server's figures, and whether its books agree.

use protocol::mem::{MachineStats, StateCounts, VmStats};
use protocol::units::VmId;

use crate::page::{Entry, FRAMES_PER_BLOCK, Frame, PageState};
use crate::policy::estimator::ONE;
use crate::policy::large::Region;
use crate::server::Server;

impl Server<'_> {
    /// Bytes of the states of admitted VMs' pages.
    pub fn state_bytes(&self) -> u64 {
        let pages: u64 = self.vms.iter().flatten().map(|vm| vm.memory.size.0).sum();
        let regions = pages.div_ceil(u64::from(FRAMES_PER_BLOCK));
        pages * size_of::<Entry>() as u64 + regions * size_of::<Region>() as u64
    }

    /// Bytes of the sharing table.
    pub const fn sharing_bytes(&self) -> usize {
        self.share.bytes()
    }

    /// Slots of the swap area that nobody gets again.
    pub fn bad_slots(&self) -> u64 {
        u64::from(self.swap.bad())
    }

    /// Machine-wide figures.
    pub fn machine_stats(&self) -> MachineStats {
        let private: u64 = self.vms.iter().flatten().map(|vm| vm.count(PageState::Private)).sum();
        let claims = self.vms.iter().flatten().map(|vm| vm.claim.reservation + vm.claim.overhead);
        let count = |state| -> u64 { self.vms.iter().flatten().map(|vm| vm.count(state)).sum() };
        let (shared, zero) = (count(PageState::Shared), count(PageState::Zero));
        let common = u64::from(self.share.shared());
        MachineStats {
            total: self.total(),
            free: self.free(),
            guest: private + common,
            compressed_pool: u64::from(self.pool.frames()),
            overhead: self.held() + u64::from(self.own),
            cow_reserve: u64::from(self.break_reserve()),
            shared: shared + zero,
            common: common + u64::from(zero > 0),
            saved: shared.saturating_sub(common) + zero,
            zero_saved: zero,
            swap_total: u64::from(self.swap.slots()),
            swap_used: u64::from(self.swap.used()),
            reserved: claims.sum(),
            state: self.pressure.state(),
            tax: self.policy.tax,
            scanned: self.counters.scanned,
            merged: self.counters.merged + self.counters.merged_zero,
            false_matches: self.counters.false_matches,
        }
    }

    /// Figures of one VM.
    pub fn vm_stats(&self, vm: VmId) -> Option<VmStats> {
        let record = self.vm(vm)?;
        let count = |state| record.count(state);
        let granted = record.granted();
        Some(VmStats {
            size: record.memory.size.0,
            granted,
            consumed: self.charge(record),
            touched: record.averages.touched_pages(granted),
            active: record.averages.active_pages(granted),
            average_permille: record
                .averages
                .all()
                .map(|average| (u64::from(average) * 1000 / u64::from(ONE)) as u16),
            saved: self.saved(record),
            target: record.target,
            swap_target: count(PageState::Swapped) + self.to_page_out(record),
            tax_paid: record.untaxed.saturating_sub(record.target),
            blocked: record.blocked,
            states: StateCounts {
                absent: count(PageState::Absent),
                private: count(PageState::Private),
                shared: count(PageState::Shared),
                zero: count(PageState::Zero),
                ballooned: count(PageState::Ballooned),
                compressed: count(PageState::Compressed),
                swapped: count(PageState::Swapped),
                in_flight: count(PageState::InFlight),
            },
            balloon: count(PageState::Ballooned),
            balloon_target: record.balloon_target,
            overhead: record.claim.overhead,
            large: u64::from(record.large * FRAMES_PER_BLOCK),
            faults: record.faults,
        })
    }

    /// Checks the accounting invariant: every frame is free, held, the server's, or behind exactly the pages that say so; every
    /// count is what the entries say.
    ///
    /// # Errors
    ///
    /// What does not agree.
    pub fn check(&self) -> Result<(), &'static str> {
        self.ledger.check()?;
        self.check_large()?;
        let mut private = 0u64;
        for record in self.vms.iter().flatten() {
            let mut counts = [0; PageState::ALL.len()];
            let size = record.memory.size.0 as u32;
            for index in 0..size {
                let entry = self.entries[(record.base + index) as usize];
                counts[entry.state() as usize] += 1;
                if entry.state() == PageState::Private && self.ledger.is_free(Frame(entry.value()))
                {
                    return Err("a private page's frame is free");
                }
                let resident = matches!(
                    entry.state(),
                    PageState::Private | PageState::Shared | PageState::Zero
                );
                if entry.has_capability() && !resident {
                    return Err("a page is mapped and not in memory");
                }
                let is_private = entry.state() == PageState::Private;
                if entry.is_writable() && !is_private {
                    return Err("a page others see is writable");
                }
                if entry.has_capability() && !entry.is_mapped() && !is_private {
                    return Err("a page others see keeps a capability that does not map it");
                }
            }
            if counts != record.counts {
                return Err("a VM's counts are not its entries'");
            }
            private += u64::from(counts[PageState::Private as usize]);
        }
        self.share.check()?;
        let shared: u64 = self.vms.iter().flatten().map(|vm| vm.count(PageState::Shared)).sum();
        let referred = (0..self.share.capacity()).filter_map(|at| self.share.references(at));
        if referred.map(u64::from).sum::<u64>() != shared {
            return Err("shared pages are not the records' references");
        }
        let compressed: u64 =
            self.vms.iter().flatten().map(|vm| vm.count(PageState::Compressed)).sum();
        let spilling: u64 = self.vms.iter().flatten().map(|vm| u64::from(vm.spilling)).sum();
        if compressed + spilling != u64::from(self.pool.pages()) {
            return Err("compressed pages are not the pool's");
        }
        self.check_spilling()?;
        let moving = self.transfers.iter().flatten().filter(|moving| moving.frame.is_some());
        if moving.count() != self.moving as usize {
            return Err("frames on their way are miscounted");
        }
        let all = self.free()
            + self.held()
            + u64::from(self.own)
            + private
            + u64::from(self.share.shared())
            + u64::from(self.pool.frames())
            + u64::from(self.moving);
        if all != self.total() {
            return Err("the sums of states are not the machine's memory");
        }
        Ok(())
    }

    /// Whether every VM knows how many of its compressed pages are on their way to the swap area.
    fn check_spilling(&self) -> Result<(), &'static str> {
        for (at, record) in self.vms.iter().enumerate() {
            let spilling = self.transfers.iter().flatten().filter(|transfer| {
                transfer.packed.is_some()
                    && transfer.page.is_some_and(|(vm, _)| usize::from(vm) == at)
            });
            if spilling.count() != record.as_ref().map_or(0, |record| record.spilling as usize) {
                return Err("compressed pages on their way are miscounted");
            }
        }
        Ok(())
    }
}
