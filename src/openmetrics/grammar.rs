//! The exposition format's rules, as far as text of ours can break them, and the text held against them.
//!
//! Source: OpenMetrics 1.0, sections 4 and 5 (text format, metric types).

use super::{Stats, text};
use crate::report::Term;
use crate::session::{DiskClient, Line};
use protocol::io::{ClientStats, DiskStats, GroupStats, LATENCY_BOUNDS};
use protocol::link::{MachineStats, MemoryStats, ServerId, ServerStats, Unit, VmState, VmStats};
use protocol::system::{GroupMemory, IoControl};
use protocol::units::{DiskId, Pages, VmId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: Option<String>,
    has_help: bool,
    has_samples: bool,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Splits `{a="b",c="d"}` off; `None` if it is not that.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut found = BTreeMap::new();
    let Some(inner) = rest.strip_prefix('{') else { return Some((found, rest)) };
    rest = inner;
    loop {
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    c @ ('"' | '\\') => value.push(c),
                    _ => return None,
                },
                (_, '\n') => return None,
                (_, c) => value.push(c),
            }
        };
        if !is_name(name) || found.insert(name.to_owned(), value).is_some() {
            return None;
        }
        rest = after.get(end + 1..)?;
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Some((found, rest.strip_prefix('}')?)),
        }
    }
}

fn sample(line: &str, family: &str, kind: &str) -> Option<String> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let suffix = name.strip_prefix(family)?;
    let (labels, rest) = labels(rest)?;
    let value = rest.strip_prefix(' ')?;
    let number: f64 = value.parse().ok()?;
    let is_number_text = value.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let fits = match kind {
        "counter" => suffix == "_total" && number >= 0.0,
        "info" => suffix == "_info" && number == 1.0 && !labels.is_empty(),
        "gauge" => suffix.is_empty(),
        "stateset" => {
            suffix.is_empty() && labels.contains_key(family) && (number == 0.0 || number == 1.0)
        }
        "summary" => {
            let quantile = labels.get("quantile").and_then(|q| q.parse::<f64>().ok());
            suffix.is_empty() && quantile.is_some_and(|q| (0.0..=1.0).contains(&q)) && number >= 0.0
        }
        "histogram" => {
            let bound = labels.get("le").map(|le| le == "+Inf" || le.parse::<f64>().is_ok());
            let is_known = match suffix {
                "_bucket" => bound == Some(true),
                "_count" | "_sum" => bound.is_none(),
                _ => false,
            };
            is_known && number >= 0.0
        }
        _ => false,
    };
    (fits && is_number_text).then(|| format!("{name}{labels:?}"))
}

/// The first line that breaks a rule.
fn check(text: &str) -> Result<usize, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("no end")?;
    let mut seen = BTreeSet::new();
    let mut points = BTreeSet::new();
    let (mut name, mut family) = (String::new(), Family::default());
    for line in body.lines() {
        let wrong = || line.to_owned();
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let word = words.next().ok_or_else(wrong)?;
            let about = words.next().ok_or_else(wrong)?;
            let text = words.next().ok_or_else(wrong)?;
            if about != name {
                // Families do not interleave.
                if word != "TYPE" || !is_name(about) || !seen.insert(about.to_owned()) {
                    return Err(wrong());
                }
                (name, family) = (about.to_owned(), Family::default());
            }
            let is_new = match word {
                "TYPE" => core::mem::replace(&mut family.kind, text.to_owned()).is_empty(),
                "UNIT" => {
                    let is_suffix = name.ends_with(&format!("_{text}"));
                    family.unit.replace(text.to_owned()).is_none() && is_suffix
                }
                "HELP" => !core::mem::replace(&mut family.has_help, true),
                _ => false,
            };
            if !is_new || family.has_samples {
                return Err(wrong());
            }
        } else {
            let point = sample(line, &name, &family.kind).ok_or_else(wrong)?;
            family.has_samples = true;
            if !points.insert(point) {
                return Err(format!("twice: {line}"));
            }
        }
    }
    Ok(points.len())
}

/// A group with a VM in it and one without, on two disks.
fn groups() -> Vec<Line> {
    let mut lines = Vec::new();
    for name in ["tenant \"a\"", "empty"] {
        let group = name.to_owned();
        let memory =
            GroupMemory { reservation: Pages(256), shares: (name != "empty").then_some(9) };
        let io = IoControl { limit: Some(300), ..IoControl::default() };
        lines.push(Line::Group { group: group.clone(), memory, io });
        for on in [DiskId(0), DiskId(1)] {
            let stats = GroupStats { reads: 5, by_weight: 5, ..GroupStats::default() };
            lines.push(Line::GroupDisk { group: group.clone(), on, stats });
        }
    }
    lines
}

/// One of each unit, and two that are counted.
fn terms() -> Vec<Term> {
    let mut terms = Vec::new();
    let units =
        [Unit::Count, Unit::Pages, Unit::Nanos, Unit::Permille, Unit::PerSecond, Unit::Bytes];
    for (at, unit) in units.into_iter().enumerate() {
        let name = format!("some.term{at}");
        terms.push(Term { server: ServerId::Mem, vm: None, name, value: 3, unit });
    }
    let vm = Some(VmId(0));
    let name = "memory.faults.cow".to_owned();
    terms.push(Term { server: ServerId::Mem, vm, name, value: 7, unit: Unit::Count });
    let name = "sharing.scanned".to_owned();
    terms.push(Term { server: ServerId::Mem, vm: None, name, value: 9, unit: Unit::Count });
    let name = "server.bytes".to_owned();
    terms.push(Term { server: ServerId::Root, vm, name, value: 3, unit: Unit::Bytes });
    terms
}

fn full() -> Stats {
    let mut lines = Vec::new();
    for (id, name) in [(0, "web"), (1, "odd \"name\"\\")] {
        let vm = VmId(id);
        let group = (id == 1).then(|| "tenant \"a\"".to_owned());
        let state = VmState::Running;
        lines.push(Line::Vm { vm, name: name.to_owned(), state, group: group.clone() });
        let memory = MemoryStats { granted: Pages(2), ..MemoryStats::default() };
        lines.push(Line::VmStats {
            vm,
            stats: VmStats { exits: [7; 8], memory, ..VmStats::default() },
        });
        let latency_counts = [1; LATENCY_BOUNDS.len() + 1];
        let stats = ClientStats { latency_counts, ..ClientStats::default() };
        let control = IoControl::default();
        let partition = name.to_owned();
        lines.push(Line::DiskClient(DiskClient {
            vm: Some(vm),
            disk: 0,
            partition,
            group,
            control,
            stats,
            part: (0, 1),
            on: DiskId(0),
        }));
    }
    for part in [0, 1] {
        lines.push(Line::DiskClient(DiskClient {
            vm: Some(VmId(0)),
            disk: 1,
            partition: "wide".to_owned(),
            group: None,
            control: IoControl::default(),
            stats: ClientStats::default(),
            part: (part, 2),
            on: DiskId(part),
        }));
    }
    lines.push(Line::DiskClient(DiskClient {
        vm: None,
        disk: 0,
        partition: "swap".to_owned(),
        group: None,
        control: IoControl::default(),
        stats: ClientStats::default(),
        part: (0, 1),
        on: DiskId(0),
    }));
    let stats = DiskStats { is_modelled: true, ..DiskStats::default() };
    for disk in [DiskId(0), DiskId(1)] {
        lines.push(Line::Disk { disk, stats });
    }
    lines.extend(groups());
    lines.push(Line::Machine { stats: MachineStats::default() });
    for server in [ServerId::Root, ServerId::Mem, ServerId::Io(DiskId(0)), ServerId::Io(DiskId(1))]
    {
        lines.push(Line::Server { server, stats: ServerStats::default() });
    }
    let mut stats = Stats::from_lines(&lines);
    stats.terms = terms();
    stats
}

#[test]
fn the_text_keeps_the_grammar() {
    for stats in [full(), Stats::default()] {
        let text = text(&stats);
        assert!(check(&text).is_ok(), "{:?}\n{text}", check(&text));
    }
    let text = text(&full());
    assert!(check(&text).unwrap() > 100);
    for wanted in [
        "# TYPE ballast_vm_exits counter\n",
        "ballast_vm_exits_total{vm=\"web\",reason=\"cpuid\"} 7\n",
        "# UNIT ballast_vm_disk_bytes bytes\n",
        "ballast_vm_disk_latency_seconds_bucket{vm=\"web\",disk=\"disk0\",le=\"0.00025\"} 2\n",
        "ballast_vm_disk_latency_seconds_bucket{vm=\"web\",disk=\"disk0\",le=\"1.0\"} 12\n",
        "ballast_vm_disk_latency_seconds_bucket{vm=\"web\",disk=\"disk0\",le=\"+Inf\"} 14\n",
        "ballast_vm_disk_latency_seconds_count{vm=\"web\",disk=\"disk0\"} 14\n",
        "ballast_io_phase_total{vm=\"\",disk=\"swap\",phase=\"weight\"} 0\n",
        "ballast_server_restarts_total{server=\"io-sched-server\"} 0\n",
        "ballast_io_shares{vm=\"web\",disk=\"disk1.1\"} 1000\n",
        "ballast_io_shares{vm=\"odd \\\"name\\\"\\\\\",disk=\"disk0\",group=\"tenant \\\"a\\\"\"} 1000\n",
        "ballast_io_reserved_rate{on=\"1\"} 0\n",
        "ballast_vm_memory_faults_total{vm=\"web\",kind=\"cow\"} 7\n",
        "ballast_share_scan_pages_total 9\n",
        "ballast_term_server_bytes{server=\"root-task\",vm=\"web\"} 3\n",
        "vm=\"odd \\\"name\\\"\\\\\"",
        "ballast_vm_memory_granted_bytes{vm=\"web\"} 8192\n",
        "ballast_vm_memory_granted_bytes{vm=\"odd \\\"name\\\"\\\\\",group=\"tenant \\\"a\\\"\"} 8192\n",
        "ballast_group_vms{group=\"empty\"} 0\n",
        "ballast_group_memory_granted_bytes{group=\"tenant \\\"a\\\"\"} 8192\n",
        "ballast_group_memory_granted_bytes{group=\"empty\"} 0\n",
        "ballast_group_memory_reservation_bytes{group=\"empty\"} 1048576\n",
        "ballast_group_memory_shares{group=\"tenant \\\"a\\\"\"} 9\n",
        "ballast_group_io_limit_rate{group=\"empty\"} 300\n",
        "ballast_group_disk_requests_total{group=\"empty\",on=\"1\",op=\"read\"} 5\n",
        "ballast_group_io_phase_total{group=\"empty\",on=\"0\",phase=\"weight\"} 5\n",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    // No group, no label; and the group is on every family of a disk.
    assert!(!text.contains("vm=\"web\",disk=\"disk0\",group"), "{text}");
    let of_disks = |line: &&str| line.contains("vm=\"odd") && line.contains("disk=\"disk0\"");
    assert!(text.lines().filter(of_disks).all(|line| line.contains("group=\"tenant")), "{text}");
    // A group without a weight of its own has none, and without groups there are no families of theirs.
    assert!(!text.contains("ballast_group_memory_shares{group=\"empty\""), "{text}");
    assert!(!super::text(&Stats::default()).contains("ballast_group"));
    // What has a family of its own is not there as a gauge as well.
    for unwanted in ["ballast_term_memory_faults", "ballast_term_sharing_scanned"] {
        assert!(!text.contains(unwanted), "{unwanted}\n{text}");
    }
}

#[test]
fn a_histogram_needs_its_parts() {
    let good = "# TYPE a histogram\n# HELP a x.\na_bucket{le=\"1.0\"} 1\na_bucket{le=\"+Inf\"} 2\n\
                a_count 2\na_sum 3.5\n# EOF\n";
    assert_eq!(check(good), Ok(4));
    for (from, to) in [("a_bucket{le=\"1.0\"}", "a_bucket"), ("a_count 2", "a 2"), ("1.0", "x")] {
        let bad = good.replacen(from, to, 1);
        assert!(check(&bad).is_err(), "{bad}");
    }
}

#[test]
fn the_grammar_refuses() {
    let good = "# TYPE a_seconds counter\n# UNIT a_seconds seconds\n# HELP a_seconds x.\n\
                a_seconds_total{b=\"c\"} 1\n# EOF\n";
    assert_eq!(check(good), Ok(1));
    for (from, to) in [
        ("# EOF\n", ""),
        ("_total", ""),
        ("} 1", "} x"),
        ("} 1", "} inf"),
        ("counter", "histogrm"),
        ("UNIT a_seconds seconds", "UNIT a_seconds bytes"),
        ("{b=\"c\"}", "{b=c}"),
        ("{b=\"c\"}", "{b=\"c\",b=\"d\"}"),
        ("# EOF\n", "a_seconds_total{b=\"c\"} 2\n# EOF\n"),
        ("# EOF\n", "\n# EOF\n"),
        ("# EOF\n", "# TYPE b gauge\n# HELP b x\nb 1\n# TYPE a_seconds counter\n# EOF\n"),
        ("# EOF\n", "# HELP a_seconds again\n# EOF\n"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert!(check(&bad).is_err(), "{bad}");
    }
}
