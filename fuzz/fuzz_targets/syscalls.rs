//! Random system calls against the kernel on the model machine; every invariant is checked after each.
//!
//! `cargo +nightly fuzz run syscalls` from the root of the repository. A finding is replayed by `cargo +nightly fuzz run syscalls
//! FILE`; with `KERNEL_TRACE=1` each call is printed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kernel::model::fuzz::run(bytes);
});
