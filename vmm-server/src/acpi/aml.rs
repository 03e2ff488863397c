//! AML encoder for the few terms a DSDT needs (ACPI 6.4, chapter 20).
//!
//! Package lengths always take their three-byte form, so that a term can be closed by patching its front.

/// A byte code stream being written into a caller's buffer.
pub struct Aml<'b> {
    buffer: &'b mut [u8],
    length: usize,
}

const PACKAGE_LENGTH_BYTES: usize = 3;

impl<'b> Aml<'b> {
    /// Starts at the front of `buffer`.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, length: 0 }
    }

    /// Bytes written; more than the buffer holds if it was too small.
    pub fn finish(self) -> usize {
        self.length
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        if let Some(place) = self.buffer.get_mut(self.length..self.length + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        self.length += bytes.len();
    }

    /// An integer in its shortest form.
    pub fn integer(&mut self, value: u64) {
        match value {
            0 => self.raw(&[0x00]),
            1 => self.raw(&[0x01]),
            2..=0xff => self.raw(&[0x0a, value as u8]),
            0x100..=0xffff => {
                self.raw(&[0x0b]);
                self.raw(&(value as u16).to_le_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.raw(&[0x0c]);
                self.raw(&(value as u32).to_le_bytes());
            }
            _ => {
                self.raw(&[0x0e]);
                self.raw(&value.to_le_bytes());
            }
        }
    }

    /// A compressed EISA identity such as `PNP0A03`.
    pub fn eisa_id(&mut self, id: [u8; 7]) {
        let letter = |byte: u8| u32::from(byte - b'@') & 0x1f;
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => u32::from(byte - b'0'),
            _ => (u32::from(byte.wrapping_sub(b'A')) + 10) & 0xf,
        };
        let word = letter(id[0]) << 26
            | letter(id[1]) << 21
            | letter(id[2]) << 16
            | digit(id[3]) << 12
            | digit(id[4]) << 8
            | digit(id[5]) << 4
            | digit(id[6]);
        self.raw(&[0x0c]);
        self.raw(&word.to_be_bytes());
    }

    /// `Name (segment, value)`.
    pub fn name(&mut self, segment: &[u8; 4], value: impl FnOnce(&mut Self)) {
        self.raw(&[0x08]);
        self.raw(segment);
        value(self);
    }

    /// `Scope (\segment) { body }`.
    pub fn scope(&mut self, segment: &[u8; 4], body: impl FnOnce(&mut Self)) {
        self.raw(&[0x10]);
        self.with_length(|aml| {
            aml.raw(b"\\");
            aml.raw(segment);
            body(aml);
        });
    }

    /// `Device (segment) { body }`.
    pub fn device(&mut self, segment: &[u8; 4], body: impl FnOnce(&mut Self)) {
        self.raw(&[0x5b, 0x82]);
        self.with_length(|aml| {
            aml.raw(segment);
            body(aml);
        });
    }

    /// `Package (count) { elements }`.
    pub fn package(&mut self, count: u8, elements: impl FnOnce(&mut Self)) {
        self.raw(&[0x12]);
        self.with_length(|aml| {
            aml.raw(&[count]);
            elements(aml);
        });
    }

    /// `Buffer () { bytes }`, as a resource template is.
    pub fn buffer(&mut self, bytes: impl FnOnce(&mut Self)) {
        self.raw(&[0x11]);
        self.with_length(|aml| {
            // The size as a word constant, patched once it is known.
            aml.raw(&[0x0b, 0, 0]);
            let start = aml.length;
            bytes(aml);
            let size = (aml.length - start) as u16;
            aml.patch(start - 2, &size.to_le_bytes());
        });
    }

    fn with_length(&mut self, body: impl FnOnce(&mut Self)) {
        let start = self.length;
        self.raw(&[0; PACKAGE_LENGTH_BYTES]);
        body(self);
        // The length counts its own bytes: two follow the lead byte, which holds the lowest four bits.
        let length = self.length - start;
        let lead = 2 << 6 | (length & 0xf) as u8;
        self.patch(start, &[lead, (length >> 4) as u8, (length >> 12) as u8]);
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.buffer.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(body: impl FnOnce(&mut Aml<'_>)) -> std::vec::Vec<u8> {
        let mut buffer = [0; 256];
        let mut aml = Aml::new(&mut buffer);
        body(&mut aml);
        let used = aml.finish();
        buffer[..used].to_vec()
    }

    #[test]
    fn integers_take_the_shortest_form() {
        assert_eq!(encode(|a| a.integer(0)), [0]);
        assert_eq!(encode(|a| a.integer(1)), [1]);
        assert_eq!(encode(|a| a.integer(5)), [0x0a, 5]);
        assert_eq!(encode(|a| a.integer(0x1234)), [0x0b, 0x34, 0x12]);
        assert_eq!(encode(|a| a.integer(0x1_ffff)), [0x0c, 0xff, 0xff, 1, 0]);
        assert_eq!(encode(|a| a.integer(1 << 32)).len(), 9);
    }

    #[test]
    fn the_pci_bridge_identity_is_the_well_known_one() {
        assert_eq!(encode(|a| a.eisa_id(*b"PNP0A03")), [0x0c, 0x41, 0xd0, 0x0a, 0x03]);
        assert_eq!(encode(|a| a.eisa_id(*b"PNP0501")), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
    }

    #[test]
    fn lengths_cover_their_own_bytes() {
        let bytes = encode(|a| {
            a.package(2, |a| {
                a.integer(5);
                a.integer(0);
            })
        });
        assert_eq!(bytes, [0x12, 0x87, 0, 0, 2, 0x0a, 5, 0]);
        let bytes = encode(|a| a.buffer(|a| a.raw(&[7; 20])));
        let length = usize::from(bytes[1] & 0xf) | usize::from(bytes[2]) << 4;
        assert_eq!(length, bytes.len() - 1);
        assert_eq!(&bytes[4..7], [0x0b, 20, 0]);
    }

    #[test]
    fn a_short_buffer_is_noticed_not_overrun() {
        let mut buffer = [0; 4];
        let mut aml = Aml::new(&mut buffer);
        aml.device(b"ABCD", |a| a.integer(77));
        assert!(aml.finish() > 4);
    }
}
