//! Decoder-only language models: one implementation with knobs, [`Decoder`], and a mapping for each
//! family that says how Hugging Face and llama.cpp store it.

mod block;
mod check;
mod config;
mod families;
mod mlp;
mod model;
mod presets;
mod storage;

pub use block::Block;
pub use check::DecoderConfigError;
pub use config::{Biases, DecoderConfig, Positions, Residual, SlidingWindow};
pub use families::DecoderFamily;
pub use mlp::Mlp;
pub use model::Decoder;

pub use crate::nn::{QkNorm, QkvLayout};
