//! What a model says: greedy continuations of prompts, with and without interventions.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, TokenBatch, Tokenizer};

use super::CausalVariableError;
use crate::engine::{Edit, LogitPositions, Plan, RunOptions, WorldId, read_numbers};
use crate::interventions::{BuiltinIntervention, VanillaIntervention};

/// How models are asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AnswerOptions {
    /// Number of tokens of an answer. An answer is right if the expected text is in it. Default: 1,
    /// as in the track.
    pub new_tokens: usize,
    /// Examples at a time. Scores of a batch keep the last logits of all units, units × examples ×
    /// vocabulary. Default: 64.
    pub batch_size: usize,
    /// How plans run.
    pub run: RunOptions,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self {
            new_tokens: 1,
            batch_size: 64,
            run: RunOptions::default(),
        }
    }
}

impl AnswerOptions {
    /// Sets the number of tokens of an answer.
    pub fn with_new_tokens(mut self, new_tokens: usize) -> Self {
        self.new_tokens = new_tokens;
        self
    }

    /// Sets the number of examples at a time.
    pub fn with_batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets how plans run.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }

    /// # Errors
    /// If nothing would be asked.
    pub(super) fn check(&self) -> Result<(), CausalVariableError> {
        let found = match (self.new_tokens, self.batch_size) {
            (0, _) => "new_tokens",
            (_, 0) => "batch_size",
            _ => return Ok(()),
        };
        Err(CausalVariableError::Number {
            what: found,
            expected: "at least 1",
            found: "0".to_owned(),
        })
    }
}

/// The next token of each row: the one with the largest logit, `[batch, 1, vocab]` → `[batch]`.
pub(super) fn most_likely<B: Backend>(
    logits: Tensor<B, 3>,
) -> Result<(Vec<u32>, Vec<f64>), CausalVariableError> {
    let logits = logits.cast(DType::F32);
    // A largest logit that is not finite shows that some are not.
    let highest = read_numbers(logits.clone().max_dim(2))?;
    let tokens = read_numbers(logits.argmax(2))?;
    Ok((
        tokens.into_iter().map(|token| token as u32).collect(),
        highest,
    ))
}

/// The texts of answers: up to the end-of-text token, without special tokens.
pub(super) struct Texts<'a> {
    tokenizer: &'a Tokenizer,
    end: Option<u32>,
    special: Vec<u32>,
}

impl<'a> Texts<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        let id = |token: &str| tokenizer.token_id(token);
        let mut named = tokenizer.special_tokens();
        let end = named.find(|(name, _)| *name == "eos_token");
        let special = tokenizer.special_tokens();
        Self {
            tokenizer,
            end: end.and_then(|(_, token)| id(token)),
            special: special.filter_map(|(_, token)| id(token)).collect(),
        }
    }

    pub(super) fn text(&self, tokens: &[u32]) -> Result<String, CausalVariableError> {
        let until = tokens.iter().position(|token| Some(*token) == self.end);
        let tokens = tokens[..until.unwrap_or(tokens.len())].iter().copied();
        let tokens: Vec<u32> = tokens.filter(|it| !self.special.contains(it)).collect();
        Ok(self.tokenizer.decode(&tokens)?)
    }
}

/// A prompt's tokens, and the answers to it in several worlds.
///
/// - bases: the prompts of a batch
/// - add: adds what all worlds share to a plan
/// - edits: for each world, its edits
///
/// Gives the tokens of each answer, `[world][example][token]`.
pub(super) fn continuations<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    interventions: &[BuiltinIntervention<B>],
    bases: &[Vec<u32>],
    source: Option<&TokenBatch>,
    edits: &[impl Fn(Option<WorldId>) -> Vec<Edit>],
    options: &AnswerOptions,
) -> Result<Vec<Vec<Vec<u32>>>, CausalVariableError> {
    let mut answers = vec![vec![Vec::new(); bases.len()]; edits.len()];
    for _ in 0..options.new_tokens {
        let mut plan = Plan::<B>::new();
        let source = source.map(|source| {
            let input = plan.tokens(source);
            plan.world(input, [])
        });
        let mut reads = Vec::new();
        for (edits, answers) in edits.iter().zip(&answers) {
            let rows = bases.iter().zip(answers);
            let rows = rows.map(|(base, answer)| [&base[..], &answer[..]].concat());
            let input = plan.tokens(&TokenBatch::new(rows.collect())?);
            let world = plan.world(input, edits(source));
            reads.push(plan.read_logits(world, LogitPositions::Last));
        }
        let results = plan.run_with(model, interventions, &options.run)?;
        for (read, answers) in reads.into_iter().zip(&mut answers) {
            let (tokens, highest) = most_likely(results.get(read))?;
            plan.check_finite(&highest, model, interventions, &options.run)?;
            for (answer, token) in answers.iter_mut().zip(tokens) {
                answer.push(token);
            }
        }
    }
    Ok(answers)
}

/// What the model says after each prompt.
///
/// # Errors
/// If a prompt does not fit the model, or values stop being finite.
pub fn answer_prompts<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    tokenizer: &Tokenizer,
    prompts: &[&str],
    options: &AnswerOptions,
) -> Result<Vec<String>, CausalVariableError> {
    options.check()?;
    let texts = Texts::new(tokenizer);
    let none: [BuiltinIntervention<B>; 1] = [VanillaIntervention.into()];
    let mut answers = Vec::with_capacity(prompts.len());
    for prompts in prompts.chunks(options.batch_size) {
        let bases = prompts.iter().map(|prompt| tokenizer.encode(prompt));
        let bases: Vec<Vec<u32>> = bases.collect::<Result<_, _>>()?;
        let clean = [|_source: Option<WorldId>| Vec::new()];
        let found = continuations(model, &none, &bases, None, &clean, options)?;
        for tokens in found.into_iter().flatten() {
            answers.push(texts.text(&tokens)?);
        }
    }
    Ok(answers)
}
