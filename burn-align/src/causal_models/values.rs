//! The values that variables can take.

use std::fmt::Debug;
use std::hash::Hash;
use std::ops::{Range, RangeInclusive};

/// A value of a variable: an integer, a boolean, or your own enum.
///
/// All variables of a model have values of one type. Use whole units for real numbers, for example
/// prices in cents.
pub trait Value: Clone + Eq + Hash + Debug {}

impl<V: Clone + Eq + Hash + Debug> Value for V {}

/// The values that a variable can take.
///
/// ```
/// use burn_align::causal_models::Values;
///
/// assert_eq!(Values::from(0..3), Values::Listed(vec![0, 1, 2]));
/// assert_eq!(Values::from([false, true]), [false, true].into_iter().collect());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values<V> {
    /// One of these. At least one, each listed once.
    Listed(Vec<V>),
    /// Any value of the type. Such an input can be neither enumerated nor drawn uniformly, so
    /// examples need a sampler.
    Any,
}

impl<V> From<Vec<V>> for Values<V> {
    fn from(values: Vec<V>) -> Self {
        Self::Listed(values)
    }
}

impl<V, const N: usize> From<[V; N]> for Values<V> {
    fn from(values: [V; N]) -> Self {
        Self::Listed(values.into())
    }
}

impl<V> From<Range<V>> for Values<V>
where
    Range<V>: Iterator<Item = V>,
{
    fn from(values: Range<V>) -> Self {
        values.collect()
    }
}

impl<V> From<RangeInclusive<V>> for Values<V>
where
    RangeInclusive<V>: Iterator<Item = V>,
{
    fn from(values: RangeInclusive<V>) -> Self {
        values.collect()
    }
}

impl<V> FromIterator<V> for Values<V> {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Self {
        Self::Listed(values.into_iter().collect())
    }
}

impl<V: Debug> Values<V> {
    /// For an error message: the first few values, and how many there are.
    pub(super) fn summary(&self) -> String {
        const SHOWN: usize = 8;
        match self {
            Self::Any => "any value".to_owned(),
            Self::Listed(values) => {
                let shown: Vec<String> = values.iter().take(SHOWN).map(show).collect();
                let shown = shown.join(", ");
                match values.len() {
                    0..=SHOWN => format!("one of {shown}"),
                    count => format!("one of {shown}, … ({count} values)"),
                }
            }
        }
    }
}

/// A value as text.
pub(super) fn show<V: Debug>(value: &V) -> String {
    format!("{value:?}")
}
