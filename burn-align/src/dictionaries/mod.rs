//! Published sparse dictionaries: autoencoders and transcoders whose features are units like any
//! other.
//!
//! ```
//! use burn::tensor::{Distribution, Tensor};
//! use burn_align::dictionaries::{Dictionary, FeatureActivation};
//! # type B = burn::backend::Flex;
//!
//! # fn main() -> Result<(), burn_align::dictionaries::DictionaryError> {
//! # let device = Default::default();
//! # let random = |shape: [usize; 2]| {
//! #     Tensor::<B, 2>::random(shape, Distribution::Default, &device)
//! # };
//! # let zeros = |count: usize| Tensor::<B, 1>::zeros([count], &device);
//! // A published one: Dictionary::load("google/gemma-scope-2b-pt-res#layer_12/…", …)
//! let dictionary = Dictionary::new(
//!     (random([8, 24]), zeros(24)),
//!     FeatureActivation::top_k(4),
//!     (random([24, 8]), zeros(8)),
//! )?;
//! let x = random([5, 8]);
//! let features = dictionary.encode(x.clone());
//!
//! // Feature 7 is doubled; the reconstruction error stays in the activation.
//! let seven = dictionary.select(&[7])?;
//! let edited = x.clone() + seven.contribution(seven.encode(x.clone()), &x);
//! # assert_eq!((features.dims(), edited.dims()), ([5, 24], [5, 8]));
//! # Ok(())
//! # }
//! ```
//!
//! [`training::dictionary`](crate::training::dictionary) trains one on a model's activations.
//!
//! # Formats
//! [`Dictionary::load`] takes a folder, a file, or a place on the hub (`ID#PATH`), and recognises:
//!
//! | format | files |
//! | --- | --- |
//! | SAELens, all releases | `cfg.json`, `sae_weights.safetensors` |
//! | Gemma Scope | `params.npz` |
//! | Gemma Scope 2 | `params.safetensors`, `config.json` |
//! | Llama Scope | `hyperparams.json`, `checkpoints/final.safetensors` |
//! | dictionary_learning | `config.json`, `ae.pt` |
//! | sparsify | `cfg.json`, `sae.safetensors` |
//! | circuit-tracer | `layer_N.safetensors`, `config.yaml` |
//! | Qwen Scope | `layerN.sae.pt` |
//! | two linear layers (Goodfire and others) | a state dict of PyTorch |
//! | attention output SAEs (Kissane et al. 2024) | a state dict, with a `_cfg.json` beside it |
//!
//! Layers of cross-layer transcoders are a [`CrossLayerTranscoder`] each. What would compute
//! something else here is an error that names it: BatchTopK that is not trained to the end,
//! temporal and matching-pursuit dictionaries, group-max, whitened inputs, a learned factor of each
//! feature.
//!
//! Everything is computed in f32. Stored bf16 and f16 become f32 exactly, and f64 is rounded, as it
//! is when the libraries load it into their modules; SAELens rounds weights to the `dtype` of their
//! configuration, which is not done here. Wherever two libraries differ in what a file means, the
//! one that wrote it is followed.
//!
//! # When it misleads
//! A dictionary reconstructs an activation in part, and the error carries much of the model's
//! behaviour: keep it ([`Dictionary::contribution`]), and report results with and without it. A
//! feature that is active on a text need not be used by the model; intervene to find out.

mod activation;
mod config;
mod cross_layer;
mod dictionary;
mod error;
mod hook;
mod info;
mod input_norm;
mod npz;
mod read;
mod save;
mod selection;
mod source;
mod weights;

pub(crate) use activation::Largest;
pub use activation::{
    FeatureActivation, GatedFeatures, JumpReluFeatures, Ranking, ReluFeatures, TopKFeatures,
};
pub use cross_layer::CrossLayerTranscoder;
pub use dictionary::{Dictionary, DictionaryKind};
pub use error::{DictionaryError, SaveDictionaryError};
pub use hook::HookPoint;
pub use info::{DictionaryFormat, DictionaryInfo};
pub use input_norm::InputNorm;
pub(crate) use selection::indices;
pub use selection::{ActiveFeatures, FeatureSelection};
pub use source::{DictionaryOptions, DictionarySource, PublishedDictionary};
