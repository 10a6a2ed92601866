//! Files that take the place of older ones, together or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What the name of a file ends with while it is written.
const PART: &str = ".part";
/// What the name of the last file's older version ends with while others take their places.
const OLD: &str = ".old";

/// A file that could not be written.
#[derive(Debug)]
pub struct WriteError {
    /// The file.
    pub file: PathBuf,
    /// The cause.
    pub cause: io::Error,
}

/// New files of a folder, which stand beside the older ones until all of them are written.
///
/// A reader opens the last file first. It is set aside before the others take their places, so that
/// wherever a program is killed, there are all older files, or all new ones, or no last file, and
/// then [`cut_off`] is true and the new files are whole. What cannot be written leaves no trace.
#[derive(Debug)]
pub struct Replacement {
    folder: PathBuf,
    names: Vec<String>,
}

impl Replacement {
    /// None yet, in a folder that is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
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

    /// Where somebody else is to write a new file.
    pub fn part(&mut self, name: &str) -> PathBuf {
        self.names.push(name.to_owned());
        self.folder.join(format!("{name}{PART}"))
    }

    /// Puts all files into their places.
    ///
    /// # Errors
    /// If that cannot be done; the older ones are then where they were.
    pub fn finish(mut self) -> Result<(), WriteError> {
        let Some((last, others)) = self.names.split_last() else {
            return Ok(());
        };
        let place = |name: &str| self.folder.join(name);
        let part = |name: &str| self.folder.join(format!("{name}{PART}"));
        for name in &self.names {
            // On the disk also when the machine loses its power now.
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
                    // The first error is the one to tell.
                    let _ = fs::rename(&old, place(last));
                }
                return Err(failed(&place(name))(source));
            }
        }
        if is_set_aside {
            fs::remove_file(&old).map_err(failed(&old))?;
        }
        self.names.clear();
        // New names are changes of the folder. Not every system lets one open it.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        for name in &self.names {
            // There may be none.
            let _ = fs::remove_file(self.folder.join(format!("{name}{PART}")));
        }
    }
}

/// Whether a file is missing because the program was killed while it took its place.
pub fn cut_off(folder: &Path, last: &str) -> bool {
    !folder.join(last).exists() && folder.join(format!("{last}{PART}")).exists()
}

fn failed(file: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let file = file.to_owned();
    move |cause| WriteError { file, cause }
}
