//! Compaction: a wholly free block out of free frames that lie scattered.
//!
//! Kernel objects need memory of their own kind, in whole blocks. Once every block holds some page, free frames alone do not
//! give one, however many they are; the pages of the emptiest block move away then.

use protocol::units::{MAX_VMS, VmId};

use crate::mechanism::Mechanism;
use crate::page::{FRAMES_PER_BLOCK, Frame, PageState};
use crate::policy::large::Demotion;
use crate::server::Server;

impl Server<'_> {
    /// Moves the pages of the emptiest block elsewhere, so that it is wholly free; `in_hand` is a frame the caller goes on to use
    /// and does not move. False if there are not enough free frames, or no block can be emptied; what was moved stays valid.
    ///
    /// Looks at every page entry once: it is meant for the few times in a VM's life that its tables grow.
    #[cold]
    pub(crate) fn empty_a_block(
        &mut self,
        in_hand: Option<Frame>,
        mechanism: &mut impl Mechanism,
    ) -> bool {
        if self.ledger.free() < FRAMES_PER_BLOCK + self.background.break_reserve {
            return false;
        }
        // A page that is being read goes to the frame its request names.
        let arriving = |block: u32| {
            let reads = self.transfers.iter().flatten().filter(|transfer| !transfer.out);
            reads.filter_map(|read| read.frame).any(|frame| frame.block() == block)
        };
        let fixed = |block: u32| {
            [Some(self.zero), in_hand].into_iter().flatten().any(|frame| frame.block() == block)
        };
        let may = |block: u32| !fixed(block) && !arriving(block);
        let Some(block) = self.ledger.emptiest(may) else { return false };
        self.ledger.begin_leaving(block);
        for vm in (0..MAX_VMS as u16).map(VmId) {
            self.move_pages(vm, block, mechanism);
        }
        self.move_common(block, mechanism);
        self.ledger.end_leaving(block)
    }

    /// Copies a frame to one of another block; the old one is free then.
    fn move_frame(&mut self, from: Frame, mechanism: &mut impl Mechanism) -> Option<Frame> {
        let to = self.ledger.allocate_any()?;
        mechanism.copy(from, to);
        self.ledger.free_frame(from);
        self.counters.moved += 1;
        Some(to)
    }

    /// Moves a VM's own pages out of a block, and takes from it those that share a frame there.
    fn move_pages(&mut self, vm: VmId, block: u32, mechanism: &mut impl Mechanism) {
        let Some(record) = self.vm(vm) else { return };
        let (base, size) = (record.base, record.memory.size.0 as u32);
        for index in 0..size {
            let at = (base + index) as usize;
            let entry = self.entries[at];
            let frame = match entry.state() {
                PageState::Private => Frame(entry.value()),
                PageState::Shared => self.share.frame(entry.value()).unwrap_or(self.zero),
                _ => continue,
            };
            if frame.block() != block {
                continue;
            }
            self.unmap(vm, index, Demotion::Moving, mechanism);
            if entry.state() == PageState::Private
                && let Some(to) = self.move_frame(frame, mechanism)
            {
                self.entries[at] = self.entries[at].at(to.0);
            }
        }
    }

    /// Moves what several pages have in common, and what is on its way out. Nobody maps it.
    fn move_common(&mut self, block: u32, mechanism: &mut impl Mechanism) {
        for at in 0..self.share.capacity() {
            if let Some(from) = self.share.frame(at).filter(|frame| frame.block() == block)
                && let Some(to) = self.move_frame(from, mechanism)
            {
                self.share.set_frame(at, to);
            }
        }
        for at in 0..self.pool.entries() {
            if let Some(from) = self.pool.frame(at).filter(|frame| frame.block() == block)
                && let Some(to) = self.move_frame(from, mechanism)
            {
                self.pool.set_frame(at, to);
            }
        }
        for at in 0..self.transfers.len() {
            let frame = self.transfers[at].and_then(|transfer| transfer.frame);
            if let Some(from) = frame.filter(|frame| frame.block() == block)
                && let Some(to) = self.move_frame(from, mechanism)
                && let Some(transfer) = &mut self.transfers[at]
            {
                transfer.frame = Some(to);
            }
        }
    }
}
