//! Frequencies of the time-stamp counter and of the APIC timer, and exact conversion between the two.
//!
//! UNSAFETY: port I/O and RDTSC.
#![expect(unsafe_code, reason = "ports and the time-stamp counter")]

use x86::io::{inb, inl, outb};

use super::apic;

const PM_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;
/// Ticks of the reference clock looked at on either side; the sharpest counts.
const EDGES: usize = 16;

/// Measured frequencies.
#[derive(Debug, Clone, Copy)]
pub struct Frequencies {
    /// Time-stamp counter.
    pub tsc_hz: u64,
    /// APIC timer at divisor 1.
    pub apic_hz: u64,
}

/// Reads the counter.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    // SAFETY: every 64-bit processor has the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Pure instructions between two looks at a reference clock: port reads are very slow in emulators, instructions are not.
fn work() {
    for step in 0..20_000u32 {
        core::hint::black_box(step);
    }
}

/// Measures both counters against the power-management timer, or against the PIT where there is none. Takes about 10 ms.
#[must_use]
pub fn measure(pm_timer: u16) -> Frequencies {
    apic::set_count(u32::MAX);
    let (ticks, hz, tsc, apic) = if pm_timer != 0 { by_pm_timer(pm_timer) } else { by_pit() };
    apic::set_count(0);
    let scale = |counted: u64| (u128::from(counted) * u128::from(hz) / u128::from(ticks)) as u64;
    Frequencies { tsc_hz: settle(scale(tsc)), apic_hz: settle(scale(apic)) }
}

/// Takes the nearest whole MHz if it is within 100 ppm, which is what 10 ms of measuring can tell; emulators and most crystals are exact.
fn settle(hz: u64) -> u64 {
    let whole = (hz + 500_000) / 1_000_000 * 1_000_000;
    if whole.abs_diff(hz) * 10_000 <= hz { whole } else { hz }
}

fn by_pm_timer(port: u16) -> (u64, u64, u64, u64) {
    // The counter has 24 or 32 bits; 24 are enough for 4 s.
    // SAFETY: reading the timer has no side effect.
    let read = || u64::from(unsafe { inl(port) } & 0xff_ffff);
    // The reading with the shortest distance between two ticks of the timer: an emulator may stop us at any point for long.
    let edge = || {
        let mut best = (u64::MAX, 0, 0, 0);
        for _ in 0..EDGES {
            let before = read();
            loop {
                let earlier = now();
                let after = read();
                let (tsc, apic) = (now(), u64::from(apic::count()));
                if after != before {
                    let blur = now() - earlier;
                    if blur < best.0 {
                        best = (blur, after, tsc, apic);
                    }
                    break;
                }
            }
        }
        (best.1, best.2, best.3)
    };
    let (start, tsc_start, apic_start) = edge();
    while read().wrapping_sub(start) & 0xff_ffff < PM_HZ / 100 {
        work();
    }
    let (end, tsc_end, apic_end) = edge();
    (end.wrapping_sub(start) & 0xff_ffff, PM_HZ, tsc_end - tsc_start, apic_start - apic_end)
}

fn by_pit() -> (u64, u64, u64, u64) {
    const COUNT: u16 = 11_932; // 10 ms
    // SAFETY: PIT channel 2 with the speaker off: nobody else uses it.
    unsafe {
        outb(0x61, inb(0x61) & !3);
        outb(0x43, 0xb0); // channel 2, both bytes, mode 0
        outb(0x42, COUNT as u8);
        outb(0x42, (COUNT >> 8) as u8);
        outb(0x61, inb(0x61) & !2 | 1); // gate on: start
    }
    let (tsc_start, apic_start) = (now(), u64::from(apic::count()));
    // SAFETY: reading the status port has no side effect.
    while unsafe { inb(0x61) } & 0x20 == 0 {
        core::hint::spin_loop();
    }
    let (tsc_end, apic_end) = (now(), u64::from(apic::count()));
    (u64::from(COUNT), PIT_HZ, tsc_end - tsc_start, apic_start - apic_end)
}

/// Waits `micros` microseconds.
pub fn delay(tsc_hz: u64, micros: u64) {
    let end = now() + tsc_hz * micros / 1_000_000;
    while now() < end {
        core::hint::spin_loop();
    }
}

/// Exact conversion of TSC ticks to APIC timer ticks, rounded up so that the timer is never early.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    numerator: u64,
    denominator: u64,
    /// Longest distance that is converted; beyond it the timer is set to its maximum and set again when it fires.
    longest: u64,
}

impl Ratio {
    /// The ratio of two frequencies.
    #[must_use]
    pub fn new(frequencies: Frequencies) -> Self {
        let Frequencies { tsc_hz, apic_hz } = frequencies;
        let longest = u128::from(u32::MAX - 1) * u128::from(tsc_hz) / u128::from(apic_hz);
        let divisor = gcd(tsc_hz, apic_hz);
        Self {
            numerator: apic_hz / divisor,
            denominator: tsc_hz / divisor,
            longest: u64::try_from(longest).unwrap_or(u64::MAX),
        }
    }

    /// APIC ticks for `ticks` of the TSC: at least 1, at most what the timer can count.
    #[inline(always)]
    #[must_use]
    pub fn apic_ticks(&self, ticks: u64) -> u32 {
        let ticks = ticks.min(self.longest);
        if self.denominator == 1 && self.numerator == 1 {
            return (ticks as u32).max(1);
        }
        let count = match ticks.checked_mul(self.numerator) {
            Some(product) => product.div_ceil(self.denominator) as u32,
            None => {
                let product = u128::from(ticks) * u128::from(self.numerator);
                product.div_ceil(u128::from(self.denominator)) as u32
            }
        };
        count.max(1)
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}
