//! The swap partition as a client of the io-sched-server: pages out in clusters, pages in one by one.
//!
//! Writes to neighbouring slots are gathered into one request until [`Queue::flush`]; reads go at once. A request of several pages that
//! fails is done again page by page, so that a bad sector costs one slot; one that the device never gave back is not, for its place in
//! the ring must not change. Every page passes through a data page of the ring, so the device never touches a guest's frame.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use protocol::ring::{BLK_SLOTS, BlkClient, BlkOperation, BlkStatus, RingError, SECTOR_BYTES};

use crate::page::{FRAME_BYTES, Frame};

/// Pages of one write request at most: 64 KiB.
pub const CLUSTER: usize = 16;
/// Write requests in the ring at once: what is left of its 255 data pages is for reads, which somebody waits for.
const WRITES_MAX: u32 = 12;
/// Pages that can be on their way out at once.
pub const WRITES_PAGES: usize = WRITES_MAX as usize * CLUSTER;
const PAGE_WORDS: usize = FRAME_BYTES / 8;
const SLOT_SECTORS: u64 = FRAME_BYTES as u64 / SECTOR_BYTES as u64;

/// Pages written together, by transfer.
pub type Cluster = heapless::Vec<u32, CLUSTER>;

#[derive(Clone, Debug, Default)]
enum Job {
    #[default]
    None,
    /// Pages for the slots from `first` on.
    Write {
        first: u32,
        transfers: Cluster,
    },
    /// They were not written together: page `at` of them is on its way alone, those before have been.
    Singly {
        first: u32,
        transfers: Cluster,
        at: usize,
    },
    Read {
        transfer: u32,
        frame: Frame,
    },
}

/// A cluster that is still being filled.
#[derive(Clone, Debug)]
struct Open {
    ring_slot: u8,
    first: u32,
    transfers: Cluster,
}

/// What the device has finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// These pages were written, or not.
    Written {
        /// By transfer.
        transfers: Cluster,
        /// All of them are on the disk.
        ok: bool,
    },
    /// A page was read, or not.
    Read {
        /// Which transfer.
        transfer: u32,
        /// Where it goes.
        frame: Frame,
        /// Its bytes are those that were written.
        ok: bool,
    },
}

/// Requests between mem-server and swap partition.
#[derive(Debug)]
pub struct Queue {
    client: BlkClient,
    open: Option<Open>,
    jobs: [Job; BLK_SLOTS],
    writes: u32,
    is_rung: bool,
}

impl Queue {
    /// Over a freshly formatted ring.
    ///
    /// # Errors
    ///
    /// [`RingError::Layout`] if it is none.
    pub fn attach(words: &[AtomicU64]) -> Result<Self, RingError> {
        Ok(Self {
            client: BlkClient::attach(words)?,
            open: None,
            jobs: [const { Job::None }; BLK_SLOTS],
            writes: 0,
            is_rung: true,
        })
    }

    /// Takes a page for swap slot `slot`; `fill` copies it into the ring. False if the ring is full.
    pub fn write(
        &mut self,
        words: &[AtomicU64],
        transfer: u32,
        slot: u32,
        fill: impl FnOnce(&[AtomicU64]),
    ) -> bool {
        let follows = |open: &Open| open.first + open.transfers.len() as u32 == slot;
        if !self.open.as_ref().is_some_and(follows) {
            self.submit_open(words);
            if self.writes == WRITES_MAX {
                return false;
            }
            let Ok((ring_slot, _)) = self.client.reserve((CLUSTER * FRAME_BYTES) as u32) else {
                return false;
            };
            self.writes += 1;
            self.open = Some(Open { ring_slot, first: slot, transfers: Cluster::new() });
        }
        let Some(open) = &mut self.open else { return false };
        let at = self.client.data_offset(open.ring_slot) / 8 + open.transfers.len() * PAGE_WORDS;
        let Some(page) = words.get(at..at + PAGE_WORDS) else { return false };
        if open.transfers.push(transfer).is_err() {
            return false;
        }
        fill(page);
        if open.transfers.is_full() {
            self.submit_open(words);
        }
        true
    }

    fn submit_open(&mut self, words: &[AtomicU64]) {
        let Some(open) = self.open.take() else { return };
        let length = (open.transfers.len() * FRAME_BYTES) as u32;
        let sector = u64::from(open.first) * SLOT_SECTORS;
        self.client.submit(words, open.ring_slot, BlkOperation::Write, sector, length, (0, 0));
        self.jobs[usize::from(open.ring_slot)] =
            Job::Write { first: open.first, transfers: open.transfers };
        self.is_rung = false;
    }

    /// Submits page `at` of a cluster again, alone; its bytes go where the request's begin.
    #[cold]
    fn submit_singly(
        &mut self,
        words: &[AtomicU64],
        ring_slot: u8,
        (first, transfers, at): (u32, Cluster, usize),
    ) {
        let data = self.client.data_offset(ring_slot) / 8;
        if at > 0 {
            for word in data..data + PAGE_WORDS {
                let Some(from) = words.get(word + at * PAGE_WORDS) else { break };
                words[word].store(from.load(Relaxed), Relaxed);
            }
        }
        let sector = u64::from(first + at as u32) * SLOT_SECTORS;
        let length = FRAME_BYTES as u32;
        self.client.submit(words, ring_slot, BlkOperation::Write, sector, length, (0, 0));
        self.jobs[usize::from(ring_slot)] = Job::Singly { first, transfers, at };
        self.is_rung = false;
    }

    /// Asks for the page in swap slot `slot`. False if the ring is full.
    pub fn read(&mut self, words: &[AtomicU64], transfer: u32, slot: u32, frame: Frame) -> bool {
        let length = FRAME_BYTES as u32;
        let Ok((ring_slot, _)) = self.client.reserve(length) else { return false };
        let sector = u64::from(slot) * SLOT_SECTORS;
        self.client.submit(words, ring_slot, BlkOperation::Read, sector, length, (0, 0));
        self.jobs[usize::from(ring_slot)] = Job::Read { transfer, frame };
        self.is_rung = false;
        true
    }

    /// Submits what is being gathered. True if the doorbell must be rung.
    #[inline]
    pub fn flush(&mut self, words: &[AtomicU64]) -> bool {
        if self.is_rung && self.open.is_none() {
            return false;
        }
        self.submit_open(words);
        self.is_rung = true;
        true
    }

    /// The next finished request; `store` puts a page that was read into its frame.
    pub fn poll(
        &mut self,
        words: &[AtomicU64],
        mut store: impl FnMut(Frame, &[AtomicU64]),
    ) -> Option<Finished> {
        loop {
            let done = self.client.poll(words)?;
            let ok = done.status == BlkStatus::Ok;
            let is_lost = self.client.is_lost(done.slot);
            let (finished, pages) = match core::mem::take(&mut self.jobs[usize::from(done.slot)]) {
                Job::None => (None, 1),
                Job::Write { first, transfers } if !ok && !is_lost && transfers.len() > 1 => {
                    self.submit_singly(words, done.slot, (first, transfers, 0));
                    continue;
                }
                Job::Write { transfers, .. } => {
                    self.writes -= 1;
                    let pages = transfers.len();
                    (Some(Finished::Written { transfers, ok }), pages)
                }
                Job::Singly { first, transfers, at } => {
                    let pages = transfers.len();
                    let end = if is_lost { pages } else { at + 1 };
                    let ended = transfers.get(at..end).unwrap_or(&[]).iter().copied().collect();
                    let finished = Some(Finished::Written { transfers: ended, ok });
                    if end < pages {
                        self.submit_singly(words, done.slot, (first, transfers, at + 1));
                        return finished;
                    }
                    self.writes -= 1;
                    (finished, pages)
                }
                Job::Read { transfer, frame } => {
                    let at = self.client.data_offset(done.slot) / 8;
                    let page = words.get(at..at + PAGE_WORDS).filter(|_| ok);
                    if let Some(page) = page {
                        store(frame, page);
                    }
                    (Some(Finished::Read { transfer, frame, ok: page.is_some() }), 1)
                }
            };
            // Nothing of one VM's stays where another's comes next: a lost request's place stays its own (see `BlkClient`), and the
            // device may still write from there.
            if !is_lost {
                let at = self.client.data_offset(done.slot) / 8;
                for word in words.get(at..at + pages * PAGE_WORDS).unwrap_or(&[]) {
                    word.store(0, Relaxed);
                }
            }
            self.client.release(words, done.slot);
            return finished;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ring::{BLK_CONTROL_BYTES, BLK_RING_BYTES, BlkServer, Phase, format_blk_ring};

    fn ring() -> Vec<AtomicU64> {
        let words: Vec<AtomicU64> = (0..BLK_RING_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        format_blk_ring(&words).unwrap();
        words
    }

    fn fill(tag: u64) -> impl FnOnce(&[AtomicU64]) {
        move |page| page.iter().for_each(|word| word.store(tag, Relaxed))
    }

    fn nothing(_: Frame, _: &[AtomicU64]) {}

    #[test]
    fn neighbours_are_one_request_and_others_are_not() {
        let words = ring();
        let mut disk = BlkServer::attach(&words).unwrap();
        let mut queue = Queue::attach(&words).unwrap();
        for (transfer, slot) in [(0, 10), (1, 11), (2, 12), (3, 40)] {
            assert!(queue.write(&words, transfer, slot, fill(slot.into())));
        }
        assert!(queue.flush(&words) && !queue.flush(&words), "one doorbell for all");
        let (first, request) = disk.next(&words).unwrap().unwrap();
        assert_eq!((request.sector, request.length), (80, 3 * 4096));
        let (second, request) = disk.next(&words).unwrap().unwrap();
        assert_eq!((request.sector, request.length), (320, 4096));
        assert_eq!(disk.next(&words), Ok(None));
        disk.complete(&words, second, BlkStatus::Ok, Phase::Weight);
        disk.complete(&words, first, BlkStatus::Ok, Phase::Weight);
        let written = |transfers: &[u32], ok| {
            let transfers = transfers.iter().copied().collect();
            Some(Finished::Written { transfers, ok })
        };
        assert_eq!(queue.poll(&words, nothing), written(&[3], true));
        assert_eq!(queue.poll(&words, nothing), written(&[0, 1, 2], true));
        assert_eq!(queue.poll(&words, nothing), None);
    }

    /// The disk refuses every write to `bad`: the other pages of the cluster are written, each with its own bytes.
    #[test]
    fn a_bad_sector_costs_its_page_alone() {
        let words = ring();
        let mut disk = BlkServer::attach(&words).unwrap();
        let mut queue = Queue::attach(&words).unwrap();
        let bad = 22;
        for slot in 20..25 {
            assert!(queue.write(&words, slot + 100, slot, fill(slot.into())));
        }
        let (mut requests, mut on_disk, mut results) = (0, Vec::new(), Vec::new());
        while queue.flush(&words) {
            while let Some((slot, request)) = disk.next(&words).unwrap() {
                requests += 1;
                let first = (request.sector / SLOT_SECTORS) as u32;
                let pages = request.length / FRAME_BYTES as u32;
                let ok = !(first..first + pages).contains(&bad);
                for page in (0..pages).filter(|_| ok) {
                    let at = request.data_offset() / 8 + page as usize * PAGE_WORDS;
                    on_disk.push((first + page, words[at].load(Relaxed)));
                }
                let status = if ok { BlkStatus::Ok } else { BlkStatus::DeviceError };
                disk.complete(&words, slot, status, Phase::Weight);
            }
            while let Some(Finished::Written { transfers, ok }) = queue.poll(&words, nothing) {
                results.extend(transfers.into_iter().map(|transfer| (transfer - 100, ok)));
            }
        }
        assert_eq!(results, [20, 21, 22, 23, 24].map(|slot| (slot, slot != bad)));
        assert_eq!(on_disk, [20, 21, 23, 24].map(|slot| (slot, u64::from(slot))));
        assert_eq!(requests, 1 + 5);
        assert!(
            words[BLK_CONTROL_BYTES / 8..].iter().all(|word| word.load(Relaxed) == 0),
            "bytes are left"
        );
        // What it held is free again.
        let taken = (0..1000).take_while(|at| queue.write(&words, *at, 2 * at, fill(1))).count();
        assert!(taken >= 12, "{taken}");
    }

    /// The device may still read the pages of a lost write: they neither change nor are they written again from there.
    #[test]
    fn a_lost_write_fails_whole_and_its_bytes_stay() {
        let words = ring();
        let mut disk = BlkServer::attach(&words).unwrap();
        let mut queue = Queue::attach(&words).unwrap();
        for slot in 20..23 {
            assert!(queue.write(&words, slot + 100, slot, fill(slot.into())));
        }
        queue.flush(&words);
        let (slot, request) = disk.next(&words).unwrap().unwrap();
        disk.complete(&words, slot, BlkStatus::Timeout, Phase::Weight);
        let transfers = [120, 121, 122].into_iter().collect();
        assert_eq!(queue.poll(&words, nothing), Some(Finished::Written { transfers, ok: false }));
        assert!(!queue.flush(&words), "nothing more is asked of the disk");
        let bytes =
            |page: usize| words[request.data_offset() / 8 + page * PAGE_WORDS].load(Relaxed);
        assert_eq!([0, 1, 2].map(bytes), [20, 21, 22]);
        // The next server has reset the device.
        let mut disk = BlkServer::attach(&words).unwrap();
        assert_eq!((queue.poll(&words, nothing), disk.next(&words)), (None, Ok(None)));
        assert_eq!([0, 1, 2].map(bytes), [0; 3]);
    }

    #[test]
    fn a_page_lost_on_its_way_alone_takes_those_behind_it_along() {
        let words = ring();
        let mut disk = BlkServer::attach(&words).unwrap();
        let mut queue = Queue::attach(&words).unwrap();
        for slot in 20..24 {
            assert!(queue.write(&words, slot, slot, fill(slot.into())));
        }
        let answers = [BlkStatus::DeviceError, BlkStatus::Ok, BlkStatus::Timeout];
        let mut results = Vec::new();
        for status in answers {
            queue.flush(&words);
            let (slot, _) = disk.next(&words).unwrap().unwrap();
            disk.complete(&words, slot, status, Phase::Weight);
            results.extend(queue.poll(&words, nothing));
        }
        let written = |transfers: &[u32], ok| Finished::Written {
            transfers: transfers.iter().copied().collect(),
            ok,
        };
        assert_eq!(results, [written(&[20], true), written(&[21, 22, 23], false)]);
        assert!(!queue.flush(&words) && queue.writes == 0);
    }

    #[test]
    fn reads_find_room_however_many_writes_wait() {
        let words = ring();
        let mut queue = Queue::attach(&words).unwrap();
        let taken = (0..1000).take_while(|at| queue.write(&words, *at, 2 * at, fill(1))).count();
        assert!((12..=WRITES_PAGES).contains(&taken), "{taken} pages on their way");
        for transfer in 0..16 {
            assert!(queue.read(&words, transfer, 5, Frame(transfer)));
        }
    }

    #[test]
    fn a_read_brings_its_page_or_says_that_it_did_not_and_leaves_no_bytes() {
        let words = ring();
        let mut queue = Queue::attach(&words).unwrap();
        let mut disk = BlkServer::attach(&words).unwrap();
        for (transfer, status) in [(7, BlkStatus::Ok), (8, BlkStatus::DeviceError)] {
            assert!(queue.read(&words, transfer, 3, Frame(9)) && queue.flush(&words));
            let (slot, request) = disk.next(&words).unwrap().unwrap();
            let at = request.data_offset() / 8;
            fill(0x55)(&words[at..at + PAGE_WORDS]);
            disk.complete(&words, slot, status, Phase::Weight);
            let mut stored = None;
            let store = |frame, page: &[AtomicU64]| {
                stored = Some((frame, page.iter().all(|word| word.load(Relaxed) == 0x55)));
            };
            let ok = status == BlkStatus::Ok;
            let finished = queue.poll(&words, store);
            assert_eq!(finished, Some(Finished::Read { transfer, frame: Frame(9), ok }));
            assert_eq!(stored, ok.then_some((Frame(9), true)), "a failed read must not be stored");
            let left = &words[at..at + PAGE_WORDS];
            assert!(left.iter().all(|word| word.load(Relaxed) == 0));
        }
    }

    #[test]
    fn a_new_server_finds_what_the_old_one_had_taken() {
        let words = ring();
        let mut queue = Queue::attach(&words).unwrap();
        let mut old = BlkServer::attach(&words).unwrap();
        assert!(queue.write(&words, 1, 0, fill(1)) && queue.read(&words, 2, 9, Frame(4)));
        queue.flush(&words);
        assert!(old.next(&words).unwrap().is_some());
        let mut new = BlkServer::attach(&words).unwrap();
        while let Some((slot, _)) = new.next(&words).unwrap() {
            new.complete(&words, slot, BlkStatus::Ok, Phase::Weight);
        }
        let finished = core::iter::from_fn(|| queue.poll(&words, nothing)).count();
        assert_eq!(finished, 2);
    }
}
