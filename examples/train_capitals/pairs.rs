//! Interchanges between prompts about countries: the source's country, the base's question.

use std::collections::HashMap;

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

/// What a model knows of the table, in prompts of [`WORDS`] that are a token each.
pub struct Known {
    countries: Vec<&'static Country>,
    questions: &'static [Question],
    /// For each country, whether the model answers each question.
    answered: HashMap<&'static str, Vec<bool>>,
    /// Tokens that the tokenizer puts before the words.
    pub before: usize,
}

impl Known {
    /// Everything, as `capitals-gpt2`.
    pub fn all() -> Self {
        let answered = |it: &Country| (it.name, vec![true; QUESTIONS.len()]);
        Self {
            countries: COUNTRIES.iter().collect(),
            questions: &QUESTIONS,
            answered: COUNTRIES.iter().map(answered).collect(),
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
        let mut known = Self {
            countries: Vec::new(),
            questions: &COMMON,
            answered: HashMap::new(),
            before,
        };
        for ((country, question, answer), found) in asked.into_iter().zip(found) {
            if found == answer {
                let answered = known.answered.entry(country.name).or_insert_with(|| {
                    known.countries.push(country);
                    vec![false; COMMON.len()]
                });
                answered[question] = true;
            }
        }
        // A fifth of them is held out, and their answers must differ.
        ensure!(
            known.countries.len() >= 20,
            "the model knows a capital or a language of {} countries, expected at least 20",
            known.countries.len()
        );
        Ok(known)
    }

    /// The countries that have an answer to each question.
    pub fn names(&self) -> Vec<(String, Vec<&'static str>)> {
        let of = |question: usize| {
            let all = self.countries.iter().map(|it| it.name);
            all.filter(|name| self.answered[name][question]).collect()
        };
        let questions = self.questions.iter().enumerate();
        questions
            .map(|(index, (ask, _))| (ask("…"), of(index)))
            .collect()
    }

    fn answers(&self, country: &Country, question: usize) -> bool {
        self.answered[country.name][question]
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
    [bases, sources]: [&[&'static Country]; 2],
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
        let mut draw = |from: &[&'static Country]| {
            let country = from[rng.random_range(0..from.len())];
            (country, rng.random_range(0..known.questions.len()))
        };
        let (base_country, question) = draw(bases);
        let (country, source_question) = draw(sources);
        let (ask, answer) = known.questions[question];
        let (ask_source, _) = known.questions[source_question];
        let is_known = [base_country, country]
            .iter()
            .all(|it| known.answers(it, question));
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
