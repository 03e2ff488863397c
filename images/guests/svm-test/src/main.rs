//! Root task that exercises virtual CPUs, nested paging and timers with small guests, and reports over the debug console.
//!
//! Runs as boot module 0 of the bare kernel. The last line is `svm-test: N passed, M failed`.
#![no_std]
#![no_main]
// UNSAFETY: entry symbol, and memory shared with guests and with the thread on the other core.
#![expect(unsafe_code, reason = "entry, guest memory")]

mod guest;
mod sys;

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::bootinfo::slot;
use abi::vcpu::{control, event, exit, field, harvest, ioio, word};
use abi::{BootInfo, Label, MessageInfo, ObjectType, Syscall};
use guest::Guest;
use sys::{Registers, call, mr, set_mr, tsc};

core::arch::global_asm!(
    ".pushsection .text._start, \"ax\"",
    ".global _start",
    "_start:",
    "lea rsp, [rip + BOOT_STACK + 65536]",
    "xor ebp, ebp",
    "call main",
    "ud2",
    ".global second_start",
    "second_start:",
    "lea rsp, [rip + SECOND_STACK + 16384]",
    "xor ebp, ebp",
    "call second",
    "ud2",
    ".popsection",
);

#[repr(C, align(16))]
struct Stack<const N: usize>(core::cell::UnsafeCell<[u8; N]>);
// SAFETY: each is used by one thread's assembly only.
unsafe impl<const N: usize> Sync for Stack<N> {}
#[unsafe(no_mangle)]
static BOOT_STACK: Stack<65536> = Stack(core::cell::UnsafeCell::new([0; 65536]));
#[unsafe(no_mangle)]
static SECOND_STACK: Stack<16384> = Stack(core::cell::UnsafeCell::new([0; 16384]));

unsafe extern "C" {
    static second_start: u8;
}

struct Console;
impl Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        text.bytes().for_each(sys::put);
        Ok(())
    }
}

macro_rules! say {
    ($($argument:tt)*) => { let _ = writeln!(Console, $($argument)*); };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("svm-test: {info}");
    sys::halt()
}

static PASSED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

fn check(name: &str, is_good: bool) {
    let counter = if is_good { &PASSED } else { &FAILED };
    counter.fetch_add(1, Ordering::Relaxed);
    if !is_good {
        say!("FAIL {name}");
    }
}

fn expect(name: &str, got: u64, wanted: u64) {
    check(name, got == wanted);
    if got != wanted {
        say!("     got {got:#x}, wanted {wanted:#x}");
    }
}

/// Where this program sees guest memory; the 2 MiB frame is guest addresses 0..200000h.
const WINDOW: u64 = 0x2000_0000;
const CODE: u64 = 0x1000;
const RESULTS: u64 = 0x2000;
const IDT: u64 = 0x3000;

fn guest_read(gpa: u64) -> u64 {
    // SAFETY: the frame is mapped at the window, all accesses are within 2 MiB and aligned.
    unsafe { ((WINDOW + gpa) as *const u64).read_volatile() }
}

fn guest_write(gpa: u64, value: u64) {
    // SAFETY: as for `guest_read`.
    unsafe { ((WINDOW + gpa) as *mut u64).write_volatile(value) };
}

/// Gives out slots and memory.
struct Allocator {
    next_slot: u64,
    untyped: u64,
}

impl Allocator {
    fn slot(&mut self) -> u64 {
        self.next_slot += 1;
        self.next_slot - 1
    }

    fn make(&mut self, object: ObjectType, bits: u64) -> u64 {
        let slot = self.slot();
        let words = [object as u64, bits, 0, 0, slot, 1];
        let (error, _) = call(self.untyped, Label::UntypedRetype, &[slot::CNODE], &words);
        if error != 0 {
            say!("retype of {object:?} fails with {error}");
            sys::halt();
        }
        slot
    }

    fn copy(&mut self, cap: u64) -> u64 {
        let slot = self.slot();
        let words = [slot, 64, cap, 64, 15];
        let (error, _) = call(slot::CNODE, Label::CNodeCopy, &[slot::CNODE], &words);
        expect("copy of a capability", error, 0);
        slot
    }

    fn mint(&mut self, cap: u64, badge: u64) -> u64 {
        let slot = self.slot();
        let words = [slot, 64, cap, 64, 15, badge];
        let (error, _) = call(slot::CNODE, Label::CNodeMint, &[slot::CNODE], &words);
        expect("minting a capability", error, 0);
        slot
    }
}

fn ok(name: &str, (error, _): (u64, u64)) {
    expect(name, error, 0);
}

/// A virtual CPU and where VMEnter left it.
#[derive(Clone, Copy)]
struct Vm {
    vcpu: u64,
    rip: u64,
    control: u64,
    event: u64,
}

/// A return of VMEnter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Return {
    Signal(u64),
    Exit(u64),
}

impl Vm {
    fn enter(&mut self) -> Return {
        let mut registers =
            Registers { mr: [self.rip, self.control, self.event, 0], ..Registers::default() };
        sys::syscall(Syscall::VMEnter as i64, &mut registers);
        let [rip, control, event, code] = registers.mr;
        (self.rip, self.control, self.event) = (rip, control & control::KEEP, event);
        STATUS.store(control, Ordering::Relaxed);
        if MessageInfo(registers.info).label() == abi::vcpu::RETURN_EXIT {
            Return::Exit(code)
        } else {
            Return::Signal(registers.cap)
        }
    }

    fn write(&self, pairs: &[(u64, u64)]) -> (u64, u64) {
        let mut words = [0; 112];
        for (number, (id, value)) in pairs.iter().enumerate() {
            words[2 * number] = *id;
            words[2 * number + 1] = *value;
        }
        call(self.vcpu, Label::VCPUWriteState, &[], &words[..2 * pairs.len()])
    }

    fn read(&self, id: u64) -> u64 {
        let (error, value) = call(self.vcpu, Label::VCPUReadState, &[], &[id]);
        expect("reading a state field", error, 0);
        value
    }

    /// Loads a guest's code and starts it in 64-bit mode.
    fn load(&mut self, guest: Guest) {
        for (number, byte) in guest.code().iter().enumerate() {
            let at = CODE + number as u64;
            // SAFETY: inside the window.
            unsafe { ((WINDOW + at) as *mut u8).write_volatile(*byte) };
        }
        let data = 0x10 | 0xc93 << 16 | 0xffff_ffff << 32;
        ok(
            "long mode state",
            self.write(&[
                (field::CR0, 0x8000_0033),
                (field::CR3, 0x5000),
                (field::CR4, 0x620),
                (field::EFER, 0x500),
                (field::CS, 8 | 0xa9b << 16 | 0xffff_ffff << 32),
                (field::CS + 1, 0),
                (field::SS, data),
                (field::DS, data),
                (field::ES, data),
                (field::GDTR, 0xffff << 32),
                (field::GDTR + 1, 0x4000),
                (field::IDTR, 0xfff << 32),
                (field::IDTR + 1, IDT),
                (field::TR, 0x18 | 0x8b << 16 | 0x67 << 32),
                (field::RFLAGS, 2),
                (field::RSP, 0x1_0000),
                (field::CPL, 0),
            ]),
        );
        (self.rip, self.control, self.event) = (CODE, 0, 0);
    }
}

/// Control word of the last return.
static STATUS: AtomicU64 = AtomicU64::new(0);

fn status() -> u64 {
    STATUS.load(Ordering::Relaxed)
}

/// Starts the endless guest, with interrupts off: it must be stopped all the same. (Bochs stops it only with IF set, since it
/// takes over the guest's mask at VMRUN.)
fn load_endless(vm: &mut Vm) {
    vm.load(Guest::Endless);
    let flags = if sys::is_virtual() { 2 } else { 0x202 };
    ok("flags", vm.write(&[(field::RFLAGS, flags)]));
    with_registers(vm, &[(3, 0)]);
}

/// Sets registers for the next entry.
fn with_registers(vm: &mut Vm, registers: &[(usize, u64)]) {
    for (number, value) in registers {
        set_mr(word::GPR + number, *value);
        vm.control |= 1 << (control::GPR_SHIFT as usize + number);
    }
}

/// IDT gate of a vector to the handler at offset 80h of the code.
fn set_gate(vector: u64) {
    guest_write(IDT + vector * 16, 0x0000_8e00_0008_0000 | (CODE + 0x80));
    guest_write(IDT + vector * 16 + 8, 0);
}

/// Nested space of the first gigabyte with a 2 MiB frame at 0.
struct Space {
    root: u64,
    frame: u64,
}

fn build_space(allocator: &mut Allocator) -> Space {
    let root = allocator.make(ObjectType::NptPml4, 0);
    ok("ASID of the nested root", call(slot::ASID_POOL, Label::X86ASIDPoolAssign, &[root], &[]));
    let frame = allocator.make(ObjectType::LargePage, 0);
    let nested = allocator.copy(frame);
    let map = |root: u64| call(nested, Label::X86PageMapNPT, &[root], &[0, 3, 0]);
    let (error, _) = map(root);
    expect("mapping without tables is a failed lookup", error, 6);
    expect("... of the top level", mr(2), 39);
    let pdpt = allocator.make(ObjectType::NptPdpt, 0);
    ok("mapping a PDPT", call(pdpt, Label::NPTPDPTMap, &[root], &[0, 0]));
    let (error, _) = call(pdpt, Label::NPTPDPTMap, &[root], &[1 << 39, 0]);
    expect("a table is mapped once", error, 2);
    let directory = allocator.make(ObjectType::NptPd, 0);
    ok("mapping a page directory", call(directory, Label::NPTPDMap, &[root], &[0, 0]));
    ok("mapping a 2 MiB frame", map(root));
    let (error, _) = call(nested, Label::X86PageMapNPT, &[root], &[1 << 47, 3, 0]);
    expect("addresses end at 2^47", error, 1);
    let table = allocator.make(ObjectType::NptPt, 0);
    ok("mapping a page table", call(table, Label::NPTPTMap, &[root], &[0x20_0000, 0]));
    ok("own window", call(frame, Label::X86PageMap, &[slot::VSPACE], &[WINDOW, 3, 0]));
    Space { root, frame }
}

/// Identity page tables and GDT of the guest.
fn build_guest_tables() {
    guest_write(0x5000, 0x6003);
    guest_write(0x6000, 0x7003);
    for page in 0..8 {
        guest_write(0x7000 + page * 8, page << 21 | 0x83);
    }
    guest_write(0x4008, 0x00af_9b00_0000_ffff);
    guest_write(0x4010, 0x00cf_9300_0000_ffff);
}

fn new_vcpu(allocator: &mut Allocator, root: u64) -> Vm {
    let vcpu = allocator.make(ObjectType::Vcpu, 0);
    ok("nested root", call(vcpu, Label::VCPUSetNPTRoot, &[root], &[]));
    Vm { vcpu, rip: 0, control: 0, event: 0 }
}

fn test_cpuid(vm: &mut Vm) {
    const ROUNDS: u64 = 1000;
    vm.load(Guest::Cpuid);
    with_registers(vm, &[(1, ROUNDS)]);
    let mut exits = 0;
    let (mut inside, mut longest) = (0, 0);
    loop {
        let start = tsc();
        let what = vm.enter();
        let took = tsc() - start;
        match what {
            Return::Exit(exit::CPUID) => {
                exits += 1;
                if exits > 1 {
                    inside += took;
                    longest = longest.max(took);
                }
                vm.rip += 2;
                with_registers(vm, &[(0, 1), (1, 2), (2, 3), (3, 4)]);
            }
            Return::Exit(exit::HLT) => break,
            other => {
                say!("     {other:x?} at {:#x}", vm.rip);
                check("CPUID loop", false);
                return;
            }
        }
    }
    expect("CPUID exits", exits, ROUNDS);
    expect("registers after CPUID", mr(word::GPR + 3), 4);
    let total = guest_read(RESULTS + 8).wrapping_sub(guest_read(RESULTS));
    say!(
        "figure: CPUID round trip {} ticks in the guest, of which VMEnter {} (longest {longest})",
        total / ROUNDS,
        inside / (ROUNDS - 1),
    );
}

fn test_ports(vm: &mut Vm) {
    vm.load(Guest::Ports);
    expect("OUT exits", u64::from(vm.enter() == Return::Exit(exit::IOIO)), 1);
    expect(
        "OUT DX, AL",
        mr(word::EXITINFO1),
        0x3f8 << 16 | ioio::SIZE8 | mr(word::EXITINFO1) & 0x380,
    );
    expect("AL", mr(word::GPR) & 0xff, 0x41);
    vm.rip = mr(word::EXITINFO2);
    check("IN exits", vm.enter() == Return::Exit(exit::IOIO));
    check("IN AL, DX", mr(word::EXITINFO1) & 0xffff_007f == 0x3f8 << 16 | ioio::SIZE8 | ioio::IN);
    vm.rip = mr(word::EXITINFO2);
    let rax = mr(word::GPR);
    with_registers(vm, &[(0, rax & !0xff | 0x5a)]);
    check("OUT imm8 exits", vm.enter() == Return::Exit(exit::IOIO));
    check("OUT 80h, EAX", mr(word::EXITINFO1) & 0xffff_007f == 0x80 << 16 | ioio::SIZE32);
    vm.rip = mr(word::EXITINFO2);
    expect("IN wrote memory", guest_read(RESULTS) & 0xff, 0x5a);
    check("IN AX exits", vm.enter() == Return::Exit(exit::IOIO));
    check("IN AX, 60h", mr(word::EXITINFO1) & 0xffff_007f == 0x60 << 16 | ioio::SIZE16 | ioio::IN);
    vm.rip = mr(word::EXITINFO2);
    check("HLT exits", vm.enter() == Return::Exit(exit::HLT));
}

fn test_nested_faults(vm: &mut Vm, space: &Space, allocator: &mut Allocator) {
    const PAGES: u64 = 4;
    const FIRST: u64 = 0x20_0000;
    let harvest = |flags: u64| {
        let (error, looked) = call(space.root, Label::NPTHarvest, &[], &[FIRST, 512, flags]);
        expect("harvest", error, 0);
        expect("pages looked at", looked, 512);
        (mr(1), mr(harvest::ACCESSED_WORD), mr(harvest::DIRTY_WORD))
    };
    vm.load(Guest::Touch);
    with_registers(vm, &[(3, FIRST), (1, PAGES)]);
    let mut frames = [0; PAGES as usize];
    let mut faults = 0;
    loop {
        match vm.enter() {
            Return::Exit(exit::NPF) => {
                let gpa = mr(word::EXITINFO2);
                expect("first touch in order", gpa, FIRST + faults * 0x1000);
                expect("fault is a write to a missing page", mr(word::EXITINFO1), 1 << 32 | 6);
                check("decode words are there", status() & control::DECODE_WORDS != 0);
                expect("CR3 of the guest", mr(word::CR3), 0x5000);
                let frame = allocator.make(ObjectType::Page4K, 0);
                let words = [gpa & !0xfff, 3, 0];
                ok("lazy mapping", call(frame, Label::X86PageMapNPT, &[space.root], &words));
                frames[faults as usize] = frame;
                faults += 1;
            }
            Return::Exit(exit::HLT) => break,
            other => {
                say!("     {other:x?}");
                check("lazy mapping runs to HLT", false);
                return;
            }
        }
    }
    expect("one fault per page", faults, PAGES);
    expect("sum of the pages", mr(word::GPR), 4 * FIRST + 0x6000);
    let mask = (1 << PAGES) - 1;
    check("harvest sees pages touched", harvest(0) == (PAGES, mask, mask));
    check("harvest clears", harvest(3) == (PAGES, mask, mask));
    check("harvest has cleared", harvest(0) == (PAGES, 0, 0));
    // Page 2 goes away for good, page 1 becomes read-only.
    ok("unmap", call(frames[2], Label::X86PageUnmap, &[], &[]));
    let (error, _) = call(frames[1], Label::X86PageMapNPT, &[space.root], &[FIRST, 3, 0]);
    expect("another address is refused", error, 1);
    let words = [FIRST + 0x1000, 2, 0];
    ok("fewer rights", call(frames[1], Label::X86PageMapNPT, &[space.root], &words));
    vm.rip += 1;
    with_registers(vm, &[(3, FIRST), (1, PAGES)]);
    check("write to a read-only page", vm.enter() == Return::Exit(exit::NPF));
    expect("... its address", mr(word::EXITINFO2), FIRST + 0x1000);
    expect("... is a rights violation", mr(word::EXITINFO1), 1 << 32 | 7);
    check("only page 0 was written since", harvest(0) == (PAGES - 1, 1, 1));
    let words = [FIRST + 0x1000, 3, 0];
    ok("more rights", call(frames[1], Label::X86PageMapNPT, &[space.root], &words));
    check("write to an unmapped page", vm.enter() == Return::Exit(exit::NPF));
    expect("... its address", mr(word::EXITINFO2), FIRST + 0x2000);
    let words = [frames[3], 64];
    ok("deleting a frame", call(slot::CNODE, Label::CNodeDelete, &[], &words));
    let words = [FIRST + 0x2000, 3, 0];
    ok("mapping again", call(frames[2], Label::X86PageMapNPT, &[space.root], &words));
    check("write to a deleted page", vm.enter() == Return::Exit(exit::NPF));
    expect("... its address", mr(word::EXITINFO2), FIRST + 0x3000);
}

fn test_interrupts(vm: &mut Vm) {
    const VECTOR: u64 = 0x40;
    set_gate(VECTOR);
    vm.load(Guest::Irq);
    check("VMMCALL exits", vm.enter() == Return::Exit(exit::VMMCALL));
    vm.rip += 3;
    vm.control |= control::V_IRQ | VECTOR;
    check("second VMMCALL", vm.enter() == Return::Exit(exit::VMMCALL));
    expect("no delivery with IF clear", mr(word::GPR + 13), 0);
    check("still pending", status() & control::V_IRQ != 0 && status() & control::VECTOR == VECTOR);
    check("IF is told", status() & control::INTERRUPT_FLAG == 0);
    vm.rip += 3;
    check("HLT after delivery", vm.enter() == Return::Exit(exit::HLT));
    expect("delivered once with IF set", mr(word::GPR + 14), 1);
    check("no longer pending", status() & control::V_IRQ == 0);
    check("IF is told", status() & control::INTERRUPT_FLAG != 0);
    check("64-bit code is told", status() & control::LONG != 0);

    vm.load(Guest::Irq);
    check("window: VMMCALL", vm.enter() == Return::Exit(exit::VMMCALL));
    vm.rip += 3;
    vm.control |= control::WINDOW;
    check("window: second VMMCALL", vm.enter() == Return::Exit(exit::VMMCALL));
    check(
        "window is still asked for",
        status() & control::WINDOW != 0 && status() & control::V_IRQ == 0,
    );
    vm.rip += 3;
    check("window opens", vm.enter() == Return::Exit(exit::VINTR));
    check("window is closed", status() & (control::WINDOW | control::V_IRQ) == 0);
    check("interrupts are open in it", status() & control::INTERRUPT_FLAG != 0);
    vm.control |= control::V_IRQ | VECTOR;
    check("window: HLT", vm.enter() == Return::Exit(exit::HLT));
    expect("window: delivered", mr(word::GPR + 12), 1);

    vm.load(Guest::Shadow);
    ok("interrupts on", vm.write(&[(field::RFLAGS, 0x202)]));
    with_registers(vm, &[(3, 0), (12, 99)]);
    vm.control |= control::V_IRQ | VECTOR | control::SHADOW;
    check("shadow: HLT", vm.enter() == Return::Exit(exit::HLT));
    if sys::is_virtual() {
        expect("one instruction runs in the shadow", mr(word::GPR + 12), 1);
    } else {
        // Bochs keeps V_IRQ masked until IF changes.
        say!("skipped: interrupt shadow");
    }
    vm.load(Guest::Shadow);
    ok("interrupts on", vm.write(&[(field::RFLAGS, 0x202)]));
    with_registers(vm, &[(3, 0), (12, 99)]);
    vm.control |= control::V_IRQ | VECTOR;
    check("no shadow: HLT", vm.enter() == Return::Exit(exit::HLT));
    expect("none without it", mr(word::GPR + 12), 0);

    vm.load(Guest::StiHlt);
    vm.control |= control::V_IRQ | VECTOR;
    check("STI; HLT exits at HLT", vm.enter() == Return::Exit(exit::HLT));
    expect("before the handler", mr(word::GPR + 12), 0);
    vm.rip += 1;
    vm.control &= !control::SHADOW;
    check("second HLT", vm.enter() == Return::Exit(exit::HLT));
    expect("handler ran between", mr(word::GPR + 14), 1);
}

fn test_faults(vm: &mut Vm) {
    set_gate(13);
    vm.load(Guest::Fault);
    vm.event = event::VALID
        | event::TYPE_EXCEPTION
        | event::ERROR_VALID
        | 13
        | 0xabcd << event::ERROR_SHIFT;
    check("exception handler's HLT", vm.enter() == Return::Exit(exit::HLT));
    expect("error code", guest_read(RESULTS), 0xabcd);
    expect("the event is used up", vm.event, 0);

    if sys::is_virtual() {
        vm.load(Guest::Triple);
        ok("no IDT", vm.write(&[(field::IDTR, 0)]));
        check("triple fault is a shutdown", vm.enter() == Return::Exit(exit::SHUTDOWN));
    } else {
        // Bochs resets the whole machine instead.
        say!("skipped: triple fault");
    }

    vm.load(Guest::Triple);
    ok("intercept #UD", vm.write(&[(field::INTERCEPT_EXCEPTIONS, 1 << 6)]));
    check("#UD exits", vm.enter() == Return::Exit(exit::EXCEPTION + 6));
    ok("no intercept", vm.write(&[(field::INTERCEPT_EXCEPTIONS, 0)]));

    // The stack of the delivery is not mapped: the nested fault cuts the delivery short, and the event comes back.
    vm.load(Guest::Fault);
    ok("stack in a hole", vm.write(&[(field::RSP, 0x80_1000)]));
    vm.event =
        event::VALID | event::TYPE_EXCEPTION | event::ERROR_VALID | 13 | 7 << event::ERROR_SHIFT;
    check("delivery faults", vm.enter() == Return::Exit(exit::NPF));
    expect(
        "the event comes back",
        vm.event & 0x7_8000_0fff,
        event::VALID | event::TYPE_EXCEPTION | event::ERROR_VALID | 13 | 7 << event::ERROR_SHIFT,
    );
    ok("stack", vm.write(&[(field::RSP, 0x1_0000)]));
    check("delivered again", vm.enter() == Return::Exit(exit::HLT));
    expect("... with its error code", guest_read(RESULTS), 7);

    set_gate(1);
    vm.load(Guest::Step);
    with_registers(vm, &[(3, 0), (12, 0)]);
    check("a step is the guest's own", vm.enter() == Return::Exit(exit::HLT));
    expect("... one exception", mr(word::GPR + 12), 1);
    expect("... after one instruction", mr(word::GPR + 13), 1);
    expect("... and the rest ran", mr(word::GPR + 3), 2);
    vm.load(Guest::Step);
    ok("intercept #DB", vm.write(&[(field::INTERCEPT_EXCEPTIONS, 1 << 1)]));
    check("#DB exits when asked for", vm.enter() == Return::Exit(exit::EXCEPTION + 1));
    ok("no intercept", vm.write(&[(field::INTERCEPT_EXCEPTIONS, 0)]));

    set_gate(0x40);
    vm.load(Guest::Shadow);
    ok("stack in a hole", vm.write(&[(field::RSP, 0x80_1000), (field::RFLAGS, 0x202)]));
    with_registers(vm, &[(3, 0), (12, 99)]);
    vm.control |= control::V_IRQ | 0x40;
    check("delivery of an interrupt faults", vm.enter() == Return::Exit(exit::NPF));
    check(
        "it is pending again",
        status() & control::V_IRQ != 0 && status() & control::VECTOR == 0x40,
    );
    expect("no event besides", vm.event, 0);
    ok("stack", vm.write(&[(field::RSP, 0x1_0000)]));
    check("delivered again", vm.enter() == Return::Exit(exit::HLT));
    expect("... at the same place", mr(word::GPR + 12), 0);
}

/// The guests' registers follow this thread from core to core.
fn test_migration(vms: [&mut Vm; 2], info: &BootInfo) {
    let [first, second] = vms;
    for round in 0..6 {
        let control = info.sched_control.start + (round + 1) % 2;
        let words = [5_000, 5_000, 0, 0, 0];
        ok(
            "migration",
            call(control, Label::SchedControlConfigureFlags, &[slot::SCHED_CONTEXT], &words),
        );
        for (vm, value) in [(&mut *first, 0x1111_2222), (&mut *second, 0x3333_4444)] {
            if round % 3 == 2 && value == 0x1111_2222 {
                // This one stays behind in the registers of the other core.
                continue;
            }
            bind(vm);
            vm.rip += 1;
            check("private guest after migration", vm.enter() == Return::Exit(exit::HLT));
            expect("XMM7 moves along", mr(word::GPR), value);
            expect("DR0 moves along", mr(word::GPR + 1), value);
            expect("CR2 moves along", mr(word::GPR + 2), value);
        }
    }
    bind(first);
}

fn test_private_state(first: &mut Vm, second: &mut Vm) {
    first.load(Guest::Private);
    second.load(Guest::Private);
    bind(first);
    with_registers(first, &[(3, 0x1111_2222)]);
    check("first private guest", first.enter() == Return::Exit(exit::HLT));
    bind(second);
    with_registers(second, &[(3, 0x3333_4444)]);
    check("second private guest", second.enter() == Return::Exit(exit::HLT));
    for _ in 0..3 {
        for (vm, value) in [(&mut *first, 0x1111_2222), (&mut *second, 0x3333_4444)] {
            bind(vm);
            vm.rip += 1;
            check("private guest again", vm.enter() == Return::Exit(exit::HLT));
            expect("XMM7 is the guest's own", mr(word::GPR), value);
            expect("DR0 is the guest's own", mr(word::GPR + 1), value);
            expect("DR0 can be read", vm.read(field::DR0), value);
            expect("CR2 is the guest's own", mr(word::GPR + 2), value);
        }
    }
    // A thread that uses the registers itself keeps its own.
    ok("FPU for this thread", call(slot::TCB, Label::TCBSetFlags, &[], &[1, 0]));
    for (vm, value) in [(&mut *first, 0x1111_2222), (&mut *second, 0x3333_4444)] {
        bind(vm);
        vm.rip += 1;
        sys::set_xmm7(0x5555_6666);
        check("private guest of an FPU thread", vm.enter() == Return::Exit(exit::HLT));
        expect("the thread's XMM7", sys::xmm7(), 0x5555_6666);
        expect("the guest's XMM7", mr(word::GPR), value);
    }
    ok("no FPU for this thread", call(slot::TCB, Label::TCBSetFlags, &[], &[0, 1]));
    bind(first);
    ok("CR2 by its writer", first.write(&[(field::CR2, 0x7777_8888)]));
    first.rip += 1;
    check("private guest with another CR2", first.enter() == Return::Exit(exit::HLT));
    expect("CR2 as written", mr(word::GPR + 2), 0x7777_8888);
    ok("CR2 as before", first.write(&[(field::CR2, 0x1111_2222)]));
}

fn bind(vm: &Vm) {
    ok("binding a virtual CPU", call(vm.vcpu, Label::VCPUSetTCB, &[slot::TCB], &[]));
}

fn test_msrs(vm: &mut Vm) {
    ok("MSR pass-through", call(vm.vcpu, Label::VCPUEnableMSR, &[], &[0xc000_0100]));
    for msr in [0x10, 0xc000_0080, 0xc000_0103, 0x1b, 0xc001_0114, 0xc001_0117] {
        let (error, _) = call(vm.vcpu, Label::VCPUEnableMSR, &[], &[msr]);
        expect("other MSRs stay closed", error, 1);
    }
    vm.load(Guest::Msr);
    check("RDMSR of the TSC exits", vm.enter() == Return::Exit(exit::MSR));
    expect("RDMSR", mr(word::EXITINFO1), 0);
    expect("which MSR", mr(word::GPR + 1), 0x10);
    vm.rip += 2;
    check("FS base does not", vm.enter() == Return::Exit(exit::HLT));
    expect("FS base", guest_read(RESULTS + 8) & 0xffff_ffff, 0x1234);
    expect("FS base field", vm.read(field::FS + 1), 0x1234);
    ok("no pass-through", call(vm.vcpu, Label::VCPUDisableMSR, &[], &[0xc000_0100]));
    vm.load(Guest::Msr);
    check("RDMSR exits", vm.enter() == Return::Exit(exit::MSR));
    vm.rip += 2;
    check("FS base exits now", vm.enter() == Return::Exit(exit::MSR));
    expect("WRMSR", mr(word::EXITINFO1), 1);
}

fn test_forbidden(vm: &mut Vm) {
    // Exit codes and instruction lengths in the order of the code.
    let wanted = [
        (exit::VMRUN, 3),
        (exit::VMLOAD, 3),
        (exit::VMSAVE, 3),
        (exit::STGI, 3),
        (exit::CLGI, 3),
        (exit::SKINIT, 3),
        (exit::INVLPGA, 3),
        (exit::WBINVD, 2),
        (exit::RDPMC, 2),
        (exit::CR8_WRITE, 4),
        (exit::MONITOR, 3),
        (exit::HLT, 1),
    ];
    vm.load(Guest::Forbidden);
    // VMRUN, VMLOAD and VMSAVE check their address before the intercept.
    with_registers(vm, &[(0, 0), (1, 0), (2, 0)]);
    for (code, length) in wanted {
        match vm.enter() {
            Return::Exit(got) => expect("forbidden instruction", got, code),
            Return::Signal(_) => check("forbidden instruction", false),
        }
        vm.rip += length;
    }
    let refused = [
        (field::XCR0, 0),
        (field::XCR0, 1 << 63 | 1),
        (field::TSC_AUX, 1 << 32),
        (field::EFER, 1 << 12),
        (field::CR0, 1 << 29),
        (field::G_PAT, 2),
        (field::INTERCEPT_EXCEPTIONS, 4),
        (field::INTERCEPT_INSTRUCTIONS, 1 << 4),
        (field::EXITCODE, 0),
        (field::LIMIT, 0),
    ];
    for pair in refused {
        let (error, _) = vm.write(&[(field::RAX, 1), pair]);
        expect("refused value", error, 1);
    }
    ok(
        "no intercepts asked for",
        vm.write(&[(field::INTERCEPT_CR, 0), (field::INTERCEPT_INSTRUCTIONS, 0)]),
    );
    check("CR8 writes stay intercepted", vm.read(field::INTERCEPT_CR) == 1 << 24);
    check(
        "CPUID and HLT stay intercepted",
        vm.read(field::INTERCEPT_INSTRUCTIONS) & 0x0104_0000 == 0x0104_0000,
    );
    vm.load(Guest::Forbidden);
    with_registers(vm, &[(0, 0)]);
    check("VMRUN still exits", vm.enter() == Return::Exit(exit::VMRUN));
    // A state that VMRUN refuses comes back as an exit.
    ok(
        "ASID is not to be chosen, but CR3 is",
        vm.write(&[(field::DR7, 0x400), (field::CR0, 0x8000_0033 | 1 << 29 | 1 << 30)]),
    );
    check("odd CR0 runs", vm.enter() == Return::Exit(exit::VMRUN));
}

fn test_real_mode(vm: &mut Vm) {
    vm.load(Guest::Real);
    let segment = 0x9b << 16 | 0xffff << 32;
    let data = 0x93 << 16 | 0xffff << 32;
    ok(
        "real mode state",
        vm.write(&[
            (field::CR0, 0x10),
            (field::CR4, 0),
            (field::EFER, 0),
            (field::CS, 0x100 | segment),
            (field::CS + 1, 0x1000),
            (field::SS, data),
            (field::DS, data),
            (field::ES, data),
        ]),
    );
    vm.rip = 0;
    check("real mode OUT", vm.enter() == Return::Exit(exit::IOIO));
    expect("port", mr(word::EXITINFO1) >> 16, 0x42);
    expect("AX through DS", mr(word::GPR) & 0xffff, 0xbeef);
    expect("CS base", mr(word::CS_BASE), 0x1000);
    vm.rip = mr(word::EXITINFO2);
    check("real mode HLT", vm.enter() == Return::Exit(exit::HLT));
    expect("written at DS base", guest_read(RESULTS) & 0xffff, 0xbeef);
}

fn test_notification(vm: &mut Vm, notification: u64, allocator: &mut Allocator, tsc_hz: u64) {
    let one = allocator.mint(notification, 1);
    let two = allocator.mint(notification, 2);
    load_endless(vm);
    sys::signal(one);
    sys::signal(two);
    check("pending signals return at once", vm.enter() == Return::Signal(3));
    expect("nothing ran", vm.read(field::RBX), 0);

    let timer = allocator.make(ObjectType::Timer, 0);
    ok("timer notification", call(timer, Label::TimerSetNotification, &[one], &[]));
    let delay = tsc_hz / 1000;
    let start = vm.read(field::RBX);
    for _ in 0..3 {
        let deadline = tsc() + delay;
        ok("arming", call(timer, Label::TimerArm, &[], &[deadline]));
        let what = vm.enter();
        check("timer ends VMEnter", what == Return::Signal(1));
        if what != Return::Signal(1) {
            say!("     {what:x?} at {:#x}", vm.rip);
        }
        let late = tsc().wrapping_sub(deadline);
        check("not early", late < 1 << 63);
        say!("figure: timer lateness out of a running guest {late} ticks");
    }
    check("the guest ran meanwhile", vm.read(field::RBX) > start);
    ok("arming", call(timer, Label::TimerArm, &[], &[tsc() + delay]));
    let (error, was_armed) = call(timer, Label::TimerCancel, &[], &[]);
    check("cancelling", error == 0 && was_armed == 1);
    let (_, was_armed) = call(timer, Label::TimerCancel, &[], &[]);
    expect("cancelled already", was_armed, 0);
    ok("arming in the past", call(timer, Label::TimerArm, &[], &[tsc() - 1]));
    expect("signals at once", sys::wait(notification), 1);
    let other = allocator.make(ObjectType::Timer, 0);
    ok("second timer", call(other, Label::TimerSetNotification, &[two], &[]));
    let now = tsc();
    ok("later", call(other, Label::TimerArm, &[], &[now + 2 * delay]));
    ok("sooner", call(timer, Label::TimerArm, &[], &[now + delay]));
    expect("sooner first", sys::wait(notification), 1);
    let late = tsc().wrapping_sub(now + delay);
    say!("figure: timer lateness out of Wait {late} ticks");
    expect("later second", sys::wait(notification), 2);
    ok("arming and deleting", call(timer, Label::TimerArm, &[], &[tsc() + delay]));
    ok("deleting an armed timer", call(slot::CNODE, Label::CNodeDelete, &[], &[timer, 64]));
    ok("other", call(other, Label::TimerArm, &[], &[tsc() + 2 * delay]));
    expect("the deleted one is silent", sys::wait(notification), 2);
}

static ORDER: AtomicU64 = AtomicU64::new(0);
static SIGNAL_CAP: AtomicU64 = AtomicU64::new(0);
static REVOKE_CAP: AtomicU64 = AtomicU64::new(0);

/// The thread on the other core: does what `ORDER` says, then sets it to 0.
#[unsafe(no_mangle)]
extern "C" fn second() -> ! {
    loop {
        let order = ORDER.load(Ordering::Acquire);
        if order == 0 {
            core::hint::spin_loop();
            continue;
        }
        // Long enough for the first core to be inside its guest.
        let until = tsc() + 3_000_000;
        while tsc() < until {
            core::hint::spin_loop();
        }
        if order == 2 {
            // This thread has no IPC buffer: two words in registers and no capability.
            let mut registers = Registers {
                cap: slot::CNODE,
                info: MessageInfo::new(Label::CNodeDelete as u64, 0, 0, 2).0,
                mr: [REVOKE_CAP.load(Ordering::Relaxed), 64, 0, 0],
            };
            sys::syscall(Syscall::Call as i64, &mut registers);
        } else {
            sys::signal(SIGNAL_CAP.load(Ordering::Relaxed));
        }
        ORDER.store(0, Ordering::Release);
    }
}

fn start_second(info: &BootInfo, allocator: &mut Allocator) {
    let tcb = allocator.make(ObjectType::Tcb, 0);
    let context = allocator.make(ObjectType::SchedContext, 8);
    let control = info.sched_control.start + 1;
    ok(
        "scheduling context on core 1",
        call(control, Label::SchedControlConfigureFlags, &[context], &[10_000, 10_000, 0, 0, 0]),
    );
    let caps = [slot::NULL, slot::CNODE, slot::VSPACE];
    ok("spaces", call(tcb, Label::TCBSetSpace, &caps, &[0, 0]));
    ok("priority", call(tcb, Label::TCBSetPriority, &[slot::TCB], &[100]));
    let mut words = [0; 22];
    words[1] = 20;
    words[2] = &raw const second_start as u64;
    ok("registers", call(tcb, Label::TCBWriteRegisters, &[], &words));
    ok("binding", call(context, Label::SchedContextBind, &[tcb], &[]));
    ok("resume", call(tcb, Label::TCBResume, &[], &[]));
}

fn test_other_core(vm: &mut Vm, notification: u64, space: &Space, allocator: &mut Allocator) {
    let badged = allocator.mint(notification, 0x40);
    SIGNAL_CAP.store(badged, Ordering::Relaxed);
    load_endless(vm);
    for _ in 0..5 {
        ORDER.store(1, Ordering::Release);
        check("a signal from the other core ends VMEnter", vm.enter() == Return::Signal(0x40));
    }
    check("the guest ran", vm.read(field::RBX) > 1000);
    while ORDER.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    // The other core deletes the frame of a page that this core's guest uses all the time.
    const PAGE: u64 = 0x21_0000;
    let frame = allocator.make(ObjectType::Page4K, 0);
    ok("page", call(frame, Label::X86PageMapNPT, &[space.root], &[PAGE, 3, 0]));
    REVOKE_CAP.store(frame, Ordering::Relaxed);
    vm.load(Guest::Touch);
    with_registers(vm, &[(3, PAGE), (1, 1)]);
    ORDER.store(2, Ordering::Release);
    let mut rounds = 0;
    loop {
        match vm.enter() {
            Return::Exit(exit::HLT) => {
                rounds += 1;
                vm.rip += 1;
                with_registers(vm, &[(3, PAGE), (1, 1)]);
            }
            Return::Exit(exit::NPF) => {
                expect("fault at the deleted page", mr(word::EXITINFO2), PAGE);
                break;
            }
            other => {
                say!("     {other:x?}");
                check("deleted page", false);
                break;
            }
        }
    }
    check("the page worked before", rounds > 0);
}

fn test_death(vm: &mut Vm, space: &Space, allocator: &mut Allocator) {
    let mut other = new_vcpu(allocator, space.root);
    bind(&other);
    other.load(Guest::Endless);
    ok("deleting the frame's window", call(space.frame, Label::X86PageUnmap, &[], &[]));
    ok("revoking the frame", call(slot::CNODE, Label::CNodeRevoke, &[], &[space.frame, 64]));
    check("guest memory is gone", other.enter() == Return::Exit(exit::NPF));
    ok("deleting the root", call(slot::CNODE, Label::CNodeDelete, &[], &[space.root, 64]));
    check("no root, no entry", other.enter() == Return::Exit(exit::INVALID));
    bind(vm);
    check("nor for its other virtual CPU", vm.enter() == Return::Exit(exit::INVALID));
    ok("deleting a virtual CPU", call(slot::CNODE, Label::CNodeDelete, &[], &[vm.vcpu, 64]));
    ok("and the other", call(slot::CNODE, Label::CNodeDelete, &[], &[other.vcpu, 64]));
}

fn tsc_hz(info: &BootInfo) -> u64 {
    // The extra area follows the BootInfo page.
    let mut at = core::ptr::from_ref(info) as u64 + 4096;
    let end = at + info.extra_len;
    while at + 16 <= end {
        // SAFETY: the kernel mapped `extra_len` bytes of well-formed items there.
        let (id, length) = unsafe { ((at as *const u64).read(), (at as *const u64).add(1).read()) };
        if id == abi::bootinfo::extra_id::X86_TSC_FREQUENCY {
            // SAFETY: the item's content follows its header.
            return u64::from(unsafe { ((at + 16) as *const u32).read() }) * 1_000_000;
        }
        at += length.max(16);
    }
    1_000_000_000
}

#[unsafe(no_mangle)]
extern "C" fn main(info: &BootInfo) -> ! {
    sys::set_buffer(info.ipc_buffer);
    let count = info.untyped.end - info.untyped.start;
    let largest = (0..count as usize)
        .filter(|&number| info.untyped_list[number].is_device == 0)
        .max_by_key(|&number| info.untyped_list[number].size_bits)
        .unwrap_or(0);
    let mut allocator =
        Allocator { next_slot: info.empty.start, untyped: info.untyped.start + largest as u64 };
    ok("no FPU for this thread", call(slot::TCB, Label::TCBSetFlags, &[], &[0, 1]));
    let space = build_space(&mut allocator);
    build_guest_tables();
    let mut vm = new_vcpu(&mut allocator, space.root);
    bind(&vm);
    let notification = allocator.make(ObjectType::Notification, 0);
    ok("bound notification", call(slot::TCB, Label::TCBBindNotification, &[notification], &[]));

    let hz = tsc_hz(info);
    test_cpuid(&mut vm);
    test_ports(&mut vm);
    test_nested_faults(&mut vm, &space, &mut allocator);
    test_interrupts(&mut vm);
    test_faults(&mut vm);
    let mut second = new_vcpu(&mut allocator, space.root);
    test_private_state(&mut vm, &mut second);
    if info.num_nodes > 1 {
        test_migration([&mut vm, &mut second], info);
    }
    test_msrs(&mut vm);
    test_forbidden(&mut vm);
    test_real_mode(&mut vm);
    test_notification(&mut vm, notification, &mut allocator, hz);
    if info.num_nodes > 1 {
        start_second(info, &mut allocator);
        test_other_core(&mut vm, notification, &space, &mut allocator);
    }
    test_death(&mut vm, &space, &mut allocator);
    say!(
        "svm-test: {} passed, {} failed",
        PASSED.load(Ordering::Relaxed),
        FAILED.load(Ordering::Relaxed)
    );
    sys::halt()
}
