//! Split virtqueue, device side (virtio 1.2, section 2.7).
//!
//! All ring contents are the guest's. Chains are followed for at most the queue's size, every index is
//! checked, and a broken ring is an error that stops the device, not the server.

use crate::guest_memory::{GuestMemory, OutOfRam};
use heapless::Vec;

/// Largest queue offered, in descriptors.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// Most segments of one chain: a block request of 16 pages with header and status, or 32 reported ranges.
pub const CHAIN_MAX: usize = 40;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;

/// Why a queue cannot be used any further. The device then needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring or table lies outside RAM.
    OutOfRam,
    /// A descriptor index is not below the table's size.
    BadIndex,
    /// A chain loops or has more than [`CHAIN_MAX`] segments.
    TooLong,
    /// The driver claims more available chains than the queue has entries.
    Overrun,
    /// An indirect table is nested, chained on, or of a wrong size.
    BadIndirect,
    /// A device-readable segment follows a device-writable one.
    BadOrder,
}

impl From<OutOfRam> for QueueError {
    fn from(_: OutOfRam) -> Self {
        Self::OutOfRam
    }
}

/// One run of guest memory in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address; not yet checked against RAM.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A chain the driver made available. It is large, so it is filled in place and not moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Head descriptor, which names the chain when it is returned.
    pub head: u16,
    /// Segments the device reads.
    pub readable: Vec<Segment, CHAIN_MAX>,
    /// Segments the device writes.
    pub writable: Vec<Segment, CHAIN_MAX>,
}

/// One virtqueue.
#[derive(Clone, Debug)]
pub struct Queue {
    max: u16,
    /// Entries in use: a power of two up to `max`.
    pub size: u16,
    /// The driver has enabled it.
    pub is_ready: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring ("driver area").
    pub driver: u64,
    /// Used ring ("device area").
    pub device: u64,
    /// MSI-X vector, or 0xffff for none.
    pub vector: u16,
    uses_event_index: bool,
    next_avail: u16,
    next_used: u16,
    signalled_used: Option<u16>,
}

impl Queue {
    /// An idle queue of at most `max` entries.
    pub const fn new(max: u16) -> Self {
        Self {
            max,
            size: max,
            is_ready: false,
            desc: 0,
            driver: 0,
            device: 0,
            vector: 0xffff,
            uses_event_index: false,
            next_avail: 0,
            next_used: 0,
            signalled_used: None,
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    /// The driver chooses a size; anything but a power of two up to the maximum is ignored.
    pub fn set_size(&mut self, size: u16) {
        if !self.is_ready && size.is_power_of_two() && size <= self.max {
            self.size = size;
        }
    }

    /// The driver enables the queue after feature negotiation.
    pub fn enable(&mut self, uses_event_index: bool) {
        self.is_ready = true;
        self.uses_event_index = uses_event_index;
    }

    /// Takes the next available chain into `chain`; false if there is none.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the rings are broken. What `chain` holds then is of no use.
    pub fn pop(
        &mut self,
        memory: &impl GuestMemory,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        if !self.is_ready {
            return Ok(false);
        }
        let available = memory.read_u16(self.driver.saturating_add(2))?;
        let waiting = available.wrapping_sub(self.next_avail);
        if waiting == 0 {
            return Ok(false);
        }
        if waiting > self.size {
            return Err(QueueError::Overrun);
        }
        let entry = u64::from(self.next_avail & (self.size - 1));
        let head = memory.read_u16(self.driver.saturating_add(4 + 2 * entry))?;
        self.walk(memory, head, chain)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Asks the driver to notify again at the next chain, and tells whether one came meanwhile.
    ///
    /// # Errors
    ///
    /// [`QueueError::OutOfRam`] if the used ring is not in RAM.
    pub fn rearm(&mut self, memory: &mut impl GuestMemory) -> Result<(), QueueError> {
        if self.is_ready && self.uses_event_index {
            let at = self.device.saturating_add(4 + 8 * u64::from(self.size));
            memory.write(at, &self.next_avail.to_le_bytes())?;
        }
        Ok(())
    }

    /// Returns chain `head` with `written` bytes written.
    ///
    /// # Errors
    ///
    /// [`QueueError::OutOfRam`] if the used ring is not in RAM.
    pub fn push_used(
        &mut self,
        memory: &mut impl GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        if !self.is_ready {
            return Ok(());
        }
        let entry = u64::from(self.next_used & (self.size - 1));
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        bytes[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(self.device.saturating_add(4 + 8 * entry), &bytes)?;
        self.next_used = self.next_used.wrapping_add(1);
        memory.write(self.device.saturating_add(2), &self.next_used.to_le_bytes())?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was returned since the last one.
    ///
    /// # Errors
    ///
    /// [`QueueError::OutOfRam`] if the available ring is not in RAM.
    pub fn wants_interrupt(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueError> {
        if !self.is_ready || self.signalled_used == Some(self.next_used) {
            return Ok(false);
        }
        let old = self.signalled_used.replace(self.next_used);
        if !self.uses_event_index {
            return Ok(memory.read_u16(self.driver)? & AVAIL_NO_INTERRUPT == 0);
        }
        let event = memory.read_u16(self.driver.saturating_add(4 + 2 * u64::from(self.size)))?;
        // Before the first interrupt nothing is known of what the driver saw: signal.
        let Some(old) = old else { return Ok(true) };
        let new = self.next_used;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    fn walk(
        &self,
        memory: &impl GuestMemory,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        let mut table = self.desc;
        let mut entries = u32::from(self.size);
        let mut index = u32::from(head);
        let mut is_indirect = false;
        // The bound on segments also ends loops; empty segments are counted apart.
        for _ in 0..=2 * CHAIN_MAX {
            if index >= entries {
                return Err(QueueError::BadIndex);
            }
            let mut raw = [0; 16];
            memory.read(table.saturating_add(16 * u64::from(index)), &mut raw)?;
            let (gpa, len, flags, next) = split_descriptor(&raw);
            if flags & DESC_INDIRECT != 0 {
                if is_indirect || flags & DESC_NEXT != 0 || len == 0 || len % 16 != 0 {
                    return Err(QueueError::BadIndirect);
                }
                is_indirect = true;
                table = gpa;
                entries = (len / 16).min(u32::from(u16::MAX));
                index = 0;
                continue;
            }
            if flags & DESC_WRITE == 0 && !chain.writable.is_empty() {
                return Err(QueueError::BadOrder);
            }
            let list =
                if flags & DESC_WRITE != 0 { &mut chain.writable } else { &mut chain.readable };
            list.push(Segment { gpa, len }).map_err(|_| QueueError::TooLong)?;
            if flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = u32::from(next);
        }
        Err(QueueError::TooLong)
    }
}

fn split_descriptor(raw: &[u8; 16]) -> (u64, u32, u16, u16) {
    let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *raw;
    (
        u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        u32::from_le_bytes([l0, l1, l2, l3]),
        u16::from_le_bytes([f0, f1]),
        u16::from_le_bytes([n0, n1]),
    )
}

/// A driver's side of a queue in test memory.
#[cfg(any(test, feature = "model"))]
#[expect(clippy::unwrap_used, reason = "the driver's rings are where its owner put them, in RAM")]
pub mod driver {
    use super::{DESC_NEXT, DESC_WRITE, QUEUE_SIZE_MAX, Queue};
    use crate::guest_memory::{GuestMemory, VecMemory};

    /// Rings at fixed places of a page-aligned area.
    #[derive(Debug)]
    pub struct Driver {
        /// Descriptor table.
        pub desc: u64,
        /// Available ring.
        pub avail: u64,
        /// Used ring.
        pub used: u64,
        /// Entries.
        pub size: u16,
        next_desc: u16,
        avail_index: u16,
        used_index: u16,
    }

    impl Driver {
        /// Rings of `size` entries from `base` on.
        pub fn new(base: u64, size: u16) -> Self {
            Self {
                desc: base,
                avail: base + 0x1000,
                used: base + 0x2000,
                size,
                next_desc: 0,
                avail_index: 0,
                used_index: 0,
            }
        }

        /// Makes a chain of (address, length, device-writable) available; returns its head.
        pub fn offer(&mut self, memory: &mut VecMemory, parts: &[(u64, u32, bool)]) -> u16 {
            let head = self.next_desc;
            for (position, &(gpa, len, is_writable)) in parts.iter().enumerate() {
                let last = position + 1 == parts.len();
                let next = (self.next_desc + 1) % self.size;
                let flags =
                    if is_writable { DESC_WRITE } else { 0 } | if last { 0 } else { DESC_NEXT };
                self.put(memory, self.next_desc, gpa, len, flags, next);
                self.next_desc = next;
            }
            self.publish(memory, head);
            head
        }

        /// Writes one raw descriptor.
        pub fn put(
            &self,
            memory: &mut VecMemory,
            index: u16,
            gpa: u64,
            len: u32,
            flags: u16,
            next: u16,
        ) {
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&gpa.to_le_bytes());
            raw[8..12].copy_from_slice(&len.to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&next.to_le_bytes());
            memory.write(self.desc + 16 * u64::from(index), &raw).unwrap();
        }

        /// Puts `head` into the available ring.
        pub fn publish(&mut self, memory: &mut VecMemory, head: u16) {
            let entry = u64::from(self.avail_index % self.size);
            memory.write(self.avail + 4 + 2 * entry, &head.to_le_bytes()).unwrap();
            self.avail_index = self.avail_index.wrapping_add(1);
            memory.write(self.avail + 2, &self.avail_index.to_le_bytes()).unwrap();
        }

        /// The next returned chain: head and length.
        pub fn take(&mut self, memory: &VecMemory) -> Option<(u32, u32)> {
            if memory.read_u16(self.used + 2).unwrap() == self.used_index {
                return None;
            }
            let at = self.used + 4 + 8 * u64::from(self.used_index % self.size);
            self.used_index = self.used_index.wrapping_add(1);
            Some((memory.read_u32(at).unwrap(), memory.read_u32(at + 4).unwrap()))
        }

        /// The device's side of the same rings.
        pub fn queue(&self, uses_event_index: bool) -> Queue {
            let mut queue = Queue::new(QUEUE_SIZE_MAX);
            queue.set_size(self.size);
            (queue.desc, queue.driver, queue.device) = (self.desc, self.avail, self.used);
            queue.enable(uses_event_index);
            queue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::driver::Driver;
    use super::*;
    use crate::guest_memory::VecMemory;

    fn pop(queue: &mut Queue, memory: &VecMemory) -> Result<Option<Chain>, QueueError> {
        let mut chain = Chain::default();
        let is_there = queue.pop(memory, &mut chain)?;
        Ok(is_there.then_some(chain))
    }

    fn setup(event: bool) -> (VecMemory, Driver, Queue) {
        let driver = Driver::new(0x1000, 8);
        let queue = driver.queue(event);
        (VecMemory::new(0x10000), driver, queue)
    }

    #[test]
    fn chains_travel_both_ways_many_times() {
        let (mut memory, mut driver, mut queue) = setup(false);
        for round in 0..100_000u32 {
            let head = driver.offer(&mut memory, &[(0x8000, 16, false), (0x9000, 64, true)]);
            let chain = pop(&mut queue, &memory).unwrap().unwrap();
            assert_eq!(chain.head, head);
            assert_eq!(chain.readable[0], Segment { gpa: 0x8000, len: 16 });
            assert_eq!(chain.writable[0], Segment { gpa: 0x9000, len: 64 });
            queue.push_used(&mut memory, head, round).unwrap();
            assert_eq!(queue.wants_interrupt(&memory), Ok(true));
            assert_eq!(driver.take(&memory), Some((u32::from(head), round)));
        }
        assert_eq!(pop(&mut queue, &memory), Ok(None));
    }

    #[test]
    fn event_index_suppresses_interrupts() {
        let (mut memory, mut driver, mut queue) = setup(true);
        for _ in 0..4 {
            driver.offer(&mut memory, &[(0x8000, 16, true)]);
        }
        let event = driver.avail + 4 + 16;
        memory.write(event, &2u16.to_le_bytes()).unwrap();
        for expected in [true, false, true, false] {
            let head = pop(&mut queue, &memory).unwrap().unwrap().head;
            queue.push_used(&mut memory, head, 0).unwrap();
            assert_eq!(queue.wants_interrupt(&memory), Ok(expected));
        }
        queue.rearm(&mut memory).unwrap();
        assert_eq!(memory.read_u16(driver.used + 4 + 64), Ok(4));
    }

    #[test]
    fn indirect_tables_are_followed() {
        let (mut memory, mut driver, mut queue) = setup(false);
        let mut table = Driver::new(0x1000, 8);
        table.desc = 0x7000;
        table.put(&mut memory, 0, 0x8000, 16, DESC_NEXT, 1);
        table.put(&mut memory, 1, 0x9000, 512, DESC_WRITE, 0);
        driver.put(&mut memory, 3, 0x7000, 32, DESC_INDIRECT, 0);
        driver.publish(&mut memory, 3);
        let chain = pop(&mut queue, &memory).unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
        driver.put(&mut memory, 3, 0x7000, 31, DESC_INDIRECT, 0);
        driver.publish(&mut memory, 3);
        assert_eq!(pop(&mut queue, &memory), Err(QueueError::BadIndirect));
    }

    #[test]
    fn hostile_rings_are_errors() {
        let (mut memory, mut driver, mut queue) = setup(false);
        driver.put(&mut memory, 0, 0x8000, 16, DESC_NEXT, 0);
        driver.publish(&mut memory, 0);
        assert_eq!(pop(&mut queue, &memory), Err(QueueError::TooLong), "a loop");

        let (mut memory, mut driver, mut queue) = setup(false);
        driver.publish(&mut memory, 99);
        assert_eq!(pop(&mut queue, &memory), Err(QueueError::BadIndex));

        let (mut memory, driver, mut queue) = setup(false);
        memory.write(driver.avail + 2, &9u16.to_le_bytes()).unwrap();
        assert_eq!(pop(&mut queue, &memory), Err(QueueError::Overrun));

        let (mut memory, mut driver, mut queue) = setup(false);
        driver.offer(&mut memory, &[(0, 4, true), (0, 4, false)]);
        assert_eq!(pop(&mut queue, &memory), Err(QueueError::BadOrder));

        let (memory, _, mut queue) = setup(false);
        for wild in [u64::MAX, u64::MAX - 3, 0x10000, 0xfffe] {
            queue.driver = wild;
            assert!(pop(&mut queue, &memory).is_err(), "{wild:#x}");
        }
    }

    #[test]
    fn random_memory_never_breaks_the_device() {
        let mut seed = 11u64;
        let mut memory = VecMemory::new(0x4000);
        for _ in 0..3000 {
            for byte in &mut memory.0 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = (seed >> (seed >> 61)) as u8 & if seed & 0x700 == 0 { 0xff } else { 0x07 };
            }
            let mut queue = Driver::new(0, 16).queue(seed & 1 != 0);
            queue.driver = seed >> 48;
            for _ in 0..20 {
                match pop(&mut queue, &memory) {
                    Ok(Some(chain)) => drop(queue.push_used(&mut memory, chain.head, 7)),
                    Ok(None) | Err(_) => break,
                }
            }
            let _ = queue.wants_interrupt(&memory);
        }
    }
}
