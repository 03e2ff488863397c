//! The whole io-sched-server through its messages: hostile clients, faults of the disk, restarts, orders of the root-task.

use harness::io::{
    Client, Contents, DISK_SECTORS, Fault, Load, Node, Pattern, World, first_sector, label,
};
use io_sched_server::{
    device::BlockDevice,
    gpt,
    model::{Array, Curve, Fifo, Rotational, Ssd},
    server::Config,
};
use protocol::{
    io::{Controls, DiskInfo, IoError, IoReply, IoRequest, Policy, ROOT_BADGE, WaitsFor},
    ring::{BlkStatus, Phase},
    slots::io_badge,
    units::Nanos,
};

fn device(rate: u32) -> Box<dyn BlockDevice> {
    Box::new(Fifo::new(Array::new(Curve::constant(rate))))
}

fn node(rate: u32) -> Node {
    Node::new(Config::DEFAULT, device(rate))
}

fn closed(index: u16, depth: u32) -> Client {
    let controls = Controls::default();
    Client::new(index, controls, Load::Closed(depth), Pattern::random_reads(4096), &[0])
}

fn writer(index: u16) -> Client {
    let pattern = Pattern { bytes: 4096, reads: 0, random: 100, flushes: 3 };
    Client::new(index, Controls::default(), Load::Closed(16), pattern, &[0])
}

fn millis(count: u64) -> Nanos {
    Nanos::from_millis(count)
}

fn ask(world: &mut World, request: &IoRequest) -> IoReply {
    let now = world.now;
    match world.nodes[0].message(now, ROOT_BADGE, request) {
        Some(reply) => reply,
        None => unreachable!("every message is answered"),
    }
}

fn attach(index: u16) -> IoRequest {
    IoRequest::Attach {
        index,
        partition: label(index),
        is_read_only: false,
        group: None,
        vm: None,
        controls: Controls::default(),
        servers: 1,
        ring_paddr: 0,
    }
}

#[test]
fn rubbish_in_a_ring_is_counted_and_harms_nobody() {
    let mut world = World::new(vec![node(2000)], vec![closed(0, 8), closed(1, 8)]);
    world.run_until(millis(100));
    let mut state = 1u64;
    for round in 0..400 {
        for _ in 0..20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % 512;
            // The client may do what it likes with its control page.
            let value = if state >> 60 > 7 { state } else { state >> 58 };
            store(&world, at, value);
        }
        // Sometimes the count says that a few entries are there, whatever they hold.
        let count = load(&world, 8).wrapping_add(round % 64);
        store(&world, 8, count);
        world.ring(0, 0);
        world.run_until(millis(100 + 10 * (round + 1)));
    }
    assert!(world.stats(0, 0).violations > 100);
    let honest = world.clients[1].log.iter().filter(|d| d.status == BlkStatus::Ok).count();
    let stats = world.stats(0, 1);
    assert_eq!((stats.errors, stats.violations), (0, 0));
    // At the worst the other one fills its half of the device with what it makes up.
    assert!(honest as f64 > 4.0 * 2000.0 * 0.45, "{honest}");
}

#[test]
fn requests_outside_the_partition_never_reach_the_device() {
    let mut world = World::new(vec![node(1000)], vec![closed(0, 1)]);
    world.run_until(millis(20));
    let served = world.nodes[0].served;
    let ring: Vec<_> = (0..512).map(|at| load(&world, at)).collect();
    // Word 2 of slot 5 is a sector: slots begin at word 192, five words each.
    let slot = 5;
    let base = 192 + slot * 5;
    for (offset, value) in [(0, 1 << 40), (1, 4096u64 << 32), (2, (1 << 22) - 7), (3, 0), (4, 1)] {
        store(&world, base + offset, value);
    }
    let submitted = ring[8];
    store(&world, 64 + (submitted % 64) as usize, slot as u64);
    store(&world, 8, submitted + 1);
    world.ring(0, 0);
    assert_eq!(load(&world, base + 4) & 0xffff, 2 | 2 << 8, "done, out of range");
    assert_eq!(world.stats(0, 0).errors, 1);
    assert_eq!(world.nodes[0].served, served);
}

fn load(world: &World, at: usize) -> u64 {
    world.clients[0].ring(0)[at].load(std::sync::atomic::Ordering::SeqCst)
}

fn store(world: &World, at: usize, value: u64) {
    world.clients[0].ring(0)[at].store(value, std::sync::atomic::Ordering::SeqCst);
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let mut world = World::new(vec![node(1000)], Vec::new());
    let request = IoRequest::Attach {
        index: 2,
        partition: label(2),
        is_read_only: true,
        group: None,
        vm: None,
        controls: Controls::default(),
        servers: 1,
        ring_paddr: 0,
    };
    // Attached by the world as usual, then anew as read-only.
    world.add(writer(2));
    assert_eq!(ask(&mut world, &IoRequest::Detach { index: 2 }), IoReply::Done);
    assert!(matches!(
        ask(&mut world, &request),
        IoReply::Disk(DiskInfo { is_read_only: true, .. })
    ));
    world.clients[0].pattern.flushes = 0;
    world.clients[0].load = Load::Thinking(vec![millis(1)]);
    world.run_until(millis(50));
    let log = &world.clients[0].log;
    assert!(log.len() > 10 && log.iter().all(|done| done.status == BlkStatus::ReadOnly));
}

#[test]
fn bad_sectors_are_errors_of_that_request_alone() {
    let mut node = node(1000);
    node.keeps_data = true;
    node.faults.push(Fault::BadSector(2048 + 8 * 3));
    let pattern = Pattern { bytes: 4096, reads: 100, random: 0, flushes: 0 };
    let client = Client::new(0, Controls::default(), Load::Closed(4), pattern, &[0]);
    let mut world = World::new(vec![node], vec![client]);
    world.run_until(millis(500));
    let bad = |done: &&harness::io::Done| done.status == BlkStatus::DeviceError;
    let errors = world.clients[0].log.iter().filter(bad).count() as u64;
    assert_eq!((errors, world.stats(0, 0).errors), (1, 1));
    assert!(world.clients[0].log.len() > 400);
}

#[test]
fn a_disk_that_does_not_answer_times_out_and_the_others_go_on() {
    let mut node = node(1000);
    // One sector in 512 of the first partition's first half: the sequential client soon comes to one.
    node.faults = (0..1u64 << 12).map(|i| Fault::Silence(2048 + i * 512)).collect();
    let pattern = Pattern { bytes: 4096, reads: 100, random: 0, flushes: 0 };
    let first = Client::new(0, Controls::default(), Load::Closed(1), pattern, &[0]);
    let mut world = World::new(vec![node], vec![first, closed(1, 4)]);
    world.run_until(Nanos::from_secs(65));
    let timeouts = world.clients[0].log.iter().filter(|d| d.status == BlkStatus::Timeout).count();
    assert!(timeouts >= 1, "{:?}", world.stats(0, 0));
    assert!(world.clients[1].log.len() > 30_000);
    let waited = world.clients[0].log.iter().map(|d| d.latency).max().unwrap();
    assert!(waited >= Nanos::from_secs(30) && waited < Nanos::from_secs(31), "{waited:?}");
}

/// A node whose disk never answers for one sector of client 0's.
fn silent_node() -> Node {
    let mut node = node(1000);
    node.faults.push(Fault::Silence(first_sector(0) + 8 * 50));
    node
}

/// Reads its partition from the start, with flushes between.
fn flushing(depth: u32) -> Client {
    let pattern = Pattern { bytes: 4096, reads: 100, random: 0, flushes: 20 };
    Client::new(0, Controls::default(), Load::Closed(depth), pattern, &[0])
}

fn timeouts(client: &Client) -> usize {
    client.log.iter().filter(|done| done.status == BlkStatus::Timeout).count()
}

#[test]
fn a_flush_behind_a_lost_request_goes_when_that_is_given_up() {
    let mut world = World::new(vec![silent_node()], vec![flushing(4)]);
    world.run_until(Nanos::from_secs(29));
    let before = world.clients[0].log.len();
    assert!(before < 100 && timeouts(&world.clients[0]) == 0, "{before}: a flush passed a request");
    assert!(!world.nodes[0].must_reset);
    world.run_until(Nanos::from_secs(35));
    assert_eq!(timeouts(&world.clients[0]), 1);
    assert_eq!(world.clients[0].flush_failures, 0);
    let after = world.clients[0].log.len() - before;
    assert!(after > 4 * 900, "{after} requests after the lost one: {:?}", world.stats(0, 0));
    assert!(world.nodes[0].must_reset, "the device must be reset");
}

#[test]
fn lost_requests_do_not_count_as_the_devices() {
    let mut node = node(1000);
    // A whole queue of requests is lost, and more.
    node.faults = (0..48).map(|i| Fault::Silence(first_sector(0) + i * 8)).collect();
    let pattern = Pattern { bytes: 4096, reads: 100, random: 0, flushes: 0 };
    let first = Client::new(0, Controls::default(), Load::Closed(48), pattern, &[0]);
    let mut world = World::new(vec![node], vec![first, closed(1, 8)]);
    world.run_until(Nanos::from_secs(40));
    assert!(timeouts(&world.clients[0]) >= 32, "{}", timeouts(&world.clients[0]));
    let [from, to] = [34, 40].map(Nanos::from_secs);
    let rates = [0, 1].map(|client: usize| world.clients[client].rate(from, to));
    assert!(rates.iter().sum::<f64>() > 990.0, "{rates:?}");
    let IoReply::DiskStats(stats) = ask(&mut world, &IoRequest::DiskStats) else { unreachable!() };
    assert!(stats.in_device <= stats.depth, "{stats:?}");
}

#[test]
fn a_client_with_a_lost_request_is_detached_when_the_device_has_been_reset() {
    let mut world = World::new(vec![silent_node()], vec![flushing(1), closed(1, 4)]);
    world.run_until(Nanos::from_secs(31));
    assert_eq!(timeouts(&world.clients[0]), 1);
    let detach = IoRequest::Detach { index: 0 };
    assert!(matches!(ask(&mut world, &detach), IoReply::Draining { .. }));
    world.run_for(1);
    let reply = ask(&mut world, &detach);
    assert_eq!(reply, IoReply::Draining { in_device: 1 }, "the device may touch its ring still");
    assert_eq!(world.stats(0, 0).in_device, 0, "it waits for nothing that will come");
}

/// What the root-task does when a server wants its device reset: another server, on the same rings.
#[test]
fn after_a_reset_everything_goes_on_and_only_the_lost_request_failed() {
    let mut node = silent_node();
    node.keeps_data = true;
    let mut world = World::new(vec![node], vec![flushing(4), writer(1)]);
    world.run_until(Nanos::from_secs(31));
    assert!(world.nodes[0].must_reset);
    world.nodes[0].faults.clear();
    world.restart(0, device(1000));
    assert!(!world.nodes[0].must_reset);
    world.run_for(3);
    for client in &mut world.clients {
        client.load = Load::Thinking(vec![Nanos::from_secs(1000)]);
    }
    world.run_for(2);
    for client in &world.clients {
        assert_eq!(client.under_way(), 0, "client {} has a request that hangs", client.index);
        let failed = client.log.iter().filter(|done| done.status != BlkStatus::Ok).count();
        assert_eq!(failed, usize::from(client.index == 0));
    }
    assert_eq!(timeouts(&world.clients[0]), 1);
    assert!(world.clients[0].log.len() > 500 && world.clients[0].flush_failures == 0);
}

/// A late answer of a request that was given up changes nothing any more.
#[test]
fn an_answer_that_comes_after_the_time_limit_is_nobodys() {
    let mut world = World::new(vec![silent_node()], vec![flushing(4)]);
    world.run_until(Nanos::from_secs(31));
    let (log, stats) = (world.clients[0].log.len(), world.stats(0, 0));
    let now = world.now;
    world.nodes[0].answer_silent(now);
    world.settle();
    assert_eq!((world.clients[0].log.len(), timeouts(&world.clients[0])), (log, 1));
    let later = world.stats(0, 0);
    assert_eq!(
        (later.reads, later.errors, later.in_device),
        (stats.reads, stats.errors, stats.in_device)
    );
    // Its tag is free, and the client can go.
    world.clients[0].load = Load::Thinking(vec![Nanos::from_secs(1000)]);
    world.run_for(1);
    assert_eq!(ask(&mut world, &IoRequest::Detach { index: 0 }), IoReply::Done);
}

#[test]
fn detaching_waits_for_the_device_and_the_place_is_free_again() {
    let mut world = World::new(vec![node(100)], vec![closed(0, 32), closed(1, 4)]);
    world.run_until(millis(50));
    let reply = ask(&mut world, &IoRequest::Detach { index: 0 });
    assert!(matches!(reply, IoReply::Draining { in_device: 1.. }), "{reply:?}");
    assert_eq!(ask(&mut world, &attach(0)), IoReply::Error(IoError::BadClient));
    let completed = world.clients[0].log.len();
    world.run_until(millis(600));
    assert!(world.clients[0].log.len() <= completed + 32, "nothing new is taken while draining");
    assert_eq!(ask(&mut world, &IoRequest::Detach { index: 0 }), IoReply::Done);
    assert_eq!(
        ask(&mut world, &IoRequest::Detach { index: 0 }),
        IoReply::Error(IoError::BadClient)
    );
    assert!(matches!(ask(&mut world, &attach(0)), IoReply::Disk(_)));
    let before = world.clients[1].log.len();
    world.run_until(Nanos::from_secs(2));
    assert!(world.clients[1].log.len() > before + 50);
}

#[test]
fn a_restart_under_load_loses_nothing() {
    let mut node = node(2000);
    node.keeps_data = true;
    let mut world = World::new(vec![node], vec![writer(0), writer(1), closed(2, 16)]);
    for round in 1..=20u64 {
        world.run_until(Nanos(world.now.0 + 37_000_000 + round * 1_234_567));
        world.restart(0, device(2000));
    }
    world.run_for(2);
    for client in &mut world.clients {
        client.load = Load::Thinking(vec![Nanos::from_secs(1000)]);
    }
    world.run_for(2);
    for client in &world.clients {
        assert!(client.log.iter().all(|d| d.status == BlkStatus::Ok), "an error after a restart");
        assert_eq!(client.under_way(), 0, "client {} has a request that hangs", client.index);
        assert!(client.log.len() > 500);
    }
    // Every acknowledged write is on the disk: the clients wrote their own mark into each sector.
    for client in &world.clients[..2] {
        assert!(client.written.len() > 300);
        for sector in &client.written {
            let content =
                world.nodes[0].contents.sector(harness::io::first_sector(client.index) + sector);
            assert_eq!(content[..8], sector.to_le_bytes(), "sector {sector}");
            assert_eq!(content[8], client.index as u8);
        }
    }
}

#[test]
fn a_flush_waits_for_the_writes_before_it() {
    let mut node = node(500);
    node.keeps_data = true;
    let mut world = World::new(vec![node], vec![writer(0), closed(1, 8)]);
    world.clients[0].pattern.flushes = 20;
    world.run_until(Nanos::from_secs(5));
    assert!(world.clients[0].flush_checks > 100);
    assert_eq!(world.clients[0].flush_failures, 0, "a flush was answered before an earlier write");
    let stats = world.stats(0, 0);
    assert!(stats.flushes > 100 && stats.writes > 400);
}

#[test]
fn only_the_root_task_gives_orders() {
    let mut world = World::new(vec![node(1000)], vec![closed(0, 1)]);
    let now = world.now;
    let badge = io_badge(0);
    for request in [
        attach(3),
        IoRequest::Detach { index: 0 },
        IoRequest::SetControls { index: 0, controls: Controls::default() },
        IoRequest::SetPolicy { policy: Policy::RoundRobin },
        IoRequest::Stats { index: 0 },
        IoRequest::DiskStats,
    ] {
        let reply = world.nodes[0].message(now, badge, &request);
        assert_eq!(reply, Some(IoReply::Error(IoError::Forbidden)), "{request:?}");
    }
    let info = world.nodes[0].message(now, badge, &IoRequest::Info);
    assert_eq!(info, Some(IoReply::Disk(DiskInfo { sectors: 1 << 22, is_read_only: false })));
    let stranger = world.nodes[0].message(now, io_badge(9), &IoRequest::Info);
    assert_eq!(stranger, Some(IoReply::Error(IoError::BadClient)));
    let event = io_sched_server::server::Event::Message { badge, label: 7, payload: &[1, 2, 3] };
    assert_eq!(world.nodes[0].event(now, event), Some(IoReply::Error(IoError::Malformed)));
}

#[test]
fn reservations_are_admitted_and_impossible_controls_refused() {
    let config = Config { capacity: Some(1000), ..Config::DEFAULT };
    let node = Node::new(config, device(1000));
    let mut world = World::new(vec![node], vec![closed(0, 4), closed(1, 4)]);
    let set = |index, reservation, limit, shares| IoRequest::SetControls {
        index,
        controls: Controls { reservation, limit, shares, ..Controls::default() },
    };
    assert_eq!(ask(&mut world, &set(0, 700, 0, 1)), IoReply::Done);
    let refused = ask(&mut world, &set(1, 301, 0, 1));
    assert_eq!(refused, IoReply::Error(IoError::Overcommitted { asked: 301, free: 300 }));
    assert_eq!(ask(&mut world, &set(1, 300, 0, 1)), IoReply::Done);
    for bad in [set(0, 10, 9, 1), set(0, 0, 0, 0)] {
        assert_eq!(ask(&mut world, &bad), IoReply::Error(IoError::BadControls));
    }
    assert_eq!(ask(&mut world, &set(9, 0, 0, 1)), IoReply::Error(IoError::BadClient));
    let group = |group, parent, limit| IoRequest::SetGroup {
        group,
        parent,
        controls: Controls { limit, ..Controls::default() },
    };
    assert_eq!(ask(&mut world, &group(1, Some(0), 0)), IoReply::Error(IoError::BadControls));
    assert_eq!(ask(&mut world, &group(0, None, 50)), IoReply::Done);
    assert_eq!(ask(&mut world, &group(1, Some(0), 0)), IoReply::Done);
    assert_eq!(ask(&mut world, &group(0, Some(1), 0)), IoReply::Error(IoError::BadControls));
    let mut inside = attach(5);
    if let IoRequest::Attach { group, controls, .. } = &mut inside {
        *group = Some(1);
        controls.reservation = 60;
    }
    // The limit of 50 of the group above is looked at before the disk's capacity.
    let refused = IoError::GroupLimit { asked: 60, free: 50 };
    assert_eq!(ask(&mut world, &inside), IoReply::Error(refused));
    if let IoRequest::Attach { servers, .. } = &mut inside {
        *servers = 0;
    }
    assert_eq!(ask(&mut world, &inside), IoReply::Error(IoError::BadClient));
}

#[test]
fn a_reservation_on_several_servers_counts_in_parts() {
    let config = || Config { capacity: Some(1000), ..Config::DEFAULT };
    let node = || Node::new(config(), device(1000));
    let controls = Controls { reservation: 1301, ..Controls::default() };
    let pattern = Pattern::random_reads(4096);
    let striped = Client::new(0, controls, Load::Closed(4), pattern, &[0, 1]);
    let mut world = World::new(vec![node(), node()], vec![striped]);
    match ask(&mut world, &IoRequest::DiskStats) {
        IoReply::DiskStats(stats) => assert_eq!(stats.reserved, 651),
        other => panic!("{other:?}"),
    }
    let set = |reservation| IoRequest::SetControls {
        index: 0,
        controls: Controls { reservation, ..controls },
    };
    assert_eq!(ask(&mut world, &set(2000)), IoReply::Done);
    let refused = IoError::Overcommitted { asked: 1, free: 0 };
    assert_eq!(ask(&mut world, &set(2001)), IoReply::Error(refused));
}

#[test]
fn a_group_reserves_for_its_members_and_less_is_always_possible() {
    let config = Config { capacity: Some(1000), ..Config::DEFAULT };
    let clients = vec![closed(0, 4), closed(1, 4)];
    let mut world = World::new(vec![Node::new(config, device(1000))], clients);
    let controls = |reservation| Controls { reservation, ..Controls::default() };
    let group = |reservation| IoRequest::SetGroup {
        group: 0,
        parent: None,
        controls: controls(reservation),
    };
    let set =
        |index, reservation| IoRequest::SetControls { index, controls: controls(reservation) };
    let reserved = |world: &mut World| match ask(world, &IoRequest::DiskStats) {
        IoReply::DiskStats(stats) => stats.reserved,
        other => panic!("{other:?}"),
    };
    assert_eq!(ask(&mut world, &group(400)), IoReply::Done);
    let mut inside = closed(2, 4);
    inside.controls = controls(100);
    world.add_in_group(inside, Some(0));
    assert_eq!(reserved(&mut world), 400, "what a member reserves is part of its group's");
    let refused = ask(&mut world, &set(0, 601));
    assert_eq!(refused, IoReply::Error(IoError::Overcommitted { asked: 601, free: 600 }));
    assert_eq!(ask(&mut world, &set(0, 600)), IoReply::Done);
    let refused = ask(&mut world, &group(401));
    assert_eq!(refused, IoReply::Error(IoError::Overcommitted { asked: 1, free: 0 }));
    let refused = ask(&mut world, &set(2, 500));
    assert_eq!(refused, IoReply::Error(IoError::Overcommitted { asked: 100, free: 0 }));
    assert_eq!(ask(&mut world, &group(300)), IoReply::Done);
    assert_eq!(ask(&mut world, &set(0, 500)), IoReply::Done);
    assert_eq!(reserved(&mut world), 800);
}

#[test]
fn groups_share_and_limit_together() {
    let mut world = World::new(vec![node(1000)], Vec::new());
    let group = |limit, shares| Controls { limit, shares, ..Controls::default() };
    for (number, controls) in [(0, group(300, 1000)), (1, group(0, 1000))] {
        let request = IoRequest::SetGroup { group: number, parent: None, controls };
        assert_eq!(ask(&mut world, &request), IoReply::Done);
    }
    for (index, group) in [(0, 0), (1, 0), (2, 1)] {
        world.add_in_group(closed(index, 16), Some(group));
    }
    world.run_until(Nanos::from_secs(10));
    let rate =
        |client: usize| world.clients[client].rate(Nanos::from_secs(2), Nanos::from_secs(10));
    let rates = [rate(0), rate(1), rate(2)];
    for (got, expected) in rates.into_iter().zip([150.0, 150.0, 700.0]) {
        assert!((got - expected).abs() < expected * 0.03, "{rates:?}");
    }
    let waits = world.stats(0, 0).waits_for;
    assert!(matches!(waits, WaitsFor::GroupLimit | WaitsFor::Turn), "{waits:?}");
}

#[test]
fn the_policy_can_be_changed_under_load() {
    let mut world = World::new(vec![node(1000)], vec![closed(0, 32), closed(1, 32)]);
    world.set_controls(0, Controls { shares: 3000, ..Controls::default() });
    let mut at = 0;
    for (policy, share) in [
        (Policy::MClock, 3.0),
        (Policy::RoundRobin, 1.0),
        (Policy::Sfq, 3.0),
        (Policy::MClock, 3.0),
    ] {
        assert_eq!(ask(&mut world, &IoRequest::SetPolicy { policy }), IoReply::Done);
        world.run_until(Nanos::from_secs(at + 6));
        let rate = |client: usize| {
            world.clients[client].rate(Nanos::from_secs(at + 1), Nanos::from_secs(at + 6))
        };
        let ratio = rate(0) / rate(1);
        assert!((ratio / share - 1.0).abs() < 0.03, "{policy:?}: {ratio}");
        assert!(rate(0) + rate(1) > 990.0);
        at += 6;
    }
}

#[test]
fn a_broken_table_is_replaced_by_its_copy_and_none_means_no_disk() {
    let mut broken = node(1000);
    broken.contents = Contents::default();
    assert_eq!(start_and_attach(&mut broken), IoReply::Error(IoError::NoDisk));

    let mut backup = node(1000);
    let (header, entries) =
        gpt::build_at(DISK_SECTORS, DISK_SECTORS - 1, 40, &[("disk-0", 2048, 9999)]);
    backup.contents.write(1, &[0xff; 512]);
    backup.contents.write(40, &entries);
    backup.contents.write(DISK_SECTORS - 1, &header);
    let reply = start_and_attach(&mut backup);
    assert!(matches!(reply, IoReply::Error(IoError::BadRing)), "found, but no ring: {reply:?}");
}

fn start_and_attach(node: &mut Node) -> IoReply {
    let now = node.start(Nanos(0));
    match node.message(now, ROOT_BADGE, &attach(0)) {
        Some(reply) => reply,
        None => unreachable!("every message is answered"),
    }
}

#[test]
fn statistics_tell_what_happened() {
    let mut world = World::new(vec![node(1000)], vec![closed(0, 8)]);
    world.set_controls(0, Controls { limit: 200, ..Controls::default() });
    world.run_until(Nanos::from_secs(4));
    let stats = world.stats(0, 0);
    assert_eq!(stats.reads, world.clients[0].log.len() as u64);
    assert_eq!(stats.read_bytes, stats.reads * 4096);
    assert_eq!(stats.by_weight + stats.by_reservation, stats.reads);
    assert_eq!(stats.waits_for, WaitsFor::Limit);
    // Eight outstanding at 200 per second: 40 ms, of which one in the device.
    let millis = stats.latency_p50.0 as f64 / 1e6;
    assert!((37.0..43.0).contains(&millis), "{millis}");
    assert!(stats.device_p50 < Nanos(1_100_000));
    assert!(world.clients[0].log.iter().all(|d| d.phase == Phase::Weight));
}

#[test]
fn other_disks_work_too() {
    for (device, seconds, least) in [
        (Box::new(Fifo::new(Rotational::hp_97560())) as Box<dyn BlockDevice>, 60, 30.0),
        (Box::new(Ssd::new(8)), 4, 20_000.0),
    ] {
        let node = Node::new(Config::DEFAULT, device);
        let mut world = World::new(vec![node], vec![closed(0, 32), closed(1, 32)]);
        world.run_until(Nanos::from_secs(seconds));
        let rate = |client: usize| {
            world.clients[client].rate(Nanos::from_secs(1), Nanos::from_secs(seconds))
        };
        assert!(rate(0) + rate(1) > least, "{} {}", rate(0), rate(1));
        assert!((rate(0) / rate(1) - 1.0).abs() < 0.05, "{} {}", rate(0), rate(1));
    }
}
