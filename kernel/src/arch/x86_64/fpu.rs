//! Whose floating-point state is in the registers.
//!
//! The registers are loaded when a thread that may use them is switched to and is not their owner, and saved when their next owner
//! (a thread or a guest) comes. While a thread runs that may not use them, CR0.TS makes every use an exception.
//!
//! UNSAFETY: control registers and the XSAVE instructions.
#![expect(unsafe_code, reason = "XSAVE, CR0, XCR0")]

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::mem::window::WINDOW_BASE;

/// State components kept for threads: x87, SSE, AVX. What the processor lacks is taken out at start.
pub const COMPONENTS: u64 = 7;

const CR0_TS: u64 = 1 << 3;

/// A core's view of its registers.
pub struct State {
    /// Physical address of the area the registers belong to; 0 = nobody's. Other cores look at it.
    owner: AtomicU64,
    /// Components saved and restored; 0 = no XSAVE, FXSAVE instead.
    mask: Cell<u64>,
    /// CR0 without TS.
    cr0: Cell<u64>,
    /// 0: CR0.TS is set and both segment bases are 0, so that switching between threads that use neither needs nothing.
    live: Cell<u64>,
}

/// Byte offset of `State::live`: 0 there means quiet.
pub const OFFSET_LIVE: usize = core::mem::offset_of!(State, live);

/// Bits of `State::live`.
const LIVE_FPU: u64 = 1;
const LIVE_BASES: u64 = 2;

impl State {
    /// The state before [`init`](Self::init).
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a constant for statics")]
    pub const fn new() -> Self {
        Self { owner: AtomicU64::new(0), mask: Cell::new(0), cr0: Cell::new(0), live: Cell::new(0) }
    }

    /// Takes over the registers of this core; `mask` = components in XCR0, 0 without XSAVE.
    pub fn init(&self, mask: u64, cr0: u64) {
        self.mask.set(mask);
        self.cr0.set(cr0 & !CR0_TS);
        self.owner.store(0, Ordering::Release);
        self.live.set(LIVE_FPU);
        self.block();
    }

    /// Tells whether a segment base other than 0 is loaded.
    #[inline]
    #[must_use]
    pub fn has_bases(&self) -> bool {
        self.live.get() & LIVE_BASES != 0
    }

    /// Notes whether a segment base other than 0 is loaded.
    pub fn note_bases(&self, any: bool) {
        let fpu = self.live.get() & LIVE_FPU;
        self.live.set(if any { fpu | LIVE_BASES } else { fpu });
    }

    /// Area the registers belong to.
    #[inline(always)]
    #[must_use]
    pub fn owner(&self) -> u64 {
        self.owner.load(Ordering::Acquire)
    }

    /// Lets code use the registers, with the state kept at physical address `area` in them.
    #[inline(always)]
    pub fn load(&self, area: u64) {
        self.unblock();
        if self.owner() != area {
            self.swap(area);
        }
    }

    /// Makes any use of the registers an exception; their contents stay.
    #[inline(always)]
    pub fn block(&self) {
        if self.live.get() & LIVE_FPU != 0 {
            self.live.set(self.live.get() & !LIVE_FPU);
            // SAFETY: setting TS has no effect on the kernel, which uses no such registers.
            unsafe {
                core::arch::asm!("mov cr0, {}", in(reg) self.cr0.get() | CR0_TS, options(nostack, preserves_flags));
            }
        }
    }

    #[inline(always)]
    fn unblock(&self) {
        if self.live.get() & LIVE_FPU == 0 {
            self.live.set(self.live.get() | LIVE_FPU);
            // SAFETY: clearing TS is what makes the XSAVE instructions usable.
            unsafe { core::arch::asm!("clts", options(nostack, preserves_flags)) };
        }
    }

    /// Writes the registers back to their owner and makes them nobody's, if `area` is the owner.
    pub fn release(&self, area: u64) {
        if self.owner() == area && area != 0 {
            let blocked = self.live.get() & LIVE_FPU == 0;
            self.unblock();
            self.save(area);
            self.owner.store(0, Ordering::Release);
            if blocked {
                self.block();
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn swap(&self, area: u64) {
        let old = self.owner();
        if old != 0 {
            self.save(old);
        }
        let pointer = (WINDOW_BASE + area) as *const u8;
        let mask = self.mask.get();
        // SAFETY: (1) the area was initialised by `init_area` and only written by the saving instructions since, so it is well formed;
        // (2) it is 64-byte aligned, as TCBs and guest areas are; (3) TS is clear.
        unsafe {
            if mask == 0 {
                core::arch::asm!("fxrstor64 [{}]", in(reg) pointer, options(nostack, preserves_flags));
            } else {
                core::arch::asm!("xrstor64 [{}]", in(reg) pointer, in("eax") mask as u32, in("edx") 0, options(nostack, preserves_flags));
            }
        }
        self.owner.store(area, Ordering::Release);
    }

    fn save(&self, area: u64) {
        let pointer = (WINDOW_BASE + area) as *mut u8;
        let mask = self.mask.get();
        // SAFETY: the area belongs to a live object (owners are released before they are deleted), is large enough for all components
        // and 64-byte aligned; TS is clear.
        unsafe {
            if mask == 0 {
                core::arch::asm!("fxsave64 [{}]", in(reg) pointer, options(nostack, preserves_flags));
            } else {
                core::arch::asm!("xsave64 [{}]", in(reg) pointer, in("eax") mask as u32, in("edx") 0, options(nostack, preserves_flags));
            }
        }
    }
}

/// Initial state: control words as after FNINIT and with all SSE exceptions masked, everything else zero.
pub fn init_area(area: u64) {
    let pointer = (WINDOW_BASE + area) as *mut u8;
    // SAFETY: the caller's object has 832 bytes there and nobody uses them yet.
    unsafe {
        pointer.write_bytes(0, crate::limits::FPU_BYTES);
        pointer.cast::<u16>().write(0x37f);
        pointer.add(24).cast::<u32>().write(0x1f80);
    }
}
