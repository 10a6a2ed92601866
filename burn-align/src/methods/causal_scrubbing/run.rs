//! Running scrubbed models, within a row budget.

use std::ops::Range;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::kl_divergences;
use serde::Serialize;

use super::streams::{Inputs, Streams};
use super::tree::Draws;
use super::{NodeAblation, ScrubAblations, ScrubError, ScrubTree, Scrubbed};
use crate::engine::{Explanation, LogitPositions, Plan, ReadId, RunOptions, read_numbers};
use crate::paths::{Stream, Worlds};

/// Runs a scrubbed model: each row's logits are computed on the inputs drawn for it, node by node.
///
/// `loss` gets the logits after the last token and the index of the example whose label they are
/// compared with.
///
/// The budget decides how many chunks the rows are run in. Each chunk is one plan, in which runs
/// that several nodes need are computed once.
///
/// # Shapes
/// - loss: `[row, vocab]`, `[row]` → `[row]`
///
/// # Errors
/// If the model cannot read the prompts, or a single example exceeds the row budget. Nothing is
/// computed then.
pub fn scrub<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    tree: &ScrubTree,
    loss: impl Fn(Tensor<B, 2>, &[usize]) -> Tensor<B, 1>,
) -> Result<Scrubbed, ScrubError> {
    let run = Run::new(model, tree, vec![tree.draws.clone()]);
    let mut scrubbed = run.run(loss)?;
    Ok(scrubbed.swap_remove(0))
}

/// Like [`scrub`], and once more for each of these sets of nodes with their features replaced by
/// nothing: it shows how much of the recovered loss each set carries. The sets are given by names
/// in the hypothesis; [`ScrubTree::each_node`] gives all nodes one by one.
///
/// Other nodes draw as before, so differences are due to the features alone.
///
/// # Shapes
/// - loss: `[row, vocab]`, `[row]` → `[row]`
///
/// # Errors
/// As [`scrub`], or if no node has one of the names.
pub fn scrub_ablations<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    tree: &ScrubTree,
    sets: &[Vec<String>],
    loss: impl Fn(Tensor<B, 2>, &[usize]) -> Tensor<B, 1>,
) -> Result<ScrubAblations, ScrubError> {
    let mut draws = vec![tree.draws.clone()];
    for set in sets {
        let nodes = tree.numbers(set)?;
        draws.push(tree.draw(model.dims(), &nodes));
    }
    let mut scrubbed = Run::new(model, tree, draws).run(loss)?.into_iter();
    let whole = scrubbed.next().expect("the hypothesis comes first");
    let nodes = sets.iter().zip(scrubbed);
    let nodes = nodes.map(|(set, without)| NodeAblation::new(set.clone(), &whole, without));
    Ok(ScrubAblations {
        nodes: nodes.collect(),
        whole,
    })
}

/// How a tree will be run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScrubExplanation {
    /// Number of scrubbed rows: examples times samples.
    pub rows: usize,
    /// Number of chunks.
    pub chunks: usize,
    /// Most rows that go through a stage together.
    pub max_rows: usize,
    /// Number of rows that go through a block, summed over blocks and chunks.
    pub row_layers: usize,
}

impl ScrubTree {
    /// Explains how [`scrub`] will run.
    ///
    /// # Errors
    /// As [`scrub`].
    pub fn explain<B: Backend, M: AlignableTransformer<B>>(
        &self,
        model: &M,
    ) -> Result<ScrubExplanation, ScrubError> {
        let run = Run::new(model, self, vec![self.draws.clone()]);
        let mut explanation = ScrubExplanation {
            rows: self.rows(),
            chunks: 0,
            max_rows: 0,
            row_layers: 0,
        };
        for chunk in run.chunks()? {
            let explained = run.plan(&chunk)?.0.explain(model)?;
            explanation.chunks += 1;
            explanation.max_rows = explanation.max_rows.max(max_rows(&explained));
            explanation.row_layers += explained.row_layers;
        }
        Ok(explanation)
    }
}

/// Most rows that go through a stage together.
fn max_rows(explanation: &Explanation) -> usize {
    let stages = explanation.passes.iter().flat_map(|pass| &pass.stages);
    stages.map(|stage| stage.rows).max().unwrap_or(0)
}

/// Scrubbing with several draws of one tree.
struct Run<'a, B: Backend, M> {
    model: &'a M,
    tree: &'a ScrubTree,
    examples: Vec<usize>,
    draws: Vec<Draws>,
    backend: std::marker::PhantomData<B>,
}

/// Rows and draws that are run in one plan.
#[derive(Clone, Debug)]
struct Chunk {
    draws: Range<usize>,
    rows: Range<usize>,
}

impl<'a, B: Backend, M: AlignableTransformer<B>> Run<'a, B, M> {
    fn new(model: &'a M, tree: &'a ScrubTree, draws: Vec<Draws>) -> Self {
        Self {
            model,
            tree,
            examples: tree.examples(),
            draws,
            backend: std::marker::PhantomData,
        }
    }

    /// A plan that reads the model's logits, those for random inputs, and those of each scrubbed
    /// model.
    fn plan(&self, chunk: &Chunk) -> Result<(Plan<B>, Vec<ReadId>), ScrubError> {
        let dims = self.model.dims();
        let mut inputs = Inputs::default();
        let random = &self.draws[0].random[0][chunk.rows.clone()];
        let anchors = [&self.examples[chunk.rows.clone()], random];
        let mut streams: Vec<Stream> = Vec::new();
        streams.extend(anchors.map(|examples| Stream::clean(inputs.number(examples))));
        for draws in &self.draws[chunk.draws.clone()] {
            let (rows, examples) = (chunk.rows.clone(), &self.examples[..]);
            let streams_of = Streams {
                tree: self.tree,
                draws,
                dims,
                rows,
                examples,
            };
            streams.push(streams_of.output(&mut inputs));
        }
        let tokens = inputs.tokens(&self.tree.tokens);
        let mut plan = Plan::new();
        let mut worlds = Worlds::new(&mut plan, dims, &tokens.iter().collect::<Vec<_>>())?;
        let mut reads = Vec::new();
        for stream in &streams {
            let world = worlds.logits(&mut plan, stream)?;
            reads.push(plan.read_logits(world, LogitPositions::Last));
        }
        Ok((plan, reads))
    }

    /// Cuts rows (and draws, if a single row is too large) into chunks that fit the budget.
    fn chunks(&self) -> Result<Vec<Chunk>, ScrubError> {
        let mut chunks = Vec::new();
        let all = 0..self.draws.len();
        let mut open = vec![all];
        while let Some(draws) = open.pop() {
            match self.chunks_of(draws.clone())? {
                Ok(found) => chunks.extend(found),
                Err(_) if draws.len() > 1 => {
                    let middle = draws.start.midpoint(draws.end);
                    open.extend([middle..draws.end, draws.start..middle]);
                }
                Err(needed) => {
                    return Err(ScrubError::RowBudget {
                        needed,
                        max_rows: self.tree.options.max_rows,
                    });
                }
            }
        }
        Ok(chunks)
    }

    /// Cuts rows into chunks that fit the budget. The inner error is the number of rows for a
    /// single one, if that is too large.
    fn chunks_of(&self, draws: Range<usize>) -> Result<Result<Vec<Chunk>, usize>, ScrubError> {
        let (all, budget) = (self.tree.rows(), self.tree.options.max_rows);
        let needed = |rows: Range<usize>| -> Result<usize, ScrubError> {
            let draws = draws.clone();
            let (plan, _reads) = self.plan(&Chunk { draws, rows })?;
            Ok(max_rows(&plan.explain(self.model)?))
        };
        // Nodes may draw the same example by chance, so chunks differ a little.
        const PROBE: usize = 8;
        let probe = all.min(PROBE);
        let mut size = (budget * probe / needed(0..probe)?.max(1)).clamp(1, all);
        'sizes: loop {
            let count = all.div_ceil(size);
            let chunks: Vec<Chunk> = (0..count)
                .map(|chunk| Chunk {
                    draws: draws.clone(),
                    rows: chunk * all / count..(chunk + 1) * all / count,
                })
                .collect();
            for chunk in &chunks {
                let needed = needed(chunk.rows.clone())?;
                if needed <= budget {
                    continue;
                }
                if chunk.rows.len() == 1 {
                    return Ok(Err(needed));
                }
                size = (chunk.rows.len() - 1)
                    .min(chunk.rows.len() * budget / needed)
                    .max(1);
                continue 'sizes;
            }
            return Ok(Ok(chunks));
        }
    }

    fn run(
        &self,
        loss: impl Fn(Tensor<B, 2>, &[usize]) -> Tensor<B, 1>,
    ) -> Result<Vec<Scrubbed>, ScrubError> {
        // Losses and divergences by row: of the model, on random inputs, and of each draw.
        let mut rows = vec![Rows::default(); 2 + self.draws.len()];
        let options = RunOptions::default().with_max_rows(self.tree.options.max_rows);
        for chunk in self.chunks()? {
            let (plan, reads) = self.plan(&chunk)?;
            let results = plan.run_with(self.model, &Worlds::interventions(), &options)?;
            let examples = &self.examples[chunk.rows.clone()];
            let logits = |read: &ReadId| results.get(*read).squeeze_dim::<2>(1).cast(DType::F32);
            let wanted = logits(&reads[0]);
            let values = reads.iter().flat_map(|read| {
                let logits = logits(read);
                let divergences = kl_divergences(wanted.clone(), logits.clone());
                [loss(logits, examples).cast(DType::F32), divergences]
            });
            let values = read_numbers(Tensor::cat(values.collect(), 0))?;
            plan.check_finite(&values, self.model, &Worlds::interventions(), &options)?;
            let mut values = values.chunks(examples.len());
            // Several chunks of draws share the model and the random inputs.
            let anchors = [0, 1].into_iter();
            let drawn = chunk.draws.map(|draws| 2 + draws);
            for own in anchors.chain(drawn) {
                let is_known = rows[own].losses.len() >= chunk.rows.end;
                for (rows, new) in rows[own].both().into_iter().zip(values.by_ref().take(2)) {
                    if !is_known {
                        rows.extend_from_slice(new);
                    }
                }
            }
        }
        let samples = self.tree.options.samples;
        let [model, random] = [0, 1].map(|anchor| &rows[anchor]);
        let scrubbed = rows[2..].iter().map(|scrubbed| {
            let sides = [model, random, scrubbed];
            // Rows of one example are adjacent.
            let of_example = |example: usize| {
                let rows = example * samples..(example + 1) * samples;
                sides.map(|side| mean(side.losses[rows.clone()].iter()))
            };
            let of_sample = |sample: usize| {
                sides.map(|side| mean(side.losses.iter().skip(sample).step_by(samples)))
            };
            let [of_model, of_random, of_scrubbed] = sides.map(|side| mean(side.losses.iter()));
            Scrubbed {
                model: of_model,
                random: of_random,
                scrubbed: of_scrubbed,
                kl: mean(scrubbed.divergences.iter()),
                random_kl: mean(random.divergences.iter()),
                losses: (0..self.tree.tokens.batch()).map(of_example).collect(),
                sample_losses: (0..samples).map(of_sample).collect(),
            }
        });
        Ok(scrubbed.collect())
    }
}

/// Numbers for each row.
#[derive(Clone, Debug, Default)]
struct Rows {
    losses: Vec<f64>,
    divergences: Vec<f64>,
}

impl Rows {
    fn both(&mut self) -> [&mut Vec<f64>; 2] {
        [&mut self.losses, &mut self.divergences]
    }
}

fn mean<'a>(values: impl ExactSizeIterator<Item = &'a f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
