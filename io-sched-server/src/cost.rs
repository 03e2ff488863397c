//! What a request costs the device, in reference requests, and how that is learnt.
//!
//! mClock, section 3.4: an I/O of size S counts as 1 + S / (Tm * Bpeak) requests. Here the two terms are fitted on line
//! per direction and access pattern from the device time of finished requests, so nobody has to calibrate.

use protocol::{ring::BlkOperation, units::Nanos};

/// A cost in reference requests with 16 fractional bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(pub u32);

impl Cost {
    /// One reference request: 4 KiB at a random place, read.
    pub const ONE: Self = Self(1 << 16);
    /// Cheapest a request may count: a thirty-second, so that no stream is free.
    pub const MIN: Self = Self(Self::ONE.0 / 32);
    /// Dearest a request may count: bounds what one wrong sample can do to a client.
    pub const MAX: Self = Self(Self::ONE.0 * 64);
}

/// Bytes of a reference request.
pub const REFERENCE_BYTES: u32 = 4096;

/// What kind of access a request is to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read, write or flush.
    pub operation: BlkOperation,
    /// Does it start where the client's last request ended?
    pub is_sequential: bool,
    /// Length in bytes.
    pub length: u32,
}

/// Two lengths are kept apart to fit a line: the mean of short and of long requests of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mean {
    samples: u32,
    /// Mean device time in 1/256 ns.
    time: u64,
    /// Mean length in 1/256 bytes.
    length: u64,
}

/// Weight of a new sample in a mean: one part in 64 once there are as many.
const GAIN: u32 = 64;
/// A sample counts at most this many times the mean: one stall does not spoil the model.
const OUTLIER: u64 = 8;

impl Mean {
    fn add(&mut self, time: u64, length: u64) {
        let mut time = time << 8;
        if self.samples >= 8 {
            time = time.min(self.time.saturating_mul(OUTLIER).max(1 << 8));
        }
        self.samples = (self.samples + 1).min(GAIN);
        let n = u64::from(self.samples);
        self.time = self.time - self.time / n + time / n;
        self.length = self.length - self.length / n + (length << 8) / n;
    }
}

/// Length that parts short from long requests.
const LONG: u32 = 16 << 10;
/// Samples of a class before it is believed.
const ENOUGH: u32 = 16;

/// How costs are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostRule {
    /// Every request counts one.
    Unit,
    /// The paper's formula with fixed Tm * Bpeak, in bytes.
    Fixed {
        /// Bytes the device could move in the time of one positioning.
        positioning_bytes: u32,
    },
    /// Learnt; the given value stands in until enough is known.
    Learnt {
        /// As for [`CostRule::Fixed`].
        positioning_bytes: u32,
    },
}

impl CostRule {
    /// The paper's array: 5 ms and 60 MB/s.
    pub const DEFAULT: Self = Self::Learnt { positioning_bytes: 300_000 };
}

/// The cost model of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostModel {
    rule: CostRule,
    /// By direction (read, write), pattern (random, sequential) and length (short, long).
    classes: [Mean; 8],
    last_completion: Nanos,
}

const fn direction(operation: BlkOperation) -> usize {
    match operation {
        BlkOperation::Read | BlkOperation::Flush => 0,
        BlkOperation::Write => 4,
    }
}

const fn class(access: Access) -> usize {
    let pattern = if access.is_sequential { 2 } else { 0 };
    let length = if access.length >= LONG { 1 } else { 0 };
    direction(access.operation) + pattern + length
}

impl CostModel {
    /// A model that knows nothing yet.
    pub const fn new(rule: CostRule) -> Self {
        Self {
            rule,
            classes: [Mean { samples: 0, time: 0, length: 0 }; 8],
            last_completion: Nanos(0),
        }
    }

    /// Learns from a finished request. Its own device time is taken from the later of its dispatch and the completion
    /// before it: exact for a device that serves one after the other, and for any device when it was alone.
    pub fn completed(&mut self, now: Nanos, dispatched: Nanos, access: Access) {
        let start = dispatched.max(self.last_completion);
        self.last_completion = now;
        if access.operation == BlkOperation::Flush {
            return;
        }
        let time = now.0.saturating_sub(start.0).clamp(1, 60_000_000_000);
        self.classes[class(access)].add(time, u64::from(access.length));
    }

    /// Expected device time of an access in 1/256 ns, if enough is known of its class.
    fn expected(&self, access: Access) -> Option<u64> {
        let base = class(access) & !1;
        let (short, long) = (self.classes[base], self.classes[base + 1]);
        let at = u64::from(access.length) << 8;
        match (short.samples >= ENOUGH, long.samples >= ENOUGH) {
            (true, true) => {
                let rise = long.time.saturating_sub(short.time);
                let run = long.length.saturating_sub(short.length).max(1);
                let offset = |length: u64| {
                    u64::try_from(u128::from(rise) * u128::from(length) / u128::from(run))
                        .unwrap_or(u64::MAX)
                };
                Some(if at >= short.length {
                    short.time.saturating_add(offset(at - short.length))
                } else {
                    short.time.saturating_sub(offset(short.length - at)).max(1)
                })
            }
            (true, false) if access.length < LONG => Some(short.time),
            (false, true) if access.length >= LONG => Some(long.time),
            _ => None,
        }
    }

    /// Device time of a reference request, if known.
    pub fn reference_time(&self) -> Option<Nanos> {
        let reference =
            Access { operation: BlkOperation::Read, is_sequential: false, length: REFERENCE_BYTES };
        self.expected(reference).map(|time| Nanos((time >> 8).max(1)))
    }

    /// Reference requests per second the device gives, if known.
    pub fn capacity(&self) -> Option<u32> {
        let time = self.reference_time()?;
        u32::try_from(1_000_000_000 / time.0).ok()
    }

    /// What an access counts, between [`Cost::MIN`] and [`Cost::MAX`].
    pub fn cost(&self, access: Access) -> Cost {
        match self.rule {
            CostRule::Unit => Cost::ONE,
            CostRule::Fixed { positioning_bytes } => formula(positioning_bytes, access),
            CostRule::Learnt { positioning_bytes } => {
                self.learnt(access).unwrap_or_else(|| formula(positioning_bytes, access))
            }
        }
    }

    fn learnt(&self, access: Access) -> Option<Cost> {
        if access.operation == BlkOperation::Flush {
            return Some(Cost::ONE);
        }
        let time = self.expected(access)?;
        let reference = self.reference_or_smallest(access)?;
        let ratio = (u128::from(time) << 16) / u128::from(reference.max(1));
        let ratio = u32::try_from(ratio).unwrap_or(u32::MAX);
        Some(Cost(ratio).clamp(Cost::MIN, Cost::MAX))
    }

    /// Time of a reference request; where no short random read was seen, the line of this access's class at 4 KiB.
    fn reference_or_smallest(&self, access: Access) -> Option<u64> {
        let reference = Access { length: REFERENCE_BYTES, is_sequential: false, ..access };
        self.expected(Access { operation: BlkOperation::Read, ..reference })
            .or_else(|| self.expected(reference))
    }
}

/// The paper's formula, scaled so that 4 KiB counts one.
fn formula(positioning_bytes: u32, access: Access) -> Cost {
    let base = u64::from(positioning_bytes.max(1));
    let cost = ((base + u64::from(access.length)) << 16) / (base + u64::from(REFERENCE_BYTES));
    Cost(u32::try_from(cost).unwrap_or(u32::MAX)).clamp(Cost::MIN, Cost::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(length: u32) -> Access {
        Access { operation: BlkOperation::Read, is_sequential: false, length }
    }

    #[test]
    fn the_formula_is_the_papers() {
        let model = CostModel::new(CostRule::Fixed { positioning_bytes: 300_000 });
        let ratio = |a, b| f64::from(model.cost(read(a)).0) / f64::from(model.cost(read(b)).0);
        assert!((ratio(256 << 10, 8 << 10) - 1.85 / 1.027).abs() < 0.03);
        assert!((ratio(1 << 20, 4 << 10) - 4.4).abs() < 0.1);
        assert_eq!(model.cost(read(4096)), Cost::ONE);
    }

    #[test]
    fn a_line_is_learnt_from_back_to_back_completions() {
        let mut model = CostModel::new(CostRule::DEFAULT);
        let mut now = 0;
        for round in 0..400u32 {
            let length = if round % 2 == 0 { 8 << 10 } else { 256 << 10 };
            now += 300_000 + u64::from(length);
            model.completed(Nanos(now), Nanos(0), read(length));
        }
        let ratio =
            f64::from(model.cost(read(256 << 10)).0) / f64::from(model.cost(read(8 << 10)).0);
        assert!((ratio - 562_144.0 / 308_192.0).abs() < 0.02, "{ratio}");
        let capacity = model.capacity().unwrap();
        assert!((3280..3300).contains(&capacity), "{capacity}");
    }

    #[test]
    fn absurd_first_samples_are_forgotten() {
        let mut model = CostModel::new(CostRule::DEFAULT);
        for _ in 0..20 {
            model.completed(Nanos(1), Nanos(0), read(4096));
        }
        let mut now = 2;
        for _ in 0..400 {
            now += 1_000_000;
            model.completed(Nanos(now), Nanos(0), read(4096));
        }
        let capacity = model.capacity().unwrap();
        assert!((990..1010).contains(&capacity), "{capacity}");
    }

    #[test]
    fn one_stall_moves_the_model_little() {
        let mut model = CostModel::new(CostRule::DEFAULT);
        let mut now = 0;
        for _ in 0..200 {
            now += 1_000_000;
            model.completed(Nanos(now), Nanos(0), read(4096));
        }
        model.completed(Nanos(now + 30_000_000_000), Nanos(0), read(4096));
        assert!(model.reference_time().unwrap().0 < 1_150_000);
    }
}
