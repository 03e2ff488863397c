//! Fixed capability slots and badges of every server.
//!
//! A server's CSpace is one CNode whose guard makes a plain index a full-depth pointer. The
//! root-task fills these slots before the first instruction; everything from
//! [`crate::startup::Startup::free_slots`] on is the server's own.

use crate::io::MAX_CLIENTS;
use crate::system::DISKS_MAX;
use crate::units::{DiskId, MACHINE_DISKS_MAX, MAX_VMS, VmId};

/// Always empty.
pub const NULL: u64 = 0;
/// The server's own TCB.
pub const TCB: u64 = 1;
/// The server's own CNode.
pub const CNODE: u64 = 2;
/// The server's own VSpace (PML4).
pub const VSPACE: u64 = 3;
/// The root-task's endpoint, badged with [`Client::badge`].
pub const ROOT_ENDPOINT: u64 = 4;
/// The server's own notification (bound to its TCB), without badge.
pub const NOTIFICATION: u64 = 5;
/// A reply object for the receive loop.
pub const REPLY: u64 = 6;
/// The root-task's notification, badged so that it knows who called: a kick to look at the shared page, logs and console.
pub const ROOT_NOTIFY: u64 = 7;
/// The endpoint on which a server receives calls (mem-server, io-sched-server).
pub const ENDPOINT: u64 = 8;
/// A Timer object that signals the own notification with [`notify::TIMER`].
pub const TIMER: u64 = 9;
/// mem-server: its own fault handler's endpoint, which it names again when it replaces its CSpace by a larger one.
pub const FAULT_ENDPOINT: u64 = 10;

/// vmm-server: the mem-server's endpoint, badged with [`mem_badge`].
pub const VMM_MEM_ENDPOINT: u64 = 16;
/// vmm-server: first of the io-sched-servers' endpoints, one for each part of each disk of its VM, at
/// [`vmm_part`], badged with [`io_badge`] of the client that the part is.
pub const VMM_IO_ENDPOINTS: u64 = 20;
/// vmm-server: behind the last of them.
pub const VMM_IO_END: u64 = VMM_IO_ENDPOINTS + (DISKS_MAX * MACHINE_DISKS_MAX) as u64;

/// Place of part `part` of disk `disk` among a VM's endpoints and rings.
pub const fn vmm_part(disk: u8, part: u8) -> u64 {
    disk as u64 * MACHINE_DISKS_MAX as u64 + part as u64
}

/// vmm-server: the VCPU of its thread.
pub const VMM_VCPU: u64 = 17;

/// mem-server: the endpoint of the io-sched-server that has its swap partition, badged [`io_badge`] of [`SWAP_CLIENT`].
pub const MEM_IO_ENDPOINT: u64 = 16;
/// mem-server: an ASID pool, for nested roots.
pub const MEM_ASID_POOL: u64 = 17;
/// mem-server: first of the slots of VM 0; VM n's are [`MEM_VM_SLOTS`] `* n` further.
pub const MEM_VM: u64 = 64;
/// mem-server: slots per VM.
pub const MEM_VM_SLOTS: u64 = 4;
/// Offset in a VM's slots: the VSpace of its vmm-server, for window mappings.
pub const MEM_VM_VSPACE: u64 = 0;
/// Offset in a VM's slots: its VCPU, to give it its nested root.
pub const MEM_VM_VCPU: u64 = 1;
/// Offset in a VM's slots: the notification of its vmm-server, badged [`notify::MEM`].
pub const MEM_VM_NOTIFY: u64 = 2;
/// Offset in a VM's slots: the thread of its vmm-server, to go on when a page of its window is there.
pub const MEM_VM_TCB: u64 = 3;
/// mem-server: first of its untypeds, in the order of [`crate::startup::MemStart::untypeds`].
pub const MEM_UNTYPEDS: u64 = 128;

/// io-sched-server: its disk's interrupt. It has no I/O ports: the root-task configures the disks.
pub const IO_IRQ_HANDLER: u64 = 24;
/// io-sched-server: notification of client 0, badged [`notify::DISK`]; client n's is n further.
pub const IO_CLIENT_NOTIFY: u64 = 64;

/// Client number of the mem-server's swap partition; disks of VMs get the others as they start. Numbers are given once for
/// all io-sched-servers: each serves some of them.
pub const SWAP_CLIENT: u16 = MAX_CLIENTS as u16 - 1;
/// The disk of the machine that has the swap partition.
pub const SWAP_DISK: DiskId = DiskId(0);

/// Bits of a server's own notification.
pub mod notify {
    /// Set in every signal: tells signals from messages, whose badges never have it.
    pub const SIGNAL: u64 = 1 << 63;
    /// The root-task has a command: call [`crate::root::RootRequest::NextCommand`].
    pub const ROOT: u64 = 1 << 0;
    /// The own Timer object fired.
    pub const TIMER: u64 = 1 << 1;
    /// The io-sched-server completed requests in one of our rings.
    pub const DISK: u64 = 1 << 2;
    /// The mem-server has something for this VM (a balloon target).
    pub const MEM: u64 = 1 << 3;
    /// Console input arrived in the ring.
    pub const CONSOLE: u64 = 1 << 4;
    /// io-sched-server: its disk raised an interrupt.
    pub const IRQ: u64 = 1 << 8;
}

/// Who calls the root-task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The mem-server.
    Mem,
    /// The io-sched-server of a disk of the machine.
    Io(DiskId),
    /// The vmm-server of a VM.
    Vmm(VmId),
}

/// Bit of a badge that marks fault messages: the capability is a fault handler's, not a client's.
pub const FAULT_BADGE: u64 = 1 << 16;

impl Client {
    /// The badge of this client's capability to the root endpoint.
    pub const fn badge(self) -> u64 {
        match self {
            Self::Mem => 1,
            Self::Io(disk) => 0x10 | disk.0 as u64,
            Self::Vmm(vm) => 0x100 | vm.0 as u64,
        }
    }

    /// The client with this badge ([`FAULT_BADGE`] cleared), if there is one.
    pub fn from_badge(badge: u64) -> Option<Self> {
        match badge {
            1 => Some(Self::Mem),
            0x10..0x100 => {
                let disk = badge - 0x10;
                (disk < MACHINE_DISKS_MAX as u64).then_some(Self::Io(DiskId(disk as u8)))
            }
            _ => {
                let vm = badge.checked_sub(0x100)?;
                (vm < MAX_VMS as u64).then_some(Self::Vmm(VmId(vm as u16)))
            }
        }
    }

    /// The bit of the root-task's notification that this client's [`ROOT_NOTIFY`] sets.
    pub const fn root_notify_bit(self) -> u64 {
        match self {
            Self::Mem => 1 << 8,
            Self::Io(disk) => 1 << (9 + disk.0 as u64),
            Self::Vmm(vm) => 1 << (16 + vm.0 as u64),
        }
    }
}

/// Badge of `vm`'s capability to the mem-server; with [`FAULT_BADGE`] it is its fault handler.
pub const fn mem_badge(vm: VmId) -> u64 {
    0x100 | vm.0 as u64
}

/// The VM whose badge at the mem-server is `badge` ([`FAULT_BADGE`] cleared), if there is one.
pub fn mem_client(badge: u64) -> Option<VmId> {
    let vm = badge.checked_sub(0x100)?;
    (vm < MAX_VMS as u64).then_some(VmId(vm as u16))
}

/// Badge of client `client`'s capability to the io-sched-server.
pub const fn io_badge(client: u16) -> u64 {
    client as u64 + 1
}

/// The client number whose badge at the io-sched-server is `badge`, if there is one.
pub fn io_client(badge: u64) -> Option<u16> {
    let client = badge.checked_sub(1)?;
    (client < MAX_CLIENTS as u64).then_some(client as u16)
}

const _: () = assert!(MEM_VM + MEM_VM_SLOTS * MAX_VMS as u64 <= MEM_UNTYPEDS);
const _: () = assert!(16 + MAX_VMS <= 64 && 9 + MACHINE_DISKS_MAX <= 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn badges_name_exactly_one_client() {
        for vm in 0..MAX_VMS as u16 {
            let client = Client::Vmm(VmId(vm));
            assert_eq!(Client::from_badge(client.badge()), Some(client));
            assert_eq!(mem_client(mem_badge(VmId(vm))), Some(VmId(vm)));
        }
        for client in DiskId::all().map(Client::Io).chain([Client::Mem]) {
            assert_eq!(Client::from_badge(client.badge()), Some(client));
        }
        assert_eq!(Client::from_badge(0), None);
        assert_eq!(Client::from_badge(0x10 + MACHINE_DISKS_MAX as u64), None);
        assert_eq!(Client::from_badge(0x100 + MAX_VMS as u64), None);
        assert_eq!(mem_client(0xff), None);
        assert_eq!(io_client(io_badge(SWAP_CLIENT)), Some(SWAP_CLIENT));
        assert_eq!(io_client(io_badge(SWAP_CLIENT) + 1), None);
    }
}
