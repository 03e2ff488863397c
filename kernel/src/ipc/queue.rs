//! Queues of blocked threads: highest priority first, first come first among equals.

use crate::mem::Ref;
use crate::object::tcb::Tcb;

/// Head and tail of a queue.
pub type Ends = (Option<Ref<Tcb>>, Option<Ref<Tcb>>);

/// Puts a thread behind all of at least its priority.
#[inline]
#[must_use]
pub fn insert(ends: Ends, tcb: Ref<Tcb>) -> Ends {
    let mut before = ends.1;
    let mut behind = None;
    while let Some(other) = before
        && other.priority.get() < tcb.priority.get()
    {
        behind = Some(other);
        before = other.ep_prev.get();
    }
    tcb.ep_prev.set(before);
    tcb.ep_next.set(behind);
    if let Some(before) = before {
        before.ep_next.set(Some(tcb));
    }
    if let Some(behind) = behind {
        behind.ep_prev.set(Some(tcb));
    }
    (
        if before.is_none() { Some(tcb) } else { ends.0 },
        if behind.is_none() { Some(tcb) } else { ends.1 },
    )
}

/// Takes a thread out.
#[inline]
#[must_use]
pub fn remove(ends: Ends, tcb: Ref<Tcb>) -> Ends {
    let (prev, next) = (tcb.ep_prev.get(), tcb.ep_next.get());
    if let Some(prev) = prev {
        prev.ep_next.set(next);
    }
    if let Some(next) = next {
        next.ep_prev.set(prev);
    }
    tcb.ep_prev.set(None);
    tcb.ep_next.set(None);
    (if prev.is_none() { next } else { ends.0 }, if next.is_none() { prev } else { ends.1 })
}
