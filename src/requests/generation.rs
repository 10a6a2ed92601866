//! What a request generates.

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::Plan;
use burn_align::front::{AlignGenerateError, InterveneAt};
use burn_align::generate::{
    AtLimit, GenerateOptions, GeneratedRow, GeneratedWorld, Sampling, TextStream, generate,
};
use burn_align::interventions::VanillaIntervention;
use burn_align_models::{AlignableTransformer, Decoder, TokenBatch, Tokenizer};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// How to continue the base.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Generation {
    max_new_tokens: usize,
    #[serde(default)]
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    #[serde(default = "no_penalty")]
    repetition_penalty: f64,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    stop_tokens: Vec<u32>,
    #[serde(default, deserialize_with = "read_at")]
    pub(super) at: Option<InterveneAt>,
    #[serde(default)]
    at_limit: AtLimit,
    #[serde(default)]
    logits: bool,
}

fn no_penalty() -> f64 {
    1.0
}

fn read_at<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<InterveneAt>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Option::deserialize(&value).map_err(|_error| {
        D::Error::custom(format_args!(
            "expected \"prompt\", \"steps\", \"all\" or {{\"step\": k}} with a whole number k, \
             found {value}"
        ))
    })
}

/// Generated tokens of all examples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The tokens of each example.
    pub rows: Vec<Vec<u32>>,
    /// The most tokens that an example can have.
    pub longest: usize,
}

impl Generated {
    pub(super) fn new<B: Backend>(rows: &[GeneratedRow<B>], longest: usize) -> Self {
        let rows = rows.iter().map(|row| row.tokens.clone());
        Self {
            rows: rows.collect(),
            longest,
        }
    }

    /// The text that the tokens of each example add to its prompt: with the space before the first
    /// new word, which many tokenizers strip at the beginning of a text.
    ///
    /// - prompts: as many as there are examples
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn texts(&self, tokenizer: &Tokenizer, prompts: &TokenBatch) -> Result<Vec<String>> {
        let rows = self.rows.iter().zip(prompts.ids());
        let texts = rows.map(|(row, prompt)| -> Result<String> {
            let mut stream = TextStream::after(tokenizer, prompt)?;
            let text = stream.extend(row)?;
            Ok(text + &stream.finish()?)
        });
        texts.collect()
    }

    /// The tokens as one tensor, `[batch, longest]`, with -1 after the end of an example.
    pub fn padded(&self) -> Vec<i64> {
        let rows = self.rows.iter().flat_map(|row| {
            let tokens = row.iter().copied().map(i64::from);
            tokens.chain(std::iter::repeat(-1)).take(self.longest)
        });
        rows.collect()
    }
}

impl Generation {
    /// Where the interventions act.
    pub(super) fn at(&self) -> InterveneAt {
        self.at.unwrap_or_default()
    }

    fn sampling(&self) -> Sampling {
        let mut sampling = Sampling::greedy()
            .with_temperature(self.temperature)
            .with_repetition_penalty(self.repetition_penalty)
            .with_seed(self.seed);
        sampling.top_k = self.top_k;
        sampling.top_p = self.top_p;
        sampling.min_p = self.min_p;
        sampling
    }

    /// Checks what does not depend on the model.
    pub(super) fn check(&self) -> Result<()> {
        let checked = self.sampling().validate();
        checked.map_err(|error| anyhow!("generate.{error}"))?;
        let empty = self.stop.iter().position(String::is_empty);
        ensure!(
            empty.is_none(),
            "generate.stop[{}]: expected at least one character, found none",
            empty.unwrap_or_default()
        );
        Ok(())
    }

    pub(super) fn options(&self, tokenizer: Option<&Tokenizer>) -> Result<GenerateOptions> {
        let mut options = GenerateOptions::new(self.max_new_tokens)
            .with_sampling(self.sampling())
            .with_stop_tokens(self.stop_tokens.iter().copied())
            .with_at_limit(self.at_limit)
            .with_prompt_logits();
        options.keep_logits = self.logits;
        if self.stop.is_empty() {
            return Ok(options);
        }
        let tokenizer = tokenizer.context(
            "generate.stop: the model has no tokenizer: give stop_tokens instead, or add \
             tokenizer.json",
        )?;
        Ok(options.with_stop_texts(tokenizer, self.stop.iter().map(String::as_str)))
    }

    /// The most tokens that an example can have.
    pub(super) fn longest<B: Backend>(&self, model: &Decoder<B>, base: &TokenBatch) -> usize {
        let shortest = base.lengths().into_iter().min().unwrap_or(0);
        let max_positions = model.dims().max_positions;
        let left = max_positions.map(|most| most.saturating_sub(shortest));
        self.max_new_tokens.min(left.unwrap_or(usize::MAX))
    }
}

/// Continues the base without interventions. As with interventions, example `i` draws from stream
/// `i`.
pub(super) fn plain<B: Backend>(
    model: &Decoder<B>,
    base: &TokenBatch,
    options: &GenerateOptions,
) -> Result<Vec<GeneratedRow<B>>, AlignGenerateError> {
    let mut plan = Plan::new();
    let input = plan.tokens(base);
    let world = GeneratedWorld::new(plan.world(input, []));
    let world = world.with_streams(0..base.batch() as u64);
    let none: [VanillaIntervention; 0] = [];
    let texts = generate(model, &none, &plan, &[world], options, |_token| {});
    Ok(texts?.rows)
}

/// The values of all examples, `[batch, longest, width]`, with zeros after the end of an example.
/// `None` if there are no values.
///
/// - values: of each example, `[count, width]`
pub(super) fn padded<B: Backend>(
    values: Vec<Option<Tensor<B, 2>>>,
    longest: usize,
) -> Option<Tensor<B, 3>> {
    let first = values.iter().flatten().next()?;
    let [_, width] = first.dims();
    let (device, dtype) = (first.device(), first.dtype());
    let zeros = |count: usize| Tensor::<B, 2>::zeros([count, width], (&device, dtype));
    let rows = values.into_iter().map(|values| {
        let row = match values {
            None => zeros(longest),
            Some(values) => {
                let [count, _] = values.dims();
                match count < longest {
                    true => Tensor::cat(vec![values, zeros(longest - count)], 0),
                    false => values,
                }
            }
        };
        row.unsqueeze::<3>()
    });
    Some(Tensor::cat(rows.collect(), 0))
}
