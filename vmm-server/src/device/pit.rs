//! 8254 interval timer, channels 0 and 2, with port 0x61 (Intel 8254 data sheet).
//!
//! Output edges are computed from the time of programming; nothing counts in between.

use crate::time::{Ticks, TimeBase};

/// Input clock of the counters in hertz.
pub const PIT_HZ: u64 = 1_193_182;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    mode: u8,
    bcd: bool,
    access: Access,
    /// Programmed count, 0 standing for 65536 (10000 in BCD).
    reload: u16,
    /// Low byte of a two-byte write whose high byte has not come.
    write_low: Option<u8>,
    read_high_next: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
    /// When the running count was loaded; `None` until programmed or while the gate is off.
    started: Option<Ticks>,
    gate: bool,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: Access::Both,
            reload: 0,
            write_low: None,
            read_high_next: false,
            latched: None,
            latched_status: None,
            started: None,
            gate,
        }
    }

    fn period(&self) -> u64 {
        match (self.bcd, self.reload) {
            (false, 0) => 0x1_0000,
            (true, 0) => 10_000,
            (false, n) => u64::from(n),
            (true, n) => {
                let digit = |shift: u32| u64::from(n >> shift & 0xf).min(9);
                (digit(0) + digit(4) * 10 + digit(8) * 100 + digit(12) * 1000).max(1)
            }
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Clock pulses since the count was loaded.
    fn elapsed(&self, now: Ticks, base: &TimeBase) -> Option<u64> {
        self.started.map(|start| base.to_rate(now.saturating_sub(start), PIT_HZ))
    }

    fn count(&self, now: Ticks, base: &TimeBase) -> u16 {
        let Some(elapsed) = self.elapsed(now, base) else { return self.reload };
        let period = self.period();
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => period - elapsed % period,
            3 => (period - (elapsed.wrapping_mul(2)) % period) & !1,
            _ => (period + modulus - elapsed % modulus) % modulus,
        };
        if self.bcd {
            let digit = |unit: u64| (value / unit % 10) as u16;
            digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
        } else {
            value as u16
        }
    }

    fn output(&self, now: Ticks, base: &TimeBase) -> bool {
        let Some(elapsed) = self.elapsed(now, base) else { return self.mode != 0 };
        let period = self.period();
        match self.mode {
            0 | 1 => elapsed >= period,
            2 => elapsed % period != period - 1,
            3 => elapsed % period < period.div_ceil(2),
            _ => elapsed != period,
        }
    }

    fn load(&mut self, value: u16, now: Ticks) {
        self.reload = value;
        self.started = (self.gate && !matches!(self.mode, 1 | 5)).then_some(now);
    }

    fn set_gate(&mut self, gate: bool, now: Ticks) {
        if gate && !self.gate {
            // A rising gate restarts every mode but 0 and 4, which merely resume; counting them
            // afresh is the difference nobody measures.
            self.started = Some(now);
        }
        if !gate && !matches!(self.mode, 1 | 5) {
            self.started = None;
        }
        self.gate = gate;
    }

    fn write(&mut self, value: u8, now: Ticks) -> bool {
        let count = match (self.access, self.write_low) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.write_low = Some(value);
                if self.mode == 0 {
                    self.started = None;
                }
                return false;
            }
            (Access::Both, Some(low)) => u16::from(low) | u16::from(value) << 8,
        };
        self.write_low = None;
        self.load(count, now);
        true
    }

    fn read(&mut self, now: Ticks, base: &TimeBase) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched.unwrap_or_else(|| self.count(now, base));
        let high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.read_high_next = !self.read_high_next;
                !self.read_high_next
            }
        };
        if self.access != Access::Both || high {
            self.latched = None;
        }
        if high { (count >> 8) as u8 } else { count as u8 }
    }

    fn status(&self, now: Ticks, base: &TimeBase) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        u8::from(self.output(now, base)) << 7
            | u8::from(self.started.is_none()) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }
}

/// The timer block of a PC.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    /// When channel 0 raises IRQ 0 next.
    next: Option<Ticks>,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// All counters idle; channels 0 and 1 have their gates tied high.
    pub const fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            next: None,
        }
    }

    /// When the next edge on IRQ 0 is due.
    #[inline]
    pub fn deadline(&self) -> Option<Ticks> {
        self.next
    }

    /// Time has come to `now`; true if IRQ 0 pulses. Missed periods are one pulse.
    pub fn expire(&mut self, now: Ticks, base: &TimeBase) -> bool {
        let Some(due) = self.next else { return false };
        if now < due {
            return false;
        }
        self.next = self.following_edge(now, base);
        true
    }

    fn following_edge(&self, now: Ticks, base: &TimeBase) -> Option<Ticks> {
        let channel = &self.channels[0];
        let start = channel.started?;
        if !channel.is_periodic() {
            return None;
        }
        let period = channel.period();
        let done = base.to_rate(now.saturating_sub(start), PIT_HZ) / period;
        Some(start.saturating_add(base.from_rate((done + 1).saturating_mul(period), PIT_HZ)))
    }

    /// The guest reads `port` (0x40 to 0x43, or 0x61).
    pub fn read(&mut self, port: u16, now: Ticks, base: &TimeBase) -> u8 {
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].read(now, base),
            0x61 => {
                let channel = &self.channels[2];
                // Bit 4 toggles with every refresh request, 15 us apart.
                let refresh = base.to_rate(now, 66_667) & 1 != 0;
                u8::from(channel.gate)
                    | u8::from(self.speaker) << 1
                    | u8::from(refresh) << 4
                    | u8::from(channel.output(now, base)) << 5
            }
            _ => 0xff,
        }
    }

    /// The guest writes `port`.
    pub fn write(&mut self, port: u16, value: u8, now: Ticks, base: &TimeBase) {
        match port {
            0x40..=0x42 => {
                let index = usize::from(port - 0x40);
                let started = self.channels[index].write(value, now);
                if index == 0 {
                    self.next = if started { self.first_edge(now, base) } else { None };
                }
            }
            0x43 => self.write_control(value, now, base),
            0x61 => {
                self.speaker = value & 2 != 0;
                self.channels[2].set_gate(value & 1 != 0, now);
            }
            _ => {}
        }
    }

    fn first_edge(&self, now: Ticks, base: &TimeBase) -> Option<Ticks> {
        let channel = &self.channels[0];
        if matches!(channel.mode, 1 | 5) {
            return None;
        }
        Some(now.saturating_add(base.from_rate(channel.period(), PIT_HZ)))
    }

    fn write_control(&mut self, value: u8, now: Ticks, base: &TimeBase) {
        if value >> 6 == 3 {
            for (index, channel) in self.channels.iter_mut().enumerate() {
                if value & (2 << index) == 0 {
                    continue;
                }
                if value & 0x20 == 0 && channel.latched.is_none() {
                    channel.latched = Some(channel.count(now, base));
                }
                if value & 0x10 == 0 && channel.latched_status.is_none() {
                    channel.latched_status = Some(channel.status(now, base));
                }
            }
            return;
        }
        let index = usize::from(value >> 6);
        let channel = &mut self.channels[index];
        let access = match value >> 4 & 3 {
            0 => {
                if channel.latched.is_none() {
                    channel.latched = Some(channel.count(now, base));
                }
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = value >> 1 & 7;
        *channel = Channel {
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: value & 1 != 0,
            access,
            ..Channel::new(channel.gate)
        };
        if index == 0 {
            self.next = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: TimeBase = TimeBase::new(1_000_000_000);

    fn program(pit: &mut Pit, control: u8, port: u16, count: u16, now: Ticks) {
        pit.write(0x43, control, now, &BASE);
        pit.write(port, count as u8, now, &BASE);
        pit.write(port, (count >> 8) as u8, now, &BASE);
    }

    #[test]
    fn periodic_ticks_do_not_drift() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 0x40, 11_932, 0);
        let mut now = 0;
        for _ in 0..1000 {
            now = pit.deadline().unwrap();
            assert!(pit.expire(now, &BASE));
        }
        let expected = 1000 * 11_932 * 1_000_000_000u64 / PIT_HZ;
        assert!(now.abs_diff(expected) < 2, "{now} {expected}");
        assert!(!pit.expire(now, &BASE));
    }

    #[test]
    fn one_shot_fires_once() {
        let mut pit = Pit::new();
        program(&mut pit, 0x30, 0x40, 1000, 5);
        let due = pit.deadline().unwrap();
        assert!(!pit.expire(due - 1, &BASE));
        assert!(pit.expire(due, &BASE));
        assert_eq!(pit.deadline(), None);
    }

    #[test]
    fn channel_two_calibration() {
        let mut pit = Pit::new();
        pit.write(0x61, 0x01, 0, &BASE);
        program(&mut pit, 0xb0, 0x42, 0xffff, 0);
        assert_eq!(pit.read(0x61, 100, &BASE) & 0x20, 0);
        let end = BASE.from_rate(0xffff, PIT_HZ);
        assert_eq!(pit.read(0x61, end, &BASE) & 0x20, 0x20);
        let low = pit.read(0x42, BASE.from_rate(0x0100, PIT_HZ), &BASE);
        let high = pit.read(0x42, BASE.from_rate(0x0100, PIT_HZ), &BASE);
        assert_eq!(u16::from(low) | u16::from(high) << 8, 0xfeff);
    }

    #[test]
    fn latch_holds_the_count() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 0x40, 0x8000, 0);
        pit.write(0x43, 0x00, 1000, &BASE);
        let low = pit.read(0x40, 9_000_000, &BASE);
        let high = pit.read(0x40, 10_000_000, &BASE);
        assert_eq!(u16::from(low) | u16::from(high) << 8, 0x8000 - 1);
    }

    #[test]
    fn any_sequence_is_survived() {
        let mut pit = Pit::new();
        let mut seed = 7u64;
        let mut now = 0u64;
        for _ in 0..200_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let port = [0x40, 0x41, 0x42, 0x43, 0x61][(seed >> 40) as usize % 5];
            now = now.saturating_add(seed >> (seed >> 58));
            if seed >> 59 & 1 == 0 {
                pit.write(port, (seed >> 32) as u8, now, &BASE);
            } else {
                pit.read(port, now, &BASE);
            }
            pit.expire(now, &BASE);
        }
    }
}
