//! How one virtual disk is spread over several disks of the machine: in units of 64 KiB, in turn.
//!
//! A unit is as long as the longest request, so that a request falls into at most two pieces.

use crate::ring::{BLK_REQUEST_MAX, SECTOR_BYTES};
use crate::units::MACHINE_DISKS_MAX;

/// Sectors of one unit.
pub const UNIT_SECTORS: u64 = (BLK_REQUEST_MAX / SECTOR_BYTES) as u64;
/// Most pieces of one request.
pub const PIECES_MAX: usize = 2;

/// Number of parts of a virtual disk, each a partition of another disk of the machine: 1..=[`MACHINE_DISKS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripes(u8);

/// What of a request goes to one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Which part.
    pub part: u8,
    /// First sector there.
    pub sector: u64,
    /// Where it begins in the request, in bytes.
    pub offset: u32,
    /// Its length in bytes.
    pub length: u32,
}

impl Stripes {
    /// A disk in one part.
    pub const ONE: Self = Self(1);

    /// A disk in `parts` parts; `None` if there cannot be so many.
    pub const fn new(parts: u8) -> Option<Self> {
        if parts == 0 || parts as usize > MACHINE_DISKS_MAX { None } else { Some(Self(parts)) }
    }

    /// Number of parts.
    pub const fn parts(self) -> u8 {
        self.0
    }

    /// Sectors of the virtual disk whose smallest part has `smallest`. Of several parts only whole units count.
    pub const fn sectors(self, smallest: u64) -> u64 {
        if self.0 == 1 {
            return smallest;
        }
        (smallest - smallest % UNIT_SECTORS).saturating_mul(self.0 as u64)
    }

    /// Sectors each part needs for a virtual disk of `sectors`.
    pub const fn part_sectors(self, sectors: u64) -> u64 {
        if self.0 == 1 {
            return sectors;
        }
        sectors.div_ceil(UNIT_SECTORS).div_ceil(self.0 as u64).saturating_mul(UNIT_SECTORS)
    }

    /// Where `sector` of the virtual disk is: part and sector there.
    pub const fn place(self, sector: u64) -> (u8, u64) {
        if self.0 == 1 {
            return (0, sector);
        }
        let (unit, inside) = (sector / UNIT_SECTORS, sector % UNIT_SECTORS);
        ((unit % self.0 as u64) as u8, unit / self.0 as u64 * UNIT_SECTORS + inside)
    }

    /// The pieces of a request for `length` bytes (at most [`BLK_REQUEST_MAX`]) at `sector`; the second is empty if the
    /// request crosses no boundary.
    pub fn pieces(self, sector: u64, length: u32) -> [Piece; PIECES_MAX] {
        let (part, first) = self.place(sector);
        let room = match self.0 {
            1 => length,
            _ => (UNIT_SECTORS - sector % UNIT_SECTORS) as u32 * SECTOR_BYTES,
        };
        let length_here = length.min(room);
        let here = Piece { part, sector: first, offset: 0, length: length_here };
        if length_here == length {
            return [here, Piece::default()];
        }
        let (part, first) = self.place(sector + u64::from(length_here / SECTOR_BYTES));
        let offset = length_here;
        [here, Piece { part, sector: first, offset, length: length - offset }]
    }
}

#[cfg(test)]
mod tests {
    use super::{PIECES_MAX, Piece, Stripes, UNIT_SECTORS};
    use crate::ring::{BLK_REQUEST_MAX, SECTOR_BYTES};
    use std::collections::HashSet;

    #[test]
    fn every_sector_has_one_place() {
        for parts in 1..=4 {
            let stripes = Stripes::new(parts).unwrap();
            let sectors = stripes.sectors(5 * UNIT_SECTORS + 3);
            let places: HashSet<_> = (0..sectors).map(|sector| stripes.place(sector)).collect();
            assert_eq!(places.len() as u64, sectors);
            let longest = places.iter().map(|(_, sector)| *sector).max().unwrap();
            assert!(longest < 5 * UNIT_SECTORS + 3);
            assert!(places.iter().all(|(part, _)| *part < parts));
            assert!(stripes.sectors(stripes.part_sectors(sectors)) >= sectors);
        }
        assert_eq!(Stripes::new(0), None);
        assert_eq!(Stripes::new(5), None);
    }

    #[test]
    fn pieces_are_the_request_in_order() {
        for parts in 1..=4 {
            let stripes = Stripes::new(parts).unwrap();
            for sector in [0, 1, 7, UNIT_SECTORS - 1, UNIT_SECTORS, 5 * UNIT_SECTORS + 100] {
                for sectors in [1, 8, 127, 128] {
                    let pieces = stripes.pieces(sector, sectors * SECTOR_BYTES);
                    let mut next = sector;
                    for piece in pieces.iter().filter(|piece| piece.length != 0) {
                        let offset = (next - sector) as u32 * SECTOR_BYTES;
                        assert_eq!(piece.offset, offset);
                        for inside in 0..u64::from(piece.length / SECTOR_BYTES) {
                            let place = (piece.part, piece.sector + inside);
                            assert_eq!(place, stripes.place(next + inside));
                        }
                        next += u64::from(piece.length / SECTOR_BYTES);
                    }
                    assert_eq!(next, sector + u64::from(sectors));
                }
            }
        }
    }

    #[test]
    fn one_part_is_never_split() {
        let pieces: [Piece; PIECES_MAX] = Stripes::ONE.pieces(100, BLK_REQUEST_MAX);
        assert_eq!(pieces[0], Piece { part: 0, sector: 100, offset: 0, length: BLK_REQUEST_MAX });
        assert_eq!(pieces[1].length, 0);
    }
}
