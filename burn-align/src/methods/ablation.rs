//! Ablations: an activation is replaced by one that carries no information about this input.
//!
//! An ablation asks whether a part is *needed* in this context, not what it computes. A small
//! effect does not show that the part is unused: later layers may compensate for it (self-repair;
//! McGrath et al. 2023, "The Hydra Effect", arXiv 2307.15771).

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, TokenBatch};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::sweep::worlds;
use super::{Grid, SweepGrid};
use crate::engine::{Edit, Indices, Operand, Plan, PlanError, ReadId, RunOptions, Units, WorldId};
use crate::interventions::{BuiltinIntervention, FillIntervention, VanillaIntervention};

/// What replaces an activation.
///
/// Zeros, and to a lesser extent means, are activations that the model has never seen. Its reaction
/// may then say more about them than about the ablated part. A resampled activation is a natural
/// one, but another draw gives another result, so average over seeds.
#[derive(Clone, Copy, Debug)]
pub enum Ablation<'a> {
    /// Zeros.
    Zero,
    /// The mean over a dataset, given in batches (Wang et al. 2022, arXiv 2211.00593): see
    /// [`mean_activations`]. It is taken position by position, so the prompts of the dataset should
    /// have the same structure as the base.
    Mean(&'a [TokenBatch]),
    /// The activation of another example of the base, chosen by [`resample_donors`] (Chan et al.
    /// 2022, "Causal Scrubbing"). If units are given for each example, the other example's units
    /// are used.
    Resample {
        /// Seed of the draw.
        seed: u64,
    },
    /// The activation of an example of another dataset, taken at the units that are ablated. The
    /// dataset is used in random order, all of it before any example a second time; if it has as
    /// many examples as the base, this is a random permutation, as in ACDC (Conmy et al. 2023,
    /// arXiv 2304.14997). To choose the examples yourself, for instance the counterfactual of each
    /// prompt, use [`sweep`](super::sweep) with them as the source.
    ResampleFrom {
        /// The dataset.
        donors: &'a TokenBatch,
        /// Seed of the draw.
        seed: u64,
    },
}

/// Why an activation could not be ablated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AblationError {
    /// A mean over nothing.
    #[error("the dataset is empty: expected at least one batch to take a mean over")]
    EmptyDataset,
    /// A batch of the dataset whose activations cannot be read.
    #[error("batch {batch} of the dataset: {cause}")]
    Dataset {
        /// Its index.
        batch: usize,
        /// What is wrong.
        cause: PlanError,
    },
    /// Prompts of different lengths in a mean over all positions.
    #[error(
        "{site}: example {example} of batch {batch} of the dataset has {found} tokens, but the \
         mean over all positions, or of attention to them, needs {expected}; name the positions, \
         or use prompts of equal length"
    )]
    Lengths {
        /// Where the mean is taken.
        site: Site,
        /// Index of the batch.
        batch: usize,
        /// Index of the example in its batch.
        example: usize,
        /// Number of tokens required.
        expected: usize,
        /// Number of tokens found.
        found: usize,
    },
    /// An example without another one to take its activation from.
    #[error(
        "resampling within a batch: expected at least 2 examples, found {found}; add examples, or \
         resample from another dataset"
    )]
    NoDonor {
        /// Number of examples.
        found: usize,
    },
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Ablates the activation in every cell of a grid and measures the prediction: `metric` of the
/// logits after the last token of each example, averaged over examples.
///
/// All cells are one plan, so the base and everything the cells share are computed once. Means take
/// one more pass for each batch of their dataset.
///
/// # Shapes
/// - metric: `[batch, vocab]` → `[batch]`
///
/// # Errors
/// If a cell, the base or the dataset does not fit the model, or there is nothing to take
/// activations from.
pub fn ablate<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    base: &TokenBatch,
    grid: &SweepGrid,
    ablation: &Ablation<'_>,
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<Grid, AblationError> {
    let mut plan = Plan::new();
    let input = plan.tokens(base);
    let operands: Vec<Operand> = match *ablation {
        Ablation::Zero => vec![Operand::None; grid.cells.len()],
        Ablation::Mean(dataset) => {
            // Errors in the base must surface before the means are computed.
            let (reading, _reads) = reading::<B>(base, &grid.cells);
            reading.explain(model)?;
            let means = means(model, dataset, &grid.cells, base.pos(), options)?;
            let constants = means.into_iter().map(|mean| plan.constant(mean));
            constants.map(Operand::Constant).collect()
        }
        Ablation::Resample { seed } => {
            let donors = resample_donors(base.batch(), seed)?;
            let source = source(&mut plan, base, &donors);
            let units = |units: &Units| Units {
                heads: of_donors(&units.heads, &donors),
                positions: of_donors(&units.positions, &donors),
            };
            let places = grid.cells.iter();
            let operands = places.map(|(site, place)| taken(source, *site, units(place)));
            operands.collect()
        }
        Ablation::ResampleFrom { donors, seed } => {
            let drawn = in_random_order(base.batch(), donors.batch(), seed);
            let source = source(&mut plan, donors, &drawn);
            let places = grid.cells.iter();
            let operands = places.map(|(site, units)| taken(source, *site, units.clone()));
            operands.collect()
        }
    };
    let intervention = match ablation {
        Ablation::Zero => BuiltinIntervention::from(FillIntervention::ZERO),
        _ => BuiltinIntervention::from(VanillaIntervention),
    };
    let edits = grid.cells.iter().zip(operands);
    let edits = edits.map(|((site, units), operand)| Edit::new(*site, units.clone(), 0, operand));
    let worlds = worlds(&mut plan, input, edits);
    let models = std::slice::from_ref(model);
    Ok(grid.measure(&plan, &worlds, models, &intervention, metric, options)?)
}

/// The mean of an activation over all examples of a dataset, in f32. Use it as a
/// [constant](Plan::constant) that [`VanillaIntervention`] swaps in.
///
/// The dataset is run batch by batch, so only one batch is in memory at a time. Prompts may have
/// different lengths if `units` names positions. No gradient flows through the mean.
///
/// # Shapes
/// - output: `[1, unit, d_site]`
///
/// # Errors
/// If there is no batch, if the site or the units do not fit the model or a batch, or if lengths
/// differ in a mean over all positions.
pub fn mean_activations<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    inputs: &[TokenBatch],
    site: Site,
    units: &Units,
    options: &RunOptions,
) -> Result<Tensor<B, 3>, AblationError> {
    let pos = inputs.first().map_or(0, TokenBatch::pos);
    let mut means = means(model, inputs, &[(site, units.clone())], pos, options)?;
    Ok(means.swap_remove(0))
}

/// Chooses, for each example of a batch, the example whose activation it gets: never itself, and
/// every example exactly once, so that the batch as a whole is ablated with its own distribution.
///
/// The choices form one cycle through the whole batch; all such cycles are equally likely, and
/// every other example is equally likely as the donor of an example. (Causal scrubbing draws each
/// donor by itself, with replacement: that is [`scrub`](super::scrub).)
///
/// Pass them to [`TokenBatch::select`] to get the source.
///
/// # Errors
/// If the batch has fewer than 2 examples.
#[doc(alias = "derangement")]
pub fn resample_donors(batch: usize, seed: u64) -> Result<Vec<usize>, AblationError> {
    if batch < 2 {
        return Err(AblationError::NoDonor { found: batch });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut donors: Vec<usize> = (0..batch).collect();
    // Sattolo's algorithm (1986): a shuffle in which nothing stays where it is.
    for example in (1..batch).rev() {
        donors.swap(example, rng.random_range(0..example));
    }
    Ok(donors)
}

/// This many of the examples of a dataset, in random order, all of them before any a second time.
fn in_random_order(count: usize, examples: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = Vec::with_capacity(count + examples);
    while drawn.len() < count {
        let mut order: Vec<usize> = (0..examples).collect();
        order.shuffle(&mut rng);
        drawn.extend(order);
    }
    drawn.truncate(count);
    drawn
}

/// A world without edits on these examples of a batch.
fn source<B: Backend>(plan: &mut Plan<B>, batch: &TokenBatch, examples: &[usize]) -> WorldId {
    let examples = batch.select(examples).expect("drawn from the batch");
    let input = plan.tokens(&examples);
    plan.world(input, [])
}

fn taken(world: WorldId, site: Site, units: Units) -> Operand {
    Operand::Activation { world, site, units }
}

/// Indices that are given for each example, permuted to the donors'.
fn of_donors(indices: &Indices, donors: &[usize]) -> Indices {
    match indices {
        // A wrong number of examples is rejected with the plan.
        Indices::Each(each) if each.len() == donors.len() => {
            Indices::Each(donors.iter().map(|donor| each[*donor].clone()).collect())
        }
        other => other.clone(),
    }
}

/// A plan that reads a batch's activation for every cell.
fn reading<B: Backend>(batch: &TokenBatch, places: &[(Site, Units)]) -> (Plan<B>, Vec<ReadId>) {
    let mut plan = Plan::new();
    let input = plan.tokens(batch);
    let world = plan.world(input, []);
    let reads = places.iter();
    let reads = reads.map(|(site, units)| plan.read(world, *site, units.clone()));
    let reads = reads.collect();
    (plan, reads)
}

/// The mean for every cell. "All positions" are `pos` positions.
fn means<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    dataset: &[TokenBatch],
    places: &[(Site, Units)],
    pos: usize,
    options: &RunOptions,
) -> Result<Vec<Tensor<B, 3>>, AblationError> {
    if dataset.is_empty() {
        return Err(AblationError::EmptyDataset);
    }
    // Check all batches before running the first one.
    let mut plans = Vec::new();
    for (batch, input) in dataset.iter().enumerate() {
        let (plan, reads) = reading::<B>(input, places);
        plan.explain(model)
            .map_err(|cause| AblationError::Dataset { batch, cause })?;
        check_lengths(input, batch, places, pos)?;
        plans.push((plan, reads));
    }
    let mut sums: Vec<Tensor<B, 3>> = Vec::new();
    for (batch, (plan, reads)) in plans.iter().enumerate() {
        let results = plan
            .run_with(model, &[VanillaIntervention; 0], options)
            .map_err(|cause| AblationError::Dataset { batch, cause })?;
        for (place, read) in reads.iter().enumerate() {
            let values = results.get(*read).detach().cast(DType::F32);
            let sum = values.sum_dim(0); // [1, unit, d_site]
            match sums.get_mut(place) {
                Some(before) => *before = before.clone() + sum,
                None => sums.push(sum),
            }
        }
    }
    let count: usize = dataset.iter().map(TokenBatch::batch).sum();
    Ok(sums.into_iter().map(|sum| sum / count as f64).collect())
}

/// Checks that no padding enters a mean, and that axes over all positions, including the keys of
/// attention patterns, have the same length in every batch.
fn check_lengths(
    input: &TokenBatch,
    batch: usize,
    places: &[(Site, Units)],
    expected: usize,
) -> Result<(), AblationError> {
    for (site, units) in places {
        let wrong = if units.positions == Indices::All {
            let mut lengths = input.lengths().into_iter().enumerate();
            lengths.find(|(_, length)| *length != expected)
        } else if site.is_attention_pattern() && input.pos() != expected {
            // Prompts shorter than the longest one have no attention weights after their end.
            let lengths = input.lengths().into_iter().enumerate();
            lengths.max_by_key(|(_, length)| *length)
        } else {
            None
        };
        if let Some((example, found)) = wrong {
            return Err(AblationError::Lengths {
                site: *site,
                batch,
                example,
                expected,
                found,
            });
        }
    }
    Ok(())
}
