//! Scores from gradients: what the estimates have in common.

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use burn_align_models::nn::ReusedMemory;
use burn_align_models::{AlignableTransformer, Component, ModelDims, Pass, Site};

use super::ablation::Replacement;
use super::changes::{PostNorm, Written};
use super::memory::Shares;
use super::readers::{Point, Scoring};
use super::runs::{Outputs, Streams, Wiring};
use super::sums::{Sums, Widened};
use super::{CircuitError, Edge, EdgeGraph, EdgeMethod, EdgeOptions, EdgeProvenance, EdgeScores};
use crate::engine::{Edit, InputId, Operand, Plan, PlanError, Units, WorldInput, read_numbers};
use crate::methods::attribution::{
    Metric, Part, Patching, REPLACE, Steps, check_metrics, check_tracked, logit_count, numbers_of,
    parts, point, size_of, tracked_plan_of,
};

/// Where gradients are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Estimate {
    AtBase,
    AtBothEnds,
    AlongInputs,
    AlongActivations,
}

impl Estimate {
    fn method(self, options: &EdgeOptions) -> Result<EdgeMethod, CircuitError> {
        let steps = match options.steps {
            0 => Err(CircuitError::Nothing { what: "step" }),
            steps => Ok(steps),
        };
        Ok(match self {
            Self::AtBase => EdgeMethod::Eap,
            Self::AtBothEnds => EdgeMethod::CleanCorrupted,
            Self::AlongInputs => EdgeMethod::EapIgInputs { steps: steps? },
            Self::AlongActivations => EdgeMethod::EapIgActivations {
                steps: steps?,
                own_edges: options.own_edges,
            },
        })
    }
}

/// Scores all edges by a method that takes gradients.
pub(super) fn score<A, M, T>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    metric: &T,
    estimate: Estimate,
    options: &EdgeOptions,
) -> Result<EdgeScores, CircuitError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    let _memory = ReusedMemory::in_steps();
    let method = estimate.method(options)?;
    let model = &model.clone().no_grad();
    let graph = EdgeGraph::of::<A, M>(model)?;
    let wiring = Wiring::of(model)?;
    let sites = Sites::of::<A>(model.dims());
    check_tracked::<A, M, T>(model, patching, &sites.all(), metric)?;
    let base = patching.base();
    let (batch, pos) = (patching.batch(), base.pos());
    let logits = logit_count(&metric.positions(), pos);
    // Those of base, source, changes and what is between them.
    let kept = numbers_of::<A, M>(model, &sites.outputs, pos)?;
    let read = numbers_of::<A, M>(model, &sites.all(), pos)? + kept;
    let run = &options.run;
    let shares = Shares::of(model, &graph, [batch, pos], logits, read, run)?;
    let plan = |examples: &[usize]| plan_on::<A>(base, examples);
    let replacement = Replacement::new(&wiring, base, plan, options.ablation, shares.rows, run)?;

    let mut values = vec![0.0; graph.edge_count()];
    let mut metrics = [Vec::new(), Vec::new()];
    for examples in parts(batch, shares.rows) {
        let size = size_of(base, &examples);
        let part = Part {
            model,
            metric,
            examples: &examples,
            size,
            options: run,
        };
        let [_rows, pos] = size;
        let pass = Pass::new(pos, &model.device(), &run.tables);
        let scoring = Scoring {
            wiring: &wiring,
            graph: &graph,
            pass: &pass,
            heads: shares.heads,
        };
        let own = Attributed {
            part,
            patching,
            sites: &sites,
            scoring,
            replacement: &replacement,
            positions: shares.positions,
        };
        let found = own.score(estimate, options)?;
        // The loss is minus the metric.
        let factor = -1.0 / (batch as f64 * found.passes);
        found.sums.add_to(&mut values, &graph, factor)?;
        for (all, own) in metrics.iter_mut().zip(found.metrics) {
            all.extend(own);
        }
    }
    let ends = [&metrics[0][..], &metrics[1]];
    check_metrics::<A, M, T>(model, patching, metric, ends, run)?;
    check_finite(&graph, graph.edges(), &values)?;
    let provenance = EdgeProvenance {
        method,
        direction: Some(patching.direction()),
        ablation: Some(options.ablation),
        examples: batch,
    };
    EdgeScores::new(graph, values, provenance)
}

/// Fails at the first of these edges whose score is not finite.
pub(super) fn check_finite(
    graph: &EdgeGraph,
    edges: impl IntoIterator<Item = Edge>,
    values: &[f64],
) -> Result<(), CircuitError> {
    let mut scores = edges.into_iter().zip(values);
    match scores.find(|(_edge, value)| !value.is_finite()) {
        Some((edge, _value)) => Err(CircuitError::NotFinite {
            edge: graph.name(edge),
        }),
        None => Ok(()),
    }
}

/// What is read.
struct Sites {
    /// With gradients.
    probed: Vec<(Site, Units)>,
    outputs: Vec<(Site, Units)>,
    streams: Vec<(Site, Units)>,
}

impl Sites {
    fn of<A: AutodiffBackend>(dims: &ModelDims) -> Self {
        Self {
            probed: Point::<A::InnerBackend>::sites(dims),
            outputs: Outputs::<A>::sites(dims),
            streams: Streams::<A>::sites(dims),
        }
    }

    fn all(&self) -> Vec<(Site, Units)> {
        [&self.probed[..], &self.outputs, &self.streams].concat()
    }
}

/// What some examples add to the scores.
struct Found<A: AutodiffBackend> {
    sums: Sums<A::InnerBackend>,
    /// Number of gradients in the sums.
    passes: f64,
    /// Of base and source, as far as they were run.
    metrics: [Vec<f64>; 2],
}

/// A run of one of the prompts.
struct Ran<A: AutodiffBackend> {
    outputs: Outputs<A>,
    metric: Vec<f64>,
}

/// Some of the examples.
struct Attributed<'a, 'm, A: AutodiffBackend, M, T> {
    part: Part<'a, M, T>,
    patching: &'a Patching<A::InnerBackend>,
    sites: &'a Sites,
    scoring: Scoring<'a, 'm, A, M>,
    replacement: &'a Replacement<A>,
    /// How many positions are widened at a time.
    positions: usize,
}

impl<'m, A, M, T> Attributed<'_, 'm, A, M, T>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    fn score(&self, at: Estimate, options: &EdgeOptions) -> Result<Found<A>, CircuitError> {
        match at {
            Estimate::AtBase => self.at_base(),
            Estimate::AtBothEnds => self.at_both_ends(),
            Estimate::AlongInputs => self.along_inputs(options.steps),
            Estimate::AlongActivations => self.along_activations(options.steps, options.own_edges),
        }
    }

    fn at_base(&self) -> Result<Found<A>, CircuitError> {
        let (base, point) = self.differentiate(self.patching.base(), None)?;
        let (changes, source) = self.changes(&base.outputs)?;
        let mut sums = Sums::new();
        let widened = self.widened(&changes);
        self.scoring.add(&mut sums, &widened, &point, None);
        Ok(Found {
            sums,
            passes: 1.0,
            metrics: [base.metric, source],
        })
    }

    fn at_both_ends(&self) -> Result<Found<A>, CircuitError> {
        let (base, at_base) = self.differentiate(self.patching.base(), None)?;
        let (source, at_source) = self.differentiate(self.patching.source(), None)?;
        let other = self.replaced(&base.outputs).unwrap_or(source.outputs);
        let changes = self.changes_to(&base.outputs, &other);
        let mut sums = Sums::new();
        let widened = self.widened(&changes);
        for point in [at_base, at_source] {
            self.scoring.add(&mut sums, &widened, &point, None);
        }
        Ok(Found {
            sums,
            passes: 2.0,
            metrics: [base.metric, source.metric],
        })
    }

    fn along_inputs(&self, steps: usize) -> Result<Found<A>, CircuitError> {
        let base = self.run(self.patching.base())?;
        let source = self.run(self.patching.source())?;
        let prompts = self.changes_to(&base.outputs, &source.outputs);
        let replaced = self.replaced(&base.outputs);
        let changes = replaced.map(|other| self.changes_to(&base.outputs, &other));
        let mut sums = Sums::new();
        let widened = self.widened(changes.as_ref().unwrap_or(&prompts));
        // Includes the source, and not the base, as the reference does under noising.
        for share in Steps::right(steps).shares() {
            let point = point(
                &base.outputs.embedding,
                &prompts.outputs().embedding,
                *share,
            );
            let moved = (Site::Embedding, point);
            let (_run, point) = self.differentiate(self.patching.base(), Some(moved))?;
            self.scoring.add(&mut sums, &widened, &point, None);
        }
        Ok(Found {
            sums,
            passes: steps as f64,
            metrics: [base.metric, source.metric],
        })
    }

    fn along_activations(&self, steps: usize, own: bool) -> Result<Found<A>, CircuitError> {
        let graph = self.scoring.graph;
        let base = self.run(self.patching.base())?;
        let (changes, source) = self.changes(&base.outputs)?;
        let dims = self.part.model.dims();
        let (from, by) = (&base.outputs, changes.outputs());
        // The embedding, and for each layer its heads together and its MLP.
        let mut moved = vec![(Site::Embedding, &from.embedding, &by.embedding, 0..1, None)];
        for layer in 0..graph.layers() {
            let first = 1 + layer * (graph.heads() + 1);
            let last = first + graph.heads();
            let site = Site::Block(layer, Component::AttentionValueOutput);
            let (mixed, mlps) = (&from.mixed[layer], &from.mlps[layer]);
            moved.push((site, mixed, &by.mixed[layer], first..last, Some(layer)));
            let site = Site::Block(layer, dims.added_by_mlp());
            moved.push((site, mlps, &by.mlps[layer], last..last + 1, None));
        }
        let passes = match own {
            true => steps,
            false => steps * moved.len(),
        };
        let mut sums = Sums::new();
        let all = self.widened(&changes);
        for (site, from, by, writers, heads_of) in moved {
            let of_node = Widened::new(graph, &changes, writers, self.positions);
            let widened = if own { &of_node } else { &all };
            // Includes the base, and not the source.
            for share in Steps::left(steps).shares() {
                let moved = (site, point(from, by, *share));
                let (_run, point) = self.differentiate(self.patching.base(), Some(moved))?;
                self.scoring.add(&mut sums, widened, &point, heads_of);
            }
        }
        Ok(Found {
            sums,
            passes: passes as f64,
            metrics: [base.metric, source],
        })
    }

    /// All writers' changes.
    fn widened<'w>(&'w self, changes: &'w Written<'m, A>) -> Widened<'w, 'm, A> {
        let graph = self.scoring.graph;
        let all = 0..graph.writers().len();
        Widened::new(graph, changes, all, self.positions)
    }

    /// What the outputs of a base change by, and the metric of the source if it was run.
    fn changes(&self, base: &Outputs<A>) -> Result<(Written<'m, A>, Vec<f64>), CircuitError> {
        match self.replaced(base) {
            Some(other) => Ok((self.changes_to(base, &other), Vec::new())),
            None => {
                let source = self.run(self.patching.source())?;
                Ok((self.changes_to(base, &source.outputs), source.metric))
            }
        }
    }

    fn changes_to(&self, base: &Outputs<A>, other: &Outputs<A>) -> Written<'m, A> {
        Written::changes(self.scoring.wiring, base, other, PostNorm::Linear)
    }

    fn replaced(&self, base: &Outputs<A>) -> Option<Outputs<A>> {
        let wiring = self.scoring.wiring;
        self.replacement.of(wiring, base, self.part.options)
    }

    /// A run without gradients.
    fn run(&self, input: &WorldInput<A::InnerBackend>) -> Result<Ran<A>, CircuitError> {
        let (mut plan, id) = plan_on::<A>(input, self.part.examples)?;
        let (read, metric) = self.part.run(&mut plan, id, &self.sites.outputs)?;
        Ok(Ran {
            outputs: Outputs::from_read(read, self.part.model.dims()),
            metric: read_numbers(metric)?,
        })
    }

    /// A run with gradients.
    ///
    /// - moved: an activation that is replaced
    fn differentiate(
        &self,
        input: &WorldInput<A::InnerBackend>,
        moved: Option<(Site, Tensor<A, 3>)>,
    ) -> Result<(Ran<A>, Point<A::InnerBackend>), CircuitError> {
        let (mut plan, id) = plan_on::<A>(input, self.part.examples)?;
        let edits = moved.into_iter().map(|(site, values)| {
            let operand = Operand::Constant(plan.constant(values));
            Edit::new(site, Units::ALL, REPLACE, operand)
        });
        let edits: Vec<Edit> = edits.collect();
        let others = [&self.sites.streams[..], &self.sites.outputs].concat();
        let read = [&self.sites.probed[..], &others];
        let found = self
            .part
            .differentiate_and_read(plan, id, read, edits, Vec::new())?;
        let dims = self.part.model.dims();
        let mut streams = found.others;
        let outputs = streams.split_off(self.sites.streams.len());
        let outputs = outputs.into_iter().map(Tensor::from_inner);
        let streams = Streams::from_read(streams, dims);
        let ran = Ran {
            outputs: Outputs::from_read(outputs.collect(), dims),
            metric: read_numbers(found.metric)?,
        };
        Ok((ran, Point::new(streams, found.gradients, dims)))
    }
}

/// A plan of some examples, on the backend with gradients.
fn plan_on<A: AutodiffBackend>(
    input: &WorldInput<A::InnerBackend>,
    examples: &[usize],
) -> Result<(Plan<A>, InputId), PlanError> {
    let (plan, [id]) = tracked_plan_of::<A, 1>([input], examples)?;
    Ok((plan, id))
}
