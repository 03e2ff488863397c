//! Messages, signals, answers and faults between threads.

pub mod endpoint;
pub mod fast;
pub mod fault;
pub mod notification;
pub mod queue;
pub mod reply;
pub mod transfer;
