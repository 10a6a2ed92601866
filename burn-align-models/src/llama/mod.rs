//! LLaMA 1, 2 and 3 (arXiv 2302.13971), and models whose blocks differ from it only in biases and a
//! sliding window: Mistral (arXiv 2310.06825) and Qwen2 (arXiv 2407.10671).

mod attention;
mod block;
mod check;
mod config;
mod hugging_face;
mod mlp;
mod model;

pub use attention::LlamaAttention;
pub use block::LlamaBlock;
pub use check::LlamaConfigError;
pub use config::{LlamaConfig, SlidingWindow};
pub use mlp::LlamaMlp;
pub use model::Llama;
