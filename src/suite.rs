//! `ballast test`: every check in order, each with its time, and one closing line.

use crate::{Error, WORKSPACE};
use std::process::{Command, Stdio};
use std::time::Instant;

/// One part of the suite.
struct Part {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
}

const PARTS: [Part; 5] = [
    Part { name: "format", program: "cargo", arguments: &["fmt", "--all", "--check"] },
    Part {
        name: "lints",
        program: "cargo",
        arguments: &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
    },
    Part {
        name: "fuzz targets compile",
        program: "cargo",
        arguments: &[
            "check",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--no-default-features",
            "--quiet",
        ],
    },
    Part {
        name: "unit and component tests",
        program: "cargo",
        arguments: &["test", "--workspace", "--exclude", "tests", "--quiet"],
    },
    Part {
        name: "QEMU tests",
        program: "cargo",
        // Every group: none can be forgotten in a list.
        arguments: &["test", "--package", "tests", "--quiet"],
    },
];

/// What a part counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Sums the closing lines of test runners in `output`; `None` if there is none.
fn count(output: &str) -> Option<Count> {
    let mut sum = None;
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let number = |word: &str| {
            let before = line.split(word).next()?;
            before.split_whitespace().last()?.parse::<u64>().ok()
        };
        let sum = sum.get_or_insert(Count::default());
        sum.passed += number(" passed").unwrap_or(0);
        sum.failed += number(" failed").unwrap_or(0);
    }
    sum
}

/// Runs the parts, or those whose name contains one of `only`.
///
/// # Errors
///
/// [`Error::Wrong`] if anything failed.
pub fn run(only: &[String]) -> Result<(), Error> {
    let mut total = Count::default();
    let mut times = Vec::new();
    for part in &PARTS {
        if !only.is_empty() && !only.iter().any(|name| part.name.contains(name.as_str())) {
            continue;
        }
        println!("== {} ==", part.name);
        let started = Instant::now();
        let counted = run_part(part)?;
        total.passed += counted.passed;
        total.failed += counted.failed;
        times.push((part.name, started.elapsed(), counted));
    }
    let mut table = crate::report::Table::new(&["PART", "PASSED", "FAILED", "SECONDS"]);
    for (name, time, counted) in times {
        table.row(vec![
            name.to_owned(),
            counted.passed.to_string(),
            counted.failed.to_string(),
            format!("{:.1}", time.as_secs_f64()),
        ]);
    }
    println!("\n{}", table.text());
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.passed == 0 {
        return Err(Error::Wrong("no test was run".to_owned()));
    }
    if total.failed > 0 {
        return Err(Error::Wrong(format!("{} tests failed", total.failed)));
    }
    Ok(())
}

/// Runs one part with its output shown as it comes. A part without tests of its own counts as one.
fn run_part(part: &Part) -> Result<Count, Error> {
    use std::io::{BufRead, BufReader};
    let mut command = Command::new(part.program);
    command.args(part.arguments).current_dir(WORKSPACE);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let failed = |cause: std::io::Error| Error::Build(format!("{}: {cause}", part.program));
    let mut child = command.spawn().map_err(failed)?;
    let mut output = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            println!("{line}");
            output.push_str(&line);
            output.push('\n');
        }
    }
    let status = child.wait().map_err(failed)?;
    let mut counted = count(&output).unwrap_or_default();
    if counted == Count::default() && status.success() {
        counted.passed = 1;
    }
    if !status.success() && counted.failed == 0 {
        counted.failed = 1;
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::{Count, count};

    #[test]
    fn closing_lines_are_summed() {
        let text = "running 2 tests\n\
                    test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured\n\
                    test result: FAILED. 3 passed; 4 failed; 0 ignored";
        assert_eq!(count(text), Some(Count { passed: 5, failed: 4 }));
        assert_eq!(count("nothing"), None);
    }
}
