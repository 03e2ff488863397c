//! User-level kernel interface, named as rust-sel4 names things.
//!
//! A thin, allocation-free layer: a capability is a typed slot number ([`Cap`]), an invocation is a
//! method on it, a system call is one inlined `syscall` instruction with its registers. Numbers and
//! layouts are `abi`'s. Departures from rust-sel4: no invocation context parameter (a thread has one
//! IPC buffer, registered with [`set_ipc_buffer`]), words are `u64`, and Ballast's extensions
//! (virtual CPUs, nested paging, timers, frame derivation) have methods of their own.
//!
//! The crate compiles on the host so that edges can be type-checked; a system call made there traps.
#![cfg_attr(not(test), no_std)]

mod bootinfo;
mod cptr;
mod error;
mod fault;
mod invocations;
mod ipc_buffer;
mod message;
mod object;
mod syscalls;

pub mod cap_type;
pub mod init_thread;

pub use abi::context::UserContext;
pub use abi::vcpu;
pub use bootinfo::{BootInfo, BootInfoExtra, BootInfoExtraId, BootInfoPtr, UntypedDesc};
pub use cap_type::cap;
pub use cptr::{AbsoluteCPtr, CPtr, CPtrBits, CPtrWithDepth, Cap, HasCPtrWithDepth, SlotRegion};
pub use error::{Error, Result};
pub use fault::{CapFault, Fault, NullFault, Timeout, UnknownSyscall, UserException, VmFault};
pub use invocations::{Harvested, TcbFlags};
pub use ipc_buffer::{
    IpcBuffer, mr, set_cap, set_ipc_buffer, set_mr, with_ipc_buffer, with_ipc_buffer_mut,
};
pub use message::{
    Badge, CNodeCapData, CapRights, CapRightsBuilder, MessageInfo, MessageInfoBuilder, VmAttributes,
};
pub use object::{
    FrameObjectType, ObjectBlueprint, ObjectBlueprintBallast, ObjectBlueprintX64,
    ObjectBlueprintX86, TranslationTableObjectType,
};
pub use syscalls::{
    CallWithMRs, DebugWrite, NUM_FAST_MESSAGE_REGISTERS, RecvWithMRs, VmEntry, VmReturn,
    debug_cap_identify, debug_halt, debug_put_char, nb_send_recv, nb_send_recv_with_mrs,
    nb_send_wait, set_tls_base, vm_enter, r#yield,
};

/// One machine word.
pub type Word = u64;
