//! Linux to `/init`, on Ballast and directly on QEMU, by one clock: executed instructions.
//!
//! On QEMU the counter runs from the machine's reset, so the firmware's part is measured by a kernel that only prints the counter
//! at its first instruction, and taken off. On Ballast the whole way from the VM's launch counts: making its server,
//! loading the kernel (which the firmware does on QEMU), and the power-off after `/init`.

use super::{Figures, HANG, boot, quit};
use crate::Error;
use crate::image::{self, Image};
use protocol::link::{Event, VmState};
use protocol::units::VmId;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `/init` prints before the counter.
const MARK: &str = "BALLAST-INIT ";

/// The counter behind [`MARK`], in instructions.
fn marked(console: &str) -> Option<u64> {
    let rest = console.split_once(MARK)?.1;
    let digits = rest.get(..16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A bzImage whose set-up code, run by the firmware as Linux's is, prints the counter behind [`MARK`] and ends the machine.
fn counter_kernel() -> Vec<u8> {
    let mut file = vec![0u8; 0x800];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = file.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0x1f1, &[1]); // one sector of set-up code
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x7e]); // jmp to 0x280
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]); // the kernel proper is loaded high
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x238, &255u32.to_le_bytes());
    // 16-bit code; the mark is found by its address, set-up code being loaded with CS = segment of the boot sector + 0x20.
    let code: &[u8] = &[
        0x0f, 0x31, // rdtsc
        0x66, 0x89, 0xc3, // mov ebx, eax
        0x66, 0x89, 0xd5, // mov ebp, edx
        0x8c, 0xc8, 0x8e, 0xd8, // mov ax, cs; mov ds, ax
        0xbe, 0xe0, 0x00, // mov si, 0xe0
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xac, // 1: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz 2f
        0xee, // out dx, al
        0xeb, 0xf8, // jmp 1b
        0x66, 0x95, // 2: xchg eax, ebp
        0xe8, 0x0e, 0x00, // call digits
        0x66, 0x93, // xchg eax, ebx
        0xe8, 0x09, 0x00, // call digits
        0xba, 0xf4, 0x00, // mov dx, 0xf4
        0xb0, 0x10, // mov al, 0x10
        0xee, // out dx, al
        0xf4, 0xeb, 0xfd, // hlt; and again
        0x66, 0x89, 0xc7, // digits: mov edi, eax
        0xb9, 0x08, 0x00, // mov cx, 8
        0x66, 0xc1, 0xc7, 0x04, // 3: rol edi, 4
        0x89, 0xf8, // mov ax, di
        0x24, 0x0f, // and al, 15
        0x3c, 0x0a, // cmp al, 10
        0x72, 0x02, // jb 4f
        0x04, 0x27, // add al, 'a' - '0' - 10
        0x04, 0x30, // 4: add al, '0'
        0xee, // out dx, al
        0xe2, 0xed, // loop 3b
        0xc3, // ret
    ];
    put(0x280, code);
    put(0x2e0, MARK.as_bytes());
    file
}

/// Boots `kernel` directly on QEMU; the counter at the mark.
fn on_qemu(kernel: &Path, module: &Path, what: &str) -> Result<u64, Error> {
    image::progress(what);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,accel=tcg", "-cpu", "EPYC", "-m", "128", "-seed", "7"]);
    command.args(["-icount", "shift=0,sleep=off", "-display", "none", "-nodefaults"]);
    command.args([
        "-no-reboot",
        "-serial",
        "stdio",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=4",
    ]);
    command.args(["-append", "console=ttyS0 quiet ballast.mark"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(module);
    command.stdin(std::process::Stdio::null());
    let output = command.output().map_err(Error::file("qemu-system-x86_64"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    marked(&text).ok_or_else(|| Error::Crash(format!("no mark from bare QEMU:\n{text}")))
}

/// The firmware's part of a boot on bare QEMU.
fn firmware(module: &Path) -> Result<u64, Error> {
    let path: PathBuf =
        std::env::temp_dir().join(format!("ballast-counter-{}", std::process::id()));
    std::fs::write(&path, counter_kernel()).map_err(Error::file(&path))?;
    let counted = on_qemu(&path, module, "measuring the firmware of bare QEMU");
    let _ = std::fs::remove_file(&path);
    counted
}

/// From the VM's launch to its power-off at /init.
fn on_ballast() -> Result<f64, Error> {
    image::progress("booting Linux to /init on Ballast");
    let session = boot("bench-linux.toml", 2)?;
    let vm = VmId(0);
    let instructions = session.wait("power-off of Linux at /init", HANG, |heard| {
        let time = |wanted: VmState| {
            heard.events.iter().find_map(|(at, event)| match event {
                Event::VmState { vm: of, state } if *of == vm && *state == wanted => Some(at.0),
                _ => None,
            })
        };
        Some((time(VmState::Stopped)? - time(VmState::Starting)?) as f64)
    });
    quit(&session);
    instructions
}

/// Both boots and their ratio.
///
/// # Errors
///
/// What could not be measured.
pub fn figures(figures: &mut Figures) -> Result<(), Error> {
    let cache = builder::cache::Cache::open(&image::state_folder().join("guest"))?;
    let direct = Image {
        kernel: builder::guest::kernel(&cache, &image::progress)?,
        module: builder::guest::initramfs(&cache, &image::progress)?,
        disks: Vec::new(),
        memory_mib: 128,
    };
    drop(cache);
    let firmware = firmware(&direct.module)?;
    let what = "booting Linux to /init on bare QEMU";
    let bare = on_qemu(&direct.kernel, &direct.module, what)? - firmware;
    let ours = on_ballast()?;
    figures.insert("linux_init_bare_minsn".to_owned(), (bare / 1_000_000) as f64);
    figures.insert("linux_init_firmware_minsn".to_owned(), (firmware / 1_000_000) as f64);
    figures.insert("linux_init_minsn".to_owned(), (ours / 1e6).round());
    figures.insert("linux_init_ratio".to_owned(), ours / bare as f64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MARK, counter_kernel, marked};

    #[test]
    fn the_mark_has_a_counter() {
        assert_eq!(marked("x\nBALLAST-INIT 000000005b4a3c21\r\n"), Some(0x5b4a_3c21));
        assert_eq!(marked("BALLAST-INIT 12"), None);
        assert_eq!(marked("nothing"), None);
    }

    #[test]
    fn the_counter_kernel_fits_its_sector() {
        let kernel = counter_kernel();
        let mark = kernel.windows(MARK.len()).position(|window| window == MARK.as_bytes());
        assert_eq!(mark, Some(0x2e0));
        assert_eq!(kernel[0x2e0 - 1], 0, "the code ends before the mark");
    }
}
