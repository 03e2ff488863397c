//! The measured stubs, in assembly so that their own instructions can be counted exactly.
// UNSAFETY: system calls and the time stamp counter by hand.
#![expect(
    unsafe_code,
    reason = "stubs whose instructions are counted must be written as instructions"
)]

use core::arch::{asm, global_asm};

/// Instructions of the server's loop in one round, SYSCALL included: see `bench_peer` below.
const PEER_INSTRUCTIONS: u64 = 4;
/// Instructions of the client's stub in one round, SYSCALL included: see [`call_round`].
const CLIENT_INSTRUCTIONS: u64 = 3;

/// Instructions of the two stubs of a round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The caller's.
    pub client: u64,
    /// The server's.
    pub server: u64,
}

impl Round {
    /// Those of one call and its reply.
    pub const fn of_call() -> Self {
        Self { client: CLIENT_INSTRUCTIONS, server: PEER_INSTRUCTIONS }
    }
}

// The server: receives once, then answers and receives for ever. rdi = endpoint, r12 = reply object.
// The message information it got (rsi) goes back, so an answer is as long as its question.
global_asm!(
    ".pushsection .text.bench_peer, \"ax\"",
    ".global bench_peer",
    "bench_peer:",
    "mov rbx, rdi",
    "mov rdx, {recv}",
    "syscall",
    "2:",
    "mov rdi, rbx",
    "mov rdx, {reply_recv}",
    "syscall",
    "jmp 2b",
    ".popsection",
    recv = const abi::Syscall::Recv as i64,
    reply_recv = const abi::Syscall::ReplyRecv as i64,
);

// The other side of signals: waits on rdi, signals r12, for ever.
global_asm!(
    ".pushsection .text.bench_signal_peer, \"ax\"",
    ".global bench_signal_peer",
    "bench_signal_peer:",
    "mov rbx, rdi",
    "3:",
    "mov rdi, rbx",
    "mov rdx, {wait}",
    "syscall",
    "mov rdi, r12",
    "mov rsi, 1",
    "mov rdx, {send}",
    "syscall",
    "jmp 3b",
    ".popsection",
    wait = const abi::Syscall::Wait as i64,
    send = const abi::Syscall::Send as i64,
);

unsafe extern "C" {
    static bench_peer: u8;
    static bench_signal_peer: u8;
}

/// First instruction of the server.
pub fn peer_entry() -> u64 {
    (&raw const bench_peer).addr() as u64
}

/// First instruction of the other side of signals.
pub fn signal_peer_entry() -> u64 {
    (&raw const bench_signal_peer).addr() as u64
}

/// The time stamp counter.
#[inline(always)]
pub fn tsc() -> u64 {
    runtime::clock::tsc()
}

/// Ticks of a call of `length` words and its answer, from one RDTSC to the next. Besides the two RDTSC the client executes
/// what [`calibration`] executes, with SYSCALL in place of NOP.
#[inline(never)]
pub fn call_round(endpoint: u64, length: u64) -> u64 {
    let ticks: u64;
    // SAFETY: registers as the kernel's interface has them; the stack pointer waits in r14, which the kernel keeps, as it does
    // r13; the message words carry nothing.
    unsafe {
        asm!(
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "mov r13, rax",
            "mov rdx, {call}",
            "mov r14, rsp",
            "syscall",
            "mov rsp, r14",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "sub rax, r13",
            call = const abi::Syscall::Call as i64,
            out("rax") ticks,
            out("rdx") _,
            inlateout("rdi") endpoint => _,
            inlateout("rsi") length => _,
            out("r10") _, out("r8") _, out("r9") _, out("r15") _,
            out("r13") _, out("r14") _, out("rcx") _, out("r11") _,
        );
    }
    ticks
}

/// Ticks of what [`call_round`] executes besides the kernel and the server.
#[inline(never)]
pub fn calibration() -> u64 {
    let ticks: u64;
    // SAFETY: touches the registers named and nothing else.
    unsafe {
        asm!(
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "mov r13, rax",
            "mov rdx, {call}",
            "mov r14, rsp",
            "nop",
            "mov rsp, r14",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "sub rax, r13",
            call = const abi::Syscall::Call as i64,
            out("rax") ticks,
            out("rdx") _,
            out("r13") _, out("r14") _,
        );
    }
    ticks
}

/// Ticks of a signal to `there` and the wait on `own` that the other side ends.
#[inline(never)]
pub fn signal_round(there: u64, own: u64) -> u64 {
    let there: sel4::cap::Notification = sel4::Cap::from_bits(there);
    let own: sel4::cap::Notification = sel4::Cap::from_bits(own);
    let start = tsc();
    there.signal();
    own.wait();
    tsc() - start
}
