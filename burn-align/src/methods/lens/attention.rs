//! Attention patterns: where a head looks.

use burn::tensor::{DType, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, Site};

use super::LensError;
use crate::engine::{Plan, RunOptions, Units, WorldInput, read_numbers};
use crate::interventions::VanillaIntervention;
use crate::methods::Grid;

/// The attention weights of a head.
#[derive(Clone, Debug, PartialEq)]
#[doc(alias = "attention pattern")]
pub struct AttentionPattern {
    /// The layer.
    pub layer: usize,
    /// The query head.
    pub head: usize,
    /// `[example][q_pos][k_pos]`: each row sums to 1, and has as many numbers as the example has
    /// positions. Positions that a query does not see have 0.
    pub values: Vec<Vec<Vec<f64>>>,
}

impl AttentionPattern {
    /// The pattern of one example as a table, with a row for each query and a column for each key.
    /// `None` if there is no such example, or there are not as many labels as it has positions.
    ///
    /// - labels: of the positions, such as their tokens
    pub fn grid(&self, example: usize, labels: &[String]) -> Option<Grid> {
        let values = self.values.get(example)?;
        (labels.len() == values.len()).then(|| Grid {
            rows: labels.to_vec(),
            columns: labels.to_vec(),
            values: values.clone(),
        })
    }
}

/// The attention weights of these heads after the softmax, in one pass.
///
/// - input: [`TokenBatch`](burn_align_models::TokenBatch), or vectors, `[batch, pos, feature]`
/// - heads: layers and query heads
///
/// # When it misleads
/// A weight says how much of a position's value is taken, not what is in it, nor whether anything
/// depends on it: many heads look at the first token when they have nothing to do. See
/// [`head_sources`](super::head_sources) for what a head takes from where.
///
/// # Errors
/// If no head is given, the model has no such head, the input does not fit the model, or the run is
/// not finite.
///
/// ```
/// use burn_align::engine::RunOptions;
/// use burn_align::methods::lens::attention_patterns;
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let options = LoadOptions::default();
/// let loaded = Decoder::<B>::from_pretrained("bundled:induction", &options, &device)?;
/// let tokens = loaded.tokenizer()?.encode_batch(["Ada Ben Ada"])?;
/// let found = attention_patterns(&loaded.model, tokens, &[(0, 1)], &RunOptions::default())?;
/// // The first token sees itself only.
/// assert!((found[0].values[0][0][0] - 1.0).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn attention_patterns<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    input: impl Into<WorldInput<B>>,
    heads: &[(usize, usize)],
    options: &RunOptions,
) -> Result<Vec<AttentionPattern>, LensError> {
    let input = input.into();
    check_heads::<B, M>(model, heads)?;
    let lengths = input.lengths();
    let mut plan = Plan::<B>::new();
    let input = plan.input(input);
    let world = plan.world(input, []);
    let reads: Vec<_> = heads
        .iter()
        .map(|(layer, head)| {
            let site = Site::Block(*layer, Component::AttentionWeights);
            plan.read(world, site, Units::head(*head))
        })
        .collect();
    let results = plan.run_with(model, &[VanillaIntervention; 0], options)?;
    let mut found = Vec::with_capacity(heads.len());
    for ((layer, head), read) in heads.iter().zip(reads) {
        let weights = results.get(read).cast(DType::F32); // [batch, q_pos, k_pos]
        let [_batch, queries, keys] = weights.dims();
        let numbers = read_numbers(weights)?;
        plan.check_finite(&numbers, model, &[VanillaIntervention; 0], options)?;
        // Without padding.
        let examples = numbers.chunks(queries * keys).zip(&lengths);
        let values = examples.map(|(rows, length)| {
            let rows = rows.chunks(keys).take(*length);
            rows.map(|row| row[..*length].to_vec()).collect()
        });
        found.push(AttentionPattern {
            layer: *layer,
            head: *head,
            values: values.collect(),
        });
    }
    Ok(found)
}

/// Checks that there are some heads, and that the model has them.
pub(super) fn check_heads<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    heads: &[(usize, usize)],
) -> Result<(), LensError> {
    if heads.is_empty() {
        return Err(LensError::Nothing { what: "head" });
    }
    let (layers, count) = (model.layout().layers().len(), model.dims().heads);
    let wrong = heads
        .iter()
        .find(|(layer, head)| *layer >= layers || *head >= count);
    if let Some((layer, head)) = wrong {
        return Err(LensError::NoSuchHead {
            layer: *layer,
            head: *head,
            layers,
            heads: count,
        });
    }
    Ok(())
}
