//! Disks as QEMU shows them, and functions that lie about themselves.

use super::{
    BARS, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Disk, Function, MSIX_ENABLE,
    Registers, Unusable, disks, enable, open,
};
use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use protocol::units::{MACHINE_DISKS_MAX, PAGE_SIZE};
use std::convert::Infallible;
use std::vec::Vec;

const AT: Function = Function { device: 3, function: 0 };
const NEXT: Function = Function { device: 4, function: 0 };
const WINDOW: u64 = 0xfe00_0000;
const TABLE: u64 = 0xfebd_0000;

/// Configuration space of one function: what can be written of each word, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    writable: [u32; 64],
    words: [u32; 64],
}

impl Words {
    /// A disk as QEMU's `virtio-blk-pci,disable-legacy=on`: table in window 1, structures in the wide window 4.
    fn disk() -> Self {
        let mut space = Self { writable: [0; 64], words: [0; 64] };
        let mut set = |register: usize, word: u32| space.words[register / 4] = word;
        set(0x00, 0x1042_1af4);
        set(0x04, 0x0010_0103);
        set(0x14, TABLE as u32);
        set(0x20, WINDOW as u32 | 0xc);
        set(0x24, 0);
        set(0x34, 0x98);
        set(0x98, 0x0001_8411);
        set(0x9c, 0x0000_0001);
        set(0xa0, 0x0000_0801);
        // Common, notify (with its multiplier), device; each with id, next, length, kind; window; offset; length.
        for (at, next, length, kind, offset, bytes) in [
            (0x84, 0x70, 16, 1, 0x0000, 0x1000),
            (0x70, 0x50, 20, 2, 0x3000, 0x1000),
            (0x50, 0x40, 16, 4, 0x2000, 0x1000),
            (0x40, 0x00, 16, 3, 0x1000, 0x1000),
        ] {
            set(at, 0x09 | next << 8 | length << 16 | kind << 24);
            set(at + 4, 4);
            set(at + 8, offset);
            set(at + 12, bytes);
        }
        set(0x80, 4);
        space.writable[1] = 0x0407;
        space.writable[5] = 0xffff_f000;
        space.writable[8] = 0xffff_c000;
        space.writable[9] = u32::MAX;
        space.writable[0x98 / 4] = 0xc000_0000;
        space
    }

    fn with(mut self, register: usize, word: u32) -> Self {
        self.words[register / 4] = word;
        self
    }

    fn bar(mut self, index: usize, value: u32, writable: u32) -> Self {
        self.words[4 + index] = value;
        self.writable[4 + index] = writable;
        self
    }
}

/// Functions that answer; all others read as ones.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bus(Vec<(Function, Words)>);

impl ConfigSpace for Bus {
    type Error = Infallible;

    fn read(&mut self, at: Function, register: u8) -> Result<u32, Infallible> {
        assert!(register.is_multiple_of(4) && at.device < 32 && at.function < 8);
        let found = self.0.iter().find(|(function, _)| *function == at);
        Ok(found.map_or(u32::MAX, |(_, space)| space.words[usize::from(register / 4)]))
    }

    fn write(&mut self, at: Function, register: u8, value: u32) -> Result<(), Infallible> {
        assert!(register.is_multiple_of(4));
        if let Some((_, space)) = self.0.iter_mut().find(|(function, _)| *function == at) {
            let index = usize::from(register / 4);
            let writable = space.writable[index];
            space.words[index] = space.words[index] & !writable | value & writable;
        }
        Ok(())
    }
}

fn found(bus: &mut Bus) -> Vec<Result<Disk, Unusable>> {
    disks(bus).unwrap().into_iter().collect()
}

/// What the root-task finds if the function at [`AT`] is `words`.
fn only(words: Words) -> Result<Disk, Unusable> {
    let disks = found(&mut Bus(vec![(AT, words)]));
    assert_eq!(disks.len(), 1);
    disks[0]
}

#[test]
fn a_disk_is_found_with_its_registers_and_left_as_it_was() {
    let mut bus = Bus(vec![(AT, Words::disk()), (NEXT, Words::disk().bar(4, 0xfd00_000c, !0xf))]);
    let before = bus.clone();
    let disks = found(&mut bus);
    assert_eq!(bus, before);
    let disk = disks[0].unwrap();
    let at = |offset, bytes| Registers { paddr: WINDOW + offset, bytes };
    assert_eq!((disk.at, disk.notify_multiplier), (AT, 4));
    assert_eq!(
        (disk.common, disk.notify, disk.device),
        (at(0, 56), at(0x3000, 4096), at(0x2000, 8))
    );
    assert_eq!(disk.interrupts, Registers { paddr: TABLE, bytes: 32 });
    // The second one's window of 16 bytes holds nothing of it.
    assert_eq!(disks[1], Err(Unusable::Outside("the common configuration")));
}

#[test]
fn a_disk_is_opened_first_and_gets_memory_and_interrupts_last() {
    let mut bus = Bus(vec![(AT, Words::disk().with(0x04, 0x0010_0000))]);
    let disk = found(&mut bus)[0].unwrap();
    open(&mut bus, &disk).unwrap();
    let state = |bus: &mut Bus| {
        let command = bus.read(AT, COMMAND).unwrap() & (COMMAND_MASTER | COMMAND_MEMORY);
        (command, bus.read(AT, 0x98).unwrap() & MSIX_ENABLE)
    };
    assert_eq!(state(&mut bus), (COMMAND_MEMORY, 0));
    enable(&mut bus, &disk).unwrap();
    assert_eq!(state(&mut bus), (COMMAND_MASTER | COMMAND_MEMORY, MSIX_ENABLE));
}

#[test]
fn other_devices_are_left_alone_and_many_disks_end_at_the_most() {
    let mut bus = Bus(vec![(AT, Words::disk().with(0, 0x1041_1af4))]);
    assert_eq!(found(&mut bus), []);
    let all = (0..8).map(|device| (Function { device, function: 0 }, Words::disk()));
    assert_eq!(found(&mut Bus(all.collect())).len(), MACHINE_DISKS_MAX);
    // A function behind the first counts only if the device says that it has several.
    let second = Function { device: 3, function: 5 };
    let other = Words::disk().with(0, 0x1041_1af4);
    let single = Bus(vec![(AT, other.clone()), (second, Words::disk())]);
    assert_eq!(found(&mut single.clone()), []);
    let several = Bus(vec![(AT, other.with(0x0c, 0x0080_0000)), (second, Words::disk())]);
    assert_eq!(found(&mut several.clone()).len(), 1);
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let holes_in_its_size = Words::disk().bar(4, 0xfe00_000c, 0xffff_5000);
    assert_eq!(only(holes_in_its_size), Err(Unusable::Window(4)));
    let between_its_multiples = Words::disk().bar(1, 0xfebd_1000, 0xffff_c000);
    assert_eq!(only(between_its_multiples), Err(Unusable::Window(1)));
    let beyond_all_addresses = Words::disk().bar(4, 0xffff_c00c, 0xffff_c000);
    let beyond_all_addresses = beyond_all_addresses.bar(5, u32::MAX, u32::MAX);
    assert_eq!(only(beyond_all_addresses), Err(Unusable::Window(4)));
}

#[test]
fn structures_outside_their_windows_are_refused() {
    let outside = |words: Words| match only(words) {
        Err(Unusable::Outside(what)) => what,
        other => panic!("{other:?}"),
    };
    let common = "the common configuration";
    assert_eq!(outside(Words::disk().with(0x8c, 0x3ffc)), common);
    assert_eq!(outside(Words::disk().with(0x8c, !3)), common);
    assert_eq!(outside(Words::disk().with(0x8c, 2)), common);
    assert_eq!(outside(Words::disk().with(0x90, 55)), common);
    assert_eq!(outside(Words::disk().with(0x90, u32::MAX)), common);
    assert_eq!(outside(Words::disk().with(0x88, 5)), common);
    assert_eq!(outside(Words::disk().with(0x88, 0xff)), common);
    assert_eq!(outside(Words::disk().bar(4, 0x0000_000c, 0xffff_c000)), common);
    assert_eq!(outside(Words::disk().bar(4, 0x0000_c001, 0xffff_ffe0)), common);
    assert_eq!(outside(Words::disk().with(0x78, 0x4000)), "the doorbells");
    assert_eq!(outside(Words::disk().with(0x5c, 7)), "the disk's configuration");
    assert_eq!(outside(Words::disk().with(0x98, 0x07ff_8411)), "the interrupt table (MSI-X)");
}

#[test]
fn lists_of_capabilities_that_loop_or_lack_something_are_refused() {
    let missing = |words| match only(words) {
        Err(Unusable::Missing(what)) => what,
        other => panic!("{other:?}"),
    };
    let common = "the common configuration";
    assert_eq!(missing(Words::disk().with(0x04, 0x103)), common);
    assert_eq!(missing(Words::disk().with(0x34, 0)), common);
    assert_eq!(missing(Words::disk().with(0x98, 0x0001_9811)), common);
    assert_eq!(missing(Words::disk().with(0x84, 0x0100_7009)), common);
    // The doorbells' capability lacks its multiplier, or would reach beyond configuration space.
    assert_eq!(missing(Words::disk().with(0x70, 0x0210_5009)), "the doorbells");
    let beyond = Words::disk().with(0x84, 0x0110_f009).with(0x70, 0).with(0xf0, 0x0214_5009);
    assert_eq!(missing(beyond), "the doorbells");
    assert_eq!(missing(Words::disk().with(0x34, 0x84)), "the interrupt table (MSI-X)");
}

#[test]
fn an_interrupt_table_among_the_drivers_registers_is_refused() {
    // In the page of the common configuration; by another window at the same place; only its end.
    assert_eq!(only(Words::disk().with(0x9c, 4)), Err(Unusable::SharedTable));
    assert_eq!(only(Words::disk().bar(1, WINDOW as u32, 0xffff_f000)), Err(Unusable::SharedTable));
    let reaches = Words::disk().with(0x9c, 0x1ffc | 4).with(0x98, 0x0008_8411);
    assert_eq!(only(reaches), Err(Unusable::SharedTable));
    assert!(only(Words::disk().with(0x9c, 0x1000 | 4)).is_ok());
}

/// A disk with some words changed, so that many cases come far.
fn liar() -> impl Strategy<Value = Words> {
    let word = (0..64usize, prop::option::of(0..8u32), any::<u32>(), any::<bool>());
    let changes = prop::collection::vec(word, 0..6);
    (Just(Words::disk()), changes).prop_map(|(mut words, changes)| {
        for (index, nibble, value, is_mask) in changes {
            let table = if is_mask { &mut words.writable } else { &mut words.words };
            let mask = nibble.map_or(u32::MAX, |nibble| 0xf << (nibble * 4));
            table[index] = table[index] & !mask | value & mask;
        }
        // Still a disk by its name, in a device of one function.
        words.words[0] = 0x1042_1af4;
        words.words[3] &= !0x0080_0000;
        // Bits of the status are cleared by ones, not by zeros.
        words.writable[1] &= 0xffff;
        words
    })
}

/// Whether a window of the function, by its registers and what can be written of them, covers all of `part`.
fn is_covered(words: &Words, part: Registers) -> bool {
    (0..usize::from(BARS)).any(|index| {
        let (low, writable) = (words.words[4 + index], words.writable[4 + index]);
        let is_wide = low & 7 == 4 && index < 5;
        let (high, high_writable) = if is_wide {
            (words.words[5 + index], words.writable[5 + index])
        } else {
            (0, u32::MAX)
        };
        let start = u64::from(high) << 32 | u64::from(low & !0xf);
        let ones = u64::from(high & !high_writable | high_writable) << 32
            | u64::from((low & !writable | writable) & !0xf);
        let high_ones = if is_wide { ones } else { ones | 0xffff_ffff << 32 };
        let bytes = (!high_ones).wrapping_add(1);
        part.paddr >= start
            && part.paddr - start <= bytes
            && part.bytes <= bytes - (part.paddr - start)
    })
}

proptest! {
    #[test]
    fn whatever_a_function_says_its_disk_lies_in_its_windows(words in liar()) {
        let mut bus = Bus(vec![(AT, words.clone())]);
        let disks = found(&mut bus);
        prop_assert_eq!(disks.len(), 1);
        prop_assert_eq!(&bus.0[0].1, &words, "it is not as it was");
        if let Ok(disk) = disks[0] {
            let given = [disk.common, disk.notify, disk.device];
            for part in given.into_iter().chain([disk.interrupts]) {
                prop_assert!(is_covered(&words, part), "{:?} is in no window", part);
                prop_assert!(part.bytes > 0 && part.paddr.checked_add(part.bytes).is_some());
            }
            let table: Vec<u64> = disk.interrupts.pages().collect();
            for part in given {
                prop_assert!(part.pages().count() as u64 <= 4 + 1);
                prop_assert!(part.pages().all(|page| !table.contains(&page)));
                prop_assert!(part.pages().all(|page| page % PAGE_SIZE == 0));
            }
        }
    }

    #[test]
    fn words_at_random_are_read_to_an_end(
        words in prop::array::uniform32(any::<u32>()),
        writable in prop::array::uniform32(any::<u32>()),
    ) {
        let mut random = Words { writable: [0; 64], words: [0; 64] };
        for index in 0..64 {
            random.words[index] = words[index % 32].rotate_left(index as u32 / 32);
            random.writable[index] = writable[index % 32];
        }
        random.words[0] = 0x1001_1af4;
        random.words[3] &= !0x0080_0000;
        prop_assert_eq!(found(&mut Bus(vec![(AT, random)])).len(), 1);
    }
}
