//! What a server's image needs: its segments as pages, and the memory of all its objects.
//!
//! Segments without write permission are mapped from where they lie in the boot archive, shared by
//! all servers of that image; writable ones are copied or zeroed.

use elf::ElfBytes;
use elf::endian::LittleEndian;
use heapless::Vec;
use protocol::startup::{IMAGE_VADDR, STARTUP_VADDR};
use protocol::units::PAGE_SIZE;

/// Most segments of a server.
pub const SEGMENTS_MAX: usize = 8;

/// One loadable segment, in whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First virtual address, page aligned.
    pub vaddr: u64,
    /// Pages covered.
    pub pages: u64,
    /// Where the first page's bytes lie in the file: page aligned exactly if `is_writable` is false.
    pub offset: u64,
    /// Bytes between `vaddr` and the segment's first byte.
    pub skip: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Writable, so private; otherwise mapped from the archive.
    pub is_writable: bool,
}

/// A server's image, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// First instruction.
    pub entry: u64,
    /// Its segments, by address.
    pub segments: Vec<Segment, SEGMENTS_MAX>,
}

/// Why an image cannot be started. The builder's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// No ELF of this machine, or its header points outside the file.
    NotElf,
    /// A segment lies outside the range for images, or overlaps another.
    Address,
    /// A segment's bytes are not in the file.
    Bytes,
    /// More segments than [`SEGMENTS_MAX`].
    Segments,
    /// A read-only segment is not page aligned in the file.
    Alignment,
}

/// Address and file offset are congruent: a page of the file is a page of memory.
const fn is_mappable(offset: u64, vaddr: u64) -> bool {
    offset % PAGE_SIZE == vaddr % PAGE_SIZE
}

impl Image {
    /// Reads an ELF.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not one the root-task can start.
    pub fn parse(file: &[u8]) -> Result<Self, ImageError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| ImageError::NotElf)?;
        let headers = elf.segments().ok_or(ImageError::NotElf)?;
        let mut segments = Vec::new();
        let mut end = IMAGE_VADDR;
        for header in headers.iter().filter(|h| h.p_type == elf::abi::PT_LOAD && h.p_memsz > 0) {
            let last = header.p_vaddr.checked_add(header.p_memsz).ok_or(ImageError::Address)?;
            let vaddr = header.p_vaddr / PAGE_SIZE * PAGE_SIZE;
            if vaddr < end || last > STARTUP_VADDR || header.p_filesz > header.p_memsz {
                return Err(ImageError::Address);
            }
            let file_end = header.p_offset.checked_add(header.p_filesz);
            if file_end.is_none_or(|file_end| file_end > file.len() as u64) {
                return Err(ImageError::Bytes);
            }
            let is_writable = header.p_flags & elf::abi::PF_W != 0;
            let skip = header.p_vaddr - vaddr;
            if !is_writable && !is_mappable(header.p_offset, header.p_vaddr) {
                return Err(ImageError::Alignment);
            }
            end = last.next_multiple_of(PAGE_SIZE);
            let segment = Segment {
                vaddr,
                pages: (end - vaddr) / PAGE_SIZE,
                offset: if is_writable { header.p_offset } else { header.p_offset - skip },
                skip,
                file_bytes: header.p_filesz,
                is_writable,
            };
            segments.push(segment).map_err(|_| ImageError::Segments)?;
        }
        let entry = elf.ehdr.e_entry;
        let holds = |s: &Segment| (s.vaddr..s.vaddr + s.pages * PAGE_SIZE).contains(&entry);
        if !segments.iter().any(holds) {
            return Err(ImageError::Address);
        }
        Ok(Self { entry, segments })
    }

    /// Pages that need memory of their own.
    pub fn private_pages(&self) -> u64 {
        self.segments.iter().filter(|s| s.is_writable).map(|s| s.pages).sum()
    }

    /// Pages mapped from the archive.
    pub fn shared_pages(&self) -> u64 {
        self.segments.iter().filter(|s| !s.is_writable).map(|s| s.pages).sum()
    }
}

/// The part of a writable segment's file bytes that falls into its page `page`: offset in the page, then the file range.
pub fn page_bytes(segment: &Segment, page: u64) -> Option<(usize, core::ops::Range<usize>)> {
    let (first, last) = (segment.skip, segment.skip + segment.file_bytes);
    let from = first.max(page * PAGE_SIZE);
    let to = last.min((page + 1) * PAGE_SIZE);
    if from >= to {
        return None;
    }
    let start = segment.offset + (from - first);
    let range = usize::try_from(start).ok()?..usize::try_from(start + (to - from)).ok()?;
    Some((usize::try_from(from % PAGE_SIZE).ok()?, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segments: &[(u64, u64, u64, u64, u32)], size: usize) -> std::vec::Vec<u8> {
        let mut file = vec![0u8; size];
        file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[24..32].copy_from_slice(&0x40_0010u64.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for (index, (offset, vaddr, filesz, memsz, flags)) in segments.iter().enumerate() {
            let at = 64 + 56 * index;
            file[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
            file[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
            for (place, value) in [(8, offset), (16, vaddr), (32, filesz), (40, memsz)] {
                file[at + place..at + place + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        file
    }

    #[test]
    fn a_server_is_read_only_pages_and_private_pages() {
        let file = elf(
            &[(0x1000, 0x40_0000, 0x1800, 0x1800, 5), (0x2800, 0x40_2800, 0x900, 0x3000, 6)],
            0x4000,
        );
        let image = Image::parse(&file).unwrap();
        assert_eq!((image.shared_pages(), image.private_pages()), (2, 4));
        let data = image.segments[1];
        assert_eq!(page_bytes(&data, 0), Some((0x800, 0x2800..0x3000)));
        assert_eq!(page_bytes(&data, 1), Some((0, 0x3000..0x3100)));
        assert_eq!(page_bytes(&data, 2), None);
    }

    #[test]
    fn bad_images_are_refused() {
        assert_eq!(Image::parse(b"no"), Err(ImageError::NotElf));
        let outside = elf(&[(0x1000, 0x1000, 16, 16, 5)], 0x2000);
        assert_eq!(Image::parse(&outside), Err(ImageError::Address));
        let short = elf(&[(0x1000, 0x40_0000, 0x2000, 0x2000, 5)], 0x2000);
        assert_eq!(Image::parse(&short), Err(ImageError::Bytes));
        let skewed = elf(&[(0x1010, 0x40_0000, 0x20, 0x20, 5)], 0x2000);
        assert_eq!(Image::parse(&skewed), Err(ImageError::Alignment));
        let overlap =
            elf(&[(0x1000, 0x40_0000, 16, 0x2000, 5), (0x1000, 0x40_1000, 16, 16, 6)], 0x2000);
        assert_eq!(Image::parse(&overlap), Err(ImageError::Address));
    }
}
