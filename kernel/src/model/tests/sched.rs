//! Budgets, refills, time slices, YieldTo, cores.

use abi::bootinfo::slot as fixed;
use abi::syscall::register;
use abi::{Error, Fault, Label, ObjectType, Syscall};

use super::fails;
use crate::mem::Ref;
use crate::model::world::{FREE, SCHED_CONTROL, World};
use crate::object::sched_context::SchedContext;
use crate::object::tcb::{Tcb, ThreadState};
use crate::sched::refill;

const US: u64 = 1000;
const THREAD: u64 = FREE + 10;
const CONTEXT: u64 = FREE + 11;

fn configure(world: &mut World, context: u64, words: &[u64; 5]) {
    world.ok(SCHED_CONTROL, Label::SchedControlConfigureFlags, words, &[context]);
}

/// A runnable thread of priority 200 with a budget, and the initial thread out of the way.
fn budgeted(budget: u64, period: u64, extra: u64) -> (World, Ref<Tcb>) {
    let mut world = World::new();
    let tcb = world.thread(THREAD, 200, Some(CONTEXT));
    configure(&mut world, CONTEXT, &[budget, period, extra, 55, 0]);
    world.make(ObjectType::Notification, 0, FREE, 1);
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Wait, FREE, 0, &[]);
    assert_eq!(world.current(0), Some(tcb));
    (world, tcb)
}

#[test]
fn a_thread_gets_its_budget_each_period_and_no_more() {
    let (mut world, tcb) = budgeted(1000, 10_000, 0);
    let sc = world.object::<SchedContext>(CONTEXT);
    let start = world.kernel.hw.time;
    let mut ran = 0;
    for _ in 0..1000 {
        // Steps of 100 us over 100 ms.
        if world.current(0) == Some(tcb) {
            ran += 100;
        }
        world.advance(100 * US);
        world.check();
        assert_eq!(refill::total(sc), sc.budget.get());
    }
    let periods = (world.kernel.hw.time - start) / (10_000 * US);
    assert!((periods * 1000..=(periods + 1) * 1100).contains(&ran), "{ran} us in {periods}");
}

#[test]
fn equals_share_by_time_slices() {
    let mut world = World::new();
    let one = world.thread(THREAD, 200, Some(CONTEXT));
    let two = world.thread(THREAD + 2, 200, Some(CONTEXT + 2));
    for slot in [THREAD, THREAD + 2] {
        world.ok(slot, Label::TCBResume, &[], &[]);
    }
    world.make(ObjectType::Notification, 0, FREE, 1);
    world.syscall(Syscall::Wait, FREE, 0, &[]);
    let mut turns = [0u32, 0];
    for _ in 0..40 {
        match world.current(0) {
            Some(tcb) if tcb == one => turns[0] += 1,
            Some(tcb) if tcb == two => turns[1] += 1,
            other => panic!("{other:?} runs"),
        }
        world.advance(1000 * US);
        world.check();
    }
    assert!(turns[0].abs_diff(turns[1]) <= 2, "{turns:?}");
}

#[test]
fn yield_gives_the_rest_away() {
    let (mut world, tcb) = budgeted(1000, 10_000, 0);
    world.advance(10 * US);
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), None, "waits for its refill");
    assert!(tcb.in_release_queue.get());
    let sc = world.object::<SchedContext>(CONTEXT);
    assert!(sc.consumed.get() < 100 * US, "only what was used counts");
    world.advance(10_500 * US);
    assert_eq!(world.current(0), Some(tcb));
    world.check();
}

#[test]
fn an_exhausted_budget_is_told_to_the_timeout_handler() {
    let mut world = World::new();
    world.make(ObjectType::Endpoint, 0, FREE, 1);
    world.make(ObjectType::Reply, 0, FREE + 1, 1);
    let tcb = world.thread(THREAD, 200, Some(CONTEXT));
    configure(&mut world, CONTEXT, &[1000, 10_000, 0, 55, 0]);
    world.ok(THREAD, Label::TCBSetTimeoutEndpoint, &[], &[FREE]);
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Recv, FREE, FREE + 1, &[]);
    assert_eq!(world.current(0), Some(tcb));
    world.advance(1500 * US);
    assert_eq!(world.current(0), Some(world.initial));
    let message = World::answer(world.initial);
    assert_eq!((message.label, message.length), (Fault::Timeout as u64, 2));
    assert_eq!(message.words[0], 55);
    assert!((900..=1100).contains(&message.words[1]), "{} us", message.words[1]);
    assert_eq!(world.initial.sc.get(), Some(world.object(fixed::SCHED_CONTEXT)), "own time");
    assert_eq!(tcb.state.get(), ThreadState::BlockedOnReply);
    world.check();
    // Answered, it waits for its refill and goes on.
    world.syscall(Syscall::Send, FREE + 1, 0, &[]);
    assert!(tcb.in_release_queue.get());
    world.check();
}

#[test]
fn budgets_are_checked() {
    let mut world = World::new();
    world.make(ObjectType::SchedContext, 8, CONTEXT, 1);
    let mut check = |words: &[u64], error, expected: &[u64]| {
        let label = Label::SchedControlConfigureFlags;
        fails(&mut world, SCHED_CONTROL, label, words, &[CONTEXT], error, expected);
    };
    check(&[19, 100, 0, 0, 0], Error::RangeError, &[20]);
    check(&[100, u64::MAX, 0, 0, 0], Error::RangeError, &[20]);
    check(&[200, 100, 0, 0, 0], Error::RangeError, &[20, 100]);
    check(&[100, 200, 9, 0, 0], Error::RangeError, &[0, 8]);
    check(&[100, 200, 0, 0], Error::TruncatedMessage, &[]);
    fails(
        &mut world,
        SCHED_CONTROL,
        Label::SchedControlConfigureFlags,
        &[100, 200, 0, 0, 0],
        &[fixed::TCB],
        Error::InvalidCapability,
        &[1],
    );
}

#[test]
fn one_context_has_one_thread() {
    let mut world = World::new();
    world.thread(THREAD, 200, Some(CONTEXT));
    world.thread(THREAD + 2, 200, None);
    let bind = Label::SchedContextBind;
    fails(&mut world, CONTEXT, bind, &[], &[THREAD + 2], Error::IllegalOperation, &[]);
    fails(
        &mut world,
        fixed::SCHED_CONTEXT,
        Label::SchedContextUnbind,
        &[],
        &[],
        Error::IllegalOperation,
        &[],
    );
    world.ok(CONTEXT, Label::SchedContextUnbindObject, &[], &[THREAD]);
    world.ok(CONTEXT, bind, &[], &[THREAD + 2]);
    world.check();
}

#[test]
fn consumed_time_is_told_once() {
    let (mut world, _) = budgeted(1000, 1000, 0);
    world.advance(700 * US);
    world.revive();
    let first = world.ok(CONTEXT, Label::SchedContextConsumed, &[], &[]).words[0];
    assert!((690..=720).contains(&first), "{first} us");
    assert_eq!(world.ok(CONTEXT, Label::SchedContextConsumed, &[], &[]).words[0], 0);
}

#[test]
fn yield_to_lets_the_other_run_first_and_tells_its_time() {
    let mut world = World::new();
    let tcb = world.thread(THREAD, 255, Some(CONTEXT));
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    world.initial.set_reg(register::CAPABILITY, CONTEXT);
    World::write_message(world.initial, Label::SchedContextYieldTo as u64, &[], &[]);
    world.enter(0, Syscall::Call as i64);
    assert_eq!(world.current(0), Some(tcb));
    world.check();
    world.advance(300 * US);
    world.make_wait(tcb);
    assert_eq!(world.current(0), Some(world.initial));
    let told = world.initial.mr(0);
    assert!((290..=320).contains(&told), "{told} us");
    world.check();
    // Not to oneself, and not above one's own bound.
    let label = Label::SchedContextYieldTo;
    let own = fixed::SCHED_CONTEXT;
    fails(&mut world, own, label, &[], &[], Error::IllegalOperation, &[]);
}

#[test]
fn configuring_on_another_core_moves_the_thread_there() {
    let mut world = World::new();
    let tcb = world.thread(THREAD, 200, Some(CONTEXT));
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    let words = [500, 500, 0, 0, 0];
    world.ok(SCHED_CONTROL + 1, Label::SchedControlConfigureFlags, &words, &[CONTEXT]);
    assert_eq!(tcb.core.get(), 1);
    assert_eq!(world.current(1), Some(tcb), "its core was woken");
    world.check();
    // Suspended from here while it runs there.
    world.ok(THREAD, Label::TCBSuspend, &[], &[]);
    assert_eq!(world.current(1), None);
    assert_eq!(tcb.state.get(), ThreadState::Inactive);
    world.check();
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    assert_eq!(world.current(1), Some(tcb));
    // And deleted.
    world.ok(fixed::CNODE, Label::CNodeDelete, &[THREAD, 64], &[]);
    assert_eq!(world.current(1), None);
    world.check();
}

#[test]
fn a_call_across_cores_takes_the_slow_path_and_moves_the_server() {
    let mut world = World::new();
    world.make(ObjectType::Endpoint, 0, FREE, 1);
    world.make(ObjectType::Reply, 0, FREE + 1, 1);
    let server = world.thread(THREAD, 255, Some(CONTEXT));
    let words = [500, 500, 0, 0, 0];
    world.ok(SCHED_CONTROL + 1, Label::SchedControlConfigureFlags, &words, &[CONTEXT]);
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    assert_eq!(world.current(1), Some(server));
    server.set_reg(register::CAPABILITY, FREE);
    server.set_reg(register::REPLY, FREE + 1);
    world.enter(1, Syscall::Recv as i64);
    world.ok(CONTEXT, Label::SchedContextUnbind, &[], &[]);
    world.syscall(Syscall::Call, FREE, 0, &[1]);
    assert_eq!(world.current(0), Some(server), "runs on the caller's context, on its core");
    assert_eq!(server.core.get(), 0);
    world.check();
}

#[test]
fn deleting_a_context_stops_its_thread() {
    let (mut world, tcb) = budgeted(1000, 1000, 0);
    world.revive();
    world.ok(fixed::CNODE, Label::CNodeDelete, &[CONTEXT, 64], &[]);
    assert_eq!(tcb.sc.get(), None);
    assert_eq!(tcb.state.get(), ThreadState::Running, "runnable, but without time");
    world.check();
}

#[test]
fn sporadic_refills_join_and_never_exceed_the_budget() {
    let (mut world, tcb) = budgeted(1000, 5000, 6);
    let sc = world.object::<SchedContext>(CONTEXT);
    world.revive();
    configure(&mut world, CONTEXT, &[1000, 5000, 6, 55, 1]);
    let mut ran = 0;
    for step in 0..200u64 {
        if world.current(0) == Some(tcb) {
            ran += 1;
            if step % 3 == 0 {
                world.make_wait(tcb);
            }
        } else if tcb.state.get() == ThreadState::BlockedOnNotification {
            world.revive();
            world.syscall(Syscall::Send, FREE, 0, &[]);
            world.syscall(Syscall::Wait, FREE, 0, &[]);
        } else if world.current(0) == Some(world.initial) {
            world.syscall(Syscall::Wait, FREE, 0, &[]);
        }
        world.advance(100 * US);
        world.check();
        assert_eq!(refill::total(sc), sc.budget.get());
    }
    assert!(ran > 10, "{ran}");
}

#[test]
fn a_signal_switches_to_the_better_waiter_and_each_pays_its_own_time() {
    let mut world = World::new();
    world.make(ObjectType::Notification, 0, FREE, 1);
    let better = world.thread(THREAD, 200, Some(CONTEXT));
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    world.call(fixed::TCB, Label::TCBSetPriority as u64, &[100], &[fixed::TCB]);
    let sc = world.object::<SchedContext>(CONTEXT);
    let own = world.object::<SchedContext>(fixed::SCHED_CONTEXT);
    for _ in 0..5 {
        assert_eq!(world.current(0), Some(better));
        world.advance(30 * US);
        let before = own.consumed.get();
        world.syscall(Syscall::Wait, FREE, 0, &[]);
        world.check();
        assert_eq!(world.current(0), Some(world.initial));
        world.advance(50 * US);
        let charged = sc.consumed.get();
        world.syscall(Syscall::Send, FREE, 0, &[]);
        world.check();
        assert_eq!(own.consumed.get() - before, 50 * US + 300, "the signaller's time");
        world.advance(1);
        assert_eq!(sc.consumed.get(), charged, "not yet charged, it runs");
    }
    let used = sc.consumed.get();
    assert!((4 * 30 * US..=5 * 31 * US).contains(&used), "{used} ticks");
    // An equal or lesser waiter only becomes ready.
    world.syscall(Syscall::Wait, FREE, 0, &[]);
    world.call(fixed::TCB, Label::TCBSetPriority as u64, &[200], &[fixed::TCB]);
    world.syscall(Syscall::Send, FREE, 0, &[]);
    assert_eq!(world.current(0), Some(world.initial));
    assert_eq!(better.state.get(), ThreadState::Running);
    world.check();
}
