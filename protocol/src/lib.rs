//! Every IPC interface, the management link and the configuration: one file per interface.
//!
//! Nothing here does I/O or uses `unsafe`. Whatever crosses a trust boundary is decoded here and
//! nowhere else, into types whose invalid values cannot be made.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod archive;
pub mod dmclock;
pub mod interface;
pub mod io;
pub mod link;
pub mod mem;
pub mod parts;
pub mod progress;
pub mod ring;
pub mod root;
pub mod slots;
pub mod startup;
pub mod stripe;
pub mod system;
pub mod units;
