//! Links the program where root tasks live: 4 MiB.

fn main() {
    println!("cargo:rerun-if-changed=svm-test.ld");
    if std::env::var_os("CARGO_FEATURE_IMAGE").is_some() {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for argument in ["-no-pie", "--no-dynamic-linker", "-zmax-page-size=4096"] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
        println!("cargo:rustc-link-arg-bins=-T{folder}/svm-test.ld");
    }
}
