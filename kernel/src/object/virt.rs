//! Virtual CPUs inside the kernel: entry, exit, binding, and what the cores know of guests.

use crate::arch::x86_64::svm::asid::AsidPool;
use crate::arch::x86_64::svm::npt;
use crate::hw::Hw;
use crate::limits::MAX_CORES;
use crate::mem::{PhysAddr, Ref};
use crate::object::notification::NotificationState;
use crate::object::tcb::{Tcb, ThreadState, tcb_slot};
use crate::object::timer::Timer;
use crate::object::vcpu::{Exit, ExitWords, Vcpu};
use crate::{Action, Kernel, Resume};

/// Kernel state of the virtualisation part.
pub(crate) struct Virt {
    /// ASIDs of each core.
    pub(crate) asids: [AsidPool; MAX_CORES],
    /// Nested roots deleted so far, plus one: virtual CPUs look again whether theirs exists when this changes.
    pub(crate) roots_deleted: u64,
    /// Last number given to a root or an epoch: never used twice.
    pub(crate) last_epoch: u64,
    /// Armed timers of each core, earliest first.
    pub(crate) timers: [Option<Ref<Timer>>; MAX_CORES],
}

impl Virt {
    /// Nothing virtual yet; a core's ASIDs are asked for at its first entry.
    pub(crate) const fn new() -> Self {
        Self {
            asids: [const { AsidPool::new(0) }; MAX_CORES],
            roots_deleted: 1,
            last_epoch: 0,
            timers: [None; MAX_CORES],
        }
    }
}

/// Finds the virtual CPU bound to a thread.
#[inline(always)]
pub(crate) fn vcpu_of(tcb: Ref<Tcb>) -> Option<Ref<Vcpu>> {
    Ref::maybe(PhysAddr(tcb.vcpu.get()))
}

impl<H: Hw> Kernel<H> {
    /// Turns zeroed memory into a virtual CPU.
    pub(crate) fn init_vcpu(addr: PhysAddr) {
        Ref::<Vcpu>::at(addr).init(addr.0);
    }

    /// VMEnter by the current thread; without a virtual CPU there is no such system call.
    #[inline]
    pub(crate) fn enter_guest(&mut self, tcb: Ref<Tcb>) {
        let Some(vcpu) = vcpu_of(tcb) else {
            return self.unknown_syscall(tcb, abi::Syscall::VMEnter as u64);
        };
        vcpu.absorb(tcb, || Self::guest_words(vcpu, tcb));
        tcb.state.set(ThreadState::RunningVm);
    }

    /// VMEnter without a look at the clock and the queues: `None` where there is reason for one. The time goes on being counted
    /// from the last look, and the timer ends the slice as always.
    #[inline]
    pub(crate) fn fast_enter_guest(&mut self, tcb: Ref<Tcb>) -> Option<Resume> {
        let vcpu = vcpu_of(tcb)?;
        if !self.may_go_on() {
            return None;
        }
        vcpu.absorb(tcb, || Self::guest_words(vcpu, tcb));
        tcb.state.set(ThreadState::RunningVm);
        Some(self.resume_guest_here(tcb))
    }

    /// The way back after [`Kernel::guest_exit`], likewise.
    #[inline]
    pub(crate) fn fast_guest_exit(&mut self, tcb: Ref<Tcb>) -> Option<Resume> {
        if !self.may_go_on() {
            return None;
        }
        match tcb.state.get() {
            ThreadState::Running => Some(Resume::User(tcb)),
            ThreadState::RunningVm => Some(self.resume_guest(tcb)),
            _ => None,
        }
    }

    /// Tells whether nothing asks for a new choice of thread or deadline on this core.
    #[inline(always)]
    fn may_go_on(&mut self) -> bool {
        let this = self.this();
        matches!(this.action, Action::Resume) && !this.reprogram
    }

    /// The guest of the current thread has exited for a reason other than an external interrupt.
    #[inline]
    pub(crate) fn guest_exit(&mut self, tcb: Ref<Tcb>) {
        if tcb.state.get() != ThreadState::RunningVm {
            return;
        }
        let Some(vcpu) = vcpu_of(tcb) else { return };
        if vcpu.classify() == Exit::Publish {
            vcpu.publish_exit(tcb, Self::guest_words(vcpu, tcb));
            tcb.state.set(ThreadState::Running);
        }
    }

    /// Decides how a thread in VMEnter goes on: with a signal that waits, or in its guest.
    #[inline(never)]
    pub(crate) fn resume_guest(&mut self, tcb: Ref<Tcb>) -> Resume {
        self.resume_guest_here(tcb)
    }

    /// The same for the short way in, without a call.
    #[inline(always)]
    fn resume_guest_here(&mut self, tcb: Ref<Tcb>) -> Resume {
        let Some(vcpu) = vcpu_of(tcb) else {
            tcb.state.set(ThreadState::Running);
            return Resume::User(tcb);
        };
        if let Some(notification) = tcb.notification.get()
            && notification.state.get() == NotificationState::Active
        {
            let badge = notification.word.replace(0);
            notification.state.set(NotificationState::Idle);
            vcpu.publish_notification(tcb, badge);
            tcb.state.set(ThreadState::Running);
            return Resume::User(tcb);
        }
        if self.prepare_guest(vcpu) {
            Resume::Guest(tcb)
        } else {
            vcpu.publish_invalid(tcb, Self::guest_words(vcpu, tcb));
            tcb.state.set(ThreadState::Running);
            Resume::User(tcb)
        }
    }

    /// Makes the nested root and the ASID good for an entry on this core; `false`: there is no root.
    #[inline(always)]
    fn prepare_guest(&mut self, vcpu: Ref<Vcpu>) -> bool {
        if vcpu.roots_seen.get() != self.virt.roots_deleted && !self.revalidate_root(vcpu) {
            return false;
        }
        let core = self.core & (MAX_CORES - 1);
        let root = vcpu.root.get();
        let epoch = npt::epoch(root);
        let control = if self.virt.asids[core].is_current(&vcpu.tag, core as u32, epoch) {
            0
        } else {
            let Some(control) = self.renew_asid(vcpu, core, epoch) else { return false };
            control
        };
        vcpu.vmcb.tlb_control.set(control);
        true
    }

    #[cold]
    #[inline(never)]
    fn renew_asid(&mut self, vcpu: Ref<Vcpu>, core: usize, epoch: u64) -> Option<u8> {
        if vcpu.tag.generation.get() != 0 && vcpu.tag.core.get() != core as u32 {
            // What the last core still keeps of the guest in its registers must come here.
            self.hw.release_guest(vcpu);
        }
        if self.virt.asids[core].is_empty() {
            self.virt.asids[core] = AsidPool::new(self.hw.guest_limits(core).0);
        }
        let control = self.virt.asids[core].renew(&vcpu.tag, core as u32, epoch)?;
        vcpu.vmcb.asid.set(vcpu.tag.asid.get());
        Some(control)
    }

    /// Some nested root was deleted since this virtual CPU last looked: is its own still the one it was given?
    #[cold]
    #[inline(never)]
    fn revalidate_root(&mut self, vcpu: Ref<Vcpu>) -> bool {
        let asid = vcpu.root_asid.get();
        let root = vcpu.root.get();
        if asid == 0
            || self.nested_of_asid(asid) != root.0
            || npt::birth(root) != vcpu.root_birth.get()
        {
            vcpu.root_asid.set(0);
            return false;
        }
        vcpu.roots_seen.set(self.virt.roots_deleted);
        true
    }

    /// Signals a thread that is in VMEnter: noted in its bound notification, and a guest on another core is made to exit.
    pub(crate) fn signal_guest(&mut self, tcb: Ref<Tcb>, badge: u64) {
        let Some(notification) = tcb.notification.get() else { return };
        notification.word.set(notification.word.get() | badge);
        notification.state.set(NotificationState::Active);
        let core = tcb.core.get() as usize;
        if core != self.core && self.cores[core & (MAX_CORES - 1)].current == Some(tcb) {
            self.hw.leave_guest(core);
        }
    }

    /// Ends a thread's VMEnter with label 0 and no badge (it is being suspended): it goes on behind the call.
    pub(crate) fn leave_guest(&mut self, tcb: Ref<Tcb>) {
        if let Some(vcpu) = vcpu_of(tcb) {
            vcpu.publish_notification(tcb, 0);
        }
        tcb.fault_ip.set(tcb.reg(abi::context::index::RIP));
        tcb.state.set(ThreadState::Running);
    }

    /// Binds a virtual CPU to a thread; each leaves its former partner.
    pub(crate) fn bind_vcpu(&mut self, vcpu: Ref<Vcpu>, tcb: Ref<Tcb>) {
        self.unbind_vcpu(vcpu);
        if let Some(other) = vcpu_of(tcb) {
            self.unbind_vcpu(other);
        }
        vcpu.tcb.set(Some(tcb));
        tcb.vcpu.set(vcpu.addr().0);
    }

    /// Unbinds a virtual CPU from its thread; a VMEnter under way ends as an exit with code INVALID.
    pub(crate) fn unbind_vcpu(&mut self, vcpu: Ref<Vcpu>) {
        let Some(tcb) = vcpu.tcb.get() else { return };
        self.stall_thread(tcb);
        if tcb.state.get() == ThreadState::RunningVm {
            vcpu.publish_invalid(tcb, Self::guest_words(vcpu, tcb));
            tcb.state.set(ThreadState::Running);
        }
        tcb.vcpu.set(0);
        vcpu.tcb.set(None);
    }

    /// A thread is being deleted.
    pub(crate) fn unbind_vcpu_of(&mut self, tcb: Ref<Tcb>) {
        if let Some(vcpu) = vcpu_of(tcb) {
            self.unbind_vcpu(vcpu);
        }
    }

    /// The last capability of a virtual CPU is gone.
    pub(crate) fn finalise_vcpu(&mut self, vcpu: Ref<Vcpu>) {
        self.unbind_vcpu(vcpu);
        self.hw.release_guest(vcpu);
    }

    /// Makes sure that a virtual CPU is in no guest right now, so that its state can be read and written.
    pub(crate) fn stall_vcpu(&mut self, vcpu: Ref<Vcpu>) {
        if let Some(tcb) = vcpu.tcb.get() {
            self.stall_thread(tcb);
        }
    }

    /// Gives a virtual CPU its nested root.
    pub(crate) fn set_nested_root(&mut self, vcpu: Ref<Vcpu>, root: PhysAddr, asid: u16) {
        self.stall_vcpu(vcpu);
        vcpu.root.set(root);
        vcpu.root_asid.set(asid);
        vcpu.root_birth.set(npt::birth(root));
        vcpu.roots_seen.set(self.virt.roots_deleted);
        // Epochs start at 1, so the next entry takes a new ASID.
        vcpu.tag.epoch.set(0);
        vcpu.vmcb.n_cr3.set(root.0);
    }

    /// Finds where the exit words of a thread go: as `ipc_buffer` does, or as it did when nothing has changed since.
    #[inline(always)]
    fn guest_words(vcpu: Ref<Vcpu>, tcb: Ref<Tcb>) -> Option<ExitWords> {
        let cap = tcb.slot(tcb_slot::BUFFER).cap.get().w0;
        if vcpu.words_key[0].get() == cap && vcpu.words_key[1].get() == tcb.ipc_buffer.get() {
            return vcpu.words.get();
        }
        Self::find_guest_words(vcpu, tcb)
    }

    #[cold]
    #[inline(never)]
    fn find_guest_words(vcpu: Ref<Vcpu>, tcb: Ref<Tcb>) -> Option<ExitWords> {
        let words = crate::ipc::transfer::ipc_buffer(tcb, true).map(|words| Ref::at(words.0));
        vcpu.words_key[0].set(tcb.slot(tcb_slot::BUFFER).cap.get().w0);
        vcpu.words_key[1].set(tcb.ipc_buffer.get());
        vcpu.words.set(words);
        words
    }
}
