//! How much of its memory a VM uses: three moving averages over what is touched per period.
//!
//! Two sources feed them, and neither asks the guest: statistical sampling (a few pages are unmapped
//! and their faults counted; Waldspurger 2002, section 5.3) and harvest of the nested tables' accessed bits.

/// Pages sampled per period.
pub const SAMPLES: u32 = 100;
/// Fixed-point one: averages are fractions times this.
pub const ONE: u32 = 1 << 20;

/// Which source feeds the averages of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Unmap a random sample, count faults.
    #[default]
    Sampling,
    /// Read and clear accessed bits.
    Harvest,
}

/// Slow and fast exponentially weighted averages, and the fast one with the unfinished period in it.
///
/// The estimate is the largest of the three: it rises at once and falls slowly. Gains 1/8 and 1/2 (the paper names none).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Averages {
    slow: u32,
    fast: u32,
    /// The last whole period's fraction.
    last: u32,
    touched: u32,
    samples: u32,
}

/// `average` moved towards `sample` by 1/2^`shift`.
const fn towards(average: u32, sample: u32, shift: u32) -> u32 {
    let (average, sample) = (average as i64, sample as i64);
    (average + ((sample - average) >> shift)) as u32
}

impl Averages {
    /// A new VM counts as wholly active until it has been watched: it is just starting.
    pub const fn new() -> Self {
        Self { slow: ONE, fast: ONE, last: ONE, touched: 0, samples: 0 }
    }

    const fn fraction(&self) -> u32 {
        if self.samples == 0 {
            return 0;
        }
        let touched = if self.touched < self.samples { self.touched } else { self.samples };
        (touched as u64 * ONE as u64 / self.samples as u64) as u32
    }

    /// A new period begins with so many pages watched.
    pub const fn begin(&mut self, samples: u32) {
        self.samples = samples;
        self.touched = 0;
    }

    /// Watched pages were touched.
    pub const fn touch(&mut self, pages: u32) {
        self.touched = self.touched.saturating_add(pages);
    }

    /// Pages of `allocated` that were touched in the last whole period, estimated from those watched.
    pub const fn touched_pages(&self, allocated: u64) -> u64 {
        (allocated as u128 * self.last as u128 / ONE as u128) as u64
    }

    /// The period is over. Without samples nothing was learned and nothing changes.
    pub const fn end(&mut self) {
        if self.samples > 0 {
            let fraction = self.fraction();
            self.slow = towards(self.slow, fraction, 3);
            self.fast = towards(self.fast, fraction, 1);
            self.last = fraction;
        }
        self.begin(0);
    }

    /// Slow, fast and current average, as fractions of [`ONE`].
    pub const fn all(&self) -> [u32; 3] {
        let current =
            if self.samples == 0 { self.fast } else { towards(self.fast, self.fraction(), 1) };
        [self.slow, self.fast, current]
    }

    /// The estimate: largest of the three, of [`ONE`].
    pub fn active(&self) -> u32 {
        self.all().into_iter().fold(0, u32::max)
    }

    /// The estimate in pages of `allocated`.
    pub fn active_pages(&self, allocated: u64) -> u64 {
        (u128::from(allocated) * u128::from(self.active()) / u128::from(ONE)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(averages: &mut Averages, touched: u32) -> f64 {
        averages.begin(SAMPLES);
        averages.touch(touched);
        averages.end();
        f64::from(averages.active()) / f64::from(ONE)
    }

    #[test]
    fn rises_within_two_periods_and_falls_slowly() {
        let mut averages = Averages::default();
        for _ in 0..50 {
            period(&mut averages, 10);
        }
        assert!((period(&mut averages, 10) - 0.10).abs() < 0.01);
        period(&mut averages, 90);
        assert!(period(&mut averages, 90) > 0.65);
        for _ in 0..50 {
            period(&mut averages, 90);
        }
        let after_one = period(&mut averages, 10);
        assert!(after_one > 0.75, "{after_one}");
        for _ in 0..40 {
            period(&mut averages, 10);
        }
        assert!(period(&mut averages, 10) < 0.12);
    }

    #[test]
    fn the_unfinished_period_counts_upwards_only() {
        let mut averages = Averages::default();
        for _ in 0..50 {
            period(&mut averages, 20);
        }
        let before = averages.active();
        averages.begin(SAMPLES);
        assert_eq!(averages.active(), before);
        averages.touch(80);
        assert!(averages.active() > before);
    }

    #[test]
    fn no_samples_teach_nothing() {
        let mut averages = Averages::new();
        averages.begin(0);
        averages.end();
        assert_eq!(averages.active(), ONE);
    }
}
