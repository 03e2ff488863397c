//! Errors of invocations.

use core::fmt;

/// Why the kernel did not carry out an invocation. Details are in the message registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Error {
    /// An argument has a bad value.
    InvalidArgument = abi::Error::InvalidArgument as u64,
    /// A capability is of the wrong type or lacks rights.
    InvalidCapability = abi::Error::InvalidCapability as u64,
    /// The object cannot do this, or not now.
    IllegalOperation = abi::Error::IllegalOperation as u64,
    /// A value is outside the allowed range.
    RangeError = abi::Error::RangeError as u64,
    /// An address is not aligned.
    AlignmentError = abi::Error::AlignmentError as u64,
    /// A slot or a paging structure was not found.
    FailedLookup = abi::Error::FailedLookup as u64,
    /// The message is too short.
    TruncatedMessage = abi::Error::TruncatedMessage as u64,
    /// The destination is occupied.
    DeleteFirst = abi::Error::DeleteFirst as u64,
    /// The object has derived capabilities.
    RevokeFirst = abi::Error::RevokeFirst as u64,
    /// The untyped has too little memory left.
    NotEnoughMemory = abi::Error::NotEnoughMemory as u64,
}

/// Result of an invocation.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// The error behind the label of a reply; an unknown number counts as an illegal operation.
    pub(crate) const fn from_label(label: u64) -> Result<()> {
        use abi::Error as Number;
        Err(match Number::from_number(label) {
            Some(Number::NoError) => return Ok(()),
            Some(Number::InvalidArgument) => Self::InvalidArgument,
            Some(Number::InvalidCapability) => Self::InvalidCapability,
            Some(Number::RangeError) => Self::RangeError,
            Some(Number::AlignmentError) => Self::AlignmentError,
            Some(Number::FailedLookup) => Self::FailedLookup,
            Some(Number::TruncatedMessage) => Self::TruncatedMessage,
            Some(Number::DeleteFirst) => Self::DeleteFirst,
            Some(Number::RevokeFirst) => Self::RevokeFirst,
            Some(Number::NotEnoughMemory) => Self::NotEnoughMemory,
            Some(Number::IllegalOperation) | None => Self::IllegalOperation,
        })
    }

    /// Its number in the interface.
    pub const fn number(self) -> u64 {
        self as u64
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
