//! Control messages: one postcard value in the IPC buffer from message register 4 on.
//!
//! MR0 is the payload's length in bytes, the message length covers it in words. An answer has label
//! 0; label 1 means that the request could not be decoded.

use protocol::interface::{self, DecodeError, Interface, PAYLOAD_MAX};
use sel4::{MessageInfo, RecvWithMRs, cap};

/// First message register of the payload.
const PAYLOAD_REGISTER: usize = 4;
/// Label of an answer.
const ANSWERED: u64 = 0;
/// Label of the answer to what is no request.
const NOT_UNDERSTOOD: u64 = 1;

/// Why a call brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The request is longer than a message.
    TooLong,
    /// The server did not understand the request.
    NotUnderstood,
    /// The answer is not one of this interface.
    BadAnswer(DecodeError),
}

/// An answer ready to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Label and length.
    pub info: MessageInfo,
    /// Words in registers.
    pub msg: [u64; 4],
}

fn payload_info(label: u64, length: usize) -> MessageInfo {
    MessageInfo::new(label, 0, 0, (PAYLOAD_REGISTER + length.div_ceil(8)) as u64)
}

fn with_payload<R>(info: MessageInfo, length: u64, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
    let words = usize::try_from(info.length()).ok()?.checked_sub(PAYLOAD_REGISTER)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= words * 8)?;
    sel4::with_ipc_buffer(|buffer| buffer.msg_bytes(PAYLOAD_REGISTER).get(..length).map(f))
}

/// Writes `value` into the IPC buffer; its length.
fn put<T: serde::Serialize>(value: &T) -> Option<usize> {
    sel4::with_ipc_buffer_mut(|buffer| {
        let place = buffer.msg_bytes_mut(PAYLOAD_REGISTER).get_mut(..PAYLOAD_MAX)?;
        interface::encode(value, place).map(<[u8]>::len)
    })
}

/// Calls `endpoint` with a request of interface `I`.
///
/// # Errors
///
/// [`CallError`] if there is no proper answer.
pub fn call<I: Interface>(
    endpoint: cap::Endpoint,
    request: &I::Request,
) -> Result<I::Reply, CallError> {
    let length = put(request).ok_or(CallError::TooLong)?;
    let answer = endpoint.call_with_mrs(payload_info(I::LABEL, length), [length as u64, 0, 0, 0]);
    if answer.info.label() != ANSWERED {
        return Err(CallError::NotUnderstood);
    }
    with_payload(answer.info, answer.msg[0], interface::decode_reply::<I>)
        .unwrap_or(Err(DecodeError::Malformed))
        .map_err(CallError::BadAnswer)
}

/// Decodes a message received as a request of interface `I`.
///
/// # Errors
///
/// [`DecodeError`] if it is none.
pub fn request<I: Interface>(received: &RecvWithMRs) -> Result<I::Request, DecodeError> {
    let label = received.info.label();
    with_payload(received.info, received.msg[0], |bytes| interface::decode::<I>(label, bytes))
        .unwrap_or(Err(DecodeError::Malformed))
}

/// Puts an answer of interface `I` into the IPC buffer, to be sent at once.
pub fn answer<I: Interface>(reply: &I::Reply) -> Answer {
    match put(reply) {
        Some(length) => {
            Answer { info: payload_info(ANSWERED, length), msg: [length as u64, 0, 0, 0] }
        }
        None => not_understood(),
    }
}

/// The answer to what is no request.
pub const fn not_understood() -> Answer {
    Answer { info: MessageInfo::new(NOT_UNDERSTOOD, 0, 0, 0), msg: [0; 4] }
}
