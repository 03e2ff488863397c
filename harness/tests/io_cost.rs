//! What requests count, learnt by the whole server: the pace of a disk may change, and so may the ratio of its sizes.

use harness::io::{Client, Load, Node, Pattern, World};
use io_sched_server::{
    device::DeviceRequest,
    model::{Array, Curve, Fifo, Service},
    server::Config,
};
use protocol::{io::Controls, units::Nanos};

/// A disk whose positioning time and time per KiB, in microseconds, change once.
#[derive(Clone, Copy, Debug)]
struct Changing {
    before: (u64, u64),
    change: Nanos,
    after: (u64, u64),
}

impl Service for Changing {
    fn time(&mut self, now: Nanos, request: &DeviceRequest) -> Nanos {
        let (position, per_kib) = if now < self.change { self.before } else { self.after };
        Nanos((position + per_kib * u64::from(request.length >> 10)) * 1000)
    }
}

fn seconds(count: u64) -> Nanos {
    Nanos::from_secs(count)
}

fn node(service: impl Service + 'static) -> Node {
    let config = Config { latency_ceiling: Nanos(0), ..Config::DEFAULT };
    Node::new(config, Box::new(Fifo::new(service)))
}

fn controls(reservation: u32, shares: u32) -> Controls {
    Controls { reservation, shares, ..Controls::default() }
}

fn client(index: u16, controls: Controls, kib: u32) -> Client {
    let pattern = Pattern::random_reads(kib << 10);
    Client::new(index, controls, Load::Closed(32), pattern, &[0])
}

fn rate(world: &World, client: usize, from: u64, to: u64) -> f64 {
    world.clients[client].rate(seconds(from), seconds(to))
}

#[track_caller]
fn near(got: f64, expected: f64, per_cent: f64) {
    assert!((got / expected - 1.0).abs() * 100.0 <= per_cent, "{got}, not {expected}");
}

/// The five VMs of figure 6 with requests of these sizes, after five seconds in which all asked for 4 KiB. The array gives 1600
/// requests a second until second 10, then 1280.
fn slowing_array(kib: [u32; 5]) -> World {
    let claims = [(300, 1), (250, 1), (0, 2), (0, 2), (0, 2)];
    let clients =
        (0..).zip(claims).map(|(index, (r, shares))| client(index, controls(r, shares), 4));
    let array = Array::new(Curve::of(&[(Nanos(0), 1600), (seconds(10), 1280)]));
    let mut world = World::new(vec![node(array)], clients.collect());
    world.run_until(seconds(5));
    for (client, kib) in world.clients.iter_mut().zip(kib) {
        client.pattern = Pattern::random_reads(kib << 10);
    }
    world.run_until(seconds(30));
    world
}

#[test]
fn a_reservation_in_large_requests_holds_when_the_disk_becomes_slower() {
    let world = slowing_array([16; 5]);
    for (vm, reserved) in [(0, 300.0), (1, 250.0)] {
        near(rate(&world, vm, 12, 30), reserved, 3.0);
    }
    for vm in 2..5 {
        near(rate(&world, vm, 12, 30), 243.3, 3.0);
    }
}

#[test]
fn so_it_does_with_sizes_mixed() {
    let world = slowing_array([16, 32, 64, 16, 32]);
    // All sizes take this array the same time, so they count the same.
    for (vm, reserved) in [(0, 300.0), (1, 250.0), (2, 243.3), (3, 243.3), (4, 243.3)] {
        near(rate(&world, vm, 12, 30), reserved, 3.0);
    }
}

#[test]
fn a_pace_that_goes_up_and_down_leaves_no_trace() {
    // Nobody asks for 4 KiB after second 5; the pace changes every two seconds.
    let steps: Vec<_> =
        (0..50u64).map(|i| (seconds(2 * i), [1600, 1000][i as usize % 2])).collect();
    let clients = vec![client(0, controls(400, 1), 4), client(1, controls(0, 100), 4)];
    let mut world = World::new(vec![node(Array::new(Curve::of(&steps)))], clients);
    world.run_until(seconds(5));
    for client in &mut world.clients {
        client.pattern = Pattern::random_reads(16 << 10);
    }
    world.run_until(seconds(100));
    near(rate(&world, 0, 6, 16), 400.0, 3.0);
    near(rate(&world, 0, 90, 100), 400.0, 3.0);
}

/// A backlogged client of 4 KiB and one of 64 KiB with the same shares, the 4 KiB one from second `from` to `to` only.
fn sizes(before: (u64, u64), after: (u64, u64)) -> World {
    let service = Changing { before, change: seconds(10), after };
    let clients = vec![client(0, controls(0, 1), 4), client(1, controls(0, 1), 64)];
    let mut world = World::new(vec![node(service)], clients);
    world.run_until(seconds(30));
    world
}

#[test]
fn a_change_of_the_ratio_between_sizes_is_learnt() {
    // The disk's bandwidth falls to a quarter, positioning stays: 64 KiB takes 1.6 times as long as 4 KiB, then 3.1 times.
    let world = sizes((300, 3), (300, 12));
    let ratio = |from, to| rate(&world, 0, from, to) / rate(&world, 1, from, to);
    near(ratio(5, 10), (300.0 + 192.0) / (300.0 + 12.0), 3.0);
    near(ratio(15, 30), (300.0 + 768.0) / (300.0 + 48.0), 3.0);
}

#[test]
fn a_change_of_the_pace_leaves_the_ratio_between_sizes() {
    let world = sizes((300, 3), (600, 6));
    let ratio = |from, to| rate(&world, 0, from, to) / rate(&world, 1, from, to);
    for from in [9, 10, 11, 20] {
        near(ratio(from, from + 1), (300.0 + 192.0) / (300.0 + 12.0), 3.0);
    }
}
