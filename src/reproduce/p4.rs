//! ESX memory management.

use super::Paper;

/// The paper of memory resource management in VMware ESX Server.
pub const PAPER: Paper = Paper { name: "P4", ids: &harness::p4::IDS, run: harness::p4::run };
