//! What one disk request costs: in the scheduler, in instructions counted by callgrind on the host; and in all, from a
//! guest's submission to its interrupt.

use super::{Figures, HANG, collect, quit, start_on};
use crate::config::Config;
use crate::machine::{Clock, Options};
use crate::report::Stats;
use crate::session::{Ask, Session};
use crate::{Error, WORKSPACE};
use protocol::link::{Request, ServerId};
use protocol::units::{DiskId, VmId};
use std::path::Path;
use std::process::Command;

/// Clients, operations counted, key.
const SIZES: [(u64, u64, &str); 5] = [
    (1, 20_000, "mclock_op_1"),
    (10, 20_000, "mclock_op_10"),
    (100, 20_000, "mclock_op_100"),
    (1_000, 20_000, "mclock_op_1000"),
    (10_000, 50_000, "mclock_op_10000"),
];

/// Instructions that callgrind says it collected.
fn collected(report: &str) -> Option<f64> {
    let line = report.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

/// Instructions of add, decide and complete at 1 to 10,000 backlogged clients.
pub fn figures(figures: &mut Figures) -> Result<(), Error> {
    crate::image::progress("counting the disk scheduler's instructions");
    let runner = "valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect=*measured* \
                  --main-stacksize=300000000";
    for (clients, operations, key) in SIZES {
        let output = Command::new("cargo")
            .args([
                "run",
                "--quiet",
                "--release",
                "-p",
                "io-sched-server",
                "--example",
                "mclock_op",
            ])
            .arg("--manifest-path")
            .arg(Path::new(WORKSPACE).join("Cargo.toml"))
            .args(["--", &clients.to_string(), &operations.to_string()])
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner)
            .output()
            .map_err(Error::file("cargo"))?;
        let report = String::from_utf8_lossy(&output.stderr);
        let Some(instructions) = collected(&report) else {
            return Err(Error::Build(format!(
                "callgrind counted nothing (is valgrind installed?): {}",
                report.lines().last().unwrap_or("no output")
            )));
        };
        figures.insert(key.to_owned(), (instructions / operations as f64).round());
    }
    Ok(())
}

/// Requests per second of the disk.
const DISK_IOPS: u32 = 2000;
/// Blocks the two guests of `bench-disk.toml` read.
const READS: [u64; 2] = [1000, 3000];

/// Processor time charged so far to a VM, and to the io-sched-server.
fn charged(session: &Session, vm: VmId) -> Result<[u64; 2], Error> {
    let stats = Stats::from_lines(&session.ask(Request::Stats)?);
    let guest = stats.vms.iter().find(|(id, ..)| *id == vm).map_or(0, |(.., vm)| vm.vcpu_time.0);
    let server = stats.servers.iter().find(|(id, _)| *id == ServerId::Io(DiskId(0)));
    Ok([guest, server.map_or(0, |(_, server)| server.time.0)])
}

/// Runs a guest that reads blocks one by one, and answers what the VM and the io-sched-server were charged for it.
fn read_blocks(session: &Session, vm: VmId, reads: u64) -> Result<[u64; 2], Error> {
    let before = charged(session, vm)?;
    session.ask(Request::VmStart(vm))?;
    let console = session.wait("end of the guest's reads", HANG, |heard| {
        let text = String::from_utf8_lossy(heard.consoles.get(&vm.0)?.since(0)).into_owned();
        text.contains("BENCH end").then_some(text)
    })?;
    let mut said = Figures::new();
    collect(&console, &mut said);
    if said.get("reads") != Some(&(reads as f64)) {
        return Err(Error::Wrong(format!("{reads} blocks were to be read: {console}")));
    }
    let after = charged(session, vm)?;
    Ok([0, 1].map(|part| after[part].saturating_sub(before[part])))
}

/// What start and end cost is the same for both guests, so it is not in the difference.
fn measure_path(session: &Session, figures: &mut Figures) -> Result<(), Error> {
    session.wait_ready(HANG)?;
    let short = read_blocks(session, VmId(0), READS[0])?;
    let long = read_blocks(session, VmId(1), READS[1])?;
    let per_read =
        |part: usize| long[part].saturating_sub(short[part]) as f64 / (READS[1] - READS[0]) as f64;
    figures.insert("io_read_4k_path".to_owned(), (per_read(0) + per_read(1)).round());
    figures.insert("io_read_4k_server".to_owned(), per_read(1).round());
    Ok(())
}

/// Instructions from a guest's submission of a 4 KiB read to the end of its interrupt, the device's own time not counted.
pub fn path(figures: &mut Figures) -> Result<(), Error> {
    crate::image::progress("measuring a disk read from submission to completion");
    let config = Config::load(&Path::new(WORKSPACE).join("images/systems/bench-disk.toml"))?;
    // The disk is slow enough that the guest sleeps each time, and its sleep is as long as the host's time is: no timer
    // goes off for the sake of it.
    let options = Options {
        cores: 1,
        clock: Clock::Patient,
        disk_iops: Some(DISK_IOPS),
        ..Options::default()
    };
    let session = start_on(&config, &options)?;
    let measured = measure_path(&session, figures);
    quit(&session);
    measured
}

#[cfg(test)]
mod tests {
    use super::collected;

    #[test]
    fn callgrinds_sum_is_read() {
        let report = "==7== Events    : Ir\n==7== Collected : 9986556\n==7== \n";
        assert_eq!(collected(report), Some(9_986_556.0));
        assert_eq!(collected("valgrind: not found"), None);
    }
}
