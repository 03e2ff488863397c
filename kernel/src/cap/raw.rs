//! A capability in 16 bytes, and the enum it unpacks to.
//!
//! Word 0: type `[63:59]`, type-specific `[58:48]`, address `[47:0]`. Word 1 is the type's own (badge, guard, mapping).

use abi::CapRights;

use crate::mem::PhysAddr;

/// Type number of a capability, bits 63 to 59 of word 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "each tag is named as its variant of Cap")]
pub enum Tag {
    Null = 0,
    Untyped = 1,
    Endpoint = 2,
    Notification = 3,
    Reply = 4,
    CNode = 5,
    Thread = 6,
    SchedContext = 7,
    SchedControl = 8,
    IrqControl = 9,
    IrqHandler = 10,
    Zombie = 11,
    Domain = 12,
    AsidControl = 13,
    AsidPool = 14,
    IoPortControl = 15,
    IoPort = 16,
    Frame = 17,
    PageTable = 18,
    PageDirectory = 19,
    Pdpt = 20,
    Pml4 = 21,
    Vcpu = 22,
    NptPml4 = 23,
    NptPdpt = 24,
    NptPd = 25,
    NptPt = 26,
    Timer = 27,
}

/// The packed form kept in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawCap {
    /// Type, small fields, address.
    pub w0: u64,
    /// The type's own word.
    pub w1: u64,
}

/// Size of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameSize {
    /// 4 KiB.
    Small = 0,
    /// 2 MiB.
    Large = 1,
    /// 1 GiB.
    Huge = 2,
}

impl FrameSize {
    /// Returns the size as a power of two.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u32 {
        12 + 9 * self as u32
    }

    /// Finds the size with this power of two.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            12 => Self::Small,
            21 => Self::Large,
            30 => Self::Huge,
            _ => return None,
        })
    }
}

/// In what kind of space a frame is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MapKind {
    /// Not mapped.
    None = 0,
    /// Virtual address space of a thread.
    VSpace = 1,
    /// Nested space of a guest.
    Nested = 2,
}

/// Where a frame or paging structure is mapped: ASID and page-aligned address (48 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The space; 0 = not mapped.
    pub asid: u16,
    /// The address in it.
    pub vaddr: u64,
}

/// A frame capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameCap {
    /// First byte.
    pub addr: PhysAddr,
    /// Size.
    pub size: FrameSize,
    /// Read and write, as [`CapRights`] bits 0 and 1.
    pub rights: CapRights,
    /// Device memory: never an IPC buffer, never cleared.
    pub is_device: bool,
    /// Kind of the space it is mapped in.
    pub kind: MapKind,
    /// Where; meaningful unless `kind` is None.
    pub mapping: Mapping,
}

/// A capability, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// Nothing.
    Null,
    /// Untyped memory; `free` = bytes given out from the start.
    Untyped {
        /// First byte.
        addr: PhysAddr,
        /// Size, power of two.
        bits: u32,
        /// Only frames and untypeds may be made of it.
        is_device: bool,
        /// Bytes already given out.
        free: u64,
    },
    /// Endpoint: WRITE = send, READ = receive, GRANT, GRANT_REPLY.
    Endpoint {
        /// The object.
        addr: PhysAddr,
        /// Identity told to the receiver; 0 = none yet.
        badge: u64,
        /// What it may do.
        rights: CapRights,
    },
    /// Notification: WRITE = signal, READ = wait.
    Notification {
        /// The object.
        addr: PhysAddr,
        /// Bits a signal sets; 0 = none yet.
        badge: u64,
        /// What it may do.
        rights: CapRights,
    },
    /// Reply object.
    Reply {
        /// The object.
        addr: PhysAddr,
        /// An answer may carry capabilities.
        can_grant: bool,
    },
    /// Table of 2^radix slots.
    CNode {
        /// First slot.
        addr: PhysAddr,
        /// Number of slots, power of two.
        radix: u32,
        /// Address bits to skip, as [`abi::CNodeCapData`].
        guard: abi::CNodeCapData,
    },
    /// Thread.
    Thread {
        /// The object.
        addr: PhysAddr,
    },
    /// Scheduling context of 2^bits bytes.
    SchedContext {
        /// The object.
        addr: PhysAddr,
        /// Size, power of two.
        bits: u32,
    },
    /// Right to configure scheduling contexts for one core.
    SchedControl {
        /// The core.
        core: u32,
    },
    /// Right to make interrupt handlers.
    IrqControl,
    /// One interrupt line.
    IrqHandler {
        /// Interrupt number (user vector + 16).
        irq: u32,
    },
    /// What is left of a CNode or thread while its slots are deleted.
    Zombie {
        /// First slot.
        addr: PhysAddr,
        /// Radix of the CNode, or [`ZOMBIE_TCB`].
        kind: u32,
        /// Slots not yet deleted.
        number: u64,
    },
    /// Domain authority.
    Domain,
    /// Right to make ASID pools.
    AsidControl,
    /// A pool of 512 ASIDs.
    AsidPool {
        /// The object.
        addr: PhysAddr,
        /// First ASID.
        base: u16,
    },
    /// Right to make port ranges.
    IoPortControl,
    /// A range of ports, both ends included.
    IoPort {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// Frame.
    Frame(FrameCap),
    /// A paging structure of a virtual or nested space below the root: page table, directory, PDPT.
    Table {
        /// Which: PageTable, PageDirectory, Pdpt, NptPt, NptPd, NptPdpt.
        tag: Tag,
        /// The table.
        addr: PhysAddr,
        /// Where it is mapped, if it is.
        mapping: Option<Mapping>,
    },
    /// Root of a virtual (Pml4) or nested (NptPml4) space.
    Root {
        /// Pml4 or NptPml4.
        tag: Tag,
        /// The table.
        addr: PhysAddr,
        /// ASID given to it; 0 = none yet.
        asid: u16,
    },
    /// Virtual CPU.
    Vcpu {
        /// The object.
        addr: PhysAddr,
    },
    /// Timer.
    Timer {
        /// The object.
        addr: PhysAddr,
    },
}

/// `kind` of the zombie of a thread.
pub const ZOMBIE_TCB: u32 = 64;

const ADDR_MASK: u64 = (1 << 48) - 1;

/// A type to find by bits 63 to 59.
const TAGS: [Tag; 28] = [
    Tag::Null,
    Tag::Untyped,
    Tag::Endpoint,
    Tag::Notification,
    Tag::Reply,
    Tag::CNode,
    Tag::Thread,
    Tag::SchedContext,
    Tag::SchedControl,
    Tag::IrqControl,
    Tag::IrqHandler,
    Tag::Zombie,
    Tag::Domain,
    Tag::AsidControl,
    Tag::AsidPool,
    Tag::IoPortControl,
    Tag::IoPort,
    Tag::Frame,
    Tag::PageTable,
    Tag::PageDirectory,
    Tag::Pdpt,
    Tag::Pml4,
    Tag::Vcpu,
    Tag::NptPml4,
    Tag::NptPdpt,
    Tag::NptPd,
    Tag::NptPt,
    Tag::Timer,
];

#[inline]
const fn word0(tag: Tag, fields: u64, addr: u64) -> u64 {
    (tag as u64) << 59 | fields << 48 | addr
}

impl RawCap {
    /// The empty capability.
    pub const NULL: Self = Self { w0: 0, w1: 0 };

    /// Returns the type number.
    #[inline(always)]
    #[must_use]
    pub const fn tag_number(self) -> u64 {
        self.w0 >> 59
    }

    /// Returns the type.
    #[inline]
    #[must_use]
    pub fn tag(self) -> Tag {
        TAGS.get((self.w0 >> 59) as usize).copied().unwrap_or(Tag::Null)
    }

    /// Tells whether the capability is of a type, without unpacking it.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, tag: Tag) -> bool {
        self.w0 >> 59 == tag as u64
    }

    /// Returns type and type-specific bits together: type `[15:11]`, fields `[10:0]`.
    #[inline(always)]
    #[must_use]
    pub const fn top(self) -> u32 {
        (self.w0 >> 48) as u32
    }

    /// Returns the address of the object, where the type has one.
    #[inline(always)]
    #[must_use]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.w0 & ADDR_MASK)
    }

    /// Returns the 11 type-specific bits of word 0: rights of an endpoint, notification or reply.
    #[inline(always)]
    #[must_use]
    pub const fn fields(self) -> u64 {
        self.w0 >> 48 & 0x7ff
    }

    /// Unpacks.
    #[inline]
    #[must_use]
    pub fn unpack(self) -> Cap {
        let addr = self.addr();
        let fields = self.fields();
        match self.tag() {
            Tag::Null => Cap::Null,
            Tag::Untyped => {
                let (addr, bits, is_device, free) = self.unpack_untyped();
                Cap::Untyped { addr, bits, is_device, free }
            }
            Tag::Endpoint => Cap::Endpoint { addr, badge: self.w1, rights: CapRights(fields) },
            Tag::Notification => {
                Cap::Notification { addr, badge: self.w1, rights: CapRights(fields) }
            }
            Tag::Reply => Cap::Reply { addr, can_grant: fields & 4 != 0 },
            Tag::CNode => {
                Cap::CNode { addr, radix: fields as u32, guard: abi::CNodeCapData(self.w1) }
            }
            Tag::Thread => Cap::Thread { addr },
            Tag::SchedContext => Cap::SchedContext { addr, bits: fields as u32 },
            Tag::SchedControl => Cap::SchedControl { core: self.w1 as u32 },
            Tag::IrqControl => Cap::IrqControl,
            Tag::IrqHandler => Cap::IrqHandler { irq: self.w1 as u32 },
            Tag::Zombie => Cap::Zombie { addr, kind: fields as u32, number: self.w1 },
            Tag::Domain => Cap::Domain,
            Tag::AsidControl => Cap::AsidControl,
            Tag::AsidPool => Cap::AsidPool { addr, base: self.w1 as u16 },
            Tag::IoPortControl => Cap::IoPortControl,
            Tag::IoPort => Cap::IoPort { first: self.w1 as u16, last: (self.w1 >> 16) as u16 },
            Tag::Frame => Cap::Frame(self.unpack_frame()),
            tag @ (Tag::PageTable
            | Tag::PageDirectory
            | Tag::Pdpt
            | Tag::NptPdpt
            | Tag::NptPd
            | Tag::NptPt) => Cap::Table {
                tag,
                addr,
                mapping: if self.w1 & 0xfff == 0 { None } else { Some(self.mapping()) },
            },
            tag @ (Tag::Pml4 | Tag::NptPml4) => Cap::Root { tag, addr, asid: self.w1 as u16 },
            Tag::Vcpu => Cap::Vcpu { addr },
            Tag::Timer => Cap::Timer { addr },
        }
    }

    #[inline]
    const fn mapping(self) -> Mapping {
        Mapping { asid: (self.w1 & 0xfff) as u16, vaddr: self.w1 & !0xfff }
    }

    /// Unpacks a capability known to be untyped memory: address, size, device, bytes given out.
    #[inline]
    #[must_use]
    pub const fn unpack_untyped(self) -> (PhysAddr, u32, bool, u64) {
        let fields = self.fields();
        (self.addr(), (fields & 0x3f) as u32, fields & 0x40 != 0, self.w1)
    }

    /// Unpacks a capability known to be a frame.
    #[inline]
    #[must_use]
    pub const fn unpack_frame(self) -> FrameCap {
        let fields = self.fields();
        FrameCap {
            addr: self.addr(),
            size: match fields & 3 {
                0 => FrameSize::Small,
                1 => FrameSize::Large,
                _ => FrameSize::Huge,
            },
            rights: CapRights(fields >> 2 & 3),
            is_device: fields & 0x10 != 0,
            kind: match fields >> 5 & 3 {
                0 => MapKind::None,
                1 => MapKind::VSpace,
                _ => MapKind::Nested,
            },
            mapping: self.mapping(),
        }
    }
}

impl FrameCap {
    /// Packs.
    #[inline]
    #[must_use]
    pub const fn pack(self) -> RawCap {
        let fields = self.size as u64
            | (self.rights.0 & 3) << 2
            | (self.is_device as u64) << 4
            | (self.kind as u64) << 5;
        RawCap {
            w0: word0(Tag::Frame, fields, self.addr.0),
            w1: self.mapping.vaddr | self.mapping.asid as u64,
        }
    }
}

impl Cap {
    /// Packs.
    #[inline]
    #[must_use]
    pub const fn pack(self) -> RawCap {
        let (w0, w1) = match self {
            Self::Null => (0, 0),
            Self::Untyped { addr, bits, is_device, free } => {
                (word0(Tag::Untyped, bits as u64 | (is_device as u64) << 6, addr.0), free)
            }
            Self::Endpoint { addr, badge, rights } => {
                (word0(Tag::Endpoint, rights.0 & 15, addr.0), badge)
            }
            Self::Notification { addr, badge, rights } => {
                (word0(Tag::Notification, rights.0 & 3, addr.0), badge)
            }
            Self::Reply { addr, can_grant } => {
                (word0(Tag::Reply, (can_grant as u64) << 2, addr.0), 0)
            }
            Self::CNode { addr, radix, guard } => {
                (word0(Tag::CNode, radix as u64, addr.0), guard.0)
            }
            Self::Thread { addr } => (word0(Tag::Thread, 0, addr.0), 0),
            Self::SchedContext { addr, bits } => (word0(Tag::SchedContext, bits as u64, addr.0), 0),
            Self::SchedControl { core } => (word0(Tag::SchedControl, 0, 0), core as u64),
            Self::IrqControl => (word0(Tag::IrqControl, 0, 0), 0),
            Self::IrqHandler { irq } => (word0(Tag::IrqHandler, 0, 0), irq as u64),
            Self::Zombie { addr, kind, number } => {
                (word0(Tag::Zombie, kind as u64, addr.0), number)
            }
            Self::Domain => (word0(Tag::Domain, 0, 0), 0),
            Self::AsidControl => (word0(Tag::AsidControl, 0, 0), 0),
            Self::AsidPool { addr, base } => (word0(Tag::AsidPool, 0, addr.0), base as u64),
            Self::IoPortControl => (word0(Tag::IoPortControl, 0, 0), 0),
            Self::IoPort { first, last } => {
                (word0(Tag::IoPort, 0, 0), first as u64 | (last as u64) << 16)
            }
            Self::Frame(frame) => return frame.pack(),
            Self::Table { tag, addr, mapping } => (
                word0(tag, 0, addr.0),
                match mapping {
                    Some(mapping) => mapping.vaddr | mapping.asid as u64,
                    None => 0,
                },
            ),
            Self::Root { tag, addr, asid } => (word0(tag, 0, addr.0), asid as u64),
            Self::Vcpu { addr } => (word0(Tag::Vcpu, 0, addr.0), 0),
            Self::Timer { addr } => (word0(Tag::Timer, 0, addr.0), 0),
        };
        RawCap { w0, w1 }
    }
}
