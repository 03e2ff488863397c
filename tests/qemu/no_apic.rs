//! Debian's kernel told to use no I/O APIC, or no APIC at all: timer, console and disk interrupt by the 8259 pair.

use crate::system::{same, start};
use ballast::machine::{EXIT_GOOD, exit_status};
use ballast::session::{Ask, Session};
use protocol::link::Request;
use protocol::units::VmId;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

/// VMs of `no-apic.toml` and their kernels' parameter.
const MACHINES: [(VmId, &str); 2] = [(VmId(0), "noapic"), (VmId(1), "nolapic")];

fn shell_and_disk(session: &Session, vm: VmId) -> Result<(), Failure> {
    let mut shell = Shell::new(session, vm);
    shell.wait("shell in the initramfs", HANG, |said| said.contains("/ #").then_some(()))?;
    shell.expect("dd if=/dev/vda of=/dev/null bs=4k count=256")?;
    // How often the disk (the third device) has interrupted, and by which controller.
    let interrupts = shell.expect("grep virtio /proc/interrupts")?;
    let is_right = interrupts.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let count: u32 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        count > 0 && words.next() == Some("XT-PIC") && words.next() == Some("virtio2")
    });
    same("disk interrupts by the 8259 pair", is_right, true)
        .map_err(|error| format!("{error}: {interrupts}"))?;
    shell.expect("sleep 1").map(drop)
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("no-apic") {
        return;
    }
    let mut started = None;
    let up = runner.case("no-apic: the system starts", || {
        started = Some(start("no-apic.toml")?);
        Ok(())
    });
    let Some(session) = started.filter(|_| up) else {
        runner.lost("no-apic: everything else", "the system did not start");
        return;
    };
    for (vm, parameter) in MACHINES {
        let name = format!("no-apic: Debian's kernel boots with '{parameter}' and reads its disk");
        runner.case(&name, || shell_and_disk(&session, vm));
    }
    runner.case("no-apic: quit ends the run well", || {
        let _ = session.ask(Request::Quit { code: EXIT_GOOD });
        same("QEMU's status", session.wait_end(HANG), Some(exit_status(EXIT_GOOD)))
    });
    let _ = std::fs::remove_dir_all(session.folder());
}
