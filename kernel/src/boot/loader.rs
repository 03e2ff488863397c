//! What a boot loader tells us, whichever protocol it speaks: Xen's PVH `start_info` or a Multiboot2 information block.
//!
//! Everything wanted later is copied out, because the blocks lie in memory that is about to be reused.

use heapless::Vec;

use super::regions::{MAX_REGIONS, Region, RegionSet, TooManyRegions};

/// Longest command line kept; the rest is cut off.
pub const MAX_CMDLINE: usize = 512;
/// Bytes of the root system description pointer, revision 2.
pub const RSDP_BYTES: usize = 36;
/// First word of a PVH `start_info`.
pub const PVH_MAGIC: u32 = 0x336e_c578;

/// Read access to physical memory.
pub trait PhysicalMemory {
    /// The bytes at `address`, or nothing if this memory cannot be reached.
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]>;
}

/// Physical memory from address 0 on, for tests of whatever reads tables in it.
#[cfg(test)]
pub(crate) struct Arena(pub(crate) std::vec::Vec<u8>);

#[cfg(test)]
impl PhysicalMemory for Arena {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(address).ok()?;
        self.0.get(start..start.checked_add(length)?)
    }
}

/// One entry of the firmware's memory map, as given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub length: u64,
    /// E820 type: 1 is usable memory.
    pub kind: u32,
}

/// Why the loader's information cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoaderError {
    /// Neither protocol's magic number was found.
    UnknownProtocol,
    /// A structure lies outside reachable memory or its lengths make no sense.
    Malformed(&'static str),
    /// The memory map has more entries than the kernel keeps.
    TooManyRegions,
    /// No memory map was given.
    NoMemoryMap,
    /// No boot module was given: there is no root task to start.
    NoModule,
}

impl From<TooManyRegions> for LoaderError {
    fn from(_: TooManyRegions) -> Self {
        Self::TooManyRegions
    }
}

impl core::fmt::Display for LoaderError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownProtocol => f.write_str("started by neither PVH nor Multiboot2"),
            Self::Malformed(what) => write!(f, "boot information is malformed: {what}"),
            Self::TooManyRegions => f.write_str("memory map has too many entries"),
            Self::NoMemoryMap => f.write_str("boot loader gave no memory map"),
            Self::NoModule => f.write_str("no boot module: nothing to start as root task"),
        }
    }
}

/// Loader information in one form.
#[derive(Debug, Clone)]
pub struct LoaderInfo {
    /// Command line bytes.
    pub cmdline: Vec<u8, MAX_CMDLINE>,
    /// Memory map in the order given.
    pub map: Vec<MapEntry, MAX_REGIONS>,
    /// The root task's file.
    pub module: Region,
    /// How many modules there were; only the first is used.
    pub modules: usize,
    /// Root system description pointer, if the loader passed a copy.
    pub rsdp: Option<[u8; RSDP_BYTES]>,
    /// Its address, if the loader passed that.
    pub rsdp_address: u64,
}

impl LoaderInfo {
    const fn new() -> Self {
        Self {
            cmdline: Vec::new(),
            map: Vec::new(),
            module: Region { start: 0, end: 0 },
            modules: 0,
            rsdp: None,
            rsdp_address: 0,
        }
    }

    /// Reads the block at `info`; `multiboot2` says whether the magic number of that protocol was in EAX.
    ///
    /// # Errors
    /// See [`LoaderError`].
    pub fn read(
        memory: &dyn PhysicalMemory,
        multiboot2: bool,
        info: u64,
    ) -> Result<Self, LoaderError> {
        let parsed =
            if multiboot2 { read_multiboot2(memory, info)? } else { read_pvh(memory, info)? };
        if parsed.map.is_empty() {
            return Err(LoaderError::NoMemoryMap);
        }
        Ok(parsed)
    }

    /// Usable memory as a set. Entries of other types win where they overlap usable ones.
    ///
    /// # Errors
    /// More pieces than a set can hold.
    pub fn usable(&self) -> Result<RegionSet, LoaderError> {
        let mut usable = RegionSet::new();
        for entry in self.map.iter().filter(|entry| entry.kind == 1) {
            usable.insert(entry.region().inwards(4096))?;
        }
        for entry in self.map.iter().filter(|entry| entry.kind != 1) {
            usable.remove(entry.region().outwards(4096))?;
        }
        Ok(usable)
    }

    /// Words of the command line.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        core::str::from_utf8(&self.cmdline).unwrap_or("").split_ascii_whitespace()
    }

    fn push(&mut self, entry: MapEntry) -> Result<(), LoaderError> {
        self.map.push(entry).map_err(|_| LoaderError::TooManyRegions)
    }

    fn set_cmdline(&mut self, bytes: &[u8]) {
        self.cmdline.clear();
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        for byte in text.iter().take(MAX_CMDLINE) {
            // Cannot fail: at most MAX_CMDLINE bytes are taken.
            let _ = self.cmdline.push(*byte);
        }
    }
}

impl MapEntry {
    fn region(&self) -> Region {
        Region::new(self.base, self.base.saturating_add(self.length))
    }
}

/// A 32-bit little-endian word at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

/// A 64-bit little-endian word at `offset`.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let word = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

/// A string of unknown length: as much of it as is reachable, up to the kept maximum.
fn c_string(memory: &dyn PhysicalMemory, address: u64) -> &[u8] {
    let mut length = MAX_CMDLINE;
    loop {
        if let Some(bytes) = memory.bytes(address, length) {
            return bytes;
        }
        length /= 2;
        if length == 0 {
            return &[];
        }
    }
}

fn read_pvh(memory: &dyn PhysicalMemory, info: u64) -> Result<LoaderInfo, LoaderError> {
    const BAD: LoaderError = LoaderError::Malformed("PVH start_info");
    let head = memory.bytes(info, 40).ok_or(LoaderError::UnknownProtocol)?;
    if u32_at(head, 0) != Some(PVH_MAGIC) {
        return Err(LoaderError::UnknownProtocol);
    }
    let mut out = LoaderInfo::new();
    let version = u32_at(head, 4).ok_or(BAD)?;
    let modules = u32_at(head, 12).ok_or(BAD)?;
    let module_list = u64_at(head, 16).ok_or(BAD)?;
    let cmdline = u64_at(head, 24).ok_or(BAD)?;
    out.rsdp_address = u64_at(head, 32).ok_or(BAD)?;
    if cmdline != 0 {
        out.set_cmdline(c_string(memory, cmdline));
    }
    if modules > 0 {
        let entry = memory.bytes(module_list, 32).ok_or(LoaderError::Malformed("module list"))?;
        let start = u64_at(entry, 0).ok_or(BAD)?;
        let size = u64_at(entry, 8).ok_or(BAD)?;
        let end = start.checked_add(size).ok_or(LoaderError::Malformed("module"))?;
        out.module = Region::new(start, end);
        out.modules = modules as usize;
    }
    if version >= 1 {
        let tail = memory.bytes(info + 40, 16).ok_or(BAD)?;
        let map = u64_at(tail, 0).ok_or(BAD)?;
        let entries = u32_at(tail, 8).ok_or(BAD)? as usize;
        let length = entries.checked_mul(24).ok_or(LoaderError::Malformed("memory map"))?;
        let table = memory.bytes(map, length).ok_or(LoaderError::Malformed("memory map"))?;
        for entry in table.chunks_exact(24) {
            out.push(MapEntry {
                base: u64_at(entry, 0).ok_or(BAD)?,
                length: u64_at(entry, 8).ok_or(BAD)?,
                kind: u32_at(entry, 16).ok_or(BAD)?,
            })?;
        }
    }
    Ok(out)
}

fn read_multiboot2(memory: &dyn PhysicalMemory, info: u64) -> Result<LoaderInfo, LoaderError> {
    const BAD: LoaderError = LoaderError::Malformed("Multiboot2 tags");
    let total = memory.bytes(info, 8).and_then(|head| u32_at(head, 0)).ok_or(BAD)? as usize;
    let block = memory.bytes(info, total).ok_or(BAD)?;
    let mut out = LoaderInfo::new();
    let mut at = 8;
    loop {
        let kind = u32_at(block, at).ok_or(BAD)?;
        let size = u32_at(block, at + 4).ok_or(BAD)? as usize;
        let end = at.checked_add(size).filter(|_| size >= 8).ok_or(BAD)?;
        let body = block.get(at + 8..end).ok_or(BAD)?;
        match kind {
            0 => return Ok(out),
            1 => out.set_cmdline(body),
            3 => {
                if out.modules == 0 {
                    let start = u64::from(u32_at(body, 0).ok_or(BAD)?);
                    let end = u64::from(u32_at(body, 4).ok_or(BAD)?);
                    out.module = Region::new(start, end);
                }
                out.modules += 1;
            }
            6 => {
                let entry_size = u32_at(body, 0).ok_or(BAD)? as usize;
                if entry_size < 24 {
                    return Err(LoaderError::Malformed("memory map"));
                }
                for entry in body.get(8..).unwrap_or_default().chunks_exact(entry_size) {
                    out.push(MapEntry {
                        base: u64_at(entry, 0).ok_or(BAD)?,
                        length: u64_at(entry, 8).ok_or(BAD)?,
                        kind: u32_at(entry, 16).ok_or(BAD)?,
                    })?;
                }
            }
            // The old pointer (14) has 20 bytes, the new one (15) 36; the new one wins whichever comes first.
            14 if out.rsdp.is_none() => out.rsdp = Some(padded(body)),
            15 => out.rsdp = Some(padded(body)),
            _ => {}
        }
        at = end.checked_add(7).ok_or(BAD)? & !7;
    }
}

fn padded(body: &[u8]) -> [u8; RSDP_BYTES] {
    let mut out = [0; RSDP_BYTES];
    for (to, from) in out.iter_mut().zip(body) {
        *to = *from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(arena: &mut Arena, at: usize, words: &[u32]) {
        for (i, word) in words.iter().enumerate() {
            arena.0[at + i * 4..at + i * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn pvh() -> Arena {
        let mut a = Arena(vec![0; 0x1000]);
        put(&mut a, 0x100, &[PVH_MAGIC, 1, 0, 1, 0x200, 0, 0x300, 0, 0xf_5ad0, 0, 0x400, 0, 2, 0]);
        put(&mut a, 0x200, &[0x10_0000, 0, 0x2345, 0]);
        a.0[0x300..0x305].copy_from_slice(b"a b=c");
        put(&mut a, 0x400, &[0, 0, 0x9_fc00, 0, 1, 0, 0x10_0000, 0, 0x1000_0000, 0, 1, 0]);
        a
    }

    #[test]
    fn pvh_block_is_read() {
        let info = LoaderInfo::read(&pvh(), false, 0x100).unwrap();
        assert_eq!(info.words().collect::<std::vec::Vec<_>>(), ["a", "b=c"]);
        assert_eq!(info.module, Region::new(0x10_0000, 0x10_2345));
        assert_eq!(info.rsdp_address, 0xf_5ad0);
        assert_eq!(
            info.usable().unwrap().as_slice(),
            [Region::new(0, 0x9_f000), Region::new(0x10_0000, 0x1010_0000)]
        );
    }

    #[test]
    fn every_truncation_of_a_pvh_block_is_an_error_or_a_shorter_block_never_a_panic() {
        for cut in 0..0x430 {
            let mut a = pvh();
            a.0.truncate(cut);
            let _ = LoaderInfo::read(&a, false, 0x100);
        }
        assert_eq!(
            LoaderInfo::read(&Arena(vec![0; 64]), false, 0).unwrap_err(),
            LoaderError::UnknownProtocol
        );
    }

    fn multiboot2() -> Arena {
        let mut a = Arena(vec![0; 0x400]);
        put(
            &mut a,
            0,
            &[
                0,
                0, // total filled below
                1,
                11,
                u32::from_le_bytes(*b"x y\0"),
                0, // cmdline, 3 bytes + padding
                3,
                17,
                0x20_0000,
                0x20_1000,
                0,
                0, // module
                3,
                17,
                0x30_0000,
                0x30_1000,
                0,
                0, // second module
                6,
                64,
                24,
                0,
                0x10_0000,
                0,
                0x800_0000,
                0,
                1,
                0,
                0x400_0000,
                0,
                0x10_0001,
                0,
                2,
                0,
                14,
                28,
                1,
                2,
                3,
                4,
                5,
                0, // old pointer
                15,
                44,
                9,
                8,
                7,
                6,
                5,
                4,
                3,
                2,
                1,
                0, // new pointer
                14,
                28,
                1,
                2,
                3,
                4,
                5,
                0, // ignored
                0,
                8,
            ],
        );
        let total = (2 + 4 + 6 + 6 + 16 + 8 + 12 + 8 + 2) * 4;
        put(&mut a, 0, &[total, 0]);
        a
    }

    #[test]
    fn multiboot2_block_is_read() {
        let info = LoaderInfo::read(&multiboot2(), true, 0).unwrap();
        assert_eq!(info.words().collect::<std::vec::Vec<_>>(), ["x", "y"]);
        assert_eq!((info.module, info.modules), (Region::new(0x20_0000, 0x20_1000), 2));
        assert_eq!(info.rsdp.unwrap()[0..4], [9, 0, 0, 0]);
        assert_eq!(
            info.usable().unwrap().as_slice(),
            [Region::new(0x10_0000, 0x400_0000), Region::new(0x410_1000, 0x810_0000)]
        );
    }

    #[test]
    fn every_damaged_multiboot2_block_is_an_error_or_readable_never_a_panic() {
        for at in 0..0xf8 {
            for value in [0u8, 1, 7, 0x7f, 0xff] {
                let mut a = multiboot2();
                a.0[at] = value;
                let _ = LoaderInfo::read(&a, true, 0);
            }
        }
    }
}
