//! Real models, from the folder that `BURN_ALIGN_REAL` names; without it these tests are skipped.

mod quantized;
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
