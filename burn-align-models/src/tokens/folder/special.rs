//! Special and added tokens, like Python's `AddedToken`, and their forms in files.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// A token that is matched before the text is split.
///
/// As in Python, `normalized` follows `special` unless it is given.
#[derive(Clone, Debug)]
pub(super) struct Added {
    pub(super) content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    pub(super) normalized: Option<bool>,
    pub(super) special: bool,
}

impl Added {
    pub(super) fn new(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: false,
        }
    }

    pub(super) fn special(content: &str) -> Self {
        Self {
            special: true,
            ..Self::new(content)
        }
    }

    pub(super) fn with_normalized(mut self, normalized: bool) -> Self {
        self.normalized = Some(normalized);
        self
    }

    /// From its JSON object.
    fn read(fields: &Map<String, Value>) -> Option<Self> {
        let flag = |key| fields.get(key).and_then(Value::as_bool);
        Some(Self {
            content: fields.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word").unwrap_or(false),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            normalized: flag("normalized"),
            special: flag("special").unwrap_or(false),
        })
    }

    pub(super) fn token(&self) -> AddedToken {
        AddedToken {
            content: self.content.clone(),
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized.unwrap_or(!self.special),
            special: self.special,
        }
    }

    /// Fixes `normalized` at its current value, as copying does in Python.
    pub(super) fn copied(mut self) -> Self {
        self.normalized = Some(self.token().normalized);
        self
    }
}

impl From<AddedToken> for Added {
    fn from(token: AddedToken) -> Self {
        Self {
            content: token.content,
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: Some(token.normalized),
            special: token.special,
        }
    }
}

/// A special token in a file: only its text, or also how it is matched.
#[derive(Clone, Debug)]
pub(super) enum Special {
    Text(String),
    Token(Added),
}

impl Special {
    /// `Err` with the value if it is not a token, `None` if it is null.
    pub(super) fn read(value: &Value) -> Result<Option<Self>, String> {
        match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(Self::Text(text.clone()))),
            Value::Object(fields) => match Added::read(fields) {
                Some(token) => Ok(Some(Self::Token(token))),
                None => Err(value.to_string()),
            },
            other => Err(other.to_string()),
        }
    }

    pub(super) fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Token(token) => &token.content,
        }
    }

    /// The token; `token` makes one from plain text.
    pub(super) fn into_token(self, token: impl FnOnce(&str) -> Added) -> Added {
        match self {
            Self::Text(text) => token(&text),
            Self::Token(token) => token,
        }
    }

    /// The same token copied as in Python.
    pub(super) fn copied(self) -> Self {
        match self {
            Self::Token(token) => Self::Token(token.copied()),
            text => text,
        }
    }
}
