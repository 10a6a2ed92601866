//! Values of the variables of these tasks: numbers and texts.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::causal_models::Values;

/// A value of a variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TaskValue {
    /// A whole number.
    Number(i64),
    /// A text.
    Text(String),
}

impl TaskValue {
    /// The number, if it is one.
    pub fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(_) => None,
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Number(_) => None,
            Self::Text(text) => Some(text),
        }
    }

    /// The number, for functions whose parents only have numbers. What a text gives is the value of
    /// no variable.
    pub(super) fn number(&self) -> i64 {
        self.as_number().unwrap_or(-1)
    }

    /// The text, for functions whose parents only have texts.
    pub(super) fn text(&self) -> &str {
        self.as_text().unwrap_or_default()
    }
}

impl fmt::Display for TaskValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<i64> for TaskValue {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for TaskValue {
    fn from(truth: bool) -> Self {
        Self::Number(truth.into())
    }
}

impl From<&str> for TaskValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for TaskValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// The numbers from 0 to before this one.
pub(super) fn below(end: i64) -> Values<TaskValue> {
    (0..end).map(TaskValue::Number).collect()
}
