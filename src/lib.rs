//! The host command: builds, boots, watches and tests a Ballast system.
//!
//! `ballast run` owns QEMU and the management link; every other verb talks to it through a socket
//! in the run folder (`session`), in the link's own language. Nothing here knows a kernel type.
#![forbid(unsafe_code)]

// First, so that its macros hold in all others.
#[macro_use]
pub mod out;

pub mod bench;
pub mod cli;
pub mod client;
pub mod config;
pub mod console;
pub mod decode;
pub mod doctor;
pub mod error;
pub mod image;
pub mod machine;
pub mod openmetrics;
pub mod report;
pub mod reproduce;
pub mod session;
mod settings;
pub mod suite;
pub mod symbols;
#[cfg(test)]
mod tidy;
pub mod timeline;

pub use error::Error;

/// Folder of the programs built for the target.
pub const PROGRAMS: &str = env!("BALLAST_PROGRAMS");
/// Root of the workspace.
pub const WORKSPACE: &str = env!("BALLAST_WORKSPACE");
