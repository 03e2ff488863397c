//! What the host asks for.

use super::{
    Action, Actions, After, Artefacts, COMMANDS_MAX, ClientEntry, ClientState, Entry, IoWait,
    MemWait, Output, Phase, Supervisor, done, push,
};
use protocol::io::MAX_CLIENTS;
use protocol::link::{Refusal, Request, ServerId, Setting, StopReason, VmState};
use protocol::mem::{MemRequest, VmMemory};
use protocol::root::{IoCommand, VmmCommand};
use protocol::slots::{SWAP_CLIENT, SWAP_DISK};
use protocol::system::{Group, GroupMemoryChange, IoChange, MemoryChange, Vm, VmRule};
use protocol::units::{DiskId, MAX_VMS, VmId};

impl Supervisor {
    /// Request `id` of the host.
    pub fn host(
        &mut self,
        id: u32,
        request: Request,
        artefacts: &impl Artefacts,
        actions: &mut Actions,
    ) {
        let outcome = match request {
            Request::Ping => Some(Ok(())),
            Request::VmList => {
                for index in 0..MAX_VMS as u16 {
                    if self.entry(VmId(index)).is_some() {
                        push(actions, Action::Host(Output::Vm { id, vm: VmId(index) }));
                    }
                }
                Some(Ok(()))
            }
            Request::VmStart(vm) => self.host_start(id, vm, actions),
            Request::VmStop(vm) => self.host_stop(id, vm, actions),
            Request::VmPause(vm) => self.host_hold(id, vm, true, actions),
            Request::VmResume(vm) => self.host_hold(id, vm, false, actions),
            Request::VmRemove(vm) => Some(self.host_remove(vm)),
            Request::VmCreate(config) => Some(self.host_create(id, config, artefacts, actions)),
            Request::VmSet { vm, setting } => self.host_set(id, vm, setting, actions),
            Request::Stats => {
                push(actions, Action::Host(Output::Stats(id)));
                Some(Ok(()))
            }
            Request::Caps => {
                push(actions, Action::Host(Output::Caps(id)));
                Some(Ok(()))
            }
            Request::Explain(vm) => self.host_explain(id, vm, actions),
            Request::Kill(server) => Some(self.host_kill(server, actions)),
            Request::GroupSet { group, change } => {
                self.host_set_group(id, &group, &change, actions)
            }
            Request::GroupMemorySet { group, change } => {
                self.host_set_group_memory(id, &group, &change, actions)
            }
            Request::MemorySet(change) => self.host_set_memory(id, &change, actions),
            Request::IoPolicy(policy) => {
                let command = IoCommand::SetPolicy(policy);
                self.ask_io(DiskId(0), command, IoWait::Policy { id, policy }, actions)
            }
            Request::SwapIo(change) => self.host_set_swap(id, &change, actions),
            Request::Disks => self.host_disks(id, DiskId(0), actions),
            Request::Quit { code } => {
                done(actions, id, Ok(()));
                push(actions, Action::Exit(code));
                None
            }
        };
        if let Some(outcome) = outcome {
            done(actions, id, outcome);
        }
    }

    pub(super) fn wrong_state(&self, vm: VmId) -> Option<Result<(), Refusal>> {
        Some(Err(self.state(vm).map_or(Refusal::Unknown, Refusal::State)))
    }

    pub(super) fn host_start(
        &mut self,
        id: u32,
        vm: VmId,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        match self.entry_mut(vm) {
            Some(entry) if entry.phase == Phase::Stopped => {
                entry.waiter = Some(id);
                self.start(vm, actions);
                None
            }
            _ => self.wrong_state(vm),
        }
    }

    pub(super) fn host_stop(
        &mut self,
        id: u32,
        vm: VmId,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let Some(entry) = self.entry_mut(vm) else { return Some(Err(Refusal::Unknown)) };
        if entry.phase == Phase::Stopped {
            return self.wrong_state(vm);
        }
        if let Some(earlier) = entry.waiter.replace(id) {
            done(actions, earlier, Err(Refusal::State(VmState::Stopped)));
        }
        entry.refusal = None;
        self.end(vm, StopReason::Requested, After::Stay, actions);
        None
    }

    /// Pauses a VM, or lets it go on. The mem-server is told by this order, not by what the VM's own server reports.
    pub(super) fn host_hold(
        &mut self,
        id: u32,
        vm: VmId,
        is_paused: bool,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let (from, to, command) = if is_paused {
            (Phase::Running, Phase::Pausing, VmmCommand::Pause)
        } else {
            (Phase::Paused, Phase::Resuming, VmmCommand::Resume)
        };
        let has_room = self.has_room_for_mem();
        match self.entry_mut(vm) {
            Some(entry) if entry.phase == from && entry.waiter.is_none() => {
                if !has_room {
                    return Some(Err(Refusal::Full));
                }
                entry.waiter = Some(id);
                if !self.tell_vmm(vm, command, actions) {
                    self.entry_mut(vm)?.waiter = None;
                    return Some(Err(Refusal::Server(ServerId::Vmm(vm))));
                }
                self.tell_mem(MemRequest::SetPaused { vm, is_paused }, MemWait::Paused, actions);
                self.set_phase(vm, to, actions);
                None
            }
            _ => self.wrong_state(vm),
        }
    }

    pub(super) fn host_remove(&mut self, vm: VmId) -> Result<(), Refusal> {
        let state = self.state(vm).ok_or(Refusal::Unknown)?;
        if !matches!(state, VmState::Stopped | VmState::Crashed) {
            return Err(Refusal::State(state));
        }
        self.vms[usize::from(vm.0)] = None;
        Ok(())
    }

    pub(super) fn host_create(
        &mut self,
        id: u32,
        config: Vm,
        artefacts: &impl Artefacts,
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        config.check(self.groups.len(), self.disks).map_err(Refusal::Rule)?;
        if self.vms.iter().flatten().any(|entry| entry.config.name == config.name) {
            return Err(Refusal::Rule(VmRule::Name));
        }
        if !artefacts.has_all(&config) {
            return Err(Refusal::Missing);
        }
        let free = self.vms.iter().position(Option::is_none).ok_or(Refusal::Full)?;
        self.vms[free] = Some(Entry::new(config));
        push(actions, Action::Host(Output::Vm { id, vm: VmId(free as u16) }));
        Ok(())
    }

    pub(super) fn host_set(
        &mut self,
        id: u32,
        vm: VmId,
        setting: Setting,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let Some(entry) = self.entry_mut(vm) else { return Some(Err(Refusal::Unknown)) };
        if let Setting::Io { disk, change } = setting {
            return self.host_set_disk(id, vm, disk, &change, actions);
        }
        if let Setting::VmIo(change) = setting {
            return self.host_set_vm_io(id, vm, &change, actions);
        }
        let is_up = entry.is_admitted;
        let mut config = entry.config.clone();
        let memory = &mut config.memory;
        match setting {
            Setting::MemoryShares(shares) => memory.shares = shares,
            Setting::MemoryReservation(pages) => memory.reservation = pages,
            Setting::MemoryLimit(pages) => memory.limit = pages,
            Setting::MemoryTax(tax) => memory.tax = Some(tax),
            Setting::Balloon(target) => {
                if !is_up {
                    return self.wrong_state(vm);
                }
                let request = MemRequest::SetBalloon { vm, target };
                return self.ask_mem(request, MemWait::Balloon(id), actions);
            }
            Setting::Io { .. } | Setting::VmIo(_) => {}
        }
        if let Err(rule) = config.check(self.groups.len(), self.disks) {
            return Some(Err(Refusal::Rule(rule)));
        }
        let memory = config.memory;
        if !is_up {
            self.entry_mut(vm)?.config = config;
            return Some(Ok(()));
        }
        let wanted = VmMemory::configured(&memory, config.group, &config.balloon);
        let request = MemRequest::SetControls { vm, controls: wanted.controls };
        self.ask_mem(request, MemWait::Controls { vm, id, memory }, actions)
    }

    fn ask_mem(
        &mut self,
        request: MemRequest,
        wait: MemWait,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let is_told = self.tell_mem(request, wait, actions);
        (!is_told).then_some(Err(Refusal::Full))
    }

    pub(super) fn ask_io(
        &mut self,
        disk: DiskId,
        command: IoCommand,
        wait: IoWait,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let has_room = self.io.get(disk.index()).is_some_and(|side| !side.waits.is_full());
        if !has_room || !self.tell_io(disk, command, actions) {
            return Some(Err(Refusal::Full));
        }
        if let Some(side) = self.io.get_mut(disk.index()) {
            let _ = side.waits.push_back(wait);
        }
        None
    }

    pub(super) fn host_set_disk(
        &mut self,
        id: u32,
        vm: VmId,
        disk: u8,
        change: &IoChange,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let attached = self.client_of(vm, disk, 0);
        let place = self.entry_mut(vm)?.config.disks.get_mut(usize::from(disk));
        let Some(place) = place else { return Some(Err(Refusal::Unknown)) };
        let control = change.applied(&place.io);
        if let Err(rule) = control.check() {
            return Some(Err(Refusal::Rule(rule)));
        }
        let Some(client) = attached else {
            place.io = control;
            return Some(Ok(()));
        };
        let on = place.on;
        let wait = IoWait::Control { id, vm, disk, client, control };
        self.ask_io(on, IoCommand::SetDisk { client, control }, wait, actions)
    }

    /// Changes what all disks of a VM have together.
    fn host_set_vm_io(
        &mut self,
        id: u32,
        vm: VmId,
        change: &IoChange,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let is_up = self.client_of(vm, 0, 0).is_some();
        let config = &mut self.entry_mut(vm)?.config;
        let old = config.io;
        if old.is_none() && config.disks.len() <= 1 {
            // One disk is all of its disks.
            return self.host_set_disk(id, vm, 0, change, actions);
        }
        let control = change.applied(&old.unwrap_or_default());
        if let Err(rule) = control.check() {
            return Some(Err(Refusal::Rule(rule)));
        }
        if !is_up {
            config.io = Some(control);
            return Some(Ok(()));
        }
        if old.is_none() {
            // Its disks are not in a group of the VM's own: that is made when it starts with a claim.
            return self.wrong_state(vm);
        }
        let wait = IoWait::Vm { id, vm, control };
        self.ask_io(DiskId(0), IoCommand::SetVm { vm, control }, wait, actions)
    }

    /// The group of that name, and its number.
    fn group_named(&self, name: &str) -> Option<(u8, &Group)> {
        (0..).zip(&self.groups).find(|(_, group)| group.name == *name)
    }

    pub(super) fn host_set_group(
        &mut self,
        id: u32,
        name: &str,
        change: &IoChange,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let Some((group, settings)) = self.group_named(name) else {
            return Some(Err(Refusal::Unknown));
        };
        let control = change.applied(&settings.io);
        if let Err(rule) = control.check() {
            return Some(Err(Refusal::Rule(rule)));
        }
        let wait = IoWait::Group { id, group, control };
        self.ask_io(DiskId(0), IoCommand::SetGroup { group, control }, wait, actions)
    }

    fn host_set_swap(
        &mut self,
        id: u32,
        change: &IoChange,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        if self.swap.served().is_none() {
            return Some(Err(Refusal::Unknown));
        }
        let control = change.applied(&self.swap.claim());
        if let Err(rule) = control.check() {
            return Some(Err(Refusal::Rule(rule)));
        }
        let command = IoCommand::SetDisk { client: SWAP_CLIENT, control };
        self.ask_io(SWAP_DISK, command, IoWait::Swap { id, control }, actions)
    }

    pub(super) fn host_set_group_memory(
        &mut self,
        id: u32,
        name: &str,
        change: &GroupMemoryChange,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let Some((group, settings)) = self.group_named(name) else {
            return Some(Err(Refusal::Unknown));
        };
        let claim = change.applied(&settings.memory);
        if let Err(rule) = claim.check() {
            return Some(Err(Refusal::Rule(rule)));
        }
        let wait = MemWait::Group { id, group, claim };
        self.ask_mem(MemRequest::SetGroup { group, claim }, wait, actions)
    }

    pub(super) fn host_set_memory(
        &mut self,
        id: u32,
        change: &MemoryChange,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let controls = change.applied(&self.memory);
        if let Err(rule) = controls.check() {
            return Some(Err(Refusal::Rule(rule)));
        }
        let wait = MemWait::Machine { id, controls };
        self.ask_mem(MemRequest::SetMachine(controls), wait, actions)
    }

    /// Asks the server of `on` for its figures; those of the next disk follow when it has answered.
    pub(super) fn host_disks(
        &mut self,
        id: u32,
        on: DiskId,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        let side = self.io.get(on.index())?;
        let room = COMMANDS_MAX - side.commands.len().max(side.waits.len());
        if room <= MAX_CLIENTS {
            return Some(Err(Refusal::Full));
        }
        for client in 0..MAX_CLIENTS as u16 {
            let is_attached =
                |entry: &ClientEntry| entry.state == ClientState::Attached && entry.on == on;
            let is_swap = client == SWAP_CLIENT && on == SWAP_DISK && self.swap.served().is_some();
            if is_swap || self.clients[usize::from(client)].as_ref().is_some_and(is_attached) {
                let wait = IoWait::Client { id, client };
                let _ = self.ask_io(on, IoCommand::ClientStats { client }, wait, actions);
            }
        }
        self.ask_io(on, IoCommand::DiskStats, IoWait::Disk(id), actions)
    }

    pub(super) fn host_explain(
        &mut self,
        id: u32,
        vm: VmId,
        actions: &mut Actions,
    ) -> Option<Result<(), Refusal>> {
        if self.entry(vm).is_none_or(|entry| !entry.is_admitted) {
            return self.wrong_state(vm);
        }
        let wait = MemWait::Explain { vm, id };
        self.ask_mem(MemRequest::Explain { vm }, wait, actions)
    }

    pub(super) fn host_kill(
        &mut self,
        server: ServerId,
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        match server {
            ServerId::Root => return Err(Refusal::Unsupported),
            ServerId::Vmm(vm) => match self.state(vm) {
                None => return Err(Refusal::Unknown),
                Some(state @ (VmState::Stopped | VmState::Crashed)) => {
                    return Err(Refusal::State(state));
                }
                Some(_) => {}
            },
            ServerId::Io(disk) if disk.0 >= self.disks => return Err(Refusal::Unknown),
            ServerId::Mem | ServerId::Io(_) => {}
        }
        push(actions, Action::Kill(server));
        Ok(())
    }
}
