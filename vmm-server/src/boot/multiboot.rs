//! Multiboot 1 kernels: ELF32, ELF64, or with load addresses in the header (Multiboot 0.6.96).

use super::elf::Elf;
use super::{
    BootError, Image, KERNEL_MIN, LOW_END, MODULES_MAX, State, memory_map, place, protected_mode,
    push, put_string, u32_at,
};
use crate::guest_memory::GuestMemory;
use abi::vcpu::field;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const BOOT_MAGIC: u64 = 0x2bad_b002;
const SEARCH_BYTES: usize = 8192;
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Requirements a loader must know: page-aligned modules, memory information. Video is not offered.
const FLAGS_KNOWN: u32 = 0x3;

/// A multiboot header and where it stands in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    offset: usize,
    flags: u32,
}

impl Header {
    /// Finds the header in the first 8 KiB.
    pub fn find(kernel: &[u8]) -> Option<Self> {
        (0..SEARCH_BYTES.min(kernel.len())).step_by(4).find_map(|offset| {
            let magic = u32_at(kernel, offset)?;
            let flags = u32_at(kernel, offset + 4)?;
            let checksum = u32_at(kernel, offset + 8)?;
            let is_sound =
                magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
            is_sound.then_some(Self { offset, flags })
        })
    }
}

/// Loads a multiboot kernel.
///
/// # Errors
///
/// [`BootError`] if the image is damaged, needs more than is offered, or does not fit.
pub fn load(
    image: &Image<'_>,
    header: &Header,
    memory: &mut impl GuestMemory,
) -> Result<State, BootError> {
    if header.flags & 0xffff & !FLAGS_KNOWN != 0 {
        return Err(BootError::UnknownFormat);
    }
    let (entry, kernel_end) = if header.flags & FLAG_ADDRESSES != 0 {
        load_by_addresses(image.kernel, header, memory)?
    } else {
        let file = Elf::parse(image.kernel).ok_or(BootError::UnknownFormat)?;
        let end = file.load(memory)?;
        (file.physical_entry(), end)
    };
    let mut strings = put_string(memory, place::STRINGS, image.cmdline)?;
    let mut next = kernel_end.next_multiple_of(0x1000);
    let modules = image.modules.get(..image.modules.len().min(MODULES_MAX)).unwrap_or(&[]);
    for (index, module) in (0..).zip(modules) {
        let end = next + module.bytes.len() as u64;
        if end > memory.layout().low {
            return Err(BootError::TooLittleMemory { needed: end });
        }
        memory.write(next, module.bytes)?;
        let at = place::MODULE_LIST + 16 * index;
        for (offset, word) in [(0, next), (4, end), (8, strings)] {
            memory.write(at + offset, &(word as u32).to_le_bytes())?;
        }
        strings = put_string(memory, strings, module.name)?;
        next = end.next_multiple_of(0x1000);
    }
    write_info(memory, modules.len() as u32, strings)?;
    let mut state = protected_mode(entry);
    push(&mut state, field::RAX, BOOT_MAGIC);
    push(&mut state, field::RBX, place::INFO);
    Ok(state)
}

fn write_info(memory: &mut impl GuestMemory, modules: u32, strings: u64) -> Result<(), BootError> {
    put_string(memory, strings, "ballast")?;
    let map = memory_map(memory);
    for (index, range) in (0..).zip(&map) {
        let at = place::MEMORY_MAP + 24 * index;
        memory.write(at, &20u32.to_le_bytes())?;
        memory.write(at + 4, &range.start.to_le_bytes())?;
        memory.write(at + 12, &range.bytes.to_le_bytes())?;
        memory.write(at + 20, &(range.kind as u32).to_le_bytes())?;
    }
    let low = memory.layout().low;
    let words: [(u64, u64); 10] = [
        // Memory sizes, command line, modules, memory map, loader name.
        (0, 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9),
        (4, LOW_END >> 10),
        (8, (low - KERNEL_MIN) >> 10),
        (16, place::STRINGS),
        (20, u64::from(modules)),
        (24, place::MODULE_LIST),
        (44, 24 * map.len() as u64),
        (48, place::MEMORY_MAP),
        (64, strings),
        (12, 0),
    ];
    for (offset, value) in words {
        memory.write(place::INFO + offset, &(value as u32).to_le_bytes())?;
    }
    Ok(())
}

/// The "a.out kludge": addresses in the header say what goes where.
fn load_by_addresses(
    kernel: &[u8],
    header: &Header,
    memory: &mut impl GuestMemory,
) -> Result<(u64, u64), BootError> {
    let field =
        |at: usize| u32_at(kernel, header.offset + at).map(u64::from).ok_or(BootError::Malformed);
    let (header_address, load, load_end, bss_end, entry) =
        (field(12)?, field(16)?, field(20)?, field(24)?, field(28)?);
    let offset = header_address.checked_sub(load).ok_or(BootError::Malformed)?;
    let start = (header.offset as u64).checked_sub(offset).ok_or(BootError::Malformed)? as usize;
    let rest = kernel.get(start..).ok_or(BootError::Malformed)?;
    let length = match load_end {
        0 => rest.len(),
        end => end.checked_sub(load).ok_or(BootError::Malformed)? as usize,
    };
    let bytes = rest.get(..length).ok_or(BootError::Malformed)?;
    let end = bss_end.max(load + length as u64);
    if load < KERNEL_MIN {
        return Err(BootError::BadAddress { address: load });
    }
    memory.check(load, end - load)?;
    memory.write(load, bytes)?;
    Ok((entry, end))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Module, load as load_any};
    use super::*;
    use crate::guest_memory::VecMemory;

    /// An ELF32 with one segment at 1 MiB that holds the multiboot header.
    pub fn sample() -> std::vec::Vec<u8> {
        let mut file = std::vec![0; 0x120];
        file[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
        let put = |file: &mut std::vec::Vec<u8>, at: usize, value: u32| {
            file[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(&mut file, 16, 2 | 3 << 16);
        put(&mut file, 24, 0xc010_000c);
        put(&mut file, 28, 52);
        put(&mut file, 42, 32 | 1 << 16);
        for (offset, value) in
            [(0, 1), (4, 0x100), (8, 0xc010_0000), (12, 0x10_0000), (16, 0x20), (20, 0x3001)]
        {
            put(&mut file, 52 + offset, value);
        }
        put(&mut file, 0x100, HEADER_MAGIC);
        put(&mut file, 0x104, 3);
        put(&mut file, 0x108, 0u32.wrapping_sub(HEADER_MAGIC + 3));
        file
    }

    #[test]
    fn loads_elf32_with_modules_behind_the_kernel() {
        let mut memory = VecMemory::new(8 << 20);
        let file = sample();
        let modules =
            [Module { bytes: &[1; 100], name: "one" }, Module { bytes: &[2; 9000], name: "two" }];
        let image = Image { kernel: &file, modules: &modules, cmdline: "a b" };
        let state = load_any(&image, &mut memory).unwrap();
        let value = |id| state.iter().find(|(field, _)| *field == id).unwrap().1;
        assert_eq!(value(field::RIP), 0x10_000c, "entry point translated to physical");
        assert_eq!(value(field::RAX), BOOT_MAGIC);
        assert_eq!(memory.read_u32(place::INFO + 20), Ok(2));
        assert_eq!(memory.read_u32(place::MODULE_LIST), Ok(0x10_4000));
        assert_eq!(memory.read_u32(place::MODULE_LIST + 16), Ok(0x10_5000));
        assert_eq!(memory.0[0x10_5000], 2);
        assert_eq!(memory.read_u32(place::INFO + 8), Ok(7 << 10));
        let text = memory.read_u32(place::MODULE_LIST + 24).unwrap() as usize;
        assert_eq!(&memory.0[text..text + 4], b"two\0");
    }

    #[test]
    fn loads_by_header_addresses() {
        let mut kernel = std::vec![0xabu8; 0x200];
        let words = [
            HEADER_MAGIC,
            FLAG_ADDRESSES,
            0u32.wrapping_sub(HEADER_MAGIC + FLAG_ADDRESSES),
            0x10_0010,
            0x10_0000,
            0,
            0x10_1000,
            0x10_0040,
        ];
        for (index, word) in words.iter().enumerate() {
            kernel[0x10 + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
        }
        let mut memory = VecMemory::new(4 << 20);
        let image = Image { kernel: &kernel, modules: &[], cmdline: "" };
        let state = load_any(&image, &mut memory).unwrap();
        assert_eq!(state.iter().find(|(id, _)| *id == field::RIP).unwrap().1, 0x10_0040);
        assert_eq!(memory.0[0x10_0000], 0xab);
        assert_eq!(memory.0[0x10_01ff], 0xab);
    }
}
