//! What the processor can do, and the control registers every core runs with.
//!
//! UNSAFETY: control registers and MSRs.
#![expect(unsafe_code, reason = "CPUID, control registers, MSRs")]

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use x86::msr::{IA32_EFER, IA32_PAT, rdmsr, wrmsr};

use super::fpu;
use crate::limits::FPU_BYTES;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_MCE: u64 = 1 << 6;
const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_SCE: u64 = 1 << 0;
const EFER_NXE: u64 = 1 << 11;

/// Memory types by page-table bits PAT, PCD, PWT: write-back, write-through, uncached-, uncacheable, then write-combining in place 4.
const PAT: u64 = 0x0007_0401_0007_0406;

/// Features the kernel chooses by.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// 1 GiB pages.
    pub huge_pages: bool,
    /// x2APIC mode.
    pub x2apic: bool,
    /// APIC timer by TSC value.
    pub tsc_deadline: bool,
    /// XSAVE components in use; 0 = FXSAVE only.
    pub xsave_mask: u64,
    /// Control register 4.
    cr4: u64,
}

/// What the kernel cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingFeature(pub &'static str);

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

impl Features {
    /// Asks the processor.
    ///
    /// # Errors
    /// A feature the kernel needs is missing.
    pub fn detect() -> Result<Self, MissingFeature> {
        let highest = cpuid(0, 0)[0];
        let [_, _, c1, d1] = cpuid(1, 0);
        let [_, b7, _, _] = if highest >= 7 { cpuid(7, 0) } else { [0; 4] };
        let d_ext = cpuid(0x8000_0001, 0)[3];
        for (present, name) in [
            (d1 & 1 << 9 != 0, "local APIC"),
            (d1 & 1 << 24 != 0, "FXSAVE"),
            (d1 & 1 << 13 != 0, "global pages"),
            (d1 & 1 << 16 != 0, "page attribute table"),
            (d_ext & 1 << 11 != 0, "SYSCALL"),
        ] {
            if !present {
                return Err(MissingFeature(name));
            }
        }
        let mut cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
        if d1 & 1 << 7 != 0 {
            cr4 |= CR4_MCE;
        }
        if b7 & 1 << 7 != 0 {
            cr4 |= CR4_SMEP;
        }
        if b7 & 1 << 20 != 0 {
            cr4 |= CR4_SMAP;
        }
        let mut xsave_mask = 0;
        if c1 & 1 << 26 != 0 && highest >= 13 {
            cr4 |= CR4_OSXSAVE;
            xsave_mask = u64::from(cpuid(13, 0)[0]) & fpu::COMPONENTS;
        }
        Ok(Self {
            huge_pages: d_ext & 1 << 26 != 0,
            x2apic: c1 & 1 << 21 != 0,
            tsc_deadline: c1 & 1 << 24 != 0,
            xsave_mask,
            cr4,
        })
    }

    /// Sets this core's control registers, memory types and XSAVE components.
    ///
    /// # Errors
    /// The state area of the chosen components is larger than a TCB has room for.
    pub fn apply(&self, state: &fpu::State) -> Result<(), MissingFeature> {
        let cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
        // SAFETY: long mode with paging goes on unchanged; each bit was found in CPUID. NXE was set by the boot code already.
        unsafe {
            asm!("mov cr4, {}", in(reg) self.cr4, options(nostack, preserves_flags));
            asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags));
            wrmsr(IA32_EFER, rdmsr(IA32_EFER) | EFER_SCE | EFER_NXE);
            wrmsr(IA32_PAT, PAT);
            if self.xsave_mask != 0 {
                asm!("xsetbv", in("ecx") 0, in("eax") self.xsave_mask as u32, in("edx") 0, options(nostack, preserves_flags));
            }
        }
        if self.xsave_mask != 0 && cpuid(13, 0)[1] as usize > FPU_BYTES {
            return Err(MissingFeature("XSAVE area that fits a TCB"));
        }
        state.init(self.xsave_mask, cr0);
        Ok(())
    }
}
