//! The derivation tree: a list in depth-first order where flags and regions tell who is below whom.

use abi::CapRights;

use super::Slot;
use super::raw::{Cap, FrameCap, MapKind, Mapping, RawCap, Tag};
use crate::mem::{PhysAddr, Ref};
use crate::syscall::Failure;

/// Puts a capability derived from the one in `source` into an empty slot.
pub fn insert(cap: Cap, source: Ref<Slot>, destination: Ref<Slot>) {
    let is_revocable = is_revocable(cap, source.unpack());
    insert_raw(cap, source, destination, is_revocable);
}

/// As [`insert`], and the new capability is the parent of what is derived from it.
pub fn insert_child(cap: Cap, source: Ref<Slot>, destination: Ref<Slot>) {
    insert_raw(cap, source, destination, true);
}

fn insert_raw(cap: Cap, source: Ref<Slot>, destination: Ref<Slot>, is_revocable: bool) {
    fill_untyped(source, cap);
    destination.cap.set(cap.pack());
    let next = source.next();
    destination.set_links(Some(source), next, (is_revocable, is_revocable));
    source.set_next(Some(destination));
    if let Some(next) = next {
        next.prev.set(Some(destination));
    }
}

/// Puts the first capability of a new object below the untyped it was made from.
#[inline]
pub fn insert_new(cap: RawCap, parent: Ref<Slot>, destination: Ref<Slot>) {
    let next = parent.next();
    destination.cap.set(cap);
    destination.set_links(Some(parent), next, (true, true));
    if let Some(next) = next {
        next.prev.set(Some(destination));
    }
    parent.set_next(Some(destination));
}

/// Puts a capability without a parent (boot) into an empty slot.
pub fn insert_root(cap: Cap, destination: Ref<Slot>) {
    destination.cap.set(cap.pack());
    destination.set_links(None, None, (true, true));
}

/// A copy of an untyped shares its memory, so the original has nothing left to give.
fn fill_untyped(source: Ref<Slot>, new: Cap) {
    if let (
        Cap::Untyped { addr, bits, is_device, .. },
        Cap::Untyped { addr: new_addr, bits: new_bits, .. },
    ) = (source.unpack(), new)
        && addr == new_addr
        && bits == new_bits
    {
        source.cap.set(Cap::Untyped { addr, bits, is_device, free: 1 << bits }.pack());
    }
}

fn is_revocable(new: Cap, source: Cap) -> bool {
    match (new, source) {
        (Cap::Endpoint { badge, .. }, Cap::Endpoint { badge: source, .. })
        | (Cap::Notification { badge, .. }, Cap::Notification { badge: source, .. }) => {
            badge != source
        }
        (Cap::IrqHandler { .. }, source) => source == Cap::IrqControl,
        (Cap::IoPort { .. }, source) => source == Cap::IoPortControl,
        (Cap::Untyped { .. }, _) => true,
        _ => false,
    }
}

/// Moves a capability to an empty slot, changed to `cap`.
pub fn relocate(cap: Cap, source: Ref<Slot>, destination: Ref<Slot>) {
    destination.cap.set(cap.pack());
    let (prev, next) = (source.prev.get(), source.next());
    destination.set_links(prev, next, (source.is_revocable(), source.is_first_badged()));
    source.cap.set(RawCap::NULL);
    source.set_links(None, None, (false, false));
    if let Some(prev) = prev {
        prev.set_next(Some(destination));
    }
    if let Some(next) = next {
        next.prev.set(Some(destination));
    }
}

/// Exchanges two slots, their capabilities changed to `first_cap` and `second_cap`.
pub fn swap(first_cap: RawCap, first: Ref<Slot>, second_cap: RawCap, second: Ref<Slot>) {
    first.cap.set(second_cap);
    second.cap.set(first_cap);
    let links = |slot: Ref<Slot>| {
        (slot.prev.get(), slot.next(), (slot.is_revocable(), slot.is_first_badged()))
    };
    let first_links = links(first);
    if let Some(prev) = first_links.0 {
        prev.set_next(Some(second));
    }
    if let Some(next) = first_links.1 {
        next.prev.set(Some(second));
    }
    // Read only now: where the slots are neighbours, the lines above changed them.
    let second_links = links(second);
    first.set_links(second_links.0, second_links.1, second_links.2);
    second.set_links(first_links.0, first_links.1, first_links.2);
    if let Some(prev) = second_links.0 {
        prev.set_next(Some(first));
    }
    if let Some(next) = second_links.1 {
        next.prev.set(Some(first));
    }
}

/// Takes a slot out of the list and empties it.
pub fn unlink(slot: Ref<Slot>) {
    let (prev, next) = (slot.prev.get(), slot.next());
    if let Some(prev) = prev {
        prev.set_next(next);
    }
    if let Some(next) = next {
        next.prev.set(prev);
        next.set_flags(next.is_revocable(), next.is_first_badged() || slot.is_first_badged());
    }
    slot.cap.set(RawCap::NULL);
    slot.set_links(None, None, (false, false));
}

/// Tells whether the capability in `child` was derived from the one in `parent`, given that it is behind it in the list.
#[inline]
#[must_use]
pub fn is_parent(parent: Ref<Slot>, child: Ref<Slot>) -> bool {
    if !parent.is_revocable() {
        return false;
    }
    let (above, below) = (parent.cap.get(), child.cap.get());
    if !same_region(above, below) {
        return false;
    }
    match above.tag() {
        Tag::Endpoint | Tag::Notification => {
            above.w1 == 0 || (above.w1 == below.w1 && !child.is_first_badged())
        }
        _ => true,
    }
}

/// Tells whether something was derived from the capability in a slot.
#[inline]
#[must_use]
pub fn has_children(slot: Ref<Slot>) -> bool {
    slot.next().is_some_and(|next| is_parent(slot, next))
}

/// Tells the memory an object of typed memory covers: address and size in bytes; `None` where a capability stands for no memory.
#[must_use]
pub fn region(cap: Cap) -> Option<(PhysAddr, u64)> {
    use abi::object as size;
    let (addr, bits) = match cap {
        Cap::Untyped { addr, bits, .. } | Cap::SchedContext { addr, bits } => (addr, bits),
        Cap::Endpoint { addr, .. } => (addr, size::ENDPOINT_BITS),
        Cap::Notification { addr, .. } => (addr, size::NOTIFICATION_BITS),
        Cap::Reply { addr, .. } => (addr, size::REPLY_BITS),
        Cap::CNode { addr, radix, .. } => (addr, radix + size::SLOT_BITS),
        Cap::Thread { addr } => (addr, size::TCB_BITS),
        Cap::Zombie { addr, kind: super::raw::ZOMBIE_TCB, .. } => {
            (PhysAddr(addr.0 & !((1 << size::TCB_BITS) - 1)), size::TCB_BITS)
        }
        Cap::Zombie { addr, kind, .. } => (addr, kind + size::SLOT_BITS),
        Cap::Frame(frame) => (frame.addr, frame.size.bits()),
        Cap::Table { addr, .. } | Cap::Root { addr, .. } | Cap::AsidPool { addr, .. } => {
            (addr, size::PAGE_BITS)
        }
        Cap::Vcpu { addr } => (addr, size::VCPU_BITS),
        Cap::Timer { addr } => (addr, size::TIMER_BITS),
        Cap::Null
        | Cap::SchedControl { .. }
        | Cap::IrqControl
        | Cap::IrqHandler { .. }
        | Cap::Domain
        | Cap::AsidControl
        | Cap::IoPortControl
        | Cap::IoPort { .. } => return None,
    };
    Some((addr, 1 << bits))
}

/// Types whose capabilities stand for memory, one bit each: those for which [`region`] is not `None`.
const HAS_MEMORY: u32 = 1 << Tag::Untyped as u32
    | 1 << Tag::SchedContext as u32
    | 1 << Tag::Endpoint as u32
    | 1 << Tag::Notification as u32
    | 1 << Tag::Reply as u32
    | 1 << Tag::CNode as u32
    | 1 << Tag::Thread as u32
    | 1 << Tag::Zombie as u32
    | 1 << Tag::Frame as u32
    | 1 << Tag::PageTable as u32
    | 1 << Tag::PageDirectory as u32
    | 1 << Tag::Pdpt as u32
    | 1 << Tag::Pml4 as u32
    | 1 << Tag::NptPml4 as u32
    | 1 << Tag::NptPdpt as u32
    | 1 << Tag::NptPd as u32
    | 1 << Tag::NptPt as u32
    | 1 << Tag::AsidPool as u32
    | 1 << Tag::Vcpu as u32
    | 1 << Tag::Timer as u32;

/// Tells whether what `below` names is part of what `above` names.
#[must_use]
pub fn same_region(above: RawCap, below: RawCap) -> bool {
    match above.tag() {
        Tag::Null | Tag::Zombie => false,
        Tag::Untyped => {
            let bits = above.fields() & 0x3f;
            let distance = below.addr().0.wrapping_sub(above.addr().0);
            // Objects lie wholly inside the untyped they were made from, so their first byte tells. Only another untyped can be the
            // larger one of the two.
            HAS_MEMORY >> below.tag_number() & 1 != 0
                && distance >> bits == 0
                && !(below.is(Tag::Untyped) && below.fields() & 0x3f > bits)
        }
        Tag::Frame => {
            let (above, below_tag) = (above.unpack_frame(), below.tag());
            if below_tag != Tag::Frame {
                return false;
            }
            let below = below.unpack_frame();
            below.addr >= above.addr
                && below.addr.0 + (1 << below.size.bits())
                    <= above.addr.0 + (1 << above.size.bits())
        }
        Tag::IrqControl => matches!(below.tag(), Tag::IrqControl | Tag::IrqHandler),
        Tag::IoPortControl => matches!(below.tag(), Tag::IoPortControl | Tag::IoPort),
        tag @ (Tag::SchedControl | Tag::IrqHandler | Tag::IoPort) => {
            below.is(tag) && above.w1 == below.w1
        }
        tag @ (Tag::Domain | Tag::AsidControl) => below.is(tag),
        tag => below.is(tag) && above.addr() == below.addr(),
    }
}

/// Tells whether two capabilities name the very same object.
fn same_object(one: RawCap, other: RawCap) -> bool {
    match one.tag() {
        Tag::Untyped => false,
        Tag::IrqControl | Tag::IoPortControl => one.tag() == other.tag(),
        Tag::Frame => {
            other.is(Tag::Frame)
                && one.addr() == other.addr()
                && one.unpack_frame().size == other.unpack_frame().size
        }
        _ => same_region(one, other),
    }
}

/// Tells whether a slot holds the last capability of its object.
#[must_use]
pub fn is_final(slot: Ref<Slot>) -> bool {
    let cap = slot.cap.get();
    slot.prev.get().is_none_or(|prev| !same_object(prev.cap.get(), cap))
        && slot.next().is_none_or(|next| !same_object(cap, next.cap.get()))
}

/// Makes the capability a copy would hold; `Null` where the type cannot be copied.
///
/// # Errors
/// RevokeFirst for an untyped with children, IllegalOperation for an unmapped paging structure.
pub fn derive(slot: Ref<Slot>, cap: Cap) -> Result<Cap, Failure> {
    match cap {
        Cap::Zombie { .. } | Cap::IrqControl | Cap::IoPortControl => Ok(Cap::Null),
        Cap::Untyped { .. } if has_children(slot) => Err(Failure::RevokeFirst),
        Cap::Table { mapping: None, .. } | Cap::Root { asid: 0, .. } => {
            Err(Failure::IllegalOperation)
        }
        Cap::Frame(frame) => Ok(Cap::Frame(FrameCap {
            kind: MapKind::None,
            mapping: Mapping { asid: 0, vaddr: 0 },
            ..frame
        })),
        cap => Ok(cap),
    }
}

/// Takes rights away.
#[must_use]
pub fn mask_rights(cap: Cap, mask: CapRights) -> Cap {
    match cap {
        Cap::Endpoint { addr, badge, rights } => {
            Cap::Endpoint { addr, badge, rights: CapRights(rights.0 & mask.0) }
        }
        Cap::Notification { addr, badge, rights } => {
            Cap::Notification { addr, badge, rights: CapRights(rights.0 & mask.0) }
        }
        Cap::Reply { addr, can_grant } => {
            Cap::Reply { addr, can_grant: can_grant && mask.contains(CapRights::GRANT) }
        }
        Cap::Frame(frame) => {
            Cap::Frame(FrameCap { rights: mask_frame_rights(frame.rights, mask), ..frame })
        }
        cap => cap,
    }
}

/// Frame rights are read and write, read only, or none (kernel only); write only does not exist.
#[must_use]
pub fn mask_frame_rights(rights: CapRights, mask: CapRights) -> CapRights {
    let both = CapRights(rights.0 & mask.0 & CapRights::READ_WRITE.0);
    if both.contains(CapRights::READ) { both } else { CapRights::NONE }
}

/// Sets badge or guard; `Null` where that is not allowed.
#[must_use]
pub fn with_data(cap: Cap, data: u64, keeps_badge: bool) -> Cap {
    match cap {
        Cap::Endpoint { addr, badge: 0, rights } if !keeps_badge => {
            Cap::Endpoint { addr, badge: data, rights }
        }
        Cap::Notification { addr, badge: 0, rights } if !keeps_badge => {
            Cap::Notification { addr, badge: data, rights }
        }
        Cap::Endpoint { .. } | Cap::Notification { .. } => Cap::Null,
        Cap::CNode { addr, radix, .. } => {
            let data = abi::CNodeCapData(data);
            if data.guard_bits() + u64::from(radix) > 64 {
                return Cap::Null;
            }
            let guard = data.guard() & ((1 << data.guard_bits()) - 1);
            Cap::CNode { addr, radix, guard: abi::CNodeCapData::new(guard, data.guard_bits()) }
        }
        cap => cap,
    }
}
