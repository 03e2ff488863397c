//! The machine as a whole: exits go in, frames and words come out.

use super::{Config, Frame, Host, Resume, Stop, Unsupported, Vmm, Words};
use crate::cpuid::Cpuid;
use crate::guest_memory::{GuestMemory, VecMemory};
use crate::time::TimeBase;
use crate::virtio::balloon::BalloonHost;
use crate::virtio::blk::Blk;
use crate::virtio::pci::DeviceHost;
use crate::virtio::queue::driver::Driver;
use abi::vcpu::{control, event, exit, field, ioio, npf, word};
use core::sync::atomic::AtomicU64;
use protocol::mem::{GfnRange, GuestStats};
use protocol::ring::{BLK_RING_BYTES, BlkServer, BlkStatus, Phase, format_blk_ring, write_bytes};
use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

struct World {
    now: u64,
    console: String,
    state: BTreeMap<u64, u64>,
    ring: Vec<AtomicU64>,
    doorbells: u32,
}

impl BalloonHost for World {
    fn release(&mut self, _: bool, _: &[GfnRange]) {}
    fn deflate(&mut self, _: &[GfnRange]) {}
    fn statistics(&mut self, _: GuestStats) {}
}

impl DeviceHost for World {
    fn ring(&self, _: u8) -> &[AtomicU64] {
        &self.ring
    }
    fn doorbell(&mut self, _: u8) {
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

struct Buffer([u64; 64]);

impl Words for Buffer {
    fn get(&self, index: usize) -> u64 {
        self.0[index]
    }
    fn set(&mut self, index: usize, value: u64) {
        self.0[index] = value;
    }
}

struct Bench {
    vmm: std::boxed::Box<Vmm>,
    world: World,
    memory: VecMemory,
    words: Buffer,
    frame: Frame,
}

const PML4: u64 = 0x1000;
const CODE: u64 = 0x8000;

impl Bench {
    /// A 64-bit guest with 1 GiB identity-mapped by one large page, about to run at [`CODE`].
    fn new() -> Self {
        let ring: Vec<AtomicU64> = (0..BLK_RING_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        format_blk_ring(&ring).unwrap();
        let mut vmm = std::boxed::Box::new(Vmm::new());
        vmm.configure(&Config {
            time: TimeBase::new(1_000_000_000),
            epoch_seconds: 1_700_000_000,
            seed: 1,
            cpuid: Cpuid::new(|_, _| [0xff; 4]),
            balloon: protocol::system::Balloon::default(),
        });
        vmm.add_disk(0, Blk::new(&ring, 100, false, 0).unwrap());
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
        };
        Self { vmm, world, memory, words, frame }
    }

    fn exit(&mut self, code: u64) -> Resume {
        self.frame.code = code;
        let Self { vmm, world, memory, words, frame } = self;
        vmm.returned(frame);
        vmm.exit(frame, words, memory, world)
    }

    fn reg(&self, number: usize) -> u64 {
        self.words.get(word::GPR + number)
    }

    fn set_reg(&mut self, number: usize, value: u64) {
        self.words.set(word::GPR + number, value);
    }

    fn out(&mut self, port: u16, size: u64, value: u32) -> Resume {
        self.set_reg(0, u64::from(value));
        self.io(port, size, 0)
    }

    fn input(&mut self, port: u16, size: u64) -> u32 {
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

    fn wrmsr(&mut self, msr: u32, value: u64) {
        self.words.set(word::EXITINFO1, 1);
        self.set_reg(1, u64::from(msr));
        self.set_reg(0, value & 0xffff_ffff);
        self.set_reg(2, value >> 32);
        assert_eq!(self.exit(exit::MSR), Resume::Enter);
    }

    /// The next entry's control word; nothing pending is taken.
    fn enter(&mut self) -> u64 {
        self.vmm.prepare(&mut self.frame);
        let word = self.frame.control;
        self.frame.event = 0;
        let kept = control::V_IRQ | control::VECTOR;
        self.frame.control =
            word & kept | control::LONG | control::INTERRUPT_FLAG | control::DECODE_WORDS;
        word
    }

    /// Executes `code` at RIP, whose memory access faults at `gpa`.
    fn mmio(&mut self, code: &[u8], gpa: u64, is_write: bool) -> Resume {
        self.frame.rip = CODE;
        self.memory.write(CODE, code).unwrap();
        let write = if is_write { npf::WRITE } else { 0 };
        self.words.set(word::EXITINFO1, npf::FINAL | npf::USER | write);
        self.words.set(word::EXITINFO2, gpa);
        self.exit(exit::NPF)
    }

    fn mmio_write32(&mut self, gpa: u64, value: u32) {
        self.set_reg(0, u64::from(value));
        assert_eq!(self.mmio(&[0x89, 0x03], gpa, true), Resume::Enter);
    }

    fn mmio_read32(&mut self, gpa: u64) -> u32 {
        assert_eq!(self.mmio(&[0x8b, 0x03], gpa, false), Resume::Enter);
        assert_eq!(self.frame.rip, CODE + 2);
        self.reg(0) as u32
    }

    fn pci_address(&mut self, device: u32, register: u32) {
        self.out(0xcf8, 4, 0x8000_0000 | device << 11 | register);
    }

    fn pci_read(&mut self, device: u32, register: u32) -> u32 {
        self.pci_address(device, register & !3);
        self.input(0xcfc, 4)
    }
}

const X2APIC: u64 = 0xfee0_0d00;

#[test]
fn cpuid_answers_and_moves_on() {
    let mut b = Bench::new();
    b.set_reg(0, 0x4000_0000);
    assert_eq!(b.exit(exit::CPUID), Resume::Enter);
    assert_eq!(b.reg(3) as u32, 0x4b4d_564b);
    assert_eq!(b.frame.rip, CODE + 2);
    assert_eq!(b.enter() & control::GPR_MASK, 0xf << control::GPR_SHIFT);
    assert_eq!(b.enter() & control::GPR_MASK, 0, "words are not applied twice");
}

#[test]
fn an_interrupt_is_acknowledged_when_it_was_taken() {
    let mut b = Bench::new();
    b.wrmsr(0x1b, X2APIC);
    b.wrmsr(0x83f, 0x55);
    assert_eq!(b.enter() & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x55);
    // Still pending: a better one replaces it.
    b.wrmsr(0x83f, 0x66);
    assert_eq!(b.enter() & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x66);
    // Taken.
    b.frame.control &= !control::V_IRQ;
    b.set_reg(0, 0);
    b.exit(exit::CPUID);
    assert_eq!(b.enter() & control::V_IRQ, 0, "0x55 waits for the end of 0x66");
    b.wrmsr(0x80b, 0);
    assert_eq!(b.enter() & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x55);
}

#[test]
fn halt_wakes_by_the_deadline_timer() {
    let mut b = Bench::new();
    b.wrmsr(0x1b, X2APIC);
    b.wrmsr(0x832, 2 << 17 | 0xec);
    b.wrmsr(0x6e0, 5000);
    assert_eq!(b.vmm.deadline(), Some(5000));
    b.frame.control |= control::SHADOW;
    assert_eq!(b.exit(exit::HLT), Resume::Halt);
    assert_eq!(b.frame.control & control::SHADOW, 0);
    assert!(b.vmm.is_halted() && !b.vmm.is_woken(&b.frame));
    b.vmm.tick(4999);
    assert!(!b.vmm.is_woken(&b.frame));
    b.vmm.tick(5000);
    assert!(b.vmm.is_woken(&b.frame));
    b.frame.control &= !control::INTERRUPT_FLAG;
    assert!(!b.vmm.is_woken(&b.frame), "interrupts are off");
    assert_eq!(b.enter() & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0xec);
}

#[test]
fn the_timer_reaches_the_8259_through_virtual_wire() {
    let mut b = Bench::new();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        b.out(port, 1, value);
    }
    for (port, value) in [(0x43, 0x34), (0x40, 0xe8), (0x40, 3)] {
        b.out(port, 1, value);
    }
    for _ in 0..3 {
        let due = b.vmm.deadline().unwrap();
        b.vmm.tick(due);
        assert_eq!(b.enter() & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x30);
        b.frame.control &= !control::V_IRQ;
        b.out(0x20, 1, 0x20);
        assert_eq!(b.enter() & control::V_IRQ, 0);
    }
}

#[test]
fn the_serial_port_talks_and_interrupts_through_the_ioapic() {
    let mut b = Bench::new();
    for byte in b"hi\n" {
        assert_ne!(b.input(0x3fd, 1) & 0x20, 0);
        b.out(0x3f8, 1, u32::from(*byte));
    }
    assert_eq!(b.world.console, "hi\n");
    // IOAPIC input 4: vector 0x41, edge.
    b.mmio_write32(0xfec0_0000, 0x18);
    b.mmio_write32(0xfec0_0010, 0x41);
    b.out(0x3fc, 1, 0x08);
    b.out(0x3f9, 1, 0x01);
    b.vmm.receive(b'x');
    assert_eq!(b.enter() & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x41);
    assert_eq!(b.input(0x3f8, 1), u32::from(b'x'));
    b.mmio_write32(0xfec0_0000, 1);
    assert_eq!(b.mmio_read32(0xfec0_0010), 0x0017_0011);
}

#[test]
fn faults_on_ram_are_the_mem_servers() {
    let mut b = Bench::new();
    let resume = b.mmio(&[0x89, 0x03], 0x3_4567, true);
    assert_eq!(
        resume,
        Resume::FaultIn { gfn: protocol::units::Gfn(0x34), access: protocol::mem::access::WRITE }
    );
    assert_eq!(b.frame.rip, CODE);
}

#[test]
fn an_empty_bus_reads_ones_and_swallows_writes() {
    let mut b = Bench::new();
    b.set_reg(0, 7);
    assert_eq!(b.mmio_read32(0xd800_0000), u32::MAX);
    b.mmio_write32(0xd800_0000, 1);
    assert_eq!(
        b.mmio(&[0x0f, 0x28, 0x03], 0xd800_0000, false),
        Resume::Stop(Stop::Unsupported(Unsupported::Instruction {
            opcode: 0x0f28,
            gpa: 0xd800_0000
        }))
    );
    b.words.set(word::EXITINFO1, npf::EXECUTE | npf::FINAL);
    assert_eq!(b.exit(exit::NPF), Resume::Enter);
    assert_eq!(b.frame.event & event::VECTOR, 6);
}

#[test]
fn unknown_msrs_raise_general_protection() {
    let mut b = Bench::new();
    b.words.set(word::EXITINFO1, 0);
    b.set_reg(1, 0xc001_0140);
    assert_eq!(b.exit(exit::MSR), Resume::Enter);
    assert_eq!(b.frame.rip, CODE);
    assert_eq!(b.frame.event, event::VALID | event::TYPE_EXCEPTION | event::ERROR_VALID | 13);
}

#[test]
fn the_kvm_clock_runs_from_tsc_zero() {
    let mut b = Bench::new();
    b.wrmsr(0x4b56_4d01, 0x9001);
    assert_eq!(b.memory.read_u32(0x9000), Ok(2));
    assert_eq!(b.memory.read_u64(0x9008), Ok(0));
    assert_eq!(b.memory.read_u32(0x9018), Ok(TimeBase::new(1_000_000_000).clock_mul));
    b.wrmsr(0x4b56_4d00, 0x9100);
    assert_eq!(b.memory.read_u32(0x9104), Ok(1_700_000_000));
    let Bench { vmm, memory, .. } = &mut b;
    vmm.resumed(memory);
    assert_eq!(b.memory.0[0x901d], 3, "stable, and was stopped");
    // A page outside RAM is the guest's mistake.
    b.words.set(word::EXITINFO1, 1);
    b.set_reg(0, 0xffff_f001);
    b.set_reg(1, 0x4b56_4d01);
    b.exit(exit::MSR);
    assert_eq!(b.frame.event & event::VECTOR, 13);
}

#[test]
fn power_off_and_the_ways_to_reset() {
    assert_eq!(Bench::new().out(0x604, 2, 1 << 13 | 5 << 10), Resume::Stop(Stop::PowerOff));
    assert_eq!(Bench::new().out(0xcf9, 1, 6), Resume::Stop(Stop::Reset));
    assert_eq!(Bench::new().out(0x64, 1, 0xfe), Resume::Stop(Stop::Reset));
    assert_eq!(Bench::new().out(0x92, 1, 1), Resume::Stop(Stop::Reset));
    assert_eq!(Bench::new().exit(exit::SHUTDOWN), Resume::Stop(Stop::TripleFault));
    let mut b = Bench::new();
    b.vmm.press_power_button();
    assert_eq!(b.input(0x600, 2), 0x100);
}

#[test]
fn a_driver_reads_the_disk_with_message_interrupts() {
    let mut b = Bench::new();
    b.wrmsr(0x1b, X2APIC);
    let disk = (1..32).find(|&device| b.pci_read(device, 0) == 0x1042_1af4).unwrap();
    assert_eq!(b.pci_read(0, 8) >> 16, 0x0600);
    assert_eq!(b.pci_read(31, 0), u32::MAX);
    let bar = u64::from(b.pci_read(disk, 0x10));
    // Enable MSI-X by a 16-bit write to the upper half of the capability's first word.
    b.pci_address(disk, 0x40);
    b.out(0xcfe, 2, 0x8000);
    b.mmio_write32(bar + 0x4010, 0xfee0_0000);
    b.mmio_write32(bar + 0x4018, 0x51);
    b.mmio_write32(bar + 0x401c, 0);
    let byte = |b: &mut Bench, offset: u64, value: u64| {
        b.set_reg(0, value);
        assert_eq!(b.mmio(&[0x88, 0x03], bar + offset, true), Resume::Enter);
    };
    let word16 = |b: &mut Bench, offset: u64, value: u64| {
        b.set_reg(0, value);
        assert_eq!(b.mmio(&[0x66, 0x89, 0x03], bar + offset, true), Resume::Enter);
    };
    byte(&mut b, 0x14, 3);
    b.mmio_write32(bar + 8, 1);
    b.mmio_write32(bar + 0xc, 1);
    byte(&mut b, 0x14, 0xb);
    let mut driver = Driver::new(0x1_0000, 16);
    word16(&mut b, 0x16, 0);
    word16(&mut b, 0x18, 16);
    word16(&mut b, 0x1a, 1);
    b.mmio_write32(bar + 0x20, driver.desc as u32);
    b.mmio_write32(bar + 0x28, driver.avail as u32);
    b.mmio_write32(bar + 0x30, driver.used as u32);
    word16(&mut b, 0x1c, 1);
    byte(&mut b, 0x14, 0xf);
    assert_eq!(b.mmio_read32(bar + 0x2000), 100, "capacity");
    driver
        .offer(&mut b.memory, &[(0x2_0000, 16, false), (0x2_1000, 512, true), (0x2_2000, 1, true)]);
    word16(&mut b, 0x3000, 0);
    assert_eq!(b.world.doorbells, 1);
    let mut server = BlkServer::attach(&b.world.ring).unwrap();
    let (slot, request) = server.next(&b.world.ring).unwrap().unwrap();
    write_bytes(&b.world.ring, request.data_offset(), &[0x42; 512]);
    server.complete(&b.world.ring, slot, BlkStatus::Ok, Phase::Weight);
    let Bench { vmm, memory, world, .. } = &mut b;
    vmm.disk_completed(memory, world);
    assert_eq!(b.memory.0[0x2_1000], 0x42);
    assert_eq!(driver.take(&b.memory).map(|done| done.1), Some(513));
    assert_eq!(b.enter() & (control::V_IRQ | control::VECTOR), control::V_IRQ | 0x51);
}

#[test]
fn repeated_string_output_goes_byte_by_byte() {
    let mut b = Bench::new();
    b.memory.write(CODE, &[0xf3, 0x6e]).unwrap();
    b.memory.write(0x9000, b"text").unwrap();
    b.set_reg(1, 4);
    b.set_reg(6, 0x9000);
    b.words.set(word::EXITINFO1, 0x3f8 << 16 | ioio::STRING | ioio::REP | ioio::SIZE8);
    assert_eq!(b.exit(exit::IOIO), Resume::Enter);
    assert_eq!(b.world.console, "text");
    assert_eq!((b.reg(1), b.reg(6), b.frame.rip), (0, 0x9004, CODE + 2));
}

#[test]
fn task_priority_by_cr8() {
    let mut b = Bench::new();
    b.wrmsr(0x1b, X2APIC);
    b.wrmsr(0x83f, 0x55);
    b.memory.write(b.frame.rip, &[0x45, 0x0f, 0x22, 0xc1]).unwrap();
    b.set_reg(9, 6);
    let before = b.frame.rip;
    assert_eq!(b.exit(exit::CR8_WRITE), Resume::Enter);
    assert_eq!(b.frame.rip, before + 4);
    let word = b.enter();
    assert_eq!(word & control::V_IRQ, 0);
    assert_eq!(word & control::TPR_MASK, 6 << control::TPR_SHIFT);
}

#[test]
fn an_nmi_blocks_the_next_until_iret() {
    let mut b = Bench::new();
    b.wrmsr(0x1b, X2APIC);
    b.wrmsr(0x830, 0x4_0400);
    b.vmm.prepare(&mut b.frame);
    assert_eq!(b.frame.event, event::VALID | event::TYPE_NMI | 2);
    assert_ne!(b.frame.control & control::IRET_WINDOW, 0);
    b.enter();
    b.wrmsr(0x830, 0x4_0400);
    b.vmm.prepare(&mut b.frame);
    assert_eq!(b.frame.event, 0);
    b.exit(exit::IRET);
    b.vmm.prepare(&mut b.frame);
    assert_eq!(b.frame.event & event::VECTOR, 2);
}

#[test]
fn random_exits_never_panic() {
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let ports = [
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x43, 0x61, 0x64, 0x70, 0x71, 0x3f8, 0x3f9, 0x3fa, 0x3fc,
        0x4d0, 0x600, 0x604, 0x608, 0xcf8, 0xcfc, 0xcfe, 0x80,
    ];
    for _ in 0..40 {
        let mut b = Bench::new();
        for byte in &mut b.memory.0[0x1_0000..] {
            *byte = random() as u8;
        }
        for _ in 0..4000 {
            let r = random();
            b.world.now = b.world.now.saturating_add(r >> 44);
            for number in 0..16 {
                b.set_reg(number, random() >> (random() & 63));
            }
            b.frame.rip =
                if r & 1 == 0 { CODE + (r >> 8 & 0xff) } else { 0x1_0000 + (r >> 8 & 0xffff) };
            b.frame.event = 0;
            let code = match r >> 1 & 15 {
                0..=4 => {
                    let port = ports[(r >> 20) as usize % ports.len()] + (r >> 5 & 1);
                    b.words.set(
                        word::EXITINFO1,
                        port << 16 | [1, 2, 4][(r >> 30) as usize % 3] << 4 | (r >> 33 & 0xd),
                    );
                    b.words.set(word::EXITINFO2, random());
                    exit::IOIO
                }
                5..=9 => {
                    let base = [
                        0xd000_8000u64,
                        0xd001_0000,
                        0xd001_8000,
                        0xfec0_0000,
                        0xfee0_0000,
                        random(),
                    ];
                    b.words.set(word::EXITINFO1, random() & 0x3_0000_001f);
                    b.words.set(
                        word::EXITINFO2,
                        base[(r >> 20) as usize % 6].wrapping_add(r >> 32 & 0x7fff),
                    );
                    exit::NPF
                }
                10..=12 => {
                    let msr = [
                        0x1b,
                        0x6e0,
                        0x800 + (r >> 20 & 0x3f),
                        0x4b56_4d00 + (r >> 20 & 1),
                        0xc000_0080,
                    ];
                    b.set_reg(1, msr[(r >> 30) as usize % 5]);
                    b.words.set(word::EXITINFO1, r >> 40 & 1);
                    exit::MSR
                }
                13 => exit::CPUID,
                14 => exit::CR8_WRITE,
                _ => r >> 8 & 0xff,
            };
            let _ = b.exit(code);
            let _ = b.vmm.stop.take();
            b.vmm.tick(b.world.now);
            let Bench { vmm, memory, world, .. } = &mut b;
            vmm.disk_completed(memory, world);
            b.enter();
            if r >> 60 & 1 == 0 {
                b.frame.control &= !control::V_IRQ;
            }
        }
    }
}
