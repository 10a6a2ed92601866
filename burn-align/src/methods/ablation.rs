//! Ablations: an activation gives way to one that does not know the input.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, TokenBatch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::sweep::worlds;
use super::{Grid, SweepGrid};
use crate::engine::{Edit, Indices, Operand, Plan, PlanError, ReadId, RunOptions, Units, WorldId};
use crate::interventions::{BuiltinIntervention, FillIntervention, VanillaIntervention};

/// What takes the place of an activation.
///
/// Zeros, and to a lesser extent means, are activations that the model has never seen; what it
/// does then may say more about them than about the ablated part. A resampled activation is a
/// natural one, but another draw gives another result: average over seeds.
#[derive(Clone, Copy, Debug)]
pub enum Ablation<'a> {
    /// Zeros.
    Zero,
    /// The mean over a dataset, given in batches (Wang et al. 2022, arXiv 2211.00593): see
    /// [`mean_activations`]. It is taken position by position, so the dataset's prompts should
    /// have the base's structure.
    Mean(&'a [TokenBatch]),
    /// The activation of another example of the base, by [`resample_donors`] (Chan et al. 2022,
    /// "Causal Scrubbing"). Where units are named for each example, the donor's own are taken.
    Resample {
        /// Seed of the draw.
        seed: u64,
    },
    /// The activation of an example of another dataset, drawn for each example of the base; one
    /// may be drawn several times. The same units are taken as are ablated. For donors of your
    /// own choice use [`sweep`](super::sweep) with them as the source.
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
    /// A batch of the dataset that the activations cannot be read of.
    #[error("batch {batch} of the dataset")]
    Dataset {
        /// Its index.
        batch: usize,
        /// What is wrong.
        source: PlanError,
    },
    /// Prompts of different lengths where every position counts.
    #[error(
        "{site}: example {example} of batch {batch} of the dataset has {found} tokens, but the \
         mean over all positions, or of attention to them, needs {expected}; name the positions, \
         or give prompts of one length"
    )]
    Lengths {
        /// Where the mean is taken.
        site: Site,
        /// Index of the batch.
        batch: usize,
        /// Index of the example in its batch.
        example: usize,
        /// Number of tokens that are needed.
        expected: usize,
        /// Number of tokens that there are.
        found: usize,
    },
    /// An example without another one to take its activation from.
    #[error(
        "resampling within a batch: expected at least 2 examples, found {found}; give more, or \
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

/// Ablates every place of a grid and measures what the base predicts then: `metric` of the logits
/// behind the last token of each example, averaged over examples.
///
/// All places are one plan, in which the base and what it shares are computed once. Means take one
/// more pass for each batch of their dataset.
///
/// # Shapes
/// - metric: `[batch, vocab]` → `[batch]`
///
/// # Errors
/// If a place, the base or the dataset does not fit the model, or there is nothing to take
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
            // What is wrong with the base is to be found before the means are computed.
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
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let drawn = (0..base.batch()).map(|_| rng.random_range(0..donors.batch()));
            let source = source(&mut plan, donors, &drawn.collect::<Vec<_>>());
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
    Ok(grid.measure(&plan, &worlds, model, &intervention, metric, options)?)
}

/// The mean of an activation over all examples of a dataset, in f32, to be a
/// [constant](Plan::constant) that [`VanillaIntervention`] swaps in.
///
/// The dataset comes in batches and is run batch by batch, so that only one is in memory at a
/// time. Prompts may have different lengths as long as `units` names positions. No gradient flows
/// through the mean.
///
/// # Shapes
/// - output: `[1, unit, d_site]`
///
/// # Errors
/// If there is no batch, the site or the units do not fit the model or a batch, or lengths differ
/// where every position counts.
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

/// Whose activation each example gets when a batch is resampled: for every example another one,
/// and every example once. All others are equally probable.
///
/// The source is then [`TokenBatch::select`] of these.
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

/// A world without edits on these examples of a batch.
fn source<B: Backend>(plan: &mut Plan<B>, batch: &TokenBatch, examples: &[usize]) -> WorldId {
    let examples = batch.select(examples).expect("drawn from the batch");
    let input = plan.tokens(&examples);
    plan.world(input, [])
}

fn taken(world: WorldId, site: Site, units: Units) -> Operand {
    Operand::Activation { world, site, units }
}

/// What is named for each example, as the donors have it.
fn of_donors(indices: &Indices, donors: &[usize]) -> Indices {
    match indices {
        // Another number of examples is refused with the plan.
        Indices::Each(each) if each.len() == donors.len() => {
            Indices::Each(donors.iter().map(|donor| each[*donor].clone()).collect())
        }
        other => other.clone(),
    }
}

/// A plan that reads a batch's activation at every place.
fn reading<B: Backend>(batch: &TokenBatch, places: &[(Site, Units)]) -> (Plan<B>, Vec<ReadId>) {
    let mut plan = Plan::new();
    let input = plan.tokens(batch);
    let world = plan.world(input, []);
    let reads = places.iter();
    let reads = reads.map(|(site, units)| plan.read(world, *site, units.clone()));
    let reads = reads.collect();
    (plan, reads)
}

/// The mean at every place. All positions are `pos` positions.
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
    // All batches are checked before the first one is run.
    let mut plans = Vec::new();
    for (batch, input) in dataset.iter().enumerate() {
        let (plan, reads) = reading::<B>(input, places);
        plan.explain(model)
            .map_err(|source| AblationError::Dataset { batch, source })?;
        check_lengths(input, batch, places, pos)?;
        plans.push((plan, reads));
    }
    let mut sums: Vec<Tensor<B, 3>> = Vec::new();
    for (batch, (plan, reads)) in plans.iter().enumerate() {
        let results = plan
            .run_with(model, &[VanillaIntervention; 0], options)
            .map_err(|source| AblationError::Dataset { batch, source })?;
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

/// Checks that no padding gets into a mean, and that positions which are not named, among them
/// the keys of attention patterns, are as many in every batch.
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
            // Shorter prompts beside the longest have no weight behind their end.
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
