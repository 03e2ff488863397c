//! Touches: what each state of a page needs until the access goes on.

use protocol::mem::{Refusal, access};
use protocol::units::{Gfn, VmId};

use crate::mechanism::{Mechanism, MechanismError, Page};
use crate::page::{Frame, PageOp, PageState};
use crate::server::{Fault, FaultKind, Server};

impl Server<'_> {
    /// The hot path: backs guest frame `gfn` for an access.
    #[inline]
    pub fn fault_in(
        &mut self,
        vm: VmId,
        gfn: Gfn,
        access: u64,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        let Some(Some(record)) = self.vms.get(vm.0 as usize) else {
            return Fault::Refused(Refusal::NotMemory);
        };
        let Some(index) = record.memory.index_of(gfn) else {
            return Fault::Refused(Refusal::NotMemory);
        };
        let base = record.base;
        let page = Page { vm, index, gfn };
        let entry = self.entries[(base + index) as usize];
        match entry.state() {
            PageState::Absent => self.fill(page, base, mechanism),
            _ => self.fault_in_slow(page, base, access, mechanism),
        }
    }

    /// First touch.
    #[inline]
    fn fill(&mut self, page: Page, base: u32, mechanism: &mut impl Mechanism) -> Fault {
        if self.ledger.free() <= self.background.fill_floor
            && let Err(refusal) = self.make_room(page.vm, mechanism)
        {
            return Fault::Refused(refusal);
        }
        let Some(frame) = self.allocate(page.vm, base, page.index) else {
            return Fault::Refused(Refusal::NoMemory);
        };
        mechanism.zero(frame);
        if let Err(error) = self.map(page, frame, true, mechanism) {
            self.ledger.free_frame(frame);
            return Fault::Refused(error);
        }
        self.change(page.vm, page.index, PageOp::Fill, frame.0);
        self.set_mapped(page, base, true, FaultKind::Fill);
        Fault::Mapped
    }

    pub(crate) fn set_mapped(&mut self, page: Page, base: u32, writable: bool, kind: FaultKind) {
        let entry = &mut self.entries[(base + page.index) as usize];
        *entry = entry.mapped(writable);
        if let Some(record) = &mut self.vms[page.vm.0 as usize] {
            record.faults[kind as usize] += 1;
        }
    }

    /// Maps a page, giving kernel object memory as it is asked for.
    #[inline]
    pub(crate) fn map(
        &mut self,
        page: Page,
        frame: Frame,
        writable: bool,
        mechanism: &mut impl Mechanism,
    ) -> Result<(), Refusal> {
        match mechanism.map(page, frame, writable) {
            Ok(()) => Ok(()),
            Err(error) => self.map_again(page, frame, writable, error, mechanism),
        }
    }

    #[cold]
    fn map_again(
        &mut self,
        page: Page,
        frame: Frame,
        writable: bool,
        mut error: MechanismError,
        mechanism: &mut impl Mechanism,
    ) -> Result<(), Refusal> {
        loop {
            match error {
                MechanismError::NeedBlock if self.give_block(Some(frame), mechanism) => {}
                MechanismError::Unknown if self.open(page.vm, mechanism).is_ok() => {}
                _ => return Err(Refusal::NoMemory),
            }
            match mechanism.map(page, frame, writable) {
                Ok(()) => return Ok(()),
                // Opened already and still unknown: the page is beyond the fixed tables.
                Err(MechanismError::Unknown) => return Err(Refusal::NotMemory),
                Err(again) => error = again,
            }
        }
    }

    fn fault_in_slow(
        &mut self,
        page: Page,
        base: u32,
        access: u64,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        let entry = self.entries[(base + page.index) as usize];
        let write = access & access::WRITE != 0;
        match entry.state() {
            PageState::Absent => self.fill(page, base, mechanism),
            PageState::Ballooned => {
                // The guest touches what its driver gave up: the balloon pops for this page.
                self.change(page.vm, page.index, PageOp::Pop, 0);
                if let Some(record) = &mut self.vms[page.vm.0 as usize] {
                    record.faults[FaultKind::Pop as usize] += 1;
                }
                self.fill(page, base, mechanism)
            }
            PageState::Private => {
                let frame = Frame(entry.value());
                if entry.is_writable() || entry.is_mapped() && !write {
                    // Another processor of the VM was first.
                    return Fault::Mapped;
                }
                if entry.has_capability() && !entry.is_mapped() {
                    self.map_around(page, base, mechanism);
                }
                let entry = self.entries[(base + page.index) as usize];
                let done = if entry.is_writable() {
                    Ok(())
                } else if entry.has_capability() {
                    mechanism.protect(page, true).map_err(|_| Refusal::NoMemory)
                } else {
                    self.map(page, frame, true, mechanism)
                };
                self.remapped(page, base, true, done)
            }
            PageState::Zero | PageState::Shared if write => {
                let start = mechanism.ticks();
                let fault = self.break_share(page, base, mechanism);
                let ticks = mechanism.ticks().wrapping_sub(start);
                let counters = &mut self.counters;
                let (count, sum) = match entry.state() {
                    PageState::Zero => (&mut counters.zero_breaks, &mut counters.zero_break_ticks),
                    _ => (&mut counters.breaks, &mut counters.break_ticks),
                };
                *count += 1;
                *sum += ticks;
                fault
            }
            PageState::Zero | PageState::Shared => {
                if entry.is_mapped() {
                    return Fault::Mapped;
                }
                let frame = self.frame_of(entry);
                let done = self.map(page, frame, false, mechanism);
                self.remapped(page, base, false, done)
            }
            PageState::Compressed => {
                let start = mechanism.ticks();
                let fault = self.decompress(page, base, access, mechanism);
                if fault == Fault::Mapped {
                    self.counters.decompressed += 1;
                    self.counters.decompress_ticks += mechanism.ticks().wrapping_sub(start);
                }
                fault
            }
            PageState::Swapped if access & access::OVERWRITE != 0 => {
                // What is on the disk will not be read.
                self.drop_contents(entry);
                self.change(page.vm, page.index, PageOp::Discard, 0);
                self.fill(page, base, mechanism)
            }
            PageState::Swapped => self.swap_in(page, mechanism),
            PageState::InFlight if self.take_back(page, entry.value()) => {
                self.fault_in_slow(page, base, access, mechanism)
            }
            PageState::InFlight => self.touch_in_flight(page, base, mechanism),
        }
    }

    /// A page that was in memory is mapped again, if `done` says so: a sample counts as touched.
    #[inline]
    fn remapped(
        &mut self,
        page: Page,
        base: u32,
        writable: bool,
        done: Result<(), Refusal>,
    ) -> Fault {
        if let Err(refusal) = done {
            return Fault::Refused(refusal);
        }
        if self.entries[(base + page.index) as usize].is_sampled()
            && let Some(record) = &mut self.vms[page.vm.0 as usize]
        {
            record.averages.touch(1);
        }
        self.set_mapped(page, base, writable, FaultKind::Remap);
        Fault::Mapped
    }

    /// The vmm-server touched its window at guest frame `gfn`.
    pub fn window_fault(
        &mut self,
        vm: VmId,
        gfn: Gfn,
        write: bool,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        let access = if write { access::WRITE } else { 0 };
        let fault = self.fault_in(vm, gfn, access, mechanism);
        if fault != Fault::Mapped {
            return fault;
        }
        let Some(Some(record)) = self.vms.get_mut(vm.0 as usize) else {
            return Fault::Refused(Refusal::NotMemory);
        };
        let Some(index) = record.memory.index_of(gfn) else {
            return Fault::Refused(Refusal::NotMemory);
        };
        record.faults[FaultKind::Window as usize] += 1;
        let entry = self.entries[(record.base + index) as usize];
        let page = Page { vm, index, gfn };
        let frame = self.frame_of(entry);
        loop {
            match mechanism.map_window(page, frame, entry.is_writable()) {
                Ok(()) => return Fault::Mapped,
                Err(MechanismError::NeedBlock) if self.give_block(Some(frame), mechanism) => {}
                Err(_) => return Fault::Refused(Refusal::NoMemory),
            }
        }
    }
}
