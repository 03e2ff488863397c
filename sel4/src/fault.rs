//! Fault messages, decoded.

use crate::ipc_buffer::mr;
use crate::message::MessageInfo;

/// No fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullFault;

/// A capability pointer could not be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapFault {
    /// Instruction pointer.
    pub ip: u64,
    /// The capability pointer.
    pub addr: u64,
    /// It was the receive phase.
    pub in_recv_phase: bool,
}

/// A system call number the kernel does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSyscall {
    /// Instruction pointer.
    pub fault_ip: u64,
    /// The number.
    pub syscall: u64,
}

/// A processor exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserException {
    /// Instruction pointer.
    pub fault_ip: u64,
    /// Stack pointer.
    pub stack: u64,
    /// Exception number.
    pub number: u64,
    /// Error code.
    pub code: u64,
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmFault {
    /// Instruction pointer.
    pub ip: u64,
    /// The address.
    pub addr: u64,
    /// It was an instruction fetch.
    pub is_prefetch: bool,
    /// Page-fault error code.
    pub fsr: u64,
}

/// A scheduling context ran out of budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// Badge of the scheduling context.
    pub data: u64,
    /// Microseconds consumed.
    pub consumed: u64,
}

/// A fault message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the fault of that name")]
pub enum Fault {
    NullFault(NullFault),
    CapFault(CapFault),
    UnknownSyscall(UnknownSyscall),
    UserException(UserException),
    VmFault(VmFault),
    Timeout(Timeout),
}

impl Fault {
    /// Decodes a message to a fault handler; `fast` are its first four words.
    pub fn new(info: MessageInfo, fast: [u64; 4]) -> Self {
        use abi::Fault as Number;
        match info.label() {
            n if n == Number::Cap as u64 => {
                Self::CapFault(CapFault { ip: fast[0], addr: fast[1], in_recv_phase: fast[2] != 0 })
            }
            n if n == Number::UnknownSyscall as u64 => {
                Self::UnknownSyscall(UnknownSyscall { fault_ip: mr(15), syscall: mr(18) })
            }
            n if n == Number::UserException as u64 => Self::UserException(UserException {
                fault_ip: fast[0],
                stack: fast[1],
                number: fast[3],
                code: mr(4),
            }),
            n if n == Number::Timeout as u64 => {
                Self::Timeout(Timeout { data: fast[0], consumed: fast[1] })
            }
            n if n == Number::Vm as u64 => Self::VmFault(VmFault {
                ip: fast[0],
                addr: fast[1],
                is_prefetch: fast[2] != 0,
                fsr: fast[3],
            }),
            _ => Self::NullFault(NullFault),
        }
    }
}
