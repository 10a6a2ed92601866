//! The training loop.

use burn::module::AutodiffModule;
use burn::optim::GradientsAccumulator;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::ReusedMemory;

use super::devices::{Part, Replicas, Split};
use super::kept::Kept;
use super::run::{Batches, Run};
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
    let trained = train_together(vec![run], objective, |_run, event| observe(event));
    trained.into_iter().next().expect("a result for each run")
}

/// A model with what has been trained, and how that went.
pub(crate) type Trained<A, M, I> = (AlignableModel<A, M, I>, History);

/// Goes on with runs until all have ended. Those that are at the same step take it together: one
/// pass computes the logits of all. Up to rounding, the result of each is that of a run by itself,
/// unless the loss has a random state. A run that fails leaves the others alone.
///
/// - runs: on the same data, with the same configuration, and the same model; if there are several,
///   on one device
/// - observe: gets the events of the run with this index
pub(crate) fn train_together<A, M, I>(
    mut runs: Vec<Run<'_, A, M, I>>,
    objective: (
        impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
        impl Fn(&[I], &LossBatch<'_>) -> Option<Tensor<A, 1>>,
    ),
    mut observe: impl FnMut(usize, TrainingEvent<'_>),
) -> Vec<Result<Trained<A, M, I>, TrainingError>>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    let _memory = ReusedMemory::in_steps();
    let mut errors: Vec<Option<TrainingError>> = runs.iter().map(|_| None).collect();
    loop {
        let open = (0..runs.len()).filter(|run| errors[*run].is_none() && !runs[*run].has_ended());
        let open: Vec<usize> = open.collect();
        let Some(step) = open.iter().map(|run| runs[*run].step()).min() else {
            break;
        };
        let at = |run: &usize| runs[*run].step() == step;
        let now: Vec<usize> = open.into_iter().filter(at).collect();
        for run in &now {
            runs[*run].begin_step();
        }
        let some: Vec<&Run<'_, A, M, I>> = now.iter().map(|run| &runs[*run]).collect();
        let batches = some[0].batches();
        let sums = match sums_of_batches(&some, &batches, &objective) {
            Ok(sums) => sums,
            Err(error) => {
                for run in now {
                    errors[run] = Some(error.clone());
                }
                continue;
            }
        };
        let mut sums = sums.into_iter();
        // One thing at a time for all of them, so that what is saved is at the same step.
        each(&mut runs, &mut errors, &now, |_, run| match sums.next() {
            Some(Sums { gradients, loss }) => {
                let gradients = gradients.map(|mut sum| sum.grads());
                run.update(gradients, loss / batches.len() as f64, &batches)
            }
            None => Ok(()),
        });
        each(&mut runs, &mut errors, &now, |index, run| {
            run.report_step(|event| observe(index, event));
            Ok(())
        });
        each(&mut runs, &mut errors, &now, |_, run| run.save_step());
        each(&mut runs, &mut errors, &now, |index, run| {
            run.end_epoch_if_done(|event| observe(index, event))
        });
        each(&mut runs, &mut errors, &now, |_, run| run.save_epoch());
    }
    let all = runs.into_iter().zip(errors);
    let all = all.map(|(run, error)| match error {
        Some(error) => Err(error),
        None => Ok(run.finish()),
    });
    all.collect()
}

/// Goes on with those of some runs that have not failed.
fn each<R>(
    runs: &mut [R],
    errors: &mut [Option<TrainingError>],
    some: &[usize],
    mut go_on: impl FnMut(usize, &mut R) -> Result<(), TrainingError>,
) {
    for run in some {
        if errors[*run].is_none() {
            errors[*run] = go_on(*run, &mut runs[*run]).err();
        }
    }
}

/// The gradients and losses of the batches of a step, for each run.
fn sums_of_batches<A, M, I>(
    runs: &[&Run<'_, A, M, I>],
    batches: &Batches,
    (loss, penalty): &(
        impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
        impl Fn(&[I], &LossBatch<'_>) -> Option<Tensor<A, 1>>,
    ),
) -> Result<Vec<Sums<I>>, TrainingError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    let (step, steps, device) = (runs[0].step(), runs[0].steps(), runs[0].device());
    let mut sums: Vec<Sums<I>> = runs.iter().map(|_| Sums::new()).collect();
    let copies = runs
        .iter()
        .map(|run| run.replicas().replicated(run.interventions()));
    let copies: Vec<Vec<Vec<I>>> = copies.collect();
    for (dataset, examples) in batches {
        let tracked = runs
            .iter()
            .map(|run| track::<A, Vec<I>>(run.interventions().clone()));
        let tracked: Vec<Vec<I>> = tracked.collect();
        let part = LossBatch {
            examples,
            step,
            steps,
        };
        let total = |run: usize, loss: Tensor<A, 1>| match penalty(&tracked[run], &part) {
            Some(penalty) => (loss + penalty * runs[run].config().penalty) / batches.len() as f64,
            None => loss / batches.len() as f64,
        };
        let value = |run: usize, logits: Tensor<A, 3>, order: &[usize]| {
            let [_batch, units, _vocab] = logits.dims();
            let targets = runs[run].data()[*dataset].targets(*dataset, order, units, &device);
            loss(logits, &targets)
        };
        let parts = runs.iter().zip(tracked.iter().zip(&copies));
        let parts = parts.map(|(run, (tracked, copies))| Part {
            replicas: run.replicas(),
            interventions: tracked,
            copies,
        });
        let parts: Vec<_> = parts.collect();
        let found = Replicas::gradients(&parts, (*dataset, examples), value, total)?;
        for ((sums, run), found) in sums.iter_mut().zip(runs).zip(found) {
            sums.add(run.interventions(), found);
        }
    }
    Ok(sums)
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
