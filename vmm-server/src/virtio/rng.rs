//! Entropy device (virtio 1.2, section 5.4), fed by ChaCha20 keyed with the VM's seed.
//!
//! Runs must repeat, so randomness comes from the configured seed and from nowhere else.

use super::queue::{Chain, Queue, QueueError};
use crate::guest_memory::GuestMemory;

/// Most bytes given for one chain; the driver asks again.
const REQUEST_MAX: u32 = 4096;

/// The device.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u32; 16],
    block: [u8; 64],
    used: usize,
}

impl Rng {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; 16];
        state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
        let mut mixed = seed;
        for word in &mut state[4..12] {
            // splitmix64 spreads the seed over the key.
            mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mixed;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            *word = (z ^ z >> 31) as u32;
        }
        Self { state, block: [0; 64], used: 64 }
    }

    /// The next byte.
    pub fn next_byte(&mut self) -> u8 {
        if self.used == self.block.len() {
            self.refill();
        }
        let byte = self.block.get(self.used).copied().unwrap_or(0);
        self.used += 1;
        byte
    }

    /// Serves every waiting chain.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue is broken or a buffer lies outside RAM.
    pub fn process(
        &mut self,
        queue: &mut Queue,
        memory: &mut impl GuestMemory,
    ) -> Result<(), QueueError> {
        let mut chain = Chain::default();
        while queue.pop(memory, &mut chain)? {
            let mut written = 0;
            for segment in &chain.writable {
                let count = segment.len.min(REQUEST_MAX - written);
                let mut done = 0;
                while done < count {
                    let mut bytes = [0; 64];
                    let step = (count - done).min(64);
                    let part = bytes.get_mut(..step as usize).unwrap_or(&mut []);
                    for byte in part.iter_mut() {
                        *byte = self.next_byte();
                    }
                    memory.write(segment.gpa.saturating_add(u64::from(done)), part)?;
                    done += step;
                }
                written += count;
            }
            queue.push_used(memory, chain.head, written)?;
        }
        queue.rearm(memory)
    }

    fn refill(&mut self) {
        let mut x = self.state;
        for _ in 0..10 {
            for [a, b, c, d] in [
                [0, 4, 8, 12],
                [1, 5, 9, 13],
                [2, 6, 10, 14],
                [3, 7, 11, 15],
                [0, 5, 10, 15],
                [1, 6, 11, 12],
                [2, 7, 8, 13],
                [3, 4, 9, 14],
            ] {
                x[a] = x[a].wrapping_add(x[b]);
                x[d] = (x[d] ^ x[a]).rotate_left(16);
                x[c] = x[c].wrapping_add(x[d]);
                x[b] = (x[b] ^ x[c]).rotate_left(12);
                x[a] = x[a].wrapping_add(x[b]);
                x[d] = (x[d] ^ x[a]).rotate_left(8);
                x[c] = x[c].wrapping_add(x[d]);
                x[b] = (x[b] ^ x[c]).rotate_left(7);
            }
        }
        for (index, bytes) in self.block.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&x[index].wrapping_add(self.state[index]).to_le_bytes());
        }
        self.state[12] = self.state[12].wrapping_add(1);
        if self.state[12] == 0 {
            self.state[13] = self.state[13].wrapping_add(1);
        }
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::VecMemory;
    use crate::virtio::queue::driver::Driver;

    #[test]
    fn chacha20_matches_rfc_8439() {
        // RFC 8439, section 2.3.2: key 00..1f, counter 1, nonce 00 00 00 09 00 00 00 4a 00 00 00 00.
        let mut rng = Rng::new(0);
        for (index, word) in rng.state[4..12].iter_mut().enumerate() {
            let first = index as u8 * 4;
            *word = u32::from_le_bytes([first, first + 1, first + 2, first + 3]);
        }
        rng.state[12..].copy_from_slice(&[1, 0x0900_0000, 0x4a00_0000, 0]);
        rng.refill();
        assert_eq!(rng.block[..8], [0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15]);
        assert_eq!(rng.block[60..], [0xa2, 0x50, 0x3c, 0x4e]);
    }

    #[test]
    fn buffers_are_filled_and_wild_ones_refused() {
        let mut memory = VecMemory::new(0x10000);
        let mut driver = Driver::new(0, 8);
        let mut queue = driver.queue(false);
        let mut rng = Rng::new(7);
        let head = driver.offer(&mut memory, &[(0x8000, 100, true)]);
        rng.process(&mut queue, &mut memory).unwrap();
        assert_eq!(driver.take(&memory), Some((u32::from(head), 100)));
        assert!(memory.0[0x8000..0x8064].iter().any(|&b| b != 0));
        assert!(memory.0[0x8064..0x8080].iter().all(|&b| b == 0));
        driver.offer(&mut memory, &[(0xffff, 100, true)]);
        assert_eq!(rng.process(&mut queue, &mut memory), Err(QueueError::OutOfRam));
    }
}
