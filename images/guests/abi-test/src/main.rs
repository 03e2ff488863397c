//! Root task that checks the kernel's interface with raw system calls and measures its paths.
//!
//! It stands on the numbers in `abi` alone, not on the user-level library, so that a mistake made in both kernel and library still shows.
//! Each check prints `ok NAME` or `FAIL NAME`; figures print as `figure NAME VALUE`; the end is an exit code at port 0xf4 (32 = all
//! passed, 33 = something failed).
//!
//! UNSAFETY: system calls, threads on static stacks, memory shared between them.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "raw system calls and hand-made threads")]

mod kernel;

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::bootinfo::slot;
use abi::context::index;
use abi::{BootInfo, CNodeCapData, Label, MessageInfo, ObjectType};
use kernel::{Console, call, invoke, recv, reply_recv, send, set_buffer, wait};

macro_rules! say {
    ($($arg:tt)*) => {{
        // The console cannot fail.
        let _ = writeln!(Console, $($arg)*);
    }};
}

global_asm!(
    ".global _start",
    "_start:",
    "lea rsp, [rip + {stack} + {size}]",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    stack = sym MAIN_STACK,
    size = const STACK,
    main = sym main,
);

const STACK: usize = 32 * 1024;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; STACK]>);
// SAFETY: each stack is used by one thread and read by nobody else.
unsafe impl Sync for Stack {}

static MAIN_STACK: Stack = Stack(UnsafeCell::new([0; STACK]));
static STACKS: [Stack; 6] = [const { Stack(UnsafeCell::new([0; STACK])) }; 6];

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: used as an IPC buffer by one thread and the kernel.
unsafe impl Sync for Page {}
static BUFFERS: [Page; 6] = [const { Page(UnsafeCell::new([0; 4096])) }; 6];

/// Counters the threads write.
static COUNTERS: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

const DEPTH: u64 = 64;
const RIGHTS_ALL: u64 = 15;
const RIGHTS_READ_WRITE: u64 = 3;

/// What the main thread works with.
struct World {
    info: &'static BootInfo,
    next_slot: u64,
    untyped: u64,
    failed: u32,
}

impl World {
    fn check(&mut self, name: &str, good: bool) {
        if good {
            say!("ok {name}");
        } else {
            say!("FAIL {name}");
            self.failed += 1;
        }
    }

    fn slot(&mut self) -> u64 {
        self.next_slot += 1;
        self.next_slot - 1
    }

    fn retype(&mut self, kind: ObjectType, bits: u64, count: u64) -> (u64, u64) {
        let first = self.next_slot;
        self.next_slot += count;
        let words = [kind as u64, bits, 0, 0, first, count];
        (first, invoke(self.untyped, Label::UntypedRetype as u64, &words, &[slot::CNODE]).label)
    }

    fn object(&mut self, kind: ObjectType, bits: u64) -> u64 {
        let (slot, error) = self.retype(kind, bits, 1);
        if error != 0 {
            say!("FAIL retype {kind:?} error {error}");
            self.failed += 1;
        }
        slot
    }

    fn must(&mut self, what: &str, cap: u64, label: Label, words: &[u64], caps: &[u64]) -> u64 {
        let answer = invoke(cap, label as u64, words, caps);
        if answer.label != 0 {
            say!("FAIL {what}: error {} ({:#x} {:#x})", answer.label, answer.mrs[0], answer.mrs[1]);
            self.failed += 1;
        }
        answer.mrs[0]
    }

    fn copy(&mut self, source: u64) -> u64 {
        let to = self.slot();
        let words = [to, DEPTH, source, DEPTH, RIGHTS_ALL];
        self.must("copy", slot::CNODE, Label::CNodeCopy, &words, &[slot::CNODE]);
        to
    }

    /// A thread in `vspace` at `entry` with two arguments; `number` chooses stack and buffer.
    fn thread(
        &mut self,
        number: usize,
        vspace: u64,
        entry: u64,
        args: [u64; 2],
        fault: u64,
    ) -> u64 {
        let tcb = self.object(ObjectType::Tcb, 0);
        let buffer = BUFFERS[number].0.get() as u64;
        let frame = self.info.user_image_frames.start + (buffer - 0x40_0000) / 4096;
        let guard = CNodeCapData::new(0, 64 - self.info.init_thread_cnode_size_bits);
        let space = [guard.0, 0];
        self.must("space", tcb, Label::TCBSetSpace, &space, &[fault, slot::CNODE, vspace]);
        self.must("buffer", tcb, Label::TCBSetIPCBuffer, &[buffer], &[frame]);
        self.must("priority", tcb, Label::TCBSetPriority, &[200], &[slot::TCB]);
        let mut words = [0; 22];
        words[1] = 20;
        words[2 + index::RIP] = entry;
        words[2 + index::RSP] = STACKS[number].0.get() as u64 + STACK as u64 - 8;
        words[2 + index::RFLAGS] = 0x202;
        words[2 + index::RDI] = args[0];
        words[2 + index::RSI] = args[1];
        self.must("registers", tcb, Label::TCBWriteRegisters, &words, &[]);
        tcb
    }

    /// A scheduling context of `core`, bound to `tcb`.
    fn context(&mut self, tcb: u64, core: u64, budget: u64, period: u64) -> u64 {
        let context = self.object(ObjectType::SchedContext, 8);
        let control = self.info.sched_control.start + core;
        let words = [budget, period, 0, 0x5c, 0];
        self.must("configure", control, Label::SchedControlConfigureFlags, &words, &[context]);
        self.must("bind", context, Label::SchedContextBind, &[], &[tcb]);
        context
    }
}

#[inline(always)]
fn ticks() -> u64 {
    // SAFETY: user mode may read the time-stamp counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Echoes every message; started with (endpoint, reply object).
extern "C" fn echo(endpoint: u64, reply: u64) -> ! {
    let mut message = recv(endpoint, reply);
    loop {
        message = reply_recv(endpoint, reply, message.info, message.mrs);
    }
}

/// Tells that it is ready by a call-free signal, then echoes: after the first receive it needs no scheduling context of its own.
extern "C" fn passive_echo(endpoint: u64, reply_and_ready: u64) -> ! {
    let (reply, ready) = (reply_and_ready & 0xffff_ffff, reply_and_ready >> 32);
    let mut message = kernel::nb_send_recv(ready, 0, endpoint, reply);
    loop {
        message = reply_recv(endpoint, reply, message.info, message.mrs);
    }
}

/// Counts for ever; started with (counter, notification to signal after the first 1000 or 0).
extern "C" fn count(counter: u64, notification: u64) -> ! {
    let mut seen = 0u64;
    loop {
        seen += 1;
        COUNTERS[counter as usize].store(seen, Ordering::Relaxed);
        if seen == 1000 && notification != 0 {
            send(notification, 0, [0; 4]);
        }
        if seen.is_multiple_of(64) {
            core::hint::spin_loop();
        }
    }
}

/// Writes to an address where nothing is mapped at first; then signals.
extern "C" fn toucher(address: u64, notification: u64) -> ! {
    // SAFETY: the fault handler maps a page of its own there.
    unsafe { (address as *mut u64).write_volatile(0x1234_5678) };
    COUNTERS[2].store(1, Ordering::Release);
    send(notification, 0, [0; 4]);
    wait(notification);
    loop {
        core::hint::spin_loop();
    }
}

/// Signals back every signal; for the round trip of two threads.
extern "C" fn ping(wait_on: u64, signal: u64) -> ! {
    loop {
        wait(wait_on);
        send(signal, 0, [0; 4]);
    }
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Median of `f` over 101 runs, minus what reading the clock costs.
fn measure(mut f: impl FnMut()) -> u64 {
    let mut runs = [0; 101];
    let mut clock = [0; 101];
    for run in &mut clock {
        let start = ticks();
        *run = ticks() - start;
    }
    for run in &mut runs {
        let start = ticks();
        f();
        *run = ticks() - start;
    }
    median(&mut runs).saturating_sub(median(&mut clock))
}

extern "C" fn main(info: &'static BootInfo) -> ! {
    set_buffer(info.ipc_buffer);
    say!(
        "abi-test: {} core(s), {} untyped, {} image frames, empty {}..{}, extra {} bytes",
        info.num_nodes,
        info.untyped.end - info.untyped.start,
        info.user_image_frames.end - info.user_image_frames.start,
        info.empty.start,
        info.empty.end,
        info.extra_len
    );
    let count = (info.untyped.end - info.untyped.start) as usize;
    let untypeds = &info.untyped_list[..count];
    let largest = untypeds
        .iter()
        .enumerate()
        .filter(|(_, untyped)| untyped.is_device == 0 && untyped.size_bits <= 25)
        .max_by_key(|(_, untyped)| untyped.size_bits);
    let Some((number, _)) = largest else {
        say!("FAIL no untyped memory");
        halt(1)
    };
    let mut world = World {
        info,
        next_slot: info.empty.start,
        untyped: info.untyped.start + number as u64,
        failed: 0,
    };
    world.check("bootinfo extra area", info.extra_len == 1292);
    world.check("bootinfo frames", {
        let frames = info.user_image_frames.end - info.user_image_frames.start;
        let first = invoke(info.user_image_frames.start, Label::X86PageGetAddress as u64, &[], &[]);
        let last =
            invoke(info.user_image_frames.end - 1, Label::X86PageGetAddress as u64, &[], &[]);
        first.label == 0 && last.mrs[0] == first.mrs[0] + (frames - 1) * 4096
    });

    let vspace = slot::VSPACE;
    let mapped = memory(&mut world, vspace);
    separate_space(&mut world);
    ipc(&mut world);
    faults(&mut world, mapped);
    budgets(&mut world);
    if info.num_nodes > 1 {
        second_core(&mut world);
    }
    interrupts(&mut world);
    unknown_syscall(&mut world);
    float(&mut world);

    say!("abi-test: {} failed", world.failed);
    halt(world.failed)
}

const AREA: u64 = 0x10_0000_0000;

fn memory(world: &mut World, vspace: u64) -> u64 {
    let pdpt_missing = {
        let frame = world.object(ObjectType::Page4K, 0);
        let answer =
            invoke(frame, Label::X86PageMap as u64, &[AREA, RIGHTS_READ_WRITE, 0], &[vspace]);
        answer.label == 6 && answer.mrs[2] == 30
    };
    world.check("map without directory says 30 bits", pdpt_missing);
    let directory = world.object(ObjectType::PageDirectory, 0);
    world.must("directory", directory, Label::X86PageDirectoryMap, &[AREA, 0], &[vspace]);
    let table = world.object(ObjectType::PageTable, 0);
    world.must("table", table, Label::X86PageTableMap, &[AREA, 0], &[vspace]);
    let frame = world.object(ObjectType::Page4K, 0);
    let words = [AREA, RIGHTS_READ_WRITE, 0];
    world.must("page", frame, Label::X86PageMap, &words, &[vspace]);
    let page = AREA as *mut u64;
    // SAFETY: a page of this thread's own has just been mapped there.
    let zeroed = unsafe { (0..512).all(|word| page.add(word).read_volatile() == 0) };
    world.check("new page is zero", zeroed);
    // SAFETY: as above.
    let kept = unsafe {
        page.write_volatile(0xdead_beef);
        page.read_volatile() == 0xdead_beef
    };
    world.check("page holds a value", kept);
    let unmap_map = measure(|| {
        invoke(frame, Label::X86PageUnmap as u64, &[], &[]);
        invoke(frame, Label::X86PageMap as u64, &words, &[vspace]);
    });
    let unmap = measure(|| {
        invoke(frame, Label::X86PageUnmap as u64, &[], &[]);
    });
    let map = unmap_map.saturating_sub(unmap);
    say!("figure page_map_4k {map}");
    world.must("page", frame, Label::X86PageMap, &words, &[vspace]);
    // SAFETY: as above.
    world.check("page keeps its value over unmap", unsafe { page.read_volatile() == 0xdead_beef });
    let mut next = world.next_slot;
    let untyped = world.untyped;
    let retype = measure(|| {
        let words = [ObjectType::Page4K as u64, 0, 0, 0, next, 1];
        invoke(untyped, Label::UntypedRetype as u64, &words, &[slot::CNODE]);
        next += 1;
    });
    world.next_slot = next;
    say!("figure retype_4k {retype}");
    let null = measure(kernel::yield_bad);
    say!("figure invalid_invocation {null}");
    frame
}

fn ipc(world: &mut World) {
    let endpoint = world.object(ObjectType::Endpoint, 0);
    let reply = world.object(ObjectType::Reply, 0);
    let server = world.thread(0, slot::VSPACE, echo as *const () as u64, [endpoint, reply], 0);
    world.context(server, 0, 10_000, 10_000);
    world.must("resume", server, Label::TCBResume, &[], &[]);
    let answer = call(endpoint, MessageInfo::new(7, 0, 0, 4).0, [1, 2, 3, 4]);
    world.check("echo", answer.mrs == [1, 2, 3, 4] && MessageInfo(answer.info).label() == 7);
    let active = measure(|| {
        call(endpoint, MessageInfo::new(0, 0, 0, 0).0, [0; 4]);
    });
    say!("figure ipc_call_reply_active_same_space {active}");
    world.must("suspend", server, Label::TCBSuspend, &[], &[]);

    let (endpoint, reply, ready) = (
        world.object(ObjectType::Endpoint, 0),
        world.object(ObjectType::Reply, 0),
        world.object(ObjectType::Notification, 0),
    );
    let arguments = [endpoint, reply | ready << 32];
    let passive = passive_echo as *const () as u64;
    let server = world.thread(1, slot::VSPACE, passive, arguments, 0);
    let context = world.context(server, 0, 10_000, 10_000);
    world.must("resume", server, Label::TCBResume, &[], &[]);
    wait(ready);
    world.must("unbind", context, Label::SchedContextUnbind, &[], &[]);
    let answer = call(endpoint, MessageInfo::new(9, 0, 0, 2).0, [5, 6, 0, 0]);
    world.check("passive echo", answer.mrs[..2] == [5, 6] && MessageInfo(answer.info).label() == 9);
    let passive = measure(|| {
        call(endpoint, MessageInfo::new(0, 0, 0, 0).0, [0; 4]);
    });
    say!("figure ipc_call_reply_passive_same_space {passive}");

    let (there, back) =
        (world.object(ObjectType::Notification, 0), world.object(ObjectType::Notification, 0));
    let pinger = world.thread(2, slot::VSPACE, ping as *const () as u64, [there, back], 0);
    world.context(pinger, 0, 10_000, 10_000);
    world.must("resume", pinger, Label::TCBResume, &[], &[]);
    let signal_wait = measure(|| {
        send(there, 0, [0; 4]);
        wait(back);
    });
    say!("figure signal_wait {signal_wait}");
    world.check("signals come back", signal_wait > 0);
    world.must("suspend", pinger, Label::TCBSuspend, &[], &[]);
}

fn faults(world: &mut World, frame: u64) {
    let endpoint = world.object(ObjectType::Endpoint, 0);
    let reply = world.object(ObjectType::Reply, 0);
    let done = world.object(ObjectType::Notification, 0);
    let address = AREA + 0x5000;
    let entry = toucher as *const () as u64;
    let thread = world.thread(2, slot::VSPACE, entry, [address, done], endpoint);
    world.context(thread, 0, 10_000, 10_000);
    world.must("resume", thread, Label::TCBResume, &[], &[]);
    let fault = recv(endpoint, reply);
    let info = MessageInfo(fault.info);
    world.check("page fault label", info.label() == abi::fault::Fault::Vm as u64);
    world.check("page fault address", fault.mrs[1] == address && fault.mrs[2] == 0);
    world.check("page fault code", fault.mrs[3] == 6);
    // Not yet: an answer with a label lets the thread stand still until it is resumed.
    send(reply, MessageInfo::new(1, 0, 0, 0).0, [0; 4]);
    world.must("resume", thread, Label::TCBResume, &[], &[]);
    let fault = recv(endpoint, reply);
    world.check("repeated after resume", fault.mrs[1] == address && fault.mrs[3] == 6);
    let copy = world.copy(frame);
    let words = [address, RIGHTS_READ_WRITE, 0];
    world.must("page", copy, Label::X86PageMap, &words, &[slot::VSPACE]);
    send(reply, 0, [0; 4]);
    wait(done);
    // SAFETY: the first mapping of the same frame.
    let seen = unsafe { (AREA as *const u64).read_volatile() };
    world.check("faulting write is made again", seen == 0x1234_5678);
    world.must("suspend", thread, Label::TCBSuspend, &[], &[]);
}

fn budgets(world: &mut World) {
    let timeout = world.object(ObjectType::Endpoint, 0);
    let reply = world.object(ObjectType::Reply, 0);
    let worker = world.thread(3, slot::VSPACE, count as *const () as u64, [3, 0], 0);
    // 2 ms in 20 ms.
    world.context(worker, 0, 2_000, 20_000);
    world.must("timeout", worker, Label::TCBSetTimeoutEndpoint, &[], &[timeout]);
    let start = ticks();
    world.must("resume", worker, Label::TCBResume, &[], &[]);
    let fault = recv(timeout, reply);
    let elapsed = ticks() - start;
    let info = MessageInfo(fault.info);
    world.check("timeout fault", info.label() == abi::fault::Fault::Timeout as u64);
    world.check("timeout badge", fault.mrs[0] == 0x5c);
    say!("figure timeout_after_ticks {elapsed}");
    say!("figure timeout_consumed_us {}", fault.mrs[1]);
    // No upper bound: an emulator that is stopped for a while uses the thread's time.
    world.check("timeout consumed at least the budget", fault.mrs[1] >= 1_900);
    world.must("suspend", worker, Label::TCBSuspend, &[], &[]);
}

fn second_core(world: &mut World) {
    let done = world.object(ObjectType::Notification, 0);
    let worker = world.thread(4, slot::VSPACE, count as *const () as u64, [4, done], 0);
    world.context(worker, 1, 10_000, 10_000);
    world.must("resume", worker, Label::TCBResume, &[], &[]);
    wait(done);
    let seen = COUNTERS[4].load(Ordering::Relaxed);
    world.check("thread runs on core 1", seen >= 1000);
    world.must("suspend", worker, Label::TCBSuspend, &[], &[]);
    let stopped = COUNTERS[4].load(Ordering::Relaxed);
    for _ in 0..1000 {
        core::hint::spin_loop();
    }
    world.check("suspend stops it there", COUNTERS[4].load(Ordering::Relaxed) == stopped);
    world.must("resume", worker, Label::TCBResume, &[], &[]);
    for _ in 0..100_000_000u64 {
        if COUNTERS[4].load(Ordering::Relaxed) > stopped {
            break;
        }
        core::hint::spin_loop();
    }
    world.check("resume goes on", COUNTERS[4].load(Ordering::Relaxed) > stopped);
    world.must("suspend", worker, Label::TCBSuspend, &[], &[]);
    // A call to a server on the other core.
    let endpoint = world.object(ObjectType::Endpoint, 0);
    let reply = world.object(ObjectType::Reply, 0);
    let server = world.thread(5, slot::VSPACE, echo as *const () as u64, [endpoint, reply], 0);
    world.context(server, 1, 10_000, 10_000);
    world.must("resume", server, Label::TCBResume, &[], &[]);
    let mut good = true;
    for round in 0..100 {
        let answer = call(endpoint, MessageInfo::new(3, 0, 0, 1).0, [round, 0, 0, 0]);
        good &= answer.mrs[0] == round;
    }
    world.check("calls across cores", good);
    world.must("suspend", server, Label::TCBSuspend, &[], &[]);
}

fn io_port(world: &mut World, first: u64, last: u64) -> u64 {
    let cap = world.slot();
    let words = [first, last, cap, DEPTH];
    world.must("port", slot::IO_PORT_CONTROL, Label::X86IOPortControlIssue, &words, &[slot::CNODE]);
    cap
}

fn interrupts(world: &mut World) {
    // PIT channel 0 is pin 2 of the first IOAPIC.
    let pit = io_port(world, 0x40, 0x43);
    let handler = world.slot();
    let words = [handler, DEPTH, 0, 2, 0, 0, 5];
    world.must(
        "ioapic",
        slot::IRQ_CONTROL,
        Label::X86IRQIssueIRQHandlerIOAPIC,
        &words,
        &[slot::CNODE],
    );
    let notification = world.object(ObjectType::Notification, 0);
    let badged = world.slot();
    let words = [badged, DEPTH, notification, DEPTH, RIGHTS_ALL, 0x40];
    world.must("mint", slot::CNODE, Label::CNodeMint, &words, &[slot::CNODE]);
    world.must("handler", handler, Label::IRQSetIRQHandler, &[], &[badged]);
    world.must("ack", handler, Label::IRQAckIRQ, &[], &[]);
    for round in 0..3 {
        // Mode 0: one interrupt after 5000 ticks (4.2 ms).
        for (port, value) in [(0x43, 0x30), (0x40, 0x88), (0x40, 0x13)] {
            world.must("out", pit, Label::X86IOPortOut8, &[port, value], &[]);
        }
        let got = wait(notification);
        world.check(
            ["first interrupt", "second interrupt", "third interrupt"][round],
            got.badge == 0x40,
        );
        world.must("ack", handler, Label::IRQAckIRQ, &[], &[]);
    }
}

/// Makes a system call that does not exist; the handler sets rax.
extern "C" fn strange(notification: u64, _: u64) -> ! {
    let rax: u64;
    // SAFETY: an unknown system call is a fault, whose handler answers with registers.
    unsafe {
        asm!("syscall", in("rdx") 1234u64, inlateout("rax") 5u64 => rax, lateout("rcx") _, lateout("r11") _);
    }
    COUNTERS[1].store(rax, Ordering::Release);
    send(notification, 0, [0; 4]);
    // SAFETY: an exception, which goes to the handler as well.
    unsafe { asm!("int 200", inlateout("rax") 77u64 => _, lateout("rcx") _, lateout("r11") _) };
    // SAFETY: as above.
    unsafe { asm!("ud2", options(noreturn)) };
}

fn unknown_syscall(world: &mut World) {
    let endpoint = world.object(ObjectType::Endpoint, 0);
    let reply = world.object(ObjectType::Reply, 0);
    let done = world.object(ObjectType::Notification, 0);
    let entry = strange as *const () as u64;
    let thread = world.thread(2, slot::VSPACE, entry, [done, 0], endpoint);
    world.context(thread, 0, 10_000, 10_000);
    world.must("resume", thread, Label::TCBResume, &[], &[]);
    let fault = recv(endpoint, reply);
    let unknown = abi::fault::Fault::UnknownSyscall as u64;
    world.check(
        "unknown system call",
        MessageInfo(fault.info).label() == unknown && kernel::word(18) == 1234 && fault.mrs[0] == 5,
    );
    kernel::set_word(15, kernel::word(15) + 2);
    let words = [99, fault.mrs[1], fault.mrs[2], fault.mrs[3]];
    send(reply, MessageInfo::new(0, 0, 0, 16).0, words);
    wait(done);
    world.check("answer sets registers", COUNTERS[1].load(Ordering::Acquire) == 99);
    let fault = recv(endpoint, reply);
    world.check(
        "software interrupt is an unknown system call",
        MessageInfo(fault.info).label() == unknown && kernel::word(18) == 200 << 24 | 77,
    );
    kernel::set_word(15, kernel::word(15) + 2);
    send(reply, MessageInfo::new(0, 0, 0, 16).0, fault.mrs);
    let fault = recv(endpoint, reply);
    world.check(
        "exception",
        MessageInfo(fault.info).label() == abi::fault::Fault::UserException as u64
            && fault.mrs[3] == 6,
    );
    world.must("suspend", thread, Label::TCBSuspend, &[], &[]);
}

/// Puts a number into xmm5 for ever and looks whether it stays.
extern "C" fn floater(value: u64, counter: u64) -> ! {
    loop {
        let back: u64;
        // SAFETY: this thread may use the registers; the test is compiled without them otherwise.
        unsafe {
            asm!("movq xmm5, {0}", "mov ecx, 200", "2:", "pause", "dec ecx", "jnz 2b", "movq {1}, xmm5",
                in(reg) value, out(reg) back, out("ecx") _);
        }
        if back != value {
            COUNTERS[counter as usize].store(u64::MAX / 2, Ordering::Relaxed);
        }
        COUNTERS[counter as usize].fetch_add(1, Ordering::Relaxed);
    }
}

fn float(world: &mut World) {
    COUNTERS[3].store(0, Ordering::Relaxed);
    COUNTERS[4].store(0, Ordering::Relaxed);
    let entry = floater as *const () as u64;
    let threads = [
        world.thread(3, slot::VSPACE, entry, [0x1111, 3], 0),
        world.thread(4, slot::VSPACE, entry, [0x2222, 4], 0),
    ];
    for thread in threads {
        world.context(thread, 0, 300, 3_000);
        world.must("resume", thread, Label::TCBResume, &[], &[]);
    }
    // Wait for some turns of the two by a timer of our own: a thread of lower priority whose budget runs out tells us.
    let timeout = world.object(ObjectType::Endpoint, 0);
    let reply = world.object(ObjectType::Reply, 0);
    let worker = world.thread(1, slot::VSPACE, count as *const () as u64, [0, 0], 0);
    world.context(worker, 0, 6_000, 60_000);
    world.must("priority", worker, Label::TCBSetPriority, &[100], &[slot::TCB]);
    world.must("timeout", worker, Label::TCBSetTimeoutEndpoint, &[], &[timeout]);
    world.must("resume", worker, Label::TCBResume, &[], &[]);
    // How far they get in their budgets depends on the emulator's speed, so look a few times.
    let counts = || (COUNTERS[3].load(Ordering::Relaxed), COUNTERS[4].load(Ordering::Relaxed));
    for _ in 0..50 {
        recv(timeout, reply);
        if counts().0 > 0 && counts().1 > 0 {
            break;
        }
        send(reply, 0, [0; 4]);
    }
    let (a, b) = counts();
    say!("figure float_rounds {a} {b}");
    world.check(
        "two threads keep their own xmm registers",
        a > 0 && b > 0 && a < 1 << 40 && b < 1 << 40,
    );
    for thread in threads.into_iter().chain([worker]) {
        world.must("suspend", thread, Label::TCBSuspend, &[], &[]);
    }
}

/// A server in an address space of its own: the same image, mapped from copies of the frame capabilities.
fn separate_space(world: &mut World) {
    let info = world.info;
    let root = world.object(ObjectType::Pml4, 0);
    world.must("asid", slot::ASID_POOL, Label::X86ASIDPoolAssign, &[], &[root]);
    let (pdpt, directory, table) = (
        world.object(ObjectType::Pdpt, 0),
        world.object(ObjectType::PageDirectory, 0),
        world.object(ObjectType::PageTable, 0),
    );
    world.must("pdpt", pdpt, Label::X86PDPTMap, &[0x40_0000, 0], &[root]);
    world.must("directory", directory, Label::X86PageDirectoryMap, &[0x40_0000, 0], &[root]);
    world.must("table", table, Label::X86PageTableMap, &[0x40_0000, 0], &[root]);
    for (page, frame) in (info.user_image_frames.start..info.user_image_frames.end).enumerate() {
        let copy = world.copy(frame);
        let words = [0x40_0000 + page as u64 * 4096, RIGHTS_READ_WRITE, 0];
        world.must("page", copy, Label::X86PageMap, &words, &[root]);
    }
    let (endpoint, reply, ready) = (
        world.object(ObjectType::Endpoint, 0),
        world.object(ObjectType::Reply, 0),
        world.object(ObjectType::Notification, 0),
    );
    let entry = passive_echo as *const () as u64;
    let server = world.thread(0, root, entry, [endpoint, reply | ready << 32], 0);
    let context = world.context(server, 0, 10_000, 10_000);
    world.must("flags", server, Label::TCBSetFlags, &[0, 1], &[]);
    world.must("flags", slot::TCB, Label::TCBSetFlags, &[0, 1], &[]);
    world.must("resume", server, Label::TCBResume, &[], &[]);
    wait(ready);
    world.must("unbind", context, Label::SchedContextUnbind, &[], &[]);
    let answer = call(endpoint, MessageInfo::new(9, 0, 0, 1).0, [5, 0, 0, 0]);
    world.check("call between address spaces", answer.mrs[0] == 5);
    let zero = measure(|| {
        call(endpoint, MessageInfo::new(1, 0, 0, 0).0, [0; 4]);
    });
    say!("figure ipc_call_reply_0 {zero}");
    let ten = measure(|| {
        call(endpoint, MessageInfo::new(0, 0, 0, 10).0, [0; 4]);
    });
    say!("figure ipc_call_reply_10 {ten}");
}

fn halt(failed: u32) -> ! {
    // The port is issued directly so that this works whatever failed before.
    let cap = 4000;
    invoke(
        slot::IO_PORT_CONTROL,
        Label::X86IOPortControlIssue as u64,
        &[0xf4, 0xf7, cap, DEPTH],
        &[slot::CNODE],
    );
    let code = if failed == 0 { 32 } else { 33 };
    invoke(cap, Label::X86IOPortOut32 as u64, &[0xf4, code], &[]);
    kernel::debug_halt();
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("FAIL {info}");
    halt(1)
}
