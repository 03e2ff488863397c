//! Groups and VMs with disks on several servers, which tell each other what they do for them: a claim holds over all disks together.

use harness::io::{Client, Load, Node, Pattern, World};
use io_sched_server::{
    device::BlockDevice,
    model::{Array, Curve, Fifo},
    server::Config,
};
use protocol::{
    io::{Controls, IoReply, IoRequest, ROOT_BADGE, VmClaim, vm_group},
    units::{Nanos, VmId},
};

/// Requests a second of each disk.
const DISK: u32 = 1000;

fn controls(reservation: u32, limit: u32, shares: u32) -> Controls {
    Controls { reservation, limit, shares, ..Controls::default() }
}

fn array() -> Box<dyn BlockDevice> {
    Box::new(Fifo::new(Array::new(Curve::constant(DISK))))
}

fn config() -> Config {
    Config { latency_ceiling: Nanos(0), capacity: Some(DISK), ..Config::DEFAULT }
}

/// Two disks, whose servers know of each other or not.
fn world(is_one_machine: bool) -> World {
    let nodes = if is_one_machine {
        Node::machine(config(), vec![array(), array()])
    } else {
        vec![Node::new(config(), array()), Node::new(config(), array())]
    };
    World::new(nodes, Vec::new())
}

fn order(world: &mut World, request: &IoRequest) {
    let now = world.now;
    for node in &mut world.nodes {
        assert_eq!(node.message(now, ROOT_BADGE, request), Some(IoReply::Done));
    }
}

fn set_group(world: &mut World, group: u8, controls: Controls) {
    order(world, &IoRequest::SetGroup { group, parent: None, controls });
}

fn disk(index: u16, shares: u32, on: usize) -> Client {
    let pattern = Pattern::random_reads(4096);
    Client::new(index, controls(0, 0, shares), Load::Closed(32), pattern, &[on])
}

/// Requests a second of some clients together.
fn rate(world: &World, clients: &[usize], from: u64, to: u64) -> f64 {
    let (from, to) = (Nanos::from_secs(from), Nanos::from_secs(to));
    clients.iter().map(|client| world.clients[*client].rate(from, to)).sum()
}

fn near(got: f64, expected: f64, per_cent: f64) -> bool {
    (got / expected - 1.0).abs() * 100.0 <= per_cent
}

/// A group with a disk of weight `shares` on each server (clients 0 and 1), beside one that is in no group on each (2 and 3).
fn group_on_both(is_one_machine: bool, claim: Controls, shares: u32) -> World {
    let mut world = world(is_one_machine);
    set_group(&mut world, 0, claim);
    for on in 0..2 {
        world.add_in_group(disk(on as u16, shares, on), Some(0));
    }
    for on in 0..2 {
        world.add(disk(2 + on as u16, 1000, on));
    }
    world.run_until(Nanos::from_secs(8));
    world
}

#[test]
fn a_groups_limit_holds_over_all_disks_in_any_second() {
    let world = group_on_both(true, controls(0, 300, 1000), 1000);
    let got = rate(&world, &[0, 1], 1, 8);
    assert!(near(got, 300.0, 1.0), "{got}");
    for from in 1..7 {
        let got = rate(&world, &[0, 1], from, from + 1);
        assert!(got <= 300.0 * 1.02, "{got} in second {from}");
    }
    // What it may not have the others get.
    let others = rate(&world, &[2, 3], 1, 8);
    assert!(near(others, 1700.0, 1.0), "{others}");
    let alone = group_on_both(false, controls(0, 300, 1000), 1000);
    let got = rate(&alone, &[0, 1], 1, 8);
    assert!(near(got, 600.0, 1.0), "{got}: servers that do not hear of each other give it twice");
}

#[test]
fn a_groups_limit_moves_to_the_disk_that_is_asked() {
    let mut world = world(true);
    set_group(&mut world, 0, controls(0, 300, 1000));
    world.add_in_group(disk(0, 1000, 0), Some(0));
    world.run_until(Nanos::from_secs(5));
    assert!(near(rate(&world, &[0], 1, 5), 300.0, 1.0));
    world.add_in_group(disk(1, 1000, 1), Some(0));
    world.run_until(Nanos::from_secs(10));
    let (first, second) = (rate(&world, &[0], 6, 10), rate(&world, &[1], 6, 10));
    assert!(near(first + second, 300.0, 1.0), "{first} and {second}");
    assert!(near(first, 150.0, 10.0), "{first} and {second}: both ask alike");
    set_group(&mut world, 0, controls(0, 100, 1000));
    world.run_until(Nanos::from_secs(15));
    assert!(near(rate(&world, &[0, 1], 11, 15), 100.0, 2.0));
}

#[test]
fn a_groups_reservation_is_kept_once() {
    // Weight 1 against 10,000: all it gets is its reservation.
    let mut worlds = [true, false].map(|is_one_machine| {
        let mut world = world(is_one_machine);
        set_group(&mut world, 0, controls(400, 0, 1));
        for on in 0..2 {
            world.add_in_group(disk(on as u16, 1, on), Some(0));
            world.add(disk(2 + on as u16, 10_000, on));
        }
        world.run_until(Nanos::from_secs(8));
        // Clients are in the order they were added.
        rate(&world, &[0, 2], 2, 8)
    });
    let [together, alone] = &mut worlds;
    assert!(near(*together, 400.0, 3.0), "{together}");
    assert!(near(*alone, 800.0, 3.0), "{alone}");
}

#[test]
fn a_group_weighs_once_over_all_disks() {
    // The group and each of its two rivals get the same: a third of both disks.
    let world = group_on_both(true, controls(0, 0, 1000), 1000);
    let (group, rivals) =
        (rate(&world, &[0, 1], 2, 8), [2, 3].map(|rival| rate(&world, &[rival], 2, 8)));
    assert!(near(group, 2000.0 / 3.0, 3.0), "{group} and {rivals:?}");
    assert!(rivals.iter().all(|rival| near(*rival, 2000.0 / 3.0, 3.0)), "{group} and {rivals:?}");
    let alone = group_on_both(false, controls(0, 0, 1000), 1000);
    let group = rate(&alone, &[0, 1], 2, 8);
    assert!(near(group, 1000.0, 3.0), "{group}: on each disk the half");
}

#[test]
fn a_group_is_not_shut_out_for_what_it_had_elsewhere_long_before() {
    let mut world = world(true);
    set_group(&mut world, 0, controls(0, 0, 1000));
    world.add_in_group(disk(0, 1000, 0), Some(0));
    world.add(disk(1, 1000, 1));
    world.run_until(Nanos::from_secs(20));
    // 20,000 requests on the first disk; then both ask the second, the group nothing more of the first.
    world.clients[0].load = Load::Thinking(vec![Nanos::from_secs(1000)]);
    world.run_until(Nanos::from_secs(21));
    world.add_in_group(disk(2, 1000, 1), Some(0));
    world.run_until(Nanos::from_secs(23));
    let got = rate(&world, &[2], 21, 23);
    assert!(got > 850.0 / 2.0, "{got}: half of the disk, but for the debt of 128 requests");
}

#[test]
fn a_vms_limit_holds_over_its_disks_wherever_they_are() {
    let mut world = world(true);
    let claim = |limit| VmClaim { group: vm_group(VmId(3)), controls: controls(0, limit, 1000) };
    for on in 0..2 {
        world.add_below(disk(on as u16, 1000, on), (None, Some(claim(200))));
    }
    world.run_until(Nanos::from_secs(5));
    let got = rate(&world, &[0, 1], 1, 5);
    assert!(near(got, 200.0, 1.0), "{got}");
    order(&mut world, &IoRequest::SetVm(claim(500)));
    world.run_until(Nanos::from_secs(10));
    let got = rate(&world, &[0, 1], 6, 10);
    assert!(near(got, 500.0, 1.0), "{got}");
}

#[test]
fn a_group_has_its_limit_over_the_restart_of_a_server() {
    let mut world = world(true);
    let limit = controls(0, 300, 1000);
    set_group(&mut world, 0, limit);
    for on in 0..2 {
        world.add_in_group(disk(on as u16, 1000, on), Some(0));
    }
    world.run_until(Nanos::from_secs(4));
    let now = world.now;
    world.nodes[1].restart(now, array());
    let group = IoRequest::SetGroup { group: 0, parent: None, controls: limit };
    assert_eq!(world.nodes[1].message(now, ROOT_BADGE, &group), Some(IoReply::Done));
    world.run_until(Nanos::from_secs(8));
    // Its client is not attached anew: all of the limit is the other's.
    let got = rate(&world, &[0], 5, 8);
    assert!(near(got, 300.0, 1.0), "{got}");
}

#[test]
fn nonsense_from_another_server_slows_groups_and_nobody_else() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut world = world(true);
    set_group(&mut world, 0, controls(100, 300, 1000));
    world.add_in_group(disk(0, 1000, 0), Some(0));
    world.add(disk(1, 1000, 0));
    let mut rng = harness::rng::Rng::new(7);
    for tenth in 1..=40 {
        for word in world.nodes[1].progress()[1].iter() {
            // Huge, small, and going backwards.
            let shift = rng.below(64);
            word.store(rng.next() >> shift, Relaxed);
        }
        world.run_until(Nanos::from_millis(100 * tenth));
    }
    let (member, other) = (rate(&world, &[0], 0, 4), rate(&world, &[1], 0, 4));
    assert!(member <= 300.0 * 1.02 && other >= 700.0 * 0.97, "{member} and {other}");
}
