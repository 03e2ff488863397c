//! Fault numbers and the words of fault messages and replies.

use crate::context::index;

/// Label of a message to a fault handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Fault {
    /// No fault.
    Null = 0,
    /// 0 IP, 1 address, 2 in receive phase, 3 lookup failure type, then its words.
    Cap = 1,
    /// The registers of [`UNKNOWN_SYSCALL_REGISTERS`], then the number.
    UnknownSyscall = 2,
    /// 0 IP, 1 rsp, 2 flags, 3 exception number, 4 error code.
    UserException = 3,
    /// 0 data, 1 consumed microseconds.
    Timeout = 5,
    /// 0 IP, 1 address, 2 instruction fault, 3 page-fault error code.
    Vm = 6,
}

/// Words of an unknown-syscall message: 15 is the fault IP, then rsp, flags; word 18 is the number.
pub const UNKNOWN_SYSCALL_REGISTERS: [usize; 18] = [
    index::RAX,
    index::RBX,
    index::RCX,
    index::RDX,
    index::RSI,
    index::RDI,
    index::RBP,
    index::R8,
    index::R9,
    index::R10,
    index::R11,
    index::R12,
    index::R13,
    index::R14,
    index::R15,
    index::RIP,
    index::RSP,
    index::RFLAGS,
];

/// First words of a user-exception message and words of its reply.
pub const EXCEPTION_REGISTERS: [usize; 3] = [index::RIP, index::RSP, index::RFLAGS];

/// Words of the reply to a timeout fault.
pub const TIMEOUT_REGISTERS: [usize; 19] = [
    index::RIP,
    index::RSP,
    index::RFLAGS,
    index::RAX,
    index::RBX,
    index::RCX,
    index::RDX,
    index::RSI,
    index::RDI,
    index::RBP,
    index::R8,
    index::R9,
    index::R10,
    index::R11,
    index::R12,
    index::R13,
    index::R14,
    index::R15,
    index::FS_BASE,
];

/// Number of words of a capability fault before those of the lookup failure.
pub const CAP_FAULT_WORDS: usize = 3;
/// Number of words of an unknown-syscall message.
pub const UNKNOWN_SYSCALL_WORDS: usize = 19;
/// Number of words of a user-exception message.
pub const EXCEPTION_WORDS: usize = 5;
/// Number of words of a timeout message.
pub const TIMEOUT_WORDS: usize = 2;
/// Number of words of a VM fault message.
pub const VM_FAULT_WORDS: usize = 4;
