//! The receive loop: sorts messages by badge and label.

use mem_server::decisions::Decision;
use mem_server::server::{Fault, Released, Server};
use mem_server::spaces::{Kernel as _, Spaces};
use mem_server::swap::Finished;
use protocol::mem::{
    self, Explanation, GfnRange, Mem, MemEvent, MemReply, MemRequest, RANGES_MAX, Refusal,
};
use protocol::root::{
    Command, FaultReport, MemCounter, MemVmCounter, RootRequest, mem_counter, mem_vm_counter,
};
use protocol::slots::{self, FAULT_BADGE, notify};
use protocol::startup::GUEST_WINDOW;
use protocol::units::{Gfn, MAX_VMS, Nanos, VmId};
use runtime::message::{self, Answer};
use runtime::serve::{
    Incoming, answer_and_receive, ask_root, enter_passive, next_command, receive,
};
use runtime::shared::publish;
use sel4::{Cap, MessageInfo, RecvWithMRs, cap};

use super::boot::Running;
use super::calls::Calls;

/// Size of a vmm-server's window.
const WINDOW_BYTES: u64 = 64 << 30;
/// Label of the kernel's page-fault message.
const VM_FAULT: u64 = 6;
/// Bit of the page-fault error code: the access was a write.
const FAULT_WRITE: u64 = 2;
/// Label of an answer to a page fault that leaves the thread inactive.
const STAND_STILL: u64 = 1;
/// How often background work is done and counters are published.
const TICK: Nanos = Nanos::from_millis(100);
const TIMER: cap::Timer = Cap::from_bits(slots::TIMER);

struct State {
    server: Server<'static>,
    spaces: Spaces<'static, Calls>,
}

/// Serves for ever.
pub fn serve((server, spaces): Running) -> ! {
    let mut state = State { server, spaces };
    state.publish();
    arm_timer();
    let mut incoming = enter_passive();
    loop {
        incoming = match incoming {
            Incoming::Signals(signals) => {
                state.signals(signals);
                state.spaces.kernel().flush_swap();
                receive()
            }
            Incoming::Message(received) => {
                let answer = state.message(&received);
                state.spaces.kernel().flush_swap();
                match answer {
                    Some(answer) => answer_and_receive(answer),
                    None => receive(),
                }
            }
        };
    }
}

const fn words(label: u64, msg: [u64; 4], length: u64) -> Answer {
    Answer { info: MessageInfo::new(label, 0, 0, length), msg }
}

impl State {
    /// Answers a call or a fault; `None` leaves the caller waiting for ever.
    #[inline]
    fn message(&mut self, received: &RecvWithMRs) -> Option<Answer> {
        let is_fault = received.badge & FAULT_BADGE != 0;
        let Some(vm) = slots::mem_client(received.badge & !FAULT_BADGE) else {
            return Some(message::not_understood());
        };
        if is_fault {
            return self.fault(vm, received);
        }
        let msg = received.msg;
        Some(match received.info.label() {
            mem::FAULT_IN => {
                let fault = self.server.fault_in(vm, Gfn(msg[0]), msg[1], &mut self.spaces);
                match fault {
                    Fault::Mapped => words(0, [0; 4], 0),
                    // It is signalled when the page is there, and tries again.
                    Fault::Pending => words(Refusal::NoMemory as u64, [0; 4], 0),
                    Fault::Refused(Refusal::NoMemory) => {
                        self.server.wait(vm);
                        words(Refusal::NoMemory as u64, [0; 4], 0)
                    }
                    Fault::Refused(refusal) => {
                        self.report(vm, Gfn(msg[0]), refusal);
                        words(refusal as u64, [0; 4], 0)
                    }
                }
            }
            mem::RELEASE => released(self.release(vm, received)),
            mem::DEFLATE => {
                let (server, ranges) = (&mut self.server, Ranges::of(received));
                released(server.deflate(vm, ranges))
            }
            _ => match message::request::<Mem>(received) {
                Ok(request) => {
                    let reply = self.server.control(vm, request);
                    message::answer::<Mem>(&reply)
                }
                Err(error) => {
                    message::answer::<Mem>(&MemReply::Error(mem::MemError::Decode(error)))
                }
            },
        })
    }

    fn release(&mut self, vm: VmId, received: &RecvWithMRs) -> Released {
        let ranges = Ranges::of(received);
        self.server.release(vm, received.msg[0], ranges, &mut self.spaces)
    }

    /// A thread of the vmm-server of `vm` faulted.
    fn fault(&mut self, vm: VmId, received: &RecvWithMRs) -> Option<Answer> {
        let [ip, address, ..] = received.msg;
        let code = received.msg[3];
        let offset = address.wrapping_sub(GUEST_WINDOW);
        if received.info.label() == VM_FAULT && offset < WINDOW_BYTES {
            let gfn = Gfn::containing(offset);
            let write = code & FAULT_WRITE != 0;
            match self.server.window_fault(vm, gfn, write, &mut self.spaces) {
                Fault::Mapped => return Some(words(0, [0; 4], 0)),
                Fault::Pending => return Some(self.park(vm)),
                Fault::Refused(Refusal::NoMemory) => {
                    self.server.wait(vm);
                    return Some(self.park(vm));
                }
                Fault::Refused(refusal) => self.report(vm, gfn, refusal),
            }
        }
        let fault = FaultReport { label: received.info.label(), ip, address, code };
        tell_root(&RootRequest::ServerFault { vm, fault });
        None
    }

    /// The answer to a fault that lets the vmm-server of `vm` stand still until it is signalled; then it touches the page again.
    fn park(&mut self, vm: VmId) -> Answer {
        self.server.counters.window_waits += 1;
        self.spaces.kernel().park(vm);
        words(STAND_STILL, [0; 4], 0)
    }

    /// Tells the root-task what the user should hear of a refused fault.
    #[cold]
    fn report(&mut self, vm: VmId, gfn: Gfn, refusal: Refusal) {
        // Device registers are asked for all the time, and want of memory passes.
        if refusal == Refusal::Lost {
            tell_root(&RootRequest::MemEvent(MemEvent::PageLost { vm, gfn }));
        }
    }

    /// The swap partition has finished requests.
    fn swapped(&mut self) {
        while let Some(finished) = self.spaces.kernel().swap_finished() {
            match finished {
                Finished::Written { transfers, ok } => {
                    for transfer in transfers {
                        self.server.swap_done(transfer, ok);
                    }
                }
                Finished::Read { transfer, ok, .. } => {
                    if let Some(arrived) = self.server.swap_done(transfer, ok) {
                        if arrived.ok {
                            self.spaces.kernel().signal_vmm(arrived.vm);
                        } else {
                            self.report(arrived.vm, arrived.gfn, Refusal::Lost);
                        }
                    }
                }
            }
        }
        self.server.go_on(&mut self.spaces);
    }

    fn signals(&mut self, signals: u64) {
        if signals & notify::ROOT != 0 {
            self.orders();
        }
        if signals & notify::DISK != 0 {
            self.swapped();
        }
        if signals & notify::TIMER != 0 {
            let now = runtime::clock::now();
            if let Some(event) = self.server.tick(now, &mut self.spaces) {
                tell_root(&RootRequest::MemEvent(event));
            }
            while let Some(decision) = self.server.next_decision(now) {
                log(&decision);
            }
            self.publish();
            arm_timer();
        }
        if self.server.is_starting() {
            let now = runtime::clock::now();
            if let Some(reply) = self.server.go_on_starting(now, &mut self.spaces) {
                self.answer(reply);
                self.orders();
            }
        }
    }

    /// Carries out what the root-task has ordered. Answers come in the same order, so that other orders wait while a VM waits to start.
    fn orders(&mut self) {
        while !self.server.is_starting()
            && let Some(Command::Mem(request)) = next_command()
        {
            if matches!(request, MemRequest::SetSwap { .. }) {
                self.spaces.kernel().attach_swap();
            }
            if let MemRequest::CreateVm { vm, .. } | MemRequest::DestroyVm { vm } = request {
                self.spaces.kernel().forget(vm);
            }
            let now = runtime::clock::now();
            if let Some(reply) = self.server.order_or_wait(request, now, &mut self.spaces) {
                self.answer(reply);
            }
        }
    }

    fn answer(&self, reply: MemReply) {
        // Before the answer, so that whoever asked finds the figures after it.
        self.publish();
        tell_root(&RootRequest::MemAnswer(reply));
    }

    /// Writes the counters of the shared page.
    fn publish(&self) {
        let machine = self.server.machine_stats();
        publish(mem_counter(MemCounter::TotalPages), machine.total);
        publish(mem_counter(MemCounter::FreePages), machine.free);
        publish(mem_counter(MemCounter::MetadataPages), machine.overhead);
        publish(mem_counter(MemCounter::State), machine.state as u64);
        publish(mem_counter(MemCounter::SharedPages), machine.shared);
        publish(mem_counter(MemCounter::CommonPages), machine.common);
        let counters = &self.server.counters;
        publish(mem_counter(MemCounter::Scanned), counters.scanned);
        publish(mem_counter(MemCounter::Merged), counters.merged + counters.merged_zero);
        publish(mem_counter(MemCounter::ScanTicks), counters.scan_ticks);
        publish(mem_counter(MemCounter::MergeTicks), counters.merge_ticks);
        publish(mem_counter(MemCounter::Breaks), counters.breaks);
        publish(mem_counter(MemCounter::BreakTicks), counters.break_ticks);
        publish(mem_counter(MemCounter::ZeroBreaks), counters.zero_breaks);
        publish(mem_counter(MemCounter::ZeroBreakTicks), counters.zero_break_ticks);
        publish(mem_counter(MemCounter::Decompressed), counters.decompressed);
        publish(mem_counter(MemCounter::DecompressTicks), counters.decompress_ticks);
        publish(mem_counter(MemCounter::Moved), counters.moved);
        publish(mem_counter(MemCounter::WindowWaits), counters.window_waits);
        publish(mem_counter(MemCounter::Compressed), counters.compressed);
        publish(mem_counter(MemCounter::SwappedOut), counters.swapped_out);
        publish(mem_counter(MemCounter::Spilled), counters.spilled);
        publish(mem_counter(MemCounter::SwappedIn), counters.swapped_in);
        publish(mem_counter(MemCounter::SwapErrors), counters.swap_errors);
        publish(mem_counter(MemCounter::SwapBad), self.server.bad_slots());
        publish(mem_counter(MemCounter::CapabilityBytes), self.spaces.capability_bytes());
        publish(mem_counter(MemCounter::StateBytes), self.server.state_bytes());
        publish(mem_counter(MemCounter::SharingBytes), self.server.sharing_bytes() as u64);
        publish(mem_counter(MemCounter::Promotions), counters.promotions);
        publish(mem_counter(MemCounter::Gathered), counters.gathered);
        for (reason, count) in counters.demotions.iter().enumerate() {
            publish(mem_counter(MemCounter::DemotedSharing) + reason, *count);
        }
        let mut faults = 0;
        for vm in (0..MAX_VMS as u16).map(VmId) {
            let stats = self.server.vm_stats(vm).unwrap_or_default();
            faults += stats.faults.iter().sum::<u64>();
            for (counter, value) in [
                (MemVmCounter::Size, stats.size),
                (MemVmCounter::Granted, stats.granted),
                (MemVmCounter::Active, stats.active),
                (MemVmCounter::Shared, stats.states.shared + stats.states.zero),
                (MemVmCounter::Saved, stats.saved),
                (MemVmCounter::Balloon, stats.balloon),
                (MemVmCounter::BalloonTarget, stats.balloon_target),
                (MemVmCounter::Swapped, stats.states.swapped),
                (MemVmCounter::Compressed, stats.states.compressed),
                (MemVmCounter::Overhead, stats.overhead),
                (MemVmCounter::Target, stats.target),
                (MemVmCounter::Touched, stats.touched),
                (MemVmCounter::SwapTarget, stats.swap_target),
                (MemVmCounter::TaxPaid, stats.tax_paid),
                (MemVmCounter::Large, stats.large),
            ] {
                publish(mem_vm_counter(vm, counter), value);
            }
            for (kind, count) in stats.faults.iter().enumerate() {
                publish(mem_vm_counter(vm, MemVmCounter::FaultsFill) + kind, *count);
            }
        }
        publish(mem_counter(MemCounter::Faults), faults);
    }
}

fn released(released: Released) -> Answer {
    words(0, [released.done, released.refused, 0, 0], 2)
}

fn log(decision: &Decision) {
    let Decision { vm, from, terms } = decision;
    let Explanation { stats, controls, .. } = terms;
    defmt::info!(
        "VM {=u16}: target {=u64} -> {=u64} KiB by {=str}, as {=str}: size {=u64}, reservation {=u64}, limit {=u64}, granted {=u64}, active {=u64} KiB, \
         shares {=u32}, tax {=u16} permille",
        vm.0,
        kib(*from),
        kib(stats.target),
        decision.bound(),
        decision.trigger(),
        kib(stats.size),
        kib(controls.reservation.0),
        kib(controls.limit.0),
        kib(stats.granted),
        kib(stats.active),
        controls.shares,
        terms.tax,
    );
}

const fn kib(pages: u64) -> u64 {
    pages << 2
}

fn arm_timer() {
    let deadline = Nanos(runtime::clock::now().0.saturating_add(TICK.0));
    if TIMER.timer_arm(runtime::clock::deadline_ticks(deadline)).is_err() {
        defmt::error!("the timer cannot be armed: counters stand still");
    }
}

fn tell_root(request: &RootRequest) {
    if ask_root(request).is_err() {
        defmt::error!("the root-task does not understand");
    }
}

/// Ranges of a hot message: MR1 says how many, MR2 and MR3 came in registers, the rest is in the IPC buffer.
/// They are copied, since kernel calls made for the first ranges use the buffer too.
struct Ranges {
    words: [u64; RANGES_MAX],
    next: usize,
    end: usize,
}

impl Ranges {
    const FIRST: usize = 2;

    fn of(received: &RecvWithMRs) -> Self {
        let sent = (received.info.length() as usize).saturating_sub(Self::FIRST);
        let told = usize::try_from(received.msg[1]).unwrap_or(usize::MAX);
        let end = told.min(sent).min(RANGES_MAX);
        let mut words = [0; RANGES_MAX];
        for (index, place) in words.iter_mut().enumerate().take(end) {
            let register = index + Self::FIRST;
            *place = match received.msg.get(register) {
                Some(word) => *word,
                None => sel4::mr(register),
            };
        }
        Self { words, next: 0, end }
    }
}

impl Iterator for Ranges {
    type Item = GfnRange;

    fn next(&mut self) -> Option<GfnRange> {
        let word = *self.words[..self.end].get(self.next)?;
        self.next += 1;
        Some(GfnRange::from_word(word))
    }
}
