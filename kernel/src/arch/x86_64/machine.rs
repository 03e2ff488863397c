//! The machine as the portable kernel sees it, the big lock, and the step from a trap to the kernel and back.
//!
//! UNSAFETY: the kernel's state is a static that the big lock guards; ports and MSRs.
#![expect(unsafe_code, reason = "static kernel state behind the big lock, ports, MSRs")]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use abi::context::index;
use spin::RelaxStrategy;
use spin::mutex::TicketMutex;
use x86::io::{inb, inl, inw, outb, outl, outw};
use x86::msr::{IA32_FS_BASE, IA32_KERNEL_GSBASE, wrmsr};

use super::apic::{self, IoApics, SPURIOUS_VECTOR};
use super::console::{self, ExitCode};
use super::smp::{self, Order};
use super::tsc::{self, Frequencies, Ratio};
use super::{fpu, paging, percpu, svm, trap};
use crate::hw::{Hw, IrqRoute, PortWidth};
use crate::limits::{RESCHEDULE_VECTOR, TIMER_VECTOR};
use crate::mem::{PhysAddr, Ref};
use crate::object::tcb::{OFFSET_FPU, Tcb};
use crate::object::vcpu::Vcpu;
use crate::{FaultInfo, Kernel, Resume};

/// While a core waits for the big lock it does what the lock's holder wants of it.
struct Obey;

impl RelaxStrategy for Obey {
    #[inline]
    fn relax() {
        smp::obey();
        core::hint::spin_loop();
    }
}

/// The kernel's state and its lock.
struct Big {
    lock: TicketMutex<(), Obey>,
    kernel: UnsafeCell<MaybeUninit<Kernel<Machine>>>,
}

// SAFETY: `kernel` is reached only through `enter`, which takes the lock, and given up before `leave` releases it.
unsafe impl Sync for Big {}

static BIG: Big =
    Big { lock: TicketMutex::new(()), kernel: UnsafeCell::new(MaybeUninit::uninit()) };

/// Takes the big lock for the first time and puts the kernel's state in place.
pub fn install(kernel: Kernel<Machine>) -> &'static mut Kernel<Machine> {
    core::mem::forget(BIG.lock.lock());
    // SAFETY: the lock is held, and no other core runs yet.
    unsafe { (*BIG.kernel.get()).write(kernel) }
}

/// Takes the big lock.
#[inline(always)]
fn enter() -> &'static mut Kernel<Machine> {
    core::mem::forget(BIG.lock.lock());
    // SAFETY: (1) the lock is held, so this is the only reference; (2) other cores start only after `install`; (3) `run` gives the
    // reference up before it releases the lock.
    unsafe { (*BIG.kernel.get()).assume_init_mut() }
}

/// Releases the big lock; the reference from [`enter`] must be dead.
#[inline(always)]
fn release() {
    // SAFETY: this core holds the lock (every path to here went through `enter` or `install`).
    unsafe { BIG.lock.force_unlock() };
}

/// Does what the kernel decided, until there is a thread to go on with in user mode. The big lock is held at the start.
#[inline(always)]
pub fn run(core: usize, resume: Resume) -> ! {
    match resume {
        Resume::User(tcb) => go_on(tcb),
        Resume::Guest(tcb) => run_guests(core, tcb),
        Resume::Idle => idle(core),
    }
}

#[inline(always)]
fn go_on(tcb: Ref<Tcb>) -> ! {
    percpu::set_context(tcb.as_ptr() as u64);
    release();
    trap::leave(tcb)
}

fn run_guests(core: usize, tcb: Ref<Tcb>) -> ! {
    run_guests_here(core, tcb)
}

/// Guest after guest, as long as the kernel wants another one.
#[inline(always)]
fn run_guests_here(core: usize, mut tcb: Ref<Tcb>) -> ! {
    loop {
        release();
        match run_guest(core, tcb) {
            Resume::User(tcb) => go_on(tcb),
            Resume::Guest(next) => tcb = next,
            Resume::Idle => idle(core),
        }
    }
}

/// Waits for interrupts until there is something to do.
fn idle(core: usize) -> ! {
    loop {
        release();
        let vector = trap::wait();
        match interrupt(core, vector) {
            Resume::User(tcb) => go_on(tcb),
            Resume::Guest(tcb) => run_guests(core, tcb),
            Resume::Idle => {}
        }
    }
}

#[inline]
fn run_guest(core: usize, tcb: Ref<Tcb>) -> Resume {
    let interrupted = svm::run::enter(core, tcb);
    if interrupted {
        // The interrupt that ended the guest is still waiting; should it have gone, the kernel just looks around.
        interrupt(core, trap::take().unwrap_or(RESCHEDULE_VECTOR))
    } else {
        enter().handle_guest_exit(core)
    }
}

/// Takes part as core `core`: waits for the big lock, then for work.
pub fn join(core: usize, vector: u8) -> ! {
    let resume = enter().handle_interrupt(core, vector);
    run(core, resume)
}

fn interrupt(core: usize, vector: u8) -> Resume {
    let kernel = enter();
    let resume = if vector == TIMER_VECTOR {
        kernel.handle_timer(core)
    } else {
        kernel.handle_interrupt(core, vector)
    };
    // After the kernel has masked a level-triggered line, or it would come again at once.
    if vector != SPURIOUS_VECTOR {
        apic::end_of_interrupt();
    }
    resume
}

#[unsafe(no_mangle)]
extern "C" fn call_from_user() -> ! {
    let core = percpu::index();
    let resume = enter().handle_call(core);
    run(core, resume)
}

#[unsafe(no_mangle)]
extern "C" fn reply_recv_from_user() -> ! {
    let core = percpu::index();
    let resume = enter().handle_reply_recv(core);
    run(core, resume)
}

#[unsafe(no_mangle)]
extern "C" fn syscall_from_user() -> ! {
    let core = percpu::index();
    let resume = enter().handle_slow(core);
    run(core, resume)
}

#[unsafe(no_mangle)]
extern "C" fn vm_enter_from_user() -> ! {
    let core = percpu::index();
    match enter().handle_vm_enter(core) {
        // Here rather than in `run`: this is the way taken at every exit of a guest.
        Resume::Guest(tcb) => run_guests_here(core, tcb),
        resume => run(core, resume),
    }
}

#[unsafe(no_mangle)]
extern "C" fn trap_from_user(vector: u64, error: u64) -> ! {
    const PAGE_FAULT: u64 = 14;
    let core = percpu::this().index();
    let resume = match vector {
        PAGE_FAULT => {
            // SAFETY: no other page fault can have happened since: the kernel causes none.
            let address = unsafe { x86::controlregs::cr2() } as u64;
            enter().handle_fault(core, FaultInfo::Page { address, code: error })
        }
        0..32 => enter().handle_fault(core, FaultInfo::Exception { vector, code: error }),
        // Software raises these, unless somebody gave a device such a vector.
        160..255 if !apic::in_service(vector as u8) => {
            enter().handle_fault(core, FaultInfo::SoftwareInterrupt { vector })
        }
        _ => interrupt(core, vector as u8),
    };
    run(core, resume)
}

/// The machine.
pub struct Machine {
    frequencies: Frequencies,
    ratio: Ratio,
    deadline: bool,
    ioapics: IoApics,
}

impl Machine {
    /// The machine with measured clocks and found IOAPICs.
    #[must_use]
    pub fn new(frequencies: Frequencies, ioapics: IoApics) -> Self {
        Self {
            frequencies,
            ratio: Ratio::new(frequencies),
            deadline: apic::has_deadline(),
            ioapics,
        }
    }

    /// Pages with IOAPIC registers.
    pub fn ioapic_pages(&self) -> impl Iterator<Item = u64> {
        self.ioapics.pages()
    }

    fn on_others(root: PhysAddr, what: Order) {
        let this = percpu::this().index();
        for core in 0..smp::online() {
            if core != this && percpu::block(core).root.load(Ordering::Relaxed) == root.0 {
                smp::order(core, what);
            }
        }
    }
}

/// Loads a thread's segment bases.
#[inline]
fn load_bases(this: &percpu::PerCpu, tcb: Ref<Tcb>) {
    let (fs, gs) = (tcb.reg(index::FS_BASE), tcb.reg(index::GS_BASE));
    // A thread can only make its own bases 0 (by loading a selector), so 0 over 0 needs no write, anything else does.
    if fs | gs == 0 && !this.fpu.has_bases() {
        return;
    }
    // SAFETY: user bases, canonical by `Tcb::sanitise`; in the kernel, the user's GS base waits in the other MSR.
    unsafe {
        wrmsr(IA32_FS_BASE, fs);
        wrmsr(IA32_KERNEL_GSBASE, gs);
    }
    this.fpu.note_bases(fs | gs != 0);
}

/// Switches FPU and segment bases to those of a thread.
#[inline(never)]
fn load_thread(to: Ref<Tcb>) {
    let this = percpu::this();
    if has_fpu(to) {
        this.fpu.load(to.addr().0 + OFFSET_FPU as u64);
    } else {
        this.fpu.block();
    }
    load_bases(this, to);
}

#[inline(always)]
fn has_fpu(tcb: Ref<Tcb>) -> bool {
    u64::from(tcb.flags.get()) & abi::object::TCB_FLAG_FPU_DISABLED == 0
}

/// Writes FPU registers that any core still holds for `area` back to it.
fn release_fpu(area: u64) {
    let this = percpu::this();
    this.fpu.release(area);
    for core in 0..smp::online() {
        // An area becomes a core's only under the big lock (threads) or while its thread is current there (guests), and then its
        // object is not released by others; so a core that is not the owner now stays so.
        if core != this.index() && percpu::block(core).fpu.owner() == area {
            smp::order(core, Order::ReleaseFpu(area));
        }
    }
}

impl Hw for Machine {
    #[inline(always)]
    fn now(&self) -> u64 {
        tsc::now()
    }

    fn tsc_hz(&self) -> u64 {
        self.frequencies.tsc_hz
    }

    #[inline]
    fn arm_timer(&mut self, _core: usize, deadline: u64) {
        if self.deadline {
            apic::set_deadline(if deadline == u64::MAX { 0 } else { deadline.max(1) });
        } else if deadline == u64::MAX {
            apic::set_count(0);
        } else {
            apic::set_count(self.ratio.apic_ticks(deadline.saturating_sub(tsc::now())));
        }
    }

    fn kick(&mut self, core: usize) {
        if core < smp::online() {
            apic::send_interrupt(percpu::block(core).apic_id.get(), RESCHEDULE_VECTOR);
        }
    }

    fn stall(&mut self, core: usize) {
        if core < smp::online() && core != percpu::this().index() {
            smp::order(core, Order::Stall);
        }
    }

    fn interrupt_pending(&mut self, _core: usize) -> bool {
        apic::pending()
    }

    #[inline(always)]
    fn switch_space(&mut self, _core: usize, root: Option<PhysAddr>) {
        let root = root.map_or_else(paging::root, |root| root.0);
        // SAFETY: every root table went through `init_root`.
        unsafe { paging::load(root) };
        percpu::set_root(root);
    }

    fn init_root(&mut self, root: PhysAddr) {
        paging::init_root(root.0);
    }

    fn flush_page(&mut self, root: PhysAddr, _asid: u16, vaddr: u64) {
        if percpu::this().root.load(Ordering::Relaxed) == root.0 {
            paging::invalidate(vaddr);
        }
        Self::on_others(root, Order::FlushPage(vaddr));
    }

    fn flush_space(&mut self, root: PhysAddr, _asid: u16) {
        if percpu::this().root.load(Ordering::Relaxed) == root.0 {
            // SAFETY: the root that is loaded anyway.
            unsafe { paging::load(root.0) };
        }
        Self::on_others(root, Order::FlushSpace);
    }

    fn retire_space(&mut self, root: PhysAddr, _asid: u16) {
        let this = percpu::this();
        if this.root.load(Ordering::Relaxed) == root.0 {
            self.switch_space(this.index(), None);
        }
        Self::on_others(root, Order::LeaveSpace);
    }

    #[inline(always)]
    fn switch_thread(&mut self, _core: usize, _from: Option<Ref<Tcb>>, to: Option<Ref<Tcb>>) {
        let Some(to) = to else { return };
        let bases = to.reg(index::FS_BASE) | to.reg(index::GS_BASE);
        if bases | percpu::live() != 0 || has_fpu(to) {
            load_thread(to);
        }
    }

    #[inline]
    fn load_bases(&mut self, _core: usize, tcb: Ref<Tcb>) {
        load_bases(percpu::this(), tcb);
    }

    fn release_bases(&mut self, _tcb: Ref<Tcb>) {
        // CR4.FSGSBASE is off: user mode cannot set bases by itself, so those in the TCB are true.
    }

    fn release_thread(&mut self, tcb: Ref<Tcb>) {
        release_fpu(tcb.addr().0 + OFFSET_FPU as u64);
    }

    fn init_fpu(&mut self, tcb: Ref<Tcb>) {
        fpu::init_area(tcb.addr().0 + OFFSET_FPU as u64);
    }

    fn guest_limits(&self, core: usize) -> (u32, u64) {
        svm::run::limits(core)
    }

    fn release_guest(&mut self, vcpu: Ref<Vcpu>) {
        release_fpu(vcpu.addr().0 + Vcpu::OFFSET_FPU as u64);
    }

    fn port_in(&mut self, port: u16, width: PortWidth) -> u32 {
        // SAFETY: user level holds a capability to this port; what the device does is its business.
        unsafe {
            match width {
                PortWidth::Byte => inb(port).into(),
                PortWidth::Word => inw(port).into(),
                PortWidth::Long => inl(port),
            }
        }
    }

    fn port_out(&mut self, port: u16, width: PortWidth, value: u32) {
        // SAFETY: as for `port_in`.
        unsafe {
            match width {
                PortWidth::Byte => outb(port, value as u8),
                PortWidth::Word => outw(port, value as u16),
                PortWidth::Long => outl(port, value),
            }
        }
    }

    fn ioapic_pins(&self, ioapic: u32) -> Option<u32> {
        self.ioapics.pins(ioapic)
    }

    fn irq_connect(&mut self, vector: u8, route: IrqRoute) {
        if let IrqRoute::IoApic { ioapic, pin, level, active_low } = route {
            self.ioapics.connect(ioapic, pin, vector, level, active_low);
        }
    }

    fn irq_disconnect(&mut self, _vector: u8, route: IrqRoute) {
        if let IrqRoute::IoApic { ioapic, pin, .. } = route {
            self.ioapics.mask(ioapic, pin, true);
        }
    }

    fn irq_mask(&mut self, _vector: u8, route: IrqRoute, masked: bool) {
        if let IrqRoute::IoApic { ioapic, pin, level, .. } = route {
            // An IOAPIC forgets edges that come while the pin is masked, so an edge-triggered line stays open between
            // delivery and acknowledgement; a further edge is one more signal of the same bit.
            if level || !masked {
                self.ioapics.mask(ioapic, pin, masked);
            }
        }
    }

    fn put_char(&mut self, byte: u8) {
        console::put(byte);
    }

    fn halt(&mut self) {
        console::exit(ExitCode::Halted);
    }
}
