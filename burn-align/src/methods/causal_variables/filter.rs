//! Keeping the examples that a model answers as the causal model does.

use std::collections::HashMap;

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Tokenizer};

use super::{
    AnswerOptions, CausalVariableError, CounterfactualSet, TaskExample, VariableTask,
    answer_prompts,
};

/// A task with the examples that a model answers rightly.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Filtered {
    /// The task. Sets without such an example are left out.
    pub task: VariableTask,
    /// For each set of the original task: its name, how many examples are kept, and of how many.
    pub kept: Vec<(String, usize, usize)>,
}

impl VariableTask {
    /// Keeps the examples whose base and counterfactual a model answers as the causal model does:
    /// the expected text is in what the model says, greedily. Without this, an interchange is also
    /// judged where the hypothesis is wrong about the plain model.
    ///
    /// # When it misleads
    /// An expected text that is short or empty is in many answers. Where answers have several
    /// tokens, raise [`AnswerOptions::new_tokens`]. An expected text that begins with a space, as
    /// those of most tasks do, is in no answer if the tokenizer strips the space before a first
    /// word, as that of LLaMA 2 does.
    ///
    /// # Errors
    /// If a prompt does not fit the model, if values stop being finite, or if no example is kept.
    pub fn filter<B: Backend, M: AlignableTransformer<B>>(
        &self,
        model: &M,
        tokenizer: &Tokenizer,
        options: &AnswerOptions,
    ) -> Result<Filtered, CausalVariableError> {
        let mut prompts: Vec<&str> = Vec::new();
        for example in self.sets.iter().flat_map(|set| &set.examples) {
            prompts.extend([example.base.prompt.as_str(), &example.counterfactual.prompt]);
        }
        prompts.sort_unstable();
        prompts.dedup();
        let answers = answer_prompts(model, tokenizer, &prompts, options)?;
        let answers: HashMap<&str, String> = prompts.into_iter().zip(answers).collect();
        let is_right = |example: &TaskExample| -> Result<bool, CausalVariableError> {
            for input in [&example.base, &example.counterfactual] {
                let expected = self.answer(input)?;
                let found = answers.get(input.prompt.as_str());
                if !found.is_some_and(|found| found.contains(&expected)) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let (mut sets, mut kept) = (Vec::new(), Vec::new());
        for set in &self.sets {
            let mut right = Vec::new();
            for example in &set.examples {
                if is_right(example)? {
                    right.push(example.clone());
                }
            }
            kept.push((set.name.clone(), right.len(), set.examples.len()));
            if !right.is_empty() {
                sets.push(CounterfactualSet::new(set.name.clone(), right));
            }
        }
        if sets.is_empty() {
            return Err(CausalVariableError::Nothing {
                expected: "an example whose base and counterfactual the model answers as the \
                           causal model does",
            });
        }
        let task = self.clone().with_sets(sets);
        Ok(Filtered { task, kept })
    }
}
