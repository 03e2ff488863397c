//! What the mem-server's work costs, counted by itself while two equal Linux VMs run and their pages are merged.

use super::{Figures, HANG, boot, quit};
use crate::Error;
use crate::report::Stats;
use crate::session::{Ask, Session};
use protocol::link::{Request, ServerId};
use std::time::{Duration, Instant};

/// Pages the scanner has looked at when the measurement ends: several passes over both VMs.
const SCANNED: u64 = 400_000;
/// Time between two looks, on the host.
const LOOK: Duration = Duration::from_millis(500);

/// A machine-wide counter of the mem-server.
fn counter(stats: &Stats, wanted: &str) -> u64 {
    let found = stats.terms.iter().find(|(server, vm, name, _)| {
        *server == ServerId::Mem && vm.is_none() && name.as_str() == wanted
    });
    found.map_or(0, |(.., value)| *value)
}

fn scanned(session: &Session) -> Result<Stats, Error> {
    let start = Instant::now();
    loop {
        // While it starts the target does not answer.
        let answer = session.ask(Request::Stats).map(|lines| Stats::from_lines(&lines));
        match answer {
            Ok(stats) if counter(&stats, "sharing.scanned") >= SCANNED => return Ok(stats),
            Err(error) if start.elapsed() > HANG => return Err(error),
            Ok(_) if start.elapsed() > HANG => {
                return Err(Error::NoProgress("the scanner stands still".to_owned()));
            }
            _ => {}
        }
        std::thread::sleep(LOOK);
    }
}

/// Instructions per scanned, merged and broken page, and the scanner's part of all time.
pub fn figures(figures: &mut Figures) -> Result<(), Error> {
    crate::image::progress("measuring page sharing with two Linux VMs");
    let session = boot("bench-share.toml", 1)?;
    let stats = scanned(&session);
    quit(&session);
    let stats = stats?;
    let get = |name| counter(&stats, name);
    let mut per = |key: &str, ticks: u64, pages: u64| {
        if let Some(ticks_per_page) = ticks.checked_div(pages) {
            figures.insert(key.to_owned(), ticks_per_page as f64);
        }
    };
    let (scanned, merged) = (get("sharing.scanned"), get("sharing.merged"));
    per("scan_page", get("sharing.scan_ticks"), scanned.saturating_sub(merged));
    per("merge_page", get("sharing.merge_ticks"), merged);
    per("cow_break", get("sharing.break_ticks"), get("sharing.breaks"));
    let ticks = get("sharing.scan_ticks") + get("sharing.merge_ticks");
    let uptime = stats.machine.uptime.0.max(1);
    figures.insert("scanner_cpu_permille".to_owned(), (ticks * 1000 / uptime) as f64);
    let saved: u64 = stats.vms.iter().map(|(.., vm)| vm.memory.saved.bytes()).sum();
    figures.insert("shared_saved_mib".to_owned(), (saved >> 20) as f64);
    Ok(())
}
