//! PCI configuration space by mechanism 1: two ports that nobody but the root-task ever holds.

use root_task::pci::{ConfigSpace, Function};
use sel4::cap;

/// First port of the mechanism.
pub const FIRST_PORT: u16 = 0xcf8;
/// Last port of the mechanism.
pub const LAST_PORT: u16 = 0xcff;
const DATA: u16 = 0xcfc;

/// Access to configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Configuration(pub cap::IOPort);

impl Configuration {
    fn select(&self, at: Function, register: u8) -> sel4::Result<()> {
        let address = 1 << 31
            | u32::from(at.device) << 11
            | u32::from(at.function) << 8
            | u32::from(register & 0xfc);
        self.0.ioport_out32(FIRST_PORT, address)
    }
}

impl ConfigSpace for Configuration {
    type Error = sel4::Error;

    fn read(&mut self, at: Function, register: u8) -> sel4::Result<u32> {
        self.select(at, register)?;
        self.0.ioport_in32(DATA)
    }

    fn write(&mut self, at: Function, register: u8, value: u32) -> sel4::Result<()> {
        self.select(at, register)?;
        self.0.ioport_out32(DATA, value)
    }
}
