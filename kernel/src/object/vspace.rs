//! Virtual address spaces: x86-64 page tables, ASIDs, mapping and unmapping.

use abi::object::{ASID_POOL_BITS, USER_TOP};
use abi::{Label, LookupFailure};

use crate::cap::raw::{Cap, FrameCap, FrameSize, MapKind, Mapping, Tag};
use crate::cap::{Slot, tree};
use crate::hw::Hw;
use crate::limits::{ASID_POOL_ENTRIES, ASID_POOLS};
use crate::mem::window::Words;
use crate::mem::{PhysAddr, Ref, window};
use crate::syscall::Failure;
use crate::syscall::args::{Args, Outcome};
use crate::{AsidPool, Kernel};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const PAT_SMALL: u64 = 1 << 7;
const PAT_LARGE: u64 = 1 << 12;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ADDRESS_LARGE: u64 = 0x000f_ffff_ffff_e000;

/// Level of a table by the shift of the address bits that index it.
const PD: u32 = 21;
const PDPT: u32 = 30;
const PML4: u32 = 39;

/// Where an entry is: the table and the position in it.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    table: Words,
    position: usize,
}

impl Entry {
    #[inline(always)]
    pub(crate) fn get(self) -> u64 {
        self.table.get(self.position)
    }

    #[inline(always)]
    pub(crate) fn set(self, value: u64) {
        self.table.set(self.position, value);
    }
}

#[inline(always)]
fn index(vaddr: u64, shift: u32) -> usize {
    (vaddr >> shift & 511) as usize
}

/// Finds the entry for `vaddr` in the table of level `shift`; the error is the address bits left at a missing table.
#[inline]
pub(crate) fn walk(root: PhysAddr, vaddr: u64, shift: u32) -> Result<Entry, u32> {
    let mut table = Words(root);
    let mut level = PML4;
    while level > shift {
        let entry = table.get(index(vaddr, level));
        if entry & PRESENT == 0 || (level != PML4 && entry & LARGE != 0) {
            return Err(level);
        }
        table = Words(PhysAddr(entry & ADDRESS));
        level -= 9;
    }
    Ok(Entry { table, position: index(vaddr, shift) })
}

fn missing(bits_left: u32) -> Failure {
    Failure::Lookup {
        is_source: false,
        failure: LookupFailure::MissingCapability { bits_left: u64::from(bits_left) },
    }
}

const fn no_space() -> Failure {
    Failure::Lookup { is_source: false, failure: LookupFailure::InvalidRoot }
}

fn memory_type(attributes: u64, is_large: bool) -> u64 {
    let mut bits = 0;
    if attributes & 1 != 0 {
        bits |= WRITE_THROUGH;
    }
    if attributes & 2 != 0 {
        bits |= CACHE_DISABLE;
    }
    if attributes & 4 != 0 {
        bits |= if is_large { PAT_LARGE } else { PAT_SMALL };
    }
    bits
}

/// Makes a leaf entry.
fn leaf(frame: &FrameCap, rights: abi::CapRights, attributes: u64) -> u64 {
    let is_large = frame.size != FrameSize::Small;
    let mut entry = frame.addr.0 | PRESENT | memory_type(attributes, is_large);
    if is_large {
        entry |= LARGE;
    }
    if rights.contains(abi::CapRights::READ) {
        entry |= USER;
    }
    if rights.contains(abi::CapRights::READ_WRITE) {
        entry |= WRITE;
    }
    entry
}

/// Tells whether an entry maps exactly this frame.
fn maps(entry: u64, frame: PhysAddr, size: FrameSize) -> bool {
    if entry & PRESENT == 0 {
        return false;
    }
    match size {
        FrameSize::Small => entry & ADDRESS == frame.0,
        FrameSize::Large | FrameSize::Huge => {
            entry & LARGE != 0 && entry & ADDRESS_LARGE == frame.0
        }
    }
}

const fn parent_level(tag: Tag) -> u32 {
    match tag {
        Tag::PageTable => PD,
        Tag::PageDirectory => PDPT,
        _ => PML4,
    }
}

/// Bit of an ASID pool's entry: the root is a nested one.
const NESTED: u64 = 1;

impl<H: Hw> Kernel<H> {
    /// Returns the root with an ASID, 0 where there is none.
    #[inline(always)]
    pub(crate) fn root_of_asid(&self, asid: u16) -> u64 {
        let entry = self.asid_entry(asid);
        // A nested root under a reused ASID must not pass for a virtual space.
        if entry & NESTED == 0 { entry } else { 0 }
    }

    /// Returns the nested root with an ASID, 0 where there is none.
    #[inline]
    pub(crate) fn nested_of_asid(&self, asid: u16) -> u64 {
        let entry = self.asid_entry(asid);
        if entry & NESTED != 0 { entry & !NESTED } else { 0 }
    }

    #[inline(always)]
    pub(crate) fn asid_entry(&self, asid: u16) -> u64 {
        match self.asid_pools[(usize::from(asid) / ASID_POOL_ENTRIES) & (ASID_POOLS - 1)] {
            Some(pool) => pool.roots[usize::from(asid) % ASID_POOL_ENTRIES].get(),
            None => 0,
        }
    }

    /// Checks that a capability names a virtual address space in use; returns its root and ASID.
    fn space_arg(&self, args: &Args) -> Result<(PhysAddr, u16), Failure> {
        let cap = args.cap(0)?.cap.get();
        let asid = cap.w1 as u16;
        if !cap.is(Tag::Pml4) || asid == 0 {
            return Err(Failure::InvalidCapability(1));
        }
        Ok((cap.addr(), asid))
    }

    fn check_space(&self, root: PhysAddr, asid: u16) -> Result<(), Failure> {
        match self.root_of_asid(asid) {
            0 => Err(no_space()),
            found if found == root.0 => Ok(()),
            _ => Err(Failure::InvalidCapability(1)),
        }
    }

    pub(crate) fn decode_frame(
        &mut self,
        slot: Ref<Slot>,
        frame: FrameCap,
        args: &Args,
    ) -> Outcome {
        match Label::from_number(args.label) {
            Some(Label::X86PageMap) => self.map_frame(slot, frame, args),
            Some(Label::X86PageUnmap) => {
                self.unmap_cap(slot, frame);
                Ok(0)
            }
            Some(Label::X86PageGetAddress) => {
                args.answer(0, frame.addr.0);
                Ok(1)
            }
            Some(Label::FrameDerive) => derive_frame(slot, frame, args),
            Some(Label::FrameZero) => self.zero_frame(frame, args),
            Some(Label::X86PageMapNPT) => self.decode_map_nested(slot, frame, args),
            _ => Err(Failure::IllegalOperation),
        }
    }

    /// Unmaps what a frame capability maps, in whatever kind of space, and notes it in the capability.
    pub(crate) fn unmap_cap(&mut self, slot: Ref<Slot>, frame: FrameCap) {
        match frame.kind {
            MapKind::None => return,
            MapKind::VSpace => self.unmap_frame(frame),
            MapKind::Nested => self.unmap_nested_frame(frame),
        }
        let mapping = Mapping { asid: 0, vaddr: 0 };
        slot.cap.set(FrameCap { kind: MapKind::None, mapping, ..frame }.pack());
    }

    fn map_frame(&mut self, slot: Ref<Slot>, frame: FrameCap, args: &Args) -> Outcome {
        args.need(3)?;
        let (vaddr, rights, attributes) = (args.word(0), args.word(1), args.word(2));
        let (root, asid) = self.space_arg(args)?;
        let rights = tree::mask_frame_rights(frame.rights, abi::CapRights(rights));
        let bits = frame.size.bits();
        if frame.kind != MapKind::None {
            if frame.kind != MapKind::VSpace || frame.mapping.asid != asid {
                return Err(Failure::InvalidCapability(1));
            }
            if frame.mapping.vaddr != vaddr {
                return Err(Failure::InvalidArgument(0));
            }
        } else if vaddr > USER_TOP || USER_TOP - vaddr < 1 << bits {
            return Err(Failure::InvalidArgument(0));
        }
        self.check_space(root, asid)?;
        if vaddr & ((1 << bits) - 1) != 0 {
            return Err(Failure::Alignment);
        }
        let entry = walk(root, vaddr, bits).map_err(missing)?;
        let old = entry.get();
        if old & PRESENT != 0 && frame.size != FrameSize::Small && old & LARGE == 0 {
            return Err(Failure::DeleteFirst);
        }
        let mapping = Mapping { asid, vaddr };
        slot.cap.set(FrameCap { kind: MapKind::VSpace, mapping, ..frame }.pack());
        entry.set(leaf(&frame, rights, attributes));
        if old & PRESENT != 0 {
            self.hw.flush_page(root, asid, vaddr);
        }
        Ok(0)
    }

    /// Takes a frame's mapping out of its address space, if it is still there.
    pub(crate) fn unmap_frame(&mut self, frame: FrameCap) {
        let Mapping { asid, vaddr } = frame.mapping;
        let root = self.root_of_asid(asid);
        if root == 0 {
            return;
        }
        if let Ok(entry) = walk(PhysAddr(root), vaddr, frame.size.bits())
            && maps(entry.get(), frame.addr, frame.size)
        {
            entry.set(0);
            self.hw.flush_page(PhysAddr(root), asid, vaddr);
        }
    }

    fn zero_frame(&mut self, frame: FrameCap, args: &Args) -> Outcome {
        args.need(2)?;
        let (offset, length) = (args.word(0), args.word(1));
        let size = 1u64 << frame.size.bits();
        if frame.is_device || !frame.rights.contains(abi::CapRights::READ_WRITE) {
            return Err(Failure::IllegalOperation);
        }
        if offset & 0xfff != 0 || length & 0xfff != 0 {
            return Err(Failure::Alignment);
        }
        if offset > size {
            return Err(Failure::Range(0, size));
        }
        if length > size - offset {
            return Err(Failure::Range(0, size - offset));
        }
        let mut done = 0;
        while done < length {
            let step = (length - done).min(crate::limits::CLEAR_CHUNK_BYTES);
            window::zero(frame.addr.offset(offset + done), step);
            done += step;
            if done < length && self.preemption_point().is_err() {
                // The words are made smaller, so that the call made again goes on here.
                args.tcb.set_mr(0, offset + done);
                args.tcb.set_mr(1, length - done);
                return Err(Failure::Preempted);
            }
        }
        Ok(0)
    }

    pub(crate) fn decode_table(
        &mut self,
        slot: Ref<Slot>,
        tag: Tag,
        table: PhysAddr,
        mapping: Option<Mapping>,
        args: &Args,
    ) -> Outcome {
        let (map, unmap) = match tag {
            Tag::PageTable => (Label::X86PageTableMap, Label::X86PageTableUnmap),
            Tag::PageDirectory => (Label::X86PageDirectoryMap, Label::X86PageDirectoryUnmap),
            _ => (Label::X86PDPTMap, Label::X86PDPTUnmap),
        };
        if args.label == unmap as u64 {
            if !tree::is_final(slot) {
                return Err(Failure::RevokeFirst);
            }
            if let Some(mapping) = mapping {
                self.unmap_table(tag, table, mapping);
                window::zero(table, 1 << abi::object::PAGE_BITS);
            }
            slot.cap.set(Cap::Table { tag, addr: table, mapping: None }.pack());
            return Ok(0);
        }
        if args.label != map as u64 {
            return Err(Failure::IllegalOperation);
        }
        args.need(2)?;
        args.cap(0)?;
        if mapping.is_some() {
            return Err(Failure::InvalidCapability(0));
        }
        let level = parent_level(tag);
        let vaddr = args.word(0) & !((1 << level) - 1);
        let (root, asid) = self.space_arg(args)?;
        if vaddr >= USER_TOP {
            return Err(Failure::InvalidArgument(0));
        }
        self.check_space(root, asid)?;
        let entry = walk(root, vaddr, level).map_err(missing)?;
        if entry.get() & PRESENT != 0 {
            return Err(Failure::DeleteFirst);
        }
        let mapping = Some(Mapping { asid, vaddr });
        slot.cap.set(Cap::Table { tag, addr: table, mapping }.pack());
        entry.set(table.0 | PRESENT | WRITE | USER | memory_type(args.word(1) & 3, false));
        Ok(0)
    }

    /// Takes a paging structure out of the space it is mapped in, if it is still there.
    pub(crate) fn unmap_table(&mut self, tag: Tag, table: PhysAddr, mapping: Mapping) {
        let root = self.root_of_asid(mapping.asid);
        if root == 0 {
            return;
        }
        let level = parent_level(tag);
        if let Ok(entry) = walk(PhysAddr(root), mapping.vaddr, level)
            && entry.get() & PRESENT != 0
            && (level == PML4 || entry.get() & LARGE == 0)
            && entry.get() & ADDRESS == table.0
        {
            entry.set(0);
            self.hw.flush_space(PhysAddr(root), mapping.asid);
        }
    }

    pub(crate) fn decode_asid_control(&mut self, args: &Args) -> Outcome {
        if args.label != Label::X86ASIDControlMakePool as u64 {
            return Err(Failure::IllegalOperation);
        }
        args.need(2)?;
        let (untyped, _) = (args.cap(0)?, args.cap(1)?);
        let Some(number) = self.asid_pools.iter().position(Option::is_none) else {
            return Err(Failure::DeleteFirst);
        };
        let Cap::Untyped { addr, bits: ASID_POOL_BITS, is_device: false, .. } = untyped.unpack()
        else {
            return Err(Failure::InvalidCapability(1));
        };
        if tree::has_children(untyped) {
            return Err(Failure::RevokeFirst);
        }
        let destination = args.empty_slot(1, args.word(0), args.word(1))?;
        window::zero(addr, 1 << ASID_POOL_BITS);
        untyped.cap.set(
            Cap::Untyped {
                addr,
                bits: ASID_POOL_BITS,
                is_device: false,
                free: 1 << ASID_POOL_BITS,
            }
            .pack(),
        );
        let base = (number * ASID_POOL_ENTRIES) as u16;
        tree::insert(Cap::AsidPool { addr, base }, untyped, destination);
        self.asid_pools[number] = Some(Ref::at(addr));
        Ok(0)
    }

    pub(crate) fn decode_asid_pool(&mut self, addr: PhysAddr, base: u16, args: &Args) -> Outcome {
        if args.label != Label::X86ASIDPoolAssign as u64 {
            return Err(Failure::IllegalOperation);
        }
        let target = args.cap(0)?;
        let Cap::Root { tag, addr: root, asid: 0 } = target.unpack() else {
            return Err(Failure::InvalidCapability(1));
        };
        let pool: Ref<AsidPool> = Ref::at(addr);
        match self.asid_pools[usize::from(base) / ASID_POOL_ENTRIES] {
            None => return Err(no_space()),
            Some(known) if known != pool => return Err(Failure::InvalidCapability(0)),
            Some(_) => {}
        }
        // ASID 0 means "none".
        let first = usize::from(base == 0);
        let Some(free) = (first..ASID_POOL_ENTRIES).find(|entry| pool.roots[*entry].get() == 0)
        else {
            return Err(Failure::DeleteFirst);
        };
        let asid = base + free as u16;
        let nested = if tag == Tag::NptPml4 { NESTED } else { 0 };
        pool.roots[free].set(root.0 | nested);
        target.cap.set(Cap::Root { tag, addr: root, asid }.pack());
        if tag == Tag::NptPml4 {
            self.init_nested_root(root);
        }
        Ok(0)
    }

    /// A nested space ends: its ASID is free again.
    pub(crate) fn delete_nested_asid(&mut self, asid: u16, root: u64) {
        if asid != 0
            && self.nested_of_asid(asid) == root
            && let Some(pool) = self.asid_pools[usize::from(asid) / ASID_POOL_ENTRIES]
        {
            pool.roots[usize::from(asid) % ASID_POOL_ENTRIES].set(0);
        }
    }

    /// An address space ends: nobody finds or uses it any more.
    pub(crate) fn delete_asid(&mut self, asid: u16, root: u64) {
        if asid != 0 && self.root_of_asid(asid) == root {
            if let Some(pool) = self.asid_pools[usize::from(asid) / ASID_POOL_ENTRIES] {
                pool.roots[usize::from(asid) % ASID_POOL_ENTRIES].set(0);
            }
            self.retire(PhysAddr(root), asid);
        }
    }

    fn retire(&mut self, root: PhysAddr, asid: u16) {
        self.hw.retire_space(root, asid);
        for core in 0..self.core_count {
            if self.cores[core].root == root.0 {
                self.cores[core].root = 0;
                if core == self.core {
                    self.hw.switch_space(core, None);
                }
            }
        }
    }

    /// A pool ends, and with it every space that has its ASID from there.
    pub(crate) fn delete_asid_pool(&mut self, addr: PhysAddr, base: u16) {
        let number = usize::from(base) / ASID_POOL_ENTRIES;
        let pool: Ref<AsidPool> = Ref::at(addr);
        if self.asid_pools[number] != Some(pool) {
            return;
        }
        self.asid_pools[number] = None;
        for (position, entry) in pool.roots.iter().enumerate() {
            let root = entry.get();
            if root & NESTED != 0 {
                self.nested_root_retired(PhysAddr(root & !NESTED));
            } else if root != 0 {
                self.retire(PhysAddr(root), base + position as u16);
            }
        }
    }
}

/// Makes a capability for a part of a large frame, below the large one in the derivation tree.
fn derive_frame(slot: Ref<Slot>, frame: FrameCap, args: &Args) -> Outcome {
    args.need(4)?;
    let (index, depth) = (args.word(0), args.word(1));
    let (offset, bits) = (args.word(2), args.word(3));
    let Some(size) = FrameSize::from_bits(bits).filter(|size| (*size as u8) < frame.size as u8)
    else {
        return Err(Failure::InvalidArgument(3));
    };
    if offset & ((1 << bits) - 1) != 0 {
        return Err(Failure::Alignment);
    }
    if offset >= 1 << frame.size.bits() {
        return Err(Failure::Range(0, (1 << frame.size.bits()) - (1 << bits)));
    }
    let destination = args.empty_slot(0, index, depth)?;
    let child = FrameCap {
        addr: frame.addr.offset(offset),
        size,
        kind: MapKind::None,
        mapping: Mapping { asid: 0, vaddr: 0 },
        ..frame
    };
    tree::insert_child(Cap::Frame(child), slot, destination);
    Ok(0)
}
