//! A machine on the host: the whole [`Vmm`] over a plain buffer, driven exit by exit, for tests and fuzzing.
#![expect(clippy::unwrap_used, reason = "the model's own set-up, never what a guest chose")]

extern crate std;

use crate::cpuid::Cpuid;
use crate::guest_memory::{GuestMemory, VecMemory};
use crate::time::TimeBase;
use crate::virtio::balloon::BalloonHost;
use crate::virtio::blk::Blk;
use crate::virtio::pci::DeviceHost;
use crate::vmm::{Config, Frame, Host, Resume, Vmm, Words};
use abi::vcpu::{control, exit, field, ioio, npf, word};
use core::sync::atomic::AtomicU64;
use protocol::mem::{GfnRange, GuestStats};
use protocol::ring::{BLK_RING_BYTES, format_blk_ring};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

/// What lies below the device models, as far as a test looks at it.
#[derive(Debug)]
pub struct World {
    /// The guest's TSC.
    pub now: u64,
    /// What left the serial port.
    pub console: String,
    /// State fields of the virtual processor.
    pub state: BTreeMap<u64, u64>,
    /// The ring of disk 0.
    pub ring: Vec<AtomicU64>,
    /// Doorbells rung.
    pub doorbells: u32,
    /// What the balloon's driver reported last.
    pub statistics: Option<GuestStats>,
}

impl BalloonHost for World {
    fn release(&mut self, _: bool, _: &[GfnRange]) {}
    fn deflate(&mut self, _: &[GfnRange]) {}
    fn statistics(&mut self, stats: GuestStats) {
        self.statistics = Some(stats);
    }
}

impl DeviceHost for World {
    fn ring(&self, _: u8, _: u8) -> &[AtomicU64] {
        &self.ring
    }
    fn doorbell(&mut self, _: u8, _: u8) {
        self.doorbells += 1;
    }
    fn balloon_ready(&mut self, _: bool) {}
}

impl Host for World {
    fn now(&self) -> u64 {
        self.now
    }
    fn read_state(&mut self, field: u64) -> u64 {
        self.state.get(&field).copied().unwrap_or(0)
    }
    fn write_state(&mut self, field: u64, value: u64) -> bool {
        self.state.insert(field, value);
        true
    }
    fn console(&mut self, byte: u8) {
        self.console.push(char::from(byte));
    }
}

/// The words of an exit in a plain array.
#[derive(Clone, Debug)]
pub struct Buffer(pub [u64; 64]);

impl Words for Buffer {
    fn get(&self, index: usize) -> u64 {
        self.0[index]
    }
    fn set(&mut self, index: usize, value: u64) {
        self.0[index] = value;
    }
}

/// A machine and what an exit needs.
#[derive(Debug)]
pub struct Bench {
    /// The machine.
    pub vmm: Box<Vmm>,
    /// What is below it.
    pub world: World,
    /// Guest RAM: 256 KiB.
    pub memory: VecMemory,
    /// Words of the exit.
    pub words: Buffer,
    /// Registers of VMEnter.
    pub frame: Frame,
}

/// The guest's top page table.
const PML4: u64 = 0x1000;
/// Where the guest's instructions are put.
pub const CODE: u64 = 0x8000;

impl Bench {
    /// A 64-bit guest with 1 GiB identity-mapped by one large page, about to run at [`CODE`].
    #[expect(clippy::new_without_default, reason = "a default machine says nothing to the reader")]
    pub fn new() -> Self {
        let ring: Vec<AtomicU64> = (0..BLK_RING_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        format_blk_ring(&ring).unwrap();
        let mut vmm = Box::new(Vmm::new());
        vmm.configure(&Config {
            time: TimeBase::new(1_000_000_000),
            epoch_seconds: 1_700_000_000,
            seed: 1,
            cpuid: Cpuid::new(|_, _| [0xff; 4]),
            balloon: protocol::system::Balloon::default(),
        });
        vmm.add_disk(0, Blk::new(&[&ring], 100, false, 0).unwrap());
        let mut memory = VecMemory::new(0x4_0000);
        memory.write(PML4, &(0x2000u64 | 7).to_le_bytes()).unwrap();
        memory.write(0x2000, &0x83u64.to_le_bytes()).unwrap();
        let mut words = Buffer([0; 64]);
        words.set(word::CR0, 0x8000_0011);
        words.set(word::CR3, PML4);
        words.set(word::CR4, 1 << 5);
        words.set(word::EFER, 0x500);
        words.set(word::RFLAGS, 0x202);
        let frame = Frame {
            rip: CODE,
            control: control::LONG | control::INTERRUPT_FLAG | control::DECODE_WORDS,
            ..Frame::default()
        };
        let state = [
            (field::CR0, 0x8000_0011),
            (field::CR3, PML4),
            (field::CR4, 0x20),
            (field::EFER, 0x500),
        ];
        let world = World {
            now: 1000,
            console: String::new(),
            state: BTreeMap::from(state),
            ring,
            doorbells: 0,
            statistics: None,
        };
        Self { vmm, world, memory, words, frame }
    }

    /// One exit with this code; what the frame and words hold besides is the caller's.
    pub fn exit(&mut self, code: u64) -> Resume {
        self.frame.code = code;
        let Self { vmm, world, memory, words, frame } = self;
        vmm.returned(frame);
        vmm.exit(frame, words, memory, world)
    }

    /// A general register of the guest.
    pub fn reg(&self, number: usize) -> u64 {
        self.words.get(word::GPR + number)
    }

    /// Sets a general register of the guest.
    pub fn set_reg(&mut self, number: usize, value: u64) {
        self.words.set(word::GPR + number, value);
    }

    /// OUT.
    pub fn out(&mut self, port: u16, size: u64, value: u32) -> Resume {
        self.set_reg(0, u64::from(value));
        self.io(port, size, 0)
    }

    /// IN.
    pub fn input(&mut self, port: u16, size: u64) -> u32 {
        self.set_reg(0, 0);
        assert_eq!(self.io(port, size, ioio::IN), Resume::Enter);
        self.reg(0) as u32
    }

    fn io(&mut self, port: u16, size: u64, flags: u64) -> Resume {
        let next = self.frame.rip + 2;
        self.words.set(word::EXITINFO1, u64::from(port) << 16 | size << 4 | flags);
        self.words.set(word::EXITINFO2, next);
        self.exit(exit::IOIO)
    }

    /// WRMSR.
    pub fn wrmsr(&mut self, msr: u32, value: u64) {
        self.words.set(word::EXITINFO1, 1);
        self.set_reg(1, u64::from(msr));
        self.set_reg(0, value & 0xffff_ffff);
        self.set_reg(2, value >> 32);
        assert_eq!(self.exit(exit::MSR), Resume::Enter);
    }

    /// The next entry's control word; nothing pending is taken.
    pub fn enter(&mut self) -> u64 {
        self.vmm.prepare(&mut self.frame);
        let word = self.frame.control;
        self.frame.event = 0;
        let kept = control::V_IRQ | control::VECTOR;
        self.frame.control =
            word & kept | control::LONG | control::INTERRUPT_FLAG | control::DECODE_WORDS;
        word
    }

    /// Executes `code` at RIP, whose memory access faults at `gpa`.
    pub fn mmio(&mut self, code: &[u8], gpa: u64, is_write: bool) -> Resume {
        self.frame.rip = CODE;
        self.memory.write(CODE, code).unwrap();
        let write = if is_write { npf::WRITE } else { 0 };
        self.words.set(word::EXITINFO1, npf::FINAL | npf::USER | write);
        self.words.set(word::EXITINFO2, gpa);
        self.exit(exit::NPF)
    }

    /// A store of 32 bits to device memory.
    pub fn mmio_write32(&mut self, gpa: u64, value: u32) {
        self.set_reg(0, u64::from(value));
        assert_eq!(self.mmio(&[0x89, 0x03], gpa, true), Resume::Enter);
    }

    /// A load of 32 bits from device memory.
    pub fn mmio_read32(&mut self, gpa: u64) -> u32 {
        assert_eq!(self.mmio(&[0x8b, 0x03], gpa, false), Resume::Enter);
        assert_eq!(self.frame.rip, CODE + 2);
        self.reg(0) as u32
    }

    /// Selects a register of a function of bus 0.
    pub fn pci_address(&mut self, device: u32, register: u32) {
        self.out(0xcf8, 4, 0x8000_0000 | device << 11 | register);
    }

    /// Reads a register of a function of bus 0.
    pub fn pci_read(&mut self, device: u32, register: u32) -> u32 {
        self.pci_address(device, register & !3);
        self.input(0xcfc, 4)
    }
}
