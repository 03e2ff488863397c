//! Old pages of the compressed pool move on to the swap area, so that there is room for new ones.
//!
//! Victims of reclaim are random. Those in use are soon touched and leave the pool; what is still there when the clock hand has gone round is not
//! in use, and the disk is the place for it. A page keeps its place in the pool until it is written: if it is not, nothing is lost, and a touch is
//! served from there. The disk gets the page as it was, not its compressed bytes.

use protocol::units::VmId;

use crate::mechanism::{Contents, Mechanism, Page};
use crate::page::{FRAME_BYTES, PageOp, PageState};
use crate::server::Server;
use crate::swap::{CLUSTER, WRITES_PAGES};
use crate::tier::{Owner, Transfer, owner, unpack};

/// Compressed pages on their way at once: half of what the ring takes, so that pages that do not compress get through.
const SPILLING_MAX: usize = WRITES_PAGES / 2;
/// Pool frames looked at in one call.
const LOOKS: usize = 64;

impl Server<'_> {
    /// Writes old pages of the pool to the swap area while it is nearly full: whole clusters, as the queue has room.
    pub(crate) fn write_back(&mut self, mechanism: &mut impl Mechanism) {
        let spilling: u32 = self.vms.iter().flatten().map(|vm| vm.spilling).sum();
        let room = SPILLING_MAX.saturating_sub(spilling as usize) / CLUSTER * CLUSTER;
        let mut started = 0;
        for _ in 0..LOOKS {
            if started >= room || !self.pool.is_nearly_full() {
                return;
            }
            let Some(at) = self.pool.next_old() else { return };
            match self.spill_frame(at, mechanism) {
                Some(pages) => started += pages,
                None => return,
            }
        }
    }

    /// Starts writing the pages of the pool's entry `at`; answers how many, or `None` if the queue or the swap area is full.
    pub(crate) fn spill_frame(
        &mut self,
        at: usize,
        mechanism: &mut impl Mechanism,
    ) -> Option<usize> {
        let Some(frame) = self.pool.frame(at) else { return Some(0) };
        let mut packed = [0; FRAME_BYTES];
        mechanism.load(frame, &mut packed);
        let mut started = 0;
        for handle in self.pool.handles(at) {
            let (_, offset) = self.pool.locate(handle);
            let page = owner(&packed, offset);
            // Fresh each time: a page is never seen beside another's bytes.
            let mut bytes = [0; FRAME_BYTES];
            if !self.may_spill(page, handle) || !unpack(&packed, offset, &mut bytes) {
                continue;
            }
            if !self.spill(page, handle, &bytes, mechanism) {
                return None;
            }
            started += 1;
        }
        Some(started)
    }

    /// Whether the page at `handle` is there and its VM has more than is guaranteed to it.
    fn may_spill(&self, (vm, index): Owner, handle: u32) -> bool {
        let vm = VmId(u16::from(vm));
        let entry = self.entry(vm, index);
        let is_there = entry
            .is_some_and(|entry| entry.state() == PageState::Compressed && entry.value() == handle);
        let is_above = |record| self.charge(record) > record.memory.controls.reservation.0;
        is_there && self.vm(vm).is_some_and(is_above)
    }

    /// Starts writing one page. False if the queue or the swap area is full.
    fn spill(
        &mut self,
        page: Owner,
        handle: u32,
        bytes: &[u8; FRAME_BYTES],
        mechanism: &mut impl Mechanism,
    ) -> bool {
        let Some(transfer) = self.free_transfer() else { return false };
        let Some(slot) = self.swap.take() else { return false };
        if !mechanism.swap_write(transfer, slot, Contents::Bytes(bytes)) {
            self.swap.free(slot);
            return false;
        }
        let (vm, index) = page;
        self.change(VmId(u16::from(vm)), index, PageOp::Spill, transfer);
        self.transfers[transfer as usize] = Some(Transfer {
            page: Some(page),
            frame: None,
            packed: Some(handle),
            slot,
            out: true,
            awaited: false,
        });
        if let Some(record) = &mut self.vms[usize::from(vm)] {
            record.spilling += 1;
        }
        self.counters.spilled += 1;
        true
    }

    /// Takes a compressed page from the transfer that writes it: whose it is, and where in the pool. `None` if transfer `at` is
    /// of another kind.
    pub(crate) fn leave_transfer(&mut self, at: u32) -> Option<(Owner, u32)> {
        let transfer = self.transfers.get_mut(at as usize)?.as_mut()?;
        let handle = transfer.packed.take()?;
        let page = transfer.page.take()?;
        if let Some(record) = &mut self.vms[usize::from(page.0)] {
            record.spilling -= 1;
        }
        Some((page, handle))
    }

    /// The guest touches a page on its way: if it is in the compressed pool it is compressed again, and what is written is
    /// nobody's. False if it is not.
    pub(crate) fn take_back(&mut self, page: Page, at: u32) -> bool {
        let Some((_, handle)) = self.leave_transfer(at) else { return false };
        self.change(page.vm, page.index, PageOp::SpillCancel, handle)
    }

    /// A compressed page was written to `slot`, or was not.
    pub(crate) fn spill_done(&mut self, (vm, index): Owner, handle: u32, slot: u32, ok: bool) {
        let vm = VmId(u16::from(vm));
        if ok {
            self.swap.written(slot);
            self.change(vm, index, PageOp::SwappedOut, slot);
            self.free_compressed(handle);
        } else {
            self.swap.write_failed(slot);
            self.change(vm, index, PageOp::SpillCancel, handle);
        }
    }
}

#[cfg(test)]
#[path = "spill_tests.rs"]
mod tests;
