//! Entry of the host command: one line on failure, and the exit code that belongs to it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match ballast::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ballast: {error}");
            error.exit_code()
        }
    }
}
