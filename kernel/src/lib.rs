//! The microkernel: capabilities, threads, endpoints, frames, virtual CPUs.
//!
//! The library is portable: generic over [`Hw`], with all objects in physical memory behind [`mem::Ref`]. The machine code around
//! it (package binary, `arch`) takes the big lock, calls one of the entries below and does what [`Resume`] says.
//!
//! | entry | called when |
//! |---|---|
//! | [`Kernel::handle_syscall`] | SYSCALL by the core's current thread |
//! | [`Kernel::handle_fault`] | exception in user mode |
//! | [`Kernel::handle_interrupt`] | external interrupt, reschedule or stall IPI, in user mode, in a guest or while idle |
//! | [`Kernel::handle_timer`] | the per-core timer fired |
//! | [`Kernel::handle_guest_exit`] | VMRUN returned for a reason other than an external interrupt |
//!
//! Invariants: (A) a core's current thread is runnable and has a released scheduling context of that core, or there is none (idle);
//! (B) the current thread is in no queue; (C) a runnable thread with a scheduling context is in the ready queue, in the release
//! queue or current; (D) whatever the kernel remembers about user memory is in a capability slot, so revocation finds it.
#![cfg_attr(target_os = "none", no_std)]

pub mod arch;
pub mod boot;
pub mod cap;
pub mod hw;
pub mod ipc;
pub mod limits;
pub mod mem;
#[cfg(not(target_os = "none"))]
pub mod model;
pub mod object;
pub mod sched;
pub mod syscall;

use cap::Slot;
use hw::{Hw, IrqRoute};
use limits::{ASID_POOL_ENTRIES, ASID_POOLS, IRQ_LINES, MAX_CORES, PRIORITIES};
use mem::Ref;
use object::sched_context::SchedContext;
use object::tcb::Tcb;

/// What the core does when the kernel is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Load the thread's registers and go on in user mode.
    User(Ref<Tcb>),
    /// Enter the guest of the thread's virtual CPU.
    Guest(Ref<Tcb>),
    /// Wait for an interrupt; nothing is runnable here.
    Idle,
}

/// An exception in user mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultInfo {
    /// Page fault: address (CR2) and error code.
    Page {
        /// Faulting address.
        address: u64,
        /// Error code of the processor.
        code: u64,
    },
    /// Any other exception.
    Exception {
        /// Vector.
        vector: u64,
        /// Error code, 0 where there is none.
        code: u64,
    },
    /// Software interrupt (vectors 158 to 254 count as unknown system calls); rip is behind the instruction.
    SoftwareInterrupt {
        /// Vector.
        vector: u64,
    },
}

/// What the scheduler does at the end of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Go on with the current thread if it still may.
    Resume,
    /// Take the highest ready thread.
    ChooseNew,
    /// Switch to this one, unless something better is ready.
    Switch(Ref<Tcb>),
}

/// A queue of ready threads of one priority.
#[derive(Clone, Copy)]
pub(crate) struct Queue {
    pub(crate) head: Option<Ref<Tcb>>,
    pub(crate) tail: Option<Ref<Tcb>>,
}

/// What the kernel knows of one core.
pub struct Core {
    /// Thread whose registers the core carries.
    pub(crate) current: Option<Ref<Tcb>>,
    /// Scheduling context that is charged.
    pub(crate) current_sc: Option<Ref<SchedContext>>,
    /// Decision so far.
    pub(crate) action: Action,
    /// Time of the last look at the clock.
    pub(crate) time: u64,
    /// Ticks used by the current scheduling context and not yet charged.
    pub(crate) consumed: u64,
    /// The timer's deadline may be wrong.
    pub(crate) reprogram: bool,
    /// The current thread was taken away by another core; the event it brings is dropped.
    pub(crate) stalled: bool,
    /// Address of the loaded address space root; 0 = the kernel's own.
    pub(crate) root: u64,
    /// Thread that waits first for its refill.
    pub(crate) release_head: Option<Ref<Tcb>>,
    pub(crate) ready_bitmap: [u64; PRIORITIES / 64],
    pub(crate) ready: [Queue; PRIORITIES],
}

/// What the kernel knows of one interrupt line.
#[derive(Clone, Copy)]
pub(crate) enum IrqState {
    Inactive,
    Signal(IrqRoute),
}

/// A page of 512 roots by ASID.
#[repr(C)]
pub struct AsidPool {
    pub(crate) roots: [core::cell::Cell<u64>; ASID_POOL_ENTRIES],
}

/// The whole kernel state outside user-supplied memory.
pub struct Kernel<H: Hw> {
    /// The machine.
    pub hw: H,
    pub(crate) core: usize,
    pub(crate) core_count: usize,
    pub(crate) tsc_hz: u64,
    pub(crate) cores: [Core; MAX_CORES],
    pub(crate) asid_pools: [Option<Ref<AsidPool>>; ASID_POOLS],
    pub(crate) irq_slots: Option<Ref<Slot>>,
    pub(crate) irqs: [IrqState; IRQ_LINES],
    pub(crate) ports: [u64; 1024],
    pub(crate) virt: object::virt::Virt,
    /// Cores to be woken at the end of the entry.
    pub(crate) kicks: u64,
    /// Least time worth an entry, in ticks.
    pub(crate) min_budget: u64,
    /// Time of one kernel path, in ticks: what is due that soon counts as due.
    pub(crate) wcet: u64,
    /// Work done since the last preemption point looked at the clock.
    pub(crate) work_units: u32,
}

impl<H: Hw> Kernel<H> {
    /// Makes a kernel without threads, for one core until boot code says otherwise.
    #[must_use]
    pub fn new(hw: H) -> Self {
        let tsc_hz = hw.tsc_hz();
        let ticks = |us: u64| (u128::from(us) * u128::from(tsc_hz)).div_ceil(1_000_000) as u64;
        let (min_budget, wcet) = (ticks(limits::MIN_BUDGET_US), ticks(limits::KERNEL_WCET_US));
        Self {
            hw,
            core: 0,
            core_count: 1,
            tsc_hz,
            cores: [const { Core::new() }; MAX_CORES],
            asid_pools: [None; ASID_POOLS],
            irq_slots: None,
            irqs: [IrqState::Inactive; IRQ_LINES],
            ports: [0; 1024],
            virt: object::virt::Virt::new(),
            kicks: 0,
            min_budget,
            wcet,
            work_units: 0,
        }
    }

    /// Puts a capability that was made from nothing into an empty slot (boot).
    pub fn install_cap(&mut self, slot: Ref<Slot>, cap: cap::Cap) {
        cap::tree::insert_root(cap, slot);
    }
}

impl Core {
    const fn new() -> Self {
        Self {
            current: None,
            current_sc: None,
            action: Action::Resume,
            time: 0,
            consumed: 0,
            reprogram: false,
            stalled: false,
            root: 0,
            release_head: None,
            ready_bitmap: [0; PRIORITIES / 64],
            ready: [Queue { head: None, tail: None }; PRIORITIES],
        }
    }
}
