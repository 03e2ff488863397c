//! From source and a system description to what QEMU boots.
//!
//! Every step writes into a cache folder, beside a stamp of its inputs, and is skipped while the
//! stamp holds. Nothing here needs to be root: file systems are filled without mounting them.
#![forbid(unsafe_code)]

pub mod boot_module;
pub mod cache;
pub mod command;
pub mod cpio;
pub mod disk;
pub mod elf;
pub mod guest;
pub mod iso;
pub mod target;
mod tsc;

pub use command::Error;
