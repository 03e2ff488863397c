//! Shape of the root-task's capability space: a top CNode over the initial one, and over one more CNode per VM.
//!
//! The initial CNode keeps its slot numbers, since it is space 0. A VM that is being loaded has a capability for each page
//! of its kernel and modules; they lie in a CNode of the VM's own (space 1 and on), made as large as they need and gone
//! with them. However large the images are and however many VMs load at once, the initial CNode does not fill up.

use protocol::units::{MAX_VMS, VmId};

/// Bits of a pointer that choose the space.
pub const TOP_BITS: u64 = 5;
/// Bits of a pointer that choose the slot in its space.
pub const SLOT_BITS: u64 = 32;
/// Bits the top CNode's guard takes off a pointer.
pub const TOP_GUARD: u64 = 64 - TOP_BITS - SLOT_BITS;

const _: () = assert!(MAX_VMS < 1 << TOP_BITS);

/// The space of what a VM is loaded from.
pub const fn of_vm(vm: VmId) -> u64 {
    1 + vm.0 as u64
}

/// Pointer to a slot of a space.
pub const fn pointer(space: u64, slot: u64) -> u64 {
    space << SLOT_BITS | slot
}

/// Bits of the guard in front of a space's CNode of 2^`radix` slots.
pub const fn guard(radix: u64) -> u64 {
    SLOT_BITS - radix
}

/// Size of the CNode, log2, for so many capabilities.
pub fn radix(count: u64) -> u64 {
    u64::from(count.max(2).next_power_of_two().ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of a pointer: guards must be zero bits, then the index of each CNode.
    fn look_up(pointer: u64, radix_of: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
        let high = pointer >> (64 - TOP_GUARD);
        let space = pointer >> SLOT_BITS & ((1 << TOP_BITS) - 1);
        let rest = pointer & ((1 << SLOT_BITS) - 1);
        let radix = radix_of(space);
        (high == 0 && rest >> radix == 0).then_some((space, rest))
    }

    #[test]
    fn plain_numbers_are_the_initial_slots() {
        let radix_of = |space| if space == 0 { 14 } else { 12 };
        for number in [1, 2, 77, (1 << 14) - 1] {
            assert_eq!(look_up(number, radix_of), Some((0, number)));
        }
        assert_eq!(look_up(1 << 14, radix_of), None);
    }

    #[test]
    fn every_page_of_every_vm_has_a_pointer_of_its_own() {
        // 16 VMs of 40 MiB of kernel and initrd each: 160 times what the initial CNode has free.
        let pages = (40 << 20) / 4096;
        assert_eq!(1 << radix(pages), 16384);
        for vm in (0..MAX_VMS as u16).map(VmId) {
            for slot in [0, 1, pages - 1] {
                let found = look_up(pointer(of_vm(vm), slot), |_| radix(pages));
                assert_eq!(found, Some((of_vm(vm), slot)));
            }
        }
    }

    #[test]
    fn a_guard_fills_what_a_small_cnode_leaves() {
        for count in [0, 1, 2, 3, 4096, 4097] {
            assert!(1u64 << radix(count) >= count);
            assert_eq!(TOP_GUARD + TOP_BITS + guard(radix(count)) + radix(count), 64);
        }
    }
}
