//! System calls: one inlined `syscall` instruction each, arguments and results in registers.
// UNSAFETY: the `syscall` instruction.
#![expect(unsafe_code, reason = "inline assembly is the only way into the kernel")]

use core::fmt;

use abi::Syscall;

use crate::cap_type::{self, CapType};
use crate::cptr::Cap;
use crate::ipc_buffer::{mr, set_mr};
use crate::message::{Badge, MessageInfo};

/// Message words that travel in registers.
pub const NUM_FAST_MESSAGE_REGISTERS: usize = abi::message::FAST_MESSAGE_WORDS;

/// Registers on return from a receive phase.
#[derive(Clone, Copy, Debug)]
struct Returned {
    badge: u64,
    info: u64,
    mrs: [u64; 4],
}

// The kernel keeps rax, rbx, rbp, rdx, r12, r13 and r14; rcx and r11 are the instruction's own. The
// stack pointer is not part of the interface on return, so it waits in r14.
macro_rules! kernel_call {
    ($number:expr, $capability:expr, $info:expr, $mrs:expr $(, $register:tt = $value:expr)*) => {{
        let [mut mr0, mut mr1, mut mr2, mut mr3]: [u64; 4] = $mrs;
        let mut capability: u64 = $capability;
        let mut info: u64 = $info;
        #[cfg(target_os = "none")]
        // SAFETY: the kernel changes exactly the registers named here and, for messages, this
        // thread's IPC buffer, which the compiler must assume since memory is not excluded. The
        // stack pointer is restored before the block ends; red zones do not exist on this target.
        unsafe {
            core::arch::asm!(
                "mov r14, rsp",
                "syscall",
                "mov rsp, r14",
                in("rdx") $number as i64,
                inlateout("rdi") capability,
                inlateout("rsi") info,
                inlateout("r10") mr0,
                inlateout("r8") mr1,
                inlateout("r9") mr2,
                inlateout("r15") mr3,
                $(in($register) $value,)*
                out("r14") _,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        #[cfg(not(target_os = "none"))]
        // SAFETY: stops the program; on the host there is no kernel of ours to call.
        unsafe {
            core::arch::asm!(
                "ud2",
                in("rdx") $number as i64,
                inlateout("rdi") capability,
                inlateout("rsi") info,
                inlateout("r10") mr0,
                inlateout("r8") mr1,
                inlateout("r9") mr2,
                inlateout("r15") mr3,
                $(in($register) $value,)*
            );
        }
        Returned { badge: capability, info, mrs: [mr0, mr1, mr2, mr3] }
    }};
}

/// A message received.
#[derive(Clone, Copy, Debug)]
pub struct RecvWithMRs {
    /// Label and counts.
    pub info: MessageInfo,
    /// Who sent it, or which signals.
    pub badge: Badge,
    /// First four words.
    pub msg: [u64; 4],
}

/// An answer received.
#[derive(Clone, Copy, Debug)]
pub struct CallWithMRs {
    /// Label and counts.
    pub info: MessageInfo,
    /// First four words.
    pub msg: [u64; 4],
}

impl Returned {
    #[inline(always)]
    const fn received(self) -> RecvWithMRs {
        RecvWithMRs { info: MessageInfo::from_word(self.info), badge: self.badge, msg: self.mrs }
    }
}

/// First four words from the IPC buffer, for calls that keep them there.
#[inline(always)]
fn load_fast() -> [u64; 4] {
    [mr(0), mr(1), mr(2), mr(3)]
}

#[inline(always)]
fn store_fast(words: [u64; 4]) {
    for (index, word) in words.into_iter().enumerate() {
        set_mr(index, word);
    }
}

#[inline(always)]
pub(crate) fn raw_call(cptr: u64, info: MessageInfo, mrs: [u64; 4]) -> CallWithMRs {
    let returned = kernel_call!(Syscall::Call, cptr, info.into_word(), mrs);
    CallWithMRs { info: MessageInfo::from_word(returned.info), msg: returned.mrs }
}

impl<T: CapType> Cap<T> {
    /// Sends, waiting for a receiver; words come from the IPC buffer.
    #[inline]
    pub fn send(self, info: MessageInfo) {
        self.send_with_mrs(info, load_fast());
    }

    /// Sends if a receiver waits; words come from the IPC buffer.
    #[inline]
    pub fn nb_send(self, info: MessageInfo) {
        self.nb_send_with_mrs(info, load_fast());
    }

    /// Sends, waiting for a receiver.
    #[inline(always)]
    pub fn send_with_mrs(self, info: MessageInfo, msg: [u64; 4]) {
        kernel_call!(Syscall::Send, self.bits(), info.into_word(), msg);
    }

    /// Sends if a receiver waits.
    #[inline(always)]
    pub fn nb_send_with_mrs(self, info: MessageInfo, msg: [u64; 4]) {
        kernel_call!(Syscall::NBSend, self.bits(), info.into_word(), msg);
    }

    /// Receives; words go to the IPC buffer.
    #[inline]
    pub fn recv(self, reply: Cap<cap_type::Reply>) -> (MessageInfo, Badge) {
        let received = self.recv_with_mrs(reply);
        store_fast(received.msg);
        (received.info, received.badge)
    }

    /// Receives; the caller can be answered through `reply`.
    #[inline(always)]
    pub fn recv_with_mrs(self, reply: Cap<cap_type::Reply>) -> RecvWithMRs {
        kernel_call!(Syscall::Recv, self.bits(), 0, [0; 4], "r12" = reply.bits()).received()
    }

    /// Receives if something is there; otherwise the badge is 0.
    #[inline(always)]
    pub fn nb_recv_with_mrs(self, reply: Cap<cap_type::Reply>) -> RecvWithMRs {
        kernel_call!(Syscall::NBRecv, self.bits(), 0, [0; 4], "r12" = reply.bits()).received()
    }

    /// Receives if something is there, otherwise the badge is 0; words go to the IPC buffer.
    #[inline]
    pub fn nb_recv(self, reply: Cap<cap_type::Reply>) -> (MessageInfo, Badge) {
        let received = self.nb_recv_with_mrs(reply);
        store_fast(received.msg);
        (received.info, received.badge)
    }

    /// Sends and waits for the answer; words come from and go to the IPC buffer.
    #[inline]
    pub fn call(self, info: MessageInfo) -> MessageInfo {
        let answer = self.call_with_mrs(info, load_fast());
        store_fast(answer.msg);
        answer.info
    }

    /// Sends and waits for the answer.
    #[inline(always)]
    pub fn call_with_mrs(self, info: MessageInfo, msg: [u64; 4]) -> CallWithMRs {
        raw_call(self.bits(), info, msg)
    }

    /// Answers through `reply` and receives the next message; words come from and go to the IPC buffer.
    #[inline]
    pub fn reply_recv(
        self,
        info: MessageInfo,
        reply: Cap<cap_type::Reply>,
    ) -> (MessageInfo, Badge) {
        let received = self.reply_recv_with_mrs(info, load_fast(), reply);
        store_fast(received.msg);
        (received.info, received.badge)
    }

    /// Answers through `reply` and receives the next message.
    #[inline(always)]
    pub fn reply_recv_with_mrs(
        self,
        info: MessageInfo,
        msg: [u64; 4],
        reply: Cap<cap_type::Reply>,
    ) -> RecvWithMRs {
        kernel_call!(Syscall::ReplyRecv, self.bits(), info.into_word(), msg, "r12" = reply.bits())
            .received()
    }

    /// Waits without a reply object: for notifications, and endpoints nobody calls.
    #[inline(always)]
    pub fn wait_with_mrs(self) -> RecvWithMRs {
        kernel_call!(Syscall::Wait, self.bits(), 0, [0; 4]).received()
    }
}

impl Cap<cap_type::Notification> {
    /// Adds the capability's badge to the word and wakes a waiter.
    #[inline(always)]
    pub fn signal(self) {
        kernel_call!(Syscall::Send, self.bits(), MessageInfo::new(0, 0, 0, 1).into_word(), [0; 4]);
    }

    /// Takes the word; blocks while it is empty.
    #[inline(always)]
    pub fn wait(self) -> Badge {
        kernel_call!(Syscall::Wait, self.bits(), 0, [0; 4]).badge
    }

    /// Takes the word if it is not empty; otherwise 0.
    #[inline(always)]
    pub fn poll(self) -> Badge {
        kernel_call!(Syscall::NBWait, self.bits(), 0, [0; 4]).badge
    }
}

impl Cap<cap_type::Reply> {
    /// Answers the caller waiting here.
    #[inline(always)]
    pub fn reply_with_mrs(self, info: MessageInfo, msg: [u64; 4]) {
        self.send_with_mrs(info, msg);
    }
}

/// Sends without waiting to `dest`, then receives from `src`.
#[inline(always)]
pub fn nb_send_recv_with_mrs<T: CapType, U: CapType>(
    dest: Cap<T>,
    info: MessageInfo,
    msg: [u64; 4],
    src: Cap<U>,
    reply: Cap<cap_type::Reply>,
) -> RecvWithMRs {
    kernel_call!(
        Syscall::NBSendRecv,
        src.bits(),
        info.into_word(),
        msg,
        "r12" = reply.bits(),
        "r13" = dest.bits()
    )
    .received()
}

/// Sends without waiting to `dest`, then receives from `src`; words come from and go to the IPC buffer.
#[inline]
pub fn nb_send_recv<T: CapType, U: CapType>(
    dest: Cap<T>,
    info: MessageInfo,
    src: Cap<U>,
    reply: Cap<cap_type::Reply>,
) -> (MessageInfo, Badge) {
    let received = nb_send_recv_with_mrs(dest, info, load_fast(), src, reply);
    store_fast(received.msg);
    (received.info, received.badge)
}

/// Sends without waiting to `dest`, then waits on `src` without a reply object.
#[inline(always)]
pub fn nb_send_wait<T: CapType, U: CapType>(
    dest: Cap<T>,
    info: MessageInfo,
    msg: [u64; 4],
    src: Cap<U>,
) -> RecvWithMRs {
    kernel_call!(Syscall::NBSendWait, src.bits(), info.into_word(), msg, "r12" = dest.bits())
        .received()
}

/// Gives the rest of the head refill away.
#[inline]
pub fn r#yield() {
    kernel_call!(Syscall::Yield, 0, 0, [0; 4]);
}

/// Sets the calling thread's TLS base.
#[inline]
pub fn set_tls_base(address: u64) {
    kernel_call!(Syscall::SetTLSBase, address, 0, [0; 4]);
}

/// What VMEnter is given: see [`abi::vcpu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmEntry {
    /// Guest instruction pointer.
    pub rip: u64,
    /// Control word.
    pub control: u64,
    /// Event to inject, or 0.
    pub event: u64,
}

/// How VMEnter came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmReturn {
    /// [`abi::vcpu::RETURN_EXIT`] or [`abi::vcpu::RETURN_NOTIFICATION`].
    pub label: u64,
    /// Signals, if it was a notification.
    pub badge: Badge,
    /// Guest instruction pointer.
    pub rip: u64,
    /// Control word with status.
    pub control: u64,
    /// Event whose delivery was cut short, or 0.
    pub event: u64,
    /// Exit code, if it was an exit.
    pub exit_code: u64,
}

/// Runs the calling thread's virtual CPU until something happens. Further exit words are in [`crate::mr`].
#[inline(always)]
pub fn vm_enter(entry: VmEntry) -> VmReturn {
    let mrs = [entry.rip, entry.control, entry.event, 0];
    let returned = kernel_call!(Syscall::VMEnter, 0, 0, mrs);
    let [rip, control, event, exit_code] = returned.mrs;
    let label = MessageInfo::from_word(returned.info).label();
    VmReturn { label, badge: returned.badge, rip, control, event, exit_code }
}

/// Writes one byte to the kernel's debug console, if it has one.
#[inline]
pub fn debug_put_char(byte: u8) {
    kernel_call!(Syscall::DebugPutChar, u64::from(byte), 0, [0; 4]);
}

/// Stops the machine, on a debug kernel.
#[inline]
pub fn debug_halt() {
    kernel_call!(Syscall::DebugHalt, 0, 0, [0; 4]);
}

/// The kernel's type number of the capability in slot `cptr`; 0 for none. Debug kernels only.
#[inline]
pub fn debug_cap_identify(cptr: u64) -> u64 {
    kernel_call!(Syscall::DebugCapIdentify, cptr, 0, [0; 4]).badge
}

/// Writes text to the kernel's debug console.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugWrite;

impl fmt::Write for DebugWrite {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(debug_put_char);
        Ok(())
    }
}

/// Prints a line on the kernel's debug console.
#[macro_export]
macro_rules! debug_println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let mut console = $crate::DebugWrite;
        let _ = core::writeln!(console, $($argument)*);
    }};
}
