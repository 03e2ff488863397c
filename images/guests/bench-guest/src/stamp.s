    .section .text, "ax"
    .code64
# The only interrupt: notes the time first, then acknowledges (x2APIC).
    .global timer_entry
timer_entry:
    pushq %rax
    pushq %rcx
    pushq %rdx
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, TIMER_STAMP(%rip)
    movl $0x80b, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    iretq

# Faults: say so and stop. Vector in the low byte of what is printed.
    .global fault_entry
fault_entry:
    movq %rsp, %rdi
    call guest_fault
4:  cli
    hlt
    jmp 4b
