//! Balloon, paging and hot I/O pages: P4-E1, E2, E3, E12.

use mem_server::page::PageState;
use mem_server::policy::iopage::HotPages;
use mem_server::server::Policy;
use protocol::mem::VmMemory;
use protocol::units::{Pages, VmId};

use crate::experiment::{Figure, Outcome};
use crate::mem::{CacheGuest, MIB, WRITE_BEHIND, World, Zipf};
use crate::plot::{Mark, Plot, Series};
use crate::rng::Rng;

const VM: VmId = VmId(0);
/// Reads of the file before and during the measurement.
const READS: usize = 60_000;
/// The file: 96 MiB.
const FILE: u64 = 96 * MIB;

/// A machine with room for one VM of `mib`, and the VM.
fn single(mib: u64, policy: Policy) -> World<'static> {
    let blocks = (mib / 2 + 8) as u32;
    let mut world = World::new(blocks, policy);
    let admitted = world.admit(VM, VmMemory::new(Pages(mib * MIB)));
    debug_assert!(admitted);
    world
}

/// Reads per second of virtual time, after warming the cache; `each` runs after every read.
fn throughput(
    world: &mut World,
    guest: &mut CacheGuest,
    mut each: impl FnMut(&mut World, &mut CacheGuest, &mut Rng) -> u64,
) -> f64 {
    let zipf = Zipf::new(FILE);
    let mut rng = Rng::new(41);
    let mut chooser = Rng::new(43);
    let mut time = 0;
    for round in 0..2 * READS {
        if round == READS {
            time = 0;
        }
        let file = zipf.next(&mut rng);
        time += guest.access(world, file);
        time += each(world, guest, &mut chooser);
    }
    READS as f64 * 1e9 / time as f64
}

fn native(mib: u64) -> f64 {
    let mut world = single(mib, Policy::default());
    let mut guest = CacheGuest::new(&mut world, VM, mib * MIB);
    throughput(&mut world, &mut guest, |_, _, _| 0)
}

fn ballooned(mib: u64) -> f64 {
    let mut world = single(64, Policy::default());
    let mut guest = CacheGuest::new(&mut world, VM, 64 * MIB);
    guest.inflate_to(&mut world, (64 - mib) * MIB);
    throughput(&mut world, &mut guest, |_, _, _| 0)
}

/// The VM has `mib` of memory and is not asked: the server takes random pages.
fn paged(mib: u64) -> f64 {
    let policy = Policy { swap_slots: 1 << 16, ..Policy::default() };
    let mut world = single(64, policy);
    let mut guest = CacheGuest::new(&mut world, VM, 64 * MIB);
    throughput(&mut world, &mut guest, |world, _, rng| {
        let mut time = 0;
        while world.charged(VM) > mib * MIB {
            let index = rng.below(64 * MIB) as u32;
            let before = world.machine.counters.swap_writes;
            world.server.reclaim_page(VM, index, &mut world.machine);
            world.drain_disk();
            time += (world.machine.counters.swap_writes - before) * WRITE_BEHIND;
        }
        time
    })
}

/// P4-E1: a guest ballooned down from 64 MiB is about as fast as one that was born small.
pub fn balloon_tracking() -> Outcome {
    let sizes = [32u64, 40, 48, 56, 64];
    let native: Vec<f64> = sizes.iter().map(|mib| native(*mib)).collect();
    let small: Vec<f64> = sizes.iter().map(|mib| ballooned(*mib)).collect();
    let losses: Vec<f64> =
        native.iter().zip(&small).map(|(native, small)| (1.0 - small / native) * 100.0).collect();
    let mut figures: Vec<Figure> = sizes
        .iter()
        .zip(&losses)
        .map(|(mib, loss)| {
            Figure::between(format!("loss at {mib} MiB (per cent)"), *loss, -0.5, 5.0)
        })
        .collect();
    let rise = losses.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::MIN, f64::max);
    let rise = Figure::between("largest rise of the loss as the balloon shrinks", rise, -5.0, 0.0);
    figures.push(rise);
    let by_paging = (1.0 - paged(32) / native[0]) * 100.0;
    let points = |values: &[f64]| {
        sizes.iter().zip(values).map(|(mib, value)| (*mib as f64, *value)).collect::<Vec<_>>()
    };
    Outcome {
        id: "P4-E1",
        title: "A ballooned guest tracks a guest of the smaller size (model guest: LRU file cache, Zipf reads)",
        band: "loss of throughput at most 5 % at half the memory, shrinking with the balloon",
        figures,
        control: "the same memory taken by paging random pages instead of by the balloon",
        control_figures: vec![Figure::between("loss at 32 MiB (per cent)", by_paging, -0.5, 5.0)],
        plots: vec![Plot {
            name: "p4-e1-balloon".to_owned(),
            title: "Throughput against memory (P4-E1, after figure 2)".to_owned(),
            x: "memory of the guest (MiB)".to_owned(),
            y: "reads per second".to_owned(),
            series: vec![
                Series::new("born with it", Mark::Line, points(&native)),
                Series::new("ballooned from 64 MiB", Mark::Dashed, points(&small)),
            ],
        }],
    }
}

/// Pages of a popped balloon that do not read zero, accounting errors, frames missing at the end.
fn pop(broken: bool) -> (f64, f64, f64) {
    let mut world = single(16, Policy::default());
    for index in 0..16 * MIB as u32 {
        world.write(VM, index, u64::from(index) + 1);
    }
    let free = world.server.free();
    for index in 0..8 * MIB as u32 {
        world.balloon(VM, index);
    }
    world.machine.broken.zeroing = broken;
    let mut rubbish = 0;
    let mut errors = 0;
    // The guest touches all of it, without its driver having deflated: a reboot, or malice.
    for index in 0..8 * MIB as u32 {
        rubbish += u32::from(world.read(VM, index) != Some(0));
        errors += u32::from(index % 64 == 0 && world.server.check().is_err());
    }
    let missing = free.abs_diff(world.server.free());
    errors += u32::from(world.count(VM, PageState::Ballooned) != 0);
    (f64::from(rubbish), f64::from(errors), missing as f64)
}

/// P4-E2: touching ballooned pages pops the balloon.
pub fn balloon_pop() -> Outcome {
    let figures = |(rubbish, errors, missing): (f64, f64, f64)| {
        vec![
            Figure::between("pages that do not read as zeros", rubbish, 0.0, 0.0),
            Figure::between("accounting errors", errors, 0.0, 0.0),
            Figure::between("frames unaccounted for", missing, 0.0, 0.0),
        ]
    };
    Outcome {
        id: "P4-E2",
        title: "A guest that touches its ballooned pages gets zeros (2,048 pages)",
        band: "every page zero, accounting exact",
        figures: figures(pop(false)),
        control: "frames given out without being zeroed",
        control_figures: figures(pop(true)),
        plots: Vec::new(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victims {
    Oldest,
    Random,
    Balloon,
}

/// Accesses of the guest that pages itself.
const ACCESSES: u32 = 200_000;

/// How often a page is read in from the host's swap only to be written to the guest's own.
fn double_pagings(victims: Victims) -> u64 {
    let policy = Policy { swap_slots: 1 << 16, ..Policy::default() };
    let mut world = single(32, policy);
    let mut guest = CacheGuest::new(&mut world, VM, 32 * MIB);
    let given = 24 * MIB;
    if victims == Victims::Balloon {
        guest.inflate_to(&mut world, 32 * MIB - given);
    }
    // Anonymous memory: 40 MiB in a guest of 32, so that the guest itself pages.
    let zipf = Zipf::new(40 * MIB);
    let mut rng = Rng::new(5);
    let mut double = 0;
    for _ in 0..ACCESSES {
        let file = zipf.next(&mut rng);
        if let Some(page) = guest.would_evict(file) {
            // The guest writes the page to its own swap, so it must be read first.
            let state = world.server.entry(VM, page).map(|entry| entry.state());
            double += u64::from(state == Some(PageState::Swapped));
            world.touch(VM, page, false);
        }
        guest.access(&mut world, file);
        while world.charged(VM) > given {
            let resident = |world: &World, page: u32| {
                world.server.entry(VM, page).is_some_and(|e| e.state() == PageState::Private)
            };
            let victim = match victims {
                Victims::Oldest => guest.coldest().find(|page| resident(&world, *page)),
                _ => (0..10_000)
                    .map(|_| rng.below(32 * MIB) as u32)
                    .find(|page| resident(&world, *page)),
            };
            let Some(victim) = victim else { break };
            world.server.reclaim_page(VM, victim, &mut world.machine);
            world.drain_disk();
        }
    }
    double
}

/// P4-E3: paging by the host runs into the guest's own; a balloon does not, and random victims do less.
pub fn double_paging() -> Outcome {
    let oldest = double_pagings(Victims::Oldest) as f64;
    let random = double_pagings(Victims::Random) as f64;
    let balloon = double_pagings(Victims::Balloon) as f64;
    Outcome {
        id: "P4-E3",
        title: "Double paging: host LRU, host random (ours), balloon (model guest with its own swap)",
        band: "balloon 0; random below LRU",
        figures: vec![
            Figure::between("double pagings with a balloon", balloon, 0.0, 0.0),
            Figure::between("random victims against oldest victims", random / oldest, 0.0, 0.9),
        ],
        control: "the host chooses the oldest page, as the guest does",
        control_figures: vec![Figure::between("double pagings", oldest, 0.0, 0.0)],
        plots: vec![Plot {
            name: "p4-e3-double-paging".to_owned(),
            title: "Pages read from the host's swap to be written to the guest's (P4-E3)"
                .to_owned(),
            x: "1 balloon, 2 random, 3 oldest".to_owned(),
            y: "double pagings in 200,000 accesses".to_owned(),
            series: vec![Series::new(
                "double pagings",
                Mark::Bar,
                vec![(1.0, balloon), (2.0, random), (3.0, oldest)],
            )],
        }],
    }
}

/// First block the device does not reach: a window of 16 MiB.
const WINDOW_BLOCKS: u32 = 8;
const SENDS: u32 = 100_000;
const HOT: u32 = 64;

/// Copies needed for all packets, and pages whose contents are not what was written.
fn copies(threshold: u32) -> (f64, f64) {
    let mut world = World::new(24, Policy::default());
    let filler = VmId(1);
    let admitted = world.admit(filler, VmMemory::new(Pages(16 * MIB)));
    debug_assert!(admitted);
    for index in 0..16 * MIB as u32 {
        world.write(filler, index, 7);
    }
    let admitted = world.admit(VM, VmMemory::new(Pages(8 * MIB)));
    debug_assert!(admitted);
    for index in 0..HOT {
        world.write(VM, index, 100 + u64::from(index));
    }
    // Some low memory is free again, as it is after a while.
    for index in 0..2 * HOT {
        world.balloon(filler, index * 16);
    }
    let mut hot = HotPages::new(threshold);
    let mut copies = 0u32;
    for send in 0..SENDS {
        let index = send % HOT;
        let high = world
            .server
            .resident_frame(VM, index)
            .is_none_or(|frame| frame.block() >= WINDOW_BLOCKS);
        if high {
            copies += 1;
            if hot.copied(VM.0 as u8, index) {
                world.server.move_below(VM, index, WINDOW_BLOCKS, &mut world.machine);
            }
        }
    }
    let wrong = (0..HOT).filter(|at| world.read(VM, *at) != Some(100 + u64::from(*at))).count();
    let errors = usize::from(world.server.check().is_err());
    (f64::from(copies), (wrong + errors) as f64)
}

/// P4-E12: pages a device with a 16 MiB window keeps copying move into the window.
pub fn hot_pages() -> Outcome {
    let without = f64::from(SENDS);
    let figures = |(copies, wrong): (f64, f64)| {
        vec![
            Figure::between("copies saved, as a factor", without / copies, 100.0, 1e6),
            Figure::between("pages with wrong contents", wrong, 0.0, 0.0),
        ]
    };
    Outcome {
        id: "P4-E12",
        title: "Hot I/O pages are remapped below a device's address limit (64 pages, 100,000 packets)",
        band: "at least 100 times fewer copies after the threshold of 8",
        figures: figures(copies(8)),
        control: "no remapping",
        control_figures: figures(copies(u32::MAX)),
        plots: Vec::new(),
    }
}
