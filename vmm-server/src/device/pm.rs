//! ACPI fixed hardware: PM1a event and control blocks, PM timer, reset register.
//!
//! ACPI 6.4, sections 4.8.3 and 4.8.4. The block is always in ACPI mode.

use crate::time::{Ticks, TimeBase};

/// First port of the PM1a event block (status, enable).
pub const PM1A_EVENT: u16 = 0x600;
/// PM1a control block.
pub const PM1A_CONTROL: u16 = 0x604;
/// 24-bit power-management timer.
pub const PM_TIMER: u16 = 0x608;
/// Reset control register of a PC chip set.
pub const RESET_PORT: u16 = 0xcf9;
/// Value of the reset register that resets the machine.
pub const RESET_VALUE: u8 = 6;
/// `SLP_TYP` of S5 as the DSDT announces it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// ISA interrupt of the system control interrupt, level triggered, active high.
pub const SCI_IRQ: u8 = 9;
/// Rate of the power-management timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;

const STATUS_POWER_BUTTON: u16 = 1 << 8;
const CONTROL_SCI_ENABLE: u16 = 1;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;

/// What a write to the power-management block asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// The guest turned itself off (S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
}

/// Registers of the fixed hardware.
#[derive(Clone, Debug, Default)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
}

impl PowerManagement {
    /// The block after reset.
    pub const fn new() -> Self {
        Self { status: 0, enable: 0, control: 0 }
    }

    /// Level of the system control interrupt.
    pub fn sci_level(&self) -> bool {
        self.status & self.enable != 0
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= STATUS_POWER_BUTTON;
    }

    /// The guest reads the 16-bit register at `port`.
    pub fn read16(&self, port: u16) -> u16 {
        match port {
            PM1A_EVENT => self.status,
            0x602 => self.enable,
            PM1A_CONTROL => self.control | CONTROL_SCI_ENABLE,
            _ => 0,
        }
    }

    /// The guest reads the power-management timer.
    pub fn timer(now: Ticks, base: &TimeBase) -> u32 {
        (base.to_rate(now, PM_TIMER_HZ) & 0xff_ffff) as u32
    }

    /// The guest writes the 16-bit register at `port`.
    pub fn write16(&mut self, port: u16, value: u16) -> Option<PowerRequest> {
        match port {
            PM1A_EVENT => self.status &= !value,
            0x602 => self.enable = value,
            PM1A_CONTROL => {
                self.control = value & !CONTROL_SLEEP_ENABLE;
                let sleep_type = (value >> 10 & 7) as u8;
                if value & CONTROL_SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
                    return Some(PowerRequest::PowerOff);
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enable_bits_read_back_and_button_raises_sci() {
        let mut pm = PowerManagement::new();
        pm.write16(0x602, 0x0120);
        assert_eq!(pm.read16(0x602), 0x0120);
        assert!(!pm.sci_level());
        pm.press_power_button();
        assert!(pm.sci_level());
        pm.write16(PM1A_EVENT, STATUS_POWER_BUTTON);
        assert!(!pm.sci_level());
    }

    #[test]
    fn only_s5_with_sleep_enable_turns_off() {
        let mut pm = PowerManagement::new();
        assert_eq!(pm.write16(PM1A_CONTROL, 5 << 10), None);
        assert_eq!(pm.write16(PM1A_CONTROL, 1 << 13), None);
        assert_eq!(pm.write16(PM1A_CONTROL, 1 << 13 | 5 << 10), Some(PowerRequest::PowerOff));
        assert_eq!(pm.read16(PM1A_CONTROL) & 1, 1);
    }
}
