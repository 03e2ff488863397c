//! Large pages under a Linux guest: its memory gets them, the balloon takes them apart, and they come back.

use crate::boot::{stats, text};
use crate::system::{eventually, same};
use ballast::report::Stats;
use ballast::session::{Ask, Session};
use protocol::link::{Request, Setting};
use protocol::units::{Pages, VmId};
use tests::guest::Shell;
use tests::runner::{Failure, Runner};

/// Pages of a mebibyte.
const MIB: u64 = 256;
/// What the guest fills and keeps: enough that whole regions lie in it.
const FILL: &str = "mkdir -p /m && mount -t tmpfs -o size=100% m /m && head -c 64M /dev/urandom >/m/f && \
     sha256sum /m/f >/tmp/f.sum";

/// Pages of `vm` that large pages map.
fn large(stats: &Stats, vm: VmId) -> u64 {
    stats.vms.iter().find(|(id, ..)| *id == vm).map_or(0, |(.., stats)| stats.memory.large.0)
}

/// Runs the cases on a booted VM, the first one, which has 192 MiB.
pub fn balloon(runner: &mut Runner, session: &Session, shell: &mut Shell<'_>) {
    let vm = VmId(0);
    let set = |target: Option<Pages>| -> Result<(), Failure> {
        let setting = Setting::Balloon(target);
        session.ask(Request::VmSet { vm, setting }).map(drop).map_err(text)
    };
    let mut before = None;
    let filled = runner.case("system: memory that a guest has filled gets large pages", || {
        shell.expect(FILL)?;
        eventually(session, "64 MiB in large pages", |stats| large(stats, vm) >= 64 * MIB)?;
        before = Some(stats(session)?);
        shell.expect("sha256sum --quiet -c /tmp/f.sum").map(drop)
    });
    let (Some(before), true) = (before, filled) else {
        runner.lost("system: the balloon takes large pages apart", "there were none");
        return;
    };
    runner.case("system: the balloon takes large pages apart and says so", || {
        let target = Pages(48 * MIB);
        set(Some(target))?;
        eventually(session, "48 MiB of balloon", |stats| {
            stats.vms.first().is_some_and(|(.., vm)| vm.memory.balloon == target)
        })?;
        let now = stats(session)?;
        let name = "memory.demotions.balloon";
        if now.counter(name) == before.counter(name) {
            return Err(format!("no large page of {} was taken apart", large(&before, vm) / 512));
        }
        let explained = session.ask(Request::Explain(vm)).map_err(text)?;
        let explained = Stats::from_lines(&explained);
        let small = explained.terms.iter().find(|term| term.name == "memory.small.balloon");
        same("a region small for the balloon", small.is_some_and(|term| term.value > 0), true)?;
        shell.expect("sha256sum --quiet -c /tmp/f.sum").map(drop)
    });
    runner.case("system: what the balloon gives back becomes large again", || {
        set(Some(Pages(0)))?;
        eventually(session, "no balloon", |stats| {
            stats.vms.first().is_some_and(|(.., vm)| vm.memory.balloon.0 == 0)
        })?;
        let small = stats(session)?;
        shell.expect(
            "n=$(awk '/MemAvailable/{print int($2*9/10240)}' /proc/meminfo) && \
             yes 0123456789abcdef | head -c ${n}M >/m/g",
        )?;
        let promoted = small.counter("memory.promotions") + 8;
        eventually(session, "eight regions put together", |stats| {
            stats.counter("memory.promotions") >= promoted
        })?;
        shell.expect("sha256sum --quiet -c /tmp/f.sum && umount /m")?;
        set(None)
    });
}
