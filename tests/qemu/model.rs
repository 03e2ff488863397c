//! A modelled disk in front of the real one, as a guest sees it.

use crate::boot::{start, stats, stop, text};
use ballast::machine::Clock;
use ballast::session::{Ask, Session};
use protocol::io::DiskStats;
use protocol::link::{Request, ServerId};
use protocol::units::{DiskId, VmId};
use std::sync::Arc;
use tests::guest::Shell;
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
