//! Causal tracing (Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv
//! 2202.05262, §2.1).
//!
//! The subject is corrupted with noise, and one activation at a time is restored: a test of what is
//! *sufficient* to bring the answer back.

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, Site, TokenBatch, TokensError};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::sweep::{numbers, to_rows};
use super::{Grid, probability};
use crate::engine::{
    ConstantId, Edit, Indices, InputId, LogitPositions, Operand, Plan, PlanError, ReadId,
    RunOptions, Units,
};
use crate::interventions::{AdditionIntervention, BuiltinIntervention, VanillaIntervention};

/// Configuration of a causal trace.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CausalTraceConfig {
    /// Positions of the subject, whose embeddings are corrupted.
    pub subject: Range<usize>,
    /// The token whose probability is measured.
    pub answer: u32,
    /// Standard deviation of the noise. The paper uses three times that of the embeddings.
    pub noise: f64,
    /// Number of noise samples to average over. Default: 10, as in the paper.
    pub samples: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// The component to restore. Default: the residual stream after a layer.
    pub component: Component,
    /// Number of neighbouring layers to restore together, with the traced one in the middle:
    /// `layer - window / 2 ..`. Default: 1. The paper uses 10 for attention and MLP outputs.
    pub window: usize,
}

impl CausalTraceConfig {
    /// Traces the residual stream, one layer at a time.
    pub fn new(subject: Range<usize>, answer: u32, noise: f64) -> Self {
        Self {
            subject,
            answer,
            noise,
            samples: 10,
            seed: 0,
            component: Component::BlockOutput,
            window: 1,
        }
    }

    /// Traces another component, in windows of this many layers.
    pub fn with_component(mut self, component: Component, window: usize) -> Self {
        (self.component, self.window) = (component, window);
        self
    }
}

/// The result of causal tracing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CausalTrace {
    /// Probability of the answer without corruption.
    pub clean: f64,
    /// Probability of the answer with the subject corrupted, averaged over samples.
    pub corrupted: f64,
    /// Probability of the answer with one site restored as well: layers × positions.
    pub restored: Grid,
}

/// Why a trace could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CausalTraceError {
    /// An invalid configuration.
    #[error("{what}: expected {expected}, found {found}")]
    Config {
        /// What is wrong.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A prompt that cannot be read.
    #[error(transparent)]
    Prompt(#[from] TokensError),
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Corrupts the subject's embeddings with noise and restores one activation at a time from the
/// clean run. Where restoring brings the answer back, the activation carries the fact.
///
/// All noise samples, layers and positions are one plan.
///
/// # When it misleads
/// Noise takes the embeddings off-distribution, and the result depends on its strength; replacing
/// the subject by another name (see [`sweep`](super::sweep)) does not have this problem (Zhang &
/// Nanda 2023, arXiv 2309.16042). Where a fact is traced is also a poor guide to where it can be
/// edited (Hase et al. 2023, arXiv 2301.04213).
///
/// # Errors
/// If the configuration does not fit the prompt or the model.
pub fn causal_trace<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    prompt: &[u32],
    config: &CausalTraceConfig,
    options: &RunOptions,
) -> Result<CausalTrace, CausalTraceError> {
    check(config, prompt.len(), model.dims().vocab)?;
    let samples = TokenBatch::new(vec![prompt.to_vec(); config.samples])?;
    let mut plan = Plan::new();
    let input = plan.tokens(&samples);
    let clean = plan.world(input, []);
    let clean_logits = plan.read_logits(clean, LogitPositions::Last);
    let noise = plan.constant(noise(config, model));
    let corrupted = world(&mut plan, input, noise, config, []);
    let mut restored = Vec::new();
    let layers = model.dims().layers;
    for layer in 0..layers {
        let first = layer.saturating_sub(config.window / 2);
        let window = first..(layer + config.window.div_ceil(2)).min(layers);
        for position in 0..prompt.len() {
            let restore = window.clone().map(|layer| {
                let site = Site::Block(layer, config.component);
                Edit::from_world(clean, site, Units::position(position), RESTORE)
            });
            restored.push(world(&mut plan, input, noise, config, restore));
        }
    }
    let interventions = [
        BuiltinIntervention::from(AdditionIntervention),
        BuiltinIntervention::from(VanillaIntervention),
    ];
    let results = plan.run_with(model, &interventions, options)?;
    let mean = |read: ReadId| probability(results.get(read).squeeze_dim(1), config.answer).mean();
    let ends = to_rows(vec![mean(clean_logits), mean(corrupted)], 2)?.remove(0);
    let values = to_rows(restored.into_iter().map(mean).collect(), prompt.len())?;
    let all = ends.iter().chain(values.iter().flatten());
    plan.check_finite(all, model, &interventions, options)?;
    Ok(CausalTrace {
        clean: ends[0],
        corrupted: ends[1],
        restored: Grid {
            rows: numbers(layers),
            columns: numbers(prompt.len()),
            values,
        },
    })
}

const CORRUPT: usize = 0;
const RESTORE: usize = 1;

/// A corrupted world with further edits; returns its logits.
fn world<B: Backend>(
    plan: &mut Plan<B>,
    input: InputId,
    noise: ConstantId,
    config: &CausalTraceConfig,
    restore: impl IntoIterator<Item = Edit>,
) -> ReadId {
    let subject = Units::positions(Indices::Same(config.subject.clone().collect()));
    let corrupt = Edit::new(Site::Embedding, subject, CORRUPT, Operand::Constant(noise));
    let world = plan.world(input, [corrupt].into_iter().chain(restore));
    plan.read_logits(world, LogitPositions::Last)
}

/// Noise for each sample and position of the subject, `[sample, unit, d_model]`.
fn noise<B: Backend, M: AlignableTransformer<B>>(
    config: &CausalTraceConfig,
    model: &M,
) -> Tensor<B, 3> {
    let shape = [config.samples, config.subject.len(), model.dims().d_model];
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let normal = |rng: &mut ChaCha8Rng| -> f32 { StandardNormal.sample(rng) };
    let values = (0..shape.iter().product())
        .map(|_| normal(&mut rng) * config.noise as f32)
        .collect::<Vec<f32>>();
    Tensor::from_data(
        TensorData::new(values, shape),
        (&model.device(), DType::F32),
    )
}

fn check(config: &CausalTraceConfig, pos: usize, vocab: usize) -> Result<(), CausalTraceError> {
    let wrong = |what, expected: String, found: String| {
        Err(CausalTraceError::Config {
            what,
            expected,
            found,
        })
    };
    let subject = &config.subject;
    if subject.is_empty() || subject.end > pos {
        return wrong(
            "subject",
            format!("positions within 0..{pos}"),
            format!("{subject:?}"),
        );
    }
    if config.answer as usize >= vocab {
        return wrong(
            "answer",
            format!("a token id below {vocab}"),
            config.answer.to_string(),
        );
    }
    if config.samples == 0 || config.window == 0 {
        return wrong(
            "samples and window",
            "at least 1".to_owned(),
            "0".to_owned(),
        );
    }
    if !config.noise.is_finite() {
        return wrong(
            "noise",
            "a finite number".to_owned(),
            config.noise.to_string(),
        );
    }
    Ok(())
}
