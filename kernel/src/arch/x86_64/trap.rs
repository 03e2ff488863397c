//! Ways into the kernel and back: SYSCALL, exceptions, interrupts; SYSRET, IRET.
//!
//! From user mode, registers go straight into the save area of the current thread (`Tcb::regs`), whose address is in the core's
//! block; then the core's stack is used from its top. Nothing is kept on a kernel stack across entries, so the way out never returns:
//! it loads the registers of whichever thread runs next.
//!
//! In kernel mode interrupts are off but for two places: waiting while idle, and [`take`]. An interrupt that arrives there only leaves its
//! vector in `PerCpu::pending` and goes back with interrupts off. Any exception in kernel mode is a kernel defect and panics.
//!
//! UNSAFETY: assembly.
#![expect(unsafe_code, reason = "entry and exit assembly, descriptor tables, MSRs")]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use abi::Syscall;
use abi::context::index;
use x86::msr::{IA32_FMASK, IA32_LSTAR, IA32_STAR, wrmsr};

use super::percpu::{
    IST_DOUBLE_FAULT, IST_MACHINE_CHECK, IST_NMI, KERNEL_CS, OFFSET_CONTEXT, OFFSET_ENTRY_STACK,
    OFFSET_PENDING, OFFSET_SCRATCH, USER_CS, USER_SS,
};
use crate::mem::Ref;
use crate::object::tcb::{Entry, OFFSET_ENTRY, Tcb};

/// Set (to any value but 0) when a core has panicked: an NMI then stops the core that takes it.
#[unsafe(no_mangle)]
static STOP_ON_NMI: AtomicU32 = AtomicU32::new(0);

/// Byte offset of a register in the save area.
const fn at(register: usize) -> usize {
    register * 8
}

unsafe extern "C" {
    fn syscall_entry();
    fn nmi_entry();
    static interrupt_stubs: [[u8; 16]; 256];
}

global_asm!(
    r#"
    .section .text.trap, "ax", @progbits

    .balign 16
    .global syscall_entry
syscall_entry:
    swapgs
    mov gs:[{scratch}], rsp
    mov rsp, gs:[{context}]
    mov [rsp + {rip}], rcx
    mov [rsp + {rflags}], r11
    mov [rsp + {rax}], rax
    mov [rsp + {rbx}], rbx
    mov [rsp + {rdx}], rdx
    mov [rsp + {rsi}], rsi
    mov [rsp + {rdi}], rdi
    mov [rsp + {rbp}], rbp
    mov [rsp + {r8}], r8
    mov [rsp + {r9}], r9
    mov [rsp + {r10}], r10
    mov [rsp + {r12}], r12
    mov [rsp + {r13}], r13
    mov [rsp + {r14}], r14
    mov [rsp + {r15}], r15
    mov qword ptr [rsp + {entry}], {entry_syscall}
    mov rbx, gs:[{scratch}]
    mov [rsp + {rsp}], rbx
    mov rsp, gs:[{entry_stack}]
    cmp rdx, {number_call}
    je call_from_user
    cmp rdx, {number_reply_recv}
    je reply_recv_from_user
    cmp rdx, {number_vm_enter}
    je vm_enter_from_user
    jmp syscall_from_user

    .balign 16
    .global leave_by_sysret
leave_by_sysret:
    mov rcx, [rdi + {rip}]
    mov r11, [rdi + {rflags}]
    mov rax, [rdi + {rax}]
    mov rbx, [rdi + {rbx}]
    mov rdx, [rdi + {rdx}]
    mov rsi, [rdi + {rsi}]
    mov rbp, [rdi + {rbp}]
    mov r8, [rdi + {r8}]
    mov r9, [rdi + {r9}]
    mov r10, [rdi + {r10}]
    mov r12, [rdi + {r12}]
    mov r13, [rdi + {r13}]
    mov r14, [rdi + {r14}]
    mov r15, [rdi + {r15}]
    mov rsp, [rdi + {rsp}]
    mov rdi, [rdi + {rdi}]
    swapgs
    sysretq

    .balign 16
    .global leave_by_iret
leave_by_iret:
    push {user_ss}
    push [rdi + {rsp}]
    push [rdi + {rflags}]
    push {user_cs}
    push [rdi + {rip}]
    mov rax, [rdi + {rax}]
    mov rbx, [rdi + {rbx}]
    mov rcx, [rdi + {rcx}]
    mov rdx, [rdi + {rdx}]
    mov rsi, [rdi + {rsi}]
    mov rbp, [rdi + {rbp}]
    mov r8, [rdi + {r8}]
    mov r9, [rdi + {r9}]
    mov r10, [rdi + {r10}]
    mov r11, [rdi + {r11}]
    mov r12, [rdi + {r12}]
    mov r13, [rdi + {r13}]
    mov r14, [rdi + {r14}]
    mov r15, [rdi + {r15}]
    mov rdi, [rdi + {rdi}]
    swapgs
    iretq

    /* One stub of 16 bytes per vector: error code (if the processor pushes none), vector. */
    .balign 16
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
    push 0
    .endif
    .byte 0x68
    .long vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr
    .balign 16

    /* Stack: vector, error code, rip, cs, rflags, rsp, ss. */
interrupt_common:
    test byte ptr [rsp + 24], 3
    jz 2f
    swapgs
    cld
    mov gs:[{scratch}], rax
    mov rax, gs:[{context}]
    mov [rax + {rbx}], rbx
    mov rbx, gs:[{scratch}]
    mov [rax + {rax}], rbx
    mov [rax + {rcx}], rcx
    mov [rax + {rdx}], rdx
    mov [rax + {rsi}], rsi
    mov [rax + {rdi}], rdi
    mov [rax + {rbp}], rbp
    mov [rax + {r8}], r8
    mov [rax + {r9}], r9
    mov [rax + {r10}], r10
    mov [rax + {r11}], r11
    mov [rax + {r12}], r12
    mov [rax + {r13}], r13
    mov [rax + {r14}], r14
    mov [rax + {r15}], r15
    mov qword ptr [rax + {entry}], {entry_other}
    mov rbx, [rsp + 16]
    mov [rax + {rip}], rbx
    mov rbx, [rsp + 32]
    mov [rax + {rflags}], rbx
    mov rbx, [rsp + 40]
    mov [rax + {rsp}], rbx
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rsp, gs:[{entry_stack}]
    jmp trap_from_user

    /* Kernel mode. An interrupt: note the vector, go back with interrupts off. */
2:  cmp dword ptr [rsp], 32
    jb 3f
    push rax
    mov eax, [rsp + 8]
    mov gs:[{pending}], rax
    and dword ptr [rsp + 40], 0xfffffdff
    pop rax
    add rsp, 16
    iretq

    /* An exception: rdi = vector, rsi = error code, rdx = frame. */
3:  mov rdi, [rsp]
    mov rsi, [rsp + 8]
    lea rdx, [rsp + 16]
    mov rcx, rbp
    and rsp, -16
    call exception_in_kernel
    ud2

    .balign 16
    .global nmi_entry
nmi_entry:
    cmp dword ptr [rip + STOP_ON_NMI], 0
    jne 2f
    iretq
2:  cli
    hlt
    jmp 2b
    "#,
    scratch = const OFFSET_SCRATCH,
    context = const OFFSET_CONTEXT,
    entry_stack = const OFFSET_ENTRY_STACK,
    number_call = const Syscall::Call as i64,
    number_reply_recv = const Syscall::ReplyRecv as i64,
    number_vm_enter = const Syscall::VMEnter as i64,
    pending = const OFFSET_PENDING,
    entry = const OFFSET_ENTRY,
    entry_syscall = const Entry::Syscall as u64,
    entry_other = const Entry::Other as u64,
    user_ss = const USER_SS,
    user_cs = const USER_CS,
    rip = const at(index::RIP),
    rsp = const at(index::RSP),
    rflags = const at(index::RFLAGS),
    rax = const at(index::RAX),
    rbx = const at(index::RBX),
    rcx = const at(index::RCX),
    rdx = const at(index::RDX),
    rsi = const at(index::RSI),
    rdi = const at(index::RDI),
    rbp = const at(index::RBP),
    r8 = const at(index::R8),
    r9 = const at(index::R9),
    r10 = const at(index::R10),
    r11 = const at(index::R11),
    r12 = const at(index::R12),
    r13 = const at(index::R13),
    r14 = const at(index::R14),
    r15 = const at(index::R15),
);

/// Shared interrupt descriptor table, written once by the boot processor.
#[repr(C, align(4096))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: written only by `init_table`, before other cores run.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

fn gate(handler: u64, ist: u8, dpl: u64) -> [u64; 2] {
    const INTERRUPT_GATE: u64 = 0x8e << 40;
    let low = handler & 0xffff
        | u64::from(KERNEL_CS) << 16
        | u64::from(ist) << 32
        | INTERRUPT_GATE
        | dpl << 45
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Fills the interrupt descriptor table; once, on the boot processor.
pub fn init_table() {
    let mut table = [[0; 2]; 256];
    for (vector, entry) in table.iter_mut().enumerate() {
        // SAFETY: only the address is taken.
        let stub = unsafe { (&raw const interrupt_stubs).cast::<[u8; 16]>().add(vector) } as u64;
        // Breakpoint, and the software interrupts that count as unknown system calls; not the two used between cores.
        let dpl = if vector == 3 || (160..255).contains(&vector) { 3 } else { 0 };
        *entry = match vector {
            2 => gate(nmi_entry as *const () as u64, IST_NMI, 0),
            8 => gate(stub, IST_DOUBLE_FAULT, 0),
            18 => gate(stub, IST_MACHINE_CHECK, 0),
            _ => gate(stub, 0, dpl),
        };
    }
    // SAFETY: no core uses the table yet.
    unsafe { *IDT.0.get() = table };
}

/// Makes this core take traps and system calls.
///
/// # Safety
/// The table is filled and the core's block installed.
pub unsafe fn install() {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    /// Cleared at SYSCALL: TF, IF, DF, IOPL, NT, AC.
    const MASKED_FLAGS: u64 = 0x4_7700;
    let pointer = Pointer { limit: 4095, base: IDT.0.get() as u64 };
    let star = u64::from(USER_SS - 8) << 48 | u64::from(KERNEL_CS) << 32;
    // SAFETY: the table is complete; the MSRs name the entry above and the selectors of the core's GDT.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, readonly));
        wrmsr(IA32_STAR, star);
        wrmsr(IA32_LSTAR, syscall_entry as *const () as u64);
        wrmsr(IA32_FMASK, MASKED_FLAGS);
    }
}

/// Goes on in user mode with the registers of `tcb`.
#[inline(always)]
pub fn leave(tcb: Ref<Tcb>) -> ! {
    let context = tcb.as_ptr() as u64;
    let entry = tcb.entry.get();
    // SAFETY: the big lock may be released by now, but this thread is the core's current one and nobody changes its registers
    // without stalling the core first; rip and flags are sane by `Tcb::sanitise`.
    unsafe {
        if entry == Entry::Syscall {
            asm!("jmp leave_by_sysret", in("rdi") context, options(noreturn))
        } else {
            asm!("jmp leave_by_iret", in("rdi") context, options(noreturn))
        }
    }
}

/// Opens interrupts for one instruction and tells which vector came, if one did.
#[inline]
#[must_use]
pub fn take() -> Option<u8> {
    // SAFETY: interrupts in kernel mode only note their vector.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
    noted()
}

/// Waits for an interrupt and tells its vector.
#[must_use]
pub fn wait() -> u8 {
    loop {
        // SAFETY: STI keeps interrupts off until HLT has begun, so none is missed; they only note their vector and come back with
        // interrupts off.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
        if let Some(vector) = noted() {
            return vector;
        }
    }
}

fn noted() -> Option<u8> {
    let pending = &super::percpu::this().pending;
    let vector = pending.replace(0);
    u8::try_from(vector).ok().filter(|vector| *vector != 0)
}

/// Has NMIs stop the cores that take them.
pub fn stop_on_nmi() {
    STOP_ON_NMI.store(1, Ordering::SeqCst);
}
