//! Queues per client in front of a scheduling policy, and batches of nearby requests.
//!
//! Within a client requests go in order. A batch lets a client follow up at once with requests close to its last one
//! (mClock, section 3.5): at most [`BATCH_MAX`], each charged to the client that enjoys the short seek.

use protocol::{ring::Phase, units::Nanos};

use crate::{
    cost::Cost,
    sched::{Charge, Choice, Decision, Head, NodeId, Scheduler},
};

/// Most requests in a row because they are near: delays anybody's reservation by as many service times per client.
pub const BATCH_MAX: u32 = 8;
/// How near, in sectors: 4 MiB.
pub const BATCH_SECTORS: u64 = 8192;

/// A request in a client's queue; `T` is the caller's own reference to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued<T> {
    /// The caller's own.
    pub item: T,
    /// When it arrived.
    pub arrival: Nanos,
    /// Place on the disk, in sectors.
    pub sector: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// What it counts.
    pub cost: Cost,
    /// dmClock: completed elsewhere, and of those by reservation.
    pub elsewhere: (u16, u16),
}

impl<T> Queued<T> {
    #[inline(always)]
    const fn head(&self) -> Head {
        let (delta, rho) = self.elsewhere;
        Head { arrival: self.arrival, delta, rho, bytes: self.bytes }
    }
}

/// A queue of at most `Q` requests.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Queue<T, const Q: usize> {
    first: u16,
    len: u16,
    /// The head may not go yet (a flush behind writes in the device): hidden from the policy.
    is_held: bool,
    entries: [Option<Queued<T>>; Q],
}

impl<T: Copy, const Q: usize> Queue<T, Q> {
    const NEW: Self = Self { first: 0, len: 0, is_held: false, entries: [None; Q] };

    fn front(&self) -> Option<&Queued<T>> {
        if self.len == 0 { None } else { self.entries[usize::from(self.first) % Q].as_ref() }
    }

    #[inline]
    fn push(&mut self, queued: Queued<T>) -> bool {
        if usize::from(self.len) >= Q {
            return false;
        }
        // Both are at most Q, which is at most 1024: nothing here can wrap.
        let at = usize::from(self.first.wrapping_add(self.len)) % Q;
        self.entries[at] = Some(queued);
        self.len = self.len.wrapping_add(1);
        true
    }

    #[inline]
    fn pop(&mut self) -> Option<Queued<T>> {
        if self.len == 0 {
            return None;
        }
        let first = usize::from(self.first) % Q;
        let next = self.first.wrapping_add(1);
        self.first = if usize::from(next) >= Q { 0 } else { next };
        self.len = self.len.wrapping_sub(1);
        // Left in place: the length says what counts.
        self.entries[first]
    }
}

/// Something to give to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatched<T> {
    /// Whose.
    pub client: NodeId,
    /// Served by which phase.
    pub phase: Phase,
    /// The request.
    pub queued: Queued<T>,
}

/// What [`Dispatcher::pull`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled<T> {
    /// Give this to the device.
    Request(Dispatched<T>),
    /// Only limits stand in the way: pull again at this time.
    WaitUntil(Nanos),
    /// Nothing waits.
    Idle,
}

/// The queues of `N` clients in front of policy `P`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatcher<P, T, const N: usize, const Q: usize> {
    policy: P,
    queues: [Queue<T, Q>; N],
    /// How the last request may be followed up.
    batch: Batch,
    batch_max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    last: Choice,
    /// Behind the last request.
    sector: u64,
    left: u32,
    /// Node whose reservation pays for what is not due itself, if the last request was paid for so.
    payer: Option<NodeId>,
}

impl<P: Scheduler, T: Copy, const N: usize, const Q: usize> Dispatcher<P, T, N, Q> {
    /// Empty queues; `batch_max` of 1 turns batches off.
    pub const fn new(policy: P, batch_max: u32) -> Self {
        assert!(Q >= 1 && Q <= 1024, "a queue holds something");
        Self {
            policy,
            queues: [const { Queue::NEW }; N],
            batch: Batch {
                last: Choice { client: 0, due: None, is_near: false },
                sector: 0,
                left: 0,
                payer: None,
            },
            batch_max,
        }
    }

    /// Changes how many nearby requests may go in a row.
    pub const fn set_batch(&mut self, batch_max: u32) {
        self.batch_max = batch_max;
    }

    /// The policy, to attach clients and change controls.
    pub const fn policy(&mut self) -> &mut P {
        &mut self.policy
    }

    /// The policy, to look at.
    pub const fn policy_ref(&self) -> &P {
        &self.policy
    }

    /// Requests of `client` in its queue.
    pub fn waiting(&self, client: NodeId) -> u32 {
        u32::from(self.queues[usize::from(client)].len)
    }

    #[inline]
    /// Queues a request; `false` if the client's queue is full.
    pub fn add(&mut self, now: Nanos, client: NodeId, queued: Queued<T>) -> bool {
        let queue = &mut self.queues[usize::from(client)];
        if !queue.push(queued) {
            return false;
        }
        if queue.len == 1 && !queue.is_held {
            self.policy.activate(now, client, queued.head());
        }
        true
    }

    /// The next request for the device. A head that `is_barrier` holds its client's queue until
    /// [`resume`](Self::resume).
    pub fn pull(&mut self, now: Nanos, is_barrier: impl Fn(&T) -> bool) -> Pulled<T> {
        let choice = match self.continue_batch(now) {
            Some(choice) => choice,
            None => match self.policy.pick(now) {
                Decision::Serve(choice) => choice,
                Decision::WaitUntil(until) => return Pulled::WaitUntil(until),
                Decision::Idle => return Pulled::Idle,
            },
        };
        let queue = &mut self.queues[usize::from(choice.client)];
        let Some(queued) = queue.pop() else {
            // The policy only ever chooses clients it was told of; without a request there is nothing to do.
            return Pulled::Idle;
        };
        let next = match queue.front() {
            Some(front) if is_barrier(&front.item) => {
                queue.is_held = true;
                None
            }
            front => front.map(Queued::head),
        };
        let charge = Charge { cost: queued.cost, bytes: queued.bytes };
        self.policy.served(now, choice, charge, next);
        let phase = if choice.is_near { self.phase_near(choice) } else { choice.phase() };
        self.note_batch(choice, &queued);
        Pulled::Request(Dispatched { client: choice.client, phase, queued })
    }

    #[inline]
    fn continue_batch(&mut self, now: Nanos) -> Option<Choice> {
        if self.batch.left == 0 {
            return None;
        }
        let batch = self.batch;
        let queue = &self.queues[usize::from(batch.last.client)];
        let is_near = |front: &Queued<T>| front.sector.abs_diff(batch.sector) <= BATCH_SECTORS;
        if !queue.is_held
            && queue.front().is_some_and(is_near)
            && let Some(choice) = self.policy.follow_up(now, batch.last.client)
        {
            if choice.due.is_none() {
                self.pay_ahead(choice.client);
            }
            return Some(choice);
        }
        self.batch.left = 0;
        None
    }

    /// A follow-up that is not due is paid for by the reservation for which the batch began, if it was for one.
    #[cold]
    fn pay_ahead(&mut self, client: NodeId) {
        let Batch { last, payer, .. } = self.batch;
        // Behind a request that was due itself, or behind one paid for like this one.
        self.batch.payer = last.due.or(if last.is_near { payer } else { None });
        let front = self.queues[usize::from(client)].front();
        if let (Some(front), Some(payer)) = (front, self.batch.payer) {
            let charge = Charge { cost: front.cost, bytes: front.bytes };
            self.policy.pay_ahead(payer, charge);
        }
    }

    /// Phase of a follow-up: by reservation if that of the client was due or paid ahead; a group's does not count.
    #[cold]
    fn phase_near(&self, choice: Choice) -> Phase {
        let payer = choice.due.or(self.batch.payer);
        if payer == Some(choice.client) { Phase::Reservation } else { Phase::Weight }
    }

    #[inline]
    fn note_batch(&mut self, choice: Choice, queued: &Queued<T>) {
        let batch = self.batch;
        // Something is left only if this was a follow-up.
        let left = if batch.left > 0 { batch.left } else { self.batch_max };
        let sector = queued.sector.wrapping_add(u64::from(queued.bytes / 512));
        self.batch = Batch { last: choice, sector, left: left.saturating_sub(1), ..batch };
    }

    /// Looks again at a queue whose head was held.
    pub fn resume(&mut self, now: Nanos, client: NodeId) {
        let queue = &mut self.queues[usize::from(client)];
        if !queue.is_held {
            return;
        }
        queue.is_held = false;
        if let Some(front) = queue.front() {
            let head = front.head();
            self.policy.activate(now, client, head);
        }
    }

    /// Keeps the head of `client` back: called before its first request is added when that may not go yet.
    pub fn hold(&mut self, client: NodeId) {
        let queue = &mut self.queues[usize::from(client)];
        if queue.len == 0 {
            queue.is_held = true;
        }
    }

    /// Is the head of `client` kept back?
    pub fn is_held(&self, client: NodeId) -> bool {
        let queue = &self.queues[usize::from(client)];
        queue.is_held && queue.len > 0
    }

    /// A request of `client` left the device.
    pub fn completed(&mut self, now: Nanos, client: NodeId) {
        self.policy.completed(now, client);
    }

    /// Forgets a client and its queue.
    pub fn detach(&mut self, client: NodeId) {
        self.policy.detach(client);
        self.queues[usize::from(client)] = Queue::NEW;
        self.batch.left = 0;
    }

    /// Tells a policy just put in place of every waiting client. The caller attaches the clients first.
    pub fn policy_replaced(&mut self, now: Nanos) {
        self.batch.left = 0;
        for (client, queue) in self.queues.iter().enumerate() {
            if let (Some(front), false) = (queue.front(), queue.is_held) {
                let head = front.head();
                self.policy.activate(now, client as NodeId, head);
            }
        }
    }
}
