//! Settings of training: optimizer, schedules, budget, checkpoints.

use std::path::PathBuf;

use burn::optim::AdamConfig;
use serde::{Deserialize, Serialize};

use super::TrainingError;

/// How the learning rate changes over the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RateSchedule {
    /// It stays constant.
    #[default]
    Constant,
    /// It rises from 0 over this share of the steps, then falls to 0, as in pyvene's Boundless DAS
    /// notebook, where the share is 0.1.
    WarmUpThenDecay(f64),
    /// It rises to its value over the first steps, and falls to 0 over the last ones, as usual for
    /// dictionaries (Gao et al. 2024, arXiv 2406.04093, appendix A; SAELens' `lr_warm_up_steps` and
    /// `lr_decay_steps`, here as shares of all steps).
    WarmUpHoldDecay {
        /// The share of the steps in which it rises.
        warm_up: f64,
        /// The share of the steps in which it falls.
        decay: f64,
    },
}

impl RateSchedule {
    /// The factor applied to the learning rate at a step.
    pub fn factor(self, step: usize, steps: usize) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::WarmUpThenDecay(share) => {
                let warm = (share * steps as f64).round();
                let step = step as f64;
                if step < warm {
                    step / warm.max(1.0)
                } else {
                    ((steps as f64 - step) / (steps as f64 - warm).max(1.0)).max(0.0)
                }
            }
            Self::WarmUpHoldDecay { warm_up, decay } => {
                let [rising, falling] = [warm_up, decay].map(|it| (it * steps as f64).round());
                let risen = (step as f64 + 1.0) / rising.max(1.0);
                let left = (steps as f64 - step as f64) / falling.max(1.0);
                risen.min(left).clamp(0.0, 1.0)
            }
        }
    }
}

/// Where training saves its state, so that an interrupted run can resume.
///
/// A run that finds a checkpoint in its folder resumes from it, with the same results as without
/// the interruption. A checkpoint of another run is an error. If the run has already ended, only
/// its result is read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoints {
    /// The folder, which is created if necessary. It has one file, which is replaced atomically.
    pub folder: PathBuf,
    /// How often to save. The start and the end of the run are saved too.
    pub every: CheckpointInterval,
}

/// How often a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointInterval {
    /// After this many epochs.
    Epochs(usize),
    /// After this many optimizer steps, and after every epoch.
    Steps(usize),
}

impl Checkpoints {
    /// Saves after every epoch.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            every: CheckpointInterval::Epochs(1),
        }
    }

    /// Sets how often to save.
    pub fn with_every(mut self, every: CheckpointInterval) -> Self {
        self.every = every;
        self
    }
}

impl CheckpointInterval {
    /// How many epochs or steps.
    pub(super) fn number(self) -> usize {
        match self {
            Self::Epochs(every) | Self::Steps(every) => every,
        }
    }
}

/// How interventions are trained.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TrainingConfig {
    /// Passes over the data. Default: 3.
    pub epochs: usize,
    /// Examples per batch. Default: 16.
    pub batch_size: usize,
    /// Learning rate of rotations and of everything that is not a mask. Default: 1e-3.
    pub learning_rate: f64,
    /// Learning rate of masks and boundaries. Default: 1e-2.
    pub mask_learning_rate: f64,
    /// How both learning rates change.
    pub schedule: RateSchedule,
    /// The optimizer, including gradient clipping and weight decay. Default: Adam as PyTorch has it,
    /// with an ε of 1e-8; Burn's own default, 1e-5, shortens the steps of small gradients.
    pub optimizer: AdamConfig,
    /// Number of batches whose losses are averaged for one optimizer step. Default: 1.
    pub accumulation: usize,
    /// Temperature of masks at the first and at the last step, linear in between. Default:
    /// unchanged.
    pub temperature: Option<[f64; 2]>,
    /// Weight of the [penalty](crate::interventions::Intervention::penalty) in the loss. Default:
    /// 1.
    pub penalty: f64,
    /// Seed for the order of the examples.
    pub seed: u64,
    /// Stops when the accuracy on held-out data has not risen for this many epochs. Default: never.
    pub patience: Option<usize>,
    /// Bytes available for what does not change between epochs. What does not fit is recomputed for
    /// every batch. Default: 2 GiB.
    pub memory_budget: usize,
    /// Where to save the state of the run. Default: nowhere.
    pub checkpoints: Option<Checkpoints>,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 3,
            batch_size: 16,
            learning_rate: 1e-3,
            mask_learning_rate: 1e-2,
            schedule: RateSchedule::Constant,
            optimizer: AdamConfig::new().with_epsilon(1e-8),
            accumulation: 1,
            temperature: None,
            penalty: 1.0,
            seed: 0,
            patience: None,
            memory_budget: 2 << 30,
            checkpoints: None,
        }
    }
}

impl TrainingConfig {
    /// Sets the number of passes over the data.
    pub fn with_epochs(mut self, epochs: usize) -> Self {
        self.epochs = epochs;
        self
    }

    /// Sets the number of examples per batch.
    pub fn with_batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the learning rate of everything but masks.
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets the learning rate of masks and boundaries.
    pub fn with_mask_learning_rate(mut self, learning_rate: f64) -> Self {
        self.mask_learning_rate = learning_rate;
        self
    }

    /// Sets the schedule of the learning rates.
    pub fn with_schedule(mut self, schedule: RateSchedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets the optimizer.
    pub fn with_optimizer(mut self, optimizer: AdamConfig) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Sets the number of batches whose losses are averaged for one step.
    pub fn with_accumulation(mut self, batches: usize) -> Self {
        self.accumulation = batches;
        self
    }

    /// Sets the temperature of masks at the first and at the last step.
    pub fn with_temperature(mut self, from: f64, to: f64) -> Self {
        self.temperature = Some([from, to]);
        self
    }

    /// Sets the weight of the penalty.
    pub fn with_penalty(mut self, factor: f64) -> Self {
        self.penalty = factor;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Stops after this many epochs without progress.
    pub fn with_patience(mut self, epochs: usize) -> Self {
        self.patience = Some(epochs);
        self
    }

    /// Sets the bytes available for what does not change between epochs.
    pub fn with_memory_budget(mut self, bytes: usize) -> Self {
        self.memory_budget = bytes;
        self
    }

    /// Saves checkpoints, so that the run can be interrupted and resumed.
    pub fn with_checkpoints(mut self, checkpoints: Checkpoints) -> Self {
        self.checkpoints = Some(checkpoints);
        self
    }

    pub(super) fn check(&self) -> Result<(), TrainingError> {
        let wrong = |what, expected, found: String| {
            Err(TrainingError::Setting {
                what,
                expected,
                found,
            })
        };
        for (what, number) in [
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
            (
                "checkpoints",
                self.checkpoints.as_ref().map_or(1, |it| it.every.number()),
            ),
        ] {
            if number == 0 {
                return wrong(what, "at least 1", number.to_string());
            }
        }
        for (what, rate) in [
            ("learning_rate", self.learning_rate),
            ("mask_learning_rate", self.mask_learning_rate),
        ] {
            if !rate.is_finite() || rate < 0.0 {
                return wrong(what, "a finite number, not below 0", rate.to_string());
            }
        }
        for temperature in self.temperature.iter().flatten() {
            if !temperature.is_finite() || *temperature <= 0.0 {
                return wrong("temperature", "numbers above 0", temperature.to_string());
            }
        }
        Ok(())
    }
}
