//! Bare-metal guests for the test of isolation; the command line says which.
//!
//! `quiet` fills memory and disk with a pattern, checks both over and over, and says at the key `q` whether all was well.
//! `hostile` tries everything a guest can to reach what is not its own and ends by a triple
//! fault. `tables` ends at once with page tables outside memory, `x87` with an instruction on a device that nothing
//! emulates.
//! Answers are lines `QUIET ...` and `HOSTILE ...`.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "entered from assembly, by name")]

mod attack;

use core::arch::global_asm;
use core::fmt::Write;
use core::panic::PanicInfo;

use bare::hardware::{self, Uart, set_word, word};
use bare::virtio::{Device, Rings, clear, disk};

global_asm!(include_str!("../../bare/src/boot.s"), options(att_syntax));

const DISK: u16 = 2;
const ENTROPY: u16 = 4;
const BALLOON: u16 = 5;

macro_rules! say {
    ($($words:tt)*) => {
        // Writing to the serial port cannot fail.
        _ = writeln!(Uart, $($words)*)
    };
}

/// Called by `boot.s` in long mode with the PVH start information.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) {
    hardware::install_handlers(&[]);
    hardware::map_high();
    let mut line = [0; 32];
    let mut length = 0;
    for (place, byte) in line.iter_mut().zip(hardware::text(word(start_info + 24), 32)) {
        *place = byte;
        length += 1;
    }
    match line.get(..length) {
        Some(b"quiet") => quiet(),
        Some(b"hostile") => {
            hostile();
            hardware::triple_fault()
        }
        Some(b"tables") => hardware::load_tables(0x8000_0000),
        Some(b"x87") => hardware::load_x87(0xfec0_0000),
        _ => say!("UNKNOWN command line"),
    }
}

fn hostile() {
    say!("HOSTILE begins");
    say!("HOSTILE memory {}", attack::memory());
    say!("HOSTILE ports {}", attack::ports());
    say!("HOSTILE registers {}", attack::registers());
    for kind in [DISK, ENTROPY, BALLOON] {
        let Some(device) = Device::find(kind) else {
            say!("HOSTILE lacks device {kind}");
            return;
        };
        let (given_up, answered) = attack::queues(&device);
        say!("HOSTILE queues {kind} {given_up} {answered}");
        say!("HOSTILE rings {kind} {}", attack::rings(&device));
        say!("HOSTILE windows {kind} {}", attack::windows(&device));
    }
    if let (Some(balloon), Some(disk)) = (Device::find(BALLOON), Device::find(DISK)) {
        say!("HOSTILE balloon {}", attack::balloon(&balloon));
        say!("HOSTILE well-behaved {}", attack::well_behaved(&disk));
    }
    say!("HOSTILE ends");
}

/// Memory that holds the pattern.
const HELD: core::ops::Range<u64> = 0x40_0000..0x1c0_0000;
const RINGS: Rings = Rings::at(0x30_0000);
const SCRATCH: u64 = 0x30_8000;
const BUFFER: u64 = 0x31_0000;
/// Bytes of one disk request, and how many of them hold the pattern.
const CHUNK: u32 = 4096;
const CHUNKS: u64 = 64;

const fn pattern(place: u64) -> u64 {
    place.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed
}

fn fill(from: u64, bytes: u64, key: u64) {
    for at in (0..bytes).step_by(8) {
        set_word(from + at, pattern(key + at));
    }
}

fn wrong(from: u64, bytes: u64, key: u64) -> u64 {
    (0..bytes).step_by(8).filter(|&at| word(from + at) != pattern(key + at)).count() as u64
}

/// Words of the disk that are not what was written.
fn wrong_on_disk(device: &Device) -> u64 {
    let mut count = 0;
    for chunk in 0..CHUNKS {
        let status = disk(device, &RINGS, SCRATCH, 0, chunk * 8, (BUFFER, CHUNK));
        count += u64::from(status != 0) + wrong(BUFFER, u64::from(CHUNK), chunk << 32);
    }
    count
}

fn quiet() {
    let Some(device) = Device::find(DISK) else {
        say!("QUIET lacks a disk");
        return;
    };
    say!("QUIET prefixes {}", hardware::prefixes_are_honoured());
    let vectors = hardware::move_vectors(0xe000_0000, 0xfec0_0000, SCRATCH);
    say!("QUIET vectors {}", vectors == [u64::MAX, u64::MAX, 7, 7]);
    clear(&RINGS);
    device.start(&[RINGS]);
    fill(HELD.start, HELD.end - HELD.start, 0);
    for chunk in 0..CHUNKS {
        fill(BUFFER, u64::from(CHUNK), chunk << 32);
        let status = disk(&device, &RINGS, SCRATCH, 1, chunk * 8, (BUFFER, CHUNK));
        if status != 0 {
            say!("QUIET cannot write: status {status}");
            return;
        }
    }
    say!("QUIET holds {} bytes", HELD.end - HELD.start);
    let mut rounds = 0u64;
    let (mut memory, mut sectors) = (0, 0);
    loop {
        memory += wrong(HELD.start, HELD.end - HELD.start, 0);
        sectors += wrong_on_disk(&device);
        rounds += 1;
        if hardware::typed() == Some(b'q') {
            break;
        }
    }
    say!("QUIET {rounds} rounds, {memory} words of memory and {sectors} of the disk changed");
    // Sleep state S5.
    hardware::write_port(0x604, 2, 1 << 13 | 5 << 10);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("PANIC {info}");
    loop {
        core::hint::spin_loop();
    }
}
