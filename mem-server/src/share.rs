//! The table of page contents: hints for pages seen once, shared records for pages merged.
//!
//! As in Waldspurger 2002, section 4: one hash table with chaining over records of 16 bytes. A **hint** names a page that was
//! seen and is not protected in any way, so it may be stale; a **shared** record names a frame that several
//! pages map read-only, with a reference count of 16 bits and an overflow table. Hints are only
//! hints: when records run out the oldest ones go.
//!
//! A record's key holds the sharing domain in its upper 5 bits, so that pages of different trust domains never even
//! meet in the table.

use crate::page::Frame;

/// One record: 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    key: u64,
    /// Kind bit 63, link 62:41, then a hint's VM 40:37 and page 36:0, or a shared frame 40:16 and its count 15:0.
    word: u64,
}

const _: () = assert!(size_of::<Record>() == 16);

/// No record: end of a chain.
const NONE: u32 = (1 << LINK_BITS) - 1;
const LINK_BITS: u32 = 22;
const LINK_SHIFT: u32 = 41;
const LINK_MASK: u64 = ((1 << LINK_BITS) - 1) << LINK_SHIFT;
const SHARED_BIT: u64 = 1 << 63;
const VM_SHIFT: u32 = 37;
const FRAME_SHIFT: u32 = 16;
const FRAME_MASK: u64 = (1 << 25) - 1;
const COUNT_MASK: u64 = 0xffff;
const DOMAIN_SHIFT: u32 = 59;
/// Records there can be at most.
pub const RECORDS_MAX: u32 = NONE;
/// Shared records whose count exceeds 16 bits.
const OVERFLOWS: usize = 64;
/// Key of a free record: no domain is 31.
const FREE: u64 = u64::MAX;

impl Record {
    /// A record nothing is in.
    pub const EMPTY: Self = Self { key: FREE, word: LINK_MASK };

    const fn link(self) -> u32 {
        ((self.word & LINK_MASK) >> LINK_SHIFT) as u32
    }

    const fn set_link(&mut self, link: u32) {
        self.word = self.word & !LINK_MASK | (link as u64) << LINK_SHIFT;
    }

    const fn is_shared(self) -> bool {
        self.word & SHARED_BIT != 0
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A page that had this content once.
    Hint {
        /// Whose.
        vm: u8,
        /// Page of it.
        index: u32,
    },
    /// A frame with this content.
    Shared(Frame),
}

/// A trust domain: only pages of one domain share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain(u8);

impl Domain {
    /// Most groups.
    pub const GROUPS: u16 = 8;

    /// All VMs of a group; `None` if there can be no such group.
    pub const fn group(group: u16) -> Option<Self> {
        if group < Self::GROUPS { Some(Self(group as u8)) } else { None }
    }

    /// One VM.
    pub const fn vm(vm: u8) -> Self {
        Self(Self::GROUPS as u8 + vm % 16)
    }

    /// The number, below 24.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Key of content with hash `hash` in this domain.
    pub const fn key(self, hash: u64) -> u64 {
        (self.0 as u64) << DOMAIN_SHIFT | hash >> (64 - DOMAIN_SHIFT)
    }
}

/// The table.
pub struct ShareTable<'a> {
    records: &'a mut [Record],
    /// Chain heads; a power of two of them.
    buckets: &'a mut [u32],
    free: u32,
    hand: u32,
    shared: u32,
    hints: u32,
    overflow: heapless::Vec<(u32, u32), OVERFLOWS>,
}

impl<'a> ShareTable<'a> {
    /// An empty table. Buckets beyond the largest power of two are not used.
    pub fn new(records: &'a mut [Record], buckets: &'a mut [u32]) -> Self {
        let count = records.len().min(RECORDS_MAX as usize);
        let records = &mut records[..count];
        let buckets = match buckets.len() {
            0 => buckets,
            length => &mut buckets[..1 << length.ilog2()],
        };
        buckets.fill(NONE);
        for (index, record) in records.iter_mut().enumerate() {
            *record = Record::EMPTY;
            record.set_link(if index + 1 < count { index as u32 + 1 } else { NONE });
        }
        // A table without buckets holds nothing.
        let free = if count == 0 || buckets.is_empty() { NONE } else { 0 };
        Self {
            records,
            buckets,
            free,
            hand: 0,
            shared: 0,
            hints: 0,
            overflow: heapless::Vec::new(),
        }
    }

    /// Shared records.
    pub const fn shared(&self) -> u32 {
        self.shared
    }

    /// Hints.
    pub const fn hints(&self) -> u32 {
        self.hints
    }

    /// Bytes of records and buckets.
    pub const fn bytes(&self) -> usize {
        size_of_val(self.records) + size_of_val(self.buckets)
    }

    #[inline]
    fn bucket(&self, key: u64) -> usize {
        key as usize & (self.buckets.len() - 1)
    }

    /// The record with this key. Keys are unique: of two contents with one hash the second is never entered.
    #[inline]
    pub fn find(&self, key: u64) -> Option<(u32, Found)> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut at = self.buckets[self.bucket(key)];
        while at != NONE {
            let record = self.records[at as usize];
            if record.key == key {
                return Some((at, self.read(at)));
            }
            at = record.link();
        }
        None
    }

    /// What record `at` says.
    fn read(&self, at: u32) -> Found {
        let word = self.records[at as usize].word;
        if word & SHARED_BIT != 0 {
            Found::Shared(Frame((word >> FRAME_SHIFT & FRAME_MASK) as u32))
        } else {
            Found::Hint { vm: (word >> VM_SHIFT & 0xf) as u8, index: word as u32 }
        }
    }

    /// Frame of shared record `at`; `None` if it is no shared record.
    pub fn frame(&self, at: u32) -> Option<Frame> {
        let record = self.records.get(at as usize)?;
        match self.read(at) {
            Found::Shared(frame) if record.key != FREE => Some(frame),
            _ => None,
        }
    }

    /// The content of shared record `at` is in another frame now.
    pub fn set_frame(&mut self, at: u32, frame: Frame) {
        if self.frame(at).is_some() {
            let word = &mut self.records[at as usize].word;
            *word = *word & !(FRAME_MASK << FRAME_SHIFT) | u64::from(frame.0) << FRAME_SHIFT;
        }
    }

    /// Records there are.
    pub const fn capacity(&self) -> u32 {
        self.records.len() as u32
    }

    /// References of record `at` if it is a shared one.
    pub fn references(&self, at: u32) -> Option<u32> {
        self.frame(at).map(|_| self.count(at))
    }

    /// References of shared record `at`.
    pub fn count(&self, at: u32) -> u32 {
        let low = (self.records[at as usize].word & COUNT_MASK) as u32;
        low + self.overflow.iter().find(|(record, _)| *record == at).map_or(0, |(_, more)| *more)
    }

    /// Notes that page `index` of `vm` has content `key`; the key is not in the table. The oldest hint may go.
    pub fn insert_hint(&mut self, key: u64, vm: u8, index: u32) {
        if self.free == NONE {
            self.drop_a_hint();
        }
        if self.free == NONE {
            return;
        }
        let at = self.free;
        self.free = self.records[at as usize].link();
        let bucket = self.bucket(key);
        let record = &mut self.records[at as usize];
        record.key = key;
        record.word = u64::from(vm & 0xf) << VM_SHIFT | u64::from(index);
        record.set_link(self.buckets[bucket]);
        self.buckets[bucket] = at;
        self.hints += 1;
    }

    /// Makes hint `at` a shared record of `frame` with two references.
    pub fn promote(&mut self, at: u32, frame: Frame) {
        let record = &mut self.records[at as usize];
        let link = record.word & LINK_MASK;
        record.word = SHARED_BIT | link | u64::from(frame.0) << FRAME_SHIFT | 2;
        self.hints -= 1;
        self.shared += 1;
    }

    /// One more page maps shared record `at`. False, and nothing changed, if it can count no further.
    pub fn add_reference(&mut self, at: u32) -> bool {
        let record = &mut self.records[at as usize];
        if record.word & COUNT_MASK < COUNT_MASK {
            record.word += 1;
            return true;
        }
        match self.overflow.iter_mut().find(|(record, _)| *record == at) {
            Some((_, more)) => {
                *more += 1;
                true
            }
            None => self.overflow.push((at, 1)).is_ok(),
        }
    }

    /// One page less maps shared record `at`. Answers the frame if that was the last: the record is gone.
    pub fn drop_reference(&mut self, at: u32) -> Option<Frame> {
        if let Some(place) = self.overflow.iter().position(|(record, _)| *record == at) {
            let (_, more) = &mut self.overflow[place];
            *more -= 1;
            if *more == 0 {
                self.overflow.swap_remove(place);
            }
            return None;
        }
        let record = &mut self.records[at as usize];
        record.word -= 1;
        if record.word & COUNT_MASK != 0 {
            return None;
        }
        let frame = self.frame(at);
        self.remove(at);
        frame
    }

    /// Takes record `at` out of the table.
    pub fn remove(&mut self, at: u32) {
        let record = self.records[at as usize];
        let bucket = self.bucket(record.key);
        if self.buckets[bucket] == at {
            self.buckets[bucket] = record.link();
        } else {
            let mut before = self.buckets[bucket];
            while before != NONE && self.records[before as usize].link() != at {
                before = self.records[before as usize].link();
            }
            if before == NONE {
                return;
            }
            self.records[before as usize].set_link(record.link());
        }
        if record.is_shared() {
            self.shared -= 1;
        } else {
            self.hints -= 1;
        }
        let record = &mut self.records[at as usize];
        *record = Record::EMPTY;
        record.set_link(self.free);
        self.free = at;
    }

    fn drop_a_hint(&mut self) {
        for _ in 0..self.records.len() {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.records.len() as u32;
            let record = self.records[at as usize];
            if !record.is_shared() && record.key != FREE {
                self.remove(at);
                return;
            }
        }
    }

    /// Checks chains, counts and the free list.
    ///
    /// # Errors
    ///
    /// What does not agree.
    pub fn check(&self) -> Result<(), &'static str> {
        let (mut shared, mut hints) = (0, 0);
        for (bucket, head) in self.buckets.iter().enumerate() {
            let mut at = *head;
            let mut steps = 0;
            while at != NONE {
                let record = self.records[at as usize];
                steps += 1;
                if record.key == FREE || self.bucket(record.key) != bucket {
                    return Err("a record is in the wrong chain");
                }
                if steps > self.records.len() {
                    return Err("a chain is a ring");
                }
                if record.is_shared() {
                    shared += 1
                } else {
                    hints += 1
                }
                at = record.link();
            }
        }
        let mut free = 0;
        let mut at = self.free;
        while at != NONE && free <= self.records.len() {
            free += 1;
            at = self.records[at as usize].link();
        }
        if shared != self.shared || hints != self.hints {
            return Err("the table's counts are not its records'");
        }
        let usable = if self.buckets.is_empty() { 0 } else { self.records.len() };
        if free + shared as usize + hints as usize != usable {
            return Err("a record is neither used nor free");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn counts_go_past_sixteen_bits_and_back() {
        let (mut records, mut buckets) = ([Record::EMPTY; 2], [0; 1]);
        let mut table = ShareTable::new(&mut records, &mut buckets);
        table.insert_hint(7, 3, 12);
        let (at, found) = table.find(7).unwrap();
        assert_eq!(found, Found::Hint { vm: 3, index: 12 });
        table.promote(at, Frame(FRAME_MASK as u32));
        for _ in 2..100_000 {
            assert!(table.add_reference(at));
        }
        assert_eq!(table.count(at), 100_000);
        for left in (1..100_000).rev() {
            assert_eq!(table.drop_reference(at), None);
            if left % 9_999 == 0 {
                assert_eq!(table.count(at), left);
            }
        }
        assert_eq!(table.drop_reference(at), Some(Frame(FRAME_MASK as u32)));
        assert_eq!(table.find(7), None);
        assert_eq!(table.check(), Ok(()));
    }

    #[test]
    fn hints_give_way_and_shared_records_do_not() {
        let (mut records, mut buckets) = ([Record::EMPTY; 4], [0; 4]);
        let mut table = ShareTable::new(&mut records, &mut buckets);
        table.insert_hint(1, 0, 1);
        let (at, _) = table.find(1).unwrap();
        table.promote(at, Frame(5));
        for key in 2..100 {
            table.insert_hint(key, 0, key as u32);
            assert!(table.find(key).is_some());
            assert_eq!(table.check(), Ok(()));
        }
        assert_eq!(table.find(1), Some((at, Found::Shared(Frame(5)))));
        assert_eq!((table.shared(), table.hints()), (1, 3));
    }

    #[test]
    fn domains_never_meet() {
        let hash = 0x0123_4567_89ab_cdef;
        let mut keys = std::collections::HashSet::new();
        for group in 0..Domain::GROUPS {
            assert!(keys.insert(Domain::group(group).unwrap().key(hash)));
        }
        for vm in 0..16 {
            assert!(keys.insert(Domain::vm(vm).key(hash)));
        }
        assert_eq!(Domain::group(Domain::GROUPS), None);
        assert!(!keys.contains(&FREE));
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0u8..5, 0u64..12), 1..300)) {
            let (mut records, mut buckets) = ([Record::EMPTY; 16], [0; 4]);
            let mut table = ShareTable::new(&mut records, &mut buckets);
            let mut model: HashMap<u64, (bool, u32)> = HashMap::new();
            for (op, key) in steps {
                let found = table.find(key);
                prop_assert_eq!(found.is_some(), model.contains_key(&key));
                match (op, found) {
                    (0 | 1, None) => {
                        table.insert_hint(key, 1, key as u32);
                        model.insert(key, (false, 0));
                    }
                    (2, Some((at, Found::Hint { .. }))) => {
                        table.promote(at, Frame(key as u32));
                        model.insert(key, (true, 2));
                    }
                    (3, Some((at, Found::Shared(_)))) => {
                        prop_assert!(table.add_reference(at));
                        model.get_mut(&key).unwrap().1 += 1;
                    }
                    (4, Some((at, Found::Shared(frame)))) => {
                        prop_assert_eq!(frame, Frame(key as u32));
                        let entry = model.get_mut(&key).unwrap();
                        entry.1 -= 1;
                        let gone = entry.1 == 0;
                        prop_assert_eq!(table.drop_reference(at), gone.then_some(frame));
                        if gone {
                            model.remove(&key);
                        }
                    }
                    _ => {}
                }
                if let Some((at, Found::Shared(_))) = table.find(key) {
                    prop_assert_eq!(table.count(at), model[&key].1);
                }
                prop_assert_eq!(table.check(), Ok(()));
            }
        }
    }
}
