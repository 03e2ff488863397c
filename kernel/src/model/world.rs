//! A booted kernel on the model machine, with an initial thread that makes system calls.

use std::vec::Vec;

use abi::bootinfo::slot;
use abi::context::index;
use abi::message::buffer_word;
use abi::syscall::register;
use abi::{CNodeCapData, CapRights, Label, MessageInfo, ObjectType, Syscall};

use super::{CORES, Model};
use crate::cap::raw::{Cap, FrameCap, FrameSize, MapKind, Mapping, Tag};
use crate::cap::{Slot, tree};
use crate::hw::Hw as _;
use crate::limits::{BOOT_TIME_SLICE_US, RESCHEDULE_VECTOR};
use crate::mem::window::{Arena, Words};
use crate::mem::{PhysAddr, Ref};
use crate::object::sched_context::SchedContext;
use crate::object::tcb::{Tcb, ThreadState, tcb_slot};
use crate::sched::refill;
use crate::{AsidPool, Kernel, Resume};

/// Size of the root CNode, power of two.
pub const RADIX: u32 = 7;
/// Bytes of physical memory.
pub const MEMORY: usize = 16 << 20;
/// Slot of the large untyped (4 MiB).
pub const UNTYPED: u64 = 20;
/// Slot of a device untyped (2 MiB).
pub const DEVICE_UNTYPED: u64 = 21;
/// Slot of the first SchedControl; core 1's is behind.
pub const SCHED_CONTROL: u64 = 22;
/// Slot of a second untyped (2 MiB), for large frames.
pub const LARGE_UNTYPED: u64 = 24;
/// First slot without a capability.
pub const FREE: u64 = 32;
/// Address of the initial IPC buffer.
pub const BUFFER_VADDR: u64 = 0x40_0000;
/// Where threads run.
pub const CODE_VADDR: u64 = 0x20_0000;

/// A kernel, its machine and its memory.
pub struct World {
    /// The kernel.
    pub kernel: Kernel<Model>,
    /// Root CNode's first slot.
    pub cnode: Ref<Slot>,
    /// The initial thread.
    pub initial: Ref<Tcb>,
    _arena: Arena,
}

/// What a Call brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Label: 0 or the error.
    pub label: u64,
    /// First four words.
    pub words: [u64; 4],
    /// Length told.
    pub length: u64,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Boots: an initial thread of priority 255 with everything, two cores.
    #[must_use]
    pub fn new() -> Self {
        let arena = Arena::new(MEMORY);
        let mut kernel = Kernel::new(Model::default());
        let at = |offset: u64| PhysAddr(0x10_0000 + offset);
        let (cnode_addr, irq_addr) = (at(0), at(0x1_0000));
        let (tcb_addr, sc_addr) = (at(0x1_1000), at(0x1_1800));
        let (root, pool, buffer) = (at(0x1_2000), at(0x1_3000), at(0x1_4000));
        let tables = [at(0x1_5000), at(0x1_6000), at(0x1_7000)];
        let cnode: Ref<Slot> = Ref::at(cnode_addr);
        let set = |number: u64, cap: Cap| {
            let slot = cnode.add(number);
            tree::insert_root(cap, slot);
            slot
        };
        let guard = CNodeCapData::new(0, u64::from(64 - RADIX));
        let cnode_slot = set(slot::CNODE, Cap::CNode { addr: cnode_addr, radix: RADIX, guard });
        set(slot::TCB, Cap::Thread { addr: tcb_addr });
        let vspace = set(slot::VSPACE, Cap::Root { tag: Tag::Pml4, addr: root, asid: 1 });
        set(slot::IRQ_CONTROL, Cap::IrqControl);
        set(slot::ASID_CONTROL, Cap::AsidControl);
        set(slot::ASID_POOL, Cap::AsidPool { addr: pool, base: 0 });
        set(slot::IO_PORT_CONTROL, Cap::IoPortControl);
        set(slot::DOMAIN, Cap::Domain);
        set(slot::SCHED_CONTEXT, Cap::SchedContext { addr: sc_addr, bits: 8 });
        for core in 0..CORES {
            set(SCHED_CONTROL + core as u64, Cap::SchedControl { core: core as u32 });
        }
        for (number, tag, table, above, shift) in [
            (25, Tag::Pdpt, tables[0], root, 39),
            (26, Tag::PageDirectory, tables[1], tables[0], 30),
            (27, Tag::PageTable, tables[2], tables[1], 21),
        ] {
            let vaddr = BUFFER_VADDR & !((1 << shift) - 1);
            let mapping = Some(Mapping { asid: 1, vaddr });
            set(number, Cap::Table { tag, addr: table, mapping });
            Words(above).set((BUFFER_VADDR >> shift & 511) as usize, table.0 | 7);
        }
        let buffer_slot = set(
            slot::IPC_BUFFER,
            Cap::Frame(FrameCap {
                addr: buffer,
                size: FrameSize::Small,
                rights: CapRights::READ_WRITE,
                is_device: false,
                kind: MapKind::VSpace,
                mapping: Mapping { asid: 1, vaddr: BUFFER_VADDR },
            }),
        );
        Words(tables[2]).set((BUFFER_VADDR >> 12 & 511) as usize, buffer.0 | 7);
        let untyped = |addr: u64, bits: u32, is_device: bool| Cap::Untyped {
            addr: PhysAddr(addr),
            bits,
            is_device,
            free: if is_device { 0 } else { 1 << bits },
        };
        set(UNTYPED, untyped(0x40_0000, 22, false));
        set(DEVICE_UNTYPED, untyped(0x80_0000, 21, true));
        set(LARGE_UNTYPED, untyped(0xa0_0000, 21, false));

        let tcb: Ref<Tcb> = Ref::at(tcb_addr);
        kernel.hw.init_fpu(tcb);
        for (source, number) in [
            (cnode_slot, tcb_slot::CTABLE),
            (vspace, tcb_slot::VTABLE),
            (buffer_slot, tcb_slot::BUFFER),
        ] {
            let cap = tree::derive(source, source.unpack());
            tree::insert(cap.unwrap_or(Cap::Null), source, tcb.slot(number));
        }
        tcb.ipc_buffer.set(BUFFER_VADDR);
        tcb.set_reg(index::RIP, CODE_VADDR);
        tcb.sanitise();
        tcb.priority.set(255);
        tcb.mcp.set(255);
        tcb.state.set(ThreadState::Running);
        let sc: Ref<SchedContext> = Ref::at(sc_addr);
        refill::configure_new(sc, kernel.us_to_ticks(BOOT_TIME_SLICE_US), 0, 1, 0);
        sc.tcb.set(Some(tcb));
        tcb.sc.set(Some(sc));
        let pool: Ref<AsidPool> = Ref::at(pool);
        pool.roots[1].set(root.0);
        kernel.asid_pools[0] = Some(pool);
        kernel.irq_slots = Some(Ref::at(irq_addr));
        kernel.core_count = CORES;
        kernel.enqueue(tcb);
        kernel.kicks = 0;
        let mut world = Self { kernel, cnode, initial: tcb, _arena: arena };
        for core in (0..CORES).rev() {
            world.kernel.start_core(core);
        }
        world
    }

    /// The slot with this number in the root CNode.
    #[must_use]
    pub fn slot(&self, number: u64) -> Ref<Slot> {
        self.cnode.add(number)
    }

    /// The capability in the slot with this number.
    #[must_use]
    pub fn cap(&self, number: u64) -> Cap {
        self.slot(number).unpack()
    }

    /// The object behind the capability in the slot with this number.
    #[must_use]
    pub fn object<T>(&self, number: u64) -> Ref<T> {
        Ref::at(self.slot(number).cap.get().addr())
    }

    /// The current thread of a core.
    #[must_use]
    pub fn current(&self, core: usize) -> Option<Ref<Tcb>> {
        self.kernel.cores[core].current
    }

    /// Has the current thread of a core make a system call with what its registers hold.
    pub fn enter(&mut self, core: usize, number: i64) -> Resume {
        self.kernel.hw.time += 300;
        let Some(tcb) = self.current(core) else { return Resume::Idle };
        tcb.set_reg(register::NUMBER, number as u64);
        // The instruction pointer stands behind the SYSCALL.
        tcb.set_reg(index::RIP, tcb.reg(index::RIP) + 2);
        tcb.entry.set(crate::object::tcb::Entry::Syscall);
        let resume = self.kernel.handle_syscall(core);
        self.settle();
        resume
    }

    /// Delivers the interrupts between cores that the last entry caused.
    pub fn settle(&mut self) {
        for _ in 0..64 {
            let Some(core) = (0..CORES)
                .find(|core| self.kernel.hw.kicked[*core] || self.kernel.hw.stalled[*core])
            else {
                return;
            };
            self.kernel.hw.kicked[core] = false;
            self.kernel.hw.stalled[core] = false;
            self.interrupt(core, RESCHEDULE_VECTOR);
        }
        assert!(!self.kernel.hw.kicked.contains(&true), "cores wake one another without end");
    }

    /// Interrupts a core.
    pub fn interrupt(&mut self, core: usize, vector: u8) -> Resume {
        if let Some(tcb) = self.current(core) {
            tcb.entry.set(crate::object::tcb::Entry::Other);
        }
        self.kernel.handle_interrupt(core, vector)
    }

    /// Lets time pass; timers fire on their way.
    pub fn advance(&mut self, ticks: u64) {
        let end = self.kernel.hw.time + ticks;
        loop {
            let next = (0..CORES)
                .filter_map(|core| self.kernel.hw.deadlines[core].map(|at| (at, core)))
                .min();
            match next {
                Some((at, core)) if at <= end => {
                    self.kernel.hw.time = self.kernel.hw.time.max(at);
                    self.kernel.hw.deadlines[core] = None;
                    self.interrupt(core, crate::limits::TIMER_VECTOR);
                    self.settle();
                }
                _ => break,
            }
        }
        self.kernel.hw.time = end;
    }

    /// Writes a message into a thread's registers and IPC buffer.
    pub fn write_message(tcb: Ref<Tcb>, label: u64, words: &[u64], caps: &[u64]) {
        let buffer = crate::ipc::transfer::ipc_buffer(tcb, false);
        for (number, word) in words.iter().enumerate() {
            if number < 4 {
                tcb.set_mr(number, *word);
            } else if let Some(buffer) = buffer {
                buffer.set(buffer_word::MSG + number, *word);
            }
        }
        for (number, cap) in caps.iter().enumerate() {
            if let Some(buffer) = buffer {
                buffer.set(buffer_word::CAPS_OR_BADGES + number, *cap);
            }
        }
        let info = MessageInfo::new(label, 0, caps.len() as u64, words.len() as u64);
        tcb.set_reg(register::MESSAGE_INFO, info.0);
    }

    /// Calls a capability as the current thread of core 0, again after preemption.
    ///
    /// # Panics
    /// If nobody runs, or preemption never ends.
    #[expect(clippy::panic, reason = "host tests only")]
    pub fn call(&mut self, cap: u64, label: u64, words: &[u64], caps: &[u64]) -> Answer {
        let Some(tcb) = self.current(0) else { panic!("nobody runs on core 0") };
        Self::write_message(tcb, label, words, caps);
        tcb.set_reg(register::CAPABILITY, cap);
        let start = tcb.reg(index::RIP);
        for _ in 0..100_000 {
            self.enter(0, Syscall::Call as i64);
            if tcb.reg(index::RIP) != start || self.current(0) != Some(tcb) {
                return Self::answer(tcb);
            }
            // Preempted: the interrupt comes, and the call is made again.
            self.kernel.hw.is_interrupt_pending = false;
        }
        panic!("preempted without end");
    }

    /// Reads the message in a thread's registers.
    #[must_use]
    pub fn answer(tcb: Ref<Tcb>) -> Answer {
        let info = MessageInfo(tcb.reg(register::MESSAGE_INFO));
        Answer {
            label: info.label(),
            words: [tcb.mr(0), tcb.mr(1), tcb.mr(2), tcb.mr(3)],
            length: info.length(),
        }
    }

    /// Calls and expects success.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&mut self, cap: u64, label: Label, words: &[u64], caps: &[u64]) -> Answer {
        let answer = self.call(cap, label as u64, words, caps);
        assert_eq!(answer.label, 0, "{label:?} {words:x?} {caps:?}: {answer:?}");
        answer
    }

    /// Makes objects from the large untyped.
    pub fn make(&mut self, object: ObjectType, bits: u64, slot: u64, count: u64) {
        self.make_from(UNTYPED, object, bits, slot, count);
    }

    /// Makes objects from an untyped.
    pub fn make_from(
        &mut self,
        untyped: u64,
        object: ObjectType,
        bits: u64,
        slot: u64,
        count: u64,
    ) {
        let words = [object as u64, bits, 0, 0, slot, count];
        self.ok(untyped, Label::UntypedRetype, &words, &[abi::bootinfo::slot::CNODE]);
    }

    /// Makes a thread with the initial thread's spaces; `sc` = slot for a scheduling context of its own (round robin), if any.
    pub fn thread(&mut self, slot: u64, priority: u64, sc: Option<u64>) -> Ref<Tcb> {
        use abi::bootinfo::slot as fixed;
        self.make(ObjectType::Tcb, 0, slot, 1);
        self.ok(slot, Label::TCBConfigure, &[0, 0, 0], &[fixed::CNODE, fixed::VSPACE, fixed::NULL]);
        self.ok(slot, Label::TCBSetPriority, &[priority], &[fixed::TCB]);
        self.ok(slot, Label::TCBSetMCPriority, &[priority], &[fixed::TCB]);
        let tcb = self.object(slot);
        if let Some(sc) = sc {
            self.make(ObjectType::SchedContext, 8, sc, 1);
            self.ok(
                SCHED_CONTROL,
                Label::SchedControlConfigureFlags,
                &[1000, 1000, 0, 0, 0],
                &[sc],
            );
            self.ok(sc, Label::SchedContextBind, &[], &[slot]);
        }
        self.ok(slot, Label::TCBWriteRegisters, &[0, 2, CODE_VADDR + 0x1000, 0], &[]);
        tcb
    }

    /// Has the current thread of core 0 make a system call on a capability without looking at the result.
    pub fn syscall(&mut self, call: Syscall, cap: u64, reply: u64, words: &[u64]) -> Resume {
        if let Some(tcb) = self.current(0) {
            Self::write_message(tcb, 0, words, &[]);
            tcb.set_reg(register::CAPABILITY, cap);
            tcb.set_reg(register::REPLY, reply);
        }
        self.enter(0, call as i64)
    }

    /// Tells whether the initial thread and its scheduling context still exist.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        use abi::bootinfo::slot as fixed;
        self.cap(fixed::TCB) == (Cap::Thread { addr: self.initial.addr() })
            && self.slot(fixed::SCHED_CONTEXT).cap.get().is(Tag::SchedContext)
            && self.initial.slot(tcb_slot::CTABLE).cap.get().is(Tag::CNode)
            && self.cap(fixed::CNODE) != Cap::Null
    }

    /// Gets the initial thread going again with its own scheduling context, as an almighty parent would.
    pub fn revive(&mut self) {
        if (0..CORES).any(|core| self.current(core) == Some(self.initial)) {
            // It runs, on another core.
            self.advance(50_000);
            return;
        }
        let sc: Ref<SchedContext> = self.object(abi::bootinfo::slot::SCHED_CONTEXT);
        self.kernel.core = 0;
        self.kernel.hw.time += 1000;
        self.kernel.update_time();
        if self.initial.sc.get() != Some(sc) {
            if let Some(own) = self.initial.sc.get() {
                self.kernel.unbind_context(own, self.initial);
            }
            if let Some(other) = sc.tcb.get() {
                self.kernel.unbind_context(sc, other);
            }
            sc.core.set(0);
            self.kernel.bind_context(sc, self.initial);
        }
        let budget = self.kernel.us_to_ticks(BOOT_TIME_SLICE_US);
        let now = self.kernel.hw.time;
        self.kernel.release_remove(self.initial);
        refill::configure_new(sc, budget, 0, 1, now);
        self.kernel.restart(self.initial);
        self.kernel.resume_context(Some(sc));
        if Kernel::<Model>::is_schedulable(self.initial) && self.current(0) != Some(self.initial) {
            self.kernel.enqueue(self.initial);
        }
        self.kernel.start_core(0);
        self.settle();
    }

    /// Has a thread that is current on core 0 wait on the notification in the first free slot, or stop if there is none.
    pub fn make_wait(&mut self, tcb: Ref<Tcb>) {
        assert_eq!(self.current(0), Some(tcb));
        self.syscall(Syscall::Wait, FREE, 0, &[]);
    }

    /// Text on the console so far.
    #[must_use]
    pub fn console(&self) -> std::string::String {
        std::string::String::from_utf8_lossy(&self.kernel.hw.console).into_owned()
    }

    /// Every slot that can be reached from the kernel's own roots.
    #[must_use]
    pub fn slots(&self) -> Vec<Ref<Slot>> {
        super::check::slots(&self.kernel, self.cnode)
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// If one is broken.
    pub fn check(&mut self) {
        super::check::all(&mut self.kernel, self.cnode);
    }
}
