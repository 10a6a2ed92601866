//! Text of tokens as they come.

use burn_align_models::{Tokenizer, TokensError};

/// Turns tokens into text, one by one. A character may take several tokens, and a token's text may depend
/// on the one before it, so text is given out once it cannot change any more.
///
/// ```
/// use burn_align::generate::TextStream;
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
/// # type B = burn::backend::Flex;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let device = Default::default();
/// let loaded = Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let mut stream = TextStream::new(tokenizer);
/// let mut text = String::new();
/// for id in tokenizer.encode("The capital of Spain is")? {
///     text += &stream.push(id)?;
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
    /// Nothing yet.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            ids: Vec::new(),
            done: 0,
        }
    }

    /// One more token. Gives the text that has become certain.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokensError> {
        self.ids.push(id);
        let text = self.open()?;
        if text.ends_with(UNFINISHED) {
            return Ok(String::new());
        }
        self.ids.drain(..self.done);
        self.done = self.ids.len();
        Ok(text)
    }

    /// What is left, with a mark for bytes that are no character.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(&mut self) -> Result<String, TokensError> {
        let text = self.open()?;
        self.ids.drain(..self.done);
        self.done = self.ids.len();
        Ok(text)
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
