//! Running other programs, with errors that say what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Why a step of the build failed.
#[derive(Debug)]
pub enum Error {
    /// A program is missing.
    NoProgram {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program failed.
    Program {
        /// The program with its arguments.
        command: String,
        /// The end of what it printed.
        output: String,
    },
    /// A file could not be read or written.
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// An input is not what it should be.
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProgram { program, package } => {
                write!(f, "{program} is missing: apt-get install {package} (./ballast does it)")
            }
            Self::Program { command, output } => write!(f, "`{command}` failed:\n{output}"),
            Self::File { path, cause } => write!(f, "{}: {cause}", path.display()),
            Self::Input { path, why } => write!(f, "{}: {why}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

/// Adds the file's name to an error of `std::fs`.
pub fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |cause| Error::File { path, cause }
}

/// Runs `command` to its end; its output is shown only if it fails.
///
/// # Errors
///
/// [`Error::NoProgram`] naming `package`, or [`Error::Program`] with the end of the output.
pub fn run(command: &mut Command, package: &'static str) -> Result<Vec<u8>, Error> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => Error::NoProgram {
            program: command.get_program().to_string_lossy().into_owned(),
            package,
        },
        _ => Error::File { path: command.get_program().into(), cause },
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
    Err(Error::Program { command: shown, output: tail })
}

#[cfg(test)]
mod tests {
    use super::{Error, run};
    use std::process::Command;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = run(&mut Command::new("/nonexistent/x"), "some-package").unwrap_err();
        assert!(error.to_string().contains("apt-get install some-package"), "{error}");
    }

    #[test]
    fn a_failing_program_shows_its_output() {
        let error = run(Command::new("sh").args(["-c", "echo why; exit 3"]), "dash").unwrap_err();
        assert!(matches!(&error, Error::Program { output, .. } if output == "why"), "{error}");
    }
}
