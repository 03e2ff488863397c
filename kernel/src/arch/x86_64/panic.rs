//! Last words: what happened, registers, return addresses; then the end of the run.
//!
//! The host turns the addresses into names with the kernel's ELF file. They are found by frame pointers.
//!
//! UNSAFETY: reads stack frames.
#![expect(unsafe_code, reason = "walks stack frames")]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{apic, console, paging, trap};
use crate::arch::x86_64::layout::KERNEL_BASE;
use crate::kprintln;

/// Frames printed at most.
const MAX_FRAMES: usize = 32;

static PANICKED: AtomicBool = AtomicBool::new(false);

/// Reports a panic of the kernel and ends the run.
pub fn report(info: &PanicInfo<'_>) -> ! {
    begin();
    kprintln!("kernel {info}");
    let frame: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    backtrace(frame);
    end()
}

/// What the processor pushed.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ExceptionFrame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Reports an exception that the kernel itself caused, and ends the run.
#[unsafe(no_mangle)]
extern "C" fn exception_in_kernel(vector: u64, error: u64, frame: &ExceptionFrame, rbp: u64) -> ! {
    begin();
    // SAFETY: CR2 is readable at any time.
    let cr2 = unsafe { x86::controlregs::cr2() };
    kprintln!(
        "kernel panicked: exception {vector} (error {error:#x}) at {:#018x}, rsp {:#018x}, flags {:#x}, cr2 {cr2:#018x}",
        frame.rip,
        frame.rsp,
        frame.rflags
    );
    kprintln!("backtrace:");
    kprintln!("  {:#018x}", frame.rip);
    backtrace(rbp);
    end()
}

fn begin() {
    if PANICKED.swap(true, Ordering::SeqCst) {
        // A panic within a panic, or on another core: the first one's report counts.
        console::halt();
    }
    trap::stop_on_nmi();
    apic::stop_others();
}

fn end() -> ! {
    console::exit(console::ExitCode::Panic)
}

fn backtrace(mut frame: u64) {
    let (start, end) = paging::image();
    let (start, end) = (start + KERNEL_BASE, end + KERNEL_BASE);
    kprintln!("backtrace:");
    for _ in 0..MAX_FRAMES {
        if !frame.is_multiple_of(8) || !(start..end - 16).contains(&frame) {
            return;
        }
        // SAFETY: within the kernel image, so mapped unless it is a guard page, which no frame pointer points to.
        let (next, address) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if address == 0 {
            return;
        }
        kprintln!("  {address:#018x}");
        if next <= frame {
            return;
        }
        frame = next;
    }
}
