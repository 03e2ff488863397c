//! A driver for virtio over PCI that can be told to lie.

use crate::hardware::{read_port, read_wild, set_word, word, write_port, write_wild};

/// Descriptor goes on at `next`.
pub const NEXT: u16 = 1;
/// The device writes this buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Descriptors of a queue.
pub const SIZE: u16 = 64;
/// Configuration register of the MSI-X capability, and offset of its table in BAR 0, on this machine.
const MSIX: u8 = 0x40;
const MSIX_TABLE: u64 = 0x4000;
const STATUS_NEEDS_RESET: u8 = 0x40;
/// Looks at a used ring before a request counts as never answered.
const PATIENCE: u32 = 50_000_000;

/// Where the rings of a queue are.
#[derive(Clone, Copy)]
pub struct Rings {
    /// Descriptor table.
    pub table: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

impl Rings {
    /// Three pages from `at` on.
    pub const fn at(at: u64) -> Self {
        Self { table: at, available: at + 0x1000, used: at + 0x2000 }
    }
}

/// A function on bus 0.
#[derive(Clone, Copy)]
pub struct Device {
    /// Its number.
    pub number: u8,
    /// virtio device type: 2 disk, 4 entropy, 5 balloon.
    pub kind: u16,
    /// Address of BAR 0.
    pub bar: u64,
    common: u64,
    notify: u64,
}

/// Reads a configuration register (byte offset).
pub fn read_config(number: u8, register: u8) -> u32 {
    write_port(0xcf8, 4, 1 << 31 | u32::from(number) << 11 | u32::from(register & !3));
    read_port(0xcfc, 4)
}

/// Writes a configuration register.
pub fn write_config(number: u8, register: u8, value: u32) {
    write_port(0xcf8, 4, 1 << 31 | u32::from(number) << 11 | u32::from(register & !3));
    write_port(0xcfc, 4, value);
}

impl Device {
    /// The first function of type `kind`.
    pub fn find(kind: u16) -> Option<Self> {
        (1..32).find_map(|number| {
            let identity = read_config(number, 0);
            if identity != 0x1af4 | (0x1040 + u32::from(kind)) << 16 {
                return None;
            }
            let bar = u64::from(read_config(number, 0x10) & !0xf);
            let (mut common, mut notify) = (0, 0);
            let mut at = read_config(number, 0x34) as u8;
            while at != 0 {
                let head = read_config(number, at);
                let offset = u64::from(read_config(number, at + 8));
                match (head as u8, head >> 24) {
                    (9, 1) => common = bar + offset,
                    (9, 2) => notify = bar + offset,
                    _ => {}
                }
                at = (head >> 8) as u8;
            }
            Some(Self { number, kind, bar, common, notify })
        })
    }

    /// Resets the device and starts it with `rings[index]` as its queues.
    pub fn start(&self, rings: &[Rings]) {
        write_wild(self.common + 0x14, 1, 0);
        write_wild(self.common + 0x14, 1, 3);
        // VERSION_1 and indirect descriptors; for the balloon statistics and reporting too.
        let own = if self.kind == 5 { 1 << 1 | 1 << 5 } else { 0 };
        for (select, value) in [(0, 1 << 28 | own), (1, 1)] {
            write_wild(self.common + 8, 4, select);
            write_wild(self.common + 0xc, 4, value);
        }
        write_wild(self.common + 0x14, 1, 0xb);
        for (index, rings) in (0u64..).zip(rings) {
            write_wild(self.common + 0x16, 2, index);
            write_wild(self.common + 0x18, 2, u64::from(SIZE));
            for (at, address) in [(0x20, rings.table), (0x28, rings.available), (0x30, rings.used)]
            {
                write_wild(self.common + at, 4, address & 0xffff_ffff);
                write_wild(self.common + at + 4, 4, address >> 32);
            }
            write_wild(self.common + 0x1c, 2, 1);
        }
        write_wild(self.common + 0x14, 1, 0xf);
    }

    /// Has queue 0 of a started device say by a message that it is done: interrupt `vector` of the first processor.
    pub fn interrupt_by(&self, vector: u8) {
        for (at, value) in [(0, 0xfee0_0000), (4, 0), (8, u32::from(vector)), (12, 0)] {
            write_wild(self.bar + MSIX_TABLE + at, 4, u64::from(value));
        }
        let head = read_config(self.number, MSIX);
        write_config(self.number, MSIX, head | 1 << 31);
        write_wild(self.common + 0x16, 2, 0);
        write_wild(self.common + 0x1a, 2, 0);
    }

    /// Rings the bell of queue `index`.
    pub fn notify(&self, index: u64) {
        write_wild(self.notify + 4 * index, 2, index);
    }

    /// Whether the device has given up on its driver.
    pub fn needs_reset(&self) -> bool {
        read_wild(self.common + 0x14, 1) as u8 & STATUS_NEEDS_RESET != 0
    }
}

/// Puts one descriptor.
pub fn describe(table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
    let at = table + 16 * u64::from(index);
    set_word(at, address);
    set_word(at + 8, u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48);
}

/// Clears rings that are in memory.
pub fn clear(rings: &Rings) {
    for at in (rings.table..rings.used + 0x1000).step_by(8) {
        set_word(at, 0);
    }
}

/// Makes `head` available as the next of rings and rings the bell of queue `index`; the used index when it is back.
pub fn start(device: &Device, index: u64, rings: &Rings, head: u16) -> u16 {
    let before = read_wild(rings.available + 2, 2) as u16;
    let entry = u64::from(before % SIZE);
    write_wild(rings.available + 4 + 2 * entry, 2, u64::from(head));
    write_wild(rings.available + 2, 2, u64::from(before.wrapping_add(1)));
    device.notify(index);
    before.wrapping_add(1)
}

/// The used index: requests that came back.
pub fn used(rings: &Rings) -> u16 {
    read_wild(rings.used + 2, 2) as u16
}

/// Makes `head` available as the next of cleared rings and rings the bell of queue `index`; whether it came back.
pub fn submit(device: &Device, index: u64, rings: &Rings, head: u16) -> bool {
    let end = start(device, index, rings, head);
    (0..PATIENCE).any(|_| used(rings) == end)
}

/// Puts the three descriptors of a disk request of one buffer: header and status at `scratch`.
pub fn describe_disk(rings: &Rings, scratch: u64, kind: u64, sector: u64, buffer: (u64, u32)) {
    set_word(scratch, kind);
    set_word(scratch + 8, sector);
    set_word(scratch + 16, 0xff);
    let direction = if kind == 0 { WRITE } else { 0 };
    describe(rings.table, 0, scratch, 16, NEXT, 1);
    describe(rings.table, 1, buffer.0, buffer.1, NEXT | direction, 2);
    describe(rings.table, 2, scratch + 16, 1, WRITE, 0);
}

/// A disk request of one buffer: header and status at `scratch`; its status byte, 255 if it never came back.
pub fn disk(
    device: &Device,
    rings: &Rings,
    scratch: u64,
    kind: u64,
    sector: u64,
    buffer: (u64, u32),
) -> u8 {
    describe_disk(rings, scratch, kind, sector, buffer);
    if submit(device, 0, rings, 0) { word(scratch + 16) as u8 } else { 0xff }
}
