//! The description as it is written: every key, nothing checked beyond its type.

use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;

/// A size: bytes as a number, or text with a binary unit.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Bytes.
    Number(u64),
    /// A number and one of K, M, G.
    Text(String),
}

impl Size {
    /// The size in bytes; `None` if the text is no size.
    pub fn bytes(&self) -> Option<u64> {
        let text = match self {
            Self::Number(bytes) => return Some(*bytes),
            Self::Text(text) => text.trim(),
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits)?;
        let scale = match unit.trim() {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(1 << scale)
    }
}

/// Shares: a number or one of ESX's words.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Shares {
    /// As many.
    Number(u32),
    /// low, normal, high = 1 : 2 : 4.
    Word(SharesWord),
}

/// Words for shares.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharesWord {
    /// Half of normal.
    Low,
    /// The default.
    Normal,
    /// Twice normal.
    High,
}

/// The number of shares meant.
pub fn shares(value: Option<&Spanned<Shares>>) -> u32 {
    use protocol::system::SHARES_NORMAL;
    match value.map(Spanned::get_ref) {
        None | Some(Shares::Word(SharesWord::Normal)) => SHARES_NORMAL,
        Some(Shares::Word(SharesWord::Low)) => SHARES_NORMAL / 2,
        Some(Shares::Word(SharesWord::High)) => SHARES_NORMAL * 2,
        Some(Shares::Number(number)) => *number,
    }
}

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The machine.
    #[serde(default)]
    pub host: Host,
    /// Groups by name.
    #[serde(default)]
    pub group: Groups,
    /// VMs in order.
    #[serde(default)]
    pub vm: Vec<VmTable>,
}

/// `[host]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Name of the system.
    pub name: Option<Spanned<String>>,
    /// RAM of the machine.
    pub memory: Option<Spanned<Size>>,
    /// Part of it for kernel objects and servers.
    pub kernel_memory: Option<Spanned<Size>>,
    /// Disk scheduling.
    pub io_policy: PolicyWord,
    /// What the disks are made to look like.
    pub disk_model: Option<Spanned<DiskModel>>,
    /// Disks of the machine.
    pub disks: Option<Spanned<u8>>,
    /// Idle-memory tax of VMs without one of their own, in permille.
    pub tax: Option<Spanned<u16>>,
    /// Speed of the sharing scanner.
    pub scan_pages_per_second: u32,
    /// Its speed in one VM.
    pub scan_pages_per_second_vm: Option<u32>,
    /// Estimate activity from access bits.
    pub harvest: bool,
    /// Map regions of 2 MiB by large pages where possible; so it is without a word.
    pub large_pages: Option<bool>,
    /// Size of the swap partition.
    pub swap: Option<Spanned<Size>>,
    /// Claim of the swap partition on the disk.
    pub swap_io: Option<Spanned<Io>>,
}

/// A modelled disk: `"hp-97560"`, or a table such as `{ array = { iops = 1600 } }`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum DiskModel {
    /// The same time for every request.
    Array(ArrayTable),
    /// A positioning time and a bandwidth.
    Positioning(PositioningTable),
    /// The disk of that name.
    #[serde(rename = "hp-97560")]
    Hp97560,
    /// Flash.
    Ssd(SsdTable),
    /// A cloud volume.
    Bucket(BucketTable),
}

/// `array` of a modelled disk.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayTable {
    /// Requests per second.
    pub iops: u32,
    /// From other times on.
    #[serde(default)]
    pub later: Vec<ArrayStep>,
}

/// One step of an array's throughput.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayStep {
    /// Seconds of the machine's time.
    pub from: u64,
    /// Requests per second.
    pub iops: u32,
}

/// `positioning` of a modelled disk.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositioningTable {
    /// Microseconds before the first byte.
    pub micros: u64,
    /// Bytes per second.
    pub bandwidth: Spanned<Size>,
}

/// `ssd` of a modelled disk.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SsdTable {
    /// Channels side by side.
    pub channels: u8,
}

/// `bucket` of a modelled disk.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketTable {
    /// Tokens per second.
    pub iops: u32,
    /// Tokens saved at most.
    #[serde(default)]
    pub burst: u32,
}

/// Words for the disk scheduler.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyWord {
    /// The default.
    #[default]
    Mclock,
    /// Start-time fair queueing.
    Sfq,
    /// In turn.
    RoundRobin,
}

/// Words for sharing.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharingWord {
    /// Within the group.
    #[default]
    Group,
    /// Within the VM.
    Vm,
    /// Not at all.
    None,
}

/// Groups by name.
pub type Groups = BTreeMap<Spanned<String>, GroupTable>;

/// `[group.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupTable {
    /// Its memory.
    #[serde(default)]
    pub memory: GroupMemory,
    /// Its disk work.
    pub io: Option<Spanned<Io>>,
    /// Whether its VMs share pages.
    #[serde(default)]
    pub sharing: SharingWord,
}

/// `memory` of a group.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupMemory {
    /// Always there for it.
    pub reservation: Option<Spanned<Size>>,
    /// Its weight.
    pub shares: Option<Spanned<Shares>>,
}

/// `io` of a disk or group.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Io {
    /// Requests per second it always gets.
    #[serde(default)]
    pub reservation: u32,
    /// Its weight.
    pub shares: Option<Spanned<Shares>>,
    /// Requests per second it never exceeds.
    pub limit: Option<u32>,
    /// Bytes per second it never exceeds.
    pub limit_bytes: Option<Spanned<Size>>,
    /// Bytes per second it always gets.
    pub reservation_bytes: Option<Spanned<Size>>,
    /// Idle credit in requests.
    #[serde(default)]
    pub burst: u16,
}

/// `memory` of a VM.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmMemory {
    /// What the guest sees.
    pub size: Spanned<Size>,
    /// What it always gets.
    pub reservation: Option<Spanned<Size>>,
    /// Its weight.
    pub shares: Option<Spanned<Shares>>,
    /// What it never exceeds.
    pub limit: Option<Spanned<Size>>,
    /// Idle-memory tax in permille.
    pub tax: Option<Spanned<u16>>,
    /// Who may share its pages.
    #[serde(default)]
    pub sharing: SharingWord,
}

/// One or more values.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    /// One.
    One(String),
    /// A list.
    More(Vec<String>),
}

impl OneOrMore {
    /// The values in order.
    pub fn iter(&self) -> std::slice::Iter<'_, String> {
        match self {
            Self::One(one) => std::slice::from_ref(one).iter(),
            Self::More(list) => list.iter(),
        }
    }
}

/// One virtual disk.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTable {
    /// `debian`, `empty` or a path of a raw image.
    pub image: Option<Spanned<String>>,
    /// Label of its partition; the VM's name if absent.
    pub partition: Option<Spanned<String>>,
    /// Size of the partition.
    pub size: Option<Spanned<Size>>,
    /// The disk of the machine it is on; 0 if absent.
    pub on: Option<Spanned<u8>>,
    /// Disks of the machine over which it is spread, from `on` on; 1 if absent.
    pub stripe: Option<Spanned<u8>>,
    /// The guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// Its claim.
    pub io: Option<Spanned<Io>>,
}

/// `balloon` of a VM.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonTable {
    /// The device is present.
    pub present: Option<bool>,
    /// The guest may report free pages.
    pub free_page_reporting: Option<bool>,
    /// The guest may take pages back before it kills a process.
    pub deflate_on_oom: Option<bool>,
}

impl From<BalloonTable> for protocol::system::Balloon {
    fn from(table: BalloonTable) -> Self {
        let default = Self::default();
        Self {
            present: table.present.unwrap_or(default.present),
            free_page_reporting: table.free_page_reporting.unwrap_or(default.free_page_reporting),
            deflate_on_oom: table.deflate_on_oom.unwrap_or(default.deflate_on_oom),
        }
    }
}

const fn yes() -> bool {
    true
}

/// `[[vm]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmTable {
    /// Its name.
    pub name: Spanned<String>,
    /// Its group.
    pub group: Option<Spanned<String>>,
    /// Virtual processors.
    pub vcpus: Option<Spanned<u8>>,
    /// Its memory.
    pub memory: VmMemory,
    /// `debian`, a program of `images/guests`, or a path.
    pub kernel: Spanned<String>,
    /// The same, one or a list.
    pub initrd: Option<Spanned<OneOrMore>>,
    /// The kernel's command line.
    pub cmdline: Option<Spanned<String>>,
    /// Virtual disks.
    #[serde(default)]
    pub disk: Vec<DiskTable>,
    /// The claim of all its disks together.
    pub io: Option<Spanned<Io>>,
    /// The balloon device.
    #[serde(default)]
    pub balloon: BalloonTable,
    /// Started at boot.
    #[serde(default = "yes")]
    pub autostart: bool,
}
