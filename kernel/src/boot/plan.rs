//! What the initial thread is given: how large its CNode is and which untyped capabilities it gets.

use abi::UntypedDesc;
use abi::bootinfo::{MAX_BOOTINFO_UNTYPEDS, slot};
use heapless::Vec;

use super::loader::LoaderError;
use super::regions::{Region, RegionSet, blocks};

/// Smallest and largest untyped capability.
const MIN_UNTYPED_BITS: u32 = 4;
const MAX_UNTYPED_BITS: u32 = 47;
/// First address that is neither memory nor device.
const PHYSICAL_TOP: u64 = 1 << 47;
/// Smallest initial CNode.
const MIN_CNODE_RADIX: u32 = 12;
/// Slots left free at least, however large the image is.
const FREE_SLOTS: u64 = 8192;

/// The list of untyped capabilities.
pub type UntypedList = Vec<UntypedDesc, MAX_BOOTINFO_UNTYPEDS>;

/// Radix of the initial CNode for a root task that needs `slots` slots from the start.
#[must_use]
pub fn cnode_radix(slots: u64) -> u32 {
    (slots + FREE_SLOTS).next_power_of_two().ilog2().max(MIN_CNODE_RADIX)
}

/// Slots needed by an image of `frames` pages.
#[must_use]
pub const fn slots(cores: u64, tables: u64, extra_pages: u64, frames: u64) -> u64 {
    slot::FIRST_FREE + cores + tables + extra_pages + frames + MAX_BOOTINFO_UNTYPEDS as u64
}

/// Paging structures below the root that map `start..end` with 4 KiB pages: (PDPTs, page directories, page tables).
#[must_use]
pub const fn tables(start: u64, end: u64) -> (u64, u64, u64) {
    (spans(start, end, 39), spans(start, end, 30), spans(start, end, 21))
}

const fn spans(start: u64, end: u64, bits: u32) -> u64 {
    ((end - 1) >> bits) - (start >> bits) + 1
}

/// Untyped capabilities: devices (every address that is not in `memory` nor `reserved`), then `free` memory.
///
/// Where the list is too short, the highest device addresses are left out: memory must not be lost.
///
/// # Errors
/// More pieces of address space than a set can hold.
pub fn untypeds(
    memory: &RegionSet,
    reserved: &[Region],
    free: &RegionSet,
) -> Result<UntypedList, LoaderError> {
    let mut devices = RegionSet::new();
    devices.insert(Region::new(0, PHYSICAL_TOP))?;
    for range in memory.as_slice() {
        devices.remove(*range)?;
    }
    for range in reserved {
        devices.remove(*range)?;
    }
    let describe = |is_device: u8| {
        move |(paddr, bits): (u64, u32)| UntypedDesc {
            paddr,
            size_bits: bits as u8,
            is_device,
            padding: [0; 6],
        }
    };
    let split = |range: &Region| blocks(*range, MIN_UNTYPED_BITS, MAX_UNTYPED_BITS);
    let memory_blocks = free.as_slice().iter().flat_map(split).count().min(MAX_BOOTINFO_UNTYPEDS);
    let mut list = UntypedList::new();
    list.extend(
        devices
            .as_slice()
            .iter()
            .flat_map(split)
            .map(describe(1))
            .take(MAX_BOOTINFO_UNTYPEDS - memory_blocks),
    );
    list.extend(free.as_slice().iter().flat_map(split).map(describe(0)).take(memory_blocks));
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cnode_grows_with_the_image() {
        assert_eq!(cnode_radix(slots(2, 3, 1, 20)), 14);
        assert_eq!(cnode_radix(slots(2, 70, 1, 64 << 8)), 15);
    }

    #[test]
    fn tables_count_each_level() {
        assert_eq!(tables(0x40_0000, 0x40_1000), (1, 1, 1));
        assert_eq!(tables(0x3f_f000, 0x40_1000), (1, 1, 2));
        assert_eq!(tables(0x40_0000, 0x1_0000_0000), (1, 4, 2046));
        assert_eq!(tables((1 << 39) - 4096, (1 << 39) + 4096), (2, 2, 2));
    }

    #[test]
    fn untypeds_cover_devices_first_then_memory_and_nothing_reserved() {
        let mut memory = RegionSet::new();
        memory.insert(Region::new(0x10_0000, 0x800_0000)).unwrap();
        let mut free = memory.clone();
        free.remove(Region::new(0x10_0000, 0x30_0000)).unwrap();
        let reserved = [Region::new(0xfee0_0000, 0xfee0_1000)];
        let list = untypeds(&memory, &reserved, &free).unwrap();
        let first_memory = list.iter().position(|u| u.is_device == 0).unwrap();
        assert!(list[first_memory..].iter().all(|u| u.is_device == 0));
        let bytes: u64 = list[first_memory..].iter().map(|u| 1u64 << u.size_bits).sum();
        assert_eq!(bytes, 0x800_0000 - 0x30_0000);
        let bytes: u64 = list[..first_memory].iter().map(|u| 1u64 << u.size_bits).sum();
        assert_eq!(bytes, (1 << 47) - (0x800_0000 - 0x10_0000) - 0x1000);
        for u in &list {
            let range = Region::new(u.paddr, u.paddr + (1 << u.size_bits));
            assert_eq!(u.paddr % (1 << u.size_bits), 0);
            assert!(!range.overlaps(&reserved[0]));
        }
    }

    #[test]
    fn memory_wins_when_the_list_is_full() {
        let mut memory = RegionSet::new();
        for i in 1..=190u64 {
            memory.insert(Region::new(i << 24, (i << 24) + 0x1000)).unwrap();
        }
        let list = untypeds(&memory, &[], &memory).unwrap();
        assert_eq!(list.len(), MAX_BOOTINFO_UNTYPEDS);
        assert_eq!(list.iter().filter(|u| u.is_device == 0).count(), 190);
    }
}
