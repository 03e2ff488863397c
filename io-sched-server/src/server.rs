//! The server: events in, actions out. Clients by badge, partitions by label, requests from rings to the device.
//!
//! Invariants: a request is in exactly one of its client's ring only, its queue, the device; what was taken from a ring is
//! answered there exactly once or is still marked submitted in it (so a new server finds it); the device never gets
//! a sector outside the client's partition.

use core::sync::atomic::AtomicU64;

use protocol::{
    interface::decode,
    io::{
        ClientStats, Controls, DiskInfo, DiskStats, GroupStats, Io, IoError, IoReply, IoRequest,
        LATENCY_BOUNDS, MAX_CLIENTS, MAX_GROUPS, PartitionLabel, Policy, ROOT_BADGE, VmClaim,
        WaitsFor,
    },
    ring::{
        BLK_SLOTS, BlkOperation, BlkRequest, BlkServer, BlkStatus, Phase, RingError, SECTOR_BYTES,
        read_bytes,
    },
    system::GROUPS_MAX,
    units::{DiskId, Nanos},
};

use crate::{
    cost::{Access, Cost, CostModel, CostRule},
    depth::Depth,
    device::{Buffer, DeviceRequest, DeviceStatus, TAGS},
    dispatch::{BATCH_MAX, Dispatched, Dispatcher, Pulled, Queued},
    gpt::{ENTRIES_BYTES, Header, PARTITIONS, Partition, SECTOR, parse_entries, parse_header},
    histogram::Histogram,
    peers::Peers,
    sched::{AnyScheduler, NodeId, Scheduler},
};

/// Nodes of the policy: clients first, then groups.
pub const NODES: usize = MAX_CLIENTS + MAX_GROUPS;
pub(crate) const INNERS: usize = MAX_GROUPS + 1;

/// Bytes of the scratch area: a header sector, then partition entries.
pub const SCRATCH_BYTES: usize = SCRATCH_ENTRIES + ENTRIES_BYTES;
const SCRATCH_ENTRIES: usize = 4096;

/// Entries taken from one ring at one doorbell: all that fit, twice, so that rubbish cannot hold the server.
const DRAIN_MAX: usize = 2 * BLK_SLOTS;

/// Where the server finds shared memory.
pub trait Memory {
    /// A mapped area.
    type Area: AsRef<[AtomicU64]>;
    /// The ring of client `index`, if it is mapped.
    fn ring(&self, index: u16) -> Option<Self::Area>;
    /// The server's own area of [`SCRATCH_BYTES`] that the device reads into.
    fn scratch(&self) -> &[AtomicU64];
    /// The page where the server of disk `disk` tells what it did for groups ([`Progress`]): this server's own is written,
    /// the others' read. Asked only for the disks of a [`Config`] that has several.
    fn progress(&self, disk: DiskId) -> Option<Self::Area>;
}

/// What can be chosen when the server starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Dispatch policy.
    pub policy: Policy,
    /// Most requests in the device, at most [`TAGS`].
    pub depth: u32,
    /// Latency in the device to stay under; 0 for none.
    pub latency_ceiling: Nanos,
    /// How costs are computed.
    pub cost: CostRule,
    /// Most nearby requests in a row; 1 for none.
    pub batch: u32,
    /// Reference requests per second that may be promised; `None`: as learnt from the device.
    pub capacity: Option<u32>,
    /// Time after which a request in the device is given up; 0 for never.
    pub timeout: Nanos,
    /// Which disk it serves, of how many with a server each.
    pub disk: DiskId,
    /// See [`disk`](Self::disk); 1 for a server that keeps its groups' claims alone.
    pub disks: u8,
}

impl Config {
    /// mClock, 32 requests in the device, 50 ms.
    pub const DEFAULT: Self = Self {
        policy: Policy::MClock,
        depth: 32,
        latency_ceiling: Nanos::from_millis(50),
        cost: CostRule::DEFAULT,
        batch: BATCH_MAX,
        capacity: None,
        timeout: Nanos::from_secs(30),
        disk: DiskId(0),
        disks: 1,
    };
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'e> {
    /// The device is there, with this many sectors: look for partitions.
    Start {
        /// Size of the disk.
        sectors: u64,
    },
    /// A client rang.
    Doorbell {
        /// Its badge.
        badge: u64,
    },
    /// A control message; answered in [`Actions::reply`].
    Message {
        /// Badge of the sender.
        badge: u64,
        /// Its label.
        label: u64,
        /// Its payload.
        payload: &'e [u8],
    },
    /// The same from the root-task's command queue; answered in [`Actions::reply`].
    Control {
        /// What it orders.
        request: &'e IoRequest,
    },
    /// The device answered.
    Done {
        /// Tag of the request.
        tag: u8,
        /// How.
        status: DeviceStatus,
    },
    /// The time asked for by [`Actions::timer`] has come.
    Timer,
}

/// What to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Give these to the device.
    pub submits: heapless::Vec<DeviceRequest, TAGS>,
    /// Signal the notifications of these clients: bit = index.
    pub signals: u32,
    /// Call again with [`Event::Timer`] at this time; replaces any earlier wish.
    pub timer: Option<Nanos>,
    /// Answer to a message.
    pub reply: Option<IoReply>,
    /// The device keeps a request longer than it may, and might still touch its data: it must be reset before anybody asks it
    /// for more. A new server does that first, and finds in the rings what was under way.
    pub must_reset: bool,
}
const _: () = assert!(MAX_CLIENTS <= 32, "signals are 32 bits");

impl Actions {
    /// Nothing to do.
    pub const NONE: Self = Self {
        submits: heapless::Vec::new(),
        signals: 0,
        timer: None,
        reply: None,
        must_reset: false,
    };

    /// Forgets all, to be used again.
    pub fn clear(&mut self) {
        self.submits.clear();
        self.signals = 0;
        self.timer = None;
        self.reply = None;
        self.must_reset = false;
    }

    const fn signal(&mut self, index: usize) {
        self.signals |= 1 << index;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    slot: u8,
    operation: BlkOperation,
    offset: u32,
    is_sequential: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A client's request; a lost one has been given up and counts as nobody's any more.
    Client { index: u8, phase: Phase, queued: Queued<Item>, is_lost: bool },
    /// Reading the partition table.
    Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InDevice {
    since: Nanos,
    purpose: Purpose,
}

#[derive(Clone, Debug)]
struct Session<A> {
    area: A,
    ring: BlkServer,
    ring_paddr: u64,
    first: u64,
    sectors: u64,
    is_read_only: bool,
    is_draining: bool,
    group: Option<u8>,
    controls: Controls,
    /// Servers that keep the client's controls together.
    servers: u8,
    in_device: u32,
    /// Requests given up that the device has not answered: it may still touch their data.
    lost: u32,
    /// Sector behind the last request taken, to see sequences.
    next_sector: u64,
    stats: ClientStats,
    latency: Histogram,
    queue: Histogram,
    device: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    parent: Option<u8>,
    controls: Controls,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one value per server, and no heap to box it in")]
enum Disk {
    /// No device yet.
    Absent,
    /// Reading the header at this sector.
    Header { sectors: u64, at: u64 },
    /// Reading the entries.
    Entries { sectors: u64, header: Header, is_backup: bool },
    /// Partitions known.
    Ready { sectors: u64, partitions: heapless::Vec<Partition, PARTITIONS> },
    /// Neither table is usable.
    Broken,
}

/// The io-sched-server.
#[derive(Debug)]
pub struct Server<M: Memory> {
    pub(crate) config: Config,
    pub(crate) memory: M,
    disk: Disk,
    sessions: [Option<Session<M::Area>>; MAX_CLIENTS],
    pub(crate) groups: [Option<Group>; MAX_GROUPS],
    /// What the clients of each group of the description were served that have gone.
    gone: [GroupStats; GROUPS_MAX],
    pub(crate) dispatcher: Dispatcher<AnyScheduler<NODES, INNERS>, Item, MAX_CLIENTS, BLK_SLOTS>,
    tags: [Option<InDevice>; TAGS],
    free_tags: u64,
    in_device: u32,
    /// Requests in all queues.
    waiting: u32,
    model: CostModel,
    depth: Depth,
    capacity: Capacity,
    completed: u64,
    limit_timer: Option<Nanos>,
    /// When to look for requests that the device keeps too long; set while it has any.
    expiry: Option<Nanos>,
    pub(crate) peers: Peers,
}

/// Reference requests served at full depth before the disk's capacity is believed, and between two corrections.
const CAPACITY_WINDOW: u64 = 512;

/// What the disk gives when it has as many requests as it may and more wait: nothing is known of a disk that never was
/// that busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capacity {
    estimate: Option<u32>,
    /// Cost served at full depth since the last correction, 16 fractional bits, and the time that took.
    cost: u64,
    time: Nanos,
    last: Nanos,
    is_full: bool,
}

impl Capacity {
    const NEW: Self =
        Self { estimate: None, cost: 0, time: Nanos(0), last: Nanos(0), is_full: false };

    fn completed(&mut self, now: Nanos, cost: Cost) {
        let gap = now.0.saturating_sub(self.last.0);
        self.last = now;
        if !core::mem::take(&mut self.is_full) {
            return;
        }
        self.cost += u64::from(cost.0);
        self.time.0 += gap;
        if self.cost >> 16 < CAPACITY_WINDOW || self.time.0 == 0 {
            return;
        }
        let rate = u128::from(self.cost) * 1_000_000_000 / (u128::from(self.time.0) << 16);
        let rate = u32::try_from(rate).unwrap_or(u32::MAX);
        // Half old, half new: an absurd start is gone after a few windows.
        self.estimate = Some(self.estimate.map_or(rate, |old| old / 2 + rate / 2));
        (self.cost, self.time) = (0, Nanos(0));
    }
}

/// A report of dmClock as it counts: a client's word, and more than a queue's worth is none.
fn reported(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

pub(crate) const fn group_node(group: u8) -> NodeId {
    MAX_CLIENTS as NodeId + group as NodeId
}

/// The group of a node, if it is one.
pub(crate) fn node_group(node: NodeId) -> Option<u8> {
    u8::try_from(node.checked_sub(MAX_CLIENTS as NodeId)?).ok()
}

impl<M: Memory> Server<M> {
    /// A server without disk and clients.
    pub const fn new(config: Config, memory: M) -> Self {
        let depth = if config.depth > TAGS as u32 { TAGS as u32 } else { config.depth };
        Self {
            config,
            memory,
            disk: Disk::Absent,
            sessions: [const { None }; MAX_CLIENTS],
            groups: [None; MAX_GROUPS],
            gone: [GroupStats::NONE; GROUPS_MAX],
            dispatcher: Dispatcher::new(AnyScheduler::new(config.policy), config.batch),
            tags: [None; TAGS],
            free_tags: u64::MAX,
            in_device: 0,
            waiting: 0,
            model: CostModel::new(config.cost),
            depth: Depth::new(depth, config.latency_ceiling),
            capacity: Capacity::NEW,
            completed: 0,
            limit_timer: None,
            expiry: None,
            peers: Peers::NEW,
        }
    }

    /// Replaces the configuration of a server made with [`Config::DEFAULT`] that has no clients yet.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.model = CostModel::new(config.cost);
        self.depth = Depth::new(config.depth.clamp(1, TAGS as u32), config.latency_ceiling);
        if config.policy != Policy::MClock {
            // Built on the stack on its way: some 60 KiB.
            *self.dispatcher.policy() = AnyScheduler::new(config.policy);
        }
        self.dispatcher.set_batch(config.batch);
    }

    /// Has the partition table been read, or given up?
    pub const fn is_ready(&self) -> bool {
        matches!(self.disk, Disk::Ready { .. } | Disk::Broken)
    }

    /// Takes one event; `actions` must be empty.
    pub fn step(&mut self, now: Nanos, event: Event<'_>, actions: &mut Actions) {
        match event {
            Event::Start { sectors } => self.read_header(now, sectors, 1, actions),
            Event::Doorbell { badge } => self.doorbell(now, badge, actions),
            Event::Message { badge, label, payload } => {
                let reply = match decode::<Io>(label, payload) {
                    Ok(request) => self.message(now, badge, request, actions),
                    Err(_) => IoReply::Error(IoError::Malformed),
                };
                actions.reply = Some(reply);
            }
            Event::Control { request } => {
                actions.reply = Some(self.message(now, ROOT_BADGE, request.clone(), actions));
            }
            Event::Done { tag, status } => self.done(now, tag, status, actions),
            Event::Timer => self.expire(now, actions),
        }
        if self.config.disks > 1 {
            self.hear_peers(now);
            self.dispatch(now, actions);
            self.tell_peers();
        } else {
            self.dispatch(now, actions);
        }
        actions.timer = self.next_timer();
    }

    // ---- the disk

    fn read_header(&mut self, now: Nanos, sectors: u64, at: u64, actions: &mut Actions) {
        self.disk = Disk::Header { sectors, at };
        self.submit_table(now, at, SECTOR_BYTES, 0, actions);
    }

    fn submit_table(
        &mut self,
        now: Nanos,
        sector: u64,
        length: u32,
        offset: u32,
        actions: &mut Actions,
    ) {
        let buffer = Buffer::Scratch { offset };
        let operation = BlkOperation::Read;
        let Some(tag) = self.take_tag(InDevice { since: now, purpose: Purpose::Table }) else {
            self.disk = Disk::Broken;
            return;
        };
        let request = DeviceRequest { tag, operation, sector, length, buffer };
        self.push(actions, request);
    }

    fn push(&mut self, actions: &mut Actions, request: DeviceRequest) {
        let pushed = actions.submits.push(request);
        debug_assert!(pushed.is_ok(), "one submission per tag, and a tag is used once per step");
    }

    fn take_tag(&mut self, in_device: InDevice) -> Option<u8> {
        let tag = self.free_tags.trailing_zeros();
        if tag as usize >= TAGS {
            return None;
        }
        self.free_tags &= self.free_tags - 1;
        self.tags[tag as usize] = Some(in_device);
        self.in_device += 1;
        Some(tag as u8)
    }

    fn table_read(&mut self, now: Nanos, status: DeviceStatus, actions: &mut Actions) {
        let is_ok = status == DeviceStatus::Ok;
        match core::mem::replace(&mut self.disk, Disk::Broken) {
            Disk::Header { sectors, at } => {
                let mut sector = [0; SECTOR];
                read_bytes(self.memory.scratch(), 0, &mut sector);
                let header = parse_header(&sector, at, sectors);
                match header {
                    Ok(header) if is_ok => {
                        let (at_sector, length) = (header.entries_sector, header.entries_length);
                        self.disk = Disk::Entries { sectors, header, is_backup: at != 1 };
                        let offset = SCRATCH_ENTRIES as u32;
                        self.submit_table(now, at_sector, length, offset, actions);
                    }
                    _ => self.try_backup(now, sectors, at != 1, actions),
                }
            }
            Disk::Entries { sectors, header, is_backup } => {
                let mut bytes = [0; ENTRIES_BYTES];
                read_bytes(self.memory.scratch(), SCRATCH_ENTRIES, &mut bytes);
                match parse_entries(&header, &bytes) {
                    Ok(partitions) if is_ok => self.disk = Disk::Ready { sectors, partitions },
                    _ => self.try_backup(now, sectors, is_backup, actions),
                }
            }
            other => self.disk = other,
        }
    }

    fn try_backup(&mut self, now: Nanos, sectors: u64, was_backup: bool, actions: &mut Actions) {
        if !was_backup && sectors > 2 {
            self.read_header(now, sectors, sectors - 1, actions);
        }
    }

    fn partition(&self, label: &PartitionLabel) -> Result<&Partition, IoError> {
        let Disk::Ready { partitions, .. } = &self.disk else { return Err(IoError::NoDisk) };
        partitions.iter().find(|p| p.label == *label).ok_or(IoError::NoPartition)
    }

    // ---- rings

    fn doorbell(&mut self, now: Nanos, badge: u64, actions: &mut Actions) {
        let index = usize::try_from(badge.wrapping_sub(1)).unwrap_or(usize::MAX);
        if index < MAX_CLIENTS {
            self.drain(now, index, actions);
        }
    }

    fn drain(&mut self, now: Nanos, index: usize, actions: &mut Actions) {
        for _ in 0..DRAIN_MAX {
            let Some(session) = self.sessions[index].as_mut().filter(|s| !s.is_draining) else {
                return;
            };
            match session.ring.next(session.area.as_ref()) {
                Ok(None) => return,
                Ok(Some((slot, request))) => self.accept(now, index, slot, &request, actions),
                Err(error) => {
                    session.stats.violations += 1;
                    if let RingError::Malformed { .. } = error {
                        actions.signal(index);
                    }
                }
            }
        }
    }

    fn accept(
        &mut self,
        now: Nanos,
        index: usize,
        slot: u8,
        request: &BlkRequest,
        actions: &mut Actions,
    ) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let count = u64::from(request.length / SECTOR_BYTES);
        let is_inside = request.sector.checked_add(count).is_some_and(|end| end <= session.sectors);
        let is_flush = request.operation == BlkOperation::Flush;
        let refusal = if is_flush {
            None
        } else if !is_inside {
            Some(BlkStatus::OutOfRange)
        } else if request.operation == BlkOperation::Write && session.is_read_only {
            Some(BlkStatus::ReadOnly)
        } else {
            None
        };
        if let Some(status) = refusal {
            session.stats.errors += 1;
            session.ring.complete(session.area.as_ref(), slot, status, Phase::Weight);
            actions.signal(index);
            return;
        }
        let is_sequential = request.sector == session.next_sector && !is_flush;
        let access = Access { operation: request.operation, is_sequential, length: request.length };
        let sector = if is_flush { session.next_sector } else { request.sector };
        // A client of this server alone has had nothing elsewhere, whatever it says.
        let elsewhere = match session.servers {
            1 => (0, 0),
            _ => (reported(request.delta), reported(request.rho)),
        };
        session.next_sector = sector + count;
        let queued = Queued {
            item: Item {
                slot,
                operation: request.operation,
                offset: request.data_offset() as u32,
                is_sequential,
            },
            arrival: now,
            sector: session.first + sector,
            bytes: request.length,
            cost: if is_flush { Cost::ONE } else { self.model.cost(access) },
            elsewhere,
        };
        let client = index as NodeId;
        if is_flush && session.in_device > 0 {
            self.dispatcher.hold(client);
        }
        // A ring has as many slots as a queue has places, so this fits.
        let fits = self.dispatcher.add(now, client, queued);
        debug_assert!(fits, "a slot is queued once");
        self.waiting += u32::from(fits);
    }

    // ---- the device

    fn dispatch(&mut self, now: Nanos, actions: &mut Actions) {
        self.limit_timer = None;
        loop {
            if self.in_device >= self.depth.current() || self.free_tags == 0 {
                self.depth.note_full();
                self.capacity.is_full = self.waiting > 0;
                return;
            }
            match self.dispatcher.pull(now, |item| item.operation == BlkOperation::Flush) {
                Pulled::Request(dispatched) => self.start(now, dispatched, actions),
                Pulled::WaitUntil(until) => {
                    self.limit_timer = Some(until);
                    return;
                }
                Pulled::Idle => return,
            }
        }
    }

    fn start(&mut self, now: Nanos, dispatched: Dispatched<Item>, actions: &mut Actions) {
        let Dispatched { client, phase, queued } = dispatched;
        self.waiting -= 1;
        let index = usize::from(client);
        let Some(session) = self.sessions[index].as_mut() else { return };
        session.in_device += 1;
        let offset = queued.item.offset;
        let buffer = Buffer::Ring {
            index: client,
            offset,
            paddr: session.ring_paddr.wrapping_add(u64::from(offset)),
        };
        let purpose = Purpose::Client { index: client as u8, phase, queued, is_lost: false };
        let Some(tag) = self.take_tag(InDevice { since: now, purpose }) else { return };
        if self.expiry.is_none() && self.config.timeout != Nanos(0) {
            self.expiry = Some(Nanos(now.0.saturating_add(self.config.timeout.0)));
        }
        let operation = queued.item.operation;
        let request =
            DeviceRequest { tag, operation, sector: queued.sector, length: queued.bytes, buffer };
        self.push(actions, request);
    }

    fn done(&mut self, now: Nanos, tag: u8, status: DeviceStatus, actions: &mut Actions) {
        // A tag the device was not given is the device's lie: ignored.
        let Some(in_device) = self.tags.get_mut(usize::from(tag)).and_then(Option::take) else {
            return;
        };
        self.free_tags |= 1 << tag;
        let Purpose::Client { index, phase, queued, is_lost } = in_device.purpose else {
            self.in_device -= 1;
            self.table_read(now, status, actions);
            return;
        };
        if is_lost {
            self.found(index);
            return;
        }
        self.in_device -= 1;
        let latency = Nanos(now.0.saturating_sub(in_device.since.0));
        let access = Access {
            operation: queued.item.operation,
            is_sequential: queued.item.is_sequential,
            length: queued.bytes,
        };
        if status == DeviceStatus::Ok {
            self.model.completed(now, in_device.since, access);
        }
        self.depth.completed(latency);
        self.capacity.completed(now, queued.cost);
        self.completed += 1;
        let client = NodeId::from(index);
        self.dispatcher.completed(now, client);
        let index = usize::from(index);
        let Some(session) = self.sessions[index].as_mut() else { return };
        session.in_device -= 1;
        let status = match status {
            DeviceStatus::Ok => BlkStatus::Ok,
            DeviceStatus::Error => BlkStatus::DeviceError,
            DeviceStatus::Unsupported => BlkStatus::Unsupported,
        };
        session.count(now, &queued, phase, status, latency);
        session.ring.complete(session.area.as_ref(), queued.item.slot, status, phase);
        actions.signal(index);
        if session.in_device == 0 {
            self.dispatcher.resume(now, client);
        }
    }

    /// The device has answered a request of client `index` that was given up.
    #[cold]
    fn found(&mut self, index: u8) {
        if let Some(session) = self.sessions[usize::from(index)].as_mut() {
            session.lost -= 1;
        }
    }

    fn expire(&mut self, now: Nanos, actions: &mut Actions) {
        if self.expiry.is_none_or(|expiry| now < expiry) {
            return;
        }
        self.expiry = None;
        for tag in 0..TAGS {
            let Some(InDevice { since, purpose: Purpose::Client { is_lost: false, .. } }) =
                self.tags[tag]
            else {
                continue;
            };
            let then = Nanos(since.0.saturating_add(self.config.timeout.0));
            if then <= now {
                self.give_up(now, tag, actions);
            } else {
                self.expiry = Some(self.expiry.map_or(then, |expiry| expiry.min(then)));
            }
        }
    }

    /// The device has kept the request of `tag` too long: its client gets an error, and nobody waits for it any more. The tag
    /// stays taken, and so does the data (see `BlkClient::release`), for the device may still read or write it.
    fn give_up(&mut self, now: Nanos, tag: usize, actions: &mut Actions) {
        let Some(InDevice { since, purpose: Purpose::Client { index, phase, queued, is_lost } }) =
            &mut self.tags[tag]
        else {
            return;
        };
        let Some(session) = self.sessions[usize::from(*index)].as_mut() else { return };
        *is_lost = true;
        session.lost += 1;
        session.in_device -= 1;
        self.in_device -= 1;
        let age = Nanos(now.0.saturating_sub(since.0));
        session.count(now, queued, *phase, BlkStatus::Timeout, age);
        session.ring.complete(session.area.as_ref(), queued.item.slot, BlkStatus::Timeout, *phase);
        actions.signal(usize::from(*index));
        actions.must_reset = true;
        let client = NodeId::from(*index);
        self.dispatcher.completed(now, client);
        if session.in_device == 0 {
            self.dispatcher.resume(now, client);
        }
    }

    fn next_timer(&self) -> Option<Nanos> {
        match (self.limit_timer, self.expiry) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    // ---- control

    fn message(
        &mut self,
        now: Nanos,
        badge: u64,
        request: IoRequest,
        actions: &mut Actions,
    ) -> IoReply {
        if badge != ROOT_BADGE {
            return match request {
                IoRequest::Info => self.info(badge),
                _ => IoReply::Error(IoError::Forbidden),
            };
        }
        let done = |result: Result<(), IoError>| match result {
            Ok(()) => IoReply::Done,
            Err(error) => IoReply::Error(error),
        };
        match request {
            IoRequest::Attach { .. } => {
                self.attach(now, request, actions).map_or_else(IoReply::Error, IoReply::Disk)
            }
            IoRequest::Detach { index } => self.detach(index),
            IoRequest::SetControls { index, controls } => {
                done(self.set_controls(now, index, controls))
            }
            IoRequest::SetGroup { group, parent, controls } => {
                done(self.set_group(now, group, parent, controls))
            }
            IoRequest::SetVm(claim) => done(self.set_vm(now, claim)),
            IoRequest::SetPolicy { policy } => {
                self.set_policy(now, policy);
                IoReply::Done
            }
            IoRequest::Stats { index } => self.stats(now, index),
            IoRequest::DiskStats => IoReply::DiskStats(self.disk_stats()),
            IoRequest::Info => IoReply::Error(IoError::BadClient),
        }
    }

    /// The disk of the client with this badge.
    pub fn info(&self, badge: u64) -> IoReply {
        let index = usize::try_from(badge.wrapping_sub(1)).unwrap_or(usize::MAX);
        match self.sessions.get(index).and_then(Option::as_ref) {
            Some(session) => IoReply::Disk(session.info()),
            None => IoReply::Error(IoError::BadClient),
        }
    }

    fn attach(
        &mut self,
        now: Nanos,
        request: IoRequest,
        actions: &mut Actions,
    ) -> Result<DiskInfo, IoError> {
        let IoRequest::Attach {
            index,
            partition,
            is_read_only,
            group,
            vm,
            controls,
            servers,
            ring_paddr,
        } = request
        else {
            return Err(IoError::Malformed);
        };
        let at = usize::from(index);
        if self.sessions.get(at).is_none_or(Option::is_some) || servers == 0 {
            return Err(IoError::BadClient);
        }
        let (first, sectors) = self.partition(&partition).map(|p| (p.first, p.sectors))?;
        self.check_group(group)?;
        let parent = group;
        let group = vm.map(|vm| vm.group).or(parent);
        if let Some(vm) = vm {
            self.set_group(now, vm.group, parent, vm.controls)?;
        }
        let admitted = self.admit(at, group, &controls, servers);
        let opened = admitted.and_then(|()| self.memory.ring(index).ok_or(IoError::BadRing));
        let opened = opened.and_then(|area| {
            let ring = BlkServer::attach(area.as_ref()).map_err(|_| IoError::BadRing)?;
            Ok((area, ring))
        });
        let (area, ring) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.drop_vm_group(group);
                return Err(error);
            }
        };
        let session = Session {
            area,
            ring,
            ring_paddr,
            first,
            sectors,
            is_read_only,
            is_draining: false,
            group,
            controls,
            servers,
            in_device: 0,
            lost: 0,
            next_sector: 0,
            stats: ClientStats::default(),
            latency: Histogram::new(),
            queue: Histogram::new(),
            device: Histogram::new(),
        };
        let info = session.info();
        self.sessions[at] = Some(session);
        let parent = group.map(group_node);
        self.dispatcher.policy().attach(now, index, parent, &controls);
        // What an earlier server left in the ring goes on at once.
        self.drain(now, at, actions);
        Ok(info)
    }

    fn detach(&mut self, index: u16) -> IoReply {
        let at = usize::from(index);
        let Some(session) = self.sessions.get_mut(at).and_then(Option::as_mut) else {
            return IoReply::Error(IoError::BadClient);
        };
        session.is_draining = true;
        let in_device = session.in_device + session.lost;
        self.waiting -= self.dispatcher.waiting(index);
        self.dispatcher.detach(index);
        if in_device > 0 {
            return IoReply::Draining { in_device };
        }
        let (group, stats) = (session.group, session.stats);
        self.sessions[at] = None;
        for named in 0..GROUPS_MAX as u8 {
            if self.is_below(group, named) {
                let gone = &mut self.gone[usize::from(named)];
                *gone = gone.with(&stats);
            }
        }
        self.drop_vm_group(group);
        IoReply::Done
    }

    /// A VM's own group ends with the last of its disks here.
    fn drop_vm_group(&mut self, group: Option<u8>) {
        let Some(group) = group.filter(|group| usize::from(*group) >= GROUPS_MAX) else { return };
        if !self.has_members(group)
            && let Some(place) = self.groups.get_mut(usize::from(group))
        {
            *place = None;
        }
    }

    /// Whether a client is in `group` itself.
    fn has_members(&self, group: u8) -> bool {
        self.sessions.iter().flatten().any(|session| session.group == Some(group))
    }

    fn set_vm(&mut self, now: Nanos, claim: VmClaim) -> Result<(), IoError> {
        match self.group(claim.group).map(|group| group.parent) {
            Some(parent) => self.set_group(now, claim.group, parent, claim.controls),
            None => Ok(()),
        }
    }

    fn check_group(&self, group: Option<u8>) -> Result<(), IoError> {
        match group {
            Some(group) if self.group(group).is_none() => Err(IoError::BadControls),
            _ => Ok(()),
        }
    }

    fn group(&self, group: u8) -> Option<&Group> {
        self.groups.get(usize::from(group)).and_then(Option::as_ref)
    }

    fn set_controls(&mut self, now: Nanos, index: u16, controls: Controls) -> Result<(), IoError> {
        let at = usize::from(index);
        let session = self.sessions.get(at).and_then(Option::as_ref).ok_or(IoError::BadClient)?;
        self.admit(at, session.group, &controls, session.servers)?;
        if let Some(session) = self.sessions[at].as_mut() {
            session.controls = controls;
        }
        self.dispatcher.policy().set_controls(now, index, &controls);
        Ok(())
    }

    fn set_group(
        &mut self,
        now: Nanos,
        group: u8,
        parent: Option<u8>,
        controls: Controls,
    ) -> Result<(), IoError> {
        check_controls(&controls)?;
        self.check_group(parent)?;
        let is_moved = self.group(group).is_some_and(|g| g.parent != parent);
        if usize::from(group) >= MAX_GROUPS || parent == Some(group) || is_moved {
            return Err(IoError::BadControls);
        }
        let members = self.reserved_below(group, None);
        if controls.limit != 0 && members > controls.limit {
            return Err(IoError::GroupLimit { asked: members, free: controls.limit });
        }
        let before = self.reserved_total(None);
        let place = &mut self.groups[usize::from(group)];
        let old = place.replace(Group { parent, controls });
        if let Err(error) = self.fits(before, self.reserved_total(None)) {
            self.groups[usize::from(group)] = old;
            return Err(error);
        }
        let parent = parent.map(group_node);
        self.dispatcher.policy().set_group(now, group_node(group), parent, &controls);
        if old.is_none() {
            self.peers.begin(&self.memory, &self.config, group);
        }
        Ok(())
    }

    /// Is client `at` in `group`, at any level?
    fn is_below(&self, mut inside: Option<u8>, group: u8) -> bool {
        for _ in 0..MAX_GROUPS {
            match inside {
                Some(at) if at == group => return true,
                Some(at) => inside = self.group(at).and_then(|g| g.parent),
                None => return false,
            }
        }
        false
    }

    /// Sum of the clients' reservations in `group`, but for client `except`.
    fn reserved_below(&self, group: u8, except: Option<usize>) -> u32 {
        let members = self.sessions.iter().enumerate().filter_map(|(at, session)| {
            let session = session.as_ref()?;
            (Some(at) != except && self.is_below(session.group, group)).then_some(session)
        });
        members.fold(0, |sum, s| sum.saturating_add(self.reserved_here(&s.controls, s.servers)))
    }

    /// A reservation in reference requests per second, its bytes counted as large random requests.
    fn requests_reserved(&self, controls: &Controls) -> u32 {
        let length = 64 << 10;
        let access = Access { operation: BlkOperation::Read, is_sequential: false, length };
        let cost = u128::from(self.model.cost(access).0);
        let bytes = u128::from(controls.reservation_bytes) * cost / (u128::from(length) << 16);
        controls.reservation.max(u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    /// The part of a client's reservation that falls on this one of its `servers` if it asks all alike.
    fn reserved_here(&self, controls: &Controls, servers: u8) -> u32 {
        self.requests_reserved(controls).div_ceil(u32::from(servers))
    }

    /// May client `at` of `servers` servers have these controls?
    fn admit(
        &self,
        at: usize,
        group: Option<u8>,
        controls: &Controls,
        servers: u8,
    ) -> Result<(), IoError> {
        check_controls(controls)?;
        let wanted = self.reserved_here(controls, servers);
        let mut inside = group;
        while let Some(group) = inside {
            let Some(state) = self.group(group) else { break };
            let others = self.reserved_below(group, Some(at));
            let limit = state.controls.limit;
            if limit != 0 && others.saturating_add(wanted) > limit {
                let free = limit.saturating_sub(others);
                return Err(IoError::GroupLimit { asked: wanted, free });
            }
            inside = state.parent;
        }
        self.fits(self.reserved_total(None), self.reserved_total(Some((at, group, wanted))))
    }

    /// May the sum of reservations change from `before` to `after`? Less is always possible.
    fn fits(&self, before: u32, after: u32) -> Result<(), IoError> {
        let Some(capacity) = self.capacity() else { return Ok(()) };
        if after <= before || after <= capacity {
            return Ok(());
        }
        Err(IoError::Overcommitted { asked: after - before, free: capacity.saturating_sub(before) })
    }

    /// Sum of all reservations, with those of client `changed.0`, in group `changed.1`, being `changed.2`. A group counts
    /// its own or those of its members, whatever is more.
    fn reserved_total(&self, changed: Option<(usize, Option<u8>, u32)>) -> u32 {
        const TOP: usize = MAX_GROUPS;
        let place = |group: Option<u8>| group.map_or(TOP, usize::from).min(TOP);
        let mut sums = [0_u32; MAX_GROUPS + 1];
        let mut add = |group, reserved: u32| {
            let sum = &mut sums[place(group)];
            *sum = sum.saturating_add(reserved);
        };
        for (at, session) in self.sessions.iter().enumerate() {
            if let Some(session) = session
                && changed.is_none_or(|(changed, ..)| changed != at)
            {
                add(session.group, self.reserved_here(&session.controls, session.servers));
            }
        }
        if let Some((_, group, reserved)) = changed {
            add(group, reserved);
        }
        for depth in (0..MAX_GROUPS).rev() {
            for (number, group) in self.groups.iter().enumerate() {
                let Some(group) = group else { continue };
                if depth_of(&self.groups, group.parent) == depth {
                    let own = self.requests_reserved(&group.controls).max(sums[number]);
                    let sum = &mut sums[place(group.parent)];
                    *sum = sum.saturating_add(own);
                }
            }
        }
        sums[TOP]
    }

    fn capacity(&self) -> Option<u32> {
        self.config.capacity.or(self.capacity.estimate)
    }

    fn set_policy(&mut self, now: Nanos, policy: Policy) {
        // Built in place: it is too large to be passed around on the stack.
        let next = self.dispatcher.policy();
        *next = AnyScheduler::new(policy);
        // Parents were set before their children had them as parents, but not always with smaller numbers.
        for depth in 0..MAX_GROUPS {
            for (number, group) in self.groups.iter().enumerate() {
                let Some(group) = group else { continue };
                if depth_of(&self.groups, group.parent) == depth {
                    let node = group_node(number as u8);
                    next.set_group(now, node, group.parent.map(group_node), &group.controls);
                }
            }
        }
        for (index, session) in self.sessions.iter().enumerate() {
            if let Some(session) = session {
                let parent = session.group.map(group_node);
                next.attach(now, index as NodeId, parent, &session.controls);
            }
        }
        self.dispatcher.policy_replaced(now);
        self.config.policy = policy;
    }

    /// Figures of a client.
    pub fn stats(&self, now: Nanos, index: u16) -> IoReply {
        let Some(session) = self.sessions.get(usize::from(index)).and_then(Option::as_ref) else {
            return IoReply::Error(IoError::BadClient);
        };
        let mut stats = session.stats;
        stats.queued = self.dispatcher.waiting(index);
        stats.in_device = session.in_device;
        stats.latency_counts = session.latency.parts(&LATENCY_BOUNDS);
        stats.latency_sum = session.latency.sum();
        stats.latency_p50 = session.latency.quantile(500);
        stats.latency_p99 = session.latency.quantile(990);
        stats.queue_p50 = session.queue.quantile(500);
        stats.queue_p99 = session.queue.quantile(990);
        stats.device_p50 = session.device.quantile(500);
        stats.device_p99 = session.device.quantile(990);
        stats.waits_for = self.waits_for(index);
        if let AnyScheduler::MClock(policy) = self.dispatcher.policy_ref() {
            stats.lead = policy.lead(now, index);
        }
        IoReply::Stats(stats)
    }

    /// What the clients of group `group` of the description were served, those that have gone included.
    pub fn group_stats(&self, group: u8) -> GroupStats {
        let gone = self.gone.get(usize::from(group)).copied().unwrap_or_default();
        let members = self.sessions.iter().flatten();
        let members = members.filter(|session| self.is_below(session.group, group));
        members.fold(gone, |sum, session| sum.with(&session.stats))
    }

    fn waits_for(&self, client: NodeId) -> WaitsFor {
        if self.dispatcher.waiting(client) == 0 {
            return WaitsFor::Nothing;
        }
        if self.dispatcher.is_held(client) {
            return WaitsFor::Flush;
        }
        if let AnyScheduler::MClock(policy) = self.dispatcher.policy_ref() {
            match policy.waits_for_limit(client) {
                Some(true) => return WaitsFor::Limit,
                Some(false) => return WaitsFor::GroupLimit,
                None => {}
            }
        }
        if self.config.latency_ceiling != Nanos(0) && self.depth.current() < self.config.depth {
            return WaitsFor::Device;
        }
        WaitsFor::Turn
    }

    fn disk_stats(&self) -> DiskStats {
        DiskStats {
            sectors: match self.disk {
                Disk::Ready { sectors, .. } => sectors,
                _ => 0,
            },
            completed: self.completed,
            depth: self.depth.current(),
            in_device: self.in_device,
            capacity: self.capacity().unwrap_or(0),
            reserved: self.reserved_total(None),
            reference_cost: self.model.reference_time().unwrap_or(Nanos(0)),
            policy: self.config.policy,
            // What stands between this server and the disk is the edge's.
            is_modelled: false,
            late: 0,
        }
    }
}

/// How many groups there are from `parent` to the top.
fn depth_of(groups: &[Option<Group>; MAX_GROUPS], mut parent: Option<u8>) -> usize {
    let mut depth = 0;
    while let Some(group) = parent {
        depth += 1;
        parent = groups.get(usize::from(group)).and_then(Option::as_ref).and_then(|g| g.parent);
    }
    depth
}

fn check_controls(controls: &Controls) -> Result<(), IoError> {
    let Controls { reservation, limit, shares, reservation_bytes, limit_bytes, .. } = *controls;
    let is_bad = shares == 0
        || (limit != 0 && reservation > limit)
        || (limit_bytes != 0 && reservation_bytes > limit_bytes);
    if is_bad { Err(IoError::BadControls) } else { Ok(()) }
}

impl<A> Session<A> {
    const fn info(&self) -> DiskInfo {
        DiskInfo { sectors: self.sectors, is_read_only: self.is_read_only }
    }

    fn count(
        &mut self,
        now: Nanos,
        queued: &Queued<Item>,
        phase: Phase,
        status: BlkStatus,
        in_device: Nanos,
    ) {
        let stats = &mut self.stats;
        let bytes = if status == BlkStatus::Ok { u64::from(queued.bytes) } else { 0 };
        match queued.item.operation {
            BlkOperation::Read => {
                stats.reads += 1;
                stats.read_bytes += bytes;
            }
            BlkOperation::Write => {
                stats.writes += 1;
                stats.written_bytes += bytes;
            }
            BlkOperation::Flush => stats.flushes += 1,
        }
        match phase {
            Phase::Reservation => stats.by_reservation += 1,
            Phase::Weight => stats.by_weight += 1,
        }
        if status != BlkStatus::Ok {
            stats.errors += 1;
        }
        let latency = now.0.saturating_sub(queued.arrival.0);
        self.latency.add(Nanos(latency));
        self.queue.add(Nanos(latency.saturating_sub(in_device.0)));
        self.device.add(in_device);
    }
}
