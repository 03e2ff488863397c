//! `stats` as OpenMetrics text, for Prometheus and everything that reads it.
//!
//! Format: the OpenMetrics 1.0 specification. One family of samples after the other, base units in the names, `_total` on
//! counters, `# EOF` at the end; a test checks the text against the grammar.

use crate::report::{
    Stats,
    disk::{disk_name, policy_name},
    state_name,
};
use crate::session::{DiskClient, server_name};
use protocol::io::{ClientStats, DiskStats, LATENCY_BOUNDS};
use protocol::link::{EXIT_KINDS, MemoryStats, Unit, VmState};
use protocol::system::IoControl;
use protocol::units::{DiskId, Nanos, Pages, VmId};
use std::fmt::Write;

#[path = "openmetrics/counted.rs"]
mod counted;
#[cfg(test)]
#[path = "openmetrics/grammar.rs"]
mod grammar;
#[path = "openmetrics/groups.rs"]
mod groups;

/// Kind of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Info,
    StateSet,
    Summary,
    Histogram,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Info => "info",
            Self::StateSet => "stateset",
            Self::Summary => "summary",
            Self::Histogram => "histogram",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::StateSet | Self::Summary | Self::Histogram => "",
        }
    }
}

/// The text as it grows; the samples of one family stand together.
#[derive(Debug, Default)]
struct Page {
    text: String,
    family: String,
    suffix: &'static str,
}

const UNITS: [&str; 2] = ["bytes", "seconds"];

impl Page {
    /// Begins family `name` (without the prefix): its unit is the name's last word, if that is one.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.family = format!("ballast_{name}");
        self.suffix = kind.suffix();
        let family = &self.family;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# TYPE {family} {}", kind.word());
        if let Some(unit) = UNITS.iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
            let _ = writeln!(self.text, "# UNIT {family} {unit}");
        }
        let _ = writeln!(self.text, "# HELP {family} {}", escaped(help));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.sample_of(self.suffix, labels, value);
    }

    fn sample_of(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.text, "{}{suffix}", self.family);
        for (at, (name, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{name}=\"{}\"", escaped(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(time: Nanos) -> f64 {
    time.0 as f64 / 1e9
}

/// All of `stats`.
pub fn text(stats: &Stats) -> String {
    let mut page = Page::default();
    host(&mut page, stats);
    vm_memory(&mut page, stats);
    groups::families(&mut page, stats);
    counted::families(&mut page, stats);
    vm_work(&mut page, stats);
    disk_rates(&mut page, stats);
    disk_claims(&mut page, stats);
    servers(&mut page, stats);
    terms(&mut page, stats);
    page.text.push_str("# EOF\n");
    page.text
}

fn host(page: &mut Page, stats: &Stats) {
    page.family("build", Kind::Info, "Version of the host command.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let machine = &stats.machine;
    page.family("host_uptime_seconds", Kind::Gauge, "Time since boot.");
    page.sample(&[], seconds(machine.uptime));
    page.family("host_memory_bytes", Kind::Gauge, "RAM of the machine.");
    page.sample(&[], machine.memory.bytes());
    page.family("host_kernel_memory_bytes", Kind::Gauge, "Kept for kernel objects and servers.");
    page.sample(&[], machine.kernel_memory.bytes());
    page.family("host_memory_free_bytes", Kind::Gauge, "Free memory of the mem-server.");
    page.sample(&[], machine.free.bytes());
    page.family("host_memory_state", Kind::Gauge, "0 high, 1 soft, 2 hard, 3 low.");
    page.sample(&[], machine.memory_state);
}

/// A figure of a VM's memory: its word in a family's name, what it is, where it is.
type MemoryPart = (&'static str, &'static str, fn(&MemoryStats) -> Pages);

const MEMORY: [MemoryPart; 14] = [
    ("size", "What the guest sees.", |memory| memory.size),
    ("granted", "What backs it now.", |memory| memory.granted),
    ("active", "Estimate of what it uses.", |memory| memory.active),
    ("shared", "Its memory that is shared.", |memory| memory.shared),
    ("saved", "What sharing saves.", |memory| memory.saved),
    ("balloon", "What its balloon holds.", |memory| memory.balloon),
    ("balloon_target", "What its balloon should hold.", |memory| memory.balloon_target),
    ("swapped", "Its memory on the swap partition.", |memory| memory.swapped),
    ("compressed", "Its memory in the compressed tier.", |memory| memory.compressed),
    ("swap_target", "What should be on the swap partition.", |memory| memory.swap_target),
    ("target", "What the policy wants it to have.", |memory| memory.target),
    ("tax_paid", "What the idle memory tax takes off.", |memory| memory.tax_paid),
    ("overhead", "What the hypervisor spends on it.", |memory| memory.overhead),
    ("large", "Its memory that large pages map.", |memory| memory.large),
];

/// Labels of a VM: its name, and its group if it is in one.
fn vm_labels<'s>(stats: &'s Stats, vm: VmId, name: &'s str) -> Vec<(&'static str, &'s str)> {
    let group = stats.group_of(vm).map(|group| ("group", group));
    [("vm", name)].into_iter().chain(group).collect()
}

fn vm_memory(page: &mut Page, stats: &Stats) {
    for (name, help, part) in MEMORY {
        page.family(&format!("vm_memory_{name}_bytes"), Kind::Gauge, help);
        for (id, vm, _, counters) in &stats.vms {
            page.sample(&vm_labels(stats, *id, vm), part(&counters.memory).bytes());
        }
    }
}

fn vm_work(page: &mut Page, stats: &Stats) {
    let states =
        [VmState::Stopped, VmState::Starting, VmState::Running, VmState::Paused, VmState::Crashed];
    page.family("vm_state", Kind::StateSet, "State of the VM.");
    for (_, vm, now, _) in &stats.vms {
        for state in states {
            let is_now = u8::from(state == *now);
            page.sample(&[("vm", vm), ("ballast_vm_state", state_name(state))], is_now);
        }
    }
    page.family("vm_exits", Kind::Counter, "Exits of the virtual processor.");
    for (_, vm, _, counters) in &stats.vms {
        for (reason, count) in EXIT_KINDS.iter().zip(counters.exits) {
            page.sample(&[("vm", vm), ("reason", reason)], count);
        }
    }
    page.family("vm_vcpu_seconds", Kind::Counter, "Time of the virtual processor and its server.");
    for (_, vm, _, counters) in &stats.vms {
        page.sample(&[("vm", vm)], seconds(counters.vcpu_time));
    }
}

/// Name of a VM; empty without one.
fn vm_name(stats: &Stats, vm: Option<VmId>) -> &str {
    let vm = vm.and_then(|id| stats.vms.iter().find(|(vm, ..)| *vm == id));
    vm.map_or("", |(_, name, ..)| name)
}

/// A client of a disk with the names it is labelled by.
struct Named<'s> {
    client: &'s DiskClient,
    vm: String,
    disk: String,
}

impl Named<'_> {
    /// Its labels, and more behind them. A disk whose VM is in no group has no `group`.
    fn labels<'l>(&'l self, more: &[(&'l str, &'l str)]) -> Vec<(&'l str, &'l str)> {
        let group = self.client.group.as_deref().map(|group| ("group", group));
        let own = [("vm", self.vm.as_str()), ("disk", self.disk.as_str())];
        own.into_iter().chain(group).chain(more.iter().copied()).collect()
    }
}

fn clients(stats: &Stats) -> Vec<Named<'_>> {
    let names = stats.disk_clients.iter().map(|client| {
        let vm = vm_name(stats, client.vm).to_owned();
        Named { client, vm, disk: disk_name(client) }
    });
    names.collect()
}

fn disk_rates(page: &mut Page, stats: &Stats) {
    let clients = clients(stats);
    page.family("vm_disk_requests", Kind::Counter, "Requests completed.");
    for named in &clients {
        let c = &named.client.stats;
        for (op, count) in [("read", c.reads), ("write", c.writes), ("flush", c.flushes)] {
            page.sample(&named.labels(&[("op", op)]), count);
        }
    }
    page.family("vm_disk_bytes", Kind::Counter, "Bytes moved.");
    for named in &clients {
        for (op, count) in
            [("read", named.client.stats.read_bytes), ("write", named.client.stats.written_bytes)]
        {
            page.sample(&named.labels(&[("op", op)]), count);
        }
    }
    page.family("vm_disk_errors", Kind::Counter, "Requests completed with an error.");
    for named in &clients {
        page.sample(&named.labels(&[]), named.client.stats.errors);
    }
    latencies(page, &clients);
    type Quantiles = fn(&DiskClient) -> (Nanos, Nanos);
    let times: [(&str, &str, Quantiles); 2] = [
        ("queue", "In the scheduler's queue.", |c| (c.stats.queue_p50, c.stats.queue_p99)),
        ("device", "In the device.", |c| (c.stats.device_p50, c.stats.device_p99)),
    ];
    for (name, help, quantiles) in times {
        page.family(&format!("vm_disk_{name}_seconds"), Kind::Summary, help);
        for named in &clients {
            let (p50, p99) = quantiles(named.client);
            for (quantile, time) in [("0.5", p50), ("0.99", p99)] {
                page.sample(&named.labels(&[("quantile", quantile)]), seconds(time));
            }
        }
    }
    page.family(
        "io_phase",
        Kind::Counter,
        "Requests by the rule of the scheduler that let them go.",
    );
    for named in &clients {
        let c = &named.client.stats;
        for (phase, count) in [("reservation", c.by_reservation), ("weight", c.by_weight)] {
            page.sample(&named.labels(&[("phase", phase)]), count);
        }
    }
}

fn latencies(page: &mut Page, clients: &[Named<'_>]) {
    let help = "From the doorbell to completion.";
    page.family("vm_disk_latency_seconds", Kind::Histogram, help);
    for named in clients {
        let mut sum = 0;
        for (at, count) in named.client.stats.latency_counts.iter().enumerate() {
            sum += u64::from(*count);
            let bound = LATENCY_BOUNDS.get(at).map_or("+Inf".to_owned(), |bound| {
                let seconds = seconds(*bound);
                if seconds.fract() == 0.0 { format!("{seconds:.1}") } else { seconds.to_string() }
            });
            page.sample_of("_bucket", &named.labels(&[("le", &bound)]), sum);
        }
        page.sample_of("_count", &named.labels(&[]), sum);
        let total = seconds(named.client.stats.latency_sum);
        page.sample_of("_sum", &named.labels(&[]), total);
    }
}

/// One figure of a claim: its name, and how to find it.
type ClaimPart = (&'static str, fn(&IoControl) -> u64);

/// The figures of a claim on the disk, a virtual disk's or a group's.
const CLAIM: [ClaimPart; 5] = [
    ("io_reservation_rate", |io| io.reservation.into()),
    ("io_limit_rate", |io| io.limit.unwrap_or(0).into()),
    ("io_reservation_rate_bytes", |io| io.reservation_bytes),
    ("io_limit_rate_bytes", |io| io.limit_bytes.unwrap_or(0)),
    ("io_shares", |io| io.shares.into()),
];

fn disk_claims(page: &mut Page, stats: &Stats) {
    let clients = clients(stats);
    type Part = fn(&ClientStats) -> u32;
    let waiting: [(&str, &str, Part); 2] = [
        ("io_queued_requests", "Waiting in the scheduler.", |stats| stats.queued),
        ("io_device_requests", "In the device.", |stats| stats.in_device),
    ];
    for (name, help, part) in waiting {
        page.family(name, Kind::Gauge, help);
        for named in &clients {
            page.sample(&named.labels(&[]), part(&named.client.stats));
        }
    }
    let helps = [
        "Requests per second it always gets.",
        "Requests per second it never exceeds; 0 for none.",
        "Bytes per second it always gets.",
        "Bytes per second it never exceeds; 0 for none.",
        "Its weight.",
    ];
    for ((name, part), help) in CLAIM.into_iter().zip(helps) {
        page.family(name, Kind::Gauge, help);
        for named in &clients {
            page.sample(&named.labels(&[]), part(&named.client.control));
        }
    }
    if stats.disks.is_empty() {
        return;
    }
    let number = |disk: DiskId| disk.0.to_string();
    page.family("io_policy", Kind::Info, "The schedulers' policy.");
    for (disk, stats) in &stats.disks {
        page.sample(&[("on", &number(*disk)), ("policy", policy_name(stats.policy))], 1);
    }
    type Figure = fn(&DiskStats) -> u32;
    let parts: [(&str, &str, Figure); 3] = [
        ("io_depth_requests", "Requests the device may have at once.", |disk| disk.depth),
        ("io_capacity_rate", "Requests per second it gives; 0 if not known.", |disk| disk.capacity),
        ("io_reserved_rate", "Requests per second promised.", |disk| disk.reserved),
    ];
    for (name, help, figure) in parts {
        page.family(name, Kind::Gauge, help);
        for (disk, stats) in &stats.disks {
            page.sample(&[("on", &number(*disk))], figure(stats));
        }
    }
    if stats.disks.iter().any(|(_, disk)| disk.is_modelled) {
        let help = "Requests answered later than the modelled disk wanted.";
        page.family("io_later_than_model_requests", Kind::Counter, help);
        for (disk, stats) in &stats.disks {
            page.sample(&[("on", &number(*disk))], stats.late);
        }
    }
}

fn servers(page: &mut Page, stats: &Stats) {
    page.family("server_time_seconds", Kind::Counter, "Processor time charged to the server.");
    for (server, counters) in &stats.servers {
        page.sample(&[("server", &server_name(*server))], seconds(counters.time));
    }
    page.family("server_restarts", Kind::Counter, "Times it was started again.");
    for (server, counters) in &stats.servers {
        page.sample(&[("server", &server_name(*server))], counters.restarts);
    }
    page.family("server_logs_lost", Kind::Counter, "Log frames lost.");
    for (server, counters) in &stats.servers {
        page.sample(&[("server", &server_name(*server))], counters.logs_lost);
    }
}

/// Everything else that has a name, as gauges in base units: the target does not say what only grows.
fn terms(page: &mut Page, stats: &Stats) {
    let names = stats.terms.iter().map(|term| term.name.as_str());
    let mut names: Vec<&str> = names.filter(|name| !counted::is_counted(name)).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let of_name = || stats.terms.iter().filter(|term| term.name == name);
        let Some(unit) = of_name().next().map(|term| term.unit) else { continue };
        let word = name.replace(['.', '-'], "_");
        let family = match unit {
            Unit::Pages | Unit::Bytes => word.trim_end_matches("_bytes").to_owned() + "_bytes",
            Unit::Nanos => word + "_seconds",
            Unit::Permille => word + "_ratio",
            Unit::PerSecond => word + "_rate",
            Unit::Count => word,
        };
        page.family(&format!("term_{family}"), Kind::Gauge, &format!("The term {name}."));
        for term in of_name().filter(|term| term.unit == unit) {
            let server = server_name(term.server);
            let labels = [("server", server.as_str()), ("vm", vm_name(stats, term.vm))];
            match unit {
                Unit::Pages => page.sample(&labels, term.value.saturating_mul(4096)),
                Unit::Nanos => page.sample(&labels, seconds(Nanos(term.value))),
                Unit::Permille => page.sample(&labels, term.value as f64 / 1e3),
                Unit::Bytes | Unit::Count | Unit::PerSecond => page.sample(&labels, term.value),
            }
        }
    }
}
