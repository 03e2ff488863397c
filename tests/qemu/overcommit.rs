//! More memory promised than there is: many VMs start, and five under load lose no page.

use crate::boot::{memory, start, stats, stop, text};
use crate::system::eventually;
use ballast::machine::Clock;
use ballast::report::Stats;
use ballast::session::{Ask, Session};
use protocol::link::{Event, MemoryStats, Request, ServerId, VmState};
use protocol::system::{GroupMemoryChange, Name};
use protocol::units::{DiskId, Pages, VmId};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

/// Guard in host time for rounds of the load.
const LOAD: Duration = Duration::from_secs(900);

/// Events of the run so far that are no part of a good one.
fn bad_event(session: &Session) -> Option<Event> {
    session.heard(|heard| {
        let is_bad = |event: &&(_, Event)| matches!(event.1, Event::VmStopped { .. });
        heard.events.iter().find(is_bad).map(|event| event.1)
    })
}

/// Runs the groups.
pub fn run(runner: &mut Runner) {
    if runner.wants("many") {
        many(runner);
    }
    if runner.wants("overcommit") {
        overcommit(runner);
    }
}

/// Each VM is loaded from some 4,000 pages; their capabilities must not be in each other's way.
fn many(runner: &mut Runner) {
    let mut description = "[host]\nname = \"many\"\nmemory = \"1024M\"\n".to_owned();
    for number in 1..=8 {
        let _ = write!(
            description,
            "[[vm]]\nname = \"vm{number}\"\nkernel = \"debian\"\ninitrd = \"debian\"\n\
             memory = {{ size = \"96M\", reservation = \"16M\" }}\n"
        );
    }
    // The ninth asks for more than there is.
    description.push_str(
        "[[vm]]\nname = \"vm9\"\nkernel = \"debian\"\ninitrd = \"debian\"\n\
         memory = { size = \"900M\", reservation = \"900M\" }\nautostart = false\n",
    );
    let mut started = None;
    let booted = runner.case("many: eight VMs start together", || {
        let session = start("many", &description, Clock::Instructions)?;
        let session = started.insert(session);
        session.wait_ready(HANG).map_err(text)?;
        let states = ballast::cli::states(&**session).map_err(text)?;
        let running = states.iter().filter(|(.., state)| *state == VmState::Running).count();
        if running == 8 { Ok(()) } else { Err(format!("{running} of 8 run")) }
    });
    let Some(session) = started.filter(|_| booted) else {
        runner.lost("many: everything else", "the VMs did not start");
        return;
    };
    runner.case("many: what is too much is refused with the numbers and leaves nothing", || {
        let before = stats(&session)?.machine.free;
        let refused = session.ask(Request::VmStart(VmId(8)));
        let words = refused.err().map(text).unwrap_or_default();
        if !words.contains("memory is short") || !words.contains("MiB available") {
            return Err(format!("not refused with numbers: {words:?}"));
        }
        let after = stats(&session)?.machine.free;
        // The other guests still boot and touch pages meanwhile, so free memory may shrink, but not by a VM.
        if before.bytes().saturating_sub(after.bytes()) > 400 << 20 {
            return Err(format!("{before:?} pages free before, {after:?} after"));
        }
        Ok(())
    });
    runner.case("many: quit ends the run well", || stop(&session));
}

/// The system of `images/systems/overcommit.toml` at half its size.
fn small_overcommit() -> Result<String, Failure> {
    let path = Path::new(ballast::WORKSPACE).join("images/systems/overcommit.toml");
    let text = std::fs::read_to_string(&path).map_err(text)?;
    let text = text
        .replace("memory = \"640M\"", "memory = \"416M\"")
        .replace("size = \"192M\", reservation = \"64M\"", "size = \"128M\", reservation = \"48M\"")
        .replace("size = \"192M\"", "size = \"128M\"")
        .replace("ballast.load=20", "ballast.load=2,30");
    // The last VM has what the others have, and shares it with nobody.
    let claim = "reservation = \"32M\"";
    let (before, after) = text.rsplit_once(claim).ok_or("no reservation in overcommit.toml")?;
    Ok(format!("{before}{claim}, sharing = \"none\"{after}"))
}

/// Waits for the next `count` rounds on a console; a wrong checksum, a killed program or a second start fails.
fn rounds(shell: &mut Shell<'_>, count: usize) -> Result<(), Failure> {
    let said = shell.wait("rounds of the load", LOAD, |text| {
        let bad = ["WRONG", "Out of memory", "oom-kill", "Killed", "panic"];
        if let Some(word) = bad.iter().find(|word| text.contains(**word)) {
            return Some(Err((*word).to_owned()));
        }
        (text.matches("rounds, 0 errors").count() >= count).then_some(Ok(()))
    })?;
    said.map_err(|word| format!("the load said {word}"))
}

/// Gives `batch` more than `web` has, and takes it back.
fn group_shares(session: &Session) -> Result<(), Failure> {
    let targets = |stats: &Stats, vms: Range<u16>| -> u64 {
        vms.map(|vm| memory(stats, VmId(vm)).target.0).sum()
    };
    let set = |change| {
        let group = Name::try_from("batch").map_err(|_| "a name".to_owned())?;
        session.ask(Request::GroupMemorySet { group, change }).map(drop).map_err(text)
    };
    let shares = |shares| GroupMemoryChange { shares: Some(shares), reservation: None };
    let before = stats(session)?;
    let (web, batch) = (targets(&before, 0..3), targets(&before, 3..5));
    // High against low, four to one, and three VMs against two.
    if web <= batch * 3 / 2 {
        return Err(format!("{web} pages for web, {batch} for batch"));
    }
    set(shares(8000))?;
    eventually(session, "more for batch", |stats| targets(stats, 3..5) > batch * 5 / 4)?;
    set(shares(500))?;
    eventually(session, "as before", |stats| targets(stats, 3..5) < batch * 9 / 8)?;
    let much = GroupMemoryChange { shares: None, reservation: Some(Pages(1 << 18)) };
    match set(much) {
        Err(why) if why.contains("memory is short") => Ok(()),
        other => Err(format!("a reservation of 1 GiB: {other:?}")),
    }
}

fn overcommit(runner: &mut Runner) {
    let mut started = None;
    let booted = runner.case("overcommit: five VMs of 60 % more than there is start", || {
        let session =
            started.insert(start("overcommit", &small_overcommit()?, Clock::Instructions)?);
        session.wait_ready(HANG).map_err(text)?;
        let stats = stats(session)?;
        let sizes: u64 = stats.vms.iter().map(|(.., vm)| vm.memory.size.bytes()).sum();
        let machine = stats.machine.memory.bytes() - stats.machine.kernel_memory.bytes();
        if sizes * 10 < machine * 16 {
            return Err(format!("only {sizes} bytes configured of {machine}"));
        }
        bad_event(session).map_or(Ok(()), |event| Err(format!("{event:?}")))
    });
    let Some(session) = started.filter(|_| booted) else {
        runner.lost("overcommit: everything else", "the system did not start");
        return;
    };
    let mut shells: Vec<Shell<'_>> = (0..5).map(|vm| Shell::new(&session, VmId(vm))).collect();
    let worked = runner.case("overcommit: no page is lost under load", || {
        shells.iter_mut().try_for_each(|shell| rounds(shell, 2))
    });
    if worked {
        runner.case("overcommit: pages were compressed and went to the swap partition", || {
            let stats = stats(&session)?;
            let all = |of: fn(&MemoryStats) -> Pages| -> u64 {
                stats.vms.iter().map(|(.., vm)| of(&vm.memory).0).sum()
            };
            let (packed, swapped) = (all(|memory| memory.compressed), all(|memory| memory.swapped));
            let shared = all(|memory| memory.shared);
            if packed > 0 && swapped > 0 && shared > 0 {
                return Ok(());
            }
            Err(format!("{packed} pages compressed, {swapped} swapped, {shared} shared"))
        });
        runner.case("overcommit: a VM that shares with nobody has no page in common", || {
            let stats = stats(&session)?;
            let shared = |name: &str| {
                let vm = stats.vms.iter().find(|vm| vm.1 == name);
                vm.map(|(.., vm)| vm.memory.shared.0).ok_or(format!("no VM {name}"))
            };
            match (shared("batch1")?, shared("batch2")?) {
                (1.., 0) => Ok(()),
                (with, alone) => Err(format!("{with} pages shared in a group, {alone} alone")),
            }
        });
        runner.case("overcommit: a group's shares are its VMs' targets, while it runs", || {
            group_shares(&session)
        });
        runner.case("overcommit: a new io-sched-server finds the swap requests", || {
            session.ask(Request::Kill(ServerId::Io(DiskId(0)))).map_err(text)?;
            shells.iter_mut().try_for_each(|shell| rounds(shell, 1))?;
            bad_event(&session).map_or(Ok(()), |event| Err(format!("{event:?}")))
        });
    }
    runner.case("overcommit: quit ends the run well", || stop(&session));
}
