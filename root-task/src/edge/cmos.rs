//! The machine's clock: CMOS registers of an MC146818, read once at start.

use sel4::cap;

/// Index port.
pub const FIRST_PORT: u16 = 0x70;
/// Data port.
pub const LAST_PORT: u16 = 0x71;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const UPDATE_IN_PROGRESS: u8 = 0x80;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// Polls of the update bit; an update lasts two milliseconds at most.
const POLLS_MAX: u32 = 100_000;

/// Access to the clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(pub cap::IOPort);

impl Clock {
    fn read(&self, register: u8) -> sel4::Result<u8> {
        self.0.ioport_out8(FIRST_PORT, register)?;
        self.0.ioport_in8(LAST_PORT)
    }

    /// Seconds since 1970 as the clock shows, taken as UTC.
    ///
    /// # Errors
    ///
    /// What the kernel says if the capability is not for the clock's ports.
    pub fn unix_seconds(&self) -> sel4::Result<u64> {
        for _ in 0..POLLS_MAX {
            if self.read(REGISTER_A)? & UPDATE_IN_PROGRESS == 0 {
                break;
            }
        }
        let format = self.read(REGISTER_B)?;
        let number = |value: u8| {
            let value = u64::from(value);
            if format & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
        };
        let second = number(self.read(0x00)?);
        let minute = number(self.read(0x02)?);
        let raw_hour = self.read(0x04)?;
        let mut hour = number(raw_hour & 0x7f);
        if format & HOURS_24 == 0 {
            hour = hour % 12 + if raw_hour & 0x80 != 0 { 12 } else { 0 };
        }
        let (day, month) = (number(self.read(0x07)?), number(self.read(0x08)?));
        // The century register is firmware's convention; a machine without it is of this century.
        let century = match number(self.read(0x32)?) {
            century @ 19..=21 => century,
            _ => 20,
        };
        let year = century * 100 + number(self.read(0x09)?);
        Ok(days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
    }
}

/// Days from 1 January 1970 to a date of the Gregorian calendar, counting in years that begin on 1 March.
const fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) =
        if month > 2 { (year, month - 3) } else { (year.saturating_sub(1), month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400;
    (days + (153 * month + 2) / 5 + day).saturating_sub(719_469)
}
