//! Handles of variables, and the values of inputs and of whole runs.

use std::ops::Index;

use serde::{Deserialize, Serialize};

/// A variable of a causal model. Look it up by name with
/// [`CausalModel::variable`](super::CausalModel::variable).
///
/// Variables are numbered: inputs first, in the order of their declaration, then the others in the
/// order of computation. A handle is valid only in the model that returned it. In another model it
/// refers to the variable with the same number, or is an error if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variable(pub(super) usize);

impl Variable {
    /// Its number.
    pub fn index(self) -> usize {
        self.0
    }
}

/// A variable, by handle or by name. Every method that takes one accepts both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableRef<'a> {
    /// By its handle.
    Handle(Variable),
    /// By its name.
    Name(&'a str),
}

impl From<Variable> for VariableRef<'_> {
    fn from(variable: Variable) -> Self {
        Self::Handle(variable)
    }
}

impl<'a> From<&'a str> for VariableRef<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a String> for VariableRef<'a> {
    fn from(name: &'a String) -> Self {
        Self::Name(name)
    }
}

/// A value for each input of a causal model, in the order in which the inputs were declared.
///
/// [`CausalModel::inputs`](super::CausalModel::inputs) builds them by name and checks them. From an
/// array or a `Vec` they are taken in order, and checked when they run. Index them by handle:
/// `inputs[price]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs<V>(pub(super) Vec<V>);

impl<V> Inputs<V> {
    /// The values.
    pub fn values(&self) -> &[V] {
        &self.0
    }

    /// The value of an input; `None` if the variable is not an input.
    pub fn get(&self, input: Variable) -> Option<&V> {
        self.0.get(input.0)
    }

    /// The values, owned.
    pub fn into_values(self) -> Vec<V> {
        self.0
    }
}

impl<V> From<Vec<V>> for Inputs<V> {
    fn from(values: Vec<V>) -> Self {
        Self(values)
    }
}

impl<V, const N: usize> From<[V; N]> for Inputs<V> {
    fn from(values: [V; N]) -> Self {
        Self(values.into())
    }
}

impl<V> Index<Variable> for Inputs<V> {
    type Output = V;

    /// # Panics
    /// If the variable is not an input.
    fn index(&self, input: Variable) -> &V {
        &self.0[input.0]
    }
}

/// A value for each variable of a causal model: the result of a run. Index it by handle:
/// `setting[out]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Setting<V>(pub(super) Vec<V>);

impl<V> Setting<V> {
    /// The values, in the order of the variables' numbers.
    pub fn values(&self) -> &[V] {
        &self.0
    }

    /// The value of a variable; `None` if the handle comes from another model, with more variables.
    pub fn get(&self, variable: Variable) -> Option<&V> {
        self.0.get(variable.0)
    }
}

impl<V> Index<Variable> for Setting<V> {
    type Output = V;

    /// # Panics
    /// If the variable comes from another model, with more variables.
    fn index(&self, variable: Variable) -> &V {
        &self.0[variable.0]
    }
}
