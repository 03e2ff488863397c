//! A hostile vmm-server made of bytes against a whole mem-server in too little memory: statistics of a guest, balloon, free
//! pages, touches of anything, orders that are not its to give; and the root-task's orders between them.
//!
//! The same interpreter serves the seeded run of `cargo test` and the cargo-fuzz target `memory`. What must hold after each step
//! is checked here: the accounting, that no page is seen by two, and that an honest guest beside it reads what it wrote.

use std::collections::BTreeMap;

use fuzz_input::Input;
use mem_server::model::INCOMPRESSIBLE;
use mem_server::server::{Fault, Policy};
use protocol::mem::{
    Controls, GfnRange, GuestStats, MemError, MemReply, MemRequest, Sharing, VmMemory,
    release_reason,
};
use protocol::units::{Gfn, Nanos, Pages, VmId};

use super::{MIB, Storage, World};

const HOSTILE: VmId = VmId(0);
const HONEST: VmId = VmId(1);
/// Memory of each guest: together more than the machine has for them.
const SIZE: u64 = 8 * MIB;
const BLOCKS: u32 = 4;
/// Longest string worth looking at: later steps find the same states again.
const STEPS_MAX: usize = 1000;

/// What a run came across.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Statistics taken.
    pub statistics: usize,
    /// Pages of the hostile guest that were given up or taken back.
    pub moved: u64,
    /// Reads of the honest guest that were compared.
    pub compared: usize,
    /// Pages written to the swap area.
    pub swapped: u64,
}

/// An honest guest's memory as it must be.
struct Honest(BTreeMap<u32, u64>);

impl Honest {
    /// Writes or reads one of its pages; refused is allowed, wrong is not. How many were compared.
    fn step(&mut self, world: &mut World<'_>, input: &mut Input<'_>) -> usize {
        let index = input.below(SIZE) as u32;
        if input.byte() & 1 == 1 {
            return self.compare(world, index);
        }
        // Few contents, so that some are equal, and zero; or many pages, each with its own, of which some compress.
        let kind = u64::from(input.byte());
        let (pages, hard) = if kind < 16 { (1, 0) } else { (100, (kind & 1) * INCOMPRESSIBLE) };
        for index in index..(index + pages).min(SIZE as u32) {
            let tag = if pages == 1 { kind } else { hard | kind << 32 | u64::from(index) };
            if world.write(HONEST, index, tag).is_some() {
                self.0.insert(index, tag);
            }
        }
        0
    }

    fn compare(&self, world: &mut World<'_>, index: u32) -> usize {
        let wanted = self.0.get(&index).copied().unwrap_or(0);
        let Some(found) = world.read(HONEST, index) else { return 0 };
        assert_eq!(found, wanted, "page {index} of the honest guest");
        1
    }
}

fn gfn(input: &mut Input<'_>) -> Gfn {
    Gfn(if input.byte() & 3 == 0 { input.value() } else { input.below(SIZE + 2) })
}

fn ranges(input: &mut Input<'_>) -> Vec<GfnRange> {
    let range = |input: &mut Input<'_>| {
        let count = if input.byte() & 7 == 0 { input.value() } else { 1 + input.below(64) };
        // Any word is a range on the way to the server.
        GfnRange::new(gfn(input), count).unwrap_or_else(|| GfnRange::from_word(input.value()))
    };
    (0..=input.byte() % 4).map(|_| range(input)).collect()
}

/// What the statistics queue may have said: each figure or none, of any size.
fn statistics(input: &mut Input<'_>) -> GuestStats {
    let mut figure = || match input.byte() % 4 {
        0 => None,
        1 => Some(!input.value()),
        _ => Some(input.value()),
    };
    GuestStats {
        swap_in: figure(),
        swap_out: figure(),
        major_faults: figure(),
        minor_faults: figure(),
        free: figure(),
        total: figure(),
        available: figure(),
        disk_caches: figure(),
        oom_kills: figure(),
        balloon: figure(),
    }
}

/// A call of the hostile vmm-server.
fn call(world: &mut World<'_>, input: &mut Input<'_>, seen: &mut Seen) {
    let World { server, machine, .. } = world;
    match input.byte() % 12 {
        0..=3 => {
            let reply = server.control(HOSTILE, MemRequest::GuestStats(statistics(input)));
            seen.statistics += usize::from(matches!(reply, MemReply::Info(_)));
        }
        4 => {
            let ready = input.byte() & 3 != 0;
            server.control(HOSTILE, MemRequest::BalloonReady { ready });
        }
        5 | 6 => {
            let reasons = [release_reason::BALLOON, release_reason::FREE_REPORT, input.value()];
            let reason = input.pick(&reasons);
            let ranges = ranges(input).into_iter();
            seen.moved += server.release(HOSTILE, reason, ranges, machine).done;
        }
        7 => seen.moved += server.deflate(HOSTILE, ranges(input).into_iter()).done,
        8 | 9 => {
            let (gfn, access) = (gfn(input), input.value());
            if server.fault_in(HOSTILE, gfn, access, machine) == Fault::Pending {
                world.drain_disk();
            }
        }
        10 => {
            let (gfn, is_write) = (gfn(input), input.byte() & 1 == 0);
            server.window_fault(HOSTILE, gfn, is_write, machine);
        }
        _ => forbidden(world, input),
    }
}

/// An order of the root-task's, from a vmm-server.
fn forbidden(world: &mut World<'_>, input: &mut Input<'_>) {
    let vm = input.pick(&[HOSTILE, HONEST]);
    let request = match input.byte() % 5 {
        0 => MemRequest::DestroyVm { vm },
        1 => MemRequest::SetBalloon { vm, target: Some(Pages(input.value())) },
        2 => MemRequest::SetControls { vm, controls: controls(input) },
        3 => MemRequest::SetPaused { vm, is_paused: input.byte() & 1 == 0 },
        _ => MemRequest::SetSwap { pages: Pages(input.value()) },
    };
    let reply = world.server.control(HOSTILE, request);
    let is_refused = matches!(reply, MemReply::Error(MemError::NotAllowed | MemError::NoSuchVm));
    assert!(is_refused, "only the root-task gives orders: {reply:?}");
}

fn controls(input: &mut Input<'_>) -> Controls {
    Controls {
        shares: input.value() as u32,
        reservation: Pages(input.value()),
        limit: Pages(input.value()),
        sharing: input.pick(&[Sharing::Group(0), Sharing::Vm, Sharing::None]),
        tax: (input.byte() & 1 == 0).then(|| input.number(2) as u16),
    }
}

/// An order of the root-task about the hostile VM.
fn order(world: &mut World<'_>, input: &mut Input<'_>) {
    let target = (input.byte() & 1 == 0).then(|| Pages(input.value()));
    let request = match input.byte() % 4 {
        0 => MemRequest::SetControls { vm: HOSTILE, controls: controls(input) },
        1 if input.byte() & 3 == 0 => {
            world.server.order(MemRequest::DestroyVm { vm: HOSTILE }, &mut world.machine);
            MemRequest::CreateVm { vm: HOSTILE, memory: VmMemory::new(Pages(SIZE)) }
        }
        2 => MemRequest::SetPaused { vm: HOSTILE, is_paused: input.byte() & 3 == 0 },
        _ => MemRequest::SetBalloon { vm: HOSTILE, target },
    };
    world.server.order(request, &mut world.machine);
}

fn step(world: &mut World<'_>, input: &mut Input<'_>, honest: &mut Honest, seen: &mut Seen) {
    match input.byte() % 16 {
        0..=8 => call(world, input, seen),
        9 => order(world, input),
        10 => world.tick(Nanos::from_millis(1 + input.below(3000)).0),
        11 => world.drain_disk(),
        12 => {
            // A busy guest: so much that others must give.
            let first = input.below(SIZE) as u32;
            for index in first..(first + 300).min(SIZE as u32) {
                world.write(HOSTILE, index, INCOMPRESSIBLE | u64::from(index));
            }
        }
        _ => seen.compared += honest.step(world, input),
    }
}

/// Does what `bytes` say and checks after each step.
///
/// # Panics
///
/// If something that must hold does not.
pub fn run(bytes: &[u8]) -> Seen {
    let mut input = Input::new(bytes);
    let policy = Policy {
        swap_slots: 8192,
        scan_rate: 5000,
        large_pages: input.byte() & 1 == 0,
        secret: input.number(8),
        ..Policy::default()
    };
    let mut storage = Storage::new(BLOCKS, 2048, 256, &policy);
    let mut world = World::over(storage.tables(), policy);
    for vm in [HONEST, HOSTILE] {
        assert!(world.admit(vm, VmMemory::new(Pages(SIZE))), "both fit with the swap area");
    }
    let mut honest = Honest(BTreeMap::new());
    let mut seen = Seen::default();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut world, &mut input, &mut honest, &mut seen);
        assert_eq!(world.server.check(), Ok(()));
        world.machine.check();
    }
    seen.swapped = world.machine.counters.swap_writes;
    let written: Vec<u32> = honest.0.keys().copied().collect();
    seen.compared += written.into_iter().map(|at| honest.compare(&mut world, at)).sum::<usize>();
    seen
}

#[cfg(test)]
mod tests {
    use super::run;
    use fuzz_input::seeded;

    #[test]
    fn seeded_hostile_guests_harm_nobody() {
        let (mut statistics, mut moved, mut compared, mut swapped) = (0, 0, 0, 0);
        for seed in 1..=20 {
            let seen = run(&seeded(seed, 6000));
            statistics += seen.statistics;
            moved += seen.moved;
            compared += seen.compared;
            swapped += seen.swapped;
        }
        let reached = [statistics as u64, moved, compared as u64, swapped];
        assert!(reached.iter().all(|count| *count > 1000), "hardly anything happens: {reached:?}");
    }
}
