//! Taking memory back without the guest: share first, then compress, then swap out; and unpacking what was compressed.

use protocol::mem::{PressureState, Refusal, access};
use protocol::units::{MAX_VMS, VmId};

use crate::mechanism::{Mechanism, Page};
use crate::page::{Entry, FRAME_BYTES, Frame, PageOp, PageState};
use crate::policy::large::Demotion;
use crate::server::{Fault, FaultKind, Server, Vm};
use crate::sharing::Scanned;
use crate::tier::{Freed, SCRATCH, compress, pack, unpack};

/// Random pages looked at for one victim.
const PICKS: u32 = 64;
/// Frames that emergency reclaim frees at once, so that not every fault pays for it.
const ROOM: u32 = 16;
/// Victims tried per frame wanted.
const TRIES: u32 = 8;

/// What became of a victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// Merged with an equal page: a frame is free.
    Merged,
    /// Compressed: on average more than half a frame is free.
    Compressed,
    /// On its way to the swap area: its frame is free when it is there.
    SwappingOut,
    /// It stays.
    Kept,
}

impl Server<'_> {
    /// Frames only copy-on-write breaks may use.
    pub const fn break_reserve(&self) -> u32 {
        self.background.break_reserve
    }

    /// Pages charged to a VM: its own frames, its part of shared ones, its quarters of the compressed pool.
    pub(crate) fn charge(&self, record: &Vm) -> u64 {
        let shared = record.count(PageState::Shared);
        let all: u64 = self.vms.iter().flatten().map(|vm| vm.count(PageState::Shared)).sum();
        let common = u64::from(self.share.shared());
        let spilling = u64::from(record.spilling);
        let compressed = record.count(PageState::Compressed) + spilling;
        let packed = u64::from(self.pool.frames());
        record.count(PageState::Private)
            + (record.count(PageState::InFlight) - spilling)
            + (shared * common).checked_div(all).unwrap_or(0)
            + (compressed * packed).div_ceil(u64::from(self.pool.pages()).max(1))
    }

    /// Memory that sharing saves a VM.
    pub(crate) fn saved(&self, record: &Vm) -> u64 {
        let shared = record.count(PageState::Shared);
        let all: u64 = self.vms.iter().flatten().map(|vm| vm.count(PageState::Shared)).sum();
        let common = u64::from(self.share.shared());
        record.count(PageState::Zero) + shared - (shared * common).checked_div(all).unwrap_or(0)
    }

    /// Pages of a VM that paging should take in the current state.
    pub(crate) fn to_page_out(&self, record: &Vm) -> u64 {
        let above = self.charge(record).saturating_sub(record.target);
        match self.pressure.state() {
            PressureState::High => self.above_limit(record),
            // Paging only where the balloon does not work.
            PressureState::Soft if record.has_working_balloon() => 0,
            _ => above,
        }
    }

    /// Pages above a VM's limit, which holds with memory to spare too, where its balloon does not see to it.
    fn above_limit(&self, record: &Vm) -> u64 {
        let limit = record.memory.controls.limit;
        if record.has_working_balloon() || limit >= record.memory.size {
            return 0;
        }
        // What is on its way out keeps its frame until it is there.
        let leaving = record.count(PageState::InFlight);
        self.charge(record).saturating_sub(limit.0 + leaving)
    }

    /// A random page of a VM that holds a frame of its own. A shared page whose other sharers are gone is one.
    pub(crate) fn pick(&mut self, vm: VmId) -> Option<u32> {
        let record = self.vms[vm.0 as usize].as_ref()?;
        let (base, size) = (record.base, record.memory.size.0 as u32);
        if record.count(PageState::Private) + record.count(PageState::Shared) == 0 {
            return None;
        }
        // Random draws first; with few candidates the next one after a random place.
        let mut random = self.random;
        let start = random.below(size);
        let drawn = (0..PICKS).map(|_| random.below(size)).find(|at| self.is_single(base + at));
        self.random = random;
        let index = drawn.or_else(|| {
            let mut all = (0..size).map(|step| (start + step) % size);
            all.find(|index| self.is_single(base + index))
        })?;
        let entry = self.entries[(base + index) as usize];
        if entry.state() == PageState::Shared
            && let Some(frame) = self.share.drop_reference(entry.value())
        {
            self.change(vm, index, PageOp::Unshare, frame.0);
            if entry.is_mapped() {
                let kept = &mut self.entries[(base + index) as usize];
                *kept = kept.mapped(false);
            }
        }
        Some(index)
    }

    fn is_single(&self, at: u32) -> bool {
        let entry = self.entries[at as usize];
        match entry.state() {
            PageState::Private => true,
            PageState::Shared => self.share.count(entry.value()) == 1,
            _ => false,
        }
    }

    /// Takes one page of a VM out of memory.
    pub fn reclaim_page(
        &mut self,
        vm: VmId,
        index: u32,
        mechanism: &mut impl Mechanism,
    ) -> Reclaimed {
        if self.scan_page(vm, index, mechanism) == Scanned::Merged {
            self.counters.merged_for_room += 1;
            return Reclaimed::Merged;
        }
        if self.compress(vm, index, mechanism) {
            return Reclaimed::Compressed;
        }
        if self.swap_out(vm, index, mechanism) {
            return Reclaimed::SwappingOut;
        }
        Reclaimed::Kept
    }

    /// Frees a few frames for `vm` at once, unless it is to wait. The victims are its own pages if it is above its target, otherwise those of
    /// whoever is furthest above.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoMemory`] if there is still not one frame more than the reserve: the caller waits.
    #[cold]
    pub(crate) fn make_room(
        &mut self,
        vm: VmId,
        mechanism: &mut impl Mechanism,
    ) -> Result<(), Refusal> {
        if self.is_held(vm) {
            return self.hold(vm);
        }
        let wanted = self.background.break_reserve + ROOM;
        for _ in 0..ROOM * TRIES {
            if self.ledger.free() >= wanted {
                break;
            }
            let victim = self.furthest_above(vm).unwrap_or(vm);
            // Whoever is above may hold nothing but shared pages.
            let picked = self.pick(victim).map(|index| (victim, index));
            let Some((victim, index)) = picked.or_else(|| Some((vm, self.pick(vm)?))) else {
                break;
            };
            self.reclaim_page(victim, index, mechanism);
        }
        if self.ledger.free() > self.background.break_reserve {
            return Ok(());
        }
        self.hold(vm)
    }

    /// Lets a VM wait until it is signalled.
    fn hold(&mut self, vm: VmId) -> Result<(), Refusal> {
        self.wait(vm);
        Err(Refusal::NoMemory)
    }

    /// The VM to take from: furthest above its target; `asking` if none is above.
    fn furthest_above(&self, asking: VmId) -> Option<VmId> {
        let above = |vm: VmId| -> u64 {
            self.vm(vm).map_or(0, |record| self.charge(record).saturating_sub(record.target))
        };
        let furthest = (0..MAX_VMS as u16).map(VmId).max_by_key(|vm| above(*vm))?;
        Some(if above(furthest) > 0 { furthest } else { asking })
    }

    /// Packs a private page into the compressed pool.
    fn compress(&mut self, vm: VmId, index: u32, mechanism: &mut impl Mechanism) -> bool {
        let Some(record) = self.vm(vm) else { return false };
        let entry = self.entries[(record.base + index) as usize];
        if entry.state() != PageState::Private {
            return false;
        }
        let frame = Frame(entry.value());
        self.unmap(vm, index, Demotion::Paging, mechanism);
        let mut page = [0; FRAME_BYTES];
        let mut packed = [0; SCRATCH];
        mechanism.load(frame, &mut page);
        let Some(length) = compress(&page, &mut packed) else { return false };
        let handle = match self.pool.place(length) {
            Some(handle) => handle,
            None => {
                let Some(new) = self.ledger.allocate_any() else { return false };
                match self.pool.place_in_new(length, new) {
                    Some(handle) => handle,
                    None => {
                        self.ledger.free_frame(new);
                        return false;
                    }
                }
            }
        };
        let (to, offset) = self.pool.locate(handle);
        mechanism.load(to, &mut page);
        pack(&mut page, offset, (vm.0 as u8, index), &packed[..length]);
        mechanism.store(to, &page);
        self.change(vm, index, PageOp::Compress, handle);
        self.ledger.free_frame(frame);
        self.counters.compressed += 1;
        true
    }

    pub(crate) fn free_compressed(&mut self, handle: u32) {
        if let Freed::Frame(frame) = self.pool.free(handle) {
            self.ledger.free_frame(frame);
        }
    }

    /// A frame for a page that comes back.
    pub(crate) fn frame_for_return(
        &mut self,
        page: Page,
        mechanism: &mut impl Mechanism,
    ) -> Result<Frame, Refusal> {
        if self.ledger.free() <= self.background.fill_floor {
            self.make_room(page.vm, mechanism)?;
        }
        let base = self.vm(page.vm).map_or(0, |record| record.base);
        self.allocate(page.vm, base, page.index).ok_or(Refusal::NoMemory)
    }

    /// The guest touches a compressed page.
    pub(crate) fn decompress(
        &mut self,
        page: Page,
        base: u32,
        access: u64,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        let frame = match self.frame_for_return(page, mechanism) {
            Ok(frame) => frame,
            Err(refusal) => return Fault::Refused(refusal),
        };
        let handle = self.entries[(base + page.index) as usize].value();
        if access & access::OVERWRITE == 0 {
            let (from, offset) = self.pool.locate(handle);
            let mut packed = [0; FRAME_BYTES];
            let mut bytes = [0; FRAME_BYTES];
            mechanism.load(from, &mut packed);
            if !unpack(&packed, offset, &mut bytes) {
                self.ledger.free_frame(frame);
                return Fault::Refused(Refusal::Lost);
            }
            mechanism.store(frame, &bytes);
        } else {
            mechanism.zero(frame);
        }
        self.free_compressed(handle);
        self.change(page.vm, page.index, PageOp::Decompress, frame.0);
        match self.map(page, frame, true, mechanism) {
            Ok(()) => {
                self.set_mapped(page, base, true, FaultKind::Decompress);
                Fault::Mapped
            }
            Err(refusal) => Fault::Refused(refusal),
        }
    }

    /// Moves a private page to a frame below 2 MiB block `limit`. False if it is not private, is there already, or there is no
    /// such frame.
    pub fn move_below(
        &mut self,
        vm: VmId,
        index: u32,
        limit: u32,
        mechanism: &mut impl Mechanism,
    ) -> bool {
        let Some(record) = self.vm(vm) else { return false };
        let (base, gfn) = (record.base, record.memory.gfn_of(index));
        let entry = self.entries[(base + index) as usize];
        let from = Frame(entry.value());
        if entry.state() != PageState::Private || from.block() < limit {
            return false;
        }
        let Some(to) = self.ledger.allocate_below(limit) else { return false };
        // Nobody may write between copy and switch.
        self.unmap(vm, index, Demotion::Moving, mechanism);
        mechanism.copy(from, to);
        let kept = if entry.is_ineligible() {
            Entry::new(PageState::Private, to.0).ineligible()
        } else {
            Entry::new(PageState::Private, to.0)
        };
        self.entries[(base + index) as usize] = kept;
        self.ledger.free_frame(from);
        if self.map(Page { vm, index, gfn }, to, true, mechanism).is_ok() {
            self.set_mapped(Page { vm, index, gfn }, base, true, FaultKind::Remap);
        }
        true
    }

    /// The frame behind a page that is in memory.
    pub fn resident_frame(&self, vm: VmId, index: u32) -> Option<Frame> {
        let entry = self.entry(vm, index)?;
        matches!(entry.state(), PageState::Private | PageState::Shared | PageState::Zero)
            .then(|| self.frame_of(entry))
    }

    /// The entry of a page, for experiments and tests.
    pub fn entry(&self, vm: VmId, index: u32) -> Option<Entry> {
        let record = self.vm(vm)?;
        self.entries.get((record.base + index) as usize).copied()
    }
}
