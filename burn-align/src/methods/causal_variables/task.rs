//! Tasks: a causal model, prompts that stand for its inputs, and sets of counterfactuals.

use serde::{Deserialize, Serialize};

use super::{CausalVariableError, TaskPosition, TaskValue};
use crate::causal_models::{CausalModel, Inputs, Setting, Variable};

/// The variable whose value is the text that the model should answer with.
pub(super) const ANSWER: &str = "raw_output";

/// A prompt, and the inputs of the causal model that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskInput {
    /// The prompt.
    pub prompt: String,
    /// The values of the inputs.
    pub inputs: Inputs<TaskValue>,
}

/// A base, and a counterfactual that variables take their values from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskExample {
    /// What is intervened on.
    pub base: TaskInput,
    /// Where values come from.
    pub counterfactual: TaskInput,
}

/// Examples whose counterfactuals differ from their bases in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterfactualSet {
    /// Its name, such as `answerPosition_test`.
    pub name: String,
    /// The examples.
    pub examples: Vec<TaskExample>,
}

impl CounterfactualSet {
    /// A set of these examples.
    pub fn new(name: impl Into<String>, examples: impl IntoIterator<Item = TaskExample>) -> Self {
        Self {
            name: name.into(),
            examples: examples.into_iter().collect(),
        }
    }
}

/// A task: a hypothesis about how a model answers, and what it is tested on.
///
/// The tasks of the track are in [`tasks`](super::tasks); this makes one of your own.
///
/// ```
/// use burn_align::causal_models::CausalModel;
/// use burn_align::methods::causal_variables::{
///     CounterfactualSet, TaskExample, TaskPosition, TaskValue, VariableTask,
/// };
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cities = [("Spain", "Madrid"), ("Italy", "Rome")];
/// let capitals = cities.map(|(_, city)| TaskValue::from(city));
/// let model = CausalModel::<TaskValue>::builder()
///     .input("entity", cities.map(|(country, _)| TaskValue::from(country)))
///     .variable("capital", ["entity"], capitals.clone(), move |[entity]| {
///         let city = cities.iter().find(|(country, _)| entity.as_text() == Some(*country));
///         city.map_or("", |(_, city)| *city)
///     })
///     // The answer: it must be in what the model says.
///     .variable("raw_output", ["capital"], capitals, |[capital]| capital.clone())
///     .build()?;
/// let task = VariableTask::new("capitals", model, [TaskPosition::last("last_token")])?;
/// let [base, counterfactual] = ["Spain", "Italy"].map(|country| {
///     task.input(format!("The capital of {country} is"), [("entity", country)])
/// });
/// let example = TaskExample { base: base?, counterfactual: counterfactual? };
/// assert_eq!(task.answer(&example.base)?, "Madrid");
/// assert_eq!(task.counterfactual_answer(&example, &["capital"])?, "Rome");
/// let task = task.with_sets([CounterfactualSet::new("country_test", [example])]);
/// # assert_eq!(task.sets.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VariableTask {
    /// Its name in results.
    pub name: String,
    pub(super) model: CausalModel<TaskValue>,
    /// The tokens at which activations are swapped.
    pub positions: Vec<TaskPosition>,
    /// The sets of counterfactuals.
    pub sets: Vec<CounterfactualSet>,
    answer: Variable,
}

impl VariableTask {
    /// A task without examples.
    ///
    /// # Errors
    /// If the model has no variable `raw_output`, the text of its answer.
    pub fn new(
        name: impl Into<String>,
        model: CausalModel<TaskValue>,
        positions: impl IntoIterator<Item = TaskPosition>,
    ) -> Result<Self, CausalVariableError> {
        let answer = model.variable(ANSWER)?;
        Ok(Self {
            name: name.into(),
            model,
            positions: positions.into_iter().collect(),
            sets: Vec::new(),
            answer,
        })
    }

    /// The hypothesis.
    pub fn model(&self) -> &CausalModel<TaskValue> {
        &self.model
    }

    /// Sets the sets of counterfactuals.
    pub fn with_sets(mut self, sets: impl IntoIterator<Item = CounterfactualSet>) -> Self {
        self.sets = sets.into_iter().collect();
        self
    }

    /// A prompt for these values of the model's inputs.
    ///
    /// # Errors
    /// If the values do not fit the model.
    pub fn input<'a, V: Into<TaskValue>>(
        &self,
        prompt: impl Into<String>,
        values: impl IntoIterator<Item = (&'a str, V)>,
    ) -> Result<TaskInput, CausalVariableError> {
        let values = values.into_iter().map(|(name, value)| (name, value.into()));
        Ok(TaskInput {
            prompt: prompt.into(),
            inputs: self.model.inputs(values)?,
        })
    }

    /// What the causal model answers.
    ///
    /// # Errors
    /// If the inputs do not fit it.
    pub fn answer(&self, input: &TaskInput) -> Result<String, CausalVariableError> {
        Ok(self.answer_in(&self.model.run(&input.inputs)?))
    }

    /// What the causal model answers if these variables have the values of the counterfactual.
    ///
    /// # Errors
    /// If the inputs or the variables do not fit it.
    pub fn counterfactual_answer(
        &self,
        example: &TaskExample,
        variables: &[&str],
    ) -> Result<String, CausalVariableError> {
        Ok(self.answer_in(&self.interchange(example, variables)?))
    }

    /// The values of all variables if these have the values of the counterfactual.
    ///
    /// # Errors
    /// If the inputs or the variables do not fit the model.
    pub fn interchange(
        &self,
        example: &TaskExample,
        variables: &[&str],
    ) -> Result<Setting<TaskValue>, CausalVariableError> {
        let source = &example.counterfactual.inputs;
        let sources = variables.iter().map(|variable| (*variable, source));
        Ok(self.model.interchange(&example.base.inputs, sources)?)
    }

    fn answer_in(&self, setting: &Setting<TaskValue>) -> String {
        setting[self.answer].to_string()
    }
}
