//! How many requests the device may have at once: as many as keep its latency under a ceiling.
//!
//! Additive increase while the depth is what holds requests back, multiplicative decrease when more than a tenth
//! of a window was late. Bandwidth-only control hides latency (a cloud disk's token bucket shows as 100 ms); this does not.

use protocol::units::Nanos;

/// Completions between two decisions.
const WINDOW: u32 = 32;

/// The control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    most: u32,
    ceiling: Nanos,
    current: u32,
    seen: u32,
    late: u32,
    was_full: bool,
}

impl Depth {
    /// Starts at `most`; a ceiling of 0 means none.
    pub const fn new(most: u32, ceiling: Nanos) -> Self {
        let most = if most == 0 { 1 } else { most };
        Self { most, ceiling, current: most, seen: 0, late: 0, was_full: false }
    }

    /// Requests the device may have now.
    pub const fn current(&self) -> u32 {
        self.current
    }

    /// Requests wait because the device has as many as it may.
    pub const fn note_full(&mut self) {
        self.was_full = true;
    }

    /// A request came back after `latency` in the device.
    pub fn completed(&mut self, latency: Nanos) {
        if self.ceiling == Nanos(0) {
            return;
        }
        self.seen += 1;
        if latency > self.ceiling {
            self.late += 1;
        }
        // With few requests in the device a full window would take too long to notice.
        if self.seen < WINDOW.min(self.current * 2) {
            return;
        }
        if self.late * 10 > self.seen {
            self.current = (self.current * 3 / 4).max(1);
        } else if self.was_full && self.current < self.most {
            self.current += 1;
        }
        self.seen = 0;
        self.late = 0;
        self.was_full = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_settles_where_latency_meets_the_ceiling() {
        let mut depth = Depth::new(64, Nanos::from_millis(20));
        for _ in 0..5000 {
            depth.note_full();
            depth.completed(Nanos::from_millis(u64::from(depth.current())));
        }
        assert!((13..=21).contains(&depth.current()), "{}", depth.current());
    }

    #[test]
    fn an_unused_depth_does_not_grow_and_no_ceiling_means_full_depth() {
        let mut depth = Depth::new(64, Nanos::from_millis(1));
        for _ in 0..1000 {
            depth.completed(Nanos::from_millis(5));
        }
        assert_eq!(depth.current(), 1);
        for _ in 0..1000 {
            depth.completed(Nanos(1));
        }
        assert_eq!(depth.current(), 1);
        let mut free = Depth::new(32, Nanos(0));
        free.completed(Nanos::from_secs(9));
        assert_eq!(free.current(), 32);
    }
}
