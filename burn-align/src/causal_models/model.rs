//! The causal model itself, and the lookups on its variables.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::builder::Function;
use super::{CausalModelBuilder, CausalModelError, Value, Values, Variable, VariableRef};

/// A structural causal model over discrete values. Each variable has the values it can take, and is
/// either an input or a function of its parents.
///
/// For a model over variables *X* with functions *f*: a run under inputs computes
/// `x = f_X(parents of X)` for every variable, parents first; an intervention replaces `f_X` by a
/// constant `x`; an interchange intervention takes that `x` from a run under other inputs (arXiv
/// 2106.02997, arXiv 2303.02536).
#[derive(Clone)]
pub struct CausalModel<V> {
    /// Inputs first, then in the order of computation.
    pub(super) nodes: Vec<Node<V>>,
    /// How many of them are inputs.
    pub(super) inputs: usize,
    pub(super) outputs: Vec<Variable>,
    pub(super) by_name: HashMap<String, Variable>,
}

#[derive(Clone)]
pub(super) struct Node<V> {
    pub(super) name: String,
    pub(super) parents: Vec<Variable>,
    pub(super) values: Values<V>,
    /// The listed values, as a set.
    pub(super) members: HashSet<V>,
    /// `None` for an input.
    pub(super) function: Option<Function<V>>,
}

impl<V: Value> Node<V> {
    /// Whether the variable can have this value.
    pub(super) fn admits(&self, value: &V) -> bool {
        match self.values {
            Values::Any => true,
            Values::Listed(_) => self.members.contains(value),
        }
    }
}

impl<V: Value> CausalModel<V> {
    /// Starts building a model.
    pub fn builder() -> CausalModelBuilder<V> {
        CausalModelBuilder::default()
    }

    /// The variable with this name, or the same handle if this model has it.
    ///
    /// # Errors
    /// If the model has no such variable.
    pub fn variable<'a>(
        &self,
        variable: impl Into<VariableRef<'a>>,
    ) -> Result<Variable, CausalModelError> {
        match variable.into() {
            VariableRef::Handle(variable) if variable.0 < self.nodes.len() => Ok(variable),
            VariableRef::Handle(variable) => Err(CausalModelError::UnknownHandle {
                found: variable.0,
                count: self.nodes.len(),
            }),
            VariableRef::Name(name) => {
                let variable = self.by_name.get(name).copied();
                variable.ok_or_else(|| CausalModelError::UnknownVariable {
                    name: name.to_owned(),
                    known: self.names(self.all_variables()),
                })
            }
        }
    }

    /// The variables with these names.
    ///
    /// # Errors
    /// If the model has no such variable.
    pub fn variables<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<[Variable; N], CausalModelError> {
        let mut variables = [Variable(0); N];
        for (variable, name) in variables.iter_mut().zip(names) {
            *variable = self.variable(name)?;
        }
        Ok(variables)
    }

    /// All variables: inputs first, then in the order of computation.
    pub fn all_variables(&self) -> impl ExactSizeIterator<Item = Variable> + use<V> {
        (0..self.nodes.len()).map(Variable)
    }

    /// The inputs, in the order of their declaration.
    pub fn input_variables(&self) -> impl ExactSizeIterator<Item = Variable> + use<V> {
        (0..self.inputs).map(Variable)
    }

    /// The outputs.
    pub fn output_variables(&self) -> &[Variable] {
        &self.outputs
    }

    /// The name of a variable.
    ///
    /// # Errors
    /// If the model has no such variable.
    pub fn name(&self, variable: Variable) -> Result<&str, CausalModelError> {
        Ok(&self.node(self.variable(variable)?).name)
    }

    /// The parents of a variable, in the order in which its function gets them; none for an input.
    ///
    /// # Errors
    /// If the model has no such variable.
    pub fn parents<'a>(
        &self,
        variable: impl Into<VariableRef<'a>>,
    ) -> Result<&[Variable], CausalModelError> {
        Ok(&self.node(self.variable(variable)?).parents)
    }

    /// The values that a variable can take.
    ///
    /// # Errors
    /// If the model has no such variable.
    pub fn values<'a>(
        &self,
        variable: impl Into<VariableRef<'a>>,
    ) -> Result<&Values<V>, CausalModelError> {
        Ok(&self.node(self.variable(variable)?).values)
    }

    pub(super) fn node(&self, variable: Variable) -> &Node<V> {
        &self.nodes[variable.0]
    }

    pub(super) fn is_input(&self, variable: Variable) -> bool {
        variable.0 < self.inputs
    }

    /// Names for an error message.
    pub(super) fn names(&self, variables: impl IntoIterator<Item = Variable>) -> String {
        let names = variables.into_iter().map(|v| self.node(v).name.as_str());
        names.collect::<Vec<_>>().join(", ")
    }
}

impl<V: Value> fmt::Debug for CausalModel<V> {
    /// The variables with their parents, for example `out(wx, yz)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes.iter().map(|node| match node.function {
            None => node.name.clone(),
            Some(_) => format!(
                "{}({})",
                node.name,
                self.names(node.parents.iter().copied())
            ),
        });
        f.debug_struct("CausalModel")
            .field("variables", &nodes.collect::<Vec<_>>())
            .field("outputs", &self.names(self.outputs.iter().copied()))
            .finish()
    }
}
