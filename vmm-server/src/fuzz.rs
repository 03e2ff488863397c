//! A hostile guest made of bytes: each byte string is a sequence of exits, stores to RAM and events from below.
//!
//! The same interpreter serves the seeded run of `cargo test` and the cargo-fuzz target `guest`. What must hold after each
//! step is checked here; that nothing panics is checked by running it.

extern crate std;

mod statistics;

use crate::boot::{Image, Module, load};
use crate::guest_memory::{GuestMemory, VecMemory};
use crate::model::{Bench, CODE, World};
use crate::vmm::Words;
use abi::vcpu::{control, exit, ioio, npf, word};
use fuzz_input::Input;
use protocol::ring::{BLK_SLOTS, BlkServer, BlkStatus, Phase};
use std::vec::Vec;

/// Ports of the devices there are.
const PORTS: [u16; 26] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0x3f8, 0x3f9,
    0x3fa, 0x3fc, 0x4d0, 0x600, 0x602, 0x604, 0x608, 0xcf8, 0xcf9, 0xcfc, 0xcfe,
];
/// Registers of the local APIC, of KVM's clock, and some that do not exist.
const MSRS: [u32; 12] = [
    0x10,
    0x1b,
    0x277,
    0x2ff,
    0x6e0,
    0x80b,
    0x80f,
    0x832,
    0x838,
    0x4b56_4d00,
    0x4b56_4d01,
    0xc000_0080,
];
/// Device memory: functions of the bus, IOAPIC, local APIC, a hole.
const REGIONS: [u64; 6] =
    [0xd000_8000, 0xd001_0000, 0xd001_8000, 0xfec0_0000, 0xfee0_0000, 0xd800_0000];
/// Loads and stores of one to eight bytes, one that is no move, and a string store.
const CODES: [&[u8]; 9] = [
    &[0x88, 0x03],
    &[0x66, 0x89, 0x03],
    &[0x89, 0x03],
    &[0x48, 0x89, 0x03],
    &[0x8a, 0x03],
    &[0x8b, 0x03],
    &[0x48, 0x8b, 0x03],
    &[0x01, 0x03],
    &[0xf3, 0xab],
];
/// RAM an image is loaded into: twice what a kernel needs at least, so that ends are near.
const FUZZED_RAM: usize = 8 << 20;
/// Where the guest keeps its rings: descriptors, available ring, used ring, a page apart each.
const RINGS: u64 = 0x1_0000;
/// Offsets in the common configuration a driver writes, with the bytes written.
const COMMON: [(u64, usize); 12] = [
    (0x00, 2),
    (0x08, 2),
    (0x0c, 2),
    (0x10, 1),
    (0x14, 0),
    (0x16, 1),
    (0x18, 1),
    (0x1a, 1),
    (0x1c, 1),
    (0x20, 2),
    (0x28, 2),
    (0x30, 2),
];

/// How far a guest came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Reports of the balloon's driver that were taken.
    pub statistics: usize,
}

/// Runs the guest that `bytes` describe.
///
/// # Panics
///
/// If the machine breaks a promise: a ring with more requests than slots, an interrupt vector the processor refuses, statistics
/// that nobody wrote, or anything inside it that panics.
pub fn run(bytes: &[u8]) -> Seen {
    let mut input = Input::new(bytes);
    let mut bench = Bench::new();
    let mut disk = BlkServer::attach(&bench.world.ring).ok();
    let mut taken = Vec::new();
    let mut seen = Seen::default();
    while !input.is_empty() {
        step(&mut input, &mut bench, disk.as_mut(), (&mut taken, &mut seen));
        check(&mut bench);
    }
    seen
}

fn step(
    input: &mut Input<'_>,
    bench: &mut Bench,
    disk: Option<&mut BlkServer>,
    (taken, seen): (&mut Vec<u8>, &mut Seen),
) {
    bench.frame.event = 0;
    match input.byte() % 17 {
        0 | 1 => port(input, bench),
        2 | 3 => {
            let gpa = input.pick(&REGIONS) + (input.number(2) & 0x7fff);
            device_access(input, bench, gpa);
        }
        4..=6 => driver(input, bench),
        7 | 8 => descriptor(input, bench),
        9 => model_specific_register(input, bench),
        10 => {
            let gpa = RINGS + input.number(2) % 0x4000;
            let value = input.value();
            let _ = bench.memory.write(gpa, &value.to_le_bytes());
        }
        11 => {
            let later = input.value() >> 8;
            bench.world.now = bench.world.now.saturating_add(later);
            bench.vmm.tick(bench.world.now);
        }
        12 => complete(input, bench, disk, taken),
        13 => below(input, bench),
        14 => {
            bench.set_reg(0, input.value());
            bench.exit(exit::CPUID);
        }
        15 => seen.statistics += statistics::step(input, bench),
        _ => {
            bench.words.set(word::EXITINFO1, input.value());
            bench.words.set(word::EXITINFO2, input.value());
            let code =
                input.pick(&[exit::HLT, exit::CR8_WRITE, exit::VMMCALL, exit::XSETBV, 0x40, 0x401]);
            bench.exit(code);
        }
    }
}

fn port(input: &mut Input<'_>, bench: &mut Bench) {
    let port = input.pick(&PORTS).wrapping_add(u16::from(input.byte() & 3));
    let size = input.pick(&[ioio::SIZE8, ioio::SIZE16, ioio::SIZE32]);
    let flags = u64::from(input.byte()) & (ioio::IN | ioio::STRING | ioio::REP);
    bench.set_reg(0, input.value());
    if flags & (ioio::STRING | ioio::REP) != 0 {
        // Where the string is and how long: in RAM and short, or anything.
        bench.set_reg(1, u64::from(input.byte()));
        bench.set_reg(6, RINGS.wrapping_add(input.value()));
        bench.set_reg(7, RINGS.wrapping_add(input.value()));
        let code = [0xf3, if flags & ioio::IN != 0 { 0x6c } else { 0x6e }];
        let _ = bench.memory.write(CODE, &code);
    }
    bench.frame.rip = CODE;
    bench.words.set(word::EXITINFO1, u64::from(port) << ioio::PORT_SHIFT | size | flags);
    bench.words.set(word::EXITINFO2, CODE + 2);
    bench.exit(exit::IOIO);
}

fn device_access(input: &mut Input<'_>, bench: &mut Bench, gpa: u64) {
    let code = input.pick(&CODES);
    let is_write = input.byte() & 1 == 0;
    bench.set_reg(0, input.value());
    bench.set_reg(1, u64::from(input.byte()));
    bench.set_reg(7, gpa);
    bench.mmio(code, gpa, is_write);
}

/// A driver that means it: a register of a function's common configuration, with a fitting size and mostly fitting value.
fn driver(input: &mut Input<'_>, bench: &mut Bench) {
    let bar = input.pick(&REGIONS[..3]);
    let (offset, store) = input.pick(&COMMON);
    let ring = |at: u64| RINGS + at;
    let value = match (offset, input.byte() % 4) {
        (_, 0) => input.value(),
        (0x14, choice) => [0, 3, 0xb, 0xf][usize::from(choice)],
        (0x18, _) => 16,
        (0x1c, _) => 1,
        (0x20, _) => ring(0),
        (0x28, _) => ring(0x1000),
        (0x30, _) => ring(0x2000),
        _ => u64::from(input.byte()) & 3,
    };
    bench.set_reg(0, value);
    bench.mmio(CODES[store], bar + offset, true);
    if input.byte() & 3 == 0 {
        // Bus master and memory decoding: without them a queue is not looked at.
        bench.pci_address((bar >> 15) as u32 & 7, 4);
        bench.out(0xcfc, 2, 6);
    }
}

/// A descriptor, its head in the available ring, and the notification.
fn descriptor(input: &mut Input<'_>, bench: &mut Bench) {
    let index = u64::from(input.byte() % 16);
    let gpa = match input.byte() % 3 {
        0 => input.value(),
        1 => RINGS + 0x4000 + input.number(1) * 16,
        _ => RINGS + 0x8000,
    };
    let length =
        if input.byte() & 1 == 0 { input.pick(&[1u64, 16, 512, 4096]) } else { input.value() };
    let flags = u64::from(input.byte() & 7);
    let next = u64::from(input.byte() % 17);
    let last = (length & 0xffff_ffff) | flags << 32 | next << 48;
    let _ = bench.memory.write(RINGS + 16 * index, &gpa.to_le_bytes());
    let _ = bench.memory.write(RINGS + 16 * index + 8, &last.to_le_bytes());
    if input.byte() & 1 == 0 {
        return;
    }
    let published = bench.memory.read_u16(RINGS + 0x1002).unwrap_or(0);
    let entry = RINGS + 0x1004 + 2 * u64::from(published % 16);
    let _ = bench.memory.write(entry, &(index as u16).to_le_bytes());
    let _ = bench.memory.write(RINGS + 0x1002, &published.wrapping_add(1).to_le_bytes());
    let bar = input.pick(&REGIONS[..3]);
    bench.set_reg(0, 0);
    bench.mmio(CODES[1], bar + 0x3000 + 4 * u64::from(input.byte() & 3), true);
}

fn model_specific_register(input: &mut Input<'_>, bench: &mut Bench) {
    let msr = match input.byte() % 3 {
        0 => 0x800 + u64::from(input.byte() & 0x3f),
        1 => u64::from(input.pick(&MSRS)),
        _ => input.value(),
    };
    bench.set_reg(1, msr);
    bench.set_reg(0, input.value());
    bench.set_reg(2, input.value());
    bench.words.set(word::EXITINFO1, u64::from(input.byte() & 1));
    bench.exit(exit::MSR);
}

/// The disk's server takes requests, or answers one, and the machine looks at its rings.
fn complete(
    input: &mut Input<'_>,
    bench: &mut Bench,
    disk: Option<&mut BlkServer>,
    taken: &mut Vec<u8>,
) {
    let Some(disk) = disk else { return };
    while let Ok(Some((slot, _))) = disk.next(&bench.world.ring) {
        taken.push(slot);
    }
    assert!(taken.len() <= BLK_SLOTS, "more requests than slots");
    if !taken.is_empty() {
        let slot = taken.swap_remove(usize::from(input.byte()) % taken.len());
        let status = input.pick(&[BlkStatus::Ok, BlkStatus::DeviceError, BlkStatus::Timeout]);
        disk.complete(&bench.world.ring, slot, status, Phase::Weight);
        // A device that loses requests is reset, by another server.
        if status == BlkStatus::Timeout
            && let Ok(next) = BlkServer::attach(&bench.world.ring)
        {
            *disk = next;
            taken.clear();
        }
    }
    let Bench { vmm, memory, world, .. } = bench;
    vmm.disk_completed(memory, world);
}

/// What comes from other servers and the host.
fn below(input: &mut Input<'_>, bench: &mut Bench) {
    match input.byte() % 4 {
        0 => bench.vmm.set_balloon(input.value() as u32),
        1 => bench.vmm.ask_statistics(&mut bench.memory),
        2 => bench.vmm.press_power_button(),
        _ => {
            if bench.vmm.can_receive() {
                bench.vmm.receive(input.byte());
            }
        }
    }
}

/// What must hold before each entry. An asked-for stop is forgotten: the guest goes on being hostile.
fn check(bench: &mut Bench) {
    let _ = bench.vmm.stop.take();
    let _: Option<u64> = bench.vmm.deadline();
    let word = bench.enter();
    if word & control::V_IRQ != 0 && input_taken(&bench.world) {
        bench.frame.control &= !control::V_IRQ;
    }
    // Long mode is this guest's for good; what exits changed of it must not leak into the next.
    bench.words.set(word::EXITINFO1, npf::FINAL);
}

/// Loads what `bytes` make a kernel, a module and a command line of: the first says which format's magic numbers are put in.
///
/// # Panics
///
/// If the loader does.
pub fn load_image(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let format = input.byte() % 4;
    let module_bytes = usize::from(input.byte());
    let (module, rest) = input.rest().split_at(module_bytes.min(input.rest().len()));
    let mut kernel = Vec::from(rest);
    let mut put = |at: usize, magic: &[u8]| {
        if let Some(place) = kernel.get_mut(at..at + magic.len()) {
            place.copy_from_slice(magic);
        }
    };
    match format {
        0 => {
            put(0x1fe, &[0x55, 0xaa]);
            put(0x202, b"HdrS\x0f\x02");
        }
        1 => {
            put(0, b"\x7fELF\x02\x01\x01");
            // Type, machine, version; program headers at 64, at most seven of 56 bytes, the first a Xen note.
            put(16, &[2, 0, 62, 0, 1]);
            put(32, &64u64.to_le_bytes());
            put(54, &[56, 0]);
            put(64, &[4]);
        }
        2 => {
            put(0, &0x1bad_b002u32.to_le_bytes());
            put(4, &0x1_0003u32.to_le_bytes());
            put(8, &0u32.wrapping_sub(0x1bad_b002 + 0x1_0003).to_le_bytes());
        }
        _ => {}
    }
    let modules = [Module { bytes: module, name: "module" }];
    let image = Image { kernel: &kernel, modules: &modules, cmdline: "quiet" };
    let _ = load(&image, &mut VecMemory::new(FUZZED_RAM));
}

/// Whether the processor takes the offered interrupt: every second time by the clock, so that both happen.
fn input_taken(world: &World) -> bool {
    world.now & 1 == 0
}

#[cfg(test)]
mod tests {
    use super::{load_image, run};
    use fuzz_input::seeded;

    #[test]
    fn seeded_hostile_guests_break_nothing() {
        let mut statistics = 0;
        for seed in 1..=150u64 {
            statistics += run(&seeded(seed, 12_000)).statistics;
        }
        assert!(statistics > 1000, "the balloon's driver hardly ever reports: {statistics}");
    }

    #[test]
    fn seeded_damaged_images_are_refused_or_loaded() {
        for seed in 1..=600u64 {
            load_image(&seeded(seed, 3_000));
        }
    }
}
