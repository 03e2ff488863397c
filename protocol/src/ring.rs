//! Rings in shared memory: block requests, console bytes, log frames.
//!
//! Every ring is a view on `&[AtomicU64]`: the edge makes that slice once from its mapping, host tests make it from
//! a boxed slice, and no code here is unsafe. The other side may write any word at any moment, so each word is loaded
//! once, then judged; positions count up for ever and are reduced only when indexing.

use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes in one word of a ring.
const WORD: usize = 8;

/// Copies bytes out of shared words, little-endian, from byte `offset` on; bytes behind the end read as zero.
pub fn read_bytes(words: &[AtomicU64], offset: usize, out: &mut [u8]) {
    let mut at = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let word = words.get(at / WORD).map_or(0, |w| w.load(Ordering::Relaxed)).to_le_bytes();
        let skip = at % WORD;
        let count = rest.len().min(WORD - skip);
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&word[skip..skip + count]);
        at += count;
        rest = later;
    }
}

/// Copies bytes into shared words, little-endian, from byte `offset` on; bytes behind the end are dropped.
///
/// A partly covered word is read and written back, so two writers must not share a word.
pub fn write_bytes(words: &[AtomicU64], offset: usize, bytes: &[u8]) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(word) = words.get(at / WORD) else { return };
        let skip = at % WORD;
        let count = rest.len().min(WORD - skip);
        let (now, later) = rest.split_at(count);
        let mut image =
            if count == WORD { [0; 8] } else { word.load(Ordering::Relaxed).to_le_bytes() };
        image[skip..skip + count].copy_from_slice(now);
        word.store(u64::from_le_bytes(image), Ordering::Relaxed);
        at += count;
        rest = later;
    }
}

/// Copies whole words from one shared area to another; stops at the shorter one.
pub fn copy_words(to: &[AtomicU64], from: &[AtomicU64]) {
    for (target, source) in to.iter().zip(from) {
        target.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Block requests

/// Requests one client may have in the ring at once: also the tags of a slot, 0..64.
pub const BLK_SLOTS: usize = 64;
/// Bytes of the whole shared area of one client: one control page and the data pages behind it.
pub const BLK_RING_BYTES: usize = 1 << 20;
/// Bytes in front of the data area.
pub const BLK_CONTROL_BYTES: usize = 4096;
/// 4 KiB pages in the data area.
pub const BLK_DATA_PAGES: usize = (BLK_RING_BYTES - BLK_CONTROL_BYTES) / 4096;
/// Most bytes of one request; a client splits what is longer.
pub const BLK_REQUEST_MAX: u32 = 64 << 10;
/// Bytes in one sector.
pub const SECTOR_BYTES: u32 = 512;

/// "BLKRING" and the layout version; both sides refuse any other value.
const BLK_MAGIC: u64 = 0x0147_4e49_524b_4c42;
/// Layout of the control page, in words. The client writes line 1, the server lines 0 (generation) and 2.
mod at {
    /// Magic and version.
    pub const MAGIC: usize = 0;
    /// Counts the servers that served this ring.
    pub const GENERATION: usize = 2;
    /// Submissions so far.
    pub const SUBMITTED: usize = 8;
    /// Completions so far.
    pub const COMPLETED: usize = 16;
    /// Slot numbers in submission order.
    pub const SUBMISSION: usize = 64;
    /// Slot numbers in completion order.
    pub const COMPLETION: usize = 128;
    /// The slots themselves.
    pub const SLOTS: usize = 192;
    /// Words of one slot: sequence, command, sector, delta and rho, state.
    pub const SLOT_WORDS: usize = 5;
}
const _: () = assert!((at::SLOTS + BLK_SLOTS * at::SLOT_WORDS) * WORD == BLK_CONTROL_BYTES);

/// What a request asks of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkOperation {
    /// Disk to data area.
    Read,
    /// Data area to disk.
    Write,
    /// Everything completed before this was submitted is durable when this completes.
    Flush,
}

/// One request, checked: the data range lies in the data area and is whole sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkRequest {
    /// Position in the client's own order of submissions.
    pub sequence: u64,
    /// What to do.
    pub operation: BlkOperation,
    /// First sector, counted from the start of the virtual disk.
    pub sector: u64,
    /// Length in bytes; 0 for a flush.
    pub length: u32,
    /// First page of the data area used.
    pub data_page: u16,
    /// dmClock: this client's requests completed at other servers since its last request here.
    pub delta: u32,
    /// dmClock: those of `delta` served in the reservation phase.
    pub rho: u32,
}

impl BlkRequest {
    /// Byte range of the data inside the whole shared area.
    pub const fn data_offset(&self) -> usize {
        BLK_CONTROL_BYTES + self.data_page as usize * 4096
    }

    /// Pages of the data area used.
    pub const fn data_pages(&self) -> usize {
        (self.length as usize).div_ceil(4096)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkStatus {
    /// Done.
    Ok,
    /// The device reported an error; the guest gets an I/O error.
    DeviceError,
    /// The range lies outside the virtual disk.
    OutOfRange,
    /// The device cannot do this operation.
    Unsupported,
    /// The disk is attached read-only.
    ReadOnly,
    /// The device did not answer in time, and may still read or write the data.
    Timeout,
    /// The entry in the ring was not a request.
    Malformed,
}

impl BlkStatus {
    const fn code(self) -> u64 {
        match self {
            Self::Ok => 0,
            Self::DeviceError => 1,
            Self::OutOfRange => 2,
            Self::Unsupported => 3,
            Self::ReadOnly => 4,
            Self::Timeout => 5,
            Self::Malformed => 6,
        }
    }

    const fn from_code(code: u64) -> Self {
        match code {
            0 => Self::Ok,
            2 => Self::OutOfRange,
            3 => Self::Unsupported,
            4 => Self::ReadOnly,
            5 => Self::Timeout,
            6 => Self::Malformed,
            _ => Self::DeviceError,
        }
    }
}

/// Which rule of the scheduler served a request; a dmClock client counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// To keep a reservation.
    Reservation,
    /// By shares.
    Weight,
}

/// One finished request, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkCompletion {
    /// The slot that [`BlkClient::submit`] used; release it when its data is read.
    pub slot: u8,
    /// How it ended.
    pub status: BlkStatus,
    /// Phase it was served in.
    pub phase: Phase,
}

/// Why a ring was not usable or an entry was not a request. Always the other side's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The area is not [`BLK_RING_BYTES`] long or its header is of another layout.
    Layout,
    /// More entries claimed than the ring holds.
    Overrun,
    /// A slot number of 64 or more.
    BadSlot,
    /// The slot was submitted again while its request was still in work.
    SlotBusy {
        /// Which.
        slot: u8,
    },
    /// The slot does not hold a request.
    Malformed {
        /// Which; it has been answered with [`BlkStatus::Malformed`].
        slot: u8,
    },
}

const STATE_FREE: u64 = 0;
const STATE_SUBMITTED: u64 = 1;
const STATE_DONE: u64 = 2;

fn load(words: &[AtomicU64], index: usize) -> u64 {
    words.get(index).map_or(0, |w| w.load(Ordering::Acquire))
}

fn store(words: &[AtomicU64], index: usize, value: u64) {
    if let Some(word) = words.get(index) {
        word.store(value, Ordering::Release);
    }
}

const fn slot_word(slot: u8, field: usize) -> usize {
    at::SLOTS + slot as usize * at::SLOT_WORDS + field
}

#[expect(clippy::cast_possible_truncation, reason = "reduced modulo 64")]
const fn ring_index(position: u64) -> usize {
    (position % BLK_SLOTS as u64) as usize
}

/// Makes an empty ring of `words`. The creator does this once, before either side starts.
///
/// # Errors
///
/// [`RingError::Layout`] if the area has the wrong size.
pub fn format_blk_ring(words: &[AtomicU64]) -> Result<(), RingError> {
    if words.len() * WORD != BLK_RING_BYTES {
        return Err(RingError::Layout);
    }
    for word in &words[..BLK_CONTROL_BYTES / WORD] {
        word.store(0, Ordering::Relaxed);
    }
    store(words, at::MAGIC, BLK_MAGIC);
    Ok(())
}

fn check_layout(words: &[AtomicU64]) -> Result<(), RingError> {
    if words.len() * WORD != BLK_RING_BYTES || load(words, at::MAGIC) != BLK_MAGIC {
        return Err(RingError::Layout);
    }
    Ok(())
}

fn decode_slot(words: &[AtomicU64], slot: u8) -> Option<BlkRequest> {
    let sequence = load(words, slot_word(slot, 0));
    let command = load(words, slot_word(slot, 1));
    let sector = load(words, slot_word(slot, 2));
    let tags = load(words, slot_word(slot, 3));
    let [code, flags, page_low, page_high, l0, l1, l2, l3] = command.to_le_bytes();
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let data_page = u16::from_le_bytes([page_low, page_high]);
    let operation = match code {
        0 => BlkOperation::Read,
        1 => BlkOperation::Write,
        2 => BlkOperation::Flush,
        _ => return None,
    };
    let [d0, d1, d2, d3, r0, r1, r2, r3] = tags.to_le_bytes();
    let request = BlkRequest {
        sequence,
        operation,
        sector,
        length,
        data_page,
        delta: u32::from_le_bytes([d0, d1, d2, d3]),
        rho: u32::from_le_bytes([r0, r1, r2, r3]),
    };
    let sized = match operation {
        BlkOperation::Flush => length == 0,
        BlkOperation::Read | BlkOperation::Write => {
            length > 0
                && length <= BLK_REQUEST_MAX
                && length.is_multiple_of(SECTOR_BYTES)
                && usize::from(data_page) + request.data_pages() <= BLK_DATA_PAGES
                && sector.checked_add(u64::from(length / SECTOR_BYTES)).is_some()
        }
    };
    (flags == 0 && sized).then_some(request)
}

/// The serving side of a [block ring](BLK_SLOTS): what the io-sched-server keeps outside the client's reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkServer {
    /// Number of this server among those that served the ring; its answers carry the lower half.
    generation: u64,
    taken: u64,
    completed: u64,
    /// Slots whose request is in work here.
    busy: u64,
    /// Slots found submitted when a restarted server attached, not yet handed out.
    recovered: u64,
    sequences: [u64; BLK_SLOTS],
}

impl BlkServer {
    /// Starts to serve a ring, perhaps one that an earlier server left with requests in it.
    ///
    /// # Errors
    ///
    /// [`RingError::Layout`] if this is no block ring.
    pub fn attach(words: &[AtomicU64]) -> Result<Self, RingError> {
        check_layout(words)?;
        let taken = load(words, at::SUBMITTED);
        let mut recovered = 0;
        for slot in 0..BLK_SLOTS as u8 {
            if load(words, slot_word(slot, 4)) == STATE_SUBMITTED {
                recovered |= 1 << slot;
            }
        }
        let generation = load(words, at::GENERATION).wrapping_add(1);
        store(words, at::GENERATION, generation);
        Ok(Self {
            generation,
            taken,
            completed: load(words, at::COMPLETED),
            busy: 0,
            recovered,
            sequences: [0; BLK_SLOTS],
        })
    }

    /// The next request: first those an earlier server left, in their order, then new ones.
    ///
    /// # Errors
    ///
    /// [`RingError`] if the client broke the protocol; later requests can still be taken.
    pub fn next(&mut self, words: &[AtomicU64]) -> Result<Option<(u8, BlkRequest)>, RingError> {
        if self.recovered != 0 {
            let oldest = (0..BLK_SLOTS as u8)
                .filter(|slot| self.recovered >> slot & 1 == 1)
                .min_by_key(|&slot| load(words, slot_word(slot, 0)));
            if let Some(slot) = oldest {
                self.recovered &= !(1 << slot);
                return self.accept(words, slot).map(Some);
            }
        }
        loop {
            let submitted = load(words, at::SUBMITTED);
            let waiting = submitted.wrapping_sub(self.taken);
            if waiting == 0 {
                return Ok(None);
            }
            if waiting > BLK_SLOTS as u64 {
                self.taken = submitted;
                return Err(RingError::Overrun);
            }
            let entry = load(words, at::SUBMISSION + ring_index(self.taken));
            self.taken = self.taken.wrapping_add(1);
            let Ok(slot) = u8::try_from(entry) else { return Err(RingError::BadSlot) };
            if usize::from(slot) >= BLK_SLOTS {
                return Err(RingError::BadSlot);
            }
            let sequence = load(words, slot_word(slot, 0));
            if self.busy >> slot & 1 == 1 {
                // Seen while recovering and now again through the ring: the same request.
                if self.sequences[usize::from(slot)] == sequence {
                    continue;
                }
                return Err(RingError::SlotBusy { slot });
            }
            if load(words, slot_word(slot, 4)) == STATE_SUBMITTED {
                return self.accept(words, slot).map(Some);
            }
        }
    }

    fn accept(&mut self, words: &[AtomicU64], slot: u8) -> Result<(u8, BlkRequest), RingError> {
        self.busy |= 1 << slot;
        let Some(request) = decode_slot(words, slot) else {
            self.sequences[usize::from(slot)] = load(words, slot_word(slot, 0));
            self.complete(words, slot, BlkStatus::Malformed, Phase::Weight);
            return Err(RingError::Malformed { slot });
        };
        self.sequences[usize::from(slot)] = request.sequence;
        Ok((slot, request))
    }

    /// Answers the request in `slot`; the caller then signals the client.
    pub fn complete(&mut self, words: &[AtomicU64], slot: u8, status: BlkStatus, phase: Phase) {
        self.busy &= !(1 << slot);
        let served = match phase {
            Phase::Reservation => 1,
            Phase::Weight => 0,
        };
        let state = STATE_DONE | status.code() << 8 | served << 16 | self.generation << 32;
        store(words, slot_word(slot, 4), state);
        let entry = u64::from(slot);
        store(words, at::COMPLETION + ring_index(self.completed), entry);
        self.completed = self.completed.wrapping_add(1);
        store(words, at::COMPLETED, self.completed);
    }

    /// Requests taken and not yet completed.
    pub const fn in_work(&self) -> u32 {
        self.busy.count_ones()
    }
}

/// Why a client cannot submit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkFull {
    /// All slots are in use: wait for a completion.
    Slots,
    /// No run of free data pages is long enough: wait for a completion.
    Data,
    /// Longer than [`BLK_REQUEST_MAX`]: split it.
    TooLong,
}

/// The asking side of a [block ring](BLK_SLOTS): what a vmm-server (or the mem-server's swap) keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkClient {
    sequence: u64,
    submitted: u64,
    polled: u64,
    generation: u64,
    /// Slots reserved or submitted.
    used: u64,
    /// Slots submitted and not yet seen completed.
    waiting: u64,
    /// After a restart of the server: slots to look at besides the completion ring.
    rescan: u64,
    /// Slots whose request the present server's device has not given back ([`BlkStatus::Timeout`]).
    lost: u64,
    /// Those of them that were released: they stay taken as long as that device may touch their data.
    held: u64,
    pages: [u64; BLK_DATA_PAGES.div_ceil(64)],
    ranges: [(u16, u16); BLK_SLOTS],
}

impl BlkClient {
    /// Starts to use a freshly formatted ring.
    ///
    /// # Errors
    ///
    /// [`RingError::Layout`] if this is no block ring.
    pub fn attach(words: &[AtomicU64]) -> Result<Self, RingError> {
        check_layout(words)?;
        Ok(Self {
            sequence: 0,
            submitted: load(words, at::SUBMITTED),
            polled: load(words, at::COMPLETED),
            generation: load(words, at::GENERATION),
            used: 0,
            waiting: 0,
            rescan: 0,
            lost: 0,
            held: 0,
            pages: [0; BLK_DATA_PAGES.div_ceil(64)],
            ranges: [(0, 0); BLK_SLOTS],
        })
    }

    /// Takes a slot and data pages for `length` bytes. Returns the slot and the byte offset of its data in the area.
    ///
    /// # Errors
    ///
    /// [`BlkFull`] if there is no room now.
    pub fn reserve(&mut self, length: u32) -> Result<(u8, usize), BlkFull> {
        if length > BLK_REQUEST_MAX {
            return Err(BlkFull::TooLong);
        }
        let slot = (!self.used).trailing_zeros();
        if slot >= BLK_SLOTS as u32 {
            return Err(BlkFull::Slots);
        }
        let slot = slot as u8;
        let count = (length as usize).div_ceil(4096);
        let first = self.find_pages(count).ok_or(BlkFull::Data)?;
        for page in first..first + count {
            self.pages[page / 64] |= 1 << (page % 64);
        }
        self.used |= 1 << slot;
        self.ranges[usize::from(slot)] = (first as u16, count as u16);
        Ok((slot, BLK_CONTROL_BYTES + first * 4096))
    }

    fn find_pages(&self, count: usize) -> Option<usize> {
        let mut run = 0;
        if count == 0 {
            return Some(0);
        }
        for page in 0..BLK_DATA_PAGES {
            run = if self.pages[page / 64] >> (page % 64) & 1 == 1 { 0 } else { run + 1 };
            if run == count {
                return Some(page + 1 - count);
            }
        }
        None
    }

    /// Submits what was reserved in `slot`; `length` is what was reserved. The caller then rings the doorbell.
    pub fn submit(
        &mut self,
        words: &[AtomicU64],
        slot: u8,
        operation: BlkOperation,
        sector: u64,
        length: u32,
        (delta, rho): (u32, u32),
    ) {
        let code = match operation {
            BlkOperation::Read => 0,
            BlkOperation::Write => 1,
            BlkOperation::Flush => 2,
        };
        let page = self.ranges[usize::from(slot)].0;
        self.sequence += 1;
        store(words, slot_word(slot, 0), self.sequence);
        store(words, slot_word(slot, 1), code | u64::from(page) << 16 | u64::from(length) << 32);
        store(words, slot_word(slot, 2), sector);
        store(words, slot_word(slot, 3), u64::from(delta) | u64::from(rho) << 32);
        store(words, slot_word(slot, 4), STATE_SUBMITTED);
        store(words, at::SUBMISSION + ring_index(self.submitted), u64::from(slot));
        self.submitted = self.submitted.wrapping_add(1);
        self.waiting |= 1 << slot;
        store(words, at::SUBMITTED, self.submitted);
    }

    /// The next finished request, if any. Its slot and data stay taken until [`release`](Self::release).
    pub fn poll(&mut self, words: &[AtomicU64]) -> Option<BlkCompletion> {
        let generation = load(words, at::GENERATION);
        if generation != self.generation {
            self.server_changed(words, generation);
        }
        while self.rescan != 0 {
            let slot = self.rescan.trailing_zeros() as u8;
            self.rescan &= self.rescan - 1;
            if let Some(done) = self.take_done(words, slot) {
                return Some(done);
            }
        }
        let completed = load(words, at::COMPLETED);
        if completed.wrapping_sub(self.polled) > BLK_SLOTS as u64 {
            // Overrun can only come from a broken server: fall back to the slots themselves.
            self.polled = completed;
            self.rescan = self.waiting;
            return None;
        }
        while self.polled != completed {
            let entry = load(words, at::COMPLETION + ring_index(self.polled));
            self.polled = self.polled.wrapping_add(1);
            if let Ok(slot) = u8::try_from(entry)
                && let Some(done) = self.take_done(words, slot)
            {
                return Some(done);
            }
        }
        None
    }

    /// Another server serves the ring, and has reset the device before.
    #[cold]
    fn server_changed(&mut self, words: &[AtomicU64], generation: u64) {
        self.generation = generation;
        // The old one died between answering a slot and announcing it, perhaps: look at all of them once.
        self.rescan = self.waiting;
        self.lost = 0;
        let mut held = core::mem::take(&mut self.held);
        while held != 0 {
            let slot = held.trailing_zeros() as u8;
            held &= held - 1;
            // What the device read too late belongs to nobody.
            let (first, count) = self.ranges[usize::from(slot)];
            let data = (BLK_CONTROL_BYTES + usize::from(first) * 4096) / WORD;
            for word in words.iter().skip(data).take(usize::from(count) * 4096 / WORD) {
                word.store(0, Ordering::Relaxed);
            }
            self.free(words, slot);
        }
    }

    fn take_done(&mut self, words: &[AtomicU64], slot: u8) -> Option<BlkCompletion> {
        if usize::from(slot) >= BLK_SLOTS || self.waiting >> slot & 1 == 0 {
            return None;
        }
        let state = load(words, slot_word(slot, 4));
        if state & 0xff != STATE_DONE {
            return None;
        }
        self.waiting &= !(1 << slot);
        let phase = if state >> 16 & 1 == 1 { Phase::Reservation } else { Phase::Weight };
        let status = BlkStatus::from_code(state >> 8 & 0xff);
        // Not if a server says so that is gone: its device has been reset since.
        if status == BlkStatus::Timeout && state >> 32 == self.generation & u64::from(u32::MAX) {
            self.lost |= 1 << slot;
        }
        Some(BlkCompletion { slot, status, phase })
    }

    /// Byte offset of a slot's data in the shared area.
    pub fn data_offset(&self, slot: u8) -> usize {
        BLK_CONTROL_BYTES + usize::from(self.ranges[usize::from(slot) % BLK_SLOTS].0) * 4096
    }

    /// Whether the device may still read or write the data of a slot whose request has ended.
    #[inline]
    pub const fn is_lost(&self, slot: u8) -> bool {
        self.lost >> (slot % BLK_SLOTS as u8) & 1 == 1
    }

    /// Gives a slot and its data pages back. After [`BlkStatus::Timeout`] they stay taken until another server serves the
    /// ring, for the device may still read or write them.
    pub fn release(&mut self, words: &[AtomicU64], slot: u8) {
        if self.is_lost(slot) {
            self.held |= 1 << slot;
            return;
        }
        self.free(words, slot);
    }

    fn free(&mut self, words: &[AtomicU64], slot: u8) {
        let (first, count) = core::mem::take(&mut self.ranges[usize::from(slot) % BLK_SLOTS]);
        for page in usize::from(first)..usize::from(first) + usize::from(count) {
            self.pages[page / 64] &= !(1 << (page % 64));
        }
        store(words, slot_word(slot, 4), STATE_FREE);
        self.used &= !(1 << slot);
        self.waiting &= !(1 << slot);
    }

    /// Requests submitted and not yet seen completed.
    pub const fn waiting(&self) -> u32 {
        self.waiting.count_ones()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Bytes

/// A one-way stream of bytes between two sides that do not trust each other: console output or input.
///
/// Word 0 counts bytes written, word 1 bytes read, the rest is data. A side that lies about its count loses bytes of
/// this stream and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct ByteRing<'m> {
    words: &'m [AtomicU64],
}

/// Words in front of the data of a [`ByteRing`].
const BYTE_RING_HEADER: usize = 2;

impl<'m> ByteRing<'m> {
    /// A view on `words` (at least three); zeroed memory is an empty ring.
    pub const fn new(words: &'m [AtomicU64]) -> Self {
        Self { words }
    }

    /// Bytes the ring can hold.
    pub const fn capacity(&self) -> usize {
        self.words.len().saturating_sub(BYTE_RING_HEADER) * WORD
    }

    /// Bytes written and not yet read; a nonsensical count reads as full.
    pub fn len(&self) -> usize {
        let used = load(self.words, 0).wrapping_sub(load(self.words, 1));
        usize::try_from(used).unwrap_or(usize::MAX).min(self.capacity())
    }

    /// Is there nothing to read?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes as many of `bytes` as fit; returns how many.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.capacity() - self.len());
        let written = load(self.words, 0);
        self.copy_in(written, &bytes[..count]);
        store(self.words, 0, written.wrapping_add(count as u64));
        count
    }

    fn copy_in(&self, position: u64, bytes: &[u8]) {
        let data = self.words.get(BYTE_RING_HEADER..).unwrap_or(&[]);
        let start = self.reduce(position);
        let first = bytes.len().min(self.capacity() - start);
        write_bytes(data, start, &bytes[..first]);
        write_bytes(data, 0, &bytes[first..]);
    }

    /// Reads into `out` what there is; returns how many bytes.
    pub fn read(&self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len());
        let (Some(data), 1..) = (self.words.get(BYTE_RING_HEADER..), count) else { return 0 };
        let taken = load(self.words, 1);
        let start = self.reduce(taken);
        let first = count.min(self.capacity() - start);
        read_bytes(data, start, &mut out[..first]);
        read_bytes(data, 0, &mut out[first..count]);
        store(self.words, 1, taken.wrapping_add(count as u64));
        count
    }

    fn reduce(&self, position: u64) -> usize {
        let capacity = self.capacity().max(1) as u64;
        usize::try_from(position % capacity).unwrap_or(0)
    }
}

/// Bytes of a console page: the output ring first, then the input ring.
pub const CONSOLE_BYTES: usize = 4096;
/// Words of the console page that belong to the output ring (VM to host).
const CONSOLE_OUT_WORDS: usize = 448;

/// Splits a VM's console page into the ring of output (VM to host) and of input (host to VM).
pub fn console_rings(page: &[AtomicU64]) -> (ByteRing<'_>, ByteRing<'_>) {
    let (out, input) = page.split_at(CONSOLE_OUT_WORDS.min(page.len()));
    (ByteRing::new(out), ByteRing::new(input))
}

/// Bytes of a server's log page.
pub const LOG_BYTES: usize = 4096;

/// Log frames of one server: a [`ByteRing`] that takes a frame whole or counts it as lost.
#[derive(Clone, Copy, Debug)]
pub struct LogRing<'m> {
    lost: &'m [AtomicU64],
    ring: ByteRing<'m>,
}

impl<'m> LogRing<'m> {
    /// A view on a page; zeroed memory is an empty ring.
    pub fn new(page: &'m [AtomicU64]) -> Self {
        let (lost, rest) = page.split_at(page.len().min(1));
        Self { lost, ring: ByteRing::new(rest) }
    }

    /// Writes one encoded frame (with its terminator) whole; `false` if it was lost for want of room.
    pub fn write_frame(&self, frame: &[u8]) -> bool {
        if frame.len() > self.ring.capacity() - self.ring.len() {
            store(self.lost, 0, load(self.lost, 0).wrapping_add(1));
            return false;
        }
        self.ring.write(frame) == frame.len()
    }

    /// Frames lost so far.
    pub fn lost(&self) -> u64 {
        load(self.lost, 0)
    }

    /// Reads bytes of frames into `out`; returns how many.
    pub fn read(&self, out: &mut [u8]) -> usize {
        self.ring.read(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(bytes: usize) -> Vec<AtomicU64> {
        (0..bytes / WORD).map(|_| AtomicU64::new(0)).collect()
    }

    fn blk() -> (Vec<AtomicU64>, BlkClient, BlkServer) {
        let words = area(BLK_RING_BYTES);
        format_blk_ring(&words).unwrap();
        let client = BlkClient::attach(&words).unwrap();
        let server = BlkServer::attach(&words).unwrap();
        (words, client, server)
    }

    fn submit(words: &[AtomicU64], client: &mut BlkClient, sector: u64, length: u32) -> u8 {
        let (slot, _) = client.reserve(length).unwrap();
        client.submit(words, slot, BlkOperation::Write, sector, length, (0, 0));
        slot
    }

    /// What the client keeps is whole: slots that wait are in use, and data pages are those of slots in use, each of one only.
    fn check(client: &BlkClient) {
        assert_eq!(client.waiting & !client.used, 0, "a slot waits that is not in use");
        let mut pages = [0u64; BLK_DATA_PAGES.div_ceil(64)];
        for slot in (0..BLK_SLOTS).filter(|slot| client.used >> slot & 1 == 1) {
            let (first, count) = client.ranges[slot];
            for page in usize::from(first)..usize::from(first + count) {
                assert_eq!(pages[page / 64] >> (page % 64) & 1, 0, "page {page} has two owners");
                pages[page / 64] |= 1 << (page % 64);
            }
        }
        assert_eq!(pages, client.pages);
    }

    proptest::proptest! {
        /// Whatever the server writes, a request ends at most once, and the client's books stay whole.
        #[test]
        fn a_lying_server_ends_no_request_twice(
            steps in proptest::collection::vec((0u8..8, 0usize..600, proptest::prelude::any::<u64>()), 1..400),
        ) {
            let (words, mut client, mut server) = blk();
            let mut open = std::collections::BTreeSet::new();
            for (op, at, value) in steps {
                match op {
                    0..=2 => {
                        let length = (value % 17) as u32 * 4096;
                        if let Ok((slot, offset)) = client.reserve(length) {
                            assert!(offset + length as usize <= BLK_RING_BYTES);
                            client.submit(&words, slot, BlkOperation::Read, value, length, (0, 0));
                            assert!(open.insert(slot), "slot {slot} was in use");
                        }
                    }
                    3 => while let Some(done) = client.poll(&words) {
                        assert!(open.remove(&done.slot), "slot {} ended twice", done.slot);
                        client.release(&words, done.slot);
                    },
                    4 => {
                        let _ = server.next(&words);
                        let status = if at % 3 == 0 { BlkStatus::Timeout } else { BlkStatus::Ok };
                        server.complete(&words, (value % BLK_SLOTS as u64) as u8, status, Phase::Weight);
                    }
                    // Words of the rings and slots, by small and by wild values.
                    5 => store(&words, at % words.len(), value % 70),
                    6 => store(&words, at % words.len(), value),
                    _ => if let Ok(new) = BlkServer::attach(&words) { server = new; },
                }
                check(&client);
                assert_eq!(client.waiting() as usize, open.len());
            }
        }
    }

    #[test]
    fn a_request_and_its_data_travel_both_ways() {
        let (words, mut client, mut server) = blk();
        let (slot, offset) = client.reserve(4096).unwrap();
        write_bytes(&words, offset + 3, b"hello");
        client.submit(&words, slot, BlkOperation::Write, 77, 4096, (5, 2));
        let (taken, request) = server.next(&words).unwrap().unwrap();
        assert_eq!((taken, request.sector, request.delta, request.rho), (slot, 77, 5, 2));
        let mut data = [0; 5];
        read_bytes(&words, request.data_offset() + 3, &mut data);
        assert_eq!(&data, b"hello");
        assert_eq!(server.next(&words), Ok(None));
        assert_eq!(client.poll(&words), None);
        server.complete(&words, taken, BlkStatus::OutOfRange, Phase::Reservation);
        let done = client.poll(&words).unwrap();
        assert_eq!(
            done,
            BlkCompletion { slot, status: BlkStatus::OutOfRange, phase: Phase::Reservation }
        );
        client.release(&words, slot);
        assert_eq!(client.waiting(), 0);
    }

    #[test]
    fn slots_and_data_run_out_and_come_back() {
        let (words, mut client, mut server) = blk();
        for sector in 0..BLK_SLOTS as u64 {
            submit(&words, &mut client, sector, 4096);
        }
        assert_eq!(client.reserve(512), Err(BlkFull::Slots));
        while let Ok(Some((slot, _))) = server.next(&words) {
            server.complete(&words, slot, BlkStatus::Ok, Phase::Weight);
        }
        while let Some(done) = client.poll(&words) {
            client.release(&words, done.slot);
        }
        let long = BLK_DATA_PAGES / 16;
        for _ in 0..long {
            submit(&words, &mut client, 0, BLK_REQUEST_MAX);
        }
        assert_eq!(client.reserve(BLK_REQUEST_MAX), Err(BlkFull::Data));
        assert_eq!(client.reserve(BLK_REQUEST_MAX + 1), Err(BlkFull::TooLong));
    }

    #[test]
    fn a_new_server_finds_the_requests_of_the_old_one_once_and_in_order() {
        let (words, mut client, mut old) = blk();
        for sector in 0..6 {
            submit(&words, &mut client, sector, 512);
        }
        for _ in 0..4 {
            old.next(&words).unwrap().unwrap();
        }
        old.complete(&words, 2, BlkStatus::Ok, Phase::Weight);
        let mut new = BlkServer::attach(&words).unwrap();
        let mut sectors = Vec::new();
        while let Some((slot, request)) = new.next(&words).unwrap() {
            sectors.push(request.sector);
            new.complete(&words, slot, BlkStatus::Ok, Phase::Weight);
        }
        assert_eq!(sectors, [0, 1, 3, 4, 5]);
        let mut finished = 0;
        while let Some(done) = client.poll(&words) {
            client.release(&words, done.slot);
            finished += 1;
        }
        assert_eq!(finished, 6);
    }

    #[test]
    fn an_answer_that_was_never_announced_is_found_after_a_restart() {
        let (words, mut client, mut old) = blk();
        let slot = submit(&words, &mut client, 9, 512);
        old.next(&words).unwrap().unwrap();
        store(&words, slot_word(slot, 4), STATE_DONE);
        let mut new = BlkServer::attach(&words).unwrap();
        assert_eq!(new.next(&words), Ok(None));
        assert_eq!(client.poll(&words).map(|d| d.slot), Some(slot));
    }

    /// The device may still write what it was asked to read: neither slot nor data pages are anybody else's until it is reset.
    #[test]
    fn a_lost_request_keeps_its_slot_and_its_data_until_the_next_server() {
        let (words, mut client, mut server) = blk();
        let lost = submit(&words, &mut client, 9, 8192);
        let range = client.data_offset(lost)..client.data_offset(lost) + 8192;
        server.next(&words).unwrap().unwrap();
        server.complete(&words, lost, BlkStatus::Timeout, Phase::Weight);
        assert_eq!(client.poll(&words).map(|done| done.status), Some(BlkStatus::Timeout));
        client.release(&words, lost);
        assert_eq!(client.waiting(), 0);
        let mut others = Vec::new();
        while let Ok((slot, offset)) = client.reserve(4096) {
            assert!(slot != lost && !range.contains(&offset), "slot {slot} at {offset:#x}");
            others.push(slot);
        }
        assert_eq!(others.len(), BLK_SLOTS - 1);
        check(&client);
        write_bytes(&words, range.start, b"too late");
        let _ = BlkServer::attach(&words).unwrap();
        assert_eq!(client.poll(&words), None);
        let (slot, offset) = client.reserve(4096).unwrap();
        assert_eq!(
            (slot, offset),
            (lost, range.start),
            "the new server's device knows nothing of it"
        );
        check(&client);
        let mut bytes = [0xff; 8];
        read_bytes(&words, offset, &mut bytes);
        assert_eq!(bytes, [0; 8], "what came too late is nobody's");
    }

    #[test]
    fn what_a_server_lost_that_has_been_replaced_is_free_at_once() {
        let (words, mut client, mut server) = blk();
        assert_eq!(client.poll(&words), None);
        let slot = submit(&words, &mut client, 9, 4096);
        server.next(&words).unwrap().unwrap();
        server.complete(&words, slot, BlkStatus::Timeout, Phase::Weight);
        let mut new = BlkServer::attach(&words).unwrap();
        assert_eq!(client.poll(&words).map(|done| done.status), Some(BlkStatus::Timeout));
        client.release(&words, slot);
        assert_eq!(client.reserve(4096).unwrap().0, slot);
        client.submit(&words, slot, BlkOperation::Read, 9, 4096, (0, 0));
        // The same slot lost by the new one is kept until the one after it.
        new.next(&words).unwrap().unwrap();
        new.complete(&words, slot, BlkStatus::Timeout, Phase::Weight);
        assert!(client.poll(&words).is_some());
        client.release(&words, slot);
        assert_ne!(client.reserve(4096).unwrap().0, slot);
    }

    /// The next server may come while the client looks at the answer.
    #[test]
    fn a_lost_request_that_is_looked_at_while_the_server_changes_is_released_once() {
        let (words, mut client, mut server) = blk();
        let slot = submit(&words, &mut client, 9, 4096);
        server.next(&words).unwrap().unwrap();
        server.complete(&words, slot, BlkStatus::Timeout, Phase::Weight);
        assert!(client.poll(&words).is_some());
        let _ = BlkServer::attach(&words).unwrap();
        assert_eq!(client.poll(&words), None);
        assert_ne!(client.reserve(4096).unwrap().0, slot, "its owner has not released it");
        client.release(&words, slot);
        assert_eq!(client.reserve(4096).unwrap().0, slot);
        check(&client);
    }

    #[test]
    fn a_hostile_client_gets_errors_and_nothing_else() {
        let (words, _, mut server) = blk();
        store(&words, at::SUBMITTED, 1000);
        assert_eq!(server.next(&words), Err(RingError::Overrun));
        let (words, _, mut server) = blk();
        store(&words, at::SUBMISSION, 64);
        store(&words, at::SUBMITTED, 1);
        assert_eq!(server.next(&words), Err(RingError::BadSlot));
        store(&words, at::SUBMISSION + 1, u64::MAX);
        store(&words, at::SUBMITTED, 2);
        assert_eq!(server.next(&words), Err(RingError::BadSlot));
        let (words, mut client, mut server) = blk();
        let slot = submit(&words, &mut client, 1, 512);
        server.next(&words).unwrap().unwrap();
        store(&words, at::SUBMISSION + 1, u64::from(slot));
        store(&words, slot_word(slot, 0), 99);
        store(&words, at::SUBMITTED, 2);
        assert_eq!(server.next(&words), Err(RingError::SlotBusy { slot }));
        for (field, value) in [
            (1, 7u64),
            (1, 0),
            (1, 513 << 32),
            (1, u64::from(BLK_REQUEST_MAX + 512) << 32),
            (1, 4096 << 32 | 255 << 16),
            (1, 2 | 512 << 32),
            (2, u64::MAX),
            (1, 512 << 32 | 1 << 8),
        ] {
            let (words, mut client, mut server) = blk();
            let slot = submit(&words, &mut client, 1, 512);
            store(&words, slot_word(slot, field), value);
            assert_eq!(
                server.next(&words),
                Err(RingError::Malformed { slot }),
                "{field} {value:#x}"
            );
            assert_eq!(client.poll(&words).map(|d| d.status), Some(BlkStatus::Malformed));
        }
    }

    #[test]
    fn a_ring_of_another_layout_is_refused() {
        let words = area(BLK_RING_BYTES);
        assert_eq!(BlkServer::attach(&words), Err(RingError::Layout));
        assert_eq!(format_blk_ring(&words[1..]), Err(RingError::Layout));
    }

    #[test]
    fn bytes_wrap_round_and_survive_nonsense_counts() {
        let words = area(80);
        let ring = ByteRing::new(&words);
        assert_eq!(ring.capacity(), 64);
        let mut out = [0; 64];
        for round in 0..50u8 {
            let text = [round; 37];
            assert_eq!(ring.write(&text), 37);
            assert_eq!(ring.read(&mut out), 37);
            assert_eq!(out[..37], text);
        }
        assert_eq!(ring.write(&[1; 100]), 64);
        assert_eq!(ring.write(&[1]), 0);
        store(&words, 1, u64::MAX);
        assert!(ring.read(&mut out) <= 64);
        assert_eq!(ByteRing::new(&words[..1]).read(&mut out), 0);
    }

    #[test]
    fn a_log_frame_is_written_whole_or_counted_lost() {
        let words = area(LOG_BYTES);
        let log = LogRing::new(&words);
        assert!(log.write_frame(&[7; 4000]));
        assert!(!log.write_frame(&[8; 100]));
        assert_eq!(log.lost(), 1);
        let mut out = [0; 4096];
        assert_eq!(log.read(&mut out), 4000);
        let (out_ring, in_ring) = console_rings(&words);
        assert!(out_ring.capacity() + in_ring.capacity() <= CONSOLE_BYTES);
    }
}
