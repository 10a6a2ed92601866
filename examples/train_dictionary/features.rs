//! Which features answer to a kind of word, and the tokens that say so.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use burn_align::dictionaries::Dictionary;
use burn_align::methods::{DictionaryTextOptions, FeatureTop, top_activations};
use burn_align_models::{AlignableTransformer, Site, TokenBatch, Tokenizer};
use workbench::out;
use workbench::table::table;

use super::facts::COUNTRIES;

/// Tokens that are looked at of each feature.
const TOP: usize = 20;
/// Tokens that are shown, and how many around them.
const SHOWN: usize = 6;
const AROUND: usize = 5;

/// First names.
pub(crate) const NAMES: [&str; 24] = [
    "Mary", "John", "Tom", "James", "Paul", "Mark", "Anna", "Laura", "Sarah", "David", "Peter",
    "Alice", "Emma", "Jack", "Kate", "Martin", "Simon", "Robert", "Daniel", "Richard", "Michael",
    "Thomas", "George", "Henry",
];

/// Words of a kind.
pub(crate) struct Kind {
    name: &'static str,
    words: Vec<&'static str>,
}

/// A feature, and how many of its top tokens are of the kind.
pub(crate) struct Answering<'a> {
    found: &'a FeatureTop,
    pub(crate) hits: usize,
}

/// Capitals, and what else the text is about.
pub(crate) fn kinds(is_bundled: bool) -> [Kind; 2] {
    let capitals = COUNTRIES.iter().map(|country| country.capital);
    let languages = COUNTRIES.iter().map(|country| country.language);
    let other = match is_bundled {
        true => Kind {
            name: "languages",
            words: languages.collect(),
        },
        false => Kind {
            name: "first names",
            words: NAMES.to_vec(),
        },
    };
    let capitals = Kind {
        name: "capitals",
        words: capitals.collect(),
    };
    [capitals, other]
}

/// The top tokens of all features that are active on enough tokens.
pub(crate) fn tops<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    dictionary: &Dictionary<B>,
    text: &[TokenBatch],
    site: Site,
    options: &DictionaryTextOptions,
) -> Result<Vec<FeatureTop>> {
    let all: Vec<usize> = (0..dictionary.features()).collect();
    let mut found = top_activations(model, dictionary, text, site, &all, TOP, options)?;
    found.retain(|feature| feature.active >= TOP);
    Ok(found)
}

/// Features, those with the most words of the kind among their top tokens first. Only words that
/// are a token count.
pub(crate) fn answering<'a>(
    tops: &'a [FeatureTop],
    tokenizer: &Tokenizer,
    kind: &Kind,
) -> Vec<Answering<'a>> {
    let spelled = kind
        .words
        .iter()
        .flat_map(|word| [(*word).to_owned(), format!(" {word}")]);
    let ids = spelled.filter_map(|word| {
        let id = tokenizer.single_token(&word).ok()?;
        // A word that is unknown to the tokenizer is a token of another name.
        let is_word = tokenizer.token_strings(&[id])[0].trim() == word.trim();
        is_word.then_some(id)
    });
    let ids: BTreeSet<u32> = ids.collect();
    let features = tops.iter().map(|found| {
        let hits = found.top.iter().filter(|top| ids.contains(&top.token));
        Answering {
            hits: hits.count(),
            found,
        }
    });
    let mut features: Vec<Answering> = features.collect();
    features.sort_by_key(|feature| std::cmp::Reverse(feature.hits));
    features
}

/// Prints features with their top tokens, in context.
pub(crate) fn show(
    kind: &Kind,
    features: &[Answering],
    text: &[TokenBatch],
    tokenizer: &Tokenizer,
) -> Result<()> {
    for Answering { found, hits } in features {
        out!(
            "\nfeature {}: {hits} of its {TOP} top tokens are {}; active on {} of {} tokens",
            found.feature,
            kind.name,
            found.active,
            found.tokens,
        )?;
        let mut rows = table(["activation", "before", "token", "after"]);
        for top in found.top.iter().take(SHOWN) {
            let place = top.context(text, AROUND);
            let (ids, at) = place.context("a token of another text")?;
            let marks = tokenizer.token_marks(ids);
            // Tokens that are whole words have no spaces.
            let has_spaces = marks.iter().any(|mark| mark.starts_with(' '));
            let between = if has_spaces { "" } else { " " };
            rows.add_row([
                format!("{:.2}", top.value),
                marks[..at].join(between),
                marks[at].clone(),
                marks[at + 1..].join(between),
            ]);
        }
        out!("{rows}")?;
    }
    Ok(())
}
