//! What is read of a run: the outputs of writers, and the streams that readers read.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::nn::Norm;
use burn_align_models::{
    AlignableTransformer, ByHead, Component, ModelDims, ModelInput, Pass, Site, Tables, TokenBatch,
};

use super::CircuitError;
use crate::engine::{ReadId, Results, Units};

/// A model, and what it says about its heads and norms.
pub(super) struct Wiring<'m, B: Backend, M> {
    pub(super) model: &'m M,
    pub(super) heads: &'m dyn ByHead<B>,
    /// For each layer, the norm between the sum of heads and the residual stream.
    pub(super) post_norms: Vec<Option<&'m Norm<B>>>,
}

impl<'m, B: Backend, M: AlignableTransformer<B>> Wiring<'m, B, M> {
    pub(super) fn of(model: &'m M) -> Result<Self, CircuitError> {
        let heads = model.by_head().ok_or(CircuitError::NoHeads)?;
        let dims = model.dims();
        let post_norms = match model.readout() {
            Some(readout) => (0..dims.layers)
                .map(|layer| readout.post_norm(layer, 0))
                .collect(),
            None if dims.post_norms => return Err(CircuitError::NoPostNorm),
            None => vec![None; dims.layers],
        };
        Ok(Self {
            model,
            heads,
            post_norms,
        })
    }

    /// What is embedded where no token is: the positions of models with learned positions, zero in
    /// others. It is no output of a writer.
    ///
    /// # Shapes
    /// - output: `[1, pos, d_model]`
    pub(super) fn positions(&self, pos: usize, dtype: DType, tables: &Tables) -> Tensor<B, 3> {
        let device = self.model.device();
        let width = self.model.dims().d_model;
        let zeros = Tensor::zeros([1, pos, width], (&device, dtype));
        match self.model.layout().inputs().features {
            Some(features) if features == width => {
                let pass = Pass::new(pos, &device, tables);
                self.model.embed(ModelInput::Features(zeros), &pass)
            }
            _ => zeros,
        }
    }
}

/// The outputs of all writers of some examples, as they are computed: of heads, the mixed values,
/// which are narrower than what they write.
#[derive(Clone, Debug)]
pub(super) struct Outputs<B: Backend> {
    /// What the first layer reads, `[batch, pos, d_model]`.
    pub(super) embedding: Tensor<B, 3>,
    /// For each layer, `[batch, pos, head * d_head]`.
    pub(super) mixed: Vec<Tensor<B, 3>>,
    /// For each layer, what the MLP adds to the stream, `[batch, pos, d_model]`.
    pub(super) mlps: Vec<Tensor<B, 3>>,
    /// For each layer, what its post-norm reads, `[batch, pos, d_model]`; empty in models without
    /// post-norms.
    pub(super) attention: Vec<Tensor<B, 3>>,
}

impl<B: Backend> Outputs<B> {
    pub(super) fn sites(dims: &ModelDims) -> Vec<(Site, Units)> {
        let of_layers = |component: Component| {
            let sites = (0..dims.layers).map(move |layer| Site::Block(layer, component));
            sites.map(whole)
        };
        let mut sites = vec![whole(Site::Embedding)];
        sites.extend(of_layers(Component::AttentionValueOutput));
        sites.extend(of_layers(dims.added_by_mlp()));
        if dims.post_norms {
            sites.extend(of_layers(Component::AttentionOutput));
        }
        sites
    }

    /// - read: the activations at [`sites`](Self::sites)
    pub(super) fn from_read(mut read: Vec<Tensor<B, 3>>, dims: &ModelDims) -> Self {
        let attention = read.split_off(1 + 2 * dims.layers);
        let mlps = read.split_off(1 + dims.layers);
        let mixed = read.split_off(1);
        Self {
            embedding: read.remove(0),
            mixed,
            mlps,
            attention,
        }
    }

    /// Each output, changed. What post-norms read is not an output, and is kept.
    pub(super) fn map(&self, mut f: impl FnMut(&Tensor<B, 3>) -> Tensor<B, 3>) -> Self {
        Self {
            embedding: f(&self.embedding),
            mixed: self.mixed.iter().map(&mut f).collect(),
            mlps: self.mlps.iter().map(&mut f).collect(),
            attention: self.attention.clone(),
        }
    }

    /// Each output with that of another run.
    pub(super) fn zip(
        &self,
        other: &Self,
        f: impl Fn(&Tensor<B, 3>, &Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Self {
        let all = |own: &[Tensor<B, 3>], other: &[Tensor<B, 3>]| -> Vec<Tensor<B, 3>> {
            own.iter().zip(other).map(|(a, b)| f(a, b)).collect()
        };
        Self {
            embedding: f(&self.embedding, &other.embedding),
            mixed: all(&self.mixed, &other.mixed),
            mlps: all(&self.mlps, &other.mlps),
            attention: self.attention.clone(),
        }
    }

    /// Size of the first two axes.
    pub(super) fn size(&self) -> [usize; 2] {
        let [batch, pos, _d_model] = self.embedding.dims();
        [batch, pos]
    }
}

/// The residual streams that readers read, before any norm of theirs.
#[derive(Clone, Debug)]
pub(super) struct Streams<B: Backend> {
    /// For each layer, what queries, keys and values read, `[batch, pos, d_model]`.
    pub(super) attention: Vec<Tensor<B, 3>>,
    /// For each layer, what the MLP reads, `[batch, pos, d_model]`.
    pub(super) mlps: Vec<Tensor<B, 3>>,
    /// What the final norm reads, `[batch, pos, d_model]`.
    pub(super) last: Tensor<B, 3>,
}

impl<B: Backend> Streams<B> {
    pub(super) fn sites(dims: &ModelDims) -> Vec<(Site, Units)> {
        let layers = 0..dims.layers;
        let attention = layers.map(|layer| Site::Block(layer, Component::BlockInput));
        let mut sites: Vec<Site> = attention.collect();
        if !dims.parallel {
            let layers = 0..dims.layers;
            sites.extend(layers.map(|layer| Site::Block(layer, dims.read_by_mlp())));
        }
        sites.push(last_stream(dims));
        sites.into_iter().map(whole).collect()
    }

    /// - read: the activations at [`sites`](Self::sites)
    pub(super) fn from_read(mut read: Vec<Tensor<B, 3>>, dims: &ModelDims) -> Self {
        let last = read.remove(read.len() - 1);
        let mlps = match dims.parallel {
            true => read.clone(),
            false => read.split_off(dims.layers),
        };
        Self {
            attention: read,
            mlps,
            last,
        }
    }
}

/// What is read of a run without gradients.
#[derive(Clone, Debug)]
pub(super) struct Read<B: Backend> {
    pub(super) outputs: Outputs<B>,
    pub(super) streams: Streams<B>,
}

impl<B: Backend> Read<B> {
    pub(super) fn sites(dims: &ModelDims) -> Vec<(Site, Units)> {
        [Outputs::<B>::sites(dims), Streams::<B>::sites(dims)].concat()
    }

    /// - reads: those at [`sites`](Self::sites)
    pub(super) fn of(results: &Results<B>, reads: Vec<ReadId>, dims: &ModelDims) -> Self {
        let read = reads.into_iter().map(|read| results.get(read).detach());
        let mut outputs: Vec<_> = read.collect();
        let streams = outputs.split_off(Outputs::<B>::sites(dims).len());
        Self {
            outputs: Outputs::from_read(outputs, dims),
            streams: Streams::from_read(streams, dims),
        }
    }
}

/// For each example, the first position at which two batches differ.
pub(super) fn first_differences(base: &TokenBatch, other: &TokenBatch) -> Vec<usize> {
    let examples = base.ids().iter().zip(other.ids());
    let firsts = examples.map(|(a, b)| a.iter().zip(b).take_while(|(a, b)| a == b).count());
    firsts.collect()
}

/// Where the final norm reads.
pub(super) fn last_stream(dims: &ModelDims) -> Site {
    Site::Block(dims.layers.saturating_sub(1), Component::BlockOutput)
}

pub(super) fn whole(site: Site) -> (Site, Units) {
    (site, Units::ALL)
}
