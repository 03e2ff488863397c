//! A binary heap of small identifiers that finds, moves and removes any of them.
//!
//! Smallest key first. Keys are 48 bits and are compared by their wrapping distance, so a key may wrap round as long
//! as all keys in the heap lie within half the range of each other: 39 hours of nanoseconds, or 32,768 requests of
//! a client of weight 1 in virtual time. Key and identifier share a word. Operations are O(log n), nothing is allocated.

/// Marks an identifier that is not in the heap.
const ABSENT: u16 = u16::MAX;

/// Bits of a key.
pub const KEY_BITS: u32 = 48;
/// Bits above them, where a word has the identifier below its key.
const ID_BITS: u32 = 64 - KEY_BITS;

/// Is `a` before `b` on the circle of keys? Bits above a key's do not count.
#[inline]
pub const fn is_before(a: u64, b: u64) -> bool {
    a.wrapping_sub(b).wrapping_shl(ID_BITS).cast_signed() < 0
}

/// A key with its identifier: ordered by key, then by identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    #[inline]
    const fn new(key: u64, id: u16) -> Self {
        Self(key << ID_BITS | id as u64)
    }

    #[inline]
    const fn id(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    const fn is_before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() < 0
    }
}

/// A heap of identifiers 0..`N`; `N` is at most 65,535.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedHeap<const N: usize> {
    len: usize,
    entries: [Entry; N],
    position: [u16; N],
}

impl<const N: usize> IndexedHeap<N> {
    /// An empty heap.
    pub const fn new() -> Self {
        assert!(N < ABSENT as usize, "identifiers are 16 bits");
        Self { len: 0, entries: [Entry(0); N], position: [ABSENT; N] }
    }

    /// Is nothing in the heap?
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Identifiers in the heap.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Smallest key and its identifier.
    #[inline]
    pub fn top(&self) -> Option<(u64, u16)> {
        if self.len == 0 {
            return None;
        }
        let entry = self.entries[0];
        Some((entry.0 >> ID_BITS, entry.id()))
    }

    /// Is `id` in the heap?
    pub fn contains(&self, id: u16) -> bool {
        self.position[usize::from(id)] != ABSENT
    }

    /// Inserts `id`, or moves it to its new key.
    #[inline]
    pub fn set(&mut self, id: u16, key: u64) {
        let entry = Entry::new(key, id);
        let at = usize::from(self.position[usize::from(id)]);
        if at == usize::from(ABSENT) {
            let last = self.len;
            self.len = last.wrapping_add(1);
            self.rise(last, entry);
            return;
        }
        let old = self.entries[at];
        if old == entry {
            return;
        }
        if entry.is_before(old) {
            self.rise(at, entry);
        } else {
            self.sink(at, entry);
        }
    }

    /// Removes `id` if it is there.
    #[inline]
    pub fn remove(&mut self, id: u16) {
        let at = usize::from(self.position[usize::from(id)]);
        if at == usize::from(ABSENT) {
            return;
        }
        self.position[usize::from(id)] = ABSENT;
        self.len -= 1;
        if at == self.len {
            return;
        }
        let moved = self.entries[self.len];
        if moved.is_before(self.entries[at]) {
            self.rise(at, moved);
        } else {
            self.sink(at, moved);
        }
    }

    fn rise(&mut self, mut at: usize, entry: Entry) {
        // Slices of known length: the loop's own conditions then cover the bounds.
        let entries = &mut self.entries[..self.len];
        while at > 0 {
            let above = (at - 1) / 2;
            let parent = entries[above];
            if !entry.is_before(parent) {
                break;
            }
            entries[at] = parent;
            self.position[usize::from(parent.id())] = at as u16;
            at = above;
        }
        entries[at] = entry;
        self.position[usize::from(entry.id())] = at as u16;
    }

    /// What sinks mostly goes to the bottom (a client just served goes behind the others), so the hole sinks all the
    /// way with one comparison a level, and the entry rises from there.
    fn sink(&mut self, mut at: usize, entry: Entry) {
        let entries = &mut self.entries[..self.len];
        loop {
            // Far from the end of the range: at is below 65,535.
            let left = at.wrapping_mul(2).wrapping_add(1);
            let (child, below) = match entries.get(left..) {
                Some([first, second, ..]) if second.is_before(*first) => {
                    (*second, left.wrapping_add(1))
                }
                Some([first, ..]) => (*first, left),
                _ => break,
            };
            entries[at] = child;
            self.position[usize::from(child.id())] = at as u16;
            at = below;
        }
        self.rise(at, entry);
    }
}

impl<const N: usize> Default for IndexedHeap<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u16, u64),
        Remove(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u16..40, 0u64..1000).prop_map(|(id, key)| Step::Set(id, key)),
            1 => (0u16..40).prop_map(Step::Remove),
        ];
        proptest::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_map(steps in steps(), base in any::<u64>()) {
            let mut heap = IndexedHeap::<40>::new();
            let mut reference = std::collections::BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(id, key) => {
                        heap.set(id, base.wrapping_add(key));
                        prop_assert!(!is_before(base.wrapping_add(key), base));
                        reference.insert(id, key);
                    }
                    Step::Remove(id) => {
                        heap.remove(id);
                        reference.remove(&id);
                    }
                }
                prop_assert_eq!(heap.len(), reference.len());
                let least = reference.values().min().copied();
                let distance = |key: u64| key.wrapping_sub(base) & ((1 << KEY_BITS) - 1);
                prop_assert_eq!(heap.top().map(|(key, _)| distance(key)), least);
                if let Some((key, id)) = heap.top() {
                    prop_assert_eq!(reference.get(&id).copied(), Some(distance(key)));
                }
                for id in 0..40 {
                    prop_assert_eq!(heap.contains(id), reference.contains_key(&id));
                }
            }
        }
    }
}
