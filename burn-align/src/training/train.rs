//! The training loop.

use burn::module::AutodiffModule;
use burn::optim::GradientsAccumulator;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::AlignableTransformer;

use super::devices::{Replicas, Split};
use super::kept::Kept;
use super::run::Run;
use super::track::track;
use super::{History, InterchangeData, Targets, TrainingConfig, TrainingError, TrainingEvent};
use crate::front::AlignableModel;
use crate::interventions::Intervention;

/// Trains the interventions of a model; the model itself is frozen.
///
/// Everything before the first trained intervention is computed once per example and cached, within
/// the memory budget; it does not enter the graph of the autodiff backend. Each epoch divides the
/// examples of each dataset into batches again, and runs these in random order. (Sources' vectors
/// at all positions of prompts of different lengths are not cached, but computed for every batch.)
///
/// With [checkpoints](TrainingConfig::checkpoints), an interrupted run resumes and ends with the
/// same parameters and history, bit by bit if the backend is deterministic. It must be given the
/// same model, interventions and data. A checkpoint does not hold the random state of a loss, or
/// fields of your own interventions that are not parameters.
///
/// - `loss`: computed from the logits under the interventions, `[batch, unit, vocab]`, and the
///   targets; see [`losses`](super::losses)
/// - `observe`: gets every step and epoch
///
/// # Errors
/// If the data do not fit the model, the loss is no longer a number, or a checkpoint cannot be
/// written or belongs to another run.
///
/// ```
/// use burn::backend::Autodiff;
/// use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
/// use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions};
/// use burn_align::training::{InterchangeData, InterchangeExample, TrainingConfig, losses, train};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let options = LoadOptions::default();
/// let loaded = Decoder::<Autodiff<B>>::from_pretrained("bundled:capitals", &options, &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// // The country of the source, and the question of the base.
/// let example = InterchangeExample {
///     base: tokenizer.encode("The capital of Spain is")?,
///     sources: vec![tokenizer.encode("The language of Italy is")?],
///     label: tokenizer.single_token("Rome")?,
/// };
/// let data = [InterchangeData::<B>::from_examples([example])?.with_locations(4)];
///
/// let residual = AlignableRepresentationConfig::new(0, Component::BlockOutput).with_low_rank(8);
/// let model = AlignableModel::new_seeded(AlignableConfig::new([residual]), loaded.model, 0)?;
/// let config = TrainingConfig::default().with_epochs(20).with_learning_rate(1e-2);
/// let (_trained, history) = train(model, &data, &[], &config, losses::cross_entropy, |_| {})?;
/// let losses: Vec<f64> = history.epochs.iter().map(|epoch| epoch.loss).collect();
/// assert!(losses[19] < losses[0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn train<A, M, I>(
    model: AlignableModel<A, M, I>,
    data: &[InterchangeData<A::InnerBackend>],
    held_out: &[InterchangeData<A::InnerBackend>],
    config: &TrainingConfig,
    loss: impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
    observe: impl FnMut(TrainingEvent<'_>),
) -> Result<(AlignableModel<A, M, I>, History), TrainingError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    let device = model.model().device();
    train_on_devices(model, &[device], data, held_out, config, loss, observe)
}

/// Like [`train`], with the examples of each batch divided among several devices. Up to rounding,
/// the result is that of one device.
///
/// Each device has a copy of the model and a fixed share of the examples, every n-th of n devices.
/// It computes and caches what does not change for them, within the memory budget, and in each step
/// their logits and gradients. The loss is computed from the logits of the whole batch on the first
/// device, which also sums the gradients, runs the optimizer and evaluates held-out data. A
/// checkpoint can be resumed on other devices.
///
/// - devices: the result is on the first one; a device that is listed twice has two shares
///
/// # Errors
/// As [`train`], or if there is no device.
pub fn train_on_devices<A, M, I>(
    model: AlignableModel<A, M, I>,
    devices: &[A::Device],
    data: &[InterchangeData<A::InnerBackend>],
    held_out: &[InterchangeData<A::InnerBackend>],
    config: &TrainingConfig,
    loss: impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
    observe: impl FnMut(TrainingEvent<'_>),
) -> Result<(AlignableModel<A, M, I>, History), TrainingError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    let data = [data, held_out];
    let objective = (loss, own_penalties::<A, I>);
    train_prepared(model, devices, data, config, objective, observe, None)
}

/// Examples whose loss is computed, and when.
pub(crate) struct LossBatch<'a> {
    /// The indices of the examples in their dataset, in any order.
    pub(crate) examples: &'a [usize],
    /// Number of the optimizer's step, from 0.
    pub(crate) step: usize,
    /// Total number of steps.
    pub(crate) steps: usize,
}

/// Trains as [`train_on_devices`] does, with what does not change for the data already computed, if
/// it is: on one device, for plans of the same model and data.
///
/// - objective: the loss, and what is added to it before it is minimised, times
///   [`TrainingConfig::penalty`], computed from the interventions on the first device
pub(crate) fn train_prepared<A, M, I>(
    model: AlignableModel<A, M, I>,
    devices: &[A::Device],
    data: [&[InterchangeData<A::InnerBackend>]; 2],
    config: &TrainingConfig,
    objective: (
        impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
        impl Fn(&[I], &LossBatch<'_>) -> Option<Tensor<A, 1>>,
    ),
    mut observe: impl FnMut(TrainingEvent<'_>),
    prepared: Option<Vec<Kept<A::InnerBackend>>>,
) -> Result<(AlignableModel<A, M, I>, History), TrainingError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    let run = Run::new(model, devices, data, config, prepared, &mut observe)?;
    let mut runs = [run];
    train_together(&mut runs, objective, |_run, event| observe(event))
        .map_err(|(_run, error)| error)?;
    let [run] = runs;
    Ok(run.finish())
}

/// Goes on with runs until all have ended. Those that are at the same step take it together: one
/// pass computes the logits of all. The result of each is that of a run by itself.
///
/// - runs: on the same data, with the same configuration, from the same point of the same model; if
///   there are several, on one device
/// - observe: gets the events of the run with this index
///
/// # Errors
/// With the index of the run that failed.
pub(crate) fn train_together<A, M, I>(
    runs: &mut [Run<'_, A, M, I>],
    (loss, penalty): (
        impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
        impl Fn(&[I], &LossBatch<'_>) -> Option<Tensor<A, 1>>,
    ),
    mut observe: impl FnMut(usize, TrainingEvent<'_>),
) -> Result<(), (usize, TrainingError)>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    loop {
        let open = runs.iter().filter(|run| !run.has_ended());
        let Some(step) = open.map(Run::step).min() else {
            return Ok(());
        };
        let now = |run: &Run<'_, A, M, I>| !run.has_ended() && run.step() == step;
        let some: Vec<usize> = (0..runs.len()).filter(|run| now(&runs[*run])).collect();
        for run in &some {
            runs[*run].begin_step();
        }
        let first = &runs[some[0]];
        let (group, steps, device) = (first.batches(), first.steps(), first.device());
        let mut sums: Vec<Sums<I>> = some.iter().map(|_| Sums::new()).collect();
        for (dataset, examples) in &group {
            let tracked = some
                .iter()
                .map(|run| track::<A, Vec<I>>(runs[*run].interventions().clone()));
            let tracked: Vec<Vec<I>> = tracked.collect();
            let part = LossBatch {
                examples,
                step,
                steps,
            };
            let total = |run: usize, loss: Tensor<A, 1>| match penalty(&tracked[run], &part) {
                Some(penalty) => {
                    let factor = runs[some[run]].config().penalty;
                    (loss + penalty * factor) / group.len() as f64
                }
                None => loss / group.len() as f64,
            };
            let value = |run: usize, logits: Tensor<A, 3>, order: &[usize]| {
                let [_batch, units, _vocab] = logits.dims();
                let dataset_of = &runs[some[run]].data()[*dataset];
                let targets = dataset_of.targets(*dataset, order, units, &device);
                loss(logits, &targets)
            };
            let all = some.iter().zip(&tracked);
            let all = all.map(|(run, tracked)| (runs[*run].replicas(), tracked));
            let all: Vec<_> = all.collect();
            let found = Replicas::gradients(&all, (*dataset, examples), value, total);
            let found = found.map_err(|error| (some[0], error))?;
            for ((sums, run), found) in sums.iter_mut().zip(&some).zip(found) {
                sums.add(runs[*run].interventions(), found);
            }
        }
        for (sums, run) in sums.into_iter().zip(&some) {
            let Sums { gradients, loss } = sums;
            let gradients = gradients.map(|mut sum| sum.grads());
            let updated = runs[*run].update(gradients, loss / group.len() as f64, &group);
            updated.map_err(|error| (*run, error))?;
        }
        for run in &some {
            let ended = runs[*run].end_step(|event| observe(*run, event));
            ended.map_err(|error| (*run, error))?;
        }
        // Together, so that runs that are resumed are at the same step again.
        for run in some {
            runs[run].save().map_err(|error| (run, error))?;
        }
    }
}

/// What the batches of a step add up to.
struct Sums<I> {
    /// Of everything but masks, and of masks.
    gradients: [GradientsAccumulator<Vec<I>>; 2],
    /// Without the penalty.
    loss: f64,
}

impl<I> Sums<I> {
    fn new() -> Self {
        Self {
            gradients: [GradientsAccumulator::new(), GradientsAccumulator::new()],
            loss: 0.0,
        }
    }

    fn add<A: AutodiffBackend>(&mut self, interventions: &Vec<I>, found: (Vec<Split>, f64))
    where
        I: AutodiffModule<A>,
    {
        let (splits, loss) = found;
        for split in splits {
            for (sum, gradients) in self.gradients.iter_mut().zip(split) {
                sum.accumulate(interventions, gradients);
            }
        }
        self.loss += loss;
    }
}

/// The sum of the penalties of all interventions.
pub(crate) fn own_penalties<B: Backend, I: Intervention<B>>(
    interventions: &[I],
    _batch: &LossBatch<'_>,
) -> Option<Tensor<B, 1>> {
    let penalties = interventions.iter().filter_map(I::penalty);
    penalties.reduce(|sum, penalty| sum + penalty)
}
