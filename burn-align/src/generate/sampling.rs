//! Choosing the next token from logits: the most likely one, or a draw from a filtered
//! distribution.
//!
//! Order and definitions of the filters are those of Hugging Face `transformers`
//! (`generation/logits_process.py`, 4.57): repetition penalty, temperature, top-k, top-p, min-p.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// How to choose the next token. Default: the most likely one.
///
/// ```
/// use burn_align::generate::{Sampler, Sampling};
///
/// let sampling = Sampling::greedy().with_temperature(0.8).with_top_p(0.95).with_seed(7);
/// // The row of a batch with stream 3. Other rows do not affect it.
/// let mut sampler = Sampler::new(&sampling, 3)?;
/// let token = sampler.next(&[0.1, 2.5, -1.0], &[0, 2])?;
/// assert!(token < 3);
/// # Ok::<(), burn_align::generate::SamplingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sampling {
    /// Logits are divided by it before the softmax. With 0, the most likely token is taken, and of
    /// equally likely ones that with the lower id; only the repetition penalty has an effect then.
    /// Default: 0.
    pub temperature: f64,
    /// Keeps this many of the most likely tokens, and all tokens as likely as the last of them.
    /// Default: all.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most likely tokens whose probabilities add up to at least this: at
    /// least one token (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751). Of equally
    /// likely tokens at the boundary, those with higher ids are kept, as in `transformers`.
    /// Default: all.
    pub top_p: Option<f64>,
    /// Keeps tokens at least this many times as likely as the most likely one (Nguyen et al. 2024,
    /// arXiv 2407.01082). Default: all.
    pub min_p: Option<f64>,
    /// Divides positive logits and multiplies negative ones of all tokens in the history (prompt,
    /// what is cached of it, and generated text), once for each token (Keskar et al. 2019, CTRL,
    /// arXiv 1909.05858). Above 1 it discourages repetition. Default: 1, for no effect.
    pub repetition_penalty: f64,
    /// Seed of the draws. Default: 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self::greedy()
    }
}

/// Why a token could not be chosen.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A temperature that is negative or not finite.
    #[error(
        "temperature: expected a finite number that is at least 0, found {found}; 0 takes the most \
         likely token"
    )]
    Temperature {
        /// The temperature.
        found: f64,
    },
    /// No token would be kept.
    #[error("top_k: expected at least 1, found 0; leave it out to keep all tokens")]
    TopK,
    /// A top-p that is not a probability above 0.
    #[error("top_p: expected more than 0 and at most 1, found {found}; 1 keeps all tokens")]
    TopP {
        /// The value.
        found: f64,
    },
    /// A min-p that is not a probability below 1.
    #[error("min_p: expected at least 0 and less than 1, found {found}; 0 keeps all tokens")]
    MinP {
        /// The value.
        found: f64,
    },
    /// A repetition penalty that is not a positive number.
    #[error("repetition_penalty: expected a finite number above 0, found {found}; 1 has no effect")]
    RepetitionPenalty {
        /// The value.
        found: f64,
    },
    /// A logit that has no place in a softmax.
    #[error(
        "token {token}: expected a finite logit, or -inf for a token never to be chosen; found \
         {found}"
    )]
    NotFinite {
        /// The token.
        token: usize,
        /// Its logit, after the repetition penalty.
        found: f32,
    },
    /// Nothing to choose from.
    #[error("expected at least one token with a finite logit, found none")]
    NoToken,
    /// A token of the history without a logit.
    #[error(
        "history: expected tokens below {vocab}, for each of which there is a logit; found {found}"
    )]
    UnknownToken {
        /// The token.
        found: u32,
        /// Number of logits.
        vocab: usize,
    },
}

impl Sampling {
    /// The most likely token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }

    /// Divides logits by this before the softmax.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Keeps this many of the most likely tokens.
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = Some(top_k);
        self
    }

    /// Keeps the most likely tokens whose probabilities add up to this.
    pub fn with_top_p(mut self, top_p: f64) -> Self {
        self.top_p = Some(top_p);
        self
    }

    /// Keeps tokens at least this many times as likely as the most likely one.
    pub fn with_min_p(mut self, min_p: f64) -> Self {
        self.min_p = Some(min_p);
        self
    }

    /// Makes tokens of the history less likely (above 1) or more likely (below 1).
    pub fn with_repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Draws with this seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// If one of them is out of range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let found = self.temperature;
        if !(found.is_finite() && found >= 0.0) {
            return Err(SamplingError::Temperature { found });
        }
        if self.top_k == Some(0) {
            return Err(SamplingError::TopK);
        }
        if let Some(found) = self.top_p
            && !(found > 0.0 && found <= 1.0)
        {
            return Err(SamplingError::TopP { found });
        }
        if let Some(found) = self.min_p
            && !(0.0..1.0).contains(&found)
        {
            return Err(SamplingError::MinP { found });
        }
        let found = self.repetition_penalty;
        if !(found.is_finite() && found > 0.0) {
            return Err(SamplingError::RepetitionPenalty { found });
        }
        Ok(())
    }

    /// The tokens that may be chosen, with their probabilities, by increasing id.
    ///
    /// # Shapes
    /// - logits: `[vocab]`
    ///
    /// # Errors
    /// If a parameter is out of range, or as [`Sampler::next`].
    pub fn distribution(
        &self,
        logits: &[f32],
        history: &[u32],
    ) -> Result<Vec<(u32, f64)>, SamplingError> {
        self.validate()?;
        let (mut penalised, mut candidates) = (Vec::new(), Candidates::default());
        let scores = scores(self, logits, history, &mut penalised)?;
        let best = highest(scores)?;
        if self.is_greedy() {
            return Ok(vec![(best as u32, 1.0)]);
        }
        candidates.filter(self, scores, best);
        let total = total(&candidates.all);
        let candidates = candidates.all.iter();
        Ok(candidates.map(|it| (it.token, it.weight / total)).collect())
    }
}

/// Words of ChaCha's key stream that a step may use: one block.
const WORDS_PER_STEP: u128 = 16;

/// Chooses the tokens of one row, step by step.
///
/// A draw depends on the seed, the row's stream and the number of the step alone. Give each row of
/// a batch a stream of its own, such as its index in the dataset, and its text does not depend on
/// the other rows.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    step: u64,
    /// Logits after a repetition penalty, kept for its memory.
    penalised: Vec<f32>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler at step 0.
    ///
    /// # Errors
    /// If a parameter is out of range.
    pub fn new(sampling: &Sampling, stream: u64) -> Result<Self, SamplingError> {
        sampling.validate()?;
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(stream);
        Ok(Self {
            sampling: sampling.clone(),
            rng,
            step: 0,
            penalised: Vec::new(),
            candidates: Candidates::default(),
        })
    }

    /// Continues at this step, as if so many tokens had been chosen.
    pub fn at_step(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    /// The step of the next token.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Chooses the next token, and goes to the next step.
    ///
    /// - `history`: all tokens before, for the repetition penalty: those of the prompt, cached ones
    ///   included, and those generated
    ///
    /// # Shapes
    /// - logits: `[vocab]`
    ///
    /// # Errors
    /// If a logit is NaN or infinite, all logits are `-inf`, or a token of the history has no
    /// logit, which is only checked if there is a repetition penalty. The step stays the same.
    pub fn next(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplingError> {
        let scores = scores(&self.sampling, logits, history, &mut self.penalised)?;
        let best = highest(scores)?;
        let token = if self.sampling.is_greedy() {
            best as u32
        } else {
            self.candidates.filter(&self.sampling, scores, best);
            self.rng
                .set_word_pos(u128::from(self.step) * WORDS_PER_STEP);
            let uniform: f64 = self.rng.random();
            draw(&self.candidates.all, best as u32, uniform)
        };
        self.step += 1;
        Ok(token)
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    /// Its probability relative to that of the most likely token.
    weight: f64,
}

/// The logits after the repetition penalty.
///
/// - penalised: holds them if there is one
fn scores<'s>(
    sampling: &Sampling,
    logits: &'s [f32],
    history: &[u32],
    penalised: &'s mut Vec<f32>,
) -> Result<&'s [f32], SamplingError> {
    if sampling.repetition_penalty == 1.0 {
        return Ok(logits);
    }
    penalised.clear();
    penalised.extend_from_slice(logits);
    let penalty = sampling.repetition_penalty as f32;
    for token in history {
        let index = *token as usize;
        // Of the original logits, so that repeated tokens are penalised once.
        let (Some(logit), Some(score)) = (logits.get(index), penalised.get_mut(index)) else {
            return Err(SamplingError::UnknownToken {
                found: *token,
                vocab: logits.len(),
            });
        };
        *score = match *logit < 0.0 {
            true => logit * penalty,
            false => logit / penalty,
        };
    }
    Ok(penalised)
}

/// The tokens that may be chosen in a step, kept for their memory.
#[derive(Clone, Debug, Default)]
struct Candidates {
    /// By increasing token.
    all: Vec<Candidate>,
    /// Scores in the order of a selection.
    ranked_scores: Vec<f32>,
    /// Candidates in the order of a selection.
    ranked: Vec<Candidate>,
}

impl Candidates {
    /// Computes the candidates from the scores.
    fn filter(&mut self, sampling: &Sampling, scores: &[f32], best: usize) {
        let least = match sampling.top_k {
            Some(top_k) if top_k < scores.len() => self.nth_score(scores, top_k - 1),
            _ => f32::NEG_INFINITY,
        };
        let highest = f64::from(scores[best]);
        self.all.clear();
        for (token, score) in scores.iter().enumerate() {
            if *score < least {
                continue;
            }
            let weight = ((f64::from(*score) - highest) / sampling.temperature).exp();
            if weight > 0.0 {
                let token = token as u32;
                self.all.push(Candidate { token, weight });
            }
        }
        if let Some(top_p) = sampling.top_p.filter(|top_p| *top_p < 1.0) {
            self.keep_nucleus(top_p);
        }
        if let Some(min_p) = sampling.min_p {
            // The most likely token has weight 1.
            self.all.retain(|it| it.weight >= min_p);
        }
    }

    /// The score with this rank, counted from 0 for the highest.
    fn nth_score(&mut self, scores: &[f32], rank: usize) -> f32 {
        self.ranked_scores.clear();
        self.ranked_scores.extend_from_slice(scores);
        let descending = |a: &f32, b: &f32| b.total_cmp(a);
        *self
            .ranked_scores
            .select_nth_unstable_by(rank, descending)
            .1
    }

    /// Keeps each candidate if the more likely ones together have less than `top_p`.
    fn keep_nucleus(&mut self, top_p: f64) {
        let total = total(&self.all);
        // Even together, these have less than the part to be removed: most of a vocabulary.
        let negligible = (1.0 - top_p) * total / self.all.len() as f64;
        self.all.retain(|it| it.weight >= negligible);
        self.ranked.clone_from(&self.all);
        if let Some(last) = last_of_nucleus(&mut self.ranked, top_p * total) {
            self.all
                .retain(|it| by_likelihood(it, &last) != Ordering::Greater);
        }
    }
}

/// The more likely ones first, and of equally likely ones those with higher ids.
fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    let by_weight = b.weight.total_cmp(&a.weight);
    by_weight.then(b.token.cmp(&a.token))
}

/// The least likely candidate such that the more likely ones together weigh less than `mass`.
///
/// Bisects, so that no part is sorted: each step partitions only the half with the boundary.
fn last_of_nucleus(candidates: &mut [Candidate], mass: f64) -> Option<Candidate> {
    // All before `start` and the one that belongs at `start` are kept, none from `end` on.
    let (mut start, mut end) = (0, candidates.len());
    let mut before = 0.0;
    while end - start > 1 {
        let middle = start + (end - start) / 2;
        candidates[start..end].select_nth_unstable_by(middle - start, by_likelihood);
        let upper = total(&candidates[start..middle]);
        if before + upper < mass {
            before += upper;
            start = middle;
        } else {
            end = middle;
        }
    }
    candidates.get(start).copied()
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|it| it.weight).sum()
}

/// The token with the highest score, and of equal ones that with the lower id.
fn highest(scores: &[f32]) -> Result<usize, SamplingError> {
    let (mut best, mut highest) = (None, f32::NEG_INFINITY);
    for (token, score) in scores.iter().enumerate() {
        if score.is_nan() || *score == f32::INFINITY {
            let found = *score;
            return Err(SamplingError::NotFinite { token, found });
        }
        if *score > highest {
            (best, highest) = (Some(token), *score);
        }
    }
    best.ok_or(SamplingError::NoToken)
}

/// The candidate at this part of the cumulative distribution, `uniform` being in `[0, 1)`.
fn draw(candidates: &[Candidate], best: u32, uniform: f64) -> u32 {
    let target = uniform * total(candidates);
    let (mut token, mut below) = (best, 0.0);
    for candidate in candidates {
        token = candidate.token;
        below += candidate.weight;
        if below > target {
            break;
        }
    }
    token
}
