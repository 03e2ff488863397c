//! Ranges of guest frames in calls of bounded work: what a guest gives up at once may be all of its memory, and the mem-server
//! serves others between two calls.

use crate::mem::{CALL_PAGES_MAX, GfnRange, RANGES_MAX};
use crate::units::Gfn;

/// Ranges of one call: at most [`RANGES_MAX`], of at most [`CALL_PAGES_MAX`] pages together.
pub type Part = heapless::Vec<GfnRange, RANGES_MAX>;

/// Cuts ranges into [`Part`]s, in order.
#[derive(Debug)]
pub struct Parts<'r> {
    ranges: &'r [GfnRange],
    /// Pages of the first of them that are in parts already.
    done: u64,
}

impl<'r> Parts<'r> {
    /// Of `ranges`.
    pub const fn of(ranges: &'r [GfnRange]) -> Self {
        Self { ranges, done: 0 }
    }
}

impl Iterator for Parts<'_> {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let mut part = Part::new();
        let mut room = CALL_PAGES_MAX;
        while let Some((range, rest)) = self.ranges.split_first()
            && room > 0
            && !part.is_full()
        {
            let left = range.count - self.done;
            let count = left.min(room);
            // What lies beyond the last frame is nobody's memory.
            if let Some(piece) = GfnRange::new(Gfn(range.first.0 + self.done), count) {
                let _ = part.push(piece);
            }
            room -= count;
            self.done += count;
            if count == left {
                (self.ranges, self.done) = (rest, 0);
            }
        }
        (!part.is_empty()).then_some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_page_is_in_one_part_and_no_part_is_long(
            ranges in prop::collection::vec((0u64..1 << 30, 1u64..5000), 0..300),
        ) {
            let ranges: Vec<GfnRange> = ranges
                .into_iter()
                .filter_map(|(first, count)| GfnRange::new(Gfn(first), count))
                .collect();
            let pages = |ranges: &[GfnRange]| -> Vec<u64> {
                ranges.iter().flat_map(|range| range.first.0..range.first.0 + range.count).collect()
            };
            let mut seen = Vec::new();
            for part in Parts::of(&ranges) {
                let own = pages(&part);
                prop_assert!(own.len() as u64 <= CALL_PAGES_MAX);
                seen.extend(own);
            }
            prop_assert_eq!(seen, pages(&ranges));
        }
    }

    #[test]
    fn a_range_at_the_end_of_what_a_word_holds_ends() {
        let last = GfnRange::from_word(u64::MAX);
        assert!(Parts::of(&[last]).count() as u64 <= GfnRange::COUNT_MAX / CALL_PAGES_MAX);
    }
}
