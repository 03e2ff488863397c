//! Capability space, page tables and kernel object memory of the VMs, over a few kernel calls.
//!
//! Slots are numbers of 24 bits: 12 bits choose a **slab** (a CNode of 4096 slots), 12 bits a slot in
//! it. Slab 0 is the CNode the server was started with. Each block has a slot for its untyped and one for its
//! 2 MiB frame; a block held for kernel objects is split into 16 **arenas** of 128 KiB instead. An
//! arena belongs to one VM and is either a slab or a row of 4 KiB tables; a VM's end is one revoke per arena. A VM with few
//! tables has a first slab of half the slots, and tables in the other half of that arena.
//!
//! Slot `index` of a VM's page slabs holds the 4 KiB capability that maps guest page `index`. The vmm-server's window is a
//! direct-mapped cache: page `index` may be mapped by window slot `index % 1024`.

use protocol::mem::VmMemory;
use protocol::units::{MAX_VMS, VmId};

use crate::mechanism::{Contents, Mechanism, MechanismError, Page};
use crate::page::{FRAME_BYTES, FRAMES_PER_BLOCK, Frame, REGION_WORDS};

/// A capability slot of the server.
pub type Slot = u64;

/// log2 of the slots of a slab.
pub const SLAB_BITS: u32 = 12;
/// log2 of the number of slabs.
pub const TOP_BITS: u32 = 12;
/// log2 of an arena's bytes: exactly one slab.
pub const ARENA_BITS: u32 = SLAB_BITS + 5;
const ARENAS_PER_BLOCK: u32 = 1 << (21 - ARENA_BITS);
const TABLES_PER_ARENA: u32 = 1 << (ARENA_BITS - 12);
const SLAB_SLOTS: u32 = 1 << SLAB_BITS;
const REGION_PAGES: u32 = FRAMES_PER_BLOCK;
/// Most 2 MiB regions of a VM.
pub const REGIONS_MAX: usize = 4096;
const PAGE_SLABS_MAX: usize = REGIONS_MAX * REGION_PAGES as usize / SLAB_SLOTS as usize;
/// Pages a vmm-server's window holds at most.
pub const WINDOW_PAGES: u32 = 1024;
/// log2 of the slots of a half slab.
pub const HALF_SLAB_BITS: u32 = SLAB_BITS - 1;
/// Tables that the arena of a half slab gives beside it.
const TABLES_BESIDE_HALF: u32 = TABLES_PER_ARENA / 2;
const NO_PAGE: u32 = u32::MAX;
const NOBODY: u8 = u8::MAX;

/// What arenas and untypeds become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Untyped memory of 2^bits bytes.
    Untyped(u32),
    /// A CNode of 2^[`SLAB_BITS`] slots.
    Slab,
    /// A CNode of 2^[`HALF_SLAB_BITS`] slots in place of a slab; slots above do not exist.
    HalfSlab,
    /// A 2 MiB frame.
    LargeFrame,
    /// Root of a nested address space.
    NestedRoot,
    /// A table of a nested address space.
    NestedTable(Level),
    /// A table of the vmm-server's address space.
    WindowTable(Level),
}

/// Which table of the three below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Covers 512 GiB.
    Pdpt,
    /// Covers 1 GiB.
    Directory,
    /// Covers 2 MiB.
    Table,
}

impl Level {
    const ALL: [Self; 3] = [Self::Pdpt, Self::Directory, Self::Table];
}

/// Kernel calls and access to frames. Errors are the kernel's numbers.
pub trait Kernel {
    /// Makes one object of `untyped` in slot `to`; for slabs `to` is the slab's number.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn retype(&mut self, untyped: Slot, object: Object, to: Slot) -> Result<(), u64>;
    /// Deletes the capability in a slot.
    fn delete(&mut self, slot: Slot);
    /// Deletes everything derived from the capability in a slot.
    fn revoke(&mut self, slot: Slot);
    /// Derives a 4 KiB frame capability from a block's, `offset` frames into it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn derive(&mut self, block: Slot, offset: u32, to: Slot) -> Result<(), u64>;
    /// Maps a frame into a nested space, or changes the right to write of that mapping.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn map_nested(&mut self, frame: Slot, root: Slot, gpa: u64, writable: bool) -> Result<(), u64>;
    /// Puts a table into a nested space.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn map_nested_table(
        &mut self,
        table: Slot,
        level: Level,
        root: Slot,
        gpa: u64,
    ) -> Result<(), u64>;
    /// Takes a table out of a nested space, and with it every page it maps.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn unmap_nested_table(&mut self, table: Slot, level: Level) -> Result<(), u64>;
    /// Makes a second capability of a block's 2 MiB frame: one maps one place.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn copy_block(&mut self, block: Slot, to: Slot) -> Result<(), u64>;
    /// Maps a 2 MiB frame, writable, into a nested space where no table is.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn map_nested_large(&mut self, frame: Slot, root: Slot, gpa: u64) -> Result<(), u64>;
    /// Maps a frame into the window of a vmm-server.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn map_window(&mut self, frame: Slot, vm: VmId, gpa: u64, writable: bool) -> Result<(), u64>;
    /// Puts a table into the vmm-server's address space where its window needs it; that it is there already is no error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn map_window_table(
        &mut self,
        table: Slot,
        level: Level,
        vm: VmId,
        gpa: u64,
    ) -> Result<(), u64>;
    /// Maps a block's frame into the server's own view of all frames.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn map_own(&mut self, frame: Slot, block: u32) -> Result<(), u64>;
    /// Makes `root` the nested space of the VM's virtual processors.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn enter_root(&mut self, vm: VmId, root: Slot) -> Result<(), u64>;
    /// Signals the vmm-server of a VM.
    fn signal_vmm(&mut self, vm: VmId);
    /// A clock to account work with.
    fn ticks(&mut self) -> u64;
    /// Reads and clears accessed bits of `pages` pages from `gpa` on. False if that is not possible.
    fn harvest(&mut self, root: Slot, gpa: u64, pages: u32, accessed: &mut [u64; 32]) -> bool;
    /// As [`Mechanism::swap_write`].
    fn swap_write(&mut self, _transfer: u32, _slot: u32, _page: Contents<'_>) -> bool {
        false
    }
    /// As [`Mechanism::swap_read`].
    fn swap_read(&mut self, _transfer: u32, _slot: u32, _frame: Frame) -> bool {
        false
    }

    /// Fills a frame with zeros.
    fn zero(&mut self, frame: Frame);
    /// Copies a frame.
    fn copy(&mut self, from: Frame, to: Frame);
    /// Whether a frame holds only zeros.
    fn is_zero(&mut self, frame: Frame) -> bool;
    /// Keyed hash of a frame.
    fn hash(&mut self, frame: Frame, key: u64) -> u64;
    /// Whether two frames are equal.
    fn equal(&mut self, a: Frame, b: Frame) -> bool;
    /// Reads a frame.
    fn load(&mut self, frame: Frame, bytes: &mut [u8; FRAME_BYTES]);
    /// Writes a frame.
    fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]);
}

/// A block held for kernel objects.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    free: u16,
    /// Arenas that wait for their owner to need them.
    kept: u16,
    held: bool,
    owners: [u8; ARENAS_PER_BLOCK as usize],
}

impl Hold {
    /// Not held.
    pub const NEW: Self = Self { free: 0, kept: 0, held: false, owners: [NOBODY; 16] };
}

/// Bookkeeping of one VM's spaces.
pub struct Space {
    open: bool,
    /// Slab with its tables' and window's capabilities.
    first: u32,
    /// It is a half slab.
    is_half: bool,
    /// Slots used for tables there.
    tables: u32,
    /// Arena that tables are made of, and how many it has given.
    arena: u32,
    arena_used: u32,
    /// Slab of each 4096 pages, 0 if none yet.
    slabs: [u16; PAGE_SLABS_MAX],
    /// Slot in its first slab of each region's nested table, 0 if there is none yet.
    region_tables: [u16; REGIONS_MAX],
    /// One bit per region: nested table in its place, window table there.
    nested: [u64; REGIONS_MAX / 64],
    window: [u64; REGIONS_MAX / 64],
    /// One bit per GiB.
    nested_directories: u64,
    window_directories: u64,
    /// Which page each window slot maps.
    pages: [u32; WINDOW_PAGES as usize],
}

impl Space {
    /// First slot of the window capabilities in the first slab; below are the tables.
    const fn window_first(&self) -> u32 {
        let slots = if self.is_half { 1 << HALF_SLAB_BITS } else { SLAB_SLOTS };
        slots - WINDOW_PAGES
    }

    /// Not open.
    pub const NEW: Self = Self {
        open: false,
        first: 0,
        is_half: false,
        tables: 0,
        arena: u32::MAX,
        arena_used: 0,
        slabs: [0; PAGE_SLABS_MAX],
        region_tables: [0; REGIONS_MAX],
        nested: [0; REGIONS_MAX / 64],
        window: [0; REGIONS_MAX / 64],
        nested_directories: 0,
        window_directories: 0,
        pages: [NO_PAGE; WINDOW_PAGES as usize],
    };
}

/// Numbers of the slabs that hold blocks' and arenas' capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    blocks: u32,
}

impl Layout {
    /// For this many blocks.
    pub const fn new(blocks: u32) -> Self {
        Self { blocks }
    }

    const fn block_slabs(self) -> u32 {
        self.blocks.div_ceil(SLAB_SLOTS)
    }

    const fn arena_slabs(self) -> u32 {
        (self.blocks * ARENAS_PER_BLOCK).div_ceil(SLAB_SLOTS)
    }

    /// Slabs 1..`fixed()` are made at start.
    pub const fn fixed(self) -> u32 {
        1 + 2 * self.block_slabs() + self.arena_slabs()
    }

    /// Slot of a block's untyped.
    pub const fn untyped(self, block: u32) -> Slot {
        ((1 << SLAB_BITS) + block) as Slot
    }

    /// Slot of a block's 2 MiB frame.
    pub const fn frame(self, block: u32) -> Slot {
        (((1 + self.block_slabs()) << SLAB_BITS) + block) as Slot
    }

    /// Slot of an arena's untyped.
    const fn arena(self, arena: u32) -> Slot {
        (((1 + 2 * self.block_slabs()) << SLAB_BITS) + arena) as Slot
    }
}

/// Capability spaces of all VMs.
pub struct Spaces<'a, K> {
    kernel: K,
    layout: Layout,
    holds: &'a mut [Hold],
    spaces: &'a mut [Space],
    /// One bit per slab of the top CNode in use.
    slabs: [u64; (1 << TOP_BITS) / 64],
    /// Arenas in use or kept.
    used: u32,
}

impl<'a, K: Kernel> Spaces<'a, K> {
    /// `holds` has one entry per block, `spaces` [`MAX_VMS`]; the fixed slabs of `layout` are made and filled.
    pub fn new(kernel: K, layout: Layout, holds: &'a mut [Hold], spaces: &'a mut [Space]) -> Self {
        let mut slabs = [0; (1 << TOP_BITS) / 64];
        for slab in 0..layout.fixed() {
            slabs[slab as usize / 64] |= 1 << (slab % 64);
        }
        Self { kernel, layout, holds, spaces, slabs, used: 0 }
    }

    /// The kernel calls.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Arenas in use or kept, in pages.
    pub const fn used_pages(&self) -> u64 {
        self.used as u64 * TABLES_PER_ARENA as u64
    }

    /// Bytes of the capability slots made for VMs.
    pub fn capability_bytes(&self) -> u64 {
        let slabs: u32 = self.slabs.iter().map(|word| word.count_ones()).sum();
        let halves = self.spaces.iter().filter(|space| space.open && space.is_half).count() as u64;
        (u64::from(slabs - self.layout.fixed()) << ARENA_BITS) - (halves << (ARENA_BITS - 1))
    }

    fn take_slab(&mut self) -> Result<u32, MechanismError> {
        let word = self.slabs.iter().position(|word| *word != u64::MAX);
        let word = word.ok_or(MechanismError::Unknown)?;
        let bit = self.slabs[word].trailing_ones();
        self.slabs[word] |= 1 << bit;
        Ok(word as u32 * 64 + bit)
    }

    fn drop_slab(&mut self, slab: u32) {
        self.slabs[slab as usize / 64] &= !(1 << (slab % 64));
    }

    /// An arena for a VM: one kept for it, or a free one.
    fn take_arena(&mut self, vm: VmId) -> Result<u32, MechanismError> {
        let kept = |hold: &Hold| {
            let own = |index: &u32| {
                hold.kept & 1 << index != 0 && hold.owners[*index as usize] == vm.0 as u8
            };
            (0..ARENAS_PER_BLOCK).find(own)
        };
        let mut holds = self.holds.iter().enumerate();
        match holds.find_map(|(block, hold)| Some((block, kept(hold)?))) {
            Some((block, index)) => {
                self.holds[block].kept &= !(1 << index);
                Ok(block as u32 * ARENAS_PER_BLOCK + index)
            }
            None => self.take_free_arena(vm),
        }
    }

    fn take_free_arena(&mut self, vm: VmId) -> Result<u32, MechanismError> {
        let block = self.holds.iter().position(|hold| hold.free != 0);
        let block = block.ok_or(MechanismError::NeedBlock)?;
        let hold = &mut self.holds[block];
        let index = hold.free.trailing_zeros();
        hold.free &= !(1 << index);
        hold.owners[index as usize] = vm.0 as u8;
        self.used += 1;
        Ok(block as u32 * ARENAS_PER_BLOCK + index)
    }

    fn drop_arena(&mut self, arena: u32) {
        self.kernel.revoke(self.layout.arena(arena));
        let hold = &mut self.holds[(arena / ARENAS_PER_BLOCK) as usize];
        hold.free |= 1 << (arena % ARENAS_PER_BLOCK);
        hold.kept &= !(1 << (arena % ARENAS_PER_BLOCK));
        hold.owners[(arena % ARENAS_PER_BLOCK) as usize] = NOBODY;
        self.used -= 1;
    }

    /// Makes a VM's first slab, and leaves what a half one does not need of its arena to the tables.
    fn make_first_slab(&mut self, vm: VmId, is_half: bool) -> Result<(), MechanismError> {
        let object = if is_half { Object::HalfSlab } else { Object::Slab };
        let (slab, arena) = self.make_slab(vm, object)?;
        let space = &mut self.spaces[vm.0 as usize];
        (space.first, space.is_half) = (slab, is_half);
        if is_half {
            (space.arena, space.arena_used) = (arena, TABLES_PER_ARENA - TABLES_BESIDE_HALF);
        }
        Ok(())
    }

    /// Makes a slab; answers its number and its arena.
    fn make_slab(&mut self, vm: VmId, object: Object) -> Result<(u32, u32), MechanismError> {
        let slab = self.take_slab()?;
        let arena = match self.take_arena(vm) {
            Ok(arena) => arena,
            Err(error) => {
                self.drop_slab(slab);
                return Err(error);
            }
        };
        match self.kernel.retype(self.layout.arena(arena), object, slab as Slot) {
            Ok(()) => Ok((slab, arena)),
            Err(error) => {
                self.drop_arena(arena);
                self.drop_slab(slab);
                Err(MechanismError::Kernel(error))
            }
        }
    }

    /// Makes a table object; answers its slot.
    fn make_table(&mut self, vm: VmId, object: Object) -> Result<Slot, MechanismError> {
        let space = &self.spaces[vm.0 as usize];
        if space.tables == space.window_first() {
            return Err(MechanismError::Unknown);
        }
        if space.arena == u32::MAX || space.arena_used == TABLES_PER_ARENA {
            let arena = self.take_arena(vm)?;
            let space = &mut self.spaces[vm.0 as usize];
            (space.arena, space.arena_used) = (arena, 0);
        }
        let space = &mut self.spaces[vm.0 as usize];
        let slot = ((space.first << SLAB_BITS) + space.tables) as Slot;
        let untyped = self.layout.arena(space.arena);
        self.kernel.retype(untyped, object, slot).map_err(MechanismError::Kernel)?;
        space.tables += 1;
        space.arena_used += 1;
        Ok(slot)
    }

    fn nested_root(&self, vm: VmId) -> Slot {
        // The root is the first table made.
        (self.spaces[vm.0 as usize].first << SLAB_BITS) as Slot
    }

    /// The nested table of a page's region: one taken out for a large page, or a new one.
    fn region_table(&mut self, page: Page) -> Result<Slot, MechanismError> {
        let at = page.vm.0 as usize;
        let region = (page.index / REGION_PAGES) as usize;
        let first = Slot::from(self.spaces[at].first) << SLAB_BITS;
        if self.spaces[at].region_tables[region] == 0 {
            let table = self.make_table(page.vm, Object::NestedTable(Level::Table))?;
            self.spaces[at].region_tables[region] = (table - first) as u16;
        }
        Ok(first + Slot::from(self.spaces[at].region_tables[region]))
    }

    /// Makes the nested tables above `page` that are missing.
    fn make_nested_tables(&mut self, page: Page) -> Result<(), MechanismError> {
        let region = page.index / REGION_PAGES;
        let gpa = page.gfn.gpa();
        let root = self.nested_root(page.vm);
        let (gib, gib_bit) = (gpa >> 30, 1u64 << ((gpa >> 30) % 64));
        if gib >= 64 {
            return Err(MechanismError::Unknown);
        }
        let levels = if self.spaces[page.vm.0 as usize].nested_directories & gib_bit == 0 {
            &[Level::Directory, Level::Table][..]
        } else {
            &[Level::Table][..]
        };
        for level in levels {
            let table = match level {
                Level::Table => self.region_table(page)?,
                _ => self.make_table(page.vm, Object::NestedTable(*level))?,
            };
            self.kernel
                .map_nested_table(table, *level, root, gpa)
                .map_err(MechanismError::Kernel)?;
            let space = &mut self.spaces[page.vm.0 as usize];
            match level {
                Level::Pdpt | Level::Directory => space.nested_directories |= gib_bit,
                Level::Table => space.nested[region as usize / 64] |= 1 << (region % 64),
            }
        }
        Ok(())
    }

    /// Makes the window tables above `page` that are missing.
    fn make_window_tables(&mut self, page: Page) -> Result<(), MechanismError> {
        let region = page.index / REGION_PAGES;
        let gpa = page.gfn.gpa();
        let gib_bit = 1u64 << ((gpa >> 30) % 64);
        let space = &self.spaces[page.vm.0 as usize];
        let levels = if space.window_directories == 0 {
            &Level::ALL[..]
        } else if space.window_directories & gib_bit == 0 {
            &Level::ALL[1..]
        } else {
            &Level::ALL[2..]
        };
        for level in levels {
            let table = self.make_table(page.vm, Object::WindowTable(*level))?;
            self.kernel
                .map_window_table(table, *level, page.vm, gpa)
                .map_err(MechanismError::Kernel)?;
            let space = &mut self.spaces[page.vm.0 as usize];
            match level {
                Level::Pdpt => {}
                Level::Directory => space.window_directories |= gib_bit,
                Level::Table => space.window[region as usize / 64] |= 1 << (region % 64),
            }
        }
        Ok(())
    }

    /// Slot of the capability that maps a page; makes its slab and nested tables if need be.
    #[inline]
    fn page_slot(&mut self, page: Page) -> Result<Slot, MechanismError> {
        let space = self.spaces.get(page.vm.0 as usize).ok_or(MechanismError::Unknown)?;
        let region = page.index / REGION_PAGES;
        let word = space.nested.get(region as usize / 64).ok_or(MechanismError::Unknown)?;
        let slab = space.slabs[(page.index >> SLAB_BITS) as usize];
        if word & 1 << (region % 64) != 0 && slab != 0 {
            return Ok((u64::from(slab) << SLAB_BITS) + u64::from(page.index % SLAB_SLOTS));
        }
        self.prepare(page)
    }

    #[cold]
    fn prepare(&mut self, page: Page) -> Result<Slot, MechanismError> {
        if !self.spaces[page.vm.0 as usize].open {
            return Err(MechanismError::Unknown);
        }
        let index = (page.index >> SLAB_BITS) as usize;
        if self.spaces[page.vm.0 as usize].slabs[index] == 0 {
            let (slab, _) = self.make_slab(page.vm, Object::Slab)?;
            self.spaces[page.vm.0 as usize].slabs[index] = slab as u16;
        }
        let region = page.index / REGION_PAGES;
        if self.spaces[page.vm.0 as usize].nested[region as usize / 64] & 1 << (region % 64) == 0 {
            self.make_nested_tables(page)?;
        }
        let slab = self.spaces[page.vm.0 as usize].slabs[index];
        Ok((u64::from(slab) << SLAB_BITS) + u64::from(page.index % SLAB_SLOTS))
    }

    fn window_slot(&self, page: Page) -> Slot {
        let space = &self.spaces[page.vm.0 as usize];
        u64::from((space.first << SLAB_BITS) + space.window_first() + page.index % WINDOW_PAGES)
    }

    /// Takes the page out of the window if it is there.
    #[inline]
    fn unmap_window(&mut self, page: Page) {
        let at = (page.index % WINDOW_PAGES) as usize;
        if self.spaces[page.vm.0 as usize].pages[at] == page.index {
            self.kernel.delete(self.window_slot(page));
            self.spaces[page.vm.0 as usize].pages[at] = NO_PAGE;
        }
    }
}

impl<K: Kernel> Mechanism for Spaces<'_, K> {
    fn zero(&mut self, frame: Frame) {
        self.kernel.zero(frame);
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        self.kernel.copy(from, to);
    }

    fn is_zero(&mut self, frame: Frame) -> bool {
        self.kernel.is_zero(frame)
    }

    fn hash(&mut self, frame: Frame, key: u64) -> u64 {
        self.kernel.hash(frame, key)
    }

    fn equal(&mut self, a: Frame, b: Frame) -> bool {
        self.kernel.equal(a, b)
    }

    fn load(&mut self, frame: Frame, bytes: &mut [u8; FRAME_BYTES]) {
        self.kernel.load(frame, bytes);
    }

    fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]) {
        self.kernel.store(frame, bytes);
    }

    fn open(&mut self, vm: VmId, memory: &VmMemory) -> Result<(), MechanismError> {
        let fits = memory.size.0 <= (REGIONS_MAX as u64) * u64::from(REGION_PAGES);
        match self.spaces.get_mut(vm.0 as usize) {
            Some(space) if !space.open && fits => {
                *space = Space::NEW;
                space.open = true;
            }
            _ => return Err(MechanismError::Unknown),
        }
        let opened = (|| {
            self.make_first_slab(vm, has_half(memory))?;
            let root = self.make_table(vm, Object::NestedRoot)?;
            self.kernel.enter_root(vm, root).map_err(MechanismError::Kernel)?;
            let table = self.make_table(vm, Object::NestedTable(Level::Pdpt))?;
            self.kernel
                .map_nested_table(table, Level::Pdpt, root, 0)
                .map_err(MechanismError::Kernel)
        })();
        if opened.is_err() {
            self.close(vm);
        }
        opened
    }

    fn keep(&mut self, vm: VmId, memory: &VmMemory) -> Result<(), MechanismError> {
        let owners = self.holds.iter().flat_map(|hold| hold.owners);
        let has = owners.filter(|owner| *owner == vm.0 as u8).count() as u64;
        let needed = self.overhead(memory) / u64::from(TABLES_PER_ARENA);
        for _ in has..needed {
            let arena = self.take_free_arena(vm)?;
            let hold = &mut self.holds[(arena / ARENAS_PER_BLOCK) as usize];
            hold.kept |= 1 << (arena % ARENAS_PER_BLOCK);
        }
        Ok(())
    }

    fn close(&mut self, vm: VmId) {
        if vm.0 as usize >= self.spaces.len() {
            return;
        }
        for block in 0..self.holds.len() {
            for index in 0..ARENAS_PER_BLOCK {
                if self.holds[block].owners[index as usize] == vm.0 as u8 {
                    self.drop_arena(block as u32 * ARENAS_PER_BLOCK + index);
                }
            }
        }
        let Space { slabs, first, .. } =
            core::mem::replace(&mut self.spaces[vm.0 as usize], Space::NEW);
        for slab in slabs.into_iter().map(u32::from).chain([first]).filter(|slab| *slab != 0) {
            self.drop_slab(slab);
        }
    }

    #[inline]
    fn map(&mut self, page: Page, frame: Frame, writable: bool) -> Result<(), MechanismError> {
        let slot = self.page_slot(page)?;
        let block = self.layout.frame(frame.block());
        self.kernel.derive(block, frame.offset(), slot).map_err(MechanismError::Kernel)?;
        let root = self.nested_root(page.vm);
        self.kernel.map_nested(slot, root, page.gfn.gpa(), writable).map_err(|error| {
            self.kernel.delete(slot);
            MechanismError::Kernel(error)
        })
    }

    fn protect(&mut self, page: Page, writable: bool) -> Result<(), MechanismError> {
        let slot = self.page_slot(page)?;
        let root = self.nested_root(page.vm);
        self.unmap_window(page);
        self.kernel.map_nested(slot, root, page.gfn.gpa(), writable).map_err(MechanismError::Kernel)
    }

    fn unmap(&mut self, page: Page) {
        if let Ok(slot) = self.page_slot(page) {
            self.kernel.delete(slot);
        }
        self.unmap_window(page);
    }

    fn promote(
        &mut self,
        first: Page,
        block: u32,
        present: &[u64; REGION_WORDS],
    ) -> Result<(), MechanismError> {
        let mut present = *present;
        self.make_large(first, block, &mut present).inspect_err(|_| {
            let slot = self.region_slot(first);
            for page in (0..REGION_PAGES).filter(|page| is_set(&present, *page)) {
                self.kernel.delete(slot + Slot::from(page));
            }
            self.unmap_region_window(first);
        })
    }

    fn demote(&mut self, first: Page) {
        self.kernel.delete(self.region_slot(first));
        self.unmap_region_window(first);
    }

    fn map_window(
        &mut self,
        page: Page,
        frame: Frame,
        writable: bool,
    ) -> Result<(), MechanismError> {
        let region = page.index / REGION_PAGES;
        let space = self.spaces.get(page.vm.0 as usize).filter(|space| space.open);
        let space = space.ok_or(MechanismError::Unknown)?;
        let word = space.window.get(region as usize / 64).ok_or(MechanismError::Unknown)?;
        if word & 1 << (region % 64) == 0 {
            self.make_window_tables(page)?;
        }
        let at = (page.index % WINDOW_PAGES) as usize;
        let slot = self.window_slot(page);
        if self.spaces[page.vm.0 as usize].pages[at] != NO_PAGE {
            self.kernel.delete(slot);
            self.spaces[page.vm.0 as usize].pages[at] = NO_PAGE;
        }
        let block = self.layout.frame(frame.block());
        self.kernel.derive(block, frame.offset(), slot).map_err(MechanismError::Kernel)?;
        match self.kernel.map_window(slot, page.vm, page.gfn.gpa(), writable) {
            Ok(()) => {
                self.spaces[page.vm.0 as usize].pages[at] = page.index;
                Ok(())
            }
            Err(error) => {
                self.kernel.delete(slot);
                Err(MechanismError::Kernel(error))
            }
        }
    }

    fn give_block(&mut self, block: u32) -> Result<(), MechanismError> {
        let hold = self.holds.get(block as usize).ok_or(MechanismError::Unknown)?;
        if hold.held {
            return Err(MechanismError::Unknown);
        }
        self.kernel.delete(self.layout.frame(block));
        for index in 0..ARENAS_PER_BLOCK {
            let to = self.layout.arena(block * ARENAS_PER_BLOCK + index);
            let object = Object::Untyped(ARENA_BITS);
            if let Err(error) = self.kernel.retype(self.layout.untyped(block), object, to) {
                self.restore_frame(block)?;
                return Err(MechanismError::Kernel(error));
            }
        }
        self.holds[block as usize] = Hold { free: u16::MAX, held: true, ..Hold::NEW };
        Ok(())
    }

    fn take_block(&mut self) -> Option<u32> {
        let block = self.holds.iter().position(|hold| hold.held && hold.free == u16::MAX)?;
        self.restore_frame(block as u32).ok()?;
        self.holds[block] = Hold::NEW;
        Some(block as u32)
    }

    fn overhead(&self, memory: &VmMemory) -> u64 {
        let slabs = 1 + memory.size.0.div_ceil(u64::from(SLAB_SLOTS));
        let beside = if has_half(memory) { TABLES_BESIDE_HALF } else { 0 };
        let others = tables(memory).saturating_sub(beside.into());
        (slabs + others.div_ceil(u64::from(TABLES_PER_ARENA))) * u64::from(TABLES_PER_ARENA)
    }

    fn signal_vmm(&mut self, vm: VmId) {
        self.kernel.signal_vmm(vm);
    }

    fn ticks(&mut self) -> u64 {
        self.kernel.ticks()
    }

    fn harvest(&mut self, first: Page, pages: u32, accessed: &mut [u64; 32]) -> bool {
        if !self.spaces.get(first.vm.0 as usize).is_some_and(|space| space.open) {
            return false;
        }
        let root = self.nested_root(first.vm);
        self.kernel.harvest(root, first.gfn.gpa(), pages, accessed)
    }

    fn swap_write(&mut self, transfer: u32, slot: u32, page: Contents<'_>) -> bool {
        self.kernel.swap_write(transfer, slot, page)
    }

    fn swap_read(&mut self, transfer: u32, slot: u32, frame: Frame) -> bool {
        self.kernel.swap_read(transfer, slot, frame)
    }
}

const fn is_set(pages: &[u64; REGION_WORDS], page: u32) -> bool {
    pages[page as usize / 64] >> (page % 64) & 1 != 0
}

/// Large pages. The capability that maps one is in the slot of the region's first page; the other pages keep theirs, which map
/// nothing as their table is out of its place.
impl<K: Kernel> Spaces<'_, K> {
    /// Slot of a region's first page, whose slab is made.
    fn region_slot(&self, first: Page) -> Slot {
        let slab = self.spaces[first.vm.0 as usize].slabs[(first.index >> SLAB_BITS) as usize];
        (Slot::from(slab) << SLAB_BITS) + Slot::from(first.index % SLAB_SLOTS)
    }

    fn unmap_region_window(&mut self, first: Page) {
        for index in first.index..first.index + REGION_PAGES {
            // The window goes by the page's number alone.
            self.unmap_window(Page { index, ..first });
        }
    }

    /// As [`Mechanism::promote`], but on errors it leaves what is `present`.
    fn make_large(
        &mut self,
        first: Page,
        block: u32,
        present: &mut [u64; REGION_WORDS],
    ) -> Result<(), MechanismError> {
        let (at, region) = (first.vm.0 as usize, (first.index / REGION_PAGES) as usize);
        if self.spaces[at].region_tables[region] == 0 {
            self.page_slot(first)?;
        }
        let slot = self.region_slot(first);
        if self.spaces[at].nested[region / 64] & 1 << (region % 64) != 0 {
            let table = self.region_table(first)?;
            self.kernel.unmap_nested_table(table, Level::Table).map_err(MechanismError::Kernel)?;
            self.spaces[at].nested[region / 64] &= !(1 << (region % 64));
        }
        let frame = self.layout.frame(block);
        for page in 1..REGION_PAGES {
            if !is_set(present, page) {
                self.kernel
                    .derive(frame, page, slot + Slot::from(page))
                    .map_err(MechanismError::Kernel)?;
                present[page as usize / 64] |= 1 << (page % 64);
            }
        }
        if is_set(present, 0) {
            self.kernel.delete(slot);
            present[0] &= !1;
        }
        self.kernel.copy_block(frame, slot).map_err(MechanismError::Kernel)?;
        present[0] |= 1;
        let root = self.nested_root(first.vm);
        self.kernel.map_nested_large(slot, root, first.gfn.gpa()).map_err(MechanismError::Kernel)
    }
}

impl<K: Kernel> Spaces<'_, K> {
    /// Makes a held block a 2 MiB frame again.
    fn restore_frame(&mut self, block: u32) -> Result<(), MechanismError> {
        self.kernel.revoke(self.layout.untyped(block));
        let frame = self.layout.frame(block);
        self.kernel
            .retype(self.layout.untyped(block), Object::LargeFrame, frame)
            .and_then(|()| self.kernel.map_own(frame, block))
            .map_err(MechanismError::Kernel)
    }
}

/// Tables a VM can come to need: nested root and tables, and as many for the window.
const fn tables(memory: &VmMemory) -> u64 {
    let regions = memory.size.0.div_ceil(REGION_PAGES as u64);
    let directories = 2 + (memory.size.0 << 12).div_ceil(1 << 30);
    2 * (regions + directories)
}

/// Whether tables and window of a VM fit a half slab: up to about 1 GiB.
const fn has_half(memory: &VmMemory) -> bool {
    tables(memory) + WINDOW_PAGES as u64 <= 1 << HALF_SLAB_BITS
}

const _: () = assert!(MAX_VMS < NOBODY as usize);

#[cfg(test)]
#[path = "spaces_tests.rs"]
mod tests;
