//! Content sharing: P4-E4, E6, E10.

use mem_server::model::INCOMPRESSIBLE;
use mem_server::page::PageState;
use mem_server::server::Policy;
use protocol::mem::{Sharing, VmMemory};
use protocol::units::{Pages, VmId};

use crate::experiment::{Figure, Outcome};
use crate::mem::{MIB, World};
use crate::plot::{Mark, Plot, Series};
use crate::rng::Rng;

fn memory(mib: u64, sharing: Sharing) -> VmMemory {
    let mut memory = VmMemory::new(Pages(mib * MIB));
    memory.controls.sharing = sharing;
    memory
}

/// Memory of one guest of the sharing curve.
const GUEST_MIB: u64 = 16;

/// What page `index` of guest `vm` holds: 5 % zeros, 60 % the common image (kernel, programs, page cache; 3 % of it copies
/// within the image), 35 % its own.
fn image(vm: u16, index: u64) -> u64 {
    match index % 100 {
        0..5 => 0,
        5..8 => 1 + index % 61,
        8..65 => 1000 + index,
        _ => u64::from(vm + 1) << 32 | index,
    }
}

/// Pages in all, shared and saved of `n` guests; pages wrong after copy-on-write breaks.
struct Shared {
    total: f64,
    shared: f64,
    saved: f64,
    wrong: f64,
    overhead: f64,
}

fn share(n: u16, sharing: Sharing, frames_per_record: u64) -> Shared {
    let pages = GUEST_MIB * MIB;
    let blocks = (u64::from(n) * GUEST_MIB / 2 + 8) as u32;
    let policy = Policy { scan_rate: 100_000, secret: 9, ..Policy::default() };
    let frames = u64::from(blocks) * 512;
    let mut world = World::with_tables(blocks, frames / frames_per_record, frames / 4, policy);
    for vm in 0..n {
        let admitted = world.admit(VmId(vm), memory(GUEST_MIB, sharing));
        debug_assert!(admitted);
        for index in 0..pages {
            world.write(VmId(vm), index as u32, image(vm, index));
        }
    }
    // Until a pass over everything brings nothing more.
    let mut merged = u64::MAX;
    while world.server.counters.merged + world.server.counters.merged_zero != merged {
        merged = world.server.counters.merged + world.server.counters.merged_zero;
        for _ in 0..u64::from(n) * pages * 4 / 10_000 + 1 {
            world.tick(100_000_000);
        }
    }
    let stats = world.server.machine_stats();
    let (shared, saved) = (stats.shared as f64, stats.saved as f64);
    // Each guest overwrites a part of everything; nobody else may see it.
    let mut rng = Rng::new(17);
    let mut wrong = 0;
    let mut written = std::collections::HashMap::new();
    for vm in 0..n {
        for _ in 0..400 {
            let index = rng.below(pages) as u32;
            world.write(VmId(vm), index, 5 << 40 | u64::from(vm));
            written.insert((vm, index), 5 << 40 | u64::from(vm));
        }
    }
    for vm in 0..n {
        for index in 0..pages {
            let expected = written.get(&(vm, index as u32)).copied().unwrap_or(image(vm, index));
            wrong += u32::from(world.read(VmId(vm), index as u32) != Some(expected));
        }
    }
    wrong += u32::from(world.server.check().is_err());
    Shared {
        total: f64::from(n) * pages as f64,
        shared,
        saved,
        wrong: f64::from(wrong),
        overhead: world.server.sharing_bytes() as f64 * 100.0
            / (world.server.total() * 4096) as f64,
    }
}

fn curve_figures(runs: &[Shared]) -> Vec<Figure> {
    let per_cent = |pages: f64, run: &Shared| pages * 100.0 / run.total;
    let shared: Vec<f64> = runs.iter().map(|run| per_cent(run.shared, run)).collect();
    let saved: Vec<f64> = runs.iter().map(|run| per_cent(run.saved, run)).collect();
    let last = runs.len() - 1;
    let common: Vec<f64> = runs.iter().map(|run| run.shared - run.saved).collect();
    let most = common[1..].iter().fold(0.0, |a: f64, b| a.max(*b));
    let least = common[1..].iter().fold(f64::MAX, |a: f64, b| a.min(*b));
    let fall = saved.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::MAX, f64::min);
    vec![
        Figure::between("shared with 8 guests (per cent of memory)", shared[last], 55.0, 100.0),
        Figure::between("reclaimed with 8 guests (per cent)", saved[last], 45.0, 100.0),
        Figure::between("least growth of reclaimed from n to n + 1", fall, 0.0, 100.0),
        Figure::between("jump of shared from 1 to 2 guests", shared[1] - shared[0], 20.0, 100.0),
        Figure::between("spread of shared - reclaimed, n >= 2", most / least.max(1.0), 1.0, 1.2),
        Figure::between(
            "pages with wrong contents after breaks",
            runs.iter().map(|run| run.wrong).sum(),
            0.0,
            0.0,
        ),
        Figure::between("sharing table (per cent of memory)", runs[last].overhead, 0.0, 0.5),
    ]
}

/// P4-E4: the more equal guests, the larger the part of their memory that is shared.
pub fn curve() -> Outcome {
    let runs: Vec<Shared> = (1..=8).map(|n| share(n, Sharing::Group(0), 1)).collect();
    let controls: Vec<Shared> = (1..=8).map(|n| share(n, Sharing::None, 1)).collect();
    // What the server ships with: hints for a seventh of memory, so that all metadata stays below 1 %.
    let small = share(8, Sharing::Group(0), 7);
    let mut figures = curve_figures(&runs);
    let part = small.shared * 100.0 / small.total;
    figures.push(Figure::between(
        "shared with 8 guests, table of 0.1 % of memory",
        part,
        55.0,
        100.0,
    ));
    let line = |value: fn(&Shared) -> f64| {
        let points = runs.iter().enumerate();
        points.map(|(at, run)| (at as f64 + 1.0, value(run) / MIB as f64)).collect::<Vec<_>>()
    };
    Outcome {
        id: "P4-E4",
        title: "Sharing curve of 1 to 8 equal guests (model guests: 5 % zeros, 60 % common, 35 % own)",
        band: "at least 55 % shared at 8, jump at 2, shared - reclaimed constant within 20 %, table below 0.5 %",
        figures,
        control: "sharing = \"none\"",
        control_figures: curve_figures(&controls),
        plots: vec![Plot {
            name: "p4-e4-sharing".to_owned(),
            title: "Page sharing against number of equal guests (P4-E4, after figure 4)".to_owned(),
            x: "guests".to_owned(),
            y: "MiB".to_owned(),
            series: vec![
                Series::new("guest memory", Mark::Dashed, line(|run| run.total)),
                Series::new("shared", Mark::Line, line(|run| run.shared)),
                Series::new("reclaimed", Mark::Line, line(|run| run.saved)),
            ],
        }],
    }
}

/// Pages with wrong contents, false matches and pages merged, with a hash of 8 bits.
fn collide(broken: bool) -> (f64, f64, f64) {
    let policy = Policy { secret: 3, ..Policy::default() };
    let mut world = World::new(12, policy);
    world.machine.frames.hash_bits = 8;
    world.machine.broken.comparing = broken;
    let admitted = world.admit(VmId(0), memory(16, Sharing::Vm));
    debug_assert!(admitted);
    let content = |index: u32| 1 + u64::from(index % 2048);
    for index in 0..4096 {
        world.write(VmId(0), index, content(index));
    }
    for _ in 0..2 {
        for index in 0..4096 {
            world.server.scan_page(VmId(0), index, &mut world.machine);
        }
    }
    let merged = world.count(VmId(0), PageState::Shared);
    let wrong = (0..4096).filter(|at| world.read(VmId(0), *at) != Some(content(*at))).count();
    (wrong as f64, world.server.counters.false_matches as f64, merged as f64)
}

/// P4-E6: hashes that collide merge nothing that differs.
pub fn collisions() -> Outcome {
    let figures = |(wrong, false_matches, merged): (f64, f64, f64)| {
        vec![
            Figure::between("pages with wrong contents", wrong, 0.0, 0.0),
            Figure::between("false matches, each made ineligible", false_matches, 1.0, 4096.0),
            Figure::between("pages merged all the same", merged, 2.0, 4096.0),
        ]
    };
    Outcome {
        id: "P4-E6",
        title: "Colliding hashes: 4,096 pages, 2,048 contents, a hash of 8 bits",
        band: "no wrong merge; false matches become ineligible",
        figures: figures(collide(false)),
        control: "pages with equal hashes are merged without comparing",
        control_figures: figures(collide(true)),
        plots: Vec::new(),
    }
}

/// Memory of the boot storm: 5 VMs of 32 MiB on 100 MiB.
const STORM_MIB: u64 = 32;
const STORM_VMS: u16 = 5;
const STORM_BLOCKS: u32 = 50;

/// What a boot storm did.
struct Storm {
    /// Part of the reclaimed pages that sharing brought, in per cent.
    shared: f64,
    /// Peak of swap in per cent of the overcommitment.
    peak: f64,
    /// Pages that read other than they were last written.
    wrong: u32,
    /// Writes and reads for which there was no memory.
    refused: u32,
    timeline: Vec<(f64, f64, f64)>,
}

fn storm(sharing: Sharing) -> Storm {
    let pages = STORM_MIB * MIB;
    let policy = Policy {
        swap_slots: (u64::from(STORM_VMS) * pages) as u32,
        secret: 11,
        ..Policy::default()
    };
    let mut world = World::new(STORM_BLOCKS, policy);
    for vm in 0..STORM_VMS {
        let admitted = world.admit(VmId(vm), memory(STORM_MIB, sharing));
        debug_assert!(admitted);
    }
    let mut timeline = Vec::new();
    let mut peak = 0;
    let mut refused = 0;
    let mut step = 0u64;
    // What each page of each guest was last written: a write that is refused changes nothing.
    let mut written = vec![vec![0; pages as usize]; usize::from(STORM_VMS)];
    let mut work = |world: &mut World, vm: u16, index: u64, tag: u64| {
        match world.write(VmId(vm), index as u32, tag) {
            Some(_) => written[usize::from(vm)][index as usize] = tag,
            None => refused += 1,
        }
        step += 1;
        if step.is_multiple_of(512) {
            world.drain_disk();
            world.tick(10_000_000);
        }
        if step.is_multiple_of(2048) {
            let stats = world.server.machine_stats();
            timeline.push((
                step as f64 / 1000.0,
                stats.zero_saved as f64 / MIB as f64,
                stats.swap_used as f64 / MIB as f64,
            ));
        }
        if step.is_multiple_of(32) {
            peak = peak.max(world.server.machine_stats().swap_used);
        }
    };
    // Every guest zeroes all of its memory, in turns; then it fills a third with what it runs.
    for chunk in 0..pages / 64 {
        for vm in 0..STORM_VMS {
            for index in chunk * 64..(chunk + 1) * 64 {
                work(&mut world, vm, index, 0);
            }
        }
    }
    for index in (0..pages).filter(|index| index % 3 == 0) {
        for vm in 0..STORM_VMS {
            let own = u64::from(vm + 1) << 40 | index;
            work(&mut world, vm, index, if index % 2 == 0 { INCOMPRESSIBLE | own } else { own });
        }
    }
    let mut wrong = 0;
    for (vm, pages) in (0..).zip(&written) {
        for (index, expected) in (0..).zip(pages) {
            match world.read(VmId(vm), index) {
                Some(found) => wrong += u32::from(found != *expected),
                None => refused += 1,
            }
        }
    }
    let counters = world.server.counters;
    let shared = counters.merged_for_room as f64;
    let all = shared + counters.compressed as f64 + counters.swapped_out as f64;
    let configured = u64::from(STORM_VMS) * pages;
    let overcommitted = (configured - u64::from(STORM_BLOCKS) * 512) as f64;
    Storm {
        shared: shared * 100.0 / all.max(1.0),
        peak: peak as f64 * 100.0 / overcommitted,
        wrong,
        refused,
        timeline,
    }
}

/// P4-E10: five guests zero all their memory at boot, on 60 % less memory than that, before any balloon works.
pub fn boot_storm() -> Outcome {
    let figures = |storm: &Storm| {
        vec![
            Figure::between("reclaimed by sharing (per cent)", storm.shared, 85.0, 100.0),
            Figure::between("peak of swap (per cent of overcommitment)", storm.peak, 0.0, 15.0),
            Figure::between("pages lost or wrong", f64::from(storm.wrong), 0.0, 0.0),
            Figure::between("writes and reads refused", f64::from(storm.refused), 0.0, 0.0),
        ]
    };
    let run = storm(Sharing::Group(0));
    let line = |value: fn(&(f64, f64, f64)) -> f64| {
        run.timeline.iter().map(|point| (point.0, value(point))).collect::<Vec<_>>()
    };
    Outcome {
        id: "P4-E10",
        title: "Boot storm: 5 guests of 32 MiB zero their memory on 100 MiB (model guests, no balloon)",
        band: "at least 85 % of reclaimed pages by share-before-swap, swap at most 15 % of the overcommitment",
        figures: figures(&run),
        control: "sharing = \"none\"",
        control_figures: figures(&storm(Sharing::None)),
        plots: vec![Plot {
            name: "p4-e10-boot".to_owned(),
            title: "Zero pages shared and pages swapped while booting (P4-E10, after figure 8)"
                .to_owned(),
            x: "thousands of pages written".to_owned(),
            y: "MiB".to_owned(),
            series: vec![
                Series::new("zero pages shared", Mark::Line, line(|point| point.1)),
                Series::new("swapped", Mark::Line, line(|point| point.2)),
            ],
        }],
    }
}
