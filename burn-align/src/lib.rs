//! Causal interventions on the internals of language models.
//!
//! *Which internal activation of this model carries this variable?* Swap it in from another input,
//! and see whether the prediction follows:
//!
//! ```
//! use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
//! use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions};
//! # type B = burn::backend::Flex;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let gpt2 = Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
//! let tokenizer = gpt2.tokenizer()?.clone();
//!
//! // The residual stream after layer 2, at one position.
//! let config = AlignableConfig::new([
//!     AlignableRepresentationConfig::new(2, Component::BlockOutput),
//! ]);
//! let alignable = AlignableModel::new(config, gpt2.model)?;
//!
//! let base = tokenizer.encode_batch(["The capital of Spain is"])?;
//! let source = tokenizer.encode_batch(["The capital of Italy is"])?;
//! let output = alignable.forward(&base, &[source], 4)?;
//!
//! let next = tokenizer.top_tokens(output.counterfactual_last(), 3);
//! assert_eq!(next[0][0].text, "Rome");
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//! - [`methods`]: sweeps, ablations, causal tracing, path patching, causal scrubbing;
//! - [`paths`]: the residual graph, and streams in which some paths carry another input;
//! - [`training`]: training interventions and evaluating them;
//! - [`causal_models`]: hypotheses about what a model computes, and their counterfactuals;
//! - [`dictionaries`]: published sparse autoencoders and transcoders;
//! - [`generate`]: how the next token is chosen;
//! - [`diagram`]: paths, hypotheses and causal models as pictures;
//! - [`front`]: the vocabulary of align-transformers: [`AlignableConfig`](front::AlignableConfig),
//!   [`AlignableModel`](front::AlignableModel), unit locations;
//! - [`saved`]: trained interventions in a folder, also in pyvene's format;
//! - [`self_check`]: does this backend compute what it should, on this device?
//! - [`interventions`]: what is done to an activation;
//! - [`engine`]: plans of worlds, and how they run in one pass;
//! - [`models`]: decoder-only language models, with a tap at every named activation.
//!
//! The [`guide`] explains all of this chapter by chapter. Axis names are those of
//! [`burn_align_models`].

pub mod causal_models;
pub mod diagram;
pub mod dictionaries;
pub mod engine;
pub mod front;
pub mod generate;
pub mod interventions;
pub mod methods;
pub mod paths;
pub mod saved;
pub mod self_check;
pub mod training;

pub mod guide;

pub use burn_align_models as models;
