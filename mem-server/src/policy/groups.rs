//! Groups of VMs: a weight and a reservation that the VMs of a group have together.
//!
//! A group with shares competes as one client: its VMs divide its weight by their own, so that adding a VM to a group takes
//! nothing from the others (ESX's resource pools do the same). A group without shares changes nothing about its VMs' weights.
//! A group's reservation is kept whatever the weights say: a group whose VMs would get less together divides its reservation among
//! them instead, and the others the rest.

use protocol::mem::TargetBound;
use protocol::system::{GROUPS_MAX, GroupMemory};
use protocol::units::MAX_VMS;

use crate::policy::allocation::{Demand, Target, divide};

/// Weights are finer than shares by this factor, so that parts of a group's weight are not rounded away.
pub const FINE: u64 = 256;

/// The weight of a VM with `shares` whose group, if it has one, has `claim`, and whose group's VMs have `sum` shares together.
pub fn weight(shares: u32, claim: Option<&GroupMemory>, sum: u64) -> u64 {
    let own = u64::from(shares);
    let Some(group) = claim.and_then(|claim| claim.shares) else { return own * FINE };
    let weight = u128::from(group) * u128::from(FINE) * u128::from(own) / u128::from(sum.max(1));
    (weight as u64).max(1)
}

/// Divides like [`divide`] among VMs of which number n is in group `groups[n]`, at most [`MAX_VMS`]: every group gets its reservation, or
/// its VMs' limits if these are less. Answers the water level of those whom no group's reservation decided, times 2^32.
pub fn divide_in_groups(
    budget: u64,
    demands: &[Demand],
    groups: &[Option<u8>],
    claims: &[GroupMemory; GROUPS_MAX],
    targets: &mut [Target],
) -> u64 {
    let is_in = |vm: usize, group: usize| {
        groups.get(vm).is_some_and(|own| own.is_some_and(|own| usize::from(own) == group))
    };
    // Groups whose reservation decides. More of them leave less for the others, so none ever leaves.
    let mut decided = [false; GROUPS_MAX];
    loop {
        let mut rest = budget;
        for (group, claim) in claims.iter().enumerate().filter(|(group, _)| decided[*group]) {
            divide_some(claim.reservation.0, demands, targets, |vm| is_in(vm, group));
            for (vm, target) in targets.iter_mut().enumerate().filter(|(vm, _)| is_in(*vm, group)) {
                if demands.get(vm).is_some_and(|demand| target.pages > demand.reservation) {
                    target.bound = TargetBound::Group;
                }
                rest = rest.saturating_sub(target.pages);
            }
        }
        let is_free = |vm: usize| !(0..GROUPS_MAX).any(|group| decided[group] && is_in(vm, group));
        let level = divide_some(rest, demands, targets, is_free);
        let mut is_new = false;
        for (group, claim) in claims.iter().enumerate() {
            let members = || (0..demands.len()).filter(|vm| is_in(*vm, group));
            let gets: u64 = members().map(|vm| targets[vm].pages).sum();
            let most: u64 = members().map(|vm| demands[vm].limit).sum();
            if !decided[group] && gets < claim.reservation.0.min(most) {
                decided[group] = true;
                is_new = true;
            }
        }
        if !is_new {
            return level;
        }
    }
}

/// Divides among those of whom `is_one` says so.
fn divide_some(
    budget: u64,
    demands: &[Demand],
    targets: &mut [Target],
    is_one: impl Fn(usize) -> bool,
) -> u64 {
    let mut some = [Demand::default(); MAX_VMS];
    let mut count = 0;
    for (_, demand) in demands.iter().enumerate().filter(|(vm, _)| is_one(*vm)).take(MAX_VMS) {
        some[count] = *demand;
        count += 1;
    }
    let mut parts = [Target::default(); MAX_VMS];
    let level = divide(budget, &some[..count], &mut parts[..count]);
    let ones = targets.iter_mut().enumerate().filter(|(vm, _)| is_one(*vm));
    for ((_, target), part) in ones.zip(parts) {
        *target = part;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::units::Pages;

    const NONE: GroupMemory = GroupMemory { reservation: Pages(0), shares: None };

    fn demand() -> impl Strategy<Value = Demand> {
        (1u64..5000, 0u64..100, 100u64..300, 0u64..250, 0u16..1000).prop_map(
            |(shares, reservation, limit, active, tax)| Demand {
                shares: shares * FINE,
                reservation,
                limit,
                active,
                tax,
            },
        )
    }

    fn sum(targets: &[Target], groups: &[Option<u8>], group: u8) -> u64 {
        let own = targets.iter().zip(groups).filter(|(_, own)| **own == Some(group));
        own.map(|(target, _)| target.pages).sum()
    }

    proptest! {
        #[test]
        fn every_group_has_its_reservation_and_nothing_is_given_twice(
            vms in prop::collection::vec((demand(), prop::option::of(0u8..3)), 1..MAX_VMS),
            reservations in prop::array::uniform3(0u64..800),
            slack in 0u64..2000,
        ) {
            let demands: Vec<Demand> = vms.iter().map(|(demand, _)| *demand).collect();
            let groups: Vec<Option<u8>> = vms.iter().map(|(_, group)| *group).collect();
            let mut claims = [NONE; GROUPS_MAX];
            let mut needed = 0;
            for group in 0..3_u8 {
                let of = |what: fn(&Demand) -> u64| -> u64 {
                    let own = vms.iter().filter(|(_, own)| *own == Some(group));
                    own.map(|(demand, _)| what(demand)).sum()
                };
                let reservation = reservations[usize::from(group)];
                claims[usize::from(group)].reservation = Pages(reservation);
                needed += reservation.max(of(|demand| demand.reservation));
            }
            needed += vms.iter().filter(|(_, group)| group.is_none()).map(|(d, _)| d.reservation).sum::<u64>();
            let budget = needed + slack;
            let mut targets = vec![Target::default(); vms.len()];
            divide_in_groups(budget, &demands, &groups, &claims, &mut targets);
            prop_assert!(targets.iter().map(|target| target.pages).sum::<u64>() <= budget);
            for (target, demand) in targets.iter().zip(&demands) {
                prop_assert!((demand.reservation..=demand.limit).contains(&target.pages));
            }
            for group in 0..3_u8 {
                let limits: u64 =
                    vms.iter().filter(|(_, own)| *own == Some(group)).map(|(d, _)| d.limit).sum();
                // Rounding may leave a page per VM.
                let least = reservations[usize::from(group)].min(limits).saturating_sub(vms.len() as u64);
                prop_assert!(sum(&targets, &groups, group) >= least, "{targets:?}");
            }
        }

        #[test]
        fn groups_without_claims_change_nothing(
            vms in prop::collection::vec((demand(), prop::option::of(0u8..3)), 1..MAX_VMS),
            budget in 0u64..4000,
        ) {
            let demands: Vec<Demand> = vms.iter().map(|(demand, _)| *demand).collect();
            let groups: Vec<Option<u8>> = vms.iter().map(|(_, group)| *group).collect();
            let (mut with, mut without) = (vec![Target::default(); vms.len()], vec![Target::default(); vms.len()]);
            divide_in_groups(budget, &demands, &groups, &[NONE; GROUPS_MAX], &mut with);
            divide(budget, &demands, &mut without);
            prop_assert_eq!(with, without);
        }

        #[test]
        fn a_group_with_shares_weighs_what_it_weighs_however_many_it_has(
            members in prop::collection::vec(1u32..5000, 1..8),
            group in 1u32..5000,
            other in 1u32..5000,
        ) {
            let claim = GroupMemory { shares: Some(group), ..NONE };
            let total: u64 = members.iter().map(|shares| u64::from(*shares)).sum();
            let vm = |shares| Demand { shares, reservation: 0, limit: 1 << 40, active: 0, tax: 0 };
            let mut demands: Vec<Demand> =
                members.iter().map(|shares| vm(weight(*shares, Some(&claim), total))).collect();
            demands.push(vm(weight(other, None, 0)));
            let mut groups = vec![Some(0); members.len()];
            groups.push(None);
            let mut claims = [NONE; GROUPS_MAX];
            claims[0] = claim;
            let budget = 1_000_000;
            let mut targets = vec![Target::default(); demands.len()];
            divide_in_groups(budget, &demands, &groups, &claims, &mut targets);
            let wanted = budget * u64::from(group) / (u64::from(group) + u64::from(other));
            let got = sum(&targets, &groups, 0);
            // A weight of one share is rounded by at most 1/256 of a share for each VM.
            let slack = budget * members.len() as u64 / (FINE * u64::from(group.min(other))) + 16;
            prop_assert!(got.abs_diff(wanted) <= slack, "{got} of {wanted}");
        }
    }

    #[test]
    fn a_short_group_divides_its_reservation_by_the_shares_of_its_vms() {
        let vm = |shares: u64| Demand {
            shares: shares * FINE,
            reservation: 0,
            limit: 1000,
            active: 0,
            tax: 0,
        };
        let mut claims = [NONE; GROUPS_MAX];
        claims[1].reservation = Pages(300);
        let mut targets = [Target::default(); 3];
        let groups = [Some(1), Some(1), None];
        divide_in_groups(400, &[vm(100), vm(200), vm(9700)], &groups, &claims, &mut targets);
        assert_eq!(targets.map(|target| target.pages), [100, 200, 100]);
        assert_eq!(targets[0].bound, TargetBound::Group);
        assert_eq!(targets[2].bound, TargetBound::Shares);
    }
}
