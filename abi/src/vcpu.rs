//! Virtual CPUs on AMD SVM: VMEnter's convention, state fields, extension numbers.
//!
//! Shape of seL4's VMX interface, under AMD's names (AMD64 APM volume 2, chapter 15). Everything
//! here is a Ballast extension: labels from 128, object types from 32, system call -32.
//!
//! # VMEnter
//! System call [`crate::Syscall::VMEnter`] in `rdx`; no capability (`rdi`, `rsi` are ignored). It runs the
//! virtual CPU bound to the calling thread until something happens that the thread must know.
//!
//! | register | in | out |
//! |---|---|---|
//! | `r10` MR0 | guest RIP | guest RIP |
//! | `r8` MR1 | [`control`] word | [`control`] word, status bits filled in |
//! | `r9` MR2 | EVENTINJ ([`event`]) or 0 | event whose delivery was cut short, as EVENTINJ, or 0 |
//! | `r15` MR3 | ignored | exit code ([`exit`]), only with label 1 |
//! | `rsi` | | message info: label 0 notification, label 1 exit |
//! | `rdi` | | badge (label 0), 0 (label 1) |
//!
//! Words in the thread's IPC buffer ([`word`], message register numbers): written by the kernel
//! with label 1 only. On entry the kernel reads just those that the control word names. A virtual
//! CPU keeps its whole state, so after a return with label 0 the next call passes MR0..MR2 back
//! as they came (`control & control::KEEP`) and the guest goes on as if nothing had happened.
//!
//! External interrupts of the machine are the kernel's and never seen. A virtual interrupt is
//! presented by [`control::V_IRQ`] and a vector: the processor takes it when the guest can, and the
//! next return says by the same bit whether it is still pending. A delivery cut short by a nested
//! page fault counts as still pending. Exceptions, NMIs and software interrupts go through MR2.
//! The thread's IPC buffer must be set; without one only registers pass.

/// Label of VMEnter's return because the bound notification was signalled.
pub const RETURN_NOTIFICATION: u64 = 0;
/// Label of VMEnter's return because of an exit the thread must handle.
pub const RETURN_EXIT: u64 = 1;

/// Control word of VMEnter (MR1).
pub mod control {
    /// Vector of the virtual interrupt.
    pub const VECTOR: u64 = 0xff;
    /// In: present the vector as a virtual interrupt. Out: it is still pending.
    pub const V_IRQ: u64 = 1 << 8;
    /// In: exit with [`super::exit::VINTR`] once the guest could take an interrupt; with it
    /// `V_IRQ` and the vector are not looked at and nothing is delivered.
    pub const WINDOW: u64 = 1 << 9;
    /// The guest's next instruction is in an interrupt shadow (STI, MOV SS). Out: as found. In: to be
    /// passed back, unless the instruction was emulated, which ends the shadow.
    pub const SHADOW: u64 = 1 << 10;
    /// In: exit with [`super::exit::IRET`] before the next IRET (to learn when NMIs reopen).
    pub const IRET_WINDOW: u64 = 1 << 11;
    /// Out: RFLAGS.IF of the guest.
    pub const INTERRUPT_FLAG: u64 = 1 << 12;
    /// In: take RFLAGS from [`super::word::RFLAGS`].
    pub const SET_RFLAGS: u64 = 1 << 13;
    /// Out: the guest is in 64-bit code (EFER.LMA and CS.L).
    pub const LONG: u64 = 1 << 14;
    /// Out: the words from [`super::word::CR0`] on were written (nested page faults, string I/O and
    /// whatever may need an instruction decoder).
    pub const DECODE_WORDS: u64 = 1 << 15;
    /// In: bit `GPR_SHIFT + n` takes general register n from [`super::word::GPR`]` + n`.
    pub const GPR_SHIFT: u32 = 16;
    /// Mask of the register bits.
    pub const GPR_MASK: u64 = 0xffff << GPR_SHIFT;
    /// CR8 as the guest reads it (task priority bits 7:4): in and out. CR8 writes always exit.
    pub const TPR_SHIFT: u32 = 32;
    /// Mask of the CR8 bits.
    pub const TPR_MASK: u64 = 0xf << TPR_SHIFT;
    /// Out: current privilege level.
    pub const CPL_SHIFT: u32 = 36;
    /// Mask of the privilege level.
    pub const CPL_MASK: u64 = 3 << CPL_SHIFT;
    /// The bits of a returned word that the next call passes back.
    pub const KEEP: u64 = VECTOR | V_IRQ | WINDOW | SHADOW | IRET_WINDOW | TPR_MASK;
}

/// EVENTINJ and EXITINTINFO (MR2), AMD's layout: error code in the upper half.
pub mod event {
    /// Vector.
    pub const VECTOR: u64 = 0xff;
    /// Type field shift.
    pub const TYPE_SHIFT: u32 = 8;
    /// Type: external interrupt. Refused on entry (the event is dropped): use the control word.
    pub const TYPE_INTR: u64 = 0 << TYPE_SHIFT;
    /// Type: non-maskable interrupt.
    pub const TYPE_NMI: u64 = 2 << TYPE_SHIFT;
    /// Type: exception.
    pub const TYPE_EXCEPTION: u64 = 3 << TYPE_SHIFT;
    /// Type: software interrupt.
    pub const TYPE_SOFT: u64 = 4 << TYPE_SHIFT;
    /// Mask of the type.
    pub const TYPE_MASK: u64 = 7 << TYPE_SHIFT;
    /// An error code is pushed.
    pub const ERROR_VALID: u64 = 1 << 11;
    /// The event is valid.
    pub const VALID: u64 = 1 << 31;
    /// Error code shift.
    pub const ERROR_SHIFT: u32 = 32;
}

/// Message register numbers of the exit words (IPC buffer word = number + 1).
pub mod word {
    /// EXITINFO1.
    pub const EXITINFO1: usize = 4;
    /// EXITINFO2.
    pub const EXITINFO2: usize = 5;
    /// RFLAGS.
    pub const RFLAGS: usize = 6;
    /// CS base (always written: with RIP it names the code that ran).
    pub const CS_BASE: usize = 7;
    /// First of the 16 general registers in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8..r15.
    pub const GPR: usize = 8;
    /// CR0; this and the following words only with [`super::control::DECODE_WORDS`], but for CR3.
    pub const CR0: usize = 24;
    /// CR3: always written, as it names the space the code ran in.
    pub const CR3: usize = 25;
    /// CR4.
    pub const CR4: usize = 26;
    /// EFER.
    pub const EFER: usize = 27;
    /// CS: selector, attributes << 16, limit << 32 (the VMCB's first 8 bytes of a segment).
    pub const CS: usize = 28;
    /// DS base.
    pub const DS_BASE: usize = 29;
    /// ES base.
    pub const ES_BASE: usize = 30;
    /// SS: selector, attributes << 16, limit << 32.
    pub const SS: usize = 31;
    /// SS base.
    pub const SS_BASE: usize = 32;
    /// Number of message registers of a full exit.
    pub const COUNT: usize = 33;
}

/// Exit codes the kernel passes on (AMD64 APM volume 2, appendix C).
pub mod exit {
    /// First of the 16 CR read exits.
    pub const CR0_READ: u64 = 0x00;
    /// First of the 16 CR write exits.
    pub const CR0_WRITE: u64 = 0x10;
    /// CR8 write: always intercepted (QEMU aborts when a pending V_IRQ meets a direct one).
    pub const CR8_WRITE: u64 = 0x18;
    /// First of the 16 DR read exits.
    pub const DR0_READ: u64 = 0x20;
    /// First of the 16 DR write exits.
    pub const DR0_WRITE: u64 = 0x30;
    /// First of the 32 exception exits.
    pub const EXCEPTION: u64 = 0x40;
    /// Physical interrupt (the kernel's own; never passed on).
    pub const INTR: u64 = 0x60;
    /// Physical NMI (the kernel's own).
    pub const NMI: u64 = 0x61;
    /// System management interrupt.
    pub const SMI: u64 = 0x62;
    /// INIT.
    pub const INIT: u64 = 0x63;
    /// The guest can take a virtual interrupt.
    pub const VINTR: u64 = 0x64;
    /// IDTR read.. TR write: 0x66..=0x6d.
    pub const IDTR_READ: u64 = 0x66;
    /// RDTSC, and RDTSCP under TCG (only if intercepted on request).
    pub const RDTSC: u64 = 0x6e;
    /// RDPMC.
    pub const RDPMC: u64 = 0x6f;
    /// PUSHF.
    pub const PUSHF: u64 = 0x70;
    /// POPF.
    pub const POPF: u64 = 0x71;
    /// CPUID.
    pub const CPUID: u64 = 0x72;
    /// RSM.
    pub const RSM: u64 = 0x73;
    /// IRET.
    pub const IRET: u64 = 0x74;
    /// INTn.
    pub const SWINT: u64 = 0x75;
    /// INVD (TCG reports WBINVD).
    pub const INVD: u64 = 0x76;
    /// PAUSE.
    pub const PAUSE: u64 = 0x77;
    /// HLT.
    pub const HLT: u64 = 0x78;
    /// INVLPG.
    pub const INVLPG: u64 = 0x79;
    /// INVLPGA.
    pub const INVLPGA: u64 = 0x7a;
    /// IN, OUT, INS, OUTS: EXITINFO1 port and kind, EXITINFO2 next RIP.
    pub const IOIO: u64 = 0x7b;
    /// RDMSR (EXITINFO1 = 0) or WRMSR (EXITINFO1 = 1).
    pub const MSR: u64 = 0x7c;
    /// Task switch.
    pub const TASK_SWITCH: u64 = 0x7d;
    /// FERR freeze.
    pub const FERR_FREEZE: u64 = 0x7e;
    /// Shutdown (triple fault).
    pub const SHUTDOWN: u64 = 0x7f;
    /// VMRUN.
    pub const VMRUN: u64 = 0x80;
    /// VMMCALL.
    pub const VMMCALL: u64 = 0x81;
    /// VMLOAD.
    pub const VMLOAD: u64 = 0x82;
    /// VMSAVE.
    pub const VMSAVE: u64 = 0x83;
    /// STGI.
    pub const STGI: u64 = 0x84;
    /// CLGI.
    pub const CLGI: u64 = 0x85;
    /// SKINIT.
    pub const SKINIT: u64 = 0x86;
    /// RDTSCP (TCG reports RDTSC).
    pub const RDTSCP: u64 = 0x87;
    /// ICEBP.
    pub const ICEBP: u64 = 0x88;
    /// WBINVD.
    pub const WBINVD: u64 = 0x89;
    /// MONITOR.
    pub const MONITOR: u64 = 0x8a;
    /// MWAIT.
    pub const MWAIT: u64 = 0x8b;
    /// MWAIT with the monitor armed.
    pub const MWAIT_CONDITIONAL: u64 = 0x8c;
    /// XSETBV (never raised by TCG: the guest's XSETBV executes and the kernel switches XCR0).
    pub const XSETBV: u64 = 0x8d;
    /// Nested page fault: EXITINFO1 error code, EXITINFO2 guest-physical address.
    pub const NPF: u64 = 0x400;
    /// The guest state was refused by VMRUN, or the virtual CPU has no nested root.
    pub const INVALID: u64 = u64::MAX;
}

/// Bits of EXITINFO1 of a nested page fault.
pub mod npf {
    /// The entry was present (a rights violation).
    pub const PRESENT: u64 = 1;
    /// Write access. Walks of the guest's own page tables count as writes.
    pub const WRITE: u64 = 2;
    /// User access (always set).
    pub const USER: u64 = 4;
    /// Reserved bit in a nested entry.
    pub const RESERVED: u64 = 8;
    /// Instruction fetch.
    pub const EXECUTE: u64 = 0x10;
    /// The fault was for the final guest-physical address.
    pub const FINAL: u64 = 1 << 32;
    /// The fault was for a page of the guest's page tables.
    pub const TABLE: u64 = 1 << 33;
}

/// Bits of EXITINFO1 of an IOIO exit.
pub mod ioio {
    /// Input (else output).
    pub const IN: u64 = 1;
    /// String instruction.
    pub const STRING: u64 = 1 << 2;
    /// REP prefix.
    pub const REP: u64 = 1 << 3;
    /// One byte.
    pub const SIZE8: u64 = 1 << 4;
    /// Two bytes.
    pub const SIZE16: u64 = 1 << 5;
    /// Four bytes.
    pub const SIZE32: u64 = 1 << 6;
    /// Shift of the port number.
    pub const PORT_SHIFT: u32 = 16;
}

/// State field ids of `VcpuReadState` and `VcpuWriteState`. Stable; read-write unless noted.
pub mod field {
    /// Values 0..=15: general registers in encoding order (rax rcx rdx rbx rsp rbp rsi rdi r8..r15).
    pub const GPR: u64 = 0;
    /// RAX.
    pub const RAX: u64 = 0;
    /// RCX.
    pub const RCX: u64 = 1;
    /// RDX.
    pub const RDX: u64 = 2;
    /// RBX.
    pub const RBX: u64 = 3;
    /// RSP.
    pub const RSP: u64 = 4;
    /// RBP.
    pub const RBP: u64 = 5;
    /// RSI.
    pub const RSI: u64 = 6;
    /// RDI.
    pub const RDI: u64 = 7;
    /// RIP. VMEnter's MR0 overwrites it.
    pub const RIP: u64 = 16;
    /// RFLAGS (bit 1 forced to one, reserved bits to zero).
    pub const RFLAGS: u64 = 17;
    /// CR0 (NW without CD and upper bits refused).
    pub const CR0: u64 = 18;
    /// CR2.
    pub const CR2: u64 = 19;
    /// CR3.
    pub const CR3: u64 = 20;
    /// CR4 (bits the machine lacks are refused).
    pub const CR4: u64 = 21;
    /// EFER; SVME is forced on in the VMCB and reads as zero here.
    pub const EFER: u64 = 22;
    /// DR0; DR1..DR3 follow.
    pub const DR0: u64 = 23;
    /// DR6 (upper half refused).
    pub const DR6: u64 = 27;
    /// DR7 (upper half refused).
    pub const DR7: u64 = 28;
    /// XCR0 (must hold bit 0 and only features of the machine).
    pub const XCR0: u64 = 29;
    /// CPL.
    pub const CPL: u64 = 30;
    /// XMM0: low half; `+ 1` is the high half, `+ 2` XMM1 and so on up to XMM15.
    pub const XMM: u64 = 96;
    /// First segment field: `SEGMENT + 2 * n` is selector, attributes << 16, limit << 32 (VMCB form:
    /// attribute bits 7:0 = descriptor bits 47:40, 11:8 = 55:52); `+ 1` is the base. n in the order
    /// of the VMCB: ES 0, CS 1, SS 2, DS 3, FS 4, GS 5, GDTR 6, LDTR 7, IDTR 8, TR 9.
    pub const SEGMENT: u64 = 32;
    /// ES.
    pub const ES: u64 = SEGMENT;
    /// CS.
    pub const CS: u64 = SEGMENT + 2;
    /// SS.
    pub const SS: u64 = SEGMENT + 4;
    /// DS.
    pub const DS: u64 = SEGMENT + 6;
    /// FS.
    pub const FS: u64 = SEGMENT + 8;
    /// GS.
    pub const GS: u64 = SEGMENT + 10;
    /// GDTR.
    pub const GDTR: u64 = SEGMENT + 12;
    /// LDTR.
    pub const LDTR: u64 = SEGMENT + 14;
    /// IDTR.
    pub const IDTR: u64 = SEGMENT + 16;
    /// TR.
    pub const TR: u64 = SEGMENT + 18;
    /// STAR.
    pub const STAR: u64 = 52;
    /// LSTAR.
    pub const LSTAR: u64 = 53;
    /// CSTAR.
    pub const CSTAR: u64 = 54;
    /// SFMASK.
    pub const SFMASK: u64 = 55;
    /// KERNEL_GS_BASE.
    pub const KERNEL_GS_BASE: u64 = 56;
    /// SYSENTER_CS.
    pub const SYSENTER_CS: u64 = 57;
    /// SYSENTER_ESP.
    pub const SYSENTER_ESP: u64 = 58;
    /// SYSENTER_EIP.
    pub const SYSENTER_EIP: u64 = 59;
    /// Guest PAT (memory types checked).
    pub const G_PAT: u64 = 60;
    /// TSC_OFFSET: added to RDTSC and RDTSCP. RDMSR of the TSC exits and must add it by hand.
    pub const TSC_OFFSET: u64 = 61;
    /// TSC_AUX as RDTSCP returns it.
    pub const TSC_AUX: u64 = 62;
    /// Exceptions to intercept, one bit per vector (bit 2 refused; #AC and #DB are allowed).
    pub const INTERCEPT_EXCEPTIONS: u64 = 64;
    /// CR reads (bits 15:0) and writes (31:16) to intercept; CR8 writes always are.
    pub const INTERCEPT_CR: u64 = 65;
    /// DR reads (15:0) and writes (31:16) to intercept.
    pub const INTERCEPT_DR: u64 = 66;
    /// Further instructions to intercept: bit n = exit code 0x60 + n (RDTSC 14, RDPMC 15, PAUSE 23,
    /// INVLPG 25, WBINVD 41, ...). The kernel's own are always on and read as set.
    pub const INTERCEPT_INSTRUCTIONS: u64 = 67;
    /// Read only: last exit code.
    pub const EXITCODE: u64 = 72;
    /// Read only: EXITINFO1.
    pub const EXITINFO1: u64 = 73;
    /// Read only: EXITINFO2.
    pub const EXITINFO2: u64 = 74;
    /// Read only: event cut short by the last exit, as VMEnter's MR2 gives it.
    pub const EXITINTINFO: u64 = 75;
    /// Read only: exits of this virtual CPU, also those the kernel handled alone.
    pub const EXIT_COUNT: u64 = 76;
    /// Control word as VMEnter would return it now (virtual interrupt, shadow, CR8).
    pub const CONTROL: u64 = 78;
    /// Number of ids in use plus one.
    pub const LIMIT: u64 = 80;
}

/// Most fields of one `VcpuReadState`.
pub const STATE_READ_MAX: usize = 64;
/// Most pairs of one `VcpuWriteState`.
pub const STATE_WRITE_MAX: usize = 56;

/// MSRs a guest may use without exits: their values are part of what the kernel switches.
pub const PASS_THROUGH_MSRS: [u32; 10] = [
    0x0000_0174, // SYSENTER_CS
    0x0000_0175, // SYSENTER_ESP
    0x0000_0176, // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
];

/// Attributes of a nested mapping.
pub mod npt_attr {
    /// Memory type bits, numbered like the attributes of `X86PageMap`: 0 write-back, 1 write-through,
    /// 2 and 3 uncacheable, 4 write-combining.
    pub const TYPE_MASK: u64 = 7;
    /// Instruction fetches fault.
    pub const NO_EXECUTE: u64 = 1 << 8;
}

/// Flags and reply layout of `NptHarvest`.
pub mod harvest {
    /// Clear accessed bits (translations are flushed, running virtual CPUs kicked).
    pub const CLEAR_ACCESSED: u64 = 1;
    /// Clear dirty bits (likewise).
    pub const CLEAR_DIRTY: u64 = 2;
    /// Message register of the first word of the accessed bitmap.
    pub const ACCESSED_WORD: usize = 4;
    /// Message register of the first word of the dirty bitmap.
    pub const DIRTY_WORD: usize = 36;
}

/// Most 4 KiB pages of one harvest: 32 words of bitmap.
pub const HARVEST_MAX: u64 = 2048;
/// First guest-physical address that cannot be mapped.
pub const GPA_LIMIT: u64 = 1 << 47;
