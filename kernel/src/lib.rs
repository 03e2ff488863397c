//! The microkernel: capabilities, threads, endpoints, frames, virtual CPUs.
#![cfg_attr(not(test), no_std)]
