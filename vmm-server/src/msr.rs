//! Model-specific registers the guest reaches by exits.
//!
//! Everything not listed raises #GP, which is what guests probe for. MSRs that the processor switches itself
//! (FS/GS base, SYSCALL and SYSENTER registers) pass through without exits where the kernel allows it.

use crate::device::lapic::{ApicEffect, GeneralProtection};
use crate::guest_memory::GuestMemory;
use crate::time::TimeBase;
use crate::vmm::{Host, Vmm};
use abi::vcpu::field;

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const MICROCODE_REVISION: u32 = 0x8b;
const PAT: u32 = 0x277;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_EOI: u32 = 0x80b;
const EFER: u32 = 0xc000_0080;
const TSC_AUX: u32 = 0xc000_0103;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const NB_CFG: u32 = 0xc001_001f;
const DE_CFG: u32 = 0xc001_1029;
/// LFENCE serialises: bit 1 of `DE_CFG` is set and stays so.
const DE_CFG_VALUE: u64 = 2;
const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const EFER_FFXSR: u64 = 1 << 14;
const CR0_PG: u64 = 1 << 31;

/// The state field of an MSR the kernel switches.
fn switched(msr: u32) -> Option<u64> {
    Some(match msr {
        0x174 => field::SYSENTER_CS,
        0x175 => field::SYSENTER_ESP,
        0x176 => field::SYSENTER_EIP,
        0xc000_0081 => field::STAR,
        0xc000_0082 => field::LSTAR,
        0xc000_0083 => field::CSTAR,
        0xc000_0084 => field::SFMASK,
        0xc000_0100 => field::FS + 1,
        0xc000_0101 => field::GS + 1,
        0xc000_0102 => field::KERNEL_GS_BASE,
        TSC_AUX => field::TSC_AUX,
        PAT => field::G_PAT,
        _ => return None,
    })
}

/// Offset of the flags in the clock's page.
const CLOCK_FLAGS: u64 = 29;
/// Flag: the same on all processors.
const CLOCK_STABLE: u8 = 1;
/// Flag: the guest was stopped; it clears this itself.
const CLOCK_GUEST_STOPPED: u8 = 2;

/// The KVM clock's registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvmClock {
    system_time: u64,
    wall_clock: u64,
}

impl KvmClock {
    pub(crate) const fn new() -> Self {
        Self { system_time: 0, wall_clock: 0 }
    }

    /// The guest names the page of its clock; the parameters are written there at once and never change.
    ///
    /// Guest time starts at TSC zero, so both time stamps are zero.
    fn set_system_time(
        &mut self,
        value: u64,
        base: &TimeBase,
        memory: &mut impl GuestMemory,
    ) -> Result<(), GeneralProtection> {
        self.system_time = value;
        if value & 1 == 0 {
            return Ok(());
        }
        let mut info = [0; 32];
        // Version (even: consistent), TSC time stamp 0, system time 0, scale.
        info[0] = 2;
        info[24..28].copy_from_slice(&base.clock_mul.to_le_bytes());
        info[28] = base.clock_shift as u8;
        info[CLOCK_FLAGS as usize] = CLOCK_STABLE;
        memory.write(value & !1, &info).map_err(|_| GeneralProtection)
    }

    /// Tells the guest that it stood still, so that its watchdogs do not bark.
    fn mark_stopped(&self, memory: &mut impl GuestMemory) {
        if self.system_time & 1 != 0 {
            let at = (self.system_time & !1).saturating_add(CLOCK_FLAGS);
            // A page that has gone meanwhile is the guest's loss.
            let _ = memory.write(at, &[CLOCK_STABLE | CLOCK_GUEST_STOPPED]);
        }
    }

    fn set_wall_clock(
        &mut self,
        value: u64,
        epoch_seconds: u64,
        memory: &mut impl GuestMemory,
    ) -> Result<(), GeneralProtection> {
        self.wall_clock = value;
        let mut clock = [0; 12];
        clock[0] = 2;
        clock[4..8].copy_from_slice(&(epoch_seconds as u32).to_le_bytes());
        memory.write(value, &clock).map_err(|_| GeneralProtection)
    }
}

impl Vmm {
    /// The guest goes on after it was paused.
    pub fn resumed(&mut self, memory: &mut impl GuestMemory) {
        self.clock.mark_stopped(memory);
    }

    /// RDMSR.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] if there is no such register.
    #[inline]
    pub(crate) fn read_msr(
        &mut self,
        msr: u32,
        host: &mut impl Host,
    ) -> Result<u64, GeneralProtection> {
        Ok(match msr {
            TSC => host.now(),
            APIC_BASE => self.lapic.apic_base(),
            TSC_DEADLINE => self.lapic.tsc_deadline(),
            0x800..=0x8ff => return self.lapic.read_msr((msr - 0x800) as u16, host.now()),
            KVM_SYSTEM_TIME => self.clock.system_time,
            KVM_WALL_CLOCK => self.clock.wall_clock,
            EFER => host.read_state(field::EFER),
            DE_CFG => DE_CFG_VALUE,
            // Read by kernels without asking first; zero says that nothing special is on.
            MICROCODE_REVISION | SYSCFG | HWCR | NB_CFG => 0,
            _ => host.read_state(switched(msr).ok_or(GeneralProtection)?),
        })
    }

    /// WRMSR.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] if there is no such register or it refuses the value.
    #[inline]
    pub(crate) fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        memory: &mut impl GuestMemory,
        host: &mut impl Host,
    ) -> Result<(), GeneralProtection> {
        match msr {
            X2APIC_EOI | 0x800..=0x8ff => {
                let now = if msr == X2APIC_EOI { 0 } else { host.now() };
                let effect = self.lapic.write_msr((msr - 0x800) as u16, value, now)?;
                self.irq_changed = true;
                if effect != ApicEffect::None {
                    self.apply(effect);
                }
            }
            TSC_DEADLINE => self.lapic.set_tsc_deadline(value),
            APIC_BASE => {
                self.lapic.set_apic_base(value)?;
                self.irq_changed = true;
            }
            KVM_SYSTEM_TIME => {
                let base = self.time;
                self.clock.set_system_time(value, &base, memory)?;
            }
            KVM_WALL_CLOCK => {
                let epoch = self.epoch_seconds;
                self.clock.set_wall_clock(value, epoch, memory)?;
            }
            EFER => return write_efer(value, host),
            // Chicken bits a kernel sets for errata: the host's business.
            MICROCODE_REVISION | DE_CFG | SYSCFG | HWCR | NB_CFG => {}
            TSC_AUX if value >> 32 != 0 => return Err(GeneralProtection),
            _ => {
                let place = switched(msr).ok_or(GeneralProtection)?;
                if !host.write_state(place, value) {
                    return Err(GeneralProtection);
                }
            }
        }
        Ok(())
    }
}

fn write_efer(value: u64, host: &mut impl Host) -> Result<(), GeneralProtection> {
    let old = host.read_state(field::EFER);
    let settable = EFER_SCE | EFER_LME | EFER_NXE | EFER_FFXSR;
    if value & !(settable | EFER_LMA) != 0 {
        return Err(GeneralProtection);
    }
    if (value ^ old) & EFER_LME != 0 && host.read_state(field::CR0) & CR0_PG != 0 {
        return Err(GeneralProtection);
    }
    // LMA is the processor's own.
    let new = value & settable | old & EFER_LMA;
    if host.write_state(field::EFER, new) { Ok(()) } else { Err(GeneralProtection) }
}
