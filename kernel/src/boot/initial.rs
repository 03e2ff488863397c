//! The initial thread: its objects, its capabilities, its address space, and the page that tells it about them.
//!
//! Everything is written once, before any other thread exists: capabilities made here are the roots of the derivation tree.

use abi::bootinfo::{ExtraHeader, MBMMAP_ENTRIES, extra_id, slot};
use abi::context::index;
use abi::object::TCB_BITS;
use abi::{BootInfo, CNodeCapData, CapRights, SlotRegion, UntypedDesc};

use super::elf::Image;
use super::loader::{LoaderError, MapEntry, RSDP_BYTES};
use super::plan;
use super::regions::{Region, RegionSet, TooManyRegions};
use crate::cap::raw::{FrameCap, FrameSize, MapKind, Mapping, Tag};
use crate::cap::{Cap, Slot};
use crate::hw::Hw;
use crate::limits::{BOOT_TIME_SLICE_US, IRQ_LINES};
use crate::mem::window::{Words, zero};
use crate::mem::{PhysAddr, Ref};
use crate::object::sched_context::SchedContext;
use crate::object::tcb::{Tcb, ThreadState, tcb_slot};
use crate::sched::refill;
use crate::{AsidPool, Kernel};

const PAGE: u64 = 4096;
/// ASID of the initial address space.
const INITIAL_ASID: u16 = 1;
/// Size of the initial scheduling context: two refills.
const SCHED_CONTEXT_BITS: u32 = 7;
/// Pages after the image: IPC buffer, BootInfo, extra area.
pub const PAGES_BEHIND_IMAGE: u64 = 2 + EXTRA_PAGES;
/// Pages of the extra area: its items never fill one.
const EXTRA_PAGES: u64 = 1;

const PTE_USER: u64 = 1 | 2 | 4;

/// What boot found, for the initial thread.
pub struct Input<'a> {
    /// The root task's image.
    pub image: &'a Image,
    /// Physical address of its zeroed and filled copy.
    pub image_base: u64,
    /// All memory from 1 MiB up.
    pub memory: &'a RegionSet,
    /// Pages that belong to the kernel or to devices it drives.
    pub reserved: &'a [Region],
    /// Number of cores.
    pub cores: u32,
    /// The firmware's memory map.
    pub map: &'a [MapEntry],
    /// ACPI root pointer.
    pub rsdp: &'a [u8; RSDP_BYTES],
}

/// Why there is no initial thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialError {
    /// Memory is too small or too fragmented.
    NoMemory {
        /// Bytes wanted in one piece.
        wanted: u64,
        /// What for.
        what: &'static str,
    },
    /// Memory has more pieces than the kernel keeps.
    TooManyRegions,
}

impl From<TooManyRegions> for InitialError {
    fn from(_: TooManyRegions) -> Self {
        Self::TooManyRegions
    }
}

impl From<LoaderError> for InitialError {
    fn from(_: LoaderError) -> Self {
        Self::TooManyRegions
    }
}

impl core::fmt::Display for InitialError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoMemory { wanted, what } => {
                write!(f, "too little memory: no free {} KiB for {what}", wanted.div_ceil(1024))
            }
            Self::TooManyRegions => f.write_str("memory is in too many pieces"),
        }
    }
}

/// Objects one after another in a block of zeroed memory.
struct Bump {
    next: u64,
    end: u64,
}

impl Bump {
    /// The next `bytes` bytes; sizes were summed up before, so the block is long enough.
    fn take(&mut self, bytes: u64) -> PhysAddr {
        let at = self.next;
        self.next += bytes;
        debug_assert!(self.next <= self.end);
        PhysAddr(at)
    }
}

/// The initial CNode while it is filled.
struct Slots {
    cnode: Ref<Slot>,
    next: u64,
}

impl Slots {
    fn set(&self, number: u64, cap: Cap) -> Ref<Slot> {
        let slot = self.cnode.add(number);
        slot.cap.set(cap.pack());
        slot.set_links(None, None, (true, true));
        slot
    }

    fn push(&mut self, cap: Cap) -> u64 {
        let number = self.next;
        self.set(number, cap);
        self.next += 1;
        number
    }

    fn region_from(&self, start: u64) -> SlotRegion {
        SlotRegion { start, end: self.next }
    }
}

/// A capability of the initial thread kept in its TCB: derived from the one in the CNode.
fn derive(parent: Ref<Slot>, child: Ref<Slot>) {
    child.cap.set(parent.cap.get());
    let next = parent.next();
    child.set_links(Some(parent), next, (false, false));
    if let Some(next) = next {
        next.prev.set(Some(child));
    }
    parent.set_next(Some(child));
}

fn frame(addr: u64, vaddr: u64) -> Cap {
    Cap::Frame(FrameCap {
        addr: PhysAddr(addr),
        size: FrameSize::Small,
        rights: CapRights(3),
        is_device: false,
        kind: MapKind::VSpace,
        mapping: Mapping { asid: INITIAL_ASID, vaddr },
    })
}

/// Address space being built: the table in use at each level.
struct Space {
    root: PhysAddr,
}

impl Space {
    /// Makes all tables for `start..end`, level by level, and pushes their capabilities.
    fn make_tables(&self, bump: &mut Bump, slots: &mut Slots, start: u64, end: u64) {
        for (tag, bits) in [(Tag::Pdpt, 39), (Tag::PageDirectory, 30), (Tag::PageTable, 21)] {
            for span in start >> bits..=(end - 1) >> bits {
                let vaddr = span << bits;
                let table = bump.take(PAGE);
                let mapping = Some(Mapping { asid: INITIAL_ASID, vaddr });
                slots.push(Cap::Table { tag, addr: table, mapping });
                self.set(vaddr, bits, table.0 | PTE_USER);
            }
        }
    }

    /// Writes the entry for `vaddr` whose span is 2^`bits` bytes; the levels above exist.
    fn set(&self, vaddr: u64, bits: u32, entry: u64) {
        let mut table = Words(self.root);
        let mut level = 39;
        while level > bits {
            table = Words(PhysAddr(table.get(Self::index(vaddr, level)) & 0xf_ffff_ffff_f000));
            level -= 9;
        }
        table.set(Self::index(vaddr, bits), entry);
    }

    const fn index(vaddr: u64, bits: u32) -> usize {
        (vaddr >> bits) as usize & 511
    }
}

/// Makes the initial thread and queues it on core 0. `free` is memory nobody uses; what the objects take is cut out of it, the rest
/// becomes untyped capabilities.
///
/// # Errors
/// See [`InitialError`].
pub fn build<H: Hw>(
    kernel: &mut Kernel<H>,
    input: &Input<'_>,
    free: &mut RegionSet,
) -> Result<Ref<Tcb>, InitialError> {
    let image = input.image;
    let ipc_buffer = image.end;
    let bootinfo_vaddr = ipc_buffer + PAGE;
    let extra_vaddr = bootinfo_vaddr + PAGE;
    let end = image.end + PAGES_BEHIND_IMAGE * PAGE;
    let (pdpts, directories, page_tables) = plan::tables(image.start, end);
    let tables = pdpts + directories + page_tables;
    let wanted = plan::slots(u64::from(input.cores), tables, EXTRA_PAGES, image.pages());
    let radix = plan::cnode_radix(wanted);

    let cnode_bytes = (size_of::<Slot>() as u64) << radix;
    // IRQ slots, TCB and scheduling context share two pages; then root, ASID pool, IPC buffer, BootInfo, extra area, tables.
    let total = cnode_bytes + (2 + 4 + EXTRA_PAGES + tables) * PAGE;
    let base = free.take_high(total, PAGE, u64::MAX)?;
    let base = base.ok_or(InitialError::NoMemory { wanted: total, what: "the first objects" })?;
    zero(PhysAddr(base), total);
    let mut bump = Bump { next: base, end: base + total };

    let mut slots = Slots { cnode: Ref::at(bump.take(cnode_bytes)), next: slot::FIRST_FREE };
    let irq_slots = bump.take(PAGE);
    let tcb_addr = bump.take(1 << TCB_BITS);
    let context_addr = bump.take(PAGE - (1 << TCB_BITS));
    let root = bump.take(PAGE);
    let pool = bump.take(PAGE);
    let buffer_frame = bump.take(PAGE);
    let bootinfo_frame = bump.take(PAGE);
    let extra_frame = bump.take(EXTRA_PAGES * PAGE);

    // Capabilities with fixed slots.
    let guard = CNodeCapData::new(0, 64 - u64::from(radix));
    let cnode = slots.set(slot::CNODE, Cap::CNode { addr: slots.cnode.addr(), radix, guard });
    slots.set(slot::TCB, Cap::Thread { addr: tcb_addr });
    let vspace =
        slots.set(slot::VSPACE, Cap::Root { tag: Tag::Pml4, addr: root, asid: INITIAL_ASID });
    slots.set(slot::IRQ_CONTROL, Cap::IrqControl);
    slots.set(slot::ASID_CONTROL, Cap::AsidControl);
    slots.set(slot::ASID_POOL, Cap::AsidPool { addr: pool, base: 0 });
    slots.set(slot::IO_PORT_CONTROL, Cap::IoPortControl);
    slots.set(slot::BOOT_INFO_FRAME, frame(bootinfo_frame.0, bootinfo_vaddr));
    let buffer = slots.set(slot::IPC_BUFFER, frame(buffer_frame.0, ipc_buffer));
    slots.set(slot::DOMAIN, Cap::Domain);
    slots.set(
        slot::SCHED_CONTEXT,
        Cap::SchedContext { addr: context_addr, bits: SCHED_CONTEXT_BITS },
    );

    // The others, in the documented order.
    let start = slots.next;
    for core in 0..input.cores {
        slots.push(Cap::SchedControl { core });
    }
    let sched_control = slots.region_from(start);

    let space = Space { root };
    kernel.hw.init_root(root);
    let start = slots.next;
    space.make_tables(&mut bump, &mut slots, image.start, end);
    let user_image_paging = slots.region_from(start);

    let start = slots.next;
    for page in 0..EXTRA_PAGES {
        slots.push(frame(extra_frame.0 + page * PAGE, extra_vaddr + page * PAGE));
    }
    let extra_bi_pages = slots.region_from(start);

    let start = slots.next;
    for page in 0..image.pages() {
        slots.push(frame(input.image_base + page * PAGE, image.start + page * PAGE));
    }
    let user_image_frames = slots.region_from(start);

    let map = |vaddr: u64, addr: u64| space.set(vaddr, 12, addr | PTE_USER);
    for page in 0..image.pages() {
        map(image.start + page * PAGE, input.image_base + page * PAGE);
    }
    map(ipc_buffer, buffer_frame.0);
    map(bootinfo_vaddr, bootinfo_frame.0);
    for page in 0..EXTRA_PAGES {
        map(extra_vaddr + page * PAGE, extra_frame.0 + page * PAGE);
    }

    let list = plan::untypeds(input.memory, input.reserved, free)?;
    let start = slots.next;
    for untyped in &list {
        let bits = u32::from(untyped.size_bits);
        let is_device = untyped.is_device != 0;
        // Memory counts as used up, so that its first use clears whatever firmware and loader left there.
        let used = if is_device { 0 } else { 1 << bits };
        slots.push(Cap::Untyped { addr: PhysAddr(untyped.paddr), bits, is_device, free: used });
    }
    let untyped = slots.region_from(start);

    let mut info = BootInfo {
        extra_len: write_extra(
            PhysAddr(extra_frame.0),
            input,
            ((kernel.hw.tsc_hz() + 500_000) / 1_000_000) as u32,
        ),
        node_id: 0,
        num_nodes: input.cores.into(),
        num_iopt_levels: u64::MAX,
        ipc_buffer,
        empty: SlotRegion { start: slots.next, end: 1 << radix },
        shared_frames: SlotRegion::default(),
        user_image_frames,
        user_image_paging,
        io_space_caps: SlotRegion::default(),
        extra_bi_pages,
        init_thread_cnode_size_bits: radix.into(),
        init_thread_domain: 0,
        sched_control,
        untyped,
        untyped_list: [UntypedDesc::default(); _],
    };
    for (to, from) in info.untyped_list.iter_mut().zip(&list) {
        *to = *from;
    }
    write_bootinfo(Words(bootinfo_frame), &info);

    let tcb = Ref::<Tcb>::at(tcb_addr);
    kernel.hw.init_fpu(tcb);
    derive(cnode, tcb.slot(tcb_slot::CTABLE));
    derive(vspace, tcb.slot(tcb_slot::VTABLE));
    derive(buffer, tcb.slot(tcb_slot::BUFFER));
    tcb.set_reg(index::RIP, image.entry);
    tcb.set_reg(index::RDI, bootinfo_vaddr);
    tcb.sanitise();
    tcb.priority.set(u8::MAX);
    tcb.mcp.set(u8::MAX);
    tcb.state.set(ThreadState::Running);
    for (cell, byte) in tcb.name.iter().zip(b"root-task") {
        cell.set(*byte);
    }
    tcb.ipc_buffer.set(ipc_buffer);

    // Its time: round robin, released from now on.
    let context = Ref::<SchedContext>::at(context_addr);
    let slice = kernel.hw.tsc_hz() * BOOT_TIME_SLICE_US / 1_000_000;
    let now = kernel.hw.now();
    refill::configure_new(context, slice, 0, 1, now);
    context.tcb.set(Some(tcb));
    tcb.sc.set(Some(context));

    // What the kernel itself remembers.
    let pool = Ref::<AsidPool>::at(pool);
    pool.roots[usize::from(INITIAL_ASID)].set(root.0);
    kernel.asid_pools[0] = Some(pool);
    kernel.irq_slots = Some(Ref::at(irq_slots));
    kernel.core_count = input.cores as usize;
    kernel.core = 0;
    kernel.enqueue(tcb);
    Ok(tcb)
}

const _: () = assert!(IRQ_LINES * size_of::<Slot>() <= PAGE as usize);

fn write_bootinfo(page: Words, info: &BootInfo) {
    let head = [
        info.extra_len,
        info.node_id,
        info.num_nodes,
        info.num_iopt_levels,
        info.ipc_buffer,
        info.empty.start,
        info.empty.end,
        info.shared_frames.start,
        info.shared_frames.end,
        info.user_image_frames.start,
        info.user_image_frames.end,
        info.user_image_paging.start,
        info.user_image_paging.end,
        info.io_space_caps.start,
        info.io_space_caps.end,
        info.extra_bi_pages.start,
        info.extra_bi_pages.end,
        info.init_thread_cnode_size_bits,
        info.init_thread_domain,
        info.sched_control.start,
        info.sched_control.end,
        info.untyped.start,
        info.untyped.end,
    ];
    const _: () = assert!(core::mem::offset_of!(BootInfo, untyped_list) == 23 * 8);
    for (word, value) in head.into_iter().enumerate() {
        page.set(word, value);
    }
    for (number, untyped) in info.untyped_list.iter().enumerate() {
        page.set(23 + 2 * number, untyped.paddr);
        let sizes = u64::from(untyped.size_bits) | u64::from(untyped.is_device) << 8;
        page.set(24 + 2 * number, sizes);
    }
}

/// Writes bytes one after another, packed, as the items of the extra area are.
struct Bytes {
    page: Words,
    at: usize,
}

impl Bytes {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let (word, shift) = (self.at / 8, self.at % 8 * 8);
            let old = self.page.get(word);
            self.page.set(word, old | u64::from(*byte) << shift);
            self.at += 1;
        }
    }

    fn header(&mut self, id: u64, body: usize) {
        let len = (size_of::<ExtraHeader>() + body) as u64;
        self.put(&id.to_le_bytes());
        self.put(&len.to_le_bytes());
    }
}

/// Fills the (zeroed) extra area; returns the bytes used.
fn write_extra(page: PhysAddr, input: &Input<'_>, tsc_mhz: u32) -> u64 {
    let mut out = Bytes { page: Words(page), at: 0 };
    out.header(extra_id::X86_ACPI_RSDP, RSDP_BYTES);
    out.put(input.rsdp);
    let entries = input.map.len().min(MBMMAP_ENTRIES);
    let entry_bytes = 24;
    out.header(extra_id::X86_MBMMAP, 4 + MBMMAP_ENTRIES * entry_bytes);
    out.put(&((entries * entry_bytes) as u32).to_le_bytes());
    for number in 0..MBMMAP_ENTRIES {
        match input.map.get(number) {
            Some(entry) => {
                out.put(&20u32.to_le_bytes());
                out.put(&entry.base.to_le_bytes());
                out.put(&entry.length.to_le_bytes());
                out.put(&entry.kind.to_le_bytes());
            }
            None => out.put(&[0; 24]),
        }
    }
    out.header(extra_id::X86_TSC_FREQUENCY, 4);
    out.put(&tsc_mhz.to_le_bytes());
    out.at as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::elf::Segment;
    use crate::mem::window::Arena;
    use crate::model::{Model, TSC_HZ, check};
    use crate::{Resume, model};

    const MEMORY: u64 = 32 << 20;
    const IMAGE_BASE: u64 = 0x20_0000;

    fn image() -> Image {
        let mut segments = heapless::Vec::new();
        segments.push(Segment { vaddr: 0x3f_f000, offset: 0, filesz: 1 }).unwrap();
        Image { start: 0x3f_f000, end: 0x40_3000, entry: 0x40_0008, segments }
    }

    fn built() -> (Arena, Kernel<Model>, Ref<Tcb>, RegionSet) {
        let arena = Arena::new(MEMORY as usize);
        let mut kernel = Kernel::new(Model::default());
        let mut memory = RegionSet::new();
        memory.insert(Region::new(0x10_0000, MEMORY)).unwrap();
        let mut free = memory.clone();
        let image = image();
        free.remove(Region::new(0x10_0000, IMAGE_BASE + image.pages() * PAGE)).unwrap();
        let input = Input {
            image: &image,
            image_base: IMAGE_BASE,
            memory: &memory,
            reserved: &[Region::new(0x10_0000, IMAGE_BASE), Region::new(0xfee0_0000, 0xfee0_1000)],
            cores: model::CORES as u32,
            map: &[MapEntry { base: 0x10_0000, length: MEMORY - 0x10_0000, kind: 1 }],
            rsdp: b"RSD PTR 0123456789abcdefghijklmnopqr",
        };
        let tcb = build(&mut kernel, &input, &mut free).unwrap();
        (arena, kernel, tcb, free)
    }

    /// The table walk a processor would do.
    fn translate(root: u64, vaddr: u64) -> Option<u64> {
        let mut table = root;
        for level in [39, 30, 21, 12] {
            let entry = Words(PhysAddr(table)).get((vaddr >> level) as usize & 511);
            if entry & 7 != 7 {
                return None;
            }
            table = entry & 0xf_ffff_ffff_f000;
        }
        Some(table)
    }

    #[test]
    fn the_initial_thread_finds_what_bootinfo_says() {
        let (_arena, kernel, tcb, free) = built();
        let image = image();
        assert_eq!(tcb.reg(index::RIP), 0x40_0008);
        assert_eq!(tcb.reg(index::RSP), 0);
        assert_eq!(tcb.reg(index::RDI), image.end + PAGE);
        let root = tcb.slot(tcb_slot::VTABLE).cap.get().addr().0;
        let info = Words(PhysAddr(translate(root, tcb.reg(index::RDI)).unwrap()));
        let region = |word: usize| info.get(word)..info.get(word + 1);
        let cap = |number: u64| kernel_slot(tcb, number).unpack();
        assert_eq!((info.get(0), info.get(1), info.get(2)), (1292, 0, model::CORES as u64));
        assert_eq!((info.get(3), info.get(4)), (u64::MAX, image.end));
        // Regions follow each other as documented: SchedControl, tables, extra area, frames, untypeds, empty slots.
        let (empty, frames, paging) = (region(5), region(9), region(11));
        let (extra, control, untyped) = (region(15), region(19), region(21));
        assert_eq!(control, slot::FIRST_FREE..slot::FIRST_FREE + 2);
        assert_eq!((paging.start, extra.start), (control.end, paging.end));
        assert_eq!((frames.start, untyped.start), (extra.end, frames.end));
        assert_eq!((empty.start, empty.end), (untyped.end, 1 << info.get(17)));
        assert!(empty.end - empty.start >= 8192);
        assert_eq!(cap(control.start + 1), Cap::SchedControl { core: 1 });
        assert_eq!(frames.end - frames.start, image.pages());
        for (page, number) in frames.enumerate() {
            let vaddr = image.start + page as u64 * PAGE;
            let addr = IMAGE_BASE + page as u64 * PAGE;
            assert_eq!(cap(number), frame(addr, vaddr));
            assert_eq!(translate(root, vaddr), Some(addr));
        }
        // One PDPT, one directory, two page tables: the image straddles a 2 MiB boundary.
        assert_eq!(paging.end - paging.start, 4);
        assert_eq!(translate(root, image.start - PAGE), None);
        assert_eq!(translate(root, image.end + PAGES_BEHIND_IMAGE * PAGE), None);
        // The list names each capability, and memory given away is exactly what is left.
        let mut bytes = 0;
        for (number, slot) in untyped.enumerate() {
            let (paddr, sizes) = (info.get(23 + 2 * number), info.get(24 + 2 * number));
            let is_device = sizes >> 8 & 1 != 0;
            let expected = 1 << (sizes & 0xff);
            let used = if is_device { 0 } else { expected };
            let addr = PhysAddr(paddr);
            assert_eq!(
                cap(slot),
                Cap::Untyped { addr, bits: (sizes & 0xff) as u32, is_device, free: used }
            );
            bytes += used;
        }
        assert_eq!(bytes, free.as_slice().iter().map(Region::len).sum::<u64>());
        assert_eq!(kernel.core_count, model::CORES);
    }

    fn kernel_slot(tcb: Ref<Tcb>, number: u64) -> Ref<Slot> {
        Ref::<Slot>::at(tcb.slot(tcb_slot::CTABLE).cap.get().addr()).add(number)
    }

    #[test]
    fn the_extra_area_holds_root_pointer_map_and_frequency() {
        let (_arena, _kernel, tcb, _free) = built();
        let root = tcb.slot(tcb_slot::VTABLE).cap.get().addr().0;
        let page = Words(PhysAddr(translate(root, tcb.reg(index::RDI) + PAGE).unwrap()));
        let byte = |at: usize| (page.get(at / 8) >> (at % 8 * 8)) as u8;
        let word =
            |at: usize| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        assert_eq!((word(0), word(8)), (extra_id::X86_ACPI_RSDP as u32, 52));
        assert_eq!((byte(16), byte(51)), (b'R', b'r'));
        assert_eq!((word(52), word(60)), (extra_id::X86_MBMMAP as u32, 1220));
        assert_eq!((word(68), word(72), word(76)), (24, 20, 0x10_0000));
        assert_eq!((word(1272), word(1280)), (extra_id::X86_TSC_FREQUENCY as u32, 20));
        assert_eq!(u64::from(word(1288)), TSC_HZ / 1_000_000);
    }

    #[test]
    fn the_kernel_starts_the_thread_and_its_invariants_hold() {
        let (_arena, mut kernel, tcb, _free) = built();
        assert_eq!(kernel.start_core(0), Resume::User(tcb));
        check::all(&mut kernel, kernel_slot(tcb, 0));
        assert_eq!(kernel.hw.deadlines[0], Some(TSC_HZ / 1_000_000 * BOOT_TIME_SLICE_US));
    }

    #[test]
    fn too_little_memory_is_an_error_with_the_size() {
        let _arena = Arena::new(4 << 20);
        let mut kernel = Kernel::new(Model::default());
        let mut free = RegionSet::new();
        free.insert(Region::new(0x10_0000, 0x11_0000)).unwrap();
        let memory = free.clone();
        let image = image();
        let input = Input {
            image: &image,
            image_base: 0x20_0000,
            memory: &memory,
            reserved: &[],
            cores: 1,
            map: &[],
            rsdp: &[0; RSDP_BYTES],
        };
        let error = build(&mut kernel, &input, &mut free).unwrap_err();
        assert!(matches!(error, InitialError::NoMemory { wanted, .. } if wanted > 0x1_0000));
    }
}
