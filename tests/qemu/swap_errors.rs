//! A swap partition with bad sectors: failed writes lose nothing, and a page that is not given back stops its VM alone.

use crate::boot::{memory, prompt, stats, stop, stops, text};
use crate::system::{eventually, same, wait_state};
use ballast::config::Config;
use ballast::image::{self, Disk};
use ballast::machine::{Clock, Machine, Options};
use ballast::session::{Ask, Session, run_folder};
use protocol::link::{Request, Setting, StopReason, VmState};
use protocol::units::{Pages, VmId};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

/// The VM whose pages lie in bad sectors.
const LOST: VmId = VmId(0);
/// The VM whose pages lie behind them.
const KEPT: VmId = VmId(1);
/// The VM that squeezes both out.
const PUSHER: VmId = VmId(2);

/// First sector of the swap partition: the only one, and so behind the partition table's mebibyte.
const FIRST_SECTOR: u64 = 2048;
const SECTORS_PER_SLOT: u64 = 8;
/// Slots that are written well and not read: the first to be written, but for the cluster in front of them.
const UNREADABLE: std::ops::Range<u64> = 16..1040;
/// One of so many slots is not written; the others of its cluster are.
const UNWRITABLE_STEP: usize = 1024;
/// Counter of pages that were not written or read.
const FAILED: &str = "memory.swap_errors";
/// Slots there are.
const SLOTS: u64 = 320 << 8;

/// Checks what was filled, reading every page.
const CHECK: &str = "sha256sum -c -s /f.sum";

/// Fills `mib` MiB with what cannot be compressed.
fn fill(mib: u32) -> String {
    format!(
        "mkdir -p /m && mount -t tmpfs -o size=90% m /m && head -c {} /dev/urandom >/m/f && \
         sha256sum /m/f >/f.sum",
        mib << 20
    )
}

/// Rules for QEMU's `blkdebug`.
fn rules() -> String {
    let mut text = String::new();
    let mut rule = |kind: &str, slot: u64| {
        let sector = FIRST_SECTOR + slot * SECTORS_PER_SLOT;
        let _ = write!(
            text,
            "[inject-error]\nevent = \"none\"\niotype = \"{kind}\"\nerrno = \"5\"\nsector = \"{sector}\"\n"
        );
    };
    for slot in (8..SLOTS).step_by(UNWRITABLE_STEP).filter(|slot| !UNREADABLE.contains(slot)) {
        rule("write", slot);
    }
    for slot in UNREADABLE {
        rule("read", slot);
    }
    text
}

fn boot() -> Result<Arc<Session>, Failure> {
    let path = Path::new(ballast::WORKSPACE).join("images/systems/swap-errors.toml");
    let config = Config::load(&path).map_err(text)?;
    let image = image::build(&config, Disk::Fresh).map_err(text)?;
    let folder = run_folder(&format!("test-swap-{}", std::process::id())).map_err(text)?;
    std::fs::create_dir_all(&folder).map_err(text)?;
    let faults = folder.join("faults.conf");
    std::fs::write(&faults, rules()).map_err(text)?;
    let clock = Clock::Instructions;
    let options = Options { disk_faults: Some(faults), clock, ..Options::default() };
    let machine = Machine::start(&image, &options, &folder).map_err(text)?;
    let session = Session::start(machine, &folder).map_err(text)?;
    session.wait_ready(HANG).map_err(text)?;
    Ok(session)
}

/// Starts a VM without a disk up to its shell.
fn up(session: &Session, shell: &mut Shell<'_>, vm: VmId) -> Result<(), Failure> {
    session.ask(Request::VmStart(vm)).map_err(text)?;
    prompt(shell)
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("swap-errors") {
        return;
    }
    let mut started = None;
    let booted =
        runner.case("swap-errors: a system with bad sectors in its swap partition starts", || {
            let session = started.insert(boot()?);
            stats(session).map(drop)
        });
    let Some(session) = started.filter(|_| booted) else {
        runner.lost("swap-errors: everything else", "the system did not start");
        return;
    };
    let good = cases(runner, &session);
    if !good {
        runner.lost("swap-errors: the cases that follow", "one before them failed");
    }
    runner.case("swap-errors: quit ends the run well", || stop(&session));
}

/// Runs the cases; whether all passed.
fn cases(runner: &mut Runner, session: &Session) -> bool {
    let ask = |request: Request| session.ask(request).map(drop).map_err(text);
    let [mut lost, mut kept, mut pusher] = [LOST, KEPT, PUSHER].map(|vm| Shell::new(session, vm));
    let mut free = None;
    runner.case("swap-errors: a VM at rest is squeezed out, and failed writes stop nobody", || {
        free = Some(stats(session)?.machine.free);
        up(session, &mut lost, LOST)?;
        lost.expect(&fill(8))?;
        ask(Request::VmPause(LOST))?;
        up(session, &mut kept, KEPT)?;
        kept.expect(&fill(16))?;
        eventually(session, "a VM at rest on the disk", |stats| {
            memory(stats, LOST).swapped.0 > UNREADABLE.end && stats.counter(FAILED) > 0
        })?;
        let seen = stats(session)?;
        let (failed, written) = (seen.counter(FAILED), memory(&seen, LOST).swapped.0);
        if failed > 1 + written / UNWRITABLE_STEP as u64 {
            return Err(format!("{failed} writes failed, {written} pages are on the disk"));
        }
        same("pages of the other on the disk", memory(&stats(session)?, KEPT).swapped, Pages(0))?;
        kept.expect(CHECK)?;
        same("VMs stopped", stops(session), vec![])
    }) && runner.case("swap-errors: pages whose writes failed are what they were", || {
        let before = stats(session)?.counter(FAILED);
        let setting = Setting::MemoryReservation(Pages(8 << 8));
        ask(Request::VmSet { vm: KEPT, setting })?;
        // A VM's tables are made in one block: it waits for what is on its way to the disk.
        up(session, &mut pusher, PUSHER)?;
        pusher.expect(&fill(8))?;
        eventually(session, "two VMs on the disk", |stats| {
            memory(stats, KEPT).swapped.0 > 1024 && stats.counter(FAILED) > before
        })?;
        kept.expect(CHECK)?;
        pusher.expect(CHECK)?;
        same("VMs stopped", stops(session), vec![])
    }) && runner.case(
        "swap-errors: a page that is not given back stops its VM and no other",
        || {
            ask(Request::VmResume(LOST))?;
            wait_state(session, LOST, VmState::Crashed)?;
            match stops(session)[..] {
                [(LOST, StopReason::PageLost { gfn })] if gfn.0 < 96 << 8 => {}
                ref others => return Err(format!("not one VM for one page: {others:?}")),
            }
            kept.expect(CHECK)?;
            pusher.expect(CHECK)?;
            same("VMs stopped", stops(session).len(), 1)
        },
    ) && runner.case("swap-errors: the VM that was stopped starts again", || {
        lost.skip();
        up(session, &mut lost, LOST)?;
        lost.expect(&fill(4))?;
        lost.expect(CHECK)?;
        kept.expect(CHECK)?;
        same("VMs stopped", stops(session).len(), 1)
    }) && runner.case("swap-errors: every page comes back", || {
        for vm in [LOST, KEPT, PUSHER] {
            ask(Request::VmStop(vm))?;
            wait_state(session, vm, VmState::Stopped)?;
        }
        // What was on its way to the disk when its VM ended comes when the disk has answered.
        eventually(session, "all pages free", |stats| Some(stats.machine.free) == free)
    })
}
