# Entry by PVH: 32-bit flat protected mode, EBX = start information.
    .section .note.pvh, "a"
    .balign 4
    .long 4, 4, 18          # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32

    .section .boot, "ax"
    .code32
    .global start32
start32:
    cli
    movl $stack_top, %esp
    # Four page directories map 4 GiB by 2 MiB pages.
    movl $page_directories, %edi
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    movl %eax, (%edi,%ecx,8)
    movl $0, 4(%edi,%ecx,8)
    incl %ecx
    cmpl $2048, %ecx
    jne 1b
    movl $pdpt, %edi
    movl $page_directories + 3, %eax
    xorl %ecx, %ecx
2:  movl %eax, (%edi,%ecx,8)
    addl $4096, %eax
    incl %ecx
    cmpl $4, %ecx
    jne 2b
    movl $pdpt + 3, pml4
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax         # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx  # EFER
    rdmsr
    orl $0x100, %eax        # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $start64

    .code64
start64:
    xorl %eax, %eax
    movw %ax, %ss
    movw %ax, %ds
    movw %ax, %es
    movq $stack_top, %rsp
    movl %ebx, %edi         # the start information is guest_main's argument
    call guest_main
3:  hlt
    jmp 3b

    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .bss
    .balign 4096
pml4: .skip 4096
pdpt: .skip 4096
page_directories: .skip 4 * 4096
    .skip 16384
stack_top:
