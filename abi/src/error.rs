//! Errors of invocations and lookup failures, with their numbers.

/// Error of an invocation; the label of the reply to a Call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Error {
    /// The operation was done.
    NoError = 0,
    /// MR0 is the number of the argument.
    InvalidArgument = 1,
    /// MR0 is the number of the capability; 0 is the invoked one.
    InvalidCapability = 2,
    /// The object cannot do this now or at all.
    IllegalOperation = 3,
    /// MR0 and MR1 are the least and greatest value allowed.
    RangeError = 4,
    /// An address is not aligned to its size.
    AlignmentError = 5,
    /// MR0 is 1 for the source; then the lookup failure's type and words.
    FailedLookup = 6,
    /// Words or capabilities are missing.
    TruncatedMessage = 7,
    /// A slot or entry is occupied.
    DeleteFirst = 8,
    /// The object has derived capabilities.
    RevokeFirst = 9,
    /// MR0 is the number of bytes left.
    NotEnoughMemory = 10,
}

impl Error {
    /// Finds the error behind a reply's label.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::NoError,
            1 => Self::InvalidArgument,
            2 => Self::InvalidCapability,
            3 => Self::IllegalOperation,
            4 => Self::RangeError,
            5 => Self::AlignmentError,
            6 => Self::FailedLookup,
            7 => Self::TruncatedMessage,
            8 => Self::DeleteFirst,
            9 => Self::RevokeFirst,
            10 => Self::NotEnoughMemory,
            _ => return None,
        })
    }
}

/// Why a capability pointer could not be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupFailure {
    /// The root is no CNode.
    InvalidRoot,
    /// The slot is empty or a table level is missing.
    MissingCapability {
        /// Address bits not yet used.
        bits_left: u64,
    },
    /// The pointer ends inside a CNode.
    DepthMismatch {
        /// Address bits not yet used.
        bits_left: u64,
        /// Bits the CNode would use.
        bits_found: u64,
    },
    /// The guard differs.
    GuardMismatch {
        /// Address bits not yet used.
        bits_left: u64,
        /// The CNode's guard.
        guard_found: u64,
        /// The guard's size.
        bits_found: u64,
    },
}

impl LookupFailure {
    /// Returns type number and words as messages carry them, and how many words there are, type included.
    #[must_use]
    pub const fn words(self) -> ([u64; 4], usize) {
        match self {
            Self::InvalidRoot => ([1, 0, 0, 0], 1),
            Self::MissingCapability { bits_left } => ([2, bits_left, 0, 0], 2),
            Self::DepthMismatch { bits_left, bits_found } => ([3, bits_left, bits_found, 0], 3),
            Self::GuardMismatch { bits_left, guard_found, bits_found } => {
                ([4, bits_left, guard_found, bits_found], 4)
            }
        }
    }
}
