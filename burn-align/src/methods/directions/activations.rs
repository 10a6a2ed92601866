//! Activations as rows of numbers, and how they are read from a model.

use std::fmt;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, SiteWidth, TokenBatch};

use super::DirectionError;
use crate::engine::{Indices, Plan, ReadId, RunOptions, Units, read_numbers};
use crate::interventions::VanillaIntervention;

/// Activations at one site: a row for each, with the prompt that it comes from.
///
/// Rows of one prompt resemble each other. They are held out together, so that a direction is not
/// measured on prompts that it was built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Activations {
    width: usize,
    /// `[row * width + feature]`
    values: Vec<f64>,
    /// For each row.
    prompts: Vec<usize>,
}

impl Activations {
    /// Activations on the host, each of a prompt of its own.
    ///
    /// # Errors
    /// If there are none, if their widths differ, or if a number is not finite.
    pub fn from_rows(rows: &[Vec<f64>]) -> Result<Self, DirectionError> {
        let width = rows.first().map_or(0, Vec::len);
        if let Some(row) = rows.iter().position(|row| row.len() != width) {
            return Err(DirectionError::Width {
                what: format!("activation {row}"),
                expected: width,
                found: rows[row].len(),
            });
        }
        Self::new(width, rows.concat(), (0..rows.len()).collect())
    }

    /// Activations in a tensor, each of a prompt of its own.
    ///
    /// # Shapes
    /// - rows: `[example, d_site]`
    ///
    /// # Errors
    /// If there are none, if a number is not finite, or if the device fails.
    pub fn from_tensor<B: Backend>(rows: Tensor<B, 2>) -> Result<Self, DirectionError> {
        let [examples, width] = rows.dims();
        if examples == 0 || width == 0 {
            return Err(DirectionError::Empty);
        }
        Self::new(width, read_numbers(rows)?, (0..examples).collect())
    }

    fn new(width: usize, values: Vec<f64>, prompts: Vec<usize>) -> Result<Self, DirectionError> {
        if values.is_empty() {
            return Err(DirectionError::Empty);
        }
        if let Some(index) = values.iter().position(|value| !(*value as f32).is_finite()) {
            return Err(DirectionError::NotFinite {
                row: index / width,
                feature: index % width,
                found: values[index],
            });
        }
        Ok(Self {
            width,
            values,
            prompts,
        })
    }

    /// Names the prompt that each activation comes from: any number, the same for activations of
    /// the same prompt.
    ///
    /// # Errors
    /// If there is not one for each activation.
    pub fn with_prompts(mut self, prompts: Vec<usize>) -> Result<Self, DirectionError> {
        if prompts.len() != self.prompts.len() {
            return Err(DirectionError::Count {
                what: "prompts",
                expected: self.prompts.len(),
                found: prompts.len(),
            });
        }
        self.prompts = prompts;
        Ok(self)
    }

    /// Number of activations.
    pub fn count(&self) -> usize {
        self.prompts.len()
    }

    /// Number of features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The activations, in order.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks(self.width)
    }

    /// The prompt of each activation.
    pub fn prompts(&self) -> &[usize] {
        &self.prompts
    }

    pub(super) fn values(&self) -> &[f64] {
        &self.values
    }
}

/// The positions of a prompt whose activations are collected. Its text form is meant for
/// [`DirectionProvenance::positions`](super::DirectionProvenance::positions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptPositions {
    /// The last token, as for CAA and LAT.
    Last,
    /// Every token from this position on: 1 leaves out a token that begins every text. Its residual
    /// stream can be a hundred times longer than the others (an attention sink).
    From(usize),
    /// These positions: the same, or as many, in each prompt.
    At(Indices),
}

impl fmt::Display for PromptPositions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => f.write_str("last token"),
            Self::From(0) | Self::At(Indices::All) => f.write_str("every token"),
            Self::From(first) => write!(f, "every token from position {first} on"),
            Self::At(Indices::Same(positions)) => write!(f, "positions {positions:?}"),
            Self::At(Indices::Each(_)) => f.write_str("positions chosen for each prompt"),
        }
    }
}

/// Runs prompts and returns the activations at a site, by prompt and then by position.
///
/// # Errors
/// If the site or the positions do not fit the model or a prompt, if the activation has no features
/// (attention scores and weights), or if values stop being finite.
pub fn collect_activations<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    prompts: &TokenBatch,
    site: Site,
    positions: &PromptPositions,
    options: &RunOptions,
) -> Result<Activations, DirectionError> {
    let mut found = collect_activations_at::<B, M>(model, prompts, &[site], positions, options)?;
    Ok(found.swap_remove(0))
}

/// Like [`collect_activations`], at several sites in one pass: for instance after every layer.
///
/// # Errors
/// As [`collect_activations`].
pub fn collect_activations_at<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    prompts: &TokenBatch,
    sites: &[Site],
    positions: &PromptPositions,
    options: &RunOptions,
) -> Result<Vec<Activations>, DirectionError> {
    // A site that the model does not have is found with the plan.
    let has_features = |site: &&Site| {
        let dims = model.site(**site);
        dims.is_none_or(|dims| dims.width != SiteWidth::KeyPositions)
    };
    if let Some(site) = sites.iter().find(|site| !has_features(site)) {
        return Err(DirectionError::NoFeatures { site: *site });
    }
    let lengths = prompts.lengths();
    let indices = match positions {
        PromptPositions::Last => Indices::one_each(prompts.last_positions()),
        PromptPositions::From(first) => {
            let mut lengths = lengths.iter().enumerate();
            if let Some((example, found)) = lengths.find(|(_, length)| *length <= first) {
                return Err(DirectionError::NoPositions {
                    example,
                    from: *first,
                    found: *found,
                });
            }
            Indices::All
        }
        PromptPositions::At(indices) => indices.clone(),
    };
    let units = Units::positions(indices);
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(prompts);
    let world = plan.world(input, []);
    let reads = sites.iter();
    let reads: Vec<ReadId> = reads
        .map(|site| plan.read(world, *site, units.clone()))
        .collect();
    let interventions = [VanillaIntervention; 0];
    let results = plan.run_with(model, &interventions, options)?;

    let mut found = Vec::new();
    for read in reads {
        let activations = results.get(read).detach(); // [batch, unit, d_site]
        let [_batch, unit_count, width] = activations.dims();
        let numbers = read_numbers(activations)?;
        let (mut values, mut origins) = (Vec::new(), Vec::new());
        for (row, activation) in numbers.chunks(width.max(1)).enumerate() {
            let (example, unit) = (row / unit_count, row % unit_count);
            let collected = match positions {
                PromptPositions::Last
                | PromptPositions::At(Indices::Same(_) | Indices::Each(_)) => true,
                // The rest is padding.
                PromptPositions::At(Indices::All) => unit < lengths[example],
                PromptPositions::From(first) => (*first..lengths[example]).contains(&unit),
            };
            if collected {
                values.extend_from_slice(activation);
                origins.push(example);
            }
        }
        plan.check_finite(&values, model, &interventions, options)?;
        found.push(Activations::new(width, values, origins)?);
    }
    Ok(found)
}
