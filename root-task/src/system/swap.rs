//! The swap partition's life: its ring between mem-server and io-sched-server.
//!
//! It is attached before the first VM starts, since admission counts it. A new mem-server gets a new ring, once the device
//! has let go of the old one.

use super::{Action, Actions, MemWait, Supervisor, push};
use protocol::link::ServerId;
use protocol::mem::MemRequest;
use protocol::root::{IoCommand, Text};
use protocol::slots::{SWAP_CLIENT, SWAP_DISK};
use protocol::system::{self, Disk, IoControl, Name};
use protocol::units::{PAGE_SIZE, Pages};

/// Bytes of a sector.
const SECTOR: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Placing,
    Attaching,
    Attached,
    Detaching,
}

/// The swap partition.
#[derive(Debug)]
pub(super) struct Swap {
    /// Its partition with the present claim, if the system has one.
    config: Option<system::Swap>,
    state: State,
    ring_paddr: u64,
}

impl Swap {
    pub(super) const fn new(config: Option<system::Swap>) -> Self {
        Self { config, state: State::Absent, ring_paddr: 0 }
    }

    /// Its claim on the disk.
    pub(super) fn claim(&self) -> IoControl {
        self.config.as_ref().map_or_else(IoControl::default, |config| config.io)
    }

    /// Notes a new claim.
    pub(super) const fn set_claim(&mut self, io: IoControl) {
        if let Some(config) = &mut self.config {
            config.io = io;
        }
    }

    /// Its partition, once the io-sched-server serves it.
    pub(super) fn served(&self) -> Option<&Name> {
        let is_served = self.state == State::Attached;
        self.config.as_ref().filter(|_| is_served).map(|config| &config.partition)
    }

    /// There is a ring.
    pub(super) fn has_ring(&self) -> bool {
        !matches!(self.state, State::Absent | State::Placing)
    }
}

impl Supervisor {
    /// Begins to attach the swap partition. False if the system has none.
    pub(super) fn place_swap(&mut self, actions: &mut Actions) -> bool {
        if self.swap.config.is_none() {
            return false;
        }
        self.swap.state = State::Placing;
        push(actions, Action::PlaceSwap);
        true
    }

    /// The ring is between the servers at `ring_paddr`, or could not be made.
    pub fn swap_placed(&mut self, ring_paddr: Option<u64>, actions: &mut Actions) {
        match ring_paddr {
            Some(paddr) => {
                self.swap.ring_paddr = paddr;
                self.swap.state = State::Attaching;
                self.queue_swap_attach(actions);
            }
            None => {
                self.swap.state = State::Absent;
                self.boot_vms(actions);
            }
        }
    }

    fn queue_swap_attach(&mut self, actions: &mut Actions) {
        let Some(system::Swap { partition, io, .. }) = self.swap.config.clone() else { return };
        let disk = Disk { partition, read_only: false, io, on: SWAP_DISK, parts: 1 };
        let ring_paddr = self.swap.ring_paddr;
        let command =
            IoCommand::Attach { client: SWAP_CLIENT, disk, group: None, vm: None, ring_paddr };
        let _ = self.tell_io(SWAP_DISK, command, actions);
    }

    /// The io-sched-server serves the ring.
    pub(super) fn swap_attached(&mut self, sectors: u64, actions: &mut Actions) {
        if self.swap.state != State::Attaching {
            return; // again, after a restart of the io-sched-server
        }
        self.swap.state = State::Attached;
        let pages = Pages(sectors / (PAGE_SIZE / SECTOR));
        let _ = self.tell_mem(MemRequest::SetSwap { pages }, MemWait::Swap, actions);
    }

    /// The io-sched-server has no such partition.
    pub(super) fn swap_failed(&mut self, why: &Text, actions: &mut Actions) {
        self.note(ServerId::Io(SWAP_DISK), why, actions);
        self.swap.state = State::Absent;
        push(actions, Action::RemoveClient(SWAP_CLIENT));
        self.boot_vms(actions);
    }

    /// The device has let go of an old mem-server's ring.
    pub(super) fn swap_detached(&mut self, actions: &mut Actions) {
        if self.swap.state == State::Detaching {
            push(actions, Action::RemoveClient(SWAP_CLIENT));
            self.place_swap(actions);
        }
    }

    /// A new io-sched-server must hear of the ring again.
    pub(super) fn swap_io_gone(&mut self, actions: &mut Actions) {
        match self.swap.state {
            // When the new server answers it has reset the device: nothing touches the ring any more.
            State::Detaching => {
                let _ = self.tell_io(SWAP_DISK, IoCommand::Detach { client: SWAP_CLIENT }, actions);
            }
            State::Attaching | State::Attached => self.queue_swap_attach(actions),
            State::Absent | State::Placing => {}
        }
    }

    /// The mem-server is gone, and whoever could read the ring with it.
    pub(super) fn swap_mem_gone(&mut self, actions: &mut Actions) {
        if matches!(self.swap.state, State::Attaching | State::Attached) {
            self.swap.state = State::Detaching;
            let _ = self.tell_io(SWAP_DISK, IoCommand::Detach { client: SWAP_CLIENT }, actions);
        }
    }
}
