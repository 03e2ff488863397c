//! The kernel image: the library, the boot stub it carries, and the panic handler.
#![no_std]
#![no_main]

// The boot stub in the library enters at `start32`; this crate only has to be linked with it.
use kernel as _;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    kernel::arch::x86_64::panic::report(info)
}
