//! Platform devices of the guest's PC as plain state machines.
//!
//! A model owns no clock and no memory: time is passed in, interrupt lines are read out.

pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod rtc;
pub mod uart;
