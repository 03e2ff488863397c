//! The checked system description, as it travels in the boot archive.
//!
//! The host reads TOML, checks every rule that needs no machine, and writes a [`System`] with
//! postcard. [`System::check`] states the rules once; host and root-task both call it, so a
//! damaged or hand-made archive is refused by the same words. Fields are appended, never moved.

use crate::io::Policy;
use crate::mem::TAX_MAX;
use crate::stripe::Stripes;
use crate::units::{DiskId, MACHINE_DISKS_MAX, MAX_VMS, Nanos, Pages};
use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

/// Longest name of a VM, group, partition or artefact, in bytes.
pub const NAME_MAX: usize = 32;
/// Longest guest command line in bytes.
pub const CMDLINE_MAX: usize = 256;
/// Most virtual disks of one VM.
pub const DISKS_MAX: usize = 4;
/// Most boot modules of one VM (the first is Linux's initrd).
pub const MODULES_MAX: usize = 4;
/// Most groups of one system.
pub const GROUPS_MAX: usize = 8;
/// Shares of a client that asks for none (ESX's "normal").
pub const SHARES_NORMAL: u32 = 1000;
/// Most shares a client may ask for.
pub const SHARES_MAX: u32 = 1_000_000;
/// Most idle credit of a disk, in requests.
pub const BURST_MAX: u16 = 256;
/// Idle-memory tax of a VM that asks for none, in permille (the paper's 75 %).
pub const TAX_DEFAULT: u16 = 750;
/// Smallest guest memory: below this no supported kernel starts.
pub const GUEST_MEMORY_MIN: Pages = Pages(1 << (20 - 12));
/// Largest guest memory: what lies below the guest's device window at 3 GiB.
pub const GUEST_MEMORY_MAX: Pages = Pages(3 << (30 - 12));
/// Memory kept by the root-task for kernel objects and servers when the file asks for none.
pub const KERNEL_MEMORY_DEFAULT: Pages = Pages(32 << (20 - 12));

/// Name of a VM, group, partition or artefact.
pub type Name = String<NAME_MAX>;

/// Between whom equal pages may be shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// Between the VMs of one group; a VM without a group shares with itself alone.
    #[default]
    Group,
    /// Within one VM only.
    Vm,
    /// Not at all.
    None,
}

/// A VM's claim on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the guest sees as its RAM.
    pub size: Pages,
    /// What it always gets when it asks (min); never above `limit`.
    pub reservation: Pages,
    /// Weight against others when memory is short.
    pub shares: u32,
    /// What it never exceeds (max); never above `size`.
    pub limit: Pages,
    /// Idle-memory tax, 0..=999 permille; `None` takes the machine's.
    pub tax: Option<u16>,
    /// Who may share its pages.
    pub sharing: Sharing,
}

/// A claim on one disk. Reservation and limit are in requests per second, and in bytes per second beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoControl {
    /// Requests per second it always gets; 0 for none.
    pub reservation: u32,
    /// Weight against others.
    pub shares: u32,
    /// Requests per second it never exceeds.
    pub limit: Option<u32>,
    /// Bytes per second it never exceeds.
    pub limit_bytes: Option<u64>,
    /// Bytes per second it always gets; 0 for none.
    pub reservation_bytes: u64,
    /// Idle credit in requests, at most [`BURST_MAX`]: how far it may run ahead by shares after a pause.
    pub burst: u16,
}

impl Default for IoControl {
    fn default() -> Self {
        Self {
            reservation: 0,
            shares: SHARES_NORMAL,
            limit: None,
            limit_bytes: None,
            reservation_bytes: 0,
            burst: 0,
        }
    }
}

/// A change of some numbers of an [`IoControl`], all at once; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoChange {
    /// New reservation.
    pub reservation: Option<u32>,
    /// New shares.
    pub shares: Option<u32>,
    /// New limit; 0 for none.
    pub limit: Option<u32>,
    /// New limit in bytes per second; 0 for none.
    pub limit_bytes: Option<u64>,
    /// New reservation in bytes per second.
    pub reservation_bytes: Option<u64>,
    /// New idle credit.
    pub burst: Option<u16>,
}

impl IoChange {
    /// `old` with the change made; it may break rules (see [`IoControl::check`]).
    #[must_use]
    pub fn applied(&self, old: &IoControl) -> IoControl {
        let nonzero = |new: Option<u32>, old| new.map_or(old, |n| (n != 0).then_some(n));
        IoControl {
            reservation: self.reservation.unwrap_or(old.reservation),
            shares: self.shares.unwrap_or(old.shares),
            limit: nonzero(self.limit, old.limit),
            limit_bytes: self.limit_bytes.map_or(old.limit_bytes, |n| (n != 0).then_some(n)),
            reservation_bytes: self.reservation_bytes.unwrap_or(old.reservation_bytes),
            burst: self.burst.unwrap_or(old.burst),
        }
    }
}

/// One virtual disk: a partition of a disk of the machine, or partitions of one name on several, each of which is a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The partition's GPT label.
    pub partition: Name,
    /// The guest may not write.
    pub read_only: bool,
    /// Its claim, on all its parts together.
    pub io: IoControl,
    /// The disk of the machine that has its first part; the others are on those that follow.
    pub on: DiskId,
    /// Number of its parts, at least 1; see [`crate::stripe`].
    pub parts: u8,
}

impl Disk {
    /// The disk of the machine that has part `part`.
    pub const fn place(&self, part: u8) -> DiskId {
        DiskId(self.on.0 + part)
    }

    /// Whether it has at least one part, and each is on one of `disks` disks.
    pub fn fits(&self, disks: u8) -> bool {
        Stripes::new(self.parts).is_some()
            && self.on.0.checked_add(self.parts).is_some_and(|end| end <= disks)
    }
}

/// The balloon device of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// The device is present.
    pub present: bool,
    /// The guest may report free pages, which are then taken at once.
    pub free_page_reporting: bool,
    /// The guest may take pages back from the balloon before it kills a process.
    pub deflate_on_oom: bool,
}

impl Default for Balloon {
    fn default() -> Self {
        Self { present: true, free_page_reporting: true, deflate_on_oom: true }
    }
}

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its name, unique in the system.
    pub name: Name,
    /// Index into [`System::groups`].
    pub group: Option<u8>,
    /// Virtual processors.
    pub vcpus: u8,
    /// Its claim on memory.
    pub memory: Memory,
    /// Archive entry of kind `GuestKernel`.
    pub kernel: Name,
    /// Archive entries of kind `GuestModule`: Linux's initrd first.
    pub modules: Vec<Name, MODULES_MAX>,
    /// The kernel's command line.
    pub cmdline: String<CMDLINE_MAX>,
    /// Its virtual disks, in the order the guest sees them.
    pub disks: Vec<Disk, DISKS_MAX>,
    /// Its balloon device.
    pub balloon: Balloon,
    /// Started at boot; otherwise by `vm start`.
    pub autostart: bool,
    /// Its claim on each of the machine's disks, for all its virtual disks together; `None` leaves these their own.
    pub io: Option<IoControl>,
}

/// VMs that share one claim and one trust domain (an SPU).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name, unique among groups.
    pub name: Name,
    /// Its claim on memory.
    pub memory: GroupMemory,
    /// Its claim on the disk.
    pub io: IoControl,
    /// Whether its VMs may share equal pages.
    pub sharing: Sharing,
}

/// What the VMs of a group have of memory together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMemory {
    /// What they always get when they ask.
    pub reservation: Pages,
    /// Weight of the group against other groups and VMs without one, divided among its VMs by theirs: 1..=[`SHARES_MAX`]; `None`
    /// leaves them the weights they have.
    pub shares: Option<u32>,
}

/// A change of a group's claim on memory; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMemoryChange {
    /// Its reservation.
    pub reservation: Option<Pages>,
    /// Its weight.
    pub shares: Option<u32>,
}

impl GroupMemory {
    /// Checks the claim by itself.
    ///
    /// # Errors
    ///
    /// [`VmRule::Shares`].
    pub fn check(&self) -> Result<(), VmRule> {
        match self.shares {
            Some(shares) if shares == 0 || shares > SHARES_MAX => Err(VmRule::Shares),
            _ => Ok(()),
        }
    }
}

impl GroupMemoryChange {
    /// The claim after the change.
    pub fn applied(&self, claim: &GroupMemory) -> GroupMemory {
        GroupMemory {
            reservation: self.reservation.unwrap_or(claim.reservation),
            shares: self.shares.or(claim.shares),
        }
    }
}

/// Most steps of an array's throughput.
pub const MODEL_STEPS_MAX: usize = 8;

/// From a time on, a modelled array does so many requests per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStep {
    /// Since the machine started.
    pub from: Nanos,
    /// At least 1.
    pub requests_per_second: u32,
}

/// A modelled disk in front of the real one: requests are carried out, and answered no earlier than the model says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskModel {
    /// Every request takes as long as every other.
    Array {
        /// The first from 0, times rising.
        steps: Vec<ModelStep, MODEL_STEPS_MAX>,
    },
    /// A positioning time unless a request follows on, and a bandwidth.
    Positioning {
        /// Before the first byte.
        position: Nanos,
        /// At least 1.
        bytes_per_second: u64,
    },
    /// The disk with arm and spindle of that name.
    Hp97560,
    /// Flash on channels side by side.
    Ssd {
        /// 1 to 32.
        channels: u8,
    },
    /// A cloud volume's token bucket.
    Bucket {
        /// Tokens per second, at least 1.
        requests_per_second: u32,
        /// Tokens saved at most.
        burst: u32,
    },
}

impl DiskModel {
    /// Is every number in its range?
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Array { steps } => {
                steps.first().is_some_and(|first| first.from == Nanos(0))
                    && steps.iter().all(|step| step.requests_per_second > 0)
                    && steps.windows(2).all(|pair| pair[0].from < pair[1].from)
            }
            Self::Positioning { bytes_per_second, .. } => *bytes_per_second > 0,
            Self::Hp97560 => true,
            Self::Ssd { channels } => (1..=32).contains(channels),
            Self::Bucket { requests_per_second, .. } => *requests_per_second > 0,
        }
    }
}

/// What the mem-server does beyond handing out pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// What may change while it runs.
    pub controls: MemoryControls,
    /// Active memory is estimated from access bits instead of by sampling.
    pub harvest: bool,
    /// The swap partition.
    pub swap: Option<Swap>,
    /// Regions of 2 MiB are mapped by large pages where that is possible.
    pub large_pages: bool,
}

/// Rates of the whole machine's memory management.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryControls {
    /// Idle-memory tax of VMs without one of their own, 0..=[`TAX_MAX`] permille.
    pub tax: u16,
    /// Pages the sharing scanner may look at per second; 0 turns it off.
    pub scan_pages_per_second: u32,
    /// Pages it may look at per second in one VM.
    pub scan_pages_per_second_vm: u32,
}

impl Default for MemoryControls {
    fn default() -> Self {
        Self { tax: TAX_DEFAULT, scan_pages_per_second: 0, scan_pages_per_second_vm: u32::MAX }
    }
}

impl MemoryControls {
    /// Checks the controls by themselves.
    ///
    /// # Errors
    ///
    /// [`VmRule::Tax`].
    pub const fn check(&self) -> Result<(), VmRule> {
        if self.tax > TAX_MAX { Err(VmRule::Tax) } else { Ok(()) }
    }
}

/// A change of [`MemoryControls`]; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryChange {
    /// The tax.
    pub tax: Option<u16>,
    /// The scanner's rate.
    pub scan_pages_per_second: Option<u32>,
    /// Its rate in one VM.
    pub scan_pages_per_second_vm: Option<u32>,
}

impl MemoryChange {
    /// The controls after the change.
    pub fn applied(&self, controls: &MemoryControls) -> MemoryControls {
        let scan_vm = self.scan_pages_per_second_vm;
        MemoryControls {
            tax: self.tax.unwrap_or(controls.tax),
            scan_pages_per_second: self
                .scan_pages_per_second
                .unwrap_or(controls.scan_pages_per_second),
            scan_pages_per_second_vm: scan_vm.unwrap_or(controls.scan_pages_per_second_vm),
        }
    }
}

/// A partition that guest pages go to when memory is short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// GPT label.
    pub partition: Name,
    /// Its size.
    pub size: Pages,
    /// Its claim on the disk, as a virtual disk's.
    pub io: IoControl,
}

/// The whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Its name, shown by the host command.
    pub name: Name,
    /// RAM of the machine.
    pub machine_memory: Pages,
    /// Part of it kept for kernel objects and servers.
    pub kernel_memory: Pages,
    /// The disk's dispatch policy.
    pub io_policy: Policy,
    /// The mem-server's policy.
    pub memory_policy: MemoryPolicy,
    /// Groups, named by index.
    pub groups: Vec<Group, GROUPS_MAX>,
    /// Virtual machines; a [`crate::units::VmId`] is an index into this list.
    pub vms: Vec<Vm, MAX_VMS>,
    /// What the disks are made to look like, if they are not to answer as soon as they can.
    pub disk_model: Option<DiskModel>,
    /// Disks of the machine, 1..=[`MACHINE_DISKS_MAX`]: an io-sched-server for each.
    pub disks: u8,
}

/// Why a system description cannot be run. Each variant names the culprit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemError {
    /// VM `vm` breaks a rule of its own.
    Vm {
        /// Index of the VM.
        vm: u16,
        /// The rule.
        rule: VmRule,
    },
    /// VMs or groups `first` and `second` have the same name.
    SameName {
        /// Index of the earlier.
        first: u16,
        /// Index of the later.
        second: u16,
        /// Groups, not VMs.
        of_groups: bool,
    },
    /// Kernel memory is not smaller than the machine's.
    KernelMemory,
    /// The reservations and overheads do not fit beside the kernel's memory.
    Reservations {
        /// What they sum to.
        asked: Pages,
        /// What there is.
        available: Pages,
    },
    /// Two VMs write to one partition.
    SharedPartition {
        /// Index of the earlier.
        first: u16,
        /// Index of the later.
        second: u16,
    },
    /// The description could not be decoded.
    Malformed,
    /// A number of the modelled disk is out of range.
    DiskModel,
    /// `disks` is outside 1..=[`MACHINE_DISKS_MAX`].
    Disks,
    /// The claim of the swap partition breaks a rule.
    Swap(VmRule),
    /// A claim of group `group` breaks a rule.
    Group {
        /// Index of the group.
        group: u16,
        /// The rule.
        rule: VmRule,
    },
    /// The machine's memory controls break a rule.
    Memory(VmRule),
}

/// The rules of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmRule {
    /// The name is empty or has characters outside `a-z A-Z 0-9 - _ .`.
    Name,
    /// `vcpus` is not 1.
    Vcpus,
    /// `memory.size` is outside [`GUEST_MEMORY_MIN`]..=[`GUEST_MEMORY_MAX`].
    Size,
    /// `memory.reservation` exceeds `memory.limit`.
    Reservation,
    /// `memory.limit` exceeds `memory.size`.
    Limit,
    /// `memory.shares` or an `io.shares` is 0 or above [`SHARES_MAX`].
    Shares,
    /// `memory.tax` is 1000 permille or more.
    Tax,
    /// `group` names no group.
    Group,
    /// An `io.reservation` exceeds its `io.limit`, in requests or in bytes.
    IoReservation,
    /// An `io.burst` is above [`BURST_MAX`].
    IoBurst,
    /// A virtual disk has a part on a disk that the machine does not have, or none.
    Place,
}

/// Memory the hypervisor spends on a VM beside its RAM: the vmm-server, nested page tables
/// (8 bytes a page and the upper levels) and page states (at most 32 bytes a page).
pub const fn overhead(size: Pages) -> Pages {
    Pages(512 + Pages::holding(size.0 * 40).0)
}

impl IoControl {
    /// Checks the rules that need no disk.
    ///
    /// # Errors
    ///
    /// The first [`VmRule`] it breaks.
    pub fn check(&self) -> Result<(), VmRule> {
        let is_above = self.limit.is_some_and(|limit| self.reservation > limit)
            || self.limit_bytes.is_some_and(|limit| self.reservation_bytes > limit);
        if self.shares == 0 || self.shares > SHARES_MAX {
            Err(VmRule::Shares)
        } else if is_above {
            Err(VmRule::IoReservation)
        } else if self.burst > BURST_MAX {
            Err(VmRule::IoBurst)
        } else {
            Ok(())
        }
    }
}

/// Whether `name` may name a VM, group or partition.
pub fn is_valid_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.chars().all(allowed)
}

impl Vm {
    /// Checks the rules that concern this VM alone; `groups` is how many groups there are, `disks` how many disks the
    /// machine has.
    ///
    /// # Errors
    ///
    /// The first [`VmRule`] it breaks.
    pub fn check(&self, groups: usize, disks: u8) -> Result<(), VmRule> {
        let memory = &self.memory;
        let broken = [
            (!is_valid_name(&self.name), VmRule::Name),
            (self.vcpus != 1, VmRule::Vcpus),
            (memory.size < GUEST_MEMORY_MIN || memory.size > GUEST_MEMORY_MAX, VmRule::Size),
            (memory.limit > memory.size, VmRule::Limit),
            (memory.reservation > memory.limit, VmRule::Reservation),
            (memory.shares == 0 || memory.shares > SHARES_MAX, VmRule::Shares),
            (memory.tax.is_some_and(|tax| tax > TAX_MAX), VmRule::Tax),
            (self.group.is_some_and(|group| usize::from(group) >= groups), VmRule::Group),
            (self.disks.iter().any(|disk| !disk.fits(disks)), VmRule::Place),
        ];
        if let Some((_, rule)) = broken.into_iter().find(|(is_broken, _)| *is_broken) {
            return Err(rule);
        }
        let claims = self.disks.iter().map(|disk| &disk.io).chain(&self.io);
        claims.into_iter().try_for_each(IoControl::check)
    }
}

impl System {
    /// Decodes and checks a description.
    ///
    /// # Errors
    ///
    /// [`SystemError`] if `bytes` are not exactly one description that keeps every rule.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SystemError> {
        let system: Self = crate::interface::take_all(bytes).map_err(|_| SystemError::Malformed)?;
        system.check()?;
        Ok(system)
    }

    /// Checks every rule that needs no machine.
    ///
    /// # Errors
    ///
    /// The first rule broken, with the VM or group that breaks it.
    pub fn check(&self) -> Result<(), SystemError> {
        if self.disks == 0 || usize::from(self.disks) > MACHINE_DISKS_MAX {
            return Err(SystemError::Disks);
        }
        for (vm, index) in self.vms.iter().zip(0..) {
            vm.check(self.groups.len(), self.disks)
                .map_err(|rule| SystemError::Vm { vm: index, rule })?;
        }
        for (group, index) in self.groups.iter().zip(0..) {
            let claims = group.memory.check().and(group.io.check());
            claims.map_err(|rule| SystemError::Group { group: index, rule })?;
        }
        self.memory_policy.controls.check().map_err(SystemError::Memory)?;
        self.check_names()?;
        self.check_partitions()?;
        if self.kernel_memory >= self.machine_memory {
            return Err(SystemError::KernelMemory);
        }
        let available = Pages(self.machine_memory.0 - self.kernel_memory.0);
        let asked = self.reserved();
        if asked > available {
            return Err(SystemError::Reservations { asked, available });
        }
        if self.disk_model.as_ref().is_some_and(|model| !model.is_sound()) {
            return Err(SystemError::DiskModel);
        }
        let swap = self.memory_policy.swap.as_ref();
        swap.map_or(Ok(()), |swap| swap.io.check()).map_err(SystemError::Swap)
    }

    /// Sum of the reservations and overheads of the VMs that start at boot, and of what groups reserve beyond their VMs.
    pub fn reserved(&self) -> Pages {
        let claim = |vm: &Vm| vm.memory.reservation.0.saturating_add(overhead(vm.memory.size).0);
        let started = || self.vms.iter().filter(|vm| vm.autostart);
        let beyond = (0_u8..).zip(&self.groups).map(|(index, group)| {
            let own = started().filter(|vm| vm.group == Some(index));
            let own = own.map(|vm| vm.memory.reservation.0).fold(0, u64::saturating_add);
            group.memory.reservation.0.saturating_sub(own)
        });
        Pages(started().map(claim).chain(beyond).fold(0, u64::saturating_add))
    }

    fn check_names(&self) -> Result<(), SystemError> {
        for (second, (vm, at)) in self.vms.iter().zip(0..).enumerate() {
            let earlier = self.vms.iter().take(second).position(|other| other.name == vm.name);
            if let Some(first) = earlier.and_then(|first| u16::try_from(first).ok()) {
                return Err(SystemError::SameName { first, second: at, of_groups: false });
            }
        }
        for (second, (group, at)) in self.groups.iter().zip(0..).enumerate() {
            let earlier = self.groups.iter().take(second).position(|g| g.name == group.name);
            if let Some(first) = earlier.and_then(|first| u16::try_from(first).ok()) {
                return Err(SystemError::SameName { first, second: at, of_groups: true });
            }
        }
        Ok(())
    }

    fn check_partitions(&self) -> Result<(), SystemError> {
        let writes = |vm: &Vm, partition: &Name| {
            vm.disks.iter().any(|disk| !disk.read_only && disk.partition == *partition)
        };
        let uses =
            |vm: &Vm, partition: &Name| vm.disks.iter().any(|disk| disk.partition == *partition);
        for (earlier, first) in self.vms.iter().zip(0..) {
            for (later, second) in self.vms.iter().zip(0..).skip(usize::from(first) + 1) {
                let clash = |disk: &Disk| {
                    uses(earlier, &disk.partition)
                        && (!disk.read_only || writes(earlier, &disk.partition))
                };
                if later.disks.iter().any(clash) {
                    return Err(SystemError::SharedPartition { first, second });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        BURST_MAX, Balloon, Disk, DiskModel, Group, GroupMemory, IoControl, Memory, MemoryPolicy,
        ModelStep, Name, SHARES_MAX, Sharing, System, SystemError, TAX_MAX, Vm, VmRule,
    };
    use crate::io::Policy;
    use crate::units::{DiskId, Nanos, Pages};

    fn name(text: &str) -> Name {
        Name::try_from(text).unwrap()
    }

    fn vm(text: &str) -> Vm {
        Vm {
            name: name(text),
            group: None,
            vcpus: 1,
            memory: Memory {
                size: Pages(0x8000),
                reservation: Pages(0x4000),
                shares: 1000,
                limit: Pages(0x8000),
                tax: Some(750),
                sharing: Sharing::Group,
            },
            kernel: name("debian"),
            modules: [name("initrd")].into_iter().collect(),
            cmdline: heapless::String::new(),
            disks: [Disk {
                partition: name(text),
                read_only: false,
                io: IoControl::default(),
                on: DiskId(0),
                parts: 1,
            }]
            .into_iter()
            .collect(),
            balloon: Balloon::default(),
            autostart: true,
            io: None,
        }
    }

    fn system() -> System {
        System {
            name: name("test"),
            machine_memory: Pages(0x20000),
            kernel_memory: Pages(0x2000),
            io_policy: Policy::MClock,
            memory_policy: MemoryPolicy::default(),
            groups: heapless::Vec::new(),
            vms: [vm("a"), vm("b")].into_iter().collect(),
            disk_model: None,
            disks: 2,
        }
    }

    #[test]
    fn a_description_survives_the_archive() {
        let mut buffer = [0; 4096];
        let bytes = postcard::to_slice(&system(), &mut buffer).unwrap();
        assert_eq!(System::from_bytes(bytes), Ok(system()));
        let short = &bytes[..bytes.len() - 1];
        assert_eq!(System::from_bytes(short), Err(SystemError::Malformed));
    }

    #[test]
    fn each_rule_is_kept() {
        type Spoil = fn(&mut Vm);
        let cases: [(Spoil, VmRule); 11] = [
            (|vm| vm.name = name("a b"), VmRule::Name),
            (|vm| vm.vcpus = 2, VmRule::Vcpus),
            (|vm| vm.memory.size = Pages(1), VmRule::Size),
            (|vm| vm.memory.limit = Pages(0x8001), VmRule::Limit),
            (|vm| vm.memory.limit = Pages(0x3fff), VmRule::Reservation),
            (|vm| vm.memory.shares = 0, VmRule::Shares),
            (|vm| vm.group = Some(0), VmRule::Group),
            (
                |vm| {
                    vm.disks[0].io = IoControl { reservation: 9, limit: Some(8), ..vm.disks[0].io };
                },
                VmRule::IoReservation,
            ),
            (|vm| vm.disks[0].parts = 0, VmRule::Place),
            (|vm| (vm.disks[0].on, vm.disks[0].parts) = (DiskId(1), 2), VmRule::Place),
            (|vm| (vm.disks[0].on, vm.disks[0].parts) = (DiskId(255), 255), VmRule::Place),
        ];
        for (spoil, rule) in cases {
            let mut system = system();
            spoil(&mut system.vms[1]);
            assert_eq!(system.check(), Err(SystemError::Vm { vm: 1, rule }));
        }
    }

    #[test]
    fn sums_and_names_are_checked() {
        let mut same = system();
        same.vms[1].name = name("a");
        assert!(matches!(same.check(), Err(SystemError::SameName { first: 0, second: 1, .. })));
        let mut disk = system();
        disk.vms[1].disks[0].partition = name("a");
        assert_eq!(disk.check(), Err(SystemError::SharedPartition { first: 0, second: 1 }));
        disk.vms[0].disks[0].read_only = true;
        assert!(disk.check().is_err(), "a writer beside a reader is refused too");
        disk.vms[1].disks[0].read_only = true;
        assert_eq!(disk.check(), Ok(()));
        let mut full = system();
        full.machine_memory = Pages(0x9000);
        assert!(matches!(full.check(), Err(SystemError::Reservations { .. })));
        full.kernel_memory = Pages(0x9000);
        assert_eq!(full.check(), Err(SystemError::KernelMemory));
        for disks in [0, 5] {
            assert_eq!(System { disks, ..system() }.check(), Err(SystemError::Disks));
        }
        let mut striped = system();
        striped.vms[0].disks[0].parts = 2;
        assert_eq!(striped.check(), Ok(()));
    }

    #[test]
    fn a_modelled_disk_has_numbers_in_range() {
        let array = |steps: &[(u64, u32)]| DiskModel::Array {
            steps: steps
                .iter()
                .map(|&(from, requests_per_second)| ModelStep {
                    from: Nanos::from_secs(from),
                    requests_per_second,
                })
                .collect(),
        };
        let with = |model| System { disk_model: Some(model), ..system() }.check();
        for good in [
            array(&[(0, 1600), (20, 1520)]),
            DiskModel::Hp97560,
            DiskModel::Ssd { channels: 32 },
            DiskModel::Bucket { requests_per_second: 1, burst: 0 },
            DiskModel::Positioning { position: Nanos(0), bytes_per_second: 1 },
        ] {
            assert_eq!(with(good), Ok(()));
        }
        for bad in [
            array(&[]),
            array(&[(1, 1600)]),
            array(&[(0, 0)]),
            array(&[(0, 1600), (20, 1), (20, 2)]),
            DiskModel::Ssd { channels: 0 },
            DiskModel::Ssd { channels: 33 },
            DiskModel::Bucket { requests_per_second: 0, burst: 9 },
            DiskModel::Positioning { position: Nanos(9), bytes_per_second: 0 },
        ] {
            assert_eq!(with(bad), Err(SystemError::DiskModel));
        }
    }

    #[test]
    fn groups_are_named_by_index() {
        let mut system = system();
        let group = Group {
            name: name("web"),
            memory: GroupMemory::default(),
            io: IoControl::default(),
            sharing: Sharing::None,
        };
        assert!(system.groups.push(group).is_ok());
        system.vms[0].group = Some(0);
        assert_eq!(system.check(), Ok(()));
    }

    #[test]
    fn claims_of_groups_and_of_the_machine_are_checked() {
        let with = |change: fn(&mut Group)| {
            let mut system = system();
            let mut group = Group {
                name: name("web"),
                memory: GroupMemory::default(),
                io: IoControl::default(),
                sharing: Sharing::None,
            };
            change(&mut group);
            assert!(system.groups.push(group).is_ok());
            system.check()
        };
        let broken = |rule| Err(SystemError::Group { group: 0, rule });
        assert_eq!(with(|group| group.memory.shares = Some(SHARES_MAX)), Ok(()));
        assert_eq!(with(|group| group.memory.shares = Some(0)), broken(VmRule::Shares));
        let too_many = with(|group| group.memory.shares = Some(SHARES_MAX + 1));
        assert_eq!(too_many, broken(VmRule::Shares));
        assert_eq!(with(|group| group.io.shares = 0), broken(VmRule::Shares));
        assert_eq!(with(|group| group.io.burst = BURST_MAX + 1), broken(VmRule::IoBurst));
        let mut system = system();
        system.memory_policy.controls.tax = TAX_MAX;
        assert_eq!(system.check(), Ok(()));
        system.memory_policy.controls.tax = TAX_MAX + 1;
        assert_eq!(system.check(), Err(SystemError::Memory(VmRule::Tax)));
    }
}
