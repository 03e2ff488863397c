//! Owner of the disks.
#![cfg_attr(not(test), no_std)]
