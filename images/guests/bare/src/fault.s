# Faults: count them and go on where the program said, or say so and stop.
    .section .text, "ax"
    .code64
    .global fault_with_code
fault_with_code:
    cmpq $0, RECOVER(%rip)
    je 1f
    addq $8, %rsp
    jmp 2f
    .global fault_plain
fault_plain:
    cmpq $0, RECOVER(%rip)
    je 1f
2:  incq FAULTS(%rip)
    pushq %rax
    movq RECOVER(%rip), %rax
    movq %rax, 8(%rsp)
    popq %rax
    iretq
1:  movq %rsp, %rdi
    andq $-16, %rsp
    call guest_fault
