//! Figures 5, 6 and 7 of the mClock paper with Debian guests: fio in every VM, the io-sched-server on the target, the
//! modelled array of the paper in front of QEMU's disk.
//!
//! The VMs boot together and begin to load their second disk one after the other, each at a second of its own clock (see the
//! system's description). That clock starts when the VM's kernel does, so it is behind the machine's by what came before, some
//! seconds that depend on the host. Therefore a phase is measured from when its VM is seen to have begun. The disk's counters are
//! read as often as the host manages; rates are differences of counters over the machine's time. At the end the policy becomes
//! SFQ(D), under the same load: the negative control.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::experiment::{Figure, Outcome};
use harness::plot::{Mark, Plot, Series};
use protocol::io::Policy;
use protocol::link::Request;

use crate::bench::start_on;
use crate::config::Config;
use crate::image;
use crate::machine::{Clock, EXIT_GOOD, Options, Writes};
use crate::report::Stats;
use crate::session::{Ask, Session};
use crate::{Error, WORKSPACE};

mod record;

use record::{APART, FIRST, MARGIN, Rates, Record, SETTLE, Sample};

/// The live runs.
pub const IDS: [&str; 3] = ["P2-E2-live", "P2-E3-live", "P2-E4-live"];

/// Requests that the disk may answer later than the model wants, in per cent: beyond that the figures say nothing of the policy.
const LATE: f64 = 2.0;
/// Seconds for which the other policy is measured.
const CONTROL: f64 = 6.5;
/// Guard against a hang, in host time without the machine's clock moving on by a second.
const HANG: Duration = Duration::from_secs(300);
/// Host time between two looks.
const EVERY: Duration = Duration::from_millis(50);
/// One figure of the paper.
struct Live {
    id: &'static str,
    system: &'static str,
    title: &'static str,
    plot: &'static str,
    /// Under mClock, with one VM, with two, ...
    phases: &'static [Rates],
    /// What SFQ(D) gives instead, of the last phase.
    sfq: Rates,
}

/// Rates are those of the paper's law.
const FIGURES: [Live; 3] = [
    Live {
        id: IDS[0],
        system: "mclock-figure5.toml",
        title: "Limits: figure 5 with Debian guests, weights 1:1:2, limits 400 and 500",
        plot: "p2-live-figure5",
        phases: &[&[1600.0], &[1200.0, 400.0], &[700.0, 400.0, 500.0]],
        sfq: &[400.0, 400.0, 800.0],
    },
    Live {
        id: IDS[1],
        system: "mclock-figure6.toml",
        title: "Reservations: figure 6 with Debian guests, 300 and 250 reserved, disk 1600 to 1280",
        plot: "p2-live-figure6",
        phases: &[
            &[1600.0],
            &[760.0, 760.0],
            &[360.0, 360.0, 720.0],
            &[300.0, 250.0, 405.0, 405.0],
            &[300.0, 250.0, 243.3, 243.3, 243.3],
        ],
        sfq: &[160.0, 160.0, 320.0, 320.0, 320.0],
    },
    Live {
        id: IDS[2],
        system: "mclock-figure7.toml",
        title: "Mix: figure 7 with Debian guests, VM2 limited to 700, VM4 reserves 250, weights 2:2:1:1",
        plot: "p2-live-figure7",
        phases: &[
            &[1700.0],
            &[900.0, 700.0],
            &[560.0, 560.0, 280.0],
            &[360.0, 360.0, 180.0, 250.0],
        ],
        sfq: &[383.3, 383.3, 191.7, 191.7],
    },
];

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
    let end = FIRST + APART * live.phases.len() as f64;
    watch(session, record, end)?;
    session.ask(Request::IoPolicy(Policy::Sfq))?;
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

/// The figure as the paper has it, with what is expected of the last phase, measured in `last`.
fn plot(live: &Live, record: &Record, last: (f64, f64), end: f64) -> Plot {
    let vms = live.sfq.len();
    let mut series: Vec<Series> = (0..vms)
        .map(|vm| {
            let second = |s: u32| (f64::from(s), record.rate(vm, f64::from(s), f64::from(s) + 1.0));
            let points = (0..end as u32).map(second).collect();
            Series::new(format!("VM{}", vm + 1), Mark::Line, points)
        })
        .collect();
    let mut title = live.title.to_owned();
    if let Some(expected) = live.phases.last() {
        series.extend(expected.iter().enumerate().map(|(vm, v)| level(vm, last, *v)));
        title.push_str(&format!("; from {:.0} s on SFQ(D)", last.1 + MARGIN));
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
    let control = measured?;
    let _ = std::fs::remove_dir_all(session.folder());
    outcome(live, &record, control).map(Some)
}

/// What the record says; `control` is when the other policy was measured.
fn outcome(live: &Live, record: &Record, control: (f64, f64)) -> Result<Outcome, Error> {
    let mut figures = Vec::new();
    let mut last = (0.0, 0.0);
    for (phase, expected) in live.phases.iter().enumerate() {
        last = record.window(phase)?;
        figures.extend(record.figures(last, expected, "mClock"));
    }
    figures.extend(record.figures(control, live.sfq, "SFQ(D)"));
    let late = record.late(FIRST);
    figures.push(Figure::between("later than the model, per cent", late, 0.0, LATE));
    let expected = live.phases.last().copied().unwrap_or_default();
    Ok(Outcome {
        id: live.id,
        title: live.title,
        band: "5 % per phase",
        figures,
        control: "SFQ(D) against mClock's band",
        control_figures: record.figures(control, expected, "SFQ(D)"),
        plots: vec![plot(live, record, last, control.1)],
    })
}
