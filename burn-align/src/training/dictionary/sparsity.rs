//! What keeps the features of a dictionary sparse, and its part of the loss.

use serde::Serialize;

use super::DictionaryTrainingError;

/// What keeps features sparse, with the part of the loss that belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Sparsity {
    /// The largest values of each row.
    TopK(TopKSparsity),
    /// Thresholds that are learned.
    JumpRelu(JumpReluSparsity),
}

/// TopK (Gao et al. 2024, arXiv 2406.04093): `k` features are active in each row, so the loss needs
/// no term for sparsity. Dead features are revived by the auxiliary loss of appendix A.2:
///
/// ```text
/// L = ‖x − y‖² + α · min(dead / k_aux, 1) · ‖e − z W_dec‖²
/// ```
///
/// averaged over rows, where `e = x − y` is a constant and `z` the `k_aux` largest hidden values
/// among the dead features. The share of dead features is SAELens'.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TopKSparsity {
    /// Number of active features.
    pub k: usize,
    /// `α`. Default: 1/32, as in the paper; SAELens has 1.
    pub auxiliary: f64,
    /// `k_aux`. Default: half of the activation's width, as in appendix B.1.
    pub auxiliary_k: Option<usize>,
}

/// JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): each feature has a threshold `θ`, which
/// gets its gradient from a straight-through estimator, with a rectangle of width
/// [`bandwidth`](Self::bandwidth) as the kernel:
///
/// ```text
/// L = ‖x − y‖² + λ · penalty(number of active features)
/// ```
///
/// averaged over rows. `θ` is learned directly and kept at 0 or more, as in SAELens, not by its
/// logarithm: Adam's steps would hardly move a small threshold then.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct JumpReluSparsity {
    /// `λ`.
    pub coefficient: f64,
    /// How the number of active features counts.
    pub penalty: L0Penalty,
    /// `ε`, the width of the estimator's rectangle. Default: 0.05, for activations whose scale is
    /// 1; see [`scale_input`](super::DictionaryTrainingConfig::scale_input).
    pub bandwidth: f64,
    /// `θ` at first. Default: 0.01.
    pub threshold: f64,
    /// Steps in which `λ` rises from 0 to its value. Default: 0.
    pub warm_up: usize,
    /// Revives dead features: adds this times `Σ ReLU(θ − h) ‖W_dec‖` over them to the loss
    /// (Anthropic's January 2025 update; SAELens' `pre_act_loss_coefficient`). Default: none.
    pub dead_coefficient: Option<f64>,
}

/// How the number of active features of a row, `L0`, counts in the loss of JumpReLU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum L0Penalty {
    /// `L0`, as in the paper.
    #[default]
    Linear,
    /// `2 / t · (L0 − t)²`, which leads to `t` active features (Gemma Scope 2; SAELens'
    /// `quadratic`).
    Target(f64),
}

impl Sparsity {
    /// TopK with this many active features.
    pub fn top_k(k: usize) -> Self {
        TopKSparsity::new(k).into()
    }

    /// JumpReLU with this coefficient of the penalty.
    pub fn jump_relu(coefficient: f64) -> Self {
        JumpReluSparsity::new(coefficient).into()
    }

    pub(super) fn check(&self, features: usize) -> Result<(), DictionaryTrainingError> {
        match self {
            Self::TopK(it) => it.check(features),
            Self::JumpRelu(it) => it.check(features),
        }
    }
}

impl From<TopKSparsity> for Sparsity {
    fn from(sparsity: TopKSparsity) -> Self {
        Self::TopK(sparsity)
    }
}

impl From<JumpReluSparsity> for Sparsity {
    fn from(sparsity: JumpReluSparsity) -> Self {
        Self::JumpRelu(sparsity)
    }
}

impl TopKSparsity {
    /// TopK with this many active features.
    pub fn new(k: usize) -> Self {
        Self {
            k,
            auxiliary: 1.0 / 32.0,
            auxiliary_k: None,
        }
    }

    /// Sets the coefficient of the auxiliary loss; 0 leaves it out.
    pub fn with_auxiliary(mut self, coefficient: f64) -> Self {
        self.auxiliary = coefficient;
        self
    }

    /// Sets the number of dead features that the auxiliary loss uses in each row.
    pub fn with_auxiliary_k(mut self, k: usize) -> Self {
        self.auxiliary_k = Some(k);
        self
    }
}

impl JumpReluSparsity {
    /// JumpReLU with this coefficient of the penalty.
    pub fn new(coefficient: f64) -> Self {
        Self {
            coefficient,
            penalty: L0Penalty::Linear,
            bandwidth: 0.05,
            threshold: 0.01,
            warm_up: 0,
            dead_coefficient: None,
        }
    }

    /// Sets how the number of active features counts.
    pub fn with_penalty(mut self, penalty: L0Penalty) -> Self {
        self.penalty = penalty;
        self
    }

    /// Sets the width of the estimator's rectangle.
    pub fn with_bandwidth(mut self, bandwidth: f64) -> Self {
        self.bandwidth = bandwidth;
        self
    }

    /// Sets the threshold that features start with.
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets the number of steps in which the coefficient rises.
    pub fn with_warm_up(mut self, steps: usize) -> Self {
        self.warm_up = steps;
        self
    }

    /// Revives dead features by their hidden values.
    pub fn with_dead_coefficient(mut self, coefficient: f64) -> Self {
        self.dead_coefficient = Some(coefficient);
        self
    }

    /// `λ` at a step.
    pub(super) fn coefficient_at(&self, step: usize) -> f64 {
        match step < self.warm_up {
            true => self.coefficient * step as f64 / self.warm_up as f64,
            false => self.coefficient,
        }
    }
}

impl TopKSparsity {
    fn check(&self, features: usize) -> Result<(), DictionaryTrainingError> {
        if !(1..=features).contains(&self.k) {
            let expected = format!("1 to {features}, the number of features");
            return Err(wrong("k", expected, self.k));
        }
        if self.auxiliary_k == Some(0) {
            return Err(wrong("auxiliary_k", "at least 1", 0));
        }
        not_negative("auxiliary", self.auxiliary)
    }
}

impl JumpReluSparsity {
    fn check(&self, features: usize) -> Result<(), DictionaryTrainingError> {
        not_negative("coefficient", self.coefficient)?;
        positive("bandwidth", self.bandwidth)?;
        not_negative("threshold", self.threshold)?;
        not_negative("dead_coefficient", self.dead_coefficient.unwrap_or(0.0))?;
        match self.penalty {
            L0Penalty::Linear => Ok(()),
            L0Penalty::Target(target) if target > 0.0 && target <= features as f64 => Ok(()),
            L0Penalty::Target(target) => {
                let expected = format!("above 0, and at most {features}, the number of features");
                Err(wrong("target of the penalty", expected, target))
            }
        }
    }
}

pub(super) fn positive(what: &'static str, number: f64) -> Result<(), DictionaryTrainingError> {
    match number.is_finite() && number > 0.0 {
        true => Ok(()),
        false => Err(wrong(what, "a finite number above 0", number)),
    }
}

fn not_negative(what: &'static str, number: f64) -> Result<(), DictionaryTrainingError> {
    match number.is_finite() && number >= 0.0 {
        true => Ok(()),
        false => Err(wrong(what, "a finite number, not below 0", number)),
    }
}

pub(super) fn wrong(
    what: &'static str,
    expected: impl Into<String>,
    found: impl ToString,
) -> DictionaryTrainingError {
    DictionaryTrainingError::Setting {
        what,
        expected: expected.into(),
        found: found.to_string(),
    }
}
