//! Scheduling context, scheduling control and domain invocations.

use abi::Label;
use abi::object::SCHED_FLAG_SPORADIC;

use crate::Kernel;
use crate::cap::raw::Cap;
use crate::hw::Hw;
use crate::limits::{MAX_PERIOD_US, MIN_BUDGET_US};
use crate::mem::Ref;
use crate::object::sched_context::{SchedContext, max_refills};
use crate::object::tcb::Tcb;
use crate::sched::refill;
use crate::syscall::Failure;
use crate::syscall::args::{Args, Outcome};

impl<H: Hw> Kernel<H> {
    pub(crate) fn decode_sched_context(&mut self, sc: Ref<SchedContext>, args: &Args) -> Outcome {
        let Some(label) = Label::from_number(args.label) else {
            return Err(Failure::IllegalOperation);
        };
        match label {
            Label::SchedContextBind => self.bind_any(sc, args),
            Label::SchedContextUnbind => {
                if sc.tcb.get() == Some(args.tcb) {
                    return Err(Failure::IllegalOperation);
                }
                if let Some(tcb) = sc.tcb.get() {
                    self.unbind_context(sc, tcb);
                }
                Self::unbind_context_notification(sc);
                Ok(0)
            }
            Label::SchedContextUnbindObject => self.unbind_object(sc, args),
            Label::SchedContextConsumed => {
                let consumed = self.take_consumed_us(sc);
                args.answer(0, consumed);
                Ok(1)
            }
            Label::SchedContextYieldTo => {
                let Some(tcb) = sc.tcb.get() else { return Err(Failure::IllegalOperation) };
                if tcb == args.tcb || tcb.priority.get() > args.tcb.mcp.get() {
                    return Err(Failure::IllegalOperation);
                }
                if !sc.is_active() {
                    return Err(Failure::IllegalOperation);
                }
                match self.yield_to(args.tcb, sc) {
                    Some(consumed) => {
                        args.answer(0, consumed);
                        Ok(1)
                    }
                    None => Err(Failure::Blocked),
                }
            }
            _ => Err(Failure::IllegalOperation),
        }
    }

    fn bind_any(&mut self, sc: Ref<SchedContext>, args: &Args) -> Outcome {
        match args.cap(0)?.unpack() {
            Cap::Thread { addr } => {
                let tcb: Ref<Tcb> = Ref::at(addr);
                if sc.tcb.get().is_some() || tcb.sc.get().is_some() {
                    return Err(Failure::IllegalOperation);
                }
                if tcb.is_blocked() && sc.is_active() && !self.is_released(sc) {
                    return Err(Failure::IllegalOperation);
                }
                self.bind_context(sc, tcb);
                Ok(0)
            }
            Cap::Notification { addr, .. } => {
                let notification: Ref<crate::object::notification::Notification> = Ref::at(addr);
                if sc.notification.get().is_some() || notification.sc.get().is_some() {
                    return Err(Failure::IllegalOperation);
                }
                Self::bind_context_notification(sc, notification);
                Ok(0)
            }
            _ => Err(Failure::InvalidCapability(1)),
        }
    }

    fn unbind_object(&mut self, sc: Ref<SchedContext>, args: &Args) -> Outcome {
        match args.cap(0)?.unpack() {
            Cap::Thread { addr } => {
                let tcb: Ref<Tcb> = Ref::at(addr);
                if sc.tcb.get() != Some(tcb) || tcb == args.tcb {
                    return Err(Failure::IllegalOperation);
                }
                self.unbind_context(sc, tcb);
                Ok(0)
            }
            Cap::Notification { addr, .. } => {
                if sc.notification.get() != Some(Ref::at(addr)) {
                    return Err(Failure::IllegalOperation);
                }
                Self::unbind_context_notification(sc);
                Ok(0)
            }
            _ => Err(Failure::InvalidCapability(1)),
        }
    }

    pub(crate) fn decode_sched_control(&mut self, core: u32, args: &Args) -> Outcome {
        if args.label != Label::SchedControlConfigureFlags as u64 {
            return Err(Failure::IllegalOperation);
        }
        let target = args.cap(0)?;
        args.need(5)?;
        let Cap::SchedContext { addr, bits } = target.unpack() else {
            return Err(Failure::InvalidCapability(1));
        };
        let (budget, period, extra) = (args.word(0), args.word(1), args.word(2));
        for value in [budget, period] {
            if !(MIN_BUDGET_US..=MAX_PERIOD_US).contains(&value) {
                return Err(Failure::Range(MIN_BUDGET_US, MAX_PERIOD_US));
            }
        }
        if budget > period {
            return Err(Failure::Range(MIN_BUDGET_US, period));
        }
        let most = max_refills(bits);
        if extra > most - 2 {
            return Err(Failure::Range(0, most - 2));
        }
        let sc: Ref<SchedContext> = Ref::at(addr);
        sc.badge.set(args.word(3));
        sc.sporadic.set(args.word(4) & SCHED_FLAG_SPORADIC != 0);
        let is_round_robin = budget == period;
        let budget = self.us_to_ticks(budget);
        let period = if is_round_robin { 0 } else { self.us_to_ticks(period) };
        let max = if is_round_robin { 1 } else { extra as u32 + 2 };
        self.configure_context(sc, core, budget, period, max);
        Ok(0)
    }

    fn configure_context(
        &mut self,
        sc: Ref<SchedContext>,
        core: u32,
        budget: u64,
        period: u64,
        max: u32,
    ) {
        let holder = sc.tcb.get();
        if let Some(tcb) = holder {
            self.stall_thread(tcb);
            self.dequeue(tcb);
            self.release_remove(tcb);
            // What was used so far is charged under the old parameters.
            if self.this().current_sc == Some(sc) {
                self.commit_time();
            }
        }
        let (now, wcet) = (self.this().time, self.wcet);
        let is_in_use = sc.is_active() && holder.is_some_and(|tcb| tcb.is_runnable());
        if is_in_use {
            refill::configure_again(sc, budget, period, max, now, wcet);
        } else {
            refill::configure_new(sc, budget, period, max, now);
        }
        if sc.core.get() != core {
            // A former core must not go on charging it.
            for state in &mut self.cores {
                if state.current_sc == Some(sc) {
                    state.current_sc = None;
                    state.consumed = 0;
                    state.reprogram = true;
                }
            }
        }
        sc.core.set(core);
        if let Some(tcb) = holder {
            self.migrate(tcb, core);
            self.resume_context(Some(sc));
            if self.current() == Some(tcb) {
                self.reschedule();
            } else if Self::is_schedulable(tcb) {
                self.enqueue(tcb);
                self.reschedule();
            }
        }
        self.this().reprogram = true;
    }

    pub(crate) fn decode_domain(&mut self, args: &Args) -> Outcome {
        match Label::from_number(args.label) {
            // There is one domain: setting it changes nothing, any other is out of range.
            Some(Label::DomainSetSet) => {
                args.need(1)?;
                args.thread(0)?;
                if args.word(0) == 0 { Ok(0) } else { Err(Failure::InvalidArgument(0)) }
            }
            _ => Err(Failure::IllegalOperation),
        }
    }

    /// Converts microseconds to ticks, exactly (rounded up).
    pub(crate) fn us_to_ticks(&self, us: u64) -> u64 {
        (u128::from(us) * u128::from(self.tsc_hz)).div_ceil(1_000_000) as u64
    }

    /// Converts ticks to microseconds, exactly (rounded down).
    pub(crate) fn ticks_to_us(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000 / u128::from(self.tsc_hz.max(1))) as u64
    }
}
