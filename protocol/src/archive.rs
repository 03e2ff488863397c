//! The boot archive: what the builder appends to the root-task.
//!
//! One page-aligned run of bytes: a [`Header`], a table of [`Entry`]s, then every blob at a
//! page-aligned offset, so that a server's ELF or a guest's kernel can be mapped where it lies.
//! The builder writes it with [`Layout`] and [`Entry::to_bytes`]; the root-task reads it with
//! [`Archive::parse`]. All numbers are little-endian and relative to the archive's first byte.

use crate::units::PAGE_SIZE;

/// First eight bytes of an archive: "BALLAST" and a zero.
pub const MAGIC: [u8; 8] = *b"BALLAST\0";
/// Layout version; a reader refuses any other.
pub const VERSION: u32 = 1;
/// Bytes of the header: magic, version, entry count, total length.
pub const HEADER_BYTES: usize = 24;
/// Bytes of one table entry.
pub const ENTRY_BYTES: usize = 72;
/// Longest entry name in bytes; shorter names are padded with zeros.
pub const NAME_BYTES: usize = 48;
/// Most entries of one archive: servers, and three artefacts for each of 16 VMs, with room.
pub const ENTRIES_MAX: usize = 64;

/// What a blob is. Values are part of the format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Kind {
    /// The postcard of a [`crate::system::System`]; its name is `system`.
    System = 1,
    /// A server's ELF, named after its package (`mem-server`).
    Server = 2,
    /// A guest's kernel image, as named by [`crate::system::Vm::kernel`].
    GuestKernel = 3,
    /// A guest's initrd or boot module.
    GuestModule = 4,
}

impl Kind {
    /// The kind with this value, if there is one.
    pub const fn from_value(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::System),
            2 => Some(Self::Server),
            3 => Some(Self::GuestKernel),
            4 => Some(Self::GuestModule),
            _ => None,
        }
    }
}

/// Why bytes are no archive. The builder's fault or a damaged boot medium: do not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// The magic number is missing.
    NoMagic,
    /// Written for another version of this format.
    Version {
        /// The version found.
        found: u32,
    },
    /// The bytes end before the header, the table or a blob does.
    Truncated,
    /// Entry `index` has a wild kind, name, offset or length.
    BadEntry {
        /// Position in the table.
        index: u32,
    },
}

/// One blob of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its name, unique within its kind.
    pub name: &'a str,
    /// Where it starts, from the archive's first byte; a multiple of the page size.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

impl Entry<'_> {
    /// The entry as it stands in the table; `None` if the name is too long, empty or holds a zero.
    pub fn to_bytes(&self) -> Option<[u8; ENTRY_BYTES]> {
        let name = self.name.as_bytes();
        if name.is_empty() || name.len() > NAME_BYTES || name.contains(&0) {
            return None;
        }
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..name.len()].copy_from_slice(name);
        bytes[48..52].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[56..64].copy_from_slice(&self.offset.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.length.to_le_bytes());
        Some(bytes)
    }
}

/// Where blobs go: hands out page-aligned offsets in table order.
#[derive(Clone, Debug)]
pub struct Layout {
    next: u64,
}

impl Layout {
    /// The layout of an archive with `entries` blobs.
    pub const fn new(entries: usize) -> Self {
        let table = HEADER_BYTES + entries * ENTRY_BYTES;
        Self { next: (table as u64).next_multiple_of(PAGE_SIZE) }
    }

    /// Offset of the next blob, which has `length` bytes.
    pub const fn place(&mut self, length: u64) -> u64 {
        let offset = self.next;
        self.next = (offset + length).next_multiple_of(PAGE_SIZE);
        offset
    }

    /// Length of the whole archive so far, page-aligned.
    pub const fn total(&self) -> u64 {
        self.next
    }
}

/// The header of an archive with `count` entries and `total` bytes.
pub fn header(count: u32, total: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&count.to_le_bytes());
    bytes[16..24].copy_from_slice(&total.to_le_bytes());
    bytes
}

/// A parsed archive: every entry has been checked to lie inside the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    count: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Length in bytes of the archive whose header is `bytes`, before anything behind it is touched.
///
/// # Errors
///
/// [`ArchiveError`] if the header is not one of ours.
pub fn total_length(bytes: &[u8]) -> Result<u64, ArchiveError> {
    let magic = bytes.get(..8).ok_or(ArchiveError::Truncated)?;
    if magic != MAGIC {
        return Err(ArchiveError::NoMagic);
    }
    let found = u32_at(bytes, 8).ok_or(ArchiveError::Truncated)?;
    if found != VERSION {
        return Err(ArchiveError::Version { found });
    }
    u64_at(bytes, 16).ok_or(ArchiveError::Truncated)
}

impl<'a> Archive<'a> {
    /// Checks `bytes`, which may be longer than the archive.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`] if the header, the table or any entry is not what the builder writes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ArchiveError> {
        let total = total_length(bytes)?;
        let count = u32_at(bytes, 12).ok_or(ArchiveError::Truncated)?;
        let total = usize::try_from(total).map_err(|_| ArchiveError::Truncated)?;
        let bytes = bytes.get(..total).ok_or(ArchiveError::Truncated)?;
        if count as usize > ENTRIES_MAX {
            return Err(ArchiveError::Truncated);
        }
        let archive = Self { bytes, count };
        for index in 0..count {
            let entry = archive.entry(index).ok_or(ArchiveError::BadEntry { index })?;
            archive.bytes_of(&entry).ok_or(ArchiveError::BadEntry { index })?;
        }
        Ok(archive)
    }

    fn entry(&self, index: u32) -> Option<Entry<'a>> {
        let start = HEADER_BYTES + index as usize * ENTRY_BYTES;
        let raw = self.bytes.get(start..start + ENTRY_BYTES)?;
        let name = raw.get(..NAME_BYTES)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES);
        let name = core::str::from_utf8(name.get(..end)?).ok()?;
        let kind = Kind::from_value(u32_at(raw, 48)?)?;
        let entry = Entry { kind, name, offset: u64_at(raw, 56)?, length: u64_at(raw, 64)? };
        (!name.is_empty() && entry.offset.is_multiple_of(PAGE_SIZE)).then_some(entry)
    }

    /// All entries in table order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        let archive = *self;
        (0..self.count).filter_map(move |index| archive.entry(index))
    }

    /// The blob of an entry of this archive.
    pub fn bytes_of(&self, entry: &Entry<'_>) -> Option<&'a [u8]> {
        let start = usize::try_from(entry.offset).ok()?;
        let end = start.checked_add(usize::try_from(entry.length).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The entry of `kind` called `name`.
    pub fn find(&self, kind: Kind, name: &str) -> Option<Entry<'a>> {
        self.entries().find(|entry| entry.kind == kind && entry.name == name)
    }

    /// The blob of `kind` called `name`.
    pub fn find_bytes(&self, kind: Kind, name: &str) -> Option<&'a [u8]> {
        self.bytes_of(&self.find(kind, name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{Archive, ArchiveError, ENTRY_BYTES, Entry, HEADER_BYTES, Kind, Layout, header};

    fn sample() -> Vec<u8> {
        let blobs: [(Kind, &str, &[u8]); 2] =
            [(Kind::System, "system", b"abc"), (Kind::Server, "mem-server", &[7; 5000])];
        let mut layout = Layout::new(blobs.len());
        let mut table = Vec::new();
        let mut placed = Vec::new();
        for (kind, name, blob) in blobs {
            let offset = layout.place(blob.len() as u64);
            let entry = Entry { kind, name, offset, length: blob.len() as u64 };
            table.extend(entry.to_bytes().unwrap());
            placed.push((offset as usize, blob));
        }
        let mut bytes = header(2, layout.total()).to_vec();
        bytes.extend(table);
        bytes.resize(layout.total() as usize, 0);
        for (offset, blob) in placed {
            bytes[offset..offset + blob.len()].copy_from_slice(blob);
        }
        bytes
    }

    #[test]
    fn what_was_written_is_found() {
        let bytes = sample();
        let archive = Archive::parse(&bytes).unwrap();
        assert_eq!(archive.entries().count(), 2);
        assert_eq!(archive.find_bytes(Kind::System, "system"), Some(&b"abc"[..]));
        assert_eq!(archive.find_bytes(Kind::Server, "mem-server"), Some(&[7; 5000][..]));
        assert_eq!(archive.find_bytes(Kind::Server, "system"), None);
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(Archive::parse(&bytes[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn an_entry_outside_the_archive_is_refused() {
        let mut bytes = sample();
        let length = HEADER_BYTES + ENTRY_BYTES + 64;
        bytes[length..length + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Archive::parse(&bytes).err(), Some(ArchiveError::BadEntry { index: 1 }));
        let mut bytes = sample();
        bytes[HEADER_BYTES + 48] = 99;
        assert_eq!(Archive::parse(&bytes).err(), Some(ArchiveError::BadEntry { index: 0 }));
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let entry = Entry { kind: Kind::Server, name: &"x".repeat(49), offset: 0, length: 0 };
        assert_eq!(entry.to_bytes(), None);
        assert_eq!(Entry { name: "", ..entry }.to_bytes(), None);
    }
}
