//! ELF32 and ELF64 executables for x86, as far as loading by physical address needs.

use super::{BootError, KERNEL_MIN, u16_at, u32_at, u64_at};
use crate::guest_memory::GuestMemory;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// An ELF file with a sound header.
#[derive(Clone, Copy, Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    is_64: bool,
    entry: u64,
    table: u64,
    entry_size: u16,
    count: u16,
}

/// One program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    file_size: u64,
    memory_size: u64,
}

impl<'a> Elf<'a> {
    /// Parses the header; `None` if this is no little-endian x86 executable.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ident = bytes.get(..16)?;
        if ident.get(..4)? != b"\x7fELF" || ident.get(5) != Some(&1) {
            return None;
        }
        let is_64 = match ident.get(4)? {
            1 => false,
            2 => true,
            _ => return None,
        };
        let machine = u16_at(bytes, 18)?;
        if u16_at(bytes, 16)? != 2 || !matches!(machine, 3 | 62) {
            return None;
        }
        let (entry, table, sizes) = if is_64 {
            (u64_at(bytes, 24)?, u64_at(bytes, 32)?, 54)
        } else {
            (u64::from(u32_at(bytes, 24)?), u64::from(u32_at(bytes, 28)?), 42)
        };
        let (entry_size, count) = (u16_at(bytes, sizes)?, u16_at(bytes, sizes + 2)?);
        Some(Self { bytes, is_64, entry, table, entry_size, count })
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        let elf = *self;
        (0..u64::from(self.count)).map_while(move |index| {
            let at = elf.table.checked_add(index * u64::from(elf.entry_size))?;
            let at = usize::try_from(at).ok()?;
            let header = elf.bytes.get(at..)?;
            let kind = u32_at(header, 0)?;
            if elf.is_64 {
                Some(Segment {
                    kind,
                    offset: u64_at(header, 8)?,
                    vaddr: u64_at(header, 16)?,
                    paddr: u64_at(header, 24)?,
                    file_size: u64_at(header, 32)?,
                    memory_size: u64_at(header, 40)?,
                })
            } else {
                let word = |at| u32_at(header, at).map(u64::from);
                Some(Segment {
                    kind,
                    offset: word(4)?,
                    vaddr: word(8)?,
                    paddr: word(12)?,
                    file_size: word(16)?,
                    memory_size: word(20)?,
                })
            }
        })
    }

    fn contents(&self, segment: &Segment) -> Option<&'a [u8]> {
        let start = usize::try_from(segment.offset).ok()?;
        let end = start.checked_add(usize::try_from(segment.file_size).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The entry point as a physical address.
    pub fn physical_entry(&self) -> u64 {
        for segment in self.segments().filter(|segment| segment.kind == PT_LOAD) {
            let offset = self.entry.wrapping_sub(segment.vaddr);
            if offset < segment.memory_size {
                return segment.paddr.wrapping_add(offset);
            }
        }
        self.entry
    }

    /// The 32-bit entry point of a PVH kernel.
    pub fn pvh_entry(&self) -> Option<u64> {
        self.segments()
            .filter(|segment| segment.kind == PT_NOTE)
            .filter_map(|segment| self.contents(&segment))
            .find_map(find_pvh_note)
    }

    /// Copies all segments to their physical addresses; returns the end of the highest one.
    ///
    /// # Errors
    ///
    /// [`BootError`] if a segment lies below 1 MiB, outside RAM, or is not in the file.
    pub fn load(&self, memory: &mut impl GuestMemory) -> Result<u64, BootError> {
        let mut end = 0;
        for segment in self.segments().filter(|segment| segment.kind == PT_LOAD) {
            if segment.memory_size == 0 {
                continue;
            }
            let bytes = self.contents(&segment).ok_or(BootError::Malformed)?;
            if segment.paddr < KERNEL_MIN || segment.file_size > segment.memory_size {
                return Err(BootError::BadAddress { address: segment.paddr });
            }
            memory.check(segment.paddr, segment.memory_size)?;
            memory.write(segment.paddr, bytes)?;
            end = end.max(segment.paddr + segment.memory_size);
        }
        if end == 0 { Err(BootError::Malformed) } else { Ok(end) }
    }
}

fn find_pvh_note(mut notes: &[u8]) -> Option<u64> {
    loop {
        let name_size = u32_at(notes, 0)? as usize;
        let value_size = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let value_at = 12usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let next = value_at.checked_add(value_size.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12usize.checked_add(name_size)?)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            return match value_size {
                4 => u32_at(notes, value_at).map(u64::from),
                8 => u64_at(notes, value_at),
                _ => None,
            };
        }
        notes = notes.get(next..)?;
    }
}
