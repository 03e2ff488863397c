//! Builds everything that runs on the target, in one run of the distribution's cargo.
//!
//! The distribution's cargo, because only it comes (as packages) with the source of `core` and
//! `alloc`, which are built here for `x86_64-unknown-none` together with our crates. It gets a
//! target folder of its own: two cargos must not wait for each other's lock.

use crate::command::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The one target of kernel, servers and guest programs.
pub const TRIPLE: &str = "x86_64-unknown-none";

const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const CORE: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
const LLD: &str = "/usr/bin/ld.lld";

/// Folders whose packages may have target programs.
const PACKAGES: [&str; 5] = ["kernel", "root-task", "mem-server", "io-sched-server", "vmm-server"];
/// Folder of guest programs and foreign root-tasks, one package in each folder below it.
const GUESTS: &str = "images/guests";
/// Libraries the packages use.
const LIBRARIES: [&str; 4] = ["abi", "sel4", "runtime", "protocol"];

/// A package with programs for the target.
#[derive(Clone, Debug)]
struct Package {
    name: String,
    folder: PathBuf,
}

fn packages(workspace: &Path) -> Vec<Package> {
    let guests = std::fs::read_dir(workspace.join(GUESTS)).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = PACKAGES.iter().map(|name| workspace.join(name)).collect();
    folders.extend(guests.map(|entry| entry.path()));
    folders.sort();
    let package = |folder: PathBuf| {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).ok()?;
        if !manifest.contains("required-features = [\"image\"]") {
            return None;
        }
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = "))?;
        Some(Package { name: name.trim_matches('"').to_owned(), folder })
    };
    folders.into_iter().filter_map(package).collect()
}

/// What a build script must watch.
pub fn inputs(workspace: &Path) -> Vec<PathBuf> {
    let mut inputs: Vec<PathBuf> = packages(workspace).into_iter().map(|p| p.folder).collect();
    inputs.extend(LIBRARIES.iter().map(|name| workspace.join(name)));
    inputs.extend(["Cargo.lock", "Cargo.toml", GUESTS].map(|name| workspace.join(name)));
    inputs
}

/// Folder the programs are found in after [`build`].
pub fn programs(target_dir: &Path) -> PathBuf {
    target_dir.join(TRIPLE).join("release")
}

/// Builds all target programs of `workspace` into `target_dir`; compiler messages go to stderr.
///
/// # Errors
///
/// [`Error`] naming the missing package, or that the build failed.
pub fn build(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Error> {
    let tools = [(CARGO, "cargo-web"), (RUSTC, "rustc-web"), (CORE, "rust-web-src"), (LLD, "lld")];
    for (program, package) in tools {
        if !Path::new(program).exists() {
            return Err(Error::NoProgram { program: program.to_owned(), package });
        }
    }
    let mut command = Command::new(CARGO);
    command.current_dir(workspace).env_clear().envs(kept_environment());
    command
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("RUSTC", RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("DEFMT_LOG", "debug")
        // The host's log decoder finds source lines in the full debug information.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "full")
        .env("RUSTFLAGS", "-C linker=ld.lld -C relocation-model=static -C force-frame-pointers=yes")
        .args(["build", "--release", "--target", TRIPLE, "--target-dir"])
        .arg(target_dir)
        .args(["-Zbuild-std=core,alloc,compiler_builtins"])
        .args(["-Zbuild-std-features=compiler-builtins-mem"]);
    for package in packages(workspace) {
        command.args(["--package", &package.name]);
        command.arg("--features").arg(format!("{}/image", package.name));
    }
    let status = command.stdin(Stdio::null()).status();
    let status = status.map_err(|cause| Error::File { path: CARGO.into(), cause })?;
    if !status.success() {
        return Err(Error::Program {
            command: format!("{CARGO} build --target {TRIPLE}"),
            output: "the compiler's messages are above".to_owned(),
        });
    }
    Ok(programs(target_dir))
}

/// The outer cargo's variables would confuse the inner one: only these pass.
fn kept_environment() -> impl Iterator<Item = (String, String)> {
    const KEPT: [&str; 9] = [
        "HOME",
        "CARGO_HOME",
        "TERM",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ];
    let is_kept = |name: &str| KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(name));
    std::env::vars().filter(move |(name, _)| is_kept(name))
}

#[cfg(test)]
mod tests {
    use super::{inputs, kept_environment};
    use std::path::Path;

    #[test]
    fn the_outer_cargo_does_not_leak_in() {
        let leaked = kept_environment()
            .find(|(name, _)| name.starts_with("RUST") || name.starts_with("CARGO_PKG"));
        assert_eq!(leaked, None);
    }

    #[test]
    fn a_build_script_watches_every_package() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let watched = inputs(&workspace);
        assert!(watched.iter().all(|path| path.exists()), "{watched:?}");
        assert!(watched.contains(&workspace.join("abi")));
    }
}
