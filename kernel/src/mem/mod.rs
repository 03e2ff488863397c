//! Physical memory: addresses, typed handles, and the one window to it.

pub mod phys;
pub mod window;

pub use phys::PhysAddr;
pub use window::Ref;
