//! Owner of the disks: decides which client's request the device gets next, and keeps the books.
//!
//! Everything is a value driven by [`server::Server::step`]; the edge (`main.rs`) carries events in and actions out.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cost;
pub mod delay;
pub mod depth;
pub mod device;
pub mod dispatch;
pub mod gpt;
pub mod heap;
pub mod histogram;
pub mod model;
pub mod peers;
pub mod sched;
pub mod server;
