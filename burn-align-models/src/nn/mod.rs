//! The parts that models are made of: attention, norms, rotary embeddings, projections, dense or
//! quantised. They run on suffixes of rows and take the fast paths of the backend, also in
//! a model outside of this crate.

mod activation;
mod attention;
mod copies;
mod cross_entropy;
mod divergence;
mod embedding;
#[cfg(feature = "flex")]
mod flex;
mod indexed;
mod init;
mod linearised;
mod masks;
mod memory;
mod norm;
mod parts;
mod projection;
mod residual;
mod rotary;
mod self_attention;
mod unfused;
mod weight;

pub use activation::{Activation, UnknownActivation};
pub use attention::{
    Attend, attend, attends_in_place, head_part, heads_of_groups, merge_heads, soft_cap,
    split_heads,
};
pub use copies::{in_row_major_order, joined};
pub use cross_entropy::cross_entropies;
pub use divergence::kl_divergences;
pub use embedding::TokenEmbedding;
pub use indexed::{rows_by_index, with_rows_at};
pub use init::ParamInit;
pub use linearised::LinearisedNorm;
pub use masks::{CausalMask, mask_bytes};
pub use memory::{ReusedMemory, give_back};
pub use norm::{Norm, NormKind};
pub use parts::{part_of_rows, sums_parts_in_place};
pub use projection::{Projection, unembed};
pub use residual::add_to_stream;
pub use rotary::{LongRope, Rotary, RotaryConfig, RotaryScaling, Yarn};
pub use self_attention::{QkNorm, QkvLayout, SelfAttention, SelfAttentionConfig};
pub use unfused::unfused;
pub use weight::{Weight, WeightShapeError, keeps_quantized};
