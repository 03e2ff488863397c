//! What the host command prints: tables, `top`, events, and the same as JSON.

pub mod disk;
pub mod group;

use crate::session::{DiskClient, Line, refusal_text, server_name};
use protocol::link::{
    EXIT_KINDS, Event, MachineStats, ServerId, StopReason, Unit, VmState, VmStats,
};
use protocol::mem::PressureState;
use protocol::units::{DiskId, Nanos, Pages, VmId};
use serde_json::{Map, Value, json};

/// A plain table: columns as wide as their widest cell, numbers to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text, one line a row.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column: usize| {
            self.rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0)
        };
        let is_number = |column: usize| {
            self.rows.iter().skip(1).all(|row| {
                let text = cell(row, column);
                text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            })
        };
        let shape: Vec<(usize, bool)> = (0..columns).map(|c| (width(c), is_number(c))).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (width, right)) in shape.iter().enumerate() {
                let text = cell(row, column);
                let pad = " ".repeat(width.saturating_sub(text.chars().count()));
                let parts = if *right { [pad, text] } else { [text, pad] };
                line.push_str(&parts.concat());
                line.push_str("  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

fn mib(pages: Pages) -> String {
    format!("{:.1}M", pages.bytes() as f64 / f64::from(1 << 20))
}

fn millis(time: Nanos) -> String {
    format!("{:.2}ms", time.0 as f64 / 1e6)
}

fn seconds(time: Nanos) -> String {
    format!("{:.3}s", time.0 as f64 / 1e9)
}

/// Name of a state as users see it.
pub const fn state_name(state: VmState) -> &'static str {
    match state {
        VmState::Stopped => "stopped",
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Crashed => "crashed",
    }
}

/// `vm list`.
pub fn vm_list(lines: &[Line]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "STATE"]);
    for line in lines {
        if let Line::Vm { vm, name, state, .. } = line {
            table.row(vec![vm.0.to_string(), name.clone(), state_name(*state).to_owned()]);
        }
    }
    table
}

/// `vm list --json`: one object a VM, states as in the table.
pub fn vm_list_json(lines: &[Line]) -> Value {
    let vm = |line: &Line| match line {
        Line::Vm { vm, name, state, .. } => {
            Some(json!({"id": vm.0, "name": name, "state": state_name(*state)}))
        }
        _ => None,
    };
    lines.iter().filter_map(vm).collect()
}

/// `caps`.
pub fn caps(lines: &[Line]) -> Table {
    let mut table = Table::new(&["HOLDER", "SLOT", "OBJECT", "RIGHTS", "FOR"]);
    for line in lines {
        if let Line::Cap { server, slot, kind, rights, purpose } = line {
            let letters = [(1, 'w'), (2, 'r'), (4, 'g'), (8, 'p')];
            let rights = letters.iter().map(|(bit, c)| if rights & bit == 0 { '-' } else { *c });
            table.row(vec![
                server_name(*server),
                slot.to_string(),
                kind.clone(),
                rights.collect(),
                purpose.clone(),
            ]);
        }
    }
    table
}

/// `explain`: the named numbers.
pub fn terms(lines: &[Line]) -> Table {
    let mut table = Table::new(&["SERVER", "TERM", "VALUE", "UNIT"]);
    for line in lines {
        if let Line::Term { server, name, value, unit, .. } = line {
            let unit = format!("{unit:?}").to_lowercase();
            table.row(vec![server_name(*server), name.clone(), value.to_string(), unit]);
        }
    }
    table
}

/// A named number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The server whose number it is.
    pub server: ServerId,
    /// The VM it is about.
    pub vm: Option<VmId>,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// Its unit.
    pub unit: Unit,
}

/// All that `stats` answers, sorted out.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// The machine.
    pub machine: MachineStats,
    /// VMs in order.
    pub vms: Vec<(VmId, String, VmState, VmStats)>,
    /// Servers in order.
    pub servers: Vec<(ServerId, protocol::link::ServerStats)>,
    /// Everything else that has a name.
    pub terms: Vec<Term>,
    /// Clients of the disk.
    pub disk_clients: Vec<DiskClient>,
    /// Disks of the machine, in order.
    pub disks: Vec<(DiskId, protocol::io::DiskStats)>,
    /// Groups of VMs.
    pub groups: Vec<group::Group>,
}

impl Stats {
    /// Sorts the lines of one answer.
    pub fn from_lines(lines: &[Line]) -> Self {
        let mut stats = Self::default();
        for line in lines {
            match line {
                Line::Vm { vm, name, state, group } => {
                    stats.vms.push((*vm, name.clone(), *state, VmStats::default()));
                    if let Some(group) = group {
                        stats.group_mut(group).members.push(*vm);
                    }
                }
                Line::VmStats { vm, stats: counters } => {
                    let known = stats.vms.iter_mut().find(|(id, ..)| id == vm);
                    if let Some((.., place)) = known {
                        *place = *counters;
                    }
                }
                Line::Server { server, stats: counters } => {
                    stats.servers.push((*server, *counters));
                }
                Line::Machine { stats: machine } => stats.machine = *machine,
                Line::Term { server, vm, name, value, unit } => {
                    let (server, vm, value, unit) = (*server, *vm, *value, *unit);
                    stats.terms.push(Term { server, vm, name: name.clone(), value, unit });
                }
                Line::DiskClient(client) => stats.disk_clients.push(client.clone()),
                Line::Disk { disk, stats: figures } => stats.disks.push((*disk, *figures)),
                Line::Group { group, memory, io } => {
                    let group = stats.group_mut(group);
                    (group.memory, group.io) = (*memory, *io);
                }
                Line::GroupDisk { group, on, stats: figures } => {
                    stats.group_mut(group).disks.push((*on, *figures));
                }
                Line::Cap { .. } => {}
            }
        }
        stats
    }

    /// Figures of the machine's first disk, if its server answered.
    pub fn disk(&self) -> Option<&protocol::io::DiskStats> {
        self.disks.first().map(|(_, stats)| stats)
    }

    /// A figure of a server about no VM in particular, by name; 0 if no server told it.
    pub fn counter(&self, name: &str) -> u64 {
        let found = self.terms.iter().find(|term| term.vm.is_none() && term.name == name);
        found.map_or(0, |term| term.value)
    }

    fn vm_name(&self, id: VmId) -> Option<&str> {
        self.vms.iter().find(|(vm, ..)| *vm == id).map(|(_, name, ..)| name.as_str())
    }

    /// One object: machine, VMs by name, servers by name, terms by server.
    pub fn json(&self) -> Value {
        let vms = self.vms.iter().map(|(id, name, state, stats)| {
            let exits = EXIT_KINDS.iter().zip(stats.exits);
            let exits: Map<String, Value> =
                exits.map(|(kind, count)| ((*kind).to_owned(), count.into())).collect();
            let memory = &stats.memory;
            let disk = &stats.disk;
            let value = json!({
                "id": id.0,
                "state": state_name(*state),
                "memory": {
                    "size_bytes": memory.size.bytes(),
                    "granted_bytes": memory.granted.bytes(),
                    "active_bytes": memory.active.bytes(),
                    "shared_bytes": memory.shared.bytes(),
                    "saved_bytes": memory.saved.bytes(),
                    "balloon_bytes": memory.balloon.bytes(),
                    "balloon_target_bytes": memory.balloon_target.bytes(),
                    "swapped_bytes": memory.swapped.bytes(),
                    "compressed_bytes": memory.compressed.bytes(),
                    "overhead_bytes": memory.overhead.bytes(),
                    "touched_bytes": memory.touched.bytes(),
                    "swap_target_bytes": memory.swap_target.bytes(),
                    "tax_paid_bytes": memory.tax_paid.bytes(),
                    "target_bytes": memory.target.bytes(),
                    "large_bytes": memory.large.bytes(),
                },
                "exits_total": exits,
                "vcpu_seconds_total": stats.vcpu_time.0 as f64 / 1e9,
                "disk": {
                    "reads_total": disk.reads,
                    "writes_total": disk.writes,
                    "flushes_total": disk.flushes,
                    "read_bytes_total": disk.read_bytes,
                    "written_bytes_total": disk.written_bytes,
                    "errors_total": disk.errors,
                    "latency_p50_seconds": disk.p50.0 as f64 / 1e9,
                    "latency_p99_seconds": disk.p99.0 as f64 / 1e9,
                },
            });
            (name.clone(), value)
        });
        let terms = self.terms.iter().map(|term| {
            let vm = term.vm.and_then(|vm| self.vm_name(vm));
            let server = server_name(term.server);
            json!({"server": server, "vm": vm, "name": term.name, "value": term.value})
        });
        json!({
            "machine": {
                "uptime_seconds": self.machine.uptime.0 as f64 / 1e9,
                "memory_bytes": self.machine.memory.bytes(),
                "kernel_memory_bytes": self.machine.kernel_memory.bytes(),
                "free_bytes": self.machine.free.bytes(),
                "memory_state": self.machine.memory_state,
            },
            "vms": Value::Object(vms.collect()),
            "servers": self.servers_json(),
            "terms": terms.collect::<Vec<_>>(),
            "disk": self.disk_json(),
            "groups": self.groups_json(),
        })
    }

    /// One object, servers by name.
    fn servers_json(&self) -> Value {
        let servers = self.servers.iter().map(|(server, stats)| {
            let value = json!({
                "time_seconds_total": stats.time.0 as f64 / 1e9,
                "restarts_total": stats.restarts,
                "logs_lost_total": stats.logs_lost,
            });
            (server_name(*server), value)
        });
        Value::Object(servers.collect())
    }

    /// The screen of `top`: rates against `before`, an earlier answer.
    pub fn top(&self, before: Option<&Self>) -> String {
        let machine = &self.machine;
        let mut out = self.machine_line();
        let elapsed = before.map_or(machine.uptime.0, |before| {
            machine.uptime.0.saturating_sub(before.machine.uptime.0)
        });
        let elapsed = (elapsed.max(1)) as f64 / 1e9;
        let mut headings = vec!["VM", "STATE", "MEMSZ", "GRANT", "ACTV", "VCPU", "EXITS/S"];
        headings.extend(EXIT_KINDS);
        headings.extend(["RD/S", "WR/S", "LAT50", "LAT99"]);
        let mut table = Table::new(&headings);
        for (id, name, vm_state, stats) in &self.vms {
            let earlier = before.and_then(|b| b.vms.iter().find(|(vm, ..)| vm == id));
            let earlier = earlier.map_or(VmStats::default(), |(.., stats)| *stats);
            let rate =
                |now: u64, then: u64| format!("{:.0}", now.saturating_sub(then) as f64 / elapsed);
            let memory = &stats.memory;
            let mut cells = vec![
                name.clone(),
                state_name(*vm_state).to_owned(),
                mib(memory.size),
                mib(memory.granted),
                mib(memory.active),
                seconds(stats.vcpu_time),
                rate(stats.exits.iter().sum(), earlier.exits.iter().sum()),
            ];
            cells.extend(stats.exits.iter().zip(earlier.exits).map(|(now, then)| rate(*now, then)));
            let disk = &stats.disk;
            cells.push(rate(disk.reads, earlier.disk.reads));
            cells.push(rate(disk.writes, earlier.disk.writes));
            cells.extend([millis(disk.p50), millis(disk.p99)]);
            table.row(cells);
        }
        out.push_str(&table.text());
        out.push('\n');
        let mut table = Table::new(&["SERVER", "TIME", "RESTARTS"]);
        for (server, stats) in &self.servers {
            let cells = vec![server_name(*server), seconds(stats.time), stats.restarts.to_string()];
            table.row(cells);
        }
        out.push_str(&table.text());
        out
    }

    /// The screen of `top mem`, with esxtop's words.
    pub fn top_memory(&self) -> String {
        let mut table = Table::new(&[
            "VM", "MEMSZ", "GRANT", "TGT", "TCHD", "ACTV", "SHRD", "SHRDSVD", "ZIP", "SWCUR",
            "SWTGT", "MCTLSZ", "MCTLTGT", "TAX", "OVHD", "LARGE",
        ]);
        for (_, name, _, stats) in &self.vms {
            let m = &stats.memory;
            let mut cells = vec![name.clone()];
            cells.extend(
                [
                    m.size,
                    m.granted,
                    m.target,
                    m.touched,
                    m.active,
                    m.shared,
                    m.saved,
                    m.compressed,
                    m.swapped,
                    m.swap_target,
                    m.balloon,
                    m.balloon_target,
                    m.tax_paid,
                    m.overhead,
                    m.large,
                ]
                .map(mib),
            );
            table.row(cells);
        }
        format!("{}{}", self.machine_line(), table.text())
    }

    /// Time, memory and pressure of the machine.
    fn machine_line(&self) -> String {
        let machine = &self.machine;
        let state = ["high", "soft", "hard", "low"];
        let state = state.get(usize::from(machine.memory_state)).unwrap_or(&"?");
        format!(
            "up {}   memory {} (servers {}, free {})   state {state}\n\n",
            seconds(machine.uptime),
            mib(machine.memory),
            mib(machine.kernel_memory),
            mib(machine.free),
        )
    }
}

const fn pressure_name(state: PressureState) -> &'static str {
    match state {
        PressureState::High => "high",
        PressureState::Soft => "soft",
        PressureState::Hard => "hard",
        PressureState::Low => "low",
    }
}

fn stop_reason(reason: StopReason) -> String {
    match reason {
        StopReason::PowerOff => "powered itself off".to_owned(),
        StopReason::Requested => "stopped on request".to_owned(),
        StopReason::TripleFault { ip } => format!("triple fault at {ip:#x}"),
        StopReason::Unsupported { ip, code } => {
            format!("did what is not supported at {ip:#x} (exit code {code:#x})")
        }
        StopReason::BadImage => "its image could not be loaded".to_owned(),
        StopReason::Memory => "its memory was lost with the mem-server".to_owned(),
        StopReason::ServerFault => "its vmm-server was ended by a fault".to_owned(),
        StopReason::PageLost { gfn } => {
            format!(
                "the swap disk lost its page at {:#x}; `ballast vm start` begins anew",
                gfn.gpa()
            )
        }
        StopReason::Refused(refusal) => format!("not started: {}", refusal_text(refusal)),
    }
}

/// One event as a log line.
pub fn event_line(at: Nanos, event: Event) -> String {
    let text = match event {
        Event::VmState { vm, state } => format!("vm {}: {}", vm.0, state_name(state)),
        Event::VmStopped { vm, reason } => format!("vm {}: {}", vm.0, stop_reason(reason)),
        Event::VmRebooted { vm } => format!("vm {}: rebooted", vm.0),
        Event::ServerFault { server, label, ip, address } => {
            format!("{}: fault {label} at {ip:#x}, address {address:#x}", server_name(server))
        }
        Event::ServerRestarted { server, downtime } => {
            format!("{}: restarted after {}", server_name(server), millis(downtime))
        }
        Event::Ready => "all servers run".to_owned(),
        Event::MemoryPressure { from, to, free } => {
            let (from, to) = (pressure_name(from), pressure_name(to));
            format!("memory {from} -> {to}, {} MiB free", mib(free))
        }
    };
    format!("[{:>12.6}] root-task: {text}", at.0 as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::{Stats, Table, event_line};
    use crate::session::Line;
    use protocol::link::{Event, ServerId, ServerStats, VmState, VmStats};
    use protocol::units::{Nanos, VmId};

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "N"]);
        table.row(vec!["a".to_owned(), "10".to_owned()]);
        table.row(vec!["long".to_owned(), "9".to_owned()]);
        assert_eq!(table.text(), "NAME   N\na     10\nlong   9\n");
    }

    #[test]
    fn stats_are_one_object() {
        let vm = VmId(0);
        let stats = VmStats { exits: [1, 2, 3, 4, 5, 6, 7, 8], ..VmStats::default() };
        let lines = [
            Line::Vm { vm, name: "web".to_owned(), state: VmState::Running, group: None },
            Line::VmStats { vm, stats },
            Line::Server { server: ServerId::Mem, stats: ServerStats::default() },
        ];
        let stats = Stats::from_lines(&lines);
        let json = stats.json();
        assert_eq!(json["vms"]["web"]["exits_total"]["cpuid"], 1);
        assert_eq!(json["vms"]["web"]["state"], "running");
        assert_eq!(json["servers"]["mem-server"]["restarts_total"], 0);
        assert_eq!(super::vm_list_json(&lines)[0]["state"], "running");
        assert!(stats.top(None).contains("web"));
        assert!(stats.top_memory().contains("MCTLTGT"));
    }

    #[test]
    fn an_event_is_one_line() {
        let event = Event::VmState { vm: VmId(1), state: VmState::Running };
        let line = event_line(Nanos(1_500_000_000), event);
        assert_eq!(line, "[    1.500000] root-task: vm 1: running");
    }
}
