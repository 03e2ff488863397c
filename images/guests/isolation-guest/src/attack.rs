//! What a hostile guest tries. Each step says what became of it.

use core::hint::black_box;

use bare::hardware::{
    faults, move_string, port_to, read_port, read_wild, set_word, try_read_msr, try_write_msr,
    word, write_port, write_wild,
};
use bare::virtio::{
    Device, INDIRECT, NEXT, Rings, SIZE, WRITE, clear, describe, disk, read_config, submit,
    write_config,
};

/// Rings of the queue under attack.
const RINGS: Rings = Rings::at(0x80_0000);
/// Request headers and status bytes.
const SCRATCH: u64 = 0x88_0000;
/// A buffer of ordinary memory.
const BUFFER: u64 = 0x90_0000;
/// Pages the balloon may take.
const SPARE: u64 = 0xa0_0000;
/// Value written to every port: resets nothing, sleeps nowhere.
const HARMLESS: u32 = 0x5a5a_5a5a;
/// Addresses at which this machine (32 MiB) has no memory: behind its end, in the hole, at devices, far away.
const WILD: [u64; 9] = [
    32 << 20,
    1 << 30,
    0xa000_0000,
    0xd00f_f000,
    0xfec0_0800,
    0xfee0_0ff0,
    4 << 30,
    64 << 30,
    511 << 30,
];

/// Addresses outside memory, read and written by all sizes and alignments; how many reads found something set.
pub fn memory() -> u64 {
    let mut held = 0;
    for &base in &WILD {
        for size in [1, 2, 4, 8] {
            for offset in [0u64, 1, 3, 0x7fc, 0xffc - u64::from(size)] {
                let old = read_wild(base + offset, size);
                write_wild(base + offset, size, 0x1122_3344_5566_7788);
                let mask = u64::MAX >> (64 - 8 * u32::from(size));
                let nothing = old == mask;
                held += u64::from(!nothing && !(0xfec0_0000..0xff00_0000).contains(&base));
            }
        }
        move_string(BUFFER, base);
        move_string(base, BUFFER);
    }
    held
}

/// Every port, the low and the highest by every size, and string input to where no memory is; accesses done.
pub fn ports() -> u64 {
    let mut count = 0;
    for port in 0..=0xffffu16 {
        // The serial port is how this program talks.
        if (0x3f5..=0x3ff).contains(&port) {
            continue;
        }
        let is_crowded = port < 0x1000 || port > 0xfff0;
        for size in [1, 2, 4] {
            if is_crowded || size == 1 << (port % 3) {
                black_box(read_port(port, size));
                write_port(port, size, HARMLESS);
                count += 2;
            }
        }
    }
    for &base in &WILD {
        port_to(0x71, base, 80);
        count += 80;
    }
    count
}

/// Model-specific registers of all ranges, with values that let the program run on; accesses that were refused.
pub fn registers() -> u64 {
    let before = faults();
    let ranges = [
        0..0x2000,
        0x4000_0000..0x4000_0100,
        0x4b56_4d00..0x4b56_4d10,
        0xc000_0000..0xc000_2000,
        0xc001_0000..0xc001_2000,
    ];
    for msr in ranges.into_iter().flatten() {
        let old = try_read_msr(msr);
        // The interrupt command register could ask for INIT, a reset: mode 0 with vector 0 asks for nothing. Ends of
        // memory are for the clocks, which the machine writes.
        for value in [u64::MAX, (32 << 20) - 16 | 1, 1 << 40 | 1, 0x8000_0000_0000_0000] {
            if msr != 0x830 {
                try_write_msr(msr, value);
            }
        }
        try_write_msr(msr, old.unwrap_or(0));
    }
    faults() - before
}

/// Descriptors that point outside memory or make no sense, on queue 0 of `device`; how often the device gave up, and
/// how often it answered.
pub fn queues(device: &Device) -> (u32, u32) {
    let (mut given_up, mut answered) = (0, 0);
    let mut attempt = |prepare: &dyn Fn(&Rings) -> u16| {
        restart(device);
        let head = prepare(&RINGS);
        let is_back = submit_briefly(device, head);
        given_up += u32::from(device.needs_reset());
        answered += u32::from(is_back);
    };
    for &wild in &[WILD[0] - 8, WILD[2], WILD[4], WILD[6], 1 << 50, u64::MAX - 7] {
        attempt(&|rings| request(rings, (wild, 16), (BUFFER, 512), SCRATCH + 16));
        attempt(&|rings| request(rings, (SCRATCH, 16), (wild, 512), SCRATCH + 16));
        attempt(&|rings| request(rings, (SCRATCH, 16), (BUFFER, 512), wild));
        attempt(&|rings| {
            describe(rings.table, 0, wild, 64, INDIRECT, 0);
            0
        });
    }
    attempt(&|rings| request(rings, (SCRATCH, 16), (BUFFER, u32::MAX), SCRATCH + 16));
    attempt(&|rings| request(rings, (SCRATCH, u32::MAX), (BUFFER, 0), SCRATCH + 16));
    // A loop, an over-long chain, indices outside the table, nested tables, a bad order.
    attempt(&|rings| {
        describe(rings.table, 0, BUFFER, 16, NEXT | WRITE, 0);
        0
    });
    attempt(&|rings| {
        for index in 0..SIZE {
            describe(rings.table, index, BUFFER, 16, NEXT | WRITE, (index + 1) % SIZE);
        }
        describe(rings.table, SIZE - 1, BUFFER, 16, WRITE, 0);
        0
    });
    attempt(&|rings| {
        describe(rings.table, 0, BUFFER, 16, NEXT | WRITE, 0xffff);
        0
    });
    attempt(&|_| 0xffff);
    attempt(&|rings| {
        describe(rings.table, 0, BUFFER, 32, INDIRECT, 0);
        describe(BUFFER, 0, BUFFER, 32, INDIRECT, 0);
        0
    });
    attempt(&|rings| {
        describe(rings.table, 0, BUFFER, 16, NEXT | WRITE, 1);
        describe(rings.table, 1, BUFFER, 16, 0, 0);
        0
    });
    (given_up, answered)
}

/// Rings where no memory is, and an available index that has run away.
pub fn rings(device: &Device) -> u32 {
    let mut given_up = 0;
    for wild in [WILD[0], WILD[3], WILD[7], u64::MAX - 0xfff] {
        for position in 0..3 {
            let mut rings = RINGS;
            *[&mut rings.table, &mut rings.available, &mut rings.used][position] = wild;
            clear(&RINGS);
            device.start(&[rings; 4]);
            request(&RINGS, (SCRATCH, 16), (BUFFER, 512), SCRATCH + 16);
            submit_briefly(device, 0);
            given_up += u32::from(device.needs_reset());
        }
    }
    restart(device);
    write_wild(RINGS.available + 2, 2, 0x8000);
    device.notify(0);
    given_up + u32::from(device.needs_reset())
}

/// Page numbers that are not this machine's, given to the balloon by all its queues; whether it still works.
pub fn balloon(device: &Device) -> bool {
    for queue in 0..4 {
        restart(device);
        for index in 0..128u64 {
            let page =
                [32u64 << 8, 0xfec00, 0xfee00, u64::from(u32::MAX), 0xa_0000][index as usize % 5];
            write_wild(BUFFER + 4 * index, 4, page + index / 64);
        }
        let flags = if queue == 3 { WRITE } else { 0 };
        describe(RINGS.table, 0, BUFFER, 512, flags, 0);
        submit(device, queue, &RINGS, 0);
        // Free pages far outside, reported as the driver's own.
        describe(RINGS.table, 1, WILD[1], 1 << 20, WRITE, 0);
        submit(device, queue, &RINGS, 1);
    }
    restart(device);
    set_word(SPARE, 0x1234);
    write_wild(BUFFER, 4, SPARE >> 12);
    describe(RINGS.table, 0, BUFFER, 4, 0, 0);
    let is_back = submit(device, 0, &RINGS, 0);
    is_back && word(SPARE) == 0
}

/// Moves a device's registers over memory and out of every window; whether memory and device are what they were.
pub fn windows(device: &Device) -> bool {
    let old = read_config(device.number, 0x10);
    set_word(SPARE + 0x8000, 77);
    for place in [SPARE as u32 + 0x8000, 0, 0xfec0_0000, 0xfee0_0000, 0xffff_8000] {
        write_config(device.number, 0x10, place);
        write_wild(u64::from(place.max(SPARE as u32)) + 0x14, 1, 0);
    }
    let is_memory = word(SPARE + 0x8000) == 77;
    write_config(device.number, 0x10, old);
    is_memory && read_wild(device.bar + 0x12, 2) != 0xffff
}

/// Requests as a driver makes them, after everything else: what is written is read back.
pub fn well_behaved(device: &Device) -> bool {
    restart(device);
    for at in (BUFFER..BUFFER + 512).step_by(8) {
        set_word(at, at ^ 0x600d_600d);
    }
    let written = disk(device, &RINGS, SCRATCH, 1, 5, (BUFFER, 512));
    let read = disk(device, &RINGS, SCRATCH, 0, 5, (SPARE, 512));
    let is_same = (0..512).step_by(8).all(|at| word(SPARE + at) == (BUFFER + at) ^ 0x600d_600d);
    // Behind the end of the disk is an error, not somebody else's sector.
    let beyond = disk(device, &RINGS, SCRATCH, 0, u64::MAX - 3, (SPARE, 512));
    let next = disk(device, &RINGS, SCRATCH, 1, (1 << 20) / 512 * 16, (SPARE, 512));
    (written, read, beyond, next, is_same) == (0, 0, 1, 1, true)
}

/// Starts the device with empty rings: its queues take turns, so they have the same.
fn restart(device: &Device) {
    clear(&RINGS);
    device.start(&[RINGS; 4]);
}

fn request(rings: &Rings, header: (u64, u32), data: (u64, u32), status: u64) -> u16 {
    set_word(SCRATCH, 0);
    set_word(SCRATCH + 8, 0);
    describe(rings.table, 0, header.0, header.1, NEXT, 1);
    describe(rings.table, 1, data.0, data.1, NEXT | WRITE, 2);
    describe(rings.table, 2, status, 1, WRITE, 0);
    0
}

/// As `submit`, for requests that a device may refuse to answer.
fn submit_briefly(device: &Device, head: u16) -> bool {
    write_wild(RINGS.available + 4, 2, u64::from(head));
    write_wild(RINGS.available + 2, 2, 1);
    device.notify(0);
    (0..60).any(|_| device.needs_reset() || read_wild(RINGS.used + 2, 2) == 1)
}
