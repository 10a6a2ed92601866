//! The parts that the model families share.

mod activation;
mod attention;
mod embedding;
#[cfg(feature = "flex")]
mod flex;
mod init;
mod last_pass;
mod masks;
mod norm;
mod projection;
mod rotary;
mod weight;

pub use activation::{Activation, UnknownActivation};
pub use attention::{CausalPass, Heads};
pub use embedding::TokenEmbedding;
pub use masks::CausalMasks;
pub use norm::{Norm, NormKind};
pub use projection::Projection;
pub use rotary::{LongRope, Rotary, RotaryConfig, RotaryScaling, Yarn};
pub use weight::{Weight, WeightShapeError, keeps_quantized};

pub(crate) use attention::{Attend, attend, head_part, merge_heads, soft_cap, split_heads};
pub(crate) use init::ParamInit;
pub(crate) use last_pass::{LastPass, PassKey};
pub(crate) use masks::mask_bytes;
pub(crate) use projection::unembed;
