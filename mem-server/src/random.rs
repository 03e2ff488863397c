//! Deterministic randomness from a secret: victims, scan order, samples.

use crate::hash::mix;

/// splitmix64.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5851_f42d_4c95_7f2d))
    }

    /// 64 bits.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub const fn below(&mut self, bound: u32) -> u32 {
        (((self.word() >> 32) * bound as u64) >> 32) as u32
    }
}

/// Visits every number below a bound once, then again in another order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    at: u32,
    step: u32,
    /// Still to visit in this pass.
    left: u32,
}

/// Draws for a step that has no common divisor with the bound.
const STEP_DRAWS: u32 = 32;

impl Walk {
    /// The next number below `bound`, which is at least 1 and the same in every call. Start and step of each pass are random.
    pub fn next(&mut self, bound: u32, random: &mut Random) -> u32 {
        if self.left == 0 {
            let drawn = (0..STEP_DRAWS).map(|_| 1 + random.below(bound));
            let step = drawn.into_iter().find(|step| gcd(*step, bound) == 1).unwrap_or(1);
            *self = Self { at: random.below(bound), step, left: bound };
        }
        self.left -= 1;
        let at = self.at;
        let room = bound - at;
        self.at = if self.step < room { at + self.step } else { self.step - room };
        at
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pass_visits_every_number_once(bound in 1u32..3000, seed: u64) {
            let (mut random, mut walk) = (Random::new(seed), Walk::default());
            for _ in 0..3 {
                let mut seen: Vec<u32> = (0..bound).map(|_| walk.next(bound, &mut random)).collect();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..bound).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn passes_and_seeds_differ() {
        let pass = |walk: &mut Walk, random: &mut Random| -> Vec<u32> {
            (0..1024).map(|_| walk.next(1024, random)).collect()
        };
        let (mut random, mut walk) = (Random::new(7), Walk::default());
        let first = pass(&mut walk, &mut random);
        assert_ne!(first, pass(&mut walk, &mut random));
        assert_ne!(first, pass(&mut Walk::default(), &mut Random::new(8)));
    }
}
