//! The way from the boot stub to the first thread.
//!
//! UNSAFETY: physical memory through the window, calls that change the processor's tables.
#![expect(unsafe_code, reason = "physical memory before the kernel's own typing of it exists")]

use core::sync::atomic::Ordering;

use super::acpi::{self, AcpiError, Tables};
use super::apic::{self, IoApics};
use super::console::{self, ExitCode};
use super::cpu::{Features, MissingFeature};
use super::layout::WINDOW_SIZE;
use super::machine::{self, Machine};
use super::paging::PagingError;
use super::{paging, percpu, smp, start, svm, trap, tsc};
use crate::boot::elf::{ElfError, Image};
use crate::boot::initial::{self, InitialError, PAGES_BEHIND_IMAGE};
use crate::boot::loader::{LoaderError, LoaderInfo, PhysicalMemory};
use crate::boot::regions::{Region, RegionSet, TooManyRegions};
use crate::kprintln;
use crate::limits::{MAX_CORES, RESCHEDULE_VECTOR};
use crate::mem::PhysAddr;
use crate::mem::window::{WINDOW_BASE, zero};
use crate::{Kernel, Resume};

const PAGE: u64 = 4096;
/// First address that counts as memory: what lies below belongs to the firmware.
const LOW_END: u64 = 1 << 20;
/// What the boot tables map.
const BOOT_WINDOW: u64 = 4 << 30;

/// Why the kernel cannot start.
enum BootError {
    Feature(MissingFeature),
    Loader(LoaderError),
    Acpi(AcpiError),
    Paging(PagingError),
    Module(ElfError),
    Initial(InitialError),
}

impl BootError {
    const fn code(&self) -> ExitCode {
        match self {
            Self::Feature(_) | Self::Acpi(_) => ExitCode::BadMachine,
            Self::Loader(_) | Self::Module(_) => ExitCode::BadModule,
            Self::Paging(_) | Self::Initial(_) => ExitCode::NoMemory,
        }
    }
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Feature(MissingFeature(name)) => write!(f, "processor lacks: {name}"),
            Self::Loader(error) => error.fmt(f),
            Self::Acpi(error) => error.fmt(f),
            Self::Paging(PagingError::ImageTooLarge) => f.write_str("kernel image is too large"),
            Self::Paging(PagingError::NoMemory) => f.write_str("no memory for page tables"),
            Self::Module(error) => write!(f, "root task: {error}"),
            Self::Initial(error) => error.fmt(f),
        }
    }
}

macro_rules! from {
    ($($error:ty => $variant:ident),*) => {
        $(impl From<$error> for BootError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}
from!(MissingFeature => Feature, LoaderError => Loader, AcpiError => Acpi, PagingError => Paging, ElfError => Module, InitialError => Initial);

impl From<TooManyRegions> for BootError {
    fn from(_: TooManyRegions) -> Self {
        Self::Loader(LoaderError::TooManyRegions)
    }
}

/// Physical memory through the window, as far as `top`.
struct Window {
    top: u64,
}

impl PhysicalMemory for Window {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let end = address.checked_add(length as u64)?;
        if end > self.top {
            return None;
        }
        // SAFETY: the tables in use map everything below `top`; nothing writes to firmware tables, boot information or modules while
        // boot reads them (the copy of the module goes elsewhere, and is not read through this).
        Some(unsafe { core::slice::from_raw_parts((WINDOW_BASE + address) as *const u8, length) })
    }
}

/// Called by the boot stub on the boot stack with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, info: u32) -> ! {
    console::init();
    match boot(magic == start::MULTIBOOT2_MAGIC, u64::from(info)) {
        Ok(resume) => machine::run(0, resume),
        Err(error) => {
            kprintln!("ballast: cannot start: {error}");
            console::exit(error.code())
        }
    }
}

fn boot(multiboot2: bool, info: u64) -> Result<Resume, BootError> {
    percpu::prepare(0, 0);
    trap::init_table();
    let features = start_this_core(0)?;
    let early = Window { top: BOOT_WINDOW };
    let loader = LoaderInfo::read(&early, multiboot2, info)?;
    if loader.module.is_empty() {
        return Err(LoaderError::NoModule.into());
    }
    let usable = loader.usable()?;
    let mut memory = usable.clone();
    memory.remove(Region::new(0, LOW_END))?;
    memory.remove(Region::new(WINDOW_SIZE, u64::MAX))?;
    let (image_start, image_end) = paging::image();
    let mut free = memory.clone();
    free.remove(Region::new(image_start, image_end))?;

    let top = free.as_slice().last().map_or(0, |range| range.end).max(BOOT_WINDOW);
    let module = loader.module.outwards(PAGE);
    let mut table_error = None;
    paging::build(top, features.huge_pages, &mut || {
        // Not from the module: it is read later.
        let page =
            free.find_low(PAGE, PAGE, image_end, &[module]).filter(|at| *at < BOOT_WINDOW)?;
        if let Err(error) = free.remove(Region::new(page, page + PAGE)) {
            table_error = Some(error);
        }
        zero(PhysAddr(page), PAGE);
        Some(page)
    })?;
    if let Some(error) = table_error {
        return Err(error.into());
    }
    // SAFETY: the tables map the kernel image where it is, and the window.
    unsafe { paging::load(paging::root()) };

    let window = Window { top };
    let rsdp = match loader.rsdp {
        Some(rsdp) => Some(rsdp),
        None => window
            .bytes(loader.rsdp_address, 36)
            .filter(|bytes| acpi::is_root_pointer(bytes))
            .and_then(|bytes| bytes.try_into().ok())
            .or_else(|| acpi::scan(&window)),
    };
    let rsdp = rsdp.ok_or(AcpiError::NoRootPointer)?;
    let tables = Tables::read(&window, &rsdp)?;

    apic::silence_pic();
    let boot_apic = apic::init(features.x2apic, features.tsc_deadline);
    percpu::block(0).apic_id.set(boot_apic);
    let frequencies = tsc::measure(tables.pm_timer);
    apic::start_timer();
    svm::run::init(0);

    // The root task's image: a zeroed copy above the kernel, clear of the module it comes from.
    let length = usize::try_from(loader.module.len()).unwrap_or(usize::MAX);
    let file = window
        .bytes(loader.module.start, length)
        .ok_or(LoaderError::Malformed("module lies outside memory"))?;
    let image = Image::parse(file, PAGES_BEHIND_IMAGE)?;
    let span = image.end - image.start;
    let image_base = free
        .find_low(span, PAGE, image_end, &[module])
        .ok_or(InitialError::NoMemory { wanted: span, what: "the root task" })?;
    free.remove(Region::new(image_base, image_base + span))?;
    zero(PhysAddr(image_base), span);
    // SAFETY: a free piece of memory of this length, disjoint from the module; only this reference leads to it.
    image.copy(file, unsafe {
        core::slice::from_raw_parts_mut((WINDOW_BASE + image_base) as *mut u8, span as usize)
    });

    let ioapics = IoApics::new(&tables.ioapics, boot_apic);
    let mut reserved = heapless::Vec::<Region, 16>::new();
    let pages = [apic::physical_page()].into_iter().chain(ioapics.pages());
    // Cannot overflow: at most eight IOAPICs are kept.
    reserved.extend(pages.map(|page| Region::new(page, page + PAGE)));
    reserved.push(Region::new(image_start, image_end)).map_err(|_| LoaderError::TooManyRegions)?;

    let kernel = machine::install(Kernel::new(Machine::new(frequencies, ioapics)));
    let cores = start_others(&tables, boot_apic, &usable, frequencies.tsc_hz);
    let input = initial::Input {
        image: &image,
        image_base,
        memory: &memory,
        reserved: &reserved,
        cores: cores as u32,
        map: &loader.map,
        rsdp: &rsdp,
    };
    initial::build(kernel, &input, &mut free)?;
    let free_bytes: u64 = free.as_slice().iter().map(Region::len).sum();
    kprintln!(
        "ballast: {cores} core(s), TSC {} kHz, APIC timer {} kHz{}, SVM ASIDs {}, root task {} KiB, free {} KiB",
        frequencies.tsc_hz / 1000,
        frequencies.apic_hz / 1000,
        if apic::has_deadline() { " (deadline)" } else { "" },
        svm::run::limits(0).0,
        span / 1024,
        free_bytes / 1024,
    );
    Ok(kernel.start_core(0))
}

/// Brings this core to the state all cores run in, except for its APIC and page tables.
fn start_this_core(index: usize) -> Result<Features, MissingFeature> {
    // SAFETY: the block of this core is filled (application processors': by `smp::start_core`), and the table too.
    unsafe {
        percpu::install(index);
        trap::install();
    }
    let features = Features::detect()?;
    features.apply(&percpu::this().fpu)?;
    Ok(features)
}

/// Starts the other processors; returns how many cores take part.
fn start_others(tables: &Tables, boot_apic: u32, usable: &RegionSet, tsc_hz: u64) -> usize {
    let others = tables.processors.iter().filter(|id| **id != boot_apic);
    // Any whole free page below 640 KiB will do; everything the loader left there has been read.
    let Some(page) = usable.find_low(PAGE, PAGE, PAGE, &[]).filter(|page| *page < 0xa_0000) else {
        return smp::online();
    };
    for apic_id in others {
        let index = smp::online();
        if index == MAX_CORES {
            break;
        }
        if !smp::start_core(index, *apic_id, page, tsc_hz, other_core) {
            kprintln!("ballast: processor {apic_id} does not start");
            break;
        }
    }
    smp::online()
}

extern "C" fn other_core(index: usize) -> ! {
    let Ok(features) = start_this_core(index) else { console::halt() };
    // SAFETY: the kernel's own tables are complete before other cores start.
    unsafe { paging::load(paging::root()) };
    let this = percpu::this();
    this.root.store(paging::root(), Ordering::Relaxed);
    apic::init(features.x2apic, features.tsc_deadline);
    apic::start_timer();
    svm::run::init(index);
    this.online.store(1, Ordering::Release);
    machine::join(index, RESCHEDULE_VECTOR)
}
