//! Answering a request.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::backend::AutodiffBackend;
use burn_align::models::Decoder;
use burn_align::models::files::{Replacement, WriteError};
use workbench::circuit_requests::CircuitRequest;

use super::Args;

/// Reads the request, and writes the answer once it is complete.
pub(super) fn serve<A: AutodiffBackend>(
    args: &Args,
    file: &Path,
    output: &Path,
    device: &A::Device,
) -> Result<()> {
    let request = CircuitRequest::parse(&fs::read_to_string(file)?)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let dtype = args.backend.dtype.dtype();
    let source = request.model(folder);
    let model = args
        .model
        .options
        .load::<A, Decoder<A>>(source, dtype, device)?;
    let answer = request.answer(&model, &args.backend.run_options())?;

    let write = || -> Result<(), WriteError> {
        let mut files = Replacement::new(output)?;
        if let Some(curve) = &answer.curve {
            files.write("curve.json", format!("{curve:#}\n").as_bytes())?;
        }
        files.write("circuit.json", answer.circuit.to_json().as_bytes())?;
        files.finish()
    };
    let written = write().map_err(|error| (error.file, error.cause));
    written
        .map_err(|(file, cause)| anyhow::Error::from(cause).context(file.display().to_string()))
        .context("the answer cannot be written")
}
