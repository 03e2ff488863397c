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
//! The root-task never calls: what it wants comes as [`crate::root::MemCommand`].

use serde::{Deserialize, Serialize};

use crate::interface::{DecodeError, Interface};
use crate::units::{Gfn, Nanos, PAGE_SIZE, Pages, VmId};

/// Hot call of a vmm-server: back guest frame MR0 for access MR1 ([`access`]).
///
/// Reply label 0: the nested tables now map the frame for that access; enter the guest again. Any other
/// label is a [`Refusal`].
pub const FAULT_IN: u64 = 0x4d01;

/// Hot call of a vmm-server: the guest gave pages up. MR0 = [`release_reason`], MR1 = number of ranges, MR2.. =
/// ranges ([`GfnRange::to_word`]). At most [`RANGES_MAX`] ranges a call.
///
/// Reply label 0: MR0 = pages now absent from the guest, MR1 = pages refused (outside the guest's memory, or
/// ballooned already). When the reply is there the mappings are gone, so a free page report may be acknowledged.
pub const RELEASE: u64 = 0x4d02;

/// Hot call of a vmm-server: the guest takes ballooned pages back. Words and reply as for [`RELEASE`]; MR0 is ignored.
/// The pages are backed by zeros on their next touch.
pub const DEFLATE: u64 = 0x4d03;

/// Most ranges in one [`RELEASE`] or [`DEFLATE`].
pub const RANGES_MAX: usize = 112;

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
    /// The page was swapped out and the disk does not give it back. Inject a machine check.
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
    /// Idle memory tax in per cent, 0..=99; `None` takes the machine's.
    pub tax: Option<u8>,
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
            balloon: true,
        }
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
}

/// The interface.
pub struct Mem;

impl Interface for Mem {
    const LABEL: u64 = 0x4d00;
    type Request = MemRequest;
    type Reply = MemReply;
}

/// A control call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemRequest {
    /// Own memory, balloon target and whether to report free pages. Reply [`MemReply::Info`]. Asked at start
    /// and whenever the mem-server signals [`crate::slots::notify::MEM`].
    Info,
    /// The balloon device is driven by a driver (or not any more: guest reset). Reply [`MemReply::Done`].
    BalloonReady {
        /// The driver has set DRIVER_OK and negotiated the balloon.
        ready: bool,
    },
    /// What the statistics queue said. Reply [`MemReply::Info`].
    GuestStats(GuestStats),
    /// The guest was reset. Every page becomes absent, the balloon empty. Reply [`MemReply::Freed`].
    Reset,
}

/// The answer to a [`MemRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemReply {
    /// Done, nothing to say.
    Done,
    /// Pages that came back to the free pool.
    Freed {
        /// How many.
        pages: Pages,
    },
    /// [`MemRequest::Info`].
    Info(VmInfo),
    /// Refused; nothing changed.
    Error(MemError),
}

/// Why a control call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemError {
    /// The bytes were no request.
    Decode(DecodeError),
    /// The caller's VM is not admitted.
    NoSuchVm,
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
    /// Offer free page reporting.
    pub free_page_reporting: bool,
    /// Ask for statistics this often.
    pub stats_period: Nanos,
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
