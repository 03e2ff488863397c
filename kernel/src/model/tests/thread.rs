//! Threads: registers, priorities, spaces, flags.

use abi::bootinfo::slot as fixed;
use abi::context::index;
use abi::message::buffer_word;
use abi::{CapRights, Error, Label, ObjectType, Syscall};

use super::fails;
use crate::cap::raw::Cap;
use crate::ipc::transfer::ipc_buffer;
use crate::model::world::{BUFFER_VADDR, DEVICE_UNTYPED, FREE, World};
use crate::object::tcb::{ThreadState, tcb_slot};

const THREAD: u64 = FREE + 10;

#[test]
fn registers_are_written_and_read_back_sane() {
    let mut world = World::new();
    let tcb = world.thread(THREAD, 10, None);
    let mut words = [0u64; 22];
    words[1] = 20;
    for (number, word) in words.iter_mut().enumerate().skip(2) {
        *word = 0x1000 + number as u64;
    }
    words[2 + index::RFLAGS] = u64::MAX;
    words[2 + index::FS_BASE] = 1 << 63;
    world.ok(THREAD, Label::TCBWriteRegisters, &words, &[]);
    assert_eq!(tcb.reg(index::RFLAGS) & 0x3300, 0x200, "interrupts on, no trap flag, no IOPL");
    let answer = world.ok(THREAD, Label::TCBReadRegisters, &[0, 20], &[]);
    assert_eq!((answer.length, answer.words[0], answer.words[1]), (20, 0x1002, 0x1003));
    let read = ipc_buffer(world.initial, false)
        .map(|buffer| (buffer.get(buffer_word::MSG + 17), buffer.get(buffer_word::MSG + 18)));
    assert_eq!(read, Some((0x1000 + 19, 0)), "r15, and a base that is no address");
}

#[test]
fn register_calls_check_their_arguments() {
    let mut world = World::new();
    world.thread(THREAD, 10, None);
    let mut check = |slot, label, words: &[u64], error, expected: &[u64]| {
        fails(&mut world, slot, label, words, &[], error, expected);
    };
    check(THREAD, Label::TCBReadRegisters, &[0, 0], Error::RangeError, &[1, 20]);
    check(THREAD, Label::TCBReadRegisters, &[0, 21], Error::RangeError, &[1, 20]);
    check(fixed::TCB, Label::TCBReadRegisters, &[0, 1], Error::IllegalOperation, &[]);
    check(fixed::TCB, Label::TCBWriteRegisters, &[0, 1, 1], Error::IllegalOperation, &[]);
    check(THREAD, Label::TCBWriteRegisters, &[0, 3, 1], Error::TruncatedMessage, &[]);
    check(THREAD, Label::IRQAckIRQ, &[], Error::IllegalOperation, &[]);
}

#[test]
fn priorities_stay_below_the_authoritys_bound() {
    let mut world = World::new();
    world.thread(THREAD, 10, None);
    world.thread(THREAD + 1, 20, None);
    let label = Label::TCBSetPriority;
    // THREAD's own bound is 10.
    fails(&mut world, THREAD + 1, label, &[11], &[THREAD], Error::RangeError, &[0, 10]);
    world.ok(THREAD + 1, label, &[10], &[THREAD]);
    fails(&mut world, THREAD + 1, label, &[10], &[fixed::CNODE], Error::InvalidCapability, &[1]);
    fails(&mut world, THREAD + 1, label, &[], &[THREAD], Error::TruncatedMessage, &[]);
    fails(&mut world, THREAD + 1, label, &[256], &[fixed::TCB], Error::RangeError, &[0, 255]);
}

#[test]
fn lowering_the_own_priority_lets_better_threads_run() {
    let mut world = World::new();
    let other = world.thread(THREAD, 200, Some(THREAD + 1));
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    assert_eq!(world.current(0), Some(world.initial));
    world.call(fixed::TCB, Label::TCBSetPriority as u64, &[100], &[fixed::TCB]);
    assert_eq!(world.current(0), Some(other));
    world.check();
}

#[test]
fn fault_handlers_must_be_able_to_answer() {
    let mut world = World::new();
    world.thread(THREAD, 10, None);
    world.make(ObjectType::Endpoint, 0, FREE, 1);
    let words = [FREE + 1, 64, FREE, 64, CapRights::WRITE.0];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    let caps = [fixed::TCB, fixed::NULL, FREE + 1];
    let label = Label::TCBSetSchedParams;
    fails(&mut world, THREAD, label, &[10, 10], &caps, Error::InvalidCapability, &[3]);
    world.ok(THREAD, label, &[10, 10], &[fixed::TCB, fixed::NULL, FREE]);
    let caps = [FREE + 1, fixed::CNODE, fixed::VSPACE];
    let space = Label::TCBSetSpace;
    fails(&mut world, THREAD, space, &[0, 0], &caps, Error::InvalidCapability, &[1]);
}

#[test]
fn spaces_must_be_tables_and_roots_in_use() {
    let mut world = World::new();
    world.thread(THREAD, 10, None);
    world.make(ObjectType::Pml4, 0, FREE, 1);
    let configure = Label::TCBConfigure;
    for caps in [
        [fixed::TCB, fixed::VSPACE, fixed::NULL],
        [fixed::CNODE, fixed::CNODE, fixed::NULL],
        // A root without ASID.
        [fixed::CNODE, FREE, fixed::NULL],
    ] {
        let error = Error::IllegalOperation;
        fails(&mut world, THREAD, configure, &[0, 0, 0], &caps, error, &[]);
    }
}

#[test]
fn buffers_are_aligned_normal_frames() {
    let mut world = World::new();
    world.thread(THREAD, 10, None);
    world.make(ObjectType::Page4K, 0, FREE, 1);
    world.make_from(DEVICE_UNTYPED, ObjectType::Page4K, 0, FREE + 1, 1);
    let label = Label::TCBSetIPCBuffer;
    fails(&mut world, THREAD, label, &[0x1200], &[FREE], Error::AlignmentError, &[]);
    fails(&mut world, THREAD, label, &[0x1000], &[FREE + 1], Error::IllegalOperation, &[]);
    fails(&mut world, THREAD, label, &[0x1000], &[fixed::TCB], Error::IllegalOperation, &[]);
    world.ok(THREAD, label, &[0x1400], &[FREE]);
    let tcb = world.object(THREAD);
    let frame = world.slot(FREE).cap.get().addr();
    assert_eq!(ipc_buffer(tcb, true).map(|buffer| buffer.0), Some(frame.offset(0x400)));
    // Revoking the frame takes the buffer away.
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[FREE, 64], &[]);
    assert!(ipc_buffer(tcb, true).is_none());
}

#[test]
fn a_new_thread_has_clean_registers_and_fpu() {
    let mut world = World::new();
    let tcb = world.thread(THREAD, 10, None);
    assert_eq!(tcb.fpu[0].get(), 0x7f);
    assert_eq!(tcb.reg(index::RFLAGS), 0x202);
}

#[test]
fn suspend_and_resume_repeat_an_interrupted_call() {
    let mut world = World::new();
    world.make(ObjectType::Notification, 0, FREE, 1);
    let tcb = world.thread(THREAD, 255, Some(THREAD + 1));
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(tcb));
    let before = tcb.reg(index::RIP);
    world.syscall(Syscall::Wait, FREE, 0, &[]);
    assert_eq!(tcb.state.get(), ThreadState::BlockedOnNotification);
    world.ok(THREAD, Label::TCBSuspend, &[], &[]);
    world.check();
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(tcb));
    assert_eq!(tcb.reg(index::RIP), before, "at the SYSCALL instruction again");
    world.check();
}

#[test]
fn flags_and_tls_base_are_set() {
    let mut world = World::new();
    let tcb = world.thread(THREAD, 10, None);
    let answer = world.ok(THREAD, Label::TCBSetFlags, &[0, u64::MAX], &[]);
    assert_eq!(answer.words[0], 1, "only the known flag");
    assert_eq!(world.ok(THREAD, Label::TCBSetFlags, &[1, 0], &[]).words[0], 0);
    world.ok(THREAD, Label::TCBSetTLSBase, &[0x7000], &[]);
    assert_eq!(tcb.reg(index::FS_BASE), 0x7000);
    world.syscall(Syscall::SetTLSBase, 0x8000, 0, &[]);
    assert_eq!(world.initial.reg(index::FS_BASE), 0x8000);
    assert_eq!(ipc_buffer(world.initial, true).is_some(), BUFFER_VADDR != 0);
}

#[test]
fn deleting_a_thread_frees_what_it_held() {
    let mut world = World::new();
    world.make(ObjectType::CNode, 2, FREE, 1);
    world.thread(THREAD, 10, None);
    world.ok(THREAD, Label::TCBConfigure, &[0, 0, 0], &[FREE, fixed::VSPACE, fixed::NULL]);
    let tcb = world.object::<crate::object::tcb::Tcb>(THREAD);
    // The thread holds the table's last capability.
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE, 64], &[]);
    assert!(matches!(tcb.slot(tcb_slot::CTABLE).unpack(), Cap::CNode { .. }));
    world.ok(fixed::CNODE, Label::CNodeDelete, &[THREAD, 64], &[]);
    assert_eq!(tcb.slot(tcb_slot::CTABLE).unpack(), Cap::Null);
    world.check();
    // As in seL4, a table whose last capability was inside another object is emptied by revoking its memory, not before.
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[crate::model::world::UNTYPED, 64], &[]);
    world.check();
    world.make(ObjectType::Untyped, 22, FREE, 1);
}

#[test]
fn a_thread_can_delete_itself() {
    let mut world = World::new();
    world.make(ObjectType::Notification, 0, FREE, 1);
    let tcb = world.thread(THREAD, 255, Some(THREAD + 1));
    world.ok(THREAD, Label::TCBResume, &[], &[]);
    world.syscall(Syscall::Yield, 0, 0, &[]);
    assert_eq!(world.current(0), Some(tcb));
    World::write_message(tcb, Label::CNodeDelete as u64, &[THREAD, 64], &[]);
    tcb.set_reg(abi::syscall::register::CAPABILITY, fixed::CNODE);
    world.enter(0, Syscall::Call as i64);
    assert_eq!(world.cap(THREAD), Cap::Null);
    assert_eq!(world.current(0), Some(world.initial));
    world.check();
}
