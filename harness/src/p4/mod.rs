//! The experiments of ESX memory management (P4), by the real server library over a model machine with simulated guests.
//!
//! Contents, access patterns and disk times are the simulation's, stated in each experiment; what is under test is the
//! server: its tables, states, policies and their figures. P4-E5 (the scanner's cost to a guest in executed
//! instructions) cannot be seen here and is measured on running VMs only.

mod allocation;
mod paging;
mod sharing;

use crate::experiment::Outcome;

/// Names of the experiments.
pub const IDS: [&str; 11] = [
    "P4-E1", "P4-E2", "P4-E3", "P4-E4", "P4-E6", "P4-E7", "P4-E8", "P4-E9", "P4-E10", "P4-E11",
    "P4-E12",
];

/// Runs an experiment; `None` if there is none of this name.
pub fn run(id: &str) -> Option<Outcome> {
    Some(match id {
        "P4-E1" => paging::balloon_tracking(),
        "P4-E2" => paging::balloon_pop(),
        "P4-E3" => paging::double_paging(),
        "P4-E4" => sharing::curve(),
        "P4-E6" => sharing::collisions(),
        "P4-E7" => allocation::sampling(),
        "P4-E8" => allocation::idle_tax(),
        "P4-E9" => allocation::states(),
        "P4-E10" => sharing::boot_storm(),
        "P4-E11" => allocation::admission(),
        "P4-E12" => paging::hot_pages(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_experiment_is_reproduced_and_repeats_itself() {
        let text = |outcome: &Outcome| {
            let plots: String = outcome.plots.iter().map(crate::plot::Plot::svg).collect();
            outcome.json() + &outcome.table() + &plots
        };
        for id in IDS {
            let first = run(id).unwrap();
            assert!(first.is_reproduced(), "{}", first.table());
            assert_eq!(text(&first), text(&run(id).unwrap()), "{id} differs from run to run");
        }
        assert!(run("P4-E99").is_none());
    }
}
