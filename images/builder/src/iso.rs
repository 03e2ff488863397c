//! A bootable ISO: GRUB loads kernel and boot module by Multiboot2, from BIOS or UEFI.

use crate::command::{Error, at, run};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Writes the ISO to `output`, with a scratch folder beside it while it works.
///
/// # Errors
///
/// [`Error`] if a file cannot be read or GRUB's tools are missing.
pub fn build(kernel: &Path, module: &Path, arguments: &str, output: &Path) -> Result<(), Error> {
    let tree = output.with_extension("iso-tree");
    let boot = tree.join("boot");
    let grub = boot.join("grub");
    fs::create_dir_all(&grub).map_err(at(&grub))?;
    let copy = |from: &Path, name: &str| {
        let to = boot.join(name);
        fs::copy(from, &to).map(drop).map_err(at(from))
    };
    copy(kernel, "kernel.elf")?;
    copy(module, "root-task.elf")?;
    let config = grub.join("grub.cfg");
    let text = format!(
        "set timeout=0\nmenuentry \"Ballast\" {{\n  multiboot2 /boot/kernel.elf {arguments}\n  \
         module2 /boot/root-task.elf root-task\n  boot\n}}\n"
    );
    fs::write(&config, text).map_err(at(&config))?;
    let mut command = Command::new("grub-mkrescue");
    run(command.arg("-o").arg(output).arg(&tree), "grub-common")?;
    fs::remove_dir_all(&tree).map_err(at(&tree))
}
