//! Round robin: one request of each waiting client in turn. The plainest fair policy, to compare with.

use protocol::{io::Controls, units::Nanos};

use super::{Charge, Choice, Decision, Head, NodeId, Scheduler, least};
use crate::heap::IndexedHeap;

/// The policy. A client's key is the number of its turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoundRobin<const N: usize> {
    waiting: IndexedHeap<N>,
    turn: u64,
}

impl<const N: usize> RoundRobin<N> {
    /// Without clients.
    pub const fn new() -> Self {
        Self { waiting: IndexedHeap::new(), turn: 0 }
    }
}

impl<const N: usize> Scheduler for RoundRobin<N> {
    fn attach(&mut self, _: Nanos, _: NodeId, _: Option<NodeId>, _: &Controls) {}

    fn detach(&mut self, client: NodeId) {
        self.waiting.remove(client);
    }

    fn set_controls(&mut self, _: Nanos, _: NodeId, _: &Controls) {}

    fn activate(&mut self, _: Nanos, client: NodeId, _: Head) {
        self.turn += 1;
        self.waiting.set(client, self.turn);
    }

    fn pick(&mut self, _: Nanos) -> Decision {
        least(&self.waiting)
    }

    fn served(&mut self, now: Nanos, choice: Choice, _: Charge, next: Option<Head>) {
        match next {
            Some(head) => self.activate(now, choice.client, head),
            None => self.waiting.remove(choice.client),
        }
    }

    fn completed(&mut self, _: Nanos, _: NodeId) {}
}
