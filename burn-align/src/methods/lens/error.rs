//! What can go wrong with lenses.

use burn_align_models::Site;

use crate::engine::PlanError;

/// Why a lens could not be applied or trained.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LensError {
    /// A site that is not as wide as the residual stream.
    #[error(
        "{site}: expected an activation as wide as the residual stream, {d_model}, without heads; \
         use the embedding, a block's input or output, or what a sublayer adds"
    )]
    NotStream {
        /// The site.
        site: Site,
        /// Width of the residual stream.
        d_model: usize,
    },
    /// A model whose logits cannot be taken apart.
    #[error(
        "the model does not say how logits follow from its residual stream; implement Readout for \
         it and return it from AlignableTransformer::readout"
    )]
    NoReadout,
    /// A model whose heads cannot be told apart.
    #[error(
        "the model's heads cannot be told apart; implement ByHead for it and return it from \
         AlignableTransformer::by_head"
    )]
    NoHeads,
    /// A layer that does not add to the stream.
    #[error(
        "layer {layer}: expected sublayers that add to the residual stream, found one that \
         replaces it, so the stream is no sum of their outputs"
    )]
    NotResidual {
        /// The layer.
        layer: usize,
    },
    /// Tokens that do not fit the examples or the vocabulary.
    #[error("{what}: expected {expected}, found {found}")]
    Tokens {
        /// Which tokens.
        what: &'static str,
        /// What is expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A head that the model does not have.
    #[error("layer {layer}, head {head}: the model has {layers} layers of {heads} heads")]
    NoSuchHead {
        /// The layer.
        layer: usize,
        /// The head.
        head: usize,
        /// Number of layers.
        layers: usize,
        /// Number of heads.
        heads: usize,
    },
    /// A tuned lens without a translator for a site.
    #[error("{site}: the tuned lens has no translator for this site; it has one for {known}")]
    NoTranslator {
        /// The site.
        site: Site,
        /// The sites that it has.
        known: String,
    },
    /// A tuned lens of another model.
    #[error(
        "expected a tuned lens for a residual stream of width {expected}, found one of {found}; \
         was it trained on another model?"
    )]
    Width {
        /// Width of the model's residual stream.
        expected: usize,
        /// Width of the lens.
        found: usize,
    },
    /// Nothing to read or to train.
    #[error("expected at least one {what}, found none")]
    Nothing {
        /// What is missing.
        what: &'static str,
    },
    /// A setting out of range.
    #[error("{what}: expected {expected}, found {found}")]
    Config {
        /// The setting.
        what: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// A divergence that is not a number.
    #[error(
        "training diverged: step {step}, {site}: the divergence is {found}; lower the learning rate"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// The site.
        site: Site,
        /// The divergence.
        found: String,
    },
    /// A divergence that is not finite although the model's run is.
    #[error(
        "{site}: the divergence is not finite, although the model's run is; check this site's \
         translator, or load the model in f32"
    )]
    NotFinite {
        /// The site.
        site: Site,
    },
    /// The run does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
