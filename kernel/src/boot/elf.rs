//! The root task's ELF64 file: where its segments go and where it starts.

use super::loader::{u32_at, u64_at};

/// Lowest address a root task may not use: user addresses end here.
pub const USER_TOP: u64 = 0x7fff_ffff_f000;
/// Most loadable segments read.
pub const MAX_SEGMENTS: usize = 64;

/// Why a module cannot be started as root task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElfError {
    /// It is not a 64-bit ELF file.
    NotElf64,
    /// Headers lie outside the file.
    Truncated,
    /// It has no loadable segment.
    NothingToLoad,
    /// More loadable segments than [`MAX_SEGMENTS`].
    TooManySegments,
    /// A segment's bytes lie outside the file, or its file size exceeds its memory size.
    SegmentOutsideFile {
        /// Its index in the program header table.
        index: usize,
    },
    /// A segment reaches outside the addresses a user may use.
    SegmentAddress {
        /// Its index in the program header table.
        index: usize,
    },
    /// The lowest segment does not start on a page.
    Unaligned {
        /// Its address.
        address: u64,
    },
    /// The entry point is in none of the segments.
    EntryOutside {
        /// Its address.
        entry: u64,
    },
}

impl core::fmt::Display for ElfError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotElf64 => f.write_str("not a 64-bit ELF file"),
            Self::Truncated => f.write_str("file is shorter than its headers say"),
            Self::NothingToLoad => f.write_str("no loadable segment"),
            Self::TooManySegments => write!(f, "more than {MAX_SEGMENTS} loadable segments"),
            Self::SegmentOutsideFile { index } => {
                write!(f, "segment {index} reaches outside the file")
            }
            Self::SegmentAddress { index } => {
                write!(f, "segment {index} reaches outside user addresses")
            }
            Self::Unaligned { address } => {
                write!(f, "lowest segment starts at {address:#x}, which is not a page")
            }
            Self::EntryOutside { entry } => {
                write!(f, "entry point {entry:#x} lies outside the image")
            }
        }
    }
}

/// One loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address of its first byte.
    pub vaddr: u64,
    /// Offset of its bytes in the file.
    pub offset: usize,
    /// Bytes in the file; the rest of the segment is zero.
    pub filesz: usize,
}

/// A checked root-task image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Address of the first page.
    pub start: u64,
    /// Address after the last page.
    pub end: u64,
    /// Address of the first instruction.
    pub entry: u64,
    /// What to copy where.
    pub segments: heapless::Vec<Segment, MAX_SEGMENTS>,
}

impl Image {
    /// Checks `file` and finds its segments. `extra_pages` pages follow the image and must fit below [`USER_TOP`].
    ///
    /// # Errors
    /// See [`ElfError`].
    pub fn parse(file: &[u8], extra_pages: u64) -> Result<Self, ElfError> {
        const PT_LOAD: u32 = 1;
        if file.get(..5) != Some(b"\x7fELF\x02") {
            return Err(ElfError::NotElf64);
        }
        let entry = u64_at(file, 24).ok_or(ElfError::Truncated)?;
        let table = u64_at(file, 32).ok_or(ElfError::Truncated)?;
        let sizes = u32_at(file, 54).ok_or(ElfError::Truncated)?;
        let (entry_size, count) = ((sizes & 0xffff) as usize, (sizes >> 16) as usize);
        let table = usize::try_from(table).map_err(|_| ElfError::Truncated)?;
        if count > 0 && entry_size < 56 {
            return Err(ElfError::Truncated);
        }
        let top = USER_TOP - extra_pages * 4096;
        let mut segments = heapless::Vec::new();
        let (mut low, mut high) = (u64::MAX, 0);
        for index in 0..count {
            let at = index
                .checked_mul(entry_size)
                .and_then(|offset| table.checked_add(offset))
                .ok_or(ElfError::Truncated)?;
            let end = at.checked_add(56).ok_or(ElfError::Truncated)?;
            let header = file.get(at..end).ok_or(ElfError::Truncated)?;
            let word = |offset| u64_at(header, offset).ok_or(ElfError::Truncated);
            let memsz = word(40)?;
            if u32_at(header, 0) != Some(PT_LOAD) || memsz == 0 {
                continue;
            }
            let outside = ElfError::SegmentOutsideFile { index };
            let (offset, filesz, vaddr) = (word(8)?, word(32)?, word(16)?);
            let offset = usize::try_from(offset).map_err(|_| outside)?;
            let filesz = usize::try_from(filesz).map_err(|_| outside)?;
            let in_file = offset.checked_add(filesz).is_some_and(|end| end <= file.len());
            if !in_file || filesz as u64 > memsz {
                return Err(outside);
            }
            let end = vaddr.checked_add(memsz).filter(|end| *end <= top);
            let end = end.ok_or(ElfError::SegmentAddress { index })?;
            low = low.min(vaddr);
            high = high.max(end);
            segments
                .push(Segment { vaddr, offset, filesz })
                .map_err(|_| ElfError::TooManySegments)?;
        }
        if segments.is_empty() {
            return Err(ElfError::NothingToLoad);
        }
        if low % 4096 != 0 {
            return Err(ElfError::Unaligned { address: low });
        }
        let end = (high + 4095) & !4095;
        if !(low..end).contains(&entry) {
            return Err(ElfError::EntryOutside { entry });
        }
        Ok(Self { start: low, end, entry, segments })
    }

    /// Pages of the image.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        (self.end - self.start) / 4096
    }

    /// Copies the segments to their places in `memory`, which is zero and as long as the image.
    pub fn copy(&self, file: &[u8], memory: &mut [u8]) {
        for segment in &self.segments {
            let from = file.get(segment.offset..segment.offset + segment.filesz);
            let start = usize::try_from(segment.vaddr - self.start).ok();
            let to = start.and_then(|at| memory.get_mut(at..at.checked_add(segment.filesz)?));
            // Both exist: `parse` has checked the file side, and the image spans all segments.
            if let (Some(from), Some(to)) = (from, to) {
                to.copy_from_slice(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(entry: u64, headers: &[(u32, u64, u64, u64, u64)]) -> std::vec::Vec<u8> {
        let mut f = vec![0; 0x200];
        f[..5].copy_from_slice(b"\x7fELF\x02");
        f[24..32].copy_from_slice(&entry.to_le_bytes());
        f[32..40].copy_from_slice(&64u64.to_le_bytes());
        f[54..56].copy_from_slice(&56u16.to_le_bytes());
        f[56..58].copy_from_slice(&u16::try_from(headers.len()).unwrap().to_le_bytes());
        for (i, (kind, offset, vaddr, filesz, memsz)) in headers.iter().enumerate() {
            let h = &mut f[64 + i * 56..64 + (i + 1) * 56];
            h[0..4].copy_from_slice(&kind.to_le_bytes());
            for (at, value) in [(8, offset), (16, vaddr), (32, filesz), (40, memsz)] {
                h[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        f
    }

    #[test]
    fn span_covers_all_segments_and_copy_places_them() {
        let mut f = file(
            0x40_1004,
            &[(1, 0x180, 0x40_1000, 8, 8), (4, 0, 0, 0, 9), (1, 0x188, 0x40_0000, 4, 0x10)],
        );
        f[0x180..0x18c].copy_from_slice(b"abcdefghijkl");
        let image = Image::parse(&f, 2).unwrap();
        assert_eq!((image.start, image.end, image.pages()), (0x40_0000, 0x40_2000, 2));
        let mut memory = vec![0; 0x2000];
        image.copy(&f, &mut memory);
        assert_eq!(&memory[0x1000..0x1009], b"abcdefgh\0");
        assert_eq!(&memory[..5], b"ijkl\0");
    }

    #[test]
    fn each_defect_has_its_error() {
        let parse = |f: &[u8]| Image::parse(f, 2).map(|_| ()).unwrap_err();
        assert_eq!(parse(b"\x7fELF\x01"), ElfError::NotElf64);
        assert_eq!(parse(&file(0, &[])), ElfError::NothingToLoad);
        let mut short = file(0x40_0000, &[(1, 0, 0x40_0000, 0, 1)]);
        short.truncate(100);
        assert_eq!(parse(&short), ElfError::Truncated);
        assert_eq!(
            parse(&file(0x40_0000, &[(1, 0x1f0, 0x40_0000, 0x20, 0x20)])),
            ElfError::SegmentOutsideFile { index: 0 }
        );
        assert_eq!(
            parse(&file(0x40_0000, &[(1, 0, 0x40_0000, 0x20, 0x10)])),
            ElfError::SegmentOutsideFile { index: 0 }
        );
        assert_eq!(
            parse(&file(0x40_0000, &[(1, u64::MAX, 0x40_0000, 2, 2)])),
            ElfError::SegmentOutsideFile { index: 0 }
        );
        assert_eq!(
            parse(&file(0x40_0000, &[(1, 0, USER_TOP - 0x2000, 1, 0x1001)])),
            ElfError::SegmentAddress { index: 0 }
        );
        assert_eq!(
            parse(&file(0x40_0000, &[(1, 0, u64::MAX - 1, 0, 0x1001)])),
            ElfError::SegmentAddress { index: 0 }
        );
        assert_eq!(
            parse(&file(0x40_0010, &[(1, 0, 0x40_0010, 1, 1)])),
            ElfError::Unaligned { address: 0x40_0010 }
        );
        assert_eq!(
            parse(&file(0x50_0000, &[(1, 0, 0x40_0000, 1, 1)])),
            ElfError::EntryOutside { entry: 0x50_0000 }
        );
    }

    #[test]
    fn a_damaged_byte_never_panics() {
        let good = file(0x40_0000, &[(1, 0x180, 0x40_0000, 8, 8), (1, 0, 0x41_0000, 64, 128)]);
        for at in 0..176 {
            for value in [0u8, 1, 0x80, 0xff] {
                let mut f = good.clone();
                f[at] = value;
                if let Ok(image) = Image::parse(&f, 2) {
                    assert!(image.pages() > 0);
                }
            }
        }
    }
}
