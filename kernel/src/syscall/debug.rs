//! Debug system calls.

use abi::Syscall;
use abi::syscall::register;

use crate::Kernel;
use crate::cap::cspace;
use crate::cap::raw::Tag;
use crate::hw::Hw;
use crate::ipc::transfer::ipc_buffer;
use crate::mem::Ref;
use crate::object::tcb::Tcb;

/// Formatted text on the debug console.
pub struct Console<'a, H: Hw>(pub &'a mut H);

impl<H: Hw> core::fmt::Write for Console<'_, H> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            self.0.put_char(byte);
        }
        Ok(())
    }
}

/// What DebugCapIdentify tells: seL4's own type numbers, even for generic types, odd for the processor's.
const fn identity(tag: Tag) -> u64 {
    match tag {
        Tag::Null => 0,
        Tag::Untyped => 2,
        Tag::Endpoint => 4,
        Tag::Notification => 6,
        Tag::Reply => 8,
        Tag::CNode => 10,
        Tag::Thread => 12,
        Tag::IrqControl => 14,
        Tag::IrqHandler => 16,
        Tag::Zombie => 18,
        Tag::Domain => 20,
        Tag::SchedContext => 22,
        Tag::SchedControl => 24,
        Tag::Timer => 26,
        Tag::Frame => 1,
        Tag::PageTable => 3,
        Tag::PageDirectory => 5,
        Tag::Pdpt => 7,
        Tag::Pml4 => 9,
        Tag::AsidControl => 11,
        Tag::AsidPool => 13,
        Tag::IoPort => 19,
        Tag::Vcpu => 21,
        Tag::NptPt => 23,
        Tag::NptPd => 25,
        Tag::NptPdpt => 27,
        Tag::NptPml4 => 29,
        Tag::IoPortControl => 31,
    }
}

impl<H: Hw> Kernel<H> {
    pub(crate) fn debug_syscall(&mut self, tcb: Ref<Tcb>, call: Syscall) {
        use core::fmt::Write as _;
        let argument = tcb.reg(register::CAPABILITY);
        match call {
            Syscall::DebugPutChar => self.hw.put_char(argument as u8),
            Syscall::DebugHalt => self.hw.halt(),
            Syscall::DebugCapIdentify => {
                let tag =
                    cspace::lookup(tcb, argument).map_or(0, |slot| identity(slot.cap.get().tag()));
                tcb.set_reg(register::CAPABILITY, tag);
            }
            Syscall::DebugNameThread => self.name_thread(tcb, argument),
            Syscall::DebugDumpScheduler => {
                for core in 0..self.core_count {
                    let current = self.cores[core].current.map(|tcb| tcb.addr().0);
                    let highest = self.cores[core].highest_ready();
                    // Writing to the console cannot fail.
                    let _ = writeln!(
                        Console(&mut self.hw),
                        "core {core}: current {current:x?}, highest ready {highest:?}"
                    );
                }
            }
            _ => {}
        }
    }

    fn name_thread(&mut self, caller: Ref<Tcb>, pointer: u64) {
        let Ok(slot) = cspace::lookup(caller, pointer) else { return };
        let crate::cap::Cap::Thread { addr } = slot.unpack() else { return };
        let Some(buffer) = ipc_buffer(caller, false) else { return };
        let tcb: Ref<Tcb> = Ref::at(addr);
        let mut ended = false;
        for (position, place) in tcb.name.iter().enumerate() {
            let word = buffer.get(abi::message::buffer_word::MSG + position / 8);
            let byte = word.to_le_bytes()[position % 8];
            ended |= byte == 0;
            place.set(if ended || !byte.is_ascii_graphic() { 0 } else { byte });
        }
    }
}
