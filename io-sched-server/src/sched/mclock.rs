//! mClock: reservations, limits and shares held together while the device's throughput fluctuates.
//!
//! Source: Gulati, Merchant, Varman, "mClock: Handling Throughput Variability for Hypervisor IO Scheduling", OSDI
//! 2010, Algorithm 1; dmClock, section 3.3. Tags here are start tags: a request may go when its tag is due, and its cost
//! moves the tag of the one behind it. For equal costs that is the paper's rule shifted by one request; the paper's
//! "subtract 1/r from the reservation tags after service by weight" becomes: do not charge the reservation.
//!
//! Departures from the printed algorithm, each with a test that fails on it (`tests.rs`):
//! 1. Share tags live in virtual time (the tag of the request served last by weight), not in real time, so the scale
//!    of the weights does not matter and a returning client is not starved by its own old tag.
//! 2. A client held back by its limit does not save up share credit: on release its tag is dragged forward.
//! 3. A client served by its reservation does not run up share debt without end: at most [`DEBT_REQUESTS`].
//! 4. A client with requests in the device is active: a closed loop does not lose its place at every request.
//! 5. Tags are integers: nanoseconds (or virtual time) with 32 fractional bits.
//!
//! Further: limits are strict over any second ([`LIMIT_SLACK`]); in overload the reservation clock slows down
//! instead of building up a backlog that would later shut out everybody else ([`RESERVATION_LAG`]); groups nest
//! and have controls of their own; reservations and limits hold in requests and in bytes at once; gaps as short as the
//! client's usual think time do not cost it its reservation (anticipation).

use protocol::{
    io::{Controls, Lead},
    progress::Service,
    units::Nanos,
};

use super::{Charge, Choice, Decision, Head, NodeId, Scheduler};
use crate::heap::{IndexedHeap, KEY_BITS, is_before};

/// Most share debt of a client served by its reservation, in reference requests: how long after a rise of
/// throughput it may still wait for the others to catch up. With 32 a dmClock client lost claims, because reports of
/// other servers arrive in lumps.
pub const DEBT_REQUESTS: u64 = 128;
/// A limited client may make up for at most this much lost time: half a per cent of a second, so that a limit holds
/// within one per cent over any second although requests are late by the device's grain.
pub const LIMIT_SLACK: Nanos = Nanos(5_000_000);
/// Most a reservation may lag. Beyond it the reservations are infeasible and are served in proportion.
pub const RESERVATION_LAG: Nanos = Nanos(250_000_000);
/// Longest gap that can count as think time.
pub const ANTICIPATION_MAX: Nanos = Nanos(10_000_000);
/// Gaps seen before a client's think time is believed.
const ANTICIPATION_SAMPLES: u8 = 4;
/// Most service at other servers that one request can report.
pub const ELSEWHERE_MAX: u16 = 4096;
/// Most share debt for service at other servers, in reference requests.
const ELSEWHERE_DEBT: u64 = 2 * ELSEWHERE_MAX as u64;
/// Most idle credit, in requests (paper, section 3.2).
const BURST_MAX: u16 = 256;

/// A point in real or virtual time with 32 fractional bits.
type Tag = u128;

const FRACTION: u32 = 32;

const fn tag(time: Nanos) -> Tag {
    (time.0 as Tag) << FRACTION
}

/// A tag as a heap key.
#[expect(
    clippy::cast_possible_truncation,
    reason = "keys wrap; all keys of a heap are close together"
)]
const fn key(tag: Tag) -> u64 {
    (tag >> FRACTION) as u64
}

/// How far key `to` is behind key `from`; keys are shorter than a time.
const fn key_distance(from: u64, to: u64) -> u64 {
    to.wrapping_sub(from) & ((1 << KEY_BITS) - 1)
}

/// Farthest a tag may lie ahead of its clock: keys must not wrap, whatever a client claims to have had elsewhere.
const HORIZON: Tag = tag(Nanos(3_600_000_000_000));

const ROOT: u8 = 0;
const NO_INNER: u8 = u8::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing waits.
    Idle,
    /// Something waits, but the limit says not yet.
    Limited,
    /// May be served.
    Eligible,
}

/// Why a node is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Reservation,
    Share,
    Nearness,
}

/// Rates as time per unit; 0 for "no such control".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inverse {
    /// Per reference request, 32 fractional bits.
    reservation: u64,
    /// Per byte, 32 fractional bits.
    reservation_bytes: u64,
    /// Per request, 32 fractional bits.
    limit: u64,
    /// Per byte, 32 fractional bits.
    limit_bytes: u64,
    /// Virtual time per reference request, 16 fractional bits more than a tag needs for 2^32 = one request at weight 1.
    share: u64,
}

const fn per(rate: u64) -> u64 {
    match (1_000_000_000_u64 << 32).checked_div(rate) {
        Some(time) => time,
        None => 0,
    }
}

impl Inverse {
    const fn of(controls: &Controls) -> Self {
        let shares = if controls.shares == 0 { 1 } else { controls.shares };
        Self {
            reservation: per(controls.reservation as u64),
            reservation_bytes: per(controls.reservation_bytes),
            limit: per(controls.limit as u64),
            limit_bytes: per(controls.limit_bytes),
            share: (1 << 63) / shares as u64,
        }
    }
}

/// Virtual time of `cost` (16 fractional bits) at `share` per request.
const fn share_step(share: u64, cost: u64) -> Tag {
    (share as Tag * cost as Tag) >> 15
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    state: State,
    parent: u8,
    /// For a group: its heaps.
    inner: u8,
    anticipation_samples: u8,
    burst: u16,
    in_device: u16,
    per: Inverse,
    /// Start tags of the head, or of the next request.
    reservation: Tag,
    reservation_bytes: Tag,
    limit: Tag,
    limit_bytes: Tag,
    share: Tag,
    /// Last completion, and the usual gap from it to the next request.
    last_active: Nanos,
    think: Nanos,
}

impl Node {
    const NEW: Self = Self {
        state: State::Idle,
        parent: ROOT,
        inner: NO_INNER,
        anticipation_samples: 0,
        burst: 0,
        in_device: 0,
        per: Inverse {
            reservation: 0,
            reservation_bytes: 0,
            limit: 0,
            limit_bytes: 0,
            share: 1 << 63,
        },
        reservation: 0,
        reservation_bytes: 0,
        limit: 0,
        limit_bytes: 0,
        share: 0,
        last_active: Nanos(0),
        think: Nanos(0),
    };

    /// When the limits allow the next request.
    fn limit_tag(&self) -> Tag {
        match (self.per.limit, self.per.limit_bytes) {
            (0, 0) => 0,
            (_, 0) => self.limit,
            (0, _) => self.limit_bytes,
            _ => self.limit.max(self.limit_bytes),
        }
    }

    /// When a reservation of its own is due.
    fn reservation_tag(&self) -> Option<Tag> {
        match (self.per.reservation, self.per.reservation_bytes) {
            (0, 0) => None,
            (_, 0) => Some(self.reservation),
            (0, _) => Some(self.reservation_bytes),
            _ => Some(self.reservation.min(self.reservation_bytes)),
        }
    }

    fn raise_reservation(&mut self, floor: Tag) {
        self.reservation = self.reservation.max(floor);
        self.reservation_bytes = self.reservation_bytes.max(floor);
    }

    /// Gap up to which the client counts as active still.
    fn anticipation(&self) -> Nanos {
        if self.anticipation_samples < ANTICIPATION_SAMPLES {
            return Nanos(0);
        }
        Nanos(self.think.0.saturating_mul(4).min(ANTICIPATION_MAX.0))
    }

    /// Moves the tags by a request that goes to the device now. `clock` is the reservation clock's tag, `virtual_time` that
    /// of the node's parent.
    #[inline(always)]
    fn charge(&mut self, now: Nanos, clock: Tag, charge: Charge, by: By, virtual_time: &mut Tag) {
        let cost = u64::from(charge.cost.0);
        let bytes = u64::from(charge.bytes);
        if by == By::Reservation {
            // Served for the byte reservation although not due in requests, or the other way round: that is not
            // charged ahead.
            let add = (Tag::from(self.per.reservation) * Tag::from(cost)) >> 16;
            self.reservation = self.reservation.min(clock) + add;
            if self.per.reservation_bytes != 0 {
                let add = Tag::from(self.per.reservation_bytes) * Tag::from(bytes);
                self.reservation_bytes = self.reservation_bytes.min(clock) + add;
            }
        }
        if self.per.limit | self.per.limit_bytes != 0 {
            let slack = tag(Nanos(now.0.saturating_sub(LIMIT_SLACK.0)));
            self.limit = self.limit.max(slack) + Tag::from(self.per.limit);
            if self.per.limit_bytes != 0 {
                let add = Tag::from(self.per.limit_bytes) * Tag::from(bytes);
                self.limit_bytes = self.limit_bytes.max(slack) + add;
            }
        }
        let step = share_step(self.per.share, cost);
        if by == By::Share && self.share >= *virtual_time {
            // The usual case: the least tag, and no debt.
            *virtual_time = self.share;
            self.share = self.share.wrapping_add(step);
            return;
        }
        // Pitfall 3: debt has a bound.
        let most = *virtual_time + share_step(self.per.share, DEBT_REQUESTS << 16).max(step);
        self.share = (self.share + step).min(most);
    }

    /// dmClock: what other servers did for the client since its last request here counts like service here.
    #[cold]
    fn count_elsewhere(&mut self, now: Nanos, head: Head, virtual_time: Tag) {
        // A client's word: it can only hurt itself, and no more than so far. Of groups, whose tags are others' too, the servers tell
        // each other.
        let delta = u64::from(head.delta.min(ELSEWHERE_MAX));
        let rho = u64::from(head.rho).min(delta);
        // How long the others' requests were is not reported: as long as this one, which is right in the mean for a client
        // whose requests to all servers are alike.
        let bytes = u64::from(head.bytes);
        let service = Service {
            requests: delta,
            bytes: delta * bytes,
            cost: delta << 16,
            reserved_cost: rho << 16,
            reserved_bytes: rho * bytes,
        };
        self.count_service(now, &service, virtual_time, ELSEWHERE_DEBT);
    }

    /// What other servers did for a client or a group counts like service here, with at most `debt` requests of share debt for it.
    fn count_service(&mut self, now: Nanos, service: &Service, virtual_time: Tag, debt: u64) {
        let most = tag(now) + HORIZON;
        let add = |tag: Tag, step: Tag| tag.saturating_add(step).min(most);
        let step = (Tag::from(self.per.reservation) * Tag::from(service.reserved_cost)) >> 16;
        self.reservation = add(self.reservation, step);
        let step = Tag::from(self.per.reservation_bytes) * Tag::from(service.reserved_bytes);
        self.reservation_bytes = add(self.reservation_bytes, step);
        self.limit = add(self.limit, Tag::from(self.per.limit) * Tag::from(service.requests));
        let step = Tag::from(self.per.limit_bytes) * Tag::from(service.bytes);
        self.limit_bytes = add(self.limit_bytes, step);
        let most = virtual_time + share_step(self.per.share, debt << 16);
        let step = share_step(self.per.share, service.cost);
        self.share = self.share.saturating_add(step).min(most.max(self.share));
    }

    fn learn_think(&mut self, gap: Nanos) {
        if gap > ANTICIPATION_MAX {
            // Truly idle: a client whose gaps become long loses the benefit.
            self.anticipation_samples = self.anticipation_samples.saturating_sub(1);
            return;
        }
        self.think = if self.anticipation_samples == 0 {
            gap
        } else {
            Nanos((self.think.0 * 7 + gap.0) / 8)
        };
        self.anticipation_samples = (self.anticipation_samples + 1).min(16);
    }
}

/// The children of the top or of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner<const N: usize> {
    /// Eligible children (or those with something eligible below) with a reservation.
    by_reservation: IndexedHeap<N>,
    /// Eligible children.
    by_share: IndexedHeap<N>,
    /// Share tag of the child served last by weight.
    virtual_time: Tag,
    /// The group's own node; unused for the top.
    node: NodeId,
    /// What was done for the group here and not told yet, and what was done elsewhere and is not counted yet.
    service: Service,
    elsewhere: Service,
}

impl<const N: usize> Inner<N> {
    const NEW: Self = Self {
        by_reservation: IndexedHeap::new(),
        by_share: IndexedHeap::new(),
        virtual_time: 0,
        node: 0,
        service: Service::NONE,
        elsewhere: Service::NONE,
    };

    const fn count(&mut self, charge: Charge, by: By) {
        let (cost, bytes) = (charge.cost.0 as u64, charge.bytes as u64);
        let (reserved_cost, reserved_bytes) =
            if matches!(by, By::Reservation) { (cost, bytes) } else { (0, 0) };
        let one = Service { requests: 1, bytes, cost, reserved_cost, reserved_bytes };
        self.service = self.service.and(&one);
    }
}

/// The policy, for `N` nodes (clients and groups share the numbers) and `G` - 1 groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MClock<const N: usize, const G: usize> {
    nodes: [Node; N],
    inner: [Inner<N>; G],
    groups: u8,
    /// Limited nodes by the time they are released.
    limited: IndexedHeap<N>,
    /// How far the reservation clock is behind the real one.
    behind: Nanos,
}

impl<const N: usize, const G: usize> Default for MClock<N, G> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize, const G: usize> MClock<N, G> {
    /// Without clients.
    pub const fn new() -> Self {
        assert!(G >= 1 && G < NO_INNER as usize, "the top is inner 0");
        Self {
            nodes: [Node::NEW; N],
            inner: [const { Inner::NEW }; G],
            groups: 1,
            limited: IndexedHeap::new(),
            behind: Nanos(0),
        }
    }

    /// Makes `node` a group below `parent`, or changes its controls.
    pub fn set_group(
        &mut self,
        now: Nanos,
        node: NodeId,
        parent: Option<NodeId>,
        controls: &Controls,
    ) {
        if self.nodes[usize::from(node)].inner == NO_INNER {
            if usize::from(self.groups) >= G {
                return;
            }
            self.attach(now, node, parent, controls);
            self.nodes[usize::from(node)].inner = self.groups;
            self.inner[usize::from(self.groups)].node = node;
            self.groups += 1;
            return;
        }
        let above = parent.map_or(ROOT, |parent| self.nodes[usize::from(parent)].inner);
        let old = self.nodes[usize::from(node)];
        if old.parent != above && old.state == State::Idle {
            // An empty group begins anew elsewhere.
            self.attach(now, node, parent, controls);
            self.nodes[usize::from(node)].inner = old.inner;
        } else {
            self.set_controls(now, node, controls);
        }
    }

    /// Calls `tell` with what was done for each group since this was called last.
    pub fn take_service(&mut self, mut tell: impl FnMut(NodeId, &Service)) {
        for inner in &mut self.inner[1..usize::from(self.groups)] {
            if inner.service.requests != 0 {
                tell(inner.node, &inner.service);
                inner.service = Service::NONE;
            }
        }
    }

    /// Other servers did this for `group` since this was called last: it counts like service here. Of a group that waits it counts
    /// with the next request, as what a client reports does: otherwise the tags of a group that one server serves would run
    /// away from the others, which would never serve it.
    pub fn served_elsewhere(&mut self, now: Nanos, group: NodeId, service: &Service) {
        let node = &self.nodes[usize::from(group)];
        if node.inner == NO_INNER {
            return;
        }
        let (inner, is_idle) = (usize::from(node.inner), node.state == State::Idle);
        self.inner[inner].elsewhere = self.inner[inner].elsewhere.and(service);
        if is_idle {
            self.count_service(now, group, DEBT_REQUESTS);
        }
    }

    /// Counts what was done for `group` elsewhere, with at most `debt` requests of share debt for it.
    #[cold]
    fn count_service(&mut self, now: Nanos, group: NodeId, debt: u64) {
        let node = &mut self.nodes[usize::from(group)];
        let service = core::mem::take(&mut self.inner[usize::from(node.inner)].elsewhere);
        let virtual_time = self.inner[usize::from(node.parent)].virtual_time;
        node.count_service(now, &service, virtual_time, debt);
    }

    /// Does the client wait for its own limit (`Some(true)`), for that of a group (`Some(false)`), or for neither?
    pub fn waits_for_limit(&self, client: NodeId) -> Option<bool> {
        let mut node = &self.nodes[usize::from(client)];
        if node.state == State::Limited {
            return Some(true);
        }
        while node.parent != ROOT {
            node = &self.nodes[usize::from(self.inner[usize::from(node.parent)].node)];
            if node.state == State::Limited {
                return Some(false);
            }
        }
        None
    }

    /// How far the tags of `client` are ahead of their clocks.
    pub fn lead(&self, now: Nanos, client: NodeId) -> Lead {
        let Some(node) = self.nodes.get(usize::from(client)) else { return Lead::default() };
        let ahead = |tag: Tag, clock: Tag| {
            let distance = i64::try_from(tag.abs_diff(clock) >> FRACTION).unwrap_or(i64::MAX);
            if tag < clock { -distance } else { distance }
        };
        let clock = tag(self.reservation_clock(now));
        let virtual_time = self.inner[usize::from(node.parent)].virtual_time;
        let one = share_step(node.per.share, 1 << 16).max(1);
        let share = node.share.abs_diff(virtual_time).saturating_mul(1000) / one;
        let share = i64::try_from(share).unwrap_or(i64::MAX);
        let has_limit = node.per.limit | node.per.limit_bytes != 0;
        Lead {
            reservation: node.reservation_tag().map(|due| ahead(due, clock)),
            limit: has_limit.then(|| ahead(node.limit_tag(), tag(now))),
            share: if node.share < virtual_time { -share } else { share },
        }
    }

    const fn reservation_clock(&self, now: Nanos) -> Nanos {
        Nanos(now.0.saturating_sub(self.behind.0))
    }

    fn parent_node(&self, node: NodeId) -> Option<NodeId> {
        let parent = self.nodes[usize::from(node)].parent;
        (parent != ROOT).then(|| self.inner[usize::from(parent)].node)
    }

    /// Earliest reservation due at or below `node`.
    #[inline]
    fn reservation_key(&self, node: &Node) -> Option<u64> {
        let own = node.reservation_tag().map(key);
        if node.inner == NO_INNER {
            return own;
        }
        let below = self.inner[usize::from(node.inner)].by_reservation.top().map(|(k, _)| k);
        match (own, below) {
            (Some(a), Some(b)) => Some(if is_before(b, a) { b } else { a }),
            (a, b) => a.or(b),
        }
    }

    /// Puts a node that may be served in its parent's heaps, with its present tags.
    #[inline(always)]
    fn place(&mut self, id: NodeId) {
        let node = &self.nodes[usize::from(id)];
        let parent = usize::from(node.parent);
        let share = key(node.share);
        let reservation = self.reservation_key(node);
        let inner = &mut self.inner[parent];
        inner.by_share.set(id, share);
        match reservation {
            Some(due) => inner.by_reservation.set(id, due),
            None => inner.by_reservation.remove(id),
        }
    }

    #[inline]
    fn withdraw(&mut self, id: NodeId) {
        let inner = &mut self.inner[usize::from(self.nodes[usize::from(id)].parent)];
        inner.by_share.remove(id);
        inner.by_reservation.remove(id);
    }

    /// Something below or in `id` now waits: limited or eligible, by its limit.
    fn wake(&mut self, now: Nanos, id: NodeId) {
        let node = &mut self.nodes[usize::from(id)];
        let limit = node.limit_tag();
        if limit > tag(now) {
            node.state = State::Limited;
            self.limited.set(id, key(limit).wrapping_add(1));
            return;
        }
        node.state = State::Eligible;
        self.place(id);
        self.child_changed(now, id);
    }

    /// A child of `id`'s parent came, went or moved: brings the groups above up to date.
    #[inline]
    fn child_changed(&mut self, now: Nanos, id: NodeId) {
        let mut parent = self.parent_node(id);
        while let Some(group) = parent {
            let has_children =
                !self.inner[usize::from(self.nodes[usize::from(group)].inner)].by_share.is_empty();
            match (self.nodes[usize::from(group)].state, has_children) {
                (State::Idle, true) => {
                    self.refill(now, group, now);
                    self.wake(now, group);
                    return;
                }
                (State::Eligible, true) => self.place(group),
                (State::Eligible, false) => {
                    self.nodes[usize::from(group)].state = State::Idle;
                    self.withdraw(group);
                }
                (State::Limited, false) => {
                    self.nodes[usize::from(group)].state = State::Idle;
                    self.limited.remove(group);
                    return;
                }
                (State::Idle, false) | (State::Limited, true) => return,
            }
            parent = self.parent_node(group);
        }
    }

    /// Tags of a node that had nothing waiting until now.
    fn refill(&mut self, now: Nanos, id: NodeId, arrival: Nanos) {
        let clock = self.reservation_clock(arrival);
        // In overload a newcomer joins at the others' lag, not behind all of them.
        let floor = match self.inner[ROOT as usize].by_reservation.top() {
            Some((due, _)) if is_before(due, clock.0) => {
                Nanos(clock.0 - key_distance(due, clock.0))
            }
            _ => clock,
        };
        let virtual_time = self.inner[usize::from(self.nodes[usize::from(id)].parent)].virtual_time;
        let node = &mut self.nodes[usize::from(id)];
        let in_device = node.in_device;
        let gap = Nanos(now.0.saturating_sub(node.last_active.0));
        let returns_soon = in_device > 0 || gap <= node.anticipation();
        if in_device == 0 && node.inner == NO_INNER && node.last_active != Nanos(0) {
            node.learn_think(gap);
        }
        let patience = if returns_soon { tag(ANTICIPATION_MAX) } else { 0 };
        node.raise_reservation(tag(floor).saturating_sub(patience));
        let credit = node.burst.max(if returns_soon { in_device.max(1) } else { 0 });
        let credit = share_step(node.per.share, u64::from(credit) << 16);
        node.share = node.share.max(virtual_time.saturating_sub(credit));
    }

    /// Releases nodes whose limit has passed.
    fn release(&mut self, now: Nanos) {
        let floor = tag(self.reservation_clock(now)).saturating_sub(tag(ANTICIPATION_MAX));
        while let Some((due, id)) = self.limited.top() {
            if is_before(now.0, due) {
                return;
            }
            self.limited.remove(id);
            let parent = usize::from(self.nodes[usize::from(id)].parent);
            let virtual_time = self.inner[parent].virtual_time;
            let node = &mut self.nodes[usize::from(id)];
            node.state = State::Eligible;
            // Pitfall 2: no share credit for the time it was held back.
            let one = share_step(node.per.share, 1 << 16);
            node.share = node.share.max(virtual_time.saturating_sub(one));
            node.raise_reservation(floor);
            self.place(id);
            self.child_changed(now, id);
        }
    }

    /// Least share tag, down from `inner`.
    fn descend(&self, mut inner: usize) -> Option<NodeId> {
        loop {
            let (_, id) = self.inner[inner].by_share.top()?;
            let below = self.nodes[usize::from(id)].inner;
            if below == NO_INNER {
                return Some(id);
            }
            inner = usize::from(below);
        }
    }

    /// The client to serve for the earliest reservation, and the node whose reservation it is.
    fn descend_reservation(&self) -> Option<(NodeId, NodeId)> {
        let mut inner = usize::from(ROOT);
        loop {
            let (due, id) = self.inner[inner].by_reservation.top()?;
            let node = &self.nodes[usize::from(id)];
            if node.inner == NO_INNER {
                return Some((id, id));
            }
            inner = usize::from(node.inner);
            let below = self.inner[inner].by_reservation.top();
            if below.is_none_or(|(k, _)| k != due) {
                return self.descend(inner).map(|client| (client, id));
            }
        }
    }

    /// The groups above a client that was served, from the lowest up: charges, new places, limits reached, run empty.
    fn serve_groups(&mut self, now: Nanos, choice: Choice, charge: Charge, by: By) {
        let clock = tag(self.reservation_clock(now));
        let mut by = by;
        let mut above = self.parent_node(choice.client);
        while let Some(id) = above {
            if choice.due == Some(id) {
                by = By::Reservation;
            }
            let node = &mut self.nodes[usize::from(id)];
            let parent = usize::from(node.parent);
            node.charge(now, clock, charge, by, &mut self.inner[parent].virtual_time);
            node.in_device = node.in_device.wrapping_add(1);
            let inner = usize::from(node.inner);
            self.inner[inner].count(charge, by);
            if self.inner[inner].elsewhere.requests != 0 {
                self.count_service(now, id, ELSEWHERE_DEBT);
            }
            let node = &mut self.nodes[usize::from(id)];
            let limit = node.limit_tag();
            if self.inner[inner].by_share.is_empty() {
                node.state = State::Idle;
                self.withdraw(id);
            } else if limit > tag(now) {
                node.state = State::Limited;
                self.withdraw(id);
                self.limited.set(id, key(limit).wrapping_add(1));
            } else {
                self.place(id);
            }
            above = self.parent_node(id);
        }
    }

    /// Sets the tags of a node after a change of controls, so that the new rate holds from now on.
    fn reset_tags(&mut self, now: Nanos, id: NodeId) {
        let clock = tag(self.reservation_clock(now));
        let virtual_time = self.inner[usize::from(self.nodes[usize::from(id)].parent)].virtual_time;
        let node = &mut self.nodes[usize::from(id)];
        let soon = |from: Tag, per: u64| from + Tag::from(per);
        node.reservation = node.reservation.clamp(clock, soon(clock, node.per.reservation));
        node.reservation_bytes = node.reservation_bytes.clamp(clock, clock);
        node.limit = node.limit.min(soon(tag(now), node.per.limit));
        node.limit_bytes = node.limit_bytes.min(tag(now));
        let one = share_step(node.per.share, 1 << 16);
        node.share = node.share.clamp(virtual_time.saturating_sub(one), virtual_time + one);
    }
}

impl<const N: usize, const G: usize> Scheduler for MClock<N, G> {
    fn attach(&mut self, now: Nanos, client: NodeId, parent: Option<NodeId>, controls: &Controls) {
        let parent = parent.map_or(ROOT, |group| self.nodes[usize::from(group)].inner);
        let parent = if parent == NO_INNER { ROOT } else { parent };
        self.nodes[usize::from(client)] = Node {
            parent,
            share: self.inner[usize::from(parent)].virtual_time,
            reservation: tag(self.reservation_clock(now)),
            reservation_bytes: tag(self.reservation_clock(now)),
            ..Node::NEW
        };
        self.set_controls(now, client, controls);
    }

    fn detach(&mut self, client: NodeId) {
        self.limited.remove(client);
        self.withdraw(client);
        self.nodes[usize::from(client)].state = State::Idle;
        self.child_changed(Nanos(0), client);
    }

    fn set_controls(&mut self, now: Nanos, node: NodeId, controls: &Controls) {
        let state = &mut self.nodes[usize::from(node)];
        state.per = Inverse::of(controls);
        state.burst = controls.burst.min(BURST_MAX);
        let was = state.state;
        self.reset_tags(now, node);
        if was != State::Idle {
            self.limited.remove(node);
            self.withdraw(node);
            self.nodes[usize::from(node)].state = State::Idle;
            self.wake(now, node);
        }
    }

    fn activate(&mut self, now: Nanos, client: NodeId, head: Head) {
        if head.delta != 0 {
            let node = &mut self.nodes[usize::from(client)];
            let virtual_time = self.inner[usize::from(node.parent)].virtual_time;
            node.count_elsewhere(now, head, virtual_time);
        }
        self.refill(now, client, head.arrival);
        self.wake(now, client);
    }

    fn pick(&mut self, now: Nanos) -> Decision {
        self.release(now);
        let clock = self.reservation_clock(now);
        if let Some((due, _)) = self.inner[usize::from(ROOT)].by_reservation.top()
            && !is_before(clock.0, due)
        {
            let lag = key_distance(due, clock.0);
            if lag > RESERVATION_LAG.0 {
                self.behind.0 += lag - RESERVATION_LAG.0;
            }
            if let Some((client, node)) = self.descend_reservation() {
                return Decision::Serve(Choice { client, due: Some(node), is_near: false });
            }
        }
        if let Some(client) = self.descend(usize::from(ROOT)) {
            return Decision::Serve(Choice { client, due: None, is_near: false });
        }
        match self.limited.top() {
            Some((until, _)) => Decision::WaitUntil(Nanos(now.0 + key_distance(now.0, until))),
            None => Decision::Idle,
        }
    }

    fn follow_up(&self, now: Nanos, client: NodeId) -> Option<Choice> {
        let clock = tag(self.reservation_clock(now));
        let mut id = client;
        loop {
            let node = &self.nodes[usize::from(id)];
            if node.state != State::Eligible || node.limit_tag() > tag(now) {
                return None;
            }
            match self.parent_node(id) {
                Some(group) => id = group,
                None => break,
            }
        }
        let is_due = self.nodes[usize::from(client)].reservation_tag().is_some_and(|t| t <= clock);
        Some(Choice { client, due: is_due.then_some(client), is_near: true })
    }

    #[cold]
    fn pay_ahead(&mut self, node: NodeId, charge: Charge) {
        let node = &mut self.nodes[usize::from(node)];
        let (cost, bytes) = (Tag::from(charge.cost.0), Tag::from(charge.bytes));
        node.reservation += (Tag::from(node.per.reservation) * cost) >> 16;
        node.reservation_bytes += Tag::from(node.per.reservation_bytes) * bytes;
        if node.inner != NO_INNER {
            let service = &mut self.inner[usize::from(node.inner)].service;
            service.reserved_cost += u64::from(charge.cost.0);
            service.reserved_bytes += u64::from(charge.bytes);
        }
    }

    #[inline]
    fn served(&mut self, now: Nanos, choice: Choice, charge: Charge, next: Option<Head>) {
        let client = choice.client;
        let mut by = if choice.is_near { By::Nearness } else { By::Share };
        if choice.due == Some(client) {
            by = By::Reservation;
        }
        let clock = tag(self.reservation_clock(now));
        let node = &mut self.nodes[usize::from(client)];
        let inner = &mut self.inner[usize::from(node.parent)];
        node.charge(now, clock, charge, by, &mut inner.virtual_time);
        if let Some(head) = next
            && head.delta != 0
        {
            node.count_elsewhere(now, head, inner.virtual_time);
        }
        node.in_device = node.in_device.wrapping_add(1);
        let limit = node.limit_tag();
        if next.is_some() && limit <= tag(now) {
            inner.by_share.set(client, key(node.share));
            if let Some(due) = node.reservation_tag() {
                inner.by_reservation.set(client, key(due));
            }
        } else {
            inner.by_share.remove(client);
            inner.by_reservation.remove(client);
            node.state = State::Idle;
            if next.is_some() {
                node.state = State::Limited;
                self.limited.set(client, key(limit).wrapping_add(1));
            }
        }
        if self.nodes[usize::from(client)].parent != ROOT {
            self.serve_groups(now, choice, charge, by);
        }
    }

    #[inline]
    fn completed(&mut self, now: Nanos, client: NodeId) {
        let mut id = client;
        loop {
            let node = &mut self.nodes[usize::from(id)];
            node.in_device = node.in_device.saturating_sub(1);
            node.last_active = now;
            match self.parent_node(id) {
                Some(group) => id = group,
                None => return,
            }
        }
    }
}
