//! The disk's controls on the running system: claims, groups, policy, and what is shown of them.

use crate::boot::text;
use ballast::report::Stats;
use ballast::session::{Ask, DiskClient, Session};
use protocol::io::Policy;
use protocol::link::{Request, Setting};
use protocol::system::IoChange;
use protocol::units::VmId;
use tests::guest::Shell;
use tests::runner::{Failure, Runner};

const WEB1: VmId = VmId(0);

fn stats(session: &Session) -> Result<Stats, Failure> {
    let mut lines = session.ask(Request::Stats).map_err(text)?;
    lines.extend(session.ask(Request::Disks).map_err(text)?);
    Ok(Stats::from_lines(&lines))
}

fn client(stats: &Stats, vm: VmId) -> Result<&DiskClient, Failure> {
    let found = stats.disk_clients.iter().find(|client| client.vm == Some(vm));
    found.ok_or_else(|| format!("VM {} has no row among the disk's clients", vm.0))
}

fn set(session: &Session, change: IoChange) -> Result<(), Failure> {
    set_disk(session, WEB1, 0, change)
}

/// Changes the claim of disk `disk` of `vm`.
pub fn set_disk(session: &Session, vm: VmId, disk: u8, change: IoChange) -> Result<(), Failure> {
    let setting = Setting::Io { disk, change };
    session.ask(Request::VmSet { vm, setting }).map(drop).map_err(text)
}

/// A change of the limit alone.
pub fn limit(limit: u32) -> IoChange {
    IoChange { limit: Some(limit), ..IoChange::default() }
}

/// Sets the limit of `web1` and the policy.
pub fn change(session: &Session, of_web1: u32, policy: Policy) -> Result<(), Failure> {
    set(session, limit(of_web1))?;
    session.ask(Request::IoPolicy(policy)).map(drop).map_err(text)
}

/// The limit of `web1` and the policy, as the io-sched-server has them.
pub fn found(session: &Session) -> Result<(Option<u32>, Option<Policy>), Failure> {
    let stats = stats(session)?;
    Ok((client(&stats, WEB1)?.control.limit, stats.disk().map(|disk| disk.policy)))
}

/// Machine time that `web1` needs for so many single reads of 4 KiB from the disk itself, in milliseconds.
fn timed_reads(session: &Session, web1: &mut Shell<'_>, count: u32) -> Result<u64, Failure> {
    let before = stats(session)?.machine.uptime.0;
    web1.expect(&format!("dd if=/dev/vda of=/dev/null bs=4k count={count} iflag=direct"))?;
    Ok((stats(session)?.machine.uptime.0 - before) / 1_000_000)
}

/// Claims and policy change while guests run.
pub fn claims(runner: &mut Runner, session: &Session, web1: &mut Shell<'_>) {
    runner.case(
        "system: a disk limit set while the guest runs holds, and is gone when taken",
        || {
            set(session, limit(50))?;
            let slow = timed_reads(session, web1, 150)?;
            let shown = stats(session)?;
            let of_web1 = client(&shown, WEB1)?;
            if of_web1.control.limit != Some(50) || of_web1.stats.lead.limit.is_none() {
                return Err(format!("the limit is not shown: {of_web1:?}"));
            }
            set(session, limit(0))?;
            let fast = timed_reads(session, web1, 150)?;
            // 150 reads at 50 per second; the slack of a limit is 5 ms, and the shell reads files of its own.
            if (2_950..4_500).contains(&slow) && fast < 1_000 {
                return Ok(());
            }
            Err(format!("150 reads took {slow} ms at 50/s and {fast} ms without a limit"))
        },
    );
    runner.case("system: an impossible disk claim is refused and nothing changes", || {
        let change = IoChange { reservation: Some(60), limit: Some(50), ..IoChange::default() };
        if set(session, change).is_ok() {
            return Err("a reservation above the limit was taken".to_owned());
        }
        let unknown = Request::GroupSet {
            group: protocol::system::Name::try_from("nobody").map_err(text)?,
            change: limit(1),
        };
        if session.ask(unknown).is_ok() {
            return Err("a group that is not there was changed".to_owned());
        }
        match client(&stats(session)?, WEB1)?.control.reservation {
            0 => Ok(()),
            other => Err(format!("the reservation is {other} now")),
        }
    });
    runner.case("system: the disk's policy changes under load and requests go on", || {
        for policy in [Policy::Sfq, Policy::RoundRobin, Policy::MClock] {
            web1.start("dd if=/dev/vda of=/dev/null bs=4k count=2000 iflag=direct")?;
            session.ask(Request::IoPolicy(policy)).map_err(text)?;
            web1.finish(tests::guest::HANG)?;
            let found = stats(session)?.disk().map(|disk| disk.policy);
            if found != Some(policy) {
                return Err(format!("the policy is {found:?}, not {policy:?}"));
            }
        }
        Ok(())
    });
    runner.case("system: statistics are shown as tables and as OpenMetrics", || {
        let stats = stats(session)?;
        let (table, page) = (stats.top_disk(None), ballast::openmetrics::text(&stats));
        let family = "ballast_vm_disk_requests_total{vm=\"web1\",disk=\"disk0\",op=\"read\"} ";
        let is_whole = page.ends_with("# EOF\n") && page.contains(family);
        if table.contains("web1/disk0") && table.contains("policy mclock") && is_whole {
            return Ok(());
        }
        Err(format!("{table}\n{page}"))
    });
}
