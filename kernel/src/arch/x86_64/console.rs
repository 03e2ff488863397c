//! The kernel's own text: COM1 and the byte port 0xe9 of QEMU and Bochs; and the port that ends a QEMU run.
//!
//! Every byte is one or two port writes, so there is nothing to lock: at worst, lines of two cores mix.
//!
//! UNSAFETY: port I/O.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use x86::io::{inb, outb, outl};

const COM1: u16 = 0x3f8;
const E9: u16 = 0xe9;
const EXIT_PORT: u16 = 0xf4;

static HAVE_COM1: AtomicBool = AtomicBool::new(false);
static HAVE_E9: AtomicBool = AtomicBool::new(false);

/// What is written to isa-debug-exit; QEMU's exit status is twice this plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// DebugHalt by a thread that may (status 33).
    Halted = 0x10,
    /// The kernel panicked (status 35).
    Panic = 0x11,
    /// The machine lacks something the kernel needs (status 37).
    BadMachine = 0x12,
    /// Boot information or the root task's image is malformed (status 39).
    BadModule = 0x13,
    /// Not enough memory for the root task (status 41).
    NoMemory = 0x14,
}

/// Finds out which consoles exist and sets COM1 to 115200 8N1.
pub fn init() {
    // SAFETY: COM1's registers; on a machine without COM1 the writes go nowhere and the scratch register does not hold its value.
    unsafe {
        outb(COM1 + 7, 0x5a);
        let first = inb(COM1 + 7);
        outb(COM1 + 7, 0xa5);
        let second = inb(COM1 + 7);
        if first == 0x5a && second == 0xa5 {
            outb(COM1 + 1, 0); // no interrupts
            outb(COM1 + 3, 0x80); // divisor latch
            outb(COM1, 1);
            outb(COM1 + 1, 0);
            outb(COM1 + 3, 3); // 8N1
            outb(COM1 + 2, 7); // FIFOs on and empty
            outb(COM1 + 4, 3); // DTR, RTS
            HAVE_COM1.store(true, Ordering::Relaxed);
        }
        // QEMU and Bochs read the port's own number back.
        HAVE_E9.store(inb(E9) == 0xe9, Ordering::Relaxed);
    }
}

/// Writes one byte; a line feed gets its carriage return on the serial line.
pub fn put(byte: u8) {
    if HAVE_E9.load(Ordering::Relaxed) {
        // SAFETY: the port was found to be a debug console.
        unsafe { outb(E9, byte) };
    }
    if HAVE_COM1.load(Ordering::Relaxed) {
        if byte == b'\n' {
            put_com1(b'\r');
        }
        put_com1(byte);
    }
}

fn put_com1(byte: u8) {
    // The bound (some 10 ms of polling) keeps a dead line from stopping the kernel.
    for _ in 0..100_000 {
        // SAFETY: line status register of a UART that was found.
        if unsafe { inb(COM1 + 5) } & 0x20 != 0 {
            break;
        }
        core::hint::spin_loop();
    }
    // SAFETY: transmit register of a UART that was found.
    unsafe { outb(COM1, byte) };
}

/// The console as a formatting target.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            put(byte);
        }
        Ok(())
    }
}

/// Prints one line of the kernel's own text.
#[macro_export]
macro_rules! kprintln {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        // Writing to the console cannot fail.
        let _ = writeln!($crate::arch::x86_64::console::Console, $($arg)*);
    }};
}

/// Ends the run where QEMU offers it, otherwise stops this core for good.
pub fn exit(code: ExitCode) -> ! {
    // SAFETY: isa-debug-exit, or a port nothing listens on.
    unsafe { outl(EXIT_PORT, code as u32) };
    halt()
}

/// Stops this core for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so this core sleeps until reset.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
