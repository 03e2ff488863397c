//! Linker arguments of the target image.

fn main() {
    if std::env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in [
        "-no-pie".to_owned(),
        "--no-dynamic-linker".to_owned(),
        "-z".to_owned(),
        "max-page-size=4096".to_owned(),
        format!("-T{root}/../runtime/server.ld"),
        "-Tdefmt.x".to_owned(),
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=../runtime/server.ld");
}
