//! Reply object: holds one caller and links the chain of calls on a scheduling context.

use core::cell::Cell;

use super::sched_context::SchedContext;
use super::tcb::Tcb;
use crate::mem::Ref;

/// 32 bytes.
#[repr(C)]
pub struct Reply {
    /// The caller, or the receiver that waits with this object.
    pub tcb: Cell<Option<Ref<Tcb>>>,
    /// The call made before this one on the same scheduling context.
    pub prev: Cell<Option<Ref<Reply>>>,
    /// The call made after this one, or (bit 0) the scheduling context where this is the latest.
    next: Cell<u64>,
    /// Unused.
    spare: Cell<u64>,
}

const _: () = assert!(size_of::<Reply>() == 1 << abi::object::REPLY_BITS);

/// What follows a reply object in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyNext {
    /// Nothing: in no chain, or the chain was broken behind it.
    None,
    /// A later call.
    Reply(Ref<Reply>),
    /// The scheduling context itself: this is the latest call.
    Head(Ref<SchedContext>),
}

impl Reply {
    /// Tells what follows.
    #[inline(always)]
    #[must_use]
    pub fn next(&self) -> ReplyNext {
        let word = self.next.get();
        if word & 1 != 0 {
            Ref::from_word(word & !1).map_or(ReplyNext::None, ReplyNext::Head)
        } else {
            Ref::from_word(word).map_or(ReplyNext::None, ReplyNext::Reply)
        }
    }

    /// Sets what follows.
    #[inline(always)]
    pub fn set_next(&self, next: ReplyNext) {
        self.next.set(match next {
            ReplyNext::None => 0,
            ReplyNext::Reply(reply) => reply.word(),
            ReplyNext::Head(sc) => sc.word() | 1,
        });
    }
}
