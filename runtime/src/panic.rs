//! How a server ends itself: it tells the root-task why, then faults on purpose. Panics end so.
// UNSAFETY: the UD2 instruction.
#![expect(unsafe_code, reason = "ends the server by an invalid instruction")]

use core::fmt::{Display, Write as _};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use protocol::root::{RootRequest, Text};

static IS_PANICKING: AtomicBool = AtomicBool::new(false);

/// Appends what fits.
struct Cut<'a>(&'a mut Text);

impl core::fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for character in text.chars() {
            let _ = self.0.push(character);
        }
        Ok(())
    }
}

/// The root-task has nobody to tell; everyone else tells it.
fn tell_root(why: &impl Display) {
    if crate::entry::is_root_task() {
        return;
    }
    crate::entry::register_server_ipc_buffer();
    let mut message = Text::new();
    let _ = write!(Cut(&mut message), "{why}");
    let _ = crate::serve::ask_root(&RootRequest::Panicked { message });
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if !IS_PANICKING.swap(true, Ordering::Relaxed) {
        sel4::debug_println!("{info}");
        tell_root(info);
    }
    fault()
}

/// Ends this server because only another one in its place can go on; the user reads `why`.
pub fn give_up(why: &str) -> ! {
    tell_root(&why);
    fault()
}

fn fault() -> ! {
    // SAFETY: does not return; the fault goes to this thread's handler, the root-task.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}
