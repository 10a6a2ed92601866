//! Counterfactual examples: a base, its sources, and the label that the causal model predicts.

use serde::{Deserialize, Serialize};

use super::{CausalModel, CausalModelError, Inputs, Value, Variable};

/// An interchange intervention, and the label that the causal model predicts for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CounterfactualExample<V> {
    /// The inputs that are intervened on.
    pub base: Inputs<V>,
    /// The inputs that variables take their values from.
    pub sources: Vec<CounterfactualSource<V>>,
    /// The outputs under the base, in the order of the model's outputs.
    pub base_label: Vec<V>,
    /// The outputs under the base when the variables have the values of the sources.
    pub label: Vec<V>,
}

/// A source, and the variables that take their values from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CounterfactualSource<V> {
    /// The source.
    pub inputs: Inputs<V>,
    /// The variables it provides.
    pub variables: Vec<Variable>,
}

impl<V: Value> CounterfactualExample<V> {
    /// Makes the example for this base and these sources, labelled by the model.
    ///
    /// # Errors
    /// As [`CausalModel::interchange`].
    pub fn new(
        model: &CausalModel<V>,
        base: Inputs<V>,
        sources: Vec<CounterfactualSource<V>>,
    ) -> Result<Self, CausalModelError> {
        let base_label = model.outputs_of(&model.run(&base)?);
        let label = model.outputs_of(&model.interchange_sources(&base, &sources)?);
        Ok(Self {
            base,
            sources,
            base_label,
            label,
        })
    }

    /// Whether the interchange changes the label.
    pub fn flips(&self) -> bool {
        self.label != self.base_label
    }
}

/// Counterfactual examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterfactualDataset<V> {
    /// The examples.
    pub examples: Vec<CounterfactualExample<V>>,
}

impl<V: Value> CounterfactualDataset<V> {
    /// The fraction of examples whose label flips; 0 if there are none.
    pub fn flip_fraction(&self) -> f64 {
        let flips = self.examples.iter().filter(|example| example.flips());
        flips.count() as f64 / self.examples.len().max(1) as f64
    }
}
