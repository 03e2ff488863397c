//! E7: dmClock over several servers.

use io_sched_server::{
    model::{Array, Curve, Fifo},
    server::Config,
};
use protocol::{dmclock::Rule, io::Policy};

use super::{config, controls, seconds};
use crate::{
    experiment::{Figure, Outcome},
    io::{Client, Load, Node, Pattern, World},
    plot::{Mark, Plot, Series},
};

fn servers(count: usize, rate: u32, depth: u32) -> Vec<Node> {
    let config = Config { depth, ..config(Policy::MClock) };
    let device = || Box::new(Fifo::new(Array::new(Curve::constant(rate))));
    (0..count).map(|_| Node::new(config, device())).collect()
}

fn run_striped(reservations: [u32; 3], rule: Rule, reports: bool) -> World {
    let clients = reservations.into_iter().zip([1, 4, 6]).enumerate();
    let clients = clients.map(|(index, (reservation, weight))| {
        let mut client = Client::new(
            index as u16,
            controls(reservation, 0, weight),
            // At each server: otherwise chance empties one of them, and it serves whoever is left.
            Load::ClosedPerNode(64),
            Pattern::random_reads(8192),
            &[0, 1, 2],
        )
        .tracking(rule);
        client.reports = reports;
        client
    });
    let mut world = World::new(servers(3, 1767, 16), clients.collect());
    world.run_until(seconds(20));
    world
}

/// Figure 10: c1 uses server 1 alone, c2 both.
fn run_uneven(capacity: u32) -> (f64, f64) {
    let pattern = Pattern::random_reads(8192);
    let clients = vec![
        Client::new(0, controls(800, 0, 1), Load::Closed(64), pattern.clone(), &[0]),
        Client::new(1, controls(1000, 0, 4), Load::ClosedPerNode(64), pattern, &[0, 1]),
    ];
    let mut world = World::new(servers(2, capacity, 16), clients);
    world.run_until(seconds(20));
    let rate = |client: usize| world.clients[client].rate(seconds(5), seconds(20));
    (rate(0), rate(1))
}

fn figures(world: &World, expected: &[f64; 3], what: &str) -> Vec<Figure> {
    let each = world.clients.iter().zip(expected).enumerate().map(|(index, (client, expected))| {
        let name = format!("c{} IOPS, {what}", index + 1);
        Figure::near(name, client.rate(seconds(5), seconds(20)), *expected, 5.0)
    });
    each.collect()
}

/// E7: three servers act as one.
pub fn dmclock() -> Outcome {
    let weights = [481.8, 1927.3, 2890.9];
    let reserved = [800.0, 1800.0, 2700.0];
    let plain = run_striped([0; 3], Rule::Paper, true);
    let held = run_striped([800, 1000, 100], Rule::Paper, true);
    let borrowing = run_striped([800, 1000, 100], Rule::Borrowing, true);
    let deaf = run_striped([800, 1000, 100], Rule::Paper, false);
    let mut list = figures(&plain, &weights, "no reservations");
    list.extend(figures(&held, &reserved, "reserved"));
    list.extend(figures(&borrowing, &reserved, "reserved, borrowing"));
    let share = |client: usize| held.clients[client].reserved_per_cent(seconds(5), seconds(20));
    list.push(Figure::between("c1 by reservation (%)", share(0), 95.0, 100.0));
    list.push(Figure::between("c2 by reservation (%)", share(1), 51.0, 61.0));
    list.push(Figure::between("c3 by reservation (%)", share(2), 0.0, 7.0));
    // At 700 the two cannot have their 1800: they share in proportion to the reservations.
    for (capacity, first) in [(700, 1400.0 * 800.0 / 1800.0), (950, 800.0), (1100, 800.0)] {
        let (c1, c2) = run_uneven(capacity);
        let rest = 2.0 * f64::from(capacity) - first;
        list.push(Figure::near(format!("figure 10: c1, servers of {capacity}"), c1, first, 5.0));
        list.push(Figure::near(format!("figure 10: c2, servers of {capacity}"), c2, rest, 5.0));
    }
    let bars = |name: &str, world: &World| {
        let at = |(index, client): (usize, &Client)| {
            ((index + 1) as f64, client.rate(seconds(5), seconds(20)))
        };
        Series::new(name, Mark::Bar, world.clients.iter().enumerate().map(at).collect())
    };
    let paper = |name: &str, values: [f64; 3]| {
        let points = values.into_iter().enumerate().map(|(i, v)| ((i + 1) as f64, v)).collect();
        Series::new(name, Mark::Bar, points)
    };
    Outcome {
        id: "P2-E7",
        title: "dmClock: figures 9 and 10, clients striped over servers",
        band: "5 % of one server of the same capacity",
        figures: list,
        control: "clients report nothing of other servers",
        control_figures: figures(&deaf, &reserved, "reserved, no reports"),
        plots: vec![Plot {
            name: "p2-e7-figure9".into(),
            title: "Figure 9: three clients, three servers".into(),
            x: "client".into(),
            y: "IOPS".into(),
            series: vec![
                bars("no reservations", &plain),
                paper("paper, none", [480.0, 1900.0, 2950.0]),
                bars("reserved", &held),
                paper("paper, reserved", [800.0, 1750.0, 2700.0]),
            ],
        }],
    }
}
