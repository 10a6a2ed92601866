//! Small checkpoints in `tests/fixtures`, with the results of `transformers`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::TensorData;
use safetensors::{Dtype, SafeTensors};

/// The folder of the fixtures, in the checkout that this program was built from.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Every checkpoint among the fixtures, by name.
///
/// # Errors
/// If the folder cannot be read, for example because the checkout is gone.
pub fn checkpoints() -> Result<BTreeMap<String, PathBuf>> {
    let folder = fixtures().join("checkpoints");
    let entries = folder
        .read_dir()
        .with_context(|| folder.display().to_string())?;
    entries
        .map(|entry| {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| anyhow!("{}: not a valid name", path.display()))?;
            Ok((name.to_owned(), path))
        })
        .collect()
}

/// The wanted tensors of a safetensors file, floats as f32 and integers as i64.
///
/// # Errors
/// If it cannot be read, is not a safetensors file, or contains dtypes other than f32 and i64.
pub fn read_tensors(
    file: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, TensorData>> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| file.display().to_string())?;
    tensors
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, view)| {
            let shape = view.shape().to_vec();
            let data = match view.dtype() {
                Dtype::F32 => {
                    let (values, _) = view.data().as_chunks::<4>();
                    let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
                    TensorData::new(values, shape)
                }
                Dtype::I64 => {
                    let (values, _) = view.data().as_chunks::<8>();
                    let values: Vec<i64> = values.iter().map(|b| i64::from_le_bytes(*b)).collect();
                    TensorData::new(values, shape)
                }
                dtype => bail!("{}: {name} is {dtype:?}", file.display()),
            };
            Ok((name.to_owned(), data))
        })
        .collect()
}
