//! Building a causal model: variables are declared in any order, then checked and sorted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::model::Node;
use super::values::show;
use super::{CausalModel, CausalModelError, Value, Values, Variable};

/// Computes a variable from the values of all earlier variables, given the numbers of its parents.
pub(super) type Function<V> = Arc<dyn Fn(&[V], &[Variable]) -> V + Send + Sync>;

/// Declares the variables of a [`CausalModel`]. They may be declared in any order, even before
/// their parents.
pub struct CausalModelBuilder<V> {
    declared: Vec<Declared<V>>,
    outputs: Option<Vec<String>>,
}

struct Declared<V> {
    name: String,
    parents: Vec<String>,
    values: Values<V>,
    /// `None` for an input.
    function: Option<Function<V>>,
}

impl<V> Default for CausalModelBuilder<V> {
    fn default() -> Self {
        Self {
            declared: Vec::new(),
            outputs: None,
        }
    }
}

impl<V: Value> CausalModelBuilder<V> {
    /// Adds an input: a variable whose value is given.
    pub fn input(self, name: impl Into<String>, values: impl Into<Values<V>>) -> Self {
        self.declare(name.into(), Vec::new(), values.into(), None)
    }

    /// Adds a variable that is a function of its parents. The function gets them in the order in
    /// which they are named. Its result is converted into a value, so a comparison can return 0 or
    /// 1 of an integer type.
    ///
    /// ```
    /// # use burn_align::causal_models::{CausalModel, CausalModelError};
    /// let carry = CausalModel::<i64>::builder()
    ///     .input("x", 0..10)
    ///     .input("y", 0..10)
    ///     .variable("carry", ["x", "y"], 0..=1, |[x, y]| x + y >= 10)
    ///     .build()?;
    /// # Ok::<(), CausalModelError>(())
    /// ```
    pub fn variable<const N: usize, R: Into<V>>(
        self,
        name: impl Into<String>,
        parents: [&str; N],
        values: impl Into<Values<V>>,
        function: impl Fn([&V; N]) -> R + Send + Sync + 'static,
    ) -> Self {
        let function: Function<V> = Arc::new(move |setting: &[V], parents: &[Variable]| {
            function(std::array::from_fn(|parent| &setting[parents[parent].0])).into()
        });
        let parents = parents.map(str::to_owned).to_vec();
        self.declare(name.into(), parents, values.into(), Some(function))
    }

    /// Like [`variable`](Self::variable), for a list of parents whose length is known only at run
    /// time.
    pub fn variable_of<R: Into<V>>(
        self,
        name: impl Into<String>,
        parents: impl IntoIterator<Item = impl Into<String>>,
        values: impl Into<Values<V>>,
        function: impl Fn(&[&V]) -> R + Send + Sync + 'static,
    ) -> Self {
        let function: Function<V> = Arc::new(move |setting: &[V], parents: &[Variable]| {
            let values: Vec<&V> = parents.iter().map(|parent| &setting[parent.0]).collect();
            function(&values).into()
        });
        let parents = parents.into_iter().map(Into::into).collect();
        self.declare(name.into(), parents, values.into(), Some(function))
    }

    /// Names the outputs, whose values are an input's label. By default these are the computed
    /// variables that no other variable depends on, in the order in which they were added.
    pub fn outputs(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.outputs = Some(names.into_iter().map(Into::into).collect());
        self
    }

    fn declare(
        mut self,
        name: String,
        parents: Vec<String>,
        values: Values<V>,
        function: Option<Function<V>>,
    ) -> Self {
        self.declared.push(Declared {
            name,
            parents,
            values,
            function,
        });
        self
    }

    /// Builds the model.
    ///
    /// # Errors
    /// If two variables have the same name, a parent or output is unknown or named twice, variables
    /// depend on themselves, a variable has no values or lists one twice, or there is no output.
    pub fn build(self) -> Result<CausalModel<V>, CausalModelError> {
        let places = self.places()?;
        let members = self.declared.iter().map(members);
        let members: Vec<HashSet<V>> = members.collect::<Result<_, _>>()?;
        let parents = self.parents(&places)?;
        let order = self.order(&parents)?;
        let mut variables = vec![Variable(0); order.len()]; // by place of declaration
        for (number, &place) in order.iter().enumerate() {
            variables[place] = Variable(number);
        }
        let outputs = self.output_places(&places, &parents)?;
        let outputs = outputs.into_iter().map(|place| variables[place]).collect();
        let by_name = places
            .iter()
            .map(|(name, &place)| ((*name).to_owned(), variables[place]));
        let by_name = by_name.collect();
        let inputs = self.declared.iter().filter(|d| d.function.is_none());
        let inputs = inputs.count();

        let mut nodes = Vec::with_capacity(order.len());
        for (place, (declared, members)) in self.declared.into_iter().zip(members).enumerate() {
            let parents = parents[place].iter().map(|&parent| variables[parent]);
            let node = Node {
                name: declared.name,
                parents: parents.collect(),
                values: declared.values,
                members,
                function: declared.function,
            };
            nodes.push((variables[place], node));
        }
        nodes.sort_by_key(|(variable, _)| *variable);
        let nodes = nodes.into_iter().map(|(_, node)| node).collect();
        Ok(CausalModel {
            nodes,
            inputs,
            outputs,
            by_name,
        })
    }

    /// Each name's index in the order of declaration.
    fn places(&self) -> Result<HashMap<&str, usize>, CausalModelError> {
        let mut places = HashMap::with_capacity(self.declared.len());
        for (place, declared) in self.declared.iter().enumerate() {
            if places.insert(declared.name.as_str(), place).is_some() {
                return Err(CausalModelError::DuplicateName {
                    name: declared.name.clone(),
                });
            }
        }
        Ok(places)
    }

    /// The indices of each variable's parents.
    fn parents(&self, places: &HashMap<&str, usize>) -> Result<Vec<Vec<usize>>, CausalModelError> {
        let parents_of = |declared: &Declared<V>| {
            let mut seen = HashSet::with_capacity(declared.parents.len());
            let parents = declared.parents.iter().map(|parent| {
                if !seen.insert(parent) {
                    return Err(CausalModelError::RepeatedParent {
                        variable: declared.name.clone(),
                        parent: parent.clone(),
                    });
                }
                let place = places.get(parent.as_str()).copied();
                place.ok_or_else(|| CausalModelError::UnknownParent {
                    variable: declared.name.clone(),
                    parent: parent.clone(),
                    known: self.known(),
                })
            });
            parents.collect()
        };
        self.declared.iter().map(parents_of).collect()
    }

    /// All indices: inputs first, then each variable after its parents, otherwise as declared.
    fn order(&self, parents: &[Vec<usize>]) -> Result<Vec<usize>, CausalModelError> {
        let is_input = |place: &usize| self.declared[*place].function.is_none();
        let mut order: Vec<usize> = (0..parents.len()).filter(is_input).collect();
        let mut state = vec![State::New; parents.len()];
        for &input in &order {
            state[input] = State::Done;
        }
        // Depth first, with an explicit stack of (variable, number of parents visited).
        for start in 0..parents.len() {
            let mut path = Vec::new();
            if state[start] == State::New {
                state[start] = State::OnPath;
                path.push((start, 0));
            }
            while let Some((place, looked_at)) = path.last_mut() {
                let place = *place;
                let Some(&parent) = parents[place].get(*looked_at) else {
                    state[place] = State::Done;
                    order.push(place);
                    path.pop();
                    continue;
                };
                *looked_at += 1;
                match state[parent] {
                    State::Done => {}
                    State::New => {
                        state[parent] = State::OnPath;
                        path.push((parent, 0));
                    }
                    State::OnPath => return Err(self.cycle(&path, parent)),
                }
            }
        }
        Ok(order)
    }

    /// The last variable of the path is a child of `closes`, which is on the path itself.
    fn cycle(&self, path: &[(usize, usize)], closes: usize) -> CausalModelError {
        let places = path.iter().map(|(place, _)| *place);
        let cycle = places.skip_while(|place| *place != closes).chain([closes]);
        let mut names: Vec<&str> = cycle
            .map(|place| self.declared[place].name.as_str())
            .collect();
        names.reverse(); // from parent to child
        CausalModelError::Cycle {
            cycle: names.join(" → "),
        }
    }

    fn output_places(
        &self,
        places: &HashMap<&str, usize>,
        parents: &[Vec<usize>],
    ) -> Result<Vec<usize>, CausalModelError> {
        let outputs = match &self.outputs {
            Some(names) => {
                let mut outputs = Vec::with_capacity(names.len());
                for name in names {
                    let place = places.get(name.as_str()).copied();
                    let place = place.ok_or_else(|| CausalModelError::UnknownVariable {
                        name: name.clone(),
                        known: self.known(),
                    })?;
                    if outputs.contains(&place) {
                        return Err(CausalModelError::RepeatedVariable {
                            variable: name.clone(),
                        });
                    }
                    outputs.push(place);
                }
                outputs
            }
            None => {
                let used: HashSet<usize> = parents.iter().flatten().copied().collect();
                let computed = |place: &usize| self.declared[*place].function.is_some();
                let places = (0..parents.len()).filter(computed);
                places.filter(|place| !used.contains(place)).collect()
            }
        };
        if outputs.is_empty() {
            return Err(CausalModelError::NoOutput);
        }
        Ok(outputs)
    }

    fn known(&self) -> String {
        let names: Vec<&str> = self.declared.iter().map(|d| d.name.as_str()).collect();
        names.join(", ")
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    OnPath,
    Done,
}

/// The values as a set, for lookups; empty if any value is allowed.
fn members<V: Value>(declared: &Declared<V>) -> Result<HashSet<V>, CausalModelError> {
    let Values::Listed(values) = &declared.values else {
        return Ok(HashSet::new());
    };
    if values.is_empty() {
        return Err(CausalModelError::NoValues {
            variable: declared.name.clone(),
        });
    }
    let mut members = HashSet::with_capacity(values.len());
    for value in values {
        if !members.insert(value.clone()) {
            return Err(CausalModelError::RepeatedValue {
                variable: declared.name.clone(),
                value: show(value),
            });
        }
    }
    Ok(members)
}
