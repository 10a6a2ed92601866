//! A model's activations at a site, as a shuffled stream of rows.
//!
//! The stream is a function of the seed and a position: examples are shuffled in each pass over the
//! text, and divided into parts that fit the buffer; in each part, tokens are shuffled. A run that
//! is resumed computes the part that it was in again, and goes on at the same token.

use std::ops::Range;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, SiteWidth, TokenBatch};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{DictionaryTrainingConfig, DictionaryTrainingError};
use crate::dictionaries::indices;
use crate::engine::{Plan, PlanError, RunOptions, Units, read_numbers};
use crate::interventions::VanillaIntervention;

/// The activations of a batch at a site, without those of padding and of the first positions:
/// `[row, heads * width]` in f32, by example and then by position. The model is run up to the site.
///
/// # Errors
/// If the site or the batch does not fit the model, or the activations are not finite.
pub(crate) fn activation_rows<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    batch: &TokenBatch,
    site: Site,
    skipped: usize,
    options: &RunOptions,
) -> Result<Option<Tensor<B, 2>>, PlanError> {
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(batch);
    let world = plan.world(input, []);
    let read = plan.read(world, site, Units::ALL);
    let interventions = [VanillaIntervention; 0];
    let results = plan.run_with(model, &interventions, options)?;
    let x = results.get(read).detach().cast(DType::F32);
    let [examples, pos, width] = x.dims();
    let own = batch.lengths().into_iter().enumerate();
    let own = own.flat_map(|(example, length)| {
        let first = example * pos;
        first + skipped.min(length)..first + length
    });
    let own: Vec<usize> = own.collect();
    if own.is_empty() {
        return Ok(None);
    }
    let x = x.reshape([examples * pos, width]);
    let rows = match own.len() == examples * pos {
        true => x,
        false => {
            let own = indices(&own, &x.device());
            x.select(0, own)
        }
    };
    let sum = read_numbers(rows.clone().abs().sum())?;
    plan.check_finite(&sum, model, &interventions, options)?;
    Ok(Some(rows))
}

/// Whether the activation at a site is a vector, or one for each head. A site that the model does
/// not have counts as one: running a plan finds out.
pub(crate) fn is_vector<B: Backend, M: AlignableTransformer<B>>(model: &M, site: Site) -> bool {
    let dims = model.site(site);
    dims.is_none_or(|dims| dims.width != SiteWidth::KeyPositions)
}

/// The stream.
pub(super) struct ActivationStream<'a, B: Backend, M> {
    model: &'a M,
    site: Site,
    config: &'a DictionaryTrainingConfig,
    examples: Vec<&'a [u32]>,
    /// The parts of an epoch.
    parts: Option<(usize, Vec<Part>)>,
    /// The part that is in memory.
    loaded: Option<Loaded<B>>,
    /// Rows of an epoch.
    rows: usize,
}

/// Examples whose rows are shuffled together.
struct Part {
    examples: Vec<usize>,
    /// Where its rows are in the epoch.
    rows: Range<usize>,
}

struct Loaded<B: Backend> {
    epoch: usize,
    number: usize,
    /// `[row, width]`
    x: Tensor<B, 2>,
    /// The rows in their new order.
    order: Vec<usize>,
}

impl<'a, B: Backend, M: AlignableTransformer<B>> ActivationStream<'a, B, M> {
    /// # Errors
    /// If there are not enough rows for a batch, or the site has no vectors.
    pub(super) fn new(
        model: &'a M,
        batches: &'a [TokenBatch],
        site: Site,
        config: &'a DictionaryTrainingConfig,
    ) -> Result<Self, DictionaryTrainingError> {
        if !is_vector::<B, M>(model, site) {
            return Err(DictionaryTrainingError::NoVector { site });
        }
        let examples = batches.iter().flat_map(TokenBatch::ids);
        let examples: Vec<&[u32]> = examples.map(Vec::as_slice).collect();
        let mut stream = Self {
            model,
            site,
            config,
            examples,
            parts: None,
            loaded: None,
            rows: 0,
        };
        stream.rows = (0..stream.examples.len())
            .map(|example| stream.rows_of(example))
            .sum();
        match stream.rows >= config.batch_tokens {
            true => Ok(stream),
            false => Err(DictionaryTrainingError::TooFewTokens {
                expected: config.batch_tokens,
                found: stream.rows,
                skipped: config.skip_positions,
            }),
        }
    }

    /// Rows in a pass over the text.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The rows of the first part, in the order of its examples: to measure their mean and norm.
    pub(super) fn first_part(
        &mut self,
        loaded: impl FnMut(usize),
    ) -> Result<Tensor<B, 2>, DictionaryTrainingError> {
        Ok(self.load(0, 0, loaded)?.x.clone())
    }

    /// The rows from a position on, counted from the beginning of the first epoch.
    ///
    /// - loaded: gets the number of rows of each part that the model is run on
    pub(super) fn batch(
        &mut self,
        position: usize,
        count: usize,
        mut loaded: impl FnMut(usize),
    ) -> Result<Tensor<B, 2>, DictionaryTrainingError> {
        let (mut at, end) = (position, position + count);
        let mut pieces = Vec::new();
        while at < end {
            let (epoch, row) = (at / self.rows, at % self.rows);
            let parts = self.parts(epoch);
            let number = parts.partition_point(|part| part.rows.end <= row);
            let rows = parts[number].rows.clone();
            let part = self.load(epoch, number, &mut loaded)?;
            let last = (row + end - at).min(rows.end);
            let own = &part.order[row - rows.start..last - rows.start];
            pieces.push(part.x.clone().select(0, indices(own, &part.x.device())));
            at += last - row;
        }
        Ok(match pieces.len() {
            1 => pieces.remove(0),
            _ => Tensor::cat(pieces, 0),
        })
    }

    /// How many rows an example has.
    fn rows_of(&self, example: usize) -> usize {
        let length = self.examples[example].len();
        length.saturating_sub(self.config.skip_positions)
    }

    /// The parts of an epoch, which seed and epoch determine.
    fn parts(&mut self, epoch: usize) -> &[Part] {
        if self.parts.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut order: Vec<usize> = (0..self.examples.len())
                .filter(|example| self.rows_of(*example) > 0)
                .collect();
            order.shuffle(&mut self.random(epoch as u64));
            let mut parts: Vec<Part> = Vec::new();
            for example in order {
                let rows = self.rows_of(example);
                let most = self.config.buffer_tokens;
                let fits = |part: &&mut Part| part.rows.len() + rows <= most;
                match parts.last_mut().filter(fits) {
                    Some(part) => {
                        part.examples.push(example);
                        part.rows.end += rows;
                    }
                    None => {
                        let start = parts.last().map_or(0, |part| part.rows.end);
                        parts.push(Part {
                            examples: vec![example],
                            rows: start..start + rows,
                        });
                    }
                }
            }
            self.parts = Some((epoch, parts));
        }
        self.parts.as_ref().map_or(&[], |(_, parts)| &parts[..])
    }

    /// Runs the model on a part, unless that is in memory.
    fn load(
        &mut self,
        epoch: usize,
        number: usize,
        mut loaded: impl FnMut(usize),
    ) -> Result<&Loaded<B>, DictionaryTrainingError> {
        let is_there = |it: &Loaded<B>| it.epoch == epoch && it.number == number;
        let found = match self.loaded.take().filter(is_there) {
            Some(found) => found,
            None => {
                let examples = self.parts(epoch)[number].examples.clone();
                let x = self.run(&examples)?;
                let [rows, _width] = x.dims();
                let mut order: Vec<usize> = (0..rows).collect();
                let part = PARTS | ((epoch as u64) << 32) | number as u64;
                order.shuffle(&mut self.random(part));
                loaded(rows);
                Loaded {
                    epoch,
                    number,
                    x,
                    order,
                }
            }
        };
        Ok(&*self.loaded.insert(found))
    }

    fn run(&self, examples: &[usize]) -> Result<Tensor<B, 2>, DictionaryTrainingError> {
        let mut pieces = Vec::new();
        for some in examples.chunks(self.config.examples_at_once) {
            let ids = some.iter().map(|example| self.examples[*example].to_vec());
            let batch = TokenBatch::new(ids.collect())?;
            let skipped = self.config.skip_positions;
            let run = &self.config.run;
            pieces.extend(activation_rows(
                self.model, &batch, self.site, skipped, run,
            )?);
        }
        Ok(Tensor::cat(pieces, 0))
    }

    fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(stream);
        rng
    }
}

/// Marks the random numbers of parts: those of examples have the number of the epoch.
const PARTS: u64 = 1 << 63;
