//! What the portable kernel needs from the machine.
//!
//! Contract with the implementation (`arch` on the target, `model::Model` on a host):
//! - Every call happens with the big lock held, on core `core` of the entry; nothing here may re-enter the kernel.
//! - **Entry.** Assembly saves the 20 words of the interrupted thread into `Tcb::regs` (rip = address to go on at: rcx at SYSCALL)
//!   and sets `Tcb::entry` to [`Entry::Syscall`](crate::object::tcb::Entry) or `Entry::Other` *before* it takes the lock, marks the core as inside
//!   the kernel, takes the lock, and calls one of the `Kernel::handle_*` functions with its core number.
//!   With no current thread (idle) nothing is saved.
//! - **Exit.** The function returns [`Resume`](crate::Resume). Space, FPU and segment bases are already switched (through this trait).
//!   The edge pointer to the save area is set, the mark removed, the lock released, registers loaded: with SYSRET
//!   where `Tcb::entry` is `Syscall`, with IRET otherwise. `Resume::Idle` = wait with interrupts on, then `handle_interrupt`.
//! - **Stall.** [`Hw::stall`] returns only when `core` is inside the kernel (its registers are saved) and stays there until the lock
//!   is released. The stalled core's own `handle_*` call notices by itself that its thread was taken away and drops its event.
//! - Times are TSC ticks, the same on every core.

use crate::mem::{PhysAddr, Ref};
use crate::object::tcb::Tcb;
use crate::object::vcpu::Vcpu;

/// How an interrupt line reaches the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqRoute {
    /// Pin of an IOAPIC.
    IoApic {
        /// Number of the IOAPIC.
        ioapic: u32,
        /// Pin.
        pin: u32,
        /// Level triggered rather than edge.
        level: bool,
        /// Active low rather than high.
        active_low: bool,
    },
    /// Message from a PCI function, programmed at the device by user level.
    Msi,
}

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWidth {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Long,
}

/// The machine, as the portable kernel sees it.
pub trait Hw {
    /// Reads the clock in TSC ticks.
    fn now(&self) -> u64;
    /// Tells the clock's exact frequency.
    fn tsc_hz(&self) -> u64;
    /// Has `core` (always the entry's) call `handle_timer` at `deadline` or as soon as it has passed. `u64::MAX` disarms.
    fn arm_timer(&mut self, core: usize, deadline: u64);
    /// Has another core enter `handle_interrupt(RESCHEDULE_VECTOR)` soon; does not wait.
    fn kick(&mut self, core: usize);
    /// Waits until another core is inside the kernel; see the contract above.
    fn stall(&mut self, core: usize);
    /// Tells whether an interrupt waits for this core: preemption points ask.
    fn interrupt_pending(&mut self, core: usize) -> bool;

    /// Loads an address space root on this core; `None` is the kernel's own (no user half). Called only on change.
    fn switch_space(&mut self, core: usize, root: Option<PhysAddr>);
    /// Puts the kernel half into a new root table.
    fn init_root(&mut self, root: PhysAddr);
    /// Makes sure that no core translates `vaddr` of `root` by an old leaf entry.
    fn flush_page(&mut self, root: PhysAddr, asid: u16, vaddr: u64);
    /// Makes sure that no core uses any old entry or table of `root`.
    fn flush_space(&mut self, root: PhysAddr, asid: u16);
    /// As [`Hw::flush_space`], and no core may have `root` loaded afterwards (it is being destroyed).
    fn retire_space(&mut self, root: PhysAddr, asid: u16);

    /// Moves what is not in `Tcb::regs` between threads of this core: FPU state (unless the flag `TCB_FLAG_FPU_DISABLED` says the
    /// thread has none), `fs_base` and `gs_base`. `None` = idle.
    fn switch_thread(&mut self, core: usize, from: Option<Ref<Tcb>>, to: Option<Ref<Tcb>>);
    /// Loads `fs_base` and `gs_base` of the core's current thread after the kernel changed them.
    fn load_bases(&mut self, core: usize, tcb: Ref<Tcb>);
    /// Makes `fs_base` and `gs_base` in `Tcb::regs` true if a core still has newer ones in its registers (the thread is current
    /// there; with FSGSBASE user mode changes them by itself).
    fn release_bases(&mut self, tcb: Ref<Tcb>);
    /// Saves or drops FPU state that a core still keeps in registers for `tcb` (it is being read, deleted, or moved to another core).
    fn release_thread(&mut self, tcb: Ref<Tcb>);
    /// Fills a new thread's FPU area with the initial state.
    fn init_fpu(&mut self, tcb: Ref<Tcb>);

    /// Reads a port.
    fn port_in(&mut self, port: u16, width: PortWidth) -> u32;
    /// Writes a port.
    fn port_out(&mut self, port: u16, width: PortWidth, value: u32);

    /// Tells the number of IOAPICs and of pins of each, as `pins(ioapic)`; `None`: no such IOAPIC.
    fn ioapic_pins(&self, ioapic: u32) -> Option<u32>;
    /// Routes a line to CPU vector `vector` of core 0, masked.
    fn irq_connect(&mut self, vector: u8, route: IrqRoute);
    /// Takes the route away.
    fn irq_disconnect(&mut self, vector: u8, route: IrqRoute);
    /// Masks or unmasks a line (no effect on MSI).
    fn irq_mask(&mut self, vector: u8, route: IrqRoute, masked: bool);

    /// Prints one byte on the debug console.
    fn put_char(&mut self, byte: u8);
    /// Stops the machine (DebugHalt).
    fn halt(&mut self);

    /// Tells what `core` can do for guests: number of ASIDs (the host's included; 0 = no virtualisation), bits of XCR0.
    fn guest_limits(&self, core: usize) -> (u32, u64) {
        let _ = core;
        (0, 0)
    }
    /// Writes back what any core still keeps in registers of a virtual CPU (it moves to another core, or is deleted).
    fn release_guest(&mut self, vcpu: Ref<Vcpu>) {
        let _ = vcpu;
    }
    /// Gives a wake-up of a guest-running core for the virtualisation part: the core leaves the guest soon.
    fn leave_guest(&mut self, core: usize) {
        self.kick(core);
    }
}
