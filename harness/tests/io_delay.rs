//! A modelled disk in front of another, under a whole io-sched-server: nothing early, nothing lost, nothing changed.

use harness::io::{Client, Fault, Load, Node, Pattern, World, first_sector};
use io_sched_server::{
    delay::DelayLine,
    device::BlockDevice,
    model::{Model, Ssd},
    server::Config,
};
use protocol::{
    io::{Controls, IoReply, IoRequest, ROOT_BADGE},
    ring::BlkStatus,
    system::{DiskModel, ModelStep},
    units::Nanos,
};

fn array(requests_per_second: u32) -> DiskModel {
    let first = ModelStep { from: Nanos(0), requests_per_second };
    DiskModel::Array { steps: [first].into_iter().collect() }
}

/// A quick disk (a tenth of a millisecond) behind `model`.
fn device(model: Option<&DiskModel>) -> Box<dyn BlockDevice> {
    Box::new(DelayLine::new(Ssd::new(8), model.map(Model::new)))
}

fn node(model: Option<&DiskModel>) -> Node {
    let mut node = Node::new(Config::DEFAULT, device(model));
    node.keeps_data = true;
    node
}

fn closed(index: u16, depth: u32) -> Client {
    let pattern = Pattern::random_reads(4096);
    Client::new(index, Controls::default(), Load::Closed(depth), pattern, &[0])
}

fn writer(index: u16) -> Client {
    let pattern = Pattern { bytes: 4096, reads: 0, random: 100, flushes: 3 };
    Client::new(index, Controls::default(), Load::Closed(16), pattern, &[0])
}

fn seconds(count: u64) -> Nanos {
    Nanos::from_secs(count)
}

/// Mean latency in milliseconds and I/Os per second of one client with `depth` outstanding.
fn measured(model: Option<&DiskModel>, depth: u32) -> (f64, f64) {
    let mut world = World::new(vec![node(model)], vec![closed(0, depth)]);
    world.run_until(seconds(5));
    let client = &world.clients[0];
    assert!(client.log.iter().all(|done| done.status == BlkStatus::Ok));
    (client.latency_ms(seconds(1), seconds(5)), client.rate(seconds(1), seconds(5)))
}

#[test]
fn clients_see_the_model_and_without_it_the_disk() {
    let (latency, rate) = measured(Some(&array(100)), 4);
    assert!((39.9..40.2).contains(&latency) && (99.0..=101.0).contains(&rate), "{latency} {rate}");
    let (latency, rate) = measured(None, 4);
    assert!(latency < 1.0 && rate > 4000.0, "{latency} {rate}");
}

#[test]
fn no_request_of_any_model_is_answered_earlier_than_the_model_alone_would() {
    let models = [
        array(2000),
        DiskModel::Positioning { position: Nanos::from_millis(5), bytes_per_second: 60_000_000 },
        DiskModel::Hp97560,
        DiskModel::Ssd { channels: 2 },
        DiskModel::Bucket { requests_per_second: 500, burst: 10 },
    ];
    for model in &models {
        let run = |device: Box<dyn BlockDevice>| {
            let mut world =
                World::new(vec![Node::new(Config::DEFAULT, device)], vec![closed(0, 1)]);
            world.run_until(seconds(3));
            world.clients.remove(0).log
        };
        let (alone, line) = (run(Box::new(Model::new(model))), run(device(Some(model))));
        assert!(line.len() > 30 && line.len() <= alone.len(), "{model:?}");
        let is_early = alone.iter().zip(&line).position(|(alone, line)| line.at < alone.at);
        assert_eq!(is_early, None, "{model:?}");
    }
}

#[test]
fn an_error_of_the_disk_comes_when_the_model_says_and_is_that_requests_alone() {
    let mut node = node(Some(&array(100)));
    node.faults.push(Fault::BadSector(first_sector(0) + 8 * 3));
    let pattern = Pattern { bytes: 4096, reads: 100, random: 0, flushes: 0 };
    let client = Client::new(0, Controls::default(), Load::Closed(1), pattern, &[0]);
    let mut world = World::new(vec![node], vec![client]);
    world.run_until(seconds(1));
    let log = &world.clients[0].log;
    let bad: Vec<_> = log.iter().filter(|done| done.status != BlkStatus::Ok).collect();
    assert!(bad.len() == 1 && bad[0].status == BlkStatus::DeviceError, "{bad:?}");
    assert!(log.len() > 90 && log.iter().all(|done| done.latency >= Nanos::from_millis(10)));
}

#[test]
fn a_disk_that_does_not_answer_times_out_though_the_model_is_done() {
    let mut node = node(Some(&array(1000)));
    node.faults = (0..1 << 12).map(|i| Fault::Silence(first_sector(0) + i * 512)).collect();
    let pattern = Pattern { bytes: 4096, reads: 100, random: 0, flushes: 0 };
    let first = Client::new(0, Controls::default(), Load::Closed(1), pattern, &[0]);
    let mut world = World::new(vec![node], vec![first, closed(1, 4)]);
    world.run_until(seconds(40));
    let timeouts = world.clients[0].log.iter().filter(|d| d.status == BlkStatus::Timeout).count();
    assert!(timeouts >= 1, "{:?}", world.stats(0, 0));
    assert!(world.clients[1].log.len() > 20_000, "the others go on");
}

#[test]
fn a_client_detached_with_delayed_requests_waits_for_the_model() {
    let mut world = World::new(vec![node(Some(&array(50)))], vec![closed(0, 16), closed(1, 1)]);
    world.run_until(Nanos::from_millis(100));
    let now = world.now;
    let detach = IoRequest::Detach { index: 0 };
    let reply = world.nodes[0].message(now, ROOT_BADGE, &detach);
    // The disk has long answered them; their ring may go only when the server is done with it too.
    assert!(matches!(reply, Some(IoReply::Draining { in_device: 1.. })), "{reply:?}");
    world.run_for(2);
    let now = world.now;
    assert_eq!(world.nodes[0].message(now, ROOT_BADGE, &detach), Some(IoReply::Done));
    let before = world.clients[1].log.len();
    world.run_for(2);
    assert!(world.clients[1].log.len() >= before + 95, "the model is all of the other's now");
}

#[test]
fn a_restart_with_delayed_requests_loses_nothing() {
    let model = array(400);
    let mut world = World::new(vec![node(Some(&model))], vec![writer(0), writer(1), closed(2, 16)]);
    for round in 1..=20u64 {
        world.run_until(Nanos(world.now.0 + 137_000_000 + round * 1_234_567));
        world.restart(0, device(Some(&model)));
    }
    world.run_for(2);
    for client in &mut world.clients {
        client.load = Load::Thinking(vec![seconds(1000)]);
    }
    world.run_for(2);
    for client in &world.clients {
        assert!(client.log.iter().all(|d| d.status == BlkStatus::Ok), "an error after a restart");
        assert_eq!(client.under_way(), 0, "client {} has a request that hangs", client.index);
        assert!(client.log.len() > 200);
    }
    for client in &world.clients[..2] {
        assert!(client.written.len() > 300);
        for sector in &client.written {
            let content = world.nodes[0].contents.sector(first_sector(client.index) + sector);
            assert_eq!(content[..8], sector.to_le_bytes(), "sector {sector}");
        }
    }
}
