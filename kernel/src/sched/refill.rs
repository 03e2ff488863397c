//! Refills of a scheduling context: how used time comes back (ABI section 9).
//!
//! The refills form a ring ordered by time; their amounts always add up to the budget. A round-robin context (period 0) has one
//! refill, which is full again at the start of every time slice.

use crate::mem::Ref;
use crate::object::sched_context::{Refill, SchedContext};

type Sc = Ref<SchedContext>;

impl SchedContext {
    /// Tells whether the context was configured.
    #[inline(always)]
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.refill_max.get() > 0
    }

    /// Tells whether the context shares its core in turns rather than by budget.
    #[inline]
    #[must_use]
    pub fn is_round_robin(&self) -> bool {
        self.period.get() == 0
    }
}

impl Ref<SchedContext> {
    /// Position in the ring of refill `index` counted from the head.
    #[inline]
    fn position(self, index: u32) -> u32 {
        let position = self.refill_head.get() + index;
        if position >= self.refill_max.get() { position - self.refill_max.get() } else { position }
    }

    /// Reads the first refill.
    #[inline]
    #[must_use]
    pub fn head(self) -> Refill {
        self.refill(self.refill_head.get()).get()
    }

    #[inline]
    fn set_head(self, refill: Refill) {
        self.refill(self.refill_head.get()).set(refill);
    }

    fn tail(self) -> Refill {
        self.refill(self.position(self.refill_count.get() - 1)).get()
    }

    fn set_tail(self, refill: Refill) {
        self.refill(self.position(self.refill_count.get() - 1)).set(refill);
    }

    fn pop_head(self) -> Refill {
        let head = self.head();
        self.refill_head.set(self.position(1));
        self.refill_count.set(self.refill_count.get() - 1);
        head
    }

    /// Refill `index` counted from the head.
    #[must_use]
    pub fn refill_at(self, index: u32) -> Refill {
        self.refill(self.position(index)).get()
    }

    fn is_single(self) -> bool {
        self.refill_count.get() == 1
    }
}

/// Gives a context its first refill: everything, now.
pub fn configure_new(sc: Sc, budget: u64, period: u64, max: u32, now: u64) {
    sc.period.set(period);
    sc.budget.set(budget);
    sc.refill_max.set(max);
    sc.refill_head.set(0);
    sc.refill_count.set(1);
    sc.set_head(Refill { time: now, amount: budget });
}

/// Changes a context in use without giving more than the new budget in any window of the new period: the head is trimmed, or what is
/// missing comes one period later.
pub fn configure_again(sc: Sc, budget: u64, period: u64, max: u32, now: u64, wcet: u64) {
    let mut head = sc.head();
    sc.refill_head.set(0);
    sc.refill_count.set(1);
    sc.refill_max.set(max);
    sc.period.set(period);
    sc.budget.set(budget);
    if is_ready_at(head.time, now, wcet) {
        head.time = now;
    }
    if period == 0 || head.amount >= budget {
        head.amount = budget;
        sc.set_head(head);
    } else {
        sc.set_head(head);
        schedule_used(sc, Refill { time: head.time + period, amount: budget - head.amount });
    }
}

#[inline]
fn is_ready_at(time: u64, now: u64, wcet: u64) -> bool {
    time <= now + wcet
}

/// Tells whether the first refill may be used now.
#[inline]
#[must_use]
pub fn is_ready(sc: Sc, now: u64, wcet: u64) -> bool {
    is_ready_at(sc.head().time, now, wcet)
}

/// Tells how much of the first refill is left when `used` of it is gone.
#[inline]
#[must_use]
pub fn capacity(sc: Sc, used: u64) -> u64 {
    sc.head().amount.saturating_sub(used)
}

fn schedule_used(sc: Sc, new: Refill) {
    let mut tail = sc.tail();
    if tail.time + tail.amount >= new.time {
        tail.amount += new.amount;
        sc.set_tail(tail);
    } else if sc.refill_count.get() == sc.refill_max.get() {
        // No room: the last refill waits until the new one is due too, so nobody gains by a short list.
        tail.time = new.time - tail.amount;
        tail.amount += new.amount;
        sc.set_tail(tail);
    } else {
        sc.refill_count.set(sc.refill_count.get() + 1);
        sc.set_tail(new);
    }
}

/// Takes `used` ticks from the front of the list; each part comes back one period after the point it counts from.
pub fn charge(sc: Sc, used: u64, min_budget: u64) {
    let period = sc.period.get();
    let mut used = used;
    if period == 0 {
        let mut head = sc.head();
        head.amount = head.amount.saturating_sub(used);
        sc.set_head(head);
        return;
    }
    while used > 0 && sc.head().amount <= used {
        used -= sc.head().amount;
        if sc.is_single() {
            let mut head = sc.head();
            head.time += period;
            sc.set_head(head);
        } else {
            let mut old = sc.pop_head();
            old.time += period;
            schedule_used(sc, old);
        }
    }
    if used > 0 {
        let mut head = sc.head();
        let back = Refill { time: head.time + period, amount: used };
        head.amount -= used;
        head.time += used;
        sc.set_head(head);
        schedule_used(sc, back);
    }
    while sc.head().amount < min_budget && !sc.is_single() {
        let old = sc.pop_head();
        let mut head = sc.head();
        head.time -= old.amount.min(head.time);
        head.amount += old.amount;
        sc.set_head(head);
    }
}

/// Starts a new time slice of a round-robin context.
pub fn refill_round_robin(sc: Sc) {
    let mut head = sc.head();
    head.amount = sc.budget.get();
    sc.set_head(head);
}

/// Called when a thread starts to use the context: time not used in the past is not saved up, and refills that are due together join.
pub fn unblock_check(sc: Sc, now: u64, wcet: u64) {
    if sc.is_round_robin() || !is_ready(sc, now, wcet) {
        return;
    }
    let mut head = sc.head();
    head.time = now;
    sc.set_head(head);
    while !sc.is_single() && sc.refill_at(1).time <= sc.head().time + sc.head().amount {
        let old = sc.pop_head();
        let mut head = sc.head();
        head.time = old.time;
        head.amount += old.amount;
        sc.set_head(head);
    }
}

/// Adds up all refills.
#[must_use]
pub fn total(sc: Sc) -> u64 {
    (0..sc.refill_count.get()).map(|index| sc.refill_at(index).amount).sum()
}
