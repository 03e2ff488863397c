//! Estimating, dividing and admitting: P4-E7, E8, E9, E11.

use mem_server::admission::{Claim, Supply, admit};
use mem_server::policy::estimator::ONE;
use mem_server::policy::pressure::{Pressure, Thresholds};
use mem_server::server::{FaultKind, Policy};
use protocol::mem::{MemRequest, PressureState, Sharing, VmMemory};
use protocol::units::{Nanos, Pages, VmId};

use crate::experiment::{Figure, Outcome};
use crate::mem::{CacheGuest, MIB, World};
use crate::plot::{Mark, Plot, Series};
use crate::rng::Rng;

/// Sampling period: the paper's 30 s scaled to 0.5 s.
const PERIOD: Nanos = Nanos::from_millis(500);
const SIZE: u64 = 64;
/// Periods per step of the staircase.
const STEP_PERIODS: usize = 10;

/// Per period: truth, estimate and slow average in MiB, faults caused.
fn staircase() -> Vec<(f64, f64, f64, f64)> {
    let policy = Policy { sample_period: PERIOD, secret: 2, ..Policy::default() };
    let mut world = World::new(40, policy);
    let vm = VmId(0);
    let admitted = world.admit(vm, VmMemory::new(Pages(SIZE * MIB)));
    debug_assert!(admitted);
    for index in 0..SIZE * MIB {
        world.write(vm, index as u32, index + 1);
    }
    let mut trace = Vec::new();
    let up = [8u64, 24, 40, 56];
    let steps = [8, 8, 8, 8].into_iter().chain(up).chain([40, 24, 8, 8]);
    for active in steps {
        for _ in 0..STEP_PERIODS {
            let remaps = |world: &World| {
                world.server.vm(vm).map_or(0, |record| record.faults[FaultKind::Remap as usize])
            };
            let before = remaps(&world);
            // A period begins with a tick, then the toucher runs through its memory.
            world.tick(PERIOD.0);
            for index in 0..active * MIB {
                world.touch(vm, index as u32, index % 2 == 0);
            }
            let faults = remaps(&world) - before;
            let averages = world.server.vm(vm).map_or([0; 3], |record| record.averages.all());
            let mib = |average: u32| f64::from(average) * SIZE as f64 / f64::from(ONE);
            let estimate = averages.into_iter().fold(0, u32::max);
            trace.push((active as f64, mib(estimate), mib(averages[0]), faults as f64));
        }
    }
    trace
}

/// Largest error on the way up, two periods after each step, in points of the VM's memory.
fn error_up(trace: &[(f64, f64, f64, f64)], estimate: fn(&(f64, f64, f64, f64)) -> f64) -> f64 {
    // Steps 4 to 7 are the way up; the second period after a step is the one at offset 1.
    (5..8)
        .map(|step| &trace[step * STEP_PERIODS + 1])
        .map(|point| (estimate(point) - point.0).abs() * 100.0 / SIZE as f64)
        .fold(0.0, f64::max)
}

/// P4-E7: the estimate follows the guest up within two periods and down slowly.
pub fn sampling() -> Outcome {
    let trace = staircase();
    let most_faults = trace.iter().map(|point| point.3).fold(0.0, f64::max);
    let fall = trace[8 * STEP_PERIODS].1 - trace[8 * STEP_PERIODS].0;
    let settled = (trace[trace.len() - 1].1 - 8.0).abs() * 100.0 / SIZE as f64;
    let points = |value: fn(&(f64, f64, f64, f64)) -> f64| {
        trace.iter().enumerate().map(|(at, point)| (at as f64, value(point))).collect::<Vec<_>>()
    };
    Outcome {
        id: "P4-E7",
        title: "Working set estimate by sampling 100 pages per period (model guest: toucher, 8 to 56 MiB)",
        band: "error at most 10 points within 2 periods going up, slow decay going down, at most 100 faults per period",
        figures: vec![
            Figure::between(
                "largest error going up (points)",
                error_up(&trace, |p| p.1),
                0.0,
                10.0,
            ),
            Figure::between("estimate above truth just after a fall (MiB)", fall, 8.0, 24.0),
            Figure::between("error 20 periods after the last fall (points)", settled, 0.0, 15.0),
            Figure::between("most faults in a period", most_faults, 1.0, 100.0),
        ],
        control: "the slow average alone",
        control_figures: vec![Figure::between(
            "largest error going up (points)",
            error_up(&trace, |p| p.2),
            0.0,
            10.0,
        )],
        plots: vec![Plot {
            name: "p4-e7-sampling".to_owned(),
            title: "Memory touched and estimate (P4-E7, after figure 6)".to_owned(),
            x: "period".to_owned(),
            y: "MiB".to_owned(),
            series: vec![
                Series::new("touched", Mark::Dashed, points(|point| point.0)),
                Series::new("estimate", Mark::Line, points(|point| point.1)),
                Series::new("slow average", Mark::Line, points(|point| point.2)),
            ],
        }],
    }
}

/// Two VMs of 64 MiB on 90 MiB: what each holds in the end (MiB), and the busy one's operations per second.
struct Taxed {
    idle: f64,
    busy: f64,
    rate: f64,
}

const RESERVED: u64 = 8;

fn taxed(tax: u16) -> Taxed {
    let policy = Policy {
        tax,
        sample_period: PERIOD,
        rebalance_period: Nanos::from_secs(1),
        balloon_period: Nanos::from_millis(20),
        swap_slots: 1 << 16,
        secret: 4,
        ..Policy::default()
    };
    // 96 MiB, of which 6 % are to stay free: 90 to divide.
    let mut world = World::new(48, policy);
    let vms = [VmId(0), VmId(1)];
    for vm in vms {
        let mut memory = VmMemory::new(Pages(SIZE * MIB));
        memory.controls.reservation = Pages(RESERVED * MIB);
        memory.controls.sharing = Sharing::None;
        let admitted = world.admit(vm, memory);
        debug_assert!(admitted);
    }
    let mut guests = vms.map(|vm| CacheGuest::new(&mut world, vm, SIZE * MIB));
    // Both fill their caches once; then one uses 2.3 MiB and the other 54.
    let active = [23 * MIB / 10, 54 * MIB];
    for file in 0..SIZE * MIB {
        for guest in &mut guests {
            guest.access(&mut world, file);
        }
        if file % 64 == 0 {
            for guest in &mut guests {
                guest.run_driver(&mut world, 512);
            }
            world.drain_disk();
            world.tick(20_000_000);
        }
    }
    let mut rng = Rng::new(6);
    let (mut time, mut operations) = (0, 0u64);
    for slice in 0..700 {
        for (guest, active) in guests.iter_mut().zip(active) {
            let count = if guest.vm == vms[0] { 200 } else { 1500 };
            for _ in 0..count {
                // One read in a hundred goes anywhere in a large file, which is what fills a cache.
                let anywhere = guest.vm == vms[1] && rng.below(100) == 0;
                let file = rng.below(if anywhere { 128 * MIB } else { active });
                let cost = guest.access(&mut world, file);
                if guest.vm == vms[1] && slice >= 500 {
                    time += cost;
                    operations += 1;
                }
            }
            guest.run_driver(&mut world, 512);
        }
        world.drain_disk();
        world.tick(20_000_000);
    }
    let mib = |vm| world.charged(vm) as f64 / MIB as f64;
    Taxed { idle: mib(vms[0]), busy: mib(vms[1]), rate: operations as f64 * 1e9 / time as f64 }
}

/// P4-E8: the idle memory tax moves memory from the idle to the busy VM.
pub fn idle_tax() -> Outcome {
    let taxes = [0u16, 250, 500, 750, 900];
    let runs: Vec<Taxed> = taxes.iter().map(|tax| taxed(*tax)).collect();
    let rise = runs.windows(2).map(|pair| pair[1].idle - pair[0].idle).fold(f64::MIN, f64::max);
    let least = runs.iter().map(|run| run.idle).fold(f64::MAX, f64::min);
    let gain = (runs[3].rate / runs[0].rate - 1.0) * 100.0;
    let (none, most) = (&runs[0], &runs[3]);
    let points = |value: fn(&Taxed) -> f64| {
        let each = taxes.iter().zip(&runs);
        each.map(|(tax, run)| (f64::from(*tax) / 10.0, value(run))).collect::<Vec<_>>()
    };
    Outcome {
        id: "P4-E8",
        title: "Idle memory tax: two guests of 64 MiB on 90 MiB, 2.3 and 54 MiB in use (model guests, balloon)",
        band: "45/45 without tax, about 26/64 at 75 %, idle VM falls with the tax and keeps its reservation, busy VM at least 30 % faster",
        figures: vec![
            Figure::between("idle VM without tax (MiB)", none.idle, 44.0, 46.0),
            Figure::between("busy VM without tax (MiB)", none.busy, 44.0, 46.0),
            Figure::between("idle VM at 75 % (MiB)", most.idle, 24.0, 28.0),
            Figure::between("busy VM at 75 % (MiB)", most.busy, 62.0, 64.0),
            Figure::between("largest rise of the idle VM as the tax grows", rise, -64.0, 0.0),
            Figure::between("least the idle VM ever holds (MiB)", least, RESERVED as f64, 64.0),
            Figure::between("busy VM's gain at 75 % (per cent)", gain, 30.0, 1e4),
        ],
        control: "no tax",
        control_figures: vec![
            Figure::between("idle VM (MiB)", none.idle, 24.0, 28.0),
            Figure::between("busy VM (MiB)", none.busy, 62.0, 64.0),
        ],
        plots: vec![Plot {
            name: "p4-e8-tax".to_owned(),
            title: "Memory held against idle memory tax (P4-E8, after figure 7)".to_owned(),
            x: "tax (per cent)".to_owned(),
            y: "MiB".to_owned(),
            series: vec![
                Series::new("idle VM", Mark::Line, points(|run| run.idle)),
                Series::new("busy VM", Mark::Line, points(|run| run.busy)),
            ],
        }],
    }
}

/// Free memory in per mille of the machine: a fall to the bottom and back, trembling at each threshold on the way.
fn script() -> Vec<u64> {
    let mut trace = Vec::new();
    let mut wobble = |around: u64| {
        for step in 0..40 {
            trace.push(around + step % 3 - 1);
        }
    };
    for around in [120, 80, 60, 40, 30, 20, 15, 10, 5] {
        wobble(around);
    }
    for around in [10, 15, 20, 25, 30, 40, 45, 50, 60, 65, 70, 100] {
        wobble(around);
    }
    trace
}

/// The state that free memory alone would give, whatever it was before.
const fn memoryless(t: &Thresholds, free: u64) -> PressureState {
    if free < t.low {
        PressureState::Low
    } else if free < t.hard {
        PressureState::Hard
    } else if free < t.soft {
        PressureState::Soft
    } else {
        PressureState::High
    }
}

/// Transitions over the script, and whether they come in the right order.
fn transitions(hysteresis: bool) -> (f64, f64) {
    use PressureState::{Hard, High, Low, Soft};
    let mut pressure = Pressure::new(Thresholds::of(100_000));
    let mut states = vec![High];
    for permille in script() {
        let state = if hysteresis {
            pressure.update(permille * 100);
            pressure.state()
        } else {
            memoryless(pressure.thresholds(), permille * 100)
        };
        if states.last() != Some(&state) {
            states.push(state);
        }
    }
    let in_order = states == [High, Soft, Hard, Low, Hard, Soft, High];
    ((states.len() - 1) as f64, f64::from(u8::from(in_order)))
}

/// Walks a whole server into `low`: wrong actions seen (paging in high, paging of a VM with a balloon in soft, a VM waiting
/// outside low or within its target), and whether low was reached.
fn actions() -> (f64, f64) {
    let policy = Policy { secret: 8, swap_slots: 1 << 16, ..Policy::default() };
    let mut world = World::new(32, policy);
    // A disk that takes nothing and pages that do not compress: the fall cannot be stopped.
    world.machine.queue_depth = 0;
    let (small, large) = (VmId(0), VmId(1));
    for (vm, mib) in [(small, 8), (large, 64)] {
        let mut memory = VmMemory::new(Pages(mib * MIB));
        memory.controls.sharing = Sharing::None;
        memory.controls.reservation = Pages(8 * MIB);
        let admitted = world.admit(vm, memory);
        debug_assert!(admitted);
        let ready = MemRequest::BalloonReady { ready: true };
        if vm == large {
            world.server.control(vm, ready);
        }
    }
    let mut wrong = 0;
    let mut low = 0;
    for index in 0..8 * MIB {
        world.write(small, index as u32, 1 << 63 | index);
    }
    let mut refused = 0;
    for index in 0..64 * MIB {
        // It waits for good at the end: nothing more can happen.
        if refused == 4 {
            break;
        }
        let content = 1 << 63 | 1 << 40 | index;
        let waits = world.server.pressure_state() == PressureState::Low
            && world.server.vm_stats(large).is_some_and(|stats| stats.consumed > stats.target);
        let is_refused = world.write(large, index as u32, content).is_none();
        wrong += u32::from(waits && !is_refused);
        refused += u32::from(is_refused);
        if index % 32 == 0 {
            world.tick(1_000_000);
            let state = world.server.pressure_state();
            for vm in [small, large] {
                let Some(stats) = world.server.vm_stats(vm) else { continue };
                let above = stats.consumed > stats.target;
                let paged = stats.swap_target > stats.states.swapped;
                wrong += u32::from(state == PressureState::High && paged);
                let has_balloon = vm == large;
                wrong += u32::from(state == PressureState::Soft && has_balloon && paged);
                wrong += u32::from(state >= PressureState::Hard && above && !paged);
                wrong += u32::from(stats.blocked && (state != PressureState::Low || !above));
                wrong += u32::from(state == PressureState::Low && above && !stats.blocked);
            }
            low += u32::from(state == PressureState::Low);
        }
    }
    (f64::from(wrong), f64::from(low))
}

/// P4-E9: the four states in order, with hysteresis, each with its actions.
pub fn states() -> Outcome {
    let figures = |(transitions, in_order): (f64, f64)| {
        vec![
            Figure::between("transitions over fall and rise", transitions, 6.0, 6.0),
            Figure::between("high soft hard low hard soft high", in_order, 1.0, 1.0),
        ]
    };
    let (wrong, low) = actions();
    let mut with = figures(transitions(true));
    with.push(Figure::between("wrong actions of a whole server", wrong, 0.0, 0.0));
    with.push(Figure::between("looks in which it was low", low, 1.0, 1e6));
    Outcome {
        id: "P4-E9",
        title: "State machine of free memory: scripted trace that trembles at each threshold",
        band: "one transition per band crossing; paging and waiting only where they belong",
        figures: with,
        control: "the state follows free memory without hysteresis",
        control_figures: figures(transitions(false)),
        plots: vec![Plot {
            name: "p4-e9-states".to_owned(),
            title: "States over the scripted trace (P4-E9)".to_owned(),
            x: "step".to_owned(),
            y: "free (per mille) and state x 20".to_owned(),
            series: {
                let mut pressure = Pressure::new(Thresholds::of(100_000));
                let trace = script();
                let states = trace.iter().map(|permille| {
                    pressure.update(permille * 100);
                    pressure.state() as u8
                });
                let states: Vec<(f64, f64)> =
                    states.enumerate().map(|(at, s)| (at as f64, f64::from(s) * 20.0)).collect();
                let free: Vec<(f64, f64)> =
                    trace.iter().enumerate().map(|(at, f)| (at as f64, *f as f64)).collect();
                vec![
                    Series::new("free", Mark::Dashed, free),
                    Series::new("state", Mark::Line, states),
                ]
            },
        }],
    }
}

/// Decisions that differ from giving the pages out one by one, over random sequences of VMs.
fn wrong_admissions(forget_overhead: bool) -> (f64, f64) {
    let mut rng = Rng::new(12);
    let (mut wrong, mut refused) = (0, 0);
    for _ in 0..2000 {
        let supply = Supply { memory: rng.below(200), swap: rng.below(200) };
        let mut admitted: Vec<Claim> = Vec::new();
        for _ in 0..8 {
            let (a, b) = (rng.below(60), rng.below(60));
            let claim = Claim { reservation: a.min(b), limit: a.max(b), overhead: rng.below(8) };
            let seen = |claim: Claim| {
                if forget_overhead { Claim { overhead: 0, ..claim } } else { claim }
            };
            let verdict = admit(supply, admitted.iter().copied().map(seen), seen(claim)).is_ok();
            let mut with = admitted.clone();
            with.push(claim);
            // By hand: every guaranteed page from memory; and if not all limits fit, the rest from swap.
            let memory: u64 = with.iter().map(|c| c.reservation + c.overhead).sum();
            let everything: u64 = with.iter().map(|c| c.limit + c.overhead).sum();
            let swap: u64 = with.iter().map(|c| c.limit - c.reservation).sum();
            let fits =
                memory <= supply.memory && (everything <= supply.memory || swap <= supply.swap);
            wrong += u32::from(fits != verdict);
            refused += u32::from(!verdict);
            if fits && verdict {
                admitted = with;
            }
        }
    }
    (f64::from(wrong), f64::from(refused))
}

/// P4-E11: a VM starts exactly if its guarantees can be kept.
pub fn admission() -> Outcome {
    let figures = |(wrong, refused): (f64, f64)| {
        vec![
            Figure::between("decisions unlike the reference", wrong, 0.0, 0.0),
            Figure::between("VMs refused, of 16,000", refused, 1000.0, 15_000.0),
        ]
    };
    Outcome {
        id: "P4-E11",
        title: "Admission control against a reference, 2,000 machines with up to 8 VMs",
        band: "refused exactly if reservation + overhead or limit - reservation cannot be kept",
        figures: figures(wrong_admissions(false)),
        control: "overhead forgotten",
        control_figures: figures(wrong_admissions(true)),
        plots: Vec::new(),
    }
}
