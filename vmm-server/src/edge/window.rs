//! The window on guest memory.
// UNSAFETY: guest memory is reached by address; the mem-server maps its pages on first touch.
#![expect(unsafe_code, reason = "guest memory is named by address")]

use core::sync::atomic::AtomicU64;

use protocol::startup::GUEST_WINDOW;
use vmm_server::guest_memory::{GuestMemory, OutOfRam, RamLayout};

/// Guest memory at [`GUEST_WINDOW`]. An access to a page that is not mapped faults, and the mem-server maps it.
#[derive(Debug)]
pub struct Window {
    layout: RamLayout,
}

impl Window {
    /// The window of a guest with `layout`.
    pub const fn new(layout: RamLayout) -> Self {
        Self { layout }
    }

    /// Address of a checked guest-physical address.
    #[inline(always)]
    fn address<T>(gpa: u64) -> *mut T {
        core::ptr::with_exposed_provenance_mut((GUEST_WINDOW + gpa) as usize)
    }

    /// A word of any alignment.
    #[inline(always)]
    fn load<T: Copy>(&self, gpa: u64) -> Result<T, OutOfRam> {
        self.check(gpa, size_of::<T>() as u64)?;
        // SAFETY: the range lies in the guest's RAM (checked), which the mem-server maps for this thread on demand for as
        // long as the server lives; no Rust object lies there; the guest's processor is not running while we are.
        Ok(unsafe { Self::address::<T>(gpa).read_unaligned() })
    }
}

impl GuestMemory for Window {
    #[inline(always)]
    fn layout(&self) -> RamLayout {
        self.layout
    }

    #[inline]
    fn read(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), OutOfRam> {
        self.check(gpa, buffer.len() as u64)?;
        // SAFETY: source as in `load`; the destination is a live slice, and the window holds no Rust object, so they
        // cannot overlap.
        unsafe {
            core::ptr::copy_nonoverlapping(
                Self::address::<u8>(gpa),
                buffer.as_mut_ptr(),
                buffer.len(),
            );
        }
        Ok(())
    }

    #[inline]
    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        self.check(gpa, data.len() as u64)?;
        // SAFETY: as in `read`, the other way round.
        unsafe {
            core::ptr::copy_nonoverlapping(data.as_ptr(), Self::address::<u8>(gpa), data.len());
        }
        Ok(())
    }

    #[inline(always)]
    fn read_u8(&self, gpa: u64) -> Result<u8, OutOfRam> {
        self.load(gpa)
    }

    #[inline]
    fn read_u16(&self, gpa: u64) -> Result<u16, OutOfRam> {
        self.load(gpa)
    }

    #[inline]
    fn read_u32(&self, gpa: u64) -> Result<u32, OutOfRam> {
        self.load(gpa)
    }

    #[inline]
    fn read_u64(&self, gpa: u64) -> Result<u64, OutOfRam> {
        self.load(gpa)
    }

    fn copy_to_shared(
        &self,
        gpa: u64,
        words: &[AtomicU64],
        offset: usize,
        len: usize,
    ) -> Result<(), OutOfRam> {
        self.check(gpa, len as u64)?;
        let Some(place) = shared(words, offset, len) else { return Err(OutOfRam { gpa }) };
        // SAFETY: source as in `load`; `shared` checked that the destination lies in the slice's memory, which is
        // shared with another server by atomics: the ring's protocol leaves this part to us until it is submitted.
        unsafe { core::ptr::copy_nonoverlapping(Self::address::<u8>(gpa), place, len) };
        Ok(())
    }

    fn copy_from_shared(
        &mut self,
        gpa: u64,
        words: &[AtomicU64],
        offset: usize,
        len: usize,
    ) -> Result<(), OutOfRam> {
        self.check(gpa, len as u64)?;
        let Some(place) = shared(words, offset, len) else { return Err(OutOfRam { gpa }) };
        // SAFETY: as in `copy_to_shared`; the other server is done with this part once it is completed, and should it
        // write all the same, the guest gets the bytes it wrote.
        unsafe { core::ptr::copy_nonoverlapping(place, Self::address::<u8>(gpa), len) };
        Ok(())
    }
}

/// Address of `len` bytes at byte `offset` of `words`, if they lie inside.
fn shared(words: &[AtomicU64], offset: usize, len: usize) -> Option<*mut u8> {
    let end = offset.checked_add(len)?;
    if end > size_of_val(words) {
        return None;
    }
    // Atomics may be written through a shared reference.
    Some(words.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset))
}
