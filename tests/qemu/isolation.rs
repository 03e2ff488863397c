//! A guest that tries everything to reach what is not its own, beside one that watches over its memory and disk.

use crate::boot::{stats, text};
use crate::system::{same, start, wait_state};
use ballast::machine::{EXIT_GOOD, exit_status};
use ballast::session::{Ask, Session};
use protocol::link::{Event, Request, StopReason, VmState};
use protocol::units::VmId;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

const QUIET: VmId = VmId(0);
/// Exit code of a nested page fault.
const NESTED_FAULT: u64 = 0x400;

/// A hostile guest and how its machine must stop.
struct Hostile {
    vm: VmId,
    name: &'static str,
    /// It tries everything first and says what became of it.
    is_talkative: bool,
    is_right: fn(&StopReason) -> bool,
}

const HOSTILE: [Hostile; 3] = [
    Hostile {
        vm: VmId(1),
        name: "a triple fault",
        is_talkative: true,
        is_right: |reason| matches!(reason, StopReason::TripleFault { .. }),
    },
    Hostile {
        vm: VmId(2),
        name: "page tables outside memory",
        is_talkative: false,
        is_right: |reason| matches!(reason, StopReason::Unsupported { code: NESTED_FAULT, .. }),
    },
    Hostile {
        vm: VmId(3),
        name: "an instruction nothing emulates",
        is_talkative: false,
        is_right: |reason| matches!(reason, StopReason::Unsupported { code: NESTED_FAULT, .. }),
    },
];

/// What a hostile guest says that nothing gave way; `true` is a well-behaved access that works all the same.
const ANSWERS: [&str; 6] = [
    "HOSTILE memory 0\n",
    "HOSTILE windows 2 true\n",
    "HOSTILE windows 4 true\n",
    "HOSTILE windows 5 true\n",
    "HOSTILE balloon true\n",
    "HOSTILE well-behaved true\n",
];

fn stop_reason(session: &Session, vm: VmId) -> Result<StopReason, Failure> {
    session
        .wait("end of a VM", HANG, |heard| {
            heard.events.iter().find_map(|(_, event)| match event {
                Event::VmStopped { vm: of, reason } if *of == vm => Some(*reason),
                _ => None,
            })
        })
        .map_err(text)
}

/// Runs one hostile guest to its end.
fn attack(session: &Session, hostile: &Hostile) -> Result<(), Failure> {
    session.ask(Request::VmStart(hostile.vm)).map_err(text)?;
    if hostile.is_talkative {
        attacks_fail(session, hostile.vm)?;
    }
    let reason = stop_reason(session, hostile.vm)?;
    same("right way to stop", (hostile.is_right)(&reason), true)
        .map_err(|error| format!("{error}: {reason:?}"))?;
    wait_state(session, hostile.vm, VmState::Crashed)
}

/// Reads what the hostile guest says about its attacks.
fn attacks_fail(session: &Session, vm: VmId) -> Result<(), Failure> {
    let mut console = Shell::new(session, vm);
    let said = console.wait("end of the attacks", HANG, |said| {
        said.contains("HOSTILE ends").then(|| said.replace('\r', ""))
    })?;
    if let Some(missing) = ANSWERS.iter().find(|answer| !said.contains(**answer)) {
        return Err(format!("'{}' is missing:\n{said}", missing.trim()));
    }
    Ok(())
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("isolation") {
        return;
    }
    let mut started = None;
    let mut free_before = None;
    let up = runner.case("isolation: a quiet guest fills its memory and disk", || {
        let session = started.insert(start("isolation.toml")?);
        session.wait_ready(HANG).map_err(text)?;
        let free = stats(session)?.machine.free;
        session.ask(Request::VmStart(QUIET)).map_err(text)?;
        let mut console = Shell::new(session, QUIET);
        let said = console.wait("pattern", HANG, |said| {
            said.contains("QUIET holds").then(|| said.replace('\r', ""))
        })?;
        same("prefixes", said.contains("QUIET prefixes true\n"), true)?;
        same("SSE on devices", said.contains("QUIET vectors true\n"), true)?;
        free_before = Some(free);
        Ok(())
    });
    let (Some(session), Some(free), true) = (started, free_before, up) else {
        runner.lost("isolation: everything else", "the quiet guest did not start");
        return;
    };
    for hostile in &HOSTILE {
        let name = format!("isolation: a hostile guest harms nobody and stops by {}", hostile.name);
        runner.case(&name, || attack(&session, hostile));
    }
    runner.case("isolation: memory and disk of the quiet guest are what they were", || {
        let mut console = Shell::new(&session, QUIET);
        console.type_line("q")?;
        let verdict = console.wait("verdict", HANG, |said| {
            said.lines().find(|line| line.contains(" rounds, ")).map(str::to_owned)
        })?;
        same("nothing changed", verdict.contains(" 0 words of memory and 0 of the disk"), true)
            .map_err(|error| format!("{error}: {verdict}"))?;
        same("end", stop_reason(&session, QUIET)?, StopReason::PowerOff)
    });
    runner.case("isolation: every page comes back", || {
        wait_state(&session, QUIET, VmState::Stopped)?;
        same("free pages", stats(&session)?.machine.free, free)
    });
    runner.case("isolation: quit ends the run well", || {
        let _ = session.ask(Request::Quit { code: EXIT_GOOD });
        same("QEMU's status", session.wait_end(HANG), Some(exit_status(EXIT_GOOD)))
    });
    let _ = std::fs::remove_dir_all(session.folder());
}
