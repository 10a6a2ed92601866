//! Decoder-only language models for Burn, with a tap at every named activation.
//!
//! # Axes
//! One glossary for all shapes in this crate and in `burn-align`:
//!
//! | axis | meaning |
//! | --- | --- |
//! | `batch` | examples |
//! | `pos` | token positions; `q_pos` and `k_pos` where queries meet keys |
//! | `head`, `kv_head` | query heads; key-value heads |
//! | `d_model` | residual stream |
//! | `d_head` | one head |
//! | `d_mlp` | hidden layer of the MLP |
//! | `vocab` | tokens |

pub mod decoder;
mod dims;
mod halves;
mod model;
mod site;
mod suffixes;
mod tap;
mod tokens;
mod top_tokens;

#[doc(hidden)]
pub mod files;
pub mod nn;
pub mod pretrained;
pub mod quants;

pub use decoder::{Decoder, DecoderConfig, DecoderFamily};
pub use dims::{ModelDims, SiteDims, SiteWidth};
pub use halves::BlockHalves;
pub use model::{AlignableTransformer, InputKinds, ModelInput};
pub use pretrained::{FromPretrained, LoadOptions, ModelSource, Pretrained, SavePretrained};
pub use site::{Component, Site, UnknownComponent};
pub use suffixes::{KeysValues, Prefixes, Queries, RunsSuffixes, SuffixClass, Suffixes};
pub use tap::{NoTap, Tap};
pub use tokens::{
    Chat, ChatMessage, ChatOptions, ChatTurn, SpecialTokens, TokenBatch, Tokenizer, TokenizerFiles,
    TokensError,
};
pub use top_tokens::{TopToken, top_tokens};
