//! Kernel objects, one file each.

pub mod endpoint;
pub mod notification;
pub mod reply;
pub mod sched_context;
pub mod tcb;
