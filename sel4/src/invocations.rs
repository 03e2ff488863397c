//! One method per kernel operation, on the capability it is invoked on.

use abi::Label;
use abi::context::CONTEXT_WORDS;
use abi::vcpu::{STATE_READ_MAX, STATE_WRITE_MAX, harvest};

use crate::cap_type::{CapType, CapTypeForFrameObject, CapTypeForTranslationTable};
use crate::cptr::{AbsoluteCPtr, CPtr, Cap};
use crate::error::{Error, Result};
use crate::ipc_buffer::{mr, set_cap, set_mr};
use crate::message::{Badge, CNodeCapData, CapRights, MessageInfo, VmAttributes};
use crate::object::{ObjectBlueprint, TranslationTableObjectType};
use crate::syscalls::raw_call;
use crate::{UserContext, cap};

/// Invokes `cptr` with at most four words.
#[inline(always)]
fn invoke<const C: usize>(
    cptr: CPtr,
    label: Label,
    caps: [u64; C],
    words: [u64; 4],
    length: u64,
) -> Result<[u64; 4]> {
    for (index, cap) in caps.into_iter().enumerate() {
        set_cap(index, cap);
    }
    let info = MessageInfo::new(label as u64, 0, C as u64, length);
    let answer = raw_call(cptr.bits(), info, words);
    Error::from_label(answer.info.label()).map(|()| answer.msg)
}

/// Invokes `cptr` with more words than registers.
#[inline(always)]
fn invoke_long<const C: usize>(
    cptr: CPtr,
    label: Label,
    caps: [u64; C],
    words: &[u64],
) -> Result<[u64; 4]> {
    let mut fast = [0; 4];
    for (index, word) in words.iter().enumerate() {
        match fast.get_mut(index) {
            Some(place) => *place = *word,
            None => set_mr(index, *word),
        }
    }
    invoke(cptr, label, caps, fast, words.len() as u64)
}

impl cap::Untyped {
    /// Makes `num_objects` objects in the CNode `dst` names, from slot `dst_offset` on.
    pub fn untyped_retype(
        self,
        blueprint: &ObjectBlueprint,
        dst: &AbsoluteCPtr,
        dst_offset: u64,
        num_objects: u64,
    ) -> Result<()> {
        set_mr(4, dst_offset);
        set_mr(5, num_objects);
        let path = dst.path();
        let words = [blueprint.ty() as u64, blueprint.api_size_bits(), path.bits(), path.depth()];
        invoke(self.cptr(), Label::UntypedRetype, [dst.root().bits()], words, 6).map(drop)
    }
}

/// Bits of a TCB's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcbFlags(pub u64);

impl TcbFlags {
    /// The thread uses no FPU.
    pub const FPU_DISABLED: Self = Self(abi::object::TCB_FLAG_FPU_DISABLED);
}

fn context_words(context: &UserContext) -> [u64; CONTEXT_WORDS] {
    let c = context;
    [
        c.rip, c.rsp, c.rflags, c.rax, c.rbx, c.rcx, c.rdx, c.rsi, c.rdi, c.rbp, c.r8, c.r9, c.r10,
        c.r11, c.r12, c.r13, c.r14, c.r15, c.fs_base, c.gs_base,
    ]
}

impl cap::Tcb {
    /// Registers of a thread, suspending it first on request.
    pub fn tcb_read_all_registers(self, suspend: bool) -> Result<UserContext> {
        let words = [u64::from(suspend), CONTEXT_WORDS as u64, 0, 0];
        let [rip, rsp, rflags, rax] = invoke(self.cptr(), Label::TCBReadRegisters, [], words, 2)?;
        let mut next = 4;
        let mut take = || {
            next += 1;
            mr(next - 1)
        };
        Ok(UserContext {
            rip,
            rsp,
            rflags,
            rax,
            rbx: take(),
            rcx: take(),
            rdx: take(),
            rsi: take(),
            rdi: take(),
            rbp: take(),
            r8: take(),
            r9: take(),
            r10: take(),
            r11: take(),
            r12: take(),
            r13: take(),
            r14: take(),
            r15: take(),
            fs_base: take(),
            gs_base: take(),
        })
    }

    /// Sets the first `count` registers of a thread, resuming it afterwards on request.
    pub fn tcb_write_registers(
        self,
        resume: bool,
        count: u64,
        context: &UserContext,
    ) -> Result<()> {
        let mut words = [0; CONTEXT_WORDS + 2];
        words[0] = u64::from(resume);
        words[1] = count;
        words[2..].copy_from_slice(&context_words(context));
        invoke_long(self.cptr(), Label::TCBWriteRegisters, [], &words).map(drop)
    }

    /// Sets all registers of a thread.
    pub fn tcb_write_all_registers(self, resume: bool, context: &UserContext) -> Result<()> {
        self.tcb_write_registers(resume, CONTEXT_WORDS as u64, context)
    }

    /// Copies registers from `source`.
    pub fn tcb_copy_registers(
        self,
        source: cap::Tcb,
        suspend_source: bool,
        resume_target: bool,
        transfer_frame: bool,
        transfer_integer: bool,
    ) -> Result<()> {
        let flags = u64::from(suspend_source)
            | u64::from(resume_target) << 1
            | u64::from(transfer_frame) << 2
            | u64::from(transfer_integer) << 3;
        invoke(self.cptr(), Label::TCBCopyRegisters, [source.bits()], [flags, 0, 0, 0], 1).map(drop)
    }

    /// Sets CSpace, VSpace and IPC buffer.
    pub fn tcb_configure(
        self,
        cspace_root: cap::CNode,
        cspace_root_data: CNodeCapData,
        vspace_root: cap::VSpace,
        ipc_buffer: u64,
        ipc_buffer_frame: cap::Granule,
    ) -> Result<()> {
        let caps = [cspace_root.bits(), vspace_root.bits(), ipc_buffer_frame.bits()];
        let words = [cspace_root_data.into_word(), 0, ipc_buffer, 0];
        invoke(self.cptr(), Label::TCBConfigure, caps, words, 3).map(drop)
    }

    /// Sets priorities, scheduling context (null: none) and fault handler (null: none).
    pub fn tcb_set_sched_params(
        self,
        authority: cap::Tcb,
        mcp: u64,
        priority: u64,
        sched_context: cap::SchedContext,
        fault_ep: cap::Endpoint,
    ) -> Result<()> {
        let caps = [authority.bits(), sched_context.bits(), fault_ep.bits()];
        invoke(self.cptr(), Label::TCBSetSchedParams, caps, [mcp, priority, 0, 0], 2).map(drop)
    }

    /// Sets fault handler, CSpace and VSpace.
    pub fn tcb_set_space(
        self,
        fault_ep: cap::Endpoint,
        cspace_root: cap::CNode,
        cspace_root_data: CNodeCapData,
        vspace_root: cap::VSpace,
    ) -> Result<()> {
        let caps = [fault_ep.bits(), cspace_root.bits(), vspace_root.bits()];
        let words = [cspace_root_data.into_word(), 0, 0, 0];
        invoke(self.cptr(), Label::TCBSetSpace, caps, words, 2).map(drop)
    }

    /// Sets the priority, with `authority` to do so.
    pub fn tcb_set_priority(self, authority: cap::Tcb, priority: u64) -> Result<()> {
        let caps = [authority.bits()];
        invoke(self.cptr(), Label::TCBSetPriority, caps, [priority, 0, 0, 0], 1).map(drop)
    }

    /// Sets the greatest priority it may give.
    pub fn tcb_set_mc_priority(self, authority: cap::Tcb, mcp: u64) -> Result<()> {
        let caps = [authority.bits()];
        invoke(self.cptr(), Label::TCBSetMCPriority, caps, [mcp, 0, 0, 0], 1).map(drop)
    }

    /// Sets who hears of budget overruns.
    pub fn tcb_set_timeout_endpoint(self, endpoint: cap::Endpoint) -> Result<()> {
        invoke(self.cptr(), Label::TCBSetTimeoutEndpoint, [endpoint.bits()], [0; 4], 0).map(drop)
    }

    /// Sets the IPC buffer.
    pub fn tcb_set_ipc_buffer(self, address: u64, frame: cap::Granule) -> Result<()> {
        let caps = [frame.bits()];
        invoke(self.cptr(), Label::TCBSetIPCBuffer, caps, [address, 0, 0, 0], 1).map(drop)
    }

    /// Lets the thread run.
    pub fn tcb_resume(self) -> Result<()> {
        invoke(self.cptr(), Label::TCBResume, [], [0; 4], 0).map(drop)
    }

    /// Stops the thread.
    pub fn tcb_suspend(self) -> Result<()> {
        invoke(self.cptr(), Label::TCBSuspend, [], [0; 4], 0).map(drop)
    }

    /// Lets signals wake the thread from any receive.
    pub fn tcb_bind_notification(self, notification: cap::Notification) -> Result<()> {
        let caps = [notification.bits()];
        invoke(self.cptr(), Label::TCBBindNotification, caps, [0; 4], 0).map(drop)
    }

    /// Undoes [`Self::tcb_bind_notification`].
    pub fn tcb_unbind_notification(self) -> Result<()> {
        invoke(self.cptr(), Label::TCBUnbindNotification, [], [0; 4], 0).map(drop)
    }

    /// Sets the TLS base.
    pub fn tcb_set_tls_base(self, address: u64) -> Result<()> {
        invoke(self.cptr(), Label::TCBSetTLSBase, [], [address, 0, 0, 0], 1).map(drop)
    }

    /// Clears and sets flags; returns what they are then.
    pub fn tcb_set_flags(self, clear: TcbFlags, set: TcbFlags) -> Result<TcbFlags> {
        let words = [clear.0, set.0, 0, 0];
        invoke(self.cptr(), Label::TCBSetFlags, [], words, 2).map(|out| TcbFlags(out[0]))
    }
}

impl AbsoluteCPtr {
    fn invoke_from(&self, label: Label, src: &Self, rest: [u64; 2], length: u64) -> Result<()> {
        set_mr(4, rest[0]);
        set_mr(5, rest[1]);
        let (to, from) = (self.path(), src.path());
        let words = [to.bits(), to.depth(), from.bits(), from.depth()];
        invoke(self.root().cptr(), label, [src.root().bits()], words, length).map(drop)
    }

    /// Copies the capability in `src` here, with at most `rights`.
    pub fn copy(&self, src: &Self, rights: CapRights) -> Result<()> {
        self.invoke_from(Label::CNodeCopy, src, [rights.into_word(), 0], 5)
    }

    /// Copies the capability in `src` here with a badge (or a CNode's guard).
    pub fn mint(&self, src: &Self, rights: CapRights, badge: Badge) -> Result<()> {
        self.invoke_from(Label::CNodeMint, src, [rights.into_word(), badge], 6)
    }

    /// Moves the capability in `src` here.
    pub fn move_(&self, src: &Self) -> Result<()> {
        self.invoke_from(Label::CNodeMove, src, [0; 2], 4)
    }

    /// Moves the capability in `src` here and gives it a badge (or a CNode's guard).
    pub fn mutate(&self, src: &Self, badge: Badge) -> Result<()> {
        self.invoke_from(Label::CNodeMutate, src, [badge, 0], 5)
    }

    fn invoke_here(&self, label: Label) -> Result<()> {
        let words = [self.path().bits(), self.path().depth(), 0, 0];
        invoke(self.root().cptr(), label, [], words, 2).map(drop)
    }

    /// Empties the slot.
    pub fn delete(&self) -> Result<()> {
        self.invoke_here(Label::CNodeDelete)
    }

    /// Deletes everything derived from the capability here.
    pub fn revoke(&self) -> Result<()> {
        self.invoke_here(Label::CNodeRevoke)
    }

    /// Cancels waiting sends with the badge of the capability here.
    pub fn cancel_badged_sends(&self) -> Result<()> {
        self.invoke_here(Label::CNodeCancelBadgedSends)
    }

    /// Moves `pivot` here and `src` to `pivot`, with new badges for both.
    pub fn rotate(
        &self,
        dest_badge: Badge,
        pivot: &Self,
        pivot_badge: Badge,
        src: &Self,
    ) -> Result<()> {
        let words = [
            self.path().bits(),
            self.path().depth(),
            dest_badge,
            pivot.path().bits(),
            pivot.path().depth(),
            pivot_badge,
            src.path().bits(),
            src.path().depth(),
        ];
        let caps = [pivot.root().bits(), src.root().bits()];
        invoke_long(self.root().cptr(), Label::CNodeRotate, caps, &words).map(drop)
    }
}

impl cap::SchedControl {
    /// Gives `sched_context` a budget and period in microseconds on this core.
    pub fn sched_control_configure_flags(
        self,
        sched_context: cap::SchedContext,
        budget: u64,
        period: u64,
        extra_refills: u64,
        badge: Badge,
        flags: u64,
    ) -> Result<()> {
        set_mr(4, flags);
        let words = [budget, period, extra_refills, badge];
        let caps = [sched_context.bits()];
        invoke(self.cptr(), Label::SchedControlConfigureFlags, caps, words, 5).map(drop)
    }
}

impl cap::SchedContext {
    /// Binds it to a thread or a notification.
    pub fn bind<T: CapType>(self, object: Cap<T>) -> Result<()> {
        invoke(self.cptr(), Label::SchedContextBind, [object.bits()], [0; 4], 0).map(drop)
    }

    /// Unbinds it from whatever it is bound to.
    pub fn unbind(self) -> Result<()> {
        invoke(self.cptr(), Label::SchedContextUnbind, [], [0; 4], 0).map(drop)
    }

    /// Unbinds it from `object`.
    pub fn unbind_object<T: CapType>(self, object: Cap<T>) -> Result<()> {
        invoke(self.cptr(), Label::SchedContextUnbindObject, [object.bits()], [0; 4], 0).map(drop)
    }

    /// Microseconds consumed since last asked.
    pub fn consumed(self) -> Result<u64> {
        invoke(self.cptr(), Label::SchedContextConsumed, [], [0; 4], 0).map(|out| out[0])
    }

    /// Lets its thread run now; microseconds it consumed.
    pub fn yield_to(self) -> Result<u64> {
        invoke(self.cptr(), Label::SchedContextYieldTo, [], [0; 4], 0).map(|out| out[0])
    }
}

impl cap::IrqControl {
    /// Makes a handler for interrupt `pin` of I/O APIC `ioapic`.
    pub fn irq_control_get_ioapic(
        self,
        ioapic: u64,
        pin: u64,
        level: u64,
        polarity: u64,
        vector: u64,
        dst: &AbsoluteCPtr,
    ) -> Result<()> {
        let words = [dst.path().bits(), dst.path().depth(), ioapic, pin, level, polarity, vector];
        let caps = [dst.root().bits()];
        invoke_long(self.cptr(), Label::X86IRQIssueIRQHandlerIOAPIC, caps, &words).map(drop)
    }

    /// Makes a handler for a message-signalled interrupt.
    pub fn irq_control_get_msi(
        self,
        pci_bus: u64,
        pci_dev: u64,
        pci_func: u64,
        handle: u64,
        vector: u64,
        dst: &AbsoluteCPtr,
    ) -> Result<()> {
        let words =
            [dst.path().bits(), dst.path().depth(), pci_bus, pci_dev, pci_func, handle, vector];
        let caps = [dst.root().bits()];
        invoke_long(self.cptr(), Label::X86IRQIssueIRQHandlerMSI, caps, &words).map(drop)
    }

    /// Makes a handler for a legacy interrupt number.
    pub fn irq_control_get(self, irq: u64, dst: &AbsoluteCPtr) -> Result<()> {
        let words = [irq, dst.path().bits(), dst.path().depth(), 0];
        let caps = [dst.root().bits()];
        invoke(self.cptr(), Label::IRQIssueIRQHandler, caps, words, 3).map(drop)
    }
}

impl cap::IrqHandler {
    /// Unmasks the interrupt again.
    #[inline]
    pub fn irq_handler_ack(self) -> Result<()> {
        invoke(self.cptr(), Label::IRQAckIRQ, [], [0; 4], 0).map(drop)
    }

    /// Sets what the interrupt signals.
    pub fn irq_handler_set_notification(self, notification: cap::Notification) -> Result<()> {
        let caps = [notification.bits()];
        invoke(self.cptr(), Label::IRQSetIRQHandler, caps, [0; 4], 0).map(drop)
    }

    /// The interrupt signals nothing any more.
    pub fn irq_handler_clear(self) -> Result<()> {
        invoke(self.cptr(), Label::IRQClearIRQHandler, [], [0; 4], 0).map(drop)
    }
}

impl cap::DomainSet {
    /// Moves `tcb` into a domain.
    pub fn domain_set_set(self, tcb: cap::Tcb, domain: u8) -> Result<()> {
        let words = [u64::from(domain), 0, 0, 0];
        invoke(self.cptr(), Label::DomainSetSet, [tcb.bits()], words, 1).map(drop)
    }

    /// Sets entry `index` of the domain schedule.
    pub fn domain_set_schedule_configure(
        self,
        index: u64,
        domain: u8,
        duration: u64,
    ) -> Result<()> {
        let words = [index, u64::from(domain), duration, 0];
        invoke(self.cptr(), Label::DomainScheduleConfigure, [], words, 3).map(drop)
    }

    /// Starts the domain schedule at entry `index`.
    pub fn domain_set_schedule_set_start(self, index: u64) -> Result<()> {
        invoke(self.cptr(), Label::DomainScheduleSetStart, [], [index, 0, 0, 0], 1).map(drop)
    }
}

impl cap::AsidControl {
    /// Makes a pool of `untyped` in `dst`.
    pub fn asid_control_make_pool(self, untyped: cap::Untyped, dst: &AbsoluteCPtr) -> Result<()> {
        let caps = [untyped.bits(), dst.root().bits()];
        let words = [dst.path().bits(), dst.path().depth(), 0, 0];
        invoke(self.cptr(), Label::X86ASIDControlMakePool, caps, words, 2).map(drop)
    }
}

impl cap::AsidPool {
    /// Gives an address space, nested or not, an identifier.
    pub fn asid_pool_assign<T: CapType>(self, vspace: Cap<T>) -> Result<()> {
        invoke(self.cptr(), Label::X86ASIDPoolAssign, [vspace.bits()], [0; 4], 0).map(drop)
    }
}

impl<T: CapTypeForFrameObject> Cap<T> {
    /// Maps the frame at `vaddr`.
    #[inline]
    pub fn frame_map(
        self,
        vspace: cap::VSpace,
        vaddr: u64,
        rights: CapRights,
        attrs: VmAttributes,
    ) -> Result<()> {
        let words = [vaddr, rights.into_word(), attrs.into_inner(), 0];
        invoke(self.cptr(), Label::X86PageMap, [vspace.bits()], words, 3).map(drop)
    }

    /// Removes the mapping of this capability, nested or not.
    #[inline]
    pub fn frame_unmap(self) -> Result<()> {
        invoke(self.cptr(), Label::X86PageUnmap, [], [0; 4], 0).map(drop)
    }

    /// Physical address of the frame.
    pub fn frame_get_address(self) -> Result<u64> {
        invoke(self.cptr(), Label::X86PageGetAddress, [], [0; 4], 0).map(|out| out[0])
    }

    /// Maps the frame at guest-physical address `gpa`; `attributes` are of [`abi::vcpu::npt_attr`].
    #[inline]
    pub fn frame_map_npt(
        self,
        root: cap::NptPml4,
        gpa: u64,
        rights: CapRights,
        attributes: u64,
    ) -> Result<()> {
        let words = [gpa, rights.into_word(), attributes, 0];
        invoke(self.cptr(), Label::X86PageMapNPT, [root.bits()], words, 3).map(drop)
    }

    /// Derives a frame of 2^`size_bits` bytes at `offset` of this one into `dst`.
    #[inline]
    pub fn frame_derive(self, offset: u64, size_bits: u64, dst: &AbsoluteCPtr) -> Result<()> {
        let words = [dst.path().bits(), dst.path().depth(), offset, size_bits];
        invoke(self.cptr(), Label::FrameDerive, [dst.root().bits()], words, 4).map(drop)
    }

    /// Fills `length` bytes from `offset` on with zeros; both are multiples of 4096.
    #[inline]
    pub fn frame_zero(self, offset: u64, length: u64) -> Result<()> {
        invoke(self.cptr(), Label::FrameZero, [], [offset, length, 0, 0], 2).map(drop)
    }
}

impl<T: CapTypeForTranslationTable> Cap<T> {
    /// Maps the table for `vaddr`.
    pub fn generic_intermediate_translation_table_map(
        self,
        vspace: cap::VSpace,
        vaddr: u64,
        attrs: VmAttributes,
    ) -> Result<()> {
        let label = match T::TABLE_OBJECT_TYPE {
            TranslationTableObjectType::PDPT => Label::X86PDPTMap,
            TranslationTableObjectType::PageDirectory => Label::X86PageDirectoryMap,
            TranslationTableObjectType::PageTable => Label::X86PageTableMap,
        };
        let words = [vaddr, attrs.into_inner(), 0, 0];
        invoke(self.cptr(), label, [vspace.bits()], words, 2).map(drop)
    }

    /// Unmaps the table.
    pub fn generic_intermediate_translation_table_unmap(self) -> Result<()> {
        let label = match T::TABLE_OBJECT_TYPE {
            TranslationTableObjectType::PDPT => Label::X86PDPTUnmap,
            TranslationTableObjectType::PageDirectory => Label::X86PageDirectoryUnmap,
            TranslationTableObjectType::PageTable => Label::X86PageTableUnmap,
        };
        invoke(self.cptr(), label, [], [0; 4], 0).map(drop)
    }
}

impl cap::PDPT {
    /// Maps the table for `vaddr`.
    pub fn pdpt_map(self, vspace: cap::VSpace, vaddr: u64, attrs: VmAttributes) -> Result<()> {
        self.generic_intermediate_translation_table_map(vspace, vaddr, attrs)
    }
}

impl cap::PageDirectory {
    /// Maps the table for `vaddr`.
    pub fn page_directory_map(
        self,
        vspace: cap::VSpace,
        vaddr: u64,
        attrs: VmAttributes,
    ) -> Result<()> {
        self.generic_intermediate_translation_table_map(vspace, vaddr, attrs)
    }
}

impl cap::PageTable {
    /// Maps the table for `vaddr`.
    pub fn page_table_map(
        self,
        vspace: cap::VSpace,
        vaddr: u64,
        attrs: VmAttributes,
    ) -> Result<()> {
        self.generic_intermediate_translation_table_map(vspace, vaddr, attrs)
    }
}

macro_rules! nested_table {
    ($cap:ident, $map:ident, $unmap:ident, $map_label:ident, $unmap_label:ident) => {
        impl cap::$cap {
            /// Maps the nested table for guest-physical address `gpa`.
            pub fn $map(self, root: cap::NptPml4, gpa: u64) -> Result<()> {
                let caps = [root.bits()];
                invoke(self.cptr(), Label::$map_label, caps, [gpa, 0, 0, 0], 2).map(drop)
            }

            /// Unmaps the nested table.
            pub fn $unmap(self) -> Result<()> {
                invoke(self.cptr(), Label::$unmap_label, [], [0; 4], 0).map(drop)
            }
        }
    };
}

nested_table!(NptPdpt, npt_pdpt_map, npt_pdpt_unmap, NPTPDPTMap, NPTPDPTUnmap);
nested_table!(NptPd, npt_pd_map, npt_pd_unmap, NPTPDMap, NPTPDUnmap);
nested_table!(NptPt, npt_pt_map, npt_pt_unmap, NPTPTMap, NPTPTUnmap);

/// Answer of [`Cap::npt_harvest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harvested {
    /// Pages looked at.
    pub looked_at: u64,
    /// Of those, mapped.
    pub mapped: u64,
}

impl cap::NptPml4 {
    /// Reads, and clears as `flags` of [`abi::vcpu::harvest`] say, accessed and dirty bits of `pages` pages from `gpa` on.
    /// Bit n of the bitmaps is page n.
    pub fn npt_harvest(
        self,
        gpa: u64,
        pages: u64,
        flags: u64,
        accessed: &mut [u64; 32],
        dirty: &mut [u64; 32],
    ) -> Result<Harvested> {
        let out = invoke(self.cptr(), Label::NPTHarvest, [], [gpa, pages, flags, 0], 3)?;
        for (index, word) in accessed.iter_mut().enumerate() {
            *word = mr(harvest::ACCESSED_WORD + index);
        }
        for (index, word) in dirty.iter_mut().enumerate() {
            *word = mr(harvest::DIRTY_WORD + index);
        }
        Ok(Harvested { looked_at: out[0], mapped: out[1] })
    }
}

impl cap::VCpu {
    /// Binds it to a thread, which may then call [`crate::vm_enter`].
    pub fn vcpu_set_tcb(self, tcb: cap::Tcb) -> Result<()> {
        invoke(self.cptr(), Label::VCPUSetTCB, [tcb.bits()], [0; 4], 0).map(drop)
    }

    /// Sets the nested address space its guest runs in.
    pub fn vcpu_set_npt_root(self, root: cap::NptPml4) -> Result<()> {
        invoke(self.cptr(), Label::VCPUSetNPTRoot, [root.bits()], [0; 4], 0).map(drop)
    }

    /// Reads the state `fields` of [`abi::vcpu::field`] into `values`, as many as the shorter has.
    pub fn vcpu_read_state(self, fields: &[u64], values: &mut [u64]) -> Result<()> {
        let count = fields.len().min(values.len()).min(STATE_READ_MAX);
        let fields = fields.get(..count).unwrap_or(&[]);
        let fast = invoke_long(self.cptr(), Label::VCPUReadState, [], fields)?;
        for (index, value) in values.iter_mut().take(count).enumerate() {
            *value = fast.get(index).copied().unwrap_or_else(|| mr(index));
        }
        Ok(())
    }

    /// Reads one field.
    pub fn vcpu_read_field(self, field: u64) -> Result<u64> {
        invoke(self.cptr(), Label::VCPUReadState, [], [field, 0, 0, 0], 1).map(|out| out[0])
    }

    /// Writes pairs of field and value, all or none; at most [`STATE_WRITE_MAX`] pairs.
    pub fn vcpu_write_state(self, pairs: &[(u64, u64)]) -> Result<()> {
        let mut fast = [0; 4];
        if pairs.len() > STATE_WRITE_MAX {
            return Err(Error::RangeError);
        }
        for (index, (field, value)) in pairs.iter().enumerate() {
            match fast.get_mut(2 * index..2 * index + 2) {
                Some(place) => place.copy_from_slice(&[*field, *value]),
                None => {
                    set_mr(2 * index, *field);
                    set_mr(2 * index + 1, *value);
                }
            }
        }
        let length = 2 * pairs.len() as u64;
        invoke(self.cptr(), Label::VCPUWriteState, [], fast, length).map(drop)
    }

    /// Gives the guest ports `first..=last` directly.
    pub fn vcpu_enable_io_port(self, ports: cap::IOPort, first: u16, last: u16) -> Result<()> {
        let words = [u64::from(first), u64::from(last), 0, 0];
        invoke(self.cptr(), Label::VCPUEnableIOPort, [ports.bits()], words, 2).map(drop)
    }

    /// Takes ports away from the guest.
    pub fn vcpu_disable_io_port(self, first: u16, last: u16) -> Result<()> {
        let words = [u64::from(first), u64::from(last), 0, 0];
        invoke(self.cptr(), Label::VCPUDisableIOPort, [], words, 2).map(drop)
    }

    /// Lets the guest use an MSR of [`abi::vcpu::PASS_THROUGH_MSRS`] without exits.
    pub fn vcpu_enable_msr(self, msr: u32) -> Result<()> {
        let words = [u64::from(msr), 0, 0, 0];
        invoke(self.cptr(), Label::VCPUEnableMSR, [], words, 1).map(drop)
    }

    /// Makes accesses to an MSR exit.
    pub fn vcpu_disable_msr(self, msr: u32) -> Result<()> {
        let words = [u64::from(msr), 0, 0, 0];
        invoke(self.cptr(), Label::VCPUDisableMSR, [], words, 1).map(drop)
    }
}

impl cap::Timer {
    /// Sets what the timer signals.
    pub fn timer_set_notification(self, notification: cap::Notification) -> Result<()> {
        let caps = [notification.bits()];
        invoke(self.cptr(), Label::TimerSetNotification, caps, [0; 4], 0).map(drop)
    }

    /// Signals once the TSC reaches `deadline`; replaces an earlier deadline.
    #[inline]
    pub fn timer_arm(self, deadline: u64) -> Result<()> {
        invoke(self.cptr(), Label::TimerArm, [], [deadline, 0, 0, 0], 1).map(drop)
    }

    /// Disarms it; whether it was armed.
    pub fn timer_cancel(self) -> Result<bool> {
        invoke(self.cptr(), Label::TimerCancel, [], [0; 4], 0).map(|out| out[0] != 0)
    }
}

impl cap::IOPortControl {
    /// Makes a capability for ports `first..=last` in `dst`.
    pub fn ioport_control_issue(self, first: u16, last: u16, dst: &AbsoluteCPtr) -> Result<()> {
        let words = [u64::from(first), u64::from(last), dst.path().bits(), dst.path().depth()];
        let caps = [dst.root().bits()];
        invoke(self.cptr(), Label::X86IOPortControlIssue, caps, words, 4).map(drop)
    }
}

impl cap::IOPort {
    fn read(self, label: Label, port: u16) -> Result<u64> {
        invoke(self.cptr(), label, [], [u64::from(port), 0, 0, 0], 1).map(|out| out[0])
    }

    fn write(self, label: Label, port: u16, data: u64) -> Result<()> {
        invoke(self.cptr(), label, [], [u64::from(port), data, 0, 0], 2).map(drop)
    }

    /// Reads one byte.
    pub fn ioport_in8(self, port: u16) -> Result<u8> {
        self.read(Label::X86IOPortIn8, port).map(|value| value.to_le_bytes()[0])
    }

    /// Reads two bytes.
    pub fn ioport_in16(self, port: u16) -> Result<u16> {
        let value = self.read(Label::X86IOPortIn16, port)?.to_le_bytes();
        Ok(u16::from_le_bytes([value[0], value[1]]))
    }

    /// Reads four bytes.
    pub fn ioport_in32(self, port: u16) -> Result<u32> {
        let value = self.read(Label::X86IOPortIn32, port)?.to_le_bytes();
        Ok(u32::from_le_bytes([value[0], value[1], value[2], value[3]]))
    }

    /// Writes one byte.
    pub fn ioport_out8(self, port: u16, data: u8) -> Result<()> {
        self.write(Label::X86IOPortOut8, port, u64::from(data))
    }

    /// Writes two bytes.
    pub fn ioport_out16(self, port: u16, data: u16) -> Result<()> {
        self.write(Label::X86IOPortOut16, port, u64::from(data))
    }

    /// Writes four bytes.
    pub fn ioport_out32(self, port: u16, data: u32) -> Result<()> {
        self.write(Label::X86IOPortOut32, port, u64::from(data))
    }
}
