//! The thread's IPC buffer: words 4 and up of long messages, capabilities sent along.
// UNSAFETY: the buffer is one page registered by address and also written by the kernel.
#![expect(unsafe_code, reason = "the IPC buffer is shared with the kernel by address")]

use core::sync::atomic::{AtomicPtr, Ordering};

use abi::message::{MAX_EXTRA_CAPS, MAX_MESSAGE_WORDS};

/// Null before registration and while the buffer is lent: a use then faults, since page 0 is never mapped.
static BUFFER: AtomicPtr<abi::IpcBuffer> = AtomicPtr::new(core::ptr::null_mut());

/// Registers the thread's IPC buffer. One thread per program uses this crate's buffer.
///
/// # Safety
///
/// 1. `address` is the IPC buffer of this thread as the kernel knows it, mapped for good.
/// 2. Nothing else in the program refers to that memory, and no other thread uses this crate.
pub unsafe fn set_ipc_buffer(address: *mut abi::IpcBuffer) {
    BUFFER.store(address, Ordering::Relaxed);
}

#[inline(always)]
fn buffer() -> *mut abi::IpcBuffer {
    BUFFER.load(Ordering::Relaxed)
}

/// Reads message register `index` from the buffer (0 to 3 are only there if someone put them).
///
/// # Panics
///
/// If `index` is 120 or more.
#[inline(always)]
pub fn mr(index: usize) -> u64 {
    assert!(index < MAX_MESSAGE_WORDS);
    // SAFETY: the registered buffer is mapped for good (set_ipc_buffer 1); the index is inside `msg`; while a reference
    // to the buffer exists (with_ipc_buffer_mut) the pointer is null and the access faults instead of aliasing.
    unsafe { (&raw const (*buffer()).msg).cast::<u64>().add(index).read() }
}

/// Writes message register `index` of the buffer.
///
/// # Panics
///
/// If `index` is 120 or more.
#[inline(always)]
pub fn set_mr(index: usize, value: u64) {
    assert!(index < MAX_MESSAGE_WORDS);
    // SAFETY: as in `mr`.
    unsafe { (&raw mut (*buffer()).msg).cast::<u64>().add(index).write(value) }
}

/// Puts a capability pointer into outgoing place `index`.
///
/// # Panics
///
/// If `index` is 3 or more.
#[inline(always)]
pub fn set_cap(index: usize, cptr: u64) {
    assert!(index < MAX_EXTRA_CAPS);
    // SAFETY: as in `mr`.
    unsafe { (&raw mut (*buffer()).caps_or_badges).cast::<u64>().add(index).write(cptr) }
}

/// The buffer as bytes and words, lent by [`with_ipc_buffer`].
#[derive(Debug)]
pub struct IpcBuffer {
    inner: &'static mut abi::IpcBuffer,
}

impl IpcBuffer {
    /// All message words.
    pub const fn msg_regs(&self) -> &[u64; MAX_MESSAGE_WORDS] {
        &self.inner.msg
    }

    /// All message words.
    pub const fn msg_regs_mut(&mut self) -> &mut [u64; MAX_MESSAGE_WORDS] {
        &mut self.inner.msg
    }

    /// Badges of unwrapped capabilities, or outgoing capability pointers.
    pub const fn caps_or_badges(&self) -> &[u64; MAX_EXTRA_CAPS] {
        &self.inner.caps_or_badges
    }

    /// The message words from `first` on as bytes.
    pub fn msg_bytes(&self, first: usize) -> &[u8] {
        let words = &self.inner.msg[first.min(MAX_MESSAGE_WORDS)..];
        // SAFETY: initialised words seen as bytes, alignment 1, same length and lifetime.
        unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
    }

    /// The message words from `first` on as bytes.
    pub fn msg_bytes_mut(&mut self, first: usize) -> &mut [u8] {
        let words = &mut self.inner.msg[first.min(MAX_MESSAGE_WORDS)..];
        // SAFETY: as in msg_bytes; every byte pattern is a valid word.
        unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
    }

    /// Where the next received capability goes: root CNode, pointer and depth.
    pub const fn set_recv_slot(&mut self, slot: &crate::AbsoluteCPtr) {
        self.inner.receive_cnode = slot.root().bits();
        self.inner.receive_index = slot.path().bits();
        self.inner.receive_depth = slot.path().depth();
    }
}

struct Lent(*mut abi::IpcBuffer);

impl Drop for Lent {
    fn drop(&mut self) {
        BUFFER.store(self.0, Ordering::Relaxed);
    }
}

/// Lends the buffer for the time of `f`. Kernel calls that use the buffer are not possible inside `f`: they fault.
///
/// # Panics
///
/// If there is no buffer, or it is lent already.
pub fn with_ipc_buffer_mut<R>(f: impl FnOnce(&mut IpcBuffer) -> R) -> R {
    let lent = Lent(BUFFER.swap(core::ptr::null_mut(), Ordering::Relaxed));
    assert!(!lent.0.is_null(), "no IPC buffer, or it is lent");
    // SAFETY: mapped for good and private to this thread (set_ipc_buffer 1 and 2); the null pointer left behind excludes
    // a second reference; the lifetime ends with `f`, which takes it by a higher-ranked borrow.
    let mut buffer = IpcBuffer { inner: unsafe { &mut *lent.0 } };
    f(&mut buffer)
}

/// Lends the buffer for reading for the time of `f`.
///
/// # Panics
///
/// If the buffer is lent already.
pub fn with_ipc_buffer<R>(f: impl FnOnce(&IpcBuffer) -> R) -> R {
    with_ipc_buffer_mut(|buffer| f(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_are_the_same_memory() {
        let memory = Box::leak(Box::new(abi::IpcBuffer {
            tag: 0,
            msg: [0; 120],
            user_data: 0,
            caps_or_badges: [0; 3],
            receive_cnode: 0,
            receive_index: 0,
            receive_depth: 0,
        }));
        // SAFETY: leaked memory used by this test alone; no kernel takes part.
        unsafe { set_ipc_buffer(memory) };
        set_mr(5, 0x0102);
        let byte = with_ipc_buffer(|buffer| buffer.msg_bytes(5)[0]);
        assert_eq!(byte, 2);
        with_ipc_buffer_mut(|buffer| buffer.msg_bytes_mut(6)[1] = 1);
        assert_eq!(mr(6), 0x100);
    }
}
