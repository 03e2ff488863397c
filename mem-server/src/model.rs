//! Models of the machine for tests and experiments: what the guests can see, and nothing is believed.
#![expect(clippy::expect_used, clippy::panic, reason = "a model stops at the first wrong step")]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use protocol::mem::VmMemory;
use protocol::units::{MAX_VMS, VmId};

use crate::mechanism::{Contents, Mechanism, MechanismError, Page};
use crate::page::{FRAME_BYTES, FRAMES_PER_BLOCK, Frame, REGION_WORDS};
use crate::spaces::{HALF_SLAB_BITS, Kernel, Level, Object, SLAB_BITS, Slot};

/// Contents of a page of the model machine: a tag that stands for 4096 bytes, or the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// [`bytes_of`] of the tag. Tag 0 is the page of zeros.
    Tag(u64),
    /// Anything else.
    Bytes(Box<[u8; FRAME_BYTES]>),
}

impl Content {
    /// A tag if one stands for the bytes.
    fn of(bytes: &[u8; FRAME_BYTES]) -> Self {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[..8]);
        let tag = u64::from_le_bytes(word);
        if bytes_of(tag) == *bytes { Self::Tag(tag) } else { Self::Bytes((*bytes).into()) }
    }
}

/// Tags from here on stand for pages that do not compress.
pub const INCOMPRESSIBLE: u64 = 1 << 63;

/// The bytes a tag stands for: the tag and zeros, or with [`INCOMPRESSIBLE`] noise.
pub fn bytes_of(tag: u64) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    let mut state = tag;
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        if index > 0 && tag & INCOMPRESSIBLE == 0 {
            break;
        }
        word.copy_from_slice(&state.to_le_bytes());
        state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
    }
    bytes
}

/// A 64-bit mixing function (finalizer of splitmix64).
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Frames of the model machine.
#[derive(Clone, Debug)]
pub struct Frames {
    contents: Vec<Content>,
    /// Upper bits of a hash that are kept; 64 for a good one.
    pub hash_bits: u32,
}

impl Frames {
    /// `blocks` blocks full of rubbish: whoever forgets to zero a frame is found out.
    pub fn new(blocks: u32) -> Self {
        let frames = u64::from(blocks * FRAMES_PER_BLOCK);
        let contents = (0..frames).map(|frame| Content::Tag(0xdead_0000_0000 + frame)).collect();
        Self { contents, hash_bits: 64 }
    }

    /// What a frame holds.
    pub fn get(&self, frame: Frame) -> &Content {
        &self.contents[frame.0 as usize]
    }

    /// Overwrites a frame.
    pub fn set(&mut self, frame: Frame, content: Content) {
        self.contents[frame.0 as usize] = content;
    }

    fn hash(&self, frame: Frame, key: u64) -> u64 {
        let full = match self.get(frame) {
            Content::Tag(tag) => mix(*tag ^ key),
            Content::Bytes(bytes) => bytes.chunks_exact(8).fold(key, |hash, word| {
                mix(hash ^ word.iter().fold(0, |w, byte| w << 8 | u64::from(*byte)))
            }),
        };
        full & !(u64::MAX.checked_shr(self.hash_bits).unwrap_or(0))
    }

    /// The bytes of a frame.
    pub fn bytes(&self, frame: Frame) -> [u8; FRAME_BYTES] {
        match self.get(frame) {
            Content::Tag(tag) => bytes_of(*tag),
            Content::Bytes(content) => **content,
        }
    }

    fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]) {
        self.set(frame, Content::of(bytes));
    }
}

/// Operations of a model machine, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames filled with zeros.
    pub zeroed: u64,
    /// Frames copied.
    pub copied: u64,
    /// Frames hashed.
    pub hashed: u64,
    /// Frames compared.
    pub compared: u64,
    /// Pages mapped.
    pub mapped: u64,
    /// Pages unmapped.
    pub unmapped: u64,
    /// Pages made read-only or writable.
    pub protected: u64,
    /// Regions mapped by one large page.
    pub promoted: u64,
    /// Regions whose large page was taken away.
    pub demoted: u64,
    /// Writes to the swap disk.
    pub swap_writes: u64,
    /// Reads from it.
    pub swap_reads: u64,
}

/// What a negative control breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// Frames are not zeroed.
    pub zeroing: bool,
    /// All frames count as equal.
    pub comparing: bool,
    /// The kernel refuses large pages.
    pub promoting: bool,
    /// The swap disk takes no pages from the compressed pool.
    pub spilling: bool,
}

/// What nested tables map: per page the frame, and whether it is writable.
pub type Map = Vec<Option<(Frame, bool)>>;

/// A machine without kernel objects: guests' mappings and frames' contents.
#[derive(Debug)]
pub struct Machine {
    /// Frames.
    pub frames: Frames,
    /// What each VM's nested tables map: per page the frame, and whether it is writable.
    pub maps: Vec<Option<Map>>,
    /// Regions that a large page maps, by VM and number.
    pub large: HashSet<(VmId, u32)>,
    /// Pages that kept their capabilities when a large page was taken away, and what these would map.
    pub held: HashMap<(VmId, u32), Frame>,
    /// What each vmm-server's window maps.
    pub windows: Vec<BTreeMap<u32, (Frame, bool)>>,
    /// Counted operations.
    pub counters: Counters,
    /// VMs signalled, in order.
    pub signals: Vec<VmId>,
    /// Accessed bits since the last harvest or the mapping; all 512 of a large page are set together.
    pub accessed: Vec<Vec<bool>>,
    /// What is broken on purpose, for negative controls.
    pub broken: Broken,
    queue: VecDeque<Io>,
    /// Transfers the disk takes at once.
    pub queue_depth: usize,
    /// Blocks that the tables of each VM take.
    pub table_blocks: usize,
    /// Blocks given for tables: those of no VM, and each VM's.
    blocks: Vec<u32>,
    tables: HashMap<VmId, Vec<u32>>,
    disk: HashMap<u32, Content>,
}

impl Machine {
    /// `blocks` blocks of memory, no VM.
    pub fn new(blocks: u32) -> Self {
        Self {
            frames: Frames::new(blocks),
            maps: vec![None; MAX_VMS],
            large: HashSet::new(),
            held: HashMap::new(),
            windows: vec![BTreeMap::new(); MAX_VMS],
            counters: Counters::default(),
            signals: Vec::new(),
            accessed: vec![Vec::new(); MAX_VMS],
            broken: Broken::default(),
            queue: VecDeque::new(),
            queue_depth: 32,
            table_blocks: 0,
            blocks: Vec::new(),
            tables: HashMap::new(),
            disk: HashMap::new(),
        }
    }

    /// What the guest reads at page `index`; `None` if it would fault.
    pub fn read(&mut self, vm: VmId, index: u32) -> Option<&Content> {
        let (frame, _) = self.maps[vm.0 as usize].as_ref()?[index as usize]?;
        self.mark(vm, index);
        Some(self.frames.get(frame))
    }

    /// The guest writes page `index`; false if it would fault.
    pub fn write(&mut self, vm: VmId, index: u32, content: Content) -> bool {
        let Some(map) = self.maps[vm.0 as usize].as_ref() else { return false };
        match map[index as usize] {
            Some((frame, true)) => {
                self.frames.set(frame, content);
                self.mark(vm, index);
                true
            }
            _ => false,
        }
    }

    /// Checks that no two writable mappings, and no writable and other mapping, meet in one frame.
    pub fn check(&self) {
        let mut seen: HashMap<Frame, bool> = HashMap::new();
        for (frame, writable) in
            self.maps.iter().flatten().flat_map(|map| map.iter().flatten()).copied()
        {
            if let Some(before) = seen.insert(frame, writable) {
                assert!(!before && !writable, "{frame:?} is writable and seen twice");
            }
        }
        for (vm, window) in self.windows.iter().enumerate() {
            for (index, (frame, writable)) in window {
                let map = self.maps[vm].as_ref().expect("a window of a closed VM");
                let (inside, guest_writes) =
                    map[*index as usize].expect("the window shows what the guest does not have");
                assert_eq!(inside, *frame, "window and guest differ at {index}");
                assert!(guest_writes || !writable, "the window writes what the guest may not");
            }
        }
    }

    /// The processor sets the accessed bit of what maps a page.
    fn mark(&mut self, vm: VmId, index: u32) {
        let large = self.large.contains(&(vm, index / FRAMES_PER_BLOCK));
        let first = if large { index - index % FRAMES_PER_BLOCK } else { index };
        let pages = if large { FRAMES_PER_BLOCK } else { 1 };
        self.accessed[vm.0 as usize][first as usize..][..pages as usize].fill(true);
    }

    /// The entries that map a region's pages are replaced.
    fn clear_accessed(&mut self, first: Page) {
        let bits = &mut self.accessed[first.vm.0 as usize];
        bits[first.index as usize..][..FRAMES_PER_BLOCK as usize].fill(false);
    }

    /// What maps a page by itself; a large page does not.
    fn slot(&mut self, page: Page) -> &mut Option<(Frame, bool)> {
        let region = page.index / FRAMES_PER_BLOCK;
        assert!(!self.large.contains(&(page.vm, region)), "{page:?} is part of a large page");
        let map = self.maps[page.vm.0 as usize].as_mut().expect("a closed VM");
        &mut map[page.index as usize]
    }
}

impl Mechanism for Machine {
    fn zero(&mut self, frame: Frame) {
        self.counters.zeroed += 1;
        if !self.broken.zeroing {
            self.frames.set(frame, Content::Tag(0));
        }
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        self.counters.copied += 1;
        self.frames.set(to, self.frames.get(from).clone());
    }

    fn is_zero(&mut self, frame: Frame) -> bool {
        *self.frames.get(frame) == Content::Tag(0)
    }

    fn hash(&mut self, frame: Frame, key: u64) -> u64 {
        self.counters.hashed += 1;
        self.frames.hash(frame, key)
    }

    fn equal(&mut self, a: Frame, b: Frame) -> bool {
        self.counters.compared += 1;
        self.broken.comparing || self.frames.get(a) == self.frames.get(b)
    }

    fn load(&mut self, frame: Frame, bytes: &mut [u8; FRAME_BYTES]) {
        *bytes = self.frames.bytes(frame);
    }

    fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]) {
        self.frames.store(frame, bytes);
    }

    fn open(&mut self, vm: VmId, memory: &VmMemory) -> Result<(), MechanismError> {
        let map = &mut self.maps[vm.0 as usize];
        if map.is_some() {
            return Err(MechanismError::Unknown);
        }
        *map = Some(vec![None; memory.size.0 as usize]);
        self.accessed[vm.0 as usize] = vec![false; memory.size.0 as usize];
        Ok(())
    }

    fn close(&mut self, vm: VmId) {
        self.maps[vm.0 as usize] = None;
        self.large.retain(|(owner, _)| *owner != vm);
        self.held.retain(|(owner, _), _| *owner != vm);
        self.windows[vm.0 as usize].clear();
        self.blocks.extend(self.tables.remove(&vm).unwrap_or_default());
    }

    fn map(&mut self, page: Page, frame: Frame, writable: bool) -> Result<(), MechanismError> {
        if self.maps[page.vm.0 as usize].is_none() {
            return Err(MechanismError::Unknown);
        }
        self.counters.mapped += 1;
        assert_eq!(self.held.get(&(page.vm, page.index)), None, "{page:?} has a capability");
        let before = self.slot(page).replace((frame, writable));
        assert_eq!(before, None, "{page:?} is mapped already");
        Ok(())
    }

    fn protect(&mut self, page: Page, writable: bool) -> Result<(), MechanismError> {
        self.counters.protected += 1;
        self.windows[page.vm.0 as usize].remove(&page.index);
        match self.held.remove(&(page.vm, page.index)) {
            Some(frame) => *self.slot(page) = Some((frame, writable)),
            None => self.slot(page).as_mut().expect("not mapped").1 = writable,
        }
        Ok(())
    }

    fn unmap(&mut self, page: Page) {
        self.counters.unmapped += 1;
        self.windows[page.vm.0 as usize].remove(&page.index);
        self.accessed[page.vm.0 as usize][page.index as usize] = false;
        let held = self.held.remove(&(page.vm, page.index)).is_some();
        assert!(self.slot(page).take().is_some() || held, "{page:?} is not mapped");
    }

    fn promote(
        &mut self,
        first: Page,
        block: u32,
        present: &[u64; REGION_WORDS],
    ) -> Result<(), MechanismError> {
        assert!(first.index.is_multiple_of(FRAMES_PER_BLOCK) && first.gfn.0.is_multiple_of(512));
        self.counters.promoted += 1;
        self.clear_accessed(first);
        let refuses = self.broken.promoting;
        for page in 0..FRAMES_PER_BLOCK {
            let said = present[page as usize / 64] >> (page % 64) & 1 != 0;
            let frame = Frame(block * FRAMES_PER_BLOCK + page);
            let index = first.index + page;
            let held = self.held.remove(&(first.vm, index));
            let small = self.slot(Page { index, ..first });
            let before = small.replace((frame, true)).map(|(frame, _)| frame);
            if refuses {
                *small = None;
                self.windows[first.vm.0 as usize].remove(&index);
            }
            assert_eq!(before.or(held).is_some(), said, "page {page} of {first:?}");
            assert!(before.or(held).is_none_or(|small| small == frame), "page {page} is elsewhere");
        }
        if refuses {
            return Err(MechanismError::Kernel(10));
        }
        self.large.insert((first.vm, first.index / FRAMES_PER_BLOCK));
        Ok(())
    }

    fn demote(&mut self, first: Page) {
        self.counters.demoted += 1;
        self.clear_accessed(first);
        assert!(self.large.remove(&(first.vm, first.index / FRAMES_PER_BLOCK)), "{first:?}: small");
        for index in first.index..first.index + FRAMES_PER_BLOCK {
            let page = self.slot(Page { index, ..first }).take();
            if let Some((frame, _)) = page.filter(|_| index != first.index) {
                self.held.insert((first.vm, index), frame);
            }
            self.windows[first.vm.0 as usize].remove(&index);
        }
    }

    fn map_window(
        &mut self,
        page: Page,
        frame: Frame,
        writable: bool,
    ) -> Result<(), MechanismError> {
        self.windows[page.vm.0 as usize].insert(page.index, (frame, writable));
        Ok(())
    }

    fn give_block(&mut self, block: u32) -> Result<(), MechanismError> {
        self.blocks.push(block);
        Ok(())
    }

    fn take_block(&mut self) -> Option<u32> {
        self.blocks.pop()
    }

    fn keep(&mut self, vm: VmId, _memory: &VmMemory) -> Result<(), MechanismError> {
        let kept = self.tables.entry(vm).or_default();
        while kept.len() < self.table_blocks {
            kept.push(self.blocks.pop().ok_or(MechanismError::NeedBlock)?);
        }
        Ok(())
    }

    fn overhead(&self, _memory: &VmMemory) -> u64 {
        self.table_blocks as u64 * u64::from(FRAMES_PER_BLOCK)
    }

    fn signal_vmm(&mut self, vm: VmId) {
        self.signals.push(vm);
    }

    fn swap_write(&mut self, transfer: u32, slot: u32, page: Contents<'_>) -> bool {
        let refuses = self.broken.spilling && matches!(page, Contents::Bytes(_));
        if self.queue.len() == self.queue_depth || refuses {
            return false;
        }
        self.counters.swap_writes += 1;
        let content = match page {
            Contents::Frame(frame) => self.frames.get(frame).clone(),
            Contents::Bytes(bytes) => Content::of(bytes),
        };
        self.queue.push_back(Io { transfer, slot, work: Work::Write(content) });
        true
    }

    fn swap_read(&mut self, transfer: u32, slot: u32, frame: Frame) -> bool {
        if self.queue.len() == self.queue_depth {
            return false;
        }
        self.counters.swap_reads += 1;
        self.queue.push_back(Io { transfer, slot, work: Work::Read(frame) });
        true
    }

    fn harvest(&mut self, first: Page, pages: u32, accessed: &mut [u64; 32]) -> bool {
        *accessed = [0; 32];
        let bits = &mut self.accessed[first.vm.0 as usize];
        for page in 0..pages {
            if core::mem::take(&mut bits[(first.index + page) as usize]) {
                accessed[page as usize / 64] |= 1 << (page % 64);
            }
        }
        true
    }
}

/// A transfer of the swap disk.
#[derive(Clone, Debug)]
struct Io {
    transfer: u32,
    slot: u32,
    work: Work,
}

#[derive(Clone, Debug)]
enum Work {
    Write(Content),
    Read(Frame),
}

impl Machine {
    /// Whether the oldest transfer of the swap disk writes.
    pub fn next_is_write(&self) -> bool {
        self.queue.front().is_some_and(|io| matches!(io.work, Work::Write(_)))
    }

    /// Carries out the oldest transfer of the swap disk; answers its number and whether it went well.
    pub fn disk_step(&mut self, fails: bool) -> Option<(u32, bool)> {
        let io = self.queue.pop_front()?;
        if fails {
            return Some((io.transfer, false));
        }
        match io.work {
            Work::Write(content) => {
                self.disk.insert(io.slot, content);
            }
            Work::Read(frame) => {
                let content = self.disk.get(&io.slot).cloned();
                self.frames.set(frame, content.expect("a slot never written is read"));
            }
        }
        Some((io.transfer, true))
    }
}

/// What a capability of the model kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Untyped { bits: u32, used: u64 },
    Slab,
    Large { block: u32 },
    Small(Frame),
    Root,
    Nested(Level),
    Window(Level),
}

#[derive(Clone, Copy, Debug)]
struct Capability {
    kind: Kind,
    parent: Option<Slot>,
    /// Nested space and address, or window and address, it is mapped at.
    mapped: Option<(Where, u64, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Where {
    Nested(Slot),
    Window(VmId),
}

/// A kernel that knows which capabilities exist, what they were made of and what they map.
#[derive(Debug)]
pub struct ModelKernel {
    capabilities: BTreeMap<Slot, Capability>,
    /// By number, with log2 of their slots.
    slabs: HashMap<u64, u32>,
    tables: HashSet<(Where, u64, u64)>,
    roots: HashMap<VmId, Slot>,
    first_untyped: Slot,
    /// Frames.
    pub frames: Frames,
    /// Make the n-th call that can fail do so.
    pub fail_after: Option<u32>,
}

impl ModelKernel {
    /// Blocks' untypeds and frames as the server's start leaves them, for `fixed` slabs.
    pub fn new(layout: crate::spaces::Layout, blocks: u32) -> Self {
        let mut capabilities = BTreeMap::new();
        for block in 0..blocks {
            let untyped = Capability {
                kind: Kind::Untyped { bits: 21, used: 1 << 21 },
                parent: None,
                mapped: None,
            };
            let frame = Capability {
                kind: Kind::Large { block },
                parent: Some(layout.untyped(block)),
                mapped: None,
            };
            assert!(capabilities.insert(layout.untyped(block), untyped).is_none());
            assert!(capabilities.insert(layout.frame(block), frame).is_none());
        }
        Self {
            capabilities,
            slabs: (0..u64::from(layout.fixed())).map(|slab| (slab, SLAB_BITS)).collect(),
            tables: HashSet::new(),
            roots: HashMap::new(),
            first_untyped: layout.untyped(0),
            frames: Frames::new(blocks),
            fail_after: None,
        }
    }

    fn may_fail(&mut self) -> Result<(), u64> {
        match &mut self.fail_after {
            Some(0) => {
                self.fail_after = None;
                Err(10)
            }
            Some(calls) => {
                *calls -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn insert(&mut self, slot: Slot, kind: Kind, parent: Slot) {
        // Slabs themselves are in slab 0.
        let bits = self.slabs.get(&(slot >> SLAB_BITS));
        let bits = bits.unwrap_or_else(|| panic!("slot {slot:#x} is in no slab"));
        assert!(slot & ((1 << SLAB_BITS) - 1) < 1 << bits, "slot {slot:#x} is beyond its slab");
        let new = Capability { kind, parent: Some(parent), mapped: None };
        assert!(self.capabilities.insert(slot, new).is_none(), "slot {slot:#x} is in use");
    }

    fn kind(&self, slot: Slot) -> Kind {
        self.capabilities.get(&slot).unwrap_or_else(|| panic!("slot {slot:#x} is empty")).kind
    }

    fn remove_children(&mut self, slot: Slot) {
        let children: Vec<Slot> = self
            .capabilities
            .iter()
            .filter(|(_, capability)| capability.parent == Some(slot))
            .map(|(child, _)| *child)
            .collect();
        for child in children {
            self.remove(child);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.remove_children(slot);
        let Some(gone) = self.capabilities.remove(&slot) else { return };
        match gone.kind {
            Kind::Slab => {
                self.slabs.remove(&slot);
                let inside: Vec<Slot> = self
                    .capabilities
                    .range(slot << SLAB_BITS..(slot + 1) << SLAB_BITS)
                    .map(|(inside, _)| *inside)
                    .collect();
                for inside in inside {
                    self.remove(inside);
                }
            }
            Kind::Root => {
                self.tables.retain(|(place, ..)| *place != Where::Nested(slot));
                self.roots.retain(|_, root| *root != slot);
            }
            Kind::Nested(level) | Kind::Window(level) => {
                if let Some((place, at, _)) = gone.mapped {
                    self.tables.remove(&(place, span(level), at));
                }
            }
            _ => {}
        }
    }

    fn check_tables(&self, place: Where, at: u64, above: u64) {
        for level in [Level::Pdpt, Level::Directory, Level::Table] {
            let span = span(level);
            if span > above {
                assert!(
                    self.tables.contains(&(place, span, at / span)),
                    "{place:?} has no table for {at:#x} of {span:#x}"
                );
            }
        }
    }

    /// Whether capabilities exist beside the blocks' untypeds and frames.
    pub fn leftovers(&self) -> usize {
        let own = |slot: Slot| self.first_untyped <= slot;
        self.capabilities
            .iter()
            .filter(|(slot, capability)| {
                let of_block = own(**slot) && capability.parent.is_none();
                // A block's own frame, not a copy of it.
                let parent = capability.parent.and_then(|parent| self.capabilities.get(&parent));
                let is_frame = matches!(capability.kind, Kind::Large { .. })
                    && parent.is_some_and(|parent| matches!(parent.kind, Kind::Untyped { .. }));
                !is_frame && !of_block
            })
            .count()
    }

    /// What VM `vm` sees at `gpa`, in its nested space.
    pub fn nested(&self, vm: VmId, gpa: u64) -> Option<(Frame, bool)> {
        let root = *self.roots.get(&vm)?;
        self.seen(Where::Nested(root), gpa)
    }

    /// What the vmm-server of `vm` sees at `gpa` in its window.
    pub fn window(&self, vm: VmId, gpa: u64) -> Option<(Frame, bool)> {
        self.seen(Where::Window(vm), gpa)
    }

    fn seen(&self, place: Where, gpa: u64) -> Option<(Frame, bool)> {
        self.capabilities.values().find_map(|capability| {
            match (capability.kind, capability.mapped) {
                (Kind::Small(frame), Some((at, address, writable)))
                    if at == place && address == gpa =>
                {
                    Some((frame, writable))
                }
                (Kind::Large { block }, Some((at, address, writable)))
                    if at == place && address == gpa & !(LARGE - 1) =>
                {
                    let offset = (gpa & (LARGE - 1)) >> 12;
                    Some((Frame(block * FRAMES_PER_BLOCK + offset as u32), writable))
                }
                _ => None,
            }
        })
    }
}

/// Bytes of a large page.
const LARGE: u64 = 1 << 21;

const fn span(level: Level) -> u64 {
    match level {
        Level::Pdpt => 1 << 39,
        Level::Directory => 1 << 30,
        Level::Table => 1 << 21,
    }
}

impl Kernel for ModelKernel {
    fn retype(&mut self, untyped: Slot, object: Object, to: Slot) -> Result<(), u64> {
        self.may_fail()?;
        let has_children =
            self.capabilities.values().any(|capability| capability.parent == Some(untyped));
        let capability = self.capabilities.get_mut(&untyped).expect("no such untyped");
        let Kind::Untyped { bits, used } = &mut capability.kind else { panic!("not an untyped") };
        let bits = *bits;
        if !has_children {
            *used = 0;
        }
        let size = match object {
            Object::Untyped(bits) => bits,
            Object::Slab => SLAB_BITS + 5,
            Object::HalfSlab => HALF_SLAB_BITS + 5,
            Object::LargeFrame => 21,
            Object::NestedRoot | Object::NestedTable(_) | Object::WindowTable(_) => 12,
        };
        let end = used.next_multiple_of(1 << size) + (1 << size);
        if end > 1 << bits {
            return Err(10);
        }
        *used = end;
        let kind = match object {
            Object::Untyped(bits) => Kind::Untyped { bits, used: 0 },
            Object::Slab | Object::HalfSlab => {
                let bits = if object == Object::Slab { SLAB_BITS } else { HALF_SLAB_BITS };
                assert!(self.slabs.insert(to, bits).is_none(), "slab {to} exists");
                Kind::Slab
            }
            Object::LargeFrame => Kind::Large { block: (untyped - self.first_untyped) as u32 },
            Object::NestedRoot => Kind::Root,
            Object::NestedTable(level) => Kind::Nested(level),
            Object::WindowTable(level) => Kind::Window(level),
        };
        self.insert(to, kind, untyped);
        Ok(())
    }

    fn delete(&mut self, slot: Slot) {
        assert!(self.capabilities.contains_key(&slot), "slot {slot:#x} is empty");
        self.remove(slot);
    }

    fn revoke(&mut self, slot: Slot) {
        let capability = self.capabilities.remove(&slot).expect("revoke of nothing");
        self.capabilities.insert(u64::MAX, capability);
        self.remove_children(slot);
        let capability = self.capabilities.remove(&u64::MAX).expect("kept above");
        self.capabilities.insert(slot, capability);
    }

    fn derive(&mut self, block: Slot, offset: u32, to: Slot) -> Result<(), u64> {
        self.may_fail()?;
        let Kind::Large { block: number } = self.kind(block) else { panic!("not a block") };
        self.insert(to, Kind::Small(Frame(number * FRAMES_PER_BLOCK + offset)), block);
        Ok(())
    }

    fn map_nested(&mut self, frame: Slot, root: Slot, gpa: u64, writable: bool) -> Result<(), u64> {
        self.may_fail()?;
        assert_eq!(self.kind(root), Kind::Root);
        self.check_tables(Where::Nested(root), gpa, 1 << 12);
        let place = Where::Nested(root);
        let before = self.seen(place, gpa);
        let capability = self.capabilities.get_mut(&frame).expect("no such frame");
        match capability.mapped {
            Some((at, address, _)) => assert_eq!((at, address), (place, gpa)),
            None => assert_eq!(before, None, "{gpa:#x} is mapped already"),
        }
        capability.mapped = Some((place, gpa, writable));
        Ok(())
    }

    fn map_nested_table(
        &mut self,
        table: Slot,
        level: Level,
        root: Slot,
        gpa: u64,
    ) -> Result<(), u64> {
        self.may_fail()?;
        assert_eq!(self.kind(root), Kind::Root);
        assert_eq!(self.kind(table), Kind::Nested(level));
        let (place, span) = (Where::Nested(root), span(level));
        self.check_tables(place, gpa, span);
        if level == Level::Table {
            assert_eq!(self.seen(place, gpa & !(LARGE - 1)), None, "a large page is there");
        }
        assert!(self.tables.insert((place, span, gpa / span)), "the table is there");
        self.capabilities.get_mut(&table).expect("checked").mapped =
            Some((place, gpa / span, true));
        Ok(())
    }

    fn unmap_nested_table(&mut self, table: Slot, level: Level) -> Result<(), u64> {
        self.may_fail()?;
        assert_eq!(self.kind(table), Kind::Nested(level));
        let span = span(level);
        let capability = self.capabilities.get_mut(&table).expect("checked");
        let (place, at, _) = capability.mapped.take().expect("the table is in no space");
        assert!(self.tables.remove(&(place, span, at)));
        // The kernel empties it: capabilities of pages below it map nothing any more.
        for capability in self.capabilities.values_mut() {
            if matches!(capability.kind, Kind::Small(_))
                && capability.mapped.is_some_and(|(seen, gpa, _)| seen == place && gpa / span == at)
            {
                capability.mapped = None;
            }
        }
        Ok(())
    }

    fn copy_block(&mut self, block: Slot, to: Slot) -> Result<(), u64> {
        self.may_fail()?;
        let kind @ Kind::Large { .. } = self.kind(block) else { panic!("not a block") };
        self.insert(to, kind, block);
        Ok(())
    }

    fn map_nested_large(&mut self, frame: Slot, root: Slot, gpa: u64) -> Result<(), u64> {
        self.may_fail()?;
        assert_eq!(self.kind(root), Kind::Root);
        assert!(matches!(self.kind(frame), Kind::Large { .. }) && gpa.is_multiple_of(LARGE));
        let place = Where::Nested(root);
        self.check_tables(place, gpa, LARGE);
        assert!(!self.tables.contains(&(place, LARGE, gpa / LARGE)), "a table is in its place");
        assert_eq!(self.seen(place, gpa), None, "{gpa:#x} is mapped already");
        self.capabilities.get_mut(&frame).expect("checked").mapped = Some((place, gpa, true));
        Ok(())
    }

    fn map_window(&mut self, frame: Slot, vm: VmId, gpa: u64, writable: bool) -> Result<(), u64> {
        self.may_fail()?;
        let place = Where::Window(vm);
        self.check_tables(place, gpa, 1 << 12);
        assert_eq!(self.seen(place, gpa), None, "{gpa:#x} is in the window already");
        self.capabilities.get_mut(&frame).expect("no such frame").mapped =
            Some((place, gpa, writable));
        Ok(())
    }

    fn map_window_table(
        &mut self,
        table: Slot,
        level: Level,
        vm: VmId,
        gpa: u64,
    ) -> Result<(), u64> {
        self.may_fail()?;
        assert_eq!(self.kind(table), Kind::Window(level));
        let (place, span) = (Where::Window(vm), span(level));
        self.check_tables(place, gpa, span);
        self.tables.insert((place, span, gpa / span));
        self.capabilities.get_mut(&table).expect("checked").mapped =
            Some((place, gpa / span, true));
        Ok(())
    }

    fn map_own(&mut self, frame: Slot, _block: u32) -> Result<(), u64> {
        assert!(matches!(self.kind(frame), Kind::Large { .. }));
        Ok(())
    }

    fn enter_root(&mut self, vm: VmId, root: Slot) -> Result<(), u64> {
        self.may_fail()?;
        assert_eq!(self.kind(root), Kind::Root);
        self.roots.insert(vm, root);
        Ok(())
    }

    fn signal_vmm(&mut self, _vm: VmId) {}

    fn ticks(&mut self) -> u64 {
        0
    }

    fn harvest(&mut self, _: Slot, _: u64, _: u32, _: &mut [u64; 32]) -> bool {
        false
    }

    fn zero(&mut self, frame: Frame) {
        self.frames.set(frame, Content::Tag(0));
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        self.frames.set(to, self.frames.get(from).clone());
    }

    fn is_zero(&mut self, frame: Frame) -> bool {
        *self.frames.get(frame) == Content::Tag(0)
    }

    fn hash(&mut self, frame: Frame, key: u64) -> u64 {
        self.frames.hash(frame, key)
    }

    fn equal(&mut self, a: Frame, b: Frame) -> bool {
        self.frames.get(a) == self.frames.get(b)
    }

    fn load(&mut self, frame: Frame, bytes: &mut [u8; FRAME_BYTES]) {
        *bytes = self.frames.bytes(frame);
    }

    fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]) {
        self.frames.store(frame, bytes);
    }
}
