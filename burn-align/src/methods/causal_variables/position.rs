//! The tokens of a prompt at which activations are swapped.

use std::ops::Range;

use burn_align_models::Tokenizer;

use super::{CausalVariableError, TaskInput, VariableTask};

/// A place in every prompt of a task, by the name that it has in the names of units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskPosition {
    /// The name, such as `last_token`.
    pub name: String,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Last,
    All,
    LastNumber,
    /// The symbol of the right answer, and this many tokens further.
    CorrectSymbol(usize),
    /// The value of this variable.
    ValueOf(String),
}

impl TaskPosition {
    /// The last token.
    pub fn last(name: impl Into<String>) -> Self {
        Self::new(name, Rule::Last)
    }

    /// Every token. Base and counterfactual must have the same number of them.
    pub fn all(name: impl Into<String>) -> Self {
        Self::new(name, Rule::All)
    }

    /// The last token of the last number.
    pub fn last_number(name: impl Into<String>) -> Self {
        Self::new(name, Rule::LastNumber)
    }

    /// The last token of the first occurrence of a variable's value as a word of its own.
    pub fn value_of(name: impl Into<String>, variable: impl Into<String>) -> Self {
        Self::new(name, Rule::ValueOf(variable.into()))
    }

    /// The token of the symbol of the right answer, and this many tokens further, in tasks with
    /// variables `answer_pointer` and `symbol0`, `symbol1`, …
    pub(super) fn correct_symbol(name: impl Into<String>, further: usize) -> Self {
        Self::new(name, Rule::CorrectSymbol(further))
    }

    fn new(name: impl Into<String>, rule: Rule) -> Self {
        let name = name.into();
        Self { name, rule }
    }

    /// The tokens in this prompt, which the tokenizer gives with its special tokens. A token that
    /// ends at a character is the last one of the text up to there, as in the track; a tokenizer
    /// that merges across that place gives another one in the whole prompt.
    ///
    /// # Errors
    /// If the prompt does not have what the position is at.
    pub fn find(
        &self,
        task: &VariableTask,
        input: &TaskInput,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<usize>, CausalVariableError> {
        let prompt = &input.prompt;
        let tokens = |text: &str| -> Result<usize, CausalVariableError> {
            Ok(tokenizer.encode(text)?.len())
        };
        let up_to = |end: usize| -> Result<usize, CausalVariableError> {
            Ok(tokens(&prompt[..end])?.saturating_sub(1))
        };
        let expected = |what: String| CausalVariableError::Prompt {
            prompt: prompt.clone(),
            expected: what,
        };
        let found = match &self.rule {
            Rule::All => return Ok((0..tokens(prompt)?).collect()),
            Rule::Last => up_to(prompt.len())?,
            Rule::LastNumber => {
                let number = words(prompt).filter(|word| is_number(&prompt[word.clone()]));
                let number = number.last();
                up_to(number.ok_or_else(|| expected("a number".to_owned()))?.end)?
            }
            Rule::CorrectSymbol(further) => {
                let symbol = correct_symbol(task, input)?;
                let word = words(prompt).find(|word| prompt[word.clone()] == symbol);
                let word = word.ok_or_else(|| expected(format!("the symbol {symbol:?}")))?;
                up_to(word.end)? + further
            }
            Rule::ValueOf(variable) => {
                let setting = task.model.run(&input.inputs)?;
                let value = setting[task.model.variable(variable)?].to_string();
                let place = occurrence(prompt, &value);
                up_to(place.ok_or_else(|| expected(format!("{value:?}")))?.end)?
            }
        };
        match found < tokens(prompt)? {
            true => Ok(vec![found]),
            false => Err(expected(format!("a token at position {}", self.name))),
        }
    }
}

fn correct_symbol(task: &VariableTask, input: &TaskInput) -> Result<String, CausalVariableError> {
    let setting = task.model.run(&input.inputs)?;
    let pointer = &setting[task.model.variable("answer_pointer")?];
    let symbol = task.model.variable(&format!("symbol{pointer}"))?;
    Ok(setting[symbol].to_string())
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The words of a text: longest runs of letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text[rest..].find(is_word)?;
        let length = text[start..].find(|c| !is_word(c));
        rest = length.map_or(text.len(), |length| start + length);
        Some(start..rest)
    })
}

fn is_number(word: &str) -> bool {
    word.chars().all(char::is_numeric)
}

/// The first occurrence that neither begins nor ends inside a word.
fn occurrence(text: &str, part: &str) -> Option<Range<usize>> {
    if part.is_empty() {
        return None;
    }
    let mut places = text
        .match_indices(part)
        .map(|(start, _)| start..start + part.len());
    places.find(|place| {
        let before = text[..place.start].chars().next_back();
        let after = text[place.end..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}
