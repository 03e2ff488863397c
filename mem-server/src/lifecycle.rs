//! VMs come, change their controls and go.

use protocol::mem::{Controls, GuestStats, MemError, TargetBound, Trigger, VmMemory};
use protocol::system::GroupMemory;
use protocol::units::{MAX_VMS, Pages, VmId};

use crate::admission::{self, Claim, Supply};
use crate::background::Tokens;
use crate::decisions::Told;
use crate::mechanism::{Mechanism, MechanismError};
use crate::page::{Entry, FRAMES_PER_BLOCK, PageState};
use crate::policy::balloon::Controller;
use crate::policy::estimator::Averages;
use crate::policy::large::Region;
use crate::random::Walk;
use crate::server::{FAULT_KINDS, Samples, Server, Vm};

impl Server<'_> {
    /// What may be promised: the reserve for copy-on-write breaks at its largest is nobody's, or a promise could not be kept beside it.
    fn supply(&self) -> Supply {
        let kept = u64::from(self.own) + self.most_reserve();
        Supply { memory: self.total().saturating_sub(kept), swap: u64::from(self.swap.slots()) }
    }

    /// Admits a VM and keeps memory for its tables; they are made by [`Self::open`].
    ///
    /// # Errors
    ///
    /// [`MemError`] with the numbers; nothing changed.
    pub fn admit(
        &mut self,
        vm: VmId,
        memory: VmMemory,
        mechanism: &mut impl Mechanism,
    ) -> Result<(), MemError> {
        match self.vms.get(vm.0 as usize) {
            Some(None) => {}
            _ => return Err(MemError::Identity),
        }
        admission::check_size(&memory, self.entries.len() as u64)?;
        admission::check_controls(memory.size, &memory.controls)?;
        let claim = Claim {
            reservation: memory.controls.reservation.0,
            limit: memory.controls.limit.0,
            overhead: mechanism.overhead(&memory),
        };
        let beyond = self.beyond(vm, memory.group, claim.reservation);
        admission::admit(self.supply(), self.claims(vm).chain(beyond), claim)?;
        let base = self
            .find_entries(memory.size.0)
            .map_err(|free| MemError::TooManyPages { size: memory.size, free: Pages(free) })?;
        let mut counts = [0; PageState::ALL.len()];
        counts[PageState::Absent as usize] = memory.size.0 as u32;
        self.vms[vm.0 as usize] = Some(Vm {
            memory,
            claim,
            base,
            open: false,
            large: 0,
            counts,
            spilling: 0,
            faults: [0; FAULT_KINDS],
            balloon_ready: false,
            balloon_target: 0,
            balloon_refused: 0,
            guest: GuestStats::default(),
            balloon_fixed: None,
            controller: Controller::new(),
            averages: Averages::new(),
            samples: Samples::new(),
            is_paused: false,
            has_rested: false,
            target: memory.controls.limit.0,
            bound: TargetBound::Limit,
            untaxed: memory.controls.limit.0,
            told: Told::expecting(memory.controls.limit.0),
            blocked: false,
            scan_tokens: Tokens::default(),
            walk: Walk::default(),
            scanned: 0,
            merged: 0,
        });
        self.background.trigger(Trigger::Added);
        let range = base as usize..base as usize + memory.size.0 as usize;
        self.entries[range].fill(Entry::ABSENT);
        let first = (base / FRAMES_PER_BLOCK) as usize;
        self.regions[first..first + memory.size.0 as usize / FRAMES_PER_BLOCK as usize]
            .fill(Region::NEW);
        Ok(())
    }

    /// Claims of all VMs but one.
    fn claims(&self, but: VmId) -> impl Iterator<Item = Claim> {
        let others = self.vms.iter().enumerate().filter(move |(at, _)| *at != but.0 as usize);
        others.filter_map(|(_, vm)| vm.as_ref()).map(|vm| vm.claim)
    }

    /// What each group reserves beyond the reservations of its VMs, of which `vm`, in `group`, has `reservation`.
    fn beyond(&self, vm: VmId, group: Option<u8>, reservation: u64) -> impl Iterator<Item = Claim> {
        (0_u8..).zip(&self.groups).map(move |(index, claim)| {
            let own = if group == Some(index) { reservation } else { 0 };
            self.group_claim(index, claim, vm, own)
        })
    }

    /// What group `index` with `claim` reserves beyond `own` and the reservations of its VMs but `but`.
    fn group_claim(&self, index: u8, claim: &GroupMemory, but: VmId, own: u64) -> Claim {
        let others = self.vms.iter().enumerate().filter(|(at, _)| *at != but.0 as usize);
        let members = others.filter_map(|(_, vm)| vm.as_ref());
        let members = members.filter(|vm| vm.memory.group == Some(index));
        let reserved = members.map(|vm| vm.claim.reservation).fold(own, u64::saturating_add);
        let reservation = claim.reservation.0.saturating_sub(reserved);
        Claim { reservation, ..Claim::default() }
    }

    /// Changes what the VMs of a group have together.
    ///
    /// # Errors
    ///
    /// [`MemError`] with the numbers; nothing changed.
    pub fn set_group(&mut self, group: u8, claim: GroupMemory) -> Result<(), MemError> {
        if usize::from(group) >= self.groups.len() || claim.check().is_err() {
            return Err(MemError::BadControls);
        }
        let nobody = VmId(MAX_VMS as u16);
        let wanted = self.group_claim(group, &claim, nobody, 0);
        let rest = (0_u8..).zip(&self.groups).filter(|(index, _)| *index != group);
        let rest = rest.map(|(index, claim)| self.group_claim(index, claim, nobody, 0));
        admission::admit(self.supply(), self.claims(nobody).chain(rest), wanted)?;
        self.groups[usize::from(group)] = claim;
        self.background.trigger(Trigger::Controls);
        Ok(())
    }

    /// First fit among the entries in use, aligned to 2 MiB of guest memory; or how many there are in the largest gap.
    fn find_entries(&self, pages: u64) -> Result<u32, u64> {
        let (mut base, mut largest) = (0u64, 0);
        loop {
            // What is in use from `base` on, if anything is.
            let next = self.vms.iter().flatten().filter(|vm| u64::from(vm.base) >= base);
            let next = next.min_by_key(|vm| vm.base);
            let end = next.map_or(self.entries.len() as u64, |vm| u64::from(vm.base));
            largest = largest.max(end - base);
            if end - base >= pages {
                return u32::try_from(base).map_err(|_| largest);
            }
            base = end + next.ok_or(largest)?.memory.size.0;
        }
    }

    /// Makes an admitted VM's nested tables, once its capabilities are in place.
    ///
    /// # Errors
    ///
    /// [`MemError::Identity`], [`MemError::NoBlock`] or [`MemError::Objects`]; the VM stays admitted.
    pub fn open(&mut self, vm: VmId, mechanism: &mut impl Mechanism) -> Result<(), MemError> {
        let record = self.vms.get(vm.0 as usize).and_then(Option::as_ref);
        let record = record.ok_or(MemError::Identity)?;
        if record.open {
            return Ok(());
        }
        let memory = record.memory;
        loop {
            // What the VM can come to need is kept for it now: later there might be free frames and no free block.
            match mechanism.keep(vm, &memory).and_then(|()| mechanism.open(vm, &memory)) {
                Ok(()) => break,
                Err(MechanismError::NeedBlock) => {
                    if !self.give_block(None, mechanism) {
                        return Err(MemError::NoBlock {
                            needed: Pages(u64::from(FRAMES_PER_BLOCK)),
                            free: Pages(self.free()),
                        });
                    }
                }
                Err(MechanismError::Kernel(error)) => {
                    return Err(MemError::Objects { error });
                }
                Err(MechanismError::Unknown) => return Err(MemError::Identity),
            }
        }
        if let Some(record) = &mut self.vms[vm.0 as usize] {
            record.open = true;
        }
        Ok(())
    }

    /// Changes a VM's controls.
    ///
    /// # Errors
    ///
    /// [`MemError`] with the numbers; nothing changed.
    pub fn set_controls(&mut self, vm: VmId, controls: Controls) -> Result<(), MemError> {
        let record = self.vms.get(vm.0 as usize).and_then(Option::as_ref);
        let record = record.ok_or(MemError::Identity)?;
        admission::check_controls(record.memory.size, &controls)?;
        let claim = Claim {
            reservation: controls.reservation.0,
            limit: controls.limit.0,
            overhead: record.claim.overhead,
        };
        let group = self.vm(vm).and_then(|record| record.memory.group);
        let beyond = self.beyond(vm, group, claim.reservation);
        admission::admit(self.supply(), self.claims(vm).chain(beyond), claim)?;
        if let Some(record) = &mut self.vms[vm.0 as usize] {
            record.memory.controls = controls;
            record.claim = claim;
        }
        self.background.trigger(Trigger::Controls);
        Ok(())
    }

    /// Takes everything of a VM back; its vmm-server must not run any more. Answers the pages freed.
    pub fn release_vm(&mut self, vm: VmId, mechanism: &mut impl Mechanism) -> u64 {
        let before = self.free();
        let Some(slot) = self.vms.get_mut(vm.0 as usize) else { return 0 };
        let Some(record) = slot.as_ref() else { return 0 };
        let size = record.memory.size.0 as u32;
        // All mappings go at once, so no page is unmapped singly.
        mechanism.close(vm);
        for index in 0..size {
            self.forget(vm, index);
        }
        self.vms[vm.0 as usize] = None;
        self.background.trigger(Trigger::Removed);
        while let Some(block) = mechanism.take_block() {
            self.ledger.release_block(block);
        }
        self.free().saturating_sub(before)
    }

    /// Admits a VM and makes its nested tables; whichever fails, nothing is left.
    pub(crate) fn create(
        &mut self,
        vm: VmId,
        memory: VmMemory,
        mechanism: &mut impl Mechanism,
    ) -> Result<Pages, MemError> {
        self.admit(vm, memory, mechanism)?;
        if let Err(error) = self.open(vm, mechanism) {
            self.release_vm(vm, mechanism);
            return Err(error);
        }
        let claim = self.vm(vm).map_or(Claim::default(), |record| record.claim);
        Ok(Pages(claim.reservation + claim.overhead))
    }
}
