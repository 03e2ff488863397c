//! A pair of 8259A interrupt controllers with edge/level control (Intel 8259A data sheet; PIIX ELCR).

/// Which of the two chips.
const MASTER: usize = 0;
const SLAVE: usize = 1;
/// Master input the slave hangs on.
const CASCADE: u8 = 2;

#[derive(Clone, Copy, Debug, Default)]
struct Chip {
    irr: u8,
    imr: u8,
    isr: u8,
    lines: u8,
    elcr: u8,
    base: u8,
    /// Input with the lowest priority; the next one has the highest.
    lowest: u8,
    init_step: u8,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    special_fully_nested: bool,
}

impl Chip {
    const fn new() -> Self {
        Self {
            irr: 0,
            imr: 0,
            isr: 0,
            lines: 0,
            elcr: 0,
            base: 0,
            lowest: 7,
            init_step: 0,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            read_isr: false,
            poll: false,
            special_mask: false,
            special_fully_nested: false,
        }
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        let was = self.lines & bit != 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.elcr & bit != 0 {
            if level {
                self.irr |= bit;
            } else {
                self.irr &= !bit;
            }
        } else if level && !was {
            self.irr |= bit;
        } else if !level {
            // The 8259A wants the request held until acknowledged.
            self.irr &= !bit;
        }
    }

    /// Priority of the best set bit in `bits`, 0 the highest, with its input number.
    fn best(&self, bits: u8) -> Option<(u8, u8)> {
        if bits == 0 {
            return None;
        }
        let shift = (self.lowest + 1) & 7;
        let rank = bits.rotate_right(u32::from(shift)).trailing_zeros() as u8;
        Some((rank, (rank + shift) & 7))
    }

    /// The input that would interrupt now.
    fn pending(&self, is_master: bool) -> Option<u8> {
        let (rank, input) = self.best(self.irr & !self.imr)?;
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if self.special_fully_nested && is_master {
            blocking &= !(1 << CASCADE);
        }
        match self.best(blocking) {
            Some((in_service, _)) if in_service <= rank => None,
            _ => Some(input),
        }
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            let (elcr, lines) = (self.elcr, self.lines);
            *self = Self { elcr, lines, irr: lines & elcr, ..Self::new() };
            self.init_step = 1;
            self.single = value & 0x02 != 0;
            self.needs_icw4 = value & 0x01 != 0;
        } else if value & 0x08 != 0 {
            if value & 0x04 != 0 {
                self.poll = true;
            }
            if value & 0x02 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_ocw2(value >> 5, value & 7);
        }
    }

    fn write_ocw2(&mut self, command: u8, input: u8) {
        match command {
            0 | 4 => self.rotate_on_auto_eoi = command == 4,
            1 | 5 => {
                if let Some((_, served)) = self.best(self.isr) {
                    self.isr &= !(1 << served);
                    if command == 5 {
                        self.lowest = served;
                    }
                }
            }
            3 => self.isr &= !(1 << input),
            6 => self.lowest = input,
            7 => {
                self.isr &= !(1 << input);
                self.lowest = input;
            }
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init_step {
            1 => {
                self.base = value & 0xf8;
                self.init_step = if self.single { if self.needs_icw4 { 3 } else { 0 } } else { 2 };
            }
            2 => self.init_step = if self.needs_icw4 { 3 } else { 0 },
            3 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init_step = 0;
            }
            _ => self.imr = value,
        }
    }
}

/// Master and slave as wired in a PC.
#[derive(Clone, Debug)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Both chips after reset, not yet initialised: every input masked by the missing ICWs' vectors.
    pub const fn new() -> Self {
        let mut chip = Chip::new();
        // Until firmware or a kernel programs the pair nothing may come through.
        chip.imr = 0xff;
        Self { chips: [chip, chip] }
    }

    /// Drives input `irq` (0 to 15).
    pub fn set_line(&mut self, irq: u8, level: bool) {
        if irq >= 16 || irq == CASCADE {
            return;
        }
        self.chip_mut(irq >> 3).set_line(irq & 7, level);
        self.update_cascade();
    }

    /// Whether the master asks the processor for an interrupt.
    #[inline]
    pub fn wants_interrupt(&self) -> bool {
        self.chips[MASTER].irr & !self.chips[MASTER].imr != 0
            && self.chips[MASTER].pending(true).is_some()
    }

    /// The vector an acknowledge cycle would give now.
    pub fn peek(&self) -> u8 {
        match self.chips[MASTER].pending(true) {
            Some(CASCADE) => match self.chips[SLAVE].pending(false) {
                Some(second) => self.chips[SLAVE].base | second,
                None => self.chips[SLAVE].base | 7,
            },
            Some(input) => self.chips[MASTER].base | input,
            None => self.chips[MASTER].base | 7,
        }
    }

    /// Interrupt acknowledge cycle: the vector of the best request, or the spurious one.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.chips[MASTER].pending(true) else {
            return self.chips[MASTER].base | 7;
        };
        let vector = if input == CASCADE {
            let slave = &mut self.chips[SLAVE];
            match slave.pending(false) {
                Some(second) => {
                    slave.acknowledge(second);
                    slave.base | second
                }
                None => slave.base | 7,
            }
        } else {
            self.chips[MASTER].base | input
        };
        self.chips[MASTER].acknowledge(input);
        self.update_cascade();
        vector
    }

    /// The guest reads `port` (0x20, 0x21, 0xa0, 0xa1, 0x4d0 or 0x4d1).
    pub fn read(&mut self, port: u16) -> u8 {
        let which = Self::chip_of(port);
        let chip = &mut self.chips[which];
        let value = match port {
            0x4d0 | 0x4d1 => return chip.elcr,
            _ if chip.poll => {
                chip.poll = false;
                match chip.pending(which == MASTER) {
                    Some(input) => {
                        chip.acknowledge(input);
                        0x80 | input
                    }
                    None => 0,
                }
            }
            0x21 | 0xa1 => return chip.imr,
            _ if chip.read_isr => return chip.isr,
            _ => return chip.irr,
        };
        self.update_cascade();
        value
    }

    /// The guest writes `port`.
    pub fn write(&mut self, port: u16, value: u8) {
        let which = Self::chip_of(port);
        let chip = &mut self.chips[which];
        match port {
            // Timer, keyboard, cascade, clock and coprocessor inputs are edge triggered for ever.
            0x4d0 => chip.elcr = value & 0xf8,
            0x4d1 => chip.elcr = value & 0xde,
            0x21 | 0xa1 => chip.write_data(value),
            _ => chip.write_command(value),
        }
        self.update_cascade();
    }

    fn chip_of(port: u16) -> usize {
        if matches!(port, 0xa0 | 0xa1 | 0x4d1) { SLAVE } else { MASTER }
    }

    fn chip_mut(&mut self, which: u8) -> &mut Chip {
        &mut self.chips[usize::from(which & 1)]
    }

    fn update_cascade(&mut self) {
        let asks = self.chips[SLAVE].pending(false).is_some();
        let master = &mut self.chips[MASTER];
        // The slave's output behaves as a level.
        if asks {
            master.irr |= 1 << CASCADE;
        } else {
            master.irr &= !(1 << CASCADE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux_style() -> Pic {
        let mut pic = Pic::new();
        for (command, data, base, icw3) in [(0x20, 0x21, 0x30, 4), (0xa0, 0xa1, 0x38, 2)] {
            pic.write(command, 0x11);
            pic.write(data, base);
            pic.write(data, icw3);
            pic.write(data, 1);
            pic.write(data, 0);
        }
        pic
    }

    #[test]
    fn priorities_and_eoi() {
        let mut pic = linux_style();
        pic.set_line(4, true);
        pic.set_line(1, true);
        assert!(pic.wants_interrupt());
        assert_eq!(pic.acknowledge(), 0x31);
        assert!(!pic.wants_interrupt(), "4 waits behind 1 in service");
        pic.write(0x20, 0x61);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.write(0x20, 0x20);
        assert!(!pic.wants_interrupt());
    }

    #[test]
    fn slave_goes_through_the_cascade() {
        let mut pic = linux_style();
        pic.set_line(8, true);
        assert_eq!(pic.acknowledge(), 0x38);
        pic.write(0xa0, 0x0b);
        assert_eq!(pic.read(0xa0), 1);
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x62);
        assert!(!pic.wants_interrupt());
    }

    #[test]
    fn masked_and_spurious() {
        let mut pic = linux_style();
        pic.write(0x21, 0xff);
        pic.set_line(0, true);
        assert!(!pic.wants_interrupt());
        assert_eq!(pic.read(0x21), 0xff);
        assert_eq!(pic.acknowledge(), 0x37);
    }

    #[test]
    fn level_input_stays_until_lowered() {
        let mut pic = linux_style();
        pic.write(0x4d1, 0x02);
        pic.set_line(9, true);
        assert_eq!(pic.acknowledge(), 0x39);
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x20);
        assert!(pic.wants_interrupt(), "still asserted");
        pic.set_line(9, false);
        assert!(!pic.wants_interrupt());
    }

    #[test]
    fn any_write_sequence_is_survived() {
        let mut pic = Pic::new();
        let mut seed = 1u64;
        for _ in 0..200_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][(seed >> 40) as usize % 6];
            match (seed >> 60) & 3 {
                0 => pic.write(port, (seed >> 32) as u8),
                1 => drop(pic.read(port)),
                2 => pic.set_line((seed >> 32) as u8, seed >> 50 & 1 != 0),
                _ => drop(pic.acknowledge()),
            }
        }
    }
}
