//! The life of every VM and server: one event in, a list of actions out.
//!
//! Starting a VM: its vmm-server is made ([`Action::Spawn`]) but does not run; the mem-server admits
//! the VM and gives its VCPU a nested root; its disks are attached one by one; then the server is
//! let go ([`Action::Resume`]) and says when the guest is loaded. Ending it goes the other way: the
//! server is destroyed whole, the device lets go of its rings, the mem-server takes the memory
//! back. Every step waits for the answer of the server concerned, never by blocking.

use heapless::{Deque, Vec};
use protocol::io::{ClientStats, DiskStats, IoError, MAX_CLIENTS, Policy};
use protocol::link::{Event, Refusal, ServerId, StopReason, VmState};
use protocol::mem::{Explanation, MemError, MemRequest, VmMemory};
use protocol::root::{IoCommand, Text, VmmCommand};
use protocol::slots::{Client, SWAP_CLIENT, SWAP_DISK};
use protocol::system::{
    GROUPS_MAX, Group, GroupMemory, IoControl, Memory, MemoryControls, System, Vm, VmRule,
};
use protocol::units::{DiskId, MACHINE_DISKS_MAX, MAX_VMS, Nanos, VmId};

mod answers;
mod faults;
mod requests;
mod swap;

/// Most actions of one event: each VM's teardown and every client's new attachment, with room.
pub const ACTIONS_MAX: usize = 160;
/// Most commands waiting for one of the shared servers.
const COMMANDS_MAX: usize = 96;
/// Most commands waiting for one vmm-server: more would only repeat themselves.
const VMM_COMMANDS_MAX: usize = 8;
/// Restarts of a server within [`RESTART_WINDOW`] after which it is given up: it would die for ever.
const RESTARTS_MAX: usize = 6;
/// See [`RESTARTS_MAX`].
const RESTART_WINDOW: Nanos = Nanos::from_secs(60);

/// What the edge shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the vmm-server of a VM, not running. If it fails, call [`Supervisor::spawn_failed`].
    Spawn(VmId),
    /// Let a new vmm-server run.
    Resume(VmId),
    /// Take the guest's kernel and modules out of the vmm-server's memory.
    DropBlobs(VmId),
    /// Revoke everything of a vmm-server.
    Destroy(VmId),
    /// Make the ring of a client, map it at the io-sched-server and place the notification. If the ring exists, it stays.
    /// The edge then calls [`Supervisor::client_placed`].
    PlaceClient {
        /// The client.
        client: u16,
        /// Its VM.
        vm: VmId,
        /// Which disk of the VM.
        disk: u8,
        /// Which part of it.
        part: u8,
        /// The disk of the machine whose io-sched-server serves it.
        on: DiskId,
    },
    /// Make the ring of the swap partition between mem-server and io-sched-server. The edge then calls
    /// [`Supervisor::swap_placed`].
    PlaceSwap,
    /// Take the ring of a client back.
    RemoveClient(u16),
    /// Make the io-sched-server of a disk anew; the rings stay.
    RestartIo(DiskId),
    /// Make the mem-server anew; it holds nothing of any VM any more.
    RestartMem,
    /// Tell a server that commands wait.
    Signal(Client),
    /// Make a server fault at its next instruction.
    Kill(ServerId),
    /// Tell the host.
    Host(Output),
    /// Leave the machine.
    Exit(u8),
}

/// What the host is told; the edge adds names and counters.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// An event.
    Event(Event),
    /// A VM's row of an answer.
    Vm {
        /// The request.
        id: u32,
        /// The VM.
        vm: VmId,
    },
    /// All rows of `Stats`.
    Stats(u32),
    /// All rows of `Caps`.
    Caps(u32),
    /// The terms of an explanation.
    Explanation {
        /// The request.
        id: u32,
        /// The VM; the numbers are in [`Supervisor::explanation`].
        vm: VmId,
    },
    /// A row about a client of the disk; the numbers are in [`Supervisor::client_stats`].
    DiskClient {
        /// The request.
        id: u32,
        /// The client.
        client: u16,
    },
    /// A row about a disk of the machine; the numbers are in [`Supervisor::disk_stats`].
    Disk {
        /// The request.
        id: u32,
        /// The disk.
        disk: DiskId,
    },
    /// The end of an answer.
    Done {
        /// The request.
        id: u32,
        /// How it ended.
        outcome: Result<(), Refusal>,
    },
    /// A line for the log, in [`Supervisor::last_words`], about this server.
    Note(ServerId),
}

/// The list that an event fills.
pub type Actions = Vec<Action, ACTIONS_MAX>;

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Stopped,
    Admitting,
    Attaching,
    Loading,
    Running,
    Pausing,
    Paused,
    Resuming,
    Detaching,
    Releasing,
}

/// What happens to a VM once it is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Stay,
    Crashed,
    Restart,
}

#[derive(Debug)]
struct Entry {
    config: Vm,
    phase: Phase,
    after: After,
    has_crashed: bool,
    /// What the host knows while the VM is taken apart: not stopped before everything is free again.
    state_before_end: VmState,
    /// The request that waits for this VM.
    waiter: Option<u32>,
    /// What that request is refused with if the VM goes down meanwhile.
    refusal: Option<Refusal>,
    /// The mem-server knows this VM.
    is_admitted: bool,
    starts: u32,
    commands: Deque<VmmCommand, VMM_COMMANDS_MAX>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientState {
    Attaching,
    Attached,
    Detaching,
}

#[derive(Clone, Copy, Debug)]
struct ClientEntry {
    vm: VmId,
    disk: u8,
    part: u8,
    on: DiskId,
    state: ClientState,
    ring_paddr: u64,
}

/// Who waits for the mem-server's next answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemWait {
    Create(VmId),
    Destroy(VmId),
    Controls { vm: VmId, id: u32, memory: Memory },
    Balloon(u32),
    Group { id: u32, group: u8, claim: GroupMemory },
    Machine { id: u32, controls: MemoryControls },
    Explain { vm: VmId, id: u32 },
    Paused,
    Swap,
}

/// Who waits for the next answer of the io-sched-server of disk `on`, but for attachments. What concerns several of them is
/// asked of one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IoWait {
    Control {
        id: u32,
        vm: VmId,
        disk: u8,
        client: u16,
        control: IoControl,
    },
    Group {
        id: u32,
        group: u8,
        control: IoControl,
    },
    /// All disks of a VM together.
    Vm {
        id: u32,
        vm: VmId,
        control: IoControl,
    },
    Policy {
        id: u32,
        policy: Policy,
    },
    Swap {
        id: u32,
        control: IoControl,
    },
    Client {
        id: u32,
        client: u16,
    },
    Disk(u32),
    /// An earlier change is taken back: nobody waits.
    Undo,
}

/// What is kept for one io-sched-server.
#[derive(Debug)]
struct IoSide {
    commands: Deque<IoCommand, COMMANDS_MAX>,
    waits: Deque<IoWait, COMMANDS_MAX>,
    faulted_at: Option<Nanos>,
    restarts: u32,
}

/// Whether an artefact is in the boot archive, asked when a VM is created.
pub trait Artefacts {
    /// Whether the kernel and all modules of `vm` are there.
    fn has_all(&self, vm: &Vm) -> bool;
}

/// Every VM and server.
#[derive(Debug)]
pub struct Supervisor {
    vms: [Option<Entry>; MAX_VMS],
    groups: Vec<Group, GROUPS_MAX>,
    io_policy: Policy,
    memory: MemoryControls,
    clients: [Option<ClientEntry>; MAX_CLIENTS],
    swap: swap::Swap,
    has_booted: bool,
    mem_commands: Deque<MemRequest, COMMANDS_MAX>,
    mem_waits: Deque<MemWait, COMMANDS_MAX>,
    /// By disk of the machine; the first `disks` of them are there.
    io: [IoSide; MACHINE_DISKS_MAX],
    disks: u8,
    mem_faulted_at: Option<Nanos>,
    restarts: Deque<Nanos, RESTARTS_MAX>,
    mem_restarts: u32,
    is_ready: bool,
    boot_starts: u32,
    explanation: Option<Explanation>,
    client_stats: ClientStats,
    disk_stats: DiskStats,
    last_words: Text,
}

/// Adds an action. The list is sized for the largest event (see [`ACTIONS_MAX`]), so that a full list is a mistake of ours.
fn push(actions: &mut Actions, action: Action) {
    let is_lost = actions.push(action).is_err();
    assert!(!is_lost, "more actions of one event than planned");
}

fn event(actions: &mut Actions, event: Event) {
    push(actions, Action::Host(Output::Event(event)));
}

fn done(actions: &mut Actions, id: u32, outcome: Result<(), Refusal>) {
    push(actions, Action::Host(Output::Done { id, outcome }));
}

impl Supervisor {
    /// Knows the VMs of `system`, all stopped.
    pub fn new(system: &System) -> Self {
        let mut configs = system.vms.iter();
        Self {
            vms: core::array::from_fn(|_| configs.next().map(|config| Entry::new(config.clone()))),
            groups: system.groups.clone(),
            io_policy: system.io_policy,
            memory: system.memory_policy.controls,
            clients: [None; MAX_CLIENTS],
            swap: swap::Swap::new(system.memory_policy.swap.clone()),
            has_booted: false,
            mem_commands: Deque::new(),
            mem_waits: Deque::new(),
            io: [const { IoSide::NEW }; MACHINE_DISKS_MAX],
            disks: system.disks,
            mem_faulted_at: None,
            restarts: Deque::new(),
            mem_restarts: 0,
            is_ready: false,
            boot_starts: 0,
            explanation: None,
            client_stats: ClientStats::default(),
            disk_stats: DiskStats::default(),
            last_words: Text::new(),
        }
    }

    fn note(&mut self, server: ServerId, text: &Text, actions: &mut Actions) {
        self.last_words = text.clone();
        push(actions, Action::Host(Output::Note(server)));
    }

    /// The line of the last [`Output::Note`]; one event makes at most one.
    pub fn last_words(&self) -> &str {
        &self.last_words
    }

    /// What the mem-server explained last.
    pub const fn explanation(&self) -> Option<&Explanation> {
        self.explanation.as_ref()
    }

    /// Figures of the client of the last [`Output::DiskClient`].
    pub const fn client_stats(&self) -> &ClientStats {
        &self.client_stats
    }

    /// Which virtual disk `client` is a part of.
    pub fn client(&self, client: u16) -> Option<ClientInfo<'_>> {
        if client == SWAP_CLIENT {
            let partition = self.swap.served()?.as_str();
            let (disk, part, io) = (0, (0, 1), self.swap.claim());
            let (vm, group, on) = (None, None, SWAP_DISK);
            return Some(ClientInfo { vm, disk, part, on, partition, group, io });
        }
        let entry = self.clients.get(usize::from(client))?.as_ref()?;
        let config = self.config(entry.vm)?;
        let disk = config.disks.get(usize::from(entry.disk))?;
        Some(ClientInfo {
            vm: Some(entry.vm),
            disk: entry.disk,
            part: (entry.part, disk.parts),
            on: entry.on,
            partition: &disk.partition,
            group: self.group_of(entry.vm),
            io: disk.io,
        })
    }

    /// Name of the group a VM is in.
    pub fn group_of(&self, vm: VmId) -> Option<&str> {
        let group = self.config(vm)?.group?;
        self.groups.get(usize::from(group)).map(|group| group.name.as_str())
    }

    /// Figures of the last [`Output::Disk`].
    pub const fn disk_stats(&self) -> &DiskStats {
        &self.disk_stats
    }

    /// The machine's memory controls as they are now: what a new mem-server is told.
    pub const fn memory_controls(&self) -> &MemoryControls {
        &self.memory
    }

    /// The groups with their present claims, and the disks' policy: what a new io-sched-server is told.
    pub const fn io_settings(&self) -> (&Vec<Group, GROUPS_MAX>, Policy) {
        (&self.groups, self.io_policy)
    }

    fn entry(&self, vm: VmId) -> Option<&Entry> {
        self.vms.get(usize::from(vm.0))?.as_ref()
    }

    fn entry_mut(&mut self, vm: VmId) -> Option<&mut Entry> {
        self.vms.get_mut(usize::from(vm.0))?.as_mut()
    }

    /// Configuration of a VM.
    pub fn config(&self, vm: VmId) -> Option<&Vm> {
        self.entry(vm).map(|entry| &entry.config)
    }

    /// How often a VM has been started before.
    pub fn starts(&self, vm: VmId) -> u32 {
        self.entry(vm).map_or(0, |entry| entry.starts.saturating_sub(1))
    }

    /// State of a VM as the host knows it.
    pub fn state(&self, vm: VmId) -> Option<VmState> {
        let entry = self.entry(vm)?;
        Some(match entry.phase {
            Phase::Stopped if entry.has_crashed => VmState::Crashed,
            Phase::Stopped => VmState::Stopped,
            Phase::Admitting | Phase::Attaching | Phase::Loading => VmState::Starting,
            Phase::Running | Phase::Pausing => VmState::Running,
            Phase::Detaching | Phase::Releasing => entry.state_before_end,
            Phase::Paused | Phase::Resuming => VmState::Paused,
        })
    }

    /// All VMs there are.
    pub fn vm_ids(&self) -> impl Iterator<Item = VmId> + '_ {
        let known = |(index, entry): (u16, &Option<Entry>)| entry.as_ref().map(|_| VmId(index));
        (0..).zip(&self.vms).filter_map(known)
    }

    /// The client that is part `part` of a VM's disk, if there is one.
    fn client_of(&self, vm: VmId, disk: u8, part: u8) -> Option<u16> {
        let is_it =
            |entry: &ClientEntry| entry.vm == vm && entry.disk == disk && entry.part == part;
        (0..)
            .zip(&self.clients)
            .find_map(|(client, entry)| entry.as_ref().filter(|entry| is_it(entry)).map(|_| client))
    }

    /// All clients of a VM's disks, with the disk of the machine that serves each.
    pub fn clients_of(&self, vm: VmId) -> impl Iterator<Item = (u16, DiskId)> + '_ {
        (0..).zip(&self.clients).filter_map(move |(client, entry)| {
            entry.as_ref().filter(|entry| entry.vm == vm).map(|entry| (client, entry.on))
        })
    }

    /// All clients with a ring at the io-sched-server of `disk`: number and VM.
    pub fn rings(&self, disk: DiskId) -> impl Iterator<Item = (u16, VmId)> + '_ {
        (0..).zip(&self.clients).filter_map(move |(client, entry)| {
            entry.as_ref().filter(|entry| entry.on == disk).map(|entry| (client, entry.vm))
        })
    }

    /// The disks of the machine that have an io-sched-server.
    pub fn disks(&self) -> impl Iterator<Item = DiskId> + use<> {
        (0..self.disks).map(DiskId)
    }

    /// The swap partition has a ring.
    pub fn has_swap_ring(&self) -> bool {
        self.swap.has_ring()
    }

    /// How often the mem-server was started again.
    pub const fn mem_restarts(&self) -> u32 {
        self.mem_restarts
    }

    /// How often the io-sched-server of `disk` was started again.
    pub fn io_restarts(&self, disk: DiskId) -> u32 {
        self.io.get(disk.index()).map_or(0, |side| side.restarts)
    }

    // ---- start-up -----------------------------------------------------------------------------------------------

    /// All shared servers run: attaches the swap partition, then starts the VMs that start at boot.
    pub fn boot(&mut self, actions: &mut Actions) {
        if !self.place_swap(actions) {
            self.boot_vms(actions);
        }
    }

    fn boot_vms(&mut self, actions: &mut Actions) {
        if core::mem::replace(&mut self.has_booted, true) {
            return;
        }
        let starts = |entry: &Entry| entry.config.autostart;
        self.boot_starts = self.vms.iter().flatten().filter(|entry| starts(entry)).count() as u32;
        for index in 0..MAX_VMS as u16 {
            if self.entry(VmId(index)).is_some_and(starts) {
                self.start(VmId(index), actions);
            }
        }
        self.report_ready(actions);
    }

    fn boot_start_ended(&mut self, actions: &mut Actions) {
        self.boot_starts = self.boot_starts.saturating_sub(1);
        self.report_ready(actions);
    }

    fn report_ready(&mut self, actions: &mut Actions) {
        if self.boot_starts == 0 && !self.is_ready {
            self.is_ready = true;
            event(actions, Event::Ready);
        }
    }

    fn has_room_for_mem(&self) -> bool {
        !self.mem_commands.is_full() && !self.mem_waits.is_full()
    }

    fn tell_mem(&mut self, request: MemRequest, wait: MemWait, actions: &mut Actions) -> bool {
        if !self.has_room_for_mem() {
            return false;
        }
        let _ = self.mem_commands.push_back(request);
        let _ = self.mem_waits.push_back(wait);
        push(actions, Action::Signal(Client::Mem));
        true
    }

    fn tell_io(&mut self, disk: DiskId, command: IoCommand, actions: &mut Actions) -> bool {
        let Some(side) = self.io.get_mut(disk.index()) else { return false };
        let is_queued = side.commands.push_back(command).is_ok();
        if is_queued {
            push(actions, Action::Signal(Client::Io(disk)));
        }
        is_queued
    }

    fn tell_vmm(&mut self, vm: VmId, command: VmmCommand, actions: &mut Actions) -> bool {
        let Some(entry) = self.entry_mut(vm) else { return false };
        let is_queued = entry.commands.push_back(command).is_ok();
        if is_queued {
            push(actions, Action::Signal(Client::Vmm(vm)));
        }
        is_queued
    }

    fn set_phase(&mut self, vm: VmId, phase: Phase, actions: &mut Actions) {
        let before = self.state(vm);
        if let Some(entry) = self.entry_mut(vm) {
            entry.phase = phase;
        }
        if let Some(state) = self.state(vm)
            && before != Some(state)
        {
            event(actions, Event::VmState { vm, state });
        }
    }

    fn start(&mut self, vm: VmId, actions: &mut Actions) {
        let Some(entry) = self.entry_mut(vm) else { return };
        entry.after = After::Stay;
        entry.has_crashed = false;
        entry.refusal = None;
        entry.starts += 1;
        entry.commands.clear();
        let memory =
            VmMemory::configured(&entry.config.memory, entry.config.group, &entry.config.balloon);
        self.set_phase(vm, Phase::Admitting, actions);
        push(actions, Action::Spawn(vm));
        if !self.tell_mem(MemRequest::CreateVm { vm, memory }, MemWait::Create(vm), actions) {
            self.fail_start(vm, Refusal::Full, actions);
        }
    }

    /// The vmm-server of `vm` could not be made: kernel memory or slots are short, or its image is bad.
    pub fn spawn_failed(&mut self, vm: VmId, refusal: Refusal, actions: &mut Actions) {
        // The mem-server was or will be told to create the VM; it is taken back when it answers.
        self.fail_start(vm, refusal, actions);
    }

    fn fail_start(&mut self, vm: VmId, refusal: Refusal, actions: &mut Actions) {
        if let Some(entry) = self.entry_mut(vm)
            && !matches!(entry.phase, Phase::Detaching | Phase::Releasing)
        {
            entry.refusal = Some(refusal);
        }
        self.end(vm, StopReason::Refused(refusal), After::Stay, actions);
    }

    fn attach_next_disk(&mut self, vm: VmId, actions: &mut Actions) {
        let Some(entry) = self.entry(vm) else { return };
        let mut parts = (0_u8..).zip(&entry.config.disks).flat_map(|(number, disk)| {
            (0..disk.parts).map(move |part| (number, part, disk.place(part)))
        });
        let missing = parts.find(|(disk, part, _)| self.client_of(vm, *disk, *part).is_none());
        let Some((disk, part, on)) = missing else {
            self.set_phase(vm, Phase::Loading, actions);
            push(actions, Action::Resume(vm));
            return;
        };
        let free = self.clients.iter().take(usize::from(SWAP_CLIENT)).position(Option::is_none);
        let Some(index) = free else {
            self.fail_start(vm, Refusal::DiskClients, actions);
            return;
        };
        let state = ClientState::Attaching;
        self.clients[index] = Some(ClientEntry { vm, disk, part, on, state, ring_paddr: 0 });
        push(actions, Action::PlaceClient { client: index as u16, vm, disk, part, on });
    }

    /// The ring of `client` is in place at the physical address, or could not be made.
    pub fn client_placed(
        &mut self,
        client: u16,
        ring_paddr: Result<u64, Refusal>,
        actions: &mut Actions,
    ) {
        let Some(Some(entry)) = self.clients.get_mut(usize::from(client)) else { return };
        let vm = entry.vm;
        match ring_paddr {
            Ok(paddr) => {
                entry.ring_paddr = paddr;
                self.queue_attach(client, actions);
            }
            Err(refusal) => {
                self.clients[usize::from(client)] = None;
                self.fail_start(vm, refusal, actions);
            }
        }
    }

    fn queue_attach(&mut self, client: u16, actions: &mut Actions) {
        let Some(Some(entry)) = self.clients.get(usize::from(client)) else { return };
        let (vm, on, ring_paddr) = (entry.vm, entry.on, entry.ring_paddr);
        let Some(config) = self.entry(vm).map(|entry| &entry.config) else { return };
        let Some(disk) = config.disks.get(usize::from(entry.disk)) else { return };
        let claim = config.io.map(|control| (vm, control));
        let command = IoCommand::Attach {
            client,
            disk: disk.clone(),
            group: config.group,
            vm: claim,
            ring_paddr,
        };
        if !self.tell_io(on, command, actions) {
            self.fail_start(vm, Refusal::Full, actions);
        }
    }

    // ---- ending -------------------------------------------------------------------------------------------------

    fn end(&mut self, vm: VmId, reason: StopReason, after: After, actions: &mut Actions) {
        let state = self.state(vm).unwrap_or_default();
        let Some(entry) = self.entry_mut(vm) else { return };
        match entry.phase {
            Phase::Stopped => return,
            Phase::Detaching | Phase::Releasing => {
                // Already on its way down; an explicit stop wins over a restart.
                if after == After::Stay {
                    entry.after = After::Stay;
                }
                return;
            }
            _ => {}
        }
        entry.after = after;
        entry.state_before_end = state;
        let was_loading =
            matches!(entry.phase, Phase::Admitting | Phase::Attaching | Phase::Loading);
        entry.commands.clear();
        if after == After::Restart {
            event(actions, Event::VmRebooted { vm });
        } else {
            event(actions, Event::VmStopped { vm, reason });
        }
        push(actions, Action::Destroy(vm));
        self.set_phase(vm, Phase::Detaching, actions);
        for index in 0..MAX_CLIENTS {
            let Some(client) = self.clients[index].as_mut().filter(|client| client.vm == vm) else {
                continue;
            };
            if client.state != ClientState::Detaching {
                client.state = ClientState::Detaching;
                let on = client.on;
                let _ = self.tell_io(on, IoCommand::Detach { client: index as u16 }, actions);
            }
        }
        if was_loading {
            self.boot_start_ended(actions);
        }
        self.continue_ending(vm, actions);
    }

    fn continue_ending(&mut self, vm: VmId, actions: &mut Actions) {
        if self.entry(vm).is_none_or(|entry| entry.phase != Phase::Detaching) {
            return;
        }
        if self.clients_of(vm).next().is_some() {
            return;
        }
        let is_creating = self.mem_waits.iter().any(|wait| *wait == MemWait::Create(vm));
        let Some(entry) = self.entry_mut(vm) else { return };
        if is_creating {
            return; // goes on when the mem-server has answered
        }
        if !entry.is_admitted {
            self.ended(vm, actions);
            return;
        }
        entry.is_admitted = false;
        self.set_phase(vm, Phase::Releasing, actions);
        if !self.tell_mem(MemRequest::DestroyVm { vm }, MemWait::Destroy(vm), actions) {
            self.ended(vm, actions);
        }
    }

    fn ended(&mut self, vm: VmId, actions: &mut Actions) {
        let Some(entry) = self.entry_mut(vm) else { return };
        entry.has_crashed = entry.after == After::Crashed;
        let (after, waiter) = (entry.after, entry.waiter.take());
        let refusal = entry.refusal.take();
        self.set_phase(vm, Phase::Stopped, actions);
        if let Some(id) = waiter {
            done(actions, id, refusal.map_or(Ok(()), Err));
        }
        if after == After::Restart {
            self.start(vm, actions);
        }
    }
}

impl IoWait {
    /// The request of the host that waits, if one does.
    const fn id(&self) -> Option<u32> {
        match *self {
            Self::Control { id, .. }
            | Self::Group { id, .. }
            | Self::Vm { id, .. }
            | Self::Policy { id, .. }
            | Self::Swap { id, .. }
            | Self::Client { id, .. }
            | Self::Disk(id) => Some(id),
            Self::Undo => None,
        }
    }
}

impl IoSide {
    const NEW: Self =
        Self { commands: Deque::new(), waits: Deque::new(), faulted_at: None, restarts: 0 };
}

/// A client of an io-sched-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientInfo<'s> {
    /// Whose disk it is part of; `None` for the mem-server's swap partition.
    pub vm: Option<VmId>,
    /// Which disk of the VM.
    pub disk: u8,
    /// Which part of it, and of how many.
    pub part: (u8, u8),
    /// The disk of the machine.
    pub on: DiskId,
    /// The partition's label.
    pub partition: &'s str,
    /// The group of its VM.
    pub group: Option<&'s str>,
    /// The virtual disk's claim.
    pub io: IoControl,
}

impl Entry {
    const fn new(config: Vm) -> Self {
        Self {
            config,
            phase: Phase::Stopped,
            after: After::Stay,
            has_crashed: false,
            state_before_end: VmState::Stopped,
            waiter: None,
            refusal: None,
            is_admitted: false,
            starts: 0,
            commands: Deque::new(),
        }
    }
}

/// The server behind a client badge, as the host names it.
pub const fn server_id(client: Client) -> ServerId {
    match client {
        Client::Mem => ServerId::Mem,
        Client::Io(disk) => ServerId::Io(disk),
        Client::Vmm(vm) => ServerId::Vmm(vm),
    }
}

const fn io_refusal(disk: DiskId, error: IoError) -> Refusal {
    match error {
        IoError::Overcommitted { asked, free } => Refusal::Disk { asked, free },
        IoError::GroupLimit { asked, free } => Refusal::GroupLimit { asked, free },
        IoError::BadControls => Refusal::Rule(VmRule::IoReservation),
        IoError::BadClient => Refusal::Unknown,
        IoError::Forbidden
        | IoError::NoPartition
        | IoError::NoDisk
        | IoError::BadRing
        | IoError::Malformed => Refusal::Server(ServerId::Io(disk)),
    }
}

fn mem_refusal(error: MemError) -> Refusal {
    match error {
        MemError::NotEnoughMemory { needed, available } => {
            Refusal::Memory { asked: needed, available }
        }
        MemError::NotEnoughSwap { needed, available } => Refusal::Swap { needed, available },
        MemError::BadControls => Refusal::Rule(VmRule::Limit),
        MemError::BadSize { .. } => Refusal::Rule(VmRule::Size),
        MemError::NoBlock { needed, free } => Refusal::Memory { asked: needed, available: free },
        MemError::TooManyPages { size, free } => Refusal::GuestPages { asked: size, free },
        MemError::Objects { .. }
        | MemError::Decode(_)
        | MemError::NotAllowed
        | MemError::Identity
        | MemError::NoSuchVm => Refusal::Server(ServerId::Mem),
    }
}

#[cfg(test)]
mod tests;
