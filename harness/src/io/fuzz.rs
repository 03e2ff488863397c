//! A hostile client made of bytes against a whole io-sched-server: stores to its ring, doorbells, forged messages, and the
//! root-task's orders between them.
//!
//! The same interpreter serves the seeded run of `cargo test` and the cargo-fuzz target `rings`. What must hold after each
//! step is checked here: nothing outside the client's partition and ring reaches the device, only the root-task gives
//! orders, and an honest client beside it loses nothing.

use fuzz_input::Input;
use io_sched_server::{
    device::Buffer,
    model::{Array, Curve, Fifo},
    server::{Config, Event},
};
use protocol::{
    io::{Controls, Io, IoReply, IoRequest, MAX_CLIENTS, Policy, ROOT_BADGE},
    ring::{BLK_CONTROL_BYTES, BLK_RING_BYTES, BLK_SLOTS, SECTOR_BYTES},
    slots::io_badge,
    units::Nanos,
};
use std::sync::atomic::Ordering;

use super::{Client, Load, Node, PARTITION_SECTORS, Pattern, World, first_sector, label};
use protocol::interface::Interface;

const HOSTILE: u16 = 0;
const HONEST: u16 = 1;
/// Longest string worth looking at: later steps find the same states again.
const STEPS_MAX: usize = 2000;
/// Words of the ring's control page: submissions, submission ring, slots (`protocol::ring`).
const SUBMITTED: usize = 8;
const SUBMISSION: usize = 64;
const SLOTS: usize = 192;
const SLOT_WORDS: usize = 5;

/// Small, large, or at an edge.
fn odd(input: &mut Input<'_>) -> u64 {
    match input.byte() % 6 {
        0 => input.number(8),
        1 => u64::MAX - input.number(1),
        2 => PARTITION_SECTORS.wrapping_sub(input.number(1)),
        3 => input.number(1) << 32,
        _ => input.number(2),
    }
}

fn store(world: &World, at: usize, value: u64) {
    if let Some(word) = world.clients[0].ring(0).get(at) {
        word.store(value, Ordering::SeqCst);
    }
}

/// A slot that looks nearly like a request, submitted.
fn submit(world: &World, input: &mut Input<'_>) {
    let slot = input.number(1) as usize % BLK_SLOTS;
    let base = SLOTS + slot * SLOT_WORDS;
    let operation = input.number(1) % 4;
    let page = input.number(1);
    let length = match input.byte() % 4 {
        0 => input.number(4),
        1 => 4096 * (1 + input.number(1) % 17),
        _ => 512 * input.number(1),
    };
    let sector = odd(input);
    let elsewhere = odd(input);
    let words = [input.number(1), operation | page << 16 | length << 32, sector, elsewhere, 1];
    for (field, word) in words.into_iter().enumerate() {
        store(world, base + field, word);
    }
    let submitted = world.clients[0].ring(0)[SUBMITTED].load(Ordering::SeqCst);
    store(world, SUBMISSION + (submitted % BLK_SLOTS as u64) as usize, slot as u64);
    store(world, SUBMITTED, submitted.wrapping_add(1));
}

fn attach(input: &mut Input<'_>) -> IoRequest {
    IoRequest::Attach {
        index: HOSTILE,
        partition: label(HOSTILE),
        is_read_only: input.byte() & 1 == 1,
        group: None,
        vm: None,
        controls: controls(input),
        servers: input.byte() % 3,
        ring_paddr: 0,
    }
}

fn controls(input: &mut Input<'_>) -> Controls {
    Controls {
        // Of a disk of 4,000: the honest client must be able to go on.
        reservation: input.number(2) as u32 % 2000,
        limit: input.number(2) as u32,
        shares: 1 + input.number(1) as u32,
        burst: input.number(2) as u16,
        ..Controls::default()
    }
}

/// An order of the root-task about the hostile client or the policy.
fn order(world: &mut World, input: &mut Input<'_>) {
    let policies = [Policy::MClock, Policy::Sfq, Policy::RoundRobin];
    let request = match input.byte() % 6 {
        0 => IoRequest::Detach { index: HOSTILE },
        1 | 2 => attach(input),
        3 => IoRequest::SetPolicy { policy: policies[usize::from(input.byte()) % 3] },
        4 => IoRequest::Stats { index: HOSTILE },
        _ => IoRequest::SetControls { index: HOSTILE, controls: controls(input) },
    };
    let now = world.now;
    let reply = world.nodes[0].message(now, ROOT_BADGE, &request);
    assert!(reply.is_some(), "every message is answered");
}

/// A message of the hostile client's own making.
fn forge(world: &mut World, input: &mut Input<'_>) {
    let label = if input.byte() & 7 == 0 { input.number(2) } else { Io::LABEL };
    let badge = if input.byte() & 3 == 0 { input.number(1) } else { io_badge(HOSTILE) };
    let length = usize::from(input.byte() % 32);
    let payload: Vec<u8> = (0..length).map(|_| input.byte()).collect();
    let now = world.now;
    let reply = world.nodes[0].event(now, Event::Message { badge, label, payload: &payload });
    assert!(
        matches!(reply, Some(IoReply::Error(_) | IoReply::Disk(_))),
        "only the root-task gives orders: {reply:?}"
    );
}

/// Nothing in the device lies outside its client's partition and ring. Returns how much of it is the hostile client's.
fn check(world: &World) -> usize {
    let mut hostile = 0;
    for request in world.nodes[0].pending.iter().flatten() {
        let Buffer::Ring { index, offset, .. } = request.buffer else { continue };
        assert!(usize::from(index) < MAX_CLIENTS);
        hostile += usize::from(index == HOSTILE);
        let first = first_sector(index);
        let end = request.sector + u64::from(request.length / SECTOR_BYTES);
        let is_inside = request.sector >= first && end <= first + PARTITION_SECTORS;
        assert!(is_inside, "{request:?} lies outside the partition of client {index}");
        let end = offset as usize + request.length as usize;
        let is_data = offset as usize >= BLK_CONTROL_BYTES && end <= BLK_RING_BYTES;
        assert!(is_data, "{request:?} lies outside the ring's data");
    }
    hostile
}

/// Does what `bytes` say and checks after each step. Returns how often a request of the hostile client was seen in the device.
///
/// # Panics
///
/// If something that must hold does not.
pub fn run(bytes: &[u8]) -> usize {
    let client = |index, depth| {
        let (load, pattern) = (Load::Closed(depth), Pattern::random_reads(4096));
        Client::new(index, Controls::default(), load, pattern, &[0])
    };
    let node = Node::new(Config::DEFAULT, Box::new(Fifo::new(Array::new(Curve::constant(4000)))));
    let mut world = World::new(vec![node], vec![client(HOSTILE, 0), client(HONEST, 4)]);
    let mut input = Input::new(bytes);
    let mut seen = 0;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.byte() % 16 {
            0..=5 => submit(&world, &mut input),
            6 | 7 => {
                let at = input.number(2) as usize % (BLK_CONTROL_BYTES / 8);
                store(&world, at, odd(&mut input));
            }
            8..=10 => world.ring(0, 0),
            11 | 12 => {
                let until = world.now.0 + input.number(1) * 20_000;
                world.run_until(Nanos(until));
            }
            13 => forge(&mut world, &mut input),
            _ => order(&mut world, &mut input),
        }
        seen += check(&world);
    }
    let before = world.clients[1].log.len();
    world.run_for(2);
    let stats = world.stats(0, HONEST);
    assert_eq!((stats.errors, stats.violations), (0, 0), "the honest client's");
    assert!(world.clients[1].log.len() > before, "the honest client stands still");
    seen
}

#[cfg(test)]
mod tests {
    use super::run;
    use fuzz_input::seeded;

    #[test]
    fn seeded_hostile_clients_harm_nobody() {
        let mut seen = 0;
        for seed in 1..=60 {
            seen += run(&seeded(seed, 6000));
        }
        assert!(seen > 1000, "the bytes hardly ever make a request: {seen}");
    }
}
