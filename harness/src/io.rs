//! io-sched-servers with their disks and clients in one virtual time.
//!
//! A node is a whole server, driven only by its messages: doorbells, control messages, completions, timers; its device is
//! a model, its rings are ordinary memory. Clients keep requests outstanding, send bursts, or think; they talk to one
//! node or stripe over several.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, atomic::AtomicU64},
};

use io_sched_server::{
    device::{BlockDevice, Buffer, DeviceRequest, DeviceStatus, TAGS},
    server::{Actions, Config, Event, Memory, SCRATCH_BYTES, Server},
};
use protocol::{
    dmclock::{Rule, Tracker},
    interface::{Interface, PAYLOAD_MAX, encode},
    io::{
        ClientStats, Controls, Io, IoReply, IoRequest, MAX_CLIENTS, PartitionLabel, ROOT_BADGE,
        VmClaim,
    },
    ring::{
        BLK_RING_BYTES, BLK_SLOTS, BlkClient, BlkOperation, BlkStatus, Phase, SECTOR_BYTES,
        format_blk_ring, read_bytes, write_bytes,
    },
    slots::io_badge,
    units::{DiskId, Nanos, PAGE_SIZE},
};

pub mod fuzz;

use crate::rng::Rng;

/// Shared memory of the host: what a mapping is on the target.
pub type Area = Arc<[AtomicU64]>;

fn area(bytes: usize) -> Area {
    (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
}

/// The memory a server finds: rings by client, scratch.
#[derive(Clone, Debug)]
pub struct HostMemory {
    rings: Arc<std::sync::Mutex<HashMap<u16, Area>>>,
    scratch: Area,
    progress: Arc<[Area]>,
}

impl HostMemory {
    fn new(progress: Arc<[Area]>) -> Self {
        Self { rings: Arc::default(), scratch: area(SCRATCH_BYTES), progress }
    }

    fn map(&self, index: u16, ring: Area) {
        if let Ok(mut rings) = self.rings.lock() {
            rings.insert(index, ring);
        }
    }
}

impl Memory for HostMemory {
    type Area = Area;

    fn ring(&self, index: u16) -> Option<Area> {
        self.rings.lock().ok()?.get(&index).cloned()
    }

    fn scratch(&self) -> &[AtomicU64] {
        &self.scratch
    }

    fn progress(&self, disk: DiskId) -> Option<Area> {
        self.progress.get(disk.index()).cloned()
    }
}

/// Contents of a disk: sectors never written read as zeros.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    sectors: HashMap<u64, [u8; 512]>,
}

impl Contents {
    /// Reads one sector.
    pub fn sector(&self, sector: u64) -> [u8; 512] {
        self.sectors.get(&sector).copied().unwrap_or([0; 512])
    }

    /// Writes whole sectors.
    pub fn write(&mut self, first: u64, bytes: &[u8]) {
        for (sector, chunk) in (first..).zip(bytes.chunks(512)) {
            let mut image = [0; 512];
            image[..chunk.len()].copy_from_slice(chunk);
            self.sectors.insert(sector, image);
        }
    }
}

/// A fault the device is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Requests that touch this sector end in an error.
    BadSector(u64),
    /// Requests that touch this sector are never answered.
    Silence(u64),
}

/// How big each partition of the test disk is.
pub const PARTITION_SECTORS: u64 = 1 << 22;
const FIRST_SECTOR: u64 = 2048;

/// Sectors of a disk with a partition per client.
pub const DISK_SECTORS: u64 = FIRST_SECTOR + MAX_CLIENTS as u64 * PARTITION_SECTORS + 64;

/// First sector of client `index`'s partition.
pub const fn first_sector(index: u16) -> u64 {
    FIRST_SECTOR + index as u64 * PARTITION_SECTORS
}

/// Writes into each sector of a buffer its number and its client.
fn mark(ring: &[AtomicU64], offset: usize, sector: u64, bytes: u32, index: u16) {
    for at in 0..u64::from(bytes / SECTOR_BYTES) {
        let place = offset + at as usize * 512;
        write_bytes(ring, place, &(sector + at).to_le_bytes());
        write_bytes(ring, place + 8, &u64::from(index).to_le_bytes());
    }
}

/// Label of client `index`'s partition.
pub fn label(index: u16) -> PartitionLabel {
    let mut label = PartitionLabel::new();
    let text = format!("disk-{index}");
    // Short by construction; a label that did not fit would not be found, and the test would say so.
    let _ = label.push_str(&text);
    label
}

/// A server with its disk.
pub struct Node {
    /// The server.
    pub server: Box<Server<HostMemory>>,
    memory: HostMemory,
    config: Config,
    device: Box<dyn BlockDevice>,
    /// The disk's contents.
    pub contents: Contents,
    /// Are data moved, or only times?
    pub keeps_data: bool,
    /// Faults of the disk.
    pub faults: Vec<Fault>,
    pending: [Option<DeviceRequest>; TAGS],
    silent: u64,
    timer: Option<Nanos>,
    signals: u32,
    /// Requests the device has finished.
    pub served: u64,
    /// The server wants its device reset.
    pub must_reset: bool,
}

impl Node {
    /// A server of `config` on `device` with an empty partition per client.
    pub fn new(config: Config, device: Box<dyn BlockDevice>) -> Self {
        Self::with(config, device, HostMemory::new(Arc::default()))
    }

    /// Servers of several disks of one machine that tell each other what they do for groups.
    pub fn machine(config: Config, devices: Vec<Box<dyn BlockDevice>>) -> Vec<Self> {
        let disks = devices.len() as u8;
        let progress: Arc<[Area]> = devices.iter().map(|_| area(PAGE_SIZE as usize)).collect();
        let node = |(disk, device)| {
            let config = Config { disk, disks, ..config };
            Self::with(config, device, HostMemory::new(progress.clone()))
        };
        (0..).map(DiskId).zip(devices).map(node).collect()
    }

    /// The pages in which the servers of its machine tell each other what they do for groups, by disk.
    pub fn progress(&self) -> &[Area] {
        &self.memory.progress
    }

    fn with(config: Config, device: Box<dyn BlockDevice>, memory: HostMemory) -> Self {
        let mut node = Self {
            server: Box::new(Server::new(config, memory.clone())),
            memory,
            config,
            device,
            contents: Contents::default(),
            keeps_data: false,
            faults: Vec::new(),
            pending: [None; TAGS],
            silent: 0,
            timer: None,
            signals: 0,
            served: 0,
            must_reset: false,
        };
        partition(&mut node.contents);
        node
    }

    /// Gives the server an event and does what it wants done.
    pub fn event(&mut self, now: Nanos, event: Event<'_>) -> Option<IoReply> {
        let mut actions = Actions::NONE;
        self.server.step(now, event, &mut actions);
        for request in &actions.submits {
            let touches = |sector: u64| {
                let end = request.sector + u64::from(request.length / SECTOR_BYTES);
                (request.sector..end).contains(&sector)
            };
            self.pending[usize::from(request.tag)] = Some(*request);
            if self.faults.iter().any(|f| matches!(f, Fault::Silence(s) if touches(*s))) {
                self.silent |= 1 << request.tag;
                continue;
            }
            self.device.submit(now, request);
        }
        self.signals |= actions.signals;
        self.must_reset |= actions.must_reset;
        self.timer = actions.timer;
        actions.reply
    }

    /// Sends a control message as the root-task would, through its encoding.
    pub fn message(&mut self, now: Nanos, badge: u64, request: &IoRequest) -> Option<IoReply> {
        let mut buffer = [0; PAYLOAD_MAX];
        let payload = encode(request, &mut buffer)?.to_vec();
        self.event(now, Event::Message { badge, label: Io::LABEL, payload: &payload })
    }

    /// Starts the server: it reads its partition table. Returns the time it was ready.
    pub fn start(&mut self, now: Nanos) -> Nanos {
        let mut now = now;
        self.event(now, Event::Start { sectors: DISK_SECTORS });
        while !self.server.is_ready() {
            match self.device.next_event() {
                Some(next) => now = now.max(next),
                None => return now,
            }
            self.collect(now);
        }
        now
    }

    /// Kills the server and starts another on the same rings; the device is reset. Clients must be attached anew.
    pub fn restart(&mut self, now: Nanos, device: Box<dyn BlockDevice>) -> Nanos {
        *self.server = Server::new(self.config, self.memory.clone());
        self.device = device;
        self.pending = [None; TAGS];
        self.silent = 0;
        self.timer = None;
        self.must_reset = false;
        self.start(now)
    }

    fn next_event(&self) -> Option<Nanos> {
        match (self.device.next_event(), self.timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn collect(&mut self, now: Nanos) {
        while let Some((tag, status)) = self.device.poll(now) {
            let mut status = status;
            if let Some(request) = self.pending[usize::from(tag)].take() {
                status = self.move_data(&request, status);
            }
            self.served += 1;
            self.event(now, Event::Done { tag, status });
        }
        if self.timer.is_some_and(|timer| timer <= now) {
            self.timer = None;
            self.event(now, Event::Timer);
        }
    }

    /// Answers now what was not to be answered.
    pub fn answer_silent(&mut self, now: Nanos) {
        let mut silent = std::mem::take(&mut self.silent);
        while silent != 0 {
            let tag = silent.trailing_zeros() as u8;
            silent &= silent - 1;
            self.event(now, Event::Done { tag, status: DeviceStatus::Ok });
        }
    }

    fn move_data(&mut self, request: &DeviceRequest, status: DeviceStatus) -> DeviceStatus {
        let sectors = u64::from(request.length / SECTOR_BYTES);
        let range = request.sector..request.sector + sectors;
        if self.faults.iter().any(|f| matches!(f, Fault::BadSector(s) if range.contains(s))) {
            return DeviceStatus::Error;
        }
        let (words, offset) = match request.buffer {
            Buffer::Scratch { offset } => (Some(self.memory.scratch.clone()), offset),
            Buffer::Ring { index, offset, .. } if self.keeps_data => {
                (self.memory.ring(index), offset)
            }
            Buffer::Ring { .. } => (None, 0),
        };
        let Some(words) = words else { return status };
        for (at, sector) in range.enumerate() {
            let place = offset as usize + at * 512;
            match request.operation {
                BlkOperation::Read => write_bytes(&words, place, &self.contents.sector(sector)),
                BlkOperation::Write => {
                    let mut bytes = [0; 512];
                    read_bytes(&words, place, &mut bytes);
                    self.contents.write(sector, &bytes);
                }
                BlkOperation::Flush => {}
            }
        }
        status
    }
}

/// Writes a partition table with one partition per client.
fn partition(contents: &mut Contents) {
    let partitions: Vec<(String, u64, u64)> = (0..MAX_CLIENTS as u64)
        .map(|index| {
            let first = first_sector(index as u16);
            (format!("disk-{index}"), first, first + PARTITION_SECTORS - 1)
        })
        .collect();
    let borrowed: Vec<(&str, u64, u64)> =
        partitions.iter().map(|(name, first, last)| (name.as_str(), *first, *last)).collect();
    let (header, entries) = io_sched_server::gpt::build(DISK_SECTORS, &borrowed);
    contents.write(1, &header);
    contents.write(2, &entries);
}

/// What a client does.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// Keeps this many I/Os outstanding.
    Closed(u32),
    /// Keeps this many I/Os outstanding at each of its nodes.
    ClosedPerNode(u32),
    /// This many I/Os at once, every so often.
    Bursts {
        /// I/Os of a burst.
        count: u32,
        /// From one burst to the next.
        period: Nanos,
    },
    /// One I/O at a time; after each a pause, in turn from this list.
    Thinking(Vec<Nanos>),
}

/// How a client's I/Os look.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// Bytes of one I/O; more than a request's worth is split.
    pub bytes: u32,
    /// Per cent of reads.
    pub reads: u64,
    /// Per cent at random places; the others follow on.
    pub random: u64,
    /// Per cent that are flushes instead.
    pub flushes: u64,
}

impl Pattern {
    /// Random reads of `bytes`.
    pub const fn random_reads(bytes: u32) -> Self {
        Self { bytes, reads: 100, random: 100, flushes: 0 }
    }
}

/// One finished I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// When.
    pub at: Nanos,
    /// From issue to completion.
    pub latency: Nanos,
    /// Phase of its last request.
    pub phase: Phase,
    /// How its worst request ended.
    pub status: BlkStatus,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    io: u64,
    issued: Nanos,
    operation: BlkOperation,
    sector: u64,
    bytes: u32,
}

/// Its side of one node.
struct Lane {
    node: usize,
    ring: Area,
    client: BlkClient,
    flights: [Option<Flight>; BLK_SLOTS],
}

/// A client.
pub struct Client {
    /// Its number at every node.
    pub index: u16,
    /// What it asks for.
    pub controls: Controls,
    /// What it does.
    pub load: Load,
    /// How its I/Os look.
    pub pattern: Pattern,
    /// Its finished I/Os.
    pub log: Vec<Done>,
    /// From when on it runs.
    pub start: Nanos,
    lanes: Vec<Lane>,
    tracker: Tracker,
    rng: Rng,
    next_io: u64,
    /// I/Os under way: pieces to come, worst status.
    open: HashMap<u64, (u32, BlkStatus)>,
    /// I/Os wanted and not yet in a ring, with the time they came up.
    /// The lane it must take, if any.
    wanted: VecDeque<(Nanos, Option<usize>)>,
    /// Does it tell servers of each other (dmClock)?
    pub reports: bool,
    /// What it reports instead of the truth.
    pub lie: Option<(u32, u32)>,
    /// Next burst or end of a pause.
    wake: Option<Nanos>,
    thought: usize,
    sequential: u64,
    is_running: bool,
    /// Sectors whose writes were acknowledged; each holds its number and the client's index.
    pub written: BTreeSet<u64>,
    /// Flushes answered, and those answered before a write that was submitted earlier.
    pub flush_checks: u64,
    /// See [`flush_checks`](Self::flush_checks).
    pub flush_failures: u64,
}

impl Client {
    /// A client with index `index` that talks to `nodes` (indices into the world).
    pub fn new(
        index: u16,
        controls: Controls,
        load: Load,
        pattern: Pattern,
        nodes: &[usize],
    ) -> Self {
        let lanes = nodes.iter().map(|node| {
            let ring = area(BLK_RING_BYTES);
            let formatted = format_blk_ring(&ring);
            debug_assert!(formatted.is_ok(), "the area has a ring's size");
            let client = match BlkClient::attach(&ring) {
                Ok(client) => client,
                Err(_) => unreachable!("just formatted"),
            };
            Lane { node: *node, ring, client, flights: [None; BLK_SLOTS] }
        });
        Self {
            index,
            controls,
            load,
            pattern,
            log: Vec::new(),
            start: Nanos(0),
            lanes: lanes.collect(),
            tracker: Tracker::new(Rule::Paper),
            rng: Rng::new(0x00c0_ffee ^ u64::from(index) << 32),
            next_io: 0,
            open: HashMap::new(),
            wanted: VecDeque::new(),
            reports: true,
            lie: None,
            wake: None,
            thought: 0,
            sequential: 0,
            is_running: false,
            written: BTreeSet::new(),
            flush_checks: 0,
            flush_failures: 0,
        }
    }

    /// Starts at `start` instead of at once.
    #[must_use]
    pub fn starting(mut self, start: Nanos) -> Self {
        self.start = start;
        self
    }

    /// Uses this tracker rule.
    #[must_use]
    pub fn tracking(mut self, rule: Rule) -> Self {
        self.tracker = Tracker::new(rule);
        self
    }

    /// The ring to one of its nodes, to do with as a hostile client would.
    pub fn ring(&self, lane: usize) -> &[AtomicU64] {
        &self.lanes[lane].ring
    }

    /// Finished I/Os in `[from, to)`.
    pub fn between(&self, from: Nanos, to: Nanos) -> &[Done] {
        let first = self.log.partition_point(|done| done.at < from);
        let end = self.log.partition_point(|done| done.at < to);
        &self.log[first..end.max(first)]
    }

    /// I/Os per second in `[from, to)`.
    pub fn rate(&self, from: Nanos, to: Nanos) -> f64 {
        self.between(from, to).len() as f64 * 1e9 / (to.0 - from.0) as f64
    }

    /// Mean latency in milliseconds in `[from, to)`.
    pub fn latency_ms(&self, from: Nanos, to: Nanos) -> f64 {
        let done = self.between(from, to);
        let sum: u64 = done.iter().map(|d| d.latency.0).sum();
        sum as f64 / done.len().max(1) as f64 / 1e6
    }

    /// Share of I/Os served by reservation in `[from, to)`, in per cent.
    pub fn reserved_per_cent(&self, from: Nanos, to: Nanos) -> f64 {
        let done = self.between(from, to);
        let reserved = done.iter().filter(|d| d.phase == Phase::Reservation).count();
        reserved as f64 * 100.0 / done.len().max(1) as f64
    }

    /// I/Os under way.
    pub fn under_way(&self) -> usize {
        self.open.len()
    }

    fn wants(&self) -> Option<Nanos> {
        if self.is_running { self.wake } else { Some(self.start) }
    }

    /// Time has come to `now`: what more is wanted?
    fn advance(&mut self, now: Nanos) {
        if !self.is_running {
            if now < self.start {
                return;
            }
            self.is_running = true;
            match &self.load {
                Load::Closed(depth) => self.wanted.extend((0..*depth).map(|_| (now, None))),
                Load::ClosedPerNode(depth) => {
                    for lane in 0..self.lanes.len() {
                        self.wanted.extend((0..*depth).map(|_| (now, Some(lane))));
                    }
                }
                Load::Bursts { .. } => self.wake = Some(self.start),
                Load::Thinking(_) => self.wanted.push_back((now, None)),
            }
        }
        if self.wake.is_some_and(|wake| wake <= now) {
            match &self.load {
                Load::Bursts { count, period } => {
                    self.wanted.extend((0..*count).map(|_| (now, None)));
                    self.wake = self.wake.map(|wake| Nanos(wake.0 + period.0));
                }
                _ => {
                    self.wanted.push_back((now, None));
                    self.wake = None;
                }
            }
        }
    }

    fn pieces(&self) -> u32 {
        self.pattern.bytes.div_ceil(protocol::ring::BLK_REQUEST_MAX)
    }

    fn place(&mut self) -> u64 {
        let sectors = u64::from(self.pattern.bytes / SECTOR_BYTES);
        if self.rng.below(100) < self.pattern.random
            || self.sequential + 2 * sectors > PARTITION_SECTORS
        {
            self.sequential = self.rng.below((PARTITION_SECTORS / sectors) - 1) * sectors;
        }
        let at = self.sequential;
        self.sequential += sectors;
        at
    }

    /// Issues what is wanted and fits; returns the lanes whose doorbell must be rung.
    fn issue(&mut self) -> u64 {
        let mut rung = 0;
        while let Some((issued, lane)) = self.wanted.front().copied() {
            let lane = lane.unwrap_or_else(|| self.rng.below(self.lanes.len() as u64) as usize);
            let is_flush = self.pattern.flushes > 0 && self.rng.below(100) < self.pattern.flushes;
            let pieces = if is_flush { 1 } else { self.pieces() };
            let bytes = if is_flush { 0 } else { self.pattern.bytes / pieces };
            let mut reserved = Vec::new();
            for _ in 0..pieces {
                match self.lanes[lane].client.reserve(bytes) {
                    Ok((slot, _)) => reserved.push(slot),
                    Err(_) => break,
                }
            }
            if reserved.len() < pieces as usize {
                let Lane { client, ring, .. } = &mut self.lanes[lane];
                reserved.iter().for_each(|slot| client.release(ring, *slot));
                return rung;
            }
            self.wanted.pop_front();
            self.next_io += 1;
            let io = self.next_io;
            self.open.insert(io, (pieces, BlkStatus::Ok));
            let is_read = self.rng.below(100) < self.pattern.reads;
            let operation = match (is_flush, is_read) {
                (true, _) => BlkOperation::Flush,
                (false, true) => BlkOperation::Read,
                (false, false) => BlkOperation::Write,
            };
            let mut sector = if is_flush { 0 } else { self.place() };
            for slot in reserved {
                let node = self.lanes[lane].node;
                let truth = if self.reports { self.tracker.report(node) } else { (0, 0) };
                let report = self.lie.unwrap_or(truth);
                let Lane { client, ring, flights, .. } = &mut self.lanes[lane];
                if operation == BlkOperation::Write {
                    mark(ring, client.data_offset(slot), sector, bytes, self.index);
                }
                flights[usize::from(slot)] = Some(Flight { io, issued, operation, sector, bytes });
                client.submit(ring, slot, operation, sector, bytes, report);
                sector += u64::from(bytes / SECTOR_BYTES);
            }
            rung |= 1 << lane;
        }
        rung
    }

    /// Takes completions of a lane.
    fn take(&mut self, now: Nanos, lane: usize) {
        loop {
            let Lane { node, ring, client, flights } = &mut self.lanes[lane];
            let Some(done) = client.poll(ring) else { return };
            client.release(ring, done.slot);
            let flight = flights[usize::from(done.slot)].take();
            self.tracker.completed(*node, done.phase);
            let Some(Flight { io, issued, operation, sector, bytes }) = flight else { continue };
            match operation {
                BlkOperation::Write if done.status == BlkStatus::Ok => {
                    self.written.extend(sector..sector + u64::from(bytes / SECTOR_BYTES));
                }
                BlkOperation::Flush => {
                    let is_earlier = |f: &Flight| f.io < io && f.operation == BlkOperation::Write;
                    self.flush_checks += 1;
                    self.flush_failures += u64::from(flights.iter().flatten().any(is_earlier));
                }
                _ => {}
            }
            let Some((left, worst)) = self.open.get_mut(&io) else { continue };
            *left -= 1;
            if done.status != BlkStatus::Ok {
                *worst = done.status;
            }
            if *left > 0 {
                continue;
            }
            let status = *worst;
            self.open.remove(&io);
            let latency = Nanos(now.0 - issued.0);
            self.log.push(Done { at: now, latency, phase: done.phase, status });
            match &self.load {
                Load::Closed(_) => self.wanted.push_back((now, None)),
                Load::ClosedPerNode(_) => self.wanted.push_back((now, Some(lane))),
                Load::Bursts { .. } => {}
                Load::Thinking(pauses) => {
                    let pause = pauses[self.thought % pauses.len()];
                    self.thought += 1;
                    self.wake = Some(Nanos(now.0 + pause.0));
                }
            }
        }
    }
}

/// Nodes and clients in one virtual time.
pub struct World {
    /// Now.
    pub now: Nanos,
    /// The servers.
    pub nodes: Vec<Node>,
    /// The clients.
    pub clients: Vec<Client>,
}

impl World {
    /// Starts `nodes` and attaches `clients` to theirs.
    ///
    /// # Panics
    ///
    /// If a server refuses a client: the experiment is then wrong.
    pub fn new(mut nodes: Vec<Node>, clients: Vec<Client>) -> Self {
        let ready = nodes.iter_mut().map(|node| node.start(Nanos(0))).max().unwrap_or(Nanos(0));
        let mut world = Self { now: ready, nodes, clients: Vec::new() };
        for client in clients {
            world.add(client);
        }
        world
    }

    /// Attaches another client.
    ///
    /// # Panics
    ///
    /// If a server refuses it.
    pub fn add(&mut self, client: Client) {
        self.add_below(client, (None, None));
    }

    /// Attaches another client, in a group.
    ///
    /// # Panics
    ///
    /// If a server refuses it.
    pub fn add_in_group(&mut self, client: Client, group: Option<u8>) {
        self.add_below(client, (group, None));
    }

    /// Attaches another client, in a group and as a disk of a VM with a claim, each if there is one.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub fn add_below(&mut self, client: Client, place: (Option<u8>, Option<VmClaim>)) {
        for lane in 0..client.lanes.len() {
            let reply = self.attach(&client, lane, place);
            assert!(matches!(reply, Some(IoReply::Disk(_))), "attach: {reply:?}");
        }
        self.clients.push(client);
    }

    fn attach(
        &mut self,
        client: &Client,
        lane: usize,
        (group, vm): (Option<u8>, Option<VmClaim>),
    ) -> Option<IoReply> {
        let Lane { node, ring, .. } = &client.lanes[lane];
        let node = &mut self.nodes[*node];
        node.memory.map(client.index, ring.clone());
        let request = IoRequest::Attach {
            index: client.index,
            partition: label(client.index),
            is_read_only: false,
            group,
            vm,
            controls: client.controls,
            servers: client.lanes.len() as u8,
            ring_paddr: 0,
        };
        node.message(self.now, ROOT_BADGE, &request)
    }

    /// Kills and restarts node `node` on a fresh device, and attaches its clients again.
    ///
    /// # Panics
    ///
    /// If the new server refuses a client.
    pub fn restart(&mut self, node: usize, device: Box<dyn BlockDevice>) {
        self.now = self.nodes[node].restart(self.now, device);
        let clients = std::mem::take(&mut self.clients);
        for client in &clients {
            for (lane, _) in client.lanes.iter().enumerate().filter(|(_, l)| l.node == node) {
                let reply = self.attach(client, lane, (None, None));
                assert!(matches!(reply, Some(IoReply::Disk(_))), "attach: {reply:?}");
            }
        }
        self.clients = clients;
        // The root-task signals every client of a restarted server.
        self.nodes[node].signals = u32::MAX;
    }

    /// Changes the controls of client `client` at all its nodes.
    pub fn set_controls(&mut self, client: usize, controls: Controls) {
        let index = self.clients[client].index;
        let nodes: Vec<usize> = self.clients[client].lanes.iter().map(|lane| lane.node).collect();
        for node in nodes {
            let request = IoRequest::SetControls { index, controls };
            let reply = self.nodes[node].message(self.now, ROOT_BADGE, &request);
            assert_eq!(reply, Some(IoReply::Done), "controls refused");
        }
        self.clients[client].controls = controls;
    }

    /// A client's figures at a node.
    pub fn stats(&mut self, node: usize, index: u16) -> ClientStats {
        let request = IoRequest::Stats { index };
        match self.nodes[node].message(self.now, ROOT_BADGE, &request) {
            Some(IoReply::Stats(stats)) => stats,
            _ => ClientStats::default(),
        }
    }

    /// Rings a client's doorbell at one of its lanes.
    pub fn ring(&mut self, client: usize, lane: usize) {
        let node = self.clients[client].lanes[lane].node;
        let badge = io_badge(self.clients[client].index);
        self.nodes[node].event(self.now, Event::Doorbell { badge });
    }

    /// Lets clients issue and take until nothing more happens at this instant.
    pub fn settle(&mut self) {
        loop {
            let mut is_quiet = true;
            for client in 0..self.clients.len() {
                for lane in 0..self.clients[client].lanes.len() {
                    let node = self.clients[client].lanes[lane].node;
                    let bit = 1 << self.clients[client].index;
                    if self.nodes[node].signals & bit != 0 {
                        self.nodes[node].signals &= !bit;
                        self.clients[client].take(self.now, lane);
                        is_quiet = false;
                    }
                }
                self.clients[client].advance(self.now);
                let rung = self.clients[client].issue();
                for lane in (0..64).filter(|lane| rung >> lane & 1 == 1) {
                    self.ring(client, lane);
                    is_quiet = false;
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    /// Runs until `end`, or until nothing will ever happen.
    pub fn run_until(&mut self, end: Nanos) {
        self.settle();
        loop {
            let nodes = self.nodes.iter().filter_map(Node::next_event);
            let clients = self.clients.iter().filter_map(Client::wants);
            let Some(next) = nodes.chain(clients).min().filter(|next| *next <= end) else {
                self.now = self.now.max(end);
                return;
            };
            self.now = self.now.max(next);
            for node in &mut self.nodes {
                node.collect(self.now);
            }
            self.settle();
        }
    }

    /// Runs for `seconds` more.
    pub fn run_for(&mut self, seconds: u64) {
        self.run_until(Nanos(self.now.0 + seconds * 1_000_000_000));
    }
}
