//! What the server does without being asked: pressure, rebalance, balloons, sampling, scanning, reclaiming.

use protocol::mem::{Explanation, MemEvent, PressureState, TargetBound, Trigger};
use protocol::units::{MAX_VMS, Nanos, Pages, VmId};

use crate::large::Hand;
use crate::mechanism::Mechanism;
use crate::page::PageState;
use crate::policy::allocation::{Demand, Target, taxed_shares};
use crate::policy::groups::{FINE, divide_in_groups, weight};
use crate::reclaim::Reclaimed;
use crate::server::Server;
use crate::sharing::Scanned;

/// Pages reclaimed by paging in one tick at most, per VM.
const RECLAIM_BATCH: u64 = 256;
/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// Most steps to a page to scan.
const PICK_STEPS: u32 = 32;

/// A token bucket: never gives out more than rate times time, plus what it holds at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens times [`SECOND`].
    level: u64,
    last: Nanos,
}

impl Tokens {
    /// Fills up for the time since the last call; holds at most what `burst` brings.
    pub fn refill(&mut self, now: Nanos, rate: u32, burst: Nanos) {
        let elapsed = now.0.saturating_sub(self.last.0).min(burst.0);
        self.last = now;
        let most = u64::from(rate).saturating_mul(burst.0);
        self.level = self.level.saturating_add(u64::from(rate).saturating_mul(elapsed)).min(most);
    }

    /// Takes one token if there is one.
    pub const fn take(&mut self) -> bool {
        if self.level < SECOND {
            return false;
        }
        self.level -= SECOND;
        true
    }

    /// Whole tokens it holds.
    pub const fn whole(&self) -> u64 {
        self.level / SECOND
    }
}

/// State of the background work.
#[derive(Clone, Copy, Debug)]
pub struct Background {
    /// Frames only copy-on-write breaks may use.
    pub(crate) break_reserve: u32,
    /// First touches make room when no more than this is free.
    pub(crate) fill_floor: u32,
    trigger: Option<Trigger>,
    last_trigger: Trigger,
    rebalanced: Nanos,
    ballooned: Nanos,
    sampled: Nanos,
    scan_tokens: Tokens,
    scan_hand: u16,
    budget: u64,
    level: u64,
    pub(crate) large: Hand,
}

impl Default for Background {
    fn default() -> Self {
        Self {
            break_reserve: 0,
            fill_floor: 0,
            trigger: None,
            last_trigger: Trigger::Controls,
            rebalanced: Nanos(0),
            ballooned: Nanos(0),
            sampled: Nanos(0),
            scan_tokens: Tokens::default(),
            scan_hand: 0,
            budget: 0,
            level: 0,
            large: Hand::default(),
        }
    }
}

impl Background {
    /// Targets are computed anew at the next tick.
    pub(crate) const fn trigger(&mut self, trigger: Trigger) {
        self.trigger = Some(trigger);
    }
}

/// Longest time whose scanning may be made up for at once.
const SCAN_BURST: Nanos = Nanos::from_millis(100);

impl Server<'_> {
    /// Does what is due at `now`; call it at least every 100 ms. Answers what the user should hear.
    pub fn tick(&mut self, now: Nanos, mechanism: &mut impl Mechanism) -> Option<MemEvent> {
        self.size_reserves();
        self.background.large.now = now;
        let free = self.free();
        let event = self.pressure.update(free).map(|from| {
            self.background.trigger(Trigger::Threshold);
            MemEvent::Pressure { from, to: self.pressure.state(), free: Pages(free) }
        });
        self.background.fill_floor = match self.pressure.state() {
            // Every touch looks whether its VM is to wait.
            PressureState::Low => u32::MAX,
            _ => self.background.break_reserve,
        };
        if now.0 >= self.background.sampled.0.saturating_add(self.policy.sample_period.0) {
            self.background.sampled = now;
            self.sample(mechanism);
        }
        if now.0 >= self.background.rebalanced.0.saturating_add(self.policy.rebalance_period.0) {
            self.background.trigger.get_or_insert(Trigger::Periodic);
        }
        if let Some(trigger) = self.background.trigger.take() {
            self.background.rebalanced = now;
            self.background.last_trigger = trigger;
            self.rebalance();
        }
        if now.0 >= self.background.ballooned.0.saturating_add(self.policy.balloon_period.0) {
            self.background.ballooned = now;
            self.steer_balloons(mechanism);
        }
        self.reclaim(mechanism);
        self.scan(now, mechanism);
        self.promote_regions(mechanism);
        self.block_and_wake(mechanism);
        event
    }

    /// Puts frames by for copy-on-write breaks: a part of memory, but never more than there are pages to break.
    fn size_reserves(&mut self) {
        let breakable: u64 = self
            .vms
            .iter()
            .flatten()
            .map(|vm| vm.count(PageState::Shared) + vm.count(PageState::Zero))
            .sum();
        self.background.break_reserve = breakable.min(self.most_reserve()) as u32;
    }

    /// Frames that are put by for copy-on-write breaks where there is enough to break.
    pub(crate) fn most_reserve(&self) -> u64 {
        self.total() * u64::from(self.policy.break_reserve) / 1000
    }

    /// Whether `vm` waits for memory: in `low` whoever is above its target does.
    pub(crate) fn is_held(&self, vm: VmId) -> bool {
        self.pressure.state() == PressureState::Low
            && self.vm(vm).is_some_and(|record| self.charge(record) > record.target)
    }

    fn demand(&self, vm: VmId) -> Option<Demand> {
        let record = self.vm(vm)?;
        let controls = &record.memory.controls;
        let charged = self.charge(record);
        let group = record.memory.group;
        let claim = group.and_then(|group| self.groups.get(usize::from(group)));
        let fellows = self.vms.iter().flatten().filter(|vm| vm.memory.group == group);
        let sum = fellows.map(|vm| u64::from(vm.memory.controls.shares)).sum();
        Some(Demand {
            shares: weight(controls.shares, claim, sum),
            reservation: controls.reservation.0,
            limit: controls.limit.0,
            active: record.averages.active_pages(charged),
            tax: controls.tax.unwrap_or(self.policy.tax),
        })
    }

    /// Whether targets were computed in the tick at `now`.
    pub(crate) fn has_rebalanced_at(&self, now: Nanos) -> bool {
        self.background.rebalanced == now
    }

    /// Computes every VM's target.
    pub fn rebalance(&mut self) {
        let mut demands = [Demand::default(); MAX_VMS];
        let mut groups = [None; MAX_VMS];
        let mut ids = [VmId(0); MAX_VMS];
        let mut count = 0;
        for vm in (0..MAX_VMS as u16).map(VmId) {
            if let Some(demand) = self.demand(vm) {
                (demands[count], ids[count]) = (demand, vm);
                groups[count] = self.vm(vm).and_then(|record| record.memory.group);
                count += 1;
            }
        }
        // Targets in every state drive free memory above `high`.
        let fixed = self.held() + u64::from(self.own) + self.pressure.thresholds().high;
        let budget = self.total().saturating_sub(fixed);
        let mut targets = [Target::default(); MAX_VMS];
        let mut untaxed = [Target::default(); MAX_VMS];
        let (groups, claims) = (&groups[..count], &self.groups);
        let level =
            divide_in_groups(budget, &demands[..count], groups, claims, &mut targets[..count]);
        self.background.budget = budget;
        for demand in &mut demands[..count] {
            demand.tax = 0;
        }
        divide_in_groups(budget, &demands[..count], groups, claims, &mut untaxed[..count]);
        self.background.level = level.saturating_mul(FINE);
        for at in 0..count {
            if let Some(record) = &mut self.vms[ids[at].0 as usize] {
                record.target = targets[at].pages;
                record.bound = targets[at].bound;
                record.untaxed = untaxed[at].pages;
            }
        }
        self.counters.rebalances += 1;
    }

    /// Every term behind a VM's target.
    pub fn explain(&self, vm: VmId) -> Option<Explanation> {
        let record = self.vm(vm)?;
        let demand = self.demand(vm)?;
        Some(Explanation {
            stats: self.vm_stats(vm)?,
            controls: record.memory.controls,
            weight_milli: demand.shares * 1000 / FINE,
            taxed_shares: taxed_shares(&demand, self.charge(record)) / FINE,
            tax: demand.tax,
            budget: self.background.budget,
            sum_reservations: self
                .vms
                .iter()
                .flatten()
                .map(|vm| vm.memory.controls.reservation.0)
                .sum(),
            level_milli: ((u128::from(self.background.level) * 1000) >> 32) as u64,
            bound: record.bound,
            untaxed_target: record.untaxed,
            at: self.background.rebalanced,
            trigger: self.background.last_trigger,
            taken_apart: self.taken_apart(vm),
        })
    }

    fn steer_balloons(&mut self, mechanism: &mut impl Mechanism) {
        let state = self.pressure.state();
        for vm in (0..MAX_VMS as u16).map(VmId) {
            let Some(record) = self.vm(vm) else { continue };
            if !record.balloon_ready || record.is_paused || record.balloon_fixed.is_some() {
                continue;
            }
            let (size, limit) = (record.memory.size.0, record.memory.controls.limit.0);
            let held = record.count(PageState::Ballooned);
            let above = self.charge(record).saturating_sub(record.target);
            let wanted = match state {
                // Nothing is reclaimed: a balloon may only shrink towards what the target leaves.
                PressureState::High => held.min(size.saturating_sub(record.target)),
                _ if above > 0 => held + above,
                _ => held.min(size.saturating_sub(record.target)),
            };
            let wanted = wanted.max(size - limit);
            let Some(record) = &mut self.vms[vm.0 as usize] else { continue };
            let target =
                record.controller.step(size, held, record.balloon_refused, wanted, &record.guest);
            if target != record.balloon_target {
                record.balloon_target = target;
                mechanism.signal_vmm(vm);
            }
        }
    }

    /// Pages VMs out that are above their targets, as the state demands.
    fn reclaim(&mut self, mechanism: &mut impl Mechanism) {
        for vm in (0..MAX_VMS as u16).map(VmId) {
            let Some(record) = self.vm(vm) else { continue };
            let wanted = self.to_page_out(record).min(RECLAIM_BATCH);
            let mut kept = 0;
            for _ in 0..wanted {
                let Some(index) = self.pick(vm) else { break };
                if self.reclaim_page(vm, index, mechanism) == Reclaimed::Kept {
                    kept += 1;
                    // The queue to the disk is full, or nothing compresses.
                    if kept == 4 {
                        break;
                    }
                }
            }
        }
        if self.pressure.state() != PressureState::High {
            self.write_back(mechanism);
        }
    }

    /// The swap area took or gave pages: takes more if it must, and wakes whoever can go on.
    pub fn go_on(&mut self, mechanism: &mut impl Mechanism) {
        self.reclaim(mechanism);
        self.block_and_wake(mechanism);
    }

    /// A VM was told that there is no memory: it is signalled when there is.
    pub fn wait(&mut self, vm: VmId) {
        if let Some(Some(record)) = self.vms.get_mut(vm.0 as usize) {
            record.blocked = true;
        }
    }

    /// Looks at random pages, as many as the budgets allow.
    fn scan(&mut self, now: Nanos, mechanism: &mut impl Mechanism) {
        let rate = self.policy.scan_rate;
        self.background.scan_tokens.refill(now, rate, SCAN_BURST);
        for record in self.vms.iter_mut().flatten() {
            record.scan_tokens.refill(now, self.policy.scan_rate_vm, SCAN_BURST);
        }
        let mut idle = 0;
        while idle < MAX_VMS && self.background.scan_tokens.whole() > 0 {
            let vm = VmId(self.background.scan_hand);
            self.background.scan_hand = (self.background.scan_hand + 1) % MAX_VMS as u16;
            let ready = self.vms[vm.0 as usize].as_mut().is_some_and(|vm| vm.scan_tokens.take());
            let Some(index) = ready.then(|| self.pick_to_scan(vm)).flatten() else {
                idle += 1;
                continue;
            };
            idle = 0;
            self.background.scan_tokens.take();
            let zero_before = self.zero_pages();
            let start = mechanism.ticks();
            let scanned = self.scan_page(vm, index, mechanism);
            let ticks = mechanism.ticks().wrapping_sub(start);
            self.counters.scanned += 1;
            let merged = scanned == Scanned::Merged;
            let counter =
                if merged { &mut self.counters.merge_ticks } else { &mut self.counters.scan_ticks };
            *counter += ticks;
            if merged && self.zero_pages() > zero_before {
                self.counters.merged_zero += 1;
            } else if merged {
                self.counters.merged += 1;
            }
            if let Some(record) = &mut self.vms[vm.0 as usize] {
                record.scanned += 1;
                record.merged += u64::from(merged);
            }
        }
    }

    fn zero_pages(&self) -> u64 {
        self.vms.iter().flatten().map(|vm| vm.count(PageState::Zero)).sum()
    }

    /// The next private page that may be shared, in a random order in which each page comes once before any comes again; gives
    /// up after some pages that may not, so that a VM with nothing left costs little, but not so soon that one with a twentieth
    /// of its pages left falls behind the budget.
    fn pick_to_scan(&mut self, vm: VmId) -> Option<u32> {
        let record = self.vms[vm.0 as usize].as_mut()?;
        if record.memory.controls.sharing == protocol::mem::Sharing::None {
            return None;
        }
        let (base, size) = (record.base, record.memory.size.0 as u32);
        (0..PICK_STEPS).map(|_| record.walk.next(size, &mut self.random)).find(|index| {
            let entry = self.entries[(base + index) as usize];
            entry.state() == PageState::Private && !entry.is_ineligible()
        })
    }

    /// In `low` VMs above their target wait; whoever may go on again is told.
    fn block_and_wake(&mut self, mechanism: &mut impl Mechanism) {
        let room = self.ledger.free() > self.background.break_reserve;
        for vm in (0..MAX_VMS as u16).map(VmId) {
            let Some(record) = self.vm(vm) else { continue };
            let was = record.blocked;
            let blocks = self.is_held(vm);
            if let Some(record) = &mut self.vms[vm.0 as usize] {
                record.blocked = blocks || was && !room;
                if was && !record.blocked {
                    mechanism.signal_vmm(vm);
                }
            }
        }
    }

    /// Pressure now.
    pub const fn pressure_state(&self) -> PressureState {
        self.pressure.state()
    }

    /// What a VM's target rests on.
    pub fn bound(&self, vm: VmId) -> Option<TargetBound> {
        self.vm(vm).map(|record| record.bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::INCOMPRESSIBLE;
    use crate::server::Policy;
    use crate::server::tests::{World, swapping};
    use proptest::prelude::*;
    use protocol::mem::{
        GfnRange, MemError, MemReply, MemRequest, Sharing, VmMemory, release_reason,
    };
    use protocol::system::GroupMemory;

    /// Without a balloon only paging can keep it; a VM with a balloon that works, or without a limit, keeps its pages.
    #[test]
    fn a_limit_holds_with_memory_to_spare() {
        let mut world = World::new(16, 64, swapping());
        for vm in 0..3 {
            world.admit(vm, 4, Sharing::None);
            for page in 0..1024 {
                assert!(world.write(vm, page, INCOMPRESSIBLE | u64::from(page)));
            }
        }
        world.server.control(VmId(1), MemRequest::BalloonReady { ready: true });
        let mut controls = world.server.vm(VmId(0)).unwrap().memory.controls;
        controls.limit = Pages(700);
        for vm in [0, 1] {
            let order = MemRequest::SetControls { vm: VmId(vm), controls };
            assert_eq!(world.server.order(order, &mut world.machine), MemReply::Done);
        }
        let charged =
            |world: &World<'_>, vm| world.server.charge(world.server.vm(VmId(vm)).unwrap());
        for tick in 1..=15 {
            world.server.tick(Nanos::from_millis(100 * tick), &mut world.machine);
            while world.disk(false) {}
            world.check();
        }
        assert_eq!(world.server.pressure_state(), PressureState::High);
        assert_eq!([0, 1, 2].map(|vm| charged(&world, vm)), [700, 1024, 1024]);
        // What it touches comes back, and others go.
        for page in 0..1024 {
            world.read(0, page);
        }
        for tick in 16..=30 {
            world.server.tick(Nanos::from_millis(100 * tick), &mut world.machine);
            while world.disk(false) {}
            world.check();
        }
        assert_eq!(charged(&world, 0), 700);
    }

    #[test]
    fn in_low_a_vm_above_its_target_waits_and_another_does_not() {
        let mut world = World::new(4, 64, swapping());
        // Nothing can be paged out.
        world.machine.queue_depth = 0;
        world.admit(0, 8, Sharing::None);
        world.admit(1, 2, Sharing::None);
        let mut pages = 0;
        while world.write(0, pages, INCOMPRESSIBLE | u64::from(pages)) {
            pages += 1;
            if pages.is_multiple_of(4) {
                let now = Nanos::from_millis(100 * u64::from(pages));
                world.server.tick(now, &mut world.machine);
            }
        }
        assert_eq!(world.server.pressure_state(), PressureState::Low);
        let free = world.server.free();
        assert!(free > u64::from(world.server.background.break_reserve) + 4, "{free} free");
        assert!(world.write(1, 0, 1), "below its target");
        assert!(!world.write(0, pages, 1), "above its target");
        assert!(world.server.vm_stats(VmId(0)).unwrap().blocked);

        world.machine.signals.clear();
        let given = GfnRange::new(world.gfn(0, 0), 1024).into_iter();
        let reason = release_reason::BALLOON;
        world.server.release(VmId(0), reason, given, &mut world.machine);
        world.server.tick(Nanos::from_millis(1_000_000), &mut world.machine);
        assert_eq!(world.machine.signals.first(), Some(&VmId(0)), "it is told");
        assert!(world.write(0, pages, 1));
        world.check();
    }

    fn of_group(world: &mut World<'_>, vm: u16, shares: u32) {
        let mut memory = VmMemory::new(Pages(8 << 8));
        (memory.group, memory.controls.shares) = (Some(0), shares);
        let order = MemRequest::CreateVm { vm: VmId(vm), memory };
        let reply = world.server.order(order, &mut world.machine);
        assert!(matches!(reply, MemReply::Created { .. }), "{reply:?}");
    }

    fn targets(world: &mut World<'_>) -> [u64; 3] {
        world.server.rebalance();
        [0, 1, 2].map(|vm| world.server.vm_stats(VmId(vm)).unwrap().target)
    }

    #[test]
    fn a_groups_shares_are_its_vms_together() {
        let mut world = World::new(6, 64, Policy { swap_slots: 8192, ..swapping() });
        of_group(&mut world, 0, 1000);
        of_group(&mut world, 1, 3000);
        world.admit(2, 8, Sharing::None);
        let alone = targets(&mut world);
        assert!(alone[1] > alone[2], "3000 shares against 1000: {alone:?}");
        let claim = GroupMemory { shares: Some(1000), reservation: Pages(0) };
        let order = MemRequest::SetGroup { group: 0, claim };
        assert_eq!(world.server.order(order, &mut world.machine), MemReply::Done);
        let [first, second, other] = targets(&mut world);
        assert!((first + second).abs_diff(other) <= 3, "{first} + {second} and {other}");
        assert!(second.abs_diff(3 * first) <= 6, "{first} and {second}");
        let terms = world.server.explain(VmId(1)).unwrap();
        assert_eq!((terms.weight_milli, terms.controls.shares), (750_000, 3000));
        // The group's guarantee, whatever its shares are.
        let claim = GroupMemory { shares: Some(1), reservation: Pages(2000) };
        let order = MemRequest::SetGroup { group: 0, claim };
        assert_eq!(world.server.order(order, &mut world.machine), MemReply::Done);
        let [first, second, _] = targets(&mut world);
        assert!(first + second >= 1998, "{first} + {second}");
        assert_eq!(world.server.bound(VmId(0)), Some(TargetBound::Group));
    }

    #[test]
    fn what_a_group_reserves_is_nobody_elses() {
        let mut world = World::new(6, 64, swapping());
        of_group(&mut world, 0, 1000);
        let set = |world: &mut World<'_>, group, pages| {
            let claim = GroupMemory { shares: None, reservation: Pages(pages) };
            world.server.order(MemRequest::SetGroup { group, claim }, &mut world.machine)
        };
        let kept = u64::from(world.server.own) + world.server.most_reserve();
        let total = world.server.total() - kept;
        let much = set(&mut world, 0, total + 1);
        assert!(matches!(much, MemReply::Error(MemError::NotEnoughMemory { .. })), "{much:?}");
        assert_eq!(set(&mut world, 0, total - 512), MemReply::Done);
        let mut memory = VmMemory::new(Pages(1024));
        memory.controls.reservation = Pages(1024);
        let order = MemRequest::CreateVm { vm: VmId(1), memory };
        let (needed, available) = (Pages(1024), Pages(512));
        let refused = MemReply::Error(MemError::NotEnoughMemory { needed, available });
        assert_eq!(world.server.order(order, &mut world.machine), refused);
        // A VM of the group has its reservation out of the group's.
        memory.group = Some(0);
        let order = MemRequest::CreateVm { vm: VmId(1), memory };
        let reply = world.server.order(order, &mut world.machine);
        assert!(matches!(reply, MemReply::Created { .. }), "{reply:?}");
        assert!(matches!(set(&mut world, 200, 1), MemReply::Error(MemError::BadControls)));
    }

    proptest! {
        #[test]
        fn a_bucket_never_gives_more_than_rate_and_burst(
            rate in 0u32..100_000,
            steps in prop::collection::vec((0u64..SECOND, 0u32..5000), 1..60),
        ) {
            let mut tokens = Tokens::default();
            let burst = Nanos::from_millis(100);
            let (mut now, mut taken) = (0u64, 0u128);
            for (elapsed, wanted) in steps {
                now += elapsed;
                tokens.refill(Nanos(now), rate, burst);
                taken += (0..wanted).filter(|_| tokens.take()).count() as u128;
                prop_assert!(taken * u128::from(SECOND) <= u128::from(rate) * u128::from(now));
            }
        }
    }
}
