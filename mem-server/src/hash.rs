//! Keyed hash of a page: 64x64-bit multiplications folded, two words each.
//!
//! The key is secret and drawn at boot, so that a guest cannot prepare colliding pages. A page costs
//! about 1,500 instructions without vector registers; xxh3 needs more than twice that there.

/// Words in a page.
pub const PAGE_WORDS: usize = 512;

/// Secret constants of the hash.
#[derive(Clone, Copy, Debug)]
pub struct Key([u64; 3]);

impl Key {
    /// Spreads one secret word.
    pub const fn new(secret: u64) -> Self {
        // Odd constants: the fractional parts of the square roots of 2, 3 and 5.
        Self([
            mix(secret ^ 0x6a09_e667_f3bc_c909),
            mix(secret ^ 0xbb67_ae85_84ca_a73b),
            mix(secret ^ 0x3c6e_f372_fe94_f82b),
        ])
    }
}

/// Finalizer of splitmix64: every input bit changes about half of the output bits.
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Both halves of the product, one upon the other.
#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    product as u64 ^ (product >> 64) as u64
}

/// Hash of the page whose word `i` is `word(i)`.
///
/// One chain: its state stays in the multiplier's own register, five instructions for two words.
#[inline(always)]
pub fn page(word: impl Fn(usize) -> u64, key: &Key) -> u64 {
    let [a, b, c] = key.0;
    let mut state = c;
    let mut index = 0;
    while index < PAGE_WORDS {
        state = fold(word(index) ^ a, word(index + 1) ^ state);
        state = fold(word(index + 2) ^ b, word(index + 3) ^ state);
        state = fold(word(index + 4) ^ a, word(index + 5) ^ state);
        state = fold(word(index + 6) ^ b, word(index + 7) ^ state);
        index += 8;
    }
    mix(fold(state ^ a, b) ^ c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_word_and_the_key_matter() {
        let zeros = [0u64; PAGE_WORDS];
        let key = Key::new(1);
        let mut seen = HashSet::from([page(|at| zeros[at], &key)]);
        for index in 0..PAGE_WORDS {
            for value in [1, 1 << 63, u64::MAX] {
                let mut words = zeros;
                words[index] = value;
                assert!(seen.insert(page(|at| words[at], &key)), "word {index}");
            }
        }
        assert!(seen.insert(page(|at| zeros[at], &Key::new(2))));
    }

    #[test]
    fn bits_are_balanced() {
        let key = Key::new(42);
        let mut ones = [0u32; 64];
        for value in 0..4096u64 {
            let hash = page(|at| if at == 100 { value } else { 0 }, &key);
            for (bit, count) in ones.iter_mut().enumerate() {
                *count += (hash >> bit & 1) as u32;
            }
        }
        for (bit, count) in ones.iter().enumerate() {
            assert!((1848..2248).contains(count), "bit {bit}: {count} of 4096");
        }
    }
}
