//! Features: what a node of the model is claimed to compute.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

/// Numbers examples so that those with equal values have equal numbers.
type Number<E> = dyn Fn(&[E]) -> Vec<usize> + Send + Sync;

/// A feature of an input, for example "the previous token": what a node of the model is claimed to
/// compute.
///
/// Only equality matters: inputs with equal values of the feature can replace each other.
pub struct Feature<E> {
    name: String,
    number: Arc<Number<E>>,
}

impl<E> Feature<E> {
    /// A feature with a name for pictures and errors, and a function that gives its value for an
    /// example.
    ///
    /// ```
    /// use burn_align::methods::Feature;
    ///
    /// let first = Feature::new("first token", |tokens: &Vec<u32>| tokens[0]);
    /// assert_eq!(first.name(), "first token");
    /// ```
    pub fn new<V: Hash + Eq>(
        name: impl Into<String>,
        value: impl Fn(&E) -> V + Send + Sync + 'static,
    ) -> Self {
        let number = move |examples: &[E]| {
            let mut numbers: HashMap<V, usize> = HashMap::new();
            let numbered = examples.iter().map(|example| {
                let next = numbers.len();
                *numbers.entry(value(example)).or_insert(next)
            });
            numbered.collect()
        };
        Self {
            name: name.into(),
            number: Arc::new(number),
        }
    }

    /// The feature that is the same for every input, so the node may get any.
    pub fn nothing() -> Self {
        Self::new("nothing", |_| ())
    }

    /// The feature that is the whole input.
    pub fn input() -> Self
    where
        E: Clone + Hash + Eq + 'static,
    {
        Self::new("the whole input", E::clone)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Numbers the examples; examples that agree get equal numbers.
    pub(super) fn number(&self, examples: &[E]) -> Vec<usize> {
        (self.number)(examples)
    }
}

impl<E> Clone for Feature<E> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            number: Arc::clone(&self.number),
        }
    }
}

impl<E> fmt::Debug for Feature<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Feature").field(&self.name).finish()
    }
}
