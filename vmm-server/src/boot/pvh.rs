//! PVH: a 32-bit entry point named by an ELF note (Xen `docs/misc/pvh.pandoc`, `start_info.h`).

use super::elf::Elf;
use super::{
    BootError, Image, MODULES_MAX, State, memory_map, place, protected_mode, push, put_high,
    put_string,
};
use crate::acpi;
use crate::guest_memory::GuestMemory;
use abi::vcpu::field;

const MAGIC: u32 = 0x336e_c578;

/// Loads a PVH kernel whose entry point is `entry`.
///
/// # Errors
///
/// [`BootError`] if the image is damaged or does not fit.
pub fn load(
    image: &Image<'_>,
    file: &Elf<'_>,
    entry: u64,
    memory: &mut impl GuestMemory,
) -> Result<State, BootError> {
    let kernel_end = file.load(memory)?;
    let mut strings = put_string(memory, place::STRINGS, image.cmdline)?;
    let mut top = memory.layout().low;
    let modules = image.modules.get(..image.modules.len().min(MODULES_MAX)).unwrap_or(&[]);
    for (index, module) in (0..).zip(modules) {
        top = put_high(memory, module.bytes, top, kernel_end)?;
        let at = place::MODULE_LIST + 32 * index;
        memory.write(at, &top.to_le_bytes())?;
        memory.write(at + 8, &(module.bytes.len() as u64).to_le_bytes())?;
        memory.write(at + 16, &strings.to_le_bytes())?;
        strings = put_string(memory, strings, module.name)?;
    }
    let map = memory_map(memory);
    for (index, range) in (0..).zip(&map) {
        let at = place::MEMORY_MAP + 24 * index;
        memory.write(at, &range.start.to_le_bytes())?;
        memory.write(at + 8, &range.bytes.to_le_bytes())?;
        memory.write(at + 16, &(range.kind as u32).to_le_bytes())?;
    }
    let info = place::INFO;
    memory.write(info, &MAGIC.to_le_bytes())?;
    memory.write(info + 4, &1u32.to_le_bytes())?;
    memory.write(info + 12, &(modules.len() as u32).to_le_bytes())?;
    let module_list = if modules.is_empty() { 0 } else { place::MODULE_LIST };
    for (offset, address) in
        [(16, module_list), (24, place::STRINGS), (32, acpi::RSDP_ADDRESS), (40, place::MEMORY_MAP)]
    {
        memory.write(info + offset, &address.to_le_bytes())?;
    }
    memory.write(info + 48, &(map.len() as u32).to_le_bytes())?;
    let mut state = protected_mode(entry);
    push(&mut state, field::RBX, info);
    Ok(state)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Module, load as load_any};
    use super::*;
    use crate::guest_memory::VecMemory;

    /// An ELF64 with one loadable segment at 1 MiB and a PVH note.
    pub fn sample() -> std::vec::Vec<u8> {
        let mut file = std::vec![0; 0x120];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let put = |file: &mut std::vec::Vec<u8>, at: usize, bytes: &[u8]| {
            file[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut file, 16, &[2, 0, 62, 0]);
        put(&mut file, 24, &0xffff_ffff_8010_0000u64.to_le_bytes());
        put(&mut file, 32, &64u64.to_le_bytes());
        put(&mut file, 54, &[56, 0, 2, 0]);
        put(&mut file, 64, &1u32.to_le_bytes());
        for (offset, value) in
            [(8, 0x100u64), (16, 0xffff_ffff_8010_0000), (24, 0x10_0000), (32, 0x20), (40, 0x2000)]
        {
            put(&mut file, 64 + offset, &value.to_le_bytes());
        }
        put(&mut file, 120, &4u32.to_le_bytes());
        put(&mut file, 128, &0xe0u64.to_le_bytes());
        put(&mut file, 152, &20u64.to_le_bytes());
        put(&mut file, 0xe0, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        put(&mut file, 0xec, b"Xen\0");
        put(&mut file, 0xf0, &0x10_0010u32.to_le_bytes());
        file[0x100..].fill(0xcc);
        file
    }

    #[test]
    fn loads_with_modules() {
        let mut memory = VecMemory::new(8 << 20);
        let file = sample();
        let modules =
            [Module { bytes: &[1; 100], name: "a" }, Module { bytes: &[2; 9000], name: "bb" }];
        let image = Image { kernel: &file, modules: &modules, cmdline: "quiet" };
        let state = load_any(&image, &mut memory).unwrap();
        let value = |id| state.iter().find(|(field, _)| *field == id).unwrap().1;
        assert_eq!((value(field::RIP), value(field::RBX)), (0x10_0010, place::INFO));
        assert_eq!(memory.0[0x10_0000], 0xcc);
        assert_eq!(memory.read_u32(place::INFO), Ok(MAGIC));
        assert_eq!(memory.read_u32(place::INFO + 12), Ok(2));
        let second = memory.read_u64(place::MODULE_LIST + 32).unwrap();
        assert_eq!(memory.0[second as usize], 2);
        assert_eq!(second & 0xfff, 0);
        let name = memory.read_u64(place::MODULE_LIST + 48).unwrap() as usize;
        assert_eq!(&memory.0[name..name + 3], b"bb\0");
    }
}
