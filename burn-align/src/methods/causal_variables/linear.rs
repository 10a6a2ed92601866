//! Linear predictions of logit differences, for indirect objects.

use serde::{Deserialize, Serialize};

use super::{CausalVariableError, TaskExample, VariableTask};
use crate::causal_models::Setting;
use crate::methods::causal_variables::TaskValue;

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
    /// If the measurements have fewer than three combinations of signals.
    pub fn fit(measurements: &[LogitMeasurement]) -> Result<Self, CausalVariableError> {
        let mut combinations: Vec<[i64; 2]> = measurements.iter().map(|it| it.signals).collect();
        combinations.sort_unstable();
        combinations.dedup();
        let undetermined = || CausalVariableError::Undetermined {
            found: combinations.len(),
        };
        if combinations.len() < 3 {
            return Err(undetermined());
        }
        // Rows of `XᵀX | Xᵀy`, with `X = [1, token, position]`.
        let mut rows = [[0.0; 4]; 3];
        for LogitMeasurement {
            signals: [token, position],
            difference,
        } in measurements
        {
            let x = [1.0, *token as f64, *position as f64];
            for (row, left) in rows.iter_mut().zip(x) {
                for (cell, right) in row.iter_mut().zip(x.into_iter().chain([*difference])) {
                    *cell += left * right;
                }
            }
        }
        let [bias, token, position] = solve(rows).ok_or_else(undetermined)?;
        Ok(Self::new(bias, token, position))
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
        let setting = task.interchange(example, variables)?;
        let token = signal(task, &setting, ["token_signal", "output_token"], place)?;
        let position = signal(
            task,
            &setting,
            ["position_signal", "output_position"],
            place,
        )?;
        Ok(self.difference([token, position]))
    }
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

/// Gaussian elimination with the largest pivots; `None` if a pivot is 0.
fn solve(mut rows: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let largest = (column..3).max_by(|i, j| {
            let [i, j] = [i, j].map(|row| rows[*row][column].abs());
            i.total_cmp(&j)
        })?;
        rows.swap(column, largest);
        let pivot = rows[column];
        if pivot[column].abs() < 1e-9 {
            return None;
        }
        for (index, row) in rows.iter_mut().enumerate() {
            if index == column {
                continue;
            }
            let factor = row[column] / pivot[column];
            for (cell, pivot) in row.iter_mut().zip(pivot) {
                *cell -= factor * pivot;
            }
        }
    }
    Some([0, 1, 2].map(|row| rows[row][3] / rows[row][row]))
}
