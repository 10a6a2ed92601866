use burn::module::{AutodiffModule, Module, ModuleMapper, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use burn_align_models::AlignableTransformer;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::checkpoint::{AdamOf, Best, CheckpointFile, State};
use super::evaluate::judge;
use super::fingerprint::fingerprint;
use super::kept::Kept;
use super::{
    CheckpointInterval, EpochReport, History, InterchangeData, StepReport, Targets, TrainingConfig,
    TrainingError, TrainingEvent,
};
use crate::engine::{Plan, RunOptions};
use crate::front::AlignableModel;
use crate::interventions::Intervention;

/// Trains the interventions of a model; the model itself is frozen.
///
/// What comes before the first trained intervention is computed once per example and kept, as far
/// as the memory budget goes; it does not enter the graph of the autodiff backend. Each epoch deals
/// the examples of each dataset into batches anew, and takes these in random order. (Not kept, and
/// computed for every batch, are sources' vectors at all positions of prompts of different
/// lengths.)
///
/// With [checkpoints](TrainingConfig::checkpoints), a run that was cut off, wherever it was, goes
/// on and ends with the same parameters and history, bit by bit if the backend computes the same
/// twice. It must be given the same model, interventions and data. What a loss draws at random, and
/// fields of your own interventions that are no parameters, are not in a checkpoint.
///
/// - `loss`: from the logits under the interventions, `[batch, unit, vocab]`, and what is wanted;
///   see [`losses`](super::losses)
/// - `observe`: is told of every step and epoch
///
/// # Errors
/// If the data do not fit the model, the loss is no longer a number, or a checkpoint cannot be
/// written or is of another run.
pub fn train<A, M, I>(
    model: AlignableModel<A, M, I>,
    data: &[InterchangeData<A::InnerBackend>],
    held_out: &[InterchangeData<A::InnerBackend>],
    config: &TrainingConfig,
    loss: impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
    mut observe: impl FnMut(TrainingEvent<'_>),
) -> Result<(AlignableModel<A, M, I>, History), TrainingError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    config.check()?;
    let device = model.model().device();
    let mut model = model.map_model(Module::no_grad);
    let is_trained: Vec<bool> = model
        .interventions()
        .iter()
        .map(|intervention| intervention.num_params() > 0)
        .collect();
    if !is_trained.contains(&true) {
        return Err(TrainingError::Nothing {
            expected: "at least one intervention with parameters",
        });
    }
    let frozen_model = model.valid();
    let plans = data.iter().map(|dataset| dataset.plan(&frozen_model));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let mut kept: Vec<_> = plans.into_iter().map(Kept::new).collect();
    let judged = held_out
        .iter()
        .map(|it| it.plan_beside_clean(&frozen_model));
    let judged = judged.collect::<Result<Vec<_>, _>>()?;
    let reads: Vec<_> = judged.iter().map(|(_, reads)| *reads).collect();
    let judged = judged.into_iter().map(|(plan, [read, _])| (plan, read));
    let mut judged: Vec<_> = judged.map(Kept::new).collect();
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
        interventions: track::<A, I>(model.take_interventions()),
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
            // A folder that cannot be written to is found before anything is computed.
            None => file.save(&state, optimizers.each_ref())?,
        }
    }
    let freeze = |plan: &Plan<A::InnerBackend>| {
        let (frozen, options) = (frozen_model.interventions(), RunOptions::default());
        plan.freeze(frozen_model.model(), frozen, |it| is_trained[it], &options)
    };
    if !state.ended {
        let all = kept.iter_mut().chain(&mut judged);
        let all: Vec<_> = all.zip(data.iter().chain(held_out)).collect();
        let of = all.iter().map(|(_, dataset)| dataset.len()).sum();
        let (mut left, mut examples) = (config.memory_budget, 0);
        for (kept, dataset) in all {
            kept.fill(
                dataset.len(),
                config.batch_size,
                &mut left,
                &freeze,
                |more| {
                    examples += more;
                    observe(TrainingEvent::Prepared { examples, of });
                },
            )?;
        }
    }

    while !state.ended {
        let epoch = state.epochs.len();
        let mut dealt = deal(&lengths, config.batch_size, config.seed, epoch);
        let done = state.losses.len() - epoch * per_epoch;
        for group in dealt.chunks_mut(config.accumulation).skip(done) {
            let step = state.losses.len();
            set_temperature(&mut state.interventions, config, step, steps);
            let batch = |(dataset, examples): &mut (usize, Vec<usize>)| {
                let plan = kept[*dataset].batch(examples, &freeze)?;
                let results = plan.from_inner::<A>();
                let results = results.run(model.model(), &state.interventions)?;
                let logits = results.get(kept[*dataset].logits);
                let [_batch, units, _vocab] = logits.dims();
                let targets = data[*dataset].targets(*dataset, examples, units, &device);
                Ok::<_, TrainingError>(loss(logits, &targets))
            };
            let (gradients, loss) = gradients(&state.interventions, config, group, batch)?;
            if !loss.is_finite() {
                return Err(TrainingError::Diverged {
                    step,
                    loss: loss.to_string(),
                });
            }
            let factor = config.schedule.factor(step, steps);
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
    // With patience, the best epoch counts, and not the last one.
    model.put_interventions(match state.best {
        Some(best) => best.interventions,
        None => state.interventions,
    });
    Ok((model, history))
}

/// The batches of an epoch, by dataset, in random order. They follow from seed and epoch alone.
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

/// The gradients of a step, those of masks apart, and its loss without the penalty.
///
/// - batch: the loss of one of the step's batches
fn gradients<A: AutodiffBackend, I: Intervention<A> + AutodiffModule<A>, T>(
    interventions: &[I],
    config: &TrainingConfig,
    group: &mut [T],
    batch: impl Fn(&mut T) -> Result<Tensor<A, 1>, TrainingError>,
) -> Result<([GradientsParams; 2], f64), TrainingError> {
    let interventions = interventions.to_vec();
    let mut sums = [GradientsAccumulator::new(), GradientsAccumulator::new()];
    let masks: Vec<ParamId> = interventions.iter().flat_map(I::mask_parameters).collect();
    let size = group.len() as f64;
    let mut loss = 0.0;
    for each in group {
        let value = batch(each)?;
        let total = match penalty(&interventions) {
            Some(penalty) => value.clone() + penalty * config.penalty,
            None => value.clone(),
        };
        let mut gradients = (total / size).backward();
        let of_masks = GradientsParams::from_params(&mut gradients, &interventions, &masks);
        let of_rest = GradientsParams::from_module(&mut gradients, &interventions);
        sums[0].accumulate(&interventions, of_rest);
        sums[1].accumulate(&interventions, of_masks);
        loss += number(value);
    }
    Ok((sums.map(|mut sum| sum.grads()), loss / size))
}

/// One step of the optimizers: of rotations and the rest, and of masks.
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

/// The penalties of all interventions together.
fn penalty<B: Backend, I: Intervention<B>>(interventions: &[I]) -> Option<Tensor<B, 1>> {
    let penalties = interventions.iter().filter_map(I::penalty);
    penalties.reduce(|sum, penalty| sum + penalty)
}

fn number<B: Backend>(value: Tensor<B, 1>) -> f64 {
    let data = value.detach().cast(DType::F32).into_data();
    data.iter::<f64>().next().unwrap_or(f64::NAN)
}

/// The interventions with their parameters tracked, wherever they came from.
fn track<A: AutodiffBackend, I: Module<A>>(interventions: Vec<I>) -> Vec<I> {
    struct Track;
    impl<A: AutodiffBackend> ModuleMapper<A> for Track {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
            param.map(|tensor| tensor.detach().require_grad())
        }
    }
    interventions.map(&mut Track)
}
