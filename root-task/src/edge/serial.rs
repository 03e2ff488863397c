//! COM2, a 16550: bytes of the management link in both directions.

use heapless::Deque;
use protocol::link::{self, Deframer, FRAME_MAX, ToHost};
use sel4::cap;

/// First port of COM2.
pub const FIRST_PORT: u16 = 0x2f8;
/// Last port of COM2.
pub const LAST_PORT: u16 = 0x2ff;
/// Its interrupt line at the I/O APIC.
pub const IRQ_PIN: u64 = 3;

const DATA: u16 = FIRST_PORT;
const INTERRUPT_ENABLE: u16 = FIRST_PORT + 1;
const FIFO_CONTROL: u16 = FIRST_PORT + 2;
const LINE_CONTROL: u16 = FIRST_PORT + 3;
const MODEM_CONTROL: u16 = FIRST_PORT + 4;
const LINE_STATUS: u16 = FIRST_PORT + 5;

/// Eight data bits, no parity, one stop bit.
const EIGHT_BITS: u8 = 3;
/// Divisor latch access.
const DIVISOR: u8 = 0x80;
/// Enable and clear both FIFOs, interrupt at the first byte: a short request that waits for the FIFO's character timeout
/// is heard late, and on a machine counting instructions with every core halted sometimes not before the next one.
const FIFOS: u8 = 0x07;
/// DTR, RTS and OUT2, which lets the interrupt through.
const LINES: u8 = 0x0b;
/// Interrupt when data is there.
const RECEIVE_INTERRUPT: u8 = 1;
/// Line status: data is there.
const DATA_READY: u8 = 1;
/// Line status: the transmit FIFO is empty.
const TRANSMIT_EMPTY: u8 = 0x20;
/// Bytes the transmit FIFO takes.
const FIFO_BYTES: usize = 16;

/// Bytes kept while the line is busy. Frames of events and answers must always fit; consoles and logs wait in their own rings.
const QUEUE_BYTES: usize = 16 << 10;
/// Room that consoles and logs leave for events and answers.
pub const ROOM_FOR_ANSWERS: usize = 6 << 10;

/// The link.
#[derive(Debug)]
pub struct Serial {
    ports: cap::IOPort,
    queue: Deque<u8, QUEUE_BYTES>,
    deframer: Deframer<FRAME_MAX>,
    dropped: u32,
}

impl Serial {
    /// Sets the line up: 115200 baud, FIFOs, receive interrupt.
    ///
    /// # Errors
    ///
    /// The kernel's, if the ports are not ours.
    pub fn new(ports: cap::IOPort) -> sel4::Result<Self> {
        for (port, value) in [
            (INTERRUPT_ENABLE, 0),
            (LINE_CONTROL, DIVISOR | EIGHT_BITS),
            (DATA, 1),
            (INTERRUPT_ENABLE, 0),
            (LINE_CONTROL, EIGHT_BITS),
            (FIFO_CONTROL, FIFOS),
            (MODEM_CONTROL, LINES),
            (INTERRUPT_ENABLE, RECEIVE_INTERRUPT),
        ] {
            ports.ioport_out8(port, value)?;
        }
        Ok(Self { ports, queue: Deque::new(), deframer: Deframer::default(), dropped: 0 })
    }

    /// Bytes that still fit the queue.
    pub const fn room(&self) -> usize {
        QUEUE_BYTES - self.queue.len()
    }

    /// Whether something waits for the line.
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Frames dropped because the host did not read for long.
    pub const fn dropped(&self) -> u32 {
        self.dropped
    }

    /// Sends a frame; drops it, counted, if the host has not read for so long that the queue is full.
    pub fn send(&mut self, message: &ToHost<'_>) {
        let mut buffer = [0; FRAME_MAX];
        let Some(frame) = link::encode(message, &mut buffer) else {
            self.dropped = self.dropped.saturating_add(1);
            return;
        };
        if self.room() < frame.len() {
            self.pump();
        }
        if self.room() < frame.len() {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        for byte in frame {
            let _ = self.queue.push_back(*byte);
        }
        self.pump();
    }

    /// Moves bytes from the queue to the line while it takes any.
    pub fn pump(&mut self) {
        while !self.queue.is_empty() {
            let status = self.ports.ioport_in8(LINE_STATUS).unwrap_or(0);
            if status & TRANSMIT_EMPTY == 0 {
                return;
            }
            for _ in 0..FIFO_BYTES {
                let Some(byte) = self.queue.pop_front() else { return };
                let _ = self.ports.ioport_out8(DATA, byte);
            }
        }
    }

    /// Reads one byte of the line, if there is one; a whole frame when it ends one.
    pub fn receive(&mut self) -> Option<Option<&mut [u8]>> {
        let status = self.ports.ioport_in8(LINE_STATUS).unwrap_or(0);
        if status & DATA_READY == 0 {
            return None;
        }
        let byte = self.ports.ioport_in8(DATA).unwrap_or(0);
        Some(self.deframer.push(byte))
    }
}
