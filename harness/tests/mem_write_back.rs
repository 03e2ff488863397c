//! The compressed pool's old pages move on to the swap disk: what that is worth, and that nothing is lost by it.

use std::collections::HashMap;

use harness::mem::{MIB, World};
use harness::rng::Rng;
use mem_server::model::INCOMPRESSIBLE;
use mem_server::server::Policy;
use protocol::mem::{Sharing, VmMemory};
use protocol::units::{Pages, VmId};

const VM: VmId = VmId(0);
/// Memory of the guest, of the machine, and of the compressed pool: a tenth, as the server starts.
const GUEST: u64 = 64 * MIB;
const BLOCKS: u32 = 20;
const POOL: u64 = BLOCKS as u64 * 512 / 10;
/// Pages that nine of ten accesses go to.
const HOT: u64 = 20 * MIB;
const ACCESSES: u64 = 400_000;

/// What page `index` holds after `version` writes: two thirds compress.
fn tag(index: u32, version: u64) -> u64 {
    let own = u64::from(index + 1) | version << 32;
    if index.is_multiple_of(3) { INCOMPRESSIBLE | own } else { own }
}

struct Run {
    /// Requests to the swap disk while the guest worked.
    reads: u64,
    writes: u64,
    spilled: u64,
}

/// A disk of whose write requests one of `failing` fails (0: none), and what goes on while a guest works or waits.
struct Disk {
    failing: u64,
    requests: u64,
}

impl Disk {
    /// Ten milliseconds pass. The disk takes its time: what is on its way may be wanted meanwhile.
    fn work(&mut self, world: &mut World) {
        world.tick(10_000_000);
        for _ in 0..48 {
            self.requests += 1;
            let fails = self.failing > 0
                && self.requests.is_multiple_of(self.failing)
                && world.machine.next_is_write();
            let Some((transfer, ok)) = world.machine.disk_step(fails) else { break };
            world.server.swap_done(transfer, ok);
            world.server.go_on(&mut world.machine);
        }
    }

    /// Tries until the guest need not wait for memory any more.
    fn wait<T>(&mut self, world: &mut World, mut access: impl FnMut(&mut World) -> Option<T>) -> T {
        let mut tries = 0;
        loop {
            if let Some(value) = access(world) {
                return value;
            }
            tries += 1;
            assert!(tries < 1000, "the guest waits for ever");
            self.work(world);
        }
    }
}

/// A guest that uses a part of its memory much and the rest little; every page must be what it wrote last.
fn run(spills: bool, failing: u64) -> Run {
    let policy = Policy { swap_slots: 1 << 15, secret: 5, ..Policy::default() };
    let mut world = World::with_tables(BLOCKS, 1024, POOL, policy);
    world.machine.broken.spilling = !spills;
    let mut memory = VmMemory::new(Pages(GUEST));
    memory.controls.sharing = Sharing::None;
    assert!(world.admit(VM, memory));
    let mut versions: HashMap<u32, u64> = HashMap::new();
    let mut rng = Rng::new(23);
    let mut disk = Disk { failing, requests: 0 };
    let mut start = world.machine.counters;
    for access in 0..GUEST + ACCESSES {
        if access == GUEST + ACCESSES / 4 {
            start = world.machine.counters;
        }
        let index = match access.checked_sub(GUEST) {
            None => access,
            Some(_) if rng.below(10) > 0 => rng.below(HOT) * 3 % GUEST,
            Some(_) => rng.below(GUEST),
        } as u32;
        if access < GUEST || rng.below(4) == 0 {
            let version = versions.entry(index).or_insert(0);
            *version += 1;
            let tag = tag(index, *version);
            disk.wait(&mut world, |world| world.write(VM, index, tag));
        } else {
            let found = disk.wait(&mut world, |world| world.read(VM, index));
            assert_eq!(found, tag(index, versions[&index]), "page {index}");
        }
        if access.is_multiple_of(64) {
            disk.work(&mut world);
        }
        if access.is_multiple_of(1 << 14) {
            assert_eq!(world.server.check(), Ok(()));
        }
    }
    let end = world.machine.counters;
    for (index, version) in versions {
        let found = disk.wait(&mut world, |world| world.read(VM, index));
        assert_eq!(found, tag(index, version), "page {index}");
    }
    assert_eq!(world.server.check(), Ok(()));
    Run {
        reads: end.swap_reads - start.swap_reads,
        writes: end.swap_writes - start.swap_writes,
        spilled: world.server.counters.spilled,
    }
}

#[test]
fn the_pool_keeps_what_is_in_use_and_the_disk_is_asked_less() {
    let (with, without) = (run(true, 0), run(false, 0));
    assert_eq!(without.spilled, 0);
    assert!(with.spilled > 0);
    // 19,751 reads instead of 25,796, 19,826 writes instead of 26,164.
    assert!(with.reads * 10 < without.reads * 8, "{} reads, {}", with.reads, without.reads);
    assert!(with.writes * 10 < without.writes * 8, "{} writes, {}", with.writes, without.writes);
}

#[test]
fn no_page_is_lost_on_a_disk_that_refuses_writes() {
    let run = run(true, 7);
    assert!(run.spilled > 0);
}
