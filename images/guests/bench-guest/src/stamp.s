    .section .text, "ax"
    .code64
# Every interrupt: notes the time first, then acknowledges (x2APIC).
    .global stamp_entry
stamp_entry:
    pushq %rax
    pushq %rcx
    pushq %rdx
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, STAMP(%rip)
    movl $0x80b, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    iretq
