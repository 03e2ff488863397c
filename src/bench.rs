//! `ballast bench`: what operations cost in executed instructions, beside the peers' figures.
//!
//! Every run is by instruction count (one tick is one instruction), so the figures are the same on
//! any host. A figure that could not be measured is shown as such and is `null` in JSON.

mod balloon;
mod disk;
mod linux;
mod memory;

use crate::config::Config;
use crate::image::{self, Disk};
use crate::machine::{Clock, EXIT_GOOD, Machine, Options};
use crate::report::{Stats, Table};
use crate::session::{Ask, Session, run_folder};
use crate::{Error, WORKSPACE};
use protocol::link::Request;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// One figure of the table.
struct Figure {
    key: &'static str,
    what: &'static str,
    /// At most this much is the aim.
    target: Option<f64>,
    peer: &'static str,
}

const fn figure(
    key: &'static str,
    what: &'static str,
    target: Option<f64>,
    peer: &'static str,
) -> Figure {
    Figure { key, what, target, peer }
}

/// Peers measured inside the same QEMU by the same guest; seL4's own figures for its kernel.
const FIGURES: [Figure; 39] = [
    figure("cpuid_exit", "CPUID, handled in the vmm-server", Some(700.0), "KVM 3070, Xen 5345"),
    figure("hypercall_exit", "null hypercall", None, "KVM 3323, Xen 5471"),
    figure("pio_exit", "read of a 16550 register", Some(1000.0), "KVM+QEMU 5450"),
    figure("mmio_ioapic_read", "read of an IOAPIC register", Some(1600.0), "KVM 4240"),
    figure("mmio_unassigned_read", "read where nothing is", Some(1600.0), "KVM+QEMU 7914"),
    figure("first_touch_4k", "first touch of a page", Some(6000.0), "KVM 7250"),
    figure("eoi_x2apic", "end of interrupt", Some(900.0), "KVM 3214, Xen 5482"),
    figure("timer_late_hlt", "timer lateness out of HLT", Some(3000.0), "KVM 7960, Xen 11095"),
    figure("ipc_call_reply_0", "call and reply, no words", Some(500.0), "seL4 540"),
    figure("ipc_call_reply_10", "call and reply, ten words", Some(1000.0), "seL4 2268"),
    figure("signal_wait", "signal and wait round trip", Some(1298.0), "seL4 1298"),
    figure("page_map_4k", "map a 4 KiB frame", Some(801.0), "seL4 801"),
    figure("retype_4k", "retype one 4 KiB frame", Some(933.0), "seL4 933"),
    figure(
        "linux_init_ratio",
        "Linux to /init against bare QEMU",
        Some(1.10),
        "KVM 1.17, Xen 1.79",
    ),
    figure("linux_init_minsn", "millions from launch to /init and off", None, "-"),
    figure("linux_init_bare_minsn", "millions on bare QEMU, without firmware", None, "-"),
    figure("linux_init_firmware_minsn", "millions of that firmware", None, "-"),
    figure("vm_overhead_kib", "hypervisor's memory for a 128 MiB VM", Some(4096.0), "-"),
    figure("scan_page", "look at a page for sharing", Some(2200.0), "KSM 4340"),
    figure("merge_page", "merge a page, looking included", Some(10_000.0), "KSM 28,000"),
    figure("cow_break", "write to a shared page, mem-server's part", None, "-"),
    figure("zero_page_fault", "write to a page of zeros, mem-server's part", None, "-"),
    figure("compressed_fault", "touch of a compressed page, mem-server's part", None, "-"),
    figure(
        "balloon_inflate_page",
        "page into the balloon, guest's part too",
        Some(8000.0),
        "KVM+QEMU 20,000",
    ),
    figure("balloon_deflate_page", "page out of the balloon", Some(4000.0), "KVM+QEMU 7000"),
    figure(
        "balloon_pages_per_minsn",
        "pages into the balloon (aim: 125 or more)",
        None,
        "KVM+QEMU 50",
    ),
    figure("metadata_permille", "capabilities, states, sharing of guest memory", Some(10.0), "-"),
    figure("sharing_permille", "sharing table of all memory", Some(5.0), "paper 5"),
    figure("scanner_cpu_permille", "time for 20,000 pages/s and what they merge", None, "-"),
    figure("shared_saved_mib", "saved of two idle 128 MiB VMs", None, "-"),
    figure("sharing_4vm_mib", "saved of four of them (aim: 221 or more)", None, "KSM 221"),
    figure(
        "sharing_4vm_scanned",
        "pages looked at until 221 MiB of them are saved",
        Some(162_000.0),
        "KSM 162,000 or more",
    ),
    figure("mclock_op_1", "disk scheduler: add, decide, complete", None, "dmclock 1158"),
    figure("mclock_op_10", "the same with 10 clients", None, "dmclock 1702"),
    figure("mclock_op_100", "the same with 100 clients", Some(500.0), "dmclock 2076"),
    figure("mclock_op_1000", "with 1,000", None, "dmclock 2472"),
    figure("mclock_op_10000", "with 10,000 (aim: 3 x one client)", None, "dmclock 2916"),
    figure("io_read_4k_path", "4 KiB read, guest's submission to completion", None, "-"),
    figure("io_read_4k_server", "the io-sched-server's part of it", None, "-"),
];

/// Guard against a hang, in host time.
const HANG: Duration = Duration::from_secs(600);

type Figures = BTreeMap<String, f64>;

fn options() -> Options {
    Options { clock: Clock::Instructions, ..Options::default() }
}

/// Adds every line `BENCH key value` of `text`; values may be in the form `Name(value)`.
fn collect(text: &str, figures: &mut Figures) {
    for line in text.lines() {
        let mut words = line.trim().trim_start_matches("BENCH ").split_whitespace();
        let is_figure = line.trim().starts_with("BENCH ");
        if let (true, Some(key), Some(value)) = (is_figure, words.next(), words.next())
            && let Ok(value) = value.parse()
        {
            figures.insert(key.to_owned(), value);
        }
    }
}

/// Kernel operations, measured by a root-task of its own.
fn kernel_figures(figures: &mut Figures) -> Result<(), Error> {
    image::progress("measuring kernel operations");
    let image = image::foreign(&image::program("bench-root")?, 512)?;
    let folder = run_folder(&format!("bench-root-{}", std::process::id()))?;
    let mut machine = Machine::start(&image, &options(), &folder)?;
    let status = machine.wait(HANG);
    let log = std::fs::read(machine.kernel_log()).map_err(Error::file(&folder))?;
    drop(machine);
    let _ = std::fs::remove_dir_all(&folder);
    collect(&String::from_utf8_lossy(&log), figures);
    match status {
        Some(status) => crate::machine::verdict(status),
        None => Err(Error::NoProgress("bench-root did not end".to_owned())),
    }
}

fn boot(system: &str, cores: u32) -> Result<std::sync::Arc<Session>, Error> {
    let path = Path::new(WORKSPACE).join("images/systems").join(system);
    start(&Config::load(&path)?, cores)
}

/// Boots a system by instruction count on `cores` cores. On one, the instructions between two looks at the clock are all of whoever
/// looks.
///
/// # Errors
///
/// If the image cannot be made or QEMU does not start.
pub(crate) fn start(config: &Config, cores: u32) -> Result<std::sync::Arc<Session>, Error> {
    start_on(config, &Options { cores, ..options() })
}

/// As [`start`], on such a machine.
pub(crate) fn start_on(
    config: &Config,
    options: &Options,
) -> Result<std::sync::Arc<Session>, Error> {
    let image = image::build(config, Disk::Keep)?;
    let folder = run_folder(&format!("bench-{}", std::process::id()))?;
    Session::start(Machine::start(&image, options, &folder)?, &folder)
}

/// Ends a system and forgets its folder.
pub(crate) fn quit(session: &Session) {
    let _ = session.ask(Request::Quit { code: EXIT_GOOD });
    let _ = session.wait_end(Duration::from_secs(10));
    let _ = std::fs::remove_dir_all(session.folder());
}

/// Exits, measured by a bare-metal guest.
fn guest_figures(figures: &mut Figures) -> Result<(), Error> {
    image::progress("measuring exits with a bare-metal guest");
    let session = boot("bench.toml", 2)?;
    let console = session.wait("end of the guest's measurements", HANG, |heard| {
        let console = heard.consoles.get(&0)?;
        let text = String::from_utf8_lossy(console.since(0)).into_owned();
        text.contains("BENCH end").then_some(text)
    })?;
    collect(&console, figures);
    let stats = Stats::from_lines(&session.ask(Request::Stats)?);
    if let Some((.., vm)) = stats.vms.first()
        && vm.memory.overhead.0 > 0
    {
        figures.insert("vm_overhead_kib".to_owned(), (vm.memory.overhead.bytes() >> 10) as f64);
    }
    quit(&session);
    Ok(())
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Measures everything and prints the table, or one JSON object.
///
/// # Errors
///
/// [`Error::Wrong`] naming what could not be measured; the rest is printed first.
pub fn run(json: bool) -> Result<(), Error> {
    let mut figures = Figures::new();
    let mut problems = Vec::new();
    type Part = fn(&mut Figures) -> Result<(), Error>;
    let parts: [Part; 9] = [
        kernel_figures,
        guest_figures,
        linux::figures,
        memory::figures,
        memory::four,
        memory::compressed,
        balloon::figures,
        disk::figures,
        disk::path,
    ];
    for part in parts {
        if let Err(error) = part(&mut figures) {
            problems.push(error.to_string());
        }
    }
    if json {
        let mut object = serde_json::Map::new();
        for figure in &FIGURES {
            let value = figures.get(figure.key).map_or(serde_json::Value::Null, |&value| {
                if value.fract() == 0.0 { (value as u64).into() } else { value.into() }
            });
            object.insert(figure.key.to_owned(), value);
        }
        println!("{:#}", serde_json::Value::Object(object));
    } else {
        println!("{}", table(&figures));
        println!(
            "Executed instructions of guest, kernel and servers together (ratio and KiB aside)."
        );
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Wrong(format!("not everything could be measured:\n{}", problems.join("\n"))))
}

fn table(figures: &Figures) -> String {
    let mut table = Table::new(&["KEY", "OURS", "TARGET", "MET", "PEERS", "WHAT"]);
    for figure in &FIGURES {
        let value = figures.get(figure.key).copied();
        let met = match (value, figure.target) {
            (Some(value), Some(target)) => {
                if value <= target {
                    "yes"
                } else {
                    "no"
                }
            }
            _ => "",
        };
        table.row(vec![
            figure.key.to_owned(),
            value.map_or("not measured".to_owned(), number),
            figure.target.map_or(String::new(), number),
            met.to_owned(),
            figure.peer.to_owned(),
            figure.what.to_owned(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::{Figures, collect, table};

    #[test]
    fn figures_are_collected_from_lines() {
        let mut figures = Figures::new();
        collect("BENCH begin\nBENCH cpuid_exit 650\r\nnoise 3\nBENCH x y\nBENCH end", &mut figures);
        assert_eq!(figures.len(), 1);
        assert_eq!(figures.get("cpuid_exit"), Some(&650.0));
    }

    #[test]
    fn a_missing_figure_is_not_made_up() {
        let mut figures = Figures::new();
        figures.insert("cpuid_exit".to_owned(), 701.0);
        let text = table(&figures);
        assert!(text.lines().nth(1).unwrap().contains("701"));
        assert!(text.lines().nth(1).unwrap().contains("no"));
        assert!(text.lines().nth(2).unwrap().contains("not measured"));
    }
}
