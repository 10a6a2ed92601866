//! Finding the words of a prompt among its tokens.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::tokenizer::Encoded;
use super::{SpecialTokens, Tokenizer, TokensError};

/// Characters of scripts that do not separate words by spaces, or not from attached particles
/// (Korean).
static UNSPACED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(concat!(
        r"^[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{scx=Hang}\p{scx=Thai}\p{scx=Lao}",
        r"\p{scx=Khmr}\p{scx=Mymr}\p{scx=Tibt}\p{scx=Java}\p{scx=Bali}\p{scx=Tale}\p{scx=Talu}",
        r"\p{scx=Lana}\p{scx=Tavt}\p{scx=Yiii}\p{scx=Nshu}\p{scx=Tang}]$",
    ))
    .ok()
});

/// Characters that combine with the one before them.
static MARK: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{M}\u{200D}]$").ok());

impl Tokenizer {
    /// The token positions of a word in a prompt, found by its text.
    ///
    /// The word may be any part of the prompt. Positions are those of [`encode`](Self::encode), so
    /// a beginning of sequence counts; all tokens that overlap the word belong to it, including
    /// those with only part of one of its characters. In scripts with spaces between words, part of
    /// a longer word does not count; in others, such as Chinese, Japanese, Korean and Thai, a word
    /// is found inside running text.
    ///
    /// ```
    /// use burn_align_models::{Decoder, FromPretrained, LoadOptions};
    ///
    /// type B = burn::backend::Flex;
    ///
    /// let device = Default::default();
    /// let loaded =
    ///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
    /// let tokenizer = loaded.tokenizer()?;
    /// assert_eq!(tokenizer.positions_of("The capital of Spain is", "Spain")?, 3..4);
    /// assert_eq!(tokenizer.positions_of("The capital of Spain is", "capital of")?, 1..3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the word is empty, does not occur in the prompt, occurs more than once, or only inside
    /// longer words.
    pub fn positions_of(&self, prompt: &str, word: &str) -> Result<Range<usize>, TokensError> {
        let part = find(prompt, word)?;
        let encoded = self.encoding(prompt, SpecialTokens::Once)?;
        let positions = self.touching(prompt, &encoded, &part);
        positions.ok_or_else(|| TokensError::WordNotFound {
            word: word.to_owned(),
            prompt: prompt.to_owned(),
        })
    }

    /// The positions of all tokens that overlap a range of the text, in bytes.
    ///
    /// A space that a normalizer puts before a text is reported as part of the first character,
    /// although it is not.
    pub(super) fn touching(
        &self,
        text: &str,
        encoded: &Encoded,
        part: &Range<usize>,
    ) -> Option<Range<usize>> {
        let is_space = |id: u32| {
            let bytes = self.token_bytes(id).unwrap_or_default();
            !bytes.is_empty() && bytes.iter().all(|byte| *byte == b' ')
        };
        let touches = |(id, (from, to)): (&u32, &(usize, usize))| {
            let covers_space = text
                .get(*from..*to)
                .is_some_and(|covered| covered.contains(char::is_whitespace));
            *from < part.end && part.start < *to && (covers_space || !is_space(*id))
        };
        let mut tokens = encoded.ids.iter().zip(&encoded.offsets);
        let first = tokens.clone().position(touches)?;
        let last = tokens.rposition(touches)?;
        Some(first..last + 1)
    }
}

/// The only occurrence of the word in the prompt, in bytes.
fn find(prompt: &str, word: &str) -> Result<Range<usize>, TokensError> {
    let (word, named) = (word.trim(), word);
    let not_found = || TokensError::WordNotFound {
        word: named.to_owned(),
        prompt: prompt.to_owned(),
    };
    if word.is_empty() {
        return Err(not_found());
    }
    let starts = prompt.char_indices().map(|(start, _)| start);
    let places: Vec<Range<usize>> = starts
        .filter(|start| prompt[*start..].starts_with(word))
        .map(|start| start..start + word.len())
        .collect();
    let mut whole = places.iter().filter(|part| is_whole(prompt, part));
    match (whole.next(), whole.count()) {
        (Some(part), 0) => Ok(part.clone()),
        (Some(_), more) => Err(TokensError::WordAmbiguous {
            word: named.to_owned(),
            prompt: prompt.to_owned(),
            count: more + 1,
        }),
        (None, _) => match places.first() {
            Some(part) => Err(TokensError::WordInsideWord {
                word: named.to_owned(),
                prompt: prompt.to_owned(),
                within: longer(prompt, part.clone()).to_owned(),
            }),
            None => Err(not_found()),
        },
    }
}

/// Whether the range is not embedded in a longer word.
fn is_whole(text: &str, part: &Range<usize>) -> bool {
    let inside = &text[part.clone()];
    let before = text[..part.start].chars().next_back();
    let after = text[part.end..].chars().next();
    !is_joined(before, inside.chars().next()) && !is_joined(inside.chars().next_back(), after)
}

/// Whether there is no word boundary between two characters.
fn is_joined(left: Option<char>, right: Option<char>) -> bool {
    let (Some(left), Some(right)) = (left, right) else {
        return false;
    };
    if is_match(&MARK, right) {
        return true;
    }
    let is_spaced = |sign: char| {
        (sign.is_alphanumeric() || is_match(&MARK, sign)) && !is_match(&UNSPACED, sign)
    };
    is_spaced(left) && is_spaced(right)
}

/// The text around the range, up to the next word boundaries.
fn longer(text: &str, part: Range<usize>) -> &str {
    let (mut start, mut end) = (part.start, part.end);
    while let Some(before) = text[..start].chars().next_back()
        && is_joined(Some(before), text[start..].chars().next())
    {
        start -= before.len_utf8();
    }
    while let Some(after) = text[end..].chars().next()
        && is_joined(text[..end].chars().next_back(), Some(after))
    {
        end += after.len_utf8();
    }
    &text[start..end]
}

fn is_match(class: &Option<Regex>, sign: char) -> bool {
    let mut buffer = [0; 4];
    let text: &str = sign.encode_utf8(&mut buffer);
    class.as_ref().is_some_and(|class| class.is_match(text))
}
