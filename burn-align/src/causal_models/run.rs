//! Running a causal model: forward, under interventions, and under interchange interventions.

use super::model::Node;
use super::values::show;
use super::{
    CausalModel, CausalModelError, CounterfactualSource, Inputs, Setting, Value, Variable,
    VariableRef,
};

impl<V: Value> CausalModel<V> {
    /// Inputs by name or handle, in any order.
    ///
    /// # Errors
    /// If an input is missing, is named twice or has a value that it cannot have, or if a variable
    /// is not an input.
    pub fn inputs<'a, K: Into<VariableRef<'a>>>(
        &self,
        values: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Inputs<V>, CausalModelError> {
        let mut inputs = vec![None; self.inputs];
        for (variable, value) in values {
            let variable = self.variable(variable)?;
            let node = self.node(variable);
            let Some(input) = inputs.get_mut(variable.0) else {
                return Err(CausalModelError::NotAnInput {
                    variable: node.name.clone(),
                    parents: self.names(node.parents.iter().copied()),
                });
            };
            if input.replace(value).is_some() {
                return Err(self.repeated(variable));
            }
        }
        let inputs = inputs.into_iter().enumerate().map(|(input, value)| {
            value.ok_or_else(|| CausalModelError::MissingInput {
                variable: self.nodes[input].name.clone(),
            })
        });
        let inputs = Inputs(inputs.collect::<Result<Vec<V>, _>>()?);
        self.check_inputs(&inputs)?;
        Ok(inputs)
    }

    fn repeated(&self, variable: Variable) -> CausalModelError {
        CausalModelError::RepeatedVariable {
            variable: self.node(variable).name.clone(),
        }
    }

    fn check_inputs(&self, inputs: &Inputs<V>) -> Result<(), CausalModelError> {
        if inputs.0.len() != self.inputs {
            return Err(CausalModelError::InputCount {
                expected: self.inputs,
                inputs: self.names(self.input_variables()),
                found: inputs.0.len(),
            });
        }
        for (node, value) in self.nodes.iter().zip(&inputs.0) {
            if !node.admits(value) {
                return Err(CausalModelError::InputValue {
                    variable: node.name.clone(),
                    expected: node.values.summary(),
                    found: show(value),
                });
            }
        }
        Ok(())
    }

    /// The value of every variable under these inputs.
    ///
    /// # Errors
    /// If the inputs do not fit the model, or a function returns a value that its variable cannot
    /// have.
    #[doc(alias = "run_forward")]
    pub fn run(&self, inputs: &Inputs<V>) -> Result<Setting<V>, CausalModelError> {
        self.check_inputs(inputs)?;
        self.compute(inputs, Vec::new())
    }

    /// The value of every variable under these inputs when some variables are fixed to a value,
    /// whatever their parents are. An input can be fixed too.
    ///
    /// # Errors
    /// As [`run`](Self::run), and if a variable is unknown, is named twice, or cannot have the
    /// value.
    #[doc(alias = "run_forward")]
    pub fn intervene<'a, K: Into<VariableRef<'a>>>(
        &self,
        inputs: &Inputs<V>,
        values: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Setting<V>, CausalModelError> {
        self.check_inputs(inputs)?;
        let mut fixed = self.nothing_fixed();
        for (variable, value) in values {
            let variable = self.variable(variable)?;
            let node = self.node(variable);
            if !node.admits(&value) {
                return Err(CausalModelError::InterventionValue {
                    variable: node.name.clone(),
                    expected: node.values.summary(),
                    found: show(&value),
                });
            }
            self.fix(&mut fixed, variable, value)?;
        }
        self.compute(inputs, fixed)
    }

    /// The value of every variable under the base when some variables take the value that they have
    /// under a source. Several variables may share a source, or each may have its own. Sources run
    /// without intervention.
    ///
    /// # Errors
    /// As [`run`](Self::run), for the base and each source, and if a variable is unknown or named
    /// twice.
    #[doc(alias = "run_interchange")]
    pub fn interchange<'a, 's, K: Into<VariableRef<'a>>>(
        &self,
        base: &Inputs<V>,
        sources: impl IntoIterator<Item = (K, &'s Inputs<V>)>,
    ) -> Result<Setting<V>, CausalModelError>
    where
        V: 's,
    {
        let mut fixed = self.nothing_fixed();
        for (variable, source) in sources {
            let variable = self.variable(variable)?;
            self.fix(&mut fixed, variable, self.run(source)?[variable].clone())?;
        }
        self.check_inputs(base)?;
        self.compute(base, fixed)
    }

    /// Like [`interchange`](Self::interchange), for sources that each provide several variables.
    /// Each runs once.
    pub(super) fn interchange_sources(
        &self,
        base: &Inputs<V>,
        sources: &[CounterfactualSource<V>],
    ) -> Result<Setting<V>, CausalModelError> {
        let mut fixed = self.nothing_fixed();
        for source in sources {
            let setting = self.run(&source.inputs)?;
            for &variable in &source.variables {
                let variable = self.variable(variable)?;
                self.fix(&mut fixed, variable, setting[variable].clone())?;
            }
        }
        self.check_inputs(base)?;
        self.compute(base, fixed)
    }

    fn nothing_fixed(&self) -> Vec<Option<V>> {
        vec![None; self.nodes.len()]
    }

    fn fix(
        &self,
        fixed: &mut [Option<V>],
        variable: Variable,
        value: V,
    ) -> Result<(), CausalModelError> {
        match fixed[variable.0].replace(value) {
            None => Ok(()),
            Some(_) => Err(self.repeated(variable)),
        }
    }

    /// A variable's value, given the values of its parents.
    ///
    /// # Errors
    /// If the variable cannot have it.
    pub(super) fn apply(&self, variable: Variable, parents: &[V]) -> Result<V, CausalModelError> {
        let node = self.node(variable);
        let function = node.function.as_ref().expect("computed, not an input");
        let numbers: Vec<Variable> = (0..parents.len()).map(Variable).collect();
        let value = function(parents, &numbers);
        if node.admits(&value) {
            Ok(value)
        } else {
            Err(self.function_value(node, parents.iter(), &value))
        }
    }

    /// Computes all variables in order, from checked inputs and fixed values. `fixed` has an entry
    /// for each variable, or is empty.
    pub(super) fn compute(
        &self,
        inputs: &Inputs<V>,
        mut fixed: Vec<Option<V>>,
    ) -> Result<Setting<V>, CausalModelError> {
        let mut setting = Vec::with_capacity(self.nodes.len());
        for (number, node) in self.nodes.iter().enumerate() {
            let value = match (fixed.get_mut(number).and_then(Option::take), &node.function) {
                (Some(value), _) => value,
                (None, None) => inputs.0[number].clone(),
                (None, Some(function)) => {
                    let value = function(&setting, &node.parents);
                    if !node.admits(&value) {
                        let parents = node.parents.iter().map(|parent| &setting[parent.0]);
                        return Err(self.function_value(node, parents, &value));
                    }
                    value
                }
            };
            setting.push(value);
        }
        Ok(Setting(setting))
    }

    fn function_value<'v>(
        &self,
        node: &Node<V>,
        parents: impl Iterator<Item = &'v V>,
        value: &V,
    ) -> CausalModelError
    where
        V: 'v,
    {
        let parents = node.parents.iter().zip(parents).map(|(parent, value)| {
            let name = &self.node(*parent).name;
            format!("{name} = {value:?}")
        });
        CausalModelError::FunctionValue {
            variable: node.name.clone(),
            expected: node.values.summary(),
            found: show(value),
            parents: parents.collect::<Vec<_>>().join(", "),
        }
    }

    /// The values of the outputs, in order: the label.
    ///
    /// # Panics
    /// If the setting comes from another model, with fewer variables.
    pub fn outputs_of(&self, setting: &Setting<V>) -> Vec<V> {
        let outputs = self.outputs.iter().map(|output| setting[*output].clone());
        outputs.collect()
    }
}
