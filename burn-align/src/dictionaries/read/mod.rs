//! Reading the files of a dictionary. The files that are there tell the format.

mod circuit_tracer;
mod dictionary_learning;
mod gemma_scope;
mod llama_scope;
mod sae_lens;
mod sparsify;
mod state_dict;

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn_align_models::files::cut_off;

pub(super) use circuit_tracer::load_layer;

use super::config::Config;
use super::weights::{Array, Weights};
use super::{
    Dictionary, DictionaryError, DictionaryFormat, DictionaryInfo, DictionaryOptions,
    FeatureActivation, PublishedDictionary,
};

pub(super) const SAE_LENS_CONFIG: &str = "cfg.json";
pub(super) const SAE_LENS_WEIGHTS: &str = "sae_weights.safetensors";
pub(super) const SPARSIFY_WEIGHTS: &str = "sae.safetensors";
pub(super) const GEMMA_SCOPE_WEIGHTS: &str = "params.npz";
pub(super) const GEMMA_SCOPE_2_WEIGHTS: &str = "params.safetensors";
pub(super) const LLAMA_SCOPE_CONFIG: &str = "hyperparams.json";
pub(super) const LLAMA_SCOPE_WEIGHTS: &str = "checkpoints/final.safetensors";
pub(super) const TORCH_WEIGHTS: &str = "ae.pt";
pub(super) const CONFIG: &str = "config.json";
pub(super) const YAML_CONFIG: &str = "config.yaml";

const EXPECTED_FILES: &str = "cfg.json with sae_weights.safetensors (SAELens) or sae.safetensors \
     (sparsify), params.npz (Gemma Scope), params.safetensors (Gemma Scope 2), hyperparams.json \
     with checkpoints/final.safetensors (Llama Scope), or config.json with ae.pt \
     (dictionary_learning)";

/// What a reader is given.
pub(super) struct Source<'a, B: Backend> {
    /// The folder with the files.
    pub(super) folder: &'a Path,
    pub(super) options: &'a DictionaryOptions,
    pub(super) device: &'a B::Device,
}

impl<B: Backend> Source<'_, B> {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folders above, by name, the innermost last. They say what some publishers write nowhere
    /// else.
    fn path(&self) -> Vec<String> {
        // A relative path may leave out what matters.
        let absolute = std::path::absolute(self.folder);
        let path = absolute.unwrap_or_else(|_| self.folder.to_owned());
        let parts = path.components();
        parts
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect()
    }
}

/// Reads a folder, or a file that is a dictionary by itself.
pub(super) fn load<B: Backend>(
    path: &Path,
    options: &DictionaryOptions,
    device: &B::Device,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let name = path.file_name().map(|name| name.to_string_lossy());
    let is_whole = name.is_some_and(|name| {
        let weights = [
            SAE_LENS_WEIGHTS,
            SPARSIFY_WEIGHTS,
            GEMMA_SCOPE_WEIGHTS,
            GEMMA_SCOPE_2_WEIGHTS,
            TORCH_WEIGHTS,
        ];
        weights.contains(&&*name)
    });
    if path.is_file() && !is_whole {
        return load_file(path, options, device);
    }
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    if !path.exists() {
        return Err(DictionaryError::NoSuchSource {
            source_text: path.display().to_string(),
        });
    }
    let source = Source::<B> {
        folder,
        options,
        device,
    };
    let has = |name: &str| folder.join(name).is_file();
    let loaded = if has(SAE_LENS_CONFIG) && has(SPARSIFY_WEIGHTS) {
        sparsify::load(&source)
    } else if has(SAE_LENS_CONFIG) {
        sae_lens::load(&source)
    } else if has(GEMMA_SCOPE_WEIGHTS) {
        gemma_scope::load(&source)
    } else if has(GEMMA_SCOPE_2_WEIGHTS) {
        gemma_scope::load_second(&source)
    } else if has(LLAMA_SCOPE_CONFIG) {
        llama_scope::load(&source)
    } else if has(CONFIG) && has(SAE_LENS_WEIGHTS) {
        llama_scope::load_distilled(&source)
    } else if has(TORCH_WEIGHTS) {
        dictionary_learning::load(&source)
    } else if cut_off(folder, SAE_LENS_CONFIG) {
        Err(DictionaryError::CutOff {
            folder: folder.to_owned(),
        })
    } else {
        Err(DictionaryError::UnknownFormat {
            folder: folder.to_owned(),
            expected: EXPECTED_FILES,
            found: names(folder),
        })
    };
    loaded.map(frozen)
}

fn load_file<B: Backend>(
    file: &Path,
    options: &DictionaryOptions,
    device: &B::Device,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let source = Source::<B> {
        folder: file.parent().unwrap_or(file),
        options,
        device,
    };
    let weights = Weights::read(file)?;
    let loaded = match file.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => circuit_tracer::load(&source, weights),
        _ => state_dict::load(&source, weights),
    };
    loaded.map(frozen)
}

/// Without gradients of the weights: Burn's autodiff keeps everything that depends on a tracked
/// weight until a backward pass.
fn frozen<B: Backend>(loaded: PublishedDictionary<B>) -> PublishedDictionary<B> {
    PublishedDictionary {
        dictionary: loaded.dictionary.no_grad(),
        info: loaded.info,
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The weights of a dictionary on the host, in this crate's layout.
struct Parts {
    /// `[d_in, feature]`
    encoder: Array<2>,
    /// `[feature]`
    encoder_bias: Array<1>,
    /// `[feature, d_out]`
    decoder: Array<2>,
    /// `[d_out]`
    decoder_bias: Array<1>,
}

impl Parts {
    /// Takes the tensors under their usual names, `W_enc`, `b_enc`, `W_dec` and `b_dec`. The first
    /// two are stored as `[d_in, feature]` and `[feature, d_out]`.
    fn take(
        weights: &mut Weights,
        [d_in, features, d_out]: [Option<usize>; 3],
    ) -> Result<Self, DictionaryError> {
        let encoder = weights.take("W_enc", [d_in, features])?;
        let [_d_in, features] = encoder.shape;
        let decoder = weights.take("W_dec", [Some(features), d_out])?;
        let [_features, d_out] = decoder.shape;
        Ok(Self {
            encoder,
            encoder_bias: weights.take("b_enc", [Some(features)])?,
            decoder,
            decoder_bias: weights.take("b_dec", [Some(d_out)])?,
        })
    }

    /// Takes the tensors of two linear layers of PyTorch, stored as `[feature, d_in]` and
    /// `[d_out, feature]`, with biases of these names.
    fn of_linear(
        weights: &mut Weights,
        [encoder, encoder_bias, decoder, decoder_bias]: [&str; 4],
        [d_in, features, d_out]: [Option<usize>; 3],
    ) -> Result<Self, DictionaryError> {
        let encoder = weights.take(encoder, [features, d_in])?.transposed();
        let [_d_in, features] = encoder.shape;
        let decoder = weights.take(decoder, [d_out, Some(features)])?.transposed();
        let [_features, d_out] = decoder.shape;
        Ok(Self {
            encoder,
            encoder_bias: weights.take(encoder_bias, [Some(features)])?,
            decoder,
            decoder_bias: weights.take(decoder_bias, [Some(d_out)])?,
        })
    }

    fn features(&self) -> usize {
        let [_d_in, features] = self.encoder.shape;
        features
    }

    fn dictionary<B: Backend>(
        self,
        activation: FeatureActivation<B>,
        device: &B::Device,
    ) -> Result<Dictionary<B>, DictionaryError> {
        let encoder = (
            self.encoder.tensor(device),
            self.encoder_bias.tensor(device),
        );
        let decoder = (
            self.decoder.tensor(device),
            self.decoder_bias.tensor(device),
        );
        Dictionary::new(encoder, activation, decoder)
    }
}

/// The JumpReLU of a tensor of thresholds, one for each feature or one for all.
fn jump_relu<B: Backend>(
    weights: &mut Weights,
    tensor: &str,
    features: usize,
    device: &B::Device,
) -> Result<FeatureActivation<B>, DictionaryError> {
    let threshold = weights.per_feature(tensor, features)?;
    Ok(FeatureActivation::jump_relu(threshold.tensor(device)))
}

/// A factor that some old dictionaries have: 1, or not supported.
fn ignore_scaling_factor(weights: &mut Weights) -> Result<(), DictionaryError> {
    const FACTOR: &str = "scaling_factor";
    if !weights.has(FACTOR) {
        return Ok(());
    }
    let file = weights.file.clone();
    let factor = weights.take(FACTOR, [None])?;
    match factor
        .values
        .iter()
        .find(|value| (**value - 1.0).abs() > 1e-5)
    {
        None => Ok(()),
        Some(found) => Err(DictionaryError::UnsupportedTensor {
            file,
            tensor: FACTOR.to_owned(),
            reason: format!("expected only 1, which changes nothing, found {found}"),
        }),
    }
}

/// What was found out so far, of this format.
fn info(format: DictionaryFormat) -> DictionaryInfo {
    DictionaryInfo {
        format: Some(format),
        ..DictionaryInfo::default()
    }
}

/// The number after a word, such as the layer in `layer_12`.
fn number_after(text: &str, word: &str) -> Option<usize> {
    let (_, rest) = text.split_once(word)?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    rest[..end.unwrap_or(rest.len())].parse().ok()
}
