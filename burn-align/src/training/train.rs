use burn::module::{AutodiffModule, Module, ModuleMapper, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use burn_align_models::AlignableTransformer;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Evaluation, InterchangeData, Targets, TrainingConfig, TrainingError, evaluate};
use crate::engine::{Plan, RunOptions};
use crate::front::AlignableModel;
use crate::interventions::Intervention;

/// One step of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Number of the step, from 0.
    pub step: usize,
    /// Number of all steps.
    pub steps: usize,
    /// The loss without the penalty, averaged over the step's batches.
    pub loss: f64,
}

/// One pass over the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// The loss without the penalty, averaged over the epoch.
    pub loss: f64,
    /// The accuracy on held-out data, if there are any.
    pub held_out: Option<Evaluation>,
}

/// What training tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum TrainingEvent<'a> {
    /// A step has been made.
    Step(&'a StepReport),
    /// An epoch has ended.
    Epoch(&'a EpochReport),
}

/// How training went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Every step.
    pub steps: Vec<StepReport>,
    /// Every epoch.
    pub epochs: Vec<EpochReport>,
}

/// A batch of one dataset: some of its examples, frozen if that is kept.
struct Batch<B: Backend> {
    dataset: usize,
    examples: Vec<usize>,
    frozen: Option<Plan<B>>,
    /// Whether its frozen plan has its place in the budget.
    kept: bool,
}

/// Trains the interventions of a model; the model itself is frozen.
///
/// What comes before the first trained intervention is computed once per example and kept, as far
/// as the memory budget goes; it does not enter the graph of the autodiff backend. Examples are
/// dealt into batches once, at random; each epoch takes the batches in another order.
///
/// - `loss`: from the logits under the interventions, `[batch, unit, vocab]`, and what is wanted;
///   see [`losses`](super::losses)
/// - `observe`: is told of every step and epoch
///
/// # Errors
/// If the data do not fit the model, or the loss is no longer a number.
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
    let plans = data
        .iter()
        .map(|dataset| dataset.plan(&frozen_model))
        .collect::<Result<Vec<_>, _>>()?;
    for dataset in held_out {
        dataset.plan(&frozen_model)?;
    }
    let freeze = |batch: &Batch<A::InnerBackend>| {
        let plan = plans[batch.dataset].0.examples(&batch.examples)?;
        plan.freeze(
            frozen_model.model(),
            frozen_model.interventions(),
            |index| is_trained[index],
            &RunOptions::default(),
        )
    };
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut batches = deal(data, config.batch_size, &mut rng);
    if batches.is_empty() {
        return Err(TrainingError::Nothing {
            expected: "at least one example",
        });
    }

    let mut interventions = track::<A, I>(model.take_interventions());
    let (mut optimizer, mut mask_optimizer) = (
        config.optimizer.init::<A, Vec<I>>(),
        config.optimizer.init::<A, Vec<I>>(),
    );
    let mut history = History::default();
    let per_epoch = batches.len().div_ceil(config.accumulation);
    let steps = per_epoch * config.epochs;
    let mut left = config.memory_budget;
    let mut best: Option<(f64, usize, Vec<I>)> = None;
    for epoch in 0..config.epochs {
        batches.shuffle(&mut rng);
        let mut epoch_loss = 0.0;
        for group in batches.chunks_mut(config.accumulation) {
            let (step, size) = (history.steps.len(), group.len());
            if let Some([from, to]) = config.temperature {
                let share = step as f64 / (steps - 1).max(1) as f64;
                for intervention in &mut interventions {
                    intervention.set_temperature(from + (to - from) * share);
                }
            }
            let mut accumulators = [GradientsAccumulator::new(), GradientsAccumulator::new()];
            let masks: Vec<ParamId> = interventions.iter().flat_map(I::mask_parameters).collect();
            let mut step_loss = 0.0;
            for batch in group.iter_mut() {
                let plan = match batch.frozen.take() {
                    Some(plan) => plan,
                    None => freeze(batch)?,
                };
                let read = plans[batch.dataset].1;
                let targets = data[batch.dataset].targets(batch.dataset, &batch.examples, &device);
                let logits = plan
                    .from_inner::<A>()
                    .run(model.model(), &interventions)?
                    .get(read);
                let value = loss(logits, &targets);
                let total = match penalty(&interventions) {
                    Some(penalty) => value.clone() + penalty * config.penalty,
                    None => value.clone(),
                };
                let mut gradients = (total / size as f64).backward();
                let of_masks = GradientsParams::from_params(&mut gradients, &interventions, &masks);
                let of_rest = GradientsParams::from_module(&mut gradients, &interventions);
                accumulators[0].accumulate(&interventions, of_rest);
                accumulators[1].accumulate(&interventions, of_masks);
                step_loss += number(value);
                // Keep what does not change, while there is room for it.
                let bytes = plan.held_elements() * 4;
                if bytes <= left || batch.kept {
                    if !batch.kept {
                        left -= bytes;
                        batch.kept = true;
                    }
                    batch.frozen = Some(plan);
                }
            }
            step_loss /= size as f64;
            if !step_loss.is_finite() {
                return Err(TrainingError::Diverged {
                    step,
                    loss: step_loss.to_string(),
                });
            }
            let factor = config.schedule.factor(step, steps);
            let before: Vec<Vec<Tensor<A, 2>>> = interventions
                .iter_mut()
                .map(|it| it.orthonormal().iter().map(|it| it.matrix()).collect())
                .collect();
            let [of_rest, of_masks] = accumulators.map(|mut sum| sum.grads());
            interventions = optimizer.step(config.learning_rate * factor, interventions, of_rest);
            interventions =
                mask_optimizer.step(config.mask_learning_rate * factor, interventions, of_masks);
            for (intervention, before) in interventions.iter_mut().zip(before) {
                for (rotation, before) in intervention.orthonormal().into_iter().zip(before) {
                    *rotation = rotation.clone().retracted(before);
                }
            }
            let report = StepReport {
                step,
                steps,
                loss: step_loss,
            };
            observe(TrainingEvent::Step(&report));
            history.steps.push(report);
            epoch_loss += step_loss;
        }
        model.put_interventions(interventions.clone());
        let held_out = match held_out.is_empty() {
            true => None,
            false => Some(evaluate(&model.valid(), held_out, config.batch_size)?),
        };
        let report = EpochReport {
            epoch,
            loss: epoch_loss / per_epoch as f64,
            held_out,
        };
        observe(TrainingEvent::Epoch(&report));
        history.epochs.push(report);
        if let (Some(patience), Some(now)) = (config.patience, held_out) {
            match &best {
                Some((accuracy, since, _)) if now.accuracy <= *accuracy => {
                    if epoch - since >= patience {
                        break;
                    }
                }
                _ => best = Some((now.accuracy, epoch, interventions.clone())),
            }
        }
    }
    // With patience, the best epoch counts, and not the last one.
    let interventions = best.map_or(interventions, |(_, _, interventions)| interventions);
    model.put_interventions(interventions);
    Ok((model, history))
}

/// Batches of all datasets, of examples in random order.
fn deal<B: Backend>(
    data: &[InterchangeData<B>],
    batch_size: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Batch<B>> {
    let mut batches = Vec::new();
    for (dataset, examples) in data.iter().map(InterchangeData::len).enumerate() {
        let mut order: Vec<usize> = (0..examples).collect();
        order.shuffle(rng);
        batches.extend(order.chunks(batch_size).map(|examples| Batch {
            dataset,
            examples: examples.to_vec(),
            frozen: None,
            kept: false,
        }));
    }
    batches
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
