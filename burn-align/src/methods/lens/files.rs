//! A tuned lens in a folder.

use std::fs;
use std::io;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::Site;
use burn_align_models::files::{Replacement, cut_off};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::{LoadLensError, SaveLensError, Translator, TunedLens};
use crate::engine::read_numbers;
use crate::methods::saved_site::SavedSite;

const DESCRIPTION: &str = "tuned_lens.json";
const TENSORS: &str = "tuned_lens.safetensors";
/// The version of the format.
const FORMAT: u32 = 1;

/// A lens without its translators.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format: u32,
    d_model: usize,
    sites: Vec<SavedSite>,
}

/// Names of a translator's tensors.
fn names(index: usize) -> [String; 2] {
    [format!("{index}.weight"), format!("{index}.bias")]
}

impl<B: Backend> TunedLens<B> {
    /// Writes `tuned_lens.json` and `tuned_lens.safetensors` into a folder, which is created if it
    /// does not exist. An existing lens is replaced once everything is written, and left unchanged
    /// if writing fails.
    ///
    /// # Errors
    /// If the lens would not read back, because it is empty or has a number that is not finite, or
    /// if the files cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), SaveLensError> {
        let bad = |reason| SaveLensError::Lens { reason };
        if self.translators.is_empty() || self.translators.len() != self.sites().len() {
            return Err(bad(format!(
                "expected a translator for each of {} sites, at least one, found {}",
                self.sites().len(),
                self.translators.len()
            )));
        }
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (index, translator) in self.translators.iter().enumerate() {
            let [weight, bias] = names(index);
            tensors.push(stored(weight, translator.weight.val()).map_err(bad)?);
            tensors.push(stored(bias, translator.bias.val()).map_err(bad)?);
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            view.map(|view| (name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>();
        let views = views.map_err(|error| bad(error.to_string()))?;
        let tensors = serialize(views, None).map_err(|error| bad(error.to_string()))?;
        let description = Description {
            format: FORMAT,
            d_model: self.d_model(),
            sites: self.sites().iter().map(|site| (*site).into()).collect(),
        };
        let json = serde_json::to_string_pretty(&description);
        let json = json.map_err(|error| bad(error.to_string()))?;
        let mut files = Replacement::new(folder.as_ref())?;
        files.write(TENSORS, &tensors)?;
        files.write(DESCRIPTION, format!("{json}\n").as_bytes())?;
        Ok(files.finish()?)
    }

    /// Reads a folder written by [`save`](Self::save).
    ///
    /// # Errors
    /// If the folder has no tuned lens, or a file of it is damaged.
    pub fn load(folder: impl AsRef<Path>, device: &B::Device) -> Result<Self, LoadLensError> {
        let folder = folder.as_ref();
        let file = folder.join(DESCRIPTION);
        let json = match fs::read(&file) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = folder.to_owned();
                return Err(match cut_off(&folder, DESCRIPTION) {
                    true => LoadLensError::CutOff { folder },
                    false => LoadLensError::NoLens { folder },
                });
            }
            Err(cause) => return Err(LoadLensError::Io { file, cause }),
        };
        let bad = |reason| LoadLensError::File {
            file: file.clone(),
            reason,
        };
        let description: Description = serde_json::from_slice(&json)
            .map_err(|error| bad(format!("expected the description of a tuned lens: {error}")))?;
        if description.format != FORMAT {
            return Err(bad(format!(
                "format: expected {FORMAT}, found {}; it was written by another version of this \
                 crate",
                description.format
            )));
        }
        let sites = description.sites.iter().map(SavedSite::site);
        let sites = sites.collect::<Result<Vec<Site>, _>>();
        let sites = sites.map_err(|error| bad(format!("site: {error}")))?;
        if let Some(index) = (1..sites.len()).find(|index| sites[..*index].contains(&sites[*index]))
        {
            let repeated = sites[index];
            return Err(bad(format!(
                "expected each site once, found {repeated} twice"
            )));
        }
        let translators = read(&folder.join(TENSORS), &sites, description.d_model, device)?;
        Ok(Self::new(translators, sites))
    }
}

/// A tensor as it is written: its name, its shape and its bytes.
fn stored<B: Backend, const D: usize>(
    name: String,
    tensor: Tensor<B, D>,
) -> Result<(String, Vec<usize>, Vec<u8>), String> {
    let shape = tensor.dims().to_vec();
    let numbers = read_numbers(tensor.cast(DType::F32));
    let numbers = numbers.map_err(|error| format!("tensor `{name}`: {error}"))?;
    let values: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(format!(
            "tensor `{name}`: expected finite numbers, found {value}"
        ));
    }
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    Ok((name, shape, bytes.collect()))
}

/// The translators of a file.
fn read<B: Backend>(
    file: &Path,
    sites: &[Site],
    d_model: usize,
    device: &B::Device,
) -> Result<Vec<Translator<B>>, LoadLensError> {
    let bad = |reason| LoadLensError::File {
        file: file.to_owned(),
        reason,
    };
    let bytes = fs::read(file).map_err(|cause| LoadLensError::Io {
        file: file.to_owned(),
        cause,
    })?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| bad(format!("expected safetensors: {error}")))?;
    if tensors.len() != 2 * sites.len() {
        return Err(bad(format!(
            "expected two tensors for each of {} sites, found {}",
            sites.len(),
            tensors.len()
        )));
    }
    let values = |name: &str, shape: &[usize]| -> Result<Vec<f32>, LoadLensError> {
        let tensor = tensors.tensor(name);
        let tensor = tensor.map_err(|error| bad(format!("tensor `{name}`: {error}")))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            return Err(bad(format!(
                "tensor `{name}`: expected f32 of shape {shape:?}, found {} of shape {:?}",
                tensor.dtype(),
                tensor.shape()
            )));
        }
        let (values, _) = tensor.data().as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(bad(format!(
                "tensor `{name}`: expected finite numbers, found {value}"
            ))),
            None => Ok(values),
        }
    };
    let options = (device, DType::F32);
    let translators = (0..sites.len()).map(|index| {
        let [weight, bias] = names(index);
        let shape = [d_model, d_model];
        let weight = TensorData::new(values(&weight, &shape)?, shape);
        let bias = TensorData::new(values(&bias, &[d_model])?, [d_model]);
        Ok(Translator {
            weight: Param::from_tensor(Tensor::from_data(weight, options)),
            bias: Param::from_tensor(Tensor::from_data(bias, options)),
        })
    });
    translators.collect()
}
