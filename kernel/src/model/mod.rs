//! A machine for host tests: two cores, a clock that tests move, a TLB that forgets nothing by itself.
//!
//! [`Model`] implements [`Hw`]; [`world::World`] is a booted kernel on it; [`check`] holds the invariants that tests and the fuzzer check
//! after every call.

pub mod check;
pub mod fuzz;
pub mod guests;
pub mod world;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::vec::Vec;

use crate::hw::{Hw, IrqRoute, PortWidth};
use crate::mem::{PhysAddr, Ref};
use crate::object::tcb::Tcb;

/// Ticks per second of the model's clock.
pub const TSC_HZ: u64 = 1_000_000_000;
/// Cores of the model.
pub const CORES: usize = 2;

/// Translations a core may hold: page address to leaf entry.
pub type Tlb = BTreeMap<u64, u64>;

/// The machine.
#[derive(Default)]
pub struct Model {
    /// The clock.
    pub time: u64,
    /// Timer deadline of each core.
    pub deadlines: [Option<u64>; CORES],
    /// Reschedule interrupts on their way.
    pub kicked: [bool; CORES],
    /// Cores told to be inside the kernel; they come in when the entry is over.
    pub stalled: [bool; CORES],
    /// Root of each core.
    pub roots: [Option<PhysAddr>; CORES],
    /// What each core may have cached of its root.
    pub tlbs: [Tlb; CORES],
    /// Connected lines: vector, route, masked.
    pub lines: Vec<(u8, IrqRoute, bool)>,
    /// Port accesses: port, width in bytes, value written.
    pub ports: Vec<(u16, u32, Option<u32>)>,
    /// Text on the console.
    pub console: Vec<u8>,
    /// An interrupt waits.
    pub is_interrupt_pending: bool,
    /// DebugHalt was called.
    pub is_halted: bool,
}

fn bytes(width: PortWidth) -> u32 {
    match width {
        PortWidth::Byte => 1,
        PortWidth::Word => 2,
        PortWidth::Long => 4,
    }
}

impl Hw for Model {
    fn now(&self) -> u64 {
        self.time
    }
    fn tsc_hz(&self) -> u64 {
        TSC_HZ
    }
    fn arm_timer(&mut self, core: usize, deadline: u64) {
        self.deadlines[core] = (deadline != u64::MAX).then_some(deadline);
    }
    fn kick(&mut self, core: usize) {
        self.kicked[core] = true;
    }
    fn stall(&mut self, core: usize) {
        self.stalled[core] = true;
    }
    fn interrupt_pending(&mut self, _core: usize) -> bool {
        self.is_interrupt_pending
    }
    fn switch_space(&mut self, core: usize, root: Option<PhysAddr>) {
        self.roots[core] = root;
        self.tlbs[core].clear();
    }
    fn init_root(&mut self, _root: PhysAddr) {}
    fn flush_page(&mut self, root: PhysAddr, _asid: u16, vaddr: u64) {
        for core in 0..CORES {
            if self.roots[core] == Some(root) {
                self.tlbs[core].remove(&vaddr);
            }
        }
    }
    fn flush_space(&mut self, root: PhysAddr, _asid: u16) {
        for core in 0..CORES {
            if self.roots[core] == Some(root) {
                self.tlbs[core].clear();
            }
        }
    }
    fn retire_space(&mut self, root: PhysAddr, _asid: u16) {
        for core in 0..CORES {
            if self.roots[core] == Some(root) {
                self.roots[core] = None;
                self.tlbs[core].clear();
            }
        }
    }
    fn switch_thread(&mut self, _core: usize, _from: Option<Ref<Tcb>>, _to: Option<Ref<Tcb>>) {}
    fn load_bases(&mut self, _core: usize, _tcb: Ref<Tcb>) {}
    fn release_bases(&mut self, _tcb: Ref<Tcb>) {}
    fn release_thread(&mut self, _tcb: Ref<Tcb>) {}
    fn init_fpu(&mut self, tcb: Ref<Tcb>) {
        // The x87 control word's reset value, so that a missing call shows.
        tcb.fpu[0].set(0x7f);
        tcb.fpu[1].set(0x03);
    }
    fn port_in(&mut self, port: u16, width: PortWidth) -> u32 {
        self.ports.push((port, bytes(width), None));
        u32::from(port) | 0x5a00_0000
    }
    fn port_out(&mut self, port: u16, width: PortWidth, value: u32) {
        self.ports.push((port, bytes(width), Some(value)));
    }
    fn ioapic_pins(&self, ioapic: u32) -> Option<u32> {
        (ioapic == 0).then_some(24)
    }
    fn irq_connect(&mut self, vector: u8, route: IrqRoute) {
        self.lines.push((vector, route, true));
    }
    fn irq_disconnect(&mut self, vector: u8, _route: IrqRoute) {
        self.lines.retain(|line| line.0 != vector);
    }
    fn irq_mask(&mut self, vector: u8, _route: IrqRoute, masked: bool) {
        for line in &mut self.lines {
            if line.0 == vector {
                line.2 = masked;
            }
        }
    }
    fn guest_limits(&self, _core: usize) -> (u32, u64) {
        (guests::ASIDS, 7)
    }
    fn put_char(&mut self, byte: u8) {
        self.console.push(byte);
    }
    fn halt(&mut self) {
        self.is_halted = true;
    }
}
