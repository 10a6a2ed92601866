//! Integrated gradients: gradients along a path from base to source.

use std::collections::HashMap;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::nn::ReusedMemory;
use burn_align_models::{AlignableTransformer, Site};

use super::atp::{SiteList, difference};
use super::check::check_tracked;
use super::gradients::{ADD, Part, REPLACE, check_metrics, interventions, numbers_of, size_of};
use super::memory::{row_bytes, rows_at_once, unlimited};
use super::parts::{logit_count, parts, positions_of, sites_of, tracked_plan_of};
use super::{AttributionError, Metric, NodeEffects, Patching, Probes};
use crate::engine::{Edit, InputId, Operand, Plan, RunOptions, Units, read_numbers};

/// The points of a path at which gradients are taken: shares of the source, from 0 (base) to 1
/// (source), all of the same weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps(Vec<f64>);

impl Steps {
    /// The midpoints of `count` intervals, whose error falls with the square of their number.
    pub fn midpoint(count: usize) -> Self {
        Self::new(count, 0.5)
    }

    /// The intervals' ends at the base: 0, 1/m, … 1 − 1/m.
    pub fn left(count: usize) -> Self {
        Self::new(count, 0.0)
    }

    /// The intervals' ends at the source: 1/m, … 1. Under [noising](Patching::noising) these are
    /// the points of EAP-IG (Hanna et al. 2024, arXiv 2403.17806), which include the corrupt prompt
    /// and not the clean one.
    pub fn right(count: usize) -> Self {
        Self::new(count, 1.0)
    }

    fn new(count: usize, at: f64) -> Self {
        let points = (0..count).map(|step| (step as f64 + at) / count as f64);
        Self(points.collect())
    }

    /// The shares.
    pub fn shares(&self) -> &[f64] {
        &self.0
    }
}

/// What moves from base to source while gradients are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IntegrationPath {
    /// The embeddings of the prompt: `(a_n(source) − a_n(base)) · mean of ∂m/∂a_n`. For the
    /// embedding as node this is the original method (Sundararajan et al. 2017, arXiv 1703.01365),
    /// for other nodes that of EAP-IG. `steps` passes.
    #[default]
    Embedding,
    /// Each node by itself, in worlds of its own. With enough steps this is the exact effect of
    /// patching the node. `nodes · steps` worlds.
    EachNode,
    /// All nodes together. With enough steps, the sum over nodes is the effect of patching all of
    /// them at once; if they separate the inputs from the logits, it is
    /// `m(source) − m(base)`. `steps` passes.
    AllNodes,
}

/// How gradients are integrated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IntegrationOptions {
    /// The points of the path. Default: 5 midpoints.
    pub steps: Steps,
    /// What moves. Default: the embeddings.
    pub path: IntegrationPath,
    /// Budgets. Without one, up to 256 rows are differentiated at a time.
    pub run: RunOptions,
}

impl Default for IntegrationOptions {
    fn default() -> Self {
        Self {
            steps: Steps::midpoint(5),
            path: IntegrationPath::default(),
            run: RunOptions::default(),
        }
    }
}

impl IntegrationOptions {
    /// Sets the points of the path.
    pub fn with_steps(mut self, steps: Steps) -> Self {
        self.steps = steps;
        self
    }

    /// Sets what moves.
    pub fn with_path(mut self, path: IntegrationPath) -> Self {
        self.path = path;
        self
    }

    /// Sets the budgets.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }
}

/// The effects of nodes by integrated gradients: attribution patching with the mean of gradients
/// along a straight path from base to source (Sundararajan et al. 2017, arXiv 1703.01365, equation
/// 3; for activations Hanna et al. 2024, arXiv 2403.17806).
///
/// # When it misleads
/// Points between two activations are activations of no prompt. A metric that jumps along the path
/// needs many steps: compare results of `m` and `2m`.
///
/// # Errors
/// As [`attribution_patching`](super::attribution_patching), or if there are no steps.
pub fn integrated_gradients<A, M, T>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    nodes: &[(Site, Units)],
    metric: &T,
    options: &IntegrationOptions,
) -> Result<NodeEffects, AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    let _memory = ReusedMemory::in_steps();
    /// Rows that are differentiated at a time, without a budget.
    const ROWS: usize = 256;
    if options.steps.0.is_empty() {
        return Err(AttributionError::Nothing { what: "step" });
    }
    let model = &model.clone().no_grad();
    check_tracked::<A, M, T>(model, patching, nodes, metric)?;
    let moved = match options.path {
        IntegrationPath::Embedding => vec![(Site::Embedding, Units::ALL)],
        IntegrationPath::EachNode | IntegrationPath::AllNodes => Vec::new(),
    };
    if !moved.is_empty() {
        check_tracked::<A, M, T>(model, patching, &moved, metric)?;
    }
    let pos = patching.base().pos();
    let logits = logit_count(&metric.positions(), pos);
    let read = numbers_of::<A, M>(model, &[nodes, &moved[..]].concat(), pos)?;
    let rows = rows_at_once(row_bytes(model, pos, logits, read), &options.run)?;
    let rows = match (options.run.memory_budget, options.run.max_rows) {
        (None, None) => ROWS,
        _ => rows,
    };
    let mut found = NodeEffects::unmeasured(patching.direction(), nodes.len());
    for examples in parts(patching.batch(), rows) {
        let integration = Integration {
            part: Part {
                model,
                metric,
                examples: &examples,
                size: size_of(patching.base(), &examples),
                options: &options.run,
            },
            patching,
            nodes,
            steps: &options.steps.0,
        };
        let ([base, source], effects) = match options.path {
            IntegrationPath::Embedding => integration.along_embedding()?,
            IntegrationPath::AllNodes => integration.along_all()?,
            IntegrationPath::EachNode => integration.along_each(rows / examples.len())?,
        };
        found.base.extend(base);
        found.source.extend(source);
        for (all, part) in found.effects.iter_mut().zip(effects) {
            all.extend(part);
        }
    }
    let ends = [&found.base[..], &found.source];
    check_metrics::<A, M, T>(model, patching, metric, ends, &options.run)?;
    found.check_finite()?;
    Ok(found)
}

/// Integration for some of the examples.
struct Integration<'a, A: AutodiffBackend, M, T> {
    part: Part<'a, M, T>,
    patching: &'a Patching<A::InnerBackend>,
    nodes: &'a [(Site, Units)],
    steps: &'a [f64],
}

/// The metric of base and source, and the effect of each node, for each example.
type Effects = ([Vec<f64>; 2], Vec<Vec<f64>>);

/// What the two runs of the prompts find: the activations of the base, their differences from the
/// source's, and the metric of both.
struct Ends<A: AutodiffBackend> {
    base: Vec<Tensor<A::InnerBackend, 3>>,
    changes: Vec<Tensor<A::InnerBackend, 3>>,
    metric: [Vec<f64>; 2],
}

impl<A, M, T> Integration<'_, A, M, T>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    /// - sites: with the units of this part
    fn ends(&self, sites: &[(Site, Units)]) -> Result<Ends<A>, AttributionError> {
        let (mut activations, mut metric) = (Vec::new(), Vec::new());
        for input in [self.patching.base(), self.patching.source()] {
            let (mut plan, [id]) = tracked_plan_of::<A, 1>([input], self.part.examples)?;
            let (found, values) = self.part.run(&mut plan, id, sites)?;
            activations.push(found.into_iter().map(Tensor::inner));
            metric.push(read_numbers(values)?);
        }
        let source = activations.pop().into_iter().flatten();
        let base: Vec<_> = activations.pop().into_iter().flatten().collect();
        let changes = source.zip(&base);
        let changes = changes.map(|(source, base)| difference(source, base.clone()));
        let source_metric = metric.pop().unwrap_or_default();
        Ok(Ends {
            changes: changes.collect(),
            base,
            metric: [metric.pop().unwrap_or_default(), source_metric],
        })
    }

    /// A plan of the base, on the backend with gradients.
    fn plan(&self) -> Result<(Plan<A>, InputId), AttributionError> {
        let base = [self.patching.base()];
        let (plan, [base]) = tracked_plan_of::<A, 1>(base, self.part.examples)?;
        Ok((plan, base))
    }

    fn along_embedding(&self) -> Result<Effects, AttributionError> {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        let sites = SiteList::new(self.nodes, &all);
        let whole: Vec<(Site, Units)> = sites.whole().collect();
        let embedding = (Site::Embedding, Units::ALL);
        let read = [&whole[..], std::slice::from_ref(&embedding)].concat();
        let mut ends = self.ends(&read)?;
        let embedded = (ends.base.pop(), ends.changes.pop());
        let (Some(base), Some(change)) = embedded else {
            unreachable!("the embedding is read last");
        };
        let mut sums: Vec<Tensor<A::InnerBackend, 3>> = Vec::new();
        for share in self.steps {
            let (mut plan, input) = self.plan()?;
            let point = point(&base, &change, *share);
            let point = plan.constant(Tensor::from_inner(point));
            let operand = Operand::Constant(point);
            let replace = vec![Edit::new(embedding.0, Units::ALL, REPLACE, operand)];
            let run = self
                .part
                .differentiate(plan, input, &whole, replace, Vec::new())?;
            sums = summed(sums, run.gradients);
        }
        let products = self.products(&ends.changes, sums);
        let cells = sites.cells::<A, M>(self.part.model, products, self.part.size)?;
        let effects = all
            .iter()
            .map(|node| sites.of_node(&cells, *node, &self.nodes[*node].1, self.part.examples));
        Ok((ends.metric, effects.collect()))
    }

    fn along_all(&self) -> Result<Effects, AttributionError> {
        let own = sites_of(self.nodes, self.part.examples);
        let ends = self.ends(&own)?;
        let mut sums: Vec<Tensor<A::InnerBackend, 3>> = Vec::new();
        for share in self.steps {
            let (mut plan, input) = self.plan()?;
            let edits = own.iter().zip(ends.base.iter().zip(&ends.changes));
            let edits = edits.map(|((site, units), (base, change))| {
                let point = plan.constant(Tensor::from_inner(point(base, change, *share)));
                Edit::new(*site, units.clone(), REPLACE, Operand::Constant(point))
            });
            let edits: Vec<Edit> = edits.collect();
            let run = self
                .part
                .differentiate(plan, input, &own, edits, Vec::new())?;
            sums = summed(sums, run.gradients);
        }
        let products = self.products(&ends.changes, sums);
        let effects = products.into_iter().map(by_example);
        Ok((ends.metric, effects.collect::<Result<_, _>>()?))
    }

    /// - worlds: how many are differentiated at a time
    fn along_each(&self, worlds: usize) -> Result<Effects, AttributionError> {
        let own = sites_of(self.nodes, self.part.examples);
        let ends = self.ends(&own)?;
        let nodes = 0..own.len();
        let points = nodes.flat_map(|node| self.steps.iter().map(move |share| (node, *share)));
        let points: Vec<(usize, f64)> = points.collect();
        let mut sums: HashMap<usize, Tensor<A::InnerBackend, 3>> = HashMap::new();
        for chunk in points.chunks(worlds.max(1)) {
            let (mut plan, input) = self.plan()?;
            let (mut reads, mut probed) = (Vec::new(), Vec::new());
            for (node, share) in chunk {
                let (site, units) = &own[*node];
                let point = point(&ends.base[*node], &ends.changes[*node], *share);
                let point = plan.constant(Tensor::from_inner(point));
                let replace = Edit::new(*site, units.clone(), REPLACE, Operand::Constant(point));
                let site = std::slice::from_ref(&own[*node]);
                let size = self.part.size;
                let (probes, zeros) = Probes::new(&mut plan, self.part.model, size, site, ADD)?;
                let world = plan.world(input, std::iter::once(replace).chain(zeros));
                let positions = positions_of(self.part.metric.positions(), self.part.examples);
                reads.push(plan.read_logits(world, positions));
                probed.push(probes);
            }
            let options = unlimited(self.part.options);
            let results = plan.run_with(self.part.model, &interventions::<A>(), &options)?;
            let values = reads.iter().map(|read| {
                let logits = results.get(*read);
                self.part.metric.values(logits, self.part.examples).sum()
            });
            let total = Tensor::cat(values.collect(), 0).sum();
            let Some(first) = probed.first() else {
                continue;
            };
            let gradients = first.tied(total).backward();
            for ((node, _share), probes) in chunk.iter().zip(&probed) {
                for gradient in probes.gradients(&gradients) {
                    let sum = match sums.remove(node) {
                        Some(sum) => sum + gradient,
                        None => gradient,
                    };
                    sums.insert(*node, sum);
                }
            }
        }
        let sums = (0..own.len()).filter_map(|node| sums.remove(&node));
        let products = self.products(&ends.changes, sums.collect());
        let effects = products.into_iter().map(by_example);
        Ok((ends.metric, effects.collect::<Result<_, _>>()?))
    }

    /// Changes times mean gradients.
    fn products(
        &self,
        changes: &[Tensor<A::InnerBackend, 3>],
        sums: Vec<Tensor<A::InnerBackend, 3>>,
    ) -> Vec<Tensor<A::InnerBackend, 3>> {
        let steps = self.steps.len() as f64;
        let products = changes.iter().zip(sums);
        let products = products.map(|(change, sum)| change.clone() * (sum / steps));
        products.collect()
    }
}

/// A point on the way from the base to the source.
pub(in crate::methods) fn point<B: Backend>(
    base: &Tensor<B, 3>,
    change: &Tensor<B, 3>,
    share: f64,
) -> Tensor<B, 3> {
    base.clone().cast(change.dtype()) + change.clone() * share
}

fn summed<B: Backend>(sums: Vec<Tensor<B, 3>>, more: Vec<Tensor<B, 3>>) -> Vec<Tensor<B, 3>> {
    match sums.is_empty() {
        true => more,
        false => sums.into_iter().zip(more).map(|(a, b)| a + b).collect(),
    }
}

/// The sum over units and features, for each example.
fn by_example<B: Backend>(product: Tensor<B, 3>) -> Result<Vec<f64>, AttributionError> {
    let [batch, unit, width] = product.dims();
    let sums = product.reshape([batch, unit * width]).sum_dim(1);
    Ok(read_numbers(sums)?)
}
