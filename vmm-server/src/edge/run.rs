//! The event loop: enter the guest, handle what came back, wait while it is halted.

use core::fmt::Write as _;

use abi::vcpu::{RETURN_EXIT, control};
use protocol::mem::{MemRequest, Refusal};
use protocol::ring::ByteRing;
use protocol::root::{Command, RootRequest, Text, VmEvent, VmmCommand, VmmCounter, vmm_counter};
use protocol::slots::{TIMER, notify};
use protocol::units::Nanos;
use runtime::serve::{NOTIFICATION, ask_root, next_command};
use runtime::{clock, shared};
use sel4::{Cap, VmEntry, cap, vm_enter};
use vmm_server::vmm::{Frame, Host, Resume, Stop, Unsupported, Vmm};

use super::host::{BufferWords, Machine, ask_memory, fault_in};
use super::window::Window;

const TIMER_OBJECT: cap::Timer = Cap::from_bits(TIMER);
/// How often counters are published and console output without a line's end is passed on.
const HOUSEKEEPING: Nanos = Nanos::from_millis(100);

/// A time that does not come.
const NEVER: u64 = u64::MAX;

/// The running machine.
pub struct Runner {
    vmm: &'static mut Vmm,
    window: Window,
    machine: Machine,
    input: ByteRing<'static>,
    frame: Frame,
    /// Guest time the Timer object is armed for.
    armed: Option<u64>,
    /// Guest time of the next housekeeping; [`NEVER`] once it was done while the guest is halted.
    housekeeping: u64,
    housekeeping_period: u64,
    /// Guest time at which the balloon's driver is asked for statistics.
    statistics: Option<u64>,
    is_paused: bool,
    /// Time spent halted since the counters were last published.
    halted_ticks: u64,
    /// Console input waits for room in the serial port.
    has_input: bool,
}

impl Runner {
    /// A machine that starts at `rip`.
    pub fn new(vmm: &'static mut Vmm, window: Window, machine: Machine, rip: u64) -> Self {
        let (_, input) = shared::console();
        let period = clock::deadline_ticks(HOUSEKEEPING);
        let housekeeping = machine.now() + period;
        Self {
            vmm,
            window,
            machine,
            input,
            frame: Frame { rip, ..Frame::default() },
            armed: None,
            housekeeping,
            housekeeping_period: period,
            statistics: None,
            is_paused: false,
            halted_ticks: 0,
            has_input: true,
        }
    }

    /// Runs until the machine stops; then tells the root-task and waits to be ended.
    pub fn run(mut self) -> ! {
        self.memory_changed();
        let stop = loop {
            match self.step() {
                Resume::Enter => {}
                Resume::Halt => self.idle(),
                Resume::FaultIn { gfn, access } => {
                    if let Err(refusal) = fault_in(gfn, access) {
                        if refusal != Refusal::NoMemory as u64 {
                            break self.refused(gfn.gpa(), refusal);
                        }
                        // The guest touches the page again when it goes on.
                        self.wait_for_memory();
                    }
                }
                Resume::Stop(stop) => break self.event_of(stop),
            }
        };
        self.publish();
        self.machine.flush_console();
        report(stop);
        loop {
            let _ = NOTIFICATION.wait();
        }
    }

    /// One entry and what it brought.
    #[inline(always)]
    fn step(&mut self) -> Resume {
        self.vmm.prepare(&mut self.frame);
        self.arm();
        let Frame { rip, control: word, event, .. } = self.frame;
        let back = vm_enter(VmEntry { rip, control: word, event });
        self.frame = Frame {
            rip: back.rip,
            control: back.control & !(control::GPR_MASK | control::SET_RFLAGS),
            event: back.event,
            code: back.exit_code,
        };
        self.vmm.returned(&self.frame);
        if back.label == RETURN_EXIT {
            let resume = self.vmm.exit(
                &mut self.frame,
                &mut BufferWords,
                &mut self.window,
                &mut self.machine,
            );
            if self.has_input && self.vmm.can_receive() {
                self.feed_input();
            }
            return resume;
        }
        self.vmm.count(VmmCounter::Notified, 1);
        self.signalled(back.badge);
        if self.is_paused {
            self.idle();
        }
        Resume::Enter
    }

    /// Arms the Timer object for the next thing that is due.
    #[inline(always)]
    fn arm(&mut self) {
        let own = match self.statistics {
            Some(due) => due.min(self.housekeeping),
            None => self.housekeeping,
        };
        let due = match self.vmm.deadline() {
            Some(due) => due.min(own),
            None => own,
        };
        if self.armed != Some(due) && due != NEVER {
            self.armed = Some(due);
            let _ = TIMER_OBJECT.timer_arm(due.saturating_add(self.machine.tsc_start));
        }
    }

    /// Waits for events while the guest is halted or paused.
    fn idle(&mut self) {
        self.machine.flush_console();
        let before = self.machine.now();
        while self.is_paused || (self.vmm.is_halted() && !self.vmm.is_woken(&self.frame)) {
            self.arm();
            let badge = NOTIFICATION.wait();
            self.signalled(badge);
        }
        let now = self.machine.now();
        if self.housekeeping == NEVER {
            self.housekeeping = now + self.housekeeping_period;
        }
        self.halted_ticks = self.halted_ticks.wrapping_add(now.wrapping_sub(before));
    }

    /// Waits until the mem-server has a frame or the page from the disk; everything else goes on.
    #[cold]
    fn wait_for_memory(&mut self) {
        self.machine.flush_console();
        loop {
            self.arm();
            let badge = NOTIFICATION.wait();
            self.signalled(badge);
            if badge & notify::MEM != 0 {
                break;
            }
        }
        if self.is_paused {
            self.idle();
        }
    }

    fn signalled(&mut self, badge: u64) {
        if badge & notify::TIMER != 0 {
            self.armed = None;
            let now = self.machine.now();
            self.vmm.tick(now);
            self.housekeep(now);
        }
        if badge & notify::DISK != 0 {
            self.vmm.disk_completed(&mut self.window, &mut self.machine);
        }
        if badge & notify::CONSOLE != 0 {
            self.has_input = true;
            self.feed_input();
        }
        if badge & notify::MEM != 0 {
            self.memory_changed();
        }
        if badge & notify::ROOT != 0 {
            self.obey();
        }
    }

    #[inline]
    fn housekeep(&mut self, now: u64) {
        if now >= self.housekeeping {
            // A guest that sleeps has nothing new to tell: it is left in peace until it runs again.
            let is_resting = self.is_paused || self.vmm.is_halted();
            self.housekeeping = if is_resting { NEVER } else { now + self.housekeeping_period };
            self.publish();
            self.machine.flush_console();
            if core::mem::take(&mut self.machine.has_balloon_changed) {
                self.memory_changed();
            }
        }
        if self.statistics.is_some_and(|due| now >= due) {
            self.statistics = None;
            self.vmm.ask_statistics(&mut self.window);
            self.memory_changed();
        }
    }

    fn publish(&mut self) {
        // Converted here and not at every wake-up: a division of 128 bits.
        let halted = self.vmm.time_base().to_ns(core::mem::take(&mut self.halted_ticks));
        self.vmm.count(VmmCounter::HaltedNanos, halted);
        self.vmm.refresh_counters();
        for (index, value) in self.vmm.counters().iter().enumerate() {
            shared::publish(vmm_counter(VmmCounter::ExitCpuid) + index, *value);
        }
    }

    fn feed_input(&mut self) {
        while self.vmm.can_receive() {
            let mut byte = [0];
            if self.input.read(&mut byte) == 0 {
                self.has_input = false;
                return;
            }
            self.vmm.receive(byte[0]);
        }
    }

    /// Asks the mem-server what the balloon should hold and when it wants statistics.
    fn memory_changed(&mut self) {
        let Some(info) = ask_memory(&MemRequest::Info) else { return };
        self.vmm.set_balloon(u32::try_from(info.balloon_target.0).unwrap_or(u32::MAX));
        self.statistics = (self.machine.is_balloon_ready && info.stats_period.0 != 0)
            .then(|| self.machine.now() + clock::deadline_ticks(info.stats_period));
    }

    /// Does what the root-task says.
    fn obey(&mut self) {
        while let Some(command) = next_command() {
            let Command::Vmm(command) = command else { continue };
            match command {
                VmmCommand::Pause => {
                    self.is_paused = true;
                    report(VmEvent::Paused);
                }
                VmmCommand::Resume => {
                    self.is_paused = false;
                    self.vmm.resumed(&mut self.window);
                    report(VmEvent::Resumed);
                }
                VmmCommand::PowerButton => self.vmm.press_power_button(),
            }
        }
    }

    fn refused(&self, gpa: u64, refusal: u64) -> VmEvent {
        let mut what = Text::new();
        let _ = match Refusal::from_label(refusal) {
            Some(Refusal::Lost) => {
                write!(
                    what,
                    "the page at {gpa:#x} was swapped out and the disk does not give it back"
                )
            }
            _ => write!(what, "the mem-server refuses guest address {gpa:#x} (refusal {refusal})"),
        };
        VmEvent::Unsupported { rip: self.frame.rip, exit: self.frame.code, what }
    }

    fn event_of(&self, stop: Stop) -> VmEvent {
        let rip = self.frame.rip;
        let mut what = Text::new();
        let _ = match stop {
            Stop::PowerOff => return VmEvent::Poweroff,
            Stop::Reset => return VmEvent::Reboot,
            Stop::TripleFault => return VmEvent::TripleFault { rip },
            Stop::InvalidState => write!(what, "the processor refused the guest's state"),
            Stop::Unsupported(Unsupported::Exit) => write!(what, "exit without handler"),
            Stop::Unsupported(Unsupported::Instruction { opcode, gpa }) => {
                let bytes = self.vmm.instruction_bytes();
                write!(what, "opcode {opcode:#x} on device address {gpa:#x}, code {bytes:02x?}")
            }
            Stop::Unsupported(Unsupported::Fetch { gpa }) => {
                write!(what, "unreadable instruction on device address {gpa:#x}")
            }
            Stop::Unsupported(Unsupported::PageTable { gpa }) => {
                write!(what, "page table outside memory at {gpa:#x}")
            }
            Stop::Unsupported(Unsupported::EventDelivery { gpa }) => {
                write!(what, "event delivered through device address {gpa:#x}")
            }
        };
        VmEvent::Unsupported { rip, exit: self.frame.code, what }
    }
}

/// Tells the root-task what happened.
pub fn report(event: VmEvent) {
    let _ = ask_root(&RootRequest::Event(event));
}
