//! Terms that are known to be counters, under the names that users of other hypervisors look for.

use super::{Kind, Page, vm_name};
use crate::report::Stats;
use protocol::mem::FAULTS;

/// Terms of this prefix count a VM's faults; the rest is one of [`FAULTS`].
const FAULT_PREFIX: &str = "memory.faults.";
/// Machine-wide counters: the term, the family, what it is.
const MACHINE: [(&str, &str, &str); 6] = [
    ("sharing.scanned", "share_scan_pages", "Pages the sharing scanner looked at."),
    ("sharing.merged", "share_merged_pages", "Of these, merged with another."),
    ("sharing.breaks", "share_broken_pages", "Shared pages that were written."),
    ("memory.swapped_out", "swap_out_pages", "Pages written to the swap partition."),
    ("memory.swapped_in", "swap_in_pages", "Pages read back from it."),
    ("memory.swap_errors", "swap_errors", "Pages that it did not take or give."),
];

/// Is the term one of these counters?
pub fn is_counted(name: &str) -> bool {
    fault_kind(name).is_some() || MACHINE.iter().any(|(term, ..)| *term == name)
}

/// The kind of fault a term counts.
fn fault_kind(name: &str) -> Option<&str> {
    name.strip_prefix(FAULT_PREFIX).filter(|kind| FAULTS.contains(kind))
}

/// Their families.
pub fn families(page: &mut Page, stats: &Stats) {
    let help = "Faults of the VM that the mem-server answered.";
    page.family("vm_memory_faults", Kind::Counter, help);
    for term in &stats.terms {
        if let Some(kind) = fault_kind(&term.name) {
            page.sample(&[("vm", vm_name(stats, term.vm)), ("kind", kind)], term.value);
        }
    }
    for (name, family, help) in MACHINE {
        page.family(family, Kind::Counter, help);
        for term in stats.terms.iter().filter(|term| term.name == name) {
            page.sample(&[], term.value);
        }
    }
}
