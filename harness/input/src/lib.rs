//! Bytes read as numbers: what the interpreters behind the fuzz targets have in common.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;

/// Reads numbers from bytes; 0 behind the end.
#[derive(Clone, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads `bytes` from their beginning.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Everything was read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next byte.
    pub const fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number of so many bytes, the first the highest; of more than eight the last eight count.
    pub fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A number of any magnitude.
    pub fn value(&mut self) -> u64 {
        let bytes = usize::from(self.byte() % 9);
        self.number(bytes)
    }

    /// A number below `bound`, which is 1..=65,536; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number(2).checked_rem(bound).unwrap_or(0)
    }

    /// One of `all`, of the first 256.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }
}

/// Bytes from a seed (xorshift), for runs without a fuzzer: the same on every host.
#[must_use]
pub fn seeded(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(|_| byte()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Input, seeded};

    #[test]
    fn numbers_come_in_order_and_end_in_zeros() {
        let mut input = Input::new(&[1, 2, 3, 10, 0xff, 7, 0, 1]);
        assert_eq!(input.byte(), 1);
        assert_eq!(input.number(2), 0x203);
        assert_eq!(input.value(), 0xff, "ten modulo nine: one byte");
        assert_eq!(input.pick(&['a', 'b', 'c']), 'b');
        assert_eq!(input.rest(), [0, 1]);
        assert_eq!(input.below(1), 0);
        assert!(input.is_empty());
        assert_eq!((input.byte(), input.number(8), input.below(0)), (0, 0, 0));
    }

    #[test]
    fn seeds_differ_and_repeat() {
        assert_eq!(seeded(5, 100), seeded(5, 100));
        assert_ne!(seeded(5, 100), seeded(6, 100));
        assert_eq!(seeded(0, 3).len(), 3);
    }
}
