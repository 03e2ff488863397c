//! The server: its state, and the steps everything else is made of: a page changes its state, loses its mapping, gets a frame.

use protocol::mem::{GuestStats, Refusal, TargetBound, VmMemory};
use protocol::system::{GROUPS_MAX, GroupMemory};
use protocol::units::{MAX_VMS, Nanos, VmId};

use crate::admission::Claim;
use crate::background::{Background, Tokens};
use crate::decisions::Told;
use crate::ledger::{Block, Ledger};
use crate::mechanism::{Mechanism, Page};
use crate::page::{Entry, FRAMES_PER_BLOCK, Frame, PageOp, PageState, next};
use crate::policy::balloon::Controller;
use crate::policy::estimator::{Averages, Source};
use crate::policy::large::{Demotion, Region};
use crate::policy::pressure::{Pressure, Thresholds};
use crate::random::{Random, Walk};
use crate::share::{Record, ShareTable};
use crate::starting::Starting;
use crate::swap_map::SwapMap;
use crate::tier::{Pool, PoolFrame, TRANSFERS, Transfer};

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
pub const FAULT_KINDS: usize = protocol::mem::FAULTS.len();

const _: () = assert!(FaultKind::Window as usize == FAULT_KINDS - 1);

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
    /// Of those on their way, the ones that are in the compressed pool until they are written.
    pub(crate) spilling: u32,
    /// Faults by kind.
    pub faults: [u64; FAULT_KINDS],
    /// The balloon driver works.
    pub balloon_ready: bool,
    /// What the balloon should hold.
    pub balloon_target: u64,
    /// Pages that its driver counted as given when it last spoke, and that were not accepted.
    pub(crate) balloon_refused: u64,
    /// Last statistics of the guest.
    pub guest: GuestStats,
    /// What the user fixed the balloon at.
    pub balloon_fixed: Option<u64>,
    pub(crate) controller: Controller,
    /// Working set estimate.
    pub averages: Averages,
    pub(crate) samples: Samples,
    /// The user has paused it.
    pub is_paused: bool,
    /// It was paused for some of this sampling period.
    pub(crate) has_rested: bool,
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

    /// Whether its balloon can take what it is asked for: a paused guest's cannot.
    pub(crate) const fn has_working_balloon(&self) -> bool {
        self.balloon_ready && !self.is_paused && !self.controller.is_deaf()
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
    /// Claims of the groups, by number.
    pub(crate) groups: [GroupMemory; GROUPS_MAX],
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
    pub(crate) starting: Option<Starting>,
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
    /// Writes of private pages to the swap area started.
    pub swapped_out: u64,
    /// Writes of compressed pages to the swap area started.
    pub spilled: u64,
    /// Reads from the swap area started.
    pub swapped_in: u64,
    /// Times that a vmm-server had to wait for a page of its window.
    pub window_waits: u64,
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
            groups: [GroupMemory::default(); GROUPS_MAX],
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
            starting: None,
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

    /// All frames.
    pub fn total(&self) -> u64 {
        u64::from(self.ledger.total())
    }

    /// Frames in blocks held for kernel objects.
    pub const fn held(&self) -> u64 {
        self.ledger.held() as u64
    }

    /// Gives a block for kernel objects; `in_hand` is a frame that must stay where it is.
    pub(crate) fn give_block(
        &mut self,
        in_hand: Option<Frame>,
        mechanism: &mut impl Mechanism,
    ) -> bool {
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
    pub(crate) fn forget(&mut self, vm: VmId, index: u32) {
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

    /// The frame behind a page that is in memory.
    pub(crate) fn frame_of(&self, entry: Entry) -> Frame {
        match entry.state() {
            PageState::Private => Frame(entry.value()),
            PageState::Shared => self.share.frame(entry.value()).unwrap_or(self.zero),
            _ => self.zero,
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
pub(crate) mod tests;
