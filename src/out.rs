//! `print!` and `println!` of this crate: a reader that is gone (`ballast log | head`) ends the command, and nothing panics.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Exit code when standard output cannot be written to, as for any file.
const CANNOT_WRITE: i32 = 5;

/// Writes to standard output. Does not return if that is not possible.
pub fn write(text: Arguments<'_>) {
    let Err(cause) = std::io::stdout().lock().write_fmt(text) else { return };
    if cause.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    eprintln!("ballast: standard output cannot be written to: {cause}");
    std::process::exit(CANNOT_WRITE);
}

macro_rules! print {
    ($($text:tt)*) => { $crate::out::write(format_args!($($text)*)) };
}

macro_rules! println {
    () => { print!("\n") };
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}
