//! Linear predictions of logit differences, for indirect objects.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{CausalVariableError, TaskExample, TaskValue, VariableTask};
use crate::causal_models::Setting;
use crate::methods::directions::matrix::{Symmetric, dot};

/// Predicts the difference of two names' logits, that of the indirect object less that of the
/// subject, by `bias + token · s_token + position · s_position`, where a signal `s` is 1 if the
/// variable has the value of the base's names, and -1 if it has the opposite one.
///
/// Parameters belong to a model and to the heads that are swapped. Their names in JSON are those of
/// the track's `ioi_linear_params.json`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LinearParameters {
    /// What is predicted between both.
    pub bias: f64,
    /// The part of the token.
    #[serde(rename = "token_coeff")]
    pub token: f64,
    /// The part of the position.
    #[serde(rename = "position_coeff")]
    pub position: f64,
}

/// A logit difference, and the signals under which it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitMeasurement {
    /// `[token, position]`, each 1 or -1.
    pub signals: [i64; 2],
    /// The logit of the indirect object less that of the subject.
    pub difference: f64,
}

impl LinearParameters {
    /// Parameters with these values.
    pub fn new(bias: f64, token: f64, position: f64) -> Self {
        Self {
            bias,
            token,
            position,
        }
    }

    /// The parameters of the smallest squared error, by the normal equations.
    ///
    /// Measure them where whole heads are swapped, in all four sets of
    /// [`NameCounterfactuals`](super::tasks::NameCounterfactuals).
    ///
    /// # Errors
    /// If a signal is not 1 or -1, or if the measurements have fewer than three combinations of
    /// signals.
    pub fn fit(measurements: &[LogitMeasurement]) -> Result<Self, CausalVariableError> {
        let signals = || measurements.iter().map(|it| it.signals);
        if let Some(found) = signals()
            .flatten()
            .find(|signal| !matches!(*signal, -1 | 1))
        {
            return Err(CausalVariableError::Number {
                what: "a signal",
                expected: "1 or -1",
                found: found.to_string(),
            });
        }
        let combinations = signals().collect::<BTreeSet<_>>().len();
        let undetermined = || CausalVariableError::Undetermined {
            found: combinations,
        };
        if combinations < 3 {
            return Err(undetermined());
        }
        // `XᵀX β = Xᵀy`, where the columns of `X` are 1, token and position.
        let ones = vec![1.0; measurements.len()];
        let [token, position] =
            [0, 1].map(|of| signals().map(|it| it[of] as f64).collect::<Vec<f64>>());
        let differences: Vec<f64> = measurements.iter().map(|it| it.difference).collect();
        let columns: [&[f64]; 3] = [&ones, &token, &position];
        let products = columns.map(|column| dot(column, &differences));
        let system = Symmetric::gram(&columns).cholesky();
        let system = system.ok_or_else(undetermined)?;
        match system.solve(products.to_vec())[..] {
            [bias, token, position] => Ok(Self::new(bias, token, position)),
            _ => Err(undetermined()),
        }
    }

    /// The share of the measurements' variance that is predicted.
    pub fn explained(&self, measurements: &[LogitMeasurement]) -> f64 {
        let count = measurements.len() as f64;
        let mean = measurements.iter().map(|it| it.difference).sum::<f64>() / count;
        let squares = |of: &dyn Fn(&LogitMeasurement) -> f64| {
            measurements.iter().map(|it| of(it).powi(2)).sum::<f64>()
        };
        let missed = squares(&|it| it.difference - self.difference(it.signals));
        1.0 - missed / squares(&|it| it.difference - mean)
    }

    /// The difference under these signals, `[token, position]`.
    pub fn difference(&self, [token, position]: [i64; 2]) -> f64 {
        self.bias + self.token * token as f64 + self.position * position as f64
    }

    /// What is predicted for an example if these variables have the values of the counterfactual.
    ///
    /// - place: the set and the index of the example, for the error
    pub(super) fn predict(
        &self,
        task: &VariableTask,
        example: &TaskExample,
        variables: &[&str],
        place: (&str, usize),
    ) -> Result<f64, CausalVariableError> {
        let signals = signals(task, example, variables, place)?;
        Ok(self.difference(signals))
    }
}

/// The signals, `[token, position]`, of an example if these variables have the values of the
/// counterfactual.
///
/// - place: the set and the index of the example, for the error
pub(super) fn signals(
    task: &VariableTask,
    example: &TaskExample,
    variables: &[&str],
    place: (&str, usize),
) -> Result<[i64; 2], CausalVariableError> {
    let setting = task.interchange(example, variables)?;
    let token = signal(task, &setting, ["token_signal", "output_token"], place)?;
    let position = signal(
        task,
        &setting,
        ["position_signal", "output_position"],
        place,
    )?;
    Ok([token, position])
}

fn signal(
    task: &VariableTask,
    setting: &Setting<TaskValue>,
    [signal, of]: [&'static str; 2],
    (set, example): (&str, usize),
) -> Result<i64, CausalVariableError> {
    match setting[task.model.variable(signal)?].as_number() {
        Some(signal @ (-1 | 1)) => Ok(signal),
        _ => Err(CausalVariableError::NoSignal {
            set: set.to_owned(),
            example,
            variable: of,
            found: setting[task.model.variable(of)?].to_string(),
        }),
    }
}
