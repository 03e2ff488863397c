//! Owner of all guest memory: admission, page states, backing, balloon.
//!
//! The library holds every decision and runs on the host; kernel calls are behind
//! [`spaces::Kernel`], the whole machine behind [`mechanism::Mechanism`].
#![cfg_attr(not(any(test, feature = "model")), no_std)]
#![forbid(unsafe_code)]

pub mod admission;
pub mod background;
mod compact;
pub mod decisions;
mod faults;
mod figures;
pub mod hash;
pub mod large;
pub mod ledger;
mod lifecycle;
pub mod mechanism;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod orders;
pub mod page;
pub mod paging;
pub mod policy;
pub mod random;
pub mod reclaim;
pub mod server;
pub mod share;
pub mod sharing;
pub mod spaces;
mod spill;
mod starting;
pub mod swap;
pub mod swap_map;
pub mod tier;
mod working_set;
