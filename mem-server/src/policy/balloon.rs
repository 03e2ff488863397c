//! The balloon controller: moves a guest's balloon towards what the allocation wants, as fast as the guest bears it.
//!
//! Inflates in steps and watches what the guest pays: when major faults (refaults) rise while the balloon grows, the step is
//! halved and part of the last one given back; quiet periods let it grow again. Deflating is never held back.

use protocol::mem::GuestStats;

/// Largest part of a guest's memory a balloon may take, in permille.
pub const MOST: u64 = 650;
/// Smallest step in pages.
const STEP_LEAST: u64 = 256;
/// Refaults per 1024 pages of step that count as suffering.
const SUFFERING: u64 = 64;
/// Periods without suffering after which the step doubles.
const QUIET_PERIODS: u32 = 2;
/// Periods in which less is accepted than was asked, and nothing more is, whatever its driver says it gave, after which a guest counts as
/// not cooperating.
const DEAF_PERIODS: u32 = 20;

/// State of one guest's balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    step: u64,
    quiet: u32,
    deaf: u32,
    last_faults: Option<u64>,
    last_size: u64,
    /// What it should hold by now, of what is accepted.
    asked: u64,
}

impl Default for Controller {
    fn default() -> Self {
        Self::new()
    }
}

impl Controller {
    /// An empty balloon.
    pub const fn new() -> Self {
        Self { step: 4 * STEP_LEAST, quiet: 0, deaf: 0, last_faults: None, last_size: 0, asked: 0 }
    }

    /// Whether the guest ignores its balloon: it is then reclaimed by paging.
    pub const fn is_deaf(&self) -> bool {
        self.deaf >= DEAF_PERIODS
    }

    /// One period: the balloon holds `size` of the guest's `memory` pages, `refused` more were given by its driver and not accepted
    /// (they were on their way to the disk, or the driver lies), the allocation wants `wanted` in it. Answers the next target for
    /// the device, which is compared with what the driver counts as given.
    pub fn step(
        &mut self,
        memory: u64,
        size: u64,
        refused: u64,
        wanted: u64,
        guest: &GuestStats,
    ) -> u64 {
        let most = memory * MOST / 1000;
        let wanted = wanted.min(most);
        let faults = guest.major_faults.zip(self.last_faults).map_or(0, |(now, before)| {
            // A counter that fell was reset with the guest.
            now.saturating_sub(before)
        });
        let grown = size.saturating_sub(self.last_size);
        let suffers = grown > 0 && faults.saturating_mul(1024) > grown.max(STEP_LEAST) * SUFFERING;
        self.last_faults = guest.major_faults.or(self.last_faults);
        self.last_size = size;

        if wanted <= size {
            self.asked = wanted;
            self.deaf = 0;
        } else if suffers {
            self.step = (self.step / 2).max(STEP_LEAST);
            self.quiet = 0;
            self.asked = size - (grown / 2).min(size);
        } else {
            self.deaf = if grown == 0 && self.asked > size { self.deaf + 1 } else { 0 };
            self.quiet += 1;
            if self.quiet > QUIET_PERIODS {
                self.step = (self.step * 2).min((memory / 16).max(STEP_LEAST));
            }
            self.asked = wanted.min(size + self.step);
        }
        // Whoever is asked for more beside what was refused gives it, so that only what is accepted need be believed.
        let refused = refused.min(memory);
        let beside = match self.asked {
            0 => 0,
            asked if asked < size => refused * asked / size,
            _ => refused,
        };
        (self.asked + beside).min(most.max(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stats(major_faults: u64) -> GuestStats {
        GuestStats { major_faults: Some(major_faults), ..GuestStats::default() }
    }

    #[test]
    fn a_willing_guest_reaches_the_target_in_steps() {
        let mut controller = Controller::new();
        let (memory, wanted) = (32_768, 16_000);
        let mut size = 0;
        let mut periods = 0;
        while size < wanted {
            let target = controller.step(memory, size, 0, wanted, &stats(0));
            assert!(target > size && target <= size + memory / 16);
            size = target;
            periods += 1;
            assert!(periods < 30);
        }
        assert_eq!(controller.step(memory, size, 0, wanted, &stats(0)), wanted);
        assert_eq!(controller.step(memory, size, 0, 0, &stats(0)), 0, "deflates at once");
    }

    #[test]
    fn a_suffering_guest_is_given_back_to() {
        let mut controller = Controller::new();
        let first = controller.step(32_768, 0, 0, 16_000, &stats(0));
        let backed_off = controller.step(32_768, first, 0, 16_000, &stats(10_000));
        assert!(backed_off < first);
        let again = controller.step(32_768, backed_off, 0, 16_000, &stats(10_000));
        assert!(again - backed_off < first, "goes on more slowly");
    }

    proptest! {
        #[test]
        fn whatever_a_guest_says_the_target_stays_in_its_part(
            memory in 1_u64..1 << 20,
            refused in any::<u64>(),
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..20),
        ) {
            let mut controller = Controller::new();
            for (size, wanted, faults) in steps {
                let size = size % (memory + 1);
                let target = controller.step(memory, size, refused, wanted, &stats(faults));
                prop_assert!(target <= size.max(memory * MOST / 1000));
            }
        }
    }

    /// A guest that does what it is told, of whose first `refused` offers the server accepted none: what it counts and what was
    /// accepted differ. Answers the sizes the server saw.
    fn offers(refused: u64, wanted: u64, periods: u32) -> (Controller, Vec<u64>) {
        let (mut controller, mut actual, mut sizes) = (Controller::new(), 0_u64, Vec::new());
        for _ in 0..periods {
            let size = actual.saturating_sub(refused);
            sizes.push(size);
            actual = controller.step(32_768, size, actual - size, wanted, &stats(0));
        }
        (controller, sizes)
    }

    #[test]
    fn a_guest_whose_offers_were_refused_is_not_deaf() {
        let (controller, sizes) = offers(700, 4000, 100);
        assert!(!controller.is_deaf());
        assert_eq!(*sizes.last().unwrap(), 4000, "what was refused is asked for elsewhere");
        assert!(sizes.is_sorted(), "{sizes:?}");
    }

    #[test]
    fn a_guest_that_only_says_that_it_gave_is_deaf() {
        for said in [1, 4000, u64::from(u32::MAX)] {
            let mut controller = Controller::new();
            for _ in 0..=DEAF_PERIODS {
                assert!(!controller.is_deaf());
                let target = controller.step(32_768, 100, said, 4000, &stats(0));
                assert!(target <= 32_768 * MOST / 1000);
            }
            assert!(controller.is_deaf(), "{said}");
        }
    }

    #[test]
    fn a_balloon_that_shrinks_keeps_its_part_of_what_was_refused() {
        let mut controller = Controller::new();
        assert_eq!(controller.step(32_768, 4000, 400, 4000, &stats(0)), 4400, "it rests");
        assert_eq!(controller.step(32_768, 4000, 400, 1000, &stats(0)), 1100);
        assert_eq!(controller.step(32_768, 1000, 100, 0, &stats(0)), 0);
    }

    #[test]
    fn a_deaf_guest_is_found_out_and_never_more_than_its_part_is_asked() {
        let mut controller = Controller::new();
        for _ in 0..=DEAF_PERIODS {
            assert!(
                controller.step(32_768, 0, 0, 1 << 40, &GuestStats::default())
                    <= 32_768 * MOST / 1000
            );
        }
        assert!(controller.is_deaf());
        controller.step(32_768, 100, 0, 1 << 40, &GuestStats::default());
        assert!(!controller.is_deaf());
    }
}
