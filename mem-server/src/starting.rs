//! A VM that is to start while there is no free block for its tables: it waits, if pages are being taken from others.

use protocol::mem::{MemError, MemReply, MemRequest, VmMemory};
use protocol::units::{Nanos, VmId};

use crate::mechanism::Mechanism;
use crate::page::FRAMES_PER_BLOCK;
use crate::server::Server;

/// Longest wait for a block.
const PATIENCE: Nanos = Nanos::from_secs(5);

/// A VM that waits for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starting {
    vm: VmId,
    memory: VmMemory,
    until: Nanos,
}

impl Server<'_> {
    /// Carries out an order of the root-task. `None`: a VM waits for a block, [`Self::go_on_starting`] answers, and no other
    /// order may come before that.
    pub fn order_or_wait(
        &mut self,
        request: MemRequest,
        now: Nanos,
        mechanism: &mut impl Mechanism,
    ) -> Option<MemReply> {
        let create = match request {
            MemRequest::CreateVm { vm, memory } => Some((vm, memory)),
            _ => None,
        };
        let reply = self.order(request, mechanism);
        let Some((vm, memory)) = create else { return Some(reply) };
        if !matches!(reply, MemReply::Error(MemError::NoBlock { .. })) {
            return Some(reply);
        }
        // Who is above his target is what counts, and targets may be older than the want.
        self.rebalance();
        if !self.will_free() {
            return Some(reply);
        }
        let until = Nanos(now.0.saturating_add(PATIENCE.0));
        self.starting = Some(Starting { vm, memory, until });
        None
    }

    /// Whether an order has not been answered yet.
    pub const fn is_starting(&self) -> bool {
        self.starting.is_some()
    }

    /// Tries to start the VM that waits, if one does; its answer, once there is one.
    pub fn go_on_starting(
        &mut self,
        now: Nanos,
        mechanism: &mut impl Mechanism,
    ) -> Option<MemReply> {
        let Starting { vm, memory, until } = self.starting?;
        let may_wait = now.0 < until.0 && self.will_free();
        let has_room = self.free() >= self.needed();
        if may_wait && !has_room {
            return None;
        }
        let reply = self.order(MemRequest::CreateVm { vm, memory }, mechanism);
        if may_wait && matches!(reply, MemReply::Error(MemError::NoBlock { .. })) {
            return None;
        }
        self.starting = None;
        Some(reply)
    }

    /// Pages that must be free for a block to be emptied.
    const fn needed(&self) -> u64 {
        (FRAMES_PER_BLOCK + self.break_reserve()) as u64
    }

    /// Whether there will be a block without anybody giving up a VM: enough pages are to be taken from VMs above their targets, or
    /// are on their way to the disk or from it.
    fn will_free(&self) -> bool {
        let above = |record| self.charge(record).saturating_sub(record.target);
        let above: u64 = self.vms.iter().flatten().map(above).sum();
        let is_short = self.free() < self.pressure.thresholds().high;
        self.free() + above >= self.needed() && (self.moving > 0 || is_short && above > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::INCOMPRESSIBLE;
    use crate::server::Policy;
    use crate::server::tests::{World, swapping};
    use protocol::mem::Sharing;
    use protocol::units::Pages;

    /// Blocks of the machine, and what the first VM has of it.
    const BLOCKS: u32 = 40;
    const MIB: u64 = 78;
    const STEP: u64 = 100_000_000;

    /// A machine full of one VM's pages, and the answer to an order to start another beside it.
    fn full() -> (World<'static>, Option<MemReply>) {
        let policy = Policy { swap_slots: 1 << 15, ..swapping() };
        let mut world = World::new(BLOCKS, 64, policy);
        world.machine.queue_depth = 256;
        world.admit(0, MIB, Sharing::None);
        for index in 0..(MIB * 256) as u32 {
            assert!(world.write(0, index, INCOMPRESSIBLE | u64::from(index)), "page {index}");
        }
        world.machine.table_blocks = 1;
        let memory = VmMemory::new(Pages(512));
        let request = MemRequest::CreateVm { vm: VmId(1), memory };
        let reply = world.server.order_or_wait(request, Nanos(0), &mut world.machine);
        world.check();
        (world, reply)
    }

    /// Lets time pass until the order is answered; answers that and when.
    fn answered(world: &mut World<'_>, mut disk: impl FnMut(&mut World<'_>)) -> (MemReply, Nanos) {
        for step in 1..1000 {
            let now = Nanos(step * STEP);
            world.server.tick(now, &mut world.machine);
            disk(world);
            if let Some(reply) = world.server.go_on_starting(now, &mut world.machine) {
                assert!(!world.server.is_starting());
                world.check();
                return (reply, now);
            }
            assert!(world.server.is_starting());
            world.check();
        }
        panic!("no answer");
    }

    #[test]
    fn a_vm_waits_for_a_block_while_pages_go_to_the_disk() {
        let (mut world, reply) = full();
        assert_eq!(reply, None);
        assert!(world.server.is_starting() && world.server.vm(VmId(1)).is_none());
        let (reply, at) = answered(&mut world, |world| while world.disk(false) {});
        assert!(matches!(reply, MemReply::Created { .. }), "{reply:?}");
        assert!(at.0 < PATIENCE.0, "{at:?}");
        assert!(world.write(1, 0, 5));
        world.check();
        world.read_all();
        // It gives its block back.
        world.server.release_vm(VmId(1), &mut world.machine);
        assert_eq!(world.server.held(), 0);
        world.check();
    }

    #[test]
    fn it_is_refused_with_the_numbers_when_the_disk_does_not_answer() {
        let (mut world, reply) = full();
        assert_eq!(reply, None);
        let (reply, at) = answered(&mut world, |_| {});
        let free = Pages(world.server.free());
        assert_eq!(reply, MemReply::Error(MemError::NoBlock { needed: Pages(512), free }));
        assert_eq!(at, PATIENCE);
        assert!(world.server.vm(VmId(1)).is_none());
        assert_eq!(world.server.held(), 0);
    }

    #[test]
    fn it_is_refused_at_once_when_nothing_can_be_taken() {
        let mut world = World::new(BLOCKS, 64, swapping());
        world.admit(0, 2, Sharing::None);
        // What is used is no VM's.
        while world.server.hold_block().is_some() {}
        assert!(world.write(0, 0, 1));
        world.machine.table_blocks = 1;
        let memory = VmMemory::new(Pages(512));
        let request = MemRequest::CreateVm { vm: VmId(1), memory };
        let reply = world.server.order_or_wait(request, Nanos(0), &mut world.machine);
        let free = Pages(world.server.free());
        let refused = MemReply::Error(MemError::NoBlock { needed: Pages(512), free });
        assert_eq!(reply, Some(refused));
        assert!(!world.server.is_starting());
        world.check();
    }
}
