//! Takes the machine's disks: their registers, interrupts and memory for DMA, so that an io-sched-server gets its own and no other's.

use heapless::Vec;
use protocol::startup::{self, DmaRegion, IoStart, Region, VirtioDisk};
use protocol::system::System;
use protocol::units::{DiskId, MACHINE_DISKS_MAX, PAGE_SIZE};
use root_task::arena::Arena;
use root_task::pci::{self, Disk, Registers, Unusable};
use sel4::init_thread::slot;
use sel4::{BootInfoPtr, Cap, CapRights, ObjectBlueprint, VmAttributes, cap, debug_println};

use super::objects::{Fail, Objects, Tried, here};
use super::pci::{Configuration, FIRST_PORT, LAST_PORT};
use super::window::{self, SCRATCH_VADDR};

/// Interrupt vector of the first disk (of the user's 0..=107); the others' follow.
const FIRST_VECTOR: u64 = 16;
/// CPU vector of user vector 0, for message-signalled interrupts.
const CPU_VECTOR_BASE: u64 = 48;
/// Message address of local APIC 0.
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// Memory of a device's queues.
const DMA_BYTES: u64 = 128 << 10;
/// Most pages of registers of a disk.
const REGISTER_PAGES_MAX: usize = 16;
/// Address space of one of a disk's structures.
const STRUCTURE_STRIDE: u64 = 0x10_0000;

/// What an io-sched-server needs of the machine; kept over its restarts.
#[derive(Debug)]
pub struct DiskDevices {
    /// Register frames by the virtual address where each is mapped; one may be mapped twice.
    pub registers: Vec<(u64, cap::Granule), REGISTER_PAGES_MAX>,
    /// DMA frames, first slot and number.
    pub dma: (u64, u64),
    /// The pages where the servers of all disks tell each other what they did for groups, by disk; none if there is one disk.
    pub progress: Vec<cap::Granule, MACHINE_DISKS_MAX>,
    /// Its interrupt, if the machine has this disk.
    pub interrupt: Option<cap::IrqHandler>,
    /// What the server is told.
    pub start: IoStart,
}

/// Device memory: untypeds split until one is just the page wanted.
struct DeviceMemory {
    /// Slot, first address, log2 of the size.
    pieces: Vec<(u64, u64, u64), 256>,
}

/// A disk cannot be taken: because of what it says, or the kernel's refusal.
enum Untaken {
    Unusable(Unusable),
    Fail(Fail),
}

impl From<Fail> for Untaken {
    fn from(fail: Fail) -> Self {
        Self::Fail(fail)
    }
}

impl DeviceMemory {
    fn new(boot: &BootInfoPtr) -> Self {
        let mut pieces = Vec::new();
        for (slot, untyped) in (boot.untyped().start()..).zip(boot.untyped_list()) {
            if untyped.is_device() {
                let _ = pieces.push((slot, untyped.paddr(), u64::from(untyped.size_bits())));
            }
        }
        Self { pieces }
    }

    /// The frame at `paddr`, which is given out once: not for another disk that claims the same place.
    fn frame(
        &mut self,
        objects: &mut Objects,
        arena: &mut Arena,
        paddr: u64,
    ) -> Result<cap::Granule, Untaken> {
        loop {
            let holds =
                |piece: &(u64, u64, u64)| paddr >= piece.1 && paddr - piece.1 < 1 << piece.2;
            let place = self.pieces.iter().position(holds);
            let place = place.ok_or(Untaken::Unusable(Unusable::Taken))?;
            let (number, start, bits) = self.pieces.swap_remove(place);
            let root = slot::CNODE.cap().absolute_cptr_for_self();
            let untyped = cap::Untyped::from_bits(number);
            if bits == 12 {
                let frame = arena.slots(1, &mut objects.slots).map_err(Fail::Short)?.start;
                let blueprint = sel4::FrameObjectType::_4k.blueprint();
                untyped.untyped_retype(&blueprint, &root, frame, 1).tried("device frame")?;
                return Ok(Cap::from_bits(frame));
            }
            let halves = arena.slots(2, &mut objects.slots).map_err(Fail::Short)?.start;
            let blueprint = ObjectBlueprint::Untyped { size_bits: bits - 1 };
            untyped.untyped_retype(&blueprint, &root, halves, 2).tried("split device memory")?;
            for half in 0..2 {
                let piece = (halves + half, start + (half << (bits - 1)), bits - 1);
                let pushed = self.pieces.push(piece);
                pushed.map_err(|_| Fail::Archive("device memory is in too many pieces"))?;
            }
        }
    }
}

/// Makes a capability for ports `first..=last`.
pub fn ports(
    objects: &mut Objects,
    arena: &mut Arena,
    first: u16,
    last: u16,
) -> Result<cap::IOPort, Fail> {
    let number = arena.slots(1, &mut objects.slots)?.start;
    slot::IO_PORT_CONTROL
        .cap()
        .ioport_control_issue(first, last, &here(number))
        .tried("issue ports")?;
    Ok(Cap::from_bits(number))
}

/// Finds the disks, configures them and takes what their servers need. A disk that the system has and the machine has
/// not, or that cannot be used, gets a server that says so.
pub fn find(
    boot: &BootInfoPtr,
    objects: &mut Objects,
    arena: &mut Arena,
    system: &System,
) -> Result<Vec<DiskDevices, MACHINE_DISKS_MAX>, Fail> {
    let ports = ports(objects, arena, FIRST_PORT, LAST_PORT)?;
    let mut space = Configuration(ports);
    let found = pci::disks(&mut space).tried("read PCI configuration")?;
    let mut memory = DeviceMemory::new(boot);
    let progress = progress_pages(objects, arena, system.disks)?;
    let mut all = Vec::new();
    for disk in (0..system.disks).map(DiskId) {
        let pages = DMA_BYTES / PAGE_SIZE;
        let blueprint = sel4::FrameObjectType::_4k.blueprint();
        let (first, paddr) = objects.make_at(arena, blueprint, pages)?;
        let start = IoStart {
            disk,
            disks: system.disks,
            device: None,
            dma: DmaRegion { vaddr: startup::DMA_VADDR, paddr, bytes: DMA_BYTES },
            policy: system.io_policy,
            groups: system.groups.clone(),
            model: system.disk_model.clone(),
            restarted: false,
        };
        let mut devices = DiskDevices {
            registers: Vec::new(),
            dma: (first, pages),
            progress: progress.clone(),
            interrupt: None,
            start,
        };
        let taken = match found.get(disk.index()) {
            None => Ok(()),
            Some(Err(unusable)) => Err(Untaken::Unusable(*unusable)),
            Some(Ok(found)) => devices.take(objects, arena, &mut memory, found, &mut space),
        };
        match taken {
            Ok(()) => {}
            Err(Untaken::Unusable(why)) => {
                debug_println!("root-task: disk {} cannot be used: {why:?}", disk.0);
                let [what, with] = why.words();
                defmt::error!("disk {=u8} cannot be used: {=str}{=str}", disk.0, what, with);
            }
            Err(Untaken::Fail(fail)) => return Err(fail),
        }
        all.push(devices).map_err(|_| Fail::Archive("too many disks"))?;
    }
    Ok(all)
}

/// The pages of [`protocol::progress`]: kept over a restart of a server, for they only ever grow.
fn progress_pages(
    objects: &mut Objects,
    arena: &mut Arena,
    disks: u8,
) -> Result<Vec<cap::Granule, MACHINE_DISKS_MAX>, Fail> {
    let mut pages = Vec::new();
    for _ in 0..if disks > 1 { disks } else { 0 } {
        let page = objects.make_frame(arena)?;
        pages.push(page).map_err(|_| Fail::Archive("too many disks"))?;
    }
    Ok(pages)
}

impl DiskDevices {
    /// Takes the registers and the interrupt of the disk that was found, and turns it on.
    fn take(
        &mut self,
        objects: &mut Objects,
        arena: &mut Arena,
        memory: &mut DeviceMemory,
        found: &Disk,
        space: &mut Configuration,
    ) -> Result<(), Untaken> {
        let mut frames: Vec<(u64, cap::Granule), REGISTER_PAGES_MAX> = Vec::new();
        let mut regions = [Region::default(); 3];
        let parts = [found.common, found.notify, found.device];
        for (number, (part, region)) in (0..).zip(parts.into_iter().zip(&mut regions)) {
            let vaddr = startup::REGISTERS_VADDR + number * STRUCTURE_STRIDE;
            for (page, paddr) in (0..).zip(part.pages()) {
                let known = frames.iter().find(|(known, _)| *known == paddr);
                let frame = match known {
                    Some((_, frame)) => *frame,
                    None => memory.frame(objects, arena, paddr)?,
                };
                let many = || Fail::Archive("too many registers");
                frames.push((paddr, frame)).map_err(|_| many())?;
                self.registers.push((vaddr + page * PAGE_SIZE, frame)).map_err(|_| many())?;
            }
            *region = Region { vaddr: vaddr + part.paddr % PAGE_SIZE, bytes: part.bytes };
        }
        let [common, notify, device] = regions;
        let notify_multiplier = found.notify_multiplier;
        pci::open(space, found).tried("open a disk")?;
        let interrupt = take_interrupt(objects, arena, found, self.start.disk)?;
        let table = memory.frame(objects, arena, first_page(found.interrupts))?;
        route(objects, arena, table, found.interrupts, self.start.disk)?;
        pci::enable(space, found).tried("turn on a disk")?;
        self.interrupt = Some(interrupt);
        self.start.device = Some(VirtioDisk { common, notify, notify_multiplier, device });
        Ok(())
    }
}

const fn first_page(registers: Registers) -> u64 {
    registers.paddr / PAGE_SIZE * PAGE_SIZE
}

const fn vector(disk: DiskId) -> u64 {
    FIRST_VECTOR + disk.0 as u64
}

fn take_interrupt(
    objects: &mut Objects,
    arena: &mut Arena,
    found: &Disk,
    disk: DiskId,
) -> Result<cap::IrqHandler, Fail> {
    let number = arena.slots(1, &mut objects.slots)?.start;
    let (device, function) = (u64::from(found.at.device), u64::from(found.at.function));
    slot::IRQ_CONTROL
        .cap()
        .irq_control_get_msi(0, device, function, 0, vector(disk), &here(number))
        .tried("take an interrupt")?;
    Ok(Cap::from_bits(number))
}

/// Fills the first entry of the disk's interrupt table. Only the root-task ever sees the table: whoever writes it can raise any
/// interrupt.
fn route(
    objects: &mut Objects,
    arena: &mut Arena,
    frame: cap::Granule,
    table: Registers,
    disk: DiskId,
) -> Result<(), Fail> {
    let own = slot::VSPACE.cap();
    let attributes = VmAttributes::CACHE_DISABLED;
    objects.map_with(arena, own, frame, SCRATCH_VADDR, CapRights::read_write(), attributes)?;
    let data = u32::try_from(CPU_VECTOR_BASE + vector(disk)).unwrap_or(0);
    // Address, its upper half, data, and not masked.
    window::write_registers((table.paddr % PAGE_SIZE) as usize, [MSI_ADDRESS, 0, data, 0]);
    frame.frame_unmap().tried("unmap a disk's interrupt table")
}
