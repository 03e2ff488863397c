//! A machine with two disks: virtual disks spread over both, claims that hold over both servers together, the end of one
//! and of both.

use crate::boot::{memory, start, stats, stop, text};
use crate::disk::{limit, set_disk};
use ballast::machine::Clock;
use ballast::report::Stats;
use ballast::session::{Ask, Line, Session};
use protocol::link::{Event, Request, ServerId, Setting};
use protocol::system::IoChange;
use protocol::units::{DiskId, VmId};
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

const WIDE: VmId = VmId(0);
/// The servers of both disks.
const SERVERS: [ServerId; 2] = [ServerId::Io(DiskId(0)), ServerId::Io(DiskId(1))];
/// Requests per second that both servers together allow the second disk of [`WIDE`].
const LIMIT: u32 = 100;
/// Reads of each of two readers.
const READS: u64 = 150;

/// Machine time of two readers at once, in milliseconds.
fn timed(session: &Session, shell: &mut Shell<'_>, readers: [String; 2]) -> Result<u64, Failure> {
    let before = stats(session)?.machine.uptime.0;
    let [first, second] = readers;
    shell.expect(&format!("{first} & {second}; wait"))?;
    Ok((stats(session)?.machine.uptime.0 - before) / 1_000_000)
}

/// Machine time of two readers, in milliseconds: the second is one stripe ahead, so that each server has one at any time.
fn timed_reads(session: &Session, shell: &mut Shell<'_>) -> Result<u64, Failure> {
    let readers = [0, 16].map(|skip| {
        format!(
            "dd if=/dev/vdb of=/dev/null bs=4k count={READS} skip={skip} iflag=direct 2>/dev/null"
        )
    });
    timed(session, shell, readers)
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

/// A VM's limit holds for its disks together on all servers: one reader of the first stripe of a disk, which is at the first server,
/// and one of the second stripe of another, which is at the second.
fn limit_of_all_disks_holds(session: &Session, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let set = |change| {
        let setting = Setting::VmIo(change);
        session.ask(Request::VmSet { vm: WIDE, setting }).map(drop).map_err(text)
    };
    let readers = || {
        [("vda", 0), ("vdb", 16)].map(|(disk, skip)| {
            let read = format!("dd if=/dev/{disk} of=/dev/null bs=4k count=16 iflag=direct");
            let read = format!("{read} skip={skip}");
            format!("for n in 1 2 3 4 5 6 7 8 9 10; do {read} 2>/dev/null; done")
        })
    };
    set(limit(LIMIT / 2))?;
    let slow = timed(session, shell, readers())?;
    set(limit(0))?;
    let fast = timed(session, shell, readers())?;
    // A limit of each disk or of each server alone would let it through in half of that; what the guest reads of its root disk itself counts too.
    let lawful = 2 * 160 * 1000 / u64::from(LIMIT / 2);
    if !(lawful * 95 / 100..lawful * 2).contains(&slow) || fast > lawful / 2 {
        return Err(format!("took {slow} ms of lawful {lawful} ms, and {fast} ms without a limit"));
    }
    let impossible = IoChange { reservation: Some(60), limit: Some(50), ..IoChange::default() };
    match set(impossible) {
        Err(_) => Ok(()),
        Ok(()) => Err("a reservation above its limit was taken".to_owned()),
    }
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

/// Every io-sched-server has its own disk's interrupt, and no ports: not those by which PCI is configured, or any other.
fn each_has_its_own_disk_alone(session: &Session) -> Result<(), Failure> {
    let lines = session.ask(Request::Caps).map_err(text)?;
    let mut interrupts = Vec::new();
    for line in &lines {
        let Line::Cap { server, kind, .. } = line else { continue };
        match kind.as_str() {
            "IOPort" => return Err(format!("{server:?} has ports")),
            "IrqHandler" => interrupts.push(*server),
            _ => {}
        }
    }
    interrupts.sort_by_key(|server| format!("{server:?}"));
    if interrupts == SERVERS {
        return Ok(());
    }
    Err(format!("interrupts are held by {interrupts:?}"))
}

/// Claims are shown with the group they count against, and swap with its own, which changes while the system runs.
fn groups_and_swap_are_shown(session: &Session) -> Result<(), Failure> {
    let shown = || {
        let lines = session.ask(Request::Disks).map_err(text)?;
        let clients = Stats::from_lines(&lines).disk_clients.into_iter();
        let rows = clients.map(|client| (client.vm, client.group, client.control.reservation));
        Ok::<std::collections::HashSet<_>, Failure>(rows.collect())
    };
    let tenant = Some("tenant".to_owned());
    let wanted = |swap| {
        let narrow = (Some(VmId(1)), None, 0);
        [(Some(WIDE), tenant.clone(), 0), narrow, (None, None, swap)].into_iter().collect()
    };
    let before = shown()?;
    let change = IoChange { reservation: Some(70), ..IoChange::default() };
    session.ask(Request::SwapIo(change)).map_err(text)?;
    let after = shown()?;
    let impossible = IoChange { reservation: Some(60), limit: Some(50), ..IoChange::default() };
    if session.ask(Request::SwapIo(impossible)).is_ok() {
        return Err("a reservation of swap above its limit was taken".to_owned());
    }
    if (&before, &after) == (&wanted(50), &wanted(70)) && shown()? == after {
        return Ok(());
    }
    Err(format!("{before:?}, then {after:?}"))
}

/// A group shows who is in it, its claims, and what each disk did for it.
fn groups_are_counted(session: &Session) -> Result<(), Failure> {
    let stats = stats(session)?;
    let Some(group) = stats.groups.first() else { return Err("no group".to_owned()) };
    let is_right = stats.groups.len() == 1
        && group.name == "tenant"
        && group.members == [WIDE]
        && group.io.shares == 2000
        && stats.group_sum(group, |memory| memory.granted) == memory(&stats, WIDE).granted
        && memory(&stats, WIDE).granted.0 > 0;
    // Both servers were made anew and counted from nothing; then it read what it had written, from both disks.
    let has_read =
        |disk: u8| group.disks.iter().any(|(on, stats)| *on == DiskId(disk) && stats.reads > 0);
    if is_right && group.disks.len() == 2 && has_read(0) && has_read(1) {
        return Ok(());
    }
    Err(format!("{group:?}"))
}

/// Waits until `server` has been made anew `times` times.
fn restarted(session: &Session, server: ServerId, times: usize) -> Result<(), Failure> {
    let is_it =
        |event: &Event| matches!(event, Event::ServerRestarted { server: s, .. } if *s == server);
    let seen = session.wait("restart of a server", HANG, |heard| {
        let count = heard.events.iter().filter(|(_, event)| is_it(event)).count();
        (count >= times).then_some(())
    });
    seen.map_err(text)
}

/// Writes, has `servers` killed meanwhile, which starts each for the `times`th time, and compares.
fn survives(
    session: &Session,
    shell: &mut Shell<'_>,
    servers: &[(ServerId, usize)],
) -> Result<(), Failure> {
    shell.expect("mountpoint -q /m || { mkdir -p /m && mount -t tmpfs m /m; }")?;
    shell.expect("head -c 16777216 /dev/urandom >/m/f")?;
    shell.start("dd if=/m/f of=/dev/vdb bs=64k oflag=direct,sync 2>/dev/null")?;
    for (server, _) in servers {
        session.ask(Request::Kill(*server)).map_err(text)?;
    }
    for (server, times) in servers {
        restarted(session, *server, *times)?;
    }
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
    runner.case("striped: a VM's limit holds for its disks together", || {
        limit_of_all_disks_holds(&session, &mut shell)
    });
    runner.case("striped: nothing is lost when the server of one part is killed", || {
        survives(&session, &mut shell, &[(SERVERS[1], 1)])
    });
    runner
        .case("striped: nothing is lost when the servers of both parts are killed at once", || {
            survives(&session, &mut shell, &[(SERVERS[0], 1), (SERVERS[1], 2)])
        });
    runner.case("striped: claims are shown with their group, and swap has one of its own", || {
        groups_and_swap_are_shown(&session)
    });
    runner.case("striped: a group's memory and requests are counted on each disk", || {
        groups_are_counted(&session)
    });
    runner.case("striped: each server has its own disk's interrupt and no ports", || {
        each_has_its_own_disk_alone(&session)
    });
    runner.case("striped: the system ends", || stop(&session));
}
