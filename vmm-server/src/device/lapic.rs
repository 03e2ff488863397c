//! Local APIC of the only processor: xAPIC by MMIO, x2APIC by MSR (AMD64 APM volume 2, chapter 16; Intel SDM 3A, chapter 10).
//!
//! Timer ticks are guest TSC ticks: the APIC bus runs at the TSC's rate.

use crate::time::Ticks;

/// Default and only physical base of the MMIO page.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Version register: integrated APIC, six LVT entries, no directed EOI suppression.
const VERSION: u32 = 0x0005_0014;

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const LVT_TIMER_MODE: u32 = 3 << 17;
const MODE_MASK: u32 = 7 << 8;
const MODE_NMI: u32 = 4 << 8;
const MODE_EXTINT: u32 = 7 << 8;
const ERROR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Indices of the local vector table.
const LVT_TIMER: usize = 0;
const LVT_THERMAL: usize = 1;
const LVT_COUNTER: usize = 2;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;

/// Register numbers: the MMIO offset and the x2APIC MSR number are `n << 4` and `0x800 + n`.
mod register {
    pub const ID: u16 = 0x02;
    pub const VERSION: u16 = 0x03;
    pub const TPR: u16 = 0x08;
    pub const APR: u16 = 0x09;
    pub const PPR: u16 = 0x0a;
    pub const EOI: u16 = 0x0b;
    pub const LDR: u16 = 0x0d;
    pub const DFR: u16 = 0x0e;
    pub const SVR: u16 = 0x0f;
    pub const ISR: u16 = 0x10;
    pub const TMR: u16 = 0x18;
    pub const IRR: u16 = 0x20;
    pub const ESR: u16 = 0x28;
    pub const ICR_LOW: u16 = 0x30;
    pub const ICR_HIGH: u16 = 0x31;
    pub const LVT_FIRST: u16 = 0x32;
    pub const LVT_LAST: u16 = 0x37;
    pub const TIMER_INITIAL: u16 = 0x38;
    pub const TIMER_CURRENT: u16 = 0x39;
    pub const TIMER_DIVIDE: u16 = 0x3e;
    pub const SELF_IPI: u16 = 0x3f;
}

/// 256 bits, one per vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u64; 4]);

impl Vectors {
    #[inline]
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    #[inline]
    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    #[inline]
    fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    #[inline]
    fn highest(&self) -> Option<u8> {
        // Device vectors live in the upper half, where the search begins.
        for index in (0..4u8).rev() {
            let word = self.0[usize::from(index)];
            if word != 0 {
                return Some(index * 64 + (63 - word.leading_zeros() as u8));
            }
        }
        None
    }

    fn word32(&self, index: u16) -> u32 {
        let word = self.0[usize::from(index >> 1 & 3)];
        (word >> (32 * (index & 1))) as u32
    }
}

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicEffect {
    /// Nothing.
    None,
    /// A level-triggered interrupt ended: tell the IOAPIC.
    Broadcast(u8),
    /// The processor sent itself an NMI.
    Nmi,
    /// The processor sent itself INIT: the guest resets.
    Init,
}

/// An MSR access that raises #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The local APIC with ID 0.
#[derive(Clone, Debug)]
pub struct Lapic {
    base: u64,
    tpr: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    esr: u32,
    esr_pending: u32,
    icr: u64,
    lvt: [u32; 6],
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    initial_count: u32,
    divide: u8,
    timer_start: Ticks,
    deadline: Option<Ticks>,
}

impl Default for Lapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Lapic {
    /// As firmware leaves it: xAPIC enabled, virtual wire mode (LINT0 = ExtINT, LINT1 = NMI).
    pub const fn new() -> Self {
        let mut lvt = [LVT_MASKED; 6];
        lvt[LVT_LINT0] = MODE_EXTINT;
        lvt[LVT_LINT1] = MODE_NMI;
        Self {
            base: LAPIC_BASE | BASE_ENABLE | BASE_BSP,
            tpr: 0,
            svr: SVR_ENABLE | 0xff,
            ldr: 0,
            dfr: 0xffff_ffff,
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt,
            irr: Vectors([0; 4]),
            isr: Vectors([0; 4]),
            tmr: Vectors([0; 4]),
            initial_count: 0,
            divide: 0,
            timer_start: 0,
            deadline: None,
        }
    }

    /// Value of the `APIC_BASE` MSR.
    pub fn apic_base(&self) -> u64 {
        self.base
    }

    /// Writes the `APIC_BASE` MSR.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] for a moved base, reserved bits, or a forbidden change of mode.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let modes = BASE_X2APIC | BASE_ENABLE;
        if value & !(modes | BASE_BSP) != LAPIC_BASE {
            return Err(GeneralProtection);
        }
        let (old, new) = (self.base & modes, value & modes);
        // x2APIC needs the enable bit, and is left only by disabling the APIC altogether.
        if new == BASE_X2APIC || (old == modes && new == BASE_ENABLE) || (old == 0 && new == modes)
        {
            return Err(GeneralProtection);
        }
        if new == 0 && old != 0 {
            *self = Self { svr: 0xff, lvt: [LVT_MASKED; 6], ..Self::new() };
        }
        self.base = LAPIC_BASE | BASE_BSP | new;
        if new == modes {
            // The logical ID of APIC ID 0 in x2APIC mode.
            self.ldr = 1;
        }
        Ok(())
    }

    /// Whether the MMIO page answers.
    pub fn is_xapic(&self) -> bool {
        self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE
    }

    /// Whether the 8259 pair reaches the processor.
    #[inline]
    pub fn accepts_extint(&self) -> bool {
        self.base & BASE_ENABLE == 0
            || self.lvt[LVT_LINT0] & (LVT_MASKED | MODE_MASK) == MODE_EXTINT
    }

    /// Whether LINT1 passes NMIs.
    pub fn accepts_nmi(&self) -> bool {
        self.lvt[LVT_LINT1] & (LVT_MASKED | MODE_MASK) == MODE_NMI
    }

    /// When the timer fires next.
    #[inline]
    pub fn deadline(&self) -> Option<Ticks> {
        self.deadline
    }

    /// Task priority as CR8 shows it.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes the task priority through CR8.
    pub fn set_cr8(&mut self, value: u8) {
        self.tpr = value << 4;
    }

    fn is_software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0 && self.base & BASE_ENABLE != 0
    }

    /// Accepts an interrupt for `vector`; vectors below 16 are errors.
    pub fn deliver(&mut self, vector: u8, is_level: bool) {
        if !self.is_software_enabled() {
            return;
        }
        if vector < 16 {
            self.esr_pending |= ERROR_RECEIVE_ILLEGAL_VECTOR;
            return;
        }
        self.irr.set(vector);
        if is_level {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
    }

    #[inline]
    fn processor_priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xf0 }
    }

    /// The vector the processor should take now, if any.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The processor took `vector`: it moves from requested to in service.
    #[inline]
    pub fn accept(&mut self, vector: u8) {
        self.irr.clear(vector);
        self.isr.set(vector);
    }

    /// End of interrupt; returns the vector to broadcast if it was level triggered.
    #[inline]
    pub fn end_of_interrupt(&mut self) -> ApicEffect {
        let Some(vector) = self.isr.highest() else { return ApicEffect::None };
        self.isr.clear(vector);
        if self.tmr.contains(vector) { ApicEffect::Broadcast(vector) } else { ApicEffect::None }
    }

    /// Whether a message to `destination` reaches this processor.
    pub fn is_destination(&self, destination: u8, is_logical: bool) -> bool {
        if !is_logical {
            return destination == 0 || destination == 0xff;
        }
        if self.base & BASE_X2APIC != 0 {
            // Cluster 0, member bit 0; interrupt messages carry 8 bits.
            return destination == 0xff || destination & 0xf1 == 1;
        }
        let own = (self.ldr >> 24) as u8;
        if self.dfr >> 28 == 0xf {
            own & destination != 0
        } else {
            (destination >> 4 == own >> 4 || destination >> 4 == 0xf)
                && own & destination & 0xf != 0
        }
    }

    /// Time has come to `now`; true if the timer interrupted.
    pub fn expire(&mut self, now: Ticks) -> bool {
        let Some(due) = self.deadline else { return false };
        if now < due {
            return false;
        }
        let lvt = self.lvt[LVT_TIMER];
        self.deadline = None;
        if lvt & LVT_TIMER_MODE == LVT_PERIODIC {
            let period = self.timer_period().max(1);
            let missed = (now - due) / period;
            self.timer_start = due + missed * period;
            self.deadline = Some(self.timer_start.saturating_add(period));
        }
        if lvt & LVT_MASKED != 0 {
            return false;
        }
        self.deliver(lvt as u8, false);
        true
    }

    fn divisor_shift(&self) -> u32 {
        let code = u32::from(self.divide & 3 | (self.divide & 8) >> 1);
        (code + 1) & 7
    }

    fn timer_period(&self) -> Ticks {
        u64::from(self.initial_count) << self.divisor_shift()
    }

    fn current_count(&self, now: Ticks) -> u32 {
        match self.deadline {
            Some(due) if self.lvt[LVT_TIMER] & LVT_TIMER_MODE != LVT_TSC_DEADLINE => {
                (due.saturating_sub(now) >> self.divisor_shift()) as u32
            }
            _ => 0,
        }
    }

    fn start_timer(&mut self, now: Ticks) {
        if self.lvt[LVT_TIMER] & LVT_TIMER_MODE == LVT_TSC_DEADLINE {
            return;
        }
        self.timer_start = now;
        self.deadline = (self.initial_count != 0).then(|| now.saturating_add(self.timer_period()));
    }

    /// The TSC-deadline MSR as it reads.
    pub fn tsc_deadline(&self) -> u64 {
        match self.deadline {
            Some(due) if self.lvt[LVT_TIMER] & LVT_TIMER_MODE == LVT_TSC_DEADLINE => due,
            _ => 0,
        }
    }

    /// Arms (or with 0 disarms) the TSC-deadline timer; ignored in the other modes.
    #[inline]
    pub fn set_tsc_deadline(&mut self, value: u64) {
        if self.lvt[LVT_TIMER] & LVT_TIMER_MODE == LVT_TSC_DEADLINE {
            self.deadline = if value == 0 { None } else { Some(value) };
        }
    }

    /// Reads an x2APIC register MSR (`0x800 + number`).
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] outside x2APIC mode and for registers that cannot be read.
    pub fn read_msr(&mut self, number: u16, now: Ticks) -> Result<u64, GeneralProtection> {
        if self.base & BASE_X2APIC == 0 {
            return Err(GeneralProtection);
        }
        match number {
            register::ICR_LOW => Ok(self.icr),
            register::ID => Ok(0),
            register::LDR => Ok(1),
            register::APR
            | register::EOI
            | register::DFR
            | register::ICR_HIGH
            | register::SELF_IPI => Err(GeneralProtection),
            _ => self.read(number, now).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// Writes an x2APIC register MSR.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] outside x2APIC mode, for registers that cannot be written and reserved values.
    pub fn write_msr(
        &mut self,
        number: u16,
        value: u64,
        now: Ticks,
    ) -> Result<ApicEffect, GeneralProtection> {
        if self.base & BASE_X2APIC == 0 {
            return Err(GeneralProtection);
        }
        match number {
            register::EOI if value == 0 => Ok(self.end_of_interrupt()),
            register::ICR_LOW => {
                self.icr = value;
                let destination = (value >> 32) as u32;
                let reaches = destination == u32::MAX
                    || if value & 1 << 11 == 0 {
                        destination == 0
                    } else {
                        destination & 0xffff_0001 == 1
                    };
                Ok(self.send(value as u32, reaches))
            }
            register::SELF_IPI if value < 256 => Ok(self.send(1 << 18 | value as u32, true)),
            register::ESR if value == 0 => {
                Ok(self.write(number, 0, now).unwrap_or(ApicEffect::None))
            }
            register::TPR
            | register::SVR
            | register::LVT_FIRST..=register::TIMER_INITIAL
            | register::TIMER_DIVIDE => {
                let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
                self.write(number, value, now).ok_or(GeneralProtection)
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Reads the MMIO page at byte `offset`.
    pub fn read_mmio(&mut self, offset: u16, now: Ticks) -> u32 {
        // Only the first four of every sixteen bytes are defined.
        if offset & 0xf != 0 {
            return 0;
        }
        match self.read(offset >> 4, now) {
            Some(value) => value,
            None => {
                self.esr_pending |= ERROR_ILLEGAL_REGISTER;
                0
            }
        }
    }

    /// Writes the MMIO page at byte `offset`.
    pub fn write_mmio(&mut self, offset: u16, value: u32, now: Ticks) -> ApicEffect {
        if offset & 0xf != 0 {
            return ApicEffect::None;
        }
        let number = offset >> 4;
        match number {
            register::EOI => self.end_of_interrupt(),
            register::LDR => {
                self.ldr = value & 0xff00_0000;
                ApicEffect::None
            }
            register::DFR => {
                self.dfr = value | 0x0fff_ffff;
                ApicEffect::None
            }
            register::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32;
                ApicEffect::None
            }
            register::ICR_LOW => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value);
                let reaches = self.is_destination((self.icr >> 56) as u8, value & 1 << 11 != 0);
                self.send(value, reaches)
            }
            _ => match self.write(number, value, now) {
                Some(effect) => effect,
                None => {
                    self.esr_pending |= ERROR_ILLEGAL_REGISTER;
                    ApicEffect::None
                }
            },
        }
    }

    /// Sends an inter-processor interrupt; only the processor itself can be a target.
    fn send(&mut self, command: u32, matches_destination: bool) -> ApicEffect {
        let reaches_self = match command >> 18 & 3 {
            0 => matches_destination,
            1 | 2 => true,
            _ => false,
        };
        let mode = command >> 8 & 7;
        let vector = command as u8;
        if matches!(mode, 0 | 1) && vector < 16 {
            self.esr_pending |= ERROR_SEND_ILLEGAL_VECTOR;
            return ApicEffect::None;
        }
        // A de-assert of INIT and messages to absent processors vanish.
        match mode {
            0 | 1 if reaches_self => {
                self.deliver(vector, false);
                ApicEffect::None
            }
            4 if reaches_self => ApicEffect::Nmi,
            5 if reaches_self && command & 1 << 14 != 0 => ApicEffect::Init,
            _ => ApicEffect::None,
        }
    }

    fn read(&mut self, number: u16, now: Ticks) -> Option<u32> {
        Some(match number {
            register::ID | register::APR => 0,
            register::VERSION => VERSION,
            register::TPR => u32::from(self.tpr),
            register::PPR => u32::from(self.processor_priority()),
            register::LDR => self.ldr,
            register::DFR => self.dfr,
            register::SVR => self.svr,
            register::ISR..register::TMR => self.isr.word32(number - register::ISR),
            register::TMR..register::IRR => self.tmr.word32(number - register::TMR),
            register::IRR..register::ESR => self.irr.word32(number - register::IRR),
            register::ESR => self.esr,
            register::ICR_LOW => self.icr as u32,
            register::ICR_HIGH => (self.icr >> 32) as u32,
            register::LVT_FIRST..=register::LVT_LAST => {
                self.lvt[usize::from(number - register::LVT_FIRST)]
            }
            register::TIMER_INITIAL => self.initial_count,
            register::TIMER_CURRENT => self.current_count(now),
            register::TIMER_DIVIDE => u32::from(self.divide),
            _ => return None,
        })
    }

    fn write(&mut self, number: u16, value: u32, now: Ticks) -> Option<ApicEffect> {
        match number {
            register::TPR => self.tpr = value as u8,
            register::SVR => {
                self.svr = value & 0x1ff;
                if value & SVR_ENABLE == 0 {
                    for entry in &mut self.lvt {
                        *entry |= LVT_MASKED;
                    }
                }
            }
            register::ESR => self.esr = core::mem::take(&mut self.esr_pending),
            register::LVT_FIRST..=register::LVT_LAST => {
                self.write_lvt(usize::from(number - register::LVT_FIRST), value);
            }
            register::TIMER_INITIAL => {
                self.initial_count = value;
                self.start_timer(now);
            }
            register::TIMER_DIVIDE => {
                self.divide = value as u8 & 0xb;
                if self.deadline.is_some() {
                    self.start_timer(now);
                }
            }
            // The ID of the only processor stays 0.
            register::ID => {}
            _ => return None,
        }
        Some(ApicEffect::None)
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let writable = match index {
            LVT_TIMER => 0x7_00ff,
            LVT_THERMAL | LVT_COUNTER => 0x1_07ff,
            LVT_LINT0 | LVT_LINT1 => 0x1_a7ff,
            LVT_ERROR => 0x1_00ff,
            _ => return,
        };
        let mut value = value & writable;
        if self.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if index == LVT_TIMER && (self.lvt[LVT_TIMER] ^ value) & LVT_TIMER_MODE != 0 {
            // A change of mode stops the timer (SDM 10.5.4.1).
            self.deadline = None;
            self.initial_count = 0;
        }
        self.lvt[index] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x2apic() -> Lapic {
        let mut apic = Lapic::new();
        apic.set_apic_base(LAPIC_BASE | BASE_ENABLE | BASE_X2APIC | BASE_BSP).unwrap();
        apic
    }

    #[test]
    fn priorities_nest() {
        let mut apic = x2apic();
        apic.deliver(0x41, false);
        apic.deliver(0x52, false);
        assert_eq!(apic.pending(), Some(0x52));
        apic.accept(0x52);
        assert_eq!(apic.pending(), None);
        apic.deliver(0x5f, false);
        assert_eq!(apic.pending(), None, "same class waits");
        apic.deliver(0x60, false);
        assert_eq!(apic.pending(), Some(0x60));
        apic.accept(0x60);
        assert_eq!(apic.write_msr(0x0b, 0, 0), Ok(ApicEffect::None));
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.write_msr(0x0b, 0, 0), Ok(ApicEffect::None));
        assert_eq!(apic.pending(), Some(0x5f));
    }

    #[test]
    fn task_priority_masks() {
        let mut apic = x2apic();
        apic.deliver(0x41, false);
        apic.set_cr8(4);
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.read_msr(0x0a, 0), Ok(0x40));
        apic.set_cr8(3);
        assert_eq!(apic.pending(), Some(0x41));
    }

    #[test]
    fn level_triggered_eoi_is_broadcast() {
        let mut apic = x2apic();
        apic.deliver(0x39, true);
        apic.accept(0x39);
        assert_eq!(apic.end_of_interrupt(), ApicEffect::Broadcast(0x39));
    }

    #[test]
    fn tsc_deadline_and_its_mode() {
        let mut apic = x2apic();
        apic.set_tsc_deadline(500);
        assert_eq!(apic.deadline(), None, "not in deadline mode");
        apic.write_msr(0x32, u64::from(LVT_TSC_DEADLINE) | 0xec, 0).unwrap();
        apic.set_tsc_deadline(500);
        assert_eq!((apic.deadline(), apic.tsc_deadline()), (Some(500), 500));
        assert!(!apic.expire(499));
        assert!(apic.expire(500));
        assert_eq!((apic.pending(), apic.tsc_deadline()), (Some(0xec), 0));
    }

    #[test]
    fn periodic_timer_by_mmio() {
        let mut apic = Lapic::new();
        apic.write_mmio(0x3e0, 0xb, 0);
        apic.write_mmio(0x320, LVT_PERIODIC | 0x30, 0);
        apic.write_mmio(0x380, 1000, 0);
        assert_eq!(apic.deadline(), Some(1000));
        assert_eq!(apic.read_mmio(0x390, 400), 600);
        assert!(apic.expire(3500));
        assert_eq!(apic.deadline(), Some(4000));
        apic.write_mmio(0x3e0, 0x0, 3500);
        assert_eq!(apic.deadline(), Some(5500), "divide by two");
    }

    #[test]
    fn mode_changes_follow_the_state_diagram() {
        let mut apic = Lapic::new();
        assert!(apic.set_apic_base(LAPIC_BASE | BASE_X2APIC).is_err());
        assert!(apic.set_apic_base(0x1000 | BASE_ENABLE).is_err());
        assert!(apic.read_msr(0x02, 0).is_err());
        apic.set_apic_base(LAPIC_BASE | BASE_ENABLE | BASE_X2APIC).unwrap();
        assert!(!apic.is_xapic());
        assert!(apic.set_apic_base(LAPIC_BASE | BASE_ENABLE).is_err());
        apic.set_apic_base(LAPIC_BASE).unwrap();
        assert!(apic.set_apic_base(LAPIC_BASE | BASE_ENABLE | BASE_X2APIC).is_err());
        assert!(apic.accepts_extint());
    }

    #[test]
    fn self_ipi_and_errors() {
        let mut apic = x2apic();
        apic.write_msr(0x3f, 0x77, 0).unwrap();
        assert_eq!(apic.pending(), Some(0x77));
        assert_eq!(apic.write_msr(0x30, 0x4_0400, 0), Ok(ApicEffect::Nmi));
        apic.write_msr(0x3f, 3, 0).unwrap();
        apic.write_msr(0x28, 0, 0).unwrap();
        assert_eq!(apic.read_msr(0x28, 0), Ok(u64::from(ERROR_SEND_ILLEGAL_VECTOR)));
        assert!(apic.write_msr(0x0b, 1, 0).is_err());
        assert!(apic.write_msr(0x02, 0, 0).is_err());
    }

    #[test]
    fn any_sequence_is_survived() {
        let mut apic = Lapic::new();
        let mut seed = 3u64;
        let mut now = 0u64;
        for _ in 0..400_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let value = (seed >> 20) as u32;
            let offset = (seed >> 44) as u16 & 0xfff;
            now = now.saturating_add(seed >> (seed >> 58));
            match seed >> 61 {
                0 => drop(apic.read_mmio(offset, now)),
                1 | 2 => drop(apic.write_mmio(offset & 0xff0, value, now)),
                3 => drop(apic.read_msr(offset & 0x3f, now)),
                4 => drop(apic.write_msr(offset & 0x3f, seed.rotate_left(13), now)),
                5 => drop(apic.set_apic_base(LAPIC_BASE | u64::from(value & 0xd00))),
                6 => apic.deliver(value as u8, value & 256 != 0),
                _ => {
                    if let Some(vector) = apic.pending() {
                        apic.accept(vector);
                    }
                    apic.expire(now);
                }
            }
        }
    }
}
