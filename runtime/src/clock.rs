//! Time: the TSC, converted exactly to nanoseconds since it was zero.
// UNSAFETY: the RDTSC instruction is an unsafe function of core.
#![expect(unsafe_code, reason = "reads the time stamp counter")]

use core::sync::atomic::{AtomicU32, Ordering};

use protocol::units::Nanos;

static TSC_MHZ: AtomicU32 = AtomicU32::new(1);

/// Sets the frequency; the entry code does this before `main`.
pub fn set_tsc_mhz(mhz: u32) {
    TSC_MHZ.store(mhz.max(1), Ordering::Relaxed);
}

/// Ticks of the TSC per microsecond.
pub fn tsc_mhz() -> u32 {
    TSC_MHZ.load(Ordering::Relaxed)
}

/// The time stamp counter.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and the kernel leaves it to user level (CR4.TSD is clear).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds that `ticks` of the TSC last at `mhz`, rounded down.
pub const fn ticks_to_nanos(ticks: u64, mhz: u32) -> Nanos {
    let mhz = mhz as u64;
    Nanos((ticks / mhz).saturating_mul(1000).saturating_add(ticks % mhz * 1000 / mhz))
}

/// First tick at which [`ticks_to_nanos`] is `nanos` or later.
pub const fn nanos_to_ticks(nanos: Nanos, mhz: u32) -> u64 {
    let mhz = mhz as u64;
    let whole = (nanos.0 / 1000).saturating_mul(mhz);
    whole.saturating_add((nanos.0 % 1000 * mhz).div_ceil(1000))
}

/// Now.
#[inline]
pub fn now() -> Nanos {
    ticks_to_nanos(tsc(), tsc_mhz())
}

/// The TSC at time `deadline`, for `timer_arm`.
#[inline]
pub fn deadline_ticks(deadline: Nanos) -> u64 {
    nanos_to_ticks(deadline, tsc_mhz())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_is_exact_and_deadlines_are_never_early() {
        for mhz in [1, 999, 1000, 2600, 3417] {
            for nanos in [0, 1, 999, 1000, 1_000_000_007, 1 << 60] {
                let ticks = nanos_to_ticks(Nanos(nanos), mhz);
                assert!(ticks_to_nanos(ticks, mhz) >= Nanos(nanos), "{nanos} ns at {mhz} MHz");
                if ticks > 0 {
                    assert!(ticks_to_nanos(ticks - 1, mhz) < Nanos(nanos).max(Nanos(1)));
                }
            }
        }
        // A century of ticks does not overflow.
        assert_eq!(
            ticks_to_nanos(3_000_000_000 * 3_155_760_000, 3000),
            Nanos(3_155_760_000_000_000_000)
        );
    }
}
