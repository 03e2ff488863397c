//! Fast path of Call and ReplyRecv: a passive server on the caller's core, answered on the same scheduling context.
//!
//! Every condition is checked before anything changes; where one fails the slow path does the whole call.

use abi::message::{FAST_MESSAGE_WORDS, buffer_word};
use abi::syscall::register;
use abi::{CapRights, MessageInfo};

use super::queue;
use super::transfer::ipc_buffer;
use crate::cap::cspace;
use crate::cap::raw::Tag;
use crate::hw::Hw;
use crate::limits::MAX_CORES;
use crate::mem::window::Words;
use crate::mem::{PhysAddr, Ref};
use crate::object::endpoint::{Endpoint, EndpointState};
use crate::object::notification::{Notification, NotificationState};
use crate::object::reply::{Reply, ReplyNext};
use crate::object::tcb::{Tcb, ThreadState, tcb_slot};
use crate::sched::SYSCALL_BYTES;
use crate::{Action, Kernel, Resume};

/// Length of a message, in its info; above what a message can have it counts as that.
const LENGTH: u64 = 0x7f;
/// Bits of a message info that must be clear: extra capabilities.
const EXTRA_CAPS: u64 = 3 << 7;
/// Bits of a message info that a receiver sees of a message without capabilities.
const PLAIN_INFO: u64 = !(0x1f << 7);

/// Bits of [`crate::cap::RawCap::top`]: the type, and the rights of an endpoint.
const TYPE: u32 = 0xf800;
const ENDPOINT: u32 = (Tag::Endpoint as u32) << 11;
const NOTIFICATION: u32 = (Tag::Notification as u32) << 11;
const SEND: u32 = CapRights::WRITE.0 as u32;
const RECEIVE: u32 = CapRights::READ.0 as u32;
const ANSWERABLE: u32 = (CapRights::GRANT.0 | CapRights::GRANT_REPLY.0) as u32;

/// Where the words beyond the registers are, sender's and receiver's.
type Buffers = Option<(Words, Words)>;

#[inline(always)]
fn buffers(from: Ref<Tcb>, to: Ref<Tcb>, info: u64) -> Option<Buffers> {
    if info & LENGTH <= FAST_MESSAGE_WORDS as u64 {
        Some(None)
    } else {
        Some(Some((ipc_buffer(from, false)?, ipc_buffer(to, true)?)))
    }
}

#[inline(always)]
fn copy(from: Ref<Tcb>, to: Ref<Tcb>, info: u64, buffers: Buffers) {
    if info & LENGTH != 0 {
        // All four registers are copied whatever the length: it is cheaper than to look, and they are the sender's to give.
        for register in register::MESSAGE {
            to.set_reg(register, from.reg(register));
        }
    }
    if let Some((from, to)) = buffers {
        let length = MessageInfo(info).length() as usize;
        for word in buffer_word::MSG + FAST_MESSAGE_WORDS..buffer_word::MSG + length {
            to.set(word, from.get(word));
        }
    }
}

impl<H: Hw> Kernel<H> {
    /// Returns the root of a thread's space if its capability and ASID are good.
    #[inline(always)]
    fn space_of(&self, tcb: Ref<Tcb>) -> Option<PhysAddr> {
        let cap = tcb.slot(tcb_slot::VTABLE).cap.get();
        // A nested root's entry is marked in its low bits, so it equals no address.
        if cap.top() & TYPE == (Tag::Pml4 as u32) << 11
            && self.asid_entry(cap.w1 as u16) == cap.addr().0
        {
            Some(cap.addr())
        } else {
            None
        }
    }

    #[inline(always)]
    fn fast_switch(&mut self, core: usize, from: Ref<Tcb>, to: Ref<Tcb>, root: PhysAddr) -> Resume {
        self.hw.switch_thread(core, Some(from), Some(to));
        let this = &mut self.cores[core & (MAX_CORES - 1)];
        this.current = Some(to);
        if this.root != root.0 {
            this.root = root.0;
            self.hw.switch_space(core, Some(root));
        }
        Resume::User(to)
    }

    /// Call to a waiting passive server; `None`: nothing was done.
    #[inline(always)]
    pub(crate) fn fast_call(&mut self, core: usize, tcb: Ref<Tcb>) -> Option<Resume> {
        let info = tcb.reg(register::MESSAGE_INFO);
        if info & EXTRA_CAPS != 0 {
            return None;
        }
        let cap = cspace::flat(tcb).find(tcb.reg(register::CAPABILITY))?;
        let top = cap.top();
        if top & (TYPE | SEND) != ENDPOINT | SEND || top & ANSWERABLE == 0 {
            return None;
        }
        let endpoint: Ref<Endpoint> = Ref::at(cap.addr());
        if endpoint.state() != EndpointState::Receive {
            return None;
        }
        let server = endpoint.head()?;
        let reply = server.reply.get()?;
        let sc = tcb.sc.get()?;
        if server.sc.get().is_some() || server.core.get() as usize != core {
            return None;
        }
        let priority = server.priority.get();
        if priority < tcb.priority.get() && !self.cores[core & (MAX_CORES - 1)].is_highest(priority)
        {
            return None;
        }
        let root = self.space_of(server)?;
        let buffers = buffers(tcb, server, info)?;

        let next = server.ep_next.get();
        if let Some(next) = next {
            next.ep_prev.set(None);
            server.ep_next.set(None);
            endpoint.set(EndpointState::Receive, Some(next), endpoint.tail());
        } else {
            endpoint.set(EndpointState::Idle, None, None);
        }
        copy(tcb, server, info, buffers);
        server.set_reg(register::MESSAGE_INFO, info & PLAIN_INFO);
        server.set_reg(register::BADGE, cap.w1);
        server.reply.set(None);
        server.state.set(ThreadState::Running);
        tcb.fault_ip.set(tcb.reg(abi::context::index::RIP).wrapping_sub(SYSCALL_BYTES));
        tcb.state.set(ThreadState::BlockedOnReply);
        tcb.reply.set(Some(reply));
        reply.tcb.set(Some(tcb));
        let older = sc.reply.get();
        if let Some(older) = older {
            older.set_next(ReplyNext::Reply(reply));
        }
        reply.prev.set(older);
        reply.set_next(ReplyNext::Head(sc));
        sc.reply.set(Some(reply));
        sc.tcb.set(Some(server));
        server.sc.set(Some(sc));
        tcb.sc.set(None);
        Some(self.fast_switch(core, tcb, server, root))
    }

    /// Answer to the caller whose context the server runs on, and wait for the next message; `None`: nothing was done.
    #[inline(always)]
    pub(crate) fn fast_reply_recv(&mut self, core: usize, tcb: Ref<Tcb>) -> Option<Resume> {
        let info = tcb.reg(register::MESSAGE_INFO);
        if info & EXTRA_CAPS != 0 {
            return None;
        }
        let space = cspace::flat(tcb);
        let cap = space.find(tcb.reg(register::CAPABILITY))?;
        if cap.top() & (TYPE | RECEIVE) != ENDPOINT | RECEIVE {
            return None;
        }
        let reply_cap = space.find(tcb.reg(register::REPLY))?;
        if reply_cap.top() & TYPE != (Tag::Reply as u32) << 11 {
            return None;
        }
        let endpoint: Ref<Endpoint> = Ref::at(cap.addr());
        let state = endpoint.state();
        if state == EndpointState::Send {
            return None;
        }
        let reply: Ref<Reply> = Ref::at(reply_cap.addr());
        let caller = reply.tcb.get()?;
        let sc = tcb.sc.get()?;
        if caller.state.get() != ThreadState::BlockedOnReply
            || caller.has_fault.get()
            || caller.sc.get().is_some()
            || caller.core.get() as usize != core
            || reply.next() != ReplyNext::Head(sc)
        {
            return None;
        }
        if let Some(notification) = tcb.notification.get()
            && (notification.state.get() == NotificationState::Active
                || notification.sc.get() == Some(sc))
        {
            return None;
        }
        // Nothing ready is above the current thread, or it would not run.
        let priority = caller.priority.get();
        if priority < tcb.priority.get() && !self.cores[core & (MAX_CORES - 1)].is_highest(priority)
        {
            return None;
        }
        let root = self.space_of(caller)?;
        let buffers = buffers(tcb, caller, info)?;

        copy(tcb, caller, info, buffers);
        caller.set_reg(register::MESSAGE_INFO, info & PLAIN_INFO);
        caller.set_reg(register::BADGE, 0);
        let older = reply.prev.get();
        sc.reply.set(older);
        if let Some(older) = older {
            older.set_next(ReplyNext::Head(sc));
        }
        sc.tcb.set(Some(caller));
        caller.sc.set(Some(sc));
        tcb.sc.set(None);
        caller.reply.set(None);
        caller.state.set(ThreadState::Running);
        reply.tcb.set(Some(tcb));
        reply.prev.set(None);
        reply.set_next(ReplyNext::None);
        tcb.reply.set(Some(reply));
        tcb.blocking_object.set(endpoint.addr());
        tcb.can_grant.set(cap.fields() & CapRights::GRANT.0 != 0);
        tcb.state.set(ThreadState::BlockedOnReceive);
        tcb.fault_ip.set(tcb.reg(abi::context::index::RIP).wrapping_sub(SYSCALL_BYTES));
        if state == EndpointState::Idle {
            tcb.ep_prev.set(None);
            tcb.ep_next.set(None);
            endpoint.set(EndpointState::Receive, Some(tcb), Some(tcb));
        } else {
            let (head, tail) = queue::insert((endpoint.head(), endpoint.tail()), tcb);
            endpoint.set(EndpointState::Receive, head, tail);
        }
        Some(self.fast_switch(core, tcb, caller, root))
    }

    /// Send to a notification: notes the signal, or switches to the waiter it wakes; `None`: nothing was done.
    #[inline(always)]
    pub(crate) fn fast_signal(&mut self, tcb: Ref<Tcb>) -> Option<Resume> {
        let cap = cspace::flat(tcb).find(tcb.reg(register::CAPABILITY))?;
        if cap.top() & (TYPE | SEND) != NOTIFICATION | SEND
            || tcb.reg(register::MESSAGE_INFO) & EXTRA_CAPS != 0
        {
            return None;
        }
        let notification: Ref<Notification> = Ref::at(cap.addr());
        match notification.state.get() {
            NotificationState::Idle => {
                if notification.bound_tcb.get().is_some() {
                    return None;
                }
                notification.word.set(cap.w1);
                notification.state.set(NotificationState::Active);
                Some(Resume::User(tcb))
            }
            NotificationState::Active => {
                notification.word.set(notification.word.get() | cap.w1);
                Some(Resume::User(tcb))
            }
            NotificationState::Waiting => self.fast_wake(tcb, notification, cap.w1),
        }
    }

    /// Switches to the better thread that a signal wakes, each on its own time.
    #[inline(always)]
    fn fast_wake(
        &mut self,
        tcb: Ref<Tcb>,
        notification: Ref<Notification>,
        badge: u64,
    ) -> Option<Resume> {
        let waiter = notification.head.get()?;
        let sc = waiter.sc.get()?;
        if waiter.priority.get() <= tcb.priority.get()
            || waiter.core.get() as usize != self.core
            || !sc.is_active()
            || sc.sporadic.get()
        {
            return None;
        }
        let root = self.space_of(waiter)?;
        if !self.may_switch() {
            return None;
        }
        let next = waiter.ep_next.replace(None);
        notification.head.set(next);
        match next {
            Some(next) => next.ep_prev.set(None),
            None => {
                notification.tail.set(None);
                notification.state.set(NotificationState::Idle);
            }
        }
        waiter.state.set(ThreadState::Running);
        waiter.set_reg(register::BADGE, badge);
        self.this().insert_ready(tcb, false);
        Some(self.switch_time(tcb, waiter, root))
    }

    /// Wait on a notification: takes the signal, or blocks and switches to the best ready thread; `None`: nothing was done.
    #[inline(always)]
    pub(crate) fn fast_wait(&mut self, tcb: Ref<Tcb>) -> Option<Resume> {
        let cap = cspace::flat(tcb).find(tcb.reg(register::CAPABILITY))?;
        if cap.top() & (TYPE | RECEIVE) != NOTIFICATION | RECEIVE {
            return None;
        }
        let notification: Ref<Notification> = Ref::at(cap.addr());
        if notification.bound_tcb.get().is_some_and(|bound| bound != tcb) {
            return None;
        }
        if notification.state.get() == NotificationState::Active {
            // The thread runs, so it has a scheduling context and needs none lent.
            tcb.set_reg(register::BADGE, notification.word.replace(0));
            notification.state.set(NotificationState::Idle);
            return Some(Resume::User(tcb));
        }
        self.fast_block(tcb, notification)
    }

    #[inline(always)]
    fn fast_block(&mut self, tcb: Ref<Tcb>, notification: Ref<Notification>) -> Option<Resume> {
        if notification.sc.get().is_some() {
            return None;
        }
        let priority = self.this().highest_ready()?;
        let next = self.this().ready[usize::from(priority)].head?;
        if next.state.get() != ThreadState::Running || next.yield_to.get().is_some() {
            return None;
        }
        let root = self.space_of(next)?;
        if !self.may_switch() {
            return None;
        }
        tcb.fault_ip.set(tcb.reg(abi::context::index::RIP).wrapping_sub(SYSCALL_BYTES));
        tcb.blocking_object.set(notification.addr());
        tcb.state.set(ThreadState::BlockedOnNotification);
        let (head, tail) = queue::insert((notification.head.get(), notification.tail.get()), tcb);
        notification.head.set(head);
        notification.tail.set(tail);
        notification.state.set(NotificationState::Waiting);
        self.this().remove_ready(next);
        Some(self.switch_time(tcb, next, root))
    }

    /// Looks at the clock and tells whether a switch may be made here: nobody else has asked for one, and the thread has time left.
    #[inline(always)]
    fn may_switch(&mut self) -> bool {
        self.update_time();
        let (min, kicks) = (self.min_budget, self.kicks);
        let this = self.this();
        kicks == 0
            && matches!(this.action, Action::Resume)
            && this.current_sc.is_some_and(|sc| {
                sc.is_active() && crate::sched::refill::capacity(sc, this.consumed) >= min
            })
    }

    /// Switches threads and scheduling contexts.
    #[inline(always)]
    fn switch_time(&mut self, from: Ref<Tcb>, to: Ref<Tcb>, root: PhysAddr) -> Resume {
        let resume = self.fast_switch(self.core, from, to, root);
        self.switch_context();
        self.set_next_deadline();
        resume
    }
}
