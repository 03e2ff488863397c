//! The four states of free memory, with hysteresis.

use protocol::mem::PressureState;

/// Thresholds in pages, and how far above one memory must rise before the state is left upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Free memory that reclaiming aims at (6 %).
    pub high: u64,
    /// Below: soft (4 %).
    pub soft: u64,
    /// Below: hard (2 %).
    pub hard: u64,
    /// Below: low (1 %).
    pub low: u64,
    /// Rise above a threshold that counts as significant.
    pub margin: u64,
}

impl Thresholds {
    /// The paper's percentages of `total` pages, with a margin of 0.5 % (the paper names none).
    pub const fn of(total: u64) -> Self {
        Self {
            high: total * 60 / 1000,
            soft: total * 40 / 1000,
            hard: total * 20 / 1000,
            low: total * 10 / 1000,
            margin: total * 5 / 1000,
        }
    }

    /// Free memory a state begins at, going up.
    const fn floor(&self, state: PressureState) -> u64 {
        match state {
            PressureState::High => self.high,
            PressureState::Soft => self.soft,
            PressureState::Hard => self.hard,
            PressureState::Low => 0,
        }
    }
}

/// The state machine.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    thresholds: Thresholds,
    state: PressureState,
}

impl Pressure {
    /// Starts in high.
    pub const fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, state: PressureState::High }
    }

    /// Where it is.
    pub const fn state(&self) -> PressureState {
        self.state
    }

    /// Its thresholds.
    pub const fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// Free memory is `free` now: answers the state left, if it was left. Down as soon as free memory is below the lower
    /// state's threshold; up only when it exceeds the higher state's by the margin.
    pub fn update(&mut self, free: u64) -> Option<PressureState> {
        let t = &self.thresholds;
        let fallen = if free < t.low {
            PressureState::Low
        } else if free < t.hard {
            PressureState::Hard
        } else if free < t.soft {
            PressureState::Soft
        } else {
            PressureState::High
        };
        let before = self.state;
        if fallen > before {
            self.state = fallen;
        } else {
            for risen in [PressureState::High, PressureState::Soft, PressureState::Hard] {
                if risen < before && free > t.floor(risen) + t.margin {
                    self.state = risen;
                    break;
                }
            }
        }
        (self.state != before).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PressureState::{Hard, High, Low, Soft};
    use proptest::prelude::*;

    #[test]
    fn a_fall_and_a_rise_pass_each_state_once() {
        let mut pressure = Pressure::new(Thresholds::of(10_000));
        let mut states = vec![];
        for free in (0..=1000).rev().chain(0..=1000) {
            if pressure.update(free).is_some() {
                states.push((free, pressure.state()));
            }
        }
        let expected = [(399, Soft), (199, Hard), (99, Low), (251, Hard), (451, Soft), (651, High)];
        assert_eq!(states, expected);
    }

    #[test]
    fn trembling_around_a_threshold_is_no_transition() {
        let mut pressure = Pressure::new(Thresholds::of(10_000));
        pressure.update(399);
        for step in 0..1000 {
            assert_eq!(pressure.update(400 + step % 2), None);
            assert_eq!(pressure.update(600 + step % 50), None);
        }
        assert_eq!(pressure.update(0), Some(Soft));
        assert_eq!(pressure.state(), Low);
        assert_eq!(pressure.update(10_000), Some(Low));
        assert_eq!(pressure.state(), High);
    }

    proptest! {
        #[test]
        fn the_state_never_lies_about_the_free_memory(
            trace in prop::collection::vec(0u64..1200, 1..200),
        ) {
            let thresholds = Thresholds::of(10_000);
            let mut pressure = Pressure::new(thresholds);
            for free in trace {
                pressure.update(free);
                let state = pressure.state();
                let floor = match state { High => 400, Soft => 200, Hard => 100, Low => 0 };
                prop_assert!(free >= floor, "{free} in {state:?}");
                let ceiling = match state { High => u64::MAX, Soft => 650, Hard => 450, Low => 250 };
                prop_assert!(free <= ceiling, "{free} in {state:?}");
            }
        }
    }
}
