//! P2: mClock and dmClock on modelled disks.

use super::{Paper, live};

/// The paper.
pub const PAPER: Paper = Paper {
    name: "P2",
    ids: &harness::p2::IDS,
    run: |id| Ok(harness::p2::run(id)),
    live_ids: &live::IDS,
    run_live: live::run,
};
