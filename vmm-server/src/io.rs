//! Port I/O: which port is which device, and string instructions.

use crate::device::pm::{self, PowerManagement, PowerRequest};
use crate::emulate::decode::Operation;
use crate::emulate::execute::{advance, mask, repeat_done};
use crate::emulate::walk::{Access, WalkError, translate};
use crate::guest_memory::GuestMemory;
use crate::pci::{CONFIG_ADDRESS, ConfigAccess, Msis};
use crate::vmm::{Frame, Host, Resume, Stop, Unsupported, Vmm, Words, inject, unsupported};
use abi::vcpu::{control, field, ioio, word};
use protocol::root::VmmCounter;

const RAX: usize = word::GPR;
const UART_FIRST: u16 = 0x3f8;
const UART_LAST: u16 = 0x3ff;
/// Elements of a string instruction done in one exit; the rest by further exits, so that time goes on.
const STRING_BATCH: u32 = 64;

impl Vmm {
    #[inline]
    pub(crate) fn exit_io<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut H,
    ) -> Resume {
        self.count(VmmCounter::ExitIo, 1);
        let info = words.get(word::EXITINFO1);
        if info & ioio::STRING != 0 {
            return self.exit_string_io(frame, words, memory, host, info);
        }
        let next = words.get(word::EXITINFO2);
        let port = (info >> ioio::PORT_SHIFT) as u16;
        let size = (info >> 4 & 7) as u8;
        let rax = words.get(RAX);
        if info & ioio::IN != 0 {
            let value = self.read_port(port, size, host);
            let merged =
                if size == 4 { value & mask(4) } else { rax & !mask(size) | value & mask(size) };
            words.set(RAX, merged);
            frame.control |= 1 << control::GPR_SHIFT;
        } else {
            self.write_port(port, size, rax as u32, memory, host);
        }
        frame.rip = next;
        frame.control &= !control::SHADOW;
        match self.stop.take() {
            Some(stop) => Resume::Stop(stop),
            None => Resume::Enter,
        }
    }

    /// Reads `size` bytes from `port`; nobody there reads as ones.
    pub(crate) fn read_port<H: Host>(&mut self, port: u16, size: u8, host: &mut H) -> u64 {
        if let UART_FIRST..=UART_LAST = port
            && size == 1
        {
            let value = self.uart.read((port - UART_FIRST) as u8);
            self.update_uart();
            return u64::from(value);
        }
        match (port, size) {
            (CONFIG_ADDRESS, 4) => u64::from(self.pci.address()),
            (0xcfc..=0xcff, _) => self.read_pci_config(port),
            (0x600..=0x607, _) => {
                let register = u64::from(self.pm.read16(port & !1));
                let low = register >> (8 * (port & 1));
                if size == 4 { low | u64::from(self.pm.read16(port + 2)) << 16 } else { low }
            }
            (0x608..=0x60b, _) => {
                u64::from(PowerManagement::timer(host.now(), &self.time)) >> (8 * (port & 3))
            }
            (_, 1) => u64::from(self.read_byte_port(port, host)),
            _ => {
                // Byte devices see a wide access as one per port.
                let mut value = 0;
                for index in 0..u16::from(size) {
                    value |= self.read_port(port.wrapping_add(index), 1, host) << (8 * index);
                }
                value
            }
        }
    }

    fn read_byte_port<H: Host>(&mut self, port: u16, host: &mut H) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                let value = self.pic.read(port);
                self.irq_changed = true;
                value
            }
            0x40..=0x43 | 0x61 => self.pit.read(port, host.now(), &self.time),
            0x71 => self.rtc.read(host.now(), &self.time),
            // The keyboard controller is absent: output buffer full, input buffer empty, time-outs.
            0x64 => 0xfd,
            0x92 => 0x02,
            _ => 0xff,
        }
    }

    /// Writes the low `size` bytes of `value` to `port`.
    pub(crate) fn write_port<M: GuestMemory, H: Host>(
        &mut self,
        port: u16,
        size: u8,
        value: u32,
        memory: &mut M,
        host: &mut H,
    ) {
        if let UART_FIRST..=UART_LAST = port
            && size == 1
        {
            if let Some(byte) = self.uart.write((port - UART_FIRST) as u8, value as u8) {
                host.console(byte);
            }
            self.update_uart();
            return;
        }
        match (port, size) {
            (CONFIG_ADDRESS, 4) => self.pci.set_address(value),
            (0xcfc..=0xcff, _) => self.write_pci_config(port, size, value, memory, host),
            (0x600 | 0x602 | 0x604, 2 | 4) => {
                let low = self.pm.write16(port, value as u16);
                let high =
                    if size == 4 { self.pm.write16(port + 2, (value >> 16) as u16) } else { None };
                self.update_sci();
                match low.or(high) {
                    Some(PowerRequest::PowerOff) => self.stop = Some(Stop::PowerOff),
                    Some(PowerRequest::Reset) => self.stop = Some(Stop::Reset),
                    None => {}
                }
            }
            (_, 1) => self.write_byte_port(port, value as u8, host),
            _ => {
                for index in 0..u16::from(size) {
                    let byte = value >> (8 * index) & 0xff;
                    self.write_port(port.wrapping_add(index), 1, byte, memory, host);
                }
            }
        }
    }

    fn write_byte_port<H: Host>(&mut self, port: u16, value: u8, host: &mut H) {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                self.pic.write(port, value);
                self.irq_changed = true;
            }
            0x40..=0x43 | 0x61 => self.pit.write(port, value, host.now(), &self.time),
            0x70 => self.rtc.select(value),
            0x71 => self.rtc.write(value),
            // Pulse the reset line by the keyboard controller, by port A, by the chip set.
            0x64 if value == 0xfe => self.stop = Some(Stop::Reset),
            0x92 if value & 1 != 0 => self.stop = Some(Stop::Reset),
            pm::RESET_PORT if value & 4 != 0 => self.stop = Some(Stop::Reset),
            _ => {}
        }
    }

    fn read_pci_config(&mut self, port: u16) -> u64 {
        let Some(ConfigAccess { device, register, shift }) = self.pci.decode(port) else {
            return u64::from(u32::MAX);
        };
        let value = match device {
            0 => self.bridge.register(register),
            _ => match self.devices.get_mut(usize::from(device) - 1) {
                Some(device) => device.read_config(register),
                None => u32::MAX,
            },
        };
        u64::from(value >> shift)
    }

    fn write_pci_config<M: GuestMemory, H: Host>(
        &mut self,
        port: u16,
        size: u8,
        value: u32,
        memory: &mut M,
        host: &mut H,
    ) {
        let Some(ConfigAccess { device, register, shift }) = self.pci.decode(port) else { return };
        let lanes = (mask(size) as u32) << shift;
        let value = value << shift;
        let mut out = Msis::new();
        if device == 0 {
            self.bridge.write(register, value, lanes, &mut out);
            return;
        }
        let index = usize::from(device) - 1;
        if let Some(device) = self.devices.get_mut(index) {
            device.write_config(register, value, lanes, memory, host, &mut out);
        }
        self.after_device(index, &out);
    }

    /// INS and OUTS, with and without REP.
    #[cold]
    fn exit_string_io<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut H,
        info: u64,
    ) -> Resume {
        let port = (info >> ioio::PORT_SHIFT) as u16;
        let is_input = info & ioio::IN != 0;
        let (instruction, paging) = match self.fetch(frame, words, memory) {
            Ok(fetched) => fetched,
            Err(_) => return unsupported(Unsupported::Fetch { gpa: u64::from(port) }),
        };
        let expected = if is_input { Operation::InputString } else { Operation::OutputString };
        if instruction.operation != expected {
            return unsupported(Unsupported::Instruction { opcode: 0x6c, gpa: u64::from(port) });
        }
        let mut registers = crate::mmio::load_registers(words);
        let base = crate::mmio::segment_base(frame, words, host, &instruction, is_input);
        let is_user = frame.control & control::CPL_MASK == control::CPL_MASK;
        let (pointer, access) =
            if is_input { (7, Access::Write { is_user }) } else { (6, Access::Read { is_user }) };
        let mut is_done = false;
        if instruction.is_repeated && registers.general[1] & mask(instruction.address_size) == 0 {
            is_done = true;
        }
        let mut fault = None;
        for _ in 0..STRING_BATCH {
            if is_done {
                break;
            }
            let offset = registers.general[pointer] & mask(instruction.address_size);
            let linear = base.wrapping_add(offset);
            let gpa = match translate(memory, &paging, linear, access) {
                Ok(gpa) => gpa,
                Err(error) => {
                    fault = Some((error, linear));
                    break;
                }
            };
            let size = instruction.size;
            if is_input {
                let value = self.read_port(port, size, host).to_le_bytes();
                let bytes = value.get(..usize::from(size)).unwrap_or(&[]);
                if memory.write(gpa, bytes).is_err() {
                    self.write_mmio(gpa, size, u64::from_le_bytes(value), memory, host);
                }
            } else {
                let mut bytes = [0; 8];
                let part = bytes.get_mut(..usize::from(size)).unwrap_or(&mut []);
                let value = match memory.read(gpa, part) {
                    Ok(()) => u64::from_le_bytes(bytes),
                    Err(_) => self.read_mmio(gpa, size, host),
                };
                self.write_port(port, size, value as u32, memory, host);
            }
            advance(&mut registers, pointer as u8, &instruction);
            is_done = repeat_done(&mut registers, &instruction);
            if self.stop.is_some() {
                break;
            }
        }
        crate::mmio::store_registers(frame, words, &registers);
        if let Some(stop) = self.stop.take() {
            return Resume::Stop(stop);
        }
        match fault {
            Some((WalkError::PageFault(code), linear)) => {
                host.write_state(field::CR2, linear);
                return inject(frame, 14, Some(code));
            }
            Some((WalkError::TableOutOfRam, linear)) => {
                return unsupported(Unsupported::PageTable { gpa: linear });
            }
            None => {}
        }
        if is_done {
            self.advance_rip(frame, u64::from(instruction.length));
        }
        Resume::Enter
    }
}
