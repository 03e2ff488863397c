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
use crate::mem::window::Words;
use crate::mem::{PhysAddr, Ref};
use crate::object::endpoint::{Endpoint, EndpointState};
use crate::object::notification::NotificationState;
use crate::object::reply::{Reply, ReplyNext};
use crate::object::tcb::{Tcb, ThreadState, tcb_slot};
use crate::sched::SYSCALL_BYTES;
use crate::{Kernel, Resume};

/// Bits of a message info that must be clear: extra capabilities.
const EXTRA_CAPS: u64 = 3 << 7;
/// Bits of a message info that a receiver sees of a message without capabilities.
const PLAIN_INFO: u64 = !(0x1f << 7);

/// Where the words beyond the registers are, sender's and receiver's.
type Buffers = Option<(Words, Words)>;

#[inline(always)]
fn buffers(from: Ref<Tcb>, to: Ref<Tcb>, length: u64) -> Option<Buffers> {
    if length <= FAST_MESSAGE_WORDS as u64 {
        Some(None)
    } else {
        Some(Some((ipc_buffer(from, false)?, ipc_buffer(to, true)?)))
    }
}

#[inline(always)]
fn copy(from: Ref<Tcb>, to: Ref<Tcb>, length: u64, buffers: Buffers) {
    // All four registers are copied whatever the length: it is cheaper than to look, and they are the sender's to give.
    for register in register::MESSAGE {
        to.set_reg(register, from.reg(register));
    }
    if let Some((from, to)) = buffers {
        for word in buffer_word::MSG + FAST_MESSAGE_WORDS..buffer_word::MSG + length as usize {
            to.set(word, from.get(word));
        }
    }
}

impl<H: Hw> Kernel<H> {
    /// Returns the root of a thread's space if its capability and ASID are good.
    #[inline(always)]
    fn space_of(&self, tcb: Ref<Tcb>) -> Option<PhysAddr> {
        let cap = tcb.slot(tcb_slot::VTABLE).cap.get();
        if cap.is(Tag::Pml4) && self.root_of_asid(cap.w1 as u16) == cap.addr().0 {
            Some(cap.addr())
        } else {
            None
        }
    }

    #[inline(always)]
    fn fast_switch(&mut self, from: Ref<Tcb>, to: Ref<Tcb>, root: PhysAddr) -> Resume {
        let core = self.core;
        self.hw.switch_thread(core, Some(from), Some(to));
        self.this().current = Some(to);
        self.load_root(Some(root));
        Resume::User(to)
    }

    /// Call to a waiting passive server; `None`: nothing was done.
    #[inline(always)]
    pub(crate) fn fast_call(&mut self, tcb: Ref<Tcb>) -> Option<Resume> {
        let info = tcb.reg(register::MESSAGE_INFO);
        if info & EXTRA_CAPS != 0 {
            return None;
        }
        let cap = cspace::lookup_fast(tcb, tcb.reg(register::CAPABILITY))?;
        let needed = CapRights::WRITE.0;
        let answerable = CapRights::GRANT.0 | CapRights::GRANT_REPLY.0;
        if !cap.is(Tag::Endpoint) || cap.fields() & needed == 0 || cap.fields() & answerable == 0 {
            return None;
        }
        let endpoint: Ref<Endpoint> = Ref::at(cap.addr());
        if endpoint.state() != EndpointState::Receive {
            return None;
        }
        let server = endpoint.head()?;
        let reply = server.reply.get()?;
        let sc = tcb.sc.get()?;
        if server.sc.get().is_some() || server.core.get() as usize != self.core {
            return None;
        }
        let priority = server.priority.get();
        if priority < tcb.priority.get() && !self.this().is_highest(priority) {
            return None;
        }
        let root = self.space_of(server)?;
        let length = MessageInfo(info).length();
        let buffers = buffers(tcb, server, length)?;

        let next = server.ep_next.get();
        if let Some(next) = next {
            next.ep_prev.set(None);
            server.ep_next.set(None);
            endpoint.set(EndpointState::Receive, Some(next), endpoint.tail());
        } else {
            endpoint.set(EndpointState::Idle, None, None);
        }
        copy(tcb, server, length, buffers);
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
        Some(self.fast_switch(tcb, server, root))
    }

    /// Answer to the caller whose context the server runs on, and wait for the next message; `None`: nothing was done.
    #[inline(always)]
    pub(crate) fn fast_reply_recv(&mut self, tcb: Ref<Tcb>) -> Option<Resume> {
        let info = tcb.reg(register::MESSAGE_INFO);
        if info & EXTRA_CAPS != 0 {
            return None;
        }
        let cap = cspace::lookup_fast(tcb, tcb.reg(register::CAPABILITY))?;
        if !cap.is(Tag::Endpoint) || cap.fields() & CapRights::READ.0 == 0 {
            return None;
        }
        let reply_cap = cspace::lookup_fast(tcb, tcb.reg(register::REPLY))?;
        if !reply_cap.is(Tag::Reply) {
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
            || caller.core.get() as usize != self.core
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
        if !self.this().is_highest(caller.priority.get()) {
            return None;
        }
        let root = self.space_of(caller)?;
        let length = MessageInfo(info).length();
        let buffers = buffers(tcb, caller, length)?;

        copy(tcb, caller, length, buffers);
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
        Some(self.fast_switch(tcb, caller, root))
    }
}
