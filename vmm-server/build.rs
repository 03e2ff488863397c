//! Hands the servers' link script to the linker when the image is built.

include!("../runtime/link.rs");

fn main() {
    link("../runtime/server.ld", &["-Tdefmt.x"]);
}
