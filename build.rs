//! Builds kernel, servers and guest programs with the distribution's cargo.
//!
//! The host command finds them in the folder named by `BALLAST_PROGRAMS`; it packs the boot image
//! itself, because what is in it depends on the system description.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let workspace = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // OUT_DIR is TARGET/PROFILE/build/ballast-HASH/out.
    let Some(target) = out.ancestors().nth(4).map(Path::to_path_buf) else {
        eprintln!("OUT_DIR is not where cargo puts it: {}", out.display());
        return ExitCode::FAILURE;
    };
    for input in builder::target::inputs(&workspace) {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=BALLAST_WORKSPACE={}", workspace.display());
    match builder::target::build(&workspace, &target.join("image")) {
        Ok(programs) => {
            println!("cargo:rustc-env=BALLAST_PROGRAMS={}", programs.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
