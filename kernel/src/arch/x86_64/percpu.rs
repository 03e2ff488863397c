//! What each core owns: stacks, descriptor tables, and the block that GS points to while the core is in the kernel.
//!
//! UNSAFETY: descriptor tables and the GS base are the processor's own view of these statics.
#![expect(unsafe_code, reason = "descriptor tables, model-specific registers, GS-relative loads")]

use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86::msr::{IA32_GS_BASE, IA32_KERNEL_GSBASE, wrmsr};

use crate::limits::MAX_CORES;

/// Code selector of the kernel.
pub const KERNEL_CS: u16 = 0x08;
/// Data selector of the kernel.
pub const KERNEL_SS: u16 = 0x10;
/// Data selector of user mode; SYSRET wants it 8 above the STAR base.
pub const USER_SS: u16 = 0x18 | 3;
/// Code selector of user mode; SYSRET wants it 16 above the STAR base.
pub const USER_CS: u16 = 0x20 | 3;
const TSS_SELECTOR: u16 = 0x28;

/// Interrupt-stack-table slot of the double fault.
pub const IST_DOUBLE_FAULT: u8 = 1;
/// Interrupt-stack-table slot of the NMI.
pub const IST_NMI: u8 = 2;
/// Interrupt-stack-table slot of the machine check.
pub const IST_MACHINE_CHECK: u8 = 3;

const STACK_BYTES: usize = 48 * 1024;
const IST_BYTES: usize = 12 * 1024;

/// A stack below which lies a page that `super::paging` leaves unmapped.
#[repr(C, align(4096))]
struct Stack<const BYTES: usize> {
    guard: UnsafeCell<[u8; 4096]>,
    body: UnsafeCell<[u8; BYTES]>,
}

impl<const BYTES: usize> Stack<BYTES> {
    const fn new() -> Self {
        Self { guard: UnsafeCell::new([0; 4096]), body: UnsafeCell::new([0; BYTES]) }
    }

    fn top(&self) -> u64 {
        self.body.get() as u64 + BYTES as u64
    }
}

// SAFETY: nothing in Rust reads or writes the contents; each stack is used by one core.
unsafe impl<const BYTES: usize> Sync for Stack<BYTES> {}

static STACKS: [Stack<STACK_BYTES>; MAX_CORES] = [const { Stack::new() }; MAX_CORES];
static IST_STACKS: [[Stack<IST_BYTES>; 3]; MAX_CORES] =
    [const { [const { Stack::new() }; 3] }; MAX_CORES];

/// Addresses of all guard pages.
pub fn guard_pages() -> impl Iterator<Item = u64> {
    let main = STACKS.iter().map(|stack| stack.guard.get() as u64);
    main.chain(IST_STACKS.iter().flatten().map(|stack| stack.guard.get() as u64))
}

/// Hardware task state: only its stack pointers are used.
#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}

/// A core's block. The first fields are known to assembly by their offsets.
#[repr(C, align(64))]
pub struct PerCpu {
    this: Cell<u64>,
    /// Save area of the thread in user mode.
    pub context: Cell<u64>,
    /// Where Rust code starts: below what the processor pushes, at a return address of 0, where backtraces end.
    entry_stack: Cell<u64>,
    scratch: Cell<u64>,
    /// Interrupt vector taken while this core was in kernel mode with interrupts on (idle, or the window of `trap::take`); 0 = none.
    pub pending: Cell<u64>,
    index: Cell<usize>,
    /// APIC identifier.
    pub apic_id: Cell<u32>,
    /// Order from another core that holds the big lock: see `super::smp::Order`.
    pub order: AtomicU64,
    /// Address space root in CR3.
    pub root: AtomicU64,
    /// Set once the core runs on its own stack and tables.
    pub online: AtomicU32,
    /// FPU bookkeeping: see `super::fpu`.
    pub fpu: super::fpu::State,
    gdt: UnsafeCell<[u64; 7]>,
    tss: UnsafeCell<Tss>,
}

// SAFETY: the cells are used by the owning core alone (interrupts off); what others touch is atomic.
unsafe impl Sync for PerCpu {}

/// Offset of the save-area pointer.
pub const OFFSET_CONTEXT: usize = offset_of!(PerCpu, context);
/// Offset of where Rust code starts on the stack.
pub const OFFSET_ENTRY_STACK: usize = offset_of!(PerCpu, entry_stack);
/// Offset of the scratch word.
pub const OFFSET_SCRATCH: usize = offset_of!(PerCpu, scratch);
/// Offset of the pending vector.
pub const OFFSET_PENDING: usize = offset_of!(PerCpu, pending);

static BLOCKS: [PerCpu; MAX_CORES] = [const {
    PerCpu {
        this: Cell::new(0),
        context: Cell::new(0),
        entry_stack: Cell::new(0),
        scratch: Cell::new(0),
        pending: Cell::new(0),
        index: Cell::new(0),
        apic_id: Cell::new(0),
        order: AtomicU64::new(0),
        root: AtomicU64::new(0),
        online: AtomicU32::new(0),
        fpu: super::fpu::State::new(),
        gdt: UnsafeCell::new([0; 7]),
        tss: UnsafeCell::new(Tss {
            reserved0: 0,
            rsp: [0; 3],
            reserved1: 0,
            ist: [0; 7],
            reserved2: 0,
            reserved3: 0,
            io_map_base: size_of::<Tss>() as u16,
        }),
    }
}; MAX_CORES];

/// The block of core `index`.
///
/// # Panics
/// If there is no such core.
#[must_use]
pub fn block(index: usize) -> &'static PerCpu {
    &BLOCKS[index]
}

/// The block of this core.
#[inline(always)]
#[must_use]
pub fn this() -> &'static PerCpu {
    let address: u64;
    // SAFETY: after `install`, GS points to this core's block in kernel mode, and its first word is the block's address.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) address, options(nostack, readonly, preserves_flags));
        &*(address as *const PerCpu)
    }
}

/// Number of this core; one load.
#[inline(always)]
#[must_use]
pub fn index() -> usize {
    let index: usize;
    // SAFETY: GS points to this core's block.
    unsafe {
        core::arch::asm!("mov {}, gs:[{}]", out(reg) index, const offset_of!(PerCpu, index),
            options(nostack, pure, readonly, preserves_flags));
    }
    index
}

/// 0 if switching between threads without FPU state and segment bases needs nothing; one load.
#[inline(always)]
#[must_use]
pub fn live() -> u64 {
    let live: u64;
    // SAFETY: GS points to this core's block.
    unsafe {
        core::arch::asm!("mov {}, gs:[{}]", out(reg) live,
            const offset_of!(PerCpu, fpu) + super::fpu::OFFSET_LIVE,
            options(nostack, readonly, preserves_flags));
    }
    live
}

/// Notes where traps of the thread about to run save its registers; one store.
#[inline(always)]
pub fn set_context(context: u64) {
    // SAFETY: GS points to this core's block, and the field is only used by assembly.
    unsafe {
        core::arch::asm!("mov gs:[{}], {}", const OFFSET_CONTEXT, in(reg) context,
            options(nostack, preserves_flags));
    }
}

/// Notes which root is in CR3; one store.
#[inline(always)]
pub fn set_root(root: u64) {
    // SAFETY: GS points to this core's block; an aligned store of 8 bytes is what a relaxed atomic store is.
    unsafe {
        core::arch::asm!("mov gs:[{}], {}", const offset_of!(PerCpu, root), in(reg) root,
            options(nostack, preserves_flags));
    }
}

impl PerCpu {
    /// Number of the core.
    #[inline(always)]
    #[must_use]
    pub fn index(&self) -> usize {
        self.index.get()
    }

    /// Where the core's first code may put its stack: clear of what later entries expect.
    #[must_use]
    pub fn start_stack(&self) -> u64 {
        STACKS[self.index.get()].top() - 128
    }

    /// Whether the core takes part.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire) != 0
    }
}

/// Fills in the block of core `index`; the core itself may not run yet.
pub fn prepare(index: usize, apic_id: u32) {
    let block = block(index);
    block.this.set(core::ptr::from_ref(block) as u64);
    block.index.set(index);
    block.apic_id.set(apic_id);
    // 16-byte alignment but for the return address, as after a call.
    block.entry_stack.set(STACKS[index].top() - 72);
    let tss = block.tss.get();
    let base = tss as u64;
    let limit = size_of::<Tss>() as u64 - 1;
    // SAFETY: the core is not running, so nothing else looks at its tables.
    unsafe {
        (*tss).rsp[0] = STACKS[index].top();
        for (slot, stack) in IST_STACKS[index].iter().enumerate() {
            (*tss).ist[slot] = stack.top();
        }
        *block.gdt.get() = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56 | limit & 0xffff | 0x89 << 40,
            base >> 32,
        ];
    }
}

/// Makes this core use its block: GDT, task state, GS.
///
/// # Safety
/// [`prepare`] has filled the block of `index`, and this is that core with interrupts off.
pub unsafe fn install(index: usize) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let block = block(index);
    let pointer = Pointer { limit: size_of::<[u64; 7]>() as u16 - 1, base: block.gdt.get() as u64 };
    // SAFETY: the table lives as long as the kernel and its selectors 8 and 16 are the same segments the boot table has.
    unsafe {
        core::arch::asm!(
            "lgdt [{pointer}]",
            "push {cs}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ds, {ss:x}",
            "mov es, {ss:x}",
            "mov ss, {ss:x}",
            "xor {tmp:e}, {tmp:e}",
            "mov fs, {tmp:x}",
            "mov gs, {tmp:x}",
            "ltr {tss:x}",
            pointer = in(reg) &raw const pointer,
            cs = const KERNEL_CS,
            ss = in(reg) u64::from(KERNEL_SS),
            tss = in(reg) u64::from(TSS_SELECTOR),
            tmp = out(reg) _,
        );
        wrmsr(IA32_GS_BASE, block.this.get());
        wrmsr(IA32_KERNEL_GSBASE, 0);
    }
}
