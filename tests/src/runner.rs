//! Runs cases in order, prints each with its time, and closes with the usual summary line.

use std::time::Instant;

/// Why a case failed.
pub type Failure = String;

/// Counts what passed and failed, and skips what was not asked for.
#[derive(Debug)]
pub struct Runner {
    words: Vec<String>,
    passed: u32,
    failed: u32,
}

impl Runner {
    /// A runner for the groups whose name contains one of the words on the command line.
    pub fn from_arguments() -> Self {
        let words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        Self { words, passed: 0, failed: 0 }
    }

    /// Whether the group `name` was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }

    /// Runs one case; whether it passed.
    pub fn case(&mut self, name: &str, run: impl FnOnce() -> Result<(), Failure>) -> bool {
        let started = Instant::now();
        let result = run();
        let seconds = started.elapsed().as_secs_f64();
        match &result {
            Ok(()) => {
                println!("test {name} ... ok ({seconds:.1} s)");
                self.passed += 1;
            }
            Err(failure) => {
                println!("test {name} ... FAILED ({seconds:.1} s)\n    {failure}");
                self.failed += 1;
            }
        }
        result.is_ok()
    }

    /// Prints a figure a case measured, beside its name.
    pub fn figure(&self, name: &str, value: &str) {
        println!("figure {name}: {value}");
    }

    /// Counts a case that could not be run because an earlier one failed.
    pub fn lost(&mut self, name: &str, why: &str) {
        println!("test {name} ... FAILED (not run: {why})");
        self.failed += 1;
    }

    /// Prints the summary; whether everything passed.
    pub fn finish(self) -> bool {
        let word = if self.failed == 0 { "ok" } else { "FAILED" };
        println!(
            "test result: {word}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
            self.passed, self.failed
        );
        self.failed == 0 && self.passed > 0
    }
}
