//! Message information, rights, CNode data and the IPC buffer: bit layouts.

/// Most words of a message.
pub const MAX_MESSAGE_WORDS: usize = 120;
/// Most capabilities sent with a message.
pub const MAX_EXTRA_CAPS: usize = 3;
/// Words of a message that travel in registers.
pub const FAST_MESSAGE_WORDS: usize = 4;
/// Size and alignment of an IPC buffer.
pub const IPC_BUFFER_BYTES: u64 = 1024;

/// length `[6:0]`, extraCaps `[8:7]`, capsUnwrapped `[11:9]`, label `[63:12]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct MessageInfo(pub u64);

impl MessageInfo {
    /// Makes one; values too large for their field are cut.
    #[inline]
    #[must_use]
    pub const fn new(label: u64, caps_unwrapped: u64, extra_caps: u64, length: u64) -> Self {
        Self(label << 12 | (caps_unwrapped & 7) << 9 | (extra_caps & 3) << 7 | (length & 0x7f))
    }

    /// Tells the operation or error.
    #[inline]
    #[must_use]
    pub const fn label(self) -> u64 {
        self.0 >> 12
    }

    /// Tells which of the received capabilities came as badges, one bit each.
    #[inline]
    #[must_use]
    pub const fn caps_unwrapped(self) -> u64 {
        self.0 >> 9 & 7
    }

    /// Tells the number of capabilities that travel along.
    #[inline]
    #[must_use]
    pub const fn extra_caps(self) -> u64 {
        self.0 >> 7 & 3
    }

    /// Tells the number of words, never above [`MAX_MESSAGE_WORDS`].
    #[inline]
    #[must_use]
    pub const fn length(self) -> u64 {
        let length = self.0 & 0x7f;
        if length > MAX_MESSAGE_WORDS as u64 { MAX_MESSAGE_WORDS as u64 } else { length }
    }
}

/// write bit 0, read bit 1, grant bit 2, grantReply bit 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct CapRights(pub u64);

impl CapRights {
    /// May send, signal, write.
    pub const WRITE: Self = Self(1);
    /// May receive, wait, read.
    pub const READ: Self = Self(2);
    /// May send capabilities along.
    pub const GRANT: Self = Self(4);
    /// May be answered.
    pub const GRANT_REPLY: Self = Self(8);
    /// Read and write.
    pub const READ_WRITE: Self = Self(3);
    /// Everything.
    pub const ALL: Self = Self(15);
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// Tells whether every right of `other` is here.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// guardSize `[5:0]`, guard `[63:6]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct CNodeCapData(pub u64);

impl CNodeCapData {
    /// Makes one.
    #[must_use]
    pub const fn new(guard: u64, guard_bits: u64) -> Self {
        Self(guard << 6 | (guard_bits & 63))
    }

    /// Tells the value the skipped address bits must have.
    #[inline]
    #[must_use]
    pub const fn guard(self) -> u64 {
        self.0 >> 6
    }

    /// Tells how many address bits are skipped.
    #[inline]
    #[must_use]
    pub const fn guard_bits(self) -> u64 {
        self.0 & 63
    }
}

/// The 1024 bytes a thread shares with the kernel for long messages and capability transfer.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(1024))]
pub struct IpcBuffer {
    /// Not used by the kernel.
    pub tag: u64,
    /// Message words; 0 to 3 travel in registers instead.
    pub msg: [u64; MAX_MESSAGE_WORDS],
    /// Not used by the kernel.
    pub user_data: u64,
    /// Outgoing capability pointers; incoming badges of unwrapped capabilities.
    pub caps_or_badges: [u64; MAX_EXTRA_CAPS],
    /// Root of the receive slot.
    pub receive_cnode: u64,
    /// Capability pointer of the receive slot.
    pub receive_index: u64,
    /// Depth of the receive slot.
    pub receive_depth: u64,
}

/// Word positions inside an IPC buffer.
pub mod buffer_word {
    /// First message word.
    pub const MSG: usize = 1;
    /// First outgoing capability pointer or incoming badge.
    pub const CAPS_OR_BADGES: usize = 122;
    /// Root of the receive slot.
    pub const RECEIVE_CNODE: usize = 125;
    /// Capability pointer of the receive slot.
    pub const RECEIVE_INDEX: usize = 126;
    /// Depth of the receive slot.
    pub const RECEIVE_DEPTH: usize = 127;
}

const _: () = {
    assert!(size_of::<IpcBuffer>() == 1024);
    assert!(core::mem::offset_of!(IpcBuffer, msg) == 8 * buffer_word::MSG);
    assert!(core::mem::offset_of!(IpcBuffer, caps_or_badges) == 8 * buffer_word::CAPS_OR_BADGES);
    assert!(core::mem::offset_of!(IpcBuffer, receive_cnode) == 8 * buffer_word::RECEIVE_CNODE);
    assert!(core::mem::offset_of!(IpcBuffer, receive_index) == 8 * buffer_word::RECEIVE_INDEX);
    assert!(core::mem::offset_of!(IpcBuffer, receive_depth) == 8 * buffer_word::RECEIVE_DEPTH);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_info_fields_do_not_overlap() {
        let info = MessageInfo::new(0xabc, 5, 2, 120);
        assert_eq!(
            (info.label(), info.caps_unwrapped(), info.extra_caps(), info.length()),
            (0xabc, 5, 2, 120)
        );
        assert_eq!(MessageInfo(127).length(), 120);
    }

    #[test]
    fn cnode_data_keeps_guard_and_size() {
        let data = CNodeCapData::new(0x1234, 58);
        assert_eq!((data.guard(), data.guard_bits()), (0x1234, 58));
    }
}
