//! System call numbers and the register convention of the SYSCALL instruction.

macro_rules! syscalls {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A system call, numbered as in seL4 (rdx at the SYSCALL instruction).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i64)]
        pub enum Syscall { $($(#[$doc])* $name = $number,)* }

        impl Syscall {
            /// Finds the call behind a number in rdx; `None` means an unknown-syscall fault.
            #[inline]
            #[must_use]
            pub const fn from_number(number: i64) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

syscalls! {
    /// Sends and waits for the answer on a reply object of the receiver.
    Call = -1,
    /// Answers through a reply object and waits for the next message.
    ReplyRecv = -2,
    /// Sends without waiting, then receives with a reply object.
    NBSendRecv = -3,
    /// Sends without waiting, then waits without a reply object.
    NBSendWait = -4,
    /// Sends, waiting for a receiver.
    Send = -5,
    /// Sends only if a receiver waits.
    NBSend = -6,
    /// Receives with a reply object.
    Recv = -7,
    /// Receives with a reply object only if something is there.
    NBRecv = -8,
    /// Waits without a reply object.
    Wait = -9,
    /// Polls without a reply object.
    NBWait = -10,
    /// Gives the rest of the head refill away.
    Yield = -11,
    /// Writes one character to the kernel's debug console.
    DebugPutChar = -12,
    /// Prints the ready queues.
    DebugDumpScheduler = -13,
    /// Stops the machine.
    DebugHalt = -14,
    /// Tells the kernel's type number of a capability (0: none).
    DebugCapIdentify = -15,
    /// Prints the capabilities of the system.
    DebugSnapshot = -16,
    /// Names a thread in the kernel's own messages.
    DebugNameThread = -17,
    /// Enters the guest of the calling thread's virtual CPU.
    VMEnter = -32,
    /// Sets the calling thread's TLS base (fs_base).
    SetTLSBase = -33,
}

/// Where each value travels at the SYSCALL instruction, as indices into [`crate::UserContext`].
pub mod register {
    use crate::context::index;
    /// System call number.
    pub const NUMBER: usize = index::RDX;
    /// Destination or source capability; badge on return.
    pub const CAPABILITY: usize = index::RDI;
    /// Badge on return.
    pub const BADGE: usize = index::RDI;
    /// Message information in both directions.
    pub const MESSAGE_INFO: usize = index::RSI;
    /// Message registers 0 to 3.
    pub const MESSAGE: [usize; 4] = [index::R10, index::R8, index::R9, index::R15];
    /// Reply object of a receive phase; destination of NBSendWait.
    pub const REPLY: usize = index::R12;
    /// Destination of NBSendRecv.
    pub const NB_SEND_DESTINATION: usize = index::R13;
}
