//! Servers: made of their images, given what they need, taken apart.

use heapless::Vec;
use protocol::archive::Kind;
use protocol::link::ServerId;
use protocol::ring::{BLK_RING_BYTES, format_blk_ring};
use protocol::slots::{self, Client, FAULT_BADGE, notify};
use protocol::startup::{self, Role, SlotRange, Startup};
use protocol::system::Vm;
use protocol::units::{DiskId, MACHINE_DISKS_MAX, MAX_VMS, PAGE_SIZE, Pages, VmId};
use root_task::arena::Arena;
use root_task::plan::{Image, Segment, page_bytes};
use root_task::space;
use root_task::system::server_id;
use sel4::init_thread::slot;
use sel4::{
    CNodeCapData, CPtr, Cap, CapRights, CapRightsBuilder, ObjectBlueprint, ObjectBlueprintBallast,
    ObjectBlueprintX64, TcbFlags, UserContext, cap,
};

use super::archive::{Blob, Blobs};
use super::disks::DiskDevices;
use super::objects::{CSpace, Fail, Objects, SideSpace, Tried};
use super::window::{self, SCRATCH_VADDR, ViewPage};

/// Priority of the root-task: below the servers it must never interrupt in the middle of a call, above all VMs.
pub const ROOT_PRIORITY: u64 = 200;
const MEM_PRIORITY: u64 = 230;
const IO_PRIORITY: u64 = 240;
const VMM_PRIORITY: u64 = 100;
/// Stack of a vmm-server in pages.
const VMM_STACK_PAGES: u64 = 24;
/// Stack of a shared server in pages: their tables are built on it.
const SERVER_STACK_PAGES: u64 = 128;
/// Slots of a vmm-server's CSpace, log2.
const VMM_RADIX: u64 = 6;
/// Slots of the io-sched-server's CSpace, log2: fixed slots and one notification per client.
const IO_RADIX: u64 = 7;
/// Slots of the mem-server's first CNode, log2: the size of its own slabs.
const MEM_RADIX: u64 = 12;
/// Size of a scheduling context, log2: room for eight refills beyond the least.
const SC_BITS: u64 = 8;
/// Time slice of VMs of one core among each other, in microseconds.
const VMM_SLICE_US: u64 = 5_000;
/// Time slice of shared servers' background work, in microseconds.
const SERVER_SLICE_US: u64 = 10_000;
/// Where the trivial tables and objects of a server fit, in bytes beside its pages.
const OBJECT_BYTES: u64 = 48 << 10;
/// Bytes of a VCPU and what comes with it.
const VCPU_BYTES: u64 = 64 << 10;

const SEND: CapRights = CapRightsBuilder::send();
const RECEIVE: CapRights = CapRights::read_only();
const SIGNAL: CapRights = CapRights::write_only();

/// What exists once and outlives every server.
#[derive(Debug)]
pub struct Core {
    /// Memory of all this.
    pub arena: Arena,
    /// Where everyone calls the root-task.
    pub root_ep: cap::Endpoint,
    /// What wakes the root-task.
    pub root_notification: cap::Notification,
    /// Where VMs call the mem-server.
    pub mem_ep: cap::Endpoint,
    /// Where VMs call the io-sched-servers, by disk.
    io_eps: [cap::Endpoint; MACHINE_DISKS_MAX],
    /// Scheduling contexts: by VM, then mem-server and io-sched-servers. They outlive their servers, so that a shared server
    /// running on one is not stopped by the end of its caller.
    contexts: [Option<cap::SchedContext>; CONTEXTS],
    /// Reply objects of the io-sched-servers: they outlive them, so that a caller can be answered when its server is gone.
    io_replies: [cap::Reply; MACHINE_DISKS_MAX],
    /// One per core of the machine.
    pub sched_control: sel4::SlotRegion,
    /// Ticks of the TSC per microsecond.
    pub tsc_mhz: u32,
    /// Unix time when the TSC was zero, in seconds.
    pub wall_seconds: u64,
    /// Memory of the machine.
    pub machine_memory: Pages,
}

/// A server that exists.
#[derive(Debug)]
pub struct Server {
    arena: Arena,
    blobs: Arena,
    /// Capabilities of the pages of its start-up blobs.
    blob_space: Option<SideSpace>,
    /// Its thread.
    pub tcb: cap::Tcb,
    /// Its CSpace.
    pub cspace: CSpace,
    vspace: cap::VSpace,
    notification: cap::Notification,
    /// Signals [`notify::ROOT`].
    root_signal: cap::Notification,
    /// Signals [`notify::CONSOLE`].
    console_signal: cap::Notification,
    /// Its own scheduling context.
    pub context: cap::SchedContext,
    vcpu: Option<cap::VCpu>,
    /// It has entered its receive loop and lost its scheduling context to its notification.
    pub is_passive: bool,
    /// Frames its log lost, as told to the host.
    pub logs_lost: u64,
    /// Microseconds charged to its scheduling context so far.
    pub consumed_us: u64,
}

/// The ring of a client.
#[derive(Debug)]
pub struct Ring {
    arena: Arena,
    frames: u64,
    /// Physical address of its first byte.
    pub paddr: u64,
    io_copies: u64,
    /// The disk whose io-sched-server serves it.
    pub on: DiskId,
}

const RING_PAGES: u64 = BLK_RING_BYTES as u64 / PAGE_SIZE;

/// How a server is to be made.
struct Spec {
    client: Client,
    image: &'static str,
    radix: u64,
    priority: u64,
    heap_bytes: u64,
    stack_pages: u64,
    core: u64,
}

const NO_DISK: Fail = Fail::Archive("a disk that no machine has");

/// Servers there may be at once.
const CONTEXTS: usize = MAX_VMS + 1 + MACHINE_DISKS_MAX;

/// Index of a server among views and scheduling contexts.
pub const fn index(client: Client) -> usize {
    match client {
        Client::Vmm(vm) => vm.0 as usize,
        Client::Mem => MAX_VMS,
        Client::Io(disk) => MAX_VMS + 1 + disk.index(),
    }
}

fn sent_by(client: Client) -> u64 {
    client.root_notify_bit() | notify::SIGNAL
}

impl Core {
    fn context(
        &mut self,
        objects: &mut Objects,
        client: Client,
        core: u64,
    ) -> Result<cap::SchedContext, Fail> {
        if let Some(context) = self.contexts[index(client)] {
            // A shared server may still sit on it for a caller that is gone. Bound to nothing, it needs no unbinding.
            let _ = context.unbind();
            return Ok(context);
        }
        let blueprint = ObjectBlueprint::SchedContext { size_bits: SC_BITS };
        let context: cap::SchedContext = objects.make(&mut self.arena, blueprint)?;
        let slice = match client {
            Client::Vmm(_) => VMM_SLICE_US,
            Client::Mem | Client::Io(_) => SERVER_SLICE_US,
        };
        let control = self.sched_control.index(core % self.sched_control.len().max(1));
        let control = control.ok_or(Fail::Archive("no core to run on"))?;
        control
            .cast::<sel4::cap_type::SchedControl>()
            .sched_control_configure_flags(context, slice, slice, 0, index(client) as u64, 0)
            .tried("configure a scheduling context")?;
        self.contexts[index(client)] = Some(context);
        Ok(context)
    }

    /// Makes what exists once.
    pub fn new(
        objects: &mut Objects,
        boot: &sel4::BootInfoPtr,
        machine_memory: Pages,
    ) -> Result<Self, Fail> {
        let mut arena = Arena::new();
        let root_ep = objects.make(&mut arena, ObjectBlueprint::Endpoint)?;
        let mem_ep = objects.make(&mut arena, ObjectBlueprint::Endpoint)?;
        let mut io_eps = [cap::Endpoint::from_bits(0); MACHINE_DISKS_MAX];
        let mut io_replies = [cap::Reply::from_bits(0); MACHINE_DISKS_MAX];
        for (endpoint, reply) in io_eps.iter_mut().zip(&mut io_replies) {
            *endpoint = objects.make(&mut arena, ObjectBlueprint::Endpoint)?;
            *reply = objects.make(&mut arena, ObjectBlueprint::Reply)?;
        }
        let root_notification = objects.make(&mut arena, ObjectBlueprint::Notification)?;
        Ok(Self {
            arena,
            io_replies,
            root_ep,
            root_notification,
            mem_ep,
            io_eps,
            contexts: [None; CONTEXTS],
            sched_control: boot.sched_control(),
            tsc_mhz: runtime::clock::tsc_mhz(),
            wall_seconds: 0,
            machine_memory,
        })
    }

    fn cores(&self) -> u64 {
        self.sched_control.len().max(1)
    }

    /// Answers the caller of an io-sched-server that is gone, so that it goes on with its own scheduling context. A doorbell
    /// has no answer to miss: the requests are in the rings.
    pub fn answer_io_caller(&self, disk: DiskId) {
        if let Some(reply) = self.io_replies.get(disk.index()) {
            reply.reply_with_mrs(sel4::MessageInfo::new(0, 0, 0, 0), [0; 4]);
        }
    }

    /// Where the io-sched-server of `disk` is called.
    fn io_ep(&self, disk: DiskId) -> Result<cap::Endpoint, Fail> {
        self.io_eps.get(disk.index()).copied().ok_or(NO_DISK)
    }
}

/// Fills a new frame through the scratch page.
fn fill(
    objects: &mut Objects,
    core: &mut Core,
    frame: cap::Granule,
    parts: &[(usize, &[u8])],
) -> Result<(), Fail> {
    let own = slot::VSPACE.cap();
    objects.map(&mut core.arena, own, frame, SCRATCH_VADDR, CapRights::read_write())?;
    for (offset, bytes) in parts {
        window::fill_scratch(*offset, bytes);
    }
    frame.frame_unmap().tried("unmap a filled frame")
}

impl Server {
    fn new(
        objects: &mut Objects,
        core: &mut Core,
        blobs: &Blobs,
        spec: &Spec,
        role: impl FnOnce(&mut Objects, &Self) -> Result<Role, Fail>,
    ) -> Result<Self, Fail> {
        let mut arena = Arena::new();
        match Self::make(objects, core, blobs, spec, &mut arena) {
            Ok(mut server) => {
                server.arena = arena;
                match server.finish(objects, core, blobs, spec, role) {
                    Ok(()) => Ok(server),
                    Err(fail) => {
                        server.destroy(objects);
                        Err(fail)
                    }
                }
            }
            Err(fail) => {
                objects.caps.server_gone(server_id(spec.client));
                objects.release(&mut arena);
                Err(fail)
            }
        }
    }

    /// Thread, CSpace, address space and notification, without content.
    fn make(
        objects: &mut Objects,
        core: &mut Core,
        blobs: &Blobs,
        spec: &Spec,
        arena: &mut Arena,
    ) -> Result<Self, Fail> {
        let blob = image_blob(blobs, spec)?;
        let image = parse(&blob)?;
        let pages = image.private_pages() + spec.stack_pages + spec.heap_bytes / PAGE_SIZE + 5;
        let vcpu_bytes = if matches!(spec.client, Client::Vmm(_)) { VCPU_BYTES } else { 0 };
        let bytes = pages * PAGE_SIZE + vcpu_bytes + OBJECT_BYTES + (32 << spec.radix);
        objects.reserve(arena, bytes)?;
        let vcpu = match spec.client {
            Client::Vmm(_) => Some(objects.make(arena, ObjectBlueprintBallast::Vcpu.into())?),
            Client::Mem | Client::Io(_) => None,
        };
        let cnode: cap::CNode =
            objects.make(arena, ObjectBlueprint::CNode { size_bits: spec.radix })?;
        let vspace: cap::VSpace = objects.make(arena, ObjectBlueprintX64::PML4.into())?;
        slot::ASID_POOL.cap().asid_pool_assign(vspace).tried("assign an ASID")?;
        let tcb: cap::Tcb = objects.make(arena, ObjectBlueprint::Tcb)?;
        let notification = objects.make(arena, ObjectBlueprint::Notification)?;
        let badged = |objects: &mut Objects, arena: &mut Arena, bit| {
            objects.mint(arena, notification, bit | notify::SIGNAL)
        };
        let root_signal = badged(objects, arena, notify::ROOT)?;
        let console_signal = badged(objects, arena, notify::CONSOLE)?;
        let context = core.context(objects, spec.client, spec.core)?;
        Ok(Self {
            arena: Arena::new(),
            blobs: Arena::new(),
            blob_space: None,
            tcb,
            cspace: CSpace { server: server_id(spec.client), cnode, radix: spec.radix },
            vspace,
            notification,
            root_signal,
            console_signal,
            context,
            vcpu,
            is_passive: false,
            logs_lost: 0,
            consumed_us: 0,
        })
    }

    fn finish(
        &mut self,
        objects: &mut Objects,
        core: &mut Core,
        blobs: &Blobs,
        spec: &Spec,
        role: impl FnOnce(&mut Objects, &Self) -> Result<Role, Fail>,
    ) -> Result<(), Fail> {
        let blob = image_blob(blobs, spec)?;
        let image = parse(&blob)?;
        for segment in &image.segments {
            self.map_segment(objects, core, blobs, &blob, segment)?;
        }
        let stack_bottom = startup::STACK_TOP - spec.stack_pages * PAGE_SIZE;
        self.map_zeros(objects, stack_bottom, spec.stack_pages)?;
        self.map_zeros(objects, startup::HEAP_VADDR, spec.heap_bytes / PAGE_SIZE)?;
        let ipc_buffer = objects.make_frame(&mut self.arena)?;
        self.map_page(objects, ipc_buffer, startup::IPC_BUFFER_VADDR, CapRights::read_write())?;
        self.share_page(objects, core, spec.client, ViewPage::Shared, startup::SHARED_VADDR)?;
        self.share_page(objects, core, spec.client, ViewPage::Log, startup::LOG_VADDR)?;
        if matches!(spec.client, Client::Vmm(_)) {
            self.share_page(objects, core, spec.client, ViewPage::Console, startup::CONSOLE_VADDR)?;
        }
        self.give_common(objects, core, spec)?;
        let free_start = match spec.client {
            Client::Mem => slots::MEM_UNTYPEDS + startup::UNTYPEDS_MAX as u64,
            Client::Io(_) => slots::IO_CLIENT_NOTIFY + protocol::io::MAX_CLIENTS as u64,
            Client::Vmm(_) => slots::VMM_IO_END,
        };
        let startup = Startup {
            tsc_mhz: core.tsc_mhz,
            free_slots: SlotRange { start: free_start, end: 1 << spec.radix },
            heap_bytes: spec.heap_bytes,
            machine_memory: core.machine_memory,
            role: role(objects, self)?,
        };
        let mut page = [0; PAGE_SIZE as usize];
        startup::encode(&startup, &mut page).ok_or(Fail::Archive("start-up page is too long"))?;
        let frame = objects.make_frame(&mut self.arena)?;
        fill(objects, core, frame, &[(0, &page)])?;
        self.map_page(objects, frame, startup::STARTUP_VADDR, CapRights::read_only())?;
        self.configure(objects, core, spec, ipc_buffer, image.entry)
    }

    fn configure(
        &mut self,
        objects: &mut Objects,
        core: &Core,
        spec: &Spec,
        ipc_buffer: cap::Granule,
        entry: u64,
    ) -> Result<(), Fail> {
        let fault_ep = match spec.client {
            Client::Vmm(vm) => {
                let badge = slots::mem_badge(vm) | FAULT_BADGE;
                objects.mint(&mut self.arena, core.mem_ep, badge)?
            }
            client => {
                let badge = client.badge() | FAULT_BADGE;
                objects.mint(&mut self.arena, core.root_ep, badge)?
            }
        };
        if spec.client == Client::Mem {
            let rights = CapRights::all();
            let number = slots::FAULT_ENDPOINT;
            objects.give(self.cspace, number, fault_ep, rights, 0, "its own fault handler")?;
        }
        let guard = CNodeCapData::skip_high_bits(spec.radix);
        self.tcb
            .tcb_configure(
                self.cspace.cnode,
                guard,
                self.vspace,
                startup::IPC_BUFFER_VADDR,
                ipc_buffer,
            )
            .tried("configure a thread")?;
        self.tcb
            .tcb_set_sched_params(slot::TCB.cap(), 0, spec.priority, self.context, fault_ep)
            .tried("set a thread's priority")?;
        self.tcb.tcb_bind_notification(self.notification).tried("bind a notification")?;
        self.tcb
            .tcb_set_flags(TcbFlags::default(), TcbFlags::FPU_DISABLED)
            .tried("set a thread's flags")?;
        if let Some(vcpu) = self.vcpu {
            vcpu.vcpu_set_tcb(self.tcb).tried("bind a VCPU")?;
        }
        let context = UserContext {
            rip: entry,
            rsp: startup::STACK_TOP - 8,
            rdi: startup::STARTUP_VADDR,
            rsi: startup::IPC_BUFFER_VADDR,
            ..UserContext::default()
        };
        self.tcb.tcb_write_all_registers(false, &context).tried("set a thread's registers")
    }

    fn map_page(
        &mut self,
        objects: &mut Objects,
        frame: cap::Granule,
        vaddr: u64,
        rights: CapRights,
    ) -> Result<(), Fail> {
        objects.map(&mut self.arena, self.vspace, frame, vaddr, rights)
    }

    fn map_zeros(&mut self, objects: &mut Objects, vaddr: u64, pages: u64) -> Result<(), Fail> {
        for page in 0..pages {
            let frame = objects.make_frame(&mut self.arena)?;
            let vaddr = vaddr + page * PAGE_SIZE;
            self.map_page(objects, frame, vaddr, CapRights::read_write())?;
        }
        Ok(())
    }

    /// A page the server and the root-task both see.
    fn share_page(
        &mut self,
        objects: &mut Objects,
        core: &mut Core,
        client: Client,
        page: ViewPage,
        vaddr: u64,
    ) -> Result<(), Fail> {
        let frame = objects.make_frame(&mut self.arena)?;
        self.map_page(objects, frame, vaddr, CapRights::read_write())?;
        let view = objects.copy(&mut self.arena, frame)?;
        let (own, rights) = (slot::VSPACE.cap(), CapRights::read_write());
        objects.map(&mut core.arena, own, view, window::view_vaddr(index(client), page), rights)
    }

    fn map_segment(
        &mut self,
        objects: &mut Objects,
        core: &mut Core,
        blobs: &Blobs,
        blob: &Blob,
        segment: &Segment,
    ) -> Result<(), Fail> {
        for page in 0..segment.pages {
            let vaddr = segment.vaddr + page * PAGE_SIZE;
            if !segment.is_writable {
                let source = blobs
                    .frame(blob, segment.offset / PAGE_SIZE + page)
                    .ok_or(Fail::Archive("a segment outside the archive"))?;
                let frame = objects.copy(&mut self.arena, source.cast())?;
                self.map_page(objects, frame, vaddr, CapRights::read_only())?;
                continue;
            }
            let frame = objects.make_frame(&mut self.arena)?;
            if let Some((offset, range)) = page_bytes(segment, page) {
                let bytes =
                    blob.bytes.get(range).ok_or(Fail::Archive("a segment outside its file"))?;
                fill(objects, core, frame, &[(offset, bytes)])?;
            }
            self.map_page(objects, frame, vaddr, CapRights::read_write())?;
        }
        Ok(())
    }

    fn give_common(&mut self, objects: &mut Objects, core: &Core, spec: &Spec) -> Result<(), Fail> {
        let space = self.cspace;
        let badge = spec.client.badge();
        objects.give(
            space,
            slots::ROOT_ENDPOINT,
            core.root_ep,
            SEND,
            badge,
            "calls to the root-task",
        )?;
        let notification = self.notification;
        objects.give(space, slots::NOTIFICATION, notification, RECEIVE, 0, "its own signals")?;
        let kick = core.root_notification;
        let badge = sent_by(spec.client);
        objects.give(space, slots::ROOT_NOTIFY, kick, SIGNAL, badge, "wakes the root-task")?;
        let reply = match spec.client {
            Client::Io(disk) => *core.io_replies.get(disk.index()).ok_or(NO_DISK)?,
            _ => objects.make(&mut self.arena, ObjectBlueprint::Reply)?,
        };
        objects.give(space, slots::REPLY, reply, CapRights::all(), 0, "its callers")?;
        let timer: cap::Timer =
            objects.make(&mut self.arena, ObjectBlueprintBallast::Timer.into())?;
        let bit = notify::TIMER | notify::SIGNAL;
        let signal = objects.mint(&mut self.arena, self.notification, bit)?;
        timer.timer_set_notification(signal).tried("set a timer's notification")?;
        objects.give(space, slots::TIMER, timer, CapRights::all(), 0, "its own timer")?;
        let own_endpoint = match spec.client {
            Client::Mem => core.mem_ep,
            Client::Io(disk) => core.io_ep(disk)?,
            Client::Vmm(_) => return Ok(()),
        };
        objects.give(space, slots::ENDPOINT, own_endpoint, RECEIVE, 0, "receives calls")?;
        Ok(())
    }

    /// Lets it run.
    pub fn resume(&self) -> Result<(), Fail> {
        self.tcb.tcb_resume().tried("resume a thread")
    }

    /// Moves its scheduling context to its notification: from now on calls run on the caller's.
    pub fn make_passive(&mut self) -> Result<(), Fail> {
        self.context.unbind().tried("unbind a scheduling context")?;
        self.context.bind(self.notification).tried("bind a scheduling context")?;
        self.is_passive = true;
        Ok(())
    }

    /// Tells it that commands wait.
    pub fn signal_commands(&self, client: Client) {
        use core::sync::atomic::Ordering;
        let page = window::view(index(client), ViewPage::Shared);
        if let Some(word) = page.get(startup::shared::COMMANDS) {
            word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
        self.root_signal.signal();
    }

    /// Tells it that console input is there.
    pub fn signal_console(&self) {
        self.console_signal.signal();
    }

    /// Makes it fault at its next instruction.
    pub fn kill(&self) -> Result<(), Fail> {
        let context = UserContext::default();
        self.tcb.tcb_write_registers(false, 1, &context).tried("set an instruction pointer")
    }

    /// Microseconds charged to its scheduling context since it was first made.
    pub fn consumed_us(&mut self) -> u64 {
        self.consumed_us += self.context.consumed().unwrap_or(0);
        self.consumed_us
    }

    /// Bytes of kernel memory it holds.
    pub fn bytes(&self) -> u64 {
        self.arena.bytes() + self.blobs.bytes()
    }

    /// Takes its start-up blobs away.
    pub fn drop_blobs(&mut self, objects: &mut Objects) {
        if let Some(aside) = self.blob_space.take() {
            objects.close_space(&aside);
        }
        objects.release(&mut self.blobs);
    }

    /// Revokes everything it is made of.
    pub fn destroy(mut self, objects: &mut Objects) {
        if self.tcb.tcb_suspend().is_err() {
            defmt::error!("a server could not be suspended");
        }
        objects.caps.server_gone(self.cspace.server);
        self.drop_blobs(objects);
        objects.release(&mut self.arena);
    }

    fn map_blob(
        &mut self,
        objects: &mut Objects,
        blobs: &Blobs,
        blob: &Blob,
        vaddr: u64,
    ) -> Result<startup::Region, Fail> {
        for page in 0..blob.pages() {
            let source =
                blobs.frame(blob, page).ok_or(Fail::Archive("a blob outside the archive"))?;
            let aside = self.blob_space.as_mut().ok_or(Fail::Archive("no space for blobs"))?;
            let frame: cap::Granule = objects.copy_aside(aside, source.cast())?;
            let at = vaddr + page * PAGE_SIZE;
            objects.map(&mut self.blobs, self.vspace, frame, at, CapRights::read_only())?;
        }
        Ok(startup::Region { vaddr, bytes: blob.bytes.len() as u64 })
    }
}

fn image_blob(blobs: &Blobs, spec: &Spec) -> Result<Blob, Fail> {
    blobs.get(Kind::Server, spec.image).ok_or(Fail::Archive("a server is missing"))
}

fn parse(blob: &Blob) -> Result<Image, Fail> {
    Image::parse(blob.bytes).map_err(|_| Fail::Archive("a server's image is damaged"))
}

/// Makes the mem-server and gives it its memory.
pub fn make_mem(
    objects: &mut Objects,
    core: &mut Core,
    blobs: &Blobs,
    blocks: &[root_task::untyped::Block],
    start: startup::MemStart,
) -> Result<Server, Fail> {
    let spec = Spec {
        client: Client::Mem,
        image: "mem-server",
        radix: MEM_RADIX,
        priority: MEM_PRIORITY,
        heap_bytes: 0,
        stack_pages: SERVER_STACK_PAGES,
        core: 0,
    };
    let io_ep = core.io_ep(slots::SWAP_DISK)?;
    Server::new(objects, core, blobs, &spec, |objects, server| {
        let space = server.cspace;
        let all = CapRights::all();
        objects.give(space, slots::TCB, server.tcb, all, 0, "replaces its own CSpace")?;
        let guard = CNodeCapData::skip_high_bits(MEM_RADIX).into_word();
        objects.give(space, slots::CNODE, space.cnode, all, guard, "its own slots")?;
        objects.give(space, slots::VSPACE, server.vspace, all, 0, "its own view of memory")?;
        let badge = slots::io_badge(slots::SWAP_CLIENT);
        objects.give(space, slots::MEM_IO_ENDPOINT, io_ep, SEND, badge, "swap requests")?;
        let pool = slot::ASID_POOL.cap();
        objects.give(space, slots::MEM_ASID_POOL, pool, all, 0, "names nested address spaces")?;
        for (number, block) in (0..).zip(blocks) {
            let blueprint = ObjectBlueprint::Untyped { size_bits: u64::from(block.bits) };
            cap::Untyped::from_bits(block.slot)
                .untyped_retype(
                    &blueprint,
                    &space.cnode.absolute_cptr_for_self(),
                    slots::MEM_UNTYPEDS + number,
                    1,
                )
                .tried("give memory")?;
            objects.caps.given(root_task::caps::CapRecord {
                server: ServerId::Mem,
                slot: u32::try_from(slots::MEM_UNTYPEDS + number).unwrap_or(u32::MAX),
                kind: "Untyped",
                rights: 0,
                purpose: "guest memory",
            });
        }
        Ok(Role::Mem(start))
    })
}

/// Makes the io-sched-server of a disk.
pub fn make_io(
    objects: &mut Objects,
    core: &mut Core,
    blobs: &Blobs,
    devices: &mut DiskDevices,
) -> Result<Server, Fail> {
    let spec = Spec {
        client: Client::Io(devices.start.disk),
        image: "io-sched-server",
        radix: IO_RADIX,
        priority: IO_PRIORITY,
        heap_bytes: 0,
        stack_pages: SERVER_STACK_PAGES,
        core: 0,
    };
    let start = devices.start.clone();
    let mut server = Server::new(objects, core, blobs, &spec, |objects, server| {
        if let Some(interrupt) = devices.interrupt {
            let (space, all) = (server.cspace, CapRights::all());
            objects.give(
                space,
                slots::IO_IRQ_HANDLER,
                interrupt,
                all,
                0,
                "its disk's interrupt",
            )?;
        }
        Ok(Role::Io(start))
    })?;
    match finish_io(objects, devices, &mut server) {
        Ok(()) => Ok(server),
        Err(fail) => {
            server.destroy(objects);
            Err(fail)
        }
    }
}

fn finish_io(
    objects: &mut Objects,
    devices: &DiskDevices,
    server: &mut Server,
) -> Result<(), Fail> {
    if let Some(interrupt) = devices.interrupt {
        let bit = notify::IRQ | notify::SIGNAL;
        let signal = objects.mint(&mut server.arena, server.notification, bit)?;
        interrupt.irq_handler_set_notification(signal).tried("set an interrupt's notification")?;
        // A server that died before it acknowledged an interrupt left the line masked.
        interrupt.irq_handler_ack().tried("open an interrupt")?;
    }
    let rights = CapRights::read_write();
    for (vaddr, frame) in &devices.registers {
        let frame = objects.copy(&mut server.arena, *frame)?;
        let attributes = sel4::VmAttributes::CACHE_DISABLED;
        let (arena, vspace) = (&mut server.arena, server.vspace);
        objects.map_with(arena, vspace, frame, *vaddr, rights, attributes)?;
    }
    for page in 0..devices.dma.1 {
        let source: cap::Granule = Cap::from_bits(devices.dma.0 + page);
        let frame = objects.copy(&mut server.arena, source)?;
        server.map_page(objects, frame, startup::DMA_VADDR + page * PAGE_SIZE, rights)?;
    }
    for (disk, page) in (0..).map(DiskId).zip(&devices.progress) {
        let frame = objects.copy(&mut server.arena, *page)?;
        let is_own = disk == devices.start.disk;
        let rights = if is_own { CapRights::read_write() } else { CapRights::read_only() };
        let vaddr = startup::PROGRESS_VADDR + u64::from(disk.0) * PAGE_SIZE;
        server.map_page(objects, frame, vaddr, rights)?;
    }
    Ok(())
}

/// Makes the vmm-server of a VM, not running, and tells the mem-server's slots about it.
pub fn make_vmm(
    objects: &mut Objects,
    core: &mut Core,
    blobs: &Blobs,
    vm: VmId,
    config: &Vm,
    starts: u32,
    mem: CSpace,
) -> Result<Server, Fail> {
    let spec = Spec {
        client: Client::Vmm(vm),
        image: "vmm-server",
        radix: VMM_RADIX,
        priority: VMM_PRIORITY,
        heap_bytes: 0,
        stack_pages: VMM_STACK_PAGES,
        core: u64::from(vm.0) % core.cores(),
    };
    let kernel = blobs.get(Kind::GuestKernel, &config.kernel);
    let kernel = kernel.ok_or(Fail::Archive("a guest kernel is missing"))?;
    let mut next = startup::BLOB_VADDR;
    let mut region = |blob: &Blob| {
        let region = startup::Region { vaddr: next, bytes: blob.bytes.len() as u64 };
        next += blob.pages() * PAGE_SIZE;
        region
    };
    let kernel_region = region(&kernel);
    let mut modules = Vec::new();
    let mut module_blobs: Vec<Blob, { protocol::system::MODULES_MAX }> = Vec::new();
    for name in &config.modules {
        let blob = blobs.get(Kind::GuestModule, name);
        let blob = blob.ok_or(Fail::Archive("a guest module is missing"))?;
        let _ = modules.push(region(&blob));
        let _ = module_blobs.push(blob);
    }
    let regions = modules.clone();
    let mem_ep = core.mem_ep;
    let seed = runtime::clock::tsc();
    let wall_seconds = core.wall_seconds;
    let mut server = Server::new(objects, core, blobs, &spec, |objects, server| {
        let space = server.cspace;
        let badge = slots::mem_badge(vm);
        let to = slots::VMM_MEM_ENDPOINT;
        objects.give(space, to, mem_ep, SEND, badge, "its guest's memory")?;
        if let Some(vcpu) = server.vcpu {
            objects.give(
                space,
                slots::VMM_VCPU,
                vcpu,
                CapRights::all(),
                0,
                "its guest's processor",
            )?;
        }
        Ok(Role::Vmm(startup::VmmStart {
            vm,
            config: config.clone(),
            kernel: kernel_region,
            modules,
            starts,
            seed,
            wall_seconds,
        }))
    })?;
    let pages = kernel.pages() + module_blobs.iter().map(Blob::pages).sum::<u64>();
    let finished = objects
        .open_space(&mut server.blobs, space::of_vm(vm), pages)
        .map(|aside| server.blob_space = Some(aside))
        .and_then(|()| server.map_blob(objects, blobs, &kernel, kernel_region.vaddr))
        .and_then(|_| {
            module_blobs.iter().zip(&regions).try_for_each(|(blob, region)| {
                server.map_blob(objects, blobs, blob, region.vaddr).map(drop)
            })
        })
        .and_then(|()| show_to_mem(objects, &mut server, vm, mem));
    match finished {
        Ok(()) => Ok(server),
        Err(fail) => {
            server.destroy(objects);
            Err(fail)
        }
    }
}

/// Places what the mem-server needs of a VM.
fn show_to_mem(
    objects: &mut Objects,
    server: &mut Server,
    vm: VmId,
    mem: CSpace,
) -> Result<(), Fail> {
    let first = slots::MEM_VM + slots::MEM_VM_SLOTS * u64::from(vm.0);
    let all = CapRights::all();
    let vspace = server.vspace;
    objects.give(mem, first + slots::MEM_VM_VSPACE, vspace, all, 0, "a vmm-server's window")?;
    if let Some(vcpu) = server.vcpu {
        objects.give(mem, first + slots::MEM_VM_VCPU, vcpu, all, 0, "sets a nested root")?;
    }
    let tcb = server.tcb;
    objects.give(mem, first + slots::MEM_VM_TCB, tcb, all, 0, "goes on when a page is there")?;
    let bit = notify::MEM | notify::SIGNAL;
    let to = first + slots::MEM_VM_NOTIFY;
    objects.give(mem, to, server.notification, SIGNAL, bit, "wakes a vmm-server")
}

impl Ring {
    /// Makes and formats a ring.
    pub fn new(objects: &mut Objects, core: &mut Core, on: DiskId) -> Result<Self, Fail> {
        let mut arena = Arena::new();
        match Self::make(objects, core, &mut arena) {
            Ok((frames, paddr, io_copies)) => Ok(Self { arena, frames, paddr, io_copies, on }),
            Err(fail) => {
                objects.release(&mut arena);
                Err(fail)
            }
        }
    }

    fn make(
        objects: &mut Objects,
        core: &mut Core,
        arena: &mut Arena,
    ) -> Result<(u64, u64, u64), Fail> {
        objects.reserve(arena, BLK_RING_BYTES as u64)?;
        let blueprint = sel4::FrameObjectType::_4k.blueprint();
        let (frames, paddr) = objects.make_at(arena, blueprint, RING_PAGES)?;
        let own = slot::VSPACE.cap();
        let rights = CapRights::read_write();
        for page in 0..RING_PAGES {
            let frame = Cap::from_bits(frames + page);
            let vaddr = window::RING_VADDR + page * PAGE_SIZE;
            objects.map(&mut core.arena, own, frame, vaddr, rights)?;
        }
        let formatted = format_blk_ring(window::ring());
        for page in 0..RING_PAGES {
            let frame: cap::Granule = Cap::from_bits(frames + page);
            frame.frame_unmap().tried("unmap a ring")?;
        }
        formatted.map_err(|_| Fail::Archive("a ring could not be formatted"))?;
        let copies = arena.slots(RING_PAGES, &mut objects.slots)?.start;
        for page in 0..RING_PAGES {
            super::objects::here(copies + page)
                .copy(&super::objects::here(frames + page), CapRights::all())
                .tried("copy a ring's frame")?;
        }
        Ok((frames, paddr, copies))
    }

    /// Maps it into the io-sched-server as client `client`'s and places the notification.
    pub fn show_to_io(
        &mut self,
        objects: &mut Objects,
        io: &mut Server,
        client: u16,
        owner: &Server,
    ) -> Result<(), Fail> {
        let rights = CapRights::read_write();
        for page in 0..RING_PAGES {
            let frame: cap::Granule = Cap::from_bits(self.io_copies + page);
            // Mapped in a server that is gone, perhaps.
            frame.frame_unmap().tried("unmap a ring")?;
            let vaddr = startup::IO_RING_VADDR
                + startup::RING_STRIDE * u64::from(client)
                + page * PAGE_SIZE;
            io.map_page(objects, frame, vaddr, rights)?;
        }
        let to = slots::IO_CLIENT_NOTIFY + u64::from(client);
        let bit = notify::DISK | notify::SIGNAL;
        objects.give(io.cspace, to, owner.notification, SIGNAL, bit, "completions of a disk")
    }

    /// Maps it into the server that asks.
    pub fn map_into(
        &self,
        objects: &mut Objects,
        owner: &mut Server,
        base: u64,
    ) -> Result<(), Fail> {
        for page in 0..RING_PAGES {
            let source = CPtr::from_bits(self.frames + page).cast::<sel4::cap_type::Granule>();
            let frame = objects.copy(&mut owner.arena, source)?;
            owner.map_page(objects, frame, base + page * PAGE_SIZE, CapRights::read_write())?;
        }
        Ok(())
    }

    /// Maps it into a vmm-server as part `part` of its disk `disk` and gives the endpoint for doorbells.
    pub fn show_to_vmm(
        &mut self,
        objects: &mut Objects,
        core: &Core,
        vmm: &mut Server,
        client: u16,
        (disk, part): (u8, u8),
    ) -> Result<(), Fail> {
        let place = slots::vmm_part(disk, part);
        self.map_into(objects, vmm, startup::VMM_RING_VADDR + startup::RING_STRIDE * place)?;
        let (to, badge) = (slots::VMM_IO_ENDPOINTS + place, slots::io_badge(client));
        let endpoint = core.io_ep(self.on)?;
        objects.give(vmm.cspace, to, endpoint, SEND, badge, "doorbell of a disk")
    }

    /// Gives its memory back.
    pub fn destroy(mut self, objects: &mut Objects, io: Option<&Server>, client: u16) {
        if let Some(io) = io {
            objects.take(io.cspace, slots::IO_CLIENT_NOTIFY + u64::from(client));
        }
        objects.release(&mut self.arena);
    }
}
