//! Working set estimates over the model machine: guests whose use of memory is known, with large pages and without.

use super::*;
use crate::policy::large::Region;
use crate::server::Policy;
use crate::server::tests::World;
use proptest::prelude::*;
use protocol::mem::{MemError, MemReply, MemRequest, Sharing};
use protocol::units::Nanos;

const VM: VmId = VmId(0);
/// Regions of the guest: 128 MiB.
const REGIONS: u32 = 64;
/// Pages in a hundredth of its memory.
const HUNDREDTH: u64 = (REGIONS * FRAMES_PER_BLOCK / 100) as u64;
const PERIOD: Nanos = Nanos::from_secs(30);

/// A guest that has filled all its memory, of which every region is large by now if it may be.
fn filled(large_pages: bool, secret: u64) -> World<'static> {
    let policy = Policy { source: Source::Harvest, large_pages, secret, ..Policy::default() };
    let mut world = World::new(REGIONS + 8, 64, policy);
    world.admit(0, u64::from(REGIONS) * 2, Sharing::None);
    for index in 0..REGIONS * FRAMES_PER_BLOCK {
        world.write(0, index, u64::from(index) + 1);
    }
    for tick in 1..=u64::from(REGIONS) {
        world.server.tick(Nanos(tick * 100_000_000), &mut world.machine);
    }
    world.check();
    assert_eq!(world.server.vm(VM).unwrap().large, if large_pages { REGIONS } else { 0 });
    world
}

/// Lets periods pass, in each of which the guest touches so many pages of each region; answers the last estimate in pages.
fn periods(world: &mut World<'_>, count: u32, touched: impl Fn(u32) -> u32) -> u64 {
    for _ in 0..count {
        for region in 0..REGIONS {
            for page in 0..touched(region) {
                // Spread over the region, each page once: 37 and 512 have no common divisor.
                let index = region * FRAMES_PER_BLOCK + page * 37 % FRAMES_PER_BLOCK;
                assert!(world.read(0, index));
            }
        }
        let now = world.server.background.large.now.0 + PERIOD.0;
        world.server.tick(Nanos(now), &mut world.machine);
    }
    world.check();
    let record = world.server.vm(VM).unwrap();
    record.averages.active_pages(record.granted())
}

fn used(touched: impl Fn(u32) -> u32) -> u64 {
    (0..REGIONS).map(|region| u64::from(touched(region))).sum()
}

/// A page or two in most regions, nothing in the others.
const fn idle(region: u32) -> u32 {
    match region % 4 {
        0 => 0,
        1 => 2,
        _ => 1,
    }
}

/// A quarter of memory in whole regions, and what an idle guest uses besides.
const fn busy(region: u32) -> u32 {
    if region % 4 == 2 { FRAMES_PER_BLOCK } else { idle(region) }
}

/// What users see as touched is the last whole period's, by either source: neither the running one's, which is short of it,
/// nor zero.
#[test]
fn touched_pages_are_those_of_the_last_period() {
    let mut world = filled(false, 1);
    let touched = |world: &World<'_>| world.server.vm_stats(VM).unwrap().touched;
    periods(&mut world, 3, busy);
    assert!(touched(&world).abs_diff(used(busy)) <= 1, "{}", touched(&world));
    periods(&mut world, 1, idle);
    assert!(touched(&world).abs_diff(used(idle)) <= 1, "{}", touched(&world));
    world.server.policy.source = Source::Sampling;
    // Nothing was watched in the period that ends here.
    periods(&mut world, 2, |_| FRAMES_PER_BLOCK);
    assert_eq!(touched(&world), u64::from(REGIONS * FRAMES_PER_BLOCK));
    periods(&mut world, 1, |_| 0);
    assert_eq!(touched(&world), 0);
}

#[test]
fn an_idle_guest_is_not_overestimated() {
    for secret in 0..8 {
        let mut world = filled(true, secret);
        let estimate = periods(&mut world, 60, idle);
        // If a large page counted 512 when touched it would be 24,576 pages.
        assert!(estimate <= used(idle) + HUNDREDTH, "{estimate}, not {} ({secret})", used(idle));
    }
}

#[test]
fn a_busy_guest_is_not_underestimated() {
    for secret in 0..8 {
        let mut world = filled(true, secret);
        let (estimate, right) = (periods(&mut world, 60, busy), used(busy));
        assert!((right * 9 / 10..right * 13 / 10).contains(&estimate), "{estimate}, not {right}");
    }
}

/// The largest of three averages counts, so up goes fast and down slowly.
#[test]
fn the_estimate_follows_a_guest_up_and_down() {
    for secret in 0..8 {
        let mut world = filled(true, secret);
        periods(&mut world, 60, idle);
        let sum: u64 = (0..3).map(|_| periods(&mut world, 1, busy)).sum();
        assert!(sum / 3 > used(busy) / 3, "{} of {} ({secret})", sum / 3, used(busy));
        let up = periods(&mut world, 5, busy);
        assert!(up > used(busy) / 2, "{up} of {} ({secret})", used(busy));
        let down = periods(&mut world, 60, idle);
        assert!(down <= used(idle) + HUNDREDTH, "{down}, not {} ({secret})", used(idle));
    }
}

#[test]
fn small_pages_are_counted_exactly() {
    for touched in [idle, busy] {
        let mut world = filled(false, 1);
        let estimate = periods(&mut world, 90, touched);
        assert!(estimate.abs_diff(used(touched)) <= 2, "{estimate}, not {}", used(touched));
    }
}

#[test]
fn watched_regions_are_few_and_large_again_when_the_period_ends() {
    let mut world = filled(true, 3);
    let most = u64::from(REGIONS / APART_PART);
    let mut seen = std::collections::HashSet::new();
    for period in 1..=20 {
        periods(&mut world, 1, idle);
        let watched = world.server.vm(VM).unwrap().samples.clone();
        assert_eq!(watched.len() as u64, most);
        assert_eq!(world.server.counters.demotions[Demotion::Sampling as usize], most * period);
        // They stay small although their pages are whole, or what is touched in them could not be counted.
        for tick in 1..=20 {
            let now = world.server.background.large.now.0 + tick * 100_000_000;
            world.server.tick(Nanos(now), &mut world.machine);
        }
        assert_eq!(u64::from(world.server.vm(VM).unwrap().large), u64::from(REGIONS) - most);
        seen.extend(watched);
    }
    assert!(seen.len() > 45, "{} of {REGIONS} regions were ever watched", seen.len());
    world.read_all();
}

/// The pages and large regions a subscriber heard of.
#[derive(Default, Debug, PartialEq, Eq)]
struct Heard {
    pages: Vec<u32>,
    large: Vec<u32>,
    regions: u32,
}

impl Subscriber for Heard {
    fn region(&mut self, region: &mut Region, found: &Finding<'_>) {
        self.regions += 1;
        if region.is_large() {
            self.large.extend((found.touched() > 0).then_some(found.first));
            return;
        }
        let bit = |page: &u32| found.accessed[*page as usize / 64] >> (page % 64) & 1 != 0;
        self.pages.extend((0..FRAMES_PER_BLOCK).filter(bit).map(|page| found.first + page));
    }
}

/// Bits are cleared as they are read, and all subscribers hear of each accessed page all the same, once.
#[test]
fn two_subscribers_hear_of_every_accessed_page_once() {
    let mut world = filled(true, 5);
    let harvest = |world: &mut World<'_>| {
        let mut heard = (Heard::default(), Heard::default());
        assert!(world.server.harvest(VM, &[], &mut heard, &mut world.machine));
        assert_eq!(heard.0.regions, REGIONS);
        heard
    };
    periods(&mut world, 1, |_| 0);
    harvest(&mut world);
    let small = world.server.vm(VM).unwrap().samples.clone();
    assert!(!small.is_empty());
    let mut pages: Vec<u32> = small.iter().flat_map(|first| [*first, first + 77]).collect();
    pages.sort_unstable();
    let large: Vec<u32> = (0..REGIONS).map(|region| region * FRAMES_PER_BLOCK).collect();
    let large: Vec<u32> = large.into_iter().filter(|first| !small.contains(first)).collect();
    for page in pages.iter().chain(&large[..9]) {
        assert!(world.read(0, *page) && world.read(0, *page));
    }
    let (first, second) = harvest(&mut world);
    assert_eq!((&first.pages, &first.large[..]), (&pages, &large[..9]));
    assert_eq!(first, second);
    let (first, second) = harvest(&mut world);
    assert_eq!((first.pages.len(), first.large.len()), (0, 0), "they are cleared");
    assert_eq!(first, second);
    world.check();
}

/// The user pauses a VM, or lets it go on.
fn set_paused(world: &mut World<'_>, is_paused: bool) {
    let order = MemRequest::SetPaused { vm: VM, is_paused };
    assert_eq!(world.server.control(VM, order), MemReply::Error(MemError::NotAllowed));
    assert_eq!(world.server.order(order, &mut world.machine), MemReply::Done);
}

const NOTHING: fn(u32) -> u32 = |_| 0;
const SOURCES: [Source; 2] = [Source::Harvest, Source::Sampling];

#[test]
fn a_paused_vm_is_not_idle() {
    for source in SOURCES {
        let mut world = filled(true, 1);
        world.server.policy.source = source;
        let before = periods(&mut world, 20, busy);
        set_paused(&mut world, true);
        assert_eq!(periods(&mut world, 20, NOTHING), before, "{source:?}");
        // The period with the pause in it says nothing, the one after it does.
        set_paused(&mut world, false);
        assert_eq!(periods(&mut world, 1, NOTHING), before, "{source:?}");
        let after = periods(&mut world, 20, NOTHING);
        assert!(after < before / 4, "{after} of {before} ({source:?})");
        world.read_all();
    }
}

#[test]
fn a_vm_that_runs_and_touches_nothing_is_idle() {
    for source in SOURCES {
        let mut world = filled(true, 1);
        world.server.policy.source = source;
        let before = periods(&mut world, 20, busy);
        let after = periods(&mut world, 21, NOTHING);
        assert!(after < before / 4, "{after} of {before} ({source:?})");
        // A pause that is over has no effect on later periods.
        set_paused(&mut world, true);
        set_paused(&mut world, false);
        let after = periods(&mut world, 4, |_| FRAMES_PER_BLOCK);
        assert!(after > u64::from(REGIONS * FRAMES_PER_BLOCK) * 4 / 5, "{after} ({source:?})");
    }
}

#[test]
fn nothing_is_watched_where_nothing_is_large() {
    let mut world = filled(false, 3);
    periods(&mut world, 3, busy);
    assert_eq!(world.server.vm(VM).unwrap().samples.len(), 0);
    assert_eq!(world.machine.counters.demoted, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// However the used pages lie, the estimate is near them once the guest has done the same for a while. It is the largest of
    /// three averages of something that varies, so it errs upwards.
    #[test]
    fn estimates_are_near_what_is_used(
        secret in any::<u64>(),
        density in prop::collection::vec(prop_oneof![Just(0), 1u32..16, 1u32..=512], REGIONS as usize),
    ) {
        let touched = |region: u32| density[region as usize];
        let mut world = filled(true, secret);
        let (estimate, right) = (periods(&mut world, 60, touched), used(touched));
        prop_assert!(estimate * 10 > right * 9 && estimate * 10 < right * 14 + 2000,
            "{} pages, not {}", estimate, right);
        world.read_all();
    }
}
