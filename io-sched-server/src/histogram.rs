//! A histogram of durations with fixed buckets, about 6 per cent wide, from a microsecond to a minute.

use protocol::units::Nanos;

/// Buckets per doubling.
const STEPS: usize = 16;
/// Smallest duration told apart, as a power of two of nanoseconds.
const FIRST: u32 = 10;
/// Doublings covered.
const DOUBLINGS: usize = 26;

/// Counts durations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    total: u64,
    sum: u64,
    buckets: [u32; STEPS * DOUBLINGS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// Empty.
    pub const fn new() -> Self {
        Self { total: 0, sum: 0, buckets: [0; STEPS * DOUBLINGS] }
    }

    /// Counts one duration.
    pub fn add(&mut self, duration: Nanos) {
        let index = Self::index(duration.0);
        self.buckets[index] = self.buckets[index].saturating_add(1);
        self.total += 1;
        self.sum = self.sum.saturating_add(duration.0);
    }

    /// Least duration of bucket `index`.
    const fn start(index: usize) -> u64 {
        let power = FIRST + (index / STEPS) as u32;
        (1 << power) + (1 << (power - 4)) * (index % STEPS) as u64
    }

    /// Samples by parts: more than the bound before and at most this one; the last part is what is beyond all. Exact within a
    /// bucket's width.
    pub fn parts<const BOUNDS: usize, const PARTS: usize>(
        &self,
        bounds: &[Nanos; BOUNDS],
    ) -> [u32; PARTS] {
        const { assert!(PARTS == BOUNDS + 1) };
        let mut parts = [0u32; PARTS];
        for (index, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count != 0) {
            let part = bounds.partition_point(|bound| bound.0 <= Self::start(index));
            if let Some(part) = parts.get_mut(part) {
                *part = part.saturating_add(*count);
            }
        }
        parts
    }

    fn index(nanos: u64) -> usize {
        let Some(power) = nanos.checked_ilog2().filter(|power| *power >= FIRST) else { return 0 };
        let step = (nanos >> (power - 4)) as usize & (STEPS - 1);
        ((power - FIRST) as usize * STEPS + step).min(STEPS * DOUBLINGS - 1)
    }

    /// Duration that `per_mille` of the samples do not exceed (middle of the bucket); 0 without samples.
    pub fn quantile(&self, per_mille: u64) -> Nanos {
        let rank = (self.total * per_mille).div_ceil(1000);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank && rank > 0 {
                let width = 1 << (FIRST + (index / STEPS) as u32 - 4);
                return Nanos(Self::start(index) + width / 2);
            }
        }
        Nanos(0)
    }

    /// Sum of all samples.
    pub const fn sum(&self) -> Nanos {
        Nanos(self.sum)
    }

    /// Samples counted.
    pub const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_in_one_part() {
        let mut histogram = Histogram::new();
        let bounds = [Nanos(1_000_000), Nanos(10_000_000)];
        for nanos in [0, 500, 900_000, 1_200_000, 9_000_000, 11_000_000, u64::MAX] {
            histogram.add(Nanos(nanos));
        }
        assert_eq!(histogram.parts::<2, 3>(&bounds), [3, 2, 2]);
        assert_eq!(histogram.sum(), Nanos(u64::MAX), "sums do not wrap");
        assert_eq!(Histogram::new().parts::<2, 3>(&bounds), [0; 3]);
    }

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.add(Nanos(micros * 1000));
        }
        for (per_mille, exact) in [(500, 500_000.0), (990, 990_000.0)] {
            let got = histogram.quantile(per_mille).0 as f64;
            assert!((got / exact - 1.0).abs() < 0.07, "{per_mille}: {got}");
        }
        assert_eq!(Histogram::new().quantile(990), Nanos(0));
        histogram.add(Nanos(0));
        histogram.add(Nanos(u64::MAX));
        assert!(histogram.quantile(1000).0 > 60_000_000_000);
    }
}
