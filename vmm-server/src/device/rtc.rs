//! MC146818 real-time clock and CMOS RAM (Motorola data sheet).
//!
//! The clock always shows the host's time; its alarm and periodic interrupts are not modelled, and
//! register C therefore never shows a cause.

use crate::time::{Ticks, TimeBase};

/// Clock registers and CMOS bytes behind ports 0x70 and 0x71.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    ram: [u8; 128],
    /// Seconds since 1970 when the guest's TSC was zero, shifted by what the guest sets.
    epoch_seconds: u64,
}

const REGISTER_B_24_HOURS: u8 = 0x02;
const REGISTER_B_BINARY: u8 = 0x04;

impl Rtc {
    /// A clock that shows `epoch_seconds` (Unix time) when the guest's TSC is zero.
    pub const fn new(epoch_seconds: u64) -> Self {
        let mut ram = [0; 128];
        ram[0x0a] = 0x26;
        ram[0x0b] = REGISTER_B_24_HOURS;
        Self { index: 0, ram, epoch_seconds }
    }

    /// The guest selects a register by port 0x70; bit 7 is the NMI mask and means nothing here.
    pub fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// The guest reads port 0x71.
    pub fn read(&self, now: Ticks, base: &TimeBase) -> u8 {
        let clock = Calendar::from_unix(self.epoch_seconds.saturating_add(now / base.hz()));
        let field = match self.index {
            0x00 => clock.second,
            0x02 => clock.minute,
            0x04 => return self.hour(clock.hour),
            0x06 => clock.weekday,
            0x07 => clock.day,
            0x08 => clock.month,
            0x09 => (clock.year % 100) as u8,
            0x32 => (clock.year / 100) as u8,
            0x0a => {
                // Update in progress during the last 244 us of each second.
                let left = base.hz() - now % base.hz();
                let updating = left < base.hz() / 4098;
                return self.ram[0x0a] & 0x7f | u8::from(updating) << 7;
            }
            0x0c => return 0,
            0x0d => return 0x80,
            other => return self.ram.get(usize::from(other)).copied().unwrap_or(0xff),
        };
        self.encode(field)
    }

    /// The guest writes port 0x71. Setting the time is accepted and ignored: the host keeps it.
    pub fn write(&mut self, value: u8) {
        match self.index {
            0x00 | 0x02 | 0x04 | 0x06..=0x09 | 0x0c | 0x0d | 0x32 => {}
            other => {
                if let Some(byte) = self.ram.get_mut(usize::from(other)) {
                    *byte = value;
                }
            }
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.ram[0x0b] & REGISTER_B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn hour(&self, hour: u8) -> u8 {
        if self.ram[0x0b] & REGISTER_B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let half = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(half) | if hour >= 12 { 0x80 } else { 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u8,
    day: u8,
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Calendar {
    /// Proleptic Gregorian date of a Unix time, counting in years that begin on 1 March.
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let rest = seconds % 86_400;
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_index + 2) / 5 + 1) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let leap = Calendar::from_unix(951_782_400 + 3661);
        assert_eq!((leap.year, leap.month, leap.day), (2000, 2, 29));
        assert_eq!((leap.hour, leap.minute, leap.second), (1, 1, 1));
        assert_eq!(leap.weekday, 3, "a Tuesday, Sunday being 1");
        let first = Calendar::from_unix(0);
        assert_eq!((first.year, first.month, first.day, first.weekday), (1970, 1, 1, 5));
        let last = Calendar::from_unix(1_767_225_599);
        assert_eq!((last.year, last.month, last.day), (2025, 12, 31));
    }

    #[test]
    fn reads_bcd_and_advances() {
        let base = TimeBase::new(1_000_000_000);
        let mut rtc = Rtc::new(951_782_400);
        rtc.select(0x00);
        assert_eq!(rtc.read(59_000_000_000, &base), 0x59);
        rtc.select(0x09);
        assert_eq!(rtc.read(0, &base), 0x00);
        rtc.select(0x32);
        assert_eq!(rtc.read(0, &base), 0x20);
        rtc.select(0x8a);
        assert_eq!(rtc.read(500_000_000, &base) & 0x80, 0);
        assert_eq!(rtc.read(999_900_000, &base) & 0x80, 0x80);
        rtc.select(0x0d);
        assert_eq!(rtc.read(0, &base), 0x80);
    }
}
