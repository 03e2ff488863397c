//! What the kernel tells the initial thread: BootInfo, its extra area, fixed slots.

/// Most untyped capabilities the list holds.
pub const MAX_BOOTINFO_UNTYPEDS: usize = 230;

/// Capability slots from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotRegion {
    /// First slot.
    pub start: u64,
    /// First slot behind.
    pub end: u64,
}

/// One untyped capability of the initial thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UntypedDesc {
    /// Physical address.
    pub paddr: u64,
    /// Size, power of two.
    pub size_bits: u8,
    /// 1 where only frames can be made.
    pub is_device: u8,
    /// Unused.
    pub padding: [u8; 6],
}

/// The page whose address the initial thread finds in rdi.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BootInfo {
    /// Bytes used in the extra area behind this page.
    pub extra_len: u64,
    /// Number of this node: 0.
    pub node_id: u64,
    /// Number of cores.
    pub num_nodes: u64,
    /// Depth of the IOMMU tables; all ones without IOMMU.
    pub num_iopt_levels: u64,
    /// Virtual address of the IPC buffer.
    pub ipc_buffer: u64,
    /// Free slots of the initial CNode.
    pub empty: SlotRegion,
    /// Empty.
    pub shared_frames: SlotRegion,
    /// 4 KiB frames of the image, by address.
    pub user_image_frames: SlotRegion,
    /// Paging structures of the image.
    pub user_image_paging: SlotRegion,
    /// Empty.
    pub io_space_caps: SlotRegion,
    /// Frames of the extra area.
    pub extra_bi_pages: SlotRegion,
    /// Size of the initial CNode.
    pub init_thread_cnode_size_bits: u64,
    /// Domain of the initial thread: 0.
    pub init_thread_domain: u64,
    /// One SchedControl capability per core.
    pub sched_control: SlotRegion,
    /// Untyped capabilities.
    pub untyped: SlotRegion,
    /// What they are.
    pub untyped_list: [UntypedDesc; MAX_BOOTINFO_UNTYPEDS],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<UntypedDesc>() == 16);
    assert!(size_of::<BootInfo>() == 3864);
    assert!(offset_of!(BootInfo, ipc_buffer) == 32);
    assert!(offset_of!(BootInfo, empty) == 40);
    assert!(offset_of!(BootInfo, user_image_frames) == 72);
    assert!(offset_of!(BootInfo, user_image_paging) == 88);
    assert!(offset_of!(BootInfo, io_space_caps) == 104);
    assert!(offset_of!(BootInfo, extra_bi_pages) == 120);
    assert!(offset_of!(BootInfo, init_thread_cnode_size_bits) == 136);
    assert!(offset_of!(BootInfo, init_thread_domain) == 144);
    assert!(offset_of!(BootInfo, sched_control) == 152);
    assert!(offset_of!(BootInfo, untyped) == 168);
    assert!(offset_of!(BootInfo, untyped_list) == 184);
};

/// Header of one item of the extra area; `len` includes the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ExtraHeader {
    /// One of [`extra_id`].
    pub id: u64,
    /// Bytes with the header.
    pub len: u64,
}

/// Kinds of items in the extra area.
pub mod extra_id {
    /// Filler.
    pub const PADDING: u64 = 0;
    /// VESA BIOS information.
    pub const X86_VBE: u64 = 1;
    /// Multiboot memory map: u32 length, then 50 entries of size u32, base u64, length u64, type u32.
    pub const X86_MBMMAP: u64 = 2;
    /// Copy of the ACPI root pointer, 36 bytes.
    pub const X86_ACPI_RSDP: u64 = 3;
    /// Framebuffer.
    pub const X86_FRAMEBUFFER: u64 = 4;
    /// TSC frequency, u32 in MHz.
    pub const X86_TSC_FREQUENCY: u64 = 5;
    /// Device tree.
    pub const FDT: u64 = 6;
}

/// Entries of the memory-map item.
pub const MBMMAP_ENTRIES: usize = 50;

/// Fixed slots of the initial CNode.
pub mod slot {
    /// Always empty.
    pub const NULL: u64 = 0;
    /// The initial thread.
    pub const TCB: u64 = 1;
    /// The initial CNode.
    pub const CNODE: u64 = 2;
    /// The initial address space.
    pub const VSPACE: u64 = 3;
    /// Makes interrupt handlers.
    pub const IRQ_CONTROL: u64 = 4;
    /// Makes ASID pools.
    pub const ASID_CONTROL: u64 = 5;
    /// The initial ASID pool.
    pub const ASID_POOL: u64 = 6;
    /// Makes port ranges.
    pub const IO_PORT_CONTROL: u64 = 7;
    /// Device address spaces: none without an IOMMU.
    pub const IO_SPACE: u64 = 8;
    /// Frame of the BootInfo page.
    pub const BOOT_INFO_FRAME: u64 = 9;
    /// Frame of the IPC buffer.
    pub const IPC_BUFFER: u64 = 10;
    /// Domain authority.
    pub const DOMAIN: u64 = 11;
    /// Scheduling context of the initial thread.
    pub const SCHED_CONTEXT: u64 = 14;
    /// First slot without fixed content.
    pub const FIRST_FREE: u64 = 16;
}
