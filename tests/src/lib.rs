//! Tools for tests that boot QEMU and act as a user or as a guest would.
#![forbid(unsafe_code)]

pub mod guest;
pub mod runner;
