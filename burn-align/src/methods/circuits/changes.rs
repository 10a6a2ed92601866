//! What writers' outputs change by, at the width of the residual stream.

use std::ops::Range;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::nn::{LinearisedNorm, Norm};
use burn_align_models::{AlignableTransformer, ByHead};

use super::EdgeGraph;
use super::runs::{Outputs, Wiring};
use crate::paths::Node;

/// How what a head writes passes the norm after its attention, whose input is the sum of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostNorm {
    /// By its Jacobian at the sum.
    Linear,
    /// As the change of the norm's output.
    Exact,
    /// As a part of the sum, with the scale held.
    Part,
}

/// Outputs of writers, or their changes. They are kept as narrow as heads compute them, and widened
/// for some writers and positions at a time.
pub(super) struct Written<'m, B: Backend> {
    heads: &'m dyn ByHead<B>,
    post_norms: Vec<Option<&'m Norm<B>>>,
    how: PostNorm,
    outputs: Outputs<B>,
    /// Of the model's activations.
    dtype: DType,
}

impl<'m, B: Backend> Written<'m, B> {
    /// The outputs of a run, each as a part of the stream.
    pub(super) fn parts<M: AlignableTransformer<B>>(
        wiring: &Wiring<'m, B, M>,
        run: &Outputs<B>,
    ) -> Self {
        Self {
            heads: wiring.heads,
            post_norms: wiring.post_norms.clone(),
            how: PostNorm::Part,
            outputs: run.clone(),
            dtype: run.embedding.dtype(),
        }
    }

    /// The changes from one run to another, in f32.
    pub(super) fn changes<M: AlignableTransformer<B>>(
        wiring: &Wiring<'m, B, M>,
        base: &Outputs<B>,
        source: &Outputs<B>,
        how: PostNorm,
    ) -> Self {
        let changes = base.zip(source, |base, source| {
            source.clone().cast(DType::F32) - base.clone().cast(DType::F32)
        });
        Self {
            heads: wiring.heads,
            post_norms: wiring.post_norms.clone(),
            how,
            outputs: changes,
            dtype: base.embedding.dtype(),
        }
    }

    /// What post-norms read is that of the base.
    pub(super) fn outputs(&self) -> &Outputs<B> {
        &self.outputs
    }

    /// What some writers add to the stream at some positions, in f32, writer by writer.
    ///
    /// # Shapes
    /// - output: `[writer * batch, positions.len(), d_model]`
    pub(super) fn at(
        &self,
        graph: &EdgeGraph,
        writers: Range<usize>,
        positions: Range<usize>,
    ) -> Tensor<B, 3> {
        let part = |x: &Tensor<B, 3>| narrowed(x, &positions);
        let mut norm: Option<(usize, Through<'_, B>)> = None;
        let mut added = Vec::with_capacity(writers.len());
        for node in &graph.writers()[writers] {
            added.push(match *node {
                Node::Embedding => part(&self.outputs.embedding).cast(DType::F32),
                Node::Mlp { layer } => part(&self.outputs.mlps[layer]).cast(DType::F32),
                Node::Attention { layer } => {
                    unreachable!("the attention of layer {layer} is no writer: its heads are")
                }
                Node::Head { layer, head } => {
                    let mixed = &self.outputs.mixed[layer];
                    let [_batch, _pos, width] = mixed.dims();
                    let d_head = width / graph.heads();
                    let own = part(mixed)
                        .narrow(2, head * d_head, d_head)
                        .cast(self.dtype);
                    let written = self.heads.head_output(layer, head, own).cast(DType::F32);
                    match self.post_norms[layer] {
                        None => written,
                        Some(post_norm) => {
                            if norm.as_ref().is_none_or(|(known, _)| *known != layer) {
                                let at = part(&self.outputs.attention[layer]);
                                norm = Some((layer, Through::new(post_norm, at, self.how)));
                            }
                            match &norm {
                                Some((_layer, through)) => through.written(written),
                                None => written,
                            }
                        }
                    }
                }
            });
        }
        Tensor::cat(added, 0)
    }
}

/// A post-norm at the base.
enum Through<'m, B: Backend> {
    Linear(LinearisedNorm<B>),
    Part(LinearisedNorm<B>),
    Exact {
        norm: &'m Norm<B>,
        /// `[batch, pos, d_model]`
        at: Tensor<B, 3>,
        /// In f32, `[batch, pos, d_model]`.
        output: Tensor<B, 3>,
    },
}

impl<'m, B: Backend> Through<'m, B> {
    fn new(norm: &'m Norm<B>, at: Tensor<B, 3>, how: PostNorm) -> Self {
        match how {
            PostNorm::Linear => Self::Linear(norm.linearised(at)),
            PostNorm::Part => Self::Part(norm.linearised(at)),
            PostNorm::Exact => Self::Exact {
                norm,
                output: norm.forward(at.clone()).cast(DType::F32),
                at,
            },
        }
    }

    fn written(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Linear(norm) => norm.push_forward(x),
            Self::Part(norm) => norm.part(x),
            Self::Exact { norm, at, output } => {
                let changed = at.clone() + x.cast(at.dtype());
                norm.forward(changed).cast(DType::F32) - output.clone()
            }
        }
    }
}

/// Some positions of an activation.
pub(super) fn narrowed<B: Backend>(x: &Tensor<B, 3>, positions: &Range<usize>) -> Tensor<B, 3> {
    let [_batch, pos, _width] = x.dims();
    match *positions == (0..pos) {
        true => x.clone(),
        false => x.clone().narrow(1, positions.start, positions.len()),
    }
}
