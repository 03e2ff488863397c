//! Notification: a word of signals, its waiters, its bound thread.

use core::cell::Cell;

use super::sched_context::SchedContext;
use super::tcb::Tcb;
use crate::mem::Ref;

/// What a notification holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum NotificationState {
    /// No signal, no waiter.
    Idle = 0,
    /// Threads wait.
    Waiting = 1,
    /// Signals wait.
    Active = 2,
}

/// 64 bytes.
#[repr(C)]
pub struct Notification {
    /// First waiting thread.
    pub head: Cell<Option<Ref<Tcb>>>,
    /// Last waiting thread.
    pub tail: Cell<Option<Ref<Tcb>>>,
    /// What it holds.
    pub state: Cell<NotificationState>,
    /// Badges of the signals not yet taken.
    pub word: Cell<u64>,
    /// Thread that gets the signals wherever it receives.
    pub bound_tcb: Cell<Option<Ref<Tcb>>>,
    /// Scheduling context lent to a passive thread that is woken.
    pub sc: Cell<Option<Ref<SchedContext>>>,
    /// Unused.
    pub spare: [Cell<u64>; 2],
}

const _: () = assert!(size_of::<Notification>() == 1 << abi::object::NOTIFICATION_BITS);
