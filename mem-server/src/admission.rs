//! Admission control: a VM runs only if its guarantees can be kept whatever the others do.
//!
//! Memory must hold every VM's reservation and overhead; swap space must hold every VM's limit
//! less its reservation, unless the machine is not overcommitted at all.

use protocol::mem::{Controls, MemError, VmMemory};
use protocol::units::Pages;

/// What one VM asks to be kept for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Guaranteed pages.
    pub reservation: u64,
    /// Most pages.
    pub limit: u64,
    /// Pages of capabilities and tables.
    pub overhead: u64,
}

impl Claim {
    /// Swap space the claim needs.
    pub const fn swap(&self) -> u64 {
        self.limit.saturating_sub(self.reservation)
    }
}

/// What the machine has to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    /// Pages for reservations and overhead: all but the server's own and the reserve for copy-on-write breaks.
    pub memory: u64,
    /// Pages of swap space.
    pub swap: u64,
}

/// Checks controls by themselves.
///
/// # Errors
///
/// [`MemError::BadControls`].
pub fn check_controls(size: Pages, controls: &Controls) -> Result<(), MemError> {
    let ordered = controls.reservation <= controls.limit && controls.limit <= size;
    let tax = controls.tax.is_none_or(|tax| tax <= TAX_MAX);
    if ordered && tax && controls.shares > 0 && controls.limit.0 > 0 {
        Ok(())
    } else {
        Err(MemError::BadControls)
    }
}

/// Largest idle memory tax, in permille.
pub const TAX_MAX: u16 = protocol::mem::TAX_MAX;

/// Checks a size by itself.
///
/// # Errors
///
/// [`MemError::BadSize`].
pub fn check_size(memory: &VmMemory, most: u64) -> Result<(), MemError> {
    let size = memory.size;
    let whole = size.0.is_multiple_of(512) && memory.low.0.is_multiple_of(512);
    let split = memory.low <= size && memory.low <= protocol::mem::LOW_MAX;
    if size.0 == 0 || !whole || !split || size.0 > most {
        return Err(MemError::BadSize { size });
    }
    Ok(())
}

/// Whether `claim` fits beside `others`.
///
/// # Errors
///
/// [`MemError::NotEnoughMemory`] or [`MemError::NotEnoughSwap`] with the numbers.
pub fn admit(
    supply: Supply,
    others: impl Iterator<Item = Claim>,
    claim: Claim,
) -> Result<(), MemError> {
    let mut memory = 0u64;
    let mut swap = 0u64;
    let mut most = claim.limit.saturating_add(claim.overhead);
    for other in others {
        memory = memory.saturating_add(other.reservation.saturating_add(other.overhead));
        swap = swap.saturating_add(other.swap());
        most = most.saturating_add(other.limit.saturating_add(other.overhead));
    }
    let needed = claim.reservation.saturating_add(claim.overhead);
    let available = supply.memory.saturating_sub(memory);
    if needed > available {
        return Err(MemError::NotEnoughMemory {
            needed: Pages(needed),
            available: Pages(available),
        });
    }
    if most <= supply.memory {
        // Not overcommitted: nobody can ever be swapped out.
        return Ok(());
    }
    // Others that were admitted while nothing was overcommitted need their swap space from now on.
    let needed = claim.swap().saturating_add(swap);
    if needed > supply.swap {
        return Err(MemError::NotEnoughSwap {
            needed: Pages(needed),
            available: Pages(supply.swap),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> impl Strategy<Value = Claim> {
        (0u64..40, 0u64..40, 0u64..6).prop_map(|(a, b, overhead)| Claim {
            reservation: a.min(b),
            limit: a.max(b),
            overhead,
        })
    }

    /// Brute force: hands out the pages one by one.
    fn by_hand(supply: Supply, claims: &[Claim]) -> bool {
        let mut memory = vec![true; supply.memory as usize].into_iter();
        let mut swap = vec![true; supply.swap as usize].into_iter();
        let everything: u64 = claims.iter().map(|claim| claim.limit + claim.overhead).sum();
        for claim in claims {
            for _ in 0..claim.reservation + claim.overhead {
                if memory.next().is_none() {
                    return false;
                }
            }
            for _ in claim.reservation..claim.limit {
                if everything > supply.memory && swap.next().is_none() {
                    return false;
                }
            }
        }
        true
    }

    proptest! {
        #[test]
        fn admits_exactly_what_can_be_kept(
            memory in 0u64..120,
            swap in 0u64..120,
            claims in prop::collection::vec(claim(), 1..6),
        ) {
            let supply = Supply { memory, swap };
            let mut admitted: Vec<Claim> = Vec::new();
            for claim in claims {
                let verdict = admit(supply, admitted.iter().copied(), claim);
                let mut with = admitted.clone();
                with.push(claim);
                prop_assert_eq!(verdict.is_ok(), by_hand(supply, &with));
                match verdict {
                    Ok(()) => admitted = with,
                    Err(MemError::NotEnoughMemory { needed, available }
                        | MemError::NotEnoughSwap { needed, available }) => prop_assert!(needed > available),
                    Err(other) => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
