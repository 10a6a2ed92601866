use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::TrainingError;
use crate::engine::{LogitPositions, Plan, ReadId};
use crate::front::{AlignableInputs, AlignableModel};
use crate::interventions::Intervention;

/// Interchange interventions and what the model should predict under them.
#[derive(Clone, Debug)]
pub struct InterchangeData<B: Backend> {
    /// Bases, sources and locations of all examples.
    pub inputs: AlignableInputs<B>,
    /// `[example][unit]`: the class that should be predicted at each position.
    pub labels: Vec<Vec<u32>>,
    /// The positions that predict.
    pub positions: LogitPositions,
}

/// What is wanted of a batch.
#[derive(Clone, Debug)]
pub struct Targets<B: Backend> {
    /// Which examples these are, of which dataset.
    pub examples: (usize, Vec<usize>),
    /// The labels, `[batch, unit]`.
    pub labels: Tensor<B, 2, Int>,
}

impl<B: Backend> InterchangeData<B> {
    /// One label for each example, predicted at its last position.
    pub fn new(inputs: AlignableInputs<B>, labels: impl IntoIterator<Item = u32>) -> Self {
        Self {
            inputs,
            labels: labels.into_iter().map(|label| vec![label]).collect(),
            positions: LogitPositions::Last,
        }
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

    /// The plan of all examples, and where their logits come out.
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

    /// The labels of some examples.
    pub(super) fn targets<A: Backend>(
        &self,
        dataset: usize,
        examples: &[usize],
        device: &A::Device,
    ) -> Targets<A> {
        let units = self.labels[0].len();
        let labels: Vec<i64> = examples
            .iter()
            .flat_map(|example| self.labels[*example].iter().map(|label| i64::from(*label)))
            .collect();
        Targets {
            examples: (dataset, examples.to_vec()),
            labels: Tensor::from_data(TensorData::new(labels, [examples.len(), units]), device),
        }
    }
}
