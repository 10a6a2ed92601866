//! The text of each token of a vocabulary.

use serde_json::Value;

/// How a vocabulary encodes text.
///
/// Decoding a single token does not show this: a decoder drops the space at the beginning of a
/// text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pieces {
    /// One character for each byte, as GPT-2 does.
    Bytes,
    /// A special character for the space, and `<0xNN>` for single bytes.
    Spaces { sign: char, bytes: bool },
    /// Parts of words, with this prefix if they continue a word.
    Continued(String),
    /// Parts of words, with this suffix at the end of a word.
    Ended(String),
    /// Text as it is.
    Plain,
}

impl Pieces {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let json = |part: Option<Value>| part.unwrap_or_default();
        let decoder = tokenizer.get_decoder();
        let decoder = json(decoder.and_then(|it| serde_json::to_value(it).ok()));
        if !decoder.is_null() {
            return Self::from_steps(&steps(&decoder));
        }
        let pre_tokenizer = tokenizer.get_pre_tokenizer();
        let pre_tokenizer = json(pre_tokenizer.and_then(|it| serde_json::to_value(it).ok()));
        Self::from_steps(&steps(&pre_tokenizer))
    }

    fn from_steps(steps: &[&Value]) -> Self {
        let find = |kind: &str| steps.iter().find(|step| step["type"] == kind);
        let text = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
        if find("ByteLevel").is_some() {
            return Self::Bytes;
        }
        let replaced = steps.iter().find_map(|step| {
            let is_space = step["type"] == "Replace" && step["content"] == " ";
            let sign = step["pattern"]["String"].as_str().filter(|_| is_space)?;
            sign.chars().next()
        });
        let sign = replaced.or_else(|| text(find("Metaspace")?, "replacement").chars().next());
        let bytes = find("ByteFallback").is_some();
        if let Some(sign) = sign {
            return Self::Spaces { sign, bytes };
        }
        if let Some(step) = find("WordPiece") {
            return Self::Continued(text(step, "prefix"));
        }
        if let Some(step) = find("BPEDecoder") {
            return Self::Ended(text(step, "suffix"));
        }
        Self::Plain
    }

    /// The bytes of the text of a token of the vocabulary.
    pub(super) fn bytes(&self, token: &str, is_added: bool) -> Vec<u8> {
        match self {
            Self::Bytes if !is_added => match token.chars().map(byte).collect() {
                Some(bytes) => bytes,
                None => token.as_bytes().to_vec(),
            },
            Self::Spaces { bytes: true, .. } if !is_added && single_byte(token).is_some() => {
                single_byte(token).into_iter().collect()
            }
            Self::Spaces { sign, .. } => token.replace(*sign, " ").into_bytes(),
            Self::Continued(prefix) if !is_added => {
                let rest = token.strip_prefix(prefix.as_str());
                rest.unwrap_or(token).as_bytes().to_vec()
            }
            Self::Ended(suffix) if !is_added && !suffix.is_empty() => {
                let word = token.strip_suffix(suffix.as_str());
                let text = word.map_or(token.to_owned(), |word| format!("{word} "));
                text.into_bytes()
            }
            _ => token.as_bytes().to_vec(),
        }
    }
}

/// The steps of a decoder or pre-tokenizer, including those inside sequences.
fn steps(part: &Value) -> Vec<&Value> {
    for key in ["decoders", "pretokenizers"] {
        if let Some(list) = part[key].as_array() {
            return list.iter().flat_map(steps).collect();
        }
    }
    vec![part]
}

/// The byte of `<0xNN>`.
fn single_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The byte that a character of byte-level BPE represents: the printable bytes of Latin-1 are
/// represented by themselves, and the 68 others, in order, by the characters from U+0100 on
/// (`bytes_to_unicode` in GPT-2's `encoder.py`).
fn byte(sign: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(sign) {
        code @ 0..0x100 => u8::try_from(code).ok().filter(|byte| is_itself(*byte)),
        code => (0..=u8::MAX)
            .filter(|byte| !is_itself(*byte))
            .nth((code - 0x100) as usize),
    }
}
