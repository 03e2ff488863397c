//! What the mem-server's work costs, counted by itself while equal Linux VMs run and their pages are merged.

use super::{Figures, HANG, boot, quit};
use crate::Error;
use crate::report::Stats;
use crate::session::{Ask, Session};
use protocol::link::Request;
use std::time::{Duration, Instant};

/// Pages the scanner has looked at when the measurement ends: several passes over both VMs.
const SCANNED: u64 = 400_000;
/// Bytes that KSM gave back of four idle 128 MiB VMs on the same host: what the pages looked at are counted up to.
const KSM_SAVED: u64 = 232_000_000;
/// Compressed pages touched when that measurement ends.
const DECOMPRESSED: u64 = 100;
/// Time between two looks, on the host.
const LOOK: Duration = Duration::from_millis(500);
/// The same where what lies between two looks is read off a line.
const CLOSE_LOOK: Duration = Duration::from_millis(20);

/// Asks until a counter has reached a value.
fn wait(session: &Session, wanted: &str, least: u64) -> Result<Stats, Error> {
    let start = Instant::now();
    loop {
        // While it starts the target does not answer.
        let answer = session.ask(Request::Stats).map(|lines| Stats::from_lines(&lines));
        match answer {
            Ok(stats) if stats.counter(wanted) >= least => return Ok(stats),
            Err(error) if start.elapsed() > HANG => return Err(error),
            Ok(_) if start.elapsed() > HANG => {
                return Err(Error::NoProgress(format!("{wanted} stays below {least}")));
            }
            _ => {}
        }
        std::thread::sleep(LOOK);
    }
}

/// Bytes saved by sharing.
fn saved(stats: &Stats) -> u64 {
    stats.vms.iter().map(|(.., vm)| vm.memory.saved.bytes()).sum()
}

fn per(figures: &mut Figures, key: &str, ticks: u64, pages: u64) {
    if let Some(ticks_per_page) = ticks.checked_div(pages) {
        figures.insert(key.to_owned(), ticks_per_page as f64);
    }
}

/// Parts of a whole in permille, to a hundredth.
fn permille(part: f64, whole: f64) -> f64 {
    (part / whole.max(1.0) * 100_000.0).round() / 100.0
}

/// What the mem-server's tables take of guest memory: capabilities and page states of the VMs' memory, the sharing
/// table, which is for all of the machine's, of that.
fn metadata(stats: &Stats, figures: &mut Figures) {
    let get = |name| stats.counter(name) as f64;
    let guests: f64 = stats.vms.iter().map(|(.., vm)| vm.memory.size.bytes() as f64).sum();
    let sharing = permille(get("memory.sharing_bytes"), get("memory.total") * 4096.0);
    let states = permille(get("memory.capability_bytes") + get("memory.state_bytes"), guests);
    figures.insert("sharing_permille".to_owned(), sharing);
    figures.insert("metadata_permille".to_owned(), ((states + sharing) * 100.0).round() / 100.0);
}

/// Instructions per scanned, merged and broken page, and the scanner's part of all time.
pub fn figures(figures: &mut Figures) -> Result<(), Error> {
    crate::image::progress("measuring page sharing with two Linux VMs");
    let session = boot("bench-share.toml", 1)?;
    let stats = wait(&session, "sharing.scanned", SCANNED);
    quit(&session);
    let stats = stats?;
    let get = |name| stats.counter(name);
    let (scanned, merged) = (get("sharing.scanned"), get("sharing.merged"));
    per(figures, "scan_page", get("sharing.scan_ticks"), scanned.saturating_sub(merged));
    per(figures, "merge_page", get("sharing.merge_ticks"), merged);
    per(figures, "cow_break", get("sharing.break_ticks"), get("sharing.breaks"));
    let (zeros, ticks) = (get("sharing.zero_breaks"), get("sharing.zero_break_ticks"));
    per(figures, "zero_page_fault", ticks, zeros);
    metadata(&stats, figures);
    let ticks = get("sharing.scan_ticks") + get("sharing.merge_ticks");
    let uptime = stats.machine.uptime.0.max(1);
    figures.insert("scanner_cpu_permille".to_owned(), (ticks * 1000 / uptime) as f64);
    figures.insert("shared_saved_mib".to_owned(), (saved(&stats) >> 20) as f64);
    Ok(())
}

/// Pages looked at and bytes saved.
type Point = (u64, u64);

/// The pages looked at when `bytes` were saved, on the line between the two looks around it. `None` if it was not so much.
fn scanned_at(points: &[Point], bytes: u64) -> Option<f64> {
    let after = points.iter().position(|(_, saved)| *saved >= bytes)?;
    let (scanned, saved) = *points.get(after)?;
    let (before, less) = after.checked_sub(1).and_then(|at| points.get(at)).copied()?;
    let part = (bytes - less) as f64 / (saved - less) as f64;
    Some((before as f64 + part * (scanned - before) as f64).round())
}

/// Looks at sharing until the scanner has looked at [`SCANNED`] pages.
fn curve(session: &Session) -> Result<Vec<Point>, Error> {
    session.wait_ready(HANG)?;
    let start = Instant::now();
    let mut points = vec![(0, 0)];
    while start.elapsed() < HANG {
        let stats = Stats::from_lines(&session.ask(Request::Stats)?);
        let scanned = stats.counter("sharing.scanned");
        points.push((scanned, saved(&stats)));
        if scanned >= SCANNED {
            return Ok(points);
        }
        std::thread::sleep(CLOSE_LOOK);
    }
    Err(Error::NoProgress(format!("sharing.scanned stays below {SCANNED}")))
}

/// What sharing gives back of four idle VMs, and how many pages it looks at until that is as much as KSM's.
pub fn four(figures: &mut Figures) -> Result<(), Error> {
    crate::image::progress("measuring page sharing with four Linux VMs");
    let session = boot("bench-share-four.toml", 1)?;
    let points = curve(&session);
    quit(&session);
    let points = points?;
    let most = points.last().map_or(0, |(_, saved)| saved >> 20);
    figures.insert("sharing_4vm_mib".to_owned(), most as f64);
    if let Some(scanned) = scanned_at(&points, KSM_SAVED) {
        figures.insert("sharing_4vm_scanned".to_owned(), scanned);
    }
    Ok(())
}

/// Instructions per touch of a compressed page.
pub fn compressed(figures: &mut Figures) -> Result<(), Error> {
    crate::image::progress("measuring compression with two Linux VMs in too little memory");
    let session = boot("bench-zip.toml", 1)?;
    let stats = wait(&session, "memory.decompressed", DECOMPRESSED);
    quit(&session);
    let stats = stats?;
    let ticks = stats.counter("memory.decompress_ticks");
    per(figures, "compressed_fault", ticks, stats.counter("memory.decompressed"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::scanned_at;

    #[test]
    fn pages_looked_at_are_read_off_the_line_between_two_looks() {
        let points = [(0, 0), (1000, 50), (2000, 150)];
        assert_eq!(scanned_at(&points, 100), Some(1500.0));
        assert_eq!(scanned_at(&points, 150), Some(2000.0));
        assert_eq!(scanned_at(&points, 50), Some(1000.0));
    }

    #[test]
    fn what_was_not_saved_has_no_figure() {
        assert_eq!(scanned_at(&[(0, 0), (1000, 50)], 51), None);
        assert_eq!(scanned_at(&[], 0), None);
    }
}
