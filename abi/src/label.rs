//! Invocation labels: the base is seL4's, extensions start at 128.

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Label of an invocation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u64)]
        pub enum Label { $($(#[$doc])* $name = $number,)* }

        impl Label {
            /// Finds the operation behind a label.
            #[inline]
            #[must_use]
            pub const fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

labels! {
    /// Untyped_Retype: caps (root), words (0: type, 1: size_bits, 2: node_index, 3: node_depth, 4: node_offset, 5: num_objects).
    UntypedRetype = 1,
    /// TCB_ReadRegisters: caps (), words (0: suspend_source + arch_flags shifted 8, 1: count), out (MR0 on = registers in context order).
    TCBReadRegisters = 2,
    /// TCB_WriteRegisters: caps (), words (0: resume + arch_flags shifted 8, 1: count, 2 on : registers in context order (length is always 22 in libsel4)).
    TCBWriteRegisters = 3,
    /// TCB_CopyRegisters: caps (source), words (0: suspend_source + resume_target shifted 1 + transfer_frame shifted 2 + transfer_integer shifted 3 + arch_flags shifted 8).
    TCBCopyRegisters = 4,
    /// TCB_Configure: caps (cspace_root, vspace_root, bufferFrame), words (0: cspace_root_data, 1: vspace_root_data, 2: buffer).
    TCBConfigure = 5,
    /// TCB_SetPriority: caps (authority), words (0: priority).
    TCBSetPriority = 6,
    /// TCB_SetMCPriority: caps (authority), words (0: mcp).
    TCBSetMCPriority = 7,
    /// TCB_SetSchedParams: caps (authority, sched_context, fault_ep), words (0: mcp, 1: priority).
    TCBSetSchedParams = 8,
    /// TCB_SetTimeoutEndpoint: caps (timeout_fault_ep), words ().
    TCBSetTimeoutEndpoint = 9,
    /// TCB_SetIPCBuffer: caps (bufferFrame), words (0: buffer).
    TCBSetIPCBuffer = 10,
    /// TCB_SetSpace: caps (fault_ep, cspace_root, vspace_root), words (0: cspace_root_data, 1: vspace_root_data).
    TCBSetSpace = 11,
    /// TCB_Suspend: caps (), words ().
    TCBSuspend = 12,
    /// TCB_Resume: caps (), words ().
    TCBResume = 13,
    /// TCB_BindNotification: caps (notification), words ().
    TCBBindNotification = 14,
    /// TCB_UnbindNotification: caps (), words ().
    TCBUnbindNotification = 15,
    /// TCB_SetTLSBase: caps (), words (0: tls_base).
    TCBSetTLSBase = 16,
    /// TCB_SetFlags: caps (), words (0: clear, 1: set), out (flags = mr0).
    TCBSetFlags = 17,
    /// CNode_Revoke: caps (), words (0: index, 1: depth).
    CNodeRevoke = 18,
    /// CNode_Delete: caps (), words (0: index, 1: depth).
    CNodeDelete = 19,
    /// CNode_CancelBadgedSends: caps (), words (0: index, 1: depth).
    CNodeCancelBadgedSends = 20,
    /// CNode_Copy: caps (src_root), words (0: dest_index, 1: dest_depth, 2: src_index, 3: src_depth, 4: rights).
    CNodeCopy = 21,
    /// CNode_Mint: caps (src_root), words (0: dest_index, 1: dest_depth, 2: src_index, 3: src_depth, 4: rights, 5: badge).
    CNodeMint = 22,
    /// CNode_Move: caps (src_root), words (0: dest_index, 1: dest_depth, 2: src_index, 3: src_depth).
    CNodeMove = 23,
    /// CNode_Mutate: caps (src_root), words (0: dest_index, 1: dest_depth, 2: src_index, 3: src_depth, 4: badge).
    CNodeMutate = 24,
    /// CNode_Rotate: caps (pivot_root, src_root), words (0: dest_index, 1: dest_depth, 2: dest_badge, 3: pivot_index, 4: pivot_depth, 5: pivot_badge, 6: src_index, 7: src_depth).
    CNodeRotate = 25,
    /// IRQControl_Get: caps (root), words (0: irq, 1: index, 2: depth).
    IRQIssueIRQHandler = 26,
    /// IRQHandler_Ack: caps (), words ().
    IRQAckIRQ = 27,
    /// IRQHandler_SetNotification: caps (notification), words ().
    IRQSetIRQHandler = 28,
    /// IRQHandler_Clear: caps (), words ().
    IRQClearIRQHandler = 29,
    /// DomainSet_Set: caps (thread), words (0: domain).
    DomainSetSet = 30,
    /// DomainSet_ScheduleConfigure: caps (), words (0: index, 1: domain, 2: duration).
    DomainScheduleConfigure = 31,
    /// DomainSet_ScheduleSetStart: caps (), words (0: index).
    DomainScheduleSetStart = 32,
    /// SchedControl_ConfigureFlags: caps (schedcontext), words (0: budget, 1: period, 2: extra_refills, 3: badge, 4: flags).
    SchedControlConfigureFlags = 33,
    /// SchedContext_Bind: caps (cap), words ().
    SchedContextBind = 34,
    /// SchedContext_Unbind: caps (), words ().
    SchedContextUnbind = 35,
    /// SchedContext_UnbindObject: caps (cap), words ().
    SchedContextUnbindObject = 36,
    /// SchedContext_Consumed: caps (), words (), out (consumed = mr0).
    SchedContextConsumed = 37,
    /// SchedContext_YieldTo: caps (), words (), out (consumed = mr0).
    SchedContextYieldTo = 38,
    /// X86_PDPT_Map: caps (pml4), words (0: vaddr, 1: attr).
    X86PDPTMap = 39,
    /// X86_PDPT_Unmap: caps (), words ().
    X86PDPTUnmap = 40,
    /// X86_PageDirectory_Map: caps (vspace), words (0: vaddr, 1: attr).
    X86PageDirectoryMap = 41,
    /// X86_PageDirectory_Unmap: caps (), words ().
    X86PageDirectoryUnmap = 42,
    /// X86_PageTable_Map: caps (vspace), words (0: vaddr, 1: attr).
    X86PageTableMap = 43,
    /// X86_PageTable_Unmap: caps (), words ().
    X86PageTableUnmap = 44,
    /// X86_Page_Map: caps (vspace), words (0: vaddr, 1: rights, 2: attr).
    X86PageMap = 45,
    /// X86_Page_Unmap: caps (), words ().
    X86PageUnmap = 46,
    /// X86_Page_GetAddress: caps (), words (), out (paddr = mr0).
    X86PageGetAddress = 47,
    /// X86_ASIDControl_MakePool: caps (untyped, root), words (0: index, 1: depth).
    X86ASIDControlMakePool = 48,
    /// X86_ASIDPool_Assign: caps (vspace), words ().
    X86ASIDPoolAssign = 49,
    /// X86_IOPortControl_Issue: caps (root), words (0: first_port, 1: last_port, 2: index, 3: depth).
    X86IOPortControlIssue = 50,
    /// X86_IOPort_In8: caps (), words (0: port), out (result = (mr0 & 0xff)).
    X86IOPortIn8 = 51,
    /// X86_IOPort_In16: caps (), words (0: port), out (result = (mr0 & 0xffff)).
    X86IOPortIn16 = 52,
    /// X86_IOPort_In32: caps (), words (0: port), out (result = (mr0 & 0xffffffff)).
    X86IOPortIn32 = 53,
    /// X86_IOPort_Out8: caps (), words (0: port, 1: data).
    X86IOPortOut8 = 54,
    /// X86_IOPort_Out16: caps (), words (0: port, 1: data).
    X86IOPortOut16 = 55,
    /// X86_IOPort_Out32: caps (), words (0: port, 1: data).
    X86IOPortOut32 = 56,
    /// IRQControl_GetIOAPIC: caps (root), words (0: index, 1: depth, 2: ioapic, 3: pin, 4: level, 5: polarity, 6: vector).
    X86IRQIssueIRQHandlerIOAPIC = 57,
    /// IRQControl_GetMSI: caps (root), words (0: index, 1: depth, 2: pci_bus, 3: pci_dev, 4: pci_func, 5: handle, 6: vector).
    X86IRQIssueIRQHandlerMSI = 58,
    /// Derives a smaller frame capability from a 2 MiB or 1 GiB one: caps (destination root), words (0: destination index,
    /// 1: depth, 2: offset in bytes, 3: child size bits). The child is below the invoked capability in the derivation tree.
    FrameDerive = 128,
    /// Fills a frame with zeros: words (0: offset in bytes, 1: length in bytes), both multiples of 4096. Preemptible.
    FrameZero = 129,
    /// Binds a virtual CPU to a thread: invoked VCPU, caps (tcb).
    VCPUSetTCB = 130,
    /// Sets the nested paging root: invoked VCPU, caps (NPT PML4 with an ASID).
    VCPUSetNPTRoot = 131,
    /// Reads state: invoked VCPU, words (field ids, one each, at most `vcpu::STATE_READ_MAX`), out (values in the same order).
    VCPUReadState = 132,
    /// Writes state: invoked VCPU, words (pairs of field id and value, at most `vcpu::STATE_WRITE_MAX`). Nothing is written unless
    /// all pairs are acceptable: InvalidArgument with the number of the word that is not.
    VCPUWriteState = 133,
    /// Gives the guest direct access to ports: invoked VCPU, caps (IOPort that covers them), words (0: first, 1: last).
    VCPUEnableIOPort = 134,
    /// Takes direct access to ports away: invoked VCPU, words (0: first, 1: last).
    VCPUDisableIOPort = 135,
    /// Lets the guest use an MSR of `vcpu::PASS_THROUGH_MSRS` without exits: invoked VCPU, words (0: msr).
    VCPUEnableMSR = 136,
    /// Makes accesses to an MSR exit again: invoked VCPU, words (0: msr).
    VCPUDisableMSR = 137,
    /// Maps a nested PDPT: caps (NPT PML4), words (0: gpa, 1: attr).
    NPTPDPTMap = 140,
    /// Unmaps a nested PDPT.
    NPTPDPTUnmap = 141,
    /// Maps a nested page directory: caps (NPT PML4), words (0: gpa, 1: attr).
    NPTPDMap = 142,
    /// Unmaps a nested page directory.
    NPTPDUnmap = 143,
    /// Maps a nested page table: caps (NPT PML4), words (0: gpa, 1: attr).
    NPTPTMap = 144,
    /// Unmaps a nested page table.
    NPTPTUnmap = 145,
    /// Maps a frame (4K, 2M, 1G) into a nested space, X86PageUnmap unmaps it: caps (NPT PML4), words (0: gpa, 1: rights, 2: attr of
    /// `vcpu::npt_attr`). Mapping again at the same gpa changes rights and attributes.
    X86PageMapNPT = 146,
    /// Reads, and clears on request, accessed and dirty bits: invoked NPT PML4, words (0: first gpa, 1: number of 4 KiB pages up to
    /// `vcpu::HARVEST_MAX`, 2: flags of `vcpu::harvest`), out (0: pages looked at, 1: pages mapped, from
    /// `vcpu::harvest::ACCESSED_WORD` the accessed bitmap, from `vcpu::harvest::DIRTY_WORD` the dirty bitmap).
    /// A large page sets the bits of all its pages in the range.
    NPTHarvest = 147,
    /// Sets what a timer signals: caps (notification; its badge counts).
    TimerSetNotification = 150,
    /// Arms a timer, replacing an earlier deadline: words (0: absolute TSC). A deadline in the past signals at once.
    TimerArm = 151,
    /// Disarms a timer: out (0: 1 if it was armed, else 0).
    TimerCancel = 152,
}

/// Labels from here on are extensions.
pub const FIRST_EXTENSION: u64 = 128;
