//! IO ports, interrupt control and interrupt handlers.

use abi::object::MAX_USER_VECTOR;
use abi::{CapRights, Label};

use crate::cap::raw::{Cap, Tag};
use crate::cap::{Slot, tree};
use crate::hw::{Hw, IrqRoute, PortWidth};
use crate::limits::{FIRST_USER_CPU_VECTOR, FIRST_USER_IRQ, IRQ_LINES};
use crate::mem::Ref;
use crate::syscall::Failure;
use crate::syscall::args::{Args, Outcome};
use crate::{IrqState, Kernel};

const fn cpu_vector(irq: u32) -> u8 {
    (irq - FIRST_USER_IRQ) as u8 + FIRST_USER_CPU_VECTOR
}

fn check_range(value: u64, greatest: u64) -> Result<u32, Failure> {
    if value > greatest { Err(Failure::Range(0, greatest)) } else { Ok(value as u32) }
}

impl<H: Hw> Kernel<H> {
    pub(crate) fn decode_io_port_control(&mut self, slot: Ref<Slot>, args: &Args) -> Outcome {
        if args.label != Label::X86IOPortControlIssue as u64 {
            return Err(Failure::IllegalOperation);
        }
        args.need(4)?;
        args.cap(0)?;
        let (first, last) = ((args.word(0) & 0xffff) as u16, (args.word(1) & 0xffff) as u16);
        if last < first {
            return Err(Failure::InvalidArgument(1));
        }
        if (first..=last).any(|port| self.is_port_taken(port)) {
            return Err(Failure::RevokeFirst);
        }
        let destination = args.empty_slot(0, args.word(2), args.word(3))?;
        for port in first..=last {
            self.ports[usize::from(port / 64)] |= 1 << (port % 64);
        }
        tree::insert(Cap::IoPort { first, last }, slot, destination);
        Ok(0)
    }

    fn is_port_taken(&self, port: u16) -> bool {
        self.ports[usize::from(port / 64)] >> (port % 64) & 1 != 0
    }

    pub(crate) fn free_ports(&mut self, first: u16, last: u16) {
        for port in first..=last {
            self.ports[usize::from(port / 64)] &= !(1 << (port % 64));
        }
    }

    pub(crate) fn decode_io_port(&mut self, first: u16, last: u16, args: &Args) -> Outcome {
        let (width, is_out) = match Label::from_number(args.label) {
            Some(Label::X86IOPortIn8) => (PortWidth::Byte, false),
            Some(Label::X86IOPortIn16) => (PortWidth::Word, false),
            Some(Label::X86IOPortIn32) => (PortWidth::Long, false),
            Some(Label::X86IOPortOut8) => (PortWidth::Byte, true),
            Some(Label::X86IOPortOut16) => (PortWidth::Word, true),
            Some(Label::X86IOPortOut32) => (PortWidth::Long, true),
            _ => return Err(Failure::IllegalOperation),
        };
        args.need(if is_out { 2 } else { 1 })?;
        let port = (args.word(0) & 0xffff) as u16;
        let bytes = match width {
            PortWidth::Byte => 1,
            PortWidth::Word => 2,
            PortWidth::Long => 4,
        };
        if port < first || u32::from(port) + bytes - 1 > u32::from(last) {
            return Err(Failure::IllegalOperation);
        }
        if is_out {
            self.hw.port_out(port, width, args.word(1) as u32);
            return Ok(0);
        }
        let value = self.hw.port_in(port, width);
        args.answer(0, u64::from(value));
        Ok(1)
    }

    pub(crate) fn decode_irq_control(&mut self, slot: Ref<Slot>, args: &Args) -> Outcome {
        let is_msi = match Label::from_number(args.label) {
            Some(Label::X86IRQIssueIRQHandlerIOAPIC) => false,
            Some(Label::X86IRQIssueIRQHandlerMSI) => true,
            // IRQControl_Get has no meaning with IOAPICs.
            _ => return Err(Failure::IllegalOperation),
        };
        args.need(7)?;
        args.cap(0)?;
        let vector = check_range(args.word(6), MAX_USER_VECTOR)?;
        let irq = vector + FIRST_USER_IRQ;
        if !matches!(self.irqs[irq as usize], IrqState::Inactive) {
            return Err(Failure::RevokeFirst);
        }
        let destination = args.empty_slot(0, args.word(0), args.word(1))?;
        let route = if is_msi {
            check_range(args.word(2), 255)?;
            check_range(args.word(3), 31)?;
            check_range(args.word(4), 7)?;
            IrqRoute::Msi
        } else {
            let ioapic = u32::try_from(args.word(2)).unwrap_or(u32::MAX);
            let Some(pins) = self.hw.ioapic_pins(ioapic) else {
                return Err(Failure::Range(0, 0));
            };
            let pin = check_range(args.word(3), u64::from(pins) - 1)?;
            let level = check_range(args.word(4), 1)? != 0;
            let active_low = check_range(args.word(5), 1)? != 0;
            IrqRoute::IoApic { ioapic, pin, level, active_low }
        };
        self.irqs[irq as usize] = IrqState::Signal(route);
        self.hw.irq_connect(cpu_vector(irq), route);
        self.hw.irq_mask(cpu_vector(irq), route, false);
        tree::insert(Cap::IrqHandler { irq }, slot, destination);
        Ok(0)
    }

    pub(crate) fn decode_irq_handler(&mut self, irq: u32, args: &Args) -> Outcome {
        let (Some(slots), Some(IrqState::Signal(route))) =
            (self.irq_slots, self.irqs.get(irq as usize).copied())
        else {
            return Err(Failure::IllegalOperation);
        };
        let place = slots.add(u64::from(irq));
        match Label::from_number(args.label) {
            Some(Label::IRQAckIRQ) => self.hw.irq_mask(cpu_vector(irq), route, false),
            Some(Label::IRQSetIRQHandler) => {
                let source = args.cap(0)?;
                match source.unpack() {
                    cap @ Cap::Notification { rights, .. } if rights.contains(CapRights::WRITE) => {
                        self.delete_simple(place);
                        // Deleting the old one cannot delete the new one: its own slot keeps the notification.
                        tree::insert(cap, source, place);
                    }
                    _ => return Err(Failure::InvalidCapability(0)),
                }
            }
            Some(Label::IRQClearIRQHandler) => self.delete_simple(place),
            _ => return Err(Failure::IllegalOperation),
        }
        Ok(0)
    }

    /// A line fired: masked until acknowledged, and signalled.
    pub(crate) fn irq_fired(&mut self, irq: u32) {
        if irq as usize >= IRQ_LINES {
            return;
        }
        let IrqState::Signal(route) = self.irqs[irq as usize] else { return };
        self.hw.irq_mask(cpu_vector(irq), route, true);
        let Some(slots) = self.irq_slots else { return };
        let cap = slots.add(u64::from(irq)).cap.get();
        if cap.is(Tag::Notification) {
            self.signal(Ref::at(cap.addr()), cap.w1);
        }
    }

    /// The last handler capability of a line is gone.
    pub(crate) fn irq_release(&mut self, irq: u32) {
        if let Some(state) = self.irqs.get_mut(irq as usize)
            && let IrqState::Signal(route) = *state
        {
            *state = IrqState::Inactive;
            self.hw.irq_mask(cpu_vector(irq), route, true);
            self.hw.irq_disconnect(cpu_vector(irq), route);
        }
    }
}
