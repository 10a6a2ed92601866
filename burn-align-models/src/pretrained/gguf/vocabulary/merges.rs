//! Which two pieces are merged, in order.

use std::collections::HashSet;

use super::super::{GgufError, Metadata};
use super::tokens::Tokens;

const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// Two pieces that are merged; earlier ones first.
pub(super) type Merge<'a> = (&'a str, &'a str);

/// The merges listed in the metadata.
pub(super) fn listed<'a>(
    metadata: &'a Metadata,
    tokens: &Tokens<'_>,
) -> Result<Vec<Merge<'a>>, GgufError> {
    let listed = metadata.texts(MERGES)?;
    let listed = listed.ok_or_else(|| metadata.wrong(MERGES, "the merges"))?;
    let mut seen = HashSet::with_capacity(listed.len());
    let mut merges = Vec::with_capacity(listed.len());
    let mut merged = String::new();
    for (index, text) in listed.iter().enumerate() {
        let wrong = |expected: &str| {
            let found = format!("`{text}`");
            GgufError::damaged(format!("merge {index} of {MERGES}"), expected, found)
        };
        // A piece may itself begin with a space.
        let space = text.bytes().skip(1).position(|byte| byte == b' ');
        let space = space.ok_or_else(|| wrong("two pieces and a space between them"))? + 1;
        let merge = (&text[..space], &text[space + 1..]);
        merged.clear();
        merged.extend([merge.0, merge.1]);
        if ![merge.0, merge.1, &merged]
            .iter()
            .all(|piece| tokens.has(piece))
        {
            return Err(wrong("two tokens that make a third"));
        }
        // Of two equal merges, the first counts.
        if seen.insert(merge) {
            merges.push(merge);
        }
    }
    Ok(merges)
}

/// Maximum length of a token that is split into merges, in bytes. Each of its parts is looked up,
/// so the time grows quadratically; the longest tokens in published vocabularies have 128
/// characters.
const LONGEST: usize = 1024;

/// The merges implied by the scores of a SentencePiece vocabulary.
///
/// SentencePiece and llama.cpp merge any two neighbours that form a token, the one with the best
/// score first, and the leftmost of equals. So each way to form a token from two others is a merge,
/// and the merges are ordered by score.
pub(super) fn from_scores<'a>(
    metadata: &Metadata,
    tokens: &'a Tokens<'_>,
) -> Result<Vec<Merge<'a>>, GgufError> {
    let texts = tokens.texts();
    let scores = match metadata.floats(SCORES) {
        Ok(Some(scores)) => scores.to_vec(),
        Ok(None) => return Err(metadata.wrong(SCORES, "the scores")),
        Err(_) => {
            let integers = metadata.integers(SCORES)?.unwrap_or_default();
            integers.into_iter().map(|score| score as f32).collect()
        }
    };
    if scores.len() < texts.len() || scores.iter().any(|score| score.is_nan()) {
        let expected = format!("{} numbers, one for each token", texts.len());
        return Err(metadata.wrong(SCORES, expected));
    }
    let mut found: Vec<(f32, usize, usize)> = Vec::new();
    for (id, (text, score)) in texts.iter().zip(scores).enumerate() {
        if !tokens.is_piece(text) {
            continue;
        }
        if text.len() > LONGEST {
            return Err(GgufError::damaged(
                format!("token {id} of the vocabulary"),
                format!("at most {LONGEST} bytes"),
                text.len(),
            ));
        }
        let splits = text.char_indices().map(|(at, _)| at).skip(1);
        let splits =
            splits.filter(|at| tokens.is_piece(&text[..*at]) && tokens.is_piece(&text[*at..]));
        // 0 and -0 are equal.
        found.extend(splits.map(|at| (score + 0.0, id, at)));
    }
    // Runs of one character are merged from the left, which leaves the shorter remainder on the
    // right: of the ways to form a token, the one with the longer left part comes first.
    found.sort_unstable_by(|a, b| {
        let by_score = b.0.total_cmp(&a.0);
        by_score.then(a.1.cmp(&b.1)).then(b.2.cmp(&a.2))
    });
    let merges = found.into_iter().map(|(_, id, at)| texts[id].split_at(at));
    Ok(merges.collect())
}
