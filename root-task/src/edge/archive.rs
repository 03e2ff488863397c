//! The boot archive behind the image: bytes to read, frames to map into servers.

use protocol::archive::{Archive, ArchiveError, HEADER_BYTES, Kind, total_length};
use protocol::startup::IMAGE_VADDR;
use protocol::system::Vm;
use protocol::units::PAGE_SIZE;
use root_task::system::Artefacts;
use sel4::{BootInfoPtr, CPtr, SlotRegion};

use super::window;

/// The archive and the frames it lies in.
#[derive(Clone, Copy, Debug)]
pub struct Blobs {
    archive: Archive<'static>,
    frames: SlotRegion,
}

/// A blob: its bytes and its first frame.
#[derive(Clone, Copy, Debug)]
pub struct Blob {
    /// Its bytes.
    pub bytes: &'static [u8],
    /// Index of its first page among the image frames.
    first_page: u64,
}

impl Blob {
    /// Pages it covers.
    pub const fn pages(&self) -> u64 {
        (self.bytes.len() as u64).div_ceil(PAGE_SIZE)
    }
}

impl Blobs {
    /// Finds the archive.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`] if there is none or it is damaged.
    #[expect(unsafe_code, reason = "the kernel's word on what it mapped")]
    pub fn find(boot: &BootInfoPtr) -> Result<Self, ArchiveError> {
        let frames = boot.user_image_frames();
        let mapped_end = IMAGE_VADDR + frames.len() * PAGE_SIZE;
        let available = mapped_end.saturating_sub(window::image_end());
        let available = usize::try_from(available).map_err(|_| ArchiveError::Truncated)?;
        if available < HEADER_BYTES {
            return Err(ArchiveError::NoMagic);
        }
        // SAFETY: the image frames cover the whole span of the ELF from IMAGE_VADDR on (kernel interface, section 14).
        let bytes = unsafe { window::behind_image(available) };
        total_length(bytes)?;
        Ok(Self { archive: Archive::parse(bytes)?, frames })
    }

    /// The blob `name` of `kind`.
    pub fn get(&self, kind: Kind, name: &str) -> Option<Blob> {
        let entry = self.archive.find(kind, name)?;
        let first_page = (window::image_end() - IMAGE_VADDR + entry.offset) / PAGE_SIZE;
        Some(Blob { bytes: self.archive.bytes_of(&entry)?, first_page })
    }

    /// The frame of page `page` of a blob.
    pub fn frame(&self, blob: &Blob, page: u64) -> Option<CPtr> {
        self.frames.index(blob.first_page + page)
    }
}

impl Artefacts for Blobs {
    fn has_all(&self, vm: &Vm) -> bool {
        let has = |kind, name: &str| self.get(kind, name).is_some();
        has(Kind::GuestKernel, &vm.kernel)
            && vm.modules.iter().all(|module| has(Kind::GuestModule, module))
    }
}
