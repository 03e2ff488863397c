//! The edge of the vmm-server: loads the guest, then enters it until the end.
// UNSAFETY: the one machine is a static, for it is too large for the stack; boot images are read by address.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod edge;

use core::cell::UnsafeCell;
use core::fmt::Write as _;
use core::sync::atomic::AtomicU64;

use abi::vcpu::{PASS_THROUGH_MSRS, field};
use edge::host::{Machine, VCPU, io_endpoint};
use edge::run::{Runner, report};
use edge::window::Window;
use heapless::Vec;
use protocol::io::{DiskInfo, Io, IoReply, IoRequest};
use protocol::root::{RootRequest, Text, VmEvent};
use protocol::startup::{Region, Role, Startup, VmmStart};
use protocol::units::MACHINE_DISKS_MAX;
use runtime::serve::{NOTIFICATION, ask_root};
use runtime::{message, shared};
use vmm_server::boot::{self, Image, MODULES_MAX, Module, State};
use vmm_server::cpuid::{Cpuid, Leaf};
use vmm_server::guest_memory::RamLayout;
use vmm_server::time::TimeBase;
use vmm_server::virtio::blk::Blk;
use vmm_server::vmm::{Config, Vmm};

runtime::server!(main);

struct OnlyThread(UnsafeCell<Vmm>);

#[expect(unsafe_code, reason = "a static must be Sync")]
// SAFETY: the server is one thread, and `main` takes the only reference.
unsafe impl Sync for OnlyThread {}

static VMM: OnlyThread = OnlyThread(UnsafeCell::new(Vmm::new()));

fn main(startup: Startup) -> ! {
    let Role::Vmm(start) = startup.role else { unreachable!("started as another server") };
    let mut window = Window::new(RamLayout::new(start.config.memory.size.bytes()));
    #[expect(unsafe_code, reason = "takes the one reference to the machine")]
    // SAFETY: this is the only place that uses the cell, and `main` runs once.
    let vmm = unsafe { &mut *VMM.0.get() };
    let machine = Machine::new();
    let rip = match prepare(vmm, &start, startup.tsc_mhz, &mut window, &machine) {
        Ok(rip) => rip,
        Err(why) => fail(why),
    };
    let _ = ask_root(&RootRequest::Ready);
    Runner::new(vmm, window, machine, rip).run()
}

/// The guest cannot be started: says so and waits to be ended.
fn fail(why: Text) -> ! {
    report(VmEvent::StartFailed { why });
    loop {
        let _ = NOTIFICATION.wait();
    }
}

fn text(arguments: core::fmt::Arguments<'_>) -> Text {
    let mut text = Text::new();
    let _ = text.write_fmt(arguments);
    text
}

fn machine_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

#[expect(unsafe_code, reason = "boot images are named by address")]
fn image_bytes(region: Region) -> &'static [u8] {
    // SAFETY: the root-task maps the VM's boot images read-only until `Ready`, after which they are used no more.
    unsafe { shared::bytes(region) }
}

/// Builds the machine and loads the guest; returns where it starts.
fn prepare(
    vmm: &mut Vmm,
    start: &VmmStart,
    tsc_mhz: u32,
    window: &mut Window,
    machine: &Machine,
) -> Result<u64, Text> {
    vmm.configure(&Config {
        time: TimeBase::new(u64::from(tsc_mhz) * 1_000_000),
        epoch_seconds: start.wall_seconds + machine.tsc_start / (u64::from(tsc_mhz) * 1_000_000),
        seed: start.seed,
        cpuid: Cpuid::new(machine_cpuid),
        balloon: start.config.balloon,
    });
    for (index, disk) in (0..).zip(&start.config.disks) {
        vmm.add_disk(index, open_disk(index, disk.parts)?);
    }
    let mut modules: Vec<Module<'_>, MODULES_MAX> = Vec::new();
    for (index, region) in start.modules.iter().enumerate() {
        let name = start.config.modules.get(index).map_or("", |name| name.as_str());
        let _ = modules.push(Module { bytes: image_bytes(*region), name });
    }
    let image = Image {
        kernel: image_bytes(start.kernel),
        modules: &modules,
        cmdline: start.config.cmdline.as_str(),
    };
    let mut state = boot::load(&image, window).map_err(|error| text(format_args!("{error}")))?;
    let rip = take_rip(&mut state);
    let _ = state.push((field::TSC_OFFSET, machine.tsc_start.wrapping_neg()));
    VCPU.vcpu_write_state(&state)
        .map_err(|error| text(format_args!("the kernel refused the start state: {error:?}")))?;
    for msr in PASS_THROUGH_MSRS {
        VCPU.vcpu_enable_msr(msr)
            .map_err(|error| text(format_args!("the kernel refused MSR {msr:#x}: {error:?}")))?;
    }
    Ok(rip)
}

/// RIP goes with every entry instead of the state.
fn take_rip(state: &mut State) -> u64 {
    let rip = state.iter().find(|(id, _)| *id == field::RIP).map_or(0, |(_, value)| *value);
    state.retain(|(id, _)| *id != field::RIP);
    rip
}

fn open_disk(index: u8, parts: u8) -> Result<Blk, Text> {
    let mut rings: Vec<&[AtomicU64], MACHINE_DISKS_MAX> = Vec::new();
    let (mut smallest, mut read_only) = (u64::MAX, false);
    for part in 0..parts {
        let answer = message::call::<Io>(io_endpoint(index, part), &IoRequest::Info);
        let Ok(IoReply::Disk(DiskInfo { sectors, is_read_only })) = answer else {
            return Err(text(format_args!(
                "part {part} of disk {index} is not served: {answer:?}"
            )));
        };
        smallest = smallest.min(sectors);
        read_only |= is_read_only;
        let _ = rings.push(shared::vmm_ring(index, part));
    }
    Blk::new(&rings, smallest, read_only, index)
        .map_err(|error| text(format_args!("the ring of disk {index} is broken: {error:?}")))
}
