//! User-level interface of the kernel, named as rust-sel4 names things.
#![cfg_attr(not(test), no_std)]
