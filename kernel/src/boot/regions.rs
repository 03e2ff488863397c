//! Sets of physical address ranges: sorted, disjoint, of bounded number.

use heapless::Vec;

/// Most ranges one set can hold. Firmware maps have a few dozen entries (OVMF about 100 before merging).
pub const MAX_REGIONS: usize = 192;

/// A half-open range of physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
}

impl Region {
    /// The range from `start` up to `end`; empty if `end` is not greater.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end > start { end } else { start } }
    }

    /// Bytes in it.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no address.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Whether the two share an address.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Rounded outwards to multiples of `unit` (a power of two).
    #[must_use]
    pub const fn outwards(&self, unit: u64) -> Self {
        Self::new(self.start & !(unit - 1), self.end.saturating_add(unit - 1) & !(unit - 1))
    }

    /// Rounded inwards to multiples of `unit` (a power of two).
    #[must_use]
    pub const fn inwards(&self, unit: u64) -> Self {
        Self::new(self.start.saturating_add(unit - 1) & !(unit - 1), self.end & !(unit - 1))
    }
}

/// More ranges than [`MAX_REGIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRegions;

/// A set of addresses as sorted, disjoint, non-touching ranges.
#[derive(Debug, Clone, Default)]
pub struct RegionSet {
    ranges: Vec<Region, MAX_REGIONS>,
}

impl RegionSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[Region] {
        &self.ranges
    }

    /// Adds all addresses of `region`, merging with what it touches.
    ///
    /// # Errors
    /// The set is full.
    pub fn insert(&mut self, region: Region) -> Result<(), TooManyRegions> {
        if region.is_empty() {
            return Ok(());
        }
        let mut merged = region;
        let mut at = 0;
        while at < self.ranges.len() {
            let Some(current) = self.ranges.get(at).copied() else { break };
            if current.end < merged.start {
                at += 1;
            } else if current.start > merged.end {
                break;
            } else {
                merged = Region::new(current.start.min(merged.start), current.end.max(merged.end));
                self.ranges.remove(at);
            }
        }
        self.ranges.insert(at, merged).map_err(|_| TooManyRegions)
    }

    /// Takes all addresses of `region` out.
    ///
    /// # Errors
    /// Cutting a range in two needs one more entry than the set can hold.
    pub fn remove(&mut self, region: Region) -> Result<(), TooManyRegions> {
        if region.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        while at < self.ranges.len() {
            let Some(current) = self.ranges.get(at).copied() else { break };
            if !current.overlaps(&region) {
                at += 1;
                continue;
            }
            self.ranges.remove(at);
            let before = Region::new(current.start, region.start.max(current.start));
            let after = Region::new(region.end.min(current.end), current.end);
            for part in [before, after] {
                if !part.is_empty() {
                    self.ranges.insert(at, part).map_err(|_| TooManyRegions)?;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    /// Lowest block of `size` bytes aligned to `align` in the set that starts at or above `floor` and meets none of `avoid`.
    #[must_use]
    pub fn find_low(&self, size: u64, align: u64, floor: u64, avoid: &[Region]) -> Option<u64> {
        for range in &self.ranges {
            let mut start = align_up(range.start.max(floor), align)?;
            while start.checked_add(size)? <= range.end {
                let wanted = Region::new(start, start + size);
                match avoid.iter().find(|taken| taken.overlaps(&wanted)) {
                    Some(taken) => start = align_up(taken.end, align)?,
                    None => return Some(start),
                }
            }
        }
        None
    }

    /// Takes the highest block of `size` bytes aligned to `align` that ends at or below `ceiling` out of the set.
    ///
    /// # Errors
    /// Cutting it out needs one more entry than the set can hold.
    pub fn take_high(
        &mut self,
        size: u64,
        align: u64,
        ceiling: u64,
    ) -> Result<Option<u64>, TooManyRegions> {
        let found = self.ranges.iter().rev().find_map(|range| {
            let start = range.end.min(ceiling).checked_sub(size)? & !(align - 1);
            (start >= range.start).then_some(start)
        });
        if let Some(start) = found {
            self.remove(Region::new(start, start + size))?;
        }
        Ok(found)
    }
}

/// `value` rounded up to a multiple of `align` (a power of two), unless that is not representable.
#[must_use]
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}

/// Splits `region` into naturally aligned powers of two, ascending: `(address, size bits)` with `min_bits..=max_bits`.
pub fn blocks(region: Region, min_bits: u32, max_bits: u32) -> impl Iterator<Item = (u64, u32)> {
    let region = region.inwards(1 << min_bits);
    let mut at = region.start;
    core::iter::from_fn(move || {
        let left = region.end.checked_sub(at).filter(|left| *left > 0)?;
        let align_bits = if at == 0 { max_bits } else { at.trailing_zeros() };
        let bits = align_bits.min(left.ilog2()).min(max_bits);
        let block = (at, bits);
        at += 1 << bits;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u64, u64)]) -> RegionSet {
        let mut set = RegionSet::new();
        for (start, end) in ranges {
            set.insert(Region::new(*start, *end)).unwrap();
        }
        set
    }

    fn list(set: &RegionSet) -> std::vec::Vec<(u64, u64)> {
        set.as_slice().iter().map(|r| (r.start, r.end)).collect()
    }

    #[test]
    fn insert_sorts_and_merges() {
        let s = set(&[(10, 20), (40, 50), (20, 25), (0, 5), (24, 41)]);
        assert_eq!(list(&s), [(0, 5), (10, 50)]);
    }

    #[test]
    fn remove_cuts_and_shrinks() {
        let mut s = set(&[(0, 100), (200, 300)]);
        s.remove(Region::new(40, 50)).unwrap();
        s.remove(Region::new(90, 210)).unwrap();
        s.remove(Region::new(299, 400)).unwrap();
        assert_eq!(list(&s), [(0, 40), (50, 90), (210, 299)]);
    }

    #[test]
    fn a_full_set_reports_instead_of_losing_ranges() {
        let mut s = RegionSet::new();
        for i in 0..MAX_REGIONS as u64 {
            s.insert(Region::new(i * 10, i * 10 + 5)).unwrap();
        }
        assert_eq!(s.insert(Region::new(10_000, 10_001)), Err(TooManyRegions));
        assert_eq!(s.remove(Region::new(2, 3)), Err(TooManyRegions));
    }

    #[test]
    fn find_low_steps_over_what_to_avoid() {
        let s = set(&[(0, 100), (200, 1000)]);
        assert_eq!(s.find_low(50, 1, 60, &[]), Some(200));
        assert_eq!(s.find_low(50, 16, 0, &[Region::new(10, 20)]), Some(32));
        assert_eq!(s.find_low(64, 64, 0, &[Region::new(10, 20), Region::new(200, 300)]), Some(320));
        assert_eq!(s.find_low(2000, 1, 0, &[]), None);
    }

    #[test]
    fn take_high_takes_the_top() {
        let mut s = set(&[(0, 100), (200, 1000)]);
        assert_eq!(s.take_high(64, 64, u64::MAX), Ok(Some(896)));
        assert_eq!(s.take_high(64, 64, 256), Ok(Some(0)));
        assert_eq!(list(&s), [(64, 100), (200, 896), (960, 1000)]);
    }

    #[test]
    fn blocks_are_aligned_and_cover_the_region() {
        let b: std::vec::Vec<_> = blocks(Region::new(0x1008, 0x5_0000), 4, 47).collect();
        assert_eq!(b.first(), Some(&(0x1010, 4)));
        let mut at = 0x1010;
        for (start, bits) in &b {
            assert_eq!(*start, at);
            assert_eq!(start & ((1 << bits) - 1), 0);
            at += 1 << bits;
        }
        assert_eq!(at, 0x5_0000);
        let whole: std::vec::Vec<_> = blocks(Region::new(0, 1 << 47), 4, 46).collect();
        assert_eq!(whole, [(0, 46), (1 << 46, 46)]);
    }
}
