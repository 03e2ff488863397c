//! Virtual machine control block: its layout, bit for bit.
//!
//! AMD64 APM volume 2, appendix B. Offsets are proved by the assertions at the end.

use core::cell::Cell;

/// `int_ctl` (060h) bits.
pub mod int_ctl {
    /// Virtual TPR.
    pub const V_TPR: u64 = 0xff;
    /// A virtual interrupt is pending.
    pub const V_IRQ: u64 = 1 << 8;
    /// The priority field is not compared with the TPR: who sets `V_IRQ` has decided already.
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// RFLAGS.IF of the guest masks virtual interrupts only; the host's masks physical ones.
    pub const V_INTR_MASKING: u64 = 1 << 24;
    /// Shift of the vector.
    pub const V_INTR_VECTOR_SHIFT: u32 = 32;
}

/// `tlb_control` (05Ch) values.
pub mod tlb_control {
    /// Keep everything.
    pub const NOTHING: u8 = 0;
    /// Drop every translation of every ASID of this core.
    pub const FLUSH_ALL: u8 = 1;
}

/// One segment register.
#[repr(C)]
pub struct Segment {
    /// Selector, attributes << 16, limit << 32.
    pub descriptor: Cell<u64>,
    /// Base.
    pub base: Cell<u64>,
}

impl Segment {
    fn set(&self, selector: u16, attributes: u16, limit: u32, base: u64) {
        let descriptor = u64::from(selector) | u64::from(attributes) << 16 | u64::from(limit) << 32;
        self.descriptor.set(descriptor);
        self.base.set(base);
    }

    /// Tells the attributes (descriptor bits 47:40 in 7:0, 55:52 in 11:8).
    #[inline]
    #[must_use]
    pub fn attributes(&self) -> u16 {
        (self.descriptor.get() >> 16) as u16
    }
}

/// Attribute bit: 64-bit code.
pub const ATTRIBUTE_LONG: u16 = 1 << 9;

/// Virtual machine control block: control area (0..400h) and state save area.
#[repr(C, align(4096))]
pub struct Vmcb {
    /// 000h CR intercepts: reads in 15:0, writes in 31:16.
    pub intercept_cr: Cell<u32>,
    /// 004h DR intercepts: reads in 15:0, writes in 31:16.
    pub intercept_dr: Cell<u32>,
    /// 008h exception intercepts.
    pub intercept_exceptions: Cell<u32>,
    /// 00Ch bit n: exit code 60h + n.
    pub intercept_misc1: Cell<u32>,
    /// 010h bit n: exit code 80h + n.
    pub intercept_misc2: Cell<u32>,
    _reserved_014: [u32; 10],
    /// 03Ch pause filter threshold and count.
    pub pause_filter: Cell<u32>,
    /// 040h physical address of the I/O permission map.
    pub iopm_base_pa: Cell<u64>,
    /// 048h physical address of the MSR permission map.
    pub msrpm_base_pa: Cell<u64>,
    /// 050h added to RDTSC.
    pub tsc_offset: Cell<u64>,
    /// 058h guest ASID.
    pub asid: Cell<u32>,
    /// 05Ch what VMRUN flushes.
    pub tlb_control: Cell<u8>,
    _reserved_05d: [u8; 3],
    /// 060h virtual interrupt control.
    pub int_ctl: Cell<u64>,
    /// 068h bit 0: interrupt shadow.
    pub int_state: Cell<u64>,
    /// 070h exit code.
    pub exitcode: Cell<u64>,
    /// 078h.
    pub exitinfo1: Cell<u64>,
    /// 080h.
    pub exitinfo2: Cell<u64>,
    /// 088h event whose delivery the exit cut short.
    pub exitintinfo: Cell<u64>,
    /// 090h bit 0: nested paging.
    pub np_enable: Cell<u64>,
    _reserved_098: [u64; 2],
    /// 0A8h event to inject.
    pub eventinj: Cell<u64>,
    /// 0B0h nested CR3.
    pub n_cr3: Cell<u64>,
    /// 0B8h.
    pub virt_ext: Cell<u64>,
    /// 0C0h clean bits: zero, everything is loaded.
    pub clean: Cell<u64>,
    /// 0C8h next RIP (not saved by TCG).
    pub nrip: Cell<u64>,
    _reserved_0d0: [u64; 102],
    /// 400h ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR.
    pub segments: [Segment; 10],
    _reserved_4a0: [u8; 0x2b],
    /// 4CBh current privilege level (TCG loads SS.DPL instead).
    pub cpl: Cell<u8>,
    _reserved_4cc: u32,
    /// 4D0h EFER, with SVME.
    pub efer: Cell<u64>,
    _reserved_4d8: [u64; 14],
    /// 548h.
    pub cr4: Cell<u64>,
    /// 550h.
    pub cr3: Cell<u64>,
    /// 558h.
    pub cr0: Cell<u64>,
    /// 560h.
    pub dr7: Cell<u64>,
    /// 568h.
    pub dr6: Cell<u64>,
    /// 570h.
    pub rflags: Cell<u64>,
    /// 578h.
    pub rip: Cell<u64>,
    _reserved_580: [u64; 11],
    /// 5D8h.
    pub rsp: Cell<u64>,
    _reserved_5e0: [u64; 3],
    /// 5F8h.
    pub rax: Cell<u64>,
    /// 600h STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
    pub system_msrs: [Cell<u64>; 8],
    /// 640h.
    pub cr2: Cell<u64>,
    _reserved_648: [u64; 4],
    /// 668h guest PAT.
    pub g_pat: Cell<u64>,
    _reserved_670: [u64; 306],
}

/// Index of CS in [`Vmcb::segments`].
pub const CS: usize = 1;
/// Index of SS.
pub const SS: usize = 2;
/// Index of DS.
pub const DS: usize = 3;
/// Index of ES.
pub const ES: usize = 0;
/// Index of GDTR.
pub const GDTR: usize = 6;
/// Index of LDTR.
pub const LDTR: usize = 7;
/// Index of IDTR.
pub const IDTR: usize = 8;
/// Index of TR.
pub const TR: usize = 9;

/// EFER.SVME: VMRUN refuses a guest without it.
pub const EFER_SVME: u64 = 1 << 12;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;
/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;

impl Vmcb {
    /// Turns zeroed memory into a processor after RESET (AMD64 APM volume 2, table 14-1) with nested paging
    /// and the kernel's intercepts.
    pub fn reset(&self) {
        use super::intercept;
        self.intercept_cr.set(intercept::FORCED_CR);
        self.intercept_misc1.set(intercept::FORCED_MISC1);
        self.intercept_misc2.set(intercept::FORCED_MISC2);
        self.int_ctl.set(int_ctl::V_INTR_MASKING | int_ctl::V_IGN_TPR);
        self.np_enable.set(1);
        for segment in &self.segments {
            segment.set(0, 0x93, 0xffff, 0);
        }
        self.segments[CS].set(0xf000, 0x9b, 0xffff, 0xffff_0000);
        self.segments[GDTR].set(0, 0, 0xffff, 0);
        self.segments[LDTR].set(0, 0x82, 0xffff, 0);
        self.segments[IDTR].set(0, 0, 0xffff, 0);
        self.segments[TR].set(0, 0x8b, 0xffff, 0);
        self.cr0.set(0x6000_0010);
        self.efer.set(EFER_SVME);
        self.dr6.set(0xffff_0ff0);
        self.dr7.set(0x400);
        self.rflags.set(2);
        self.rip.set(0xfff0);
        self.g_pat.set(0x0007_0406_0007_0406);
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(Vmcb, intercept_dr) == 0x004);
    assert!(offset_of!(Vmcb, intercept_exceptions) == 0x008);
    assert!(offset_of!(Vmcb, intercept_misc1) == 0x00c);
    assert!(offset_of!(Vmcb, intercept_misc2) == 0x010);
    assert!(offset_of!(Vmcb, pause_filter) == 0x03c);
    assert!(offset_of!(Vmcb, iopm_base_pa) == 0x040);
    assert!(offset_of!(Vmcb, msrpm_base_pa) == 0x048);
    assert!(offset_of!(Vmcb, tsc_offset) == 0x050);
    assert!(offset_of!(Vmcb, asid) == 0x058);
    assert!(offset_of!(Vmcb, tlb_control) == 0x05c);
    assert!(offset_of!(Vmcb, int_ctl) == 0x060);
    assert!(offset_of!(Vmcb, int_state) == 0x068);
    assert!(offset_of!(Vmcb, exitcode) == 0x070);
    assert!(offset_of!(Vmcb, exitinfo1) == 0x078);
    assert!(offset_of!(Vmcb, exitinfo2) == 0x080);
    assert!(offset_of!(Vmcb, exitintinfo) == 0x088);
    assert!(offset_of!(Vmcb, np_enable) == 0x090);
    assert!(offset_of!(Vmcb, eventinj) == 0x0a8);
    assert!(offset_of!(Vmcb, n_cr3) == 0x0b0);
    assert!(offset_of!(Vmcb, virt_ext) == 0x0b8);
    assert!(offset_of!(Vmcb, clean) == 0x0c0);
    assert!(offset_of!(Vmcb, nrip) == 0x0c8);
    assert!(offset_of!(Vmcb, segments) == 0x400);
    assert!(offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, efer) == 0x4d0);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, cr3) == 0x550);
    assert!(offset_of!(Vmcb, cr0) == 0x558);
    assert!(offset_of!(Vmcb, dr7) == 0x560);
    assert!(offset_of!(Vmcb, dr6) == 0x568);
    assert!(offset_of!(Vmcb, rflags) == 0x570);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, system_msrs) == 0x600);
    assert!(offset_of!(Vmcb, cr2) == 0x640);
    assert!(offset_of!(Vmcb, g_pat) == 0x668);
};
