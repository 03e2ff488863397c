//! The virtual machine: what an exit does, which interrupt comes next, when a timer is due.
//!
//! The edge enters the guest, hands every return to [`Vmm::returned`] and [`Vmm::exit`], does what [`Resume`] says, and
//! asks [`Vmm::prepare`] for the next entry. Nothing here does a system call or reads a clock.
//!
//! External interrupts are presented as virtual interrupts (`V_IRQ`): the processor takes them when the guest can, and
//! the next return tells. So an interrupt is acknowledged at the local APIC or the 8259 only when it was taken.

use crate::acpi::pci_irq;
use crate::cpuid::Cpuid;
use crate::device::ioapic::{IOAPIC_BASE, IoApic, Message, Messages};
use crate::device::lapic::{ApicEffect, LAPIC_BASE, Lapic};
use crate::device::pic::Pic;
use crate::device::pit::Pit;
use crate::device::pm::PowerManagement;
use crate::device::rtc::Rtc;
use crate::device::uart::Uart;
use crate::emulate::decode::{Instruction, Mode};
use crate::guest_memory::GuestMemory;
use crate::length::CodePages;
use crate::msr::KvmClock;
use crate::pci::{BAR_BYTES, ConfigMechanism, ConfigSpace, HOST_BRIDGE, Msi, Msis, WINDOW_START};
use crate::time::{Ticks, TimeBase};
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Blk;
use crate::virtio::pci::{DeviceHost, Kind, VirtioPci};
use crate::virtio::rng::Rng;
use abi::vcpu::{control, event, exit, field, npf, word};
use heapless::Vec;
use protocol::root::VmmCounter;
use protocol::system::DISKS_MAX;
use protocol::units::Gfn;

/// Devices behind the host bridge: disks, entropy, balloon.
pub const DEVICES_MAX: usize = DISKS_MAX + 2;

/// Serial port's interrupt.
const UART_IRQ: u8 = 4;

const RAX: usize = word::GPR;
const RCX: usize = word::GPR + 1;
const RDX: usize = word::GPR + 2;
const RBX: usize = word::GPR + 3;
/// First byte and length of 0F xx.
const TWO_BYTES: (u8, u64) = (0x0f, 2);
const CR4_OSXSAVE: u64 = 1 << 18;

/// The words of an exit, in the thread's IPC buffer.
///
/// A system call made on behalf of the guest may overwrite them: read before calling the host, write after.
pub trait Words {
    /// Word `index` ([`abi::vcpu::word`]).
    fn get(&self, index: usize) -> u64;
    /// Sets word `index`.
    fn set(&mut self, index: usize, value: u64);
}

/// What the machine offers below the device models.
pub trait Host: DeviceHost {
    /// The guest's TSC now.
    fn now(&self) -> Ticks;
    /// Reads a state field of the virtual processor ([`abi::vcpu::field`]).
    fn read_state(&mut self, field: u64) -> u64;
    /// Writes a state field; false if the kernel refuses the value.
    fn write_state(&mut self, field: u64, value: u64) -> bool;
    /// A byte leaves the serial port.
    fn console(&mut self, byte: u8);
}

/// Registers of VMEnter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Guest instruction pointer.
    pub rip: u64,
    /// Control word ([`abi::vcpu::control`]).
    pub control: u64,
    /// Event to inject, or the one cut short.
    pub event: u64,
    /// Exit code.
    pub code: u64,
}

/// What follows an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Enter again.
    Enter,
    /// The processor is halted: wait for an event, unless [`Vmm::is_woken`].
    Halt,
    /// Let the mem-server back a frame, then enter again.
    FaultIn {
        /// Which.
        gfn: Gfn,
        /// Bits of [`protocol::mem::access`].
        access: u64,
    },
    /// The machine stops.
    Stop(Stop),
}

/// Why the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Sleep state S5.
    PowerOff,
    /// Reset by any of its registers.
    Reset,
    /// Triple fault.
    TripleFault,
    /// The guest state was refused by the processor.
    InvalidState,
    /// Something that is not emulated.
    Unsupported(Unsupported),
}

/// What was not emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// An exit without handler.
    Exit,
    /// An access to device memory at `gpa` by an instruction with this opcode (two-byte ones with 0x0f00 added).
    Instruction {
        /// Opcode.
        opcode: u16,
        /// Address of the access.
        gpa: u64,
    },
    /// The instruction bytes could not be read.
    Fetch {
        /// Address of the access.
        gpa: u64,
    },
    /// Page tables outside RAM.
    PageTable {
        /// Address of the table entry.
        gpa: u64,
    },
    /// Delivery of an event touched device memory.
    EventDelivery {
        /// Address of the access.
        gpa: u64,
    },
}

/// The interrupt presented at the last entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offered {
    None,
    Lapic(u8),
    Pic(u8),
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Rate of the TSC.
    pub time: TimeBase,
    /// Unix time when the guest's TSC is zero.
    pub epoch_seconds: u64,
    /// Seed of the entropy device.
    pub seed: u64,
    /// CPUID answers.
    pub cpuid: Cpuid,
    /// The balloon device.
    pub balloon: protocol::system::Balloon,
}

/// Decoded instruction of the last device access, valid while the bytes are the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeCache {
    pub(crate) bytes: [u8; 16],
    pub(crate) mode: Mode,
    pub(crate) instruction: Option<Instruction>,
}

/// One virtual machine with one processor.
#[derive(Clone, Debug)]
pub struct Vmm {
    pub(crate) time: TimeBase,
    pub(crate) epoch_seconds: u64,
    pub(crate) lapic: Lapic,
    pub(crate) clock: KvmClock,
    /// The pending interrupt may have changed.
    pub(crate) irq_changed: bool,
    pub(crate) decoded: DecodeCache,
    /// Where the last intercepted instruction without operands was found.
    pub(crate) code: CodePages,
    pub(crate) ioapic: IoApic,
    pub(crate) pic: Pic,
    pub(crate) pit: Pit,
    pub(crate) rtc: Rtc,
    pub(crate) uart: Uart,
    pub(crate) pm: PowerManagement,
    pub(crate) pci: ConfigMechanism,
    pub(crate) bridge: ConfigSpace,
    pub(crate) devices: Vec<VirtioPci, DEVICES_MAX>,
    /// A device model asked for the end of the machine.
    pub(crate) stop: Option<Stop>,
    offered: Offered,
    uart_level: bool,
    /// Levels of the devices' INTA lines, a bit each.
    intx: u8,
    nmi_pending: bool,
    nmi_blocked: bool,
    halted: bool,
    cpuid: Cpuid,
    counters: [u64; VmmCounter::Count as usize],
}

impl Default for Vmm {
    fn default() -> Self {
        Self::new()
    }
}

impl Vmm {
    /// A machine that is not configured yet: [`Vmm::configure`] comes next. Constant, as it is too large for a stack.
    pub const fn new() -> Self {
        Self {
            time: TimeBase::new(0),
            epoch_seconds: 0,
            lapic: Lapic::new(),
            clock: KvmClock::new(),
            irq_changed: true,
            decoded: DecodeCache { bytes: [0; 16], mode: Mode::Bits16, instruction: None },
            code: CodePages::new(),
            ioapic: IoApic::new(),
            pic: Pic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(0),
            uart: Uart::new(),
            pm: PowerManagement::new(),
            pci: ConfigMechanism::new(),
            bridge: ConfigSpace::bridge(HOST_BRIDGE),
            devices: Vec::new(),
            stop: None,
            offered: Offered::None,
            uart_level: false,
            intx: 0,
            nmi_pending: false,
            nmi_blocked: false,
            halted: false,
            cpuid: Cpuid::EMPTY,
            counters: [0; VmmCounter::Count as usize],
        }
    }

    /// Sets what the configuration says and adds entropy device and balloon; disks are added by [`Vmm::add_disk`].
    pub fn configure(&mut self, config: &Config) {
        self.time = config.time;
        self.epoch_seconds = config.epoch_seconds;
        self.rtc = Rtc::new(config.epoch_seconds);
        self.cpuid = config.cpuid.clone();
        self.add(Kind::Rng(Rng::new(config.seed)));
        if config.balloon.present {
            let balloon =
                Balloon::new(config.balloon.free_page_reporting, config.balloon.deflate_on_oom);
            self.add(Kind::Balloon(balloon));
        }
    }

    /// Adds disk `number`; at most [`DISKS_MAX`].
    pub fn add_disk(&mut self, number: u8, blk: Blk) {
        self.add(Kind::Blk(number, blk));
    }

    fn add(&mut self, kind: Kind) {
        let device = self.devices.len() as u8 + 1;
        let bar = WINDOW_START + BAR_BYTES * u32::from(device);
        // Room for all kinds: DEVICES_MAX.
        let _ = self.devices.push(VirtioPci::new(kind, bar, pci_irq(device)));
    }

    /// Counters, to be published.
    pub fn counters(&self) -> &[u64; VmmCounter::Count as usize] {
        &self.counters
    }

    /// Counts `amount` more of `counter`.
    #[inline]
    pub fn count(&mut self, counter: VmmCounter, amount: u64) {
        self.counters[counter as usize] = self.counters[counter as usize].wrapping_add(amount);
    }

    /// Refreshes the counters that are computed rather than counted.
    pub fn refresh_counters(&mut self) {
        let (mut requests, mut balloon) = (0, 0);
        for device in &self.devices {
            match device.kind() {
                Kind::Blk(_, blk) => requests += blk.completed(),
                Kind::Balloon(device) => balloon = u64::from(device.actual_pages()),
                Kind::Rng(_) => {}
            }
        }
        self.counters[VmmCounter::DiskRequests as usize] = requests;
        self.counters[VmmCounter::BalloonPages as usize] = balloon;
    }

    /// Rate of the guest's TSC.
    pub fn time_base(&self) -> &TimeBase {
        &self.time
    }

    /// VMEnter returned, for whatever reason: was the presented interrupt taken?
    #[inline]
    pub fn returned(&mut self, frame: &Frame) {
        if self.offered != Offered::None && frame.control & control::V_IRQ == 0 {
            self.accept_offered();
        }
    }

    fn accept_offered(&mut self) {
        match self.offered {
            Offered::Lapic(vector) => self.lapic.accept(vector),
            Offered::Pic(_) => {
                self.pic.acknowledge();
            }
            Offered::None => {}
        }
        self.offered = Offered::None;
        self.irq_changed = true;
        self.count(VmmCounter::Injected, 1);
    }

    /// Handles an exit; `frame` and `words` become what the next entry needs.
    #[inline]
    pub fn exit<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut H,
    ) -> Resume {
        match frame.code {
            exit::CPUID => self.exit_cpuid(frame, words, memory, host),
            exit::MSR => self.exit_msr(frame, words, memory, host),
            exit::IOIO => self.exit_io(frame, words, memory, host),
            exit::NPF => self.exit_npf(frame, words, memory, host),
            exit::HLT => {
                self.count(VmmCounter::ExitHlt, 1);
                self.step_over(frame, words, memory, host, (0xf4, 1));
                self.halted = true;
                Resume::Halt
            }
            exit::VMMCALL => self.exit_vmmcall(frame, words, memory, host),
            _ => self.exit_other(frame, words, memory, host),
        }
    }

    #[inline]
    fn exit_cpuid<M: GuestMemory>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut impl Host,
    ) -> Resume {
        self.count(VmmCounter::ExitCpuid, 1);
        self.step_over(frame, words, memory, host, TWO_BYTES);
        let (leaf, subleaf) = (words.get(RAX) as u32, words.get(RCX) as u32);
        let answer = if matches!(leaf, 1 | 0xd) {
            let has_osxsave = host.read_state(field::CR4) & CR4_OSXSAVE != 0;
            self.cpuid.get(leaf, subleaf, || has_osxsave, || host.read_state(field::XCR0))
        } else {
            self.cpuid.get(leaf, subleaf, || false, || 1)
        };
        words.set(RAX, u64::from(answer[0]));
        words.set(RBX, u64::from(answer[1]));
        words.set(RCX, u64::from(answer[2]));
        words.set(RDX, u64::from(answer[3]));
        frame.control |= 0xf << control::GPR_SHIFT;
        Resume::Enter
    }

    #[inline]
    fn exit_msr<M: GuestMemory>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut impl Host,
    ) -> Resume {
        self.count(VmmCounter::ExitMsr, 1);
        let msr = words.get(RCX) as u32;
        if words.get(word::EXITINFO1) & 1 != 0 {
            let value = words.get(RAX) & 0xffff_ffff | words.get(RDX) << 32;
            if self.write_msr(msr, value, memory, host).is_err() {
                return general_protection(frame);
            }
            self.step_over(frame, words, memory, host, TWO_BYTES);
            return match self.stop.take() {
                Some(stop) => Resume::Stop(stop),
                None => Resume::Enter,
            };
        }
        let Ok(value) = self.read_msr(msr, host) else { return general_protection(frame) };
        self.step_over(frame, words, memory, host, TWO_BYTES);
        words.set(RAX, value & 0xffff_ffff);
        words.set(RDX, value >> 32);
        frame.control |= 0b101 << control::GPR_SHIFT;
        Resume::Enter
    }

    fn exit_vmmcall<M: GuestMemory>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut impl Host,
    ) -> Resume {
        self.count(VmmCounter::ExitVmmcall, 1);
        // KVM's numbers: 1 polls for an interrupt (a no-op here), 5 wakes a processor (there is one).
        const EPERM: i64 = -1;
        const ENOSYS: i64 = -1000;
        let result = match words.get(RAX) {
            _ if frame.control & control::CPL_MASK != 0 => EPERM,
            1 | 5 => 0,
            _ => ENOSYS,
        };
        self.step_over(frame, words, memory, host, (0x0f, 3));
        words.set(RAX, result as u64);
        frame.control |= 1 << control::GPR_SHIFT;
        Resume::Enter
    }

    fn exit_npf<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut H,
    ) -> Resume {
        let info = words.get(word::EXITINFO1);
        let gpa = words.get(word::EXITINFO2);
        if memory.layout().contains(gpa, 1) {
            self.count(VmmCounter::ExitFaultIn, 1);
            let mut access = 0;
            if info & npf::WRITE != 0 {
                access |= protocol::mem::access::WRITE;
            }
            if info & npf::EXECUTE != 0 {
                access |= protocol::mem::access::EXECUTE;
            }
            return Resume::FaultIn { gfn: Gfn::containing(gpa), access };
        }
        self.count(VmmCounter::ExitMmio, 1);
        if frame.event & event::VALID != 0 {
            return unsupported(Unsupported::EventDelivery { gpa });
        }
        if info & npf::TABLE != 0 {
            return unsupported(Unsupported::PageTable { gpa });
        }
        if info & npf::EXECUTE != 0 {
            // An empty bus reads all ones: FF FF is no instruction.
            return undefined_opcode(frame);
        }
        self.emulate_access(frame, words, memory, host, gpa, info & npf::WRITE != 0)
    }

    #[cold]
    fn exit_other<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut H,
    ) -> Resume {
        self.count(VmmCounter::ExitOther, 1);
        match frame.code {
            exit::CR8_WRITE => self.exit_cr8(frame, words, memory, host),
            exit::VINTR | exit::PAUSE => {
                // Only the order of things matters: the interrupt is presented again at entry.
                if frame.code == exit::PAUSE {
                    // F3 90, and F3 counts as one of its prefixes.
                    self.step_over(frame, words, memory, host, (0x90, 1));
                }
                Resume::Enter
            }
            exit::IRET => {
                self.nmi_blocked = false;
                self.irq_changed = true;
                Resume::Enter
            }
            exit::WBINVD | exit::INVD => {
                self.step_over(frame, words, memory, host, TWO_BYTES);
                Resume::Enter
            }
            exit::XSETBV => self.exit_xsetbv(frame, words, memory, host),
            exit::RDPMC => general_protection(frame),
            exit::MONITOR
            | exit::MWAIT
            | exit::MWAIT_CONDITIONAL
            | exit::RSM
            | exit::VMRUN
            | exit::VMLOAD..=exit::SKINIT
            | exit::INVLPGA => undefined_opcode(frame),
            exit::SHUTDOWN => Resume::Stop(Stop::TripleFault),
            exit::INVALID => Resume::Stop(Stop::InvalidState),
            _ => unsupported(Unsupported::Exit),
        }
    }

    fn exit_xsetbv<M: GuestMemory>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut impl Host,
    ) -> Resume {
        let value = words.get(RAX) & 0xffff_ffff | words.get(RDX) << 32;
        let is_privileged = frame.control & control::CPL_MASK == 0;
        // x87 state cannot be turned off, and AVX needs SSE.
        let is_sound = value & 1 != 0 && value & 6 != 4 && value & !self.cpuid.xcr0_mask() == 0;
        let is_accepted = is_privileged && words.get(RCX) as u32 == 0 && is_sound;
        if !is_accepted || !host.write_state(field::XCR0, value) {
            return general_protection(frame);
        }
        self.step_over(frame, words, memory, host, (0x0f, 3));
        Resume::Enter
    }

    /// Moves past an emulated instruction, which also ends an interrupt shadow.
    #[inline]
    pub(crate) fn advance_rip(&mut self, frame: &mut Frame, length: u64) {
        let next = frame.rip.wrapping_add(length);
        frame.rip = if frame.control & control::LONG != 0 { next } else { next & 0xffff_ffff };
        frame.control &= !control::SHADOW;
    }

    /// Completes the frame for the next entry. `frame.control` still holds what the last return said, with the register
    /// bits that exit handlers have added.
    #[inline]
    pub fn prepare(&mut self, frame: &mut Frame) {
        self.halted = false;
        if self.irq_changed {
            self.choose_interrupt(frame);
        }
        let presented = match self.offered {
            Offered::None => 0,
            Offered::Lapic(vector) | Offered::Pic(vector) => control::V_IRQ | u64::from(vector),
        };
        let kept = control::SHADOW | control::GPR_MASK | control::SET_RFLAGS;
        frame.control = frame.control & kept
            | presented
            | u64::from(self.lapic.cr8()) << control::TPR_SHIFT
            | if self.nmi_blocked { control::IRET_WINDOW } else { 0 };
    }

    fn choose_interrupt(&mut self, frame: &mut Frame) {
        self.irq_changed = false;
        if self.nmi_pending && !self.nmi_blocked && frame.event & event::VALID == 0 {
            self.nmi_pending = false;
            self.nmi_blocked = true;
            frame.event = event::VALID | event::TYPE_NMI | 2;
        }
        // The 8259 pair is asked first: its requests are in no order with the local APIC's.
        self.offered = if self.has_extint() {
            Offered::Pic(self.pic.peek())
        } else {
            match self.lapic.pending() {
                Some(vector) => Offered::Lapic(vector),
                None => Offered::None,
            }
        };
    }

    /// Whether a halted processor has something to wake for.
    pub fn is_woken(&self, frame: &Frame) -> bool {
        let is_open = frame.control & control::INTERRUPT_FLAG != 0;
        (self.nmi_pending && !self.nmi_blocked) || (is_open && self.has_interrupt())
    }

    /// Whether the processor executed HLT and was not woken since.
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// Whether an interrupt waits for the processor.
    pub fn has_interrupt(&self) -> bool {
        self.has_extint() || self.lapic.pending().is_some()
    }

    /// Whether the 8259 pair has an interrupt and a way to the processor: LINT0, or the I/O APIC's first input.
    fn has_extint(&self) -> bool {
        self.pic.wants_interrupt() && (self.lapic.accepts_extint() || self.ioapic.passes_extint())
    }

    /// When the next timer is due.
    #[inline]
    pub fn deadline(&self) -> Option<Ticks> {
        match (self.lapic.deadline(), self.pit.deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Time has come to `now`: timers fire.
    pub fn tick(&mut self, now: Ticks) {
        if self.lapic.expire(now) {
            self.irq_changed = true;
        }
        if self.pit.expire(now, &self.time) {
            // The output falls and rises again; it stays high until the next period ends.
            self.set_irq(0, false);
            self.set_irq(0, true);
        }
    }

    /// Whether the serial port takes another byte.
    pub fn can_receive(&self) -> bool {
        self.uart.can_receive()
    }

    /// A byte arrives at the serial port.
    pub fn receive(&mut self, byte: u8) {
        self.uart.receive(byte);
        self.update_uart();
    }

    /// The io-sched-server completed requests.
    pub fn disk_completed<M: GuestMemory, H: Host>(&mut self, memory: &mut M, host: &mut H) {
        for index in 0..self.devices.len() {
            let mut out = Msis::new();
            if let Some(device) = self.devices.get_mut(index) {
                device.disk_completed(memory, host, &mut out);
            }
            self.after_device(index, &out);
        }
    }

    /// The balloon should hold `pages`.
    pub fn set_balloon(&mut self, pages: u32) {
        for index in 0..self.devices.len() {
            let mut out = Msis::new();
            if let Some(device) = self.devices.get_mut(index) {
                device.set_balloon(pages, &mut out);
            }
            self.after_device(index, &out);
        }
    }

    /// Asks the balloon's driver for statistics.
    pub fn ask_statistics<M: GuestMemory>(&mut self, memory: &mut M) {
        for index in 0..self.devices.len() {
            let mut out = Msis::new();
            if let Some(device) = self.devices.get_mut(index) {
                device.ask_statistics(memory, &mut out);
            }
            self.after_device(index, &out);
        }
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.update_sci();
    }

    pub(crate) fn update_uart(&mut self) {
        let level = self.uart.irq_level();
        if level != self.uart_level {
            self.uart_level = level;
            self.set_irq(UART_IRQ, level);
        }
    }

    pub(crate) fn update_sci(&mut self) {
        let level = self.pm.sci_level();
        self.set_irq(crate::device::pm::SCI_IRQ, level);
    }

    /// Drives an ISA interrupt: an input of the 8259 pair and of the I/O APIC.
    fn set_irq(&mut self, irq: u8, level: bool) {
        self.pic.set_line(irq, level);
        let pin = if irq == 0 { 2 } else { irq };
        self.set_gsi(pin, level);
        self.irq_changed = true;
    }

    fn set_gsi(&mut self, gsi: u8, level: bool) {
        if let Some(message) = self.ioapic.set_line(gsi, level) {
            self.deliver(message);
        }
    }

    pub(crate) fn deliver(&mut self, message: Message) {
        if !self.lapic.is_destination(message.destination, message.is_logical) {
            return;
        }
        match message.mode {
            0 | 1 => {
                self.lapic.deliver(message.vector, message.is_level);
                self.irq_changed = true;
            }
            4 => self.raise_nmi(),
            // SMI and INIT by message are not wired; ExtINT is no message (`has_extint`).
            _ => {}
        }
    }

    fn raise_nmi(&mut self) {
        self.nmi_pending = true;
        self.irq_changed = true;
    }

    pub(crate) fn apply(&mut self, effect: ApicEffect) {
        self.irq_changed = true;
        match effect {
            ApicEffect::None => {}
            ApicEffect::Broadcast(vector) => {
                let mut messages = Messages::new();
                self.ioapic.end_of_interrupt(vector, &mut messages);
                for message in messages {
                    self.deliver(message);
                }
            }
            ApicEffect::Nmi => self.raise_nmi(),
            ApicEffect::Init => self.stop = Some(Stop::Reset),
        }
    }

    /// Sends a device's messages and updates its INTA line.
    pub(crate) fn after_device(&mut self, index: usize, messages: &Msis) {
        for message in messages {
            self.send_msi(*message);
        }
        let level = self.devices.get(index).is_some_and(VirtioPci::intx_level);
        if (self.intx >> index & 1 != 0) != level {
            self.intx ^= 1 << index;
            self.set_irq(pci_irq(index as u8 + 1), level);
        }
    }

    fn send_msi(&mut self, msi: Msi) {
        // Only the local APIC's window is an interrupt; other addresses would be plain memory writes.
        if msi.address >> 20 != LAPIC_BASE >> 20 {
            return;
        }
        self.deliver(Message {
            vector: msi.data as u8,
            mode: (msi.data >> 8 & 7) as u8,
            is_level: false,
            destination: (msi.address >> 12) as u8,
            is_logical: msi.address & 4 != 0,
        });
    }

    /// Reads device memory.
    pub(crate) fn read_mmio<H: Host>(&mut self, gpa: u64, size: u8, host: &mut H) -> u64 {
        let all_ones = crate::emulate::execute::mask(size);
        let page = gpa & !0xfff;
        if page == IOAPIC_BASE {
            return u64::from(self.ioapic.read(gpa as u16 & 0xfff));
        }
        if page == LAPIC_BASE {
            return if self.lapic.is_xapic() {
                u64::from(self.lapic.read_mmio(gpa as u16 & 0xfff, host.now()))
            } else {
                all_ones
            };
        }
        for index in 0..self.devices.len() {
            let Some(device) = self.devices.get_mut(index) else { break };
            if let Some(offset) = device.offset_of(gpa) {
                let value = device.read(offset, size);
                self.after_device(index, &Msis::new());
                return value & all_ones;
            }
        }
        all_ones
    }

    /// Writes device memory.
    pub(crate) fn write_mmio<M: GuestMemory, H: Host>(
        &mut self,
        gpa: u64,
        size: u8,
        value: u64,
        memory: &mut M,
        host: &mut H,
    ) {
        let page = gpa & !0xfff;
        if page == IOAPIC_BASE {
            if let Some(message) = self.ioapic.write(gpa as u16 & 0xfff, value as u32) {
                self.deliver(message);
            }
            self.irq_changed = true;
            return;
        }
        if page == LAPIC_BASE {
            if self.lapic.is_xapic() {
                let effect = self.lapic.write_mmio(gpa as u16 & 0xfff, value as u32, host.now());
                self.apply(effect);
            }
            return;
        }
        for index in 0..self.devices.len() {
            let Some(device) = self.devices.get_mut(index) else { break };
            if let Some(offset) = device.offset_of(gpa) {
                let mut out = Msis::new();
                device.write(offset, size, value, memory, host, &mut out);
                self.after_device(index, &out);
                return;
            }
        }
    }
}

pub(crate) fn inject(frame: &mut Frame, vector: u8, error: Option<u32>) -> Resume {
    let code = match error {
        Some(code) => event::ERROR_VALID | u64::from(code) << event::ERROR_SHIFT,
        None => 0,
    };
    frame.event = event::VALID | event::TYPE_EXCEPTION | u64::from(vector) | code;
    Resume::Enter
}

pub(crate) fn general_protection(frame: &mut Frame) -> Resume {
    inject(frame, 13, Some(0))
}

pub(crate) fn undefined_opcode(frame: &mut Frame) -> Resume {
    inject(frame, 6, None)
}

pub(crate) fn unsupported(what: Unsupported) -> Resume {
    Resume::Stop(Stop::Unsupported(what))
}

#[cfg(test)]
mod tests;
