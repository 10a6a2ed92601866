//! Units: where in a model the features of a submission are.

use std::fmt;
use std::str::FromStr;

use burn_align_models::{Component, Site};
use serde::{Deserialize, Serialize};

use crate::engine::{Indices, Units};

/// Activations of the track, by the name of the task's position.
///
/// The text form begins the names of a submission's files:
/// `ResidualStream(Layer-3,Token-last_token)` or `AttentionHead(Layer-7,Head-6,Token-all)`. Any
/// character may be in the places of the dashes: other versions of the track have `:` or `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum SubmissionUnit {
    /// The residual stream after a block.
    ResidualStream {
        /// The block.
        layer: usize,
        /// The name of the task's position.
        position: String,
    },
    /// The output of an attention head, before the output projection.
    AttentionHead {
        /// The block.
        layer: usize,
        /// The head.
        head: usize,
        /// The name of the task's position.
        position: String,
    },
}

impl SubmissionUnit {
    /// The residual stream after a block, at a position of the task.
    pub fn residual_stream(layer: usize, position: impl Into<String>) -> Self {
        Self::ResidualStream {
            layer,
            position: position.into(),
        }
    }

    /// A head, at a position of the task.
    pub fn attention_head(layer: usize, head: usize, position: impl Into<String>) -> Self {
        Self::AttentionHead {
            layer,
            head,
            position: position.into(),
        }
    }

    /// The block.
    pub fn layer(&self) -> usize {
        match self {
            Self::ResidualStream { layer, .. } | Self::AttentionHead { layer, .. } => *layer,
        }
    }

    /// The name of the task's position.
    pub fn position(&self) -> &str {
        match self {
            Self::ResidualStream { position, .. } | Self::AttentionHead { position, .. } => {
                position
            }
        }
    }

    /// The site in the model.
    pub fn site(&self) -> Site {
        match self {
            Self::ResidualStream { layer, .. } => Site::Block(*layer, Component::BlockOutput),
            Self::AttentionHead { layer, .. } => {
                Site::Block(*layer, Component::AttentionValueOutput)
            }
        }
    }

    /// These positions of its site.
    pub(super) fn units(&self, positions: Vec<Vec<usize>>) -> Units {
        let units = Units::positions(Indices::Each(positions));
        match self {
            Self::ResidualStream { .. } => units,
            Self::AttentionHead { head, .. } => units.of_head(*head),
        }
    }

    /// Whether all units of this kind are swapped together.
    pub(super) fn is_joint(&self) -> bool {
        matches!(self, Self::AttentionHead { .. })
    }
}

impl fmt::Display for SubmissionUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResidualStream { layer, position } => {
                write!(f, "ResidualStream(Layer-{layer},Token-{position})")
            }
            Self::AttentionHead {
                layer,
                head,
                position,
            } => write!(
                f,
                "AttentionHead(Layer-{layer},Head-{head},Token-{position})"
            ),
        }
    }
}

/// A text that names no unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?}: expected ResidualStream(Layer-LAYER,Token-POSITION) or \
     AttentionHead(Layer-LAYER,Head-HEAD,Token-POSITION)"
)]
pub struct UnknownUnit {
    /// The text.
    pub text: String,
}

impl FromStr for SubmissionUnit {
    type Err = UnknownUnit;

    fn from_str(text: &str) -> Result<Self, UnknownUnit> {
        parse(text).ok_or_else(|| UnknownUnit {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &str) -> Option<SubmissionUnit> {
    let (kind, fields) = text.strip_suffix(')')?.split_once('(')?;
    let fields: Vec<&str> = fields.split(',').collect();
    match (kind, &fields[..]) {
        ("ResidualStream", [layer, position]) => Some(SubmissionUnit::ResidualStream {
            layer: field(layer, "Layer")?.parse().ok()?,
            position: name(position)?,
        }),
        ("AttentionHead", [layer, head, position]) => Some(SubmissionUnit::AttentionHead {
            layer: field(layer, "Layer")?.parse().ok()?,
            head: field(head, "Head")?.parse().ok()?,
            position: name(position)?,
        }),
        _ => None,
    }
}

/// What follows the field's name and one more character.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = text.strip_prefix(key)?.chars();
    rest.next()?;
    Some(rest.as_str())
}

/// The name of a position. It is part of a file's name.
fn name(text: &str) -> Option<String> {
    let name = field(text, "Token")?;
    is_name(name).then(|| name.to_owned())
}

/// Whether a unit with a position of this name has files, and reads back as the same.
pub(super) fn is_name(position: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !position.is_empty() && position.chars().all(fits)
}

impl From<SubmissionUnit> for String {
    fn from(unit: SubmissionUnit) -> Self {
        unit.to_string()
    }
}

impl TryFrom<String> for SubmissionUnit {
    type Error = UnknownUnit;

    fn try_from(text: String) -> Result<Self, UnknownUnit> {
        text.parse()
    }
}
