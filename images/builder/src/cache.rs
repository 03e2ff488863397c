//! Results that are kept between runs, each beside a stamp of what it was made from.

use crate::command::{Error, at};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A folder of results. While it is held no other process changes it.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens, and if need be makes, the cache at `folder`; waits while another process holds it.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the folder cannot be made or locked.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        let path = folder.join("lock");
        let lock = File::create(&path).map_err(at(&path))?;
        lock.lock().map_err(at(&path))?;
        Ok(Self { folder: folder.to_path_buf(), _lock: lock })
    }

    /// The file or folder `name` in the cache.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The result `name`, made by `make` unless it was already made from the same `inputs`.
    ///
    /// `make` writes to a path of its own, which takes the place of `name` when it succeeds: an
    /// interrupted build leaves nothing that looks finished.
    ///
    /// # Errors
    ///
    /// What `make` returns, or [`Error::File`].
    pub fn get(
        &self,
        name: &str,
        inputs: &str,
        make: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let path = self.path(name);
        let stamp = self.path(&format!("{name}.stamp"));
        if path.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == inputs) {
            return Ok(path);
        }
        let fresh = self.path(&format!("{name}.new"));
        remove(&fresh)?;
        remove(&stamp)?;
        make(&fresh)?;
        remove(&path)?;
        fs::rename(&fresh, &path).map_err(at(&path))?;
        fs::write(&stamp, inputs).map_err(at(&stamp))?;
        Ok(path)
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { path: path.to_path_buf(), cause })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;
    use crate::command::Error;
    use std::cell::Cell;
    use std::fs;

    #[test]
    fn a_result_is_made_once_for_the_same_inputs() {
        let folder = std::env::temp_dir().join(format!("ballast-cache-{}", std::process::id()));
        let cache = Cache::open(&folder).unwrap();
        let made = Cell::new(0);
        let get = |inputs: &str| {
            cache.get("x", inputs, |path| {
                made.set(made.get() + 1);
                fs::write(path, inputs).map_err(crate::command::at(path))
            })
        };
        get("one").unwrap();
        get("one").unwrap();
        assert_eq!(made.get(), 1);
        let path = get("two").unwrap();
        assert_eq!((made.get(), fs::read_to_string(path).unwrap().as_str()), (2, "two"));
        let failed = cache.get("x", "three", |path| {
            Err(Error::Input { path: path.to_path_buf(), why: "is a test" })
        });
        assert!(failed.is_err());
        get("two").unwrap();
        assert_eq!(made.get(), 3, "after a failure the result is made again");
        fs::remove_dir_all(folder).unwrap();
    }
}
