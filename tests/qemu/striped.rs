//! A machine with two disks: virtual disks spread over both, claims that hold over both servers together, the end of one.

use crate::boot::{start, stats, stop, text};
use crate::disk::{limit, set_disk};
use crate::system::downtime;
use ballast::machine::Clock;
use ballast::report::Stats;
use ballast::session::{Ask, Session};
use protocol::link::{Request, ServerId};
use protocol::units::{DiskId, VmId};
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

const WIDE: VmId = VmId(0);
/// Requests per second that both servers together allow the second disk of [`WIDE`].
const LIMIT: u32 = 100;
/// Reads of each of two readers.
const READS: u64 = 150;

/// Machine time of two readers, in milliseconds: the second is one stripe ahead, so that each server has one at any time.
fn timed_reads(session: &Session, shell: &mut Shell<'_>) -> Result<u64, Failure> {
    let before = stats(session)?.machine.uptime.0;
    let reader = |skip| {
        format!(
            "dd if=/dev/vdb of=/dev/null bs=4k count={READS} skip={skip} iflag=direct 2>/dev/null"
        )
    };
    shell.expect(&format!("{} & {}; wait", reader(0), reader(16)))?;
    Ok((stats(session)?.machine.uptime.0 - before) / 1_000_000)
}

fn limit_holds(session: &Session, shell: &mut Shell<'_>) -> Result<(), Failure> {
    set_disk(session, WIDE, 1, limit(LIMIT))?;
    let slow = timed_reads(session, shell)?;
    set_disk(session, WIDE, 1, limit(0))?;
    let fast = timed_reads(session, shell)?;
    // Two servers that did not hear of each other would let it through in half of that.
    let lawful = 2 * READS * 1000 / u64::from(LIMIT);
    if (lawful * 95 / 100..lawful * 125 / 100).contains(&slow) && fast < lawful / 4 {
        return Ok(());
    }
    Err(format!("took {slow} ms of lawful {lawful} ms, and {fast} ms without a limit"))
}

fn both_parts_work(session: &Session) -> Result<(), Failure> {
    let lines = session.ask(Request::Disks).map_err(text)?;
    let stats = Stats::from_lines(&lines);
    for on in [DiskId(0), DiskId(1)] {
        let part = stats.disk_clients.iter().find(|client| {
            (client.vm, client.disk, client.part.1, client.on) == (Some(WIDE), 0, 2, on)
        });
        let reads = part.map(|client| client.stats.reads);
        if reads.is_none_or(|reads| reads < 50) {
            return Err(format!("disk {}: {reads:?} reads of the root file system", on.0));
        }
    }
    Ok(())
}

/// Writes, has the second disk's server killed meanwhile, and compares.
fn survives(session: &Session, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let server = ServerId::Io(DiskId(1));
    shell.expect("mkdir -p /m && mount -t tmpfs m /m && head -c 16777216 /dev/urandom >/m/f")?;
    shell.start("dd if=/m/f of=/dev/vdb bs=64k oflag=direct,sync 2>/dev/null")?;
    session.ask(Request::Kill(server)).map_err(text)?;
    downtime(session, server)?;
    shell.finish(HANG)?;
    shell.expect("echo 3 >/proc/sys/vm/drop_caches; cmp -n 16777216 /m/f /dev/vdb").map(drop)
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("striped") {
        return;
    }
    let description = include_str!("../../images/systems/striped.toml");
    let session = match start("striped", description, Clock::Patient) {
        Ok(session) => session,
        Err(why) => {
            runner.case("striped: the system starts", || Err(why));
            return;
        }
    };
    let mut shell = Shell::new(&session, WIDE);
    runner.case("striped: Debian boots from a disk spread over two disks", || {
        session.wait_ready(HANG).map_err(text)?;
        shell.log_in()?;
        both_parts_work(&session)
    });
    runner.case("striped: a limit holds over two servers together", || {
        limit_holds(&session, &mut shell)
    });
    runner.case("striped: nothing is lost when the server of one part is killed", || {
        survives(&session, &mut shell)
    });
    runner.case("striped: the system ends", || stop(&session));
}
