//! The IPC harness: whole servers driven through their messages on the host.
