//! What the server asks of a disk: implemented by the virtio-blk driver at the edge and by the [models](crate::model).

use protocol::{ring::BlkOperation, units::Nanos};

/// Most requests in a device at once: tags are 0..64.
pub const TAGS: usize = 64;

/// Where the data of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// In the ring of a client.
    Ring {
        /// Which client.
        index: u16,
        /// Byte offset in the shared area.
        offset: u32,
        /// Physical address of the same place.
        paddr: u64,
    },
    /// In the server's own scratch area.
    Scratch {
        /// Byte offset.
        offset: u32,
    },
}

/// A request to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Comes back with the answer.
    pub tag: u8,
    /// What to do.
    pub operation: BlkOperation,
    /// First sector of the whole disk.
    pub sector: u64,
    /// Bytes; 0 for a flush.
    pub length: u32,
    /// Where the data is.
    pub buffer: Buffer,
}

/// How the device answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStatus {
    /// Done.
    Ok,
    /// It reported an error.
    Error,
    /// It cannot do this.
    Unsupported,
}

/// A disk.
pub trait BlockDevice {
    /// Starts a request; the caller keeps to the device's depth.
    fn submit(&mut self, now: Nanos, request: &DeviceRequest);
    /// The next request finished by `now`, with its tag.
    fn poll(&mut self, now: Nanos) -> Option<(u8, DeviceStatus)>;
    /// When the next one will be finished, if that can be known.
    fn next_event(&self) -> Option<Nanos>;
}
