//! Hands the servers' link script to the linker when the image is built.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../../../runtime/server.ld");
    if std::env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let Some(dir) = std::env::var_os("CARGO_MANIFEST_DIR") else { return };
    let script = std::path::Path::new(&dir).join("../../../runtime/server.ld");
    for arg in ["-no-pie", "--no-dynamic-linker", "-z", "max-page-size=4096", "-Tdefmt.x"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-T{}", script.display());
}
