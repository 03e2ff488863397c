//! Entries into the kernel: system calls, faults, interrupts.

pub mod args;
pub mod debug;
pub mod invoke;

use abi::syscall::register;
use abi::{CapRights, LookupFailure, MessageInfo, Syscall};

use crate::cap::cspace;
use crate::cap::raw::{Cap, Tag};
use crate::hw::Hw;
use crate::limits::{
    FIRST_USER_CPU_VECTOR, FIRST_USER_IRQ, MAX_CORES, RESCHEDULE_VECTOR, TIMER_VECTOR,
};
use crate::mem::Ref;
use crate::object::reply::Reply;
use crate::object::tcb::{PendingFault, Tcb, ThreadState};
use crate::sched::SYSCALL_BYTES;
use crate::{FaultInfo, Kernel, Resume};

/// Why an invocation was refused (or put off).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Argument of this number.
    InvalidArgument(u64),
    /// Capability of this number; 0 is the invoked one.
    InvalidCapability(u64),
    /// Not now or not at all.
    IllegalOperation,
    /// Least and greatest value allowed.
    Range(u64, u64),
    /// An address is not aligned.
    Alignment,
    /// A pointer could not be followed.
    Lookup {
        /// It was the source's.
        is_source: bool,
        /// Why.
        failure: LookupFailure,
    },
    /// Words or capabilities are missing.
    Truncated,
    /// Something is in the way.
    DeleteFirst,
    /// Derived capabilities are in the way.
    RevokeFirst,
    /// Bytes left.
    NotEnoughMemory(u64),
    /// No failure: the call is made again after whatever came up.
    Preempted,
    /// No failure: the thread waits, its answer comes later.
    Blocked,
}

/// How a system call invokes a capability.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    pub(crate) is_call: bool,
    pub(crate) is_blocking: bool,
    /// A receive phase follows.
    pub(crate) is_first: bool,
}

impl<H: Hw> Kernel<H> {
    #[inline(always)]
    fn enter(&mut self, core: usize) -> Option<Ref<Tcb>> {
        self.core = core;
        let current = self.current();
        if current.is_none() {
            // The thread was even deleted or moved: there is nothing left to drop.
            self.this().stalled = false;
        }
        current
    }

    /// Drops the event of a thread that another core took away meanwhile.
    #[cold]
    fn leave_stalled(&mut self) -> Resume {
        self.this().stalled = false;
        self.update_time();
        if let Some(sc) = self.this().current_sc
            && let Some(tcb) = self.current()
            && tcb.sc.get() == Some(sc)
        {
            self.check_budget();
        }
        self.reschedule();
        self.leave()
    }

    /// SYSCALL by the current thread of `core`.
    pub fn handle_syscall(&mut self, core: usize) -> Resume {
        let current = self.cores[core & (MAX_CORES - 1)].current;
        match current.map(|tcb| tcb.reg(register::NUMBER) as i64) {
            Some(number) if number == Syscall::Call as i64 => self.handle_call(core),
            Some(number) if number == Syscall::ReplyRecv as i64 => self.handle_reply_recv(core),
            Some(number) if number == Syscall::VMEnter as i64 => self.handle_vm_enter(core),
            _ => self.handle_slow(core),
        }
    }

    /// The system call Call, where the entry code has looked at the number.
    #[inline(always)]
    pub fn handle_call(&mut self, core: usize) -> Resume {
        let this = &self.cores[core & (MAX_CORES - 1)];
        if let Some(tcb) = this.current
            && !this.stalled
            && let Some(resume) = self.fast_call(core, tcb)
        {
            return resume;
        }
        self.handle_slow(core)
    }

    /// The system call ReplyRecv, where the entry code has looked at the number.
    #[inline(always)]
    pub fn handle_reply_recv(&mut self, core: usize) -> Resume {
        let this = &self.cores[core & (MAX_CORES - 1)];
        if let Some(tcb) = this.current
            && !this.stalled
            && let Some(resume) = self.fast_reply_recv(core, tcb)
        {
            return resume;
        }
        self.handle_slow(core)
    }

    /// The system call VMEnter, where the entry code has looked at the number.
    #[inline(always)]
    pub fn handle_vm_enter(&mut self, core: usize) -> Resume {
        self.core = core;
        let this = &self.cores[core & (MAX_CORES - 1)];
        if let Some(tcb) = this.current
            && !this.stalled
            && let Some(resume) = self.fast_enter_guest(tcb)
        {
            return resume;
        }
        self.handle_slow(core)
    }

    /// Any system call, with a look at the clock and at the queues.
    #[inline(never)]
    pub fn handle_slow(&mut self, core: usize) -> Resume {
        let Some(tcb) = self.enter(core) else { return self.leave() };
        if self.this().stalled {
            return self.leave_stalled();
        }
        let number = tcb.reg(register::NUMBER) as i64;
        let resume = if number == Syscall::Send as i64 {
            self.fast_signal(tcb)
        } else if number == Syscall::Wait as i64 {
            self.fast_wait(tcb)
        } else {
            None
        };
        match resume {
            Some(resume) => resume,
            None => self.slow_syscall(tcb, number),
        }
    }

    #[inline]
    fn slow_syscall(&mut self, tcb: Ref<Tcb>, number: i64) -> Resume {
        tcb.fault_ip.set(tcb.reg(abi::context::index::RIP).wrapping_sub(SYSCALL_BYTES));
        self.update_time();
        if self.check_budget_restart() {
            match Syscall::from_number(number) {
                Some(call) => self.syscall(tcb, call),
                None => self.unknown_syscall(tcb, number as u64),
            }
        }
        self.leave()
    }

    pub(crate) fn unknown_syscall(&mut self, tcb: Ref<Tcb>, number: u64) {
        self.raise(tcb, PendingFault::UnknownSyscall { number });
    }

    fn syscall(&mut self, tcb: Ref<Tcb>, call: Syscall) {
        let cap = tcb.reg(register::CAPABILITY);
        match call {
            Syscall::Call => {
                self.invoke(tcb, cap, Phase { is_call: true, is_blocking: true, is_first: false });
            }
            Syscall::Send => {
                self.invoke(tcb, cap, Phase { is_call: false, is_blocking: true, is_first: false });
            }
            Syscall::NBSend => {
                self.invoke(
                    tcb,
                    cap,
                    Phase { is_call: false, is_blocking: false, is_first: false },
                );
            }
            Syscall::Recv => self.receive(tcb, cap, true, true),
            Syscall::NBRecv => self.receive(tcb, cap, false, true),
            Syscall::Wait => self.receive(tcb, cap, true, false),
            Syscall::NBWait => self.receive(tcb, cap, false, false),
            Syscall::ReplyRecv | Syscall::NBSendRecv | Syscall::NBSendWait => {
                let destination = tcb.reg(match call {
                    Syscall::NBSendRecv => register::NB_SEND_DESTINATION,
                    _ => register::REPLY,
                });
                let phase = Phase { is_call: false, is_blocking: false, is_first: true };
                self.invoke(tcb, destination, phase);
                // A send phase that stopped the thread (its own fault or suspension) leaves nothing to receive.
                if tcb.is_runnable() {
                    self.receive(tcb, cap, true, call != Syscall::NBSendWait);
                }
            }
            Syscall::Yield => self.yield_slice(),
            Syscall::VMEnter => self.enter_guest(tcb),
            Syscall::SetTLSBase => {
                tcb.set_reg(abi::context::index::FS_BASE, tcb.reg(register::CAPABILITY));
                tcb.sanitise_bases();
                let core = self.core;
                self.hw.load_bases(core, tcb);
            }
            Syscall::DebugPutChar
            | Syscall::DebugDumpScheduler
            | Syscall::DebugHalt
            | Syscall::DebugCapIdentify
            | Syscall::DebugSnapshot
            | Syscall::DebugNameThread => self.debug_syscall(tcb, call),
        }
    }

    fn yield_slice(&mut self) {
        let Some(sc) = self.this().current_sc else { return };
        let consumed = sc.consumed.get() + self.this().consumed;
        self.charge_budget(sc.head().amount, false);
        sc.consumed.set(consumed);
    }

    pub(crate) fn raise_cap_fault(
        &mut self,
        tcb: Ref<Tcb>,
        address: u64,
        in_receive: bool,
        failure: LookupFailure,
    ) {
        // The first word is the type; type numbers and word counts agree.
        let (lookup, count) = failure.words();
        debug_assert!(lookup[0] as usize == count);
        self.raise(tcb, PendingFault::Cap { address, in_receive, lookup });
    }

    fn receive(&mut self, tcb: Ref<Tcb>, pointer: u64, is_blocking: bool, wants_reply: bool) {
        let missing = LookupFailure::MissingCapability { bits_left: 0 };
        let slot = match cspace::lookup(tcb, pointer) {
            Ok(slot) => slot,
            Err(failure) => return self.raise_cap_fault(tcb, pointer, true, failure),
        };
        match slot.unpack() {
            Cap::Endpoint { addr, rights, .. } if rights.contains(CapRights::READ) => {
                let reply = if wants_reply {
                    match self.lookup_reply(tcb) {
                        Some(reply) => Some(reply),
                        None => return,
                    }
                } else {
                    None
                };
                let can_grant = rights.contains(CapRights::GRANT);
                self.receive_ipc(tcb, Ref::at(addr), can_grant, is_blocking, reply);
            }
            Cap::Notification { addr, rights, .. } if rights.contains(CapRights::READ) => {
                let notification: Ref<crate::object::notification::Notification> = Ref::at(addr);
                if notification.bound_tcb.get().is_some_and(|bound| bound != tcb) {
                    return self.raise_cap_fault(tcb, pointer, true, missing);
                }
                self.receive_signal(tcb, notification, is_blocking);
            }
            _ => self.raise_cap_fault(tcb, pointer, true, missing),
        }
    }

    fn lookup_reply(&mut self, tcb: Ref<Tcb>) -> Option<Ref<Reply>> {
        let pointer = tcb.reg(register::REPLY);
        match cspace::lookup(tcb, pointer) {
            Ok(slot) if slot.cap.get().is(Tag::Reply) => Some(Ref::at(slot.cap.get().addr())),
            Ok(_) => {
                let failure = LookupFailure::MissingCapability { bits_left: 0 };
                self.raise_cap_fault(tcb, pointer, true, failure);
                None
            }
            Err(failure) => {
                self.raise_cap_fault(tcb, pointer, true, failure);
                None
            }
        }
    }

    /// Exception of the current thread of `core`.
    pub fn handle_fault(&mut self, core: usize, info: FaultInfo) -> Resume {
        let Some(tcb) = self.enter(core) else { return self.leave() };
        if self.this().stalled {
            return self.leave_stalled();
        }
        tcb.fault_ip.set(tcb.reg(abi::context::index::RIP));
        self.update_time();
        if self.check_budget() {
            let fault = match info {
                FaultInfo::Page { address, code } => {
                    PendingFault::Vm { address, instruction: code & 0x10 != 0, code }
                }
                FaultInfo::SoftwareInterrupt { vector: vector @ 158..=254 } => {
                    tcb.fault_ip.set(tcb.fault_ip.get().wrapping_sub(2));
                    let eax = tcb.reg(abi::context::index::RAX) & 0xff_ffff;
                    PendingFault::UnknownSyscall { number: vector << 24 | eax }
                }
                FaultInfo::SoftwareInterrupt { vector } => {
                    PendingFault::UserException { number: vector, code: 0 }
                }
                FaultInfo::Exception { vector, code } => {
                    PendingFault::UserException { number: vector, code }
                }
            };
            self.raise(tcb, fault);
        }
        self.leave()
    }

    /// External interrupt with a CPU vector on `core`, or an IPI.
    pub fn handle_interrupt(&mut self, core: usize, vector: u8) -> Resume {
        self.interrupt_entry(core);
        match vector {
            TIMER_VECTOR => {
                self.this().reprogram = true;
                self.expire_timers();
            }
            RESCHEDULE_VECTOR => {
                self.reschedule();
                self.this().reprogram = true;
            }
            vector if vector >= FIRST_USER_CPU_VECTOR => {
                self.irq_fired(u32::from(vector - FIRST_USER_CPU_VECTOR) + FIRST_USER_IRQ);
            }
            _ => {}
        }
        self.leave()
    }

    /// The timer of `core` fired.
    pub fn handle_timer(&mut self, core: usize) -> Resume {
        self.handle_interrupt(core, TIMER_VECTOR)
    }

    /// The guest of the current thread of `core` exited for a reason other than an external interrupt.
    #[inline]
    pub fn handle_guest_exit(&mut self, core: usize) -> Resume {
        let Some(tcb) = self.enter(core) else { return self.leave() };
        // Told before anything else: the exit has happened, also if another core has taken the thread away meanwhile.
        self.guest_exit(tcb);
        if self.this().stalled {
            return self.leave_stalled();
        }
        if let Some(resume) = self.fast_guest_exit(tcb) {
            return resume;
        }
        self.update_time();
        self.check_budget();
        self.leave()
    }

    fn interrupt_entry(&mut self, core: usize) {
        if let Some(tcb) = self.enter(core) {
            if self.this().stalled {
                // The interrupt itself must not get lost: only the thread's own event is dropped.
                self.this().stalled = false;
                self.reschedule();
            } else if tcb.state.get() == ThreadState::Running {
                tcb.fault_ip.set(tcb.reg(abi::context::index::RIP));
            }
        }
        self.update_time();
        self.check_budget();
    }

    /// Notes the thread that runs first on a core (boot).
    pub fn start_core(&mut self, core: usize) -> Resume {
        self.core = core;
        self.this().time = self.hw.now();
        self.reschedule();
        self.this().reprogram = true;
        self.leave()
    }

    /// Answers a Call that worked: registers hold `words` words.
    pub(crate) fn answer(tcb: Ref<Tcb>, label: u64, words: u64) {
        tcb.set_reg(register::BADGE, 0);
        tcb.set_reg(register::MESSAGE_INFO, MessageInfo::new(label, 0, 0, words).0);
    }
}
