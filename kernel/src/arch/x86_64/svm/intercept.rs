//! What a guest may do without an exit: fixed intercepts, MSR and I/O permission maps.
//!
//! A guest must never run an instruction that reads or changes the machine behind the kernel's back. The forced
//! sets below are or-ed into whatever user level asks for.

use core::cell::Cell;

/// CR intercepts: CR8 writes (QEMU's TCG aborts when a pending V_IRQ meets a direct one).
pub const FORCED_CR: u32 = 1 << (16 + 8);

/// Exit codes 60h..: INTR, NMI, INIT, RDPMC, CPUID, INVD, HLT, INVLPGA, IOIO, MSR, FERR_FREEZE, SHUTDOWN.
pub const FORCED_MISC1: u32 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 15
    | 1 << 18
    | 1 << 22
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 30
    | 1 << 31;

/// Exit codes 80h..: VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, WBINVD, MONITOR, MWAIT (both), XSETBV.
pub const FORCED_MISC2: u32 = 0x7f | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13;

/// #DB and #AC: one that its own delivery raises again would keep the processor in microcode for ever, deaf to interrupts
/// (CVE-2015-8104, CVE-2015-5307). The kernel delivers them itself, an exit each time.
pub const FORCED_EXCEPTIONS: u32 = 1 << 1 | 1 << 17;

/// Exit codes user level may add: RDTSC.. IRET, SWINT, PAUSE, INVLPG, task switch, descriptor table accesses; not VINTR (its
/// own control bit), SMI or RSM (system management stays below the kernel), nor bits the processor does not define.
pub const OPTIONAL_MISC1: u32 = FORCED_MISC1
    | 1 << 5
    | 0xff << 6
    | 1 << 14
    | 1 << 16
    | 1 << 17
    | 1 << 20
    | 1 << 21
    | 1 << 23
    | 1 << 25
    | 1 << 29;
/// Likewise from 80h: RDTSCP, ICEBP.
pub const OPTIONAL_MISC2: u32 = FORCED_MISC2 | 1 << 7 | 1 << 8;

/// VINTR intercept (exit code 64h).
pub const VINTR: u32 = 1 << 4;
/// IRET intercept (exit code 74h).
pub const IRET: u32 = 1 << 20;

/// Words of the MSR permission map: 8 KiB.
pub const MSRPM_WORDS: usize = 1024;
/// Words of the I/O permission map: 12 KiB, of which 65536 bits plus three are read.
pub const IOPM_WORDS: usize = 1536;

/// Finds the bit of an MSR's read intercept; the write intercept is the next bit. `None`: the map does not cover it and
/// every access exits.
#[must_use]
pub const fn msr_bit(msr: u32) -> Option<usize> {
    let (base, index) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x800, msr - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, msr - 0xc001_0000),
        _ => return None,
    };
    Some(base * 8 + index as usize * 2)
}

/// Sets or clears the intercepts of one MSR. `false`: outside the map.
pub fn set_msr(map: &[Cell<u64>; MSRPM_WORDS], msr: u32, intercepted: bool) -> bool {
    let Some(bit) = msr_bit(msr) else { return false };
    // Pairs start at even bits, so both lie in one word.
    let pair = 3u64 << (bit % 64);
    if intercepted {
        map[bit / 64].set(map[bit / 64].get() | pair);
    } else {
        map[bit / 64].set(map[bit / 64].get() & !pair);
    }
    true
}

/// Sets or clears the intercepts of a range of ports, ends included; word by word, since a range can be all 65536.
pub fn set_ports(map: &[Cell<u64>; IOPM_WORDS], first: u16, last: u16, intercepted: bool) {
    let (first, last) = (usize::from(first), usize::from(last));
    for (index, word) in map.iter().enumerate().take(last / 64 + 1).skip(first / 64) {
        let mut bits = u64::MAX;
        if index == first / 64 {
            bits &= u64::MAX << (first % 64);
        }
        if index == last / 64 {
            bits &= u64::MAX >> (63 - last % 64);
        }
        word.set(if intercepted { word.get() | bits } else { word.get() & !bits });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forced_bits_cover_every_way_out() {
        for code in [0x60, 0x61, 0x63, 0x72, 0x76, 0x78, 0x7a, 0x7b, 0x7c, 0x7f] {
            assert_ne!(FORCED_MISC1 >> (code - 0x60) & 1, 0, "exit {code:#x}");
        }
        for code in 0x80..=0x86 {
            assert_ne!(FORCED_MISC2 >> (code - 0x80) & 1, 0, "exit {code:#x}");
        }
        for code in [0x89, 0x8a, 0x8b, 0x8c, 0x8d] {
            assert_ne!(FORCED_MISC2 >> (code - 0x80) & 1, 0, "exit {code:#x}");
        }
        // System management stays invisible, the window has its own switch.
        for code in [0x62, 0x64, 0x73] {
            assert_eq!(OPTIONAL_MISC1 >> (code - 0x60) & 1, 0, "exit {code:#x}");
        }
    }

    #[test]
    fn msr_bits_are_where_the_manual_says() {
        assert_eq!(msr_bit(0), Some(0));
        assert_eq!(msr_bit(0x174), Some(0x174 * 2));
        assert_eq!(msr_bit(0xc000_0081), Some(0x800 * 8 + 0x81 * 2));
        assert_eq!(msr_bit(0xc001_1fff), Some(0x1800 * 8 - 2));
        assert_eq!(msr_bit(0x2000), None);
        assert_eq!(msr_bit(0x4b56_4d00), None);
        let map = [const { Cell::new(u64::MAX) }; MSRPM_WORDS];
        assert!(set_msr(&map, 0xc000_0082, false));
        let clear: u32 = map.iter().map(|word| word.get().count_zeros()).sum();
        assert_eq!(clear, 2);
        assert!(set_msr(&map, 0xc000_0082, true));
        assert!(map.iter().all(|word| word.get() == u64::MAX));
        assert!(!set_msr(&map, 0x4000_0000, false));
    }

    #[test]
    fn port_ranges_touch_nothing_else() {
        let map = [const { Cell::new(u64::MAX) }; IOPM_WORDS];
        set_ports(&map, 0x3f8, 0x3ff, false);
        set_ports(&map, 0xffff, 0xffff, false);
        let clear: u32 = map.iter().map(|word| word.get().count_zeros()).sum();
        assert_eq!(clear, 9);
        assert_eq!(map[0x3f8 / 64].get() >> (0x3f8 % 64) & 0xff, 0);
        set_ports(&map, 0, 0xffff, true);
        assert!(map.iter().all(|word| word.get() == u64::MAX));
        for (first, last) in [(0, 0), (63, 64), (5, 700), (0, 0xffff), (128, 191), (0xff80, 0xffff)]
        {
            set_ports(&map, first, last, false);
            for port in 0..=0xffffusize {
                let is_open = map[port / 64].get() >> (port % 64) & 1 == 0;
                assert_eq!(
                    is_open,
                    (first.into()..=last.into()).contains(&port),
                    "{first}..{port}"
                );
            }
            set_ports(&map, first, last, true);
        }
    }
}
