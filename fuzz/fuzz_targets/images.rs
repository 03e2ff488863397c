//! Damaged kernels and modules: bzImage, PVH and multiboot, loaded into a guest's memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    vmm_server::fuzz::load_image(bytes);
});
