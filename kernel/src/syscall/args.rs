//! Arguments and results of an invocation.

use abi::MessageInfo;
use abi::message::{FAST_MESSAGE_WORDS, buffer_word};
use abi::syscall::register;

use super::{Failure, Phase};
use crate::cap::Slot;
use crate::cap::cspace;
use crate::cap::raw::{Cap, Tag};
use crate::ipc::transfer::{ExtraCaps, ipc_buffer};
use crate::mem::Ref;
use crate::mem::window::Words;
use crate::object::tcb::Tcb;

/// Words an invocation answers with, or why it was refused.
pub type Outcome = Result<u64, Failure>;

/// One invocation's caller, words and capabilities.
pub struct Args {
    /// The invoking thread.
    pub tcb: Ref<Tcb>,
    /// Label of the message.
    pub label: u64,
    /// Number of words.
    pub length: u64,
    /// Slots of the capabilities sent along.
    pub caps: ExtraCaps,
    pub(crate) phase: Phase,
    buffer: Option<Words>,
}

impl Args {
    /// Reads the message of the thread's registers.
    #[inline]
    pub(crate) fn new(tcb: Ref<Tcb>, info: MessageInfo, caps: ExtraCaps, phase: Phase) -> Self {
        let mut length = info.length();
        let mut buffer = None;
        if length > FAST_MESSAGE_WORDS as u64 {
            buffer = ipc_buffer(tcb, false);
            if buffer.is_none() {
                length = FAST_MESSAGE_WORDS as u64;
            }
        }
        Self { tcb, label: info.label(), length, caps, phase, buffer }
    }

    /// Checks that at least `count` words came.
    ///
    /// # Errors
    /// Truncated.
    #[inline]
    pub fn need(&self, count: u64) -> Result<(), Failure> {
        if self.length < count { Err(Failure::Truncated) } else { Ok(()) }
    }

    /// Reads word `number`, which [`Args::need`] has checked; 0 where it is missing.
    #[inline]
    #[must_use]
    pub fn word(&self, number: usize) -> u64 {
        if number < FAST_MESSAGE_WORDS {
            self.tcb.mr(number)
        } else {
            self.buffer.map_or(0, |buffer| buffer.get(buffer_word::MSG + number))
        }
    }

    /// Returns the slot of capability `number`.
    ///
    /// # Errors
    /// Truncated.
    #[inline]
    pub fn cap(&self, number: usize) -> Result<Ref<Slot>, Failure> {
        self.caps.get(number).copied().flatten().ok_or(Failure::Truncated)
    }

    /// Finds the empty slot that words `index` and `depth` name under capability `root`.
    ///
    /// # Errors
    /// FailedLookup, RangeError or DeleteFirst.
    pub fn empty_slot(&self, root: usize, index: u64, depth: u64) -> Result<Ref<Slot>, Failure> {
        let slot = cspace::lookup_exact(self.cap(root)?.cap.get(), index, depth, false)?;
        if slot.is_empty() { Ok(slot) } else { Err(Failure::DeleteFirst) }
    }

    /// Returns the thread behind capability `number`, whose MCP bounds what may be given.
    ///
    /// # Errors
    /// Truncated or InvalidCapability with `number + 1`.
    pub fn thread(&self, number: usize) -> Result<Ref<Tcb>, Failure> {
        match self.cap(number)?.unpack() {
            Cap::Thread { addr } => Ok(Ref::at(addr)),
            _ => Err(Failure::InvalidCapability(number as u64 + 1)),
        }
    }

    /// Tells whether capability `number` is there and of a type.
    #[must_use]
    pub fn is_cap(&self, number: usize, tag: Tag) -> bool {
        self.cap(number).is_ok_and(|slot| slot.cap.get().is(tag))
    }

    /// Writes result word `number`; only a Call gets one.
    #[inline]
    pub fn answer(&self, number: usize, value: u64) {
        if !self.phase.is_call {
            return;
        }
        if number < FAST_MESSAGE_WORDS {
            self.tcb.set_mr(number, value);
        } else if let Some(buffer) = ipc_buffer(self.tcb, true) {
            buffer.set(buffer_word::MSG + number, value);
        }
    }
}

/// Writes the answer to a refused Call.
pub fn answer_failure(tcb: Ref<Tcb>, failure: Failure) {
    use abi::Error;
    let mut words = [0u64; 5];
    let (error, count) = match failure {
        Failure::InvalidArgument(number) => {
            words[0] = number;
            (Error::InvalidArgument, 1)
        }
        Failure::InvalidCapability(number) => {
            words[0] = number;
            (Error::InvalidCapability, 1)
        }
        Failure::IllegalOperation => (Error::IllegalOperation, 0),
        Failure::Range(least, greatest) => {
            words[0] = least;
            words[1] = greatest;
            (Error::RangeError, 2)
        }
        Failure::Alignment => (Error::AlignmentError, 0),
        Failure::Lookup { is_source, failure } => {
            let (lookup, count) = failure.words();
            words[0] = u64::from(is_source);
            words[1..].copy_from_slice(&lookup);
            (Error::FailedLookup, 1 + count)
        }
        Failure::Truncated => (Error::TruncatedMessage, 0),
        Failure::DeleteFirst => (Error::DeleteFirst, 0),
        Failure::RevokeFirst => (Error::RevokeFirst, 0),
        Failure::NotEnoughMemory(left) => {
            words[0] = left;
            (Error::NotEnoughMemory, 1)
        }
        Failure::Preempted | Failure::Blocked => (Error::NoError, 0),
    };
    let mut message = crate::ipc::fault::MessageWriter::new(tcb);
    for word in words.iter().take(count) {
        message.push(*word);
    }
    tcb.set_reg(register::BADGE, 0);
    tcb.set_reg(register::MESSAGE_INFO, MessageInfo::new(error as u64, 0, 0, message.length()).0);
}
