//! Hands the kernel's link script to the linker when the kernel image itself is built.

include!("../runtime/link.rs");

fn main() {
    link("kernel.ld", &[]);
}
