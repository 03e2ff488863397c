//! Invocations of the virtualisation extension: virtual CPUs, nested paging structures, timers.

use abi::Label;
use abi::vcpu::{
    GPA_LIMIT, HARVEST_MAX, PASS_THROUGH_MSRS, STATE_READ_MAX, STATE_WRITE_MAX, harvest,
};

use crate::Kernel;
use crate::arch::x86_64::svm::{intercept, npt, state};
use crate::cap::raw::{Cap, FrameCap, MapKind, Mapping, Tag};
use crate::cap::{Slot, tree};
use crate::hw::Hw;
use crate::ipc::transfer::ipc_buffer;
use crate::mem::{PhysAddr, Ref};
use crate::object::nested::level_above;
use crate::object::timer::Timer;
use crate::object::vcpu::Vcpu;
use crate::syscall::Failure;
use crate::syscall::args::{Args, Outcome};

impl<H: Hw> Kernel<H> {
    /// Invocation of a virtual CPU, a nested paging structure or root, or a timer.
    pub(crate) fn decode_extension(&mut self, slot: Ref<Slot>, cap: Cap, args: &Args) -> Outcome {
        match cap {
            Cap::Vcpu { addr } => self.decode_vcpu(Ref::at(addr), args),
            Cap::Table { tag, addr, mapping } => {
                self.decode_nested_table(slot, tag, addr, mapping, args)
            }
            Cap::Root { tag: Tag::NptPml4, addr, asid } => {
                self.decode_nested_root(addr, asid, args)
            }
            Cap::Timer { addr } => self.decode_timer(Ref::at(addr), args),
            _ => Err(Failure::InvalidCapability(0)),
        }
    }

    /// The last capability of an object of the extension is gone.
    pub(crate) fn finalise_extension(&mut self, cap: Cap) {
        match cap {
            Cap::Vcpu { addr } => self.finalise_vcpu(Ref::at(addr)),
            Cap::Table { tag, addr, mapping: Some(mapping) } => {
                if let Some(above) = level_above(tag) {
                    self.unmap_nested_table(mapping.asid, mapping.vaddr, above, addr);
                }
            }
            Cap::Root { tag: Tag::NptPml4, addr, asid } => {
                self.finalise_nested_root(addr, asid);
            }
            Cap::Timer { addr } => {
                let timer: Ref<Timer> = Ref::at(addr);
                self.disarm_timer(timer);
                self.delete_simple(timer.notification_slot());
            }
            _ => {}
        }
    }

    /// Finds the nested root behind capability `number` of a message.
    fn nested_root_arg(&self, args: &Args, number: usize) -> Result<(PhysAddr, u16), Failure> {
        match args.cap(number)?.unpack() {
            Cap::Root { tag: Tag::NptPml4, addr, asid }
                if asid != 0 && self.nested_of_asid(asid) == addr.0 =>
            {
                Ok((addr, asid))
            }
            _ => Err(Failure::InvalidCapability(number as u64 + 1)),
        }
    }

    fn decode_vcpu(&mut self, vcpu: Ref<Vcpu>, args: &Args) -> Outcome {
        match Label::from_number(args.label) {
            Some(Label::VCPUSetTCB) => {
                let tcb = args.thread(0)?;
                self.bind_vcpu(vcpu, tcb);
                Ok(0)
            }
            Some(Label::VCPUSetNPTRoot) => {
                let (root, asid) = self.nested_root_arg(args, 0)?;
                self.set_nested_root(vcpu, root, asid);
                Ok(0)
            }
            Some(Label::VCPUReadState) => self.read_state(vcpu, args),
            Some(Label::VCPUWriteState) => self.write_state(vcpu, args),
            Some(Label::VCPUEnableIOPort) => {
                args.need(2)?;
                let (first, last) = Self::port_range(args)?;
                match args.cap(0)?.unpack() {
                    Cap::IoPort { first: low, last: high } if low <= first && last <= high => {}
                    _ => return Err(Failure::InvalidCapability(1)),
                }
                self.stall_vcpu(vcpu);
                intercept::set_ports(&vcpu.iopm, first, last, false);
                Ok(0)
            }
            Some(Label::VCPUDisableIOPort) => {
                args.need(2)?;
                let (first, last) = Self::port_range(args)?;
                self.stall_vcpu(vcpu);
                intercept::set_ports(&vcpu.iopm, first, last, true);
                Ok(0)
            }
            Some(label @ (Label::VCPUEnableMSR | Label::VCPUDisableMSR)) => {
                args.need(1)?;
                let msr = u32::try_from(args.word(0)).map_err(|_| Failure::InvalidArgument(0))?;
                if !PASS_THROUGH_MSRS.contains(&msr) {
                    return Err(Failure::InvalidArgument(0));
                }
                self.stall_vcpu(vcpu);
                intercept::set_msr(&vcpu.msrpm, msr, label == Label::VCPUDisableMSR);
                Ok(0)
            }
            _ => Err(Failure::IllegalOperation),
        }
    }

    fn port_range(args: &Args) -> Result<(u16, u16), Failure> {
        let port = |number: usize| {
            u16::try_from(args.word(number)).map_err(|_| Failure::InvalidArgument(number as u64))
        };
        let (first, last) = (port(0)?, port(1)?);
        if first > last { Err(Failure::InvalidArgument(1)) } else { Ok((first, last)) }
    }

    fn read_state(&mut self, vcpu: Ref<Vcpu>, args: &Args) -> Outcome {
        let count = args.length as usize;
        if count > STATE_READ_MAX {
            return Err(Failure::Range(0, STATE_READ_MAX as u64));
        }
        self.stall_vcpu(vcpu);
        if (0..count).any(|number| state::is_floating(args.word(number))) {
            self.hw.release_guest(vcpu);
        }
        // Results replace the ids they were read for, so one pass checks and a second answers.
        for number in 0..count {
            if state::read(vcpu, args.word(number)).is_none() {
                return Err(Failure::InvalidArgument(number as u64));
            }
        }
        for number in 0..count {
            args.answer(number, state::read(vcpu, args.word(number)).unwrap_or(0));
        }
        Ok(count as u64)
    }

    fn write_state(&mut self, vcpu: Ref<Vcpu>, args: &Args) -> Outcome {
        let count = args.length as usize;
        if count > 2 * STATE_WRITE_MAX {
            return Err(Failure::Range(0, 2 * STATE_WRITE_MAX as u64));
        }
        if !count.is_multiple_of(2) {
            return Err(Failure::Truncated);
        }
        // Another thread can change the IPC buffer's words between two reads, so each pair is read once and checked at once;
        // the first pass only makes the common mistake leave nothing half done.
        for number in (0..count).step_by(2) {
            self.check_pair(number, args.word(number), args.word(number + 1))?;
        }
        self.stall_vcpu(vcpu);
        for number in (0..count).step_by(2) {
            let (id, value) = (args.word(number), args.word(number + 1));
            self.check_pair(number, id, value)?;
            if state::is_floating(id) {
                self.hw.release_guest(vcpu);
            }
            state::write(vcpu, id, value);
        }
        Ok(0)
    }

    fn check_pair(&self, number: usize, id: u64, value: u64) -> Result<(), Failure> {
        let machine = state::Machine { xcr0: self.hw.guest_limits(self.core).1 };
        state::check(id, value, &machine)
            .map_err(|is_value| Failure::InvalidArgument(number as u64 + u64::from(is_value)))
    }

    fn decode_nested_table(
        &mut self,
        slot: Ref<Slot>,
        tag: Tag,
        addr: PhysAddr,
        mapping: Option<Mapping>,
        args: &Args,
    ) -> Outcome {
        let Some(above) = level_above(tag) else { return Err(Failure::InvalidCapability(0)) };
        let (map, unmap) = match tag {
            Tag::NptPdpt => (Label::NPTPDPTMap, Label::NPTPDPTUnmap),
            Tag::NptPd => (Label::NPTPDMap, Label::NPTPDUnmap),
            _ => (Label::NPTPTMap, Label::NPTPTUnmap),
        };
        match Label::from_number(args.label) {
            Some(label) if label == map => {
                args.need(2)?;
                let (root, asid) = self.nested_root_arg(args, 0)?;
                if mapping.is_some() {
                    return Err(Failure::InvalidCapability(0));
                }
                let gpa = args.word(0);
                if gpa >= GPA_LIMIT {
                    return Err(Failure::InvalidArgument(0));
                }
                let gpa = gpa & !((1 << above.bits()) - 1);
                Self::map_nested_table(root, gpa, above, addr)?;
                let mapping = Some(Mapping { asid, vaddr: gpa });
                slot.cap.set(Cap::Table { tag, addr, mapping }.pack());
                Ok(0)
            }
            Some(label) if label == unmap => {
                if !tree::is_final(slot) {
                    return Err(Failure::RevokeFirst);
                }
                if let Some(mapping) = mapping {
                    self.unmap_nested_table(mapping.asid, mapping.vaddr, above, addr);
                    slot.cap.set(Cap::Table { tag, addr, mapping: None }.pack());
                }
                Ok(0)
            }
            _ => Err(Failure::IllegalOperation),
        }
    }

    /// `X86PageMapNPT` on a frame.
    pub(crate) fn decode_map_nested(
        &mut self,
        slot: Ref<Slot>,
        frame: FrameCap,
        args: &Args,
    ) -> Outcome {
        args.need(3)?;
        let (root, asid) = self.nested_root_arg(args, 0)?;
        let gpa = args.word(0);
        Self::check_gpa(gpa, frame.size.bits())?;
        let mapping = Mapping { asid, vaddr: gpa };
        let is_same = match frame.kind {
            MapKind::None => false,
            MapKind::Nested if frame.mapping == mapping => true,
            MapKind::Nested if frame.mapping.asid == asid => {
                return Err(Failure::InvalidArgument(0));
            }
            MapKind::Nested | MapKind::VSpace => return Err(Failure::InvalidCapability(0)),
        };
        let rights = tree::mask_frame_rights(frame.rights, abi::CapRights(args.word(1)));
        let access = (
            rights.contains(abi::CapRights::READ),
            rights.contains(abi::CapRights::WRITE),
            args.word(2),
        );
        self.map_nested_frame(root, gpa, &frame, access, is_same)?;
        slot.cap.set(FrameCap { kind: MapKind::Nested, mapping, ..frame }.pack());
        Ok(0)
    }

    fn decode_nested_root(&mut self, root: PhysAddr, asid: u16, args: &Args) -> Outcome {
        if Label::from_number(args.label) != Some(Label::NPTHarvest) {
            return Err(Failure::IllegalOperation);
        }
        args.need(3)?;
        if asid == 0 || self.nested_of_asid(asid) != root.0 {
            return Err(Failure::InvalidCapability(0));
        }
        let (first, pages, flags) = (args.word(0), args.word(1), args.word(2));
        if first & 0xfff != 0 {
            return Err(Failure::Alignment);
        }
        if pages == 0 || pages > HARVEST_MAX {
            return Err(Failure::Range(1, HARVEST_MAX));
        }
        if first >= GPA_LIMIT || first + (pages << 12) > GPA_LIMIT {
            return Err(Failure::InvalidArgument(0));
        }
        if flags & !(harvest::CLEAR_ACCESSED | harvest::CLEAR_DIRTY) != 0 {
            return Err(Failure::InvalidArgument(2));
        }
        let Some(buffer) = ipc_buffer(args.tcb, true) else {
            return Err(Failure::IllegalOperation);
        };
        let mut clear = 0;
        if flags & harvest::CLEAR_ACCESSED != 0 {
            clear |= npt::ACCESSED;
        }
        if flags & harvest::CLEAR_DIRTY != 0 {
            clear |= npt::DIRTY;
        }
        if clear != 0 {
            // No processor may update these bits while they are read and written back here.
            self.flush_nested(root);
        }
        let mut accessed = [0u64; (HARVEST_MAX / 64) as usize];
        let mut dirty = [0u64; (HARVEST_MAX / 64) as usize];
        let seen = npt::harvest(root, first, pages, clear, |is_dirty, page| {
            let words = if is_dirty { &mut dirty } else { &mut accessed };
            words[(page / 64) as usize] |= 1 << (page % 64);
        });
        let words = pages.div_ceil(64) as usize;
        for number in 0..words {
            let base = abi::message::buffer_word::MSG + number;
            buffer.set(base + harvest::ACCESSED_WORD, accessed[number]);
            buffer.set(base + harvest::DIRTY_WORD, dirty[number]);
        }
        args.answer(0, pages);
        args.answer(1, seen.mapped);
        Ok((harvest::DIRTY_WORD + words) as u64)
    }

    fn decode_timer(&mut self, timer: Ref<Timer>, args: &Args) -> Outcome {
        match Label::from_number(args.label) {
            Some(Label::TimerSetNotification) => {
                let source = args.cap(0)?;
                match source.unpack() {
                    Cap::Notification { rights, .. } if rights.contains(abi::CapRights::WRITE) => {}
                    _ => return Err(Failure::InvalidCapability(1)),
                }
                let cap = tree::derive(source, source.unpack())?;
                let own = timer.notification_slot();
                self.delete_simple(own);
                tree::insert(cap, source, own);
                Ok(0)
            }
            Some(Label::TimerArm) => {
                args.need(1)?;
                let deadline = args.word(0);
                self.arm_timer_object(timer, deadline);
                let now = self.cores[self.core].time;
                if deadline <= now {
                    self.expire_timers();
                }
                Ok(0)
            }
            Some(Label::TimerCancel) => {
                let was_armed = self.disarm_timer(timer);
                args.answer(0, u64::from(was_armed));
                Ok(1)
            }
            _ => Err(Failure::IllegalOperation),
        }
    }
}
