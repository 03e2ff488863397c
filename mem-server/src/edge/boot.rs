//! From a handful of untypeds to a running server: capability space, own view, tables.
// UNSAFETY: promises that the memory it has just mapped is mapped.
#![expect(unsafe_code, reason = "the view and the tables are made of addresses mapped here")]

use mem_server::hash::mix;
use mem_server::ledger::Block;
use mem_server::page::{Entry, FRAMES_PER_BLOCK};
use mem_server::policy::estimator::Source;
use mem_server::policy::large::Region;
use mem_server::server::{Policy, Server, Tables};
use mem_server::share::{RECORDS_MAX, Record};
use mem_server::spaces::{Hold, Layout, SLAB_BITS, Space, Spaces, TOP_BITS};
use mem_server::tier::PoolFrame;
use protocol::slots;
use protocol::startup::{MemStart, Startup};
use protocol::units::{LARGE_PAGE_SIZE, MAX_VMS};
use sel4::{
    CNodeCapData, Cap, CapRights, Error, FrameObjectType, ObjectBlueprint, ObjectBlueprintX86,
    VmAttributes, cap,
};

use super::calls::{Calls, map_own};
use super::view::{TableMemory, View, block_vaddr, table_vaddr};

/// Guest pages there can be for each machine frame: how far memory may be overcommitted.
const OVERCOMMIT: u32 = 2;
const LARGE_BITS: u64 = LARGE_PAGE_SIZE.trailing_zeros() as u64;
/// Objects one retype makes at most.
const FAN_OUT: u64 = 256;
/// 2 MiB pages one page directory maps.
const DIRECTORY_SPAN: u64 = 512;

/// Why the server cannot start.
#[derive(Clone, Copy, Debug)]
pub enum StartError {
    /// The root-task gave no untyped that can hold the first objects.
    NoMemory,
    /// A step of the start failed with a kernel error.
    Kernel(&'static str, Error),
}

trait Step<T> {
    fn step(self, what: &'static str) -> Result<T, StartError>;
}

impl<T> Step<T> for sel4::Result<T> {
    fn step(self, what: &'static str) -> Result<T, StartError> {
        self.map_err(|error| StartError::Kernel(what, error))
    }
}

/// Slots of the first CNode that are still free.
struct Free(u64);

impl Free {
    fn take(&mut self) -> u64 {
        self.0 += 1;
        self.0 - 1
    }
}

/// The running server's two halves.
pub type Running = (Server<'static>, Spaces<'static, Calls>);

/// Frames per sharing record: more records find equal pages sooner and cost more metadata (16 bytes and a
/// bucket of 4 each, so less than 0.1 % of memory).
const FRAMES_PER_RECORD: usize = 7;
/// Frames per frame the compressed pool may hold.
const FRAMES_PER_POOL: usize = 10;

/// Entries of the tables for so many frames and pages of swap space.
struct Counts {
    entries: usize,
    records: usize,
    pool: usize,
    swap: usize,
}

impl Counts {
    fn of(frames: usize, swap: u64) -> Self {
        Self {
            entries: frames * OVERCOMMIT as usize,
            records: (frames / FRAMES_PER_RECORD).min(RECORDS_MAX as usize),
            pool: frames / FRAMES_PER_POOL,
            swap: swap.div_ceil(64) as usize,
        }
    }
}

/// Bytes of tables per block, and once.
fn table_bytes(blocks: u64, swap: u64) -> u64 {
    let frames = blocks * u64::from(FRAMES_PER_BLOCK);
    let counts = Counts::of(frames as usize, swap);
    let per_block = (size_of::<Block>() + size_of::<Hold>()) as u64 * blocks;
    let bytes = counts.entries * size_of::<Entry>()
        + counts.entries / FRAMES_PER_BLOCK as usize * size_of::<Region>()
        + counts.records * (size_of::<Record>() + size_of::<u32>())
        + counts.pool * size_of::<PoolFrame>()
        + counts.swap * size_of::<u64>()
        + size_of::<Space>() * MAX_VMS;
    // A page for the alignment of each table.
    per_block + bytes as u64 + 8 * 4096
}

/// Builds everything.
///
/// # Errors
///
/// [`StartError`]: the root-task gave too little, or kernel and server do not fit.
pub fn start(startup: &Startup, given: &MemStart) -> Result<Running, StartError> {
    let mut free = Free(startup.free_slots.start);
    let own: cap::CNode = Cap::from_bits(slots::CNODE);
    let here = own.absolute_cptr_for_self();

    // The largest untyped also holds the first objects; they take the start of it.
    let largest = given.untypeds.iter().enumerate().max_by_key(|(_, untyped)| untyped.size_bits);
    let (largest, range) = largest.ok_or(StartError::NoMemory)?;
    let source = cap::Untyped::from_bits(slots::MEM_UNTYPEDS + largest as u64);
    let most: u64 = given.untypeds.iter().map(|untyped| 1 << (untyped.size_bits - 21)).sum();
    let blocks_max = u32::try_from(most).map_err(|_| StartError::NoMemory)?;
    let layout = Layout::new(blocks_max);
    let fixed = u64::from(layout.fixed());
    let swap = given.policy.swap.as_ref().map_or(0, |swap| swap.size.0);

    // Capability space: the top CNode, with the first CNode in slot 0 so that its slots keep their numbers.
    let slab = ObjectBlueprint::CNode { size_bits: u64::from(SLAB_BITS) };
    let top_slot = free.take();
    source.untyped_retype(&slab, &here, top_slot, 1).step("top CNode")?;
    let top: cap::CNode = Cap::from_bits(top_slot);
    let into_top = top.absolute_cptr_for_self();
    let mut made = 1;
    while made < fixed {
        let count = (fixed - made).min(FAN_OUT);
        source.untyped_retype(&slab, &into_top, made, count).step("slabs")?;
        made += count;
    }
    let own_bits = u64::from(startup.free_slots.end.next_power_of_two().trailing_zeros());
    let guard = u64::from(SLAB_BITS)
        .checked_sub(own_bits)
        .ok_or(StartError::Kernel("first CNode too large", Error::RangeError))?;
    top.absolute_cptr_from_bits_with_depth(0, u64::from(TOP_BITS))
        .mint(&own.absolute_cptr(own), CapRights::all(), CNodeCapData::skip(guard).into_word())
        .step("first CNode into the top")?;
    let high = 64 - u64::from(TOP_BITS + SLAB_BITS);
    cap::Tcb::from_bits(slots::TCB)
        .tcb_set_space(
            Cap::from_bits(slots::FAULT_ENDPOINT),
            top,
            CNodeCapData::skip(high),
            Cap::from_bits(slots::VSPACE),
        )
        .step("own CSpace")?;

    // Page directories of the own view and of the tables.
    let view_directories = most.div_ceil(DIRECTORY_SPAN);
    let table_pages = table_bytes(most, swap).div_ceil(LARGE_PAGE_SIZE);
    let directory = ObjectBlueprint::Arch(ObjectBlueprintX86::PageDirectory);
    for index in 0..view_directories + table_pages.div_ceil(DIRECTORY_SPAN) {
        let slot = free.take();
        source.untyped_retype(&directory, &here, slot, 1).step("page directory")?;
        let vaddr = match index.checked_sub(view_directories) {
            None => block_vaddr((index * DIRECTORY_SPAN) as u32),
            Some(table) => table_vaddr(table * DIRECTORY_SPAN),
        };
        cap::PageDirectory::from_bits(slot)
            .page_directory_map(Cap::from_bits(slots::VSPACE), vaddr, VmAttributes::DEFAULT)
            .step("page directory map")?;
    }
    let first_objects = (fixed << (SLAB_BITS + 5))
        + ((view_directories + table_pages.div_ceil(DIRECTORY_SPAN)) << 12);

    // Everything else becomes 2 MiB blocks: an untyped each, and a frame of it.
    let mut blocks = 0u64;
    let block_untyped = ObjectBlueprint::Untyped { size_bits: LARGE_BITS };
    for (index, untyped) in given.untypeds.iter().enumerate() {
        let source = cap::Untyped::from_bits(slots::MEM_UNTYPEDS + index as u64);
        let used = if index == largest { first_objects.div_ceil(LARGE_PAGE_SIZE) } else { 0 };
        let mut left = (1u64 << (untyped.size_bits - 21)).saturating_sub(used);
        while left > 0 {
            let slot = layout.untyped(blocks as u32);
            let (slab, offset) = (slot >> SLAB_BITS, slot & ((1 << SLAB_BITS) - 1));
            let count = left.min(FAN_OUT).min((1 << SLAB_BITS) - offset);
            let path = top.absolute_cptr_from_bits_with_depth(slab, u64::from(TOP_BITS));
            source.untyped_retype(&block_untyped, &path, offset, count).step("blocks")?;
            blocks += count;
            left -= count;
        }
    }
    if range.size_bits < 21 || blocks <= table_pages {
        return Err(StartError::NoMemory);
    }
    let managed = blocks - table_pages;
    let frame = FrameObjectType::LargePage.blueprint();
    for block in 0..blocks as u32 {
        let slot = layout.frame(block);
        let (slab, offset) = (slot >> SLAB_BITS, slot & ((1 << SLAB_BITS) - 1));
        let path = top.absolute_cptr_from_bits_with_depth(slab, u64::from(TOP_BITS));
        cap::Untyped::from_bits(layout.untyped(block))
            .untyped_retype(&frame, &path, offset, 1)
            .step("block frame")?;
        // The last blocks hold the tables.
        let vaddr = match u64::from(block).checked_sub(managed) {
            None => block_vaddr(block),
            Some(table) => table_vaddr(table),
        };
        map_own(slot, vaddr).step("own view")?;
    }

    // SAFETY: 1. the loop above mapped the last `table_pages` blocks there; 2. `start` runs once.
    let mut memory = unsafe { TableMemory::new(table_pages) };
    // SAFETY: 1. the loop above mapped the first `managed` blocks there, and blocks held for kernel objects are mapped
    // again before they come back to the ledger; 2. the area is the server's to arrange and `start` runs once.
    let view = unsafe { View::new(managed as u32) };
    let managed = managed as usize;
    let counts = Counts::of(managed * FRAMES_PER_BLOCK as usize, swap);
    let tables = (|| {
        Some((
            Tables {
                blocks: memory.take(managed, || Block::EMPTY)?,
                entries: memory.take(counts.entries, || Entry::ABSENT)?,
                regions: memory.take(counts.entries / FRAMES_PER_BLOCK as usize, || Region::NEW)?,
                records: memory.take(counts.records, || Record::EMPTY)?,
                buckets: memory.take(counts.records, || 0)?,
                pool: memory.take(counts.pool, || PoolFrame::NONE)?,
                swap: memory.take(counts.swap, || 0)?,
            },
            memory.take(managed, || Hold::NEW)?,
            memory.take(MAX_VMS, || Space::NEW)?,
        ))
    })();
    let (tables, holds, spaces) = tables.ok_or(StartError::NoMemory)?;
    let mut spaces = Spaces::new(Calls::new(top, free.take(), view), layout, holds, spaces);
    let policy = Policy {
        tax: given.policy.controls.tax,
        scan_rate: given.policy.controls.scan_pages_per_second,
        scan_rate_vm: given.policy.controls.scan_pages_per_second_vm,
        source: if given.policy.harvest { Source::Harvest } else { Source::Sampling },
        large_pages: given.policy.large_pages,
        secret: mix(given.seed ^ super::entropy::word()),
        ..Policy::default()
    };
    let mut server = Server::new(tables, policy, &mut spaces).ok_or(StartError::NoMemory)?;
    for (number, group) in (0..).zip(&given.groups) {
        if server.set_group(number, group.memory).is_err() {
            // Its VMs start all the same, each on its own reservation.
            defmt::error!(
                "group {=u8} cannot have its reservation: there is too little memory",
                number
            );
        }
    }
    Ok((server, spaces))
}
