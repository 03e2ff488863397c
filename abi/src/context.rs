//! A user thread's registers in the order of TCB_ReadRegisters and WriteRegisters.

/// Number of words of a [`UserContext`].
pub const CONTEXT_WORDS: usize = 20;

/// Position of each register in a [`UserContext`].
pub mod index {
    /// Instruction pointer.
    pub const RIP: usize = 0;
    /// Stack pointer.
    pub const RSP: usize = 1;
    /// Flags.
    pub const RFLAGS: usize = 2;
    /// rax.
    pub const RAX: usize = 3;
    /// rbx.
    pub const RBX: usize = 4;
    /// rcx.
    pub const RCX: usize = 5;
    /// rdx.
    pub const RDX: usize = 6;
    /// rsi.
    pub const RSI: usize = 7;
    /// rdi.
    pub const RDI: usize = 8;
    /// rbp.
    pub const RBP: usize = 9;
    /// r8.
    pub const R8: usize = 10;
    /// r9.
    pub const R9: usize = 11;
    /// r10.
    pub const R10: usize = 12;
    /// r11.
    pub const R11: usize = 13;
    /// r12.
    pub const R12: usize = 14;
    /// r13.
    pub const R13: usize = 15;
    /// r14.
    pub const R14: usize = 16;
    /// r15.
    pub const R15: usize = 17;
    /// Base of the FS segment: the thread-local storage pointer.
    pub const FS_BASE: usize = 18;
    /// Base of the GS segment.
    pub const GS_BASE: usize = 19;
}

/// The twenty words of a thread's user-visible state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is the register of that name")]
pub struct UserContext {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

const _: () = assert!(size_of::<UserContext>() == CONTEXT_WORDS * 8);
