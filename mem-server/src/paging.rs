//! Pages on their way to the swap area and back.

use protocol::mem::Refusal;
use protocol::units::{Gfn, VmId};

use crate::mechanism::{Contents, Mechanism, Page};
use crate::page::{Frame, PageOp, PageState};
use crate::policy::large::Demotion;
use crate::server::{Fault, FaultKind, Server};
use crate::tier::Transfer;

/// Who waits for a page that was read from the swap area, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Whose page.
    pub vm: VmId,
    /// Which.
    pub gfn: Gfn,
    /// The fault can be tried again; otherwise the page is lost.
    pub ok: bool,
}

impl Server<'_> {
    pub(crate) fn free_transfer(&self) -> Option<u32> {
        self.transfers.iter().position(Option::is_none).map(|at| at as u32)
    }

    /// Starts writing a private page to the swap area.
    pub(crate) fn swap_out(
        &mut self,
        vm: VmId,
        index: u32,
        mechanism: &mut impl Mechanism,
    ) -> bool {
        let Some(record) = self.vm(vm) else { return false };
        let entry = self.entries[(record.base + index) as usize];
        if entry.state() != PageState::Private {
            return false;
        }
        let Some(transfer) = self.free_transfer() else { return false };
        let Some(slot) = self.swap.take() else { return false };
        let frame = Frame(entry.value());
        self.unmap(vm, index, Demotion::Paging, mechanism);
        if !mechanism.swap_write(transfer, slot, Contents::Frame(frame)) {
            self.swap.free(slot);
            return false;
        }
        self.change(vm, index, PageOp::SwapOut, transfer);
        self.transfers[transfer as usize] = Some(Transfer {
            page: Some((vm.0 as u8, index)),
            frame: Some(frame),
            packed: None,
            slot,
            out: true,
            awaited: false,
        });
        self.moving += 1;
        self.counters.swapped_out += 1;
        true
    }

    /// The guest touches a page on the swap area.
    pub(crate) fn swap_in(&mut self, page: Page, mechanism: &mut impl Mechanism) -> Fault {
        let Some(transfer) = self.free_transfer() else {
            return Fault::Refused(Refusal::NoMemory);
        };
        let frame = match self.frame_for_return(page, mechanism) {
            Ok(frame) => frame,
            Err(refusal) => return Fault::Refused(refusal),
        };
        // Making room may have used the transfer.
        let transfer = if self.transfers[transfer as usize].is_none() {
            Some(transfer)
        } else {
            self.free_transfer()
        };
        let base = self.vm(page.vm).map_or(0, |record| record.base);
        let slot = self.entries[(base + page.index) as usize].value();
        let started = transfer.filter(|transfer| mechanism.swap_read(*transfer, slot, frame));
        let Some(transfer) = started else {
            self.ledger.free_frame(frame);
            return Fault::Refused(Refusal::NoMemory);
        };
        self.change(page.vm, page.index, PageOp::SwapIn, transfer);
        self.transfers[transfer as usize] = Some(Transfer {
            page: Some((page.vm.0 as u8, page.index)),
            frame: Some(frame),
            packed: None,
            slot,
            out: false,
            awaited: true,
        });
        self.moving += 1;
        self.counters.swapped_in += 1;
        if let Some(record) = &mut self.vms[page.vm.0 as usize] {
            record.faults[FaultKind::SwapIn as usize] += 1;
        }
        Fault::Pending
    }

    /// The guest touches a page that is on its way and not in the compressed pool: out, and it is taken back at once; in, and it
    /// waits.
    pub(crate) fn touch_in_flight(
        &mut self,
        page: Page,
        base: u32,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        let at = self.entries[(base + page.index) as usize].value() as usize;
        let Some(transfer) = &mut self.transfers[at] else { return Fault::Refused(Refusal::Lost) };
        if !transfer.out {
            transfer.awaited = true;
            return Fault::Pending;
        }
        let Some(frame) = transfer.frame.take() else { return Fault::Refused(Refusal::Lost) };
        transfer.page = None;
        self.moving -= 1;
        self.change(page.vm, page.index, PageOp::SwapCancel, frame.0);
        match self.map(page, frame, true, mechanism) {
            Ok(()) => {
                self.set_mapped(page, base, true, FaultKind::Remap);
                Fault::Mapped
            }
            Err(refusal) => Fault::Refused(refusal),
        }
    }

    /// The page of transfer `at` is forgotten; the device may still use the frame.
    pub(crate) fn orphan(&mut self, at: u32) {
        if let Some((_, handle)) = self.leave_transfer(at) {
            self.free_compressed(handle);
        } else if let Some(transfer) = &mut self.transfers[at as usize] {
            transfer.page = None;
        }
    }

    /// The device is done with transfer `at`. Answers who can try again.
    pub fn swap_done(&mut self, at: u32, ok: bool) -> Option<Arrived> {
        let spilled = self.leave_transfer(at);
        let transfer = self.transfers.get_mut(at as usize)?.take()?;
        self.moving -= u32::from(transfer.frame.is_some());
        if !ok {
            self.counters.swap_errors += 1;
        }
        if let Some(((vm, index), handle)) = spilled {
            self.spill_done((vm, index), handle, transfer.slot, ok);
            return None;
        }
        let Some((vm, index)) = transfer.page else {
            // Taken back or forgotten meanwhile: neither slot nor frame is needed.
            if transfer.out && !ok {
                self.swap.write_failed(transfer.slot);
            } else {
                self.swap.free(transfer.slot);
            }
            if let Some(frame) = transfer.frame {
                self.ledger.free_frame(frame);
            }
            return None;
        };
        let vm = VmId(u16::from(vm));
        let frame = transfer.frame?;
        let gfn = self.vm(vm)?.memory.gfn_of(index);
        match (transfer.out, ok) {
            (true, true) => {
                self.swap.written(transfer.slot);
                self.change(vm, index, PageOp::SwappedOut, transfer.slot);
                self.ledger.free_frame(frame);
                None
            }
            (true, false) => {
                // The page is still there.
                self.swap.write_failed(transfer.slot);
                self.change(vm, index, PageOp::SwapCancel, frame.0);
                None
            }
            (false, true) => {
                self.change(vm, index, PageOp::SwappedIn, frame.0);
                self.swap.free(transfer.slot);
                transfer.awaited.then_some(Arrived { vm, gfn, ok: true })
            }
            (false, false) => {
                // Whoever has the page gives the slot back when he ends: it must not be another's then.
                self.swap.condemn(transfer.slot);
                self.change(vm, index, PageOp::SwapInFailed, transfer.slot);
                self.ledger.free_frame(frame);
                transfer.awaited.then_some(Arrived { vm, gfn, ok: false })
            }
        }
    }
}
