//! Scheduling contexts: donation, binding, waking, YieldTo.

use super::refill;
use crate::hw::Hw;
use crate::mem::Ref;
use crate::object::notification::Notification;
use crate::object::reply::ReplyNext;
use crate::object::sched_context::SchedContext;
use crate::object::tcb::{Tcb, ThreadState};
use crate::{Action, Kernel};

impl<H: Hw> Kernel<H> {
    /// Tells whether a context has enough time now.
    #[inline]
    pub(crate) fn is_released(&mut self, sc: Ref<SchedContext>) -> bool {
        let (min, wcet) = (self.min_budget, self.wcet);
        refill::is_ready(sc, self.this().time, wcet) && refill::capacity(sc, 0) >= min
    }

    /// Lets a thread wait for its context's next refill.
    pub(crate) fn postpone(&mut self, sc: Ref<SchedContext>) {
        if let Some(tcb) = sc.tcb.get() {
            self.dequeue(tcb);
            self.release_enqueue(tcb);
            self.this().reprogram = true;
        }
    }

    /// Checks whether the thread on a context may go on; if not it waits for the refill.
    pub(crate) fn resume_context(&mut self, sc: Option<Ref<SchedContext>>) {
        if let Some(sc) = sc
            && let Some(tcb) = sc.tcb.get()
            && Self::is_schedulable(tcb)
            && !self.is_released(sc)
        {
            self.postpone(sc);
        }
    }

    /// Joins due refills of a sporadic context whose thread wakes up.
    #[inline]
    pub(crate) fn sporadic_unblock(&mut self, sc: Option<Ref<SchedContext>>) {
        if let Some(sc) = sc
            && sc.sporadic.get()
            && sc.is_active()
            && self.this().current_sc != Some(sc)
        {
            let wcet = self.wcet;
            refill::unblock_check(sc, self.this().time, wcet);
        }
    }

    /// Moves a context to another thread.
    pub(crate) fn donate(&mut self, sc: Ref<SchedContext>, to: Ref<Tcb>) {
        if let Some(from) = sc.tcb.get() {
            self.stall_thread(from);
            self.take_context(from);
        }
        sc.tcb.set(Some(to));
        to.sc.set(Some(sc));
        self.migrate(to, sc.core.get());
    }

    /// Leaves a thread without a context.
    #[inline]
    fn take_context(&mut self, from: Ref<Tcb>) {
        self.dequeue(from);
        self.release_remove(from);
        from.sc.set(None);
        let this = self.this();
        if this.current == Some(from) || this.action == Action::Switch(from) {
            self.reschedule();
        }
    }

    /// Makes a thread belong to a core.
    #[inline]
    pub(crate) fn migrate(&mut self, tcb: Ref<Tcb>, core: u32) {
        if tcb.core.get() != core {
            self.migrate_far(tcb, core);
        }
    }

    #[cold]
    fn migrate_far(&mut self, tcb: Ref<Tcb>, core: u32) {
        self.stall_thread(tcb);
        self.dequeue(tcb);
        self.release_remove(tcb);
        self.forget_current(tcb);
        self.hw.release_thread(tcb);
        tcb.core.set(core);
    }

    /// A thread leaves its core for good or for another one: the core's registers are no longer its.
    pub(crate) fn forget_current(&mut self, tcb: Ref<Tcb>) {
        let core = tcb.core.get() as usize;
        if self.cores[core].current == Some(tcb) && core != self.core {
            self.hw.release_thread(tcb);
            self.cores[core].current = None;
            self.cores[core].action = Action::ChooseNew;
        }
        if self.cores[core].action == Action::Switch(tcb) {
            self.cores[core].action = Action::ChooseNew;
        }
    }

    /// What a thread has beside its saved registers was changed from outside: a core that runs it loads it anew.
    pub(crate) fn reload(&mut self, tcb: Ref<Tcb>) {
        let core = tcb.core.get() as usize;
        if self.cores[core].current != Some(tcb) {
            return;
        }
        if core == self.core {
            self.hw.switch_thread(core, Some(tcb), Some(tcb));
        } else {
            self.forget_current(tcb);
            if Self::is_schedulable(tcb) {
                self.enqueue(tcb);
            }
        }
    }

    /// Binds a context to a thread.
    pub(crate) fn bind_context(&mut self, sc: Ref<SchedContext>, tcb: Ref<Tcb>) {
        sc.tcb.set(Some(tcb));
        tcb.sc.set(Some(sc));
        self.migrate(tcb, sc.core.get());
        if sc.is_active() {
            self.sporadic_unblock(Some(sc));
            self.resume_context(Some(sc));
            if Self::is_schedulable(tcb) {
                self.enqueue(tcb);
                self.reschedule();
            }
        }
    }

    /// Takes a context from its thread. A passive server at work on a caller's goes on with the one of its notification: its caller
    /// may be gone, and nobody else would ever wake it.
    pub(crate) fn unbind_context(&mut self, sc: Ref<SchedContext>, tcb: Ref<Tcb>) {
        self.stall_thread(tcb);
        self.take_context(tcb);
        sc.tcb.set(None);
        if tcb.is_runnable()
            && let Some(notification) = tcb.notification.get()
            && notification.sc.get() != Some(sc)
        {
            self.maybe_lend_context(notification, tcb);
            if Self::is_schedulable(tcb) {
                self.enqueue(tcb);
                self.reschedule();
            }
        }
    }

    /// Ties a context to a notification.
    pub(crate) fn bind_context_notification(
        sc: Ref<SchedContext>,
        notification: Ref<Notification>,
    ) {
        sc.notification.set(Some(notification));
        notification.sc.set(Some(sc));
    }

    /// Unties a context from its notification.
    pub(crate) fn unbind_context_notification(sc: Ref<SchedContext>) {
        if let Some(notification) = sc.notification.get() {
            notification.sc.set(None);
            sc.notification.set(None);
        }
    }

    /// Lends a notification's context to a passive thread it wakes.
    #[inline]
    pub(crate) fn maybe_lend_context(&mut self, notification: Ref<Notification>, tcb: Ref<Tcb>) {
        if tcb.sc.get().is_none()
            && let Some(sc) = notification.sc.get()
            && sc.tcb.get().is_none()
        {
            self.donate(sc, tcb);
            self.sporadic_unblock(Some(sc));
            self.resume_context(Some(sc));
        }
    }

    /// Gives a notification's context back when its borrower blocks.
    #[inline]
    pub(crate) fn maybe_return_context(&mut self, notification: Ref<Notification>, tcb: Ref<Tcb>) {
        if let Some(sc) = tcb.sc.get()
            && notification.sc.get() == Some(sc)
        {
            tcb.sc.set(None);
            sc.tcb.set(None);
            self.dequeue(tcb);
            self.release_remove(tcb);
            if self.current() == Some(tcb) {
                self.reschedule();
            }
        }
    }

    /// Ends a context: nobody runs on it or waits for it any more.
    pub(crate) fn delete_context(&mut self, sc: Ref<SchedContext>) {
        if let Some(tcb) = sc.tcb.get() {
            self.unbind_context(sc, tcb);
        }
        Self::unbind_context_notification(sc);
        if let Some(reply) = sc.reply.get() {
            reply.set_next(ReplyNext::None);
            sc.reply.set(None);
        }
        if let Some(yielder) = sc.yield_from.get() {
            self.complete_yield_to(yielder);
        }
        sc.refill_max.set(0);
        for core in &mut self.cores {
            if core.current_sc == Some(sc) {
                core.current_sc = None;
                core.consumed = 0;
                core.reprogram = true;
            }
        }
    }

    /// Tells and resets the microseconds a context used.
    pub(crate) fn take_consumed_us(&mut self, sc: Ref<SchedContext>) -> u64 {
        // What the running context used since the last look counts too.
        if self.this().current_sc == Some(sc) {
            self.commit_time();
            self.this().reprogram = true;
        }
        let consumed = sc.consumed.get();
        sc.consumed.set(0);
        self.ticks_to_us(consumed)
    }

    /// Tells a thread that waited with YieldTo how much the other one used.
    pub(crate) fn complete_yield_to(&mut self, yielder: Ref<Tcb>) {
        if let Some(sc) = yielder.yield_to.get() {
            let consumed = self.take_consumed_us(sc);
            yielder.set_mr(0, consumed);
            yielder
                .set_reg(abi::syscall::register::MESSAGE_INFO, abi::MessageInfo::new(0, 0, 0, 1).0);
            yielder.set_reg(abi::syscall::register::BADGE, 0);
            sc.yield_from.set(None);
            yielder.yield_to.set(None);
        }
    }

    /// Drops the link of a thread that waited with YieldTo.
    pub(crate) fn cancel_yield_to(yielder: Ref<Tcb>) {
        if let Some(sc) = yielder.yield_to.get() {
            sc.yield_from.set(None);
            yielder.yield_to.set(None);
        }
    }

    /// Lets the thread on `sc` run before the caller; returns the consumed time at once if it cannot.
    pub(crate) fn yield_to(&mut self, caller: Ref<Tcb>, sc: Ref<SchedContext>) -> Option<u64> {
        if let Some(yielder) = sc.yield_from.get() {
            self.complete_yield_to(yielder);
        }
        self.resume_context(Some(sc));
        if let Some(tcb) = sc.tcb.get()
            && Self::is_schedulable(tcb)
        {
            let core = sc.core.get() as usize;
            if core != self.core && self.cores[core].current == Some(tcb) {
                // It runs there already.
                return Some(self.take_consumed_us(sc));
            }
            self.dequeue(tcb);
            if core != self.core || tcb.priority.get() < caller.priority.get() {
                self.enqueue(tcb);
            } else {
                caller.yield_to.set(Some(sc));
                sc.yield_from.set(Some(caller));
                self.enqueue(caller);
                self.enqueue(tcb);
                self.reschedule();
                return None;
            }
        }
        Some(self.take_consumed_us(sc))
    }

    /// Stops a thread wherever it is.
    pub(crate) fn suspend(&mut self, tcb: Ref<Tcb>) {
        self.stall_thread(tcb);
        self.cancel_ipc(tcb);
        if tcb.state.get() == ThreadState::Running {
            tcb.fault_ip.set(tcb.reg(abi::context::index::RIP));
        }
        if tcb.state.get() == ThreadState::RunningVm {
            self.leave_guest(tcb);
        }
        self.set_state(tcb, ThreadState::Inactive);
        self.dequeue(tcb);
        self.release_remove(tcb);
        if self.this().action == Action::Switch(tcb) {
            self.reschedule();
        }
        Self::cancel_yield_to(tcb);
    }

    /// Starts a stopped or blocked thread again; an interrupted system call is made again.
    pub(crate) fn restart(&mut self, tcb: Ref<Tcb>) {
        if tcb.is_blocked() || tcb.state.get() == ThreadState::Inactive {
            self.cancel_ipc(tcb);
            self.set_state(tcb, ThreadState::Restart);
            self.sporadic_unblock(tcb.sc.get());
            self.resume_context(tcb.sc.get());
            if Self::is_schedulable(tcb) {
                self.possible_switch_to(tcb);
            }
        }
    }

    /// Changes a thread's priority, in whatever queue it is.
    pub(crate) fn set_priority(&mut self, tcb: Ref<Tcb>, priority: u8) {
        self.stall_thread(tcb);
        if tcb.in_ready_queue.get() {
            self.dequeue(tcb);
            tcb.priority.set(priority);
            self.enqueue(tcb);
            self.reschedule();
        } else {
            tcb.priority.set(priority);
            if self.current() == Some(tcb) || Self::is_schedulable(tcb) {
                if Self::is_schedulable(tcb) {
                    self.enqueue(tcb);
                }
                self.reschedule();
            }
            self.requeue_blocked(tcb);
        }
    }
}
