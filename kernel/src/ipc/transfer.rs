//! Words and capabilities of a message, from thread to thread.

use abi::message::{FAST_MESSAGE_WORDS, MAX_EXTRA_CAPS, buffer_word};
use abi::syscall::register;
use abi::{CapRights, MessageInfo};

use crate::Kernel;
use crate::cap::raw::{Cap, Tag};
use crate::cap::{Slot, cspace, tree};
use crate::hw::Hw;
use crate::mem::window::Words;
use crate::mem::{PhysAddr, Ref};
use crate::object::endpoint::Endpoint;
use crate::object::tcb::{Tcb, tcb_slot};

/// Slots of the capabilities that travel with a message.
pub type ExtraCaps = [Option<Ref<Slot>>; MAX_EXTRA_CAPS];

/// Finds a thread's IPC buffer through the frame capability in its buffer slot.
#[inline]
#[must_use]
pub fn ipc_buffer(tcb: Ref<Tcb>, for_writing: bool) -> Option<Words> {
    let cap = tcb.slot(tcb_slot::BUFFER).cap.get();
    if !cap.is(Tag::Frame) {
        return None;
    }
    let frame = cap.unpack_frame();
    let needed = if for_writing { CapRights::READ_WRITE } else { CapRights::READ };
    if frame.is_device || !frame.rights.contains(needed) {
        return None;
    }
    let offset = tcb.ipc_buffer.get() & ((1 << frame.size.bits()) - 1);
    Some(Words(PhysAddr(frame.addr.0 + offset)))
}

/// Copies the words of a message; returns how many arrived.
#[inline]
pub fn copy_words(sender: Ref<Tcb>, receiver: Ref<Tcb>, length: u64) -> u64 {
    let length = length as usize;
    for number in 0..FAST_MESSAGE_WORDS.min(length) {
        receiver.set_mr(number, sender.mr(number));
    }
    if length <= FAST_MESSAGE_WORDS {
        return length as u64;
    }
    let (Some(from), Some(to)) = (ipc_buffer(sender, false), ipc_buffer(receiver, true)) else {
        return FAST_MESSAGE_WORDS as u64;
    };
    for word in FAST_MESSAGE_WORDS..length {
        to.set(buffer_word::MSG + word, from.get(buffer_word::MSG + word));
    }
    length as u64
}

impl<H: Hw> Kernel<H> {
    /// Carries the sender's message, or its fault, to the receiver.
    pub(crate) fn transfer(
        &mut self,
        sender: Ref<Tcb>,
        receiver: Ref<Tcb>,
        endpoint: Option<Ref<Endpoint>>,
        badge: u64,
        can_grant: bool,
    ) {
        let info = if !sender.has_fault.get() {
            let sent = MessageInfo(sender.reg(register::MESSAGE_INFO));
            let length = copy_words(sender, receiver, sent.length());
            let (unwrapped, count) = if can_grant && sent.extra_caps() > 0 {
                Self::transfer_caps(sender, receiver, endpoint, sent)
            } else {
                (0, 0)
            };
            MessageInfo::new(sent.label(), unwrapped, count, length)
        } else {
            self.fault_message(sender, receiver, sender.fault())
        };
        receiver.set_reg(register::MESSAGE_INFO, info.0);
        receiver.set_reg(register::BADGE, badge);
    }

    fn transfer_caps(
        sender: Ref<Tcb>,
        receiver: Ref<Tcb>,
        endpoint: Option<Ref<Endpoint>>,
        info: MessageInfo,
    ) -> (u64, u64) {
        let (Ok(caps), Some(buffer)) = (extra_caps(sender, info), ipc_buffer(receiver, true))
        else {
            return (0, 0);
        };
        let mut destination = receive_slot(receiver, buffer);
        let (mut unwrapped, mut count) = (0, 0);
        for (position, slot) in caps.iter().enumerate() {
            let Some(slot) = *slot else { break };
            match slot.unpack() {
                Cap::Endpoint { addr, badge, .. }
                    if endpoint.is_some_and(|endpoint| endpoint.addr() == addr) =>
                {
                    buffer.set(buffer_word::CAPS_OR_BADGES + position, badge);
                    unwrapped |= 1 << position;
                }
                cap => {
                    let Some(to) = destination.take() else { break };
                    match tree::derive(slot, cap) {
                        Ok(Cap::Null) | Err(_) => break,
                        Ok(cap) => tree::insert(cap, slot, to),
                    }
                }
            }
            count += 1;
        }
        (unwrapped, count)
    }
}

/// Finds the slots of the capabilities a thread sends along.
///
/// # Errors
/// The capability pointer that could not be followed, and why.
pub fn extra_caps(
    sender: Ref<Tcb>,
    info: MessageInfo,
) -> Result<ExtraCaps, (u64, abi::LookupFailure)> {
    let mut caps = [None; MAX_EXTRA_CAPS];
    let Some(buffer) = ipc_buffer(sender, false) else { return Ok(caps) };
    for (position, slot) in caps.iter_mut().enumerate().take(info.extra_caps() as usize) {
        let pointer = buffer.get(buffer_word::CAPS_OR_BADGES + position);
        match cspace::lookup(sender, pointer) {
            Ok(found) => *slot = Some(found),
            Err(failure) => return Err((pointer, failure)),
        }
    }
    Ok(caps)
}

fn receive_slot(receiver: Ref<Tcb>, buffer: Words) -> Option<Ref<Slot>> {
    let root = cspace::lookup(receiver, buffer.get(buffer_word::RECEIVE_CNODE)).ok()?;
    let slot = cspace::lookup_exact(
        root.cap.get(),
        buffer.get(buffer_word::RECEIVE_INDEX),
        buffer.get(buffer_word::RECEIVE_DEPTH),
        false,
    )
    .ok()?;
    slot.is_empty().then_some(slot)
}
