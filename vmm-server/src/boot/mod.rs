//! Loads a guest and describes the processor state it starts with.
//!
//! The image says what it is: a Linux bzImage (64-bit boot protocol), a PVH ELF, or a multiboot 1 kernel.

pub mod bzimage;
pub mod elf;
pub mod multiboot;
pub mod pvh;

use crate::acpi;
use crate::guest_memory::{GuestMemory, HIGH_START, OutOfRam};
use abi::vcpu::field;
use heapless::Vec;

/// Most boot modules.
pub const MODULES_MAX: usize = 4;
/// State fields of a starting processor.
pub type State = Vec<(u64, u64), { abi::vcpu::STATE_WRITE_MAX }>;

/// End of conventional memory; the kilobyte above it would be the firmware's data area.
const LOW_END: u64 = 0x9_f000;
/// First byte above the legacy hole: kernels go here or higher.
pub const KERNEL_MIN: u64 = 0x10_0000;
/// Places of boot structures in conventional memory.
mod place {
    pub const BOOT_PARAMS: u64 = 0x7000;
    pub const GDT: u64 = 0x8000;
    pub const PAGE_TABLES: u64 = 0x9000;
    pub const INFO: u64 = 0x1_0000;
    pub const MODULE_LIST: u64 = 0x1_0100;
    pub const MEMORY_MAP: u64 = 0x1_0400;
    pub const STRINGS: u64 = 0x2_0000;
}

/// A boot module: its bytes and its name.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Contents.
    pub bytes: &'a [u8],
    /// Name, given to the guest as the module's command line.
    pub name: &'a str,
}

/// Everything that is booted.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The kernel.
    pub kernel: &'a [u8],
    /// Its modules; Linux takes the first as its initial RAM disk.
    pub modules: &'a [Module<'a>],
    /// The kernel's command line.
    pub cmdline: &'a str,
}

/// Why a guest cannot be started. Each names what the user can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Neither bzImage, PVH ELF nor multiboot kernel.
    UnknownFormat,
    /// The image ends too early or its headers contradict themselves.
    Malformed,
    /// A bzImage without 64-bit entry point (older than 3.8, or 32-bit).
    No64BitEntry,
    /// The kernel wants to be loaded where there is no free memory.
    BadAddress {
        /// Where.
        address: u64,
    },
    /// Kernel and modules do not fit.
    TooLittleMemory {
        /// Bytes that would be needed below the device hole.
        needed: u64,
    },
    /// The command line is longer than the kernel takes.
    CmdlineTooLong {
        /// Most bytes.
        max: u64,
    },
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownFormat => {
                f.write_str("the kernel is no bzImage, no PVH ELF and no multiboot kernel")
            }
            Self::Malformed => f.write_str("the kernel image is damaged"),
            Self::No64BitEntry => f.write_str("the kernel has no 64-bit entry point"),
            Self::BadAddress { address } => {
                write!(f, "the kernel wants to lie at {address:#x}, where there is no free memory")
            }
            Self::TooLittleMemory { needed } => {
                write!(f, "kernel and modules need {} MiB of memory", needed.div_ceil(1 << 20))
            }
            Self::CmdlineTooLong { max } => {
                write!(f, "the kernel takes a command line of {max} bytes at most")
            }
        }
    }
}

impl From<OutOfRam> for BootError {
    fn from(error: OutOfRam) -> Self {
        Self::BadAddress { address: error.gpa }
    }
}

/// Loads `image` and the ACPI tables; returns the state to start the processor with.
///
/// Guest memory must be zero: parts that are zero in the image are not touched.
///
/// # Errors
///
/// [`BootError`] if the guest cannot be started.
pub fn load(image: &Image<'_>, memory: &mut impl GuestMemory) -> Result<State, BootError> {
    if memory.layout().low < 2 * KERNEL_MIN {
        return Err(BootError::TooLittleMemory { needed: 2 * KERNEL_MIN });
    }
    acpi::install(memory)?;
    if bzimage::is_bzimage(image.kernel) {
        return bzimage::load(image, memory);
    }
    if let Some(file) = elf::Elf::parse(image.kernel)
        && let Some(entry) = file.pvh_entry()
    {
        return pvh::load(image, &file, entry, memory);
    }
    if let Some(header) = multiboot::Header::find(image.kernel) {
        return multiboot::load(image, &header, memory);
    }
    Err(BootError::UnknownFormat)
}

/// Kind of a range in the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Usable.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The guest's memory map.
pub fn memory_map(memory: &impl GuestMemory) -> Vec<MapRange, 4> {
    let layout = memory.layout();
    let ram = |start, end: u64| MapRange { start, bytes: end - start, kind: RangeKind::Ram };
    let mut map = Vec::new();
    // Four places for at most four ranges.
    let _ = map.push(ram(0, LOW_END));
    let tables = MapRange {
        start: acpi::RSDP_ADDRESS,
        bytes: KERNEL_MIN - acpi::RSDP_ADDRESS,
        kind: RangeKind::Reserved,
    };
    let _ = map.push(tables);
    let _ = map.push(ram(KERNEL_MIN, layout.low));
    if layout.high != 0 {
        let _ = map.push(ram(HIGH_START, HIGH_START + layout.high));
    }
    map
}

/// Writes a string with its terminator; returns the address behind it.
fn put_string(memory: &mut impl GuestMemory, at: u64, text: &str) -> Result<u64, BootError> {
    let end = at + text.len() as u64;
    if end >= LOW_END {
        return Err(BootError::CmdlineTooLong { max: LOW_END - at - 1 });
    }
    memory.write(at, text.as_bytes())?;
    memory.write(end, &[0])?;
    Ok(end + 1)
}

/// Copies `bytes` to page-aligned memory that ends at or below `top` and starts above `floor`.
fn put_high(
    memory: &mut impl GuestMemory,
    bytes: &[u8],
    top: u64,
    floor: u64,
) -> Result<u64, BootError> {
    let length = bytes.len() as u64;
    let start = top.checked_sub(length).map_or(0, |start| start & !0xfff);
    if start < floor {
        return Err(BootError::TooLittleMemory { needed: floor.saturating_add(length) });
    }
    memory.write(start, bytes)?;
    Ok(start)
}

/// A segment register value in the form the kernel interface takes.
const fn segment(selector: u64, attributes: u64, limit: u64) -> u64 {
    selector | attributes << 16 | limit << 32
}

/// Adds what all start states share: flat data segments, task register, tables, clean debug state.
fn common_state(state: &mut State, data_selector: u64) {
    let data = segment(data_selector, 0xc93, 0xffff_ffff);
    for place in [field::ES, field::SS, field::DS, field::FS, field::GS] {
        push(state, place, data);
        push(state, place + 1, 0);
    }
    push(state, field::LDTR, segment(0, 0x082, 0xffff));
    push(state, field::TR, segment(0, 0x08b, 0xffff));
    push(state, field::IDTR, segment(0, 0, 0xffff));
    push(state, field::RFLAGS, 2);
    push(state, field::DR6, 0xffff_0ff0);
    push(state, field::DR7, 0x400);
    push(state, field::XCR0, 1);
    push(state, field::G_PAT, 0x0007_0406_0007_0406);
    push(state, field::CPL, 0);
}

/// 32-bit protected mode without paging, as PVH and multiboot want it.
fn protected_mode(entry: u64) -> State {
    let mut state = State::new();
    common_state(&mut state, 0x18);
    push(&mut state, field::CS, segment(0x10, 0xc9b, 0xffff_ffff));
    push(&mut state, field::CS + 1, 0);
    push(&mut state, field::GDTR, segment(0, 0, 0xffff));
    push(&mut state, field::CR0, 0x11);
    push(&mut state, field::CR3, 0);
    push(&mut state, field::CR4, 0);
    push(&mut state, field::EFER, 0);
    push(&mut state, field::RIP, entry);
    state
}

fn push(state: &mut State, id: u64, value: u64) {
    // The list is as long as one write of state takes, which is more than any start state has.
    let _ = state.push((id, value));
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::VecMemory;

    #[test]
    fn nonsense_is_refused() {
        let mut memory = VecMemory::new(4 << 20);
        for kernel in [&[][..], &[0; 100][..], b"\x7fELF\x02\x01\x01", &[0xff; 9000]] {
            let image = Image { kernel, modules: &[], cmdline: "" };
            assert!(load(&image, &mut memory).is_err());
        }
    }

    #[test]
    fn random_damage_to_headers_never_panics() {
        let mut seed = 1u64;
        let mut memory = VecMemory::new(4 << 20);
        for round in 0..20_000 {
            let mut kernel = match round % 3 {
                0 => bzimage::tests::sample(),
                1 => pvh::tests::sample(),
                _ => multiboot::tests::sample(),
            };
            for _ in 0..4 {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let at = (seed >> 33) as usize % kernel.len().min(0x300);
                kernel[at] = (seed >> 20) as u8;
            }
            let image = Image { kernel: &kernel, modules: &[], cmdline: "x" };
            let _ = load(&image, &mut memory);
        }
    }
}
