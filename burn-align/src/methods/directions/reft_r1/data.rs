//! Texts to train a direction on, and their activations.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_align_models::{AlignableTransformer, Site, TokenBatch};

use super::super::data::class_name;
use super::super::{Activations, PromptPositions, collect_activations};
use super::ReftR1Error;
use crate::engine::{LogitPositions, RunOptions};
use crate::front::{AlignableInputs, Subspaces};
use crate::training::{InterchangeData, TrainingError};

/// A text with or without a concept, as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReftR1Text {
    /// What comes before the response, and is not learned: at least the token that begins the text.
    pub prompt: Vec<u32>,
    /// What the model should say under the intervention.
    pub response: Vec<u32>,
}

impl ReftR1Text {
    /// A response to a prompt.
    pub fn new(prompt: impl Into<Vec<u32>>, response: impl Into<Vec<u32>>) -> Self {
        Self {
            prompt: prompt.into(),
            response: response.into(),
        }
    }

    fn ids(&self) -> Vec<u32> {
        [&self.prompt[..], &self.response].concat()
    }
}

/// The activations of texts with the concept and without, at all positions from the first one on.
pub(super) fn collected<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    texts: [&[ReftR1Text]; 2],
    site: Site,
    first: usize,
) -> Result<[Activations; 2], ReftR1Error> {
    let of_class = |texts: &[ReftR1Text], class: bool| -> Result<Activations, ReftR1Error> {
        for (index, text) in texts.iter().enumerate() {
            for (part, ids) in [("prompt", &text.prompt), ("response", &text.response)] {
                if ids.is_empty() {
                    return Err(ReftR1Error::EmptyText {
                        class: class_name(class),
                        text: index,
                        part,
                    });
                }
            }
        }
        let batch = TokenBatch::new(texts.iter().map(ReftR1Text::ids).collect());
        let batch = batch.map_err(TrainingError::Tokens)?;
        let (positions, options) = (PromptPositions::From(first), RunOptions::default());
        let found = collect_activations::<B, M>(model, &batch, site, &positions, &options);
        Ok(found?)
    };
    Ok([of_class(texts[0], true)?, of_class(texts[1], false)?])
}

/// The largest value of each prompt; prompts are numbered from 0.
pub(super) fn largest_of_each(prompts: &[usize], values: &[f64]) -> Vec<f64> {
    let count = prompts.iter().max().map_or(0, |last| last + 1);
    let mut largest = vec![0.0_f64; count];
    for (prompt, value) in prompts.iter().zip(values) {
        largest[*prompt] = largest[*prompt].max(*value);
    }
    largest
}

/// The texts that are trained on.
pub(super) struct Texts {
    tokens: TokenBatch,
    /// The number of each text: first those with the concept, then the others.
    numbers: Vec<usize>,
    /// The number of tokens of each prompt.
    prompts: Vec<usize>,
}

impl Texts {
    /// Those of the texts whose number is kept.
    pub(super) fn new(
        texts: [&[ReftR1Text]; 2],
        is_kept: impl Fn(usize) -> bool,
    ) -> Result<Self, ReftR1Error> {
        let all = texts.into_iter().flatten().enumerate();
        let kept: Vec<(usize, &ReftR1Text)> = all.filter(|(number, _)| is_kept(*number)).collect();
        let ids = kept.iter().map(|(_, text)| text.ids()).collect();
        Ok(Self {
            tokens: TokenBatch::new(ids).map_err(TrainingError::Tokens)?,
            numbers: kept.iter().map(|(number, _)| *number).collect(),
            prompts: kept.iter().map(|(_, text)| text.prompt.len()).collect(),
        })
    }

    /// The positions of each text that are read and steered.
    fn counted(&self, first: usize) -> Vec<Range<usize>> {
        let lengths = self.tokens.lengths().into_iter();
        lengths.map(|length| first..length).collect()
    }

    /// What the model should predict at each position; 0 where nothing is learned.
    pub(super) fn data<B: Backend>(&self, first: usize) -> InterchangeData<B> {
        let pos = self.tokens.pos();
        let labels = self.tokens.ids().iter().zip(&self.prompts);
        let labels = labels.map(|(ids, prompt)| {
            let next = |position: usize| match position + 1 < *prompt {
                true => 0,
                false => ids.get(position + 1).copied().unwrap_or(0),
            };
            (0..pos).map(next).collect()
        });
        let counted = self.counted(first).into_iter();
        let subspaces = counted.map(Iterator::collect).collect();
        InterchangeData {
            inputs: AlignableInputs::new(self.tokens.clone())
                .with_subspaces(Subspaces::Each(vec![Some(subspaces)])),
            labels: labels.collect(),
            positions: LogitPositions::All,
        }
    }

    /// 1 where some of the texts predict a token of their response, `[example, unit]`.
    pub(super) fn weights<B: Backend>(
        &self,
        examples: &[usize],
        units: usize,
        device: &B::Device,
    ) -> Tensor<B, 2> {
        let lengths = self.tokens.lengths();
        let weights = examples.iter().flat_map(|example| {
            let learned = self.prompts[*example] - 1..lengths[*example] - 1;
            (0..units).map(move |unit| f32::from(u8::from(learned.contains(&unit))))
        });
        let data = TensorData::new(weights.collect::<Vec<f32>>(), [examples.len(), units]);
        Tensor::from_data(data, (device, DType::F32))
    }
}

/// The activations of the texts, which do not change in training.
pub(super) struct Held<A: AutodiffBackend> {
    /// `[example, pos, d_site]`, zeros where nothing is read.
    x: Tensor<A::InnerBackend, 3>,
    counted: Vec<Range<usize>>,
}

impl<A: AutodiffBackend> Held<A> {
    /// - activations: of all texts with the concept, and of all without
    pub(super) fn new(
        texts: &Texts,
        [positive, negative]: &[Activations; 2],
        first: usize,
        device: &A::Device,
    ) -> Self {
        let (pos, width) = (texts.tokens.pos(), positive.width());
        let places: BTreeMap<usize, usize> = texts.numbers.iter().copied().zip(0..).collect();
        let counted = texts.counted(first);
        let mut values = vec![0.0; counted.len() * pos * width];
        // Rows come in the order of the prompts and of their positions.
        let mut next: Vec<usize> = counted.iter().map(|range| range.start).collect();
        let others = positive.prompts().iter().max().map_or(0, |last| last + 1);
        for (activations, offset) in [(positive, 0), (negative, others)] {
            for (row, prompt) in activations.rows().zip(activations.prompts()) {
                let Some(place) = places.get(&(offset + prompt)) else {
                    continue;
                };
                let start = (place * pos + next[*place]) * width;
                next[*place] += 1;
                for (value, found) in values[start..start + width].iter_mut().zip(row) {
                    *value = *found as f32;
                }
            }
        }
        let data = TensorData::new(values, [counted.len(), pos, width]);
        Self {
            x: Tensor::<A, 3>::from_data(data, (device, DType::F32)).inner(),
            counted,
        }
    }

    /// The activations of some texts, `[example, pos, d_site]`, and the positions that count,
    /// `[example, 1, pos]`.
    pub(super) fn of(&self, examples: &[usize]) -> (Tensor<A, 3>, Tensor<A, 3, Bool>) {
        let [_all, pos, _d_site] = self.x.dims();
        let device = self.x.device();
        let count = examples.len();
        let chosen: Vec<i64> = examples.iter().map(|example| *example as i64).collect();
        let chosen = TensorData::new(chosen, [count]);
        let chosen = Tensor::<A::InnerBackend, 1, Int>::from_data(chosen, &device);
        let counted = examples.iter().flat_map(|example| {
            let counted = &self.counted[*example];
            (0..pos).map(move |position| counted.contains(&position))
        });
        let counted = TensorData::new(counted.collect::<Vec<bool>>(), [count, 1, pos]);
        (
            Tensor::from_inner(self.x.clone().select(0, chosen)),
            Tensor::from_data(counted, &device),
        )
    }
}
