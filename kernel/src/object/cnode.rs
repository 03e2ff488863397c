//! CNode: copy, mint, move, mutate, rotate, delete, revoke, cancel badged sends.

use abi::{CapRights, Label, LookupFailure};

use crate::Kernel;
use crate::cap::raw::Cap;
use crate::cap::{Slot, cspace, tree};
use crate::hw::Hw;
use crate::mem::Ref;
use crate::syscall::Failure;
use crate::syscall::args::{Args, Outcome};

fn source_missing(depth: u64) -> Failure {
    Failure::Lookup {
        is_source: true,
        failure: LookupFailure::MissingCapability { bits_left: depth },
    }
}

impl<H: Hw> Kernel<H> {
    pub(crate) fn decode_cnode(&mut self, node: Ref<Slot>, args: &Args) -> Outcome {
        let root = node.cap.get();
        let Some(label) = Label::from_number(args.label).filter(|label| {
            (Label::CNodeRevoke as u64..=Label::CNodeRotate as u64).contains(&(*label as u64))
        }) else {
            return Err(Failure::IllegalOperation);
        };
        args.need(2)?;
        let slot = cspace::lookup_exact(root, args.word(0), args.word(1), false)?;
        match label {
            Label::CNodeRevoke => self.revoke(slot)?,
            Label::CNodeDelete => self.delete(slot)?,
            Label::CNodeCancelBadgedSends => {
                let Cap::Endpoint { addr, badge, rights: CapRights::ALL } = slot.unpack() else {
                    return Err(Failure::IllegalOperation);
                };
                if badge != 0 {
                    self.cancel_badged_sends(Ref::at(addr), badge);
                }
            }
            Label::CNodeRotate => return rotate(slot, args),
            _ => return copy_or_move(label, slot, args),
        }
        Ok(0)
    }
}

fn copy_or_move(label: Label, destination: Ref<Slot>, args: &Args) -> Outcome {
    args.need(4)?;
    let source_root = args.cap(0)?;
    if !destination.is_empty() {
        return Err(Failure::DeleteFirst);
    }
    let depth = args.word(3);
    let source = cspace::lookup_exact(source_root.cap.get(), args.word(2), depth, true)?;
    if source.is_empty() {
        return Err(source_missing(depth));
    }
    let cap = source.unpack();
    match label {
        Label::CNodeCopy | Label::CNodeMint => {
            let is_mint = label == Label::CNodeMint;
            args.need(if is_mint { 6 } else { 5 })?;
            let mut masked = tree::mask_rights(cap, CapRights(args.word(4)));
            if is_mint {
                masked = tree::with_data(masked, args.word(5), false);
            }
            match tree::derive(source, masked)? {
                Cap::Null => return Err(Failure::IllegalOperation),
                cap => tree::insert(cap, source, destination),
            }
        }
        Label::CNodeMove => tree::relocate(cap, source, destination),
        _ => {
            args.need(5)?;
            match tree::with_data(cap, args.word(4), true) {
                Cap::Null => return Err(Failure::IllegalOperation),
                cap => tree::relocate(cap, source, destination),
            }
        }
    }
    Ok(0)
}

fn rotate(destination: Ref<Slot>, args: &Args) -> Outcome {
    args.need(8)?;
    let (pivot_root, source_root) = (args.cap(0)?, args.cap(1)?);
    let (pivot_data, pivot_depth) = (args.word(2), args.word(4));
    let (source_data, source_depth) = (args.word(5), args.word(7));
    let source = cspace::lookup_exact(source_root.cap.get(), args.word(6), source_depth, true)?;
    let pivot = cspace::lookup_exact(pivot_root.cap.get(), args.word(3), pivot_depth, true)?;
    if pivot == source || pivot == destination {
        return Err(Failure::IllegalOperation);
    }
    if source != destination && !destination.is_empty() {
        return Err(Failure::DeleteFirst);
    }
    if source.is_empty() {
        return Err(source_missing(source_depth));
    }
    if pivot.is_empty() {
        return Err(source_missing(pivot_depth));
    }
    let new_source = tree::with_data(source.unpack(), source_data, true);
    let new_pivot = tree::with_data(pivot.unpack(), pivot_data, true);
    if new_source == Cap::Null || new_pivot == Cap::Null {
        return Err(Failure::IllegalOperation);
    }
    if source == destination {
        tree::swap(new_source.pack(), source, new_pivot.pack(), pivot);
    } else {
        tree::relocate(new_pivot, pivot, destination);
        tree::relocate(new_source, source, pivot);
    }
    Ok(0)
}
