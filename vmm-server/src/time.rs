//! Guest time: every model counts ticks of the guest's own TSC.
//!
//! One unit for all timers makes arming the TSC-deadline timer (the hot one) free of arithmetic; slow
//! devices convert when they are programmed.

/// A point on, or a length of, the guest's time-stamp counter.
pub type Ticks = u64;

/// The rate of the guest's TSC and the conversions it implies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeBase {
    hz: u64,
    /// Nanoseconds per tick as a 32.32 fixed-point number, in the form the KVM clock wants.
    pub clock_mul: u32,
    /// Binary exponent that goes with `clock_mul`.
    pub clock_shift: i8,
}

impl TimeBase {
    /// A TSC that runs at `hz`; rates below 1 MHz are taken as 1 MHz, as no machine has them.
    pub const fn new(hz: u64) -> Self {
        let hz = if hz < 1_000_000 { 1_000_000 } else { hz };
        let (clock_mul, clock_shift) = clock_scale(hz);
        Self { hz, clock_mul, clock_shift }
    }

    /// Ticks per second.
    pub const fn hz(&self) -> u64 {
        self.hz
    }

    /// `count` periods of a clock of `rate_hz`, in ticks, rounded up; saturates.
    pub const fn from_rate(&self, count: u64, rate_hz: u64) -> Ticks {
        scale(count, self.hz, rate_hz, true)
    }

    /// How many whole periods of a clock of `rate_hz` fit into `ticks`; saturates.
    pub const fn to_rate(&self, ticks: Ticks, rate_hz: u64) -> u64 {
        scale(ticks, rate_hz, self.hz, false)
    }

    /// `ticks` in nanoseconds; saturates.
    pub const fn to_ns(&self, ticks: Ticks) -> u64 {
        self.to_rate(ticks, 1_000_000_000)
    }
}

/// `value * numerator / denominator` without overflow; saturates.
const fn scale(value: u64, numerator: u64, denominator: u64, round_up: bool) -> u64 {
    let product = value as u128 * numerator as u128;
    let wide = if round_up {
        product.div_ceil(denominator as u128)
    } else {
        product / denominator as u128
    };
    if wide > u64::MAX as u128 { u64::MAX } else { wide as u64 }
}

/// Multiplier and shift such that `((ticks << shift) * mul) >> 32` is nanoseconds (KVM clock ABI).
const fn clock_scale(hz: u64) -> (u32, i8) {
    let mut shift: i8 = 0;
    let mut base = hz;
    // The multiplier must lie in [0.5, 1) * 2^32: bring the base rate into (1, 2] GHz.
    while base > 2_000_000_000 {
        base >>= 1;
        shift -= 1;
    }
    while base <= 1_000_000_000 {
        base <<= 1;
        shift += 1;
    }
    (((1_000_000_000u128 << 32) / base as u128) as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_scale_gives_nanoseconds() {
        for hz in [1_000_000_000u64, 2_600_000_000, 3_999_999_999, 1_193_182, 999_999_999] {
            let base = TimeBase::new(hz);
            let ticks = 10 * hz;
            let shifted = if base.clock_shift >= 0 {
                u128::from(ticks) << base.clock_shift
            } else {
                u128::from(ticks) >> -base.clock_shift
            };
            let ns = (shifted * u128::from(base.clock_mul)) >> 32;
            let error = ns.abs_diff(10_000_000_000);
            assert!(error < 20_000, "{hz}: {ns}");
        }
    }

    #[test]
    fn rates_round_to_the_safe_side() {
        let base = TimeBase::new(1_000_000_000);
        assert_eq!(base.from_rate(1, 1_193_182), 839);
        assert_eq!(base.to_rate(838, 1_193_182), 0);
        assert_eq!(base.to_rate(839, 1_193_182), 1);
        assert_eq!(base.from_rate(u64::MAX, 1), u64::MAX);
    }
}
