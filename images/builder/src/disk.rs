//! The machine's disk: a GPT with one partition for each virtual disk, found by its label.

use crate::command::{Error, at, run};
use protocol::stripe::{Stripes, UNIT_SECTORS};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Bytes in front of the first partition and behind the last: the two partition tables.
const MARGIN: u64 = MIB;

/// What a partition holds when the disk is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Empty,
    /// A copy of a raw image.
    Raw(PathBuf),
    /// A copy of a Debian root file system, with this host name.
    Root {
        /// The file system's image.
        image: PathBuf,
        /// The host name.
        hostname: String,
    },
}

/// One partition to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its GPT label.
    pub label: String,
    /// Size in bytes of the virtual disk that it is a part of; rounded up to a MiB.
    pub size: u64,
    /// What that disk holds.
    pub content: Content,
    /// The parts of that disk.
    pub stripes: Stripes,
    /// Which of them this is.
    pub part: u8,
}

impl Partition {
    /// Bytes of the virtual disk.
    const fn whole(&self) -> u64 {
        self.size.next_multiple_of(MIB)
    }

    /// Bytes of this part.
    const fn bytes(&self) -> u64 {
        (self.stripes.part_sectors(self.whole() / SECTOR) * SECTOR).next_multiple_of(MIB)
    }
}

/// Writes the whole disk to `output`.
///
/// # Errors
///
/// [`Error`] if an image is missing or larger than its partition.
pub fn build(partitions: &[Partition], output: &Path) -> Result<(), Error> {
    let total = partitions.iter().map(Partition::bytes).sum::<u64>() + 2 * MARGIN;
    let disk = File::create(output).map_err(at(output))?;
    disk.set_len(total).map_err(at(output))?;
    let mut sgdisk = Command::new("/usr/sbin/sgdisk");
    sgdisk.arg("--clear");
    let mut start = MARGIN;
    for (index, partition) in partitions.iter().enumerate() {
        let number = index + 1;
        let sectors = (start / 512, (start + partition.bytes()) / 512 - 1);
        sgdisk.arg(format!("--new={number}:{}:{}", sectors.0, sectors.1));
        sgdisk.arg(format!("--change-name={number}:{}", partition.label));
        start += partition.bytes();
    }
    run(sgdisk.arg(output), "gdisk")?;
    let mut start = MARGIN;
    for partition in partitions {
        fill(output, start, partition)?;
        start += partition.bytes();
    }
    Ok(())
}

fn fill(disk: &Path, start: u64, partition: &Partition) -> Result<(), Error> {
    let (image, scratch) = match &partition.content {
        Content::Empty => return Ok(()),
        Content::Raw(image) => (image.clone(), None),
        Content::Root { image, hostname } => {
            let scratch = disk.with_extension("partition");
            named_root(image, hostname, partition.whole(), &scratch)?;
            (scratch.clone(), Some(scratch))
        }
    };
    let length = fs::metadata(&image).map_err(at(&image))?.len();
    if length > partition.whole() {
        let why = "is larger than its partition: raise `size` of that disk";
        return Err(Error::Input { path: image, why });
    }
    copy_sparse(&image, disk, start, (partition.stripes, partition.part))?;
    scratch.map_or(Ok(()), |path| fs::remove_file(&path).map_err(at(path)))
}

/// A copy of a root file system with its own host name, grown to `size`.
fn named_root(image: &Path, hostname: &str, size: u64, output: &Path) -> Result<(), Error> {
    let _ = fs::remove_file(output);
    let length = fs::metadata(image).map_err(at(image))?.len();
    File::create(output).and_then(|file| file.set_len(length.max(size))).map_err(at(output))?;
    copy_sparse(image, output, 0, (Stripes::ONE, 0))?;
    let write = |name: &str, text: String| {
        let path = output.with_extension(name);
        fs::write(&path, text).map_err(at(&path)).map(|()| path)
    };
    let name = write("hostname", format!("{hostname}\n"))?;
    let hosts = write("hosts", format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n"))?;
    let script = format!(
        "rm /etc/hostname\nwrite {} /etc/hostname\nrm /etc/hosts\nwrite {} /etc/hosts\n\
         sif /etc/hostname mode 0100644\nsif /etc/hosts mode 0100644\n\
         sif /etc/hostname uid 0\nsif /etc/hostname gid 0\nsif /etc/hosts uid 0\nsif /etc/hosts gid 0\n",
        name.display(),
        hosts.display()
    );
    let commands = write("debugfs", script)?;
    let mut debugfs = Command::new("/usr/sbin/debugfs");
    run(debugfs.arg("-w").arg("-f").arg(&commands).arg(output), "e2fsprogs")?;
    for path in [name, hosts, commands] {
        fs::remove_file(&path).map_err(at(path))?;
    }
    if size > length {
        run(Command::new("/usr/sbin/resize2fs").arg(output), "e2fsprogs")?;
    }
    Ok(())
}

/// Copies what of `from` belongs to the part to `start` of `to`, leaving out blocks of zeros, which are zero there already.
fn copy_sparse(
    from: &Path,
    to: &Path,
    start: u64,
    (stripes, part): (Stripes, u8),
) -> Result<(), Error> {
    let mut source = File::open(from).map_err(at(from))?;
    let mut target = OpenOptions::new().write(true).open(to).map_err(at(to))?;
    let mut block = Vec::new();
    let zeros = vec![0; (UNIT_SECTORS * SECTOR) as usize];
    for unit in 0.. {
        block.clear();
        let mut limited = Read::by_ref(&mut source).take(UNIT_SECTORS * SECTOR);
        if limited.read_to_end(&mut block).map_err(at(from))? == 0 {
            break;
        }
        let (home, sector) = stripes.place(unit * UNIT_SECTORS);
        // One comparison of slices: a loop over bytes takes minutes without optimisation.
        if home == part && Some(block.as_slice()) != zeros.get(..block.len()) {
            target.seek(SeekFrom::Start(start + sector * SECTOR)).map_err(at(to))?;
            target.write_all(&block).map_err(at(to))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Content, MARGIN, Partition, build};
    use protocol::stripe::{Stripes, UNIT_SECTORS};
    use std::fs;

    #[test]
    fn partitions_carry_labels_and_contents() {
        let folder = std::env::temp_dir().join(format!("ballast-disk-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let image = folder.join("image");
        fs::write(&image, [9; 5000]).unwrap();
        let disk = folder.join("disk");
        let partition = |label: &str, content| Partition {
            label: label.to_owned(),
            size: 3 << 20,
            content,
            stripes: Stripes::ONE,
            part: 0,
        };
        build(&[partition("one", Content::Empty), partition("two", Content::Raw(image))], &disk)
            .unwrap();
        let bytes = fs::read(&disk).unwrap();
        let second = (MARGIN + (3 << 20)) as usize;
        assert_eq!(bytes[second..second + 5000], [9; 5000]);
        assert_eq!(&bytes[512..520], b"EFI PART");
        let label: Vec<u8> = "two".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let entry = 1024 + 128;
        assert_eq!(bytes[entry + 56..entry + 62], label);
        assert_eq!(bytes[entry + 32..entry + 40], (second as u64 / 512).to_le_bytes());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_image_larger_than_its_partition_is_refused() {
        let folder = std::env::temp_dir().join(format!("ballast-disk2-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let image = folder.join("image");
        fs::write(&image, vec![9; 2 << 20]).unwrap();
        let partition = Partition {
            label: "x".to_owned(),
            size: 1 << 20,
            content: Content::Raw(image),
            stripes: Stripes::ONE,
            part: 0,
        };
        let error = build(&[partition], &folder.join("disk")).unwrap_err();
        assert!(error.to_string().contains("larger than its partition"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_parts_of_a_striped_disk_hold_its_units_in_turn() {
        let folder = std::env::temp_dir().join(format!("ballast-disk3-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let image = folder.join("image");
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 1000) as u8).collect();
        fs::write(&image, &bytes).unwrap();
        let stripes = Stripes::new(3).unwrap();
        let disks: Vec<Vec<u8>> = (0..3)
            .map(|part| {
                let path = folder.join(format!("disk{part}"));
                let partition = Partition {
                    label: "s".to_owned(),
                    size: 4 << 20,
                    content: Content::Raw(image.clone()),
                    stripes,
                    part,
                };
                build(&[partition], &path).unwrap();
                fs::read(path).unwrap()
            })
            .collect();
        for (sector, wanted) in bytes.chunks(512).enumerate() {
            let (part, sector) = stripes.place(sector as u64);
            let at = MARGIN as usize + sector as usize * 512;
            assert_eq!(&disks[usize::from(part)][at..at + wanted.len()], wanted);
        }
        assert!(disks[0].len() as u64 / 512 > 2 * (4 << 20) / 512 / 3 / UNIT_SECTORS);
        fs::remove_dir_all(folder).unwrap();
    }
}
