//! Timer: at a point in time, signals a notification.
//!
//! A timer belongs to the core it was armed on. Armed timers form one list per core, earliest first; the kernel's own timer
//! deadline takes the head into account. The notification is held as a capability in the timer, so deleting or revoking it
//! is found there; a timer without one expires silently.

use core::cell::Cell;

use crate::Kernel;
use crate::cap::{Cap, Slot};
use crate::hw::Hw;
use crate::limits::MAX_CORES;
use crate::mem::Ref;

/// 64 bytes.
#[repr(C)]
pub struct Timer {
    /// Notification to signal.
    pub slot: Slot,
    /// Next timer of the core, later or at the same time.
    next: Cell<Option<Ref<Timer>>>,
    /// Timer before.
    prev: Cell<Option<Ref<Timer>>>,
    /// When, in TSC ticks.
    deadline: Cell<u64>,
    /// Core plus one while armed, otherwise 0.
    armed: Cell<u64>,
}

const _: () = assert!(size_of::<Timer>() == 1 << abi::object::TIMER_BITS);

impl Timer {
    /// Tells whether the timer will expire.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.armed.get() != 0
    }
}

impl Ref<Timer> {
    /// Returns the slot with the notification.
    #[must_use]
    pub const fn notification_slot(self) -> Ref<Slot> {
        self.cast()
    }
}

impl<H: Hw> Kernel<H> {
    /// Arms a timer on this core, replacing an earlier deadline.
    pub(crate) fn arm_timer_object(&mut self, timer: Ref<Timer>, deadline: u64) {
        self.disarm_timer(timer);
        let core = self.core & (MAX_CORES - 1);
        timer.deadline.set(deadline);
        timer.armed.set(core as u64 + 1);
        let mut before = None;
        let mut behind = self.virt.timers[core];
        while let Some(at) = behind
            && at.deadline.get() <= deadline
        {
            before = Some(at);
            behind = at.next.get();
        }
        timer.prev.set(before);
        timer.next.set(behind);
        if let Some(behind) = behind {
            behind.prev.set(Some(timer));
        }
        match before {
            Some(before) => before.next.set(Some(timer)),
            None => {
                self.virt.timers[core] = Some(timer);
                self.cores[core].reprogram = true;
            }
        }
    }

    /// Disarms a timer; tells whether it was armed.
    pub(crate) fn disarm_timer(&mut self, timer: Ref<Timer>) -> bool {
        let Some(core) = timer.armed.replace(0).checked_sub(1) else { return false };
        let (prev, next) = (timer.prev.replace(None), timer.next.replace(None));
        if let Some(next) = next {
            next.prev.set(prev);
        }
        match prev {
            Some(prev) => prev.next.set(next),
            // The core's deadline may now be early, which costs one look at the clock and nothing else.
            None => self.virt.timers[core as usize & (MAX_CORES - 1)] = next,
        }
        true
    }

    /// Tells when the first timer of a core expires; `u64::MAX` without one.
    #[inline]
    pub(crate) fn next_timer(&self, core: usize) -> u64 {
        match self.virt.timers[core & (MAX_CORES - 1)] {
            None => u64::MAX,
            Some(timer) => timer.deadline.get(),
        }
    }

    /// Signals every timer of this core that is due.
    pub(crate) fn expire_timers(&mut self) {
        let core = self.core & (MAX_CORES - 1);
        let now = self.cores[core].time;
        while let Some(timer) = self.virt.timers[core]
            && timer.deadline.get() <= now
        {
            self.disarm_timer(timer);
            self.cores[core].reprogram = true;
            if let Cap::Notification { addr, badge, .. } = timer.slot.cap.get().unpack() {
                self.signal(Ref::at(addr), badge);
            }
        }
    }

    /// Checks the timer lists' links and order.
    ///
    /// # Panics
    /// If they are broken.
    #[cfg(not(target_os = "none"))]
    pub fn check_timers(&self) {
        for (core, head) in self.virt.timers.iter().enumerate() {
            let (mut prev, mut at, mut last) = (None, *head, 0);
            while let Some(timer) = at {
                assert_eq!(timer.prev.get(), prev, "links of the timer list");
                assert_eq!(timer.armed.get(), core as u64 + 1, "a timer in a list is armed there");
                assert!(timer.deadline.get() >= last, "timers are in order");
                last = timer.deadline.get();
                prev = at;
                at = timer.next.get();
            }
        }
    }
}

const _: () = assert!(core::mem::offset_of!(Timer, slot) == 0);
