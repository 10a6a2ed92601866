//! Models in llama.cpp's GGUF format: one file with metadata, vocabulary and weights, most often
//! quantised.
//!
//! ```no_run
//! use burn_align_models::pretrained::gguf::Gguf;
//!
//! let model = Gguf::open("SmolLM2-135M-Instruct.Q4_1.gguf")?;
//! println!("{:?}", model.metadata().text("general.architecture")?);
//! for tensor in model.tensors() {
//!     println!("{} {:?} {}", tensor.name, tensor.shape, tensor.ggml_type);
//! }
//! # Ok::<(), burn_align_models::pretrained::gguf::GgufError>(())
//! ```

mod bytes;
mod cursor;
mod error;
mod file;
mod ggml_type;
mod metadata;
mod part;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use bytes::TensorBytes;
pub use error::GgufError;
pub use file::Gguf;
pub use ggml_type::GgmlType;
pub use metadata::{Metadata, MetadataArray, MetadataValue};
pub use part::GgufTensor;
pub use vocabulary::{TokenizerTexts, vocabulary};
