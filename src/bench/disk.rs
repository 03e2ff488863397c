//! What one disk request costs in the scheduler, in instructions counted by callgrind on the host.

use super::Figures;
use crate::{Error, WORKSPACE};
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
