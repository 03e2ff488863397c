//! Bare-metal guest that measures what exits cost, in ticks of its TSC.
//!
//! Under `-icount shift=0` a tick is one executed instruction of guest, kernel and servers together. Each
//! figure is the average of [`ROUNDS`] operations with the loop's own cost taken off; `first_touch_4k` touches
//! as many fresh pages. Results go to the 16550 as `BENCH key value` lines, closed by `BENCH end`.
#![no_std]
#![no_main]
// UNSAFETY: this is a kernel: it executes privileged instructions and touches device registers.
#![expect(unsafe_code, reason = "bare-metal program: port I/O, MSRs and MMIO have no safe form")]

use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::panic::PanicInfo;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicU64, Ordering};

global_asm!(include_str!("boot.s"), options(att_syntax));
global_asm!(include_str!("timer.s"), options(att_syntax));

/// Operations averaged per figure.
const ROUNDS: u64 = 300;
/// First byte of the memory used for first touches: behind image and loader data.
const FRESH: u64 = 32 << 20;
/// A guest-physical address where no machine of ours has anything.
const UNASSIGNED: u64 = 0xd000_0000;
/// The IOAPIC's registers.
const IOAPIC: u64 = 0xfec0_0000;
/// Vector of the LAPIC timer.
const TIMER_VECTOR: u8 = 0x40;
/// Ticks between arming the timer and its deadline.
const TIMER_DISTANCE: u64 = 200_000;

/// Written by `timer_entry`: TSC at the last timer interrupt.
#[unsafe(no_mangle)]
static TIMER_STAMP: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn timer_entry();
    fn fault_entry();
}

/// The 16550 at 0x3f8.
struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            while port_in(0x3fd) & 0x20 == 0 {}
            port_out(0x3f8, byte);
        }
        Ok(())
    }
}

fn port_in(port: u16) -> u8 {
    let value: u8;
    // SAFETY: reading a port of the virtual machine changes no memory.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    }
    value
}

fn port_out(port: u16, value: u8) {
    // SAFETY: the ports written are those of the serial port and of the interrupt controllers; none does DMA.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

fn now() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC only reads the clock.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only APIC registers are read; all exist once x2APIC is on.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn write_msr(msr: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only APIC registers are written; the interrupts they cause have a handler.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nomem, nostack));
    }
}

fn cpuid(leaf: u32) -> [u32; 4] {
    let registers = core::arch::x86_64::__cpuid(leaf);
    [registers.eax, registers.ebx, registers.ecx, registers.edx]
}

fn read_mmio(address: u64) -> u32 {
    // SAFETY: the page tables map the whole of 4 GiB; the address is a device register or nothing, never Rust's.
    unsafe { read_volatile(address as *const u32) }
}

fn write_mmio(address: u64, value: u32) {
    // SAFETY: as for `read_mmio`.
    unsafe { write_volatile(address as *mut u32, value) }
}

/// Average ticks of `operation`, without the loop.
fn average(mut operation: impl FnMut(u64)) -> u64 {
    let mut empty = 0;
    let start = now();
    for round in 0..ROUNDS {
        empty = core::hint::black_box(empty + round);
    }
    let overhead = now() - start;
    let start = now();
    for round in 0..ROUNDS {
        operation(core::hint::black_box(round));
    }
    (now() - start).saturating_sub(overhead) / ROUNDS
}

fn report(key: &str, value: u64) {
    // Writing to the serial port cannot fail.
    let _ = writeln!(Uart, "BENCH {key} {value}");
}

/// An interrupt descriptor table of 256 gates, two words each.
struct Gates([AtomicU64; 512]);

static IDT: Gates = Gates([const { AtomicU64::new(0) }; 512]);

fn install_handlers() {
    for vector in 0..256 {
        let handler = if vector == usize::from(TIMER_VECTOR) { timer_entry } else { fault_entry };
        let address = handler as *const () as u64;
        let low = address & 0xffff | 8 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
        if let [first, second] = &IDT.0[2 * vector..2 * vector + 2] {
            first.store(low, Ordering::Relaxed);
            second.store(address >> 32, Ordering::Relaxed);
        }
    }
    let base = &raw const IDT as u64;
    let pointer = [0xfff | (base & 0xffff_ffff_ffff) << 16, base >> 48];
    // SAFETY: `pointer` holds limit and base of a static table whose gates all name handlers.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags));
    }
}

/// Masks the 8259s, turns the local APIC on in x2APIC mode; `false` if the processor has none.
fn enable_x2apic() -> bool {
    port_out(0x21, 0xff);
    port_out(0xa1, 0xff);
    if cpuid(1)[2] & 1 << 21 == 0 {
        return false;
    }
    write_msr(0x1b, read_msr(0x1b) | 0xc00);
    write_msr(0x80f, 0x1ff);
    true
}

/// TSC ticks in 2^16 ticks of the LAPIC timer at divide by 1.
fn timer_ratio() -> u64 {
    write_msr(0x83e, 0xb);
    write_msr(0x832, 1 << 16 | u64::from(TIMER_VECTOR));
    write_msr(0x838, 0xffff_ffff);
    let (start, before) = (now(), read_msr(0x839));
    while now() - start < 1_000_000 {}
    let (end, after) = (now(), read_msr(0x839));
    write_msr(0x838, 0);
    ((end - start) << 16) / (before - after).max(1)
}

/// Average lateness of a one-shot timer that wakes the processor from HLT, counted from before the arming write.
fn timer_lateness(ratio: u64) -> u64 {
    write_msr(0x832, u64::from(TIMER_VECTOR));
    let count = (TIMER_DISTANCE << 16) / ratio;
    let mut late = 0;
    for _ in 0..ROUNDS {
        TIMER_STAMP.store(0, Ordering::Relaxed);
        let start = now();
        write_msr(0x838, count);
        while TIMER_STAMP.load(Ordering::Relaxed) == 0 {
            // SAFETY: the interrupt that ends HLT has a handler; STI's shadow lets none in before the HLT.
            unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
        }
        late += TIMER_STAMP.load(Ordering::Relaxed) - start - TIMER_DISTANCE;
    }
    late / ROUNDS
}

/// Called by `boot.s` in long mode on a stack of 16 KiB.
#[unsafe(no_mangle)]
extern "C" fn guest_main() {
    install_handlers();
    let _ = writeln!(Uart, "BENCH begin {ROUNDS}");
    report("cpuid_exit", average(|_| _ = core::hint::black_box(cpuid(0))));
    // Without KVM's interface VMMCALL is an invalid instruction ("KVMK" in EBX says it is there).
    if cpuid(0x4000_0000)[1] == u32::from_le_bytes(*b"KVMK") {
        let hypercall = |_| {
            // SAFETY: hypercall number -1 does not exist; the answer is an error in RAX.
            unsafe { asm!("vmmcall", inout("rax") u64::MAX => _, options(nostack)) }
        };
        report("hypercall_exit", average(hypercall));
    }
    report("pio_exit", average(|_| _ = core::hint::black_box(port_in(0x3ff))));
    write_mmio(IOAPIC, 1);
    report("mmio_ioapic_read", average(|_| _ = core::hint::black_box(read_mmio(IOAPIC + 0x10))));
    report("mmio_unassigned_read", average(|_| _ = core::hint::black_box(read_mmio(UNASSIGNED))));
    report("first_touch_4k", average(|round| write_mmio(FRESH + (round << 12), 1)));
    if enable_x2apic() {
        report("eoi_x2apic", average(|_| write_msr(0x80b, 0)));
        let ratio = timer_ratio();
        report("timer_late_hlt", timer_lateness(ratio));
    }
    let _ = writeln!(Uart, "BENCH end");
}

/// Called by `boot.s` for every interrupt but the timer's.
#[unsafe(no_mangle)]
extern "C" fn guest_fault(frame: *const u64) {
    // SAFETY: the processor pushed at least three words at `frame`.
    let words = unsafe { [frame.read(), frame.add(1).read(), frame.add(2).read()] };
    let _ = writeln!(Uart, "BENCH fault {words:x?}");
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Uart, "BENCH panic {info}");
    loop {
        core::hint::spin_loop();
    }
}
