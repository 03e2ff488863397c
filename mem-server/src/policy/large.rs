//! When 2 MiB regions are mapped by one large page, and how long they stay small after something took them apart.

use protocol::units::Nanos;

use crate::ledger;
use crate::policy::harvest::Guess;

/// Longest rest of a region, as a power of two of seconds.
const REST_MAX: u32 = 6;
const SECOND: u64 = 1_000_000_000;

/// Why a large page was taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Demotion {
    /// A page of it is, or may be, equal to another.
    Sharing,
    /// The guest's balloon took a page of it.
    Balloon,
    /// The guest reported a page of it free.
    Report,
    /// A page of it was compressed or went to the swap area.
    Paging,
    /// A page of it was sampled, to see whether the guest uses it.
    Sampling,
    /// A page of it moved so that a block became free.
    Moving,
}

const _: () = assert!(Demotion::ALL.len() == protocol::mem::DEMOTIONS.len());

impl Demotion {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Sharing, Self::Balloon, Self::Report, Self::Paging, Self::Sampling, Self::Moving];
}

/// What is remembered of a 2 MiB region of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The block reserved for it, or [`ledger::NONE`].
    pub block: u32,
    /// Second of its last demotion.
    demoted_at: u32,
    /// Pages touched in it when it is, as last counted.
    pub guess: Guess,
    /// One large page maps it.
    is_large: bool,
    /// Demotions that it rests for.
    demotions: u8,
    reason: Option<Demotion>,
}

// There is one for every 2 MiB of all VMs.
const _: () = assert!(size_of::<Region>() == 12);

impl Region {
    /// Small, with no block.
    pub const NEW: Self = Self {
        block: ledger::NONE,
        demoted_at: 0,
        guess: Guess::ALL,
        is_large: false,
        demotions: 0,
        reason: None,
    };

    /// Whether one large page maps it.
    #[inline]
    pub const fn is_large(&self) -> bool {
        self.is_large
    }

    /// Why it was last taken apart; `None` if it never was, or is large again.
    pub const fn reason(&self) -> Option<Demotion> {
        if self.is_large { None } else { self.reason }
    }

    /// It is large now.
    pub const fn promote(&mut self) {
        self.is_large = true;
    }

    /// It is small now. A sample ends by itself, so it costs no rest.
    pub const fn demote(&mut self, reason: Demotion, now: Nanos) {
        self.is_large = false;
        self.reason = Some(reason);
        if !matches!(reason, Demotion::Sampling) {
            self.demotions = self.demotions.saturating_add(1);
            self.demoted_at = (now.0 / SECOND) as u32;
        }
    }

    /// Whether it has been small long enough to become large again: two seconds after the first demotion, twice as long
    /// after each further one, 64 at most, so that what is taken apart again and again is not put together each time.
    pub const fn is_rested(&self, now: Nanos) -> bool {
        if self.demotions == 0 {
            return true;
        }
        let power = if self.demotions as u32 > REST_MAX { REST_MAX } else { self.demotions as u32 };
        ((now.0 / SECOND) as u32).wrapping_sub(self.demoted_at) >= 1 << power
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until a region demoted at second 100 for the n-th time is rested.
    fn rest(times: u32, reason: Demotion) -> u64 {
        let mut region = Region::NEW;
        for _ in 0..times {
            region.promote();
            region.demote(reason, Nanos::from_secs(100));
        }
        let rested = |seconds: &u64| region.is_rested(Nanos::from_secs(100 + seconds));
        (0..1000).find(rested).unwrap()
    }

    #[test]
    fn regions_rest_longer_each_time_but_not_for_ever() {
        let rests = [1, 2, 3, 6, 7, 300].map(|times| rest(times, Demotion::Paging));
        assert_eq!(rests, [2, 4, 8, 64, 64, 64]);
    }

    #[test]
    fn nothing_rests_after_a_sample_or_before_the_first_demotion() {
        assert!(Region::NEW.is_rested(Nanos(0)));
        assert_eq!(rest(9, Demotion::Sampling), 0);
    }

    #[test]
    fn the_reason_stands_until_the_region_is_large_again() {
        let mut region = Region::NEW;
        assert_eq!(region.reason(), None);
        for reason in Demotion::ALL {
            region.promote();
            assert_eq!((region.is_large(), region.reason()), (true, None));
            region.demote(reason, Nanos(0));
            assert_eq!((region.is_large(), region.reason()), (false, Some(reason)));
        }
    }
}
