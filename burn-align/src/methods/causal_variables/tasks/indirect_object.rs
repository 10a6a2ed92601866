//! Indirect object identification: which name, and in which place.

use crate::causal_models::{CausalModel, Values};
use crate::methods::causal_variables::value::below;
use crate::methods::causal_variables::{
    CausalVariableError, CounterfactualSet, TaskExample, TaskInput, TaskPosition, TaskValue,
    VariableTask,
};

/// "After `name_A` and `name_B` went to the store, `name_C` gave a drink to": `name_C` is one of
/// the two, and the answer is the other one, `output_token`, whose place is `output_position`.
///
/// Whether a model uses the name or its place shows in its logits. [`LinearParameters`] predict
/// their difference from two more variables: `token_signal` is 1 if the output token is the one
/// that the names have, and -1 if it is the other; `position_signal` is the same for the position.
/// 0 stands for a token of another prompt.
///
/// # Errors
/// None for this model; they are those of any.
///
/// [`LinearParameters`]: crate::methods::causal_variables::LinearParameters
pub fn indirect_objects() -> Result<VariableTask, CausalVariableError> {
    const NAMES: [&str; 3] = ["name_A", "name_B", "name_C"];
    let [a, b, c] = NAMES;
    let signal = || [-1, 0, 1].map(TaskValue::Number);
    let model = CausalModel::<TaskValue>::builder()
        .input(a, Values::Any)
        .input(b, Values::Any)
        .input(c, Values::Any)
        .variable(
            "output_token",
            NAMES,
            Values::Any,
            |[a, b, c]| match place(a, b, c) {
                Some(1) => b.clone(),
                Some(_) => a.clone(),
                None => TaskValue::Number(-1),
            },
        )
        // A name that is neither of the two has no position, and running the model is an error.
        .variable("output_position", NAMES, below(2), |[a, b, c]| {
            place(a, b, c).unwrap_or(-1)
        })
        .variable(
            "token_signal",
            [a, b, c, "output_token"],
            signal(),
            |[a, b, c, token]| match place(a, b, c) {
                Some(right) if token == [a, b][right as usize] => 1_i64,
                Some(right) if token == [b, a][right as usize] => -1,
                _ => 0,
            },
        )
        .variable(
            "position_signal",
            [a, b, c, "output_position"],
            signal(),
            |[a, b, c, position]| match place(a, b, c) {
                Some(right) if position.number() == right => 1_i64,
                Some(_) => -1,
                None => 0,
            },
        )
        .variable("raw_output", ["output_token"], Values::Any, |[token]| {
            token.clone()
        })
        .outputs(["raw_output"])
        .build()?;
    VariableTask::new("ioi", model, [TaskPosition::all("all")])
}

/// The place of the name that is not repeated. If both are equal, the first one is the subject.
fn place(a: &TaskValue, b: &TaskValue, c: &TaskValue) -> Option<i64> {
    match (c == a, c == b) {
        (true, _) => Some(1),
        (_, true) => Some(0),
        _ => None,
    }
}

/// The input of a prompt with these names.
///
/// # Errors
/// If the task is not [`indirect_objects`].
pub fn name_input(
    task: &VariableTask,
    prompt: impl Into<String>,
    [a, b, c]: [&str; 3],
) -> Result<TaskInput, CausalVariableError> {
    task.input(prompt, [("name_A", a), ("name_B", b), ("name_C", c)])
}

/// A prompt with places for names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamePrompt {
    /// The prompt, with `{name_A}`, `{name_B}` and `{name_C}`.
    pub template: String,
    /// The first two names; the first one is repeated in the third place.
    pub names: [String; 2],
}

/// How counterfactuals of indirect objects differ from their bases. They have the same two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameCounterfactuals {
    /// In nothing.
    Same,
    /// The first two names change places: the position changes, the token does not.
    S1IoFlip,
    /// The other name is repeated: token and position change.
    S2IoFlip,
    /// Both: the token changes, the position does not.
    S1IoFlipS2IoFlip,
}

impl NameCounterfactuals {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Same,
        Self::S1IoFlip,
        Self::S2IoFlip,
        Self::S1IoFlipS2IoFlip,
    ];

    /// The name of the set in the track, without the split.
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::S1IoFlip => "s1_io_flip",
            Self::S2IoFlip => "s2_io_flip",
            Self::S1IoFlipS2IoFlip => "s1_ioi_flip_s2_ioi_flip",
        }
    }

    /// The signals under an interchange of both variables, `[token, position]`.
    pub fn signals(self) -> [i64; 2] {
        match self {
            Self::Same => [1, 1],
            Self::S1IoFlip => [1, -1],
            Self::S2IoFlip => [-1, -1],
            Self::S1IoFlipS2IoFlip => [-1, 1],
        }
    }

    /// A counterfactual for each of these prompts. The set has the name of a test set.
    ///
    /// # Errors
    /// If the task is not [`indirect_objects`].
    pub fn generate(
        self,
        task: &VariableTask,
        prompts: &[NamePrompt],
    ) -> Result<CounterfactualSet, CausalVariableError> {
        let examples = prompts.iter().map(|prompt| {
            let [a, b] = prompt.names.each_ref().map(String::as_str);
            let other = match self {
                Self::Same => [a, b, a],
                Self::S1IoFlip => [b, a, a],
                Self::S2IoFlip => [a, b, b],
                Self::S1IoFlipS2IoFlip => [b, a, b],
            };
            let input = |names| name_input(task, filled(&prompt.template, names), names);
            Ok(TaskExample {
                base: input([a, b, a])?,
                counterfactual: input(other)?,
            })
        });
        let examples = examples.collect::<Result<Vec<_>, CausalVariableError>>()?;
        Ok(CounterfactualSet::new(
            format!("{}_test", self.name()),
            examples,
        ))
    }
}

fn filled(template: &str, [a, b, c]: [&str; 3]) -> String {
    let named = [("{name_A}", a), ("{name_B}", b), ("{name_C}", c)];
    named
        .into_iter()
        .fold(template.to_owned(), |text, (place, name)| {
            text.replace(place, name)
        })
}
