//! Makes what a configuration needs: guest artefacts, boot module, disk, ISO.

use crate::config::{Config, DiskImage, DiskPlan, Source};
use crate::{Error, PROGRAMS, WORKSPACE};
use builder::cache::Cache;
use builder::disk::{Content, VirtualDisk};
use builder::{boot_module, disk, elf, guest, iso};
use protocol::archive::Kind;
use protocol::stripe::Stripes;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Everything QEMU needs to boot a system.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel, loadable by PVH and Multiboot2.
    pub kernel: PathBuf,
    /// Boot module 0.
    pub module: PathBuf,
    /// The machine's disks, if any VM has one.
    pub disks: Vec<PathBuf>,
    /// RAM of the machine in MiB.
    pub memory_mib: u64,
}

/// Whether a disk that exists is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// What the guests wrote stays.
    Keep,
    /// Made anew.
    Fresh,
}

/// Says on stderr which long step runs.
pub fn progress(step: &str) {
    eprintln!("ballast: {step} ...");
}

/// Folder of everything this checkout makes beside the compiler's output.
pub fn state_folder() -> PathBuf {
    Path::new(WORKSPACE).join(".ballast")
}

/// A program built for the target.
///
/// # Errors
///
/// [`Error::Build`] if it was not built.
pub fn program(name: &str) -> Result<PathBuf, Error> {
    let path = Path::new(PROGRAMS).join(name);
    if path.is_file() {
        return Ok(path);
    }
    let text =
        format!("{} was not built: run ./ballast again, or cargo clean first", path.display());
    Err(Error::Build(text))
}

/// The kernel without symbols: what is loaded.
fn kernel(folder: &Path) -> Result<PathBuf, Error> {
    let source = program("kernel")?;
    let file = std::fs::read(&source).map_err(Error::file(&source))?;
    let _ = elf::pack(&file, None)
        .map_err(|why| Error::Build(format!("{} {}", source.display(), why.message())))?;
    let target = folder.join("kernel.elf");
    std::fs::write(&target, file).map_err(Error::file(&target))?;
    Ok(target)
}

/// Builds all of `config`; a second call takes a moment.
///
/// # Errors
///
/// [`Error::Build`] with the step that failed.
pub fn build(config: &Config, disk: Disk) -> Result<Image, Error> {
    let started = Instant::now();
    let state = state_folder();
    let guests = Cache::open(&state.join("guest"))?;
    let mut artefacts = Vec::new();
    for artefact in &config.artefacts {
        let kind = if artefact.is_kernel { Kind::GuestKernel } else { Kind::GuestModule };
        let path = match &artefact.source {
            Source::Debian if artefact.is_kernel => guest::kernel(&guests, &progress)?,
            Source::Debian => guest::initramfs(&guests, &progress)?,
            Source::Program(name) => program(name)?,
            Source::File(path) => path.clone(),
        };
        artefacts.push((kind, artefact.name.clone(), path));
    }
    let folder = state.join("systems").join(config.system.name.as_str());
    std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    let system = postcard::to_stdvec(&config.system)
        .map_err(|error| Error::Build(format!("the description cannot be encoded: {error}")))?;
    let module = folder.join("root-task.elf");
    boot_module::build(Path::new(PROGRAMS), &system, artefacts, &module)?;
    let kernel = kernel(&folder)?;
    let disks = make_disks(config, &guests, &folder, disk)?;
    let elapsed = started.elapsed();
    if elapsed.as_secs() >= 3 {
        eprintln!("ballast: image ready after {:.1} s", elapsed.as_secs_f64());
    }
    let memory_mib = config.system.machine_memory.bytes() >> 20;
    Ok(Image { kernel, module, disks, memory_mib })
}

/// Makes the machine's disks, all or none: a virtual disk may lie on several, and its parts must be of one making.
fn make_disks(
    config: &Config,
    guests: &Cache,
    folder: &Path,
    wanted: Disk,
) -> Result<Vec<PathBuf>, Error> {
    if config.disks.is_empty() {
        return Ok(Vec::new());
    }
    let mut disks = Vec::new();
    for plan in &config.disks {
        let content = match &plan.image {
            DiskImage::Empty => Content::Empty,
            DiskImage::File(path) => Content::Raw(path.clone()),
            DiskImage::Fio => Content::Raw(guest::fio(guests, &progress)?),
            DiskImage::Debian => Content::Root {
                image: guest::root(guests, &progress)?,
                hostname: plan.hostname.clone(),
            },
        };
        let stripes = Stripes::new(plan.parts).unwrap_or(Stripes::ONE);
        let (label, size, on) = (plan.label.clone(), plan.size, plan.on.0);
        disks.push(VirtualDisk { label, size, content, stripes, on });
    }
    let cache = Cache::open(folder)?;
    let count = usize::from(config.system.disks);
    let stamp = |name: &str| std::fs::read_to_string(guests.path(name)).unwrap_or_default();
    let inputs = disk_inputs(format!("{count} {disks:?}"), &config.disks, stamp);
    if wanted == Disk::Fresh {
        let _ = std::fs::remove_file(cache.path("disks.stamp"));
    }
    let made = cache.get("disks", &inputs, |folder| {
        progress("making the disks");
        disk::build(&disks, count, folder)
    })?;
    Ok((0..count).map(|number| disk::file(&made, number)).collect())
}

/// What disks with `layout` are made from: they are made anew when it changes, so only what is on them counts. `stamp` reads what a
/// guest's image was made from; its last line's end says nothing.
fn disk_inputs(layout: String, plans: &[DiskPlan], stamp: impl Fn(&str) -> String) -> String {
    let images = [(DiskImage::Debian, "root.ext4.stamp"), (DiskImage::Fio, "fio.ext4.stamp")];
    let mut inputs = layout;
    for (_, name) in images.iter().filter(|(image, _)| plans.iter().any(|p| p.image == *image)) {
        inputs.push(' ');
        inputs.push_str(stamp(name).trim_end());
    }
    inputs
}

/// Prepares any root-task ELF to be booted alone.
///
/// # Errors
///
/// [`Error::Input`] if `root_task` is no ELF.
pub fn foreign(root_task: &Path, memory_mib: u64) -> Result<Image, Error> {
    let input = |why: &str| Error::Input(format!("{}: {why}", root_task.display()));
    let file = std::fs::read(root_task).map_err(|cause| input(&cause.to_string()))?;
    elf::pack(&file, None).map_err(|why| input(why.message()))?;
    let folder = state_folder().join("systems").join("root-task");
    std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    Ok(Image {
        kernel: kernel(&folder)?,
        module: root_task.to_path_buf(),
        disks: Vec::new(),
        memory_mib,
    })
}

/// Writes a bootable ISO of `image` to `output`.
///
/// # Errors
///
/// [`Error::Build`] with GRUB's words.
pub fn write_iso(image: &Image, output: &Path) -> Result<(), Error> {
    progress("writing the ISO with grub-mkrescue");
    Ok(iso::build(&image.kernel, &image.module, "", output)?)
}

#[cfg(test)]
mod tests {
    use super::{DiskImage, DiskPlan, disk_inputs};
    use protocol::units::DiskId;

    /// Disks are made anew, and what guests wrote is lost, only if something on them changed.
    #[test]
    fn disks_depend_on_what_is_on_them_alone() {
        let plan = |image| DiskPlan {
            label: "a".to_owned(),
            size: 1 << 20,
            image,
            hostname: String::new(),
            on: DiskId(0),
            parts: 1,
        };
        let inputs = |images: &[DiskImage], fio: &str| {
            let plans: Vec<DiskPlan> = images.iter().cloned().map(plan).collect();
            let stamp = |name: &str| match name {
                "root.ext4.stamp" => "root\n".to_owned(),
                _ => fio.to_owned(),
            };
            disk_inputs("1 disk".to_owned(), &plans, stamp)
        };
        let debian = [DiskImage::Debian, DiskImage::Empty];
        assert_eq!(inputs(&debian, ""), "1 disk root");
        assert_eq!(inputs(&debian, ""), inputs(&debian, "fio 2\n"));
        assert_eq!(inputs(&[DiskImage::Empty], "fio 2\n"), "1 disk");
        let both = [DiskImage::Debian, DiskImage::Fio];
        assert_ne!(inputs(&both, "fio 1\n"), inputs(&both, "fio 2\n"));
    }
}
