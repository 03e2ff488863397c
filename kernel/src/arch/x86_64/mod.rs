//! x86-64: boot, traps, paging, interrupt controllers, and AMD's virtualisation.
//!
//! What only the machine can run exists on the target alone; parsers and the virtualisation part's logic are also built for host tests.

pub mod acpi;
pub mod layout;
pub mod svm;

#[cfg(target_os = "none")]
pub mod apic;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod fpu;
#[cfg(target_os = "none")]
pub mod init;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod paging;
#[cfg(target_os = "none")]
pub mod panic;
#[cfg(target_os = "none")]
pub mod percpu;
#[cfg(target_os = "none")]
pub mod smp;
#[cfg(target_os = "none")]
pub mod start;
#[cfg(target_os = "none")]
pub mod trap;
#[cfg(target_os = "none")]
pub mod tsc;
