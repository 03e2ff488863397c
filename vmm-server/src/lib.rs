//! One per VM: exits, device models, guest boot.
#![cfg_attr(not(test), no_std)]
