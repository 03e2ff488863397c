//! Instructions that have no safe form, and the handler that survives their faults.
// UNSAFETY: this is a kernel: it executes privileged instructions and touches device registers.
#![expect(unsafe_code, reason = "bare-metal program: port I/O, MSRs and MMIO have no safe form")]

use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicU64, Ordering};

global_asm!(include_str!("fault.s"), options(att_syntax));

/// Where the next fault goes on; 0: it is not expected.
#[unsafe(no_mangle)]
static RECOVER: AtomicU64 = AtomicU64::new(0);
/// Faults survived.
#[unsafe(no_mangle)]
static FAULTS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn fault_plain();
    fn fault_with_code();
}

/// The 16550 at 0x3f8.
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            while read_port(0x3fd, 1) & 0x20 == 0 {}
            write_port(0x3f8, 1, u32::from(byte));
        }
        Ok(())
    }
}

/// A byte somebody typed.
pub fn typed() -> Option<u8> {
    (read_port(0x3fd, 1) & 1 != 0).then(|| read_port(0x3f8, 1) as u8)
}

/// Faults survived so far.
pub fn faults() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// Reads `size` (1, 2 or 4) bytes of a port.
#[inline]
pub fn read_port(port: u16, size: u8) -> u32 {
    let value: u32;
    // SAFETY: reading a port of the virtual machine changes no memory.
    unsafe {
        match size {
            1 => {
                asm!("in al, dx", "movzx eax, al", in("dx") port, out("eax") value, options(nomem, nostack))
            }
            2 => {
                asm!("in ax, dx", "movzx eax, ax", in("dx") port, out("eax") value, options(nomem, nostack))
            }
            _ => asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)),
        }
    }
    value
}

/// Writes `size` (1, 2 or 4) bytes of a port.
#[inline]
pub fn write_port(port: u16, size: u8, value: u32) {
    // SAFETY: what a port does to this machine is what the program is for; its own memory is reached by no port.
    unsafe {
        match size {
            1 => asm!("out dx, al", in("dx") port, in("eax") value, options(nomem, nostack)),
            2 => asm!("out dx, ax", in("dx") port, in("eax") value, options(nomem, nostack)),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)),
        }
    }
}

/// `rep insb` of `count` bytes of a port to `to`, which need not be memory; a fault ends it.
pub fn port_to(port: u16, to: u64, count: u64) {
    // SAFETY: callers name addresses at which this program has nothing.
    unsafe {
        asm!("lea rax, [rip + 2f]", "mov [rip + RECOVER], rax", "rep insb", "2:",
            "mov qword ptr [rip + RECOVER], 0",
            in("dx") port, inout("rdi") to => _, inout("rcx") count => _, out("rax") _, options(nostack));
    }
}

/// Ticks of the time-stamp counter.
#[inline]
pub fn now() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC only reads the clock.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// A leaf of CPUID: EAX, EBX, ECX, EDX.
#[inline]
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let registers = core::arch::x86_64::__cpuid(leaf);
    [registers.eax, registers.ebx, registers.ecx, registers.edx]
}

/// Reads an MSR that is known to exist.
#[inline]
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR changes nothing; callers name one that exists.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR that is known to take the value.
#[inline]
pub fn write_msr(msr: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: callers write APIC registers; the interrupts they cause have a handler.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nomem, nostack));
    }
}

/// The null hypercall of KVM's interface; without that interface it is an invalid instruction.
#[inline]
pub fn null_hypercall() {
    // SAFETY: hypercall number -1 does not exist; the answer is an error in RAX.
    unsafe { asm!("vmmcall", inout("rax") u64::MAX => _, options(nostack)) }
}

/// Masks the 8259s and turns the local APIC on in x2APIC mode; false if the processor has none.
pub fn enable_x2apic() -> bool {
    write_port(0x21, 1, 0xff);
    write_port(0xa1, 1, 0xff);
    if cpuid(1)[2] & 1 << 21 == 0 {
        return false;
    }
    write_msr(0x1b, read_msr(0x1b) | 0xc00);
    write_msr(0x80f, 0x1ff);
    true
}

/// Waits for one interrupt, which must have a handler.
#[inline]
pub fn wait_for_interrupt() {
    // SAFETY: the interrupt that ends HLT has a handler; STI's shadow lets none in before the HLT.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Reads an MSR; `None`: it faulted.
pub fn try_read_msr(msr: u32) -> Option<u64> {
    let before = faults();
    let (low, high): (u32, u32);
    // SAFETY: a fault goes on behind the instruction; reading changes nothing.
    unsafe {
        asm!("lea rax, [rip + 2f]", "mov [rip + RECOVER], rax", "rdmsr", "2:",
            "mov qword ptr [rip + RECOVER], 0",
            in("ecx") msr, out("eax") low, out("edx") high, options(nostack));
    }
    (faults() == before).then_some(u64::from(high) << 32 | u64::from(low))
}

/// Writes an MSR; whether it was taken.
pub fn try_write_msr(msr: u32, value: u64) -> bool {
    let before = faults();
    // SAFETY: a fault goes on behind the instruction; values written let this program run on (see `attack::registers`).
    unsafe {
        asm!("lea rsi, [rip + 2f]", "mov [rip + RECOVER], rsi", "wrmsr", "2:",
            "mov qword ptr [rip + RECOVER], 0",
            in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, out("rsi") _, options(nostack));
    }
    faults() == before
}

/// Whether intercepted instructions behind prefixes that mean nothing to them go on where they should.
pub fn prefixes_are_honoured() -> bool {
    let (vendor, version): (u32, u32);
    let steps: u64;
    // SAFETY: CPUID, RDMSR and VMMCALL change the registers named here only. A wrong length runs into the rest of the
    // instruction, which does not add to the steps or faults.
    unsafe {
        asm!(
            "push rbx", "xor esi, esi",
            "xor eax, eax", ".byte 0x66, 0x0f, 0xa2", "inc esi", "mov edi, ebx",
            "xor eax, eax", ".byte 0x2e, 0x66, 0x66, 0x66, 0x0f, 0xa2", "inc esi",
            "xor eax, eax", ".byte 0x48, 0x0f, 0xa2", "inc esi",
            "xor eax, eax", ".byte 0xf2, 0xf3, 0x40, 0x0f, 0xa2", "inc esi",
            "mov ecx, 0x1b", ".byte 0x66, 0x48, 0x0f, 0x32", "inc esi", "mov r8d, eax",
            "mov eax, -1", ".byte 0x36, 0x0f, 0x01, 0xd9", "inc esi",
            "xor eax, eax", "cpuid", "inc esi",
            "pop rbx",
            out("eax") _, out("ecx") _, out("edx") _, out("rsi") steps, out("edi") vendor, out("r8d") version,
        );
    }
    // "Auth" or "Genu", and the APIC's base.
    let is_vendor = [*b"Auth", *b"Genu"].contains(&vendor.to_le_bytes());
    steps == 7 && is_vendor && version >> 12 == 0xfee00
}

/// Reads `size` (1, 2, 4 or 8) bytes at an address where this program has nothing.
#[inline]
pub fn read_wild(address: u64, size: u8) -> u64 {
    // SAFETY: the address is mapped (`map_high`) and Rust has no object there.
    unsafe {
        match size {
            1 => u64::from(read_volatile(address as *const u8)),
            2 => u64::from(unaligned::<u16>(address)),
            4 => u64::from(unaligned::<u32>(address)),
            _ => unaligned::<u64>(address),
        }
    }
}

/// A load of any alignment that the compiler neither splits nor drops.
unsafe fn unaligned<T: Copy>(address: u64) -> T {
    // SAFETY: as for the caller; x86 loads need no alignment.
    unsafe { (address as *const Packed<T>).read_volatile().0 }
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Packed<T>(T);

/// Writes `size` (1, 2, 4 or 8) bytes at an address where this program has nothing.
#[inline]
pub fn write_wild(address: u64, size: u8, value: u64) {
    // SAFETY: as for `read_wild`.
    unsafe {
        match size {
            1 => write_volatile(address as *mut u8, value as u8),
            2 => (address as *mut Packed<u16>).write_volatile(Packed(value as u16)),
            4 => (address as *mut Packed<u32>).write_volatile(Packed(value as u32)),
            _ => (address as *mut Packed<u64>).write_volatile(Packed(value)),
        }
    }
}

/// Copies 64 bytes by string moves from `from` to `to`, either of which may be no memory.
pub fn move_string(from: u64, to: u64) {
    // SAFETY: callers name addresses at which Rust has nothing.
    unsafe {
        asm!("rep movsq", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") 8u64 => _, options(nostack));
    }
}

/// One word of memory that belongs to no Rust object.
pub fn word(address: u64) -> u64 {
    read_wild(address, 8)
}

/// Stores such a word.
pub fn set_word(address: u64, value: u64) {
    write_wild(address, 8, value);
}

/// The NUL-terminated text at `address`, at most `max` bytes.
pub fn text(address: u64, max: u64) -> impl Iterator<Item = u8> {
    (address..address + max).map(|at| read_wild(at, 1) as u8).take_while(|&byte| byte != 0)
}

/// Moves SSE registers from and to device addresses: `hole`, where nothing is, and `select`, a register of 32 bits that
/// keeps a byte. The halves read from the hole, a register that took no part, and what `select` holds then.
pub fn move_vectors(hole: u64, select: u64, scratch: u64) -> [u64; 4] {
    // SAFETY: SSE is switched on for registers that nothing here uses; the stores go to a device and to `scratch`.
    unsafe {
        asm!(
            "mov rax, cr4", "or rax, 0x600", "mov cr4, rax",
            "mov eax, 7", "movd xmm9, eax", "movd xmm2, eax",
            "movdqu xmm1, [rdi]",
            "movd dword ptr [rsi], xmm9",
            "movups [rdx], xmm1",
            "movq [rdx + 16], xmm2",
            "mov eax, [rsi]", "mov [rdx + 24], rax",
            in("rdi") hole, in("rsi") select, in("rdx") scratch, out("rax") _, options(nostack),
        );
    }
    [word(scratch), word(scratch + 8), word(scratch + 16), word(scratch + 24)]
}

/// Loads x87 state from `address`, which is no memory: nothing emulates that.
pub fn load_x87(address: u64) {
    // SAFETY: only the floating-point stack changes, which nothing uses.
    unsafe { asm!("fninit", "fld qword ptr [{}]", in(reg) address, options(nostack)) }
}

/// Makes `table`, which is no memory, the root of the address space; does not return.
pub fn load_tables(table: u64) -> ! {
    // SAFETY: this is the end of the machine, on purpose.
    unsafe { asm!("mov cr3, {}", "2: jmp 2b", in(reg) table, options(noreturn)) }
}

/// A fault without an interrupt table: the processor shuts down.
pub fn triple_fault() -> ! {
    let nothing = [0u64; 2];
    // SAFETY: this is the end of the machine, on purpose.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const nothing, options(noreturn)) }
}

struct Gates([AtomicU64; 512]);

static IDT: Gates = Gates([const { AtomicU64::new(0) }; 512]);

/// Vectors whose frame has an error code.
const WITH_CODE: [usize; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

/// Entry of an interrupt in assembly.
pub type Handler = unsafe extern "C" fn();

/// Sends these vectors to their handlers, and every other to the one that goes on where the program said, or ends it.
pub fn install_handlers(handlers: &[(usize, Handler)]) {
    for vector in 0..256 {
        let own = handlers.iter().find(|(own, _)| *own == vector).map(|(_, handler)| *handler);
        let fault: Handler =
            if WITH_CODE.contains(&vector) { fault_with_code } else { fault_plain };
        let address = own.unwrap_or(fault) as *const () as u64;
        let low = address & 0xffff | 8 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
        if let [first, second] = &IDT.0[2 * vector..2 * vector + 2] {
            first.store(low, Ordering::Relaxed);
            second.store(address >> 32, Ordering::Relaxed);
        }
    }
    let base = &raw const IDT as u64;
    let pointer = [0xfff | (base & 0xffff_ffff_ffff) << 16, base >> 48];
    // SAFETY: `pointer` holds limit and base of a static table whose gates all name handlers.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags));
    }
}

/// Maps everything up to 512 GiB by pages of 1 GiB behind the 4 GiB that `boot.s` has mapped.
pub fn map_high() {
    let root: u64;
    // SAFETY: CR3 names the root of the address space, whose first entry names the table of gibibytes.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack)) };
    let table = word(root) & !0xfff;
    for gibibyte in 4..512u64 {
        set_word(table + 8 * gibibyte, gibibyte << 30 | 0x83);
    }
}

/// Called by `fault.s` for a fault nobody expected.
#[unsafe(no_mangle)]
extern "C" fn guest_fault(frame: *const u64) -> ! {
    // SAFETY: the processor pushed at least three words at `frame`.
    let words = unsafe { [frame.read(), frame.add(1).read(), frame.add(2).read()] };
    let _ = writeln!(Uart, "FAULT {words:x?}");
    triple_fault()
}
