//! Reads a system description and checks all of it before anything is started.
//!
//! Every error names file, line and column, shows the line with a caret under the value, and says
//! how to cure it. Defaults are written here and listed in `docs/system.md`.

use crate::error::Error;
use protocol::io::Policy;
use protocol::system::{self, IoControl, Name, Sharing, System, SystemError, VmRule};
use protocol::units::{DiskId, MACHINE_DISKS_MAX, Nanos, PAGE_SIZE, Pages};
use serde::Deserialize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

mod raw;

use raw::{Io, Size, VmTable};

/// RAM of the machine when the file does not say.
const MACHINE_MEMORY: &str = "768M";
/// Size of a virtual disk when the file does not say.
const DISK_SIZE: &str = "512M";
/// Command line of a VM that boots from a disk.
const CMDLINE_DISK: &str = "console=ttyS0 root=/dev/vda rw quiet";
/// Command line of a VM without a disk.
const CMDLINE_NO_DISK: &str = "console=ttyS0 quiet";

/// Where a guest artefact comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Debian's cloud kernel or the initramfs made for it.
    Debian,
    /// A program of `images/guests`, by its name.
    Program(String),
    /// A file of the user.
    File(PathBuf),
}

/// A guest artefact to put into the boot archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artefact {
    /// Its name in the archive.
    pub name: String,
    /// It is a kernel, not a module.
    pub is_kernel: bool,
    /// Where it comes from.
    pub source: Source,
}

/// What a virtual disk holds when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskImage {
    /// The Debian 12 root file system.
    Debian,
    /// Zeros.
    Empty,
    /// fio and its libraries.
    Fio,
    /// A raw image of the user.
    File(PathBuf),
}

/// A partition of the machine's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// GPT label.
    pub label: String,
    /// Bytes.
    pub size: u64,
    /// Contents.
    pub image: DiskImage,
    /// Host name written into a Debian image.
    pub hostname: String,
    /// The disk of the machine that has its first part.
    pub on: DiskId,
    /// Its parts, each on the next disk.
    pub parts: u8,
}

/// A checked description with everything needed to build and boot it.
#[derive(Clone, Debug)]
pub struct Config {
    /// What travels to the target.
    pub system: System,
    /// What the boot archive holds beside it.
    pub artefacts: Vec<Artefact>,
    /// The partitions of the machine's disks.
    pub disks: Vec<DiskPlan>,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] with file, line, caret and cure.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|cause| {
            Error::Input(format!(
                "{}: {cause}\n  cure: give the path of a system description, for example \
                 images/systems/two-linux.toml",
                path.display()
            ))
        })?;
        Self::parse(&text, path)
    }

    /// Checks `text`, which was read from `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] with file, line, caret and cure.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let reader = Reader { text, path };
        let table: raw::File = toml::from_str(text).map_err(|error| {
            let message = error.message().replace('\n', " ");
            reader.error(error.span().unwrap_or(0..0), &message, "see docs/system.md for the keys")
        })?;
        reader.config(table)
    }
}

/// The file being read: turns a problem into an error that points at it.
struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Reader<'_> {
    fn error(&self, span: Range<usize>, what: &str, cure: &str) -> Error {
        let start = span.start.min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_number = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count();
        let line = self.text.lines().nth(line_number - 1).unwrap_or_default();
        let width = self
            .text
            .get(span.clone())
            .map_or(1, |value| value.lines().next().unwrap_or_default().chars().count().max(1));
        let gutter = " ".repeat(line_number.to_string().len());
        Error::Input(format!(
            "{path}:{line_number}:{}: {what}\n {gutter} |\n {line_number} | {line}\n {gutter} | \
             {}{}\n {gutter} = cure: {cure}",
            column + 1,
            " ".repeat(column),
            "^".repeat(width),
            path = self.path.display(),
        ))
    }

    fn pages(&self, value: &Spanned<Size>) -> Result<Pages, Error> {
        let bytes = value.get_ref().bytes().ok_or_else(|| {
            self.error(
                value.span(),
                "this is no size",
                "write a whole number with a unit, such as \"64M\" or \"1G\"",
            )
        })?;
        if !bytes.is_multiple_of(PAGE_SIZE) {
            let cure = "use a multiple of 4K";
            return Err(self.error(value.span(), "memory comes in pages of 4 KiB", cure));
        }
        Ok(Pages(bytes / PAGE_SIZE))
    }

    fn pages_or(&self, value: Option<&Spanned<Size>>, default: Pages) -> Result<Pages, Error> {
        value.map_or(Ok(default), |value| self.pages(value))
    }

    fn name(&self, value: &Spanned<String>, what: &str) -> Result<Name, Error> {
        let name = value.get_ref().as_str();
        let cure = format!("use at most {} letters, digits, '-', '_' or '.'", system::NAME_MAX);
        match Name::try_from(name) {
            Ok(short) if system::is_valid_name(name) => Ok(short),
            _ => Err(self.error(value.span(), &format!("this cannot name a {what}"), &cure)),
        }
    }

    fn config(&self, table: raw::File) -> Result<Config, Error> {
        let host = table.host;
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = match &host.name {
            Some(name) => self.name(name, "system")?,
            None => Name::try_from(stem.as_str()).unwrap_or_default(),
        };
        let default = size_bytes(MACHINE_MEMORY).map_or(Pages(0), Pages::holding);
        let machine_memory = self.pages_or(host.memory.as_ref(), default)?;
        let kernel_memory =
            self.pages_or(host.kernel_memory.as_ref(), system::KERNEL_MEMORY_DEFAULT)?;
        let mut groups = heapless::Vec::new();
        let mut group_names = Vec::new();
        for (key, group) in &table.group {
            let group = system::Group {
                name: self.name(key, "group")?,
                memory: self.group_memory(&group.memory)?,
                io: self.io(group.io.as_ref())?,
                sharing: group.sharing.into(),
            };
            group_names.push(key.get_ref().clone());
            groups.push(group).map_err(|_| {
                let cure = format!("use at most {} groups", system::GROUPS_MAX);
                self.error(key.span(), "one group too many", &cure)
            })?;
        }
        let mut build = Build { artefacts: Vec::new(), disks: Vec::new() };
        let mut vms = heapless::Vec::new();
        for vm in &table.vm {
            let described = self.vm(vm, &group_names, &mut build)?;
            vms.push(described).map_err(|_| {
                let cure = format!("use at most {} VMs", protocol::units::MAX_VMS);
                self.error(vm.name.span(), "one VM too many", &cure)
            })?;
        }
        let swap = self.swap(&host, &mut build)?;
        let system = System {
            name,
            machine_memory,
            kernel_memory,
            io_policy: host.io_policy.into(),
            memory_policy: system::MemoryPolicy {
                controls: memory_controls(&host),
                harvest: host.harvest,
                swap,
                large_pages: host.large_pages.unwrap_or(true),
            },
            groups,
            vms,
            disk_model: host.disk_model.as_ref().map(|model| self.disk_model(model)).transpose()?,
            disks: host.disks.as_ref().map_or(1, |disks| *disks.get_ref()),
        };
        system
            .check()
            .map_err(|error| self.system_error(&error, &table.vm, (&table.group, &host)))?;
        Ok(Config { system, artefacts: build.artefacts, disks: build.disks })
    }

    fn swap(&self, host: &raw::Host, build: &mut Build) -> Result<Option<system::Swap>, Error> {
        let Some(size) = &host.swap else {
            return match &host.swap_io {
                None => Ok(None),
                Some(io) => {
                    let cure = "add host.swap = \"SIZE\", or leave this out";
                    Err(self.error(io.span(), "there is no swap partition to claim for", cure))
                }
            };
        };
        let size = self.pages(size)?;
        build.disks.push(DiskPlan {
            label: "swap".to_owned(),
            size: size.bytes(),
            image: DiskImage::Empty,
            hostname: String::new(),
            on: protocol::slots::SWAP_DISK,
            parts: 1,
        });
        let io = self.io(host.swap_io.as_ref())?;
        Ok(Name::try_from("swap").ok().map(|partition| system::Swap { partition, size, io }))
    }

    fn disk_model(&self, model: &Spanned<raw::DiskModel>) -> Result<system::DiskModel, Error> {
        Ok(match model.get_ref() {
            raw::DiskModel::Array(array) => {
                let later = array.later.iter().map(|step| (step.from, step.iops));
                let mut steps = heapless::Vec::new();
                for (from, requests_per_second) in [(0, array.iops)].into_iter().chain(later) {
                    let from = Nanos(from.saturating_mul(1_000_000_000));
                    steps.push(system::ModelStep { from, requests_per_second }).map_err(|_| {
                        let cure = format!("use at most {}", system::MODEL_STEPS_MAX - 1);
                        self.error(model.span(), "the array changes too often", &cure)
                    })?;
                }
                system::DiskModel::Array { steps }
            }
            raw::DiskModel::Positioning(disk) => {
                let bandwidth = &disk.bandwidth;
                let bytes_per_second = bandwidth.get_ref().bytes().ok_or_else(|| {
                    let cure = "write bytes per second with a unit, such as \"60M\"";
                    self.error(bandwidth.span(), "this is no size", cure)
                })?;
                let position = Nanos(disk.micros.saturating_mul(1000));
                system::DiskModel::Positioning { position, bytes_per_second }
            }
            raw::DiskModel::Hp97560 => system::DiskModel::Hp97560,
            raw::DiskModel::Ssd(ssd) => system::DiskModel::Ssd { channels: ssd.channels },
            raw::DiskModel::Bucket(bucket) => {
                system::DiskModel::Bucket { requests_per_second: bucket.iops, burst: bucket.burst }
            }
        })
    }

    fn group_memory(&self, memory: &raw::GroupMemory) -> Result<system::GroupMemory, Error> {
        let shares = memory.shares.as_ref().map(|shares| raw::shares(Some(shares)));
        let reservation = self.pages_or(memory.reservation.as_ref(), Pages(0))?;
        Ok(system::GroupMemory { reservation, shares })
    }

    fn vm(&self, vm: &VmTable, groups: &[String], build: &mut Build) -> Result<system::Vm, Error> {
        let name = self.name(&vm.name, "VM")?;
        let size = self.pages(&vm.memory.size)?;
        let group = match &vm.group {
            None => None,
            Some(group) => {
                let index = groups.iter().position(|known| known == group.get_ref());
                let index = index.and_then(|index| u8::try_from(index).ok());
                let cure = format!("add a table [group.{}]", group.get_ref());
                Some(index.ok_or_else(|| self.error(group.span(), "no such group", &cure))?)
            }
        };
        let memory = system::Memory {
            size,
            reservation: self.pages_or(vm.memory.reservation.as_ref(), Pages(0))?,
            shares: raw::shares(vm.memory.shares.as_ref()),
            limit: self.pages_or(vm.memory.limit.as_ref(), size)?,
            tax: vm.memory.tax.as_ref().map(|tax| *tax.get_ref()),
            sharing: vm.memory.sharing.into(),
        };
        let kernel = self.artefact(vm.kernel.get_ref(), vm.kernel.span(), true, build)?;
        let mut modules = heapless::Vec::new();
        let span = vm.initrd.as_ref().map_or(0..0, Spanned::span);
        for module in vm.initrd.iter().flat_map(|list| list.get_ref().iter()) {
            let module = self.artefact(module, span.clone(), false, build)?;
            modules.push(module).map_err(|_| {
                let cure = format!("use at most {} modules", system::MODULES_MAX);
                self.error(vm.name.span(), "one module too many", &cure)
            })?;
        }
        let mut disks = heapless::Vec::new();
        for (index, disk) in vm.disk.iter().enumerate() {
            let disk = self.disk(disk, index, vm, build)?;
            disks.push(disk).map_err(|_| {
                let cure = format!("use at most {} disks", system::DISKS_MAX);
                self.error(vm.name.span(), "one disk too many", &cure)
            })?;
        }
        let default = if disks.is_empty() { CMDLINE_NO_DISK } else { CMDLINE_DISK };
        let cmdline = vm.cmdline.as_ref().map_or(default, |text| text.get_ref().as_str());
        let cmdline = heapless::String::try_from(cmdline).map_err(|_| {
            let span = vm.cmdline.as_ref().map_or(vm.name.span(), Spanned::span);
            let cure = format!("use at most {} bytes", system::CMDLINE_MAX);
            self.error(span, "this command line is too long", &cure)
        })?;
        Ok(system::Vm {
            name,
            group,
            vcpus: vm.vcpus.as_ref().map_or(1, |vcpus| *vcpus.get_ref()),
            memory,
            kernel,
            modules,
            cmdline,
            disks,
            balloon: vm.balloon.into(),
            autostart: vm.autostart,
            io: vm.io.as_ref().map(|io| self.io(Some(io))).transpose()?,
        })
    }

    fn artefact(
        &self,
        text: &str,
        span: Range<usize>,
        is_kernel: bool,
        build: &mut Build,
    ) -> Result<Name, Error> {
        let source = if text == "debian" {
            Source::Debian
        } else if text.contains(['/', '.']) {
            Source::File(self.existing(text, span.clone(), "kernel or module")?)
        } else {
            Source::Program(text.to_owned())
        };
        if let Source::Program(program) = &source {
            let programs = Path::new(crate::PROGRAMS);
            if !programs.join(program).exists() {
                let cure = "write \"debian\", the name of a program in images/guests, or a path \
                            with a '/'";
                return Err(self.error(span, "no such kernel or module", cure));
            }
        }
        let same = |known: &&Artefact| known.source == source && known.is_kernel == is_kernel;
        if let Some(known) = build.artefacts.iter().find(same) {
            return Ok(Name::try_from(known.name.as_str()).unwrap_or_default());
        }
        let stem = Path::new(text).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut name: String = stem.chars().take(system::NAME_MAX - 4).collect();
        let taken = |name: &str| build.artefacts.iter().any(|known| known.name == name);
        if taken(&name) && !matches!(source, Source::Debian) {
            name = format!("{name}.{}", build.artefacts.len());
        }
        build.artefacts.push(Artefact { name: name.clone(), is_kernel, source });
        Name::try_from(name.as_str())
            .map_err(|_| self.error(span, "this name is too long", "rename the file"))
    }

    fn existing(&self, text: &str, span: Range<usize>, what: &str) -> Result<PathBuf, Error> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let path = folder.join(text);
        if path.is_file() {
            return Ok(path);
        }
        let cure = format!("put a {what} there, or correct the path (it is relative to this file)");
        Err(self.error(span, &format!("no file {}", path.display()), &cure))
    }

    fn disk(
        &self,
        disk: &raw::DiskTable,
        index: usize,
        vm: &VmTable,
        build: &mut Build,
    ) -> Result<system::Disk, Error> {
        let vm_name = vm.name.get_ref();
        let label = match &disk.partition {
            Some(label) => self.name(label, "partition")?,
            None => {
                let label = if index == 0 { vm_name.clone() } else { format!("{vm_name}-{index}") };
                self.name(&Spanned::new(vm.name.span(), label), "partition")?
            }
        };
        let image = match disk.image.as_ref().map_or("debian", |image| image.get_ref().as_str()) {
            "debian" => DiskImage::Debian,
            "empty" => DiskImage::Empty,
            "fio" => DiskImage::Fio,
            _ => match &disk.image {
                Some(image) => {
                    let path = self.existing(image.get_ref(), image.span(), "raw disk image")?;
                    DiskImage::File(path)
                }
                None => DiskImage::Empty,
            },
        };
        let default = size_bytes(DISK_SIZE).map_or(Pages(0), Pages::holding);
        let size = self.pages_or(disk.size.as_ref(), default)?.bytes();
        let minimum = builder::guest::ROOT_MIB << 20;
        if image == DiskImage::Debian && size < minimum {
            let span = disk.size.as_ref().map_or(vm.name.span(), Spanned::span);
            let cure = format!("use at least \"{}M\"", builder::guest::ROOT_MIB);
            return Err(self.error(span, "Debian's root file system does not fit", &cure));
        }
        let on = DiskId(disk.on.as_ref().map_or(0, |on| *on.get_ref()));
        let parts = disk.stripe.as_ref().map_or(1, |stripe| *stripe.get_ref());
        match build.disks.iter().find(|plan| plan.label == label.as_str()) {
            Some(plan) if (plan.on, plan.parts) != (on, parts) => {
                let span = disk.partition.as_ref().map_or(vm.name.span(), Spanned::span);
                let what = "a partition of this name is on other disks of the machine";
                return Err(self.error(span, what, "write the same `on` and `stripe` for both"));
            }
            Some(_) => {}
            None => {
                let (label, hostname) = (label.to_string(), vm_name.clone());
                build.disks.push(DiskPlan { label, size, image, hostname, on, parts });
            }
        }
        let (read_only, io) = (disk.readonly, self.io(disk.io.as_ref())?);
        Ok(system::Disk { partition: label, read_only, io, on, parts })
    }

    fn io(&self, io: Option<&Spanned<Io>>) -> Result<IoControl, Error> {
        let Some(table) = io else { return Ok(IoControl::default()) };
        let io = table.get_ref();
        let bytes = |size: &Option<Spanned<Size>>| match size {
            None => Ok(None),
            Some(size) => {
                let cure = "write a whole number with a unit, such as \"20M\"";
                let bytes = size.get_ref().bytes();
                bytes.map(Some).ok_or_else(|| self.error(size.span(), "this is no size", cure))
            }
        };
        let control = IoControl {
            reservation: io.reservation,
            shares: raw::shares(io.shares.as_ref()),
            limit: io.limit,
            limit_bytes: bytes(&io.limit_bytes)?,
            reservation_bytes: bytes(&io.reservation_bytes)?.unwrap_or(0),
            burst: io.burst,
        };
        control.check().map_err(|rule| {
            let (what, cure) = io_rule(rule);
            self.error(table.span(), what, cure)
        })?;
        Ok(control)
    }

    fn system_error(
        &self,
        error: &SystemError,
        vms: &[VmTable],
        (groups, host): (&raw::Groups, &raw::Host),
    ) -> Error {
        let span_of = |vm: u16| vms.get(usize::from(vm)).map_or(0..0, |vm| vm.name.span());
        let mib = |pages: Pages| pages.bytes().div_ceil(1 << 20);
        match error {
            SystemError::Vm { vm, rule } => match vms.get(usize::from(*vm)) {
                Some(table) => self.rule_error(table, *rule),
                None => self.error(0..0, "a VM breaks a rule", "see docs/system.md"),
            },
            SystemError::SameName { second, of_groups: false, .. } => {
                self.error(span_of(*second), "a VM of this name is above", "choose another name")
            }
            SystemError::SameName { .. } => {
                self.error(0..0, "two groups have the same name", "choose another name")
            }
            SystemError::KernelMemory => {
                let span = host.kernel_memory.as_ref().or(host.memory.as_ref());
                let cure = "raise host.memory or lower host.kernel_memory";
                let what = "the hypervisor's own memory is all the machine has";
                self.error(span.map_or(0..0, Spanned::span), what, cure)
            }
            SystemError::Reservations { asked, available } => {
                let heaviest = vms.iter().max_by_key(|vm| {
                    vm.memory.reservation.as_ref().and_then(|size| size.get_ref().bytes())
                });
                let span = heaviest.map_or(0..0, |vm| {
                    vm.memory.reservation.as_ref().map_or(vm.name.span(), Spanned::span)
                });
                let what = format!(
                    "the VMs' reservations and overheads sum to {} MiB, but the machine has {} MiB \
                     for VMs",
                    mib(*asked),
                    mib(*available)
                );
                let cure = "lower a memory.reservation or raise host.memory";
                self.error(span, &what, cure)
            }
            SystemError::SharedPartition { second, .. } => self.error(
                span_of(*second),
                "this VM shares a partition with a VM that writes to it",
                "give each VM its own partition, or make all of them readonly",
            ),
            SystemError::DiskModel => self.error(
                host.disk_model.as_ref().map_or(0..0, Spanned::span),
                "a number of the modelled disk is out of range",
                "rates and bandwidth are at least 1, channels 1 to 32, `from` rises",
            ),
            SystemError::Disks => self.error(
                host.disks.as_ref().map_or(0..0, Spanned::span),
                "a machine has 1 to 4 disks",
                "write a number from 1 to 4",
            ),
            SystemError::Group { group, rule } => {
                self.group_error(groups.values().nth(usize::from(*group)), *rule)
            }
            SystemError::Memory(_) => {
                self.error(host.tax.as_ref().map_or(0..0, Spanned::span), TAX.0, TAX.1)
            }
            // Found where the table was read.
            SystemError::Swap(rule) => {
                let (what, cure) = io_rule(*rule);
                self.error(host.swap_io.as_ref().map_or(0..0, Spanned::span), what, cure)
            }
            SystemError::Malformed => self.error(0..0, "this cannot be encoded", "report a bug"),
        }
    }

    /// A claim on the disk was checked where its table was read, so that it is the memory's shares.
    fn group_error(&self, group: Option<&raw::GroupTable>, rule: VmRule) -> Error {
        let shares = group.and_then(|group| group.memory.shares.as_ref());
        let (what, cure) = if rule == VmRule::Shares { SHARES } else { io_rule(rule) };
        self.error(shares.map_or(0..0, Spanned::span), what, cure)
    }

    fn rule_error(&self, vm: &VmTable, rule: VmRule) -> Error {
        let memory = &vm.memory;
        let or_name = |span: Option<Range<usize>>| span.unwrap_or_else(|| vm.name.span());
        let (span, what, cure) = match rule {
            VmRule::Name => {
                (vm.name.span(), "this cannot name a VM", "use letters, digits and '-'")
            }
            VmRule::Vcpus => (
                or_name(vm.vcpus.as_ref().map(Spanned::span)),
                "a VM has exactly one virtual processor in this version",
                "write vcpus = 1",
            ),
            VmRule::Size => (
                memory.size.span(),
                "a guest's memory is between 1 MiB and 3 GiB",
                "choose a size in between",
            ),
            VmRule::Reservation => (
                or_name(memory.reservation.as_ref().map(Spanned::span)),
                "the reservation is above the limit",
                "lower memory.reservation or raise memory.limit",
            ),
            VmRule::Limit => (
                or_name(memory.limit.as_ref().map(Spanned::span)),
                "the limit is above the guest's memory",
                "lower memory.limit or raise memory.size",
            ),
            VmRule::Shares => {
                (or_name(memory.shares.as_ref().map(Spanned::span)), SHARES.0, SHARES.1)
            }
            VmRule::Tax => (or_name(memory.tax.as_ref().map(Spanned::span)), TAX.0, TAX.1),
            VmRule::Group => (
                or_name(vm.group.as_ref().map(Spanned::span)),
                "no such group",
                "add a table for the group",
            ),
            VmRule::Place => {
                let places = vm.disk.iter().flat_map(|disk| [&disk.on, &disk.stripe]);
                let span = places.flatten().map(Spanned::span).next();
                (
                    or_name(span),
                    "a disk of this VM is on a disk that the machine does not have",
                    "`on` counts from 0, `on` plus `stripe` (at least 1) is at most host.disks",
                )
            }
            // Found where the table was read.
            VmRule::IoReservation | VmRule::IoBurst => {
                let (what, cure) = io_rule(rule);
                (vm.name.span(), what, cure)
            }
        };
        self.error(span, what, cure)
    }
}

fn memory_controls(host: &raw::Host) -> system::MemoryControls {
    system::MemoryControls {
        tax: host.tax.as_ref().map_or(system::TAX_DEFAULT, |tax| *tax.get_ref()),
        scan_pages_per_second: host.scan_pages_per_second,
        scan_pages_per_second_vm: host.scan_pages_per_second_vm.unwrap_or(u32::MAX),
    }
}

/// What is wrong with shares of memory, and the cure.
const SHARES: (&str, &str) = (
    "shares are between 1 and 1000000",
    "write \"low\", \"normal\", \"high\" or a number in between",
);
/// What is wrong with a tax, and the cure.
const TAX: (&str, &str) =
    ("the idle-memory tax is below 1000 permille", "write a number from 0 to 999");

/// What is wrong with an `io` table, and the cure.
const fn io_rule(rule: VmRule) -> (&'static str, &'static str) {
    match rule {
        VmRule::Shares => (SHARES.0, "write a number, or low or high"),
        VmRule::IoBurst => {
            ("the idle credit is at most 256 requests", "write io.burst = 256 or less")
        }
        _ => ("the reservation is above the limit", "lower io.reservation or raise io.limit"),
    }
}

/// Bytes of a size such as `64M`; `None` if `text` is no size.
pub fn size_bytes(text: &str) -> Option<u64> {
    Size::Text(text.to_owned()).bytes()
}

/// What a description needs to be built.
struct Build {
    artefacts: Vec<Artefact>,
    disks: Vec<DiskPlan>,
}

impl From<raw::SharingWord> for Sharing {
    fn from(word: raw::SharingWord) -> Self {
        match word {
            raw::SharingWord::Group => Self::Group,
            raw::SharingWord::Vm => Self::Vm,
            raw::SharingWord::None => Self::None,
        }
    }
}

impl From<raw::PolicyWord> for Policy {
    fn from(word: raw::PolicyWord) -> Self {
        match word {
            raw::PolicyWord::Mclock => Self::MClock,
            raw::PolicyWord::Sfq => Self::Sfq,
            raw::PolicyWord::RoundRobin => Self::RoundRobin,
        }
    }
}

/// Reads one VM table, as `vm create FILE` gets it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneVm {
    vm: VmTable,
}

/// Reads a file that describes one VM (a table `[vm]`) to be added to a running system.
///
/// # Errors
///
/// [`Error::Input`] with file, line, caret and cure.
pub fn load_vm(path: &Path) -> Result<system::Vm, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| Error::Input(format!("{}: {cause}", path.display())))?;
    let reader = Reader { text: &text, path };
    let table: OneVm = toml::from_str(&text).map_err(|error| {
        let message = error.message().replace('\n', " ");
        reader.error(error.span().unwrap_or(0..0), &message, "a file for `vm create` has one [vm]")
    })?;
    let mut build = Build { artefacts: Vec::new(), disks: Vec::new() };
    let vm = reader.vm(&table.vm, &[], &mut build)?;
    // How many disks the machine has, the running system knows.
    vm.check(0, MACHINE_DISKS_MAX as u8).map_err(|rule| reader.rule_error(&table.vm, rule))?;
    Ok(vm)
}

#[cfg(test)]
mod tests;
