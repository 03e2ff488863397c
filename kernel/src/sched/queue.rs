//! Ready queues by priority and the release queue by time, per core.

use super::refill;
use crate::hw::Hw;
use crate::mem::Ref;
use crate::object::tcb::Tcb;
use crate::{Core, Kernel, Queue};

impl Core {
    /// Puts a thread into its ready queue, at the back or at the front.
    pub(crate) fn insert_ready(&mut self, tcb: Ref<Tcb>, at_back: bool) {
        let priority = tcb.priority.get();
        let queue = &mut self.ready[usize::from(priority)];
        match (queue.head, queue.tail) {
            (Some(head), Some(tail)) => {
                if at_back {
                    tail.sched_next.set(Some(tcb));
                    tcb.sched_prev.set(Some(tail));
                    tcb.sched_next.set(None);
                    queue.tail = Some(tcb);
                } else {
                    head.sched_prev.set(Some(tcb));
                    tcb.sched_next.set(Some(head));
                    tcb.sched_prev.set(None);
                    queue.head = Some(tcb);
                }
            }
            _ => {
                *queue = Queue { head: Some(tcb), tail: Some(tcb) };
                tcb.sched_next.set(None);
                tcb.sched_prev.set(None);
                self.ready_bitmap[usize::from(priority / 64)] |= 1 << (priority % 64);
            }
        }
        tcb.in_ready_queue.set(true);
    }

    pub(crate) fn remove_ready(&mut self, tcb: Ref<Tcb>) {
        let priority = tcb.priority.get();
        let queue = &mut self.ready[usize::from(priority)];
        let (prev, next) = (tcb.sched_prev.get(), tcb.sched_next.get());
        match prev {
            Some(prev) => prev.sched_next.set(next),
            None => queue.head = next,
        }
        match next {
            Some(next) => next.sched_prev.set(prev),
            None => queue.tail = prev,
        }
        if queue.head.is_none() {
            self.ready_bitmap[usize::from(priority / 64)] &= !(1 << (priority % 64));
        }
        tcb.in_ready_queue.set(false);
    }

    /// Returns the highest priority with a ready thread.
    #[inline]
    pub(crate) fn highest_ready(&self) -> Option<u8> {
        for word in (0..4u8).rev() {
            let bits = self.ready_bitmap[usize::from(word)];
            if bits != 0 {
                return Some(word * 64 + 63 - bits.leading_zeros() as u8);
            }
        }
        None
    }

    /// Tells whether no ready thread is above `priority`.
    #[inline]
    pub(crate) fn is_highest(&self, priority: u8) -> bool {
        let word = priority / 64;
        let above = self.ready_bitmap[usize::from(word)] >> (priority % 64) >> 1;
        above == 0 && self.ready_bitmap[usize::from(word) + 1..].iter().all(|bits| *bits == 0)
    }
}

impl<H: Hw> Kernel<H> {
    /// Makes a thread ready, before its equals (as seL4 does: who was woken last runs first); wakes its core if that is another one.
    pub(crate) fn enqueue(&mut self, tcb: Ref<Tcb>) {
        if !tcb.in_ready_queue.get() {
            self.core_of(tcb).insert_ready(tcb, false);
            self.note_remote(tcb);
        }
    }

    /// Makes a thread ready, behind its equals: its time slice is over, or it came while an equal was running.
    pub(crate) fn append(&mut self, tcb: Ref<Tcb>) {
        if !tcb.in_ready_queue.get() {
            self.core_of(tcb).insert_ready(tcb, true);
            self.note_remote(tcb);
        }
    }

    /// Takes a thread out of its ready queue.
    #[inline]
    pub(crate) fn dequeue(&mut self, tcb: Ref<Tcb>) {
        if tcb.in_ready_queue.get() {
            self.core_of(tcb).remove_ready(tcb);
        }
    }

    fn note_remote(&mut self, tcb: Ref<Tcb>) {
        let core = tcb.core.get() as usize;
        if core != self.core {
            let better = match self.cores[core].current {
                Some(current) => tcb.priority.get() > current.priority.get(),
                None => true,
            };
            if better {
                self.kicks |= 1 << core;
            }
        }
    }

    /// Puts a thread among those that wait for their refill, by time.
    pub(crate) fn release_enqueue(&mut self, tcb: Ref<Tcb>) {
        if tcb.in_release_queue.get() {
            return;
        }
        let Some(sc) = tcb.sc.get() else { return };
        let time = sc.head().time;
        let core = self.core_of(tcb);
        let mut before: Option<Ref<Tcb>> = None;
        let mut behind = core.release_head;
        while let Some(other) = behind {
            if other.sc.get().is_none_or(|sc| sc.head().time > time) {
                break;
            }
            before = Some(other);
            behind = other.sched_next.get();
        }
        tcb.sched_prev.set(before);
        tcb.sched_next.set(behind);
        if let Some(behind) = behind {
            behind.sched_prev.set(Some(tcb));
        }
        match before {
            Some(before) => before.sched_next.set(Some(tcb)),
            None => {
                core.release_head = Some(tcb);
                core.reprogram = true;
            }
        }
        tcb.in_release_queue.set(true);
        let core = tcb.core.get() as usize;
        if core != self.core && self.cores[core].release_head == Some(tcb) {
            self.kicks |= 1 << core;
        }
    }

    /// Takes a thread out of the release queue.
    pub(crate) fn release_remove(&mut self, tcb: Ref<Tcb>) {
        if !tcb.in_release_queue.get() {
            return;
        }
        let core = self.core_of(tcb);
        let (prev, next) = (tcb.sched_prev.get(), tcb.sched_next.get());
        match prev {
            Some(prev) => prev.sched_next.set(next),
            None => {
                core.release_head = next;
                core.reprogram = true;
            }
        }
        if let Some(next) = next {
            next.sched_prev.set(prev);
        }
        tcb.in_release_queue.set(false);
    }

    /// Readies every thread of this core whose refill is due.
    pub(crate) fn awaken(&mut self) {
        while let Some(tcb) = self.this().release_head {
            let due = match tcb.sc.get() {
                Some(sc) => refill::is_ready(sc, self.this().time, self.wcet),
                None => true,
            };
            if !due {
                break;
            }
            self.release_remove(tcb);
            self.possible_switch_to(tcb);
        }
    }

    #[inline(always)]
    fn core_of(&mut self, tcb: Ref<Tcb>) -> &mut Core {
        &mut self.cores[tcb.core.get() as usize & (crate::limits::MAX_CORES - 1)]
    }
}
