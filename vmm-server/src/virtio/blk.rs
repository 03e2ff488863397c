//! Block device (virtio 1.2, section 5.2) on top of a client ring to the io-sched-server.
//!
//! Guest buffers are copied to and from the ring's data area: the disk never sees guest memory.
//! Chains stay in the virtqueue while the ring is full and are taken up at the next completion.

use super::queue::{Chain, Queue, QueueError, Segment};
use crate::guest_memory::GuestMemory;
use core::sync::atomic::AtomicU64;
use heapless::Vec;
use protocol::ring::{
    BLK_REQUEST_MAX, BLK_SLOTS, BlkClient, BlkFull, BlkOperation, BlkStatus, RingError,
    SECTOR_BYTES,
};

/// Most data segments of one request.
pub const SEGMENTS_MAX: u32 = 16;
/// Longest data segment; together with [`SEGMENTS_MAX`] it keeps requests within a ring slot.
pub const SEGMENT_BYTES_MAX: u32 = 4096;
/// Most requests in the ring at once; the ring's data area holds hardly more.
const IN_FLIGHT_MAX: usize = 32;
const _: () = assert!(IN_FLIGHT_MAX <= BLK_SLOTS);
const DATA_MAX: usize = SEGMENTS_MAX as usize + 2;

/// Feature: maximum segment size is in the configuration.
pub const F_SIZE_MAX: u64 = 1 << 1;
/// Feature: maximum number of segments is in the configuration.
pub const F_SEG_MAX: u64 = 1 << 2;
/// Feature: the disk is read-only.
pub const F_RO: u64 = 1 << 5;
/// Feature: block size is in the configuration.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// Feature: flush command.
pub const F_FLUSH: u64 = 1 << 9;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

#[derive(Clone, Debug)]
struct InFlight {
    head: u16,
    status: u64,
    data: Vec<Segment, DATA_MAX>,
    length: u32,
    is_read: bool,
}

/// What a pass over the queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests were put into the ring: ring the doorbell.
    pub needs_doorbell: bool,
    /// Chains were returned to the driver.
    pub has_returned: bool,
}

/// One virtual disk.
#[derive(Clone, Debug)]
pub struct Blk {
    client: BlkClient,
    sectors: u64,
    is_read_only: bool,
    identity: [u8; 20],
    /// The chain taken from the queue last.
    chain: Chain,
    /// The ring had no room for it.
    is_parked: bool,
    in_flight: [Option<InFlight>; IN_FLIGHT_MAX],
    completed: u64,
}

impl Blk {
    /// A disk behind the ring in `words`, of `sectors` sectors; `number` goes into its identity.
    ///
    /// # Errors
    ///
    /// [`RingError::Layout`] if `words` is no block ring.
    pub fn new(
        words: &[AtomicU64],
        sectors: u64,
        is_read_only: bool,
        number: u8,
    ) -> Result<Self, RingError> {
        let mut identity = [0; 20];
        identity[..12].copy_from_slice(b"ballast-disk");
        identity[12] = b'0' + number % 10;
        Ok(Self {
            client: BlkClient::attach(words)?,
            sectors,
            is_read_only,
            identity,
            chain: Chain::default(),
            is_parked: false,
            in_flight: [const { None }; IN_FLIGHT_MAX],
            completed: 0,
        })
    }

    /// Device features beyond the transport's.
    pub fn features(&self) -> u64 {
        F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | if self.is_read_only { F_RO } else { 0 }
    }

    /// Requests the disk has completed.
    pub const fn completed(&self) -> u64 {
        self.completed
    }

    /// One byte of the device configuration.
    pub fn config(&self, offset: u64) -> u8 {
        let byte_of = |bytes: &[u8], from: u64| {
            usize::try_from(offset - from).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0)
        };
        match offset {
            0..8 => byte_of(&self.sectors.to_le_bytes(), 0),
            8..12 => byte_of(&SEGMENT_BYTES_MAX.to_le_bytes(), 8),
            12..16 => byte_of(&SEGMENTS_MAX.to_le_bytes(), 12),
            20..24 => byte_of(&SECTOR_BYTES.to_le_bytes(), 20),
            34 => 1,
            _ => 0,
        }
    }

    /// Requests in the ring or waiting for it.
    pub fn in_work(&self) -> u32 {
        self.client.waiting() + u32::from(self.is_parked)
    }

    /// The driver reset the device: requests under way finish unseen.
    pub fn reset(&mut self) {
        self.is_parked = false;
        for request in self.in_flight.iter_mut().flatten() {
            // The slot stays taken until the io-sched-server is done with it, but nothing of the
            // guest's is touched any more.
            request.data.clear();
            request.status = u64::MAX;
        }
    }

    /// Takes up what the driver made available.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken.
    pub fn process(
        &mut self,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
        words: &[AtomicU64],
    ) -> Result<Progress, QueueError> {
        let mut progress = Progress::default();
        loop {
            if !core::mem::take(&mut self.is_parked) && !queue.pop(memory, &mut self.chain)? {
                break;
            }
            match self.start(memory, words) {
                Ok(true) => progress.needs_doorbell = true,
                Ok(false) => {
                    self.is_parked = true;
                    break;
                }
                Err(refusal) => {
                    refusal.answer(&self.chain, queue, memory)?;
                    progress.has_returned = true;
                }
            }
        }
        queue.rearm(memory)?;
        Ok(progress)
    }

    /// Collects completions and takes up what had to wait.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken.
    pub fn complete(
        &mut self,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
        words: &[AtomicU64],
    ) -> Result<Progress, QueueError> {
        let mut has_returned = false;
        while let Some(done) = self.client.poll(words) {
            let offset = self.client.data_offset(done.slot);
            let finished = self.in_flight.get_mut(usize::from(done.slot)).and_then(Option::take);
            let result = match finished {
                Some(request) if request.status != u64::MAX => {
                    self.completed += 1;
                    has_returned = true;
                    finish(&request, done.status, offset, queue, memory, words)
                }
                _ => Ok(()),
            };
            self.client.release(words, done.slot);
            result?;
        }
        let mut progress = self.process(queue, memory, words)?;
        progress.has_returned |= has_returned;
        Ok(progress)
    }

    /// Puts the request of the chain into the ring; `Ok(false)` if there is no room now.
    fn start(&mut self, memory: &impl GuestMemory, words: &[AtomicU64]) -> Result<bool, Refusal> {
        let request = parse(&self.chain, memory, self.is_read_only, &self.identity)?;
        if let Some(end) = request.sector.checked_add(u64::from(request.length / SECTOR_BYTES))
            && (end <= self.sectors || request.operation == BlkOperation::Flush)
        {
            let (slot, offset) = match self.client.reserve(request.length) {
                // Slots are given out lowest first.
                Ok((slot, _)) if usize::from(slot) >= IN_FLIGHT_MAX => {
                    self.client.release(words, slot);
                    return Ok(false);
                }
                Ok(place) => place,
                Err(BlkFull::Slots | BlkFull::Data) => return Ok(false),
                Err(BlkFull::TooLong) => return Err(Refusal::error(request.status)),
            };
            if request.operation == BlkOperation::Write {
                let mut at = offset;
                for segment in &request.data {
                    if memory.copy_to_shared(segment.gpa, words, at, segment.len as usize).is_err()
                    {
                        self.client.release(words, slot);
                        return Err(Refusal::error(request.status));
                    }
                    at += segment.len as usize;
                }
            }
            let length = request.length;
            let in_flight = InFlight {
                head: self.chain.head,
                status: request.status,
                is_read: request.operation == BlkOperation::Read,
                data: request.data,
                length,
            };
            if let Some(place) = self.in_flight.get_mut(usize::from(slot)) {
                *place = Some(in_flight);
            }
            self.client.submit(words, slot, request.operation, request.sector, length, (0, 0));
            return Ok(true);
        }
        Err(Refusal::error(request.status))
    }
}

struct Request {
    operation: BlkOperation,
    sector: u64,
    status: u64,
    data: Vec<Segment, DATA_MAX>,
    length: u32,
}

/// A request that is answered without the disk.
struct Refusal {
    /// Where the status byte goes; `None` if the chain has no place for one.
    status: Option<u64>,
    code: u8,
    /// Payload in front of the status byte (the identity).
    identity: Option<([u8; 20], Segment)>,
}

impl Refusal {
    fn error(status: u64) -> Self {
        Self { status: Some(status), code: STATUS_IOERR, identity: None }
    }

    fn answer(
        self,
        chain: &Chain,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
    ) -> Result<(), QueueError> {
        let mut written = 0;
        let mut code = self.code;
        if let Some((identity, place)) = self.identity {
            let count = identity.len().min(place.len as usize);
            match memory.write(place.gpa, identity.get(..count).unwrap_or(&[])) {
                Ok(()) => written += count as u32,
                Err(_) => code = STATUS_IOERR,
            }
        }
        if let Some(status) = self.status
            && memory.write(status, &[code]).is_ok()
        {
            written += 1;
        }
        queue.push_used(memory, chain.head, written)
    }
}

fn parse(
    chain: &Chain,
    memory: &impl GuestMemory,
    is_read_only: bool,
    identity: &[u8; 20],
) -> Result<Request, Refusal> {
    // The last writable byte is the status; framing before it is free (virtio 1.2, 2.7.4.2).
    let mut writable: Vec<Segment, DATA_MAX> = Vec::new();
    let mut readable: Vec<Segment, DATA_MAX> = Vec::new();
    let nothing = Refusal { status: None, code: STATUS_IOERR, identity: None };
    let Some((last, in_front)) = chain.writable.split_last() else { return Err(nothing) };
    if last.len == 0 {
        return Err(nothing);
    }
    let status = last.gpa.saturating_add(u64::from(last.len) - 1);
    let trimmed = Segment { gpa: last.gpa, len: last.len - 1 };
    for segment in in_front.iter().copied().chain([trimmed]).filter(|s| s.len != 0) {
        writable.push(segment).map_err(|_| Refusal::error(status))?;
    }
    let mut header = [0; 16];
    let mut have = 0usize;
    for segment in &chain.readable {
        let take = (16 - have).min(segment.len as usize);
        let part = header.get_mut(have..have + take).unwrap_or(&mut []);
        memory.read(segment.gpa, part).map_err(|_| Refusal::error(status))?;
        have += take;
        let rest = segment.len - take as u32;
        if rest != 0 {
            let gpa = segment.gpa.saturating_add(take as u64);
            readable.push(Segment { gpa, len: rest }).map_err(|_| Refusal::error(status))?;
        }
    }
    if have < 16 {
        return Err(Refusal::error(status));
    }
    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let (operation, data) = match u32::from_le_bytes([t0, t1, t2, t3]) {
        TYPE_IN => (BlkOperation::Read, writable),
        TYPE_OUT if is_read_only => return Err(Refusal::error(status)),
        TYPE_OUT => (BlkOperation::Write, readable),
        TYPE_FLUSH => (BlkOperation::Flush, Vec::new()),
        TYPE_GET_ID => {
            let place = writable.first().copied();
            return Err(Refusal {
                status: Some(status),
                code: if place.is_some() { STATUS_OK } else { STATUS_IOERR },
                identity: place.map(|place| (*identity, place)),
            });
        }
        _ => {
            return Err(Refusal { status: Some(status), code: STATUS_UNSUPPORTED, identity: None });
        }
    };
    let mut length = 0u32;
    for segment in &data {
        length = length.saturating_add(segment.len);
    }
    let is_flush = operation == BlkOperation::Flush;
    let is_sized = length != 0 && length <= BLK_REQUEST_MAX && length.is_multiple_of(SECTOR_BYTES);
    if !is_flush && !is_sized {
        return Err(Refusal::error(status));
    }
    let sector = if is_flush { 0 } else { sector };
    Ok(Request { operation, sector, status, data, length })
}

fn finish(
    request: &InFlight,
    outcome: BlkStatus,
    offset: usize,
    queue: &mut Queue,
    memory: &mut impl GuestMemory,
    words: &[AtomicU64],
) -> Result<(), QueueError> {
    let mut code = match outcome {
        BlkStatus::Ok => STATUS_OK,
        BlkStatus::Unsupported => STATUS_UNSUPPORTED,
        _ => STATUS_IOERR,
    };
    let mut written = 0;
    if code == STATUS_OK && request.is_read {
        let mut at = offset;
        for segment in &request.data {
            if memory.copy_from_shared(segment.gpa, words, at, segment.len as usize).is_err() {
                code = STATUS_IOERR;
                break;
            }
            at += segment.len as usize;
        }
        written = request.length;
    }
    if memory.write(request.status, &[code]).is_ok() {
        written += 1;
    }
    queue.push_used(memory, request.head, written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::VecMemory;
    use crate::virtio::queue::driver::Driver;
    use protocol::ring::{
        BLK_RING_BYTES, BlkServer, Phase, format_blk_ring, read_bytes, write_bytes,
    };

    struct Bench {
        memory: VecMemory,
        driver: Driver,
        queue: Queue,
        blk: Blk,
        words: std::vec::Vec<AtomicU64>,
        server: BlkServer,
    }

    fn bench(is_read_only: bool) -> Bench {
        let words: std::vec::Vec<_> = (0..BLK_RING_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        format_blk_ring(&words).unwrap();
        let driver = Driver::new(0, 64);
        Bench {
            memory: VecMemory::new(0x40000),
            queue: driver.queue(false),
            driver,
            blk: Blk::new(&words, 1000, is_read_only, 0).unwrap(),
            server: BlkServer::attach(&words).unwrap(),
            words,
        }
    }

    impl Bench {
        fn offer(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) {
            let mut header = [0; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&sector.to_le_bytes());
            self.memory.write(0x8000, &header).unwrap();
            self.memory.write(0x8100, &[0xaa]).unwrap();
            let mut parts = std::vec![(0x8000, 16, false)];
            parts.extend(data.iter().map(|&(gpa, len)| (gpa, len, kind != TYPE_OUT)));
            parts.push((0x8100, 1, true));
            self.driver.offer(&mut self.memory, &parts);
        }

        fn process(&mut self) -> Progress {
            self.blk.process(&mut self.queue, &mut self.memory, &self.words).unwrap()
        }

        fn complete(&mut self) -> Progress {
            self.blk.complete(&mut self.queue, &mut self.memory, &self.words).unwrap()
        }

        fn status(&self) -> u8 {
            self.memory.0[0x8100]
        }
    }

    #[test]
    fn write_then_read_through_the_ring() {
        let mut b = bench(false);
        b.memory.0[0x9000..0x9400].fill(0x5a);
        b.offer(TYPE_OUT, 7, &[(0x9000, 512), (0x9200, 512)]);
        assert!(b.process().needs_doorbell);
        let (slot, request) = b.server.next(&b.words).unwrap().unwrap();
        assert_eq!(
            (request.operation, request.sector, request.length),
            (BlkOperation::Write, 7, 1024)
        );
        let mut data = [0; 1024];
        read_bytes(&b.words, request.data_offset(), &mut data);
        assert_eq!(data, [0x5a; 1024]);
        b.server.complete(&b.words, slot, BlkStatus::Ok, Phase::Weight);
        assert!(b.complete().has_returned);
        assert_eq!((b.status(), b.driver.take(&b.memory).map(|t| t.1)), (STATUS_OK, Some(1)));

        b.offer(TYPE_IN, 9, &[(0xa000, 512)]);
        b.process();
        let (slot, request) = b.server.next(&b.words).unwrap().unwrap();
        write_bytes(&b.words, request.data_offset(), &[0x77; 512]);
        b.server.complete(&b.words, slot, BlkStatus::Ok, Phase::Weight);
        b.complete();
        assert_eq!(b.driver.take(&b.memory).map(|t| t.1), Some(513));
        assert!(b.memory.0[0xa000..0xa200].iter().all(|&byte| byte == 0x77));
        assert_eq!(b.blk.completed(), 2);
    }

    #[test]
    fn errors_reach_the_guest_as_io_errors() {
        let mut b = bench(false);
        b.offer(TYPE_IN, 0, &[(0xa000, 512)]);
        b.process();
        let (slot, _) = b.server.next(&b.words).unwrap().unwrap();
        b.server.complete(&b.words, slot, BlkStatus::DeviceError, Phase::Weight);
        b.complete();
        assert_eq!(b.status(), STATUS_IOERR);
        for (kind, sector, data, expected) in [
            (TYPE_IN, 1000, std::vec![(0xa000u64, 512u32)], STATUS_IOERR),
            (TYPE_IN, u64::MAX, std::vec![(0xa000, 512)], STATUS_IOERR),
            (TYPE_IN, 0, std::vec![(0xa000, 511)], STATUS_IOERR),
            (TYPE_IN, 0, std::vec![(0x10_0000, 0x2_0000)], STATUS_IOERR),
            (TYPE_OUT, 0, std::vec![(u64::MAX - 3, 512)], STATUS_IOERR),
            (77, 0, std::vec![], STATUS_UNSUPPORTED),
        ] {
            b.offer(kind, sector, &data);
            assert!(b.process().has_returned, "{kind} {sector}");
            assert_eq!(b.status(), expected);
        }
        let mut read_only = bench(true);
        read_only.offer(TYPE_OUT, 0, &[(0x9000, 512)]);
        read_only.process();
        assert_eq!(read_only.status(), STATUS_IOERR);
        assert_ne!(read_only.blk.features() & F_RO, 0);
    }

    #[test]
    fn flush_and_identity() {
        let mut b = bench(false);
        b.offer(TYPE_FLUSH, u64::MAX, &[]);
        b.process();
        let (slot, request) = b.server.next(&b.words).unwrap().unwrap();
        assert_eq!(request.operation, BlkOperation::Flush);
        b.server.complete(&b.words, slot, BlkStatus::Ok, Phase::Weight);
        b.complete();
        assert_eq!(b.status(), STATUS_OK);
        b.offer(TYPE_GET_ID, 0, &[(0xb000, 20)]);
        b.process();
        assert_eq!(&b.memory.0[0xb000..0xb00d], b"ballast-disk0");
    }

    #[test]
    fn a_full_ring_parks_and_resumes() {
        let mut b = bench(false);
        for sector in 0..20 {
            b.offer(TYPE_IN, sector, &[(0x10000, 0x1_0000)]);
        }
        b.process();
        let mut served = 0;
        while served < 20 {
            let Some((slot, _)) = b.server.next(&b.words).unwrap() else {
                panic!("request lost after {served}");
            };
            b.server.complete(&b.words, slot, BlkStatus::Ok, Phase::Weight);
            b.complete();
            served += 1;
        }
        assert_eq!(b.blk.in_work(), 0);
    }

    #[test]
    fn a_reset_device_leaves_guest_memory_alone() {
        let mut b = bench(false);
        b.offer(TYPE_IN, 0, &[(0xa000, 512)]);
        b.process();
        b.blk.reset();
        let (slot, request) = b.server.next(&b.words).unwrap().unwrap();
        write_bytes(&b.words, request.data_offset(), &[0x77; 512]);
        b.server.complete(&b.words, slot, BlkStatus::Ok, Phase::Weight);
        b.complete();
        assert!(b.memory.0[0xa000..0xa200].iter().all(|&byte| byte == 0));
        assert_eq!(b.status(), 0xaa);
        assert_eq!(b.blk.in_work(), 0);
    }
}
