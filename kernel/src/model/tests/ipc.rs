//! Endpoints, notifications, replies, faults and capability transfer.

use abi::bootinfo::slot as fixed;
use abi::message::buffer_word;
use abi::syscall::register;
use abi::{CapRights, Error, Fault, Label, MessageInfo, ObjectType, Syscall};

use super::fails;
use crate::FaultInfo;
use crate::cap::raw::Cap;
use crate::ipc::transfer::ipc_buffer;
use crate::mem::Ref;
use crate::model::world::{FREE, World};
use crate::object::endpoint::Endpoint;
use crate::object::notification::Notification;
use crate::object::reply::Reply;
use crate::object::tcb::{Entry, Tcb, ThreadState};

const DEPTH: u64 = 64;
const ENDPOINT: u64 = FREE;
const REPLY: u64 = FREE + 1;
const SERVER: u64 = FREE + 2;
const NOTIFICATION: u64 = FREE + 6;

/// A world with an endpoint, a reply object, a notification and a passive server that waits on the endpoint.
fn served() -> (World, Ref<Tcb>) {
    let mut world = World::new();
    world.make(ObjectType::Endpoint, 0, ENDPOINT, 1);
    world.make(ObjectType::Reply, 0, REPLY, 1);
    world.make(ObjectType::Notification, 0, NOTIFICATION, 1);
    let server = world.thread(SERVER, 255, Some(SERVER + 1));
    park(&mut world, server);
    // Now it becomes passive.
    world.ok(SERVER + 1, Label::SchedContextUnbind, &[], &[]);
    world.check();
    (world, server)
}

/// Lets a resumed thread run until it waits on the endpoint.
fn park(world: &mut World, server: Ref<Tcb>) {
    world.ok(SERVER, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(server), "the new thread gets its turn");
    world.syscall(Syscall::Recv, ENDPOINT, REPLY, &[]);
    assert_eq!(server.state.get(), ThreadState::BlockedOnReceive);
    assert_eq!(world.current(0), Some(world.initial));
}

#[test]
fn a_call_runs_on_the_callers_time_and_comes_back() {
    let (mut world, server) = served();
    let sc = world.initial.sc.get();
    world.syscall(Syscall::Call, ENDPOINT, 0, &[10, 11, 12]);
    assert_eq!(world.current(0), Some(server));
    assert_eq!(server.sc.get(), sc, "the caller's time");
    assert_eq!(world.initial.sc.get(), None);
    assert_eq!(world.initial.state.get(), ThreadState::BlockedOnReply);
    assert_eq!(World::answer(server).words[..3], [10, 11, 12]);
    world.check();
    server.set_reg(register::REPLY, REPLY);
    world.syscall(Syscall::ReplyRecv, ENDPOINT, REPLY, &[20, 21]);
    assert_eq!(world.current(0), Some(world.initial));
    assert_eq!(world.initial.sc.get(), sc);
    let answer = World::answer(world.initial);
    assert_eq!((answer.label, answer.length, answer.words[1]), (0, 2, 21));
    assert_eq!(server.state.get(), ThreadState::BlockedOnReceive);
    world.check();
}

#[test]
fn fast_and_slow_path_leave_the_same_world() {
    // Extra capabilities (here an empty slot's) keep a call off the fast path.
    let run = |is_slow: bool| {
        let (mut world, server) = served();
        let bits = if is_slow { 1 } else { 0 };
        world.initial.set_reg(register::CAPABILITY, ENDPOINT);
        World::write_message(world.initial, 3, &[1, 2, 3, 4, 5, 6], &[]);
        let info = MessageInfo::new(3, 0, bits, 6).0;
        world.initial.set_reg(register::MESSAGE_INFO, info);
        if is_slow {
            let buffer = ipc_buffer(world.initial, true);
            if let Some(buffer) = buffer {
                buffer.set(buffer_word::CAPS_OR_BADGES, fixed::DOMAIN);
            }
        }
        world.enter(0, Syscall::Call as i64);
        world.check();
        let called = (
            world.current(0) == Some(server),
            server.reg(register::BADGE),
            World::answer(server),
            world.initial.state.get(),
            server.sc.get() == Some(world.object(fixed::SCHED_CONTEXT)),
        );
        World::write_message(server, 0, &[9, 8], &[]);
        let info = MessageInfo::new(0, 0, bits, 2).0;
        server.set_reg(register::MESSAGE_INFO, info);
        server.set_reg(register::CAPABILITY, ENDPOINT);
        server.set_reg(register::REPLY, REPLY);
        world.enter(0, Syscall::ReplyRecv as i64);
        world.check();
        let endpoint: Ref<Endpoint> = world.object(ENDPOINT);
        (
            called,
            world.current(0) == Some(world.initial),
            World::answer(world.initial),
            world.initial.sc.get().is_some(),
            endpoint.head() == Some(server),
            world.object::<Reply>(REPLY).tcb.get() == Some(server),
        )
    };
    let (fast, slow) = (run(false), run(true));
    assert_eq!(fast, slow);
    assert!(fast.0.0 && fast.1);
}

#[test]
fn an_answer_needs_grant_or_grant_reply() {
    let (mut world, server) = served();
    let words = [FREE + 10, DEPTH, ENDPOINT, DEPTH, CapRights::WRITE.0, 4];
    world.ok(fixed::CNODE, Label::CNodeMint, &words, &[fixed::CNODE]);
    // A second client, so that somebody runs on.
    world.syscall(Syscall::Call, FREE + 10, 0, &[1]);
    assert_eq!(world.initial.state.get(), ThreadState::Inactive, "cannot be answered");
    assert_eq!(server.state.get(), ThreadState::Running);
    assert_eq!(server.reg(register::BADGE), 4);
    assert_eq!(server.sc.get(), None, "nothing is donated without a reply object");
    world.check();
}

#[test]
fn sending_without_the_right_is_refused_and_receiving_faults() {
    let (mut world, _) = served();
    let words = [FREE + 10, DEPTH, ENDPOINT, DEPTH, CapRights::READ.0];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    let answer = world.call(FREE + 10, 0, &[], &[]);
    assert_eq!((answer.label, answer.words[0]), (Error::InvalidCapability as u64, 0));
    let words = [FREE + 11, DEPTH, ENDPOINT, DEPTH, CapRights::WRITE.0];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    world.syscall(Syscall::Recv, FREE + 11, REPLY, &[]);
    assert_eq!(world.initial.state.get(), ThreadState::Inactive, "fault without handler");
    assert!(world.console().contains("Cap"));
    world.check();
}

#[test]
fn capabilities_travel_with_grant_and_unwrap_at_their_own_endpoint() {
    let (mut world, server) = served();
    give_buffer(&mut world, server);
    let words = [FREE + 10, DEPTH, ENDPOINT, DEPTH, 15, 99];
    world.ok(fixed::CNODE, Label::CNodeMint, &words, &[fixed::CNODE]);
    World::write_message(world.initial, 0, &[5], &[FREE + 10, NOTIFICATION]);
    world.initial.set_reg(register::CAPABILITY, ENDPOINT);
    world.enter(0, Syscall::Call as i64);
    let info = MessageInfo(server.reg(register::MESSAGE_INFO));
    assert_eq!((info.extra_caps(), info.caps_unwrapped()), (2, 1));
    let buffer = ipc_buffer(server, false).map(|buffer| buffer.get(buffer_word::CAPS_OR_BADGES));
    assert_eq!(buffer, Some(99), "the badge of the unwrapped one");
    assert!(matches!(world.cap(FREE + 21), Cap::Notification { .. }), "the other arrived");
    world.check();
}

/// Gives the server a buffer frame of its own with receive slot FREE + 21.
fn give_buffer(world: &mut World, server: Ref<Tcb>) {
    world.make(ObjectType::Page4K, 0, FREE + 20, 1);
    world.ok(SERVER, Label::TCBSetIPCBuffer, &[0x50_0000], &[FREE + 20]);
    if let Some(buffer) = ipc_buffer(server, true) {
        buffer.set(buffer_word::RECEIVE_CNODE, fixed::CNODE);
        buffer.set(buffer_word::RECEIVE_INDEX, FREE + 21);
        buffer.set(buffer_word::RECEIVE_DEPTH, DEPTH);
    }
}

#[test]
fn no_capability_travels_without_grant() {
    let (mut world, server) = served();
    give_buffer(&mut world, server);
    let rights = CapRights::WRITE.0 | CapRights::GRANT_REPLY.0;
    let words = [FREE + 10, DEPTH, ENDPOINT, DEPTH, rights];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    World::write_message(world.initial, 0, &[5], &[NOTIFICATION]);
    world.initial.set_reg(register::CAPABILITY, FREE + 10);
    world.enter(0, Syscall::Call as i64);
    assert_eq!(world.current(0), Some(server));
    assert_eq!(MessageInfo(server.reg(register::MESSAGE_INFO)).extra_caps(), 0);
    assert_eq!(world.cap(FREE + 21), Cap::Null);
}

#[test]
fn long_messages_need_both_buffers() {
    let (mut world, server) = served();
    let words: std::vec::Vec<u64> = (0..20).collect();
    world.syscall(Syscall::Call, ENDPOINT, 0, &words);
    assert_eq!(World::answer(server).length, 4, "no buffer: cut to the registers");
    server.set_reg(register::REPLY, REPLY);
    world.syscall(Syscall::ReplyRecv, ENDPOINT, REPLY, &[]);
    give_buffer(&mut world, server);
    world.syscall(Syscall::Call, ENDPOINT, 0, &words);
    assert_eq!(World::answer(server).length, 20);
    let last = ipc_buffer(server, false).map(|buffer| buffer.get(buffer_word::MSG + 19));
    assert_eq!(last, Some(19));
    world.check();
}

#[test]
fn senders_are_served_by_priority() {
    let mut world = World::new();
    world.make(ObjectType::Endpoint, 0, ENDPOINT, 1);
    for (number, priority) in [(0u64, 50), (1, 70), (2, 60)] {
        let slot = FREE + 10 + number * 2;
        let tcb = world.thread(slot, priority, Some(slot + 1));
        tcb.set_reg(register::CAPABILITY, ENDPOINT);
        world.ok(slot, Label::TCBResume, &[], &[]);
    }
    // The initial thread waits for nothing in particular; each of the others sends.
    world.make(ObjectType::Notification, 0, NOTIFICATION, 1);
    world.syscall(Syscall::Wait, NOTIFICATION, 0, &[]);
    for _ in 0..3 {
        assert!(world.current(0).is_some());
        let priority = world.current(0).map_or(0, |tcb| u64::from(tcb.priority.get()));
        world.syscall(Syscall::Send, ENDPOINT, 0, &[priority]);
        world.check();
    }
    let endpoint: Ref<Endpoint> = world.object(ENDPOINT);
    let order: std::vec::Vec<u64> = std::iter::successors(endpoint.head(), |tcb| tcb.ep_next.get())
        .map(|tcb| tcb.mr(0))
        .collect();
    assert_eq!(order, [70, 60, 50]);
}

#[test]
fn signals_add_up_and_wake_one_waiter() {
    let mut world = World::new();
    world.make(ObjectType::Notification, 0, NOTIFICATION, 1);
    let root = [fixed::CNODE];
    for (slot, badge) in [(FREE + 10, 1), (FREE + 11, 4)] {
        let words = [slot, DEPTH, NOTIFICATION, DEPTH, 15, badge];
        world.ok(fixed::CNODE, Label::CNodeMint, &words, &root);
        world.syscall(Syscall::Send, slot, 0, &[]);
    }
    world.syscall(Syscall::NBWait, NOTIFICATION, 0, &[]);
    assert_eq!(world.initial.reg(register::BADGE), 5);
    world.syscall(Syscall::NBWait, NOTIFICATION, 0, &[]);
    assert_eq!(world.initial.reg(register::BADGE), 0, "taken");
    // A read-only capability cannot signal, a write-only one cannot wait.
    let words = [FREE + 12, DEPTH, NOTIFICATION, DEPTH, CapRights::READ.0];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &root);
    let answer = world.call(FREE + 12, 0, &[], &[]);
    assert_eq!(answer.label, Error::InvalidCapability as u64);
}

#[test]
fn a_bound_notification_reaches_its_thread_at_the_endpoint() {
    let (mut world, server) = served();
    let bind = Label::TCBBindNotification;
    world.ok(SERVER, bind, &[], &[NOTIFICATION]);
    fails(&mut world, SERVER, bind, &[], &[NOTIFICATION], Error::IllegalOperation, &[]);
    world.ok(SERVER + 1, Label::SchedContextBind, &[], &[NOTIFICATION]);
    let words = [FREE + 10, DEPTH, NOTIFICATION, DEPTH, 15, 8];
    world.ok(fixed::CNODE, Label::CNodeMint, &words, &[fixed::CNODE]);
    world.syscall(Syscall::Send, FREE + 10, 0, &[]);
    world.check();
    assert_eq!(server.state.get(), ThreadState::Running);
    assert_eq!(server.sc.get(), Some(world.object(SERVER + 1)), "runs on the lent context");
    // The passive server gives it back when it waits again.
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(server));
    assert_eq!(server.reg(register::BADGE), 8);
    world.syscall(Syscall::Recv, ENDPOINT, REPLY, &[]);
    assert_eq!(server.sc.get(), None);
    world.check();
    // Nobody else may wait on it.
    world.syscall(Syscall::Wait, NOTIFICATION, 0, &[]);
    assert_eq!(world.initial.state.get(), ThreadState::Inactive);
    world.check();
}

/// Context of the client in [`at_work_for_the_dead`].
const CONTEXT: u64 = FREE + 21;

/// A passive server with a notification's context is at work for a client that is suspended: the server and the client's context.
fn at_work_for_the_dead() -> (World, Ref<Tcb>) {
    const CLIENT: u64 = FREE + 20;
    let (mut world, server) = served();
    world.ok(SERVER, Label::TCBBindNotification, &[], &[NOTIFICATION]);
    let client = world.thread(CLIENT, 255, Some(CONTEXT));
    world.ok(CLIENT, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(client));
    world.syscall(Syscall::Call, ENDPOINT, 0, &[]);
    assert_eq!(world.current(0), Some(server));
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(world.initial));
    world.ok(CLIENT, Label::TCBSuspend, &[], &[]);
    assert_eq!(server.sc.get(), Some(world.object(CONTEXT)));
    (world, server)
}

#[test]
fn a_server_whose_borrowed_context_is_taken_goes_on_with_its_own() {
    let (mut world, server) = at_work_for_the_dead();
    world.ok(SERVER + 1, Label::SchedContextBind, &[], &[NOTIFICATION]);
    world.ok(CONTEXT, Label::SchedContextUnbind, &[], &[]);
    world.check();
    assert_eq!(server.sc.get(), Some(world.object(SERVER + 1)));
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(server), "nobody else would ever wake it");
    world.syscall(Syscall::Recv, ENDPOINT, REPLY, &[]);
    assert_eq!((server.sc.get(), server.state.get()), (None, ThreadState::BlockedOnReceive));
    world.check();
}

#[test]
fn a_server_without_a_context_of_its_own_gets_none() {
    let (mut world, server) = at_work_for_the_dead();
    world.ok(CONTEXT, Label::SchedContextUnbind, &[], &[]);
    assert_eq!(server.sc.get(), None);
    world.check();
}

#[test]
fn a_server_that_waits_gets_none() {
    let (mut world, server) = at_work_for_the_dead();
    world.ok(SERVER + 1, Label::SchedContextBind, &[], &[NOTIFICATION]);
    world.syscall(Syscall::Yield, 0, 0, &[]);
    world.syscall(Syscall::Recv, ENDPOINT, REPLY, &[]);
    assert_eq!(server.state.get(), ThreadState::BlockedOnReceive);
    world.ok(CONTEXT, Label::SchedContextUnbind, &[], &[]);
    assert_eq!(server.sc.get(), None);
    world.check();
}

#[test]
fn a_server_does_not_get_back_what_is_taken_from_it() {
    let (mut world, server) = at_work_for_the_dead();
    world.ok(SERVER + 1, Label::SchedContextBind, &[], &[NOTIFICATION]);
    world.ok(CONTEXT, Label::SchedContextUnbind, &[], &[]);
    world.ok(SERVER + 1, Label::SchedContextUnbind, &[], &[]);
    assert_eq!(server.sc.get(), None);
    world.check();
}

#[test]
fn deleting_an_endpoint_wakes_who_waits() {
    let (mut world, server) = served();
    world.ok(fixed::CNODE, Label::CNodeDelete, &[ENDPOINT, DEPTH], &[]);
    assert_eq!(server.state.get(), ThreadState::Restart, "makes its call again");
    world.check();
}

#[test]
fn deleting_a_reply_object_returns_the_context() {
    let (mut world, server) = served();
    world.syscall(Syscall::Call, ENDPOINT, 0, &[]);
    assert_eq!(world.current(0), Some(server));
    // The server deletes the reply object: the caller's time goes home, the caller stays inactive.
    world.initial.set_reg(register::CAPABILITY, 0);
    World::write_message(server, Label::CNodeDelete as u64, &[REPLY, DEPTH], &[]);
    server.set_reg(register::CAPABILITY, fixed::CNODE);
    world.enter(0, Syscall::Call as i64);
    assert_eq!(world.initial.sc.get(), Some(world.object(fixed::SCHED_CONTEXT)));
    assert_eq!(world.initial.state.get(), ThreadState::Inactive);
    assert_eq!(server.sc.get(), None);
    world.check();
}

#[test]
fn cancel_badged_sends_takes_one_badge_only() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::Endpoint, 0, ENDPOINT, 1);
    world.make(ObjectType::Notification, 0, NOTIFICATION, 1);
    for (number, badge) in [(0u64, 7u64), (1, 8)] {
        let slot = FREE + 10 + number * 3;
        let words = [slot + 2, DEPTH, ENDPOINT, DEPTH, 15, badge];
        world.ok(fixed::CNODE, Label::CNodeMint, &words, &root);
        world.thread(slot, 50 + number, Some(slot + 1));
        world.ok(slot, Label::TCBResume, &[], &[]);
    }
    world.syscall(Syscall::Wait, NOTIFICATION, 0, &[]);
    world.syscall(Syscall::Send, FREE + 15, 0, &[]);
    world.syscall(Syscall::Send, FREE + 12, 0, &[]);
    assert_eq!(world.current(0), None);
    world.revive();
    let label = Label::CNodeCancelBadgedSends;
    world.ok(fixed::CNODE, label, &[FREE + 12, DEPTH], &[]);
    let endpoint: Ref<Endpoint> = world.object(ENDPOINT);
    assert_eq!(endpoint.head().map(|tcb| tcb.badge.get()), Some(8));
    assert_eq!(endpoint.head(), endpoint.tail());
    world.check();
}

#[test]
fn a_page_fault_is_handled_on_the_faulters_time_and_retried() {
    let (mut world, server) = served();
    let client = world.thread(FREE + 10, 254, Some(FREE + 11));
    let words = [FREE + 12, DEPTH, ENDPOINT, DEPTH, 15, 66];
    world.ok(fixed::CNODE, Label::CNodeMint, &words, &[fixed::CNODE]);
    world.ok(FREE + 10, Label::TCBSetSpace, &[0, 0], &[FREE + 12, fixed::CNODE, fixed::VSPACE]);
    world.ok(FREE + 10, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Wait, NOTIFICATION, 0, &[]);
    assert_eq!(world.current(0), Some(client));
    client.entry.set(Entry::Other);
    let rip = client.reg(abi::context::index::RIP);
    world.kernel.handle_fault(0, FaultInfo::Page { address: 0x1234_5000, code: 6 });
    assert_eq!(world.current(0), Some(server));
    let message = World::answer(server);
    assert_eq!((message.label, message.length), (Fault::Vm as u64, 4));
    assert_eq!(message.words, [rip, 0x1234_5000, 0, 6]);
    assert_eq!(server.reg(register::BADGE), 66);
    assert_eq!(server.sc.get(), Some(world.object(FREE + 11)));
    world.check();
    world.syscall(Syscall::ReplyRecv, ENDPOINT, REPLY, &[]);
    assert_eq!(world.current(0), Some(client), "goes on");
    assert_eq!(client.reg(abi::context::index::RIP), rip);
    world.check();

    // A handler that has to wait for the page lets the thread wait too, and has its own time back.
    client.entry.set(Entry::Other);
    world.kernel.handle_fault(0, FaultInfo::Page { address: 0x1234_5000, code: 6 });
    assert_eq!(world.current(0), Some(server));
    World::write_message(server, 1, &[], &[]);
    server.set_reg(register::CAPABILITY, ENDPOINT);
    server.set_reg(register::REPLY, REPLY);
    world.enter(0, Syscall::ReplyRecv as i64);
    assert_eq!(client.state.get(), ThreadState::Inactive);
    assert_eq!(client.sc.get(), Some(world.object(FREE + 11)), "its time is its own again");
    assert_eq!(server.sc.get(), None);
    assert_ne!(world.current(0), Some(client));
    world.check();
    world.revive();
    world.ok(FREE + 10, Label::TCBResume, &[], &[]);
    assert_eq!(client.state.get(), ThreadState::Restart);
    world.check();
}

#[test]
fn an_unknown_call_can_be_emulated_by_its_handler() {
    let (mut world, server) = served();
    give_buffer(&mut world, server);
    let client = world.thread(FREE + 10, 254, Some(FREE + 11));
    let spaces = [ENDPOINT, fixed::CNODE, fixed::VSPACE];
    world.ok(FREE + 10, Label::TCBSetSpace, &[0, 0], &spaces);
    world.ok(FREE + 10, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Wait, NOTIFICATION, 0, &[]);
    client.set_reg(abi::context::index::RAX, 5);
    let rip = client.reg(abi::context::index::RIP);
    world.enter(0, 1234);
    let message = World::answer(server);
    assert_eq!((message.label, message.length), (Fault::UnknownSyscall as u64, 19));
    let word = |number: usize| {
        ipc_buffer(server, false).map(|buffer| buffer.get(buffer_word::MSG + number))
    };
    assert_eq!((message.words[0], word(15), word(18)), (5, Some(rip), Some(1234)));
    // The answer sets rax and steps over the instruction.
    let mut words = [0u64; 18];
    words[0] = 77;
    words[15] = rip + 2;
    words[17] = 0x202;
    World::write_message(server, 0, &words, &[]);
    server.set_reg(register::CAPABILITY, ENDPOINT);
    server.set_reg(register::REPLY, REPLY);
    world.enter(0, Syscall::ReplyRecv as i64);
    assert_eq!(world.current(0), Some(client));
    assert_eq!(client.reg(abi::context::index::RAX), 77);
    assert_eq!(client.reg(abi::context::index::RIP), rip + 2);
    world.check();
}

#[test]
fn a_negative_fault_answer_stops_the_thread() {
    let (mut world, server) = served();
    let client = world.thread(FREE + 10, 254, Some(FREE + 11));
    let spaces = [ENDPOINT, fixed::CNODE, fixed::VSPACE];
    world.ok(FREE + 10, Label::TCBSetSpace, &[0, 0], &spaces);
    world.ok(FREE + 10, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Wait, NOTIFICATION, 0, &[]);
    world.kernel.handle_fault(0, FaultInfo::Exception { vector: 0, code: 0 });
    assert_eq!(World::answer(server).label, Fault::UserException as u64);
    World::write_message(server, 1, &[], &[]);
    server.set_reg(register::CAPABILITY, ENDPOINT);
    server.set_reg(register::REPLY, REPLY);
    world.enter(0, Syscall::ReplyRecv as i64);
    assert_eq!(client.state.get(), ThreadState::Inactive);
    world.check();
}

#[test]
fn a_bad_pointer_is_a_fault_in_calls_and_nothing_in_nbsend() {
    let (mut world, server) = served();
    world.ok(fixed::TCB, Label::TCBSetSpace, &[0, 0], &[ENDPOINT, fixed::CNODE, fixed::VSPACE]);
    world.syscall(Syscall::NBSend, 1 << 50, 0, &[]);
    assert_eq!(world.current(0), Some(world.initial));
    world.syscall(Syscall::Call, 1 << 50, 0, &[]);
    assert_eq!(world.current(0), Some(server));
    let message = World::answer(server);
    assert_eq!(message.label, Fault::Cap as u64);
    assert_eq!(message.words[1..4], [1 << 50, 0, 4], "guard mismatch while sending");
    world.check();
}

#[test]
fn notifications_hold_their_state_over_deletion_of_the_bound_thread() {
    let (mut world, _) = served();
    world.ok(SERVER, Label::TCBBindNotification, &[], &[NOTIFICATION]);
    world.ok(fixed::CNODE, Label::CNodeDelete, &[SERVER, DEPTH], &[]);
    assert_eq!(world.object::<Notification>(NOTIFICATION).bound_tcb.get(), None);
    world.syscall(Syscall::Send, NOTIFICATION, 0, &[]);
    world.check();
}
