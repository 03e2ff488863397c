//! What any server may ask of the root-task, and what the root-task tells its servers.
//!
//! The root-task never calls a server. It queues a [`Command`], counts it in the server's shared
//! page and signals [`crate::slots::notify::ROOT`]; the server then calls
//! [`RootRequest::NextCommand`] until the answer is [`RootReply::NoCommand`].
//!
//! How a server says that it serves: a vmm-server sends [`RootRequest::Ready`]; a passive server
//! (mem, io) writes 1 to [`crate::startup::shared::SERVING`] and enters its receive loop with one
//! `nb_send_recv` to [`crate::slots::ROOT_NOTIFY`] (`runtime::serve::enter_passive`): the
//! root-task then moves its scheduling context to its notification.

use crate::interface::Interface;
use crate::io::{ClientStats, DiskStats, IoError, Policy};
use crate::mem::{MemEvent, MemReply, MemRequest};
use crate::system::{Disk, IoControl};
use crate::units::VmId;
use heapless::String;
use serde::{Deserialize, Serialize};

/// The interface of the root-task.
#[derive(Clone, Copy, Debug)]
pub enum Root {}

impl Interface for Root {
    const LABEL: u64 = 0x100;
    type Request = RootRequest;
    type Reply = RootReply;
}

/// Text that travels in a request.
pub type Text = String<160>;

/// Why a virtual machine ended or stopped making progress, as its vmm-server saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmEvent {
    /// The guest powered itself off.
    Poweroff,
    /// The guest asked for a reset.
    Reboot,
    /// The guest's processor shut down (triple fault).
    TripleFault {
        /// Guest instruction pointer.
        rip: u64,
    },
    /// The guest executed what the vmm-server does not emulate.
    Unsupported {
        /// Guest instruction pointer.
        rip: u64,
        /// Exit code of the virtual processor.
        exit: u64,
        /// What it was.
        what: Text,
    },
    /// The guest could not be started: bad kernel image, too little memory, no disk.
    StartFailed {
        /// The reason, one line for the user.
        why: Text,
    },
    /// The guest is paused now.
    Paused,
    /// The guest runs again.
    Resumed,
}

/// A fault message as the kernel sent it (seL4's numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Label: 1 capability, 2 unknown system call, 3 exception, 5 timeout, 6 page fault.
    pub label: u64,
    /// Instruction pointer.
    pub ip: u64,
    /// Address (page and capability faults), exception or system call number.
    pub address: u64,
    /// Page-fault error code, exception error code.
    pub code: u64,
}

/// What any server may ask of the root-task. Who asks is known by the badge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootRequest {
    /// vmm-server: the guest is loaded. The root-task takes the kernel and module mappings away.
    Ready,
    /// The next command for the caller, if any.
    NextCommand,
    /// vmm-server: something happened to the VM.
    Event(VmEvent),
    /// mem-server: the vmm-server of `vm` faulted outside its window. It is not answered.
    ServerFault {
        /// Whose vmm-server.
        vm: VmId,
        /// The fault.
        fault: FaultReport,
    },
    /// mem-server: the answer to the oldest [`Command::Mem`] not answered yet.
    MemAnswer(MemReply),
    /// mem-server: something happened that the user should hear of.
    MemEvent(MemEvent),
    /// io-sched-server, to [`IoCommand::Attach`]: the client's ring is served.
    Attached {
        /// The client.
        client: u16,
        /// Size of its disk in 512-byte sectors.
        sectors: u64,
    },
    /// io-sched-server, to [`IoCommand::Attach`]: no such partition, or the disk does not answer.
    AttachFailed {
        /// The client.
        client: u16,
        /// The reason, one line for the user.
        why: Text,
    },
    /// io-sched-server, to [`IoCommand::Detach`]: the device touches the client's ring no more.
    Detached {
        /// The client.
        client: u16,
    },
    /// io-sched-server, to a `Set...` command: done.
    Applied,
    /// Any server that panics or gives up: it faults next.
    Panicked {
        /// Message, and place of a panic.
        message: Text,
    },
    /// io-sched-server, to a command that it cannot obey: everything is as it was.
    IoRefused(IoError),
    /// io-sched-server, to [`IoCommand::ClientStats`].
    IoClient(ClientStats),
    /// io-sched-server, to [`IoCommand::DiskStats`].
    IoDisk(DiskStats),
}

/// What the root-task answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootReply {
    /// Understood.
    Done,
    /// There is no command.
    NoCommand,
    /// The next command.
    Command(Command),
    /// The caller may not ask this, or not now.
    Refused,
}

/// What the root-task tells a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// To a vmm-server.
    Vmm(VmmCommand),
    /// To the mem-server.
    Mem(MemRequest),
    /// To the io-sched-server.
    Io(IoCommand),
}

/// What the root-task tells a vmm-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmCommand {
    /// Enter the guest no more; answer with [`VmEvent::Paused`].
    Pause,
    /// Go on; answer with [`VmEvent::Resumed`].
    Resume,
    /// Press the guest's ACPI power button.
    PowerButton,
}

/// What the root-task tells the io-sched-server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoCommand {
    /// A client's ring is mapped and its notification is in place: serve it.
    Attach {
        /// The client.
        client: u16,
        /// Its virtual disk.
        disk: Disk,
        /// Its group, if any.
        group: Option<u8>,
        /// Its VM's claim for all of its disks, if there is one.
        vm: Option<(VmId, IoControl)>,
        /// Physical address of the ring's memory (contiguous).
        ring_paddr: u64,
    },
    /// A client has ended: let the device finish, then forget it.
    Detach {
        /// The client.
        client: u16,
    },
    /// A client's claim changes (answer [`RootRequest::Applied`] or [`RootRequest::IoRefused`]).
    SetDisk {
        /// The client.
        client: u16,
        /// The new claim.
        control: IoControl,
    },
    /// A group's claim changes (answered in the same way).
    SetGroup {
        /// The group.
        group: u8,
        /// The new claim.
        control: IoControl,
    },
    /// Another claim of all disks of a VM together (answer [`RootRequest::Applied`] or [`RootRequest::IoRefused`]); of a VM without a disk
    /// here nothing changes.
    SetVm {
        /// The VM.
        vm: VmId,
        /// The new claim.
        control: IoControl,
    },
    /// Another policy; what waits keeps its order (answer [`RootRequest::Applied`]).
    SetPolicy(Policy),
    /// Figures of a client (answer [`RootRequest::IoClient`] or [`RootRequest::IoRefused`]).
    ClientStats {
        /// The client.
        client: u16,
    },
    /// Figures of the disk (answer [`RootRequest::IoDisk`]).
    DiskStats,
}

/// Counters of a vmm-server in its shared page, from [`crate::startup::shared::COUNTERS`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum VmmCounter {
    /// Exits by CPUID.
    ExitCpuid,
    /// Exits by RDMSR and WRMSR.
    ExitMsr,
    /// Exits by port I/O.
    ExitIo,
    /// Exits by nested page faults that the mem-server answered.
    ExitFaultIn,
    /// Exits by nested page faults on device registers.
    ExitMmio,
    /// Exits by HLT.
    ExitHlt,
    /// Exits by VMMCALL.
    ExitVmmcall,
    /// Interrupt windows.
    ExitWindow,
    /// All other exits.
    ExitOther,
    /// Returns of VMEnter by notification.
    Notified,
    /// Interrupts given to the guest.
    Injected,
    /// Nanoseconds spent halted.
    HaltedNanos,
    /// Disk requests completed.
    DiskRequests,
    /// Pages in the balloon.
    BalloonPages,
    /// Number of counters.
    Count,
}

/// Counters of the mem-server: machine-wide first, then [`MEM_VM_COUNTERS`] per VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum MemCounter {
    /// Pages of the machine it owns.
    TotalPages,
    /// Pages free.
    FreePages,
    /// Pages used for its own capabilities and tables.
    MetadataPages,
    /// Faults answered.
    Faults,
    /// 0 high, 1 soft, 2 hard, 3 low.
    State,
    /// Pages of guests that share a frame.
    SharedPages,
    /// Frames they share.
    CommonPages,
    /// Pages the scanner looked at.
    Scanned,
    /// Pages it merged.
    Merged,
    /// Ticks of the TSC spent on scanned pages that were not merged.
    ScanTicks,
    /// Ticks spent on those that were.
    MergeTicks,
    /// Writes to shared pages that got a copy.
    Breaks,
    /// Ticks spent on them.
    BreakTicks,
    /// Writes to pages of zeros that got a frame.
    ZeroBreaks,
    /// Ticks spent on them.
    ZeroBreakTicks,
    /// Touches of compressed pages that were unpacked.
    Decompressed,
    /// Ticks spent on them.
    DecompressTicks,
    /// Pages copied to other frames so that a block became wholly free.
    Moved,
    /// Times that a vmm-server stood still until a page of its guest was there.
    WindowWaits,
    /// Pages that were compressed.
    Compressed,
    /// Pages that went from memory to the swap partition.
    SwappedOut,
    /// Compressed pages that moved on to it.
    Spilled,
    /// Pages that were read back.
    SwappedIn,
    /// Pages that the swap partition did not take or give back.
    SwapErrors,
    /// Slots of it that nobody gets again.
    SwapBad,
    /// Bytes of capability slots that VMs use.
    CapabilityBytes,
    /// Bytes of the page states of admitted VMs.
    StateBytes,
    /// Bytes of the sharing table.
    SharingBytes,
    /// Regions of 2 MiB mapped by a large page.
    Promotions,
    /// Pages copied into their places for that.
    Gathered,
    /// Large pages taken apart for sharing; the others follow in the order of [`crate::mem::DEMOTIONS`].
    DemotedSharing,
    /// For the balloon.
    DemotedBalloon,
    /// For pages the guest reported free.
    DemotedReport,
    /// For pages compressed or swapped out.
    DemotedPaging,
    /// For samples.
    DemotedSampling,
    /// For pages that moved.
    DemotedMoving,
    /// Number of counters.
    Count,
}

/// Counters of one VM at the mem-server; all but the faults in pages, as [`crate::link::MemoryStats`] names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum MemVmCounter {
    /// What the guest sees.
    Size,
    /// Pages that back it now.
    Granted,
    /// Estimate of what it uses.
    Active,
    /// Its pages that are shared.
    Shared,
    /// What sharing saves.
    Saved,
    /// Pages its balloon holds.
    Balloon,
    /// Pages its balloon should hold.
    BalloonTarget,
    /// Its pages on the swap partition.
    Swapped,
    /// Its pages in the compressed tier.
    Compressed,
    /// What the mem-server spends on it.
    Overhead,
    /// Its allocation target.
    Target,
    /// Its pages found in use in the current sampling period.
    Touched,
    /// Pages that should be out on the swap partition.
    SwapTarget,
    /// What the idle memory tax takes off its target.
    TaxPaid,
    /// Its pages that are mapped by large pages.
    Large,
    /// First touches answered; the other kinds of faults follow in the order of [`crate::mem::FAULTS`].
    FaultsFill,
    /// Writes to shared pages.
    FaultsCow,
    /// Touches of compressed pages.
    FaultsCompressed,
    /// Of swapped ones.
    FaultsSwap,
    /// Of ballooned ones.
    FaultsBalloon,
    /// Of pages that were only not mapped.
    FaultsRemap,
    /// By the vmm-server.
    FaultsWindow,
    /// Number of counters.
    Count,
}

/// Counters of one client at the io-sched-server; client n's start at [`io_counter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum IoCounter {
    /// Reads completed.
    Reads,
    /// Writes completed.
    Writes,
    /// Flushes completed.
    Flushes,
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WrittenBytes,
    /// Requests that ended in an error.
    Errors,
    /// Median latency in nanoseconds.
    LatencyP50,
    /// 99th percentile of the latency in nanoseconds.
    LatencyP99,
    /// Number of counters.
    Count,
}

/// Counters of one group at the io-sched-server, as [`crate::io::GroupStats`] names them; group n's start at
/// [`io_group_counter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum IoGroupCounter {
    /// Reads completed.
    Reads,
    /// Writes completed.
    Writes,
    /// Flushes completed.
    Flushes,
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WrittenBytes,
    /// Requests that ended in an error.
    Errors,
    /// Requests served in the reservation phase.
    ByReservation,
    /// Requests served by shares.
    ByWeight,
    /// Number of counters.
    Count,
}

/// Counters of the mem-server that are no VM's.
pub const MEM_COUNTERS: usize = 48;
/// Counters per VM at the mem-server.
pub const MEM_VM_COUNTERS: usize = 24;
/// Counters per client at the io-sched-server.
pub const IO_CLIENT_COUNTERS: usize = 8;
/// Counters per group at the io-sched-server.
pub const IO_GROUP_COUNTERS: usize = 8;

/// Word of a vmm-server's shared page with `counter`.
pub const fn vmm_counter(counter: VmmCounter) -> usize {
    crate::startup::shared::COUNTERS + counter as usize
}

/// Word of the mem-server's shared page with `counter`.
pub const fn mem_counter(counter: MemCounter) -> usize {
    crate::startup::shared::COUNTERS + counter as usize
}

/// Word of the mem-server's shared page with `counter` of `vm`.
pub const fn mem_vm_counter(vm: VmId, counter: MemVmCounter) -> usize {
    let first = crate::startup::shared::COUNTERS + MEM_COUNTERS;
    first + vm.0 as usize * MEM_VM_COUNTERS + counter as usize
}

/// Word of the io-sched-server's shared page with `counter` of `client`.
pub const fn io_counter(client: u16, counter: IoCounter) -> usize {
    crate::startup::shared::COUNTERS + client as usize * IO_CLIENT_COUNTERS + counter as usize
}

/// Word of the io-sched-server's shared page with `counter` of `group`.
pub const fn io_group_counter(group: u8, counter: IoGroupCounter) -> usize {
    let first = io_counter(crate::io::MAX_CLIENTS as u16, IoCounter::Reads);
    first + group as usize * IO_GROUP_COUNTERS + counter as usize
}

const _: () = {
    use crate::startup::shared::WORDS;
    assert!(MemCounter::Count as usize <= MEM_COUNTERS);
    let demotions = MemCounter::DemotedMoving as usize - MemCounter::DemotedSharing as usize + 1;
    assert!(demotions == crate::mem::DEMOTIONS.len());
    let faults = MemVmCounter::FaultsWindow as usize - MemVmCounter::FaultsFill as usize + 1;
    assert!(faults == crate::mem::FAULTS.len());
    assert!(MemVmCounter::Count as usize <= MEM_VM_COUNTERS);
    assert!(IoCounter::Count as usize <= IO_CLIENT_COUNTERS);
    assert!(vmm_counter(VmmCounter::Count) <= WORDS);
    assert!(mem_vm_counter(VmId(crate::units::MAX_VMS as u16), MemVmCounter::Size) <= WORDS);
    assert!(IoGroupCounter::Count as usize <= IO_GROUP_COUNTERS);
    assert!(io_group_counter(crate::system::GROUPS_MAX as u8, IoGroupCounter::Reads) <= WORDS);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::{PAYLOAD_MAX, decode, decode_reply, encode};
    use crate::units::DiskId;

    #[test]
    fn longest_messages_fit_the_ipc_buffer() {
        let mut text = Text::new();
        while text.push('x').is_ok() {}
        let mut buffer = [0; PAYLOAD_MAX];
        let request =
            RootRequest::Event(VmEvent::Unsupported { rip: u64::MAX, exit: u64::MAX, what: text });
        let bytes = encode(&request, &mut buffer).unwrap();
        assert_eq!(decode::<Root>(Root::LABEL, bytes), Ok(request));
        let mut name = crate::system::Name::new();
        while name.push('x').is_ok() {}
        let reply = RootReply::Command(Command::Io(IoCommand::Attach {
            client: u16::MAX,
            disk: Disk {
                partition: name,
                read_only: true,
                io: IoControl::default(),
                on: DiskId(0),
                parts: 1,
            },
            group: Some(255),
            vm: Some((VmId(u16::MAX), IoControl::default())),
            ring_paddr: u64::MAX,
        }));
        let bytes = encode(&reply, &mut buffer).unwrap();
        assert_eq!(decode_reply::<Root>(bytes), Ok(reply));
    }
}
