//! virtio over PCI, modern interface only (virtio 1.2, section 4.1).
//!
//! BAR 0 holds everything: common configuration at 0, interrupt status at 0x1000, device configuration at
//! 0x2000, notifications at 0x3000 (four bytes per queue), then the MSI-X structures.

use super::balloon::{Balloon, BalloonHost, DEFLATE, F_REPORTING, F_STATS_VQ, INFLATE};
use super::blk::Blk;
use super::queue::{QUEUE_SIZE_MAX, Queue, QueueError};
use super::rng::Rng;
use crate::guest_memory::GuestMemory;
use crate::pci::{BAR_BYTES, ConfigSpace, Identity, MSIX_TABLE, Msis};
use core::sync::atomic::AtomicU64;

const COMMON: u32 = 0;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;

const F_INDIRECT: u64 = 1 << 28;
const F_EVENT_INDEX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

const STATUS_FEATURES_OK: u8 = 8;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_NEEDS_RESET: u8 = 0x40;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

const NO_VECTOR: u16 = 0xffff;
/// Most queues of a device.
pub const QUEUES_MAX: usize = 4;
/// Byte of the configuration access capability in configuration space.
const CAP_ACCESS: u8 = 0xa0;

/// What the world offers a device while it works.
pub trait DeviceHost: BalloonHost {
    /// Shared words of the ring of part `part` of disk `index`.
    fn ring(&self, index: u8, part: u8) -> &[AtomicU64];
    /// Requests wait in that ring.
    fn doorbell(&mut self, index: u8, part: u8);
    /// The balloon's driver came or went.
    fn balloon_ready(&mut self, is_ready: bool);
}

fn ring_doorbells(host: &mut impl DeviceHost, disk: u8, mut parts: u8) {
    while parts != 0 {
        host.doorbell(disk, parts.trailing_zeros() as u8);
        parts &= parts - 1;
    }
}

/// Which device it is.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful per VM, in static memory, never moved")]
pub enum Kind {
    /// Disk with its number.
    Blk(u8, Blk),
    /// Entropy source.
    Rng(Rng),
    /// Memory balloon.
    Balloon(Balloon),
}

impl Kind {
    fn id(&self) -> u16 {
        match self {
            Self::Blk(..) => 2,
            Self::Rng(_) => 4,
            Self::Balloon(_) => 5,
        }
    }

    fn class(&self) -> u32 {
        match self {
            Self::Blk(..) => 0x01_0000,
            Self::Rng(_) | Self::Balloon(_) => 0x00_ff00,
        }
    }

    fn queues(&self) -> usize {
        match self {
            Self::Blk(..) | Self::Rng(_) => 1,
            Self::Balloon(_) => 4,
        }
    }

    fn features(&self) -> u64 {
        let own = match self {
            Self::Blk(_, blk) => blk.features(),
            Self::Rng(_) => 0,
            Self::Balloon(balloon) => balloon.features(),
        };
        own | F_INDIRECT | F_EVENT_INDEX | F_VERSION_1
    }
}

/// One virtio function on the bus.
#[derive(Clone, Debug)]
pub struct VirtioPci {
    /// Its configuration space.
    pub config: ConfigSpace,
    kind: Kind,
    queues: [Queue; QUEUES_MAX],
    queue_count: usize,
    feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    isr: u8,
}

impl VirtioPci {
    /// A device whose BAR firmware put at `bar` and whose INTA is line `line`.
    pub fn new(kind: Kind, bar: u32, line: u8) -> Self {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1040 + kind.id(),
            class: kind.class(),
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let queue_count = kind.queues();
        let mut config = ConfigSpace::device(identity, bar, queue_count as u8 + 1, line);
        // Capability words: id, next, length, type; bar; offset; length; then what the type adds.
        for (at, kind, offset, length) in
            [(0x50, 1u32, COMMON, 0x38), (0x60, 3, ISR, 1), (0x70, 4, DEVICE, 0x100)]
        {
            config.add_capability(at, &[9 | 0x10 << 16 | kind << 24, 0, offset, length]);
        }
        let notify_length = 4 * queue_count as u32;
        config.add_capability(0x80, &[9 | 0x14 << 16 | 2 << 24, 0, NOTIFY, notify_length, 4]);
        config.add_capability(CAP_ACCESS, &[9 | 0x14 << 16 | 5 << 24, 0, 0, 0, 0]);
        let access = usize::from(CAP_ACCESS / 4);
        config.allow(access + 1, 0xff);
        config.allow(access + 2, u32::MAX);
        config.allow(access + 3, u32::MAX);
        Self {
            config,
            kind,
            queues: [const { Queue::new(QUEUE_SIZE_MAX) }; QUEUES_MAX],
            queue_count,
            feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            isr: 0,
        }
    }

    /// The device behind the transport.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Level of INTA.
    pub fn intx_level(&self) -> bool {
        self.isr != 0 && self.config.uses_intx()
    }

    /// Whether `gpa` lies in BAR 0; its offset there.
    #[inline]
    pub fn offset_of(&self, gpa: u64) -> Option<u32> {
        let bar = u64::from(self.config.bar()?);
        let offset = gpa.wrapping_sub(bar);
        (offset < u64::from(BAR_BYTES)).then_some(offset as u32)
    }

    /// The guest reads configuration register `register` (in words).
    pub fn read_config(&mut self, register: usize) -> u32 {
        let access = usize::from(CAP_ACCESS / 4);
        if register == access + 4 {
            let (offset, size) =
                (self.config.register(access + 2), self.config.register(access + 3));
            if matches!(size, 1 | 2 | 4) {
                return self.read(offset, size as u8) as u32;
            }
        }
        self.config.register(register)
    }

    /// The guest writes configuration register `register` under `lanes`.
    pub fn write_config<M: GuestMemory>(
        &mut self,
        register: usize,
        value: u32,
        lanes: u32,
        memory: &mut M,
        host: &mut impl DeviceHost,
        out: &mut Msis,
    ) {
        let access = usize::from(CAP_ACCESS / 4);
        if register == access + 4 {
            let (offset, size) =
                (self.config.register(access + 2), self.config.register(access + 3));
            if matches!(size, 1 | 2 | 4) {
                self.write(offset, size as u8, u64::from(value), memory, host, out);
            }
            return;
        }
        self.config.write(register, value, lanes, out);
    }

    /// The guest reads `size` bytes at `offset` of BAR 0.
    pub fn read(&mut self, offset: u32, size: u8) -> u64 {
        match offset {
            COMMON..ISR => self.read_common(offset, size),
            ISR => u64::from(core::mem::take(&mut self.isr)),
            DEVICE..NOTIFY => {
                let mut value = 0;
                for index in 0..u64::from(size.min(8)) {
                    let at = u64::from(offset - DEVICE) + index;
                    let byte = match &self.kind {
                        Kind::Blk(_, blk) => blk.config(at),
                        Kind::Rng(_) => 0,
                        Kind::Balloon(balloon) => balloon.config(at),
                    };
                    value |= u64::from(byte) << (8 * index);
                }
                value
            }
            MSIX_TABLE.. => {
                let Some(msix) = &self.config.msix else { return 0 };
                let low = u64::from(msix.read(offset & !3)) >> (8 * (offset & 3));
                if size == 8 { low | u64::from(msix.read((offset & !3) + 4)) << 32 } else { low }
            }
            _ => 0,
        }
    }

    /// The guest writes `size` bytes at `offset` of BAR 0.
    pub fn write<M: GuestMemory>(
        &mut self,
        offset: u32,
        size: u8,
        value: u64,
        memory: &mut M,
        host: &mut impl DeviceHost,
        out: &mut Msis,
    ) {
        match offset {
            COMMON..ISR => {
                if size == 8 {
                    self.write_common(offset, 4, value as u32, host);
                    self.write_common(offset + 4, 4, (value >> 32) as u32, host);
                } else {
                    self.write_common(offset, size, value as u32, host);
                }
            }
            DEVICE..NOTIFY => {
                if let Kind::Balloon(balloon) = &mut self.kind {
                    for index in 0..u64::from(size.min(8)) {
                        let at = u64::from(offset - DEVICE) + index;
                        balloon.write_config(at, (value >> (8 * index)) as u8);
                    }
                }
            }
            NOTIFY..MSIX_TABLE => {
                self.notify((offset - NOTIFY) as usize / 4, memory, host, out);
            }
            MSIX_TABLE.. => {
                if let Some(msix) = &mut self.config.msix
                    && offset & 3 == 0
                    && size >= 4
                {
                    msix.write(offset, value as u32, out);
                    if size == 8 {
                        msix.write(offset + 4, (value >> 32) as u32, out);
                    }
                }
            }
            _ => {}
        }
    }

    /// The driver says that queue `index` has chains.
    pub fn notify<M: GuestMemory>(
        &mut self,
        index: usize,
        memory: &mut M,
        host: &mut impl DeviceHost,
        out: &mut Msis,
    ) {
        if self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) != STATUS_DRIVER_OK
            || !self.config.is_bus_master()
        {
            return;
        }
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.is_ready) else { return };
        let result = match &mut self.kind {
            Kind::Blk(number, blk) => {
                let result = blk.process(queue, memory, &|part| host.ring(*number, part));
                result.map(|progress| ring_doorbells(host, *number, progress.doorbells))
            }
            Kind::Rng(rng) => rng.process(queue, memory),
            Kind::Balloon(balloon) => match balloon_queue(self.driver_features, index) {
                BalloonQueue::Pages => balloon.process_pages(index, queue, memory, host),
                BalloonQueue::Statistics => balloon.process_statistics(queue, memory, host),
                BalloonQueue::Reports => Balloon::process_reports(queue, memory, host),
                BalloonQueue::None => Ok(()),
            },
        };
        self.settle(index, result, memory, out);
    }

    /// The io-sched-server completed requests of this disk.
    pub fn disk_completed<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        host: &mut impl DeviceHost,
        out: &mut Msis,
    ) {
        let Kind::Blk(number, blk) = &mut self.kind else { return };
        let result = blk
            .complete(&mut self.queues[0], memory, &|part| host.ring(*number, part))
            .map(|progress| ring_doorbells(host, *number, progress.doorbells));
        self.settle(0, result, memory, out);
    }

    /// The balloon should hold `pages`.
    pub fn set_balloon(&mut self, pages: u32, out: &mut Msis) {
        if let Kind::Balloon(balloon) = &mut self.kind
            && balloon.set_target(pages)
        {
            self.generation = self.generation.wrapping_add(1);
            if self.status & STATUS_DRIVER_OK != 0 {
                self.raise_config(out);
            }
        }
    }

    /// Asks the balloon's driver for statistics.
    pub fn ask_statistics<M: GuestMemory>(&mut self, memory: &mut M, out: &mut Msis) {
        let is_offered =
            self.driver_features & F_STATS_VQ != 0 && self.status & STATUS_DRIVER_OK != 0;
        if let Kind::Balloon(balloon) = &mut self.kind
            && is_offered
        {
            let result = balloon.ask_statistics(&mut self.queues[2], memory).map(|_| ());
            self.settle(2, result, memory, out);
        }
    }

    /// Ends an operation on queue `index`: interrupt if wanted, or the error state.
    fn settle<M: GuestMemory>(
        &mut self,
        index: usize,
        result: Result<(), QueueError>,
        memory: &mut M,
        out: &mut Msis,
    ) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        match result.and_then(|()| queue.wants_interrupt(memory)) {
            Ok(true) => {
                let vector = queue.vector;
                self.raise(ISR_QUEUE, vector, out);
            }
            Ok(false) => {}
            Err(_) => {
                self.status |= STATUS_NEEDS_RESET;
                self.raise_config(out);
            }
        }
    }

    fn raise_config(&mut self, out: &mut Msis) {
        let vector = self.config_vector;
        self.raise(ISR_CONFIG, vector, out);
    }

    fn raise(&mut self, cause: u8, vector: u16, out: &mut Msis) {
        match &mut self.config.msix {
            Some(msix) if msix.is_enabled() => {
                if let Some(message) = msix.fire(vector) {
                    let _ = out.push(message);
                }
            }
            _ => self.isr |= cause,
        }
    }

    fn reset(&mut self, host: &mut impl DeviceHost) {
        for queue in &mut self.queues {
            queue.reset();
        }
        match &mut self.kind {
            Kind::Blk(_, blk) => blk.reset(),
            Kind::Rng(_) => {}
            Kind::Balloon(balloon) => {
                balloon.reset();
                if self.status & STATUS_DRIVER_OK != 0 {
                    host.balloon_ready(false);
                }
            }
        }
        self.feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        self.isr = 0;
    }

    fn selected(&self) -> Option<&Queue> {
        let index = usize::from(self.queue_select);
        self.queues.get(index).filter(|_| index < self.queue_count)
    }

    fn read_common(&self, offset: u32, size: u8) -> u64 {
        let queue = self.selected();
        let address = |pick: fn(&Queue) -> u64| queue.map_or(0, pick);
        let (start, value): (u32, u64) = match offset {
            0x00..0x04 => (0x00, u64::from(self.feature_select)),
            0x04..0x08 => {
                let word = match self.feature_select {
                    0 => self.kind.features() & 0xffff_ffff,
                    1 => self.kind.features() >> 32,
                    _ => 0,
                };
                (0x04, word)
            }
            0x08..0x0c => (0x08, u64::from(self.driver_feature_select)),
            0x0c..0x10 => {
                let word = match self.driver_feature_select {
                    0 => self.driver_features & 0xffff_ffff,
                    1 => self.driver_features >> 32,
                    _ => 0,
                };
                (0x0c, word)
            }
            0x10..0x14 => (0x10, u64::from(self.config_vector) | (self.queue_count as u64) << 16),
            0x14..0x18 => (
                0x14,
                u64::from(self.status)
                    | u64::from(self.generation) << 8
                    | u64::from(self.queue_select) << 16,
            ),
            0x18..0x1c => {
                let word = queue.map_or(0, |q| u64::from(q.size) | u64::from(q.vector) << 16);
                (0x18, word)
            }
            0x1c..0x20 => {
                let word =
                    queue.map_or(0, |q| u64::from(q.is_ready) | u64::from(self.queue_select) << 16);
                (0x1c, word)
            }
            0x20..0x28 => (0x20, address(|q| q.desc)),
            0x28..0x30 => (0x28, address(|q| q.driver)),
            0x30..0x38 => (0x30, address(|q| q.device)),
            _ => return 0,
        };
        let _ = size;
        value >> (8 * (offset - start))
    }

    fn write_common(&mut self, offset: u32, size: u8, value: u32, host: &mut impl DeviceHost) {
        let index = usize::from(self.queue_select);
        let vectors = self.config.msix.as_ref().map_or(0, |msix| u16::from(msix.count()));
        // A vector that does not exist reads back as "none" (virtio 1.2, 4.1.5.1.2.1).
        let vector = if value < u32::from(vectors) { value as u16 } else { NO_VECTOR };
        match (offset, size) {
            (0x00, 4) => self.feature_select = value,
            (0x08, 4) => self.driver_feature_select = value,
            (0x0c, 4) if self.status & STATUS_FEATURES_OK == 0 => {
                let offered = self.kind.features();
                match self.driver_feature_select {
                    0 => {
                        self.driver_features =
                            self.driver_features & !0xffff_ffff | u64::from(value) & offered;
                    }
                    1 => {
                        self.driver_features =
                            self.driver_features & 0xffff_ffff | (u64::from(value) << 32) & offered;
                    }
                    _ => {}
                }
            }
            (0x10, 2) => self.config_vector = vector,
            (0x14, 1) => self.set_status(value as u8, host),
            (0x16, 2) => self.queue_select = value as u16,
            _ if index < self.queue_count => self.write_queue(index, offset, size, value, vector),
            _ => {}
        }
    }

    fn write_queue(&mut self, index: usize, offset: u32, size: u8, value: u32, vector: u16) {
        let uses_event_index = self.driver_features & F_EVENT_INDEX != 0;
        let Some(queue) = self.queues.get_mut(index) else { return };
        if (offset, size) == (0x1a, 2) {
            queue.vector = vector;
            return;
        }
        // Everything else is fixed once the queue is enabled.
        if queue.is_ready {
            return;
        }
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match (offset, size) {
            (0x18, 2) => queue.set_size(value as u16),
            (0x1c, 2) if value == 1 => queue.enable(uses_event_index),
            (0x20, 4) => queue.desc = low(queue.desc),
            (0x24, 4) => queue.desc = high(queue.desc),
            (0x28, 4) => queue.driver = low(queue.driver),
            (0x2c, 4) => queue.driver = high(queue.driver),
            (0x30, 4) => queue.device = low(queue.device),
            (0x34, 4) => queue.device = high(queue.device),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8, host: &mut impl DeviceHost) {
        if value == 0 {
            self.reset(host);
            return;
        }
        let mut value = value | self.status & STATUS_NEEDS_RESET;
        // The legacy layout is not spoken: without VERSION_1 the features are not accepted.
        if self.driver_features & F_VERSION_1 == 0 {
            value &= !STATUS_FEATURES_OK;
        }
        let became_ready = value & !self.status & STATUS_DRIVER_OK != 0;
        self.status = value;
        if became_ready && matches!(self.kind, Kind::Balloon(_)) {
            host.balloon_ready(true);
        }
    }
}

enum BalloonQueue {
    Pages,
    Statistics,
    Reports,
    None,
}

/// Queues that were not negotiated have no number: those behind them move up.
fn balloon_queue(features: u64, index: usize) -> BalloonQueue {
    let has_statistics = features & F_STATS_VQ != 0;
    let reports = if has_statistics { 3 } else { 2 };
    match index {
        INFLATE | DEFLATE => BalloonQueue::Pages,
        2 if has_statistics => BalloonQueue::Statistics,
        _ if index == reports && features & F_REPORTING != 0 => BalloonQueue::Reports,
        _ => BalloonQueue::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::VecMemory;
    use crate::pci::{Msi, WINDOW_START};
    use crate::virtio::queue::driver::Driver;
    use protocol::mem::{GfnRange, GuestStats};

    #[derive(Default)]
    struct Host {
        ready: std::vec::Vec<bool>,
    }

    impl BalloonHost for Host {
        fn release(&mut self, _: bool, _: &[GfnRange]) {}
        fn deflate(&mut self, _: &[GfnRange]) {}
        fn statistics(&mut self, _: GuestStats) {}
    }

    impl DeviceHost for Host {
        fn ring(&self, _: u8, _: u8) -> &[AtomicU64] {
            &[]
        }
        fn doorbell(&mut self, _: u8, _: u8) {}
        fn balloon_ready(&mut self, is_ready: bool) {
            self.ready.push(is_ready);
        }
    }

    struct Bench {
        device: VirtioPci,
        memory: VecMemory,
        host: Host,
        out: Msis,
    }

    impl Bench {
        fn new(kind: Kind) -> Self {
            Self {
                device: VirtioPci::new(kind, WINDOW_START, 10),
                memory: VecMemory::new(0x10000),
                host: Host::default(),
                out: Msis::new(),
            }
        }

        fn write(&mut self, offset: u32, size: u8, value: u64) {
            self.device.write(offset, size, value, &mut self.memory, &mut self.host, &mut self.out);
        }

        fn start(&mut self, driver: &Driver) {
            self.write(0x14, 1, 3);
            for word in 0..2u64 {
                self.write(0x00, 4, word);
                let features = self.device.read(0x04, 4);
                self.write(0x08, 4, word);
                self.write(0x0c, 4, features & 0xffff_ffff);
            }
            self.write(0x14, 1, 0xb);
            assert_eq!(self.device.read(0x14, 1) & 0xff, 0xb);
            self.write(0x16, 2, 0);
            self.write(0x18, 2, u64::from(driver.size));
            self.write(0x1a, 2, 1);
            self.write(0x20, 8, driver.desc);
            self.write(0x28, 4, driver.avail);
            self.write(0x30, 4, driver.used);
            self.write(0x1c, 2, 1);
            self.write(0x14, 1, 0xf);
        }
    }

    #[test]
    fn a_driver_finds_and_uses_the_entropy_device() {
        let mut b = Bench::new(Kind::Rng(Rng::new(1)));
        assert_eq!(b.device.read_config(0), 0x1044_1af4);
        // Walk the capability list as a driver does.
        let mut at = b.device.read_config(13) as u8;
        let mut kinds = std::vec::Vec::new();
        while at != 0 {
            let word = b.device.read_config(usize::from(at / 4));
            kinds.push((word as u8, (word >> 24) as u8));
            at = (word >> 8) as u8;
        }
        assert_eq!(kinds, [(0x11, 0), (9, 1), (9, 3), (9, 4), (9, 2), (9, 5)]);

        let mut driver = Driver::new(0, 8);
        b.start(&driver);
        let mut out = Msis::new();
        b.device.config.write(16, 1 << 31, u32::MAX, &mut out);
        b.write(MSIX_TABLE + 16, 4, 0xfee0_0000);
        b.write(MSIX_TABLE + 24, 4, 0x51);
        b.write(MSIX_TABLE + 28, 4, 0);
        let head = driver.offer(&mut b.memory, &[(0x8000, 64, true)]);
        b.write(NOTIFY, 2, 0);
        assert_eq!(driver.take(&b.memory), Some((u32::from(head), 64)));
        assert_eq!(b.out.as_slice(), [Msi { address: 0xfee0_0000, data: 0x51 }]);
    }

    #[test]
    fn without_msix_the_status_register_raises_the_line() {
        let mut b = Bench::new(Kind::Rng(Rng::new(1)));
        let mut driver = Driver::new(0, 8);
        b.start(&driver);
        driver.offer(&mut b.memory, &[(0x8000, 64, true)]);
        b.write(NOTIFY, 4, 0);
        assert!(b.device.intx_level());
        assert_eq!(b.device.read(ISR, 1), 1);
        assert!(!b.device.intx_level());
    }

    #[test]
    fn a_broken_queue_needs_a_reset_and_nothing_else() {
        let mut b = Bench::new(Kind::Rng(Rng::new(1)));
        let mut driver = Driver::new(0, 8);
        b.start(&driver);
        driver.publish(&mut b.memory, 77);
        b.write(NOTIFY, 2, 0);
        assert_eq!(b.device.read(0x14, 1) as u8 & STATUS_NEEDS_RESET, STATUS_NEEDS_RESET);
        b.write(NOTIFY, 2, 0);
        b.write(0x14, 1, 0);
        assert_eq!(b.device.read(0x14, 1) & 0xff, 0);
    }

    #[test]
    fn features_need_version_1_and_balloon_readiness_is_told() {
        let mut b = Bench::new(Kind::Balloon(Balloon::new(true, true)));
        b.write(0x14, 1, 0xb);
        assert_eq!(b.device.read(0x14, 1) & 0xff, 3);
        b.write(0x14, 1, 0);
        let driver = Driver::new(0, 8);
        b.start(&driver);
        b.device.set_balloon(5, &mut b.out);
        assert!(b.device.intx_level());
        assert_eq!(b.device.read(DEVICE, 4), 5);
        b.write(0x14, 1, 0);
        assert_eq!(b.host.ready, [true, false]);
    }

    #[test]
    fn the_configuration_window_reaches_the_bar() {
        let mut b = Bench::new(Kind::Balloon(Balloon::new(true, true)));
        let Bench { device, memory, host, out } = &mut b;
        device.write_config(42, 0x12, u32::MAX, memory, host, out);
        device.write_config(43, 2, u32::MAX, memory, host, out);
        assert_eq!(device.read_config(44), 4, "num_queues");
        device.write_config(42, 0x16, u32::MAX, memory, host, out);
        device.write_config(44, 3, u32::MAX, memory, host, out);
        assert_eq!(device.read_config(44), 3);
    }

    #[test]
    fn any_register_sequence_is_survived() {
        let mut seed = 5u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for round in 0..300 {
            let kind = match round % 2 {
                0 => Kind::Rng(Rng::new(1)),
                _ => Kind::Balloon(Balloon::new(true, true)),
            };
            let mut b = Bench::new(kind);
            for byte in &mut b.memory.0 {
                *byte = (random() & 7) as u8;
            }
            for _ in 0..2000 {
                b.out.clear();
                let r = random();
                let size = 1 << (r & 3);
                let offset = match r >> 2 & 7 {
                    0..=3 => (r >> 8) as u32 & 0x3f,
                    4 => NOTIFY + (r >> 8) as u32 % 0x20,
                    5 => MSIX_TABLE + ((r >> 8) as u32 & 0xfc),
                    _ => (r >> 8) as u32 % BAR_BYTES,
                };
                match r >> 5 & 7 {
                    0 => drop(b.device.read(offset, size)),
                    1 => {
                        let Bench { device, memory, host, out } = &mut b;
                        device.write_config(
                            (r >> 40) as usize & 63,
                            r as u32,
                            u32::MAX,
                            memory,
                            host,
                            out,
                        );
                    }
                    2 => b.write(0x14, 1, [0, 3, 0xb, 0xf][(r >> 40) as usize & 3]),
                    3 => b.write(0x1c, 2, 1),
                    4 => b.write(offset, size, (r >> 32) & 0xffff),
                    _ => b.write(offset, size, random()),
                }
            }
        }
    }
}
