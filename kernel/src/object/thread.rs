//! Thread invocations.

use abi::context::{CONTEXT_WORDS, index};
use abi::{CapRights, Label};

use crate::Kernel;
use crate::cap::raw::{Cap, Tag};
use crate::cap::{Slot, tree};
use crate::hw::Hw;
use crate::ipc::fault::is_handler;
use crate::mem::Ref;
use crate::object::notification::{Notification, NotificationState};
use crate::object::sched_context::SchedContext;
use crate::object::tcb::{Entry, Tcb, tcb_slot};
use crate::syscall::Failure;
use crate::syscall::args::{Args, Outcome};

/// Registers CopyRegisters moves as "frame": rip, rsp, flags and those a function must keep.
const FRAME_REGISTERS: [usize; 9] = [
    index::RIP,
    index::RSP,
    index::RFLAGS,
    index::RAX,
    index::RBX,
    index::RCX,
    index::RDX,
    index::RSI,
    index::RDI,
];
/// Registers CopyRegisters moves as "integer".
const INTEGER_REGISTERS: [usize; 9] = [
    index::RBP,
    index::R8,
    index::R9,
    index::R10,
    index::R11,
    index::R12,
    index::R13,
    index::R14,
    index::R15,
];

/// A capability to be put into one of a thread's slots, with the slot it comes from.
struct Install {
    cap: Cap,
    source: Ref<Slot>,
}

impl<H: Hw> Kernel<H> {
    pub(crate) fn decode_tcb(&mut self, slot: Ref<Slot>, tcb: Ref<Tcb>, args: &Args) -> Outcome {
        let Some(label) = Label::from_number(args.label) else {
            return Err(Failure::IllegalOperation);
        };
        match label {
            Label::TCBReadRegisters => self.read_registers(tcb, args),
            Label::TCBWriteRegisters => self.write_registers(tcb, args),
            Label::TCBCopyRegisters => self.copy_registers(tcb, args),
            Label::TCBConfigure => self.configure(slot, tcb, args),
            Label::TCBSetPriority => {
                args.need(1)?;
                let authority = args.thread(0)?;
                let priority = within_mcp(authority, args.word(0))?;
                self.set_priority(tcb, priority);
                Ok(0)
            }
            Label::TCBSetMCPriority => {
                args.need(1)?;
                let authority = args.thread(0)?;
                tcb.mcp.set(within_mcp(authority, args.word(0))?);
                Ok(0)
            }
            Label::TCBSetSchedParams => self.set_sched_params(slot, tcb, args),
            Label::TCBSetTimeoutEndpoint => {
                let handler = handler_arg(args, 0, 1)?;
                self.install(slot, tcb, tcb_slot::TIMEOUT_HANDLER, Some(handler))?;
                Ok(0)
            }
            Label::TCBSetIPCBuffer => {
                args.need(1)?;
                let buffer = buffer_arg(args, 0, args.word(0))?;
                self.install_buffer(slot, tcb, args.word(0), buffer)?;
                Ok(0)
            }
            Label::TCBSetSpace => self.set_space(slot, tcb, args),
            Label::TCBSuspend => {
                self.suspend(tcb);
                Ok(0)
            }
            Label::TCBResume => {
                self.restart(tcb);
                Ok(0)
            }
            Label::TCBBindNotification => bind(tcb, args).map(|notification| {
                Self::bind_notification(tcb, notification);
                0
            }),
            Label::TCBUnbindNotification => {
                if tcb.notification.get().is_none() {
                    return Err(Failure::IllegalOperation);
                }
                Self::unbind_notification(tcb);
                Ok(0)
            }
            Label::TCBSetTLSBase => {
                args.need(1)?;
                self.stall_thread(tcb);
                self.hw.release_bases(tcb);
                tcb.set_reg(index::FS_BASE, args.word(0));
                tcb.sanitise_bases();
                self.reload(tcb);
                Ok(0)
            }
            Label::TCBSetFlags => {
                args.need(2)?;
                self.stall_thread(tcb);
                self.hw.release_thread(tcb);
                let known = abi::object::TCB_FLAG_FPU_DISABLED;
                let flags = (u64::from(tcb.flags.get()) & !args.word(0) | args.word(1)) & known;
                tcb.flags.set(flags as u8);
                self.reload(tcb);
                if self.current() == Some(tcb) {
                    // The registers open or close for it right now, not at its next turn.
                    let core = self.core;
                    self.hw.switch_thread(core, Some(tcb), Some(tcb));
                }
                args.answer(0, flags);
                Ok(1)
            }
            _ => Err(Failure::IllegalOperation),
        }
    }

    fn read_registers(&mut self, tcb: Ref<Tcb>, args: &Args) -> Outcome {
        args.need(2)?;
        let count = args.word(1);
        if !(1..=CONTEXT_WORDS as u64).contains(&count) {
            return Err(Failure::Range(1, CONTEXT_WORDS as u64));
        }
        if tcb == args.tcb {
            return Err(Failure::IllegalOperation);
        }
        if args.word(0) & 1 != 0 {
            self.suspend(tcb);
        }
        self.stall_thread(tcb);
        self.hw.release_bases(tcb);
        let has_buffer = crate::ipc::transfer::ipc_buffer(args.tcb, true).is_some();
        let count = if has_buffer { count } else { count.min(4) };
        for register in 0..count as usize {
            let value = if register == index::RIP { tcb.fault_ip.get() } else { tcb.reg(register) };
            args.answer(register, value);
        }
        Ok(count)
    }

    fn write_registers(&mut self, tcb: Ref<Tcb>, args: &Args) -> Outcome {
        args.need(2)?;
        let (flags, count) = (args.word(0), args.word(1));
        if args.length - 2 < count {
            return Err(Failure::Truncated);
        }
        if tcb == args.tcb {
            return Err(Failure::IllegalOperation);
        }
        self.stall_thread(tcb);
        self.hw.release_bases(tcb);
        for register in 0..CONTEXT_WORDS.min(count as usize) {
            self.write_register(tcb, register, args.word(register + 2));
        }
        self.written(tcb);
        if flags & 1 != 0 {
            self.restart(tcb);
        }
        Ok(0)
    }

    fn write_register(&mut self, tcb: Ref<Tcb>, register: usize, value: u64) {
        if register == index::RIP {
            tcb.fault_ip.set(value);
            tcb.set_reg(index::RIP, value);
        } else {
            tcb.set_reg(register, value);
        }
    }

    fn written(&mut self, tcb: Ref<Tcb>) {
        tcb.sanitise();
        tcb.entry.set(Entry::Other);
        self.reload(tcb);
    }

    fn copy_registers(&mut self, tcb: Ref<Tcb>, args: &Args) -> Outcome {
        args.need(1)?;
        let flags = args.word(0);
        let source = args.thread(0)?;
        self.stall_thread(source);
        self.stall_thread(tcb);
        self.hw.release_bases(source);
        self.hw.release_bases(tcb);
        if flags & 1 != 0 {
            self.suspend(source);
        }
        if flags & 4 != 0 {
            for register in FRAME_REGISTERS {
                let value = if register == index::RIP {
                    source.fault_ip.get()
                } else {
                    source.reg(register)
                };
                self.write_register(tcb, register, value);
            }
        }
        if flags & 8 != 0 {
            for register in INTEGER_REGISTERS {
                self.write_register(tcb, register, source.reg(register));
            }
        }
        self.written(tcb);
        if flags & 2 != 0 {
            self.restart(tcb);
        }
        Ok(0)
    }

    fn configure(&mut self, slot: Ref<Slot>, tcb: Ref<Tcb>, args: &Args) -> Outcome {
        args.need(3)?;
        let (cspace, vspace, _) = (args.cap(0)?, args.cap(1)?, args.cap(2)?);
        let address = args.word(2);
        let cspace = root_arg(cspace, args.word(0), Tag::CNode)?;
        let vspace = root_arg(vspace, args.word(1), Tag::Pml4)?;
        let buffer = buffer_arg(args, 2, address)?;
        self.install(slot, tcb, tcb_slot::CTABLE, Some(cspace))?;
        self.install_space(slot, tcb, vspace)?;
        self.install_buffer(slot, tcb, address, buffer)?;
        Ok(0)
    }

    fn set_space(&mut self, slot: Ref<Slot>, tcb: Ref<Tcb>, args: &Args) -> Outcome {
        args.need(2)?;
        let (_, cspace, vspace) = (args.cap(0)?, args.cap(1)?, args.cap(2)?);
        let handler = handler_arg(args, 0, 1)?;
        let cspace = root_arg(cspace, args.word(0), Tag::CNode)?;
        let vspace = root_arg(vspace, args.word(1), Tag::Pml4)?;
        self.install(slot, tcb, tcb_slot::FAULT_HANDLER, Some(handler))?;
        self.install(slot, tcb, tcb_slot::CTABLE, Some(cspace))?;
        self.install_space(slot, tcb, vspace)?;
        Ok(0)
    }

    fn set_sched_params(&mut self, slot: Ref<Slot>, tcb: Ref<Tcb>, args: &Args) -> Outcome {
        args.need(2)?;
        let authority = args.cap(0)?;
        let sc_slot = args.cap(1)?;
        args.cap(2)?;
        let Cap::Thread { addr } = authority.unpack() else {
            return Err(Failure::InvalidCapability(1));
        };
        let authority: Ref<Tcb> = Ref::at(addr);
        let mcp = within_mcp(authority, args.word(0))?;
        let priority = within_mcp(authority, args.word(1))?;
        let new: Option<Ref<SchedContext>> = match sc_slot.unpack() {
            Cap::Null if tcb == args.tcb => return Err(Failure::IllegalOperation),
            Cap::Null => None,
            Cap::SchedContext { addr, .. } => {
                let sc: Ref<SchedContext> = Ref::at(addr);
                if tcb.sc.get() != Some(sc) {
                    if tcb.sc.get().is_some() || sc.tcb.get().is_some() {
                        return Err(Failure::IllegalOperation);
                    }
                    if tcb.is_blocked() && sc.is_active() && !self.is_released(sc) {
                        return Err(Failure::IllegalOperation);
                    }
                }
                Some(sc)
            }
            _ => return Err(Failure::InvalidCapability(2)),
        };
        let handler = handler_arg(args, 2, 3)?;
        self.install(slot, tcb, tcb_slot::FAULT_HANDLER, Some(handler))?;
        tcb.mcp.set(mcp);
        self.set_priority(tcb, priority);
        match (new, tcb.sc.get()) {
            (Some(new), old) if old != Some(new) => self.bind_context(new, tcb),
            (None, Some(old)) => self.unbind_context(old, tcb),
            _ => {}
        }
        Ok(0)
    }

    /// Replaces what is in a thread's slot. The new capability counts as derived from the one the caller named.
    fn install(
        &mut self,
        tcb_cap: Ref<Slot>,
        tcb: Ref<Tcb>,
        slot: usize,
        install: Option<Install>,
    ) -> Result<(), Failure> {
        let place = tcb.slot(slot);
        self.delete(place)?;
        if let Some(Install { cap, source }) = install
            && cap != Cap::Null
            // Deleting the old one may have deleted these: then there is nothing to derive from, or nowhere to put it.
            && tree::same_region(cap.pack(), source.cap.get())
            && tcb_cap.unpack() == (Cap::Thread { addr: tcb.addr() })
        {
            tree::insert(cap, source, place);
        }
        Ok(())
    }

    fn install_space(
        &mut self,
        tcb_cap: Ref<Slot>,
        tcb: Ref<Tcb>,
        install: Install,
    ) -> Result<(), Failure> {
        self.stall_thread(tcb);
        self.install(tcb_cap, tcb, tcb_slot::VTABLE, Some(install))?;
        if self.current() == Some(tcb) {
            self.load_space(tcb);
        }
        Ok(())
    }

    fn install_buffer(
        &mut self,
        tcb_cap: Ref<Slot>,
        tcb: Ref<Tcb>,
        address: u64,
        install: Option<Install>,
    ) -> Result<(), Failure> {
        self.delete(tcb.slot(tcb_slot::BUFFER))?;
        tcb.ipc_buffer.set(address);
        self.install(tcb_cap, tcb, tcb_slot::BUFFER, install)
    }
}

fn within_mcp(authority: Ref<Tcb>, value: u64) -> Result<u8, Failure> {
    let mcp = authority.mcp.get();
    u8::try_from(value).ok().filter(|value| *value <= mcp).ok_or(Failure::Range(0, u64::from(mcp)))
}

/// A root capability for a thread: derived, with new data where that is not 0.
fn root_arg(source: Ref<Slot>, data: u64, tag: Tag) -> Result<Install, Failure> {
    let mut cap = source.unpack();
    if data != 0 {
        cap = tree::with_data(cap, data, false);
    }
    let cap = tree::derive(source, cap)?;
    let fits = match cap {
        Cap::CNode { .. } => tag == Tag::CNode,
        Cap::Root { tag: root, .. } => tag == root,
        _ => false,
    };
    if fits { Ok(Install { cap, source }) } else { Err(Failure::IllegalOperation) }
}

/// A handler capability, or none; `number` is what an error names.
fn handler_arg(args: &Args, position: usize, number: u64) -> Result<Install, Failure> {
    let source = args.cap(position)?;
    let cap = source.cap.get();
    if cap.w0 != 0 && !is_handler(cap) {
        return Err(Failure::InvalidCapability(number));
    }
    Ok(Install { cap: cap.unpack(), source })
}

/// The frame of an IPC buffer; none where the address is 0.
fn buffer_arg(args: &Args, position: usize, address: u64) -> Result<Option<Install>, Failure> {
    let source = args.cap(position)?;
    if address == 0 {
        return Ok(None);
    }
    match tree::derive(source, source.unpack())? {
        Cap::Frame(frame) => {
            if frame.is_device {
                return Err(Failure::IllegalOperation);
            }
            if !address.is_multiple_of(abi::message::IPC_BUFFER_BYTES) {
                return Err(Failure::Alignment);
            }
            Ok(Some(Install { cap: Cap::Frame(frame), source }))
        }
        _ => Err(Failure::IllegalOperation),
    }
}

fn bind(tcb: Ref<Tcb>, args: &Args) -> Result<Ref<Notification>, Failure> {
    let slot = args.cap(0)?;
    if tcb.notification.get().is_some() {
        return Err(Failure::IllegalOperation);
    }
    let Cap::Notification { addr, rights, .. } = slot.unpack() else {
        return Err(Failure::IllegalOperation);
    };
    let notification: Ref<Notification> = Ref::at(addr);
    if !rights.contains(CapRights::READ)
        || notification.state.get() == NotificationState::Waiting
        || notification.bound_tcb.get().is_some()
    {
        return Err(Failure::IllegalOperation);
    }
    Ok(notification)
}
