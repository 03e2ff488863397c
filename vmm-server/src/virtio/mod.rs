//! virtio devices: queues, the PCI transport, and the devices themselves (virtio 1.2).

pub mod balloon;
pub mod blk;
pub mod pci;
pub mod queue;
pub mod rng;
