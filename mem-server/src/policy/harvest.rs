//! How many pages a guest touched, from accessed bits of which a large page has one for all of its 512 pages.
//!
//! Every period a few large regions, drawn at random, are mapped by small pages ("watched"), so that their touched pages can be
//! counted. With a guess `g` for every region, made before the period, the estimate is what statistics calls a difference
//! estimator (Cochran, *Sampling Techniques*, chapter 7):
//!
//! ```text
//! touched = counted in small regions + sum of g over accessed large ones
//!                                    + accessed large ones x mean of (counted - g) over the watched ones that were touched
//! ```
//!
//! A watched region and a large one that was not drawn are equally likely to be touched, and to be touched in so many places, so the
//! mean difference of the touched watched ones is, on average, that of the accessed large ones, **whatever** the guesses are:
//! good guesses only make it vary less. (The mean touched density alone, which is this with the same guess for all, is as true on
//! average but wide: a few full regions among many with a page or two need luck to be drawn.) Untouched watched regions
//! must not count: an untouched large region adds nothing either, its accessed bit says so. The choice must be random: regions
//! drawn by age, or because they were accessed before, differ from the rest in just what is asked.
//!
//! The guess of a region is what was counted when it was last small and touched; before that all of it, since a region becomes large
//! when its guest has just filled it. If no watched region was touched in a period, the guesses stand alone.

//!
//! Reading an accessed bit clears it, so there is one reader ([`crate::server::Server::harvest`]), and whoever wants to know is a
//! [`Subscriber`] of its findings. The estimate is one, the regions' guesses are another.

use crate::page::{FRAMES_PER_BLOCK, REGION_WORDS};
use crate::policy::large::Region;

/// Touched pages expected of a region when it is touched: 2 to 512 in steps of 2, in a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess(u8);

impl Guess {
    /// All of a region: nothing was counted yet.
    pub const ALL: Self = Self(u8::MAX);

    /// What was counted, 1 to 512; one more if it is odd.
    pub const fn of(touched: u32) -> Self {
        let most = if touched < FRAMES_PER_BLOCK { touched } else { FRAMES_PER_BLOCK };
        Self((most.saturating_sub(1) / 2) as u8)
    }

    /// In pages.
    pub const fn pages(self) -> u32 {
        (self.0 as u32 + 1) * 2
    }
}

/// What was found in one region since it was harvested last.
#[derive(Clone, Copy, Debug)]
pub struct Finding<'a> {
    /// Its first page.
    pub first: u32,
    /// A bit for each of its pages that was accessed; if one large page maps it, all or none.
    pub accessed: &'a [u64; REGION_WORDS],
    /// It was drawn to be watched in this period.
    pub is_watched: bool,
}

impl Finding<'_> {
    /// Pages accessed.
    pub fn touched(&self) -> u32 {
        self.accessed.iter().map(|word| word.count_ones()).sum()
    }
}

/// Hears what a harvest finds: of every region of a VM, once. Two are one as a pair, in which the first hears first.
pub trait Subscriber {
    /// One region and what was found in it.
    fn region(&mut self, region: &mut Region, found: &Finding<'_>);
}

impl<A: Subscriber, B: Subscriber> Subscriber for (A, B) {
    #[inline]
    fn region(&mut self, region: &mut Region, found: &Finding<'_>) {
        self.0.region(region, found);
        self.1.region(region, found);
    }
}

/// Notes in each small region what was counted in it. An estimate that is to use what was known before hears first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guesses;

impl Subscriber for Guesses {
    #[inline]
    fn region(&mut self, region: &mut Region, found: &Finding<'_>) {
        let touched = found.touched();
        if touched > 0 && !region.is_large() {
            region.guess = Guess::of(touched);
        }
    }
}

impl Subscriber for Estimate {
    #[inline]
    fn region(&mut self, region: &mut Region, found: &Finding<'_>) {
        match found.touched() {
            0 if region.is_large() => {}
            _ if region.is_large() => self.large(region.guess),
            touched if found.is_watched => self.watched(touched, region.guess),
            touched => self.small(touched),
        }
    }
}

/// The estimate of one VM in one period, as its regions are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Pages counted in small regions.
    counted: u32,
    /// Accessed large regions, and the sum of their guesses.
    large: u32,
    guessed: u32,
    /// Touched watched regions, and the sum of what was counted less what was guessed.
    watched: u32,
    difference: i32,
}

impl Estimate {
    /// A region mapped by small pages for a reason of its own, with so many pages touched.
    pub const fn small(&mut self, touched: u32) {
        self.counted += touched;
    }

    /// A region that was drawn to be watched in this period, with so many pages touched.
    pub const fn watched(&mut self, touched: u32, guess: Guess) {
        self.counted += touched;
        if touched > 0 {
            self.watched += 1;
            self.difference += touched as i32 - guess.pages() as i32;
        }
    }

    /// A region mapped by a large page that was accessed.
    pub const fn large(&mut self, guess: Guess) {
        self.large += 1;
        self.guessed += guess.pages();
    }

    /// Pages touched: of an accessed large region at least one page and at most all, on average.
    pub fn touched(&self) -> u32 {
        let correction = match self.watched {
            0 => 0,
            watched => i64::from(self.difference) * i64::from(self.large) / i64::from(watched),
        };
        let (least, most) = (i64::from(self.large), i64::from(self.large * FRAMES_PER_BLOCK));
        let of_large = (i64::from(self.guessed) + correction).clamp(least, most);
        self.counted + of_large as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use proptest::prelude::*;

    #[test]
    fn a_guess_is_what_was_counted() {
        for touched in 1..=512 {
            let pages = Guess::of(touched).pages();
            assert!(pages == touched || pages == touched + 1, "{touched}: {pages}");
        }
        assert_eq!((Guess::of(0).pages(), Guess::of(u32::MAX)), (2, Guess::ALL));
        assert_eq!(Guess::ALL.pages(), 512);
    }

    #[test]
    fn without_large_regions_pages_are_counted() {
        let mut estimate = Estimate::default();
        estimate.small(40);
        estimate.watched(7, Guess::ALL);
        estimate.watched(0, Guess::ALL);
        assert_eq!(estimate.touched(), 47);
    }

    #[test]
    fn a_watched_region_speaks_for_the_large_ones() {
        let mut estimate = Estimate::default();
        for _ in 0..10 {
            estimate.large(Guess::ALL);
        }
        assert_eq!(estimate.touched(), 5120, "nothing is known yet");
        estimate.watched(0, Guess::ALL);
        assert_eq!(estimate.touched(), 5120, "an untouched region says nothing of touched ones");
        estimate.watched(12, Guess::ALL);
        assert_eq!(estimate.touched(), 12 + 10 * 12);
    }

    #[test]
    fn an_accessed_region_counts_one_page_at_least_and_all_at_most() {
        let mut estimate = Estimate::default();
        estimate.large(Guess::of(10));
        estimate.watched(2, Guess::ALL);
        assert_eq!(estimate.touched(), 2 + 1);
        let mut estimate = Estimate::default();
        estimate.large(Guess::of(500));
        estimate.watched(512, Guess::of(2));
        assert_eq!(estimate.touched(), 512 + 512);
    }

    /// Mean of many periods in which `watched` random ones of `regions` are watched, each with its touched pages and its guess.
    fn mean(regions: &[(u32, Guess)], watched: usize, seed: u64) -> f64 {
        const PERIODS: u32 = 4000;
        let mut random = Random::new(seed);
        let mut sum = 0.0;
        for _ in 0..PERIODS {
            let mut order: Vec<_> = regions.to_vec();
            let mut estimate = Estimate::default();
            for _ in 0..watched {
                let (touched, guess) = order.swap_remove(random.below(order.len() as u32) as usize);
                estimate.watched(touched, guess);
            }
            for (_, guess) in order.iter().filter(|(touched, _)| *touched > 0) {
                estimate.large(*guess);
            }
            sum += f64::from(estimate.touched());
        }
        sum / f64::from(PERIODS)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Guesses may be anything: on average the estimate is right, as long as no bound cuts it and a touched region is drawn.
        #[test]
        fn it_is_right_on_average_whatever_the_guesses(
            regions in prop::collection::vec((100u32..400, 100u32..400), 24..64),
            seed in any::<u64>(),
        ) {
            let regions: Vec<_> =
                regions.into_iter().map(|(touched, guess)| (touched, Guess::of(guess))).collect();
            let right: u32 = regions.iter().map(|(touched, _)| touched).sum();
            let mean = mean(&regions, 8, seed);
            prop_assert!((mean / f64::from(right) - 1.0).abs() < 0.02, "{mean}, not {right}");
        }

        /// Some regions full, many with a page or two, some untouched: within a tenth on average, from the first guess on.
        #[test]
        fn unlike_regions_are_right_on_average_too(full in 0usize..20, seed in any::<u64>()) {
            let mut regions = vec![(512, Guess::ALL); full];
            regions.extend([(2, Guess::ALL); 24]);
            regions.extend([(0, Guess::ALL); 16]);
            let right = (full * 512 + 24 * 2) as f64;
            let mean = mean(&regions, 8, seed);
            prop_assert!((mean - right).abs() < right * 0.1 + 100.0, "{mean}, not {right}");
        }
    }

    #[test]
    fn good_guesses_narrow_it() {
        let regions: Vec<_> = (0..16).map(|_| (512, 0)).chain((0..32).map(|_| (3, 0))).collect();
        let spread = |guess: fn(u32) -> Guess| {
            let regions: Vec<_> = regions.iter().map(|(t, _)| (*t, guess(*t))).collect();
            let means: Vec<f64> = (0..200)
                .map(|seed| {
                    let mut random = Random::new(seed);
                    let mut order = regions.clone();
                    let mut estimate = Estimate::default();
                    for _ in 0..8 {
                        let (touched, guess) =
                            order.swap_remove(random.below(order.len() as u32) as usize);
                        estimate.watched(touched, guess);
                    }
                    order.iter().for_each(|(_, guess)| estimate.large(*guess));
                    f64::from(estimate.touched())
                })
                .collect();
            let right = f64::from(16 * 512 + 32 * 3);
            (means.iter().map(|mean| (mean - right).powi(2)).sum::<f64>() / 200.0).sqrt() / right
        };
        assert!(spread(|_| Guess::ALL) > 0.3, "one guess for all");
        assert!(spread(Guess::of) < 0.02, "what was counted last");
    }
}
