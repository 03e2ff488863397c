//! ACPI tables: only what the kernel itself needs (MADT for interrupt controllers and processors, FADT for the power-management timer).
//!
//! Parsers take bytes and trust none of them.

use heapless::Vec;

use crate::boot::loader::{PhysicalMemory, RSDP_BYTES};

/// Most IOAPICs driven.
pub const MAX_IOAPICS: usize = 8;
/// Most processors listed (more are left alone).
pub const MAX_PROCESSORS: usize = 64;

/// Why the machine's tables cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcpiError {
    /// There is no root pointer, or its checksum is wrong.
    NoRootPointer,
    /// A table lies outside reachable memory or its checksum is wrong.
    BadTable([u8; 4]),
    /// A needed table is missing.
    Missing([u8; 4]),
}

impl core::fmt::Display for AcpiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let name = |signature: &[u8; 4]| -> [char; 4] { signature.map(char::from) };
        match self {
            Self::NoRootPointer => f.write_str("no valid ACPI root pointer"),
            Self::BadTable(s) => write!(f, "ACPI table {:?} is damaged", name(s)),
            Self::Missing(s) => write!(f, "ACPI table {:?} is missing", name(s)),
        }
    }
}

/// One IOAPIC of the MADT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoApicEntry {
    /// Physical address of its registers.
    pub address: u64,
    /// Global number of its pin 0.
    pub first_gsi: u32,
}

/// What the tables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// APIC identifiers of processors that may be started, in table order.
    pub processors: Vec<u32, MAX_PROCESSORS>,
    /// IOAPICs in table order.
    pub ioapics: Vec<IoApicEntry, MAX_IOAPICS>,
    /// I/O port of the power-management timer, 0 if there is none.
    pub pm_timer: u16,
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Whether `bytes` hold a root pointer with a right checksum.
#[must_use]
pub fn is_root_pointer(bytes: &[u8]) -> bool {
    bytes.get(..8) == Some(b"RSD PTR ") && bytes.get(..20).is_some_and(sums_to_zero)
}

/// Looks for the root pointer where a PC BIOS puts it: the first KiB of the extended BIOS data area, then 0xe0000 to 0xfffff.
pub fn scan(memory: &dyn PhysicalMemory) -> Option<[u8; RSDP_BYTES]> {
    let ebda = memory.bytes(0x40e, 2).map(|b| u64::from(u16::from_le_bytes([b[0], b[1]])) << 4);
    let areas = [(ebda.filter(|at| *at >= 0x400).unwrap_or(0x9_fc00), 1024), (0xe_0000, 0x2_0000)];
    for (start, length) in areas {
        for at in (start..start + length).step_by(16) {
            let Some(bytes) = memory.bytes(at, RSDP_BYTES) else { continue };
            if is_root_pointer(bytes) {
                return bytes.try_into().ok();
            }
        }
    }
    None
}

fn table(memory: &dyn PhysicalMemory, address: u64) -> Option<&[u8]> {
    let length = u32_at(memory.bytes(address, 36)?, 4)? as usize;
    // The largest real tables have a few hundred KiB; anything else is damage.
    if !(36..=1 << 24).contains(&length) {
        return None;
    }
    memory.bytes(address, length).filter(|bytes| sums_to_zero(bytes))
}

impl Tables {
    /// Follows the root pointer to the tables.
    ///
    /// # Errors
    /// See [`AcpiError`].
    pub fn read(memory: &dyn PhysicalMemory, rsdp: &[u8; RSDP_BYTES]) -> Result<Self, AcpiError> {
        if !is_root_pointer(rsdp) {
            return Err(AcpiError::NoRootPointer);
        }
        let xsdt = if rsdp[15] >= 2 { u64_at(rsdp, 24).unwrap_or(0) } else { 0 };
        let (root, wide, name) = if xsdt != 0 {
            (xsdt, true, *b"XSDT")
        } else {
            (u64::from(u32_at(rsdp, 16).unwrap_or(0)), false, *b"RSDT")
        };
        let root = table(memory, root).ok_or(AcpiError::BadTable(name))?;
        let mut out = Self::default();
        let mut found_madt = false;
        for entry in root.get(36..).unwrap_or_default().chunks_exact(if wide { 8 } else { 4 }) {
            let address = if wide { u64_at(entry, 0) } else { u32_at(entry, 0).map(u64::from) };
            let Some(address) = address else { continue };
            let signature = memory.bytes(address, 4);
            if signature == Some(b"APIC") {
                let madt = table(memory, address).ok_or(AcpiError::BadTable(*b"APIC"))?;
                out.read_madt(madt);
                found_madt = true;
            } else if signature == Some(b"FACP") {
                let fadt = table(memory, address).ok_or(AcpiError::BadTable(*b"FACP"))?;
                out.pm_timer = pm_timer(fadt);
            }
        }
        if found_madt { Ok(out) } else { Err(AcpiError::Missing(*b"APIC")) }
    }

    fn read_madt(&mut self, madt: &[u8]) {
        const ENABLED: u32 = 1;
        let mut at = 44;
        while let (Some(kind), Some(length)) = (madt.get(at), madt.get(at + 1)) {
            let length = usize::from(*length);
            let Some(entry) = madt.get(at..at + length).filter(|_| length >= 2) else { return };
            match kind {
                0 => {
                    if let (Some(id), Some(flags)) = (entry.get(3), u32_at(entry, 4)) {
                        self.add_processor(u32::from(*id), flags & ENABLED != 0);
                    }
                }
                1 => {
                    if let (Some(address), Some(first_gsi)) = (u32_at(entry, 4), u32_at(entry, 8)) {
                        // A full list leaves the rest unused.
                        let _ =
                            self.ioapics.push(IoApicEntry { address: address.into(), first_gsi });
                    }
                }
                9 => {
                    if let (Some(id), Some(flags)) = (u32_at(entry, 4), u32_at(entry, 8)) {
                        self.add_processor(id, flags & ENABLED != 0);
                    }
                }
                _ => {}
            }
            at += length;
        }
    }

    fn add_processor(&mut self, id: u32, enabled: bool) {
        // Firmware may list a processor twice, as LAPIC and as x2APIC.
        if enabled && !self.processors.contains(&id) {
            let _ = self.processors.push(id);
        }
    }
}

/// The timer's port: the old field, or the extended one if it names a port.
fn pm_timer(fadt: &[u8]) -> u16 {
    let old = u32_at(fadt, 76).unwrap_or(0);
    let wide = match (fadt.get(208), u64_at(fadt, 212)) {
        (Some(1), Some(port)) => port,
        _ => 0,
    };
    let port = if old != 0 { u64::from(old) } else { wide };
    u16::try_from(port).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::loader::Arena;

    fn seal(bytes: &mut [u8], at: usize) {
        bytes[at] = 0;
        bytes[at] = bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    }

    fn put_table(arena: &mut Arena, at: usize, signature: &[u8; 4], body: &[u8]) {
        let length = 36 + body.len();
        let bytes = &mut arena.0[at..at + length];
        bytes[..4].copy_from_slice(signature);
        bytes[4..8].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        bytes[36..].copy_from_slice(body);
        seal(bytes, 9);
    }

    fn machine() -> (Arena, [u8; RSDP_BYTES]) {
        let mut a = Arena(vec![0; 0x10_0000]);
        let mut madt = vec![0; 8];
        madt.extend([0, 8, 0, 0, 1, 0, 0, 0]); // processor 0
        madt.extend([0, 8, 1, 1, 1, 0, 0, 0]); // processor 1
        madt.extend([0, 8, 2, 2, 0, 0, 0, 0]); // absent
        madt.extend([9, 16, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // 1 again
        madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        madt.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        put_table(&mut a, 0x2000, b"APIC", &madt);
        let mut fadt = vec![0; 208];
        fadt[40..44].copy_from_slice(&0x608u32.to_le_bytes());
        put_table(&mut a, 0x3000, b"FACP", &fadt);
        put_table(&mut a, 0x1000, b"RSDT", &[0, 0x20, 0, 0, 0, 0x30, 0, 0, 0, 0x90, 0, 0]);
        let mut rsdp = [0; RSDP_BYTES];
        rsdp[..8].copy_from_slice(b"RSD PTR ");
        rsdp[16..20].copy_from_slice(&0x1000u32.to_le_bytes());
        seal(&mut rsdp[..20], 8);
        a.0[0xf_5000..0xf_5000 + RSDP_BYTES].copy_from_slice(&rsdp);
        (a, rsdp)
    }

    #[test]
    fn tables_are_found_and_read() {
        let (a, rsdp) = machine();
        assert_eq!(scan(&a), Some(rsdp));
        let tables = Tables::read(&a, &rsdp).unwrap();
        assert_eq!(tables.processors.as_slice(), [0, 1]);
        assert_eq!(tables.ioapics.as_slice(), [IoApicEntry { address: 0xfec0_0000, first_gsi: 0 }]);
        assert_eq!(tables.pm_timer, 0x608);
    }

    #[test]
    fn damage_is_reported() {
        let (mut a, rsdp) = machine();
        a.0[0x2030] ^= 1;
        assert_eq!(Tables::read(&a, &rsdp), Err(AcpiError::BadTable(*b"APIC")));
        let (mut a, rsdp) = machine();
        a.0[0x2000] = b'X';
        assert_eq!(Tables::read(&a, &rsdp), Err(AcpiError::Missing(*b"APIC")));
        let (a, mut rsdp) = machine();
        rsdp[8] ^= 1;
        assert_eq!(Tables::read(&a, &rsdp), Err(AcpiError::NoRootPointer));
    }

    #[test]
    fn no_madt_byte_makes_the_parser_panic() {
        for at in 0..100 {
            for value in [0u8, 1, 9, 0xff] {
                let (mut a, rsdp) = machine();
                a.0[0x2000 + at] = value;
                seal(&mut a.0[0x2000..0x2000 + 36 + 70], 9);
                let _ = Tables::read(&a, &rsdp);
            }
        }
    }
}
