//! What the servers of several disks tell each other, so that claims of groups and of VMs hold over all disks together.

use protocol::{
    io::MAX_GROUPS,
    progress::{Progress, Service},
    units::{DiskId, MACHINE_DISKS_MAX, Nanos},
};

use crate::server::{Config, Memory, Server, group_node, node_group};

/// What this server has heard of each other one.
#[derive(Clone, Copy, Debug)]
pub struct Peers {
    changes: [u64; MACHINE_DISKS_MAX],
    seen: [[Service; MAX_GROUPS]; MACHINE_DISKS_MAX],
}

/// The disks of the other servers.
fn others(config: &Config) -> impl Iterator<Item = DiskId> + use<> {
    let own = config.disk;
    (0..config.disks)
        .map(DiskId)
        .filter(move |disk| *disk != own && disk.index() < MACHINE_DISKS_MAX)
}

impl Peers {
    /// Nothing heard yet.
    pub const NEW: Self = Self {
        changes: [0; MACHINE_DISKS_MAX],
        seen: [[Service::NONE; MAX_GROUPS]; MACHINE_DISKS_MAX],
    };

    /// `group` begins here: what the others did before for one of this number was another's, or is long past.
    pub fn begin<M: Memory>(&mut self, memory: &M, config: &Config, group: u8) {
        for disk in others(config) {
            if let Some(page) = memory.progress(disk)
                && let Some(seen) = self.seen[disk.index()].get_mut(usize::from(group))
            {
                *seen = Progress::new(page.as_ref()).read(group);
            }
        }
    }
}

impl<M: Memory> Server<M> {
    /// Counts what the others did since the last look. A look costs a load for each of them if nothing happened.
    pub(crate) fn hear_peers(&mut self, now: Nanos) {
        for disk in others(&self.config) {
            let Some(page) = self.memory.progress(disk) else { continue };
            let progress = Progress::new(page.as_ref());
            let changes = progress.changes();
            if changes == core::mem::replace(&mut self.peers.changes[disk.index()], changes) {
                continue;
            }
            for (group, place) in (0..).zip(&self.groups) {
                if place.is_none() {
                    continue;
                }
                let seen = &mut self.peers.seen[disk.index()][usize::from(group)];
                let done = progress.read(group);
                let service = done.since(seen);
                *seen = done;
                if service != Service::NONE {
                    let policy = self.dispatcher.policy();
                    policy.served_elsewhere(now, group_node(group), &service);
                }
            }
        }
    }

    /// Tells the others what was done here.
    pub(crate) fn tell_peers(&mut self) {
        let Some(page) = self.memory.progress(self.config.disk) else { return };
        let progress = Progress::new(page.as_ref());
        self.dispatcher.policy().take_service(|node, service| {
            if let Some(group) = node_group(node) {
                progress.add(group, service);
            }
        });
    }
}
