//! What every server links: entry, panic, heap, logger, clock, messages, shared memory.
//!
//! A server's `main.rs` says `runtime::server!(main);` with `fn main(startup: Startup) -> !`, the
//! root-task `runtime::root_task!(main, STACK_BYTES);` with `fn main(boot: BootInfoPtr) -> !`. Both
//! are linked with `runtime/server.ld` and defmt's `defmt.x`; the package's build script includes `runtime/link.rs`, which
//! tells the linker.
//! Logging is `defmt::info!` and its siblings; frames go to the server's log page.
#![cfg_attr(not(test), no_std)]

pub mod clock;
pub mod entry;
#[cfg(feature = "heap")]
pub mod heap;
pub mod logger;
pub mod message;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
pub use panic::give_up;
pub mod serve;
pub mod shared;
