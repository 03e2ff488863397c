//! Groups of VMs: their claims, sums over their VMs, and what each disk did for them.

use super::{CLAIM, Kind, MEMORY, Page};
use crate::report::Stats;
use protocol::io::GroupStats;

/// Their families; none without groups.
pub fn families(page: &mut Page, stats: &Stats) {
    if stats.groups.is_empty() {
        return;
    }
    memory(page, stats);
    claims(page, stats);
    disks(page, stats);
}

fn memory(page: &mut Page, stats: &Stats) {
    page.family("group_vms", Kind::Gauge, "VMs in the group, running or not.");
    for group in &stats.groups {
        page.sample(&[("group", &group.name)], group.members.len());
    }
    for (name, help, part) in MEMORY {
        let help = format!("Sum over its VMs. {help}");
        page.family(&format!("group_memory_{name}_bytes"), Kind::Gauge, &help);
        for group in &stats.groups {
            page.sample(&[("group", &group.name)], stats.group_sum(group, part).bytes());
        }
    }
    let help = "What its VMs always get together.";
    page.family("group_memory_reservation_bytes", Kind::Gauge, help);
    for group in &stats.groups {
        page.sample(&[("group", &group.name)], group.memory.reservation.bytes());
    }
    let help = "Its weight; a group without one leaves its VMs theirs.";
    page.family("group_memory_shares", Kind::Gauge, help);
    for group in &stats.groups {
        if let Some(shares) = group.memory.shares {
            page.sample(&[("group", &group.name)], shares);
        }
    }
}

fn claims(page: &mut Page, stats: &Stats) {
    let helps = [
        "Requests per second its VMs always get.",
        "Requests per second they never exceed; 0 for none.",
        "Bytes per second they always get.",
        "Bytes per second they never exceed; 0 for none.",
        "Its weight on the disks.",
    ];
    for ((name, part), help) in CLAIM.into_iter().zip(helps) {
        page.family(&format!("group_{name}"), Kind::Gauge, help);
        for group in &stats.groups {
            page.sample(&[("group", &group.name)], part(&group.io));
        }
    }
}

/// One counter of a disk's work: the label's value, and how to find it.
type Counted = (&'static str, fn(&GroupStats) -> u64);

fn disks(page: &mut Page, stats: &Stats) {
    let operations: [Counted; 3] = [
        ("read", |stats| stats.reads),
        ("write", |stats| stats.writes),
        ("flush", |stats| stats.flushes),
    ];
    let help = "Requests of its VMs that the disk completed.";
    counted(page, stats, ("group_disk_requests", help), "op", &operations);
    let bytes: [Counted; 2] =
        [("read", |stats| stats.read_bytes), ("write", |stats| stats.written_bytes)];
    counted(page, stats, ("group_disk_bytes", "Bytes moved for its VMs."), "op", &bytes);
    let help = "Requests of its VMs that ended in an error.";
    page.family("group_disk_errors", Kind::Counter, help);
    for (group, on, stats) in each(stats) {
        page.sample(&[("group", group), ("on", &on)], stats.errors);
    }
    let phases: [Counted; 2] =
        [("reservation", |stats| stats.by_reservation), ("weight", |stats| stats.by_weight)];
    let help = "Requests by the rule of the scheduler that let them go.";
    counted(page, stats, ("group_io_phase", help), "phase", &phases);
}

/// Every group on every disk whose server answered.
fn each(stats: &Stats) -> impl Iterator<Item = (&str, String, &GroupStats)> {
    stats.groups.iter().flat_map(|group| {
        let disks = group.disks.iter();
        disks.map(|(on, stats)| (group.name.as_str(), on.0.to_string(), stats))
    })
}

fn counted(
    page: &mut Page,
    stats: &Stats,
    (name, help): (&str, &str),
    label: &str,
    counters: &[Counted],
) {
    page.family(name, Kind::Counter, help);
    for (group, on, stats) in each(stats) {
        for (value, counter) in counters {
            page.sample(&[("group", group), ("on", &on), (label, value)], counter(stats));
        }
    }
}
