//! Debian's kernel, an initramfs and a Debian 12 root file system, from the distribution's archive.

use crate::cache::Cache;
use crate::command::{Error, at, run};
use crate::cpio::Cpio;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of the root file system image; a larger partition grows it.
pub const ROOT_MIB: u64 = 320;

/// Size of the image with fio.
pub const FIO_MIB: u64 = 128;

/// Depends on the newest cloud kernel of the release.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Modules of that kernel the initramfs needs, each after those it uses.
const MODULES: [(&str, &str); 8] = [
    ("virtio_ring", "drivers/virtio"),
    ("virtio", "drivers/virtio"),
    ("virtio_pci_legacy_dev", "drivers/virtio"),
    ("virtio_pci_modern_dev", "drivers/virtio"),
    ("virtio_pci", "drivers/virtio"),
    ("virtio_blk", "drivers/block"),
    ("virtio-rng", "drivers/char/hw_random"),
    ("virtio_balloon", "drivers/virtio"),
];
/// Beyond Debian's minimum: an init that boots in a second under emulation, and process tools.
const ROOT_PACKAGES: &str = "sysvinit-core,procps";
const INIT: &str = include_str!("guest-init.sh");
const LOAD: &str = include_str!("guest-load.sh");
const FIO_LOAD: &str = include_str!("guest-fio-load.sh");
const ROOT_HOOK: &str = include_str!("guest-root.sh");
const FIO_HOOK: &str = include_str!("guest-fio.sh");

/// Tells the user which long step runs.
pub type Progress<'a> = &'a dyn Fn(&str);

/// Debian's cloud kernel (bzImage) and, beside it, the tree of its package.
///
/// # Errors
///
/// [`Error`] if the package cannot be had.
pub fn kernel(cache: &Cache, progress: Progress<'_>) -> Result<PathBuf, Error> {
    let tree = cache.get("kernel", "1", |folder| {
        progress("fetching Debian's cloud kernel (27 MB) from the distribution's archive");
        fs::create_dir_all(folder).map_err(at(folder))?;
        let depends = run(Command::new("apt-cache").args(["depends", KERNEL_META_PACKAGE]), "apt");
        let depends = String::from_utf8_lossy(&depends?).into_owned();
        let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let package = package.ok_or_else(|| Error::Program {
            command: format!("apt-cache depends {KERNEL_META_PACKAGE}"),
            output: "apt knows no such package: run apt-get update as root".to_owned(),
        })?;
        let mut download = Command::new("apt-get");
        download.current_dir(folder).args(["download", "-q", package]);
        if run(&mut download, "apt").is_err() {
            // The lists may be older than the archive; only root may renew them.
            let _ = run(Command::new("apt-get").args(["update", "-q"]), "apt");
            run(&mut download, "apt")?;
        }
        for entry in fs::read_dir(folder).map_err(at(folder))?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                run(unpack.arg("-x").arg(entry.path()).arg(folder), "dpkg")?;
                fs::remove_file(entry.path()).map_err(at(entry.path()))?;
            }
        }
        Ok(())
    })?;
    find(&tree.join("boot"), "vmlinuz-")
}

fn find(folder: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(folder).map_err(at(folder))?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    paths.find(is_it).ok_or(Error::Input { path: folder.to_path_buf(), why: "lacks the kernel" })
}

/// The initramfs: busybox, the virtio drivers and a script that starts the root disk's init.
///
/// # Errors
///
/// [`Error`] if busybox or a module is missing.
pub fn initramfs(cache: &Cache, progress: Progress<'_>) -> Result<PathBuf, Error> {
    kernel(cache, progress)?;
    let tree = cache.path("kernel").join("lib/modules");
    let release = find(&tree, "")?;
    let busybox = Path::new("/usr/bin/busybox");
    let inputs = format!("2 {} {MODULES:?} {INIT} {LOAD} {FIO_LOAD}", release.display());
    cache.get("initramfs.cpio", &inputs, |path| {
        let mut cpio = Cpio::default();
        for folder in ["bin", "dev", "modules", "proc", "root", "sys"] {
            cpio.folder(folder);
        }
        cpio.device("dev/console", 5, 1);
        cpio.device("dev/null", 1, 3);
        let program = fs::read(busybox).map_err(at(busybox))?;
        cpio.file("bin/busybox", 0o755, &program);
        cpio.file("bin/tsc", 0o755, &crate::tsc::program());
        for (module, folder) in MODULES {
            let file = release.join("kernel").join(folder).join(format!("{module}.ko"));
            let bytes = fs::read(&file).map_err(at(&file))?;
            cpio.file(&format!("modules/{module}.ko"), 0o644, &bytes);
        }
        let names: Vec<&str> = MODULES.iter().map(|(module, _)| *module).collect();
        cpio.file("load", 0o755, LOAD.as_bytes());
        cpio.file("fio-load", 0o755, FIO_LOAD.as_bytes());
        cpio.file("init", 0o755, INIT.replace("MODULES", &names.join(" ")).as_bytes());
        fs::write(path, cpio.finish()).map_err(at(path))
    })
}

/// An ext4 image with Debian 12: root logs in on `ttyS0` without a password.
///
/// # Errors
///
/// [`Error`] with mmdebstrap's words if it fails.
pub fn root(cache: &Cache, progress: Progress<'_>) -> Result<PathBuf, Error> {
    let inputs = format!("1 {ROOT_MIB} {ROOT_PACKAGES} {ROOT_HOOK}");
    cache.get("root.ext4", &inputs, |path| {
        progress("making a Debian 12 root file system with mmdebstrap (half a minute)");
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=minbase", &format!("--include={ROOT_PACKAGES}")]);
        for excluded in ["man", "doc", "locale", "info"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
        }
        bootstrap(command, "customize", ROOT_HOOK, ROOT_MIB, path)
    })
}

/// An ext4 image with fio and the libraries it needs, for `ballast.fio` on a guest's command line.
///
/// # Errors
///
/// [`Error`] with mmdebstrap's words if it fails.
pub fn fio(cache: &Cache, progress: Progress<'_>) -> Result<PathBuf, Error> {
    let inputs = format!("1 {FIO_MIB} {FIO_HOOK}");
    cache.get("fio.ext4", &inputs, |path| {
        progress("fetching Debian's fio and its libraries with mmdebstrap (half a minute)");
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=extract", "--include=fio"]);
        bootstrap(command, "extract", FIO_HOOK, FIO_MIB, path)
    })
}

/// Runs mmdebstrap, whose tree `hook` turns into an image of `mib` MiB at `path`.
fn bootstrap(
    mut mmdebstrap: Command,
    stage: &str,
    hook: &str,
    mib: u64,
    path: &Path,
) -> Result<(), Error> {
    // Without root, mmdebstrap works as another user: it needs a folder open to all.
    let work = path.with_extension("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).map_err(at(&work))?;
    fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).map_err(at(&work))?;
    let script = work.join("hook");
    fs::write(&script, hook).map_err(at(&script))?;
    let image = work.join("image");
    mmdebstrap.args(["--format=null", "--quiet"]);
    mmdebstrap.arg(format!(
        "--{stage}-hook=sh '{}' \"$1\" '{}' {mib}",
        script.display(),
        image.display()
    ));
    run(mmdebstrap.arg("bookworm"), "mmdebstrap")?;
    fs::copy(&image, path).map_err(at(&image))?;
    fs::remove_dir_all(&work).map_err(at(&work))
}
