//! What a client may ask of the io-sched-server.
//!
//! Requests to the disk travel in the client's [block ring](crate::ring::BLK_SLOTS); the doorbell only says that some
//! are there. The root-task attaches clients and sets their controls; a client is known by its badge.

use serde::{Deserialize, Serialize};

use crate::{
    interface::Interface,
    system::GROUPS_MAX,
    units::{MAX_VMS, Nanos, VmId},
};

/// Label of the doorbell: no words either way. Its processor time is charged to the client that calls.
pub const DOORBELL: u64 = 0x2000;

/// Most clients of one io-sched-server: one virtual disk each, plus swap and checkpoints of the mem-server.
pub const MAX_CLIENTS: usize = 32;

/// Badge of the root-task on the io endpoint: the only one that may attach and set controls. Clients have their
/// index plus one.
pub const ROOT_BADGE: u64 = 1 << 32;

/// Most groups of clients. Groups nest (tenant, VM), so that a VM with several disks is a group as well.
pub const MAX_GROUPS: usize = 24;

/// Most UTF-8 bytes of a partition label (GPT has 36 UTF-16 units).
pub const LABEL_BYTES: usize = 36;

/// Name of a GPT partition.
pub type PartitionLabel = heapless::String<LABEL_BYTES>;

/// What a client or a group is to get of the disk.
///
/// Reservation and shares count reference requests (4 KiB, random): a larger request counts as more. Limits count plain
/// requests and plain bytes, so that they mean the same on every disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controls {
    /// Least requests per second while there is demand; 0 for none.
    pub reservation: u32,
    /// Most requests per second; 0 for no limit.
    pub limit: u32,
    /// Relative share of what the reservations leave; at least 1.
    pub shares: u32,
    /// Least bytes per second; 0 for none.
    pub reservation_bytes: u64,
    /// Most bytes per second; 0 for no limit.
    pub limit_bytes: u64,
    /// Idle credit in requests, at most 256: how far a returning client may run ahead by shares.
    pub burst: u16,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            reservation: 0,
            limit: 0,
            shares: 1000,
            reservation_bytes: 0,
            limit_bytes: 0,
            burst: 0,
        }
    }
}

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoRequest {
    /// Root: serve client `index` (ring and notification are in the slots of that index) a partition.
    Attach {
        /// 0..[`MAX_CLIENTS`]; the client's badge is this plus one.
        index: u16,
        /// The partition's label; empty for a client without a disk of its own (statistics only).
        partition: PartitionLabel,
        /// Writes answered with an error?
        is_read_only: bool,
        /// Group, 0..[`MAX_GROUPS`], or none.
        group: Option<u8>,
        /// What all disks of its VM have together, if the VM has a claim: a group of the VM's own below `group`.
        vm: Option<VmClaim>,
        /// Its controls, on all its servers together (dmClock).
        controls: Controls,
        /// Servers the client has, at least 1: admission counts the part of its reservation that falls on this one if it
        /// asks all alike.
        servers: u8,
        /// Physical address of the ring's first byte: the ring is one contiguous piece, for the device's DMA.
        ring_paddr: u64,
    },
    /// Root: forget client `index`. Answered with [`IoReply::Draining`] while requests of it are in the device:
    /// its ring must stay until a later call is answered with [`IoReply::Done`].
    Detach {
        /// Which.
        index: u16,
    },
    /// Root: change the controls of a client.
    SetControls {
        /// Which.
        index: u16,
        /// New controls.
        controls: Controls,
    },
    /// Root: set the controls of a group.
    SetGroup {
        /// Which, 0..[`MAX_GROUPS`].
        group: u8,
        /// The group it belongs to itself; must have been set before.
        parent: Option<u8>,
        /// Controls.
        controls: Controls,
    },
    /// Root: change what all disks of a VM have together. Nothing happens if none of them is here.
    SetVm(VmClaim),
    /// Root: choose the policy; waiting requests keep their order per client.
    SetPolicy {
        /// Which.
        policy: Policy,
    },
    /// Root: figures of a client.
    Stats {
        /// Which.
        index: u16,
    },
    /// Root: figures of the disk.
    DiskStats,
    /// Client: what disk is mine?
    Info,
}

/// What the disks of one VM have together: a group, there as long as one of them is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClaim {
    /// The group's number ([`vm_group`]).
    pub group: u8,
    /// Its controls.
    pub controls: Controls,
}

/// Number of a VM's own group: behind those of the description.
pub const fn vm_group(vm: VmId) -> u8 {
    GROUPS_MAX as u8 + vm.0 as u8
}

const _: () = assert!(GROUPS_MAX + MAX_VMS <= MAX_GROUPS);

/// Scheduling policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Reservations, limits and shares (mClock).
    #[default]
    MClock,
    /// Start-time fair queueing with depth: shares only.
    Sfq,
    /// One request of each client in turn.
    RoundRobin,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoReply {
    /// Done.
    Done,
    /// Answer to [`IoRequest::Detach`]: not yet, ask again.
    Draining {
        /// Requests still in the device.
        in_device: u32,
    },
    /// Answer to [`IoRequest::Attach`] and [`IoRequest::Info`].
    Disk(DiskInfo),
    /// Answer to [`IoRequest::Stats`].
    Stats(ClientStats),
    /// Answer to [`IoRequest::DiskStats`].
    DiskStats(DiskStats),
    /// Refused.
    Error(IoError),
}

/// A virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Writes answered with an error?
    pub is_read_only: bool,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoError {
    /// Only the root-task may ask this. Give up.
    Forbidden,
    /// No such client, or the index is taken or out of range. Give up.
    BadClient,
    /// No partition of this label. Fix the configuration.
    NoPartition,
    /// No disk, or its partition table is broken. Fix the disk.
    NoDisk,
    /// The client's ring has the wrong layout. Make it anew.
    BadRing,
    /// Shares of 0, a limit below the reservation, or a group that does not exist. Fix the configuration.
    BadControls,
    /// The reservations would exceed what the disk can give. Ask for less.
    Overcommitted {
        /// Reference requests per second asked for.
        asked: u32,
        /// Reference requests per second still free.
        free: u32,
    },
    /// The reservations would exceed the limit of a group. Ask for less, or raise the group's limit.
    GroupLimit {
        /// Requests per second asked for.
        asked: u32,
        /// Requests per second the group's limit still leaves.
        free: u32,
    },
    /// The message was no request of this interface. Client bug.
    Malformed,
}

/// Upper bounds of the parts in which [`ClientStats::latency_counts`] counts requests; what took longer is in one more.
pub const LATENCY_BOUNDS: [Nanos; 13] = [
    Nanos(100_000),
    Nanos(250_000),
    Nanos(500_000),
    Nanos::from_millis(1),
    Nanos(2_500_000),
    Nanos::from_millis(5),
    Nanos::from_millis(10),
    Nanos::from_millis(25),
    Nanos::from_millis(50),
    Nanos::from_millis(100),
    Nanos::from_millis(250),
    Nanos::from_secs(1),
    Nanos::from_secs(5),
];

/// Figures of one client since it was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStats {
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Served in the reservation phase.
    pub by_reservation: u64,
    /// Served by shares.
    pub by_weight: u64,
    /// Completed with an error.
    pub errors: u64,
    /// Entries in the ring that were not requests.
    pub violations: u64,
    /// Waiting in the scheduler now.
    pub queued: u32,
    /// In the device now.
    pub in_device: u32,
    /// Requests by their time from the doorbell to completion: more than the last and at most this of [`LATENCY_BOUNDS`].
    pub latency_counts: [u32; LATENCY_BOUNDS.len() + 1],
    /// Sum of these times.
    pub latency_sum: Nanos,
    /// Median time from the doorbell to completion.
    pub latency_p50: Nanos,
    /// 99th percentile of the same.
    pub latency_p99: Nanos,
    /// Median time in the scheduler's queue.
    pub queue_p50: Nanos,
    /// 99th percentile of the same.
    pub queue_p99: Nanos,
    /// Median time in the device.
    pub device_p50: Nanos,
    /// 99th percentile of the same.
    pub device_p99: Nanos,
    /// Why the oldest waiting request waits.
    pub waits_for: WaitsFor,
    /// How far its tags are ahead of their clocks.
    pub lead: Lead,
}

/// What all clients of a group were served, those that have gone included, since the server of the disk was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStats {
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Completed with an error.
    pub errors: u64,
    /// Served in the reservation phase.
    pub by_reservation: u64,
    /// Served by shares.
    pub by_weight: u64,
}

impl GroupStats {
    /// Nothing served.
    pub const NONE: Self = Self {
        reads: 0,
        writes: 0,
        flushes: 0,
        read_bytes: 0,
        written_bytes: 0,
        errors: 0,
        by_reservation: 0,
        by_weight: 0,
    };

    /// With what a client was served.
    #[must_use]
    pub const fn with(self, client: &ClientStats) -> Self {
        Self {
            reads: self.reads.saturating_add(client.reads),
            writes: self.writes.saturating_add(client.writes),
            flushes: self.flushes.saturating_add(client.flushes),
            read_bytes: self.read_bytes.saturating_add(client.read_bytes),
            written_bytes: self.written_bytes.saturating_add(client.written_bytes),
            errors: self.errors.saturating_add(client.errors),
            by_reservation: self.by_reservation.saturating_add(client.by_reservation),
            by_weight: self.by_weight.saturating_add(client.by_weight),
        }
    }
}

/// How far a client's tags are ahead of their clocks: a request may go when its tag has no lead left. Below zero it
/// is late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// Reservation tag before the reservation clock, in nanoseconds; `None` without a reservation.
    pub reservation: Option<i64>,
    /// Limit tag before now, in nanoseconds; `None` without a limit.
    pub limit: Option<i64>,
    /// Share tag before virtual time, in thousandths of a reference request of its own.
    pub share: i64,
}

/// Why a client's oldest request is not in the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitsFor {
    /// Nothing waits.
    #[default]
    Nothing,
    /// The device has as many requests as the latency ceiling allows.
    Device,
    /// Its own limit.
    Limit,
    /// The limit of its group.
    GroupLimit,
    /// Others are due first.
    Turn,
    /// A flush that must finish first.
    Flush,
}

/// Figures of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Size in sectors.
    pub sectors: u64,
    /// Requests completed.
    pub completed: u64,
    /// Requests the device may have at once now.
    pub depth: u32,
    /// Requests in the device now.
    pub in_device: u32,
    /// Reference requests per second the device can give, as learnt; 0 before it is known.
    pub capacity: u32,
    /// Reference requests per second promised.
    pub reserved: u32,
    /// Learnt cost of a reference request, in nanoseconds of device time.
    pub reference_cost: Nanos,
    /// The policy that chooses.
    pub policy: Policy,
    /// Is there a modelled disk in front of it?
    pub is_modelled: bool,
    /// Requests the disk answered later than its model wanted.
    pub late: u64,
}

/// The interface to the io-sched-server.
#[derive(Clone, Copy, Debug)]
pub struct Io;

impl Interface for Io {
    const LABEL: u64 = 0x2001;
    type Request = IoRequest;
    type Reply = IoReply;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::{PAYLOAD_MAX, decode, encode};

    #[test]
    fn every_request_survives_the_wire() {
        let mut buffer = [0; PAYLOAD_MAX];
        let request = IoRequest::Attach {
            index: 3,
            partition: PartitionLabel::try_from("debian-a").unwrap(),
            is_read_only: false,
            group: Some(2),
            vm: Some(VmClaim { group: vm_group(VmId(15)), controls: Controls::default() }),
            controls: Controls::default(),
            servers: 1,
            ring_paddr: u64::MAX,
        };
        let bytes = encode(&request, &mut buffer).unwrap();
        assert_eq!(decode::<Io>(Io::LABEL, bytes), Ok(request));
        assert!(decode::<Io>(Io::LABEL, &[0xff; 40]).is_err());
    }
}
