//! Lengths of intercepted instructions that the processor does not report: CPUID, RDMSR, HLT and their like.
//!
//! They have no operands, so only prefixes make their length vary, and no guest's usual code has any. One look at the
//! first byte tells; the translations of the pages such instructions lie on are kept. A kept translation may be
//! out of date, as table changes are not seen: what it shows then is no prefix either, unless two programs have
//! one such instruction at the same address under the same tables, once with and once without a prefix.

use crate::emulate::walk::{Access, Paging, translate};
use crate::guest_memory::GuestMemory;
use crate::mmio::read_code;
use crate::vmm::{Frame, Host, Vmm, Words};
use abi::vcpu::{control, field, word};

/// Where a code page with intercepted instructions lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodePage {
    /// Linear address of the page; 1, which is none, if nothing is known.
    linear: u64,
    /// Root of the tables it was found by.
    cr3: u64,
    /// Guest-physical address.
    gpa: u64,
}

/// Pages kept: a kernel has its few such instructions on several, and uses them in turn.
const PAGES: usize = 16;

/// Code pages of intercepted instructions, each at one place only.
#[derive(Clone, Debug)]
pub(crate) struct CodePages([CodePage; PAGES]);

impl CodePages {
    pub(crate) const fn new() -> Self {
        Self([CodePage { linear: 1, cr3: 0, gpa: 0 }; PAGES])
    }

    #[inline(always)]
    const fn place(linear: u64, cr3: u64) -> usize {
        ((linear ^ cr3) >> 12) as usize % PAGES
    }

    /// Guest-physical address of the instruction at `linear` under `cr3`, as far as is known.
    #[inline(always)]
    fn find(&self, linear: u64, cr3: u64) -> Option<u64> {
        let page = self.0.get(Self::place(linear, cr3))?;
        let is_known = page.linear == linear & !OFFSET && page.cr3 == cr3;
        is_known.then_some(page.gpa | linear & OFFSET)
    }

    fn keep(&mut self, linear: u64, cr3: u64, gpa: u64) {
        if let Some(page) = self.0.get_mut(Self::place(linear, cr3)) {
            *page = CodePage { linear: linear & !OFFSET, cr3, gpa: gpa & !OFFSET };
        }
    }
}

const OFFSET: u64 = 0xfff;

#[inline(always)]
fn linear_rip(frame: &Frame, words: &impl Words) -> u64 {
    if frame.control & control::LONG != 0 {
        frame.rip
    } else {
        words.get(word::CS_BASE).wrapping_add(frame.rip) & 0xffff_ffff
    }
}

/// Prefixes before the opcode whose first byte is `first`; `None` if it is not among `bytes`.
fn prefixes(bytes: &[u8], first: u8, is_long: bool) -> Option<usize> {
    let is_prefix = |byte: u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3)
            || (is_long && byte & 0xf0 == 0x40)
    };
    let at = bytes.iter().position(|&byte| !is_prefix(byte))?;
    (bytes.get(at) == Some(&first)).then_some(at)
}

impl Vmm {
    /// Moves past the intercepted instruction at RIP, whose opcode begins with `first` and has `plain` bytes.
    #[inline]
    pub(crate) fn step_over<M: GuestMemory, H: Host>(
        &mut self,
        frame: &mut Frame,
        words: &impl Words,
        memory: &mut M,
        host: &mut H,
        (first, plain): (u8, u64),
    ) {
        let linear = linear_rip(frame, words);
        let known = self.code.find(linear, words.get(word::CR3));
        let is_plain = known.is_some_and(|gpa| memory.read_u8(gpa).is_ok_and(|byte| byte == first));
        let more =
            if is_plain { 0 } else { self.count_prefixes(frame, words, memory, host, first) };
        self.advance_rip(frame, plain + more);
    }

    #[cold]
    fn count_prefixes<M: GuestMemory, H: Host>(
        &mut self,
        frame: &Frame,
        words: &impl Words,
        memory: &mut M,
        host: &mut H,
        first: u8,
    ) -> u64 {
        let mut bytes = [0; 16];
        let count = self.code_at(frame, words, memory, host, &mut bytes);
        let is_long = frame.control & control::LONG != 0;
        // Bytes that changed meanwhile are the guest's own race: the shortest form is taken.
        prefixes(bytes.get(..count).unwrap_or(&[]), first, is_long).unwrap_or(0) as u64
    }

    /// Code at RIP, by reading the state that an exit without decode words does not bring; how many bytes there are.
    pub(crate) fn code_at<M: GuestMemory, H: Host>(
        &mut self,
        frame: &Frame,
        words: &impl Words,
        memory: &mut M,
        host: &mut H,
        bytes: &mut [u8; 16],
    ) -> usize {
        let linear = linear_rip(frame, words);
        let paging = Paging {
            cr0: host.read_state(field::CR0),
            cr3: host.read_state(field::CR3),
            cr4: host.read_state(field::CR4),
            efer: host.read_state(field::EFER),
        };
        let Ok(gpa) = translate(memory, &paging, linear, Access::Fetch) else { return 0 };
        self.code.keep(linear, paging.cr3, gpa);
        read_code(memory, &paging, linear, bytes).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{CodePages, prefixes};

    #[test]
    fn pages_are_known_by_address_and_tables() {
        let mut pages = CodePages::new();
        for page in 0..16u64 {
            pages.keep(page << 12 | 7, 0, page << 20 | 7);
        }
        for page in 0..16u64 {
            assert_eq!(pages.find(page << 12 | 9, 0), Some(page << 20 | 9));
            assert_eq!(pages.find(page << 12 | 9, 1 << 12), None, "other tables");
            assert_eq!(pages.find((page + 16) << 12 | 9, 0), None, "another page");
        }
        // Whoever comes later has the place.
        pages.keep(16 << 12, 0, 1 << 30);
        assert_eq!((pages.find(0, 0), pages.find(16 << 12, 0)), (None, Some(1 << 30)));
    }

    #[test]
    fn prefixes_are_counted_up_to_the_opcode() {
        assert_eq!(prefixes(&[0x0f, 0xa2], 0x0f, true), Some(0));
        assert_eq!(prefixes(&[0x66, 0xf3, 0x48, 0x0f, 0xa2], 0x0f, true), Some(3));
        assert_eq!(prefixes(&[0x2e, 0xf4], 0xf4, false), Some(1));
    }

    #[test]
    fn what_is_no_prefix_is_not_counted() {
        // REX is INC or DEC outside 64-bit code.
        assert_eq!(prefixes(&[0x48, 0x0f, 0xa2], 0x0f, false), None);
        assert_eq!(prefixes(&[0x90, 0x0f, 0xa2], 0x0f, true), None);
        assert_eq!(prefixes(&[0x66; 15], 0x0f, true), None);
        assert_eq!(prefixes(&[], 0x0f, true), None);
    }
}
