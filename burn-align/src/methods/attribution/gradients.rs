//! Gradients of a metric at any sites, all in one backward pass.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use burn_align_models::nn::ReusedMemory;
use burn_align_models::{AlignableTransformer, Site};

use super::check::check_input;
use super::memory::{row_bytes, rows_at_once, unlimited};
use super::parts::{logit_count, parts, positions_of, read_all, sites_of, tracked_plan_of};
use super::probes::sizes;
use super::{AttributionError, Metric, Patching, Probes};
use crate::engine::{
    Edit, Indices, InputId, Plan, PlanError, RunOptions, Units, WorldInput, read_numbers,
};
use crate::interventions::{
    AdditionIntervention, BuiltinIntervention, LambdaIntervention, VanillaIntervention,
};

/// Index of the intervention that replaces an activation.
pub(in crate::methods) const REPLACE: usize = 0;
/// Index of the intervention that adds to an activation.
pub(in crate::methods) const ADD: usize = 1;
/// Index of the intervention that lets no gradient through.
pub(super) const CUT: usize = 2;

/// What the edits of attributions refer to.
pub(in crate::methods) fn interventions<B: Backend>() -> [BuiltinIntervention<B>; 3] {
    [
        VanillaIntervention.into(),
        AdditionIntervention.into(),
        LambdaIntervention::new(|base, _operands| base.detach()).into(),
    ]
}

/// Activations of a run, and the gradients of its metric there.
#[derive(Clone, Debug)]
pub struct Gradients<B: Backend> {
    /// The metric of each example.
    pub metric: Vec<f64>,
    /// For each site, `[batch, unit, d_site]`.
    pub activations: Vec<Tensor<B, 3>>,
    /// For each site, the gradient of the example's own metric, in f32, `[batch, unit, d_site]`.
    pub gradients: Vec<Tensor<B, 3>>,
}

/// The gradients of a metric at these sites, and the activations there: one forward and one
/// backward pass, whatever the number of sites.
///
/// The weights of the model are not differentiated. If the activations that are kept for the
/// backward pass exceed [`RunOptions::memory_budget`], or there are more examples than
/// [`RunOptions::max_rows`], examples are run in parts, with the same result. The memory is
/// estimated from the sizes of the model; what is returned is not counted.
///
/// - input: [`TokenBatch`](burn_align_models::TokenBatch), or vectors, `[batch, pos, feature]`
///
/// For gradients in worlds with edits, or at sites of several worlds, use [`Probes`] in a plan of
/// your own.
///
/// Examples may have different lengths: padding, and keys after the end of an example, have
/// gradients of zero.
///
/// # Errors
/// If a site, the input or the metric does not fit the model, if the budget is too small for one
/// example, or if the run or the metric is not finite.
pub fn site_gradients<A, M, T>(
    model: &M,
    input: impl Into<WorldInput<A::InnerBackend>>,
    sites: &[(Site, Units)],
    metric: &T,
    options: &RunOptions,
) -> Result<Gradients<A::InnerBackend>, AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    let _memory = ReusedMemory::in_steps();
    let input = input.into();
    let model = model.clone().no_grad();
    check_input::<A, M, T>(&model, &input, sites, metric)?;
    let pos = input.pos();
    let read = numbers_of::<A, M>(&model, sites, pos)?;
    let logits = logit_count(&metric.positions(), pos);
    let rows = rows_at_once(row_bytes(&model, pos, logits, read), options)?;
    let mut values = Vec::new();
    let mut found: Vec<[Vec<Tensor<A::InnerBackend, 3>>; 2]> = Vec::new();
    found.resize_with(sites.len(), Default::default);
    for examples in parts(input.batch(), rows) {
        let (plan, [id]) = tracked_plan_of::<A, 1>([&input], &examples)?;
        let own = sites_of(sites, &examples);
        let size = size_of(&input, &examples);
        let all = input.lengths();
        let lengths: Vec<usize> = examples.iter().map(|it| all[*it]).collect();
        let part = Part {
            model: &model,
            metric,
            examples: &examples,
            size,
            options,
        };
        let run = part.differentiate(plan, id, &own, Vec::new(), Vec::new())?;
        values.extend(read_numbers(run.metric)?);
        let both = run.activations.into_iter().zip(run.gradients);
        for (index, (activation, gradient)) in both.enumerate() {
            let ends = [size[1], pos];
            let whole = |x| padded::<A, M>(&model, &sites[index], x, &lengths, ends);
            found[index][0].push(whole(activation)?);
            found[index][1].push(whole(gradient)?);
        }
    }
    check_metric::<A, M, T>(&model, &input, metric, &values, options)?;
    let (mut activations, mut gradients) = (Vec::new(), Vec::new());
    for [activation, gradient] in found {
        activations.push(Tensor::cat(activation, 0));
        gradients.push(Tensor::cat(gradient, 0));
    }
    Ok(Gradients {
        metric: values,
        activations,
        gradients,
    })
}

/// What one backward pass finds.
pub(in crate::methods) struct Differentiated<B: Backend> {
    /// `[batch]`
    pub(in crate::methods) metric: Tensor<B, 1>,
    /// For each site, `[batch, unit, d_site]`.
    pub(in crate::methods) activations: Vec<Tensor<B, 3>>,
    /// For each site, `[batch, unit, d_site]`.
    pub(in crate::methods) gradients: Vec<Tensor<B, 3>>,
    /// Activations at sites that are only read, `[batch, unit, d_site]`.
    pub(in crate::methods) others: Vec<Tensor<B, 3>>,
}

/// Some of the examples, of which the metric is measured.
pub(in crate::methods) struct Part<'a, M, T> {
    pub(in crate::methods) model: &'a M,
    pub(in crate::methods) metric: &'a T,
    /// Their indices among all.
    pub(in crate::methods) examples: &'a [usize],
    /// Their number, and the positions of the longest.
    pub(in crate::methods) size: [usize; 2],
    pub(in crate::methods) options: &'a RunOptions,
}

impl<M, T: Metric> Part<'_, M, T> {
    /// Activations and gradients of one world.
    ///
    /// - sites: with the units of this part
    /// - before: edits that change activations; gradients are those of the changed ones
    /// - after: edits that come after the zeros
    pub(super) fn differentiate<A: AutodiffBackend>(
        &self,
        plan: Plan<A>,
        input: InputId,
        sites: &[(Site, Units)],
        before: Vec<Edit>,
        after: Vec<Edit>,
    ) -> Result<Differentiated<A::InnerBackend>, PlanError>
    where
        M: AlignableTransformer<A>,
    {
        self.differentiate_and_read(plan, input, [sites, &[]], before, after)
    }

    /// The same, and activations at other sites, without gradients.
    ///
    /// - sites, others: with the units of this part
    pub(in crate::methods) fn differentiate_and_read<A: AutodiffBackend>(
        &self,
        mut plan: Plan<A>,
        input: InputId,
        [sites, others]: [&[(Site, Units)]; 2],
        before: Vec<Edit>,
        after: Vec<Edit>,
    ) -> Result<Differentiated<A::InnerBackend>, PlanError>
    where
        M: AlignableTransformer<A>,
    {
        let (probes, zeros) = Probes::new(&mut plan, self.model, self.size, sites, ADD)?;
        let edits = before.into_iter().chain(zeros).chain(after);
        let world = plan.world(input, edits);
        let mut reads = read_all(&mut plan, world, sites);
        reads.extend(read_all(&mut plan, world, others));
        let logits = plan.read_logits(world, positions_of(self.metric.positions(), self.examples));
        let results = plan.run_with(self.model, &interventions::<A>(), &unlimited(self.options))?;
        let values = self.metric.values(results.get(logits), self.examples); // [batch]
        let gradients = probes.tied(values.clone().sum()).backward();
        let reads = reads.into_iter().map(|read| results.get(read).inner());
        let mut activations: Vec<_> = reads.collect();
        Ok(Differentiated {
            metric: values.inner(),
            others: activations.split_off(sites.len()),
            activations,
            gradients: probes.gradients(&gradients),
        })
    }

    /// Activations and metric of an unchanged run, without gradients. The plan then has its world.
    pub(in crate::methods) fn run<B: Backend>(
        &self,
        plan: &mut Plan<B>,
        input: InputId,
        sites: &[(Site, Units)],
    ) -> Result<(Vec<Tensor<B, 3>>, Tensor<B, 1>), PlanError>
    where
        M: AlignableTransformer<B>,
    {
        let world = plan.world(input, []);
        let reads = read_all(plan, world, sites);
        let logits = plan.read_logits(world, positions_of(self.metric.positions(), self.examples));
        let results = plan.run_with(self.model, &interventions::<B>(), &unlimited(self.options))?;
        let values = self.metric.values(results.get(logits), self.examples);
        let activations = reads.into_iter().map(|read| results.get(read));
        Ok((activations.collect(), values))
    }
}

/// Number of some examples, and of the positions of the longest.
pub(in crate::methods) fn size_of<B: Backend>(
    input: &WorldInput<B>,
    examples: &[usize],
) -> [usize; 2] {
    let lengths = input.lengths();
    let pos = match input {
        WorldInput::Tokens(_) => examples.iter().map(|it| lengths[*it]).max().unwrap_or(0),
        _ => input.pos(),
    };
    [examples.len(), pos]
}

/// How many numbers are read of one row.
pub(in crate::methods) fn numbers_of<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    sites: &[(Site, Units)],
    pos: usize,
) -> Result<usize, PlanError> {
    let mut numbers = 0;
    for (site, units) in sites {
        numbers += sizes(model, *site, units, pos)?.iter().product::<usize>();
    }
    Ok(numbers)
}

/// Fails if the metric of a run is not finite, and says where that begins.
fn check_metric<A, M, T>(
    model: &M,
    input: &WorldInput<A::InnerBackend>,
    metric: &T,
    values: &[f64],
    options: &RunOptions,
) -> Result<(), AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    let Some(example) = values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let mut plan = Plan::<A::InnerBackend>::new();
    let input = plan.input(input.clone());
    let world = plan.world(input, []);
    plan.read_logits(world, metric.positions());
    let plan = plan.from_inner::<A>();
    plan.check_finite(values, model, &interventions::<A>(), &unlimited(options))?;
    Err(AttributionError::NotFinite {
        what: "the metric".to_owned(),
        example,
    })
}

/// [`check_metric`] of base and source.
pub(in crate::methods) fn check_metrics<A, M, T>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    metric: &T,
    [base, source]: [&[f64]; 2],
    options: &RunOptions,
) -> Result<(), AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    check_metric::<A, M, T>(model, patching.base(), metric, base, options)?;
    check_metric::<A, M, T>(model, patching.source(), metric, source, options)
}

/// What is read of a part, as it would be read of the whole batch: with zeros for positions that
/// only longer examples have, and for keys after the end of an example.
///
/// - lengths: of the examples of the part
/// - from, to: positions of the longest example, of the part and of all
fn padded<A: AutodiffBackend, M: AlignableTransformer<A>>(
    model: &M,
    (site, units): &(Site, Units),
    x: Tensor<A::InnerBackend, 3>,
    lengths: &[usize],
    [from, to]: [usize; 2],
) -> Result<Tensor<A::InnerBackend, 3>, PlanError> {
    let [unit, heads, width] = sizes(model, *site, units, from)?;
    let [batch, _unit, _d_site] = x.dims();
    let options = (&x.device(), x.dtype());
    let mut x = x.reshape([batch, unit, heads, width]);
    if site.is_attention_pattern() {
        let keys = lengths.iter().flat_map(|length| {
            let is_key = (0..from).map(move |key| if key < *length { 1.0 } else { 0.0 });
            is_key.collect::<Vec<f32>>()
        });
        let keys = TensorData::new(keys.collect::<Vec<f32>>(), [batch, 1, 1, from]);
        x = x * Tensor::from_data(keys, options);
        if from < to {
            let zeros = Tensor::zeros([batch, unit, heads, to - from], options);
            x = Tensor::cat(vec![x, zeros], 3);
        }
    }
    let [_batch, _unit, _heads, width] = x.dims();
    if units.positions == Indices::All && from < to {
        let zeros = Tensor::zeros([batch, to - from, heads, width], options);
        x = Tensor::cat(vec![x, zeros], 1);
    }
    let [batch, unit, heads, width] = x.dims();
    Ok(x.reshape([batch, unit, heads * width]))
}
