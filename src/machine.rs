//! QEMU: the machine a system boots on.

use crate::Error;
use crate::image::Image;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Exit status of QEMU when the target wrote `value` to the exit device.
pub const fn exit_status(value: u8) -> i32 {
    ((value as i32) << 1) | 1
}

/// Value a target writes to end a run well.
pub const EXIT_GOOD: u8 = 32;
/// Value a target writes when it found something wrong.
pub const EXIT_WRONG: u8 = 33;

/// What the kernel writes when a thread asked it to halt.
const EXIT_HALTED: u8 = 0x10;
/// What the kernel writes when it panicked.
const EXIT_PANIC: u8 = 0x11;
/// What the kernel writes when the machine, the module or the memory does not do (three codes).
const EXIT_UNSUITED: [u8; 3] = [0x12, 0x13, 0x14];

/// What QEMU's exit status says about the run.
///
/// # Errors
///
/// [`Error::Wrong`], [`Error::Crash`] or [`Error::Build`] in words.
pub fn verdict(status: i32) -> Result<(), Error> {
    let is = |value: u8| status == exit_status(value);
    if is(EXIT_GOOD) || is(EXIT_HALTED) {
        return Ok(());
    }
    Err(if is(EXIT_WRONG) {
        Error::Wrong("the root-task found something wrong".to_owned())
    } else if is(EXIT_PANIC) {
        Error::Crash("the kernel panicked".to_owned())
    } else if EXIT_UNSUITED.into_iter().any(is) {
        Error::Build("the kernel refused the machine or the root-task's image".to_owned())
    } else if status == 0 {
        // -no-reboot: what would have been a reset ends QEMU with 0.
        Error::Crash("the machine reset itself".to_owned())
    } else {
        Error::Crash(format!("QEMU ended with status {status}"))
    })
}

/// How time passes on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// As on the host.
    #[default]
    Host,
    /// One instruction is one nanosecond, idle time is skipped: every run is the same.
    Instructions,
    /// One instruction is one nanosecond, idle time passes as on the host: for what waits for
    /// the host (typed input, the disk), on hosts of any load.
    Patient,
}

/// How the image is booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boot {
    /// The kernel's PVH entry.
    #[default]
    Pvh,
    /// An ISO under SeaBIOS (the image's module is the ISO).
    IsoBios,
    /// An ISO under OVMF.
    IsoUefi,
}

/// Whether writes to the disk outlive the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// They stay in the image.
    #[default]
    Keep,
    /// They are thrown away.
    Discard,
}

/// What to run and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Processor cores.
    pub cores: u32,
    /// Time.
    pub clock: Clock,
    /// The calendar starts at a fixed date and follows the machine's time, not the host's: two runs read the same.
    pub is_date_fixed: bool,
    /// Boot path.
    pub boot: Boot,
    /// Fate of writes.
    pub writes: Writes,
    /// Requests per second QEMU lets each disk do, if throttled.
    pub disk_iops: Option<u32>,
    /// Rules by which the first disk fails: a file for QEMU's `blkdebug` driver. Not together with [`Writes::Discard`].
    pub disk_faults: Option<PathBuf>,
    /// Kernel arguments.
    pub arguments: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cores: 2,
            clock: Clock::Host,
            is_date_fixed: false,
            boot: Boot::Pvh,
            writes: Writes::Keep,
            disk_iops: None,
            disk_faults: None,
            arguments: String::new(),
        }
    }
}

/// A running QEMU. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    folder: PathBuf,
    link: Option<UnixStream>,
}

/// Whether the host offers nested SVM through KVM.
pub fn has_nested_svm() -> bool {
    let nested = std::fs::read_to_string("/sys/module/kvm_amd/parameters/nested");
    let is_nested = nested.is_ok_and(|text| matches!(text.trim(), "1" | "Y"));
    is_nested && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

impl Machine {
    /// Starts QEMU with its logs in `folder` and waits until the management link is connected.
    ///
    /// # Errors
    ///
    /// [`Error::Build`] if QEMU does not start.
    pub fn start(image: &Image, options: &Options, folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let socket = folder.join("link.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(Error::file(&socket))?;
        listener.set_nonblocking(true).map_err(Error::file(&socket))?;
        let messages = folder.join("qemu.log");
        let log = File::create(&messages).map_err(Error::file(&messages))?;
        let mut command = Self::command(image, options, folder, &socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|cause| {
            let text = format!("qemu-system-x86_64: {cause} (apt-get install qemu-system-x86)");
            Error::Build(text)
        })?;
        let mut machine = Self { child, folder: folder.to_path_buf(), link: None };
        let deadline = Instant::now() + Duration::from_secs(20);
        while machine.link.is_none() {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).map_err(Error::file(&socket))?;
                machine.link = Some(stream);
            } else if machine.ended().is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&messages).unwrap_or_default();
                return Err(Error::Build(format!("QEMU did not start:\n{}", said.trim())));
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(machine)
    }

    fn command(image: &Image, options: &Options, folder: &Path, socket: &Path) -> Command {
        // However this process ends, the machine ends with it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        let mut add = |arguments: &[&str]| {
            command.args(arguments);
        };
        if has_nested_svm() && options.clock == Clock::Host {
            add(&["-machine", "q35,accel=kvm", "-cpu", "host"]);
        } else {
            // One host thread for all cores: a core that waits for another's lock or wake-up then
            // costs a turn of a loop, not a turn of the host's scheduler.
            add(&["-machine", "q35", "-accel", "tcg,thread=single"]);
            add(&["-cpu", "EPYC,+svm,+npt"]);
        }
        add(&["-smp", &options.cores.to_string(), "-m", &image.memory_mib.to_string()]);
        add(&["-display", "none", "-nodefaults", "-no-reboot"]);
        if options.clock != Clock::Host {
            // The guest's random numbers: the same in every run.
            add(&["-seed", "7"]);
        }
        match options.clock {
            Clock::Host => {}
            Clock::Instructions => add(&["-icount", "shift=0,sleep=off"]),
            Clock::Patient => add(&["-icount", "shift=0,sleep=on"]),
        }
        if options.is_date_fixed {
            add(&["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
        }
        let com1 = format!("file,id=com1,path={}", folder.join("kernel.log").display());
        add(&["-chardev", &com1, "-serial", "chardev:com1"]);
        let com2 = format!("socket,id=com2,path={}", socket.display());
        add(&["-chardev", &com2, "-serial", "chardev:com2"]);
        add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        let module = image.module.display().to_string();
        if options.boot == Boot::Pvh {
            let kernel = image.kernel.display().to_string();
            add(&["-kernel", &kernel, "-initrd", &module, "-append", &options.arguments]);
        } else {
            add(&["-cdrom", &module]);
        }
        if options.boot == Boot::IsoUefi {
            let variables = folder.join("ovmf-variables.fd");
            let _ = std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables);
            let code = "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd";
            let variables = format!("if=pflash,format=raw,file={}", variables.display());
            add(&["-drive", code, "-drive", &variables]);
        }
        for (number, disk) in image.disks.iter().enumerate() {
            let drive = Self::drive(number, disk, options);
            let device = format!("virtio-blk-pci,drive=disk{number},disable-legacy=on");
            add(&["-drive", &drive, "-device", &device]);
        }
        command
    }

    /// QEMU's words for disk `number`; only the first one fails by the rules.
    fn drive(number: usize, disk: &Path, options: &Options) -> String {
        let snapshot = if options.writes == Writes::Discard { ",snapshot=on" } else { "" };
        let limit = options.disk_iops.map(|iops| format!(",throttling.iops-total={iops}"));
        let disk = disk.display();
        let faults = options.disk_faults.as_ref().filter(|_| number == 0);
        let file = match faults {
            None => format!("format=raw,file={disk}"),
            Some(rules) => format!(
                "driver=raw,file.driver=blkdebug,file.config={},file.image.driver=file,file.image.filename={disk}",
                rules.display()
            ),
        };
        format!(
            "if=none,id=disk{number},cache=writeback,{file}{snapshot}{}",
            limit.unwrap_or_default()
        )
    }

    /// The management link; can be taken once.
    pub fn take_link(&mut self) -> Option<UnixStream> {
        self.link.take()
    }

    /// The file with what the kernel printed.
    pub fn kernel_log(&self) -> PathBuf {
        self.folder.join("kernel.log")
    }

    /// QEMU's exit status if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(status.code().unwrap_or(-1))
    }

    /// Process id of QEMU.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until QEMU ends; `None` if it has not after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
