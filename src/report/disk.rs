//! The disk's figures: `top io`, `explain`, JSON.

use super::{Stats, Table, millis};
use crate::session::{DiskClient, Line};
use protocol::io::{ClientStats, DiskStats, Policy, WaitsFor};
use protocol::units::DiskId;
use serde_json::{Value, json};

/// Name of a policy as users write it.
pub const fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::MClock => "mclock",
        Policy::Sfq => "sfq",
        Policy::RoundRobin => "round-robin",
    }
}

/// Why a request waits, in one word.
const fn wait_word(waits: WaitsFor) -> &'static str {
    match waits {
        WaitsFor::Nothing => "-",
        WaitsFor::Device => "device",
        WaitsFor::Limit => "limit",
        WaitsFor::GroupLimit => "group-limit",
        WaitsFor::Turn => "turn",
        WaitsFor::Flush => "flush",
    }
}

/// Why a request waits, in a sentence.
const fn wait_text(waits: WaitsFor) -> &'static str {
    match waits {
        WaitsFor::Nothing => "nothing waits",
        WaitsFor::Device => "the device has as many requests as its latency allows",
        WaitsFor::Limit => "its own limit does not let the next request go yet",
        WaitsFor::GroupLimit => {
            "its group's limit, or that of all disks of its VM, does not let the next request go yet"
        }
        WaitsFor::Turn => "others are due first by their reservations or shares",
        WaitsFor::Flush => "a flush waits for the requests before it",
    }
}

fn number_or_none(value: impl Into<u64>) -> String {
    match value.into() {
        0 => "-".to_owned(),
        value => value.to_string(),
    }
}

fn lead_millis(lead: Option<i64>) -> String {
    lead.map_or_else(|| "-".to_owned(), |nanos| format!("{:.1}", nanos as f64 / 1e6))
}

/// Name of a virtual disk within its VM, with the part if it has several; of a server's own partition, that.
pub fn disk_name(client: &DiskClient) -> String {
    match client.part {
        _ if client.vm.is_none() => client.partition.clone(),
        (part, parts) if parts > 1 => format!("disk{}.{part}", client.disk),
        _ => format!("disk{}", client.disk),
    }
}

fn label(client: &DiskClient, vm_name: Option<&str>) -> String {
    match vm_name {
        Some(name) => format!("{name}/{}", disk_name(client)),
        None => disk_name(client),
    }
}

const fn commands(stats: &ClientStats) -> u64 {
    stats.reads + stats.writes + stats.flushes
}

impl Stats {
    fn disk_label(&self, client: &DiskClient) -> String {
        label(client, client.vm.and_then(|vm| self.vm_name(vm)))
    }

    /// The screen of `top io`: rates against `before`, an earlier answer, or since boot.
    pub fn top_disk(&self, before: Option<&Self>) -> String {
        let then = before.map_or(0, |before| before.machine.uptime.0);
        let seconds = self.machine.uptime.0.saturating_sub(then).max(1) as f64 / 1e9;
        let mut out = String::new();
        for (disk, stats) in &self.disks {
            out.push_str(&disk_line(*disk, stats));
            out.push('\n');
        }
        if self.disks.is_empty() {
            out.push_str("disk: its server does not answer\n");
        }
        out.push('\n');
        let mut table = Table::new(&[
            "DISK", "CMDS/S", "RD/S", "WR/S", "MBRD/S", "MBWR/S", "RSV%", "QUED", "ACTV", "QAVG50",
            "QAVG99", "DAVG50", "DAVG99", "RSV", "LIM", "SHR", "RLEAD", "LLEAD", "SLEAD", "WAITS",
        ]);
        for client in &self.disk_clients {
            let key = |c: &DiskClient| (c.vm, c.disk, c.part, c.on);
            let is_it = |c: &&DiskClient| key(c) == key(client);
            let earlier = before.and_then(|before| before.disk_clients.iter().find(is_it));
            let earlier = earlier.map_or(ClientStats::default(), |client| client.stats);
            table.row(self.disk_row(client, &earlier, seconds));
        }
        out.push_str(&table.text());
        out
    }

    fn disk_row(&self, client: &DiskClient, earlier: &ClientStats, seconds: f64) -> Vec<String> {
        let (stats, control) = (&client.stats, &client.control);
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let count = |now: u64, then: u64| format!("{:.0}", per_second(now, then));
        let megabytes = |now: u64, then: u64| format!("{:.2}", per_second(now, then) / 1e6);
        let by_reservation = stats.by_reservation.saturating_sub(earlier.by_reservation);
        let by_weight = stats.by_weight.saturating_sub(earlier.by_weight);
        let share = by_reservation * 100 / (by_reservation + by_weight).max(1);
        vec![
            self.disk_label(client),
            count(commands(stats), commands(earlier)),
            count(stats.reads, earlier.reads),
            count(stats.writes, earlier.writes),
            megabytes(stats.read_bytes, earlier.read_bytes),
            megabytes(stats.written_bytes, earlier.written_bytes),
            share.to_string(),
            stats.queued.to_string(),
            stats.in_device.to_string(),
            millis(stats.queue_p50),
            millis(stats.queue_p99),
            millis(stats.device_p50),
            millis(stats.device_p99),
            number_or_none(control.reservation),
            number_or_none(control.limit.unwrap_or(0)),
            control.shares.to_string(),
            lead_millis(stats.lead.reservation),
            lead_millis(stats.lead.limit),
            format!("{:.1}", stats.lead.share as f64 / 1e3),
            wait_word(stats.waits_for).to_owned(),
        ]
    }

    /// The machine's disks as JSON: themselves, and their clients by name.
    pub(super) fn disk_json(&self) -> Value {
        let clients = self.disk_clients.iter().map(|client| {
            (self.disk_label(client), serde_json::to_value(client).unwrap_or_default())
        });
        let clients: serde_json::Map<String, Value> = clients.collect();
        let disks = self.disks.iter().map(|(number, disk)| {
            json!({
                "disk": number.0,
                "policy": policy_name(disk.policy),
                "completed_total": disk.completed,
                "depth": disk.depth,
                "in_device": disk.in_device,
                "capacity_requests_per_second": disk.capacity,
                "reserved_requests_per_second": disk.reserved,
                "reference_cost_seconds": disk.reference_cost.0 as f64 / 1e9,
                "modelled": disk.is_modelled,
                "later_than_model_total": disk.late,
            })
        });
        json!({"devices": disks.collect::<Vec<_>>(), "clients": clients})
    }
}

fn disk_line(number: DiskId, disk: &DiskStats) -> String {
    let capacity = match disk.capacity {
        0 => "not learnt yet (it never was busy)".to_owned(),
        capacity => format!("{capacity}/s"),
    };
    let model = if disk.is_modelled {
        format!("   modelled ({} of {} requests later than the model)", disk.late, disk.completed)
    } else {
        String::new()
    };
    format!(
        "disk {}: policy {}   capacity {capacity}   reserved {}/s   depth {} ({} in the device)   \
         reference request {}{model}",
        number.0,
        policy_name(disk.policy),
        disk.reserved,
        disk.depth,
        disk.in_device,
        millis(disk.reference_cost),
    )
}

/// What `explain` says about a VM's disks.
pub fn explain(lines: &[Line]) -> String {
    let mut out = String::new();
    for line in lines {
        match line {
            Line::DiskClient(client) => out.push_str(&explain_client(client)),
            Line::Disk { disk, stats } => {
                out.push_str(&disk_line(*disk, stats));
                out.push('\n');
            }
            _ => {}
        }
    }
    out
}

fn explain_client(client: &DiskClient) -> String {
    let (stats, control) = (&client.stats, &client.control);
    let group = client.group.as_ref().map_or(String::new(), |group| format!(", group {group}"));
    format!(
        "{} ({} on disk {}{group}): {} waiting, {} in the device: {}\n  \
         reservation {}/s {} B/s, limit {}/s {} B/s, shares {}, burst {}\n  \
         served by reservation {}, by shares {}; ahead of its clocks: reservation {} ms, limit {} \
         ms, shares {:.1} requests\n",
        disk_name(client),
        client.partition,
        client.on.0,
        stats.queued,
        stats.in_device,
        wait_text(stats.waits_for),
        number_or_none(control.reservation),
        number_or_none(control.reservation_bytes),
        number_or_none(control.limit.unwrap_or(0)),
        number_or_none(control.limit_bytes.unwrap_or(0)),
        control.shares,
        control.burst,
        stats.by_reservation,
        stats.by_weight,
        lead_millis(stats.lead.reservation),
        lead_millis(stats.lead.limit),
        stats.lead.share as f64 / 1e3,
    )
}

#[cfg(test)]
mod tests {
    use super::{Stats, Value, explain};
    use crate::session::{DiskClient, Line};
    use protocol::io::{ClientStats, DiskStats, Lead, WaitsFor};
    use protocol::link::{MachineStats, VmState};
    use protocol::system::IoControl;
    use protocol::units::{DiskId, Nanos, VmId};

    fn lines(seconds: u64, reads: u64) -> [Line; 4] {
        let vm = VmId(0);
        let machine = MachineStats { uptime: Nanos::from_secs(seconds), ..MachineStats::default() };
        let stats = ClientStats {
            reads,
            by_reservation: reads / 4,
            by_weight: reads - reads / 4,
            waits_for: WaitsFor::GroupLimit,
            lead: Lead { reservation: Some(-2_500_000), limit: None, share: 1500 },
            ..ClientStats::default()
        };
        let control = IoControl { reservation: 20, ..IoControl::default() };
        let client = DiskClient {
            vm: Some(vm),
            disk: 0,
            partition: "web".to_owned(),
            group: Some("tenant".to_owned()),
            control,
            stats,
            part: (0, 1),
            on: DiskId(0),
        };
        [
            Line::Vm { vm, name: "web".to_owned(), state: VmState::Running, group: None },
            Line::Machine { stats: machine },
            Line::DiskClient(client),
            Line::Disk { disk: DiskId(0), stats: DiskStats::default() },
        ]
    }

    #[test]
    fn rates_are_between_two_answers() {
        let before = Stats::from_lines(&lines(10, 1000));
        let now = Stats::from_lines(&lines(12, 1800));
        let text = now.top_disk(Some(&before));
        let row = text.lines().find(|line| line.starts_with("web/disk0")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[1..3], ["400", "400"], "{text}");
        assert_eq!(cells[6], "25", "a quarter by reservation: {text}");
        assert_eq!(cells[16..], ["-2.5", "-", "1.5", "group-limit"], "{text}");
    }

    #[test]
    fn a_modelled_disk_is_shown_as_one() {
        let mut lines = lines(1, 8);
        assert!(!explain(&lines).contains("modelled"));
        let stats = DiskStats { is_modelled: true, late: 3, completed: 70, ..DiskStats::default() };
        lines[3] = Line::Disk { disk: DiskId(0), stats };
        let text = explain(&lines);
        assert!(text.contains("modelled (3 of 70 requests later than the model)"), "{text}");
    }

    #[test]
    fn the_reason_is_a_sentence() {
        let text = explain(&lines(1, 8));
        assert!(text.contains("its group's limit"), "{text}");
        assert!(text.contains("disk0 (web on disk 0, group tenant):"), "{text}");
        assert!(text.contains("not learnt yet"), "{text}");
        assert!(!explain(&[]).contains("disk"));
    }

    #[test]
    fn swap_is_named_after_its_partition_with_its_claim() {
        let mut lines = lines(1, 8).to_vec();
        let Line::DiskClient(client) = &mut lines[2] else { panic!("the client's place") };
        (client.vm, client.group, client.partition) = (None, None, "swap".to_owned());
        let text = explain(&lines);
        assert!(text.contains("swap (swap on disk 0):") && text.contains("reservation 20/s"));
        let json = Stats::from_lines(&lines).json();
        let of_swap = &json["disk"]["clients"]["swap"];
        assert_eq!(
            (&of_swap["control"]["reservation"], &of_swap["group"]),
            (&20.into(), &Value::Null)
        );
        let table = Stats::from_lines(&lines).top_disk(None);
        assert!(table.lines().any(|line| line.starts_with("swap ")), "{table}");
    }

    #[test]
    fn the_group_is_in_the_json() {
        let json = Stats::from_lines(&lines(1, 8)).json();
        assert_eq!(json["disk"]["clients"]["web/disk0"]["group"], "tenant");
    }

    #[test]
    fn parts_of_a_striped_disk_are_told_apart() {
        let mut lines = lines(1, 8).to_vec();
        let Line::DiskClient(client) = &mut lines[2] else { panic!("the client's place") };
        client.part = (0, 2);
        let mut second = client.clone();
        (second.part, second.on) = ((1, 2), DiskId(1));
        second.stats.reads = 80;
        lines.push(Line::DiskClient(second));
        lines.push(Line::Disk { disk: DiskId(1), stats: DiskStats::default() });
        let text = Stats::from_lines(&lines).top_disk(None);
        for wanted in ["disk 0: policy", "disk 1: policy", "web/disk0.0", "web/disk0.1"] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        let text = explain(&lines);
        assert!(text.contains("disk0.1 (web on disk 1, group tenant)"), "{text}");
    }
}
