//! What is seen of a live run: the disk's counters over the machine's time, and when each VM's load began.

use harness::experiment::Figure;
use protocol::link::VmState;

use crate::Error;
use crate::report::Stats;

/// Band of a rate, in per cent of what the paper's law says.
const BAND: f64 = 5.0;
/// The VMs begin at this second of their clocks, ...
pub const FIRST: f64 = 15.0;
/// ... one after the other, so many seconds apart.
pub const APART: f64 = 10.0;
/// Seconds from the beginning of a VM's load, or a change of the policy, to the measurement: queues have filled then.
pub const SETTLE: f64 = 1.5;
/// A phase is measured until so many seconds before the next can begin, ...
pub const MARGIN: f64 = 0.5;
/// ... and this long at least.
const SHORTEST: f64 = 3.0;
/// A VM loads its disk when it makes so many requests per second, counted over so many seconds. No phase gives less.
const LOADS: (f64, f64) = (100.0, 0.5);
/// The disk that is loaded.
const LOADED: u8 = 1;

/// Requests per second of each VM that has begun.
pub type Rates = &'static [f64];

/// One look at the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The machine's time in seconds.
    pub at: f64,
    /// Requests completed on the loaded disk of each VM.
    pub requests: Vec<u64>,
    /// Requests completed by the disk.
    pub completed: u64,
    /// Of those, later than the model.
    pub late: u64,
}

impl Sample {
    /// What these answers say; an error if a VM does not run.
    pub fn of(stats: &Stats) -> Result<Self, Error> {
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
        let (completed, late) = stats.disk().map_or((0, 0), |disk| (disk.completed, disk.late));
        let at = stats.machine.uptime.0 as f64 / 1e9;
        Ok(Self { at, requests: requests.collect(), completed, late })
    }
}

/// What was seen of a run.
#[derive(Debug, Default)]
pub struct Record {
    /// One look after the other.
    pub samples: Vec<Sample>,
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
    pub fn rate(&self, vm: usize, from: f64, to: f64) -> f64 {
        (self.requests(vm, to) - self.requests(vm, from)) / (to - from)
    }

    /// When `vm` began to load its disk, at `from` or later.
    fn begin(&self, vm: usize, from: f64) -> Option<f64> {
        let (least, over) = LOADS;
        let first = self.samples.partition_point(|sample| sample.at < from);
        let seen = self.samples.get(first..)?.iter().map(|sample| sample.at);
        seen.map(|at| at + over).find(|at| self.rate(vm, at - over, *at) >= least)
    }

    /// The part of phase `phase` that is measured: all its VMs load their disks, and the disk is as fast as it is to be.
    pub fn window(&self, phase: usize) -> Result<(f64, f64), Error> {
        let starts = FIRST + APART * phase as f64;
        let end = starts + APART - MARGIN;
        let vm = phase + 1;
        match self.begin(phase, starts) {
            Some(begin) if end - begin - SETTLE >= SHORTEST => Ok((begin + SETTLE, end)),
            Some(begin) => Err(Error::Wrong(format!(
                "VM{vm} began to load its disk at {begin:.1} s, at second {starts} of its own clock: too late to measure its \
                 phase, which ends at {end} s; the host is too slow or too busy"
            ))),
            None => Err(Error::Wrong(format!("VM{vm} did not load its disk before {end} s"))),
        }
    }

    /// The VMs' rates in that time beside what is expected of them.
    pub fn figures(&self, (from, to): (f64, f64), expected: Rates, policy: &str) -> Vec<Figure> {
        let figure = |(vm, expected): (usize, &f64)| {
            let name = format!("{policy}, {from:.1} to {to:.1} s: VM{}", vm + 1);
            Figure::near(name, self.rate(vm, from, to), *expected, BAND)
        };
        expected.iter().enumerate().map(figure).collect()
    }

    /// Per cent of the requests after second `from` that were later than the model.
    pub fn late(&self, from: f64) -> f64 {
        let at = self.samples.partition_point(|sample| sample.at < from);
        let (Some(first), Some(last)) = (self.samples.get(at), self.samples.last()) else {
            return 0.0;
        };
        let completed = last.completed.saturating_sub(first.completed);
        last.late.saturating_sub(first.late) as f64 * 100.0 / completed.max(1) as f64
    }
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

    /// Looks every tenth of a second at two VMs, which make 700 requests a second from these seconds on.
    fn loads(begins: [f64; 2], end: f64) -> Record {
        let looks = (0..=(end * 10.0) as u32).map(|tenth| {
            let at = f64::from(tenth) / 10.0;
            let requests = begins.map(|begin| ((at - begin).max(0.0) * 700.0) as u64).to_vec();
            Sample { at, requests, completed: 0, late: 0 }
        });
        Record { samples: looks.collect() }
    }

    #[test]
    fn a_phase_is_measured_from_when_its_vm_has_begun() {
        // VM2's clock is 3.6 seconds behind the machine's.
        let record = loads([16.2, 28.6], 40.0);
        let (from, to) = record.window(0).unwrap();
        assert!((17.7..18.1).contains(&from) && to == 24.5, "{from} {to}");
        let (from, to) = record.window(1).unwrap();
        assert!((30.1..30.5).contains(&from) && to == 34.5, "{from} {to}");
        assert!((record.rate(1, from, to) - 700.0).abs() < 1.0);
        // Measured at fixed times it would have been found too slow, as happened.
        assert!(record.rate(1, 28.0, 34.5) < 0.95 * 700.0);
    }

    #[test]
    fn a_vm_that_begins_too_late_or_never_is_an_error_and_no_figure() {
        let late = loads([16.2, 30.0], 40.0).window(1).unwrap_err().to_string();
        assert!(late.contains("VM2 began to load its disk at 30."), "{late}");
        let never = loads([16.2, 99.0], 40.0).window(1).unwrap_err().to_string();
        assert!(never.contains("VM2 did not load its disk"), "{never}");
        assert!(loads([99.0, 26.0], 10.0).window(0).is_err());
    }

    #[test]
    fn only_what_lies_in_the_band_passes() {
        let record = Record { samples: vec![sample(0.0, 0, 0), sample(10.0, 1000, 0)] };
        let passes =
            |expected: &'static [f64]| record.figures((0.0, 10.0), expected, "x")[0].passes();
        assert!(passes(&[96.0]) && passes(&[105.0]));
        assert!(!passes(&[95.0]) && !passes(&[106.0]));
    }
}
