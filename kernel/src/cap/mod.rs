//! Capabilities: their packed form, slots, lookup, derivation tree and deletion.

pub mod raw;
pub mod slot;

pub use raw::{Cap, RawCap};
pub use slot::Slot;
