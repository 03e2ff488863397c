//! What the server does to the machine: frames' contents, mappings, kernel object memory, signals.
//!
//! [`crate::spaces::Spaces`] implements it over kernel calls; tests and experiments by a model.

use protocol::mem::VmMemory;
use protocol::units::{Gfn, VmId};

use crate::page::{FRAME_BYTES, Frame, REGION_WORDS};

/// One page of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// Whose.
    pub vm: VmId,
    /// Dense index in the VM's memory.
    pub index: u32,
    /// Guest frame.
    pub gfn: Gfn,
}

/// Why something could not be done to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MechanismError {
    /// Kernel object memory is used up: give a block ([`Mechanism::give_block`]) and try again.
    NeedBlock,
    /// The kernel refused; its error number.
    Kernel(u64),
    /// No such VM, or out of a fixed table's range.
    Unknown,
}

/// What is written to the swap area.
#[derive(Clone, Copy, Debug)]
pub enum Contents<'a> {
    /// What a frame holds.
    Frame(Frame),
    /// A page that is in no frame of its own.
    Bytes(&'a [u8; FRAME_BYTES]),
}

/// The machine under the server.
pub trait Mechanism {
    /// Fills a frame with zeros.
    fn zero(&mut self, frame: Frame);
    /// Copies a frame.
    fn copy(&mut self, from: Frame, to: Frame);
    /// Whether a frame holds only zeros.
    fn is_zero(&mut self, frame: Frame) -> bool;
    /// Keyed hash of a frame's contents.
    fn hash(&mut self, frame: Frame, key: u64) -> u64;
    /// Whether two frames hold the same bytes.
    fn equal(&mut self, a: Frame, b: Frame) -> bool;
    /// Reads a frame.
    fn load(&mut self, frame: Frame, bytes: &mut [u8; FRAME_BYTES]);
    /// Writes a frame.
    fn store(&mut self, frame: Frame, bytes: &[u8; FRAME_BYTES]);

    /// Keeps kernel object memory for all tables a VM can come to need ([`Mechanism::overhead`]); nothing if it has that
    /// already. [`Mechanism::close`] gives it back.
    ///
    /// # Errors
    ///
    /// [`MechanismError`]; what was kept so far stays kept.
    fn keep(&mut self, vm: VmId, memory: &VmMemory) -> Result<(), MechanismError>;
    /// Prepares nested tables and capability space for a VM.
    ///
    /// # Errors
    ///
    /// [`MechanismError`]; nothing is left behind.
    fn open(&mut self, vm: VmId, memory: &VmMemory) -> Result<(), MechanismError>;
    /// Removes every mapping and capability of a VM. No effect if it was not open.
    fn close(&mut self, vm: VmId);
    /// Maps a page that is not mapped.
    ///
    /// # Errors
    ///
    /// [`MechanismError`]; the page is then not mapped.
    fn map(&mut self, page: Page, frame: Frame, writable: bool) -> Result<(), MechanismError>;
    /// Changes a mapped page's right to write, or maps a page again that kept its capability ([`Mechanism::demote`]).
    ///
    /// # Errors
    ///
    /// [`MechanismError::Kernel`]; nothing changed.
    fn protect(&mut self, page: Page, writable: bool) -> Result<(), MechanismError>;
    /// Takes a page from the guest and from its vmm-server's window.
    fn unmap(&mut self, page: Page);
    /// Maps the 2 MiB region from page `first` on by one large, writable page of `block`, whose frame n is page n, in place of
    /// the small pages. Bit n of `present` says that page n has a capability, mapped or not. The window stays as it is.
    ///
    /// # Errors
    ///
    /// [`MechanismError`]; none of the region's pages has then a capability, for the guest or for the window.
    fn promote(
        &mut self,
        first: Page,
        block: u32,
        present: &[u64; REGION_WORDS],
    ) -> Result<(), MechanismError>;
    /// Takes the large page of a region away: none of its pages is mapped, in the guest or in the window. All but the
    /// first have capabilities of their own, so that [`Mechanism::protect`] maps them again.
    fn demote(&mut self, first: Page);
    /// Maps a page into its vmm-server's window, in place of what was there.
    ///
    /// # Errors
    ///
    /// [`MechanismError`]; the page is then not in the window.
    fn map_window(
        &mut self,
        page: Page,
        frame: Frame,
        writable: bool,
    ) -> Result<(), MechanismError>;

    /// Gives a wholly free block for kernel objects.
    ///
    /// # Errors
    ///
    /// [`MechanismError::Kernel`]; the block is not taken.
    fn give_block(&mut self, block: u32) -> Result<(), MechanismError>;
    /// Takes back a block without kernel objects, if there is one.
    fn take_block(&mut self) -> Option<u32>;
    /// Pages of kernel objects a VM of this memory can come to need.
    fn overhead(&self, memory: &VmMemory) -> u64;
    /// Tells the vmm-server of a VM to ask what is new.
    fn signal_vmm(&mut self, vm: VmId);

    /// A clock to account work with, in ticks of the machine's choice; decisions do not depend on it.
    fn ticks(&mut self) -> u64 {
        0
    }

    /// Starts writing a page to a slot of the swap area; the end is told by [`crate::server::Server::swap_done`]. What is
    /// written is what a frame holds at the call: it may move or change meanwhile. False if the queue is full or there is
    /// no swap area.
    fn swap_write(&mut self, _transfer: u32, _slot: u32, _page: Contents<'_>) -> bool {
        false
    }
    /// Starts reading a slot of the swap area into a frame, which has to stay until the end. False likewise.
    fn swap_read(&mut self, _transfer: u32, _slot: u32, _frame: Frame) -> bool {
        false
    }
    /// Reads and clears the accessed bits of `pages` pages (at most 2048) from page `first` on: bit n is page `first + n`. Pages
    /// that are not mapped count as not accessed. False if this machine cannot.
    fn harvest(&mut self, _first: Page, _pages: u32, _accessed: &mut [u64; 32]) -> bool {
        false
    }
}
