//! Receive loops of servers that answer calls.

use core::sync::atomic::Ordering;

use protocol::root::{Command, Root, RootReply, RootRequest};
use protocol::{slots, startup};
use sel4::{Cap, MessageInfo, RecvWithMRs, cap};

use crate::message::{Answer, CallError, call};
use crate::shared;

/// The root-task's endpoint.
pub const ROOT: cap::Endpoint = Cap::from_bits(slots::ROOT_ENDPOINT);
/// Wakes the root-task to look at this server's pages.
pub const ROOT_NOTIFY: cap::Notification = Cap::from_bits(slots::ROOT_NOTIFY);
/// The endpoint this server receives on.
pub const ENDPOINT: cap::Endpoint = Cap::from_bits(slots::ENDPOINT);
/// This server's notification.
pub const NOTIFICATION: cap::Notification = Cap::from_bits(slots::NOTIFICATION);
/// The reply object of the receive loop.
pub const REPLY: cap::Reply = Cap::from_bits(slots::REPLY);

/// What a server that answers calls may receive.
#[derive(Clone, Copy, Debug)]
pub enum Incoming {
    /// Signals of the bound notification, see [`protocol::slots::notify`].
    Signals(u64),
    /// A call or a fault; the badge says whose.
    Message(RecvWithMRs),
}

/// Tells signals from messages. Endpoint badges of Ballast have none of the bits that mark signals, so the root-task mints
/// every signal of a calling server with this bit.
fn sort(received: RecvWithMRs) -> Incoming {
    if received.badge & slots::notify::SIGNAL != 0 {
        Incoming::Signals(received.badge)
    } else {
        Incoming::Message(received)
    }
}

/// Says that this server serves, gives up its scheduling context and receives the first message, in one step.
///
/// From here on the server runs on its callers' scheduling contexts, and on its notification's for signals.
pub fn enter_passive() -> Incoming {
    if let Some(word) = shared::page().get(startup::shared::SERVING) {
        word.store(1, Ordering::Release);
    }
    let info = MessageInfo::new(0, 0, 0, 1);
    sort(sel4::nb_send_recv_with_mrs(ROOT_NOTIFY, info, [0; 4], ENDPOINT, REPLY))
}

/// Receives.
pub fn receive() -> Incoming {
    sort(ENDPOINT.recv_with_mrs(REPLY))
}

/// Answers the caller of the last message and receives.
pub fn answer_and_receive(answer: Answer) -> Incoming {
    sort(ENDPOINT.reply_recv_with_mrs(answer.info, answer.msg, REPLY))
}

/// Asks the root-task.
///
/// # Errors
///
/// [`CallError`]: the interfaces do not fit.
pub fn ask_root(request: &RootRequest) -> Result<RootReply, CallError> {
    call::<Root>(ROOT, request)
}

/// The root-task's next command for this server, if there is one.
pub fn next_command() -> Option<Command> {
    match ask_root(&RootRequest::NextCommand) {
        Ok(RootReply::Command(command)) => Some(command),
        _ => None,
    }
}
