//! Guests on the model machine: the TLB model watches every entry, random operations try to get past it.
//!
//! QEMU's TCG forgets all translations at each world switch, so these tests are what shows a missing flush or a reused ASID.

use std::collections::BTreeMap;
use std::string::String;

use abi::Label;
use abi::vcpu::exit;

use super::CORES;
use super::world::World;
use crate::arch::x86_64::svm::npt;
use crate::arch::x86_64::svm::tlb_model::{Tag as TlbTag, TlbModel, nested_translations};
use crate::arch::x86_64::svm::vmcb::tlb_control;
use crate::cap::raw::{Cap, MapKind, Tag};
use crate::limits::RESCHEDULE_VECTOR;
use crate::mem::window::Words;
use crate::mem::{PhysAddr, Ref};
use crate::object::tcb::ThreadState;
use crate::object::vcpu::Vcpu;
use crate::object::virt::vcpu_of;

/// ASIDs of a model core: few, so that they run out.
pub const ASIDS: u32 = 4;

/// What the cores' TLBs may hold for guests.
#[derive(Default)]
pub struct Guests {
    tlb: TlbModel,
    /// Generation and ASID of the last entry seen on each core.
    seen: [(u64, u32); CORES],
}

/// The virtual CPU whose guest a core runs.
#[must_use]
pub fn running(world: &World, core: usize) -> Option<Ref<Vcpu>> {
    let tcb = world.current(core)?;
    if tcb.state.get() == ThreadState::RunningVm { vcpu_of(tcb) } else { None }
}

impl Guests {
    /// Looks at what every core does now; to be called after each kernel entry.
    ///
    /// # Errors
    /// A translation that a guest may use although the tables do not hold it any more, in words.
    pub fn observe(&mut self, world: &World) -> Result<(), String> {
        for core in 0..CORES {
            let Some(vcpu) = running(world, core) else {
                self.tlb.leave(core);
                continue;
            };
            let entry = (vcpu.tag.generation.get(), vcpu.tag.asid.get());
            let is_new = entry != self.seen[core];
            self.seen[core] = entry;
            let flush = is_new && vcpu.vmcb.tlb_control.get() == tlb_control::FLUSH_ALL;
            assert_eq!(vcpu.vmcb.asid.get(), entry.1, "ASID of the VMCB");
            assert!((1..ASIDS).contains(&entry.1), "ASID {} is the host's or too large", entry.1);
            let root = vcpu.root.get();
            assert_eq!(
                world.kernel.nested_of_asid(vcpu.root_asid.get()),
                root.0,
                "a guest runs in a deleted space"
            );
            assert_eq!(vcpu.vmcb.n_cr3.get(), root.0, "nested CR3");
            let tables = nested_translations(root);
            self.tlb.enter(core, TlbTag::Guest(entry.1), root.0, flush, &tables)?;
        }
        Ok(())
    }
}

/// Has the guest of a core exit.
pub fn exit(world: &mut World, core: usize, code: u64, event: u64) {
    let Some(vcpu) = running(world, core) else { return };
    world.kernel.hw.time += 100;
    vcpu.vmcb.exitcode.set(code);
    vcpu.vmcb.exitintinfo.set(event);
    vcpu.settle();
    if code == exit::INTR {
        world.kernel.handle_interrupt(core, RESCHEDULE_VECTOR);
    } else {
        world.kernel.handle_guest_exit(core);
    }
    world.settle();
}

/// Checks that everything mapped in a nested space has its capability there, with enough rights.
///
/// # Panics
/// If not.
pub fn check_spaces(world: &World) {
    let slots = world.slots();
    let mut frames = BTreeMap::new();
    let mut tables = BTreeMap::new();
    for slot in &slots {
        match slot.unpack() {
            Cap::Frame(frame) if frame.kind == MapKind::Nested => {
                let key = (frame.mapping.asid, frame.mapping.vaddr, frame.addr.0);
                let rights: &mut u64 = frames.entry(key).or_insert(0);
                *rights |= frame.rights.0 | u64::from(frame.size.bits()) << 8;
            }
            Cap::Table { addr, mapping: Some(mapping), .. } => {
                tables.insert((mapping.asid, mapping.vaddr, addr.0), ());
            }
            _ => {}
        }
    }
    for slot in &slots {
        if let Cap::Root { tag: Tag::NptPml4, addr, asid } = slot.unpack()
            && world.kernel.nested_of_asid(asid) == addr.0
        {
            for (gpa, found) in nested_translations(addr) {
                let known = frames.get(&(asid, gpa, found.frame));
                let known = known.copied().unwrap_or(0);
                assert_eq!(
                    known >> 8,
                    u64::from(found.bits),
                    "frame at {gpa:#x} has no capability"
                );
                assert!(!found.write || known & 1 != 0, "read-only frame mapped writable");
            }
            check_tables(addr, 39, 0, asid, &tables);
        }
    }
}

fn check_tables(
    table: PhysAddr,
    bits: u32,
    base: u64,
    asid: u16,
    known: &BTreeMap<(u16, u64, u64), ()>,
) {
    for index in 0..if bits == 39 { 256 } else { 512 } {
        let entry = Words(table).get(index);
        if bits == 12 || entry & npt::PRESENT == 0 || (bits < 39 && entry & npt::LARGE != 0) {
            continue;
        }
        let (gpa, below) = (base + ((index as u64) << bits), entry & npt::ADDRESS);
        assert!(known.contains_key(&(asid, gpa, below)), "table at {gpa:#x} has no capability");
        check_tables(PhysAddr(below), bits - 9, gpa, asid, known);
    }
}

/// Maps label by paging structure, for tests.
#[must_use]
pub fn map_label(tag: Tag) -> Option<(Label, Label)> {
    Some(match tag {
        Tag::NptPdpt => (Label::NPTPDPTMap, Label::NPTPDPTUnmap),
        Tag::NptPd => (Label::NPTPDMap, Label::NPTPDUnmap),
        Tag::NptPt => (Label::NPTPTMap, Label::NPTPTUnmap),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use abi::bootinfo::slot as fixed;
    use abi::vcpu::{RETURN_EXIT, RETURN_NOTIFICATION, control, event, field, harvest, word};
    use abi::{MessageInfo, ObjectType, Syscall};

    use super::super::world::{CODE_VADDR, FREE, LARGE_UNTYPED, SCHED_CONTROL};
    use super::*;
    use crate::Resume;
    use fuzz_input::seeded;

    const NOTIFICATION: u64 = FREE;
    const ROOTS: [u64; 2] = [FREE + 1, FREE + 2];
    const TABLES: [u64; 8] =
        [FREE + 3, FREE + 4, FREE + 5, FREE + 6, FREE + 7, FREE + 8, FREE + 9, FREE + 10];
    /// Frames: the originals, and a copy of each for mapping.
    const FRAMES: [u64; 5] = [FREE + 11, FREE + 12, FREE + 13, FREE + 14, FREE + 15];
    const COPIES: [u64; 10] = [
        FREE + 16,
        FREE + 17,
        FREE + 18,
        FREE + 19,
        FREE + 20,
        FREE + 21,
        FREE + 22,
        FREE + 23,
        FREE + 24,
        FREE + 25,
    ];
    const VCPUS: [u64; 3] = [FREE + 26, FREE + 27, FREE + 28];
    const THREAD: u64 = FREE + 29;
    const CONTEXT: u64 = FREE + 30;
    const TIMER: u64 = FREE + 31;
    const BADGED: u64 = FREE + 32;

    struct Lab {
        world: World,
        guests: Guests,
    }

    impl Lab {
        /// Two nested spaces with tables for the first 2 MiB of both, three virtual CPUs, a thread on core 1.
        fn new() -> Self {
            let mut world = World::new();
            world.make(ObjectType::Notification, 0, NOTIFICATION, 1);
            world.make(ObjectType::NptPml4, 0, ROOTS[0], 2);
            world.make(ObjectType::NptPdpt, 0, TABLES[0], 2);
            world.make(ObjectType::NptPd, 0, TABLES[2], 2);
            world.make(ObjectType::NptPt, 0, TABLES[4], 4);
            world.make(ObjectType::Page4K, 0, FRAMES[0], 4);
            world.make_from(LARGE_UNTYPED, ObjectType::LargePage, 0, FRAMES[4], 1);
            world.make(ObjectType::Vcpu, 0, VCPUS[0], 3);
            world.make(ObjectType::Timer, 0, TIMER, 1);
            for root in ROOTS {
                world.ok(fixed::ASID_POOL, Label::X86ASIDPoolAssign, &[], &[root]);
            }
            for (number, root) in ROOTS.into_iter().enumerate() {
                world.ok(TABLES[number], Label::NPTPDPTMap, &[0, 0], &[root]);
                world.ok(TABLES[2 + number], Label::NPTPDMap, &[0, 0], &[root]);
                world.ok(TABLES[4 + number], Label::NPTPTMap, &[0, 0], &[root]);
            }
            for vcpu in VCPUS {
                world.ok(vcpu, Label::VCPUSetNPTRoot, &[], &[ROOTS[0]]);
            }
            world.thread(THREAD, 255, Some(CONTEXT));
            let words = [10_000, 10_000, 0, 0, 0];
            world.ok(SCHED_CONTROL + 1, Label::SchedControlConfigureFlags, &words, &[CONTEXT]);
            world.ok(THREAD, Label::TCBResume, &[], &[]);
            world.ok(VCPUS[0], Label::VCPUSetTCB, &[], &[fixed::TCB]);
            world.ok(VCPUS[1], Label::VCPUSetTCB, &[], &[THREAD]);
            world.ok(fixed::TCB, Label::TCBBindNotification, &[], &[NOTIFICATION]);
            Self { world, guests: Guests::default() }
        }

        fn check(&mut self) {
            self.world.check();
            check_spaces(&self.world);
            if let Err(stale) = self.guests.observe(&self.world) {
                panic!("{stale}");
            }
        }

        /// VMEnter by the current thread of a core.
        fn enter(&mut self, core: usize, rip: u64, word: u64, event: u64) -> Resume {
            let tcb = self.world.current(core).expect("a thread");
            for (number, value) in [rip, word, event].into_iter().enumerate() {
                tcb.set_mr(number, value);
            }
            let resume = self.world.enter(core, Syscall::VMEnter as i64);
            self.check();
            resume
        }

        fn exit(&mut self, core: usize, code: u64, event: u64) {
            exit(&mut self.world, core, code, event);
            self.check();
        }

        fn try_call(&mut self, cap: u64, label: Label, words: &[u64], caps: &[u64]) -> u64 {
            let answer = self.world.call(cap, label as u64, words, caps);
            self.check();
            answer.label
        }

        fn ok(&mut self, cap: u64, label: Label, words: &[u64], caps: &[u64]) {
            let error = self.try_call(cap, label, words, caps);
            assert_eq!(error, 0, "{label:?} {words:x?} {caps:?}");
        }

        fn map(&mut self, frame: u64, root: u64, gpa: u64, rights: u64) -> u64 {
            self.try_call(frame, Label::X86PageMapNPT, &[gpa, rights, 0], &[root])
        }

        fn vcpu(&self, number: usize) -> Ref<Vcpu> {
            self.world.object(VCPUS[number])
        }
    }

    fn label_of(lab: &Lab, core: usize) -> u64 {
        let tcb = lab.world.current(core).unwrap();
        MessageInfo(tcb.reg(abi::syscall::register::MESSAGE_INFO)).label()
    }

    #[test]
    fn an_exit_is_told_in_registers_and_words() {
        let mut lab = Lab::new();
        let tcb = lab.world.initial;
        let buffer = crate::ipc::transfer::ipc_buffer(tcb, true).unwrap();
        buffer.set(1 + word::GPR + 3, 0xb0b);
        let word = control::V_IRQ | 0x51 | 1 << (control::GPR_SHIFT + 3);
        assert_eq!(lab.enter(0, 0x1234, word, 0), Resume::Guest(tcb));
        let vcpu = lab.vcpu(0);
        assert_eq!(vcpu.vmcb.rip.get(), 0x1234);
        assert_eq!(vcpu.gprs[3].get(), 0xb0b);
        assert_eq!(vcpu.vmcb.int_ctl.get(), 0x51 << 32 | 1 << 24 | 1 << 20 | 1 << 8);
        vcpu.vmcb.rip.set(0x2000);
        vcpu.gprs[0].set(7);
        vcpu.vmcb.exitinfo1.set(0x11);
        lab.exit(0, exit::CPUID, 0);
        assert_eq!((label_of(&lab, 0), tcb.mr(0), tcb.mr(3)), (RETURN_EXIT, 0x2000, exit::CPUID));
        assert_eq!(tcb.mr(1) & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x51);
        assert_eq!(tcb.mr(1) & control::DECODE_WORDS, 0);
        assert_eq!(buffer.get(1 + word::EXITINFO1), 0x11);
        assert_eq!(buffer.get(1 + word::GPR), 7);
        lab.enter(0, 0x2000, 0, 0);
        lab.exit(0, exit::NPF, 0);
        assert_ne!(tcb.mr(1) & control::DECODE_WORDS, 0);
        // TCG's failed VMRUN.
        lab.enter(0, 0x2000, 0, 0);
        lab.exit(0, 0xffff_ffff, 0);
        assert_eq!(tcb.mr(3), exit::INVALID);
    }

    #[test]
    fn an_interrupted_delivery_is_pending_again() {
        let mut lab = Lab::new();
        let tcb = lab.world.initial;
        // The processor took V_IRQ 51h, then a nested fault stopped the delivery: AMD's way and TCG's way of telling.
        for kind in [event::TYPE_INTR, event::TYPE_EXCEPTION] {
            lab.enter(0, 0x1000, control::V_IRQ | 0x51, 0);
            lab.vcpu(0).vmcb.int_ctl.set(1 << 24 | 1 << 20);
            lab.exit(0, exit::NPF, event::VALID | kind | 0x51);
            assert_eq!(tcb.mr(1) & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x51);
            assert_eq!(tcb.mr(2), 0);
        }
        // Exceptions and NMIs come back as events, software interrupts run again by themselves.
        let fault = event::VALID | event::TYPE_EXCEPTION | event::ERROR_VALID | 14 | 6 << 32;
        let nmi = event::VALID | event::TYPE_NMI | 2;
        let soft = event::VALID | event::TYPE_SOFT | 0x80;
        let breakpoint = event::VALID | event::TYPE_EXCEPTION | 3;
        for (cut, wanted) in [(fault, fault), (nmi, nmi), (soft, 0), (breakpoint, 0)] {
            lab.enter(0, 0x1000, 0, 0);
            lab.exit(0, exit::NPF, cut);
            assert_eq!(tcb.mr(2), wanted);
        }
        // An exit the kernel deals with alone keeps the event for the next entry.
        lab.enter(0, 0x1000, 0, 0);
        lab.exit(0, exit::INTR, fault);
        assert_eq!(lab.vcpu(0).vmcb.eventinj.get(), fault);
        assert!(running(&lab.world, 0).is_some());
    }

    #[test]
    fn only_sound_events_are_injected() {
        let mut lab = Lab::new();
        let valid = event::VALID;
        for (event, wanted) in [
            (valid | event::TYPE_EXCEPTION | 6, true),
            (valid | event::TYPE_SOFT | 0x80, true),
            (valid | event::TYPE_NMI | 2, true),
            (valid | event::TYPE_INTR | 0x30, false),
            (valid | event::TYPE_EXCEPTION | 0x30, false),
            (valid | 1 << 8 | 6, false),
            (event::TYPE_EXCEPTION | 6, false),
        ] {
            lab.enter(0, 0x1000, 0, event);
            let injected = lab.vcpu(0).vmcb.eventinj.get();
            assert_eq!(injected, if wanted { event } else { 0 });
            lab.exit(0, exit::HLT, 0);
        }
    }

    #[test]
    fn an_open_interrupt_is_injected_where_that_is_wanted() {
        let mut lab = Lab::new();
        let tcb = lab.world.initial;
        let vcpu = lab.vcpu(0);
        let injected = event::VALID | event::TYPE_INTR | 0x51;
        for (word, rflags, event, wanted) in [
            (control::V_IRQ | 0x51, 0x202, 0, injected),
            (control::V_IRQ | 0x51, 0x002, 0, 0),
            (control::V_IRQ | 0x51 | control::SHADOW, 0x202, 0, 0),
            (control::WINDOW | 0x51, 0x202, 0, 0),
            (0x51, 0x202, 0, 0),
        ] {
            vcpu.vmcb.rflags.set(rflags);
            lab.enter(0, 0x1000, word, event);
            vcpu.inject_open_interrupt();
            assert_eq!(vcpu.pending_event(), wanted, "{word:#x} {rflags:#x}");
            let waits = vcpu.vmcb.int_ctl.get() & 1 << 8 != 0;
            assert_eq!(waits, wanted == 0 && word & (control::V_IRQ | control::WINDOW) != 0);
            // Cut short, it is pending again; taken, it is not.
            let cut = if wanted == 0 { 0 } else { injected };
            lab.exit(0, exit::NPF, cut);
            if wanted != 0 {
                assert_eq!(tcb.mr(1) & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x51);
                assert_eq!(tcb.mr(2), 0);
            }
        }
        // An exception goes first; the interrupt keeps waiting.
        let fault = event::VALID | event::TYPE_EXCEPTION | 6;
        vcpu.vmcb.rflags.set(0x202);
        lab.enter(0, 0x1000, control::V_IRQ | 0x51, fault);
        vcpu.inject_open_interrupt();
        assert_eq!(vcpu.pending_event(), fault);
        assert_ne!(vcpu.vmcb.int_ctl.get() & 1 << 8, 0);
    }

    #[test]
    fn windows_are_opened_and_closed() {
        let mut lab = Lab::new();
        let tcb = lab.world.initial;
        lab.enter(0, 0x1000, control::WINDOW | control::IRET_WINDOW | control::SHADOW, 0);
        let vmcb = &lab.vcpu(0).vmcb;
        assert_ne!(vmcb.intercept_misc1.get() & (1 << 4 | 1 << 20), 0);
        assert_eq!(vmcb.int_state.get(), 1);
        lab.exit(0, exit::CPUID, 0);
        let kept = control::WINDOW | control::IRET_WINDOW | control::SHADOW;
        assert_eq!(tcb.mr(1) & (kept | control::V_IRQ), kept);
        lab.enter(0, 0x1000, tcb.mr(1) & control::KEEP, 0);
        lab.exit(0, exit::VINTR, 0);
        assert_eq!(tcb.mr(1) & (control::WINDOW | control::V_IRQ), 0);
        lab.enter(0, 0x1000, 0, 0);
        assert_eq!(lab.vcpu(0).vmcb.intercept_misc1.get() & (1 << 4 | 1 << 20), 0);
    }

    #[test]
    fn signals_end_vmenter_here_and_on_the_other_core() {
        let mut lab = Lab::new();
        let tcb = lab.world.initial;
        let words = [BADGED, 64, NOTIFICATION, 64, 15, 0x20];
        lab.ok(fixed::CNODE, Label::CNodeMint, &words, &[fixed::CNODE]);
        // Pending already: returns at once.
        lab.world.syscall(Syscall::Send, BADGED, 0, &[0]);
        assert_eq!(lab.enter(0, 0x1000, 0, 0), Resume::User(tcb));
        assert_eq!(label_of(&lab, 0), RETURN_NOTIFICATION);
        assert_eq!(tcb.reg(abi::syscall::register::BADGE), 0x20);
        assert_eq!(tcb.mr(0), 0x1000);
        // A timer of this core.
        lab.ok(TIMER, Label::TimerSetNotification, &[], &[BADGED]);
        let deadline = lab.world.kernel.hw.time + 10_000;
        lab.ok(TIMER, Label::TimerArm, &[deadline], &[]);
        assert_eq!(lab.enter(0, 0x3000, 0, 0), Resume::Guest(tcb));
        lab.world.advance(5_000);
        assert!(running(&lab.world, 0).is_some());
        lab.world.advance(6_000);
        assert!(running(&lab.world, 0).is_none());
        assert_eq!((label_of(&lab, 0), tcb.mr(0)), (RETURN_NOTIFICATION, 0x3000));
        // A signal for the guest of the other core.
        lab.ok(fixed::TCB, Label::TCBUnbindNotification, &[], &[]);
        lab.ok(THREAD, Label::TCBBindNotification, &[], &[NOTIFICATION]);
        lab.enter(1, 0x5000, 0, 0);
        assert!(running(&lab.world, 1).is_some());
        lab.world.syscall(Syscall::Send, BADGED, 0, &[0]);
        lab.check();
        assert!(running(&lab.world, 1).is_none());
        let other = lab.world.current(1).unwrap();
        assert_eq!((label_of(&lab, 1), other.mr(0)), (RETURN_NOTIFICATION, 0x5000));
        assert_eq!(other.reg(abi::syscall::register::BADGE), 0x20);
    }

    #[test]
    fn a_page_taken_from_a_running_guest_is_gone_at_once() {
        let mut lab = Lab::new();
        assert_eq!(lab.map(FRAMES[0], ROOTS[0], 0x1000, 3), 0);
        lab.enter(1, 0, 0, 0);
        let before = lab.vcpu(1).tag.asid.get();
        // `check` in each call asks the TLB model.
        lab.ok(FRAMES[0], Label::X86PageUnmap, &[], &[]);
        assert_ne!(lab.vcpu(1).tag.asid.get(), before, "the guest goes on under a new ASID");
        assert_eq!(lab.map(FRAMES[0], ROOTS[0], 0x1000, 3), 0);
        // A copy has no mapping of its own; deleting the mapped one unmaps.
        let words = [COPIES[0], 64, FRAMES[0], 64, 15];
        lab.ok(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE]);
        assert_eq!(lab.map(COPIES[0], ROOTS[0], 0x2000, 2), 0);
        lab.ok(fixed::CNODE, Label::CNodeRevoke, &[FRAMES[0], 64], &[]);
        let root = lab.vcpu(1).root.get();
        assert_eq!(nested_translations(root).len(), 1);
        lab.ok(fixed::CNODE, Label::CNodeDelete, &[FRAMES[0], 64], &[]);
        assert!(nested_translations(root).is_empty());
        lab.ok(fixed::CNODE, Label::CNodeDelete, &[ROOTS[0], 64], &[]);
        assert!(running(&lab.world, 1).is_none(), "no guest without its root");
        assert_eq!(lab.world.current(1).unwrap().mr(3), exit::INVALID);
    }

    #[test]
    fn mappings_are_checked() {
        let mut lab = Lab::new();
        let root = ROOTS[0];
        assert_eq!(lab.map(FRAMES[0], root, 1 << 47, 3), abi::Error::InvalidArgument as u64);
        assert_eq!(lab.map(FRAMES[0], root, 0x1001, 3), abi::Error::AlignmentError as u64);
        assert_eq!(lab.map(FRAMES[0], root, 0x40_0000, 3), abi::Error::FailedLookup as u64);
        assert_eq!(lab.map(FRAMES[0], root, 0x1000, 1), abi::Error::InvalidArgument as u64);
        assert_eq!(
            lab.map(FRAMES[0], fixed::VSPACE, 0x1000, 3),
            abi::Error::InvalidCapability as u64
        );
        assert_eq!(lab.map(FRAMES[4], root, 0, 3), abi::Error::DeleteFirst as u64);
        assert_eq!(lab.map(FRAMES[0], root, 0x1000, 3), 0);
        assert_eq!(lab.map(FRAMES[1], root, 0x1000, 3), abi::Error::DeleteFirst as u64);
        assert_eq!(lab.map(FRAMES[0], root, 0x2000, 3), abi::Error::InvalidArgument as u64);
        assert_eq!(lab.map(FRAMES[0], ROOTS[1], 0x1000, 3), abi::Error::InvalidCapability as u64);
        assert_eq!(lab.map(FRAMES[0], root, 0x1000, 2), 0);
        let map = [0x1000, 3, 0];
        assert_ne!(lab.try_call(FRAMES[0], Label::X86PageMap, &map, &[fixed::VSPACE]), 0);
        assert_eq!(lab.map(FRAMES[4], root, 0x20_0000, 3), 0);
        // A table that is taken away is empty when it comes back.
        lab.ok(TABLES[4], Label::NPTPTUnmap, &[], &[]);
        lab.ok(TABLES[4], Label::NPTPTMap, &[0x60_0000, 0], &[root]);
        let addr = lab.world.object::<Vcpu>(root).addr();
        let left: Vec<u64> = nested_translations(addr).into_keys().collect();
        assert_eq!(left, [0x20_0000]);
    }

    #[test]
    fn a_reused_asid_is_not_the_old_space() {
        let mut lab = Lab::new();
        assert_eq!(lab.map(FRAMES[0], ROOTS[0], 0x1000, 3), 0);
        let Cap::Root { asid, .. } = lab.world.cap(ROOTS[0]) else { panic!() };
        lab.ok(fixed::CNODE, Label::CNodeDelete, &[ROOTS[0], 64], &[]);
        lab.world.make(ObjectType::Pml4, 0, ROOTS[0], 1);
        lab.ok(fixed::ASID_POOL, Label::X86ASIDPoolAssign, &[], &[ROOTS[0]]);
        assert!(matches!(lab.world.cap(ROOTS[0]), Cap::Root { asid: now, .. } if now == asid));
        // The frame still names that ASID: unmapping it must not touch the virtual space that has it now.
        let addr = lab.world.object::<Vcpu>(ROOTS[0]).addr();
        let before: Vec<u64> = (0..512).map(|word| Words(addr).get(word)).collect();
        lab.ok(FRAMES[0], Label::X86PageUnmap, &[], &[]);
        lab.ok(TABLES[4], Label::NPTPTUnmap, &[], &[]);
        let after: Vec<u64> = (0..512).map(|word| Words(addr).get(word)).collect();
        assert_eq!(before, after);
        lab.enter(0, 0, 0, 0);
        assert_eq!(lab.world.initial.mr(3), exit::INVALID);
    }

    #[test]
    fn binding_and_deleting_end_vmenter() {
        let mut lab = Lab::new();
        lab.enter(1, 0x7000, 0, 0);
        lab.ok(VCPUS[1], Label::VCPUSetTCB, &[], &[fixed::TCB]);
        let other = lab.world.current(1).unwrap();
        assert_eq!((label_of(&lab, 1), other.mr(3)), (RETURN_EXIT, exit::INVALID));
        assert_eq!(vcpu_of(lab.world.initial), Some(lab.vcpu(1)));
        assert_eq!(lab.vcpu(0).tcb.get(), None);
        lab.ok(VCPUS[0], Label::VCPUSetTCB, &[], &[THREAD]);
        lab.enter(1, 0x7000, 0, 0);
        lab.ok(fixed::CNODE, Label::CNodeDelete, &[VCPUS[0], 64], &[]);
        assert_eq!(other.vcpu.get(), 0);
        assert!(running(&lab.world, 1).is_none());
        // Without a virtual CPU there is no such call: the thread faults.
        lab.world.enter(1, Syscall::VMEnter as i64);
        assert_ne!(lab.world.current(1), Some(other));
        lab.check();
    }

    #[test]
    fn a_suspended_thread_goes_on_behind_its_vmenter() {
        let mut lab = Lab::new();
        lab.enter(1, 0x7000, 0, 0);
        let other = lab.world.current(1).unwrap();
        let behind = other.reg(abi::context::index::RIP);
        lab.vcpu(1).vmcb.rip.set(0x7abc);
        lab.ok(THREAD, Label::TCBSuspend, &[], &[]);
        lab.ok(THREAD, Label::TCBResume, &[], &[]);
        lab.world.advance(1_000_000);
        assert_eq!(lab.world.current(1), Some(other));
        assert_eq!(other.reg(abi::context::index::RIP), behind);
        assert_eq!((label_of(&lab, 1), other.mr(0)), (RETURN_NOTIFICATION, 0x7abc));
    }

    #[test]
    fn harvest_reads_and_clears_through_messages() {
        let mut lab = Lab::new();
        assert_eq!(lab.map(FRAMES[0], ROOTS[0], 0x3000, 3), 0);
        let root = lab.world.object::<Vcpu>(ROOTS[0]).addr();
        let entry = npt::walk(root, 0x3000, npt::Level::Page).unwrap();
        entry.set(entry.get() | npt::ACCESSED | npt::DIRTY);
        let buffer = crate::ipc::transfer::ipc_buffer(lab.world.initial, true).unwrap();
        lab.enter(1, 0, 0, 0);
        lab.ok(ROOTS[0], Label::NPTHarvest, &[0x2000, 70, harvest::CLEAR_DIRTY], &[]);
        assert_eq!((lab.world.initial.mr(0), lab.world.initial.mr(1)), (70, 1));
        assert_eq!(buffer.get(1 + harvest::ACCESSED_WORD), 2);
        assert_eq!(buffer.get(1 + harvest::DIRTY_WORD), 2);
        assert_eq!(entry.get() & (npt::ACCESSED | npt::DIRTY), npt::ACCESSED);
        for (words, error) in [
            ([0x2001, 1, 0], abi::Error::AlignmentError),
            ([0, 0, 0], abi::Error::RangeError),
            ([0, 2049, 0], abi::Error::RangeError),
            ([(1 << 47) - 0x1000, 2, 0], abi::Error::InvalidArgument),
            ([0, 1, 4], abi::Error::InvalidArgument),
        ] {
            assert_eq!(lab.try_call(ROOTS[0], Label::NPTHarvest, &words, &[]), error as u64);
        }
    }

    #[test]
    fn state_is_read_and_written_with_checks() {
        let mut lab = Lab::new();
        let vcpu = VCPUS[2];
        lab.ok(
            vcpu,
            Label::VCPUWriteState,
            &[
                field::RSP,
                5,
                field::CR3,
                0x9000,
                field::CS,
                0xdead_0000_fa9b_0008,
                field::CS + 1,
                7,
            ],
            &[],
        );
        let ids = [field::RSP, field::CR3, field::CS, field::CS + 1, field::EFER, field::XCR0];
        lab.ok(vcpu, Label::VCPUReadState, &ids, &[]);
        let buffer = crate::ipc::transfer::ipc_buffer(lab.world.initial, true).unwrap();
        let tcb = lab.world.initial;
        assert_eq!(
            [tcb.mr(0), tcb.mr(1), tcb.mr(2), tcb.mr(3)],
            [5, 0x9000, 0xdead_0000_0a9b_0008, 7]
        );
        assert_eq!([buffer.get(5), buffer.get(6)], [0, 1]);
        for pair in [
            [field::XCR0, 0],
            [field::XCR0, 5],
            [field::XCR0, 9],
            [field::TSC_AUX, 1 << 32],
            [field::EFER, 1 << 12],
            [field::CR0, 1 << 29],
            [field::G_PAT, 2],
            [field::DR7, 1 << 32],
            [field::CPL, 4],
            [field::INTERCEPT_EXCEPTIONS, 4],
            [field::INTERCEPT_INSTRUCTIONS, 1 << 4],
            [field::EXITCODE, 1],
            [field::LIMIT, 1],
            [field::CONTROL, control::LONG],
        ] {
            let words = [field::RSP, 6, pair[0], pair[1]];
            assert_eq!(lab.try_call(vcpu, Label::VCPUWriteState, &words, &[]), 1, "{pair:?}");
            assert!(matches!(lab.world.initial.mr(0), 2 | 3));
        }
        assert_eq!(lab.vcpu(2).gprs[4].get(), 5, "a refused write changes nothing");
        let words = [field::INTERCEPT_INSTRUCTIONS, 0, field::INTERCEPT_CR, 0];
        lab.ok(vcpu, Label::VCPUWriteState, &words, &[]);
        use crate::arch::x86_64::svm::intercept::{
            FORCED_CR, FORCED_EXCEPTIONS, FORCED_MISC1, FORCED_MISC2,
        };
        let vcpu = lab.vcpu(2);
        assert_eq!(vcpu.intercept_misc1.get(), FORCED_MISC1);
        assert_eq!(vcpu.vmcb.intercept_misc2.get(), FORCED_MISC2);
        assert_eq!(vcpu.vmcb.intercept_cr.get(), FORCED_CR);
        assert_eq!(vcpu.vmcb.intercept_exceptions.get(), FORCED_EXCEPTIONS);
    }

    #[test]
    fn exceptions_that_could_loop_are_delivered_by_the_kernel() {
        let mut lab = Lab::new();
        let debug = event::VALID | event::TYPE_EXCEPTION | 1;
        let alignment = event::VALID | event::TYPE_EXCEPTION | event::ERROR_VALID | 17;
        for (vector, wanted) in [(1, debug), (17, alignment)] {
            lab.enter(0, 0x1000, 0, 0);
            let before = lab.vcpu(0).exits.get();
            lab.exit(0, exit::EXCEPTION + vector, 0);
            assert_eq!(lab.vcpu(0).exits.get(), before + 1);
            assert_eq!(lab.vcpu(0).vmcb.eventinj.get(), wanted);
            lab.exit(0, exit::CPUID, 0);
            assert_eq!(lab.world.initial.mr(3), exit::CPUID, "nothing was told before");
        }
    }

    #[test]
    fn exceptions_user_level_asked_for_are_its_own() {
        let mut lab = Lab::new();
        lab.vcpu(0).set_intercept_exceptions(1 << 1);
        lab.enter(0, 0x1000, 0, 0);
        lab.exit(0, exit::EXCEPTION + 1, 0);
        assert_eq!(lab.world.initial.mr(3), exit::EXCEPTION + 1);
        assert_eq!(lab.vcpu(0).vmcb.eventinj.get(), 0);
    }

    #[test]
    fn timers_stay_in_order_whatever_is_done_to_them() {
        let mut lab = Lab::new();
        let timers: Vec<u64> = (0..6).map(|number| FREE + 40 + number).collect();
        for timer in &timers {
            lab.world.make(ObjectType::Timer, 0, *timer, 1);
            lab.ok(*timer, Label::TimerSetNotification, &[], &[NOTIFICATION]);
        }
        for (round, byte) in seeded(7, 400).into_iter().enumerate() {
            let timer = timers[usize::from(byte) % timers.len()];
            let now = lab.world.kernel.hw.time;
            match byte >> 6 {
                0 => drop(lab.try_call(timer, Label::TimerCancel, &[], &[])),
                1 => lab.world.advance(u64::from(byte) * 50),
                _ => lab.ok(timer, Label::TimerArm, &[now + (round as u64 * 977) % 20_000], &[]),
            }
            lab.check();
        }
        lab.world.advance(1_000_000);
        let next = lab.world.kernel.next_timer(0);
        assert_eq!(next, u64::MAX, "all have fired");
    }

    /// Random mapping, entering, exiting and deleting; the TLB model looks after each step.
    fn torture(seed: u64, steps: usize) -> [u32; 3] {
        let mut lab = Lab::new();
        let bytes = seeded(seed, steps * 4);
        let mut tally = [0; 3];
        for step in bytes.chunks_exact(4) {
            let [what, a, b, c] = [step[0], step[1], step[2], step[3]].map(usize::from);
            if what < 90 {
                let core = a & 1;
                if running(&lab.world, core).is_some() {
                    let codes = [exit::INTR, exit::CPUID, exit::NPF, exit::VINTR, 0x30, exit::HLT];
                    lab.exit(core, codes[b % codes.len()], 0);
                    tally[0] += 1;
                } else if lab.world.current(core).is_some_and(|tcb| tcb.vcpu.get() != 0) {
                    lab.enter(core, CODE_VADDR, 0, 0);
                    tally[1] += 1;
                }
                continue;
            }
            if running(&lab.world, 0).is_some() {
                lab.exit(0, exit::HLT, 0);
            }
            if lab.world.current(0) != Some(lab.world.initial) {
                lab.world.advance(10_000_000);
                continue;
            }
            let root = ROOTS[a & 1];
            let gpa = ((b & 3) as u64) << 12 | ((b >> 2 & 1) as u64) << 21;
            let copy = COPIES[c % COPIES.len()];
            let error = match what % 16 {
                0..=3 => lab.map(copy, root, gpa, 2 + (c as u64 & 1)),
                4 | 5 => lab.try_call(copy, Label::X86PageUnmap, &[], &[]),
                6 | 7 => {
                    let words = [copy, 64, FRAMES[b % FRAMES.len()], 64, 15];
                    lab.try_call(fixed::CNODE, Label::CNodeCopy, &words, &[fixed::CNODE])
                }
                8 => lab.try_call(fixed::CNODE, Label::CNodeDelete, &[copy, 64], &[]),
                9 => {
                    let words = [FRAMES[b % FRAMES.len()], 64];
                    lab.try_call(fixed::CNODE, Label::CNodeRevoke, &words, &[])
                }
                10 => {
                    let table = TABLES[c % TABLES.len()];
                    let Some((map, unmap)) = map_label(lab.world.slot(table).cap.get().tag())
                    else {
                        continue;
                    };
                    if b & 1 == 0 {
                        lab.try_call(table, unmap, &[], &[])
                    } else {
                        let gpa = gpa & !0xfff;
                        lab.try_call(table, map, &[gpa, 0], &[root])
                    }
                }
                11 => lab.try_call(VCPUS[b % 3], Label::VCPUSetNPTRoot, &[], &[root]),
                12 => {
                    let thread = [fixed::TCB, THREAD][a & 1];
                    lab.try_call(VCPUS[b % 3], Label::VCPUSetTCB, &[], &[thread])
                }
                13 => {
                    let words = [0, 512, (c & 3) as u64];
                    lab.try_call(root, Label::NPTHarvest, &words, &[])
                }
                14 if c < 40 => {
                    // A space dies and another takes its place (and often its ASID).
                    lab.try_call(fixed::CNODE, Label::CNodeDelete, &[root, 64], &[]);
                    let object = [ObjectType::NptPml4, ObjectType::Pml4][usize::from(c < 10)];
                    let words = [object as u64, 0, 0, 0, root, 1];
                    let untyped = super::super::world::UNTYPED;
                    lab.try_call(untyped, Label::UntypedRetype, &words, &[fixed::CNODE]);
                    lab.try_call(fixed::ASID_POOL, Label::X86ASIDPoolAssign, &[], &[root])
                }
                _ => {
                    lab.world.advance(1_000 * c as u64);
                    lab.check();
                    0
                }
            };
            tally[2] += u32::from(error == 0);
        }
        tally
    }

    #[test]
    fn no_guest_ever_uses_a_stale_translation() {
        let mut sum = [0; 3];
        for seed in 0..12 {
            let one = torture(seed, 1_200);
            for (sum, one) in sum.iter_mut().zip(one) {
                *sum += one;
            }
        }
        // The test is worth something only if it gets somewhere: exits, entries, operations that worked.
        assert!(sum.iter().all(|count| *count > 500), "{sum:?}");
    }
}
