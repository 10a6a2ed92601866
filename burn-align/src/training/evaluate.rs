//! Evaluating interventions, and the controls that the result must be compared with.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::kl_divergences;
use serde::{Deserialize, Deserializer, Serialize};

use super::{InterchangeData, TrainingError};
use crate::engine::{Plan, PlanError, ReadId, RunOptions, read_numbers};
use crate::front::AlignableModel;
use crate::interventions::{
    Intervention, Misfit, Operands, Orthonormal, OrthonormalMap, VanillaIntervention,
};

/// A mean over examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// Its 95 % confidence interval by the normal approximation, `mean ± 1.96 s / √n`; `None` for a
    /// single example.
    pub interval: Option<[f64; 2]>,
    /// Number of examples.
    pub examples: usize,
}

/// What interventions do to predictions.
///
/// An example with several positions counts once: it is correct if it is correct at all of them,
/// and its logit difference and divergence are means over them. Padding does not count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Interchange intervention accuracy: the share of examples with the expected predictions.
    #[doc(alias = "IIA")]
    pub accuracy: f64,
    /// Its 95 % confidence interval (Wilson 1927).
    pub interval: [f64; 2],
    /// How far the intervention moves the model from its old prediction to the expected one: the
    /// logit of the label minus the logit of the class that the model predicts without
    /// interventions. Above 0 the label has won; without interventions it is never above 0.
    /// Positions at which the model predicts the label anyway are left out; `None` if that leaves
    /// none.
    pub logit_difference: Option<Mean>,
    /// How much the intervention changes at all: `Σ p (ln p - ln q)`, with `p` the model's
    /// probabilities without interventions and `q` those with them, in nats.
    #[doc(alias = "Kullback-Leibler")]
    pub kl_divergence: Mean,
    /// Number of examples.
    pub examples: usize,
}

/// The effect of trained interventions, and the controls they must beat.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Controlled {
    /// The trained interventions.
    pub trained: Evaluation,
    /// Random rotations of the same sizes, with the trained masks and boundaries. Interventions
    /// without a rotation stay as they are, so this is no control for them.
    pub random_rotation: Evaluation,
    /// Whole vectors swapped.
    pub whole_vector: Evaluation,
    /// Nothing swapped.
    pub no_swap: Evaluation,
}

/// JSON cannot express NaN; serde_json writes null.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Evaluates interventions on all examples of some datasets, `batch_size` at a time.
///
/// # Errors
/// If the data do not fit the model, in which case nothing is computed, or if values stop being finite.
pub fn evaluate<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    model: &AlignableModel<B, M, I>,
    data: &[InterchangeData<B>],
    batch_size: usize,
) -> Result<Evaluation, TrainingError> {
    let plans = data.iter().map(|dataset| dataset.plan_beside_clean(model));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let part = |dataset: usize, chosen: &mut [usize]| Ok(plans[dataset].0.examples(chosen)?);
    let reads: Vec<_> = plans.iter().map(|(_, reads)| *reads).collect();
    let [found, _clean] = judge(model, data, batch_size, &reads, part, [])?;
    Ok(found)
}

/// Evaluates interventions together with their controls.
///
/// - `batch_size`: examples at a time
/// - `seed`: seed of the random rotation
///
/// Your own interventions take part: their rotations are those that [`Intervention::orthonormal`]
/// returns.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with_controls<B, M, I>(
    model: &AlignableModel<B, M, I>,
    data: &[InterchangeData<B>],
    batch_size: usize,
    seed: u64,
) -> Result<Controlled, TrainingError>
where
    B: Backend,
    M: AlignableTransformer<B> + Clone,
    I: Intervention<B>,
{
    let [random, whole] = controls(model, seed)?;
    // Subspaces index rotated features, which the whole vector does not have.
    let whole_data: Vec<InterchangeData<B>> = data
        .iter()
        .map(|dataset| {
            let mut dataset = dataset.clone();
            dataset.inputs.subspaces = crate::front::Subspaces::Whole;
            dataset
        })
        .collect();
    let plans = data.iter().map(|dataset| dataset.plan_beside_clean(model));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let part = |dataset: usize, chosen: &mut [usize]| Ok(plans[dataset].0.examples(chosen)?);
    let reads: Vec<_> = plans.iter().map(|(_, reads)| *reads).collect();
    let others = [(&random, data), (&whole, &whole_data[..])];
    let [trained, no_swap, random_rotation, whole_vector] =
        judge(model, data, batch_size, &reads, part, others)?;
    Ok(Controlled {
        trained,
        random_rotation,
        whole_vector,
        no_swap,
    })
}

/// A model with one of its controls: random rotations, or whole vectors.
pub(super) type Control<B, M, I> = AlignableModel<B, M, OrWhole<I>>;

/// The model with random rotations, and with whole vectors swapped.
pub(super) fn controls<B, M, I>(
    model: &AlignableModel<B, M, I>,
    seed: u64,
) -> Result<[Control<B, M, I>; 2], TrainingError>
where
    B: Backend,
    M: AlignableTransformer<B> + Clone,
    I: Intervention<B>,
{
    let device = model.model().device();
    let mut random = model.interventions().to_vec();
    for (index, intervention) in random.iter_mut().enumerate() {
        let seed = seed.wrapping_add(index as u64);
        for rotation in intervention.orthonormal() {
            let shape = rotation.dims();
            *rotation = Orthonormal::random(shape, OrthonormalMap::Retraction, seed, &device)
                .expect("a shape that is there already");
        }
    }
    let random = random.into_iter().map(OrWhole::own).collect();
    let whole = model
        .interventions()
        .iter()
        .cloned()
        .map(OrWhole::whole::<B>);
    let whole = whole.collect();
    let with = |interventions: Vec<OrWhole<I>>| {
        let config = model.config().clone();
        AlignableModel::with_interventions(config, model.model().clone(), interventions)
    };
    Ok([with(random)?, with(whole)?])
}

/// An intervention, or whole vectors swapped in its place.
#[derive(Clone, Debug)]
pub(super) struct OrWhole<I>(Option<I>);

impl<I> OrWhole<I> {
    fn own(own: I) -> Self {
        Self(Some(own))
    }

    /// Interventions without a source have nothing to swap in, so they stay.
    fn whole<B: Backend>(own: I) -> Self
    where
        I: Intervention<B>,
    {
        Self((!own.needs_source()).then_some(own))
    }
}

// It is only run: never trained, moved or saved.
impl<B: Backend, I: Module<B>> Module<B> for OrWhole<I> {
    burn::empty!(module);
}

impl<B: Backend, I: Intervention<B>> Intervention<B> for OrWhole<I> {
    fn needs_source(&self) -> bool {
        self.0.as_ref().is_none_or(I::needs_source)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        match &self.0 {
            Some(own) => own.apply(base, operands),
            None => VanillaIntervention.apply(base, operands),
        }
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        match &self.0 {
            Some(own) => own.features(units, d_site),
            None => Intervention::<B>::features(&VanillaIntervention, units, d_site),
        }
    }
}

/// A model that is evaluated together with another one, on its own data.
type Other<'a, B, M, I> = (&'a AlignableModel<B, M, I>, &'a [InterchangeData<B>]);

/// Evaluates a model, the same model without interventions, and others, in this order. The
/// predictions without interventions are computed once for all of them.
///
/// - reads: for each dataset, its logits with and without interventions
/// - part: the plan of some examples of a dataset, which it may reorder
pub(super) fn judge<B, M, I, const N: usize, const OTHERS: usize>(
    model: &AlignableModel<B, M, I>,
    data: &[InterchangeData<B>],
    batch_size: usize,
    reads: &[[ReadId; 2]],
    part: impl Fn(usize, &mut [usize]) -> Result<Plan<B>, TrainingError>,
    others: [Other<'_, B, M, OrWhole<I>>; OTHERS],
) -> Result<[Evaluation; N], TrainingError>
where
    B: Backend,
    M: AlignableTransformer<B>,
    I: Intervention<B>,
{
    let options = RunOptions::default();
    let mut tallies = vec![Tally::default(); 2 + OTHERS];
    for (index, dataset) in data.iter().enumerate() {
        let plans = others.iter().map(|(other, data)| data[index].plan(other));
        let plans = plans.collect::<Result<Vec<_>, _>>()?;
        let all: Vec<usize> = (0..dataset.len()).collect();
        for chosen in all.chunks(batch_size.max(1)) {
            let mut chosen = chosen.to_vec();
            let plan = part(index, &mut chosen)?;
            let results = plan.run_with(model.model(), model.interventions(), &options)?;
            let [logits, clean] = reads[index].map(|read| results.get(read));
            let clean = Clean::new(clean);
            let numbers = tallies[0].add(logits, &clean, dataset, &chosen)?;
            plan.check_finite(&numbers, model.model(), model.interventions(), &options)?;
            tallies[1].add(clean.logits.clone(), &clean, dataset, &chosen)?;
            for (number, (plan, read)) in plans.iter().enumerate() {
                let (model, interventions) =
                    (others[number].0.model(), others[number].0.interventions());
                let plan = plan.examples(&chosen)?;
                let results = plan.run_with(model, interventions, &options)?;
                let tally = &mut tallies[2 + number];
                let numbers = tally.add(results.get(*read), &clean, dataset, &chosen)?;
                plan.check_finite(&numbers, model, interventions, &options)?;
            }
        }
    }
    if tallies[0].examples == 0 {
        return Err(TrainingError::Nothing {
            expected: "at least one example",
        });
    }
    Ok(std::array::from_fn(|index| tallies[index].evaluation()))
}

/// A model's predictions for a batch without interventions.
pub(super) struct Clean<B: Backend> {
    /// `[batch, unit, vocab]`, in f32.
    pub(super) logits: Tensor<B, 3>,
    /// `[batch, unit, 1]`.
    predicted: Tensor<B, 3, Int>,
}

impl<B: Backend> Clean<B> {
    pub(super) fn new(logits: Tensor<B, 3>) -> Self {
        let logits = logits.cast(DType::F32);
        Self {
            predicted: logits.clone().argmax(2),
            logits,
        }
    }
}

/// Sums over examples.
#[derive(Clone, Default)]
pub(super) struct Tally {
    right: usize,
    pub(super) examples: usize,
    logit_difference: Moments,
    kl_divergence: Moments,
}

impl Tally {
    /// Gives the divergences and logit differences that the sums are of.
    ///
    /// - logits: `[batch, unit, vocab]`
    pub(super) fn add<B: Backend>(
        &mut self,
        logits: Tensor<B, 3>,
        clean: &Clean<B>,
        dataset: &InterchangeData<B>,
        examples: &[usize],
    ) -> Result<Vec<f64>, PlanError> {
        let logits = logits.cast(DType::F32);
        let [batch, units, vocab] = logits.dims();
        let targets = dataset.targets::<B>(0, examples, units, &logits.device());
        let labels = targets.labels.reshape([batch, units, 1]);
        let classes = |x: Tensor<B, 3, Int>| -> Result<Vec<i64>, PlanError> {
            let numbers = read_numbers(x)?.into_iter();
            Ok(numbers.map(|class| class as i64).collect())
        };

        let rows = |x: &Tensor<B, 3>| x.clone().reshape([batch * units, vocab]);
        let divergences = read_numbers(kl_divergences(rows(&clean.logits), rows(&logits)))?;
        let predicted = classes(logits.clone().argmax(2))?;
        let at_label = logits.clone().gather(2, labels.clone());
        let differences = read_numbers(at_label - logits.gather(2, clean.predicted.clone()))?;
        let (labels, before) = (classes(labels)?, classes(clean.predicted.clone())?);
        let mut numbers = Vec::new();

        for (row, example) in examples.iter().enumerate() {
            let start = row * units;
            let counted = start..start + dataset.counted(*example, units);
            let is_right = |unit: usize| predicted[unit] == labels[unit];
            self.right += usize::from(counted.clone().all(is_right));
            self.examples += 1;
            let moved: Vec<f64> = counted
                .clone()
                .filter(|unit| before[*unit] != labels[*unit])
                .map(|unit| differences[unit])
                .collect();
            self.logit_difference.add_mean(&moved);
            self.kl_divergence.add_mean(&divergences[counted.clone()]);
            numbers.extend_from_slice(&divergences[counted]);
            numbers.extend(moved);
        }
        Ok(numbers)
    }

    pub(super) fn evaluation(&self) -> Evaluation {
        Evaluation {
            accuracy: self.right as f64 / self.examples as f64,
            interval: wilson(self.right, self.examples),
            logit_difference: (self.logit_difference.count > 0)
                .then(|| self.logit_difference.mean()),
            kl_divergence: self.kl_divergence.mean(),
            examples: self.examples,
        }
    }
}

/// 95 % of the standard normal distribution is within this distance from 0.
const Z: f64 = 1.959_963_984_540_054;

/// The interval of a proportion (Wilson 1927, "Probable inference, the law of succession, and
/// statistical inference").
fn wilson(right: usize, examples: usize) -> [f64; 2] {
    let n = examples as f64;
    let share = right as f64 / n;
    let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let spread = share * (1.0 - share) / n + Z * Z / (4.0 * n * n);
    let half = Z * spread.sqrt() / (1.0 + Z * Z / n);
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

/// Running mean and variance (Welford 1962).
#[derive(Clone, Copy, Default)]
struct Moments {
    count: usize,
    mean: f64,
    /// Sum of the squared distances from the mean.
    squares: f64,
}

impl Moments {
    /// Adds the mean of an example's values, if it has any.
    fn add_mean(&mut self, values: &[f64]) {
        if values.is_empty() {
            return;
        }
        let value = values.iter().sum::<f64>() / values.len() as f64;
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    fn mean(&self) -> Mean {
        let n = self.count as f64;
        let half = Z * (self.squares / (n - 1.0) / n).sqrt();
        Mean {
            mean: self.mean,
            interval: (self.count > 1).then_some([self.mean - half, self.mean + half]),
            examples: self.count,
        }
    }
}
