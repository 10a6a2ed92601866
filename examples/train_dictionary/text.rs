//! What the model reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn_align_models::{TokenBatch, Tokenizer};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::facts::facts;
use super::features::NAMES;

/// Examples that go through the model together.
const TOGETHER: usize = 16;
/// One of this many examples is held out.
const HELD_OUT: usize = 10;

/// A text as tokens.
pub(crate) struct Text {
    /// What it is.
    pub(crate) name: String,
    /// The length of its examples, if all of them have the same.
    pub(crate) context: Option<usize>,
    examples: Vec<Vec<u32>>,
}

impl Text {
    /// A file, or the texts of a folder.
    pub(crate) fn read(path: &Path, tokenizer: &Tokenizer, context: usize) -> Result<Self> {
        let mut files = Vec::new();
        if path.is_dir() {
            find(path, &mut files)?;
            ensure!(
                !files.is_empty(),
                "--text {}: expected files named .txt or .md, found none",
                path.display()
            );
        } else {
            files.push(path.to_owned());
        }
        files.sort();
        let texts = files.iter().map(|file| {
            fs::read_to_string(file).with_context(|| format!("--text {}", file.display()))
        });
        let texts = texts.collect::<Result<Vec<String>>>()?;
        Self::of(path.display().to_string(), &texts, tokenizer, context)
    }

    /// The guide and the README files of this project, and sentences about countries and people.
    pub(crate) fn of_the_project(tokenizer: &Tokenizer, context: usize) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        find(&root.join("burn-align/guide"), &mut files)?;
        for file in [
            "README.md",
            "CONTRIBUTING.md",
            "ARCHITECTURE.md",
            "examples/README.md",
        ] {
            files.push(root.join(file));
        }
        files.sort();
        let texts = files.iter().map(|file| {
            fs::read_to_string(file)
                .with_context(|| format!("{}: give another text with --text", file.display()))
        });
        let mut texts = texts.collect::<Result<Vec<String>>>()?;
        let facts = facts().into_iter();
        let facts = facts.map(|fact| format!("{} {}.", fact.prompt, fact.answer));
        let others = NAMES.iter().cycle().skip(7);
        let people = NAMES.iter().zip(others).flat_map(|(one, other)| {
            [
                format!("{one} went to the station with {other}."),
                format!("When {one} came home, {other} was reading a book."),
                format!("The letter from {one} was for {other}."),
            ]
        });
        let mut sentences: Vec<String> = facts.chain(people).collect();
        sentences.shuffle(&mut StdRng::seed_from_u64(0));
        texts.push(sentences.join(" "));
        Self::of(
            "the guide of burn-align".to_owned(),
            &texts,
            tokenizer,
            context,
        )
    }

    /// The sentences that the bundled model was trained on, one in each example.
    pub(crate) fn facts(tokenizer: &Tokenizer) -> Result<Self> {
        let sentences = facts().into_iter();
        let sentences = sentences.map(|fact| format!("{} {}", fact.prompt, fact.answer));
        let examples = sentences.map(|sentence| Ok(tokenizer.encode(&sentence)?));
        Ok(Self {
            name: "facts about countries".to_owned(),
            context: None,
            examples: examples.collect::<Result<_>>()?,
        })
    }

    /// Texts one after another, cut into examples of the same length.
    fn of(name: String, texts: &[String], tokenizer: &Tokenizer, context: usize) -> Result<Self> {
        ensure!(
            context >= 2,
            "--context: expected at least 2, found {context}"
        );
        let mut ids = Vec::new();
        for text in texts {
            ids.extend(tokenizer.encode(text)?);
        }
        let examples: Vec<Vec<u32>> = ids.chunks_exact(context).map(<[u32]>::to_vec).collect();
        ensure!(
            examples.len() >= 2,
            "the text has {} tokens: expected two examples of {context}, at least",
            ids.len()
        );
        Ok(Self {
            name,
            context: Some(context),
            examples,
        })
    }

    /// The batches to train on, and those that are held out.
    pub(crate) fn split(&self) -> Result<[Vec<TokenBatch>; 2]> {
        let mut order: Vec<&Vec<u32>> = self.examples.iter().collect();
        order.shuffle(&mut StdRng::seed_from_u64(1));
        let (held_out, training) = order.split_at(order.len().div_ceil(HELD_OUT));
        let batches = |examples: &[&Vec<u32>]| -> Result<Vec<TokenBatch>> {
            let some = examples.chunks(TOGETHER);
            let some = some.map(|some| some.iter().map(|ids| (*ids).clone()).collect());
            some.map(|ids| Ok(TokenBatch::new(ids)?)).collect()
        };
        Ok([batches(training)?, batches(held_out)?])
    }
}

/// Batches from the first on, until they have so many tokens.
pub(crate) fn beginning(parts: [&[TokenBatch]; 2], tokens: usize) -> Vec<TokenBatch> {
    let mut left = tokens;
    let batches = parts.into_iter().flatten();
    let some = batches.take_while(|batch| {
        let goes_on = left > 0;
        left = left.saturating_sub(batch.lengths().iter().sum());
        goes_on
    });
    some.cloned().collect()
}

/// The texts in a folder and in those below it.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let at = || folder.display().to_string();
    for entry in fs::read_dir(folder).with_context(at)? {
        let entry = entry.with_context(at)?;
        let path = entry.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if entry.file_type().with_context(at)?.is_dir() {
            find(&path, found)?;
        } else if matches!(extension, Some("txt" | "md")) {
            found.push(path);
        }
    }
    Ok(())
}
