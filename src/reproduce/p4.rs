//! ESX memory management.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use harness::experiment::{Figure, Outcome};
use protocol::units::VmId;

use super::Paper;
use crate::bench;
use crate::config::Config;
use crate::machine::{Clock, Options};
use crate::{Error, WORKSPACE};

/// The paper of memory resource management in VMware ESX Server.
pub const PAPER: Paper =
    Paper { name: "P4", ids: &IDS, run, live_ids: &[], run_live: |_| Ok(None) };

/// Its experiments: E5 on running VMs, the others on the model machine.
const IDS: [&str; 12] = [
    "P4-E1", "P4-E2", "P4-E3", "P4-E4", SCANNER, "P4-E6", "P4-E7", "P4-E8", "P4-E9", "P4-E10",
    "P4-E11", "P4-E12",
];
const SCANNER: &str = "P4-E5";
/// Pages per second, as in `overcommit.toml`: as many as these two guests have in 25 seconds.
const RATE: u32 = 2_000;
/// For the negative control: as fast as there is time.
const RATE_TOO_HIGH: u32 = 400_000;
/// Guard against a hang, in host time.
const HANG: Duration = Duration::from_secs(300);

fn run(id: &str) -> Result<Option<Outcome>, Error> {
    if id == SCANNER { scanner_cost().map(Some) } else { Ok(harness::p4::run(id)) }
}

/// Instructions the machine executed while the busy guest computed, at this scan rate.
fn work(rate: u32) -> Result<u64, Error> {
    crate::image::progress(&format!("a guest computes while {rate} pages a second are scanned"));
    let mut config = Config::load(&Path::new(WORKSPACE).join("images/systems/scan-work.toml"))?;
    config.system.memory_policy.controls.scan_pages_per_second = rate;
    // On one core: what the scanner takes, the guest waits for. Nothing comes from the host, no disk and no input; the date would: it
    // is part of the mem-server's secret and of what guests keep in memory.
    let (cores, clock) = (1, Clock::Instructions);
    let options = Options { cores, clock, is_date_fixed: true, ..Options::default() };
    let session = bench::start_on(&config, &options)?;
    let taken = session.wait("end of the guest's work", HANG, |heard| {
        let console = heard.consoles.get(&VmId(0).0)?;
        worked(&String::from_utf8_lossy(console.since(0)))
    });
    bench::quit(&session);
    taken
}

/// The difference of the two counters behind the mark.
fn worked(console: &str) -> Option<u64> {
    let mut words = console.split_once("BALLAST-WORK ")?.1.split_whitespace();
    let mut counter =
        || u64::from_str_radix(words.next().filter(|word| word.len() == 16)?, 16).ok();
    let (start, end) = (counter()?, counter()?);
    end.checked_sub(start)
}

/// P4-E5: what the scanner costs a guest that only computes.
fn scanner_cost() -> Result<Outcome, Error> {
    let mut taken = BTreeMap::new();
    for rate in [0, RATE, RATE_TOO_HIGH] {
        taken.insert(rate, work(rate)? as f64);
    }
    let figure = |rate: u32| {
        let [base, with] = [0, rate].map(|rate| taken.get(&rate).copied().unwrap_or(f64::NAN));
        let name = format!("slower at {rate} pages/s, per cent");
        Figure::between(name, (with / base - 1.0) * 100.0, -0.5, 2.0)
    };
    Ok(Outcome {
        id: SCANNER,
        title: "Cost of page sharing to a guest that computes (executed instructions, running Debian kernels)",
        band: "at most 2 % more instructions with the scanner on",
        figures: vec![figure(RATE)],
        control: "scanning without regard to the guest",
        control_figures: vec![figure(RATE_TOO_HIGH)],
        plots: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::worked;

    #[test]
    fn work_is_the_difference_of_two_counters() {
        let console = "x  -\r\nBALLAST-WORK 0000000000001000 0000000000003000\r\n";
        assert_eq!(worked(console), Some(0x2000));
        assert_eq!(worked("BALLAST-WORK 0000000000001000 00000"), None);
    }
}
