//! Bare-metal guest that measures what exits cost, in ticks of its TSC.
//!
//! Under `-icount shift=0` a tick is one executed instruction of guest, kernel and servers together. Each
//! figure is the average of [`ROUNDS`] operations with the loop's own cost taken off; `first_touch_4k` touches
//! as many fresh pages. Results go to the 16550 as `BENCH key value` lines, closed by `BENCH end`.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "called by name from assembly, and naming what is assembly")]

use core::arch::global_asm;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use bare::hardware::{
    Handler, Uart, cpuid, enable_x2apic, install_handlers, now, null_hypercall, read_msr,
    read_port, read_wild, text, wait_for_interrupt, word, write_msr, write_wild,
};
use bare::virtio::{Device, Rings, clear, describe_disk, start, used};

global_asm!(include_str!("../../bare/src/boot.s"), options(att_syntax));
global_asm!(include_str!("stamp.s"), options(att_syntax));

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

/// Vector of the disk.
const DISK_VECTOR: u8 = 0x41;
/// virtio's number of a disk.
const DISK: u16 = 2;
/// Bytes of a disk request.
const BLOCK: u32 = 4096;
/// Blocks of the disk that are read in turn.
const BLOCKS: u64 = 128;
/// Rings, header and data: on pages that have places of their own in the vmm-server's window, beside code and tables.
const RINGS: Rings = Rings::at(0x80_0000);
const SCRATCH: u64 = 0x88_0000;
const BUFFER: u64 = 0x99_0000;

/// Written by `stamp_entry`: TSC at the last interrupt.
#[unsafe(no_mangle)]
static STAMP: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn stamp_entry();
}

fn read_mmio(address: u64) -> u32 {
    read_wild(address, 4) as u32
}

fn write_mmio(address: u64, value: u32) {
    write_wild(address, 4, u64::from(value));
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
        STAMP.store(0, Ordering::Relaxed);
        let start = now();
        write_msr(0x838, count);
        while STAMP.load(Ordering::Relaxed) == 0 {
            wait_for_interrupt();
        }
        late += STAMP.load(Ordering::Relaxed) - start - TIMER_DISTANCE;
    }
    late / ROUNDS
}

/// What exits cost.
fn exits() {
    let _ = writeln!(Uart, "BENCH begin {ROUNDS}");
    report("cpuid_exit", average(|_| _ = core::hint::black_box(cpuid(0))));
    // Without KVM's interface VMMCALL is an invalid instruction ("KVMK" in EBX says it is there).
    if cpuid(0x4000_0000)[1] == u32::from_le_bytes(*b"KVMK") {
        report("hypercall_exit", average(|_| null_hypercall()));
    }
    report("pio_exit", average(|_| _ = core::hint::black_box(read_port(0x3ff, 1))));
    write_mmio(IOAPIC, 1);
    report("mmio_ioapic_read", average(|_| _ = core::hint::black_box(read_mmio(IOAPIC + 0x10))));
    report("mmio_unassigned_read", average(|_| _ = core::hint::black_box(read_mmio(UNASSIGNED))));
    report("first_touch_4k", average(|round| write_mmio(FRESH + (round << 12), 1)));
    if enable_x2apic() {
        report("eoi_x2apic", average(|_| write_msr(0x80b, 0)));
        let ratio = timer_ratio();
        report("timer_late_hlt", timer_lateness(ratio));
    }
}

/// Reads `count` blocks of the disk, one after the other, asleep until each is there; how many came whole.
fn read_blocks(count: u64) -> Option<u64> {
    let disk = Device::find(DISK).filter(|_| enable_x2apic())?;
    clear(&RINGS);
    disk.start(&[RINGS]);
    disk.interrupt_by(DISK_VECTOR);
    let mut whole = 0;
    for block in 0..count {
        let sector = block % BLOCKS * u64::from(BLOCK / 512);
        describe_disk(&RINGS, SCRATCH, 0, sector, (BUFFER, BLOCK));
        let end = start(&disk, 0, &RINGS, 0);
        while used(&RINGS) != end {
            wait_for_interrupt();
        }
        whole += u64::from(word(SCRATCH + 16) as u8 == 0);
    }
    Some(whole)
}

/// Called by `boot.s` in long mode on a stack of 16 KiB with the PVH start information. The command line `reads=N` reads the
/// disk, anything else measures exits.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) {
    let stamp = [(TIMER_VECTOR.into(), stamp_entry as Handler), (DISK_VECTOR.into(), stamp_entry)];
    install_handlers(&stamp);
    let mut reads = None;
    for (at, byte) in text(word(start_info + 24), 16).enumerate() {
        match (b"reads=".get(at), byte) {
            (Some(expected), _) if *expected == byte => {}
            (None, b'0'..=b'9') => reads = Some(reads.unwrap_or(0) * 10 + u64::from(byte - b'0')),
            _ => break,
        }
    }
    match reads {
        Some(count) => match read_blocks(count) {
            Some(whole) => report("reads", whole),
            None => _ = writeln!(Uart, "BENCH lacks a disk"),
        },
        None => exits(),
    }
    let _ = writeln!(Uart, "BENCH end");
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Uart, "BENCH panic {info}");
    loop {
        core::hint::spin_loop();
    }
}
