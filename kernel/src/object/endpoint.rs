//! Endpoint: a queue of threads that wait to send or to receive.

use core::cell::Cell;

use super::tcb::Tcb;
use crate::mem::Ref;

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Nobody.
    Idle,
    /// Senders.
    Send,
    /// Receivers.
    Receive,
}

/// 16 bytes: head of the queue with the state in its low bits, and tail.
#[repr(C)]
pub struct Endpoint {
    head_and_state: Cell<u64>,
    tail: Cell<Option<Ref<Tcb>>>,
}

const _: () = assert!(size_of::<Endpoint>() == 1 << abi::object::ENDPOINT_BITS);
const STATE: u64 = 3;

impl Endpoint {
    /// Tells who waits.
    #[inline(always)]
    #[must_use]
    pub fn state(&self) -> EndpointState {
        match self.head_and_state.get() & STATE {
            0 => EndpointState::Idle,
            1 => EndpointState::Send,
            _ => EndpointState::Receive,
        }
    }

    /// Returns the first waiting thread.
    #[inline(always)]
    #[must_use]
    pub fn head(&self) -> Option<Ref<Tcb>> {
        Ref::from_word(self.head_and_state.get() & !STATE)
    }

    /// Returns the last waiting thread.
    #[inline]
    #[must_use]
    pub fn tail(&self) -> Option<Ref<Tcb>> {
        self.tail.get()
    }

    /// Sets the queue; an empty one is idle whatever `state` says.
    #[inline(always)]
    pub fn set(&self, state: EndpointState, head: Option<Ref<Tcb>>, tail: Option<Ref<Tcb>>) {
        let word = match head {
            None => 0,
            Some(head) => {
                head.word()
                    | match state {
                        EndpointState::Idle => 0,
                        EndpointState::Send => 1,
                        EndpointState::Receive => 2,
                    }
            }
        };
        self.head_and_state.set(word);
        self.tail.set(tail);
    }
}
