//! What device models ask of the world, as system calls.

use core::sync::atomic::AtomicU64;

use protocol::io::DOORBELL;
use protocol::mem::{
    self, GfnRange, GuestStats, Mem, MemReply, MemRequest, VmInfo, release_reason,
};
use protocol::parts::Parts;
use protocol::ring::ByteRing;
use protocol::slots::{VMM_IO_ENDPOINTS, VMM_MEM_ENDPOINT, VMM_VCPU, vmm_part};
use protocol::units::Gfn;
use runtime::{clock, message, serve, shared};
use sel4::{Cap, MessageInfo, cap, set_mr};
use vmm_server::virtio::balloon::BalloonHost;
use vmm_server::virtio::pci::DeviceHost;
use vmm_server::vmm::{Host, Words};

/// The virtual processor of this thread.
pub const VCPU: cap::VCpu = Cap::from_bits(VMM_VCPU);
const MEM: cap::Endpoint = Cap::from_bits(VMM_MEM_ENDPOINT);

/// The words of an exit in this thread's IPC buffer.
#[derive(Debug)]
pub struct BufferWords;

impl Words for BufferWords {
    #[inline(always)]
    fn get(&self, index: usize) -> u64 {
        sel4::mr(index)
    }

    #[inline(always)]
    fn set(&mut self, index: usize, value: u64) {
        set_mr(index, value);
    }
}

/// The io-sched-server as part `part` of disk `index` reaches it.
pub const fn io_endpoint(index: u8, part: u8) -> cap::Endpoint {
    Cap::from_bits(VMM_IO_ENDPOINTS + vmm_part(index, part))
}

/// Asks the mem-server; what it says about the VM, if it does.
pub fn ask_memory(request: &MemRequest) -> Option<VmInfo> {
    match message::call::<Mem>(MEM, request) {
        Ok(MemReply::Info(info)) => Some(info),
        _ => None,
    }
}

/// Lets the mem-server back a guest frame.
///
/// # Errors
///
/// The label of the refusal.
#[inline]
pub fn fault_in(gfn: Gfn, access: u64) -> Result<(), u64> {
    let info = MessageInfo::new(mem::FAULT_IN, 0, 0, 2);
    match MEM.call_with_mrs(info, [gfn.0, access, 0, 0]).info.label() {
        0 => Ok(()),
        refusal => Err(refusal),
    }
}

/// The machine below this VM.
#[derive(Debug)]
pub struct Machine {
    /// The machine's TSC when the guest's was zero.
    pub tsc_start: u64,
    console: ByteRing<'static>,
    unsignalled: u32,
    dropped: u64,
    /// The balloon's driver is there.
    pub is_balloon_ready: bool,
    /// It came or went since this was last looked at.
    pub has_balloon_changed: bool,
}

/// Console bytes after which the root-task is woken in any case: an eighth of the ring.
const CONSOLE_SIGNAL_AFTER: u32 = 448;

impl Machine {
    /// A machine whose guest's TSC starts now.
    pub fn new() -> Self {
        let (console, _) = shared::console();
        Self {
            tsc_start: clock::tsc(),
            console,
            unsignalled: 0,
            dropped: 0,
            is_balloon_ready: false,
            has_balloon_changed: false,
        }
    }

    /// Wakes the root-task if console output waits for it.
    #[inline]
    pub fn flush_console(&mut self) {
        if self.unsignalled != 0 {
            self.unsignalled = 0;
            serve::ROOT_NOTIFY.signal();
        }
    }
}

/// Sends ranges in as few calls as they need.
fn send_ranges(label: u64, reason: u64, ranges: &[GfnRange]) {
    for part in Parts::of(ranges) {
        let mut fast = [reason, part.len() as u64, 0, 0];
        for (index, range) in part.iter().enumerate() {
            match fast.get_mut(2 + index) {
                Some(place) => *place = range.to_word(),
                None => set_mr(2 + index, range.to_word()),
            }
        }
        let answer = MEM.call_with_mrs(MessageInfo::new(label, 0, 0, 2 + part.len() as u64), fast);
        if answer.info.label() != 0 {
            defmt::warn!("mem-server refused {} ranges: {}", part.len(), answer.info.label());
        }
    }
}

impl BalloonHost for Machine {
    fn release(&mut self, is_report: bool, ranges: &[GfnRange]) {
        let reason = if is_report { release_reason::FREE_REPORT } else { release_reason::BALLOON };
        send_ranges(mem::RELEASE, reason, ranges);
    }

    fn deflate(&mut self, ranges: &[GfnRange]) {
        send_ranges(mem::DEFLATE, 0, ranges);
    }

    fn statistics(&mut self, stats: GuestStats) {
        ask_memory(&MemRequest::GuestStats(stats));
    }
}

impl DeviceHost for Machine {
    fn ring(&self, index: u8, part: u8) -> &[AtomicU64] {
        shared::vmm_ring(index, part)
    }

    fn doorbell(&mut self, index: u8, part: u8) {
        io_endpoint(index, part).call_with_mrs(MessageInfo::new(DOORBELL, 0, 0, 0), [0; 4]);
    }

    fn balloon_ready(&mut self, is_ready: bool) {
        self.is_balloon_ready = is_ready;
        self.has_balloon_changed = true;
        let _ = message::call::<Mem>(MEM, &MemRequest::BalloonReady { ready: is_ready });
    }
}

impl Host for Machine {
    #[inline(always)]
    fn now(&self) -> u64 {
        clock::tsc().wrapping_sub(self.tsc_start)
    }

    fn read_state(&mut self, field: u64) -> u64 {
        VCPU.vcpu_read_field(field).unwrap_or(0)
    }

    fn write_state(&mut self, field: u64, value: u64) -> bool {
        VCPU.vcpu_write_state(&[(field, value)]).is_ok()
    }

    fn console(&mut self, byte: u8) {
        if self.console.write(&[byte]) == 0 {
            // Let the root-task make room, once; a byte nobody wants is lost, as on a line nobody listens to.
            serve::ROOT_NOTIFY.signal();
            if self.console.write(&[byte]) == 0 {
                self.dropped += 1;
                if self.dropped.is_power_of_two() {
                    defmt::warn!("{} console bytes lost", self.dropped);
                }
                return;
            }
        }
        self.unsignalled += 1;
        if byte == b'\n' || self.unsignalled >= CONSOLE_SIGNAL_AFTER {
            self.flush_console();
        }
    }
}
