//! Links the root task at 0x400000.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    if std::env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let Some(dir) = std::env::var_os("CARGO_MANIFEST_DIR") else { return };
    for arg in ["-no-pie", "--no-dynamic-linker", "-z", "max-page-size=4096"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!(
        "cargo:rustc-link-arg-bins=-T{}",
        std::path::Path::new(&dir).join("link.ld").display()
    );
}
