//! Runs of the base in each of which one edge is patched.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, Cx, NoTap, Pass, Site};

use super::super::changes::{Written, narrowed};
use super::super::runs::{Streams, Wiring, last_stream};
use super::super::{CircuitError, EdgeGraph, Reader};
use crate::engine::{Edit, Operand, Plan, RunOptions, Units, WorldInput, read_numbers};
use crate::methods::attribution::{
    ADD, Measured, Metric, interventions, logit_count, plan_of, positions_of,
};

/// Bytes of changes, and of logits, of runs that are made together: 64 and 256 MiB.
const AT_ONCE: [u64; 2] = [1 << 26, 1 << 28];
/// Positions of all rows at which readers compute together.
const POSITIONS: usize = 4096;

/// What computes from a changed stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reading {
    /// The heads of a layer.
    Attention(usize),
    /// The MLP of a layer.
    Mlp(usize),
    /// The final norm.
    Logits,
}

/// For each writer, its edges: where their results go, and what reads.
pub(super) type Wanted = BTreeMap<usize, Vec<(usize, Reader)>>;

/// Changes that wait to be run, `[batch, pos, d_model]`, and where their results go.
type Waiting<B> = Vec<(usize, Tensor<B, 3>)>;

/// Some of the examples.
pub(super) struct SingleEdges<'a, 'm, B: Backend, M, T> {
    pub(super) wiring: &'a Wiring<'m, B, M>,
    pub(super) graph: &'a EdgeGraph,
    pub(super) metric: &'a T,
    pub(super) measured: &'a Measured<'a, B, M, T>,
    pub(super) base: &'a WorldInput<B>,
    pub(super) examples: &'a [usize],
    /// Their numbers of tokens.
    pub(super) lengths: &'a [usize],
    /// The metric of the base, for each of the examples.
    pub(super) unpatched: Vec<f64>,
    /// The first position that is computed, and the number of positions.
    pub(super) from: usize,
    pub(super) pos: usize,
    pub(super) changes: Written<'m, B>,
    /// Of the base.
    pub(super) streams: Streams<B>,
    pub(super) options: &'a RunOptions,
}

impl<B, M, T> SingleEdges<'_, '_, B, M, T>
where
    B: Backend,
    M: AlignableTransformer<B>,
    T: Metric,
{
    /// Adds to the value of each edge what it costs to patch it, summed over examples.
    pub(super) fn add(
        &self,
        values: &mut [f64],
        reading: Reading,
        wanted: &Wanted,
    ) -> Result<(), CircuitError> {
        let dims = self.wiring.model.dims();
        let site = match reading {
            Reading::Attention(layer) => Site::Block(layer, Component::AttentionOutput),
            Reading::Mlp(layer) => Site::Block(layer, dims.added_by_mlp()),
            Reading::Logits => last_stream(dims),
        };
        let runs = RunsAt {
            input: self.before(site)?,
            site,
            at_once: self.at_once(),
        };
        let mut waiting = Waiting::new();
        let together = (POSITIONS / (self.examples.len() * self.pos).max(1)).max(1);
        let writers: Vec<usize> = wanted.keys().copied().collect();
        for writers in writers.chunks(together) {
            // Which row each edge reads, among those of these writers.
            let mut edges: BTreeMap<Reader, Vec<(usize, usize)>> = BTreeMap::new();
            for (row, writer) in writers.iter().enumerate() {
                for (index, reader) in &wanted[writer] {
                    edges.entry(*reader).or_default().push((row, *index));
                }
            }
            let changes = self.changes_of(writers, reading);
            let computed = Computed::new(self, reading, changes, writers.len());
            for (reader, rows) in edges {
                let changes = computed.changes(self, reader, &rows);
                waiting.extend(rows.iter().map(|(_row, index)| *index).zip(changes));
                while waiting.len() >= runs.at_once {
                    let rest = waiting.split_off(runs.at_once);
                    self.measure(values, &runs, waiting)?;
                    waiting = rest;
                }
            }
        }
        self.measure(values, &runs, waiting)
    }

    /// What some writers change in the stream, `[writer * batch, pos, d_model]`: at all positions
    /// for heads, otherwise at those that are computed.
    fn changes_of(&self, writers: &[usize], reading: Reading) -> Tensor<B, 3> {
        let positions = match reading {
            Reading::Attention(_) => 0..self.pos,
            Reading::Mlp(_) | Reading::Logits => self.from..self.pos,
        };
        let changes = writers.iter().map(|writer| {
            let own = *writer..writer + 1;
            self.changes.at(self.graph, own, positions.clone())
        });
        Tensor::cat(changes.collect(), 0)
    }

    /// How many runs are made together.
    fn at_once(&self) -> usize {
        let dims = self.wiring.model.dims();
        let batch = self.examples.len();
        let positions = positions_of(self.metric.positions(), self.examples);
        let logits = logit_count(&positions, self.pos);
        let changed = batch * (self.pos - self.from) * dims.d_model;
        let sizes = [changed, batch * logits * self.measured.logits()];
        let most = sizes.into_iter().zip(AT_ONCE).map(|(size, bytes)| {
            let bytes = match self.options.memory_budget {
                Some(budget) => bytes.min(budget / 4),
                None => bytes,
            };
            usize::try_from(bytes / (4 * size.max(1)) as u64).unwrap_or(usize::MAX)
        });
        most.min().unwrap_or(1).max(1)
    }

    /// The positions that change.
    fn units(&self) -> Units {
        match self.from {
            0 => Units::ALL,
            from => Units::positions(from..self.pos),
        }
    }

    /// The base as far as it is the same for all edits at a site.
    fn before(&self, site: Site) -> Result<WorldInput<B>, CircuitError> {
        let model = self.wiring.model;
        let width = model.dims().d_model;
        let (mut plan, [input]) = plan_of([self.base], self.examples)?;
        let nothing = Tensor::zeros([1, 1, width], (&model.device(), DType::F32));
        let nothing = Operand::Constant(plan.constant(nothing));
        let edit = Edit::new(site, self.units(), ADD, nothing);
        let world = plan.world(input, [edit]);
        self.measured
            .read(&mut plan, world, self.examples, self.lengths);
        let adds = |intervention: usize| intervention == ADD;
        let plan = plan.freeze(model, &interventions::<B>(), adds, self.options)?;
        Ok(plan.input_of(world).clone())
    }

    /// Runs the base with each of these changes, and adds what they cost.
    fn measure(
        &self,
        values: &mut [f64],
        runs: &RunsAt<B>,
        waiting: Waiting<B>,
    ) -> Result<(), CircuitError> {
        if waiting.is_empty() {
            return Ok(());
        }
        let model = self.wiring.model;
        let mut plan = Plan::new();
        let input = plan.input(runs.input.clone());
        let mut reads = Vec::with_capacity(waiting.len());
        for (index, change) in waiting {
            let change = Operand::Constant(plan.constant(change));
            let edit = Edit::new(runs.site, self.units(), ADD, change);
            let world = plan.world(input, [edit]);
            let read = self
                .measured
                .read(&mut plan, world, self.examples, self.lengths);
            reads.push((index, read));
        }
        let results = plan.run_with(model, &interventions::<B>(), self.options)?;
        let found = reads.iter().map(|(_index, read)| results.get(*read));
        let metrics = self.measured.of_reads(found.collect(), self.examples);
        let numbers = read_numbers(metrics.detach())?;
        plan.check_finite(&numbers, model, &interventions::<B>(), self.options)?;
        let rows = numbers.chunks(self.examples.len());
        for ((index, _read), row) in reads.iter().zip(rows) {
            let costs = self.unpatched.iter().zip(row);
            values[*index] += costs.map(|(base, patched)| base - patched).sum::<f64>();
        }
        Ok(())
    }
}

/// How runs with changes at one site are made.
struct RunsAt<B: Backend> {
    input: WorldInput<B>,
    /// Where changes are added.
    site: Site,
    at_once: usize,
}

/// What some writers change, as far as it is the same for all readers of a layer.
enum Computed<B: Backend> {
    /// For heads.
    Inputs {
        layer: usize,
        /// After the norm, `[batch, pos, d_model]`.
        base: Tensor<B, 3>,
        /// The same with each change, `[writer * batch, pos, d_model]`.
        changed: Tensor<B, 3>,
        writers: usize,
        pass: Pass<B>,
    },
    /// What is added to the stream, `[writer * batch, pos, d_model]`.
    Changes(Tensor<B, 3>),
}

impl<B: Backend> Computed<B> {
    /// - changes: `[writer * batch, pos, d_model]`
    fn new<M: AlignableTransformer<B>, T>(
        own: &SingleEdges<'_, '_, B, M, T>,
        reading: Reading,
        changes: Tensor<B, 3>,
        writers: usize,
    ) -> Self {
        let model = own.wiring.model;
        let pass = |pos| Pass::<B>::new(pos, &model.device(), &own.options.tables);
        match reading {
            Reading::Attention(layer) => {
                let norm = own.wiring.heads.attention_norm(layer);
                let normed = |x| match norm {
                    None => x,
                    Some(norm) => norm.forward(x),
                };
                let stream = own.streams.attention[layer].clone();
                let changes = changes.cast(stream.dtype());
                Self::Inputs {
                    layer,
                    base: normed(stream.clone()),
                    changed: normed(stream.repeat_dim(0, writers) + changes),
                    writers,
                    pass: pass(own.pos),
                }
            }
            Reading::Mlp(layer) => {
                let pass = pass(own.pos - own.from);
                let output = |x| {
                    let added = model.sublayer(layer, 1, x, &mut Cx::new(&mut NoTap, &pass));
                    added.cast(DType::F32)
                };
                let stream = narrowed(&own.streams.mlps[layer], &(own.from..own.pos));
                let changed = stream.clone().repeat_dim(0, writers);
                let changed = changed + changes.cast(stream.dtype());
                Self::Changes(output(changed) - output(stream).repeat_dim(0, writers))
            }
            Reading::Logits => Self::Changes(changes),
        }
    }

    /// By how much the output of a reader changes, for each of some edges.
    ///
    /// - edges: the writer of each, as a number among the writers here
    ///
    /// # Shapes
    /// - output: `[batch, pos, d_model]` each
    fn changes<M: AlignableTransformer<B>, T>(
        &self,
        own: &SingleEdges<'_, '_, B, M, T>,
        reader: Reader,
        edges: &[(usize, usize)],
    ) -> Vec<Tensor<B, 3>> {
        let batch = own.examples.len();
        let row = |x: &Tensor<B, 3>, row: usize| x.clone().narrow(0, row * batch, batch);
        let (layer, base, changed, writers, pass) = match self {
            Self::Changes(changes) => {
                return edges
                    .iter()
                    .map(|(writer, _)| row(changes, *writer))
                    .collect();
            }
            Self::Inputs {
                layer,
                base,
                changed,
                writers,
                pass,
            } => (*layer, base, changed, *writers, pass),
        };
        let (slot, head) = match reader {
            Reader::Query { head, .. } => (0, head),
            Reader::Key { head, .. } => (1, head),
            Reader::Value { head, .. } => (2, head),
            Reader::Mlp { .. } | Reader::Logits => return Vec::new(),
        };
        let in_order = edges.iter().map(|(writer, _)| *writer).eq(0..writers);
        let read = match in_order {
            true => changed.clone(),
            false => Tensor::cat(edges.iter().map(|(it, _)| row(changed, *it)).collect(), 0),
        };
        let heads = own.wiring.heads;
        let mixed = |inputs| heads.head_mixed_normed(layer, head, inputs, pass);
        let unchanged = base.clone().repeat_dim(0, edges.len());
        let mut inputs = [unchanged.clone(), unchanged.clone(), unchanged];
        inputs[slot] = read;
        let before = mixed([base.clone(), base.clone(), base.clone()]);
        let change = mixed(inputs) - before.repeat_dim(0, edges.len());
        let change = heads.head_output(layer, head, change); // [edge * batch, pos, d_model]
        let change = narrowed(&change, &(own.from..own.pos));
        (0..edges.len()).map(|edge| row(&change, edge)).collect()
    }
}
