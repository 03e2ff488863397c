//! PCI bus 0: configuration mechanism 1, the host bridge, and configuration spaces with one memory BAR.
//!
//! PCI Local Bus 3.0, sections 3.2.2.3.2, 6.1, 6.2.5 and 6.8.2 (MSI-X).

use heapless::Vec;

/// Configuration address port.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// First of the four configuration data ports.
pub const CONFIG_DATA: u16 = 0xcfc;
/// Where the bridge's memory window starts, and where device BARs are placed.
pub const WINDOW_START: u32 = 0xd000_0000;
/// Last byte of the bridge's memory window.
pub const WINDOW_END: u32 = 0xdfff_ffff;
/// Bytes of every device's BAR 0.
pub const BAR_BYTES: u32 = 0x8000;
/// Most MSI-X vectors of a device: its queues and the configuration.
pub const VECTORS_MAX: usize = 5;

const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const COMMAND_INTX_DISABLE: u32 = 1 << 10;
/// Status bit 4 (capability list) in the upper half of register 1.
const STATUS_CAPABILITIES: u32 = 1 << 20;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_FUNCTION_MASK: u32 = 1 << 30;
/// First register (in bytes) of the MSI-X capability; virtio's capabilities follow it.
pub const MSIX_CAPABILITY: u8 = 0x40;
/// Offset of the MSI-X table in BAR 0.
pub const MSIX_TABLE: u32 = 0x4000;
/// Offset of the pending bit array in BAR 0.
pub const MSIX_PENDING: u32 = 0x4800;

/// A message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Address the device writes to.
    pub address: u64,
    /// What it writes.
    pub data: u32,
}

/// Messages of one event of one device.
pub type Msis = Vec<Msi, VECTORS_MAX>;

#[derive(Clone, Copy, Debug, Default)]
struct MsixEntry {
    address: u64,
    data: u32,
    is_masked: bool,
}

/// MSI-X state of a function.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: [MsixEntry; VECTORS_MAX],
    pending: u8,
    is_enabled: bool,
    is_masked: bool,
    count: u8,
}

impl Msix {
    fn new(count: u8) -> Self {
        let masked = MsixEntry { is_masked: true, ..MsixEntry::default() };
        Self {
            entries: [masked; VECTORS_MAX],
            pending: 0,
            is_enabled: false,
            is_masked: false,
            count,
        }
    }

    /// Whether interrupts go by messages.
    pub fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// Number of vectors.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Vector `index` fires: its message, unless it is masked (then it stays pending) or does not exist.
    pub fn fire(&mut self, index: u16) -> Option<Msi> {
        if !self.is_enabled || index >= u16::from(self.count) {
            return None;
        }
        let entry = self.entries.get(usize::from(index))?;
        if self.is_masked || entry.is_masked {
            self.pending |= 1 << index;
            return None;
        }
        Some(Msi { address: entry.address, data: entry.data })
    }

    fn release_pending(&mut self, out: &mut Msis) {
        if !self.is_enabled || self.is_masked {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if self.pending >> index & 1 != 0 && !entry.is_masked {
                self.pending &= !(1 << index);
                let _ = out.push(Msi { address: entry.address, data: entry.data });
            }
        }
    }

    /// Reads a 32-bit word of the table or of the pending array.
    pub fn read(&self, offset: u32) -> u32 {
        if offset >= MSIX_PENDING {
            return if offset == MSIX_PENDING { u32::from(self.pending) } else { 0 };
        }
        let at = offset.wrapping_sub(MSIX_TABLE);
        let Some(entry) = self.entries.get((at / 16) as usize) else { return 0 };
        match at % 16 {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            12 => u32::from(entry.is_masked),
            _ => 0,
        }
    }

    /// Writes a 32-bit word of the table; unmasking may release pending messages.
    pub fn write(&mut self, offset: u32, value: u32, out: &mut Msis) {
        let at = offset.wrapping_sub(MSIX_TABLE);
        let Some(entry) = self.entries.get_mut((at / 16) as usize) else { return };
        match at % 16 {
            0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
            4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
            8 => entry.data = value,
            12 => {
                entry.is_masked = value & 1 != 0;
                self.release_pending(out);
            }
            _ => {}
        }
    }
}

/// Identity of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Base class, subclass, programming interface.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    registers: [u32; 64],
    writable: [u32; 64],
    /// MSI-X state, if the function has the capability.
    pub msix: Option<Msix>,
}

impl ConfigSpace {
    /// A function without BAR, capability or interrupt (the host bridge).
    pub const fn bridge(identity: Identity) -> Self {
        let mut space = Self { registers: [0; 64], writable: [0; 64], msix: None };
        space.identify(identity);
        space
    }

    /// A function with BAR 0 at `bar`, MSI-X with `vectors` vectors, and INTA on ISA-style line `line`.
    pub fn device(identity: Identity, bar: u32, vectors: u8, line: u8) -> Self {
        let vectors = vectors.clamp(1, VECTORS_MAX as u8);
        let mut space = Self::bridge(identity);
        space.registers[1] = STATUS_CAPABILITIES | COMMAND_MEMORY | COMMAND_BUS_MASTER;
        space.writable[1] = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.registers[4] = bar;
        space.writable[4] = !(BAR_BYTES - 1);
        space.registers[13] = u32::from(MSIX_CAPABILITY);
        space.registers[15] = 1 << 8 | u32::from(line);
        space.writable[15] = 0xff;
        let at = usize::from(MSIX_CAPABILITY / 4);
        space.registers[at] = 0x11 | u32::from(vectors - 1) << 16;
        space.writable[at] = MSIX_ENABLE | MSIX_FUNCTION_MASK;
        space.registers[at + 1] = MSIX_TABLE;
        space.registers[at + 2] = MSIX_PENDING;
        space.msix = Some(Msix::new(vectors));
        space
    }

    const fn identify(&mut self, identity: Identity) {
        self.registers[0] = identity.vendor as u32 | (identity.device as u32) << 16;
        self.registers[2] = identity.class << 8 | 1;
        self.registers[11] = identity.subsystem_vendor as u32 | (identity.subsystem as u32) << 16;
    }

    /// Places read-only words at byte `at` and links the capability there behind the last one.
    pub fn add_capability(&mut self, at: u8, words: &[u32]) {
        let mut last = self.registers[13] as u8;
        loop {
            let index = usize::from(last / 4) % 64;
            let next = (self.registers[index] >> 8) as u8;
            if next == 0 {
                self.registers[index] |= u32::from(at) << 8;
                break;
            }
            last = next;
        }
        for (offset, word) in words.iter().enumerate() {
            if let Some(register) = self.registers.get_mut(usize::from(at / 4) + offset) {
                *register = *word;
            }
        }
    }

    /// Lets the guest write register `index` (in words) under `mask`.
    pub fn allow(&mut self, index: usize, mask: u32) {
        if let Some(word) = self.writable.get_mut(index) {
            *word = mask;
        }
    }

    /// Register `index` in words.
    pub fn register(&self, index: usize) -> u32 {
        self.registers.get(index).copied().unwrap_or(0)
    }

    /// Where BAR 0 answers, if memory decoding is on.
    #[inline]
    pub fn bar(&self) -> Option<u32> {
        (self.registers[1] & COMMAND_MEMORY != 0 && self.writable[4] != 0)
            .then_some(self.registers[4] & self.writable[4])
    }

    /// Whether the function may use guest memory.
    pub fn is_bus_master(&self) -> bool {
        self.registers[1] & COMMAND_BUS_MASTER != 0
    }

    /// Whether INTA may be driven.
    pub fn uses_intx(&self) -> bool {
        self.registers[1] & COMMAND_INTX_DISABLE == 0
            && !self.msix.as_ref().is_some_and(Msix::is_enabled)
    }

    /// Writes register `index` under `lanes` (a bit mask of the bytes written).
    pub fn write(&mut self, index: usize, value: u32, lanes: u32, out: &mut Msis) {
        let index = index & 63;
        let mask = self.writable[index] & lanes;
        self.registers[index] = self.registers[index] & !mask | value & mask;
        if index == usize::from(MSIX_CAPABILITY / 4)
            && let Some(msix) = &mut self.msix
        {
            msix.is_enabled = self.registers[index] & MSIX_ENABLE != 0;
            msix.is_masked = self.registers[index] & MSIX_FUNCTION_MASK != 0;
            msix.release_pending(out);
        }
    }
}

/// The identity of the host bridge: Red Hat's generic one, for which no guest has quirks.
pub const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    class: 0x06_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// A configuration access: which function, which register, which bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAccess {
    /// Device number on bus 0.
    pub device: u8,
    /// Register in words.
    pub register: usize,
    /// Shift of the accessed bytes in the register, in bits.
    pub shift: u32,
}

/// The configuration address register.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfigMechanism {
    address: u32,
}

impl ConfigMechanism {
    /// Nothing is selected.
    pub const fn new() -> Self {
        Self { address: 0 }
    }

    /// Writes the address port (32-bit accesses only; others are ordinary port accesses).
    pub fn set_address(&mut self, value: u32) {
        self.address = value & 0x80ff_fffc;
    }

    /// Reads the address port.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// What an access to data port `port` means; `None` if nobody answers.
    pub fn decode(&self, port: u16) -> Option<ConfigAccess> {
        let is_enabled = self.address >> 31 != 0;
        let bus_and_function = self.address & 0x00ff_0700;
        if !is_enabled || bus_and_function != 0 {
            return None;
        }
        Some(ConfigAccess {
            device: (self.address >> 11 & 31) as u8,
            register: (self.address >> 2 & 63) as usize,
            shift: u32::from(port & 3) * 8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function() -> ConfigSpace {
        ConfigSpace::device(HOST_BRIDGE, WINDOW_START, 3, 11)
    }

    #[test]
    fn bar_sizing_and_moving() {
        let mut space = function();
        let mut out = Msis::new();
        assert_eq!(space.bar(), Some(WINDOW_START));
        space.write(4, 0xffff_ffff, u32::MAX, &mut out);
        assert_eq!(space.register(4), 0xffff_8000);
        space.write(4, 0xd010_0000, u32::MAX, &mut out);
        assert_eq!(space.bar(), Some(0xd010_0000));
        space.write(1, 0, 0xffff, &mut out);
        assert_eq!(space.bar(), None);
        assert_eq!(space.register(1) & STATUS_CAPABILITIES, STATUS_CAPABILITIES);
        space.write(0, 0, u32::MAX, &mut out);
        assert_eq!(space.register(0), 0x0008_1b36);
    }

    #[test]
    fn masked_vectors_stay_pending() {
        let mut space = function();
        let mut out = Msis::new();
        space.write(16, MSIX_ENABLE, u32::MAX, &mut out);
        assert!(!space.uses_intx());
        let msix = space.msix.as_mut().unwrap();
        msix.write(MSIX_TABLE, 0xfee0_0000, &mut out);
        msix.write(MSIX_TABLE + 8, 0x41, &mut out);
        assert_eq!(msix.fire(0), None);
        assert_eq!(msix.read(MSIX_PENDING), 1);
        msix.write(MSIX_TABLE + 12, 0, &mut out);
        assert_eq!(out.as_slice(), [Msi { address: 0xfee0_0000, data: 0x41 }]);
        assert_eq!(msix.read(MSIX_PENDING), 0);
        assert!(msix.fire(0).is_some());
        assert_eq!(msix.fire(3), None, "only three vectors");
        assert_eq!(msix.fire(0xffff), None);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = function();
        space.add_capability(0x50, &[0x0010_0009, 1]);
        space.add_capability(0x60, &[0x0010_0009, 2]);
        assert_eq!(space.register(16) >> 8 & 0xff, 0x50);
        assert_eq!(space.register(20) >> 8 & 0xff, 0x60);
        assert_eq!(space.register(24) >> 8 & 0xff, 0);
    }

    #[test]
    fn address_decoding() {
        let mut mechanism = ConfigMechanism::default();
        assert_eq!(mechanism.decode(CONFIG_DATA), None);
        mechanism.set_address(0x8000_1813);
        assert_eq!(mechanism.address(), 0x8000_1810);
        assert_eq!(
            mechanism.decode(CONFIG_DATA + 2),
            Some(ConfigAccess { device: 3, register: 4, shift: 16 })
        );
        mechanism.set_address(0x8001_1810);
        assert_eq!(mechanism.decode(CONFIG_DATA), None, "bus 1");
    }
}
