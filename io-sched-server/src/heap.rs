//! A binary heap of small identifiers that finds, moves and removes any of them.
//!
//! Smallest key first. Keys are compared by their wrapping distance, so a key may wrap round as long as all keys in
//! the heap lie within half the range of each other; every tag in this crate does. Operations are O(log n), nothing is
//! allocated.

/// Marks an identifier that is not in the heap.
const ABSENT: u16 = u16::MAX;

/// Is `a` before `b` on the circle of keys?
pub const fn is_before(a: u64, b: u64) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    key: u64,
    id: u16,
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
        Self { len: 0, entries: [Entry { key: 0, id: 0 }; N], position: [ABSENT; N] }
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
        let Entry { key, id } = self.entries[0];
        Some((key, id))
    }

    /// Is `id` in the heap?
    pub fn contains(&self, id: u16) -> bool {
        self.position[usize::from(id)] != ABSENT
    }

    /// Inserts `id`, or moves it to its new key.
    #[inline]
    pub fn set(&mut self, id: u16, key: u64) {
        let at = self.position[usize::from(id)];
        if at == ABSENT {
            let last = self.len;
            self.len += 1;
            self.rise(last, Entry { key, id });
            return;
        }
        let at = usize::from(at);
        let old = self.entries[at].key;
        if old == key {
            return;
        }
        if is_before(key, old) {
            self.rise(at, Entry { key, id });
        } else {
            self.sink(at, Entry { key, id });
        }
    }

    /// Removes `id` if it is there.
    #[inline]
    pub fn remove(&mut self, id: u16) {
        let at = self.position[usize::from(id)];
        if at == ABSENT {
            return;
        }
        let at = usize::from(at);
        self.position[usize::from(id)] = ABSENT;
        self.len -= 1;
        if at == self.len {
            return;
        }
        let moved = self.entries[self.len];
        if is_before(moved.key, self.entries[at].key) {
            self.rise(at, moved);
        } else {
            self.sink(at, moved);
        }
    }

    #[inline]
    fn place(&mut self, at: usize, entry: Entry) {
        self.entries[at] = entry;
        #[expect(clippy::cast_possible_truncation, reason = "N is below 65,535")]
        let position = at as u16;
        self.position[usize::from(entry.id)] = position;
    }

    fn rise(&mut self, mut at: usize, entry: Entry) {
        while at > 0 {
            let above = (at - 1) / 2;
            let parent = self.entries[above];
            if !is_before(entry.key, parent.key) {
                break;
            }
            self.place(at, parent);
            at = above;
        }
        self.place(at, entry);
    }

    fn sink(&mut self, mut at: usize, entry: Entry) {
        loop {
            let mut below = 2 * at + 1;
            if below >= self.len {
                break;
            }
            let mut child = self.entries[below];
            if below + 1 < self.len {
                let other = self.entries[below + 1];
                if is_before(other.key, child.key) {
                    child = other;
                    below += 1;
                }
            }
            if !is_before(child.key, entry.key) {
                break;
            }
            self.place(at, child);
            at = below;
        }
        self.place(at, entry);
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
                        reference.insert(id, key);
                    }
                    Step::Remove(id) => {
                        heap.remove(id);
                        reference.remove(&id);
                    }
                }
                prop_assert_eq!(heap.len(), reference.len());
                let least = reference.values().min().copied();
                prop_assert_eq!(heap.top().map(|(key, _)| key.wrapping_sub(base)), least);
                if let Some((key, id)) = heap.top() {
                    prop_assert_eq!(reference.get(&id).copied(), Some(key.wrapping_sub(base)));
                }
                for id in 0..40 {
                    prop_assert_eq!(heap.contains(id), reference.contains_key(&id));
                }
            }
        }
    }
}
