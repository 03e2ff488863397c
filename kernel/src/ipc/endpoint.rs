//! Endpoints: senders and receivers meet.

use crate::Kernel;
use crate::hw::Hw;
use crate::mem::{PhysAddr, Ref};
use crate::object::endpoint::{Endpoint, EndpointState};
use crate::object::notification::{Notification, NotificationState};
use crate::object::reply::Reply;
use crate::object::tcb::{PendingFault, Tcb, ThreadState};

use super::queue;

/// How a message is sent.
#[derive(Clone, Copy, Debug)]
pub struct SendMode {
    /// Waits for a receiver.
    pub is_blocking: bool,
    /// Wants an answer.
    pub is_call: bool,
    /// The sender's context may go along.
    pub may_donate: bool,
    /// The capability has grant.
    pub can_grant: bool,
    /// The capability has grantReply.
    pub can_grant_reply: bool,
}

impl<H: Hw> Kernel<H> {
    /// Sends a message of `sender` through an endpoint.
    pub(crate) fn send_ipc(
        &mut self,
        sender: Ref<Tcb>,
        endpoint: Ref<Endpoint>,
        badge: u64,
        mode: SendMode,
    ) {
        if endpoint.state() != EndpointState::Receive {
            if mode.is_blocking {
                sender.blocking_object.set(endpoint.addr());
                sender.badge.set(badge);
                sender.can_grant.set(mode.can_grant);
                sender.can_grant_reply.set(mode.can_grant_reply);
                sender.is_call.set(mode.is_call);
                self.set_state(sender, ThreadState::BlockedOnSend);
                let (head, tail) = queue::insert((endpoint.head(), endpoint.tail()), sender);
                endpoint.set(EndpointState::Send, head, tail);
            }
            return;
        }
        let Some(receiver) = endpoint.head() else { return };
        let (head, tail) = queue::remove((endpoint.head(), endpoint.tail()), receiver);
        endpoint.set(EndpointState::Receive, head, tail);
        self.transfer(sender, receiver, Some(endpoint), badge, mode.can_grant);
        let reply = receiver.reply.get();
        if let Some(reply) = reply {
            self.reply_unlink(reply, receiver);
        }
        if mode.is_call || sender.has_fault.get() {
            match reply {
                Some(reply) if mode.can_grant || mode.can_grant_reply => {
                    self.reply_push(sender, receiver, reply, mode.may_donate);
                }
                _ => self.set_state(sender, ThreadState::Inactive),
            }
        } else if mode.may_donate
            && receiver.sc.get().is_none()
            && let Some(sc) = sender.sc.get()
        {
            self.donate(sc, receiver);
        }
        self.set_state(receiver, ThreadState::Running);
        self.sporadic_unblock(receiver.sc.get());
        self.possible_switch_to(receiver);
    }

    /// Receives from an endpoint, or takes the signal that waits on the bound notification.
    pub(crate) fn receive_ipc(
        &mut self,
        receiver: Ref<Tcb>,
        endpoint: Ref<Endpoint>,
        can_grant: bool,
        is_blocking: bool,
        reply: Option<Ref<Reply>>,
    ) {
        if let Some(reply) = reply
            && let Some(other) = reply.tcb.get()
            && other != receiver
        {
            self.cancel_ipc(other);
        }
        if let Some(notification) = receiver.notification.get() {
            if notification.state.get() == NotificationState::Active {
                self.take_signal(receiver, notification);
                return;
            }
            if is_blocking && endpoint.state() != EndpointState::Send {
                self.maybe_return_context(notification, receiver);
            }
        }
        if endpoint.state() != EndpointState::Send {
            if is_blocking {
                receiver.blocking_object.set(endpoint.addr());
                receiver.can_grant.set(can_grant);
                receiver.reply.set(reply);
                if let Some(reply) = reply {
                    reply.tcb.set(Some(receiver));
                }
                self.set_state(receiver, ThreadState::BlockedOnReceive);
                let (head, tail) = queue::insert((endpoint.head(), endpoint.tail()), receiver);
                endpoint.set(EndpointState::Receive, head, tail);
            } else {
                receiver.set_reg(abi::syscall::register::BADGE, 0);
            }
            return;
        }
        let Some(sender) = endpoint.head() else { return };
        let (head, tail) = queue::remove((endpoint.head(), endpoint.tail()), sender);
        endpoint.set(EndpointState::Send, head, tail);
        let (sender_grants, sender_grants_reply) =
            (sender.can_grant.get(), sender.can_grant_reply.get());
        self.transfer(sender, receiver, Some(endpoint), sender.badge.get(), sender_grants);
        self.sporadic_unblock(sender.sc.get());
        let fault = sender.fault();
        if sender.is_call.get() || fault != PendingFault::Null {
            match reply {
                Some(reply) if sender_grants || sender_grants_reply => {
                    let may_donate = !matches!(fault, PendingFault::Timeout { .. });
                    self.reply_push(sender, receiver, reply, may_donate);
                }
                _ => self.set_state(sender, ThreadState::Inactive),
            }
        } else {
            self.set_state(sender, ThreadState::Running);
            self.possible_switch_to(sender);
        }
    }

    /// Ends whatever a thread waits for.
    pub(crate) fn cancel_ipc(&mut self, tcb: Ref<Tcb>) {
        tcb.set_fault(PendingFault::Null);
        match tcb.state.get() {
            ThreadState::BlockedOnSend | ThreadState::BlockedOnReceive => {
                let endpoint: Ref<Endpoint> = Ref::at(tcb.blocking_object.get());
                let state = endpoint.state();
                let (head, tail) = queue::remove((endpoint.head(), endpoint.tail()), tcb);
                endpoint.set(state, head, tail);
                if let Some(reply) = tcb.reply.get() {
                    self.reply_unlink(reply, tcb);
                }
                self.set_state(tcb, ThreadState::Inactive);
            }
            ThreadState::BlockedOnNotification => self.cancel_wait(tcb),
            ThreadState::BlockedOnReply => self.reply_remove_caller(tcb),
            _ => {}
        }
    }

    /// Wakes everybody who waits on an endpoint that is deleted: system calls are made again and fail.
    pub(crate) fn cancel_all_ipc(&mut self, endpoint: Ref<Endpoint>) {
        while let Some(tcb) = endpoint.head() {
            let state = endpoint.state();
            let (head, tail) = queue::remove((endpoint.head(), endpoint.tail()), tcb);
            endpoint.set(state, head, tail);
            self.wake_cancelled(tcb);
        }
        self.reschedule();
    }

    fn wake_cancelled(&mut self, tcb: Ref<Tcb>) {
        if let Some(reply) = tcb.reply.get() {
            self.reply_unlink(reply, tcb);
        }
        if !tcb.has_fault.get() {
            self.set_state(tcb, ThreadState::Restart);
            self.sporadic_unblock(tcb.sc.get());
            self.resume_context(tcb.sc.get());
            if Self::is_schedulable(tcb) {
                self.possible_switch_to(tcb);
            }
        } else {
            tcb.set_fault(PendingFault::Null);
            self.set_state(tcb, ThreadState::Inactive);
        }
    }

    /// Wakes the senders with one badge; their calls are made again.
    pub(crate) fn cancel_badged_sends(&mut self, endpoint: Ref<Endpoint>, badge: u64) {
        if endpoint.state() != EndpointState::Send {
            return;
        }
        let mut next = endpoint.head();
        while let Some(tcb) = next {
            next = tcb.ep_next.get();
            if tcb.badge.get() == badge {
                let (head, tail) = queue::remove((endpoint.head(), endpoint.tail()), tcb);
                endpoint.set(EndpointState::Send, head, tail);
                self.wake_cancelled(tcb);
            }
        }
        self.reschedule();
    }

    /// Puts a blocked thread at the place its new priority gives it.
    pub(crate) fn requeue_blocked(&mut self, tcb: Ref<Tcb>) {
        match tcb.state.get() {
            ThreadState::BlockedOnSend | ThreadState::BlockedOnReceive => {
                let endpoint: Ref<Endpoint> = Ref::at(tcb.blocking_object.get());
                let state = endpoint.state();
                let ends = queue::remove((endpoint.head(), endpoint.tail()), tcb);
                let (head, tail) = queue::insert(ends, tcb);
                endpoint.set(state, head, tail);
            }
            ThreadState::BlockedOnNotification => {
                let notification: Ref<Notification> = Ref::at(tcb.blocking_object.get());
                let ends = queue::remove((notification.head.get(), notification.tail.get()), tcb);
                let (head, tail) = queue::insert(ends, tcb);
                notification.head.set(head);
                notification.tail.set(tail);
            }
            _ => {}
        }
    }

    /// Tells the address a thread blocks on, for tests.
    #[must_use]
    pub fn blocking_object(tcb: Ref<Tcb>) -> PhysAddr {
        tcb.blocking_object.get()
    }
}
