//! Untyped memory: retype and reset.

use abi::object::{
    MAX_UNTYPED_BITS, MIN_SCHED_CONTEXT_BITS, MIN_UNTYPED_BITS, RETYPE_FAN_OUT_LIMIT, SLOT_BITS,
};
use abi::{CNodeCapData, CapRights, Label, ObjectType};

use crate::Kernel;
use crate::cap::raw::{Cap, FrameCap, FrameSize, MapKind, Mapping, Tag};
use crate::cap::{Slot, cspace, tree};
use crate::hw::Hw;
use crate::limits::CLEAR_CHUNK_BYTES;
use crate::mem::{PhysAddr, Ref, window};
use crate::object::tcb::{Tcb, ThreadState};
use crate::syscall::Failure;
use crate::syscall::args::{Args, Outcome};

/// A checked Untyped_Retype.
struct Retype {
    object: ObjectType,
    user_bits: u64,
    bits: u64,
    first: Ref<Slot>,
    count: u64,
}

impl<H: Hw> Kernel<H> {
    pub(crate) fn decode_untyped(&mut self, slot: Ref<Slot>, args: &Args) -> Outcome {
        let (addr, bits, is_device, free) = slot.cap.get().unpack_untyped();
        if args.label != Label::UntypedRetype as u64 {
            return Err(Failure::IllegalOperation);
        }
        let retype = check(args)?;
        let (free, is_reset) =
            if tree::has_children(slot) { (free, false) } else { (0, free != 0) };
        let left = (1 << bits) - free;
        if left >> retype.bits < retype.count {
            return Err(Failure::NotEnoughMemory(left));
        }
        if is_device
            && !matches!(
                retype.object,
                ObjectType::Untyped
                    | ObjectType::Page4K
                    | ObjectType::LargePage
                    | ObjectType::HugePage
            )
        {
            return Err(Failure::InvalidArgument(1));
        }
        if is_reset {
            self.reset_untyped(slot)?;
        }
        let size = 1u64 << retype.bits;
        let start = (addr.0 + free + size - 1) & !(size - 1);
        let end = start + retype.count * size;
        slot.cap.set(Cap::Untyped { addr, bits, is_device, free: end - addr.0 }.pack());
        for number in 0..retype.count {
            let object = PhysAddr(start + number * size);
            let cap = self.create(retype.object, object, retype.user_bits, is_device);
            tree::insert_new(cap.pack(), slot, retype.first.add(number));
        }
        Ok(0)
    }

    /// Clears the part of an untyped that was given out, from its end, in preemptible steps.
    fn reset_untyped(&mut self, slot: Ref<Slot>) -> Result<(), Failure> {
        while let Cap::Untyped { addr, bits, is_device, free } = slot.unpack()
            && free > 0
        {
            if is_device {
                slot.cap.set(Cap::Untyped { addr, bits, is_device, free: 0 }.pack());
                break;
            }
            let from = (free - 1) & !(CLEAR_CHUNK_BYTES - 1);
            window::zero(addr.offset(from), (free - from + 7) & !7);
            slot.cap.set(Cap::Untyped { addr, bits, is_device, free: from }.pack());
            self.preemption_point()?;
        }
        Ok(())
    }

    /// Gives zeroed memory a type.
    pub(crate) fn create(
        &mut self,
        object: ObjectType,
        addr: PhysAddr,
        user_bits: u64,
        is_device: bool,
    ) -> Cap {
        let frame = |size| {
            Cap::Frame(FrameCap {
                addr,
                size,
                rights: CapRights::READ_WRITE,
                is_device,
                kind: MapKind::None,
                mapping: Mapping { asid: 0, vaddr: 0 },
            })
        };
        let table = |tag| Cap::Table { tag, addr, mapping: None };
        match object {
            ObjectType::Page4K => frame(FrameSize::Small),
            ObjectType::LargePage => frame(FrameSize::Large),
            ObjectType::HugePage => frame(FrameSize::Huge),
            ObjectType::Untyped => {
                Cap::Untyped { addr, bits: user_bits as u32, is_device, free: 0 }
            }
            ObjectType::Tcb => {
                self.init_thread(Ref::at(addr));
                Cap::Thread { addr }
            }
            ObjectType::Endpoint => Cap::Endpoint { addr, badge: 0, rights: CapRights::ALL },
            ObjectType::Notification => {
                Cap::Notification { addr, badge: 0, rights: CapRights::READ_WRITE }
            }
            ObjectType::CNode => {
                Cap::CNode { addr, radix: user_bits as u32, guard: CNodeCapData::new(0, 0) }
            }
            ObjectType::SchedContext => Cap::SchedContext { addr, bits: user_bits as u32 },
            ObjectType::Reply => Cap::Reply { addr, can_grant: true },
            ObjectType::Pdpt => table(Tag::Pdpt),
            ObjectType::PageDirectory => table(Tag::PageDirectory),
            ObjectType::PageTable => table(Tag::PageTable),
            ObjectType::Pml4 => {
                self.hw.init_root(addr);
                Cap::Root { tag: Tag::Pml4, addr, asid: 0 }
            }
            ObjectType::NptPdpt => table(Tag::NptPdpt),
            ObjectType::NptPd => table(Tag::NptPd),
            ObjectType::NptPt => table(Tag::NptPt),
            ObjectType::NptPml4 => Cap::Root { tag: Tag::NptPml4, addr, asid: 0 },
            ObjectType::Vcpu => {
                Self::init_vcpu(addr);
                Cap::Vcpu { addr }
            }
            ObjectType::Timer => Cap::Timer { addr },
        }
    }

    /// Initial state of a thread in zeroed memory.
    pub(crate) fn init_thread(&mut self, tcb: Ref<Tcb>) {
        tcb.state.set(ThreadState::Inactive);
        tcb.core.set(self.core as u32);
        tcb.sanitise();
        self.hw.init_fpu(tcb);
    }
}

fn check(args: &Args) -> Result<Retype, Failure> {
    args.need(6)?;
    let root = args.cap(0)?;
    let object = ObjectType::from_number(args.word(0)).ok_or(Failure::InvalidArgument(0))?;
    let user_bits = args.word(1);
    let bits = object.size_bits(user_bits);
    if user_bits >= 64 || bits > u64::from(MAX_UNTYPED_BITS) {
        return Err(Failure::Range(0, u64::from(MAX_UNTYPED_BITS)));
    }
    match object {
        ObjectType::CNode if user_bits == 0 => return Err(Failure::InvalidArgument(1)),
        ObjectType::Untyped if user_bits < u64::from(MIN_UNTYPED_BITS) => {
            return Err(Failure::InvalidArgument(1));
        }
        ObjectType::SchedContext if user_bits < u64::from(MIN_SCHED_CONTEXT_BITS) => {
            return Err(Failure::InvalidArgument(1));
        }
        _ => {}
    }
    let (index, depth, offset, count) = (args.word(2), args.word(3), args.word(4), args.word(5));
    let node = if depth == 0 {
        root.cap.get()
    } else {
        cspace::lookup_exact(root.cap.get(), index, depth, false)?.cap.get()
    };
    if !node.is(Tag::CNode) {
        return Err(Failure::Lookup {
            is_source: false,
            failure: abi::LookupFailure::MissingCapability { bits_left: depth },
        });
    }
    let table = node.addr();
    let slots = 1u64 << node.fields();
    if offset >= slots {
        return Err(Failure::Range(0, slots - 1));
    }
    if !(1..=RETYPE_FAN_OUT_LIMIT).contains(&count) {
        return Err(Failure::Range(1, RETYPE_FAN_OUT_LIMIT));
    }
    if count > slots - offset {
        return Err(Failure::Range(1, slots - offset));
    }
    let first = Ref::<Slot>::at(table).add(offset);
    for number in 0..count {
        if !first.add(number).is_empty() {
            return Err(Failure::DeleteFirst);
        }
    }
    Ok(Retype { object, user_bits, bits, first, count })
}

const _: () = assert!(SLOT_BITS == 5);
