//! Scheduling policies: which client's oldest request the device gets next.
//!
//! A policy sees of each client only whether it has a request waiting and when that arrived; the queues themselves are
//! the [dispatcher's](crate::dispatch). Every policy is a value with event methods that take `now`; it owns no clock.

pub mod mclock;
#[cfg(test)]
mod printed;
pub mod round_robin;
pub mod sfq;
#[cfg(test)]
mod tests;

use protocol::{
    io::{Controls, Policy},
    progress::Service,
    ring::Phase,
    units::Nanos,
};

use crate::{cost::Cost, heap::IndexedHeap};
use mclock::MClock;
use round_robin::RoundRobin;
use sfq::Sfq;

/// Number of a client or a group in a policy: its node.
pub type NodeId = u16;

/// What a policy must know of the request at the head of a client's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// When it arrived.
    pub arrival: Nanos,
    /// dmClock: requests of the client completed elsewhere since its last one here, as far as that counts.
    pub delta: u16,
    /// dmClock: those of `delta` that were served by reservation.
    pub rho: u16,
    /// Its length in bytes.
    pub bytes: u32,
}

/// A request that goes to the device: what its client is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// In reference requests.
    pub cost: Cost,
    /// In bytes.
    pub bytes: u32,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Give the device the oldest request of this client; then call [`Scheduler::served`] with this choice.
    Serve(Choice),
    /// Somebody waits, but only for a limit: ask again at this time.
    WaitUntil(Nanos),
    /// Nobody waits.
    Idle,
}

/// A client chosen, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Whose request goes.
    pub client: NodeId,
    /// Node whose reservation was due (the client or a group above it), if that was the reason.
    pub due: Option<NodeId>,
    /// Chosen because its request is near the last one, not by the policy's order.
    pub is_near: bool,
}

impl Choice {
    /// Phase as the client is told: reservation only if its own was due.
    pub fn phase(&self) -> Phase {
        if self.due == Some(self.client) { Phase::Reservation } else { Phase::Weight }
    }
}

/// A scheduling policy.
pub trait Scheduler {
    /// Adds a client below group `parent` (or the top) and sets its controls.
    fn attach(&mut self, now: Nanos, client: NodeId, parent: Option<NodeId>, controls: &Controls);
    /// Forgets a client; its waiting request is forgotten with it.
    fn detach(&mut self, client: NodeId);
    /// Changes the controls of a client or group.
    fn set_controls(&mut self, now: Nanos, node: NodeId, controls: &Controls);
    /// The queue of `client`, empty until now, has a head.
    fn activate(&mut self, now: Nanos, client: NodeId, head: Head);
    /// Chooses. Does not change what is charged to whom.
    fn pick(&mut self, now: Nanos) -> Decision;
    /// May the client that was just served be served again at once, its next request being close to the last one?
    /// A policy without limits always says yes.
    fn follow_up(&self, _: Nanos, client: NodeId) -> Option<Choice> {
        Some(Choice { client, due: None, is_near: true })
    }
    /// The reservation of `node`, due when a batch began, also pays for a request of the batch that is not due itself and is
    /// served next. Otherwise the client would get all but the first request of every batch beside what it reserved.
    fn pay_ahead(&mut self, _node: NodeId, _charge: Charge) {}
    /// The oldest request of the chosen client went to the device; `next` is the head behind it.
    fn served(&mut self, now: Nanos, choice: Choice, charge: Charge, next: Option<Head>);
    /// A request of `client` left the device.
    fn completed(&mut self, now: Nanos, client: NodeId);
}

/// The choice of a policy that only orders: the waiting client with the least key.
fn least<const N: usize>(waiting: &IndexedHeap<N>) -> Decision {
    match waiting.top() {
        Some((_, client)) => Decision::Serve(Choice { client, due: None, is_near: false }),
        None => Decision::Idle,
    }
}

/// One of the policies, chosen at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyScheduler<const N: usize, const G: usize> {
    /// Reservations, limits, shares.
    MClock(MClock<N, G>),
    /// Shares only.
    Sfq(Sfq<N>),
    /// Turns.
    RoundRobin(RoundRobin<N>),
}

macro_rules! each {
    ($self:ident, $policy:ident => $call:expr) => {
        match $self {
            Self::MClock($policy) => $call,
            Self::Sfq($policy) => $call,
            Self::RoundRobin($policy) => $call,
        }
    };
}

impl<const N: usize, const G: usize> AnyScheduler<N, G> {
    /// A policy without clients.
    pub const fn new(policy: Policy) -> Self {
        match policy {
            Policy::MClock => Self::MClock(MClock::new()),
            Policy::Sfq => Self::Sfq(Sfq::new()),
            Policy::RoundRobin => Self::RoundRobin(RoundRobin::new()),
        }
    }

    /// Makes node `group` a group below `parent`, or changes its controls. Policies without groups ignore it.
    pub fn set_group(
        &mut self,
        now: Nanos,
        group: NodeId,
        parent: Option<NodeId>,
        controls: &Controls,
    ) {
        if let Self::MClock(policy) = self {
            policy.set_group(now, group, parent, controls);
        }
    }

    /// Calls `tell` with what was done for each group since this was called last. Policies without groups have nothing to tell.
    pub fn take_service(&mut self, tell: impl FnMut(NodeId, &Service)) {
        if let Self::MClock(policy) = self {
            policy.take_service(tell);
        }
    }

    /// Other servers did this for `group`. Policies without groups ignore it.
    pub fn served_elsewhere(&mut self, now: Nanos, group: NodeId, service: &Service) {
        if let Self::MClock(policy) = self {
            policy.served_elsewhere(now, group, service);
        }
    }
}

impl<const N: usize, const G: usize> Scheduler for AnyScheduler<N, G> {
    fn attach(&mut self, now: Nanos, client: NodeId, parent: Option<NodeId>, controls: &Controls) {
        each!(self, policy => policy.attach(now, client, parent, controls));
    }

    fn detach(&mut self, client: NodeId) {
        each!(self, policy => policy.detach(client));
    }

    fn set_controls(&mut self, now: Nanos, node: NodeId, controls: &Controls) {
        each!(self, policy => policy.set_controls(now, node, controls));
    }

    fn activate(&mut self, now: Nanos, client: NodeId, head: Head) {
        each!(self, policy => policy.activate(now, client, head));
    }

    fn pick(&mut self, now: Nanos) -> Decision {
        each!(self, policy => policy.pick(now))
    }

    fn follow_up(&self, now: Nanos, client: NodeId) -> Option<Choice> {
        each!(self, policy => policy.follow_up(now, client))
    }

    fn pay_ahead(&mut self, node: NodeId, charge: Charge) {
        each!(self, policy => policy.pay_ahead(node, charge));
    }

    fn served(&mut self, now: Nanos, choice: Choice, charge: Charge, next: Option<Head>) {
        each!(self, policy => policy.served(now, choice, charge, next));
    }

    fn completed(&mut self, now: Nanos, client: NodeId) {
        each!(self, policy => policy.completed(now, client));
    }
}
