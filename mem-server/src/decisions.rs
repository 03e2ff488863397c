//! Which changes of targets the user hears of, with their numbers, and how often.

use protocol::mem::{Explanation, TargetBound, Trigger};
use protocol::units::{MAX_VMS, Nanos, VmId};

use crate::server::Server;

/// Shortest time between two lines on the same VM.
const QUIET: Nanos = Nanos::from_secs(10);
/// Pages a target has moved at least, whatever the VM's size.
const LEAST: u64 = 256;
/// Part of the VM's size a target has moved at least: one in this many.
const PART: u64 = 32;

/// What the user heard last of a VM's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    target: u64,
    at: Option<Nanos>,
}

impl Told {
    /// Nothing yet: a VM that has its limit of `target` pages is no news.
    pub(crate) const fn expecting(target: u64) -> Self {
        Self { target, at: None }
    }
}

/// A change of a target that is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whose target.
    pub vm: VmId,
    /// Pages it was when it was told last; the limit the first time.
    pub from: u64,
    /// Every term behind what it is now.
    pub terms: Explanation,
}

impl Decision {
    /// What holds the target where it is, in words.
    pub const fn bound(&self) -> &'static str {
        match self.terms.bound {
            TargetBound::Reservation => "its reservation",
            TargetBound::Group => "its group's reservation",
            TargetBound::Shares => "shares and tax",
            TargetBound::Limit => "its limit",
        }
    }

    /// Why it was computed, in words.
    pub const fn trigger(&self) -> &'static str {
        match self.terms.trigger {
            Trigger::Controls => "controls changed",
            Trigger::Added => "a VM came",
            Trigger::Removed => "a VM went",
            Trigger::Threshold => "free memory crossed a threshold",
            Trigger::Periodic => "the period is over",
        }
    }
}

impl Server<'_> {
    /// The next change of a target the user should hear of, in a tick that computed targets. Small changes are summed up until they are
    /// large, and no VM is spoken of more than once in [`QUIET`]; what is left unsaid then is said later, if it still holds.
    pub fn next_decision(&mut self, now: Nanos) -> Option<Decision> {
        if !self.has_rebalanced_at(now) {
            return None;
        }
        let vm = (0..MAX_VMS as u16).map(VmId).find(|vm| self.is_news(*vm, now))?;
        let terms = self.explain(vm)?;
        let record = self.vms.get_mut(vm.0 as usize)?.as_mut()?;
        let from = record.told.target;
        record.told = Told { target: record.target, at: Some(now) };
        Some(Decision { vm, from, terms })
    }

    fn is_news(&self, vm: VmId, now: Nanos) -> bool {
        self.vm(vm).is_some_and(|record| {
            let least = (record.memory.size.0 / PART).max(LEAST);
            let is_quiet = record.told.at.is_some_and(|at| now.0 < at.0.saturating_add(QUIET.0));
            !is_quiet && record.target.abs_diff(record.told.target) >= least
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Policy;
    use crate::server::tests::World;
    use protocol::mem::{MemRequest, Sharing};
    use protocol::units::Pages;

    fn tick(world: &mut World<'_>, seconds: u64) -> Vec<Decision> {
        let now = Nanos::from_secs(seconds);
        world.server.tick(now, &mut world.machine);
        core::iter::from_fn(|| world.server.next_decision(now)).collect()
    }

    fn limit(world: &mut World<'_>, vm: u16, mib: u64) {
        let mut controls = world.server.vm(VmId(vm)).unwrap().memory.controls;
        controls.limit = Pages(mib * 256);
        let order = MemRequest::SetControls { vm: VmId(vm), controls };
        world.server.order(order, &mut world.machine);
    }

    #[test]
    fn a_new_target_is_told_once_with_its_terms() {
        let mut world = World::new(32, 64, Policy::default());
        world.admit(0, 16, Sharing::None);
        world.admit(1, 16, Sharing::None);
        assert_eq!(tick(&mut world, 1), [], "both have their limits");
        limit(&mut world, 1, 8);
        let told = tick(&mut world, 2);
        assert_eq!(told.iter().map(|told| told.vm.0).collect::<Vec<_>>(), [1]);
        let (from, terms) = (told[0].from, told[0].terms);
        assert_eq!((from, terms.stats.target, terms.bound), (4096, 2048, TargetBound::Limit));
        assert_eq!(tick(&mut world, 40), [], "nothing has changed");
    }

    #[test]
    fn no_vm_is_spoken_of_often_and_the_last_word_comes() {
        let mut world = World::new(32, 64, Policy::default());
        world.admit(0, 16, Sharing::None);
        let mut lines = 0;
        for second in 101..200 {
            limit(&mut world, 0, if second % 2 == 0 { 16 } else { 4 });
            lines += tick(&mut world, second).len();
        }
        assert!((5..=10).contains(&lines), "{lines} lines in 99 s");
        limit(&mut world, 0, 4);
        let told = tick(&mut world, 240);
        limit(&mut world, 0, 4);
        assert!(told.len() <= 1 && tick(&mut world, 260).is_empty());
        assert_eq!(world.server.vm(VmId(0)).unwrap().told.target, 4 * 256);
    }

    #[test]
    fn small_changes_are_told_when_they_add_up() {
        let mut world = World::new(64, 64, Policy::default());
        world.admit(0, 64, Sharing::None);
        // A 32nd of 64 MiB is 2 MiB.
        limit(&mut world, 0, 63);
        assert_eq!(tick(&mut world, 200), []);
        limit(&mut world, 0, 62);
        assert_eq!(tick(&mut world, 300).len(), 1);
    }
}
