//! What the bare-metal guests share: instructions that have no safe form, fault handling, and a driver for virtio.
//!
//! Entry from the loader (`boot.s`) and link script (`guest.ld`) are in this folder too; each guest takes them in.
#![no_std]

pub mod hardware;
pub mod virtio;
