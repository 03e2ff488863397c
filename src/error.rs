//! What can go wrong on the host, and the exit code it means.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Why a verb of the host command failed.
#[derive(Debug)]
pub enum Error {
    /// A test or experiment gave the wrong answer.
    Wrong(String),
    /// The hypervisor, a server or QEMU crashed.
    Crash(String),
    /// Nothing happened for too long.
    NoProgress(String),
    /// The user's input is wrong; the text points at it and names a cure.
    Input(String),
    /// Something could not be built or booted.
    Build(String),
}

impl Error {
    /// Exit code of the command: what a script can rely on.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Wrong(_) => 1,
            Self::Crash(_) | Self::Input(_) => 2,
            Self::NoProgress(_) => 3,
            Self::Build(_) => 5,
        })
    }

    /// A file that could not be read or written.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Build(format!("{}: {cause}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(text)
            | Self::Crash(text)
            | Self::NoProgress(text)
            | Self::Input(text)
            | Self::Build(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<builder::Error> for Error {
    fn from(error: builder::Error) -> Self {
        Self::Build(error.to_string())
    }
}
