//! Linux bzImage by the 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`).

use super::{
    BootError, Image, KERNEL_MIN, State, common_state, memory_map, place, push, put_high,
    put_string, segment, u16_at, u32_at, u64_at,
};
use crate::acpi;
use crate::guest_memory::GuestMemory;
use abi::vcpu::field;

const HEADER_START: usize = 0x1f1;
const VERSION_MIN: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
/// Entry point of the 64-bit kernel, from its load address.
const ENTRY_64: u64 = 0x200;
const PAGE_TABLE_GIB: u64 = 4;

/// Whether `kernel` has the bzImage signature.
pub fn is_bzimage(kernel: &[u8]) -> bool {
    u16_at(kernel, 0x1fe) == Some(0xaa55) && kernel.get(0x202..0x206) == Some(&b"HdrS"[..])
}

/// Loads a bzImage.
///
/// # Errors
///
/// [`BootError`] if the image is damaged, too old, or does not fit.
pub fn load(image: &Image<'_>, memory: &mut impl GuestMemory) -> Result<State, BootError> {
    let kernel = image.kernel;
    let malformed = BootError::Malformed;
    let byte = |at: usize| kernel.get(at).copied().ok_or(malformed);
    let word = |at| u32_at(kernel, at).map(u64::from).ok_or(malformed);
    let version = u16_at(kernel, 0x206).ok_or(malformed)?;
    let xloadflags = u16_at(kernel, 0x236).ok_or(malformed)?;
    if version < VERSION_MIN || xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry);
    }
    let setup_sectors = match byte(HEADER_START)? {
        0 => 4,
        count => usize::from(count),
    };
    let code = kernel.get((setup_sectors + 1) * 512..).ok_or(malformed)?;
    let init_size = word(0x260)?.max(code.len() as u64);
    let low = memory.layout().low;
    // Below its preferred address even a relocatable kernel moves itself up to there, so it must have room there.
    let preferred = u64_at(kernel, 0x258).ok_or(malformed)?;
    let start = if preferred >= KERNEL_MIN {
        preferred
    } else if byte(0x234)? != 0 {
        KERNEL_MIN.next_multiple_of(word(0x230)?.max(0x1000).next_power_of_two())
    } else {
        return Err(BootError::BadAddress { address: preferred });
    };
    let end = start.saturating_add(init_size);
    if end > low {
        return Err(BootError::TooLittleMemory { needed: end });
    }
    memory.write(start, code)?;

    let cmdline_max = word(0x238)?;
    if image.cmdline.len() as u64 > cmdline_max {
        return Err(BootError::CmdlineTooLong { max: cmdline_max });
    }
    put_string(memory, place::STRINGS, image.cmdline)?;
    write_boot_params(image, memory, end)?;
    write_page_tables(memory)?;
    let gdt = [0, 0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff];
    for (index, descriptor) in (0..).zip(gdt) {
        memory.write(place::GDT + 8 * index, &descriptor.to_le_bytes())?;
    }
    Ok(start_state(start))
}

fn write_boot_params(
    image: &Image<'_>,
    memory: &mut impl GuestMemory,
    kernel_end: u64,
) -> Result<(), BootError> {
    let params = place::BOOT_PARAMS;
    let header_end = 0x202 + usize::from(image.kernel.get(0x201).copied().unwrap_or(0));
    let header =
        image.kernel.get(HEADER_START..header_end.min(0x290)).ok_or(BootError::Malformed)?;
    memory.write(params + HEADER_START as u64, header)?;
    memory.write(params + 0x070, &acpi::RSDP_ADDRESS.to_le_bytes())?;
    // An unregistered boot loader.
    memory.write(params + 0x210, &[0xff])?;
    memory.write(params + 0x228, &(place::STRINGS as u32).to_le_bytes())?;
    if let Some(initrd) = image.modules.first() {
        let limit = u32_at(image.kernel, 0x22c).map_or(0x37ff_ffff, u64::from);
        let top = memory.layout().low.min(limit + 1);
        let at = put_high(memory, initrd.bytes, top, kernel_end)?;
        memory.write(params + 0x218, &(at as u32).to_le_bytes())?;
        memory.write(params + 0x21c, &(initrd.bytes.len() as u32).to_le_bytes())?;
    }
    let map = memory_map(memory);
    memory.write(params + 0x1e8, &[map.len() as u8])?;
    for (index, range) in (0..).zip(&map) {
        let at = params + 0x2d0 + 20 * index;
        memory.write(at, &range.start.to_le_bytes())?;
        memory.write(at + 8, &range.bytes.to_le_bytes())?;
        memory.write(at + 16, &(range.kind as u32).to_le_bytes())?;
    }
    Ok(())
}

/// Identity mapping of the first 4 GiB by 2 MiB pages.
fn write_page_tables(memory: &mut impl GuestMemory) -> Result<(), BootError> {
    let pml4 = place::PAGE_TABLES;
    let pdpt = pml4 + 0x1000;
    memory.write(pml4, &(pdpt | 3).to_le_bytes())?;
    for gib in 0..PAGE_TABLE_GIB {
        let directory = pdpt + 0x1000 * (1 + gib);
        memory.write(pdpt + 8 * gib, &(directory | 3).to_le_bytes())?;
        for index in 0..512 {
            let entry = (gib << 30 | index << 21) | 0x83;
            memory.write(directory + 8 * index, &entry.to_le_bytes())?;
        }
    }
    Ok(())
}

fn start_state(start: u64) -> State {
    let mut state = State::new();
    common_state(&mut state, 0x18);
    push(&mut state, field::CS, segment(0x10, 0xa9b, 0xffff_ffff));
    push(&mut state, field::CS + 1, 0);
    push(&mut state, field::GDTR, segment(0, 0, 31));
    push(&mut state, field::GDTR + 1, place::GDT);
    push(&mut state, field::CR3, place::PAGE_TABLES);
    push(&mut state, field::CR4, 1 << 5);
    push(&mut state, field::CR0, 0x8000_0011);
    push(&mut state, field::EFER, 0x500);
    push(&mut state, field::RSI, place::BOOT_PARAMS);
    push(&mut state, field::RIP, start + ENTRY_64);
    state
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Module, load as load_any};
    use super::*;
    use crate::emulate::walk::{Access, Paging, translate};
    use crate::guest_memory::VecMemory;

    /// A minimal image: one setup sector, 64 bytes of code.
    pub fn sample() -> std::vec::Vec<u8> {
        let mut kernel = std::vec![0; 1024 + 64];
        kernel[0x1f1] = 1;
        kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        kernel[0x201] = 0x66;
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        kernel[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        kernel[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
        kernel[0x234] = 1;
        kernel[0x236] = 1;
        kernel[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
        kernel[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        kernel[0x260..0x264].copy_from_slice(&0x1000u32.to_le_bytes());
        kernel[1024..].fill(0x90);
        kernel
    }

    fn value(state: &State, id: u64) -> u64 {
        state.iter().find(|(field, _)| *field == id).map(|(_, value)| *value).unwrap()
    }

    #[test]
    fn loads_at_the_preferred_address() {
        let mut memory = VecMemory::new(32 << 20);
        let kernel = sample();
        let initrd = [7; 5000];
        let modules = [Module { bytes: &initrd, name: "initrd" }];
        let image = Image { kernel: &kernel, modules: &modules, cmdline: "console=ttyS0" };
        let state = load_any(&image, &mut memory).unwrap();
        assert_eq!(value(&state, field::RIP), 0x100_0200);
        assert_eq!(memory.0[0x100_0000], 0x90);
        let params = place::BOOT_PARAMS;
        let at = u64::from(memory.read_u32(params + 0x218).unwrap());
        assert_eq!(at, (32 << 20) - 0x2000);
        assert_eq!(memory.0[at as usize], 7);
        assert_eq!(memory.read_u32(params + 0x21c), Ok(5000));
        let text = memory.read_u32(params + 0x228).unwrap() as usize;
        assert_eq!(&memory.0[text..text + 14], b"console=ttyS0\0");
        assert_eq!(memory.0[params as usize + 0x1e8], 3);
        assert_eq!(memory.read_u64(params + 0x70), Ok(acpi::RSDP_ADDRESS));
        let paging = Paging {
            cr0: value(&state, field::CR0),
            cr3: value(&state, field::CR3),
            cr4: value(&state, field::CR4),
            efer: value(&state, field::EFER),
        };
        for address in [0, 0x100_0200, 0xfee0_0000, 0xffff_ffff] {
            assert_eq!(translate(&mut memory, &paging, address, Access::Fetch), Ok(address));
        }
    }

    #[test]
    fn a_kernel_without_room_at_its_preferred_address_is_refused() {
        let kernel = sample();
        let image = Image { kernel: &kernel, modules: &[], cmdline: "" };
        let needed = 0x100_1000;
        for mib in [2, 8, 16] {
            let refused = load_any(&image, &mut VecMemory::new(mib << 20));
            assert!(matches!(refused, Err(BootError::TooLittleMemory { .. })), "{mib} MiB");
        }
        let refused = load_any(&image, &mut VecMemory::new(16 << 20));
        assert_eq!(refused, Err(BootError::TooLittleMemory { needed }));
        assert!(load_any(&image, &mut VecMemory::new(18 << 20)).is_ok());
    }

    #[test]
    fn a_kernel_that_prefers_low_memory_is_moved_up_and_one_that_cannot_move_is_refused() {
        let mut kernel = sample();
        kernel[0x258..0x260].copy_from_slice(&0x8_0000u64.to_le_bytes());
        let image = Image { kernel: &kernel, modules: &[], cmdline: "" };
        let mut small = VecMemory::new(8 << 20);
        assert_eq!(value(&load_any(&image, &mut small).unwrap(), field::RIP), 0x20_0200);
        let big = std::vec![1; 8 << 20];
        let modules = [Module { bytes: &big, name: "" }];
        let image = Image { modules: &modules, ..image };
        assert!(matches!(load_any(&image, &mut small), Err(BootError::TooLittleMemory { .. })));
        kernel[0x234] = 0;
        let image = Image { kernel: &kernel, modules: &[], cmdline: "" };
        let refused = Err(BootError::BadAddress { address: 0x8_0000 });
        assert_eq!(load_any(&image, &mut small), refused);
    }

    #[test]
    fn old_kernels_are_refused() {
        let mut kernel = sample();
        kernel[0x236] = 0;
        let image = Image { kernel: &kernel, modules: &[], cmdline: "" };
        assert_eq!(load_any(&image, &mut VecMemory::new(32 << 20)), Err(BootError::No64BitEntry));
    }

    #[test]
    fn a_real_kernel_loads_if_one_is_named() {
        // Set BALLAST_TEST_BZIMAGE to a kernel image to try it; there is none in the tree.
        let Ok(path) = std::env::var("BALLAST_TEST_BZIMAGE") else { return };
        let kernel = std::fs::read(path).unwrap();
        let image = Image { kernel: &kernel, modules: &[], cmdline: "console=ttyS0" };
        let state = load_any(&image, &mut VecMemory::new(256 << 20)).unwrap();
        assert_eq!(value(&state, field::RIP) & 0xfff, 0x200);
    }
}
