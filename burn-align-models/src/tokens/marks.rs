//! Tokens for people to read: text, and text with invisible characters marked.

use super::Tokenizer;

impl Tokenizer {
    /// The text of each token, including the space before a word.
    ///
    /// With a LLaMA tokenizer `▁Rome` is `" Rome"` and `Rome` is `"Rome"`; with GPT-2's `ĠRome` is
    /// `" Rome"`. A special token gives its own name. A token that is only part of a character has
    /// no text: its bytes become `U+FFFD`. For the text of several tokens, use
    /// [`decode`](Self::decode); to print tokens, [`token_marks`](Self::token_marks).
    pub fn token_strings(&self, ids: &[u32]) -> Vec<String> {
        let text = |id: &u32| match self.token_bytes(*id) {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => format!("#{id}"),
        };
        ids.iter().map(text).collect()
    }

    /// Each token for a table or the axis of a picture: its text on one line, with invisible
    /// characters marked.
    ///
    /// | in the token | shown as |
    /// | --- | --- |
    /// | a line break, a carriage return, a tab | `↵`, `␍`, `⇥` |
    /// | bytes of an incomplete character | `<0xE2>` |
    /// | nothing but spaces | `␣` for each |
    /// | other control and invisible characters | `␛`, `<U+00A0>` |
    ///
    /// The space before a word stays a space. These marks are for people; programs should use
    /// [`token_strings`](Self::token_strings).
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
    /// let ids = tokenizer.encode("The capital of Spain is")?;
    /// assert_eq!(tokenizer.token_marks(&ids).join("|"), "The|capital|of|Spain|is");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn token_marks(&self, ids: &[u32]) -> Vec<String> {
        let marks = |id: &u32| match self.token_bytes(*id) {
            Some(bytes) => visible(&bytes),
            None => format!("#{id}"),
        };
        ids.iter().map(marks).collect()
    }
}

/// The bytes of a text on one line, with invisible characters marked.
fn visible(bytes: &[u8]) -> String {
    if !bytes.is_empty() && bytes.iter().all(|byte| *byte == b' ') {
        return "␣".repeat(bytes.len());
    }
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        chunk
            .valid()
            .chars()
            .for_each(|sign| mark(sign, &mut shown));
        for byte in chunk.invalid() {
            shown.push_str(&format!("<0x{byte:02X}>"));
        }
    }
    shown
}

fn mark(sign: char, shown: &mut String) {
    let invisible = matches!(sign,
        '\u{80}'..='\u{A0}' | '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}'
        | '\u{2028}'..='\u{202F}' | '\u{2060}'..='\u{206F}' | '\u{3000}' | '\u{FEFF}'
        | '\u{E0000}'..='\u{E0FFF}');
    match sign {
        '\n' => shown.push('↵'),
        '\r' => shown.push('␍'),
        '\t' => shown.push('⇥'),
        '\u{7F}' => shown.push('␡'),
        // The symbols for control characters are in the same order.
        '\0'..='\u{1F}' => shown.extend(char::from_u32(0x2400 + u32::from(sign))),
        sign if invisible => shown.push_str(&format!("<U+{:04X}>", u32::from(sign))),
        sign => shown.push(sign),
    }
}
