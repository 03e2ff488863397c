//! First instructions: PVH note, Multiboot2 header, 32-bit entry, switch to long mode in the upper half.
//!
//! Both boot protocols enter `start32` in flat 32-bit protected mode with paging off and the address of their information
//! block in EBX; Multiboot2 marks itself by a magic number in EAX. The stub maps the first 4 GiB three times with 2 MiB
//! pages (identity, physical window, and the first 2 GiB as the kernel image area) and calls [`boot_main`] there. The
//! tables live on as the tables on which application processors start; see `super::smp`.
//!
//! UNSAFETY: assembly.
#![expect(unsafe_code, reason = "boot assembly and its linkage")]

use core::arch::global_asm;

use super::layout::{KERNEL_BASE, WINDOW_BASE};

/// What Multiboot2 loaders leave in EAX.
pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;

/// Size of the stack used by the boot processor until it has switched to its own.
const BOOT_STACK: usize = 64 * 1024;

unsafe extern "C" {
    /// Root of the boot page tables (identity, window and image). Defined in the assembly below.
    pub static boot_pml4: [u64; 512];
}

global_asm!(
    r#"
    .section .boot.header, "a", @progbits
    .balign 8
mb2_header:
    .long 0xe85250d6
    .long 0
    .long mb2_end - mb2_header
    .long 0x100000000 - (0xe85250d6 + (mb2_end - mb2_header))
    /* entry address */
    .short 3, 0
    .long 12
    .long start32 - {kernel_base}
    .balign 8
    /* modules page aligned */
    .short 6, 0
    .long 8
    /* end */
    .short 0, 0
    .long 8
mb2_end:

    .section .note.xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long start32 - {kernel_base}

    .section .boot.text, "ax", @progbits
    .code32
    .global start32
start32:
    cli
    cld
    mov edi, eax
    mov esi, ebx
    mov esp, offset boot_stack_top - {kernel_base}

    /* Long mode and no-execute must exist, or nothing else here can work. */
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb 9f
    mov eax, 0x80000001
    cpuid
    and edx, 0x20100000
    cmp edx, 0x20100000
    jne 9f

    /* 4 page directories of 2 MiB pages: present, writable, large. */
    mov ebx, offset boot_pd - {kernel_base}
    xor ecx, ecx
    mov eax, 0x83
    xor edx, edx
2:  mov [ebx + ecx * 8], eax
    mov [ebx + ecx * 8 + 4], edx
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jb 2b

    /* Low PDPT (identity and window): 4 directories. */
    mov ebx, offset boot_pdpt_low - {kernel_base}
    mov eax, offset boot_pd - {kernel_base} + 3
    xor ecx, ecx
3:  mov [ebx + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jb 3b

    /* Image PDPT: the top 2 GiB show the first two. */
    mov ebx, offset boot_pdpt_image - {kernel_base}
    mov eax, offset boot_pd - {kernel_base} + 3
    mov [ebx + 510 * 8], eax
    add eax, 4096
    mov [ebx + 511 * 8], eax

    mov ebx, offset boot_pml4 - {kernel_base}
    mov eax, offset boot_pdpt_low - {kernel_base} + 3
    mov [ebx], eax
    mov [ebx + {window_slot} * 8], eax
    mov eax, offset boot_pdpt_image - {kernel_base} + 3
    mov [ebx + 511 * 8], eax

    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov cr3, ebx
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    or eax, 0x80010001
    and eax, 0x9fffffff
    mov cr0, eax
    lgdt [boot_gdt_pointer - {kernel_base}]
    push 8
    mov eax, offset start64 - {kernel_base}
    push eax
    retf

    /* "no long mode" on COM1 and the debug console; nothing has set up a UART, so this is best effort. */
9:  mov esi, offset boot_no_long_mode - {kernel_base}
4:  lodsb
    test al, al
    jz 5f
    out 0xe9, al
    mov dx, 0x3f8
    out dx, al
    jmp 4b
5:  mov al, {exit_code}
    out 0xf4, al
6:  hlt
    jmp 6b

    .code64
start64:
    movabs rax, offset start64_high
    jmp rax
start64_high:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    movabs rsp, offset boot_stack_top
    xor ebp, ebp
    push rbp
    push rbp
    mov rbp, rsp
    call boot_main
8:  hlt
    jmp 8b

    .section .rodata.boot, "a", @progbits
    .balign 8
    .global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08 64-bit code */
    .quad 0x00cf93000000ffff    /* 0x10 data */
    .quad 0x00cf9b000000ffff    /* 0x18 32-bit code, for application processors */
boot_gdt_pointer:
    .short 31
    .quad boot_gdt - {kernel_base}
boot_no_long_mode:
    .asciz "ballast: this processor has no 64-bit mode with no-execute pages\r\n"

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .global boot_pml4
boot_pml4:       .skip 4096
boot_pdpt_low:   .skip 4096
boot_pdpt_image: .skip 4096
boot_pd:         .skip 4 * 4096
boot_stack:      .skip {boot_stack}
boot_stack_top:
    "#,
    kernel_base = const KERNEL_BASE,
    window_slot = const (WINDOW_BASE >> 39) & 511,
    boot_stack = const BOOT_STACK,
    exit_code = const super::console::ExitCode::BadMachine as u8,
);
