//! From the boot loader's information to a running root task.

pub mod elf;
pub mod initial;
pub mod loader;
pub mod plan;
pub mod regions;
