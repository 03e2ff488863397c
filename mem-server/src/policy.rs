//! What the papers describe, as pure functions and small machines: no clock, no randomness of their own.

pub mod allocation;
pub mod balloon;
pub mod estimator;
pub mod groups;
pub mod harvest;
pub mod iopage;
pub mod large;
pub mod pressure;
