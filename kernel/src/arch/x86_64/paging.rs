//! The kernel's own page tables: physical window, and the kernel image with write or execute, never both.
//!
//! UNSAFETY: page tables are statics that the processor reads.
#![expect(unsafe_code, reason = "page tables and control registers")]

use core::arch::asm;
use core::cell::UnsafeCell;

use super::layout::{KERNEL_BASE, PAGE, WINDOW_BASE, WINDOW_SIZE};
use super::percpu;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE: u64 = 0x80;
const GLOBAL: u64 = 0x100;
const NO_EXECUTE: u64 = 1 << 63;

/// Image pages covered: 8 MiB from physical 0.
const IMAGE_TABLES: usize = 4;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: written only by the boot processor in `build`; afterwards read-only.
unsafe impl Sync for Table {}

impl Table {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    fn physical(&self) -> u64 {
        self.0.get() as u64 - KERNEL_BASE
    }

    fn set(&self, index: usize, value: u64) {
        // SAFETY: one word of a static, before the table is in use.
        unsafe { (*self.0.get())[index] = value };
    }
}

static PML4: Table = Table::new();
static WINDOW: Table = Table::new();
static IMAGE_PDPT: Table = Table::new();
static IMAGE_PD: Table = Table::new();
static IMAGE_PT: [Table; IMAGE_TABLES] = [const { Table::new() }; IMAGE_TABLES];

unsafe extern "C" {
    static kernel_start: u8;
    static kernel_text_end: u8;
    static kernel_rodata_end: u8;
    static kernel_end: u8;
}

/// Why the tables cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagingError {
    /// The kernel image is larger than the tables for it.
    ImageTooLarge,
    /// No memory for the window's page directories (processors without 1 GiB pages).
    NoMemory,
}

fn address(symbol: &u8) -> u64 {
    core::ptr::from_ref(symbol) as u64
}

/// Physical addresses of the kernel image: first byte and first byte behind it.
#[must_use]
pub fn image() -> (u64, u64) {
    // SAFETY: link script symbols; only their addresses are used.
    unsafe { (address(&kernel_start) - KERNEL_BASE, address(&kernel_end) - KERNEL_BASE) }
}

/// Physical address of the kernel's root table.
#[must_use]
pub fn root() -> u64 {
    PML4.physical()
}

/// Builds the tables. The window will cover physical addresses below `top`; `page` gives zeroed pages where 1 GiB pages are missing.
///
/// # Errors
/// See [`PagingError`].
pub fn build(
    top: u64,
    huge_pages: bool,
    page: &mut dyn FnMut() -> Option<u64>,
) -> Result<(), PagingError> {
    let gigabytes = top.min(WINDOW_SIZE).div_ceil(1 << 30) as usize;
    for gigabyte in 0..gigabytes {
        let base = (gigabyte as u64) << 30;
        let flags = PRESENT | WRITABLE | GLOBAL | NO_EXECUTE | LARGE;
        if huge_pages {
            WINDOW.set(gigabyte, base | flags);
        } else {
            let directory = page().ok_or(PagingError::NoMemory)?;
            for entry in 0..512u64 {
                let slot = (WINDOW_BASE + directory + entry * 8) as *mut u64;
                // SAFETY: a page of its own below 4 GiB, reached through the boot window.
                unsafe { slot.write((base + (entry << 21)) | flags) };
            }
            WINDOW.set(gigabyte, directory | PRESENT | WRITABLE | NO_EXECUTE);
        }
    }
    // SAFETY: link script symbols; only their addresses are used.
    let (start, text_end, rodata_end, end) = unsafe {
        (
            address(&kernel_start),
            address(&kernel_text_end),
            address(&kernel_rodata_end),
            address(&kernel_end),
        )
    };
    if end > KERNEL_BASE + ((IMAGE_TABLES as u64) << 21) {
        return Err(PagingError::ImageTooLarge);
    }
    for at in (start..end).step_by(PAGE as usize) {
        let flags = if at < text_end {
            0
        } else if at < rodata_end {
            NO_EXECUTE
        } else {
            WRITABLE | NO_EXECUTE
        };
        set_image(at, (at - KERNEL_BASE) | flags | PRESENT | GLOBAL);
    }
    for guard in percpu::guard_pages() {
        set_image(guard, 0);
    }
    for (index, table) in IMAGE_PT.iter().enumerate() {
        IMAGE_PD.set(index, table.physical() | PRESENT | WRITABLE);
    }
    IMAGE_PDPT.set(510, IMAGE_PD.physical() | PRESENT | WRITABLE);
    PML4.set(slot_of(WINDOW_BASE), WINDOW.physical() | PRESENT | WRITABLE);
    PML4.set(slot_of(KERNEL_BASE), IMAGE_PDPT.physical() | PRESENT | WRITABLE);
    Ok(())
}

fn set_image(at: u64, entry: u64) {
    let index = ((at - KERNEL_BASE) / PAGE) as usize;
    IMAGE_PT[index / 512].set(index % 512, entry);
}

const fn slot_of(address: u64) -> usize {
    (address >> 39) as usize & 511
}

/// Writes the kernel's half into the root table at physical address `root`.
pub fn init_root(root: u64) {
    let table = (WINDOW_BASE + root) as *mut u64;
    for (slot, source) in [(slot_of(WINDOW_BASE), &WINDOW), (slot_of(KERNEL_BASE), &IMAGE_PDPT)] {
        // SAFETY: the caller's new root table, reached through the window.
        unsafe { table.add(slot).write(source.physical() | PRESENT | WRITABLE) };
    }
}

/// Loads a root table on this core; drops all translations but the kernel's.
///
/// # Safety
/// `root` holds the kernel's half.
#[inline(always)]
pub unsafe fn load(root: u64) {
    // SAFETY: the kernel's half is the same in every root.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Drops one translation of the loaded space on this core.
#[inline(always)]
pub fn invalidate(vaddr: u64) {
    // SAFETY: dropping a translation is always right.
    unsafe { asm!("invlpg [{}]", in(reg) vaddr, options(nostack, preserves_flags)) };
}
