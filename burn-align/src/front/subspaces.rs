//! Subspaces by the parts of a representation that they consist of.

use serde::Deserialize;
use serde_json::Value;

use super::{AlignError, AlignableRepresentationConfig};
use crate::engine::Indices;

/// Which subspaces of each representation are changed.
///
/// An id is an index into the representation's `subspace_partition`, or, without one, a feature.
/// Every example has subspaces of its own, as many as it likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Subspaces {
    /// Whole representations.
    #[default]
    Whole,
    /// These ids, for every representation and example.
    Everywhere(Vec<usize>),
    /// `[representation][batch][id]`; `None` for a whole representation.
    Each(Vec<Option<Vec<Vec<usize>>>>),
}

impl Subspaces {
    /// The features of one representation.
    pub(super) fn features(
        &self,
        index: usize,
        representation: &AlignableRepresentationConfig,
        [representations, batch]: [usize; 2],
    ) -> Result<Indices, AlignError> {
        let expand = |ids: &Vec<usize>| expand(ids, index, representation);
        match self {
            Self::Whole => Ok(Indices::All),
            Self::Everywhere(ids) => Ok(Indices::Same(expand(ids)?)),
            Self::Each(each) if each.len() != representations => Err(AlignError::SubspaceCount {
                what: "representations",
                expected: representations,
                found: each.len(),
            }),
            Self::Each(each) => match &each[index] {
                None => Ok(Indices::All),
                Some(examples) if examples.len() != batch => Err(AlignError::SubspaceCount {
                    what: "examples",
                    expected: batch,
                    found: examples.len(),
                }),
                Some(examples) => {
                    let features = examples.iter().map(expand);
                    Ok(Indices::Each(features.collect::<Result<_, _>>()?))
                }
            },
        }
    }
}

/// The features that the ids of one example stand for.
fn expand(
    ids: &[usize],
    index: usize,
    representation: &AlignableRepresentationConfig,
) -> Result<Vec<usize>, AlignError> {
    let Some(partition) = &representation.subspace_partition else {
        return Ok(ids.to_vec());
    };
    let mut features = Vec::new();
    for id in ids {
        match partition.get(*id).map(Vec::as_slice) {
            None => {
                return Err(AlignError::NoSuchPart {
                    representation: index,
                    parts: partition.len(),
                    found: *id,
                });
            }
            Some([from, to]) => features.extend(*from..*to),
            Some(listed) => features.extend(listed),
        }
    }
    Ok(features)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SubspacesJson {
    Whole(()),
    Everywhere(usize),
    Each(Vec<Option<Vec<Vec<usize>>>>),
}

impl TryFrom<&Value> for Subspaces {
    type Error = AlignError;

    /// Reads the JSON of pyvene: `null`, one id for all, or `[representation][batch][id]`, with
    /// `null` for a whole representation.
    fn try_from(json: &Value) -> Result<Self, AlignError> {
        let malformed = |_| AlignError::MalformedSubspaces {
            found: json.to_string(),
        };
        Ok(
            match serde_json::from_value(json.clone()).map_err(malformed)? {
                SubspacesJson::Whole(()) => Self::Whole,
                SubspacesJson::Everywhere(id) => Self::Everywhere(vec![id]),
                SubspacesJson::Each(each) => Self::Each(each),
            },
        )
    }
}
