//! Two-digit addition, and the carry of its ones.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::causal_models::{CausalModel, Values};
use crate::methods::causal_variables::value::below;
use crate::methods::causal_variables::{
    CausalVariableError, CounterfactualSet, TaskExample, TaskInput, TaskPosition, TaskValue,
    VariableTask,
};

/// Adding numbers of two digits: is there a variable that says whether the ones carry?
///
/// The answer has three digits, as in the track, with zeros in front.
///
/// # Errors
/// None for this model; they are those of any.
pub fn two_digit_addition() -> Result<VariableTask, CausalVariableError> {
    let model = CausalModel::<TaskValue>::builder()
        .input("op1_tens", below(10))
        .input("op1_ones", below(10))
        .input("op2_tens", below(10))
        .input("op2_ones", below(10))
        .variable("ones_carry", ["op1_ones", "op2_ones"], below(2), |ones| {
            sum(&ones) > 9
        })
        .variable("ones_out", ["op1_ones", "op2_ones"], below(10), |ones| {
            sum(&ones) % 10
        })
        .variable(
            "tens_out",
            ["op1_tens", "op2_tens", "ones_carry"],
            below(10),
            |tens| sum(&tens) % 10,
        )
        .variable(
            "hundreds_out",
            ["op1_tens", "op2_tens", "ones_carry"],
            below(2),
            |tens| sum(&tens) > 9,
        )
        .variable(
            "raw_output",
            ["hundreds_out", "tens_out", "ones_out"],
            Values::Any,
            |[hundreds, tens, ones]| format!("{hundreds}{tens}{ones}"),
        )
        .build()?;
    let positions = [
        TaskPosition::last_number("op2_last"),
        TaskPosition::last("last"),
    ];
    VariableTask::new("arithmetic", model, positions)
}

fn sum(digits: &[&TaskValue]) -> i64 {
    digits.iter().map(|digit| digit.number()).sum()
}

/// The question of the track for two numbers below 100.
///
/// # Errors
/// If a number has more digits.
pub fn addition_input(
    task: &VariableTask,
    numbers: [u32; 2],
) -> Result<TaskInput, CausalVariableError> {
    let [first, second] = numbers;
    let prompt = format!("Q: How much is {first:02} plus {second:02}? A: ");
    digits_input(task, prompt, numbers)
}

/// The input of a prompt, whose last two numbers are added, of each its last two digits.
///
/// # Errors
/// If there are no two numbers.
pub fn parse_addition(task: &VariableTask, prompt: &str) -> Result<TaskInput, CausalVariableError> {
    let numbers = prompt.split(|c: char| !c.is_ascii_digit());
    let numbers: Vec<&str> = numbers.filter(|digits| !digits.is_empty()).collect();
    let [.., first, second] = &numbers[..] else {
        return Err(CausalVariableError::Prompt {
            prompt: prompt.to_owned(),
            expected: format!("two numbers, found {}", numbers.len()),
        });
    };
    let last_two = |digits: &str| {
        let digits = &digits.as_bytes()[digits.len().saturating_sub(2)..];
        let digits = digits.iter().map(|digit| u32::from(digit - b'0'));
        digits.fold(0, |number, digit| 10 * number + digit)
    };
    digits_input(task, prompt.to_owned(), [last_two(first), last_two(second)])
}

fn digits_input(
    task: &VariableTask,
    prompt: String,
    [first, second]: [u32; 2],
) -> Result<TaskInput, CausalVariableError> {
    let values = [
        ("op1_tens", first / 10),
        ("op1_ones", first % 10),
        ("op2_tens", second / 10),
        ("op2_ones", second % 10),
    ];
    task.input(prompt, values.map(|(name, digit)| (name, i64::from(digit))))
}

/// How counterfactuals of additions differ from their bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdditionCounterfactuals {
    /// In everything: other numbers.
    Random,
    /// In the ones' carry only: the ones add up to the same last digit, and the tens are the same.
    OnesCarry,
}

impl AdditionCounterfactuals {
    /// The name of the set in the track, without the split.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::OnesCarry => "ones_carry",
        }
    }

    /// Generated examples, the same for the same seed. The set has the name of a test set.
    ///
    /// # Errors
    /// If the task is not an addition.
    pub fn generate(
        self,
        task: &VariableTask,
        examples: usize,
        seed: u64,
    ) -> Result<CounterfactualSet, CausalVariableError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = || -> Result<TaskExample, CausalVariableError> {
            let [base, counterfactual] = self.draw(&mut rng);
            Ok(TaskExample {
                base: addition_input(task, base)?,
                counterfactual: addition_input(task, counterfactual)?,
            })
        };
        let examples = (0..examples)
            .map(|_| draw())
            .collect::<Result<Vec<_>, _>>()?;
        Ok(CounterfactualSet::new(
            format!("{}_test", self.name()),
            examples,
        ))
    }

    fn draw(self, rng: &mut ChaCha8Rng) -> [[u32; 2]; 2] {
        match self {
            Self::Random => [numbers(rng), numbers(rng)],
            Self::OnesCarry => loop {
                let base = numbers(rng);
                let [first, second] = base.map(|number| number % 10);
                // Ones of 9 add up to no other number with the same last digit.
                let other = match first + second {
                    9 => continue,
                    sum @ 10.. => sum - 10,
                    sum => sum + 10,
                };
                let [low, high] = [other.saturating_sub(9), other.min(9)];
                let ones = rng.random_range(low..=high);
                let tens = base.map(|number| number / 10 * 10);
                return [base, [tens[0] + ones, tens[1] + other - ones]];
            },
        }
    }
}

fn numbers(rng: &mut ChaCha8Rng) -> [u32; 2] {
    [rng.random_range(0..100), rng.random_range(0..100)]
}
