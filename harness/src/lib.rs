//! The IPC harness: whole servers driven through their messages on the host, and the experiments built on it.
//!
//! Everything runs on virtual time from a seed: two runs are byte-identical.
#![forbid(unsafe_code)]

pub mod experiment;
pub mod io;
pub mod mem;
pub mod p2;
pub mod p4;
pub mod plot;
pub mod rng;
