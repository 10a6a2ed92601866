//! Gradients at what readers read: residual streams before any norm, for each input of each head.
//!
//! One backward pass of the model gives the gradients at the heads' mixed values and at the MLPs'
//! inputs. From mixed values to what one head's queries, keys or values read it is a step within
//! the head, which is differentiated for each head by itself; from there, and from an MLP's input,
//! it is a norm, whose Jacobian is known.

use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use burn_align_models::nn::{LinearisedNorm, Norm};
use burn_align_models::{AlignableTransformer, Component, ModelDims, Pass, Site};

use super::runs::{Streams, Wiring, last_stream, whole};
use super::sums::{Sums, Widened, add_products};
use super::{EdgeGraph, Reader};
use crate::engine::Units;

/// A run at which gradients were taken.
pub(super) struct Point<B: Backend> {
    pub(super) streams: Streams<B>,
    /// For each layer, at mixed values, `[batch, pos, head * d_head]`.
    mixed: Vec<Tensor<B, 3>>,
    /// For each layer, at what the MLP reads, after any norm, `[batch, pos, d_model]`.
    mlps: Vec<Tensor<B, 3>>,
    /// At what the final norm reads, `[batch, pos, d_model]`.
    last: Tensor<B, 3>,
}

impl<B: Backend> Point<B> {
    /// Where gradients are taken.
    pub(super) fn sites(dims: &ModelDims) -> Vec<(Site, Units)> {
        let of_layers = |component: Component| {
            let sites = (0..dims.layers).map(move |layer| Site::Block(layer, component));
            sites.map(whole)
        };
        let mut sites: Vec<(Site, Units)> = of_layers(Component::AttentionValueOutput).collect();
        sites.extend(of_layers(Component::MlpInput));
        sites.push(whole(last_stream(dims)));
        sites
    }

    /// - gradients: at [`sites`](Self::sites)
    pub(super) fn new(
        streams: Streams<B>,
        mut gradients: Vec<Tensor<B, 3>>,
        dims: &ModelDims,
    ) -> Self {
        let last = gradients.remove(gradients.len() - 1);
        let mlps = gradients.split_off(dims.layers);
        Self {
            streams,
            mixed: gradients,
            mlps,
            last,
        }
    }
}

/// From gradients to scores.
pub(super) struct Scoring<'a, 'm, A: AutodiffBackend, M> {
    pub(super) wiring: &'a Wiring<'m, A, M>,
    pub(super) graph: &'a EdgeGraph,
    pub(super) pass: &'a Pass<A>,
    /// How many heads are differentiated before their gradients are used.
    pub(super) heads: usize,
}

impl<A: AutodiffBackend, M: AlignableTransformer<A>> Scoring<'_, '_, A, M> {
    /// Adds the products of writers' changes with the gradients at all readers after them.
    ///
    /// - cut: a layer whose heads' outputs do not depend on what they read
    pub(super) fn add(
        &self,
        sums: &mut Sums<A::InnerBackend>,
        widened: &Widened<'_, '_, A>,
        point: &Point<A::InnerBackend>,
        cut: Option<usize>,
    ) {
        let add = |sums: &mut Sums<A::InnerBackend>,
                   reader: Reader,
                   gradients: &[Tensor<A::InnerBackend, 3>]| {
            if let Some(first) = self.graph.reader(reader) {
                let inner = |x: Tensor<A, 2>| x.inner();
                add_products(sums, widened, first, gradients, inner);
            }
        };
        let reads = |reader: Reader| {
            let index = self.graph.reader(reader);
            index.is_some_and(|index| !widened.before(index).is_empty())
        };
        for layer in 0..self.graph.layers() {
            if cut != Some(layer) && reads(Reader::Query { layer, head: 0 }) {
                let stream = &point.streams.attention[layer];
                let norm = self.wiring.heads.attention_norm(layer);
                let entry = Entry::new(norm, stream);
                for heads in self.groups() {
                    let first = Reader::Query {
                        layer,
                        head: heads.start,
                    };
                    let gradients = heads.flat_map(|head| {
                        let of_inputs = self.of_head(layer, head, &entry, &point.mixed[layer]);
                        of_inputs.map(|gradient| entry.pulled_back(gradient))
                    });
                    add(sums, first, &gradients.collect::<Vec<_>>());
                }
            }
            let reader = Reader::Mlp { layer };
            if reads(reader) {
                let stream = &point.streams.mlps[layer];
                let norm = self.wiring.heads.mlp_norm(layer);
                let linear = linearised(norm, stream);
                let gradient = pulled_back(linear.as_ref(), point.mlps[layer].clone());
                add(sums, reader, &[gradient]);
            }
        }
        add(sums, Reader::Logits, std::slice::from_ref(&point.last));
    }

    /// Heads, some at a time.
    fn groups(&self) -> Vec<Range<usize>> {
        let (all, size) = (self.graph.heads(), self.heads.max(1));
        let starts = (0..all).step_by(size);
        starts.map(|head| head..all.min(head + size)).collect()
    }

    /// The gradients at what queries, keys and values of a head are computed from, after the norm.
    ///
    /// - mixed: the gradient at the mixed values of all heads, `[batch, pos, head * d_head]`
    ///
    /// # Shapes
    /// - output: `[batch, pos, d_model]` each
    fn of_head(
        &self,
        layer: usize,
        head: usize,
        entry: &Entry<A::InnerBackend>,
        mixed: &Tensor<A::InnerBackend, 3>,
    ) -> [Tensor<A::InnerBackend, 3>; 3] {
        let [_batch, _pos, width] = mixed.dims();
        let d_head = width / self.graph.heads();
        let at_mixed = mixed.clone().narrow(2, head * d_head, d_head);
        let input = || Tensor::<A, 3>::from_inner(entry.normed.clone()).require_grad();
        let inputs = [input(), input(), input()];
        let heads = self.wiring.heads;
        let output = heads.head_mixed_normed(layer, head, inputs.clone(), self.pass);
        let total = (output.cast(DType::F32) * Tensor::from_inner(at_mixed)).sum();
        let gradients = total.backward();
        inputs.map(|input| match input.grad(&gradients) {
            Some(gradient) => gradient.cast(DType::F32),
            None => input.inner().cast(DType::F32).zeros_like(),
        })
    }
}

/// How a layer's attention reads the stream.
struct Entry<B: Backend> {
    /// The stream after the norm, `[batch, pos, d_model]`.
    normed: Tensor<B, 3>,
    linear: Option<LinearisedNorm<B>>,
}

impl<B: Backend> Entry<B> {
    fn new<A>(norm: Option<&Norm<A>>, stream: &Tensor<B, 3>) -> Self
    where
        A: AutodiffBackend<InnerBackend = B>,
    {
        let normed = match norm {
            None => stream.clone(),
            Some(norm) => norm.forward(Tensor::from_inner(stream.clone())).inner(),
        };
        Self {
            normed,
            linear: linearised(norm, stream),
        }
    }

    fn pulled_back(&self, gradient: Tensor<B, 3>) -> Tensor<B, 3> {
        pulled_back(self.linear.as_ref(), gradient)
    }
}

fn linearised<A: AutodiffBackend>(
    norm: Option<&Norm<A>>,
    stream: &Tensor<A::InnerBackend, 3>,
) -> Option<LinearisedNorm<A::InnerBackend>> {
    let norm = norm?;
    Some(norm.linearised(Tensor::from_inner(stream.clone())).inner())
}

fn pulled_back<B: Backend>(
    norm: Option<&LinearisedNorm<B>>,
    gradient: Tensor<B, 3>,
) -> Tensor<B, 3> {
    match norm {
        None => gradient,
        Some(norm) => norm.pull_back(gradient),
    }
}
