//! Notifications: signals, waiters, bound threads.

use abi::syscall::register;

use crate::Kernel;
use crate::hw::Hw;
use crate::mem::Ref;
use crate::object::notification::{Notification, NotificationState};
use crate::object::tcb::{Tcb, ThreadState};

use super::queue;

impl<H: Hw> Kernel<H> {
    /// Adds `badge` to the word, or wakes a thread with it.
    pub(crate) fn signal(&mut self, notification: Ref<Notification>, badge: u64) {
        match notification.state.get() {
            NotificationState::Idle => {
                if let Some(tcb) = notification.bound_tcb.get() {
                    match tcb.state.get() {
                        ThreadState::BlockedOnReceive => {
                            self.cancel_ipc(tcb);
                            self.wake_with(notification, tcb, badge);
                            return;
                        }
                        ThreadState::RunningVm => {
                            self.signal_guest(tcb, badge);
                            self.maybe_lend_context(notification, tcb);
                            return;
                        }
                        _ => {}
                    }
                }
                notification.word.set(badge);
                notification.state.set(NotificationState::Active);
            }
            NotificationState::Waiting => {
                let Some(tcb) = notification.head.get() else { return };
                self.dequeue_waiter(notification, tcb);
                self.wake_with(notification, tcb, badge);
            }
            NotificationState::Active => notification.word.set(notification.word.get() | badge),
        }
    }

    fn dequeue_waiter(&mut self, notification: Ref<Notification>, tcb: Ref<Tcb>) {
        let (head, tail) = queue::remove((notification.head.get(), notification.tail.get()), tcb);
        notification.head.set(head);
        notification.tail.set(tail);
        if head.is_none() {
            notification.state.set(NotificationState::Idle);
        }
    }

    fn wake_with(&mut self, notification: Ref<Notification>, tcb: Ref<Tcb>, badge: u64) {
        self.set_state(tcb, ThreadState::Running);
        tcb.set_reg(register::BADGE, badge);
        self.maybe_lend_context(notification, tcb);
        self.sporadic_unblock(tcb.sc.get());
        if Self::is_schedulable(tcb) {
            self.possible_switch_to(tcb);
        }
    }

    /// Waits for a signal, or takes the one that is there.
    pub(crate) fn receive_signal(
        &mut self,
        tcb: Ref<Tcb>,
        notification: Ref<Notification>,
        is_blocking: bool,
    ) {
        if notification.state.get() == NotificationState::Active {
            self.take_signal(tcb, notification);
        } else if is_blocking {
            tcb.blocking_object.set(notification.addr());
            self.set_state(tcb, ThreadState::BlockedOnNotification);
            self.maybe_return_context(notification, tcb);
            let (head, tail) =
                queue::insert((notification.head.get(), notification.tail.get()), tcb);
            notification.head.set(head);
            notification.tail.set(tail);
            notification.state.set(NotificationState::Waiting);
        } else {
            tcb.set_reg(register::BADGE, 0);
        }
    }

    /// Takes the word of an active notification.
    pub(crate) fn take_signal(&mut self, tcb: Ref<Tcb>, notification: Ref<Notification>) {
        tcb.set_reg(register::BADGE, notification.word.get());
        notification.state.set(NotificationState::Idle);
        notification.word.set(0);
        self.maybe_lend_context(notification, tcb);
    }

    /// Ends a thread's wait for a signal.
    pub(crate) fn cancel_wait(&mut self, tcb: Ref<Tcb>) {
        let notification: Ref<Notification> = Ref::at(tcb.blocking_object.get());
        self.dequeue_waiter(notification, tcb);
        self.set_state(tcb, ThreadState::Inactive);
    }

    /// Wakes everybody who waits on a notification that is deleted.
    pub(crate) fn cancel_all_waits(&mut self, notification: Ref<Notification>) {
        while let Some(tcb) = notification.head.get() {
            self.dequeue_waiter(notification, tcb);
            self.set_state(tcb, ThreadState::Restart);
            self.sporadic_unblock(tcb.sc.get());
            self.resume_context(tcb.sc.get());
            if Self::is_schedulable(tcb) {
                self.possible_switch_to(tcb);
            }
        }
        self.reschedule();
    }

    /// Ties a thread to a notification.
    pub(crate) fn bind_notification(tcb: Ref<Tcb>, notification: Ref<Notification>) {
        notification.bound_tcb.set(Some(tcb));
        tcb.notification.set(Some(notification));
    }

    /// Unties a thread from its notification.
    pub(crate) fn unbind_notification(tcb: Ref<Tcb>) {
        if let Some(notification) = tcb.notification.get() {
            notification.bound_tcb.set(None);
            tcb.notification.set(None);
        }
    }
}
