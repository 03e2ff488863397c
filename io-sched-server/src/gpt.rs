//! The GUID partition table: label to sector range, from an untrusted disk.
//!
//! Source: UEFI specification 2.10, section 5.3. Both checksums are verified, every range is checked against the disk
//! and the others; a table that breaks a rule is refused whole, and the backup is tried.

use protocol::io::PartitionLabel;

/// Bytes of a logical sector.
pub const SECTOR: usize = 512;
/// Most bytes of partition entries that are read.
pub const ENTRIES_BYTES: usize = 16 << 10;
/// Most partitions kept.
pub const PARTITIONS: usize = 64;

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub label: PartitionLabel,
    /// First sector.
    pub first: u64,
    /// Number of sectors, at least one.
    pub sectors: u64,
}

/// Why there is no partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GptError {
    /// No "EFI PART" there.
    NoSignature,
    /// A checksum is wrong.
    Checksum,
    /// A size or count is out of range.
    Size,
    /// A partition lies outside the usable sectors, ends before it starts, or overlaps another.
    Range,
    /// A label is not UTF-16, or longer than 36 bytes in UTF-8.
    Label,
    /// More partitions than are kept.
    TooMany,
}

/// The checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// First sector of the entries.
    pub entries_sector: u64,
    /// Bytes of all entries, at most [`ENTRIES_BYTES`], rounded up to sectors.
    pub entries_length: u32,
    entry_bytes: u32,
    entries: u32,
    entries_checksum: u32,
    first_usable: u64,
    last_usable: u64,
}

/// CRC-32 (IEEE 802.3), bit by bit: tables of a few KiB are checked once.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Checks a header that was read from sector `at` of a disk of `disk_sectors`.
///
/// # Errors
///
/// [`GptError`] if a rule is broken.
pub fn parse_header(sector: &[u8; SECTOR], at: u64, disk_sectors: u64) -> Result<Header, GptError> {
    if &sector[..8] != b"EFI PART" {
        return Err(GptError::NoSignature);
    }
    let size = u32_at(sector, 12) as usize;
    if !(92..=SECTOR).contains(&size) {
        return Err(GptError::Size);
    }
    let mut copy = *sector;
    copy[16..20].fill(0);
    if crc32(&copy[..size]) != u32_at(sector, 16) {
        return Err(GptError::Checksum);
    }
    let entries = u32_at(sector, 80);
    let entry_bytes = u32_at(sector, 84);
    let entries_sector = u64_at(sector, 72);
    let length = u64::from(entries) * u64::from(entry_bytes);
    let is_sized = (128..=4096).contains(&entry_bytes)
        && entry_bytes.is_power_of_two()
        && length > 0
        && length <= ENTRIES_BYTES as u64;
    if !is_sized || u64_at(sector, 24) != at {
        return Err(GptError::Size);
    }
    let header = Header {
        entries_sector,
        entries_length: (length.next_multiple_of(SECTOR as u64)) as u32,
        entry_bytes,
        entries,
        entries_checksum: u32_at(sector, 88),
        first_usable: u64_at(sector, 40),
        last_usable: u64_at(sector, 48),
    };
    let entries_end = entries_sector.checked_add(u64::from(header.entries_length) / SECTOR as u64);
    if header.first_usable > header.last_usable
        || header.last_usable >= disk_sectors
        || entries_end.is_none_or(|end| end > disk_sectors)
        || entries_sector < 1
    {
        return Err(GptError::Range);
    }
    Ok(header)
}

/// Checks the entries of `header`.
///
/// # Errors
///
/// [`GptError`] if a rule is broken.
pub fn parse_entries(
    header: &Header,
    bytes: &[u8],
) -> Result<heapless::Vec<Partition, PARTITIONS>, GptError> {
    let length = (header.entries * header.entry_bytes) as usize;
    let Some(bytes) = bytes.get(..length) else { return Err(GptError::Size) };
    if crc32(bytes) != header.entries_checksum {
        return Err(GptError::Checksum);
    }
    let mut partitions = heapless::Vec::<Partition, PARTITIONS>::new();
    for entry in bytes.chunks_exact(header.entry_bytes as usize) {
        if entry[..16].iter().all(|b| *b == 0) {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        if first > last || first < header.first_usable || last > header.last_usable {
            return Err(GptError::Range);
        }
        let overlaps = |p: &Partition| first < p.first + p.sectors && p.first <= last;
        if partitions.iter().any(overlaps) {
            return Err(GptError::Range);
        }
        let partition =
            Partition { label: label(&entry[56..128])?, first, sectors: last - first + 1 };
        partitions.push(partition).map_err(|_| GptError::TooMany)?;
    }
    Ok(partitions)
}

fn label(bytes: &[u8]) -> Result<PartitionLabel, GptError> {
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let mut label = PartitionLabel::new();
    for character in char::decode_utf16(units.take_while(|unit| *unit != 0)) {
        let character = character.map_err(|_| GptError::Label)?;
        label.push(character).map_err(|_| GptError::Label)?;
    }
    Ok(label)
}

/// Writes header and entries of a table with these partitions: label, first and last sector. For tests and models.
#[cfg(any(test, feature = "model"))]
pub fn build(
    disk_sectors: u64,
    partitions: &[(&str, u64, u64)],
) -> ([u8; SECTOR], [u8; ENTRIES_BYTES]) {
    build_at(disk_sectors, 1, 2, partitions)
}

/// The same for a header in sector `at` with its entries from `entries_at` on.
#[cfg(any(test, feature = "model"))]
pub fn build_at(
    disk_sectors: u64,
    at: u64,
    entries_at: u64,
    partitions: &[(&str, u64, u64)],
) -> ([u8; SECTOR], [u8; ENTRIES_BYTES]) {
    let mut entries = [0u8; ENTRIES_BYTES];
    for (index, (name, first, last)) in partitions.iter().enumerate() {
        let entry = &mut entries[index * 128..][..128];
        entry[..32].fill(index as u8 + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (at, unit) in name.encode_utf16().enumerate() {
            entry[56 + at * 2..58 + at * 2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let mut header = [0u8; SECTOR];
    header[..8].copy_from_slice(b"EFI PART");
    let words: [(usize, u64, usize); 10] = [
        (8, 0x1_0000, 4),
        (12, 92, 4),
        (24, at, 8),
        (32, disk_sectors - at, 8),
        (40, 34, 8),
        (48, disk_sectors - 34, 8),
        (72, entries_at, 8),
        (80, 128, 4),
        (84, 128, 4),
        (88, u64::from(crc32(&entries)), 4),
    ];
    for (at, value, bytes) in words {
        header[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }
    seal(&mut header);
    (header, entries)
}

/// Puts the header's own checksum in.
#[cfg(any(test, feature = "model"))]
fn seal(header: &mut [u8; SECTOR]) {
    header[16..20].fill(0);
    let crc = crc32(&header[..92]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn partitions_are_found_by_label() {
        let (header, entries) = build(10_000, &[("debian-a", 2048, 4095), ("déb", 4096, 4096)]);
        let header = parse_header(&header, 1, 10_000).unwrap();
        let found = parse_entries(&header, &entries).unwrap();
        assert_eq!(
            (found[0].label.as_str(), found[0].first, found[0].sectors),
            ("debian-a", 2048, 2048)
        );
        assert_eq!((found[1].label.as_str(), found[1].sectors), ("déb", 1));
    }

    #[test]
    fn broken_tables_are_refused() {
        let (good, entries) = build(10_000, &[("a", 2048, 4095)]);
        let change = |at: usize, value: u64, bytes: usize| {
            let mut header = good;
            header[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            seal(&mut header);
            parse_header(&header, 1, 10_000)
        };
        assert_eq!(change(0, 0, 1), Err(GptError::NoSignature));
        assert_eq!(change(12, 1000, 4), Err(GptError::Size));
        assert_eq!(change(84, 96, 4), Err(GptError::Size));
        assert_eq!(change(80, u64::from(u32::MAX), 4), Err(GptError::Size));
        assert_eq!(change(72, u64::MAX, 8), Err(GptError::Range));
        assert_eq!(change(48, 10_000, 8), Err(GptError::Range));
        assert_eq!(change(24, 7, 8), Err(GptError::Size));
        let mut flipped = good;
        flipped[40] ^= 1;
        assert_eq!(parse_header(&flipped, 1, 10_000), Err(GptError::Checksum));
        let header = parse_header(&good, 1, 10_000).unwrap();
        let mut entries = entries;
        entries[40] ^= 1;
        assert_eq!(parse_entries(&header, &entries), Err(GptError::Checksum));
        for pair in [
            [("a", 2048, 4095), ("b", 4095, 5000)],
            [("a", 4096, 4095), ("b", 5000, 5000)],
            [("a", 1, 2), ("b", 5000, 5000)],
            [("a", 2048, u64::MAX), ("b", 5000, 5000)],
        ] {
            let (header, entries) = build(10_000, &pair);
            let header = parse_header(&header, 1, 10_000).unwrap();
            assert_eq!(parse_entries(&header, &entries), Err(GptError::Range), "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_reason_to_panic(
            mut header in proptest::collection::vec(any::<u8>(), SECTOR),
            entries in proptest::collection::vec(any::<u8>(), 0..20_000),
            disk in any::<u64>(),
            count in 0u32..300,
        ) {
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92u32.to_le_bytes());
            header[24..32].copy_from_slice(&1u64.to_le_bytes());
            header[80..84].copy_from_slice(&count.to_le_bytes());
            header[84..88].copy_from_slice(&128u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            let mut header: [u8; SECTOR] = header.try_into().unwrap();
            seal(&mut header);
            if let Ok(header) = parse_header(&header, 1, disk) {
                let _ = parse_entries(&header, &entries);
            }
        }
    }
}
