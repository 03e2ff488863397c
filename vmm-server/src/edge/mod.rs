//! Mechanism of the vmm-server: guest memory, the calls it makes, its event loop.

pub mod host;
pub mod run;
pub mod window;
