//! The sizes of a model, from which the width of every site follows.

use crate::site::{Component, Site};

/// The sizes of a model.
///
/// Query heads and key-value heads differ in grouped-query attention, and `d_head` is not always
/// `d_model / heads`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDims {
    /// Number of blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key-value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Width of the MLP's hidden layer.
    pub d_mlp: usize,
    /// Whether the MLP's hidden layer is a product of two projections (a gated MLP).
    pub gated_mlp: bool,
    /// Number of logits per position.
    pub vocab: usize,
    /// Longest sequence the model can read; `None` where it has no limit.
    pub max_positions: Option<usize>,
    /// Whether queries and keys are rotated by their position (RoPE).
    pub rotary: bool,
    /// Whether queries and keys have norms.
    pub qk_norm: bool,
    /// Whether attention and MLP have norms on their outputs.
    pub post_norms: bool,
    /// Whether attention and MLP both read the block's input.
    pub parallel: bool,
}

/// The shape of one activation, without its batch and position axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteDims {
    /// Number of heads; 1 for an activation that has no heads.
    pub heads: usize,
    /// What the last axis holds.
    pub width: SiteWidth,
}

/// What the last axis of an activation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteWidth {
    /// A vector with this many features.
    Features(usize),
    /// One number per key position (attention scores and weights).
    KeyPositions,
}

impl ModelDims {
    /// The sizes of a model without attention: `layers` layers of width `width`, and `outputs`
    /// outputs.
    pub fn features(layers: usize, width: usize, outputs: usize) -> Self {
        Self {
            layers,
            heads: 1,
            kv_heads: 1,
            d_model: width,
            d_head: width,
            d_mlp: width,
            gated_mlp: false,
            vocab: outputs,
            max_positions: None,
            rotary: false,
            qk_norm: false,
            post_norms: false,
            parallel: false,
        }
    }

    /// The component of what the attention adds to the residual stream.
    pub fn added_by_attention(&self) -> Component {
        match self.post_norms {
            true => Component::AttentionPostNorm,
            false => Component::AttentionOutput,
        }
    }

    /// The component of what the MLP adds to the residual stream.
    pub fn added_by_mlp(&self) -> Component {
        match self.post_norms {
            true => Component::MlpPostNorm,
            false => Component::MlpOutput,
        }
    }

    /// The component of the residual stream that the MLP reads.
    pub fn read_by_mlp(&self) -> Component {
        match self.parallel {
            true => Component::BlockInput,
            false => Component::ResidualMid,
        }
    }

    /// The residual stream after the last layer, which the final norm reads.
    pub fn last_stream(&self) -> Site {
        match self.layers.checked_sub(1) {
            Some(last) => Site::Block(last, Component::BlockOutput),
            None => Site::Embedding,
        }
    }

    /// The component of queries and that of keys in which heads are apart: after any norm, since
    /// one may run over the features of all heads together.
    pub fn queries_and_keys_by_head(&self) -> [Component; 2] {
        match self.qk_norm {
            true => [Component::QueryNorm, Component::KeyNorm],
            false => [Component::QueryOutput, Component::KeyOutput],
        }
    }

    /// The component of the keys that meet the queries.
    pub fn attended_keys(&self) -> Component {
        match (self.rotary, self.qk_norm) {
            (true, _) => Component::RotaryKey,
            (false, true) => Component::KeyNorm,
            (false, false) => Component::KeyOutput,
        }
    }

    /// Floating-point operations of one block's attention: two for each multiplication of a matrix
    /// product; everything else is negligible.
    ///
    /// - `pos`: positions of a row whose keys and values are computed
    /// - `queries`: positions with a query, whose output is computed
    /// - `keys`: positions that they attend to
    pub fn attention_flops(&self, pos: usize, queries: usize, keys: usize) -> u64 {
        let d_attention = self.heads * self.d_head;
        let of_keys = self.d_model * 2 * self.kv_heads * self.d_head;
        let of_queries = (self.d_model + keys) * 2 * d_attention;
        2 * (pos * of_keys + queries * of_queries) as u64
    }

    /// Floating-point operations of one block's MLP on `pos` positions.
    pub fn mlp_flops(&self, pos: usize) -> u64 {
        let matrices = if self.gated_mlp { 3 } else { 2 };
        2 * (pos * matrices * self.d_model * self.d_mlp) as u64
    }

    /// Floating-point operations of one block on `q_pos` positions of a row that attend to `k_pos`
    /// positions: attention and MLP together.
    pub fn block_flops(&self, q_pos: usize, k_pos: usize) -> u64 {
        self.attention_flops(q_pos, q_pos, k_pos) + self.mlp_flops(q_pos)
    }

    /// Floating-point operations of unembedding one position.
    pub fn unembed_flops(&self) -> u64 {
        2 * (self.d_model * self.vocab) as u64
    }

    /// The shape of the residual stream.
    pub fn stream(&self) -> SiteDims {
        SiteDims::features(1, self.d_model)
    }

    /// The shape of a component's activation in a model with these sizes, if it has the component.
    pub fn component(&self, component: Component) -> SiteDims {
        match component {
            Component::BlockInput
            | Component::AttentionInput
            | Component::AttentionOutput
            | Component::AttentionPostNorm
            | Component::ResidualMid
            | Component::MlpInput
            | Component::MlpOutput
            | Component::MlpPostNorm
            | Component::BlockOutput => self.stream(),
            Component::QueryOutput
            | Component::QueryNorm
            | Component::RotaryQuery
            | Component::AttentionValueOutput => SiteDims::features(self.heads, self.d_head),
            Component::KeyOutput
            | Component::ValueOutput
            | Component::KeyNorm
            | Component::RotaryKey => SiteDims::features(self.kv_heads, self.d_head),
            Component::AttentionScores | Component::AttentionWeights => SiteDims {
                heads: self.heads,
                width: SiteWidth::KeyPositions,
            },
            Component::MlpActivation => SiteDims::features(1, self.d_mlp),
        }
    }
}

impl SiteDims {
    fn features(heads: usize, width: usize) -> Self {
        Self {
            heads,
            width: SiteWidth::Features(width),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stream_is_after_the_last_layer() {
        let last = |layers| ModelDims::features(layers, 16, 2).last_stream();
        assert_eq!(last(3), Site::Block(2, Component::BlockOutput));
        assert_eq!(last(0), Site::Embedding);
    }
}
