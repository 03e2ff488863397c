//! A hostile guest against a whole vmm-server: exits, virtqueues, MSRs, ports, device memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = vmm_server::fuzz::run(bytes);
});
