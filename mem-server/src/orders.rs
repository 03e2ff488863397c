//! What vmm-servers report and the root-task orders.

use protocol::mem::{
    CALL_PAGES_MAX, GfnRange, MemError, MemReply, MemRequest, Trigger, VmInfo, VmMemory,
    release_reason,
};
use protocol::units::{Gfn, Nanos, Pages, VmId};

use crate::mechanism::Mechanism;
use crate::page::{PageOp, PageState, next};
use crate::policy::large::Demotion;
use crate::server::{Released, Server};

impl Server<'_> {
    /// The guest gave pages up: to its balloon, or as free.
    pub fn release(
        &mut self,
        vm: VmId,
        reason: u64,
        ranges: impl Iterator<Item = GfnRange>,
        mechanism: &mut impl Mechanism,
    ) -> Released {
        let (op, demotion) = match reason {
            release_reason::BALLOON => (PageOp::Balloon, Demotion::Balloon),
            release_reason::FREE_REPORT => (PageOp::Discard, Demotion::Report),
            _ => return Released::default(),
        };
        self.for_ranges(vm, ranges, |server, index| {
            let Some(record) = server.vm(vm) else { return false };
            let entry = server.entries[(record.base + index) as usize];
            if next(entry.state(), op).is_none() {
                return false;
            }
            server.unmap(vm, index, demotion, mechanism);
            server.drop_contents(entry);
            server.change(vm, index, op, 0)
        })
    }

    /// The guest takes pages back from its balloon.
    pub fn deflate(&mut self, vm: VmId, ranges: impl Iterator<Item = GfnRange>) -> Released {
        self.for_ranges(vm, ranges, |server, index| server.change(vm, index, PageOp::Deflate, 0))
    }

    fn for_ranges(
        &mut self,
        vm: VmId,
        ranges: impl Iterator<Item = GfnRange>,
        mut each: impl FnMut(&mut Self, u32) -> bool,
    ) -> Released {
        let mut released = Released::default();
        let mut room = CALL_PAGES_MAX;
        for range in ranges {
            let Some(record) = self.vm(vm) else { return released };
            let memory = record.memory;
            // A hostile count may be 2^24.
            let count = range.count.min(room);
            room -= count;
            released.refused += range.count - count;
            for step in 0..count {
                let gfn = range.first.0.checked_add(step).map(Gfn);
                let index = gfn.and_then(|gfn| memory.index_of(gfn));
                let done = index.is_some_and(|index| each(self, index));
                *(if done { &mut released.done } else { &mut released.refused }) += 1;
            }
        }
        released
    }

    /// Answers a control call of the vmm-server of `vm`.
    pub fn control(&mut self, vm: VmId, request: MemRequest) -> MemReply {
        let Some(Some(record)) = self.vms.get_mut(vm.0 as usize) else {
            return MemReply::Error(MemError::NoSuchVm);
        };
        match request {
            MemRequest::Info => MemReply::Info(self.info(vm)),
            MemRequest::BalloonReady { ready } => {
                record.balloon_ready = ready;
                MemReply::Done
            }
            MemRequest::GuestStats(stats) => {
                record.guest = stats;
                // Compared here and now: a moment later the balloon may have moved.
                let accepted = record.count(PageState::Ballooned);
                let refused = stats.balloon.map_or(0, |given| given.saturating_sub(accepted));
                record.balloon_refused = refused;
                MemReply::Info(self.info(vm))
            }
            _ => MemReply::Error(MemError::NotAllowed),
        }
    }

    /// Carries out an order of the root-task.
    pub fn order(&mut self, request: MemRequest, mechanism: &mut impl Mechanism) -> MemReply {
        match request {
            MemRequest::CreateVm { vm, memory } => match self.create(vm, memory, mechanism) {
                Ok(reserved) => MemReply::Created { reserved },
                Err(error) => MemReply::Error(error),
            },
            MemRequest::DestroyVm { vm } => {
                if self.vm(vm).is_none() {
                    return MemReply::Error(MemError::NoSuchVm);
                }
                let pages = Pages(self.release_vm(vm, mechanism));
                MemReply::Freed { pages, free: Pages(self.free()) }
            }
            MemRequest::SetControls { vm, controls } => match self.set_controls(vm, controls) {
                Ok(()) => MemReply::Done,
                Err(error) => MemReply::Error(error),
            },
            MemRequest::SetBalloon { vm, target } => {
                let Some(Some(record)) = self.vms.get_mut(vm.0 as usize) else {
                    return MemReply::Error(MemError::NoSuchVm);
                };
                let size = record.memory.size.0;
                record.balloon_fixed = target.map(|pages| pages.0.min(size));
                record.balloon_target = record.balloon_fixed.unwrap_or(0);
                mechanism.signal_vmm(vm);
                MemReply::Done
            }
            MemRequest::SetPaused { vm, is_paused } => {
                let Some(Some(record)) = self.vms.get_mut(vm.0 as usize) else {
                    return MemReply::Error(MemError::NoSuchVm);
                };
                record.is_paused = is_paused;
                record.has_rested |= is_paused;
                MemReply::Done
            }
            MemRequest::SetGroup { group, claim } => match self.set_group(group, claim) {
                Ok(()) => MemReply::Done,
                Err(error) => MemReply::Error(error),
            },
            MemRequest::SetMachine(controls) if controls.check().is_ok() => {
                self.policy.tax = controls.tax;
                self.policy.scan_rate = controls.scan_pages_per_second;
                self.policy.scan_rate_vm = controls.scan_pages_per_second_vm;
                self.background.trigger(Trigger::Controls);
                MemReply::Done
            }
            MemRequest::SetMachine(_) => MemReply::Error(MemError::BadControls),
            MemRequest::SetSwap { pages } => {
                self.swap.resize(u32::try_from(pages.0).unwrap_or(u32::MAX));
                MemReply::Done
            }
            MemRequest::Explain { vm } => {
                self.explain(vm).map_or(MemReply::Error(MemError::NoSuchVm), MemReply::Explanation)
            }
            MemRequest::Machine => MemReply::Machine(self.machine_stats()),
            MemRequest::Stats { vm } => {
                self.vm_stats(vm).map_or(MemReply::Error(MemError::NoSuchVm), MemReply::Stats)
            }
            _ => MemReply::Error(MemError::NotAllowed),
        }
    }

    fn info(&self, vm: VmId) -> VmInfo {
        let record = self.vm(vm);
        let memory = record.map_or(VmMemory::new(Pages(0)), |record| record.memory);
        VmInfo {
            vm,
            memory,
            balloon_target: Pages(record.map_or(0, |record| record.balloon_target)),
            stats_period: Nanos::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::{World, swapping};
    use protocol::mem::Sharing;

    #[test]
    fn no_call_looks_at_more_pages_than_its_share() {
        let mut world = World::new(8, 64, swapping());
        world.admit(0, 8, Sharing::None);
        let all = || GfnRange::new(Gfn(0), 2048).into_iter().cycle().take(40);
        let reason = release_reason::FREE_REPORT;
        let released = world.server.release(VmId(0), reason, all(), &mut world.machine);
        assert_eq!(
            released,
            Released { done: CALL_PAGES_MAX, refused: 40 * 2048 - CALL_PAGES_MAX }
        );
        let most = GfnRange::new(Gfn(0), CALL_PAGES_MAX).into_iter();
        let released = world.server.release(VmId(0), reason, most, &mut world.machine);
        assert_eq!(released, Released { done: CALL_PAGES_MAX, refused: 0 });
    }
}
