//! From an invoked capability to its object's code.

use abi::message::MAX_EXTRA_CAPS;
use abi::syscall::register;
use abi::{CapRights, MessageInfo};

use super::args::{Args, Outcome, answer_failure};
use super::{Failure, Phase};
use crate::Kernel;
use crate::cap::raw::{Cap, Tag};
use crate::cap::{Slot, cspace};
use crate::hw::Hw;
use crate::ipc::endpoint::SendMode;
use crate::ipc::transfer::extra_caps;
use crate::mem::Ref;
use crate::object::tcb::{Tcb, ThreadState};

impl<H: Hw> Kernel<H> {
    /// Sends a thread's message to a capability.
    pub(crate) fn invoke(&mut self, tcb: Ref<Tcb>, pointer: u64, phase: Phase) {
        let slot = match cspace::lookup(tcb, pointer) {
            Ok(slot) => slot,
            Err(failure) => {
                if phase.is_blocking {
                    self.raise_cap_fault(tcb, pointer, false, failure);
                }
                return;
            }
        };
        let info = MessageInfo(tcb.reg(register::MESSAGE_INFO));
        let caps = if info.extra_caps() == 0 {
            [None; MAX_EXTRA_CAPS]
        } else {
            match extra_caps(tcb, info) {
                Ok(caps) => caps,
                Err((pointer, failure)) => {
                    if phase.is_blocking {
                        self.raise_cap_fault(tcb, pointer, false, failure);
                    }
                    return;
                }
            }
        };
        let cap = slot.cap.get();
        let rights = CapRights(cap.fields());
        let outcome = match cap.tag() {
            Tag::Endpoint if rights.contains(CapRights::WRITE) => {
                let mode = SendMode {
                    is_blocking: phase.is_blocking,
                    is_call: phase.is_call,
                    may_donate: phase.is_call || phase.is_first,
                    can_grant: rights.contains(CapRights::GRANT),
                    can_grant_reply: rights.contains(CapRights::GRANT_REPLY),
                };
                self.send_ipc(tcb, Ref::at(cap.addr()), cap.w1, mode);
                return;
            }
            Tag::Notification if rights.contains(CapRights::WRITE) => {
                self.signal(Ref::at(cap.addr()), cap.w1);
                Ok(0)
            }
            Tag::Endpoint | Tag::Notification => Err(Failure::InvalidCapability(0)),
            Tag::Reply => {
                self.reply_transfer(tcb, Ref::at(cap.addr()), rights.contains(CapRights::GRANT));
                Ok(0)
            }
            _ => {
                tcb.state.set(ThreadState::Restart);
                let args = Args::new(tcb, info, caps, phase);
                self.invoke_object(slot, &args)
            }
        };
        match outcome {
            Ok(words) => {
                if tcb.state.get() == ThreadState::Restart {
                    tcb.state.set(ThreadState::Running);
                }
                if phase.is_call && tcb.state.get() == ThreadState::Running {
                    Self::answer(tcb, 0, words);
                }
            }
            Err(Failure::Preempted) => {}
            Err(Failure::Blocked) => {
                if tcb.state.get() == ThreadState::Restart {
                    tcb.state.set(ThreadState::Running);
                }
            }
            Err(failure) => {
                if tcb.state.get() == ThreadState::Restart {
                    tcb.state.set(ThreadState::Running);
                }
                if phase.is_call && tcb.state.get() == ThreadState::Running {
                    answer_failure(tcb, failure);
                }
            }
        }
    }

    fn invoke_object(&mut self, slot: Ref<Slot>, args: &Args) -> Outcome {
        let cap = slot.unpack();
        if args.phase.is_first
            && matches!(
                cap,
                Cap::Untyped { .. }
                    | Cap::CNode { .. }
                    | Cap::Thread { .. }
                    | Cap::SchedContext { .. }
                    | Cap::SchedControl { .. }
            )
        {
            return Err(Failure::InvalidCapability(0));
        }
        match cap {
            Cap::Untyped { .. } => self.decode_untyped(slot, args),
            Cap::CNode { .. } => self.decode_cnode(slot, args),
            Cap::Thread { addr } => self.decode_tcb(slot, Ref::at(addr), args),
            Cap::SchedContext { addr, .. } => self.decode_sched_context(Ref::at(addr), args),
            Cap::SchedControl { core } => self.decode_sched_control(core, args),
            Cap::IrqControl => self.decode_irq_control(slot, args),
            Cap::IrqHandler { irq } => self.decode_irq_handler(irq, args),
            Cap::Domain => self.decode_domain(args),
            Cap::AsidControl => self.decode_asid_control(args),
            Cap::AsidPool { addr, base } => self.decode_asid_pool(addr, base, args),
            Cap::IoPortControl => self.decode_io_port_control(slot, args),
            Cap::IoPort { first, last } => self.decode_io_port(first, last, args),
            Cap::Frame(frame) => self.decode_frame(slot, frame, args),
            Cap::Table {
                tag: tag @ (Tag::PageTable | Tag::PageDirectory | Tag::Pdpt),
                addr,
                mapping,
            } => self.decode_table(slot, tag, addr, mapping, args),
            Cap::Table { .. }
            | Cap::Root { tag: Tag::NptPml4, .. }
            | Cap::Vcpu { .. }
            | Cap::Timer { .. } => self.decode_extension(slot, cap, args),
            Cap::Root { .. } => Err(Failure::IllegalOperation),
            Cap::Null
            | Cap::Zombie { .. }
            | Cap::Endpoint { .. }
            | Cap::Notification { .. }
            | Cap::Reply { .. } => Err(Failure::InvalidCapability(0)),
        }
    }
}
