//! Models in llama.cpp's GGUF format.

mod ggml_type;

pub use ggml_type::GgmlType;
