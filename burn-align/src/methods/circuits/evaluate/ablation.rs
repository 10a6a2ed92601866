//! What edges outside of a circuit carry.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, Cx, NoTap, Pass, Site, Tap};

use super::super::{CircuitError, EdgeAblation};

/// What an edge outside of a circuit carries instead of its writer's output.
///
/// Zeros, and to a lesser extent means, are activations that the model has never seen: a circuit
/// may then fail because of what it is embedded in. Outputs of a counterfactual prompt keep
/// everything that both prompts have in common, so a circuit is only about their difference.
///
/// Learned positions are no output of a writer: they stay in place under [`Zero`](Self::Zero) and
/// [`MeanOverPositions`](Self::MeanOverPositions), as in the reference code of EAP-IG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CircuitAblation {
    /// The writer's output on the source prompt.
    #[default]
    Counterfactual,
    /// Zero.
    Zero,
    /// Its mean over the base prompts, position by position. An example counts at the positions
    /// that it has.
    Mean,
    /// Its mean over the base prompts and their positions.
    MeanOverPositions,
    /// Its output on another base prompt of the same length (Chan et al. 2022, "Causal
    /// Scrubbing"): one draw, so average over seeds.
    Resample {
        /// Seed of the draw.
        seed: u64,
    },
}

impl From<EdgeAblation> for CircuitAblation {
    fn from(ablation: EdgeAblation) -> Self {
        match ablation {
            EdgeAblation::Counterfactual => Self::Counterfactual,
            EdgeAblation::Mean => Self::Mean,
            EdgeAblation::Zero => Self::Zero,
        }
    }
}

/// A run of the model, or what it would be if writers wrote something else: what each writer
/// writes, and what each sublayer reads.
pub(super) struct Streams<B: Backend> {
    /// `[batch, pos, d_model]`
    pub(super) embedding: Tensor<B, 3>,
    pub(super) layers: Vec<LayerStreams<B>>,
    /// What the final norm reads, `[batch, pos, d_model]`.
    pub(super) last: Tensor<B, 3>,
}

/// The same for one layer.
pub(super) struct LayerStreams<B: Backend> {
    /// `[batch, pos, d_model]`
    pub(super) attention_reads: Tensor<B, 3>,
    /// Before the output projection, `[batch, head, pos, d_head]`.
    pub(super) mixed: Tensor<B, 4>,
    /// The attention's output before the norm that follows it, `[batch, pos, d_model]`, in models
    /// with such a norm.
    pub(super) before_norm: Option<Tensor<B, 3>>,
    /// `[batch, pos, d_model]`
    pub(super) mlp_reads: Tensor<B, 3>,
    /// `[batch, pos, d_model]`
    pub(super) mlp: Tensor<B, 3>,
    /// Keys and values, `[batch, kv_head, pos, d_head]`, if they were kept.
    pub(super) keys_values: Option<[Tensor<B, 4>; 2]>,
}

/// What writers write instead of their own outputs. The first axis may be 1, for the same in all
/// examples.
#[derive(Clone)]
pub(super) struct Written<B: Backend> {
    /// `[batch, pos, d_model]`
    pub(super) embedding: Tensor<B, 3>,
    /// For each layer: mixed values `[batch, head, pos, d_head]`, and the MLP's output
    /// `[batch, pos, d_model]`.
    pub(super) layers: Vec<(Tensor<B, 4>, Tensor<B, 3>)>,
}

impl<B: Backend> Streams<B> {
    /// Runs the model on embeddings; without gradients of its weights.
    pub(super) fn run<M: AlignableTransformer<B>>(
        model: &M,
        embedding: Tensor<B, 3>,
        pass: &Pass<B>,
    ) -> Result<Self, CircuitError> {
        Self::walk(model, embedding, pass, None)
    }

    /// What the streams would be if writers wrote this.
    pub(super) fn of_written<M: AlignableTransformer<B>>(
        model: &M,
        written: &Written<B>,
        batch: usize,
        pass: &Pass<B>,
    ) -> Result<Self, CircuitError> {
        let embedding = repeated(written.embedding.clone(), batch);
        Self::walk(model, embedding, pass, Some(written))
    }

    fn walk<M: AlignableTransformer<B>>(
        model: &M,
        embedding: Tensor<B, 3>,
        pass: &Pass<B>,
        written: Option<&Written<B>>,
    ) -> Result<Self, CircuitError> {
        let dims = model.dims().clone();
        let [batch, _pos, _d_model] = embedding.dims();
        let mut x = embedding.clone();
        let mut layers = Vec::with_capacity(dims.layers);
        for layer in 0..dims.layers {
            let given = written.map(|written| &written.layers[layer]);
            let mut tap = Capture {
                layer,
                before_norm: dims.post_norms,
                given: given.map(|(mixed, _)| repeated(mixed.clone(), batch)),
                mixed: None,
                output: None,
            };
            let attention_reads = x;
            let read = attention_reads.clone();
            let added = model.sublayer(layer, 0, read, &mut Cx::new(&mut tap, pass));
            let kept = pass.take_keys_values().pop();
            let after = attention_reads.clone() + added;
            let mlp_reads = match dims.parallel {
                true => attention_reads.clone(),
                false => after.clone(),
            };
            let mlp = match given {
                Some((_, mlp)) => repeated(mlp.clone(), batch),
                None => {
                    let read = mlp_reads.clone();
                    model.sublayer(layer, 1, read, &mut Cx::new(&mut NoTap, pass))
                }
            };
            x = after + mlp.clone();
            layers.push(LayerStreams {
                attention_reads,
                mixed: tap.mixed.ok_or(CircuitError::NoHeads)?,
                before_norm: tap.output.map(|output| output.squeeze_dim(1)),
                mlp_reads,
                mlp,
                keys_values: kept.map(|kept| [kept.keys, kept.values]),
            });
        }
        Ok(Self {
            embedding,
            layers,
            last: x,
        })
    }
}

/// The tensor itself, or its only row for each example.
fn repeated<B: Backend, const D: usize>(x: Tensor<B, D>, batch: usize) -> Tensor<B, D> {
    match x.dims()[0] {
        1 => x.repeat_dim(0, batch),
        _ => x,
    }
}

/// Sees what the heads of a layer mix, or replaces it.
struct Capture<B: Backend> {
    layer: usize,
    before_norm: bool,
    given: Option<Tensor<B, 4>>,
    mixed: Option<Tensor<B, 4>>,
    output: Option<Tensor<B, 4>>,
}

impl<B: Backend> Tap<B> for Capture<B> {
    fn wants(&self, site: Site) -> bool {
        let at = |component| site == Site::Block(self.layer, component);
        at(Component::AttentionValueOutput) || (self.before_norm && at(Component::AttentionOutput))
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        if site == Site::Block(self.layer, Component::AttentionOutput) {
            self.output = Some(activation.clone());
            return activation;
        }
        let mixed = self.given.take().unwrap_or(activation);
        self.mixed = Some(mixed.clone());
        mixed
    }
}

/// Sums of what writers write, over examples, and perhaps over positions.
pub(super) struct Sums<B: Backend> {
    over_positions: bool,
    /// Number of examples that have each position.
    counts: Vec<f64>,
    written: Option<Written<B>>,
}

impl<B: Backend> Sums<B> {
    pub(super) fn new(pos: usize, over_positions: bool) -> Self {
        Self {
            over_positions,
            counts: vec![0.0; pos],
            written: None,
        }
    }

    /// Adds some examples of these lengths.
    pub(super) fn add(&mut self, streams: &Streams<B>, lengths: &[usize]) {
        let [batch, pos, _d_model] = streams.embedding.dims();
        let is_real = lengths
            .iter()
            .flat_map(|length| (0..pos).map(|at| f32::from(u8::from(at < *length))));
        let is_real: Vec<f32> = is_real.collect();
        for row in is_real.chunks(pos) {
            for (count, real) in self.counts.iter_mut().zip(row) {
                *count += f64::from(*real);
            }
        }
        let device = streams.embedding.device();
        let data = TensorData::new(is_real, [batch, pos, 1]);
        let real = Tensor::<B, 3>::from_data(data, (&device, DType::F32));
        let of_all = |x: &Tensor<B, 3>| self.sum(x.clone().cast(DType::F32) * real.clone(), 1);
        let of_heads = |x: &Tensor<B, 4>| {
            let real = real.clone().unsqueeze_dim::<4>(1); // [batch, 1, pos, 1]
            self.sum(x.clone().cast(DType::F32) * real, 2)
        };
        let layers = streams.layers.iter();
        let added = Written {
            embedding: of_all(&streams.embedding),
            layers: layers
                .map(|layer| (of_heads(&layer.mixed), of_all(&layer.mlp)))
                .collect(),
        };
        self.written = Some(match self.written.take() {
            None => added,
            Some(sum) => sum.zip(added),
        });
    }

    /// The sum over examples, and over the axis of positions if that is asked for.
    fn sum<const D: usize>(&self, x: Tensor<B, D>, positions: usize) -> Tensor<B, D> {
        let sum = x.sum_dim(0);
        match self.over_positions {
            true => sum.sum_dim(positions),
            false => sum,
        }
    }

    /// The means, in the dtype of the model; `None` if nothing was added.
    pub(super) fn means(self, dtype: DType) -> Option<Written<B>> {
        let written = self.written?;
        let device = written.embedding.device();
        let pos = self.counts.len();
        let factors: Vec<f32> = match self.over_positions {
            true => {
                let all = self.counts.iter().sum::<f64>();
                vec![all.recip() as f32; pos]
            }
            false => {
                let each = self
                    .counts
                    .iter()
                    .map(|count| count.max(1.0).recip() as f32);
                each.collect()
            }
        };
        let data = TensorData::new(factors, [1, pos, 1]);
        let factors = Tensor::<B, 3>::from_data(data, (&device, DType::F32));
        let of_heads = |x: Tensor<B, 4>| x * factors.clone().unsqueeze_dim::<4>(1);
        let layers = written.layers.into_iter();
        Some(Written {
            embedding: (written.embedding * factors.clone()).cast(dtype),
            layers: layers
                .map(|(mixed, mlp)| {
                    let mlp = mlp * factors.clone();
                    (of_heads(mixed).cast(dtype), mlp.cast(dtype))
                })
                .collect(),
        })
    }
}

impl<B: Backend> Written<B> {
    /// Zeros in the shape of a run.
    pub(super) fn zeros(
        [layers, heads, d_head, d_model]: [usize; 4],
        pos: usize,
        like: &Tensor<B, 3>,
    ) -> Self {
        let device = like.device();
        let options = || (&device, like.dtype());
        let stream = Tensor::zeros([1, pos, d_model], options());
        let mixed = Tensor::zeros([1, heads, pos, d_head], options());
        Self {
            layers: vec![(mixed, stream.clone()); layers],
            embedding: stream,
        }
    }

    fn zip(self, other: Self) -> Self {
        let layers = self.layers.into_iter().zip(other.layers);
        Self {
            embedding: self.embedding + other.embedding,
            layers: layers
                .map(|((mixed, mlp), (more_mixed, more_mlp))| (mixed + more_mixed, mlp + more_mlp))
                .collect(),
        }
    }
}
