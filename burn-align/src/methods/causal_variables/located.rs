//! Examples as tokens, with the positions of units.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn_align_models::{SpecialTokens, Tokenizer};

use super::{CausalVariableError, CounterfactualSet, TaskPosition, VariableTask};
use crate::engine::Indices;
use crate::training::{InterchangeData, InterchangeExample};

/// An example in tokens.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) base: Vec<u32>,
    pub(super) counterfactual: Vec<u32>,
    /// For each name of a position: the tokens in the base and in the counterfactual, as many.
    pub(super) positions: BTreeMap<String, [Vec<usize>; 2]>,
}

impl Located {
    /// How many tokens each position has. Examples with the same numbers can be one batch.
    pub(super) fn counts(&self) -> Vec<usize> {
        self.positions
            .values()
            .map(|[base, _]| base.len())
            .collect()
    }
}

/// The examples of a set, with these positions of the task.
pub(super) fn located(
    task: &VariableTask,
    set: &CounterfactualSet,
    positions: &[&TaskPosition],
    tokenizer: &Tokenizer,
) -> Result<Vec<Located>, CausalVariableError> {
    let mut examples = Vec::with_capacity(set.examples.len());
    for (index, example) in set.examples.iter().enumerate() {
        let inputs = [&example.base, &example.counterfactual];
        let mut found = BTreeMap::new();
        for position in positions {
            let [base, counterfactual] = inputs.map(|input| position.find(task, input, tokenizer));
            let (base, counterfactual) = (base?, counterfactual?);
            if base.len() != counterfactual.len() {
                return Err(CausalVariableError::Lengths {
                    set: set.name.clone(),
                    example: index,
                    position: position.name.clone(),
                    base: base.len(),
                    counterfactual: counterfactual.len(),
                });
            }
            found.insert(position.name.clone(), [base, counterfactual]);
        }
        examples.push(Located {
            base: tokenizer.encode(&example.base.prompt)?,
            counterfactual: tokenizer.encode(&example.counterfactual.prompt)?,
            positions: found,
        });
    }
    Ok(examples)
}

impl VariableTask {
    /// The position of the task with this name.
    ///
    /// - unit: whose position it is, for the error
    pub(super) fn position(
        &self,
        name: &str,
        unit: &dyn std::fmt::Display,
    ) -> Result<&TaskPosition, CausalVariableError> {
        let found = self.positions.iter().find(|position| position.name == name);
        found.ok_or_else(|| CausalVariableError::UnknownPosition {
            unit: unit.to_string(),
            position: name.to_owned(),
            known: self.known_positions(),
        })
    }

    fn known_positions(&self) -> String {
        let names = self.positions.iter().map(|position| position.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    }

    /// A set as data to train interventions with, at a position: the label is the first token of
    /// what the causal model answers if the variables have the values of the counterfactual.
    ///
    /// Examples may have several tokens at the position, all of them the same number.
    ///
    /// # Errors
    /// If there is no example, if the task has no such position, or if a prompt or an answer does
    /// not fit the position or the tokenizer.
    pub fn interchange_data<B: Backend>(
        &self,
        set: &CounterfactualSet,
        variables: &[&str],
        position: &str,
        tokenizer: &Tokenizer,
    ) -> Result<InterchangeData<B>, CausalVariableError> {
        let position = self.position(position, &set.name)?;
        let located = located(self, set, &[position], tokenizer)?;
        let (mut examples, mut bases, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for (example, located) in set.examples.iter().zip(located) {
            let answer = self.counterfactual_answer(example, variables)?;
            let label = tokenizer.encode_with(&answer, SpecialTokens::Never)?;
            let label = label.first().copied();
            let label = label.ok_or_else(|| CausalVariableError::Prompt {
                prompt: example.base.prompt.clone(),
                expected: format!("an answer with a token, found {answer:?}"),
            })?;
            for [base, counterfactual] in located.positions.into_values() {
                bases.push(base);
                sources.push(counterfactual);
            }
            examples.push(InterchangeExample {
                base: located.base,
                sources: vec![located.counterfactual],
                label,
            });
        }
        let data = InterchangeData::from_examples(examples)?;
        Ok(data.with_locations((Indices::Each(sources), Indices::Each(bases))))
    }
}
