//! What a model says: greedy continuations of prompts, with and without interventions.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, TokenBatch, Tokenizer};

use super::CausalVariableError;
use crate::engine::{
    Edit, LogitPositions, Plan, PlanError, ReadId, RunOptions, WorldId, read_numbers,
};
use crate::interventions::{BuiltinIntervention, VanillaIntervention};

/// How models are asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AnswerOptions {
    /// Number of tokens of an answer. An answer is right if the expected text is in it. With more
    /// than one, the keys and values of a batch are kept, those of each unit from where it is
    /// swapped on. Default: 1, as in the track.
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

/// The next token of each row, the one with the largest logit, and this logit.
///
/// # Shapes
/// - logits: of some worlds, `[batch, 1, vocab]` each
/// - output: `[world * batch]`
fn most_likely<B: Backend>(
    logits: impl Iterator<Item = Tensor<B, 3>>,
) -> Result<(Vec<u32>, Vec<f64>), PlanError> {
    let of_worlds = logits.map(|logits| {
        let logits = logits.cast(DType::F32);
        (logits.clone().argmax(2), logits.max_dim(2))
    });
    // Read at once, so that the device is waited for once.
    let (tokens, highest): (Vec<_>, Vec<_>) = of_worlds.unzip();
    let tokens = read_numbers(Tensor::cat(tokens, 0))?.into_iter();
    let highest = read_numbers(Tensor::cat(highest, 0))?;
    Ok((tokens.map(|token| token as u32).collect(), highest))
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

/// The answers to prompts in several worlds. The prompts run once; the answers go on from their
/// caches.
///
/// - bases: the prompts of a batch
/// - source: a world of its own, from which edits can take
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
    let mut plan = Plan::<B>::new();
    let source = source.map(|source| {
        let input = plan.tokens(source);
        plan.world(input, [])
    });
    let input = plan.tokens(&TokenBatch::new(bases.to_vec())?);
    let worlds = edits.iter().map(|edits| plan.world(input, edits(source)));
    let mut worlds: Vec<WorldId> = worlds.collect();
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); edits.len() * bases.len()];
    for left in (0..options.new_tokens).rev() {
        let reads = worlds.iter();
        let reads = reads.map(|world| plan.read_logits(*world, LogitPositions::Last));
        let reads: Vec<ReadId> = reads.collect();
        let to_continue: &[WorldId] = match left {
            0 => &[],
            _ => &worlds[..],
        };
        let (results, rows) =
            plan.run_to_continue(model, interventions, to_continue, &options.run)?;
        let (tokens, highest) = most_likely(reads.iter().map(|read| results.get(*read)))?;
        // A largest logit that is not finite shows that some are not.
        plan.check_finite(&highest, model, interventions, &options.run)?;
        for (answer, token) in answers.iter_mut().zip(&tokens) {
            answer.push(*token);
        }
        // From now on, each row is a world.
        plan = Plan::new();
        let rows = rows.iter().flatten().zip(tokens);
        let rows = rows.map(|(row, token)| {
            let input = plan.input(row.then([token]));
            plan.world(input, [])
        });
        worlds = rows.collect();
    }
    let of_worlds = answers.chunks(bases.len()).map(<[Vec<u32>]>::to_vec);
    Ok(of_worlds.collect())
}

/// What the model says after each prompt.
///
/// # Errors
/// If a prompt does not fit the model, if values stop being finite, or if answers of several tokens
/// are asked of a model that cannot go on from cached keys and values.
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

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn_align_models::{Component, DecoderConfig, Site};
    use serde_json::json;

    use super::*;
    use crate::engine::Units;

    const TOKENS: usize = 3;

    /// Prompts of some lengths, with ids below 32.
    fn prompts(step: usize, length: impl Fn(usize) -> usize) -> Vec<Vec<u32>> {
        let prompt = |example: usize| -> Vec<u32> {
            let ids = (0..length(example)).map(|at| (step * example + 5 * at) % 32);
            ids.map(|id| id as u32).collect()
        };
        (0..6).map(prompt).collect()
    }

    /// Weights so large that edits change answers, and not only the first tokens.
    #[test]
    fn answers_are_those_of_whole_texts() {
        let config = DecoderConfig::from_json(&json!({
            "model_type": "llama",
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "initializer_range": 1.0,
        }));
        let model = config.expect("valid").init::<Flex>(&Default::default());
        let interventions: [BuiltinIntervention<Flex>; 1] = [VanillaIntervention.into()];
        let bases = prompts(7, |example| 3 + example % 2);
        let source = TokenBatch::new(prompts(11, |_example| 3)).expect("tokens");
        let edits = [None, Some(0), Some(1)].map(|layer| {
            move |source: Option<WorldId>| match (layer, source) {
                (Some(layer), Some(source)) => {
                    let site = Site::Block(layer, Component::BlockOutput);
                    vec![Edit::from_world(source, site, Units::position(1), 0)]
                }
                _ => Vec::new(),
            }
        });
        let options = AnswerOptions::default().with_new_tokens(TOKENS);
        let found = continuations(
            &model,
            &interventions,
            &bases,
            Some(&source),
            &edits,
            &options,
        );
        let found = found.expect("they fit the model");
        assert_ne!(found[0], found[1]);

        // Prompts and answers from the beginning, for each token.
        let mut texts = vec![bases.clone(); edits.len()];
        for _ in 0..TOKENS {
            let mut plan = Plan::<Flex>::new();
            let input = plan.tokens(&source);
            let from = plan.world(input, []);
            let reads = texts.iter().zip(&edits).map(|(texts, edits)| {
                let input = plan.tokens(&TokenBatch::new(texts.clone()).expect("tokens"));
                let world = plan.world(input, edits(Some(from)));
                plan.read_logits(world, LogitPositions::Last)
            });
            let reads: Vec<ReadId> = reads.collect();
            let results = plan
                .run(&model, &interventions)
                .expect("they fit the model");
            let logits = reads.iter().map(|read| results.get(*read));
            let (tokens, _highest) = most_likely(logits).expect("a host");
            for (text, token) in texts.iter_mut().flatten().zip(tokens) {
                text.push(token);
            }
        }
        for (texts, answers) in texts.iter().zip(&found) {
            for ((text, base), answer) in texts.iter().zip(&bases).zip(answers) {
                assert_eq!(text[base.len()..], answer[..]);
            }
        }
    }
}
