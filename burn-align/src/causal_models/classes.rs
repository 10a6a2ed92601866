//! Inputs grouped by the value that they give a variable.

use std::collections::HashMap;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{CausalModelError, Inputs, Value};

/// Inputs grouped by the value that a variable has under them: see
/// [`CausalModel::equivalence_classes`](super::CausalModel::equivalence_classes).
///
/// Inputs of one class can replace each other where only this variable matters, as in causal
/// scrubbing. Sampling class by class gives data in which every value of the variable is equally
/// likely.
///
/// ```
/// # use burn_align::causal_models::{CausalModel, CausalModelError, Inputs};
/// let equality = CausalModel::<i64>::builder()
///     .input("a", 0..4)
///     .input("b", 0..4)
///     .variable("same", ["a", "b"], 0..=1, |[a, b]| a == b)
///     .build()?;
/// let classes = equality.equivalence_classes("same", equality.all_inputs()?)?;
/// assert_eq!(classes.of(&1).len(), 4);
/// assert_eq!(classes.of(&0)[0], Inputs::from([0, 1]));
/// # Ok::<(), CausalModelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EquivalenceClasses<V: Value> {
    /// In the order in which the values first occur.
    classes: Vec<(V, Vec<Inputs<V>>)>,
    places: HashMap<V, usize>,
}

impl<V: Value> EquivalenceClasses<V> {
    /// Groups inputs, each given with the variable's value.
    pub(super) fn new(
        inputs: impl IntoIterator<Item = Result<(V, Inputs<V>), CausalModelError>>,
    ) -> Result<Self, CausalModelError> {
        let mut classes = Self {
            classes: Vec::new(),
            places: HashMap::new(),
        };
        for inputs in inputs {
            let (value, inputs) = inputs?;
            classes.insert(value, inputs);
        }
        if classes.classes.is_empty() {
            return Err(CausalModelError::NothingToSort);
        }
        Ok(classes)
    }

    fn insert(&mut self, value: V, inputs: Inputs<V>) {
        match self.places.get(&value) {
            Some(&place) => self.classes[place].1.push(inputs),
            None => {
                self.places.insert(value.clone(), self.classes.len());
                self.classes.push((value, vec![inputs]));
            }
        }
    }

    /// The inputs under which the variable has this value; empty if there are none.
    pub fn of(&self, value: &V) -> &[Inputs<V>] {
        match self.places.get(value) {
            Some(&place) => &self.classes[place].1,
            None => &[],
        }
    }

    /// The values that occur and their inputs, in the order of first occurrence.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&V, &[Inputs<V>])> {
        let classes = self.classes.iter();
        classes.map(|(value, inputs)| (value, inputs.as_slice()))
    }

    /// Draws a value uniformly from those that occur, then inputs uniformly from its class.
    pub fn sample<R: Rng + ?Sized>(&self, rng: &mut R) -> &Inputs<V> {
        let class = self.classes.choose(rng);
        let inputs = class.and_then(|(_, inputs)| inputs.choose(rng));
        inputs.expect("there is a class, and no class is empty")
    }
}
