//! Three VMs of one group write all their shared pages at once, in too little memory; then one reboots and one crashes, with
//! pages in every state.

use crate::boot::{memory, prompt, start, stats, stop, stops, text};
use crate::system::{eventually, same, wait_state};
use ballast::machine::Clock;
use ballast::session::{Ask, Session};
use protocol::link::{MemoryStats, Request, Setting, StopReason, VmState};
use protocol::units::{Pages, VmId};
use std::fmt::Write as _;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

/// Bytes that each guest has in common with the others, until it writes them.
const COMMON: u64 = 8 << 20;
/// Bytes that are each guest's own from the start.
const OWN: u64 = 16 << 20;
/// What makes the guests' contents differ.
const MARKS: [&str; 3] = ["A", "BB", "CCC"];
const REBOOTED: VmId = VmId(0);
const CRASHED: VmId = VmId(1);
const QUIET: VmId = VmId(2);

fn description() -> String {
    let mut text = "[host]\nname = \"storm\"\nmemory = \"224M\"\nswap = \"512M\"\n\
                    scan_pages_per_second = 20000\n[group.equal]\nsharing = \"group\"\n"
        .to_owned();
    for name in ["a", "b", "c"] {
        let _ = write!(
            text,
            "[[vm]]\nname = \"{name}\"\ngroup = \"equal\"\nkernel = \"debian\"\ninitrd = \"debian\"\n\
             memory = {{ size = \"96M\", reservation = \"16M\" }}\nautostart = false\n"
        );
    }
    text
}

/// Copies of a program, so far apart as `mark` is long: with the same mark it is the same in all guests, and with another no page
/// is the same.
fn content(mark: &str) -> String {
    format!(
        "for i in 1 2 3 4 5 6 7 8 9; do echo {mark}$i; cat /bin/busybox; done | head -c {COMMON}"
    )
}

/// A guest's check that every page of its file is what was written last.
const CHECK: &str = "[ \"$(md5sum </m/f)\" = \"$(cat /sum)\" ]";

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("storm") {
        return;
    }
    let mut started = None;
    let mut free = None;
    let shared = runner.case("storm: three VMs with the same pages share them", || {
        let session = started.insert(start("storm", &description(), Clock::Instructions)?);
        session.wait_ready(HANG).map_err(text)?;
        free = Some(stats(session)?.machine.free);
        share(session)
    });
    let Some(session) = started.filter(|_| shared) else {
        runner.lost("storm: everything else", "the VMs did not share");
        return;
    };
    if !cases(runner, &session, free) {
        runner.lost("storm: the cases that follow", "one before them failed");
    }
    runner.case("storm: quit ends the run well", || stop(&session));
}

/// Starts the VMs, and waits until the scanner has seen what they have in common.
fn share(session: &Session) -> Result<(), Failure> {
    let fill = format!(
        "mkdir -p /m && mount -t tmpfs -o size=90% m /m && head -c {OWN} /dev/urandom >/m/own && {} >/m/f",
        content("")
    );
    for vm in (0..3).map(VmId) {
        session.ask(Request::VmStart(vm)).map_err(text)?;
        let mut shell = Shell::new(session, vm);
        prompt(&mut shell)?;
        shell.expect(&fill)?;
    }
    let seen = stats(session)?.counter("sharing.scanned") + 100_000;
    eventually(session, "100,000 pages scanned", |stats| stats.counter("sharing.scanned") > seen)
}

/// Runs the cases; whether all passed.
fn cases(runner: &mut Runner, session: &Session, free: Option<Pages>) -> bool {
    let ask = |request: Request| session.ask(request).map(drop).map_err(text);
    let mut shells = [0, 1, 2].map(|vm| Shell::new(session, VmId(vm)));
    shells.iter_mut().for_each(Shell::skip);
    runner.case("storm: all write their shared pages at once and nobody dies", || {
        let before = stats(session)?.counter("sharing.breaks");
        for (shell, mark) in shells.iter_mut().zip(MARKS) {
            let over = "dd of=/m/f conv=notrunc bs=64k 2>/dev/null";
            shell.start(&format!("{} | {over}", content(mark)))?;
        }
        for shell in &mut shells {
            same("status of a writer", shell.finish(HANG)?.status, 0)?;
        }
        for (shell, mark) in shells.iter_mut().zip(MARKS) {
            shell.expect(&format!("{} | md5sum >/sum && {CHECK}", content(mark)))?;
        }
        let broken = stats(session)?.counter("sharing.breaks") - before;
        // A page that had been compressed or swapped meanwhile was not shared.
        if broken < COMMON / 4096 {
            return Err(format!("only {broken} shared pages were written"));
        }
        same("VMs stopped", stops(session), vec![])
    }) && runner.case("storm: two VMs have pages in every state", || {
        for vm in [REBOOTED, CRASHED] {
            ask(Request::VmSet { vm, setting: Setting::Balloon(Some(Pages(1024))) })?;
        }
        eventually(session, "shared, compressed, swapped and ballooned pages of each", |stats| {
            [REBOOTED, CRASHED].map(|vm| memory(stats, vm)).iter().all(|memory| {
                let counts = [memory.shared, memory.compressed, memory.swapped, memory.balloon];
                counts.iter().all(|pages| pages.0 > 0)
            })
        })
    }) && ends(runner, session, &mut shells, free)
}

/// One VM reboots, one crashes.
fn ends(
    runner: &mut Runner,
    session: &Session,
    shells: &mut [Shell<'_>; 3],
    free: Option<Pages>,
) -> bool {
    let ask = |request: Request| session.ask(request).map(drop).map_err(text);
    let [rebooted, crashed, quiet] = shells;
    runner.case("storm: a guest reboots with pages in every state", || {
        rebooted.skip();
        rebooted.type_line("reboot -f")?;
        prompt(rebooted)?;
        rebooted.expect("! mountpoint /m && dmesg | grep -q 'Linux version'")?;
        quiet.expect(CHECK)?;
        crashed.expect(CHECK)?;
        same("VMs stopped", stops(session), vec![])
    }) && runner.case("storm: a guest crashes with pages in every state", || {
        crashed.type_line(
            "echo -1 >/proc/sys/kernel/panic; echo triple >/sys/kernel/reboot/type; echo c >/proc/sysrq-trigger",
        )?;
        wait_state(session, CRASHED, VmState::Crashed)?;
        let triple = matches!(stops(session)[..], [(CRASHED, StopReason::TripleFault { .. })]);
        same("a triple fault", triple, true).map_err(|why| format!("{why}: {:?}", stops(session)))?;
        same("what is left of it", memory(&stats(session)?, CRASHED), MemoryStats::default())?;
        quiet.expect(CHECK).map(drop)
    }) && runner.case("storm: every page comes back", || {
        for vm in [REBOOTED, QUIET] {
            ask(Request::VmStop(vm))?;
            wait_state(session, vm, VmState::Stopped)?;
        }
        // What was on its way to the disk when its VM ended comes when the disk has answered.
        eventually(session, "all pages free", |stats| Some(stats.machine.free) == free)
    })
}
