//! Results of a submission, as the track aggregates them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{GroupScores, SubmissionUnit};

/// Mean scores by set and units.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VariableResults {
    /// The method, such as `DAS`.
    pub method: String,
    /// The model's class, such as `GPT2LMHeadModel`.
    pub model: String,
    /// The task, such as `arithmetic`.
    pub task: String,
    /// The variables that were swapped.
    pub variables: Vec<String>,
    /// For each set, the units with their mean score.
    pub sets: BTreeMap<String, Vec<(Vec<SubmissionUnit>, f64)>>,
}

/// What the leaderboard has of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VariableSummary {
    /// For each layer with units, the best mean over sets of its positions.
    pub layers: BTreeMap<usize, f64>,
    /// The mean over these layers.
    pub mean: f64,
    /// The best layer's.
    pub best: f64,
}

impl VariableResults {
    /// The means of scores.
    pub fn new(
        [method, model, task]: [&str; 3],
        variables: &[&str],
        scores: &[GroupScores],
    ) -> Self {
        let mut sets: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for group in scores {
            let set = sets.entry(group.set.clone()).or_default();
            set.push((group.units.clone(), group.mean()));
        }
        Self {
            method: method.to_owned(),
            model: model.to_owned(),
            task: task.to_owned(),
            variables: variables.iter().map(|it| (*it).to_owned()).collect(),
            sets,
        }
    }

    /// The track's figures: the mean of each unit over sets, each set counting once; of each layer
    /// the best position; of these the mean and the best. `None` without scores.
    ///
    /// Sets with `private` in their name are a test of their own in the track: they are left out,
    /// unless `private` asks for them alone.
    ///
    /// # When it misleads
    /// The largest is the best, so this is for accuracies. Squared errors of heads are of one group
    /// of units, for which there is nothing to choose: its layer is that of its first head.
    pub fn summary(&self, private: bool) -> Option<VariableSummary> {
        let mut units: BTreeMap<&[SubmissionUnit], Vec<f64>> = BTreeMap::new();
        for (_, scores) in self
            .sets
            .iter()
            .filter(|(set, _)| set.contains("private") == private)
        {
            for (group, score) in scores {
                units.entry(group).or_default().push(*score);
            }
        }
        let mut layers: BTreeMap<usize, f64> = BTreeMap::new();
        for (group, scores) in units {
            let mean = mean(&scores);
            let best = layers.entry(group.first()?.layer()).or_insert(mean);
            *best = best.max(mean);
        }
        let all: Vec<f64> = layers.values().copied().collect();
        Some(VariableSummary {
            best: all.iter().copied().reduce(f64::max)?,
            mean: mean(&all),
            layers,
        })
    }

    /// The variables as one key.
    fn variable(&self) -> String {
        self.variables.join("-")
    }

    /// The JSON of the track's results, without the scores of single examples.
    pub fn to_json(&self) -> String {
        let variable = self.variable();
        let sets = self.sets.iter().map(|(set, scores)| {
            let units = scores.iter().map(|(group, score)| {
                let result = json!({
                    "metadata": metadata(group),
                    variable.clone(): {"average_score": score},
                });
                (name(group), result)
            });
            let units: Map<String, Value> = units.collect();
            (set.clone(), json!({"model_unit": units}))
        });
        let sets: Map<String, Value> = sets.collect();
        let all = json!({
            "method_name": self.method,
            "model_name": self.model,
            "task_name": self.task,
            "dataset": sets,
        });
        format!("{all:#}\n")
    }

    /// The name of the track's file of these results.
    pub fn file_name(&self) -> String {
        let Self {
            method,
            model,
            task,
            ..
        } = self;
        format!("{task}_{model}_{method}_{}__results.json", self.variable())
    }

    /// Reads results of the track, or of [`to_json`](Self::to_json).
    ///
    /// # Errors
    /// If the text is not such a file.
    pub fn from_json(text: &str) -> Result<Self, ResultsError> {
        let file = serde_json::from_str(text);
        let file: ResultsJson = file.map_err(|error| ResultsError::Json {
            reason: error.to_string(),
        })?;
        let wrong = |what: String| ResultsError::Content { what };
        let mut variable: Option<String> = None;
        let mut sets = BTreeMap::new();
        for (set, SetJson { model_unit }) in file.dataset {
            let mut scores = Vec::new();
            for (unit, mut fields) in model_unit {
                fields.remove("metadata");
                fields.remove("raw_outputs");
                let mut fields = fields.into_iter();
                let (Some((of, found)), None) = (fields.next(), fields.next()) else {
                    return Err(wrong(format!(
                        "{unit}: expected the scores of one variable"
                    )));
                };
                let known = variable.get_or_insert_with(|| of.clone());
                if *known != of {
                    return Err(wrong(format!("{unit}: expected {known}, found {of}")));
                }
                let average = found.get("average_score").and_then(Value::as_f64);
                let average = average.ok_or_else(|| wrong(format!("{unit}: no average_score")))?;
                let units = units(&unit);
                let units = units.ok_or_else(|| wrong(format!("{unit}: expected units")))?;
                scores.push((units, average));
            }
            sets.insert(set, scores);
        }
        let variable = variable.ok_or_else(|| wrong("no scores".to_owned()))?;
        Ok(Self {
            method: file.method_name,
            model: file.model_name,
            task: file.task_name,
            variables: variable.split('-').map(str::to_owned).collect(),
            sets,
        })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Why results cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// Not such a JSON.
    #[error("expected results of the causal-variable track: {reason}")]
    Json {
        /// What is wrong.
        reason: String,
    },
    /// Something else in it.
    #[error("results of the causal-variable track: {what}")]
    Content {
        /// What was expected, and what was found.
        what: String,
    },
}

#[derive(Deserialize)]
struct ResultsJson {
    method_name: String,
    model_name: String,
    task_name: String,
    dataset: BTreeMap<String, SetJson>,
}

#[derive(Deserialize)]
struct SetJson {
    model_unit: BTreeMap<String, Map<String, Value>>,
}

/// `[[AtomicModelUnit(id='…'), …]]`
fn name(group: &[SubmissionUnit]) -> String {
    let units = group
        .iter()
        .map(|unit| format!("AtomicModelUnit(id='{unit}')"));
    format!("[[{}]]", units.collect::<Vec<_>>().join(", "))
}

fn units(name: &str) -> Option<Vec<SubmissionUnit>> {
    let names = name.split("id='").skip(1);
    let units = names.map(|rest| rest.split('\'').next()?.parse().ok());
    let units: Vec<SubmissionUnit> = units.collect::<Option<_>>()?;
    (!units.is_empty()).then_some(units)
}

fn metadata(group: &[SubmissionUnit]) -> Value {
    let Some(first) = group.first() else {
        return json!({});
    };
    let mut metadata = json!({"layer": first.layer(), "position": first.position()});
    if let SubmissionUnit::AttentionHead { head, .. } = first {
        metadata["head"] = (*head).into();
    }
    metadata
}
