//! Nested page tables: entry format, walks, accessed and dirty bits.
//!
//! The processor walks them like a long-mode host table (AMD64 APM volume 2, 15.25): always user accesses, the guest's own table
//! walks count as writes. Guest-physical addresses stay below 2^47, so the upper half of a root table is never walked below
//! its non-present entries and holds the root's epoch (bit 0 clear keeps it non-present).

use abi::vcpu::{GPA_LIMIT, npt_attr};

use crate::mem::PhysAddr;
use crate::mem::window::Words;

/// Present.
pub const PRESENT: u64 = 1;
/// Writable.
pub const WRITE: u64 = 1 << 1;
/// User: every nested access is one.
pub const USER: u64 = 1 << 2;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty (leaf).
pub const DIRTY: u64 = 1 << 6;
/// Leaf above the lowest level.
pub const LARGE: u64 = 1 << 7;
/// No execute.
pub const NX: u64 = 1 << 63;
/// Physical address field.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a table.
pub const ENTRIES: usize = 512;
/// Word of a root that holds its epoch, shifted left by one.
const EPOCH_WORD: usize = 511;
/// Word of a root that holds its birth number, shifted likewise.
const BIRTH_WORD: usize = 510;

/// A level of the tables, named by the number of address bits one entry spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// Entries of a page table: 4 KiB.
    Page = 12,
    /// Entries of a page directory: 2 MiB.
    Large = 21,
    /// Entries of a page-directory-pointer table: 1 GiB.
    Huge = 30,
    /// Entries of a root: 512 GiB.
    Top = 39,
}

impl Level {
    /// Tells the address bits one entry spans.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u32 {
        self as u32
    }

    /// Returns the level whose leaf has 2^`bits` bytes.
    #[must_use]
    pub const fn of_frame(bits: u32) -> Option<Self> {
        match bits {
            12 => Some(Self::Page),
            21 => Some(Self::Large),
            30 => Some(Self::Huge),
            _ => None,
        }
    }

    #[inline]
    const fn index(self, gpa: u64) -> usize {
        (gpa >> self.bits()) as usize & (ENTRIES - 1)
    }

    #[inline]
    const fn below(self) -> Self {
        match self {
            Self::Top => Self::Huge,
            Self::Huge => Self::Large,
            Self::Large | Self::Page => Self::Page,
        }
    }
}

/// Place of one entry: a table and an index in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    table: Words,
    index: usize,
}

impl Entry {
    /// Reads it.
    #[inline]
    #[must_use]
    pub fn get(self) -> u64 {
        self.table.get(self.index)
    }

    /// Writes it.
    #[inline]
    pub fn set(self, value: u64) {
        self.table.set(self.index, value);
    }
}

/// Composes a leaf. `None`: such rights (write or nothing without read) or attributes do not exist.
#[must_use]
pub fn leaf(
    frame: PhysAddr,
    level: Level,
    read: bool,
    write: bool,
    attributes: u64,
) -> Option<u64> {
    if !read || attributes & !(npt_attr::TYPE_MASK | npt_attr::NO_EXECUTE) != 0 {
        return None;
    }
    let pat = if level == Level::Page { 1 << 7 } else { 1 << 12 };
    // PAT entries as the kernel programs them for X86PageMap: index bits PWT, PCD, PAT.
    let cache = match attributes & npt_attr::TYPE_MASK {
        0 => 0,
        1 => 1 << 3,
        2 => 1 << 4,
        3 => 1 << 3 | 1 << 4,
        4 => pat,
        _ => return None,
    };
    let large = if level == Level::Page { 0 } else { LARGE };
    let write = if write { WRITE } else { 0 };
    let nx = if attributes & npt_attr::NO_EXECUTE != 0 { NX } else { 0 };
    Some(frame.0 | PRESENT | USER | write | cache | large | nx)
}

/// Tells whether an entry is the leaf of this frame.
#[must_use]
pub const fn is_leaf_of(entry: u64, level: Level, frame: PhysAddr) -> bool {
    let is_small = matches!(level, Level::Page);
    // Bit 12 of a large leaf is its PAT bit, not address.
    let mask = if is_small { ADDRESS } else { ADDRESS & !(1 << 12) };
    entry & PRESENT != 0 && (is_small || entry & LARGE != 0) && entry & mask == frame.0
}

/// Composes an entry that points to a lower table.
#[must_use]
pub const fn table(table: PhysAddr) -> u64 {
    table.0 | PRESENT | WRITE | USER
}

/// Finds the entry for `gpa` at `level`.
///
/// # Errors
/// The address bits left to translate where the walk ended: at a missing table or a large leaf.
pub fn walk(root: PhysAddr, gpa: u64, level: Level) -> Result<Entry, u32> {
    debug_assert!(gpa < GPA_LIMIT, "checked by whoever takes a gpa from user level");
    let mut table = Words(root);
    let mut at = Level::Top;
    while at > level {
        let entry = table.get(at.index(gpa));
        if entry & PRESENT == 0 || (at != Level::Top && entry & LARGE != 0) {
            return Err(at.bits());
        }
        table = Words(PhysAddr(entry & ADDRESS));
        at = at.below();
    }
    Ok(Entry { table, index: at.index(gpa) })
}

/// Reads the epoch of a root: it changes whenever cached translations of the root may be wrong.
#[inline]
#[must_use]
pub fn epoch(root: PhysAddr) -> u64 {
    Words(root).get(EPOCH_WORD) >> 1
}

/// Sets the epoch of a root.
#[inline]
pub fn set_epoch(root: PhysAddr, epoch: u64) {
    Words(root).set(EPOCH_WORD, epoch << 1);
}

/// Reads the number a root got with its ASID; it tells a root from an earlier one at the same place.
#[inline]
#[must_use]
pub fn birth(root: PhysAddr) -> u64 {
    Words(root).get(BIRTH_WORD) >> 1
}

/// Sets the birth number of a root.
pub fn set_birth(root: PhysAddr, birth: u64) {
    Words(root).set(BIRTH_WORD, birth << 1);
}

/// What one harvest saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harvested {
    /// 4 KiB pages mapped in the range.
    pub mapped: u64,
    /// Some bit was cleared: translations must be flushed.
    pub cleared: bool,
}

/// Reads the accessed and dirty bits of `pages` 4 KiB pages from `first` on into bitmaps (`set(dirty, page)` is called for each
/// set bit) and clears those in `clear`.
pub fn harvest(
    root: PhysAddr,
    first: u64,
    pages: u64,
    clear: u64,
    mut set: impl FnMut(bool, u64),
) -> Harvested {
    let mut seen = Harvested::default();
    let mut page = 0;
    while page < pages {
        let gpa = first + (page << 12);
        // Walk down to the leaf or the hole that covers this page.
        let mut entry = Entry { table: Words(root), index: Level::Top.index(gpa) };
        let mut level = Level::Top;
        let value = loop {
            let value = entry.get();
            let leaf = level == Level::Page || (level != Level::Top && value & LARGE != 0);
            if value & PRESENT == 0 || leaf {
                break value;
            }
            level = level.below();
            entry = Entry { table: Words(PhysAddr(value & ADDRESS)), index: level.index(gpa) };
        };
        let span = 1 << (level.bits() - 12);
        let next = pages.min(page + span - (gpa >> 12) % span);
        if value & PRESENT != 0 {
            seen.mapped += next - page;
            for covered in page..next {
                if value & ACCESSED != 0 {
                    set(false, covered);
                }
                if value & DIRTY != 0 {
                    set(true, covered);
                }
            }
            if value & clear != 0 {
                entry.set(value & !clear);
                seen.cleared = true;
            }
        }
        page = next;
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::window::Arena;

    const ROOT: PhysAddr = PhysAddr(0x1000);

    fn map(gpa: u64, level: Level, value: u64) {
        let mut at = Level::Top;
        while at > level {
            let entry = walk(ROOT, gpa, at).unwrap();
            if entry.get() & PRESENT == 0 {
                entry.set(table(PhysAddr(free_table())));
            }
            at = at.below();
        }
        walk(ROOT, gpa, level).unwrap().set(value);
    }

    fn free_table() -> u64 {
        // Word 0 of page 0 counts tables given out.
        let words = Words(PhysAddr(0x100));
        let count = words.get(0);
        words.set(0, count + 1);
        0x2000 + count * 0x1000
    }

    #[test]
    fn walk_tells_the_bits_left() {
        let _arena = Arena::new(1 << 21);
        assert_eq!(walk(ROOT, 0, Level::Page), Err(39));
        map(0, Level::Large, leaf(PhysAddr(0x20_0000), Level::Large, true, true, 0).unwrap());
        assert_eq!(walk(ROOT, 0, Level::Page), Err(21));
        assert_eq!(walk(ROOT, 1 << 30, Level::Large), Err(30));
        assert!(walk(ROOT, 1 << 21, Level::Large).is_ok());
    }

    #[test]
    fn leaf_bits_follow_rights_and_attributes() {
        let frame = PhysAddr(0x20_0000);
        assert_eq!(leaf(frame, Level::Page, true, false, 0), Some(0x20_0005));
        assert_eq!(leaf(frame, Level::Large, true, true, 0), Some(0x20_0087));
        assert_eq!(leaf(frame, Level::Page, true, true, 0x100), Some(1 << 63 | 0x20_0007));
        assert_eq!(leaf(frame, Level::Page, true, false, 4), Some(0x20_0085));
        assert_eq!(leaf(frame, Level::Page, false, true, 0), None);
        assert_eq!(leaf(frame, Level::Page, true, true, 5), None);
        assert_eq!(leaf(frame, Level::Page, true, true, 0x200), None);
    }

    #[test]
    fn harvest_reads_clears_and_skips_holes() {
        let _arena = Arena::new(1 << 21);
        let page = leaf(PhysAddr(0x5_0000), Level::Page, true, true, 0).unwrap();
        map(0x3000, Level::Page, page | ACCESSED);
        map(0x5000, Level::Page, page | ACCESSED | DIRTY);
        map(0x7000, Level::Page, page);
        let large = leaf(PhysAddr(0x20_0000), Level::Large, true, true, 0).unwrap();
        map(0x40_0000, Level::Large, large | ACCESSED);
        let mut accessed = Vec::new();
        let mut dirty = Vec::new();
        let seen = harvest(ROOT, 0x2000, 0x500, ACCESSED, |is_dirty, page| {
            if is_dirty { dirty.push(page) } else { accessed.push(page) }
        });
        let large_part = 0x400 - 2..0x500;
        assert_eq!(
            seen,
            Harvested { mapped: 3 + large_part.clone().count() as u64, cleared: true }
        );
        let mut expected = vec![1, 3];
        expected.extend(large_part);
        assert_eq!(accessed, expected);
        assert_eq!(dirty, [3]);
        let again = harvest(ROOT, 0x2000, 0x500, ACCESSED, |is_dirty, page| {
            assert!(is_dirty && page == 3, "accessed bit of page {page} was not cleared");
        });
        assert!(!again.cleared);
    }

    #[test]
    fn epoch_keeps_its_entry_not_present() {
        let _arena = Arena::new(1 << 21);
        set_epoch(ROOT, 0x1234_5677);
        assert_eq!(epoch(ROOT), 0x1234_5677);
        assert_eq!(Words(ROOT).get(511) & PRESENT, 0);
    }
}
