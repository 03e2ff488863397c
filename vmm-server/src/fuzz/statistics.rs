//! A balloon driver that reports anything: tags that there are and others, again and again, any value, buffers cut anywhere.

extern crate std;

use crate::guest_memory::GuestMemory;
use crate::model::Bench;
use crate::virtio::queue::driver::Driver;
use fuzz_input::Input;
use protocol::mem::GuestStats;
use std::vec::Vec;

/// The balloon's number on the bus, and its registers.
const DEVICE: u32 = 2;
const BAR: u64 = 0xd001_0000;
/// Its statistics queue's rings and buffers, apart from those of the other steps.
const RINGS: u64 = 0x2_0000;
const BUFFERS: u64 = 0x2_8000;
const ENTRIES: u16 = 16;
const QUEUE: u64 = 2;
/// Feature bit of that queue.
const F_STATS_VQ: u32 = 1 << 1;
/// Bytes of a tag with its value.
const ENTRY_BYTES: usize = 10;
/// Most bytes of one segment that count (as for the other queues of the balloon).
const SEGMENT_MAX: usize = 4096;

/// Starts the balloon's driver, hands in one to three buffers and, between them, has some returned. Answers how many reports were
/// taken.
///
/// # Panics
///
/// If what the machine read is not what was written.
pub fn step(input: &mut Input<'_>, bench: &mut Bench) -> usize {
    let mut driver = Driver::new(RINGS, ENTRIES);
    start(bench, &driver);
    let mut taken = 0;
    for _ in 0..=input.byte() % 3 {
        let segments = report(input, bench, &mut driver);
        bench.world.statistics = None;
        notify(bench);
        let read = bench.world.statistics.take();
        assert!(read.is_none_or(|read| read == expected(&segments)), "{read:?} of {segments:?}");
        taken += usize::from(read.is_some());
        if input.byte() & 1 == 0 {
            bench.vmm.ask_statistics(&mut bench.memory);
        }
    }
    taken
}

/// Resets the device and makes it ready with that queue alone. If an earlier step has taken what that needs, its bus or the page
/// tables, the device stays silent.
fn start(bench: &mut Bench, driver: &Driver) {
    for (register, value) in [(0x10, BAR as u32), (4, 6)] {
        bench.pci_address(DEVICE, register);
        bench.out(0xcfc, 4, value);
    }
    let _ = bench.memory.write(driver.avail, &[0; 64]);
    let _ = bench.memory.write(driver.used, &[0; 256]);
    const BYTE: &[u8] = &[0x88, 0x03];
    const WORD: &[u8] = &[0x66, 0x89, 0x03];
    const LONG: &[u8] = &[0x89, 0x03];
    for (code, offset, value) in [
        (BYTE, 0x14, 0),
        (BYTE, 0x14, 3),
        (LONG, 0x08, 0),
        (LONG, 0x0c, u64::from(F_STATS_VQ)),
        (LONG, 0x08, 1),
        (LONG, 0x0c, 1),
        (BYTE, 0x14, 0xb),
        (WORD, 0x16, QUEUE),
        (WORD, 0x18, u64::from(ENTRIES)),
        (LONG, 0x20, driver.desc),
        (LONG, 0x28, driver.avail),
        (LONG, 0x30, driver.used),
        (WORD, 0x1c, 1),
        (BYTE, 0x14, 0xf),
    ] {
        bench.set_reg(0, value);
        bench.mmio(code, BAR + offset, true);
    }
}

fn notify(bench: &mut Bench) {
    bench.set_reg(0, QUEUE);
    bench.mmio(&[0x66, 0x89, 0x03], BAR + 0x3000 + 4 * QUEUE, true);
}

/// Writes one to three segments and makes them available as one buffer. Answers their bytes.
fn report(input: &mut Input<'_>, bench: &mut Bench, driver: &mut Driver) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    let mut parts = Vec::new();
    for number in 0..1 + u64::from(input.byte() % 3) {
        let mut bytes = Vec::new();
        for _ in 0..input.byte() % 24 {
            let tag =
                if input.byte() & 7 == 0 { input.number(2) as u16 } else { input.below(18) as u16 };
            let value = if input.byte() & 3 == 0 { !input.value() } else { input.value() };
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        // Cut inside an entry, or longer than a page of them.
        let cut = usize::from(input.byte() % 16);
        match cut {
            0..10 => bytes.truncate(bytes.len().saturating_sub(cut)),
            10 => bytes = bytes.iter().copied().cycle().take(SEGMENT_MAX + 100).collect(),
            _ => {}
        }
        let gpa = BUFFERS + number * 0x2000;
        let _ = bench.memory.write(gpa, &bytes);
        parts.push((gpa, bytes.len() as u32, input.byte() & 31 == 0));
        segments.push(bytes);
    }
    // Statistics are what the device reads: a writable segment says nothing, and ends what it may read.
    if parts.iter().any(|(.., is_writable)| *is_writable) {
        let split = parts.iter().position(|(.., is_writable)| *is_writable).unwrap_or(parts.len());
        segments.truncate(split);
        for part in parts.iter_mut().skip(split) {
            part.2 = true;
        }
    }
    driver.offer(&mut bench.memory, &parts);
    segments
}

/// What a report says: of a tag that comes again the last counts.
fn expected(segments: &[Vec<u8>]) -> GuestStats {
    // The driver has reset the device and written no size of its balloon.
    let mut stats = GuestStats { balloon: Some(0), ..GuestStats::default() };
    for bytes in segments {
        let bytes = bytes.get(..SEGMENT_MAX).unwrap_or(bytes);
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            let (tag, value) = entry.split_at(2);
            let value = value.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            let place = match tag {
                [0, 0] => &mut stats.swap_in,
                [1, 0] => &mut stats.swap_out,
                [2, 0] => &mut stats.major_faults,
                [3, 0] => &mut stats.minor_faults,
                [4, 0] => &mut stats.free,
                [5, 0] => &mut stats.total,
                [6, 0] => &mut stats.available,
                [7, 0] => &mut stats.disk_caches,
                [10, 0] => &mut stats.oom_kills,
                _ => continue,
            };
            let is_count = matches!(tag[0], 2 | 3 | 10);
            *place = Some(if is_count { value } else { value / 4096 });
        }
    }
    stats
}
