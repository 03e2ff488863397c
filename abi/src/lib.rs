//! Numbers and layouts shared by kernel and user level; no logic.
#![cfg_attr(not(test), no_std)]
