//! Thread control block: layout and small accessors.

use core::cell::Cell;

use abi::context::{CONTEXT_WORDS, index};
use abi::syscall::register;

use super::notification::Notification;
use super::reply::Reply;
use super::sched_context::SchedContext;
use crate::cap::Slot;
use crate::limits::FPU_BYTES;
use crate::mem::{PhysAddr, Ref};

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ThreadState {
    /// Nothing, until resumed.
    Inactive = 0,
    /// Runs or is ready.
    Running = 1,
    /// Ready; goes on at `fault_ip`, so that an interrupted system call starts again.
    Restart = 2,
    /// Ready; goes on in its guest.
    RunningVm = 3,
    /// Waits for a message.
    BlockedOnReceive = 4,
    /// Waits for a receiver.
    BlockedOnSend = 5,
    /// Waits for an answer.
    BlockedOnReply = 6,
    /// Waits for a signal.
    BlockedOnNotification = 7,
}

/// How the thread entered the kernel, and so how it may leave it; written by the entry code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Entry {
    /// By interrupt, exception, guest exit, or never: leave with IRET, every register counts.
    Other = 0,
    /// By SYSCALL: rcx and r11 do not count, leave with SYSRET.
    Syscall = 1,
}

/// A fault on its way to a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, u64)]
pub enum PendingFault {
    /// None.
    Null = 0,
    /// A capability pointer could not be followed.
    Cap {
        /// The pointer.
        address: u64,
        /// In the receive phase of the call.
        in_receive: bool,
        /// Lookup failure as message words.
        lookup: [u64; 4],
    },
    /// No such system call.
    UnknownSyscall {
        /// Its number.
        number: u64,
    },
    /// An exception other than a page fault.
    UserException {
        /// Vector.
        number: u64,
        /// Error code.
        code: u64,
    },
    /// The budget ran out.
    Timeout {
        /// Badge of the scheduling context.
        badge: u64,
    },
    /// Page fault.
    Vm {
        /// Faulting address.
        address: u64,
        /// By an instruction fetch.
        instruction: bool,
        /// Error code of the processor.
        code: u64,
    },
}

/// Slots of a thread.
pub mod tcb_slot {
    /// CSpace root.
    pub const CTABLE: usize = 0;
    /// VSpace root.
    pub const VTABLE: usize = 1;
    /// Frame of the IPC buffer.
    pub const BUFFER: usize = 2;
    /// Fault handler.
    pub const FAULT_HANDLER: usize = 3;
    /// Timeout handler.
    pub const TIMEOUT_HANDLER: usize = 4;
    /// Number of slots.
    pub const COUNT: usize = 5;
}

/// A thread. The saved registers come first: entry code writes them at fixed offsets.
#[repr(C)]
pub struct Tcb {
    /// Registers in the order of [`abi::UserContext`]; rip is where the thread goes on.
    pub regs: [Cell<u64>; CONTEXT_WORDS],
    /// Where the thread goes on if it is restarted: the SYSCALL instruction itself, or rip.
    pub fault_ip: Cell<u64>,
    /// How it entered the kernel.
    pub entry: Cell<Entry>,
    /// Link of the ready or release queue: the thread behind.
    pub sched_next: Cell<Option<Ref<Tcb>>>,
    /// Link of the ready or release queue: the thread before.
    pub sched_prev: Cell<Option<Ref<Tcb>>>,
    /// Link of an endpoint's or notification's queue: the thread behind.
    pub ep_next: Cell<Option<Ref<Tcb>>>,
    /// Link of an endpoint's or notification's queue: the thread before.
    pub ep_prev: Cell<Option<Ref<Tcb>>>,
    /// Scheduling context it runs on.
    pub sc: Cell<Option<Ref<SchedContext>>>,
    /// Scheduling context it gave way to and waits to hear from.
    pub yield_to: Cell<Option<Ref<SchedContext>>>,
    /// Reply object it waits with (receiving) or for (called).
    pub reply: Cell<Option<Ref<Reply>>>,
    /// Endpoint or notification it waits on.
    pub blocking_object: Cell<PhysAddr>,
    /// Badge of the endpoint capability it sends through.
    pub badge: Cell<u64>,
    /// Notification bound to it.
    pub notification: Cell<Option<Ref<Notification>>>,
    /// Virtual CPU bound to it (address; the virtualisation part gives it its type).
    pub vcpu: Cell<u64>,
    /// Core it belongs to.
    pub core: Cell<u32>,
    /// What it does.
    pub state: Cell<ThreadState>,
    /// Priority.
    pub priority: Cell<u8>,
    /// Greatest priority it may give.
    pub mcp: Cell<u8>,
    /// abi TCB flags.
    pub flags: Cell<u8>,
    /// In a ready queue.
    pub in_ready_queue: Cell<bool>,
    /// In a release queue.
    pub in_release_queue: Cell<bool>,
    /// While BlockedOnSend/OnReceive: the endpoint capability had grant.
    pub can_grant: Cell<bool>,
    /// While BlockedOnSend: the endpoint capability had grantReply.
    pub can_grant_reply: Cell<bool>,
    /// While BlockedOnSend: wants an answer.
    pub is_call: Cell<bool>,
    /// There is a fault in `fault`.
    pub has_fault: Cell<bool>,
    /// Unused.
    pub spare: [Cell<u8>; 2],
    /// Fault being handled.
    fault: Cell<PendingFault>,
    /// Name for debugging.
    pub name: [Cell<u8>; 32],
    /// Word for the virtualisation part.
    pub vcpu_scratch: [Cell<u64>; 4],
    /// Virtual address of the IPC buffer; its frame is in the buffer slot.
    pub ipc_buffer: Cell<u64>,
    /// Padding up to the slots.
    pub padding: [Cell<u64>; 1],
    /// CSpace, VSpace, IPC buffer and handlers: [`tcb_slot`].
    pub slots: [Slot; tcb_slot::COUNT],
    /// Padding up to the FPU area.
    pub padding2: [Cell<u64>; 80],
    /// XSAVE area, 64-byte aligned as the TCB is.
    pub fpu: [Cell<u8>; FPU_BYTES],
}

/// Byte offset of the saved registers.
pub const OFFSET_REGS: usize = core::mem::offset_of!(Tcb, regs);
/// Byte offset of [`Tcb::entry`].
pub const OFFSET_ENTRY: usize = core::mem::offset_of!(Tcb, entry);
/// Byte offset of the XSAVE area.
pub const OFFSET_FPU: usize = core::mem::offset_of!(Tcb, fpu);

const _: () = {
    assert!(size_of::<Tcb>() == 1 << abi::object::TCB_BITS);
    assert!(OFFSET_REGS == 0);
    assert!(OFFSET_FPU.is_multiple_of(64));
    assert!(core::mem::offset_of!(Tcb, slots).is_multiple_of(32));
};

impl Tcb {
    /// Reads a register by its [`abi::context::index`].
    #[inline(always)]
    #[must_use]
    pub fn reg(&self, register: usize) -> u64 {
        self.regs[register].get()
    }

    /// Writes a register by its [`abi::context::index`].
    #[inline(always)]
    pub fn set_reg(&self, register: usize, value: u64) {
        self.regs[register].set(value);
    }

    /// Reads message register 0 to 3.
    #[inline(always)]
    #[must_use]
    pub fn mr(&self, number: usize) -> u64 {
        self.regs[register::MESSAGE[number]].get()
    }

    /// Writes message register 0 to 3.
    #[inline(always)]
    pub fn set_mr(&self, number: usize, value: u64) {
        self.regs[register::MESSAGE[number]].set(value);
    }

    /// Returns the fault being handled.
    #[inline]
    #[must_use]
    pub fn fault(&self) -> PendingFault {
        if self.has_fault.get() { self.fault.get() } else { PendingFault::Null }
    }

    /// Notes a fault, or that there is none.
    #[inline]
    pub fn set_fault(&self, fault: PendingFault) {
        let has_fault = fault != PendingFault::Null;
        if has_fault || self.has_fault.get() {
            self.fault.set(fault);
            self.has_fault.set(has_fault);
        }
    }

    /// Tells whether the thread could run if it had time.
    #[inline(always)]
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        matches!(
            self.state.get(),
            ThreadState::Running | ThreadState::Restart | ThreadState::RunningVm
        )
    }

    /// Tells whether the thread waits for something.
    #[inline]
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.state.get() as u8 >= ThreadState::BlockedOnReceive as u8
    }

    /// Forces flags and addresses to values user mode may have: interrupts on, no trap flag, no privilege, canonical bases.
    pub fn sanitise(&self) {
        const USER_FLAGS: u64 = 0x0024_0cd5; // CF PF AF ZF SF DF OF AC ID
        self.set_reg(index::RFLAGS, self.reg(index::RFLAGS) & USER_FLAGS | 0x202);
        if self.reg(index::RIP) >= 1 << 47 {
            self.set_reg(index::RIP, 0);
        }
        self.sanitise_bases();
        if self.fault_ip.get() >= 1 << 47 {
            self.fault_ip.set(0);
        }
    }

    /// Forces segment bases to user addresses: others become 0.
    pub fn sanitise_bases(&self) {
        for register in [index::FS_BASE, index::GS_BASE] {
            if self.reg(register) >= 1 << 47 {
                self.set_reg(register, 0);
            }
        }
    }
}

impl Ref<Tcb> {
    /// Returns the handle of one of the thread's slots.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, slot: usize) -> Ref<Slot> {
        let offset = core::mem::offset_of!(Tcb, slots) + slot * size_of::<Slot>();
        self.part(offset as u64)
    }
}
