//! Fixed slots of the initial thread.

use crate::cap;

/// Slots filled by the kernel before the root-task starts.
pub mod slot {
    use crate::cap_type;
    use crate::cptr::{CPtr, Cap};
    use abi::bootinfo::slot;

    /// A slot whose capability has a known type.
    #[derive(Clone, Copy, Debug)]
    pub struct Slot<T: cap_type::CapType>(Cap<T>);

    impl<T: cap_type::CapType> Slot<T> {
        /// The capability.
        pub const fn cap(self) -> Cap<T> {
            self.0
        }

        /// The slot.
        pub const fn cptr(self) -> CPtr {
            self.0.cptr()
        }
    }

    /// Always empty.
    pub const NULL: Slot<cap_type::Null> = Slot(Cap::from_bits(slot::NULL));
    /// The initial thread.
    pub const TCB: Slot<cap_type::Tcb> = Slot(Cap::from_bits(slot::TCB));
    /// The initial CNode.
    pub const CNODE: Slot<cap_type::CNode> = Slot(Cap::from_bits(slot::CNODE));
    /// The initial address space.
    pub const VSPACE: Slot<cap_type::VSpace> = Slot(Cap::from_bits(slot::VSPACE));
    /// Makes interrupt handlers.
    pub const IRQ_CONTROL: Slot<cap_type::IrqControl> = Slot(Cap::from_bits(slot::IRQ_CONTROL));
    /// Makes ASID pools.
    pub const ASID_CONTROL: Slot<cap_type::AsidControl> = Slot(Cap::from_bits(slot::ASID_CONTROL));
    /// The initial ASID pool.
    pub const ASID_POOL: Slot<cap_type::AsidPool> = Slot(Cap::from_bits(slot::ASID_POOL));
    /// Makes port ranges.
    pub const IO_PORT_CONTROL: Slot<cap_type::IOPortControl> =
        Slot(Cap::from_bits(slot::IO_PORT_CONTROL));
    /// Frame of the BootInfo page.
    pub const BOOT_INFO_FRAME: Slot<cap_type::_4k> = Slot(Cap::from_bits(slot::BOOT_INFO_FRAME));
    /// Frame of the IPC buffer.
    pub const IPC_BUFFER: Slot<cap_type::_4k> = Slot(Cap::from_bits(slot::IPC_BUFFER));
    /// Domain authority.
    pub const DOMAIN_SET: Slot<cap_type::DomainSet> = Slot(Cap::from_bits(slot::DOMAIN));
    /// Scheduling context of the initial thread.
    pub const SC: Slot<cap_type::SchedContext> = Slot(Cap::from_bits(slot::SCHED_CONTEXT));
}

/// Stops the initial thread for good; if the kernel refuses, waits for ever.
pub fn suspend_self() -> ! {
    let tcb: cap::Tcb = slot::TCB.cap();
    loop {
        if tcb.tcb_suspend().is_err() {
            crate::r#yield();
        }
    }
}
