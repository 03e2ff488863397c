//! What the kernel tells the initial thread.
// UNSAFETY: the kernel hands over an address; this module turns it into a reference once.
#![expect(unsafe_code, reason = "BootInfo arrives as an address in a register")]

use core::ops::{Deref, Range};

use abi::bootinfo::{self, extra_id};

use crate::cptr::SlotRegion;

/// One untyped capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UntypedDesc(bootinfo::UntypedDesc);

impl UntypedDesc {
    /// First physical address.
    pub const fn paddr(&self) -> u64 {
        self.0.paddr
    }

    /// log2 of its size in bytes.
    pub const fn size_bits(&self) -> u8 {
        self.0.size_bits
    }

    /// Only frames and smaller untypeds can be made of it.
    pub const fn is_device(&self) -> bool {
        self.0.is_device != 0
    }
}

/// The BootInfo page.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct BootInfo(bootinfo::BootInfo);

const fn region(raw: bootinfo::SlotRegion) -> SlotRegion {
    SlotRegion::new(raw.start, raw.end)
}

impl BootInfo {
    /// Virtual address of the IPC buffer.
    pub const fn ipc_buffer(&self) -> u64 {
        self.0.ipc_buffer
    }

    /// Free slots of the initial CNode.
    pub const fn empty(&self) -> SlotRegion {
        region(self.0.empty)
    }

    /// 4 KiB frames of the image, in address order.
    pub const fn user_image_frames(&self) -> SlotRegion {
        region(self.0.user_image_frames)
    }

    /// Paging structures of the image.
    pub const fn user_image_paging(&self) -> SlotRegion {
        region(self.0.user_image_paging)
    }

    /// One SchedControl capability per core.
    pub const fn sched_control(&self) -> SlotRegion {
        region(self.0.sched_control)
    }

    /// Untyped capabilities.
    pub const fn untyped(&self) -> SlotRegion {
        region(self.0.untyped)
    }

    /// Number of cores.
    pub const fn num_nodes(&self) -> u64 {
        self.0.num_nodes
    }

    /// log2 of the slots of the initial CNode.
    pub const fn init_thread_cnode_size_bits(&self) -> u64 {
        self.0.init_thread_cnode_size_bits
    }

    fn untyped_count(&self) -> usize {
        let count = usize::try_from(self.untyped().len()).unwrap_or(0);
        count.min(bootinfo::MAX_BOOTINFO_UNTYPEDS)
    }

    /// Descriptions of [`BootInfo::untyped`], in the same order.
    pub fn untyped_list(&self) -> impl ExactSizeIterator<Item = UntypedDesc> + '_ {
        self.0.untyped_list[..self.untyped_count()].iter().copied().map(UntypedDesc)
    }

    /// Positions of device untypeds in the list: the kernel puts them first.
    pub fn device_untyped_range(&self) -> Range<usize> {
        0..self.untyped_list().filter(UntypedDesc::is_device).count()
    }

    /// Positions of memory untypeds in the list.
    pub fn kernel_untyped_range(&self) -> Range<usize> {
        self.device_untyped_range().end..self.untyped_count()
    }
}

/// Kind of an item of the extra area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoExtraId {
    /// Filler.
    Padding,
    /// VESA BIOS information.
    X86Vbe,
    /// Multiboot memory map.
    X86MbMmap,
    /// Copy of the ACPI root pointer.
    X86AcpiRsdp,
    /// Framebuffer.
    X86Framebuffer,
    /// TSC frequency: a u32 in MHz.
    X86TscFreq,
    /// Device tree.
    Fdt,
    /// Not known here.
    Other(u64),
}

/// One item of the extra area.
#[derive(Clone, Copy, Debug)]
pub struct BootInfoExtra<'a> {
    /// What it is.
    pub id: BootInfoExtraId,
    content_with_header: &'a [u8],
}

impl<'a> BootInfoExtra<'a> {
    /// Its bytes without the header.
    pub fn content(&self) -> &'a [u8] {
        self.content_with_header.get(16..).unwrap_or(&[])
    }
}

/// A BootInfo page and the extra area behind it.
#[derive(Clone, Copy, Debug)]
pub struct BootInfoPtr {
    info: &'static BootInfo,
}

impl BootInfoPtr {
    /// Takes the address the kernel passed in rdi.
    ///
    /// # Safety
    ///
    /// 1. `address` is the value the kernel passed to this initial thread.
    /// 2. The pages are never unmapped or written while the result is used.
    pub unsafe fn new(address: *const BootInfo) -> Self {
        // SAFETY: by 1 the page holds a BootInfo, page aligned and initialised by the kernel; by 2 it lives on.
        Self { info: unsafe { &*address } }
    }

    /// Items of the extra area.
    pub fn extra(&self) -> BootInfoExtraIter<'static> {
        let length = usize::try_from(self.info.0.extra_len).unwrap_or(0);
        let start = core::ptr::from_ref(self.info).cast::<u8>().wrapping_add(4096);
        // SAFETY: the kernel maps `extra_len` bytes behind the BootInfo page (its interface), never written later
        // (condition 2 of `new`); u8 has no alignment or validity condition.
        let bytes = unsafe { core::slice::from_raw_parts(start, length) };
        BootInfoExtraIter { bytes }
    }

    /// Ticks of the TSC per microsecond, as the kernel measured it.
    pub fn tsc_mhz(&self) -> Option<u32> {
        let item = self.extra().find(|item| item.id == BootInfoExtraId::X86TscFreq)?;
        Some(u32::from_le_bytes(*item.content().first_chunk()?))
    }
}

impl Deref for BootInfoPtr {
    type Target = BootInfo;

    fn deref(&self) -> &BootInfo {
        self.info
    }
}

/// Walks the extra area; stops at the first damaged header.
#[derive(Clone, Debug)]
pub struct BootInfoExtraIter<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for BootInfoExtraIter<'a> {
    type Item = BootInfoExtra<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let id = u64::from_le_bytes(*self.bytes.first_chunk()?);
        let length = u64::from_le_bytes(*self.bytes.get(8..)?.first_chunk()?);
        let length = usize::try_from(length).ok().filter(|length| *length >= 16)?;
        let (item, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        let id = match id {
            extra_id::PADDING => BootInfoExtraId::Padding,
            extra_id::X86_VBE => BootInfoExtraId::X86Vbe,
            extra_id::X86_MBMMAP => BootInfoExtraId::X86MbMmap,
            extra_id::X86_ACPI_RSDP => BootInfoExtraId::X86AcpiRsdp,
            extra_id::X86_FRAMEBUFFER => BootInfoExtraId::X86Framebuffer,
            extra_id::X86_TSC_FREQUENCY => BootInfoExtraId::X86TscFreq,
            extra_id::FDT => BootInfoExtraId::Fdt,
            other => BootInfoExtraId::Other(other),
        };
        Some(BootInfoExtra { id, content_with_header: item })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_items_are_found_and_damage_ends_the_walk() {
        let mut bytes = vec![];
        for (id, content) in [(3u64, &[1u8; 36][..]), (5, &1000u32.to_le_bytes())] {
            bytes.extend(id.to_le_bytes());
            bytes.extend((content.len() as u64 + 16).to_le_bytes());
            bytes.extend(content);
        }
        bytes.extend([0; 20]); // a header with length 0
        let items: Vec<_> = BootInfoExtraIter { bytes: &bytes }.collect();
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].id, BootInfoExtraId::X86TscFreq);
        assert_eq!(items[1].content(), 1000u32.to_le_bytes());
    }
}
