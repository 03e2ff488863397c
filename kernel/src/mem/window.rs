//! The only place that turns a physical address into a reference.
//!
//! On the target all physical memory is mapped at [`WINDOW_BASE`]; on a host an [`Arena`] of the calling thread plays physical
//! memory. Every type reached through a [`Ref`] consists of `Cell`s and is valid for any bit pattern its typed memory can hold,
//! so the references handed out are shared ones and may coexist; the kernel's big lock keeps other cores away.
//!
//! Soundness rests on the kernel's typed-memory invariant: a `Ref<T>` is made only from a capability (or by boot code) that says
//! a `T` lives there, and untyped memory is given a new type only when no such capability is left.
// UNSAFETY: objects live in physical memory that the kernel types itself; some place must turn addresses into references.
#![expect(unsafe_code, reason = "the one window to physical memory")]

use core::cell::Cell;
use core::marker::PhantomData;
use core::num::NonZeroU64;
use core::ops::Deref;

use super::PhysAddr;

/// Virtual address of physical address 0 on the target.
pub const WINDOW_BASE: u64 = 0xffff_8000_0000_0000;

/// A copyable handle to a `T` in physical memory.
#[repr(transparent)]
pub struct Ref<T>(NonZeroU64, PhantomData<*const T>);

impl<T> Clone for Ref<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ref<T> {}
impl<T> PartialEq for Ref<T> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Ref<T> {}
impl<T> core::fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Ref({:#x})", self.0)
    }
}

/// What a handle holds: on the target the address in the window, so that following it costs nothing; on a host the physical address.
#[inline(always)]
const fn encode(addr: u64) -> u64 {
    if cfg!(target_os = "none") { addr | WINDOW_BASE } else { addr }
}

#[inline(always)]
const fn decode(held: u64) -> u64 {
    if cfg!(target_os = "none") { held & !WINDOW_BASE } else { held }
}

impl<T> Ref<T> {
    /// Makes a handle to the `T` at `addr`; see the module's invariant for who may. Address 0 holds no object.
    ///
    /// # Panics
    /// If `addr` is 0, on a host (on the target, where the check would be in every path, it leads to the page at physical 0).
    #[inline(always)]
    #[must_use]
    pub const fn at(addr: PhysAddr) -> Self {
        match NonZeroU64::new(encode(addr.0)) {
            Some(held) => Self(held, PhantomData),
            None => panic_null(),
        }
    }

    /// Like [`Ref::at`], with `None` for address 0.
    #[inline(always)]
    #[must_use]
    pub const fn maybe(addr: PhysAddr) -> Option<Self> {
        if addr.0 == 0 { None } else { Some(Self::at(addr)) }
    }

    /// Returns the physical address.
    #[inline(always)]
    #[must_use]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(decode(self.0.get()))
    }

    /// Returns the handle as a word, for packing with flags in its low bits (objects are at least 16-byte aligned).
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0.get()
    }

    /// Takes a handle back from a word of [`Ref::word`] without its flags; 0 is none.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        match NonZeroU64::new(word) {
            Some(held) => Some(Self(held, PhantomData)),
            None => None,
        }
    }

    /// Returns the virtual address in the window (target) or the arena (host).
    #[inline(always)]
    #[must_use]
    pub fn as_ptr(self) -> *const T {
        resolve::<T>(self.0.get())
    }

    /// Returns the handle of the element `index` places further on in an array of `T`.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, index: u64) -> Self {
        self.part(index.wrapping_mul(size_of::<T>() as u64))
    }

    /// Returns the handle of what lies `bytes` further on within the same object.
    #[inline(always)]
    #[must_use]
    pub const fn part<U>(self, bytes: u64) -> Ref<U> {
        let held = self.0.get().wrapping_add(bytes);
        // SAFETY: a handle holds an address below the end of the address space by more than any object's size, so the sum is not 0.
        Ref(unsafe { NonZeroU64::new_unchecked(held) }, PhantomData)
    }

    /// Reinterprets the handle; both types must describe the same typed memory.
    #[inline(always)]
    #[must_use]
    pub const fn cast<U>(self) -> Ref<U> {
        Ref(self.0, PhantomData)
    }
}

#[cold]
#[expect(clippy::panic, reason = "a broken kernel invariant, never input")]
const fn panic_null() -> ! {
    panic!("a handle to physical address 0")
}

impl<T> Deref for Ref<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        let pointer = resolve::<T>(self.0.get());
        // SAFETY: (1) the address is mapped for the kernel's lifetime (window) or the arena's (checked by `resolve` on a host);
        // (2) a `T` lives there by the typed-memory invariant; (3) `T` is made of `Cell`s, so a shared reference stays valid
        // whatever others do through theirs; (4) the big lock excludes other cores.
        unsafe { &*pointer }
    }
}

#[cfg(target_os = "none")]
#[inline(always)]
fn resolve<T>(held: u64) -> *const T {
    core::ptr::with_exposed_provenance(held as usize)
}

#[cfg(not(target_os = "none"))]
#[inline]
fn resolve<T>(addr: u64) -> *const T {
    host::resolve(addr, size_of::<T>() as u64, align_of::<T>() as u64) as *const T
}

/// Fills `bytes` bytes (a multiple of 8) at `addr` with zeros.
#[inline]
pub fn zero(addr: PhysAddr, bytes: u64) {
    if bytes == 0 {
        return;
    }
    #[cfg(not(target_os = "none"))]
    let pointer = host::resolve(addr.0, bytes, 8);
    #[cfg(target_os = "none")]
    let pointer: *mut u8 =
        core::ptr::with_exposed_provenance_mut(addr.0.wrapping_add(WINDOW_BASE) as usize);
    #[cfg(not(target_os = "none"))]
    // SAFETY: the range is inside the arena (checked by `resolve`) and holds no object any more.
    unsafe {
        core::ptr::write_bytes(pointer, 0, bytes as usize);
    }
    #[cfg(target_os = "none")]
    // SAFETY: the range is mapped and holds no object any more; `rep stosq` writes exactly `bytes / 8` words upwards, DF is clear
    // in the kernel.
    unsafe {
        core::arch::asm!("rep stosq", inout("rcx") bytes / 8 => _, inout("rdi") pointer => _,
            in("rax") 0u64, options(nostack, preserves_flags));
    }
}

/// A run of 64-bit words in physical memory, such as a page table, an IPC buffer or a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Words(pub PhysAddr);

impl Words {
    /// Returns the cell of word `index`.
    #[inline(always)]
    #[must_use]
    pub fn get(self, index: usize) -> u64 {
        Ref::<Cell<u64>>::at(PhysAddr(self.0.0.wrapping_add(index as u64 * 8))).get()
    }

    /// Writes word `index`.
    #[inline(always)]
    pub fn set(self, index: usize, value: u64) {
        Ref::<Cell<u64>>::at(PhysAddr(self.0.0.wrapping_add(index as u64 * 8))).set(value);
    }
}

#[cfg(not(target_os = "none"))]
pub use host::Arena;

#[cfg(not(target_os = "none"))]
mod host {
    use std::cell::Cell;

    thread_local! {
        static BASE: Cell<usize> = const { Cell::new(0) };
        static LEN: Cell<u64> = const { Cell::new(0) };
    }

    /// Physical memory of the calling thread: addresses from 0 up to its length. One at a time.
    pub struct Arena {
        pointer: *mut u8,
        layout: std::alloc::Layout,
    }

    impl Arena {
        /// Makes `bytes` of zeroed physical memory for this thread.
        ///
        /// # Panics
        /// If this thread has an arena already or memory is short.
        #[must_use]
        pub fn new(bytes: usize) -> Self {
            assert_eq!(BASE.get(), 0, "one arena per thread");
            #[expect(clippy::expect_used, reason = "host tests only")]
            let layout =
                std::alloc::Layout::from_size_align(bytes, 1 << 21).expect("an arena's size");
            // SAFETY: the layout has a size above 0, as every caller wants some memory.
            let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
            assert!(!pointer.is_null(), "no memory for the arena");
            BASE.set(pointer.expose_provenance());
            LEN.set(bytes as u64);
            Self { pointer, layout }
        }
    }

    impl Drop for Arena {
        fn drop(&mut self) {
            BASE.set(0);
            LEN.set(0);
            // SAFETY: allocated by `new` with this layout and given back once.
            unsafe { std::alloc::dealloc(self.pointer, self.layout) };
        }
    }

    pub(super) fn resolve(addr: u64, size: u64, align: u64) -> *mut u8 {
        let base = BASE.get();
        assert!(base != 0, "no arena on this thread");
        assert!(addr.is_multiple_of(align), "address {addr:#x} is not aligned to {align}");
        assert!(
            addr.checked_add(size).is_some_and(|end| end <= LEN.get()),
            "address {addr:#x} is outside physical memory"
        );
        std::ptr::with_exposed_provenance_mut(base + addr as usize)
    }
}
