//! The compressed pool over the model machine, when it is full, when the disk fails, and when pages are wanted on their way out.

use super::*;
use crate::page::PageState;
use crate::server::tests::{World, swapping};
use crate::server::{Fault, Policy};
use protocol::mem::{Sharing, access};

/// Frames of the pool.
const POOL: usize = 32;

/// A machine whose pool holds `pages` compressed pages of VM 0, from its first on; page n holds n + 1.
fn packed(pages: u32, policy: Policy) -> World<'static> {
    let mut world = World::with_pool(6, 64, POOL, policy);
    world.admit(0, 4, Sharing::None);
    for index in 0..pages {
        world.write(0, index, u64::from(index) + 1);
        world.server.reclaim_page(VmId(0), index, &mut world.machine);
        assert_eq!(world.state(0, index), PageState::Compressed);
    }
    world.check();
    world
}

fn write_back(world: &mut World<'_>) -> u64 {
    let before = world.server.counters.spilled;
    world.server.write_back(&mut world.machine);
    world.check();
    world.server.counters.spilled - before
}

fn count(world: &World<'_>, state: PageState) -> u64 {
    world.server.vm(VmId(0)).unwrap().count(state)
}

#[test]
fn old_pages_of_a_full_pool_move_to_the_disk_and_come_back_whole() {
    // Four pages a frame: all 32 are in use.
    let mut world = packed(4 * POOL as u32, swapping());
    world.machine.queue_depth = 256;
    let charged = world.server.vm_stats(VmId(0)).unwrap().consumed;
    assert_eq!(charged, POOL as u64);
    let spilled = write_back(&mut world);
    assert!(spilled > 0 && (spilled as usize).is_multiple_of(CLUSTER), "{spilled}");
    assert_eq!(count(&world, PageState::InFlight), spilled);
    // Their frames are still the pool's, and no page on its way counts whole.
    assert_eq!(world.server.vm_stats(VmId(0)).unwrap().consumed, charged);
    // They lie beside each other, so that they are written together.
    let slots: Vec<u32> =
        world.server.transfers.iter().flatten().map(|moving| moving.slot).collect();
    assert!(slots.is_sorted_by(|before, after| before + 1 == *after), "{slots:?}");
    while world.disk(false) {
        world.check();
    }
    assert_eq!(count(&world, PageState::Swapped), spilled);
    assert_eq!(world.server.machine_stats().swap_used, spilled);
    let charged = world.server.vm_stats(VmId(0)).unwrap().consumed;
    assert_eq!(charged, POOL as u64 - spilled / 4);
    world.read_all();
    world.check();
    assert_eq!(world.machine.counters.swap_reads, spilled);
}

#[test]
fn a_pool_with_room_keeps_its_pages() {
    let mut world = packed(4 * (POOL as u32 - 3), swapping());
    assert_eq!(write_back(&mut world), 0);
    // Without a disk a full one does too.
    let mut world = packed(4 * POOL as u32, Policy::default());
    assert_eq!(write_back(&mut world), 0);
    assert_eq!(count(&world, PageState::Compressed), 4 * POOL as u64);
    world.read_all();
}

#[test]
fn pages_that_were_not_written_stay_compressed() {
    let mut world = packed(4 * POOL as u32, swapping());
    world.machine.queue_depth = 256;
    assert!(write_back(&mut world) > 0);
    while world.disk(true) {
        world.check();
    }
    assert_eq!(count(&world, PageState::Compressed), 4 * POOL as u64);
    world.read_all();
    assert_eq!(world.machine.counters.swap_reads, 0);
    world.check();
}

#[test]
fn a_page_touched_on_its_way_comes_from_the_pool() {
    let mut world = packed(4 * POOL as u32, swapping());
    let spilled = write_back(&mut world);
    let moving: Vec<u32> =
        (0..4 * POOL as u32).filter(|page| world.state(0, *page) == PageState::InFlight).collect();
    assert_eq!(moving.len() as u64, spilled);
    let (first, second, gone) = (moving[0], moving[1], moving[2]);
    let gfn = world.gfn(0, first);
    assert_eq!(world.server.fault_in(VmId(0), gfn, 0, &mut world.machine), Fault::Mapped);
    assert!(world.read(0, first));
    world.write(0, second, 4_000);
    // Nobody wants what is in this one.
    let access = access::WRITE | access::OVERWRITE;
    let gfn = world.gfn(0, gone);
    assert_eq!(world.server.fault_in(VmId(0), gfn, access, &mut world.machine), Fault::Mapped);
    world.oracle.remove(&(0, gone));
    world.check();
    assert_eq!(world.server.counters.decompressed, 3);
    while world.disk(false) {
        world.check();
    }
    assert_eq!(world.server.machine_stats().swap_used, spilled - 3);
    assert_eq!(world.machine.counters.swap_reads, 0);
    world.read_all();
    assert!(world.read(0, gone));
    world.check();
}

#[test]
fn a_vm_that_ends_with_pages_on_their_way_leaves_nothing() {
    let mut world = World::with_pool(6, 64, POOL, swapping());
    world.admit(1, 2, Sharing::None);
    world.write(1, 0, 77);
    world.server.reclaim_page(VmId(1), 0, &mut world.machine);
    let (free, held) = (world.server.free(), world.server.held());
    world.admit(0, 4, Sharing::None);
    for index in 0..4 * POOL as u32 - 1 {
        world.write(0, index, u64::from(index) + 1);
        world.server.reclaim_page(VmId(0), index, &mut world.machine);
    }
    assert!(write_back(&mut world) > 0);
    // One is taken back before.
    let moving = (0..).find(|page| world.state(0, *page) == PageState::InFlight).unwrap();
    world.read(0, moving);
    world.server.release_vm(VmId(0), &mut world.machine);
    world.oracle.retain(|(vm, _), _| *vm == 1);
    // The other VM's page shares a frame with those.
    loop {
        world.check();
        if !world.disk(false) {
            break;
        }
    }
    // The other's page may have moved on, and its frame with it.
    let moved = u64::from(world.state(1, 0) == PageState::Swapped);
    assert_eq!((world.server.free(), world.server.held()), (free + moved, held));
    assert_eq!(world.server.machine_stats().swap_used, moved);
    world.read_all();
    assert_eq!(world.server.machine_stats().swap_used, 0);
}

#[test]
fn a_full_queue_or_area_stops_it_without_loss() {
    for (depth, slots) in [(5, 4096), (256, 7)] {
        let policy = Policy { swap_slots: slots, ..swapping() };
        let mut world = packed(4 * POOL as u32, policy);
        world.machine.queue_depth = depth;
        assert_eq!(write_back(&mut world), depth.min(slots as usize) as u64);
        while world.disk(false) {}
        world.check();
        world.read_all();
    }
}

#[test]
fn a_vm_within_its_reservation_keeps_its_pages_in_memory() {
    let mut world = packed(4 * POOL as u32, swapping());
    let mut controls = world.server.vm(VmId(0)).unwrap().memory.controls;
    controls.reservation.0 = POOL as u64;
    world.server.set_controls(VmId(0), controls).unwrap();
    assert_eq!(write_back(&mut world), 0);
    // One page more than that and the pool is used for others too.
    world.write(0, 900, 1);
    assert!(write_back(&mut world) > 0);
}

/// What the guest uses between leaves the pool and is packed again: it is not what goes to the disk.
#[test]
fn pages_in_use_stay_in_memory() {
    let mut world = packed(4 * POOL as u32 - 8, swapping());
    let used = 8;
    for round in 0..40 {
        for index in 0..used {
            assert!(world.read(0, index));
            world.server.reclaim_page(VmId(0), index, &mut world.machine);
        }
        // Others come in, and old ones make room.
        for index in 0..4 {
            let index = 500 + round * 4 + index;
            world.write(0, index, u64::from(index) + 1);
            world.server.reclaim_page(VmId(0), index, &mut world.machine);
        }
        write_back(&mut world);
        while world.disk(false) {}
    }
    assert!(world.server.counters.spilled > 100, "{:?}", world.server.counters);
    let reads = world.machine.counters.swap_reads;
    assert!(reads <= 2 * u64::from(used), "{reads} of what is in use were read from the disk");
    world.read_all();
    world.check();
}
