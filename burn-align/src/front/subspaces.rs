//! Subspaces, given by the parts of a representation.

use serde_json::Value;

use super::{AlignError, AlignableRepresentationConfig};
use crate::engine::Indices;

/// Which subspaces of each representation are changed.
///
/// An id is an index into the representation's `subspace_partition`, or, without one, a feature.
/// Every example has its own subspaces, any number of them; one that is named several times is
/// changed once, as in pyvene.
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
    /// The features of one representation, each once.
    ///
    /// - `most`: an upper bound on the number of its features
    pub(super) fn features(
        &self,
        index: usize,
        representation: &AlignableRepresentationConfig,
        [representations, batch]: [usize; 2],
        most: usize,
    ) -> Result<Indices, AlignError> {
        let expand = |ids: &Vec<usize>| expand(ids, index, representation, most);
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

/// The features that the ids of one example refer to, each once and in order. Of features that the
/// representation does not have, one is kept, which is enough for the plan's validation to reject
/// it.
fn expand(
    ids: &[usize],
    index: usize,
    representation: &AlignableRepresentationConfig,
    most: usize,
) -> Result<Vec<usize>, AlignError> {
    let Some(partition) = &representation.subspace_partition else {
        return Ok(once(ids.to_vec()));
    };
    let mut features = Vec::new();
    // A short list may name the same large part many times.
    for id in once(ids.to_vec()) {
        // Parts may overlap.
        if features.len() > 2 * most {
            features = once(features);
        }
        match partition.get(id).map(Vec::as_slice) {
            None => {
                return Err(AlignError::NoSuchPart {
                    representation: index,
                    parts: partition.len(),
                    found: id,
                });
            }
            Some([from, to]) => features.extend(*from..(*to).min(most.saturating_add(1))),
            Some(listed) => features.extend(listed),
        }
    }
    Ok(once(features))
}

/// The same numbers, sorted and without duplicates.
fn once(mut numbers: Vec<usize>) -> Vec<usize> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers.shrink_to_fit();
    numbers
}

impl TryFrom<&Value> for Subspaces {
    type Error = AlignError;

    /// Reads the JSON of pyvene: `null`, one id for all, or `[representation][batch][id]`, with
    /// `null` for a whole representation.
    fn try_from(json: &Value) -> Result<Self, AlignError> {
        let read = match json {
            Value::Null => Some(Self::Whole),
            Value::Number(_) => id(json).map(|id| Self::Everywhere(vec![id])),
            Value::Array(representations) => {
                let each = representations.iter().map(|it| match it {
                    Value::Null => Some(None),
                    examples => list(examples, |ids| list(ids, id)).map(Some),
                });
                each.collect::<Option<_>>().map(Self::Each)
            }
            _ => None,
        };
        read.ok_or_else(|| AlignError::MalformedSubspaces {
            found: json.to_string(),
        })
    }
}

fn id(json: &Value) -> Option<usize> {
    usize::try_from(json.as_u64()?).ok()
}

fn list<T>(json: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    json.as_array()?.iter().map(read).collect()
}
