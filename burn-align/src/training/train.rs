//! The training loop.

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::AlignableTransformer;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::checkpoint::{AdamOf, Best, CheckpointFile, State};
use super::devices::Replicas;
use super::evaluate::judge;
use super::fingerprint::fingerprint;
use super::kept::Kept;
use super::track::track;
use super::{
    CheckpointInterval, EpochReport, History, InterchangeData, StepReport, Targets, TrainingConfig,
    TrainingError, TrainingEvent,
};
use crate::engine::{NonFiniteCause, Plan, PlanError, RunOptions, replicate};
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
    [data, held_out]: [&[InterchangeData<A::InnerBackend>]; 2],
    config: &TrainingConfig,
    (loss, penalty): (
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
    config.check()?;
    let Some(device) = devices.first() else {
        return Err(TrainingError::Nothing {
            expected: "at least one device",
        });
    };
    if model.interventions().iter().all(|it| it.num_params() == 0) {
        return Err(TrainingError::Nothing {
            expected: "at least one intervention with parameters",
        });
    }
    let models = replicate(&model.model().clone().no_grad(), devices);
    let mut model = model.map_model(|_elsewhere| models[0].clone());
    let interventions = replicate(&model.take_interventions(), &devices[..1]).remove(0);
    model.put_interventions(interventions);
    let frozen_model = model.valid();
    let plans: Vec<_> = match &prepared {
        Some(kept) => kept.iter().map(Kept::plan).collect(),
        None => {
            let plans = data.iter().map(|dataset| dataset.plan(&frozen_model));
            plans.collect::<Result<Vec<_>, _>>()?
        }
    };
    let judged = held_out
        .iter()
        .map(|it| it.plan_beside_clean(&frozen_model));
    let judged = judged.collect::<Result<Vec<_>, _>>()?;
    let reads: Vec<_> = judged.iter().map(|(_, reads)| *reads).collect();
    let judged = judged.into_iter();
    let judged = judged.map(|(plan, [read, _])| Kept::new((plan.to_device(device), read)));
    let mut judged: Vec<_> = judged.collect();
    let lengths: Vec<usize> = data.iter().map(InterchangeData::len).collect();
    let batches = lengths.iter().map(|it| it.div_ceil(config.batch_size));
    let per_epoch = batches.sum::<usize>().div_ceil(config.accumulation);
    if per_epoch == 0 {
        return Err(TrainingError::Nothing {
            expected: "at least one example",
        });
    }
    let steps = per_epoch * config.epochs;
    let report = |step: usize, loss: f64| StepReport {
        step,
        steps,
        epoch: step / per_epoch,
        loss,
    };
    let history = |state: &State<I>| History {
        steps: (0..)
            .zip(&state.losses)
            .map(|(step, loss)| report(step, *loss))
            .collect(),
        epochs: state.epochs.clone(),
    };

    let mut optimizers = [config.optimizer.init(), config.optimizer.init()];
    let mut state = State {
        interventions: track::<A, Vec<I>>(model.take_interventions()),
        losses: Vec::new(),
        epochs: Vec::new(),
        best: None,
        ended: config.epochs == 0,
    };
    let file = config.checkpoints.as_ref().map(|checkpoints| {
        let (alignment, dims) = (model.config(), model.model().dims());
        let data = [data, held_out];
        let run = fingerprint(config, alignment, dims, &state.interventions, data);
        (CheckpointFile::new(checkpoints, run), checkpoints.every)
    });
    if let Some((file, _)) = &file {
        match file.load(&state.interventions, optimizers.clone())? {
            Some((found, found_optimizers)) => {
                (state, optimizers) = (found, found_optimizers);
                if let Some(last) = state.losses.len().checked_sub(1) {
                    set_temperature(&mut state.interventions, config, last, steps);
                }
                if let Some(best) = &mut state.best {
                    let last = (best.epoch + 1) * per_epoch - 1;
                    set_temperature(&mut best.interventions, config, last, steps);
                }
                observe(TrainingEvent::Resumed(&history(&state)));
            }
            // Find out that a folder is not writable before anything is computed.
            None => file.save(&state, optimizers.each_ref())?,
        }
    }
    let mut replicas = Replicas::new(models, &state.interventions, &plans, &lengths)?;
    if !state.ended {
        let of = data.iter().chain(held_out).map(InterchangeData::len).sum();
        let mut examples = 0;
        let mut done = |more| {
            examples += more;
            observe(TrainingEvent::Prepared { examples, of });
        };
        let (size, budget) = (config.batch_size, config.memory_budget);
        let mut left = match prepared {
            Some(kept) => {
                replicas.hold(kept);
                budget
            }
            None => replicas.fill(&lengths, size, budget, &mut done)?,
        };
        for (judged, dataset) in judged.iter_mut().zip(held_out) {
            let freeze = |plan: &Plan<_>| replicas.freeze(0, plan);
            judged.fill(dataset.len(), size, &mut left, &freeze, &mut done)?;
        }
    }
    let freeze = |plan: &Plan<A::InnerBackend>| replicas.freeze(0, plan);

    while !state.ended {
        let epoch = state.epochs.len();
        let dealt = deal(&lengths, config.batch_size, config.seed, epoch);
        let done = state.losses.len() - epoch * per_epoch;
        for group in dealt.chunks(config.accumulation).skip(done) {
            let step = state.losses.len();
            set_temperature(&mut state.interventions, config, step, steps);
            let replicated = replicas.replicated(&state.interventions);
            let mut sums = [GradientsAccumulator::new(), GradientsAccumulator::new()];
            let mut losses = 0.0;
            for (dataset, examples) in group {
                let tracked = track::<A, Vec<I>>(state.interventions.clone());
                let part = LossBatch {
                    examples,
                    step,
                    steps,
                };
                let total = |loss: Tensor<A, 1>| match penalty(&tracked, &part) {
                    Some(penalty) => (loss + penalty * config.penalty) / group.len() as f64,
                    None => loss / group.len() as f64,
                };
                let value = |logits: Tensor<A, 3>, order: &[usize], device: &A::Device| {
                    let [_batch, units, _vocab] = logits.dims();
                    let targets = data[*dataset].targets(*dataset, order, units, device);
                    loss(logits, &targets)
                };
                let batch = (*dataset, &examples[..]);
                let copies: Vec<_> = replicated.iter().cloned().map(track::<A, Vec<I>>).collect();
                let (found, loss) = replicas.gradients(batch, &tracked, &copies, value, total)?;
                for [of_rest, of_masks] in found {
                    sums[0].accumulate(&state.interventions, of_rest);
                    sums[1].accumulate(&state.interventions, of_masks);
                }
                losses += loss;
            }
            let loss = losses / group.len() as f64;
            if !loss.is_finite() {
                // Where the parameters are not to blame, a lower learning rate does not help.
                let now: Vec<_> = state.interventions.iter().map(I::valid).collect();
                for (dataset, examples) in group {
                    let plan = plans[*dataset].0.examples(examples)?.to_device(device);
                    let options = RunOptions::default();
                    let found = plan.find_non_finite(frozen_model.model(), &now, &options)?;
                    let found = found.filter(|found| {
                        !matches!(found.cause, NonFiniteCause::Intervention { .. })
                    });
                    if let Some(found) = found {
                        return Err(PlanError::NonFinite(Box::new(found)).into());
                    }
                }
                return Err(TrainingError::Diverged {
                    step,
                    loss: loss.to_string(),
                });
            }
            let factor = config.schedule.factor(step, steps);
            let gradients = sums.map(|mut sum| sum.grads());
            let interventions = std::mem::take(&mut state.interventions);
            state.interventions = update(interventions, &mut optimizers, gradients, config, factor);
            state.losses.push(loss);
            observe(TrainingEvent::Step(&report(step, loss)));
            if let Some((file, CheckpointInterval::Steps(every))) = &file
                && state.losses.len().is_multiple_of(*every)
            {
                file.save(&state, optimizers.each_ref())?;
            }
        }
        let losses = &state.losses[epoch * per_epoch..];
        let mut report = EpochReport {
            epoch,
            loss: losses.iter().sum::<f64>() / per_epoch as f64,
            held_out: None,
        };
        if !held_out.is_empty() {
            model.put_interventions(state.interventions.clone());
            let part = |dataset: usize, examples: &mut [usize]| {
                Ok(judged[dataset].batch(examples, &freeze)?)
            };
            let (now, size) = (model.valid(), config.batch_size);
            let [found, _clean] = judge(&now, held_out, size, &reads, part, [])?;
            report.held_out = Some(found);
        }
        observe(TrainingEvent::Epoch(&report));
        state.epochs.push(report);
        state.ended = state.epochs.len() == config.epochs;
        if let (Some(patience), Some(now)) = (config.patience, report.held_out) {
            match &state.best {
                Some(best) if now.accuracy <= best.accuracy => {
                    state.ended |= epoch - best.epoch >= patience;
                }
                _ => {
                    state.best = Some(Best {
                        accuracy: now.accuracy,
                        epoch,
                        interventions: state.interventions.clone(),
                    });
                }
            }
        }
        if let Some((file, every)) = &file {
            let due = match every {
                CheckpointInterval::Epochs(every) => state.epochs.len().is_multiple_of(*every),
                CheckpointInterval::Steps(_) => true,
            };
            if due || state.ended {
                file.save(&state, optimizers.each_ref())?;
            }
        }
    }
    let history = history(&state);
    // With patience, the best epoch counts, not the last one.
    model.put_interventions(match state.best {
        Some(best) => best.interventions,
        None => state.interventions,
    });
    Ok((model, history))
}

/// The batches of an epoch, by dataset, in random order, determined by seed and epoch alone.
fn deal(lengths: &[usize], batch_size: usize, seed: u64, epoch: usize) -> Vec<(usize, Vec<usize>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch as u64);
    let mut batches = Vec::new();
    for (dataset, examples) in lengths.iter().enumerate() {
        let mut order: Vec<usize> = (0..*examples).collect();
        order.shuffle(&mut rng);
        let chosen = order.chunks(batch_size);
        batches.extend(chosen.map(|examples| (dataset, examples.to_vec())));
    }
    batches.shuffle(&mut rng);
    batches
}

fn set_temperature<B: Backend, I: Intervention<B>>(
    interventions: &mut [I],
    config: &TrainingConfig,
    step: usize,
    steps: usize,
) {
    if let Some([from, to]) = config.temperature {
        let share = step as f64 / (steps - 1).max(1) as f64;
        for intervention in interventions {
            intervention.set_temperature(from + (to - from) * share);
        }
    }
}

/// One step of both optimizers: that of everything but masks, and that of masks.
fn update<A: AutodiffBackend, I: Intervention<A> + AutodiffModule<A>>(
    mut interventions: Vec<I>,
    [optimizer, mask_optimizer]: &mut [AdamOf<A, I>; 2],
    [of_rest, of_masks]: [GradientsParams; 2],
    config: &TrainingConfig,
    factor: f64,
) -> Vec<I> {
    let before: Vec<Vec<Tensor<A, 2>>> = interventions
        .iter_mut()
        .map(|it| it.orthonormal().iter().map(|it| it.matrix()).collect())
        .collect();
    interventions = optimizer.step(config.learning_rate * factor, interventions, of_rest);
    interventions =
        mask_optimizer.step(config.mask_learning_rate * factor, interventions, of_masks);
    for (intervention, before) in interventions.iter_mut().zip(before) {
        for (rotation, before) in intervention.orthonormal().into_iter().zip(before) {
            *rotation = rotation.clone().retracted(before);
        }
    }
    interventions
}

/// The sum of the penalties of all interventions.
pub(crate) fn own_penalties<B: Backend, I: Intervention<B>>(
    interventions: &[I],
    _batch: &LossBatch<'_>,
) -> Option<Tensor<B, 1>> {
    let penalties = interventions.iter().filter_map(I::penalty);
    penalties.reduce(|sum, penalty| sum + penalty)
}
