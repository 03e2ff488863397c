//! Chance that no guest knows, from the processor.
// UNSAFETY: RDRAND needs a processor that has it.
#![expect(unsafe_code, reason = "the processor's random numbers have no safe name on this target")]

use core::arch::x86_64::{__cpuid, _rdrand64_step};

/// CPUID leaf 1, ECX: the processor has RDRAND.
const HAS_RDRAND: u32 = 1 << 30;
/// Tries before the processor counts as unable (AMD's manual and Intel's recommend ten).
const TRIES: usize = 10;

#[target_feature(enable = "rdrand")]
fn draw() -> Option<u64> {
    let mut word = 0;
    (0..TRIES).any(|_| _rdrand64_step(&mut word) == 1).then_some(word)
}

/// A random word; where the processor has none to give, the ticks of now.
///
/// QEMU's own generator stands behind RDRAND there: started with `-seed` it repeats itself, which makes a run by instruction
/// count the same each time.
pub fn word() -> u64 {
    let has_rdrand = __cpuid(1).ecx & HAS_RDRAND != 0;
    // SAFETY: CPUID says that the instruction exists.
    let drawn = if has_rdrand { unsafe { draw() } } else { None };
    drawn.unwrap_or_else(runtime::clock::tsc)
}
