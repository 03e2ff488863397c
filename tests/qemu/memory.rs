//! A VM's own memory controls are set while it runs, and the user sees what comes of it; and guests that run out of memory under
//! their balloons, one whose driver may take pages back and one whose driver may not.

use crate::boot::{memory, prompt, start, stats, stop, stops, text};
use crate::system::{eventually, same};
use ballast::machine::Clock;
use ballast::session::{Ask, Line, Session};
use protocol::link::{MemoryStats, Request, Setting};
use protocol::units::{Pages, VmId};
use std::fmt::Write as _;
use tests::guest::Shell;
use tests::runner::{Failure, Runner};

/// The VM whose controls are set.
const SET: VmId = VmId(0);
/// The VM beside it; its balloon driver is not offered to take pages back.
const BESIDE: VmId = VmId(1);
/// Size of each VM.
const SIZE: u64 = 96 << 8;
/// What [`SET`] is limited to, and what is then in the balloon.
const LIMIT: u64 = 72 << 8;

fn description() -> String {
    let mut text = "[host]\nname = \"controls\"\nmemory = \"240M\"\nswap = \"256M\"\n".to_owned();
    for (name, deflate_on_oom) in [("set", true), ("beside", false)] {
        let _ = write!(
            text,
            "[[vm]]\nname = \"{name}\"\nkernel = \"debian\"\ninitrd = \"debian\"\n\
             memory = {{ size = \"96M\", reservation = \"16M\", sharing = \"none\" }}\n\
             balloon = {{ deflate_on_oom = {deflate_on_oom} }}\n"
        );
    }
    text
}

/// Checks what every guest keeps from its start on.
const CHECK: &str = "[ \"$(md5sum </m/kept)\" = \"$(cat /sum)\" ]";
/// How often the guest's own killer has struck.
const KILLS: &str = "grep -q '^oom_kill 0$' /proc/vmstat";

/// Keeps `mib` MiB of random bytes as file `name`.
fn keep(name: &str, mib: u32) -> String {
    format!("head -c {} /dev/urandom >/m/{name}", mib << 20)
}

/// A program that needs `mib` MiB of memory of its own.
fn need(mib: u32) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null")
}

/// The controls as `explain` has them.
fn term(session: &Session, vm: VmId, wanted: &str) -> Result<u64, Failure> {
    let lines = session.ask(Request::Explain(vm)).map_err(text)?;
    let found = lines.iter().find_map(|line| match line {
        Line::Term { name, value, .. } if name == wanted => Some(*value),
        _ => None,
    });
    found.ok_or_else(|| format!("no {wanted} is explained"))
}

fn set(session: &Session, vm: VmId, setting: Setting) -> Result<(), Failure> {
    session.ask(Request::VmSet { vm, setting }).map(drop).map_err(text)
}

/// A setting that must be refused in words that contain `why`.
fn refused(session: &Session, vm: VmId, setting: Setting, why: &str) -> Result<(), Failure> {
    match set(session, vm, setting) {
        Err(words) if words.contains(why) => Ok(()),
        other => Err(format!("not refused for {why:?}: {other:?}")),
    }
}

/// Pages that were taken from a VM, in whatever way.
const fn taken(memory: &MemoryStats) -> u64 {
    memory.balloon.0 + memory.swapped.0 + memory.compressed.0
}

/// Waits until the balloon of `vm` leaves its target, which is more than [`LIMIT`].
fn given_back(session: &Session, vm: VmId) -> Result<(), Failure> {
    eventually(session, "a small balloon", |stats| {
        let memory = memory(stats, vm);
        memory.target.0 > LIMIT && memory.balloon.0 <= SIZE - memory.target.0
    })
}

fn untouched(session: &Session, vm: VmId) -> Result<(), Failure> {
    same("VMs stopped", stops(session), vec![])?;
    same("pages taken from the other", taken(&memory(&stats(session)?, vm)), 0)
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("controls") {
        return;
    }
    let mut started = None;
    let booted = runner.case("controls: two VMs start", || {
        let session = started.insert(start("controls", &description(), Clock::Instructions)?);
        for vm in [SET, BESIDE] {
            let mut shell = Shell::new(session, vm);
            prompt(&mut shell)?;
            shell.expect("mkdir -p /m && mount -t tmpfs -o size=100% m /m")?;
            shell.expect(&format!("{} && md5sum </m/kept >/sum", keep("kept", 4)))?;
        }
        Ok(())
    });
    let Some(session) = started.filter(|_| booted) else {
        runner.lost("controls: everything else", "the system did not start");
        return;
    };
    if !(limits(runner, &session) && reservations(runner, &session)) {
        runner.lost("controls: the cases that follow", "one before them failed");
    }
    runner.case("controls: quit ends the run well", || stop(&session));
}

/// A limit, and guests that run out of what it leaves them; whether all passed.
fn limits(runner: &mut Runner, session: &Session) -> bool {
    let mut guest = Shell::new(session, SET);
    let limit = |pages| set(session, SET, Setting::MemoryLimit(Pages(pages)));
    let at_limit = |what: &str| {
        eventually(session, what, |stats| {
            let memory = memory(stats, SET);
            (memory.balloon.0, memory.target.0) == (SIZE - LIMIT, LIMIT)
                && memory.granted.0 <= LIMIT
        })
    };
    runner.case("controls: a VM goes down to its limit, and its guest lives", || {
        limit(LIMIT)?;
        at_limit("down to the limit")?;
        same("the limit that is explained", term(session, SET, "memory.limit")?, LIMIT)?;
        guest.expect(CHECK)?;
        untouched(session, BESIDE)
    }) && runner.case("controls: a limit below the reservation is refused", || {
        refused(session, SET, Setting::MemoryLimit(Pages(8 << 8)), "Reservation")?;
        same("the limit that is explained", term(session, SET, "memory.limit")?, LIMIT)
    }) && runner.case("controls: a guest out of memory takes pages back out of its balloon", || {
        guest.expect(&keep("more", 20))?;
        guest.expect(KILLS)?;
        let held = memory(&stats(session)?, SET);
        if held.balloon.0 > (SIZE - LIMIT) * 3 / 4 || held.granted.0 <= LIMIT {
            return Err(format!("nothing was taken back: {held:?}"));
        }
        guest.expect(CHECK)?;
        untouched(session, BESIDE)
    }) && runner.case("controls: it gives them up again when it has no use for them", || {
        guest.expect("rm /m/more")?;
        at_limit("down to the limit again")?;
        guest.expect(&format!("{KILLS} && {CHECK}"))?;
        untouched(session, BESIDE)
    }) && runner.case("controls: with a higher limit a VM has what it touches", || {
        limit(SIZE)?;
        given_back(session, SET)?;
        let before = memory(&stats(session)?, SET).granted;
        guest.expect(&keep("more", 20))?;
        eventually(session, "more for a higher limit", |stats| {
            let granted = memory(stats, SET).granted;
            granted > before && granted.0 > LIMIT
        })?;
        guest.expect(&format!("rm /m/more && {KILLS} && {CHECK}")).map(drop)
    }) && runner.case("controls: a limit that a guest cannot keep is kept by paging", || {
        // The guest runs out before its balloon holds the rest.
        limit(32 << 8)?;
        eventually(session, "pages paged out for a limit", |stats| {
            let memory = memory(stats, SET);
            memory.granted.0 <= 32 << 8 && memory.swapped.0 + memory.compressed.0 > 0
        })?;
        guest.expect(&format!("{KILLS} && {CHECK}"))?;
        untouched(session, BESIDE)?;
        limit(SIZE)?;
        given_back(session, SET)?;
        guest.expect(CHECK).map(drop)
    }) && runs_out(runner, session)
}

/// Guests that have to kill; whether all passed.
fn runs_out(runner: &mut Runner, session: &Session) -> bool {
    let [mut guest, mut other] = [SET, BESIDE].map(|vm| Shell::new(session, vm));
    runner.case("controls: a guest that may not take pages back kills a program", || {
        set(session, BESIDE, Setting::Balloon(Some(Pages(SIZE - LIMIT))))?;
        eventually(session, "a full balloon", |stats| {
            memory(stats, BESIDE).balloon.0 == SIZE - LIMIT
        })?;
        killed(session, &mut other, 20)?;
        same("in the balloon", memory(&stats(session)?, BESIDE).balloon.0, SIZE - LIMIT)?;
        guest.expect(&format!("{KILLS} && {CHECK}"))?;
        set(session, BESIDE, Setting::Balloon(None))?;
        given_back(session, BESIDE)?;
        other.expect(&need(20)).map(drop)
    }) && runner.case(
        "controls: a guest that needs more than there is of it is alone in that",
        || {
            killed(session, &mut guest, 58)?;
            other.expect(CHECK)?;
            same("VMs stopped", stops(session), vec![])
        },
    )
}

/// A program that needs too much is killed by its own kernel, which lives on with what it kept.
fn killed(session: &Session, shell: &mut Shell<'_>, mib: u32) -> Result<(), Failure> {
    let ended = shell.run(&need(mib))?;
    same("status of a program killed", ended.status, 137)?;
    shell.expect(&format!("! {KILLS}"))?;
    shell.expect(CHECK)?;
    same("VMs stopped", stops(session), vec![])
}

/// Reservations; whether all passed.
fn reservations(runner: &mut Runner, session: &Session) -> bool {
    let reserve = |pages| Setting::MemoryReservation(Pages(pages));
    runner.case("controls: a reservation is kept, or refused with the numbers", || {
        set(session, BESIDE, reserve(SIZE))?;
        eventually(session, "no less than the reservation", |stats| {
            memory(stats, BESIDE).target.0 == SIZE
        })?;
        refused(session, SET, reserve(SIZE), "MiB available")?;
        refused(session, SET, reserve(SIZE + 256), "Reservation")?;
        same("what is reserved", term(session, SET, "memory.reservation")?, 16 << 8)?;
        set(session, BESIDE, reserve(0))?;
        set(session, SET, reserve(SIZE))?;
        same("what is reserved", term(session, SET, "memory.reservation")?, SIZE)?;
        for vm in [SET, BESIDE] {
            let mut shell = Shell::new(session, vm);
            shell.skip();
            shell.expect(CHECK)?;
        }
        same("VMs stopped", stops(session), vec![])
    })
}
