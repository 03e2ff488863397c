//! The whole mem-server over its model machine, with simulated guests and virtual time.

use std::collections::{BTreeMap, HashMap};

use mem_server::ledger::Block;
use mem_server::model::{Content, INCOMPRESSIBLE, Machine};
use mem_server::page::{Entry, FRAMES_PER_BLOCK, PageState};
use mem_server::policy::large::Region;
use mem_server::server::{Fault, Policy, Server, Tables};
use mem_server::share::Record;
use mem_server::tier::PoolFrame;
use protocol::mem::{GfnRange, GuestStats, MemReply, MemRequest, VmMemory, access, release_reason};
use protocol::units::{Nanos, Pages, VmId};

/// Pages of a mebibyte.
pub const MIB: u64 = 256;
/// Time of one disk access, of the guest's own disk or of the swap area.
pub const DISK: u64 = 1_000_000;
/// Time of a write nobody waits for.
pub const WRITE_BEHIND: u64 = 250_000;
/// Time of one operation without a disk access.
pub const OPERATION: u64 = 20_000;

pub mod fuzz;

/// Server, machine and clock.
pub struct World<'a> {
    /// The server.
    pub server: Server<'a>,
    /// The machine.
    pub machine: Machine,
    /// Virtual time in nanoseconds.
    pub now: u64,
}

/// What a server keeps its tables in.
struct Storage {
    blocks: Vec<Block>,
    entries: Vec<Entry>,
    regions: Vec<Region>,
    records: Vec<Record>,
    buckets: Vec<u32>,
    pool: Vec<PoolFrame>,
    swap: Vec<u64>,
}

impl Storage {
    /// For `blocks` blocks of 2 MiB, so many sharing records and frames for compressed pages, and the policy's swap area.
    fn new(blocks: u32, records: u64, pool: u64, policy: &Policy) -> Self {
        let frames = (blocks * FRAMES_PER_BLOCK) as usize;
        Self {
            blocks: vec![Block::EMPTY; blocks as usize],
            entries: vec![Entry::ABSENT; frames * 8],
            regions: vec![Region::NEW; blocks as usize * 8],
            records: vec![Record::EMPTY; records as usize],
            buckets: vec![0; records as usize],
            pool: vec![PoolFrame::NONE; pool as usize],
            swap: vec![0; (policy.swap_slots as usize).div_ceil(64)],
        }
    }

    fn tables(&mut self) -> Tables<'_> {
        Tables {
            blocks: &mut self.blocks,
            entries: &mut self.entries,
            regions: &mut self.regions,
            records: &mut self.records,
            buckets: &mut self.buckets,
            pool: &mut self.pool,
            swap: &mut self.swap,
        }
    }
}

impl World<'static> {
    /// `blocks` blocks of 2 MiB; sharing records for every page of memory, as the paper has, and a quarter of it for compressed
    /// pages.
    pub fn new(blocks: u32, policy: Policy) -> Self {
        let frames = u64::from(blocks * FRAMES_PER_BLOCK);
        Self::with_tables(blocks, frames, frames / 4, policy)
    }

    /// The same with so many sharing records, and frames for compressed pages.
    ///
    /// # Panics
    ///
    /// If there is no memory at all.
    pub fn with_tables(blocks: u32, records: u64, pool: u64, policy: Policy) -> Self {
        let storage = Storage::new(blocks, records, pool, &policy);
        Self::over(Box::leak(Box::new(storage)).tables(), policy)
    }
}

impl<'a> World<'a> {
    #[expect(clippy::expect_used, reason = "an experiment on no memory is a mistake in this crate")]
    fn over(tables: Tables<'a>, policy: Policy) -> Self {
        let mut machine = Machine::new(tables.blocks.len() as u32);
        let server = Server::new(tables, policy, &mut machine).expect("there is memory");
        Self { server, machine, now: 0 }
    }

    /// Admits a VM; false if that was refused.
    pub fn admit(&mut self, vm: VmId, memory: VmMemory) -> bool {
        let request = MemRequest::CreateVm { vm, memory };
        matches!(self.server.order(request, &mut self.machine), MemReply::Created { .. })
    }

    /// The swap disk does what is queued.
    pub fn drain_disk(&mut self) {
        while let Some((transfer, ok)) = self.machine.disk_step(false) {
            self.server.swap_done(transfer, ok);
        }
    }

    /// Lets time pass and background work happen.
    pub fn tick(&mut self, elapsed: u64) {
        self.now += elapsed;
        self.server.tick(Nanos(self.now), &mut self.machine);
    }

    /// The guest touches page `index`: faults until it is there. Answers the time that took; `None` if it was refused.
    pub fn touch(&mut self, vm: VmId, index: u32, write: bool) -> Option<u64> {
        let memory = self.server.vm(vm)?.memory;
        let mut cost = 0;
        for _ in 0..1000 {
            let there = match self.server.entry(vm, index) {
                Some(entry) if write => entry.is_writable(),
                Some(entry) => entry.is_mapped(),
                None => false,
            };
            if there {
                // The machine's accessed bit.
                self.machine.read(vm, index);
                return Some(cost);
            }
            let access = if write { access::WRITE } else { 0 };
            match self.server.fault_in(vm, memory.gfn_of(index), access, &mut self.machine) {
                Fault::Mapped => {}
                Fault::Pending => {
                    cost += DISK;
                    self.drain_disk();
                }
                Fault::Refused(_) => {
                    let before = self.machine.counters.swap_writes;
                    self.drain_disk();
                    cost += DISK;
                    if before == self.machine.counters.swap_writes && cost > 20 * DISK {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The guest writes page `index`. Time, or `None` if it was refused.
    pub fn write(&mut self, vm: VmId, index: u32, tag: u64) -> Option<u64> {
        let cost = self.touch(vm, index, true)?;
        self.machine.write(vm, index, Content::Tag(tag)).then_some(cost)
    }

    /// The guest reads page `index`: what is in it.
    pub fn read(&mut self, vm: VmId, index: u32) -> Option<u64> {
        self.touch(vm, index, false)?;
        match self.machine.read(vm, index)? {
            Content::Tag(tag) => Some(*tag),
            Content::Bytes(_) => None,
        }
    }

    /// The guest gives page `index` to its balloon.
    pub fn balloon(&mut self, vm: VmId, index: u32) -> bool {
        let Some(record) = self.server.vm(vm) else { return false };
        let range = GfnRange::new(record.memory.gfn_of(index), 1);
        let ranges = range.into_iter();
        self.server.release(vm, release_reason::BALLOON, ranges, &mut self.machine).done == 1
    }

    /// The guest takes page `index` from its balloon.
    pub fn deflate(&mut self, vm: VmId, index: u32) -> bool {
        let Some(record) = self.server.vm(vm) else { return false };
        let range = GfnRange::new(record.memory.gfn_of(index), 1);
        self.server.deflate(vm, range.into_iter()).done == 1
    }

    /// A VM's pages in a state.
    pub fn count(&self, vm: VmId, state: PageState) -> u64 {
        self.server.vm(vm).map_or(0, |record| record.count(state))
    }

    /// A VM's frames, its part of shared ones included.
    pub fn charged(&self, vm: VmId) -> u64 {
        self.server.vm_stats(vm).map_or(0, |stats| stats.consumed)
    }
}

/// A guest whose memory is an LRU cache of a file on disk, with a balloon driver.
///
/// Its kernel keeps 1/64 of the memory it was *configured* with for page structures, ballooned or not: that is what a
/// balloon cannot give back.
pub struct CacheGuest {
    /// Which VM.
    pub vm: VmId,
    free: Vec<u32>,
    /// Balloon driver's pages.
    pub ballooned: Vec<u32>,
    cached: HashMap<u64, (u64, u32)>,
    order: BTreeMap<u64, u64>,
    stamp: u64,
    /// Reads that went to the guest's disk.
    pub misses: u64,
    driver: bool,
}

impl CacheGuest {
    /// A guest with `pages` of memory; its kernel's part is touched at once.
    pub fn new(world: &mut World, vm: VmId, pages: u64) -> Self {
        let kernel = (pages / 64) as u32;
        for index in 0..kernel {
            world.write(vm, index, mem_server::hash::mix(u64::from(index) + 1));
        }
        let driver =
            world.server.control(vm, MemRequest::BalloonReady { ready: true }) == MemReply::Done;
        Self {
            vm,
            free: (kernel..pages as u32).rev().collect(),
            ballooned: Vec::new(),
            cached: HashMap::new(),
            order: BTreeMap::new(),
            stamp: 0,
            misses: 0,
            driver,
        }
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, file) = self.order.pop_first()?;
        self.cached.remove(&file).map(|(_, page)| page)
    }

    /// Its pages, the one it would evict next first.
    pub fn coldest(&self) -> impl Iterator<Item = u32> {
        self.order.values().filter_map(|file| self.cached.get(file)).map(|(_, page)| *page)
    }

    /// The page that reading `file` would evict.
    pub fn would_evict(&self, file: u64) -> Option<u32> {
        if self.cached.contains_key(&file) || !self.free.is_empty() {
            return None;
        }
        self.coldest().next()
    }

    /// Pages the file cache holds.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Reads page `file` of the file; the time it took.
    pub fn access(&mut self, world: &mut World, file: u64) -> u64 {
        self.stamp += 1;
        if let Some((stamp, page)) = self.cached.get_mut(&file) {
            self.order.remove(stamp);
            *stamp = self.stamp;
            self.order.insert(self.stamp, file);
            let page = *page;
            return OPERATION + world.touch(self.vm, page, false).unwrap_or(0);
        }
        self.misses += 1;
        let Some(page) = self.free.pop().or_else(|| self.evict()) else { return OPERATION };
        // Data that neither compresses nor equals any other page.
        let tag = INCOMPRESSIBLE | mem_server::hash::mix(file ^ u64::from(self.vm.0) << 40);
        let fault = world.write(self.vm, page, tag).unwrap_or(0);
        self.cached.insert(file, (self.stamp, page));
        self.order.insert(self.stamp, file);
        OPERATION + DISK + fault
    }

    /// The balloon driver moves towards the device's target, at most `step` pages.
    pub fn run_driver(&mut self, world: &mut World, step: usize) {
        if !self.driver {
            return;
        }
        let info = world.server.control(self.vm, MemRequest::Info);
        let MemReply::Info(info) = info else { return };
        let target = info.balloon_target.0 as usize;
        for _ in 0..step {
            if self.ballooned.len() < target {
                let Some(page) = self.free.pop().or_else(|| self.evict()) else { break };
                if !world.balloon(self.vm, page) {
                    self.free.push(page);
                    break;
                }
                self.ballooned.push(page);
            } else if self.ballooned.len() > target {
                let Some(page) = self.ballooned.pop() else { break };
                world.deflate(self.vm, page);
                self.free.push(page);
            } else {
                break;
            }
        }
        let stats = GuestStats { major_faults: Some(0), ..GuestStats::default() };
        world.server.control(self.vm, MemRequest::GuestStats(stats));
    }

    /// Fixes the balloon and lets the driver reach it.
    pub fn inflate_to(&mut self, world: &mut World, pages: u64) {
        let target = Some(Pages(pages));
        world.server.order(MemRequest::SetBalloon { vm: self.vm, target }, &mut world.machine);
        self.run_driver(world, pages as usize);
    }
}

/// Zipf-distributed numbers below `count`, exponent 0.9, by inversion of the summed weights.
pub struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    /// Over `count` numbers.
    pub fn new(count: u64) -> Self {
        let mut sum = 0.0;
        let sums = (0..count)
            .map(|rank| {
                sum += 1.0 / ((rank + 1) as f64).powf(0.9);
                sum
            })
            .collect();
        Self { sums }
    }

    /// The next number; ranks are scattered over the file.
    pub fn next(&self, rng: &mut crate::rng::Rng) -> u64 {
        let total = self.sums.last().copied().unwrap_or(1.0);
        let point = (rng.next() >> 11) as f64 / (1u64 << 53) as f64 * total;
        let rank = self.sums.partition_point(|sum| *sum < point) as u64;
        // A prime: a permutation of every file it does not divide.
        rank.wrapping_mul(40_507) % self.sums.len() as u64
    }
}
