//! What every server links: entry, panic, logger, server loop.
#![cfg_attr(not(test), no_std)]
