//! The tokens of a text on which features are most active.

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Site, TokenBatch};

use super::{DictionaryTextError, DictionaryTextOptions};
use crate::dictionaries::Dictionary;
use crate::engine::read_floats;

/// Where a feature is active in a text.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureTop {
    /// The feature.
    pub feature: usize,
    /// Number of tokens on which it is active.
    pub active: usize,
    /// Number of tokens that were looked at.
    pub tokens: usize,
    /// The tokens on which it is most active, the largest first; of equal ones, the earlier first.
    pub top: Vec<TopActivation>,
}

/// A token on which a feature is active.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopActivation {
    /// Index of the batch.
    pub batch: usize,
    /// Index of the example in the batch.
    pub example: usize,
    /// Position in the example.
    pub position: usize,
    /// The token.
    pub token: u32,
    /// The activation.
    pub value: f32,
}

impl TopActivation {
    /// The tokens around it, at most this many on each side, and where it is among them; `None` if
    /// these are not the batches that it was found in.
    pub fn context<'a>(
        &self,
        batches: &'a [TokenBatch],
        around: usize,
    ) -> Option<(&'a [u32], usize)> {
        let ids = batches.get(self.batch)?.ids().get(self.example)?;
        let start = self.position.saturating_sub(around);
        let end = self.position.saturating_add(around).saturating_add(1);
        let end = ids.len().min(end);
        let found = ids.get(start..end)?;
        let at = self.position - start;
        (found.get(at) == Some(&self.token)).then_some((found, at))
    }
}

/// Finds the tokens of a text on which features are most active: what one reads first to find out
/// what a feature stands for. One batch at a time is run, and only the best are kept.
///
/// - features: which ones; work is in proportion to their number, except for TopK
/// - count: how many tokens of each
///
/// # When it misleads
/// The largest activations show what a feature answers to at its strongest; most of the time it is
/// active more weakly, and on other things (Bolukbasi et al. 2021, arXiv 2104.07143, "An
/// interpretability illusion for BERT"). Look at weak activations as well, on other texts, and
/// intervene.
///
/// # Errors
/// If there is no batch, a feature is not there or is named twice, or the site does not fit the
/// model or the dictionary.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_align::dictionaries::{Dictionary, FeatureActivation};
/// use burn_align::methods::{DictionaryTextOptions, top_activations};
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions, Site};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let text = [tokenizer.encode_batch(["The capital of Spain is", "The capital of Italy is"])?];
///
/// // A feature for each of the first 64 tokens, in the direction of its embedding.
/// let directions = loaded.model.token_embedding().narrow(0, 0, 64);
/// let zeros = |count: usize| Tensor::<B, 1>::zeros([count], &device);
/// let encoder = (directions.clone().transpose(), zeros(64));
/// let dictionary =
///     Dictionary::new(encoder, FeatureActivation::relu(), (directions, zeros(128)))?;
/// let options = DictionaryTextOptions::default();
/// let site = Site::Embedding;
/// let found = top_activations(&loaded.model, &dictionary, &text, site, &[3, 5], 2, &options)?;
/// assert_eq!((found[0].feature, found[0].tokens), (3, 8)); // without the first of each
/// for top in found.iter().flat_map(|found| &found.top) {
///     let (tokens, at) = top.context(&text, 2).expect("it is from this text");
///     println!("{:?} {at} {:.2}", tokenizer.token_marks(tokens), top.value);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn top_activations<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    dictionary: &Dictionary<B>,
    batches: &[TokenBatch],
    site: Site,
    features: &[usize],
    count: usize,
    options: &DictionaryTextOptions,
) -> Result<Vec<FeatureTop>, DictionaryTextError> {
    if batches.is_empty() {
        return Err(DictionaryTextError::Nothing { what: "batch" });
    }
    let selected = dictionary.select(features)?;
    let found = features.iter().map(|feature| FeatureTop {
        feature: *feature,
        active: 0,
        tokens: 0,
        top: Vec::new(),
    });
    let mut found: Vec<FeatureTop> = found.collect();
    for (number, batch) in batches.iter().enumerate() {
        let mut places = places(batch, options.skip_positions);
        for x in options.rows(model, batch, site, dictionary)? {
            let values = read_floats(selected.encode(x))?; // [row, selected]
            for values in values.chunks(features.len()) {
                let Some((example, position)) = places.next() else {
                    break;
                };
                let place = TopActivation {
                    batch: number,
                    example,
                    position,
                    token: batch.ids()[example][position],
                    value: 0.0,
                };
                for (found, value) in found.iter_mut().zip(values) {
                    found.add(
                        TopActivation {
                            value: *value,
                            ..place
                        },
                        count,
                    );
                }
            }
        }
    }
    Ok(found)
}

impl FeatureTop {
    /// Counts a token, and keeps it if it is among the best.
    fn add(&mut self, found: TopActivation, count: usize) {
        self.tokens += 1;
        if found.value == 0.0 {
            return;
        }
        self.active += 1;
        // A value that is not a number comes first, so that it is not hidden.
        let is_before = |other: &TopActivation| other.value.total_cmp(&found.value).is_ge();
        let place = self.top.partition_point(is_before);
        if place < count {
            self.top.insert(place, found);
            self.top.truncate(count);
        }
    }
}

/// The examples and positions of a batch's rows.
fn places(batch: &TokenBatch, skipped: usize) -> impl Iterator<Item = (usize, usize)> {
    let lengths = batch.lengths().into_iter().enumerate();
    lengths.flat_map(move |(example, length)| {
        (skipped.min(length)..length).map(move |position| (example, position))
    })
}
