//! Nested address spaces: paging structures and frames below a nested root, and the flushes that go with them.
//!
//! The structures are capabilities mapped one into another, as in ordinary spaces; the format is `svm::npt`. A change that takes
//! something away gives the root a new epoch, so that every virtual CPU takes a new ASID at its next entry, and stops the
//! cores that run a guest of this root right now; when the operation ends no core can use the old translation.

use abi::LookupFailure;
use abi::vcpu::GPA_LIMIT;

use crate::Kernel;
use crate::arch::x86_64::svm::npt::{self, Level, PRESENT};
use crate::cap::raw::{FrameCap, FrameSize, Tag};
use crate::hw::Hw;
use crate::mem::PhysAddr;
use crate::mem::window;
use crate::object::tcb::ThreadState;
use crate::object::virt::vcpu_of;
use crate::syscall::Failure;

/// Bytes of a paging structure.
const TABLE_BYTES: u64 = 1 << abi::object::PAGE_BITS;

/// Returns the level of the entry that points to a nested paging structure of this type.
#[must_use]
pub const fn level_above(tag: Tag) -> Option<Level> {
    match tag {
        Tag::NptPdpt => Some(Level::Top),
        Tag::NptPd => Some(Level::Huge),
        Tag::NptPt => Some(Level::Large),
        _ => None,
    }
}

const fn level_of(size: FrameSize) -> Level {
    match size {
        FrameSize::Small => Level::Page,
        FrameSize::Large => Level::Large,
        FrameSize::Huge => Level::Huge,
    }
}

fn missing(bits_left: u32) -> Failure {
    Failure::Lookup {
        is_source: false,
        failure: LookupFailure::MissingCapability { bits_left: u64::from(bits_left) },
    }
}

impl<H: Hw> Kernel<H> {
    /// Finds a nested root by its ASID; `None`: deleted, or the ASID is not its.
    fn nested_root(&self, asid: u16) -> Option<PhysAddr> {
        match self.nested_of_asid(asid) {
            0 => None,
            root => Some(PhysAddr(root)),
        }
    }

    /// Makes every cached translation of a nested root useless.
    pub(crate) fn flush_nested(&mut self, root: PhysAddr) {
        self.virt.last_epoch += 1;
        npt::set_epoch(root, self.virt.last_epoch);
        self.stop_guests(root);
    }

    /// Stops the cores that are inside a guest of this root.
    fn stop_guests(&mut self, root: PhysAddr) {
        for core in 0..self.core_count {
            if core == self.core {
                continue;
            }
            let Some(tcb) = self.cores[core].current else { continue };
            if tcb.state.get() == ThreadState::RunningVm
                && vcpu_of(tcb).is_some_and(|vcpu| vcpu.root.get() == root)
            {
                self.hw.stall(core);
            }
        }
    }

    /// A nested root has just got its ASID.
    pub(crate) fn init_nested_root(&mut self, root: PhysAddr) {
        self.virt.last_epoch += 1;
        npt::set_birth(root, self.virt.last_epoch);
        npt::set_epoch(root, self.virt.last_epoch);
    }

    /// The last capability of a nested root is gone.
    pub(crate) fn finalise_nested_root(&mut self, root: PhysAddr, asid: u16) {
        self.delete_nested_asid(asid, root.0);
        if asid != 0 {
            self.nested_root_retired(root);
        }
    }

    /// A nested root has lost its ASID: no virtual CPU enters by it again.
    pub(crate) fn nested_root_retired(&mut self, root: PhysAddr) {
        self.virt.roots_deleted += 1;
        self.stop_guests(root);
    }

    /// Maps a paging structure into a nested space.
    ///
    /// # Errors
    /// A lower level is missing, or the place is taken (DeleteFirst).
    pub(crate) fn map_nested_table(
        root: PhysAddr,
        gpa: u64,
        above: Level,
        table: PhysAddr,
    ) -> Result<(), Failure> {
        let entry = npt::walk(root, gpa, above).map_err(missing)?;
        if entry.get() & PRESENT != 0 {
            return Err(Failure::DeleteFirst);
        }
        entry.set(npt::table(table));
        Ok(())
    }

    /// Unmaps a paging structure from the nested space with this ASID, if it is still there, and empties it: entries left in it would
    /// reappear wherever it is mapped next, behind the back of the frame capabilities.
    pub(crate) fn unmap_nested_table(
        &mut self,
        asid: u16,
        gpa: u64,
        above: Level,
        table: PhysAddr,
    ) {
        if let Some(root) = self.nested_root(asid)
            && let Ok(entry) = npt::walk(root, gpa, above)
            && entry.get() == npt::table(table) | entry.get() & npt::ACCESSED
        {
            entry.set(0);
            self.flush_nested(root);
        }
        window::zero(table, TABLE_BYTES);
    }

    /// Checks that a guest-physical address can hold a frame of this size.
    pub(crate) fn check_gpa(gpa: u64, bits: u32) -> Result<(), Failure> {
        if gpa >= GPA_LIMIT {
            return Err(Failure::InvalidArgument(0));
        }
        if gpa & ((1 << bits) - 1) != 0 {
            return Err(Failure::Alignment);
        }
        Ok(())
    }

    /// Maps a frame, or changes the rights and attributes of its mapping there (`is_same`).
    ///
    /// # Errors
    /// As [`Kernel::map_nested_table`]; InvalidArgument for rights (1) or attributes (2) that do not exist.
    pub(crate) fn map_nested_frame(
        &mut self,
        root: PhysAddr,
        gpa: u64,
        frame: &FrameCap,
        (read, write, attributes): (bool, bool, u64),
        is_same: bool,
    ) -> Result<(), Failure> {
        let level = level_of(frame.size);
        if !read {
            return Err(Failure::InvalidArgument(1));
        }
        let leaf = npt::leaf(frame.addr, level, read, write, attributes)
            .ok_or(Failure::InvalidArgument(2))?;
        let entry = npt::walk(root, gpa, level).map_err(missing)?;
        let old = entry.get();
        if old & PRESENT == 0 {
            entry.set(leaf);
            return Ok(());
        }
        if !is_same || !npt::is_leaf_of(old, level, frame.addr) {
            return Err(Failure::DeleteFirst);
        }
        // Accessed and dirty bits stay: what was seen was seen.
        entry.set(leaf | old & (npt::ACCESSED | npt::DIRTY));
        self.flush_nested(root);
        Ok(())
    }

    /// Unmaps a frame from the nested space it is mapped in, if it is still there.
    pub(crate) fn unmap_nested_frame(&mut self, frame: FrameCap) {
        let level = level_of(frame.size);
        if let Some(root) = self.nested_root(frame.mapping.asid)
            && let Ok(entry) = npt::walk(root, frame.mapping.vaddr, level)
            && npt::is_leaf_of(entry.get(), level, frame.addr)
        {
            entry.set(0);
            self.flush_nested(root);
        }
    }
}
