//! A running system: its QEMU, its management link, and the socket other verbs connect to.
//!
//! One thread reads the link and sorts frames: answers to whoever asked, console bytes into
//! scroll-back buffers, events and logs into lists. Everybody else waits on one condition variable.

use crate::Error;
use crate::decode::Decoder;
use crate::machine::Machine;
use protocol::link::{
    self, Deframer, Event, FRAME_MAX, Refusal, Request, Row, ServerId, ToHost, ToTarget,
};
use protocol::units::{DiskId, Nanos, Pages, VmId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Console bytes kept for each VM, so that a late attach sees the boot.
const SCROLL_BACK_BYTES: usize = 1 << 20;
/// How long the target may take for one row of an answer before it counts as stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a client of the control socket wants; its first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attach {
    /// To send `ToTarget::Request` frames and read the answers.
    Requests,
    /// A VM's console: scroll-back first, then bytes both ways.
    Console(VmId),
    /// Events and log lines as text.
    Log,
}

/// One line of an answer, owned.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "row", rename_all = "snake_case")]
pub enum Line {
    /// A VM.
    Vm {
        /// Its id.
        vm: VmId,
        /// Its name.
        name: String,
        /// Its state.
        state: link::VmState,
        /// Name of its group, if it is in one.
        group: Option<String>,
    },
    /// Counters of a VM.
    VmStats {
        /// Its id.
        vm: VmId,
        /// The counters.
        stats: link::VmStats,
    },
    /// Counters of a server.
    Server {
        /// Which.
        server: ServerId,
        /// The counters.
        stats: link::ServerStats,
    },
    /// Counters of the machine.
    Machine {
        /// The counters.
        stats: link::MachineStats,
    },
    /// One capability.
    Cap {
        /// Who holds it.
        server: ServerId,
        /// Slot.
        slot: u32,
        /// Object type.
        kind: String,
        /// Rights bits.
        rights: u8,
        /// What for.
        purpose: String,
    },
    /// One named number.
    Term {
        /// Whose number.
        server: ServerId,
        /// About which VM.
        vm: Option<VmId>,
        /// Name.
        name: String,
        /// Value.
        value: u64,
        /// Unit.
        unit: link::Unit,
    },
    /// A client of the disk.
    DiskClient(DiskClient),
    /// A disk of the machine.
    Disk {
        /// Which.
        disk: DiskId,
        /// Its figures.
        stats: protocol::io::DiskStats,
    },
    /// A group of VMs with its present claims.
    Group {
        /// Its name.
        group: String,
        /// Its claim on memory.
        memory: protocol::system::GroupMemory,
        /// Its claim on all disks together.
        io: protocol::system::IoControl,
    },
    /// What a disk did for a group.
    GroupDisk {
        /// The group's name.
        group: String,
        /// The disk of the machine.
        on: DiskId,
        /// Counted by its server.
        stats: protocol::io::GroupStats,
    },
}

/// A client of the disk, owned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskClient {
    /// Whose virtual disk; `None` for a server's own.
    pub vm: Option<VmId>,
    /// Which of its disks.
    pub disk: u8,
    /// Name of the partition.
    pub partition: String,
    /// Name of the group whose claim it counts against too, if its VM is in one.
    pub group: Option<String>,
    /// Its claim.
    pub control: protocol::system::IoControl,
    /// Its figures.
    pub stats: protocol::io::ClientStats,
    /// Which part of the virtual disk, and of how many.
    pub part: (u8, u8),
    /// The disk of the machine that has it.
    pub on: DiskId,
}

impl From<Row<'_>> for Line {
    fn from(row: Row<'_>) -> Self {
        match row {
            Row::Vm { vm, name, state, group } => {
                Self::Vm { vm, name: name.to_owned(), state, group: group.map(str::to_owned) }
            }
            Row::VmStats { vm, stats } => Self::VmStats { vm, stats },
            Row::Server { server, stats } => Self::Server { server, stats },
            Row::Machine(stats) => Self::Machine { stats },
            Row::Cap { server, slot, kind, rights, purpose } => Self::Cap {
                server,
                slot,
                kind: kind.to_owned(),
                rights,
                purpose: purpose.to_owned(),
            },
            Row::Term { server, vm, name, value, unit } => {
                Self::Term { server, vm, name: name.to_owned(), value, unit }
            }
            Row::DiskClient { vm, disk, partition, group, control, stats, part, on } => {
                let (partition, group) = (partition.to_owned(), group.map(str::to_owned));
                Self::DiskClient(DiskClient {
                    vm,
                    disk,
                    partition,
                    group,
                    control,
                    stats,
                    part,
                    on,
                })
            }
            Row::Disk { disk, stats } => Self::Disk { disk, stats },
            Row::Group { group, memory, io } => Self::Group { group: group.to_owned(), memory, io },
            Row::GroupDisk { group, on, stats } => {
                Self::GroupDisk { group: group.to_owned(), on, stats }
            }
        }
    }
}

/// Something that answers requests: the session itself, or a client of its socket.
pub trait Ask {
    /// Sends `request` and collects the answer.
    ///
    /// # Errors
    ///
    /// [`Error::Wrong`] with the target's reason, [`Error::NoProgress`] if it does not answer.
    fn ask(&self, request: Request) -> Result<Vec<Line>, Error>;
}

/// The target's reason in words.
pub fn refusal_text(refusal: Refusal) -> String {
    let mib = |pages: Pages| pages.bytes() >> 20;
    match refusal {
        Refusal::Unknown => "no such VM or server: see `ballast vm list`".to_owned(),
        Refusal::State(state) => format!("not while the VM is {state:?}").to_lowercase(),
        Refusal::Memory { asked, available } => format!(
            "memory is short: {} MiB asked, {} MiB available; stop a VM or lower a reservation",
            mib(asked),
            mib(available)
        ),
        Refusal::Rule(rule) => format!("the description breaks a rule: {rule:?}"),
        Refusal::Missing => {
            "its kernel, a module or a partition is not on this system: it must be \
                             in the description `ballast run` was started with"
                .to_owned()
        }
        Refusal::Full => "a table of the target is full".to_owned(),
        Refusal::Unsupported => "this system cannot do that".to_owned(),
        Refusal::Server(server) => format!("{} did not do its part", server_name(server)),
        Refusal::Malformed => "the target did not understand the request".to_owned(),
        Refusal::ServerMemory { asked, free } => format!(
            "memory for servers is short: {} KiB asked in one piece, {} KiB free; raise host.kernel_memory",
            asked.bytes() >> 10,
            free.bytes() >> 10
        ),
        Refusal::GuestPages { asked, free } => format!(
            "the sizes of all VMs together are too large for this machine: {} MiB asked, {} MiB left; \
             make the VM smaller, stop another or raise host.memory",
            mib(asked),
            mib(free)
        ),
        Refusal::Slots { asked, free } => {
            format!("capability slots are short: {asked} asked, {free} free; stop a VM")
        }
        Refusal::Swap { needed, available } => format!(
            "swap space is short: limits less reservations of all VMs need {} MiB, host.swap is {} MiB; \
             raise it, or a reservation",
            mib(needed),
            mib(available)
        ),
        Refusal::Disk { asked, free } => format!(
            "the disk cannot keep that: {asked} more requests/s reserved, but {free} are free of \
             what it gives; ask for less or lower another reservation (`ballast top io`)"
        ),
        Refusal::GroupLimit { asked, free } => format!(
            "the limit of a group, or of all disks of its VM, stands in the way: {asked} requests/s reserved, {free} possible \
             under the limit; ask for less or raise the limit (`ballast group set`)"
        ),
        Refusal::DiskClients => format!(
            "all virtual disks that run have {} parts, and there can be no more; stop a VM, or give \
             some fewer disks or stripes",
            protocol::slots::SWAP_CLIENT
        ),
    }
}

/// Name of a server as users see it.
pub fn server_name(server: ServerId) -> String {
    match server {
        ServerId::Root => "root-task".to_owned(),
        ServerId::Mem => "mem-server".to_owned(),
        ServerId::Io(DiskId(0)) => "io-sched-server".to_owned(),
        ServerId::Io(disk) => format!("io-sched-server.{}", disk.0),
        ServerId::Vmm(vm) => format!("vmm-server.{}", vm.0),
    }
}

/// What the target said first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Name of the system.
    pub system: String,
    /// RAM of the machine.
    pub memory: Pages,
    /// Processor cores.
    pub cores: u16,
}

/// A VM's console since it was started.
#[derive(Clone, Debug, Default)]
pub struct Scrollback {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Scrollback {
    fn push(&mut self, data: &[u8]) {
        self.bytes.extend(data);
        let surplus = self.bytes.len().saturating_sub(SCROLL_BACK_BYTES);
        if surplus > 0 {
            self.bytes.drain(..surplus);
            self.dropped += surplus as u64;
        }
    }

    /// Position behind the last byte, counted from the first ever written.
    pub fn end(&self) -> u64 {
        self.dropped + self.bytes.len() as u64
    }

    /// The bytes from position `from` on that are still kept.
    pub fn since(&self, from: u64) -> &[u8] {
        let start = usize::try_from(from.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        self.bytes.get(start..).unwrap_or_default()
    }
}

/// What has been heard from the target.
#[derive(Debug, Default)]
pub struct Heard {
    /// Its first frame.
    pub hello: Option<Hello>,
    /// Consoles by VM.
    pub consoles: BTreeMap<u16, Scrollback>,
    /// Events in order.
    pub events: Vec<(Nanos, Event)>,
    /// Decoded log lines and events as text, in order.
    pub log: Vec<String>,
    /// Frames that could not be decoded.
    pub bad_frames: u32,
    /// The link is closed: QEMU has ended.
    pub is_closed: bool,
}

#[derive(Debug, Default)]
struct State {
    heard: Heard,
    asked: HashMap<u32, Sender<Answer>>,
    last_id: u32,
}

#[derive(Debug)]
enum Answer {
    Row(Box<Line>, Vec<u8>),
    Done(Result<(), Refusal>),
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    link: Mutex<UnixStream>,
    decoder: Mutex<Decoder>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn send(&self, message: &ToTarget<'_>) -> Result<(), Error> {
        let mut buffer = [0; FRAME_MAX];
        let frame = link::encode(message, &mut buffer)
            .ok_or_else(|| Error::Input("the request is too long for the link".to_owned()))?;
        let gone = |_| Error::Crash("the system has ended".to_owned());
        locked(&self.link).write_all(frame).map_err(gone)
    }

    fn submit(&self, request: Request) -> Result<(u32, Receiver<Answer>), Error> {
        let (sender, receiver) = mpsc::channel();
        let id = {
            let mut state = locked(&self.state);
            if state.heard.is_closed {
                return Err(Error::Crash("the system has ended".to_owned()));
            }
            state.last_id = state.last_id.wrapping_add(1);
            let id = state.last_id;
            state.asked.insert(id, sender);
            id
        };
        self.send(&ToTarget::Request { id, request })?;
        Ok((id, receiver))
    }

    fn forget(&self, id: u32) {
        locked(&self.state).asked.remove(&id);
    }

    fn take_frame(&self, frame: &mut [u8]) {
        let raw = frame.to_vec();
        let Some(message) = link::decode::<ToHost<'_>>(frame) else {
            locked(&self.state).heard.bad_frames += 1;
            return;
        };
        let mut state = locked(&self.state);
        let heard = &mut state.heard;
        match message {
            ToHost::Hello { version, system, memory, cores } => {
                if version != link::VERSION {
                    heard.log.push(format!("the target speaks version {version} of the link"));
                }
                heard.hello = Some(Hello { system: system.to_owned(), memory, cores });
            }
            ToHost::Log { server, lost, data } => {
                if lost > 0 {
                    heard.log.push(format!("{}: {lost} log lines lost", server_name(server)));
                }
                let lines = locked(&self.decoder).lines(server, data);
                heard.log.extend(lines);
            }
            ToHost::Console { vm, data } => heard.consoles.entry(vm.0).or_default().push(data),
            ToHost::Event { at, event } => {
                heard.log.push(crate::report::event_line(at, event));
                heard.events.push((at, event));
            }
            ToHost::Row { id, row } => {
                if let Some(asker) = state.asked.get(&id) {
                    let _ = asker.send(Answer::Row(Box::new(row.into()), raw));
                }
            }
            ToHost::Done { id, outcome } => {
                if let Some(asker) = state.asked.remove(&id) {
                    let _ = asker.send(Answer::Done(outcome));
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn read_link(&self, mut stream: UnixStream) {
        let mut deframer = Box::new(Deframer::<FRAME_MAX>::default());
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer).unwrap_or(0);
            if length == 0 {
                let mut state = locked(&self.state);
                state.heard.is_closed = true;
                state.asked.clear();
                drop(state);
                self.changed.notify_all();
                return;
            }
            for &byte in buffer.get(..length).unwrap_or_default() {
                if let Some(frame) = deframer.push(byte) {
                    self.take_frame(frame);
                }
            }
        }
    }
}

fn next_answer(answers: &Receiver<Answer>) -> Result<Answer, Error> {
    answers.recv_timeout(ANSWER_LIMIT).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => {
            Error::NoProgress("the target does not answer".to_owned())
        }
        mpsc::RecvTimeoutError::Disconnected => Error::Crash("the system has ended".to_owned()),
    })
}

/// A running system.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    machine: Mutex<Machine>,
    folder: PathBuf,
}

/// Folder of sockets and logs of the run called `name` of this checkout.
///
/// # Errors
///
/// [`Error::Build`] if it cannot be made.
pub fn run_folder(name: &str) -> Result<PathBuf, Error> {
    // Socket names are limited to about a hundred bytes, so the folder is not below the checkout.
    let hash = crate::WORKSPACE.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let user = rustix::process::getuid().as_raw();
    let folder = std::env::temp_dir().join(format!("ballast-{user}-{hash:016x}")).join(name);
    let mut maker = std::fs::DirBuilder::new();
    maker.recursive(true).mode(0o700).create(&folder).map_err(Error::file(&folder))?;
    Ok(folder)
}

/// The control socket of the run in `folder`.
pub fn control_socket(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

impl Session {
    /// Takes over a machine that has just been started, and serves its control socket.
    ///
    /// # Errors
    ///
    /// [`Error::Build`] if a socket cannot be made.
    pub fn start(mut machine: Machine, folder: &Path) -> Result<Arc<Self>, Error> {
        let lost = || Error::Build("the machine has no management link".to_owned());
        let link = machine.take_link().ok_or_else(lost)?;
        let reader = link.try_clone().map_err(Error::file(folder))?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            link: Mutex::new(link),
            decoder: Mutex::default(),
        });
        let listening = Arc::clone(&shared);
        std::thread::spawn(move || listening.read_link(reader));
        let path = control_socket(folder);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(Error::file(&path))?;
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || shared.serve(client));
            }
        });
        let folder = folder.to_path_buf();
        Ok(Arc::new(Self { shared, machine: Mutex::new(machine), folder }))
    }

    /// Waits until `found` gives something, or `limit` of host time has passed or QEMU has ended.
    ///
    /// # Errors
    ///
    /// [`Error::NoProgress`] naming `what`, or [`Error::Crash`] with the kernel's last words.
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&Heard) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + limit;
        let mut state = locked(&self.shared.state);
        loop {
            if let Some(value) = found(&state.heard) {
                return Ok(value);
            }
            if state.heard.is_closed {
                drop(state);
                return Err(Error::Crash(format!(
                    "ended while waiting for {what}{}",
                    self.last_words()
                )));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                let words = self.last_words();
                return Err(Error::NoProgress(format!("no {what} within {limit:?}{words}")));
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until all servers run and the VMs that start by themselves do: what is asked before may stay unanswered.
    ///
    /// # Errors
    ///
    /// As [`Session::wait`].
    pub fn wait_ready(&self, limit: Duration) -> Result<(), Error> {
        self.wait("readiness", limit, |heard| {
            heard.events.iter().any(|(_, event)| *event == Event::Ready).then_some(())
        })
    }

    /// Looks at what has been heard so far.
    pub fn heard<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&locked(&self.shared.state).heard)
    }

    /// Sends bytes to a VM's console.
    ///
    /// # Errors
    ///
    /// [`Error::Crash`] if the system has ended.
    pub fn type_in(&self, vm: VmId, bytes: &[u8]) -> Result<(), Error> {
        self.shared.type_in(vm, bytes)
    }

    /// Waits for QEMU to end; its exit status, `None` if it does not end.
    pub fn wait_end(&self, limit: Duration) -> Option<i32> {
        locked(&self.machine).wait(limit)
    }

    /// Process id of QEMU.
    pub fn machine_id(&self) -> u32 {
        locked(&self.machine).id()
    }

    /// Folder with the logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the kernel printed last, with symbols, as text to append to an error.
    pub fn last_words(&self) -> String {
        let log = std::fs::read(self.folder.join("kernel.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n");
        if tail.trim().is_empty() {
            return String::new();
        }
        format!("\nkernel's last words:\n{}", crate::symbols::annotate(&tail))
    }
}

impl Ask for Session {
    fn ask(&self, request: Request) -> Result<Vec<Line>, Error> {
        let (id, answers) = self.shared.submit(request)?;
        let mut lines = Vec::new();
        loop {
            match next_answer(&answers) {
                Ok(Answer::Row(line, _)) => lines.push(*line),
                Ok(Answer::Done(Ok(()))) => return Ok(lines),
                Ok(Answer::Done(Err(refusal))) => return Err(Error::Wrong(refusal_text(refusal))),
                Err(error) => {
                    self.shared.forget(id);
                    return Err(error);
                }
            }
        }
    }
}

impl Shared {
    fn type_in(&self, vm: VmId, bytes: &[u8]) -> Result<(), Error> {
        // Small pieces: the target's console ring is small and has no flow control.
        bytes.chunks(64).try_for_each(|data| self.send(&ToTarget::ConsoleInput { vm, data }))
    }

    /// Serves one client until it leaves.
    fn serve(&self, mut client: UnixStream) {
        let Some(mut frame) = read_frame(&mut client) else { return };
        match link::decode::<Attach>(&mut frame) {
            Some(Attach::Requests) => while self.serve_request(&mut client).is_some() {},
            Some(Attach::Console(vm)) => self.serve_console(client, vm),
            Some(Attach::Log) => self.serve_log(&mut client),
            None => {}
        }
    }

    fn serve_request(&self, client: &mut UnixStream) -> Option<()> {
        let mut frame = read_frame(client)?;
        let Some(ToTarget::Request { id, request }) = link::decode(&mut frame) else {
            return None;
        };
        let (own_id, answers) = self.submit(request).ok()?;
        let mut buffer = [0; FRAME_MAX];
        loop {
            let Ok(answer) = next_answer(&answers) else {
                self.forget(own_id);
                return None;
            };
            match answer {
                Answer::Row(_, mut raw) => {
                    if let Some(ToHost::Row { row, .. }) = link::decode(&mut raw) {
                        let row = ToHost::Row { id, row };
                        client.write_all(link::encode(&row, &mut buffer)?).ok()?;
                    }
                }
                Answer::Done(outcome) => {
                    let done = ToHost::Done { id, outcome };
                    client.write_all(link::encode(&done, &mut buffer)?).ok()?;
                    return Some(());
                }
            }
        }
    }

    fn serve_console(&self, mut client: UnixStream, vm: VmId) {
        let Ok(mut input) = client.try_clone() else { return };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut buffer = [0; 256];
                while let Ok(length) = input.read(&mut buffer)
                    && length > 0
                {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    if self.type_in(vm, bytes).is_err() {
                        break;
                    }
                }
                let _ = input.shutdown(std::net::Shutdown::Both);
            });
            let mut place = 0;
            let mut state = locked(&self.state);
            loop {
                let news = state
                    .heard
                    .consoles
                    .get(&vm.0)
                    .map(|console| (console.since(place).to_vec(), console.end()));
                let is_closed = state.heard.is_closed;
                let (bytes, end) = news.unwrap_or_default();
                if !bytes.is_empty() {
                    drop(state);
                    if client.write_all(&bytes).is_err() {
                        break;
                    }
                    place = end;
                    state = locked(&self.state);
                    continue;
                }
                if is_closed || has_left(&client) {
                    break;
                }
                let waited = self.changed.wait_timeout(state, Duration::from_millis(500));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let _ = client.shutdown(std::net::Shutdown::Both);
        });
    }

    fn serve_log(&self, client: &mut UnixStream) {
        let mut place = 0;
        let mut state = locked(&self.state);
        loop {
            let lines = state.heard.log.get(place..).unwrap_or_default().to_vec();
            place += lines.len();
            let is_closed = state.heard.is_closed;
            drop(state);
            for line in lines {
                if writeln!(client, "{line}").is_err() {
                    return;
                }
            }
            if is_closed || has_left(client) {
                return;
            }
            state = locked(&self.state);
            let waited = self.changed.wait_timeout(state, Duration::from_millis(500));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Whether the other end of `client` is gone.
fn has_left(client: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(client, PollFlags::HUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let _ = poll(&mut polled, Some(&now));
    polled.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

/// Reads one zero-terminated frame, byte by byte: control traffic is small.
pub fn read_frame(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).ok()?;
        frame.extend(byte);
        match byte {
            [0] if frame.len() > 1 => return Some(frame),
            [0] => frame.clear(),
            _ if frame.len() > FRAME_MAX => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
