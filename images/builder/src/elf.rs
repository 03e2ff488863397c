//! Lays out a root-task ELF anew with one more segment: the boot archive.
//!
//! The kernel knows no archive. It maps the segments of boot module 0, and the root-task finds
//! the archive at the first page boundary behind its own last byte.

use protocol::units::PAGE_SIZE;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_TLS: u32 = 7;
const PT_GNU_STACK: u32 = 0x6474_e551;
const READABLE: u32 = 4;

/// Why bytes are not an ELF this builder can pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not a 64-bit little-endian ELF executable.
    NotElf64,
    /// A header or segment lies outside the file.
    Truncated,
    /// No loadable segment.
    Empty,
}

impl ElfError {
    /// What to tell the user.
    pub const fn message(self) -> &'static str {
        match self {
            Self::NotElf64 => "is not a 64-bit little-endian ELF executable for x86-64",
            Self::Truncated => "is a damaged ELF file: a segment lies outside it",
            Self::Empty => "is an ELF file without a loadable segment",
        }
    }
}

/// One segment of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    vaddr: u64,
    paddr: u64,
    memory_size: u64,
    align: u64,
    bytes: Vec<u8>,
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ElfError> {
    let slice = at.checked_add(N).and_then(|end| bytes.get(at..end)).ok_or(ElfError::Truncated)?;
    slice.try_into().map_err(|_| ElfError::Truncated)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ElfError> {
    word(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ElfError> {
    word(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ElfError> {
    word(bytes, at).map(u64::from_le_bytes)
}

fn size(value: u64) -> Result<usize, ElfError> {
    usize::try_from(value).map_err(|_| ElfError::Truncated)
}

fn segments(file: &[u8]) -> Result<Vec<Segment>, ElfError> {
    let is_ours = file.get(..6) == Some(b"\x7fELF\x02\x01") && u16_at(file, 18)? == 62;
    if !is_ours {
        return Err(ElfError::NotElf64);
    }
    let table = size(u64_at(file, 32)?)?;
    let entry = usize::from(u16_at(file, 54)?);
    let mut segments = Vec::new();
    for index in 0..usize::from(u16_at(file, 56)?) {
        let at = table.checked_add(index * entry).ok_or(ElfError::Truncated)?;
        let start = size(u64_at(file, at + 8)?)?;
        let length = size(u64_at(file, at + 32)?)?;
        let end = start.checked_add(length).ok_or(ElfError::Truncated)?;
        let kind = u32_at(file, at)?;
        if ![PT_LOAD, PT_TLS, PT_GNU_STACK].contains(&kind) {
            continue;
        }
        segments.push(Segment {
            kind,
            flags: u32_at(file, at + 4)?,
            vaddr: u64_at(file, at + 16)?,
            paddr: u64_at(file, at + 24)?,
            memory_size: u64_at(file, at + 40)?,
            align: u64_at(file, at + 48)?,
            bytes: file.get(start..end).ok_or(ElfError::Truncated)?.to_vec(),
        });
    }
    Ok(segments)
}

/// `file` without sections and symbols, and with `archive`, if any, as a last read-only segment.
///
/// # Errors
///
/// [`ElfError`] if `file` is not a 64-bit ELF executable.
pub fn pack(file: &[u8], archive: Option<&[u8]>) -> Result<Vec<u8>, ElfError> {
    let mut segments = segments(file)?;
    let loadable = segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let end = loadable.map(|s| s.vaddr.saturating_add(s.memory_size)).max();
    let end = end.ok_or(ElfError::Empty)?.next_multiple_of(PAGE_SIZE);
    if let Some(archive) = archive {
        segments.push(Segment {
            kind: PT_LOAD,
            flags: READABLE,
            vaddr: end,
            paddr: end,
            memory_size: archive.len() as u64,
            align: PAGE_SIZE,
            bytes: archive.to_vec(),
        });
    }
    let mut out = file.get(..HEADER_BYTES).ok_or(ElfError::Truncated)?.to_vec();
    let count = u16::try_from(segments.len()).map_err(|_| ElfError::Truncated)?;
    out.get_mut(32..40).ok_or(ElfError::Truncated)?.copy_from_slice(&64u64.to_le_bytes());
    out.get_mut(40..48).ok_or(ElfError::Truncated)?.fill(0); // no section headers
    out.get_mut(54..64).ok_or(ElfError::Truncated)?.fill(0);
    out.get_mut(54..56).ok_or(ElfError::Truncated)?.copy_from_slice(&56u16.to_le_bytes());
    out.get_mut(56..58).ok_or(ElfError::Truncated)?.copy_from_slice(&count.to_le_bytes());
    let mut body = Vec::new();
    let body_start =
        ((HEADER_BYTES + segments.len() * PROGRAM_HEADER_BYTES) as u64).next_multiple_of(PAGE_SIZE);
    for segment in &segments {
        // A loader maps whole pages: the file offset is congruent to the address.
        let here = body_start + body.len() as u64;
        let offset = here.next_multiple_of(PAGE_SIZE) + segment.vaddr % PAGE_SIZE;
        body.resize(size(offset - body_start)?, 0);
        body.extend(&segment.bytes);
        out.extend(segment.kind.to_le_bytes());
        out.extend(segment.flags.to_le_bytes());
        for value in [
            offset,
            segment.vaddr,
            segment.paddr,
            segment.bytes.len() as u64,
            segment.memory_size,
            segment.align,
        ] {
            out.extend(value.to_le_bytes());
        }
    }
    out.resize(size(body_start)?, 0);
    out.extend(body);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::{ElfError, PT_LOAD, Segment, pack, segments};

    fn header(count: u16) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[24..32].copy_from_slice(&0x40_0010u64.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&count.to_le_bytes());
        file
    }

    /// One segment of 16 bytes at 0x400010, which has 0x2000 bytes in memory.
    fn sample() -> Vec<u8> {
        let mut file = header(1);
        file.extend(PT_LOAD.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        for value in [120u64, 0x40_0010, 0x40_0010, 16, 0x2000, 4096] {
            file.extend(value.to_le_bytes());
        }
        file.extend([0xcc; 16]);
        file
    }

    #[test]
    fn the_archive_comes_directly_behind_the_last_page() {
        let packed = pack(&sample(), Some(&[7; 5000])).unwrap();
        let found = segments(&packed).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], segments(&sample()).unwrap()[0]);
        let Segment { vaddr, memory_size, flags, bytes, .. } = &found[1];
        assert_eq!((*vaddr, *memory_size, *flags), (0x40_3000, 5000, 4));
        assert_eq!(bytes, &[7; 5000]);
        assert_eq!(packed[24..32], sample()[24..32], "the entry point stays");
    }

    #[test]
    fn offsets_are_congruent_to_addresses() {
        let packed = pack(&sample(), Some(&[7; 5000])).unwrap();
        for index in 0..2 {
            let at = 64 + index * 56;
            let offset = u64::from_le_bytes(packed[at + 8..at + 16].try_into().unwrap());
            let vaddr = u64::from_le_bytes(packed[at + 16..at + 24].try_into().unwrap());
            assert_eq!(offset % 4096, vaddr % 4096);
        }
    }

    #[test]
    fn packing_twice_changes_nothing_more() {
        let once = pack(&sample(), None).unwrap();
        assert_eq!(pack(&once, None).unwrap(), once);
    }

    #[test]
    fn what_is_no_elf_is_refused() {
        assert_eq!(pack(b"#!/bin/sh", None), Err(ElfError::NotElf64));
        assert_eq!(pack(&header(1), None), Err(ElfError::Truncated));
        assert_eq!(pack(&header(0), None), Err(ElfError::Empty));
        let sample = sample();
        for length in 0..sample.len() {
            assert!(pack(&sample[..length], None).is_err(), "length {length}");
        }
    }
}
