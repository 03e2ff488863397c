//! Boot module 0: the root-task with the boot archive behind it.

use crate::command::{Error, at};
use crate::elf;
use protocol::archive::{ENTRIES_MAX, Entry, Kind, Layout, header};
use std::path::{Path, PathBuf};

/// Servers every archive holds, named after their packages.
pub const SERVERS: [&str; 3] = ["mem-server", "io-sched-server", "vmm-server"];

/// One blob of the archive to be made.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it is.
    pub kind: Kind,
    /// Its name in the archive.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The archive with these blobs, in this order.
///
/// # Errors
///
/// What is wrong with a name or the number of blobs.
pub fn archive(blobs: &[Blob]) -> Result<Vec<u8>, &'static str> {
    if blobs.len() > ENTRIES_MAX {
        return Err("has more artefacts than a boot archive holds");
    }
    let mut layout = Layout::new(blobs.len());
    let mut table = Vec::new();
    let mut body = Vec::new();
    let start = layout.total();
    for blob in blobs {
        let length = blob.bytes.len() as u64;
        let offset = layout.place(length);
        let entry = Entry { kind: blob.kind, name: &blob.name, offset, length };
        table.extend(entry.to_bytes().ok_or("has an artefact whose name is too long")?);
        body.extend(&blob.bytes);
        let padded = usize::try_from(layout.total() - start).map_err(|_| "is too large")?;
        body.resize(padded, 0);
    }
    let count = u32::try_from(blobs.len()).map_err(|_| "is too large")?;
    let mut out = header(count, layout.total()).to_vec();
    out.extend(table);
    out.resize(usize::try_from(start).map_err(|_| "is too large")?, 0);
    out.extend(body);
    Ok(out)
}

fn program(programs: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = programs.join(name);
    let file = std::fs::read(&path).map_err(at(&path))?;
    elf::pack(&file, None).map_err(|why| Error::Input { path, why: why.message() })
}

/// Writes the boot module for `system` (encoded) and guest artefacts to `output`.
///
/// # Errors
///
/// [`Error`] if a program or artefact is missing or no ELF.
pub fn build(
    programs: &Path,
    system: &[u8],
    guests: Vec<(Kind, String, PathBuf)>,
    output: &Path,
) -> Result<(), Error> {
    let mut blobs =
        vec![Blob { kind: Kind::System, name: "system".to_owned(), bytes: system.to_vec() }];
    for name in SERVERS {
        let bytes = program(programs, name)?;
        blobs.push(Blob { kind: Kind::Server, name: name.to_owned(), bytes });
    }
    for (kind, name, path) in guests {
        let bytes = std::fs::read(&path).map_err(at(&path))?;
        blobs.push(Blob { kind, name, bytes });
    }
    let archive =
        archive(&blobs).map_err(|why| Error::Input { path: output.to_path_buf(), why })?;
    let path = programs.join("root-task");
    let root = std::fs::read(&path).map_err(at(&path))?;
    let module = elf::pack(&root, Some(&archive))
        .map_err(|why| Error::Input { path, why: why.message() })?;
    std::fs::write(output, module).map_err(at(output))
}

#[cfg(test)]
mod tests {
    use super::{Blob, archive};
    use protocol::archive::{Archive, Kind};

    #[test]
    fn the_reader_finds_what_the_builder_wrote() {
        let blob = |name: &str, bytes: &[u8]| Blob {
            kind: Kind::GuestModule,
            name: name.to_owned(),
            bytes: bytes.to_vec(),
        };
        let bytes = archive(&[blob("a", &[1; 4096]), blob("b", &[]), blob("c", &[3; 1])]).unwrap();
        assert!(bytes.len().is_multiple_of(4096));
        let archive = Archive::parse(&bytes).unwrap();
        assert_eq!(archive.find_bytes(Kind::GuestModule, "a"), Some(&[1; 4096][..]));
        assert_eq!(archive.find_bytes(Kind::GuestModule, "b"), Some(&[][..]));
        assert_eq!(archive.find_bytes(Kind::GuestModule, "c"), Some(&[3][..]));
    }

    #[test]
    fn too_long_a_name_is_refused() {
        let blob = Blob { kind: Kind::Server, name: "x".repeat(49), bytes: Vec::new() };
        assert!(archive(&[blob]).is_err());
    }
}
