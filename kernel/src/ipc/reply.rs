//! Reply objects: who called whom, and the way of the scheduling context back.

use crate::Kernel;
use crate::hw::Hw;
use crate::mem::Ref;
use crate::object::reply::{Reply, ReplyNext};
use crate::object::tcb::{PendingFault, Tcb, ThreadState};

impl<H: Hw> Kernel<H> {
    /// Records a call: `caller` waits on `reply`; its context goes to `callee` where that has none.
    pub(crate) fn reply_push(
        &mut self,
        caller: Ref<Tcb>,
        callee: Ref<Tcb>,
        reply: Ref<Reply>,
        may_donate: bool,
    ) {
        reply.tcb.set(Some(caller));
        caller.reply.set(Some(reply));
        self.set_state(caller, ThreadState::BlockedOnReply);
        if may_donate
            && callee.sc.get().is_none()
            && let Some(sc) = caller.sc.get()
        {
            let older = sc.reply.get();
            if let Some(older) = older {
                older.set_next(ReplyNext::Reply(reply));
            }
            reply.prev.set(older);
            reply.set_next(ReplyNext::Head(sc));
            sc.reply.set(Some(reply));
            self.donate(sc, callee);
        }
    }

    /// Frees a reply object from the thread that waits with it or on it.
    #[inline]
    pub(crate) fn reply_unlink(&mut self, reply: Ref<Reply>, tcb: Ref<Tcb>) {
        reply.tcb.set(None);
        tcb.reply.set(None);
        self.set_state(tcb, ThreadState::Inactive);
    }

    /// Takes the caller off a reply object because it is answered or the object goes; the latest call's context returns.
    pub(crate) fn reply_remove(&mut self, reply: Ref<Reply>, tcb: Ref<Tcb>) {
        match reply.next() {
            ReplyNext::Head(sc) => {
                let older = reply.prev.get();
                sc.reply.set(older);
                if let Some(older) = older {
                    older.set_next(ReplyNext::Head(sc));
                }
                if tcb.sc.get().is_none() {
                    self.donate(sc, tcb);
                }
            }
            ReplyNext::Reply(newer) => {
                newer.prev.set(None);
                Self::break_behind(reply);
            }
            ReplyNext::None => Self::break_behind(reply),
        }
        reply.prev.set(None);
        reply.set_next(ReplyNext::None);
        self.reply_unlink(reply, tcb);
    }

    /// Takes a caller that stops waiting off its reply object: the chain breaks there and the context stays where it is.
    pub(crate) fn reply_remove_caller(&mut self, tcb: Ref<Tcb>) {
        let Some(reply) = tcb.reply.get() else { return };
        match reply.next() {
            ReplyNext::Head(sc) => sc.reply.set(None),
            ReplyNext::Reply(newer) => newer.prev.set(None),
            ReplyNext::None => {}
        }
        Self::break_behind(reply);
        reply.prev.set(None);
        reply.set_next(ReplyNext::None);
        self.reply_unlink(reply, tcb);
    }

    fn break_behind(reply: Ref<Reply>) {
        if let Some(older) = reply.prev.get() {
            older.set_next(ReplyNext::None);
        }
    }

    /// Answers the caller that waits on a reply object; nothing happens if none does.
    pub(crate) fn reply_transfer(&mut self, sender: Ref<Tcb>, reply: Ref<Reply>, can_grant: bool) {
        let Some(receiver) = reply.tcb.get() else { return };
        if receiver.state.get() != ThreadState::BlockedOnReply {
            return;
        }
        self.reply_remove(reply, receiver);
        self.sporadic_unblock(receiver.sc.get());
        let fault = receiver.fault();
        if fault == PendingFault::Null {
            self.transfer(sender, receiver, None, 0, can_grant);
            self.set_state(receiver, ThreadState::Running);
        } else {
            let goes_on = self.fault_reply(sender, receiver, fault);
            receiver.set_fault(PendingFault::Null);
            let state = if goes_on { ThreadState::Restart } else { ThreadState::Inactive };
            self.set_state(receiver, state);
        }
        if let Some(sc) = receiver.sc.get()
            && receiver.is_runnable()
        {
            if !sc.is_active() {
                return;
            }
            if self.is_released(sc) {
                self.possible_switch_to(receiver);
            } else if Self::has_timeout_handler(receiver)
                && !matches!(fault, PendingFault::Timeout { .. })
            {
                self.handle_timeout_fault(
                    receiver,
                    PendingFault::Timeout { badge: sc.badge.get() },
                );
            } else {
                self.postpone(sc);
            }
        }
    }
}
