//! Capability pointers: where a capability lies and what it is.

use core::fmt;
use core::marker::PhantomData;

use crate::cap;
use crate::cap_type::{self, CapType};

/// A capability pointer as the kernel takes it.
pub type CPtrBits = u64;

/// A slot of the calling thread's CSpace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CPtr(CPtrBits);

impl CPtr {
    /// Makes one.
    #[inline]
    pub const fn from_bits(bits: CPtrBits) -> Self {
        Self(bits)
    }

    /// The number.
    #[inline]
    pub const fn bits(self) -> CPtrBits {
        self.0
    }

    /// The capability of type `T` there.
    #[inline]
    pub const fn cast<T: CapType>(self) -> Cap<T> {
        Cap::from_bits(self.0)
    }
}

/// A capability pointer of which only the lowest `depth` bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CPtrWithDepth {
    bits: CPtrBits,
    depth: u64,
}

impl CPtrWithDepth {
    /// Makes one.
    #[inline]
    pub const fn from_bits_with_depth(bits: CPtrBits, depth: u64) -> Self {
        Self { bits, depth }
    }

    /// Points to the CNode itself, not into it.
    #[inline]
    pub const fn empty() -> Self {
        Self { bits: 0, depth: 0 }
    }

    /// The number.
    #[inline]
    pub const fn bits(self) -> CPtrBits {
        self.bits
    }

    /// How many of its bits count.
    #[inline]
    pub const fn depth(self) -> u64 {
        self.depth
    }
}

impl From<CPtr> for CPtrWithDepth {
    #[inline]
    fn from(cptr: CPtr) -> Self {
        Self { bits: cptr.0, depth: 64 }
    }
}

/// Anything that names a slot of a CSpace.
pub trait HasCPtrWithDepth {
    /// The slot.
    fn cptr_with_depth(self) -> CPtrWithDepth;
}

impl HasCPtrWithDepth for CPtrWithDepth {
    #[inline]
    fn cptr_with_depth(self) -> CPtrWithDepth {
        self
    }
}

impl HasCPtrWithDepth for CPtr {
    #[inline]
    fn cptr_with_depth(self) -> CPtrWithDepth {
        self.into()
    }
}

impl<T: CapType> HasCPtrWithDepth for Cap<T> {
    #[inline]
    fn cptr_with_depth(self) -> CPtrWithDepth {
        self.cptr().into()
    }
}

/// A capability of type `T` in a slot of the calling thread's CSpace.
///
/// The type is a claim: the kernel checks every invocation and answers with
/// [`crate::Error::InvalidCapability`] where it is wrong.
pub struct Cap<T> {
    cptr: CPtr,
    marker: PhantomData<T>,
}

impl<T> Clone for Cap<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Cap<T> {}

impl<T> PartialEq for Cap<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cptr == other.cptr
    }
}

impl<T> Eq for Cap<T> {}

impl<T: CapType> fmt::Debug for Cap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(T::NAME).field(&self.cptr.0).finish()
    }
}

impl<T: CapType> Cap<T> {
    /// The capability in slot `bits`.
    #[inline]
    pub const fn from_bits(bits: CPtrBits) -> Self {
        Self { cptr: CPtr(bits), marker: PhantomData }
    }

    /// Its slot.
    #[inline]
    pub const fn cptr(self) -> CPtr {
        self.cptr
    }

    /// The number of its slot.
    #[inline]
    pub const fn bits(self) -> CPtrBits {
        self.cptr.0
    }

    /// The same slot, taken for another type.
    #[inline]
    pub const fn cast<U: CapType>(self) -> Cap<U> {
        Cap::from_bits(self.cptr.0)
    }

    /// Forgets the type.
    #[inline]
    pub const fn upcast(self) -> cap::Unspecified {
        self.cast()
    }
}

impl Cap<cap_type::Unspecified> {
    /// Takes the slot for type `T`.
    #[inline]
    pub const fn downcast<T: CapType>(self) -> Cap<T> {
        self.cast()
    }
}

impl Cap<cap_type::CNode> {
    /// The slot `path` of this CNode, for CNode operations.
    #[inline]
    pub fn absolute_cptr(self, path: impl HasCPtrWithDepth) -> AbsoluteCPtr {
        AbsoluteCPtr { root: self, path: path.cptr_with_depth() }
    }

    /// Slot `bits` looked up with `depth` bits.
    #[inline]
    pub const fn absolute_cptr_from_bits_with_depth(
        self,
        bits: CPtrBits,
        depth: u64,
    ) -> AbsoluteCPtr {
        AbsoluteCPtr { root: self, path: CPtrWithDepth::from_bits_with_depth(bits, depth) }
    }

    /// The CNode itself, as the destination of a retype.
    #[inline]
    pub const fn absolute_cptr_for_self(self) -> AbsoluteCPtr {
        AbsoluteCPtr { root: self, path: CPtrWithDepth::empty() }
    }
}

/// A slot of a CNode: the root capability and the path below it.
#[derive(Clone, Copy, Debug)]
pub struct AbsoluteCPtr {
    root: cap::CNode,
    path: CPtrWithDepth,
}

impl AbsoluteCPtr {
    /// The CNode it is relative to.
    #[inline]
    pub const fn root(&self) -> cap::CNode {
        self.root
    }

    /// The path below the root.
    #[inline]
    pub const fn path(&self) -> CPtrWithDepth {
        self.path
    }
}

/// Slots from a first up to, not including, an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotRegion {
    start: CPtrBits,
    end: CPtrBits,
}

impl SlotRegion {
    /// Makes one.
    pub const fn new(start: CPtrBits, end: CPtrBits) -> Self {
        Self { start, end }
    }

    /// First slot.
    pub const fn start(self) -> CPtrBits {
        self.start
    }

    /// One past the last slot.
    pub const fn end(self) -> CPtrBits {
        self.end
    }

    /// Number of slots.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// No slot at all.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Slot `index` of the region, if it has that many.
    pub const fn index(self, index: u64) -> Option<CPtr> {
        if index < self.len() { Some(CPtr(self.start + index)) } else { None }
    }
}
