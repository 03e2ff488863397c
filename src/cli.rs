//! The command line: verbs, options, and which module does each.

use crate::config::{Config, load_vm};
use crate::image::{self, Disk};
use crate::machine::{Clock, Machine, Options};
use crate::report::{self, Stats};
use crate::session::{Ask, Line, Session, run_folder};
use crate::settings::{group_changes, io_changes, memory_changes, settings_of};
use crate::{Error, bench, client, console, doctor, reproduce, suite};
use clap::{Args, Parser, Subcommand};
use protocol::io::Policy;
use protocol::link::{Request, ServerId, VmState};
use protocol::system::{GroupMemoryChange, IoChange, Name};
use protocol::units::{DiskId, VmId};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A type-1 hypervisor: capability microkernel, isolated servers, unmodified Linux VMs.
#[derive(Debug, Parser)]
#[command(name = "ballast", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Builds and boots a system, shows its VMs start, then gives a prompt.
    Run(Run),
    /// Runs every check and test, unattended.
    Test {
        /// Only parts whose name contains one of these words.
        only: Vec<String>,
    },
    /// Measures what operations cost, beside the peers' figures.
    Bench {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Checks what a run needs and says what to do about each problem.
    Doctor,
    /// VMs of the running system.
    Vm {
        #[command(subcommand)]
        verb: VmVerb,
    },
    /// Attaches to a VM's console; Ctrl-] leaves.
    Console {
        /// Name of the VM.
        vm: String,
    },
    /// Shows what the VMs and servers do, every second.
    Top {
        /// `mem` for memory columns, `io` for the disk's.
        view: Option<View>,
        /// Shows one screen and ends.
        #[arg(long)]
        once: bool,
    },
    /// Shows who holds which capability.
    Caps {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints all counters.
    Stats {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
        /// Prints OpenMetrics text, for Prometheus.
        #[arg(long, conflicts_with = "json")]
        openmetrics: bool,
    },
    /// Groups of the running system.
    Group {
        #[command(subcommand)]
        verb: GroupVerb,
    },
    /// The memory management of the running system.
    Memory {
        #[command(subcommand)]
        verb: MemoryVerb,
    },
    /// The disk scheduler of the running system.
    Io {
        #[command(subcommand)]
        verb: IoVerb,
    },
    /// Records what VMs have of memory and draws it over time.
    Timeline {
        /// The picture (SVG).
        file: PathBuf,
        /// Ends after so many seconds of the machine's time, or with the system.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Milliseconds of the host's time between two looks.
        #[arg(long, default_value_t = 500)]
        every: u64,
    },
    /// Shows every number behind a VM's present allocation.
    Explain {
        /// Name of the VM.
        vm: String,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Follows events and log lines of the running system.
    Log,
    /// Ends a server of the running system by a fault (crash drill).
    Kill {
        /// `mem`, `io`, or the name of a VM for its vmm-server.
        server: String,
    },
    /// Runs the papers' experiments and says which claims hold.
    Reproduce {
        /// A paper (P2) or an experiment (P2-E3); nothing for all.
        experiments: Vec<String>,
        /// With Debian guests in QEMU instead of modelled machines (figures 5, 6 and 7 of P2).
        #[arg(long)]
        live: bool,
        /// Prints one JSON object, experiment to verdict and figures.
        #[arg(long)]
        json: bool,
        /// Writes the plots (SVG) into this folder.
        #[arg(long, value_name = "FOLDER")]
        plots: Option<PathBuf>,
    },
    /// Builds the image without running it.
    Image {
        /// System description.
        #[arg(default_value = DEFAULT_SYSTEM)]
        system: PathBuf,
        /// Makes the disk anew.
        #[arg(long)]
        fresh: bool,
        /// Also writes a bootable ISO here.
        #[arg(long)]
        iso: Option<PathBuf>,
    },
    /// Ends the running system.
    Quit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum View {
    /// Memory, with esxtop's words.
    Mem,
    /// The disk: rates, phases, latencies, tags.
    Io,
}

#[derive(Debug, Subcommand)]
enum GroupVerb {
    /// Changes the claims of a group: memory.shares=N, memory.reservation=64M, and on the disk io.limit=N, io.reservation=N, io.shares=N, io.burst=N,
    /// io.limit_bytes=20M, io.reservation_bytes=5M; a limit of 0 is none.
    Set {
        /// Name of the group.
        group: String,
        /// KEY=VALUE; all of them at once.
        #[arg(required = true)]
        settings: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum MemoryVerb {
    /// Changes rates of the whole machine: tax=750 (permille, of VMs without one of their own), scan_pages_per_second=N,
    /// scan_pages_per_second_vm=N.
    Set {
        /// KEY=VALUE; all of them at once.
        #[arg(required = true)]
        settings: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum IoVerb {
    /// Changes the policy; what waits keeps its order.
    Policy {
        /// The policy.
        policy: PolicyName,
    },
    /// Changes the disk claim of the swap partition: io.limit=N and so on, as `group set`.
    Swap {
        /// KEY=VALUE; all of them at once.
        #[arg(required = true)]
        settings: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PolicyName {
    /// Reservations, limits, shares.
    Mclock,
    /// Shares only.
    Sfq,
    /// In turn.
    RoundRobin,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Mclock => Self::MClock,
            PolicyName::Sfq => Self::Sfq,
            PolicyName::RoundRobin => Self::RoundRobin,
        }
    }
}

const DEFAULT_SYSTEM: &str = concat!(env!("BALLAST_WORKSPACE"), "/images/systems/two-linux.toml");

#[derive(Args, Debug)]
struct Run {
    /// System description.
    #[arg(default_value = DEFAULT_SYSTEM)]
    system: PathBuf,
    /// No prompt: runs until `ballast quit`.
    #[arg(long)]
    headless: bool,
    /// Makes the disk anew.
    #[arg(long)]
    fresh: bool,
    /// One instruction is one nanosecond and idle time is skipped: every run is the same.
    #[arg(long)]
    icount: bool,
    /// Boots this root-task ELF alone and passes its console through.
    #[arg(long, value_name = "ELF", conflicts_with_all = ["headless", "fresh"])]
    root_task: Option<PathBuf>,
    /// RAM of the machine with --root-task.
    #[arg(long, default_value = "512M", requires = "root_task")]
    memory: String,
    /// Ends a --root-task run after so many seconds with exit code 3.
    #[arg(long, requires = "root_task")]
    timeout: Option<u64>,
    /// Processor cores.
    #[arg(long, default_value_t = 2)]
    cores: u32,
}

#[derive(Debug, Subcommand)]
enum VmVerb {
    /// Lists VMs with their states.
    List {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Starts a stopped VM.
    Start {
        /// Name of the VM.
        vm: String,
    },
    /// Stops a VM at once.
    Stop {
        /// Name of the VM.
        vm: String,
    },
    /// Holds a VM's processor.
    Pause {
        /// Name of the VM.
        vm: String,
    },
    /// Lets a paused VM go on.
    Resume {
        /// Name of the VM.
        vm: String,
    },
    /// Removes a stopped VM.
    Rm {
        /// Name of the VM.
        vm: String,
    },
    /// Adds a VM described by a table [vm] in a file.
    Create {
        /// The file.
        file: PathBuf,
    },
    /// Changes settings: balloon=64M|auto, memory.shares=N, memory.reservation=64M,
    /// memory.limit=128M, memory.tax=750, and for disk N diskN.io.limit=N, diskN.io.reservation=N,
    /// diskN.io.shares=N, diskN.io.burst=N, diskN.io.limit_bytes=20M, diskN.io.reservation_bytes=5M.
    Set {
        /// Name of the VM.
        vm: String,
        /// KEY=VALUE.
        #[arg(required = true)]
        settings: Vec<String>,
    },
}

/// Runs the command line.
///
/// # Errors
///
/// Whatever the verb returns; wrong usage ends the process with code 2.
pub fn run() -> Result<(), Error> {
    dispatch(Cli::parse().verb)
}

fn dispatch(verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Run(run) if run.root_task.is_some() => run_root_task(&run),
        Verb::Run(run) => run_system(&run),
        Verb::Test { only } => suite::run(&only),
        Verb::Bench { json } => bench::run(json),
        Verb::Doctor => doctor::run(),
        Verb::Vm { verb } => vm_verb(&client::Client::new()?, verb),
        Verb::Console { vm } => {
            let id = client::find_vm(&client::Client::new()?, &vm)?;
            console::attach(id, &vm)
        }
        Verb::Timeline { file, seconds, every } => {
            let every = Duration::from_millis(every);
            crate::timeline::record(&client::Client::new()?, seconds, every, &file)
        }
        Verb::Top { view, once } => top(&client::Client::new()?, view, once),
        Verb::Caps { json } => {
            let lines = client::Client::new()?.ask(Request::Caps)?;
            show(json, &lines, |lines| report::caps(lines).text())
        }
        Verb::Stats { json, openmetrics } => {
            let stats = all_stats(&client::Client::new()?)?;
            if openmetrics {
                print!("{}", crate::openmetrics::text(&stats));
            } else if json {
                println!("{:#}", stats.json());
            } else {
                println!("{}\n{}\n{}", stats.top(None), stats.top_memory(), stats.top_disk(None));
            }
            Ok(())
        }
        Verb::Explain { vm, json } => explain(&vm, json),
        Verb::Group { verb: GroupVerb::Set { group, settings } } => set_group(&group, &settings),
        Verb::Memory { verb: MemoryVerb::Set { settings } } => {
            let change = memory_changes(&settings)?;
            client::Client::new()?.ask(Request::MemorySet(change)).map(drop)
        }
        Verb::Io { verb: IoVerb::Policy { policy } } => {
            client::Client::new()?.ask(Request::IoPolicy(policy.into())).map(drop)
        }
        Verb::Io { verb: IoVerb::Swap { settings } } => {
            let change = io_changes(&settings)?;
            client::Client::new()?.ask(Request::SwapIo(change)).map(drop)
        }
        Verb::Log => follow_log(),
        Verb::Kill { server } => {
            let client = client::Client::new()?;
            let server = server_id(&client, &server)?;
            client.ask(Request::Kill(server)).map(drop)
        }
        Verb::Reproduce { experiments, live, json, plots } => {
            let out = &mut std::io::stdout().lock();
            let kind = if live { reproduce::Kind::Live } else { reproduce::Kind::Modelled };
            reproduce::run(&experiments, kind, json, plots.as_deref(), out)
        }
        Verb::Image { system, fresh, iso } => make_image(&system, fresh, iso.as_deref()),
        Verb::Quit => {
            let client = client::Client::new()?;
            // The system may be gone before its answer arrives.
            let _ = client.ask(Request::Quit { code: crate::machine::EXIT_GOOD });
            Ok(())
        }
    }
}

/// Every term of a VM's memory and disk.
fn explain(vm: &str, json: bool) -> Result<(), Error> {
    let client = client::Client::new()?;
    let id = client::find_vm(&client, vm)?;
    let mut lines = client.ask(Request::Explain(id))?;
    let disks = client.ask(Request::Disks)?;
    let is_its = |line: &Line| match line {
        // Swap is everybody's.
        Line::DiskClient(client) => client.vm.is_none_or(|vm| vm == id),
        Line::Disk { .. } => true,
        _ => false,
    };
    lines.extend(disks.into_iter().filter(is_its));
    show(json, &lines, |lines| {
        format!("{}\n{}", report::terms(lines).text(), report::disk::explain(lines))
    })
}

/// Builds what `run` would boot, without booting it.
fn make_image(system: &Path, fresh: bool, iso: Option<&Path>) -> Result<(), Error> {
    let config = Config::load(system)?;
    let built = image::build(&config, if fresh { Disk::Fresh } else { Disk::Keep })?;
    println!("kernel  {}", built.kernel.display());
    println!("module  {}", built.module.display());
    for disk in &built.disks {
        println!("disk    {}", disk.display());
    }
    iso.map_or(Ok(()), |iso| image::write_iso(&built, iso))
}

/// All rows of `stats`, and the disk's where its server answers.
fn all_stats(asked: &impl Ask) -> Result<Stats, Error> {
    let mut lines = asked.ask(Request::Stats)?;
    lines.extend(asked.ask(Request::Disks).unwrap_or_default());
    Ok(Stats::from_lines(&lines))
}

fn show(json: bool, lines: &[Line], text: impl Fn(&[Line]) -> String) -> Result<(), Error> {
    if json {
        let value = serde_json::to_value(lines).unwrap_or_default();
        println!("{value:#}");
    } else {
        print!("{}", text(lines));
    }
    Ok(())
}

fn server_id(asked: &impl Ask, name: &str) -> Result<ServerId, Error> {
    match name {
        "mem" | "mem-server" => Ok(ServerId::Mem),
        "io" | "io-sched-server" => Ok(ServerId::Io(DiskId(0))),
        name => {
            let number = name.strip_prefix("io.").or(name.strip_prefix("io-sched-server."));
            match number.and_then(|number| number.parse().ok()) {
                Some(disk) => Ok(ServerId::Io(DiskId(disk))),
                None => Ok(ServerId::Vmm(client::find_vm(asked, name)?)),
            }
        }
    }
}

fn vm_verb(asked: &impl Ask, verb: VmVerb) -> Result<(), Error> {
    let on = |name: &str, request: fn(VmId) -> Request| {
        asked.ask(request(client::find_vm(asked, name)?)).map(drop)
    };
    match verb {
        VmVerb::List { json } => {
            let lines = asked.ask(Request::VmList)?;
            if json {
                println!("{:#}", report::vm_list_json(&lines));
            } else {
                print!("{}", report::vm_list(&lines).text());
            }
            Ok(())
        }
        VmVerb::Start { vm } => on(&vm, Request::VmStart),
        VmVerb::Stop { vm } => on(&vm, Request::VmStop),
        VmVerb::Pause { vm } => on(&vm, Request::VmPause),
        VmVerb::Resume { vm } => on(&vm, Request::VmResume),
        VmVerb::Rm { vm } => on(&vm, Request::VmRemove),
        VmVerb::Create { file } => {
            let lines = asked.ask(Request::VmCreate(load_vm(&file)?))?;
            print!("{}", report::vm_list(&lines).text());
            Ok(())
        }
        VmVerb::Set { vm, settings } => {
            let vm = client::find_vm(asked, &vm)?;
            for setting in settings_of(&settings)? {
                asked.ask(Request::VmSet { vm, setting })?;
            }
            Ok(())
        }
    }
}

fn top(asked: &impl Ask, view: Option<View>, once: bool) -> Result<(), Error> {
    let mut before: Option<Stats> = None;
    loop {
        let stats = all_stats(asked)?;
        let text = match view {
            Some(View::Mem) => stats.top_memory(),
            Some(View::Io) => stats.top_disk(before.as_ref()),
            None => stats.top(before.as_ref()),
        };
        if once {
            print!("{text}");
            return Ok(());
        }
        // Home, then clear: a repainted screen does not flicker.
        println!("\x1b[H\x1b[2Jballast top (Ctrl-C leaves)\n{text}");
        before = Some(stats);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn follow_log() -> Result<(), Error> {
    use std::io::{BufRead, BufReader};
    let stream = client::connect(crate::session::Attach::Log)?;
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        println!("{line}");
    }
    Ok(())
}

fn options(run: &Run) -> Options {
    let clock = if run.icount { Clock::Instructions } else { Clock::Host };
    Options { cores: run.cores, clock, ..Options::default() }
}

/// Boots a foreign root-task and copies everything it prints to stdout until it ends.
fn run_root_task(run: &Run) -> Result<(), Error> {
    use std::io::{Read, Write};
    let path = run.root_task.as_deref().unwrap_or(Path::new(""));
    let memory = crate::config::size_bytes(&run.memory).map(|bytes| bytes >> 20);
    let memory = memory.filter(|mib| (16..=65536).contains(mib)).ok_or_else(|| {
        Error::Input(format!("--memory {}: write a size such as 512M or 3G", run.memory))
    })?;
    let image = image::foreign(path, memory)?;
    let folder = run_folder(&format!("root-task-{}", std::process::id()))?;
    let mut machine = Machine::start(&image, &options(run), &folder)?;
    let mut link = machine.take_link().ok_or_else(|| Error::Build("no console".to_owned()))?;
    let printer = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = link.read(&mut buffer)
            && length > 0
        {
            let _ = std::io::stdout().write_all(buffer.get(..length).unwrap_or_default());
            let _ = std::io::stdout().flush();
        }
    });
    let started = std::time::Instant::now();
    let mut place = 0;
    let status = loop {
        let status = machine.ended();
        let log = std::fs::read(machine.kernel_log()).unwrap_or_default();
        let news = log.get(place..).unwrap_or_default();
        // Whole lines, so that addresses can get their names.
        let end = if status.is_some() {
            news.len()
        } else {
            news.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
        };
        let text = String::from_utf8_lossy(news.get(..end).unwrap_or_default()).into_owned();
        print!("{}", crate::symbols::annotate(&text));
        let _ = std::io::stdout().flush();
        place += end;
        if status.is_some() {
            break status;
        }
        if run.timeout.is_some_and(|limit| started.elapsed().as_secs() >= limit) {
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(machine);
    let _ = printer.join();
    let _ = std::fs::remove_dir_all(&folder);
    match status {
        Some(status) => crate::machine::verdict(status),
        None => Err(Error::NoProgress("the root-task did not end in time".to_owned())),
    }
}

fn run_system(run: &Run) -> Result<(), Error> {
    let config = Config::load(&run.system)?;
    let folder = run_folder(client::RUN)?;
    if std::os::unix::net::UnixStream::connect(crate::session::control_socket(&folder)).is_ok() {
        return Err(Error::Input("a system runs already: `./ballast quit` ends it".to_owned()));
    }
    let image = image::build(&config, if run.fresh { Disk::Fresh } else { Disk::Keep })?;
    let machine = Machine::start(&image, &options(run), &folder)?;
    let session = Session::start(machine, &folder)?;
    let hello = session.wait("greeting from the root-task", Duration::from_secs(120), |heard| {
        heard.hello.clone()
    })?;
    eprintln!(
        "ballast: {} runs on {} cores with {} MiB; logs are in {}",
        hello.system,
        hello.cores,
        hello.memory.bytes() >> 20,
        folder.display()
    );
    if run.headless {
        while session.wait_end(Duration::from_secs(3600)).is_none() {}
    } else {
        show_start(&session, &config)?;
        prompt(&session)?;
    }
    ended(&session)
}

/// How the run ended, as the command's result.
fn ended(session: &Session) -> Result<(), Error> {
    match session.wait_end(Duration::from_secs(20)) {
        Some(status) => crate::machine::verdict(status).map_err(|error| match error {
            Error::Crash(text) => Error::Crash(format!("{text}{}", session.last_words())),
            other => other,
        }),
        None => Err(Error::NoProgress("the system did not end".to_owned())),
    }
}

/// Words that end a guest's start: a login prompt or a shell's.
fn is_up(console: &[u8]) -> bool {
    let text = String::from_utf8_lossy(console);
    let last = text.lines().last().unwrap_or_default().trim_end();
    last.ends_with("login:") || last.ends_with('#')
}

/// Shows every VM's console, line by line, until all of them are up.
fn show_start(session: &Session, config: &Config) -> Result<(), Error> {
    let names: Vec<&str> = config.system.vms.iter().map(|vm| vm.name.as_str()).collect();
    let started: Vec<u16> = (0u16..)
        .zip(&config.system.vms)
        .filter(|(_, vm)| vm.autostart)
        .map(|(index, _)| index)
        .collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut places = vec![0u64; names.len()];
    let mut events = 0;
    let done = session.wait("login prompt of every VM", Duration::from_secs(600), |heard| {
        for line in heard.log.get(events..).unwrap_or_default() {
            println!("{line}");
        }
        events = heard.log.len();
        let mut all_up = true;
        for &vm in &started {
            let Some(console) = heard.consoles.get(&vm) else {
                all_up = false;
                continue;
            };
            let is_up = is_up(console.since(0));
            all_up &= is_up;
            let index = usize::from(vm);
            let (Some(place), Some(name)) = (places.get_mut(index), names.get(index)) else {
                continue;
            };
            let news = console.since(*place);
            let end = if is_up {
                news.len()
            } else {
                news.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
            };
            *place += end as u64;
            let text = String::from_utf8_lossy(news.get(..end).unwrap_or_default()).into_owned();
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                println!("{name:width$} | {}", line.trim_end());
            }
        }
        all_up.then_some(())
    });
    match done {
        Err(Error::NoProgress(text)) => {
            println!("ballast: {text}");
            Ok(())
        }
        other => other,
    }
}

const HELP: &str = "\
help                 this list
top                  what VMs and servers do (once)
console NAME         a VM's console; Ctrl-] leaves
vm list|start|stop|pause|resume|rm NAME, vm create FILE, vm set NAME KEY=VALUE
group set NAME KEY=VALUE, memory set KEY=VALUE, io policy mclock|sfq|round-robin
caps, stats, explain NAME, kill SERVER, log
quit                 ends the system
The same verbs work from another terminal as `./ballast VERB`.";

fn set_group(group: &str, settings: &[String]) -> Result<(), Error> {
    let (io, memory) = group_changes(settings)?;
    let group =
        Name::try_from(group).map_err(|_| Error::Input(format!("no group is called '{group}'")))?;
    let client = client::Client::new()?;
    if memory != GroupMemoryChange::default() {
        let group = group.clone();
        client.ask(Request::GroupMemorySet { group, change: memory })?;
    }
    if io != IoChange::default() {
        client.ask(Request::GroupSet { group, change: io })?;
    }
    Ok(())
}

/// Reads verbs until `quit` or the end of input.
fn prompt(session: &Session) -> Result<(), Error> {
    use std::io::Write;
    println!("\nAll VMs are up. Type help for help.");
    let mut shown = session.heard(|heard| heard.log.len());
    loop {
        print!("ballast> ");
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        let length = std::io::stdin().read_line(&mut line).unwrap_or(0);
        if session.heard(|heard| heard.is_closed) {
            return Ok(());
        }
        let line = line.trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] if length > 0 => {}
            [] | ["quit" | "exit"] => {
                let _ = session.ask(Request::Quit { code: crate::machine::EXIT_GOOD });
                return Ok(());
            }
            ["help" | "?"] => println!("{HELP}"),
            ["log"] => {
                let lines =
                    session.heard(|heard| heard.log.get(shown..).unwrap_or_default().to_vec());
                shown += lines.len();
                lines.iter().for_each(|line| println!("{line}"));
            }
            ["top"] => report_error(dispatch_words(&["top", "--once"])),
            ["top", view] => report_error(dispatch_words(&["top", view, "--once"])),
            ["run" | "test" | "image", ..] => println!("not from here: use another terminal"),
            words => report_error(dispatch_words(words)),
        }
    }
}

fn report_error(result: Result<(), Error>) {
    if let Err(error) = result {
        println!("{error}");
    }
}

/// A line of the prompt is a command line without the program's name.
fn dispatch_words(words: &[&str]) -> Result<(), Error> {
    match Cli::try_parse_from(std::iter::once(&"ballast").chain(words)) {
        Ok(cli) => dispatch(cli.verb),
        Err(error) => Err(Error::Input(error.to_string())),
    }
}

/// The id and state of every VM, for tests and the prompt.
///
/// # Errors
///
/// What the target answers.
pub fn states(asked: &impl Ask) -> Result<Vec<(VmId, String, VmState)>, Error> {
    let vm = |line| match line {
        Line::Vm { vm, name, state, .. } => Some((vm, name, state)),
        _ => None,
    };
    Ok(asked.ask(Request::VmList)?.into_iter().filter_map(vm).collect())
}

#[cfg(test)]
mod tests {
    use super::{Cli, is_up};
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_prompt_means_up() {
        assert!(is_up(b"Debian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: "));
        assert!(is_up(b"/ # "));
        assert!(!is_up(b"[    0.1] something: login: not yet\r\n[ 0.2] more"));
        assert!(!is_up(b""));
    }
}
