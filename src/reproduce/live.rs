//! Figures 5, 6 and 7 of the mClock paper with Debian guests: fio in every VM, the io-sched-server on the target, the
//! modelled array of the paper in front of QEMU's disk.
//!
//! The VMs boot together and begin to load their second disk one after the other, each at a second of its own clock (see the
//! system's description). The disk's counters are read as often as the host manages; rates are differences of counters
//! over the machine's time. At the end the policy becomes SFQ(D), under the same load: the negative control.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::experiment::{Figure, Outcome};
use harness::plot::{Mark, Plot, Series};
use protocol::link::{Request, VmState};
use protocol::system::IoPolicy;

use crate::bench::start_on;
use crate::config::Config;
use crate::image;
use crate::machine::{Clock, EXIT_GOOD, Options, Writes};
use crate::report::Stats;
use crate::session::{Ask, Session};
use crate::{Error, WORKSPACE};

/// The live runs.
pub const IDS: [&str; 3] = ["P2-E2-live", "P2-E3-live", "P2-E4-live"];

/// Band of a rate, in per cent of what the paper's law says.
const BAND: f64 = 5.0;
/// Requests that the disk may answer later than the model wants, in per cent: beyond that the figures say nothing of the policy.
const LATE: f64 = 2.0;
/// Seconds from the change of the policy to its measurement, and how long that is.
const SETTLE: f64 = 3.0;
const CONTROL: f64 = 6.5;
/// Guard against a hang, in host time without the machine's clock moving on by a second.
const HANG: Duration = Duration::from_secs(300);
/// Host time between two looks.
const EVERY: Duration = Duration::from_millis(50);
/// The disk that is loaded.
const LOADED: u8 = 1;

/// From, to, and requests per second of each VM.
type Phase = (f64, f64, &'static [f64]);

/// One figure of the paper.
struct Live {
    id: &'static str,
    system: &'static str,
    title: &'static str,
    plot: &'static str,
    /// Under mClock.
    phases: &'static [Phase],
    /// What SFQ(D) gives instead, of the last phase.
    sfq: &'static [f64],
}

/// The VMs begin at 15, 25, 35 ... seconds; three seconds later all is steady. Rates are those of the paper's law.
const FIGURES: [Live; 3] = [
    Live {
        id: IDS[0],
        system: "mclock-figure5.toml",
        title: "Limits: figure 5 with Debian guests, weights 1:1:2, limits 400 and 500",
        plot: "p2-live-figure5",
        phases: &[
            (18.0, 24.5, &[1600.0]),
            (28.0, 34.5, &[1200.0, 400.0]),
            (38.0, 44.5, &[700.0, 400.0, 500.0]),
        ],
        sfq: &[400.0, 400.0, 800.0],
    },
    Live {
        id: IDS[1],
        system: "mclock-figure6.toml",
        title: "Reservations: figure 6 with Debian guests, 300 and 250 reserved, disk 1600 to 1280",
        plot: "p2-live-figure6",
        phases: &[
            (18.0, 24.5, &[1600.0]),
            (28.0, 34.5, &[760.0, 760.0]),
            (38.0, 44.5, &[360.0, 360.0, 720.0]),
            (48.0, 54.5, &[300.0, 250.0, 405.0, 405.0]),
            (58.0, 64.5, &[300.0, 250.0, 243.3, 243.3, 243.3]),
        ],
        sfq: &[160.0, 160.0, 320.0, 320.0, 320.0],
    },
    Live {
        id: IDS[2],
        system: "mclock-figure7.toml",
        title: "Mix: figure 7 with Debian guests, VM2 limited to 700, VM4 reserves 250, weights 2:2:1:1",
        plot: "p2-live-figure7",
        phases: &[
            (18.0, 24.5, &[1700.0]),
            (28.0, 34.5, &[900.0, 700.0]),
            (38.0, 44.5, &[560.0, 560.0, 280.0]),
            (48.0, 54.5, &[360.0, 360.0, 180.0, 250.0]),
        ],
        sfq: &[383.3, 383.3, 191.7, 191.7],
    },
];

/// One look at the disk.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    /// The machine's time in seconds.
    at: f64,
    /// Requests completed on the loaded disk of each VM.
    requests: Vec<u64>,
    /// Requests completed by the disk, and of those later than the model.
    completed: u64,
    late: u64,
}

impl Sample {
    fn of(stats: &Stats) -> Result<Self, Error> {
        let stopped = stats.vms.iter().find(|(_, _, state, _)| *state != VmState::Running);
        if let Some((_, name, state, _)) = stopped {
            return Err(Error::Wrong(
                format!("{name} does not run, it is {state:?}").to_lowercase(),
            ));
        }
        let requests = stats.vms.iter().map(|(id, ..)| {
            let is_it = |c: &&crate::session::DiskClient| c.vm == Some(*id) && c.disk == LOADED;
            let client = stats.disk_clients.iter().find(is_it);
            client.map_or(0, |client| client.stats.reads + client.stats.writes)
        });
        let (completed, late) = stats.disk.map_or((0, 0), |disk| (disk.completed, disk.late));
        let at = stats.machine.uptime.0 as f64 / 1e9;
        Ok(Self { at, requests: requests.collect(), completed, late })
    }
}

/// What was seen of a run.
#[derive(Debug, Default)]
struct Record {
    samples: Vec<Sample>,
}

impl Record {
    /// Requests of `vm` up to `at`, between two looks in proportion.
    fn requests(&self, vm: usize, at: f64) -> f64 {
        let count = |sample: &Sample| sample.requests.get(vm).map_or(0.0, |count| *count as f64);
        let next = self.samples.partition_point(|sample| sample.at < at);
        match (next.checked_sub(1).and_then(|i| self.samples.get(i)), self.samples.get(next)) {
            (Some(before), Some(after)) => {
                let part = (at - before.at) / (after.at - before.at).max(1e-9);
                count(before) + part * (count(after) - count(before))
            }
            (Some(only), None) | (None, Some(only)) => count(only),
            (None, None) => 0.0,
        }
    }

    /// Requests per second of `vm` in `[from, to)`.
    fn rate(&self, vm: usize, from: f64, to: f64) -> f64 {
        (self.requests(vm, to) - self.requests(vm, from)) / (to - from)
    }

    fn figures(&self, &(from, to, expected): &Phase, policy: &str) -> Vec<Figure> {
        let figure = |(vm, expected): (usize, &f64)| {
            let name = format!("{policy}, {from:.1} to {to:.1} s: VM{}", vm + 1);
            Figure::near(name, self.rate(vm, from, to), *expected, BAND)
        };
        expected.iter().enumerate().map(figure).collect()
    }

    /// Per cent of the requests after second `from` that were later than the model.
    fn late(&self, from: f64) -> f64 {
        let at = self.samples.partition_point(|sample| sample.at < from);
        let (Some(first), Some(last)) = (self.samples.get(at), self.samples.last()) else {
            return 0.0;
        };
        let completed = last.completed.saturating_sub(first.completed);
        last.late.saturating_sub(first.late) as f64 * 100.0 / completed.max(1) as f64
    }
}

/// Looks at the disk until the machine's clock has come to `until` seconds.
fn watch(session: &Session, record: &mut Record, until: f64) -> Result<(), Error> {
    let mut moved = Instant::now();
    let mut shown = 0.0;
    loop {
        let mut lines = session.ask(Request::Stats)?;
        lines.extend(session.ask(Request::Disks)?);
        let sample = Sample::of(&Stats::from_lines(&lines))?;
        let at = sample.at;
        record.samples.push(sample);
        if at >= shown + 1.0 {
            (shown, moved) = (at, Instant::now());
            eprint!("\rballast: machine at {at:.0} s of {until:.0} ");
        }
        if at >= until {
            eprintln!();
            return Ok(());
        }
        if moved.elapsed() > HANG {
            return Err(Error::NoProgress(format!("the machine's clock stands at {at:.1} s")));
        }
        std::thread::sleep(EVERY);
    }
}

fn start(system: &str) -> Result<Arc<Session>, Error> {
    let config = Config::load(&Path::new(WORKSPACE).join("images/systems").join(system))?;
    // Idle time passes, so that the real disk has the time it needs; skipped, it would look slow.
    let clock = Clock::Patient;
    let options = Options { clock, writes: Writes::Discard, ..Options::default() };
    start_on(&config, &options)
}

/// Watches the run through all phases and then under SFQ(D); returns when that is measured.
fn measure(live: &Live, session: &Session, record: &mut Record) -> Result<(f64, f64), Error> {
    session.wait_ready(HANG)?;
    let end = live.phases.last().map_or(0.0, |phase| phase.1);
    watch(session, record, end + 0.5)?;
    session.ask(Request::IoPolicy(IoPolicy::Sfq))?;
    let changed = record.samples.last().map_or(end, |sample| sample.at);
    let (from, to) = (changed + SETTLE, changed + SETTLE + CONTROL);
    watch(session, record, to)?;
    Ok((from, to))
}

/// Fails with the end of a VM's console if its load does not run.
fn check_loads(session: &Session, record: &Record, (from, to): (f64, f64)) -> Result<(), Error> {
    let vms = record.samples.last().map_or(0, |sample| sample.requests.len());
    let Some(idle) = (0..vms).find(|vm| record.rate(*vm, from, to) < 1.0) else { return Ok(()) };
    let console = session.heard(|heard| {
        let console = heard.consoles.get(&(idle as u16)).map(|console| console.since(0).to_vec());
        String::from_utf8_lossy(&console.unwrap_or_default()).into_owned()
    });
    let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n  ");
    Err(Error::Wrong(format!("VM{} does not load its disk; its console:\n  {tail}", idle + 1)))
}

fn level(vm: usize, phase: (f64, f64), value: f64) -> Series {
    let points = vec![(phase.0, value), (phase.1, value)];
    Series::new(format!("VM{}, expected", vm + 1), Mark::Dashed, points)
}

fn plot(live: &Live, record: &Record, end: f64) -> Plot {
    let vms = live.sfq.len();
    let mut series: Vec<Series> = (0..vms)
        .map(|vm| {
            let second = |s: u32| (f64::from(s), record.rate(vm, f64::from(s), f64::from(s) + 1.0));
            let points = (0..end as u32).map(second).collect();
            Series::new(format!("VM{}", vm + 1), Mark::Line, points)
        })
        .collect();
    let mut title = live.title.to_owned();
    if let Some((from, to, expected)) = live.phases.last() {
        series.extend(expected.iter().enumerate().map(|(vm, v)| level(vm, (*from, *to), *v)));
        title.push_str(&format!("; from {to:.0} s on SFQ(D)"));
    }
    Plot {
        name: live.plot.to_owned(),
        title,
        x: "time of the machine (s)".to_owned(),
        y: "IOPS".to_owned(),
        series,
    }
}

/// Runs one; nothing if there is none of this name.
///
/// # Errors
///
/// [`Error`] if the system cannot be built, does not start, or a VM crashes.
pub fn run(id: &str) -> Result<Option<Outcome>, Error> {
    let Some(live) = FIGURES.iter().find(|live| live.id == id) else { return Ok(None) };
    image::progress(&format!("{id}: Debian guests load one disk, {}", live.system));
    let session = start(live.system)?;
    let mut record = Record::default();
    let measured = measure(live, &session, &mut record)
        .and_then(|control| check_loads(&session, &record, control).map(|()| control));
    let _ = session.ask(Request::Quit { code: EXIT_GOOD });
    let _ = session.wait_end(Duration::from_secs(10));
    let (from, to) = measured?;
    let _ = std::fs::remove_dir_all(session.folder());
    let mut figures: Vec<Figure> =
        live.phases.iter().flat_map(|phase| record.figures(phase, "mClock")).collect();
    figures.extend(record.figures(&(from, to, live.sfq), "SFQ(D)"));
    let begin = live.phases.first().map_or(0.0, |phase| phase.0);
    figures.push(Figure::between("later than the model, per cent", record.late(begin), 0.0, LATE));
    let last = live.phases.last().map_or(&[][..], |phase| phase.2);
    Ok(Some(Outcome {
        id: live.id,
        title: live.title,
        band: "5 % per phase",
        figures,
        control: "SFQ(D) against mClock's band",
        control_figures: record.figures(&(from, to, last), "SFQ(D)"),
        plots: vec![plot(live, &record, to)],
    }))
}

#[cfg(test)]
mod tests {
    use super::{Record, Sample};

    fn sample(at: f64, requests: u64, late: u64) -> Sample {
        Sample { at, requests: vec![requests], completed: requests, late }
    }

    #[test]
    fn rates_are_differences_in_proportion_to_the_machines_time() {
        let samples = vec![sample(0.0, 0, 0), sample(2.0, 200, 0), sample(4.0, 1000, 16)];
        let record = Record { samples };
        assert_eq!(record.rate(0, 0.0, 2.0), 100.0);
        assert_eq!(record.rate(0, 1.0, 3.0), 250.0);
        assert_eq!(record.rate(1, 1.0, 3.0), 0.0, "no such VM");
        assert_eq!(record.late(1.0), 2.0);
        assert_eq!(Record::default().rate(0, 0.0, 1.0), 0.0);
    }

    #[test]
    fn only_what_lies_in_the_band_passes() {
        let record = Record { samples: vec![sample(0.0, 0, 0), sample(10.0, 1000, 0)] };
        let passes =
            |expected: &'static [f64]| record.figures(&(0.0, 10.0, expected), "x")[0].passes();
        assert!(passes(&[96.0]) && passes(&[105.0]));
        assert!(!passes(&[95.0]) && !passes(&[106.0]));
    }
}
