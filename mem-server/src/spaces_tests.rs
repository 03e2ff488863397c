//! The server over the model kernel: capabilities, tables and mappings agree after every step.

use super::*;
use crate::ledger::Block;
use crate::model::{Content, ModelKernel};
use crate::page::{Entry, PageState};
use crate::policy::large::{Demotion, Region};
use crate::server::{Fault, Policy, Server, Tables};
use crate::share::Record;
use crate::tier::PoolFrame;
use proptest::prelude::*;
use protocol::mem::{GfnRange, MemError, MemReply, MemRequest, Refusal, access, release_reason};
use protocol::units::{Gfn, Pages};

const BLOCKS: u32 = 12;

struct Store {
    blocks: Vec<Block>,
    entries: Vec<Entry>,
    regions: Vec<Region>,
    holds: Vec<Hold>,
    spaces: Vec<Space>,
    records: Vec<Record>,
    buckets: Vec<u32>,
    pool: Vec<PoolFrame>,
    swap: Vec<u64>,
}

impl Store {
    fn new() -> Self {
        Self {
            blocks: vec![Block::EMPTY; BLOCKS as usize],
            entries: vec![Entry::ABSENT; 16 * 512],
            regions: vec![Region::NEW; 16],
            holds: vec![Hold::NEW; BLOCKS as usize],
            spaces: (0..MAX_VMS).map(|_| Space::NEW).collect(),
            records: vec![Record::EMPTY; 512],
            buckets: vec![0; 256],
            pool: vec![PoolFrame::NONE; 64],
            swap: vec![0; 128],
        }
    }

    fn start(&mut self) -> (Server<'_>, Spaces<'_, ModelKernel>) {
        let layout = Layout::new(BLOCKS);
        let kernel = ModelKernel::new(layout, BLOCKS);
        let mut spaces = Spaces::new(kernel, layout, &mut self.holds, &mut self.spaces);
        let tables = Tables {
            blocks: &mut self.blocks,
            entries: &mut self.entries,
            regions: &mut self.regions,
            records: &mut self.records,
            buckets: &mut self.buckets,
            pool: &mut self.pool,
            swap: &mut self.swap,
        };
        let policy = Policy { swap_slots: 8192, large_pages: true, ..Policy::default() };
        let server = Server::new(tables, policy, &mut spaces).unwrap();
        (server, spaces)
    }
}

fn memory(mib: u64) -> VmMemory {
    VmMemory::new(Pages(mib * 256))
}

fn check(server: &Server<'_>, spaces: &mut Spaces<'_, ModelKernel>) {
    assert_eq!(server.check(), Ok(()));
    assert!(spaces.used_pages() <= server.held());
}

#[test]
fn first_touch_maps_a_zeroed_frame_and_a_window_shows_it() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    let vm = VmId(2);
    server.admit(vm, memory(4), &mut spaces).unwrap();
    server.open(vm, &mut spaces).unwrap();
    for gfn in [0, 5, 511, 512, 1023] {
        let gfn = Gfn(gfn);
        let fault = server.fault_in(vm, gfn, access::WRITE, &mut spaces);
        assert_eq!(fault, Fault::Mapped);
        let (frame, writable) = spaces.kernel().nested(vm, gfn.gpa()).unwrap();
        assert!(writable);
        assert_eq!(*spaces.kernel().frames.get(frame), Content::Tag(0));
        assert_eq!(spaces.kernel().window(vm, gfn.gpa()), None);
        assert_eq!(server.window_fault(vm, gfn, true, &mut spaces), Fault::Mapped);
        assert_eq!(spaces.kernel().window(vm, gfn.gpa()), Some((frame, true)));
        check(&server, &mut spaces);
    }
    let outside = server.fault_in(vm, Gfn(1024), 0, &mut spaces);
    assert_eq!(outside, Fault::Refused(Refusal::NotMemory));
    let nobody = server.fault_in(VmId(3), Gfn(0), 0, &mut spaces);
    assert_eq!(nobody, Fault::Refused(Refusal::NotMemory));
}

#[test]
fn a_vm_without_room_for_its_tables_is_refused_with_the_numbers_and_opens_when_there_is() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    // All but the block of the frame of zeros is in other hands.
    let held: Vec<u32> = core::iter::from_fn(|| server.hold_block()).collect();
    let free = Pages(server.free());
    assert!(free < Pages(512));
    server.admit(VmId(1), memory(4), &mut spaces).unwrap();
    let refused = server.open(VmId(1), &mut spaces);
    assert_eq!(refused, Err(MemError::NoBlock { needed: Pages(512), free }));
    check(&server, &mut spaces);
    assert!(server.ledger.release_block(held[0]));
    assert_eq!(server.open(VmId(1), &mut spaces), Ok(()));
    check(&server, &mut spaces);
}

#[test]
fn sizes_beyond_the_page_states_are_refused_with_the_numbers() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    let admit = |server: &mut Server<'_>, spaces: &mut Spaces<'_, ModelKernel>, vm, mib| {
        let mut memory = memory(mib);
        memory.controls.reservation = Pages(512);
        server.admit(VmId(vm), memory, spaces)
    };
    for (vm, mib) in [(0, 4), (1, 8), (2, 10)] {
        assert_eq!(admit(&mut server, &mut spaces, vm, mib), Ok(()));
    }
    // Of 32 MiB 8 are free between two VMs, and 10 behind them.
    server.release_vm(VmId(1), &mut spaces);
    let refused = MemError::TooManyPages { size: Pages(12 << 8), free: Pages(10 << 8) };
    assert_eq!(admit(&mut server, &mut spaces, 3, 12), Err(refused));
    assert_eq!(admit(&mut server, &mut spaces, 3, 10), Ok(()));
    assert_eq!(admit(&mut server, &mut spaces, 4, 8), Ok(()));
    let refused = MemError::TooManyPages { size: Pages(2 << 8), free: Pages(0) };
    assert_eq!(admit(&mut server, &mut spaces, 5, 2), Err(refused));
    check(&server, &mut spaces);
}

#[test]
fn released_pages_leave_guest_and_window_and_come_back_as_zeros() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    let vm = VmId(0);
    server.admit(vm, memory(4), &mut spaces).unwrap();
    let free = server.free();
    for reason in [release_reason::BALLOON, release_reason::FREE_REPORT] {
        let gfn = Gfn(700);
        assert_eq!(server.window_fault(vm, gfn, true, &mut spaces), Fault::Mapped);
        let (frame, _) = spaces.kernel().nested(vm, gfn.gpa()).unwrap();
        spaces.kernel().frames.set(frame, Content::Tag(99));
        let range = GfnRange::new(gfn, 1).unwrap();
        let released = server.release(vm, reason, [range].into_iter(), &mut spaces);
        assert_eq!((released.done, released.refused), (1, 0));
        assert_eq!(spaces.kernel().nested(vm, gfn.gpa()), None);
        assert_eq!(spaces.kernel().window(vm, gfn.gpa()), None);
        check(&server, &mut spaces);
        assert_eq!(server.fault_in(vm, gfn, 0, &mut spaces), Fault::Mapped);
        let (frame, _) = spaces.kernel().nested(vm, gfn.gpa()).unwrap();
        assert_eq!(*spaces.kernel().frames.get(frame), Content::Tag(0));
    }
    server.release_vm(vm, &mut spaces);
    assert_eq!(spaces.kernel().leftovers(), 0);
    assert_eq!(server.free(), free, "nothing is lost");
    check(&server, &mut spaces);
}

#[test]
fn a_first_slab_has_room_for_all_tables_and_the_window() {
    let mut halves = 0;
    for mib in (2..=3056).step_by(2) {
        let memory = memory(mib);
        let slots = if has_half(&memory) { SLAB_SLOTS / 2 } else { SLAB_SLOTS };
        assert!(tables(&memory) + u64::from(WINDOW_PAGES) <= slots.into(), "{mib} MiB");
        halves += u64::from(has_half(&memory));
    }
    assert_eq!(halves, 509, "VMs up to 1018 MiB have half a slab");
}

/// The half that the first slab does not need holds tables: a small VM costs an arena less.
#[test]
fn half_a_slab_saves_half_an_arena() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    let vm = VmId(0);
    let made = server.order(MemRequest::CreateVm { vm, memory: memory(8) }, &mut spaces);
    assert!(matches!(made, MemReply::Created { .. }), "{made:?}");
    // A half slab, a slab for 2048 pages, and 14 tables beside the half one.
    assert_eq!(spaces.overhead(&memory(8)), 2 * 32);
    for region in 0..4 {
        let gfn = Gfn(512 * region);
        assert_eq!(server.window_fault(vm, gfn, true, &mut spaces), Fault::Mapped);
        check(&server, &mut spaces);
    }
    assert_eq!(spaces.used_pages(), 2 * 32);
    assert_eq!(spaces.capability_bytes(), (64 << 10) + (128 << 10));
    server.release_vm(vm, &mut spaces);
    assert_eq!((spaces.capability_bytes(), spaces.kernel().leftovers()), (0, 0));
}

/// Tables a VM needs late were kept for it early: somebody else has pages in every block by then.
#[test]
fn no_vm_waits_for_tables_that_were_promised() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    for vm in 0..6 {
        let memory = memory(if vm == 0 { 8 } else { 4 });
        let made = server.order(MemRequest::CreateVm { vm: VmId(vm), memory }, &mut spaces);
        assert!(matches!(made, MemReply::Created { .. }), "{made:?}");
    }
    let regions = |vm: u16| if vm == 0 { 4 } else { 2 };
    let touch =
        |vm: u16, gfn: u64, server: &mut Server<'_>, spaces: &mut Spaces<'_, ModelKernel>| {
            assert_eq!(
                server.window_fault(VmId(vm), Gfn(gfn), true, spaces),
                Fault::Mapped,
                "{vm} {gfn}"
            );
            check(server, spaces);
        };
    for (vm, region) in (0..6).flat_map(|vm| (0..regions(vm)).map(move |region| (vm, region))) {
        touch(vm, 512 * region, &mut server, &mut spaces);
    }
    assert!(server.free() > 8 * 512);
    assert_eq!(server.counters.moved, 0, "nothing had to be moved for it");
}

/// Free frames everywhere and a wholly free block nowhere: a new VM gets its tables all the same, and nobody loses a page.
#[test]
fn scattered_memory_starts_another_vm() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    for vm in 0..4 {
        let made =
            server.order(MemRequest::CreateVm { vm: VmId(vm), memory: memory(6) }, &mut spaces);
        assert!(matches!(made, MemReply::Created { .. }), "{made:?}");
    }
    // Four VMs of three regions: a page in each of eleven blocks or more, and with windows.
    for (vm, region) in (0..4).flat_map(|vm| (0..3).map(move |region| (vm, region))) {
        let gfn = Gfn(512 * region + u64::from(vm));
        assert_eq!(server.window_fault(VmId(vm), gfn, true, &mut spaces), Fault::Mapped);
        let (frame, _) = spaces.kernel().nested(VmId(vm), gfn.gpa()).unwrap();
        spaces.kernel().frames.set(frame, Content::Tag(u64::from(vm) * 10 + region));
    }
    assert_eq!(server.ledger.empty_blocks(), 0);
    let made = server.order(MemRequest::CreateVm { vm: VmId(4), memory: memory(4) }, &mut spaces);
    assert!(matches!(made, MemReply::Created { .. }), "{made:?}");
    check(&server, &mut spaces);
    for (vm, region) in (0..4).flat_map(|vm| (0..3).map(move |region| (vm, region))) {
        let gfn = Gfn(512 * region + u64::from(vm));
        assert_eq!(server.fault_in(VmId(vm), gfn, access::WRITE, &mut spaces), Fault::Mapped);
        let (frame, _) = spaces.kernel().nested(VmId(vm), gfn.gpa()).unwrap();
        let expected = Content::Tag(u64::from(vm) * 10 + region);
        assert_eq!(*spaces.kernel().frames.get(frame), expected);
        // The window shows the same frame or nothing.
        let window = spaces.kernel().window(VmId(vm), gfn.gpa());
        assert!(window.is_none_or(|(shown, _)| shown == frame));
    }
    for vm in 0..5 {
        server.release_vm(VmId(vm), &mut spaces);
    }
    assert_eq!(spaces.kernel().leftovers(), 0);
}

#[test]
fn hostile_balloon_reports_harm_only_their_sender() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    let (good, bad) = (VmId(0), VmId(1));
    server.admit(good, memory(2), &mut spaces).unwrap();
    server.admit(bad, memory(2), &mut spaces).unwrap();
    server.fault_in(good, Gfn(3), access::WRITE, &mut spaces);
    server.fault_in(bad, Gfn(3), access::WRITE, &mut spaces);
    let range = |first, count| GfnRange::new(Gfn(first), count).unwrap();
    let lies = [
        range(3, 1),
        range(3, 1),                   // twice
        range(512, 1),                 // past the end
        range((1 << 40) - 1, 1),       // far outside
        range(0, GfnRange::COUNT_MAX), // everything and more
    ];
    let released = server.release(bad, release_reason::BALLOON, lies.into_iter(), &mut spaces);
    assert_eq!(released.done, 512);
    assert_eq!(released.refused, 1 + 1 + 1 + GfnRange::COUNT_MAX - 511);
    assert!(spaces.kernel().nested(good, Gfn(3).gpa()).is_some());
    assert_eq!(server.vm(bad).unwrap().count(PageState::Ballooned), 512);
    assert_eq!(server.release(bad, 77, lies.into_iter(), &mut spaces).done, 0);
    assert_eq!(server.deflate(bad, lies.into_iter()).done, 512);
    check(&server, &mut spaces);
}

#[test]
fn kernel_failures_leave_nothing_half_made() {
    for calls in 0..40 {
        let mut store = Store::new();
        let (mut server, mut spaces) = store.start();
        let vm = VmId(1);
        server.admit(vm, memory(4), &mut spaces).unwrap();
        let free = server.free() + server.held();
        spaces.kernel().fail_after = Some(calls);
        for gfn in [0, 513, 1] {
            server.window_fault(vm, Gfn(gfn), true, &mut spaces);
            check(&server, &mut spaces);
        }
        spaces.kernel().fail_after = None;
        for gfn in [0, 513, 1] {
            let fault = server.window_fault(vm, Gfn(gfn), true, &mut spaces);
            assert_eq!(fault, Fault::Mapped, "after failure {calls}");
            let seen = spaces.kernel().nested(vm, Gfn(gfn).gpa());
            assert_eq!(spaces.kernel().window(vm, Gfn(gfn).gpa()), seen);
        }
        server.release_vm(vm, &mut spaces);
        assert_eq!(spaces.kernel().leftovers(), 0);
        assert_eq!(server.free() + server.held(), free);
    }
}

/// Fills a VM's first region.
fn fill(server: &mut Server<'_>, vm: VmId, spaces: &mut Spaces<'_, ModelKernel>) {
    for gfn in (0..512).map(Gfn) {
        assert_eq!(server.fault_in(vm, gfn, access::WRITE, spaces), Fault::Mapped);
    }
}

#[test]
fn a_large_page_shows_the_same_frames_and_leaves_small_pages_behind() {
    let mut store = Store::new();
    let (mut server, mut spaces) = store.start();
    let vm = VmId(1);
    let made = server.order(MemRequest::CreateVm { vm, memory: memory(4) }, &mut spaces);
    assert!(matches!(made, MemReply::Created { .. }), "{made:?}");
    fill(&mut server, vm, &mut spaces);
    assert_eq!(server.window_fault(vm, Gfn(9), true, &mut spaces), Fault::Mapped);
    let seen = |spaces: &mut Spaces<'_, ModelKernel>| {
        (0..512).map(|gfn| spaces.kernel().nested(vm, Gfn(gfn).gpa())).collect::<Vec<_>>()
    };
    let small = seen(&mut spaces);
    for round in 0..3 {
        assert!(server.promote(vm, 0, &mut spaces));
        check(&server, &mut spaces);
        assert_eq!(seen(&mut spaces), small, "round {round}");
        let window = spaces.kernel().window(vm, Gfn(9).gpa());
        assert_eq!(window, small[9]);
        // A page of the next region is small beside it.
        assert_eq!(server.fault_in(vm, Gfn(600), 0, &mut spaces), Fault::Mapped);
        server.demote(vm, 100, Demotion::Sampling, &mut spaces);
        check(&server, &mut spaces);
        assert!(seen(&mut spaces).iter().all(Option::is_none));
        assert_eq!(spaces.kernel().window(vm, Gfn(9).gpa()), None);
        fill(&mut server, vm, &mut spaces);
        assert_eq!(seen(&mut spaces), small);
        assert_eq!(server.window_fault(vm, Gfn(9), true, &mut spaces), Fault::Mapped);
    }
    assert!(server.promote(vm, 0, &mut spaces));
    server.release_vm(vm, &mut spaces);
    assert_eq!(spaces.kernel().leftovers(), 0);
}

#[test]
fn kernel_failures_leave_a_region_small_and_whole() {
    for calls in 0..6 {
        let mut store = Store::new();
        let (mut server, mut spaces) = store.start();
        let vm = VmId(1);
        server.admit(vm, memory(4), &mut spaces).unwrap();
        fill(&mut server, vm, &mut spaces);
        // A hole, so that a capability must be made as well.
        let hole = GfnRange::new(Gfn(77), 1).into_iter();
        server.release(vm, release_reason::FREE_REPORT, hole, &mut spaces);
        assert_eq!(server.window_fault(vm, Gfn(9), true, &mut spaces), Fault::Mapped);
        spaces.kernel().fail_after = Some(calls);
        let done = server.promote(vm, 0, &mut spaces);
        assert_eq!(done, calls >= 4, "after {calls} calls");
        check(&server, &mut spaces);
        assert_eq!(spaces.kernel().window(vm, Gfn(9).gpa()).is_some(), done);
        spaces.kernel().fail_after = None;
        if !done {
            fill(&mut server, vm, &mut spaces);
            assert!(server.promote(vm, 0, &mut spaces));
        }
        assert!((0..512).all(|gfn| spaces.kernel().nested(vm, Gfn(gfn).gpa()).is_some()));
        server.release_vm(vm, &mut spaces);
        assert_eq!(spaces.kernel().leftovers(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_sequence_keeps_the_books(
        steps in prop::collection::vec((0u8..10, 0u16..3, 0u64..1030, 1u64..600), 1..80),
    ) {
        let mut store = Store::new();
        let (mut server, mut spaces) = store.start();
        let everything = server.free();
        for (op, vm, gfn, count) in steps {
            let vm = VmId(vm);
            let gfn = Gfn(gfn);
            let range = GfnRange::new(gfn, count);
            match op {
                0 => { let _ = server.admit(vm, memory(4), &mut spaces); }
                1 | 2 => {
                    server.fault_in(vm, gfn, access::WRITE, &mut spaces);
                }
                3 => { server.window_fault(vm, gfn, count % 2 == 0, &mut spaces); }
                4 => {
                    server.release(vm, count % 2, range.into_iter(), &mut spaces);
                }
                5 => { server.deflate(vm, range.into_iter()); }
                6 => if server.vm(vm).is_some() {
                    server.release_vm(vm, &mut spaces);
                    let _ = server.admit(vm, memory(4), &mut spaces);
                },
                7 => for gfn in (0..512).map(Gfn) {
                    server.fault_in(vm, gfn, access::WRITE, &mut spaces);
                },
                8 => { server.promote(vm, (gfn.0 / 512) as u32, &mut spaces); }
                _ => if gfn.0 < 200 { server.release_vm(vm, &mut spaces); },
            }
            prop_assert_eq!(server.check(), Ok(()));
        }
        for vm in 0..3 {
            server.release_vm(VmId(vm), &mut spaces);
        }
        prop_assert_eq!(spaces.kernel().leftovers(), 0);
        prop_assert_eq!(server.free(), everything);
    }
}
