//! Message information, badges, rights, CNode data and mapping attributes.

use abi::message;
use abi::object::vm_attribute;

/// The word that names the sender of a message or the signals received.
pub type Badge = u64;

/// Label, counts of words and capabilities of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageInfo(message::MessageInfo);

impl MessageInfo {
    /// Makes one.
    #[inline]
    pub const fn new(label: u64, caps_unwrapped: u64, extra_caps: u64, length: u64) -> Self {
        Self(message::MessageInfo::new(label, caps_unwrapped, extra_caps, length))
    }

    /// From the register.
    #[inline]
    pub const fn from_word(word: u64) -> Self {
        Self(message::MessageInfo(word))
    }

    /// For the register.
    #[inline]
    pub const fn into_word(self) -> u64 {
        self.0.0
    }

    /// What is asked or answered.
    #[inline]
    pub const fn label(self) -> u64 {
        self.0.label()
    }

    /// Which received capabilities came as badges.
    #[inline]
    pub const fn caps_unwrapped(self) -> u64 {
        self.0.caps_unwrapped()
    }

    /// Number of capabilities.
    #[inline]
    pub const fn extra_caps(self) -> u64 {
        self.0.extra_caps()
    }

    /// Number of words, at most 120.
    #[inline]
    pub const fn length(self) -> u64 {
        self.0.length()
    }
}

/// Builds a [`MessageInfo`]; whatever is not named is zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageInfoBuilder {
    label: u64,
    caps_unwrapped: u64,
    extra_caps: u64,
    length: u64,
}

impl MessageInfoBuilder {
    /// Sets the label.
    #[inline]
    pub const fn label(mut self, label: u64) -> Self {
        self.label = label;
        self
    }

    /// Sets which capabilities are unwrapped.
    #[inline]
    pub const fn caps_unwrapped(mut self, bits: u64) -> Self {
        self.caps_unwrapped = bits;
        self
    }

    /// Sets the number of capabilities.
    #[inline]
    pub const fn extra_caps(mut self, count: u64) -> Self {
        self.extra_caps = count;
        self
    }

    /// Sets the number of words.
    #[inline]
    pub const fn length(mut self, words: u64) -> Self {
        self.length = words;
        self
    }

    /// The result.
    #[inline]
    pub const fn build(self) -> MessageInfo {
        MessageInfo::new(self.label, self.caps_unwrapped, self.extra_caps, self.length)
    }
}

/// What a capability allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapRights(message::CapRights);

impl CapRights {
    /// For the register.
    #[inline]
    pub const fn into_word(self) -> u64 {
        self.0.0
    }

    /// Everything.
    #[inline]
    pub const fn all() -> Self {
        Self(message::CapRights::ALL)
    }

    /// Nothing.
    #[inline]
    pub const fn none() -> Self {
        Self(message::CapRights::NONE)
    }

    /// Read.
    #[inline]
    pub const fn read_only() -> Self {
        Self(message::CapRights::READ)
    }

    /// Write.
    #[inline]
    pub const fn write_only() -> Self {
        Self(message::CapRights::WRITE)
    }

    /// Read and write.
    #[inline]
    pub const fn read_write() -> Self {
        Self(message::CapRights::READ_WRITE)
    }
}

/// Builds [`CapRights`] from nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapRightsBuilder(u64);

impl CapRightsBuilder {
    /// May send and be answered.
    pub const fn send() -> CapRights {
        CapRights(message::CapRights(
            message::CapRights::WRITE.0 | message::CapRights::GRANT_REPLY.0,
        ))
    }

    const fn with(self, right: message::CapRights, is_given: bool) -> Self {
        if is_given { Self(self.0 | right.0) } else { Self(self.0 & !right.0) }
    }

    /// May be answered.
    pub const fn grant_reply(self, is_given: bool) -> Self {
        self.with(message::CapRights::GRANT_REPLY, is_given)
    }

    /// May send capabilities along.
    pub const fn grant(self, is_given: bool) -> Self {
        self.with(message::CapRights::GRANT, is_given)
    }

    /// May receive, wait, read.
    pub const fn read(self, is_given: bool) -> Self {
        self.with(message::CapRights::READ, is_given)
    }

    /// May send, signal, write.
    pub const fn write(self, is_given: bool) -> Self {
        self.with(message::CapRights::WRITE, is_given)
    }

    /// The result.
    pub const fn build(self) -> CapRights {
        CapRights(message::CapRights(self.0))
    }
}

/// Guard of a CNode capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CNodeCapData(message::CNodeCapData);

impl CNodeCapData {
    /// A guard of `guard_size` bits.
    pub const fn new(guard: u64, guard_size: u64) -> Self {
        Self(message::CNodeCapData::new(guard, guard_size))
    }

    /// Skips `num_bits` zero bits.
    pub const fn skip(num_bits: u64) -> Self {
        Self::new(0, num_bits)
    }

    /// Skips the high bits of a full-depth pointer into a CNode of 2^`cnode_size_bits` slots.
    pub const fn skip_high_bits(cnode_size_bits: u64) -> Self {
        Self::skip(64 - cnode_size_bits)
    }

    /// For the register.
    pub const fn into_word(self) -> u64 {
        self.0.0
    }
}

/// Memory type of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmAttributes(u64);

impl VmAttributes {
    /// Write-back.
    pub const DEFAULT: Self = Self(vm_attribute::WRITE_BACK);
    /// No attribute set.
    pub const NONE: Self = Self(0);
    /// For device registers.
    pub const CACHE_DISABLED: Self = Self(vm_attribute::CACHE_DISABLED);
    /// Write-combining, for frame buffers.
    pub const WRITE_COMBINING: Self = Self(vm_attribute::WRITE_COMBINING);

    /// For the register.
    #[inline]
    pub const fn into_inner(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_have_the_interface_bits() {
        assert_eq!(CapRights::all().into_word(), 15);
        assert_eq!(CapRights::read_write().into_word(), 3);
        let rights = CapRightsBuilder::default().write(true).grant_reply(true).build();
        assert_eq!(rights.into_word(), 9);
        assert_eq!(CNodeCapData::skip_high_bits(12).into_word(), 52);
    }
}
