//! Random system calls: bytes are turned into calls, and every invariant is checked after each.
//!
//! The same interpreter serves the seeded run of `cargo test` and the cargo-fuzz target.

use std::vec::Vec;

use abi::bootinfo::slot as fixed;
use abi::message::buffer_word;
use abi::syscall::register;
use abi::{Label, MessageInfo, ObjectType, Syscall};
use fuzz_input::Input;

use super::CORES;
use super::world::{BUFFER_VADDR, CODE_VADDR, FREE, LARGE_UNTYPED, SCHED_CONTROL, UNTYPED, World};
use crate::FaultInfo;
use crate::cap::raw::Tag;
use crate::mem::Ref;
use crate::object::tcb::{Entry, Tcb};

/// Slots the calls use: few, so that they meet.
const SLOTS: u64 = 48;

/// Fixed slots the calls use.
const FIXED: [u64; 15] = [
    fixed::NULL,
    fixed::TCB,
    fixed::CNODE,
    fixed::VSPACE,
    fixed::IRQ_CONTROL,
    fixed::ASID_CONTROL,
    fixed::ASID_POOL,
    fixed::IO_PORT_CONTROL,
    fixed::IPC_BUFFER,
    fixed::SCHED_CONTEXT,
    UNTYPED,
    LARGE_UNTYPED,
    SCHED_CONTROL,
    SCHED_CONTROL + 1,
    fixed::DOMAIN,
];

/// A slot, now and then a fixed one.
fn slot(input: &mut Input<'_>) -> u64 {
    if input.byte() < 8 { input.pick(&FIXED) } else { FREE + input.below(SLOTS) }
}

/// A slot whose content fits mostly; anything sometimes.
fn fitting(world: &World, input: &mut Input<'_>, fits: impl Fn(Tag) -> bool) -> u64 {
    if input.byte() < 20 {
        return slot(input);
    }
    let start = input.below(SLOTS);
    (0..SLOTS)
        .map(|number| FREE + (start + number) % SLOTS)
        .chain(FIXED)
        .find(|number| fits(world.slot(*number).cap.get().tag()))
        .unwrap_or(FREE + start)
}

fn of(world: &World, input: &mut Input<'_>, tag: Tag) -> u64 {
    fitting(world, input, |found| found == tag)
}

fn empty(world: &World, input: &mut Input<'_>) -> u64 {
    fitting(world, input, |found| found == Tag::Null)
}

/// The type of capability an operation is for.
fn target(label: Label) -> Tag {
    match label as u64 {
        1 => Tag::Untyped,
        2..=17 => Tag::Thread,
        18..=25 => Tag::CNode,
        26 | 57 | 58 => Tag::IrqControl,
        27..=29 => Tag::IrqHandler,
        30..=32 => Tag::Domain,
        33 => Tag::SchedControl,
        34..=38 => Tag::SchedContext,
        39 | 40 => Tag::Pdpt,
        41 | 42 => Tag::PageDirectory,
        43 | 44 => Tag::PageTable,
        45..=47 | 128 | 129 => Tag::Frame,
        48 => Tag::AsidControl,
        49 => Tag::AsidPool,
        50 => Tag::IoPortControl,
        51..=56 => Tag::IoPort,
        _ => Tag::Timer,
    }
}

const OBJECTS: [(ObjectType, u64); 18] = [
    (ObjectType::Untyped, 14),
    (ObjectType::Untyped, 12),
    (ObjectType::Tcb, 0),
    (ObjectType::Tcb, 0),
    (ObjectType::Endpoint, 0),
    (ObjectType::Notification, 0),
    (ObjectType::CNode, 3),
    (ObjectType::SchedContext, 8),
    (ObjectType::SchedContext, 7),
    (ObjectType::Reply, 0),
    (ObjectType::Reply, 0),
    (ObjectType::Pml4, 0),
    (ObjectType::Pdpt, 0),
    (ObjectType::PageDirectory, 0),
    (ObjectType::PageTable, 0),
    (ObjectType::Page4K, 0),
    (ObjectType::LargePage, 0),
    (ObjectType::Timer, 0),
];

/// Label, words and capabilities of one invocation.
type Message = (Label, Vec<u64>, Vec<u64>);

fn vaddr(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0..=2 => BUFFER_VADDR + (input.below(8) << 12),
        3 => BUFFER_VADDR + (input.below(4) << 21),
        4 => input.below(4) << 30,
        5 => input.below(3) << 39,
        6 => 0x7fff_ffff_e000 + (input.below(4) << 11),
        _ => BUFFER_VADDR + input.below(0x4000),
    }
}

/// Plausible words behind a label, so that calls get past the first check often enough.
fn message(world: &World, input: &mut Input<'_>) -> Message {
    let root = fixed::CNODE;
    let label = match input.below(100) {
        0..=19 => Label::UntypedRetype,
        20..=26 => Label::CNodeDelete,
        27 => Label::CNodeRevoke,
        28..=33 => input.pick(&[Label::CNodeCopy, Label::CNodeMint]),
        34..=37 => input.pick(&[Label::FrameDerive, Label::FrameZero]),
        38..=47 => input.pick(&[Label::X86PageMap, Label::X86PageTableMap]),
        _ => Label::from_number(1 + input.below(58)).unwrap_or(Label::CNodeCopy),
    };
    let notification = |world: &World, input: &mut Input<'_>| of(world, input, Tag::Notification);
    let thread = |world: &World, input: &mut Input<'_>| of(world, input, Tag::Thread);
    let context = |world: &World, input: &mut Input<'_>| of(world, input, Tag::SchedContext);
    let (words, caps): (Vec<u64>, Vec<u64>) = match label {
        Label::UntypedRetype => {
            let (object, bits) = input.pick(&OBJECTS);
            let to = empty(world, input);
            ([object as u64, bits, 0, 0, to, 1 + input.below(2)].into(), [root].into())
        }
        Label::CNodeRevoke | Label::CNodeDelete | Label::CNodeCancelBadgedSends => {
            let is_revoke = label == Label::CNodeRevoke && input.byte() < 128;
            let slot = if is_revoke { of(world, input, Tag::Untyped) } else { slot(input) };
            ([slot, 64].into(), [].into())
        }
        Label::CNodeCopy | Label::CNodeMint | Label::CNodeMove | Label::CNodeMutate => {
            let mut words = [empty(world, input), 64, slot(input), 64].to_vec();
            match label {
                Label::CNodeMint | Label::CNodeCopy => {
                    words.extend([input.below(16), input.below(5)]);
                }
                _ => words.push(input.pick(&[0, 58, 61])),
            }
            (words, [root].into())
        }
        Label::CNodeRotate => {
            let (pivot, source) = (slot(input), slot(input));
            let to = if input.byte() < 128 { source } else { empty(world, input) };
            ([to, 64, 0, pivot, 64, 0, source, 64].into(), [root, root].into())
        }
        Label::TCBConfigure => {
            let buffer = input.pick(&[0, BUFFER_VADDR]);
            let space = input.pick(&[fixed::VSPACE, FREE + 5]);
            ([0, 0, buffer].into(), [root, space, fixed::IPC_BUFFER].into())
        }
        Label::TCBSetSchedParams => {
            let words = [255, 100 + input.below(156)].into();
            let context = context(world, input);
            let context = input.pick(&[fixed::NULL, context]);
            (words, [fixed::TCB, context, of(world, input, Tag::Endpoint)].into())
        }
        Label::TCBSetPriority | Label::TCBSetMCPriority => {
            ([100 + input.below(156)].into(), [fixed::TCB].into())
        }
        Label::TCBSetSpace => {
            let handler = of(world, input, Tag::Endpoint);
            ([0, 0].into(), [handler, root, fixed::VSPACE].into())
        }
        Label::TCBWriteRegisters => ([input.below(2), 2, CODE_VADDR, 0].into(), [].into()),
        Label::TCBReadRegisters => ([input.below(2), 18].into(), [].into()),
        Label::TCBCopyRegisters => ([input.below(16)].into(), [thread(world, input)].into()),
        Label::SchedControlConfigureFlags => {
            let budget = 100 + input.below(10) * 100;
            let period = budget + input.pick(&[0, 0, 100, 1000]);
            let words = [budget, period, input.below(10), 7, input.below(2)];
            (words.into(), [context(world, input)].into())
        }
        Label::X86PDPTMap | Label::X86PageDirectoryMap | Label::X86PageTableMap => {
            let space = input.pick(&[fixed::VSPACE, FREE + 5]);
            ([vaddr(input), 0].into(), [space].into())
        }
        Label::X86PageMap => {
            let space = input.pick(&[fixed::VSPACE, fixed::VSPACE, FREE + 5]);
            ([vaddr(input), input.below(4), input.below(4)].into(), [space].into())
        }
        Label::X86ASIDControlMakePool => {
            let untyped = of(world, input, Tag::Untyped);
            ([empty(world, input), 64].into(), [untyped, root].into())
        }
        Label::X86ASIDPoolAssign => ([].into(), [of(world, input, Tag::Pml4)].into()),
        Label::X86IOPortControlIssue => {
            let first = input.below(64);
            let words = [first, first + input.below(8), empty(world, input), 64];
            (words.into(), [root].into())
        }
        Label::X86IRQIssueIRQHandlerIOAPIC | Label::X86IRQIssueIRQHandlerMSI => {
            let vector = input.below(6);
            let words = [empty(world, input), 64, 0, vector, 0, 0, vector];
            (words.into(), [root].into())
        }
        Label::SchedContextBind | Label::SchedContextUnbindObject => {
            let objects = [thread(world, input), notification(world, input)];
            let object = input.pick(&objects);
            ([].into(), [object].into())
        }
        Label::TCBBindNotification | Label::IRQSetIRQHandler => {
            ([].into(), [notification(world, input)].into())
        }
        Label::TCBSetTimeoutEndpoint => ([].into(), [of(world, input, Tag::Endpoint)].into()),
        Label::FrameDerive => {
            let bits = input.pick(&[12, 12, 21]);
            ([empty(world, input), 64, input.below(512) << 12, bits].into(), [root].into())
        }
        Label::FrameZero => ([input.below(4) << 12, input.below(4) << 12].into(), [].into()),
        _ => ([input.below(64), input.below(64), 0, 0].into(), [].into()),
    };
    (label, words, caps)
}

/// Runs the calls that the bytes describe.
///
/// # Panics
/// If an invariant breaks.
pub fn run(bytes: &[u8]) -> Tally {
    let mut world = World::new();
    prepare(&mut world);
    world.check();
    let mut input = Input::new(bytes);
    let mut tally = Tally::new();
    while !input.is_empty() && world.is_alive() {
        step(&mut world, &mut input, &mut tally);
        world.check();
    }
    tally
}

/// How often each label was answered with each error (0: success).
pub type Tally = std::collections::BTreeMap<(u64, u64), u32>;

/// Objects to start from, so that short inputs reach far.
fn prepare(world: &mut World) {
    for (number, object) in [
        (0, ObjectType::Endpoint),
        (1, ObjectType::Notification),
        (2, ObjectType::Reply),
        (3, ObjectType::Reply),
        (4, ObjectType::Page4K),
        (5, ObjectType::Pml4),
    ] {
        world.make(object, 0, FREE + number, 1);
    }
    world.ok(fixed::ASID_POOL, Label::X86ASIDPoolAssign, &[], &[FREE + 5]);
    world.thread(FREE + 6, 255, Some(FREE + 7));
    world.thread(FREE + 8, 255, Some(FREE + 9));
    world.thread(FREE + 10, 255, None);
    world.ok(
        SCHED_CONTROL + 1,
        Label::SchedControlConfigureFlags,
        &[500, 2000, 4, 9, 0],
        &[FREE + 9],
    );
    for thread in [FREE + 6, FREE + 8, FREE + 10] {
        world.ok(thread, Label::TCBResume, &[], &[]);
    }
    for thread in [fixed::TCB, FREE + 6] {
        world.ok(thread, Label::TCBSetTimeoutEndpoint, &[], &[FREE]);
    }
}

fn step(world: &mut World, input: &mut Input<'_>, tally: &mut Tally) {
    let core = usize::from(input.byte() < 60);
    let kind = input.below(32);
    world.kernel.hw.is_interrupt_pending = input.byte() < 20;
    match kind {
        0 => world.advance(input.below(3_000_000)),
        1 => {
            for core in 0..CORES {
                world.interrupt(core, (48 + input.below(8)) as u8);
                world.settle();
            }
        }
        2 => fault(world, core, input),
        3 => {
            // The other core is made to wait for the lock with a call of its own, and loses its thread meanwhile or not.
            world.kernel.hw.is_interrupt_pending = true;
            call(world, core, input, tally);
        }
        _ => call(world, core, input, tally),
    }
}

fn fault(world: &mut World, core: usize, input: &mut Input<'_>) {
    let Some(tcb) = world.current(core) else { return };
    tcb.entry.set(Entry::Other);
    let info = match input.below(3) {
        0 => FaultInfo::Page { address: input.below(0xffff), code: input.below(32) },
        1 => FaultInfo::Exception { vector: input.below(20), code: 0 },
        _ => FaultInfo::SoftwareInterrupt { vector: 150 + input.below(100) },
    };
    world.kernel.handle_fault(core, info);
    world.settle();
}

fn call(world: &mut World, core: usize, input: &mut Input<'_>, tally: &mut Tally) {
    let Some(tcb) = world.current(core) else {
        if core == 0 {
            world.revive();
        } else {
            world.advance(50_000);
        }
        return;
    };
    if input.byte() < 200 {
        let (label, words, caps) = message(world, input);
        World::write_message(tcb, label as u64, &words, &caps);
        set_receive_slot(tcb, empty(world, input));
        tcb.set_reg(register::CAPABILITY, of(world, input, target(label)));
        trace(world, core, tcb, Syscall::Call, Some(label));
        world.enter(core, Syscall::Call as i64);
        if world.current(core) == Some(tcb) {
            *tally.entry((label as u64, World::answer(tcb).label)).or_default() += 1;
        }
        return;
    }
    let caps: Vec<u64> = if input.byte() < 60 { [slot(input)].into() } else { [].into() };
    let words: Vec<u64> = (0..input.below(8)).map(|_| 7).collect();
    World::write_message(tcb, input.below(3), &words, &caps);
    set_receive_slot(tcb, empty(world, input));
    let number = input.pick(&[
        Syscall::Call,
        Syscall::Call,
        Syscall::ReplyRecv,
        Syscall::ReplyRecv,
        Syscall::NBSendRecv,
        Syscall::NBSendWait,
        Syscall::Send,
        Syscall::NBSend,
        Syscall::NBSend,
        Syscall::Recv,
        Syscall::NBRecv,
        Syscall::Wait,
        Syscall::NBWait,
        Syscall::Yield,
        Syscall::SetTLSBase,
        Syscall::VMEnter,
    ]);
    let port = |tag: Tag| matches!(tag, Tag::Endpoint | Tag::Notification);
    tcb.set_reg(register::CAPABILITY, fitting(world, input, port));
    let reply = fitting(world, input, |tag| tag == Tag::Reply);
    tcb.set_reg(register::REPLY, reply);
    let sink = |tag: Tag| port(tag) || tag == Tag::Reply;
    tcb.set_reg(register::NB_SEND_DESTINATION, fitting(world, input, sink));
    if input.byte() < 3 {
        tcb.set_reg(register::MESSAGE_INFO, MessageInfo::new(1, 0, 3, 120).0);
    }
    trace(world, core, tcb, number, None);
    let before = tcb.reg(abi::context::index::RIP);
    world.enter(core, number as i64);
    let outcome = u64::from(world.current(core) != Some(tcb))
        + 2 * u64::from(tcb.reg(abi::context::index::RIP) == before);
    *tally.entry((number as u64, outcome)).or_default() += 1;
}

/// Prints each call where the variable `KERNEL_TRACE` is set: to understand a failing seed.
fn trace(world: &World, core: usize, tcb: Ref<Tcb>, call: Syscall, label: Option<Label>) {
    if std::env::var_os("KERNEL_TRACE").is_none() {
        return;
    }
    let pointer = tcb.reg(register::CAPABILITY);
    let cap = world.slot(pointer).unpack();
    let words = [tcb.mr(0), tcb.mr(1), tcb.mr(2), tcb.mr(3)];
    std::eprintln!(
        "{core} {:x} {call:?} {label:?} {pointer} {cap:x?} words {words:x?} time {}",
        tcb.addr().0,
        world.kernel.hw.time
    );
}

fn set_receive_slot(tcb: Ref<Tcb>, slot: u64) {
    if let Some(buffer) = crate::ipc::transfer::ipc_buffer(tcb, true) {
        buffer.set(buffer_word::RECEIVE_CNODE, fixed::CNODE);
        buffer.set(buffer_word::RECEIVE_INDEX, slot);
        buffer.set(buffer_word::RECEIVE_DEPTH, 64);
    }
}
