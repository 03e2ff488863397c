//! Decoder for instructions with one memory operand (AMD64 APM volume 3).
//!
//! Small on purpose: no tables to build, no heap, about a hundred instructions for a MOV. Its answers are compared
//! with a complete decoder in the tests.

/// Longest instruction in bytes.
pub const LENGTH_MAX: usize = 15;

/// Execution mode that matters to decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit code.
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

/// The operand that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// General register in encoding order.
    Register(Register),
    /// Immediate, sign-extended.
    Immediate(u64),
}

/// A general register as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Number in encoding order.
    pub number: u8,
    /// Bits 15:8 of the register (AH, CH, DH, BH).
    pub is_high_byte: bool,
}

/// Arithmetic by the ModRM or opcode digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// ADD.
    Add,
    /// OR.
    Or,
    /// ADC.
    Adc,
    /// SBB.
    Sbb,
    /// AND.
    And,
    /// SUB.
    Sub,
    /// XOR.
    Xor,
    /// CMP.
    Cmp,
}

/// Bit operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bit {
    /// BT.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

/// Part of an SSE register that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// From the lowest byte on; a load clears the rest.
    Whole,
    /// The low half; a load keeps the high one.
    Low,
    /// The high half; a load keeps the low one.
    High,
}

/// What an instruction does with its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Memory to register.
    Load(Register),
    /// Register or immediate to memory.
    Store(Source),
    /// Memory to a register of the given size, zero-extended.
    LoadZero(Register, u8),
    /// Memory to a register of the given size, sign-extended.
    LoadSign(Register, u8),
    /// Arithmetic with memory as destination.
    AluMemory(Alu, Source),
    /// Arithmetic with a register as destination.
    AluRegister(Alu, Register),
    /// TEST.
    Test(Source),
    /// XCHG.
    Exchange(Register),
    /// INC.
    Increment,
    /// DEC.
    Decrement,
    /// NOT.
    Not,
    /// NEG.
    Negate,
    /// BT and its kin.
    BitOperation(Bit, Source),
    /// XADD.
    ExchangeAdd(Register),
    /// CMPXCHG.
    CompareExchange(Register),
    /// MOVBE from memory.
    LoadSwapped(Register),
    /// MOVBE to memory.
    StoreSwapped(Register),
    /// CMOVcc with the condition's number.
    ConditionalLoad(Register, u8),
    /// SETcc with the condition's number.
    StoreCondition(u8),
    /// Memory to an SSE register.
    VectorLoad(u8, Lane),
    /// An SSE register to memory.
    VectorStore(u8, Lane),
    /// STOS.
    StoreString,
    /// LODS.
    LoadString,
    /// MOVS.
    MoveString,
    /// INS.
    InputString,
    /// OUTS.
    OutputString,
}

/// A segment register that replaces the default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Length in bytes.
    pub length: u8,
    /// Size of the memory operand in bytes.
    pub size: u8,
    /// Address size in bytes.
    pub address_size: u8,
    /// What it does.
    pub operation: Operation,
    /// REP, REPE or REPNE in front of a string instruction.
    pub is_repeated: bool,
    /// Segment override.
    pub segment: Option<Segment>,
}

/// Why bytes are not emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction goes on behind the bytes given, or is longer than 15 bytes.
    Truncated,
    /// Not in the subset; the opcode, with 0x0f00 added for two-byte ones and 0x3800 for those behind 0F 38.
    Unsupported(u16),
}

struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = self.bytes.get(self.at).copied().ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, count: usize) -> Result<(), DecodeError> {
        self.at += count;
        if self.at > self.bytes.len() { Err(DecodeError::Truncated) } else { Ok(()) }
    }

    /// A little-endian immediate of `size` bytes, sign-extended.
    fn immediate(&mut self, size: u8) -> Result<u64, DecodeError> {
        let mut value = 0;
        for index in 0..u32::from(size) {
            value |= u64::from(self.byte()?) << (8 * index);
        }
        let unused = 64 - 8 * u32::from(size);
        Ok(((value << unused) as i64 >> unused) as u64)
    }
}

#[derive(Clone, Copy)]
struct Prefixes {
    operand: bool,
    address: bool,
    /// F2 or F3, whichever came last.
    repeat: Option<u8>,
    segment: Option<Segment>,
    rex: Option<u8>,
}

/// Decodes the instruction at the start of `bytes`.
///
/// # Errors
///
/// [`DecodeError`] if it is cut off or not in the subset.
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Instruction, DecodeError> {
    let bytes = bytes.get(..LENGTH_MAX).unwrap_or(bytes);
    let mut cursor = Cursor { bytes, at: 0 };
    let (prefixes, opcode) = read_prefixes(&mut cursor, mode)?;
    let is_wide = prefixes.rex.is_some_and(|rex| rex & 8 != 0);
    let size = match (mode, is_wide, prefixes.operand) {
        (_, true, _) => 8,
        (Mode::Bits16, _, false) | (Mode::Bits32 | Mode::Bits64, _, true) => 2,
        _ => 4,
    };
    let address_size = match (mode, prefixes.address) {
        (Mode::Bits64, false) => 8,
        (Mode::Bits16, false) | (Mode::Bits32, true) => 2,
        _ => 4,
    };
    let mut decoder = Decoder { cursor, prefixes, mode, size, address_size };
    let (operation, size) =
        if opcode == 0x0f { decoder.two_byte()? } else { decoder.one_byte(opcode)? };
    Ok(Instruction {
        length: decoder.cursor.at as u8,
        size,
        address_size,
        operation,
        is_repeated: prefixes.repeat.is_some(),
        segment: prefixes.segment,
    })
}

fn read_prefixes(cursor: &mut Cursor<'_>, mode: Mode) -> Result<(Prefixes, u8), DecodeError> {
    let mut prefixes =
        Prefixes { operand: false, address: false, repeat: None, segment: None, rex: None };
    loop {
        let byte = cursor.byte()?;
        match byte {
            0x66 => prefixes.operand = true,
            0x67 => prefixes.address = true,
            0xf0 => {}
            0xf2 | 0xf3 => prefixes.repeat = Some(byte),
            0x26 => prefixes.segment = Some(Segment::Es),
            0x2e => prefixes.segment = Some(Segment::Cs),
            0x36 => prefixes.segment = Some(Segment::Ss),
            0x3e => prefixes.segment = Some(Segment::Ds),
            0x64 => prefixes.segment = Some(Segment::Fs),
            0x65 => prefixes.segment = Some(Segment::Gs),
            0x40..=0x4f if mode == Mode::Bits64 => {
                // Only the last one before the opcode counts.
                prefixes.rex = Some(byte);
                continue;
            }
            _ => return Ok((prefixes, byte)),
        }
        prefixes.rex = None;
    }
}

struct Decoder<'b> {
    cursor: Cursor<'b>,
    prefixes: Prefixes,
    mode: Mode,
    size: u8,
    address_size: u8,
}

impl Decoder<'_> {
    /// Operand size of an opcode whose lowest bit distinguishes byte from full size.
    fn width(&self, opcode: u8) -> u8 {
        if opcode & 1 == 0 { 1 } else { self.size }
    }

    fn register(&self, number: u8, size: u8) -> Register {
        if size == 1 && self.prefixes.rex.is_none() && (4..8).contains(&number) {
            Register { number: number - 4, is_high_byte: true }
        } else {
            Register { number, is_high_byte: false }
        }
    }

    /// Reads ModRM with its address bytes; returns the reg field (extended). Register forms are no memory access.
    fn modrm(&mut self, opcode: u16) -> Result<u8, DecodeError> {
        let byte = self.cursor.byte()?;
        let (mode, rm) = (byte >> 6, byte & 7);
        if mode == 3 {
            return Err(DecodeError::Unsupported(opcode));
        }
        let displacement = if self.address_size == 2 {
            match (mode, rm) {
                (0, 6) | (2, _) => 2,
                (1, _) => 1,
                _ => 0,
            }
        } else {
            let base = if rm == 4 { self.cursor.byte()? & 7 } else { rm };
            match (mode, base) {
                (0, 5) | (2, _) => 4,
                (1, _) => 1,
                _ => 0,
            }
        };
        self.cursor.skip(displacement)?;
        let extension = self.prefixes.rex.unwrap_or(0) << 1 & 8;
        Ok(byte >> 3 & 7 | extension)
    }

    fn one_byte(&mut self, opcode: u8) -> Result<(Operation, u8), DecodeError> {
        let wide = u16::from(opcode);
        let size = self.width(opcode);
        let operation = match opcode {
            0x00..=0x3f if opcode & 7 < 4 => {
                let number = self.modrm(wide)?;
                let register = self.register(number, size);
                let alu = alu(opcode >> 3);
                if opcode & 2 == 0 {
                    Operation::AluMemory(alu, Source::Register(register))
                } else {
                    Operation::AluRegister(alu, register)
                }
            }
            0x63 if self.mode == Mode::Bits64 => {
                let number = self.modrm(wide)?;
                let to = self.size;
                let from = if to == 2 { 2 } else { 4 };
                return Ok((Operation::LoadSign(self.register(number, to), to), from));
            }
            0x80 | 0x81 | 0x83 => {
                let digit = self.modrm(wide)? & 7;
                let immediate_size = if opcode == 0x81 { size.min(4) } else { 1 };
                let immediate = self.cursor.immediate(immediate_size)?;
                Operation::AluMemory(alu(digit), Source::Immediate(immediate))
            }
            0x84 | 0x85 => {
                let number = self.modrm(wide)?;
                Operation::Test(Source::Register(self.register(number, size)))
            }
            0x86 | 0x87 => {
                let number = self.modrm(wide)?;
                Operation::Exchange(self.register(number, size))
            }
            0x88 | 0x89 => {
                let number = self.modrm(wide)?;
                Operation::Store(Source::Register(self.register(number, size)))
            }
            0x8a | 0x8b => {
                let number = self.modrm(wide)?;
                Operation::Load(self.register(number, size))
            }
            0xa0..=0xa3 => {
                self.cursor.skip(usize::from(self.address_size))?;
                let accumulator = Register { number: 0, is_high_byte: false };
                if opcode & 2 == 0 {
                    Operation::Load(accumulator)
                } else {
                    Operation::Store(Source::Register(accumulator))
                }
            }
            0xa4 | 0xa5 => Operation::MoveString,
            0xaa | 0xab => Operation::StoreString,
            0xac | 0xad => Operation::LoadString,
            // There is no 64-bit string I/O.
            0x6c | 0x6d => return Ok((Operation::InputString, size.min(4))),
            0x6e | 0x6f => return Ok((Operation::OutputString, size.min(4))),
            0xc6 | 0xc7 => {
                if self.modrm(wide)? & 7 != 0 {
                    return Err(DecodeError::Unsupported(wide));
                }
                Operation::Store(Source::Immediate(self.cursor.immediate(size.min(4))?))
            }
            0xf6 | 0xf7 => match self.modrm(wide)? & 7 {
                0 | 1 => Operation::Test(Source::Immediate(self.cursor.immediate(size.min(4))?)),
                2 => Operation::Not,
                3 => Operation::Negate,
                _ => return Err(DecodeError::Unsupported(wide)),
            },
            0xfe | 0xff => match self.modrm(wide)? & 7 {
                0 => Operation::Increment,
                1 => Operation::Decrement,
                _ => return Err(DecodeError::Unsupported(wide)),
            },
            _ => return Err(DecodeError::Unsupported(wide)),
        };
        Ok((operation, size))
    }

    fn two_byte(&mut self) -> Result<(Operation, u8), DecodeError> {
        let opcode = self.cursor.byte()?;
        let wide = 0x0f00 | u16::from(opcode);
        match opcode {
            0xb6 | 0xb7 | 0xbe | 0xbf => {
                let number = self.modrm(wide)?;
                let from = if opcode & 1 == 0 { 1 } else { 2 };
                // The destination is never a byte register, so the high-byte rule does not apply.
                let register = Register { number, is_high_byte: false };
                let operation = if opcode < 0xb8 {
                    Operation::LoadZero(register, self.size)
                } else {
                    Operation::LoadSign(register, self.size)
                };
                Ok((operation, from))
            }
            0xa3 | 0xab | 0xb3 | 0xbb => {
                let number = self.modrm(wide)?;
                let source = Source::Register(Register { number, is_high_byte: false });
                Ok((Operation::BitOperation(bit(opcode >> 3), source), self.size))
            }
            0xba => {
                let digit = self.modrm(wide)? & 7;
                let immediate = self.cursor.immediate(1)?;
                if digit < 4 {
                    return Err(DecodeError::Unsupported(wide));
                }
                let source = Source::Immediate(immediate);
                Ok((Operation::BitOperation(bit(digit), source), self.size))
            }
            0xb0 | 0xb1 | 0xc0 | 0xc1 => {
                let size = self.width(opcode);
                let number = self.modrm(wide)?;
                let register = self.register(number, size);
                let operation = if opcode < 0xc0 {
                    Operation::CompareExchange(register)
                } else {
                    Operation::ExchangeAdd(register)
                };
                Ok((operation, size))
            }
            0x40..=0x4f => {
                let number = self.modrm(wide)?;
                let register = Register { number, is_high_byte: false };
                Ok((Operation::ConditionalLoad(register, opcode & 0xf), self.size))
            }
            0x90..=0x9f => {
                self.modrm(wide)?;
                Ok((Operation::StoreCondition(opcode & 0xf), 1))
            }
            0x38 => self.three_byte(),
            // MOVNTI; with a 66 or repeat prefix it is something else.
            0xc3 if self.mandatory().is_none() => {
                let number = self.modrm(wide)?;
                let register = Register { number, is_high_byte: false };
                let size = if self.size == 8 { 8 } else { 4 };
                Ok((Operation::Store(Source::Register(register)), size))
            }
            _ => self.vector(opcode, wide),
        }
    }

    /// The prefix that is part of an SSE opcode: F2 and F3 win over 66.
    fn mandatory(&self) -> Option<u8> {
        self.prefixes.repeat.or(self.prefixes.operand.then_some(0x66))
    }

    /// Opcodes behind 0F 38: MOVBE and MOVNTDQA.
    fn three_byte(&mut self) -> Result<(Operation, u8), DecodeError> {
        let opcode = self.cursor.byte()?;
        let wide = 0x3800 | u16::from(opcode);
        match (opcode, self.mandatory()) {
            (0xf0 | 0xf1, None | Some(0x66)) => {
                let number = self.modrm(wide)?;
                let register = Register { number, is_high_byte: false };
                let operation = if opcode == 0xf0 {
                    Operation::LoadSwapped(register)
                } else {
                    Operation::StoreSwapped(register)
                };
                Ok((operation, self.size))
            }
            (0x2a, Some(0x66)) => Ok((Operation::VectorLoad(self.modrm(wide)?, Lane::Whole), 16)),
            _ => Err(DecodeError::Unsupported(wide)),
        }
    }

    /// Moves between memory and SSE registers.
    fn vector(&mut self, opcode: u8, wide: u16) -> Result<(Operation, u8), DecodeError> {
        let word = if self.prefixes.rex.is_some_and(|rex| rex & 8 != 0) { 8 } else { 4 };
        let (is_load, lane, size) = match (opcode, self.mandatory()) {
            (0x10 | 0x11, Some(0xf3)) => (opcode == 0x10, Lane::Whole, 4),
            (0x10 | 0x11, Some(0xf2)) => (opcode == 0x10, Lane::Whole, 8),
            (0x10 | 0x11, _) => (opcode == 0x10, Lane::Whole, 16),
            (0x12 | 0x13, None | Some(0x66)) => (opcode == 0x12, Lane::Low, 8),
            (0x16 | 0x17, None | Some(0x66)) => (opcode == 0x16, Lane::High, 8),
            (0x28 | 0x29, None | Some(0x66)) => (opcode == 0x28, Lane::Whole, 16),
            (0x2b, None | Some(0x66)) | (0xe7, Some(0x66)) => (false, Lane::Whole, 16),
            (0x6e | 0x7e, Some(0x66)) => (opcode == 0x6e, Lane::Whole, word),
            (0x6f | 0x7f, Some(0x66 | 0xf3)) => (opcode == 0x6f, Lane::Whole, 16),
            (0x7e, Some(0xf3)) => (true, Lane::Whole, 8),
            (0xd6, Some(0x66)) => (false, Lane::Whole, 8),
            _ => return Err(DecodeError::Unsupported(wide)),
        };
        let number = self.modrm(wide)?;
        let operation = if is_load {
            Operation::VectorLoad(number, lane)
        } else {
            Operation::VectorStore(number, lane)
        };
        Ok((operation, size))
    }
}

fn alu(digit: u8) -> Alu {
    match digit & 7 {
        0 => Alu::Add,
        1 => Alu::Or,
        2 => Alu::Adc,
        3 => Alu::Sbb,
        4 => Alu::And,
        5 => Alu::Sub,
        6 => Alu::Xor,
        _ => Alu::Cmp,
    }
}

fn bit(digit: u8) -> Bit {
    match digit & 3 {
        0 => Bit::Test,
        1 => Bit::Set,
        2 => Bit::Reset,
        _ => Bit::Complement,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder as Oracle, DecoderOptions, Mnemonic, OpKind};

    const CONDITIONAL: [[Mnemonic; 1]; 16] = [
        [Mnemonic::Cmovo],
        [Mnemonic::Cmovno],
        [Mnemonic::Cmovb],
        [Mnemonic::Cmovae],
        [Mnemonic::Cmove],
        [Mnemonic::Cmovne],
        [Mnemonic::Cmovbe],
        [Mnemonic::Cmova],
        [Mnemonic::Cmovs],
        [Mnemonic::Cmovns],
        [Mnemonic::Cmovp],
        [Mnemonic::Cmovnp],
        [Mnemonic::Cmovl],
        [Mnemonic::Cmovge],
        [Mnemonic::Cmovle],
        [Mnemonic::Cmovg],
    ];
    const CONDITION: [[Mnemonic; 1]; 16] = [
        [Mnemonic::Seto],
        [Mnemonic::Setno],
        [Mnemonic::Setb],
        [Mnemonic::Setae],
        [Mnemonic::Sete],
        [Mnemonic::Setne],
        [Mnemonic::Setbe],
        [Mnemonic::Seta],
        [Mnemonic::Sets],
        [Mnemonic::Setns],
        [Mnemonic::Setp],
        [Mnemonic::Setnp],
        [Mnemonic::Setl],
        [Mnemonic::Setge],
        [Mnemonic::Setle],
        [Mnemonic::Setg],
    ];

    fn mnemonic_of(operation: Operation) -> &'static [Mnemonic] {
        use Mnemonic as M;
        match operation {
            Operation::Load(_) => &[M::Mov],
            Operation::Store(_) => &[M::Mov, M::Movnti],
            Operation::LoadZero(..) => &[M::Movzx],
            Operation::LoadSign(..) => &[M::Movsx, M::Movsxd],
            Operation::AluMemory(alu, _) | Operation::AluRegister(alu, _) => match alu {
                Alu::Add => &[M::Add],
                Alu::Or => &[M::Or],
                Alu::Adc => &[M::Adc],
                Alu::Sbb => &[M::Sbb],
                Alu::And => &[M::And],
                Alu::Sub => &[M::Sub],
                Alu::Xor => &[M::Xor],
                Alu::Cmp => &[M::Cmp],
            },
            Operation::Test(_) => &[M::Test],
            Operation::Exchange(_) => &[M::Xchg],
            Operation::Increment => &[M::Inc],
            Operation::Decrement => &[M::Dec],
            Operation::Not => &[M::Not],
            Operation::Negate => &[M::Neg],
            Operation::BitOperation(bit, _) => match bit {
                Bit::Test => &[M::Bt],
                Bit::Set => &[M::Bts],
                Bit::Reset => &[M::Btr],
                Bit::Complement => &[M::Btc],
            },
            Operation::ExchangeAdd(_) => &[M::Xadd],
            Operation::CompareExchange(_) => &[M::Cmpxchg],
            Operation::LoadSwapped(_) | Operation::StoreSwapped(_) => &[M::Movbe],
            Operation::ConditionalLoad(_, condition) => &CONDITIONAL[usize::from(condition)],
            Operation::StoreCondition(condition) => &CONDITION[usize::from(condition)],
            Operation::VectorLoad(..) | Operation::VectorStore(..) => &[
                M::Movups,
                M::Movupd,
                M::Movss,
                M::Movsd,
                M::Movlps,
                M::Movlpd,
                M::Movhps,
                M::Movhpd,
                M::Movaps,
                M::Movapd,
                M::Movntps,
                M::Movntpd,
                M::Movntdq,
                M::Movntdqa,
                M::Movd,
                M::Movq,
                M::Movdqa,
                M::Movdqu,
            ],
            Operation::StoreString => &[M::Stosb, M::Stosw, M::Stosd, M::Stosq],
            Operation::LoadString => &[M::Lodsb, M::Lodsw, M::Lodsd, M::Lodsq],
            Operation::MoveString => &[M::Movsb, M::Movsw, M::Movsd, M::Movsq],
            Operation::InputString => &[M::Insb, M::Insw, M::Insd],
            Operation::OutputString => &[M::Outsb, M::Outsw, M::Outsd],
        }
    }

    fn registers_of(operation: Operation) -> Option<Register> {
        match operation {
            Operation::Load(r)
            | Operation::Store(Source::Register(r))
            | Operation::LoadZero(r, _)
            | Operation::LoadSign(r, _)
            | Operation::AluMemory(_, Source::Register(r))
            | Operation::AluRegister(_, r)
            | Operation::Test(Source::Register(r))
            | Operation::Exchange(r)
            | Operation::BitOperation(_, Source::Register(r))
            | Operation::ExchangeAdd(r)
            | Operation::LoadSwapped(r)
            | Operation::StoreSwapped(r)
            | Operation::ConditionalLoad(r, _)
            | Operation::CompareExchange(r) => Some(r),
            Operation::VectorLoad(number, _) | Operation::VectorStore(number, _) => {
                Some(Register { number, is_high_byte: false })
            }
            _ => None,
        }
    }

    fn immediate_of(operation: Operation) -> Option<u64> {
        match operation {
            Operation::Store(Source::Immediate(v))
            | Operation::AluMemory(_, Source::Immediate(v))
            | Operation::Test(Source::Immediate(v))
            | Operation::BitOperation(_, Source::Immediate(v)) => Some(v),
            _ => None,
        }
    }

    fn compare(bytes: &[u8], mode: Mode) -> bool {
        let Ok(ours) = decode(bytes, mode) else { return false };
        let bits = match mode {
            Mode::Bits16 => 16,
            Mode::Bits32 => 32,
            Mode::Bits64 => 64,
        };
        let theirs = Oracle::new(bits, bytes, DecoderOptions::NONE).decode();
        if theirs.code() == Code::INVALID {
            // LOCK where it is forbidden: hardware raises #UD and we never see the instruction.
            return false;
        }
        assert_eq!(usize::from(ours.length), theirs.len(), "{bytes:02x?} {mode:?}");
        let wanted = mnemonic_of(ours.operation);
        assert!(
            wanted.contains(&theirs.mnemonic()),
            "{bytes:02x?} {mode:?} {ours:?} {:?}",
            theirs.mnemonic()
        );
        if theirs.mnemonic() != Mnemonic::Bt || registers_of(ours.operation).is_none() {
            let size = theirs.memory_size().size();
            assert_eq!(usize::from(ours.size), size, "{bytes:02x?} {mode:?} {ours:?}");
        }
        if let Some(register) = registers_of(ours.operation) {
            let named = (0..theirs.op_count())
                .filter(|&op| theirs.op_kind(op) == OpKind::Register)
                .map(|op| theirs.op_register(op))
                .next()
                .expect("a register operand");
            let expected = u8::try_from(named.full_register().number()).unwrap();
            let is_high = matches!(
                named,
                iced_x86::Register::AH
                    | iced_x86::Register::BH
                    | iced_x86::Register::CH
                    | iced_x86::Register::DH
            );
            assert_eq!(
                (register.number, register.is_high_byte),
                (expected, is_high),
                "{bytes:02x?}"
            );
        }
        if let Some(value) = immediate_of(ours.operation)
            && !matches!(ours.operation, Operation::BitOperation(..))
        {
            let last = theirs.op_count() - 1;
            let mask = if ours.size == 8 { u64::MAX } else { (1 << (8 * ours.size)) - 1 };
            assert_eq!(value & mask, theirs.immediate(last) & mask, "{bytes:02x?} {mode:?}");
        }
        true
    }

    #[test]
    fn agrees_with_a_complete_decoder() {
        let mut seed = 99u64;
        let mut compared = 0;
        for _ in 0..1_500_000u32 {
            let mut bytes = [0u8; 15];
            for byte in &mut bytes {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = (seed >> 24) as u8;
            }
            let prefixes = [0x66, 0x67, 0xf3, 0xf0, 0x48, 0x44, 0x2e, 0x0f];
            // Half of the samples get prefixes worth having.
            if bytes[14] & 1 == 0 {
                bytes[0] = prefixes[usize::from(bytes[13] & 7)];
            }
            if bytes[14] & 2 == 0 {
                bytes[1] = prefixes[usize::from(bytes[12] & 7)];
            }
            for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
                compared += u32::from(compare(&bytes, mode));
            }
        }
        assert!(compared > 500_000, "{compared}");
    }

    /// The random samples hardly ever meet a mandatory prefix and its opcode.
    #[test]
    fn agrees_on_every_opcode_behind_0f_with_every_prefix() {
        let mut compared = 0;
        for prefix in [&[][..], &[0x66], &[0xf2], &[0xf3], &[0x66, 0xf3], &[0xf3, 0xf2]] {
            for rex in [None, Some(0x44), Some(0x48), Some(0x4f)] {
                for opcode in 0..=0xffffu16 {
                    let [first, second] = opcode.to_be_bytes();
                    let mut bytes = std::vec::Vec::from(prefix);
                    bytes.extend(rex);
                    bytes.push(0x0f);
                    match first {
                        0 => bytes.push(second),
                        0x38 => bytes.extend([first, second]),
                        _ => continue,
                    }
                    bytes.extend([0x4c, 0x8b, 0x12, 0x34, 0, 0, 0]);
                    bytes.truncate(15);
                    compared += u32::from(compare(&bytes, Mode::Bits64));
                    if rex.is_none() {
                        compared += u32::from(compare(&bytes, Mode::Bits32));
                    }
                }
            }
        }
        assert!(compared > 1000, "{compared}");
    }

    #[test]
    fn cut_off_instructions_are_not_guessed() {
        let mov = [0x48, 0x8b, 0x84, 0x8a, 1, 2, 3, 4];
        assert_eq!(decode(&mov, Mode::Bits64).map(|i| i.length), Ok(8));
        for length in 0..mov.len() {
            assert_eq!(decode(&mov[..length], Mode::Bits64), Err(DecodeError::Truncated));
        }
        assert_eq!(decode(&[0x66; 20], Mode::Bits64), Err(DecodeError::Truncated));
        assert_eq!(
            decode(&[0x0f, 0x58, 0x00], Mode::Bits64),
            Err(DecodeError::Unsupported(0x0f58))
        );
    }
}
