//! VMRUN: into a guest and back.
//!
//! VMRUN and #VMEXIT switch only part of the processor: RIP, RSP, RAX, RFLAGS, CS/SS/DS/ES, GDTR/IDTR, CR0/3/4, EFER, DR6/7. The
//! rest is done here: general registers, and by VMSAVE/VMLOAD FS, GS, TR, LDTR, KERNEL_GS_BASE, STAR.. and SYSENTER.. of both sides.
//! Physical interrupts stay with the kernel: GIF is 0 until the guest runs, the host's IF is 1 while it runs (so that an interrupt
//! ends the guest, V_INTR_MASKING), and 0 again before GIF returns.
//!
//! Interrupt shadow: the processor loads it from the VMCB. QEMU's TCG does not; there the shadow of the host's own STI is
//! what survives into the guest for one instruction. So with a shadowed guest STI stands directly before VMRUN, otherwise a NOP ends
//! the shadow first; on a real processor neither order matters.
//!
//! CR2: the processor loads it from the VMCB. Bochs (2.7 and later) reads that field and drops it, so that a guest would see the
//! address of the last page fault of a server or of another guest, if it left between its own fault and its handler's read. So CR2
//! is loaded here, but only where it differs: usually the guest's is still there, for #VMEXIT does not touch it.
// UNSAFETY: enters and leaves guests with VMRUN, sets up the processor for it.
#![expect(unsafe_code, reason = "VMRUN and the registers around it")]

use core::arch::global_asm;

global_asm!(
    // extern "C" fn(vcpu: *const Vcpu, guest: u64, host: u64, shadow: u64)
    // rdi = the virtual CPU, rsi/rdx = physical VMCBs of guest and host, rcx = 0/1. RAX and RSP travel through the VMCB.
    ".global ballast_svm_enter",
    "ballast_svm_enter:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdx",
    "push rdi",
    "mov rax, [rdi + {gprs}]",
    "mov [rdi + {vmcb_rax}], rax",
    "mov rax, [rdi + {gprs} + 0x20]",
    "mov [rdi + {vmcb_rsp}], rax",
    "clgi",
    "mov rax, rdx",
    "vmsave rax",
    "mov rax, rsi",
    "vmload rax",
    "mov rdx, cr2",
    "cmp rdx, [rdi + {vmcb_cr2}]",
    "je 4f",
    "mov rdx, [rdi + {vmcb_cr2}]",
    "mov cr2, rdx",
    "4:",
    "test ecx, ecx",
    "mov rcx, [rdi + {gprs} + 0x08]",
    "mov rdx, [rdi + {gprs} + 0x10]",
    "mov rbx, [rdi + {gprs} + 0x18]",
    "mov rbp, [rdi + {gprs} + 0x28]",
    "mov rsi, [rdi + {gprs} + 0x30]",
    "mov r8, [rdi + {gprs} + 0x40]",
    "mov r9, [rdi + {gprs} + 0x48]",
    "mov r10, [rdi + {gprs} + 0x50]",
    "mov r11, [rdi + {gprs} + 0x58]",
    "mov r12, [rdi + {gprs} + 0x60]",
    "mov r13, [rdi + {gprs} + 0x68]",
    "mov r14, [rdi + {gprs} + 0x70]",
    "mov r15, [rdi + {gprs} + 0x78]",
    "mov rdi, [rdi + {gprs} + 0x38]",
    "jnz 2f",
    "sti",
    "nop",
    "vmrun rax",
    "jmp 3f",
    "2:",
    "sti",
    "vmrun rax",
    "3:",
    "vmsave rax",
    "xchg rdi, [rsp]",
    "mov [rdi + {gprs} + 0x08], rcx",
    "mov [rdi + {gprs} + 0x10], rdx",
    "mov [rdi + {gprs} + 0x18], rbx",
    "mov [rdi + {gprs} + 0x28], rbp",
    "mov [rdi + {gprs} + 0x30], rsi",
    "mov [rdi + {gprs} + 0x40], r8",
    "mov [rdi + {gprs} + 0x48], r9",
    "mov [rdi + {gprs} + 0x50], r10",
    "mov [rdi + {gprs} + 0x58], r11",
    "mov [rdi + {gprs} + 0x60], r12",
    "mov [rdi + {gprs} + 0x68], r13",
    "mov [rdi + {gprs} + 0x70], r14",
    "mov [rdi + {gprs} + 0x78], r15",
    "pop rcx",
    "mov [rdi + {gprs} + 0x38], rcx",
    "mov rcx, [rdi + {vmcb_rax}]",
    "mov [rdi + {gprs}], rcx",
    "mov rcx, [rdi + {vmcb_rsp}]",
    "mov [rdi + {gprs} + 0x20], rcx",
    "pop rax",
    "vmload rax",
    "cli",
    "stgi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    gprs = const core::mem::offset_of!(Vcpu, gprs),
    vmcb_rax = const core::mem::offset_of!(Vcpu, vmcb) + core::mem::offset_of!(super::vmcb::Vmcb, rax),
    vmcb_cr2 = const core::mem::offset_of!(Vcpu, vmcb) + core::mem::offset_of!(super::vmcb::Vmcb, cr2),
    vmcb_rsp = const core::mem::offset_of!(Vcpu, vmcb) + core::mem::offset_of!(super::vmcb::Vmcb, rsp),
);

use core::cell::{Cell, UnsafeCell};

use x86::msr::{rdmsr, wrmsr};

use super::super::percpu;
use crate::limits::MAX_CORES;
use crate::mem::{PhysAddr, Ref};
use crate::object::tcb::{OFFSET_FPU, Tcb};
use crate::object::vcpu::Vcpu;

unsafe extern "C" {
    fn ballast_svm_enter(vcpu: *const Vcpu, guest: u64, host: u64, shadow: u64);
}

const MSR_EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const MSR_VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;
const MSR_TSC_AUX: u32 = 0xc000_0103;

/// Difference between a static's virtual and physical address.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

/// What a core needs to run guests.
#[repr(C, align(4096))]
struct CoreState {
    /// Where VMRUN keeps the host's state (VM_HSAVE_PA); its format is the processor's own.
    save: Page,
    /// VMCB that only VMSAVE and VMLOAD use for the host's hidden state.
    host: Page,
    /// XCR0 of the host; 0 = no XSAVE.
    xcr0: Cell<u64>,
    /// Number of ASIDs.
    asids: Cell<u32>,
    /// DR0..DR3 hold something other than zero.
    debug_dirty: Cell<bool>,
    /// TSC_AUX in the processor.
    tsc_aux: Cell<u64>,
    /// The processor has TSC_AUX.
    has_tsc_aux: Cell<bool>,
    /// An interrupt the guest can take at once is injected rather than left to V_IRQ.
    injects: Cell<bool>,
}

// SAFETY: each element is written by its own core only; what others read (`limits`) is written before that core first takes the
// big lock and read with the big lock held.
unsafe impl Sync for CoreState {}

static CORES: [CoreState; MAX_CORES] = [const {
    CoreState {
        save: Page(UnsafeCell::new([0; 4096])),
        host: Page(UnsafeCell::new([0; 4096])),
        xcr0: Cell::new(0),
        asids: Cell::new(0),
        debug_dirty: Cell::new(true),
        tsc_aux: Cell::new(0),
        has_tsc_aux: Cell::new(false),
        injects: Cell::new(false),
    }
}; MAX_CORES];

fn physical(page: &Page) -> u64 {
    page.0.get() as u64 - IMAGE_BASE
}

/// Switches virtualisation on for this core. Returns the number of ASIDs (0 stands for the host), 0 if the core cannot run guests.
pub fn init(core: usize) -> u32 {
    use core::arch::x86_64::__cpuid;
    if __cpuid(0x8000_0000).eax < 0x8000_000a || __cpuid(0x8000_0001).ecx & 1 << 2 == 0 {
        return 0;
    }
    let features = __cpuid(0x8000_000a);
    // Nested paging is what everything here is built on.
    if features.edx & 1 == 0 || features.ebx < 2 {
        return 0;
    }
    let state = &CORES[core];
    // SAFETY: the processor has SVM, so these MSRs exist; the save page is this core's alone.
    unsafe {
        if rdmsr(MSR_VM_CR) & VM_CR_SVMDIS != 0 {
            return 0;
        }
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
        wrmsr(MSR_VM_HSAVE_PA, physical(&state.save));
    }
    if __cpuid(1).ecx & 1 << 27 != 0 {
        state.xcr0.set(read_xcr0());
    }
    // RDTSCP stands for TSC_AUX.
    if __cpuid(0x8000_0001).edx & 1 << 27 != 0 {
        state.has_tsc_aux.set(true);
        // SAFETY: the MSR exists; the kernel does not use it.
        unsafe { wrmsr(MSR_TSC_AUX, 0) };
    }
    state.injects.set(!is_tcg());
    state.asids.set(features.ebx);
    features.ebx
}

/// Tells whether QEMU's TCG is the processor: it may deliver an injected interrupt twice (under icount), while Bochs keeps V_IRQ
/// masked until the guest's IF next changes. Real processors do both right.
fn is_tcg() -> bool {
    use core::arch::x86_64::__cpuid;
    const HYPERVISOR: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR == 0 {
        return false;
    }
    let leaf = __cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx]
        == [
            u32::from_le_bytes(*b"TCGT"),
            u32::from_le_bytes(*b"CGTC"),
            u32::from_le_bytes(*b"GTCG"),
        ]
}

/// Tells what [`init`] found on a core: number of ASIDs, bits of XCR0.
#[must_use]
pub fn limits(core: usize) -> (u32, u64) {
    CORES.get(core).map_or((0, 0), |state| (state.asids.get(), state.xcr0.get()))
}

#[inline(always)]
fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: called only where CR4.OSXSAVE is set.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn write_xcr0(value: u64) {
    // SAFETY: called only where CR4.OSXSAVE is set, with the host's value, one the guest had, or one checked when it was written.
    unsafe {
        core::arch::asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack, preserves_flags));
    }
}

/// Runs the guest of `tcb` until its next exit; tells whether that was an external interrupt, which then still waits. The caller
/// holds no lock: what this touches is the core's own and the virtual CPU, which nobody else touches while its thread is
/// current here (others stall this core first).
#[inline]
pub fn enter(core: usize, tcb: Ref<Tcb>) -> bool {
    let vcpu = Ref::<Vcpu>::at(PhysAddr(tcb.vcpu.get()));
    let state = &CORES[core];
    // The guest's FPU registers stay in the processor while its thread, which uses none, handles exits.
    let fpu = &percpu::this().fpu;
    let area = vcpu.addr().0 + Vcpu::OFFSET_FPU as u64;
    if fpu.owner() != area {
        fpu.load(area);
        fpu.block();
    }
    let host_xcr0 = state.xcr0.get();
    if vcpu.xcr0.get() != host_xcr0 && host_xcr0 != 0 {
        write_xcr0(vcpu.xcr0.get());
    }
    if vcpu.debug_live.get() || state.debug_dirty.get() {
        load_debug(state, vcpu);
    }
    if vcpu.tsc_aux.get() != state.tsc_aux.get() && state.has_tsc_aux.get() {
        state.tsc_aux.set(vcpu.tsc_aux.get());
        // SAFETY: the MSR exists and the value was checked to have 32 bits.
        unsafe { wrmsr(MSR_TSC_AUX, vcpu.tsc_aux.get()) };
    }
    if state.injects.get() {
        vcpu.inject_open_interrupt();
    }
    let shadow = vcpu.vmcb.int_state.get() & 1;
    // SAFETY: (1) `init` has enabled SVM on this core and `host` is its own page; (2) the VMCB was set up by `Vcpu::init`, whose
    // intercepts and maps user level cannot weaken; (3) its nested root was checked by `resume_guest` just before; (4) the
    // assembly keeps every callee-saved register.
    unsafe {
        ballast_svm_enter(vcpu.as_ptr(), vcpu.addr().0, physical(&state.host), shadow);
    }
    if host_xcr0 != 0 {
        // QEMU's TCG never intercepts XSETBV, so the guest may have changed it.
        let xcr0 = read_xcr0();
        if xcr0 != vcpu.xcr0.get() {
            vcpu.xcr0.set(xcr0);
        }
        if xcr0 != host_xcr0 {
            write_xcr0(host_xcr0);
        }
    }
    if vcpu.debug_live.get() {
        save_debug(vcpu);
    }
    if u64::from(tcb.flags.get()) & abi::object::TCB_FLAG_FPU_DISABLED == 0 {
        // A thread that uses these registers itself finds its own in them: slow, but as told.
        fpu.load(tcb.addr().0 + OFFSET_FPU as u64);
    }
    vcpu.settle();
    vcpu.vmcb.exitcode.get() == abi::vcpu::exit::INTR
}

#[cold]
fn load_debug(state: &CoreState, vcpu: Ref<Vcpu>) {
    let dr = &vcpu.debug;
    // SAFETY: DR7 of the host enables nothing, so any addresses do.
    unsafe {
        core::arch::asm!("mov dr0, {}", in(reg) dr[0].get(), options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov dr1, {}", in(reg) dr[1].get(), options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov dr2, {}", in(reg) dr[2].get(), options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov dr3, {}", in(reg) dr[3].get(), options(nomem, nostack, preserves_flags));
    }
    state.debug_dirty.set(vcpu.debug_live.get());
}

#[cold]
fn save_debug(vcpu: Ref<Vcpu>) {
    let dr = &vcpu.debug;
    let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
    // SAFETY: reading debug registers has no effect; DR7.GD is clear in the host.
    unsafe {
        core::arch::asm!("mov {}, dr0", out(reg) dr0, options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov {}, dr1", out(reg) dr1, options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov {}, dr2", out(reg) dr2, options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov {}, dr3", out(reg) dr3, options(nomem, nostack, preserves_flags));
    }
    for (cell, value) in dr.iter().zip([dr0, dr1, dr2, dr3]) {
        cell.set(value);
    }
}
