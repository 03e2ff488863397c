//! ACPI tables of the virtual PC (ACPI 6.4, chapter 5).
//!
//! One processor, one I/O APIC, one PCI bus; fixed hardware for power, sleep state S5 and reset.

pub mod aml;

use crate::device::ioapic::IOAPIC_BASE;
use crate::device::lapic::LAPIC_BASE;
use crate::device::pm;
use crate::guest_memory::{GuestMemory, OutOfRam};
use crate::pci::{WINDOW_END, WINDOW_START};
use aml::Aml;

/// Where the RSDP lies, in the area legacy kernels search.
pub const RSDP_ADDRESS: u64 = 0xe_0000;
const FACS_ADDRESS: u64 = RSDP_ADDRESS + 0x40;
const XSDT_ADDRESS: u64 = RSDP_ADDRESS + 0x80;
const FADT_ADDRESS: u64 = RSDP_ADDRESS + 0x100;
const MADT_ADDRESS: u64 = RSDP_ADDRESS + 0x240;
const DSDT_ADDRESS: u64 = RSDP_ADDRESS + 0x300;

/// ISA interrupts no device of this machine has: the PCI devices' INTA lines, so that they reach a guest that uses only the
/// 8259 pair as well as one with the I/O APIC.
const PCI_IRQS: [u8; 6] = [3, 5, 6, 10, 11, 12];

/// Interrupt of the INTA line of PCI device `device`, with 8259 and I/O APIC alike.
pub const fn pci_irq(device: u8) -> u8 {
    PCI_IRQS[device as usize % PCI_IRQS.len()]
}

const HEADER: usize = 36;
const FADT_BYTES: usize = 268;

/// A table under construction, with a standard header.
struct Table<const N: usize> {
    bytes: [u8; N],
}

impl<const N: usize> Table<N> {
    fn new(signature: [u8; 4], revision: u8) -> Self {
        let mut table = Self { bytes: [0; N] };
        table.put(0, &signature);
        table.put(4, &(N as u32).to_le_bytes());
        table.put(8, &[revision]);
        table.put(10, b"BALLAS");
        table.put(16, b"BALLAST ");
        table.put(24, &1u32.to_le_bytes());
        table.put(28, b"BLST");
        table.put(32, &1u32.to_le_bytes());
        table
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + data.len()) {
            place.copy_from_slice(data);
        }
    }

    /// A generic address structure for I/O ports.
    fn put_port(&mut self, at: usize, port: u16, bits: u8, access: u8) {
        self.put(at, &[1, bits, 0, access]);
        self.put(at + 4, &u64::from(port).to_le_bytes());
    }

    fn finish(mut self) -> [u8; N] {
        self.bytes[9] = checksum(&self.bytes);
        self.bytes
    }
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

/// Writes all tables; the RSDP is at [`RSDP_ADDRESS`].
///
/// # Errors
///
/// [`OutOfRam`] if the guest has less than a megabyte.
pub fn install(memory: &mut impl GuestMemory) -> Result<(), OutOfRam> {
    let mut dsdt = [0; 1024];
    let dsdt_bytes = build_dsdt(&mut dsdt);
    memory.write(DSDT_ADDRESS, dsdt_bytes)?;
    memory.write(FACS_ADDRESS, &build_facs())?;
    memory.write(FADT_ADDRESS, &build_fadt())?;
    memory.write(MADT_ADDRESS, &build_madt())?;
    let mut xsdt = Table::<{ HEADER + 16 }>::new(*b"XSDT", 1);
    xsdt.put(HEADER, &FADT_ADDRESS.to_le_bytes());
    xsdt.put(HEADER + 8, &MADT_ADDRESS.to_le_bytes());
    memory.write(XSDT_ADDRESS, &xsdt.finish())?;
    memory.write(RSDP_ADDRESS, &build_rsdp())
}

fn build_rsdp() -> [u8; 36] {
    let mut rsdp = [0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"BALLAS");
    rsdp[15] = 2;
    rsdp[20..24].copy_from_slice(&36u32.to_le_bytes());
    rsdp[24..32].copy_from_slice(&XSDT_ADDRESS.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

fn build_facs() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4..8].copy_from_slice(&64u32.to_le_bytes());
    facs[32] = 2;
    facs
}

fn build_fadt() -> [u8; FADT_BYTES] {
    let mut fadt = Table::<FADT_BYTES>::new(*b"FACP", 5);
    fadt.put(36, &(FACS_ADDRESS as u32).to_le_bytes());
    fadt.put(40, &(DSDT_ADDRESS as u32).to_le_bytes());
    fadt.put(46, &u16::from(pm::SCI_IRQ).to_le_bytes());
    fadt.put(56, &u32::from(pm::PM1A_EVENT).to_le_bytes());
    fadt.put(64, &u32::from(pm::PM1A_CONTROL).to_le_bytes());
    fadt.put(76, &u32::from(pm::PM_TIMER).to_le_bytes());
    fadt.put(88, &[4, 2, 0, 4]);
    // C2 and C3 latencies beyond what the specification allows: those states do not exist.
    fadt.put(96, &0x0fffu16.to_le_bytes());
    fadt.put(98, &0x0fffu16.to_le_bytes());
    fadt.put(108, &[0x32]);
    // Boot architecture: legacy devices (the serial port), no 8042, no VGA, no PCIe power management.
    fadt.put(109, &0x0015u16.to_le_bytes());
    // WBINVD works, C1 works, power button is fixed hardware, no sleep button, RTC cannot wake,
    // reset register works.
    let flags: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10;
    fadt.put(112, &flags.to_le_bytes());
    fadt.put_port(116, pm::RESET_PORT, 8, 1);
    fadt.put(128, &[pm::RESET_VALUE]);
    fadt.put(140, &DSDT_ADDRESS.to_le_bytes());
    fadt.put_port(148, pm::PM1A_EVENT, 32, 2);
    fadt.put_port(172, pm::PM1A_CONTROL, 16, 2);
    fadt.put_port(208, pm::PM_TIMER, 32, 3);
    fadt.finish()
}

fn build_madt() -> [u8; HEADER + 8 + 8 + 12 + 20 + 6] {
    let mut madt = Table::<{ HEADER + 8 + 8 + 12 + 20 + 6 }>::new(*b"APIC", 3);
    madt.put(36, &(LAPIC_BASE as u32).to_le_bytes());
    // The 8259 pair exists.
    madt.put(40, &1u32.to_le_bytes());
    // Processor 0 with APIC ID 0, enabled.
    madt.put(44, &[0, 8, 0, 0, 1, 0, 0, 0]);
    madt.put(52, &[1, 12, 0, 0]);
    madt.put(56, &(IOAPIC_BASE as u32).to_le_bytes());
    // ISA interrupt 0 is wired to input 2; the SCI is level triggered and active high.
    madt.put(64, &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    madt.put(74, &[2, 10, 0, pm::SCI_IRQ, pm::SCI_IRQ, 0, 0, 0, 0x0d, 0]);
    // LINT1 of every processor is the NMI.
    madt.put(84, &[4, 6, 0xff, 0, 0, 1]);
    madt.finish()
}

/// Builds the DSDT in `buffer`; returns the part used.
fn build_dsdt(buffer: &mut [u8]) -> &[u8] {
    let header = Table::<HEADER>::new(*b"DSDT", 2);
    let mut aml = Aml::new(buffer);
    aml.raw(&header.bytes);
    aml.name(b"_S5_", |aml| {
        aml.package(4, |aml| {
            aml.integer(u64::from(pm::SLEEP_TYPE_S5));
            aml.integer(u64::from(pm::SLEEP_TYPE_S5));
            aml.integer(0);
            aml.integer(0);
        });
    });
    aml.scope(b"_SB_", |aml| {
        aml.device(b"PCI0", |aml| {
            aml.name(b"_HID", |aml| aml.eisa_id(*b"PNP0A03"));
            aml.name(b"_UID", |aml| aml.integer(0));
            aml.name(b"_BBN", |aml| aml.integer(0));
            aml.name(b"_CRS", |aml| aml.buffer(bridge_resources));
            aml.name(b"_PRT", |aml| {
                aml.package(32, |aml| {
                    for device in 0..32u8 {
                        aml.package(4, |aml| {
                            aml.integer(u64::from(device) << 16 | 0xffff);
                            aml.integer(0);
                            aml.integer(0);
                            aml.integer(u64::from(pci_irq(device)));
                        });
                    }
                });
            });
        });
        aml.device(b"COM1", |aml| {
            aml.name(b"_HID", |aml| aml.eisa_id(*b"PNP0501"));
            aml.name(b"_UID", |aml| aml.integer(1));
            aml.name(b"_CRS", |aml| {
                aml.buffer(|aml| {
                    // I/O 0x3f8 to 0x3ff, 16-bit decoding; IRQ 4, edge; end tag.
                    aml.raw(&[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]);
                    aml.raw(&[0x22, 0x10, 0]);
                    aml.raw(&[0x79, 0]);
                });
            });
        });
    });
    let used = aml.finish();
    let used = used.min(buffer.len());
    let table = buffer.get_mut(..used).unwrap_or(&mut []);
    if let Some(length) = table.get_mut(4..8) {
        length.copy_from_slice(&(used as u32).to_le_bytes());
    }
    let sum = checksum(table);
    if let Some(place) = table.get_mut(9) {
        *place = sum;
    }
    table
}

/// What the host bridge passes on: bus 0, all I/O ports but its own, one memory window.
fn bridge_resources(aml: &mut Aml<'_>) {
    // Word address space descriptors: type (2 = bus, 1 = I/O), min and max fixed, type flags.
    let word = |aml: &mut Aml<'_>, kind: u8, flags: u8, first: u16, last: u16| {
        aml.raw(&[0x88, 13, 0, kind, 0x0c, flags, 0, 0]);
        for value in [first, last, 0, (u32::from(last) - u32::from(first) + 1).min(0xffff) as u16] {
            aml.raw(&value.to_le_bytes());
        }
    };
    word(aml, 2, 0, 0, 0);
    aml.raw(&[0x47, 1, 0xf8, 0x0c, 0xf8, 0x0c, 1, 8]);
    word(aml, 1, 3, 0, 0x0cf7);
    word(aml, 1, 3, 0x0d00, 0xffff);
    aml.raw(&[0x87, 23, 0, 0, 0x0c, 1]);
    for value in [0, WINDOW_START, WINDOW_END, 0, WINDOW_END - WINDOW_START + 1] {
        aml.raw(&value.to_le_bytes());
    }
    aml.raw(&[0x79, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::VecMemory;

    fn table(memory: &VecMemory, at: u64) -> std::vec::Vec<u8> {
        let length = memory.read_u32(at + 4).unwrap() as usize;
        let mut bytes = std::vec![0; length];
        memory.read(at, &mut bytes).unwrap();
        assert_eq!(bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0, "{at:#x}");
        bytes
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let mut memory = VecMemory::new(1 << 20);
        install(&mut memory).unwrap();
        let mut rsdp = [0; 36];
        memory.read(RSDP_ADDRESS, &mut rsdp).unwrap();
        assert_eq!(rsdp.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        assert_eq!(rsdp[..20].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        let xsdt = table(&memory, memory.read_u64(RSDP_ADDRESS + 24).unwrap());
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&memory, u64::from_le_bytes(xsdt[36..44].try_into().unwrap()));
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&memory, u64::from_le_bytes(xsdt[44..52].try_into().unwrap()));
        assert_eq!(&madt[..4], b"APIC");
        // Walk the MADT entries: they must end exactly at the table's end.
        let mut at = 44;
        let mut kinds = std::vec::Vec::new();
        while at < madt.len() {
            kinds.push(madt[at]);
            at += usize::from(madt[at + 1]);
        }
        assert_eq!((at, kinds.as_slice()), (madt.len(), &[0, 1, 2, 2, 4][..]));
        let dsdt = table(&memory, u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(DSDT_ADDRESS + (dsdt.len() as u64) < 0x10_0000);
    }

    #[test]
    fn small_guests_are_refused() {
        assert!(install(&mut VecMemory::new(0xe_0100)).is_err());
    }
}
