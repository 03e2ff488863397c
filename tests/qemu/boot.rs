//! Boots a description by instruction count, and ends it.

use ballast::config::Config;
use ballast::image::{self, Disk};
use ballast::machine::{Clock, EXIT_GOOD, Machine, Options, Writes, exit_status};
use ballast::report::Stats;
use ballast::session::{Ask, Session, run_folder};
use protocol::link::{Event, MemoryStats, Request, StopReason};
use protocol::units::VmId;
use std::sync::Arc;
use tests::guest::{HANG, Shell};
use tests::runner::Failure;

/// An error as the reason of a failure.
pub fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Boots a description; its disk is discarded.
pub fn start(name: &str, description: &str, clock: Clock) -> Result<Arc<Session>, Failure> {
    let folder = run_folder(&format!("test-{name}-{}", std::process::id())).map_err(text)?;
    std::fs::create_dir_all(&folder).map_err(text)?;
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, description).map_err(text)?;
    let config = Config::load(&path).map_err(text)?;
    let image = image::build(&config, Disk::Fresh).map_err(text)?;
    let options = Options { writes: Writes::Discard, clock, ..Options::default() };
    let machine = Machine::start(&image, &options, &folder).map_err(text)?;
    Session::start(machine, &folder).map_err(text)
}

/// Ends the run and forgets its folder; it must end well.
pub fn stop(session: &Session) -> Result<(), Failure> {
    let _ = session.ask(Request::Quit { code: EXIT_GOOD });
    let ended = session.wait_end(HANG);
    let _ = std::fs::remove_dir_all(session.folder());
    if ended == Some(exit_status(EXIT_GOOD)) {
        return Ok(());
    }
    Err(format!("QEMU ended with {ended:?}"))
}

/// The system's figures.
pub fn stats(session: &Session) -> Result<Stats, Failure> {
    session.ask(Request::Stats).map(|lines| Stats::from_lines(&lines)).map_err(text)
}

/// The memory figures of a VM.
pub fn memory(stats: &Stats, vm: VmId) -> MemoryStats {
    let found = stats.vms.iter().find(|(id, ..)| *id == vm);
    found.map_or(MemoryStats::default(), |(.., stats)| stats.memory)
}

/// Why VMs were stopped so far.
pub fn stops(session: &Session) -> Vec<(VmId, StopReason)> {
    session.heard(|heard| {
        let stop = |event: &(_, Event)| match event.1 {
            Event::VmStopped { vm, reason } => Some((vm, reason)),
            _ => None,
        };
        heard.events.iter().filter_map(stop).collect()
    })
}

/// Waits for the shell of a VM without a root disk.
pub fn prompt(shell: &mut Shell<'_>) -> Result<(), Failure> {
    shell.wait("shell in the initramfs", HANG, |text| text.contains("/ #").then_some(()))
}
