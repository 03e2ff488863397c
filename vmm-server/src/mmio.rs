//! Emulation of instructions that touch device memory, and CR8 writes: fetch, decode, execute, write back.

use crate::emulate::decode::{
    self, DecodeError, Instruction, LENGTH_MAX, Mode, Operation, Segment,
};
use crate::emulate::execute::{Bus, Registers, execute, load_vector, mask, store_vector};
use crate::emulate::walk::{Access, Paging, WalkError, translate};
use crate::guest_memory::GuestMemory;
use crate::vmm::{
    DecodeCache, Frame, Host, Resume, Unsupported, Vmm, Words, general_protection, inject,
    unsupported,
};
use abi::vcpu::{control, field, word};

/// D/B bit of a code segment's attributes in the VMCB's form.
const ATTRIBUTE_DEFAULT_SIZE: u64 = 1 << 10;

/// Why an instruction could not be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// No bytes.
    Memory,
    /// Not in the decoder's subset.
    Decode(DecodeError),
}

/// RAM and devices as one space.
struct MachineBus<'a, M, H> {
    vmm: &'a mut Vmm,
    memory: &'a mut M,
    host: &'a mut H,
}

impl<M: GuestMemory, H: Host> Bus for MachineBus<'_, M, H> {
    fn read(&mut self, gpa: u64, size: u8) -> u64 {
        if self.memory.layout().contains(gpa, u64::from(size)) {
            let mut bytes = [0; 8];
            let part = bytes.get_mut(..usize::from(size)).unwrap_or(&mut []);
            return match self.memory.read(gpa, part) {
                Ok(()) => u64::from_le_bytes(bytes),
                Err(_) => mask(size),
            };
        }
        self.vmm.read_mmio(gpa, size, self.host)
    }

    fn write(&mut self, gpa: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..usize::from(size)).unwrap_or(&[]);
        if self.memory.write(gpa, part).is_err() {
            self.vmm.write_mmio(gpa, size, value, self.memory, self.host);
        }
    }
}

pub(crate) fn load_registers(words: &impl Words) -> Registers {
    let mut registers = Registers { flags: words.get(word::RFLAGS), ..Registers::default() };
    for (index, register) in registers.general.iter_mut().enumerate() {
        *register = words.get(word::GPR + index);
    }
    registers
}

pub(crate) fn store_registers(frame: &mut Frame, words: &mut impl Words, registers: &Registers) {
    frame.control |= u64::from(registers.written) << control::GPR_SHIFT;
    let mut rest = registers.written;
    while rest != 0 {
        let index = rest.trailing_zeros() as usize;
        words.set(word::GPR + index, registers.general[index & 15]);
        rest &= rest - 1;
    }
    if registers.has_new_flags {
        words.set(word::RFLAGS, registers.flags);
        frame.control |= control::SET_RFLAGS;
    }
}

/// Base of the segment a string instruction uses: ES for destinations, DS or its override for sources.
pub(crate) fn segment_base(
    frame: &Frame,
    words: &impl Words,
    host: &mut impl Host,
    instruction: &Instruction,
    is_destination: bool,
) -> u64 {
    let segment =
        if is_destination { Segment::Es } else { instruction.segment.unwrap_or(Segment::Ds) };
    let is_long = frame.control & control::LONG != 0;
    match segment {
        Segment::Fs => host.read_state(field::FS + 1),
        Segment::Gs => host.read_state(field::GS + 1),
        _ if is_long => 0,
        Segment::Es => words.get(word::ES_BASE),
        Segment::Cs => words.get(word::CS_BASE),
        Segment::Ss => words.get(word::SS_BASE),
        Segment::Ds => words.get(word::DS_BASE),
    }
}

fn paging_of(words: &impl Words) -> Paging {
    Paging {
        cr0: words.get(word::CR0),
        cr3: words.get(word::CR3),
        cr4: words.get(word::CR4),
        efer: words.get(word::EFER),
    }
}

fn mode_of(frame: &Frame, words: &impl Words) -> Mode {
    if frame.control & control::LONG != 0 {
        Mode::Bits64
    } else if words.get(word::CS) >> 16 & ATTRIBUTE_DEFAULT_SIZE != 0 {
        Mode::Bits32
    } else {
        Mode::Bits16
    }
}

/// Reads up to 15 instruction bytes at `linear`; how many there are.
pub(crate) fn read_code<M: GuestMemory>(
    memory: &mut M,
    paging: &Paging,
    linear: u64,
    bytes: &mut [u8; 16],
) -> Result<usize, WalkError> {
    let gpa = translate(memory, paging, linear, Access::Fetch)?;
    let in_page = 0x1000 - (linear & 0xfff) as usize;
    if in_page >= 16 {
        memory.read(gpa, bytes).map_err(|_| WalkError::TableOutOfRam)?;
        return Ok(LENGTH_MAX);
    }
    let (first, rest) = bytes.split_at_mut(in_page);
    memory.read(gpa, first).map_err(|_| WalkError::TableOutOfRam)?;
    // The next page is only needed if the instruction reaches into it.
    match translate(memory, paging, linear.wrapping_add(in_page as u64), Access::Fetch) {
        Ok(gpa) if memory.read(gpa, rest).is_ok() => Ok(LENGTH_MAX),
        _ => Ok(in_page),
    }
}

impl Vmm {
    /// The instruction at the guest's RIP, and the paging it runs under. Needs the decode words.
    pub(crate) fn fetch<M: GuestMemory>(
        &mut self,
        frame: &Frame,
        words: &impl Words,
        memory: &mut M,
    ) -> Result<(Instruction, Paging), FetchError> {
        let paging = paging_of(words);
        let mode = mode_of(frame, words);
        let linear = if mode == Mode::Bits64 {
            frame.rip
        } else {
            words.get(word::CS_BASE).wrapping_add(frame.rip) & 0xffff_ffff
        };
        let mut bytes = [0; 16];
        let count =
            read_code(memory, &paging, linear, &mut bytes).map_err(|_| FetchError::Memory)?;
        // Same bytes, same meaning: no need to know where they came from.
        if self.decoded.bytes == bytes
            && self.decoded.mode == mode
            && let Some(instruction) = self.decoded.instruction
            && usize::from(instruction.length) <= count
        {
            return Ok((instruction, paging));
        }
        let decoded = decode::decode(bytes.get(..count).unwrap_or(&[]), mode);
        self.decoded = DecodeCache { bytes, mode, instruction: decoded.ok() };
        decoded.map(|instruction| (instruction, paging)).map_err(FetchError::Decode)
    }

    /// Executes the instruction at RIP, whose access to `gpa` hardware could not finish.
    pub(crate) fn emulate_access<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut H,
        gpa: u64,
        is_write: bool,
    ) -> Resume {
        let (instruction, paging) = match self.fetch(frame, words, memory) {
            Ok(fetched) => fetched,
            Err(FetchError::Decode(DecodeError::Unsupported(opcode))) => {
                return unsupported(Unsupported::Instruction { opcode, gpa });
            }
            Err(_) => return unsupported(Unsupported::Fetch { gpa }),
        };
        if let Operation::VectorLoad(number, lane) | Operation::VectorStore(number, lane) =
            instruction.operation
        {
            let field = field::XMM + 2 * u64::from(number);
            let value = [host.read_state(field), host.read_state(field + 1)];
            let mut bus = MachineBus { vmm: self, memory, host };
            if matches!(instruction.operation, Operation::VectorStore(..)) {
                store_vector(&mut bus, gpa, instruction.size, lane, value);
            } else {
                let new = load_vector(&mut bus, gpa, instruction.size, lane, value);
                host.write_state(field, new[0]);
                host.write_state(field + 1, new[1]);
            }
            return self.after_access(frame, &instruction);
        }
        let mut registers = load_registers(words);
        let mut other = 0;
        match instruction.operation {
            Operation::MoveString => {
                let is_user = frame.control & control::CPL_MASK == control::CPL_MASK;
                let (pointer, access) = if is_write {
                    (6, Access::Read { is_user })
                } else {
                    (7, Access::Write { is_user })
                };
                let base = segment_base(frame, words, host, &instruction, !is_write);
                let linear =
                    base.wrapping_add(registers.general[pointer] & mask(instruction.address_size));
                match translate(memory, &paging, linear, access) {
                    Ok(translated) => other = translated,
                    Err(WalkError::PageFault(code)) => {
                        host.write_state(field::CR2, linear);
                        return inject(frame, 14, Some(code));
                    }
                    Err(WalkError::TableOutOfRam) => {
                        return unsupported(Unsupported::PageTable { gpa: linear });
                    }
                }
            }
            Operation::InputString | Operation::OutputString => {
                return unsupported(Unsupported::Instruction { opcode: 0x6c, gpa });
            }
            _ => {}
        }
        let mut bus = MachineBus { vmm: self, memory, host };
        let is_finished = execute(&instruction, &mut registers, &mut bus, gpa, other, is_write);
        store_registers(frame, words, &registers);
        if is_finished {
            return self.after_access(frame, &instruction);
        }
        self.stop.take().map_or(Resume::Enter, Resume::Stop)
    }

    fn after_access(&mut self, frame: &mut Frame, instruction: &Instruction) -> Resume {
        self.advance_rip(frame, u64::from(instruction.length));
        self.stop.take().map_or(Resume::Enter, Resume::Stop)
    }

    /// Bytes of the last instruction that was looked at.
    pub fn instruction_bytes(&self) -> &[u8; 16] {
        &self.decoded.bytes
    }

    /// MOV to CR8: the register is in the instruction.
    pub(crate) fn exit_cr8<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &mut impl Words,
        memory: &mut M,
        host: &mut H,
    ) -> Resume {
        let mut bytes = [0; 16];
        if self.code_at(frame, words, memory, host, &mut bytes) < 3 {
            return unsupported(Unsupported::Exit);
        }
        // Prefixes, 0F 22 /r: REX.B extends the register.
        let Some(opcode) = bytes.windows(2).position(|pair| pair == [0x0f, 0x22]) else {
            return unsupported(Unsupported::Exit);
        };
        let rex = match opcode.checked_sub(1).and_then(|at| bytes.get(at)) {
            Some(byte) if byte & 0xf0 == 0x40 => *byte,
            _ => 0,
        };
        let Some(modrm) = bytes.get(opcode + 2) else { return unsupported(Unsupported::Exit) };
        let number = usize::from(modrm & 7 | (rex & 1) << 3);
        let value = words.get(word::GPR + number);
        if value > 0xf {
            return general_protection(frame);
        }
        self.lapic.set_cr8(value as u8);
        self.irq_changed = true;
        self.advance_rip(frame, opcode as u64 + 3);
        Resume::Enter
    }
}
