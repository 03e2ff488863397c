//! Root task that measures kernel operations in executed instructions and ends the run.
//!
//! Boot module 0 under `-icount shift=0`, where one TSC tick is one instruction. Prints lines
//! `BENCH key value` on the kernel's console, then `BENCH done 1`, and leaves through the exit device.
//!
//! * `ipc_call_reply_0`, `_10`: kernel part of Call and ReplyRecv between two address spaces, passive
//!   server: everything between the SYSCALL instructions of both sides and their next instructions.
//!   `_total` adds the instructions of the two stubs.
//! * `signal_wait`: Signal, then Wait, of one thread on one notification, stubs included.
//! * `signal_wait_switch`: Signal and Wait both ways between two threads of two address spaces.
//! * `page_map_4k`, `page_unmap_4k`, `retype_4k`: one invocation, stub included.
#![no_std]
#![no_main]

mod measure;

use core::fmt::Debug;

use measure::{Round, calibration, call_round, peer_entry, signal_peer_entry, signal_round, tsc};
use sel4::init_thread::slot;
use sel4::{
    BootInfoPtr, CNodeCapData, CPtr, Cap, CapRights, Error, FrameObjectType, ObjectBlueprint,
    ObjectBlueprintX64, TranslationTableObjectType as Table, UserContext, VmAttributes, cap,
    cap_type::CapType, debug_println,
};

runtime::root_task!(main, 64 << 10);

/// Rounds before the caches and page tables of the emulator are warm enough not to matter: the least of many is taken.
const ROUNDS: u32 = 200;
const CLIENT_PRIORITY: u64 = 100;
const SERVER_PRIORITY: u64 = 101;
/// Where the server's IPC buffer is mapped in its own address space.
const SERVER_BUFFER: u64 = 0x7000_0000;
/// Where frames are mapped and unmapped in our own.
const MAP_BASE: u64 = 0x6000_0000;
/// Frames mapped, unmapped and made.
const FRAMES: u64 = 64;
const EXIT_PORT: u16 = 0xf4;
/// What the exit device is told when all went well, and when something did not.
const EXIT_GOOD: u32 = 32;
const EXIT_WRONG: u32 = 33;
/// Words of the longer message.
const LONG_WORDS: u64 = 10;

/// A kernel call failed: which and why.
#[derive(Debug)]
struct Failed(
    #[expect(dead_code, reason = "printed")] &'static str,
    #[expect(dead_code, reason = "printed")] Error,
);

trait Step<T> {
    fn step(self, what: &'static str) -> Result<T, Failed>;
}

impl<T> Step<T> for sel4::Result<T> {
    fn step(self, what: &'static str) -> Result<T, Failed> {
        self.map_err(|error| Failed(what, error))
    }
}

/// Slots and memory, handed out once.
struct Pool {
    next: u64,
    untyped: cap::Untyped,
}

impl Pool {
    fn make<T: CapType>(&mut self, blueprint: ObjectBlueprint) -> Result<Cap<T>, Failed> {
        let number = self.next;
        self.next += 1;
        let root = slot::CNODE.cap().absolute_cptr_for_self();
        self.untyped.untyped_retype(&blueprint, &root, number, 1).step("retype")?;
        Ok(Cap::from_bits(number))
    }

    fn copy<T: CapType>(&mut self, source: CPtr) -> Result<Cap<T>, Failed> {
        let number = CPtr::from_bits(self.next);
        self.next += 1;
        let root = slot::CNODE.cap();
        root.absolute_cptr(number)
            .copy(&root.absolute_cptr(source), CapRights::all())
            .step("copy")?;
        Ok(number.cast())
    }

    /// Maps a frame, with the tables that are missing.
    fn map(&mut self, vspace: cap::VSpace, frame: cap::Granule, vaddr: u64) -> Result<(), Failed> {
        let attributes = VmAttributes::DEFAULT;
        let rights = CapRights::read_write();
        if frame.frame_map(vspace, vaddr, rights, attributes) != Err(Error::FailedLookup) {
            return Ok(());
        }
        let table: cap::PageTable = self.make(Table::PageTable.blueprint())?;
        if table.page_table_map(vspace, vaddr, attributes).is_err() {
            let directory: cap::PageDirectory = self.make(Table::PageDirectory.blueprint())?;
            if directory.page_directory_map(vspace, vaddr, attributes).is_err() {
                let pdpt: cap::PDPT = self.make(Table::PDPT.blueprint())?;
                pdpt.pdpt_map(vspace, vaddr, attributes).step("map a PDPT")?;
                directory.page_directory_map(vspace, vaddr, attributes).step("map a directory")?;
            }
            table.page_table_map(vspace, vaddr, attributes).step("map a table")?;
        }
        frame.frame_map(vspace, vaddr, rights, attributes).step("map a frame")
    }
}

fn main(boot: BootInfoPtr) -> ! {
    let code = match run(&boot) {
        Ok(()) => EXIT_GOOD,
        Err(failed) => {
            debug_println!("BENCH failed: {failed:?}");
            EXIT_WRONG
        }
    };
    leave(&boot, code)
}

fn leave(boot: &BootInfoPtr, code: u32) -> ! {
    let last = CPtr::from_bits(boot.empty().end() - 1);
    let place = slot::CNODE.cap().absolute_cptr(last);
    let issued = slot::IO_PORT_CONTROL.cap().ioport_control_issue(EXIT_PORT, EXIT_PORT + 3, &place);
    if issued.is_ok() {
        let port: cap::IOPort = last.cast();
        let _ = port.ioport_out32(EXIT_PORT, code);
    }
    sel4::init_thread::suspend_self()
}

fn report(key: &str, value: impl Debug) {
    debug_println!("BENCH {key} {value:?}");
}

fn least(mut round: impl FnMut() -> u64) -> u64 {
    (0..ROUNDS).map(|_| round()).min().unwrap_or(u64::MAX)
}

/// A second address space with the same program in it.
fn second_vspace(boot: &BootInfoPtr, pool: &mut Pool) -> Result<cap::VSpace, Failed> {
    let vspace: cap::VSpace = pool.make(ObjectBlueprintX64::PML4.into())?;
    slot::ASID_POOL.cap().asid_pool_assign(vspace).step("assign an ASID")?;
    let frames = boot.user_image_frames();
    for page in 0..frames.len() {
        if let Some(frame) = frames.index(page) {
            let copy = pool.copy(frame)?;
            pool.map(vspace, copy, 0x40_0000 + page * 4096)?;
        }
    }
    Ok(vspace)
}

struct Peer {
    tcb: cap::Tcb,
    context: cap::SchedContext,
}

/// A thread in the second address space that starts at `entry` with two words in registers.
fn peer(
    boot: &BootInfoPtr,
    pool: &mut Pool,
    vspace: cap::VSpace,
    buffer: u64,
    entry: u64,
    words: [u64; 2],
) -> Result<Peer, Failed> {
    let tcb: cap::Tcb = pool.make(ObjectBlueprint::Tcb)?;
    let context: cap::SchedContext = pool.make(ObjectBlueprint::SchedContext { size_bits: 8 })?;
    let control = boot.sched_control().index(0).map(CPtr::cast::<sel4::cap_type::SchedControl>);
    if let Some(control) = control {
        control
            .sched_control_configure_flags(context, 10_000, 10_000, 0, 0, 0)
            .step("configure a scheduling context")?;
    }
    let frame = pool.make(FrameObjectType::_4k.blueprint())?;
    pool.map(vspace, frame, buffer)?;
    let guard = CNodeCapData::skip_high_bits(boot.init_thread_cnode_size_bits());
    tcb.tcb_configure(slot::CNODE.cap(), guard, vspace, buffer, frame).step("configure")?;
    let none = Cap::from_bits(0);
    tcb.tcb_set_sched_params(slot::TCB.cap(), 0, SERVER_PRIORITY, context, none)
        .step("set priority")?;
    tcb.tcb_set_flags(sel4::TcbFlags(0), sel4::TcbFlags::FPU_DISABLED).step("set flags")?;
    let registers =
        UserContext { rip: entry, rdi: words[0], r12: words[1], ..UserContext::default() };
    tcb.tcb_write_all_registers(true, &registers).step("start")?;
    Ok(Peer { tcb, context })
}

fn run(boot: &BootInfoPtr) -> Result<(), Failed> {
    let largest = boot
        .untyped_list()
        .zip(boot.untyped().start()..)
        .filter(|(untyped, _)| !untyped.is_device())
        .max_by_key(|(untyped, _)| untyped.size_bits());
    let untyped = Cap::from_bits(largest.map_or(0, |(_, number)| number));
    let mut pool = Pool { next: boot.empty().start(), untyped };
    let own = slot::TCB.cap();
    own.tcb_set_flags(sel4::TcbFlags(0), sel4::TcbFlags::FPU_DISABLED).step("set flags")?;
    own.tcb_set_priority(own, CLIENT_PRIORITY).step("set the own priority")?;
    let vspace = second_vspace(boot, &mut pool)?;
    ipc(boot, &mut pool, vspace)?;
    signals(boot, &mut pool, vspace)?;
    memory(&mut pool)?;
    report("done", 1);
    Ok(())
}

fn ipc(boot: &BootInfoPtr, pool: &mut Pool, vspace: cap::VSpace) -> Result<(), Failed> {
    let endpoint: cap::Endpoint = pool.make(ObjectBlueprint::Endpoint)?;
    let reply: cap::Reply = pool.make(ObjectBlueprint::Reply)?;
    let words = [endpoint.bits(), reply.bits()];
    let server = peer(boot, pool, vspace, SERVER_BUFFER, peer_entry(), words)?;
    // It has a higher priority, so it waits in its receive by now: make it passive.
    server.context.unbind().step("make passive")?;
    let user = least(calibration);
    for (length, key, total) in [
        (0, "ipc_call_reply_0", "ipc_call_reply_0_total"),
        (LONG_WORDS, "ipc_call_reply_10", "ipc_call_reply_10_total"),
    ] {
        let Round { client, server } = Round::of_call();
        let ticks = least(|| call_round(endpoint.bits(), length));
        report(total, ticks - user + client);
        report(key, ticks - user - server);
    }
    server.tcb.tcb_suspend().step("stop")
}

fn signals(boot: &BootInfoPtr, pool: &mut Pool, vspace: cap::VSpace) -> Result<(), Failed> {
    let own: cap::Notification = pool.make(ObjectBlueprint::Notification)?;
    let badged = CPtr::from_bits(pool.next);
    pool.next += 1;
    let root = slot::CNODE.cap();
    let source = root.absolute_cptr(own);
    root.absolute_cptr(badged).mint(&source, CapRights::all(), 1).step("mint")?;
    let signalled: cap::Notification = badged.cast();
    let empty = least(|| {
        let start = tsc();
        tsc() - start
    });
    let ticks = least(|| {
        let start = tsc();
        signalled.signal();
        own.wait();
        tsc() - start
    });
    report("signal_wait", ticks - empty);
    let there: cap::Notification = pool.make(ObjectBlueprint::Notification)?;
    let words = [there.bits(), signalled.bits()];
    let buffer = SERVER_BUFFER + 0x1000;
    let server = peer(boot, pool, vspace, buffer, signal_peer_entry(), words)?;
    let ticks = least(|| signal_round(there.bits(), own.bits()));
    report("signal_wait_switch", ticks - empty);
    server.tcb.tcb_suspend().step("stop")
}

fn memory(pool: &mut Pool) -> Result<(), Failed> {
    let root = slot::CNODE.cap().absolute_cptr_for_self();
    let blueprint = FrameObjectType::_4k.blueprint();
    let vspace = slot::VSPACE.cap();
    let first = pool.next;
    pool.next += FRAMES;
    let mut retype = u64::MAX;
    for number in first..first + FRAMES {
        let start = tsc();
        let made = pool.untyped.untyped_retype(&blueprint, &root, number, 1);
        retype = retype.min(tsc() - start);
        made.step("retype")?;
    }
    report("retype_4k", retype);
    let spare: cap::Granule = pool.make(blueprint)?;
    pool.map(vspace, spare, MAP_BASE - 4096)?;
    pool.map(vspace, Cap::from_bits(first), MAP_BASE)?;
    let (mut map, mut unmap) = (u64::MAX, u64::MAX);
    for page in 1..FRAMES {
        let frame: cap::Granule = Cap::from_bits(first + page);
        let vaddr = MAP_BASE + page * 4096;
        let start = tsc();
        let mapped = frame.frame_map(vspace, vaddr, CapRights::read_write(), VmAttributes::DEFAULT);
        map = map.min(tsc() - start);
        mapped.step("map")?;
    }
    for page in 1..FRAMES {
        let frame: cap::Granule = Cap::from_bits(first + page);
        let start = tsc();
        let unmapped = frame.frame_unmap();
        unmap = unmap.min(tsc() - start);
        unmapped.step("unmap")?;
    }
    report("page_map_4k", map);
    report("page_unmap_4k", unmap);
    Ok(())
}
