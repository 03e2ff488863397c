//! The host command's manners: bad input is pointed at and nothing is started.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tests::runner::{Failure, Runner};

/// The host command that was built beside this test.
fn ballast() -> Result<PathBuf, Failure> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = test.ancestors().nth(2).ok_or("the test has no folder")?;
    let path = folder.join("ballast");
    if path.is_file() { Ok(path) } else { Err(format!("{} is missing", path.display())) }
}

fn run_ballast(arguments: &[&str]) -> Result<Output, Failure> {
    Command::new(ballast()?).args(arguments).output().map_err(|error| error.to_string())
}

/// `ballast run` on `text` must end with code 2 and say `words`.
fn refused(text: &str, words: &[&str]) -> Result<(), Failure> {
    let path = std::env::temp_dir().join(format!("ballast-bad-{}.toml", std::process::id()));
    std::fs::write(&path, text).map_err(|error| error.to_string())?;
    let output = run_ballast(&["run", &path.display().to_string()])?;
    let _ = std::fs::remove_file(&path);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() != Some(2) {
        return Err(format!("exit code {:?}: {said}", output.status.code()));
    }
    match words.iter().find(|word| !said.contains(**word)) {
        Some(word) => Err(format!("does not say '{word}': {said}")),
        None => Ok(()),
    }
}

const VM: &str = "[[vm]]\nname = \"a\"\nmemory = { size = \"64M\" }\nkernel = \"debian\"\n";

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("command") {
        return;
    }
    runner.case("command: an unknown key is pointed at", || {
        refused(&format!("{VM}colour = \"red\"\n"), &[".toml:5:1", "colour", "^^^^^^", "cure:"])
    });
    runner.case("command: reservations above the machine are refused", || {
        let text = VM.replace("size = \"64M\"", "size = \"1G\", reservation = \"1G\"");
        refused(&format!("[host]\nmemory = \"256M\"\n{text}"), &["MiB for VMs", "^", "cure:"])
    });
    runner.case("command: a missing kernel is named", || {
        refused(&VM.replace("debian", "./no/kernel"), &["no file", "no/kernel", "^", "cure:"])
    });
    runner.case("command: a missing description is named", || {
        let output = run_ballast(&["run", "/nonexistent.toml"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_right = output.status.code() == Some(2) && said.contains("/nonexistent.toml");
        if is_right { Ok(()) } else { Err(said) }
    });
    runner.case("command: a file that is no ELF is no root-task", || {
        let output = run_ballast(&["run", "--root-task", "/etc/passwd"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_right = output.status.code() == Some(2) && said.contains("ELF");
        if is_right { Ok(()) } else { Err(said) }
    });
    runner.case("command: a reader that is gone ends a command quietly", || {
        let mut command = Command::new(ballast()?);
        command.arg("doctor").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        drop(child.stdout.take());
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(0) && said.is_empty() {
            return Ok(());
        }
        Err(format!("{}: {said}", output.status))
    });
    runner.case("command: output that cannot be written is an error", || {
        let full = std::fs::File::create("/dev/full").map_err(|error| error.to_string())?;
        let output = Command::new(ballast()?).arg("doctor").stdout(full).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(5) && said.contains("cannot be written") {
            return Ok(());
        }
        Err(format!("{}: {said}", output.status))
    });
    runner.case("command: doctor finds nothing wrong", || {
        let output = run_ballast(&["doctor"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    });
}
