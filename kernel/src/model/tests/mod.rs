//! Tests of the kernel's objects through system calls: what each may do, and what it may not.

mod io;
mod ipc;
mod memory;
mod sched;
mod thread;
mod vspace;

use abi::bootinfo::slot as fixed;
use abi::{Error, Label, ObjectType, Syscall};

use super::fuzz;
use super::world::{FREE, World};

/// Runs of the seeded test; more on demand with the fuzz target.
const SEEDS: u64 = 40;

#[test]
fn random_calls_keep_every_invariant() {
    let mut tally = fuzz::Tally::new();
    for seed in 0..SEEDS {
        let bytes = fuzz_input::seeded(seed, 6_000);
        match std::panic::catch_unwind(|| fuzz::run(&bytes)) {
            Ok(one) => {
                for (key, count) in one {
                    *tally.entry(key).or_default() += count;
                }
            }
            Err(_) => panic!("seed {seed}"),
        }
    }
    // The run is worth something only if calls also succeed, of many kinds.
    let kinds = tally.keys().filter(|key| key.1 == 0).count();
    assert!(kinds > 45, "only {kinds} kinds of calls succeeded: {tally:?}");
}

/// Runs a broken world through the checker and tells whether it complains.
fn is_noticed(plant: impl FnOnce(&mut World) + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(|| {
        let mut world = World::new();
        world.make(ObjectType::Page4K, 0, FREE, 1);
        world.ok(
            FREE,
            Label::X86PageMap,
            &[super::world::BUFFER_VADDR + 0x1000, 3, 0],
            &[fixed::VSPACE],
        );
        world.thread(FREE + 1, 200, Some(FREE + 2));
        world.check();
        plant(&mut world);
        world.check();
    })
    .is_err()
}

#[test]
fn the_checker_notices_planted_faults() {
    use crate::cap::raw::{Cap, RawCap};
    use crate::object::sched_context::Refill;
    use crate::object::sched_context::SchedContext;

    assert!(!is_noticed(|_| {}), "a sound world passes");
    assert!(is_noticed(|world| {
        // The frame's capability vanishes, its mapping stays.
        world.slot(FREE).cap.set(RawCap::NULL);
    }));
    assert!(is_noticed(|world| {
        // Unmapped behind the TLB's back.
        let Cap::Frame(frame) = world.cap(FREE) else { return };
        let root = world.kernel.root_of_asid(1);
        let entry =
            crate::object::vspace::walk(crate::mem::PhysAddr(root), frame.mapping.vaddr, 12);
        if let Ok(entry) = entry {
            entry.set(0);
        }
    }));
    assert!(is_noticed(|world| {
        let sc = world.object::<SchedContext>(fixed::SCHED_CONTEXT);
        let budget = sc.budget.get();
        sc.refill(0).set(Refill { time: 0, amount: budget + 1 });
    }));
    assert!(is_noticed(|world| {
        // An object is made twice.
        let cap = world.slot(FREE + 2).cap.get();
        let inside = crate::mem::PhysAddr(cap.addr().0 + 64);
        crate::cap::tree::insert_root(
            Cap::Endpoint { addr: inside, badge: 0, rights: abi::CapRights::ALL },
            world.slot(FREE + 3),
        );
    }));
    assert!(is_noticed(|world| {
        // A thread that can run is in no queue.
        world
            .object::<crate::object::tcb::Tcb>(FREE + 1)
            .state
            .set(crate::object::tcb::ThreadState::Running);
    }));
}

/// Calls and expects an error with these first words.
fn fails(
    world: &mut World,
    cap: u64,
    label: Label,
    words: &[u64],
    caps: &[u64],
    error: Error,
    expected: &[u64],
) {
    let answer = world.call(cap, label as u64, words, caps);
    assert_eq!(answer.label, error as u64, "{label:?} {words:x?}: {answer:x?}");
    assert_eq!(&answer.words[..expected.len()], expected, "{label:?} {words:x?}");
    world.check();
}

#[test]
fn debug_calls_print_and_identify() {
    let mut world = World::new();
    for byte in b"ok" {
        world.syscall(Syscall::DebugPutChar, u64::from(*byte), 0, &[]);
    }
    assert_eq!(world.console(), "ok");
    world.syscall(Syscall::DebugCapIdentify, fixed::TCB, 0, &[]);
    assert_eq!(world.initial.reg(abi::syscall::register::CAPABILITY), 12);
    world.syscall(Syscall::DebugCapIdentify, FREE, 0, &[]);
    assert_eq!(world.initial.reg(abi::syscall::register::CAPABILITY), 0);
    world.syscall(Syscall::DebugHalt, 0, 0, &[]);
    assert!(world.kernel.hw.is_halted);
}

#[test]
fn unknown_system_calls_fault_without_a_handler_they_stop_the_thread() {
    let mut world = World::new();
    world.enter(0, -99);
    assert_eq!(world.current(0), None);
    assert!(world.console().contains("UnknownSyscall"));
}
