//! Raw system calls.
//!
//! UNSAFETY: the SYSCALL instruction and the IPC buffer.
#![expect(unsafe_code, reason = "raw system calls")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::message::buffer_word;
use abi::{MessageInfo, Syscall};

/// Address of the main thread's IPC buffer.
static BUFFER: AtomicU64 = AtomicU64::new(0);

/// What a receive phase brought.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Badge.
    pub badge: u64,
    /// Message information.
    pub info: u64,
    /// First four words.
    pub mrs: [u64; 4],
}

/// Answer of an invocation.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Error number.
    pub label: u64,
    /// First four words.
    pub mrs: [u64; 4],
}

/// Notes where the main thread's IPC buffer is.
pub fn set_buffer(address: u64) {
    BUFFER.store(address, Ordering::Relaxed);
}

fn buffer(word: usize) -> *mut u64 {
    (BUFFER.load(Ordering::Relaxed) + word as u64 * 8) as *mut u64
}

/// Message word `number` (4 and up) of the main thread's buffer.
pub fn word(number: usize) -> u64 {
    // SAFETY: the IPC buffer is mapped for the thread's life.
    unsafe { buffer(buffer_word::MSG + number).read_volatile() }
}

/// Sets message word `number` (4 and up) of the main thread's buffer.
pub fn set_word(number: usize, value: u64) {
    // SAFETY: as for `word`.
    unsafe { buffer(buffer_word::MSG + number).write_volatile(value) };
}

#[inline(always)]
fn kernel(number: Syscall, cap: u64, info: u64, mrs: [u64; 4], reply: u64, other: u64) -> Received {
    let (mut cap, mut info) = (cap, info);
    let [mut a, mut b, mut c, mut d] = mrs;
    // SAFETY: the kernel keeps what is not named here, but for rsp, which waits in r14.
    unsafe {
        asm!(
            "mov r14, rsp",
            "syscall",
            "mov rsp, r14",
            in("rdx") number as i64,
            inlateout("rdi") cap,
            inlateout("rsi") info,
            inlateout("r10") a,
            inlateout("r8") b,
            inlateout("r9") c,
            inlateout("r15") d,
            in("r12") reply,
            in("r13") other,
            out("r14") _,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    Received { badge: cap, info, mrs: [a, b, c, d] }
}

/// Call.
#[inline(always)]
pub fn call(cap: u64, info: u64, mrs: [u64; 4]) -> Received {
    kernel(Syscall::Call, cap, info, mrs, 0, 0)
}

/// Send (or signal).
#[inline(always)]
pub fn send(cap: u64, info: u64, mrs: [u64; 4]) {
    kernel(Syscall::Send, cap, info, mrs, 0, 0);
}

/// Recv.
#[inline(always)]
pub fn recv(cap: u64, reply: u64) -> Received {
    kernel(Syscall::Recv, cap, 0, [0; 4], reply, 0)
}

/// ReplyRecv.
#[inline(always)]
pub fn reply_recv(cap: u64, reply: u64, info: u64, mrs: [u64; 4]) -> Received {
    kernel(Syscall::ReplyRecv, cap, info, mrs, reply, 0)
}

/// NBSendRecv: sends to `destination` without waiting, then receives.
#[inline(always)]
pub fn nb_send_recv(destination: u64, info: u64, cap: u64, reply: u64) -> Received {
    kernel(Syscall::NBSendRecv, cap, info, [0; 4], reply, destination)
}

/// Wait.
#[inline(always)]
pub fn wait(cap: u64) -> Received {
    kernel(Syscall::Wait, cap, 0, [0; 4], 0, 0)
}

/// An invocation that fails at once: what entering and leaving the slow path costs.
#[inline(always)]
pub fn yield_bad() {
    kernel(Syscall::NBSend, 0, 0, [0; 4], 0, 0);
}

/// DebugHalt.
pub fn debug_halt() {
    kernel(Syscall::DebugHalt, 0, 0, [0; 4], 0, 0);
}

/// Invokes an object of the kernel by Call.
pub fn invoke(cap: u64, label: u64, words: &[u64], caps: &[u64]) -> Answer {
    let mut mrs = [0; 4];
    for (number, value) in words.iter().enumerate() {
        match mrs.get_mut(number) {
            Some(register) => *register = *value,
            None => set_word(number, *value),
        }
    }
    for (number, value) in caps.iter().enumerate() {
        // SAFETY: the IPC buffer is mapped for the thread's life.
        unsafe { buffer(buffer_word::CAPS_OR_BADGES + number).write_volatile(*value) };
    }
    let info = MessageInfo::new(label, 0, caps.len() as u64, words.len() as u64);
    let answer = call(cap, info.0, mrs);
    Answer { label: MessageInfo(answer.info).label(), mrs: answer.mrs }
}

/// The kernel's debug console.
pub struct Console;

impl core::fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            kernel(Syscall::DebugPutChar, byte.into(), 0, [0; 4], 0, 0);
        }
        Ok(())
    }
}
