//! How much memory a live guest uses, estimated from outside: by samples and from the processor's accessed bits.
//!
//! The guest has no balloon, so it says nothing about its memory at all.

use crate::boot::{prompt, start, stats, stop, text};
use ballast::machine::Clock;
use ballast::session::Session;
use protocol::units::VmId;
use std::time::{Duration, Instant};
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

/// What the guest uses while it is busy, in MiB.
const BUSY: f64 = 32.0;
/// What the estimate may be off then: an error of 12 points on some 110 MiB, and the guest's kernel on top.
const BAND: std::ops::Range<f64> = BUSY - 13.0..BUSY + 20.0;
/// An estimate below this many MiB is an idle guest's.
const IDLE: f64 = 15.0;
/// Two sampling periods and a little, in seconds of the machine: so soon the estimate is there after a step up.
const RISE: f64 = 65.0;
/// So many seconds of the machine after the guest has gone idle its slow average is down.
const FALL: f64 = 900.0;
/// Keeps a file of [`BUSY`] MiB in memory and reads every byte of it every ten seconds.
const WORK: &str = "mkdir -p /m && mount -t tmpfs -o size=90% m /m && head -c 33554432 /dev/urandom >/m/f && \
     { while :; do wc -l </m/f >/dev/null; sleep 10; done & } && echo $! >/w";

/// Seconds of the machine and MiB that the VM is thought to use.
fn look(session: &Session) -> Result<(f64, f64), Failure> {
    let stats = stats(session)?;
    let active = stats.vms.first().map(|(.., vm)| vm.memory.active.bytes());
    let seconds = stats.machine.uptime.0 as f64 / 1e9;
    Ok((seconds, active.ok_or("the VM is not listed")? as f64 / f64::from(1 << 20)))
}

/// Looks until `found` accepts seconds since the first look and estimate, `limit` seconds of the machine at most.
fn until(session: &Session, limit: f64, found: impl Fn(f64, f64) -> bool) -> Result<(), Failure> {
    let (begin, started) = (Instant::now(), look(session)?.0);
    loop {
        let (now, active) = look(session)?;
        if found(now - started, active) {
            return Ok(());
        }
        if now - started > limit || begin.elapsed() > HANG {
            return Err(format!("{active:.1} MiB in use, {:.0} s on", now - started));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn follows(session: &Session) -> Result<(), Failure> {
    session.wait_ready(HANG).map_err(text)?;
    let mut shell = Shell::new(session, VmId(0));
    prompt(&mut shell)?;
    let step =
        |what: &str, result: Result<(), Failure>| result.map_err(|why| format!("{what}: {why}"));
    step("idle after booting", until(session, FALL, |_, active| active < IDLE))?;
    shell.expect(WORK)?;
    step(
        "busy",
        until(session, 2.0 * RISE, |seconds, active| seconds >= RISE && BAND.contains(&active)),
    )?;
    shell.expect("kill $(cat /w)")?;
    step("idle again", until(session, FALL, |_, active| active < IDLE))
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("working-set") {
        return;
    }
    // Both with large pages, which have one accessed bit each.
    for (what, policy) in [("samples", ""), ("accessed bits", "harvest = true\n")] {
        runner.case(&format!("working-set: {what} follow a guest up and down"), || {
            let description = format!(
                "[host]\nname = \"working-set\"\nmemory = \"256M\"\n{policy}\
                 [[vm]]\nname = \"vm\"\nkernel = \"debian\"\ninitrd = \"debian\"\n\
                 memory = {{ size = \"128M\" }}\nballoon = {{ present = false }}\n"
            );
            let session = start("working-set", &description, Clock::Instructions)?;
            let followed = follows(&session);
            let stopped = stop(&session);
            followed.and(stopped)
        });
    }
}
