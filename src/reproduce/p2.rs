//! P2: mClock and dmClock on modelled disks.

use super::Paper;

/// The paper.
pub const PAPER: Paper =
    Paper { name: "P2", ids: &harness::p2::IDS, run: |id| Ok(harness::p2::run(id)) };
