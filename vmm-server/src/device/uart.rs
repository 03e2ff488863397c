//! 16550A serial port (National Semiconductor PC16550D data sheet).
//!
//! Transmission is instantaneous: the transmitter is always empty again when the guest looks.

use heapless::Deque;

/// Depth of the receive FIFO in bytes, as in the PC16550D.
pub const FIFO_DEPTH: usize = 16;

const IER_RX: u8 = 1 << 0;
const IER_THRE: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_MODEM: u8 = 1 << 3;
const LCR_DLAB: u8 = 1 << 7;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TX_EMPTY: u8 = (1 << 5) | (1 << 6);
/// Modem status with a peer that is there: CTS, DSR and DCD on.
const MSR_CONNECTED: u8 = 0xb0;

/// One serial port.
#[derive(Clone, Debug)]
pub struct Uart {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo_enabled: bool,
    trigger: u8,
    overrun: bool,
    thre_pending: bool,
    modem_delta: u8,
    rx: Deque<u8, FIFO_DEPTH>,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// A port after reset: 9600 baud divisor, no interrupts.
    pub const fn new() -> Self {
        Self {
            ier: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: [12, 0],
            fifo_enabled: false,
            trigger: 1,
            overrun: false,
            thre_pending: false,
            modem_delta: 0,
            rx: Deque::new(),
        }
    }

    /// Whether another received byte fits.
    pub fn can_receive(&self) -> bool {
        let depth = if self.fifo_enabled { FIFO_DEPTH } else { 1 };
        self.mcr & MCR_LOOP == 0 && self.rx.len() < depth
    }

    /// A byte arrives on the line; a full receiver records an overrun and loses it.
    pub fn receive(&mut self, byte: u8) {
        let depth = if self.fifo_enabled { FIFO_DEPTH } else { 1 };
        if self.rx.len() >= depth || self.rx.push_back(byte).is_err() {
            self.overrun = true;
        }
    }

    /// Level of the interrupt line (IRQ 4 for the first port), gated by OUT2 as on a PC.
    pub fn irq_level(&self) -> bool {
        self.mcr & MCR_OUT2 != 0 && self.mcr & MCR_LOOP == 0 && self.cause() != 1
    }

    /// The guest reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        match offset & 7 {
            0 if self.dlab() => self.divisor[0],
            1 if self.dlab() => self.divisor[1],
            0 => self.rx.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => {
                let cause = self.cause();
                if cause == 0x02 {
                    self.thre_pending = false;
                }
                cause | if self.fifo_enabled { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let value = self.line_status();
                self.overrun = false;
                value
            }
            6 => {
                let delta = core::mem::take(&mut self.modem_delta);
                self.modem_status() | delta
            }
            _ => self.scratch,
        }
    }

    /// The guest writes register `offset` (0 to 7); returns a byte to transmit.
    pub fn write(&mut self, offset: u8, value: u8) -> Option<u8> {
        match offset & 7 {
            0 if self.dlab() => self.divisor[0] = value,
            1 if self.dlab() => self.divisor[1] = value,
            0 => {
                self.thre_pending = true;
                if self.mcr & MCR_LOOP == 0 {
                    return Some(value);
                }
                self.receive(value);
            }
            1 => {
                // Enabling the interrupt while the transmitter is empty raises it at once.
                if value & IER_THRE != 0 && self.ier & IER_THRE == 0 {
                    self.thre_pending = true;
                }
                self.ier = value & 0x0f;
            }
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => {
                let before = self.modem_status();
                self.mcr = value & 0x1f;
                let after = self.modem_status();
                // Delta bits, with RI counting on its trailing edge only.
                let changed = before ^ after;
                self.modem_delta |= (changed >> 4) & 0x0b | ((before & !after) >> 4) & 0x04;
            }
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn write_fcr(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        if enable != self.fifo_enabled || value & FCR_CLEAR_RX != 0 {
            self.rx.clear();
        }
        self.fifo_enabled = enable;
        self.trigger = match (enable, value >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        };
    }

    fn line_status(&self) -> u8 {
        LSR_TX_EMPTY
            | if self.rx.is_empty() { 0 } else { LSR_DATA_READY }
            | if self.overrun { LSR_OVERRUN } else { 0 }
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        // Loopback: RTS -> CTS, DTR -> DSR, OUT1 -> RI, OUT2 -> DCD.
        (self.mcr & 0x02) << 3 | (self.mcr & 0x01) << 5 | (self.mcr & 0x0c) << 4
    }

    /// Interrupt identification, highest priority first; 1 means none.
    fn cause(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.overrun {
            0x06
        } else if self.ier & IER_RX != 0 && self.rx.len() >= usize::from(self.trigger) {
            0x04
        } else if self.ier & IER_RX != 0 && !self.rx.is_empty() {
            // Character time-out: nothing more is on its way, so the time has always passed.
            0x0c
        } else if self.ier & IER_THRE != 0 && self.thre_pending {
            0x02
        } else if self.ier & IER_MODEM != 0 && self.modem_delta != 0 {
            0x00
        } else {
            0x01
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmits_and_raises_thre() {
        let mut uart = Uart::new();
        assert_eq!(uart.write(4, MCR_OUT2), None);
        uart.write(1, IER_THRE);
        assert!(uart.irq_level());
        assert_eq!(uart.read(2) & 0x0f, 0x02);
        assert!(!uart.irq_level(), "reading IIR clears the cause");
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
        assert!(uart.irq_level());
        assert_eq!(uart.read(5) & LSR_TX_EMPTY, LSR_TX_EMPTY);
    }

    #[test]
    fn receives_with_timeout_and_overrun() {
        let mut uart = Uart::new();
        uart.write(2, FCR_ENABLE | 0x80);
        uart.write(4, MCR_OUT2);
        uart.write(1, IER_RX | IER_LINE);
        uart.receive(b'a');
        assert_eq!(uart.read(2) & 0x0f, 0x0c);
        for _ in 0..7 {
            uart.receive(b'b');
        }
        assert_eq!(uart.read(2) & 0x0f, 0x04);
        for _ in 0..20 {
            uart.receive(b'c');
        }
        assert!(!uart.can_receive());
        assert_eq!(uart.read(2) & 0x0f, 0x06);
        assert_eq!(uart.read(5) & LSR_OVERRUN, LSR_OVERRUN);
        assert_eq!(uart.read(5) & LSR_OVERRUN, 0);
        assert_eq!(uart.read(0), b'a');
    }

    #[test]
    fn loopback_reflects_the_modem_lines() {
        let mut uart = Uart::new();
        uart.write(4, MCR_LOOP | 0x0a);
        assert_eq!(uart.read(6) & 0xf0, 0x90);
        assert_eq!(uart.write(0, 0x5a), None);
        assert_eq!(uart.read(0), 0x5a);
    }

    #[test]
    fn divisor_latch_and_scratch() {
        let mut uart = Uart::new();
        uart.write(3, LCR_DLAB);
        uart.write(0, 1);
        uart.write(1, 2);
        assert_eq!((uart.read(0), uart.read(1)), (1, 2));
        uart.write(3, 3);
        uart.write(7, 0x42);
        assert_eq!(uart.read(7), 0x42);
        assert_eq!(uart.read(0), 0);
    }
}
