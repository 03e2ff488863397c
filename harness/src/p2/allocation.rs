//! E1 to E5: who gets how much.

use protocol::io::{Controls, Policy};

use super::{BAND, array, closed, controls, level, rates, seconds, throughput};
use crate::{
    experiment::{Figure, Outcome},
    io::World,
    plot::{Mark, Plot, Series},
};

/// Reservation, limit and weight of the three classes of figure 3.
const CLASSES: [(&str, u32, u32, u32); 3] =
    [("RD", 250, 0, 100), ("OLTP", 250, 0, 200), ("DM", 0, 1000, 300)];

/// What the allocation law gives them at each capacity.
const LAW: [(u32, [f64; 3]); 8] = [
    (400, [200.0, 200.0, 0.0]),
    (500, [250.0, 250.0, 0.0]),
    (700, [250.0, 250.0, 200.0]),
    (875, [250.0, 250.0, 375.0]),
    (1200, [250.0, 380.0, 570.0]),
    (1500, [250.0, 500.0, 750.0]),
    (2000, [333.3, 666.7, 1000.0]),
    (2500, [500.0, 1000.0, 1000.0]),
];

fn run_law(capacity: u32, reserve: bool) -> Vec<f64> {
    let clients = CLASSES.iter().enumerate().map(|(index, (_, reservation, limit, weight))| {
        let reservation = if reserve { *reservation } else { 0 };
        closed(index as u16, controls(reservation, *limit, *weight), 4096)
    });
    let node = array(Policy::MClock, &[(seconds(0), capacity)]);
    let mut world = World::new(vec![node], clients.collect());
    world.run_until(seconds(14));
    rates(&world, 4, 14)
}

fn law_figures(capacity: u32, expected: &[f64; 3], got: &[f64]) -> Vec<Figure> {
    let each = CLASSES.iter().zip(expected).zip(got).map(|(((name, ..), expected), got)| {
        let name = format!("{name} at {capacity} IOPS");
        if *expected == 0.0 {
            Figure { expected: Some(0.0), ..Figure::between(name, *got, 0.0, 10.0) }
        } else {
            Figure::near(name, *got, *expected, BAND)
        }
    });
    each.collect()
}

/// E1: the allocation law over capacities from below the reservations to above every limit.
pub fn law() -> Outcome {
    let mut figures = Vec::new();
    let mut lines: Vec<Vec<(f64, f64)>> = vec![Vec::new(); 3];
    for (capacity, expected) in &LAW {
        let got = run_law(*capacity, true);
        for (line, got) in lines.iter_mut().zip(&got) {
            line.push((f64::from(*capacity), *got));
        }
        figures.extend(law_figures(*capacity, expected, &got));
    }
    let (capacity, expected) = LAW[2];
    let mut series = Vec::new();
    for (class, line) in lines.into_iter().enumerate() {
        let name = CLASSES[class].0;
        series.push(Series::new(name, Mark::Line, line));
        let law = LAW.iter().map(|(t, expected)| (f64::from(*t), expected[class])).collect();
        series.push(Series::new(format!("{name}, law"), Mark::Dashed, law));
    }
    Outcome {
        id: "P2-E1",
        title: "Allocation law: RD, OLTP and DM of figure 3",
        band: "3 % of equations 1 and 2 over 10 s",
        figures,
        control: "reservations off at 700 IOPS",
        control_figures: law_figures(capacity, &expected, &run_law(capacity, false)),
        plots: vec![Plot {
            name: "p2-e1-figure3".into(),
            title: "Figure 3: allocation against capacity".into(),
            x: "capacity (IOPS)".into(),
            y: "IOPS".into(),
            series,
        }],
    }
}

fn run_limits(limit: bool) -> World {
    let limits = if limit { [0, 400, 500] } else { [0; 3] };
    let clients = [1, 1, 2].into_iter().enumerate().map(|(index, weight)| {
        let client = closed(index as u16, controls(0, limits[index], weight), 16 << 10);
        client.starting(seconds(index as u64 * 20))
    });
    let node = array(Policy::MClock, &[(seconds(0), 1600)]);
    let mut world = World::new(vec![node], clients.collect());
    world.run_until(seconds(60));
    world
}

fn phase_figures(world: &World, phases: &[(u64, u64, &[f64])]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (from, to, expected) in phases {
        let got = rates(world, *from, *to);
        for (vm, (got, expected)) in got.iter().zip(*expected).enumerate() {
            let name = format!("VM{} from {from} to {to} s", vm + 1);
            figures.push(Figure::near(name, *got, *expected, BAND));
        }
    }
    figures
}

fn phase_plot(name: &str, title: &str, world: &World, phases: &[(u64, u64, &[f64])]) -> Plot {
    let until = phases.last().map_or(0, |(_, to, _)| *to);
    let mut series: Vec<Series> = (0..world.clients.len())
        .map(|vm| throughput(world, vm, until, &format!("VM{}", vm + 1)))
        .collect();
    if let Some((from, to, expected)) = phases.last() {
        for (vm, expected) in expected.iter().enumerate() {
            series.push(level(&format!("VM{}, expected", vm + 1), *from, *to, *expected));
        }
    }
    Plot { name: name.into(), title: title.into(), x: "time (s)".into(), y: "IOPS".into(), series }
}

/// E2: figure 5, limits of VM2 and VM3 hold while VM1 takes the rest.
pub fn limits() -> Outcome {
    let phases: [(u64, u64, &[f64]); 3] =
        [(5, 20, &[1600.0]), (25, 40, &[1200.0, 400.0]), (45, 60, &[700.0, 400.0, 500.0])];
    let world = run_limits(true);
    let without = run_limits(false);
    Outcome {
        id: "P2-E2",
        title: "Limits: figure 5, three VMs of weights 1:1:2, limits 400 and 500",
        band: "3 % per phase",
        figures: phase_figures(&world, &phases),
        control: "limits off",
        control_figures: phase_figures(&without, &phases[2..]),
        plots: vec![phase_plot("p2-e2-figure5", "Figure 5: limits", &world, &phases)],
    }
}

fn run_reservations(policy: Policy) -> World {
    let curve: Vec<_> = (0..5).map(|step| (seconds(step * 20), 1600 - 80 * step as u32)).collect();
    let clients = [(300, 1), (250, 1), (0, 2), (0, 2), (0, 2)].into_iter().enumerate();
    let clients = clients.map(|(index, (reservation, weight))| {
        let client = closed(index as u16, controls(reservation, 0, weight), 4096);
        client.starting(seconds(index as u64 * 20))
    });
    let mut world = World::new(vec![array(policy, &curve)], clients.collect());
    world.run_until(seconds(100));
    world
}

/// E3: figure 6, reservations hold while capacity falls and VMs join; SFQ(D) loses them.
pub fn reservations() -> Outcome {
    let world = run_reservations(Policy::MClock);
    let sfq = run_reservations(Policy::Sfq);
    let held: [(u64, u64, &[f64]); 1] = [(85, 100, &[300.0, 250.0, 243.3, 243.3, 243.3])];
    let lost: [(u64, u64, &[f64]); 1] = [(85, 100, &[160.0, 160.0, 320.0, 320.0, 320.0])];
    let mut figures = phase_figures(&world, &held);
    figures.extend(phase_figures(&sfq, &lost).into_iter().map(|mut figure| {
        figure.name = format!("SFQ(D): {}", figure.name);
        figure
    }));
    Outcome {
        id: "P2-E3",
        title: "Reservations: figure 6, five VMs, 300 and 250 reserved, capacity 1600 to 1280",
        band: "3 % of the final phase, for mClock and for SFQ(D)",
        figures,
        control: "SFQ(D) against mClock's band",
        control_figures: phase_figures(&sfq, &held),
        plots: vec![
            phase_plot("p2-e3-figure6-mclock", "Figure 6: mClock", &world, &held),
            phase_plot("p2-e3-figure6-sfq", "Figure 6: SFQ(D)", &sfq, &lost),
        ],
    }
}

fn run_mix(policy: Policy) -> World {
    let steps = [1700, 1600, 1400, 1150].into_iter().enumerate();
    let curve: Vec<_> = steps.map(|(step, rate)| (seconds(step as u64 * 20), rate)).collect();
    let vms: [(u32, Controls); 4] = [
        (4 << 10, controls(0, 0, 2)),
        (8 << 10, controls(0, 700, 2)),
        (16 << 10, controls(0, 0, 1)),
        (8 << 10, controls(250, 0, 1)),
    ];
    let clients = vms.into_iter().enumerate().map(|(index, (bytes, controls))| {
        closed(index as u16, controls, bytes).starting(seconds(index as u64 * 20))
    });
    let mut world = World::new(vec![array(policy, &curve)], clients.collect());
    world.run_until(seconds(80));
    world
}

/// E4: figure 7, limit, reservation and weights at once.
pub fn mix() -> Outcome {
    let phases: [(u64, u64, &[f64]); 3] = [
        (25, 40, &[900.0, 700.0]),
        // Begins at once: a limited VM must not have saved up credit (pitfall 2).
        (41, 51, &[560.0, 560.0, 280.0]),
        (65, 80, &[360.0, 360.0, 180.0, 250.0]),
    ];
    let lost: [(u64, u64, &[f64]); 1] = [(65, 80, &[383.3, 383.3, 191.7, 191.7])];
    let world = run_mix(Policy::MClock);
    let sfq = run_mix(Policy::Sfq);
    let mut figures = phase_figures(&world, &phases);
    figures.extend(phase_figures(&sfq, &lost).into_iter().map(|mut figure| {
        figure.name = format!("SFQ(D): {}", figure.name);
        figure
    }));
    Outcome {
        id: "P2-E4",
        title: "Mix: figure 7, VM2 limited to 700, VM4 reserves 250, weights 2:2:1:1",
        band: "3 % per phase",
        figures,
        control: "SFQ(D) against mClock's band",
        control_figures: phase_figures(&sfq, &phases[2..]),
        plots: vec![
            phase_plot("p2-e4-figure7-mclock", "Figure 7: mClock", &world, &phases),
            phase_plot("p2-e4-figure7-sfq", "Figure 7: SFQ(D)", &sfq, &lost),
        ],
    }
}

fn run_latency(reservation: u32) -> World {
    let clients = [1, 1, 2, 2]
        .into_iter()
        .enumerate()
        .map(|(index, weight)| closed(index as u16, controls(reservation, 0, weight), 4096));
    let node = array(Policy::MClock, &[(seconds(0), 2035)]);
    let mut world = World::new(vec![node], clients.collect());
    world.run_until(seconds(20));
    world
}

fn latency_figures(world: &World, expected: &[(f64, f64); 4], what: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (vm, (client, (iops, millis))) in world.clients.iter().zip(expected).enumerate() {
        let (from, to) = (seconds(5), seconds(20));
        let name = |unit| format!("VM{} {unit}, {what}", vm + 1);
        figures.push(Figure::near(name("IOPS"), client.rate(from, to), *iops, BAND));
        figures.push(Figure::near(name("ms"), client.latency_ms(from, to), *millis, BAND));
    }
    figures
}

/// E5: table 4, a reservation sets latency through Little's law.
pub fn latency() -> Outcome {
    let by_weight = [(339.2, 94.3), (339.2, 94.3), (678.3, 47.2), (678.3, 47.2)];
    let by_reservation = [(508.75, 62.9); 4];
    let (one, many, none) = (run_latency(1), run_latency(512), run_latency(0));
    let mut figures = latency_figures(&one, &by_weight, "r = 1");
    figures.extend(latency_figures(&many, &by_reservation, "r = 512"));
    let bars = |name: &str, world: &World| {
        let at = |(vm, client): (usize, &crate::io::Client)| {
            ((vm + 1) as f64, client.latency_ms(seconds(5), seconds(20)))
        };
        Series::new(name, Mark::Bar, world.clients.iter().enumerate().map(at).collect())
    };
    Outcome {
        id: "P2-E5",
        title: "Latency: table 4, four VMs of weights 1:1:2:2, reservation 1 or 512",
        band: "3 % of throughput and latency",
        figures,
        control: "reservations off against the band of r = 512",
        control_figures: latency_figures(&none, &by_reservation, "r = 0"),
        plots: vec![Plot {
            name: "p2-e5-table4".into(),
            title: "Table 4: mean latency".into(),
            x: "VM".into(),
            y: "ms".into(),
            series: vec![bars("r = 1", &one), bars("r = 512", &many)],
        }],
    }
}
