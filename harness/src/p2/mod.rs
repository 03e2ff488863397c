//! The experiments of mClock (P2): the paper's figures and tables on modelled devices, through the server's messages.
//!
//! Throughputs expected of a faithful scheduler come from the paper's allocation law (section 2.1) at the modelled
//! capacity; the band is 3 per cent over at least ten seconds of steady state unless an experiment says otherwise.

mod allocation;
mod behaviour;
mod distributed;

use io_sched_server::{
    model::{Array, Curve, Fifo},
    server::Config,
};
use protocol::{
    io::{Controls, Policy},
    units::Nanos,
};

use crate::{
    experiment::Outcome,
    io::{Client, Load, Node, Pattern, World},
    plot::{Mark, Series},
};

/// Names of the experiments.
pub const IDS: [&str; 10] =
    ["P2-E1", "P2-E2", "P2-E3", "P2-E4", "P2-E5", "P2-E6", "P2-E7", "P2-E8", "P2-E9", "P2-E10"];

/// Runs an experiment; `None` if there is none of this name.
pub fn run(id: &str) -> Option<Outcome> {
    Some(match id {
        "P2-E1" => allocation::law(),
        "P2-E2" => allocation::limits(),
        "P2-E3" => allocation::reservations(),
        "P2-E4" => allocation::mix(),
        "P2-E5" => allocation::latency(),
        "P2-E6" => behaviour::bursts(),
        "P2-E7" => distributed::dmclock(),
        "P2-E8" => behaviour::lateness(),
        "P2-E9" => behaviour::sizes(),
        "P2-E10" => behaviour::fluctuation(),
        _ => return None,
    })
}

/// Band of most figures, in per cent.
const BAND: f64 = 3.0;

fn seconds(seconds: u64) -> Nanos {
    Nanos::from_secs(seconds)
}

/// The server as it ships, without the latency ceiling: the paper fixes 32 requests in the device.
fn config(policy: Policy) -> Config {
    Config { policy, latency_ceiling: Nanos(0), ..Config::DEFAULT }
}

/// A server on the paper's array.
fn array(policy: Policy, curve: &[(Nanos, u32)]) -> Node {
    let device = Fifo::new(Array::new(Curve::of(curve)));
    Node::new(config(policy), Box::new(device))
}

/// Reservation, limit, weight of the paper; weights are small numbers there.
fn controls(reservation: u32, limit: u32, weight: u32) -> Controls {
    Controls { reservation, limit, shares: weight, ..Controls::default() }
}

/// A client that keeps 32 random reads of `bytes` outstanding.
fn closed(index: u16, controls: Controls, bytes: u32) -> Client {
    Client::new(index, controls, Load::Closed(32), Pattern::random_reads(bytes), &[0])
}

/// Throughput of each client in `[from, to)` seconds.
fn rates(world: &World, from: u64, to: u64) -> Vec<f64> {
    world.clients.iter().map(|client| client.rate(seconds(from), seconds(to))).collect()
}

/// A client's throughput per second as a line.
fn throughput(world: &World, client: usize, until: u64, name: &str) -> Series {
    let client = &world.clients[client];
    let at = |second| (second as f64, client.rate(seconds(second), seconds(second + 1)));
    Series::new(name, Mark::Line, (0..until).map(at).collect())
}

/// A dashed level from `from` to `to`.
fn level(name: &str, from: u64, to: u64, value: f64) -> Series {
    Series::new(name, Mark::Dashed, vec![(from as f64, value), (to as f64, value)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that an experiment prints.
    fn text(outcome: &Outcome) -> String {
        let plots: String = outcome.plots.iter().map(crate::plot::Plot::svg).collect();
        outcome.json() + &outcome.table() + &plots
    }

    /// The experiment is reproduced, and another run prints the same bytes.
    fn check(id: &str) {
        let outcome = run(id).unwrap();
        assert!(outcome.is_reproduced(), "\n{}", outcome.table());
        assert_eq!(text(&outcome), text(&run(id).unwrap()), "{id}: another run, other bytes");
    }

    #[test]
    fn p2_e1_allocation_law() {
        check("P2-E1");
    }

    #[test]
    fn p2_e2_limits() {
        check("P2-E2");
    }

    #[test]
    fn p2_e3_reservations() {
        check("P2-E3");
    }

    #[test]
    fn p2_e4_mix() {
        check("P2-E4");
    }

    #[test]
    fn p2_e5_latency() {
        check("P2-E5");
    }

    #[test]
    fn p2_e6_bursts() {
        check("P2-E6");
    }

    #[test]
    fn p2_e7_dmclock() {
        check("P2-E7");
    }

    #[test]
    fn p2_e8_lateness() {
        check("P2-E8");
    }

    #[test]
    fn p2_e9_sizes() {
        check("P2-E9");
    }

    #[test]
    fn p2_e10_fluctuation() {
        check("P2-E10");
    }

    #[test]
    fn an_unknown_name_is_none() {
        assert!(run("P2-E11").is_none());
        assert!(IDS.iter().all(|id| id.starts_with("P2-E")));
    }
}
