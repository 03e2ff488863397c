//! The kernel's own tests on Bochs: a second implementation of the processor, which keeps its TLB.

use ballast::image::{foreign, program, state_folder, write_iso};
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::runner::{Failure, Runner};

const HANG: Duration = Duration::from_secs(300);

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Boots the root-task `name` from an ISO and returns what it printed up to its closing line.
fn boot(name: &str) -> Result<String, Failure> {
    let folder = state_folder().join(format!("bochs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(text)?;
    let iso = folder.join("boot.iso");
    write_iso(&foreign(&program(name).map_err(text)?, 512).map_err(text)?, &iso).map_err(text)?;
    // Debian's Bochs has its debugger built in: the command file tells it to go on.
    std::fs::write(folder.join("commands"), "c\n").map_err(text)?;
    let settings = "display_library: rfb, options=\"timeout=0\"\n\
        romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
        vgaromimage: file=/usr/share/vgabios/vgabios.bin\n\
        cpu: model=ryzen, count=1, ips=50000000\n\
        memory: guest=512, host=512\n\
        ata0-master: type=cdrom, path=boot.iso, status=inserted\n\
        boot: cdrom\n\
        port_e9_hack: enabled=1\n\
        panic: action=fatal\n\
        clock: sync=none\n\
        log: messages\n\
        sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
        speaker: enabled=1, mode=gui\n";
    std::fs::write(folder.join("settings"), settings).map_err(text)?;
    let output = folder.join("output");
    let mut bochs = Command::new("bochs")
        .args(["-q", "-f", "settings", "-rc", "commands"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(File::create(&output).map_err(text)?)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("bochs: {error} (apt-get install bochs bochsbios vgabios)"))?;
    let deadline = Instant::now() + HANG;
    let closing = format!("\n{name}: ");
    let said = loop {
        std::thread::sleep(Duration::from_millis(100));
        let said = String::from_utf8_lossy(&std::fs::read(&output).map_err(text)?).into_owned();
        let is_complete = said.contains(&closing) && said.trim_end().ends_with("failed");
        // Without an exit device the kernel halts: Bochs is ended from here.
        if is_complete || bochs.try_wait().map_err(text)?.is_some() || Instant::now() > deadline {
            break said;
        }
    };
    let _ = bochs.kill();
    let _ = bochs.wait();
    let _ = std::fs::remove_dir_all(&folder);
    Ok(said)
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
}
