//! The library's kernel calls, by `sel4`.

use mem_server::mechanism::Contents;
use mem_server::page::{FRAME_BYTES, Frame};
use mem_server::spaces::{HALF_SLAB_BITS, Kernel, Level, Object, SLAB_BITS, Slot, TOP_BITS};
use mem_server::swap::{Finished, Queue};
use protocol::io::DOORBELL;
use protocol::slots;
use protocol::startup::GUEST_WINDOW;
use protocol::units::{MAX_VMS, PAGE_SIZE, VmId};
use sel4::vcpu::harvest::CLEAR_ACCESSED;
use sel4::{
    AbsoluteCPtr, CNodeCapData, Cap, CapRights, Error, MessageInfo, ObjectBlueprint,
    ObjectBlueprintBallast, ObjectBlueprintX64, ObjectBlueprintX86, VmAttributes, cap,
};

use super::view::{View, block_vaddr};

/// Bits of a slot number: of the top CNode and of a slab.
const SLOT_BITS: u64 = (TOP_BITS + SLAB_BITS) as u64;
const FRAME_BITS: u64 = PAGE_SIZE.trailing_zeros() as u64;
const OWN_VSPACE: cap::VSpace = Cap::from_bits(slots::VSPACE);

/// Kernel calls of the running server.
pub struct Calls {
    top: cap::CNode,
    /// An empty slot of the first slab.
    spare: Slot,
    view: View,
    swap: Option<Queue>,
    /// Bit n: the vmm-server of VM n stands still until it is signalled.
    parked: u64,
}

impl Calls {
    /// Over the capability space whose top CNode is `top`, with guard 0; `spare` is an empty slot of its first slab.
    pub const fn new(top: cap::CNode, spare: Slot, view: View) -> Self {
        Self { top, spare, view, swap: None, parked: 0 }
    }

    /// The vmm-server of `vm` faulted on its window and is answered so that it stands still: the next signal lets it go on.
    pub const fn park(&mut self, vm: VmId) {
        self.parked |= 1 << vm.0;
    }

    /// The vmm-server of `vm` is not, or no longer, there.
    pub const fn forget(&mut self, vm: VmId) {
        self.parked &= !(1 << vm.0);
    }

    /// The swap partition's ring is there.
    pub fn attach_swap(&mut self) {
        match Queue::attach(runtime::shared::swap_ring()) {
            Ok(queue) => self.swap = Some(queue),
            Err(_) => defmt::error!("the swap ring has another layout"),
        }
    }

    /// Sends what was queued for the swap partition since the last call.
    #[inline]
    pub fn flush_swap(&mut self) {
        let Some(queue) = &mut self.swap else { return };
        if queue.flush(runtime::shared::swap_ring()) {
            let doorbell = MessageInfo::new(DOORBELL, 0, 0, 0);
            cap::Endpoint::from_bits(slots::MEM_IO_ENDPOINT).call_with_mrs(doorbell, [0; 4]);
        }
    }

    /// What the swap partition has finished; a page read is in its frame.
    pub fn swap_finished(&mut self) -> Option<Finished> {
        let (queue, view) = (self.swap.as_mut()?, &mut self.view);
        queue.poll(runtime::shared::swap_ring(), |frame, page| view.copy_in(frame, page))
    }

    #[inline(always)]
    fn path(&self, slot: Slot) -> AbsoluteCPtr {
        self.top.absolute_cptr_from_bits_with_depth(slot, SLOT_BITS)
    }
}

const fn vm_slot(vm: VmId, offset: u64) -> u64 {
    slots::MEM_VM + slots::MEM_VM_SLOTS * vm.0 as u64 + offset
}

const _: () = assert!(MAX_VMS <= 64);

const fn vspace(vm: VmId) -> cap::VSpace {
    Cap::from_bits(vm_slot(vm, slots::MEM_VM_VSPACE))
}

const fn rights(writable: bool) -> CapRights {
    if writable { CapRights::read_write() } else { CapRights::read_only() }
}

const fn blueprint(object: Object) -> ObjectBlueprint {
    use ObjectBlueprintX86::SeL4Arch;
    match object {
        Object::Untyped(bits) => ObjectBlueprint::Untyped { size_bits: bits as u64 },
        Object::Slab => ObjectBlueprint::CNode { size_bits: SLAB_BITS as u64 },
        Object::HalfSlab => ObjectBlueprint::CNode { size_bits: HALF_SLAB_BITS as u64 },
        Object::LargeFrame => ObjectBlueprint::Arch(ObjectBlueprintX86::LargePage),
        Object::NestedRoot => ObjectBlueprint::Ballast(ObjectBlueprintBallast::NptPml4),
        Object::NestedTable(level) => ObjectBlueprint::Ballast(match level {
            Level::Pdpt => ObjectBlueprintBallast::NptPdpt,
            Level::Directory => ObjectBlueprintBallast::NptPd,
            Level::Table => ObjectBlueprintBallast::NptPt,
        }),
        Object::WindowTable(level) => ObjectBlueprint::Arch(match level {
            Level::Pdpt => SeL4Arch(ObjectBlueprintX64::PDPT),
            Level::Directory => ObjectBlueprintX86::PageDirectory,
            Level::Table => ObjectBlueprintX86::PageTable,
        }),
    }
}

impl Kernel for Calls {
    fn retype(&mut self, untyped: Slot, object: Object, to: Slot) -> Result<(), u64> {
        // A slab goes into slot `to` of the top CNode, everything else into a slab; a half slab gets its guard on the way.
        let (destination, offset) = match object {
            Object::Slab => (self.top.absolute_cptr_for_self(), to),
            _ => {
                let to = if object == Object::HalfSlab { self.spare } else { to };
                let slab = to >> SLAB_BITS;
                let depth = u64::from(TOP_BITS);
                let path = self.top.absolute_cptr_from_bits_with_depth(slab, depth);
                (path, to & ((1 << SLAB_BITS) - 1))
            }
        };
        cap::Untyped::from_bits(untyped)
            .untyped_retype(&blueprint(object), &destination, offset, 1)
            .map_err(Error::number)?;
        if object == Object::HalfSlab {
            let guard = CNodeCapData::skip(u64::from(SLAB_BITS - HALF_SLAB_BITS)).into_word();
            let place = self.top.absolute_cptr_from_bits_with_depth(to, u64::from(TOP_BITS));
            if let Err(error) = place.mutate(&self.path(self.spare), guard) {
                self.delete(self.spare);
                return Err(error.number());
            }
        }
        Ok(())
    }

    fn delete(&mut self, slot: Slot) {
        if let Err(error) = self.path(slot).delete() {
            defmt::error!("delete of slot {=u64:#x}: error {=u64}", slot, error.number());
        }
    }

    fn revoke(&mut self, slot: Slot) {
        if let Err(error) = self.path(slot).revoke() {
            defmt::error!("revoke of slot {=u64:#x}: error {=u64}", slot, error.number());
        }
    }

    #[inline]
    fn derive(&mut self, block: Slot, offset: u32, to: Slot) -> Result<(), u64> {
        cap::LargePage::from_bits(block)
            .frame_derive(u64::from(offset) << FRAME_BITS, FRAME_BITS, &self.path(to))
            .map_err(Error::number)
    }

    #[inline]
    fn map_nested(&mut self, frame: Slot, root: Slot, gpa: u64, writable: bool) -> Result<(), u64> {
        cap::Granule::from_bits(frame)
            .frame_map_npt(cap::NptPml4::from_bits(root), gpa, rights(writable), 0)
            .map_err(Error::number)
    }

    fn map_nested_table(
        &mut self,
        table: Slot,
        level: Level,
        root: Slot,
        gpa: u64,
    ) -> Result<(), u64> {
        let root = cap::NptPml4::from_bits(root);
        match level {
            Level::Pdpt => cap::NptPdpt::from_bits(table).npt_pdpt_map(root, gpa),
            Level::Directory => cap::NptPd::from_bits(table).npt_pd_map(root, gpa),
            Level::Table => cap::NptPt::from_bits(table).npt_pt_map(root, gpa),
        }
        .map_err(Error::number)
    }

    fn unmap_nested_table(&mut self, table: Slot, level: Level) -> Result<(), u64> {
        match level {
            Level::Pdpt => cap::NptPdpt::from_bits(table).npt_pdpt_unmap(),
            Level::Directory => cap::NptPd::from_bits(table).npt_pd_unmap(),
            Level::Table => cap::NptPt::from_bits(table).npt_pt_unmap(),
        }
        .map_err(Error::number)
    }

    fn copy_block(&mut self, block: Slot, to: Slot) -> Result<(), u64> {
        self.path(to).copy(&self.path(block), CapRights::read_write()).map_err(Error::number)
    }

    fn map_nested_large(&mut self, frame: Slot, root: Slot, gpa: u64) -> Result<(), u64> {
        cap::LargePage::from_bits(frame)
            .frame_map_npt(cap::NptPml4::from_bits(root), gpa, rights(true), 0)
            .map_err(Error::number)
    }

    fn map_window(&mut self, frame: Slot, vm: VmId, gpa: u64, writable: bool) -> Result<(), u64> {
        cap::Granule::from_bits(frame)
            .frame_map(vspace(vm), GUEST_WINDOW + gpa, rights(writable), VmAttributes::DEFAULT)
            .map_err(Error::number)
    }

    fn map_window_table(
        &mut self,
        table: Slot,
        level: Level,
        vm: VmId,
        gpa: u64,
    ) -> Result<(), u64> {
        let (space, vaddr) = (vspace(vm), GUEST_WINDOW + gpa);
        let mapped = match level {
            Level::Pdpt => {
                cap::PDPT::from_bits(table).pdpt_map(space, vaddr, VmAttributes::DEFAULT)
            }
            Level::Directory => cap::PageDirectory::from_bits(table).page_directory_map(
                space,
                vaddr,
                VmAttributes::DEFAULT,
            ),
            Level::Table => {
                cap::PageTable::from_bits(table).page_table_map(space, vaddr, VmAttributes::DEFAULT)
            }
        };
        match mapped {
            // The vmm-server's own memory needs the upper tables too.
            Ok(()) | Err(Error::DeleteFirst) => Ok(()),
            Err(error) => Err(error.number()),
        }
    }

    fn map_own(&mut self, frame: Slot, block: u32) -> Result<(), u64> {
        map_own(frame, block_vaddr(block)).map_err(Error::number)
    }

    fn enter_root(&mut self, vm: VmId, root: Slot) -> Result<(), u64> {
        let root = cap::NptPml4::from_bits(root);
        cap::AsidPool::from_bits(slots::MEM_ASID_POOL)
            .asid_pool_assign(root)
            .and_then(|()| {
                cap::VCpu::from_bits(vm_slot(vm, slots::MEM_VM_VCPU)).vcpu_set_npt_root(root)
            })
            .map_err(Error::number)
    }

    fn signal_vmm(&mut self, vm: VmId) {
        cap::Notification::from_bits(vm_slot(vm, slots::MEM_VM_NOTIFY)).signal();
        if self.parked & 1 << vm.0 != 0 {
            self.parked &= !(1 << vm.0);
            // A thread that is ending cannot be resumed, and need not.
            let _ = cap::Tcb::from_bits(vm_slot(vm, slots::MEM_VM_TCB)).tcb_resume();
        }
    }

    fn ticks(&mut self) -> u64 {
        runtime::clock::tsc()
    }

    fn harvest(&mut self, root: Slot, gpa: u64, pages: u32, accessed: &mut [u64; 32]) -> bool {
        let mut dirty = [0; 32];
        cap::NptPml4::from_bits(root)
            .npt_harvest(gpa, u64::from(pages), CLEAR_ACCESSED, accessed, &mut dirty)
            .is_ok()
    }

    fn swap_write(&mut self, transfer: u32, slot: u32, page: Contents<'_>) -> bool {
        let (Some(queue), view) = (&mut self.swap, &self.view) else { return false };
        queue.write(runtime::shared::swap_ring(), transfer, slot, |to| match page {
            Contents::Frame(frame) => view.copy_out(frame, to),
            Contents::Bytes(bytes) => View::copy_bytes_out(bytes, to),
        })
    }

    fn swap_read(&mut self, transfer: u32, slot: u32, frame: Frame) -> bool {
        let Some(queue) = &mut self.swap else { return false };
        queue.read(runtime::shared::swap_ring(), transfer, slot, frame)
    }

    #[inline]
    fn zero(&mut self, frame: Frame) {
        self.view.zero(frame);
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        self.view.copy(from, to);
    }

    fn is_zero(&mut self, frame: Frame) -> bool {
        self.view.is_zero(frame)
    }

    fn hash(&mut self, frame: Frame, key: u64) -> u64 {
        self.view.hash(frame, key)
    }

    fn equal(&mut self, a: Frame, b: Frame) -> bool {
        self.view.equal(a, b)
    }

    fn load(&mut self, frame: Frame, bytes: &mut [u8; FRAME_BYTES]) {
        self.view.load(frame, bytes);
    }

    fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]) {
        self.view.store(frame, bytes);
    }
}

/// Maps a 2 MiB frame into the server's own address space.
///
/// # Errors
///
/// The kernel's.
pub fn map_own(frame: Slot, vaddr: u64) -> sel4::Result<()> {
    cap::LargePage::from_bits(frame).frame_map(
        OWN_VSPACE,
        vaddr,
        CapRights::read_write(),
        VmAttributes::DEFAULT,
    )
}
