//! Memory balloon (virtio 1.2, section 5.5): inflate, deflate, statistics, free page reporting.
//!
//! The device only translates page numbers into ranges; what becomes of the pages is the mem-server's matter.

use super::queue::{Chain, Queue, QueueError};
use crate::guest_memory::GuestMemory;
use protocol::mem::{GfnRange, GuestStats, RANGES_MAX};
use protocol::units::{Gfn, PAGE_SIZE};

/// Feature: statistics queue.
pub const F_STATS_VQ: u64 = 1 << 1;
/// Feature: the guest takes pages back by itself when it runs out of memory.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Feature: free page reporting.
pub const F_REPORTING: u64 = 1 << 5;
/// Feature: the guest tells before it uses a ballooned page.
pub const F_MUST_TELL_HOST: u64 = 1 << 0;

/// Queue numbers.
pub const INFLATE: usize = 0;
/// Deflate queue.
pub const DEFLATE: usize = 1;
/// Most bytes of one page-number or statistics segment looked at.
const BUFFER_MAX: u32 = 4096;

/// What the mem-server is asked for on behalf of the balloon.
pub trait BalloonHost {
    /// The guest gave pages up: into the balloon, or (`is_report`) reported free.
    fn release(&mut self, is_report: bool, ranges: &[GfnRange]);
    /// The guest takes pages back out of the balloon.
    fn deflate(&mut self, ranges: &[GfnRange]);
    /// The guest's own figures.
    fn statistics(&mut self, stats: GuestStats);
}

/// The device.
#[derive(Clone, Debug, Default)]
pub struct Balloon {
    reports_free_pages: bool,
    deflates_on_oom: bool,
    target_pages: u32,
    actual_pages: u32,
    /// Statistics buffer the driver has handed in, returned when fresh figures are wanted.
    held_statistics: Option<u16>,
}

/// Pages on their way to the mem-server, joined into ranges.
struct Batch {
    ranges: heapless::Vec<GfnRange, RANGES_MAX>,
    kind: BatchKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BatchKind {
    Inflate,
    Deflate,
    Report,
}

impl Batch {
    const fn new(kind: BatchKind) -> Self {
        Self { ranges: heapless::Vec::new(), kind }
    }

    fn add(&mut self, first: u64, count: u64, host: &mut impl BalloonHost) {
        if let Some(last) = self.ranges.last_mut() {
            // Linux inflates downwards as often as upwards.
            if last.first.0 + last.count == first && last.count + count <= GfnRange::COUNT_MAX {
                last.count += count;
                return;
            }
            if first + count == last.first.0 && last.count + count <= GfnRange::COUNT_MAX {
                last.first = Gfn(first);
                last.count += count;
                return;
            }
        }
        let Some(range) = GfnRange::new(Gfn(first), count) else { return };
        if self.ranges.is_full() {
            self.flush(host);
        }
        let _ = self.ranges.push(range);
    }

    fn flush(&mut self, host: &mut impl BalloonHost) {
        if self.ranges.is_empty() {
            return;
        }
        match self.kind {
            BatchKind::Inflate => host.release(false, &self.ranges),
            BatchKind::Report => host.release(true, &self.ranges),
            BatchKind::Deflate => host.deflate(&self.ranges),
        }
        self.ranges.clear();
    }
}

impl Balloon {
    /// An empty balloon with target 0.
    pub const fn new(reports_free_pages: bool, deflates_on_oom: bool) -> Self {
        Self {
            reports_free_pages,
            deflates_on_oom,
            target_pages: 0,
            actual_pages: 0,
            held_statistics: None,
        }
    }

    /// Device features beyond the transport's.
    pub const fn features(&self) -> u64 {
        F_MUST_TELL_HOST
            | F_STATS_VQ
            | if self.deflates_on_oom { F_DEFLATE_ON_OOM } else { 0 }
            | if self.reports_free_pages { F_REPORTING } else { 0 }
    }

    /// Sets how many pages the guest should give up; true if that changed the configuration.
    pub fn set_target(&mut self, pages: u32) -> bool {
        core::mem::replace(&mut self.target_pages, pages) != pages
    }

    /// Pages in the balloon, as the driver last said.
    pub const fn actual_pages(&self) -> u32 {
        self.actual_pages
    }

    /// The driver reset the device.
    pub fn reset(&mut self) {
        self.actual_pages = 0;
        self.held_statistics = None;
    }

    /// One byte of the device configuration.
    pub fn config(&self, offset: u64) -> u8 {
        let word = match offset {
            0..4 => self.target_pages,
            4..8 => self.actual_pages,
            _ => 0,
        };
        (word >> (8 * (offset & 3))) as u8
    }

    /// The driver writes one byte of the device configuration.
    pub fn write_config(&mut self, offset: u64, value: u8) {
        if (4..8).contains(&offset) {
            let shift = 8 * (offset & 3) as u32;
            self.actual_pages = self.actual_pages & !(0xff << shift) | u32::from(value) << shift;
        }
    }

    /// Serves the inflate or the deflate queue.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken or a buffer lies outside RAM.
    pub fn process_pages(
        &mut self,
        which: usize,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
        host: &mut impl BalloonHost,
    ) -> Result<(), QueueError> {
        let kind = if which == INFLATE { BatchKind::Inflate } else { BatchKind::Deflate };
        let mut chain = Chain::default();
        while queue.pop(memory, &mut chain)? {
            let mut batch = Batch::new(kind);
            for segment in &chain.readable {
                let mut done = 0;
                while done + 4 <= segment.len.min(BUFFER_MAX) {
                    let gpa = segment.gpa.saturating_add(u64::from(done));
                    let page = u64::from(memory.read_u32(gpa)?);
                    // A page the guest does not have is refused by the mem-server, harmlessly.
                    batch.add(page, 1, host);
                    done += 4;
                }
            }
            batch.flush(host);
            queue.push_used(memory, chain.head, 0)?;
        }
        queue.rearm(memory)
    }

    /// Serves the reporting queue: each writable segment is memory free in the guest.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken.
    pub fn process_reports(
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
        host: &mut impl BalloonHost,
    ) -> Result<(), QueueError> {
        let mut chain = Chain::default();
        while queue.pop(memory, &mut chain)? {
            let mut batch = Batch::new(BatchKind::Report);
            for segment in &chain.writable {
                // Only whole pages are free; a segment outside RAM is not the guest's to give.
                if memory.check(segment.gpa, u64::from(segment.len)).is_err() {
                    continue;
                }
                let first = segment.gpa.div_ceil(PAGE_SIZE);
                let end = (segment.gpa + u64::from(segment.len)) / PAGE_SIZE;
                if first < end {
                    batch.add(first, end - first, host);
                }
            }
            batch.flush(host);
            queue.push_used(memory, chain.head, 0)?;
        }
        queue.rearm(memory)
    }

    /// Takes statistics the driver handed in; the buffer is kept until [`Balloon::ask_statistics`].
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken or a buffer lies outside RAM.
    pub fn process_statistics(
        &mut self,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
        host: &mut impl BalloonHost,
    ) -> Result<(), QueueError> {
        let mut chain = Chain::default();
        while queue.pop(memory, &mut chain)? {
            let mut stats = read_statistics(&chain, memory)?;
            stats.balloon = Some(u64::from(self.actual_pages));
            host.statistics(stats);
            // A driver that hands in a second buffer gets the first one back.
            if let Some(old) = self.held_statistics.replace(chain.head) {
                queue.push_used(memory, old, 0)?;
            }
        }
        queue.rearm(memory)
    }

    /// Asks for fresh statistics by returning the held buffer; true if there was one.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken.
    pub fn ask_statistics(
        &mut self,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
    ) -> Result<bool, QueueError> {
        match self.held_statistics.take() {
            Some(head) => queue.push_used(memory, head, 0).map(|()| true),
            None => Ok(false),
        }
    }
}

fn read_statistics(chain: &Chain, memory: &impl GuestMemory) -> Result<GuestStats, QueueError> {
    let mut stats = GuestStats::default();
    for segment in &chain.readable {
        let mut done = 0;
        while done + 10 <= segment.len.min(BUFFER_MAX) {
            let at = segment.gpa.saturating_add(u64::from(done));
            let tag = memory.read_u16(at)?;
            let value = memory.read_u64(at.saturating_add(2))?;
            let pages = Some(value / PAGE_SIZE);
            match tag {
                0 => stats.swap_in = pages,
                1 => stats.swap_out = pages,
                2 => stats.major_faults = Some(value),
                3 => stats.minor_faults = Some(value),
                4 => stats.free = pages,
                5 => stats.total = pages,
                6 => stats.available = pages,
                7 => stats.disk_caches = pages,
                10 => stats.oom_kills = Some(value),
                _ => {}
            }
            done += 10;
        }
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::{OutOfRam, RamLayout, VecMemory};
    use crate::virtio::queue::driver::Driver;

    #[derive(Default)]
    struct Seen {
        released: std::vec::Vec<(bool, GfnRange)>,
        deflated: std::vec::Vec<GfnRange>,
        stats: Option<GuestStats>,
    }

    impl BalloonHost for Seen {
        fn release(&mut self, is_report: bool, ranges: &[GfnRange]) {
            self.released.extend(ranges.iter().map(|&range| (is_report, range)));
        }
        fn deflate(&mut self, ranges: &[GfnRange]) {
            self.deflated.extend_from_slice(ranges);
        }
        fn statistics(&mut self, stats: GuestStats) {
            self.stats = Some(stats);
        }
    }

    fn range(first: u64, count: u64) -> GfnRange {
        GfnRange::new(Gfn(first), count).unwrap()
    }

    #[test]
    fn page_numbers_become_ranges() {
        let mut memory = VecMemory::new(0x10000);
        let mut driver = Driver::new(0, 8);
        let mut queue = driver.queue(false);
        let mut seen = Seen::default();
        let mut balloon = Balloon::new(true, true);
        for (index, page) in [10u32, 11, 12, 9, 50, 49, 100].iter().enumerate() {
            memory.write(0x8000 + 4 * index as u64, &page.to_le_bytes()).unwrap();
        }
        driver.offer(&mut memory, &[(0x8000, 28, false)]);
        balloon.process_pages(INFLATE, &mut queue, &mut memory, &mut seen).unwrap();
        assert_eq!(
            seen.released,
            [(false, range(9, 4)), (false, range(49, 2)), (false, range(100, 1))]
        );
        driver.offer(&mut memory, &[(0x8000, 8, false)]);
        balloon.process_pages(DEFLATE, &mut queue, &mut memory, &mut seen).unwrap();
        assert_eq!(seen.deflated, [range(10, 2)]);
        assert!(driver.take(&memory).is_some() && driver.take(&memory).is_some());
    }

    #[test]
    fn reports_take_whole_pages_inside_ram_only() {
        let mut memory = VecMemory::new(0x10000);
        let mut driver = Driver::new(0, 8);
        let mut queue = driver.queue(false);
        let mut seen = Seen::default();
        driver.offer(
            &mut memory,
            &[
                (0x4000, 0x3000, true),
                (0x8800, 0x1000, true),
                (0xf000, 0x2000, true),
                (u64::MAX, 9, true),
            ],
        );
        Balloon::process_reports(&mut queue, &mut memory, &mut seen).unwrap();
        assert_eq!(seen.released, [(true, range(4, 3))]);
    }

    /// Memory that both the device and its host see.
    #[derive(Clone)]
    struct Common(std::rc::Rc<core::cell::RefCell<VecMemory>>);

    impl GuestMemory for Common {
        fn layout(&self) -> RamLayout {
            self.0.borrow().layout()
        }
        fn read(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), OutOfRam> {
            self.0.borrow().read(gpa, buffer)
        }
        fn write(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
            self.0.borrow_mut().write(gpa, data)
        }
    }

    /// Sees how many chains are returned while pages are taken.
    struct Watcher {
        memory: Common,
        used: u64,
        returned: std::vec::Vec<u16>,
    }

    impl Watcher {
        fn used_index(&self) -> u16 {
            let mut index = [0; 2];
            self.memory.read(self.used + 2, &mut index).unwrap();
            u16::from_le_bytes(index)
        }
    }

    impl BalloonHost for Watcher {
        fn release(&mut self, _: bool, _: &[GfnRange]) {
            let index = self.used_index();
            self.returned.push(index);
        }
        fn deflate(&mut self, _: &[GfnRange]) {}
        fn statistics(&mut self, _: GuestStats) {}
    }

    /// A page may be used again as soon as its report is returned: it must have been taken by then.
    #[test]
    fn a_report_is_returned_only_when_its_pages_are_gone() {
        let mut memory = VecMemory::new(0x10000);
        let mut driver = Driver::new(0, 8);
        let mut queue = driver.queue(false);
        driver.offer(&mut memory, &[(0x4000, 0x1000, true), (0x6000, 0x1000, true)]);
        driver.offer(&mut memory, &[(0x8000, 0x1000, true)]);
        let mut memory = Common(std::rc::Rc::new(core::cell::RefCell::new(memory)));
        let mut host =
            Watcher { memory: memory.clone(), used: driver.used, returned: std::vec::Vec::new() };
        Balloon::process_reports(&mut queue, &mut memory, &mut host).unwrap();
        assert_eq!(host.returned, [0, 1]);
        assert_eq!(host.used_index(), 2);
    }

    #[test]
    fn statistics_are_held_and_asked_again() {
        let mut memory = VecMemory::new(0x10000);
        let mut driver = Driver::new(0, 8);
        let mut queue = driver.queue(false);
        let mut seen = Seen::default();
        let mut balloon = Balloon::new(true, true);
        memory.write(0x8000, &4u16.to_le_bytes()).unwrap();
        memory.write(0x8002, &0x5000u64.to_le_bytes()).unwrap();
        memory.write(0x800a, &10u16.to_le_bytes()).unwrap();
        memory.write(0x800c, &2u64.to_le_bytes()).unwrap();
        driver.offer(&mut memory, &[(0x8000, 20, false)]);
        balloon.write_config(4, 7);
        balloon.process_statistics(&mut queue, &mut memory, &mut seen).unwrap();
        let stats = seen.stats.unwrap();
        assert_eq!(stats.balloon, Some(7));
        assert_eq!((stats.free, stats.oom_kills, stats.total), (Some(5), Some(2), None));
        assert_eq!(driver.take(&memory), None);
        assert_eq!(balloon.ask_statistics(&mut queue, &mut memory), Ok(true));
        assert!(driver.take(&memory).is_some());
        assert_eq!(balloon.ask_statistics(&mut queue, &mut memory), Ok(false));
    }

    #[test]
    fn configuration_bytes() {
        let mut balloon = Balloon::new(true, true);
        assert!(balloon.set_target(0x1_0203));
        assert!(!balloon.set_target(0x1_0203));
        assert_eq!([0, 1, 2, 3].map(|i| balloon.config(i)), [3, 2, 1, 0]);
        balloon.write_config(4, 7);
        balloon.write_config(0, 9);
        assert_eq!((balloon.actual_pages(), balloon.config(0)), (7, 3));
    }
}
