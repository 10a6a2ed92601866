//! The named activations of a transformer.

use std::fmt;
use std::str::FromStr;

/// A named activation inside a block, in the order in which a forward pass reaches it.
///
/// The string forms are the names used by align-transformers and pyvene. Their `head_*` names (such
/// as `head_query_output`) denote the same activations, addressed head by head, and parse to the
/// same component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "hook point")]
pub enum Component {
    /// The residual stream that enters the block, `[batch, pos, d_model]`.
    #[doc(alias = "resid_pre")]
    BlockInput,
    /// Input of the attention, after the first norm, `[batch, pos, d_model]`.
    AttentionInput,
    /// Queries as projected, before any norm or rotary embedding, `[batch, head, pos, d_head]`.
    #[doc(alias = "hook_q")]
    QueryOutput,
    /// Keys as projected, before any norm or rotary embedding, `[batch, kv_head, pos, d_head]`.
    #[doc(alias = "hook_k")]
    KeyOutput,
    /// Values, `[batch, kv_head, pos, d_head]`.
    #[doc(alias = "hook_v")]
    ValueOutput,
    /// Queries after their norm, in models that have one (Qwen3, Gemma 3, OLMo 2),
    /// `[batch, head, pos, d_head]`.
    QueryNorm,
    /// Keys after their norm, `[batch, kv_head, pos, d_head]`.
    KeyNorm,
    /// Queries after the rotary embedding, `[batch, head, pos, d_head]`.
    #[doc(alias = "hook_rot_q")]
    RotaryQuery,
    /// Keys after the rotary embedding, `[batch, kv_head, pos, d_head]`.
    #[doc(alias = "hook_rot_k")]
    RotaryKey,
    /// Scaled query-key products, after any soft cap and before the causal mask,
    /// `[batch, head, q_pos, k_pos]`.
    #[doc(alias = "hook_attn_scores")]
    AttentionScores,
    /// Attention probabilities after the softmax, `[batch, head, q_pos, k_pos]`.
    #[doc(alias = "attention_weight")]
    #[doc(alias = "hook_pattern")]
    AttentionWeights,
    /// The heads' mixed values, input of the output projection, `[batch, head, pos, d_head]`.
    #[doc(alias = "hook_z")]
    AttentionValueOutput,
    /// Output of the attention, `[batch, pos, d_model]`. It is added to the residual stream, after
    /// [`AttentionPostNorm`](Self::AttentionPostNorm) if the model has one.
    #[doc(alias = "attn_out")]
    AttentionOutput,
    /// Output of the norm after the attention, which is added to the residual stream, in models
    /// that have one (Gemma 2 and 3, OLMo 2), `[batch, pos, d_model]`. TransformerLens'
    /// `hook_attn_out` is this activation in such models.
    AttentionPostNorm,
    /// The residual stream between attention and MLP, `[batch, pos, d_model]`. There is none in
    /// models whose MLP reads the block's input (GPT-NeoX, Phi).
    #[doc(alias = "resid_mid")]
    ResidualMid,
    /// Input of the MLP, after the second norm, `[batch, pos, d_model]`.
    MlpInput,
    /// Output of the MLP's activation function, `[batch, pos, d_mlp]`. In a gated MLP this is
    /// `act(gate)`, before it is multiplied by the up projection.
    #[doc(alias = "hook_post")]
    MlpActivation,
    /// Output of the MLP, `[batch, pos, d_model]`. It is added to the residual stream, after
    /// [`MlpPostNorm`](Self::MlpPostNorm) if the model has one.
    #[doc(alias = "mlp_out")]
    MlpOutput,
    /// Output of the norm after the MLP, which is added to the residual stream, in models that have
    /// one, `[batch, pos, d_model]`.
    MlpPostNorm,
    /// The residual stream that leaves the block, `[batch, pos, d_model]`.
    #[doc(alias = "resid_post")]
    BlockOutput,
}

impl Component {
    /// Every component, in the order in which a forward pass reaches it.
    pub const ALL: [Self; 20] = [
        Self::BlockInput,
        Self::AttentionInput,
        Self::QueryOutput,
        Self::KeyOutput,
        Self::ValueOutput,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::RotaryQuery,
        Self::RotaryKey,
        Self::AttentionScores,
        Self::AttentionWeights,
        Self::AttentionValueOutput,
        Self::AttentionOutput,
        Self::AttentionPostNorm,
        Self::ResidualMid,
        Self::MlpInput,
        Self::MlpActivation,
        Self::MlpOutput,
        Self::MlpPostNorm,
        Self::BlockOutput,
    ];

    /// The component's name in align-transformers and pyvene.
    pub fn name(self) -> &'static str {
        match self {
            Self::BlockInput => "block_input",
            Self::AttentionInput => "attention_input",
            Self::QueryOutput => "query_output",
            Self::KeyOutput => "key_output",
            Self::ValueOutput => "value_output",
            Self::QueryNorm => "query_norm",
            Self::KeyNorm => "key_norm",
            Self::RotaryQuery => "rotary_query",
            Self::RotaryKey => "rotary_key",
            Self::AttentionScores => "attention_scores",
            Self::AttentionWeights => "attention_weight",
            Self::AttentionValueOutput => "attention_value_output",
            Self::AttentionOutput => "attention_output",
            Self::AttentionPostNorm => "attention_post_norm",
            Self::ResidualMid => "residual_mid",
            Self::MlpInput => "mlp_input",
            Self::MlpActivation => "mlp_activation",
            Self::MlpOutput => "mlp_output",
            Self::MlpPostNorm => "mlp_post_norm",
            Self::BlockOutput => "block_output",
        }
    }

    /// Whether the activation has a head axis.
    pub fn has_heads(self) -> bool {
        matches!(
            self,
            Self::QueryOutput
                | Self::KeyOutput
                | Self::ValueOutput
                | Self::QueryNorm
                | Self::KeyNorm
                | Self::RotaryQuery
                | Self::RotaryKey
                | Self::AttentionScores
                | Self::AttentionWeights
                | Self::AttentionValueOutput
        )
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A string that names no component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown component `{found}`; expected one of {}, {HEAD_NAMES}",
    Component::ALL.map(Component::name).join(", ")
)]
pub struct UnknownComponent {
    /// The string.
    pub found: String,
}

const HEAD_NAMES: &str = "or head_query_output, head_key_output, head_value_output, \
                          head_attention_value_output";

impl FromStr for Component {
    type Err = UnknownComponent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = match text {
            "head_query_output" => "query_output",
            "head_key_output" => "key_output",
            "head_value_output" => "value_output",
            "head_attention_value_output" => "attention_value_output",
            "attention_weights" => "attention_weight",
            name => name,
        };
        Self::ALL
            .into_iter()
            .find(|component| component.name() == name)
            .ok_or_else(|| UnknownComponent {
                found: text.to_owned(),
            })
    }
}

/// A place in a model where an activation can be read or changed.
///
/// Sites are ordered as in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "hook point")]
pub enum Site {
    /// What the first block reads, `[batch, pos, d_model]`.
    Embedding,
    /// A component of the block with this index.
    Block(usize, Component),
    /// Output of the final norm, which the unembedding reads, `[batch, pos, d_model]`.
    FinalNorm,
}

impl Site {
    /// Whether the activation's last axis is the key positions: attention scores and weights.
    pub fn is_attention_pattern(self) -> bool {
        matches!(
            self,
            Self::Block(_, Component::AttentionScores | Component::AttentionWeights)
        )
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Block(layer, component) => write!(f, "layer {layer} {component}"),
            Self::FinalNorm => f.write_str("final_norm"),
        }
    }
}
