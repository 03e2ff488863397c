//! Root-task: who exists, what it may do, what happens when it dies.
//!
//! All decisions are here and run on the host: where kernel memory comes from ([`untyped`],
//! [`arena`]), which slots are free ([`slots`], [`space`]), what a server's image needs ([`plan`]),
//! which disks the machine has and where their registers are ([`pci`]), and the life of every VM and
//! server ([`system`]: one event in, a list of actions out). The edge (`main.rs`) carries actions out
//! with kernel calls and decides nothing.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod arena;
pub mod caps;
pub mod pci;
pub mod plan;
pub mod slots;
pub mod space;
pub mod system;
pub mod untyped;
