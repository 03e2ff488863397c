//! Tests of the kernel's objects through system calls: what each may do, and what it may not.

use super::fuzz;

/// Runs of the seeded test; more on demand with the fuzz target.
const SEEDS: u64 = 60;

#[test]
fn random_calls_keep_every_invariant() {
    let mut tally = fuzz::Tally::new();
    for seed in 0..SEEDS {
        let bytes = fuzz::seeded(seed, 6_000);
        match std::panic::catch_unwind(|| fuzz::run(&bytes)) {
            Ok(one) => {
                for (key, count) in one {
                    *tally.entry(key).or_default() += count;
                }
            }
            Err(_) => panic!("seed {seed}"),
        }
    }
    std::println!("{tally:?}");
}
