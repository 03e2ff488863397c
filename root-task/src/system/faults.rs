//! Servers that fault, and those that are started again.

use super::{
    Action, Actions, After, ClientState, IoWait, MemWait, RESTART_WINDOW, Supervisor, done, event,
    push, server_id,
};
use protocol::io::MAX_CLIENTS;
use protocol::link::{Event, Refusal, ServerId, StopReason};
use protocol::root::{FaultReport, IoCommand};
use protocol::slots::{Client, SWAP_DISK};
use protocol::units::{DiskId, MAX_VMS, Nanos, VmId};

impl Supervisor {
    /// A server faulted at `now` and stands still.
    pub fn fault(&mut self, client: Client, fault: FaultReport, now: Nanos, actions: &mut Actions) {
        let server = server_id(client);
        let FaultReport { label, ip, address, .. } = fault;
        event(actions, Event::ServerFault { server, label, ip, address });
        match client {
            Client::Vmm(vm) => self.end(vm, StopReason::ServerFault, After::Crashed, actions),
            Client::Io(disk) if self.may_restart(now) => self.io_gone(disk, now, actions),
            Client::Mem if self.may_restart(now) => {
                self.mem_faulted_at = Some(now);
                self.mem_restarts += 1;
                self.mem_commands.clear();
                let waits = core::mem::take(&mut self.mem_waits);
                for entry in self.vms.iter_mut().flatten() {
                    entry.is_admitted = false;
                }
                for wait in &waits {
                    self.mem_gone(*wait, actions);
                }
                for index in 0..MAX_VMS as u16 {
                    self.end(VmId(index), StopReason::Memory, After::Crashed, actions);
                }
                push(actions, Action::RestartMem);
                self.swap_mem_gone(actions);
            }
            Client::Io(disk) => {
                for vm in (0..MAX_VMS as u16).map(VmId) {
                    if self.clients_of(vm).any(|(_, on)| on == disk) {
                        self.end(vm, StopReason::ServerFault, After::Crashed, actions);
                    }
                }
            }
            Client::Mem => {
                for index in 0..MAX_VMS as u16 {
                    self.end(VmId(index), StopReason::ServerFault, After::Crashed, actions);
                }
            }
        }
    }

    /// The io-sched-server of `disk` is made anew and hears of its clients again.
    fn io_gone(&mut self, disk: DiskId, now: Nanos, actions: &mut Actions) {
        let Some(side) = self.io.get_mut(disk.index()) else { return };
        side.faulted_at = Some(now);
        side.restarts += 1;
        side.commands.clear();
        let mut waits = core::mem::take(&mut side.waits);
        push(actions, Action::RestartIo(disk));
        while let Some(wait) = waits.pop_front() {
            // Rows without an end: the wait for the disk's row ends that answer.
            if !matches!(wait, IoWait::Client { .. }) {
                self.not_applied(disk, wait, Refusal::Server(ServerId::Io(disk)), actions);
            }
        }
        if disk == SWAP_DISK {
            self.swap_io_gone(actions);
        }
        for index in 0..MAX_CLIENTS {
            let Some(client) = self.clients[index].filter(|client| client.on == disk) else {
                continue;
            };
            let is_leaving = client.state == ClientState::Detaching;
            if is_leaving {
                // When the new server answers it has reset the device: nothing touches the ring any more.
                let _ = self.tell_io(disk, IoCommand::Detach { client: index as u16 }, actions);
            } else if client.ring_paddr != 0 {
                self.queue_attach(index as u16, actions);
            }
        }
    }

    pub(super) fn mem_gone(&mut self, wait: MemWait, actions: &mut Actions) {
        let refusal = Refusal::Server(ServerId::Mem);
        match wait {
            MemWait::Create(vm) => self.fail_start(vm, refusal, actions),
            MemWait::Destroy(vm) => self.ended(vm, actions),
            // Told again when the ring is there again.
            MemWait::Swap => {}
            // The new server starts without VMs.
            MemWait::Paused => {}
            MemWait::Controls { id, .. }
            | MemWait::Balloon(id)
            | MemWait::Group { id, .. }
            | MemWait::Machine { id, .. }
            | MemWait::Explain { id, .. } => {
                done(actions, id, Err(refusal));
            }
        }
    }

    pub(super) fn may_restart(&mut self, now: Nanos) -> bool {
        let limit = now.0.saturating_sub(RESTART_WINDOW.0);
        while self.restarts.front().is_some_and(|at| at.0 < limit) {
            let _ = self.restarts.pop_front();
        }
        self.restarts.push_back(now).is_ok()
    }

    /// A shared server entered its receive loop at `now`.
    pub fn serving(&mut self, client: Client, now: Nanos, actions: &mut Actions) {
        let faulted_at = match client {
            Client::Mem => self.mem_faulted_at.take(),
            Client::Io(disk) => {
                self.io.get_mut(disk.index()).and_then(|side| side.faulted_at.take())
            }
            Client::Vmm(_) => None,
        };
        if let Some(at) = faulted_at {
            let downtime = Nanos(now.0.saturating_sub(at.0));
            event(actions, Event::ServerRestarted { server: server_id(client), downtime });
        }
        let waiting = match client {
            Client::Mem => !self.mem_commands.is_empty(),
            Client::Io(disk) => {
                self.io.get(disk.index()).is_some_and(|side| !side.commands.is_empty())
            }
            Client::Vmm(_) => false,
        };
        if waiting {
            push(actions, Action::Signal(client));
        }
    }
}
