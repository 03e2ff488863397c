//! Checked access to the guest's RAM.
//!
//! Every address and length here comes from the guest; nothing outside RAM is ever touched.

use core::sync::atomic::AtomicU64;

/// Bytes moved at once between RAM and shared words by the portable copy.
const COPY_CHUNK: usize = 512;

/// An access that does not lie wholly in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRam {
    /// First address of the refused access.
    pub gpa: u64,
}

/// First guest-physical address of the device hole; RAM below it ends here at the latest.
pub const HOLE_START: u64 = 3 << 30;
/// First guest-physical address of RAM above the device hole.
pub const HIGH_START: u64 = 4 << 30;

/// Where the guest has RAM: `0..low` and `HIGH_START..HIGH_START + high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    /// Bytes below the device hole.
    pub low: u64,
    /// Bytes above it.
    pub high: u64,
}

impl RamLayout {
    /// The layout of `size` bytes of RAM.
    pub const fn new(size: u64) -> Self {
        if size <= HOLE_START {
            Self { low: size, high: 0 }
        } else {
            Self { low: HOLE_START, high: size - HOLE_START }
        }
    }

    /// Whether `len` bytes at `gpa` lie wholly in one part of RAM.
    #[inline]
    pub const fn contains(&self, gpa: u64, len: u64) -> bool {
        match gpa.checked_add(len) {
            Some(end) => end <= self.low || (gpa >= HIGH_START && end - HIGH_START <= self.high),
            None => false,
        }
    }
}

/// The guest's RAM.
pub trait GuestMemory {
    /// Where RAM is.
    fn layout(&self) -> RamLayout;

    /// Fills `buffer` from guest-physical `gpa`.
    ///
    /// # Errors
    ///
    /// [`OutOfRam`] if any byte lies outside RAM; `buffer` is then unchanged.
    fn read(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), OutOfRam>;

    /// Stores `data` at guest-physical `gpa`.
    ///
    /// # Errors
    ///
    /// [`OutOfRam`] if any byte lies outside RAM; nothing is then stored.
    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam>;

    /// Checks that `len` bytes at `gpa` lie in RAM.
    ///
    /// # Errors
    ///
    /// [`OutOfRam`] if they do not.
    fn check(&self, gpa: u64, len: u64) -> Result<(), OutOfRam> {
        if self.layout().contains(gpa, len) { Ok(()) } else { Err(OutOfRam { gpa }) }
    }

    /// Copies RAM into words shared with another server, from byte `offset` of them on.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::read`].
    fn copy_to_shared(
        &self,
        gpa: u64,
        words: &[AtomicU64],
        offset: usize,
        len: usize,
    ) -> Result<(), OutOfRam> {
        self.check(gpa, len as u64)?;
        let mut chunk = [0; COPY_CHUNK];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(COPY_CHUNK);
            let part = chunk.get_mut(..step).unwrap_or(&mut []);
            self.read(gpa + done as u64, part)?;
            protocol::ring::write_bytes(words, offset + done, part);
            done += step;
        }
        Ok(())
    }

    /// Copies words shared with another server into RAM.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::write`].
    fn copy_from_shared(
        &mut self,
        gpa: u64,
        words: &[AtomicU64],
        offset: usize,
        len: usize,
    ) -> Result<(), OutOfRam> {
        self.check(gpa, len as u64)?;
        let mut chunk = [0; COPY_CHUNK];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(COPY_CHUNK);
            let part = chunk.get_mut(..step).unwrap_or(&mut []);
            protocol::ring::read_bytes(words, offset + done, part);
            self.write(gpa + done as u64, part)?;
            done += step;
        }
        Ok(())
    }

    /// Reads a byte.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::read`].
    fn read_u8(&self, gpa: u64) -> Result<u8, OutOfRam> {
        let mut byte = [0];
        self.read(gpa, &mut byte)?;
        Ok(byte[0])
    }

    /// Reads a little-endian 16-bit word.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::read`].
    fn read_u16(&self, gpa: u64) -> Result<u16, OutOfRam> {
        let mut bytes = [0; 2];
        self.read(gpa, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads a little-endian 32-bit word.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::read`].
    fn read_u32(&self, gpa: u64) -> Result<u32, OutOfRam> {
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian 64-bit word.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::read`].
    fn read_u64(&self, gpa: u64) -> Result<u64, OutOfRam> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores zeroes.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::write`].
    fn zero(&mut self, gpa: u64, len: u64) -> Result<(), OutOfRam> {
        self.check(gpa, len)?;
        let zeroes = [0u8; 256];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeroes.len() as u64);
            self.write(gpa + done, zeroes.get(..step as usize).unwrap_or(&[]))?;
            done += step;
        }
        Ok(())
    }
}

/// Guest RAM in a plain buffer, for tests and fuzzing.
#[cfg(any(test, feature = "model"))]
#[derive(Clone, Debug)]
pub struct VecMemory(pub alloc::vec::Vec<u8>);

#[cfg(any(test, feature = "model"))]
impl VecMemory {
    /// `size` bytes of zeroed RAM.
    pub fn new(size: usize) -> Self {
        Self(alloc::vec![0; size])
    }
}

#[cfg(any(test, feature = "model"))]
impl GuestMemory for VecMemory {
    fn layout(&self) -> RamLayout {
        RamLayout { low: self.0.len() as u64, high: 0 }
    }

    fn read(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), OutOfRam> {
        self.check(gpa, buffer.len() as u64)?;
        let at = gpa as usize;
        buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
        Ok(())
    }

    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        self.check(gpa, data.len() as u64)?;
        let at = gpa as usize;
        self.0[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}
