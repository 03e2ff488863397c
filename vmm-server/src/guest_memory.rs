//! Checked access to the guest's RAM.
//!
//! Every address and length here comes from the guest; nothing outside RAM is ever touched.

/// An access that does not lie wholly in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRam {
    /// First address of the refused access.
    pub gpa: u64,
}

/// The guest's RAM: guest-physical 0 up to [`GuestMemory::size`], without holes.
pub trait GuestMemory {
    /// Bytes of RAM.
    fn size(&self) -> u64;

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
        match gpa.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(OutOfRam { gpa }),
        }
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

/// Guest RAM in a plain buffer, for tests and for the property tests of other crates.
#[cfg(test)]
#[derive(Clone, Debug)]
pub struct VecMemory(pub std::vec::Vec<u8>);

#[cfg(test)]
impl VecMemory {
    /// `size` bytes of zeroed RAM.
    pub fn new(size: usize) -> Self {
        Self(std::vec![0; size])
    }
}

#[cfg(test)]
impl GuestMemory for VecMemory {
    fn size(&self) -> u64 {
        self.0.len() as u64
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
