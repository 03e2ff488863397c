//! The startup page: what a server is told when it starts, and where things lie in its memory.
//!
//! The root-task writes one postcard [`Startup`], preceded by its length in a little-endian u32,
//! into a page mapped read-only at [`STARTUP_VADDR`]. Addresses below are the same in every
//! server, so that neither side needs to be told them.

use crate::io::Policy;
use crate::slots::Client;
use crate::system::{DiskModel, GROUPS_MAX, Group, MODULES_MAX, MemoryPolicy, Vm};
use crate::units::{DiskId, Pages, VmId};
use heapless::Vec;
use serde::{Deserialize, Serialize};

/// Where every server is linked.
pub const IMAGE_VADDR: u64 = 0x40_0000;
/// The startup page, read-only.
pub const STARTUP_VADDR: u64 = 0x200_0000;
/// The IPC buffer: the first 1 KiB of its page.
pub const IPC_BUFFER_VADDR: u64 = 0x200_1000;
/// The page shared with the root-task: see [`shared`].
pub const SHARED_VADDR: u64 = 0x200_2000;
/// The page of defmt frames, drained by the root-task: a `ring::LogRing`.
pub const LOG_VADDR: u64 = 0x200_4000;
/// vmm-server: the page of console output and input: `ring::console_rings`.
pub const CONSOLE_VADDR: u64 = 0x200_8000;
/// End of the stack; the page below its bottom stays unmapped.
pub const STACK_TOP: u64 = 0x21f_f000;
/// The heap, if [`Startup::heap_bytes`] is not zero.
pub const HEAP_VADDR: u64 = 0x400_0000;
/// vmm-server: ring memory of the first part of its first disk; that of others [`RING_STRIDE`] `*`
/// [`crate::slots::vmm_part`] higher.
pub const VMM_RING_VADDR: u64 = 0x800_0000;
/// Address space kept for one ring's memory, a `ring::BLK_RING_BYTES` long area.
pub const RING_STRIDE: u64 = 0x20_0000;
/// io-sched-server: ring memory of client 0; client n's [`RING_STRIDE`] `* n` higher.
pub const IO_RING_VADDR: u64 = 0x4000_0000;
/// io-sched-server: the disk's registers, as listed in [`VirtioDisk`].
pub const REGISTERS_VADDR: u64 = 0x3000_0000;
/// io-sched-server of one of several disks: the page of [`crate::progress`] of disk 0, disk n's a page `* n` higher; its own
/// is writable, the others' are not.
pub const PROGRESS_VADDR: u64 = 0x3400_0000;
/// io-sched-server: memory for queues and requests, seen by the device.
pub const DMA_VADDR: u64 = 0x3800_0000;
/// vmm-server: guest kernel and modules, read-only until [`crate::root::RootRequest::Ready`].
pub const BLOB_VADDR: u64 = 0x8000_0000;
/// vmm-server: the window on guest memory, guest-physical address 0.
pub const GUEST_WINDOW: u64 = 0x10_0000_0000;
/// mem-server: ring memory of its swap partition, once [`crate::mem::MemRequest::SetSwap`] says so.
pub const SWAP_RING_VADDR: u64 = 0x800_0000;
/// mem-server: from here on it arranges its address space itself.
pub const MEM_FREE_VADDR: u64 = 0x20_0000_0000;

/// Longest encoded [`Startup`].
pub const STARTUP_MAX: usize = 4096 - 4;

const _: () = assert!(crate::ring::BLK_RING_BYTES as u64 <= RING_STRIDE);

/// A mapped range of the server's address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First virtual address.
    pub vaddr: u64,
    /// Length in bytes (of content: mapped up to the end of the last page).
    pub bytes: u64,
}

/// A mapped range the device sees too: physically contiguous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaRegion {
    /// First virtual address.
    pub vaddr: u64,
    /// First physical address.
    pub paddr: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A range of capability slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRange {
    /// First slot.
    pub start: u64,
    /// One past the last slot.
    pub end: u64,
}

/// An untyped given to the mem-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UntypedRange {
    /// First physical address.
    pub paddr: u64,
    /// log2 of its size in bytes, at least 21.
    pub size_bits: u8,
}

/// Most untypeds given to the mem-server.
pub const UNTYPEDS_MAX: usize = 64;

/// What the mem-server is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemStart {
    /// Its untypeds, in slots [`crate::slots::MEM_UNTYPEDS`] and on.
    pub untypeds: Vec<UntypedRange, UNTYPEDS_MAX>,
    /// Its policy.
    pub policy: MemoryPolicy,
    /// Groups of VMs, by index.
    pub groups: Vec<Group, GROUPS_MAX>,
    /// Chance of the root-task's making: machine time and wall time of this start.
    pub seed: u64,
}

/// A virtio disk given to an io-sched-server: turned on, its first message-signalled interrupt routed to
/// [`crate::slots::IO_IRQ_HANDLER`], its registers mapped (uncached).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioDisk {
    /// The common configuration, 56 bytes (virtio 1.2, section 4.1.4.3).
    pub common: Region,
    /// The doorbells.
    pub notify: Region,
    /// Bytes from one doorbell to the next, as the device says.
    pub notify_multiplier: u32,
    /// The disk's own configuration, 8 bytes: its capacity in sectors.
    pub device: Region,
}

/// What an io-sched-server is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoStart {
    /// Which disk of the machine it serves.
    pub disk: DiskId,
    /// Disks of the machine.
    pub disks: u8,
    /// The disk; `None` if the machine has no such disk, or it cannot be used.
    pub device: Option<VirtioDisk>,
    /// Memory for device queues: kept over a restart, zeroed before the first start.
    pub dma: DmaRegion,
    /// Dispatch policy.
    pub policy: Policy,
    /// Groups of VMs, by index.
    pub groups: Vec<Group, GROUPS_MAX>,
    /// A modelled disk in front of the real one, on every disk of the machine.
    pub model: Option<DiskModel>,
    /// This is a restart: clients attached before come again as commands, with their rings as they were.
    pub restarted: bool,
}

/// What a vmm-server is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmStart {
    /// Its VM.
    pub vm: VmId,
    /// The VM's configuration.
    pub config: Vm,
    /// The guest kernel's image.
    pub kernel: Region,
    /// The guest's modules, the initrd first.
    pub modules: Vec<Region, MODULES_MAX>,
    /// Times this VM has been started before.
    pub starts: u32,
    /// Seed for whatever the guest is given as random.
    pub seed: u64,
    /// Unix time when the machine's TSC was zero, in seconds.
    pub wall_seconds: u64,
}

/// Which server this is, with what it needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "one value per server, made once; there is no heap to box it in"
)]
pub enum Role {
    /// The mem-server.
    Mem(MemStart),
    /// An io-sched-server.
    Io(IoStart),
    /// A vmm-server.
    Vmm(VmmStart),
}

impl Role {
    /// Who this server is towards the root-task.
    pub const fn client(&self) -> Client {
        match self {
            Self::Mem(_) => Client::Mem,
            Self::Io(start) => Client::Io(start.disk),
            Self::Vmm(start) => Client::Vmm(start.vm),
        }
    }
}

/// What every server is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Startup {
    /// Ticks of the TSC per microsecond.
    pub tsc_mhz: u32,
    /// Slots of the CSpace that are the server's to use.
    pub free_slots: SlotRange,
    /// Bytes of heap at [`HEAP_VADDR`]; 0 for none.
    pub heap_bytes: u64,
    /// Memory of the machine.
    pub machine_memory: Pages,
    /// Who the server is.
    pub role: Role,
}

/// Words of the page at [`SHARED_VADDR`]. Every word has one writer; readers copy it once.
pub mod shared {
    /// Written by the root-task: commands waiting, a count that only grows.
    pub const COMMANDS: usize = 0;
    /// Written by the server: 1 once it serves (see `RootRequest` for how it says so).
    pub const SERVING: usize = 8;
    /// Written by the server: set by the panic handler before it faults on purpose.
    pub const PANICKED: usize = 9;
    /// First counter of the server, see [`crate::root::VmmCounter`] and its siblings.
    pub const COUNTERS: usize = 16;
    /// Words of the page.
    pub const WORDS: usize = 512;
}

/// Writes `startup` as the page's content; `None` if it is too long.
pub fn encode(startup: &Startup, page: &mut [u8; 4096]) -> Option<()> {
    let length = postcard::to_slice(startup, &mut page[4..]).ok()?.len();
    let length = u32::try_from(length).ok()?;
    page[..4].copy_from_slice(&length.to_le_bytes());
    Some(())
}

/// Reads a startup page.
///
/// # Errors
///
/// [`crate::interface::DecodeError`] if the page is not what [`encode`] writes.
pub fn decode(page: &[u8]) -> Result<Startup, crate::interface::DecodeError> {
    use crate::interface::DecodeError::Malformed;
    let (length, rest) = page.split_first_chunk::<4>().ok_or(Malformed)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Malformed)?;
    crate::interface::take_all(rest.get(..length).ok_or(Malformed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn startup_page_round_trips_and_refuses_damage() {
        let startup = Startup {
            tsc_mhz: 1000,
            free_slots: SlotRange { start: 256, end: 1024 },
            heap_bytes: 0,
            machine_memory: Pages(1 << 17),
            role: Role::Io(IoStart {
                disk: DiskId(1),
                disks: 2,
                device: Some(VirtioDisk {
                    common: Region { vaddr: REGISTERS_VADDR, bytes: 56 },
                    notify: Region { vaddr: REGISTERS_VADDR + 0x1000, bytes: 4096 },
                    notify_multiplier: 4,
                    device: Region { vaddr: REGISTERS_VADDR + 0x2000, bytes: 8 },
                }),
                dma: DmaRegion::default(),
                policy: Policy::RoundRobin,
                groups: Vec::new(),
                model: Some(DiskModel::Hp97560),
                restarted: false,
            }),
        };
        let mut page = [0; 4096];
        assert_eq!(encode(&startup, &mut page), Some(()));
        assert_eq!(decode(&page), Ok(startup));
        page[0] = page[0].wrapping_add(1);
        assert!(decode(&page).is_err());
        page[1] = 0xff;
        assert!(decode(&page).is_err());
    }
}
