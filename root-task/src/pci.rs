//! PCI configuration of the disks: which functions are virtio disks, where their registers are, how they are turned on.
//!
//! Only the root-task reads and writes configuration space. What a function says of itself is checked here before any of its memory is
//! taken: a structure outside its window, a window that wraps, a list of capabilities without an end, or an interrupt
//! table among the registers the driver gets make the disk [`Unusable`]; nothing else is.
//! Source: PCI Local Bus 3.0, section 6; virtio 1.2, section 4.1.4.

use heapless::Vec;
use protocol::units::{MACHINE_DISKS_MAX, PAGE_SIZE};

const VENDOR_VIRTIO: u16 = 0x1af4;
/// virtio-blk: transitional and modern.
const DEVICES_BLK: [u16; 2] = [0x1001, 0x1042];

const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_MASTER: u32 = 1 << 2;
const COMMAND_NO_INTX: u32 = 1 << 10;
/// The upper half of the word at [`COMMAND`] is the status: bits there are cleared by writing ones.
const COMMAND_MASK: u32 = 0xffff;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const HEADER_TYPE: u8 = 0x0c;
const FIRST_BAR: u8 = 0x10;
const BARS: u8 = 6;
const CAPABILITIES: u8 = 0x34;
/// Capabilities that fit in configuration space: a list with more has a loop.
const CAPABILITIES_MAX: usize = 48;

const CAPABILITY_MSIX: u8 = 0x11;
const CAPABILITY_VENDOR: u8 = 0x09;
/// Kinds of virtio's structures.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;

const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK_ALL: u32 = 1 << 30;
const MSIX_ENTRY_BYTES: u64 = 16;

/// Bytes of the common configuration; and of a disk's own, as far as it is read here: its capacity.
const COMMON_BYTES: u64 = 56;
const DEVICE_BYTES: u64 = 8;
/// What is given of a longer doorbell area: one queue needs one doorbell.
const NOTIFY_BYTES: u64 = 4 * PAGE_SIZE;

/// A function of bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Device number, 0..=31.
    pub device: u8,
    /// Function number, 0..=7.
    pub function: u8,
}

/// Access to configuration space, a word at a time.
pub trait ConfigSpace {
    /// Why there is no access.
    type Error;

    /// Reads the word at `register`, a multiple of 4.
    ///
    /// # Errors
    ///
    /// The mechanism's.
    fn read(&mut self, at: Function, register: u8) -> Result<u32, Self::Error>;

    /// Writes the word at `register`, a multiple of 4.
    ///
    /// # Errors
    ///
    /// The mechanism's.
    fn write(&mut self, at: Function, register: u8, value: u32) -> Result<(), Self::Error>;
}

/// Registers in physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// First physical address.
    pub paddr: u64,
    /// Length in bytes, not 0.
    pub bytes: u64,
}

impl Registers {
    /// First addresses of the pages they lie in.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        let first = self.paddr / PAGE_SIZE;
        (first..=(self.paddr + (self.bytes - 1)) / PAGE_SIZE).map(|page| page * PAGE_SIZE)
    }

    fn shares_a_page_with(self, other: Self) -> bool {
        let last = |registers: Self| (registers.paddr + (registers.bytes - 1)) / PAGE_SIZE;
        self.paddr / PAGE_SIZE <= last(other) && other.paddr / PAGE_SIZE <= last(self)
    }
}

/// A virtio disk as its function describes it, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where it is.
    pub at: Function,
    /// The common configuration.
    pub common: Registers,
    /// The doorbells.
    pub notify: Registers,
    /// Bytes from one doorbell to the next.
    pub notify_multiplier: u32,
    /// The disk's own configuration: it begins with the capacity.
    pub device: Registers,
    /// The table of message-signalled interrupts. No page of it is a page of the three above.
    pub interrupts: Registers,
    /// Its capability in configuration space.
    msix: u8,
}

/// Why a function that says it is a virtio disk is none that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It has no capability of this kind: a virtio structure that is missing, or MSI-X.
    Missing(&'static str),
    /// The structure is not inside a memory window of the function that the firmware has placed.
    Outside(&'static str),
    /// A window's size is no power of two, its place not a multiple of it, or it ends beyond all addresses.
    Window(u8),
    /// Its interrupt table lies in a page with registers of the driver, who could then raise any interrupt.
    SharedTable,
    /// Its registers are no device memory, or already another disk's.
    Taken,
}

impl Unusable {
    /// The same for people: what is wrong, and with what.
    pub const fn words(self) -> [&'static str; 2] {
        match self {
            Self::Missing(what) => ["it lacks ", what],
            Self::Outside(what) => ["outside its memory windows: ", what],
            Self::Window(_) => ["impossible: size or place of ", "a memory window"],
            Self::SharedTable => ["in one page with other registers: ", "the interrupt table"],
            Self::Taken => ["not to be had: ", "its registers' memory"],
        }
    }
}

type Windows = [Option<Registers>; BARS as usize];

/// The memory windows of a function, sized by writing ones with decoding off.
fn windows<C: ConfigSpace>(
    space: &mut C,
    at: Function,
) -> Result<Result<Windows, Unusable>, C::Error> {
    let mut windows = [None; BARS as usize];
    let mut found = Ok(());
    let command = space.read(at, COMMAND)? & COMMAND_MASK;
    space.write(at, COMMAND, command & !COMMAND_MEMORY)?;
    let mut index = 0;
    while index < BARS {
        let register = FIRST_BAR + 4 * index;
        let low = space.read(at, register)?;
        let is_io = low & 1 == 1;
        // A wide register needs a second one: the last has none.
        let is_wide = !is_io && low & 6 == 4 && index + 1 < BARS;
        let mask = sized(space, at, register, low)?;
        let (mut address, mut mask) = (u64::from(low), u64::from(mask) | 0xffff_ffff << 32);
        if is_wide {
            let high = space.read(at, register + 4)?;
            let high_mask = sized(space, at, register + 4, high)?;
            address |= u64::from(high) << 32;
            mask = mask & 0xffff_ffff | u64::from(high_mask) << 32;
        }
        let (paddr, bytes) = (address & !0xf, (!(mask & !0xf)).wrapping_add(1));
        // Registers that are not there read 0; a window of 4 GiB or more is none of a disk's.
        if !is_io && mask & 0xffff_fff0 != 0 && paddr != 0 {
            match window(paddr, bytes) {
                Some(window) => windows[usize::from(index)] = Some(window),
                None => found = Err(Unusable::Window(index)),
            }
        }
        index += if is_wide { 2 } else { 1 };
    }
    space.write(at, COMMAND, command)?;
    Ok(found.map(|()| windows))
}

/// What the register reads after ones were written to it; it has its value again then.
fn sized<C: ConfigSpace>(
    space: &mut C,
    at: Function,
    register: u8,
    value: u32,
) -> Result<u32, C::Error> {
    space.write(at, register, u32::MAX)?;
    let mask = space.read(at, register)?;
    space.write(at, register, value)?;
    Ok(mask)
}

fn window(paddr: u64, bytes: u64) -> Option<Registers> {
    let is_whole = bytes.is_power_of_two() && paddr.is_multiple_of(bytes);
    (is_whole && paddr.checked_add(bytes).is_some()).then_some(Registers { paddr, bytes })
}

/// Where a capability says that something lies.
#[derive(Clone, Copy)]
struct Place {
    bar: u8,
    offset: u32,
    bytes: u64,
}

impl Place {
    /// The registers there: at least `least` bytes, and of more than `most` only these.
    fn within(
        self,
        windows: &Windows,
        (least, most): (u64, u64),
        what: &'static str,
    ) -> Result<Registers, Unusable> {
        let window = windows.get(usize::from(self.bar)).copied().flatten();
        let window = window.ok_or(Unusable::Outside(what))?;
        let is_inside = u64::from(self.offset) + self.bytes <= window.bytes;
        if !is_inside || self.bytes < least || !self.offset.is_multiple_of(4) {
            return Err(Unusable::Outside(what));
        }
        let paddr = window.paddr + u64::from(self.offset);
        Ok(Registers { paddr, bytes: self.bytes.min(most) })
    }
}

/// What the list of capabilities says; of each kind the first counts.
#[derive(Default)]
struct Capabilities {
    common: Option<Place>,
    notify: Option<(Place, u32)>,
    device: Option<Place>,
    msix: Option<(u8, Place)>,
}

impl Capabilities {
    fn read<C: ConfigSpace>(space: &mut C, at: Function) -> Result<Self, C::Error> {
        let mut found = Self::default();
        if space.read(at, COMMAND)? & STATUS_CAPABILITIES == 0 {
            return Ok(found);
        }
        let mut next = space.read(at, CAPABILITIES)? as u8 & 0xfc;
        for _ in 0..CAPABILITIES_MAX {
            // The header of configuration space is no capability, and ends the list.
            if next < 0x40 {
                break;
            }
            let [id, following, length, kind] = space.read(at, next)?.to_le_bytes();
            match id {
                CAPABILITY_MSIX => found.msix(space, at, next)?,
                CAPABILITY_VENDOR if length >= 16 => {
                    found.virtio(space, at, (next, length), kind)?;
                }
                _ => {}
            }
            next = following & 0xfc;
        }
        Ok(found)
    }

    fn msix<C: ConfigSpace>(
        &mut self,
        space: &mut C,
        at: Function,
        register: u8,
    ) -> Result<(), C::Error> {
        let (Some(table), None) = (register.checked_add(4), &self.msix) else { return Ok(()) };
        let entries = u64::from(space.read(at, register)? >> 16 & 0x7ff) + 1;
        let word = space.read(at, table)?;
        let bytes = entries * MSIX_ENTRY_BYTES;
        self.msix = Some((register, Place { bar: word as u8 & 7, offset: word & !7, bytes }));
        Ok(())
    }

    fn virtio<C: ConfigSpace>(
        &mut self,
        space: &mut C,
        at: Function,
        (register, length): (u8, u8),
        kind: u8,
    ) -> Result<(), C::Error> {
        if register.checked_add(length.max(16) - 1).is_none() {
            return Ok(());
        }
        let place = Place {
            bar: space.read(at, register + 4)? as u8,
            offset: space.read(at, register + 8)?,
            bytes: u64::from(space.read(at, register + 12)?),
        };
        match kind {
            COMMON if self.common.is_none() => self.common = Some(place),
            DEVICE if self.device.is_none() => self.device = Some(place),
            NOTIFY if self.notify.is_none() && length >= 20 => {
                self.notify = Some((place, space.read(at, register + 16)?));
            }
            _ => {}
        }
        Ok(())
    }

    /// The disk that is described so.
    fn disk(&self, at: Function, windows: &Windows) -> Result<Disk, Unusable> {
        const COMMON_IS: &str = "the common configuration";
        const NOTIFY_ARE: &str = "the doorbells";
        const DEVICE_IS: &str = "the disk's configuration";
        const TABLE_IS: &str = "the interrupt table (MSI-X)";
        let common = self.common.ok_or(Unusable::Missing(COMMON_IS))?;
        let (notify, notify_multiplier) = self.notify.ok_or(Unusable::Missing(NOTIFY_ARE))?;
        let device = self.device.ok_or(Unusable::Missing(DEVICE_IS))?;
        let (msix, table) = self.msix.ok_or(Unusable::Missing(TABLE_IS))?;
        let disk = Disk {
            at,
            common: common.within(windows, (COMMON_BYTES, COMMON_BYTES), COMMON_IS)?,
            notify: notify.within(windows, (2, NOTIFY_BYTES), NOTIFY_ARE)?,
            notify_multiplier,
            device: device.within(windows, (DEVICE_BYTES, DEVICE_BYTES), DEVICE_IS)?,
            interrupts: table.within(windows, (MSIX_ENTRY_BYTES, u64::MAX), TABLE_IS)?,
            msix,
        };
        let given = [disk.common, disk.notify, disk.device];
        if given.into_iter().any(|part| part.shares_a_page_with(disk.interrupts)) {
            return Err(Unusable::SharedTable);
        }
        Ok(disk)
    }
}

/// All virtio disks of bus 0, in the order of their functions, which is that of the machine's disks.
///
/// # Errors
///
/// That configuration space cannot be accessed.
pub fn disks<C: ConfigSpace>(
    space: &mut C,
) -> Result<Vec<Result<Disk, Unusable>, MACHINE_DISKS_MAX>, C::Error> {
    let mut disks = Vec::new();
    for device in 0..32 {
        let header = space.read(Function { device, function: 0 }, HEADER_TYPE)?;
        for function in 0..if header >> 16 & 0x80 != 0 { 8 } else { 1 } {
            let at = Function { device, function };
            let [v0, v1, d0, d1] = space.read(at, 0)?.to_le_bytes();
            let is_virtio = u16::from_le_bytes([v0, v1]) == VENDOR_VIRTIO;
            if !is_virtio || !DEVICES_BLK.contains(&u16::from_le_bytes([d0, d1])) {
                continue;
            }
            let capabilities = Capabilities::read(space, at)?;
            let windows = windows(space, at)?;
            if disks.push(windows.and_then(|windows| capabilities.disk(at, &windows))).is_err() {
                return Ok(disks);
            }
        }
    }
    Ok(disks)
}

/// Lets the disk's registers be reached, and nothing more: its interrupt table can be filled now.
///
/// # Errors
///
/// That configuration space cannot be accessed.
pub fn open<C: ConfigSpace>(space: &mut C, disk: &Disk) -> Result<(), C::Error> {
    let command = space.read(disk.at, COMMAND)? & COMMAND_MASK;
    space.write(disk.at, COMMAND, command | COMMAND_MEMORY | COMMAND_NO_INTX)
}

/// Turns on the disk's interrupts by its table and its access to memory.
///
/// # Errors
///
/// That configuration space cannot be accessed.
pub fn enable<C: ConfigSpace>(space: &mut C, disk: &Disk) -> Result<(), C::Error> {
    let control = space.read(disk.at, disk.msix)?;
    space.write(disk.at, disk.msix, (control | MSIX_ENABLE) & !MSIX_MASK_ALL)?;
    let command = space.read(disk.at, COMMAND)? & COMMAND_MASK;
    space.write(disk.at, COMMAND, command | COMMAND_MASTER)
}

#[cfg(test)]
mod tests;
