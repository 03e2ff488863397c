//! Shares, reservations, limits and the idle memory tax: who gets how many pages.
//!
//! Min-funding revocation takes pages from whoever pays least per page, `rho = S / (P (f + k (1 - f)))` with
//! `k = 1 / (1 - tau)` (Waldspurger 2002, section 5). Its fixed point has equal `rho` for everybody between reservation
//! and limit. With `A` active pages of `P` (`f = min(1, A / P)`) that is
//!
//! ```text
//! P = L S                            while L S <= A   (no page is idle: no tax)
//! P = tau A + (1 - tau) L S          beyond           (a further page is idle and costs k times as much)
//! ```
//!
//! for one water level `L`: increasing in `L`, so `L` is found by bisection. Solving for the fixed point at
//! once, instead of moving towards it with the last `f`, is what keeps targets from oscillating: while `A` stays, the second
//! rebalance answers what the first did. Of a client that could use more than it holds no more is seen than `A = P`; its
//! target then grows with what it is given, and at least `1 - tau` of what is left of the way is gone each period.

use protocol::mem::TargetBound;

/// One client of the division.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Weight, at least 1; only ratios count.
    pub shares: u64,
    /// Least pages.
    pub reservation: u64,
    /// Most pages.
    pub limit: u64,
    /// Pages in active use, as estimated.
    pub active: u64,
    /// Idle memory tax in permille, below 1000.
    pub tax: u16,
}

/// What one client gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Pages.
    pub pages: u64,
    /// What they rest on.
    pub bound: TargetBound,
}

/// Fraction bits of the water level.
const LEVEL_BITS: u32 = 32;
/// Highest water level: 8 TiB for one share.
const LEVEL_MAX: u64 = 1 << 63;

impl Demand {
    /// Pages at water level `level`, before reservation and limit.
    fn pages_at(&self, level: u64) -> u64 {
        let full = ((u128::from(level) * u128::from(self.shares)) >> LEVEL_BITS) as u64;
        if full <= self.active {
            return full;
        }
        let tax = u128::from(self.tax);
        let active = u128::from(self.active);
        ((tax * active + (1000 - tax) * u128::from(full)) / 1000) as u64
    }

    fn target_at(&self, level: u64) -> Target {
        let pages = self.pages_at(level);
        if pages <= self.reservation {
            Target { pages: self.reservation, bound: TargetBound::Reservation }
        } else if pages >= self.limit {
            Target { pages: self.limit, bound: TargetBound::Limit }
        } else {
            Target { pages, bound: TargetBound::Shares }
        }
    }
}

/// Divides `budget` pages among `demands`; writes each one's target and answers the water level times 2^32. Their sum is
/// `min(budget, sum of limits)`, or the sum of reservations if that is more (admission forbids it).
pub fn divide(budget: u64, demands: &[Demand], targets: &mut [Target]) -> u64 {
    let sum_at = |level: u64| -> u64 { demands.iter().map(|d| d.target_at(level).pages).sum() };
    // The highest level that fits.
    let (mut low, mut high) = (0u64, LEVEL_MAX);
    if sum_at(high) <= budget {
        low = high;
    }
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if sum_at(middle) <= budget {
            low = middle;
        } else {
            high = middle;
        }
    }
    let mut sum = 0;
    for (target, demand) in targets.iter_mut().zip(demands) {
        *target = demand.target_at(low);
        sum += target.pages;
    }
    // Rounding down leaves less than a page per client.
    for (target, demand) in targets.iter_mut().zip(demands) {
        if sum < budget && target.pages < demand.limit && target.bound == TargetBound::Shares {
            target.pages += 1;
            sum += 1;
        }
    }
    low
}

/// Shares after tax, times 1000: what a page costs at the client's own activity.
pub fn taxed_shares(demand: &Demand, allocated: u64) -> u64 {
    let active = u128::from(demand.active.min(allocated));
    let allocated = u128::from(allocated.max(1));
    let tax = u128::from(demand.tax);
    // S (1 - tau) / (1 - tau f)
    let denominator = 1000 * allocated - tax * active;
    (u128::from(demand.shares) * (1000 - tax) * allocated * 1000 / denominator.max(1)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demand() -> impl Strategy<Value = Demand> {
        (1u64..5000, 0u64..200, 0u64..200, 0u64..250, 0u16..1000).prop_map(
            |(shares, a, b, active, tax)| Demand {
                shares,
                reservation: a.min(b),
                limit: a.max(b),
                active,
                tax,
            },
        )
    }

    /// Largest tax of [`large_demand`]: the default.
    const TAX_SEEN: u64 = 750;

    /// As [`demand`], with so many pages that rounding is small beside them.
    fn large_demand() -> impl Strategy<Value = Demand> {
        demand().prop_map(|demand| Demand {
            reservation: demand.reservation * 100,
            limit: demand.limit * 100,
            active: demand.active * 100,
            tax: demand.tax.min(TAX_SEEN as u16),
            ..demand
        })
    }

    /// Min-funding, page by page: the next page goes to whoever would pay most for it.
    fn page_by_page(budget: u64, demands: &[Demand]) -> Vec<u64> {
        let mut pages: Vec<u64> = demands.iter().map(|demand| demand.reservation).collect();
        while pages.iter().sum::<u64>() < budget {
            let price = |index: usize| {
                let (demand, have) = (&demands[index], pages[index] + 1);
                let k = 1000.0 / (1000.0 - f64::from(demand.tax));
                let f = (demand.active as f64 / have as f64).min(1.0);
                demand.shares as f64 / (have as f64 * (f + k * (1.0 - f)))
            };
            let best = (0..demands.len())
                .filter(|index| pages[*index] < demands[*index].limit)
                .max_by(|a, b| price(*a).total_cmp(&price(*b)));
            match best {
                Some(index) => pages[index] += 1,
                None => break,
            }
        }
        pages
    }

    proptest! {
        #[test]
        fn bisection_is_min_funding_page_by_page(
            budget in 0u64..800,
            demands in prop::collection::vec(demand(), 1..6),
        ) {
            let mut targets = vec![Target::default(); demands.len()];
            divide(budget, &demands, &mut targets);
            let by_hand = page_by_page(budget, &demands);
            for (target, hand) in targets.iter().zip(&by_hand) {
                let slack = demands.len() as u64;
                prop_assert!(target.pages.abs_diff(*hand) <= slack, "{targets:?} {by_hand:?}");
            }
        }

        #[test]
        fn sums_bounds_and_order_hold(
            budget in 0u64..1 << 30,
            demands in prop::collection::vec(demand(), 1..16),
        ) {
            let mut targets = vec![Target::default(); demands.len()];
            divide(budget, &demands, &mut targets);
            let sum: u64 = targets.iter().map(|target| target.pages).sum();
            let floor: u64 = demands.iter().map(|demand| demand.reservation).sum();
            let most: u64 = demands.iter().map(|demand| demand.limit).sum();
            prop_assert!(sum <= budget.max(floor));
            // A page may stay undivided only where everyone rests on a bound at a step of the level.
            prop_assert!(sum + demands.len() as u64 >= budget.min(most).max(floor));
            for (target, demand) in targets.iter().zip(&demands) {
                prop_assert!((demand.reservation..=demand.limit).contains(&target.pages));
            }
        }

        /// What is seen of a client is no more than it holds. Who has an idle page is seen as it is; a client that could use
        /// more than it has is seen a little better each period. From any start: the water level only falls, no target turns
        /// more than once, and what is left of the way to the fixed point shrinks by a quarter (1 - tax) each period.
        #[test]
        fn constant_demand_comes_to_rest(
            budget in 0u64..200_000,
            demands in prop::collection::vec((large_demand(), 0u64..20_000), 1..8),
        ) {
            let rounding = demands.len() as u64;
            let mut targets: Vec<Target> =
                demands.iter().map(|(_, held)| Target { pages: *held, ..Target::default() }).collect();
            let (mut rounds, mut levels) = (Vec::new(), Vec::new());
            for _ in 0..60 {
                let seen = |(at, (demand, _)): (usize, &(Demand, u64))| {
                    Demand { active: demand.active.min(targets[at].pages), ..*demand }
                };
                let seen: Vec<Demand> = demands.iter().enumerate().map(seen).collect();
                levels.push(divide(budget, &seen, &mut targets));
                rounds.push(targets.iter().map(|target| target.pages).collect::<Vec<u64>>());
            }
            prop_assert!(levels[1..].is_sorted_by(|a, b| a >= b || (b - a) >> LEVEL_BITS == 0));
            let rest = rounds[59].clone();
            let left = |round: &[u64]| -> u64 {
                round.iter().zip(&rest).map(|(now, then)| now.abs_diff(*then)).sum()
            };
            for pair in rounds.windows(2) {
                let most = left(&pair[0]) * TAX_SEEN / 1000 + 2 * rounding;
                prop_assert!(left(&pair[1]) <= most, "{} after {}", left(&pair[1]), left(&pair[0]));
            }
            for client in 0..demands.len() {
                let mut way: Vec<u64> = rounds.iter().map(|round| round[client]).collect();
                // Steps that are rounding's are none.
                way.dedup_by(|next, last| next.abs_diff(*last) <= rounding);
                let turns = way.windows(3).filter(|way| (way[0] < way[1]) != (way[1] < way[2]));
                prop_assert!(turns.count() <= 1, "{way:?}");
            }
        }
    }

    #[test]
    fn figure_seven_of_the_paper() {
        // 360 MB for two VMs of 256 MB, tax 75 %: about 102 and 244 MB active 9 and 205.
        let vm = |active, tax| Demand { shares: 1000, reservation: 0, limit: 256, active, tax };
        let mut targets = [Target::default(); 2];
        divide(360, &[vm(9, 0), vm(205, 0)], &mut targets);
        assert_eq!(targets.map(|target| target.pages), [180, 180]);
        divide(360, &[vm(9, 750), vm(205, 750)], &mut targets);
        let [idle, busy] = targets.map(|target| target.pages);
        assert!((100..=110).contains(&idle) && (250..=256).contains(&busy), "{idle} {busy}");
    }

    #[test]
    fn without_tax_a_share_is_a_share() {
        let demand = Demand { shares: 700, reservation: 0, limit: 100, active: 3, tax: 0 };
        assert_eq!(taxed_shares(&demand, 80), 700_000);
        let taxed = Demand { tax: 750, active: 0, ..demand };
        assert_eq!(taxed_shares(&taxed, 80), 175_000);
        assert_eq!(taxed_shares(&Demand { active: 80, ..taxed }, 80), 700_000);
    }
}
