//! A tuned lens in a folder.

use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::Site;
use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{Translator, TunedLens};
use crate::engine::read_floats;
use crate::methods::saved_result::{LoadResultError, NamedTensor, ResultFiles, SaveResultError};
use crate::methods::saved_site::SavedSite;
use crate::methods::saved_tensor::finite_f32;

const FILES: ResultFiles = ResultFiles {
    what: "tuned lens",
    writer: "TunedLens::save",
    description: "tuned_lens.json",
    tensors: "tuned_lens.safetensors",
};

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
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), SaveResultError> {
        let bad = |reason| FILES.not_readable(reason);
        if self.translators.is_empty() || self.translators.len() != self.sites().len() {
            return Err(bad(format!(
                "expected a translator for each of {} sites, at least one, found {}",
                self.sites().len(),
                self.translators.len()
            )));
        }
        let mut tensors: Vec<NamedTensor> = Vec::new();
        for (index, translator) in self.translators.iter().enumerate() {
            let [weight, bias] = names(index);
            tensors.push(stored(weight, translator.weight.val()).map_err(bad)?);
            tensors.push(stored(bias, translator.bias.val()).map_err(bad)?);
        }
        let description = Description {
            format: FORMAT,
            d_model: self.d_model(),
            sites: self.sites().iter().map(|site| (*site).into()).collect(),
        };
        let json = serde_json::to_string_pretty(&description);
        let json = json.map_err(|error| bad(error.to_string()))?;
        FILES.save(folder.as_ref(), &json, &tensors)
    }

    /// Reads a folder written by [`save`](Self::save).
    ///
    /// # Errors
    /// If the folder has no tuned lens, or a file of it is damaged.
    pub fn load(folder: impl AsRef<Path>, device: &B::Device) -> Result<Self, LoadResultError> {
        let folder = folder.as_ref();
        let bad = |reason| FILES.wrong_description(folder, reason);
        let description: Description = FILES.description(folder)?;
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
        let d_model = description.d_model;
        let read = |tensors: &SafeTensors<'_>| read(tensors, sites.len(), d_model, device);
        let translators = FILES.tensors(folder, read)?;
        Ok(Self::new(translators, sites))
    }
}

/// A tensor as it is written.
fn stored<B: Backend, const D: usize>(
    name: String,
    tensor: Tensor<B, D>,
) -> Result<NamedTensor, String> {
    let shape = tensor.dims().to_vec();
    let values = read_floats(tensor).map_err(|error| format!("tensor `{name}`: {error}"))?;
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(format!(
            "tensor `{name}`: expected finite numbers, found {value}"
        )),
        None => Ok((name, shape, values)),
    }
}

/// The translators of a file.
fn read<B: Backend>(
    tensors: &SafeTensors<'_>,
    sites: usize,
    d_model: usize,
    device: &B::Device,
) -> Result<Vec<Translator<B>>, String> {
    if tensors.len() != 2 * sites {
        return Err(format!(
            "expected two tensors for each of {sites} sites, found {}",
            tensors.len()
        ));
    }
    let values = |name: &str, shape: &[usize]| -> Result<Vec<f32>, String> {
        let tensor = tensors.tensor(name);
        let tensor = tensor.map_err(|error| format!("tensor `{name}`: {error}"))?;
        finite_f32(name, &tensor, shape)
    };
    let options = (device, DType::F32);
    let translators = (0..sites).map(|index| {
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
