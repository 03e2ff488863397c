//! Memory shared with other servers, as slices of atomic words.
// UNSAFETY: turns the fixed addresses of `protocol::startup` into slices.
#![expect(unsafe_code, reason = "shared memory is named by address")]

use core::sync::atomic::{AtomicU64, Ordering};

use protocol::ring::{BLK_RING_BYTES, ByteRing, console_rings};
use protocol::slots::vmm_part;
use protocol::startup::{
    CONSOLE_VADDR, IO_RING_VADDR, LOG_VADDR, PROGRESS_VADDR, RING_STRIDE, Region, SHARED_VADDR,
    SWAP_RING_VADDR, VMM_RING_VADDR,
};
use protocol::units::{DiskId, PAGE_SIZE};

/// The `bytes` at `vaddr` as words; whole words only.
///
/// # Safety
///
/// 1. The range is mapped read-write (read-only for code that only loads) for as long as the result is used.
/// 2. It is 8-byte aligned and holds no Rust object of this program.
pub const unsafe fn words(vaddr: u64, bytes: u64) -> &'static [AtomicU64] {
    let start = core::ptr::with_exposed_provenance::<AtomicU64>(vaddr as usize);
    // SAFETY: mapped and aligned by 1 and 2; other parties only change it as atomics may change; by 2 no Rust reference
    // of another kind exists.
    unsafe { core::slice::from_raw_parts(start, bytes as usize / 8) }
}

/// The `bytes` of a read-only region.
///
/// # Safety
///
/// The region is mapped and nobody writes it for as long as the result is used.
pub const unsafe fn bytes(region: Region) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance::<u8>(region.vaddr as usize);
    // SAFETY: by the contract; u8 needs no alignment.
    unsafe { core::slice::from_raw_parts(start, region.bytes as usize) }
}

/// The page shared with the root-task, see [`protocol::startup::shared`].
pub fn page() -> &'static [AtomicU64] {
    // SAFETY: the root-task maps this page into every server before it starts, outside the image.
    unsafe { words(SHARED_VADDR, 4096) }
}

/// The log page.
pub fn log_page() -> &'static [AtomicU64] {
    // SAFETY: as in `page`.
    unsafe { words(LOG_VADDR, 4096) }
}

/// vmm-server: console output and input. In other servers a use faults.
pub fn console() -> (ByteRing<'static>, ByteRing<'static>) {
    // SAFETY: the root-task maps this page into every vmm-server before it starts; elsewhere nothing is mapped there.
    console_rings(unsafe { words(CONSOLE_VADDR, 4096) })
}

/// vmm-server: ring memory of part `part` of disk `disk`. A use faults if there is no such disk.
pub fn vmm_ring(disk: u8, part: u8) -> &'static [AtomicU64] {
    let vaddr = VMM_RING_VADDR + RING_STRIDE * vmm_part(disk, part);
    // SAFETY: mapped before the vmm-server starts, one for each part of each configured disk, at addresses used for
    // nothing else.
    unsafe { words(vaddr, BLK_RING_BYTES as u64) }
}

/// mem-server: ring memory of the swap partition. A use faults before it is attached.
pub fn swap_ring() -> &'static [AtomicU64] {
    // SAFETY: the root-task maps it before the `SetSwap` command, at addresses used for nothing else.
    unsafe { words(SWAP_RING_VADDR, BLK_RING_BYTES as u64) }
}

/// io-sched-server: ring memory of client `client`. A use faults before the client is attached.
pub fn io_ring(client: u16) -> &'static [AtomicU64] {
    let vaddr = IO_RING_VADDR + RING_STRIDE * u64::from(client);
    // SAFETY: the root-task maps it before the `Attach` command and takes it away after `Detached`, at addresses used
    // for nothing else.
    unsafe { words(vaddr, BLK_RING_BYTES as u64) }
}

/// io-sched-server of one of several disks: the page where the server of disk `disk` tells what it did for groups. A use faults if
/// the machine has no such disk, or only one; so does a write to another's.
pub fn io_progress(disk: DiskId) -> &'static [AtomicU64] {
    // SAFETY: mapped before the server starts, for each disk of the machine, at addresses used for nothing else; those of others
    // are read-only, and `io_sched_server::peers` only loads from them.
    unsafe { words(PROGRESS_VADDR + PAGE_SIZE * u64::from(disk.0), PAGE_SIZE) }
}

/// Adds `amount` to counter `word` of the shared page; this server is its only writer.
#[inline]
pub fn count(word: usize, amount: u64) {
    if let Some(counter) = page().get(word) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }
}

/// Sets counter `word` of the shared page.
#[inline]
pub fn publish(word: usize, value: u64) {
    if let Some(counter) = page().get(word) {
        counter.store(value, Ordering::Relaxed);
    }
}
