//! The machine's disks: a GPT with one partition for each virtual disk, or part of one, found by its label.

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

/// One virtual disk to make: a partition of each machine's disk that holds a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualDisk {
    /// GPT label of its partitions.
    pub label: String,
    /// Size in bytes; rounded up to a MiB.
    pub size: u64,
    /// What it holds.
    pub content: Content,
    /// Its parts, each on the next of the machine's disks.
    pub stripes: Stripes,
    /// The machine's disk that holds the first of them.
    pub on: u8,
}

impl VirtualDisk {
    /// Bytes of the virtual disk.
    const fn whole(&self) -> u64 {
        self.size.next_multiple_of(MIB)
    }

    /// Bytes of each part.
    const fn part(&self) -> u64 {
        (self.stripes.part_sectors(self.whole() / SECTOR) * SECTOR).next_multiple_of(MIB)
    }

    /// The machine's disks that hold its parts.
    fn homes(&self) -> std::ops::Range<usize> {
        let first = usize::from(self.on);
        first..first + usize::from(self.stripes.parts())
    }
}

/// The file of the machine's disk `number` in the folder of its disks.
pub fn file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("disk{number}.img"))
}

/// Writes the machine's first `machine_disks` disks to `folder`, which it makes. They are made together, for a virtual disk may lie on
/// several.
///
/// # Errors
///
/// [`Error`] if an image is missing or larger than its virtual disk, or one of those needs a disk that the machine does not have.
pub fn build(
    virtual_disks: &[VirtualDisk],
    machine_disks: usize,
    folder: &Path,
) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    if virtual_disks.iter().any(|disk| disk.homes().end > machine_disks) {
        let why = "would lack a disk that a virtual disk lies on: raise `disks` in [host]";
        return Err(Error::Input { path: folder.to_path_buf(), why });
    }
    // The end of what is taken of each.
    let mut ends = vec![MARGIN; machine_disks];
    let mut starts = Vec::new();
    for disk in virtual_disks {
        let ends = ends.get_mut(disk.homes()).unwrap_or_default();
        starts.push(ends.to_vec());
        ends.iter_mut().for_each(|end| *end += disk.part());
    }
    for (number, end) in ends.into_iter().enumerate() {
        let file = file(folder, number);
        File::create(&file).and_then(|disk| disk.set_len(end + MARGIN)).map_err(at(&file))?;
        let here = virtual_disks.iter().filter(|disk| disk.homes().contains(&number));
        partition(here, &file)?;
    }
    for (disk, starts) in virtual_disks.iter().zip(&starts) {
        let mut parts = Vec::new();
        for (number, start) in disk.homes().zip(starts) {
            parts.push(Part::open(&file(folder, number), *start)?);
        }
        fill(disk, &mut parts, &folder.join("whole"))?;
    }
    Ok(())
}

/// Writes the partition table of one of the machine's disks.
fn partition<'a>(here: impl Iterator<Item = &'a VirtualDisk>, file: &Path) -> Result<(), Error> {
    let mut sgdisk = Command::new("/usr/sbin/sgdisk");
    sgdisk.arg("--clear");
    let mut start = MARGIN;
    for (index, disk) in here.enumerate() {
        let number = index + 1;
        let sectors = (start / SECTOR, (start + disk.part()) / SECTOR - 1);
        sgdisk.arg(format!("--new={number}:{}:{}", sectors.0, sectors.1));
        sgdisk.arg(format!("--change-name={number}:{}", disk.label));
        start += disk.part();
    }
    run(sgdisk.arg(file), "gdisk").map(drop)
}

fn fill(disk: &VirtualDisk, parts: &mut [Part], scratch: &Path) -> Result<(), Error> {
    let image = match &disk.content {
        Content::Empty => return Ok(()),
        Content::Raw(image) => image,
        Content::Root { image, hostname } => {
            named_root(image, hostname, disk.whole(), scratch)?;
            scratch
        }
    };
    let length = fs::metadata(image).map_err(at(image))?.len();
    if length > disk.whole() {
        let why = "is larger than its virtual disk: raise `size` of that disk";
        return Err(Error::Input { path: image.to_path_buf(), why });
    }
    copy_sparse(image, parts, disk.stripes)?;
    match fs::remove_file(scratch) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(at(scratch)(cause)),
        _ => Ok(()),
    }
}

/// A copy of a root file system with its own host name, grown to `size`.
fn named_root(image: &Path, hostname: &str, size: u64, output: &Path) -> Result<(), Error> {
    let _ = fs::remove_file(output);
    let length = fs::metadata(image).map_err(at(image))?.len();
    File::create(output).and_then(|file| file.set_len(length.max(size))).map_err(at(output))?;
    copy_sparse(image, &mut [Part::open(output, 0)?], Stripes::ONE)?;
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

/// Where one part of a virtual disk is written.
struct Part {
    path: PathBuf,
    file: File,
    /// Its first byte in the file.
    start: u64,
}

impl Part {
    fn open(path: &Path, start: u64) -> Result<Self, Error> {
        let file = OpenOptions::new().write(true).open(path).map_err(at(path))?;
        Ok(Self { path: path.to_path_buf(), file, start })
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let seek = self.file.seek(SeekFrom::Start(self.start + offset));
        seek.and_then(|_| self.file.write_all(bytes)).map_err(at(&self.path))
    }
}

/// Deals the units of `from` out to `parts`, leaving out those of zeros, which are zero there already.
fn copy_sparse(from: &Path, parts: &mut [Part], stripes: Stripes) -> Result<(), Error> {
    let mut source = File::open(from).map_err(at(from))?;
    let mut block = Vec::new();
    let zeros = vec![0; (UNIT_SECTORS * SECTOR) as usize];
    for unit in 0.. {
        block.clear();
        let mut limited = Read::by_ref(&mut source).take(UNIT_SECTORS * SECTOR);
        if limited.read_to_end(&mut block).map_err(at(from))? == 0 {
            break;
        }
        // One comparison of slices: a loop over bytes takes minutes without optimisation.
        if Some(block.as_slice()) == zeros.get(..block.len()) {
            continue;
        }
        let (home, sector) = stripes.place(unit * UNIT_SECTORS);
        if let Some(part) = parts.get_mut(usize::from(home)) {
            part.write(sector * SECTOR, &block)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Content, MARGIN, VirtualDisk, build, file};
    use protocol::stripe::{Stripes, UNIT_SECTORS};
    use std::fs;
    use std::path::PathBuf;

    /// A folder of the test's own.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("ballast-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn image(&self, bytes: &[u8]) -> Content {
            let image = self.0.join("image");
            fs::write(&image, bytes).unwrap();
            Content::Raw(image)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn disk(label: &str, mib: u64, content: Content) -> VirtualDisk {
        let label = label.to_owned();
        VirtualDisk { label, size: mib << 20, content, stripes: Stripes::ONE, on: 0 }
    }

    #[test]
    fn partitions_carry_labels_and_contents() {
        let folder = Folder::new("disk");
        let disks = [disk("one", 3, Content::Empty), disk("two", 3, folder.image(&[9; 5000]))];
        build(&disks, 1, &folder.0).unwrap();
        let bytes = fs::read(file(&folder.0, 0)).unwrap();
        let second = (MARGIN + (3 << 20)) as usize;
        assert_eq!(bytes[second..second + 5000], [9; 5000]);
        assert_eq!(&bytes[512..520], b"EFI PART");
        let label: Vec<u8> = "two".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let entry = 1024 + 128;
        assert_eq!(bytes[entry + 56..entry + 62], label);
        assert_eq!(bytes[entry + 32..entry + 40], (second as u64 / 512).to_le_bytes());
    }

    #[test]
    fn an_image_larger_than_its_disk_is_refused() {
        let folder = Folder::new("disk2");
        let disks = [disk("x", 1, folder.image(&vec![9; 2 << 20]))];
        let error = build(&disks, 1, &folder.0).unwrap_err();
        assert!(error.to_string().contains("larger than its virtual disk"), "{error}");
    }

    #[test]
    fn a_part_beyond_the_machines_disks_is_refused() {
        let folder = Folder::new("disk4");
        let stripes = Stripes::new(2).unwrap();
        let disks = [VirtualDisk { stripes, on: 1, ..disk("x", 1, Content::Empty) }];
        let error = build(&disks, 2, &folder.0).unwrap_err();
        assert!(error.to_string().contains("raise `disks`"), "{error}");
        build(&disks, 3, &folder.0).unwrap();
    }

    #[test]
    fn the_parts_of_a_striped_disk_hold_its_units_in_turn() {
        let folder = Folder::new("disk3");
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 1000) as u8).collect();
        let stripes = Stripes::new(3).unwrap();
        let striped = VirtualDisk { stripes, on: 1, ..disk("s", 4, folder.image(&bytes)) };
        // In front of its second part lies another disk.
        let other = VirtualDisk { on: 2, ..disk("o", 2, Content::Empty) };
        build(&[other, striped], 4, &folder.0).unwrap();
        let disks: Vec<Vec<u8>> =
            (0..4).map(|number| fs::read(file(&folder.0, number)).unwrap()).collect();
        let starts = [MARGIN, MARGIN + (2 << 20), MARGIN];
        for (sector, wanted) in bytes.chunks(512).enumerate() {
            let (part, sector) = stripes.place(sector as u64);
            let at = starts[usize::from(part)] as usize + sector as usize * 512;
            assert_eq!(&disks[usize::from(part) + 1][at..at + wanted.len()], wanted);
        }
        assert_eq!(disks[0].len() as u64, 2 * MARGIN, "nothing lies there");
        assert!(disks[1].len() as u64 / 512 > 2 * (4 << 20) / 512 / 3 / UNIT_SECTORS);
    }
}
