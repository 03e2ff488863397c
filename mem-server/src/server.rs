//! The server: admitted VMs, their pages, and what each message does to them.

use protocol::mem::{Controls, GfnRange, GuestStats, MemError, MemReply, MemRequest, Refusal};
use protocol::mem::{
    MachineStats, StateCounts, TargetBound, Trigger, VmInfo, VmMemory, VmStats, access,
    release_reason,
};
use protocol::units::{Gfn, MAX_VMS, Nanos, Pages, VmId};

use crate::admission::{self, Claim, Supply};
use crate::background::{Background, Tokens};
use crate::decisions::Told;
use crate::ledger::{Block, Ledger};
use crate::mechanism::{Mechanism, MechanismError, Page};
use crate::page::{Entry, FRAMES_PER_BLOCK, Frame, PageOp, PageState, next};
use crate::policy::balloon::Controller;
use crate::policy::estimator::{Averages, ONE, Source};
use crate::policy::large::{Demotion, Region};
use crate::policy::pressure::{Pressure, Thresholds};
use crate::random::{Random, Walk};
use crate::share::{Record, ShareTable};
use crate::tier::{Pool, PoolFrame, SwapMap, TRANSFERS, Transfer};

/// Memory of the server's tables, given at start.
pub struct Tables<'a> {
    /// One per 2 MiB block of machine memory.
    pub blocks: &'a mut [Block],
    /// Guest page entries; VMs get parts of it as they come.
    pub entries: &'a mut [Entry],
    /// One per 512 entries.
    pub regions: &'a mut [Region],
    /// Records of the sharing table.
    pub records: &'a mut [Record],
    /// Its chain heads.
    pub buckets: &'a mut [u32],
    /// Frames the compressed pool can hold.
    pub pool: &'a mut [PoolFrame],
    /// One bit per slot of the swap area.
    pub swap: &'a mut [u64],
}

/// What the server is told at start; all of it can be the default.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Idle memory tax of VMs without one of their own, in permille.
    pub tax: u16,
    /// Pages the scanner may look at per second, in all.
    pub scan_rate: u32,
    /// Pages the scanner may look at per second in one VM.
    pub scan_rate_vm: u32,
    /// What feeds the working set estimates.
    pub source: Source,
    /// Length of a sampling period.
    pub sample_period: Nanos,
    /// Time between rebalances without other reason.
    pub rebalance_period: Nanos,
    /// Time between two looks at the balloons.
    pub balloon_period: Nanos,
    /// Slots of the swap area.
    pub swap_slots: u32,
    /// Frames only copy-on-write breaks may use, in permille of all.
    pub break_reserve: u32,
    /// Regions that can be are mapped by large pages.
    pub large_pages: bool,
    /// Secret of this boot: seeds the page hash and every random choice.
    pub secret: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            tax: 750,
            scan_rate: 0,
            scan_rate_vm: u32::MAX,
            source: Source::Sampling,
            sample_period: Nanos::from_secs(30),
            rebalance_period: Nanos::from_secs(15),
            balloon_period: Nanos::from_secs(1),
            swap_slots: 0,
            break_reserve: 5,
            large_pages: false,
            secret: 0,
        }
    }
}

/// Kinds of faults counted per VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum FaultKind {
    /// First touch.
    Fill,
    /// Write to a shared page.
    Break,
    /// Touch of a compressed page.
    Decompress,
    /// Touch of a page on the swap disk.
    SwapIn,
    /// Touch of a ballooned page.
    Pop,
    /// The page was there, only not mapped (sampling, races).
    Remap,
    /// The vmm-server touched its window.
    Window,
}

/// Number of [`FaultKind`]s.
pub const FAULT_KINDS: usize = 7;

/// One admitted VM.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Memory as configured, controls as they are now.
    pub memory: VmMemory,
    /// What admission keeps for it.
    pub claim: Claim,
    /// First entry.
    pub(crate) base: u32,
    /// Nested tables are made.
    pub(crate) open: bool,
    /// Its regions that large pages map.
    pub large: u32,
    /// Pages by state.
    pub(crate) counts: [u32; PageState::ALL.len()],
    /// Faults by kind.
    pub faults: [u64; FAULT_KINDS],
    /// The balloon driver works.
    pub balloon_ready: bool,
    /// What the balloon should hold.
    pub balloon_target: u64,
    /// Last statistics of the guest.
    pub guest: GuestStats,
    /// What the user fixed the balloon at.
    pub balloon_fixed: Option<u64>,
    pub(crate) controller: Controller,
    /// Working set estimate.
    pub averages: Averages,
    pub(crate) samples: Samples,
    /// Pages the allocation policy wants it to have.
    pub target: u64,
    pub(crate) bound: TargetBound,
    pub(crate) untaxed: u64,
    pub(crate) told: Told,
    /// Waits because memory is low and it is above its target.
    pub blocked: bool,
    pub(crate) scan_tokens: Tokens,
    /// Where the scanner is.
    pub(crate) walk: Walk,
    /// Pages scanned and merged.
    pub scanned: u64,
    /// Of the scanned, merged.
    pub merged: u64,
}

impl Vm {
    /// Pages in a state.
    pub const fn count(&self, state: PageState) -> u64 {
        self.counts[state as usize] as u64
    }

    /// Pages the guest can use without a fetch: "granted".
    pub const fn granted(&self) -> u64 {
        self.count(PageState::Private) + self.count(PageState::Shared) + self.count(PageState::Zero)
    }
}

/// Pages watched in the current sampling period; with harvest, the first ones of the regions watched.
pub(crate) type Samples = heapless::Vec<u32, 128>;

/// What becomes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The page is mapped for the access asked.
    Mapped,
    /// The page is being read from the swap area: [`Server::swap_done`] says when to try again.
    Pending,
    /// Refused.
    Refused(Refusal),
}

/// What became of released or deflated pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Pages that changed state.
    pub done: u64,
    /// Pages that were not the guest's to give.
    pub refused: u64,
}

/// The mem-server without its kernel calls.
pub struct Server<'a> {
    pub(crate) ledger: Ledger<'a>,
    pub(crate) entries: &'a mut [Entry],
    pub(crate) regions: &'a mut [Region],
    pub(crate) vms: [Option<Vm>; MAX_VMS],
    /// The machine's frame of zeros.
    pub(crate) zero: Frame,
    /// Frames the server took for itself one by one (the frame of zeros).
    pub(crate) own: u32,
    pub(crate) share: ShareTable<'a>,
    pub(crate) pool: Pool<'a>,
    pub(crate) swap: SwapMap<'a>,
    pub(crate) transfers: [Option<Transfer>; TRANSFERS],
    /// Frames held by transfers.
    pub(crate) moving: u32,
    pub(crate) policy: Policy,
    pub(crate) random: Random,
    pub(crate) pressure: Pressure,
    pub(crate) background: Background,
    /// Counted since start.
    pub counters: Counters,
}

/// Counted since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages the scanner looked at.
    pub scanned: u64,
    /// Pages merged with another page.
    pub merged: u64,
    /// Pages found to be zeros and merged with the frame of zeros.
    pub merged_zero: u64,
    /// Same hash, other contents.
    pub false_matches: u64,
    /// Pages merged instead of being compressed or swapped out.
    pub merged_for_room: u64,
    /// Pages compressed.
    pub compressed: u64,
    /// Writes to the swap area started.
    pub swapped_out: u64,
    /// Reads from the swap area started.
    pub swapped_in: u64,
    /// Transfers that failed.
    pub swap_errors: u64,
    /// Pages copied to other frames so that a block became wholly free.
    pub moved: u64,
    /// Regions mapped by a large page.
    pub promotions: u64,
    /// Large pages taken apart, by [`Demotion`].
    pub demotions: [u64; Demotion::ALL.len()],
    /// Pages copied into their places so that a region can be large.
    pub gathered: u64,
    /// Rebalances.
    pub rebalances: u64,
    /// Ticks spent on scanned pages that were not merged.
    pub scan_ticks: u64,
    /// Ticks spent on those that were.
    pub merge_ticks: u64,
    /// Writes to shared pages that got a copy or their frame back.
    pub breaks: u64,
    /// Ticks spent on them.
    pub break_ticks: u64,
    /// Writes to pages of zeros that got a frame.
    pub zero_breaks: u64,
    /// Ticks spent on them.
    pub zero_break_ticks: u64,
    /// Touches of compressed pages that were unpacked.
    pub decompressed: u64,
    /// Ticks spent on them, making room included.
    pub decompress_ticks: u64,
}

impl<'a> Server<'a> {
    /// A server over wholly free blocks. `None` if there is not one frame.
    pub fn new(tables: Tables<'a>, policy: Policy, mechanism: &mut impl Mechanism) -> Option<Self> {
        let mut ledger = Ledger::new(tables.blocks);
        let zero = ledger.allocate_any()?;
        mechanism.zero(zero);
        let total = u64::from(ledger.total());
        Some(Self {
            ledger,
            entries: tables.entries,
            regions: tables.regions,
            vms: [const { None }; MAX_VMS],
            zero,
            own: 1,
            share: ShareTable::new(tables.records, tables.buckets),
            pool: Pool::new(tables.pool),
            swap: SwapMap::new(tables.swap, policy.swap_slots),
            transfers: [None; TRANSFERS],
            moving: 0,
            policy,
            random: Random::new(policy.secret),
            pressure: Pressure::new(Thresholds::of(total)),
            background: Background::default(),
            counters: Counters::default(),
        })
    }

    /// Takes a block out of management, for the edge's own tables.
    pub fn hold_block(&mut self) -> Option<u32> {
        self.ledger.hold_block()
    }

    /// A VM's figures.
    pub fn vm(&self, vm: VmId) -> Option<&Vm> {
        self.vms.get(vm.0 as usize)?.as_ref()
    }

    /// Free frames.
    pub const fn free(&self) -> u64 {
        self.ledger.free() as u64
    }

    /// Bytes of the states of admitted VMs' pages.
    pub fn state_bytes(&self) -> u64 {
        let pages: u64 = self.vms.iter().flatten().map(|vm| vm.memory.size.0).sum();
        let regions = pages.div_ceil(u64::from(FRAMES_PER_BLOCK));
        pages * size_of::<Entry>() as u64 + regions * size_of::<Region>() as u64
    }

    /// Bytes of the sharing table.
    pub const fn sharing_bytes(&self) -> usize {
        self.share.bytes()
    }

    /// All frames.
    pub fn total(&self) -> u64 {
        u64::from(self.ledger.total())
    }

    /// Frames in blocks held for kernel objects.
    pub const fn held(&self) -> u64 {
        self.ledger.held() as u64
    }

    fn supply(&self) -> Supply {
        Supply { memory: self.total() - u64::from(self.own), swap: u64::from(self.swap.slots()) }
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
        admission::admit(self.supply(), self.claims(vm), claim)?;
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
            faults: [0; FAULT_KINDS],
            balloon_ready: false,
            balloon_target: 0,
            guest: GuestStats::default(),
            balloon_fixed: None,
            controller: Controller::new(),
            averages: Averages::new(),
            samples: Samples::new(),
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
        admission::admit(self.supply(), self.claims(vm), claim)?;
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

    /// The guest was reset: every page becomes absent.
    pub fn reset(&mut self, vm: VmId, mechanism: &mut impl Mechanism) -> u64 {
        let before = self.free();
        let Some(record) = self.vm(vm) else { return 0 };
        for index in 0..record.memory.size.0 as u32 {
            self.unmap(vm, index, Demotion::Reset, mechanism);
            self.forget(vm, index);
        }
        if let Some(record) = &mut self.vms[vm.0 as usize] {
            record.balloon_ready = false;
            record.balloon_target = 0;
            record.controller.reset();
            record.samples.clear();
            record.averages = Averages::new();
            record.guest = GuestStats::default();
        }
        self.free().saturating_sub(before)
    }

    /// Gives a block for kernel objects; `in_hand` is a frame that must stay where it is.
    fn give_block(&mut self, in_hand: Option<Frame>, mechanism: &mut impl Mechanism) -> bool {
        if self.ledger.empty_blocks() == 0 && !self.empty_a_block(in_hand, mechanism) {
            return false;
        }
        let Some(block) = self.ledger.hold_block() else { return false };
        if mechanism.give_block(block).is_err() {
            self.ledger.release_block(block);
            return false;
        }
        true
    }

    /// Carries one operation through the transition table: the only place that changes a page's state. Answers
    /// false, and changes nothing, if the table forbids it.
    pub(crate) fn change(&mut self, vm: VmId, index: u32, op: PageOp, value: u32) -> bool {
        let Some(record) = self.vms[vm.0 as usize].as_mut() else { return false };
        let entry = &mut self.entries[(record.base + index) as usize];
        let from = entry.state();
        let Some(to) = next(from, op) else { return false };
        record.counts[from as usize] -= 1;
        record.counts[to as usize] += 1;
        *entry = Entry::new(to, value);
        true
    }

    /// Drops a page's contents, whatever its state; it is not mapped any more.
    fn forget(&mut self, vm: VmId, index: u32) {
        let Some(record) = self.vms[vm.0 as usize].as_ref() else { return };
        let entry = self.entries[(record.base + index) as usize];
        self.drop_contents(entry);
        self.change(vm, index, PageOp::Forget, 0);
    }

    /// Frees what an entry refers to.
    pub(crate) fn drop_contents(&mut self, entry: Entry) {
        match entry.state() {
            PageState::Private => {
                self.ledger.free_frame(Frame(entry.value()));
            }
            PageState::Shared => {
                if let Some(frame) = self.share.drop_reference(entry.value()) {
                    self.ledger.free_frame(frame);
                }
            }
            PageState::Compressed => self.free_compressed(entry.value()),
            PageState::Swapped => self.swap.free(entry.value()),
            PageState::InFlight => self.orphan(entry.value()),
            PageState::Absent | PageState::Zero | PageState::Ballooned => {}
        }
    }

    /// Takes a page from the guest and from its vmm-server's window; if a large page maps it, that is taken apart and
    /// `reason` is why.
    pub(crate) fn unmap(
        &mut self,
        vm: VmId,
        index: u32,
        reason: Demotion,
        mechanism: &mut impl Mechanism,
    ) {
        self.demote(vm, index, reason, mechanism);
        let Some(record) = self.vms[vm.0 as usize].as_ref() else { return };
        let entry = &mut self.entries[(record.base + index) as usize];
        if entry.has_capability() {
            *entry = entry.unmapped();
            let gfn = record.memory.gfn_of(index);
            mechanism.unmap(Page { vm, index, gfn });
        }
    }

    /// A frame for a page, from its region's reservation if it can be.
    #[inline]
    pub(crate) fn allocate(&mut self, vm: VmId, base: u32, index: u32) -> Option<Frame> {
        let region = index / FRAMES_PER_BLOCK;
        let known = &mut self.regions[(base / FRAMES_PER_BLOCK + region) as usize];
        let (frame, block) =
            self.ledger.allocate(vm.0 as u8, region, index % FRAMES_PER_BLOCK, known.block)?;
        known.block = block;
        Some(frame)
    }

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
                match done {
                    Ok(()) => {
                        if entry.is_sampled()
                            && let Some(record) = &mut self.vms[page.vm.0 as usize]
                        {
                            record.averages.touch(1);
                        }
                        self.set_mapped(page, base, true, FaultKind::Remap);
                        Fault::Mapped
                    }
                    Err(refusal) => Fault::Refused(refusal),
                }
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
                match self.map(page, frame, false, mechanism) {
                    Ok(()) => {
                        if entry.is_sampled()
                            && let Some(record) = &mut self.vms[page.vm.0 as usize]
                        {
                            record.averages.touch(1);
                        }
                        self.set_mapped(page, base, false, FaultKind::Remap);
                        Fault::Mapped
                    }
                    Err(refusal) => Fault::Refused(refusal),
                }
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
            PageState::InFlight => self.touch_in_flight(page, base, mechanism),
        }
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

    /// The frame behind a page that is in memory.
    pub(crate) fn frame_of(&self, entry: Entry) -> Frame {
        match entry.state() {
            PageState::Private => Frame(entry.value()),
            PageState::Shared => self.share.frame(entry.value()).unwrap_or(self.zero),
            _ => self.zero,
        }
    }

    /// The guest gave pages up: to its balloon, or as free.
    pub fn release(
        &mut self,
        vm: VmId,
        reason: u64,
        ranges: impl Iterator<Item = GfnRange>,
        mechanism: &mut impl Mechanism,
    ) -> Released {
        let (op, demotion) = match reason {
            release_reason::BALLOON => (PageOp::Balloon, Demotion::Balloon),
            release_reason::FREE_REPORT => (PageOp::Discard, Demotion::Report),
            _ => return Released::default(),
        };
        self.for_ranges(vm, ranges, |server, index| {
            let Some(record) = server.vm(vm) else { return false };
            let entry = server.entries[(record.base + index) as usize];
            if next(entry.state(), op).is_none() {
                return false;
            }
            server.unmap(vm, index, demotion, mechanism);
            server.drop_contents(entry);
            server.change(vm, index, op, 0)
        })
    }

    /// The guest takes pages back from its balloon.
    pub fn deflate(&mut self, vm: VmId, ranges: impl Iterator<Item = GfnRange>) -> Released {
        self.for_ranges(vm, ranges, |server, index| server.change(vm, index, PageOp::Deflate, 0))
    }

    fn for_ranges(
        &mut self,
        vm: VmId,
        ranges: impl Iterator<Item = GfnRange>,
        mut each: impl FnMut(&mut Self, u32) -> bool,
    ) -> Released {
        let mut released = Released::default();
        for range in ranges {
            let Some(record) = self.vm(vm) else { return released };
            let memory = record.memory;
            // A hostile count may be 2^24: past the end of memory nothing can match any more.
            let count = range.count.min(memory.size.0);
            released.refused += range.count - count;
            for step in 0..count {
                let gfn = range.first.0.checked_add(step).map(Gfn);
                let index = gfn.and_then(|gfn| memory.index_of(gfn));
                let done = index.is_some_and(|index| each(self, index));
                *(if done { &mut released.done } else { &mut released.refused }) += 1;
            }
        }
        released
    }

    /// Answers a control call of the vmm-server of `vm`.
    pub fn control(
        &mut self,
        vm: VmId,
        request: MemRequest,
        mechanism: &mut impl Mechanism,
    ) -> MemReply {
        let Some(Some(record)) = self.vms.get_mut(vm.0 as usize) else {
            return MemReply::Error(MemError::NoSuchVm);
        };
        match request {
            MemRequest::Info => MemReply::Info(self.info(vm)),
            MemRequest::BalloonReady { ready } => {
                record.balloon_ready = ready;
                MemReply::Done
            }
            MemRequest::GuestStats(stats) => {
                record.guest = stats;
                MemReply::Info(self.info(vm))
            }
            MemRequest::Reset => {
                let pages = Pages(self.reset(vm, mechanism));
                MemReply::Freed { pages, free: Pages(self.free()) }
            }
            _ => MemReply::Error(MemError::NotAllowed),
        }
    }

    /// Carries out an order of the root-task.
    pub fn order(&mut self, request: MemRequest, mechanism: &mut impl Mechanism) -> MemReply {
        match request {
            MemRequest::CreateVm { vm, memory } => match self.create(vm, memory, mechanism) {
                Ok(reserved) => MemReply::Created { reserved },
                Err(error) => MemReply::Error(error),
            },
            MemRequest::DestroyVm { vm } => {
                if self.vm(vm).is_none() {
                    return MemReply::Error(MemError::NoSuchVm);
                }
                let pages = Pages(self.release_vm(vm, mechanism));
                MemReply::Freed { pages, free: Pages(self.free()) }
            }
            MemRequest::SetControls { vm, controls } => match self.set_controls(vm, controls) {
                Ok(()) => MemReply::Done,
                Err(error) => MemReply::Error(error),
            },
            MemRequest::SetBalloon { vm, target } => {
                let Some(Some(record)) = self.vms.get_mut(vm.0 as usize) else {
                    return MemReply::Error(MemError::NoSuchVm);
                };
                let size = record.memory.size.0;
                record.balloon_fixed = target.map(|pages| pages.0.min(size));
                record.balloon_target = record.balloon_fixed.unwrap_or(0);
                mechanism.signal_vmm(vm);
                MemReply::Done
            }
            MemRequest::SetTax { permille } if permille <= admission::TAX_MAX => {
                self.policy.tax = permille;
                self.background.trigger(Trigger::Controls);
                MemReply::Done
            }
            MemRequest::SetTax { .. } => MemReply::Error(MemError::BadControls),
            MemRequest::SetSwap { pages } => {
                self.swap.resize(u32::try_from(pages.0).unwrap_or(u32::MAX));
                MemReply::Done
            }
            MemRequest::Explain { vm } => {
                self.explain(vm).map_or(MemReply::Error(MemError::NoSuchVm), MemReply::Explanation)
            }
            MemRequest::Machine => MemReply::Machine(self.machine_stats()),
            MemRequest::Stats { vm } => {
                self.vm_stats(vm).map_or(MemReply::Error(MemError::NoSuchVm), MemReply::Stats)
            }
            _ => MemReply::Error(MemError::NotAllowed),
        }
    }

    /// Admits a VM and makes its nested tables; whichever fails, nothing is left.
    fn create(
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

    /// Machine-wide figures.
    pub fn machine_stats(&self) -> MachineStats {
        let private: u64 = self.vms.iter().flatten().map(|vm| vm.count(PageState::Private)).sum();
        let claims = self.vms.iter().flatten().map(|vm| vm.claim.reservation + vm.claim.overhead);
        let count = |state| -> u64 { self.vms.iter().flatten().map(|vm| vm.count(state)).sum() };
        let (shared, zero) = (count(PageState::Shared), count(PageState::Zero));
        let common = u64::from(self.share.shared());
        MachineStats {
            total: self.total(),
            free: self.free(),
            guest: private + common,
            compressed_pool: u64::from(self.pool.frames()),
            overhead: self.held() + u64::from(self.own),
            cow_reserve: u64::from(self.break_reserve()),
            shared: shared + zero,
            common: common + u64::from(zero > 0),
            saved: shared.saturating_sub(common) + zero,
            zero_saved: zero,
            swap_total: u64::from(self.swap.slots()),
            swap_used: u64::from(self.swap.used()),
            reserved: claims.sum(),
            state: self.pressure.state(),
            tax: self.policy.tax,
            scanned: self.counters.scanned,
            merged: self.counters.merged + self.counters.merged_zero,
            false_matches: self.counters.false_matches,
        }
    }

    /// Figures of one VM.
    pub fn vm_stats(&self, vm: VmId) -> Option<VmStats> {
        let record = self.vm(vm)?;
        let count = |state| record.count(state);
        let granted = record.granted();
        Some(VmStats {
            size: record.memory.size.0,
            granted,
            consumed: self.charge(record),
            touched: granted * u64::from(record.averages.touched())
                / (record.samples.len() as u64).max(1),
            active: record.averages.active_pages(granted),
            average_permille: record
                .averages
                .all()
                .map(|average| (u64::from(average) * 1000 / u64::from(ONE)) as u16),
            saved: self.saved(record),
            target: record.target,
            swap_target: self.swap_target(record),
            tax_paid: record.untaxed.saturating_sub(record.target),
            blocked: record.blocked,
            states: StateCounts {
                absent: count(PageState::Absent),
                private: count(PageState::Private),
                shared: count(PageState::Shared),
                zero: count(PageState::Zero),
                ballooned: count(PageState::Ballooned),
                compressed: count(PageState::Compressed),
                swapped: count(PageState::Swapped),
                in_flight: count(PageState::InFlight),
            },
            balloon: count(PageState::Ballooned),
            balloon_target: record.balloon_target,
            overhead: record.claim.overhead,
            large: u64::from(record.large * FRAMES_PER_BLOCK),
            faults: record.faults,
        })
    }

    fn info(&self, vm: VmId) -> VmInfo {
        let record = self.vm(vm);
        let memory = record.map_or(VmMemory::new(Pages(0)), |record| record.memory);
        VmInfo {
            vm,
            memory,
            balloon_target: Pages(record.map_or(0, |record| record.balloon_target)),
            free_page_reporting: memory.balloon,
            stats_period: Nanos::from_secs(1),
        }
    }

    /// Checks the accounting invariant: every frame is free, held, the server's, or behind exactly the pages that say so; every
    /// count is what the entries say.
    ///
    /// # Errors
    ///
    /// What does not agree.
    pub fn check(&self) -> Result<(), &'static str> {
        self.ledger.check()?;
        self.check_large()?;
        let mut private = 0u64;
        for record in self.vms.iter().flatten() {
            let mut counts = [0; PageState::ALL.len()];
            let size = record.memory.size.0 as u32;
            for index in 0..size {
                let entry = self.entries[(record.base + index) as usize];
                counts[entry.state() as usize] += 1;
                if entry.state() == PageState::Private && self.ledger.is_free(Frame(entry.value()))
                {
                    return Err("a private page's frame is free");
                }
                let resident = matches!(
                    entry.state(),
                    PageState::Private | PageState::Shared | PageState::Zero
                );
                if entry.has_capability() && !resident {
                    return Err("a page is mapped and not in memory");
                }
                let is_private = entry.state() == PageState::Private;
                if entry.is_writable() && !is_private {
                    return Err("a page others see is writable");
                }
                if entry.has_capability() && !entry.is_mapped() && !is_private {
                    return Err("a page others see keeps a capability that does not map it");
                }
            }
            if counts != record.counts {
                return Err("a VM's counts are not its entries'");
            }
            private += u64::from(counts[PageState::Private as usize]);
        }
        self.share.check()?;
        let shared: u64 = self.vms.iter().flatten().map(|vm| vm.count(PageState::Shared)).sum();
        let referred = (0..self.share.capacity()).filter_map(|at| self.share.references(at));
        if referred.map(u64::from).sum::<u64>() != shared {
            return Err("shared pages are not the records' references");
        }
        let compressed: u64 =
            self.vms.iter().flatten().map(|vm| vm.count(PageState::Compressed)).sum();
        if compressed != u64::from(self.pool.pages()) {
            return Err("compressed pages are not the pool's");
        }
        let moving = self.transfers.iter().flatten().filter(|moving| moving.frame.is_some());
        if moving.count() != self.moving as usize {
            return Err("frames on their way are miscounted");
        }
        let all = self.free()
            + self.held()
            + u64::from(self.own)
            + private
            + u64::from(self.share.shared())
            + u64::from(self.pool.frames())
            + u64::from(self.moving);
        if all != self.total() {
            return Err("the sums of states are not the machine's memory");
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
pub(crate) mod tests;
