//! Root-task: start-up, event loop, and the actions the library decides on.
#![no_std]
#![no_main]

mod edge;

use core::sync::atomic::Ordering;

use heapless::{Deque, Vec};
use protocol::archive::Kind;
use protocol::io::MAX_CLIENTS;
use protocol::link::{self, CHUNK_MAX, Refusal, Row, ServerId, ToHost, ToTarget};
use protocol::ring::{LogRing, console_rings};
use protocol::root::{FaultReport, Root as RootInterface, RootReply, RootRequest};
use protocol::slots::{Client, FAULT_BADGE, MEM_VM, MEM_VM_SLOTS, SWAP_CLIENT, SWAP_DISK, notify};
use protocol::startup::{self, MemStart};
use protocol::system::System;
use protocol::units::{DiskId, MACHINE_DISKS_MAX, MAX_VMS, Nanos, PAGE_SIZE, Pages, VmId};
use root_task::arena::Shortage;
use root_task::caps::CapMap;
use root_task::slots::Slots;
use root_task::system::{Action, Actions, Output, Supervisor};
use root_task::untyped::{Block, Untypeds};
use sel4::init_thread::slot;
use sel4::{
    BootInfoPtr, Cap, Fault, ObjectBlueprint, ObjectBlueprintBallast, RecvWithMRs, cap,
    debug_println,
};

use edge::archive::Blobs;
use edge::disks::{self, DiskDevices, ports};
use edge::objects::{Fail, Objects, Tried, here};
use edge::serial::{ROOM_FOR_ANSWERS, Serial};
use edge::servers::{self, Core, Ring, Server, index};
use edge::window::{self, ViewPage};
use edge::{cmos, host, serial};

runtime::root_task!(main, 1 << 20);

/// Bits of the root-task's own notification below those of its servers.
const SERIAL_BIT: u64 = 1 << 0;
const TIMER_BIT: u64 = 1 << 1;
/// How often logs and consoles are looked at without being asked: a server that is killed says nothing more.
const TICK: Nanos = Nanos::from_millis(20);
/// How often the line is tried while it is busy.
const BUSY_TICK: Nanos = Nanos::from_millis(1);
/// Interrupt vector (of the user's 0..=107).
const SERIAL_VECTOR: u64 = 3;
/// The machine's exit device.
const EXIT_PORT: u16 = 0xf4;
/// Least untyped the mem-server takes: a large page.
const MEM_BLOCK_BITS: u8 = 21;
/// Console input kept per VM while its ring is full.
const INPUT_BYTES: usize = 512;

struct Root {
    objects: Objects,
    core: Core,
    blobs: Blobs,
    supervisor: Supervisor,
    serial: Serial,
    serial_irq: cap::IrqHandler,
    timer: cap::Timer,
    exit_port: cap::IOPort,
    reply: cap::Reply,
    mem: Option<Server>,
    mem_blocks: Vec<Block, { startup::UNTYPEDS_MAX }>,
    mem_start: MemStart,
    /// io-sched-servers by disk of the machine, and what they need of it.
    io: [Option<Server>; MACHINE_DISKS_MAX],
    devices: Vec<DiskDevices, MACHINE_DISKS_MAX>,
    vmms: [Option<Server>; MAX_VMS],
    rings: [Option<Ring>; MAX_CLIENTS],
    input: [Deque<u8, INPUT_BYTES>; MAX_VMS],
    kernel_memory: Pages,
    has_booted: bool,
    /// A VM wrote to its console or a server to its log since the last look.
    logs_lost: u64,
}

fn stop(what: &str, fail: &dyn core::fmt::Debug) -> ! {
    debug_println!("root-task: {what}: {fail:?}");
    sel4::init_thread::suspend_self()
}

fn main(boot: BootInfoPtr) -> ! {
    runtime::logger::set_page(window::own_log());
    let mut root = match Root::start(&boot) {
        Ok(root) => root,
        Err(fail) => stop("cannot start", &fail),
    };
    root.serve()
}

fn usable_memory(boot: &BootInfoPtr) -> Objects {
    let mut objects =
        Objects { top: None, slots: Slots::new(), untypeds: Untypeds::new(), caps: CapMap::new() };
    objects.slots.manage(boot.empty().start(), boot.empty().end());
    let slots = boot.untyped().start()..;
    for (slot, untyped) in slots.zip(boot.untyped_list()) {
        if !untyped.is_device() {
            objects.untypeds.add(slot, untyped.paddr(), untyped.size_bits());
        }
    }
    objects
}

impl Root {
    fn start(boot: &BootInfoPtr) -> Result<Self, Fail> {
        let own = slot::TCB.cap();
        own.tcb_set_priority(own, servers::ROOT_PRIORITY).tried("set the own priority")?;
        let blobs = Blobs::find(boot).map_err(|_| Fail::Archive("no boot archive"))?;
        let system = blobs.get(Kind::System, "system").ok_or(Fail::Archive("no system"))?;
        let system = System::from_bytes(system.bytes)
            .map_err(|_| Fail::Archive("the system description is damaged"))?;
        let mut objects = usable_memory(boot);
        let mut core = Core::new(&mut objects, boot, system.machine_memory)?;
        objects.make_top(&mut core.arena, boot.init_thread_cnode_size_bits())?;
        let (serial, serial_irq, timer, exit_port, reply) =
            Self::own_devices(&mut objects, &mut core)?;
        core.wall_seconds = Self::wall_seconds(&mut objects, &mut core)?;
        let devices = disks::find(boot, &mut objects, &mut core.arena, &system)?;
        let keep = system.kernel_memory.bytes();
        let mem_blocks: Vec<Block, { startup::UNTYPEDS_MAX }> =
            objects.take_surplus(keep, MEM_BLOCK_BITS);
        let mut mem_start = MemStart {
            untypeds: Vec::new(),
            policy: system.memory_policy.clone(),
            groups: system.groups.clone(),
            seed: 0,
        };
        for block in &mem_blocks {
            let range = startup::UntypedRange { paddr: block.paddr, size_bits: block.bits };
            let _ = mem_start.untypeds.push(range);
        }
        let mut root = Self {
            objects,
            core,
            blobs,
            supervisor: Supervisor::new(&system),
            serial,
            serial_irq,
            timer,
            exit_port,
            reply,
            mem: None,
            mem_blocks,
            mem_start,
            io: [const { None }; MACHINE_DISKS_MAX],
            devices,
            vmms: [const { None }; MAX_VMS],
            rings: [const { None }; MAX_CLIENTS],
            input: [const { Deque::new() }; MAX_VMS],
            kernel_memory: system.kernel_memory,
            has_booted: false,
            logs_lost: 0,
        };
        let cores = u16::try_from(boot.num_nodes()).unwrap_or(1);
        root.serial.send(&ToHost::Hello {
            version: link::VERSION,
            system: &system.name,
            memory: system.machine_memory,
            cores,
        });
        for disk in root.supervisor.disks() {
            root.restart_io(disk)?;
        }
        root.make_mem()?;
        root.arm_timer();
        Ok(root)
    }

    fn own_devices(
        objects: &mut Objects,
        core: &mut Core,
    ) -> Result<(Serial, cap::IrqHandler, cap::Timer, cap::IOPort, cap::Reply), Fail> {
        let own = slot::TCB.cap();
        own.tcb_bind_notification(core.root_notification).tried("bind the own notification")?;
        let com2 = ports(objects, &mut core.arena, serial::FIRST_PORT, serial::LAST_PORT)?;
        let exit_port = ports(objects, &mut core.arena, EXIT_PORT, EXIT_PORT + 3)?;
        let number = core.arena.slots(1, &mut objects.slots)?.start;
        slot::IRQ_CONTROL
            .cap()
            .irq_control_get_ioapic(0, serial::IRQ_PIN, 0, 0, SERIAL_VECTOR, &here(number))
            .tried("take the serial line's interrupt")?;
        let irq: cap::IrqHandler = Cap::from_bits(number);
        let badged = |objects: &mut Objects, core: &mut Core, bit| {
            objects.mint(&mut core.arena, core.root_notification, bit | notify::SIGNAL)
        };
        let signal = badged(objects, core, SERIAL_BIT)?;
        irq.irq_handler_set_notification(signal).tried("set an interrupt's notification")?;
        let timer: cap::Timer =
            objects.make(&mut core.arena, ObjectBlueprintBallast::Timer.into())?;
        let signal = badged(objects, core, TIMER_BIT)?;
        timer.timer_set_notification(signal).tried("set a timer's notification")?;
        let reply = objects.make(&mut core.arena, ObjectBlueprint::Reply)?;
        let serial = Serial::new(com2).tried("set up the serial line")?;
        irq.irq_handler_ack().tried("open the serial line's interrupt")?;
        Ok((serial, irq, timer, exit_port, reply))
    }

    /// Unix time when the TSC was zero; 1970 if the machine has no clock.
    fn wall_seconds(objects: &mut Objects, core: &mut Core) -> Result<u64, Fail> {
        let ports = ports(objects, &mut core.arena, cmos::FIRST_PORT, cmos::LAST_PORT)?;
        let now = cmos::Clock(ports).unix_seconds().tried("read the clock")?;
        Ok(now.saturating_sub(runtime::clock::now().0 / 1_000_000_000))
    }

    fn make_mem(&mut self) -> Result<(), Fail> {
        // As they are now, if this is not the first.
        self.mem_start.policy.controls = *self.supervisor.memory_controls();
        self.mem_start.groups = self.supervisor.io_settings().0.clone();
        self.mem_start.seed = self.core.wall_seconds.rotate_left(32) ^ runtime::clock::tsc();
        let (objects, core, start) = (&mut self.objects, &mut self.core, self.mem_start.clone());
        let server = servers::make_mem(objects, core, &self.blobs, &self.mem_blocks, start)?;
        self.mem.insert(server).resume()
    }

    fn arm_timer(&mut self) {
        let after = if self.serial.is_busy() { BUSY_TICK } else { TICK };
        let deadline = Nanos(runtime::clock::now().0.saturating_add(after.0));
        if self.timer.timer_arm(runtime::clock::deadline_ticks(deadline)).is_err() {
            defmt::error!("timer could not be armed");
        }
    }

    // ---- event loop ---------------------------------------------------------------------------------------------

    fn serve(&mut self) -> ! {
        loop {
            let received = self.core.root_ep.recv_with_mrs(self.reply);
            if received.badge & notify::SIGNAL != 0 {
                self.signals(received.badge);
            } else if received.badge & FAULT_BADGE != 0 {
                self.fault(&received);
            } else {
                self.request(&received);
            }
        }
    }

    fn request(&mut self, received: &RecvWithMRs) {
        let request = runtime::message::request::<RootInterface>(received);
        let mut actions = Actions::new();
        let answer = match (Client::from_badge(received.badge), request) {
            (Some(client), Ok(request)) => {
                if let RootRequest::Panicked { message } = &request {
                    debug_println!("{client:?} panicked: {message}");
                }
                let reply = self.supervisor.request(client, &request, &mut actions);
                runtime::message::answer::<RootInterface>(&reply)
            }
            (Some(_), Err(_)) => runtime::message::not_understood(),
            (None, _) => runtime::message::answer::<RootInterface>(&RootReply::Refused),
        };
        // The caller goes on before anything is done: a shared server must be back in its receive loop, or on its way there,
        // before a VM it ran for is taken apart.
        self.reply.reply_with_mrs(answer.info, answer.msg);
        self.run(actions);
    }

    fn fault(&mut self, received: &RecvWithMRs) {
        let Some(client) = Client::from_badge(received.badge & !FAULT_BADGE) else { return };
        let report = report(received);
        debug_println!("{client:?} faulted: {report:?}");
        if let Client::Mem | Client::Io(_) = client {
            self.drain_log(client);
        }
        let mut actions = Actions::new();
        self.supervisor.fault(client, report, runtime::clock::now(), &mut actions);
        self.run(actions);
    }

    fn signals(&mut self, bits: u64) {
        if bits & SERIAL_BIT != 0 {
            self.receive();
            if self.serial_irq.irq_handler_ack().is_err() {
                defmt::error!("serial interrupt could not be acknowledged");
            }
        }
        for client in DiskId::all().map(Client::Io).chain([Client::Mem]) {
            if bits & client.root_notify_bit() != 0 {
                self.kicked(client);
            }
        }
        for vm in (0..MAX_VMS as u16).map(VmId) {
            if bits & Client::Vmm(vm).root_notify_bit() != 0 {
                self.drain_console(vm);
                self.drain_log(Client::Vmm(vm));
                self.feed_console(vm);
            }
        }
        if bits & TIMER_BIT != 0 {
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.serial.pump();
        self.receive();
        self.drain_own_log();
        for client in DiskId::all().map(Client::Io).chain([Client::Mem]) {
            self.drain_log(client);
        }
        for vm in (0..MAX_VMS as u16).map(VmId) {
            self.drain_console(vm);
            self.drain_log(Client::Vmm(vm));
            self.feed_console(vm);
        }
        self.arm_timer();
    }

    /// A shared server called for attention: perhaps it serves now.
    fn kicked(&mut self, client: Client) {
        self.drain_log(client);
        let Some(server) = self.server_mut(client) else { return };
        let page = window::view(index(client), ViewPage::Shared);
        let is_serving = page
            .get(startup::shared::SERVING)
            .is_some_and(|word| word.load(Ordering::Acquire) == 1);
        if server.is_passive || !is_serving {
            return;
        }
        if let Err(fail) = server.make_passive() {
            debug_println!("root-task: {client:?} cannot be made passive: {fail:?}");
            return;
        }
        let mut actions = Actions::new();
        self.supervisor.serving(client, runtime::clock::now(), &mut actions);
        let is_up = |server: &Option<Server>| server.as_ref().is_some_and(|s| s.is_passive);
        let are_disks_up = || self.supervisor.disks().all(|disk| is_up(&self.io[disk.index()]));
        if !self.has_booted && is_up(&self.mem) && are_disks_up() {
            self.has_booted = true;
            self.supervisor.boot(&mut actions);
        }
        self.run(actions);
    }

    fn server_mut(&mut self, client: Client) -> Option<&mut Server> {
        match client {
            Client::Mem => self.mem.as_mut(),
            Client::Io(disk) => self.io.get_mut(disk.index())?.as_mut(),
            Client::Vmm(vm) => self.vmms.get_mut(usize::from(vm.0))?.as_mut(),
        }
    }

    // ---- the link -----------------------------------------------------------------------------------------------

    fn receive(&mut self) {
        loop {
            let mut actions = Actions::new();
            match self.serial.receive() {
                None => return,
                Some(None) => continue,
                Some(Some(frame)) => match link::decode::<ToTarget<'_>>(frame) {
                    Some(ToTarget::ConsoleInput { vm, data }) => {
                        if let Some(input) = self.input.get_mut(usize::from(vm.0)) {
                            for byte in data {
                                let _ = input.push_back(*byte);
                            }
                        }
                        self.feed_console(vm);
                    }
                    Some(ToTarget::Request { id, request }) => {
                        self.supervisor.host(id, request, &self.blobs, &mut actions);
                    }
                    None => defmt::warn!("a frame of the link could not be decoded"),
                },
            }
            self.run(actions);
        }
    }

    /// Moves console input into the VM's ring as far as it fits.
    fn feed_console(&mut self, vm: VmId) {
        let Some(Some(server)) = self.vmms.get(usize::from(vm.0)) else { return };
        let Some(input) = self.input.get_mut(usize::from(vm.0)) else { return };
        if input.is_empty() {
            return;
        }
        let (_, ring) = console_rings(window::view(index(Client::Vmm(vm)), ViewPage::Console));
        let mut has_fed = false;
        while let Some(byte) = input.front().copied() {
            if ring.write(&[byte]) == 0 {
                break;
            }
            let _ = input.pop_front();
            has_fed = true;
        }
        if has_fed {
            server.signal_console();
        }
    }

    fn drain_console(&mut self, vm: VmId) {
        if !matches!(self.vmms.get(usize::from(vm.0)), Some(Some(_))) {
            return;
        }
        let (ring, _) = console_rings(window::view(index(Client::Vmm(vm)), ViewPage::Console));
        let mut data = [0; CHUNK_MAX];
        while self.serial.room() > ROOM_FOR_ANSWERS {
            let count = ring.read(&mut data);
            if count == 0 {
                return;
            }
            self.serial.send(&ToHost::Console { vm, data: data.get(..count).unwrap_or(&[]) });
        }
    }

    fn drain_log(&mut self, client: Client) {
        let Some(server) = self.server_mut(client) else { return };
        let told = server.logs_lost;
        let ring = LogRing::new(window::view(index(client), ViewPage::Log));
        let lost = self.send_log(&ring, root_task::system::server_id(client), told);
        if let Some(server) = self.server_mut(client) {
            server.logs_lost = lost;
        }
    }

    fn drain_own_log(&mut self) {
        let ring = LogRing::new(window::own_log());
        self.logs_lost = self.send_log(&ring, ServerId::Root, self.logs_lost);
    }

    /// Sends what is in a log; frames lost in all.
    fn send_log(&mut self, ring: &LogRing<'_>, server: ServerId, mut told: u64) -> u64 {
        let mut data = [0; CHUNK_MAX];
        while self.serial.room() > ROOM_FOR_ANSWERS {
            let count = ring.read(&mut data);
            let lost = ring.lost();
            if count == 0 && lost == told {
                break;
            }
            let new = u32::try_from(lost.wrapping_sub(told)).unwrap_or(u32::MAX);
            told = lost;
            let data = data.get(..count).unwrap_or(&[]);
            self.serial.send(&ToHost::Log { server, lost: new, data });
        }
        told
    }

    fn tell_host(&mut self, output: &Output) {
        match output {
            Output::Event(event) => {
                let at = runtime::clock::now();
                self.serial.send(&ToHost::Event { at, event: *event });
            }
            Output::Vm { id, vm } => host::vm(&mut self.serial, &self.supervisor, *id, *vm),
            Output::Stats(id) => self.stats(*id),
            Output::Caps(id) => self.caps(*id),
            Output::Explanation { id, vm } => {
                if let Some(terms) = self.supervisor.explanation() {
                    host::explanation(&mut self.serial, *id, *vm, terms);
                }
            }
            Output::DiskClient { id, client } => {
                host::disk_client(&mut self.serial, &self.supervisor, *id, *client);
            }
            Output::Disk { id, disk } => {
                host::disk_machine(&mut self.serial, &self.supervisor, *id, *disk);
            }
            Output::Done { id, outcome } => {
                self.serial.send(&ToHost::Done { id: *id, outcome: *outcome });
            }
            Output::Note(server) => {
                let about: u16 = match server {
                    ServerId::Root => 0,
                    ServerId::Mem => 1,
                    ServerId::Io(disk) => 0x10 | u16::from(disk.0),
                    ServerId::Vmm(vm) => 0x100 | vm.0,
                };
                defmt::warn!("server {=u16:x}: {=str}", about, self.supervisor.last_words());
                self.drain_own_log();
            }
        }
    }

    fn stats(&mut self, id: u32) {
        let has_mem = self.mem.is_some();
        let has_io = self.io.each_ref().map(Option::is_some);
        for vm in (0..MAX_VMS as u16).map(VmId) {
            if self.supervisor.config(vm).is_none() {
                continue;
            }
            host::vm(&mut self.serial, &self.supervisor, id, vm);
            let rings = self.supervisor.clients_of(vm).count() as u64;
            let ring_bytes = rings * protocol::ring::BLK_RING_BYTES as u64;
            if let Some(Some(server)) = self.vmms.get_mut(usize::from(vm.0)) {
                let (serial, supervisor) = (&mut self.serial, &self.supervisor);
                host::vm_stats(serial, supervisor, id, vm, server, ring_bytes, (has_mem, has_io));
                host::server_stats(serial, id, ServerId::Vmm(vm), server, supervisor.starts(vm));
            }
        }
        let mem_restarts = self.supervisor.mem_restarts();
        if let Some(server) = &mut self.mem {
            host::server_stats(&mut self.serial, id, ServerId::Mem, server, mem_restarts);
        }
        for disk in DiskId::all() {
            if let Some(server) = &mut self.io[disk.index()] {
                let restarts = self.supervisor.io_restarts(disk);
                host::server_stats(&mut self.serial, id, ServerId::Io(disk), server, restarts);
            }
        }
        host::groups(&mut self.serial, &self.supervisor, id, has_io);
        let (memory, kernel) = (self.core.machine_memory, self.kernel_memory);
        host::machine(&mut self.serial, id, memory, kernel, self.mem.is_some());
        let free = self.objects.untypeds.free_bytes();
        let unit = protocol::link::Unit::Bytes;
        host::term(&mut self.serial, id, ServerId::Root, None, "kernel_memory.free", free, unit);
        let slots = self.objects.slots.free_count();
        let unit = protocol::link::Unit::Count;
        host::term(&mut self.serial, id, ServerId::Root, None, "slots.free", slots, unit);
        let dropped = u64::from(self.serial.dropped());
        host::term(&mut self.serial, id, ServerId::Root, None, "link.dropped", dropped, unit);
    }

    fn caps(&mut self, id: u32) {
        for record in self.objects.caps.iter() {
            let row = Row::Cap {
                server: record.server,
                slot: record.slot,
                kind: record.kind,
                rights: record.rights,
                purpose: record.purpose,
            };
            self.serial.send(&ToHost::Row { id, row });
        }
    }

    // ---- actions ------------------------------------------------------------------------------------------------

    fn run(&mut self, actions: Actions) {
        for action in actions {
            let mut more = Actions::new();
            self.carry_out(action, &mut more);
            if !more.is_empty() {
                self.run(more);
            }
        }
    }

    fn carry_out(&mut self, action: Action, more: &mut Actions) {
        match action {
            Action::Spawn(vm) => {
                if let Err(fail) = self.spawn(vm) {
                    debug_println!("root-task: VM {} cannot be made: {fail:?}", vm.0);
                    self.supervisor.spawn_failed(vm, refusal(fail), more);
                }
            }
            Action::Resume(vm) => {
                if let Some(server) = self.server_mut(Client::Vmm(vm))
                    && let Err(fail) = server.resume()
                {
                    debug_println!("root-task: VM {} does not run: {fail:?}", vm.0);
                }
            }
            Action::DropBlobs(vm) => {
                if let Some(Some(server)) = self.vmms.get_mut(usize::from(vm.0)) {
                    server.drop_blobs(&mut self.objects);
                }
            }
            Action::Destroy(vm) => self.destroy(vm),
            Action::PlaceClient { client, vm, disk, part, on } => {
                let placed = self.place_client(client, vm, (disk, part), on);
                if let Err(fail) = placed {
                    debug_println!("root-task: disk {disk} of VM {}: {fail:?}", vm.0);
                }
                self.supervisor.client_placed(client, placed.map_err(refusal), more);
            }
            Action::PlaceSwap => {
                let placed = self.place_swap();
                if let Err(fail) = placed {
                    debug_println!("root-task: no swap partition: {fail:?}");
                }
                self.supervisor.swap_placed(placed.ok(), more);
            }
            Action::RemoveClient(client) => {
                let ring = self.rings.get_mut(usize::from(client)).and_then(Option::take);
                if let Some(ring) = ring {
                    let io = self.io.get(ring.on.index()).and_then(Option::as_ref);
                    ring.destroy(&mut self.objects, io, client);
                }
            }
            Action::RestartIo(disk) => {
                if let Err(fail) = self.restart_io(disk) {
                    stop("an io-sched-server cannot be made again", &fail);
                }
            }
            Action::RestartMem => {
                if let Err(fail) = self.restart_mem() {
                    stop("the mem-server cannot be made again", &fail);
                }
            }
            Action::Signal(client) => {
                // A shared server must stay in its receive until it is passive; `serving` signals then.
                if let Some(server) = self.server_mut(client)
                    && (server.is_passive || matches!(client, Client::Vmm(_)))
                {
                    server.signal_commands(client);
                }
            }
            Action::Kill(server) => self.kill(server),
            Action::Host(output) => self.tell_host(&output),
            Action::Exit(code) => self.exit(code),
        }
    }

    fn spawn(&mut self, vm: VmId) -> Result<(), Fail> {
        let config = self.supervisor.config(vm).cloned().ok_or(Fail::Archive("no such VM"))?;
        let mem = self.mem.as_ref().ok_or(Fail::Archive("no mem-server"))?.cspace;
        let (objects, core) = (&mut self.objects, &mut self.core);
        let starts = self.supervisor.starts(vm);
        let server = servers::make_vmm(objects, core, &self.blobs, vm, &config, starts, mem)?;
        if let Some(place) = self.vmms.get_mut(usize::from(vm.0)) {
            *place = Some(server);
        }
        Ok(())
    }

    fn destroy(&mut self, vm: VmId) {
        self.drain_console(vm);
        self.drain_log(Client::Vmm(vm));
        if let Some(input) = self.input.get_mut(usize::from(vm.0)) {
            input.clear();
        }
        let server = self.vmms.get_mut(usize::from(vm.0)).and_then(Option::take);
        if let Some(server) = server {
            server.destroy(&mut self.objects);
        }
        let first = MEM_VM + MEM_VM_SLOTS * u64::from(vm.0);
        for number in first..first + MEM_VM_SLOTS {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            self.objects.caps.taken(ServerId::Mem, number);
        }
    }

    fn place_client(
        &mut self,
        client: u16,
        vm: VmId,
        place_of_part: (u8, u8),
        on: DiskId,
    ) -> Result<u64, Fail> {
        const GONE: Fail = Fail::Archive("a server is gone");
        let vmm = self.vmms.get_mut(usize::from(vm.0)).and_then(Option::as_mut).ok_or(GONE)?;
        let io = self.io.get_mut(on.index()).and_then(Option::as_mut).ok_or(GONE)?;
        let place = self.rings.get_mut(usize::from(client)).ok_or(GONE)?;
        let mut ring = Ring::new(&mut self.objects, &mut self.core, on)?;
        let (objects, core) = (&mut self.objects, &self.core);
        let shown = ring
            .show_to_io(objects, io, client, vmm)
            .and_then(|()| ring.show_to_vmm(objects, core, vmm, client, place_of_part));
        if let Err(fail) = shown {
            ring.destroy(&mut self.objects, Some(io), client);
            return Err(fail);
        }
        let paddr = ring.paddr;
        *place = Some(ring);
        Ok(paddr)
    }

    fn place_swap(&mut self) -> Result<u64, Fail> {
        const GONE: Fail = Fail::Archive("a server is gone");
        let mem = self.mem.as_mut().ok_or(GONE)?;
        let io = self.io[SWAP_DISK.index()].as_mut().ok_or(GONE)?;
        let mut ring = Ring::new(&mut self.objects, &mut self.core, SWAP_DISK)?;
        let shown = ring
            .show_to_io(&mut self.objects, io, SWAP_CLIENT, mem)
            .and_then(|()| ring.map_into(&mut self.objects, mem, startup::SWAP_RING_VADDR));
        if let Err(fail) = shown {
            ring.destroy(&mut self.objects, Some(io), SWAP_CLIENT);
            return Err(fail);
        }
        let paddr = ring.paddr;
        self.rings[usize::from(SWAP_CLIENT)] = Some(ring);
        Ok(paddr)
    }

    /// Ends the io-sched-server of `disk`, if there is one, and makes it anew.
    fn restart_io(&mut self, disk: DiskId) -> Result<(), Fail> {
        if let Some(server) = self.io.get_mut(disk.index()).and_then(Option::take) {
            self.core.answer_io_caller(disk);
            server.destroy(&mut self.objects);
        }
        let Some(devices) = self.devices.get_mut(disk.index()) else { return Ok(()) };
        let (groups, policy) = self.supervisor.io_settings();
        (devices.start.groups, devices.start.policy) = (groups.clone(), policy);
        let (objects, core) = (&mut self.objects, &mut self.core);
        let mut server = servers::make_io(objects, core, &self.blobs, devices)?;
        devices.start.restarted = true;
        for (client, vm) in self.supervisor.rings(disk) {
            let ring = self.rings.get_mut(usize::from(client)).and_then(Option::as_mut);
            let vmm = self.vmms.get(usize::from(vm.0)).and_then(Option::as_ref);
            if let (Some(ring), Some(vmm)) = (ring, vmm) {
                ring.show_to_io(&mut self.objects, &mut server, client, vmm)?;
            }
        }
        let ring = self.rings[usize::from(SWAP_CLIENT)].as_mut().filter(|ring| ring.on == disk);
        if let (Some(ring), Some(mem)) = (ring, &self.mem) {
            ring.show_to_io(&mut self.objects, &mut server, SWAP_CLIENT, mem)?;
        }
        self.io[disk.index()].insert(server).resume()
    }

    fn restart_mem(&mut self) -> Result<(), Fail> {
        if let Some(server) = self.mem.take() {
            for block in &self.mem_blocks {
                Objects::revoke(block.slot);
            }
            server.destroy(&mut self.objects);
        }
        self.make_mem()
    }

    fn kill(&mut self, server: ServerId) {
        let client = match server {
            ServerId::Root => return,
            ServerId::Mem => Client::Mem,
            ServerId::Io(disk) => Client::Io(disk),
            ServerId::Vmm(vm) => Client::Vmm(vm),
        };
        if let Some(server) = self.server_mut(client) {
            if let Err(fail) = server.kill() {
                debug_println!("root-task: {client:?} cannot be killed: {fail:?}");
            }
            // A shared server waits for a message: wake it, so that it runs into the fault now.
            server.signal_commands(client);
        }
    }

    fn exit(&mut self, code: u8) {
        while self.serial.is_busy() {
            self.serial.pump();
        }
        if self.exit_port.ioport_out32(EXIT_PORT, u32::from(code)).is_err() {
            debug_println!("root-task: the exit device is not there");
        }
    }
}

fn refusal(fail: Fail) -> Refusal {
    match fail {
        Fail::Short(Shortage::Memory { asked, free }) => Refusal::ServerMemory {
            asked: Pages(asked.div_ceil(PAGE_SIZE)),
            free: Pages(free / PAGE_SIZE),
        },
        Fail::Short(Shortage::Slots { asked, free }) => Refusal::Slots { asked, free },
        Fail::Kernel(..) => Refusal::Server(ServerId::Root),
        Fail::Archive(_) => Refusal::Missing,
    }
}

fn report(received: &RecvWithMRs) -> FaultReport {
    let label = received.info.label();
    match Fault::new(received.info, received.msg) {
        Fault::NullFault(_) => FaultReport { label, ip: 0, address: 0, code: 0 },
        Fault::CapFault(fault) => FaultReport {
            label,
            ip: fault.ip,
            address: fault.addr,
            code: u64::from(fault.in_recv_phase),
        },
        Fault::UnknownSyscall(fault) => {
            FaultReport { label, ip: fault.fault_ip, address: fault.syscall, code: 0 }
        }
        Fault::UserException(fault) => {
            FaultReport { label, ip: fault.fault_ip, address: fault.number, code: fault.code }
        }
        Fault::VmFault(fault) => {
            FaultReport { label, ip: fault.ip, address: fault.addr, code: fault.fsr }
        }
        Fault::Timeout(fault) => {
            FaultReport { label, ip: 0, address: fault.data, code: fault.consumed }
        }
    }
}
