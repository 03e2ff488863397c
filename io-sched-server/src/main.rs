//! The edge of the io-sched-server: carries signals, calls and completions in, requests and signals out.
// UNSAFETY: the one server value is a static, for it is too large for the stack.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod transport;
mod virtio;

use core::{cell::UnsafeCell, sync::atomic::AtomicU64};

use io_sched_server::{
    delay::DelayLine,
    device::BlockDevice,
    model::Model,
    server::{Actions, Config, Event, Memory, Server},
};
use protocol::{
    io::{
        Controls, DOORBELL, DiskStats, IoError, IoReply, IoRequest, MAX_CLIENTS, PartitionLabel,
        VmClaim, vm_group,
    },
    root::{
        Command, IoCommand, IoCounter, IoGroupCounter, RootRequest, Text, io_counter,
        io_group_counter,
    },
    slots::{self, IO_CLIENT_NOTIFY, IO_IRQ_HANDLER, TIMER, notify},
    startup::{IoStart, Role, Startup},
    system::{Disk, IoControl},
    units::{DiskId, MACHINE_DISKS_MAX, Nanos, VmId},
};
use runtime::{
    clock, message,
    serve::{self, Incoming, answer_and_receive, ask_root, enter_passive, receive},
};
use sel4::{Cap, MessageInfo, cap};
use virtio::Driver;

runtime::server!(main);

/// Longest time the disk may take to give its partition table.
const TABLE_PATIENCE: Nanos = Nanos::from_secs(20);
/// How often the counters of the shared page are brought up to date.
const COUNTERS_EVERY: Nanos = Nanos::from_millis(200);

struct Mapped;

impl Memory for Mapped {
    type Area = &'static [AtomicU64];

    fn ring(&self, index: u16) -> Option<Self::Area> {
        (usize::from(index) < MAX_CLIENTS).then(|| runtime::shared::io_ring(index))
    }

    fn scratch(&self) -> &[AtomicU64] {
        virtio::scratch()
    }

    fn progress(&self, disk: DiskId) -> Option<Self::Area> {
        (disk.index() < MACHINE_DISKS_MAX).then(|| runtime::shared::io_progress(disk))
    }
}

/// The server's state and what it decided last: larger than the stack.
struct State {
    server: Server<Mapped>,
    actions: Actions,
    disk: Option<DelayLine<Driver>>,
}

struct OnlyThread(UnsafeCell<State>);

#[expect(unsafe_code, reason = "a static must be Sync")]
// SAFETY: the server is one thread, and `main` takes the only reference.
unsafe impl Sync for OnlyThread {}

static STATE: OnlyThread = OnlyThread(UnsafeCell::new(State {
    server: Server::new(Config::DEFAULT, Mapped),
    actions: Actions::NONE,
    disk: None,
}));

struct Edge {
    state: &'static mut State,
    armed: Option<Nanos>,
    counters_due: Option<Nanos>,
    attached: u32,
    draining: u32,
    /// Groups of the description.
    groups: u8,
}

fn main(startup: Startup) -> ! {
    let Role::Io(start) = startup.role else { unreachable!("started as another server") };
    #[expect(unsafe_code, reason = "takes the one reference to the state")]
    // SAFETY: this is the only place that uses the cell, and `main` runs once.
    let state = unsafe { &mut *STATE.0.get() };
    match Driver::start(&start) {
        Ok(driver) => {
            let model = start.model.as_ref().map(Model::new);
            state.disk = Some(DelayLine::new(driver, model));
        }
        Err(error) => defmt::error!("no disk: {}", error),
    }
    let mut edge =
        Edge { state, armed: None, counters_due: None, attached: 0, draining: 0, groups: 0 };
    edge.prepare(&start);
    edge.serve()
}

fn controls(io: &IoControl) -> Controls {
    Controls {
        reservation: io.reservation,
        limit: io.limit.unwrap_or(0),
        shares: io.shares,
        reservation_bytes: io.reservation_bytes,
        limit_bytes: io.limit_bytes.unwrap_or(0),
        burst: io.burst,
    }
}

/// A VM's claim for all of its disks.
fn claim(vm: VmId, io: &IoControl) -> VmClaim {
    VmClaim { group: vm_group(vm), controls: controls(io) }
}

/// The earlier of two times, if there is one.
fn earlier(a: Option<Nanos>, b: Option<Nanos>) -> Option<Nanos> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Edge {
    /// Configures the server and reads the partition table before anybody can call.
    fn prepare(&mut self, start: &IoStart) {
        let IoStart { disk, disks, policy, .. } = *start;
        let config = Config { policy, disk, disks, ..Config::DEFAULT };
        self.state.server.configure(config);
        self.groups = start.groups.len() as u8;
        for (group, settings) in (0..).zip(&start.groups) {
            let controls = controls(&settings.io);
            self.control(&IoRequest::SetGroup { group, parent: None, controls });
        }
        let Some(disk) = &self.state.disk else { return };
        let sectors = disk.disk().sectors();
        self.step(Event::Start { sectors });
        let give_up = Nanos(clock::now().0 + TABLE_PATIENCE.0);
        while !self.state.server.is_ready() && clock::now() < give_up {
            self.collect();
            core::hint::spin_loop();
        }
        defmt::info!(
            "disk of {=u64} sectors, ready {=bool}",
            sectors,
            self.state.server.is_ready()
        );
    }

    fn serve(&mut self) -> ! {
        let mut incoming = enter_passive();
        loop {
            incoming = match incoming {
                Incoming::Signals(bits) => {
                    self.signalled(bits);
                    receive()
                }
                Incoming::Message(call) if call.info.label() == DOORBELL => {
                    self.collect();
                    self.step(Event::Doorbell { badge: call.badge });
                    let info = MessageInfo::new(0, 0, 0, 0);
                    answer_and_receive(message::Answer { info, msg: [0; 4] })
                }
                Incoming::Message(call) => {
                    let reply = match message::request::<protocol::io::Io>(&call) {
                        Ok(IoRequest::Info) => self.state.server.info(call.badge),
                        Ok(_) => IoReply::Error(IoError::Forbidden),
                        Err(_) => IoReply::Error(IoError::Malformed),
                    };
                    answer_and_receive(message::answer::<protocol::io::Io>(&reply))
                }
            };
        }
    }

    fn signalled(&mut self, bits: u64) {
        if bits & notify::IRQ != 0 {
            let irq: cap::IrqHandler = Cap::from_bits(IO_IRQ_HANDLER);
            if irq.irq_handler_ack().is_err() {
                defmt::warn!("the disk's interrupt could not be acknowledged");
            }
        }
        self.collect();
        if bits & notify::TIMER != 0 {
            self.armed = None;
            self.step(Event::Timer);
        }
        if bits & notify::ROOT != 0 {
            while let Some(command) = serve::next_command() {
                match command {
                    Command::Io(command) => self.obey(command),
                    _ => defmt::error!("a command for another server"),
                }
            }
        }
        self.finish_draining();
        self.publish_counters();
    }

    /// Takes what the device has finished.
    fn collect(&mut self) {
        while let Some((tag, status)) =
            self.state.disk.as_mut().and_then(|disk| disk.poll(clock::now()))
        {
            self.step(Event::Done { tag, status });
        }
    }

    fn step(&mut self, event: Event<'_>) {
        let now = clock::now();
        let State { server, actions, disk } = &mut *self.state;
        actions.clear();
        server.step(now, event, actions);
        let mut wish = actions.timer;
        if let Some(disk) = disk {
            for request in &actions.submits {
                disk.submit(now, request);
            }
            disk.disk_mut().kick();
            wish = earlier(wish, disk.next_event());
        }
        let mut signals = actions.signals;
        while signals != 0 {
            let client = u64::from(signals.trailing_zeros());
            signals &= signals - 1;
            let notification: cap::Notification = Cap::from_bits(IO_CLIENT_NOTIFY + client);
            notification.signal();
        }
        if actions.must_reset {
            // Its clients have their errors; what else is in the device is still in the rings.
            runtime::give_up("the disk keeps a request too long: it is reset by a new server");
        }
        if actions.signals != 0 && self.counters_due.is_none() {
            self.counters_due = Some(Nanos(now.0 + COUNTERS_EVERY.0));
        }
        if let Some(wish) = earlier(wish, self.counters_due)
            && self.armed.is_none_or(|armed| wish < armed)
        {
            let timer: cap::Timer = Cap::from_bits(TIMER);
            match timer.timer_arm(clock::deadline_ticks(wish)) {
                Ok(()) => self.armed = Some(wish),
                Err(_) => defmt::error!("the timer could not be armed"),
            }
        }
    }

    fn control(&mut self, request: &IoRequest) -> IoReply {
        self.step(Event::Control { request });
        self.state.actions.reply.take().unwrap_or(IoReply::Done)
    }

    // ---- orders of the root-task

    fn obey(&mut self, command: IoCommand) {
        match command {
            IoCommand::Attach { client, disk, group, vm, ring_paddr } => {
                let vm = vm.map(|(vm, control)| claim(vm, &control));
                self.attach(client, &disk, (group, vm), ring_paddr);
            }
            IoCommand::SetVm { vm, control } => {
                self.answer_root(&IoRequest::SetVm(claim(vm, &control)));
            }
            IoCommand::Detach { client } => {
                self.attached &= !(1 << client);
                self.draining |= 1 << client;
            }
            IoCommand::SetDisk { client, control } => {
                let controls = controls(&control);
                self.answer_root(&IoRequest::SetControls { index: client, controls });
            }
            IoCommand::SetGroup { group, control } => {
                let controls = controls(&control);
                self.answer_root(&IoRequest::SetGroup { group, parent: None, controls });
            }
            IoCommand::SetPolicy(policy) => {
                self.answer_root(&IoRequest::SetPolicy { policy });
            }
            IoCommand::ClientStats { client } => {
                self.answer_root(&IoRequest::Stats { index: client });
            }
            IoCommand::DiskStats => self.answer_root(&IoRequest::DiskStats),
        }
    }

    fn answer_root(&mut self, request: &IoRequest) {
        tell_root(&match self.control(request) {
            IoReply::Stats(stats) => RootRequest::IoClient(stats),
            IoReply::DiskStats(stats) => RootRequest::IoDisk(self.with_model(stats)),
            IoReply::Error(error) => RootRequest::IoRefused(error),
            IoReply::Done | IoReply::Draining { .. } | IoReply::Disk(_) => RootRequest::Applied,
        });
    }

    /// The figures of the disk, with those of the model that the server does not know of.
    fn with_model(&self, stats: DiskStats) -> DiskStats {
        let disk = self.state.disk.as_ref();
        DiskStats {
            is_modelled: disk.is_some_and(DelayLine::is_modelled),
            late: disk.map_or(0, DelayLine::late),
            ..stats
        }
    }

    fn attach(
        &mut self,
        client: u16,
        disk: &Disk,
        (group, vm): (Option<u8>, Option<VmClaim>),
        ring_paddr: u64,
    ) {
        virtio::set_ring(client, ring_paddr);
        let reply = match PartitionLabel::try_from(disk.partition.as_str()) {
            Ok(partition) => self.control(&IoRequest::Attach {
                index: client,
                partition,
                is_read_only: disk.read_only,
                group,
                vm,
                controls: controls(&disk.io),
                servers: disk.parts,
                ring_paddr,
            }),
            Err(_) => IoReply::Error(IoError::NoPartition),
        };
        match reply {
            IoReply::Disk(info) => {
                self.attached |= 1 << client;
                tell_root(&RootRequest::Attached { client, sectors: info.sectors });
            }
            IoReply::Error(error) => {
                let mut text = Text::new();
                // Both pieces are far shorter than a text.
                if text.push_str(why(error)).is_err() || text.push_str(&disk.partition).is_err() {
                    defmt::warn!("text cut");
                }
                tell_root(&RootRequest::AttachFailed { client, why: text });
            }
            _ => defmt::error!("attach was answered with something else"),
        }
    }

    fn finish_draining(&mut self) {
        let mut rest = self.draining;
        while rest != 0 {
            let client = rest.trailing_zeros() as u16;
            rest &= rest - 1;
            match self.control(&IoRequest::Detach { index: client }) {
                IoReply::Draining { .. } => {}
                // Also where it never was attached: the device has nothing of it.
                _ => {
                    self.draining &= !(1 << client);
                    tell_root(&RootRequest::Detached { client });
                }
            }
        }
    }

    // ---- counters

    fn publish_counters(&mut self) {
        let now = clock::now();
        if self.counters_due.is_none_or(|due| now < due) {
            return;
        }
        self.counters_due = None;
        let mut rest = self.attached;
        while rest != 0 {
            let client = rest.trailing_zeros() as u16;
            rest &= rest - 1;
            let IoReply::Stats(stats) = self.state.server.stats(now, client) else { continue };
            let values = [
                (IoCounter::Reads, stats.reads),
                (IoCounter::Writes, stats.writes),
                (IoCounter::Flushes, stats.flushes),
                (IoCounter::ReadBytes, stats.read_bytes),
                (IoCounter::WrittenBytes, stats.written_bytes),
                (IoCounter::Errors, stats.errors),
                (IoCounter::LatencyP50, stats.latency_p50.0),
                (IoCounter::LatencyP99, stats.latency_p99.0),
            ];
            for (counter, value) in values {
                runtime::shared::publish(io_counter(client, counter), value);
            }
        }
        self.publish_groups();
    }

    fn publish_groups(&self) {
        for group in 0..self.groups {
            let stats = self.state.server.group_stats(group);
            let values = [
                (IoGroupCounter::Reads, stats.reads),
                (IoGroupCounter::Writes, stats.writes),
                (IoGroupCounter::Flushes, stats.flushes),
                (IoGroupCounter::ReadBytes, stats.read_bytes),
                (IoGroupCounter::WrittenBytes, stats.written_bytes),
                (IoGroupCounter::Errors, stats.errors),
                (IoGroupCounter::ByReservation, stats.by_reservation),
                (IoGroupCounter::ByWeight, stats.by_weight),
            ];
            for (counter, value) in values {
                runtime::shared::publish(io_group_counter(group, counter), value);
            }
        }
    }
}

fn tell_root(request: &RootRequest) {
    if ask_root(request).is_err() {
        defmt::error!("the root-task did not understand");
    }
}

fn why(error: IoError) -> &'static str {
    match error {
        IoError::NoPartition => "no partition of this label: ",
        IoError::NoDisk => "no disk, or no partition table on it; wanted: ",
        IoError::BadControls => "shares 0, limit below reservation, or unknown group: ",
        IoError::GroupLimit { .. } => "the reservation exceeds its group's limit: ",
        IoError::Overcommitted { .. } => "the disk cannot give the reservation: ",
        IoError::BadClient => "the client number is in use: ",
        IoError::BadRing => "the ring has another layout: ",
        IoError::Forbidden | IoError::Malformed => "not a request: ",
    }
}

const _: () = assert!(MAX_CLIENTS <= 32 && slots::IO_CLIENT_NOTIFY + 32 <= 256);
