//! The management link between the root-task and the host command.
//!
//! A frame is the COBS encoding of one postcard value, [`ToHost`] or [`ToTarget`], ended by a
//! zero byte. A reader that loses its place finds the next frame behind the next zero. Every
//! request is answered by any number of [`ToHost::Row`]s and then exactly one [`ToHost::Done`],
//! all with the request's number; console bytes, logs and events come in between at any time.
//! Variants are encoded by position: append only.

use crate::io;
use crate::mem::PressureState;
use crate::system;
use crate::units::{DiskId, Gfn, Nanos, Pages, VmId};
use serde::{Deserialize, Serialize};

/// Version spoken here; the first frame from the target carries it.
pub const VERSION: u16 = 4;
/// Longest frame in bytes, its closing zero included.
pub const FRAME_MAX: usize = 2048;
/// Most console or log bytes in one frame: leaves room for the variant and the COBS codes.
pub const CHUNK_MAX: usize = 1024;

/// A server of the running system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerId {
    /// The root-task.
    Root,
    /// The mem-server.
    Mem,
    /// The io-sched-server of a disk of the machine.
    Io(DiskId),
    /// The vmm-server of a VM.
    Vmm(VmId),
}

/// What the target tells the host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one frame exists at a time; there is no heap")]
pub enum ToHost<'a> {
    /// First frame after start-up.
    Hello {
        /// [`VERSION`] of the target.
        version: u16,
        /// Name of the system that runs.
        system: &'a str,
        /// RAM of the machine.
        memory: Pages,
        /// Processor cores.
        cores: u16,
    },
    /// Bytes of a server's defmt stream, in order.
    Log {
        /// Who wrote them.
        server: ServerId,
        /// Frames that did not fit the ring since the last chunk.
        lost: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// Bytes a guest wrote to its console.
    Console {
        /// The VM.
        vm: VmId,
        /// The bytes.
        data: &'a [u8],
    },
    /// Something happened to a VM or a server.
    Event {
        /// When.
        at: Nanos,
        /// What.
        event: Event,
    },
    /// One line of the answer to request `id`.
    Row {
        /// Number of the request.
        id: u32,
        /// The line.
        row: Row<'a>,
    },
    /// The answer to request `id` is complete.
    Done {
        /// Number of the request.
        id: u32,
        /// Whether it was carried out.
        outcome: Result<(), Refusal>,
    },
}

/// What the host tells the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "one request exists at a time; the target has no heap to box the VM description"
)]
pub enum ToTarget<'a> {
    /// Bytes for a guest's console; not answered.
    ConsoleInput {
        /// The VM.
        vm: VmId,
        /// The bytes.
        data: &'a [u8],
    },
    /// Answered by rows and one `Done`.
    Request {
        /// Chosen by the host; comes back in the answer.
        id: u32,
        /// What is asked.
        request: Request,
    },
}

/// What the host may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "one request exists at a time; the target has no heap to box the VM description"
)]
pub enum Request {
    /// Nothing; is the target alive?
    Ping,
    /// One `Row::Vm` for each VM.
    VmList,
    /// Starts a stopped VM.
    VmStart(VmId),
    /// Stops a VM at once, as pulling its plug would.
    VmStop(VmId),
    /// Holds a VM's processor.
    VmPause(VmId),
    /// Lets a paused VM go on.
    VmResume(VmId),
    /// Removes a stopped VM; its id may be given to another.
    VmRemove(VmId),
    /// Adds a VM, stopped; its kernel and modules must be in the archive. One `Row::Vm`.
    VmCreate(system::Vm),
    /// Changes a setting of a VM.
    VmSet {
        /// The VM.
        vm: VmId,
        /// What to change.
        setting: Setting,
    },
    /// One `Row::Vm` and `Row::VmStats` for each VM, `Row::Server` for each server, `Row::Group` for each group and
    /// `Row::GroupDisk` for each and each disk, one `Row::Machine`, and `Row::Term`s.
    Stats,
    /// One `Row::Cap` for each capability of each server.
    Caps,
    /// `Row::Term`s: every number behind the VM's present allocation.
    Explain(VmId),
    /// Kills a server by a fault (crash drill).
    Kill(ServerId),
    /// Ends the run: the machine leaves through its exit device with `code`.
    Quit {
        /// Exit status the host sees.
        code: u8,
    },
    /// Changes the disk claim of a group.
    GroupSet {
        /// The group's name.
        group: system::Name,
        /// What changes.
        change: system::IoChange,
    },
    /// Changes the claim of a group on memory.
    GroupMemorySet {
        /// The group's name.
        group: system::Name,
        /// What changes.
        change: system::GroupMemoryChange,
    },
    /// Changes the machine's memory controls.
    MemorySet(system::MemoryChange),
    /// Another policy for the disk.
    IoPolicy(crate::io::Policy),
    /// Changes the disk claim of the swap partition.
    SwapIo(system::IoChange),
    /// For each disk of the machine one `Row::DiskClient` for each of its clients, then one `Row::Disk`.
    Disks,
}

/// A setting that can be changed while a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setting {
    /// Balloon target by hand: pages the balloon shall hold; `None` gives it back to the policy.
    Balloon(Option<Pages>),
    /// `memory.shares`.
    MemoryShares(u32),
    /// `memory.reservation`.
    MemoryReservation(Pages),
    /// `memory.limit`.
    MemoryLimit(Pages),
    /// `memory.tax` in permille.
    MemoryTax(u16),
    /// `io`: the claim of all its disks together.
    VmIo(system::IoChange),
    /// `diskN.io`: the claim of disk `disk`.
    Io {
        /// Index of the disk.
        disk: u8,
        /// What changes.
        change: system::IoChange,
    },
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No VM or server has that id.
    Unknown,
    /// The VM's state does not allow it.
    State(VmState),
    /// Memory is short: what was asked and what is to be had.
    Memory {
        /// Pages asked for.
        asked: Pages,
        /// Pages available.
        available: Pages,
    },
    /// The description or setting breaks a rule.
    Rule(system::VmRule),
    /// A kernel or module is not in the boot archive, or a partition not on the disk.
    Missing,
    /// A table of the target is full.
    Full,
    /// This target cannot do it.
    Unsupported,
    /// A server did not do its part.
    Server(ServerId),
    /// The request could not be decoded.
    Malformed,
    /// Memory for servers and kernel objects is short.
    ServerMemory {
        /// Pages asked for, in one piece.
        asked: Pages,
        /// Pages free, in whatever pieces.
        free: Pages,
    },
    /// The sizes of all VMs together are too large for the machine.
    GuestPages {
        /// The size asked for.
        asked: Pages,
        /// What the others leave in one piece.
        free: Pages,
    },
    /// Capability slots of the root-task are short.
    Slots {
        /// Neighbouring slots asked for.
        asked: u64,
        /// Slots free.
        free: u64,
    },
    /// Swap space is short: what all limits less reservations need and what there is.
    Swap {
        /// Pages needed.
        needed: Pages,
        /// Pages of the swap partition.
        available: Pages,
    },
    /// The disk cannot keep the reservation: reference requests per second asked for, and still free.
    Disk {
        /// Asked for.
        asked: u32,
        /// Free.
        free: u32,
    },
    /// A reservation does not fit the limit of its group, or a group's limit the reservations in it: requests per second.
    GroupLimit {
        /// Asked for.
        asked: u32,
        /// What the limit leaves.
        free: u32,
    },
    /// All virtual disks together have more parts than the io-sched-servers have clients.
    DiskClients,
}

/// State of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Defined, holds no memory.
    #[default]
    Stopped,
    /// Its server is being made.
    Starting,
    /// Its processor runs or waits for an interrupt.
    Running,
    /// Its processor is held.
    Paused,
    /// It was stopped because of an error and holds no memory.
    Crashed,
}

/// Why a VM stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The guest powered itself off.
    PowerOff,
    /// The host asked.
    Requested,
    /// The guest's processor shut down.
    TripleFault {
        /// Guest instruction pointer.
        ip: u64,
    },
    /// The guest did what is not supported.
    Unsupported {
        /// Guest instruction pointer.
        ip: u64,
        /// Exit code of the processor.
        code: u64,
    },
    /// The guest's image could not be loaded.
    BadImage,
    /// The mem-server ended, and the guest's memory with it.
    Memory,
    /// Its vmm-server was ended by a fault.
    ServerFault,
    /// It could not be started.
    Refused(Refusal),
    /// The swap disk did not give back a page that the guest needs.
    PageLost {
        /// The guest frame.
        gfn: Gfn,
    },
}

/// What may happen at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A VM changed its state.
    VmState {
        /// The VM.
        vm: VmId,
        /// The new state.
        state: VmState,
    },
    /// A VM stopped.
    VmStopped {
        /// The VM.
        vm: VmId,
        /// Why.
        reason: StopReason,
    },
    /// A guest restarted itself.
    VmRebooted {
        /// The VM.
        vm: VmId,
    },
    /// A server was ended by a fault.
    ServerFault {
        /// The server.
        server: ServerId,
        /// Kind of fault: the kernel's fault label.
        label: u64,
        /// Instruction pointer.
        ip: u64,
        /// Address, or fault-specific word.
        address: u64,
    },
    /// A server was started again.
    ServerRestarted {
        /// The server.
        server: ServerId,
        /// From fault to first instruction.
        downtime: Nanos,
    },
    /// All servers run and every VM that starts at boot was started.
    Ready,
    /// Free memory passed a threshold.
    MemoryPressure {
        /// From.
        from: PressureState,
        /// To.
        to: PressureState,
        /// Free pages then.
        free: Pages,
    },
}

/// Unit of a [`Row::Term`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// A plain count.
    Count,
    /// 4 KiB pages.
    Pages,
    /// Nanoseconds.
    Nanos,
    /// Thousandths.
    Permille,
    /// Requests or pages per second.
    PerSecond,
    /// Bytes.
    Bytes,
}

/// One line of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Row<'a> {
    /// A VM.
    Vm {
        /// Its id.
        vm: VmId,
        /// Its name.
        name: &'a str,
        /// Its state.
        state: VmState,
        /// Name of its group, if it is in one.
        group: Option<&'a str>,
    },
    /// Counters of a VM.
    VmStats {
        /// Its id.
        vm: VmId,
        /// The counters.
        stats: VmStats,
    },
    /// Counters of a server.
    Server {
        /// Which.
        server: ServerId,
        /// The counters.
        stats: ServerStats,
    },
    /// Counters of the machine.
    Machine(MachineStats),
    /// One capability.
    Cap {
        /// Who holds it.
        server: ServerId,
        /// In which slot of its CSpace.
        slot: u32,
        /// Type of the object.
        kind: &'a str,
        /// Rights: bit 0 write, 1 read, 2 grant, 3 grant-reply.
        rights: u8,
        /// What for.
        purpose: &'a str,
    },
    /// One named number.
    Term {
        /// The server whose number it is.
        server: ServerId,
        /// The VM it is about.
        vm: Option<VmId>,
        /// Its name, dotted lower-case words.
        name: &'a str,
        /// Its value.
        value: u64,
        /// Its unit.
        unit: Unit,
    },
    /// A client of the disk.
    DiskClient {
        /// Whose virtual disk; `None` for a server's own.
        vm: Option<VmId>,
        /// Which of its disks.
        disk: u8,
        /// Name of the partition.
        partition: &'a str,
        /// Name of the group whose claim it counts against too, if its VM is in one.
        group: Option<&'a str>,
        /// Its claim.
        control: system::IoControl,
        /// Its figures.
        stats: io::ClientStats,
        /// Which part of the virtual disk, and of how many.
        part: (u8, u8),
        /// The disk of the machine that has it.
        on: DiskId,
    },
    /// A disk of the machine.
    Disk {
        /// Which.
        disk: DiskId,
        /// Its figures.
        stats: io::DiskStats,
    },
    /// A group of VMs with its present claims.
    Group {
        /// Its name.
        group: &'a str,
        /// Its claim on memory.
        memory: system::GroupMemory,
        /// Its claim on the disks of the machine, all together.
        io: system::IoControl,
    },
    /// What a disk of the machine did for a group.
    GroupDisk {
        /// The group's name.
        group: &'a str,
        /// The disk.
        on: DiskId,
        /// Counted by its server.
        stats: io::GroupStats,
    },
}

/// Kinds of VM exits, in the order of [`VmStats::exits`].
pub const EXIT_KINDS: [&str; 8] =
    ["cpuid", "msr", "pio", "mmio", "hlt", "fault_in", "interrupt", "other"];

/// Memory of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// What the guest sees.
    pub size: Pages,
    /// Pages that back it now.
    pub granted: Pages,
    /// Estimate of what it uses.
    pub active: Pages,
    /// Its pages that are shared.
    pub shared: Pages,
    /// What sharing saves.
    pub saved: Pages,
    /// Pages its balloon holds.
    pub balloon: Pages,
    /// Pages its balloon should hold.
    pub balloon_target: Pages,
    /// Its pages on the swap partition.
    pub swapped: Pages,
    /// Its pages in the compressed tier.
    pub compressed: Pages,
    /// What the hypervisor spends on it.
    pub overhead: Pages,
    /// Its pages found in use in the current sampling period.
    pub touched: Pages,
    /// Pages that should be out on the swap partition, those that are and those that paging is still to take.
    pub swap_target: Pages,
    /// What the idle memory tax takes off its target.
    pub tax_paid: Pages,
    /// What the allocation policy wants it to have.
    pub target: Pages,
    /// Its pages that are mapped by large pages.
    pub large: Pages,
}

/// Disk work of a VM, all its disks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
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
    /// Requests that failed.
    pub errors: u64,
    /// Median latency of the recent requests.
    pub p50: Nanos,
    /// 99th percentile of the same.
    pub p99: Nanos,
}

/// Counters of a VM since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Its memory.
    pub memory: MemoryStats,
    /// Exits by kind, in the order of [`EXIT_KINDS`].
    pub exits: [u64; 8],
    /// Time its virtual processor and vmm-server ran.
    pub vcpu_time: Nanos,
    /// Its disks.
    pub disk: DiskStats,
}

/// Counters of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStats {
    /// Processor time charged to it.
    pub time: Nanos,
    /// Times it was started again.
    pub restarts: u32,
    /// Log frames lost.
    pub logs_lost: u32,
}

/// Counters of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStats {
    /// Since boot.
    pub uptime: Nanos,
    /// RAM.
    pub memory: Pages,
    /// Kept for kernel objects and servers.
    pub kernel_memory: Pages,
    /// Free pages of the mem-server.
    pub free: Pages,
    /// 0 high, 1 soft, 2 hard, 3 low.
    pub memory_state: u8,
}

/// Encodes one frame into `buffer`, closing zero included; `None` if it does not fit.
pub fn encode<'b, T: Serialize>(value: &T, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    postcard::to_slice_cobs(value, buffer).ok().map(|used| &*used)
}

/// Decodes one frame in place; `frame` ends with its zero. `None` if it is not a `T`.
pub fn decode<'b, T: Deserialize<'b>>(frame: &'b mut [u8]) -> Option<T> {
    postcard::from_bytes_cobs(frame).ok()
}

/// Collects bytes into frames of at most `N` bytes.
///
/// A longer frame is dropped whole and counted; the next one is found behind its zero.
#[derive(Clone, Debug)]
pub struct Deframer<const N: usize> {
    bytes: [u8; N],
    length: usize,
    is_overrun: bool,
    dropped: u32,
}

impl<const N: usize> Default for Deframer<N> {
    fn default() -> Self {
        Self { bytes: [0; N], length: 0, is_overrun: false, dropped: 0 }
    }
}

impl<const N: usize> Deframer<N> {
    /// Takes one byte; the whole frame, to be passed to [`decode`], when `byte` ends one.
    pub fn push(&mut self, byte: u8) -> Option<&mut [u8]> {
        match self.bytes.get_mut(self.length) {
            Some(place) => {
                *place = byte;
                self.length += 1;
            }
            None => self.is_overrun = true,
        }
        if byte != 0 {
            return None;
        }
        let length = core::mem::take(&mut self.length);
        if core::mem::take(&mut self.is_overrun) {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        if length <= 1 {
            return None; // a lone zero separates, it is no frame
        }
        self.bytes.get_mut(..length)
    }

    /// Frames dropped because they were too long.
    pub const fn dropped(&self) -> u32 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::{Deframer, FRAME_MAX, Request, Row, ServerId, ToHost, ToTarget, VmStats, encode};
    use crate::units::VmId;

    fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut deframer = Deframer::<FRAME_MAX>::default();
        bytes.iter().filter_map(|&b| deframer.push(b).map(|frame| frame.to_vec())).collect()
    }

    #[test]
    fn frames_come_back_one_by_one() {
        let values = [
            ToHost::Log { server: ServerId::Vmm(VmId(3)), lost: 0, data: &[0, 1, 0, 255] },
            ToHost::Row { id: 7, row: Row::VmStats { vm: VmId(0), stats: VmStats::default() } },
            ToHost::Done { id: 7, outcome: Ok(()) },
        ];
        let mut stream = vec![0]; // an empty frame in front is skipped
        for value in &values {
            stream.extend(encode(value, &mut [0; FRAME_MAX]).unwrap());
        }
        let mut frames = frames(&stream);
        assert_eq!(frames.len(), 3);
        for (frame, value) in frames.iter_mut().zip(values) {
            assert_eq!(super::decode::<ToHost>(frame), Some(value));
        }
    }

    #[test]
    fn a_reader_finds_its_place_again() {
        let mut stream =
            encode(&ToHost::Done { id: 1, outcome: Ok(()) }, &mut [0; 64]).unwrap()[2..].to_vec();
        let whole = ToHost::Done { id: 2, outcome: Ok(()) };
        stream.extend(encode(&whole, &mut [0; 64]).unwrap());
        let mut frames = frames(&stream);
        let last = frames.last_mut().unwrap();
        assert_eq!(super::decode::<ToHost>(last), Some(whole));
    }

    #[test]
    fn a_frame_too_long_is_dropped_whole() {
        let mut deframer = Deframer::<4>::default();
        for byte in [1, 1, 1, 1, 1, 1, 0, 2] {
            assert!(deframer.push(byte).is_none());
        }
        assert_eq!(deframer.push(0), Some(&mut [2, 0][..]));
        assert_eq!(deframer.dropped(), 1);
    }

    #[test]
    fn the_largest_request_fits_a_frame() {
        use crate::system::{Balloon, Disk, IoControl, Memory, Sharing, Vm};
        use crate::units::{DiskId, Pages};
        let name = crate::system::Name::try_from("x".repeat(32).as_str()).unwrap();
        let io = IoControl {
            reservation: u32::MAX,
            shares: u32::MAX,
            limit: Some(u32::MAX),
            limit_bytes: Some(u64::MAX),
            reservation_bytes: u64::MAX,
            burst: u16::MAX,
        };
        let partition = name.clone();
        let disk = Disk { partition, read_only: true, io, on: DiskId(3), parts: 1 };
        let vm = Vm {
            name: name.clone(),
            group: Some(255),
            vcpus: 255,
            memory: Memory {
                size: Pages(u64::MAX),
                reservation: Pages(u64::MAX),
                shares: u32::MAX,
                limit: Pages(u64::MAX),
                tax: Some(u16::MAX),
                sharing: Sharing::None,
            },
            kernel: name.clone(),
            modules: [name.clone(), name.clone(), name.clone(), name].into_iter().collect(),
            cmdline: "y".repeat(256).as_str().try_into().unwrap(),
            disks: [disk.clone(), disk.clone(), disk.clone(), disk].into_iter().collect(),
            balloon: Balloon::default(),
            autostart: true,
            io: Some(io),
        };
        let request = ToTarget::Request { id: u32::MAX, request: Request::VmCreate(vm) };
        let mut buffer = [0; FRAME_MAX];
        let mut frame = encode(&request, &mut buffer).unwrap().to_vec();
        assert_eq!(super::decode::<ToTarget>(&mut frame), Some(request));
    }
}
