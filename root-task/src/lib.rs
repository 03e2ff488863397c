//! First server: boots the system and hands out capabilities.
#![cfg_attr(not(test), no_std)]
