//! Executes a decoded instruction on registers and a bus.

use super::decode::{Alu, Bit, Instruction, Lane, Operation, Register, Source};

/// RFLAGS bits that arithmetic changes.
pub mod flags {
    /// Carry.
    pub const CF: u64 = 1;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// All status flags.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Guest-physical space: RAM and devices.
pub trait Bus {
    /// Reads `size` (1, 2, 4 or 8) bytes.
    fn read(&mut self, gpa: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`.
    fn write(&mut self, gpa: u64, size: u8, value: u64);
}

/// The registers an instruction may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// General registers in encoding order.
    pub general: [u64; 16],
    /// RFLAGS.
    pub flags: u64,
    /// One bit per general register that was written.
    pub written: u16,
    /// RFLAGS was written.
    pub has_new_flags: bool,
}

impl Registers {
    /// Reads an operand register of `size` bytes.
    pub fn get(&self, register: Register, size: u8) -> u64 {
        let value = self.general[usize::from(register.number & 15)];
        let value = if register.is_high_byte { value >> 8 } else { value };
        value & mask(size)
    }

    /// Writes an operand register: 32-bit results clear the upper half, smaller ones keep the rest.
    pub fn set(&mut self, register: Register, size: u8, value: u64) {
        let place = &mut self.general[usize::from(register.number & 15)];
        *place = match (register.is_high_byte, size) {
            (true, _) => *place & !0xff00 | (value & 0xff) << 8,
            (false, 4 | 8) => value & mask(size),
            (false, _) => *place & !mask(size) | value & mask(size),
        };
        self.written |= 1 << (register.number & 15);
    }

    fn set_status(&mut self, status: u64) {
        self.flags = self.flags & !flags::STATUS | status;
        self.has_new_flags = true;
    }
}

/// Mask of `size` bytes.
pub const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Executes `instruction` whose memory operand is at `gpa`; `other` is the second address of MOVS (its source
/// or destination, whichever is not `gpa`), and `is_write` tells which side `gpa` is.
///
/// String instructions do one element and adjust their registers; the caller repeats. Returns whether the
/// instruction is finished (RIP moves on). INS, OUTS and moves of SSE registers are not handled here.
pub fn execute(
    instruction: &Instruction,
    registers: &mut Registers,
    bus: &mut impl Bus,
    gpa: u64,
    other: u64,
    is_write: bool,
) -> bool {
    let size = instruction.size;
    match instruction.operation {
        Operation::Load(register) => {
            let value = bus.read(gpa, size);
            registers.set(register, size, value);
        }
        Operation::Store(source) => {
            let value = operand(registers, source, size);
            bus.write(gpa, size, value);
        }
        Operation::LoadZero(register, to) => {
            let value = bus.read(gpa, size) & mask(size);
            registers.set(register, to, value);
        }
        Operation::LoadSign(register, to) => {
            let value = sign_extend(bus.read(gpa, size), size);
            registers.set(register, to, value);
        }
        Operation::AluMemory(alu, source) => {
            let left = bus.read(gpa, size) & mask(size);
            let right = operand(registers, source, size);
            let (result, status) = arithmetic(alu, left, right, registers.flags, size);
            if alu != Alu::Cmp {
                bus.write(gpa, size, result);
            }
            registers.set_status(status);
        }
        Operation::AluRegister(alu, register) => {
            let left = registers.get(register, size);
            let right = bus.read(gpa, size) & mask(size);
            let (result, status) = arithmetic(alu, left, right, registers.flags, size);
            if alu != Alu::Cmp {
                registers.set(register, size, result);
            }
            registers.set_status(status);
        }
        Operation::Test(source) => {
            let left = bus.read(gpa, size) & mask(size);
            let right = operand(registers, source, size);
            let (_, status) = arithmetic(Alu::And, left, right, registers.flags, size);
            registers.set_status(status);
        }
        Operation::Exchange(register) => {
            let old = bus.read(gpa, size);
            bus.write(gpa, size, registers.get(register, size));
            registers.set(register, size, old);
        }
        Operation::Increment | Operation::Decrement => {
            let alu =
                if instruction.operation == Operation::Increment { Alu::Add } else { Alu::Sub };
            let left = bus.read(gpa, size) & mask(size);
            let (result, status) = arithmetic(alu, left, 1, registers.flags, size);
            bus.write(gpa, size, result);
            // INC and DEC leave carry alone.
            registers.set_status(status & !flags::CF | registers.flags & flags::CF);
        }
        Operation::Not => {
            let value = bus.read(gpa, size);
            bus.write(gpa, size, !value & mask(size));
        }
        Operation::Negate => {
            let value = bus.read(gpa, size) & mask(size);
            let (result, status) = arithmetic(Alu::Sub, 0, value, registers.flags, size);
            bus.write(gpa, size, result);
            registers.set_status(status);
        }
        Operation::BitOperation(bit, source) => {
            bit_operation(bit, source, registers, bus, gpa, size);
        }
        Operation::ExchangeAdd(register) => {
            let left = bus.read(gpa, size) & mask(size);
            let right = registers.get(register, size);
            let (result, status) = arithmetic(Alu::Add, left, right, registers.flags, size);
            bus.write(gpa, size, result);
            registers.set(register, size, left);
            registers.set_status(status);
        }
        Operation::CompareExchange(register) => {
            let accumulator = Register { number: 0, is_high_byte: false };
            let left = registers.get(accumulator, size);
            let right = bus.read(gpa, size) & mask(size);
            let (_, status) = arithmetic(Alu::Cmp, left, right, registers.flags, size);
            registers.set_status(status);
            if left == right {
                bus.write(gpa, size, registers.get(register, size));
            } else {
                bus.write(gpa, size, right);
                registers.set(accumulator, size, right);
            }
        }
        Operation::LoadSwapped(register) => {
            let value = swap(bus.read(gpa, size), size);
            registers.set(register, size, value);
        }
        Operation::StoreSwapped(register) => {
            bus.write(gpa, size, swap(registers.get(register, size), size));
        }
        Operation::ConditionalLoad(register, condition) => {
            // Memory is read whatever the condition says, and a 32-bit result clears the upper half in any case.
            let value = bus.read(gpa, size);
            let is_met = is_met(condition, registers.flags);
            let value = if is_met { value } else { registers.get(register, size) };
            registers.set(register, size, value);
        }
        Operation::StoreCondition(condition) => {
            bus.write(gpa, 1, u64::from(is_met(condition, registers.flags)));
        }
        Operation::StoreString => {
            bus.write(gpa, size, registers.general[0] & mask(size));
            advance(registers, 7, instruction);
            return repeat_done(registers, instruction);
        }
        Operation::LoadString => {
            let value = bus.read(gpa, size);
            registers.set(Register { number: 0, is_high_byte: false }, size, value);
            advance(registers, 6, instruction);
            return repeat_done(registers, instruction);
        }
        Operation::MoveString => {
            let (from, to) = if is_write { (other, gpa) } else { (gpa, other) };
            let value = bus.read(from, size);
            bus.write(to, size, value);
            advance(registers, 6, instruction);
            advance(registers, 7, instruction);
            return repeat_done(registers, instruction);
        }
        Operation::InputString
        | Operation::OutputString
        | Operation::VectorLoad(..)
        | Operation::VectorStore(..) => return false,
    }
    true
}

/// Moves an SSE register of halves `old` from memory; what it holds then.
pub fn load_vector(bus: &mut impl Bus, gpa: u64, size: u8, lane: Lane, old: [u64; 2]) -> [u64; 2] {
    let low = bus.read(gpa, size.min(8)) & mask(size);
    match lane {
        Lane::Whole if size == 16 => [low, bus.read(gpa.wrapping_add(8), 8)],
        Lane::Whole => [low, 0],
        Lane::Low => [low, old[1]],
        Lane::High => [old[0], low],
    }
}

/// Moves an SSE register of halves `value` to memory.
pub fn store_vector(bus: &mut impl Bus, gpa: u64, size: u8, lane: Lane, value: [u64; 2]) {
    let first = if lane == Lane::High { value[1] } else { value[0] };
    bus.write(gpa, size.min(8), first & mask(size));
    if size == 16 {
        bus.write(gpa.wrapping_add(8), 8, value[1]);
    }
}

/// Whether condition `number` of Jcc, SETcc and CMOVcc holds.
fn is_met(number: u8, flags: u64) -> bool {
    let is_set = |bit: u64| flags & bit != 0;
    let is_less = is_set(flags::SF) != is_set(flags::OF);
    let holds = match number >> 1 {
        0 => is_set(flags::OF),
        1 => is_set(flags::CF),
        2 => is_set(flags::ZF),
        3 => is_set(flags::CF) || is_set(flags::ZF),
        4 => is_set(flags::SF),
        5 => is_set(flags::PF),
        6 => is_less,
        _ => is_less || is_set(flags::ZF),
    };
    holds != (number & 1 != 0)
}

/// The low `size` bytes of `value` in reverse order.
fn swap(value: u64, size: u8) -> u64 {
    value.swap_bytes() >> (64 - 8 * u32::from(size))
}

/// Moves RSI (6) or RDI (7) by one element in the direction the flag says.
pub fn advance(registers: &mut Registers, number: u8, instruction: &Instruction) {
    let step = u64::from(instruction.size);
    let step = if registers.flags & flags::DF != 0 { step.wrapping_neg() } else { step };
    let register = Register { number, is_high_byte: false };
    let value = registers.get(register, instruction.address_size).wrapping_add(step);
    registers.set(register, instruction.address_size, value);
}

/// Counts one element of a repeated string instruction; true when it was the last.
pub fn repeat_done(registers: &mut Registers, instruction: &Instruction) -> bool {
    if !instruction.is_repeated {
        return true;
    }
    let counter = Register { number: 1, is_high_byte: false };
    let left = registers.get(counter, instruction.address_size).wrapping_sub(1)
        & mask(instruction.address_size);
    registers.set(counter, instruction.address_size, left);
    left == 0
}

fn bit_operation(
    bit: Bit,
    source: Source,
    registers: &mut Registers,
    bus: &mut impl Bus,
    gpa: u64,
    size: u8,
) {
    // The hardware has already moved the address by whole operands of a register's bit number.
    let number = operand(registers, source, size) & (u64::from(size) * 8 - 1);
    let value = bus.read(gpa, size);
    let selected = 1 << number;
    let carry = if value & selected != 0 { flags::CF } else { 0 };
    match bit {
        Bit::Test => {}
        Bit::Set => bus.write(gpa, size, value | selected),
        Bit::Reset => bus.write(gpa, size, value & !selected),
        Bit::Complement => bus.write(gpa, size, value ^ selected),
    }
    registers.flags = registers.flags & !flags::CF | carry;
    registers.has_new_flags = true;
}

fn operand(registers: &Registers, source: Source, size: u8) -> u64 {
    match source {
        Source::Register(register) => registers.get(register, size),
        Source::Immediate(value) => value & mask(size),
    }
}

fn sign_extend(value: u64, size: u8) -> u64 {
    let unused = 64 - 8 * u32::from(size);
    ((value << unused) as i64 >> unused) as u64
}

/// Result and status flags of `left` op `right`.
fn arithmetic(alu: Alu, left: u64, right: u64, old: u64, size: u8) -> (u64, u64) {
    let carry_in = match alu {
        Alu::Adc | Alu::Sbb => old & flags::CF,
        _ => 0,
    };
    let top = 1u64 << (8 * u32::from(size) - 1);
    let (result, carry, overflow, auxiliary) = match alu {
        Alu::Add | Alu::Adc => {
            let wide = u128::from(left) + u128::from(right) + u128::from(carry_in);
            let result = wide as u64 & mask(size);
            let carry = wide >> (8 * u32::from(size)) != 0;
            (result, carry, !(left ^ right) & (left ^ result) & top != 0, left ^ right ^ result)
        }
        Alu::Sub | Alu::Sbb | Alu::Cmp => {
            let result = left.wrapping_sub(right).wrapping_sub(carry_in) & mask(size);
            let carry = u128::from(left) < u128::from(right) + u128::from(carry_in);
            (result, carry, (left ^ right) & (left ^ result) & top != 0, left ^ right ^ result)
        }
        Alu::Or => (left | right, false, false, 0),
        Alu::And => (left & right, false, false, 0),
        Alu::Xor => (left ^ right, false, false, 0),
    };
    let mut status = 0;
    let mut flag = |is_set: bool, bit: u64| {
        if is_set {
            status |= bit;
        }
    };
    flag(carry, flags::CF);
    flag((result as u8).count_ones().is_multiple_of(2), flags::PF);
    flag(auxiliary & 0x10 != 0, flags::AF);
    flag(result == 0, flags::ZF);
    flag(result & top != 0, flags::SF);
    flag(overflow, flags::OF);
    (result, status)
}

#[cfg(test)]
mod tests {
    use super::super::decode::{Mode, decode};
    use super::*;

    /// One device register of 64 bits at every address.
    #[derive(Default)]
    struct Cell {
        value: u64,
        reads: u32,
        writes: std::vec::Vec<(u64, u8, u64)>,
    }

    impl Bus for Cell {
        fn read(&mut self, _: u64, size: u8) -> u64 {
            self.reads += 1;
            self.value & mask(size)
        }
        fn write(&mut self, gpa: u64, size: u8, value: u64) {
            self.value = self.value & !mask(size) | value & mask(size);
            self.writes.push((gpa, size, value & mask(size)));
        }
    }

    fn run(bytes: &[u8], registers: &mut Registers, cell: &mut Cell) -> bool {
        let instruction = decode(bytes, Mode::Bits64).unwrap();
        assert_eq!(usize::from(instruction.length), bytes.len());
        execute(&instruction, registers, cell, 0x100, 0x200, true)
    }

    #[test]
    fn moves_of_every_width() {
        let mut cell = Cell { value: 0x8877_6655_4433_2291, ..Cell::default() };
        let mut r = Registers { general: [u64::MAX; 16], ..Registers::default() };
        run(&[0x8b, 0x03], &mut r, &mut cell);
        assert_eq!(r.general[0], 0x4433_2291, "32-bit loads clear the upper half");
        run(&[0x66, 0x8b, 0x0b], &mut r, &mut cell);
        assert_eq!(r.general[1], 0xffff_ffff_ffff_2291);
        run(&[0x8a, 0x23], &mut r, &mut cell);
        assert_eq!(r.general[0], 0x4433_9191, "AH");
        run(&[0x48, 0x0f, 0xbe, 0x13], &mut r, &mut cell);
        assert_eq!(r.general[2], 0xffff_ffff_ffff_ff91);
        run(&[0x0f, 0xb7, 0x13], &mut r, &mut cell);
        assert_eq!(r.general[2], 0x2291);
        run(&[0xc7, 0x03, 0x78, 0x56, 0x34, 0x12], &mut r, &mut cell);
        assert_eq!(cell.writes, [(0x100, 4, 0x1234_5678)]);
        assert_eq!(r.written, 0b111);
        assert!(!r.has_new_flags);
    }

    #[test]
    fn arithmetic_matches_the_host_processor() {
        let mut seed = 77u64;
        for _ in 0..100_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (left, right) = (seed >> 32 & 0xffff_ffff, seed.rotate_left(23) & 0xffff_ffff);
            let (l, r) = (left as u32, right as u32);
            let (sum, status) = arithmetic(Alu::Add, left, right, 0, 4);
            assert_eq!((sum as u32, status & flags::CF != 0), l.overflowing_add(r));
            assert_eq!(status & flags::OF != 0, (l as i32).overflowing_add(r as i32).1);
            let (difference, status) = arithmetic(Alu::Cmp, left, right, 0, 4);
            assert_eq!((difference as u32, status & flags::CF != 0), l.overflowing_sub(r));
            assert_eq!(status & flags::OF != 0, (l as i32).overflowing_sub(r as i32).1);
            assert_eq!(status & flags::SF != 0, (difference as i32) < 0);
            assert_eq!(status & flags::ZF != 0, l == r);
        }
        assert_eq!(arithmetic(Alu::Adc, u64::MAX, 0, flags::CF, 8).0, 0);
        assert_eq!(arithmetic(Alu::Sbb, 0, 0, flags::CF, 8).1 & flags::CF, flags::CF);
    }

    #[test]
    fn swapped_and_conditional_moves() {
        let mut cell = Cell { value: 0x8877_6655_4433_2211, ..Cell::default() };
        let mut r = Registers { general: [u64::MAX; 16], ..Registers::default() };
        run(&[0x0f, 0x38, 0xf0, 0x03], &mut r, &mut cell);
        assert_eq!(r.general[0], 0x1122_3344);
        run(&[0x66, 0x0f, 0x38, 0xf0, 0x0b], &mut r, &mut cell);
        assert_eq!(r.general[1], 0xffff_ffff_ffff_1122);
        run(&[0x48, 0x0f, 0x38, 0xf1, 0x03], &mut r, &mut cell);
        assert_eq!(cell.value, 0x4433_2211_0000_0000);
        // CMOVE and CMOVNE with ZF clear: the first only clears the upper half.
        run(&[0x0f, 0x44, 0x13], &mut r, &mut cell);
        assert_eq!(r.general[2], 0xffff_ffff);
        run(&[0x48, 0x0f, 0x45, 0x13], &mut r, &mut cell);
        assert_eq!(r.general[2], 0x4433_2211_0000_0000);
        r.flags = flags::SF;
        run(&[0x0f, 0x9c, 0x03], &mut r, &mut cell);
        assert_eq!(cell.writes.last(), Some(&(0x100, 1, 1)), "less: SF and OF differ");
        run(&[0x0f, 0x9d, 0x03], &mut r, &mut cell);
        assert_eq!(cell.writes.last(), Some(&(0x100, 1, 0)));
    }

    #[test]
    fn vectors_move_in_halves() {
        let mut cell = Cell { value: 0x8877_6655_4433_2211, ..Cell::default() };
        let old = [1, 2];
        let all = cell.value;
        assert_eq!(load_vector(&mut cell, 0, 16, Lane::Whole, old), [all, all]);
        assert_eq!(load_vector(&mut cell, 0, 8, Lane::Whole, old), [all, 0]);
        assert_eq!(load_vector(&mut cell, 0, 4, Lane::Whole, old), [0x4433_2211, 0]);
        assert_eq!(load_vector(&mut cell, 0, 8, Lane::Low, old), [all, 2]);
        assert_eq!(load_vector(&mut cell, 0, 8, Lane::High, old), [1, all]);
        store_vector(&mut cell, 0x10, 16, Lane::Whole, [3, 4]);
        store_vector(&mut cell, 0x20, 4, Lane::Whole, [u64::MAX, 4]);
        store_vector(&mut cell, 0x30, 8, Lane::High, [3, 4]);
        let wanted = [(0x10, 8, 3), (0x18, 8, 4), (0x20, 4, 0xffff_ffff), (0x30, 8, 4)];
        assert_eq!(cell.writes, wanted);
    }

    #[test]
    fn read_modify_write_forms() {
        let mut cell = Cell { value: 0xf0, ..Cell::default() };
        let mut r = Registers::default();
        r.general[0] = 0x0f;
        run(&[0x08, 0x03], &mut r, &mut cell);
        assert_eq!(cell.value, 0xff);
        run(&[0x0f, 0xba, 0x33, 0x03], &mut r, &mut cell);
        assert_eq!((cell.value, r.flags & flags::CF), (0xf7, 1));
        r.general[0] = 0xf7;
        r.general[1] = 5;
        run(&[0x0f, 0xb1, 0x0b], &mut r, &mut cell);
        assert_eq!((cell.value, r.flags & flags::ZF), (5, flags::ZF));
        run(&[0x87, 0x0b], &mut r, &mut cell);
        run(&[0xff, 0x03], &mut r, &mut cell);
        assert_eq!(cell.value, 6);
        run(&[0xf7, 0x1b], &mut r, &mut cell);
        assert_eq!(cell.value, 0xffff_fffa);
    }

    #[test]
    fn repeated_strings_count_down() {
        let mut cell = Cell::default();
        let mut r = Registers::default();
        r.general[0] = 0x5a;
        r.general[1] = 2;
        r.general[7] = 0x1000;
        assert!(!run(&[0xf3, 0xaa], &mut r, &mut cell));
        assert!(run(&[0xf3, 0xaa], &mut r, &mut cell));
        assert_eq!((r.general[1], r.general[7]), (0, 0x1002));
        r.flags |= flags::DF;
        r.general[6] = 0x10;
        assert!(run(&[0x48, 0xa5], &mut r, &mut cell));
        assert_eq!((r.general[6], r.general[7]), (8, 0xffa));
        assert_eq!(cell.writes.last(), Some(&(0x100, 8, 0x5a)));
    }
}
