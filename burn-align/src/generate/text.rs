//! Text of tokens as they come.

use burn_align_models::{Tokenizer, TokensError};

/// Turns tokens into text, one by one. A character may take several tokens, and a token's text may
/// depend on the one before it, so text is given out once it cannot change any more.
///
/// Many tokenizers strip the space before the first word of a text. New tokens after a prompt are
/// not the beginning of a text: with [`after`](Self::after), a stream gives what they add to it.
///
/// ```
/// use burn_align::generate::TextStream;
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
/// # type B = burn::backend::Flex;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let ids = tokenizer.encode("The capital of Spain is")?;
/// let (prompt, new) = ids.split_at(2);
/// let mut stream = TextStream::after(tokenizer, prompt)?;
/// let mut text = tokenizer.decode(prompt)?;
/// for id in new {
///     text += &stream.push(*id)?;
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "The capital of Spain is");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    /// The tokens from which on text is still open, and those just before them.
    ids: Vec<u32>,
    /// How many of them are just before.
    done: usize,
}

/// What decoders put in place of bytes that are not a character yet.
const UNFINISHED: char = '\u{fffd}';

impl TextStream {
    /// The beginning of a text.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            ids: Vec::new(),
            done: 0,
        }
    }

    /// What is added to a text, such as a prompt, of these tokens. A character that they begin and
    /// do not end is given out once it is whole.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn after(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Self, TokensError> {
        /// Bytes of the longest character, which may be a token each.
        const LONGEST: usize = 4;
        let last = |count: usize| &ids[ids.len() - count..];
        let most = LONGEST.min(ids.len());
        let mut before = last(most);
        for count in 1..=most {
            // From the middle of a character on, bytes may not become characters any more.
            if !tokenizer.decode(last(count))?.starts_with(UNFINISHED) {
                before = last(count);
                break;
            }
        }
        let mut done = before.len();
        for count in (0..=before.len()).rev().take(LONGEST) {
            if !tokenizer.decode(&before[..count])?.ends_with(UNFINISHED) {
                done = count;
                break;
            }
        }
        Ok(Self {
            tokenizer: tokenizer.clone(),
            ids: before.to_vec(),
            done,
        })
    }

    /// One more token. Gives the text that has become certain.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokensError> {
        self.extend(&[id])
    }

    /// Several more tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn extend(&mut self, ids: &[u32]) -> Result<String, TokensError> {
        self.ids.extend_from_slice(ids);
        let text = self.open()?;
        if text.ends_with(UNFINISHED) {
            return Ok(String::new());
        }
        self.close();
        Ok(text)
    }

    /// What is left, with a mark for bytes that are no character.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(&mut self) -> Result<String, TokensError> {
        let text = self.open()?;
        self.close();
        Ok(text)
    }

    /// All tokens so far have been given out. The last of them stay, as those before the next.
    fn close(&mut self) {
        if self.ids.len() > self.done {
            self.ids.drain(..self.done);
            self.done = self.ids.len();
        }
    }

    /// The text that has not been given out.
    fn open(&self) -> Result<String, TokensError> {
        if self.ids.len() == self.done {
            return Ok(String::new());
        }
        let all = self.tokenizer.decode(&self.ids)?;
        let before = self.tokenizer.decode(&self.ids[..self.done])?;
        Ok(match all.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            None => all.chars().skip(before.chars().count()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: [&str; 11] = [
        "<s>", "▁hello", "▁world", "!", "▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xC3>",
        "<0xA9>",
    ];

    /// A tokenizer that strips the space before the first word of what it decodes.
    fn tokenizer(decoder: serde_json::Value) -> Tokenizer {
        let vocab = (0..VOCAB.len()).map(|id| (VOCAB[id].to_owned(), serde_json::Value::from(id)));
        let vocab: serde_json::Map<String, serde_json::Value> = vocab.collect();
        let json = serde_json::json!({
            "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": decoder,
            "model": {"type": "WordLevel", "unk_token": "<s>", "vocab": vocab},
        });
        Tokenizer::from_json(&json.to_string()).expect("a tokenizer")
    }

    fn ids(tokens: &[&str]) -> Vec<u32> {
        let id = |token: &str| VOCAB.iter().position(|it| *it == token).expect("there") as u32;
        tokens.iter().map(|token| id(token)).collect()
    }

    /// As LLaMA's tokenizers decode, with bytes as tokens.
    fn llama() -> Tokenizer {
        tokenizer(serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}))
    }

    #[track_caller]
    fn check(tokenizer: &Tokenizer, prompt: &[&str], new: &[&str], expected: &[&str]) {
        let (prompt, new) = (ids(prompt), ids(new));
        let mut stream = TextStream::after(tokenizer, &prompt).expect("it decodes");
        let parts = new.iter().map(|id| stream.push(*id).expect("it decodes"));
        let parts: Vec<String> = parts.collect();
        assert_eq!(parts, expected);
        let rest = stream.finish().expect("it decodes");
        let decode = |ids: &[u32]| tokenizer.decode(ids).expect("it decodes");
        let whole = decode(&[&prompt[..], &new].concat());
        assert_eq!(decode(&prompt) + &parts.concat() + &rest, whole);
        // All at once.
        let mut stream = TextStream::after(tokenizer, &prompt).expect("it decodes");
        let at_once = stream.extend(&new).expect("it decodes");
        let at_once = at_once + &stream.finish().expect("it decodes");
        assert_eq!(at_once, parts.concat() + &rest);
    }

    #[test]
    fn a_space_before_the_first_new_word_is_kept() {
        let metaspace = serde_json::json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true,
        });
        for tokenizer in [llama(), tokenizer(metaspace)] {
            check(&tokenizer, &["▁hello"], &["▁world", "!"], &[" world", "!"]);
            check(&tokenizer, &["<s>", "▁hello"], &["▁world"], &[" world"]);
            check(&tokenizer, &["▁hello", "▁"], &["▁world"], &[" world"]);
            check(&tokenizer, &["▁hello"], &["!", "▁world"], &["!", " world"]);
            // The beginning of a text.
            check(&tokenizer, &[], &["▁world", "▁hello"], &["world", " hello"]);
        }
    }

    #[test]
    fn characters_come_whole() {
        let face = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"];
        let accent = ["<0xC3>", "<0xA9>"];
        let two = [&["▁hello"][..], &face, &face].concat();
        check(&llama(), &two, &accent, &["", "é"]);
        check(&llama(), &accent, &face, &["", "", "", "😀"]);
        check(&llama(), &["▁hello"], &face[..2], &["", ""]);
    }

    #[test]
    fn a_character_begun_before_is_given_out_whole() {
        for (before, new, expected) in [
            (
                &["▁hello", "<0xC3>"][..],
                &["<0xA9>", "▁world"][..],
                ["é", " world"],
            ),
            (
                &["<0xF0>", "<0x9F>", "<0x98>"][..],
                &["<0x80>", "!"][..],
                ["😀", "!"],
            ),
            // These are none.
            (&["<0x98>"; 4][..], &["▁world", "!"][..], [" world", "!"]),
        ] {
            let mut stream = TextStream::after(&llama(), &ids(before)).expect("it decodes");
            let parts = ids(new).into_iter();
            let parts = parts.map(|id| stream.push(id).expect("it decodes"));
            assert_eq!(parts.collect::<Vec<String>>(), expected);
        }
    }
}
