//! What a page costs on its way into a guest's balloon and back: guest, vmm-server and mem-server together.

use super::{Figures, HANG, boot, quit};
use crate::Error;
use crate::report::Stats;
use crate::session::{Ask, Session};
use protocol::link::{Request, ServerId, Setting};
use protocol::units::{Pages, VmId};
use std::time::{Duration, Instant};

const VM: VmId = VmId(0);
/// Pages moved each way: 48 MiB.
const MOVED: Pages = Pages(12_288);
/// Virtual time after which Debian has booted and is idle.
const BOOTED: u64 = 60_000_000_000;
/// Time between two looks, on the host.
const LOOK: Duration = Duration::from_millis(100);

/// Where the clocks and the balloon stand.
#[derive(Clone, Copy)]
struct Stand {
    uptime: u64,
    /// Processor time of the VM, which its calls to the mem-server are charged to, and of that server's own work.
    busy: u64,
    balloon: Pages,
}

impl Stand {
    fn of(stats: &Stats) -> Option<Self> {
        let (.., vm) = stats.vms.iter().find(|(vm, ..)| *vm == VM)?;
        let (_, mem) = stats.servers.iter().find(|(server, _)| *server == ServerId::Mem)?;
        let busy = vm.vcpu_time.0 + mem.time.0;
        Some(Self { uptime: stats.machine.uptime.0, busy, balloon: vm.memory.balloon })
    }

    fn busy_since(&self, before: &Self) -> f64 {
        self.busy.saturating_sub(before.busy) as f64
    }

    fn time_since(&self, before: &Self) -> f64 {
        self.uptime.saturating_sub(before.uptime) as f64
    }
}

/// Asks until a stand is `wanted`.
fn wait(session: &Session, what: &str, wanted: impl Fn(&Stand) -> bool) -> Result<Stand, Error> {
    let start = Instant::now();
    loop {
        // While it starts the target does not answer.
        let stand = session.ask(Request::Stats).map(|lines| Stand::of(&Stats::from_lines(&lines)));
        match stand {
            Ok(Some(stand)) if wanted(&stand) => return Ok(stand),
            Err(error) if start.elapsed() > HANG => return Err(error),
            _ if start.elapsed() > HANG => return Err(Error::NoProgress(what.to_owned())),
            _ => std::thread::sleep(LOOK),
        }
    }
}

/// Instructions per page of moving the balloon to `target`; `idle` is the part of all time the idle guest takes.
fn per_page(session: &Session, target: Pages, idle: f64) -> Result<f64, Error> {
    let before = wait(session, "the target does not answer", |_| true)?;
    session.ask(Request::VmSet { vm: VM, setting: Setting::Balloon(Some(target)) })?;
    let after = wait(session, "the balloon does not move", |stand| stand.balloon == target)?;
    let instructions = after.busy_since(&before) - idle * after.time_since(&before);
    Ok((instructions / MOVED.0 as f64).round())
}

fn measure(session: &Session, figures: &mut Figures) -> Result<(), Error> {
    let booted = wait(session, "Debian does not boot", |stand| stand.uptime > BOOTED)?;
    // Virtual time runs ahead while the guest is idle: an absolute end may have passed already.
    let end = booted.uptime + BOOTED;
    let later = wait(session, "time stands still", |stand| stand.uptime > end)?;
    let idle = later.busy_since(&booted) / later.time_since(&booted).max(1.0);
    let inflate = per_page(session, MOVED, idle)?;
    let deflate = per_page(session, Pages(0), idle)?;
    figures.insert("balloon_inflate_page".to_owned(), inflate);
    figures.insert("balloon_deflate_page".to_owned(), deflate);
    let pages = (1e6 / inflate.max(1.0)).round();
    figures.insert("balloon_pages_per_minsn".to_owned(), pages);
    Ok(())
}

/// Instructions per page inflated and deflated, those of the idle guest taken off.
pub fn figures(figures: &mut Figures) -> Result<(), Error> {
    crate::image::progress("measuring a Linux VM's balloon");
    let session = boot("bench-balloon.toml", 1)?;
    let measured = measure(&session, figures);
    quit(&session);
    measured
}
