//! Owner of all guest memory.
#![cfg_attr(not(test), no_std)]
