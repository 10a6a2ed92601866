//! Interchanges between prompts of `capitals-gpt2`: the source's country, the base's question.

use anyhow::Result;
use burn::tensor::backend::Backend;
use burn_align::front::AlignableInputs;
use burn_align::training::InterchangeData;
use burn_align_models::{TokenBatch, Tokenizer};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::facts::{COUNTRIES, Country};

/// The words of every prompt: the country is at position 3, the answer comes after position 4.
pub const WORDS: [&str; 5] = ["The", "(question)", "of", "(country)", "is"];

/// The position after which the answer comes.
pub const LAST: usize = 4;

/// A question, and its answer for a country.
type Question = (fn(&str) -> String, fn(&Country) -> &'static str);

const QUESTIONS: [Question; 4] = [
    (
        |country| format!("The capital of {country} is"),
        |it| it.capital,
    ),
    (
        |country| format!("The language of {country} is"),
        |it| it.language,
    ),
    (
        |country| format!("The continent of {country} is"),
        |it| it.continent,
    ),
    (
        |country| format!("The people of {country} are"),
        |it| it.demonym,
    ),
];

/// Pairs of different countries and questions: base, source, and the base's question about the
/// source's country. The first are for training, the others are held out: their sources name
/// countries that no source names in training. The locations are [`LAST`].
pub fn split<B: Backend, const N: usize>(
    counts: [usize; N],
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<[InterchangeData<B>; N]> {
    let mut countries: Vec<&Country> = COUNTRIES.iter().collect();
    countries.shuffle(rng);
    let (seen, unseen) = countries.split_at(countries.len() * 4 / 5);
    let mut parts = Vec::new();
    for (index, count) in counts.into_iter().enumerate() {
        let (bases, sources) = match index {
            0 => (seen, seen),
            _ => (&countries[..], unseen),
        };
        parts.push(pairs(count, bases, sources, tokenizer, rng)?);
    }
    Ok(parts.try_into().expect("one part per count"))
}

fn pairs<B: Backend>(
    count: usize,
    bases: &[&Country],
    sources: &[&Country],
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<InterchangeData<B>> {
    let (mut base, mut source, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    while labels.len() < count {
        let mut draw = |from: &[&Country]| {
            let country = *from[rng.random_range(0..from.len())];
            (country, QUESTIONS[rng.random_range(0..QUESTIONS.len())])
        };
        let (base_country, (ask, answer)) = draw(bases);
        let (country, (ask_source, _)) = draw(sources);
        // The answer must distinguish the countries.
        if answer(&base_country) == answer(&country) {
            continue;
        }
        base.push(tokenizer.encode(&ask(base_country.name))?);
        source.push(tokenizer.encode(&ask_source(country.name))?);
        labels.push(tokenizer.single_token(&format!(" {}", answer(&country)))?);
    }
    let inputs = AlignableInputs::new(TokenBatch::new(base)?)
        .with_sources([TokenBatch::new(source)?])
        .with_locations(LAST);
    Ok(InterchangeData::new(inputs, labels))
}
