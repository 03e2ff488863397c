//! Kernel objects: made in arenas, mapped, copied, given to servers, written down.

use protocol::link::ServerId;
use root_task::arena::{Arena, Shortage};
use root_task::caps::{CapMap, CapRecord};
use root_task::slots::Slots;
use root_task::space;
use root_task::untyped::{Kernel, Untypeds};
use sel4::init_thread::slot;
use sel4::{
    AbsoluteCPtr, CNodeCapData, CPtr, Cap, CapRights, Error, FrameObjectType, ObjectBlueprint,
    VmAttributes, cap,
};

/// Most objects one retype makes.
const FAN_OUT: u64 = 256;

/// Why something could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// Memory or slots of the root-task are short.
    Short(Shortage),
    /// The kernel refused: what was tried and why.
    Kernel(&'static str, Error),
    /// The boot archive lacks something, or it is damaged.
    Archive(&'static str),
}

impl From<Shortage> for Fail {
    fn from(shortage: Shortage) -> Self {
        Self::Short(shortage)
    }
}

/// Adds to a kernel error what was tried.
pub trait Tried<T> {
    /// What was tried.
    ///
    /// # Errors
    ///
    /// [`Fail::Kernel`] for the kernel's error.
    fn tried(self, what: &'static str) -> Result<T, Fail>;
}

impl<T> Tried<T> for sel4::Result<T> {
    fn tried(self, what: &'static str) -> Result<T, Fail> {
        self.map_err(|error| Fail::Kernel(what, error))
    }
}

/// The slot `number` of the root-task's CSpace.
pub fn here(number: u64) -> AbsoluteCPtr {
    slot::CNODE.cap().absolute_cptr(CPtr::from_bits(number))
}

struct Calls;

impl Kernel for Calls {
    fn split(&mut self, parent: u64, bits: u8, first: u64) -> bool {
        let blueprint = ObjectBlueprint::Untyped { size_bits: u64::from(bits) };
        let root = slot::CNODE.cap().absolute_cptr_for_self();
        cap::Untyped::from_bits(parent).untyped_retype(&blueprint, &root, first, 2).is_ok()
    }

    fn revoke(&mut self, number: u64) {
        if here(number).revoke().is_err() {
            defmt::error!("untyped {=u64} could not be revoked", number);
        }
    }
}

/// A server's CNode: its capability and how many slots it has.
#[derive(Clone, Copy, Debug)]
pub struct CSpace {
    /// Whose.
    pub server: ServerId,
    /// The CNode.
    pub cnode: cap::CNode,
    /// log2 of its slots.
    pub radix: u64,
}

/// A CNode of its own for one owner's capabilities, in the root-task's capability space.
#[derive(Clone, Copy, Debug)]
pub struct SideSpace {
    number: u64,
    cnode: cap::CNode,
    radix: u64,
    used: u64,
}

/// All memory and slots, and who has what.
#[derive(Debug)]
pub struct Objects {
    /// The top CNode of the root-task's capability space.
    pub top: Option<cap::CNode>,
    /// Free slots.
    pub slots: Slots,
    /// Free memory.
    pub untypeds: Untypeds,
    /// What was given to whom.
    pub caps: CapMap,
}

impl Objects {
    /// Takes blocks for `bytes` into `arena`.
    pub fn reserve(&mut self, arena: &mut Arena, bytes: u64) -> Result<(), Fail> {
        Ok(arena.reserve(bytes, &mut self.untypeds, &mut self.slots, &mut Calls)?)
    }

    /// Takes every block above `keep` free bytes.
    pub fn take_surplus<const N: usize>(
        &mut self,
        keep: u64,
        bits_min: u8,
    ) -> heapless::Vec<root_task::untyped::Block, N> {
        self.untypeds.take_surplus(keep, bits_min, &mut self.slots, &mut Calls)
    }

    /// Deletes everything derived from the untyped in slot `number`.
    pub fn revoke(number: u64) {
        Calls.revoke(number);
    }

    /// Makes `count` objects next to each other; the first slot and the first physical address.
    pub fn make_at(
        &mut self,
        arena: &mut Arena,
        blueprint: ObjectBlueprint,
        count: u64,
    ) -> Result<(u64, u64), Fail> {
        let bits = u8::try_from(blueprint.physical_size_bits()).unwrap_or(u8::MAX);
        let (untypeds, slots) = (&mut self.untypeds, &mut self.slots);
        let place = arena.place(bits, count, untypeds, slots, &mut Calls)?;
        let run = arena.slots(count, slots)?;
        let root = slot::CNODE.cap().absolute_cptr_for_self();
        let mut made = 0;
        while made < count {
            let now = (count - made).min(FAN_OUT);
            cap::Untyped::from_bits(place.untyped)
                .untyped_retype(&blueprint, &root, run.start + made, now)
                .tried("retype")?;
            made += now;
        }
        Ok((run.start, place.paddr))
    }

    /// Makes one object.
    pub fn make<T: sel4::cap_type::CapType>(
        &mut self,
        arena: &mut Arena,
        blueprint: ObjectBlueprint,
    ) -> Result<Cap<T>, Fail> {
        self.make_at(arena, blueprint, 1).map(|(slot, _)| Cap::from_bits(slot))
    }

    /// Makes a 4 KiB frame of zeros.
    pub fn make_frame(&mut self, arena: &mut Arena) -> Result<cap::Granule, Fail> {
        self.make(arena, FrameObjectType::_4k.blueprint())
    }

    /// Copies a capability into the root-task's own CSpace.
    pub fn copy<T: sel4::cap_type::CapType>(
        &mut self,
        arena: &mut Arena,
        source: Cap<T>,
    ) -> Result<Cap<T>, Fail> {
        let run = arena.slots(1, &mut self.slots)?;
        here(run.start).copy(&here(source.bits()), CapRights::all()).tried("copy")?;
        Ok(Cap::from_bits(run.start))
    }

    /// Copies a capability into the root-task's own CSpace with a badge.
    pub fn mint<T: sel4::cap_type::CapType>(
        &mut self,
        arena: &mut Arena,
        source: Cap<T>,
        badge: u64,
    ) -> Result<Cap<T>, Fail> {
        let run = arena.slots(1, &mut self.slots)?;
        here(run.start).mint(&here(source.bits()), CapRights::all(), badge).tried("mint")?;
        Ok(Cap::from_bits(run.start))
    }

    /// Puts a top CNode above the initial one, whose slots keep their numbers.
    pub fn make_top(&mut self, arena: &mut Arena, initial_radix: u64) -> Result<(), Fail> {
        let blueprint = ObjectBlueprint::CNode { size_bits: space::TOP_BITS };
        let top: cap::CNode = self.make(arena, blueprint)?;
        let guard = CNodeCapData::skip(space::guard(initial_radix)).into_word();
        top.absolute_cptr_from_bits_with_depth(0, space::TOP_BITS)
            .mint(&here(slot::CNODE.cap().bits()), CapRights::all(), guard)
            .tried("put the initial CNode below the top")?;
        let none = Cap::from_bits(0);
        let guard = CNodeCapData::skip(space::TOP_GUARD);
        let own = slot::TCB.cap();
        own.tcb_set_space(none, top, guard, slot::VSPACE.cap()).tried("set the own CSpace")?;
        self.top = Some(top);
        Ok(())
    }

    fn place_of_space(&self, number: u64) -> Result<AbsoluteCPtr, Fail> {
        let top = self.top.ok_or(Fail::Archive("no top CNode"))?;
        Ok(top.absolute_cptr_from_bits_with_depth(number, space::TOP_BITS))
    }

    /// Opens space `number` with room for `count` capabilities; its memory is the arena's.
    pub fn open_space(
        &mut self,
        arena: &mut Arena,
        number: u64,
        count: u64,
    ) -> Result<SideSpace, Fail> {
        let radix = space::radix(count);
        let cnode = self.make(arena, ObjectBlueprint::CNode { size_bits: radix })?;
        let guard = CNodeCapData::skip(space::guard(radix)).into_word();
        self.place_of_space(number)?
            .mint(&here(cnode.bits()), CapRights::all(), guard)
            .tried("open a capability space")?;
        Ok(SideSpace { number, cnode, radix, used: 0 })
    }

    /// Copies a capability into a side space.
    pub fn copy_aside<T: sel4::cap_type::CapType>(
        &mut self,
        aside: &mut SideSpace,
        source: Cap<T>,
    ) -> Result<Cap<T>, Fail> {
        let number = aside.used;
        aside
            .cnode
            .absolute_cptr_from_bits_with_depth(number, aside.radix)
            .copy(&here(source.bits()), CapRights::all())
            .tried("copy aside")?;
        aside.used += 1;
        Ok(Cap::from_bits(space::pointer(aside.number, number)))
    }

    /// Empties a side space and takes it out of the capability space. Its CNode goes with its arena.
    pub fn close_space(&mut self, aside: &SideSpace) {
        // One by one: the deletion of a full CNode would keep the kernel for milliseconds.
        for number in 0..aside.used {
            let slot = aside.cnode.absolute_cptr_from_bits_with_depth(number, aside.radix);
            if slot.delete().is_err() {
                defmt::error!("slot {=u64} of a side space could not be emptied", number);
            }
        }
        let closed = self.place_of_space(aside.number).map(|place| place.delete());
        if !matches!(closed, Ok(Ok(()))) {
            defmt::error!("side space {=u64} could not be closed", aside.number);
        }
    }

    /// Maps a frame, making the tables that are missing in `arena`.
    pub fn map(
        &mut self,
        arena: &mut Arena,
        vspace: cap::VSpace,
        frame: cap::Granule,
        vaddr: u64,
        rights: CapRights,
    ) -> Result<(), Fail> {
        self.map_with(arena, vspace, frame, vaddr, rights, VmAttributes::DEFAULT)
    }

    /// As [`Objects::map`], with the memory type named.
    pub fn map_with(
        &mut self,
        arena: &mut Arena,
        vspace: cap::VSpace,
        frame: cap::Granule,
        vaddr: u64,
        rights: CapRights,
        attributes: VmAttributes,
    ) -> Result<(), Fail> {
        match frame.frame_map(vspace, vaddr, rights, attributes) {
            Err(Error::FailedLookup) => self.make_tables(arena, vspace, vaddr)?,
            other => return other.tried("map a frame"),
        }
        frame.frame_map(vspace, vaddr, rights, attributes).tried("map a frame")
    }

    fn make_tables(
        &mut self,
        arena: &mut Arena,
        vspace: cap::VSpace,
        vaddr: u64,
    ) -> Result<(), Fail> {
        use sel4::TranslationTableObjectType as Table;
        let attributes = VmAttributes::DEFAULT;
        let table: cap::PageTable = self.make(arena, Table::PageTable.blueprint())?;
        if table.page_table_map(vspace, vaddr, attributes).is_ok() {
            return Ok(());
        }
        let directory: cap::PageDirectory = self.make(arena, Table::PageDirectory.blueprint())?;
        if directory.page_directory_map(vspace, vaddr, attributes).is_err() {
            let pdpt: cap::PDPT = self.make(arena, Table::PDPT.blueprint())?;
            pdpt.pdpt_map(vspace, vaddr, attributes).tried("map a PDPT")?;
            directory.page_directory_map(vspace, vaddr, attributes).tried("map a directory")?;
        }
        table.page_table_map(vspace, vaddr, attributes).tried("map a page table")
    }

    /// Puts a capability into a server's slot and writes it down. A badge of 0 copies.
    pub fn give<T: sel4::cap_type::CapType>(
        &mut self,
        to: CSpace,
        number: u64,
        source: Cap<T>,
        rights: CapRights,
        badge: u64,
        purpose: &'static str,
    ) -> Result<(), Fail> {
        let target = to.cnode.absolute_cptr_from_bits_with_depth(number, to.radix);
        if badge == 0 {
            target.copy(&here(source.bits()), rights).tried("give")?;
        } else {
            target.mint(&here(source.bits()), rights, badge).tried("give with a badge")?;
        }
        self.caps.given(CapRecord {
            server: to.server,
            slot: u32::try_from(number).unwrap_or(u32::MAX),
            kind: T::NAME,
            rights: u8::try_from(rights.into_word()).unwrap_or(0),
            purpose,
        });
        Ok(())
    }

    /// Empties a server's slot.
    pub fn take(&mut self, from: CSpace, number: u64) {
        let target = from.cnode.absolute_cptr_from_bits_with_depth(number, from.radix);
        if target.delete().is_err() {
            defmt::error!("slot {=u64} of a server could not be emptied", number);
        }
        self.caps.taken(from.server, u32::try_from(number).unwrap_or(u32::MAX));
    }

    /// Gives back everything of an arena: first the capabilities in our slots, then the memory.
    pub fn release(&mut self, arena: &mut Arena) {
        for run in arena.runs() {
            for number in run.start..run.start + run.count {
                if here(number).delete().is_err() {
                    defmt::error!("slot {=u64} could not be emptied", number);
                }
            }
        }
        arena.release(&mut self.untypeds, &mut self.slots, &mut Calls);
    }
}
