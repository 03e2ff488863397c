//! Start-time fair queueing with depth, SFQ(D): shares only; the baseline of mClock's figures 6 and 7.
//!
//! Source: Jin, Chase, Kaur, "Interposed proportional sharing for a storage service utility". D is the device depth,
//! which the dispatcher keeps.

use protocol::{io::Controls, units::Nanos};

use super::{Charge, Choice, Decision, Head, NodeId, Scheduler, least};
use crate::heap::IndexedHeap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    shares: u32,
    /// Start tag of the head, or of the next request to come; 32 bits more than a key.
    start: u128,
}

/// The policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sfq<const N: usize> {
    clients: [Client; N],
    waiting: IndexedHeap<N>,
    /// Start tag of the request served last.
    virtual_time: u128,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "keys wrap; all keys of a heap are close together"
)]
const fn key(tag: u128) -> u64 {
    (tag >> 32) as u64
}

impl<const N: usize> Sfq<N> {
    /// Without clients.
    pub const fn new() -> Self {
        Self {
            clients: [Client { shares: 1, start: 0 }; N],
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
        self.clients[usize::from(node)].shares = controls.shares.max(1);
    }

    fn activate(&mut self, _: Nanos, client: NodeId, _: Head) {
        let state = &mut self.clients[usize::from(client)];
        state.start = state.start.max(self.virtual_time);
        self.waiting.set(client, key(state.start));
    }

    fn pick(&mut self, _: Nanos) -> Decision {
        least(&self.waiting)
    }

    fn served(&mut self, _: Nanos, choice: Choice, charge: Charge, next: Option<Head>) {
        let state = &mut self.clients[usize::from(choice.client)];
        if !choice.is_near {
            self.virtual_time = state.start;
        }
        // One request at weight 1 is 2^64.
        state.start += (u128::from(charge.cost.0) << 48) / u128::from(state.shares);
        match next {
            Some(_) => self.waiting.set(choice.client, key(state.start)),
            None => self.waiting.remove(choice.client),
        }
    }

    fn completed(&mut self, _: Nanos, _: NodeId) {}
}
