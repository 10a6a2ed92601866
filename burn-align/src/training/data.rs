//! Data to train and evaluate with: inputs, labels, and the positions that predict them.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, TokenBatch};

use super::TrainingError;
use crate::engine::{LogitPositions, Plan, ReadId, WorldInput};
use crate::front::{AlignableInputs, AlignableModel, UnitLocations};
use crate::interventions::Intervention;

/// Interchange interventions and what the model should predict under them.
///
/// ```
/// use burn_align::training::{InterchangeData, InterchangeExample};
///
/// type B = burn::backend::Flex;
///
/// // As token ids. Swap the source's last token (of three) into the base's last token.
/// let example = InterchangeExample {
///     base: vec![5, 6, 7],
///     sources: vec![vec![5, 8, 7]],
///     label: 9,
/// };
/// let data = InterchangeData::<B>::from_examples([example])?.with_locations(2);
/// assert_eq!(data.labels, [[9]]);
/// # Ok::<(), burn_align::training::TrainingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct InterchangeData<B: Backend> {
    /// Bases, sources and locations of all examples.
    pub inputs: AlignableInputs<B>,
    /// `[example][unit]`: the class that should be predicted at each position.
    pub labels: Vec<Vec<u32>>,
    /// The positions that predict; they replace those of the inputs.
    pub positions: LogitPositions,
}

/// One interchange intervention in token ids, and the prediction it should lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterchangeExample {
    /// The prompt that is changed.
    pub base: Vec<u32>,
    /// The prompts that activations are taken from.
    pub sources: Vec<Vec<u32>>,
    /// The token that should be predicted at the last position.
    pub label: u32,
}

/// The targets of a batch.
#[derive(Clone, Debug)]
pub struct Targets<B: Backend> {
    /// The dataset, and the indices of the examples in it.
    pub examples: (usize, Vec<usize>),
    /// The labels, `[batch, unit]`.
    pub labels: Tensor<B, 2, Int>,
    /// 1 where a label counts and 0 at padding, `[batch, unit]`; `None` if all of them count.
    pub weights: Option<Tensor<B, 2>>,
}

impl<B: Backend> InterchangeData<B> {
    /// One label per example, predicted at its last position.
    pub fn new(inputs: AlignableInputs<B>, labels: impl IntoIterator<Item = u32>) -> Self {
        Self {
            inputs,
            labels: labels.into_iter().map(|label| vec![label]).collect(),
            positions: LogitPositions::Last,
        }
    }

    /// Sets the locations.
    pub fn with_locations(mut self, locations: impl Into<UnitLocations>) -> Self {
        self.inputs.locations = locations.into();
        self
    }

    /// Sets the labels, `[example][unit]`, and the positions that predict them.
    pub fn with_labels(mut self, positions: LogitPositions, labels: Vec<Vec<u32>>) -> Self {
        (self.positions, self.labels) = (positions, labels);
        self
    }

    /// Swaps whole representations of prompts; use [`with_locations`](Self::with_locations) to swap
    /// parts.
    ///
    /// Any iterator over examples works, for example a Burn dataset through its `iter()`, and
    /// everything that wraps one: shuffled, sampled, mapped, partial. Training needs no data
    /// loader, because it gathers its batches from cached activations and does not touch the data
    /// again.
    ///
    /// # Errors
    /// If there is no example, a prompt is empty, or examples have different numbers of sources.
    pub fn from_examples(
        examples: impl IntoIterator<Item = InterchangeExample>,
    ) -> Result<Self, TrainingError> {
        let (mut bases, mut sources, mut labels) = (Vec::new(), Vec::<Vec<_>>::new(), Vec::new());
        for (index, example) in examples.into_iter().enumerate() {
            if index == 0 {
                sources.resize_with(example.sources.len(), Vec::new);
            }
            if example.sources.len() != sources.len() {
                return Err(TrainingError::Sources {
                    example: index,
                    expected: sources.len(),
                    found: example.sources.len(),
                });
            }
            for (all, source) in sources.iter_mut().zip(example.sources) {
                all.push(source);
            }
            bases.push(example.base);
            labels.push(example.label);
        }
        let sources = sources.into_iter().map(TokenBatch::new);
        let inputs = AlignableInputs::new(TokenBatch::new(bases)?)
            .with_sources(sources.collect::<Result<Vec<_>, _>>()?);
        Ok(Self::new(inputs, labels))
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Checks the labels against the inputs and the number of classes.
    pub(super) fn check(&self, classes: usize) -> Result<(), TrainingError> {
        let batch = self.inputs.base.batch();
        if self.labels.len() != batch {
            return Err(TrainingError::Labels {
                expected: format!("those of {batch} examples"),
                found: self.labels.len().to_string(),
            });
        }
        let units = match &self.positions {
            LogitPositions::All => self.inputs.base.pos(),
            LogitPositions::Last => 1,
            LogitPositions::Each(each) => each.first().map_or(0, Vec::len),
        };
        for (example, labels) in self.labels.iter().enumerate() {
            if labels.len() != units {
                return Err(TrainingError::Labels {
                    expected: format!("{units} for each example, one for each position"),
                    found: format!("{} for example {example}", labels.len()),
                });
            }
            if let Some(found) = labels.iter().find(|label| **label as usize >= classes) {
                return Err(TrainingError::UnknownLabel {
                    example,
                    found: *found,
                    classes,
                });
            }
        }
        Ok(())
    }

    /// The plan of all examples, and the read of their logits.
    pub(crate) fn plan<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &AlignableModel<B, M, I>,
    ) -> Result<(Plan<B>, ReadId), TrainingError> {
        self.check(model.model().dims().vocab)?;
        let mut plan = Plan::new();
        let added = model.add_worlds(&mut plan, &self.inputs)?;
        let read = plan.read_logits(added.base, self.positions.clone());
        Ok((plan, read))
    }

    /// The plan of all examples, the read of their logits, and the read of those without
    /// interventions.
    pub(super) fn plan_beside_clean<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &AlignableModel<B, M, I>,
    ) -> Result<(Plan<B>, [ReadId; 2]), TrainingError> {
        let (mut plan, read) = self.plan(model)?;
        let input = plan.input(self.inputs.base.clone());
        let world = plan.world(input, []);
        let clean = plan.read_logits(world, self.positions.clone());
        Ok((plan, [read, clean]))
    }

    /// How many of an example's `units` positions count.
    pub(super) fn counted(&self, example: usize, units: usize) -> usize {
        match (&self.positions, &self.inputs.base) {
            (LogitPositions::All, WorldInput::Tokens(tokens)) => tokens.ids()[example].len(),
            _ => units,
        }
    }

    /// The labels of some examples that have logits at this many positions.
    pub(super) fn targets<A: Backend>(
        &self,
        dataset: usize,
        examples: &[usize],
        units: usize,
        device: &A::Device,
    ) -> Targets<A> {
        let shape = [examples.len(), units];
        let labels: Vec<i64> = examples
            .iter()
            .flat_map(|example| {
                self.labels[*example][..units]
                    .iter()
                    .map(|it| i64::from(*it))
            })
            .collect();
        let counted = examples.iter().map(|example| self.counted(*example, units));
        let counted: Vec<usize> = counted.collect();
        let weights = counted.iter().any(|count| *count < units).then(|| {
            let weights = counted
                .iter()
                .flat_map(|count| (0..units).map(move |unit| f32::from(u8::from(unit < *count))));
            let weights: Vec<f32> = weights.collect();
            Tensor::from_data(TensorData::new(weights, shape), (device, DType::F32))
        });
        Targets {
            examples: (dataset, examples.to_vec()),
            labels: Tensor::from_data(TensorData::new(labels, shape), device),
            weights,
        }
    }
}
