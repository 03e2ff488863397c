//! Faults: messages to handlers and what their answers do.

use abi::context::index;
use abi::fault::{
    CAP_FAULT_WORDS, EXCEPTION_REGISTERS, EXCEPTION_WORDS, Fault, TIMEOUT_REGISTERS, TIMEOUT_WORDS,
    UNKNOWN_SYSCALL_REGISTERS, UNKNOWN_SYSCALL_WORDS, VM_FAULT_WORDS,
};
use abi::message::{FAST_MESSAGE_WORDS, buffer_word};
use abi::syscall::register;
use abi::{CapRights, MessageInfo};

use super::endpoint::SendMode;
use super::transfer::ipc_buffer;
use crate::Kernel;
use crate::cap::raw::{Cap, RawCap};
use crate::hw::Hw;
use crate::mem::Ref;
use crate::mem::window::Words;
use crate::object::tcb::{Entry, PendingFault, Tcb, ThreadState, tcb_slot};

/// Writes the words of a message that may be longer than the registers.
pub(crate) struct MessageWriter {
    tcb: Ref<Tcb>,
    buffer: Option<Words>,
    length: usize,
}

impl MessageWriter {
    pub(crate) fn new(tcb: Ref<Tcb>) -> Self {
        Self { tcb, buffer: ipc_buffer(tcb, true), length: 0 }
    }

    /// Adds a word; without a buffer only four fit.
    pub(crate) fn push(&mut self, value: u64) {
        if self.length < FAST_MESSAGE_WORDS {
            self.tcb.set_mr(self.length, value);
        } else if let Some(buffer) = self.buffer {
            buffer.set(buffer_word::MSG + self.length, value);
        } else {
            return;
        }
        self.length += 1;
    }

    pub(crate) fn length(&self) -> u64 {
        self.length as u64
    }
}

/// Tells whether a capability can be a fault handler: it sends, and can be answered.
#[must_use]
pub fn is_handler(cap: RawCap) -> bool {
    match cap.unpack() {
        Cap::Endpoint { rights, .. } => {
            rights.contains(CapRights::WRITE)
                && (rights.contains(CapRights::GRANT) || rights.contains(CapRights::GRANT_REPLY))
        }
        _ => false,
    }
}

fn register_of_fault(tcb: Ref<Tcb>, register: usize) -> u64 {
    if register == index::RIP { tcb.fault_ip.get() } else { tcb.reg(register) }
}

impl<H: Hw> Kernel<H> {
    /// Sends a fault of the thread to its handler; without one the thread stops.
    pub(crate) fn raise(&mut self, tcb: Ref<Tcb>, fault: PendingFault) {
        let may_donate = tcb.sc.get().is_some();
        if !self.send_fault(tcb, fault, tcb_slot::FAULT_HANDLER, may_donate) {
            self.print_unhandled(tcb, fault);
            self.set_state(tcb, ThreadState::Inactive);
        }
    }

    /// Sends a timeout to its handler, which runs on its own time.
    pub(crate) fn handle_timeout_fault(&mut self, tcb: Ref<Tcb>, fault: PendingFault) {
        self.send_fault(tcb, fault, tcb_slot::TIMEOUT_HANDLER, false);
    }

    fn send_fault(
        &mut self,
        tcb: Ref<Tcb>,
        fault: PendingFault,
        handler: usize,
        may_donate: bool,
    ) -> bool {
        let cap = tcb.slot(handler).cap.get();
        let (true, Cap::Endpoint { addr, badge, rights }) = (is_handler(cap), cap.unpack()) else {
            return false;
        };
        tcb.set_fault(fault);
        let mode = SendMode {
            is_blocking: true,
            is_call: false,
            may_donate,
            can_grant: rights.contains(CapRights::GRANT),
            can_grant_reply: rights.contains(CapRights::GRANT_REPLY),
        };
        self.send_ipc(tcb, Ref::at(addr), badge, mode);
        true
    }

    /// Writes the message of a fault to the handler's registers and buffer.
    pub(crate) fn fault_message(
        &mut self,
        sender: Ref<Tcb>,
        receiver: Ref<Tcb>,
        fault: PendingFault,
    ) -> MessageInfo {
        let mut message = MessageWriter::new(receiver);
        let label = match fault {
            PendingFault::Null => Fault::Null,
            PendingFault::Cap { address, in_receive, lookup } => {
                message.push(sender.fault_ip.get());
                message.push(address);
                message.push(u64::from(in_receive));
                let words = lookup[0] as usize;
                for word in lookup.iter().take(words) {
                    message.push(*word);
                }
                debug_assert!(message.length as u64 >= CAP_FAULT_WORDS as u64);
                Fault::Cap
            }
            PendingFault::UnknownSyscall { number } => {
                for register in UNKNOWN_SYSCALL_REGISTERS {
                    message.push(register_of_fault(sender, register));
                }
                message.push(number);
                debug_assert!(message.length <= UNKNOWN_SYSCALL_WORDS);
                Fault::UnknownSyscall
            }
            PendingFault::UserException { number, code } => {
                for register in EXCEPTION_REGISTERS {
                    message.push(register_of_fault(sender, register));
                }
                message.push(number);
                message.push(code);
                debug_assert!(message.length <= EXCEPTION_WORDS);
                Fault::UserException
            }
            PendingFault::Timeout { badge } => {
                message.push(badge);
                let consumed = match sender.sc.get() {
                    Some(sc) => self.take_consumed_us(sc),
                    None => 0,
                };
                message.push(consumed);
                debug_assert!(message.length <= TIMEOUT_WORDS);
                Fault::Timeout
            }
            PendingFault::Vm { address, instruction, code } => {
                message.push(sender.fault_ip.get());
                message.push(address);
                message.push(u64::from(instruction));
                message.push(code);
                debug_assert!(message.length <= VM_FAULT_WORDS);
                Fault::Vm
            }
        };
        MessageInfo::new(label as u64, 0, 0, message.length())
    }

    /// Applies a handler's answer; tells whether the thread goes on.
    pub(crate) fn fault_reply(
        &mut self,
        handler: Ref<Tcb>,
        tcb: Ref<Tcb>,
        fault: PendingFault,
    ) -> bool {
        let info = MessageInfo(handler.reg(register::MESSAGE_INFO));
        let registers: &[usize] = match fault {
            PendingFault::UnknownSyscall { .. } => &UNKNOWN_SYSCALL_REGISTERS,
            PendingFault::UserException { .. } => &EXCEPTION_REGISTERS,
            PendingFault::Timeout { .. } => &TIMEOUT_REGISTERS,
            // An extension: seL4 restarts the thread whatever the label.
            PendingFault::Vm { .. } => return info.label() == 0,
            PendingFault::Null | PendingFault::Cap { .. } => return true,
        };
        let buffer = ipc_buffer(handler, false);
        for (position, register) in registers.iter().enumerate().take(info.length() as usize) {
            let value = if position < FAST_MESSAGE_WORDS {
                handler.mr(position)
            } else if let Some(buffer) = buffer {
                buffer.get(buffer_word::MSG + position)
            } else {
                break;
            };
            if *register == index::RIP {
                tcb.fault_ip.set(value);
            } else {
                tcb.set_reg(*register, value);
            }
        }
        tcb.sanitise();
        tcb.entry.set(Entry::Other);
        info.label() == 0
    }

    #[cold]
    fn print_unhandled(&mut self, tcb: Ref<Tcb>, fault: PendingFault) {
        use core::fmt::Write as _;
        let mut out = crate::syscall::debug::Console(&mut self.hw);
        let _ = out.write_str("thread '");
        for byte in &tcb.name {
            if byte.get() != 0 {
                out.0.put_char(byte.get());
            }
        }
        // Writing to the console cannot fail.
        let _ = writeln!(
            out,
            "' stopped, no handler: {fault:x?} at rip {:#x} rsp {:#x}",
            tcb.fault_ip.get(),
            tcb.reg(index::RSP)
        );
    }
}
