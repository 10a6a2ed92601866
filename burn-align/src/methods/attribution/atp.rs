//! Attribution patching, and its refinements.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use burn_align_models::nn::ReusedMemory;
use burn_align_models::{AlignableTransformer, Component, Site, SublayerOutput};

use super::check::check_tracked;
use super::gradients::{CUT, Part, check_metrics, numbers_of, size_of};
use super::memory::{row_bytes, rows_at_once};
use super::parts::{logit_count, parts, tracked_plan_of};
use super::probes::sizes;
use super::qk::{QkFix, side};
use super::{AttributionError, Metric, NodeEffects, Patching};
use crate::engine::{Edit, Operand, RunOptions, Units, read_numbers};

/// How attribution patching estimates.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct AtpOptions {
    /// Whether attention weights are recomputed exactly for nodes that are queries or keys, instead
    /// of being linearised through the softmax (Kramár et al. 2024, §3.1.1). Default: no.
    pub qk_fix: bool,
    /// Whether magnitudes are averaged over backward passes in each of which the gradient through
    /// one layer is dropped, so that effects that cancel each other out are seen (§3.1.2). The
    /// effects are then magnitudes. Default: no.
    pub grad_drop: bool,
    /// Budgets. The memory of a backward pass is estimated from the sizes of the model. Without a
    /// budget, all examples are differentiated at once.
    pub run: RunOptions,
}

impl AtpOptions {
    /// AtP*: both refinements.
    pub fn star() -> Self {
        Self {
            qk_fix: true,
            grad_drop: true,
            run: RunOptions::default(),
        }
    }

    /// Turns the exact recomputation of attention weights on or off.
    pub fn with_qk_fix(mut self, qk_fix: bool) -> Self {
        self.qk_fix = qk_fix;
        self
    }

    /// Turns the average over dropped layers on or off.
    pub fn with_grad_drop(mut self, grad_drop: bool) -> Self {
        self.grad_drop = grad_drop;
        self
    }

    /// Sets the budgets.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }
}

/// Attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348): estimates the effect of
/// patching each node by
///
/// ```text
/// ĉ(n) = (a_n(source) − a_n(base)) · ∂m/∂a_n, at the base
/// ```
///
/// summed over the node's positions, heads and features. With [`AtpOptions::star`] it is AtP*
/// (Kramár et al. 2024, arXiv 2403.00745): for queries and keys `Σ (A′ − A) · ∂m/∂A` with attention
/// weights `A′` under the patch, and the mean of magnitudes `1/(L−1) Σ_ℓ |ĉ^ℓ(n)|` over passes that
/// each drop layer ℓ. Use [`bound_missed`](super::bound_missed) for what it may have missed.
///
/// A node is any part of an activation: a head, a position, both, or a whole component. All nodes
/// of one site share their gradient, so thousands of nodes cost what one does. This does not hold
/// for queries and keys under [`AtpOptions::qk_fix`], whose attention weights are recomputed:
/// queries at different heads or positions share a world, but keys only if their heads differ, so
/// keys cost a world for each position.
///
/// # When it misleads
/// The estimate is linear. It is too small where the metric or the softmax saturates, and zero
/// where two paths cancel out at the base; a node with a small estimate may have a large effect
/// ([`compare`](super::compare) with [`patch_nodes`](super::patch_nodes) shows it). It is poorest
/// for the residual stream, whose norm a patch changes. GradDrop counts residual streams, which no
/// dropped layer contains, `L/(L−1)` times.
///
/// # Errors
/// If a node, the prompts or the metric do not fit the model; if a prompt and its counterpart have
/// different lengths; if the budget is too small for one example; or if a run, the metric or a
/// gradient is not finite.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn::module::AutodiffModule;
/// use burn_align::engine::{RunOptions, Units};
/// use burn_align::methods::attribution::{
///     AtpOptions, LogitDifference, Patching, attribution_patching, compare, patch_nodes,
/// };
/// use burn_align::models::{AlignableTransformer, Component, Site};
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
///
/// type A = Autodiff<Flex>;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<A>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let clean = tokenizer.encode_batch(["The capital of Spain is"])?;
/// let corrupt = tokenizer.encode_batch(["The capital of Italy is"])?;
/// let metric = LogitDifference::new(
///     [tokenizer.single_token("Madrid")?],
///     [tokenizer.single_token("Rome")?],
/// );
///
/// // Every head, at all positions.
/// let dims = loaded.model.dims().clone();
/// let nodes: Vec<(Site, Units)> = (0..dims.layers)
///     .flat_map(|layer| (0..dims.heads).map(move |head| (layer, head)))
///     .map(|(layer, head)| {
///         (Site::Block(layer, Component::AttentionValueOutput), Units::head(head))
///     })
///     .collect();
/// let patching = Patching::noising(clean, corrupt);
/// let options = AtpOptions::default();
/// let estimated = attribution_patching(&loaded.model, &patching, &nodes, &metric, &options)?;
/// // The same nodes, one by one, without gradients.
/// let model = loaded.model.valid();
/// let exact = patch_nodes(&model, &patching, &nodes, &metric, &RunOptions::default())?;
/// let agreement = compare(&estimated, &exact)?;
/// assert_eq!(agreement.misses.len(), nodes.len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "AtP")]
#[doc(alias = "AtP*")]
pub fn attribution_patching<A, M, T>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    nodes: &[(Site, Units)],
    metric: &T,
    options: &AtpOptions,
) -> Result<NodeEffects, AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    let _memory = ReusedMemory::in_steps();
    let model = &model.clone().no_grad();
    check_tracked::<A, M, T>(model, patching, nodes, metric)?;
    let cuts: Vec<Option<Vec<Edit>>> = match options.grad_drop {
        true => cuts::<A, M>(model)?.into_iter().map(Some).collect(),
        false => vec![None],
    };
    let fixed = |node: &(Site, Units)| match options.qk_fix {
        true => side(node.0),
        false => None,
    };
    let (linear, exact): (Vec<usize>, Vec<usize>) =
        (0..nodes.len()).partition(|node| fixed(&nodes[*node]).is_none());
    let fix = QkFix::new(nodes, &exact);
    let sites = SiteList::new(nodes, &linear);
    let whole: Vec<(Site, Units)> = sites.whole().collect();
    let weights: Vec<(Site, Units)> = fix.weights().collect();
    let all = [&whole[..], &weights[..]].concat();

    let pos = patching.base().pos();
    let logits = logit_count(&metric.positions(), pos);
    let kept = numbers_of::<A, M>(model, &weights, pos)? * (cuts.len() + 2);
    let read = numbers_of::<A, M>(model, &all, pos)? + kept;
    let rows = rows_at_once(row_bytes(model, pos, logits, read), &options.run)?;
    let mut found = NodeEffects::unmeasured(patching.direction(), nodes.len());
    for examples in parts(patching.batch(), rows) {
        let part = Part {
            model,
            metric,
            examples: &examples,
            size: size_of(patching.base(), &examples),
            options: &options.run,
        };
        let (mut plan, [source]) = tracked_plan_of::<A, 1>([patching.source()], &examples)?;
        let (sources, value) = part.run(&mut plan, source, &whole)?;
        found.source.extend(read_numbers(value)?);

        let mut sums = vec![vec![0.0; examples.len()]; nodes.len()];
        let mut changes: Vec<Tensor<A::InnerBackend, 3>> = Vec::new();
        let mut base_weights: Vec<Tensor<A::InnerBackend, 3>> = Vec::new();
        let mut weight_gradients = Vec::new();
        for (pass, cut) in cuts.iter().enumerate() {
            let (plan, [base]) = tracked_plan_of::<A, 1>([patching.base()], &examples)?;
            let after = cut.clone().unwrap_or_default();
            let mut run = part.differentiate(plan, base, &all, Vec::new(), after)?;
            // Activations do not depend on what the gradient goes through.
            if pass == 0 {
                found.base.extend(read_numbers(run.metric)?);
                base_weights = run.activations.split_off(whole.len());
                let pairs = sources.iter().zip(run.activations);
                let pairs = pairs.map(|(source, base)| difference(source.clone().inner(), base));
                changes = pairs.collect();
            }
            weight_gradients.push(run.gradients.split_off(whole.len()));
            let products = changes.iter().zip(run.gradients);
            let products = products.map(|(change, gradient)| change.clone() * gradient);
            let cells = sites.cells::<A, M>(model, products.collect(), part.size)?;
            for node in &linear {
                let own = sites.of_node(&cells, *node, &nodes[*node].1, &examples);
                add(&mut sums[*node], own, cut.is_some());
            }
        }
        let exact = fix.effects::<A, M, T>(&part, patching, &base_weights, &weight_gradients)?;
        for (node, by_cut) in exact {
            for own in by_cut {
                add(&mut sums[node], own, options.grad_drop);
            }
        }
        let share = match options.grad_drop {
            true => (cuts.len() - 1) as f64,
            false => 1.0,
        };
        for (effects, sums) in found.effects.iter_mut().zip(sums) {
            effects.extend(sums.into_iter().map(|sum| sum / share));
        }
    }
    let ends = [&found.base[..], &found.source];
    check_metrics::<A, M, T>(model, patching, metric, ends, &options.run)?;
    found.check_finite()?;
    Ok(found)
}

fn add(sums: &mut [f64], values: Vec<f64>, magnitudes: bool) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += if magnitudes { value.abs() } else { value };
    }
}

/// For each layer, the edits that drop its part of the gradient: what it adds to the stream is
/// taken as constant.
fn cuts<A: AutodiffBackend, M: AlignableTransformer<A>>(
    model: &M,
) -> Result<Vec<Vec<Edit>>, AttributionError> {
    let layers = model.layout().layers();
    if layers.len() < 2 {
        return Err(AttributionError::Option {
            what: "grad_drop",
            expected: "a model of at least 2 layers",
            found: format!("{} layers", layers.len()),
        });
    }
    let cut = |layer: usize, component: Component| {
        let site = Site::Block(layer, component);
        Edit::new(site, Units::ALL, CUT, Operand::None)
    };
    let cuts = layers.iter().enumerate().map(|(layer, layout)| {
        let sublayers = layout.sublayers().iter();
        let edits = sublayers.map(|sublayer| match sublayer.output() {
            SublayerOutput::Adds(component) => Ok(cut(layer, component)),
            SublayerOutput::Replaces => Err(AttributionError::NotResidual { layer }),
        });
        edits.collect()
    });
    cuts.collect()
}

/// The sites of some nodes, each once, as whole activations.
pub(super) struct SiteList {
    sites: Vec<Site>,
    /// For each node: the index of its site, if it has one here.
    of_node: Vec<Option<usize>>,
}

/// The sum over the features of each cell, for each site: `[batch, pos, head]`, row by row.
pub(super) struct SiteCells {
    values: Vec<Vec<f64>>,
    heads: Vec<usize>,
    pos: usize,
}

impl SiteList {
    /// - chosen: indices of the nodes
    pub(super) fn new(nodes: &[(Site, Units)], chosen: &[usize]) -> Self {
        let mut sites: Vec<Site> = Vec::new();
        let mut of_node = vec![None; nodes.len()];
        for node in chosen {
            let site = nodes[*node].0;
            let known = sites.iter().position(|other| *other == site);
            of_node[*node] = Some(known.unwrap_or_else(|| {
                sites.push(site);
                sites.len() - 1
            }));
        }
        Self { sites, of_node }
    }

    /// The sites, with all of their units.
    pub(super) fn whole(&self) -> impl Iterator<Item = (Site, Units)> + '_ {
        self.sites.iter().map(|site| (*site, Units::ALL))
    }

    /// Sums products over the features of each cell.
    ///
    /// # Shapes
    /// - products: for each site, `[batch, pos, head * width]`
    pub(super) fn cells<A: AutodiffBackend, M: AlignableTransformer<A>>(
        &self,
        model: &M,
        products: Vec<Tensor<A::InnerBackend, 3>>,
        [batch, pos]: [usize; 2],
    ) -> Result<SiteCells, AttributionError> {
        let (mut sums, mut heads) = (Vec::new(), Vec::new());
        for (site, product) in self.sites.iter().zip(products) {
            let [_unit, head, width] = sizes(model, *site, &Units::ALL, pos)?;
            let product = product.reshape([batch * pos * head, width]);
            sums.push(product.sum_dim(1).reshape([batch * pos * head]));
            heads.push(head);
        }
        if sums.is_empty() {
            let values = Vec::new();
            return Ok(SiteCells { values, heads, pos });
        }
        let numbers = read_numbers(Tensor::cat(sums, 0))?;
        let mut rest = &numbers[..];
        let values = heads.iter().map(|head| {
            let (own, after) = rest.split_at(batch * pos * head);
            rest = after;
            own.to_vec()
        });
        Ok(SiteCells {
            values: values.collect(),
            heads,
            pos,
        })
    }

    /// The sum over a node's units, for each example of a part.
    pub(super) fn of_node(
        &self,
        cells: &SiteCells,
        node: usize,
        units: &Units,
        examples: &[usize],
    ) -> Vec<f64> {
        let site = self.of_node[node].expect("only nodes with a site here are asked for");
        let (heads, pos) = (cells.heads[site], cells.pos);
        let examples = examples.iter().enumerate();
        let sums = examples.map(|(row, example)| {
            let chosen = units.heads.of(*example, heads);
            let positions = units.positions.of(*example, pos);
            let sums = positions.iter().map(|position| {
                let first = (row * pos + position) * heads;
                let values = chosen.iter().map(|head| cells.values[site][first + head]);
                values.sum::<f64>()
            });
            sums.sum()
        });
        sums.collect()
    }
}

/// A difference of activations in f32, on the inner backend.
pub(super) fn difference<B: Backend>(source: Tensor<B, 3>, base: Tensor<B, 3>) -> Tensor<B, 3> {
    source.cast(DType::F32) - base.cast(DType::F32)
}
