//! The guests: a few instructions each, 64-bit unless said otherwise, copied to guest address 1000h.
//!
//! Fixed places in guest memory: words for results at 2000h, IDT at 3000h, GDT at 4000h, page tables at 5000h..7fffh (identity
//! map of the first 16 MiB), stack below 10000h. Interrupt handlers of a guest follow its code.
// UNSAFETY: assembly that never runs in this program, only as data.
#![expect(unsafe_code, reason = "addresses of guest code as data")]

use core::arch::global_asm;

global_asm!(
    ".pushsection .rodata.guests, \"a\"",
    // rcx = number of CPUIDs; results: TSC before and after.
    ".global g_cpuid",
    "g_cpuid:",
    "mov rbp, rcx",
    "rdtsc",
    "mov [0x2000], eax",
    "mov [0x2004], edx",
    "2: xor eax, eax",
    "cpuid",
    "dec rbp",
    "jnz 2b",
    "rdtsc",
    "mov [0x2008], eax",
    "mov [0x200c], edx",
    "hlt",
    ".global g_cpuid_end",
    "g_cpuid_end:",
    // Port I/O.
    ".global g_ports",
    "g_ports:",
    "mov dx, 0x3f8",
    "mov al, 0x41",
    "out dx, al",
    "in al, dx",
    "mov [0x2000], al",
    "out 0x80, eax",
    "in ax, 0x60",
    "mov [0x2008], eax",
    "hlt",
    ".global g_ports_end",
    "g_ports_end:",
    // Touches rcx pages from rbx on: writes, then reads back.
    ".global g_touch",
    "g_touch:",
    "mov rsi, rbx",
    "mov rdi, rcx",
    "2: mov [rsi], rsi",
    "add rsi, 0x1000",
    "dec rdi",
    "jnz 2b",
    "xor eax, eax",
    "mov rsi, rbx",
    "mov rdi, rcx",
    "3: add rax, [rsi]",
    "add rsi, 0x1000",
    "dec rdi",
    "jnz 3b",
    "hlt",
    "jmp g_touch",
    ".global g_touch_end",
    "g_touch_end:",
    // Interrupts: counts rounds in rbx with IF=0, opens IF at a VMMCALL's order; handler (at +80h) counts in r12.
    ".global g_irq",
    "g_irq:",
    "xor ebx, ebx",
    "xor r12d, r12d",
    "mov esp, 0x10000",
    "vmmcall",
    "mov ecx, 100",
    "2: dec ecx",
    "jnz 2b",
    "mov r13, r12",
    "vmmcall",
    "sti",
    "nop",
    "nop",
    "mov r14, r12",
    "hlt",
    "jmp g_irq",
    ".org g_irq + 0x80",
    "inc r12",
    "iretq",
    ".global g_irq_end",
    "g_irq_end:",
    // Shadow: entered at its first instruction with a virtual interrupt waiting; r12 tells what the handler saw of rbx.
    ".global g_shadow",
    "g_shadow:",
    "inc rbx",
    "inc rbx",
    "inc rbx",
    "hlt",
    ".org g_shadow + 0x80",
    "mov r12, rbx",
    "iretq",
    ".global g_shadow_end",
    "g_shadow_end:",
    // STI; HLT with an interrupt waiting: HLT must exit before the handler runs.
    ".global g_sti_hlt",
    "g_sti_hlt:",
    "xor r12d, r12d",
    "mov esp, 0x10000",
    "sti",
    "hlt",
    "mov r14, r12",
    "hlt",
    ".org g_sti_hlt + 0x80",
    "inc r12",
    "iretq",
    ".global g_sti_hlt_end",
    "g_sti_hlt_end:",
    // Exception handler with error code at +80h.
    ".global g_fault",
    "g_fault:",
    "mov esp, 0x10000",
    "2: pause",
    "jmp 2b",
    ".org g_fault + 0x80",
    "pop rbx",
    "mov [0x2000], rbx",
    "hlt",
    ".global g_fault_end",
    "g_fault_end:",
    // Triple fault: no IDT.
    ".global g_triple",
    "g_triple:",
    "ud2",
    ".global g_triple_end",
    "g_triple_end:",
    // Endless.
    ".global g_endless",
    "g_endless:",
    "inc rbx",
    "jmp g_endless",
    ".global g_endless_end",
    "g_endless_end:",
    // Own FPU and debug registers: loads them from rbx, then shows them for ever.
    ".global g_private",
    "g_private:",
    "movq xmm7, rbx",
    "mov dr0, rbx",
    "2: hlt",
    "movq rax, xmm7",
    "mov rcx, dr0",
    "jmp 2b",
    ".global g_private_end",
    "g_private_end:",
    // MSRs: TSC (always exits), FS base (exits unless passed through), then XCR0.
    ".global g_msr",
    "g_msr:",
    "mov ecx, 0x10",
    "rdmsr",
    "mov [0x2000], eax",
    "mov ecx, 0xc0000100",
    "mov eax, 0x1234",
    "xor edx, edx",
    "wrmsr",
    "xor eax, eax",
    "rdmsr",
    "mov [0x2008], eax",
    "hlt",
    ".global g_msr_end",
    "g_msr_end:",
    // What a guest must not run: each leads to an exit.
    ".global g_forbidden",
    "g_forbidden:",
    "vmrun rax",
    "vmload rax",
    "vmsave rax",
    "stgi",
    "clgi",
    "skinit eax",
    "invlpga rax, ecx",
    "wbinvd",
    "rdpmc",
    "mov cr8, rax",
    ".byte 0x0f, 0x01, 0xc8",
    "hlt",
    ".global g_forbidden_end",
    "g_forbidden_end:",
    // 16-bit real mode: writes to port 42h what CS:IP addressing finds.
    ".code16",
    ".global g_real",
    "g_real:",
    "mov ax, 0x200",
    "mov ds, ax",
    "mov word ptr [0], 0xbeef",
    "mov ax, [0]",
    "out 0x42, ax",
    "hlt",
    ".global g_real_end",
    "g_real_end:",
    ".code64",
    ".popsection",
);

macro_rules! guests {
    ($($name:ident $start:ident $end:ident,)*) => {
        unsafe extern "C" { $(static $start: u8; static $end: u8;)* }
        /// A guest's code.
        #[derive(Clone, Copy)]
        pub enum Guest { $($name,)* }
        impl Guest {
            /// Its bytes.
            pub fn code(self) -> &'static [u8] {
                let (start, end) = match self {
                    $(Self::$name => (&raw const $start, &raw const $end),)*
                };
                // SAFETY: both symbols bound one piece of read-only data.
                unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
            }
        }
    };
}

guests! {
    Cpuid g_cpuid g_cpuid_end,
    Ports g_ports g_ports_end,
    Touch g_touch g_touch_end,
    Irq g_irq g_irq_end,
    Shadow g_shadow g_shadow_end,
    StiHlt g_sti_hlt g_sti_hlt_end,
    Fault g_fault g_fault_end,
    Triple g_triple g_triple_end,
    Endless g_endless g_endless_end,
    Private g_private g_private_end,
    Msr g_msr g_msr_end,
    Forbidden g_forbidden g_forbidden_end,
    Real g_real g_real_end,
}
