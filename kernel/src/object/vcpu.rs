//! Virtual CPU: its memory, and what happens at its entry and exit.
//!
//! The convention is `abi::vcpu`. A thread inside VMEnter is in state `RunningVm`: runnable, switched like any other, its guest's
//! state in this object. What the thread is told, it is told by [`Vcpu::publish`]; until then its own registers wait untouched.
//!
//! Interrupts: a virtual interrupt is V_IRQ, which respects IF and the shadow by itself; on QEMU's TCG never EVENTINJ, because under
//! icount it may deliver an injected INTR twice. An interrupt whose delivery a nested page fault cut short is made pending again.

use core::cell::Cell;

use abi::MessageInfo;
use abi::message::buffer_word::MSG;
use abi::vcpu::{RETURN_EXIT, RETURN_NOTIFICATION, control, event, exit, ioio, word};

use super::tcb::Tcb;
use crate::arch::x86_64::svm::asid::AsidTag;
use crate::arch::x86_64::svm::intercept::{self, FORCED_MISC1, IOPM_WORDS, MSRPM_WORDS};
use crate::arch::x86_64::svm::state::compose_int_ctl;
use crate::arch::x86_64::svm::vmcb::{
    ATTRIBUTE_LONG, CS, DS, EFER_LMA, ES, RFLAGS_IF, SS, Vmcb, int_ctl,
};
use crate::limits::FPU_BYTES;
use crate::mem::{PhysAddr, Ref};

/// Virtual CPU, 32 KiB. The processor reads and writes the first 24 KiB.
#[repr(C, align(4096))]
pub struct Vcpu {
    /// The control block.
    pub vmcb: Vmcb,
    /// MSR permission map: a set bit exits.
    pub msrpm: [Cell<u64>; MSRPM_WORDS],
    /// I/O permission map: a set bit exits.
    pub iopm: [Cell<u64>; IOPM_WORDS],
    /// XSAVE area of the guest.
    pub fpu: [Cell<u64>; FPU_BYTES / 8],
    /// General registers in encoding order; the way in and out moves RAX and RSP to and from the VMCB.
    pub gprs: [Cell<u64>; 16],
    /// DR0 to DR3; all zero unless `debug_live`.
    pub debug: [Cell<u64>; 4],
    /// XCR0.
    pub xcr0: Cell<u64>,
    /// TSC_AUX.
    pub tsc_aux: Cell<u64>,
    /// Exits so far.
    pub exits: Cell<u64>,
    /// Thread it is bound to.
    pub tcb: Cell<Option<Ref<Tcb>>>,
    /// Nested root; meaningful unless `root_asid` is 0.
    pub root: Cell<PhysAddr>,
    /// Count of root assignments when the root got its ASID: tells a new root at the same place from the old one.
    pub root_birth: Cell<u64>,
    /// State of the kernel's count of deleted roots when the root was last known to exist.
    pub roots_seen: Cell<u64>,
    /// Word 0 of the buffer capability and the buffer's address in the thread's space when `words` was found; 0 = never.
    pub words_key: [Cell<u64>; 2],
    /// Where the exit words go.
    pub words: Cell<Option<ExitWords>>,
    /// ASID and epoch of the last entry.
    pub tag: AsidTag,
    /// Kernel ASID of the nested root, 0 = none.
    pub root_asid: Cell<u16>,
    /// DR0 to DR3 are the guest's and not all zero.
    pub debug_live: Cell<bool>,
    /// Intercepts asked for, 60h on, without the windows.
    pub intercept_misc1: Cell<u32>,
    /// DR intercepts asked for.
    pub intercept_dr: Cell<u32>,
    /// Exception intercepts asked for.
    pub intercept_exceptions: Cell<u32>,
    _padding: [Cell<u64>; RESERVED_WORDS],
}

const USED_BYTES: usize = 0x6000 + FPU_BYTES + 8 * 16 + 8 * 4 + 8 * 10 + 24 + 16;
const RESERVED_WORDS: usize = ((1 << abi::object::VCPU_BITS) - USED_BYTES) / 8;

const _: () = {
    assert!(size_of::<Vcpu>() == 1 << abi::object::VCPU_BITS);
    assert!(core::mem::offset_of!(Vcpu, msrpm) == 0x1000);
    assert!(core::mem::offset_of!(Vcpu, iopm) == 0x3000);
    assert!(Vcpu::OFFSET_FPU.is_multiple_of(64));
};

/// Vector of #AC, whose frame has an error code.
const ALIGNMENT_CHECK: u64 = 17;
/// DR0 to DR3 writes: intercepted until the guest's first one.
const DEBUG_WRITES: u32 = 0xf << 16;
/// Words of a message information that VMEnter returns with an exit.
const EXIT_INFO: u64 = MessageInfo::new(RETURN_EXIT, 0, 0, word::COUNT as u64).0;
const NOTIFICATION_INFO: u64 = MessageInfo::new(RETURN_NOTIFICATION, 0, 0, 3).0;

/// A thread's IPC buffer as an array of words: one address, then plain loads and stores.
pub type ExitWords = Ref<[Cell<u64>; 128]>;

/// What to do after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Enter again: the kernel has dealt with it.
    Again,
    /// The thread must know.
    Publish,
}

impl Vcpu {
    /// Byte offset of the XSAVE area.
    pub const OFFSET_FPU: usize = core::mem::offset_of!(Vcpu, fpu);

    /// Turns zeroed memory at physical address `base` into a virtual CPU as after RESET.
    pub fn init(&self, base: u64) {
        let vmcb = &self.vmcb;
        vmcb.reset();
        vmcb.msrpm_base_pa.set(base + core::mem::offset_of!(Self, msrpm) as u64);
        vmcb.iopm_base_pa.set(base + core::mem::offset_of!(Self, iopm) as u64);
        for cell in self.msrpm.iter().chain(&self.iopm) {
            cell.set(u64::MAX);
        }
        // FCW and MXCSR as after FNINIT; XSTATE_BV = 0 makes XRSTOR initialise the rest.
        self.fpu[0].set(0x37f);
        self.fpu[3].set(0x1f80);
        self.xcr0.set(1);
        self.intercept_misc1.set(FORCED_MISC1);
        self.set_intercept_exceptions(0);
        vmcb.intercept_dr.set(DEBUG_WRITES);
    }
}

impl Vcpu {
    /// Takes the control word of VMEnter.
    #[inline(always)]
    pub fn set_control(&self, word: u64) {
        let vmcb = &self.vmcb;
        vmcb.int_ctl.set(compose_int_ctl(word));
        vmcb.int_state.set((word & control::SHADOW) >> 10);
        // VINTR is bit 4 of its word, IRET bit 20.
        let windows = (word & control::WINDOW) >> 5 | (word & control::IRET_WINDOW) << 9;
        vmcb.intercept_misc1.set(self.intercept_misc1.get() | windows as u32);
    }

    /// Composes the control word of a return.
    #[inline(always)]
    #[must_use]
    pub fn status(&self) -> u64 {
        let vmcb = &self.vmcb;
        let int_ctl = vmcb.int_ctl.get();
        let misc1 = u64::from(vmcb.intercept_misc1.get());
        let mut word = int_ctl & int_ctl::V_IRQ
            | int_ctl >> int_ctl::V_INTR_VECTOR_SHIFT & control::VECTOR
            | (vmcb.int_state.get() & 1) << 10
            | (vmcb.rflags.get() & RFLAGS_IF) << 3
            | (int_ctl & 0xf) << control::TPR_SHIFT
            | u64::from(vmcb.cpl.get()) << control::CPL_SHIFT;
        if misc1 & 1 << 4 != 0 {
            // The pending interrupt is only the window's bait.
            word = word & !control::V_IRQ | (word & control::V_IRQ) << 1;
        }
        if misc1 & 1 << 20 != 0 && self.intercept_misc1.get() & 1 << 20 == 0 {
            word |= control::IRET_WINDOW;
        }
        if vmcb.efer.get() & EFER_LMA != 0 && vmcb.segments[CS].attributes() & ATTRIBUTE_LONG != 0 {
            word |= control::LONG;
        }
        word
    }

    /// Event to deliver at the next entry, or 0.
    #[inline(always)]
    #[must_use]
    pub fn pending_event(&self) -> u64 {
        let event = self.vmcb.eventinj.get();
        if event & event::VALID == 0 { 0 } else { event }
    }

    /// Takes an event from user level: only what EVENTINJ is for.
    #[inline(always)]
    pub fn set_event(&self, event: u64) {
        let kind = event & event::TYPE_MASK;
        let sound = event & event::VALID != 0
            && (kind == event::TYPE_EXCEPTION && event & event::VECTOR < 32
                || kind == event::TYPE_NMI
                || kind == event::TYPE_SOFT);
        self.vmcb.eventinj.set(if sound { event } else { 0 });
    }

    /// After an exit: makes an event whose delivery was cut short pending again. Must run once per exit.
    #[inline(always)]
    pub fn settle(&self) {
        let vmcb = &self.vmcb;
        self.exits.set(self.exits.get().wrapping_add(1));
        vmcb.eventinj.set(0);
        let event = vmcb.exitintinfo.get();
        if event & event::VALID != 0 {
            self.requeue(event);
        }
    }

    #[cold]
    #[inline(never)]
    fn requeue(&self, event: u64) {
        let vmcb = &self.vmcb;
        vmcb.exitintinfo.set(0);
        let vector = event & event::VECTOR;
        let mut kind = event & event::TYPE_MASK;
        if kind == event::TYPE_EXCEPTION && vector >= 32 {
            // QEMU's TCG calls an interrupt that came from V_IRQ an exception.
            kind = event::TYPE_INTR;
        }
        match kind {
            event::TYPE_INTR => {
                // It came from V_IRQ and IF was set, so V_IRQ brings it again.
                let int_ctl =
                    vmcb.int_ctl.get() & (int_ctl::V_INTR_MASKING | int_ctl::V_IGN_TPR | 0xf);
                let vector = vector << int_ctl::V_INTR_VECTOR_SHIFT;
                vmcb.int_ctl.set(int_ctl | int_ctl::V_IRQ | vector);
            }
            // INTn, INT3 and INTO run again: RIP still names them.
            event::TYPE_SOFT => {}
            event::TYPE_EXCEPTION if vector == 3 || vector == 4 => {}
            _ => vmcb.eventinj.set(event),
        }
    }

    /// Turns a waiting virtual interrupt into an injected one where the guest can take it at once. Cut short, it waits again
    /// (see [`Vcpu::settle`]), so nothing outside can tell the difference.
    pub fn inject_open_interrupt(&self) {
        let vmcb = &self.vmcb;
        let int_ctl = vmcb.int_ctl.get();
        let is_window = vmcb.intercept_misc1.get() & intercept::VINTR != 0;
        let is_open = vmcb.rflags.get() & RFLAGS_IF != 0 && vmcb.int_state.get() & 1 == 0;
        if int_ctl & int_ctl::V_IRQ != 0 && is_open && !is_window && self.pending_event() == 0 {
            let vector = int_ctl >> int_ctl::V_INTR_VECTOR_SHIFT & event::VECTOR;
            vmcb.eventinj.set(event::VALID | event::TYPE_INTR | vector);
            vmcb.int_ctl.set(int_ctl & !int_ctl::V_IRQ);
        }
    }

    /// From now on DR0 to DR3 are the guest's own and are switched.
    pub fn own_debug_registers(&self) {
        self.debug_live.set(true);
        self.vmcb.intercept_dr.set(self.intercept_dr.get());
    }

    /// Takes the DR intercepts user level asks for.
    pub fn set_intercept_dr(&self, bits: u32) {
        self.intercept_dr.set(bits);
        let forced = if self.debug_live.get() { 0 } else { DEBUG_WRITES };
        self.vmcb.intercept_dr.set(bits | forced);
    }

    /// Takes the exception intercepts user level asks for.
    pub fn set_intercept_exceptions(&self, bits: u32) {
        self.intercept_exceptions.set(bits);
        self.vmcb.intercept_exceptions.set(bits | intercept::FORCED_EXCEPTIONS);
    }

    /// Delivers an exception that only the kernel intercepts. What it interrupted, if anything, was a fault (no interrupt
    /// or NMI is delivered where these can arise) and comes again when its instruction runs again.
    #[cold]
    fn reflect(&self, code: u64) {
        let vector = code - exit::EXCEPTION;
        let error = if vector == ALIGNMENT_CHECK {
            event::ERROR_VALID | self.vmcb.exitinfo1.get() << event::ERROR_SHIFT
        } else {
            0
        };
        self.vmcb.eventinj.set(event::VALID | event::TYPE_EXCEPTION | vector | error);
    }

    /// Deals with the exits that are the kernel's own.
    #[inline(always)]
    pub fn classify(&self) -> Exit {
        let code = self.vmcb.exitcode.get();
        if code >= exit::CPUID {
            return Exit::Publish;
        }
        self.classify_rare(code)
    }

    fn classify_rare(&self, code: u64) -> Exit {
        match code {
            exit::INTR | exit::NMI | exit::SMI | exit::INIT => Exit::Again,
            0x30..=0x33 if self.intercept_dr.get() >> (code - 0x20) & 1 == 0 => {
                self.own_debug_registers();
                Exit::Again
            }
            0x41 | 0x51 if self.intercept_exceptions.get() >> (code - exit::EXCEPTION) & 1 == 0 => {
                self.reflect(code);
                Exit::Again
            }
            exit::VINTR => {
                // The window is open: take the bait away.
                let vmcb = &self.vmcb;
                vmcb.int_ctl.set(vmcb.int_ctl.get() & !int_ctl::V_IRQ);
                vmcb.intercept_misc1.set(vmcb.intercept_misc1.get() & !(1 << 4));
                Exit::Publish
            }
            _ => Exit::Publish,
        }
    }

    /// Takes the arguments of VMEnter from the thread's registers and IPC buffer.
    #[inline(always)]
    pub fn absorb(&self, tcb: Ref<Tcb>, buffer: impl FnOnce() -> Option<ExitWords>) {
        let word = tcb.mr(1);
        self.vmcb.rip.set(tcb.mr(0));
        self.set_control(word);
        self.set_event(tcb.mr(2));
        if word & (control::GPR_MASK | control::SET_RFLAGS) != 0
            && let Some(buffer) = buffer()
        {
            self.absorb_words(word, buffer);
        }
    }

    #[inline(always)]
    fn absorb_words(&self, word: u64, buffer: ExitWords) {
        let mut registers = word >> control::GPR_SHIFT & 0xffff;
        while registers != 0 {
            let number = registers.trailing_zeros() as usize & 15;
            registers &= registers - 1;
            self.gprs[number].set(buffer[MSG + word::GPR + number].get());
        }
        if word & control::SET_RFLAGS != 0 {
            let value = buffer[MSG + word::RFLAGS].get();
            self.vmcb.rflags.set(value & 0x003f_7fd5 | 2);
        }
    }

    /// Tells the thread where its guest stands: MR0 to MR2 and label 0.
    #[inline]
    pub fn publish_notification(&self, tcb: Ref<Tcb>, badge: u64) {
        tcb.set_mr(0, self.vmcb.rip.get());
        tcb.set_mr(1, self.status());
        tcb.set_mr(2, self.pending_event());
        tcb.set_reg(abi::syscall::register::BADGE, badge);
        tcb.set_reg(abi::syscall::register::MESSAGE_INFO, NOTIFICATION_INFO);
    }

    /// Tells the thread about an exit: registers and IPC buffer.
    #[inline]
    pub fn publish_exit(&self, tcb: Ref<Tcb>, buffer: Option<ExitWords>) {
        self.publish_code(tcb, buffer, self.vmcb.exitcode.get());
    }

    /// Tells the thread that the guest cannot run.
    #[cold]
    pub fn publish_invalid(&self, tcb: Ref<Tcb>, buffer: Option<ExitWords>) {
        self.publish_code(tcb, buffer, exit::INVALID);
    }

    #[inline(always)]
    fn publish_code(&self, tcb: Ref<Tcb>, buffer: Option<ExitWords>, code: u64) {
        let vmcb = &self.vmcb;
        let mut status = self.status();
        // QEMU's TCG reports a failed VMRUN with 32 bits only.
        let code = if code == 0xffff_ffff { exit::INVALID } else { code };
        if let Some(buffer) = buffer {
            let put = |number: usize, value: u64| buffer[MSG + number].set(value);
            put(word::EXITINFO1, vmcb.exitinfo1.get());
            put(word::EXITINFO2, vmcb.exitinfo2.get());
            put(word::RFLAGS, vmcb.rflags.get());
            put(word::CS_BASE, vmcb.segments[CS].base.get());
            put(word::CR3, vmcb.cr3.get());
            put(word::GPR, self.gprs[0].get());
            put(word::GPR + 1, self.gprs[1].get());
            put(word::GPR + 2, self.gprs[2].get());
            put(word::GPR + 3, self.gprs[3].get());
            put(word::GPR + 4, self.gprs[4].get());
            put(word::GPR + 5, self.gprs[5].get());
            put(word::GPR + 6, self.gprs[6].get());
            put(word::GPR + 7, self.gprs[7].get());
            put(word::GPR + 8, self.gprs[8].get());
            put(word::GPR + 9, self.gprs[9].get());
            put(word::GPR + 10, self.gprs[10].get());
            put(word::GPR + 11, self.gprs[11].get());
            put(word::GPR + 12, self.gprs[12].get());
            put(word::GPR + 13, self.gprs[13].get());
            put(word::GPR + 14, self.gprs[14].get());
            put(word::GPR + 15, self.gprs[15].get());
            // The hot exits carry all they need; the others may need an instruction decoder.
            let hot = (exit::CPUID..=exit::XSETBV).contains(&code)
                && code != exit::INVLPG
                && code != exit::SHUTDOWN
                && (code != exit::IOIO || vmcb.exitinfo1.get() & ioio::STRING == 0);
            if !hot {
                self.put_decode_words(buffer);
                status |= control::DECODE_WORDS;
            }
        }
        tcb.set_mr(0, vmcb.rip.get());
        tcb.set_mr(1, status);
        tcb.set_mr(2, self.pending_event());
        tcb.set_mr(3, code);
        tcb.set_reg(abi::syscall::register::BADGE, 0);
        tcb.set_reg(abi::syscall::register::MESSAGE_INFO, EXIT_INFO);
    }

    fn put_decode_words(&self, buffer: ExitWords) {
        let vmcb = &self.vmcb;
        let segments = &vmcb.segments;
        let values = [
            (word::CR0, vmcb.cr0.get()),
            (word::CR4, vmcb.cr4.get()),
            (word::EFER, vmcb.efer.get() & !crate::arch::x86_64::svm::vmcb::EFER_SVME),
            (word::CS, segments[CS].descriptor.get()),
            (word::DS_BASE, segments[DS].base.get()),
            (word::ES_BASE, segments[ES].base.get()),
            (word::SS, segments[SS].descriptor.get()),
            (word::SS_BASE, segments[SS].base.get()),
        ];
        for (number, value) in values {
            buffer[MSG + number].set(value);
        }
    }
}
