//! Large pages over the model machine: when they are made, what takes them apart, and that guests notice nothing.

use super::*;
use crate::model::INCOMPRESSIBLE;
use crate::server::Policy;
use crate::server::tests::{World, swapping};
use crate::sharing::Scanned;
use proptest::prelude::*;
use protocol::mem::{GfnRange, Sharing, release_reason};

const ALL: core::ops::Range<u32> = 0..512;

fn large() -> Policy {
    Policy { large_pages: true, ..swapping() }
}

/// A VM of two regions, the first of which it has filled with pages that are all different.
fn filled(policy: Policy) -> World<'static> {
    let mut world = World::new(8, 256, policy);
    world.admit(0, 4, Sharing::Group(0));
    for index in ALL {
        world.write(0, index, INCOMPRESSIBLE | u64::from(index));
    }
    world
}

/// Lets `seconds` pass in ticks; sampling periods are longer than all of them together.
fn pass(world: &mut World<'_>, seconds: u64) {
    for _ in 0..seconds {
        let now = world.server.background.large.now.0 + 1_000_000_000;
        world.server.tick(Nanos(now), &mut world.machine);
        world.check();
    }
}

fn regions(world: &World<'_>) -> u32 {
    world.server.vm(VmId(0)).unwrap().large
}

/// Takes the large page apart, sees the reason, and that it comes back once the region is whole and rested.
fn comes_and_goes(reason: Demotion, part: impl FnOnce(&mut World<'_>)) {
    let mut world = filled(large());
    pass(&mut world, 1);
    assert_eq!(regions(&world), 1);
    part(&mut world);
    world.check();
    assert_eq!(regions(&world), 0, "{reason:?}");
    let mut expected = [0; Demotion::ALL.len()];
    expected[reason as usize] = 1;
    assert_eq!(world.server.counters.demotions, expected, "{reason:?}");
    assert_eq!(world.server.taken_apart(VmId(0)).map(u64::from), expected);
    world.read_all();
    while let Some((transfer, ok)) = world.machine.disk_step(false) {
        world.server.swap_done(transfer, ok);
    }
    for index in ALL {
        world.write(0, index, INCOMPRESSIBLE | u64::from(index));
    }
    assert_eq!(regions(&world), 0, "it comes back by background work alone");
    pass(&mut world, 3);
    assert_eq!(regions(&world), 1, "{reason:?}");
    assert_eq!(world.server.taken_apart(VmId(0)), [0; Demotion::ALL.len()]);
    world.read_all();
}

fn give(world: &mut World<'_>, reason: u64, first: u64, count: u64) {
    let range = GfnRange::new(Gfn(first), count).into_iter();
    world.server.release(VmId(0), reason, range, &mut world.machine);
    world.oracle.retain(|(_, index), _| !(first..first + count).contains(&u64::from(*index)));
}

#[test]
fn a_shared_page_takes_its_region_apart() {
    comes_and_goes(Demotion::Sharing, |world| {
        for index in [10, 20] {
            world.write(0, index, 4711);
            world.scan(0, index);
        }
    });
}

#[test]
fn a_page_of_zeros_takes_its_region_apart() {
    comes_and_goes(Demotion::Sharing, |world| {
        world.write(0, 10, 0);
        assert_eq!(world.scan(0, 10), Scanned::Merged);
    });
}

#[test]
fn a_ballooned_page_takes_its_region_apart() {
    comes_and_goes(Demotion::Balloon, |world| give(world, release_reason::BALLOON, 7, 1));
}

#[test]
fn a_free_page_takes_its_region_apart() {
    comes_and_goes(Demotion::Report, |world| give(world, release_reason::FREE_REPORT, 0, 512));
}

#[test]
fn a_compressed_page_takes_its_region_apart() {
    comes_and_goes(Demotion::Paging, |world| {
        world.write(0, 30, 99);
        world.server.reclaim_page(VmId(0), 30, &mut world.machine);
    });
}

#[test]
fn a_swapped_page_takes_its_region_apart() {
    comes_and_goes(Demotion::Paging, |world| {
        world.server.reclaim_page(VmId(0), 30, &mut world.machine);
    });
}

#[test]
fn samples_take_few_regions_apart_and_cost_no_rest() {
    let mut world = World::new(40, 256, large());
    world.admit(0, 32, Sharing::None);
    for index in 0..32 * 256 {
        world.write(0, index, INCOMPRESSIBLE | u64::from(index));
    }
    pass(&mut world, 5);
    assert_eq!(regions(&world), 16);
    for period in 1..5 {
        world.server.tick(Nanos::from_secs(31 * period), &mut world.machine);
        world.check();
        // An eighth of sixteen, and then it is put together again but for what is watched now.
        assert_eq!(world.server.counters.demotions[Demotion::Sampling as usize], 2 * period);
        assert_eq!(world.server.vm(VmId(0)).unwrap().samples.len(), 100);
        pass(&mut world, 3);
        assert!(regions(&world) >= 14, "{}", regions(&world));
    }
    world.read_all();
}

#[test]
fn a_page_that_moves_takes_its_region_apart() {
    comes_and_goes(Demotion::Moving, |world| {
        assert!(world.server.move_below(VmId(0), 3, 1, &mut world.machine));
    });
}

/// Another VM took the free frames of the region's block: it gets another block, if enough are free.
#[test]
fn a_region_without_its_block_is_put_together_in_another() {
    for (blocks, expected) in [(8, 1), (3, 0)] {
        let mut world = World::new(blocks, 256, large());
        world.admit(0, 2, Sharing::None);
        for index in 0..500 {
            world.write(0, index, u64::from(index) + 1);
        }
        let block = world.server.regions[0].block;
        // It was to be emptied, and was not: its free frames are anybody's.
        world.server.ledger.begin_leaving(block);
        assert!(!world.server.ledger.end_leaving(block));
        assert_eq!(world.server.ledger.allocate_any().map(|frame| frame.block()), Some(0));
        world.server.own += 1;
        if blocks == 3 {
            world.server.hold_block();
        }
        for index in 500..512 {
            world.write(0, index, u64::from(index) + 1);
        }
        world.check();
        pass(&mut world, 3);
        assert_eq!(regions(&world), expected, "{blocks} blocks");
        assert_eq!(world.server.counters.gathered > 0, expected == 1);
        world.read_all();
    }
}

#[test]
fn small_holes_are_filled_and_large_ones_are_not() {
    for (touched, expected) in [(448, 1), (447, 0)] {
        let mut world = World::new(8, 256, large());
        world.admit(0, 4, Sharing::None);
        for index in 0..touched {
            world.write(0, index, u64::from(index) + 1);
        }
        pass(&mut world, 2);
        assert_eq!(regions(&world), expected, "{touched} pages touched");
        let (frames, private) = (touched + (512 - touched) * expected, PageState::Private);
        assert_eq!(world.server.vm(VmId(0)).unwrap().count(private), u64::from(frames));
        world.read_all();
        assert!(world.read(0, 500), "zeros");
    }
}

type Hinder = fn(&mut World<'_>);

#[test]
fn a_region_that_may_not_be_large_stays_small() {
    let hinder: [(&str, Hinder); 5] = [
        ("a shared page", |world| {
            for index in [10, 20] {
                world.write(0, index, 4711);
                world.scan(0, index);
            }
        }),
        ("a page of zeros", |world| {
            world.write(0, 9, 0);
            world.scan(0, 9);
        }),
        ("a ballooned page", |world| give(world, release_reason::BALLOON, 300, 1)),
        ("a swapped page", |world| {
            world.server.reclaim_page(VmId(0), 5, &mut world.machine);
        }),
        ("the kernel refuses", |world| world.machine.broken.promoting = true),
    ];
    for (what, hinder) in hinder {
        let mut world = filled(large());
        hinder(&mut world);
        pass(&mut world, 5);
        assert_eq!(regions(&world), 0, "{what}");
        world.read_all();
    }
    let mut world = filled(swapping());
    pass(&mut world, 5);
    assert_eq!(regions(&world), 0, "large pages are off");
}

#[test]
fn nothing_is_put_together_under_pressure() {
    let mut world = World::new(3, 256, large());
    world.admit(0, 2, Sharing::None);
    world.admit(1, 4, Sharing::None);
    for index in 0..1000 {
        world.write(1, index, INCOMPRESSIBLE | u64::from(index));
    }
    for index in ALL {
        world.write(0, index, INCOMPRESSIBLE | u64::from(index));
    }
    assert!(world.server.free() < world.server.total() / 50);
    pass(&mut world, 5);
    assert_eq!(world.server.counters.promotions, 0);
    world.read_all();
}

#[test]
fn what_is_taken_apart_again_and_again_rests_longer() {
    let mut world = filled(large());
    for _ in 0..200 {
        pass(&mut world, 1);
        // The guest's balloon comes for a page whenever the region is large.
        if regions(&world) == 1 {
            give(&mut world, release_reason::FREE_REPORT, 7, 1);
            world.write(0, 7, 5);
        }
    }
    assert!((4..=8).contains(&world.server.counters.promotions), "{:?}", world.server.counters);
}

#[test]
fn a_vm_that_ends_with_large_pages_gives_everything_back() {
    let mut world = filled(large());
    pass(&mut world, 1);
    assert_eq!(regions(&world), 1);
    world.oracle.clear();
    world.server.release_vm(VmId(0), &mut world.machine);
    world.check();
    assert_eq!(world.server.free() + 1, world.server.total());
    world.admit(0, 4, Sharing::None);
    assert_eq!(regions(&world), 0);
    assert!(world.read(0, 3), "a new VM reads zeros");
    world.check();
}

#[test]
fn one_touch_maps_its_neighbours_again_and_no_others() {
    let mut world = filled(large());
    pass(&mut world, 1);
    world.server.demote(VmId(0), 0, Demotion::Sampling, &mut world.machine);
    assert!(world.touch(0, 100, false));
    world.check();
    let mapped = |index: u32| world.server.entry(VmId(0), index).unwrap().is_mapped();
    assert!((0..512).all(|index| mapped(index) == (96..112).contains(&index)));
    // The first page has lost its capability to the large page.
    assert!(world.touch(0, 0, true));
    world.check();
    let mapped = |index: u32| world.server.entry(VmId(0), index).unwrap().is_mapped();
    assert!(mapped(0) && !mapped(1));
    world.read_all();
}

#[test]
fn the_window_follows_its_pages() {
    let mut world = filled(large());
    pass(&mut world, 1);
    let gfn = world.gfn(0, 40);
    world.server.window_fault(VmId(0), gfn, true, &mut world.machine);
    world.check();
    assert_eq!(world.machine.windows[0].len(), 1);
    assert_eq!(regions(&world), 1, "a look through the window changes nothing");
    give(&mut world, release_reason::BALLOON, 41, 1);
    assert_eq!(world.machine.windows[0].len(), 0);
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn guests_read_what_they_wrote_while_pages_grow_and_shrink(
        seed in any::<u64>(),
        steps in prop::collection::vec((0u8..12, 0u16..2, 0u32..1024, 1u64..80), 20..120),
    ) {
        let policy = Policy { secret: seed, ..large() };
        let mut world = World::new(6, 256, policy);
        for vm in 0..2 {
            world.admit(vm, 4, Sharing::Group(0));
        }
        let mut now = 0;
        for (op, vm, index, value) in steps {
            let count = value.min(1024 - u64::from(index));
            let range = GfnRange::new(Gfn(u64::from(index)), count).into_iter();
            match op {
                0..=2 => for at in ALL {
                    world.write(vm, index / 512 * 512 + at, INCOMPRESSIBLE | u64::from(at));
                },
                3 => for at in index..index + count as u32 {
                    world.write(vm, at, value % 4);
                },
                4 => for at in index..index + count as u32 { world.scan(vm, at); },
                5 => { world.server.reclaim_page(VmId(vm), index, &mut world.machine); }
                6 => {
                    let in_flight = |at: &u32| world.server.entry(VmId(vm), *at).unwrap().state()
                        == PageState::InFlight;
                    let kept: Vec<u32> =
                        (index..index + count as u32).filter(in_flight).collect();
                    world.server.release(VmId(vm), value % 2, range, &mut world.machine);
                    let gone = index..index + count as u32;
                    world.oracle.retain(|(owner, at), _| {
                        *owner != vm || !gone.contains(at) || kept.contains(at)
                    });
                }
                7 => { world.server.deflate(VmId(vm), range); }
                8 => { world.server.empty_a_block(None, &mut world.machine); }
                9 if value > 70 => {
                    world.reboot(vm);
                }
                10 => {
                    let gfn = world.gfn(vm, index);
                    world.server.window_fault(VmId(vm), gfn, value % 2 == 0, &mut world.machine);
                }
                _ => {
                    now += value;
                    world.server.tick(Nanos::from_secs(now), &mut world.machine);
                    while let Some((transfer, ok)) = world.machine.disk_step(false) {
                        world.server.swap_done(transfer, ok);
                    }
                }
            }
            prop_assert_eq!(world.server.check(), Ok(()));
            world.machine.check();
        }
        world.read_all();
    }
}
