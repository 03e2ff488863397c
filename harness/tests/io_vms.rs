//! Virtual disks of one VM together: a weight, a reservation and a limit below the VM's group.

use harness::io::{Client, Load, Node, Pattern, World, label};
use io_sched_server::{
    model::{Array, Curve, Fifo},
    server::Config,
};
use protocol::{
    io::{Controls, GroupStats, IoError, IoReply, IoRequest, ROOT_BADGE, VmClaim, vm_group},
    units::{Nanos, VmId},
};

fn controls(reservation: u32, limit: u32, shares: u32) -> Controls {
    Controls { reservation, limit, shares, ..Controls::default() }
}

fn claim(vm: u16, controls: Controls) -> VmClaim {
    VmClaim { group: vm_group(VmId(vm)), controls }
}

fn world() -> World {
    let config = Config { latency_ceiling: Nanos(0), capacity: Some(1000), ..Config::DEFAULT };
    let device = Box::new(Fifo::new(Array::new(Curve::constant(1000))));
    World::new(vec![Node::new(config, device)], Vec::new())
}

fn disk(index: u16) -> Client {
    let pattern = Pattern::random_reads(4096);
    Client::new(index, controls(0, 0, 1000), Load::Closed(32), pattern, &[0])
}

fn ask(world: &mut World, request: &IoRequest) -> IoReply {
    let now = world.now;
    match world.nodes[0].message(now, ROOT_BADGE, request) {
        Some(reply) => reply,
        None => unreachable!("every message is answered"),
    }
}

fn attach(index: u16, group: Option<u8>, vm: Option<VmClaim>) -> IoRequest {
    IoRequest::Attach {
        index,
        partition: label(index),
        is_read_only: false,
        group,
        vm,
        controls: controls(0, 0, 1000),
        servers: 1,
        ring_paddr: 0,
    }
}

/// Requests per second reserved on the disk.
fn reserved(world: &mut World) -> Option<u32> {
    match ask(world, &IoRequest::DiskStats) {
        IoReply::DiskStats(stats) => Some(stats.reserved),
        _ => None,
    }
}

/// Rates of clients 0 to 2 together, and of client 3, over the seconds `from..to`.
fn rates(world: &World, from: u64, to: u64) -> (f64, f64) {
    let rate =
        |client: usize| world.clients[client].rate(Nanos::from_secs(from), Nanos::from_secs(to));
    (rate(0) + rate(1) + rate(2), rate(3))
}

fn near(got: f64, expected: f64, per_cent: f64) -> bool {
    (got / expected - 1.0).abs() * 100.0 <= per_cent
}

/// A VM with three disks, with or without a claim, and one with a single disk.
fn three_and_one(vm: Option<VmClaim>) -> World {
    let mut world = world();
    for index in 0..3 {
        world.add_below(disk(index), (None, vm));
    }
    world.add(disk(3));
    world
}

#[test]
fn a_vm_weighs_once_however_many_disks_it_has() {
    let mut world = three_and_one(Some(claim(0, controls(0, 0, 1000))));
    world.run_until(Nanos::from_secs(6));
    let (three, one) = rates(&world, 1, 6);
    assert!(near(three, 500.0, 3.0) && near(one, 500.0, 3.0), "{three} and {one}");
    // Without a claim each disk weighs for itself.
    let mut world = three_and_one(None);
    world.run_until(Nanos::from_secs(6));
    let (three, one) = rates(&world, 1, 6);
    assert!(near(three, 750.0, 3.0) && near(one, 250.0, 3.0), "{three} and {one}");
}

#[test]
fn a_vms_limit_holds_for_its_disks_together_and_changes() {
    let mut world = three_and_one(Some(claim(0, controls(0, 300, 1000))));
    world.run_until(Nanos::from_secs(6));
    let (three, one) = rates(&world, 1, 6);
    assert!(near(three, 300.0, 1.0) && near(one, 700.0, 1.0), "{three} and {one}");
    let change = claim(0, controls(0, 100, 1000));
    assert_eq!(ask(&mut world, &IoRequest::SetVm(change)), IoReply::Done);
    // A VM without a disk here.
    let other = claim(5, controls(900, 0, 1000));
    assert_eq!(ask(&mut world, &IoRequest::SetVm(other)), IoReply::Done);
    world.run_until(Nanos::from_secs(12));
    let (three, one) = rates(&world, 7, 12);
    assert!(near(three, 100.0, 1.0) && near(one, 900.0, 1.0), "{three} and {one}");
    assert_eq!(reserved(&mut world), Some(0));
}

#[test]
fn a_vms_reservation_is_kept_below_its_groups_limit() {
    let mut world = world();
    let group = IoRequest::SetGroup { group: 0, parent: None, controls: controls(0, 400, 1000) };
    assert_eq!(ask(&mut world, &group), IoReply::Done);
    // Three disks of weight 1 in all against 10,000, but for 300 that are reserved.
    let vm = claim(0, controls(300, 0, 1));
    for index in 0..3 {
        world.add_below(disk(index), (Some(0), Some(vm)));
    }
    let mut heavy = disk(3);
    heavy.controls.shares = 10_000;
    world.add_in_group(heavy, Some(0));
    world.add(disk(4));
    world.run_until(Nanos::from_secs(6));
    let (three, one) = rates(&world, 1, 6);
    assert!(near(three, 300.0, 3.0) && near(one, 100.0, 3.0), "{three} and {one}");
    assert_eq!(reserved(&mut world), Some(300));
}

#[test]
fn a_vms_claim_ends_with_its_last_disk_and_may_come_back_elsewhere() {
    let mut world = world();
    for group in [0, 1] {
        let request = IoRequest::SetGroup { group, parent: None, controls: controls(0, 0, 1000) };
        assert_eq!(ask(&mut world, &request), IoReply::Done);
    }
    let vm = claim(2, controls(900, 0, 1000));
    world.add_below(disk(0), (Some(0), Some(vm)));
    world.add_below(disk(1), (Some(0), Some(vm)));
    assert_eq!(reserved(&mut world), Some(900));
    // Its ring stays mapped when it has gone.
    world.add(disk(2));
    assert_eq!(ask(&mut world, &IoRequest::Detach { index: 2 }), IoReply::Done);
    // It cannot be in two groups at once.
    let elsewhere = attach(2, Some(1), Some(vm));
    assert_eq!(ask(&mut world, &elsewhere), IoReply::Error(IoError::BadControls));
    // What cannot be kept is refused, and nothing of it stays.
    let much = attach(2, None, Some(claim(3, controls(200, 0, 1000))));
    let refused = IoError::Overcommitted { asked: 200, free: 100 };
    assert_eq!(ask(&mut world, &much), IoReply::Error(refused));
    assert_eq!(ask(&mut world, &IoRequest::Detach { index: 0 }), IoReply::Done);
    assert_eq!(reserved(&mut world), Some(900), "one disk is still there");
    assert_eq!(ask(&mut world, &IoRequest::Detach { index: 1 }), IoReply::Done);
    assert_eq!(reserved(&mut world), Some(0));
    let mut again = disk(3);
    again.controls.limit = 50;
    world.add_below(again, (Some(1), Some(vm)));
    assert_eq!(reserved(&mut world), Some(900));
    let until = Nanos(world.now.0 + 4_000_000_000);
    world.run_until(until);
    let got = world.clients[3].rate(Nanos(until.0 - 3_000_000_000), until);
    assert!(near(got, 50.0, 3.0), "{got}");
}

#[test]
fn a_group_keeps_what_its_clients_were_served_when_they_go() {
    let mut world = world();
    for group in [0, 1] {
        let request = IoRequest::SetGroup { group, parent: None, controls: controls(0, 0, 1000) };
        assert_eq!(ask(&mut world, &request), IoReply::Done);
    }
    // One below a VM's own claim, one in the group itself, one in none.
    world.add_below(disk(0), (Some(0), Some(claim(0, controls(0, 0, 1000)))));
    let mut counted = disk(1);
    counted.load = Load::Bursts { count: 50, period: Nanos::from_secs(60) };
    world.add_in_group(counted, Some(0));
    world.add(disk(2));
    world.run_until(Nanos::from_secs(1));
    let (first, second) = (world.stats(0, 0), world.stats(0, 1));
    assert_eq!(second.reads, 50);
    let sum = GroupStats::NONE.with(&first).with(&second);
    assert_eq!(world.nodes[0].server.group_stats(0), sum);
    assert_eq!(world.nodes[0].server.group_stats(1), GroupStats::NONE);
    assert_eq!(ask(&mut world, &IoRequest::Detach { index: 1 }), IoReply::Done);
    assert_eq!(world.nodes[0].server.group_stats(0), sum);
    // In another group it begins anew; the first group keeps what it had there.
    assert!(matches!(ask(&mut world, &attach(1, Some(1), None)), IoReply::Disk(_)));
    assert_eq!(world.nodes[0].server.group_stats(0), sum);
    assert_eq!(world.nodes[0].server.group_stats(1), GroupStats::NONE);
}
