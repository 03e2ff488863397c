//! E6 and E8 to E10: bursts, lateness, request sizes, fluctuation.

use io_sched_server::{
    cost::CostRule,
    model::{Fifo, Positioning},
    server::Config,
};
use protocol::{
    io::{Controls, Policy},
    units::Nanos,
};

use super::{BAND, array, closed, config, controls, seconds};
use crate::{
    experiment::{Figure, Outcome},
    io::{Client, Load, Node, Pattern, World},
    plot::{Mark, Plot, Series},
    rng::Rng,
};

fn run_bursts(burst: u16, policy: Policy) -> World {
    let bursty = Load::Bursts { count: 128, period: Nanos::from_millis(400) };
    let pattern = Pattern { bytes: 4096, reads: 100, random: 80, flushes: 0 };
    let steady = Pattern { bytes: 16 << 10, reads: 100, random: 20, flushes: 0 };
    let clients = vec![
        Client::new(0, Controls { burst, ..controls(0, 0, 1) }, bursty, pattern, &[0]),
        Client::new(1, controls(0, 0, 1), Load::Closed(32), steady, &[0]),
    ];
    // Both patterns run on; batches of near requests are another experiment.
    let config = Config { batch: 1, ..config(policy) };
    let device = Fifo::new(io_sched_server::model::Array::new(
        io_sched_server::model::Curve::constant(2750),
    ));
    let mut world = World::new(vec![Node::new(config, Box::new(device))], clients);
    world.run_until(seconds(42));
    world
}

/// E6: table 5, idle credit shortens bursts at nobody's cost.
pub fn bursts() -> Outcome {
    let (from, to) = (seconds(2), seconds(42));
    let run = |burst| (burst, run_bursts(burst, Policy::MClock));
    let worlds: Vec<(u16, World)> = [1, 64, 128, 256].into_iter().map(run).collect();
    // The same shares under a policy that knows no credit: the burst waits as it does with none.
    let without = run_bursts(64, Policy::Sfq);
    let latency = |index: usize| worlds[index].1.clients[0].latency_ms(from, to);
    let mut figures = Vec::new();
    for ((burst, world), millis) in worlds.iter().zip([57.0, 40.0, 35.0, 35.0]) {
        let (vm1, vm2) = (&world.clients[0], &world.clients[1]);
        let name = |what| format!("{what}, sigma = {burst}");
        figures.push(Figure::near(name("VM1 IOPS"), vm1.rate(from, to), 320.0, 2.0));
        figures.push(Figure::near(name("VM1 ms"), vm1.latency_ms(from, to), millis, BAND));
        figures.push(Figure::near(name("VM2 IOPS"), vm2.rate(from, to), 2430.0, 2.0));
        figures.push(Figure::near(name("VM2 ms"), vm2.latency_ms(from, to), 13.2, BAND));
    }
    let ratio = |value| Figure::between("VM1 latency, sigma 64 / 1", value, 0.0, 0.75);
    figures.push(ratio(latency(1) / latency(0)));
    let control = without.clients[0].latency_ms(from, to) / latency(0);
    let points = worlds
        .iter()
        .map(|(burst, world)| (f64::from(*burst), world.clients[0].latency_ms(from, to)));
    let points: Vec<_> = points.collect();
    Outcome {
        id: "P2-E6",
        title: "Bursts: table 5, 128 reads every 400 ms beside a steady VM",
        band: "VM1's latency with sigma 64 at most 0.75 of that with 1; rates within 2 %, times within 3 %",
        figures,
        control: "SFQ(D), which knows no credit",
        control_figures: vec![ratio(control)],
        plots: vec![Plot {
            name: "p2-e6-table5".into(),
            title: "Table 5: latency of the bursty VM".into(),
            x: "sigma (requests)".into(),
            y: "ms".into(),
            series: vec![
                Series::new("ours", Mark::Line, points),
                Series::new("paper", Mark::Dashed, vec![(1.0, 49.0), (64.0, 30.8)]),
            ],
        }],
    }
}

/// Worst lateness of a client's I/Os against the tags their arrivals give, in nanoseconds.
fn worst_lateness(client: &Client) -> u64 {
    let mut ios: Vec<(u64, u64)> =
        client.log.iter().map(|done| (done.at.0 - done.latency.0, done.at.0)).collect();
    ios.sort_unstable();
    let gap = 1_000_000_000 / u64::from(client.controls.reservation);
    let mut completions: Vec<u64> = ios.iter().map(|(_, done)| *done).collect();
    completions.sort_unstable();
    let mut last: Option<u64> = None;
    let mut worst = 0;
    for ((arrival, _), done) in ios.iter().zip(completions) {
        let due = last.map_or(*arrival, |last| (last + gap).max(*arrival));
        last = Some(due);
        worst = worst.max(done.saturating_sub(due));
    }
    worst
}

const RATE: u32 = 2000;

fn run_lateness(policy: Policy, seed: u64) -> (usize, f64) {
    let mut rng = Rng::new(seed);
    let mut clients = Vec::new();
    let mut free = RATE;
    for index in 0..3 {
        let reservation = 50 + rng.below(u64::from(free / 3)) as u32;
        free -= reservation;
        let load = match rng.below(2) {
            0 => Load::Closed(4 + rng.below(28) as u32),
            _ => Load::Bursts {
                count: 1 + rng.below(20) as u32,
                period: Nanos::from_millis(5 + rng.below(200)),
            },
        };
        let pattern = Pattern::random_reads(4096);
        clients.push(Client::new(index, controls(reservation, 0, 1), load, pattern, &[0]));
    }
    // Sequential neighbours of great weight: they make batches as long as may be.
    for index in 3..6 {
        let pattern = Pattern { bytes: 4096, reads: 100, random: 0, flushes: 0 };
        let weight = 1 + rng.below(1000) as u32;
        clients.push(Client::new(index, controls(0, 0, weight), Load::Closed(32), pattern, &[0]));
    }
    let count = clients.len();
    let mut world = World::new(vec![array(policy, &[(seconds(0), RATE)])], clients);
    world.run_until(seconds(8));
    let worst = world.clients[..3].iter().map(worst_lateness).max().unwrap_or(0);
    (count, worst as f64 * f64::from(RATE) / 1e9)
}

/// E8: no reserved request is later than its tag by more than 8 N + 32 service times.
pub fn lateness() -> Outcome {
    let mut figures = Vec::new();
    for seed in 1..=12 {
        let (clients, worst) = run_lateness(Policy::MClock, seed);
        let bound = (8 * clients + 32) as f64;
        figures.push(Figure::between(
            format!("service times late, seed {seed}"),
            worst,
            0.0,
            bound,
        ));
    }
    let (clients, worst) = run_lateness(Policy::Sfq, 1);
    let bound = (8 * clients + 32) as f64;
    let points = figures.iter().enumerate().map(|(i, f)| ((i + 1) as f64, f.value)).collect();
    Outcome {
        id: "P2-E8",
        title: "Lateness of reservations with batches of 8, random clients and arrivals",
        band: "at most 8 N + 32 service times after the reservation tag, N clients",
        figures,
        control: "SFQ(D)",
        control_figures: vec![Figure::between("service times late, seed 1", worst, 0.0, bound)],
        plots: vec![Plot {
            name: "p2-e8-lateness".into(),
            title: "Worst lateness of a reserved request".into(),
            x: "seed".into(),
            y: "service times".into(),
            series: vec![
                Series::new("ours", Mark::Bar, points),
                Series::new("bound", Mark::Dashed, vec![(0.5, bound), (12.5, bound)]),
            ],
        }],
    }
}

fn run_sizes(cost: CostRule) -> f64 {
    // Few enough in the device that both always have more waiting: a ring holds three I/Os of 256 KiB.
    let config = Config { cost, depth: 8, ..config(Policy::MClock) };
    let device = Fifo::new(Positioning::new(Nanos::from_millis(5), 60_000_000));
    let clients = vec![
        closed(0, controls(0, 0, 1), 8 << 10),
        Client::new(1, controls(0, 0, 1), Load::Closed(8), Pattern::random_reads(256 << 10), &[0]),
    ];
    let mut world = World::new(vec![Node::new(config, Box::new(device))], clients);
    world.run_until(seconds(120));
    let (from, to) = (seconds(20), seconds(120));
    world.clients[0].rate(from, to) / world.clients[1].rate(from, to)
}

/// E9: equal weights share the device's time, not its requests.
pub fn sizes() -> Outcome {
    let name = "I/Os of 8 KiB per I/O of 256 KiB";
    let expected = (1.0 + 262_144.0 / 300_000.0) / (1.0 + 8_192.0 / 300_000.0);
    let figure = |value| Figure::near(name, value, expected, 5.0);
    let learnt = run_sizes(CostRule::DEFAULT);
    let unit = run_sizes(CostRule::Unit);
    Outcome {
        id: "P2-E9",
        title: "Request sizes: 8 KiB against 256 KiB at equal weight, Tm = 5 ms, 60 MB/s, cost learnt",
        band: "5 % of (1 + S2/(Tm B)) / (1 + S1/(Tm B))",
        figures: vec![figure(learnt)],
        control: "every request counts one",
        control_figures: vec![figure(unit)],
        plots: vec![Plot {
            name: "p2-e9-sizes".into(),
            title: "Ratio of I/Os, small to large".into(),
            x: "1: cost learnt, 2: every request counts one".into(),
            y: "ratio".into(),
            series: vec![
                Series::new("ours", Mark::Bar, vec![(1.0, learnt), (2.0, unit)]),
                Series::new(
                    "paper's formula",
                    Mark::Dashed,
                    vec![(0.5, expected), (2.5, expected)],
                ),
            ],
        }],
    }
}

const RESERVED: [u32; 3] = [300, 500, 200];
const STEP: u64 = 50_000_000;
const STEPS: usize = 1800;

/// A walk between half and one and a half times the sum of reservations, a step every 50 ms.
fn walk(seed: u64) -> Vec<(Nanos, u32)> {
    let sum = u64::from(RESERVED.iter().sum::<u32>());
    let mut rng = Rng::new(seed);
    let mut rate = sum * 6 / 5;
    (0..STEPS as u64)
        .map(|step| {
            let move_by = rng.below(sum / 10 + 1);
            rate = if rng.below(2) == 0 { rate + move_by } else { rate - move_by };
            rate = rate.clamp(sum / 2, sum * 3 / 2);
            (Nanos(step * STEP), rate as u32)
        })
        .collect()
}

/// Runs the walk; returns windows looked at, worst share of a reservation, and the world.
fn run_walk(reserve: bool) -> (usize, f64, World) {
    let curve = walk(10);
    let mut clients: Vec<Client> = RESERVED
        .iter()
        .enumerate()
        .map(|(i, r)| closed(i as u16, controls(if reserve { *r } else { 0 }, 0, 1), 4096))
        .collect();
    clients.push(closed(3, controls(0, 0, 10), 4096));
    let mut world = World::new(vec![array(Policy::MClock, &curve)], clients);
    world.run_until(Nanos(STEPS as u64 * STEP));
    let sum: u32 = RESERVED.iter().sum();
    let (mut windows, mut worst) = (0, f64::MAX);
    for window in curve.windows(20).filter(|w| w.iter().all(|(_, rate)| *rate >= sum)) {
        let from = window[0].0;
        windows += 1;
        for (client, reservation) in world.clients.iter().zip(RESERVED) {
            let rate = client.rate(from, Nanos(from.0 + 1_000_000_000));
            worst = worst.min(rate / f64::from(reservation));
        }
    }
    (windows, worst, world)
}

/// E10: reservations hold over every second in which the device can give their sum.
pub fn fluctuation() -> Outcome {
    let (windows, worst, world) = run_walk(true);
    let (_, without, _) = run_walk(false);
    let figure = |value| Figure::between("worst share of a reservation", value, 0.97, 10.0);
    let mut series: Vec<Series> = (0..3)
        .map(|vm| {
            super::throughput(
                &world,
                vm,
                STEPS as u64 / 20,
                &format!("VM{}, r {}", vm + 1, RESERVED[vm]),
            )
        })
        .collect();
    let capacity =
        walk(10).iter().map(|(at, rate)| (at.0 as f64 / 1e9, f64::from(*rate))).collect();
    series.push(Series::new("capacity", Mark::Dashed, capacity));
    Outcome {
        id: "P2-E10",
        title: "Fluctuation: capacity walks between 0.5 and 1.5 times the sum of reservations",
        band: "at least 0.97 r in every second in which capacity is at least the sum",
        figures: vec![
            Figure::between("seconds looked at", windows as f64, 50.0, f64::from(1 << 20)),
            figure(worst),
        ],
        control: "reservations off",
        control_figures: vec![figure(without)],
        plots: vec![Plot {
            name: "p2-e10-fluctuation".into(),
            title: "Reservations under a walking capacity".into(),
            x: "time (s)".into(),
            y: "IOPS".into(),
            series,
        }],
    }
}
