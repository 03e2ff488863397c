//! Other cores: starting them, and orders to them while the big lock is held.
//!
//! An order is one word in the target's block. The sender (who holds the big lock) writes it, sends an interrupt and waits until the word is
//! 0 again. The target obeys wherever it waits for the big lock, so: with its user registers saved, and staying in the kernel until
//! the sender has released the lock. A core that already waits for the lock obeys at once and finds the interrupt later, which
//! then means nothing.
//!
//! UNSAFETY: assembly of the start-up code.
#![expect(unsafe_code, reason = "start-up code of application processors")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use super::layout::KERNEL_BASE;
use super::{apic, paging, percpu, start, tsc};
use crate::limits::STALL_VECTOR;
use crate::mem::window::WINDOW_BASE;

/// Bits of an order word that tell its kind: the addresses in it are 64-byte aligned.
const KIND: u64 = 63;

/// What another core has to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Be in the kernel.
    Stall,
    /// Drop the translation of one page.
    FlushPage(u64),
    /// Drop all translations but the kernel's.
    FlushSpace,
    /// Load the kernel's own root.
    LeaveSpace,
    /// Write FPU registers back to the area at this address.
    ReleaseFpu(u64),
}

impl Order {
    const fn encode(self) -> u64 {
        match self {
            Self::Stall => 1,
            Self::FlushPage(vaddr) => vaddr & !KIND | 2,
            Self::FlushSpace => 3,
            Self::LeaveSpace => 4,
            Self::ReleaseFpu(area) => area & !KIND | 5,
        }
    }
}

/// Gives core `target` an order and waits until it is obeyed.
pub fn order(target: usize, order: Order) {
    let block = percpu::block(target);
    block.order.store(order.encode(), Ordering::Release);
    apic::send_interrupt(block.apic_id.get(), STALL_VECTOR);
    while block.order.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
}

/// Does what another core wants; called while waiting for the big lock.
#[inline]
pub fn obey() {
    let block = percpu::this();
    let order = block.order.load(Ordering::Acquire);
    if order == 0 {
        return;
    }
    match order & KIND {
        2 => paging::invalidate(order & !KIND),
        // SAFETY: the root in use, or the kernel's own.
        3 => unsafe { paging::load(block.root.load(Ordering::Relaxed)) },
        4 => {
            // SAFETY: the kernel's own root.
            unsafe { paging::load(paging::root()) };
            block.root.store(paging::root(), Ordering::Relaxed);
        }
        5 => block.fpu.release(order & !KIND),
        _ => {}
    }
    block.order.store(0, Ordering::Release);
}

// Starts in real mode at offset 0 of the page the start-up interrupt names. The words at the end are filled in by `start_core`.
global_asm!(
    r#"
    .section .rodata.trampoline, "a", @progbits
    .balign 16
    .global trampoline
    .global trampoline_words
    .global trampoline_end
    .code16
trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (trampoline_gdt - trampoline)
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl (trampoline_words - trampoline), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax
    andl $0x9fffffff, %eax
    movl %eax, %cr0
    ljmpl *(trampoline_far - trampoline)
    .code64
trampoline_long:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq trampoline_words + 8(%rip), %rsp
    movq trampoline_words + 16(%rip), %rdi
    movq trampoline_words + 24(%rip), %rax
    xorl %ebp, %ebp
    pushq %rbp
    jmpq *%rax

    .balign 8
trampoline_gdt:
    .short 31
    .long boot_gdt - {kernel_base}
    .balign 8
trampoline_far:
    .long 0
    .short 8
    .balign 8
trampoline_words:
    .quad 0     /* page tables */
    .quad 0     /* stack */
    .quad 0     /* core number */
    .quad 0     /* entry */
trampoline_end:
    .global trampoline_long
    .global trampoline_far
    "#,
    kernel_base = const KERNEL_BASE,
    options(att_syntax)
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_long: u8;
    static trampoline_far: u8;
    static trampoline_words: u8;
    static trampoline_end: u8;
}

/// Cores that take part, this one included.
static ONLINE: AtomicU32 = AtomicU32::new(1);

/// Number of cores that take part.
pub fn online() -> usize {
    ONLINE.load(Ordering::Relaxed) as usize
}

/// Starts the processor `apic_id` as core `index` through the free page `page` below 1 MiB; it begins in `entry(index)`.
/// Tells whether it came up within 200 ms.
pub fn start_core(
    index: usize,
    apic_id: u32,
    page: u64,
    tsc_hz: u64,
    entry: extern "C" fn(usize) -> !,
) -> bool {
    percpu::prepare(index, apic_id);
    let block = percpu::block(index);
    let address = |symbol: *const u8| symbol as u64;
    let code = &raw const trampoline;
    let offset = |symbol: *const u8| address(symbol) - address(code);
    let far = offset(&raw const trampoline_far);
    let words = offset(&raw const trampoline_words);
    let target = (WINDOW_BASE + page) as *mut u8;
    // SAFETY: (1) the page is usable memory that nobody else uses; (2) the code and its words fit into it; (3) all symbols lie
    // within the copied code, and the words are 8-byte aligned.
    unsafe {
        let length = offset(&raw const trampoline_end) as usize;
        core::ptr::copy_nonoverlapping(code, target, length);
        let long = page + offset(&raw const trampoline_long);
        target.add(far as usize).cast::<u32>().write(long as u32);
        let words = target.add(words as usize).cast::<u64>();
        words.write(address((&raw const start::boot_pml4).cast()) - KERNEL_BASE);
        words.add(1).write(block.start_stack());
        words.add(2).write(index as u64);
        words.add(3).write(entry as *const () as u64);
    }
    apic::send_init(apic_id);
    tsc::delay(tsc_hz, 200);
    for _ in 0..2 {
        apic::send_startup(apic_id, page);
        let end = tsc::now() + tsc_hz / 10;
        while tsc::now() < end {
            if block.is_online() {
                ONLINE.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            core::hint::spin_loop();
        }
    }
    false
}
