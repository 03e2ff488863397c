//! First instructions of a server and of the root-task.
// UNSAFETY: registers the IPC buffer by its address, reads the start-up page, names the entry symbol.
#![expect(unsafe_code, reason = "the entry contract is made of addresses")]

use core::sync::atomic::{AtomicBool, Ordering};

use protocol::startup::{self, IPC_BUFFER_VADDR, STARTUP_VADDR, Startup};
use sel4::{BootInfo, BootInfoPtr};

/// Names `$main` (`fn(Startup) -> !`) as the server's main function and defines the entry symbol.
#[macro_export]
macro_rules! server {
    ($main:path) => {
        // SAFETY: one symbol of this name per image, the linker's entry; the root-task starts it with a stack.
        #[unsafe(no_mangle)]
        extern "C" fn _start() -> ! {
            $crate::entry::start_server($main)
        }
    };
}

/// Names `$main` (`fn(BootInfoPtr) -> !`) as the root-task's main function, on a stack of `$stack` bytes.
#[macro_export]
macro_rules! root_task {
    ($main:ident, $stack:expr) => {
        mod root_task_entry {
            #[repr(C, align(4096))]
            struct Stack(core::cell::UnsafeCell<[u8; $stack]>);
            // SAFETY: never accessed as a Rust object; it only lends its memory to the stack pointer.
            unsafe impl Sync for Stack {}
            static STACK: Stack = Stack(core::cell::UnsafeCell::new([0; $stack]));

            extern "C" fn start(boot: *const sel4::BootInfo) -> ! {
                // SAFETY: called once, by the instructions below, with the register the kernel set.
                unsafe { $crate::entry::start_root_task(boot, super::$main) }
            }

            core::arch::global_asm!(
                ".pushsection .text._start, \"ax\"",
                ".global _start",
                "_start:",
                "lea rsp, [{stack} + {size}]",
                "xor ebp, ebp",
                "call {start}",
                "ud2",
                ".popsection",
                stack = sym STACK,
                size = const $stack,
                start = sym start,
            );
        }
    };
}

/// Sets up what a server needs and calls `main`. Called by [`server!`] alone.
///
/// # Panics
///
/// If the start-up page is damaged: the root-task's mistake.
pub fn start_server(main: fn(Startup) -> !) -> ! {
    register_server_ipc_buffer();
    // SAFETY: the root-task maps this page read-only for the life of the server before its first instruction.
    let page = unsafe { core::slice::from_raw_parts(STARTUP_VADDR as *const u8, 4096) };
    let Ok(startup) = startup::decode(page) else { unreachable!("start-up page is damaged") };
    crate::clock::set_tsc_mhz(startup.tsc_mhz);
    #[cfg(feature = "heap")]
    crate::heap::set_size(startup.heap_bytes);
    crate::logger::set_page(crate::shared::log_page());
    main(startup)
}

static IS_ROOT_TASK: AtomicBool = AtomicBool::new(false);

/// Whether this program was started as the root-task.
pub fn is_root_task() -> bool {
    IS_ROOT_TASK.load(Ordering::Relaxed)
}

/// Makes the IPC buffer usable again, whoever had it: for the entry and the panic handler.
pub(crate) fn register_server_ipc_buffer() {
    // SAFETY: 1. the root-task maps and registers the buffer at this address for every server; 2. each server is one
    // thread, and the address lies outside every Rust object.
    unsafe { sel4::set_ipc_buffer(IPC_BUFFER_VADDR as *mut abi::IpcBuffer) };
}

/// Sets up what the root-task needs and calls `main`. Called by [`root_task!`] alone.
///
/// # Safety
///
/// `boot` is the address the kernel passed to this initial thread.
pub unsafe fn start_root_task(boot: *const BootInfo, main: fn(BootInfoPtr) -> !) -> ! {
    IS_ROOT_TASK.store(true, Ordering::Relaxed);
    // SAFETY: by this function's contract; the BootInfo pages stay mapped for the life of the system.
    let boot = unsafe { BootInfoPtr::new(boot) };
    // SAFETY: 1. the kernel says so in BootInfo; 2. the initial thread is the only user, outside every Rust object.
    unsafe { sel4::set_ipc_buffer(boot.ipc_buffer() as *mut abi::IpcBuffer) };
    crate::clock::set_tsc_mhz(boot.tsc_mhz().unwrap_or(1000));
    main(boot)
}
