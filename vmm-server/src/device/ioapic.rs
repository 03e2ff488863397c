//! I/O APIC with 24 inputs (Intel 82093AA data sheet).

use heapless::Vec;

/// Physical address of the register page.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Number of inputs.
pub const PINS: usize = 24;

const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;
const REDIRECTION_MODE: u64 = 7 << 8;
const REDIRECTION_EXTINT: u64 = 7 << 8;
const REDIRECTION_STATUS: u64 = 1 << 12;
const REDIRECTION_REMOTE_IRR: u64 = 1 << 14;
const REDIRECTION_LEVEL: u64 = 1 << 15;
const REDIRECTION_MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = REDIRECTION_STATUS | REDIRECTION_REMOTE_IRR;

/// An interrupt message on its way to the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Vector.
    pub vector: u8,
    /// Delivery mode: 0 fixed, 1 lowest priority, 4 NMI, 7 ExtINT.
    pub mode: u8,
    /// Level triggered, so that its end is broadcast.
    pub is_level: bool,
    /// Destination field.
    pub destination: u8,
    /// Destination is a logical ID.
    pub is_logical: bool,
}

/// Messages of one event: every pin may fire at an EOI.
pub type Messages = Vec<Message, PINS>;

/// The I/O APIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u8,
    lines: u32,
    redirection: [u64; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// After reset: everything masked.
    pub const fn new() -> Self {
        Self { select: 0, id: 0, lines: 0, redirection: [REDIRECTION_MASKED; PINS] }
    }

    /// Whether input 0, which is wired to the 8259 pair, passes its interrupts on.
    pub fn passes_extint(&self) -> bool {
        self.redirection[0] & (REDIRECTION_MASKED | REDIRECTION_MODE) == REDIRECTION_EXTINT
    }

    /// Drives input `pin`; returns the message of a new interrupt.
    pub fn set_line(&mut self, pin: u8, level: bool) -> Option<Message> {
        let index = usize::from(pin);
        if index >= PINS {
            return None;
        }
        let bit = 1 << pin;
        let was = self.lines & bit != 0;
        if level == was {
            return None;
        }
        self.lines ^= bit;
        let entry = *self.redirection.get(index)?;
        if entry & REDIRECTION_LEVEL != 0 {
            self.fire_level(index)
        } else if level && entry & REDIRECTION_MASKED == 0 {
            Some(message(entry))
        } else {
            None
        }
    }

    fn fire_level(&mut self, index: usize) -> Option<Message> {
        let asserted = self.lines >> index & 1 != 0;
        let entry = self.redirection.get_mut(index)?;
        if !asserted || *entry & (REDIRECTION_MASKED | REDIRECTION_REMOTE_IRR) != 0 {
            return None;
        }
        *entry |= REDIRECTION_REMOTE_IRR;
        Some(message(*entry))
    }

    /// The local APIC broadcasts the end of level-triggered `vector`.
    pub fn end_of_interrupt(&mut self, vector: u8, out: &mut Messages) {
        for index in 0..PINS {
            let entry = &mut self.redirection[index];
            if *entry as u8 == vector && *entry & REDIRECTION_LEVEL != 0 {
                *entry &= !REDIRECTION_REMOTE_IRR;
                if let Some(message) = self.fire_level(index) {
                    // One message per pin and as many places as pins.
                    let _ = out.push(message);
                }
            }
        }
    }

    /// Reads the register page at `offset`.
    pub fn read(&self, offset: u16) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => match self.select {
                0 | 2 => u32::from(self.id) << 24,
                1 => VERSION,
                0x10..=0x3f => {
                    let entry = self.redirection[usize::from((self.select - 0x10) >> 1) % PINS];
                    (entry >> (32 * (self.select & 1))) as u32
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Writes the register page; returns the message of a level interrupt that was waiting.
    pub fn write(&mut self, offset: u16, value: u32) -> Option<Message> {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => match self.select {
                0 => self.id = (value >> 24) as u8 & 0xf,
                0x10..=0x3f => {
                    let index = usize::from((self.select - 0x10) >> 1) % PINS;
                    let entry = &mut self.redirection[index];
                    if self.select & 1 != 0 {
                        *entry = *entry & 0xffff_ffff | u64::from(value) << 32;
                        return None;
                    }
                    let kept = *entry & READ_ONLY | *entry & !0xffff_ffff;
                    *entry = kept | u64::from(value & 0x1_ffff) & !READ_ONLY;
                    if *entry & REDIRECTION_LEVEL == 0 {
                        *entry &= !REDIRECTION_REMOTE_IRR;
                        return None;
                    }
                    return self.fire_level(index);
                }
                _ => {}
            },
            _ => {}
        }
        None
    }
}

fn message(entry: u64) -> Message {
    // Polarity (bit 13) is a matter of wiring: models drive "asserted", whatever the guest calls it.
    Message {
        vector: entry as u8,
        mode: (entry >> 8 & 7) as u8,
        is_level: entry & REDIRECTION_LEVEL != 0,
        destination: (entry >> 56) as u8,
        is_logical: entry & 1 << 11 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(apic: &mut IoApic, pin: u8, low: u32) -> Option<Message> {
        apic.write(0, u32::from(0x11 + 2 * pin));
        apic.write(0x10, 0);
        apic.write(0, u32::from(0x10 + 2 * pin));
        apic.write(0x10, low)
    }

    #[test]
    fn edge_fires_once_per_rise() {
        let mut apic = IoApic::new();
        program(&mut apic, 4, 0x24);
        assert_eq!(apic.set_line(4, true).map(|m| m.vector), Some(0x24));
        assert_eq!(apic.set_line(4, true), None);
        assert_eq!(apic.set_line(4, false), None);
        assert!(apic.set_line(4, true).is_some());
    }

    #[test]
    fn level_repeats_after_eoi_while_asserted() {
        let mut apic = IoApic::new();
        program(&mut apic, 9, 0x8029);
        assert!(apic.set_line(9, true).is_some());
        apic.set_line(9, false);
        assert_eq!(apic.set_line(9, true), None, "remote IRR holds it back");
        let mut out = Messages::new();
        apic.end_of_interrupt(0x29, &mut out);
        assert_eq!(out.len(), 1);
        apic.set_line(9, false);
        out.clear();
        apic.end_of_interrupt(0x29, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn unmasking_an_asserted_level_input_fires() {
        let mut apic = IoApic::new();
        program(&mut apic, 10, 0x1_8030);
        assert_eq!(apic.set_line(10, true), None);
        assert_eq!(program(&mut apic, 10, 0x8030).map(|m| m.vector), Some(0x30));
        apic.write(0, 0x24);
        assert_eq!(apic.read(0x10) & 0x4000, 0x4000);
    }

    #[test]
    fn the_8259s_pass_only_an_open_first_input() {
        let mut apic = IoApic::new();
        assert!(!apic.passes_extint());
        program(&mut apic, 0, 0x700);
        assert!(apic.passes_extint());
        program(&mut apic, 0, 0x1_0700);
        assert!(!apic.passes_extint());
        program(&mut apic, 0, 0x030);
        assert!(!apic.passes_extint());
    }

    #[test]
    fn version_and_wild_offsets() {
        let mut apic = IoApic::new();
        apic.write(0, 1);
        assert_eq!(apic.read(0x10), 0x0017_0011);
        for select in 0..=255u32 {
            apic.write(0, select);
            apic.write(0x10, 0xffff_ffff);
            apic.read(0x10);
            apic.write(0x40, 1);
        }
        for pin in 0..=255 {
            apic.set_line(pin, true);
        }
    }
}
