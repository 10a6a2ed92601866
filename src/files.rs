//! Results in files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burn_align::models::files::Replacement;

/// Writes a file, replacing an older one only once it is complete: a full disk or a killed program
/// leaves the older one unchanged.
///
/// # Errors
/// If it cannot be written.
pub fn write(file: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let written = || -> Result<()> {
        // Something like /dev/stdout is written to, not replaced.
        if fs::symlink_metadata(file).is_ok_and(|it| !it.is_file()) {
            return fs::write(file, &bytes).context("cannot be written");
        }
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.context("expected a file name in Unicode")?;
        let folder = match file.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // A missing folder may be a typo, so it is not created.
        fs::metadata(folder).context("cannot be written")?;
        let mut files = Replacement::new(folder).map_err(|error| error.cause)?;
        files
            .write(name, bytes.as_ref())
            .and_then(|()| files.finish())
            .map_err(|error| error.cause)
            .context("cannot be written")
    };
    written().with_context(|| file.display().to_string())
}
