//! What an io-sched-server did for each group, told to the servers of the machine's other disks: how a claim of a group or of a VM
//! holds over all disks.
//!
//! dmClock (mClock paper, section 3.3) has clients carry the news from server to server. A group has no place where all of its requests
//! pass, and the word of one member must not move the tags of the others. So the servers tell each other: each writes a page
//! ([`crate::startup::PROGRESS_VADDR`]) that the others read. All counts only grow, and wrap; a reader takes the difference to
//! what it saw last, so that it does not matter if it sees a group half written.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::io::MAX_GROUPS;
use crate::units::PAGE_SIZE;

/// Service of a group: since its page began, or between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Requests.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their cost in reference requests, 16 fractional bits.
    pub cost: u64,
    /// The part of `cost` that went to reservations.
    pub reserved_cost: u64,
    /// The part of `bytes` that went to reservations.
    pub reserved_bytes: u64,
}

impl Service {
    /// None yet.
    pub const NONE: Self =
        Self { requests: 0, bytes: 0, cost: 0, reserved_cost: 0, reserved_bytes: 0 };

    /// This and `more`.
    #[must_use]
    pub const fn and(&self, more: &Self) -> Self {
        Self {
            requests: self.requests.wrapping_add(more.requests),
            bytes: self.bytes.wrapping_add(more.bytes),
            cost: self.cost.wrapping_add(more.cost),
            reserved_cost: self.reserved_cost.wrapping_add(more.reserved_cost),
            reserved_bytes: self.reserved_bytes.wrapping_add(more.reserved_bytes),
        }
    }

    /// What came since `before`.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.wrapping_sub(before.requests),
            bytes: self.bytes.wrapping_sub(before.bytes),
            cost: self.cost.wrapping_sub(before.cost),
            reserved_cost: self.reserved_cost.wrapping_sub(before.reserved_cost),
            reserved_bytes: self.reserved_bytes.wrapping_sub(before.reserved_bytes),
        }
    }
}

/// Words of one group: a cache line.
const STRIDE: usize = 8;
/// Word with the number of changes.
const CHANGES: usize = 0;

const _: () = assert!(STRIDE * (1 + MAX_GROUPS) * 8 <= PAGE_SIZE as usize);

/// A page as a server sees it.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a>(&'a [AtomicU64]);

impl<'a> Progress<'a> {
    /// The page of `words`; words that are missing read as 0.
    pub const fn new(words: &'a [AtomicU64]) -> Self {
        Self(words)
    }

    /// How often anything changed: a reader that saw this number has seen all.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.0.get(CHANGES).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// All that was done for `group`.
    pub fn read(&self, group: u8) -> Service {
        let [requests, bytes, cost, reserved_cost, reserved_bytes] = core::array::from_fn(|at| {
            self.word(group, at).map_or(0, |word| word.load(Ordering::Relaxed))
        });
        Service { requests, bytes, cost, reserved_cost, reserved_bytes }
    }

    /// Adds what was done for `group`. The page has one writer.
    pub fn add(&self, group: u8, more: &Service) {
        let Service { requests, bytes, cost, reserved_cost, reserved_bytes } = *more;
        for (at, more) in
            [requests, bytes, cost, reserved_cost, reserved_bytes].into_iter().enumerate()
        {
            if let Some(word) = self.word(group, at) {
                word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
            }
        }
        if let Some(word) = self.0.get(CHANGES) {
            word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
    }

    fn word(&self, group: u8, at: usize) -> Option<&AtomicU64> {
        self.0.get(STRIDE * (1 + usize::from(group)) + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_read_by_group_and_nothing_outside_the_page() {
        let page: std::vec::Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0)).collect();
        let progress = Progress::new(&page);
        let some = Service {
            requests: 2,
            bytes: 8192,
            cost: 3 << 16,
            reserved_cost: 1,
            reserved_bytes: 5,
        };
        progress.add(23, &some);
        progress.add(23, &some);
        assert_eq!(progress.changes(), 2);
        assert_eq!(progress.read(23).since(&some), some);
        assert_eq!((progress.read(22), progress.read(0)), (Service::NONE, Service::NONE));
        let short = Progress::new(&page[..1]);
        short.add(255, &some);
        assert_eq!((short.read(255), progress.changes()), (Service::NONE, 3));
    }

    #[test]
    fn counts_wrap() {
        let near = Service { requests: u64::MAX, ..Service::NONE };
        let past = Service { requests: 4, ..Service::NONE };
        assert_eq!(past.since(&near).requests, 5);
    }
}
