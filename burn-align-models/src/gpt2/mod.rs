//! GPT-2 (Radford et al., 2019), in the layout of Hugging Face's `GPT2LMHeadModel`.

mod attention;
mod block;
mod config;
mod hugging_face;
mod mlp;
mod model;

pub use attention::Gpt2Attention;
pub use block::Gpt2Block;
pub use config::Gpt2Config;
pub use mlp::Gpt2Mlp;
pub use model::Gpt2;
