//! Address spaces: tables, frames, rights, ASIDs.

use abi::bootinfo::slot as fixed;
use abi::{CapRights, Error, Label, ObjectType};

use super::fails;
use crate::cap::raw::{Cap, MapKind};
use crate::mem::PhysAddr;
use crate::model::world::{BUFFER_VADDR, FREE, LARGE_UNTYPED, World};
use crate::object::vspace::walk;

const PAGE: u64 = BUFFER_VADDR + 0x1000;
const MAP: Label = Label::X86PageMap;

fn entry(world: &World, vaddr: u64, shift: u32) -> u64 {
    walk(PhysAddr(world.kernel.root_of_asid(1)), vaddr, shift).map_or(0, |entry| entry.get())
}

#[test]
fn a_frame_is_mapped_with_the_rights_of_its_capability() {
    let mut world = World::new();
    world.make(ObjectType::Page4K, 0, FREE, 1);
    let addr = world.slot(FREE).cap.get().addr().0;
    world.ok(FREE, MAP, &[PAGE, 3, 0], &[fixed::VSPACE]);
    assert_eq!(entry(&world, PAGE, 12), addr | 7);
    // Again at the same place with fewer rights.
    world.ok(FREE, MAP, &[PAGE, CapRights::READ.0, 1], &[fixed::VSPACE]);
    assert_eq!(entry(&world, PAGE, 12), addr | 5 | 8, "write-through");
    world.check();
    let words = [FREE + 1, 64, FREE, 64, CapRights::READ.0];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    world.ok(FREE + 1, MAP, &[PAGE + 0x1000, 3, 0], &[fixed::VSPACE]);
    assert_eq!(entry(&world, PAGE + 0x1000, 12), addr | 5, "a read-only capability");
    world.ok(FREE + 1, Label::X86PageUnmap, &[], &[]);
    assert_eq!(entry(&world, PAGE + 0x1000, 12), 0);
    assert_eq!(world.ok(FREE, Label::X86PageGetAddress, &[], &[]).words[0], addr);
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE, 64], &[]);
    assert_eq!(entry(&world, PAGE, 12), 0, "deleting unmaps");
    world.check();
}

#[test]
fn mapping_refuses_wrong_places() {
    let mut world = World::new();
    world.make(ObjectType::Page4K, 0, FREE, 1);
    world.make(ObjectType::Pml4, 0, FREE + 1, 1);
    let space = [fixed::VSPACE];
    let mut check = |words: &[u64], caps: &[u64], error, expected: &[u64]| {
        fails(&mut world, FREE, MAP, words, caps, error, expected);
    };
    check(&[PAGE, 3], &space, Error::TruncatedMessage, &[]);
    check(&[PAGE, 3, 0], &[fixed::CNODE], Error::InvalidCapability, &[1]);
    check(&[PAGE, 3, 0], &[FREE + 1], Error::InvalidCapability, &[1]);
    check(&[PAGE + 0x10, 3, 0], &space, Error::AlignmentError, &[]);
    check(&[0x7fff_ffff_f000, 3, 0], &space, Error::InvalidArgument, &[0]);
    check(&[u64::MAX - 0xfff, 3, 0], &space, Error::InvalidArgument, &[0]);
    // Missing levels: table, directory, directory-pointer table.
    check(&[0x60_0000, 3, 0], &space, Error::FailedLookup, &[0, 2, 21]);
    check(&[1 << 30, 3, 0], &space, Error::FailedLookup, &[0, 2, 30]);
    check(&[1 << 39, 3, 0], &space, Error::FailedLookup, &[0, 2, 39]);
    world.ok(FREE, MAP, &[PAGE, 3, 0], &space);
    fails(&mut world, FREE, MAP, &[PAGE + 0x1000, 3, 0], &space, Error::InvalidArgument, &[0]);
    world.ok(fixed::ASID_POOL, Label::X86ASIDPoolAssign, &[], &[FREE + 1]);
    fails(&mut world, FREE, MAP, &[PAGE, 3, 0], &[FREE + 1], Error::InvalidCapability, &[1]);
}

#[test]
fn an_occupied_entry_is_overwritten_and_the_old_owner_unmaps_nothing_else() {
    let mut world = World::new();
    world.make(ObjectType::Page4K, 0, FREE, 2);
    world.ok(FREE, MAP, &[PAGE, 3, 0], &[fixed::VSPACE]);
    world.ok(FREE + 1, MAP, &[PAGE, 3, 0], &[fixed::VSPACE]);
    world.check();
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE, 64], &[]);
    let second = world.slot(FREE + 1).cap.get().addr().0;
    assert_eq!(entry(&world, PAGE, 12), second | 7);
    world.check();
}

#[test]
fn large_frames_go_where_no_table_is() {
    let mut world = World::new();
    world.make_from(LARGE_UNTYPED, ObjectType::LargePage, 0, FREE, 1);
    let space = [fixed::VSPACE];
    let (map, taken) = (MAP, Error::DeleteFirst);
    fails(&mut world, FREE, map, &[BUFFER_VADDR, 3, 0], &space, taken, &[]);
    fails(
        &mut world,
        FREE,
        map,
        &[BUFFER_VADDR + 0x1000, 3, 0],
        &space,
        Error::AlignmentError,
        &[],
    );
    let vaddr = BUFFER_VADDR + (1 << 21);
    world.ok(FREE, map, &[vaddr, 3, 4], &space);
    assert_eq!(entry(&world, vaddr, 21) & 0x1fff, 0x1087, "large, PAT bit of its size");
    world.check();
    // No table over it, nor a small frame into it.
    world.make(ObjectType::PageTable, 0, FREE + 1, 1);
    let table = Label::X86PageTableMap;
    fails(&mut world, FREE + 1, table, &[vaddr, 0], &space, taken, &[]);
    world.make(ObjectType::Page4K, 0, FREE + 2, 1);
    fails(&mut world, FREE + 2, map, &[vaddr, 3, 0], &space, Error::FailedLookup, &[0, 2, 21]);
    world.ok(FREE, Label::X86PageUnmap, &[], &[]);
    world.ok(FREE + 1, table, &[vaddr, 0], &space);
    world.ok(FREE + 2, map, &[vaddr, 3, 0], &space);
    world.check();
}

#[test]
fn tables_come_and_go_with_what_is_below_them() {
    let mut world = World::new();
    let space = [fixed::VSPACE];
    let vaddr = 1 << 39;
    for (slot, object, label) in [
        (FREE, ObjectType::Pdpt, Label::X86PDPTMap),
        (FREE + 1, ObjectType::PageDirectory, Label::X86PageDirectoryMap),
        (FREE + 2, ObjectType::PageTable, Label::X86PageTableMap),
    ] {
        world.make(object, 0, slot, 1);
        world.ok(slot, label, &[vaddr + 0x1234, 0], &space);
        let error = Error::InvalidCapability;
        fails(&mut world, slot, label, &[vaddr, 0], &space, error, &[0]);
    }
    world.make(ObjectType::Page4K, 0, FREE + 3, 1);
    world.ok(FREE + 3, MAP, &[vaddr, 3, 0], &space);
    world.check();
    world.ok(FREE + 1, Label::X86PageDirectoryUnmap, &[], &[]);
    assert_eq!(entry(&world, vaddr, 30), 0);
    world.check();
    // The frame's own unmap finds nothing and harms nothing; the empty directory can be mapped elsewhere.
    world.ok(FREE + 3, Label::X86PageUnmap, &[], &[]);
    let other = vaddr + (1 << 30);
    world.ok(FREE + 1, Label::X86PageDirectoryMap, &[other, 0], &space);
    assert_eq!(entry(&world, other, 21), 0, "cleared");
    world.check();
    // A table with two capabilities is not unmapped.
    let words = [FREE + 4, 64, FREE + 1, 64, 15];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    let label = Label::X86PageDirectoryUnmap;
    fails(&mut world, FREE + 1, label, &[], &[], Error::RevokeFirst, &[]);
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE, 64], &[]);
    assert_eq!(entry(&world, vaddr, 39), 0);
    world.check();
}

#[test]
fn unmapped_tables_cannot_be_copied() {
    let mut world = World::new();
    world.make(ObjectType::PageTable, 0, FREE, 1);
    fails(
        &mut world,
        fixed::CNODE,
        Label::CNodeCopy,
        &[FREE + 1, 64, FREE, 64, 15],
        &[fixed::CNODE],
        Error::IllegalOperation,
        &[],
    );
}

#[test]
fn spaces_need_an_asid_and_lose_it_with_their_pool() {
    let mut world = World::new();
    world.make(ObjectType::Pml4, 0, FREE, 1);
    world.make(ObjectType::Untyped, 12, FREE + 1, 1);
    world.ok(
        fixed::ASID_CONTROL,
        Label::X86ASIDControlMakePool,
        &[FREE + 2, 64],
        &[FREE + 1, fixed::CNODE],
    );
    assert!(matches!(world.cap(FREE + 2), Cap::AsidPool { base: 512, .. }));
    let assign = Label::X86ASIDPoolAssign;
    world.ok(FREE + 2, assign, &[], &[FREE]);
    fails(&mut world, FREE + 2, assign, &[], &[FREE], Error::InvalidCapability, &[1]);
    world.make(ObjectType::Pdpt, 0, FREE + 3, 1);
    world.ok(FREE + 3, Label::X86PDPTMap, &[0, 0], &[FREE]);
    world.check();
    world.ok(fixed::CNODE, Label::CNodeDelete, &[FREE + 2, 64], &[]);
    let mapped = [FREE];
    world.make(ObjectType::Page4K, 0, FREE + 4, 1);
    fails(&mut world, FREE + 4, MAP, &[0, 3, 0], &mapped, Error::FailedLookup, &[0, 1]);
}

#[test]
fn asid_pools_are_limited_and_need_a_page_of_untyped() {
    let mut world = World::new();
    world.make(ObjectType::Untyped, 13, FREE, 1);
    let make = Label::X86ASIDControlMakePool;
    let caps = [FREE, fixed::CNODE];
    let control = fixed::ASID_CONTROL;
    fails(&mut world, control, make, &[FREE + 1, 64], &caps, Error::InvalidCapability, &[1]);
    for number in 0..7 {
        let untyped = FREE + 2 + 2 * number;
        world.make(ObjectType::Untyped, 12, untyped, 1);
        world.ok(control, make, &[untyped + 1, 64], &[untyped, fixed::CNODE]);
    }
    world.make(ObjectType::Untyped, 12, FREE + 20, 1);
    let caps = [FREE + 20, fixed::CNODE];
    fails(&mut world, control, make, &[FREE + 21, 64], &caps, Error::DeleteFirst, &[]);
}

#[test]
fn a_running_space_that_is_deleted_is_left() {
    let mut world = World::new();
    assert!(world.kernel.hw.roots[0].is_some());
    // The thread keeps its own copy, so the space lives on until revoked from above; here all go.
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[fixed::VSPACE, 64], &[]);
    world.check();
    world.call(fixed::CNODE, Label::CNodeDelete as u64, &[fixed::VSPACE, 64], &[]);
    assert_eq!(world.kernel.hw.roots[0], None);
}

#[test]
fn one_capability_is_one_mapping() {
    let mut world = World::new();
    world.make(ObjectType::Page4K, 0, FREE, 1);
    world.ok(FREE, MAP, &[PAGE, 3, 0], &[fixed::VSPACE]);
    let words = [FREE + 1, 64, FREE, 64, 15];
    world.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
    let Cap::Frame(copy) = world.cap(FREE + 1) else { panic!() };
    assert_eq!(copy.kind, MapKind::None, "a copy is not mapped");
    world.ok(FREE + 1, MAP, &[PAGE + 0x1000, 3, 0], &[fixed::VSPACE]);
    world.ok(fixed::CNODE, Label::CNodeRevoke, &[FREE, 64], &[]);
    assert_eq!(entry(&world, PAGE + 0x1000, 12), 0, "revoking takes the copy's mapping");
    assert_ne!(entry(&world, PAGE, 12), 0, "its own stays");
    world.check();
}
