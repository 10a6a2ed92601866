//! Real models, from the folder that `BURN_ALIGN_REAL` names; without it these tests are skipped.

#[cfg(feature = "flex")]
mod gemma3;
mod quantized;
#[cfg(feature = "flex")]
mod smollm2;
mod tokens;

use std::path::PathBuf;

use workbench::out;

/// A file of the folder with the real models; `None`, and a line that says so, without the folder.
fn real(file: &str) -> Option<PathBuf> {
    match std::env::var_os("BURN_ALIGN_REAL") {
        Some(folder) => Some(PathBuf::from(folder).join(file)),
        None => {
            let _ = out!("skipped: BURN_ALIGN_REAL names no folder with {file}");
            None
        }
    }
}

/// Like [`real`], for a file that `tests/real/fetch.sh` fetches only with `--all`: also `None`
/// where the folder lacks it.
fn real_if_there(file: &str) -> Option<PathBuf> {
    let found = real(file)?;
    if found.exists() {
        return Some(found);
    }
    let _ = out!("skipped: the folder that BURN_ALIGN_REAL names has no {file}");
    None
}
