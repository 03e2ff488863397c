//! Numbers and layouts shared by kernel and user level; no logic.
//!
//! Everything below the extension marks (labels 128, object types 32, system calls -64) is seL4's MCS x86-64 interface without
//! IOMMU and VTX; extensions have numbers of their own, so the base never moves.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod bootinfo;
pub mod context;
pub mod error;
pub mod fault;
pub mod label;
pub mod message;
pub mod object;
pub mod syscall;
pub mod vcpu;

pub use bootinfo::{BootInfo, SlotRegion, UntypedDesc};
pub use context::UserContext;
pub use error::{Error, LookupFailure};
pub use fault::Fault;
pub use label::Label;
pub use message::{CNodeCapData, CapRights, IpcBuffer, MessageInfo};
pub use object::ObjectType;
pub use syscall::Syscall;

/// One machine word, as everywhere in the interface.
pub type Word = u64;
