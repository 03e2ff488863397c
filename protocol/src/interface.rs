//! How a control message is framed: one label per interface, one postcard value as payload.
//!
//! Hot messages (fault-in, doorbell) are not encoded here: they are fixed words with labels of
//! their own, listed in the interface's file.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Most payload bytes of one message: 116 words, the IPC buffer's 120 less the four in registers.
pub const PAYLOAD_MAX: usize = 116 * 8;

/// One interface: who may be asked what.
pub trait Interface {
    /// Message label of a request of this interface.
    const LABEL: u64;
    /// What may be asked.
    type Request: Serialize + DeserializeOwned;
    /// What is answered.
    type Reply: Serialize + DeserializeOwned;
}

/// Why bytes were not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecodeError {
    /// The label belongs to no interface of this server. Client bug: do not retry.
    WrongLabel {
        /// The label that came.
        got: u64,
    },
    /// The payload is not a request of this interface. Client bug: do not retry.
    Malformed,
    /// Bytes follow the request. Client bug: do not retry.
    TrailingBytes {
        /// How many.
        count: u32,
    },
}

/// Decodes a request of interface `I`.
///
/// # Errors
///
/// [`DecodeError`] if `label` or `payload` is not exactly one request of `I`.
pub fn decode<I: Interface>(label: u64, payload: &[u8]) -> Result<I::Request, DecodeError> {
    if label != I::LABEL {
        return Err(DecodeError::WrongLabel { got: label });
    }
    take_all(payload)
}

/// Decodes the reply to a request of interface `I`.
///
/// # Errors
///
/// [`DecodeError`] if `payload` is not exactly one reply of `I`.
pub fn decode_reply<I: Interface>(payload: &[u8]) -> Result<I::Reply, DecodeError> {
    take_all(payload)
}

/// Encodes `value` into `buffer`; `None` if it does not fit.
pub fn encode<'b, T: Serialize>(value: &T, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    postcard::to_slice(value, buffer).ok().map(|used| &*used)
}

/// Decodes exactly one value that fills `payload`.
///
/// # Errors
///
/// [`DecodeError::Malformed`] or [`DecodeError::TrailingBytes`].
pub fn take_all<'p, T: Deserialize<'p>>(payload: &'p [u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => {
            Err(DecodeError::TrailingBytes { count: u32::try_from(rest.len()).unwrap_or(u32::MAX) })
        }
        Err(_) => Err(DecodeError::Malformed),
    }
}
