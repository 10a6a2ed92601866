//! One run of training: its parameters, and what decides about them.

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
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
    CheckpointInterval, EpochReport, History, InterchangeData, StepReport, TrainingConfig,
    TrainingError, TrainingEvent,
};
use crate::engine::{NonFiniteCause, Plan, PlanError, ReadId, RunOptions, replicate};
use crate::front::AlignableModel;
use crate::interventions::Intervention;

/// Some examples of a dataset: the batches of a step.
pub(super) type Batches = Vec<(usize, Vec<usize>)>;

/// A run of training.
pub(crate) struct Run<'a, A: AutodiffBackend, M: AutodiffModule<A>, I: AutodiffModule<A>> {
    /// Without its interventions.
    model: AlignableModel<A, M, I>,
    data: &'a [InterchangeData<A::InnerBackend>],
    held_out: &'a [InterchangeData<A::InnerBackend>],
    config: TrainingConfig,
    /// For each dataset, with the read of its logits.
    plans: Vec<(Plan<A::InnerBackend>, ReadId)>,
    /// For each held-out dataset, with the reads of its logits and of those without interventions.
    judged: Vec<(Kept<A::InnerBackend>, [ReadId; 2])>,
    replicas: Replicas<A, M, I>,
    optimizers: [AdamOf<A, I>; 2],
    state: State<I>,
    file: Option<(CheckpointFile, CheckpointInterval)>,
    /// Number of steps of an epoch.
    per_epoch: usize,
    /// The batches of the epoch that is being run, by step.
    dealt: Vec<Batches>,
}

impl<'a, A, M, I> Run<'a, A, M, I>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    /// A run as its checkpoint left it, or at its beginning, with what does not change computed.
    ///
    /// - prepared: what does not change for the data, if it has been computed: for plans of the
    ///   same model and data, on one device
    pub(crate) fn new(
        model: AlignableModel<A, M, I>,
        devices: &[A::Device],
        [data, held_out]: [&'a [InterchangeData<A::InnerBackend>]; 2],
        config: &TrainingConfig,
        prepared: Option<Vec<Kept<A::InnerBackend>>>,
        observe: &mut impl FnMut(TrainingEvent<'_>),
    ) -> Result<Self, TrainingError> {
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
        let frozen = model.valid();
        let plans: Vec<_> = match &prepared {
            Some(kept) => kept.iter().map(Kept::plan).collect(),
            None => {
                let plans = data.iter().map(|dataset| dataset.plan(&frozen));
                plans.collect::<Result<Vec<_>, _>>()?
            }
        };
        let judged = held_out.iter().map(|dataset| {
            let (plan, reads) = dataset.plan_beside_clean(&frozen)?;
            Ok((Kept::new((plan.to_device(device), reads[0])), reads))
        });
        let judged = judged.collect::<Result<Vec<_>, TrainingError>>()?;
        let lengths: Vec<usize> = data.iter().map(InterchangeData::len).collect();
        let batches = lengths.iter().map(|it| it.div_ceil(config.batch_size));
        let per_epoch = batches.sum::<usize>().div_ceil(config.accumulation);
        if per_epoch == 0 {
            return Err(TrainingError::Nothing {
                expected: "at least one example",
            });
        }
        let interventions = track::<A, Vec<I>>(model.take_interventions());
        let replicas = Replicas::new(models, &interventions, &plans, &lengths)?;
        let mut run = Self {
            file: config.checkpoints.as_ref().map(|checkpoints| {
                let (alignment, dims) = (model.config(), model.model().dims());
                let data = [data, held_out];
                let run = fingerprint(config, alignment, dims, &interventions, data);
                (CheckpointFile::new(checkpoints, run), checkpoints.every)
            }),
            model,
            data,
            held_out,
            config: config.clone(),
            plans,
            judged,
            replicas,
            optimizers: [config.optimizer.init(), config.optimizer.init()],
            state: State {
                interventions,
                losses: Vec::new(),
                epochs: Vec::new(),
                best: None,
                ended: config.epochs == 0,
            },
            per_epoch,
            dealt: Vec::new(),
        };
        run.resume(observe)?;
        if !run.has_ended() {
            run.prepare(&lengths, prepared, observe)?;
            // Interrupted after the last step of an epoch.
            run.end_epoch_if_done(&mut *observe)?;
            run.save_epoch()?;
        }
        run.deal();
        Ok(run)
    }

    /// Goes back to where a checkpoint was written, if there is one.
    fn resume(&mut self, observe: &mut impl FnMut(TrainingEvent<'_>)) -> Result<(), TrainingError> {
        let Some((file, _)) = &self.file else {
            return Ok(());
        };
        let Some(found) = file.load(&self.state.interventions, self.optimizers.clone())? else {
            // Find out that a folder is not writable before anything is computed.
            return file.save(&self.state, self.optimizers.each_ref());
        };
        (self.state, self.optimizers) = found;
        let steps = self.steps();
        let state = &mut self.state;
        if let Some(last) = state.losses.len().checked_sub(1) {
            set_temperature(&mut state.interventions, &self.config, last, steps);
        }
        if let Some(best) = &mut state.best {
            let last = (best.epoch + 1) * self.per_epoch - 1;
            set_temperature(&mut best.interventions, &self.config, last, steps);
        }
        observe(TrainingEvent::Resumed(&self.history()));
        Ok(())
    }

    /// Computes what does not change, within the memory budget.
    fn prepare(
        &mut self,
        lengths: &[usize],
        prepared: Option<Vec<Kept<A::InnerBackend>>>,
        observe: &mut impl FnMut(TrainingEvent<'_>),
    ) -> Result<(), TrainingError> {
        let all = self.data.iter().chain(self.held_out);
        let of = all.map(InterchangeData::len).sum();
        let mut examples = 0;
        let mut done = |more| {
            examples += more;
            observe(TrainingEvent::Prepared { examples, of });
        };
        let (size, budget) = (self.config.batch_size, self.config.memory_budget);
        let mut left = match prepared {
            Some(kept) => {
                self.replicas.hold(kept);
                budget
            }
            None => self.replicas.fill(lengths, size, budget, &mut done)?,
        };
        for ((judged, _), dataset) in self.judged.iter_mut().zip(self.held_out) {
            let freeze = |plan: &Plan<_>| self.replicas.freeze(0, plan);
            judged.fill(dataset.len(), size, &mut left, &freeze, &mut done)?;
        }
        Ok(())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.ended
    }

    /// The number of the next step.
    pub(super) fn step(&self) -> usize {
        self.state.losses.len()
    }

    /// Number of all steps.
    pub(super) fn steps(&self) -> usize {
        self.per_epoch * self.config.epochs
    }

    pub(super) fn config(&self) -> &TrainingConfig {
        &self.config
    }

    pub(super) fn data(&self) -> &'a [InterchangeData<A::InnerBackend>] {
        self.data
    }

    pub(super) fn replicas(&self) -> &Replicas<A, M, I> {
        &self.replicas
    }

    /// The interventions as they are now.
    pub(super) fn interventions(&self) -> &Vec<I> {
        &self.state.interventions
    }

    /// The device on which the loss is computed.
    pub(super) fn device(&self) -> A::Device {
        self.model.model().device()
    }

    /// The batches of the next step.
    pub(super) fn batches(&self) -> Batches {
        let step = self.step() - self.state.epochs.len() * self.per_epoch;
        self.dealt[step].clone()
    }

    /// Divides the examples of the epoch that is next, if there is one.
    fn deal(&mut self) {
        if !self.has_ended() {
            let (config, epoch) = (&self.config, self.state.epochs.len());
            let lengths: Vec<usize> = self.data.iter().map(InterchangeData::len).collect();
            let dealt = deal(&lengths, config.batch_size, config.seed, epoch);
            let steps = dealt.chunks(config.accumulation).map(<[_]>::to_vec);
            self.dealt = steps.collect();
        }
    }

    /// Makes the interventions ready for the next step.
    pub(super) fn begin_step(&mut self) {
        let (step, steps) = (self.step(), self.steps());
        set_temperature(&mut self.state.interventions, &self.config, step, steps);
    }

    /// Updates the interventions.
    ///
    /// - gradients: those of everything but masks, and of masks
    /// - loss: without the penalty, averaged over the batches
    pub(super) fn update(
        &mut self,
        gradients: [GradientsParams; 2],
        loss: f64,
        batches: &Batches,
    ) -> Result<(), TrainingError> {
        let (step, steps) = (self.step(), self.steps());
        if !loss.is_finite() {
            return Err(self.not_finite(step, loss, batches));
        }
        let factor = self.config.schedule.factor(step, steps);
        let state = &mut self.state;
        let interventions = std::mem::take(&mut state.interventions);
        state.interventions = update(
            interventions,
            &mut self.optimizers,
            gradients,
            &self.config,
            factor,
        );
        state.losses.push(loss);
        Ok(())
    }

    /// Reports the last step.
    pub(super) fn report_step(&self, mut observe: impl FnMut(TrainingEvent<'_>)) {
        if let Some((step, loss)) = self.state.losses.iter().enumerate().next_back() {
            observe(TrainingEvent::Step(&self.report(step, *loss)));
        }
    }

    /// Writes a checkpoint after a step, if it is due.
    pub(super) fn save_step(&self) -> Result<(), TrainingError> {
        match &self.file {
            Some((file, CheckpointInterval::Steps(every)))
                if self.step().is_multiple_of(*every) =>
            {
                file.save(&self.state, self.optimizers.each_ref())
            }
            _ => Ok(()),
        }
    }

    /// Ends an epoch whose steps have all been taken.
    pub(super) fn end_epoch_if_done(
        &mut self,
        observe: impl FnMut(TrainingEvent<'_>),
    ) -> Result<(), TrainingError> {
        if self.step() == (self.state.epochs.len() + 1) * self.per_epoch {
            self.end_epoch(observe)?;
            self.deal();
        }
        Ok(())
    }

    /// Writes a checkpoint after an epoch, if one has just ended and it is due.
    pub(super) fn save_epoch(&self) -> Result<(), TrainingError> {
        let epochs = self.state.epochs.len();
        let Some((file, every)) = &self.file else {
            return Ok(());
        };
        let due = match every {
            CheckpointInterval::Epochs(every) => epochs.is_multiple_of(*every),
            CheckpointInterval::Steps(_) => true,
        };
        match self.step() == epochs * self.per_epoch && (due || self.has_ended()) {
            true => file.save(&self.state, self.optimizers.each_ref()),
            false => Ok(()),
        }
    }

    /// Where the parameters are not to blame, a lower learning rate does not help.
    fn not_finite(&self, step: usize, loss: f64, batches: &Batches) -> TrainingError {
        let frozen = self.model.valid();
        let now: Vec<_> = self.interventions().iter().map(I::valid).collect();
        let found = batches.iter().find_map(|(dataset, examples)| {
            let plan = match self.plans[*dataset].0.examples(examples) {
                Ok(plan) => plan.to_device(&self.device()),
                Err(error) => return Some(error),
            };
            let options = RunOptions::default();
            match plan.find_non_finite(frozen.model(), &now, &options) {
                Ok(found) => {
                    let found = found.filter(|found| {
                        !matches!(found.cause, NonFiniteCause::Intervention { .. })
                    })?;
                    Some(PlanError::NonFinite(Box::new(found)))
                }
                Err(error) => Some(error),
            }
        });
        match found {
            Some(error) => error.into(),
            None => TrainingError::Diverged {
                step,
                loss: loss.to_string(),
            },
        }
    }

    /// Judges the interventions on held-out data, and decides whether to go on.
    fn end_epoch(
        &mut self,
        mut observe: impl FnMut(TrainingEvent<'_>),
    ) -> Result<(), TrainingError> {
        let (epoch, per_epoch) = (self.state.epochs.len(), self.per_epoch);
        let losses = &self.state.losses[epoch * per_epoch..];
        let mut report = EpochReport {
            epoch,
            loss: losses.iter().sum::<f64>() / per_epoch as f64,
            held_out: None,
        };
        if !self.held_out.is_empty() {
            let mut now = self.model.clone();
            now.put_interventions(self.state.interventions.clone());
            let freeze = |plan: &Plan<A::InnerBackend>| self.replicas.freeze(0, plan);
            let part = |dataset: usize, examples: &mut [usize]| {
                Ok(self.judged[dataset].0.batch(examples, &freeze)?)
            };
            let reads: Vec<_> = self.judged.iter().map(|(_, reads)| *reads).collect();
            let (now, size) = (now.valid(), self.config.batch_size);
            let [found, _clean] = judge(&now, self.held_out, size, &reads, part, [])?;
            report.held_out = Some(found);
        }
        observe(TrainingEvent::Epoch(&report));
        let state = &mut self.state;
        state.epochs.push(report);
        state.ended = state.epochs.len() == self.config.epochs;
        if let (Some(patience), Some(now)) = (self.config.patience, report.held_out) {
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
        Ok(())
    }

    fn report(&self, step: usize, loss: f64) -> StepReport {
        StepReport {
            step,
            steps: self.steps(),
            epoch: step / self.per_epoch,
            loss,
        }
    }

    fn history(&self) -> History {
        let steps = (0..).zip(&self.state.losses);
        History {
            steps: steps.map(|(step, loss)| self.report(step, *loss)).collect(),
            epochs: self.state.epochs.clone(),
        }
    }

    /// The model with what has been trained, and how that went.
    pub(crate) fn finish(mut self) -> (AlignableModel<A, M, I>, History) {
        let history = self.history();
        // With patience, the best epoch counts, not the last one.
        self.model.put_interventions(match self.state.best {
            Some(best) => best.interventions,
            None => self.state.interventions,
        });
        (self.model, history)
    }
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
    [mut of_rest, of_masks]: [GradientsParams; 2],
    config: &TrainingConfig,
    factor: f64,
) -> Vec<I> {
    let mut before: Vec<Vec<Tensor<A, 2>>> = Vec::new();
    for intervention in &mut interventions {
        let rotations = intervention.orthonormal();
        for rotation in &rotations {
            let id = rotation.parameter.id;
            if let Some(gradient) = of_rest.remove::<A::InnerBackend, 2>(id) {
                let gradient = rotation.valid().riemannian_gradient(gradient);
                of_rest.register::<A::InnerBackend, 2>(id, gradient);
            }
        }
        before.push(rotations.iter().map(|it| it.matrix()).collect());
    }
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
