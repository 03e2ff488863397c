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

/// What is known of a class of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Class {
    samples: u32,
    /// Mean of what they count, in [`UNIT`]s.
    weight: u64,
    /// Mean length in 1/256 bytes.
    length: u64,
}

impl Class {
    const NEW: Self = Self { samples: 0, weight: 0, length: 0 };

    const fn is_known(&self) -> bool {
        self.samples >= ENOUGH
    }

    /// Takes `count` requests in of this mean weight and length.
    fn add(&mut self, count: u32, weight: u64, length: u64) {
        let weight = weight.clamp(UNIT / 1024, UNIT * 1024);
        let is_other = weight / FAR > self.weight || weight < self.weight / FAR;
        if is_other && count >= ENOUGH / 2 {
            self.samples = 0;
        }
        self.samples = (self.samples + count).min(2 * MEMORY);
        // As if there had been half as many: a first guess is soon forgotten.
        let all = u128::from((self.samples / 2).max(count).max(1));
        let count = u128::from(count);
        let mean = |old: u64, new: u64| {
            let sum = u128::from(old) * (all - count) + u128::from(new) * count;
            u64::try_from(sum / all).unwrap_or(u64::MAX)
        };
        (self.weight, self.length) = (mean(self.weight, weight), mean(self.length, length));
    }
}

/// What was seen of a class since the last correction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    count: u32,
    /// Sum of their times in nanoseconds.
    time: u64,
    /// Sum of their lengths in bytes.
    length: u64,
}

impl Seen {
    const NONE: Self = Self { count: 0, time: 0, length: 0 };

    fn mean_length(&self) -> u64 {
        (self.length << 8) / u64::from(self.count.max(1))
    }
}

/// What a class counts by length; recomputed at each correction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    /// At length 0, and more per byte; 32 fractional bits.
    base: i64,
    per_byte: i64,
    is_known: bool,
}

impl Line {
    const UNKNOWN: Self = Self { base: 0, per_byte: 0, is_known: false };

    fn at(&self, length: u32) -> Cost {
        let cost = self.base.saturating_add(self.per_byte.saturating_mul(i64::from(length))) >> 16;
        let cost = cost.clamp(i64::from(Cost::MIN.0), i64::from(Cost::MAX.0));
        Cost(cost as u32)
    }
}

/// One reference request as a weight: 32 fractional bits.
const UNIT: u64 = 1 << 32;
/// Fractional bits of the pace.
const PACE_BITS: u32 = 16;
/// Requests between two corrections.
const WINDOW: u32 = 32;
/// A class remembers so many of its requests. Long, because a ratio hardly ever changes, and a change of the pace between two requests of a
/// window must not pass for one.
const MEMORY: u32 = 256;
/// A sample counts at most this many times what is expected.
const OUTLIER: u64 = 8;
/// What a class counts is learnt anew if several requests say that it is so many times too much or too little: what it was
/// learnt from was something else, such as a cache when the server started.
const FAR: u64 = 4;
/// Length that parts short from long requests.
const LONG: u32 = 16 << 10;
/// Samples of a class before it is believed.
const ENOUGH: u32 = 16;
const CLASSES: usize = 8;

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
///
/// The device time of a request is taken for a product: what a request of its class and length counts, times the pace of the
/// device, which is the same for all. The pace follows the last requests whatever they are; what a class counts is learnt only
/// from requests of other classes in the same window of time. So a device that becomes slower while everybody asks for one size
/// does so for all sizes, and only what was compared changes the ratios between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostModel {
    rule: CostRule,
    /// By direction (read, write), pattern (random, sequential) and length (short, long).
    classes: [Class; CLASSES],
    /// Nanoseconds per reference request, [`PACE_BITS`] fractional bits; 0: not known yet.
    pace: u64,
    seen: [Seen; CLASSES],
    seen_count: u32,
    lines: [Line; CLASSES],
    /// A request of a class counts at most as this time, in nanoseconds: one stall does not spoil the model.
    longest: [u64; CLASSES],
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
            classes: [Class::NEW; CLASSES],
            pace: 0,
            seen: [Seen::NONE; CLASSES],
            seen_count: 0,
            lines: [Line::UNKNOWN; CLASSES],
            longest: [u64::MAX; CLASSES],
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
        let class = class(access);
        let seen = &mut self.seen[class];
        seen.count += 1;
        seen.time += time.min(self.longest[class]);
        seen.length += u64::from(access.length);
        self.seen_count += 1;
        if self.seen_count == WINDOW {
            self.correct();
        }
    }

    /// Takes in what was seen since the last correction.
    fn correct(&mut self) {
        let seen = core::mem::replace(&mut self.seen, [Seen::NONE; CLASSES]);
        self.seen_count = 0;
        let pace = self.follow_pace(&seen);
        for ((class, seen), longest) in self.classes.iter_mut().zip(&seen).zip(&mut self.longest) {
            if seen.count > 0 {
                let time = u128::from(seen.time) << (PACE_BITS + 32);
                let weight = time / (u128::from(pace) * u128::from(seen.count)).max(1);
                let weight = u64::try_from(weight).unwrap_or(u64::MAX);
                class.add(seen.count, weight, seen.mean_length());
            }
            if class.is_known() {
                let time = u128::from(class.weight) * u128::from(self.pace.saturating_mul(OUTLIER));
                let time = u64::try_from(time >> (PACE_BITS + 32)).unwrap_or(u64::MAX);
                *longest = time.max(1);
            }
        }
        for pair in (0..CLASSES).step_by(2) {
            self.draw_lines(pair);
        }
    }

    /// The pace of these requests, and the device's from now on.
    fn follow_pace(&mut self, seen: &[Seen; CLASSES]) -> u64 {
        let (mut time, mut weight, mut count) = (0_u128, 0_u128, 0);
        for (class, seen) in seen.iter().enumerate() {
            // What is not known well says nothing of the pace, except to a model that knows nothing at all.
            if seen.count > 0 && (self.pace == 0 || self.classes[class].is_known()) {
                let one = self.expected(class, seen.mean_length());
                // The longer known, the more it has to say: a newcomer's first guess does not spoil the others.
                let say = u128::from(self.classes[class].samples.max(1));
                time += say * u128::from(seen.time);
                weight += say * u128::from(one.unwrap_or(UNIT)) * u128::from(seen.count);
                count += seen.count;
            }
        }
        if count * 2 < WINDOW {
            return self.pace.max(1);
        }
        let pace = (time << (PACE_BITS + 32)) / weight.max(1);
        let pace = u64::try_from(pace).unwrap_or(u64::MAX).clamp(1, 1 << 56);
        self.pace = if self.pace == 0 { pace } else { (self.pace + pace) / 2 };
        pace
    }

    /// What a request of `class` of this length (in 1/256 bytes) counts as a weight, if enough is known.
    fn expected(&self, class: usize, length: u64) -> Option<u64> {
        let (short, long) = (self.classes[class & !1], self.classes[class | 1]);
        match (short.is_known(), long.is_known()) {
            // Long requests that seem to count less than short ones: that is noise about equals, which must not be cut off on one
            // side, nor drawn out to other lengths.
            (true, true) if long.weight < short.weight => {
                Some(if class & 1 == 0 { short.weight } else { long.weight })
            }
            (true, true) => {
                let rise = long.weight - short.weight;
                let run = long.length.saturating_sub(short.length).max(1);
                let offset = |length: u64| {
                    u64::try_from(u128::from(rise) * u128::from(length) / u128::from(run))
                        .unwrap_or(u64::MAX)
                };
                Some(if length >= short.length {
                    short.weight.saturating_add(offset(length - short.length))
                } else {
                    short.weight.saturating_sub(offset(short.length - length)).max(1)
                })
            }
            (true, false) if class & 1 == 0 => Some(short.weight),
            (false, true) if class & 1 == 1 => Some(long.weight),
            _ => None,
        }
    }

    /// Weight of a reference request as requests of `pair` are measured by it: where no short random read was seen, the line of these
    /// classes at 4 KiB; where only long ones were, what the paper's formula makes of them.
    fn reference(&self, pair: usize) -> Option<u64> {
        let length = u64::from(REFERENCE_BYTES) << 8;
        let random = pair & !2;
        self.expected(0, length).or_else(|| self.expected(random, length)).or_else(|| {
            let long = self.classes[random | 1];
            let CostRule::Learnt { positioning_bytes } = self.rule else { return None };
            let length = u32::try_from(long.length >> 8).unwrap_or(u32::MAX);
            let access = Access { operation: BlkOperation::Read, is_sequential: false, length };
            let cost = u128::from(formula(positioning_bytes, access).0);
            let weight = (u128::from(long.weight) << 16) / cost.max(1);
            long.is_known().then(|| u64::try_from(weight).unwrap_or(u64::MAX))
        })
    }

    /// Brings the lines of two classes, short and long, up to date.
    fn draw_lines(&mut self, pair: usize) {
        let Some(reference) = self.reference(pair) else { return };
        for class in [pair, pair + 1] {
            let length = self.classes[class].length;
            let Some(weight) = self.expected(class, length) else { continue };
            let ratio = |weight: u64| (i128::from(weight) << 32) / i128::from(reference.max(1));
            let (short, long) = (self.classes[pair], self.classes[pair + 1]);
            let mut per_byte = 0;
            if short.is_known() && long.is_known() {
                let run = long.length.saturating_sub(short.length).max(1);
                let rise = long.weight.saturating_sub(short.weight);
                per_byte = (ratio(rise) << 8) / i128::from(run);
            }
            let base = ratio(weight) - ((per_byte * i128::from(length)) >> 8);
            let word = |value: i128| i64::try_from(value).unwrap_or(i64::MAX);
            self.lines[class] = Line { base: word(base), per_byte: word(per_byte), is_known: true };
        }
    }

    /// Device time of a reference request, if known.
    pub fn reference_time(&self) -> Option<Nanos> {
        let weight = self.expected(0, u64::from(REFERENCE_BYTES) << 8)?;
        let time = (u128::from(weight) * u128::from(self.pace)) >> (PACE_BITS + 32);
        Some(Nanos(u64::try_from(time).unwrap_or(u64::MAX).max(1)))
    }

    /// What an access counts, between [`Cost::MIN`] and [`Cost::MAX`].
    pub fn cost(&self, access: Access) -> Cost {
        match self.rule {
            CostRule::Unit => Cost::ONE,
            CostRule::Fixed { positioning_bytes } => formula(positioning_bytes, access),
            CostRule::Learnt { .. } if access.operation == BlkOperation::Flush => Cost::ONE,
            CostRule::Learnt { positioning_bytes } => {
                let line = &self.lines[class(access)];
                if line.is_known {
                    line.at(access.length)
                } else {
                    formula(positioning_bytes, access)
                }
            }
        }
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
    use proptest::prelude::*;

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
        let reference = model.reference_time().unwrap().0;
        assert!((303_500..304_500).contains(&reference), "{reference}");
    }

    #[test]
    fn where_nobody_asks_for_little_what_follows_on_is_cheaper_all_the_same() {
        let mut model = CostModel::new(CostRule::DEFAULT);
        let access = |is_sequential| Access { is_sequential, ..read(64 << 10) };
        let mut now = 0;
        for round in 0..400 {
            let is_sequential = round % 2 == 0;
            now += if is_sequential { 1_000_000 } else { 6_000_000 };
            model.completed(Nanos(now), Nanos(0), access(is_sequential));
        }
        let [random, following] = [false, true].map(|next| f64::from(model.cost(access(next)).0));
        assert!((random / following - 6.0).abs() < 0.1, "{random} {following}");
        let formula = f64::from(formula(300_000, access(false)).0);
        assert!((random / formula - 1.0).abs() < 0.02, "{random} {formula}");
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
        let reference = model.reference_time().unwrap().0;
        assert!((990_000..1_010_000).contains(&reference), "{reference}");
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

    /// A disk that serves one request after the other: (nanoseconds for positioning, for a byte).
    struct Disk {
        model: CostModel,
        now: u64,
        speed: (u64, u64),
    }

    impl Disk {
        fn new(position: u64, byte: u64) -> Self {
            Self { model: CostModel::new(CostRule::DEFAULT), now: 1, speed: (position, byte) }
        }

        fn serve(&mut self, count: u32, accesses: &[Access]) {
            for access in accesses.iter().cycle().take(count as usize) {
                self.now += self.speed.0 + self.speed.1 * u64::from(access.length);
                self.model.completed(Nanos(self.now), Nanos(0), *access);
            }
        }

        /// How far what `length` counts is from the truth, as a part.
        fn error(&self, length: u32) -> f64 {
            let time = |length: u32| self.speed.0 + self.speed.1 * u64::from(length);
            let truth = time(length) as f64 / time(REFERENCE_BYTES) as f64;
            (f64::from(self.model.cost(read(length)).0) / 65536.0 / truth - 1.0).abs()
        }
    }

    #[test]
    fn a_change_of_the_pace_is_common_to_all_sizes() {
        let (small, large) = (read(4 << 10), read(64 << 10));
        let mut disk = Disk::new(100_000, 10);
        disk.serve(2000, &[small, large]);
        assert!(disk.error(64 << 10) < 0.01);
        // Three times as slow, and only large requests tell.
        disk.speed = (300_000, 30);
        disk.serve(2000, &[large]);
        // The change fell into a window; that much of it passed for one of the ratio.
        assert!(disk.error(64 << 10) < 0.03, "{}", disk.error(64 << 10));
        let reference = disk.model.reference_time().unwrap().0;
        assert!((405_000..435_000).contains(&reference), "{reference}");
        // The first small ones after that find what they count as it was.
        disk.serve(32, &[small, large]);
        assert!(disk.error(64 << 10) < 0.03);
    }

    #[test]
    fn a_change_of_the_ratio_is_learnt_where_sizes_are_compared() {
        let (small, large) = (read(4 << 10), read(64 << 10));
        let mut disk = Disk::new(100_000, 10);
        disk.serve(2000, &[small, large]);
        disk.speed = (100_000, 2);
        disk.serve(2000, &[small, large]);
        assert!(disk.error(64 << 10) < 0.03, "{}", disk.error(64 << 10));
    }

    #[test]
    fn one_size_alone_never_changes_what_it_counts() {
        let (small, large) = (read(4 << 10), read(64 << 10));
        let mut disk = Disk::new(100_000, 10);
        disk.serve(2000, &[small, large]);
        let before = disk.model.cost(large);
        // Noise, and a pace that swings, a hundred thousand times.
        let mut state = 1_u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            disk.speed.0 = 1 + (state >> 40) % 2_000_000;
            disk.serve(1, &[large]);
        }
        let after = disk.model.cost(large);
        let drift = f64::from(after.0) / f64::from(before.0);
        assert!((0.98..1.02).contains(&drift), "{before:?} {after:?}");
    }

    #[test]
    fn noise_favours_no_size() {
        // A disk that takes all sizes the same time, seen through noise: what they count is right in the mean.
        let (small, large) = (read(4 << 10), read(16 << 10));
        let mut disk = Disk::new(0, 0);
        let (mut state, mut sum) = (1_u64, [0.0; 2]);
        for round in 0..200_000_u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            disk.speed.0 = 1 + (state >> 40) % 1_200_000;
            disk.serve(1, &[if state >> 33 & 3 == 0 { large } else { small }]);
            if round >= 2000 {
                for (sum, access) in sum.iter_mut().zip([small, large]) {
                    *sum += f64::from(disk.model.cost(access).0);
                }
            }
        }
        let ratio = sum[1] / sum[0];
        assert!((ratio - 1.0).abs() < 0.005, "{ratio}");
    }

    #[test]
    fn writes_and_sequences_count_by_the_same_pace() {
        let write = Access { operation: BlkOperation::Write, ..read(4 << 10) };
        let follow = Access { is_sequential: true, ..read(64 << 10) };
        let mut disk = Disk::new(100_000, 1);
        disk.serve(2000, &[read(4 << 10), write]);
        disk.speed = (400_000, 4);
        // A kind that was never seen before, beside writes alone.
        disk.serve(2000, &[write, follow]);
        let count = |access| f64::from(disk.model.cost(access).0) / 65536.0;
        assert!((count(write) - 1.0).abs() < 0.05, "{}", count(write));
        let truth = (100_000.0 + 65_536.0) / (100_000.0 + 4_096.0);
        assert!((count(follow) / truth - 1.0).abs() < 0.05, "{} {truth}", count(follow));
    }

    proptest! {
        #[test]
        fn whatever_was_seen_first_is_forgotten(
            rubbish in proptest::collection::vec((0..4_usize, 0..5_000_000_000_u64), 0..200),
            position in 10_000..10_000_000_u64,
            byte in 1..100_u64,
        ) {
            let kinds = [4, 8, 64, 256].map(|kib: u32| read(kib << 10));
            let mut disk = Disk::new(position, byte);
            for (kind, time) in rubbish {
                disk.now += time;
                disk.model.completed(Nanos(disk.now), Nanos(0), kinds[kind]);
            }
            disk.serve(4000, &kinds);
            for length in [4, 8, 64, 256] {
                let error = disk.error(length << 10);
                // Beyond what a request may count nothing is learnt.
                let is_at_the_end = disk.model.cost(read(length << 10)) == Cost::MAX;
                prop_assert!(error < 0.04 || is_at_the_end, "{} KiB: {}", length, error);
            }
            let time = position + byte * u64::from(REFERENCE_BYTES);
            let reference = disk.model.reference_time().unwrap().0;
            prop_assert!(reference.abs_diff(time) * 20 <= time, "{} {}", reference, time);
        }
    }
}
