use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;
use serde::{Deserialize, Serialize};

use super::{InterchangeData, TrainingError};
use crate::engine::{LogitPositions, Plan, ReadId, RunOptions};
use crate::front::AlignableModel;
use crate::interventions::{
    BuiltinIntervention, Intervention, Orthonormal, OrthonormalMap, VanillaIntervention,
};

/// Interchange intervention accuracy: the share of examples whose predictions are as they should
/// be, at all of their positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The share.
    pub accuracy: f64,
    /// Its confidence interval at 95 % (Wilson 1927).
    pub interval: [f64; 2],
    /// Number of examples.
    pub examples: usize,
}

impl Evaluation {
    fn new(right: usize, examples: usize) -> Self {
        const Z: f64 = 1.959_963_984_540_054;
        let n = examples as f64;
        let share = right as f64 / n;
        let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let spread = share * (1.0 - share) / n + Z * Z / (4.0 * n * n);
        let half = Z * spread.sqrt() / (1.0 + Z * Z / n);
        Self {
            accuracy: share,
            interval: [(centre - half).max(0.0), (centre + half).min(1.0)],
            examples,
        }
    }
}

/// The accuracy of trained interventions, and of what they have to beat.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Controlled {
    /// The interventions themselves.
    pub trained: Evaluation,
    /// Random rotations of the same sizes, with masks and boundaries as they are.
    pub random_rotation: Evaluation,
    /// Whole vectors swapped.
    pub whole_vector: Evaluation,
    /// Nothing swapped.
    pub no_swap: Evaluation,
}

/// Judges interventions by all examples of some datasets, `batch_size` at a time.
///
/// # Errors
/// If the data do not fit the model; nothing is computed then.
pub fn evaluate<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    model: &AlignableModel<B, M, I>,
    data: &[InterchangeData<B>],
    batch_size: usize,
) -> Result<Evaluation, TrainingError> {
    count(data, batch_size, model, |dataset| dataset.plan(model))
}

/// Judges interventions, and beside them the controls.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with_controls<B: Backend, M: AlignableTransformer<B> + Clone>(
    model: &AlignableModel<B, M>,
    data: &[InterchangeData<B>],
    batch_size: usize,
    seed: u64,
) -> Result<Controlled, TrainingError> {
    let device = model.model().device();
    let with = |change: &dyn Fn(u64, &mut BuiltinIntervention<B>)| {
        let mut interventions = model.interventions().to_vec();
        for (index, intervention) in interventions.iter_mut().enumerate() {
            change(seed.wrapping_add(index as u64), intervention);
        }
        let config = model.config().clone();
        AlignableModel::with_interventions(config, model.model().clone(), interventions)
    };
    let random = with(&|seed, intervention| {
        for rotation in intervention.orthonormal() {
            let shape = rotation.dims();
            *rotation = Orthonormal::random(shape, OrthonormalMap::Retraction, seed, &device)
                .expect("a shape that is there already");
        }
    })?;
    let whole = with(&|_seed, intervention| {
        if Intervention::<B>::needs_source(intervention) {
            *intervention = VanillaIntervention.into();
        }
    })?;
    let clean = |dataset: &InterchangeData<B>| {
        dataset.check(model.model().dims().vocab)?;
        let mut plan = Plan::new();
        let input = plan.input(dataset.inputs.base.clone());
        let world = plan.world(input, []);
        let read = plan.read_logits(world, dataset.positions.clone());
        Ok((plan, read))
    };
    // Subspaces name rotated features; the whole vector has none.
    let whole_data: Vec<InterchangeData<B>> = data
        .iter()
        .map(|dataset| {
            let mut dataset = dataset.clone();
            dataset.inputs.subspaces = crate::front::Subspaces::Whole;
            dataset
        })
        .collect();
    Ok(Controlled {
        trained: evaluate(model, data, batch_size)?,
        random_rotation: evaluate(&random, data, batch_size)?,
        whole_vector: evaluate(&whole, &whole_data, batch_size)?,
        no_swap: count(data, batch_size, model, clean)?,
    })
}

/// Counts the examples that a plan gets right.
fn count<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    data: &[InterchangeData<B>],
    batch_size: usize,
    model: &AlignableModel<B, M, I>,
    plan: impl Fn(&InterchangeData<B>) -> Result<(Plan<B>, ReadId), TrainingError>,
) -> Result<Evaluation, TrainingError> {
    let (mut right, mut examples) = (0, 0);
    for dataset in data {
        let (plan, read) = plan(dataset)?;
        let all: Vec<usize> = (0..dataset.len()).collect();
        for chosen in all.chunks(batch_size.max(1)) {
            let part = match chosen.len() == all.len() {
                true => plan.clone(),
                false => plan.examples(chosen)?,
            };
            let options = RunOptions::default();
            let results = part.run_with(model.model(), model.interventions(), &options)?;
            let logits = results.get(read); // [batch, unit, vocab]
            let [_batch, units, _vocab] = logits.dims();
            let predicted: Vec<i64> = logits.argmax(2).into_data().iter::<i64>().collect();
            let lengths = dataset.inputs.base.lengths();
            for (predicted, example) in predicted.chunks(units).zip(chosen) {
                let labels = &dataset.labels[*example];
                let counted = match dataset.positions {
                    LogitPositions::All => lengths[*example], // not the padding
                    _ => units,
                };
                let mut pairs = predicted.iter().zip(labels).take(counted);
                right += usize::from(pairs.all(|(found, label)| *found == i64::from(*label)));
            }
            examples += chosen.len();
        }
    }
    if examples == 0 {
        return Err(TrainingError::Nothing {
            expected: "at least one example",
        });
    }
    Ok(Evaluation::new(right, examples))
}
