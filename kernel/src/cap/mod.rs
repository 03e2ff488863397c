//! Capabilities: their packed form, slots, lookup, derivation tree and deletion.

pub mod cspace;
pub mod delete;
pub mod raw;
pub mod slot;
pub mod tree;

pub use raw::{Cap, RawCap};
pub use slot::Slot;
