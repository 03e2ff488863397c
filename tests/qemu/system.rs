//! The default system, driven through its consoles and its management link.

use crate::boot::{stats, text};
use crate::disk;
use ballast::config::Config;
use ballast::image::{self, Disk};
use ballast::machine::{Clock, EXIT_GOOD, Machine, Options, Writes, exit_status};
use ballast::report::Stats;
use ballast::session::{Ask, Line, Session, run_folder};
use protocol::io::Policy;
use protocol::link::{Event, Request, ServerId, Setting, VmState};
use protocol::units::{DiskId, Pages, VmId};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

const WEB1: VmId = VmId(0);
const WEB2: VmId = VmId(1);
/// What Linux says on any machine like ours: each line with its reason in `docs/testing.md`.
const DMESG_ALLOWED: [&str; 1] = ["Speculative Return Stack Overflow"];

/// Boots `file` of `images/systems`; what its guests write is discarded.
pub fn start(file: &str) -> Result<Arc<Session>, Failure> {
    let path = Path::new(ballast::WORKSPACE).join("images/systems").join(file);
    let mut config = Config::load(&path).map_err(text)?;
    // A folder of its own: the user's disk of this system stays as it is.
    config.system.name =
        protocol::system::Name::try_from(format!("test-{}", config.system.name.as_str()).as_str())
            .map_err(text)?;
    let image = image::build(&config, Disk::Fresh).map_err(text)?;
    let folder = run_folder(&format!("test-system-{}", std::process::id())).map_err(text)?;
    let options = Options { writes: Writes::Discard, clock: Clock::Patient, ..Options::default() };
    let machine = Machine::start(&image, &options, &folder).map_err(text)?;
    Session::start(machine, &folder).map_err(text)
}

/// Asks for figures until they are as wanted; the mem-server publishes ten times a second.
pub fn eventually(
    session: &Session,
    what: &str,
    wanted: impl Fn(&Stats) -> bool,
) -> Result<(), Failure> {
    let deadline = std::time::Instant::now() + HANG;
    loop {
        let now = stats(session)?;
        if wanted(&now) {
            return Ok(());
        }
        if std::time::Instant::now() > deadline {
            let memory = now.vms.first().map(|(.., vm)| vm.memory);
            return Err(format!("{what}: not within {HANG:?}; the first VM has {memory:?}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn state(session: &Session, vm: VmId) -> Result<VmState, Failure> {
    let states = ballast::cli::states(session).map_err(text)?;
    let found = states.iter().find(|(id, ..)| *id == vm);
    found.map(|(.., state)| *state).ok_or_else(|| format!("VM {} is not listed", vm.0))
}

/// Waits until the last the target said of `vm` is that it is `wanted`.
pub fn wait_state(session: &Session, vm: VmId, wanted: VmState) -> Result<(), Failure> {
    let what = format!("VM {} {wanted:?}", vm.0);
    let waited = session.wait(&what, HANG, |heard| {
        let last = heard.events.iter().rev().find_map(|(_, event)| match event {
            Event::VmState { vm: of, state } if *of == vm => Some(*state),
            _ => None,
        });
        (last == Some(wanted)).then_some(())
    });
    waited.map_err(text)
}

pub fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: T,
    wanted: T,
) -> Result<(), Failure> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: found {found:?}, wanted {wanted:?}"))
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    let drills_wanted = runner.wants("drills");
    if !runner.wants("system") && !drills_wanted {
        return;
    }
    let mut started = None;
    let booted = runner.case("system: the root-task greets", || {
        let session = start("two-linux.toml")?;
        let greeting = session.wait("greeting", HANG, |heard| heard.hello.clone());
        started = Some(session);
        greeting.map(drop).map_err(text)
    });
    let Some(session) = started.filter(|_| booted) else {
        runner.lost("system: everything else", "the system did not start");
        return;
    };
    let mut web1 = Shell::new(&session, WEB1);
    let mut web2 = Shell::new(&session, WEB2);
    let up = runner.case("system: both VMs boot and log in", || {
        web1.log_in()?;
        web2.log_in()?;
        same("host name", web1.expect("hostname")?.as_str(), "web1")?;
        same("host name", web2.expect("hostname")?.as_str(), "web2")
    });
    if up {
        if runner.wants("system") {
            guests(runner, &session, &mut web1, &mut web2);
            verbs(runner, &session, &mut web1, &mut web2);
        }
        if drills_wanted {
            life(runner, &session, &mut web2);
            drills(runner, &session, &mut web1, &mut web2);
        }
    } else {
        runner.lost("system: everything else", "the VMs did not boot");
    }
    runner.case("system: quit ends the run well", || {
        let _ = session.ask(Request::Quit { code: EXIT_GOOD });
        same("QEMU's status", session.wait_end(HANG), Some(exit_status(EXIT_GOOD)))
    });
    let _ = std::fs::remove_dir_all(session.folder());
}

/// What a guest sees.
fn guests<'a>(runner: &mut Runner, session: &Session, web1: &mut Shell<'a>, web2: &mut Shell<'a>) {
    runner.case("system: the root file systems have what was installed", || {
        for shell in [&mut *web1, &mut *web2] {
            shell.expect("sha256sum --quiet -c installed.sha256")?;
        }
        Ok(())
    });
    runner.case("system: dmesg has no warning but the documented", || {
        for shell in [&mut *web1, &mut *web2] {
            let log = shell.expect("dmesg -l emerg,alert,crit,err,warn")?;
            let strange = log.lines().find(|line| {
                !line.trim().is_empty() && !DMESG_ALLOWED.iter().any(|word| line.contains(word))
            });
            if let Some(line) = strange {
                return Err(format!("dmesg: {line}"));
            }
        }
        Ok(())
    });
    runner.case("system: a pattern over 90 % of a guest's free memory stays", || {
        web1.expect(
            "mkdir -p /m && mount -t tmpfs -o size=100% m /m && \
             n=$(awk '/MemAvailable/{print int($2*9/10240)}' /proc/meminfo) && \
             yes 0123456789abcdef | head -c ${n}M >/m/f && sha256sum </m/f >/tmp/1 && \
             yes 0123456789abcdef | head -c ${n}M | sha256sum >/tmp/2 && cmp /tmp/1 /tmp/2 && \
             umount /m",
        )
        .map(drop)
    });
    runner.case("system: ten seconds of a guest are ten of the machine's within 1 %", || {
        let before = stats(session)?.machine.uptime.0;
        web2.expect("sleep 10")?;
        let slept = stats(session)?.machine.uptime.0 - before;
        let millis = slept / 1_000_000;
        // The command itself and two requests take a few milliseconds.
        if (9_900..=10_100).contains(&millis) {
            return Ok(());
        }
        Err(format!("ten seconds took {millis} ms"))
    });
    runner.case("system: what was written and synced is there after a reboot", || {
        web1.expect("head -c 8M /dev/urandom >f && sha256sum f >f.sum && sync")?;
        web1.skip();
        web1.type_line("reboot")?;
        web1.log_in()?;
        web1.expect("sha256sum --quiet -c f.sum").map(drop)
    });
}

/// Verbs on VMs.
fn verbs<'a>(runner: &mut Runner, session: &Session, web1: &mut Shell<'a>, web2: &mut Shell<'a>) {
    let ask = |request: Request| session.ask(request).map_err(text);
    runner.case("system: a paused VM holds still and goes on when resumed", || {
        ask(Request::VmPause(WEB1))?;
        same("state", state(session, WEB1)?, VmState::Paused)?;
        web1.start("echo awake")?;
        // Two seconds of the other VM: long enough for an answer, if one came.
        web2.expect("sleep 2")?;
        same("output while paused", web1.pending().contains("awake\r"), false)?;
        ask(Request::VmResume(WEB1))?;
        let output = web1.finish(HANG)?;
        same("output", output.text.contains("awake"), true)
    });
    runner.case("system: a balloon target set by hand is reached and given back", || {
        let target = Pages(32 << 8);
        ask(Request::VmSet { vm: WEB1, setting: Setting::Balloon(Some(target)) })?;
        let balloon = |wanted: Pages| {
            let found = |stats: &Stats| stats.vms.first().map(|(.., vm)| vm.memory.balloon);
            let what = format!("balloon of {wanted:?}");
            eventually(session, &what, |stats| found(stats) == Some(wanted))
        };
        balloon(target)?;
        ask(Request::VmSet { vm: WEB1, setting: Setting::Balloon(Some(Pages(0))) })?;
        balloon(Pages(0))?;
        ask(Request::VmSet { vm: WEB1, setting: Setting::Balloon(None) }).map(drop)
    });
    crate::large::balloon(runner, session, web1);
    disk::claims(runner, session, web1);
    runner.case("system: a refused request names its reason", || {
        match session.ask(Request::VmStart(WEB1)) {
            Err(error) => same("reason", error.to_string().contains("running"), true),
            Ok(_) => Err("a running VM was started".to_owned()),
        }
    });
    runner.case("system: every server's capabilities are listed", || {
        let lines = ask(Request::Caps)?;
        let table = ballast::report::caps(&lines).text();
        let names = ["root-task", "mem-server", "io-sched-server", "vmm-server.0", "vmm-server.1"];
        match names.iter().find(|name| !table.contains(**name)) {
            Some(name) => Err(format!("no capability of {name}")),
            None => Ok(()),
        }
    });
}

/// VMs come and go.
fn life(runner: &mut Runner, session: &Session, web2: &mut Shell<'_>) {
    let ask = |request: Request| session.ask(request).map_err(text);
    runner.case("system: twenty stops and starts give back every page", || {
        let mut free = Vec::new();
        for _ in 0..20 {
            ask(Request::VmStop(WEB2))?;
            wait_state(session, WEB2, VmState::Stopped)?;
            // The other VM runs on and may touch pages of its own: they count as free here.
            let now = stats(session)?;
            let other = now.vms.first().map_or(0, |(.., vm)| vm.memory.granted.0);
            free.push(now.machine.free.0 + other);
            web2.skip();
            ask(Request::VmStart(WEB2))?;
            web2.wait("first line of the guest", HANG, |text| (text.len() > 20).then_some(()))?;
        }
        let first = free.first().copied().unwrap_or(0);
        if free.iter().all(|&now| now == first) {
            return web2.log_in();
        }
        Err(format!("free pages after each stop: {free:?}"))
    });
    runner.case("system: poweroff stops a VM and start boots it again", || {
        web2.skip();
        web2.type_line("poweroff")?;
        wait_state(session, WEB2, VmState::Stopped)?;
        ask(Request::VmStart(WEB2))?;
        web2.log_in()
    });
    runner.case("system: a VM is created, boots and is removed", || {
        let path = Path::new(ballast::WORKSPACE).join("images/systems/extra-vm.toml");
        let described = ballast::config::load_vm(&path).map_err(text)?;
        let lines = ask(Request::VmCreate(described))?;
        let created = lines.iter().find_map(|line| match line {
            Line::Vm { vm, .. } => Some(*vm),
            _ => None,
        });
        let extra = created.ok_or("no id came back")?;
        ask(Request::VmStart(extra))?;
        let mut shell = Shell::new(session, extra);
        shell.wait("shell in the initramfs", HANG, |text| text.contains("/ #").then_some(()))?;
        same("answer", shell.expect("expr 6 \\* 7")?.contains("42"), true)?;
        ask(Request::VmStop(extra))?;
        wait_state(session, extra, VmState::Stopped)?;
        ask(Request::VmRemove(extra))?;
        let states = ballast::cli::states(session).map_err(text)?;
        same("listed", states.iter().any(|(id, ..)| *id == extra), false)
    });
}

/// A loop that writes numbered records, each synced before it counts as written, and says at the end the longest time one
/// took, in microseconds of the guest's clock.
const WRITER: &str = "i=0; w=0; rm -f log; p=${EPOCHREALTIME/./}; while [ $i -lt 400 ]; do i=$((i+1)); \
                      echo record $i >>log; sync -d log || break; echo $i >/dev/shm/acknowledged; \
                      [ $i -ne 40 ] || echo WRITING; t=${EPOCHREALTIME/./}; \
                      [ $((t-p)) -le $w ] || w=$((t-p)); p=$t; done; echo WORST $w END";
/// All records are there, on the disk and in order.
const VERIFY: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; n=$(cat /dev/shm/acknowledged); \
                      test $n -eq 400 && test $(wc -l <log) -eq 400 && seq -f 'record %g' 400 | cmp - log";
/// Most a record may take, whatever is killed: a writer that stood still for longer was hurt.
const STALL_MAX: Duration = Duration::from_secs(5);

/// A disk limit that holds nobody back.
const DRILL_LIMIT: u32 = 54_321;

/// Starts the writer and waits until it is well under way.
fn start_writer(shell: &mut Shell<'_>) -> Result<(), Failure> {
    shell.start(WRITER)?;
    shell.wait("writing", HANG, |text| text.contains("WRITING").then_some(()))
}

/// Waits for the writer's end; the longest time a record took.
fn worst_stall(shell: &mut Shell<'_>) -> Result<Duration, Failure> {
    let output = shell.finish(HANG)?;
    same("status of the writer", output.status, 0)?;
    let worst = output.text.split("WORST ").nth(1).and_then(|rest| rest.split(" END").next());
    let micros = worst.and_then(|word| word.trim().parse().ok());
    let stall = micros.map(Duration::from_micros).ok_or("the writer said no stall")?;
    if stall > STALL_MAX {
        return Err(format!("a record took {stall:?}, more than {STALL_MAX:?}"));
    }
    Ok(stall)
}

/// Time between a server's fault and its serving again, as the target measured it.
pub fn downtime(session: &Session, wanted: ServerId) -> Result<Duration, Failure> {
    let restart = session.wait("restart of a server", HANG, |heard| {
        heard.events.iter().find_map(|(_, event)| match event {
            Event::ServerRestarted { server, downtime } if *server == wanted => Some(*downtime),
            _ => None,
        })
    });
    restart.map(|nanos| Duration::from_nanos(nanos.0)).map_err(text)
}

/// Servers are killed under load.
fn drills<'a>(runner: &mut Runner, session: &Session, web1: &mut Shell<'a>, web2: &mut Shell<'a>) {
    let ask = |request: Request| session.ask(request).map_err(text);
    let mut figures = Vec::new();
    runner.case("drills: a writer undisturbed", || {
        start_writer(web1)?;
        figures.push(("worst record, undisturbed", worst_stall(web1)?));
        web1.expect(VERIFY).map(drop)
    });
    runner.case("drills: the io-sched-server is killed under load and nothing is lost", || {
        disk::change(session, DRILL_LIMIT, Policy::Sfq)?;
        start_writer(web1)?;
        ask(Request::Kill(ServerId::Io(DiskId(0))))?;
        figures
            .push(("io-sched-server out of service", downtime(session, ServerId::Io(DiskId(0)))?));
        figures.push(("worst record, io-sched-server killed", worst_stall(web1)?));
        web1.expect(VERIFY).map(drop)
    });
    runner.case("drills: the new io-sched-server has the claims and policy of the old one", || {
        let found = disk::found(session)?;
        disk::change(session, 0, Policy::MClock)?;
        same("limit and policy", found, (Some(DRILL_LIMIT), Some(Policy::Sfq)))
    });
    runner.case(
        "drills: a vmm-server is killed while both write: the other VM is unharmed",
        || {
            start_writer(web2)?;
            start_writer(web1)?;
            ask(Request::Kill(ServerId::Vmm(WEB2)))?;
            wait_state(session, WEB2, VmState::Crashed)?;
            figures.push(("worst record, the other VM killed", worst_stall(web1)?));
            web1.expect(VERIFY)?;
            ask(Request::VmStart(WEB2))?;
            web2.skip();
            web2.log_in()
        },
    );
    runner.case("drills: the mem-server is killed: its VMs end as crashed and start again", || {
        ask(Request::Kill(ServerId::Mem))?;
        figures.push(("mem-server out of service", downtime(session, ServerId::Mem)?));
        for (vm, shell) in [(WEB1, &mut *web1), (WEB2, &mut *web2)] {
            wait_state(session, vm, VmState::Crashed)?;
            ask(Request::VmStart(vm))?;
            shell.skip();
            shell.log_in()?;
        }
        web1.expect("test $(wc -l <log) -eq 400").map(drop)
    });
    for (name, value) in figures {
        runner.figure(name, &format!("{:.2} ms", value.as_secs_f64() * 1e3));
    }
}
