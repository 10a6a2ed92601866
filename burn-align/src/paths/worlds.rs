//! From streams to worlds of a plan.

use std::collections::{BTreeSet, HashMap};

use burn::tensor::backend::Backend;
use burn_align_models::{Component, ModelDims, Site, TokenBatch};

use super::{Change, HeadInput, Node, PathError, Stream, Value, check_lengths};
use crate::engine::{Edit, Indices, InputId, Operand, Plan, Units, WorldId};
use crate::interventions::{
    AdditionIntervention, BuiltinIntervention, SubtractionIntervention, VanillaIntervention,
};

/// Adds worlds to a plan in which readers see [`Stream`]s.
///
/// A node that computes its output from a stream is a world that joins the pass at the node's layer
/// and leaves it after the node. Equal streams and values share a world.
///
/// Run the plan with [`Worlds::interventions`].
#[derive(Clone, Debug)]
pub struct Worlds {
    dims: ModelDims,
    inputs: Vec<InputId>,
    /// The clean run on each input.
    clean: Vec<WorldId>,
    /// Runs that continue with changed outputs.
    runs: HashMap<Stream, WorldId>,
    /// Runs whose residual stream at a site is what a reader sees.
    readers: HashMap<(Stream, Site), WorldId>,
    /// Runs in which a node computes a value. For a head, next to the other heads of a run.
    values: HashMap<(Node, Value, Option<WorldId>), WorldId>,
}

impl Worlds {
    pub(crate) const SWAP: usize = 0;
    pub(crate) const ADD: usize = 1;
    pub(crate) const SUBTRACT: usize = 2;

    /// Adds the clean run on each input.
    ///
    /// # Errors
    /// If the inputs have different numbers of examples, or different lengths.
    pub fn new<B: Backend>(
        plan: &mut Plan<B>,
        dims: &ModelDims,
        inputs: &[&TokenBatch],
    ) -> Result<Self, PathError> {
        check_lengths(inputs)?;
        let inputs: Vec<InputId> = inputs.iter().map(|tokens| plan.tokens(tokens)).collect();
        let clean = inputs.iter().map(|input| plan.world(*input, []));
        Ok(Self {
            dims: dims.clone(),
            clean: clean.collect(),
            inputs,
            runs: HashMap::new(),
            readers: HashMap::new(),
            values: HashMap::new(),
        })
    }

    /// The interventions that the plan's edits refer to.
    pub fn interventions<B: Backend>() -> [BuiltinIntervention<B>; 3] {
        // In the order of SWAP, ADD and SUBTRACT.
        [
            VanillaIntervention.into(),
            AdditionIntervention.into(),
            SubtractionIntervention.into(),
        ]
    }

    /// The clean run on an input.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn clean(&self, input: usize) -> WorldId {
        self.clean[input]
    }

    /// A world whose logits are computed from this stream.
    ///
    /// # Errors
    /// As [`Stream::check`].
    pub fn logits<B: Backend>(
        &mut self,
        plan: &mut Plan<B>,
        stream: &Stream,
    ) -> Result<WorldId, PathError> {
        stream.check(&self.dims, self.inputs.len())?;
        let last = self.dims.last_stream();
        Ok(self.reader(plan, stream, last))
    }

    /// A world whose residual stream at `site` is this one.
    fn reader<B: Backend>(&mut self, plan: &mut Plan<B>, stream: &Stream, site: Site) -> WorldId {
        if stream.reader_changes().next().is_none() {
            return self.run(plan, stream);
        }
        let key = (stream.clone(), site);
        if let Some(world) = self.readers.get(&key) {
            return *world;
        }
        let edits = self.reader_edits(plan, stream, site);
        let world = plan.world(self.inputs[stream.input], edits);
        self.readers.insert(key, world);
        world
    }

    /// The run underlying a stream, without what only its reader sees.
    fn run<B: Backend>(&mut self, plan: &mut Plan<B>, stream: &Stream) -> WorldId {
        let key = Stream {
            input: stream.input,
            changes: stream.run_changes().cloned().collect(),
        };
        if key.changes.is_empty() {
            return self.clean[stream.input];
        }
        if let Some(world) = self.runs.get(&key) {
            return *world;
        }
        let edits = self.run_edits(plan, stream);
        let world = plan.world(self.inputs[stream.input], edits);
        self.runs.insert(key, world);
        world
    }

    fn run_edits<B: Backend>(&mut self, plan: &mut Plan<B>, stream: &Stream) -> Vec<Edit> {
        let mut edits = Vec::new();
        for change in stream.run_changes() {
            let units = Units::positions(change.positions.clone());
            let world = self.value(plan, change.node, &change.value, None);
            edits.push(match change.node {
                Node::Head { layer, head } => {
                    Edit::from_world(world, mixed(layer), units.of_head(head), Self::SWAP)
                }
                node => Edit::from_world(world, node.output(&self.dims), units, Self::SWAP),
            });
        }
        edits
    }

    /// All edits of a run that make its residual stream at `site` this one.
    fn reader_edits<B: Backend>(
        &mut self,
        plan: &mut Plan<B>,
        stream: &Stream,
        site: Site,
    ) -> Vec<Edit> {
        let mut edits = self.run_edits(plan, stream);
        let run = self.run(plan, stream);
        let mut layers_of_heads = BTreeSet::new();
        for change in stream.reader_changes() {
            if let (Node::Head { layer, .. }, true) = (change.node, self.dims.post_norms) {
                layers_of_heads.insert(layer);
                continue;
            }
            let world = self.value(plan, change.node, &change.value, Some(run));
            // The residual stream is a sum: what the output gains, the stream gains.
            for (world, intervention) in [(world, Self::ADD), (run, Self::SUBTRACT)] {
                edits.push(self.edit(site, change, world, intervention));
            }
        }
        for layer in layers_of_heads {
            let changed = self.changed_heads(plan, stream, layer);
            let output = Node::Attention { layer }.output(&self.dims);
            for (world, intervention) in [(changed, Self::ADD), (run, Self::SUBTRACT)] {
                let operand = Operand::Activation {
                    world,
                    site: output,
                    units: Units::ALL,
                };
                edits.push(Edit::new(site, Units::ALL, intervention, operand));
            }
        }
        edits
    }

    /// A run with all changed heads of a layer that the reader of a stream sees: the sum of the
    /// heads goes through a norm, so what they add to the stream is not the sum of what each adds.
    fn changed_heads<B: Backend>(
        &mut self,
        plan: &mut Plan<B>,
        stream: &Stream,
        layer: usize,
    ) -> WorldId {
        let mut edits = self.run_edits(plan, stream);
        for change in stream.reader_changes() {
            if let Node::Head { layer: own, head } = change.node
                && own == layer
            {
                let world = self.value(plan, change.node, &change.value, None);
                let units = Units::positions(change.positions.clone()).of_head(head);
                edits.push(Edit::from_world(world, mixed(layer), units, Self::SWAP));
            }
        }
        plan.world(self.inputs[stream.input], edits)
    }

    fn edit(&self, site: Site, change: &Change, world: WorldId, intervention: usize) -> Edit {
        let units = Units::positions(change.positions.clone());
        let operand = Operand::Activation {
            world,
            site: change.node.output(&self.dims),
            units: units.clone(),
        };
        Edit::new(site, units, intervention, operand)
    }

    /// A world with this value of a node, at the output of the node. For a head, the value is at
    /// the head's mixed values; if a run is given, it is at the output of the layer's attention,
    /// with the other heads from that run.
    fn value<B: Backend>(
        &mut self,
        plan: &mut Plan<B>,
        node: Node,
        value: &Value,
        run: Option<WorldId>,
    ) -> WorldId {
        let run = run.filter(|_| matches!(node, Node::Head { .. }));
        if let (Value::Clean(input), None) = (value, run) {
            return self.clean[*input];
        }
        let key = (node, value.clone(), run);
        if let Some(world) = self.values.get(&key) {
            return *world;
        }
        let world = match (node, value) {
            (Node::Head { layer, head }, Value::Clean(input)) => {
                let edits = self.other_heads(layer, head, run);
                plan.world(self.inputs[*input], edits)
            }
            (Node::Head { layer, head }, Value::Attention { query, key, value }) => {
                let others = self.other_heads(layer, head, run);
                self.attention(plan, layer, Some(head), [query, key, value], others)
            }
            (Node::Attention { layer }, Value::Attention { query, key, value }) => {
                self.attention(plan, layer, None, [query, key, value], None)
            }
            (Node::Mlp { layer }, Value::Mlp(stream)) => {
                self.reader(plan, stream, Site::Block(layer, self.dims.read_by_mlp()))
            }
            _ => unreachable!("checked before"),
        };
        self.values.insert(key, world);
        world
    }

    /// The other heads of a layer, as they are in a run.
    fn other_heads(&self, layer: usize, head: usize, run: Option<WorldId>) -> Option<Edit> {
        let others: Vec<usize> = (0..self.dims.heads).filter(|h| *h != head).collect();
        let run = run.filter(|_| !others.is_empty())?;
        let units = Units {
            heads: Indices::Same(others),
            positions: Indices::All,
        };
        Some(Edit::from_world(run, mixed(layer), units, Self::SWAP))
    }

    /// A world in which the attention of a layer, or one head of it, reads these streams.
    fn attention<B: Backend>(
        &mut self,
        plan: &mut Plan<B>,
        layer: usize,
        head: Option<usize>,
        streams: [&Stream; 3],
        others: Option<Edit>,
    ) -> WorldId {
        let site = Site::Block(layer, Component::BlockInput);
        // One of the streams is the world's own. Prefer one that is not a clean run.
        let own = streams.iter().rev();
        let own = own.clone().find(|s| s.reader_changes().next().is_some());
        let own = own.unwrap_or(&streams[2]);
        if streams.iter().all(|stream| stream == own) && others.is_none() {
            return self.reader(plan, own, site);
        }
        let mut edits = self.reader_edits(plan, own, site);
        for (input, stream) in HeadInput::ALL.into_iter().zip(streams) {
            if stream == *own {
                continue;
            }
            let world = self.reader(plan, stream, site);
            let [queries, keys] = self.dims.queries_and_keys_by_head();
            let (component, heads_of_one) = match input {
                HeadInput::Query => (queries, 1),
                HeadInput::Key => (keys, self.dims.heads / self.dims.kv_heads),
                HeadInput::Value => (Component::ValueOutput, self.dims.heads / self.dims.kv_heads),
            };
            let units = head.map_or(Units::ALL, |head| Units::head(head / heads_of_one));
            let site = Site::Block(layer, component);
            edits.push(Edit::from_world(world, site, units, Self::SWAP));
        }
        edits.extend(others);
        plan.world(self.inputs[own.input], edits)
    }
}

/// The mixed values of a layer's heads.
fn mixed(layer: usize) -> Site {
    Site::Block(layer, Component::AttentionValueOutput)
}
