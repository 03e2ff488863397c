//! The client's side of dmClock: what to say to each server about service received from the others.
//!
//! Source: mClock paper, section 3.3. A server adds a request's own cost itself, so here delta and rho count service at
//! *other* servers only; a client of one server always sends 0. The borrowing tracker never lets a server believe that
//! nothing happened elsewhere for long: it reports evenly instead of in lumps.

use crate::ring::Phase;

/// Most servers of one client.
pub const SERVERS: usize = crate::units::MACHINE_DISKS_MAX;

/// How a tracker reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// All that completed elsewhere since the last request to this server.
    Paper,
    /// The same sum, but spread: a report is at most twice the running mean; the rest is owed and repaid later.
    Borrowing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    completed: u64,
    reserved: u64,
    own_completed: u64,
    own_reserved: u64,
    owed: u64,
    owed_reserved: u64,
    /// Running mean of reports, 4 fractional bits.
    mean: u64,
}

/// Counts completions of one client over its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracker {
    rule: Rule,
    completed: u64,
    reserved: u64,
    servers: [Seen; SERVERS],
}

fn word(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Tracker {
    /// A tracker of a client that has had no service yet.
    pub fn new(rule: Rule) -> Self {
        Self { rule, completed: 0, reserved: 0, servers: [Seen::default(); SERVERS] }
    }

    /// A request completed at `server`.
    pub fn completed(&mut self, server: usize, phase: Phase) {
        let Some(seen) = self.servers.get_mut(server) else { return };
        self.completed += 1;
        seen.own_completed += 1;
        if phase == Phase::Reservation {
            self.reserved += 1;
            seen.own_reserved += 1;
        }
    }

    /// Delta and rho to send with the next request to `server`.
    pub fn report(&mut self, server: usize) -> (u32, u32) {
        let (completed, reserved) = (self.completed, self.reserved);
        let Some(seen) = self.servers.get_mut(server) else { return (0, 0) };
        let delta = completed - seen.completed - core::mem::take(&mut seen.own_completed);
        let rho = reserved - seen.reserved - core::mem::take(&mut seen.own_reserved);
        seen.completed = completed;
        seen.reserved = reserved;
        match self.rule {
            Rule::Paper => (word(delta), word(rho)),
            Rule::Borrowing => {
                seen.owed += delta;
                seen.owed_reserved += rho;
                seen.mean = seen.mean - seen.mean / 8 + delta * 2;
                let most = (seen.mean / 8).max(1);
                let delta = seen.owed.min(most);
                let rho = seen.owed_reserved.min(delta);
                seen.owed -= delta;
                seen.owed_reserved -= rho;
                (word(delta), word(rho))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_hears_nothing_of_others() {
        for rule in [Rule::Paper, Rule::Borrowing] {
            let mut tracker = Tracker::new(rule);
            for _ in 0..100 {
                assert_eq!(tracker.report(0), (0, 0));
                tracker.completed(0, Phase::Reservation);
            }
        }
    }

    #[test]
    fn what_completes_elsewhere_is_reported_once_in_sum() {
        for rule in [Rule::Paper, Rule::Borrowing] {
            let mut tracker = Tracker::new(rule);
            let mut sums = [0u64; 3];
            for round in 0..3000usize {
                let server = round * 7 % 11 % 3;
                let (delta, rho) = tracker.report(server);
                assert!(rho <= delta);
                sums[server] += u64::from(delta);
                let phase = if round % 4 == 0 { Phase::Reservation } else { Phase::Weight };
                tracker.completed(server, phase);
            }
            let own = |server| (0..3000usize).filter(|r| r * 7 % 11 % 3 == server).count() as u64;
            for (server, sum) in sums.into_iter().enumerate() {
                let elsewhere = 3000 - own(server);
                assert!(sum <= elsewhere && sum + 64 >= elsewhere, "{rule:?} {server} {sum}");
            }
        }
    }
}
