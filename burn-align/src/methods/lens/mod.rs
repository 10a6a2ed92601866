//! Lenses: what the residual stream in the middle of a model says about the next token.
//!
//! | function | reads |
//! | --- | --- |
//! | [`logit_lens`] | the stream at any site, as if it were the last one |
//! | [`tuned_lens`] | the same, after a translator that [`train_tuned_lens`] has fitted |
//! | [`direct_logits`] | what each head, MLP and bias adds to the stream, as its part of a logit |
//! | [`head_sources`] | what a head takes from each position, as its part of a logit |
//! | [`attention_patterns`] | how much a head attends from each position to each other one |
//!
//! # When they mislead
//! A lens shows what is linearly present in the stream, not what the model will do with it: a layer
//! may write a token that later layers erase. Early layers of many models use other directions than
//! the last one, so the logit lens shows noise there (Belrose et al. 2023, arXiv 2303.08112); a
//! tuned lens is biased the other way, since it is trained to predict the final answer. Parts of a
//! logit are direct effects: that a head writes a token says nothing about heads that made it do
//! so. And a head that attends to a token need not pass anything on of it.

mod attention;
mod direct;
mod error;
mod files;
mod logit;
mod train;
mod tuned;

pub use attention::{AttentionPattern, attention_patterns};
pub use direct::{
    DirectLogits, HeadSources, LogitPart, LogitRow, LogitTarget, direct_logits, head_sources,
};
pub use error::LensError;
pub use logit::{lens_logits, logit_lens, stream_sites};
pub use train::{TunedLensConfig, lens_divergences, train_tuned_lens};
pub use tuned::{Translator, TunedLens, tuned_lens};
