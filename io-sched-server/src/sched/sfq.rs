//! Start-time fair queueing with depth, SFQ(D): shares only; the baseline of mClock's figures 6 and 7.
//!
//! Source: Jin, Chase, Kaur, "Interposed proportional sharing for a storage service utility". D is the device depth,
//! which the dispatcher keeps.

use protocol::{io::Controls, units::Nanos};

use super::{Charge, Choice, Decision, Head, NodeId, Scheduler};
use crate::heap::IndexedHeap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    /// Virtual time of one reference request, 16 fractional bits more than the tags.
    per_cost: u64,
    /// Start tag of the head, or of the next request to come.
    start: u64,
}

/// The policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sfq<const N: usize> {
    clients: [Client; N],
    waiting: IndexedHeap<N>,
    /// Start tag of the request served last.
    virtual_time: u64,
}

impl<const N: usize> Sfq<N> {
    /// Without clients.
    pub const fn new() -> Self {
        Self {
            clients: [Client { per_cost: 1 << 32, start: 0 }; N],
            waiting: IndexedHeap::new(),
            virtual_time: 0,
        }
    }
}

impl<const N: usize> Default for Sfq<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Scheduler for Sfq<N> {
    fn attach(&mut self, now: Nanos, client: NodeId, _: Option<NodeId>, controls: &Controls) {
        self.clients[usize::from(client)].start = self.virtual_time;
        self.set_controls(now, client, controls);
    }

    fn detach(&mut self, client: NodeId) {
        self.waiting.remove(client);
    }

    fn set_controls(&mut self, _: Nanos, node: NodeId, controls: &Controls) {
        self.clients[usize::from(node)].per_cost = (1 << 42) / u64::from(controls.shares.max(1));
    }

    fn activate(&mut self, _: Nanos, client: NodeId, _: Head) {
        let state = &mut self.clients[usize::from(client)];
        // Tags wrap: "later of the two" is asked on the circle.
        if crate::heap::is_before(state.start, self.virtual_time) {
            state.start = self.virtual_time;
        }
        self.waiting.set(client, state.start);
    }

    fn pick(&mut self, _: Nanos) -> Decision {
        match self.waiting.top() {
            Some((_, client)) => Decision::Serve(Choice { client, due: None, is_near: false }),
            None => Decision::Idle,
        }
    }

    fn follow_up(&self, _: Nanos, client: NodeId) -> Option<Choice> {
        Some(Choice { client, due: None, is_near: true })
    }

    fn served(&mut self, _: Nanos, choice: Choice, charge: Charge, next: Option<Head>) {
        let state = &mut self.clients[usize::from(choice.client)];
        if !choice.is_near {
            self.virtual_time = state.start;
        }
        let rise = (u128::from(state.per_cost) * u128::from(charge.cost.0)) >> 16;
        #[expect(clippy::cast_possible_truncation, reason = "tags wrap")]
        let rise = rise as u64;
        state.start = state.start.wrapping_add(rise);
        match next {
            Some(_) => self.waiting.set(choice.client, state.start),
            None => self.waiting.remove(choice.client),
        }
    }

    fn completed(&mut self, _: Nanos, _: NodeId) {}
}
