//! Raw system calls: the register convention and nothing else.
// UNSAFETY: SYSCALL, and the IPC buffer the kernel shares with this thread.
#![expect(unsafe_code, reason = "SYSCALL and the shared IPC buffer")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::message::buffer_word;
use abi::{Label, MessageInfo, Syscall};

static BUFFER: AtomicU64 = AtomicU64::new(0);

/// Notes where the kernel put the IPC buffer.
pub fn set_buffer(address: u64) {
    BUFFER.store(address, Ordering::Relaxed);
}

/// Reads a message register in the IPC buffer.
pub fn mr(number: usize) -> u64 {
    let buffer = BUFFER.load(Ordering::Relaxed) as *const u64;
    // SAFETY: the kernel mapped 1 KiB there for this thread; numbers stay below 120.
    unsafe { buffer.add(buffer_word::MSG + number).read_volatile() }
}

/// Writes a message register in the IPC buffer.
pub fn set_mr(number: usize, value: u64) {
    let buffer = BUFFER.load(Ordering::Relaxed) as *mut u64;
    // SAFETY: as for `mr`.
    unsafe { buffer.add(buffer_word::MSG + number).write_volatile(value) };
}

fn set_cap(number: usize, cap: u64) {
    let buffer = BUFFER.load(Ordering::Relaxed) as *mut u64;
    // SAFETY: as for `mr`.
    unsafe { buffer.add(buffer_word::CAPS_OR_BADGES + number).write_volatile(cap) };
}

/// Registers of a system call, in and out.
#[derive(Clone, Copy, Default)]
pub struct Registers {
    pub cap: u64,
    pub info: u64,
    pub mr: [u64; 4],
}

/// Makes a system call.
#[inline(always)]
pub fn syscall(number: i64, registers: &mut Registers) {
    let [mr0, mr1, mr2, mr3] = registers.mr;
    // SAFETY: the kernel changes only the registers named here; the stack pointer is restored from r14 whatever it returns.
    unsafe {
        asm!(
            "mov r14, rsp",
            "syscall",
            "mov rsp, r14",
            in("rdx") number,
            inout("rdi") registers.cap,
            inout("rsi") registers.info,
            inlateout("r10") mr0 => registers.mr[0],
            inlateout("r8") mr1 => registers.mr[1],
            inlateout("r9") mr2 => registers.mr[2],
            inlateout("r15") mr3 => registers.mr[3],
            out("rcx") _,
            out("r11") _,
            out("r14") _,
        );
    }
}

/// Invokes a capability; returns the label of the answer (0 = no error) and MR0.
pub fn call(cap: u64, label: Label, caps: &[u64], words: &[u64]) -> (u64, u64) {
    for (number, cap) in caps.iter().enumerate() {
        set_cap(number, *cap);
    }
    let mut registers = Registers { cap, ..Registers::default() };
    for (number, word) in words.iter().enumerate() {
        match registers.mr.get_mut(number) {
            Some(register) => *register = *word,
            None => set_mr(number, *word),
        }
    }
    let info = MessageInfo::new(label as u64, 0, caps.len() as u64, words.len() as u64);
    registers.info = info.0;
    syscall(Syscall::Call as i64, &mut registers);
    for (number, value) in registers.mr.iter().enumerate() {
        set_mr(number, *value);
    }
    (MessageInfo(registers.info).label(), registers.mr[0])
}

/// Signals a notification.
pub fn signal(cap: u64) {
    let info = MessageInfo::new(0, 0, 0, 1).0;
    syscall(Syscall::Send as i64, &mut Registers { cap, info, ..Registers::default() });
}

/// Waits for a notification; returns the badge.
pub fn wait(cap: u64) -> u64 {
    let mut registers = Registers { cap, ..Registers::default() };
    syscall(Syscall::Wait as i64, &mut registers);
    registers.cap
}

/// Prints one byte.
pub fn put(byte: u8) {
    syscall(
        Syscall::DebugPutChar as i64,
        &mut Registers { cap: byte.into(), ..Registers::default() },
    );
}

/// Stops the machine.
pub fn halt() -> ! {
    loop {
        syscall(Syscall::DebugHalt as i64, &mut Registers::default());
    }
}

/// Sets XMM7; the compiler uses none of these registers here.
pub fn set_xmm7(value: u64) {
    // SAFETY: a register nothing else in this program uses.
    unsafe { asm!("movq xmm7, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Reads XMM7.
pub fn xmm7() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("movq {}, xmm7", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Tells whether the machine says that it is a virtual one (QEMU does, Bochs does not).
pub fn is_virtual() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 31 != 0
}

/// Reads the time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: user mode may read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
