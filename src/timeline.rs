//! What VMs had over time, as a picture: one panel per VM, one for the machine.

use crate::Error;
use crate::report::Stats;
use crate::session::Ask;
use harness::plot::{Mark, Plot, Series};
use protocol::link::{MachineStats, MemoryStats, Request};
use protocol::units::{Pages, VmId};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Height and width of a panel, as the plots have.
const PANEL: (u32, u32) = (400, 720);

/// One look at the system.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The machine.
    pub machine: MachineStats,
    /// Memory of each VM.
    pub vms: Vec<(VmId, String, MemoryStats)>,
}

impl Sample {
    fn of(stats: &Stats) -> Self {
        let vm = |(id, name, _, stats): &(VmId, String, _, protocol::link::VmStats)| {
            (*id, name.clone(), stats.memory)
        };
        Self { machine: stats.machine, vms: stats.vms.iter().map(vm).collect() }
    }

    fn at(&self) -> f64 {
        self.machine.uptime.0 as f64 / 1e9
    }
}

fn mib(pages: Pages) -> f64 {
    pages.bytes() as f64 / f64::from(1 << 20)
}

/// Name, mark and figure of a line.
type Line = (&'static str, Mark, fn(&MemoryStats) -> Pages);

/// What is drawn of a VM.
const LINES: [Line; 7] = [
    ("granted", Mark::Line, |memory| memory.granted),
    ("active", Mark::Line, |memory| memory.active),
    ("target", Mark::Dashed, |memory| memory.target),
    ("shared", Mark::Line, |memory| memory.shared),
    ("swapped", Mark::Line, |memory| memory.swapped),
    ("compressed", Mark::Line, |memory| memory.compressed),
    ("balloon", Mark::Line, |memory| memory.balloon),
];

fn panel(title: String, series: Vec<Series>) -> Plot {
    Plot {
        name: String::new(),
        title,
        x: "machine time, s".to_owned(),
        y: "MiB".to_owned(),
        series,
    }
}

fn vm_panel(samples: &[Sample], vm: VmId, name: &str) -> Plot {
    let line = |(title, mark, of): &Line| {
        let points = samples.iter().filter_map(|sample| {
            let memory = sample.vms.iter().find(|(id, ..)| *id == vm).map(|(.., memory)| memory)?;
            Some((sample.at(), mib(of(memory))))
        });
        Series::new(*title, *mark, points.collect())
    };
    panel(name.to_owned(), LINES.iter().map(line).collect())
}

fn machine_panel(samples: &[Sample]) -> Plot {
    let free = samples.iter().map(|sample| (sample.at(), mib(sample.machine.free)));
    // One state is as high as a tenth of the most free memory, so that both can be read.
    let most = samples.iter().map(|sample| mib(sample.machine.free)).fold(10.0, f64::max);
    let state = samples
        .iter()
        .map(|sample| (sample.at(), f64::from(sample.machine.memory_state) * most / 10.0));
    let series = vec![
        Series::new("free", Mark::Line, free.collect()),
        Series::new("state: 0, 1, 2, 3 steps", Mark::Dashed, state.collect()),
    ];
    panel("machine: free memory; high, soft, hard, low".to_owned(), series)
}

/// The picture: panels below each other.
pub fn svg(samples: &[Sample]) -> String {
    let names = samples.last().map_or(&[][..], |sample| &sample.vms);
    let mut panels: Vec<Plot> =
        names.iter().map(|(vm, name, _)| vm_panel(samples, *vm, name)).collect();
    panels.push(machine_panel(samples));
    let (height, width) = PANEL;
    let total = height * panels.len() as u32;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{total}\">\n"
    );
    for (index, plot) in panels.iter().enumerate() {
        let y = height * index as u32;
        let _ = writeln!(out, "<g transform=\"translate(0 {y})\">\n{}</g>", plot.svg());
    }
    out.push_str("</svg>\n");
    out
}

/// Looks at the system every `every` for `seconds` of machine time, or until it ends; then writes the picture.
///
/// # Errors
///
/// [`Error`] if no system runs or `file` cannot be written.
pub fn record(asked: &impl Ask, seconds: u64, every: Duration, file: &Path) -> Result<(), Error> {
    let mut samples = vec![Sample::of(&Stats::from_lines(&asked.ask(Request::Stats)?))];
    let until = samples[0].machine.uptime.0.saturating_add(seconds.saturating_mul(1_000_000_000));
    while samples.last().is_none_or(|last| last.machine.uptime.0 < until) {
        std::thread::sleep(every);
        // A system that ends while it is watched has its picture too.
        let Ok(lines) = asked.ask(Request::Stats) else { break };
        samples.push(Sample::of(&Stats::from_lines(&lines)));
        let at = samples.last().map_or(0.0, Sample::at);
        eprint!("\rballast: {} samples, machine at {at:.0} s ", samples.len());
    }
    eprintln!();
    std::fs::write(file, svg(&samples)).map_err(Error::file(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::units::Nanos;

    fn sample(second: u64, granted: u64) -> Sample {
        let machine = MachineStats { uptime: Nanos::from_secs(second), ..MachineStats::default() };
        let memory = MemoryStats { granted: Pages(granted), ..MemoryStats::default() };
        Sample { machine, vms: vec![(VmId(0), "web".to_owned(), memory)] }
    }

    #[test]
    fn a_picture_has_a_panel_per_vm_and_one_for_the_machine() {
        let picture = svg(&[sample(1, 256), sample(2, 512)]);
        assert_eq!(picture.matches("<g transform").count(), 2);
        assert!(picture.contains("web") && picture.contains("granted"));
        assert!(picture.ends_with("</svg>\n"));
    }

    #[test]
    fn no_samples_are_a_picture_too() {
        assert!(svg(&[]).contains("machine"));
    }
}
