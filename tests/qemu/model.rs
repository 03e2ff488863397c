//! A modelled disk in front of the real one, as a guest sees it.

use crate::boot::{start, stats, stop, text};
use crate::system::downtime;
use ballast::machine::Clock;
use ballast::session::{Ask, Session};
use protocol::io::DiskStats;
use protocol::link::{Request, ServerId};
use protocol::units::{DiskId, VmId};
use std::sync::Arc;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

/// One guest that stays in its initramfs, with an empty disk.
const SYSTEM: &str = r#"
[host]
memory = "192M"
[[vm]]
name = "guest"
memory = { size = "96M" }
kernel = "debian"
initrd = "debian"
disk = [{ image = "empty", size = "16M" }]
cmdline = "console=ttyS0 quiet"
"#;
/// Ten milliseconds a request.
const MODEL: &str = "[host]\ndisk_model = { array = { iops = 100 } }";
const REQUESTS: u64 = 100;
const MODELLED_NANOS: u64 = REQUESTS * 10_000_000;

/// Quick, then a request a second: the last of 32 at once take longer than the time limit of 30 seconds.
const STALLING: &str = "[host]\ndisk_model = { array = { iops = 1000, later = [{ from = 15, iops = 1 }, { from = 60, iops = 1000 }] } }";
const STALLED_READS: usize = 32;
/// Waits for the disk to become slow, then reads at once from places far from each other; a word for each.
const READ_WHILE_STALLED: &str = "while [ $(cut -d. -f1 /proc/uptime) -lt 16 ]; do sleep 1; done; \
    for i in $(seq 32); do (dd if=/dev/vda of=/dev/null bs=4k count=1 skip=$((i * 50)) iflag=direct 2>/dev/null \
    && echo read || echo failed) & done; wait";

/// A disk that keeps requests too long: they are errors, the server is made anew, and nothing stays behind.
fn stalls() -> Result<(), Failure> {
    let session = booted(&SYSTEM.replace("[host]", STALLING))?;
    let ask = |request| session.ask(request).map_err(text);
    let mut shell = Shell::new(&session, VmId(0));
    let words = shell.expect(READ_WHILE_STALLED)?;
    let count = |wanted| words.lines().filter(|word| word.trim() == wanted).count();
    let (read, failed) = (count("read"), count("failed"));
    if read + failed != STALLED_READS || !(1..=4).contains(&failed) {
        return Err(format!("{read} reads, {failed} failed: {words}"));
    }
    downtime(&session, ServerId::Io(DiskId(0)))?;
    session
        .wait("the reason", HANG, |heard| {
            heard.log.iter().any(|line| line.contains("keeps a request too long")).then_some(())
        })
        .map_err(text)?;
    shell.expect(&reads())?;
    ask(Request::VmStop(VmId(0)))?;
    ask(Request::VmStart(VmId(0)))?;
    stop(&session)
}

fn reads() -> String {
    format!("dd if=/dev/vda of=/dev/null bs=4k count={REQUESTS} iflag=direct 2>/dev/null")
}

fn disk(session: &Session) -> Result<DiskStats, Failure> {
    let lines = session.ask(Request::Disks).map_err(text)?;
    let disk = ballast::report::Stats::from_lines(&lines).disk().copied();
    disk.ok_or_else(|| "the io-sched-server does not answer".to_owned())
}

/// Machine time for the reads, one after the other.
fn timed(session: &Session) -> Result<u64, Failure> {
    let mut shell = Shell::new(session, VmId(0));
    let before = stats(session)?.machine.uptime.0;
    shell.expect(&reads())?;
    Ok(stats(session)?.machine.uptime.0 - before)
}

fn booted(description: &str) -> Result<Arc<Session>, Failure> {
    // Idle time passes: skipped, it would be as long as the next timer is away, whatever the disk does meanwhile.
    let session = start("model", description, Clock::Patient)?;
    Shell::new(&session, VmId(0)).enter()?;
    Ok(session)
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("model") {
        return;
    }
    let mut started = None;
    let name = "model: no read of a modelled disk is quicker than the model";
    let worked = runner.case(name, || {
        let session = started.insert(booted(&SYSTEM.replace("[host]", MODEL))?);
        let taken = timed(session)?;
        let disk = disk(session)?;
        if taken >= MODELLED_NANOS && disk.is_modelled && disk.completed >= REQUESTS {
            return Ok(());
        }
        Err(format!("{REQUESTS} reads took {taken} ns: {disk:?}"))
    });
    match started {
        Some(session) if worked => {
            runner.case("model: a new io-sched-server finds the delayed requests", || {
                let mut shell = Shell::new(&session, VmId(0));
                // Something is always under way when the server is killed.
                shell.run(&format!(
                    "(while {}; do :; done; echo BROKEN >/dev/ttyS0) & true",
                    reads()
                ))?;
                session.ask(Request::Kill(ServerId::Io(DiskId(0)))).map_err(text)?;
                shell.expect(&reads())?;
                let disk = disk(&session)?;
                if shell.pending().contains("BROKEN") || !disk.is_modelled {
                    return Err(format!("{:?} {disk:?}", shell.pending()));
                }
                stop(&session)
            });
        }
        _ => runner.lost("model: a new io-sched-server", "the reads did not work"),
    }
    runner.case("model: a request that is kept too long fails, and the disk is reset", stalls);
    runner.case("model: without a model the same reads are quicker", || {
        let session = booted(SYSTEM)?;
        let taken = timed(&session)?;
        let disk = disk(&session)?;
        stop(&session)?;
        if taken < MODELLED_NANOS && !disk.is_modelled && disk.late == 0 {
            return Ok(());
        }
        Err(format!("{REQUESTS} reads took {taken} ns: {disk:?}"))
    });
}
