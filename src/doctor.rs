//! Checks what a run needs, and says what to do about each problem.

use crate::machine::has_nested_svm;
use crate::{Error, PROGRAMS};
use std::path::Path;
use std::process::Command;

/// Programs and files a run needs beyond those the build already found.
const NEEDED: [(&str, &str); 13] = [
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/bin/newuidmap", "uidmap"),
    ("/usr/sbin/sgdisk", "gdisk"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/sbin/debugfs", "e2fsprogs"),
    ("/usr/bin/grub-mkrescue", "grub-common"),
    ("/usr/lib/grub/i386-pc/multiboot2.mod", "grub-pc-bin"),
    ("/usr/lib/grub/x86_64-efi/multiboot2.mod", "grub-efi-amd64-bin"),
    ("/usr/bin/xorriso", "xorriso"),
    ("/usr/bin/mformat", "mtools"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
];

/// Disk space a first run takes, in MiB.
const SPACE_MIB: u64 = 3072;
/// Memory QEMU takes for the default system, in MiB, with room.
const MEMORY_MIB: u64 = 1536;

/// Prints one line for each check; the cure behind each that fails.
///
/// # Errors
///
/// [`Error::Build`] if something is missing.
pub fn run() -> Result<(), Error> {
    let mut problems = 0;
    let mut check = |good: bool, what: &str, cure: &str| {
        if good {
            println!("ok    {what}");
        } else {
            println!("FAIL  {what}\n      cure: {cure}");
            problems += 1;
        }
    };
    for (path, package) in NEEDED {
        check(Path::new(path).exists(), path, &format!("apt-get install {package}"));
    }
    if !rustix::process::geteuid().is_root() {
        let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
        let subordinate = |file| has_subordinate_ids(file, &user);
        let has_ids = subordinate("/etc/subuid") && subordinate("/etc/subgid");
        let cure = "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER";
        check(has_ids, "subordinate user and group ids (mmdebstrap without root)", cure);
        let namespaces = Command::new("unshare").args(["--user", "true"]).output();
        let allowed = namespaces.is_ok_and(|output| output.status.success());
        let cure = "as root: sysctl kernel.unprivileged_userns_clone=1; or run ballast as root";
        check(allowed, "user namespaces (mmdebstrap without root)", cure);
    }
    let programs = ["kernel", "root-task", "mem-server", "io-sched-server", "vmm-server"];
    for name in programs {
        let path = Path::new(PROGRAMS).join(name);
        let what = format!("target program {name}");
        check(path.is_file(), &what, "cargo clean, then ./ballast again");
    }
    let version = Command::new("qemu-system-x86_64").arg("--version").output();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let version = version.unwrap_or_default();
    let first = version.lines().next().unwrap_or("QEMU does not start").to_owned();
    let major =
        first.split_whitespace().find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    check(major.is_some_and(|major| major >= 7), &first, "QEMU 7.2 or later is needed");
    let state = crate::image::state_folder();
    let _ = std::fs::create_dir_all(&state);
    let space = free_mib(&state);
    let what = format!("{space} MiB free for {}", state.display());
    check(space >= SPACE_MIB, &what, &format!("make room for {SPACE_MIB} MiB"));
    let memory = available_memory_mib();
    let what = format!("{memory} MiB of memory available");
    check(memory >= MEMORY_MIB, &what, "end other programs, or lower host.memory");
    let accelerator = if has_nested_svm() {
        "KVM with nested SVM is there and will be used"
    } else {
        "no KVM with nested SVM: QEMU emulates the processor (slower, everything works)"
    };
    println!("note  {accelerator}");
    if problems == 0 {
        return Ok(());
    }
    Err(Error::Build(format!("{problems} problems: see the cures above")))
}

/// Whether `file` (of the form of subuid(5)) gives ids to this user, by name or number.
fn has_subordinate_ids(file: &str, user: &str) -> bool {
    let number = rustix::process::getuid().as_raw().to_string();
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut owners = text.lines().filter_map(|line| line.split(':').next());
    owners.any(|owner| owner == number || (!user.is_empty() && owner == user))
}

fn free_mib(folder: &Path) -> u64 {
    let output = Command::new("df").args(["-m", "--output=avail"]).arg(folder).output();
    let text = output.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let text = text.unwrap_or_default();
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

fn available_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
