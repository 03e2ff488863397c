//! Ports and interrupts.

use abi::bootinfo::slot as fixed;
use abi::syscall::register;
use abi::{CapRights, Error, Label, ObjectType, Syscall};

use super::fails;
use crate::cap::raw::Cap;
use crate::hw::IrqRoute;
use crate::model::world::{FREE, World};

#[test]
fn ports_are_issued_once_and_used_within_their_range() {
    let mut world = World::new();
    let issue = Label::X86IOPortControlIssue;
    let control = fixed::IO_PORT_CONTROL;
    let root = [fixed::CNODE];
    world.ok(control, issue, &[0x3f8, 0x3ff, FREE, 64], &root);
    fails(
        &mut world,
        control,
        issue,
        &[0x3ff, 0x400, FREE + 1, 64],
        &root,
        Error::RevokeFirst,
        &[],
    );
    fails(&mut world, control, issue, &[9, 8, FREE + 1, 64], &root, Error::InvalidArgument, &[1]);
    let value = world.ok(FREE, Label::X86IOPortIn8, &[0x3f8], &[]).words[0];
    assert_eq!(value, 0x5a00_03f8, "what the machine said");
    world.ok(FREE, Label::X86IOPortOut32, &[0x3fc, 0x1234_5678], &[]);
    assert_eq!(world.kernel.hw.ports.last(), Some(&(0x3fc, 4, Some(0x1234_5678))));
    let illegal = Error::IllegalOperation;
    fails(&mut world, FREE, Label::X86IOPortIn8, &[0x3f7], &[], illegal, &[]);
    fails(&mut world, FREE, Label::X86IOPortOut32, &[0x3fd, 0], &[], illegal, &[]);
    let accesses = world.kernel.hw.ports.len();
    assert_eq!(accesses, 2, "refused accesses do not happen");
    // Given back, the range can be issued again.
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE, 64], &[]);
    world.ok(control, issue, &[0x3f8, 0x3ff, FREE, 64], &root);
    world.check();
}

#[test]
fn an_interrupt_is_masked_until_acknowledged_and_signals_its_badge() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::Notification, 0, FREE, 1);
    let words = [FREE + 1, 64, FREE, 64, 15, 32];
    world.ok(fixed::CNODE, Label::CNodeMint, &words, &root);
    let issue = Label::X86IRQIssueIRQHandlerIOAPIC;
    let control = fixed::IRQ_CONTROL;
    world.ok(control, issue, &[FREE + 2, 64, 0, 4, 1, 1, 9], &root);
    let route = IrqRoute::IoApic { ioapic: 0, pin: 4, level: true, active_low: true };
    assert_eq!(world.kernel.hw.lines, [(48 + 9, route, false)]);
    world.ok(FREE + 2, Label::IRQSetIRQHandler, &[], &[FREE + 1]);
    world.interrupt(0, 48 + 9);
    assert!(world.kernel.hw.lines[0].2, "masked");
    world.syscall(Syscall::NBWait, FREE, 0, &[]);
    assert_eq!(world.initial.reg(register::BADGE), 32);
    world.ok(FREE + 2, Label::IRQAckIRQ, &[], &[]);
    assert!(!world.kernel.hw.lines[0].2);
    world.ok(FREE + 2, Label::IRQClearIRQHandler, &[], &[]);
    world.interrupt(0, 48 + 9);
    world.syscall(Syscall::NBWait, FREE, 0, &[]);
    assert_eq!(world.initial.reg(register::BADGE), 0, "no handler, no signal");
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE + 2, 64], &[]);
    assert!(world.kernel.hw.lines.is_empty(), "disconnected");
    world.check();
}

#[test]
fn interrupt_control_checks_its_arguments() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    let (ioapic, msi) = (Label::X86IRQIssueIRQHandlerIOAPIC, Label::X86IRQIssueIRQHandlerMSI);
    let mut check = |label, words: &[u64], error, expected: &[u64]| {
        fails(&mut world, fixed::IRQ_CONTROL, label, words, &root, error, expected);
    };
    check(Label::IRQIssueIRQHandler, &[1, FREE, 64], Error::IllegalOperation, &[]);
    check(ioapic, &[FREE, 64, 0, 4, 0, 0, 108], Error::RangeError, &[0, 107]);
    check(ioapic, &[FREE, 64, 1, 4, 0, 0, 0], Error::RangeError, &[0, 0]);
    check(ioapic, &[FREE, 64, 0, 24, 0, 0, 0], Error::RangeError, &[0, 23]);
    check(ioapic, &[FREE, 64, 0, 4, 2, 0, 0], Error::RangeError, &[0, 1]);
    check(msi, &[FREE, 64, 256, 0, 0, 0, 0], Error::RangeError, &[0, 255]);
    check(msi, &[FREE, 64, 0, 32, 0, 0, 0], Error::RangeError, &[0, 31]);
    check(msi, &[FREE, 64, 0, 0, 8, 0, 0], Error::RangeError, &[0, 7]);
    check(msi, &[fixed::TCB, 64, 0, 0, 0, 0, 0], Error::DeleteFirst, &[]);
    world.ok(fixed::IRQ_CONTROL, msi, &[FREE, 64, 0, 0, 0, 0, 0], &root);
    let error = Error::RevokeFirst;
    fails(&mut world, fixed::IRQ_CONTROL, msi, &[FREE + 1, 64, 0, 0, 0, 0, 0], &root, error, &[]);
}

#[test]
fn a_handler_needs_a_notification_it_may_signal() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    let words = [FREE, 64, 0, 0, 0, 0, 0];
    world.ok(fixed::IRQ_CONTROL, Label::X86IRQIssueIRQHandlerMSI, &words, &root);
    world.make(ObjectType::Notification, 0, FREE + 1, 1);
    let copy = [FREE + 2, 64, FREE + 1, 64, CapRights::READ.0];
    world.ok(fixed::CNODE, Label::CNodeCopy, &copy, &root);
    let set = Label::IRQSetIRQHandler;
    for cap in [FREE + 2, fixed::TCB] {
        fails(&mut world, FREE, set, &[], &[cap], Error::InvalidCapability, &[0]);
    }
    world.ok(FREE, set, &[], &[FREE + 1]);
    // Revoking the notification takes it from the line.
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[FREE + 1, 64], &[]);
    let line = world.kernel.irq_slots.map(|slots| slots.add(16).unpack());
    assert_eq!(line, Some(Cap::Null));
    world.check();
}
