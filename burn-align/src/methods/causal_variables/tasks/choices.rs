//! Multiple-choice questions: which choice is right, and which symbol it has.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::causal_models::{CausalModel, CausalModelBuilder, Values};
use crate::methods::causal_variables::value::below;
use crate::methods::causal_variables::{
    CausalVariableError, CounterfactualSet, TaskExample, TaskInput, TaskPosition, TaskValue,
    VariableTask,
};

/// Number of choices.
const CHOICES: usize = 4;
const SYMBOLS: [&str; CHOICES] = ["symbol0", "symbol1", "symbol2", "symbol3"];
const TEXTS: [&str; CHOICES] = ["choice0", "choice1", "choice2", "choice3"];

/// The text is copied from the question: its position among the choices is `answer_pointer`, and
/// `answer` is the symbol there. If no choice is the text in question, the answer has no value, and
/// running the model is an error.
///
/// # Errors
/// None for this model; they are those of any.
pub fn four_answer_mcqa() -> Result<VariableTask, CausalVariableError> {
    let mut model = CausalModel::<TaskValue>::builder().input("question", Values::Any);
    for text in TEXTS {
        model = model.input(text, Values::Any);
    }
    let [a, b, c, d] = TEXTS;
    let model = model.variable(
        "answer_pointer",
        ["question", a, b, c, d],
        below(CHOICES as i64),
        |[question, choices @ ..]| {
            let right = choices.iter().position(|choice| *choice == question);
            right.map_or(-1, |right| right as i64)
        },
    );
    let positions = [
        TaskPosition::correct_symbol("correct_symbol", 0),
        TaskPosition::correct_symbol("correct_symbol_period", 1),
        TaskPosition::last("last_token"),
    ];
    VariableTask::new("4_answer_MCQA", with_answer(model).build()?, positions)
}

/// The same if only the index of the right choice is known, `answerKey`.
///
/// # Errors
/// None for this model; they are those of any.
pub fn arc_easy() -> Result<VariableTask, CausalVariableError> {
    let model = CausalModel::<TaskValue>::builder()
        .input("answerKey", below(CHOICES as i64))
        .variable(
            "answer_pointer",
            ["answerKey"],
            below(CHOICES as i64),
            |[key]| key.clone(),
        );
    let positions = [
        TaskPosition::correct_symbol("correct_symbol", 0),
        TaskPosition::last("last_token"),
    ];
    VariableTask::new("ARC_easy", with_answer(model).build()?, positions)
}

/// Adds the symbols, and the answer: a space and the symbol at the pointer.
fn with_answer(mut model: CausalModelBuilder<TaskValue>) -> CausalModelBuilder<TaskValue> {
    for symbol in SYMBOLS {
        model = model.input(symbol, Values::Any);
    }
    let [a, b, c, d] = SYMBOLS;
    let answer = |[pointer, symbols @ ..]: [&TaskValue; CHOICES + 1]| {
        let symbol = usize::try_from(pointer.number()).ok();
        let symbol = symbol.and_then(|pointer| symbols.get(pointer));
        format!(" {}", symbol.map_or("", |symbol| symbol.text()))
    };
    model
        .variable(
            "answer",
            ["answer_pointer", a, b, c, d],
            Values::Any,
            answer,
        )
        .variable("raw_output", ["answer"], Values::Any, |[answer]| {
            answer.clone()
        })
}

/// A question with its choices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChoiceQuestion {
    /// What the question says, such as "The lemon is yellow. What color is the lemon?".
    pub text: String,
    /// The right choice.
    pub right: String,
    /// The texts of the choices, of which one is right.
    pub choices: [String; CHOICES],
    /// Their symbols, such as "A".
    pub symbols: [String; CHOICES],
}

impl ChoiceQuestion {
    /// The prompt: the question, a line for each choice, and "Answer:".
    pub fn prompt(&self) -> String {
        let choices = self.symbols.iter().zip(&self.choices);
        let choices = choices.map(|(symbol, choice)| format!("\n{symbol}. {choice}"));
        let choices: String = choices.collect();
        format!("Question: {}{choices}\nAnswer:", self.text)
    }
}

/// The input of a question with a prompt of its own, such as a record of the data set has.
///
/// # Errors
/// If the task is not [`four_answer_mcqa`].
pub fn mcqa_input(
    task: &VariableTask,
    prompt: impl Into<String>,
    question: &ChoiceQuestion,
) -> Result<TaskInput, CausalVariableError> {
    let right = [("question", question.right.as_str())];
    let texts = TEXTS
        .into_iter()
        .zip(question.choices.iter().map(String::as_str));
    let symbols = SYMBOLS
        .into_iter()
        .zip(question.symbols.iter().map(String::as_str));
    task.input(prompt, right.into_iter().chain(texts).chain(symbols))
}

/// The input of a record with this prompt, index of the right choice (`answerKey`) and labels.
///
/// # Errors
/// If the task is not [`arc_easy`], or has no such choice.
pub fn arc_input(
    task: &VariableTask,
    prompt: impl Into<String>,
    answer_key: usize,
    symbols: [&str; CHOICES],
) -> Result<TaskInput, CausalVariableError> {
    let key = i64::try_from(answer_key).unwrap_or(i64::MAX);
    let key = [("answerKey", TaskValue::Number(key))];
    let symbols = SYMBOLS.into_iter().zip(symbols.map(TaskValue::from));
    task.input(prompt, key.into_iter().chain(symbols))
}

/// How counterfactuals of multiple-choice questions differ from their bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChoiceCounterfactuals {
    /// The right choice changes places with another one.
    AnswerPosition,
    /// All symbols are other letters.
    RandomLetter,
    /// Both.
    AnswerPositionRandomLetter,
}

impl ChoiceCounterfactuals {
    /// The name of the set in the track, without the split.
    pub fn name(self) -> &'static str {
        match self {
            Self::AnswerPosition => "answerPosition",
            Self::RandomLetter => "randomLetter",
            Self::AnswerPositionRandomLetter => "answerPosition_randomLetter",
        }
    }

    /// A counterfactual for each of these questions of [`four_answer_mcqa`], the same for the same
    /// seed. The set has the name of a test set.
    ///
    /// # Errors
    /// If the task is another one, or a question has no right choice.
    pub fn generate(
        self,
        task: &VariableTask,
        questions: &[ChoiceQuestion],
        seed: u64,
    ) -> Result<CounterfactualSet, CausalVariableError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut example = |base: &ChoiceQuestion| -> Result<TaskExample, CausalVariableError> {
            let other = self.changed(base, &mut rng)?;
            Ok(TaskExample {
                base: mcqa_input(task, base.prompt(), base)?,
                counterfactual: mcqa_input(task, other.prompt(), &other)?,
            })
        };
        let examples = questions.iter().map(&mut example);
        let examples = examples.collect::<Result<Vec<_>, _>>()?;
        Ok(CounterfactualSet::new(
            format!("{}_test", self.name()),
            examples,
        ))
    }

    fn changed(
        self,
        base: &ChoiceQuestion,
        rng: &mut ChaCha8Rng,
    ) -> Result<ChoiceQuestion, CausalVariableError> {
        let mut other = base.clone();
        if self != Self::RandomLetter {
            let right = base.choices.iter().position(|choice| *choice == base.right);
            let right = right.ok_or_else(|| CausalVariableError::Prompt {
                prompt: base.prompt(),
                expected: format!("the choice {:?}", base.right),
            })?;
            let place = (right + rng.random_range(1..CHOICES)) % CHOICES;
            other.choices.swap(right, place);
        }
        if self != Self::AnswerPosition {
            let letters = ('A'..='Z').map(String::from);
            let mut letters: Vec<String> = letters
                .filter(|letter| !base.symbols.contains(letter))
                .collect();
            letters.shuffle(rng);
            for (symbol, letter) in other.symbols.iter_mut().zip(letters) {
                *symbol = letter;
            }
        }
        Ok(other)
    }
}
