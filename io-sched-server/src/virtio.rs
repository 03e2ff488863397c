//! The virtio-blk driver of the edge: one queue with room for 64 requests, completion by MSI-X.
//!
//! The queue is the `virtio-drivers` crate's; its own block driver has too small a queue, and its PCI transport wants
//! configuration space, which only the root-task has. Data goes straight between the disk and the clients' rings.
//! Source: virtio 1.2, section 5.2.
// UNSAFETY: memory the device writes, and the queue's contract on buffers.
#![expect(unsafe_code, reason = "a driver names memory by address")]

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use io_sched_server::device::{BlockDevice, Buffer, DeviceRequest, DeviceStatus, TAGS};
use io_sched_server::server::SCRATCH_BYTES;
use protocol::{
    io::MAX_CLIENTS,
    ring::BlkOperation,
    startup::{DMA_VADDR, IO_RING_VADDR, IoStart, RING_STRIDE},
    units::Nanos,
};
use virtio_drivers::{
    BufferDirection, Hal, PhysAddr,
    queue::VirtQueue,
    transport::{DeviceStatus as VirtioStatus, Transport},
};

use crate::transport::Registers;

/// Descriptors: three per request.
const QUEUE: usize = 256;
const _: () = assert!(QUEUE >= 3 * TAGS);

/// The DMA region: request headers and status bytes, then the scratch area, then the queue.
const HEADER_BYTES: u64 = 16;
const STATUS_OFFSET: u64 = 2048;
const SCRATCH_OFFSET: u64 = 4096;
const QUEUE_OFFSET: u64 = SCRATCH_OFFSET + SCRATCH_BYTES as u64;
const _: () = assert!(TAGS as u64 * HEADER_BYTES <= STATUS_OFFSET);
const _: () = assert!(STATUS_OFFSET + TAGS as u64 * 8 <= SCRATCH_OFFSET);
const _: () = assert!(QUEUE_OFFSET.is_multiple_of(4096));

/// Features used: flush, modern device.
const FLUSH: u64 = 1 << 9;
const VERSION_1: u64 = 1 << 32;

/// What [`DmaHal`] must know; set once before the driver starts, rings as they are attached.
static DMA_PADDR: AtomicU64 = AtomicU64::new(0);
static DMA_END: AtomicU64 = AtomicU64::new(0);
static DMA_NEXT: AtomicU64 = AtomicU64::new(0);
static RINGS: [AtomicU64; MAX_CLIENTS] = [const { AtomicU64::new(0) }; MAX_CLIENTS];

/// Notes where a client's ring lies, before the device is given any of it.
pub fn set_ring(client: u16, paddr: u64) {
    if let Some(ring) = RINGS.get(usize::from(client)) {
        ring.store(paddr, Ordering::Relaxed);
    }
}

/// The server's scratch area.
pub fn scratch() -> &'static [AtomicU64] {
    // SAFETY: 1. inside the DMA region, which the root-task maps for the life of the server; 2. nothing else lies there.
    unsafe { runtime::shared::words(DMA_VADDR + SCRATCH_OFFSET, SCRATCH_BYTES as u64) }
}

fn control() -> &'static [AtomicU64] {
    // SAFETY: 1. as for the scratch area; 2. the first page holds headers and status bytes only.
    unsafe { runtime::shared::words(DMA_VADDR, SCRATCH_OFFSET) }
}

/// Physical address of memory the device may touch: a ring or the DMA region; 0 for anything else.
fn paddr_of(vaddr: u64) -> u64 {
    if vaddr >= IO_RING_VADDR {
        let client = (vaddr - IO_RING_VADDR) / RING_STRIDE;
        let ring = RINGS.get(client as usize).map_or(0, |ring| ring.load(Ordering::Relaxed));
        return ring + (vaddr - IO_RING_VADDR) % RING_STRIDE;
    }
    DMA_PADDR.load(Ordering::Relaxed) + vaddr.wrapping_sub(DMA_VADDR)
}

struct DmaHal;

// SAFETY: per method below.
unsafe impl Hal for DmaHal {
    // Pages come once each from the end of a region that nothing else uses. They are zeroed here: a restarted server
    // finds its predecessor's queue in them.
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let bytes = pages as u64 * 4096;
        let at = DMA_NEXT.fetch_add(bytes, Ordering::Relaxed);
        if at + bytes > DMA_END.load(Ordering::Relaxed) {
            return (0, NonNull::dangling());
        }
        // SAFETY: inside the mapped region, given out once.
        for word in unsafe { runtime::shared::words(at, bytes) } {
            word.store(0, Ordering::Relaxed);
        }
        let start = core::ptr::with_exposed_provenance_mut(at as usize);
        (paddr_of(at), NonNull::new(start).unwrap_or(NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // Only when the driver is dropped: at a restart of the whole server.
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        // Only the crate's own PCI transport asks.
        unreachable!("registers are mapped before the start")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        paddr_of(buffer.cast::<u8>().as_ptr().expose_provenance() as u64)
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Why there is no disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub enum DriverError {
    /// The start-up page names no device.
    NoDevice,
    /// It is given fewer registers than a disk has.
    Registers,
    /// It is no modern block device.
    Features,
    /// The DMA region is too small, or the device's queue.
    Queue,
    /// Its queue takes no interrupt, or its doorbell is not among the registers.
    Interrupt,
}

/// The driver.
pub struct Driver {
    transport: Registers,
    queue: VirtQueue<DmaHal, QUEUE>,
    /// Token and request by tag.
    pending: [Option<(u16, DeviceRequest)>; TAGS],
    by_token: [u8; QUEUE],
    /// Tags the queue refused, to be answered with an error.
    refused: u64,
    /// Flushes of a device without a cache.
    flushed: u64,
    has_flush: bool,
    is_kick_due: bool,
    sectors: u64,
}

impl Driver {
    /// Resets and starts the disk of the start-up page.
    ///
    /// # Errors
    ///
    /// [`DriverError`] if there is none that works.
    pub fn start(start: &IoStart) -> Result<Self, DriverError> {
        let device = start.device.as_ref().ok_or(DriverError::NoDevice)?;
        DMA_PADDR.store(start.dma.paddr, Ordering::Relaxed);
        DMA_NEXT.store(DMA_VADDR + QUEUE_OFFSET, Ordering::Relaxed);
        DMA_END.store(DMA_VADDR + start.dma.bytes, Ordering::Relaxed);
        let mut transport = Registers::new(device).ok_or(DriverError::Registers)?;
        transport.set_status(VirtioStatus::empty());
        while transport.get_status() != VirtioStatus::empty() {
            core::hint::spin_loop();
        }
        let mut status = VirtioStatus::ACKNOWLEDGE | VirtioStatus::DRIVER;
        transport.set_status(status);
        let features = transport.read_device_features() & (FLUSH | VERSION_1);
        transport.write_driver_features(features);
        status |= VirtioStatus::FEATURES_OK;
        transport.set_status(status);
        if features & VERSION_1 == 0 || !transport.get_status().contains(VirtioStatus::FEATURES_OK)
        {
            return Err(DriverError::Features);
        }
        if !transport.route_queue() {
            return Err(DriverError::Interrupt);
        }
        let queue =
            VirtQueue::new(&mut transport, 0, false, false).map_err(|_| DriverError::Queue)?;
        transport.set_status(status | VirtioStatus::DRIVER_OK);
        let sectors = transport.sectors();
        Ok(Self {
            transport,
            queue,
            pending: [None; TAGS],
            by_token: [0; QUEUE],
            refused: 0,
            flushed: 0,
            has_flush: features & FLUSH != 0,
            is_kick_due: false,
            sectors,
        })
    }

    /// Size of the disk.
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Tells the device of what was submitted since the last call.
    pub fn kick(&mut self) {
        if core::mem::take(&mut self.is_kick_due) && self.queue.should_notify() {
            self.transport.notify(0);
        }
    }

    fn take(&mut self, set: fn(&mut Self) -> &mut u64) -> Option<u8> {
        let set = set(self);
        if *set == 0 {
            return None;
        }
        let tag = set.trailing_zeros() as u8;
        *set &= *set - 1;
        Some(tag)
    }
}

/// Where the data of a request is in this address space.
fn data_vaddr(buffer: Buffer) -> u64 {
    match buffer {
        Buffer::Ring { index, offset, .. } => {
            IO_RING_VADDR + RING_STRIDE * u64::from(index) + u64::from(offset)
        }
        Buffer::Scratch { offset } => DMA_VADDR + SCRATCH_OFFSET + u64::from(offset),
    }
}

/// A slice that only carries address and length to the queue; nobody reads or writes through it.
///
/// # Safety
///
/// The range is mapped for as long as the slice lives.
unsafe fn name<'a>(vaddr: u64, bytes: u64) -> &'a mut [u8] {
    let start = core::ptr::with_exposed_provenance_mut(vaddr as usize);
    // SAFETY: mapped by the contract; never dereferenced, so what the device writes meanwhile is not seen by Rust.
    unsafe { core::slice::from_raw_parts_mut(start, bytes as usize) }
}

/// Calls `f` with the buffers of a request: for the device to read, for the device to write.
fn with_buffers<R>(
    request: &DeviceRequest,
    f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
) -> R {
    let tag = u64::from(request.tag);
    // SAFETY: header and status lie in the DMA region, mapped for ever; 64 tags fit, as asserted above.
    let header: &[u8] = unsafe { name(DMA_VADDR + tag * HEADER_BYTES, HEADER_BYTES) };
    // SAFETY: as for the header.
    let status = unsafe { name(DMA_VADDR + STATUS_OFFSET + tag * 8, 1) };
    if request.operation == BlkOperation::Flush {
        return f(&[header], &mut [status]);
    }
    // SAFETY: the server checked the range against the ring or the scratch area; the root-task keeps a ring mapped until
    // the client is detached, which waits for its requests.
    let data = unsafe { name(data_vaddr(request.buffer), u64::from(request.length)) };
    match request.operation {
        BlkOperation::Read => f(&[header], &mut [data, status]),
        _ => f(&[header, data], &mut [status]),
    }
}

impl BlockDevice for Driver {
    fn submit(&mut self, _: Nanos, request: &DeviceRequest) {
        let tag = usize::from(request.tag) % TAGS;
        let code: u64 = match request.operation {
            BlkOperation::Read => 0,
            BlkOperation::Write => 1,
            BlkOperation::Flush => 4,
        };
        if request.operation == BlkOperation::Flush && !self.has_flush {
            self.flushed |= 1 << tag;
            return;
        }
        let header = tag * HEADER_BYTES as usize / 8;
        let words = control();
        words[header].store(code, Ordering::Relaxed);
        words[header + 1].store(request.sector, Ordering::Relaxed);
        words[STATUS_OFFSET as usize / 8 + tag].store(0xff, Ordering::Relaxed);
        let queue = &mut self.queue;
        let token = with_buffers(request, |inputs, outputs| {
            // SAFETY: the buffers stay mapped, and none is used by us, until `poll` pops this token.
            unsafe { queue.add(inputs, outputs) }
        });
        match token {
            Ok(token) => {
                self.by_token[usize::from(token) % QUEUE] = request.tag;
                self.pending[tag] = Some((token, *request));
                self.is_kick_due = true;
            }
            Err(_) => self.refused |= 1 << tag,
        }
    }

    fn poll(&mut self, _: Nanos) -> Option<(u8, DeviceStatus)> {
        if let Some(tag) = self.take(|driver| &mut driver.refused) {
            return Some((tag, DeviceStatus::Error));
        }
        if let Some(tag) = self.take(|driver| &mut driver.flushed) {
            return Some((tag, DeviceStatus::Ok));
        }
        let token = self.queue.peek_used()?;
        let tag = *self.by_token.get(usize::from(token))?;
        let pending = self.pending.get_mut(usize::from(tag))?;
        // A token we did not give out is the device's lie: nothing behind it can be believed either.
        let (_, request) = pending.take_if(|(expected, _)| *expected == token)?;
        let queue = &mut self.queue;
        let popped = with_buffers(&request, |inputs, outputs| {
            // SAFETY: `with_buffers` names the same ranges for the same request as when it was added.
            unsafe { queue.pop_used(token, inputs, outputs) }
        });
        let status =
            control()[STATUS_OFFSET as usize / 8 + usize::from(tag)].load(Ordering::Acquire);
        let status = match (popped, status & 0xff) {
            (Ok(_), 0) => DeviceStatus::Ok,
            (Ok(_), 2) => DeviceStatus::Unsupported,
            _ => DeviceStatus::Error,
        };
        Some((tag, status))
    }

    fn next_event(&self) -> Option<Nanos> {
        None
    }
}
