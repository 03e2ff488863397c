//! Finds the disks' PCI functions and their register windows by configuration mechanism 1.

use heapless::Vec;
use protocol::units::MACHINE_DISKS_MAX;
use sel4::cap;

/// First port of the mechanism.
pub const FIRST_PORT: u16 = 0xcf8;
/// Last port of the mechanism.
pub const LAST_PORT: u16 = 0xcff;
const DATA: u16 = 0xcfc;

const VENDOR_VIRTIO: u16 = 0x1af4;
/// virtio-blk: transitional and modern.
const DEVICES_BLK: [u16; 2] = [0x1001, 0x1042];
const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const HEADER_TYPE: u8 = 0x0c;
const FIRST_BAR: u8 = 0x10;

/// A register window as the firmware placed it.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Number of the base address register.
    pub index: u8,
    /// First physical address.
    pub paddr: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A disk's function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Device number on bus 0.
    pub device: u8,
    /// Function number.
    pub function: u8,
    /// PCI vendor identifier.
    pub vendor_id: u16,
    /// PCI device identifier.
    pub device_id: u16,
    /// Its memory windows.
    pub windows: Vec<Window, 6>,
}

/// Access to configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Configuration(pub cap::IOPort);

impl Configuration {
    fn select(&self, device: u8, function: u8, register: u8) -> sel4::Result<()> {
        let address = 1 << 31
            | u32::from(device) << 11
            | u32::from(function) << 8
            | u32::from(register & 0xfc);
        self.0.ioport_out32(FIRST_PORT, address)
    }

    fn read(&self, device: u8, function: u8, register: u8) -> sel4::Result<u32> {
        self.select(device, function, register)?;
        self.0.ioport_in32(DATA)
    }

    fn write(&self, device: u8, function: u8, register: u8, value: u32) -> sel4::Result<()> {
        self.select(device, function, register)?;
        self.0.ioport_out32(DATA, value)
    }

    /// The memory windows of a function, sized by writing ones with decoding off.
    fn windows(&self, device: u8, function: u8) -> sel4::Result<Vec<Window, 6>> {
        let mut windows = Vec::new();
        let command = self.read(device, function, COMMAND)?;
        self.write(device, function, COMMAND, command & !COMMAND_MEMORY)?;
        let mut index = 0;
        while index < 6 {
            let register = FIRST_BAR + 4 * index;
            let low = self.read(device, function, register)?;
            let is_io = low & 1 == 1;
            let is_wide = !is_io && low & 6 == 4;
            self.write(device, function, register, u32::MAX)?;
            let mut mask = u64::from(self.read(device, function, register)?);
            self.write(device, function, register, low)?;
            let mut address = u64::from(low);
            if is_wide {
                let high = self.read(device, function, register + 4)?;
                self.write(device, function, register + 4, u32::MAX)?;
                mask |= u64::from(self.read(device, function, register + 4)?) << 32;
                self.write(device, function, register + 4, high)?;
                address |= u64::from(high) << 32;
            } else {
                mask |= 0xffff_ffff << 32;
            }
            let bytes = (!(mask & !0xf)).wrapping_add(1);
            let paddr = address & !0xf;
            if !is_io && mask & 0xffff_fff0 != 0 && paddr != 0 {
                let _ = windows.push(Window { index, paddr, bytes });
            }
            index += if is_wide { 2 } else { 1 };
        }
        self.write(device, function, COMMAND, command)?;
        Ok(windows)
    }

    /// All virtio disks on bus 0.
    ///
    /// # Errors
    ///
    /// The kernel's, if the ports are not ours.
    pub fn disks(&self) -> sel4::Result<Vec<Function, MACHINE_DISKS_MAX>> {
        let mut disks = Vec::new();
        for device in 0..32 {
            let is_multi = self.read(device, 0, HEADER_TYPE)? >> 16 & 0x80 != 0;
            for function in 0..if is_multi { 8 } else { 1 } {
                let [v0, v1, d0, d1] = self.read(device, function, 0)?.to_le_bytes();
                let (vendor_id, device_id) =
                    (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
                if vendor_id != VENDOR_VIRTIO || !DEVICES_BLK.contains(&device_id) {
                    continue;
                }
                let windows = self.windows(device, function)?;
                let found = Function { device, function, vendor_id, device_id, windows };
                let _ = disks.push(found);
            }
        }
        Ok(disks)
    }
}
