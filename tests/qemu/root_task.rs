//! Root-tasks that test the kernel from inside, booted by every path the kernel supports.

use crate::boot::text;
use ballast::image::{Image, foreign, program, state_folder, write_iso};
use ballast::machine::{Boot, Clock, Machine, Options, verdict};
use ballast::session::run_folder;
use std::path::Path;
use std::time::Duration;
use tests::runner::{Failure, Runner};

/// RAM of the machine for these tests.
const MEMORY_MIB: u64 = 512;
const HANG: Duration = Duration::from_secs(240);

/// What the kernel's serial line showed, and QEMU's exit status.
struct Run {
    log: String,
    status: Option<i32>,
}

fn boot(image: &Image, options: &Options, name: &str) -> Result<Run, Failure> {
    let folder = run_folder(&format!("test-{name}-{}", std::process::id())).map_err(text)?;
    let mut machine = Machine::start(image, options, &folder).map_err(text)?;
    let status = machine.wait(HANG);
    let log = std::fs::read(machine.kernel_log()).map_err(text)?;
    drop(machine);
    let _ = std::fs::remove_dir_all(&folder);
    let log = ballast::symbols::annotate(&String::from_utf8_lossy(&log));
    Ok(Run { log, status })
}

fn ended_well(run: &Run) -> Result<(), Failure> {
    let last: Vec<&str> = run.log.lines().rev().take(20).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    let status = run.status.ok_or_else(|| "it did not end".to_owned());
    let failed = run.log.lines().any(|line| line.starts_with("FAIL "));
    match status.and_then(|status| verdict(status).map_err(text)) {
        Ok(()) if !failed => Ok(()),
        Ok(()) => Err(format!("a check failed:\n    {}", last.join("\n    "))),
        Err(error) => Err(format!("{error}:\n    {}", last.join("\n    "))),
    }
}

/// The root-task's closing line `NAME: N passed, M failed`, if it prints one.
fn closing_line(log: &str) -> Option<(u32, u32)> {
    let line = log.lines().rev().find(|line| line.contains(" passed, "))?;
    let (_, counts) = line.split_once(": ")?;
    let (passed, failed) = counts.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.split_whitespace().next()?.parse().ok()?))
}

/// Every `ok NAME` and `FAIL NAME` line the root-task printed is a case.
fn report(runner: &mut Runner, name: &str, run: &Run) {
    if let Some((passed, failed)) = closing_line(&run.log) {
        runner.case(&format!("{name}: {passed} checks inside"), || match (passed, failed) {
            (1.., 0) => Ok(()),
            _ => Err(format!("{failed} of them failed")),
        });
    }
    for line in run.log.lines() {
        let line = line.trim_end();
        if let Some(check) = line.strip_prefix("ok ") {
            runner.case(&format!("{name}: {check}"), || Ok(()));
        } else if let Some(check) = line.strip_prefix("FAIL ") {
            runner.case(&format!("{name}: {check}"), || Err(format!("the {name} says so")));
        }
    }
}

fn image(name: &str) -> Result<Image, Failure> {
    foreign(&program(name).map_err(text)?, MEMORY_MIB).map_err(text)
}

fn inside(runner: &mut Runner, name: &str) {
    let mut result = None;
    runner.case(&format!("{name}: boots by PVH and ends well"), || {
        // By instruction count: what is measured inside does not depend on the host's load.
        let options = Options { clock: Clock::Instructions, ..Options::default() };
        let run = boot(&image(name)?, &options, name)?;
        let ended = ended_well(&run);
        result = Some(run);
        ended
    });
    if let Some(run) = result {
        report(runner, name, &run);
    }
}

fn iso(runner: &mut Runner, name: &str, boot_path: Boot, firmware: &str) {
    runner.case(&format!("{name}: boots from the ISO under {firmware}"), || {
        let path = state_folder().join(format!("test-{}.iso", std::process::id()));
        let mut image = image(name)?;
        write_iso(&image, &path).map_err(text)?;
        image.module.clone_from(&path);
        let options = Options { boot: boot_path, clock: Clock::Instructions, ..Options::default() };
        let run = boot(&image, &options, firmware);
        let _ = std::fs::remove_file(Path::new(&path));
        ended_well(&run?)
    });
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if runner.wants("abi-test") {
        inside(runner, "abi-test");
    }
    if runner.wants("svm-test") {
        inside(runner, "svm-test");
    }
    if runner.wants("iso") {
        iso(runner, "abi-test", Boot::IsoBios, "SeaBIOS");
        iso(runner, "abi-test", Boot::IsoUefi, "OVMF");
    }
    if runner.wants("determinism") {
        runner.case("determinism: two runs by instruction count print the same", || {
            let options = Options { clock: Clock::Instructions, ..Options::default() };
            let image = image("abi-test")?;
            let first = boot(&image, &options, "count")?;
            ended_well(&first)?;
            let second = boot(&image, &options, "count")?;
            if first.log == second.log {
                return Ok(());
            }
            let differs = first.log.lines().zip(second.log.lines()).find(|(a, b)| a != b);
            Err(format!("the outputs differ: {differs:?}"))
        });
    }
}
