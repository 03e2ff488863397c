//! The registers of the virtio disk this server was given: mapped by the root-task, which alone configures PCI.
//!
//! Source: virtio 1.2, sections 4.1.4.3 to 4.1.4.6.
// UNSAFETY: device registers are reached by address.
#![expect(unsafe_code, reason = "registers are reached by address")]

use core::fmt::Debug;

use protocol::startup::{Region, VirtioDisk};
use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Offsets in the common configuration.
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const STATUS: u64 = 20;
const CONFIG_GENERATION: u64 = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_MSIX_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFFSET: u64 = 30;
const QUEUE_DESCRIPTORS: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;
const COMMON_BYTES: u64 = 56;

/// The disk's registers.
#[derive(Debug)]
pub struct Registers {
    common: Region,
    notify: Region,
    notify_multiplier: u32,
    device: Region,
    /// Where the doorbell of the queue is, once it is set up.
    doorbell: Option<u64>,
}

/// A register's value: what can be read and written at once.
trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}

fn at<W: Word>(region: Region, offset: u64) -> *mut W {
    debug_assert!(offset + size_of::<W>() as u64 <= region.bytes);
    core::ptr::with_exposed_provenance_mut((region.vaddr + offset) as usize)
}

fn read<W: Word>(region: Region, offset: u64) -> W {
    // SAFETY: 1. the root-task maps the region for the server's life; 2. callers name registers inside it (`Registers::new`
    // checks its length), aligned as the specification has them and the root-task checked the region's start to be.
    unsafe { at::<W>(region, offset).read_volatile() }
}

fn write<W: Word>(region: Region, offset: u64, value: W) {
    // SAFETY: as for `read`.
    unsafe { at::<W>(region, offset).write_volatile(value) };
}

impl Registers {
    /// The registers of `disk`; `None` if they are shorter than a disk's are.
    pub fn new(disk: &VirtioDisk) -> Option<Self> {
        let VirtioDisk { common, notify, notify_multiplier, device } = *disk;
        let is_whole = common.bytes >= COMMON_BYTES && notify.bytes >= 2 && device.bytes >= 8;
        is_whole.then_some(Self { common, notify, notify_multiplier, device, doorbell: None })
    }

    /// Size of the disk in sectors.
    pub fn sectors(&self) -> u64 {
        let half = |offset| u64::from(read::<u32>(self.device, offset));
        half(0) | half(4) << 32
    }

    /// Lets queue 0 raise the one interrupt there is, and finds its doorbell; false if the device has no place for either.
    pub fn route_queue(&mut self) -> bool {
        write(self.common, QUEUE_SELECT, 0u16);
        write(self.common, QUEUE_MSIX_VECTOR, 0u16);
        let is_routed = read::<u16>(self.common, QUEUE_MSIX_VECTOR) == 0;
        let number = u64::from(read::<u16>(self.common, QUEUE_NOTIFY_OFFSET));
        let offset = number * u64::from(self.notify_multiplier);
        self.doorbell =
            (offset.is_multiple_of(2) && offset + 2 <= self.notify.bytes).then_some(offset);
        is_routed && self.doorbell.is_some()
    }

    fn write_address(&self, offset: u64, address: u64) {
        write(self.common, offset, address as u32);
        write(self.common, offset + 4, (address >> 32) as u32);
    }
}

impl Transport for Registers {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |select: u32| {
            write(self.common, DEVICE_FEATURE_SELECT, select);
            u64::from(read::<u32>(self.common, DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            write(self.common, DRIVER_FEATURE_SELECT, select);
            write(self.common, DRIVER_FEATURE, half);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        write(self.common, QUEUE_SELECT, queue);
        read::<u16>(self.common, QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        if let Some(doorbell) = self.doorbell {
            write(self.notify, doorbell, queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(read::<u8>(self.common, STATUS).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        write(self.common, STATUS, status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _: u32) {
        // Only older transports have it.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        write(self.common, QUEUE_SELECT, queue);
        write(self.common, QUEUE_SIZE, size as u16);
        self.write_address(QUEUE_DESCRIPTORS, descriptors);
        self.write_address(QUEUE_DRIVER, driver_area);
        self.write_address(QUEUE_DEVICE, device_area);
        write(self.common, QUEUE_ENABLE, 1u16);
    }

    fn queue_unset(&mut self, _: u16) {
        // A queue of this transport stays until the device is reset.
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        write(self.common, QUEUE_SELECT, queue);
        read::<u16>(self.common, QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        // Message-signalled interrupts have no status to be read.
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        read::<u8>(self.common, CONFIG_GENERATION).into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, _: usize) -> Result<T, Error> {
        // A queue asks for none of it; what is needed of it is `Registers::sectors`.
        Err(Error::Unsupported)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}
