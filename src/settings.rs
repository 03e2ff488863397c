//! Settings that are changed while a system runs, as words of the command line.

use crate::Error;
use protocol::link::Setting;
use protocol::system::{GroupMemoryChange, IoChange, MemoryChange};
use protocol::units::Pages;

/// Reads a size such as `64M`.
fn pages(text: &str) -> Option<Pages> {
    let bytes = crate::config::size_bytes(text)?;
    bytes.is_multiple_of(4096).then(|| Pages::holding(bytes))
}

/// Reads all settings of a VM, `KEY=VALUE` each; what concerns one disk becomes one change.
///
/// # Errors
///
/// [`Error::Input`] naming the word that is none, and what may be written.
pub fn settings_of(texts: &[String]) -> Result<Vec<Setting>, Error> {
    let mut settings: Vec<Setting> = Vec::new();
    for text in texts {
        let of_disk = text.strip_prefix("disk").and_then(|t| t.split_once('.'));
        // Of one disk, or of all of them.
        let (disk, rest) = match of_disk {
            Some((number, rest)) => (Some(number.parse().map_err(|_| io_wrong(text))?), rest),
            None if text.starts_with("io.") => (None, text.as_str()),
            None => {
                settings.push(setting(text)?);
                continue;
            }
        };
        let known = settings.iter_mut().find_map(|setting| match setting {
            Setting::Io { disk: number, change } if disk == Some(*number) => Some(change),
            Setting::VmIo(change) if disk.is_none() => Some(change),
            _ => None,
        });
        let mut change = known.as_deref().copied().unwrap_or_default();
        io_change(text, rest, &mut change)?;
        match (known, disk) {
            (Some(place), _) => *place = change,
            (None, Some(disk)) => settings.push(Setting::Io { disk, change }),
            (None, None) => settings.push(Setting::VmIo(change)),
        }
    }
    Ok(settings)
}

fn io_wrong(text: &str) -> Error {
    Error::Input(format!(
        "'{text}' is no disk setting: write disk0.io.limit=200 (of a VM or a group io.limit=200), or \
         io.reservation=, io.shares=, io.burst=, io.limit_bytes=20M, io.reservation_bytes=5M"
    ))
}

/// Reads `io.KEY=VALUE`, the end of the word `whole`, into `change`.
fn io_change(whole: &str, text: &str, change: &mut IoChange) -> Result<(), Error> {
    let wrong = || io_wrong(whole);
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let number = || value.parse::<u32>().map_err(|_| wrong());
    let bytes = || crate::config::size_bytes(value).ok_or_else(wrong);
    match key {
        "io.reservation" => change.reservation = Some(number()?),
        "io.limit" => change.limit = Some(number()?),
        "io.shares" => change.shares = Some(number()?),
        "io.burst" => change.burst = Some(value.parse().map_err(|_| wrong())?),
        "io.reservation_bytes" => change.reservation_bytes = Some(bytes()?),
        "io.limit_bytes" => change.limit_bytes = Some(bytes()?),
        _ => return Err(wrong()),
    }
    Ok(())
}

/// Reads changes of a claim on the disk, `io.KEY=VALUE` each.
///
/// # Errors
///
/// [`Error::Input`] naming the word that is none, and what may be written.
pub fn io_changes(texts: &[String]) -> Result<IoChange, Error> {
    let mut change = IoChange::default();
    for text in texts {
        io_change(text, text, &mut change)?;
    }
    Ok(change)
}

/// Reads changes of a group's claims: `io.KEY=VALUE` on the disk, `memory.KEY=VALUE` on memory.
///
/// # Errors
///
/// [`Error::Input`] naming the word that is none, and what may be written.
pub fn group_changes(texts: &[String]) -> Result<(IoChange, GroupMemoryChange), Error> {
    let (mut io, mut memory) = (IoChange::default(), GroupMemoryChange::default());
    for text in texts {
        let known = match text.split_once('=') {
            Some(("memory.shares", value)) => value.parse().ok().map(|shares| {
                memory.shares = Some(shares);
            }),
            Some(("memory.reservation", value)) => pages(value).map(|pages| {
                memory.reservation = Some(pages);
            }),
            _ => Some(io_change(text, text, &mut io)?),
        };
        known.ok_or_else(|| {
            let cure = "write memory.shares=2000 or memory.reservation=64M";
            Error::Input(format!("'{text}' is no memory setting of a group: {cure}"))
        })?;
    }
    Ok((io, memory))
}

/// Reads changes of the machine's memory controls, `KEY=VALUE` each.
///
/// # Errors
///
/// [`Error::Input`] naming the word that is none, and what may be written.
pub fn memory_changes(texts: &[String]) -> Result<MemoryChange, Error> {
    let mut change = MemoryChange::default();
    for text in texts {
        let wrong = || {
            Error::Input(format!(
                "'{text}' is no memory setting of the machine: write tax=750, \
                 scan_pages_per_second=2000 or scan_pages_per_second_vm=500"
            ))
        };
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let place = match key {
            "tax" => {
                change.tax = Some(value.parse().map_err(|_| wrong())?);
                continue;
            }
            "scan_pages_per_second" => &mut change.scan_pages_per_second,
            "scan_pages_per_second_vm" => &mut change.scan_pages_per_second_vm,
            _ => return Err(wrong()),
        };
        *place = Some(value.parse().map_err(|_| wrong())?);
    }
    Ok(change)
}

fn setting(text: &str) -> Result<Setting, Error> {
    let wrong = || {
        Error::Input(format!(
            "'{text}' is no setting: write balloon=64M, balloon=auto, memory.shares=2000, \
             memory.reservation=64M, memory.limit=128M, memory.tax=750, io.limit=200 or disk0.io.limit=200"
        ))
    };
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let setting = match key {
        "balloon" if value == "auto" => Some(Setting::Balloon(None)),
        "balloon" => pages(value).map(|pages| Setting::Balloon(Some(pages))),
        "memory.shares" | "shares" => value.parse().ok().map(Setting::MemoryShares),
        "memory.reservation" | "reservation" => pages(value).map(Setting::MemoryReservation),
        "memory.limit" | "limit" => pages(value).map(Setting::MemoryLimit),
        "memory.tax" | "tax" => value.parse().ok().map(Setting::MemoryTax),
        _ => None,
    };
    setting.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::{group_changes, memory_changes, settings_of};
    use protocol::link::Setting;
    use protocol::system::{GroupMemoryChange, IoChange, MemoryChange};
    use protocol::units::Pages;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn settings_are_read_and_those_of_a_disk_become_one() {
        let text = "io.limit=9 io.burst=2 disk0.io.limit=200 balloon=64M disk1.io.shares=5 disk0.io.limit_bytes=20M memory.tax=750 balloon=auto";
        let of_disk0 =
            IoChange { limit: Some(200), limit_bytes: Some(20 << 20), ..IoChange::default() };
        let of_disk1 = IoChange { shares: Some(5), ..IoChange::default() };
        let of_all = IoChange { limit: Some(9), burst: Some(2), ..IoChange::default() };
        let expected = [
            Setting::VmIo(of_all),
            Setting::Io { disk: 0, change: of_disk0 },
            Setting::Balloon(Some(Pages(64 << 8))),
            Setting::Io { disk: 1, change: of_disk1 },
            Setting::MemoryTax(750),
            Setting::Balloon(None),
        ];
        assert_eq!(settings_of(&words(text)).unwrap(), expected);
        let text = "io.reservation=3 memory.shares=500 io.burst=9 memory.reservation=64M";
        let io = IoChange { reservation: Some(3), burst: Some(9), ..IoChange::default() };
        let memory = GroupMemoryChange { reservation: Some(Pages(64 << 8)), shares: Some(500) };
        assert_eq!(group_changes(&words(text)).unwrap(), (io, memory));
        let machine = memory_changes(&words("tax=500 scan_pages_per_second_vm=7")).unwrap();
        let expected = MemoryChange {
            tax: Some(500),
            scan_pages_per_second_vm: Some(7),
            ..MemoryChange::default()
        };
        assert_eq!(machine, expected);
    }

    #[test]
    fn what_is_no_setting_is_named() {
        for wrong in [
            "balloon",
            "balloon=",
            "balloon=64.5M",
            "balloon=-1",
            "memory.tax=x",
            "memory.size=1M",
            "memory.limit=1000",
            "disk.io.limit=1",
            "disk0.limit=1",
            "disk0.io.burst=70000",
            "memory.shares=99999999999",
            "colour=red",
            "disk0.io.limit",
            "disk0.io.limit=-1",
            "diskx.io.limit=1",
            "disk300.io.limit=1",
            "disk0.io.colour=1",
            "disk0.",
            "=",
            "",
        ] {
            let error = settings_of(&[wrong.to_owned()]).expect_err(wrong).to_string();
            assert!(error.contains(&format!("'{wrong}' is no")), "{wrong}: {error}");
        }
        for text in ["limit=1", "memory.limit=64M", "memory.shares=many", "memory.reservation=x"] {
            let Err(error) = group_changes(&words(text)) else { panic!("{text} is of a group") };
            assert!(error.to_string().contains(text), "{error}");
        }
        for text in ["tax", "tax=-1", "memory.tax=5", "scan_pages_per_second=fast"] {
            let Err(error) = memory_changes(&words(text)) else { panic!("{text} is a setting") };
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
