//! The state of one guest page: a 32-bit entry and the one table of allowed transitions.

/// Number of a 4 KiB machine frame among those the server manages: block number times 512 plus offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u32);

impl Frame {
    /// The 2 MiB block it lies in.
    pub const fn block(self) -> u32 {
        self.0 / FRAMES_PER_BLOCK
    }

    /// Its place in the block.
    pub const fn offset(self) -> u32 {
        self.0 % FRAMES_PER_BLOCK
    }
}

/// Frames in a 2 MiB block.
pub const FRAMES_PER_BLOCK: u32 = 512;
/// Words of a bitmap of a 2 MiB region's pages.
pub const REGION_WORDS: usize = FRAMES_PER_BLOCK as usize / 64;
/// Bytes in a frame.
pub const FRAME_BYTES: usize = 4096;
/// Most frames (128 GiB): what an entry and a sharing record hold.
pub const FRAMES_MAX: u32 = 1 << 25;

/// Where a guest page's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageState {
    /// Nowhere: all zeros on the next touch.
    Absent = 0,
    /// In a frame of its own (value: the frame).
    Private = 1,
    /// In a frame others share (value: the sharing record).
    Shared = 2,
    /// In the machine's one frame of zeros.
    Zero = 3,
    /// Given up by the guest's balloon: zeros if the guest touches it all the same.
    Ballooned = 4,
    /// Compressed in memory (value: the compressed tier's handle).
    Compressed = 5,
    /// On the swap disk (value: the slot).
    Swapped = 6,
    /// On its way between memory and the swap disk (value: the transfer).
    InFlight = 7,
}

impl PageState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Absent,
        Self::Private,
        Self::Shared,
        Self::Zero,
        Self::Ballooned,
        Self::Compressed,
        Self::Swapped,
        Self::InFlight,
    ];
}

/// What can happen to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageOp {
    /// First touch: a zeroed frame of its own.
    Fill,
    /// A write to a page without a frame of its own gets one (copy-on-write).
    Break,
    /// Found equal to another page.
    Share,
    /// Found to be all zeros.
    ShareZero,
    /// The last other sharer is gone.
    Unshare,
    /// The guest's balloon driver gave it up.
    Balloon,
    /// The guest's balloon driver took it back.
    Deflate,
    /// The guest touched a ballooned page: backed by zeros at once.
    Pop,
    /// The guest said it holds nothing.
    Discard,
    /// Packed into the compressed tier.
    Compress,
    /// Unpacked again.
    Decompress,
    /// A write to the swap disk started.
    SwapOut,
    /// A write of a compressed page to the swap disk started.
    Spill,
    /// That write failed or the guest touched the page meanwhile: it is still in the compressed tier.
    SpillCancel,
    /// The write is complete.
    SwappedOut,
    /// The write failed or the guest touched the page meanwhile: the frame is still there.
    SwapCancel,
    /// A read from the swap disk started.
    SwapIn,
    /// The read is complete.
    SwappedIn,
    /// The read failed: the page stays on the disk, its fault is refused.
    SwapInFailed,
    /// The VM was destroyed.
    Forget,
}

/// The transition table: every allowed (state, operation, state). What is not here cannot happen.
pub const TRANSITIONS: &[(PageState, PageOp, PageState)] = {
    use PageOp as O;
    use PageState as S;
    &[
        (S::Absent, O::Fill, S::Private),
        (S::Absent, O::Balloon, S::Ballooned),
        (S::Absent, O::Discard, S::Absent),
        (S::Absent, O::Forget, S::Absent),
        (S::Private, O::Share, S::Shared),
        (S::Private, O::ShareZero, S::Zero),
        (S::Private, O::Balloon, S::Ballooned),
        (S::Private, O::Discard, S::Absent),
        (S::Private, O::Compress, S::Compressed),
        (S::Private, O::SwapOut, S::InFlight),
        (S::Private, O::Forget, S::Absent),
        (S::Shared, O::Break, S::Private),
        (S::Shared, O::Unshare, S::Private),
        (S::Shared, O::Balloon, S::Ballooned),
        (S::Shared, O::Discard, S::Absent),
        (S::Shared, O::Forget, S::Absent),
        (S::Zero, O::Break, S::Private),
        (S::Zero, O::Balloon, S::Ballooned),
        (S::Zero, O::Discard, S::Absent),
        (S::Zero, O::Forget, S::Absent),
        (S::Ballooned, O::Deflate, S::Absent),
        (S::Ballooned, O::Pop, S::Absent),
        (S::Ballooned, O::Forget, S::Absent),
        (S::Compressed, O::Decompress, S::Private),
        (S::Compressed, O::Spill, S::InFlight),
        (S::Compressed, O::Balloon, S::Ballooned),
        (S::Compressed, O::Discard, S::Absent),
        (S::Compressed, O::Forget, S::Absent),
        (S::InFlight, O::SwappedOut, S::Swapped),
        (S::InFlight, O::SwapCancel, S::Private),
        (S::InFlight, O::SpillCancel, S::Compressed),
        (S::InFlight, O::SwappedIn, S::Private),
        (S::InFlight, O::SwapInFailed, S::Swapped),
        (S::InFlight, O::Forget, S::Absent),
        (S::Swapped, O::SwapIn, S::InFlight),
        (S::Swapped, O::Balloon, S::Ballooned),
        (S::Swapped, O::Discard, S::Absent),
        (S::Swapped, O::Forget, S::Absent),
    ]
};

/// Where `op` leads from `state`; `None` if it is not allowed there.
pub fn next(state: PageState, op: PageOp) -> Option<PageState> {
    TRANSITIONS.iter().find(|(from, o, _)| *from == state && *o == op).map(|(_, _, to)| *to)
}

/// One guest page in four bytes: state 3 bits, flags 4 bits, value 25 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry(u32);

impl Entry {
    /// Never touched.
    pub const ABSENT: Self = Self(0);
    const VALUE_SHIFT: u32 = 7;
    const STATE: u32 = 7;
    /// The nested tables map the page.
    const MAPPED: u32 = 1 << 3;
    /// Mapped, but not writable. Without [`Self::MAPPED`]: the page keeps a capability that maps nothing.
    const READ_ONLY: u32 = 1 << 4;
    /// A false match happened: never considered for sharing again.
    const INELIGIBLE: u32 = 1 << 5;
    /// Unmapped to see whether the guest touches it (statistical sampling).
    const SAMPLED: u32 = 1 << 6;

    /// An entry without flags.
    pub const fn new(state: PageState, value: u32) -> Self {
        Self(state as u32 | value << Self::VALUE_SHIFT)
    }

    /// Where its contents are.
    #[inline]
    pub const fn state(self) -> PageState {
        PageState::ALL[(self.0 & Self::STATE) as usize]
    }

    /// Meaning depends on the state.
    #[inline]
    pub const fn value(self) -> u32 {
        self.0 >> Self::VALUE_SHIFT
    }

    /// Whether the guest can read it without a fault.
    pub const fn is_mapped(self) -> bool {
        self.0 & Self::MAPPED != 0
    }

    /// Whether the guest can write it without a fault.
    pub const fn is_writable(self) -> bool {
        self.0 & (Self::MAPPED | Self::READ_ONLY) == Self::MAPPED
    }

    /// Whether it has a capability of its own, whether or not that maps it now.
    pub const fn has_capability(self) -> bool {
        self.0 & (Self::MAPPED | Self::READ_ONLY) != 0
    }

    /// Whether the scanner must leave it alone.
    pub const fn is_ineligible(self) -> bool {
        self.0 & Self::INELIGIBLE != 0
    }

    /// Whether the estimator waits for a touch.
    pub const fn is_sampled(self) -> bool {
        self.0 & Self::SAMPLED != 0
    }

    /// The same page, its contents elsewhere.
    pub const fn at(self, value: u32) -> Self {
        Self(self.0 & ((1 << Self::VALUE_SHIFT) - 1) | value << Self::VALUE_SHIFT)
    }

    /// The same page, mapped.
    pub const fn mapped(self, writable: bool) -> Self {
        let bits = Self::MAPPED | if writable { 0 } else { Self::READ_ONLY };
        Self(self.0 & !(Self::MAPPED | Self::READ_ONLY | Self::SAMPLED) | bits)
    }

    /// The same page, not mapped.
    pub const fn unmapped(self) -> Self {
        Self(self.0 & !(Self::MAPPED | Self::READ_ONLY))
    }

    /// The same page, not mapped; its capability stays.
    pub const fn held(self) -> Self {
        Self(self.unmapped().0 | Self::READ_ONLY)
    }

    /// The same page, not mapped and no longer watched.
    pub const fn unmapped_plain(self) -> Self {
        Self(self.unmapped().0 & !Self::SAMPLED)
    }

    /// The same page, never to be shared.
    pub const fn ineligible(self) -> Self {
        Self(self.0 | Self::INELIGIBLE)
    }

    /// The same page, unmapped for sampling.
    pub const fn sampled(self) -> Self {
        Self(self.unmapped().0 | Self::SAMPLED)
    }
}

impl core::fmt::Debug for Entry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{:?}({}){}{}{}{}",
            self.state(),
            self.value(),
            if self.is_mapped() { " mapped" } else { "" },
            if self.has_capability() && !self.is_writable() { " read-only" } else { "" },
            if self.is_ineligible() { " ineligible" } else { "" },
            if self.is_sampled() { " sampled" } else { "" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_state_value_and_flags_apart() {
        for state in PageState::ALL {
            for value in [0, 1, FRAMES_MAX - 1] {
                let plain = Entry::new(state, value);
                for entry in [
                    plain,
                    plain.mapped(true),
                    plain.mapped(false),
                    plain.mapped(true).unmapped(),
                    plain.ineligible().mapped(false),
                    plain.mapped(true).sampled(),
                    plain.mapped(true).held(),
                ] {
                    assert_eq!(entry.state(), state);
                    assert_eq!(entry.value(), value);
                }
                assert!(plain.mapped(true).is_writable());
                assert!(!plain.mapped(false).is_writable());
                assert!(!plain.mapped(true).unmapped().is_mapped());
                assert!(plain.mapped(true).ineligible().is_writable());
                assert!(!plain.mapped(true).sampled().is_mapped());
                assert!(!plain.sampled().mapped(true).is_sampled());
                let held = plain.mapped(true).held();
                assert!(held.has_capability() && !held.is_mapped() && !held.is_writable());
                assert!(held.mapped(true).is_writable() && !held.unmapped().has_capability());
            }
        }
    }

    #[test]
    fn each_operation_leads_to_one_state() {
        for (index, (from, op, _)) in TRANSITIONS.iter().enumerate() {
            let same = TRANSITIONS.iter().filter(|(f, o, _)| f == from && o == op).count();
            assert_eq!(same, 1, "row {index}");
        }
    }

    #[test]
    fn every_state_can_be_reached_and_left_for_absent() {
        let mut reached = vec![PageState::Absent];
        let mut at = 0;
        while at < reached.len() {
            for (from, _, to) in TRANSITIONS {
                if *from == reached[at] && !reached.contains(to) {
                    reached.push(*to);
                }
            }
            at += 1;
        }
        assert_eq!(reached.len(), PageState::ALL.len());
        for state in PageState::ALL {
            assert_eq!(next(state, PageOp::Forget), Some(PageState::Absent));
        }
    }
}
