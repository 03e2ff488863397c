//! Deleting and revoking: objects end with their last capability; long work stops at preemption points and is taken up again.

use super::Slot;
use super::raw::{Cap, MapKind, RawCap, Tag, ZOMBIE_TCB};
use super::tree;
use crate::Kernel;
use crate::hw::Hw;
use crate::limits::WORK_UNITS_PER_PREEMPTION;
use crate::mem::{PhysAddr, Ref};
use crate::object::tcb::{Tcb, ThreadState, tcb_slot};
use crate::syscall::Failure;

/// What is left of a capability when its object was ended, and what to do once its slot is empty.
struct Finalised {
    remainder: RawCap,
    cleanup: Cap,
}

impl<H: Hw> Kernel<H> {
    /// Empties a slot; the object goes with its last capability.
    ///
    /// # Errors
    /// Preempted: call again.
    pub(crate) fn delete(&mut self, slot: Ref<Slot>) -> Result<(), Failure> {
        self.delete_slot(slot, true)
    }

    fn delete_slot(&mut self, slot: Ref<Slot>, is_exposed: bool) -> Result<(), Failure> {
        let (is_done, cleanup) = self.finalise_slot(slot, is_exposed)?;
        if is_exposed || is_done {
            self.empty_slot(slot, cleanup);
        }
        Ok(())
    }

    /// Empties a slot whose capability needs no long work (endpoints, notifications, frames, handlers).
    pub(crate) fn delete_simple(&mut self, slot: Ref<Slot>) {
        if !slot.is_empty() {
            let is_final = tree::is_final(slot);
            let finalised = self.finalise(slot, is_final);
            self.empty_slot(slot, finalised.cleanup);
        }
    }

    /// Deletes everything derived from a capability.
    ///
    /// # Errors
    /// Preempted: call again.
    pub(crate) fn revoke(&mut self, slot: Ref<Slot>) -> Result<(), Failure> {
        while let Some(next) = slot.next() {
            if !tree::is_parent(slot, next) {
                break;
            }
            self.delete(next)?;
            self.preemption_point()?;
        }
        Ok(())
    }

    /// Stops long work now and then so that interrupts and better threads get in.
    pub(crate) fn preemption_point(&mut self) -> Result<(), Failure> {
        self.work_units += 1;
        if self.work_units < WORK_UNITS_PER_PREEMPTION {
            return Ok(());
        }
        self.work_units = 0;
        let core = self.core;
        self.update_time();
        let min = self.min_budget;
        let this = self.this();
        let is_exhausted = this.current_sc.is_some_and(|sc| {
            sc.is_active() && crate::sched::refill::capacity(sc, this.consumed) < min
        });
        if is_exhausted || self.hw.interrupt_pending(core) {
            return Err(Failure::Preempted);
        }
        Ok(())
    }

    fn empty_slot(&mut self, slot: Ref<Slot>, cleanup: Cap) {
        if !slot.is_empty() {
            tree::unlink(slot);
            match cleanup {
                Cap::IrqHandler { irq } => self.irq_release(irq),
                Cap::IoPort { first, last } => self.free_ports(first, last),
                _ => {}
            }
        }
    }

    /// Ends the object in a slot as far as possible; tells whether the slot can be emptied.
    fn finalise_slot(
        &mut self,
        slot: Ref<Slot>,
        is_immediate: bool,
    ) -> Result<(bool, Cap), Failure> {
        while !slot.is_empty() {
            let is_final = tree::is_final(slot);
            let finalised = self.finalise(slot, is_final);
            let remainder = finalised.remainder;
            let removable = match remainder.unpack() {
                Cap::Zombie { addr, number, .. } => {
                    number == 0 || (number == 1 && addr == slot.addr())
                }
                _ => true,
            };
            if removable {
                return Ok((true, finalised.cleanup));
            }
            slot.cap.set(remainder);
            if !is_immediate && remainder.addr() == slot.addr() {
                return Ok((false, Cap::Null));
            }
            self.reduce_zombie(slot, is_immediate)?;
            self.preemption_point()?;
        }
        Ok((true, Cap::Null))
    }

    /// Deletes one more slot of a zombie, or moves a zombie out of a table that is being deleted.
    fn reduce_zombie(&mut self, slot: Ref<Slot>, is_immediate: bool) -> Result<(), Failure> {
        let Cap::Zombie { addr, kind, number } = slot.unpack() else { return Ok(()) };
        let first: Ref<Slot> = Ref::at(addr);
        if is_immediate {
            let last = first.add(number - 1);
            self.delete_slot(last, false)?;
            if let Cap::Zombie { addr: now_addr, kind: now_kind, number: now_number } =
                slot.unpack()
                && (now_addr, now_kind, now_number) == (addr, kind, number)
            {
                slot.cap.set(Cap::Zombie { addr, kind, number: number - 1 }.pack());
            }
        } else if first != slot {
            tree::swap(first.cap.get(), first, slot.cap.get(), slot);
        }
        Ok(())
    }

    /// Ends what a capability stands for. A table or thread with slots leaves a zombie.
    fn finalise(&mut self, slot: Ref<Slot>, is_final: bool) -> Finalised {
        let cap = slot.unpack();
        let mut done = Finalised { remainder: RawCap::NULL, cleanup: Cap::Null };
        match cap {
            Cap::Frame(frame) => match frame.kind {
                MapKind::None => {}
                MapKind::VSpace => self.unmap_frame(frame),
                MapKind::Nested => self.unmap_nested_frame(frame),
            },
            Cap::Zombie { .. } => done.remainder = slot.cap.get(),
            _ if !is_final => {}
            Cap::Endpoint { addr, .. } => self.cancel_all_ipc(Ref::at(addr)),
            Cap::Notification { addr, .. } => {
                let notification: Ref<crate::object::notification::Notification> = Ref::at(addr);
                if let Some(sc) = notification.sc.get() {
                    Self::unbind_context_notification(sc);
                }
                if let Some(tcb) = notification.bound_tcb.get() {
                    Self::unbind_notification(tcb);
                }
                self.cancel_all_waits(notification);
            }
            Cap::Reply { addr, .. } => {
                let reply: Ref<crate::object::reply::Reply> = Ref::at(addr);
                if let Some(tcb) = reply.tcb.get() {
                    if tcb.state.get() == ThreadState::BlockedOnReply {
                        tcb.set_fault(crate::object::tcb::PendingFault::Null);
                        self.reply_remove(reply, tcb);
                    } else {
                        self.cancel_ipc(tcb);
                    }
                }
            }
            Cap::CNode { addr, radix, .. } => {
                done.remainder = Cap::Zombie { addr, kind: radix, number: 1 << radix }.pack();
            }
            Cap::Thread { addr } => {
                let tcb: Ref<Tcb> = Ref::at(addr);
                self.finalise_thread(tcb);
                done.remainder = Cap::Zombie {
                    addr: tcb.slot(0).addr(),
                    kind: ZOMBIE_TCB,
                    number: tcb_slot::COUNT as u64,
                }
                .pack();
            }
            Cap::SchedContext { addr, .. } => self.delete_context(Ref::at(addr)),
            Cap::IrqHandler { irq } => {
                if let Some(slots) = self.irq_slots {
                    self.delete_simple(slots.add(u64::from(irq)));
                }
                done.cleanup = cap;
            }
            Cap::IoPort { .. } => done.cleanup = cap,
            Cap::AsidPool { addr, base } => self.delete_asid_pool(addr, base),
            Cap::Root { tag: Tag::Pml4, addr, asid } => self.delete_asid(asid, addr.0),
            Cap::Table {
                tag: tag @ (Tag::PageTable | Tag::PageDirectory | Tag::Pdpt),
                addr,
                mapping: Some(mapping),
            } => {
                self.unmap_table(tag, addr, mapping);
            }
            Cap::Table { tag: Tag::NptPt | Tag::NptPd | Tag::NptPdpt, .. }
            | Cap::Root { .. }
            | Cap::Vcpu { .. }
            | Cap::Timer { .. } => self.finalise_extension(cap),
            Cap::Null
            | Cap::Untyped { .. }
            | Cap::SchedControl { .. }
            | Cap::IrqControl
            | Cap::Domain
            | Cap::AsidControl
            | Cap::IoPortControl
            | Cap::Table { .. } => {}
        }
        done
    }

    fn finalise_thread(&mut self, tcb: Ref<Tcb>) {
        self.stall_thread(tcb);
        Self::unbind_notification(tcb);
        if let Some(sc) = tcb.sc.get() {
            self.unbind_context(sc, tcb);
            if let Some(yielder) = sc.yield_from.get() {
                self.complete_yield_to(yielder);
            }
        }
        self.suspend(tcb);
        self.unbind_vcpu_of(tcb);
        self.hw.release_thread(tcb);
        let core = tcb.core.get() as usize;
        if core != self.core {
            self.forget_current(tcb);
        }
    }

    /// Tells the first slot of a zombie, for tests.
    #[must_use]
    pub fn zombie_slots(cap: RawCap) -> Option<(PhysAddr, u64)> {
        match cap.unpack() {
            Cap::Zombie { addr, number, .. } => Some((addr, number)),
            _ => None,
        }
    }
}
