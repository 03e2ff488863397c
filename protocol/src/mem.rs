//! What a vmm-server may ask of the mem-server.
//!
//! Three kinds of message arrive on the mem-server's endpoint, told apart by badge ([`crate::slots::mem_badge`], with
//! [`crate::slots::FAULT_BADGE`] for faults) and label:
//!
//! * **Hot calls**: fixed words, labels [`FAULT_IN`], [`RELEASE`], [`DEFLATE`].
//! * **Control calls**: postcard, label [`Mem::LABEL`].
//! * **Faults** of vmm threads: the kernel's own message. A page fault inside
//!   the guest window is answered by mapping the page (faulting it in first if need be) and the thread
//!   goes on; it sees nothing but time. A fault in the window on an address that is not guest memory,
//!   and every other fault, is never answered: the mem-server reports it with
//!   [`crate::root::RootRequest::ServerFault`] and the thread stands still.
//!
//! The root-task never calls: what it wants comes as [`crate::root::Command::Mem`].

use serde::{Deserialize, Serialize};

use crate::interface::{DecodeError, Interface};
use crate::units::{Gfn, Nanos, PAGE_SIZE, Pages, VmId};

/// Hot call of a vmm-server: back guest frame MR0 for access MR1 ([`access`]).
///
/// Reply label 0: the nested tables now map the frame for that access; enter the guest again. Any other
/// label is a [`Refusal`].
pub const FAULT_IN: u64 = 0x4d01;

/// Hot call of a vmm-server: the guest gave pages up. MR0 = [`release_reason`], MR1 = number of ranges, MR2.. =
/// ranges ([`GfnRange::to_word`]). At most [`RANGES_MAX`] ranges and [`CALL_PAGES_MAX`] pages a call.
///
/// Reply label 0: MR0 = pages now absent from the guest, MR1 = pages refused (outside the guest's memory, or
/// ballooned already). When the reply is there the mappings are gone, so a free page report may be acknowledged.
pub const RELEASE: u64 = 0x4d02;

/// Hot call of a vmm-server: the guest takes ballooned pages back. Words and reply as for [`RELEASE`]; MR0 is ignored.
/// The pages are backed by zeros on their next touch.
pub const DEFLATE: u64 = 0x4d03;

/// Most ranges in one [`RELEASE`] or [`DEFLATE`].
pub const RANGES_MAX: usize = 112;
/// Most pages in one [`RELEASE`] or [`DEFLATE`], so that nobody waits long for the mem-server; further ones are refused.
pub const CALL_PAGES_MAX: u64 = 1024;

/// Bits of MR1 of [`FAULT_IN`].
pub mod access {
    /// The guest writes.
    pub const WRITE: u64 = 1;
    /// The guest fetches an instruction.
    pub const EXECUTE: u64 = 2;
    /// The page will be overwritten whole: old contents need not be fetched.
    pub const OVERWRITE: u64 = 4;
}

/// MR0 of [`RELEASE`].
pub mod release_reason {
    /// The balloon driver allocated the pages: they stay out until [`super::DEFLATE`] or a pop.
    pub const BALLOON: u64 = 0;
    /// Free page reporting: the pages are free in the guest and come back on any touch.
    pub const FREE_REPORT: u64 = 1;
}

/// Reply label of a refused [`FAULT_IN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u64)]
pub enum Refusal {
    /// The frame is not guest memory: a device, or nothing. The vmm-server emulates the access.
    NotMemory = 1,
    /// No frame can be found even by swapping. The vmm-server waits for [`crate::slots::notify::MEM`] and tries again.
    NoMemory = 2,
    /// The page was swapped out and the disk does not give it back. The vmm-server stops the VM with a report.
    Lost = 3,
    /// Malformed words.
    BadRequest = 4,
}

impl Refusal {
    /// The refusal with reply label `label`; `None` for 0 and unknown labels.
    pub const fn from_label(label: u64) -> Option<Self> {
        match label {
            1 => Some(Self::NotMemory),
            2 => Some(Self::NoMemory),
            3 => Some(Self::Lost),
            4 => Some(Self::BadRequest),
            _ => None,
        }
    }
}

/// Neighbouring guest frames, as one word of [`RELEASE`]: first frame in bits 39:0, count less one in bits 63:40.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GfnRange {
    /// First frame.
    pub first: Gfn,
    /// Number of frames, at least 1.
    pub count: u64,
}

impl GfnRange {
    const FIRST_BITS: u32 = 40;
    /// Most frames in one range.
    pub const COUNT_MAX: u64 = 1 << (64 - Self::FIRST_BITS);

    /// `None` if empty or out of what a word holds.
    pub const fn new(first: Gfn, count: u64) -> Option<Self> {
        if count == 0 || count > Self::COUNT_MAX || first.0 >> Self::FIRST_BITS != 0 {
            return None;
        }
        Some(Self { first, count })
    }

    /// The message word.
    pub const fn to_word(self) -> u64 {
        self.first.0 | (self.count - 1) << Self::FIRST_BITS
    }

    /// Every word is a range; whether it lies in the guest's memory is the server's question.
    pub const fn from_word(word: u64) -> Self {
        Self {
            first: Gfn(word & ((1 << Self::FIRST_BITS) - 1)),
            count: (word >> Self::FIRST_BITS) + 1,
        }
    }
}

/// Whose identical pages may be kept once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// Nobody's: not even zero pages of this VM are merged.
    None,
    /// This VM's own pages among themselves.
    #[default]
    Vm,
    /// All VMs of this trust group.
    Group(u16),
}

/// What a VM may have, changeable while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controls {
    /// Guaranteed pages ("min").
    pub reservation: Pages,
    /// Most pages ("max"), at most the configured size.
    pub limit: Pages,
    /// Weight in division above reservations.
    pub shares: u32,
    /// Idle memory tax in permille, 0..=[`TAX_MAX`]; `None` takes the machine's.
    pub tax: Option<u16>,
    /// Sharing domain.
    pub sharing: Sharing,
}

/// A VM's memory as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmMemory {
    /// Guest-physical memory, a multiple of 2 MiB.
    pub size: Pages,
    /// The part below the device hole: frames `0..low` and `HIGH_BASE..HIGH_BASE + size - low` are memory.
    pub low: Pages,
    /// What it may have.
    pub controls: Controls,
    /// The group it is in, by number.
    pub group: Option<u8>,
    /// Whether the guest has a balloon the mem-server may steer.
    pub balloon: bool,
}

/// Guest frame where memory above the device hole starts (4 GiB).
pub const HIGH_BASE: Gfn = Gfn(1 << 20);
/// Most memory below the device hole: 3 GiB.
pub const LOW_MAX: Pages = Pages((3 << 30) / PAGE_SIZE);

impl VmMemory {
    /// `size` of memory with all controls at their defaults: limit = size, nothing reserved, shares by size.
    pub const fn new(size: Pages) -> Self {
        let low = if size.0 < LOW_MAX.0 { size } else { LOW_MAX };
        Self {
            size,
            low,
            controls: Controls {
                reservation: Pages(0),
                limit: size,
                shares: 1000,
                tax: None,
                sharing: Sharing::Vm,
            },
            group: None,
            balloon: true,
        }
    }

    /// As the system description says; `group` is the VM's group.
    pub const fn configured(
        memory: &crate::system::Memory,
        group: Option<u8>,
        balloon: &crate::system::Balloon,
    ) -> Self {
        let sharing = match (memory.sharing, group) {
            (crate::system::Sharing::None, _) => Sharing::None,
            (crate::system::Sharing::Group, Some(group)) => Sharing::Group(group as u16),
            (crate::system::Sharing::Group | crate::system::Sharing::Vm, _) => Sharing::Vm,
        };
        let controls = Controls {
            reservation: memory.reservation,
            limit: memory.limit,
            shares: memory.shares,
            tax: memory.tax,
            sharing,
        };
        Self { controls, group, balloon: balloon.present, ..Self::new(memory.size) }
    }

    /// Dense index of a guest frame, `None` where there is no memory.
    pub const fn index_of(&self, gfn: Gfn) -> Option<u32> {
        let index = if gfn.0 < self.low.0 {
            gfn.0
        } else if gfn.0 >= HIGH_BASE.0 {
            match (gfn.0 - HIGH_BASE.0).checked_add(self.low.0) {
                Some(index) => index,
                None => return None,
            }
        } else {
            return None;
        };
        if index < self.size.0 && index <= u32::MAX as u64 { Some(index as u32) } else { None }
    }

    /// Guest frame of a dense index.
    pub const fn gfn_of(&self, index: u32) -> Gfn {
        let index = index as u64;
        if index < self.low.0 { Gfn(index) } else { Gfn(HIGH_BASE.0 + index - self.low.0) }
    }
}

/// What the guest's balloon statistics queue said last, in pages or counts; absent tags are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    /// Pages read from the guest's own swap.
    pub swap_in: Option<u64>,
    /// Pages written to the guest's own swap.
    pub swap_out: Option<u64>,
    /// Major faults: the refault signal the balloon controller backs off on.
    pub major_faults: Option<u64>,
    /// Minor faults.
    pub minor_faults: Option<u64>,
    /// Free pages.
    pub free: Option<u64>,
    /// Pages the guest thinks it has.
    pub total: Option<u64>,
    /// Pages available without swapping.
    pub available: Option<u64>,
    /// Pages of reclaimable cache.
    pub disk_caches: Option<u64>,
    /// Kills by the guest's own out-of-memory killer.
    pub oom_kills: Option<u64>,
    /// Pages in its balloon as its driver counts them: those offered and refused are among them.
    pub balloon: Option<u64>,
}

/// The interface.
pub struct Mem;

impl Interface for Mem {
    const LABEL: u64 = 0x4d00;
    type Request = MemRequest;
    type Reply = MemReply;
}

/// What is asked of the mem-server, with the answer as [`MemReply`]. "root": comes as [`crate::root::Command::Mem`], is answered with
/// [`crate::root::RootRequest::MemAnswer`]. "vmm": a call. Anyone else gets [`MemError::NotAllowed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemRequest {
    /// root: admit a VM and build its nested tables. Its capabilities are in place ([`crate::slots::MEM_VM`]);
    /// its VCPU has its nested root when [`MemReply::Created`] comes.
    CreateVm {
        /// Identity, not in use.
        vm: VmId,
        /// Memory as configured.
        memory: VmMemory,
    },
    /// root: take everything back; its vmm-server does not run any more. Reply [`MemReply::Freed`].
    DestroyVm {
        /// Which.
        vm: VmId,
    },
    /// root: change controls; refused like an admission if the new reservation cannot be met.
    SetControls {
        /// Which.
        vm: VmId,
        /// All of them.
        controls: Controls,
    },
    /// root: fix the balloon by hand (`Some`), or give it back to the policy (`None`).
    SetBalloon {
        /// Which.
        vm: VmId,
        /// Size of the balloon.
        target: Option<Pages>,
    },
    /// root: the user has ordered a VM to be paused, or to go on. While it is paused what it touches says nothing about what it
    /// uses. Reply [`MemReply::Done`].
    SetPaused {
        /// Which.
        vm: VmId,
        /// Paused from now on, or running.
        is_paused: bool,
    },
    /// root: change the machine's rates. Reply [`MemReply::Done`].
    SetMachine(crate::system::MemoryControls),
    /// root: change what the VMs of a group have together; refused like an admission if the new reservation cannot be met. Reply
    /// [`MemReply::Done`].
    SetGroup {
        /// Which.
        group: u8,
        /// All of it.
        claim: crate::system::GroupMemory,
    },
    /// root: the swap partition is attached at client [`crate::slots::SWAP_CLIENT`]'s ring. Reply [`MemReply::Done`].
    SetSwap {
        /// Pages it holds.
        pages: Pages,
    },
    /// root: machine-wide figures. Reply [`MemReply::Machine`].
    Machine,
    /// root: figures of one VM. Reply [`MemReply::Stats`].
    Stats {
        /// Which.
        vm: VmId,
    },
    /// root: every term behind the VM's current target. Reply [`MemReply::Explanation`].
    Explain {
        /// Which.
        vm: VmId,
    },
    /// vmm: own memory and balloon target. Reply [`MemReply::Info`]. Asked at start
    /// and whenever the mem-server signals [`crate::slots::notify::MEM`].
    Info,
    /// vmm: the balloon device is driven by a driver (or not any more: guest reset). Reply [`MemReply::Done`].
    BalloonReady {
        /// The driver has set DRIVER_OK and negotiated the balloon.
        ready: bool,
    },
    /// vmm: what the statistics queue said. Reply [`MemReply::Info`].
    GuestStats(GuestStats),
}

/// The answer to a [`MemRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemReply {
    /// Done, nothing to say.
    Done,
    /// The VM was admitted.
    Created {
        /// Pages kept for it: reservation and overhead.
        reserved: Pages,
    },
    /// Pages that came back to the free pool.
    Freed {
        /// How many.
        pages: Pages,
        /// Free pages of the machine now.
        free: Pages,
    },
    /// [`MemRequest::Machine`].
    Machine(MachineStats),
    /// [`MemRequest::Stats`].
    Stats(VmStats),
    /// [`MemRequest::Explain`].
    Explanation(Explanation),
    /// [`MemRequest::Info`].
    Info(VmInfo),
    /// Refused; nothing changed.
    Error(MemError),
}

/// Why something was refused; every refused admission carries the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemError {
    /// The bytes were no request.
    Decode(DecodeError),
    /// This caller may not ask that.
    NotAllowed,
    /// The identity is taken, or there is none such.
    Identity,
    /// The VM is not admitted.
    NoSuchVm,
    /// The size is 0, not a multiple of 2 MiB, or more than a VM can have.
    BadSize {
        /// What was asked.
        size: Pages,
    },
    /// Not reservation <= limit <= size, no shares, or a tax above [`TAX_MAX`].
    BadControls,
    /// Reservation and overhead do not fit in memory beside the others'.
    NotEnoughMemory {
        /// Reservation and overhead asked.
        needed: Pages,
        /// What the others leave.
        available: Pages,
    },
    /// Limits less reservations, this one's and the others', do not fit in swap space.
    NotEnoughSwap {
        /// What all of them need together.
        needed: Pages,
        /// All the swap space there is.
        available: Pages,
    },
    /// The sizes of all VMs together are more than there are page states for.
    TooManyPages {
        /// The size asked.
        size: Pages,
        /// Neighbouring page states free.
        free: Pages,
    },
    /// The VM's tables need a wholly free block, and too little is free to make one, or could be made free in time.
    NoBlock {
        /// Pages of a block.
        needed: Pages,
        /// Pages free, wherever they lie.
        free: Pages,
    },
    /// The kernel made no object.
    Objects {
        /// Its error number.
        error: u64,
    },
}

/// Largest idle memory tax in permille: at 100 % an idle page's price would be infinite.
pub const TAX_MAX: u16 = 999;

/// Memory pressure, from free memory (P4: 6, 4, 2 and 1 per cent).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum PressureState {
    /// Enough: nothing is reclaimed.
    #[default]
    High,
    /// Reclaim by balloon, by paging only where there is no balloon.
    Soft,
    /// Reclaim by paging.
    Hard,
    /// Reclaim by paging, and VMs above their target wait.
    Low,
}

/// Pages of a machine or a VM by state. Their sum is all there are: the accounting invariant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCounts {
    /// Never touched, or taken away known zero.
    pub absent: u64,
    /// Backed by a frame of its own.
    pub private: u64,
    /// Backed by a frame others use too.
    pub shared: u64,
    /// Backed by the one frame of zeros.
    pub zero: u64,
    /// Given up to the balloon.
    pub ballooned: u64,
    /// Compressed in memory.
    pub compressed: u64,
    /// On the swap partition.
    pub swapped: u64,
    /// On its way to or from the swap partition.
    pub in_flight: u64,
}

impl StateCounts {
    /// All pages.
    pub const fn total(&self) -> u64 {
        self.absent
            + self.private
            + self.shared
            + self.zero
            + self.ballooned
            + self.compressed
            + self.swapped
            + self.in_flight
    }
}

/// Machine-wide figures, in pages unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStats {
    /// Frames the mem-server manages.
    pub total: u64,
    /// Free frames.
    pub free: u64,
    /// Frames backing guests' pages, each counted once.
    pub guest: u64,
    /// Frames holding compressed pages.
    pub compressed_pool: u64,
    /// Frames spent on capabilities, page tables and the server's own tables.
    pub overhead: u64,
    /// Frames put by for copy-on-write breaks.
    pub cow_reserve: u64,
    /// Pages of guests that share a frame ("shared").
    pub shared: u64,
    /// Frames they share ("common").
    pub common: u64,
    /// Pages reclaimed by sharing ("saving").
    pub saved: u64,
    /// Of those, pages of zeros.
    pub zero_saved: u64,
    /// Swap slots in all and in use.
    pub swap_total: u64,
    /// In use.
    pub swap_used: u64,
    /// Memory reserved by admission.
    pub reserved: u64,
    /// Pressure.
    pub state: PressureState,
    /// Machine's idle memory tax in permille.
    pub tax: u16,
    /// Pages the scanner looked at.
    pub scanned: u64,
    /// Pages it merged.
    pub merged: u64,
    /// False matches: same hash, other contents.
    pub false_matches: u64,
}

/// Figures of one VM, in pages unless said; in comments esxtop's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// MEMSZ.
    pub size: u64,
    /// GRANT: backed by memory, shared ones included.
    pub granted: u64,
    /// Frames charged: private plus its part of shared and compressed ones.
    pub consumed: u64,
    /// TCHD: touched in the last whole sampling period, estimated.
    pub touched: u64,
    /// ACTV: working set estimate (maximum of the three averages).
    pub active: u64,
    /// ACTVS, ACTVF, ACTVN: slow, fast and current average, in per mille of the VM's pages.
    pub average_permille: [u16; 3],
    /// By state.
    pub states: StateCounts,
    /// SHRDSVD: memory saved by sharing.
    pub saved: u64,
    /// MCTLSZ.
    pub balloon: u64,
    /// MCTLTGT.
    pub balloon_target: u64,
    /// SWTGT: pages that should be out, those that are and those that paging is still to take.
    pub swap_target: u64,
    /// Current target of the allocation policy.
    pub target: u64,
    /// Idle memory tax paid: pages it would have with tax 0 and does not.
    pub tax_paid: u64,
    /// Overhead: capabilities, tables.
    pub overhead: u64,
    /// Mapped by large pages.
    pub large: u64,
    /// Faults answered, in the order of [`FAULTS`].
    pub faults: [u64; FAULTS.len()],
    /// Waiting because of [`PressureState::Low`].
    pub blocked: bool,
}

/// Every term behind a VM's current target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Figures of the VM.
    pub stats: VmStats,
    /// Its controls.
    pub controls: Controls,
    /// Shares in the division times 1000: its own, or its part of its group's.
    pub weight_milli: u64,
    /// Those after the idle memory tax: `weight * 1000 / (f + k (1 - f))`.
    pub taxed_shares: u64,
    /// Tax in force, permille.
    pub tax: u16,
    /// Pages divided among all VMs.
    pub budget: u64,
    /// Sum of all reservations.
    pub sum_reservations: u64,
    /// The water level times 1000: target pages per taxed share before clamping.
    pub level_milli: u64,
    /// Which bound the target rests on.
    pub bound: TargetBound,
    /// Target were there no tax.
    pub untaxed_target: u64,
    /// When it was computed.
    pub at: Nanos,
    /// What made it be computed.
    pub trigger: Trigger,
    /// Regions of 2 MiB that are small because something took their large page apart, by [`DEMOTIONS`].
    pub taken_apart: [u32; DEMOTIONS.len()],
}

/// Kinds of faults the mem-server answers: first touch, write to a shared page or to the page of zeros, touch of a compressed page,
/// of one on the swap partition, of a ballooned one, of one that was only not mapped (samples, races), by the vmm-server.
pub const FAULTS: [&str; 7] = ["fill", "cow", "compressed", "swap", "balloon", "remap", "window"];

/// What takes a large page apart, in the order of the mem-server's counters.
pub const DEMOTIONS: [&str; 6] =
    ["sharing", "balloon", "free_report", "paging", "sampling", "moving"];

/// What a target rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetBound {
    /// The reservation holds it up.
    Reservation,
    /// The reservation of its group holds it up.
    Group,
    /// In between: its taxed shares decide.
    #[default]
    Shares,
    /// The limit holds it down.
    Limit,
}

/// What makes targets be computed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// Controls or tax changed.
    #[default]
    Controls,
    /// A VM came.
    Added,
    /// A VM went.
    Removed,
    /// Free memory crossed a threshold.
    Threshold,
    /// The rebalance period is over.
    Periodic,
}

/// What a vmm-server must know about its VM's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Own identity.
    pub vm: VmId,
    /// Memory as configured.
    pub memory: VmMemory,
    /// `num_pages` of the balloon device's configuration.
    pub balloon_target: Pages,
    /// Ask for statistics this often.
    pub stats_period: Nanos,
}

/// Something the root-task must know; sent as [`crate::root::RootRequest::MemEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemEvent {
    /// A page is lost on the swap disk.
    PageLost {
        /// Whose.
        vm: VmId,
        /// The guest frame.
        gfn: Gfn,
    },
    /// Pressure changed.
    Pressure {
        /// From.
        from: PressureState,
        /// To.
        to: PressureState,
        /// Free pages then.
        free: Pages,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::{PAYLOAD_MAX, decode, decode_reply, encode};

    #[test]
    fn ranges_survive_a_word() {
        for (first, count) in [(0, 1), (1 << 20, 512), ((1 << 40) - 1, GfnRange::COUNT_MAX)] {
            let range = GfnRange::new(Gfn(first), count).unwrap();
            assert_eq!(GfnRange::from_word(range.to_word()), range);
        }
        assert_eq!(GfnRange::new(Gfn(0), 0), None);
        assert_eq!(GfnRange::new(Gfn(1 << 40), 1), None);
    }

    #[test]
    fn memory_above_the_hole_has_dense_indices() {
        let memory = VmMemory::new(Pages(LOW_MAX.0 + 512));
        assert_eq!(memory.index_of(Gfn(LOW_MAX.0 - 1)), Some(LOW_MAX.0 as u32 - 1));
        assert_eq!(memory.index_of(Gfn(LOW_MAX.0)), None);
        assert_eq!(memory.index_of(HIGH_BASE), Some(LOW_MAX.0 as u32));
        assert_eq!(memory.index_of(Gfn(HIGH_BASE.0 + 512)), None);
        assert_eq!(memory.index_of(Gfn(u64::MAX)), None);
        for index in [0, 77, LOW_MAX.0 as u32 - 1, LOW_MAX.0 as u32 + 511] {
            assert_eq!(memory.index_of(memory.gfn_of(index)), Some(index));
        }
    }

    #[test]
    fn the_largest_messages_fit() {
        let mut buffer = [0; PAYLOAD_MAX];
        let controls = Controls {
            reservation: Pages(u64::MAX),
            limit: Pages(u64::MAX),
            shares: u32::MAX,
            tax: Some(TAX_MAX),
            sharing: Sharing::Group(u16::MAX),
        };
        let stats = VmStats {
            size: u64::MAX,
            granted: u64::MAX,
            consumed: u64::MAX,
            touched: u64::MAX,
            active: u64::MAX,
            large: u64::MAX,
            average_permille: [u16::MAX; 3],
            faults: [u64::MAX; 7],
            ..VmStats::default()
        };
        let reply = MemReply::Explanation(Explanation {
            stats,
            controls,
            weight_milli: u64::MAX,
            taxed_shares: u64::MAX,
            tax: TAX_MAX,
            budget: u64::MAX,
            sum_reservations: u64::MAX,
            level_milli: u64::MAX,
            bound: TargetBound::Limit,
            untaxed_target: u64::MAX,
            at: Nanos(u64::MAX),
            trigger: Trigger::Periodic,
            taken_apart: [u32::MAX; DEMOTIONS.len()],
        });
        let bytes = encode(&reply, &mut buffer).unwrap();
        assert_eq!(decode_reply::<Mem>(bytes), Ok(reply));
        let request = MemRequest::CreateVm {
            vm: VmId(3),
            memory: VmMemory { controls, ..VmMemory::new(Pages(512)) },
        };
        let mut buffer = [0; PAYLOAD_MAX];
        let bytes = encode(&request, &mut buffer).unwrap();
        assert_eq!(decode::<Mem>(Mem::LABEL, bytes), Ok(request));
    }
}
