//! Preparing runs: what the inputs are, what ablated edges carry, and in which parts to compute.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, Mixing, ModelDims, ModelInput, Pass, Tables};

use super::super::runs::{Wiring, first_differences};
use super::super::{CircuitError, EdgeGraph};
use super::CircuitAblation;
use super::ablation::{Streams, Sums, Written};
use super::setting::{Setting, embedded};
use crate::engine::{LogitPositions, Plan, RunOptions, WorldInput};
use crate::methods::attribution::Patching;
use crate::methods::resample_donors;

/// Memory for activations at a time, where no budget is given.
const DEFAULT_BUDGET: u64 = 512 << 20;
const BYTES: u64 = 4;

/// All examples, and what the runs of parts of them start from.
pub(super) struct Prepared<B: Backend, M> {
    pub(super) model: M,
    pub(super) graph: EdgeGraph,
    tables: Tables,
    base: ModelInput<B>,
    ablated: Ablated<B>,
    /// For each example: the first position at which anything differs from the base.
    first: Vec<usize>,
    /// `[batch][unit]`
    logits_at: Vec<Vec<usize>>,
    budget: Option<u64>,
    max_rows: usize,
}

enum Ablated<B: Backend> {
    /// The outputs on other inputs.
    Input(ModelInput<B>),
    /// The same outputs for all examples.
    Written(Written<B>),
    Zero,
}

impl<B: Backend, M: AlignableTransformer<B>> Prepared<B, M> {
    /// - positions: whose logits are read
    pub(super) fn new(
        model: &M,
        patching: &Patching<B>,
        ablation: CircuitAblation,
        positions: &LogitPositions,
        options: &RunOptions,
    ) -> Result<Self, CircuitError> {
        let graph = EdgeGraph::of::<B, M>(model)?;
        let (base, source) = (patching.base(), patching.source());
        check(model, base, positions)?;
        let model = model.clone().no_grad();
        let device = model.device();
        let batch = base.batch();
        let [mut first, lengths] = [vec![0; batch], base.lengths()];
        let max_rows = match options.max_rows {
            Some(0) => {
                return Err(CircuitError::Setting {
                    what: "max_rows",
                    expected: "at least 1",
                    found: "0".to_owned(),
                });
            }
            Some(rows) => rows,
            None => usize::MAX,
        };
        let ablated = match ablation {
            CircuitAblation::Counterfactual => {
                check(&model, source, &LogitPositions::Last)?;
                patching.check()?;
                if let (WorldInput::Tokens(base), WorldInput::Tokens(source)) = (base, source) {
                    first = first_differences(base, source);
                }
                Ablated::Input(input(source, &device)?)
            }
            CircuitAblation::Resample { seed } => {
                let donors = donors(&lengths, seed)?;
                if let WorldInput::Tokens(base) = base
                    && let Ok(others) = base.select(&donors)
                {
                    first = first_differences(base, &others);
                }
                Ablated::Input(chosen(input(base, &device)?, &donors))
            }
            // Means are taken below.
            CircuitAblation::Zero | CircuitAblation::Mean | CircuitAblation::MeanOverPositions => {
                Ablated::Zero
            }
        };
        let layers = model.layout().layers().iter();
        let mut attentions = layers.filter_map(|layer| layer.sublayers().first());
        if !attentions.all(|attention| matches!(attention.mixing(), Mixing::Causal { .. })) {
            first = vec![0; batch];
        }
        let mut prepared = Self {
            base: input(base, &device)?,
            graph,
            tables: options.tables.clone(),
            ablated,
            first,
            logits_at: logits_at(positions, base),
            budget: options.memory_budget,
            max_rows,
            model,
        };
        let over_positions = match ablation {
            CircuitAblation::Mean => false,
            CircuitAblation::MeanOverPositions => true,
            _ => return Ok(prepared),
        };
        let mut sums = Sums::new(base.pos(), over_positions);
        let mut dtype = None;
        for examples in prepared.parts()? {
            let (embedding, pass) = prepared.embedded(&prepared.base, &examples, false);
            dtype.get_or_insert(embedding.dtype());
            let mut streams = Streams::run(&prepared.model, embedding, &pass)?;
            if over_positions {
                let positions = prepared.positions(streams.embedding.dtype())?;
                streams.embedding = streams.embedding - positions;
            }
            sums.add(&streams, &lengths[examples]);
        }
        let means = dtype.and_then(|dtype| Some((sums.means(dtype)?, dtype)));
        let (mut means, dtype) = means.ok_or(CircuitError::Nothing { what: "example" })?;
        if over_positions {
            means.embedding = means.embedding + prepared.positions(dtype)?;
        }
        prepared.ablated = Ablated::Written(means);
        Ok(prepared)
    }

    /// Number of examples.
    pub(super) fn batch(&self) -> usize {
        self.base.dims()[0]
    }

    /// What is embedded where no token is, `[1, pos, d_model]`.
    fn positions(&self, dtype: DType) -> Result<Tensor<B, 3>, CircuitError> {
        let [_batch, pos] = self.base.dims();
        let wiring = Wiring::<B, M>::of(&self.model)?;
        Ok(wiring.positions(pos, dtype, &self.tables).detach())
    }

    /// An input's embedding for some of the examples, and a pass over them.
    fn embedded(
        &self,
        input: &ModelInput<B>,
        examples: &Range<usize>,
        keeping: bool,
    ) -> (Tensor<B, 3>, Pass<B>) {
        let (start, count) = (examples.start, examples.len());
        let input = match input {
            ModelInput::Tokens(tokens) => {
                ModelInput::Tokens(tokens.clone().narrow(0, start, count))
            }
            ModelInput::Features(x) => ModelInput::Features(x.clone().narrow(0, start, count)),
        };
        let [_batch, pos] = input.dims();
        let embedding = embedded(&self.model, input, &self.tables).detach();
        let pass = Pass::new(pos, &embedding.device(), &self.tables);
        match keeping {
            true => (embedding, pass.keeping_keys_values()),
            false => (embedding, pass),
        }
    }

    /// What runs of some of the examples have in common.
    pub(super) fn setting(&self, examples: Range<usize>) -> Result<Setting<B, M>, CircuitError> {
        let logits_at = self.logits_at[examples.clone()].to_vec();
        let starts = self.first[examples.clone()].iter();
        let first = starts.chain(logits_at.iter().flatten()).min();
        let first = first.copied().unwrap_or(0);
        let (embedding, pass) = self.embedded(&self.base, &examples, false);
        let [batch, pos, d_model] = embedding.dims();
        let ablated = match &self.ablated {
            Ablated::Input(source) => {
                let (embedding, pass) = self.embedded(source, &examples, first > 0);
                Streams::run(&self.model, embedding, &pass)?
            }
            Ablated::Written(written) => Streams::of_written(&self.model, written, batch, &pass)?,
            Ablated::Zero => {
                let dims = self.model.dims();
                let sizes = [dims.layers, dims.heads, dims.d_head, d_model];
                let mut zeros = Written::zeros(sizes, pos, &embedding);
                zeros.embedding = self.positions(embedding.dtype())?;
                Streams::of_written(&self.model, &zeros, batch, &pass)?
            }
        };
        Ok(Setting {
            model: self.model.clone(),
            graph: self.graph.clone(),
            tables: self.tables.clone(),
            embedding,
            ablated,
            first,
            logits_at,
        })
    }

    /// Parts of the examples that fit the budget, for one circuit at a time.
    pub(super) fn parts(&self) -> Result<Vec<Range<usize>>, CircuitError> {
        let batch = self.batch();
        let needed = self.example_bytes() + self.row_bytes();
        let at_once = match self.budget {
            Some(budget) if budget < needed => {
                return Err(CircuitError::CircuitMemory { needed, budget });
            }
            budget => budget.unwrap_or(DEFAULT_BUDGET) / needed,
        };
        let at_once = usize::try_from(at_once).unwrap_or(usize::MAX);
        let at_once = at_once.min(self.max_rows).clamp(1, batch.max(1));
        // Parts of the same size.
        let at_once = batch.div_ceil(batch.div_ceil(at_once).max(1)).max(1);
        let starts = (0..batch).step_by(at_once);
        Ok(starts
            .map(|start| start..batch.min(start + at_once))
            .collect())
    }

    /// How many circuits can be evaluated at a time on so many examples.
    pub(super) fn circuits_at_once(&self, examples: usize) -> usize {
        let budget = self.budget.unwrap_or(DEFAULT_BUDGET);
        let left = budget.saturating_sub(examples as u64 * self.example_bytes());
        let by_memory = left / (examples as u64 * self.row_bytes()).max(1);
        let by_memory = usize::try_from(by_memory).unwrap_or(usize::MAX);
        by_memory.min(self.max_rows / examples.max(1)).max(1)
    }

    /// Bytes of what all circuits share of one example: for each layer three streams, the mixed
    /// values and, where the beginning is skipped, keys and values.
    fn example_bytes(&self) -> u64 {
        let [_batch, pos] = self.base.dims();
        let dims = self.model.dims();
        let of_layer = 4 * dims.d_model + (dims.heads + 2 * dims.kv_heads) * dims.d_head;
        BYTES * (pos * (dims.layers * of_layer + 2 * dims.d_model)) as u64
    }

    /// Bytes of one example of one circuit: what all writers have written, once as written and
    /// once as one matrix, and what the attention with most inputs, or the MLP, computes from it.
    fn row_bytes(&self) -> u64 {
        let [_batch, pos] = self.base.dims();
        let dims = self.model.dims();
        let inputs = 3 * dims.heads * if dims.post_norms { 3 } else { 2 };
        let streams = 2 * self.graph.writers().len() + inputs + dims.heads + 8;
        BYTES * (pos * (streams * dims.d_model + of_sublayer(dims, pos))) as u64
    }
}

/// Numbers that a position of the largest sublayer computes beside streams.
fn of_sublayer(dims: &ModelDims, pos: usize) -> usize {
    let mlp = dims.d_mlp * if dims.gated_mlp { 4 } else { 3 };
    let head = 6 * dims.d_head + 3 * pos;
    mlp.max(head)
}

/// Checks that the model can read an input, and that it has the positions.
fn check<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    input: &WorldInput<B>,
    positions: &LogitPositions,
) -> Result<(), CircuitError> {
    let mut plan = Plan::new();
    let input = plan.input(input.clone());
    let world = plan.world(input, []);
    plan.read_logits(world, positions.clone());
    plan.explain(model)?;
    Ok(())
}

/// What the model reads.
fn input<B: Backend>(
    input: &WorldInput<B>,
    device: &B::Device,
) -> Result<ModelInput<B>, CircuitError> {
    match input {
        WorldInput::Tokens(tokens) => Ok(ModelInput::Tokens(tokens.to_tensor(device))),
        WorldInput::Features(features) => Ok(ModelInput::Features(features.clone())),
        WorldInput::Resumed(_) | WorldInput::Continued(_) => Err(CircuitError::NotWhole),
    }
}

fn chosen<B: Backend>(input: ModelInput<B>, examples: &[usize]) -> ModelInput<B> {
    let indices: Vec<i64> = examples.iter().map(|example| *example as i64).collect();
    let count = indices.len();
    let indices = TensorData::new(indices, [count]);
    let indices = Tensor::<B, 1, Int>::from_data(indices, &input.device());
    match input {
        ModelInput::Tokens(tokens) => ModelInput::Tokens(tokens.select(0, indices)),
        ModelInput::Features(features) => ModelInput::Features(features.select(0, indices)),
    }
}

/// For each example, another one of the same length.
fn donors(lengths: &[usize], seed: u64) -> Result<Vec<usize>, CircuitError> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (example, length) in lengths.iter().enumerate() {
        groups.entry(*length).or_default().push(example);
    }
    let mut donors = vec![0; lengths.len()];
    for (length, group) in groups {
        let drawn = resample_donors(group.len(), seed).map_err(|_| CircuitError::NoDonor {
            example: group[0],
            length,
        })?;
        for (example, donor) in group.iter().zip(drawn) {
            donors[*example] = group[donor];
        }
    }
    Ok(donors)
}

/// `[batch][unit]`
fn logits_at<B: Backend>(positions: &LogitPositions, input: &WorldInput<B>) -> Vec<Vec<usize>> {
    let pos = input.pos();
    let lengths = input.lengths();
    match positions {
        LogitPositions::All => vec![(0..pos).collect(); lengths.len()],
        LogitPositions::Last => lengths.iter().map(|length| vec![length - 1]).collect(),
        LogitPositions::Each(each) => each.clone(),
    }
}
