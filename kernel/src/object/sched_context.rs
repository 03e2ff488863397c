//! Scheduling context: a budget of time, its refills, who runs on it.

use core::cell::Cell;

use super::notification::Notification;
use super::reply::Reply;
use super::tcb::Tcb;
use crate::mem::Ref;

/// An amount of time that may be used from a point in time on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Refill {
    /// From when, in ticks.
    pub time: u64,
    /// How much, in ticks.
    pub amount: u64,
}

/// 128 bytes with the first two refills; more refills follow.
#[repr(C)]
pub struct SchedContext {
    /// Ticks between a use and its refill; 0 = round robin.
    pub period: Cell<u64>,
    /// Ticks per period.
    pub budget: Cell<u64>,
    /// Ticks used since the last report.
    pub consumed: Cell<u64>,
    /// Word delivered in timeout faults.
    pub badge: Cell<u64>,
    /// Core it belongs to.
    pub core: Cell<u32>,
    /// Refills that may be used: 0 = not configured.
    pub refill_max: Cell<u32>,
    /// Position of the first refill.
    pub refill_head: Cell<u32>,
    /// Number of refills.
    pub refill_count: Cell<u32>,
    /// Thread running on it.
    pub tcb: Cell<Option<Ref<Tcb>>>,
    /// Latest call made on it.
    pub reply: Cell<Option<Ref<Reply>>>,
    /// Notification it is bound to.
    pub notification: Cell<Option<Ref<Notification>>>,
    /// Thread that gave way to it with YieldTo.
    pub yield_from: Cell<Option<Ref<Tcb>>>,
    /// Sporadic server.
    pub sporadic: Cell<bool>,
    spare: [Cell<u8>; 7],
    spare2: Cell<u64>,
    refills: [Cell<Refill>; 2],
}

const _: () = {
    assert!(size_of::<SchedContext>() as u64 == abi::object::SCHED_CONTEXT_CORE_BYTES);
    assert!(size_of::<Refill>() as u64 == abi::object::REFILL_BYTES);
};

/// Most refills a scheduling context of 2^bits bytes holds.
#[must_use]
pub const fn max_refills(bits: u32) -> u64 {
    2 + ((1 << bits) - abi::object::SCHED_CONTEXT_CORE_BYTES) / abi::object::REFILL_BYTES
}

impl Ref<SchedContext> {
    /// Returns refill `position` of the ring (from 0 up to `refill_max`, not counted from the head).
    #[inline]
    #[must_use]
    pub fn refill(self, position: u32) -> Ref<Cell<Refill>> {
        let offset = core::mem::offset_of!(SchedContext, refills) as u64;
        self.part(offset.wrapping_add(u64::from(position).wrapping_mul(16)))
    }
}
