//! Bochs, a second implementation of the processor, which keeps its TLB: the kernel's own tests, and two Linux VMs.

use crate::boot::text;
use ballast::config::Config;
use ballast::image::{Disk, Image, build, foreign, program, state_folder, write_iso};
use protocol::link::{self, Deframer, Event, FRAME_MAX, ToHost};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::runner::{Failure, Runner};

const HANG: Duration = Duration::from_secs(900);
/// Time between two looks at what the machine has said.
const LOOK: Duration = Duration::from_millis(100);
/// What a guest without a root file system says.
const SHELL: &str = "this is a shell in the initramfs";

/// A running machine; it ends when this is dropped.
struct Bochs {
    process: Child,
    folder: PathBuf,
    deadline: Instant,
}

impl Bochs {
    /// Boots an image from an ISO.
    fn start(image: &Image) -> Result<Self, Failure> {
        let folder = state_folder().join(format!("bochs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(text)?;
        write_iso(image, &folder.join("boot.iso")).map_err(text)?;
        // Debian's Bochs has its debugger built in: the command file tells it to go on.
        std::fs::write(folder.join("commands"), "c\n").map_err(text)?;
        let settings = "display_library: rfb, options=\"timeout=0\"\n\
            romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
            vgaromimage: file=/usr/share/vgabios/vgabios.bin\n\
            cpu: model=ryzen, count=1, ips=50000000\n\
            memory: guest=512, host=512\n\
            ata0-master: type=cdrom, path=boot.iso, status=inserted\n\
            boot: cdrom\n\
            com2: enabled=1, mode=file, dev=link\n\
            port_e9_hack: enabled=1\n\
            panic: action=fatal\n\
            clock: sync=none\n\
            log: messages\n\
            sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
            speaker: enabled=1, mode=gui\n";
        std::fs::write(folder.join("settings"), settings).map_err(text)?;
        let output = File::create(folder.join("output")).map_err(text)?;
        let process = Command::new("bochs")
            .args(["-q", "-f", "settings", "-rc", "commands"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("bochs: {error} (apt-get install bochs bochsbios vgabios)"))?;
        Ok(Self { process, folder, deadline: Instant::now() + HANG })
    }

    /// What the machine has said so far: by the debug port or, if `file` is "link", by its second serial port.
    fn said(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(file)).unwrap_or_default()
    }

    /// Waits a little; false if the machine has ended or hangs.
    fn goes_on(&mut self) -> Result<bool, Failure> {
        std::thread::sleep(LOOK);
        Ok(self.process.try_wait().map_err(text)?.is_none() && Instant::now() < self.deadline)
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Boots the root-task `name` and returns what it printed up to its closing line.
fn boot(name: &str) -> Result<String, Failure> {
    let mut bochs = Bochs::start(&foreign(&program(name).map_err(text)?, 512).map_err(text)?)?;
    let closing = format!("\n{name}: ");
    loop {
        let goes_on = bochs.goes_on()?;
        let said = String::from_utf8_lossy(&bochs.said("output")).into_owned();
        // Without an exit device the kernel halts: Bochs is ended from here.
        if !goes_on || said.contains(&closing) && said.trim_end().ends_with("failed") {
            return Ok(said);
        }
    }
}

/// What a Linux kernel says when it cannot go on.
const PANIC: &str = "Kernel panic";

/// Consoles by VM and the events of what came by the management link.
fn heard(bytes: &[u8]) -> (BTreeMap<u16, String>, Vec<Event>) {
    let (mut consoles, mut events) = (BTreeMap::<u16, String>::new(), Vec::new());
    let mut deframer = Box::new(Deframer::<FRAME_MAX>::default());
    for &byte in bytes {
        match deframer.push(byte).and_then(link::decode::<ToHost<'_>>) {
            Some(ToHost::Console { vm, data }) => {
                consoles.entry(vm.0).or_default().push_str(&String::from_utf8_lossy(data));
            }
            Some(ToHost::Event { event, .. }) => events.push(event),
            _ => {}
        }
    }
    (consoles, events)
}

/// Boots `bochs.toml` until both of its VMs have a shell.
fn two_shells() -> Result<(), Failure> {
    let path = Path::new(ballast::WORKSPACE).join("images/systems/bochs.toml");
    let image = build(&Config::load(&path).map_err(text)?, Disk::Keep).map_err(text)?;
    let mut bochs = Bochs::start(&image)?;
    loop {
        let goes_on = bochs.goes_on()?;
        let (consoles, events) = heard(&bochs.said("link"));
        if [0, 1].iter().all(|vm| consoles.get(vm).is_some_and(|said| said.contains(SHELL))) {
            return Ok(());
        }
        let is_bad =
            |event: &&Event| matches!(event, Event::VmStopped { .. } | Event::ServerFault { .. });
        if let Some(event) = events.iter().find(is_bad) {
            return Err(format!("{event:?}"));
        }
        let has_panicked = consoles.values().any(|said| said.contains(PANIC));
        if !goes_on || has_panicked {
            let kernel = String::from_utf8_lossy(&bochs.said("output")).into_owned();
            return Err(format!("no shell: {consoles:?}\n    {events:?}\n{kernel}"));
        }
    }
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("bochs") {
        return;
    }
    runner.case("bochs: abi-test passes on the ryzen model", || {
        let said = boot("abi-test")?;
        let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
        let is_clean = !said.lines().any(|line| line.starts_with("FAIL "));
        if is_clean && passed > 20 && said.contains("abi-test: 0 failed") {
            return Ok(());
        }
        let last: Vec<&str> = said.lines().rev().take(15).collect();
        Err(format!("{passed} checks passed:\n    {}", last.join("\n    ")))
    });
    runner.case("bochs: svm-test passes on the ryzen model", || {
        let said = boot("svm-test")?;
        let is_clean = !said.lines().any(|line| line.starts_with("FAIL "));
        if is_clean && said.contains(" passed, 0 failed") {
            return Ok(());
        }
        let last: Vec<&str> = said.lines().rev().take(15).collect();
        Err(format!("not clean:\n    {}", last.join("\n    ")))
    });
    runner.case("bochs: two Debian VMs boot to a shell on the ryzen model", two_shells);
}
