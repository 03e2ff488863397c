//! Who runs: budgets, priorities, thread switches, wake-ups across cores.

pub mod context;
pub mod queue;
pub mod refill;

use crate::cap::raw::Tag;
use crate::hw::Hw;
use crate::mem::{PhysAddr, Ref};
use crate::object::tcb::{Entry, PendingFault, Tcb, ThreadState, tcb_slot};
use crate::{Action, Core, Kernel, Resume};

/// Length of the SYSCALL instruction, by which a restarted call goes back.
pub(crate) const SYSCALL_BYTES: u64 = 2;

impl<H: Hw> Kernel<H> {
    /// The core of this entry.
    #[inline(always)]
    pub(crate) fn this(&mut self) -> &mut Core {
        &mut self.cores[self.core & (crate::limits::MAX_CORES - 1)]
    }

    /// The current thread of this core.
    #[inline(always)]
    pub(crate) fn current(&self) -> Option<Ref<Tcb>> {
        self.cores[self.core & (crate::limits::MAX_CORES - 1)].current
    }

    /// Tells whether a thread may be put into a ready queue.
    #[inline]
    pub(crate) fn is_schedulable(tcb: Ref<Tcb>) -> bool {
        tcb.is_runnable()
            && !tcb.in_release_queue.get()
            && tcb.sc.get().is_some_and(|sc| sc.is_active())
    }

    /// Looks at the clock and notes the time used since the last look.
    #[inline]
    pub(crate) fn update_time(&mut self) {
        let now = self.hw.now();
        let this = self.this();
        if this.current_sc.is_some() {
            this.consumed += now.saturating_sub(this.time);
        }
        this.time = now;
    }

    /// Ends the current time slice if what is left of it is not worth an entry; tells whether the thread may go on.
    #[inline]
    pub(crate) fn check_budget(&mut self) -> bool {
        let min = self.min_budget;
        let this = self.this();
        let Some(sc) = this.current_sc else { return true };
        if !sc.is_active() || refill::capacity(sc, this.consumed) >= min {
            return true;
        }
        let used = this.consumed;
        self.charge_budget(used, true);
        false
    }

    /// As [`Kernel::check_budget`]; a thread stopped here makes its system call again.
    #[inline]
    pub(crate) fn check_budget_restart(&mut self) -> bool {
        if self.check_budget() {
            return true;
        }
        if let Some(tcb) = self.current()
            && tcb.is_runnable()
            && tcb.state.get() != ThreadState::RunningVm
        {
            self.set_state(tcb, ThreadState::Restart);
        }
        false
    }

    /// Charges `used` ticks to the current context and ends its time slice.
    pub(crate) fn charge_budget(&mut self, used: u64, may_fault: bool) {
        let min = self.min_budget;
        let this = self.this();
        let Some(sc) = this.current_sc else { return };
        this.consumed = 0;
        if sc.is_active() {
            if sc.is_round_robin() {
                refill::refill_round_robin(sc);
            } else {
                refill::charge(sc, used, min);
            }
            sc.consumed.set(sc.consumed.get() + used);
        }
        if let Some(tcb) = self.current()
            && Self::is_schedulable(tcb)
        {
            self.end_timeslice(tcb, sc, may_fault);
            self.reschedule();
            self.this().reprogram = true;
        }
    }

    fn end_timeslice(
        &mut self,
        tcb: Ref<Tcb>,
        sc: Ref<crate::object::sched_context::SchedContext>,
        may_fault: bool,
    ) {
        if may_fault && !sc.is_round_robin() && Self::has_timeout_handler(tcb) {
            self.handle_timeout_fault(tcb, PendingFault::Timeout { badge: sc.badge.get() });
        } else if self.is_released(sc) {
            self.append(tcb);
        } else {
            self.postpone(sc);
        }
    }

    /// Charges what was used so far without ending the time slice.
    pub(crate) fn commit_time(&mut self) {
        let min = self.min_budget;
        let this = self.this();
        let used = this.consumed;
        this.consumed = 0;
        if let Some(sc) = this.current_sc
            && sc.is_active()
            && used > 0
        {
            refill::charge(sc, used, min);
            sc.consumed.set(sc.consumed.get() + used);
        }
    }

    /// Tells whether the capability in a thread's timeout slot can be used.
    pub(crate) fn has_timeout_handler(tcb: Ref<Tcb>) -> bool {
        tcb.slot(tcb_slot::TIMEOUT_HANDLER).cap.get().is(Tag::Endpoint)
    }

    /// Asks for a new choice at the end of the entry.
    pub(crate) fn reschedule(&mut self) {
        if let Action::Switch(tcb) = self.this().action
            && Self::is_schedulable(tcb)
        {
            self.enqueue(tcb);
        }
        self.this().action = Action::ChooseNew;
    }

    /// Changes what a thread does; a current thread that cannot go on gives way.
    #[inline]
    pub(crate) fn set_state(&mut self, tcb: Ref<Tcb>, state: ThreadState) {
        tcb.state.set(state);
        let this = self.this();
        if this.current == Some(tcb)
            && matches!(this.action, Action::Resume)
            && !Self::is_schedulable(tcb)
        {
            self.reschedule();
        }
    }

    /// A thread became able to run: switch to it if that is all that happened, otherwise queue it.
    #[inline]
    pub(crate) fn possible_switch_to(&mut self, tcb: Ref<Tcb>) {
        if tcb.in_release_queue.get() || !tcb.sc.get().is_some_and(|sc| sc.is_active()) {
            return;
        }
        if tcb.core.get() as usize != self.core {
            self.enqueue(tcb);
        } else if matches!(self.this().action, Action::Resume) {
            self.this().action = Action::Switch(tcb);
        } else {
            self.reschedule();
            self.enqueue(tcb);
        }
    }

    /// Decides who runs, switches to it, and says how the core goes on.
    #[inline]
    pub(crate) fn leave(&mut self) -> Resume {
        let kicks = self.kicks;
        let this = self.this();
        // Nothing happened that could change who runs: the usual end of an invocation. (A refill that is due has its timer.)
        if let Some(tcb) = this.current
            && matches!(this.action, Action::Resume)
            && !this.reprogram
            && kicks == 0
            && tcb.state.get() == ThreadState::Running
            && tcb.yield_to.get().is_none()
            && this.current_sc == tcb.sc.get()
        {
            return Resume::User(tcb);
        }
        self.schedule();
        self.activate()
    }

    #[inline(never)]
    fn schedule(&mut self) {
        if self.this().release_head.is_some() {
            self.awaken();
        }
        let action = self.this().action;
        if action != Action::Resume {
            let current = self.current();
            let was_runnable = match current {
                Some(current) if Self::is_schedulable(current) => {
                    self.enqueue(current);
                    true
                }
                _ => false,
            };
            match action {
                Action::Switch(candidate) if Self::is_schedulable(candidate) => {
                    let priority = candidate.priority.get();
                    let current_priority = current.map_or(0, |current| current.priority.get());
                    if was_runnable && priority == current_priority {
                        self.append(candidate);
                        self.choose();
                    } else if (current.is_some() && priority > current_priority)
                        || self.this().is_highest(priority)
                    {
                        self.switch_to(candidate);
                    } else {
                        self.enqueue(candidate);
                        self.choose();
                    }
                }
                _ => self.choose(),
            }
            self.this().action = Action::Resume;
        }
        self.switch_context();
        if self.this().reprogram {
            self.set_next_deadline();
        }
        if self.kicks != 0 {
            self.send_kicks();
        }
    }

    #[cold]
    fn send_kicks(&mut self) {
        let kicks = core::mem::take(&mut self.kicks);
        for core in 0..self.core_count {
            if kicks >> core & 1 != 0 && core != self.core {
                self.cores[core].action = Action::ChooseNew;
                self.hw.kick(core);
            }
        }
    }

    fn choose(&mut self) {
        let head = self
            .this()
            .highest_ready()
            .and_then(|priority| self.this().ready[usize::from(priority)].head);
        match head {
            Some(tcb) => self.switch_to(tcb),
            None => self.switch_to_idle(),
        }
    }

    /// Loads a thread's space and state.
    #[inline]
    pub(crate) fn switch_to(&mut self, tcb: Ref<Tcb>) {
        self.dequeue(tcb);
        self.load_space(tcb);
        let core = self.core;
        let previous = self.current();
        if previous != Some(tcb) {
            self.hw.switch_thread(core, previous, Some(tcb));
            self.this().current = Some(tcb);
        }
    }

    fn switch_to_idle(&mut self) {
        let core = self.core;
        let previous = self.current();
        if previous.is_some() {
            self.hw.switch_thread(core, previous, None);
            self.this().current = None;
        }
        self.load_root(None);
    }

    /// Loads the root of a thread's address space, or none if its capability or ASID is no longer good.
    #[inline]
    pub(crate) fn load_space(&mut self, tcb: Ref<Tcb>) {
        let cap = tcb.slot(tcb_slot::VTABLE).cap.get();
        let root = if cap.is(Tag::Pml4) && self.root_of_asid(cap.w1 as u16) == cap.addr().0 {
            Some(cap.addr())
        } else {
            None
        };
        self.load_root(root);
    }

    #[inline]
    pub(crate) fn load_root(&mut self, root: Option<PhysAddr>) {
        let address = root.map_or(0, |root| root.0);
        if self.this().root != address {
            let core = self.core;
            self.this().root = address;
            self.hw.switch_space(core, root);
        }
    }

    /// Charges the context left and starts to use the one of the new thread.
    #[inline]
    pub(crate) fn switch_context(&mut self) {
        let wcet = self.wcet;
        let this = self.this();
        let next = this.current.and_then(|current| current.sc.get());
        if this.current_sc != next {
            this.reprogram = true;
            let now = this.time;
            if let Some(sc) = next
                && sc.is_active()
                && !sc.sporadic.get()
            {
                refill::unblock_check(sc, now, wcet);
            }
        }
        if self.this().reprogram {
            self.commit_time();
        }
        self.this().current_sc = next;
    }

    /// Arms the timer for the end of the time slice, the next refill, or a timer object, whatever is first.
    pub(crate) fn set_next_deadline(&mut self) {
        let this = self.this();
        this.reprogram = false;
        let mut deadline = u64::MAX;
        if let Some(sc) = this.current_sc {
            deadline = this.time.saturating_add(sc.head().amount);
        }
        if let Some(sc) = this.release_head.and_then(|tcb| tcb.sc.get()) {
            deadline = deadline.min(sc.head().time);
        }
        let core = self.core;
        deadline = deadline.min(self.next_timer(core));
        self.hw.arm_timer(core, deadline);
    }

    /// Says how the current thread goes on.
    #[inline]
    fn activate(&mut self) -> Resume {
        let Some(tcb) = self.current() else { return Resume::Idle };
        if tcb.yield_to.get().is_some() {
            self.complete_yield_to(tcb);
        }
        match tcb.state.get() {
            ThreadState::Restart => {
                tcb.set_reg(abi::context::index::RIP, tcb.fault_ip.get());
                tcb.state.set(ThreadState::Running);
                Resume::User(tcb)
            }
            ThreadState::RunningVm => self.resume_guest(tcb),
            _ => Resume::User(tcb),
        }
    }

    /// Makes sure that a thread running on another core has its registers saved and stays in the kernel until this entry ends.
    pub(crate) fn stall_thread(&mut self, tcb: Ref<Tcb>) {
        let core = tcb.core.get() as usize;
        if core == self.core || self.cores[core].current != Some(tcb) {
            return;
        }
        if !self.cores[core].stalled {
            self.hw.stall(core);
            self.cores[core].stalled = true;
            self.cores[core].action = Action::ChooseNew;
            if tcb.entry.get() == Entry::Syscall && tcb.state.get() == ThreadState::Running {
                tcb.fault_ip.set(tcb.reg(abi::context::index::RIP) - SYSCALL_BYTES);
                tcb.state.set(ThreadState::Restart);
            } else {
                tcb.fault_ip.set(tcb.reg(abi::context::index::RIP));
            }
        }
    }
}
