//! Direct logit attribution: a logit as a sum over what has been added to the residual stream.

use std::fmt;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{
    AlignableTransformer, ByHead, Component, Readout, Site, SublayerKind, SublayerOutput,
};

use super::LensError;
use super::attention::check_heads;
use crate::engine::{
    LogitPositions, Plan, ReadId, Results, RunOptions, Units, WorldId, WorldInput, read_numbers,
};
use crate::interventions::VanillaIntervention;

/// What is taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogitTarget {
    /// The logit of a token: one for each example, or one for all.
    Logit(Vec<u32>),
    /// By how much the logit of a token exceeds that of another.
    Difference(Vec<u32>, Vec<u32>),
}

/// A part of a logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogitPart {
    /// The embedding of the token, and of its position where the model has one.
    Embedding,
    /// A head.
    Head {
        /// The layer.
        layer: usize,
        /// The head.
        head: usize,
    },
    /// What an attention adds beside its heads: the bias of its output projection, and the rounding
    /// of their sum. For a model whose heads cannot be told apart, the whole attention.
    Attention {
        /// The layer.
        layer: usize,
    },
    /// An MLP, with its bias.
    Mlp {
        /// The layer.
        layer: usize,
    },
    /// Another sublayer.
    Sublayer {
        /// The layer.
        layer: usize,
        /// Its index in the layer.
        sublayer: usize,
    },
    /// The bias of the norm after a sublayer.
    PostNormBias {
        /// The layer.
        layer: usize,
        /// Index of the sublayer.
        sublayer: usize,
    },
    /// The bias of the final norm.
    FinalNormBias,
    /// The bias of the unembedding.
    UnembeddingBias,
}

impl fmt::Display for LogitPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Head { layer, head } => write!(f, "head {layer}.{head}"),
            Self::Attention { layer } => write!(f, "attention {layer}"),
            Self::Mlp { layer } => write!(f, "mlp {layer}"),
            Self::Sublayer { layer, sublayer } => write!(f, "layer {layer}, sublayer {sublayer}"),
            Self::PostNormBias { layer, sublayer } => {
                write!(
                    f,
                    "bias of the norm after layer {layer}, sublayer {sublayer}"
                )
            }
            Self::FinalNormBias => f.write_str("bias of the final norm"),
            Self::UnembeddingBias => f.write_str("bias of the unembedding"),
        }
    }
}

/// A logit, or a difference of two, as a sum.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectLogits {
    /// The parts.
    pub rows: Vec<LogitRow>,
    /// `[example][unit]`: what they sum to, computed by the model's own norm. If the model has a
    /// [soft cap](Self::soft_cap), the logit before it.
    pub total: Vec<Vec<f64>>,
    /// The model's logits are `cap · tanh(logit / cap)` of these. The cap changes neither the sign
    /// nor the order of logits, and is not linear, so it is not taken apart: cap each logit's own
    /// [total](Self::total).
    pub soft_cap: Option<f64>,
}

/// What one part adds.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitRow {
    /// The part.
    pub part: LogitPart,
    /// `[example][unit]`
    pub values: Vec<Vec<f64>>,
}

impl DirectLogits {
    /// `[example][unit]`: the sum of the parts. It differs from the [total](Self::total) only by
    /// rounding; in a model that runs in bf16, that of each sum in the residual stream.
    pub fn sums(&self) -> Vec<Vec<f64>> {
        let mut sums: Vec<Vec<f64>> = self.total.iter().map(|row| vec![0.0; row.len()]).collect();
        for row in &self.rows {
            for (sums, values) in sums.iter_mut().zip(&row.values) {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        sums
    }
}

/// What a head's part of a logit owes to each position that it attends to.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadSources {
    /// The layer.
    pub layer: usize,
    /// The head.
    pub head: usize,
    /// `[example][unit][k_pos]`. The sum over positions is the head's row in [`DirectLogits`].
    pub values: Vec<Vec<Vec<f64>>>,
}

/// Takes logits apart into what the embedding, each head, each MLP and each bias has added to the
/// residual stream: direct logit attribution (Elhage et al. 2021; Nanda's TransformerLens).
///
/// The rows sum to the logit. Norms are taken as linear, each at its actual input: its scale is
/// that of the run, separately for each position, and centring is part of every row. That holds for
/// the final norm, and for norms after attention and MLP (Gemma 2 and 3, OLMo 2), whose input is
/// the sum of the heads. A soft cap on logits is left on: see [`DirectLogits::soft_cap`].
///
/// # When it misleads
/// See the [module](super): these are direct effects. The scale of a norm is shared: a part that
/// makes the stream longer makes all others' rows smaller, and no row says so.
///
/// # Errors
/// If the model does not say how logits follow from its stream, or its layers do not add to it; if
/// the positions, tokens or the input do not fit the model; or if the run is not finite.
pub fn direct_logits<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    input: impl Into<WorldInput<B>>,
    positions: &LogitPositions,
    target: &LogitTarget,
    options: &RunOptions,
) -> Result<DirectLogits, LensError> {
    let input = input.into();
    let streams = Streams::new(model, &input, positions, target)?;
    let sublayers = streams.sublayers()?;
    let mut plan = streams.plan;
    let mut reads = Vec::new();
    for own in &sublayers {
        let mixed = match own.heads {
            true => Some(plan.read(
                streams.world,
                Site::Block(own.layer, Component::AttentionValueOutput),
                streams.units.clone(),
            )),
            false => None,
        };
        let output = plan.read(streams.world, own.site, streams.units.clone());
        reads.push((mixed, output));
    }
    let embedding = plan.read(streams.world, Site::Embedding, streams.units.clone());
    let normed = plan.read(streams.world, Site::FinalNorm, streams.units.clone());
    let results = plan.run_with(model, &[VanillaIntervention; 0], options)?;

    let ends = streams.ends.at(&results);
    let mut parts = vec![(
        LogitPart::Embedding,
        dot(results.get(embedding), &ends.stream),
    )];
    let mut sums = Vec::new();
    for (own, (mixed, output)) in sublayers.iter().zip(reads) {
        let Sublayer {
            layer, sublayer, ..
        } = *own;
        let output = results.get(output);
        let direction = match streams.readout.post_norm(layer, sublayer) {
            Some(norm) => norm.pulled_back(ends.stream.clone(), output.clone()),
            None => ends.stream.clone(),
        };
        let whole = dot(output, &direction);
        let heads = mixed.map(|mixed| results.get(mixed)).zip(streams.by_head);
        let rest = match own.kind {
            SublayerKind::Attention => LogitPart::Attention { layer },
            SublayerKind::Mlp => LogitPart::Mlp { layer },
            SublayerKind::Other => LogitPart::Sublayer { layer, sublayer },
        };
        if let Some((mixed, by_head)) = heads {
            let count = model.dims().heads;
            let [_batch, _unit, width] = mixed.dims();
            let d_head = width / count;
            for head in 0..count {
                let own = mixed.clone().narrow(2, head * d_head, d_head);
                let written = by_head.head_output(layer, head, own);
                parts.push((LogitPart::Head { layer, head }, dot(written, &direction)));
            }
            // What is left of the whole, on the host.
            sums.push((parts.len(), count));
        }
        parts.push((rest, whole));
        let bias = streams.readout.post_norm(layer, sublayer);
        if let Some(bias) = bias.and_then(|norm| norm.bias.as_ref()) {
            let part = LogitPart::PostNormBias { layer, sublayer };
            parts.push((part, dot(bias.val().unsqueeze(), &ends.stream)));
        }
    }
    if let Some(bias) = &streams.readout.last_norm().bias {
        let part = LogitPart::FinalNormBias;
        parts.push((part, dot(bias.val().unsqueeze(), &ends.output)));
    }
    let bias = streams.bias.clone();
    let total = dot(results.get(normed), &ends.output);
    let total = match &bias {
        Some(bias) => total + bias.clone(),
        None => total,
    };
    if let Some(bias) = bias {
        parts.push((LogitPart::UnembeddingBias, bias.expand(total.dims())));
    }

    let [batch, unit] = total.dims();
    let tensors = parts.iter().map(|(_, values)| values.clone());
    let tensors = tensors.chain([total]).map(|it| it.reshape([batch * unit]));
    let numbers = read_numbers(Tensor::cat(tensors.collect(), 0))?;
    plan.check_finite(&numbers, model, &[VanillaIntervention; 0], options)?;
    let mut rows: Vec<Vec<f64>> = numbers.chunks(batch * unit).map(<[f64]>::to_vec).collect();
    for (whole, heads) in sums {
        let (before, from_whole) = rows.split_at_mut(whole);
        for head in &before[whole - heads..] {
            for (rest, value) in from_whole[0].iter_mut().zip(head) {
                *rest -= value;
            }
        }
    }
    let by_example = |row: &[f64]| row.chunks(unit).map(<[f64]>::to_vec).collect::<Vec<_>>();
    let total = rows.pop().map(|row| by_example(&row)).unwrap_or_default();
    let rows = parts.iter().zip(&rows).map(|((part, _), row)| LogitRow {
        part: *part,
        values: by_example(row),
    });
    Ok(DirectLogits {
        rows: rows.collect(),
        total,
        soft_cap: streams.readout.logit_cap(),
    })
}

/// What each of these heads' parts of a logit owes to the positions that the head attends to: the
/// attention weight of a position times what the head would write if it saw this position alone.
///
/// - heads: layers and heads
///
/// # When it misleads
/// A position's residual holds what earlier layers have brought there, so a head that reads a
/// position need not read its token.
///
/// # Errors
/// As [`direct_logits`], or if the model has no such head.
pub fn head_sources<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    input: impl Into<WorldInput<B>>,
    positions: &LogitPositions,
    target: &LogitTarget,
    heads: &[(usize, usize)],
    options: &RunOptions,
) -> Result<Vec<HeadSources>, LensError> {
    let input = input.into();
    let streams = Streams::new(model, &input, positions, target)?;
    let by_head = streams.by_head.ok_or(LensError::NoHeads)?;
    check_heads::<B, M>(model, heads)?;
    let count = model.dims().heads;
    let sublayers = streams.sublayers()?;
    let mut plan = streams.plan;
    let mut reads = Vec::new();
    for (layer, head) in heads {
        let own = sublayers
            .iter()
            .find(|own| own.layer == *layer && own.heads);
        let own = own.ok_or(LensError::NoHeads)?;
        let kv_head = head / (count / model.dims().kv_heads);
        let weights = Units::positions(streams.units.positions.clone()).of_head(*head);
        let site = |component| Site::Block(*layer, component);
        reads.push([
            plan.read(streams.world, site(Component::AttentionWeights), weights),
            plan.read(
                streams.world,
                site(Component::ValueOutput),
                Units::head(kv_head),
            ),
            plan.read(streams.world, own.site, streams.units.clone()),
        ]);
    }
    let results = plan.run_with(model, &[VanillaIntervention; 0], options)?;
    let ends = streams.ends.at(&results);
    let mut found = Vec::new();
    for ((layer, head), reads) in heads.iter().zip(reads) {
        let [weights, values, output] = reads.map(|read| results.get(read));
        let own = sublayers
            .iter()
            .find(|own| own.layer == *layer && own.heads);
        let own = own.ok_or(LensError::NoHeads)?;
        let direction = match streams.readout.post_norm(*layer, own.sublayer) {
            Some(norm) => norm.pulled_back(ends.stream.clone(), output),
            None => ends.stream.clone(),
        };
        let written = by_head.head_output(*layer, *head, values); // [batch, k_pos, d_model]
        let written = written.cast(DType::F32).swap_dims(1, 2);
        let alone = direction.matmul(written); // [batch, unit, k_pos]
        let parts = weights.cast(DType::F32) * alone;
        let [_batch, unit, k_pos] = parts.dims();
        let numbers = read_numbers(parts)?;
        plan.check_finite(&numbers, model, &[VanillaIntervention; 0], options)?;
        let examples = numbers.chunks(unit * k_pos);
        let examples = examples.map(|row| row.chunks(k_pos).map(<[f64]>::to_vec).collect());
        found.push(HeadSources {
            layer: *layer,
            head: *head,
            values: examples.collect(),
        });
    }
    Ok(found)
}

/// A sublayer that adds to the stream.
#[derive(Clone, Copy)]
struct Sublayer {
    layer: usize,
    sublayer: usize,
    kind: SublayerKind,
    /// Its output, before any norm.
    site: Site,
    /// Whether its heads are told apart.
    heads: bool,
}

/// A run whose logits are taken apart.
struct Streams<'a, B: Backend, M> {
    model: &'a M,
    readout: &'a dyn Readout<B>,
    by_head: Option<&'a dyn ByHead<B>>,
    plan: Plan<B>,
    world: WorldId,
    units: Units,
    ends: Ends<'a, B>,
    /// `[batch, 1]`
    bias: Option<Tensor<B, 2>>,
}

/// Columns of the unembedding, `[batch, 1, d_model]`, and their biases, `[batch, 1]`.
type Columns<B> = (Tensor<B, 3>, Option<Tensor<B, 2>>);

/// How the last stream becomes a logit.
struct Ends<'a, B: Backend> {
    readout: &'a dyn Readout<B>,
    /// The direction after the norm, `[batch, 1, d_model]`.
    columns: Tensor<B, 3>,
    /// The stream before the norm.
    last: ReadId,
}

/// Directions whose products with vectors are their parts of the logit, `[batch, unit, d_model]`.
struct Directions<B: Backend> {
    /// After the final norm.
    output: Tensor<B, 3>,
    /// In the residual stream.
    stream: Tensor<B, 3>,
}

impl<B: Backend> Ends<'_, B> {
    fn at(&self, results: &Results<B>) -> Directions<B> {
        let last = results.get(self.last);
        let output = self.columns.clone().expand(last.dims());
        Directions {
            stream: self.readout.last_norm().pulled_back(output.clone(), last),
            output,
        }
    }
}

impl<'a, B: Backend, M: AlignableTransformer<B>> Streams<'a, B, M> {
    fn new(
        model: &'a M,
        input: &WorldInput<B>,
        positions: &LogitPositions,
        target: &LogitTarget,
    ) -> Result<Self, LensError> {
        let readout = model.readout().ok_or(LensError::NoReadout)?;
        let (batch, vocab) = (input.batch(), model.dims().vocab);
        let columns = |what: &'static str, tokens: &[u32]| -> Result<Columns<B>, LensError> {
            let tokens = of_examples(what, tokens, batch, vocab)?;
            let (columns, bias) = readout.unembedding(&tokens);
            let columns = columns.cast(DType::F32).unsqueeze_dim::<3>(1);
            let bias = bias.map(|bias| bias.cast(DType::F32).unsqueeze_dim::<2>(1));
            Ok((columns, bias))
        };
        let (columns, bias) = match target {
            LogitTarget::Logit(tokens) => columns("tokens", tokens)?,
            LogitTarget::Difference(tokens, others) => {
                let (token, bias) = columns("tokens", tokens)?;
                let (other, other_bias) = columns("other tokens", others)?;
                let bias = bias.zip(other_bias).map(|(bias, other)| bias - other);
                (token - other, bias)
            }
        };
        let layout = model.layout();
        let layer = layout.layers().len().saturating_sub(1);
        let last = layout.layers().last().and_then(|it| it.sublayers().last());
        let last = last.and_then(|sublayer| sublayer.exit());
        let last = last.ok_or(LensError::NotResidual { layer })?;
        let units = positions.units(&input.lengths());
        let mut plan = Plan::new();
        let input = plan.input(input.clone());
        let world = plan.world(input, []);
        let last = plan.read(world, Site::Block(layer, last), units.clone());
        Ok(Self {
            model,
            readout,
            by_head: model.by_head(),
            plan,
            world,
            units,
            ends: Ends {
                readout,
                columns,
                last,
            },
            bias,
        })
    }

    /// All sublayers, in order.
    fn sublayers(&self) -> Result<Vec<Sublayer>, LensError> {
        let mut found = Vec::new();
        for (layer, layout) in self.model.layout().layers().iter().enumerate() {
            for (index, sublayer) in layout.sublayers().iter().enumerate() {
                let SublayerOutput::Adds(added) = sublayer.output() else {
                    return Err(LensError::NotResidual { layer });
                };
                let before_norm = match sublayer.kind() {
                    SublayerKind::Attention => Some(Component::AttentionOutput),
                    SublayerKind::Mlp => Some(Component::MlpOutput),
                    SublayerKind::Other => None,
                };
                let component = match (self.readout.post_norm(layer, index), before_norm) {
                    (Some(_), Some(component)) => component,
                    (Some(_), None) => return Err(LensError::NotResidual { layer }),
                    (None, _) => added,
                };
                found.push(Sublayer {
                    layer,
                    sublayer: index,
                    kind: sublayer.kind(),
                    site: Site::Block(layer, component),
                    heads: sublayer.kind() == SublayerKind::Attention && self.by_head.is_some(),
                });
            }
        }
        Ok(found)
    }
}

/// A token for each example.
fn of_examples(
    what: &'static str,
    tokens: &[u32],
    batch: usize,
    vocab: usize,
) -> Result<Vec<u32>, LensError> {
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
        return Err(LensError::Tokens {
            what,
            expected: format!("ids below {vocab}"),
            found: token.to_string(),
        });
    }
    match tokens {
        [token] => Ok(vec![*token; batch]),
        _ if tokens.len() == batch => Ok(tokens.to_vec()),
        _ => Err(LensError::Tokens {
            what,
            expected: format!("one for each of {batch} examples, or one for all"),
            found: tokens.len().to_string(),
        }),
    }
}

/// The product of vectors with directions, `[batch, unit]`.
fn dot<B: Backend>(x: Tensor<B, 3>, direction: &Tensor<B, 3>) -> Tensor<B, 2> {
    let product = x.cast(DType::F32) * direction.clone();
    product.sum_dim(2).squeeze_dim(2)
}
