// Shared by the build scripts of everything that runs on the target: they include this file.

/// Passes `script` (beside the package's manifest) and `more` to the linker, when the image is built.
fn link(script: &str, more: &[&str]) {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={script}");
    if std::env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let Some(folder) = std::env::var_os("CARGO_MANIFEST_DIR") else { return };
    let script = std::path::Path::new(&folder).join(script);
    let fixed = ["-no-pie", "--no-dynamic-linker", "-z", "max-page-size=4096"];
    for argument in fixed.iter().chain(more) {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-T{}", script.display());
}
