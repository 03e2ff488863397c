//! CPUID as the guest sees it: the machine's own answers, less what is not virtualised, plus KVM's leaves.
//!
//! Answers are prepared once; an exit is a table look-up. AMD64 APM volume 3, appendix E; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`.

/// EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

const BASIC: usize = 0x0e;
const EXTENDED: usize = 0x09;
const XSAVE_LEAVES: usize = 10;
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const EXTENDED_BASE: u32 = 0x8000_0000;

/// KVM feature bits: no I/O delay needed, clock by the new MSRs, clock stable over processors.
const KVM_FEATURES: u32 = 1 << 1 | 1 << 3 | 1 << 24;

const ECX1_OSXSAVE: u32 = 1 << 27;
const ECX1_XSAVE: u32 = 1 << 26;

/// The prepared answers.
#[derive(Clone, Debug)]
pub struct Cpuid {
    basic: [Leaf; BASIC],
    extended: [Leaf; EXTENDED],
    hypervisor: [Leaf; 2],
    xsave: [Leaf; XSAVE_LEAVES],
}

impl Cpuid {
    /// No answers but zero.
    pub const EMPTY: Self = Self {
        basic: [[0; 4]; BASIC],
        extended: [[0; 4]; EXTENDED],
        hypervisor: [[0; 4]; 2],
        xsave: [[0; 4]; XSAVE_LEAVES],
    };

    /// Prepares the answers from the machine's, as `machine(leaf, subleaf)` gives them.
    pub fn new(machine: impl Fn(u32, u32) -> Leaf) -> Self {
        let mut table = Self {
            basic: [[0; 4]; BASIC],
            extended: [[0; 4]; EXTENDED],
            hypervisor: [
                [HYPERVISOR_BASE + 1, 0x4b4d_564b, 0x564b_4d56, 0x0000_004d],
                [KVM_FEATURES, 0, 0, 0],
            ],
            xsave: [[0; 4]; XSAVE_LEAVES],
        };
        let [highest, b, c, d] = machine(0, 0);
        let has_xsave = highest >= 0xd && machine(1, 0)[2] & ECX1_XSAVE != 0;
        table.basic[0] = [BASIC as u32 - 1, b, c, d];
        table.basic[1] = mask_features(machine(1, 0), has_xsave);
        // The APIC timer runs in every sleep state.
        table.basic[6] = [1 << 2, 0, 0, 0];
        if highest >= 7 {
            let [_, b, c, _] = machine(7, 0);
            // No TSC_ADJUST, INVPCID without PCID, or monitoring; of ECX only UMIP and RDPID.
            table.basic[7] =
                [0, b & !(1 << 1 | 1 << 10 | 1 << 12 | 1 << 15), c & (1 << 2 | 1 << 22), 0];
        }
        if has_xsave {
            for (index, leaf) in (0..).zip(table.xsave.iter_mut()) {
                *leaf = machine(0xd, index);
            }
            // XCR0 bits: x87, SSE and AVX; what the kernel switches. No XSAVES.
            table.xsave[0][0] &= 7;
            table.xsave[0][3] = 0;
            table.xsave[1] = [table.xsave[1][0] & 5, 0, 0, 0];
            for leaf in &mut table.xsave[3..] {
                *leaf = [0; 4];
            }
        }
        let highest = machine(EXTENDED_BASE, 0)[0].min(EXTENDED_BASE + EXTENDED as u32 - 1);
        for (leaf, place) in (EXTENDED_BASE..).zip(table.extended.iter_mut()) {
            if leaf <= highest {
                *place = machine(leaf, 0);
            }
        }
        mask_extended(&mut table.extended);
        table
    }

    /// The answer to `leaf`/`subleaf`. `is_osxsave_on` and `xcr0` are only asked for the leaves that show them.
    #[inline]
    pub fn get(
        &self,
        leaf: u32,
        subleaf: u32,
        is_osxsave_on: impl FnOnce() -> bool,
        xcr0: impl FnOnce() -> u64,
    ) -> Leaf {
        if let Some(answer) = self.basic.get(leaf as usize) {
            return match leaf {
                1 if answer[2] & ECX1_XSAVE != 0 && is_osxsave_on() => {
                    [answer[0], answer[1], answer[2] | ECX1_OSXSAVE, answer[3]]
                }
                7 if subleaf != 0 => [0; 4],
                0xb => topology(subleaf),
                0xd => self.xsave(subleaf, xcr0),
                _ => *answer,
            };
        }
        if let Some(answer) = self.hypervisor.get(leaf.wrapping_sub(HYPERVISOR_BASE) as usize) {
            return *answer;
        }
        match self.extended.get(leaf.wrapping_sub(EXTENDED_BASE) as usize) {
            Some(answer) => *answer,
            None => [0; 4],
        }
    }

    /// Largest XCR0 the guest may set.
    pub fn xcr0_mask(&self) -> u64 {
        u64::from(self.xsave[0][0]) | 1
    }

    #[cold]
    fn xsave(&self, subleaf: u32, xcr0: impl FnOnce() -> u64) -> Leaf {
        let Some(answer) = self.xsave.get(subleaf as usize) else { return [0; 4] };
        if subleaf != 0 || answer[0] == 0 {
            return *answer;
        }
        // The legacy area and the header, then whatever component ends last.
        let size_of = |enabled: u64| {
            let mut size = 576;
            for (bit, [length, offset, _, _]) in self.xsave.iter().enumerate().skip(2) {
                if enabled >> bit & 1 != 0 {
                    size = size.max(length + offset);
                }
            }
            size
        };
        [answer[0], size_of(xcr0()), size_of(u64::from(answer[0])), 0]
    }
}

fn topology(subleaf: u32) -> Leaf {
    match subleaf {
        0 => [0, 1, 1 << 8, 0],
        1 => [0, 1, 2 << 8 | 1, 0],
        _ => [0, 0, subleaf & 0xff, 0],
    }
}

fn mask_features([a, b, c, d]: Leaf, has_xsave: bool) -> Leaf {
    // MONITOR, DS-CPL, VMX, SMX, EST, TM2, SDBG, xTPR, PDCM, PCID, DCA, OSXSAVE.
    let mut hidden_c = 1 << 3
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 7
        | 1 << 8
        | 1 << 11
        | 1 << 14
        | 1 << 15
        | 1 << 17
        | 1 << 18
        | ECX1_OSXSAVE;
    if !has_xsave {
        // AVX, FMA and F16C need extended state.
        hidden_c |= ECX1_XSAVE | 1 << 28 | 1 << 12 | 1 << 29;
    }
    // MCE, MTRR, MCA, PSN, DS, ACPI, HTT, TM, PBE.
    let hidden_d =
        1 << 7 | 1 << 12 | 1 << 14 | 1 << 18 | 1 << 21 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 31;
    [
        a,
        // One logical processor with APIC ID 0; the CLFLUSH size stays.
        b & 0xff00 | 1 << 16,
        // x2APIC, TSC deadline and "runs under a hypervisor" are ours.
        c & !hidden_c | 1 << 21 | 1 << 24 | 1 << 31,
        d & !hidden_d | 1 << 9,
    ]
}

fn mask_extended(table: &mut [Leaf; EXTENDED]) {
    table[0][0] = EXTENDED_BASE + EXTENDED as u32 - 1;
    let [_, _, c, d] = &mut table[1];
    // SVM, extended APIC space, OSVW, IBS, SKINIT, WDT, LWP, NodeId, TOPOEXT, performance counters, MWAITX.
    *c &= !(1 << 2
        | 1 << 3
        | 1 << 9
        | 1 << 10
        | 1 << 12
        | 1 << 13
        | 1 << 15
        | 1 << 19
        | 1 << 22
        | 1 << 23
        | 1 << 24
        | 1 << 27
        | 1 << 28
        | 1 << 29);
    *d &= !(1 << 7 | 1 << 12 | 1 << 14);
    *d |= 1 << 9;
    // Invariant TSC stays hidden: a guest then prefers the KVM clock, which survives a pause.
    table[7] = [0; 4];
    table[8] = [table[8][0], 0, 0, 0];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(leaf: u32, subleaf: u32) -> Leaf {
        match (leaf, subleaf) {
            (0, _) => [0x10, 1, 2, 3],
            (0x8000_0000, _) => [0x8000_001f, 1, 2, 3],
            (0xd, 0) => [0x207, 576, 832, 0],
            (0xd, 2) => [256, 576, 0, 0],
            _ => [u32::MAX; 4],
        }
    }

    fn ask(table: &Cpuid, leaf: u32, subleaf: u32) -> Leaf {
        table.get(leaf, subleaf, || true, || 7)
    }

    #[test]
    fn hides_what_is_not_virtualised() {
        let table = Cpuid::new(machine);
        assert_eq!(ask(&table, 0, 0), [0xd, 1, 2, 3]);
        let [_, b, c, d] = ask(&table, 1, 0);
        assert_eq!(b, 0x0001_ff00);
        assert_eq!(c & (1 << 3 | 1 << 5 | 1 << 17), 0);
        assert_eq!(c & (1 << 21 | 1 << 24 | 1 << 31), 1 << 21 | 1 << 24 | 1 << 31);
        assert_ne!(c & ECX1_OSXSAVE, 0);
        assert_eq!(table.get(1, 0, || false, || 1)[2] & ECX1_OSXSAVE, 0);
        assert_eq!(d & (1 << 12 | 1 << 28), 0);
        assert_eq!(ask(&table, 0x8000_0001, 0)[2] & 1 << 2, 0, "SVM");
        assert_eq!(ask(&table, 0x8000_0000, 0)[0], 0x8000_0008);
        assert_eq!(ask(&table, 0x8000_000a, 0), [0; 4]);
        assert_eq!(ask(&table, 0x1234_5678, 0), [0; 4]);
    }

    #[test]
    fn speaks_kvm() {
        let table = Cpuid::new(machine);
        let [a, b, c, d] = ask(&table, 0x4000_0000, 0);
        let mut name = std::vec::Vec::new();
        for word in [b, c, d] {
            name.extend(word.to_le_bytes());
        }
        assert_eq!((a, name.as_slice()), (0x4000_0001, &b"KVMKVMKVM\0\0\0"[..]));
        assert_eq!(ask(&table, 0x4000_0001, 0)[0] & 8, 8);
        assert_eq!(ask(&table, 0x4000_0100, 0), [0; 4]);
    }

    #[test]
    fn extended_state_sizes_follow_xcr0() {
        let table = Cpuid::new(machine);
        assert_eq!(table.get(0xd, 0, || true, || 3), [7, 576, 832, 0]);
        assert_eq!(table.get(0xd, 0, || true, || 7), [7, 832, 832, 0]);
        assert_eq!(table.xcr0_mask(), 7);
        assert_eq!(ask(&table, 0xd, 5), [0; 4]);
        assert_eq!(ask(&table, 0xb, 0), [0, 1, 0x100, 0]);
    }
}
