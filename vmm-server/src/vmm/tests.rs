//! The machine as a whole: exits go in, frames and words come out.

use super::{Resume, Stop, Unsupported, Words};
use crate::guest_memory::GuestMemory;
use crate::model::{Bench, CODE};
use crate::time::TimeBase;
use crate::virtio::queue::driver::Driver;
use abi::vcpu::{control, event, exit, field, ioio, npf, word};
use protocol::ring::{BlkServer, BlkStatus, Phase, write_bytes};

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
        b.mmio(&[0x0f, 0x58, 0x03], 0xd800_0000, false),
        Resume::Stop(Stop::Unsupported(Unsupported::Instruction {
            opcode: 0x0f58,
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

/// Runs `code` at RIP, which exits with `code` as exit; how far RIP moved.
fn stepped(bench: &mut Bench, code: &[u8], exit_code: u64) -> u64 {
    bench.frame.rip = CODE;
    bench.memory.write(CODE, code).unwrap();
    bench.exit(exit_code);
    bench.frame.rip - CODE
}

#[test]
fn prefixes_count_as_part_of_an_intercepted_instruction() {
    let mut bench = Bench::new();
    for (code, exit_code) in [
        (&[0x66, 0x0f, 0xa2][..], exit::CPUID),
        (&[0x0f, 0xa2], exit::CPUID),
        (&[0xf3, 0x2e, 0x48, 0x0f, 0xa2], exit::CPUID),
        (&[0x66, 0x0f, 0x01, 0xd9], exit::VMMCALL),
        (&[0x2e, 0xf4], exit::HLT),
        (&[0xf4], exit::HLT),
        (&[0xf3, 0x90], exit::PAUSE),
        (&[0x66, 0xf3, 0x90], exit::PAUSE),
        (&[0x40, 0x0f, 0x09], exit::WBINVD),
    ] {
        assert_eq!(stepped(&mut bench, code, exit_code), code.len() as u64, "{code:02x?}");
    }
    // REX stands directly before the opcode; outside 64-bit code it is another instruction.
    bench.frame.control &= !control::LONG;
    assert_eq!(stepped(&mut bench, &[0x66, 0x0f, 0xa2], exit::CPUID), 3);
}

#[test]
fn code_that_cannot_be_read_is_taken_for_the_shortest_form() {
    let mut bench = Bench::new();
    bench.frame.rip = 0x7000_0000;
    assert_eq!(bench.exit(exit::CPUID), Resume::Enter);
    assert_eq!(bench.frame.rip, 0x7000_0002);
    // The page changes below a known translation: the bytes are looked at each time.
    assert_eq!(stepped(&mut bench, &[0x0f, 0xa2], exit::CPUID), 2);
    assert_eq!(stepped(&mut bench, &[0x66, 0x0f, 0xa2], exit::CPUID), 3);
    assert_eq!(stepped(&mut bench, &[0x0f, 0xa2], exit::CPUID), 2);
}

#[test]
fn sse_registers_move_to_and_from_devices() {
    let mut bench = Bench::new();
    let hole = 0xe000_0000;
    bench.world.state.insert(field::XMM + 6, 5);
    // MOVDQA xmm3, [rbx]: nobody there reads as ones.
    assert_eq!(bench.mmio(&[0x66, 0x0f, 0x6f, 0x1b], hole, false), Resume::Enter);
    assert_eq!(bench.frame.rip, CODE + 4);
    assert_eq!(bench.world.state[&(field::XMM + 6)], u64::MAX);
    assert_eq!(bench.world.state[&(field::XMM + 7)], u64::MAX);
    // MOVD [rbx], xmm9 selects an I/O APIC register.
    bench.world.state.insert(field::XMM + 18, 1);
    assert_eq!(bench.mmio(&[0x66, 0x44, 0x0f, 0x7e, 0x0b], 0xfec0_0000, true), Resume::Enter);
    assert_eq!(bench.mmio_read32(0xfec0_0000), 1);
}

#[test]
fn what_is_not_emulated_stops_with_its_bytes() {
    let mut bench = Bench::new();
    let code = [0x0f, 0x58, 0x03, 0x90];
    let wanted = Unsupported::Instruction { opcode: 0x0f58, gpa: 0xe000_0000 };
    assert_eq!(bench.mmio(&code, 0xe000_0000, false), Resume::Stop(Stop::Unsupported(wanted)));
    assert_eq!(bench.vmm.instruction_bytes()[..4], code);
}
