//! What servers say: they are ready, ask for commands, answer them, tell of events.

use super::{
    Action, Actions, After, ClientState, IoWait, MemWait, Output, Phase, Supervisor, done, event,
    io_refusal, mem_refusal, push, server_id,
};
use protocol::link::{Event, Refusal, ServerId, StopReason};
use protocol::mem::{MemEvent, MemReply};
use protocol::root::{Command, IoCommand, RootReply, RootRequest, Text, VmEvent};
use protocol::slots::{Client, SWAP_CLIENT, SWAP_DISK};
use protocol::units::{DiskId, Nanos, VmId};

impl Supervisor {
    /// A request of `client`; returns what to answer.
    pub fn request(
        &mut self,
        client: Client,
        request: &RootRequest,
        actions: &mut Actions,
    ) -> RootReply {
        if !self.is_its(client, request) {
            return RootReply::Refused;
        }
        match (client, request) {
            (_, RootRequest::NextCommand) => self.next_command(client),
            (_, RootRequest::Panicked { message }) => {
                self.note(server_id(client), message, actions);
                RootReply::Done
            }
            (Client::Vmm(vm), RootRequest::Ready) => self.vm_ready(vm, actions),
            (Client::Vmm(vm), RootRequest::Event(what)) => self.vm_event(vm, what, actions),
            (Client::Mem, RootRequest::ServerFault { vm, fault }) => {
                self.fault(Client::Vmm(*vm), *fault, Nanos(0), actions);
                RootReply::Done
            }
            (Client::Mem, RootRequest::MemAnswer(answer)) => self.mem_answer(answer, actions),
            (Client::Mem, RootRequest::MemEvent(what)) => {
                self.mem_event(*what, actions);
                RootReply::Done
            }
            (Client::Io(_), RootRequest::Attached { client: SWAP_CLIENT, sectors }) => {
                self.swap_attached(*sectors, actions);
                RootReply::Done
            }
            (Client::Io(_), RootRequest::AttachFailed { client: SWAP_CLIENT, why }) => {
                self.swap_failed(why, actions);
                RootReply::Done
            }
            (Client::Io(_), RootRequest::Detached { client: SWAP_CLIENT }) => {
                self.swap_detached(actions);
                RootReply::Done
            }
            (Client::Io(_), RootRequest::Attached { client, .. }) => {
                self.attached(*client, actions)
            }
            (Client::Io(_), RootRequest::AttachFailed { client, why }) => {
                self.attach_failed(*client, why, actions)
            }
            (Client::Io(_), RootRequest::Detached { client }) => self.detached(*client, actions),
            (
                Client::Io(disk),
                RootRequest::Applied
                | RootRequest::IoRefused(_)
                | RootRequest::IoClient(_)
                | RootRequest::IoDisk(_),
            ) => self.io_answer(disk, request, actions),
            _ => RootReply::Refused,
        }
    }

    /// Whether `request`, if it names a client of a disk, comes from the server of that disk.
    fn is_its(&self, server: Client, request: &RootRequest) -> bool {
        let (RootRequest::Attached { client, .. }
        | RootRequest::AttachFailed { client, .. }
        | RootRequest::Detached { client }) = request
        else {
            return true;
        };
        let on = match *client {
            SWAP_CLIENT => Some(SWAP_DISK),
            client => self.clients.get(usize::from(client)).and_then(|c| c.map(|c| c.on)),
        };
        on.is_some_and(|on| server == Client::Io(on))
    }

    pub(super) fn next_command(&mut self, client: Client) -> RootReply {
        let command = match client {
            Client::Mem => self.mem_commands.pop_front().map(Command::Mem),
            Client::Io(disk) => {
                let side = self.io.get_mut(disk.index());
                side.and_then(|side| side.commands.pop_front()).map(Command::Io)
            }
            Client::Vmm(vm) => {
                let next = self.entry_mut(vm).and_then(|entry| entry.commands.pop_front());
                next.map(Command::Vmm)
            }
        };
        command.map_or(RootReply::NoCommand, RootReply::Command)
    }

    pub(super) fn answer_waiter(
        &mut self,
        vm: VmId,
        outcome: Result<(), Refusal>,
        actions: &mut Actions,
    ) {
        if let Some(id) = self.entry_mut(vm).and_then(|entry| entry.waiter.take()) {
            done(actions, id, outcome);
        }
    }

    pub(super) fn vm_ready(&mut self, vm: VmId, actions: &mut Actions) -> RootReply {
        if self.entry(vm).is_none_or(|entry| entry.phase != Phase::Loading) {
            return RootReply::Refused;
        }
        push(actions, Action::DropBlobs(vm));
        self.set_phase(vm, Phase::Running, actions);
        self.answer_waiter(vm, Ok(()), actions);
        self.boot_start_ended(actions);
        RootReply::Done
    }

    pub(super) fn vm_event(
        &mut self,
        vm: VmId,
        what: &VmEvent,
        actions: &mut Actions,
    ) -> RootReply {
        match what {
            VmEvent::Poweroff => self.end(vm, StopReason::PowerOff, After::Stay, actions),
            VmEvent::Reboot => self.end(vm, StopReason::Requested, After::Restart, actions),
            VmEvent::TripleFault { rip } => {
                self.end(vm, StopReason::TripleFault { ip: *rip }, After::Crashed, actions);
            }
            VmEvent::Unsupported { rip, exit, what } => {
                self.note(ServerId::Vmm(vm), what, actions);
                let reason = StopReason::Unsupported { ip: *rip, code: *exit };
                self.end(vm, reason, After::Crashed, actions);
            }
            VmEvent::StartFailed { why } => {
                self.note(ServerId::Vmm(vm), why, actions);
                if let Some(entry) = self.entry_mut(vm) {
                    entry.refusal = Some(Refusal::Server(ServerId::Vmm(vm)));
                }
                self.end(vm, StopReason::BadImage, After::Crashed, actions);
            }
            VmEvent::Paused | VmEvent::Resumed => {
                let (from, to) = match what {
                    VmEvent::Paused => (Phase::Pausing, Phase::Paused),
                    _ => (Phase::Resuming, Phase::Running),
                };
                if self.entry(vm).is_none_or(|entry| entry.phase != from) {
                    return RootReply::Refused;
                }
                self.set_phase(vm, to, actions);
                self.answer_waiter(vm, Ok(()), actions);
            }
        }
        RootReply::Done
    }

    pub(super) fn mem_answer(&mut self, answer: &MemReply, actions: &mut Actions) -> RootReply {
        let Some(wait) = self.mem_waits.pop_front() else { return RootReply::Refused };
        match (wait, answer) {
            (MemWait::Create(vm), MemReply::Created { .. }) => {
                let Some(entry) = self.entry_mut(vm) else { return RootReply::Done };
                entry.is_admitted = true;
                if entry.phase == Phase::Admitting {
                    self.set_phase(vm, Phase::Attaching, actions);
                    self.attach_next_disk(vm, actions);
                } else {
                    self.continue_ending(vm, actions);
                }
            }
            (MemWait::Create(vm), MemReply::Error(error)) => {
                self.fail_start(vm, mem_refusal(*error), actions);
                self.continue_ending(vm, actions);
            }
            (MemWait::Destroy(vm), _) => self.ended(vm, actions),
            (MemWait::Swap, _) => self.boot_vms(actions),
            (MemWait::Paused, _) => {}
            (
                MemWait::Controls { id, .. }
                | MemWait::Balloon(id)
                | MemWait::Group { id, .. }
                | MemWait::Machine { id, .. },
                MemReply::Error(error),
            ) => {
                done(actions, id, Err(mem_refusal(*error)));
            }
            (MemWait::Controls { vm, id, memory }, _) => {
                if let Some(entry) = self.entry_mut(vm) {
                    entry.config.memory = memory;
                }
                done(actions, id, Ok(()));
            }
            (MemWait::Group { id, group, claim }, _) => {
                if let Some(group) = self.groups.get_mut(usize::from(group)) {
                    group.memory = claim;
                }
                done(actions, id, Ok(()));
            }
            (MemWait::Machine { id, controls }, _) => {
                self.memory = controls;
                done(actions, id, Ok(()));
            }
            (MemWait::Balloon(id), _) => done(actions, id, Ok(())),
            (MemWait::Explain { vm, id }, MemReply::Explanation(terms)) => {
                self.explanation = Some(*terms);
                push(actions, Action::Host(Output::Explanation { id, vm }));
                done(actions, id, Ok(()));
            }
            (MemWait::Explain { id, .. }, _) => {
                done(actions, id, Err(Refusal::Server(ServerId::Mem)));
            }
            (MemWait::Create(vm), _) => {
                self.fail_start(vm, Refusal::Server(ServerId::Mem), actions);
                self.continue_ending(vm, actions);
            }
        }
        RootReply::Done
    }

    pub(super) fn mem_event(&mut self, what: MemEvent, actions: &mut Actions) {
        match what {
            MemEvent::PageLost { vm, gfn } => {
                self.end(vm, StopReason::PageLost { gfn }, After::Crashed, actions);
            }
            MemEvent::Pressure { from, to, free } => {
                event(actions, Event::MemoryPressure { from, to, free });
            }
        }
    }

    pub(super) fn io_answer(
        &mut self,
        disk: DiskId,
        answer: &RootRequest,
        actions: &mut Actions,
    ) -> RootReply {
        let side = self.io.get_mut(disk.index());
        let Some(wait) = side.and_then(|side| side.waits.pop_front()) else {
            return RootReply::Refused;
        };
        match (wait, answer) {
            // A client that has gone meanwhile has no row.
            (IoWait::Client { .. }, RootRequest::IoRefused(_)) => {}
            (IoWait::Client { id, client }, RootRequest::IoClient(stats)) => {
                self.client_stats = *stats;
                push(actions, Action::Host(Output::DiskClient { id, client }));
            }
            (IoWait::Disk(id), RootRequest::IoDisk(stats)) => {
                self.disk_stats = *stats;
                push(actions, Action::Host(Output::Disk { id, disk }));
                let outcome = match self.next_disk(disk) {
                    Some(next) => self.host_disks(id, next, actions),
                    None => Some(Ok(())),
                };
                if let Some(outcome) = outcome {
                    done(actions, id, outcome);
                }
            }
            (wait, RootRequest::Applied) => self.apply(disk, wait, actions),
            (wait, RootRequest::IoRefused(error)) => {
                self.not_applied(disk, wait, io_refusal(disk, *error), actions);
            }
            (wait, _) => {
                self.not_applied(disk, wait, Refusal::Server(ServerId::Io(disk)), actions);
            }
        }
        RootReply::Done
    }

    fn next_disk(&self, disk: DiskId) -> Option<DiskId> {
        (disk.0 + 1 < self.disks).then(|| DiskId(disk.0 + 1))
    }

    /// The parts of a virtual disk before (or behind) the one that `client` is: client and disk of the machine.
    fn part_beside(&self, client: u16, is_behind: bool) -> Option<(u16, DiskId)> {
        let entry = self.clients.get(usize::from(client))?.as_ref()?;
        let part = if is_behind { entry.part.checked_add(1) } else { entry.part.checked_sub(1) }?;
        let beside = self.client_of(entry.vm, entry.disk, part)?;
        Some((beside, self.clients.get(usize::from(beside))?.as_ref()?.on))
    }

    /// What was asked of the io-sched-server of `disk` is now so: the next one is asked, or it is so everywhere.
    fn apply(&mut self, disk: DiskId, wait: IoWait, actions: &mut Actions) {
        let next = match wait {
            IoWait::Control { id, vm, disk, client, control } => {
                self.part_beside(client, true).map(|(client, on)| {
                    let wait = IoWait::Control { id, vm, disk, client, control };
                    (on, IoCommand::SetDisk { client, control }, wait)
                })
            }
            IoWait::Group { group, control, .. } => {
                let next = self.next_disk(disk);
                next.map(|on| (on, IoCommand::SetGroup { group, control }, wait))
            }
            IoWait::Vm { vm, control, .. } => {
                let next = self.next_disk(disk);
                next.map(|on| (on, IoCommand::SetVm { vm, control }, wait))
            }
            IoWait::Policy { policy, .. } => {
                self.next_disk(disk).map(|on| (on, IoCommand::SetPolicy(policy), wait))
            }
            IoWait::Swap { .. } | IoWait::Client { .. } | IoWait::Disk(_) | IoWait::Undo => None,
        };
        if let Some((on, command, wait)) = next {
            if let Some(Err(refusal)) = self.ask_io(on, command, wait, actions) {
                self.not_applied(on, wait, refusal, actions);
            }
            return;
        }
        match wait {
            IoWait::Control { vm, disk, control, .. } => {
                let disks = self.entry_mut(vm).map(|entry| &mut entry.config.disks);
                if let Some(disk) = disks.and_then(|disks| disks.get_mut(usize::from(disk))) {
                    disk.io = control;
                }
            }
            IoWait::Group { group, control, .. } => {
                if let Some(group) = self.groups.get_mut(usize::from(group)) {
                    group.io = control;
                }
            }
            IoWait::Vm { vm, control, .. } => {
                if let Some(entry) = self.entry_mut(vm) {
                    entry.config.io = Some(control);
                }
            }
            IoWait::Policy { policy, .. } => self.io_policy = policy,
            IoWait::Swap { control, .. } => self.swap.set_claim(control),
            IoWait::Client { .. } | IoWait::Disk(_) | IoWait::Undo => {}
        }
        if let Some(id) = wait.id() {
            done(actions, id, Ok(()));
        }
    }

    /// The io-sched-server of `disk` did not do it: those asked before take it back, and the host hears of it.
    pub(super) fn not_applied(
        &mut self,
        disk: DiskId,
        wait: IoWait,
        refusal: Refusal,
        actions: &mut Actions,
    ) {
        match wait {
            IoWait::Control { vm, disk, client, .. } => {
                let disks = self.entry(vm).map(|entry| &entry.config.disks);
                let old = disks.and_then(|disks| disks.get(usize::from(disk))).map(|disk| disk.io);
                let mut at = client;
                while let Some((client, on)) = self.part_beside(at, false) {
                    let control = old.unwrap_or_default();
                    let command = IoCommand::SetDisk { client, control };
                    let _ = self.ask_io(on, command, IoWait::Undo, actions);
                    at = client;
                }
            }
            IoWait::Group { group, .. } => {
                let old = self.groups.get(usize::from(group)).map(|group| group.io);
                let control = old.unwrap_or_default();
                self.undo_before(disk, &IoCommand::SetGroup { group, control }, actions);
            }
            IoWait::Vm { vm, .. } => {
                let old = self.entry(vm).and_then(|entry| entry.config.io);
                let control = old.unwrap_or_default();
                self.undo_before(disk, &IoCommand::SetVm { vm, control }, actions);
            }
            IoWait::Policy { .. } => {
                self.undo_before(disk, &IoCommand::SetPolicy(self.io_policy), actions);
            }
            IoWait::Swap { .. } | IoWait::Client { .. } | IoWait::Disk(_) | IoWait::Undo => {}
        }
        if let Some(id) = wait.id() {
            done(actions, id, Err(refusal));
        }
    }

    /// Has the servers of the disks before `disk` take a change back.
    fn undo_before(&mut self, disk: DiskId, command: &IoCommand, actions: &mut Actions) {
        for on in (0..disk.0).map(DiskId) {
            let _ = self.ask_io(on, command.clone(), IoWait::Undo, actions);
        }
    }

    pub(super) fn attached(&mut self, client: u16, actions: &mut Actions) -> RootReply {
        let Some(Some(entry)) = self.clients.get_mut(usize::from(client)) else {
            return RootReply::Refused;
        };
        if entry.state != ClientState::Attaching {
            return RootReply::Done; // after a restart, or while it is being detached again
        }
        entry.state = ClientState::Attached;
        let vm = entry.vm;
        if self.entry(vm).is_some_and(|entry| entry.phase == Phase::Attaching) {
            self.attach_next_disk(vm, actions);
        }
        RootReply::Done
    }

    pub(super) fn attach_failed(
        &mut self,
        client: u16,
        why: &Text,
        actions: &mut Actions,
    ) -> RootReply {
        let Some(Some(entry)) = self.clients.get(usize::from(client)) else {
            return RootReply::Refused;
        };
        let (vm, on) = (entry.vm, entry.on);
        self.note(ServerId::Io(on), why, actions);
        self.clients[usize::from(client)] = None;
        push(actions, Action::RemoveClient(client));
        self.fail_start(vm, Refusal::Missing, actions);
        self.continue_ending(vm, actions);
        RootReply::Done
    }

    pub(super) fn detached(&mut self, client: u16, actions: &mut Actions) -> RootReply {
        let Some(Some(entry)) = self.clients.get(usize::from(client)) else {
            return RootReply::Refused;
        };
        if entry.state != ClientState::Detaching {
            return RootReply::Refused;
        }
        let vm = entry.vm;
        self.clients[usize::from(client)] = None;
        push(actions, Action::RemoveClient(client));
        self.continue_ending(vm, actions);
        RootReply::Done
    }
}
