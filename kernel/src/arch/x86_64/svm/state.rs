//! State fields by number: what user level may read and write of a virtual CPU, and which values are acceptable.
//!
//! A value is refused if it could make the kernel itself fault when it is loaded outside VMRUN (XCR0, TSC_AUX, DR6/7) or
//! would break what the kernel relies on. Anything else that is nonsense makes VMRUN fail, which comes back as an exit.

use abi::vcpu::{control, field};

use super::intercept;
use super::vmcb::{EFER_SVME, Segment, Vmcb, int_ctl};
use crate::mem::Ref;
use crate::object::vcpu::Vcpu;

/// Features of the machine that bound what a guest's state may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Bits of XCR0 the processor knows; 0 = no XSAVE.
    pub xcr0: u64,
}

/// EFER bits a guest may set: SCE, LME, LMA, NXE, FFXSR.
const EFER_ALLOWED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14;
/// RFLAGS bits that exist, besides bit 1.
const RFLAGS_ALLOWED: u64 = 0x003f_7fd5;
/// Segment word: selector, 12 attribute bits, limit.
const DESCRIPTOR_MASK: u64 = 0xffff_ffff_0fff_ffff;

const fn canonical(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

const fn upper_half(value: u64) -> bool {
    value >> 32 != 0
}

fn valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|entry| matches!(entry, 0 | 1 | 4..=7))
}

fn segment(vmcb: &Vmcb, id: u64) -> Option<(&Segment, bool)> {
    let offset = id.checked_sub(field::SEGMENT)?;
    let segment = vmcb.segments.get((offset / 2) as usize)?;
    Some((segment, offset % 2 == 1))
}

/// First word of the XMM registers in the XSAVE area.
const XMM_WORD: usize = 160 / 8;
/// Word of XSTATE_BV in the XSAVE area.
const XSTATE_BV_WORD: usize = 512 / 8;
const XSTATE_SSE: u64 = 2;

/// Tells whether a field lies in the floating-point registers: they must be in the virtual CPU's area before it is used.
#[must_use]
pub const fn is_floating(id: u64) -> bool {
    matches!(id, 96..=127)
}

/// Reads a field. `None`: no such field.
#[must_use]
pub fn read(vcpu: Ref<Vcpu>, id: u64) -> Option<u64> {
    let vmcb = &vcpu.vmcb;
    if let Some((segment, is_base)) = segment(vmcb, id) {
        return Some(if is_base { segment.base.get() } else { segment.descriptor.get() });
    }
    Some(match id {
        0..=15 => vcpu.gprs[id as usize].get(),
        field::RIP => vmcb.rip.get(),
        field::RFLAGS => vmcb.rflags.get(),
        field::CR0 => vmcb.cr0.get(),
        field::CR2 => vmcb.cr2.get(),
        field::CR3 => vmcb.cr3.get(),
        field::CR4 => vmcb.cr4.get(),
        field::EFER => vmcb.efer.get() & !EFER_SVME,
        23..=26 => vcpu.debug[(id - field::DR0) as usize].get(),
        field::DR6 => vmcb.dr6.get(),
        field::DR7 => vmcb.dr7.get(),
        field::XCR0 => vcpu.xcr0.get(),
        field::CPL => u64::from(vmcb.cpl.get()),
        96..=127 => vcpu.fpu[XMM_WORD + (id - field::XMM) as usize].get(),
        52..=59 => vmcb.system_msrs[(id - field::STAR) as usize].get(),
        field::G_PAT => vmcb.g_pat.get(),
        field::TSC_OFFSET => vmcb.tsc_offset.get(),
        field::TSC_AUX => vcpu.tsc_aux.get(),
        field::INTERCEPT_EXCEPTIONS => u64::from(vcpu.intercept_exceptions.get()),
        field::INTERCEPT_CR => u64::from(vmcb.intercept_cr.get()),
        field::INTERCEPT_DR => u64::from(vcpu.intercept_dr.get()),
        field::INTERCEPT_INSTRUCTIONS => {
            u64::from(vcpu.intercept_misc1.get()) | u64::from(vmcb.intercept_misc2.get()) << 32
        }
        field::EXITCODE => vmcb.exitcode.get(),
        field::EXITINFO1 => vmcb.exitinfo1.get(),
        field::EXITINFO2 => vmcb.exitinfo2.get(),
        field::EXITINTINFO => vcpu.pending_event(),
        field::EXIT_COUNT => vcpu.exits.get(),
        field::CONTROL => vcpu.status(),
        _ => return None,
    })
}

/// Tells whether `value` may be written to a field.
///
/// # Errors
/// `false`: no such field or read only; `true`: the value is refused.
pub fn check(id: u64, value: u64, machine: &Machine) -> Result<(), bool> {
    let acceptable = match id {
        0..=15 | field::RIP | field::RFLAGS | field::CR2 | field::CR3 => true,
        23..=26 | 32..=51 | field::TSC_OFFSET => true,
        52..=59 | 96..=127 => true,
        // NW without CD is refused by VMRUN on every processor.
        field::CR0 => !upper_half(value) && value & (1 << 29 | 1 << 30) != 1 << 29,
        field::CR4 | field::DR6 | field::DR7 | field::TSC_AUX => !upper_half(value),
        field::EFER => value & !EFER_ALLOWED == 0,
        field::XCR0 => {
            value & 1 != 0
                && value & !machine.xcr0.max(1) == 0
                // AVX state needs SSE state.
                && (value & 4 == 0 || value & 2 != 0)
        }
        field::CPL => value <= 3,
        field::G_PAT => valid_pat(value),
        // NMIs are the kernel's; #2 is no exception anyway.
        field::INTERCEPT_EXCEPTIONS => !upper_half(value) && value & 1 << 2 == 0,
        field::INTERCEPT_CR | field::INTERCEPT_DR => !upper_half(value),
        field::INTERCEPT_INSTRUCTIONS => {
            (value as u32) & !intercept::OPTIONAL_MISC1 == 0
                && ((value >> 32) as u32) & !intercept::OPTIONAL_MISC2 == 0
        }
        field::CONTROL => value & !control::KEEP == 0,
        _ => return Err(false),
    };
    if acceptable { Ok(()) } else { Err(true) }
}

/// Writes a field whose value [`check`] has accepted.
pub fn write(vcpu: Ref<Vcpu>, id: u64, value: u64) {
    let vmcb = &vcpu.vmcb;
    if let Some((segment, is_base)) = segment(vmcb, id) {
        if is_base {
            segment.base.set(value);
        } else {
            segment.descriptor.set(value & DESCRIPTOR_MASK);
        }
        return;
    }
    match id {
        0..=15 => vcpu.gprs[id as usize].set(value),
        field::RIP => vmcb.rip.set(value),
        field::RFLAGS => vmcb.rflags.set(value & RFLAGS_ALLOWED | 2),
        field::CR0 => vmcb.cr0.set(value),
        field::CR2 => vmcb.cr2.set(value),
        field::CR3 => vmcb.cr3.set(value),
        field::CR4 => vmcb.cr4.set(value),
        field::EFER => vmcb.efer.set(value | EFER_SVME),
        23..=26 => {
            vcpu.debug[(id - field::DR0) as usize].set(value);
            if value != 0 {
                vcpu.own_debug_registers();
            }
        }
        field::DR6 => vmcb.dr6.set(value),
        field::DR7 => vmcb.dr7.set(value),
        field::XCR0 => vcpu.xcr0.set(value),
        field::CPL => vmcb.cpl.set(value as u8),
        96..=127 => {
            vcpu.fpu[XMM_WORD + (id - field::XMM) as usize].set(value);
            // XRSTOR takes what the area holds only of the components marked here.
            let marks = &vcpu.fpu[XSTATE_BV_WORD];
            marks.set(marks.get() | XSTATE_SSE);
        }
        // VMLOAD puts these into MSRs that hold canonical addresses only.
        52 | 55 | 57 => vmcb.system_msrs[(id - field::STAR) as usize].set(value),
        53..=59 => vmcb.system_msrs[(id - field::STAR) as usize].set(canonical(value)),
        field::G_PAT => vmcb.g_pat.set(value),
        field::TSC_OFFSET => vmcb.tsc_offset.set(value),
        field::TSC_AUX => vcpu.tsc_aux.set(value),
        field::INTERCEPT_EXCEPTIONS => vcpu.set_intercept_exceptions(value as u32),
        field::INTERCEPT_CR => vmcb.intercept_cr.set(value as u32 | intercept::FORCED_CR),
        field::INTERCEPT_DR => vcpu.set_intercept_dr(value as u32),
        field::INTERCEPT_INSTRUCTIONS => {
            vcpu.intercept_misc1.set(value as u32 | intercept::FORCED_MISC1);
            vmcb.intercept_misc2.set((value >> 32) as u32 | intercept::FORCED_MISC2);
        }
        field::CONTROL => vcpu.set_control(value),
        _ => {}
    }
}

/// Rewrites the parts of `int_ctl` that user level may not choose.
#[inline(always)]
#[must_use]
pub const fn compose_int_ctl(control_word: u64) -> u64 {
    let tpr = control_word >> control::TPR_SHIFT & 0xf;
    let base = int_ctl::V_INTR_MASKING | int_ctl::V_IGN_TPR | tpr;
    if control_word & (control::V_IRQ | control::WINDOW) == 0 {
        base
    } else {
        // The vector of a window is never delivered: its intercept comes first.
        base | int_ctl::V_IRQ | (control_word & control::VECTOR) << int_ctl::V_INTR_VECTOR_SHIFT
    }
}
