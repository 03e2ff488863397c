//! What servers say: they are ready, ask for commands, answer them, tell of events.

use super::{
    Action, Actions, After, ClientState, IoWait, MemWait, Output, Phase, Supervisor, done, event,
    io_refusal, mem_refusal, push, server_id,
};
use protocol::link::{Event, Refusal, ServerId, StopReason};
use protocol::mem::{MemEvent, MemReply};
use protocol::root::{Command, RootReply, RootRequest, Text, VmEvent};
use protocol::slots::{Client, SWAP_CLIENT};
use protocol::units::{Nanos, VmId};

impl Supervisor {
    /// A request of `client`; returns what to answer.
    pub fn request(
        &mut self,
        client: Client,
        request: &RootRequest,
        actions: &mut Actions,
    ) -> RootReply {
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
            (Client::Io, RootRequest::Attached { client: SWAP_CLIENT, sectors }) => {
                self.swap_attached(*sectors, actions);
                RootReply::Done
            }
            (Client::Io, RootRequest::AttachFailed { client: SWAP_CLIENT, why }) => {
                self.swap_failed(why, actions);
                RootReply::Done
            }
            (Client::Io, RootRequest::Detached { client: SWAP_CLIENT }) => {
                self.swap_detached(actions);
                RootReply::Done
            }
            (Client::Io, RootRequest::Attached { client, .. }) => self.attached(*client, actions),
            (Client::Io, RootRequest::AttachFailed { client, why }) => {
                self.attach_failed(*client, why, actions)
            }
            (Client::Io, RootRequest::Detached { client }) => self.detached(*client, actions),
            (
                Client::Io,
                RootRequest::Applied
                | RootRequest::IoRefused(_)
                | RootRequest::IoClient(_)
                | RootRequest::IoDisk(_),
            ) => self.io_answer(request, actions),
            _ => RootReply::Refused,
        }
    }

    pub(super) fn next_command(&mut self, client: Client) -> RootReply {
        let command = match client {
            Client::Mem => self.mem_commands.pop_front().map(Command::Mem),
            Client::Io => self.io_commands.pop_front().map(Command::Io),
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
            (MemWait::Controls { id, .. } | MemWait::Balloon(id), MemReply::Error(error)) => {
                done(actions, id, Err(mem_refusal(*error)));
            }
            (MemWait::Controls { vm, id, memory }, _) => {
                if let Some(entry) = self.entry_mut(vm) {
                    entry.config.memory = memory;
                }
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

    pub(super) fn io_answer(&mut self, answer: &RootRequest, actions: &mut Actions) -> RootReply {
        let Some(wait) = self.io_waits.pop_front() else { return RootReply::Refused };
        match (wait, answer) {
            // A client that has gone meanwhile has no row.
            (IoWait::Client { .. }, RootRequest::IoRefused(_)) => {}
            (IoWait::Client { id, client }, RootRequest::IoClient(stats)) => {
                self.client_stats = *stats;
                push(actions, Action::Host(Output::DiskClient { id, client }));
            }
            (IoWait::Disk(id), RootRequest::IoDisk(stats)) => {
                self.disk_stats = *stats;
                push(actions, Action::Host(Output::Disk(id)));
                done(actions, id, Ok(()));
            }
            (wait, RootRequest::Applied) => {
                let id = self.apply(wait);
                done(actions, id, Ok(()));
            }
            (wait, RootRequest::IoRefused(error)) => {
                done(actions, wait.id(), Err(io_refusal(*error)));
            }
            (wait, _) => done(actions, wait.id(), Err(Refusal::Server(ServerId::Io))),
        }
        RootReply::Done
    }

    /// What was asked of the io-sched-server is now so.
    pub(super) fn apply(&mut self, wait: IoWait) -> u32 {
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
            IoWait::Policy { policy, .. } => self.io_policy = policy,
            IoWait::Client { .. } | IoWait::Disk(_) => {}
        }
        wait.id()
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
        let vm = entry.vm;
        self.note(ServerId::Io, why, actions);
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
