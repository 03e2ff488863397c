//! Untyped memory, CNodes and the derivation tree.

use abi::bootinfo::slot as fixed;
use abi::{CNodeCapData, CapRights, Error, Label, ObjectType};

use super::fails;
use crate::cap::raw::Cap;
use crate::mem::window::Words;
use crate::model::world::{DEVICE_UNTYPED, FREE, LARGE_UNTYPED, RADIX, UNTYPED, World};

const DEPTH: u64 = 64;

fn retype(object: u64, bits: u64, slot: u64, count: u64) -> [u64; 6] {
    [object, bits, 0, 0, slot, count]
}

#[test]
fn retype_gives_objects_one_behind_the_other_and_counts_what_it_gave() {
    let mut world = World::new();
    world.make(ObjectType::Endpoint, 0, FREE, 3);
    world.make(ObjectType::Tcb, 0, FREE + 3, 1);
    let addr = |world: &World, slot| world.slot(slot).cap.get().addr().0;
    let base = addr(&world, UNTYPED);
    assert_eq!(addr(&world, FREE), base);
    assert_eq!(addr(&world, FREE + 2), base + 32);
    assert_eq!(addr(&world, FREE + 3), base + 2048, "aligned to its size");
    let Cap::Untyped { free, .. } = world.cap(UNTYPED) else { panic!() };
    assert_eq!(free, 4096);
    world.check();
}

#[test]
fn retype_refuses_in_the_documented_order() {
    let mut world = World::new();
    let label = Label::UntypedRetype;
    let mut check = |words: &[u64], caps: &[u64], error, expected: &[u64]| {
        fails(&mut world, UNTYPED, label, words, caps, error, expected);
    };
    let root = [fixed::CNODE];
    check(&[2, 0, 0, 0, FREE], &root, Error::TruncatedMessage, &[]);
    check(&retype(2, 0, FREE, 1), &[], Error::TruncatedMessage, &[]);
    check(&retype(99, 0, FREE, 1), &root, Error::InvalidArgument, &[0]);
    check(&retype(0, 48, FREE, 1), &root, Error::RangeError, &[0, 47]);
    check(&retype(0, 3, FREE, 1), &root, Error::InvalidArgument, &[1]);
    check(&retype(4, 0, FREE, 1), &root, Error::InvalidArgument, &[1]);
    check(&retype(5, 6, FREE, 1), &root, Error::InvalidArgument, &[1]);
    check(&retype(2, 0, 1 << RADIX, 1), &root, Error::RangeError, &[0, (1 << RADIX) - 1]);
    check(&retype(2, 0, FREE, 0), &root, Error::RangeError, &[1, 256]);
    check(&retype(2, 0, FREE, 257), &root, Error::RangeError, &[1, 256]);
    check(&retype(2, 0, (1 << RADIX) - 1, 2), &root, Error::RangeError, &[1, 1]);
    check(&retype(2, 0, fixed::TCB, 1), &root, Error::DeleteFirst, &[]);
    check(&retype(0, 23, FREE, 1), &root, Error::NotEnoughMemory, &[1 << 22]);
    check(&[2, 0, fixed::TCB, 64, FREE, 1], &root, Error::FailedLookup, &[0, 2, 64]);
}

#[test]
fn device_memory_becomes_only_frames_and_untypeds() {
    let mut world = World::new();
    for object in [ObjectType::Tcb, ObjectType::PageTable, ObjectType::Endpoint] {
        fails(
            &mut world,
            DEVICE_UNTYPED,
            Label::UntypedRetype,
            &retype(object as u64, 0, FREE, 1),
            &[fixed::CNODE],
            Error::InvalidArgument,
            &[1],
        );
    }
    world.make_from(DEVICE_UNTYPED, ObjectType::Page4K, 0, FREE, 1);
    let Cap::Frame(frame) = world.cap(FREE) else { panic!() };
    assert!(frame.is_device);
}

#[test]
fn used_memory_is_cleared_before_it_is_given_out_again() {
    let mut world = World::new();
    world.make(ObjectType::Page4K, 0, FREE, 1);
    let frame = world.slot(FREE).cap.get().addr();
    Words(frame).set(7, 0xdead);
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE, DEPTH], &[]);
    world.make(ObjectType::Page4K, 0, FREE, 1);
    assert_eq!(world.slot(FREE).cap.get().addr(), frame);
    assert_eq!(Words(frame).get(7), 0);
}

#[test]
fn a_reset_stops_for_interrupts_and_goes_on() {
    let mut world = World::new();
    // The untyped starts as used up: 4 MiB have to be cleared, with an interrupt in the way.
    world.kernel.hw.is_interrupt_pending = true;
    World::write_message(
        world.initial,
        Label::UntypedRetype as u64,
        &retype(2, 0, FREE, 1),
        &[fixed::CNODE],
    );
    world.initial.set_reg(abi::syscall::register::CAPABILITY, UNTYPED);
    let start = world.initial.reg(abi::context::index::RIP);
    world.enter(0, abi::Syscall::Call as i64);
    assert_eq!(world.initial.reg(abi::context::index::RIP), start, "the call is made again");
    let Cap::Untyped { free, .. } = world.cap(UNTYPED) else { panic!() };
    assert!(free > 0 && free < 1 << 22, "a part is done");
    world.check();
    world.make(ObjectType::Endpoint, 0, FREE, 1);
}

#[test]
fn memory_with_children_cannot_be_copied_nor_given_out_twice() {
    let mut world = World::new();
    world.make(ObjectType::Untyped, 12, FREE, 1);
    world.make_from(FREE, ObjectType::Endpoint, 0, FREE + 1, 1);
    fails(
        &mut world,
        fixed::CNODE,
        Label::CNodeCopy,
        &[FREE + 2, DEPTH, FREE, DEPTH, 15],
        &[fixed::CNODE],
        Error::RevokeFirst,
        &[],
    );
    fails(
        &mut world,
        FREE,
        Label::UntypedRetype,
        &retype(ObjectType::Page4K as u64, 0, FREE + 2, 1),
        &[fixed::CNODE],
        Error::NotEnoughMemory,
        &[4096 - 16],
    );
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE + 1, DEPTH], &[]);
    world.make_from(FREE, ObjectType::Page4K, 0, FREE + 2, 1);
    world.check();
}

#[test]
fn a_copied_untyped_leaves_the_original_with_nothing_to_give() {
    let mut world = World::new();
    world.make(ObjectType::Untyped, 12, FREE, 1);
    let root = [fixed::CNODE];
    world.ok(fixed::CNODE, Label::CNodeCopy, &[FREE + 1, DEPTH, FREE, DEPTH, 15], &root);
    world.make_from(FREE + 1, ObjectType::Page4K, 0, FREE + 2, 1);
    fails(
        &mut world,
        FREE,
        Label::UntypedRetype,
        &retype(ObjectType::Endpoint as u64, 0, FREE + 3, 1),
        &root,
        Error::NotEnoughMemory,
        &[0],
    );
}

#[test]
fn rights_and_badges_only_shrink() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::Endpoint, 0, FREE, 1);
    let words = [FREE + 1, DEPTH, FREE, DEPTH, CapRights::WRITE.0, 77];
    world.ok(fixed::CNODE, Label::CNodeMint, &words, &root);
    let Cap::Endpoint { badge, rights, .. } = world.cap(FREE + 1) else { panic!() };
    assert_eq!((badge, rights), (77, CapRights::WRITE));
    // A copy of the badged one has no more rights, and its badge cannot be replaced.
    world.ok(fixed::CNODE, Label::CNodeCopy, &[FREE + 2, DEPTH, FREE + 1, DEPTH, 15], &root);
    let Cap::Endpoint { badge, rights, .. } = world.cap(FREE + 2) else { panic!() };
    assert_eq!((badge, rights), (77, CapRights::WRITE));
    fails(
        &mut world,
        fixed::CNODE,
        Label::CNodeMint,
        &[FREE + 3, DEPTH, FREE + 1, DEPTH, 15, 78],
        &root,
        Error::IllegalOperation,
        &[],
    );
    fails(
        &mut world,
        fixed::CNODE,
        Label::CNodeMutate,
        &[FREE + 3, DEPTH, FREE + 1, DEPTH, 78],
        &root,
        Error::IllegalOperation,
        &[],
    );
}

#[test]
fn cnode_operations_check_their_slots() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    let copy = Label::CNodeCopy;
    let cnode = fixed::CNODE;
    let mut check = |words: &[u64], error, expected: &[u64]| {
        fails(&mut world, cnode, copy, words, &root, error, expected);
    };
    check(&[FREE, 0, fixed::TCB, DEPTH, 15], Error::RangeError, &[1, 64]);
    check(&[FREE, 65, fixed::TCB, DEPTH, 15], Error::RangeError, &[1, 64]);
    check(&[fixed::TCB, DEPTH, FREE, DEPTH, 15], Error::DeleteFirst, &[]);
    check(&[FREE, DEPTH, FREE + 1, DEPTH, 15], Error::FailedLookup, &[1, 2, 64]);
    // A depth that ends inside the table.
    check(&[0, 60, fixed::TCB, DEPTH, 15], Error::FailedLookup, &[0, 3, 60, 64]);
    // A guard that does not fit the address.
    check(&[1 << 40, DEPTH, fixed::TCB, DEPTH, 15], Error::FailedLookup, &[0, 4, 64, 0]);
    check(&[FREE, DEPTH, fixed::IRQ_CONTROL, DEPTH, 15], Error::IllegalOperation, &[]);
    check(&[FREE, DEPTH, fixed::TCB, DEPTH], Error::TruncatedMessage, &[]);
}

#[test]
fn nested_tables_are_walked_by_guard_and_radix() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::CNode, 4, FREE, 1);
    // A guard of 50 bits with value 5, then 4 bits of index.
    let guard = CNodeCapData::new(5, 50);
    let words = [FREE + 1, DEPTH, FREE, DEPTH, 15, guard.0];
    world.ok(fixed::CNODE, Label::CNodeMint, &words, &root);
    let depth = guard.guard_bits() + 4;
    let pointer = 5 << 4 | 9;
    world.ok(FREE + 1, Label::CNodeCopy, &[pointer, depth, fixed::TCB, DEPTH, 15], &root);
    let table = world.slot(FREE).cap.get().addr();
    let slot = crate::mem::Ref::<crate::cap::Slot>::at(table).add(9);
    assert_eq!(slot.unpack(), Cap::Thread { addr: world.initial.addr() });
    fails(
        &mut world,
        FREE + 1,
        Label::CNodeDelete,
        &[4 << 4 | 9, depth],
        &[],
        Error::FailedLookup,
        &[0, 4, depth, 5],
    );
    fails(
        &mut world,
        fixed::CNODE,
        Label::CNodeMint,
        &[FREE + 2, DEPTH, FREE, DEPTH, 15, CNodeCapData::new(0, 61).0],
        &root,
        Error::IllegalOperation,
        &[],
    );
}

#[test]
fn move_mutate_and_rotate_keep_the_tree() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::Endpoint, 0, FREE, 1);
    world.make(ObjectType::CNode, 2, FREE + 1, 1);
    let mint = [FREE + 2, DEPTH, FREE, DEPTH, 15, 5];
    world.ok(fixed::CNODE, Label::CNodeMint, &mint, &root);
    world.ok(fixed::CNODE, Label::CNodeMove, &[FREE + 3, DEPTH, FREE, DEPTH], &root);
    assert_eq!(world.cap(FREE), Cap::Null);
    let data = CNodeCapData::new(1, 3).0;
    world.ok(fixed::CNODE, Label::CNodeMutate, &[FREE, DEPTH, FREE + 1, DEPTH, data], &root);
    let Cap::CNode { guard, .. } = world.cap(FREE) else { panic!() };
    assert_eq!(guard.0, data);
    // Table to slot 5, pivot (thread's capability) stays a thread's.
    world.ok(fixed::CNODE, Label::CNodeCopy, &[FREE + 4, DEPTH, fixed::TCB, DEPTH, 15], &root);
    let words = [FREE + 5, DEPTH, 0, FREE + 4, DEPTH, data, FREE, DEPTH];
    world.ok(fixed::CNODE, Label::CNodeRotate, &words, &[fixed::CNODE, fixed::CNODE]);
    assert!(matches!(world.cap(FREE + 5), Cap::Thread { .. }));
    assert!(matches!(world.cap(FREE + 4), Cap::CNode { .. }));
    // Swap.
    let words = [FREE + 4, DEPTH, 0, FREE + 5, DEPTH, data, FREE + 4, DEPTH];
    world.ok(fixed::CNODE, Label::CNodeRotate, &words, &[fixed::CNODE, fixed::CNODE]);
    assert!(matches!(world.cap(FREE + 4), Cap::Thread { .. }));
    world.check();
    // The badged copy is still below the moved original.
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[FREE + 3, DEPTH], &[]);
    assert_eq!(world.cap(FREE + 2), Cap::Null);
    assert!(matches!(world.cap(FREE + 3), Cap::Endpoint { .. }));
    fails(
        &mut world,
        fixed::CNODE,
        Label::CNodeRotate,
        &[FREE + 4, DEPTH, 0, FREE + 4, DEPTH, 0, FREE + 5, DEPTH],
        &[fixed::CNODE, fixed::CNODE],
        Error::IllegalOperation,
        &[],
    );
}

#[test]
fn revoke_takes_what_was_derived_and_nothing_else() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::Endpoint, 0, FREE, 1);
    let mint = |world: &mut World, to, from, badge| {
        world.ok(fixed::CNODE, Label::CNodeMint, &[to, DEPTH, from, DEPTH, 15, badge], &root);
    };
    mint(&mut world, FREE + 1, FREE, 1);
    mint(&mut world, FREE + 2, FREE, 2);
    let copy = [FREE + 3, DEPTH, FREE + 1, DEPTH, 15];
    world.ok(fixed::CNODE, Label::CNodeCopy, &copy, &root);
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[FREE + 1, DEPTH], &[]);
    assert_eq!(world.cap(FREE + 3), Cap::Null, "copy of badge 1");
    assert_ne!(world.cap(FREE + 1), Cap::Null);
    assert_ne!(world.cap(FREE + 2), Cap::Null, "badge 2");
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[UNTYPED, DEPTH], &[]);
    for slot in FREE..FREE + 4 {
        assert_eq!(world.cap(slot), Cap::Null);
    }
    world.check();
}

#[test]
fn a_table_that_holds_itself_can_be_deleted() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::CNode, 3, FREE, 1);
    world.make(ObjectType::CNode, 3, FREE + 1, 1);
    // Each holds a capability to itself, to the other and to a thread.
    world.thread(FREE + 2, 10, None);
    for (table, other) in [(FREE, FREE + 1), (FREE + 1, FREE)] {
        let into = |world: &mut World, place: u64, from: u64| {
            world.ok(table, Label::CNodeCopy, &[place, 3, from, DEPTH, 15], &root);
        };
        into(&mut world, 1, table);
        into(&mut world, 2, other);
        into(&mut world, 3, FREE + 2);
    }
    world.check();
    for slot in [FREE + 2, FREE, FREE + 1] {
        world.ok(fixed::CNODE, Label::CNodeDelete, &[slot, DEPTH], &[]);
        world.check();
    }
    // The two tables still hold each other (a cycle only revocation breaks): the memory is not free, until revoked.
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[UNTYPED, DEPTH], &[]);
    world.check();
    world.make(ObjectType::Untyped, 22, FREE, 1);
}

#[test]
fn deleting_a_big_table_is_interruptible() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make(ObjectType::CNode, 8, FREE, 1);
    for place in 0..256 {
        world.ok(FREE, Label::CNodeCopy, &[place, 8, fixed::TCB, DEPTH, 15], &root);
    }
    World::write_message(world.initial, Label::CNodeDelete as u64, &[FREE, DEPTH], &[]);
    world.initial.set_reg(abi::syscall::register::CAPABILITY, fixed::CNODE);
    world.kernel.hw.is_interrupt_pending = true;
    let start = world.initial.reg(abi::context::index::RIP);
    let mut rounds = 0;
    while world.initial.reg(abi::context::index::RIP) == start {
        world.enter(0, abi::Syscall::Call as i64);
        world.check();
        rounds += 1;
    }
    assert!(rounds > 4, "{rounds} rounds");
    assert_eq!(world.cap(FREE), Cap::Null);
}

#[test]
fn derived_frames_are_parts_below_the_large_one() {
    let mut world = World::new();
    let root = [fixed::CNODE];
    world.make_from(LARGE_UNTYPED, ObjectType::LargePage, 0, FREE, 1);
    let base = world.slot(FREE).cap.get().addr();
    Words(base.offset(0x3000)).set(0, 42);
    world.ok(FREE, Label::FrameDerive, &[FREE + 1, DEPTH, 0x3000, 12], &root);
    let Cap::Frame(part) = world.cap(FREE + 1) else { panic!() };
    assert_eq!(part.addr, base.offset(0x3000));
    assert_eq!(Words(part.addr).get(0), 42, "contents are kept");
    // A copy of the part goes with the part; the part goes with the whole.
    world.ok(fixed::CNODE, Label::CNodeCopy, &[FREE + 2, DEPTH, FREE + 1, DEPTH, 15], &root);
    world.ok(FREE, Label::FrameDerive, &[FREE + 3, DEPTH, 0x4000, 12], &root);
    world.check();
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[FREE + 1, DEPTH], &[]);
    assert_eq!(world.cap(FREE + 2), Cap::Null);
    assert_ne!(world.cap(FREE + 3), Cap::Null);
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[FREE, DEPTH], &[]);
    assert_eq!((world.cap(FREE + 1), world.cap(FREE + 3)), (Cap::Null, Cap::Null));
    let derive = Label::FrameDerive;
    let mut check = |words: &[u64], error, expected: &[u64]| {
        fails(&mut world, FREE, derive, words, &root, error, expected);
    };
    check(&[FREE + 1, DEPTH, 0, 21], Error::InvalidArgument, &[3]);
    check(&[FREE + 1, DEPTH, 0, 13], Error::InvalidArgument, &[3]);
    check(&[FREE + 1, DEPTH, 0x800, 12], Error::AlignmentError, &[]);
    check(&[FREE + 1, DEPTH, 1 << 21, 12], Error::RangeError, &[0, (1 << 21) - 4096]);
    check(&[fixed::TCB, DEPTH, 0, 12], Error::DeleteFirst, &[]);
}

#[test]
fn frame_zero_clears_what_it_is_told_to() {
    let mut world = World::new();
    world.make_from(LARGE_UNTYPED, ObjectType::LargePage, 0, FREE, 1);
    let base = world.slot(FREE).cap.get().addr();
    for page in 0..4u64 {
        Words(base.offset(page << 12)).set(1, 9);
    }
    world.ok(FREE, Label::FrameZero, &[0x1000, 0x2000], &[]);
    let left: std::vec::Vec<u64> =
        (0..4u64).map(|page| Words(base.offset(page << 12)).get(1)).collect();
    assert_eq!(left, [9, 0, 0, 9]);
    let zero = Label::FrameZero;
    fails(&mut world, FREE, zero, &[0x800, 0x1000], &[], Error::AlignmentError, &[]);
    fails(&mut world, FREE, zero, &[0x1000, 1 << 21], &[], Error::RangeError, &[0]);
    // Read-only capabilities may not.
    let words = [FREE + 1, DEPTH, FREE, DEPTH, CapRights::READ.0];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    fails(&mut world, FREE + 1, zero, &[0, 0x1000], &[], Error::IllegalOperation, &[]);
}
