//! What is contrasted: texts with and without something, and prompts to steer.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn_align::methods::PromptPositions;
use clap::ValueEnum;

#[allow(dead_code, unreachable_pub, reason = "the table of another example")]
#[path = "../train_capitals/facts.rs"]
mod facts;

use facts::COUNTRIES;

/// A contrast that comes with the example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Topic {
    /// Questions for a country's language and for its capital, for bundled:capitals.
    Languages,
    /// Gloomy and cheerful sentences.
    Gloomy,
    /// Sentences in French and in English.
    French,
}

/// Texts with and without something, and prompts to steer.
pub(crate) struct Contrast {
    /// What positive and negative texts stand for.
    pub(crate) labels: [String; 2],
    /// Positive and negative texts.
    pub(crate) pairs: Vec<[String; 2]>,
    /// The positions whose activations are compared.
    pub(crate) positions: PromptPositions,
    /// The prompts.
    pub(crate) prompts: Vec<String>,
    /// For each prompt: the word that answers it, and the one that would answer it if it were a
    /// positive text. None if any text may follow.
    pub(crate) answers: Option<Vec<[&'static str; 2]>>,
    /// Where a direction steers best, as a fraction of the model's layers.
    pub(crate) depth: (usize, usize),
    /// Strengths that show where it begins to work, and where texts break.
    pub(crate) strengths: &'static [f64],
    /// Number of tokens to generate.
    pub(crate) new_tokens: usize,
}

impl Topic {
    /// The contrast itself.
    ///
    /// # Errors
    /// If its file is damaged.
    pub(crate) fn contrast(self) -> Result<Contrast> {
        match self {
            Self::Languages => Ok(languages()),
            Self::Gloomy => Contrast::parse(include_str!("gloomy.tsv")),
            Self::French => Ok(Contrast {
                depth: (1, 3),
                ..Contrast::parse(include_str!("french.tsv"))?
            }),
        }
    }
}

impl Contrast {
    /// Reads a file of pairs: on every line a positive text, a tab and a negative one; on the first
    /// line what they stand for.
    ///
    /// # Errors
    /// If the file cannot be read, or is something else.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let name = || file.display().to_string();
        let text = fs::read_to_string(file).with_context(name)?;
        Self::parse(&text).with_context(name)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut pairs = Vec::new();
        let lines = (1..).zip(text.lines());
        for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let cells: Vec<&str> = line.split('\t').map(str::trim).collect();
            let pair = <[&str; 2]>::try_from(cells).ok();
            let pair = pair.filter(|pair| pair.iter().all(|cell| !cell.is_empty()));
            let pair = pair.with_context(|| {
                format!("line {number}: expected two texts with a tab between them")
            })?;
            pairs.push(pair.map(str::to_owned));
        }
        ensure!(
            pairs.len() > 2,
            "expected a line with two labels, and at least two lines with a pair of texts each"
        );
        let labels = pairs.remove(0);
        Ok(Self {
            labels,
            pairs,
            // The first token is an attention sink in many models.
            positions: PromptPositions::From(1),
            prompts: [
                "Tell me about the sea.",
                "Describe the weather today.",
                "Tell me a short story about a dog.",
                "What do you think of Mondays?",
            ]
            .map(str::to_owned)
            .into(),
            answers: None,
            depth: (2, 3),
            strengths: &[-0.2, -0.1, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5],
            new_tokens: 32,
        })
    }
}

/// Questions for languages and capitals of four fifths of the countries; to be steered are
/// questions for the other capitals.
fn languages() -> Contrast {
    let (mut pairs, mut prompts, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for (index, country) in COUNTRIES.iter().enumerate() {
        let [language, capital] =
            ["language", "capital"].map(|what| format!("The {what} of {} is", country.name));
        if index % 5 == 0 {
            prompts.push(capital);
            answers.push([country.capital, country.language]);
        } else {
            pairs.push([language, capital]);
        }
    }
    Contrast {
        labels: ["language", "capital"].map(str::to_owned),
        pairs,
        positions: PromptPositions::Last,
        prompts,
        answers: Some(answers),
        depth: (1, 3),
        strengths: &[0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0],
        new_tokens: 2,
    }
}
