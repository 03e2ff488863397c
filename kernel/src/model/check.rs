//! The kernel's invariants, checked from outside over all of its objects.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use abi::CapRights;

use super::{CORES, Model, Tlb};
use crate::cap::raw::{Cap, FrameSize, MapKind, Tag, ZOMBIE_TCB};
use crate::cap::{Slot, tree};
use crate::limits::IRQ_LINES;
use crate::mem::window::Words;
use crate::mem::{PhysAddr, Ref};
use crate::object::endpoint::{Endpoint, EndpointState};
use crate::object::notification::{Notification, NotificationState};
use crate::object::reply::{Reply, ReplyNext};
use crate::object::sched_context::SchedContext;
use crate::object::tcb::{Tcb, ThreadState, tcb_slot};
use crate::object::timer::Timer;
use crate::sched::refill;
use crate::{Action, Kernel};

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Finds every filled slot, from the root CNode and the kernel's own.
#[must_use]
pub fn slots(kernel: &Kernel<Model>, cnode: Ref<Slot>) -> Vec<Ref<Slot>> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<Ref<Slot>> = (0..1 << super::world::RADIX).map(|n| cnode.add(n)).collect();
    if let Some(irq) = kernel.irq_slots {
        waiting.extend((0..IRQ_LINES as u64).map(|n| irq.add(n)));
    }
    while let Some(slot) = waiting.pop() {
        if slot.is_empty() || found.insert(slot.addr(), slot).is_some() {
            continue;
        }
        match slot.unpack() {
            Cap::CNode { addr, radix, .. } => {
                waiting.extend((0..1 << radix).map(|n| Ref::<Slot>::at(addr).add(n)));
            }
            Cap::Zombie { addr, number, .. } => {
                waiting.extend((0..number).map(|n| Ref::<Slot>::at(addr).add(n)));
            }
            Cap::Thread { addr } => {
                let tcb: Ref<Tcb> = Ref::at(addr);
                waiting.extend((0..tcb_slot::COUNT).map(|n| tcb.slot(n)));
            }
            Cap::Timer { addr } => waiting.push(Ref::<Timer>::at(addr).notification_slot()),
            _ => {}
        }
        // Children elsewhere (in a table whose capability is gone) are found by the list.
        waiting.extend(slot.next());
        waiting.extend(slot.prev.get());
    }
    found.into_values().collect()
}

/// Checks everything.
///
/// # Panics
/// If an invariant is broken; the message says which.
pub fn all(kernel: &mut Kernel<Model>, cnode: Ref<Slot>) {
    let slots = slots(kernel, cnode);
    derivation(&slots);
    memory(&slots);
    let threads: BTreeMap<PhysAddr, Ref<Tcb>> = objects(&slots, |cap| match cap {
        Cap::Thread { addr } => Some(addr),
        _ => None,
    });
    queues(kernel, &threads);
    for tcb in threads.values() {
        thread(kernel, *tcb);
    }
    for endpoint in objects(&slots, |cap| match cap {
        Cap::Endpoint { addr, .. } => Some(addr),
        _ => None,
    })
    .into_values()
    {
        check_endpoint(endpoint);
    }
    for notification in objects(&slots, |cap| match cap {
        Cap::Notification { addr, .. } => Some(addr),
        _ => None,
    })
    .into_values()
    {
        check_notification(notification);
    }
    for reply in objects(&slots, |cap| match cap {
        Cap::Reply { addr, .. } => Some(addr),
        _ => None,
    })
    .into_values()
    {
        check_reply(reply);
    }
    for sc in objects(&slots, |cap| match cap {
        Cap::SchedContext { addr, .. } => Some(addr),
        _ => None,
    })
    .into_values()
    {
        check_context(sc);
    }
    spaces(kernel, &slots);
    kernel.check_timers();
}

fn objects<T>(
    slots: &[Ref<Slot>],
    pick: impl Fn(Cap) -> Option<PhysAddr>,
) -> BTreeMap<PhysAddr, Ref<T>> {
    slots.iter().filter_map(|slot| pick(slot.unpack())).map(|addr| (addr, Ref::at(addr))).collect()
}

/// The list is linked both ways, children lie in their parents, and what was given out of an untyped is marked so.
fn derivation(slots: &[Ref<Slot>]) {
    for slot in slots {
        if let Some(next) = slot.next() {
            assert_eq!(next.prev.get(), Some(*slot), "derivation list: next's prev");
            assert!(!next.is_empty(), "derivation list: empty slot");
        }
        if let Some(prev) = slot.prev.get() {
            assert_eq!(prev.next(), Some(*slot), "derivation list: prev's next");
        }
        if let Cap::Untyped { addr, free, bits, .. } = slot.unpack() {
            assert!(free <= 1 << bits, "untyped gave out more than it has");
            let mut next = slot.next();
            while let Some(child) = next
                && tree::is_parent(*slot, child)
            {
                if let Some((start, bytes)) = tree::region(child.unpack()) {
                    assert!(
                        start.0 + bytes <= addr.0 + free,
                        "child {:x?} lies in the free part of {:x?}",
                        child.unpack(),
                        slot.unpack()
                    );
                }
                next = child.next();
            }
        }
    }
}

/// No two objects share memory, except frames derived from frames.
fn memory(slots: &[Ref<Slot>]) {
    let mut regions: Vec<(u64, u64, Cap)> = Vec::new();
    for slot in slots {
        let cap = slot.unpack();
        if matches!(cap, Cap::Untyped { .. }) {
            continue;
        }
        if let Some((start, bytes)) = tree::region(cap) {
            regions.push((start.0, start.0 + bytes, cap));
        }
    }
    regions.sort_by_key(|region| (region.0, std::cmp::Reverse(region.1)));
    let kind = |cap: &Cap| match cap {
        Cap::Frame(_) => Tag::Frame,
        // The zombie of an object is still that object's memory.
        Cap::Zombie { kind: ZOMBIE_TCB, .. } => Tag::Thread,
        Cap::Zombie { .. } => Tag::CNode,
        cap => cap.pack().tag(),
    };
    let mut reach: Option<(u64, u64, Cap)> = None;
    for region in regions {
        if let Some(last) = &reach
            && region.0 < last.1
        {
            let is_same = kind(&region.2) == kind(&last.2)
                && (kind(&region.2) == Tag::Frame || (region.0, region.1) == (last.0, last.1));
            assert!(is_same, "objects overlap: {:x?} and {:x?}", last.2, region.2);
        } else {
            reach = Some(region);
        }
    }
}

/// Ready and release queues hold whom they should, in order, and bitmaps and marks agree.
fn queues(kernel: &Kernel<Model>, threads: &BTreeMap<PhysAddr, Ref<Tcb>>) {
    let mut ready = BTreeSet::new();
    let mut waiting = BTreeSet::new();
    for (number, core) in kernel.cores.iter().enumerate() {
        for (priority, queue) in core.ready.iter().enumerate() {
            let bit = core.ready_bitmap[priority / 64] >> (priority % 64) & 1 != 0;
            assert_eq!(bit, queue.head.is_some(), "ready bitmap");
            assert_eq!(queue.head.is_some(), queue.tail.is_some(), "ready queue ends");
            let (mut prev, mut at) = (None, queue.head);
            while let Some(tcb) = at {
                assert!(threads.contains_key(&tcb.addr()), "ready queue holds a deleted thread");
                assert_eq!(tcb.sched_prev.get(), prev, "ready queue links");
                assert_eq!(usize::from(tcb.priority.get()), priority, "ready queue priority");
                assert_eq!(tcb.core.get() as usize, number, "ready queue core");
                assert!(tcb.in_ready_queue.get(), "ready mark");
                assert!(Kernel::<Model>::is_schedulable(tcb), "ready thread cannot run");
                assert!(ready.insert(tcb.addr()), "thread is ready twice");
                prev = at;
                at = tcb.sched_next.get();
            }
            assert_eq!(queue.tail, prev, "ready queue tail");
        }
        let (mut prev, mut at, mut time) = (None, core.release_head, 0);
        while let Some(tcb) = at {
            assert!(threads.contains_key(&tcb.addr()), "release queue holds a deleted thread");
            assert_eq!(tcb.sched_prev.get(), prev, "release queue links");
            assert_eq!(tcb.core.get() as usize, number, "release queue core");
            assert!(tcb.in_release_queue.get(), "release mark");
            let due = tcb.sc.get().map(|sc| sc.head().time);
            assert!(due >= Some(time), "release queue order");
            time = due.unwrap_or(time);
            assert!(waiting.insert(tcb.addr()), "thread is released twice");
            prev = at;
            at = tcb.sched_next.get();
        }
        if let Some(tcb) = core.current
            && number < CORES
            && core.action == Action::Resume
        {
            assert!(threads.contains_key(&tcb.addr()), "a deleted thread is current");
            assert!(Kernel::<Model>::is_schedulable(tcb), "the current thread cannot run");
            assert!(!tcb.in_ready_queue.get(), "the current thread is queued");
            assert_eq!(tcb.core.get() as usize, number, "the current thread's core");
            assert_eq!(core.current_sc, tcb.sc.get(), "the context that is charged");
            let best = core.highest_ready();
            assert!(best <= Some(tcb.priority.get()), "a better thread waits");
        } else if core.current.is_none() && number < CORES && core.action == Action::Resume {
            assert_eq!(core.highest_ready(), None, "idle with ready threads");
        }
    }
    for tcb in threads.values() {
        assert_eq!(tcb.in_ready_queue.get(), ready.contains(&tcb.addr()), "ready mark");
        assert_eq!(tcb.in_release_queue.get(), waiting.contains(&tcb.addr()), "release mark");
        assert!(
            !(tcb.in_ready_queue.get() && tcb.in_release_queue.get()),
            "thread is ready and waits for its refill"
        );
        let is_current = kernel.cores.iter().any(|core| core.current == Some(*tcb));
        if Kernel::<Model>::is_schedulable(*tcb) && !is_current {
            assert!(tcb.in_ready_queue.get(), "a thread that can run is forgotten");
        }
    }
}

fn thread(kernel: &Kernel<Model>, tcb: Ref<Tcb>) {
    if let Some(sc) = tcb.sc.get() {
        assert_eq!(sc.tcb.get(), Some(tcb), "thread's context does not know it");
        assert_eq!(sc.core.get(), tcb.core.get(), "thread and context on different cores");
    }
    if let Some(notification) = tcb.notification.get() {
        assert_eq!(notification.bound_tcb.get(), Some(tcb), "bound notification does not know it");
    }
    if let Some(sc) = tcb.yield_to.get() {
        assert_eq!(sc.yield_from.get(), Some(tcb), "YieldTo link");
    }
    match tcb.state.get() {
        ThreadState::BlockedOnReply => {
            let reply = tcb.reply.get();
            assert!(reply.is_some(), "waits for an answer on no reply object");
            assert_eq!(reply.and_then(|reply| reply.tcb.get()), Some(tcb), "reply link");
        }
        ThreadState::BlockedOnReceive => {
            if let Some(reply) = tcb.reply.get() {
                assert_eq!(reply.tcb.get(), Some(tcb), "reply link of a receiver");
                assert_eq!(reply.next(), ReplyNext::None, "a receiver's reply object in a chain");
            }
        }
        _ => assert_eq!(tcb.reply.get(), None, "reply link of a thread that does not wait"),
    }
    if tcb.has_fault.get() {
        assert!(
            matches!(
                tcb.state.get(),
                ThreadState::BlockedOnSend | ThreadState::BlockedOnReply | ThreadState::Inactive
            ),
            "a faulted thread runs"
        );
    }
    if let Some(core) = kernel.cores.iter().position(|core| core.current == Some(tcb)) {
        assert_eq!(core, tcb.core.get() as usize, "current on a core that is not its");
    }
}

fn waiters(head: Option<Ref<Tcb>>, tail: Option<Ref<Tcb>>) -> Vec<Ref<Tcb>> {
    let mut all: Vec<Ref<Tcb>> = Vec::new();
    let (mut prev, mut at) = (None, head);
    while let Some(tcb) = at {
        assert_eq!(tcb.ep_prev.get(), prev, "wait queue links");
        if let Some(prev) = prev {
            assert!(prev.priority.get() >= tcb.priority.get(), "wait queue order");
        }
        all.push(tcb);
        prev = Some(tcb);
        at = tcb.ep_next.get();
    }
    assert_eq!(tail, prev, "wait queue tail");
    all
}

fn check_endpoint(endpoint: Ref<Endpoint>) {
    let waiters = waiters(endpoint.head(), endpoint.tail());
    let state = match endpoint.state() {
        EndpointState::Idle => return assert!(waiters.is_empty(), "idle endpoint with waiters"),
        EndpointState::Send => ThreadState::BlockedOnSend,
        EndpointState::Receive => ThreadState::BlockedOnReceive,
    };
    assert!(!waiters.is_empty(), "endpoint without waiters is not idle");
    for tcb in waiters {
        assert_eq!(tcb.state.get(), state, "endpoint waiter's state");
        assert_eq!(tcb.blocking_object.get(), endpoint.addr(), "endpoint waiter's object");
    }
}

fn check_notification(notification: Ref<Notification>) {
    let waiters = waiters(notification.head.get(), notification.tail.get());
    assert_eq!(
        notification.state.get() == NotificationState::Waiting,
        !waiters.is_empty(),
        "notification state"
    );
    for tcb in waiters {
        assert_eq!(tcb.state.get(), ThreadState::BlockedOnNotification, "waiter's state");
        assert_eq!(tcb.blocking_object.get(), notification.addr(), "waiter's object");
    }
    if let Some(tcb) = notification.bound_tcb.get() {
        assert_eq!(tcb.notification.get(), Some(notification), "bound thread does not know it");
    }
    if let Some(sc) = notification.sc.get() {
        assert_eq!(sc.notification.get(), Some(notification), "context does not know it");
    }
}

fn check_reply(reply: Ref<Reply>) {
    if let Some(tcb) = reply.tcb.get() {
        assert_eq!(tcb.reply.get(), Some(reply), "reply's thread does not know it");
    } else {
        assert_eq!(reply.next(), ReplyNext::None, "an unused reply object is in a chain");
    }
    match reply.next() {
        ReplyNext::Head(sc) => assert_eq!(sc.reply.get(), Some(reply), "chain head"),
        ReplyNext::Reply(next) => assert_eq!(next.prev.get(), Some(reply), "chain links"),
        ReplyNext::None => {}
    }
    if let Some(prev) = reply.prev.get() {
        assert_eq!(prev.next(), ReplyNext::Reply(reply), "chain links");
    }
}

fn check_context(sc: Ref<SchedContext>) {
    if let Some(tcb) = sc.tcb.get() {
        assert_eq!(tcb.sc.get(), Some(sc), "context's thread does not know it");
    }
    if let Some(reply) = sc.reply.get() {
        assert_eq!(reply.next(), ReplyNext::Head(sc), "context's call chain");
    }
    if !sc.is_active() {
        return;
    }
    if sc.is_round_robin() {
        assert!(sc.head().amount <= sc.budget.get(), "time slice longer than told");
        return;
    }
    assert_eq!(refill::total(sc), sc.budget.get(), "time was lost or made");
    assert!((1..=sc.refill_max.get()).contains(&sc.refill_count.get()), "number of refills");
    for number in 1..sc.refill_count.get() {
        let (earlier, later) = (sc.refill_at(number - 1), sc.refill_at(number));
        assert!(earlier.time <= later.time, "refills out of order");
    }
}

/// Every mapping has its capability with enough rights, and no core can hold a translation that the tables do not.
fn spaces(kernel: &mut Kernel<Model>, slots: &[Ref<Slot>]) {
    let mut frames = BTreeMap::new();
    let mut tables = BTreeMap::new();
    for slot in slots {
        match slot.unpack() {
            Cap::Frame(frame) if frame.kind == MapKind::VSpace => {
                let key = (frame.mapping.asid, frame.mapping.vaddr, frame.addr.0);
                let rights: &mut u64 = frames.entry(key).or_insert(0);
                *rights |= frame.rights.0 | (frame.size as u64) << 8;
            }
            Cap::Table { tag, addr, mapping: Some(mapping) } => {
                tables.insert((mapping.asid, mapping.vaddr, addr.0), tag);
            }
            _ => {}
        }
    }
    let mut leaves: BTreeMap<u64, Tlb> = BTreeMap::new();
    let roots: BTreeSet<u64> = slots
        .iter()
        .filter(|slot| slot.cap.get().is(Tag::Pml4))
        .map(|slot| slot.cap.get().addr().0)
        .collect();
    for (number, pool) in kernel.asid_pools.iter().enumerate() {
        let Some(pool) = pool else { continue };
        for (position, root) in pool.roots.iter().enumerate() {
            if root.get() == 0 || !roots.contains(&root.get()) {
                continue;
            }
            let asid = (number * crate::limits::ASID_POOL_ENTRIES + position) as u16;
            let mut tlb = Tlb::new();
            walk(PhysAddr(root.get()), 39, 0, &mut |vaddr, shift, entry, is_leaf| {
                if is_leaf {
                    let size = match shift {
                        12 => FrameSize::Small,
                        21 => FrameSize::Large,
                        _ => FrameSize::Huge,
                    };
                    let addr = entry & ADDRESS & !((1 << shift) - 1);
                    let known = frames.get(&(asid, vaddr, addr));
                    assert!(known.is_some(), "frame {addr:#x} at {vaddr:#x} has no capability");
                    let known = known.copied().unwrap_or(0);
                    assert_eq!(known >> 8, size as u64, "size of a mapping");
                    let writes = entry & 2 != 0;
                    assert!(
                        !writes || CapRights(known).contains(CapRights::READ_WRITE),
                        "a read-only frame is mapped writable"
                    );
                    tlb.insert(vaddr, entry);
                } else {
                    let known = tables.get(&(asid, vaddr, entry & ADDRESS));
                    let expected = match shift {
                        21 => Tag::PageTable,
                        30 => Tag::PageDirectory,
                        _ => Tag::Pdpt,
                    };
                    assert_eq!(known, Some(&expected), "table at {vaddr:#x} has no capability");
                }
            });
            leaves.insert(root.get(), tlb);
        }
    }
    for core in 0..CORES {
        let Some(root) = kernel.hw.roots[core] else { continue };
        assert_eq!(kernel.cores[core].root, root.0, "loaded root");
        let now = leaves.get(&root.0);
        assert!(now.is_some(), "core {core} runs in a deleted space");
        let Some(now) = now else { continue };
        for (vaddr, entry) in &kernel.hw.tlbs[core] {
            assert_eq!(now.get(vaddr), Some(entry), "stale translation of {vaddr:#x}");
        }
        // From now on the core may hold all of it.
        kernel.hw.tlbs[core] = now.clone();
    }
}

fn walk(table: PhysAddr, shift: u32, base: u64, visit: &mut impl FnMut(u64, u32, u64, bool)) {
    for position in 0..512u64 {
        let entry = Words(table).get(position as usize);
        if entry & 1 == 0 {
            continue;
        }
        let vaddr = base + (position << shift);
        let is_leaf = shift == 12 || (shift < 39 && entry & 1 << 7 != 0);
        visit(vaddr, shift, entry, is_leaf);
        if !is_leaf {
            walk(PhysAddr(entry & ADDRESS), shift - 9, vaddr, visit);
        }
    }
}
