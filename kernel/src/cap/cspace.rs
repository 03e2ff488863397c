//! From a capability pointer to a slot.

use abi::LookupFailure;

use super::Slot;
use super::raw::{RawCap, Tag};
use crate::mem::Ref;
use crate::object::tcb::{Tcb, tcb_slot};
use crate::syscall::Failure;

/// Follows the first `bits` bits of a pointer from a root; returns the slot and the bits that were left over.
#[inline]
fn resolve(root: RawCap, pointer: u64, bits: u64) -> Result<(Ref<Slot>, u64), LookupFailure> {
    let mut node = root;
    let mut left = bits;
    if !node.is(Tag::CNode) {
        return Err(LookupFailure::InvalidRoot);
    }
    loop {
        let radix = node.fields();
        let guard = abi::CNodeCapData(node.w1);
        let guard_bits = guard.guard_bits();
        let level_bits = radix + guard_bits;
        if guard_bits > left
            || pointer.wrapping_shr((left.wrapping_sub(guard_bits) & 63) as u32)
                & ((1 << guard_bits) - 1)
                != guard.guard()
        {
            return Err(LookupFailure::GuardMismatch {
                bits_left: left,
                guard_found: guard.guard(),
                bits_found: guard_bits,
            });
        }
        if level_bits > left {
            return Err(LookupFailure::DepthMismatch { bits_left: left, bits_found: level_bits });
        }
        left -= level_bits;
        let position = pointer.wrapping_shr(left as u32) & ((1 << radix) - 1);
        let slot = Ref::<Slot>::at(node.addr()).add(position);
        if left == 0 {
            return Ok((slot, 0));
        }
        node = slot.cap.get();
        if !node.is(Tag::CNode) {
            return Ok((slot, left));
        }
    }
}

/// Finds the slot behind a pointer in a thread's CSpace; the pointer may be longer than needed.
///
/// # Errors
/// Where the way ended.
#[inline]
pub fn lookup(tcb: Ref<Tcb>, pointer: u64) -> Result<Ref<Slot>, LookupFailure> {
    match flat(tcb).find_slot(pointer) {
        Some(slot) => Ok(slot),
        None => lookup_by_levels(tcb, pointer),
    }
}

#[inline(never)]
fn lookup_by_levels(tcb: Ref<Tcb>, pointer: u64) -> Result<Ref<Slot>, LookupFailure> {
    resolve(tcb.slot(tcb_slot::CTABLE).cap.get(), pointer, 64).map(|(slot, _)| slot)
}

/// A thread's CSpace where one table and its guard use all 64 bits, as they mostly do: quick to look things up in.
#[derive(Clone, Copy)]
pub struct Flat {
    tcb: Ref<Tcb>,
    /// First slot; none: the space has another shape.
    table: Option<Ref<Slot>>,
    radix: u32,
    guard: u64,
}

/// Looks at the shape of a thread's CSpace.
#[inline(always)]
#[must_use]
pub fn flat(tcb: Ref<Tcb>) -> Flat {
    let root = tcb.slot(tcb_slot::CTABLE).cap.get();
    let guard = abi::CNodeCapData(root.w1);
    // Type and radix side by side: no other type's fields and guard bits sum up to this.
    const WANTED: u32 = (Tag::CNode as u32) << 11 | 64;
    let top = root.top();
    let is_flat = top + guard.guard_bits() as u32 == WANTED;
    Flat {
        tcb,
        table: if is_flat { Some(Ref::at(root.addr())) } else { None },
        radix: top,
        guard: guard.guard(),
    }
}

impl Flat {
    /// Finds the capability behind a pointer.
    #[inline(always)]
    #[must_use]
    pub fn find(self, pointer: u64) -> Option<RawCap> {
        if self.table.is_none() {
            return self.find_elsewhere(pointer);
        }
        Some(self.find_slot(pointer)?.cap.get())
    }

    /// Finds the slot behind a pointer; nothing where the space has another shape.
    #[inline(always)]
    fn find_slot(self, pointer: u64) -> Option<Ref<Slot>> {
        let table = self.table?;
        // The type is in multiples of 64, which shifts do not look at.
        if pointer.wrapping_shr(self.radix) != self.guard {
            return None;
        }
        let position = pointer ^ self.guard.wrapping_shl(self.radix);
        Some(table.add(position))
    }

    #[cold]
    #[inline(never)]
    fn find_elsewhere(self, pointer: u64) -> Option<RawCap> {
        lookup_by_levels(self.tcb, pointer).ok().map(|slot| slot.cap.get())
    }
}

/// Finds the slot exactly `depth` bits below a root capability.
///
/// # Errors
/// RangeError for a depth outside 1 to 64, FailedLookup otherwise.
pub fn lookup_exact(
    root: RawCap,
    pointer: u64,
    depth: u64,
    is_source: bool,
) -> Result<Ref<Slot>, Failure> {
    let failed = |failure| Failure::Lookup { is_source, failure };
    if !root.is(Tag::CNode) {
        return Err(failed(LookupFailure::InvalidRoot));
    }
    if !(1..=64).contains(&depth) {
        return Err(Failure::Range(1, 64));
    }
    match resolve(root, pointer, depth).map_err(failed)? {
        (slot, 0) => Ok(slot),
        (_, left) => Err(failed(LookupFailure::DepthMismatch { bits_left: left, bits_found: 0 })),
    }
}
