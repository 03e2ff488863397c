//! Every IPC interface, the management link and the configuration.
#![cfg_attr(not(test), no_std)]
