//! Tests that boot QEMU and act as a user or as a guest would.
