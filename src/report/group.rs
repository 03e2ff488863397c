//! Groups of VMs: their claims, who is in them, what the disks did for them.

use super::Stats;
use protocol::io::GroupStats;
use protocol::link::MemoryStats;
use protocol::system::{GroupMemory, IoControl};
use protocol::units::{DiskId, Pages, VmId};
use serde_json::{Value, json};

/// A group as `stats` knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The VMs in it, running or not.
    pub members: Vec<VmId>,
    /// Its claim on memory.
    pub memory: GroupMemory,
    /// Its claim on all disks together.
    pub io: IoControl,
    /// What each disk did for it since its server was started.
    pub disks: Vec<(DiskId, GroupStats)>,
}

impl Stats {
    /// The place of the group called `name`, made if it was not named before.
    pub(super) fn group_mut(&mut self, name: &str) -> &mut Group {
        let at = self.groups.iter().position(|group| group.name == name);
        let at = at.unwrap_or_else(|| {
            self.groups.push(Group { name: name.to_owned(), ..Group::default() });
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    /// Name of the group that `vm` is in.
    pub fn group_of(&self, vm: VmId) -> Option<&str> {
        let found = self.groups.iter().find(|group| group.members.contains(&vm));
        found.map(|group| group.name.as_str())
    }

    /// Sum of `part` over the VMs of `group`.
    pub fn group_sum(&self, group: &Group, part: fn(&MemoryStats) -> Pages) -> Pages {
        let members = self.vms.iter().filter(|(vm, ..)| group.members.contains(vm));
        Pages(members.map(|(.., stats)| part(&stats.memory).0).sum())
    }

    /// One object, groups by name.
    pub(super) fn groups_json(&self) -> Value {
        let groups = self.groups.iter().map(|group| {
            let disks = group.disks.iter().map(|(on, stats)| json!({"on": on.0, "stats": stats}));
            let value = json!({
                "vms": group.members.iter().filter_map(|vm| self.vm_name(*vm)).collect::<Vec<_>>(),
                "memory": {
                    "reservation_bytes": group.memory.reservation.bytes(),
                    "shares": group.memory.shares,
                    "granted_bytes": self.group_sum(group, |memory| memory.granted).bytes(),
                    "target_bytes": self.group_sum(group, |memory| memory.target).bytes(),
                },
                "io": group.io,
                "disks": disks.collect::<Vec<_>>(),
            });
            (group.name.clone(), value)
        });
        Value::Object(groups.collect())
    }
}
