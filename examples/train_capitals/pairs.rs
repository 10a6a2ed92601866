//! Interchanges between prompts about countries: the source's country, the base's question.

use anyhow::{Result, ensure};
use burn::tensor::backend::Backend;
use burn_align::front::AlignableInputs;
use burn_align::training::InterchangeData;
use burn_align_models::{AlignableTransformer, TokenBatch, Tokenizer};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::facts::{COUNTRIES, Country};

/// The words of every prompt, after any special tokens: the answer comes after the last one.
pub const WORDS: [&str; 5] = ["The", "(question)", "of", "(country)", "is"];

/// The word after which the answer comes.
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

/// Questions to models that do not know the sentences of the table.
const COMMON: [Question; 2] = [
    QUESTIONS[0],
    (
        |country| format!("The people of {country} speak"),
        |it| it.language,
    ),
];

/// A country, and whether the model answers each question about it.
type Answered = (&'static Country, Vec<bool>);

/// What a model knows of the table, in prompts of [`WORDS`] that are a token each.
pub struct Known {
    countries: Vec<Answered>,
    questions: &'static [Question],
    /// Tokens that the tokenizer puts before the words.
    pub before: usize,
}

impl Known {
    /// Everything, as `capitals-gpt2`.
    pub fn all() -> Self {
        let all = COUNTRIES.iter();
        Self {
            countries: all.map(|it| (it, vec![true; QUESTIONS.len()])).collect(),
            questions: &QUESTIONS,
            before: 0,
        }
    }

    /// The capitals and languages that another model predicts as the next token.
    pub fn by<B: Backend, M: AlignableTransformer<B>>(
        model: &M,
        tokenizer: &Tokenizer,
        device: &B::Device,
    ) -> Result<Self> {
        let before = tokenizer.encode("")?.len();
        let (mut asked, mut prompts) = (Vec::new(), Vec::new());
        for country in COUNTRIES {
            for (question, (ask, answer)) in COMMON.iter().enumerate() {
                let prompt = tokenizer.encode(&ask(country.name))?;
                let answer = tokenizer.single_token(&format!(" {}", answer(country)));
                if let (true, Ok(answer)) = (prompt.len() == before + WORDS.len(), answer) {
                    asked.push((country, question, answer));
                    prompts.push(prompt);
                }
            }
        }
        ensure!(
            !asked.is_empty(),
            "no country and its answer are a token each"
        );
        let found = workbench::fit::next_tokens(model, &TokenBatch::new(prompts)?, device)?;
        let answers = asked.into_iter().zip(found);
        let right: Vec<(&Country, usize)> = answers
            .filter(|((_, _, answer), found)| answer == found)
            .map(|((country, question, _), _)| (country, question))
            .collect();
        let countries = right.chunk_by(|(a, _), (b, _)| a == b).map(|of_country| {
            let answered = |question| of_country.iter().any(|(_, it)| *it == question);
            (of_country[0].0, (0..COMMON.len()).map(answered).collect())
        });
        let countries: Vec<Answered> = countries.collect();
        // A fifth of them is held out, and their answers must differ.
        ensure!(
            countries.len() >= 20,
            "the model knows a capital or a language of {} countries, expected at least 20",
            countries.len()
        );
        Ok(Self {
            countries,
            questions: &COMMON,
            before,
        })
    }

    /// The countries that have an answer to each question.
    pub fn names(&self) -> Vec<(String, Vec<&'static str>)> {
        let of = |question: usize| {
            let known = self.countries.iter().filter(|(_, it)| it[question]);
            known.map(|(country, _)| country.name).collect()
        };
        let questions = self.questions.iter().enumerate();
        questions
            .map(|(index, (ask, _))| (ask("…"), of(index)))
            .collect()
    }
}

/// Pairs of different countries and questions: base, source, and the base's question about the
/// source's country. The first are for training, the others are held out: their sources name
/// countries that no source names in training. The locations are those of the word [`LAST`].
pub fn split<B: Backend, const N: usize>(
    known: &Known,
    counts: [usize; N],
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<[InterchangeData<B>; N]> {
    let mut countries = known.countries.clone();
    countries.shuffle(rng);
    let (seen, unseen) = countries.split_at(countries.len() * 4 / 5);
    let mut parts = Vec::new();
    for (index, count) in counts.into_iter().enumerate() {
        let (bases, sources) = match index {
            0 => (seen, seen),
            _ => (&countries[..], unseen),
        };
        parts.push(pairs(known, count, [bases, sources], tokenizer, rng)?);
    }
    Ok(parts.try_into().expect("one part per count"))
}

fn pairs<B: Backend>(
    known: &Known,
    count: usize,
    [bases, sources]: [&[Answered]; 2],
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<InterchangeData<B>> {
    let (mut base, mut source, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let mut left = 10_000 * count;
    while labels.len() < count {
        ensure!(
            left > 0,
            "no two countries have different answers to a question"
        );
        left -= 1;
        let (base_country, of_base) = &bases[rng.random_range(0..bases.len())];
        let question = rng.random_range(0..known.questions.len());
        let (country, of_source) = &sources[rng.random_range(0..sources.len())];
        let (ask_source, _) = known.questions[rng.random_range(0..known.questions.len())];
        let (ask, answer) = known.questions[question];
        let is_known = of_base[question] && of_source[question];
        // The answer must distinguish the countries.
        if !is_known || answer(base_country) == answer(country) {
            continue;
        }
        base.push(tokenizer.encode(&ask(base_country.name))?);
        source.push(tokenizer.encode(&ask_source(country.name))?);
        labels.push(tokenizer.single_token(&format!(" {}", answer(country)))?);
    }
    let inputs = AlignableInputs::new(TokenBatch::new(base)?)
        .with_sources([TokenBatch::new(source)?])
        .with_locations(known.before + LAST);
    Ok(InterchangeData::new(inputs, labels))
}
