//! Guest page-table walk (AMD64 APM volume 2, chapter 5).

use crate::guest_memory::GuestMemory;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const EFER_LMA: u64 = 1 << 10;

/// Control registers that decide how linear addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

/// Kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Instruction bytes of an instruction that is being executed: no rights are checked again.
    Fetch,
    /// Data read.
    Read {
        /// At privilege level 3.
        is_user: bool,
    },
    /// Data write.
    Write {
        /// At privilege level 3.
        is_user: bool,
    },
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets #PF with this error code.
    PageFault(u32),
    /// A table lies outside RAM.
    TableOutOfRam,
}

/// Translates `linear`; sets accessed and dirty bits as the processor would.
///
/// # Errors
///
/// [`WalkError`] if there is no translation that allows `access`.
pub fn translate<M: GuestMemory>(
    memory: &mut M,
    paging: &Paging,
    linear: u64,
    access: Access,
) -> Result<u64, WalkError> {
    if paging.cr0 & CR0_PG == 0 {
        return Ok(linear & 0xffff_ffff);
    }
    if paging.efer & EFER_LMA != 0 {
        walk(
            memory,
            paging,
            linear,
            access,
            Format { levels: 4, entry: 8, bits: 9 },
            paging.cr3 & ADDRESS,
        )
    } else if paging.cr4 & CR4_PAE != 0 {
        let linear = linear & 0xffff_ffff;
        let at = (paging.cr3 & 0xffff_ffe0) + 8 * (linear >> 30);
        let pointer = memory.read_u64(at).map_err(|_| WalkError::TableOutOfRam)?;
        if pointer & PRESENT == 0 {
            return Err(WalkError::PageFault(fault_code(access, false)));
        }
        walk(
            memory,
            paging,
            linear,
            access,
            Format { levels: 2, entry: 8, bits: 9 },
            pointer & ADDRESS,
        )
    } else {
        let linear = linear & 0xffff_ffff;
        walk(
            memory,
            paging,
            linear,
            access,
            Format { levels: 2, entry: 4, bits: 10 },
            paging.cr3 & 0xffff_f000,
        )
    }
}

struct Format {
    levels: u32,
    entry: u64,
    bits: u32,
}

fn fault_code(access: Access, is_present: bool) -> u32 {
    let (write, user) = match access {
        Access::Fetch => (0, 0),
        Access::Read { is_user } => (0, u32::from(is_user) << 2),
        Access::Write { is_user } => (2, u32::from(is_user) << 2),
    };
    u32::from(is_present) | write | user
}

fn walk<M: GuestMemory>(
    memory: &mut M,
    paging: &Paging,
    linear: u64,
    access: Access,
    format: Format,
    root: u64,
) -> Result<u64, WalkError> {
    let mut table = root;
    let mut rights = WRITABLE | USER;
    let mut level = format.levels;
    loop {
        let shift = 12 + (level - 1) * format.bits;
        let index = linear >> shift & ((1 << format.bits) - 1);
        let at = table + index * format.entry;
        let entry = read_entry(memory, at, format.entry)?;
        if entry & PRESENT == 0 {
            return Err(WalkError::PageFault(fault_code(access, false)));
        }
        rights &= entry;
        let has_large = level > 1
            && level < 4
            && entry & LARGE != 0
            && (format.entry == 8 || paging.cr4 & CR4_PSE != 0);
        let is_leaf = level == 1 || has_large;
        if !is_leaf {
            set_bits(memory, at, entry, ACCESSED)?;
            table = entry & ADDRESS;
            level -= 1;
            continue;
        }
        check(paging, rights, access)?;
        let marks =
            if matches!(access, Access::Write { .. }) { ACCESSED | DIRTY } else { ACCESSED };
        set_bits(memory, at, entry, marks)?;
        let offset_mask = (1u64 << shift) - 1;
        let mut frame = entry & ADDRESS;
        if has_large && format.entry == 4 {
            // PSE-36: physical bits 39:32 stand in entry bits 20:13.
            frame = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
        }
        return Ok(frame & !offset_mask | linear & offset_mask);
    }
}

fn check(paging: &Paging, rights: u64, access: Access) -> Result<(), WalkError> {
    let (is_write, is_user) = match access {
        Access::Fetch => return Ok(()),
        Access::Read { is_user } => (false, is_user),
        Access::Write { is_user } => (true, is_user),
    };
    let is_write_checked = is_user || paging.cr0 & CR0_WP != 0;
    if (is_user && rights & USER == 0) || (is_write && is_write_checked && rights & WRITABLE == 0) {
        return Err(WalkError::PageFault(fault_code(access, true)));
    }
    Ok(())
}

fn read_entry<M: GuestMemory>(memory: &M, at: u64, size: u64) -> Result<u64, WalkError> {
    let entry = if size == 8 { memory.read_u64(at) } else { memory.read_u32(at).map(u64::from) };
    entry.map_err(|_| WalkError::TableOutOfRam)
}

fn set_bits<M: GuestMemory>(
    memory: &mut M,
    at: u64,
    entry: u64,
    marks: u64,
) -> Result<(), WalkError> {
    if entry & marks == marks {
        return Ok(());
    }
    // All marks lie in the entry's first byte.
    memory.write(at, &[(entry | marks) as u8]).map_err(|_| WalkError::TableOutOfRam)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::VecMemory;

    fn put(memory: &mut VecMemory, at: u64, value: u64) {
        memory.write(at, &value.to_le_bytes()).unwrap();
    }

    const LONG: Paging = Paging { cr0: CR0_PG | CR0_WP, cr3: 0x1000, cr4: CR4_PAE, efer: EFER_LMA };

    fn long_tables() -> VecMemory {
        let mut memory = VecMemory::new(0x10000);
        put(&mut memory, 0x1000 + 8 * 0x1ff, 0x2000 | 7);
        put(&mut memory, 0x2000, 0x3000 | 7);
        put(&mut memory, 0x3000, 0x4000 | 7);
        put(&mut memory, 0x3008, 0x60_0000 | LARGE | 3);
        put(&mut memory, 0x4000 + 8 * 5, 0x9000 | 1);
        memory
    }

    #[test]
    fn long_mode_small_and_large_pages() {
        let mut memory = long_tables();
        let base = 0xffff_ff80_0000_0000u64;
        assert_eq!(translate(&mut memory, &LONG, base + 0x5123, Access::Fetch), Ok(0x9123));
        let large =
            translate(&mut memory, &LONG, base + 0x23_4567, Access::Write { is_user: false });
        assert_eq!(large, Ok(0x63_4567));
        assert_eq!(memory.read_u64(0x3008).unwrap() & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        assert_eq!(memory.read_u64(0x2000).unwrap() & ACCESSED, ACCESSED);
        assert_eq!(
            translate(&mut memory, &LONG, base + 0x5000, Access::Write { is_user: false }),
            Err(WalkError::PageFault(3))
        );
        assert_eq!(
            translate(&mut memory, &LONG, base + 0x20_0000, Access::Read { is_user: true }),
            Err(WalkError::PageFault(5))
        );
        assert_eq!(
            translate(&mut memory, &LONG, base + 0x6000, Access::Fetch),
            Err(WalkError::PageFault(0))
        );
    }

    #[test]
    fn legacy_formats() {
        let mut memory = VecMemory::new(0x10000);
        memory.write(0x1000, &(0x2000u32 | 3).to_le_bytes()).unwrap();
        memory.write(0x1004, &(0x40_0000u32 | 0x83).to_le_bytes()).unwrap();
        memory.write(0x2004, &(0x5000u32 | 3).to_le_bytes()).unwrap();
        let paging = Paging { cr0: CR0_PG, cr3: 0x1000, cr4: CR4_PSE, efer: 0 };
        assert_eq!(translate(&mut memory, &paging, 0x1abc, Access::Fetch), Ok(0x5abc));
        assert_eq!(translate(&mut memory, &paging, 0x41_2345, Access::Fetch), Ok(0x41_2345));

        put(&mut memory, 0x6008, 0x7000 | 1);
        put(&mut memory, 0x7000, 0x80_0000 | LARGE | 3);
        let paging = Paging { cr0: CR0_PG, cr3: 0x6000, cr4: CR4_PAE, efer: 0 };
        assert_eq!(translate(&mut memory, &paging, 0x4000_1234, Access::Fetch), Ok(0x80_1234));
        let off = Paging::default();
        assert_eq!(translate(&mut memory, &off, 0x1_0000_0010, Access::Fetch), Ok(0x10));
    }

    #[test]
    fn tables_outside_ram_are_refused() {
        let mut memory = VecMemory::new(0x4000);
        let paging = Paging { cr3: 0xffff_f000, ..LONG };
        assert_eq!(
            translate(&mut memory, &paging, 0, Access::Fetch),
            Err(WalkError::TableOutOfRam)
        );
        put(&mut memory, 0x1000, ADDRESS | 7);
        assert_eq!(translate(&mut memory, &LONG, 0, Access::Fetch), Err(WalkError::TableOutOfRam));
    }
}
