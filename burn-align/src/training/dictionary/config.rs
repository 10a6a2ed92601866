//! Settings of the training of a dictionary.

use burn::optim::AdamConfig;
use serde::Serialize;

use super::sparsity::{positive, wrong};
use super::{DictionaryTrainingError, Sparsity};
use crate::engine::RunOptions;
use crate::training::{Checkpoints, RateSchedule};

/// How the products of a step are computed. Results agree up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Products {
    /// All but the encoder's on the host, from the active features alone; while more than one in 16
    /// is active, as [`Dense`](Self::Dense). Faster if the device is the host.
    #[default]
    Sparse,
    /// On the device, from all features.
    Dense,
}

/// How a dictionary is trained.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DictionaryTrainingConfig {
    /// Number of features.
    #[doc(alias = "d_sae")]
    pub features: usize,
    /// What keeps them sparse.
    pub sparsity: Sparsity,
    /// Number of tokens to train on. A text with fewer is passed several times.
    pub tokens: usize,
    /// Tokens of a step. Default: 4096.
    pub batch_tokens: usize,
    /// Default: 3e-4.
    pub learning_rate: f64,
    /// How the learning rate changes. Default: it rises over the first 5 % of the steps, and falls
    /// to 0 over the last 20 %.
    pub schedule: RateSchedule,
    /// The optimizer. Default: Adam with `β = (0.9, 0.999)` and `ε = 1e-8`, as in SAELens. Its
    /// gradient clipping is not used, see [`gradient_norm`](Self::gradient_norm).
    pub optimizer: AdamConfig,
    /// The largest norm of the gradient of all parameters together; larger ones are scaled down to
    /// it. Default: 1, as in SAELens.
    pub gradient_norm: Option<f64>,
    /// Keeps the decoder's directions at norm 1: the part of their gradient along themselves is
    /// removed, and they are normalised after each step (Bricken et al. 2023, "Towards
    /// Monosemanticity"; Gao et al. 2024). Default: yes.
    pub unit_decoder: bool,
    /// Subtracts `b_dec` from the input. Default: yes, as in SAELens.
    #[doc(alias = "apply_b_dec_to_input")]
    pub subtract_bias: bool,
    /// Multiplies activations by the square root of their width over their mean norm, which is
    /// measured on the first part of the text; the factor is folded into the dictionary's weights
    /// (SAELens' `expected_average_only_in`). A bandwidth, a threshold or a learning rate then
    /// means the same at every site. Default: yes.
    pub scale_input: bool,
    /// Positions at the beginning of each example that are left out: the residual stream of the
    /// first one can be a hundred times longer than the others (an attention sink), and would be
    /// all that is learned. Default: 1.
    pub skip_positions: usize,
    /// A feature is dead if it has been active in none of more than this many steps. Default: 100.
    /// (SAELens: 1000; Gao et al. wait for 10 million tokens.)
    pub dead_after: usize,
    /// Replaces dead features every this many steps by directions of inputs that are reconstructed
    /// badly ("neuron resampling" of Bricken et al. 2023). Default: never.
    pub resample_every: Option<usize>,
    /// Tokens whose activations are in memory, and are shuffled together; each takes 4 bytes for
    /// each of its features, and while they are collected, twice that. Default: 65,536.
    pub buffer_tokens: usize,
    /// Examples that go through the model together; changes no result but rounding. Default: 16.
    pub examples_at_once: usize,
    /// How products are computed.
    pub products: Products,
    /// Seed of the weights, of the order of the examples, and of resampling.
    pub seed: u64,
    /// Where to save the state of the run. An epoch is a pass over the text; an interval in steps
    /// does not add the ends of epochs. Default: nowhere.
    pub checkpoints: Option<Checkpoints>,
    /// Budgets for the model's own passes.
    pub run: RunOptions,
}

impl DictionaryTrainingConfig {
    /// A dictionary with this many features, trained on this many tokens.
    pub fn new(features: usize, sparsity: impl Into<Sparsity>, tokens: usize) -> Self {
        Self {
            features,
            sparsity: sparsity.into(),
            tokens,
            batch_tokens: 4096,
            learning_rate: 3e-4,
            schedule: RateSchedule::WarmUpHoldDecay {
                warm_up: 0.05,
                decay: 0.2,
            },
            optimizer: AdamConfig::new().with_epsilon(1e-8),
            gradient_norm: Some(1.0),
            unit_decoder: true,
            subtract_bias: true,
            scale_input: true,
            skip_positions: 1,
            dead_after: 100,
            resample_every: None,
            buffer_tokens: 1 << 16,
            examples_at_once: 16,
            products: Products::default(),
            seed: 0,
            checkpoints: None,
            run: RunOptions::default(),
        }
    }

    /// Sets the number of tokens of a step.
    pub fn with_batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = tokens;
        self
    }

    /// Sets the learning rate.
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets the schedule of the learning rate.
    pub fn with_schedule(mut self, schedule: RateSchedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets the optimizer.
    pub fn with_optimizer(mut self, optimizer: AdamConfig) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Sets the largest norm of the gradient; `None` for no limit.
    pub fn with_gradient_norm(mut self, norm: Option<f64>) -> Self {
        self.gradient_norm = norm;
        self
    }

    /// Keeps the decoder's directions at norm 1, or lets them grow.
    pub fn with_unit_decoder(mut self, unit_decoder: bool) -> Self {
        self.unit_decoder = unit_decoder;
        self
    }

    /// Subtracts `b_dec` from the input, or does not.
    pub fn with_subtracted_bias(mut self, subtract_bias: bool) -> Self {
        self.subtract_bias = subtract_bias;
        self
    }

    /// Scales activations, or takes them as they are.
    pub fn with_scaled_input(mut self, scale_input: bool) -> Self {
        self.scale_input = scale_input;
        self
    }

    /// Sets the number of positions at the beginning of each example that are left out.
    pub fn with_skipped_positions(mut self, positions: usize) -> Self {
        self.skip_positions = positions;
        self
    }

    /// Sets the number of steps after which a silent feature is dead.
    pub fn with_dead_after(mut self, steps: usize) -> Self {
        self.dead_after = steps;
        self
    }

    /// Replaces dead features every this many steps.
    pub fn with_resampling(mut self, every: usize) -> Self {
        self.resample_every = Some(every);
        self
    }

    /// Sets the number of tokens that are shuffled together.
    pub fn with_buffer_tokens(mut self, tokens: usize) -> Self {
        self.buffer_tokens = tokens;
        self
    }

    /// Sets the number of examples that go through the model together.
    pub fn with_examples_at_once(mut self, examples: usize) -> Self {
        self.examples_at_once = examples;
        self
    }

    /// Sets how products are computed.
    pub fn with_products(mut self, products: Products) -> Self {
        self.products = products;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Saves checkpoints, so that the run can be interrupted and resumed.
    pub fn with_checkpoints(mut self, checkpoints: Checkpoints) -> Self {
        self.checkpoints = Some(checkpoints);
        self
    }

    /// Sets the budgets for the model's own passes.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.tokens / self.batch_tokens.max(1)
    }

    /// Checks the settings for activations of this width.
    pub(super) fn check(&self, width: usize) -> Result<(), DictionaryTrainingError> {
        let counts = [
            ("width of the activations", width),
            ("features", self.features),
            ("batch_tokens", self.batch_tokens),
            ("buffer_tokens", self.buffer_tokens),
            ("examples_at_once", self.examples_at_once),
            ("resample_every", self.resample_every.unwrap_or(1)),
            (
                "checkpoints",
                self.checkpoints.as_ref().map_or(1, |it| it.every.number()),
            ),
        ];
        for (what, count) in counts {
            if count == 0 {
                return Err(wrong(what, "at least 1", count));
            }
        }
        if self.steps() == 0 {
            let expected = format!("at least {}, the tokens of a step", self.batch_tokens);
            return Err(wrong("tokens", expected, self.tokens));
        }
        positive("learning_rate", self.learning_rate)?;
        if let Some(norm) = self.gradient_norm {
            positive("gradient_norm", norm)?;
        }
        self.sparsity.check(self.features)
    }
}
