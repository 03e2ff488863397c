//! One capability slot: the capability and its place in the derivation tree.

use core::cell::Cell;

use super::raw::{Cap, RawCap};
use crate::mem::{PhysAddr, Ref};

/// 32 bytes: the capability, the slot before it in the derivation list, the slot behind it with two flags.
#[repr(C)]
pub struct Slot {
    /// The capability.
    pub cap: Cell<RawCap>,
    /// Slot before this one in the derivation list.
    pub prev: Cell<Option<Ref<Slot>>>,
    /// Slot behind (slots are 32-byte aligned), bit 0 revocable, bit 1 first with its badge.
    next_and_flags: Cell<u64>,
}

const _: () = assert!(size_of::<Slot>() == 32);

const REVOCABLE: u64 = 1;
const FIRST_BADGED: u64 = 2;
const FLAGS: u64 = 3;

impl Slot {
    /// Tells whether nothing is in the slot.
    #[inline(always)]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cap.get().w0 == 0
    }

    /// Unpacks the capability.
    #[inline]
    #[must_use]
    pub fn unpack(&self) -> Cap {
        self.cap.get().unpack()
    }

    /// Returns the slot behind in the derivation list.
    #[inline]
    #[must_use]
    pub fn next(&self) -> Option<Ref<Slot>> {
        Ref::maybe(PhysAddr(self.next_and_flags.get() & !FLAGS))
    }

    /// Sets the slot behind, flags kept.
    #[inline]
    pub fn set_next(&self, next: Option<Ref<Slot>>) {
        let addr = next.map_or(0, |next| next.addr().0);
        self.next_and_flags.set(addr | self.next_and_flags.get() & FLAGS);
    }

    /// Tells whether the capability can be the parent of those behind it.
    #[inline]
    #[must_use]
    pub fn is_revocable(&self) -> bool {
        self.next_and_flags.get() & REVOCABLE != 0
    }

    /// Tells whether the capability is the first made with its badge.
    #[inline]
    #[must_use]
    pub fn is_first_badged(&self) -> bool {
        self.next_and_flags.get() & FIRST_BADGED != 0
    }

    /// Sets both flags.
    #[inline]
    pub fn set_flags(&self, revocable: bool, first_badged: bool) {
        let flags = u64::from(revocable) | u64::from(first_badged) << 1;
        self.next_and_flags.set(self.next_and_flags.get() & !FLAGS | flags);
    }

    /// Sets list links and flags at once.
    #[inline]
    pub fn set_links(&self, prev: Option<Ref<Slot>>, next: Option<Ref<Slot>>, flags: (bool, bool)) {
        self.prev.set(prev);
        let addr = next.map_or(0, |next| next.addr().0);
        self.next_and_flags.set(addr | u64::from(flags.0) | u64::from(flags.1) << 1);
    }
}
