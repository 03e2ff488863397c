//! Local APIC (memory-mapped and x2APIC), its timer, IOAPICs, and silence for the old 8259s.
//!
//! UNSAFETY: device registers.
#![expect(unsafe_code, reason = "memory-mapped registers, MSRs, ports")]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use x86::io::outb;
use x86::msr::{IA32_APIC_BASE, rdmsr, wrmsr};

use super::acpi::{IoApicEntry, MAX_IOAPICS};
use crate::limits::TIMER_VECTOR;
use crate::mem::window::WINDOW_BASE;

/// Vector of spurious interrupts; needs no end-of-interrupt.
pub const SPURIOUS_VECTOR: u8 = 255;

const ID: u32 = 0x20;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ISR: u32 = 0x100;
const IRR: u32 = 0x200;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;
const MASKED: u32 = 1 << 16;
const TSC_DEADLINE_MODE: u32 = 2 << 17;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_BASE: u32 = 0x800;
const X2APIC_ICR: u32 = 0x830;

static X2APIC: AtomicBool = AtomicBool::new(false);
static DEADLINE: AtomicBool = AtomicBool::new(false);
/// Address of the registers in the window.
static BASE: AtomicU64 = AtomicU64::new(0);

#[inline(always)]
fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, so the MSR exists.
        unsafe { rdmsr(X2APIC_BASE + (register >> 4)) as u32 }
    } else {
        let address = BASE.load(Ordering::Relaxed) + u64::from(register);
        // SAFETY: `init` has found the registers there.
        unsafe { (address as *const u32).read_volatile() }
    }
}

#[inline(always)]
fn write(register: u32, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, so the MSR exists.
        unsafe { wrmsr(X2APIC_BASE + (register >> 4), u64::from(value)) };
    } else {
        let address = BASE.load(Ordering::Relaxed) + u64::from(register);
        // SAFETY: `init` has found the registers there.
        unsafe { (address as *mut u32).write_volatile(value) };
    }
}

/// Turns this core's APIC on: spurious vector, no local lines, timer stopped. Returns its identifier.
pub fn init(x2apic: bool, deadline: bool) -> u32 {
    const ENABLE: u64 = 1 << 11;
    const EXTENDED: u64 = 1 << 10;
    // SAFETY: every 64-bit processor has the APIC base register.
    let base = unsafe { rdmsr(IA32_APIC_BASE) };
    let wanted = base | ENABLE | if x2apic { EXTENDED } else { 0 };
    // SAFETY: enabling the APIC changes nothing until vectors are set; the x2APIC bit is set only if CPUID has it.
    unsafe { wrmsr(IA32_APIC_BASE, wanted) };
    BASE.store(WINDOW_BASE + (base & 0xf_ffff_ffff_f000), Ordering::Relaxed);
    X2APIC.store(wanted & EXTENDED != 0, Ordering::Relaxed);
    DEADLINE.store(deadline, Ordering::Relaxed);
    write(LVT_TIMER, MASKED);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, MASKED);
    write(LVT_ERROR, MASKED);
    write(TIMER_DIVIDE, 0b1011); // by 1
    write(SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
    let id = read(ID);
    if X2APIC.load(Ordering::Relaxed) { id } else { id >> 24 }
}

/// Physical address of the registers' page.
pub fn physical_page() -> u64 {
    BASE.load(Ordering::Relaxed) - WINDOW_BASE
}

/// Lets the timer interrupt.
pub fn start_timer() {
    let mode = if DEADLINE.load(Ordering::Relaxed) { TSC_DEADLINE_MODE } else { 0 };
    write(LVT_TIMER, mode | u32::from(TIMER_VECTOR));
}

/// Whether the timer takes TSC values.
pub fn has_deadline() -> bool {
    DEADLINE.load(Ordering::Relaxed)
}

/// Sets the timer to a TSC value (deadline mode only); 0 stops it.
pub fn set_deadline(tsc: u64) {
    // SAFETY: only called in deadline mode, which CPUID has.
    unsafe { wrmsr(IA32_TSC_DEADLINE, tsc) };
}

/// Sets the timer to fire in `count` of its own ticks; 0 stops it.
#[inline(always)]
pub fn set_count(count: u32) {
    write(TIMER_INITIAL, count);
}

/// Remaining ticks.
pub fn count() -> u32 {
    read(TIMER_CURRENT)
}

/// Ends the interrupt in service.
#[inline(always)]
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Whether a device or core, not an INT instruction, brought the interrupt with this vector that is being handled.
#[cold]
pub fn in_service(vector: u8) -> bool {
    let word = u32::from(vector / 32);
    read(ISR + word * 0x10) & 1 << (vector % 32) != 0
}

/// Whether an interrupt with a vector from 32 up waits for this core.
pub fn pending() -> bool {
    (1..8).any(|word| read(IRR + word * 0x10) != 0)
}

fn command(target: u32, low: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on.
        unsafe { wrmsr(X2APIC_ICR, u64::from(target) << 32 | u64::from(low)) };
    } else {
        while read(ICR_LOW) & 1 << 12 != 0 {
            core::hint::spin_loop();
        }
        write(ICR_HIGH, target << 24);
        write(ICR_LOW, low);
    }
}

/// Sends a fixed interrupt to another core.
pub fn send_interrupt(target: u32, vector: u8) {
    command(target, 0x4000 | u32::from(vector));
}

/// Resets another core.
pub fn send_init(target: u32) {
    command(target, 0x4500);
}

/// Starts another core at `page` (below 1 MiB).
pub fn send_startup(target: u32, page: u64) {
    command(target, 0x4600 | (page >> 12) as u32);
}

/// Stops every other core for good, by an NMI that finds the panic flag set.
pub fn stop_others() {
    if BASE.load(Ordering::Relaxed) != 0 {
        command(0, 0xc_4400);
    }
}

/// Moves the 8259s away from the exceptions and masks all their lines.
pub fn silence_pic() {
    // SAFETY: initialisation sequence of the two 8259s; with all lines masked they stay quiet.
    unsafe {
        outb(0x20, 0x11);
        outb(0xa0, 0x11);
        outb(0x21, 0x20);
        outb(0xa1, 0x28);
        outb(0x21, 4);
        outb(0xa1, 2);
        outb(0x21, 1);
        outb(0xa1, 1);
        outb(0x21, 0xff);
        outb(0xa1, 0xff);
    }
}

const REDIRECTION_MASKED: u32 = 1 << 16;
const REDIRECTION_LEVEL: u32 = 1 << 15;
const REDIRECTION_LOW: u32 = 1 << 13;

/// Most pins of one IOAPIC.
const MAX_PINS: usize = 240;

/// One IOAPIC.
#[derive(Clone, Copy)]
struct IoApic {
    address: u64,
    pins: u32,
}

/// All IOAPICs, in MADT order.
pub struct IoApics {
    list: heapless::Vec<IoApic, MAX_IOAPICS>,
    destination: u32,
}

impl IoApics {
    /// Finds the pins of each IOAPIC and masks them all. Interrupts will go to the core with APIC identifier `destination`.
    #[must_use]
    pub fn new(entries: &[IoApicEntry], destination: u32) -> Self {
        let mut list = heapless::Vec::new();
        for entry in entries {
            let mut ioapic = IoApic { address: entry.address, pins: 0 };
            ioapic.pins = ((ioapic.read(1) >> 16 & 0xff) + 1).min(MAX_PINS as u32);
            for pin in 0..ioapic.pins {
                ioapic.write(0x10 + 2 * pin, REDIRECTION_MASKED);
            }
            // Cannot fail: the parser keeps no more than fit.
            let _ = list.push(ioapic);
        }
        Self { list, destination }
    }

    /// Pins of IOAPIC `ioapic`.
    #[must_use]
    pub fn pins(&self, ioapic: u32) -> Option<u32> {
        self.list.get(ioapic as usize).map(|entry| entry.pins)
    }

    /// Pages with IOAPIC registers.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        self.list.iter().map(|ioapic| ioapic.address & !0xfff)
    }

    /// Routes a pin to `vector`, masked.
    pub fn connect(&self, ioapic: u32, pin: u32, vector: u8, level: bool, active_low: bool) {
        let Some(entry) = self.list.get(ioapic as usize).filter(|entry| pin < entry.pins) else {
            return;
        };
        let mut low = REDIRECTION_MASKED | u32::from(vector);
        if level {
            low |= REDIRECTION_LEVEL;
        }
        if active_low {
            low |= REDIRECTION_LOW;
        }
        entry.write(0x11 + 2 * pin, self.destination << 24);
        entry.write(0x10 + 2 * pin, low);
    }

    /// Masks or unmasks a pin.
    pub fn mask(&self, ioapic: u32, pin: u32, masked: bool) {
        let Some(entry) = self.list.get(ioapic as usize).filter(|entry| pin < entry.pins) else {
            return;
        };
        let low = entry.read(0x10 + 2 * pin) & !REDIRECTION_MASKED;
        entry.write(0x10 + 2 * pin, if masked { low | REDIRECTION_MASKED } else { low });
    }
}

impl IoApic {
    fn read(&self, register: u32) -> u32 {
        let base = (WINDOW_BASE + self.address) as *mut u32;
        // SAFETY: the firmware's table says an IOAPIC is there: register select at 0, window at 16.
        unsafe {
            base.write_volatile(register);
            base.add(4).read_volatile()
        }
    }

    fn write(&self, register: u32, value: u32) {
        let base = (WINDOW_BASE + self.address) as *mut u32;
        // SAFETY: as for `read`.
        unsafe {
            base.write_volatile(register);
            base.add(4).write_volatile(value);
        }
    }
}
