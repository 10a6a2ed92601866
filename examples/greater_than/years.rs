//! Prompts about years, and what is measured after them.

use anyhow::{Context, Result, ensure};
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_align::methods::attribution::Metric;
use burn_align_models::{TokenBatch, Tokenizer};
use rand::{Rng, SeedableRng, rngs::StdRng};

const NOUNS: [&str; 12] = [
    "war", "siege", "project", "reign", "journey", "marriage", "crisis", "campaign", "conflict",
    "career", "contract", "study",
];

/// Number of digits.
pub(super) const DIGITS: usize = 10;

/// Prompts in pairs, and the metric.
pub(super) struct Years {
    /// `The war lasted from the year 1732 to the year 173`.
    pub(super) prompts: TokenBatch,
    /// The same from the year 1730.
    pub(super) from_zero: TokenBatch,
    /// The last digit of each first year.
    pub(super) metric: LaterDigits,
}

impl Years {
    /// Draws pairs of prompts. The first year does not end with 0, as in the other prompt, nor with
    /// 9, after which no digit is later.
    pub(super) fn draw(tokenizer: &Tokenizer, count: usize, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut prompts, mut from_zero, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let noun = NOUNS[rng.random_range(0..NOUNS.len())];
            let decade = rng.random_range(110..200);
            let start = rng.random_range(1..DIGITS - 1);
            let text = |digit: usize| {
                format!("The {noun} lasted from the year {decade}{digit} to the year {decade}")
            };
            prompts.push(text(start));
            from_zero.push(text(0));
            starts.push(start);
        }
        let digits = (0..DIGITS).map(|digit| tokenizer.single_token(&digit.to_string()));
        let digits = digits.collect::<Result<Vec<u32>, _>>()?;
        let years = Self {
            prompts: tokenizer.encode_batch(&prompts)?,
            from_zero: tokenizer.encode_batch(&from_zero)?,
            metric: LaterDigits { digits, starts },
        };
        years.check()?;
        Ok(years)
    }

    /// That the tokenizer splits years into digits, so that prompts differ in one token.
    fn check(&self) -> Result<()> {
        let LaterDigits { digits, starts } = &self.metric;
        let pairs = self.prompts.ids().iter().zip(self.from_zero.ids());
        for ((prompt, other), start) in pairs.zip(starts) {
            let differing = prompt.iter().zip(other).filter(|(a, b)| a != b);
            let differing: Vec<(u32, u32)> = differing.map(|(a, b)| (*a, *b)).collect();
            ensure!(
                prompt.len() == other.len() && differing == [(digits[*start], digits[0])],
                "expected a tokenizer that splits years into digits, found one that does not: use \
                 SmolLM2, or another model of its kind"
            );
        }
        Ok(())
    }
}

/// The probability of later years less that of years that are not: `P(digit > y) − P(digit ≤ y)`
/// after the prompt, where `y` is the last digit of the first year.
pub(super) struct LaterDigits {
    /// The token of each digit.
    digits: Vec<u32>,
    /// `y`, for each example.
    pub(super) starts: Vec<usize>,
}

impl LaterDigits {
    /// The probability of each digit, `[batch, digit]`.
    ///
    /// # Shapes
    /// - logits: `[batch, 1, vocab]`
    pub(super) fn probabilities<B: Backend>(&self, logits: Tensor<B, 3>) -> Tensor<B, 2> {
        let [batch, _unit, vocab] = logits.dims();
        let ids: Vec<i64> = self.digits.iter().map(|id| i64::from(*id)).collect();
        let ids = TensorData::new(ids, [DIGITS]);
        let ids = Tensor::<B, 1, Int>::from_data(ids, &logits.device());
        let all = softmax(logits.cast(DType::F32).reshape([batch, vocab]), 1);
        all.select(1, ids)
    }

    /// The same on the host.
    pub(super) fn read<B: Backend>(&self, logits: Tensor<B, 3>) -> Result<Vec<Vec<f64>>> {
        let probabilities = self.probabilities(logits).into_data();
        let numbers: Vec<f64> = probabilities.iter::<f64>().collect();
        let wrong = numbers.iter().find(|number| !number.is_finite());
        ensure!(wrong.is_none(), "the logits are not finite");
        Ok(numbers.chunks(DIGITS).map(<[f64]>::to_vec).collect())
    }

    /// The metric of some probabilities.
    pub(super) fn difference(&self, example: usize, probabilities: &[f64]) -> Result<f64> {
        let start = self.starts.get(example).context("no such example")?;
        let signed = probabilities.iter().enumerate();
        Ok(signed.map(|(digit, p)| sign(digit, *start) * p).sum())
    }
}

fn sign(digit: usize, start: usize) -> f64 {
    if digit > start { 1.0 } else { -1.0 }
}

impl Metric for LaterDigits {
    fn values<B: Backend>(&self, logits: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 1> {
        let [batch, _unit, _vocab] = logits.dims();
        let signs = examples.iter().flat_map(|example| {
            let start = self.starts[*example];
            (0..DIGITS).map(move |digit| sign(digit, start) as f32)
        });
        let signs: Vec<f32> = signs.collect();
        let signs = TensorData::new(signs, [batch, DIGITS]);
        let signs = Tensor::<B, 2>::from_data(signs, (&logits.device(), DType::F32));
        let differences = self.probabilities(logits) * signs; // [batch, digit]
        differences.sum_dim(1).reshape([batch])
    }
}
