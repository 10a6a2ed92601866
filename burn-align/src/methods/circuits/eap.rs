//! Edge attribution patching, and its integrated variants.

use burn::tensor::backend::AutodiffBackend;
use burn_align_models::AlignableTransformer;

use super::gradients::{Estimate, score};
use super::{CircuitError, EdgeOptions, EdgeScores};
use crate::methods::attribution::{Metric, Patching};

/// Edge attribution patching (EAP; Syed et al. 2023, arXiv 2310.10348): estimates, for
/// each edge from a writer `u` to a reader `v`, what it costs to patch this edge alone, by
///
/// ```text
/// s(u→v) = −Σ (a_u(source) − a_u(base)) · ∂m/∂x_v, at the base
/// ```
///
/// with `a_u` what the writer adds to the residual stream, and `x_v` what the reader reads, before
/// its norm; summed over positions and features, and averaged over examples. The gradient is that
/// of the loss `−m`, so under [noising](Patching::noising) a positive score says that corrupting
/// the edge hurts, as in the reference code of EAP-IG.
///
/// All edges of all heads' queries, keys and values come from one backward pass. Neither all
/// differences nor all gradients are ever in memory at their full width: heads' outputs are kept as
/// mixed values, `d_model / d_head` times narrower, and widened for some positions at a time.
///
/// # How it differs from the reference code
/// - Scores are means over examples. If the reference's metric is a mean over a batch, its scores
///   are smaller by the size of the batch.
/// - No weights are processed. TransformerLens folds norms and centres weights before the reference
///   sees a model, which leaves these scores as they are: what it takes away cancels in the next
///   norm. Only zero ablation, in models with biases, and information flow routes depend on it.
/// - Means are taken over the examples that have a position. Learned positions are no output of the
///   embedding, as in the reference: zero ablation leaves them in place.
/// - In models with a norm after the attention (Gemma 2 and 3, OLMo 2) a head's difference goes
///   through this norm by its Jacobian at the base. The reference ignores the norm in attribution,
///   though not in evaluation.
///
/// # When it misleads
/// As [`attribution_patching`](crate::methods::attribution::attribution_patching): where the model
/// saturates, the gradient at the base says little about a patch. A metric with a minimum at the
/// base, such as a divergence from the base's own prediction, has no gradient there, and all scores
/// are zero: use [`eap_ig_inputs`]. Compare with [`patch_edges`](super::patch_edges).
///
/// # Errors
/// If the model's heads cannot be told apart, or its layers are not attention and an MLP; if the
/// prompts or the metric do not fit the model; if a prompt and its counterpart have different
/// lengths; if the budget is too small for one example; or if a run, the metric or a score is not
/// finite.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn_align::methods::attribution::{LogitDifference, Patching};
/// use burn_align::methods::circuits::{EdgeOptions, EdgeRanking, eap};
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
///
/// type A = Autodiff<Flex>;
///
/// let device = Default::default();
/// let options = LoadOptions::default();
/// let loaded = Decoder::<A>::from_pretrained("bundled:capitals", &options, &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let clean = tokenizer.encode_batch(["The capital of Spain is"])?;
/// let corrupt = tokenizer.encode_batch(["The capital of Italy is"])?;
/// let metric = LogitDifference::new(
///     [tokenizer.single_token("Madrid")?],
///     [tokenizer.single_token("Rome")?],
/// );
///
/// let patching = Patching::noising(clean, corrupt);
/// let scores = eap(&loaded.model, &patching, &metric, &EdgeOptions::default())?;
/// let (edge, score) = scores.ranked(EdgeRanking::Absolute)[0];
/// assert!(score.abs() > 0.0, "{}", scores.graph().name(edge));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "edge attribution patching")]
pub fn eap<A: AutodiffBackend, M: AlignableTransformer<A>, T: Metric>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    metric: &T,
    options: &EdgeOptions,
) -> Result<EdgeScores, CircuitError> {
    score(model, patching, metric, Estimate::AtBase, options)
}

/// EAP with integrated gradients along a path of inputs (EAP-IG; Hanna et al. 2024, arXiv
/// 2403.17806): [`eap`] with the mean of gradients at [`EdgeOptions::steps`] points between the
/// embeddings of both prompts, `x′ + k/m · (x − x′)` for `k = 0 … m − 1`, with `x` the base and
/// `x′` the source. The source is one of the points and the base is not, as in the reference code.
///
/// Differences are those between the two prompts, or as [`EdgeOptions::ablation`] says; the path is
/// always from one prompt to the other.
///
/// # When it misleads
/// Points between two embeddings are embeddings of no prompt.
///
/// # Errors
/// As [`eap`], or if there are no steps.
#[doc(alias = "EAP-IG")]
pub fn eap_ig_inputs<A: AutodiffBackend, M: AlignableTransformer<A>, T: Metric>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    metric: &T,
    options: &EdgeOptions,
) -> Result<EdgeScores, CircuitError> {
    score(model, patching, metric, Estimate::AlongInputs, options)
}

/// EAP with integrated gradients along paths of activations (EAP-IG-activations; Hanna et al., in
/// MIB, arXiv 2504.13151): [`eap`] with the mean of gradients of runs in each of which the output
/// of one node is at one of [`EdgeOptions::steps`] points between its activations in both runs,
/// `k/m · a + (1 − k/m) · a′` for `k = 1 … m`. The base is one of the points and the source is not.
///
/// The nodes are the embedding, the heads of each layer together, and each MLP: `(2L + 1) · m`
/// backward passes. As in the reference code, each pass adds to the scores of *all* edges, also of
/// those that have nothing to do with the node; with [`EdgeOptions::own_edges`], a pass adds to the
/// edges from its node only, which is what the method's name suggests.
///
/// Under an [ablation](EdgeOptions::ablation) by means or zero, nodes move towards these. (In the
/// reference code they always move towards zero then.) And the passes in which the embedding moves
/// reach the first layer's heads in all models; in the reference code they do so only in models
/// with learned positions, since nothing else is tracked there.
///
/// # Errors
/// As [`eap_ig_inputs`].
#[doc(alias = "EAP-IG-activations")]
pub fn eap_ig_activations<A: AutodiffBackend, M: AlignableTransformer<A>, T: Metric>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    metric: &T,
    options: &EdgeOptions,
) -> Result<EdgeScores, CircuitError> {
    score(model, patching, metric, Estimate::AlongActivations, options)
}

/// [`eap`] with the mean of the gradients at base and source (the "clean-corrupted" method of Hanna
/// et al. 2024, arXiv 2403.17806): the two ends of the path of [`eap_ig_inputs`].
///
/// # Errors
/// As [`eap`].
pub fn clean_corrupted<A: AutodiffBackend, M: AlignableTransformer<A>, T: Metric>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    metric: &T,
    options: &EdgeOptions,
) -> Result<EdgeScores, CircuitError> {
    score(model, patching, metric, Estimate::AtBothEnds, options)
}
