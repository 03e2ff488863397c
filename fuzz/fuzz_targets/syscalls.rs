//! Random system calls against the kernel on the model machine; every invariant is checked after each.
//!
//! How to run it: `docs/testing.md`. A finding is replayed by naming its file behind the target; with `KERNEL_TRACE=1` each call
//! is printed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kernel::model::fuzz::run(bytes);
});
