//! The capability map: what the root-task gave to whom, and what for.

use heapless::Vec;
use protocol::link::ServerId;

/// Most entries kept; further ones are counted but not listed.
pub const CAPS_MAX: usize = 768;

/// One capability given to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapRecord {
    /// Who holds it.
    pub server: ServerId,
    /// Slot of the server's CSpace.
    pub slot: u32,
    /// Type of the object.
    pub kind: &'static str,
    /// Rights: bit 0 write, 1 read, 2 grant, 3 grant-reply.
    pub rights: u8,
    /// What for.
    pub purpose: &'static str,
}

/// Everything given out and not taken back.
#[derive(Debug, Default)]
pub struct CapMap {
    records: Vec<CapRecord, CAPS_MAX>,
    unlisted: u32,
}

impl CapMap {
    /// An empty map.
    pub const fn new() -> Self {
        Self { records: Vec::new(), unlisted: 0 }
    }

    /// Writes down a capability; one in the same slot before is forgotten.
    pub fn given(&mut self, record: CapRecord) {
        self.taken(record.server, record.slot);
        if self.records.push(record).is_err() {
            self.unlisted = self.unlisted.saturating_add(1);
        }
    }

    /// A slot was emptied.
    pub fn taken(&mut self, server: ServerId, slot: u32) {
        self.records.retain(|record| record.server != server || record.slot != slot);
    }

    /// A server is gone with all it held.
    pub fn server_gone(&mut self, server: ServerId) {
        self.records.retain(|record| record.server != server);
    }

    /// All records, in the order they were given.
    pub fn iter(&self) -> impl Iterator<Item = &CapRecord> {
        self.records.iter()
    }

    /// Capabilities given but not listed for want of room.
    pub const fn unlisted(&self) -> u32 {
        self.unlisted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::units::VmId;

    #[test]
    fn a_slot_has_one_record_and_a_dead_server_none() {
        let mut map = CapMap::new();
        let record =
            |server, slot| CapRecord { server, slot, kind: "Endpoint", rights: 9, purpose: "x" };
        map.given(record(ServerId::Mem, 1));
        map.given(record(ServerId::Mem, 1));
        map.given(record(ServerId::Vmm(VmId(0)), 1));
        assert_eq!(map.iter().count(), 2);
        map.server_gone(ServerId::Vmm(VmId(0)));
        map.taken(ServerId::Mem, 1);
        assert_eq!(map.iter().count(), 0);
    }
}
