//! Block device (virtio 1.2, section 5.2) on top of client rings to io-sched-servers: one, or one for each part of a
//! striped disk.
//!
//! Guest buffers are copied to and from a ring's data area: the disk never sees guest memory.
//! Chains stay in the virtqueue while a ring is full and are taken up at the next completion. With each request of a
//! striped disk goes what the other servers have done meanwhile (dmClock).

use super::queue::{Chain, Queue, QueueError, Segment};
use crate::guest_memory::GuestMemory;
use core::sync::atomic::AtomicU64;
use heapless::Vec;
use protocol::dmclock::{Rule, Tracker};
use protocol::ring::{
    BLK_REQUEST_MAX, BLK_SLOTS, BlkClient, BlkFull, BlkOperation, BlkStatus, RingError,
    SECTOR_BYTES,
};
use protocol::stripe::{PIECES_MAX, Piece, Stripes};
use protocol::units::MACHINE_DISKS_MAX;

/// Most data segments of one request.
pub const SEGMENTS_MAX: u32 = 16;
/// Longest data segment; together with [`SEGMENTS_MAX`] it keeps requests within a ring slot.
pub const SEGMENT_BYTES_MAX: u32 = 4096;
/// Most requests at once; a ring's data area holds hardly more.
const IN_FLIGHT_MAX: usize = 32;
const _: () = assert!(IN_FLIGHT_MAX <= 32 && IN_FLIGHT_MAX <= BLK_SLOTS, "a bit each");
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
    /// Pieces that are not answered yet.
    open: u8,
    /// The virtio status so far.
    code: u8,
}

/// Which request a slot of a ring works for, and the piece of it, in sectors: at most 128 of them.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    request: u8,
    offset: u8,
    sectors: u8,
}
const _: () = assert!(BLK_REQUEST_MAX / SECTOR_BYTES <= u8::MAX as u32);

/// One part of the disk.
#[derive(Clone, Debug)]
struct Part {
    client: BlkClient,
    owners: [Owner; BLK_SLOTS],
}

/// A piece with its slot and the place of its data in the ring.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    piece: Piece,
    slot: u8,
    place: usize,
}

/// Pieces of one request: a flush has one for each part.
const RESERVED_MAX: usize = MACHINE_DISKS_MAX;
const _: () = assert!(PIECES_MAX <= RESERVED_MAX);

/// What a pass over the queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Parts into whose rings requests were put (bit = part): ring their doorbells.
    pub doorbells: u8,
    /// Chains were returned to the driver.
    pub has_returned: bool,
}

/// One virtual disk.
#[derive(Clone, Debug)]
pub struct Blk {
    parts: Vec<Part, MACHINE_DISKS_MAX>,
    stripes: Stripes,
    tracker: Tracker,
    sectors: u64,
    is_read_only: bool,
    identity: [u8; 20],
    /// The chain taken from the queue last.
    chain: Chain,
    /// A ring had no room for it.
    is_parked: bool,
    in_flight: [Option<InFlight>; IN_FLIGHT_MAX],
    /// Places of `in_flight` that are free: a bit each.
    free: u32,
    completed: u64,
}

impl Blk {
    /// A disk behind `rings`, one for each of its parts, the smallest of which has `smallest` sectors; `number` goes into
    /// its identity.
    ///
    /// # Errors
    ///
    /// [`RingError::Layout`] if there are not 1 to [`MACHINE_DISKS_MAX`] rings, or one is no block ring.
    pub fn new(
        rings: &[&[AtomicU64]],
        smallest: u64,
        is_read_only: bool,
        number: u8,
    ) -> Result<Self, RingError> {
        let mut identity = [0; 20];
        identity[..12].copy_from_slice(b"ballast-disk");
        identity[12] = b'0' + number % 10;
        let parts = u8::try_from(rings.len()).unwrap_or(u8::MAX);
        let stripes = Stripes::new(parts).ok_or(RingError::Layout)?;
        let mut parts = Vec::new();
        for words in rings {
            let client = BlkClient::attach(words)?;
            let part = Part { client, owners: [Owner::default(); BLK_SLOTS] };
            parts.push(part).map_err(|_| RingError::Layout)?;
        }
        Ok(Self {
            parts,
            stripes,
            tracker: Tracker::new(Rule::Paper),
            sectors: stripes.sectors(smallest),
            is_read_only,
            identity,
            chain: Chain::default(),
            is_parked: false,
            in_flight: [const { None }; IN_FLIGHT_MAX],
            free: u32::MAX,
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

    /// Requests in the rings or waiting for them.
    pub fn in_work(&self) -> u32 {
        (!self.free).count_ones() + u32::from(self.is_parked)
    }

    /// The driver reset the device: requests under way finish unseen.
    pub fn reset(&mut self) {
        self.is_parked = false;
        for request in self.in_flight.iter_mut().flatten() {
            // Its slots stay taken until the io-sched-server is done with them, but nothing of the
            // guest's is touched any more.
            request.data.clear();
            request.status = u64::MAX;
        }
    }

    /// Takes up what the driver made available; `rings` gives the ring of each part.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken.
    pub fn process<'w>(
        &mut self,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
        rings: &impl Fn(u8) -> &'w [AtomicU64],
    ) -> Result<Progress, QueueError> {
        let mut progress = Progress::default();
        loop {
            if !core::mem::take(&mut self.is_parked) && !queue.pop(memory, &mut self.chain)? {
                break;
            }
            match self.start(memory, rings) {
                Ok(0) => {
                    self.is_parked = true;
                    break;
                }
                Ok(parts) => progress.doorbells |= parts,
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
    pub fn complete<'w>(
        &mut self,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
        rings: &impl Fn(u8) -> &'w [AtomicU64],
    ) -> Result<Progress, QueueError> {
        let mut has_returned = false;
        for number in 0..self.stripes.parts() {
            let words = rings(number);
            while let Some(part) = self.parts.get_mut(usize::from(number))
                && let Some(done) = part.client.poll(words)
            {
                let place = part.client.data_offset(done.slot);
                let owner =
                    part.owners.get(usize::from(done.slot)).copied().unwrap_or(Owner::default());
                if self.stripes != Stripes::ONE {
                    self.tracker.completed(usize::from(number), done.phase);
                }
                let ended = self.piece_done(owner, done.status, place, memory, words);
                if let Some(part) = self.parts.get_mut(usize::from(number)) {
                    part.client.release(words, done.slot);
                }
                if let Some(request) = ended {
                    self.completed += 1;
                    has_returned = true;
                    finish(&request, queue, memory)?;
                }
            }
        }
        let mut progress = self.process(queue, memory, rings)?;
        progress.has_returned |= has_returned;
        Ok(progress)
    }

    /// A piece is answered, with its data at `place`; the request, if it was the last and the driver still wants it.
    fn piece_done(
        &mut self,
        owner: Owner,
        status: BlkStatus,
        place: usize,
        memory: &mut impl GuestMemory,
        words: &[AtomicU64],
    ) -> Option<InFlight> {
        let entry = self.in_flight.get_mut(usize::from(owner.request))?;
        let request = entry.as_mut()?;
        let is_wanted = request.status != u64::MAX;
        match status {
            BlkStatus::Ok if request.is_read && is_wanted => {
                let [offset, length] =
                    [owner.offset, owner.sectors].map(|count| u32::from(count) * SECTOR_BYTES);
                let copied = each_part(&request.data, offset, length, |gpa, at, len| {
                    memory.copy_from_shared(gpa, words, place + at, len)
                });
                if copied.is_err() {
                    request.code = STATUS_IOERR;
                }
            }
            BlkStatus::Ok => {}
            BlkStatus::Unsupported if request.code == STATUS_OK => {
                request.code = STATUS_UNSUPPORTED;
            }
            _ => request.code = STATUS_IOERR,
        }
        request.open -= 1;
        if request.open != 0 {
            return None;
        }
        self.free |= 1 << owner.request;
        entry.take().filter(|_| is_wanted)
    }

    /// Takes slots for all pieces, or none: `Ok(None)` if a ring has no room now.
    fn reserve<'w>(
        &mut self,
        request: &Request,
        rings: &impl Fn(u8) -> &'w [AtomicU64],
    ) -> Result<Option<Vec<Reserved, RESERVED_MAX>>, Refusal> {
        let mut pieces: Vec<Piece, RESERVED_MAX> = Vec::new();
        if request.operation == BlkOperation::Flush {
            for part in 0..self.stripes.parts() {
                let _ = pieces.push(Piece { part, ..Piece::default() });
            }
        } else {
            for piece in self.stripes.pieces(request.sector, request.length) {
                if piece.length != 0 {
                    let _ = pieces.push(piece);
                }
            }
        }
        let mut reserved: Vec<Reserved, RESERVED_MAX> = Vec::new();
        for piece in pieces {
            let Some(part) = self.parts.get_mut(usize::from(piece.part)) else { continue };
            match part.client.reserve(piece.length) {
                Ok((slot, place)) => {
                    let _ = reserved.push(Reserved { piece, slot, place });
                }
                Err(full) => {
                    self.release(&reserved, rings);
                    return match full {
                        BlkFull::Slots | BlkFull::Data => Ok(None),
                        BlkFull::TooLong => Err(Refusal::error(request.status)),
                    };
                }
            }
        }
        Ok(Some(reserved))
    }

    fn release<'w>(&mut self, reserved: &[Reserved], rings: &impl Fn(u8) -> &'w [AtomicU64]) {
        for Reserved { piece, slot, .. } in reserved {
            if let Some(part) = self.parts.get_mut(usize::from(piece.part)) {
                part.client.release(rings(piece.part), *slot);
            }
        }
    }

    /// Puts the request of the chain into the rings; the parts it went to, none of them if there is no room now.
    fn start<'w>(
        &mut self,
        memory: &impl GuestMemory,
        rings: &impl Fn(u8) -> &'w [AtomicU64],
    ) -> Result<u8, Refusal> {
        let request = parse(&self.chain, memory, self.is_read_only, &self.identity)?;
        let end = request.sector.checked_add(u64::from(request.length / SECTOR_BYTES));
        let is_flush = request.operation == BlkOperation::Flush;
        if end.is_none_or(|end| end > self.sectors) && !is_flush {
            return Err(Refusal::error(request.status));
        }
        let index = self.free.trailing_zeros();
        let Some(entry) = self.in_flight.get(index as usize) else { return Ok(0) };
        debug_assert!(entry.is_none(), "a free place holds nothing");
        let Some(reserved) = self.reserve(&request, rings)? else { return Ok(0) };
        if request.operation == BlkOperation::Write {
            for Reserved { piece, place, .. } in &reserved {
                let words = rings(piece.part);
                let copied =
                    each_part(&request.data, piece.offset, piece.length, |gpa, at, len| {
                        memory.copy_to_shared(gpa, words, place + at, len)
                    });
                if copied.is_err() {
                    self.release(&reserved, rings);
                    return Err(Refusal::error(request.status));
                }
            }
        }
        let operation = request.operation;
        if let Some(entry) = self.in_flight.get_mut(index as usize) {
            *entry = Some(InFlight {
                head: self.chain.head,
                status: request.status,
                is_read: operation == BlkOperation::Read,
                data: request.data,
                length: request.length,
                open: reserved.len() as u8,
                code: STATUS_OK,
            });
            self.free &= !(1 << index);
        }
        let mut parts = 0;
        for Reserved { piece, slot, .. } in &reserved {
            let elsewhere = match self.stripes {
                Stripes::ONE => (0, 0),
                _ => self.tracker.report(usize::from(piece.part)),
            };
            let Some(part) = self.parts.get_mut(usize::from(piece.part)) else { continue };
            if let Some(owner) = part.owners.get_mut(usize::from(*slot)) {
                let [offset, sectors] =
                    [piece.offset, piece.length].map(|bytes| (bytes / SECTOR_BYTES) as u8);
                *owner = Owner { request: index as u8, offset, sectors };
            }
            let words = rings(piece.part);
            part.client.submit(words, *slot, operation, piece.sector, piece.length, elsewhere);
            parts |= 1 << piece.part;
        }
        Ok(parts)
    }
}

/// Calls `copy` with guest address, offset in the piece and length for each stretch of the `length` bytes from `offset`
/// on of a request's `data`.
fn each_part<E>(
    data: &[Segment],
    offset: u32,
    length: u32,
    mut copy: impl FnMut(u64, usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    let (mut skip, mut at) = (offset, 0);
    for segment in data {
        if at == length {
            break;
        }
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let here = (segment.len - skip).min(length - at);
        let gpa = segment.gpa.wrapping_add(u64::from(skip));
        copy(gpa, at as usize, here as usize)?;
        at += here;
        skip = 0;
    }
    Ok(())
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
    queue: &mut Queue,
    memory: &mut impl GuestMemory,
) -> Result<(), QueueError> {
    let is_read = request.code == STATUS_OK && request.is_read;
    let mut written = if is_read { request.length } else { 0 };
    if memory.write(request.status, &[request.code]).is_ok() {
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

    fn ring() -> std::vec::Vec<AtomicU64> {
        let words: std::vec::Vec<_> = (0..BLK_RING_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        format_blk_ring(&words).unwrap();
        words
    }

    fn bench(is_read_only: bool) -> Bench {
        let words = ring();
        let driver = Driver::new(0, 64);
        Bench {
            memory: VecMemory::new(0x40000),
            queue: driver.queue(false),
            driver,
            blk: Blk::new(&[&words], 1000, is_read_only, 0).unwrap(),
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
            let words = &self.words;
            self.blk.process(&mut self.queue, &mut self.memory, &|_| words).unwrap()
        }

        fn complete(&mut self) -> Progress {
            let words = &self.words;
            self.blk.complete(&mut self.queue, &mut self.memory, &|_| words).unwrap()
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
        assert_eq!(b.process().doorbells, 1);
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

    /// The device may still write what it was asked to read: a later request has its data elsewhere.
    #[test]
    fn a_lost_read_is_an_error_and_its_place_in_the_ring_is_not_used_again() {
        let mut b = bench(false);
        let mut lost = std::vec::Vec::new();
        for sector in 0..3 {
            b.offer(TYPE_IN, sector, &[(0xa000, 512)]);
            b.process();
            let (slot, request) = b.server.next(&b.words).unwrap().unwrap();
            assert!(!lost.contains(&(slot, request.data_page)), "{lost:?}");
            lost.push((slot, request.data_page));
            b.server.complete(&b.words, slot, BlkStatus::Timeout, Phase::Weight);
            b.complete();
            assert_eq!((b.status(), b.blk.in_work()), (STATUS_IOERR, 0));
        }
        b.server = BlkServer::attach(&b.words).unwrap();
        b.complete();
        b.offer(TYPE_IN, 7, &[(0xa000, 512)]);
        b.process();
        let (slot, request) = b.server.next(&b.words).unwrap().unwrap();
        assert_eq!((slot, request.data_page), lost[0], "a new server's device knows nothing of it");
    }

    /// A ring that is full of lost requests: what waits goes when another server has come.
    #[test]
    fn a_ring_full_of_lost_requests_takes_others_after_a_restart() {
        let mut b = bench(false);
        for sector in 0..20 {
            b.offer(TYPE_IN, sector, &[(0x10000, 0x1_0000)]);
        }
        b.process();
        let mut ended = 0;
        while let Some((slot, _)) = b.server.next(&b.words).unwrap() {
            b.server.complete(&b.words, slot, BlkStatus::Timeout, Phase::Weight);
            ended += 1;
        }
        b.complete();
        assert!((1..20).contains(&ended) && b.server.next(&b.words) == Ok(None), "{ended}");
        b.server = BlkServer::attach(&b.words).unwrap();
        assert_eq!(b.complete().doorbells, 1);
        while let Some((slot, _)) = b.server.next(&b.words).unwrap() {
            b.server.complete(&b.words, slot, BlkStatus::Ok, Phase::Weight);
            b.complete();
            ended += 1;
        }
        assert_eq!((ended, b.blk.in_work()), (20, 0));
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

    /// A disk in `N` parts with their servers, whose contents are `contents`.
    struct Striped<const N: usize> {
        bench: Bench,
        rings: [std::vec::Vec<AtomicU64>; N],
        servers: [BlkServer; N],
        contents: [std::vec::Vec<u8>; N],
        elsewhere: [(u64, u64); N],
    }

    /// Sectors of each part.
    const PART_SECTORS: u64 = 4 * 128;

    impl<const N: usize> Striped<N> {
        fn new() -> Self {
            let rings: [_; N] = core::array::from_fn(|_| ring());
            let mut bench = bench(false);
            let words: std::vec::Vec<&[AtomicU64]> =
                rings.iter().map(std::vec::Vec::as_slice).collect();
            bench.blk = Blk::new(&words, PART_SECTORS + 5, false, 0).unwrap();
            let servers = core::array::from_fn(|at| BlkServer::attach(&rings[at]).unwrap());
            let contents = core::array::from_fn(|_| std::vec![0; PART_SECTORS as usize * 512]);
            Self { bench, rings, servers, contents, elsewhere: [(0, 0); N] }
        }

        fn process(&mut self) -> Progress {
            let rings = &self.rings;
            let Bench { blk, queue, memory, .. } = &mut self.bench;
            blk.process(queue, memory, &|part| &rings[usize::from(part)]).unwrap()
        }

        fn complete(&mut self) -> Progress {
            let rings = &self.rings;
            let Bench { blk, queue, memory, .. } = &mut self.bench;
            blk.complete(queue, memory, &|part| &rings[usize::from(part)]).unwrap()
        }

        /// One server works off its ring; how many requests.
        fn serve(&mut self, part: usize, status: BlkStatus) -> usize {
            let mut count = 0;
            while let Some((slot, request)) = self.servers[part].next(&self.rings[part]).unwrap() {
                let words = &self.rings[part];
                let at = request.sector as usize * 512;
                let disk = &mut self.contents[part][at..at + request.length as usize];
                match request.operation {
                    BlkOperation::Read => write_bytes(words, request.data_offset(), disk),
                    BlkOperation::Write => read_bytes(words, request.data_offset(), disk),
                    BlkOperation::Flush => {}
                }
                self.elsewhere[part].0 += u64::from(request.delta);
                self.elsewhere[part].1 += u64::from(request.rho);
                self.servers[part].complete(words, slot, status, Phase::Reservation);
                count += 1;
            }
            count
        }
    }

    #[test]
    fn a_striped_disk_is_one_disk() {
        let mut b = Striped::<3>::new();
        assert_eq!(b.bench.blk.sectors, 3 * PART_SECTORS, "whole units of the smallest part");
        // From the last sectors of one unit into the next one, in segments that the boundary cuts.
        for (round, sector) in [125_u64, 383, 3 * PART_SECTORS - 8].into_iter().enumerate() {
            let pattern: std::vec::Vec<u8> = (0..4096).map(|at| (at / 7 + round) as u8).collect();
            b.bench.memory.0[0x9000..0xa000].copy_from_slice(&pattern);
            b.bench.offer(TYPE_OUT, sector, &[(0x9000, 1000), (0x93e8, 3096)]);
            let doorbells = b.process().doorbells;
            assert_eq!(doorbells.count_ones(), if round == 2 { 1 } else { 2 }, "{sector}");
            let done: usize = (0..3).map(|part| b.serve(part, BlkStatus::Ok)).sum();
            assert_eq!(done, doorbells.count_ones() as usize);
            assert!(b.complete().has_returned);
            assert_eq!(b.bench.driver.take(&b.bench.memory).map(|used| used.1), Some(1));
            b.bench.offer(TYPE_IN, sector, &[(0xa000, 500), (0xa1f4, 3596)]);
            b.process();
            for part in 0..3 {
                b.serve(part, BlkStatus::Ok);
            }
            b.complete();
            assert_eq!(b.bench.driver.take(&b.bench.memory).map(|used| used.1), Some(4097));
            assert_eq!(b.bench.memory.0[0xa000..0xb000], pattern);
        }
        b.bench.offer(TYPE_IN, 3 * PART_SECTORS - 1, &[(0xa000, 1024)]);
        assert!(b.process().has_returned, "behind the end");
        assert_eq!(b.bench.status(), STATUS_IOERR);
    }

    #[test]
    fn a_request_is_answered_when_all_its_pieces_are() {
        let mut b = Striped::<2>::new();
        b.bench.offer(TYPE_FLUSH, 0, &[]);
        assert_eq!(b.process().doorbells, 3, "a flush goes to every part");
        assert_eq!(b.serve(1, BlkStatus::Ok), 1);
        assert!(!b.complete().has_returned);
        assert_eq!(b.serve(0, BlkStatus::Ok), 1);
        assert!(b.complete().has_returned);
        assert_eq!(b.bench.status(), STATUS_OK);
        // One half fails: so does the request, whatever the other says later.
        b.bench.offer(TYPE_IN, 126, &[(0xa000, 4096)]);
        b.process();
        b.serve(0, BlkStatus::DeviceError);
        assert!(!b.complete().has_returned);
        b.serve(1, BlkStatus::Ok);
        assert!(b.complete().has_returned);
        assert_eq!(b.bench.status(), STATUS_IOERR);
        assert_eq!(b.bench.blk.in_work(), 0);
    }

    #[test]
    fn servers_hear_of_each_other() {
        let mut b = Striped::<2>::new();
        let mut served = [0_u64; 2];
        for round in 0..200_u64 {
            b.bench.offer(TYPE_IN, round * 37 % 7 * 128, &[(0xa000, 512)]);
            b.process();
            for (part, served) in served.iter_mut().enumerate() {
                *served += b.serve(part, BlkStatus::Ok) as u64;
            }
            b.complete();
            b.bench.driver.take(&b.bench.memory);
        }
        for part in 0..2 {
            let (delta, rho) = b.elsewhere[part];
            let other = served[1 - part];
            assert!(other > 50 && delta <= other && delta + 8 >= other, "{part}: {delta} {other}");
            assert_eq!(rho, delta, "all were served by reservation");
        }
    }

    #[test]
    fn a_full_part_parks_and_resumes() {
        let mut b = Striped::<2>::new();
        // Each crosses the boundary: 16 pages and a bit in each ring.
        for _ in 0..20 {
            b.bench.offer(TYPE_IN, 64, &[(0x10000, 0x1_0000)]);
        }
        b.process();
        let mut returned = 0;
        for _ in 0..40 {
            b.serve(0, BlkStatus::Ok);
            b.serve(1, BlkStatus::Ok);
            b.complete();
            while b.bench.driver.take(&b.bench.memory).is_some() {
                returned += 1;
            }
        }
        assert_eq!((returned, b.bench.blk.in_work()), (20, 0));
    }
}
