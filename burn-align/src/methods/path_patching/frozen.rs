//! Path patching with everything between sender and receiver frozen. The receiver's input then
//! changes by exactly the change in the sender's output, so no run is needed for it.
//!
//! Where the sum of the heads goes through a norm (Gemma 2 and 3, OLMo 2), what heads add changes
//! by `norm(Σ with their change) - norm(Σ)`: not by a sum over them. The norm is run once for the
//! heads of a layer that send together.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, ByHead, Component, ModelDims, Site, TokenBatch};

use super::sender_receiver::reaches;
use super::{PathEffects, PathPatch, ReceiverInput, Sender, attention};
use crate::engine::{
    ConstantId, Edit, Indices, LogitPositions, Operand, Plan, ReadId, RunOptions, Units, WorldId,
};
use crate::methods::sweep::to_rows;
use crate::paths::{Node, PathError, Worlds};

/// Most rows to unembed together: a few hundred are as fast as thousands, and not all of their
/// logits need to be in memory.
const ROWS: usize = 256;

pub(super) fn run<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    inputs: [&TokenBatch; 2],
    patches: &[PathPatch],
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<PathEffects, PathError> {
    let (direct, others): (Vec<usize>, Vec<usize>) =
        (0..patches.len()).partition(|patch| patches[*patch].is_direct());
    // Logits read the last position only.
    let positions = match others.is_empty() {
        true => last_of(inputs[0]).positions,
        false => Indices::All,
    };
    let clean = Clean::run(model, inputs, patches, positions, options)?;
    let mean = |logits: &Tensor<B, 2>| metric(logits.clone()).mean();
    let ends = to_rows(clean.logits.iter().map(mean).collect(), 2)?.remove(0);
    clean
        .plan
        .check_finite(&ends, model, &Worlds::interventions(), options)?;

    let changes = clean.changes(model, patches)?;
    let mut values = direct_effects(model, &clean, &direct, patches, &changes, &metric);
    let (plan, more) = effects(model, &clean, &others, patches, &changes, &metric, options)?;
    values.extend(more);
    let values = to_rows(values, patches.len().max(1))?.pop();
    plan.check_finite(
        values.iter().flatten(),
        model,
        &Worlds::interventions(),
        options,
    )?;
    let order = direct.into_iter().chain(others);
    let mut patched = vec![0.0; patches.len()];
    for (patch, value) in order.zip(values.unwrap_or_default()) {
        patched[patch] = value;
    }
    Ok(PathEffects {
        base: ends[0],
        source: ends[1],
        patched,
    })
}

/// What is read from the runs on base and source.
pub(super) struct Clean<'a, B: Backend> {
    plan: Plan<B>,
    pub(super) base: &'a TokenBatch,
    /// The first position at which base and source differ in any example.
    first: usize,
    /// At the last token, `[batch, vocab]`.
    logits: [Tensor<B, 2>; 2],
    /// The base's final residual stream at the last token, `[batch, 1, d_model]`.
    last: Tensor<B, 3>,
    /// The activations that senders' outputs are computed from, `[batch, unit, d_site]`, and their
    /// positions.
    outputs: HashMap<Site, [Tensor<B, 3>; 2]>,
    positions: Indices,
    /// What the attention adds to the stream if these heads come from the source, where their sum
    /// goes through a norm, `[batch, unit, d_model]`.
    normed: HashMap<Vec<&'a Sender>, Tensor<B, 3>>,
    /// The base's residual stream before each layer whose attention receives,
    /// `[batch, pos, d_model]`.
    pub(super) streams: HashMap<usize, Tensor<B, 3>>,
    d_head: usize,
}

impl<'a, B: Backend> Clean<'a, B> {
    fn run<M: AlignableTransformer<B>>(
        model: &M,
        inputs: [&'a TokenBatch; 2],
        patches: &'a [PathPatch],
        positions: Indices,
        options: &RunOptions,
    ) -> Result<Self, PathError> {
        let dims = model.dims();
        let mut plan = Plan::new();
        let ids = inputs.map(|tokens| plan.tokens(tokens));
        let worlds = ids.map(|input| plan.world(input, []));
        let logits = worlds.map(|world| plan.read_logits(world, LogitPositions::Last));
        let last = plan.read(worlds[0], dims.last_stream(), last_of(inputs[0]));
        let senders = patches.iter().flat_map(|patch| &patch.senders);
        let sites: BTreeSet<Site> = senders
            .map(|sender| taken_from(sender.node, dims))
            .collect();
        let reads: Vec<(Site, [ReadId; 2])> = sites
            .into_iter()
            .map(|site| {
                let units = Units::positions(positions.clone());
                (
                    site,
                    worlds.map(|world| plan.read(world, site, units.clone())),
                )
            })
            .collect();
        let mut normed: HashMap<Vec<&Sender>, ReadId> = HashMap::new();
        let groups = patches
            .iter()
            .flat_map(|patch| groups(&patch.senders, dims));
        for group in groups.filter(|group| is_normed(group, dims)) {
            if normed.contains_key(&group) {
                continue;
            }
            let edits = group
                .iter()
                .filter_map(|sender| from_source(sender, worlds[1]));
            let world = plan.world(ids[0], edits.collect::<Vec<_>>());
            let units = Units::positions(positions.clone());
            let read = plan.read(world, taken_from(group[0].node, dims), units);
            normed.insert(group, read);
        }
        let layers: BTreeSet<usize> = patches.iter().filter_map(attention::layer_of).collect();
        let streams: Vec<(usize, ReadId)> = layers
            .into_iter()
            .map(|layer| {
                let site = Site::Block(layer, Component::BlockInput);
                (layer, plan.read(worlds[0], site, Units::ALL))
            })
            .collect();
        let results = plan.run_with(model, &Worlds::interventions(), options)?;
        let outputs = reads.into_iter();
        Ok(Self {
            base: inputs[0],
            first: first_difference(inputs),
            logits: logits.map(|read| results.get(read).squeeze_dim(1)),
            last: results.get(last),
            outputs: outputs
                .map(|(site, reads)| (site, reads.map(|read| results.get(read))))
                .collect(),
            positions,
            normed: normed
                .into_iter()
                .map(|(group, read)| (group, results.get(read)))
                .collect(),
            streams: streams
                .into_iter()
                .map(|(layer, read)| (layer, results.get(read)))
                .collect(),
            d_head: dims.d_head,
            plan,
        })
    }

    /// The positions from `first` on, if they are the same for all examples; otherwise all.
    fn from(&self, first: usize) -> Units {
        match self.skips(first) {
            true => Units::positions(Indices::Same((first..self.base.pos()).collect())),
            false => Units::ALL,
        }
    }

    /// The part at [`from`](Self::from) of a change at all positions.
    fn part(&self, change: Tensor<B, 3>, first: usize) -> Tensor<B, 3> {
        let pos = self.base.pos();
        match self.skips(first) {
            true => change.narrow(1, first, pos - first),
            false => change,
        }
    }

    fn skips(&self, first: usize) -> bool {
        let pos = self.base.pos();
        (1..pos).contains(&first) && self.base.lengths().iter().all(|length| *length == pos)
    }

    /// What the senders of all patches change.
    fn changes<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        patches: &'a [PathPatch],
    ) -> Result<Changes<'a, B>, PathError> {
        let dims = model.dims().clone();
        let mut of_group: HashMap<Vec<&'a Sender>, Tensor<B, 3>> = HashMap::new();
        for group in patches
            .iter()
            .flat_map(|patch| groups(&patch.senders, &dims))
        {
            if let Entry::Vacant(unknown) = of_group.entry(group) {
                let change = self.difference(model, unknown.key())?;
                unknown.insert(change);
            }
        }
        Ok(Changes { of_group, dims })
    }

    /// The change in the output of a group of senders, `[batch, unit, d_model]`.
    fn difference<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        group: &[&Sender],
    ) -> Result<Tensor<B, 3>, PathError> {
        let sender = group[0];
        let [base, source] = &self.outputs[&taken_from(sender.node, model.dims())];
        if let Some(normed) = self.normed.get(group) {
            return Ok(normed.clone() - base.clone());
        }
        let difference = match sender.node {
            Node::Head { layer, head } => {
                let own = |x: &Tensor<B, 3>| x.clone().narrow(2, head * self.d_head, self.d_head);
                let mixed = own(source) - own(base); // [batch, unit, d_head]
                by_head(model)?.head_output(layer, head, mixed)
            }
            _ => source.clone() - base.clone(),
        };
        Ok(match &sender.positions {
            Indices::All => difference,
            positions => {
                let mask = self.mask(positions, &difference);
                difference * mask
            }
        })
    }

    /// 1 at a sender's positions, 0 at others, `[batch, unit, 1]`.
    pub(super) fn mask(&self, wanted: &Indices, like: &Tensor<B, 3>) -> Tensor<B, 3> {
        let (batch, pos) = (self.base.batch(), self.base.pos());
        let units = self.positions.count(pos);
        let mut mask = Vec::with_capacity(batch * units);
        for example in 0..batch {
            let wanted = wanted.of(example, pos);
            let units = self.positions.of(example, pos).into_iter();
            mask.extend(units.map(|position| f32::from(u8::from(wanted.contains(&position)))));
        }
        let data = TensorData::new(mask, [batch, units, 1]);
        Tensor::<B, 3>::from_data(data, (&like.device(), DType::F32)).cast(like.dtype())
    }
}

/// The first position at which two batches differ in any example.
fn first_difference([base, source]: [&TokenBatch; 2]) -> usize {
    let examples = base.ids().iter().zip(source.ids());
    let firsts = examples.map(|(a, b)| a.iter().zip(b).take_while(|(a, b)| a == b).count());
    firsts.min().unwrap_or(0)
}

/// The activation that a sender's output is computed from.
fn taken_from(node: Node, dims: &ModelDims) -> Site {
    match node {
        Node::Head { layer, .. } if !dims.post_norms => {
            Site::Block(layer, Component::AttentionValueOutput)
        }
        Node::Head { layer, .. } => Node::Attention { layer }.output(dims),
        node => node.output(dims),
    }
}

/// The senders of a patch, in groups whose changes add up: each by itself, but heads of one layer
/// together if their sum goes through a norm.
fn groups<'s>(
    senders: impl IntoIterator<Item = &'s Sender>,
    dims: &ModelDims,
) -> Vec<Vec<&'s Sender>> {
    let mut groups = Vec::new();
    let mut by_layer: BTreeMap<usize, Vec<&Sender>> = BTreeMap::new();
    for sender in senders {
        match sender.node {
            Node::Head { layer, .. } if dims.post_norms => {
                by_layer.entry(layer).or_default().push(sender);
            }
            _ => groups.push(vec![sender]),
        }
    }
    groups.extend(by_layer.into_values());
    groups
}

/// Whether a group is of heads whose sum goes through a norm.
fn is_normed(group: &[&Sender], dims: &ModelDims) -> bool {
    dims.post_norms && matches!(group[0].node, Node::Head { .. })
}

/// The mixed values of a head that sends, from the source.
fn from_source(sender: &Sender, source: WorldId) -> Option<Edit> {
    let Node::Head { layer, head } = sender.node else {
        return None;
    };
    let site = Site::Block(layer, Component::AttentionValueOutput);
    let units = Units::positions(sender.positions.clone()).of_head(head);
    Some(Edit::from_world(source, site, units, Worlds::SWAP))
}

/// The last token of each example.
fn last_of(tokens: &TokenBatch) -> Units {
    LogitPositions::Last.units(&tokens.lengths())
}

/// What senders add to the residual stream of the base, in groups of [`groups`].
pub(super) struct Changes<'a, B: Backend> {
    of_group: HashMap<Vec<&'a Sender>, Tensor<B, 3>>,
    dims: ModelDims,
}

impl<B: Backend> Changes<'_, B> {
    /// The change that senders of a patch make together, `[batch, unit, d_model]`.
    pub(super) fn of(&self, senders: &[&Sender]) -> Tensor<B, 3> {
        let groups = groups(senders.iter().copied(), &self.dims).into_iter();
        let terms = groups.map(|group| self.of_group[&group].clone());
        terms.reduce(|a, b| a + b).expect("checked")
    }
}

/// The patches that only the logits receive: final norm and unembedding of the last position.
fn direct_effects<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    clean: &Clean<'_, B>,
    direct: &[usize],
    patches: &[PathPatch],
    sent: &Changes<'_, B>,
    metric: &impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
) -> Vec<Tensor<B, 1>> {
    let [batch, _one, d_model] = clean.last.dims();
    let lengths = clean.base.lengths();
    let at_last = |x: Tensor<B, 3>| {
        if clean.positions != Indices::All {
            return x;
        }
        let rows = lengths.iter().enumerate();
        let rows = rows.map(|(row, length)| x.clone().narrow(0, row, 1).narrow(1, length - 1, 1));
        Tensor::cat(rows.collect(), 0)
    };
    let mut values = Vec::new();
    for patches_together in direct.chunks((ROWS / batch).max(1)) {
        let rows = patches_together.iter().map(|patch| {
            let senders: Vec<&Sender> = patches[*patch].senders.iter().collect();
            clean.last.clone() + at_last(sent.of(&senders)) // [batch, 1, d_model]
        });
        let count = patches_together.len();
        let x = Tensor::cat(rows.collect(), 0).reshape([1, count * batch, d_model]);
        let x = model.final_norm(x);
        let logits = model.unembed(x).squeeze_dim::<2>(0); // [patch * batch, vocab]
        for patch in 0..count {
            let own = logits.clone().narrow(0, patch * batch, batch);
            values.push(metric(own).mean());
        }
    }
    values
}

/// The patches to other receivers: their inputs are recorded, then patched. Also returns the plan
/// of the patched runs.
fn effects<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    clean: &Clean<'_, B>,
    others: &[usize],
    patches: &[PathPatch],
    sent: &Changes<'_, B>,
    metric: &impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<(Plan<B>, Vec<Tensor<B, 1>>), PathError> {
    let mut plan = Plan::new();
    if others.is_empty() {
        return Ok((plan, Vec::new()));
    }
    let dims = model.dims();
    let input = plan.tokens(clean.base);
    let mut constants: HashMap<Vec<&Sender>, ConstantId> = HashMap::new();
    let mut reads: Vec<ReadId> = Vec::new();
    let mut changes = match dims.post_norms {
        // The sum of the heads goes through a norm: their layer is run.
        true => BTreeMap::new(),
        false => attention::changes(model, clean, others, patches, sent)?,
    };
    for index in others {
        let patch = &patches[*index];
        if let Some(change) = changes.remove(index) {
            let layer = attention::layer_of(patch).expect("it has changed");
            let site = Site::Block(layer, dims.added_by_attention());
            // The first query has only one key to look at, whatever it asks for.
            let first = clean.first.max(usize::from(attention::only_queries(patch)));
            let units = clean.from(first);
            let change = plan.constant(clean.part(change, first));
            let add = Edit::new(site, units, Worlds::ADD, Operand::Constant(change));
            let world = plan.world(input, [add]);
            reads.push(plan.read_logits(world, LogitPositions::Last));
            continue;
        }
        let mut edits = Vec::new();
        for receiver in &patch.receivers {
            let senders = patch.senders.iter();
            let senders: Vec<&Sender> = senders
                .filter(|sender| reaches(sender.node, receiver.input, dims))
                .collect();
            let constant = *constants.entry(senders.clone()).or_insert_with(|| {
                let added = sent.of(&senders);
                plan.constant(clean.part(added, clean.first))
            });
            let add = |site| {
                let operand = Operand::Constant(constant);
                Edit::new(site, clean.from(clean.first), Worlds::ADD, operand)
            };
            let Some((site, head)) = receiver.input.site(dims) else {
                edits.push(add(dims.last_stream()));
                continue;
            };
            let stream = match (receiver.input, site) {
                (ReceiverInput::Mlp { layer }, _) => Site::Block(layer, dims.read_by_mlp()),
                (_, Site::Block(layer, _)) => Site::Block(layer, Component::BlockInput),
                _ => unreachable!("receivers are in blocks"),
            };
            let record = plan.world(input, [add(stream)]);
            let units = Units::positions(receiver.positions.clone());
            let units = match head {
                Some(head) => units.of_head(head),
                None => units,
            };
            edits.push(Edit::from_world(record, site, units, Worlds::SWAP));
        }
        let world = plan.world(input, edits);
        reads.push(plan.read_logits(world, LogitPositions::Last));
    }
    let results = plan.run_with(model, &Worlds::interventions(), options)?;
    let values = reads
        .into_iter()
        .map(|read| metric(results.get(read).squeeze_dim(1)).mean());
    Ok((plan, values.collect()))
}

/// The heads of a model that says what each of them adds.
pub(super) fn by_head<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
) -> Result<&dyn ByHead<B>, PathError> {
    model.by_head().ok_or(PathError::NoHeadOutput)
}
