//! Kernel objects, one file each.

pub mod cnode;
pub mod endpoint;
pub mod extension;
pub mod io;
pub mod nested;
pub mod notification;
pub mod reply;
pub mod sched;
pub mod sched_context;
pub mod tcb;
pub mod thread;
pub mod timer;
pub mod untyped;
pub mod vcpu;
pub mod virt;
pub mod vspace;
