//! The default system, driven through its consoles and its management link.

use ballast::config::Config;
use ballast::image::{self, Disk};
use ballast::machine::{Clock, EXIT_GOOD, Machine, Options, Writes, exit_status};
use ballast::report::Stats;
use ballast::session::{Ask, Line, Session, run_folder};
use protocol::link::{Event, Request, ServerId, Setting, VmState};
use protocol::units::{Pages, VmId};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tests::guest::{HANG, Shell};
use tests::runner::{Failure, Runner};

const WEB1: VmId = VmId(0);
const WEB2: VmId = VmId(1);
/// What Linux says on any machine like ours: each line with its reason in `docs/testing.md`.
const DMESG_ALLOWED: [&str; 1] = ["Speculative Return Stack Overflow"];

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

fn start() -> Result<Arc<Session>, Failure> {
    let path = Path::new(ballast::WORKSPACE).join("images/systems/two-linux.toml");
    let mut config = Config::load(&path).map_err(text)?;
    // A folder of its own: the user's disk of this system stays as it is.
    config.system.name = protocol::system::Name::try_from("test").map_err(text)?;
    let image = image::build(&config, Disk::Fresh).map_err(text)?;
    let folder = run_folder(&format!("test-system-{}", std::process::id())).map_err(text)?;
    let options = Options { writes: Writes::Discard, clock: Clock::Patient, ..Options::default() };
    let machine = Machine::start(&image, &options, &folder).map_err(text)?;
    Session::start(machine, &folder).map_err(text)
}

fn stats(session: &Session) -> Result<Stats, Failure> {
    session.ask(Request::Stats).map(|lines| Stats::from_lines(&lines)).map_err(text)
}

fn state(session: &Session, vm: VmId) -> Result<VmState, Failure> {
    let states = ballast::cli::states(session).map_err(text)?;
    let found = states.iter().find(|(id, ..)| *id == vm);
    found.map(|(.., state)| *state).ok_or_else(|| format!("VM {} is not listed", vm.0))
}

fn wait_state(session: &Session, vm: VmId, wanted: VmState) -> Result<(), Failure> {
    let deadline = std::time::Instant::now() + HANG;
    while state(session, vm)? != wanted {
        if std::time::Instant::now() > deadline {
            return Err(format!("VM {} is not {wanted:?}", vm.0));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), Failure> {
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
        let session = start()?;
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
        std::thread::sleep(Duration::from_secs(2));
        same("output while paused", web1.pending().contains("awake\r"), false)?;
        web2.expect("true")?;
        ask(Request::VmResume(WEB1))?;
        let output = web1.finish(HANG)?;
        same("output", output.text.contains("awake"), true)
    });
    runner.case("system: a balloon target set by hand is reached and given back", || {
        let target = Pages(32 << 8);
        ask(Request::VmSet { vm: WEB1, setting: Setting::Balloon(Some(target)) })?;
        let balloon = |wanted: Pages| -> Result<(), Failure> {
            let deadline = std::time::Instant::now() + HANG;
            loop {
                let stats = stats(session)?;
                let found = stats.vms.first().map(|(.., stats)| stats.memory.balloon);
                if found == Some(wanted) {
                    return Ok(());
                }
                if std::time::Instant::now() > deadline {
                    return Err(format!("the balloon holds {found:?}, wanted {wanted:?}"));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        balloon(target)?;
        ask(Request::VmSet { vm: WEB1, setting: Setting::Balloon(Some(Pages(0))) })?;
        balloon(Pages(0))?;
        ask(Request::VmSet { vm: WEB1, setting: Setting::Balloon(None) }).map(drop)
    });
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

/// A loop that writes numbered records, each synced before it counts as written.
const WRITER: &str = "i=0; rm -f log; while [ $i -lt 400 ]; do i=$((i+1)); \
                      echo record $i >>log; sync -d log || break; echo $i >/dev/shm/acknowledged; \
                      done";

/// Servers are killed under load.
fn drills<'a>(runner: &mut Runner, session: &Session, web1: &mut Shell<'a>, web2: &mut Shell<'a>) {
    let ask = |request: Request| session.ask(request).map_err(text);
    let verify = "sync; echo 3 >/proc/sys/vm/drop_caches; n=$(cat /dev/shm/acknowledged); \
                  test $n -eq 400 && test $(wc -l <log) -eq 400 && \
                  seq -f 'record %g' 400 | cmp - log";
    runner.case("system: the io-sched-server is killed under load and nothing is lost", || {
        web1.start(WRITER)?;
        std::thread::sleep(Duration::from_secs(2));
        ask(Request::Kill(ServerId::Io))?;
        session
            .wait("restart of the io-sched-server", HANG, |heard| {
                heard.events.iter().find_map(|(_, event)| match event {
                    Event::ServerRestarted { server: ServerId::Io, downtime } => Some(*downtime),
                    _ => None,
                })
            })
            .map_err(text)?;
        same("status of the writer", web1.finish(HANG)?.status, 0)?;
        web1.expect(verify).map(drop)
    });
    runner.case(
        "system: a vmm-server is killed while both write: the other VM is unharmed",
        || {
            web2.start(WRITER)?;
            web1.start(WRITER)?;
            std::thread::sleep(Duration::from_secs(2));
            ask(Request::Kill(ServerId::Vmm(WEB2)))?;
            wait_state(session, WEB2, VmState::Crashed)?;
            same("status of the writer", web1.finish(HANG)?.status, 0)?;
            web1.expect(verify)?;
            ask(Request::VmStart(WEB2))?;
            web2.skip();
            web2.log_in()
        },
    );
}
