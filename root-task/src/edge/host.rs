//! Answers to the host: rows of names and counters.

use core::sync::atomic::Ordering;

use protocol::io::GroupStats;
use protocol::link::{
    DiskStats, MachineStats, MemoryStats, Row, ServerId, ServerStats, ToHost, Unit, VmStats,
};
use protocol::mem::{DEMOTIONS, Explanation, FAULTS};
use protocol::root::{
    IoCounter, IoGroupCounter, MemCounter, MemVmCounter, VmmCounter, io_counter, io_group_counter,
    mem_counter, mem_vm_counter, vmm_counter,
};
use protocol::slots::Client;
use protocol::units::{DiskId, MACHINE_DISKS_MAX, Nanos, PAGE_SIZE, Pages, VmId};
use root_task::system::Supervisor;

use super::serial::Serial;
use super::servers::{Server, index};
use super::window::{ViewPage, view};

fn word(client: Client, word: usize) -> u64 {
    view(index(client), ViewPage::Shared).get(word).map_or(0, |word| word.load(Ordering::Relaxed))
}

fn micros(us: u64) -> Nanos {
    Nanos(us.saturating_mul(1000))
}

/// Names of the numbers of a VM's regions that are small for a reason, in the order of [`DEMOTIONS`].
const APART: [&str; DEMOTIONS.len()] = [
    "memory.small.sharing",
    "memory.small.balloon",
    "memory.small.free_report",
    "memory.small.paging",
    "memory.small.sampling",
    "memory.small.moving",
];

/// Names of the numbers of a VM's faults, in the order of [`FAULTS`].
const FAULT_TERMS: [&str; FAULTS.len()] = [
    "memory.faults.fill",
    "memory.faults.cow",
    "memory.faults.compressed",
    "memory.faults.swap",
    "memory.faults.balloon",
    "memory.faults.remap",
    "memory.faults.window",
];

/// Memory of a VM: the mem-server's figures, and what the root-task holds for it.
fn memory(vm: VmId, own_bytes: u64) -> MemoryStats {
    let get = |counter| Pages(word(Client::Mem, mem_vm_counter(vm, counter)));
    MemoryStats {
        size: get(MemVmCounter::Size),
        granted: get(MemVmCounter::Granted),
        active: get(MemVmCounter::Active),
        shared: get(MemVmCounter::Shared),
        saved: get(MemVmCounter::Saved),
        balloon: get(MemVmCounter::Balloon),
        balloon_target: get(MemVmCounter::BalloonTarget),
        swapped: get(MemVmCounter::Swapped),
        compressed: get(MemVmCounter::Compressed),
        overhead: Pages(get(MemVmCounter::Overhead).0 + own_bytes.div_ceil(PAGE_SIZE)),
        touched: get(MemVmCounter::Touched),
        swap_target: get(MemVmCounter::SwapTarget),
        tax_paid: get(MemVmCounter::TaxPaid),
        target: get(MemVmCounter::Target),
        large: get(MemVmCounter::Large),
    }
}

fn disk(clients: impl Iterator<Item = (u16, DiskId)>) -> DiskStats {
    let mut sum = DiskStats::default();
    for (client, on) in clients {
        let get = |counter| word(Client::Io(on), io_counter(client, counter));
        sum.reads += get(IoCounter::Reads);
        sum.writes += get(IoCounter::Writes);
        sum.flushes += get(IoCounter::Flushes);
        sum.read_bytes += get(IoCounter::ReadBytes);
        sum.written_bytes += get(IoCounter::WrittenBytes);
        sum.errors += get(IoCounter::Errors);
        // Of several disks the slower one is what the user feels.
        sum.p50 = sum.p50.max(Nanos(get(IoCounter::LatencyP50)));
        sum.p99 = sum.p99.max(Nanos(get(IoCounter::LatencyP99)));
    }
    sum
}

fn exits(vm: VmId) -> [u64; 8] {
    let get = |counter| word(Client::Vmm(vm), vmm_counter(counter));
    [
        get(VmmCounter::ExitCpuid),
        get(VmmCounter::ExitMsr),
        get(VmmCounter::ExitIo),
        get(VmmCounter::ExitMmio),
        get(VmmCounter::ExitHlt),
        get(VmmCounter::ExitFaultIn),
        get(VmmCounter::ExitWindow) + get(VmmCounter::Notified),
        get(VmmCounter::ExitVmmcall) + get(VmmCounter::ExitOther),
    ]
}

/// A VM's row.
pub fn vm(serial: &mut Serial, supervisor: &Supervisor, id: u32, vm: VmId) {
    if let (Some(config), Some(state)) = (supervisor.config(vm), supervisor.state(vm)) {
        let group = supervisor.group_of(vm);
        serial.send(&ToHost::Row { id, row: Row::Vm { vm, name: &config.name, state, group } });
    }
}

/// The groups, and what the disks whose servers run did for each.
pub fn groups(
    serial: &mut Serial,
    supervisor: &Supervisor,
    id: u32,
    has_io: [bool; MACHINE_DISKS_MAX],
) {
    for (index, group) in (0..).zip(supervisor.io_settings().0) {
        let row = Row::Group { group: &group.name, memory: group.memory, io: group.io };
        serial.send(&ToHost::Row { id, row });
        for on in DiskId::all().filter(|disk| has_io.get(disk.index()) == Some(&true)) {
            let row = Row::GroupDisk { group: &group.name, on, stats: group_disk(index, on) };
            serial.send(&ToHost::Row { id, row });
        }
    }
}

fn group_disk(group: u8, on: DiskId) -> GroupStats {
    let get = |counter| word(Client::Io(on), io_group_counter(group, counter));
    GroupStats {
        reads: get(IoGroupCounter::Reads),
        writes: get(IoGroupCounter::Writes),
        flushes: get(IoGroupCounter::Flushes),
        read_bytes: get(IoGroupCounter::ReadBytes),
        written_bytes: get(IoGroupCounter::WrittenBytes),
        errors: get(IoGroupCounter::Errors),
        by_reservation: get(IoGroupCounter::ByReservation),
        by_weight: get(IoGroupCounter::ByWeight),
    }
}

/// Counters of a VM whose server exists.
pub fn vm_stats(
    serial: &mut Serial,
    supervisor: &Supervisor,
    id: u32,
    vm: VmId,
    server: &mut Server,
    ring_bytes: u64,
    (has_mem, has_io): (bool, [bool; MACHINE_DISKS_MAX]),
) {
    let own_bytes = server.bytes() + ring_bytes;
    let stats = VmStats {
        memory: if has_mem { memory(vm, own_bytes) } else { MemoryStats::default() },
        exits: exits(vm),
        vcpu_time: micros(server.consumed_us()),
        disk: disk(
            supervisor.clients_of(vm).filter(|(_, on)| has_io.get(on.index()) == Some(&true)),
        ),
    };
    serial.send(&ToHost::Row { id, row: Row::VmStats { vm, stats } });
    if has_mem {
        let first = mem_vm_counter(vm, MemVmCounter::FaultsFill);
        for (at, name) in FAULT_TERMS.into_iter().enumerate() {
            let count = word(Client::Mem, first + at);
            term(serial, id, ServerId::Mem, Some(vm), name, count, Unit::Count);
        }
    }
    let halted = word(Client::Vmm(vm), vmm_counter(VmmCounter::HaltedNanos));
    term(serial, id, ServerId::Vmm(vm), Some(vm), "vcpu.halted", halted, Unit::Nanos);
    let injected = word(Client::Vmm(vm), vmm_counter(VmmCounter::Injected));
    term(serial, id, ServerId::Vmm(vm), Some(vm), "vcpu.interrupts", injected, Unit::Count);
    term(serial, id, ServerId::Root, Some(vm), "server.bytes", own_bytes, Unit::Bytes);
}

/// Counters of a server.
pub fn server_stats(
    serial: &mut Serial,
    id: u32,
    server: ServerId,
    held: &mut Server,
    restarts: u32,
) {
    let logs_lost = u32::try_from(held.logs_lost).unwrap_or(u32::MAX);
    let stats = ServerStats { time: micros(held.consumed_us()), restarts, logs_lost };
    serial.send(&ToHost::Row { id, row: Row::Server { server, stats } });
}

/// Counters of the machine.
pub fn machine(serial: &mut Serial, id: u32, memory: Pages, kernel_memory: Pages, has_mem: bool) {
    let get = |counter| if has_mem { word(Client::Mem, mem_counter(counter)) } else { 0 };
    let stats = MachineStats {
        uptime: runtime::clock::now(),
        memory,
        kernel_memory,
        free: Pages(get(MemCounter::FreePages)),
        memory_state: u8::try_from(get(MemCounter::State)).unwrap_or(0),
    };
    serial.send(&ToHost::Row { id, row: Row::Machine(stats) });
    let total = get(MemCounter::TotalPages);
    term(serial, id, ServerId::Mem, None, "memory.total", total, Unit::Pages);
    let metadata = get(MemCounter::MetadataPages);
    term(serial, id, ServerId::Mem, None, "memory.metadata", metadata, Unit::Pages);
    for (name, counter, unit) in [
        ("memory.shared", MemCounter::SharedPages, Unit::Pages),
        ("memory.common", MemCounter::CommonPages, Unit::Pages),
        ("sharing.scanned", MemCounter::Scanned, Unit::Count),
        ("sharing.merged", MemCounter::Merged, Unit::Count),
        ("sharing.scan_ticks", MemCounter::ScanTicks, Unit::Count),
        ("sharing.merge_ticks", MemCounter::MergeTicks, Unit::Count),
        ("sharing.breaks", MemCounter::Breaks, Unit::Count),
        ("sharing.break_ticks", MemCounter::BreakTicks, Unit::Count),
        ("sharing.zero_breaks", MemCounter::ZeroBreaks, Unit::Count),
        ("sharing.zero_break_ticks", MemCounter::ZeroBreakTicks, Unit::Count),
        ("memory.decompressed", MemCounter::Decompressed, Unit::Count),
        ("memory.decompress_ticks", MemCounter::DecompressTicks, Unit::Count),
        ("memory.moved", MemCounter::Moved, Unit::Pages),
        ("memory.window_waits", MemCounter::WindowWaits, Unit::Count),
        ("memory.compressed", MemCounter::Compressed, Unit::Count),
        ("memory.swapped_out", MemCounter::SwappedOut, Unit::Count),
        ("memory.spilled", MemCounter::Spilled, Unit::Count),
        ("memory.swapped_in", MemCounter::SwappedIn, Unit::Count),
        ("memory.swap_errors", MemCounter::SwapErrors, Unit::Pages),
        ("memory.swap_bad", MemCounter::SwapBad, Unit::Pages),
        ("memory.capability_bytes", MemCounter::CapabilityBytes, Unit::Bytes),
        ("memory.state_bytes", MemCounter::StateBytes, Unit::Bytes),
        ("memory.sharing_bytes", MemCounter::SharingBytes, Unit::Bytes),
        ("memory.promotions", MemCounter::Promotions, Unit::Count),
        ("memory.gathered", MemCounter::Gathered, Unit::Pages),
        ("memory.demotions.sharing", MemCounter::DemotedSharing, Unit::Count),
        ("memory.demotions.balloon", MemCounter::DemotedBalloon, Unit::Count),
        ("memory.demotions.free_report", MemCounter::DemotedReport, Unit::Count),
        ("memory.demotions.paging", MemCounter::DemotedPaging, Unit::Count),
        ("memory.demotions.sampling", MemCounter::DemotedSampling, Unit::Count),
        ("memory.demotions.moving", MemCounter::DemotedMoving, Unit::Count),
    ] {
        term(serial, id, ServerId::Mem, None, name, get(counter), unit);
    }
}

/// A client of a disk, with the figures the supervisor was told last.
pub fn disk_client(serial: &mut Serial, supervisor: &Supervisor, id: u32, client: u16) {
    let Some(info) = supervisor.client(client) else { return };
    let row = Row::DiskClient {
        vm: info.vm,
        disk: info.disk,
        partition: info.partition,
        group: info.group,
        control: info.io,
        stats: *supervisor.client_stats(),
        part: info.part,
        on: info.on,
    };
    serial.send(&ToHost::Row { id, row });
}

/// A disk of the machine, with the figures the supervisor was told last.
pub fn disk_machine(serial: &mut Serial, supervisor: &Supervisor, id: u32, disk: DiskId) {
    let row = Row::Disk { disk, stats: *supervisor.disk_stats() };
    serial.send(&ToHost::Row { id, row });
}

/// One named number.
pub fn term(
    serial: &mut Serial,
    id: u32,
    server: ServerId,
    vm: Option<VmId>,
    name: &str,
    value: u64,
    unit: Unit,
) {
    serial.send(&ToHost::Row { id, row: Row::Term { server, vm, name, value, unit } });
}

/// Every number behind a VM's memory.
pub fn explanation(serial: &mut Serial, id: u32, vm: VmId, terms: &Explanation) {
    let stats = &terms.stats;
    let pages = [
        ("memory.size", stats.size),
        ("memory.granted", stats.granted),
        ("memory.consumed", stats.consumed),
        ("memory.touched", stats.touched),
        ("memory.active", stats.active),
        ("memory.saved", stats.saved),
        ("memory.balloon", stats.balloon),
        ("memory.balloon_target", stats.balloon_target),
        ("memory.swap_target", stats.swap_target),
        ("memory.reservation", terms.controls.reservation.0),
        ("memory.limit", terms.controls.limit.0),
        ("memory.budget", terms.budget),
        ("memory.sum_reservations", terms.sum_reservations),
        ("memory.untaxed_target", terms.untaxed_target),
        ("memory.tax_paid", stats.tax_paid),
        ("memory.target", stats.target),
        ("memory.overhead", stats.overhead),
        ("memory.large", stats.large),
    ];
    for (name, value) in pages {
        term(serial, id, ServerId::Mem, Some(vm), name, value, Unit::Pages);
    }
    let counts = [
        ("memory.shares", u64::from(terms.controls.shares)),
        ("memory.weight_milli", terms.weight_milli),
        ("memory.taxed_shares", terms.taxed_shares),
        ("memory.level_milli", terms.level_milli),
    ];
    for (name, value) in counts {
        term(serial, id, ServerId::Mem, Some(vm), name, value, Unit::Count);
    }
    for (name, count) in APART.iter().zip(terms.taken_apart) {
        term(serial, id, ServerId::Mem, Some(vm), name, u64::from(count), Unit::Count);
    }
    let tax = u64::from(terms.tax);
    term(serial, id, ServerId::Mem, Some(vm), "memory.tax", tax, Unit::Permille);
    term(serial, id, ServerId::Mem, Some(vm), "memory.computed_at", terms.at.0, Unit::Nanos);
}
