//! Weights in the block formats of GGUF files, and their conversion to f32: the crate
//! `burn-align-quants`.

#[doc(inline)]
pub use burn_align_quants::{BlockFormat, QuantizedMatrix, QuantizedMatrixError, dequantize};
