//! More compressible memory than the compressed pool holds: old pages of it move on to the swap partition and come back as they were;
//! and a vmm-server is killed while its VM's pages are in the pool, on the partition and on their way.

use crate::boot::{memory, prompt, start, stats, stop, stops, text};
use crate::system::{eventually, same, wait_state};
use ballast::machine::Clock;
use ballast::session::{Ask, Session};
use protocol::link::{MemoryStats, Request, ServerId, StopReason, VmState};
use protocol::units::VmId;
use std::fmt::Write as _;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

/// The VM that is squeezed out, and is killed in the end.
const AT_REST: VmId = VmId(0);
/// The VM that squeezes it out.
const BUSY: VmId = VmId(1);
/// Bytes that each guest fills.
const FILLED: u64 = 20 << 20;
/// Pages that must have moved from the pool to the disk.
const SPILLED: u64 = 2048;

fn description() -> String {
    let mut text = "[host]\nname = \"write-back\"\nmemory = \"168M\"\nswap = \"256M\"\n".to_owned();
    for name in ["rest", "busy"] {
        let _ = write!(
            text,
            "[[vm]]\nname = \"{name}\"\nkernel = \"debian\"\ninitrd = \"debian\"\n\
             memory = {{ size = \"96M\", reservation = \"8M\", sharing = \"none\" }}\n\
             balloon = {{ present = false }}\nautostart = false\n"
        );
    }
    text
}

/// Numbers in columns, a part over and over: no two pages are equal, as it is not a whole number of pages, and each shrinks to
/// less than half.
fn fill(first: u64) -> String {
    format!(
        "mkdir -p /m && mount -t tmpfs -o size=90% m /m && \
         seq {first} {last} >/g && for i in $(seq 99); do cat /g; done | head -c {FILLED} >/m/f && \
         md5sum </m/f >/sum",
        last = first + 60_000,
    )
}

const CHECK: &str = "[ \"$(md5sum </m/f)\" = \"$(cat /sum)\" ]";

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("write-back") {
        return;
    }
    let mut started = None;
    let booted = runner.case("write-back: a small system starts", || {
        let session = started.insert(start("write-back", &description(), Clock::Instructions)?);
        session.wait_ready(HANG).map_err(text)
    });
    let Some(session) = started.filter(|_| booted) else {
        runner.lost("write-back: everything else", "the system did not start");
        return;
    };
    if !cases(runner, &session) {
        runner.lost("write-back: the cases that follow", "one before them failed");
    }
    runner.case("write-back: quit ends the run well", || stop(&session));
}

/// Starts a VM and fills its memory.
fn up(session: &Session, shell: &mut Shell<'_>, vm: VmId) -> Result<(), Failure> {
    session.ask(Request::VmStart(vm)).map_err(text)?;
    prompt(shell)?;
    shell.expect(&fill(1_000_000_000_000_000 * (u64::from(vm.0) + 1))).map(drop)
}

/// Runs the cases; whether all passed.
fn cases(runner: &mut Runner, session: &Session) -> bool {
    let ask = |request: Request| session.ask(request).map(drop).map_err(text);
    let [mut rest, mut busy] = [AT_REST, BUSY].map(|vm| Shell::new(session, vm));
    let mut free = None;
    runner.case("write-back: old compressed pages move on to the disk", || {
        free = Some(stats(session)?.machine.free);
        up(session, &mut rest, AT_REST)?;
        ask(Request::VmPause(AT_REST))?;
        up(session, &mut busy, BUSY)?;
        eventually(session, "compressed pages on the disk", |stats| {
            stats.counter("memory.spilled") > SPILLED
        })?;
        same("VMs stopped", stops(session), vec![])
    }) && runner.case("write-back: they are what they were", || {
        busy.expect(CHECK)?;
        ask(Request::VmResume(AT_REST))?;
        rest.expect(CHECK)?;
        busy.expect(CHECK)?;
        same("VMs stopped", stops(session), vec![])
    }) && runner.case(
        "write-back: a vmm-server is killed with pages everywhere: the other VM is unharmed",
        || {
            // Each wants more than half of memory.
            rest.start(&format!("while {CHECK}; do :; done"))?;
            busy.start(&format!("{CHECK} && {CHECK} && {CHECK}"))?;
            eventually(session, "pages in the pool and on the disk", |stats| {
                let memory = memory(stats, AT_REST);
                memory.compressed.0 > 0 && memory.swapped.0 > 0
            })?;
            ask(Request::Kill(ServerId::Vmm(AT_REST)))?;
            wait_state(session, AT_REST, VmState::Crashed)?;
            let ended = matches!(stops(session)[..], [(AT_REST, StopReason::ServerFault)]);
            same("the other alone stopped", ended, true)
                .map_err(|why| format!("{why}: {:?}", stops(session)))?;
            same("what is left of it", memory(&stats(session)?, AT_REST), MemoryStats::default())?;
            same("status of the other's checks", busy.finish(HANG)?.status, 0)
        },
    ) && runner.case("write-back: every page comes back", || {
        ask(Request::VmStop(BUSY))?;
        wait_state(session, BUSY, VmState::Stopped)?;
        // What was on its way to the disk when its VM ended comes when the disk has answered.
        eventually(session, "all pages free", |stats| Some(stats.machine.free) == free)
    })
}
