//! Replacing a set of files all at once, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Suffix of a file's name while it is being written.
const PART: &str = ".part";
/// Suffix of the last file's older version while the new files are moved into place.
const OLD: &str = ".old";

/// A file that could not be written.
#[derive(Debug)]
pub struct WriteError {
    /// The file.
    pub file: PathBuf,
    /// The cause.
    pub cause: io::Error,
}

/// New files of a folder, kept next to the older ones until all of them are written.
///
/// A reader opens the last file first. That file is set aside before the others are replaced, so
/// that whenever the program is killed, the folder holds either all older files, or all new ones,
/// or no last file; in the last case [`cut_off`] is true and the new files are complete. A failed
/// write leaves no trace.
#[derive(Debug)]
pub struct Replacement {
    folder: PathBuf,
    names: Vec<String>,
}

impl Replacement {
    /// No files yet. The folder is created if it does not exist.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn new(folder: &Path) -> Result<Self, WriteError> {
        fs::create_dir_all(folder).map_err(failed(folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            names: Vec::new(),
        })
    }

    /// Writes a new file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let part = self.part(name);
        let written = File::create(&part).and_then(|mut file| file.write_all(bytes));
        written.map_err(failed(&self.folder.join(name)))
    }

    /// The path where other code should write a new file.
    pub fn part(&mut self, name: &str) -> PathBuf {
        self.names.push(name.to_owned());
        self.folder.join(format!("{name}{PART}"))
    }

    /// Moves all files into place.
    ///
    /// # Errors
    /// If that fails; the older files are then left as they were.
    pub fn finish(mut self) -> Result<(), WriteError> {
        let Some((last, others)) = self.names.split_last() else {
            return Ok(());
        };
        let place = |name: &str| self.folder.join(name);
        let part = |name: &str| self.folder.join(format!("{name}{PART}"));
        for name in &self.names {
            // So that the data survive a power failure.
            let file = OpenOptions::new().write(true).open(part(name));
            file.and_then(|file| file.sync_all())
                .map_err(failed(&place(name)))?;
        }
        let old = self.folder.join(format!("{last}{OLD}"));
        let is_set_aside = !others.is_empty() && place(last).is_file();
        if is_set_aside {
            fs::rename(place(last), &old).map_err(failed(&place(last)))?;
        }
        for name in &self.names {
            if let Err(source) = fs::rename(part(name), place(name)) {
                if is_set_aside {
                    // The first error is the one to report.
                    let _ = fs::rename(&old, place(last));
                }
                return Err(failed(&place(name))(source));
            }
        }
        if is_set_aside {
            fs::remove_file(&old).map_err(failed(&old))?;
        }
        self.names.clear();
        // Renaming changes the folder itself. Not every system can open a folder.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        for name in &self.names {
            // It may not exist.
            let _ = fs::remove_file(self.folder.join(format!("{name}{PART}")));
        }
    }
}

/// Whether a file is missing because the program was killed while replacing it.
pub fn cut_off(folder: &Path, last: &str) -> bool {
    !folder.join(last).exists() && folder.join(format!("{last}{PART}")).exists()
}

fn failed(file: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let file = file.to_owned();
    move |cause| WriteError { file, cause }
}
