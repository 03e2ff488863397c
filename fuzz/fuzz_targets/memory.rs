//! A hostile vmm-server against a whole mem-server: statistics, balloon, free pages, touches.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = harness::mem::fuzz::run(bytes);
});
