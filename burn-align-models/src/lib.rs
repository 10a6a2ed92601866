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
mod layout;
mod model;
mod pass;
mod site;
mod suffixes;
mod tables;
mod tap;
mod tokens;
mod top_tokens;
mod uploads;

#[doc(hidden)]
pub mod files;
pub mod nn;
pub mod pretrained;
pub mod quants;

pub use decoder::{Decoder, DecoderConfig, DecoderFamily};
pub use dims::{ModelDims, SiteDims, SiteWidth};
pub use layout::{
    LayerLayout, Mixing, ModelLayout, Place, Positions, Reads, Sublayer, SublayerKind,
    SublayerOutput,
};
pub use model::{AlignableTransformer, ByHead, InputKinds, ModelInput, Readout};
pub use pass::{Cx, Pass};
pub use pretrained::{FromPretrained, LoadOptions, ModelSource, Pretrained, SavePretrained};
pub use site::{Component, Site, UnknownComponent};
pub use suffixes::{KeysValues, Prefixes, Queries, SuffixClass, Suffixes};
pub use tables::Tables;
pub use tap::{NoTap, Tap};
pub use tokens::{
    Chat, ChatMessage, ChatOptions, ChatTurn, SpecialTokens, TokenBatch, Tokenizer, TokenizerFiles,
    TokensError,
};
pub use top_tokens::{TopToken, top_tokens};
