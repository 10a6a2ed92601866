//! A dictionary in training, one batch of activations at a time.

use burn::optim::Adam;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::optimizer::{Moments, across, clipped, normalised};
use super::parameters::Parameters;
use super::pass::{Pass, pass};
use super::revive::resample;
use super::{DictionaryStep, DictionaryTrainingConfig, DictionaryTrainingError};
use crate::dictionaries::{Dictionary, DictionaryError};
use crate::engine::read_numbers;

/// A dictionary in training. [`train_dictionary`](super::train_dictionary) gives it the activations
/// of a model; give it your own with [`step`](Self::step), as they are: nothing is scaled or left
/// out here.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_align::training::dictionary::{
///     DictionaryTrainer, DictionaryTrainingConfig, Sparsity,
/// };
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// // 32 features, of which 4 are active, for activations of width 8: 20 steps of 64 tokens.
/// let config = DictionaryTrainingConfig::new(32, Sparsity::top_k(4), 20 * 64)
///     .with_batch_tokens(64)
///     .with_learning_rate(1e-2);
/// let mut trainer = DictionaryTrainer::<B>::new(8, &config, &device)?;
/// let mut losses = Vec::new();
/// for _ in 0..config.steps() {
///     let x = Tensor::random([64, 8], Distribution::Normal(0.0, 1.0), &device);
///     losses.push(trainer.step(x)?.loss);
/// }
/// assert!(losses[19] < losses[0]);
/// assert_eq!(trainer.dictionary()?.features(), 32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct DictionaryTrainer<B: Backend> {
    pub(super) config: DictionaryTrainingConfig,
    pub(super) parameters: Parameters<B>,
    pub(super) moments: Moments<B>,
    /// For each feature, the number of steps since it was active.
    pub(super) silent: Vec<usize>,
    /// Number of steps so far.
    pub(super) done: usize,
    adam: Adam,
}

impl<B: Backend> DictionaryTrainer<B> {
    /// Starts with random directions, the same in encoder and decoder, and no biases.
    ///
    /// - width: of the activations
    ///
    /// # Errors
    /// [`DictionaryTrainingError::Setting`] if a setting is out of range.
    pub fn new(
        width: usize,
        config: &DictionaryTrainingConfig,
        device: &B::Device,
    ) -> Result<Self, DictionaryTrainingError> {
        config.check(width)?;
        Ok(Self::start(
            Parameters::random(width, config, device),
            config,
        ))
    }

    /// Starts with a dictionary, which says whether `b_dec` is subtracted. Its decoder is
    /// normalised if the configuration [asks for it](DictionaryTrainingConfig::unit_decoder).
    ///
    /// # Errors
    /// [`DictionaryTrainingError::Setting`] if a setting is out of range, or the dictionary is not
    /// of the kind that the configuration describes.
    pub fn from_dictionary(
        dictionary: &Dictionary<B>,
        config: &DictionaryTrainingConfig,
    ) -> Result<Self, DictionaryTrainingError> {
        config.check(dictionary.width())?;
        let config = config
            .clone()
            .with_subtracted_bias(dictionary.subtracts_bias());
        Ok(Self::start(Parameters::of(dictionary, &config)?, &config))
    }

    fn start(parameters: Parameters<B>, config: &DictionaryTrainingConfig) -> Self {
        Self {
            parameters: match config.unit_decoder {
                true => normalised(parameters),
                false => parameters,
            },
            moments: Moments::default(),
            silent: vec![0; config.features],
            done: 0,
            adam: config.optimizer.build(),
            config: config.clone(),
        }
    }

    /// One step of the optimizer, which brings the reconstruction of these activations closer to
    /// them.
    ///
    /// # Shapes
    /// - x: `[token, width]`
    ///
    /// # Errors
    /// [`DictionaryTrainingError::Width`] for activations of another width,
    /// [`DictionaryTrainingError::NotFinite`] if they are not finite, and
    /// [`DictionaryTrainingError::Diverged`] if only the loss is not; the dictionary is then as it
    /// was before.
    pub fn step(&mut self, x: Tensor<B, 2>) -> Result<DictionaryStep, DictionaryTrainingError> {
        let (step, x) = (self.done, x.detach().cast(DType::F32));
        let [_features, width] = self.parameters.dims();
        let [rows, found] = x.dims();
        if found != width {
            return Err(DictionaryTrainingError::Width {
                expected: width,
                found,
            });
        }
        if rows == 0 {
            return Err(super::sparsity::wrong("activations", "at least one", 0));
        }
        let dead = self.dead();
        let Pass {
            mut gradients,
            read,
            squares,
            l0,
            fired,
            penalty,
        } = pass(&self.parameters, x.clone(), &self.config, step, &dead)?;
        let error = squares.iter().sum::<f64>() / rows as f64;
        let loss = error + penalty;
        let deviations = (x.clone() - x.mean_dim(0)).square().sum_dim(1); // [token, 1]
        let variance = read_numbers(deviations)?.iter().sum::<f64>() / rows as f64;
        if !loss.is_finite() {
            return Err(match variance.is_finite() {
                false => DictionaryTrainingError::NotFinite { step },
                true => DictionaryTrainingError::Diverged {
                    step,
                    loss: loss.to_string(),
                },
            });
        }
        let steps = self.config.steps();
        let rate = self.config.learning_rate * self.config.schedule.factor(step, steps);
        let report = DictionaryStep {
            step,
            steps,
            loss,
            error,
            // Equal activations have no variance to explain.
            explained_variance: match variance > 0.0 {
                true => 1.0 - error / variance,
                false => 0.0,
            },
            l0,
            dead: dead.len(),
            learning_rate: rate,
        };

        if self.config.unit_decoder {
            gradients.decoder = across(gradients.decoder, &self.parameters.decoder);
        }
        if let Some(most) = self.config.gradient_norm {
            gradients = clipped(gradients, most)?;
        }
        let moved = self
            .moments
            .step(&self.adam, rate, &self.parameters, gradients);
        self.parameters = match self.config.unit_decoder {
            true => normalised(moved),
            false => moved,
        };
        for (silent, fired) in self.silent.iter_mut().zip(&fired) {
            *silent = match fired {
                true => 0,
                false => *silent + 1,
            };
        }
        self.done += 1;
        if let Some(every) = self.config.resample_every
            && self.done.is_multiple_of(every)
        {
            let dead = self.dead();
            let parameters = self.parameters.clone();
            let (moments, lost) = (&mut self.moments, (&read, &squares[..]));
            self.parameters = resample(parameters, moments, lost, &self.config, step, &dead)?;
            dead.iter().for_each(|feature| self.silent[*feature] = 0);
        }
        Ok(report)
    }

    /// The features that have been active in none of more than
    /// [`dead_after`](DictionaryTrainingConfig::dead_after) steps.
    pub fn dead(&self) -> Vec<usize> {
        let silent = self.silent.iter().enumerate();
        let dead = silent.filter(|(_, steps)| **steps > self.config.dead_after);
        dead.map(|(feature, _)| feature).collect()
    }

    /// The dictionary as it is now.
    ///
    /// # Errors
    /// None in a dictionary that was trained here; those of [`Dictionary::new`].
    pub fn dictionary(&self) -> Result<Dictionary<B>, DictionaryError> {
        self.parameters.dictionary(&self.config)
    }
}
