//! Errors of invocations.

use core::fmt;

/// Why the kernel did not carry out an invocation. Details are in the message registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// An argument has a bad value.
    InvalidArgument,
    /// A capability is of the wrong type or lacks rights.
    InvalidCapability,
    /// The object cannot do this, or not now.
    IllegalOperation,
    /// A value is outside the allowed range.
    RangeError,
    /// An address is not aligned.
    AlignmentError,
    /// A slot or a paging structure was not found.
    FailedLookup,
    /// The message is too short.
    TruncatedMessage,
    /// The destination is occupied.
    DeleteFirst,
    /// The object has derived capabilities.
    RevokeFirst,
    /// The untyped has too little memory left.
    NotEnoughMemory,
}

/// Result of an invocation.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// The error behind the label of a reply; an unknown number counts as an illegal operation.
    pub(crate) const fn from_label(label: u64) -> Result<()> {
        Err(match label {
            0 => return Ok(()),
            1 => Self::InvalidArgument,
            2 => Self::InvalidCapability,
            4 => Self::RangeError,
            5 => Self::AlignmentError,
            6 => Self::FailedLookup,
            7 => Self::TruncatedMessage,
            8 => Self::DeleteFirst,
            9 => Self::RevokeFirst,
            10 => Self::NotEnoughMemory,
            _ => Self::IllegalOperation,
        })
    }

    /// Its number in the interface.
    pub const fn number(self) -> u64 {
        match self {
            Self::InvalidArgument => 1,
            Self::InvalidCapability => 2,
            Self::IllegalOperation => 3,
            Self::RangeError => 4,
            Self::AlignmentError => 5,
            Self::FailedLookup => 6,
            Self::TruncatedMessage => 7,
            Self::DeleteFirst => 8,
            Self::RevokeFirst => 9,
            Self::NotEnoughMemory => 10,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn labels_and_numbers_agree_with_the_interface() {
        assert_eq!(Error::from_label(0), Ok(()));
        for number in 1..=10 {
            let error = Error::from_label(number).unwrap_err();
            assert_eq!(error.number(), number);
            assert_eq!(abi::Error::from_number(number).map(|e| e as u64), Some(number));
        }
    }
}
