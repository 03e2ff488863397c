//! One virtual machine: boot, device models, instruction emulation, exits.
//!
//! Everything a guest can write is hostile. A model never panics on it, never loops longer than the guest's
//! own request allows, and touches guest memory only through [`guest_memory::GuestMemory`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "model"))]
extern crate alloc;

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod device;
pub mod emulate;
#[cfg(any(test, feature = "model"))]
pub mod fuzz;
pub mod guest_memory;
mod io;
mod length;
mod mmio;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod msr;
pub mod pci;
pub mod time;
pub mod virtio;
pub mod vmm;
