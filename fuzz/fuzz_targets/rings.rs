//! A hostile client's ring, doorbells and messages against a whole io-sched-server.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    harness::io::fuzz::run(bytes);
});
