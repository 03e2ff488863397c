//! Whole lives of VMs and servers, with the servers' answers played by the test.

use super::*;
use protocol::link::{Request, Setting};
use protocol::mem::{MemEvent, MemReply};
use protocol::root::{Command, FaultReport, RootReply, RootRequest, VmEvent};
use protocol::slots::SWAP_CLIENT;
use protocol::system::{
    Balloon, Disk, GroupMemory, GroupMemoryChange, IoChange, IoControl, MemoryChange, MemoryPolicy,
    Name, Sharing,
};
use protocol::units::{Gfn, Pages};

struct All;
impl Artefacts for All {
    fn has_all(&self, vm: &Vm) -> bool {
        vm.kernel != "missing"
    }
}

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

fn vm(text: &str, disks: usize) -> Vm {
    let disk = |index: usize| Disk {
        partition: name(&format!("{text}-{index}")),
        read_only: false,
        io: IoControl::default(),
        on: DiskId(0),
        parts: 1,
    };
    Vm {
        name: name(text),
        group: None,
        vcpus: 1,
        memory: Memory {
            size: Pages(0x8000),
            reservation: Pages(0x1000),
            shares: 1000,
            limit: Pages(0x8000),
            tax: Some(750),
            sharing: Sharing::Vm,
        },
        kernel: name("linux"),
        modules: heapless::Vec::new(),
        cmdline: heapless::String::new(),
        disks: (0..disks).map(disk).collect(),
        balloon: Balloon::default(),
        autostart: true,
        io: None,
    }
}

fn system(vms: &[Vm]) -> System {
    let group = Group {
        name: name("web"),
        memory: GroupMemory::default(),
        io: IoControl::default(),
        sharing: Sharing::Group,
    };
    System {
        name: name("test"),
        machine_memory: Pages(0x20000),
        kernel_memory: Pages(0x2000),
        io_policy: Policy::default(),
        memory_policy: MemoryPolicy::default(),
        groups: [group].into_iter().collect(),
        vms: vms.iter().cloned().collect(),
        disk_model: None,
        disks: 2,
    }
}

/// The edge and the servers, played: carries actions out and answers commands until nothing is left to do.
struct World {
    supervisor: Supervisor,
    outputs: Vec<Output, 64>,
    alive: [bool; MAX_VMS],
    rings: [bool; MAX_CLIENTS],
    mem_refuses: bool,
    io_refuses: bool,
    /// Only the server of this disk refuses.
    refusing: Option<DiskId>,
    /// Controls as the servers have them: client, reservation.
    controls: std::collections::BTreeMap<u16, u32>,
    attaches: usize,
    /// Claims of VMs on all of their disks, as told: VM, reservation.
    vm_claims: std::vec::Vec<(u16, u32)>,
    /// What the mem-server was told of VMs that are paused or go on.
    pauses: std::vec::Vec<(u16, bool)>,
    /// The io-sched-servers wait for the device before they let a client go.
    drains: bool,
}

impl World {
    fn new(vms: &[Vm]) -> Self {
        Self {
            supervisor: Supervisor::new(&system(vms)),
            outputs: Vec::new(),
            alive: [false; MAX_VMS],
            rings: [false; MAX_CLIENTS],
            mem_refuses: false,
            io_refuses: false,
            refusing: None,
            controls: std::collections::BTreeMap::new(),
            attaches: 0,
            vm_claims: std::vec::Vec::new(),
            pauses: std::vec::Vec::new(),
            drains: false,
        }
    }

    fn run(&mut self, f: impl FnOnce(&mut Supervisor, &mut Actions)) {
        let mut actions = Actions::new();
        f(&mut self.supervisor, &mut actions);
        self.carry_all_out(actions);
    }

    fn carry_all_out(&mut self, actions: Actions) {
        let mut pending: std::collections::VecDeque<Action> = actions.into_iter().collect();
        while let Some(action) = pending.pop_front() {
            let mut more = Actions::new();
            self.carry_out(action, &mut more);
            pending.extend(more);
        }
    }

    fn ask(&mut self, client: Client, request: &RootRequest, more: &mut Actions) -> RootReply {
        self.supervisor.request(client, request, more)
    }

    fn carry_out(&mut self, action: Action, more: &mut Actions) {
        match action {
            Action::Spawn(vm) => {
                let alive = &mut self.alive[usize::from(vm.0)];
                assert!(!core::mem::replace(alive, true), "spawned twice");
            }
            Action::Destroy(vm) => {
                let alive = &mut self.alive[usize::from(vm.0)];
                assert!(core::mem::replace(alive, false), "destroyed twice");
            }
            Action::PlaceClient { client, .. } => {
                self.rings[usize::from(client)] = true;
                self.supervisor.client_placed(client, Ok(0x1000), more);
            }
            Action::PlaceSwap => {
                assert!(!self.rings[usize::from(SWAP_CLIENT)], "two swap rings");
                self.rings[usize::from(SWAP_CLIENT)] = true;
                self.supervisor.swap_placed(Some(0x2000), more);
            }
            Action::RemoveClient(client) => self.rings[usize::from(client)] = false,
            Action::Resume(vm) => {
                assert!(self.alive[usize::from(vm.0)]);
                assert_eq!(self.ask(Client::Vmm(vm), &RootRequest::Ready, more), RootReply::Done);
            }
            Action::Signal(client) => self.serve(client, more),
            Action::Host(output) => self.outputs.push(output).unwrap(),
            Action::Exit(_) | Action::Kill(_) | Action::DropBlobs(_) => {}
            Action::RestartIo(disk) => {
                self.supervisor.serving(Client::Io(disk), Nanos(10), more);
            }
            Action::RestartMem => self.supervisor.serving(Client::Mem, Nanos(10), more),
        }
    }

    fn serve(&mut self, client: Client, more: &mut Actions) {
        let refuses =
            self.io_refuses && self.refusing.is_none_or(|disk| client == Client::Io(disk));
        while let RootReply::Command(command) = self.ask(client, &RootRequest::NextCommand, more) {
            let answer = match command {
                Command::Mem(MemRequest::CreateVm { .. } | MemRequest::SetGroup { .. })
                    if self.mem_refuses =>
                {
                    let error = MemError::NotEnoughMemory { needed: Pages(9), available: Pages(1) };
                    RootRequest::MemAnswer(MemReply::Error(error))
                }
                Command::Mem(MemRequest::CreateVm { .. }) => {
                    RootRequest::MemAnswer(MemReply::Created { reserved: Pages(1) })
                }
                Command::Mem(MemRequest::DestroyVm { .. }) => {
                    RootRequest::MemAnswer(MemReply::Freed { pages: Pages(1), free: Pages(1) })
                }
                Command::Mem(MemRequest::SetPaused { vm, is_paused }) => {
                    self.pauses.push((vm.0, is_paused));
                    RootRequest::MemAnswer(MemReply::Done)
                }
                Command::Mem(_) => RootRequest::MemAnswer(MemReply::Done),
                Command::Io(IoCommand::Attach { client, .. }) if refuses => {
                    RootRequest::AttachFailed { client, why: Text::new() }
                }
                Command::Io(IoCommand::Attach { client, disk, vm, .. }) => {
                    self.attaches += 1;
                    self.vm_claims.extend(vm.map(|(vm, io)| (vm.0, io.reservation)));
                    if client == SWAP_CLIENT {
                        self.controls.insert(client, disk.io.reservation);
                    }
                    RootRequest::Attached { client, sectors: 8 }
                }
                Command::Io(IoCommand::Detach { .. }) if self.drains => continue,
                Command::Io(IoCommand::Detach { client }) => RootRequest::Detached { client },
                Command::Io(IoCommand::ClientStats { client }) => {
                    let reads = 100 + u64::from(client);
                    RootRequest::IoClient(ClientStats { reads, ..ClientStats::default() })
                }
                Command::Io(IoCommand::DiskStats) => RootRequest::IoDisk(DiskStats::default()),
                Command::Io(_) if refuses => {
                    RootRequest::IoRefused(IoError::Overcommitted { asked: 900, free: 7 })
                }
                Command::Io(IoCommand::SetDisk { client, control }) => {
                    self.controls.insert(client, control.reservation);
                    RootRequest::Applied
                }
                Command::Io(IoCommand::SetVm { vm, control }) => {
                    self.vm_claims.push((vm.0, control.reservation));
                    RootRequest::Applied
                }
                Command::Io(_) => RootRequest::Applied,
                Command::Vmm(VmmCommand::Pause) => RootRequest::Event(VmEvent::Paused),
                Command::Vmm(VmmCommand::Resume) => RootRequest::Event(VmEvent::Resumed),
                Command::Vmm(_) => continue,
            };
            assert_eq!(self.ask(client, &answer, more), RootReply::Done);
        }
    }

    fn host(&mut self, id: u32, request: Request) -> Result<(), Refusal> {
        self.outputs.clear();
        self.run(|supervisor, actions| supervisor.host(id, request, &All, actions));
        let is_done = |output: &Output| match output {
            Output::Done { id: done, outcome } if *done == id => Some(*outcome),
            _ => None,
        };
        self.outputs.iter().find_map(is_done).expect("every request is answered")
    }

    fn has_event(&self, wanted: Event) -> bool {
        self.outputs.contains(&Output::Event(wanted))
    }
}

const A: VmId = VmId(0);
const B: VmId = VmId(1);

fn booted() -> World {
    let mut world = World::new(&[vm("a", 2), vm("b", 1)]);
    world.run(|supervisor, actions| supervisor.boot(actions));
    assert_eq!(world.supervisor.state(A), Some(VmState::Running));
    assert_eq!(world.supervisor.state(B), Some(VmState::Running));
    assert!(world.has_event(Event::Ready));
    world
}

#[test]
fn vms_start_at_boot_with_their_disks() {
    let world = booted();
    assert_eq!(world.rings.iter().filter(|ring| **ring).count(), 3);
    assert_eq!(world.supervisor.clients_of(A).count(), 2);
}

#[test]
fn stop_and_start_leave_nothing_behind() {
    let mut world = booted();
    for round in 0..20 {
        assert_eq!(world.host(round, Request::VmStop(A)), Ok(()));
        assert_eq!(world.supervisor.state(A), Some(VmState::Stopped));
        assert_eq!(world.supervisor.clients_of(A).count(), 0);
        assert!(!world.alive[0] && world.alive[1]);
        assert_eq!(world.host(100 + round, Request::VmStart(A)), Ok(()));
        assert_eq!(world.supervisor.state(A), Some(VmState::Running));
    }
    assert_eq!(world.supervisor.starts(A), 20);
}

#[test]
fn pause_and_resume_wait_for_the_server() {
    let mut world = booted();
    assert_eq!(world.host(1, Request::VmPause(A)), Ok(()));
    assert_eq!(world.supervisor.state(A), Some(VmState::Paused));
    let again = world.host(2, Request::VmPause(A));
    assert_eq!(again, Err(Refusal::State(VmState::Paused)));
    assert_eq!(world.host(3, Request::VmResume(A)), Ok(()));
    assert_eq!(world.host(4, Request::VmStop(A)), Ok(()));
}

#[test]
fn the_mem_server_hears_of_a_pause_from_the_user_alone() {
    let mut world = booted();
    for said in [VmEvent::Paused, VmEvent::Resumed] {
        let mut more = Actions::new();
        let reply = world.ask(Client::Vmm(A), &RootRequest::Event(said), &mut more);
        assert_eq!(reply, RootReply::Refused);
        world.carry_all_out(more);
    }
    assert!(world.pauses.is_empty());
    assert_eq!(world.host(1, Request::VmPause(A)), Ok(()));
    assert_eq!(world.pauses, [(A.0, true)]);
    assert_eq!(world.host(2, Request::VmResume(A)), Ok(()));
    assert_eq!(world.pauses, [(A.0, true), (A.0, false)]);
    // What is refused is not told.
    assert!(world.host(3, Request::VmResume(A)).is_err());
    assert_eq!(world.pauses.len(), 2);
}

#[test]
fn a_refused_vm_leaves_nothing_behind_and_says_the_numbers() {
    let mut world = World::new(&[vm("a", 1)]);
    world.mem_refuses = true;
    world.run(|supervisor, actions| supervisor.boot(actions));
    assert!(world.has_event(Event::Ready), "a refused VM does not hold up the others");
    assert_eq!(world.supervisor.state(A), Some(VmState::Stopped));
    assert!(!world.alive[0]);
    let outcome = world.host(5, Request::VmStart(A));
    assert_eq!(outcome, Err(Refusal::Memory { asked: Pages(9), available: Pages(1) }));
    world.mem_refuses = false;
    world.io_refuses = true;
    assert_eq!(world.host(6, Request::VmStart(A)), Err(Refusal::Missing));
    assert!(!world.alive[0] && world.rings.iter().all(|ring| !ring));
    world.io_refuses = false;
    assert_eq!(world.host(7, Request::VmStart(A)), Ok(()));
}

#[test]
fn a_vmm_fault_costs_its_vm_only() {
    let mut world = booted();
    world.outputs.clear();
    let fault = FaultReport { label: 6, ip: 1, address: 2, code: 3 };
    let report = RootRequest::ServerFault { vm: A, fault };
    world.run(|supervisor, actions| {
        assert_eq!(supervisor.request(Client::Mem, &report, actions), RootReply::Done);
    });
    assert_eq!(world.supervisor.state(A), Some(VmState::Crashed));
    assert_eq!(world.supervisor.state(B), Some(VmState::Running));
    assert!(world.has_event(Event::VmStopped { vm: A, reason: StopReason::ServerFault }));
    assert_eq!(world.host(1, Request::VmStart(A)), Ok(()));
}

#[test]
fn a_dead_io_server_comes_back_with_all_clients() {
    let mut world = booted();
    let before = world.attaches;
    world.outputs.clear();
    let fault = FaultReport { label: 3, ip: 1, address: 0, code: 0 };
    world.run(|supervisor, actions| {
        supervisor.fault(Client::Io(DiskId(0)), fault, Nanos(3), actions)
    });
    assert_eq!(world.attaches - before, 3);
    assert_eq!(world.supervisor.state(A), Some(VmState::Running));
    let restarted = Event::ServerRestarted { server: ServerId::Io(DiskId(0)), downtime: Nanos(7) };
    assert!(world.has_event(restarted));
}

/// The device may touch a ring that is being let go until the new server has reset it.
#[test]
fn a_ring_that_is_let_go_stays_until_the_new_server_has_answered() {
    let mut world = booted();
    world.drains = true;
    world.run(|supervisor, actions| supervisor.host(5, Request::VmStop(A), &All, actions));
    let rings = |world: &World| world.rings.iter().filter(|ring| **ring).count();
    assert_eq!((rings(&world), world.alive[0]), (3, false));
    let fault = FaultReport { label: 3, ip: 1, address: 0, code: 0 };
    let mut actions = Actions::new();
    world.supervisor.fault(Client::Io(DiskId(0)), fault, Nanos(3), &mut actions);
    assert!(!actions.iter().any(|action| matches!(action, Action::RemoveClient(_))));
    world.drains = false;
    world.outputs.clear();
    world.carry_all_out(actions);
    assert_eq!((rings(&world), world.supervisor.state(A)), (1, Some(VmState::Stopped)));
    assert_eq!(world.host(6, Request::VmStart(A)), Ok(()));
}

#[test]
fn a_server_that_keeps_dying_is_given_up() {
    let mut world = booted();
    let fault = FaultReport { label: 3, ip: 1, address: 0, code: 0 };
    for _ in 0..=RESTARTS_MAX {
        world.outputs.clear();
        world.run(|supervisor, actions| {
            supervisor.fault(Client::Io(DiskId(0)), fault, Nanos(3), actions)
        });
    }
    assert_eq!(world.supervisor.state(A), Some(VmState::Crashed));
    assert_eq!(world.supervisor.io_restarts(DiskId(0)), RESTARTS_MAX as u32);
}

#[test]
fn a_dead_mem_server_takes_its_vms_along_and_they_start_again() {
    let mut world = booted();
    let fault = FaultReport { label: 3, ip: 1, address: 0, code: 0 };
    world.outputs.clear();
    world.run(|supervisor, actions| supervisor.fault(Client::Mem, fault, Nanos(3), actions));
    assert_eq!(world.supervisor.state(A), Some(VmState::Crashed));
    assert_eq!(world.host(1, Request::VmStart(A)), Ok(()));
    assert_eq!(world.host(2, Request::VmStart(B)), Ok(()));
}

#[test]
fn reboot_starts_the_vm_again_and_poweroff_does_not() {
    let mut world = booted();
    world.outputs.clear();
    world.run(|supervisor, actions| {
        let request = RootRequest::Event(VmEvent::Reboot);
        assert_eq!(supervisor.request(Client::Vmm(A), &request, actions), RootReply::Done);
    });
    assert_eq!(world.supervisor.state(A), Some(VmState::Running));
    assert!(world.has_event(Event::VmRebooted { vm: A }));
    world.run(|supervisor, actions| {
        let request = RootRequest::Event(VmEvent::Poweroff);
        assert_eq!(supervisor.request(Client::Vmm(A), &request, actions), RootReply::Done);
    });
    assert_eq!(world.supervisor.state(A), Some(VmState::Stopped));
}

#[test]
fn servers_may_only_ask_what_is_theirs() {
    let mut world = booted();
    let mut actions = Actions::new();
    let forged = [
        (Client::Vmm(A), RootRequest::Detached { client: 2 }),
        (Client::Vmm(A), RootRequest::MemAnswer(MemReply::Done)),
        (Client::Mem, RootRequest::Ready),
        (Client::Io(DiskId(0)), RootRequest::Event(VmEvent::Poweroff)),
        (Client::Io(DiskId(0)), RootRequest::Detached { client: 0 }),
        (Client::Io(DiskId(0)), RootRequest::Detached { client: 999 }),
        (Client::Vmm(A), RootRequest::Event(VmEvent::Paused)),
        (Client::Mem, RootRequest::MemAnswer(MemReply::Done)),
        (Client::Io(DiskId(0)), RootRequest::Applied),
        (Client::Mem, RootRequest::Applied),
    ];
    for (client, request) in forged {
        let reply = world.supervisor.request(client, &request, &mut actions);
        assert_eq!(reply, RootReply::Refused, "{request:?} of {client:?}");
    }
    assert!(actions.is_empty());
}

#[test]
fn vms_are_created_set_and_removed() {
    let mut world = booted();
    let mut third = vm("c", 0);
    third.autostart = false;
    assert_eq!(world.host(1, Request::VmCreate(third.clone())), Ok(()));
    assert!(world.outputs.contains(&Output::Vm { id: 1, vm: VmId(2) }));
    let twice = world.host(2, Request::VmCreate(third.clone()));
    assert!(matches!(twice, Err(Refusal::Rule(_))));
    third.name = name("d");
    third.kernel = name("missing");
    assert_eq!(world.host(3, Request::VmCreate(third)), Err(Refusal::Missing));
    let setting = Setting::MemoryShares(7);
    assert_eq!(world.host(4, Request::VmSet { vm: VmId(2), setting }), Ok(()));
    assert_eq!(world.host(5, Request::VmSet { vm: A, setting }), Ok(()));
    assert_eq!(world.supervisor.config(A).map(|config| config.memory.shares), Some(7));
    let bad = Setting::MemoryLimit(Pages(0));
    assert!(world.host(6, Request::VmSet { vm: A, setting: bad }).is_err());
    assert_eq!(world.host(7, Request::VmRemove(A)), Err(Refusal::State(VmState::Running)));
    assert_eq!(world.host(8, Request::VmRemove(VmId(2))), Ok(()));
    assert_eq!(world.host(9, Request::VmStart(VmId(2))), Err(Refusal::Unknown));
}

fn reservation(wanted: u32) -> IoChange {
    IoChange { reservation: Some(wanted), ..IoChange::default() }
}

#[test]
fn disk_claims_change_when_the_server_agrees() {
    let mut world = booted();
    let claim = |world: &World| world.supervisor.config(A).unwrap().disks[1].io.reservation;
    let set = |change| Request::VmSet { vm: A, setting: Setting::Io { disk: 1, change } };
    assert_eq!(world.host(1, set(reservation(50))), Ok(()));
    assert_eq!(claim(&world), 50);
    world.io_refuses = true;
    assert_eq!(
        world.host(2, set(reservation(900))),
        Err(Refusal::Disk { asked: 900, free: 7 }),
        "the numbers reach the host"
    );
    assert_eq!(claim(&world), 50, "and nothing has changed");
    let broken = IoChange { shares: Some(0), ..IoChange::default() };
    assert_eq!(world.host(3, set(broken)), Err(Refusal::Rule(VmRule::Shares)));
    let none = Setting::Io { disk: 2, change: reservation(1) };
    assert_eq!(world.host(4, Request::VmSet { vm: A, setting: none }), Err(Refusal::Unknown));
    // A VM that is down has only its description.
    assert_eq!(world.host(5, Request::VmStop(A)), Ok(()));
    assert_eq!(world.host(6, set(reservation(60))), Ok(()));
    assert_eq!(claim(&world), 60);
}

#[test]
fn groups_and_policy_change_and_outlive_the_server() {
    let mut world = booted();
    let group = |text| Request::GroupSet { group: name(text), change: reservation(80) };
    assert_eq!(world.host(1, group("nobody")), Err(Refusal::Unknown));
    assert_eq!(world.host(2, group("web")), Ok(()));
    assert_eq!(world.host(3, Request::IoPolicy(Policy::Sfq)), Ok(()));
    world.io_refuses = true;
    assert!(world.host(4, Request::IoPolicy(Policy::RoundRobin)).is_err());
    let (groups, policy) = world.supervisor.io_settings();
    assert_eq!((groups[0].io.reservation, policy), (80, Policy::Sfq));
}

#[test]
fn memory_controls_of_groups_and_machine_change_and_outlive_the_server() {
    let mut world = booted();
    let half = GroupMemoryChange { shares: Some(500), ..GroupMemoryChange::default() };
    let group = |text, change| Request::GroupMemorySet { group: name(text), change };
    assert_eq!(world.host(1, group("nobody", half)), Err(Refusal::Unknown));
    assert_eq!(world.host(2, group("web", half)), Ok(()));
    let none = GroupMemoryChange { shares: Some(0), ..half };
    assert_eq!(world.host(3, group("web", none)), Err(Refusal::Rule(VmRule::Shares)));
    let tax = |tax| Request::MemorySet(MemoryChange { tax: Some(tax), ..MemoryChange::default() });
    assert_eq!(world.host(4, tax(100)), Ok(()));
    assert_eq!(world.host(5, tax(1000)), Err(Refusal::Rule(VmRule::Tax)));
    world.mem_refuses = true;
    let much = GroupMemoryChange { reservation: Some(Pages(1 << 30)), ..half };
    assert!(world.host(6, group("web", much)).is_err());
    let (groups, _) = world.supervisor.io_settings();
    let wanted = GroupMemory { shares: Some(500), reservation: Pages(0) };
    assert_eq!(groups[0].memory, wanted, "what was refused is not kept");
    assert_eq!(world.supervisor.memory_controls().tax, 100);
}

#[test]
fn a_vms_claim_on_its_disks_together_goes_with_each_and_changes_at_every_server() {
    let mut world = booted();
    assert_eq!(world.vm_claims, [], "none is described");
    let first = reservation(20);
    let early = Request::VmSet { vm: A, setting: Setting::VmIo(first) };
    assert_eq!(world.host(20, early.clone()), Err(Refusal::State(VmState::Running)));
    assert_eq!(world.host(21, Request::VmStop(A)), Ok(()));
    assert_eq!(world.host(22, early), Ok(()));
    assert_eq!(world.host(23, Request::VmStart(A)), Ok(()));
    assert_eq!(world.vm_claims, [(0, 20), (0, 20)], "it goes with each of its disks");
    world.vm_claims.clear();
    let set = |vm, value| Request::VmSet { vm, setting: Setting::VmIo(reservation(value)) };
    assert_eq!(world.host(1, set(A, 70)), Ok(()));
    assert_eq!(world.vm_claims, [(0, 70), (0, 70)], "each of the machine's disks is asked");
    (world.io_refuses, world.refusing) = (true, Some(DiskId(1)));
    world.vm_claims.clear();
    let refused = Err(Refusal::Disk { asked: 900, free: 7 });
    assert_eq!(world.host(2, set(A, 900)), refused);
    assert_eq!(world.vm_claims, [(0, 900), (0, 70)], "taken back");
    world.io_refuses = false;
    assert_eq!(world.host(3, set(B, 5)), Ok(()));
    let mut claims = world.controls.values();
    assert!(claims.any(|claim| *claim == 5), "of one disk it is the disk's");
    let broken = Setting::VmIo(IoChange { shares: Some(0), ..IoChange::default() });
    let broken = Request::VmSet { vm: A, setting: broken };
    assert_eq!(world.host(4, broken), Err(Refusal::Rule(VmRule::Shares)));
    assert_eq!(world.host(5, set(VmId(9), 1)), Err(Refusal::Unknown));
    // A VM that is down has only its description, and starts with it.
    assert_eq!(world.host(6, Request::VmStop(A)), Ok(()));
    assert_eq!(world.host(7, set(A, 60)), Ok(()));
    world.vm_claims.clear();
    assert_eq!(world.host(8, Request::VmStart(A)), Ok(()));
    assert_eq!(world.vm_claims, [(0, 60), (0, 60)]);
}

#[test]
fn every_attached_disk_has_a_row() {
    let mut world = booted();
    assert_eq!(world.host(9, Request::Disks), Ok(()));
    let rows: std::vec::Vec<_> = world.outputs.iter().cloned().collect();
    let clients = (0..3).map(|client| Output::DiskClient { id: 9, client });
    let mut wanted: std::vec::Vec<_> = clients.collect();
    wanted.extend([0, 1].map(|disk| Output::Disk { id: 9, disk: DiskId(disk) }));
    wanted.push(Output::Done { id: 9, outcome: Ok(()) });
    assert_eq!(rows, wanted);
    assert_eq!(world.supervisor.client_stats().reads, 102);
}

#[test]
fn a_vm_stopped_while_it_is_admitted_ends_well() {
    let mut world = booted();
    assert_eq!(world.host(1, Request::VmStop(A)), Ok(()));
    world.outputs.clear();
    // Start and stop before the mem-server has heard of either.
    let (mut started, mut stopped) = (Actions::new(), Actions::new());
    world.supervisor.host(2, Request::VmStart(A), &All, &mut started);
    assert!(started.contains(&Action::Spawn(A)));
    world.supervisor.host(3, Request::VmStop(A), &All, &mut stopped);
    assert_eq!(world.supervisor.state(A), Some(VmState::Starting));
    world.mem_refuses = true; // it finds no capabilities of a VM that is gone
    world.alive[0] = true;
    let is_signal = |action: &Action| *action == Action::Signal(Client::Mem);
    let all: Vec<Action, 32> = started.into_iter().chain(stopped).collect();
    let count = all.iter().filter(|action| is_signal(action)).count();
    for action in all.into_iter().filter(|action| !matches!(action, Action::Spawn(_))) {
        world.run(|_, actions| actions.push(action).unwrap());
    }
    assert_eq!(count, 1);
    assert_eq!(world.supervisor.state(A), Some(VmState::Stopped));
    assert!(world.outputs.contains(&Output::Done { id: 3, outcome: Ok(()) }));
    assert!(!world.has_event(Event::VmState { vm: A, state: VmState::Running }));
}

fn with_swap(vms: &[Vm]) -> World {
    let mut system = system(vms);
    let (partition, size) = (name("swap"), Pages(0x8000));
    let io = IoControl { reservation: 30, ..IoControl::default() };
    system.memory_policy.swap = Some(protocol::system::Swap { partition, size, io });
    World { supervisor: Supervisor::new(&system), ..World::new(vms) }
}

#[test]
fn vms_start_when_the_mem_server_has_its_swap_partition() {
    let mut world = with_swap(&[vm("a", 1)]);
    let mut actions = Actions::new();
    world.supervisor.boot(&mut actions);
    assert_eq!(actions[..], [Action::PlaceSwap], "no VM before admission can count swap space");
    world.run(|_, more| more.extend(actions));
    assert!(world.rings[usize::from(SWAP_CLIENT)] && world.alive[0]);
    assert!(world.has_event(Event::Ready));
}

#[test]
fn the_claim_of_swap_is_the_descriptions_and_changes_when_the_server_agrees() {
    let mut world = with_swap(&[vm("a", 0)]);
    world.run(|supervisor, actions| supervisor.boot(actions));
    let shown = |world: &World| world.supervisor.client(SWAP_CLIENT).unwrap().io.reservation;
    assert_eq!((world.controls.get(&SWAP_CLIENT), shown(&world)), (Some(&30), 30));
    assert_eq!(world.host(1, Request::SwapIo(reservation(50))), Ok(()));
    assert_eq!((world.controls.get(&SWAP_CLIENT), shown(&world)), (Some(&50), 50));
    // A new server hears the present one.
    let fault = FaultReport { label: 6, ip: 1, address: 2, code: 0 };
    world.controls.clear();
    world.run(|supervisor, actions| {
        supervisor.fault(Client::Io(DiskId(0)), fault, Nanos(1), actions)
    });
    assert_eq!(world.controls.get(&SWAP_CLIENT), Some(&50));
    world.io_refuses = true;
    let refused = Err(Refusal::Disk { asked: 900, free: 7 });
    assert_eq!(world.host(2, Request::SwapIo(reservation(900))), refused);
    let broken = IoChange { shares: Some(0), ..IoChange::default() };
    assert_eq!(world.host(3, Request::SwapIo(broken)), Err(Refusal::Rule(VmRule::Shares)));
    assert_eq!(shown(&world), 50, "and nothing has changed");
    let mut without = booted();
    assert_eq!(without.host(4, Request::SwapIo(reservation(1))), Err(Refusal::Unknown));
}

#[test]
fn a_disk_is_shown_with_the_group_of_its_vm() {
    let mut world = with_swap(&[Vm { group: Some(0), ..vm("a", 1) }, vm("b", 1)]);
    world.run(|supervisor, actions| supervisor.boot(actions));
    let group = |client| world.supervisor.client(client).unwrap().group;
    assert_eq!((group(0), group(1), group(SWAP_CLIENT)), (Some("web"), None, None));
}

#[test]
fn a_missing_swap_partition_is_said_and_vms_start() {
    let mut world = with_swap(&[vm("a", 0)]);
    world.io_refuses = true;
    world.run(|supervisor, actions| supervisor.boot(actions));
    assert!(world.outputs.contains(&Output::Note(ServerId::Io(DiskId(0)))));
    assert!(!world.rings[usize::from(SWAP_CLIENT)] && world.alive[0]);
}

#[test]
fn a_new_mem_server_gets_a_new_swap_ring_and_a_new_io_server_the_old_one() {
    let mut world = with_swap(&[vm("a", 1)]);
    world.run(|supervisor, actions| supervisor.boot(actions));
    let fault = FaultReport { label: 6, ip: 1, address: 2, code: 0 };
    let attaches = world.attaches;
    world.run(|supervisor, actions| {
        supervisor.fault(Client::Io(DiskId(0)), fault, Nanos(1), actions)
    });
    assert_eq!(world.attaches, attaches + 2, "the VM's disk and the swap partition");
    world.run(|supervisor, actions| supervisor.fault(Client::Mem, fault, Nanos(2), actions));
    assert_eq!(world.attaches, attaches + 3);
    assert!(world.rings[usize::from(SWAP_CLIENT)]);
}

#[test]
fn a_vm_whose_page_is_lost_stops_and_says_which() {
    let mut world = with_swap(&[vm("a", 0), vm("b", 0)]);
    world.run(|supervisor, actions| supervisor.boot(actions));
    let lost = RootRequest::MemEvent(MemEvent::PageLost { vm: A, gfn: Gfn(77) });
    world.run(|supervisor, actions| drop(supervisor.request(Client::Mem, &lost, actions)));
    let reason = StopReason::PageLost { gfn: Gfn(77) };
    assert!(world.has_event(Event::VmStopped { vm: A, reason }));
    assert_eq!(world.alive[..2], [false, true]);
}

#[test]
fn a_vm_that_is_not_admitted_says_the_numbers_and_leaves_nothing() {
    let mut world = World::new(&[vm("a", 1)]);
    world.mem_refuses = true;
    world.run(|supervisor, actions| supervisor.boot(actions));
    let reason = StopReason::Refused(Refusal::Memory { asked: Pages(9), available: Pages(1) });
    assert!(world.has_event(Event::VmStopped { vm: A, reason }));
    assert!(!world.alive[0] && world.rings.iter().all(|ring| !ring));
}

#[test]
fn refusals_of_the_mem_server_keep_their_numbers() {
    let (asked, free) = (Pages(512), Pages(77));
    let block = super::mem_refusal(MemError::NoBlock { needed: asked, free });
    assert_eq!(block, Refusal::Memory { asked, available: free });
    let pages = super::mem_refusal(MemError::TooManyPages { size: asked, free });
    assert_eq!(pages, Refusal::GuestPages { asked, free });
    let kernel = super::mem_refusal(MemError::Objects { error: 10 });
    assert_eq!(kernel, Refusal::Server(ServerId::Mem), "no numbers of pages are made up");
}

/// A VM whose second disk is in two parts.
fn striped() -> World {
    let mut config = vm("a", 2);
    config.disks[1].parts = 2;
    let mut world = World::new(&[config]);
    world.run(|supervisor, actions| supervisor.boot(actions));
    assert_eq!(world.supervisor.state(A), Some(VmState::Running));
    assert_eq!(world.attaches, 3);
    let places: std::vec::Vec<_> = world.supervisor.clients_of(A).collect();
    assert_eq!(places, [(0, DiskId(0)), (1, DiskId(0)), (2, DiskId(1))]);
    world
}

fn set_reservation(id: u32, world: &mut World, reservation: u32) -> Result<(), Refusal> {
    let change = IoChange { reservation: Some(reservation), ..IoChange::default() };
    world.host(id, Request::VmSet { vm: A, setting: Setting::Io { disk: 1, change } })
}

#[test]
fn a_claim_reaches_every_part_of_a_striped_disk() {
    let mut world = striped();
    assert_eq!(set_reservation(1, &mut world, 50), Ok(()));
    assert_eq!(world.controls, [(1, 50), (2, 50)].into());
    assert_eq!(world.supervisor.client(2).map(|client| client.io.reservation), Some(50));
    assert_eq!(world.supervisor.client(2).map(|client| client.part), Some((1, 2)));
}

#[test]
fn a_claim_that_one_part_refuses_is_taken_back_at_the_others() {
    let mut world = striped();
    assert_eq!(set_reservation(1, &mut world, 50), Ok(()));
    (world.io_refuses, world.refusing) = (true, Some(DiskId(1)));
    assert_eq!(set_reservation(2, &mut world, 900), Err(Refusal::Disk { asked: 900, free: 7 }));
    assert_eq!(world.controls, [(1, 50), (2, 50)].into());
    assert_eq!(world.supervisor.client(1).map(|client| client.io.reservation), Some(50));
    let policy = world.host(3, Request::IoPolicy(Policy::Sfq));
    assert!(policy.is_err());
    assert_eq!(world.supervisor.io_settings().1, Policy::default());
}

#[test]
fn a_server_speaks_for_its_own_disk_alone() {
    let mut world = striped();
    let mut actions = Actions::new();
    for (disk, client) in [(1, 0), (0, 2), (1, SWAP_CLIENT), (3, 1)] {
        for request in [
            RootRequest::Attached { client, sectors: 8 },
            RootRequest::Detached { client },
            RootRequest::AttachFailed { client, why: Text::new() },
        ] {
            let server = Client::Io(DiskId(disk));
            let reply = world.supervisor.request(server, &request, &mut actions);
            assert_eq!(reply, RootReply::Refused, "{disk} {request:?}");
        }
    }
    assert!(actions.is_empty());
}

#[test]
fn the_end_of_one_disks_server_leaves_the_others_clients_alone() {
    let mut world = striped();
    world.attaches = 0;
    let fault = FaultReport { label: 6, ip: 1, address: 2, code: 0 };
    let server = Client::Io(DiskId(1));
    world.run(|supervisor, actions| supervisor.fault(server, fault, Nanos(3), actions));
    assert_eq!(world.attaches, 1, "the one part that is there");
    assert_eq!(world.supervisor.io_restarts(DiskId(1)), 1);
    assert_eq!(world.supervisor.io_restarts(DiskId(0)), 0);
    assert_eq!(world.supervisor.state(A), Some(VmState::Running));
    let killed = world.host(7, Request::Kill(ServerId::Io(DiskId(2))));
    assert_eq!(killed, Err(Refusal::Unknown));
}

#[test]
fn a_vm_with_more_parts_than_there_are_clients_is_refused_by_name() {
    let vms: std::vec::Vec<Vm> = (0..9).map(|number| vm(&format!("vm{number}"), 4)).collect();
    let mut world = World::new(&vms);
    world.run(|supervisor, actions| supervisor.boot(actions));
    let refused = StopReason::Refused(Refusal::DiskClients);
    // They take their disks in turn, so that several have three when there are no more.
    let supervisor = &world.supervisor;
    let in_state =
        |wanted| (0..9).filter(move |vm| supervisor.state(VmId(*vm)) == Some(wanted)).map(VmId);
    assert_eq!(in_state(VmState::Running).count() + in_state(VmState::Stopped).count(), 9);
    assert!(in_state(VmState::Running).count() >= 4);
    assert!(in_state(VmState::Stopped).count() >= 2);
    for vm in in_state(VmState::Stopped) {
        assert!(world.has_event(Event::VmStopped { vm, reason: refused }));
    }
}
